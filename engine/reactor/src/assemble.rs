//! Values from fragments: gathered, rebuilt where one is missing, checked.
//!
//! Invariant: bytes leave here only if they have the digest that was decided.

use crate::layout;
use crate::node::Node;
use crate::reads::Held;
use crate::secrets::Secrets;
use racos_buffer::{Pool, Slice};
use racos_codec::Codec;
use racos_machine::Value;
use racos_net::Link;
use racos_storage::device::Device;

/// Why a value could not be put together now.
pub(crate) enum Unfit {
    NoBuffers,
    /// The bytes are not those that were written.
    Digest,
}

/// Sets of k fragments that are tried when a digest differs.
const SUBSETS_MAX: usize = 4096;

/// A fragment, and which one of the value's it is.
#[derive(Clone, Copy)]
pub(crate) struct Placed<'a> {
    pub place: usize,
    pub held: &'a Held,
}

/// A value that has its digest, and the k fragments that gave it.
pub(crate) struct Decoded<'a> {
    pub chosen: Vec<Placed<'a>>,
    pub pieces: Vec<Slice>,
}

/// What a value is put together with.
pub(crate) struct Assembler<'a> {
    pub pool: &'a Pool,
    pub secrets: &'a Secrets,
    /// The value's; a value of which k is 1 needs none.
    pub codec: Option<&'a Codec>,
}

impl<L: Link, D: Device> Node<L, D> {
    /// A value from k of its fragments, checked against its digest.
    /// `suspicious`: they did not make the value before, so that one of them must be wrong.
    pub(crate) fn decode<'a>(
        &self,
        all: &'a [Held],
        value: &Value,
        suspicious: bool,
    ) -> Result<Decoded<'a>, Unfit> {
        let len = layout::fragment_len(value.len as usize, usize::from(value.k));
        let fits = |held: &&Held| held.op == value.op && held.bytes.len() == len;
        let placed =
            |held: &'a Held| Some(Placed { place: self.place_of(held.node, value)?, held });
        let held = all.iter().filter(fits).filter_map(placed).collect();
        self.assembler(value).decode(held, value, suspicious)
    }

    pub(crate) fn rebuild(
        &self,
        held: &[Placed<'_>],
        value: &Value,
        wanted: &[usize],
        outs: &mut [&mut [u8]],
    ) {
        self.assembler(value).rebuild(held, wanted, outs);
    }

    fn assembler(&self, value: &Value) -> Assembler<'_> {
        let (pool, secrets) = (&self.pool, &self.secrets);
        Assembler { pool, secrets, codec: self.codec_of(value) }
    }
}

