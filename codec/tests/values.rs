//! Values of every length, k dividing it or not, at once and in pieces: the same parities.

mod common;

use common::{Guarded, Stripe, bytes, codec, kernels};
use racos_codec::{data_fragment, fragment_len};

const CODES: [(usize, usize); 10] =
    [(1, 2), (2, 1), (3, 2), (3, 0), (4, 4), (5, 3), (7, 2), (8, 5), (13, 9), (40, 17)];

fn views(buffers: &mut [Guarded]) -> Vec<&mut [u8]> {
    buffers.iter_mut().map(Guarded::payload_mut).collect()
}

#[test]
fn a_value_is_encoded_as_if_it_were_padded_with_zeros() {
    for (k, m) in CODES {
        let codecs: Vec<_> = kernels().into_iter().map(|kernel| codec(k, m, kernel)).collect();
        let edges = [63, 64, 65, 127, 128, 129, 200].map(|length| length * k);
        let around = edges.into_iter().flat_map(|length| length - (k - 1)..=length + 1);
        for size in (0..4 * k).chain(around) {
            let value = Guarded::holding(&bytes(size, size as u64), size % 64);
            let stripe = Stripe::of_value(value.payload(), k, m);
            let length = fragment_len(size, k);
            for codec in &codecs {
                let mut parity: Vec<_> = (0..m).map(|i| Guarded::new(length, i * 3 % 64)).collect();
                codec.encode_value(value.payload(), &mut views(&mut parity)).expect("encode");
                for (parity, expected) in parity.iter().zip(&stripe.fragments[k..]) {
                    assert_eq!(parity.checked(), expected, "{:?} {k} {m} {size}", codec.kernel());
                }
            }
        }
    }
}

#[test]
fn data_fragments_are_views_that_cover_the_value_once() {
    for k in 1..20 {
        for size in 0..100 {
            let value = bytes(size, 3);
            let stripe = Stripe::of_value(&value, k, 0);
            let mut covered = 0;
            for (index, expected) in stripe.fragments.iter().enumerate() {
                let view = data_fragment(&value, k, index);
                assert_eq!(*view, expected[..view.len()]);
                assert!(expected[view.len()..].iter().all(|byte| *byte == 0));
                assert_eq!(expected.len(), fragment_len(size, k));
                covered += view.len();
            }
            assert_eq!(covered, size, "k {k}");
        }
    }
}

#[test]
fn pieces_of_any_size_in_any_order_give_the_parities_of_the_whole() {
    for kernel in kernels() {
        for (k, m) in CODES {
            let codec = codec(k, m, kernel);
            for (size, piece) in [(1, 1), (100, 7), (1000, 64), (1000, 129), (777, 1000), (0, 1)] {
                let value = bytes(size, 9);
                let length = fragment_len(size, k);
                let mut parity: Vec<_> = (0..m).map(|i| Guarded::new(length, i % 7)).collect();
                parity.iter_mut().for_each(|parity| parity.payload_mut().fill(0));
                let offsets: Vec<usize> = (0..size).step_by(piece).collect();
                let (even, odd): (Vec<_>, Vec<_>) =
                    offsets.into_iter().partition(|offset| offset / piece % 2 == 0);
                for offset in even.into_iter().rev().chain(odd) {
                    let part = &value[offset..size.min(offset + piece)];
                    let mut views = views(&mut parity);
                    codec.update_value(size, offset, part, &mut views).expect("update");
                }
                let stripe = Stripe::of_value(&value, k, m);
                for (parity, expected) in parity.iter().zip(&stripe.fragments[k..]) {
                    assert_eq!(parity.checked(), expected, "{kernel:?} {k} {m} {size} {piece}");
                }
            }
        }
    }
}

#[test]
fn another_order_than_in_the_call_before_gives_the_same_bytes() {
    let stripe = Stripe::of_value(&bytes(1300, 3), 3, 2);
    let fragment = |index: &usize| (*index, &stripe.fragments[*index][..]);
    for kernel in kernels() {
        let codec = codec(3, 2, kernel);
        for present in [[2, 3, 4], [2, 3, 4], [2, 4, 3], [4, 3, 2], [2, 3, 4]] {
            for wanted in [[0, 1], [0, 1], [1, 0]] {
                let mut out = [(); 2].map(|()| vec![0; stripe.fragments[0].len()]);
                let mut views: Vec<&mut [u8]> = out.iter_mut().map(|out| &mut out[..]).collect();
                let present: Vec<_> = present.iter().map(fragment).collect();
                codec.rebuild(&present, &wanted, &mut views).expect("rebuild");
                let expected = wanted.map(|index| &stripe.fragments[index]);
                assert!(out.iter().zip(expected).all(|(out, expected)| out == expected));
            }
        }
        assert_eq!(codec.decode_misses(), 1, "{kernel:?}");
    }
}

#[test]
fn one_data_fragment_is_plain_replication() {
    for kernel in kernels() {
        for m in 0..12 {
            let value = bytes(333, 5);
            let mut copies = vec![vec![0; 333]; m];
            let mut views: Vec<&mut [u8]> = copies.iter_mut().map(|copy| &mut copy[..]).collect();
            codec(1, m, kernel).encode_value(&value, &mut views).expect("encode");
            assert!(copies.iter().all(|copy| *copy == value), "{kernel:?} {m}");
        }
    }
}
