//! How fast this machine encodes, rebuilds and copies, for `racos bench codec` and the benches, and
//! with the features `rivals` and `isal` how fast other erasure codes do. With the feature
//! `roofline`, part of `rivals`, also how fast any could: the same loads and stores, no arithmetic.
//!
//! Invariant: what is timed is the call a client of the codec makes, and its answer is checked. All
//! contenders work on the same memory and take turns in one run; each figure is the best of its
//! turns, so that they can be compared with one another on a machine that does other things too.

#[cfg(feature = "rivals")]
mod rivals;
#[cfg(all(feature = "roofline", target_arch = "x86_64"))]
mod roofline;
mod stripe;

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::{Codec, CodecError, Kernel};
#[cfg(all(feature = "roofline", target_arch = "x86_64"))]
pub use roofline::ROOFLINE;
pub use stripe::{Memory, Stripe};

/// The codes and value sizes that are compared, in bytes.
pub const CODES: [(usize, usize); 6] = [(3, 2), (2, 3), (4, 4), (7, 2), (3, 6), (8, 5)];
pub const SIZES: [usize; 6] = [1300, 16 << 10, 64 << 10, 133_000, 666_000, 2 << 20];
/// Bytes of all values visited when values are to lie out of cache.
pub const OUT_OF_CACHE: usize = 96 << 20;

/// Turns each figure is the best of.
const TURNS: u32 = 9;
/// Time between two looks at the clock: so long that looking costs nothing.
const SHORTEST_LAP_SECONDS: f64 = 20e-6;

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
    /// From how many bytes of outputs on they are written past the caches; none: as the codec
    /// chooses.
    pub streaming_from: Option<usize>,
}

impl Case {
    /// One value, used again and again.
    pub fn in_cache(k: usize, m: usize, size: usize) -> Self {
        Self { k, m, size, working_set: 0, streaming_from: None }
    }

    /// Data fragments lost when as many as possible are: 0 .. lost.
    pub fn lost(&self) -> usize {
        self.k.min(self.m)
    }

    /// Bytes read and written for each byte read and written by a copy of the value: encoding.
    pub fn encode_traffic(&self) -> f64 {
        (self.k + self.m) as f64 / (2 * self.k) as f64
    }

    /// As `encode_traffic`: rebuilding.
    pub fn rebuild_traffic(&self) -> f64 {
        (self.k + self.lost()) as f64 / (2 * self.k) as f64
    }
}

/// Figures in GB/s (10^9 bytes) of value bytes, on one core.
#[derive(Clone, Debug)]
pub struct Row {
    pub case: Case,
    /// All m parities of a value.
    pub encode_gbs: f64,
    /// As many data fragments as can be lost, from the rest and the parities; 0 if m = 0.
    pub rebuild_gbs: f64,
    /// A copy of the value.
    pub memcpy_gbs: f64,
    /// The same of others, where they were built in and can do it.
    pub rivals: Vec<Rival>,
}

/// Figures of another erasure code.
#[derive(Clone, Debug)]
pub struct Rival {
    pub name: String,
    pub encode_gbs: f64,
    pub rebuild_gbs: f64,
}

/// What encodes, rebuilds or copies every stripe once whenever it is called.
pub type Work<'s> = Box<dyn FnMut() + 's>;

/// Someone who codes stripes, at its best settings; all that can be done once is done before.
pub trait Contender {
    fn name(&self) -> &str;
    fn encoder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s>;
    fn rebuilder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s>;
    /// Panics if what was encoded and rebuilt is wrong.
    fn check(&mut self, stripes: &[Stripe<'_>]) {
        stripes.iter().for_each(|stripe| stripe.check(self.name()));
    }
}

/// The codec.
struct Racos {
    name: String,
    codec: Codec,
}

impl Contender for Racos {
    fn name(&self) -> &str {
        &self.name
    }

    fn encoder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        let codec = &self.codec;
        Box::new(move || {
            for stripe in &mut *stripes {
                let stripe = black_box(stripe);
                let done = codec.encode(&stripe.data, &mut stripe.parity);
                assert!(done.is_ok(), "measure invariant: the stripe fits the code: {done:?}");
            }
        })
    }

    fn rebuilder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        let codec = &self.codec;
        Box::new(move || {
            for stripe in &mut *stripes {
                let stripe = black_box(stripe);
                let done = codec.rebuild(&stripe.present, &stripe.wanted, &mut stripe.rebuilt);
                assert!(done.is_ok(), "measure invariant: the stripe fits the code: {done:?}");
            }
        })
    }
}

/// A copy of the value, whatever is asked.
struct Memcpy;

impl Contender for Memcpy {
    fn name(&self) -> &str {
        "memcpy"
    }

    fn encoder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        Box::new(move || {
            for stripe in &mut *stripes {
                let stripe = black_box(stripe);
                stripe.copy.copy_from_slice(stripe.value);
            }
        })
    }

    fn rebuilder<'s>(&'s mut self, stripes: &'s mut [Stripe<'_>]) -> Work<'s> {
        self.encoder(stripes)
    }

    fn check(&mut self, stripes: &[Stripe<'_>]) {
        let equal = stripes.iter().all(|stripe| *stripe.copy == *stripe.value);
        assert!(equal, "measure invariant: a copy is equal");
    }
}

