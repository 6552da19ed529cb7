//! The matrix and the parities are what golden.txt says: fragments written by one version are read
//! by every later one. The file was made by a third implementation, neither the codec nor the
//! oracle of these tests.

mod common;

use common::{Stripe, codec, coefficient, kernels};

const GOLDEN: &str = include_str!("golden.txt");

fn decode_hex(text: &str) -> Vec<u8> {
    let digits = text.trim_matches('-');
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

fn lines(kind: &str) -> Vec<Vec<&'static str>> {
    let found: Vec<_> = GOLDEN
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|words| words[0] == kind)
        .collect();
    assert!(!found.is_empty(), "golden.txt has no line {kind:?}");
    found
}

/// Parity i of a value whose only byte that is not zero is a one in fragment j: the factor itself.
fn coded_factor(i: usize, j: usize) -> u8 {
    let codec = codec(j + 1, i + 1, kernels()[0]);
    let data: Vec<[u8; 1]> = (0..=j).map(|at| [u8::from(at == j)]).collect();
    let data: Vec<&[u8]> = data.iter().map(|byte| &byte[..]).collect();
    let mut parities = vec![[0]; i + 1];
    let mut views: Vec<&mut [u8]> = parities.iter_mut().map(|parity| &mut parity[..]).collect();
    codec.encode(&data, &mut views).expect("encode");
    parities[i][0]
}

#[test]
fn the_matrix_is_the_golden_one() {
    for words in lines("matrix") {
        let i: usize = words[1].parse().expect("a row");
        for (j, expected) in decode_hex(words[2]).into_iter().enumerate() {
            assert_eq!(coefficient(i as u8, j as u8), expected, "oracle, row {i}, column {j}");
            assert_eq!(coded_factor(i, j), expected, "codec, row {i}, column {j}");
        }
    }
    for words in lines("corner") {
        let [i, j] = [words[1], words[2]].map(|word| word.parse::<usize>().expect("an index"));
        let expected = decode_hex(words[3])[0];
        assert_eq!(coefficient(i as u8, j as u8), expected, "oracle, row {i}, column {j}");
        assert_eq!(coded_factor(i, j), expected, "codec, row {i}, column {j}");
    }
}

#[test]
fn parities_are_the_golden_ones_in_every_kernel() {
    for words in lines("value") {
        let [k, m] = [words[1], words[2]].map(|word| word.parse::<usize>().expect("a count"));
        let value = decode_hex(words[3]);
        let expected: Vec<Vec<u8>> = words[4..].iter().map(|word| decode_hex(word)).collect();
        assert_eq!(expected.len(), m);
        assert_eq!(Stripe::of_value(&value, k, m).fragments[k..], expected, "oracle {k} {m}");
        for kernel in kernels() {
            let mut parities = vec![vec![0xEE; value.len().div_ceil(k)]; m];
            let mut views: Vec<&mut [u8]> = parities.iter_mut().map(|p| &mut p[..]).collect();
            codec(k, m, kernel).encode_value(&value, &mut views).expect("encode");
            assert_eq!(parities, expected, "{kernel:?} {k} {m}");
        }
    }
}
