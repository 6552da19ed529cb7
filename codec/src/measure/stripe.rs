//! The stripes that are measured: values, fragments, and room for what is computed.
//!
//! Invariant: data and the fragments to rebuild from never change once made; every contender reads
//! and writes the same places. Whoever computes the codec's own fragments is checked against what
//! the scalar kernel made of the same data.

use super::Case;
use crate::{Codec, CodecError, Kernel, fragment_len};

/// Stripes start at pages, as the buffers of a node do.
const PAGE: usize = 4096;
/// Every fragment starts at a cache line, with room up to the next one.
const LINE: usize = 64;

/// Where the parts of a stripe lie in its place.
#[derive(Clone, Copy)]
struct Layout {
    fragment: usize,
    /// From one fragment to the next.
    step: usize,
    bytes: usize,
}

impl Layout {
    fn new(case: Case) -> Self {
        let fragment = fragment_len(case.size, case.k);
        let step = fragment.next_multiple_of(LINE).max(LINE);
        let bytes = (2 * case.k + 2 * case.m + case.lost()) * step;
        Self { fragment, step, bytes: bytes.next_multiple_of(PAGE) }
    }
}

/// The memory of all stripes of a case.
pub struct Memory {
    bytes: Vec<u8>,
    case: Case,
}

impl Memory {
    pub fn new(case: Case) -> Self {
        let count = (case.working_set / case.size.max(1)).max(1);
        Self { bytes: vec![0; count * Layout::new(case).bytes + PAGE], case }
    }

    /// The stripes: as many as the working set holds, at least one.
    pub fn stripes(&mut self) -> Result<Vec<Stripe<'_>>, CodecError> {
        let (case, layout) = (self.case, Layout::new(self.case));
        let aligned = self.bytes.as_ptr().align_offset(PAGE);
        let places = self.bytes[aligned..].chunks_exact_mut(layout.bytes);
        places.map(|place| Stripe::new(case, layout, place)).collect()
    }
}

/// One value's fragments, and room for what is computed from them.
pub struct Stripe<'a> {
    pub value: &'a [u8],
    pub data: Vec<&'a [u8]>,
    /// Encoded here when timed.
    pub parity: Vec<&'a mut [u8]>,
    /// All parities, as the scalar kernel computed them.
    pub expected: Vec<&'a [u8]>,
    /// The last data fragments and the first parities, k in all, to rebuild the others from.
    pub present: Vec<(usize, &'a [u8])>,
    pub wanted: Vec<usize>,
    /// Rebuilt here when timed.
    pub rebuilt: Vec<&'a mut [u8]>,
    /// Copied here when timed.
    pub copy: &'a mut [u8],
    /// The data fragments with what follows them up to a multiple of 64 bytes, for a rival that
    /// needs such lengths.
    pub rounded: Vec<&'a [u8]>,
}

impl<'a> Stripe<'a> {
    fn new(case: Case, layout: Layout, place: &'a mut [u8]) -> Result<Self, CodecError> {
        let Case { k, m, size, .. } = case;
        let (Layout { fragment, step, .. }, lost) = (layout, case.lost());
        let (data, rest) = place.split_at_mut(k * step);
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = (at.wrapping_mul(0x9E37_79B1) >> 16) as u8;
        }
        let (held, rest) = rest.split_at_mut(m * step);
        let (parity, rest) = rest.split_at_mut(m * step);
        let (rebuilt, copy) = rest.split_at_mut(lost * step);
        let cut = |part: &'a mut [u8]| -> Vec<&'a mut [u8]> {
            part.chunks_exact_mut(step).map(|part| &mut part[..fragment]).collect()
        };
        let data: &'a [u8] = data;
        let rounded: Vec<_> = data.chunks_exact(step).collect();
        let views: Vec<_> = rounded.iter().map(|part| &part[..fragment]).collect();
        let mut held = cut(held);
        Codec::with_kernel(k, m, Kernel::Scalar)?.encode(&views, &mut held)?;
        let expected: Vec<&[u8]> = held.into_iter().map(|held| &*held).collect();
        let kept = (lost..k).map(|j| (j, views[j]));
        let present = kept.chain(expected.iter().enumerate().map(|(i, held)| (k + i, *held)));
        Ok(Self {
            value: &data[..size],
            parity: cut(parity),
            present: present.take(k).collect(),
            wanted: (0..lost).collect(),
            rebuilt: cut(rebuilt),
            copy: &mut copy[..size],
            expected,
            data: views,
            rounded,
        })
    }

    /// Forgets what was computed before, so that `check` judges the next contender alone.
    pub fn clear(&mut self) {
        self.parity.iter_mut().chain(&mut self.rebuilt).for_each(|output| output.fill(0));
        self.copy.fill(0);
    }

    /// Compares what a contender left here with what the scalar kernel computed, and with the data
    /// itself.
    ///
    /// # Panics
    /// If they differ: the contender is wrong.
    pub fn check(&self, contender: &str) {
        for (parity, expected) in self.parity.iter().zip(&self.expected) {
            assert!(parity == expected, "measure invariant: {contender} encodes as scalar does");
        }
        for (rebuilt, data) in self.rebuilt.iter().zip(&self.data) {
            assert!(rebuilt == data, "measure invariant: {contender} rebuilds what was lost");
        }
    }
}
