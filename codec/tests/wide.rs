//! Any code up to 255 fragments at any size, with random losses, against the oracle; and calls made
//! of arbitrary bytes, which must answer with an error or with the right bytes.

mod common;

use common::{Guarded, Stripe, bytes, codec, kernels};
use proptest::prelude::*;
use racos_codec::{Codec, Kernel};

/// A shuffle of 0..n decided by `seed`.
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for (at, random) in bytes(2 * n, seed).chunks_exact(2).enumerate() {
        order.swap(at, (usize::from(random[0]) * 256 + usize::from(random[1])) % n);
    }
    order
}

fn check(kernel: Kernel, k: usize, m: usize, length: usize, seed: u64) {
    let codec = codec(k, m, kernel);
    let stripe = Stripe::new((0..k).map(|j| bytes(length, seed ^ j as u64)).collect(), m);
    let data: Vec<&[u8]> = stripe.fragments[..k].iter().map(|data| &data[..]).collect();
    let mut parity: Vec<_> = (0..m).map(|i| Guarded::new(length, i % 61)).collect();
    let mut views: Vec<&mut [u8]> = parity.iter_mut().map(Guarded::payload_mut).collect();
    codec.encode(&data, &mut views).expect("encode");
    for (parity, expected) in parity.iter().zip(&stripe.fragments[k..]) {
        assert!(parity.checked() == expected, "{kernel:?} {k} {m} {length}");
    }
    let order = shuffled(k + m, seed);
    let present: Vec<_> = order[..k].iter().map(|i| (*i, &stripe.fragments[*i][..])).collect();
    let wanted = &order[k..k + 1 + seed as usize % m];
    let mut rebuilt: Vec<_> = wanted.iter().map(|i| Guarded::new(length, i % 59)).collect();
    let mut views: Vec<&mut [u8]> = rebuilt.iter_mut().map(Guarded::payload_mut).collect();
    codec.rebuild(&present, wanted, &mut views).expect("rebuild");
    for (index, rebuilt) in wanted.iter().zip(&rebuilt) {
        assert!(rebuilt.checked() == stripe.fragments[*index], "{kernel:?} {k} {m} {length}");
    }
}

#[test]
fn the_widest_codes_rebuild_what_is_lost() {
    for kernel in kernels() {
        for (k, m) in [(128, 127), (254, 1), (1, 254), (16, 16), (200, 55), (9, 200), (64, 1)] {
            check(kernel, k, m, 130, 7);
        }
    }
}

/// From some length on some codes ask for lines ahead, past the fragments' ends too.
#[test]
fn long_fragments_are_encoded_and_rebuilt() {
    const BYTES: [usize; 2] = [768 * 1024, 2 * 1024 * 1024];
    for (k, m) in [(3, 2), (4, 2), (4, 4), (5, 2), (7, 2), (8, 5)] {
        for length in BYTES.map(|bytes| bytes / (k + m) + 1) {
            let stripe = Stripe::new((0..k).map(|j| bytes(length, j as u64)).collect(), m);
            let fragments: Vec<&[u8]> = stripe.fragments.iter().map(|bytes| &bytes[..]).collect();
            let codec = codec(k, m, Kernel::fastest());
            let mut parity: Vec<_> = (0..m).map(|i| Guarded::new(length, i)).collect();
            let mut views: Vec<&mut [u8]> = parity.iter_mut().map(Guarded::payload_mut).collect();
            codec.encode(&fragments[..k], &mut views).expect("encode");
            let lost = k.min(m);
            let present: Vec<_> = (lost..lost + k).map(|i| (i, fragments[i])).collect();
            let wanted: Vec<_> = (0..lost).collect();
            let mut rebuilt: Vec<_> = wanted.iter().map(|i| Guarded::new(length, *i)).collect();
            let mut views: Vec<&mut [u8]> = rebuilt.iter_mut().map(Guarded::payload_mut).collect();
            codec.rebuild(&present, &wanted, &mut views).expect("rebuild");
            for (found, expected) in parity.iter().zip(&fragments[k..]) {
                assert!(found.checked() == *expected, "{k} {m} {length}");
            }
            for (found, expected) in rebuilt.iter().zip(&fragments) {
                assert!(found.checked() == *expected, "{k} {m} {length}");
            }
        }
    }
}

