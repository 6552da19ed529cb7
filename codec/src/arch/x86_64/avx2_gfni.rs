//! AVX2 with GFNI: 32 elements a register, a product is one instruction.

use std::arch::x86_64::{
    __m256i, _mm_sfence, _mm256_gf2p8affine_epi64_epi8, _mm256_loadu_si256, _mm256_set1_epi64x,
    _mm256_setzero_si256, _mm256_storeu_si256, _mm256_stream_si256, _mm256_xor_si256,
};

use crate::arch::combine::{Isa, Job, Run, combine};
use crate::arch::vector::{Vector, load_by_copy, store_by_copy};

#[derive(Clone, Copy)]
struct Register(__m256i);

impl Vector for Register {
    const BYTES: usize = 32;
    const REGISTERS: usize = 16;
    const FACTOR_REGISTERS: usize = 1;
    const FACTOR_WORDS: usize = 1;
    type Factor = __m256i;

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
        // SAFETY: the caller has checked for AVX2 and says a word can be read.
        unsafe { _mm256_set1_epi64x(from.read() as i64) }
    }

    #[inline(always)]
    unsafe fn multiply(self, factor: Self::Factor) -> Self {
        // SAFETY: the caller has checked for AVX2 and GFNI.
        unsafe { Self(_mm256_gf2p8affine_epi64_epi8::<0>(self.0, factor)) }
    }
}

pub(crate) struct Avx2Gfni;

impl Isa for Avx2Gfni {
    fn instance<const K: usize, const R: usize, const MODE: u8>() -> Run {
        run::<K, R, MODE>
    }
}

/// # Safety
/// As for `Run`; the processor has AVX2 and GFNI.
#[target_feature(enable = "avx2,gfni")]
unsafe fn run<const K: usize, const R: usize, const MODE: u8>(job: &mut Job<'_, '_>) -> bool {
    // SAFETY: passed on.
    unsafe { combine::<Register, K, R, MODE>(job) }
}
