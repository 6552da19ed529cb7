//! No kernel reads or writes a byte beyond its slices: every slice lies against a page that may not
//! be touched, once behind it and once before it. A kernel that strays ends the test process.
#![cfg(target_os = "linux")]

mod common;

use common::{Stripe, bytes, codec, kernels};

/// Every length up to this, which is more than two vectors of every kernel computed two at a time.
const LENGTH_MAX: usize = 300;

/// Memory between two pages that may not be touched.
struct Fenced {
    start: *mut u8,
    page: usize,
}

impl Fenced {
    fn new() -> Self {
        // SAFETY: a new mapping of three pages; its ends are made untouchable before it is used.
        unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let (access, flags) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let start = libc::mmap(std::ptr::null_mut(), 3 * page, access, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED, "no memory");
            let middle = start.byte_add(page);
            assert_eq!(libc::mprotect(middle, page, libc::PROT_READ | libc::PROT_WRITE), 0);
            Self { start: start.cast(), page }
        }
    }

    /// `length` bytes that end, or else begin, at a page that may not be touched.
    fn slice(&mut self, length: usize, at_end: bool) -> &mut [u8] {
        assert!(length <= self.page);
        let offset = if at_end { self.page - length } else { 0 };
        // SAFETY: the middle page can be read and written and belongs to this value alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(self.page + offset), length) }
    }

    fn holding(payload: &[u8], at_end: bool) -> Self {
        let mut fenced = Self::new();
        fenced.slice(payload.len(), at_end).copy_from_slice(payload);
        fenced
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: the mapping `new` made; nothing borrows it any more.
        let done = unsafe { libc::munmap(self.start.cast(), 3 * self.page) };
        assert_eq!(done, 0);
    }
}

/// Encodes, rebuilds and updates with every slice against a page that may not be touched.
fn stays_within(k: usize, m: usize, length: usize, at_end: bool) {
    let stripe = Stripe::new((0..k).map(|j| bytes(length, j as u64)).collect(), m);
    let mut held: Vec<_> =
        stripe.fragments.iter().map(|bytes| Fenced::holding(bytes, at_end)).collect();
    let mut outputs: Vec<_> = (0..m).map(|_| Fenced::new()).collect();
    let held: Vec<&[u8]> = held.iter_mut().map(|one| &*one.slice(length, at_end)).collect();
    for kernel in kernels() {
        let codec = codec(k, m, kernel);
        let mut out: Vec<_> = outputs.iter_mut().map(|one| one.slice(length, at_end)).collect();
        codec.encode(&held[..k], &mut out).expect("encode");
        assert!(out.iter().zip(&held[k..]).all(|(one, other)| one == other), "{kernel:?}");
        out.iter_mut().for_each(|out| out.fill(0));
        for (index, data) in held[..k].iter().enumerate() {
            codec.update(index, 0, data, &mut out).expect("update");
        }
        assert!(out.iter().zip(&held[k..]).all(|(one, other)| one == other), "{kernel:?}");
        // The first fragments lost, with and without the first parity.
        for first_parity in [k, k + 1] {
            let lost = k.min(k + m - first_parity);
            let present = (lost..k).chain(first_parity..first_parity + lost);
            let present: Vec<_> = present.map(|index| (index, held[index])).collect();
            let wanted: Vec<usize> = (0..lost).collect();
            codec.rebuild(&present, &wanted, &mut out[..lost]).expect("rebuild");
            assert!(out.iter().zip(&held[..lost]).all(|(one, other)| one == other), "{kernel:?}");
        }
    }
}

#[test]
fn no_kernel_touches_a_byte_beyond_its_slices() {
    for (k, m) in [(1, 2), (3, 2), (8, 5), (6, 9)] {
        for length in 0..=LENGTH_MAX {
            stays_within(k, m, length, true);
            stays_within(k, m, length, false);
        }
    }
}

/// The value's end against the page: short fragments are not read as if they were whole.
#[test]
fn no_kernel_touches_a_byte_beyond_a_value() {
    for (k, m) in [(1, 2), (3, 2), (8, 5), (6, 9)] {
        for length in 0..=LENGTH_MAX {
            let value = bytes(length, 5);
            let mut fenced = Fenced::holding(&value, true);
            let stripe = Stripe::of_value(&value, k, m);
            let mut outputs: Vec<_> = (0..m).map(|_| Fenced::new()).collect();
            for kernel in kernels() {
                let fragment = length.div_ceil(k);
                let mut out: Vec<_> =
                    outputs.iter_mut().map(|one| one.slice(fragment, true)).collect();
                let value = &*fenced.slice(length, true);
                codec(k, m, kernel).encode_value(value, &mut out).expect("encode");
                let expected = &stripe.fragments[k..];
                assert!(out.iter().zip(expected).all(|(one, other)| one == other), "{kernel:?}");
            }
        }
    }
}
