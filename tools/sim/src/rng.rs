//! The one source of chance of a run: xoshiro256**, integers only.
//!
//! Invariant: the same seed and the same calls give the same numbers on every machine.

/// A seeded generator. Each part of a world has its own, so that a change of one part does not
/// shift what the others draw.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        let mut state = seed;
        Rng(std::array::from_fn(|_| splitmix(&mut state)))
    }

    /// A generator of its own for the part with this number.
    pub fn fork(&self, part: u64) -> Rng {
        Rng::new(self.0[0] ^ self.0[2].rotate_left(17) ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn number(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number in `0..bound`; `bound` is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.number()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `from..=to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True in `ppm` of a million cases.
    pub fn chance(&mut self, ppm: u32) -> bool {
        self.below(1_000_000) < u64::from(ppm)
    }

    pub fn one_in(&mut self, cases: u64) -> bool {
        self.below(cases) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// Roughly exponential with this mean: a geometric number of halvings, even in between.
    pub fn exponential(&mut self, mean: u64) -> u64 {
        let halvings = u64::from(self.number().trailing_zeros().min(20));
        let half = mean * 693 / 1000;
        half * halvings + self.below(half + 1)
    }
}

/// The next number of a splitmix64 sequence.
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_from_the_seed_and_stay_in_bounds() {
        let (mut a, mut b) = (Rng::new(7), Rng::new(7));
        assert!((0..100).all(|_| a.number() == b.number()));
        assert!((0..1000).all(|_| (5..=9).contains(&a.between(5, 9))));
        assert!((0..1000).all(|_| a.below(1) == 0));
        assert!((0..1000).all(|_| !a.chance(0) && a.chance(1_000_000)));
        assert_ne!(a.fork(1).number(), a.fork(2).number());
    }

    #[test]
    fn the_exponential_has_its_mean() {
        let mut rng = Rng::new(1);
        let sum: u64 = (0..100_000).map(|_| rng.exponential(1_000_000)).sum();
        let mean = sum / 100_000;
        assert!((950_000..1_150_000).contains(&mean), "{mean}");
    }
}
