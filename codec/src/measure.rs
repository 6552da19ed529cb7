//! How fast this machine encodes, rebuilds and copies, for `racos bench codec` and for tuning.
//!
//! Invariant: what is timed is the call a client of the codec makes, and its answer is checked
//! against the scalar kernel. All three figures are value bytes per second, taken in turns in one
//! run, each the best of its turns, so that they can be compared with one another.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::{Codec, CodecError, Kernel, fragment_len};

/// Turns each figure is the best of.
const TURNS: u32 = 9;
/// Value bytes handled between two looks at the clock, at least.
const SMALLEST_LAP_BYTES: usize = 1 << 20;
/// Stripes start at pages, as the buffers of a node do.
const PAGE: usize = 4096;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub k: usize,
    pub m: usize,
    /// Bytes of a value.
    pub size: usize,
    /// Bytes of all values visited in turn; the values lie out of cache if it is large enough. One
    /// value is used again and again if it is smaller than `size`.
    pub working_set: usize,
    /// Write what is encoded and rebuilt past the caches, whatever its size.
    pub streaming: bool,
}

/// Figures in GB/s (10^9 bytes) of value bytes, on one core.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub case: Case,
    /// All m parities of a value.
    pub encode_gbs: f64,
    /// As many data fragments as can be lost, from the rest and the parities; 0 if m = 0.
    pub rebuild_gbs: f64,
    /// A copy of the value.
    pub memcpy_gbs: f64,
}

/// Measures one case with `kernel`; takes about `budget`.
///
/// # Panics
/// If an answer differs from the scalar kernel's: the codec is wrong.
pub fn measure(case: Case, kernel: Kernel, budget: Duration) -> Result<Row, CodecError> {
    let codec = Codec::with_kernel(case.k, case.m, kernel)?;
    let codec = if case.streaming { codec.streaming_from(0) } else { codec };
    let count = (case.working_set / case.size.max(1)).max(1);
    let layout = Layout::new(case);
    let mut memory = vec![0; count * layout.bytes + PAGE];
    let aligned = memory.as_ptr().align_offset(PAGE);
    let places = memory[aligned..].chunks_exact_mut(layout.bytes).take(count);
    let mut stripes =
        places.map(|place| Stripe::new(case, layout, place)).collect::<Result<Vec<_>, _>>()?;
    let turn = budget / (3 * TURNS);
    let (mut encode, mut rebuild, mut copy) = (f64::MAX, f64::MAX, f64::MAX);
    for _ in 0..TURNS {
        encode = encode.min(seconds_per_call(&mut stripes, turn, |stripe| stripe.encode(&codec)));
        copy = copy.min(seconds_per_call(&mut stripes, turn, Stripe::copy));
        let call = |stripe: &mut Stripe| stripe.rebuild(&codec);
        rebuild = rebuild.min(seconds_per_call(&mut stripes, turn, call));
    }
    stripes.iter().for_each(Stripe::check);
    let speed = |seconds: f64| case.size as f64 / seconds / 1e9;
    let rebuild_gbs = if case.m > 0 { speed(rebuild) } else { 0.0 };
    Ok(Row { case, encode_gbs: speed(encode), rebuild_gbs, memcpy_gbs: speed(copy) })
}

/// Seconds a call that handles `bytes` takes, on average over about a megabyte of them; the least of
/// the averages in `turn`, so that what else the machine does disturbs it little.
pub fn least_seconds(bytes: usize, turn: Duration, mut call: impl FnMut()) -> f64 {
    let calls = (SMALLEST_LAP_BYTES / bytes.max(64)).max(1);
    let (start, mut best) = (Instant::now(), f64::MAX);
    loop {
        let lap = Instant::now();
        for _ in 0..calls {
            call();
        }
        best = best.min(lap.elapsed().as_secs_f64() / calls as f64);
        if start.elapsed() >= turn {
            return best;
        }
    }
}

