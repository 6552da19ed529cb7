//! SSSE3: 16 elements a register; a product is two table look-ups, one for each half of a byte.

use std::arch::x86_64::{
    __m128i, _mm_and_si128, _mm_loadu_si128, _mm_set1_epi8, _mm_setzero_si128, _mm_shuffle_epi8,
    _mm_srli_epi64, _mm_storeu_si128, _mm_xor_si128,
};

use crate::arch::combine::{Isa, Places, Run, Span, combine};
use crate::arch::vector::{Vector, load_by_copy, store_by_copy};

#[derive(Clone, Copy)]
struct Register(__m128i);

impl Vector for Register {
    const BYTES: usize = 16;
    const REGISTERS: usize = 16;
    const FACTOR_REGISTERS: usize = 2;
    const FACTOR_WORDS: usize = 4;
    /// Products of the low half of a byte, and of the high half.
    type Factor = (__m128i, __m128i);

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { Self(_mm_setzero_si128()) }
    }

    #[inline(always)]
    fn opaque(address: *mut u8) -> *mut u8 {
        super::opaque(address)
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller says 16 bytes can be read.
        unsafe { Self(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller says 16 bytes can be written.
        unsafe { _mm_storeu_si128(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const u8, count: usize) -> Self {
        // SAFETY: passed on.
        unsafe { load_by_copy::<Self, 16>(from, count) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut u8, count: usize) {
        // SAFETY: passed on.
        unsafe { store_by_copy::<Self, 16>(self, to, count) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { Self(_mm_xor_si128(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn factor(from: *const u64) -> Self::Factor {
        // SAFETY: the caller says four words can be read.
        unsafe { (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(2).cast())) }
    }

    #[inline(always)]
    unsafe fn multiply(self, (low, high): Self::Factor) -> Self {
        // SAFETY: the caller has checked for SSSE3.
        unsafe {
            let half = _mm_set1_epi8(15);
            let low_half = _mm_and_si128(self.0, half);
            let high_half = _mm_and_si128(_mm_srli_epi64::<4>(self.0), half);
            Self(_mm_xor_si128(_mm_shuffle_epi8(low, low_half), _mm_shuffle_epi8(high, high_half)))
        }
    }
}

pub(crate) struct Ssse3;

impl Isa for Ssse3 {
    fn instance<const K: usize, const R: usize, const MODE: u8>() -> Run {
        // Bound by its look-ups: compile-time source counts gain little and cost space.
        run::<R, MODE>
    }
}

/// # Safety
/// As for `Run`; the processor has SSSE3.
#[target_feature(enable = "ssse3")]
unsafe fn run<const R: usize, const MODE: u8>(
    places: Places<'_>,
    outputs: *mut &mut [u8],
    factors: *const u64,
    length: usize,
    span: &Span,
) -> bool {
    // SAFETY: passed on.
    unsafe { combine::<Register, 0, R, MODE>(places, outputs, factors, length, span) }
}
