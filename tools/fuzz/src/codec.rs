//! Codes, losses and calls of the codec.
//!
//! Rule: every kernel answers alike, with the same bytes or the same error; an error has written
//! nothing; parities are the sums that CODEC.md defines; what is rebuilt is what was lost; a value in
//! pieces has the parities of the whole value.

use crate::input::Input;
use racos_codec::{Codec, CodecError, Kernel, data_fragment, fragment_len};

/// What an output holds before a call, so that a refused call can be seen to have written nothing.
const UNTOUCHED: u8 = 0xA5;

/// Codes of several shapes, and calls of each kind.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let shapes = [(3, 2), (2, 3), (8, 5), (16, 16), (1, 0), (7, 1)];
    let mut seeds = Vec::new();
    for (k, m) in shapes {
        for call in 0..4 {
            let mut seed = vec![k - 1, m, 1 + call, 77];
            seed.extend((0..32).map(|at: u8| at.wrapping_mul(37) | 1));
            seed.extend([0, call]);
            seed.extend((0..60).map(|at: u8| at.wrapping_mul(91) ^ k));
            seeds.push(seed);
        }
    }
    seeds
}

pub(crate) fn check(input: &[u8]) {
    let mut input = Input(input);
    let (k, m) = (1 + input.below(16), input.below(17));
    let length = match input.below(4) {
        0 => input.below(8),
        1 => input.below(260),
        _ => input.below(2100),
    };
    let value = value(&mut input, k, length);
    let codecs: Vec<Codec> = Kernel::ALL
        .into_iter()
        .filter(|kernel| kernel.is_supported())
        .map(|kernel| Codec::with_kernel(k, m, kernel).expect("a shape in range"))
        .collect();
    let fragments = fragments(&codecs, &value, k, m);
    match input.below(4) {
        0 => pieces(&codecs, &value, &fragments, &mut input),
        1 => calls(&codecs, &fragments, true, &mut input),
        _ => calls(&codecs, &fragments, false, &mut input),
    }
}

/// Bytes from the input, again and again, no two rounds alike; of a length that k need not divide.
fn value(input: &mut Input<'_>, k: usize, length: usize) -> Vec<u8> {
    let seed = input.take(32);
    let short = length.min(input.below(k));
    let byte = |at: usize| match seed {
        [] => at as u8,
        _ => seed[at % seed.len()].wrapping_mul((at / seed.len()) as u8 | 1),
    };
    (0..length * k - short).map(byte).collect()
}

/// All fragments of the value, padded. The parities are what every kernel makes of it, and each byte
/// of the first is the plain sum of the data.
fn fragments(codecs: &[Codec], value: &[u8], k: usize, m: usize) -> Vec<Vec<u8>> {
    let length = fragment_len(value.len(), k);
    let mut all: Vec<Vec<u8>> = (0..k)
        .map(|index| {
            let mut fragment = data_fragment(value, k, index).to_vec();
            fragment.resize(length, 0);
            fragment
        })
        .collect();
    let data: Vec<&[u8]> = all.iter().map(|fragment| &fragment[..]).collect();
    let mut parities: Option<Vec<Vec<u8>>> = None;
    for codec in codecs {
        let whole = outputs(m, length, |out| codec.encode(&data, out)).expect("k even fragments");
        let of_value = outputs(m, length, |out| codec.encode_value(value, out));
        assert_eq!(of_value.as_ref(), Ok(&whole), "views of the value are its fragments");
        assert_eq!(*parities.get_or_insert_with(|| whole.clone()), whole, "kernels agree");
    }
    let parities = parities.expect("the scalar kernel runs anywhere");
    if let Some(first) = parities.first() {
        let sum = |at: usize| data.iter().fold(0, |sum, fragment| sum ^ fragment[at]);
        assert!(first.iter().enumerate().all(|(at, byte)| *byte == sum(at)), "parity 0 is a sum");
    }
    all.extend(parities);
    all
}

