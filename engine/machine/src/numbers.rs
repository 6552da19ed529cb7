//! Numbers that are found by a hash, in a table that grows by small pieces.
//!
//! Purpose: indexes over entries that lie elsewhere, of which they hold the 32-bit numbers. One large
//! hash table is copied whole when it grows, and many small ones of one size all grow at about the same
//! time. Here one more small table is added as soon as those there are full on average, and takes its
//! share of one of them (linear hashing: Litwin, "Linear hashing: a new tool for file and table
//! addressing", VLDB 1980). So what an insertion moves, and the memory for each number, are the same
//! however many there are.
//!
//! Beside each number stand 32 bits of its hash. They say where it belongs, so that nothing is read of the
//! entries themselves when a table grows or is divided, and next to nothing to see that one is not here:
//! with many entries each such look waits for memory.
//!
//! Invariant: a number is in the table that [`place_among`] says for its hash, there at its home or
//! behind it with no gap in between, and those of a table are in order of their hashes. What would break
//! it: a hash that changes while its number is in here.

/// Numbers in a table on average. One that is to be split next has up to twice as many.
const EACH: usize = 384;
/// Bits of a hash below this tell neighbours apart, which are kept side by side.
const PLACE_SHIFT: u32 = 24;
const NEIGHBOURS: u64 = 7;
/// Where those bits go: below what chooses a place in a table, above what chooses among 2^18 tables.
const NEIGHBOUR_SHIFT: u32 = 18;
/// Slots are taken so many at a time behind the last home of a table.
const BEHIND: usize = 16;

/// The part of a hash that is kept, with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    hash: u32,
    number: u32,
}

/// No number is the largest.
const EMPTY: Slot = Slot { hash: u32::MAX, number: u32::MAX };

/// The part of a hash that is kept.
fn kept_of(hash: u64) -> u32 {
    (hash >> PLACE_SHIFT) as u32 ^ ((hash & NEIGHBOURS) as u32) << NEIGHBOUR_SHIFT
}

/// The table of a hash among so many: by as many bits as there are tables for, or one bit less.
fn place_among(tables: usize, hash: u32) -> usize {
    let mask = tables.next_power_of_two() - 1;
    let place = hash as usize & mask;
    if place < tables { place } else { place & (mask >> 1) }
}

/// One table: slots in order of their hashes, each at its home or behind it without a gap.
#[derive(Debug, Default)]
struct Small {
    slots: Vec<Slot>,
    homes: u32,
    len: u32,
}

impl Small {
    /// Of numbers in order of their hashes, with room for some more.
    fn of(sorted: impl Iterator<Item = Slot>, len: usize) -> Small {
        // Three quarters full, until it is seven eighths full.
        let homes = (len + len / 3).max(4);
        let mut small = Small {
            slots: Vec::with_capacity(homes + BEHIND),
            homes: homes as u32,
            len: len as u32,
        };
        for slot in sorted {
            let home = small.home(slot.hash);
            let at = home.max(small.slots.len());
            if at == small.slots.capacity() {
                small.slots.reserve_exact(BEHIND);
            }
            small.slots.resize(at, EMPTY);
            small.slots.push(slot);
        }
        // Room for all homes, however far behind them the last one came to lie.
        let end = small.slots.len().max(homes + BEHIND);
        small.slots.resize(end, EMPTY);
        small
    }

