//! Encoding and rebuilding the fragments of one stripe.
//!
//! Invariant: a call that returns an error has written nothing; a call that returns Ok has
//! overwritten every output with exactly the bytes CODEC.md defines, whichever kernel ran.
//! Nothing is allocated after `Codec` is made.

use std::cell::RefCell;
use std::sync::Arc;

use crate::arch::{Combiner, Form, Kernel, Refused, Slices, Sources, accumulate};
use crate::cache::{DecodeCache, Decoder, Pattern, Rebuilders};
use crate::error::CodecError;
use crate::matrix::{FRAGMENTS_MAX, FragmentSet, Generator};

/// Outputs of so many bytes do not stay in any cache a core has a fair share of. Measured on one
/// core beside a cache of 32 MiB: a third to a half faster than stores through the caches.
const STREAM_FROM_DEFAULT: usize = 16 << 20;

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
    stream_from: usize,
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
    rebuilders: Rebuilders,
}

impl Clone for Codec {
    fn clone(&self) -> Self {
        let Shared { k, m, kernel, .. } = *self.shared;
        let cache = RefCell::new(DecodeCache::new(kernel, k, m));
        Self { shared: Arc::clone(&self.shared), cache, stream_from: self.stream_from }
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
        let shared = Arc::new(Shared {
            k,
            m,
            kernel,
            generator,
            factors: factors.into(),
            encoder: (m > 0).then(|| Combiner::new(kernel, k, m, Form::Unit)),
            rebuilders: Rebuilders::new(kernel, k, m),
        });
        let cache = RefCell::new(DecodeCache::new(kernel, k, m));
        Ok(Self { shared, cache, stream_from: STREAM_FROM_DEFAULT })
    }

    /// Writes the outputs of a call past the caches if they have `bytes` or more in all and start
    /// at cache lines. Faster where they would not stay in cache, slower where they would or are
    /// read at once; for work in the background, 0 spares the caches. The default is 16 MiB.
    #[must_use]
    pub fn streaming_from(self, bytes: usize) -> Self {
        Self { stream_from: bytes, ..self }
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
        let sources = Sources::of_slices(data);
        let done = match &self.shared.encoder {
            Some(encoder) => {
                encoder.combine(&self.shared.factors, sources, parity, self.stream_from)
            }
            None if data.len() != self.shared.k || !parity.is_empty() => Err(Refused::Count),
            None if data.iter().all(|fragment| fragment.len() == data[0].len()) => Ok(()),
            None => Err(Refused::Uneven),
        };
        done.map_err(|refused| self.name_refused_encode(refused, sources, parity))
    }

    #[cold]
    fn name_refused_encode(
        &self,
        refused: Refused,
        data: Sources<'_>,
        parity: &[&mut [u8]],
    ) -> CodecError {
        let Shared { k, m, .. } = *self.shared;
        match refused {
            Refused::Count if data.len() != k => {
                CodecError::Count { role: "data fragments", found: data.len(), expected: k }
            }
            Refused::Count => {
                CodecError::Count { role: "parity fragments", found: parity.len(), expected: m }
            }
            Refused::Uneven => {
                let data = data.iter().map(<[u8]>::len);
                name_uneven("data fragment", data, "parity fragment", parity)
            }
        }
    }

    /// Computes the m parities of `value`, whose data fragments are views of it (`data_fragment`);
    /// zeros stand for what k fragments hold beyond its end. Parities have `fragment_len` bytes.
    #[inline]
    pub fn encode_value(&self, value: &[u8], parity: &mut [&mut [u8]]) -> Result<(), CodecError> {
        let Shared { k, m, .. } = *self.shared;
        expect_count("parity fragments", parity.len(), m)?;
        let length = fragment_len(value.len(), k);
        let Some(encoder) = &self.shared.encoder else { return Ok(()) };
        expect_lengths("parity fragment", parity.iter().map(|parity| parity.len()), length)?;
        let (mut room, mut rest) = (Slices::new(), value);
        let views = room.fill((0..k).map(|_| {
            let view;
            (view, rest) = rest.split_at(length.min(rest.len()));
            view
        }));
        let (factors, stream_from) = (&self.shared.factors, self.stream_from);
        let done = if value.len() == k * length {
            encoder.combine(factors, Sources::of_slices(views), parity, stream_from)
        } else {
            encoder.combine_ragged(factors, views, parity, stream_from)
        };
        done.expect("stripe invariant: views and parities fit the code");
        Ok(())
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
        let mut room = Slices::new();
        let columns = room.fill(parity.iter_mut().map(|output| &mut output[column..end]));
        let Shared { kernel, ref factors, .. } = *self.shared;
        let factors = factors.get(index * kernel.factor_words()..).unwrap_or(&[]);
        accumulate(kernel, factors, k, piece, columns);
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
        if let Some(decoder) = self.cache.borrow().repeated(present.len(), wanted) {
            let sources = Sources::of_fragments(present, decoder.present);
            let done = decoder.combiner.combine(decoder.factors, sources, out, self.stream_from);
            if done.is_ok() {
                return Ok(());
            }
        }
        self.rebuild_anew(present, wanted, out)
    }