/// Streaming needs outputs at cache lines; others are written as ever.
#[test]
fn outputs_written_past_the_caches_are_the_same() {
    for kernel in kernels() {
        let (k, m) = (3, 2);
        let codec = codec(k, m, kernel).streaming_from(0);
        for length in [0, 1, 31, 64, 100, 128, 1000, 4096 + 33] {
            let stripe = Stripe::new((0..k).map(|j| bytes(length, j as u64)).collect(), m);
            let data: Vec<&[u8]> = stripe.fragments[..k].iter().map(|data| &data[..]).collect();
            for misaligned in [0, 0, 1, 32] {
                let step = length.next_multiple_of(64) + 64;
                let mut memory = vec![0; m * step + 128];
                let start = memory.as_ptr().align_offset(64) + misaligned;
                let places = memory[start..].chunks_exact_mut(step).take(m);
                let mut parity: Vec<&mut [u8]> = places.map(|place| &mut place[..length]).collect();
                codec.encode(&data, &mut parity).expect("encode");
                assert!(parity.iter().zip(&stripe.fragments[k..]).all(|(one, other)| one == other));
                let present: Vec<_> = (2..5).map(|i| (i, &stripe.fragments[i][..])).collect();
                codec.rebuild(&present, &[0, 1], &mut parity).expect("rebuild");
                assert!(parity.iter().zip(&stripe.fragments).all(|(one, other)| one == other));
                drop(parity);
                let gaps = memory[start..].chunks_exact(step).take(m);
                assert!(gaps.flat_map(|place| &place[length..]).all(|byte| *byte == 0));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn common_codes_hold_at_large_sizes(
        k in 1usize..=16, m in 1usize..=16, length in 0usize..40_000, seed: u64,
    ) {
        for kernel in kernels() {
            check(kernel, k, m, length, seed);
        }
    }

    #[test]
    fn any_code_holds_at_small_sizes(
        k in 1usize..=200, m in 1usize..=55, length in 0usize..300, seed: u64,
    ) {
        for kernel in kernels() {
            check(kernel, k, m, length, seed);
        }
    }
}

/// Takes a call apart from arbitrary bytes and makes it in the fastest kernel and in the scalar
/// one. Either both refuse it alike, or both rebuild the same.
fn call_from_bytes(input: &[u8]) {
    let mut input = input.iter().copied();
    let mut next = |limit: usize| usize::from(input.next().unwrap_or(0)) % limit;
    let (k, m) = (1 + next(6), next(5));
    let length = next(200);
    let stripe = Stripe::new((0..k).map(|j| bytes(length, j as u64)).collect(), m);
    let mut odd_length = |rarely: usize| if next(rarely) == 1 { next(200) } else { length };
    let lengths: Vec<usize> = (0..2 * (k + m) + 2).map(|_| odd_length(40)).collect();
    let mut pick = |count: usize| -> Vec<usize> {
        let count = if next(20) == 1 { next(12) } else { count };
        (0..count)
            .map(|at| if next(3) == 1 { next(k + m + 1) } else { (at * 5 + 1) % 11 })
            .collect()
    };
    let (present, wanted) = (pick(k), pick(1));
    let source = |index: usize, at: usize| -> Vec<u8> {
        let mut fragment = stripe.fragments.get(index).cloned().unwrap_or_default();
        fragment.resize(lengths[at % lengths.len()], 0);
        fragment
    };
    let held: Vec<_> = present.iter().enumerate().map(|(at, i)| (*i, source(*i, at))).collect();
    let present: Vec<_> = held.iter().map(|(index, bytes)| (*index, &bytes[..])).collect();
    let call = |codec: &Codec| {
        let mut out: Vec<_> = wanted.iter().map(|i| vec![0; lengths[i % lengths.len()]]).collect();
        let mut views: Vec<&mut [u8]> = out.iter_mut().map(|out| &mut out[..]).collect();
        let result = codec.rebuild(&present, &wanted, &mut views);
        (result, out)
    };
    let fast = call(&codec(k, m, Kernel::fastest()));
    assert_eq!(fast, call(&codec(k, m, Kernel::Scalar)));
    if fast.0.is_ok() && held.iter().all(|(_, bytes)| bytes.len() == length) {
        for (index, out) in wanted.iter().zip(&fast.1) {
            assert_eq!(*out, stripe.fragments[*index]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn arbitrary_calls_never_panic(input in proptest::collection::vec(any::<u8>(), 0..64)) {
        call_from_bytes(&input);
    }
}
