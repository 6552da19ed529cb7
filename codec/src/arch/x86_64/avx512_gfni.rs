//! AVX-512 with GFNI: 64 elements a register, a product is one instruction, and loads and stores
//! take a mask, so that a short tail costs as much as a vector.

use std::arch::x86_64::{
    __m512i, _MM_HINT_ET0, _MM_HINT_T0, _bzhi_u64, _mm_prefetch, _mm_sfence,
    _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512, _mm512_mask_storeu_epi8,
    _mm512_maskz_loadu_epi8, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_storeu_si512,
    _mm512_stream_si512, _mm512_ternarylogic_epi64, _mm512_xor_si512,
};

use crate::arch::combine::{Isa, Places, Run, Span, combine};
use crate::arch::vector::Vector;

#[derive(Clone, Copy)]
struct Register(__m512i);

impl Vector for Register {
    const BYTES: usize = 64;
    const REGISTERS: usize = 32;
    const FACTOR_REGISTERS: usize = 1;
    const FACTOR_WORDS: usize = 1;
    const MASKED: bool = true;
    type Factor = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has checked for AVX-512.
        unsafe { Self(_mm512_setzero_si512()) }
    }

    #[inline(always)]
    fn opaque(address: *mut u8) -> *mut u8 {
        super::opaque(address)
    }

    #[inline(always)]
    fn fetch(address: *const u8) {
        // SAFETY: SSE is part of x86-64; no memory is touched, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn fetch_to_write(address: *const u8) {
        // SAFETY: as for `fetch`; processors without the instruction do nothing.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(address.cast()) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller has checked for AVX-512 and says 64 bytes can be read.
        unsafe { Self(_mm512_loadu_si512(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller has checked for AVX-512 and says 64 bytes can be written.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn store_past_caches(self, to: *mut u8) {
        // SAFETY: the caller has checked for AVX-512 and says 64 bytes can be written at an
        // aligned address; `combine` ends with a fence.
        unsafe { _mm512_stream_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn fence() {
        // SAFETY: SSE is part of x86-64.
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const u8, count: usize) -> Self {
        // SAFETY: the caller has checked for AVX-512 and BMI2; bytes from `count` on are masked
        // out and not touched.
        unsafe { Self(_mm512_maskz_loadu_epi8(_bzhi_u64(u64::MAX, count as u32), from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut u8, count: usize) {
        // SAFETY: as for `load_partial`.
        unsafe { _mm512_mask_storeu_epi8(to.cast(), _bzhi_u64(u64::MAX, count as u32), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller has checked for AVX-512.
        unsafe { Self(_mm512_xor_si512(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn add_two(self, one: Self, two: Self) -> Self {
        const XOR_OF_THREE: i32 = 0x96;
        // SAFETY: the caller has checked for AVX-512.
        unsafe { Self(_mm512_ternarylogic_epi64::<XOR_OF_THREE>(self.0, one.0, two.0)) }
    }

    #[inline(always)]
    unsafe fn factor(from: *const u64) -> Self::Factor {
        // SAFETY: the caller has checked for AVX-512 and says a word can be read.
        unsafe { _mm512_set1_epi64(from.read() as i64) }
    }

    #[inline(always)]
    unsafe fn multiply(self, factor: Self::Factor) -> Self {
        // SAFETY: the caller has checked for AVX-512 and GFNI.
        unsafe { Self(_mm512_gf2p8affine_epi64_epi8::<0>(self.0, factor)) }
    }
}

pub(crate) struct Avx512Gfni;

impl Isa for Avx512Gfni {
    fn instance<const K: usize, const R: usize, const MODE: u8>() -> Run {
        run::<K, R, MODE>
    }
}

/// # Safety
/// As for `Run`; the processor has AVX-512 F, BW, GFNI and BMI2.
#[target_feature(enable = "avx512f,avx512bw,gfni,bmi2")]
unsafe fn run<const K: usize, const R: usize, const MODE: u8>(
    places: Places<'_>,
    outputs: *mut &mut [u8],
    factors: *const u64,
    length: usize,
    span: &Span,
) -> bool {
    // SAFETY: passed on.
    unsafe { combine::<Register, K, R, MODE>(places, outputs, factors, length, span) }
}
