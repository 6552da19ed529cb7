//! AVX2: 32 elements a register. Without GFNI a product is two table look-ups, one for each half of a
//! byte; with GFNI it is one instruction.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm_sfence, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_gf2p8affine_epi64_epi8, _mm256_loadu_si256, _mm256_set1_epi8, _mm256_set1_epi64x,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi64, _mm256_storeu_si256,
    _mm256_stream_si256, _mm256_xor_si256,
};
use std::marker::PhantomData;

use crate::arch::combine::{Isa, Places, Run, Span, combine};
use crate::arch::vector::{Vector, load_by_copy, store_by_copy};

/// What differs between the two kernels: as the members of `Vector` of the same names.
trait Product: Copy {
    const FACTOR_REGISTERS: usize;
    const FACTOR_WORDS: usize;
    type Factor: Copy;

    unsafe fn factor(from: *const u64) -> Self::Factor;
    unsafe fn multiply(elements: __m256i, factor: Self::Factor) -> __m256i;
}

#[derive(Clone, Copy)]
struct LookUp;

impl Product for LookUp {
    const FACTOR_REGISTERS: usize = 2;
    const FACTOR_WORDS: usize = 4;
    /// Products of the low half of a byte, and of the high half, in both lanes.
    type Factor = (__m256i, __m256i);

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
    unsafe fn multiply(elements: __m256i, (low, high): Self::Factor) -> __m256i {
        // SAFETY: the caller has checked for AVX2.
        unsafe {
            let half = _mm256_set1_epi8(15);
            let low_half = _mm256_and_si256(elements, half);
            let high_half = _mm256_and_si256(_mm256_srli_epi64::<4>(elements), half);
            _mm256_xor_si256(
                _mm256_shuffle_epi8(low, low_half),
                _mm256_shuffle_epi8(high, high_half),
            )
        }
    }
}

#[derive(Clone, Copy)]
struct Affine;

impl Product for Affine {
    const FACTOR_REGISTERS: usize = 1;
    const FACTOR_WORDS: usize = 1;
    type Factor = __m256i;

    #[inline(always)]
    unsafe fn factor(from: *const u64) -> Self::Factor {
        // SAFETY: the caller has checked for AVX2 and says a word can be read.
        unsafe { _mm256_set1_epi64x(from.read() as i64) }
    }

    #[inline(always)]
    unsafe fn multiply(elements: __m256i, factor: Self::Factor) -> __m256i {
        // SAFETY: the caller has checked for AVX2 and GFNI.
        unsafe { _mm256_gf2p8affine_epi64_epi8::<0>(elements, factor) }
    }
}

#[derive(Clone, Copy)]
struct Register<P>(__m256i, PhantomData<P>);

impl<P: Product> Vector for Register<P> {
    const BYTES: usize = 32;
    const REGISTERS: usize = 16;
    const FACTOR_REGISTERS: usize = P::FACTOR_REGISTERS;
    const FACTOR_WORDS: usize = P::FACTOR_WORDS;
    type Factor = P::Factor;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has checked for AVX2.
        unsafe { Self(_mm256_setzero_si256(), PhantomData) }
    }

    #[inline(always)]
    fn opaque(address: *mut u8) -> *mut u8 {
        super::opaque(address)
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller has checked for AVX2 and says 32 bytes can be read.
        unsafe { Self(_mm256_loadu_si256(from.cast()), PhantomData) }
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
        unsafe { Self(_mm256_xor_si256(self.0, other.0), PhantomData) }
    }

    #[inline(always)]
    unsafe fn factor(from: *const u64) -> Self::Factor {
        // SAFETY: passed on.
        unsafe { P::factor(from) }
    }

    #[inline(always)]
    unsafe fn multiply(self, factor: Self::Factor) -> Self {
        // SAFETY: passed on.
        unsafe { Self(P::multiply(self.0, factor), PhantomData) }
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
unsafe fn run<const R: usize, const MODE: u8>(
    places: Places<'_>,
    outputs: *mut &mut [u8],
    factors: *const u64,
    length: usize,
    span: &Span,
) -> bool {
    // SAFETY: passed on.
    unsafe { combine::<Register<LookUp>, 0, R, MODE>(places, outputs, factors, length, span) }
}

pub(crate) struct Avx2Gfni;

impl Isa for Avx2Gfni {
    fn instance<const K: usize, const R: usize, const MODE: u8>() -> Run {
        run_gfni::<K, R, MODE>
    }
}

/// # Safety
/// As for `Run`; the processor has AVX2 and GFNI.
#[target_feature(enable = "avx2,gfni")]
unsafe fn run_gfni<const K: usize, const R: usize, const MODE: u8>(
    places: Places<'_>,
    outputs: *mut &mut [u8],
    factors: *const u64,
    length: usize,
    span: &Span,
) -> bool {
    // SAFETY: passed on.
    unsafe { combine::<Register<Affine>, K, R, MODE>(places, outputs, factors, length, span) }
}
