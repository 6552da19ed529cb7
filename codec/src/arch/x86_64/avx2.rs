//! AVX2: 32 elements a register; a product is two table look-ups, one for each half of a byte.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm_sfence, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_loadu_si256, _mm256_set1_epi8, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_srli_epi64, _mm256_storeu_si256, _mm256_stream_si256, _mm256_xor_si256,
};

use crate::arch::combine::{Isa, Job, Run, combine};
use crate::arch::vector::{Vector, load_by_copy, store_by_copy};

#[derive(Clone, Copy)]
struct Register(__m256i);

impl Vector for Register {
    const BYTES: usize = 32;
    const REGISTERS: usize = 16;
    const FACTOR_REGISTERS: usize = 2;
    const FACTOR_WORDS: usize = 4;
    /// Products of the low half of a byte, and of the high half, in both lanes.
    type Factor = (__m256i, __m256i);

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has checked for AVX2.
        unsafe { Self(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller has checked for AVX2 and says 32 bytes can be read.
        unsafe { Self(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller has checked for AVX2 and says 32 bytes can be written.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn store_past_caches(self, to: *mut u8) {
        // SAFETY: the caller has checked for AVX2 and says 32 bytes can be written at an
        // aligned address; `combine` ends with a fence.
        unsafe { _mm256_stream_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn fence() {
        // SAFETY: SSE is part of x86-64.
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const u8, count: usize) -> Self {
        // SAFETY: passed on.
        unsafe { load_by_copy::<Self, 32>(from, count) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut u8, count: usize) {
        // SAFETY: passed on.
        unsafe { store_by_copy::<Self, 32>(self, to, count) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller has checked for AVX2.
        unsafe { Self(_mm256_xor_si256(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn factor(from: *const u64) -> Self::Factor {
        // SAFETY: the caller has checked for AVX2 and says four words can be read.
        unsafe {
            let low = _mm_loadu_si128(from.cast());
            let high = _mm_loadu_si128(from.add(2).cast());
            (_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high))
        }
    }

    #[inline(always)]
    unsafe fn multiply(self, (low, high): Self::Factor) -> Self {
        // SAFETY: the caller has checked for AVX2.
        unsafe {
            let half = _mm256_set1_epi8(15);
            let low_half = _mm256_and_si256(self.0, half);
            let high_half = _mm256_and_si256(_mm256_srli_epi64::<4>(self.0), half);
            Self(_mm256_xor_si256(
                _mm256_shuffle_epi8(low, low_half),
                _mm256_shuffle_epi8(high, high_half),
            ))
        }
    }
}

pub(crate) struct Avx2;

impl Isa for Avx2 {
    fn instance<const K: usize, const R: usize, const MODE: u8>() -> Run {
        // Bound by its look-ups: compile-time source counts gain little and cost space.
        run::<R, MODE>
    }
}

/// # Safety
/// As for `Run`; the processor has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn run<const R: usize, const MODE: u8>(job: &mut Job<'_, '_>) -> bool {
    // SAFETY: passed on.
    unsafe { combine::<Register, 0, R, MODE>(job) }
}
