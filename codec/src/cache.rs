//! Decode matrices by loss pattern. All memory is taken when the cache is made: a lookup that
//! misses derives the matrix into the slot of an older pattern.
//!
//! Invariant: a slot's table is the decode matrix of the slot's pattern for the codec that owns the
//! cache. A pattern lives in one of the `WAYS` slots its hash names, so the cost of a miss and the
//! memory held are bounded whatever patterns come.

use crate::arch::Kernel;
use crate::matrix::{FragmentSet, Generator, Scratch};

/// Slots a pattern may live in.
const WAYS: usize = 4;
/// Slots at most; all patterns of the codes up to k + m = 9 fit.
const SLOTS_MAX: usize = 256;
/// Memory the tables of all slots may take, unless `WAYS` slots need more.
const TABLE_BYTES_MAX: usize = 1 << 20;

/// Which fragments are there and which are asked for. An empty slot wants nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub(crate) present: FragmentSet,
    pub(crate) wanted: FragmentSet,
}

impl Pattern {
    /// Equality, word by word: comparing as one block of memory would wait for the stores of the
    /// words, just made, to leave the store buffer.
    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        let differs = |one: &FragmentSet, other: &FragmentSet| {
            let words = one.words().iter().zip(other.words());
            words.fold(0, |differs, (one, other)| differs | (one ^ other))
        };
        differs(&self.present, &other.present) | differs(&self.wanted, &other.wanted) == 0
    }

    /// A fixed mixing of the members: the same pattern always meets the same slots.
    fn hash(&self) -> usize {
        let words = self.present.words().iter().chain(self.wanted.words());
        let mixed = words.fold(0u64, |hash, word| {
            (hash.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        });
        (mixed >> 32) as usize
    }
}

#[derive(Clone, Debug)]
pub(crate) struct DecodeCache {
    /// Number of groups of `WAYS` slots; a power of two.
    groups: usize,
    patterns: Box<[Pattern]>,
    /// In each group, the slot to replace next.
    oldest: Box<[u8]>,
    /// `slot_words` for each slot.
    tables: Box<[u64]>,
    slot_words: usize,
    scratch: Scratch,
    /// The matrix being derived, before it takes the kernel's form.
    factors: Box<[u8]>,
    /// The slot used last: reads with one node down ask for the same pattern again and again.
    latest: usize,
    misses: u64,
}

impl DecodeCache {
    pub(crate) fn new(kernel: Kernel, k: usize, m: usize) -> Self {
        let slot_words = k * m * kernel.factor_words();
        let affordable = TABLE_BYTES_MAX / (8 * slot_words).max(1);
        let groups = (affordable.clamp(WAYS, SLOTS_MAX) / WAYS + 1).next_power_of_two() / 2;
        let slots = groups * WAYS;
        Self {
            groups,
            patterns: vec![Pattern::default(); slots].into(),
            oldest: vec![0; groups].into(),
            tables: vec![0; slots * slot_words].into(),
            slot_words,
            scratch: Scratch::new(k, m),
            factors: vec![0; k * m].into(),
            latest: 0,
            misses: 0,
        }
    }

    /// Matrices derived so far.
    pub(crate) fn misses(&self) -> u64 {
        self.misses
    }

    /// The decode matrix of `pattern`, which wants at least one fragment, `count` factors in the
    /// kernel's form.
    #[inline(always)]
    pub(crate) fn table(
        &mut self,
        pattern: &Pattern,
        count: usize,
        generator: &Generator,
        kernel: Kernel,
    ) -> &[u64] {
        if !self.patterns[self.latest].is(pattern) {
            self.latest = self.find_or_derive(pattern, count, generator, kernel);
        }
        let start = self.latest * self.slot_words;
        &self.tables[start..start + count * kernel.factor_words()]
    }