    /// Higher hashes have higher homes, or the same.
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * u64::from(self.homes)) >> 32) as usize
    }

    fn is_full(&self) -> bool {
        self.len * 8 >= self.homes * 7
    }

    /// Where the first of those with this hash is, or would be.
    fn first(&self, hash: u32) -> usize {
        let home = self.home(hash);
        let before = |slot: &&Slot| **slot != EMPTY && slot.hash < hash;
        home + self.slots[home.min(self.slots.len())..].iter().take_while(before).count()
    }

    fn find(&self, hash: u32, is_it: impl FnMut(u32) -> bool) -> Option<usize> {
        self.find_from(self.first(hash), hash, is_it)
    }

    fn find_from(&self, first: usize, hash: u32, is_it: impl FnMut(u32) -> bool) -> Option<usize> {
        let same = |slot: &&Slot| slot.hash == hash && **slot != EMPTY;
        let equal = self.slots.get(first..)?.iter().take_while(same);
        equal.map(|slot| slot.number).position(is_it).map(|at| first + at)
    }

    /// How many were moved for it. `at`: what [`Small::first`] says.
    fn insert(&mut self, slot: Slot, mut at: usize) -> usize {
        let mut moved = 0;
        if self.is_full() {
            moved += self.len as usize;
            *self = Small::of(self.iter(), self.len as usize);
            at = self.first(slot.hash);
        }
        let gap = self.slots[at..].iter().position(|slot| *slot == EMPTY);
        let gap = at + gap.unwrap_or(self.slots.len() - at);
        if gap == self.slots.len() {
            self.slots.reserve_exact(BEHIND);
            self.slots.resize(gap + BEHIND, EMPTY);
        }
        self.slots.copy_within(at..gap, at + 1);
        self.slots[at] = slot;
        self.len += 1;
        moved + gap - at
    }

    fn remove_at(&mut self, at: usize) -> u32 {
        let number = self.slots[at].number;
        let behind = self.slots[at + 1..].iter().zip(at + 1..);
        let stays = |(slot, place): (&Slot, usize)| *slot == EMPTY || self.home(slot.hash) == place;
        let end = behind.map(stays).position(|stays| stays);
        let end = end.map_or(self.slots.len(), |end| at + 1 + end);
        self.slots.copy_within(at + 1..end, at);
        self.slots[end - 1] = EMPTY;
        self.len -= 1;
        number
    }

    fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.slots.iter().copied().filter(|slot| *slot != EMPTY)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Numbers {
    tables: Vec<Small>,
    len: usize,
    /// Numbers that the last insertion moved.
    #[cfg(test)]
    moved: usize,
}

impl Default for Numbers {
    fn default() -> Numbers {
        Numbers {
            tables: vec![Small::default()],
            len: 0,
            #[cfg(test)]
            moved: 0,
        }
    }
}

impl Numbers {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number with this hash of which `is_it` is true.
    pub fn find(&self, hash: u64, is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let hash = kept_of(hash);
        let table = &self.tables[place_among(self.tables.len(), hash)];
        table.find(hash, is_it).map(|at| table.slots[at].number)
    }

    /// Adds a number that is not here.
    ///
    /// # Panics
    /// If it is the largest that there is.
    pub fn insert(&mut self, hash: u64, number: u32) {
        self.find_or_insert(hash, number, |_| false);
    }

    /// The number with this hash of which `is_it` is true; or adds the one given, of which it is.
    ///
    /// # Panics
    /// If that is to be added and is the largest that there is.
    pub fn find_or_insert(
        &mut self,
        hash: u64,
        number: u32,
        is_it: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let split = if self.len >= self.tables.len() * EACH { self.split() } else { 0 };
        let hash = kept_of(hash);
        let place = place_among(self.tables.len(), hash);
        let table = &mut self.tables[place];
        let first = table.first(hash);
        if let Some(at) = table.find_from(first, hash, is_it) {
            return Some(table.slots[at].number);
        }
        assert!(number != u32::MAX, "a number is below the largest");
        let moved = table.insert(Slot { hash, number }, first);
        self.len += 1;
        self.note_moved(split + moved);
        None
    }

    #[cfg(test)]
    fn note_moved(&mut self, count: usize) {
        self.moved = count;
    }

    #[cfg(not(test))]
    fn note_moved(&mut self, _: usize) {}

    /// Another table, with its share of the one that comes before it by one bit less. How many were
    /// moved for it.
    fn split(&mut self) -> usize {
        let new = self.tables.len();
        let from = new - (new + 1).next_power_of_two() / 2;
        let old = std::mem::take(&mut self.tables[from]);
        let goes = |slot: &Slot| place_among(new + 1, slot.hash) == new;
        let count = old.iter().filter(goes).count();
        let len = old.len as usize;
        self.tables[from] = Small::of(old.iter().filter(|slot| !goes(slot)), len - count);
        self.tables.push(Small::of(old.iter().filter(goes), count));
        len
    }

    /// Takes the number with this hash out of which `is_it` is true.
    pub fn remove(&mut self, hash: u64, is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let hash = kept_of(hash);
        let place = place_among(self.tables.len(), hash);
        let at = self.tables[place].find(hash, is_it)?;
        self.len -= 1;
        Some(self.tables[place].remove_at(at))
    }

    /// All of them, in an order that follows from their hashes and what was done to them.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.tables.iter().flat_map(Small::iter).map(|slot| slot.number)
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        let slots: usize = self.tables.iter().map(|table| table.slots.capacity()).sum();
        slots * size_of::<Slot>() + self.tables.capacity() * size_of::<Small>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origins::ShortOp;
    use std::collections::BTreeSet;

    fn hash_of(number: u32) -> u64 {
        ShortOp::of_counter(u64::from(number)).hash()
    }

