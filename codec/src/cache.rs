//! Decode matrices by loss pattern. All memory is taken when the cache is made: a lookup that
//! misses derives the matrix into the slot of an older pattern.
//!
//! Invariant: a slot's table is the decode matrix of the slot's pattern for the codec that owns the
//! cache. A pattern lives in one of the `WAYS` slots its hash names, so the cost of a miss and the
//! memory held are bounded whatever patterns come.

use crate::arch::{Combiner, Form, Kernel};
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
    /// Whether all lost data fragments are wanted, nothing else, and the first parity is there: the
    /// last of them is then the plain sum of the data present, that parity and the others rebuilt.
    fn is_chain(&self, k: usize, wanted_count: usize) -> bool {
        let lost = k - self.present.rank(k);
        self.present.contains(k) && self.wanted.rank(k) == lost && wanted_count == lost
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

/// What rebuilds any number of fragments of a code.
#[derive(Debug)]
pub(crate) struct Rebuilders {
    kernel: Kernel,
    /// At `w - 1`: rebuilds w fragments.
    any: Box<[Combiner]>,
    /// At `w - 1`: rebuilds w fragments of a chain.
    chains: Box<[Combiner]>,
}

impl Rebuilders {
    pub(crate) fn new(kernel: Kernel, k: usize, m: usize) -> Self {
        let combiner = |rows, form| Combiner::new(kernel, k, rows, form);
        Self {
            kernel,
            any: (1..=m).map(|rows| combiner(rows, Form::Plain)).collect(),
            chains: (1..=m.min(k)).map(|rows| combiner(rows, Form::Chain)).collect(),
        }
    }

    fn of(&self, wanted: usize, is_chain: bool) -> Combiner {
        if is_chain { self.chains[wanted - 1] } else { self.any[wanted - 1] }
    }
}

/// The pattern used last, as the lists a call gives if it gives them in ascending order: reads with
/// one node down ask for the same again and again.
#[derive(Clone, Debug)]
struct Latest {
    present: Box<[usize]>,
    wanted: Box<[usize]>,
    /// How many are wanted; 0 if there was no call yet.
    wanted_count: usize,
    /// Begins with its factors.
    factors: Box<[u64]>,
    /// What computes it; none if there was no call yet.
    combiner: Option<Combiner>,
}

/// What computes a pattern.
pub(crate) struct Decoder<'a> {
    pub(crate) combiner: &'a Combiner,
    /// In the kernel's form; more may follow.
    pub(crate) factors: &'a [u64],
    /// The fragments it is computed from, ascending.
    pub(crate) present: &'a [usize],
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
    latest: Latest,
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
            latest: Latest {
                // No call names such an index.
                present: vec![usize::MAX; k].into(),
                wanted: vec![usize::MAX; m].into(),
                wanted_count: 0,
                factors: vec![0; slot_words].into(),
                combiner: None,
            },
            misses: 0,
        }
    }

    /// Matrices derived so far.
    pub(crate) fn misses(&self) -> u64 {
        self.misses
    }

    /// What computes the latest pattern, if a call gives so many fragments and wants what that one
    /// wanted, in ascending order.
    #[inline(always)]
    pub(crate) fn repeated(&self, present_count: usize, wanted: &[usize]) -> Option<Decoder<'_>> {
        let Latest { present, wanted: before, wanted_count, .. } = &self.latest;
        // Bound by bound and item by item: shorter than a call that compares memory.
        let repeats = present_count == present.len()
            && wanted.len() == *wanted_count
            && match (wanted, &before[..]) {
                // Mostly one or two are lost; a loop would take longer than all of its turns.
                ([index], [one, ..]) => index == one,
                ([index, next], [one, two, ..]) => (index ^ one) | (next ^ two) == 0,
                _ => wanted.iter().zip(before).all(|(index, before)| index == before),
            };
        if repeats { self.latest() } else { None }
    }

    /// What computes the latest pattern; none if there was no call yet.
    #[inline(always)]
    pub(crate) fn latest(&self) -> Option<Decoder<'_>> {
        let Latest { present, combiner, factors, .. } = &self.latest;
        combiner.as_ref().map(|combiner| Decoder { combiner, factors, present })
    }

    /// Makes `pattern`, which wants `count` fragments, at least one, the latest.
    pub(crate) fn select(
        &mut self,
        pattern: &Pattern,
        count: usize,
        generator: &Generator,
        rebuilders: &Rebuilders,
    ) {
        let kernel = rebuilders.kernel;
        let slot = self.find_or_derive(pattern, count * generator.k(), generator, kernel);
        let latest = &mut self.latest;
        let words = count * generator.k() * kernel.factor_words();
        let start = slot * self.slot_words;
        latest.factors[..words].copy_from_slice(&self.tables[start..start + words]);
        let is_chain = pattern.is_chain(generator.k(), count);
        latest.combiner = Some(rebuilders.of(count, is_chain));
        latest.wanted_count = count;
        let fill = |list: &mut [usize], set: &FragmentSet| {
            list.iter_mut().zip(set.iter()).for_each(|(place, index)| *place = index);
        };
        fill(&mut latest.present, &pattern.present);
        fill(&mut latest.wanted, &pattern.wanted);
    }

    /// The slot that holds the pattern's table.
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

    impl DecodeCache {
        /// The factors of a pattern that wants `count` fragments, and whether it is a chain.
        fn table(
            &mut self,
            pattern: &Pattern,
            count: usize,
            generator: &Generator,
        ) -> (Vec<u64>, bool) {
            let m = generator.rows().len() / generator.k();
            let rebuilders = Rebuilders::new(Kernel::Scalar, generator.k(), m);
            self.select(pattern, count, generator, &rebuilders);
            let decoder = self.latest().expect("just selected");
            let factors = &decoder.factors[..count * generator.k()];
            (factors.to_vec(), decoder.combiner.form() == Form::Chain)
        }
    }

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
            assert_eq!(cache.table(&one, 1, &generator).0.len(), 3);
            assert_eq!(cache.table(&other, 2, &generator).0.len(), 6);
        }
        assert_eq!(cache.misses(), 2);
    }

    #[test]
    fn the_fragments_asked_for_are_part_of_the_pattern() {
        let generator = Generator::new(3, 2);
        let mut cache = DecodeCache::new(Kernel::Scalar, 3, 2);
        let mut table = |wanted: &[usize]| {
            let pattern = pattern(&[2, 3, 4], wanted);
            cache.table(&pattern, wanted.len(), &generator).0
        };
        let (both, second, first) = (table(&[0, 1]), table(&[1]), table(&[0]));
        assert_eq!([first, second].concat(), both);
    }

    #[test]
    fn only_the_same_list_in_order_repeats_the_latest_pattern() {
        let generator = Generator::new(3, 2);
        let mut cache = DecodeCache::new(Kernel::Scalar, 3, 2);
        let repeats = |cache: &DecodeCache, count: usize, wanted: &[usize]| {
            cache.repeated(count, wanted).map(|decoder| decoder.present.to_vec())
        };
        assert_eq!(repeats(&cache, 3, &[]), None, "nothing was asked yet");
        cache.table(&pattern(&[1, 2, 3], &[0, 4]), 2, &generator);
        assert_eq!(repeats(&cache, 3, &[0, 4]), Some(vec![1, 2, 3]));
        assert_eq!(repeats(&cache, 2, &[0, 4]), None);
        assert_eq!(repeats(&cache, 3, &[0]), None);
        assert_eq!(repeats(&cache, 3, &[4, 0]), None);
        assert_eq!(repeats(&cache, 3, &[0, 3]), None);
        cache.table(&pattern(&[1, 2, 3], &[4]), 1, &generator);
        assert_eq!(repeats(&cache, 3, &[4]), Some(vec![1, 2, 3]));
        assert_eq!(repeats(&cache, 3, &[0, 4]), None);
    }

    #[test]
    fn only_all_lost_data_with_the_first_parity_make_a_chain() {
        let generator = Generator::new(3, 2);
        let mut cache = DecodeCache::new(Kernel::Scalar, 3, 2);
        let mut is_chain = |present: &[usize], wanted: &[usize]| {
            let pattern = pattern(present, wanted);
            cache.table(&pattern, wanted.len(), &generator).1
        };
        assert!(is_chain(&[2, 3, 4], &[0, 1]));
        assert!(is_chain(&[0, 2, 3], &[1]));
        assert!(!is_chain(&[2, 3, 4], &[1]), "fragment 0 is not rebuilt, so it cannot be summed");
        assert!(!is_chain(&[0, 2, 4], &[1]), "without the first parity");
        assert!(!is_chain(&[0, 2, 3], &[1, 4]), "a parity comes last");
        assert!(!is_chain(&[0, 2, 3], &[4]));
        assert!(!is_chain(&[0, 1, 2], &[3]));
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
            cache.table(pattern, m, &generator).0
        };
        for pattern in &patterns {
            cache.table(pattern, m, &generator);
        }
        assert_eq!(cache.misses(), patterns.len() as u64);
        for pattern in patterns.iter().step_by(17) {
            let table = cache.table(pattern, m, &generator);
            assert_eq!(table.0, fresh(pattern));
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
