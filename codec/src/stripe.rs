//! Encoding and rebuilding the fragments of one stripe.
//!
//! Invariant: a call that returns an error has written nothing; a call that returns Ok has
//! overwritten every output with exactly the bytes CODEC.md defines, whichever kernel ran.
//! Nothing is allocated after `Codec` is made.

use std::cell::RefCell;
use std::sync::Arc;

use crate::arch::{Combiner, Kernel, accumulate};
use crate::cache::{DecodeCache, Pattern};
use crate::error::CodecError;
use crate::matrix::{FRAGMENTS_MAX, Generator};

/// Up to this many slices are gathered in a small array; the largest array is for the widest codes.
const SLICES_FEW: usize = 16;

/// Bytes in each fragment of a value of `value_len` bytes: the least number that k fragments of it
/// hold the value. k is not zero.
pub const fn fragment_len(value_len: usize, k: usize) -> usize {
    value_len.div_ceil(k)
}

/// Data fragment `index` of `value`, without its padding: the fragment is this slice followed by
/// zeros up to `fragment_len` bytes. Empty where the fragment lies beyond the value's end.
pub fn data_fragment(value: &[u8], k: usize, index: usize) -> &[u8] {
    let length = fragment_len(value.len(), k);
    let start = length.saturating_mul(index).min(value.len());
    let end = start.saturating_add(length).min(value.len());
    &value[start..end]
}

/// A Reed-Solomon code of k data and m parity fragments, and the kernel that computes it.
///
/// `Send` but not `Sync`: decode matrices are cached inside without a lock. Each thread takes a
/// clone, which shares the generator and starts with an empty cache.
#[derive(Debug)]
pub struct Codec {
    shared: Arc<Shared>,
    cache: RefCell<DecodeCache>,
}

/// What clones of a codec have in common.
#[derive(Debug)]
struct Shared {
    k: usize,
    m: usize,
    kernel: Kernel,
    generator: Generator,
    /// The generator's parity rows in the kernel's form.
    factors: Box<[u64]>,
    /// Computes all parities; none if m = 0.
    encoder: Option<Combiner>,
    /// At `w - 1`: rebuilds w fragments.
    rebuilders: Box<[Combiner]>,
}

impl Clone for Codec {
    fn clone(&self) -> Self {
        let Shared { k, m, kernel, .. } = *self.shared;
        let cache = RefCell::new(DecodeCache::new(kernel, k, m));
        Self { shared: Arc::clone(&self.shared), cache }
    }
}

impl Codec {
    /// The code of `k >= 1` data and `m` parity fragments, `k + m <= 255`, with the kernel that
    /// `RACOS_CODEC_KERNEL` names or else the fastest.
    pub fn new(k: usize, m: usize) -> Result<Self, CodecError> {
        Self::with_kernel(k, m, Kernel::chosen()?)
    }

    /// As `new`, with the kernel given.
    pub fn with_kernel(k: usize, m: usize, kernel: Kernel) -> Result<Self, CodecError> {
        if k == 0 || k > FRAGMENTS_MAX || m > FRAGMENTS_MAX - k {
            return Err(CodecError::Shape { k, m });
        }
        let kernel = kernel.supported()?;
        let generator = Generator::new(k, m);
        let mut factors = vec![0; generator.rows().len() * kernel.factor_words()];
        kernel.write_factors(generator.rows(), &mut factors);
        let encoder = (m > 0).then(|| Combiner::new(kernel, k, m, true));
        let rebuilders = (1..=m).map(|rows| Combiner::new(kernel, k, rows, false)).collect();
        let factors = factors.into();
        let shared = Arc::new(Shared { k, m, kernel, generator, factors, encoder, rebuilders });
        Ok(Self { shared, cache: RefCell::new(DecodeCache::new(kernel, k, m)) })
    }

    /// Number of data fragments.
    pub fn k(&self) -> usize {
        self.shared.k
    }

    /// Number of parity fragments.
    pub fn m(&self) -> usize {
        self.shared.m
    }

    /// The kernel in use.
    pub fn kernel(&self) -> Kernel {
        self.shared.kernel
    }

    /// Decode matrices derived so far because they were not in the cache.
    pub fn decode_misses(&self) -> u64 {
        self.cache.borrow().misses()
    }