impl Assembler<'_> {
    /// The value from k of these fragments, which have its length; no two are the same one.
    pub(crate) fn decode<'a>(
        &self,
        mut held: Vec<Placed<'a>>,
        value: &Value,
        suspicious: bool,
    ) -> Result<Decoded<'a>, Unfit> {
        let len = layout::fragment_len(value.len as usize, usize::from(value.k));
        held.sort_unstable_by_key(|held| held.place);
        let k = usize::from(value.k);
        if held.len() < k {
            return Err(Unfit::Digest);
        }
        let mut subset: Vec<usize> = (0..k).collect();
        let tries = if suspicious { SUBSETS_MAX } else { 1 };
        for _ in 0..tries {
            let chosen: Vec<Placed<'_>> = subset.iter().map(|index| held[*index]).collect();
            match self.join(&chosen, value, len) {
                Ok(pieces) => return Ok(Decoded { chosen, pieces }),
                Err(Unfit::NoBuffers) => return Err(Unfit::NoBuffers),
                // PROTOCOL 9.5-b: find the subset that fits.
                Err(Unfit::Digest) if next_subset(&mut subset, held.len()) => {}
                Err(Unfit::Digest) => break,
            }
        }
        Err(Unfit::Digest)
    }

    fn join(&self, held: &[Placed<'_>], value: &Value, len: usize) -> Result<Vec<Slice>, Unfit> {
        let total = value.len as usize;
        let pieces = if value.k == 1 {
            vec![held[0].held.bytes.slice(0..total)]
        } else if total < layout::LARGE_BYTES_MIN {
            vec![self.join_small(held, value, len)?]
        } else {
            self.join_large(held, value, len)?
        };
        // PROTOCOL 8.1-n: the bytes that were written, or none.
        let digest = self.secrets.value_digest(pieces.iter().map(|piece| &**piece));
        if digest == value.digest { Ok(pieces) } else { Err(Unfit::Digest) }
    }

    /// Copies the fragments of a small value into one buffer and rebuilds missing ones in place.
    fn join_small(&self, held: &[Placed<'_>], value: &Value, len: usize) -> Result<Slice, Unfit> {
        let (k, total) = (usize::from(value.k), value.len as usize);
        let mut buf = self.pool.get(k * len).ok_or(Unfit::NoBuffers)?;
        for fragment in held.iter().filter(|held| held.place < k) {
            let at = fragment.place * len;
            buf[at..at + len].copy_from_slice(&fragment.held.bytes);
        }
        let has = |index: usize| held.iter().any(|held| held.place == index);
        if (0..k).any(|index| !has(index)) {
            let wanted: Vec<usize> = (0..k).filter(|index| !has(*index)).collect();
            let mut outs: Vec<&mut [u8]> = buf
                .chunks_exact_mut(len)
                .enumerate()
                .filter(|(index, _)| wanted.contains(index))
                .map(|(_, chunk)| chunk)
                .collect();
            self.rebuild(held, &wanted, &mut outs);
        }
        Ok(buf.freeze().slice(0..total))
    }

    /// Gathers the data fragments of a large value without a copy; missing ones are rebuilt.
    fn join_large(
        &self,
        held: &[Placed<'_>],
        value: &Value,
        len: usize,
    ) -> Result<Vec<Slice>, Unfit> {
        let (k, total) = (usize::from(value.k), value.len as usize);
        let find = |index: usize| held.iter().find(|held| held.place == index);
        let wanted: Vec<usize> = (0..k).filter(|index| find(*index).is_none()).collect();
        let mut rebuilt = Slice::empty();
        if !wanted.is_empty() {
            let mut buf = self.pool.get(wanted.len() * len).ok_or(Unfit::NoBuffers)?;
            let mut outs: Vec<&mut [u8]> = buf.chunks_exact_mut(len).collect();
            self.rebuild(held, &wanted, &mut outs);
            rebuilt = buf.freeze();
        }
        let pieces = (0..k).filter_map(|index| {
            let used = total.saturating_sub(index * len).min(len);
            let whole = match find(index) {
                Some(found) => found.held.bytes.clone(),
                None => {
                    let at = wanted.iter().position(|missing| *missing == index)? * len;
                    rebuilt.slice(at..at + len)
                }
            };
            (used > 0).then(|| whole.slice(0..used))
        });
        Ok(pieces.collect())
    }

    fn rebuild(&self, held: &[Placed<'_>], wanted: &[usize], outs: &mut [&mut [u8]]) {
        let present: Vec<(usize, &[u8])> =
            held.iter().map(|held| (held.place, &*held.held.bytes)).collect();
        let codec = self.codec.expect("the code of a layout that is known");
        let done = codec.rebuild(&present, wanted, outs);
        done.expect("k distinct fragments of one length");
    }
}

/// The next set of as many indices below `n`, all ascending; false after the last.
fn next_subset(subset: &mut [usize], n: usize) -> bool {
    let k = subset.len();
    let Some(place) = (0..k).rev().find(|place| subset[*place] < n - k + place) else {
        return false;
    };
    subset[place] += 1;
    for later in place + 1..k {
        subset[later] = subset[later - 1] + 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subset_comes_once() {
        for (n, k, count) in [(5, 3, 10), (4, 4, 1), (7, 1, 7), (9, 3, 84)] {
            let mut subset: Vec<usize> = (0..k).collect();
            let mut seen = std::collections::BTreeSet::new();
            loop {
                assert!(subset.iter().all(|index| *index < n) && seen.insert(subset.clone()));
                if !next_subset(&mut subset, n) {
                    break;
                }
            }
            assert_eq!(seen.len(), count);
        }
    }
}
