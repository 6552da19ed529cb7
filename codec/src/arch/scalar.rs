//! The portable kernel: 64-bit words, eight elements each, no instruction beyond the ordinary.
//! Runs anywhere, under miri too, and is what the other kernels must agree with.

use super::combine::{Isa, Places, Run, Span, combine};
use super::vector::{Vector, load_by_copy, store_by_copy};

/// Lowest bit of each of eight bytes.
const LOW_BITS: u64 = 0x0101_0101_0101_0101;

/// Words in a vector: enough to keep the arithmetic units busy.
const WORDS: usize = 4;

#[derive(Clone, Copy)]
struct Words([u64; WORDS]);

impl Vector for Words {
    const BYTES: usize = 8 * WORDS;
    const REGISTERS: usize = 16;
    const FACTOR_REGISTERS: usize = 8;
    const FACTOR_WORDS: usize = 1;
    /// The factor times 2^bit, in every byte of word `bit`.
    type Factor = [u64; 8];

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0; WORDS])
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller says BYTES bytes can be read; an array of bytes has no alignment.
        let bytes = unsafe { from.cast::<[[u8; 8]; WORDS]>().read() };
        Self(bytes.map(u64::from_le_bytes))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller says BYTES bytes can be written; an array of bytes has no alignment.
        unsafe { to.cast::<[[u8; 8]; WORDS]>().write(self.0.map(u64::to_le_bytes)) }
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const u8, count: usize) -> Self {
        // SAFETY: passed on.
        unsafe { load_by_copy::<Self, { 8 * WORDS }>(from, count) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut u8, count: usize) {
        // SAFETY: passed on.
        unsafe { store_by_copy::<Self, { 8 * WORDS }>(self, to, count) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] ^ other.0[word]))
    }

    #[inline(always)]
    unsafe fn factor(from: *const u64) -> Self::Factor {
        // SAFETY: the caller says a word can be read.
        let products = unsafe { from.read() };
        std::array::from_fn(|bit| (products >> (8 * bit) & 0xFF) * LOW_BITS)
    }

    /// Each element is the sum of its bits' products: a bit is widened to a mask over its byte.
    #[inline(always)]
    unsafe fn multiply(self, factor: Self::Factor) -> Self {
        Self(self.0.map(|word| {
            factor.iter().enumerate().fold(0, |sum, (bit, product)| {
                let ones = word >> bit & LOW_BITS;
                sum ^ ((ones << 8).wrapping_sub(ones) & product)
            })
        }))
    }
}

pub(crate) struct Scalar;

impl Isa for Scalar {
    fn instance<const K: usize, const R: usize, const MODE: u8>() -> Run {
        // Compile-time source counts gain nothing here and would only make the program larger.
        run::<R, MODE>
    }
}

/// # Safety
/// As for `Run`; no special instructions are needed.
unsafe fn run<const R: usize, const MODE: u8>(
    places: Places<'_>,
    outputs: *mut &mut [u8],
    factors: *const u64,
    length: usize,
    span: &Span,
) -> bool {
    // SAFETY: passed on.
    unsafe { combine::<Words, 0, R, MODE>(places, outputs, factors, length, span) }
}
