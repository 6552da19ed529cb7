//! GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11D), in which 2 generates every
//! element but zero. Only matrices are computed here, a byte at a time; fragments go through
//! `arch`, which takes its tables from this module.
//!
//! Invariant: the polynomial is part of the disk and wire format. Another one changes every parity
//! ever written; `tests/golden.rs` would fail.

/// The field's polynomial, without the x^8 term.
const POLYNOMIAL_LOW: u8 = 0x1D;

/// `c` times x: one shift, reduced.
const fn double(c: u8) -> u8 {
    (c << 1) ^ if c & 0x80 != 0 { POLYNOMIAL_LOW } else { 0 }
}

struct Logarithms {
    /// Powers of 2, twice over, so that the sum of two logarithms needs no reduction.
    power: [u8; 510],
    logarithm: [u8; 256],
}

const LOGARITHMS: Logarithms = {
    let mut tables = Logarithms { power: [0; 510], logarithm: [0; 256] };
    let mut value = 1;
    let mut exponent = 0;
    while exponent < 255 {
        tables.power[exponent] = value;
        tables.power[exponent + 255] = value;
        tables.logarithm[value as usize] = exponent as u8;
        value = double(value);
        exponent += 1;
    }
    tables
};

static TABLES: Logarithms = LOGARITHMS;

/// The product of two elements.
pub(crate) fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    let sum = TABLES.logarithm[a as usize] as usize + TABLES.logarithm[b as usize] as usize;
    TABLES.power[sum]
}

/// The element that times `a` gives one. `a` is not zero.
pub(crate) fn inverse(a: u8) -> u8 {
    assert!(a != 0, "field invariant: zero has no inverse");
    TABLES.power[255 - TABLES.logarithm[a as usize] as usize]
}

/// Multiplication by `c` as eight bytes: byte b is `c` times 2^b.
pub(crate) const fn bit_products(c: u8) -> u64 {
    let mut products = 0;
    let mut value = c;
    let mut bit = 0;
    while bit < 8 {
        products |= (value as u64) << (8 * bit);
        value = double(value);
        bit += 1;
    }
    products
}

/// Multiplication by `c` as the 8 x 8 bit matrix GF2P8AFFINEQB takes: bit i of the product is the
/// parity of `x AND byte (7 - i)`.
pub(crate) const fn affine_matrix(c: u8) -> u64 {
    let products = bit_products(c);
    let mut matrix = 0;
    let mut row = 0;
    while row < 8 {
        let mut bit = 0;
        while bit < 8 {
            matrix |= ((products >> (8 * bit + row)) & 1) << (8 * (7 - row) + bit);
            bit += 1;
        }
        row += 1;
    }
    matrix
}

/// Multiplication by `c` as two tables of 16 bytes, each two little-endian words: the products of
/// the low half of a byte, then those of the high half.
pub(crate) const fn nibble_tables(c: u8) -> [u64; 4] {
    let products = bit_products(c);
    let mut words = [0; 4];
    let mut half = 0;
    while half < 2 {
        let mut nibble = 0;
        while nibble < 16 {
            let mut product = 0;
            let mut bit = 0;
            while bit < 4 {
                if (nibble >> bit) & 1 == 1 {
                    product ^= (products >> (8 * (4 * half + bit))) & 0xFF;
                }
                bit += 1;
            }
            words[2 * half + nibble / 8] |= product << (8 * (nibble % 8));
            nibble += 1;
        }
        half += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplication as polynomials, one bit at a time, then reduced.
    fn product_by_bits(a: u8, b: u8) -> u8 {
        let mut wide = 0u16;
        for bit in 0..8 {
            if b >> bit & 1 == 1 {
                wide ^= u16::from(a) << bit;
            }
        }
        for bit in (8..16).rev() {
            if wide >> bit & 1 == 1 {
                wide ^= 0x11D << (bit - 8);
            }
        }
        wide as u8
    }

    #[test]
    fn every_product_is_the_polynomial_product_reduced() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(multiply(a, b), product_by_bits(a, b), "{a} x {b}");
            }
        }
    }

    #[test]
    fn every_element_but_zero_has_an_inverse() {
        for a in 1..=255 {
            assert_eq!(multiply(a, inverse(a)), 1);
        }
    }

    #[test]
    fn every_table_form_multiplies() {
        for c in 0..=255u8 {
            let matrix = affine_matrix(c).to_le_bytes();
            let nibbles = nibble_tables(c);
            let entry = |half: usize, nibble: usize| {
                (nibbles[2 * half + nibble / 8] >> (8 * (nibble % 8))) as u8
            };
            for x in 0..=255u8 {
                let expected = product_by_bits(c, x);
                let affine =
                    (0..8).fold(0, |y, i| y | ((matrix[7 - i] & x).count_ones() as u8 & 1) << i);
                assert_eq!(affine, expected, "affine {c} x {x}");
                let by_nibbles = entry(0, (x & 15) as usize) ^ entry(1, (x >> 4) as usize);
                assert_eq!(by_nibbles, expected, "nibbles {c} x {x}");
            }
        }
    }
}
