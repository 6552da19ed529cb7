//! A wrong call is an error value that names what is wrong, and writes nothing.

mod common;

use common::{bytes, codec, kernels};
use racos_codec::{Codec, CodecError, Kernel};

const LENGTH: usize = 100;

/// Calls rebuild of a (3, 2) code with the fragments and outputs given by index and length.
fn rebuild(present: &[(usize, usize)], wanted: &[usize], out: &[usize]) -> Result<(), CodecError> {
    let source = bytes(1000, 1);
    for kernel in kernels() {
        let present: Vec<_> = present.iter().map(|(i, length)| (*i, &source[..*length])).collect();
        let mut outputs: Vec<Vec<u8>> = out.iter().map(|length| vec![0x77; *length]).collect();
        let mut views: Vec<&mut [u8]> = outputs.iter_mut().map(|out| &mut out[..]).collect();
        let result = codec(3, 2, kernel).rebuild(&present, wanted, &mut views);
        let untouched = outputs.iter().flatten().all(|byte| *byte == 0x77);
        assert!(untouched || result.is_ok(), "written in spite of {result:?}");
        if kernel == Kernel::fastest() {
            return result;
        }
    }
    unreachable!("the fastest kernel is supported")
}

fn encode(data: &[usize], parity: &[usize]) -> Result<(), CodecError> {
    let source = bytes(1000, 1);
    let data: Vec<&[u8]> = data.iter().map(|length| &source[..*length]).collect();
    let mut outputs: Vec<Vec<u8>> = parity.iter().map(|length| vec![0x77; *length]).collect();
    let mut views: Vec<&mut [u8]> = outputs.iter_mut().map(|out| &mut out[..]).collect();
    let result = codec(3, 2, Kernel::fastest()).encode(&data, &mut views);
    let untouched = outputs.iter().flatten().all(|byte| *byte == 0x77);
    assert!(untouched || result.is_ok(), "written in spite of {result:?}");
    result
}

const L: usize = LENGTH;

#[test]
fn a_shape_that_is_no_code_is_refused() {
    for (k, m) in [(0, 0), (0, 3), (256, 0), (255, 1), (1, 255), (usize::MAX, 1), (1, usize::MAX)] {
        let error = Codec::new(k, m).expect_err("no code");
        assert_eq!(error, CodecError::Shape { k, m });
        assert!(error.to_string().contains("k + m <= 255"), "{error}");
    }
    for (k, m) in [(1, 0), (255, 0), (1, 254), (128, 127)] {
        let codec = Codec::new(k, m).expect("a code");
        assert_eq!((codec.k(), codec.m()), (k, m));
    }
}

#[test]
fn wrong_counts_are_named() {
    let count = |role, found, expected| Err(CodecError::Count { role, found, expected });
    assert_eq!(encode(&[L; 2], &[L; 2]), count("data fragments", 2, 3));
    assert_eq!(encode(&[L; 3], &[L; 3]), count("parity fragments", 3, 2));
    assert_eq!(rebuild(&[(0, L), (1, L)], &[2], &[L]), count("present fragments", 2, 3));
    let four = [(0, L), (1, L), (2, L), (3, L)];
    assert_eq!(rebuild(&four, &[4], &[L]), count("present fragments", 4, 3));
    assert_eq!(rebuild(&four[..3], &[4], &[]), count("outputs", 0, 1));
}

#[test]
fn unequal_lengths_are_named() {
    let length = |role, index, found| Err(CodecError::Length { role, index, found, expected: L });
    assert_eq!(encode(&[L, L, L - 1], &[L; 2]), length("data fragment", 2, L - 1));
    assert_eq!(encode(&[L, L + 9, L], &[L; 2]), length("data fragment", 1, L + 9));
    assert_eq!(encode(&[L; 3], &[L, L - 1]), length("parity fragment", 1, L - 1));
    assert_eq!(encode(&[L; 3], &[L + 1, L + 1]), length("parity fragment", 0, L + 1));
    let role = "present fragment";
    assert_eq!(rebuild(&[(0, L), (1, L), (3, 7)], &[2], &[L]), length(role, 2, 7));
    assert_eq!(rebuild(&[(0, L), (1, L), (3, 7)], &[], &[]), length(role, 2, 7));
    assert_eq!(rebuild(&[(0, L), (1, L), (3, L)], &[2, 4], &[L, 0]), length("output", 1, 0));
    assert_eq!(rebuild(&[(3, L), (1, L), (0, L)], &[4, 2], &[L, 0]), length("output", 1, 0));
}