    #[cold]
    fn find_or_derive(
        &mut self,
        pattern: &Pattern,
        count: usize,
        generator: &Generator,
        kernel: Kernel,
    ) -> usize {
        let group = pattern.hash() & (self.groups - 1);
        let slots = group * WAYS..(group + 1) * WAYS;
        if let Some(slot) = slots.clone().find(|slot| self.patterns[*slot] == *pattern) {
            return slot;
        }
        let slot = slots.start + self.oldest[group] as usize;
        self.oldest[group] = (self.oldest[group] + 1) % WAYS as u8;
        self.misses += 1;
        let factors = &mut self.factors[..count];
        generator.decode(&pattern.present, &pattern.wanted, &mut self.scratch, factors);
        let start = slot * self.slot_words;
        let table = &mut self.tables[start..start + count * kernel.factor_words()];
        kernel.write_factors(factors, table);
        self.patterns[slot] = *pattern;
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(present: &[usize], wanted: &[usize]) -> Pattern {
        let mut pattern = Pattern::default();
        present.iter().for_each(|index| assert!(pattern.present.insert(*index)));
        wanted.iter().for_each(|index| assert!(pattern.wanted.insert(*index)));
        pattern
    }

    #[test]
    fn a_pattern_is_derived_once_while_it_is_kept() {
        let generator = Generator::new(3, 2);
        let mut cache = DecodeCache::new(Kernel::Scalar, 3, 2);
        let (one, other) = (pattern(&[0, 1, 3], &[2]), pattern(&[1, 2, 4], &[0, 3]));
        for _ in 0..3 {
            assert_eq!(cache.table(&one, 3, &generator, Kernel::Scalar).len(), 3);
            assert_eq!(cache.table(&other, 6, &generator, Kernel::Scalar).len(), 6);
        }
        assert_eq!(cache.misses(), 2);
    }

    #[test]
    fn the_fragments_asked_for_are_part_of_the_pattern() {
        let generator = Generator::new(3, 2);
        let mut cache = DecodeCache::new(Kernel::Scalar, 3, 2);
        let mut table = |wanted: &[usize]| {
            let pattern = pattern(&[2, 3, 4], wanted);
            cache.table(&pattern, 3 * wanted.len(), &generator, Kernel::Scalar).to_vec()
        };
        let (both, second, first) = (table(&[0, 1]), table(&[1]), table(&[0]));
        assert_eq!([first, second].concat(), both);
    }

    #[test]
    fn a_replaced_pattern_is_derived_again_and_right() {
        let (k, m) = (8, 5);
        let generator = Generator::new(k, m);
        let mut cache = DecodeCache::new(Kernel::Scalar, k, m);
        let patterns: Vec<Pattern> = (0u32..1 << (k + m))
            .filter(|bits| bits.count_ones() as usize == k)
            .map(|bits| {
                let all = 0..k + m;
                let present: Vec<_> = all.clone().filter(|i| bits >> i & 1 == 1).collect();
                let wanted: Vec<_> = all.filter(|i| bits >> i & 1 == 0).collect();
                pattern(&present, &wanted)
            })
            .collect();
        let fresh = |pattern: &Pattern| {
            let mut cache = DecodeCache::new(Kernel::Scalar, k, m);
            cache.table(pattern, k * m, &generator, Kernel::Scalar).to_vec()
        };
        for pattern in &patterns {
            cache.table(pattern, k * m, &generator, Kernel::Scalar);
        }
        assert_eq!(cache.misses(), patterns.len() as u64);
        for pattern in patterns.iter().step_by(17) {
            let table = cache.table(pattern, k * m, &generator, Kernel::Scalar);
            assert_eq!(table, fresh(pattern));
        }
    }

    #[test]
    fn memory_is_bounded_for_the_widest_codes() {
        for (k, m) in [(1, 0), (1, 1), (16, 16), (128, 127), (254, 1)] {
            let cache = DecodeCache::new(Kernel::Scalar, k, m);
            let slots = cache.patterns.len();
            assert!((WAYS..=SLOTS_MAX).contains(&slots) && slots.is_multiple_of(WAYS));
            let bytes = 8 * cache.tables.len();
            assert!(bytes <= TABLE_BYTES_MAX || slots == WAYS, "{k} {m}: {bytes}");
        }
    }
}