    /// Every one at its home or behind it without a gap, in order, and as many as are counted.
    fn check(numbers: &Numbers) {
        let mut len = 0;
        for (place, table) in numbers.tables.iter().enumerate() {
            assert!(table.iter().is_sorted_by_key(|slot| slot.hash));
            assert_eq!(table.iter().count(), table.len as usize);
            assert!(table.len == 0 || table.slots.len() >= table.homes as usize);
            for (at, slot) in table.slots.iter().enumerate().filter(|(_, slot)| **slot != EMPTY) {
                assert_eq!(place_among(numbers.tables.len(), slot.hash), place);
                let home = table.home(slot.hash);
                assert!(home <= at && table.slots[home..at].iter().all(|slot| *slot != EMPTY));
            }
            len += table.len as usize;
        }
        assert_eq!(numbers.len(), len);
    }

    #[test]
    fn numbers_are_found_until_they_are_removed() {
        let (mut numbers, mut model) = (Numbers::default(), BTreeSet::new());
        let mut state = 7u64;
        for step in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (state >> 33) as u32 & 0x7fff;
            let hash = hash_of(number);
            let is_here = model.contains(&number);
            assert_eq!(numbers.find(hash, |it| it == number), is_here.then_some(number));
            match (is_here, state >> 61 < 4) {
                (false, true) if step % 2 == 0 => {
                    numbers.insert(hash, number);
                    model.insert(number);
                }
                (_, true) => {
                    let found = numbers.find_or_insert(hash, number, |it| it == number);
                    assert_eq!(found, is_here.then_some(number));
                    model.insert(number);
                }
                (true, false) => {
                    assert_eq!(numbers.remove(hash, |it| it == number), Some(number));
                    model.remove(&number);
                }
                _ => {}
            }
            assert_eq!(numbers.len(), model.len());
            if step % 10_000 == 0 {
                check(&numbers);
            }
        }
        check(&numbers);
        let mut all: Vec<u32> = numbers.iter().collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(model));
    }

    /// Hashes that are all alike, and the highest there is, which lie behind the last home.
    #[test]
    fn numbers_with_one_hash_are_told_apart_wherever_it_lies() {
        for hash in [0, u64::MAX, 1 << 40] {
            let mut numbers = Numbers::default();
            (0..1000).for_each(|number| numbers.insert(hash, number));
            check(&numbers);
            for number in (0..1000).step_by(3) {
                assert_eq!(numbers.remove(hash, |it| it == number), Some(number));
            }
            check(&numbers);
            for number in 0..1000 {
                let found = numbers.find(hash, |it| it == number);
                assert_eq!(found, (number % 3 != 0).then_some(number));
            }
        }
    }

    /// What one insertion moves, and the memory for each, are the same at ten times as many.
    #[test]
    fn growth_moves_a_bounded_number_at_a_time_however_many_there_are() {
        let mut numbers = Numbers::default();
        let (mut most, mut all) = (0, 0);
        for number in 0..1_000_000 {
            numbers.insert(hash_of(number), number);
            (most, all) = (most.max(numbers.moved), all + numbers.moved);
            if [100_000, 300_000, 700_000, 1_000_000].contains(&(number + 1)) {
                let each = numbers.memory_bytes() as f64 / f64::from(number + 1);
                assert!(each <= 11.0, "{each} bytes for each of {number}");
            }
        }
        assert!(most <= 4 * EACH, "{most} moved at once");
        assert!(all <= 64 * 1_000_000, "{all} moved in all");
    }

    /// What is not here is found missing by the hash alone, but for a few.
    #[test]
    fn hardly_an_entry_is_looked_at_to_see_that_one_is_not_here() {
        let mut numbers = Numbers::default();
        (0..300_000).for_each(|number| numbers.insert(hash_of(number), number));
        let mut looked_at = 0;
        for number in 300_000..600_000 {
            let found = numbers.find(hash_of(number), |_| {
                looked_at += 1;
                false
            });
            assert_eq!(found, None);
        }
        assert!(looked_at <= 300_000 / 20, "{looked_at} entries looked at");
    }

    #[test]
    fn what_comes_and_goes_makes_no_table_grow() {
        let mut numbers = Numbers::default();
        (0..100_000).for_each(|number| numbers.insert(hash_of(number), number));
        let mut moved = 0;
        for number in 100_000..1_000_000 {
            let oldest = number - 100_000;
            assert_eq!(numbers.remove(hash_of(oldest), |it| it == oldest), Some(oldest));
            numbers.insert(hash_of(number), number);
            moved += numbers.moved;
        }
        check(&numbers);
        let each = numbers.memory_bytes() as f64 / 100_000.0;
        assert!(each <= 15.0, "{each} bytes for each");
        assert!(moved <= 64 * 900_000, "{moved} moved");
    }
}
