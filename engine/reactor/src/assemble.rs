//! Values from fragments: gathered, rebuilt where one is missing, checked.
//!
//! Invariant: bytes leave here only if they have the digest that was decided.

use crate::layout;
use crate::node::Node;
use crate::reads::Held;
use racos_buffer::Slice;
use racos_machine::Value;
use racos_net::Link;
use racos_storage::device::Device;

/// Why a value could not be put together now.
pub(crate) enum Unfit {
    NoBuffers,
    /// The bytes are not those that were written.
    Digest,
}

impl<L: Link, D: Device> Node<L, D> {
    /// The bytes of a value from k fragments, checked against its digest.
    /// `suspicious`: they did not make the value before, so that one of them must be wrong.
    pub(crate) fn put_together(
        &self,
        all: &[Held],
        value: &Value,
        suspicious: bool,
    ) -> Result<Vec<Slice>, Unfit> {
        let len = layout::fragment_len(value.len as usize, usize::from(value.k));
        let fits = |held: &&Held| held.op == value.op && held.bytes.len() == len;
        let mut held: Vec<&Held> = all.iter().filter(fits).collect();
        held.sort_unstable_by_key(|held| held.index);
        let k = usize::from(value.k);
        if held.len() < k {
            return Err(Unfit::Digest);
        }
        let result = self.join(&held[..k], value, len);
        if !suspicious || result.is_ok() {
            return result;
        }
        // PROTOCOL 9.5: find the subset that fits.
        for skip in 0..held.len() {
            let some: Vec<&Held> =
                held.iter().enumerate().filter(|(i, _)| *i != skip).map(|(_, h)| *h).collect();
            if some.len() >= k
                && let Ok(pieces) = self.join(&some[some.len() - k..], value, len)
            {
                return Ok(pieces);
            }
        }
        result
    }

    fn join(&self, held: &[&Held], value: &Value, len: usize) -> Result<Vec<Slice>, Unfit> {
        let total = value.len as usize;
        let pieces = if value.k == 1 {
            vec![held[0].bytes.slice(0..total)]
        } else if total < layout::LARGE_BYTES_MIN {
            vec![self.join_small(held, total, len)?]
        } else {
            self.join_large(held, total, len)?
        };
        // PROTOCOL 8.1-n: the bytes that were written, or none.
        let digest = self.secrets.value_digest(pieces.iter().map(|piece| &**piece));
        if digest == value.digest { Ok(pieces) } else { Err(Unfit::Digest) }
    }

    /// Copies the fragments of a small value into one buffer and rebuilds missing ones in place.
    fn join_small(&self, held: &[&Held], total: usize, len: usize) -> Result<Slice, Unfit> {
        let k = self.codec.k();
        let mut buf = self.pool.get(k * len).ok_or(Unfit::NoBuffers)?;
        for fragment in held.iter().filter(|held| usize::from(held.index) < k) {
            let at = usize::from(fragment.index) * len;
            buf[at..at + len].copy_from_slice(&fragment.bytes);
        }
        let has = |index: usize| held.iter().any(|held| usize::from(held.index) == index);
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
    fn join_large(&self, held: &[&Held], total: usize, len: usize) -> Result<Vec<Slice>, Unfit> {
        let k = self.codec.k();
        let find = |index: usize| held.iter().find(|held| usize::from(held.index) == index);
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
                Some(held) => held.bytes.clone(),
                None => {
                    let at = wanted.iter().position(|missing| *missing == index)? * len;
                    rebuilt.slice(at..at + len)
                }
            };
            (used > 0).then(|| whole.slice(0..used))
        });
        Ok(pieces.collect())
    }

    fn rebuild(&self, held: &[&Held], wanted: &[usize], outs: &mut [&mut [u8]]) {
        let present: Vec<(usize, &[u8])> =
            held.iter().map(|held| (usize::from(held.index), &*held.bytes)).collect();
        let done = self.codec.rebuild(&present, wanted, outs);
        done.expect("k distinct fragments of one length");
    }
}
