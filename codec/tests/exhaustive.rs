//! Every erasure pattern of every code with k + m <= 13, in every kernel, at lengths around every
//! vector and cache-line boundary, with misaligned inputs and outputs.

mod common;

use common::{Guarded, Stripe, bytes, codec, kernels};
use racos_codec::Kernel;

/// Miri takes a thousand times as long.
const FRAGMENTS_MAX: usize = if cfg!(miri) { 4 } else { 13 };

/// Around the vectors of every kernel (16, 32, 64 bytes), one and two at a time.
const LENGTHS: [usize; 22] =
    [0, 1, 7, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 127, 128, 129, 191, 193, 257];

/// Erases each pattern from the stripe and asks for all of the fragments, or some, in some order.
fn every_pattern(kernel: Kernel, k: usize, m: usize, length: usize, seed: u64) {
    let codec = codec(k, m, kernel);
    let data = (0..k).map(|j| bytes(length, seed + j as u64)).collect();
    let stripe = Stripe::new(data, m);
    let held: Vec<Guarded> = stripe
        .fragments
        .iter()
        .enumerate()
        .map(|(index, fragment)| Guarded::holding(fragment, (index * 7 + length) % 64))
        .collect();
    let mut parity: Vec<_> = (0..m).map(|i| Guarded::new(length, (i * 5 + k) % 64)).collect();
    {
        let data: Vec<&[u8]> = held[..k].iter().map(Guarded::payload).collect();
        let mut views: Vec<&mut [u8]> = parity.iter_mut().map(Guarded::payload_mut).collect();
        codec.encode(&data, &mut views).expect("encode");
    }
    for (i, parity) in parity.iter().enumerate() {
        assert_eq!(parity.checked(), stripe.fragments[k + i], "{kernel:?} {k} {m} {length} {i}");
    }
    let mut outputs: Vec<_> = (0..m).map(|i| Guarded::new(length, (i * 11 + m) % 64)).collect();
    let mut patterns = 0;
    for bits in (0u32..1 << (k + m)).filter(|bits| bits.count_ones() as usize == k) {
        patterns += 1;
        let mut present: Vec<(usize, &[u8])> = (0..k + m)
            .filter(|index| bits >> index & 1 == 1)
            .map(|index| (index, held[index].payload()))
            .collect();
        let mut wanted: Vec<usize> = (0..k + m).filter(|index| bits >> index & 1 == 0).collect();
        // Everything in order, everything backwards, or all but some.
        match patterns % 4 {
            0 => present.reverse(),
            1 => wanted.reverse(),
            2 => wanted.retain(|index| index % 2 == patterns / 4 % 2),
            _ => {}
        }
        let mut views: Vec<&mut [u8]> =
            outputs[..wanted.len()].iter_mut().map(Guarded::payload_mut).collect();
        codec.rebuild(&present, &wanted, &mut views).expect("rebuild");
        for (index, output) in wanted.iter().zip(&mut outputs) {
            assert_eq!(
                output.checked(),
                stripe.fragments[*index],
                "{kernel:?} k {k} m {m} length {length} present {bits:b} fragment {index}"
            );
            output.payload_mut().fill(0x5A);
        }
    }
    assert!(patterns > 0);
}

fn every_code(kernel: Kernel) {
    if !kernels().contains(&kernel) {
        return;
    }
    for n in 1..=FRAGMENTS_MAX {
        for k in 1..=n {
            let lengths = LENGTHS.into_iter().enumerate();
            for (at, length) in lengths.step_by(if cfg!(miri) { 5 } else { 1 }) {
                every_pattern(kernel, k, n - k, length, (n * 1000 + at) as u64);
            }
        }
    }
}

#[test]
fn scalar_rebuilds_every_pattern() {
    every_code(Kernel::Scalar);
}

#[test]
fn ssse3_rebuilds_every_pattern() {
    every_code(Kernel::Ssse3);
}

#[test]
fn avx2_rebuilds_every_pattern() {
    every_code(Kernel::Avx2);
}

#[test]
fn avx2_gfni_rebuilds_every_pattern() {
    every_code(Kernel::Avx2Gfni);
}

#[test]
fn avx512_gfni_rebuilds_every_pattern() {
    every_code(Kernel::Avx512Gfni);
}