/// All contenders of this build that can do the case: racos first, memcpy second.
pub fn contenders(case: Case, kernel: Kernel) -> Result<Vec<Box<dyn Contender>>, CodecError> {
    let codec = Codec::with_kernel(case.k, case.m, kernel)?;
    let codec = match case.streaming_from {
        Some(bytes) => codec.streaming_from(bytes),
        None => codec,
    };
    let racos = Racos { name: format!("racos-{}", kernel.name()), codec };
    let all: Vec<Box<dyn Contender>> = vec![Box::new(racos), Box::new(Memcpy)];
    #[cfg(feature = "rivals")]
    let all: Vec<_> = all.into_iter().chain(rivals::all(case)).collect();
    #[cfg(all(feature = "roofline", target_arch = "x86_64"))]
    let all: Vec<_> = all.into_iter().chain(roofline::all(case)).collect();
    Ok(all)
}

/// Measures one case with `kernel`; takes about `budget` for each contender.
///
/// # Panics
/// If an answer is wrong.
pub fn measure(case: Case, kernel: Kernel, budget: Duration) -> Result<Row, CodecError> {
    let mut memory = Memory::new(case);
    let mut stripes = memory.stripes()?;
    let mut contenders = contenders(case, kernel)?;
    let turn = budget / (2 * TURNS);
    let bytes = case.size * stripes.len();
    let mut best = vec![[f64::MAX; 2]; contenders.len()];
    for _ in 0..TURNS {
        for (contender, [encode, rebuild]) in contenders.iter_mut().zip(&mut best) {
            stripes.iter_mut().for_each(Stripe::clear);
            *encode = encode.min(least_seconds(turn, contender.encoder(&mut stripes)));
            *rebuild = rebuild.min(least_seconds(turn, contender.rebuilder(&mut stripes)));
            contender.check(&stripes);
        }
    }
    let speed = |seconds: f64| bytes as f64 / seconds / 1e9;
    let mut figures = contenders.iter().zip(&best).map(|(contender, [encode, rebuild])| Rival {
        name: contender.name().to_owned(),
        encode_gbs: speed(*encode),
        rebuild_gbs: if case.m > 0 { speed(*rebuild) } else { 0.0 },
    });
    let mut next = || figures.next().expect("racos and memcpy are always there");
    let (racos, memcpy) = (next(), next());
    let rivals = figures.collect();
    #[cfg(all(feature = "roofline", target_arch = "x86_64"))]
    let rivals = roofline::merge(rivals);
    Ok(Row {
        case,
        encode_gbs: racos.encode_gbs,
        rebuild_gbs: racos.rebuild_gbs,
        memcpy_gbs: memcpy.encode_gbs.max(memcpy.rebuild_gbs),
        rivals,
    })
}

/// Seconds a call takes, on average over a lap of many; the least of the averages in `turn`, so that
/// what else the machine does disturbs it little.
fn least_seconds(turn: Duration, mut call: impl FnMut()) -> f64 {
    let (start, mut best, mut calls) = (Instant::now(), f64::MAX, 1);
    loop {
        let lap = Instant::now();
        for _ in 0..calls {
            call();
        }
        let seconds = lap.elapsed().as_secs_f64();
        best = best.min(seconds / calls as f64);
        if start.elapsed() >= turn {
            return best;
        }
        if seconds < SHORTEST_LAP_SECONDS {
            calls *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_measured_and_checked_at_odd_shapes_and_sizes() {
        for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_supported()) {
            for (k, m, size) in [(1, 0, 100), (1, 2, 1), (3, 2, 1300), (2, 3, 777), (3, 2, 0)] {
                let streaming_from = (size % 2 == 0).then_some(0);
                let case =
                    Case { working_set: 3 * size, streaming_from, ..Case::in_cache(k, m, size) };
                let row = measure(case, kernel, Duration::from_micros(100)).expect("a valid case");
                let figures = [row.encode_gbs, row.rebuild_gbs, row.memcpy_gbs];
                assert!(figures.iter().all(|figure| figure.is_finite()), "{row:?}");
                assert_eq!(row.rebuild_gbs > 0.0, m > 0 && size > 0, "{row:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "somebody rebuilds what was lost")]
    fn a_wrong_answer_is_noticed() {
        let mut memory = Memory::new(Case::in_cache(3, 2, 1300));
        let mut stripes = memory.stripes().expect("a valid case");
        let stripe = &mut stripes[0];
        for (parity, expected) in stripe.parity.iter_mut().zip(&stripe.expected) {
            parity.copy_from_slice(expected);
        }
        for (rebuilt, data) in stripe.rebuilt.iter_mut().zip(&stripe.data) {
            rebuilt.copy_from_slice(data);
        }
        stripe.rebuilt[1][433] ^= 1;
        stripe.check("somebody");
    }
}