/// `count` outputs of a call, or its error; then nothing was written.
fn outputs(
    count: usize,
    length: usize,
    call: impl FnOnce(&mut [&mut [u8]]) -> Result<(), CodecError>,
) -> Result<Vec<Vec<u8>>, CodecError> {
    let mut outputs = vec![vec![UNTOUCHED; length]; count];
    let mut views: Vec<&mut [u8]> = outputs.iter_mut().map(|output| &mut output[..]).collect();
    match call(&mut views) {
        Ok(()) => Ok(outputs),
        Err(error) => {
            let untouched = outputs.iter().flatten().all(|byte| *byte == UNTOUCHED);
            assert!(untouched, "a refused call writes nothing: {error}");
            Err(error)
        }
    }
}

/// The value in pieces, in the input's order, by `update_value` of each kernel.
fn pieces(codecs: &[Codec], value: &[u8], fragments: &[Vec<u8>], input: &mut Input<'_>) {
    let (k, length) = (codecs[0].k(), fragments[0].len());
    let mut cuts: Vec<usize> = (0..input.below(8)).map(|_| input.below(value.len() + 1)).collect();
    cuts.extend([0, value.len()]);
    cuts.sort_unstable();
    let mut ranges: Vec<_> = cuts.windows(2).map(|ends| ends[0]..ends[1]).collect();
    let first = input.below(ranges.len());
    ranges.rotate_left(first);
    for codec in codecs {
        let mut parities = vec![vec![0; length]; codec.m()];
        let mut views: Vec<&mut [u8]> = parities.iter_mut().map(|out| &mut out[..]).collect();
        for range in &ranges {
            let piece = &value[range.clone()];
            codec.update_value(value.len(), range.start, piece, &mut views).expect("a piece");
        }
        assert_eq!(parities, fragments[k..], "a value in pieces has the parities of the whole");
    }
}

/// Rebuilds with the input's choice of fragments; unless `fair`, the choice may be nonsense.
fn calls(codecs: &[Codec], fragments: &[Vec<u8>], fair: bool, input: &mut Input<'_>) {
    let (k, length) = (codecs[0].k(), fragments[0].len());
    let mut order: Vec<usize> = (0..fragments.len()).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, input.below(at + 1));
    }
    let (mut present, mut wanted) = (order[..k].to_vec(), order[k..].to_vec());
    wanted.truncate(input.below(wanted.len() + 1));
    let mut lengths = vec![length; k];
    let mut out_length = length;
    if !fair {
        for _ in 0..1 + input.below(3) {
            match input.below(6) {
                0 => present.truncate(input.below(k)),
                1 => present.push(input.below(40)),
                2 => wanted.push(input.below(300)),
                3 => out_length = input.below(300),
                4 => lengths[input.below(k)] = input.below(300),
                _ => present.reverse(),
            }
        }
    }
    let held: Vec<(usize, Vec<u8>)> = present
        .iter()
        .enumerate()
        .map(|(at, index)| {
            let mut bytes = fragments.get(*index).cloned().unwrap_or_default();
            bytes.resize(lengths.get(at).copied().unwrap_or(length), 0);
            (*index, bytes)
        })
        .collect();
    let present: Vec<(usize, &[u8])> =
        held.iter().map(|(index, bytes)| (*index, &bytes[..])).collect();
    let answers: Vec<_> = codecs
        .iter()
        .map(|codec| outputs(wanted.len(), out_length, |out| codec.rebuild(&present, &wanted, out)))
        .collect();
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "kernels agree: {answers:?}");
    let intact = lengths.iter().all(|one| *one == length);
    match &answers[0] {
        Ok(rebuilt) if intact => {
            for (index, bytes) in wanted.iter().zip(rebuilt) {
                assert_eq!(*bytes, fragments[*index], "fragment {index} is rebuilt");
            }
        }
        Ok(_) => {}
        Err(error) => assert!(!fair, "a fair call is refused: {error}"),
    }
}
