//! After construction nothing is allocated: not in encode, not in update, not in rebuild, whether
//! the decode matrix is cached or not.

mod common;

use common::{bytes, codec, kernels};

#[test]
fn no_call_allocates() {
    for kernel in kernels() {
        for (k, m) in [(3, 2), (8, 5), (20, 30)] {
            let codec = codec(k, m, kernel);
            let value = bytes(1000, 4);
            let length = racos_codec::fragment_len(1000, k);
            let padded = bytes(k * length, 4);
            let mut parities = vec![vec![0; length]; m];
            let mut views: Vec<&mut [u8]> = parities.iter_mut().map(|p| &mut p[..]).collect();
            let data: Vec<&[u8]> = padded.chunks_exact(length).collect();
            let mut rebuilt = vec![vec![0; length]; m];
            let mut outputs: Vec<&mut [u8]> = rebuilt.iter_mut().map(|out| &mut out[..]).collect();
            let presents: Vec<Vec<_>> =
                (0..=m).map(|shift| (0..k).map(|j| ((j + shift), data[j])).collect()).collect();
            let wanted: Vec<Vec<usize>> =
                (0..=m).map(|shift| (0..shift).chain(k + shift..k + m).collect()).collect();
            let before = codec.decode_misses();
            let counted = allocation_counter::measure(|| {
                codec.encode(&data, &mut views).expect("encode");
                codec.encode_value(&value, &mut views).expect("encode");
                codec.update_value(1000, 10, &value[10..], &mut views).expect("update");
                for _ in 0..2 {
                    for (present, wanted) in presents.iter().zip(&wanted) {
                        codec.rebuild(present, wanted, &mut outputs).expect("rebuild");
                    }
                }
            });
            assert!(codec.decode_misses() > before, "some matrices were derived");
            assert_eq!(counted.count_total, 0, "{kernel:?} {k} {m}: {counted:?}");
        }
    }
}