    /// As `rebuild`, for a pattern that is not the latest or not in order, and for a call that is
    /// wrong.
    #[inline(never)]
    fn rebuild_anew(
        &self,
        present: &[(usize, &[u8])],
        wanted: &[usize],
        out: &mut [&mut [u8]],
    ) -> Result<(), CodecError> {
        let Shared { k, m, ref generator, ref rebuilders, .. } = *self.shared;
        expect_count("present fragments", present.len(), k)?;
        expect_count("outputs", out.len(), wanted.len())?;
        let indices = present.iter().map(|(index, _)| *index);
        let present_set = set_of("present fragment", indices, k + m)?;
        let wanted_set = set_of("wanted fragment", wanted.iter().copied(), k + m)?;
        if let Some(index) = present_set.common(&wanted_set) {
            return Err(CodecError::Present { index });
        }
        let lengths = present.iter().map(|(_, bytes)| bytes.len());
        let length = present[0].1.len();
        let even = lengths.clone().all(|found| found == length);
        if !even || out.iter().any(|output| output.len() != length) {
            return Err(name_uneven("present fragment", lengths, "output", out));
        }
        if !wanted.is_empty() {
            let pattern = Pattern { present: present_set, wanted: wanted_set };
            self.cache.borrow_mut().select(&pattern, wanted.len(), generator, rebuilders);
            self.rebuild_reordered(&pattern, present, wanted, out);
        }
        Ok(())
    }

    /// As `rebuild` with the latest pattern: puts the slices in the order of the decode matrix.
    fn rebuild_reordered(
        &self,
        pattern: &Pattern,
        present: &[(usize, &[u8])],
        wanted: &[usize],
        out: &mut [&mut [u8]],
    ) {
        let mut room = Slices::new();
        let sources = room.fill(present.iter().copied());
        for &(index, bytes) in present {
            sources[pattern.present.rank(index)] = (index, bytes);
        }
        let mut room = Slices::<&mut [u8]>::new();
        let ordered = room.fill(wanted.iter().map(|_| &mut [][..]));
        for (index, out) in wanted.iter().zip(out.iter_mut()) {
            ordered[pattern.wanted.rank(*index)] = out;
        }
        let cache = self.cache.borrow();
        let Decoder { combiner, factors, present } =
            cache.latest().expect("stripe invariant: a pattern is selected");
        let sources = Sources::of_fragments(sources, present);
        let done = combiner.combine(factors, sources, ordered, self.stream_from);
        done.expect("stripe invariant: slices are even, and in the order of the pattern");
    }
}

/// The set of `indices`, each below `fragments` and named once.
fn set_of(
    role: &'static str,
    indices: impl Iterator<Item = usize>,
    fragments: usize,
) -> Result<FragmentSet, CodecError> {
    let mut set = FragmentSet::default();
    for index in indices {
        if index >= fragments {
            return Err(CodecError::Index { role, index, fragments });
        }
        if !set.insert(index) {
            return Err(CodecError::Duplicate { role, index });
        }
    }
    Ok(set)
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

/// Which slice is to blame where lengths differ: the first unlike the first input.
#[cold]
fn name_uneven(
    input_role: &'static str,
    mut inputs: impl Iterator<Item = usize> + Clone,
    output_role: &'static str,
    outputs: &[&mut [u8]],
) -> CodecError {
    let expected = inputs.clone().next().unwrap_or(0);
    let outputs = outputs.iter().map(|output| output.len()).enumerate();
    let unlike = |(_, found): &(usize, usize)| *found != expected;
    let uneven = inputs.by_ref().enumerate().find(unlike).map(|found| (input_role, found));
    let uneven = uneven.or_else(|| outputs.into_iter().find(unlike).map(|f| (output_role, f)));
    let (role, (index, found)) =
        uneven.expect("stripe invariant: some length differs where lengths were found to differ");
    CodecError::Length { role, index, found, expected }
}
