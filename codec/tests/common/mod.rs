//! A naive oracle for the codec, written from the definitions in CODEC.md and sharing no code with
//! it: products are polynomials over bits, inverses are found by search, the generator is the
//! scaled Cauchy formula, and nothing is decoded, only encoded.
#![allow(dead_code)] // Each test program uses its own part.

use std::sync::OnceLock;

use racos_codec::{Codec, Kernel};

/// Carry-less product, reduced by x^8 + x^4 + x^3 + x^2 + 1.
pub fn product(mut a: u8, mut b: u8) -> u8 {
    let mut sum = 0;
    while b != 0 {
        if b & 1 == 1 {
            sum ^= a;
        }
        let carry = a & 0x80 != 0;
        a <<= 1;
        if carry {
            a ^= 0x1D;
        }
        b >>= 1;
    }
    sum
}

/// Division, by an inverse that a search over all products found.
pub fn quotient(a: u8, b: u8) -> u8 {
    static INVERSES: OnceLock<Vec<u8>> = OnceLock::new();
    let inverses = INVERSES.get_or_init(|| {
        (0..=255).map(|b| (0..=255).find(|q| product(*q, b) == 1).unwrap_or(0)).collect()
    });
    assert_ne!(b, 0, "division by zero");
    product(a, inverses[b as usize])
}

/// Entry (i, j) of the generator's parity rows: the Cauchy entry of the points 255 - i and j,
/// divided by those of its row's and its column's first entry, times the corner.
pub fn coefficient(i: u8, j: u8) -> u8 {
    let cauchy = |i: u8, j: u8| quotient(1, (255 - i) ^ j);
    quotient(product(cauchy(i, j), cauchy(0, 0)), product(cauchy(i, 0), cauchy(0, j)))
}

/// All k + m fragments of k data fragments.
pub struct Stripe {
    pub fragments: Vec<Vec<u8>>,
}

impl Stripe {
    pub fn new(data: Vec<Vec<u8>>, m: usize) -> Self {
        let length = data[0].len();
        let mut parities = vec![vec![0; length]; m];
        for (i, parity) in parities.iter_mut().enumerate() {
            for (j, data) in data.iter().enumerate() {
                let factor = coefficient(i as u8, j as u8);
                let products: Vec<u8> = (0..=255).map(|x| product(factor, x)).collect();
                for (sum, byte) in parity.iter_mut().zip(data) {
                    *sum ^= products[*byte as usize];
                }
            }
        }
        let fragments = data.into_iter().chain(parities).collect();
        Self { fragments }
    }

    /// The stripe of a value: cut into k fragments, the end padded with zeros.
    pub fn of_value(value: &[u8], k: usize, m: usize) -> Self {
        let length = value.len().div_ceil(k);
        let mut padded = value.to_vec();
        padded.resize(length * k, 0);
        let data = (0..k).map(|j| padded[j * length..(j + 1) * length].to_vec()).collect();
        Self::new(data, m)
    }
}

/// Bytes that look random and are the same in every run.
pub fn bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

/// The kernels this processor can run; a test says which it skipped.
pub fn kernels() -> Vec<Kernel> {
    let (can, cannot): (Vec<_>, Vec<_>) = Kernel::ALL.into_iter().partition(|k| k.is_supported());
    if !cannot.is_empty() {
        eprintln!("not run, this processor lacks the instructions: {cannot:?}");
    }
    can
}

pub fn codec(k: usize, m: usize, kernel: Kernel) -> Codec {
    Codec::with_kernel(k, m, kernel).expect("a valid shape and a supported kernel")
}

/// A buffer whose payload starts `shift` bytes into it, between guard bytes that must survive.
pub struct Guarded {
    bytes: Vec<u8>,
    shift: usize,
}

const GUARD: u8 = 0xA5;

impl Guarded {
    pub fn new(length: usize, shift: usize) -> Self {
        Self { bytes: vec![GUARD; shift + length + 64], shift }
    }

    pub fn holding(payload: &[u8], shift: usize) -> Self {
        let mut guarded = Self::new(payload.len(), shift);
        guarded.payload_mut().copy_from_slice(payload);
        guarded
    }

    fn length(&self) -> usize {
        self.bytes.len() - self.shift - 64
    }

    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.shift..self.shift + self.length()]
    }

    pub fn payload_mut(&mut self) -> &mut [u8] {
        let length = self.length();
        &mut self.bytes[self.shift..self.shift + length]
    }

    /// The payload, once it is sure that nothing around it was written.
    pub fn checked(&self) -> &[u8] {
        let (before, after) =
            (&self.bytes[..self.shift], &self.bytes[self.shift + self.length()..]);
        assert!(before.iter().chain(after).all(|byte| *byte == GUARD), "written out of bounds");
        self.payload()
    }
}
