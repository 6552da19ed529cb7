//! The loads and stores of a code without its arithmetic: what no code on this machine can be faster
//! than, as it has to read every source and write every output. The best of several ways to walk
//! the memory is the bound, since none is the fastest for all shapes and sizes.
//!
//! Invariant: pointers come from slices whose number and lengths were checked here; an instance
//! runs only where the processor has its instructions.

use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _MM_HINT_ET0, _MM_HINT_T0, _bzhi_u64, _mm_prefetch, _mm_sfence, _mm512_loadu_si512,
    _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_setzero_si512, _mm512_storeu_si512,
    _mm512_stream_si512,
};
use std::marker::PhantomData;

/// How memory is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// One vector of each source and output in turn.
    One,
    /// Two vectors of each.
    Two,
    /// Four vectors of each.
    Four,
    /// One vector of each, lines 256 bytes further on being asked for before they are needed.
    Near,
    /// The same, 512 bytes further on.
    Ahead,
    /// Two vectors of each, lines 256 bytes further on being asked for.
    TwoNear,
    /// The same, 512 bytes further on.
    TwoAhead,
    /// One vector of each, stores going past the caches. For aligned outputs.
    Past,
}

impl Way {
    pub(crate) const ALL: [Self; 8] = [
        Self::One,
        Self::Two,
        Self::Four,
        Self::Near,
        Self::Ahead,
        Self::TwoNear,
        Self::TwoAhead,
        Self::Past,
    ];
}

const BYTES: usize = 64;

/// Loads of all sources and stores to all outputs, again and again.
pub(crate) struct Streams<'a> {
    sources: Vec<*const u8>,
    outputs: Vec<*mut u8>,
    length: usize,
    run: Run,
    borrowed: PhantomData<&'a mut [u8]>,
}

type Run = unsafe fn(*const *const u8, *const *mut u8, usize);

impl<'a> Streams<'a> {
    /// None where the processor lacks AVX-512, for numbers there is no instance for, and where a
    /// way cannot be gone.
    pub(crate) fn new(
        way: Way,
        sources: &[&'a [u8]],
        outputs: &'a mut [&mut [u8]],
    ) -> Option<Self> {
        use std::arch::is_x86_feature_detected as has;
        if !(has!("avx512f") && has!("avx512bw") && has!("bmi2")) {
            return None;
        }
        let length = sources.first()?.len();
        let even = sources.iter().all(|source| source.len() == length)
            && outputs.iter().all(|output| output.len() == length);
        assert!(even, "streams invariant: one length");
        let aligned =
            |output: &&mut [u8]| output.is_empty() || output.as_ptr().addr().is_multiple_of(BYTES);
        if way == Way::Past && !outputs.iter().all(aligned) {
            return None;
        }
        let run = instance(way, sources.len(), outputs.len())?;
        Some(Self {
            sources: sources.iter().map(|source| source.as_ptr()).collect(),
            outputs: outputs.iter_mut().map(|output| output.as_mut_ptr()).collect(),
            length,
            run,
            borrowed: PhantomData,
        })
    }

    /// Output i becomes a copy of source i, or, if there are fewer, of source i - k, i - 2k ...
    #[inline]
    pub(crate) fn walk(&mut self) {
        // SAFETY: `new` checked instructions, lengths and alignment, and chose the instance for
        // these numbers; the slices are borrowed as long as this lives.
        unsafe { (self.run)(self.sources.as_ptr(), self.outputs.as_ptr(), self.length) }
    }
}

/// The instance for the numbers of sources and outputs of the codes that are measured.
fn instance(way: Way, sources: usize, outputs: usize) -> Option<Run> {
    macro_rules! instances {
        ($(($k:literal, $r:literal))*) => {
            match (sources, outputs) {
                $(($k, $r) => Some(match way {
                    Way::One => run::<$k, $r, 1, ORDINARY> as Run,
                    Way::Two => run::<$k, $r, 2, ORDINARY>,
                    Way::Four => run::<$k, $r, 4, ORDINARY>,
                    Way::Near => run::<$k, $r, 1, NEAR>,
                    Way::Ahead => run::<$k, $r, 1, AHEAD>,
                    Way::TwoNear => run::<$k, $r, 2, NEAR>,
                    Way::TwoAhead => run::<$k, $r, 2, AHEAD>,
                    Way::Past => run::<$k, $r, 1, PAST>,
                }),)*
                _ => None,
            }
        };
    }
    instances! { (3, 2) (2, 3) (2, 2) (4, 4) (7, 2) (3, 6) (3, 3) (8, 5) }
}

const ORDINARY: u8 = 0;
const NEAR: u8 = 1;
const AHEAD: u8 = 2;
const PAST: u8 = 3;

/// # Safety
/// K sources and R outputs of `length` bytes must be there, for PAST aligned to vectors; the
/// processor must have AVX-512 F and BW and BMI2.
#[target_feature(enable = "avx512f,avx512bw,bmi2")]
unsafe fn run<const K: usize, const R: usize, const U: usize, const MODE: u8>(
    sources: *const *const u8,
    outputs: *const *mut u8,
    length: usize,
) {
    let ahead_bytes = if MODE == NEAR { 256 } else { 512 };
    // SAFETY: K sources and R outputs are there; vectors are read and written below `length` only,
    // the last by its mask; asking for a line ahead touches nothing.
    unsafe {
        let sources: [*const u8; K] = std::array::from_fn(|j| *sources.add(j));
        let outputs: [*mut u8; R] = std::array::from_fn(|i| *outputs.add(i));
        let mut at = 0;
        while length.wrapping_sub(at) >= U * BYTES {
            let mut loaded = [[_mm512_setzero_si512(); U]; K];
            for (source, vectors) in sources.iter().zip(&mut loaded) {
                for (u, vector) in vectors.iter_mut().enumerate() {
                    let from = source.wrapping_add(at).wrapping_add(u * BYTES);
                    if MODE == NEAR || MODE == AHEAD {
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(ahead_bytes).cast());
                    }
                    *vector = seen(_mm512_loadu_si512(from.cast()));
                }
            }
            for (i, output) in outputs.iter().enumerate() {
                for (u, vector) in loaded[i % K].iter().enumerate() {
                    let to = output.wrapping_add(at).wrapping_add(u * BYTES);
                    if MODE == NEAR || MODE == AHEAD {
                        _mm_prefetch::<_MM_HINT_ET0>(to.wrapping_add(ahead_bytes).cast());
                    }
                    if MODE == PAST {
                        _mm512_stream_si512(to.cast(), *vector);
                    } else {
                        _mm512_storeu_si512(to.cast(), *vector);
                    }
                }
            }
            at = at.wrapping_add(U * BYTES);
        }
        while at < length {
            let mask = _bzhi_u64(u64::MAX, length.wrapping_sub(at).min(BYTES) as u32);
            let loaded = sources
                .map(|source| seen(_mm512_maskz_loadu_epi8(mask, source.wrapping_add(at).cast())));
            for (i, output) in outputs.iter().enumerate() {
                _mm512_mask_storeu_epi8(output.wrapping_add(at).cast(), mask, loaded[i % K]);
            }
            at = at.wrapping_add(BYTES);
        }
        if MODE == PAST {
            _mm_sfence();
        }
    }
}

/// The vector, which the compiler now has to load even if nobody stores it.
#[inline]
#[target_feature(enable = "avx512f")]
fn seen(mut vector: __m512i) -> __m512i {
    // SAFETY: no instruction, nothing changes.
    unsafe { asm!("/* {0} */", inout(zmm_reg) vector, options(nomem, nostack, preserves_flags)) }
    vector
}