/// As `least_seconds`, of a call for each stripe in turn.
fn seconds_per_call<'a>(
    stripes: &mut [Stripe<'a>],
    turn: Duration,
    mut call: impl FnMut(&mut Stripe<'a>),
) -> f64 {
    if let [stripe] = stripes {
        return least_seconds(stripe.value.len(), turn, || call(stripe));
    }
    let (count, size) = (stripes.len(), stripes[0].value.len());
    least_seconds(count * size, turn, || stripes.iter_mut().for_each(&mut call)) / count as f64
}

/// Where the parts of a stripe lie in its place, so that every fragment starts at a cache line.
#[derive(Clone, Copy)]
struct Layout {
    fragment: usize,
    /// From one fragment to the next.
    step: usize,
    lost: usize,
    bytes: usize,
}

impl Layout {
    fn new(case: Case) -> Self {
        let fragment = fragment_len(case.size, case.k);
        let step = fragment.next_multiple_of(64).max(64);
        let lost = case.k.min(case.m);
        let bytes = (2 * case.k + 2 * case.m + lost) * step;
        Self { fragment, step, lost, bytes: bytes.next_multiple_of(PAGE) }
    }
}

/// One value's fragments, and room for what is computed from them.
struct Stripe<'a> {
    value: &'a [u8],
    data: Vec<&'a [u8]>,
    /// Encoded here when timed.
    parity: Vec<&'a mut [u8]>,
    /// The last data fragments and the parities, to rebuild the others from.
    present: Vec<(usize, &'a [u8])>,
    wanted: Vec<usize>,
    rebuilt: Vec<&'a mut [u8]>,
    copy: &'a mut [u8],
}

impl<'a> Stripe<'a> {
    fn new(case: Case, layout: Layout, place: &'a mut [u8]) -> Result<Self, CodecError> {
        let Case { k, m, size, .. } = case;
        let Layout { fragment, step, lost, .. } = layout;
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
        let views: Vec<_> = data.chunks_exact(step).map(|part| &part[..fragment]).collect();
        let mut held = cut(held);
        Codec::with_kernel(k, m, Kernel::Scalar)?.encode(&views, &mut held)?;
        let kept = (lost..k).map(|j| (j, views[j]));
        let present = kept.chain(held.into_iter().enumerate().map(|(i, held)| (k + i, &*held)));
        Ok(Self {
            value: &data[..size],
            parity: cut(parity),
            present: present.take(k).collect(),
            wanted: (0..lost).collect(),
            rebuilt: cut(rebuilt),
            copy: &mut copy[..size],
            data: views,
        })
    }

    fn encode(&mut self, codec: &Codec) {
        let done = codec.encode(black_box(&self.data), black_box(&mut self.parity));
        assert!(done.is_ok(), "measure invariant: the stripe fits the code: {done:?}");
    }

    fn rebuild(&mut self, codec: &Codec) {
        let present = black_box(&self.present[..]);
        let done = codec.rebuild(present, black_box(&self.wanted), black_box(&mut self.rebuilt));
        assert!(done.is_ok(), "measure invariant: the stripe fits the code: {done:?}");
    }

    fn copy(&mut self) {
        black_box(&mut *self.copy).copy_from_slice(black_box(self.value));
    }

    /// Compares with what the scalar kernel computed, and with the data itself.
    fn check(&self) {
        let first_parity = self.data.len() - self.wanted.len();
        for (parity, (_, held)) in self.parity.iter().zip(&self.present[first_parity..]) {
            assert!(parity == held, "measure invariant: kernels agree on the parities");
        }
        for (rebuilt, data) in self.rebuilt.iter().zip(&self.data) {
            assert!(rebuilt == data, "measure invariant: what is rebuilt was lost");
        }
        assert!(*self.copy == *self.value, "measure invariant: a copy is equal");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_measured_and_checked_at_odd_shapes_and_sizes() {
        for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_supported()) {
            for (k, m, size) in [(1, 0, 100), (1, 2, 1), (3, 2, 1300), (2, 3, 777), (3, 2, 0)] {
                let case = Case { k, m, size, working_set: 3 * size, streaming: size % 2 == 0 };
                let row = measure(case, kernel, Duration::from_micros(100)).expect("a valid case");
                let figures = [row.encode_gbs, row.rebuild_gbs, row.memcpy_gbs];
                assert!(figures.iter().all(|figure| figure.is_finite()), "{row:?}");
                assert_eq!(row.rebuild_gbs > 0.0, m > 0 && size > 0, "{row:?}");
            }
        }
    }
}