#[test]
fn wrong_and_repeated_indices_are_named() {
    let index = |role, index| Err(CodecError::Index { role, index, fragments: 5 });
    let duplicate = |role, index| Err(CodecError::Duplicate { role, index });
    assert_eq!(rebuild(&[(0, L), (1, L), (5, L)], &[2], &[L]), index("present fragment", 5));
    let far = usize::MAX;
    assert_eq!(rebuild(&[(0, L), (1, L), (far, L)], &[2], &[L]), index("present fragment", far));
    assert_eq!(rebuild(&[(0, L), (1, L), (3, L)], &[256], &[L]), index("wanted fragment", 256));
    assert_eq!(rebuild(&[(0, L), (1, L), (1, L)], &[2], &[L]), duplicate("present fragment", 1));
    assert_eq!(
        rebuild(&[(0, L), (1, L), (3, L)], &[2, 2], &[L; 2]),
        duplicate("wanted fragment", 2)
    );
    let present = rebuild(&[(0, L), (1, L), (3, L)], &[2, 1], &[L; 2]);
    assert_eq!(present, Err(CodecError::Present { index: 1 }));
}

/// The indices of a call like the one before are compared by the kernel, so a wrong call has to be
/// found there.
#[test]
fn a_call_like_the_one_before_is_looked_at_as_closely() {
    let source = bytes(1000, 1);
    let right = [(1, L), (2, L), (3, L)];
    let wrong = [
        [(1, L), (1, L), (3, L)],
        [(1, L), (0, L), (3, L)],
        [(1, L), (2, L), (5, L)],
        [(1, L), (2, L), (3, L + 1)],
        [(3, L - 1), (2, L), (1, L)],
    ];
    for kernel in kernels() {
        let codec = codec(3, 2, kernel);
        let call = |present: &[(usize, usize)], wanted: &[usize], fill: u8| {
            let held: Vec<_> = present.iter().map(|(i, length)| (*i, &source[..*length])).collect();
            let mut outputs = vec![vec![fill; L]; wanted.len()];
            let mut views: Vec<&mut [u8]> = outputs.iter_mut().map(|out| &mut out[..]).collect();
            let result = codec.rebuild(&held, wanted, &mut views);
            let untouched = outputs.iter().flatten().all(|byte| *byte == fill);
            assert!(untouched || result.is_ok(), "written in spite of {result:?}");
            (result, outputs)
        };
        for wanted in [&[0][..], &[0, 4]] {
            let expected = call(&right, wanted, 0x11);
            assert_eq!(expected.0, Ok(()));
            for wrong in &wrong {
                assert_eq!(call(&right, wanted, 0x22), expected, "{kernel:?}");
                let fresh = rebuild(wrong, wanted, &vec![L; wanted.len()]);
                assert_eq!(call(wrong, wanted, 0x33).0, fresh, "{kernel:?} {wrong:?}");
                assert!(fresh.is_err(), "{wrong:?}");
            }
        }
    }
}

#[test]
fn pieces_outside_the_stripe_are_named() {
    let codec = codec(3, 2, Kernel::fastest());
    let (mut p, mut q) = (vec![0x77; L], vec![0x77; L]);
    let mut update = |index, column, length: usize| {
        codec.update(index, column, &bytes(length, 1), &mut [&mut p, &mut q])
    };
    let range = |offset, length, limit| Err(CodecError::Range { offset, length, limit });
    assert_eq!(update(0, L, 1), range(L, 1, L));
    assert_eq!(update(0, usize::MAX, 2), range(usize::MAX, 2, L));
    let index = CodecError::Index { role: "data fragment", index: 3, fragments: 3 };
    assert_eq!(update(3, 0, 1), Err(index));
    let mut update_value = |size, offset, length: usize| {
        codec.update_value(size, offset, &bytes(length, 1), &mut [&mut p, &mut q])
    };
    assert_eq!(update_value(3 * L, 3 * L, 1), range(3 * L, 1, 3 * L));
    assert_eq!(update_value(3 * L, usize::MAX, 1), range(usize::MAX, 1, 3 * L));
    let short = CodecError::Length { role: "parity fragment", index: 0, found: L, expected: 34 };
    assert_eq!(update_value(L, 0, 1), Err(short.clone()));
    assert_eq!(codec.encode_value(&bytes(L, 1), &mut [&mut p, &mut q]), Err(short));
    assert!(p.iter().chain(&q).all(|byte| *byte == 0x77), "written in spite of the errors");
}

#[test]
fn a_kernel_is_known_by_its_name_only() {
    for kernel in Kernel::ALL {
        assert_eq!(Kernel::from_name(kernel.name()), Ok(kernel));
        match Codec::with_kernel(3, 2, kernel) {
            Ok(codec) => assert!(kernel.is_supported() && codec.kernel() == kernel),
            Err(error) => {
                assert!(!kernel.is_supported());
                assert_eq!(error, CodecError::KernelUnsupported { kernel: kernel.name() });
            }
        }
    }
    let error = Kernel::from_name("neon").expect_err("no such kernel");
    assert!(error.to_string().contains("avx512-gfni"), "{error}");
}

#[test]
fn every_error_says_what_was_found() {
    let error = encode(&[L, 7, L], &[L; 2]).expect_err("unequal");
    assert_eq!(error.to_string(), "data fragment 1 has 7 bytes, the others have 100");
    let error = rebuild(&[(0, L), (0, L), (3, L)], &[2], &[L]).expect_err("duplicate");
    assert_eq!(error.to_string(), "present fragment 0 is named twice: name each fragment once");
}
