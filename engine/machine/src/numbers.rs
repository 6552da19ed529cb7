//! Numbers that are found by a hash, in a table that grows by small pieces.
//!
//! Purpose: indexes over entries that lie elsewhere, of which they hold the 32-bit numbers. One large
//! hash table is copied whole when it grows, and many small ones of one size all grow at about the same
//! time. Here one more small table is added as soon as those there are full on average, and takes its
//! share of one of them (linear hashing: Litwin, "Linear hashing: a new tool for file and table
//! addressing", VLDB 1980). So what an insertion moves, and the memory for each number, are the same
//! however many there are.
//!
//! Invariant: a number is in the table that [`Numbers::place`] says for its hash. What would break it:
//! a hash that changes while its number is in here.

use hashbrown::HashTable;

/// Numbers in a table on average. One that is to be split next has up to twice as many.
const EACH: usize = 384;
/// Bits of a hash below this choose the place within a table.
const PLACE_SHIFT: u32 = 24;

/// See the module.
#[derive(Debug)]
pub struct Numbers {
    tables: Vec<HashTable<u32>>,
    len: usize,
}

impl Default for Numbers {
    fn default() -> Numbers {
        Numbers { tables: vec![HashTable::new()], len: 0 }
    }
}

/// The table of a hash among so many: by as many bits as there are tables for, or one bit less.
fn place_among(tables: usize, hash: u64) -> usize {
    let mask = tables.next_power_of_two() - 1;
    let place = (hash >> PLACE_SHIFT) as usize & mask;
    if place < tables { place } else { place & (mask >> 1) }
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

    fn place(&self, hash: u64) -> usize {
        place_among(self.tables.len(), hash)
    }

    /// The number with this hash of which `is_it` is true.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.tables[self.place(hash)].find(hash, |number| is_it(*number)).copied()
    }

    /// Adds a number that is not here. `hash_of` tells the hash of any number that is.
    pub fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        if self.len >= self.tables.len() * EACH {
            self.split(&hash_of);
        }
        let place = self.place(hash);
        let table = &mut self.tables[place];
        // What was removed leaves marks that take room: only a table that is really full grows.
        if table.len() == table.capacity() {
            let fuller = table.len() + table.len() / 8 + 4;
            let old = std::mem::replace(table, HashTable::with_capacity(fuller));
            old.into_iter().for_each(|number| add(table, hash_of(number), number));
        }
        add(table, hash, number);
        self.len += 1;
    }

    /// Another table, with its share of the one that comes before it by one bit less.
    fn split(&mut self, hash_of: &impl Fn(u32) -> u64) {
        let new = self.tables.len();
        let from = new - (new + 1).next_power_of_two() / 2;
        let old = std::mem::take(&mut self.tables[from]);
        let hashed = old.into_iter().map(|number| (hash_of(number), number));
        let (goes, stays): (Vec<_>, Vec<_>) =
            hashed.partition(|(hash, _)| place_among(new + 1, *hash) == new);
        let table = |numbers: Vec<(u64, u32)>| {
            let mut table = HashTable::with_capacity(numbers.len());
            numbers.into_iter().for_each(|(hash, number)| add(&mut table, hash, number));
            table
        };
        self.tables[from] = table(stays);
        self.tables.push(table(goes));
    }

    /// Takes the number with this hash out of which `is_it` is true.
    pub fn remove(&mut self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let place = self.place(hash);
        let found = self.tables[place].find_entry(hash, |number| is_it(*number)).ok()?;
        self.len -= 1;
        Some(found.remove().0)
    }

    /// All of them, in an order that follows from their hashes and what was done to them.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.tables.iter().flatten().copied()
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        let held: usize = self.tables.iter().map(HashTable::allocation_size).sum();
        held + self.tables.capacity() * size_of::<HashTable<u32>>()
    }
}

fn add(table: &mut HashTable<u32>, hash: u64, number: u32) {
    table.insert_unique(hash, number, |_| unreachable!("room was made before"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origins::ShortOp;
    use std::cell::Cell;
    use std::collections::BTreeSet;

    fn hash_of(number: u32) -> u64 {
        ShortOp::of_counter(u64::from(number)).hash()
    }

    #[test]
    fn numbers_are_found_until_they_are_removed() {
        let (mut numbers, mut model) = (Numbers::default(), BTreeSet::new());
        let mut state = 7u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (state >> 33) as u32 & 0x7fff;
            let hash = hash_of(number);
            let is_here = model.contains(&number);
            assert_eq!(numbers.find(hash, |it| it == number), is_here.then_some(number));
            match (is_here, state >> 61 < 4) {
                (false, true) => {
                    numbers.insert(hash, number, hash_of);
                    model.insert(number);
                }
                (true, false) => {
                    assert_eq!(numbers.remove(hash, |it| it == number), Some(number));
                    model.remove(&number);
                }
                _ => {}
            }
            assert_eq!(numbers.len(), model.len());
        }
        let mut all: Vec<u32> = numbers.iter().collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(model));
    }

    /// What one insertion moves, and the memory for each, are the same at ten times as many.
    #[test]
    fn growth_moves_a_bounded_number_at_a_time_however_many_there_are() {
        let mut numbers = Numbers::default();
        let (moved, mut most, mut all) = (Cell::new(0), 0, 0);
        for number in 0..1_000_000 {
            moved.set(0);
            numbers.insert(hash_of(number), number, |it| {
                moved.set(moved.get() + 1);
                hash_of(it)
            });
            (most, all) = (most.max(moved.get()), all + moved.get());
            if [100_000, 300_000, 700_000, 1_000_000].contains(&(number + 1)) {
                let each = numbers.memory_bytes() as f64 / f64::from(number + 1);
                assert!(each <= 11.0, "{each} bytes for each of {number}");
            }
        }
        assert!(most <= 4 * EACH, "{most} moved at once");
        assert!(all <= 4 * 1_000_000, "{all} moved in all");
    }

    #[test]
    fn what_comes_and_goes_makes_no_table_grow() {
        let mut numbers = Numbers::default();
        (0..100_000).for_each(|number| numbers.insert(hash_of(number), number, hash_of));
        let moved = Cell::new(0);
        for number in 100_000..1_000_000 {
            let oldest = number - 100_000;
            assert_eq!(numbers.remove(hash_of(oldest), |it| it == oldest), Some(oldest));
            numbers.insert(hash_of(number), number, |it| {
                moved.set(moved.get() + 1);
                hash_of(it)
            });
        }
        let each = numbers.memory_bytes() as f64 / 100_000.0;
        assert!(each <= 15.0, "{each} bytes for each");
        assert!(moved.get() <= 8 * 900_000, "{} moved", moved.get());
    }
}