    /// Computes the m parities of k data fragments, all of one length, in one pass over the data.
    #[inline]
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        let Shared { k, m, .. } = *self.shared;
        expect_count("data fragments", data.len(), k)?;
        expect_count("parity fragments", parity.len(), m)?;
        let length = data[0].len();
        expect_lengths("data fragment", data.iter().map(|data| data.len()), length)?;
        expect_lengths("parity fragment", parity.iter().map(|parity| parity.len()), length)?;
        if let Some(encoder) = &self.shared.encoder {
            encoder.combine(&self.shared.factors, data, parity);
        }
        Ok(())
    }

    /// Computes the m parities of `value`, whose data fragments are views of it (`data_fragment`);
    /// zeros stand for what k fragments hold beyond its end. Parities have `fragment_len` bytes.
    #[inline]
    pub fn encode_value(&self, value: &[u8], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        let Shared { k, m, .. } = *self.shared;
        expect_count("parity fragments", parity.len(), m)?;
        let length = fragment_len(value.len(), k);
        expect_lengths("parity fragment", parity.iter().map(|parity| parity.len()), length)?;
        if k <= SLICES_FEW {
            self.encode_views::<SLICES_FEW>(value, length, parity);
        } else {
            self.encode_views::<FRAGMENTS_MAX>(value, length, parity);
        }
        Ok(())
    }

    #[inline]
    fn encode_views<const N: usize>(&self, value: &[u8], length: usize, parity: &mut [&mut [u8]]) {
        let Some(encoder) = &self.shared.encoder else { return };
        let mut views: [&[u8]; N] = [&[]; N];
        let views = &mut views[..self.shared.k];
        for (view, part) in views.iter_mut().zip(value.chunks(length.max(1))) {
            *view = part;
        }
        encoder.combine(&self.shared.factors, views, parity);
    }

    /// Adds `piece`, which lies at `column` of data fragment `index`, to the parities of its
    /// stripe. Parities that start as zeros equal those of `encode` once every byte of the data
    /// was added once, in any order and in pieces of any size; zeros need not be added.
    pub fn update(
        &self,
        index: usize,
        column: usize,
        piece: &[u8],
        parity: &mut [&mut [u8]],
    ) -> Result<(), CodecError> {
        let Shared { k, m, .. } = *self.shared;
        if index >= k {
            return Err(CodecError::Index { role: "data fragment", index, fragments: k });
        }
        expect_count("parity fragments", parity.len(), m)?;
        let limit = parity.first().map_or(usize::MAX, |parity| parity.len());
        expect_lengths("parity fragment", parity.iter().map(|parity| parity.len()), limit)?;
        let length = piece.len();
        let end = column.checked_add(length).filter(|end| *end <= limit);
        let Some(end) = end else {
            return Err(CodecError::Range { offset: column, length, limit });
        };
        let words = self.shared.kernel.factor_words();
        let tables = self.shared.factors.chunks(SLICES_FEW * k * words);
        for (outputs, factors) in parity.chunks_mut(SLICES_FEW).zip(tables) {
            let rows = outputs.len();
            let mut columns: [&mut [u8]; SLICES_FEW] = Default::default();
            for (columns, output) in columns.iter_mut().zip(outputs.iter_mut()) {
                *columns = &mut output[column..end];
            }
            let columns = &mut columns[..rows];
            accumulate(self.shared.kernel, &factors[index * words..], k, piece, columns);
        }
        Ok(())
    }

    /// As `update` for a piece of a value of `value_len` bytes, at byte `offset` of it; the piece
    /// may cross fragments. Parities have `fragment_len` bytes.
    pub fn update_value(
        &self,
        value_len: usize,
        offset: usize,
        piece: &[u8],
        parity: &mut [&mut [u8]],
    ) -> Result<(), CodecError> {
        let length = fragment_len(value_len, self.shared.k);
        expect_count("parity fragments", parity.len(), self.shared.m)?;
        expect_lengths("parity fragment", parity.iter().map(|parity| parity.len()), length)?;
        if offset.checked_add(piece.len()).is_none_or(|end| end > value_len) {
            let length = piece.len();
            return Err(CodecError::Range { offset, length, limit: value_len });
        }
        let (mut offset, mut rest) = (offset, piece);
        while !rest.is_empty() {
            let (index, column) = (offset / length, offset % length);
            let (part, after) = rest.split_at(rest.len().min(length - column));
            self.update(index, column, part, parity)?;
            offset += part.len();
            rest = after;
        }
        Ok(())
    }

    /// Rebuilds the fragments `wanted`, in that order, into `out`, from exactly k `present`
    /// fragments, each given with its index. Orders are free; all slices have one length.
    #[inline]
    pub fn rebuild(
        &self,
        present: &[(usize, &[u8])],
        wanted: &[usize],
        out: &mut [&mut [u8]],
    ) -> Result<(), CodecError> {
        let Shared { k, .. } = *self.shared;
        expect_count("present fragments", present.len(), k)?;
        expect_count("outputs", out.len(), wanted.len())?;
        let length = present[0].1.len();
        let pattern = self.pattern(present, wanted)?;
        expect_lengths("present fragment", present.iter().map(|(_, bytes)| bytes.len()), length)?;
        expect_lengths("output", out.iter().map(|out| out.len()), length)?;
        if wanted.is_empty() {
            return Ok(());
        }
        if k <= SLICES_FEW && wanted.len() <= SLICES_FEW {
            self.rebuild_pattern::<SLICES_FEW>(&pattern, present, wanted, out);
        } else {
            self.rebuild_pattern::<FRAGMENTS_MAX>(&pattern, present, wanted, out);
        }
        Ok(())
    }

    /// The sets of the indices given, or an error if one is out of range or given twice.
    #[inline]
    fn pattern(&self, present: &[(usize, &[u8])], wanted: &[usize]) -> Result<Pattern, CodecError> {
        let fragments = self.shared.k + self.shared.m;
        let mut pattern = Pattern::default();
        let role = "present fragment";
        for &(index, _) in present {
            if index >= fragments {
                return Err(CodecError::Index { role, index, fragments });
            }
            if !pattern.present.insert(index) {
                return Err(CodecError::Duplicate { role, index });
            }
        }
        let role = "wanted fragment";
        for &index in wanted {
            if index >= fragments {
                return Err(CodecError::Index { role, index, fragments });
            }
            if !pattern.wanted.insert(index) {
                return Err(CodecError::Duplicate { role, index });
            }
        }
        match pattern.present.common(&pattern.wanted) {
            Some(index) => Err(CodecError::Present { index }),
            None => Ok(pattern),
        }
    }

    /// Puts sources and outputs in the order of the decode matrix, ascending by index.
    #[inline]
    fn rebuild_pattern<const N: usize>(
        &self,
        pattern: &Pattern,
        present: &[(usize, &[u8])],
        wanted: &[usize],
        out: &mut [&mut [u8]],
    ) {
        let shared = &*self.shared;
        let mut sources: [&[u8]; N] = [&[]; N];
        if present.is_sorted_by_key(|(index, _)| *index) {
            for (source, (_, bytes)) in sources.iter_mut().zip(present) {
                *source = bytes;
            }
        } else {
            for &(index, bytes) in present {
                sources[pattern.present.rank(index)] = bytes;
            }
        }
        let sources = &sources[..shared.k];
        let rebuilder = &shared.rebuilders[wanted.len() - 1];
        let mut cache = self.cache.borrow_mut();
        let count = wanted.len() * shared.k;
        let table = cache.table(pattern, count, &shared.generator, shared.kernel);
        if wanted.is_sorted() {
            rebuilder.combine(table, sources, out);
            return;
        }
        let mut outputs: [&mut [u8]; N] = std::array::from_fn(|_| Default::default());
        for (&index, out) in wanted.iter().zip(out.iter_mut()) {
            outputs[pattern.wanted.rank(index)] = out;
        }
        rebuilder.combine(table, sources, &mut outputs[..wanted.len()]);
    }
}

fn expect_count(role: &'static str, found: usize, expected: usize) -> Result<(), CodecError> {
    if found == expected { Ok(()) } else { Err(CodecError::Count { role, found, expected }) }
}

#[inline]
fn expect_lengths(
    role: &'static str,
    lengths: impl Iterator<Item = usize>,
    expected: usize,
) -> Result<(), CodecError> {
    for (index, found) in lengths.enumerate() {
        if found != expected {
            return Err(CodecError::Length { role, index, found, expected });
        }
    }
    Ok(())
}
