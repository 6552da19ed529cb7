//! Running estimates of durations that timers adapt to. Integer arithmetic only: a replay gives the
//! same numbers.

use crate::Nanos;

/// A high quantile of what was observed lately.
#[derive(Clone, Copy, Debug)]
pub struct Quantile {
    value: Nanos,
    /// A sample above moves the estimate up by `up` steps, one below moves it down by `down`.
    up: u64,
    down: u64,
}

impl Quantile {
    /// Follows the 95th percentile.
    pub fn p95(start: Nanos) -> Quantile {
        Quantile { value: start, up: 19, down: 1 }
    }

    /// Follows the 99th percentile.
    pub fn p99(start: Nanos) -> Quantile {
        Quantile { value: start, up: 99, down: 1 }
    }

    /// One more observation. The step is 1/256 of the estimate, at least 100 ns.
    pub fn observe(&mut self, sample: Nanos) {
        let step = (self.value / 256).max(100);
        if sample > self.value {
            self.value = (self.value + step * self.up).min(sample);
        } else {
            self.value = self.value.saturating_sub(step * self.down).max(sample);
        }
    }

    pub fn get(self) -> Nanos {
        self.value
    }
}

/// A mean that forgets: each sample weighs one eighth.
#[derive(Clone, Copy, Debug)]
pub struct Mean(Nanos);

impl Mean {
    pub fn new(start: Nanos) -> Mean {
        Mean(start)
    }
    pub fn observe(&mut self, sample: Nanos) {
        self.0 = self.0 - self.0 / 8 + sample / 8;
    }
    pub fn get(self) -> Nanos {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_settles_near_its_share() {
        let mut p95 = Quantile::p95(0);
        for i in 0..200_000u64 {
            p95.observe((i * 7919) % 1000 * 1000);
        }
        assert!((880_000..1_000_000).contains(&p95.get()), "{}", p95.get());
    }

    #[test]
    fn a_mean_follows() {
        let mut mean = Mean::new(0);
        (0..100).for_each(|_| mean.observe(8000));
        assert!((7000..=8000).contains(&mean.get()), "{}", mean.get());
    }
}
