//! Where fragments lie, by operation: 32 bytes each, and what finding them costs.
//!
//! Purpose: the index has one entry for every live value, so its size bounds how many keys a node can
//! hold. Entries lie in chunks that never move, and the hash tables over them, of which there are many
//! small ones, hold only 32-bit numbers: no growth copies more than a small part of it at a time.
//!
//! Invariant: an operation has one entry at most, and its number stays until it is removed.

use hashbrown::HashTable;
use racos_machine::OpId;
use racos_storage::Place;
use rustc_hash::FxBuildHasher;
use std::hash::BuildHasher;

const CHUNK_ENTRIES: usize = 1024;
const SHARDS: usize = 256;

/// One fragment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Entry {
    pub op: OpId,
    /// No segment has number 0: the log has not said yet where the record lies.
    pub place: Place,
    pub crc: u32,
}

impl Entry {
    /// Where it lies, once that is known.
    pub fn placed(&self) -> Option<Place> {
        (self.place.segment != 0).then_some(self.place)
    }
}

pub(crate) struct Table {
    shards: Box<[HashTable<u32>]>,
    chunks: Vec<Vec<Entry>>,
    free: Vec<u32>,
    allotted: u32,
}

impl Default for Table {
    fn default() -> Table {
        Table {
            shards: (0..SHARDS).map(|_| HashTable::new()).collect(),
            chunks: Vec::new(),
            free: Vec::new(),
            allotted: 0,
        }
    }
}

fn hash_of(op: OpId) -> u64 {
    FxBuildHasher.hash_one(op.0)
}

fn shard_of(hash: u64) -> usize {
    // Neither the highest nor the lowest bits: those choose the place within the shard.
    (hash >> 40) as usize % SHARDS
}

fn at(chunks: &[Vec<Entry>], number: u32) -> &Entry {
    &chunks[number as usize / CHUNK_ENTRIES][number as usize % CHUNK_ENTRIES]
}

impl Table {
    pub fn len(&self) -> usize {
        self.allotted as usize - self.free.len()
    }

    fn find(&self, op: OpId) -> Option<u32> {
        let hash = hash_of(op);
        self.shards[shard_of(hash)].find(hash, |&number| at(&self.chunks, number).op == op).copied()
    }

    pub fn get(&self, op: OpId) -> Option<&Entry> {
        self.find(op).map(|number| at(&self.chunks, number))
    }

    pub fn get_mut(&mut self, op: OpId) -> Option<&mut Entry> {
        let number = self.find(op)? as usize;
        Some(&mut self.chunks[number / CHUNK_ENTRIES][number % CHUNK_ENTRIES])
    }

    /// Puts an entry in, in the place of the operation's former one, which it returns.
    pub fn insert(&mut self, entry: Entry) -> Option<Entry> {
        if let Some(old) = self.get_mut(entry.op) {
            return Some(std::mem::replace(old, entry));
        }
        let number = self.free.pop().unwrap_or_else(|| {
            let number = self.allotted;
            self.allotted = number.checked_add(1).expect("fewer than 2^32 fragments");
            if (number as usize).is_multiple_of(CHUNK_ENTRIES) {
                self.chunks.push(Vec::with_capacity(CHUNK_ENTRIES));
            }
            self.chunks.last_mut().expect("a chunk was ensured").push(Entry::default());
            number
        });
        self.chunks[number as usize / CHUNK_ENTRIES][number as usize % CHUNK_ENTRIES] = entry;
        let (hash, chunks) = (hash_of(entry.op), &self.chunks);
        let rehash = |&number: &u32| hash_of(at(chunks, number).op);
        self.shards[shard_of(hash)].insert_unique(hash, number, rehash);
        None
    }

    pub fn remove(&mut self, op: OpId) -> Option<Entry> {
        let (hash, chunks) = (hash_of(op), &self.chunks);
        let same = |&number: &u32| at(chunks, number).op == op;
        let found = self.shards[shard_of(hash)].find_entry(hash, same).ok()?;
        let (number, _) = found.remove();
        self.free.push(number);
        let place = &mut self.chunks[number as usize / CHUNK_ENTRIES];
        Some(std::mem::take(&mut place[number as usize % CHUNK_ENTRIES]))
    }

    /// Every entry, in the order of the shards.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.shards.iter().flatten().map(|&number| at(&self.chunks, number))
    }

    /// Bytes of memory that entries and what finds them take.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        let shards: usize = self.shards.iter().map(HashTable::allocation_size).sum();
        let free = self.free.capacity() * size_of::<u32>();
        shards + free + self.chunks.len() * CHUNK_ENTRIES * size_of::<Entry>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn op(counter: u64) -> OpId {
        OpId::new((counter % 5) as u16, 1, 3, counter)
    }

    fn entry(counter: u64, offset: u32) -> Entry {
        Entry { op: op(counter), place: Place { segment: 1, offset, len: 7 }, crc: offset ^ 1 }
    }

    #[test]
    fn it_holds_what_a_map_would() {
        let (mut table, mut model) = (Table::default(), BTreeMap::new());
        let mut state = 7u64;
        for step in 0..40_000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let counter = state >> 33 & 0xfff;
            match state >> 60 & 3 {
                0 => {
                    let removed = table.remove(op(counter)).map(|entry| entry.place.offset);
                    assert_eq!(removed, model.remove(&counter));
                }
                _ => {
                    let old = table.insert(entry(counter, step)).map(|entry| entry.place.offset);
                    assert_eq!(old, model.insert(counter, step));
                }
            }
        }
        assert_eq!(table.len(), model.len());
        for counter in 0..0x1000 {
            let found = table.get(op(counter)).map(|entry| entry.place.offset);
            assert_eq!(found, model.get(&counter).copied());
        }
        let mut all: Vec<u32> = table.iter().map(|entry| entry.place.offset).collect();
        all.sort_unstable();
        let mut expected: Vec<u32> = model.into_values().collect();
        expected.sort_unstable();
        assert_eq!(all, expected);
    }

    #[test]
    fn an_entry_costs_at_most_44_bytes_however_many_there_are() {
        let mut table = Table::default();
        for count in [300_000u64, 500_000, 700_000] {
            for counter in table.len() as u64..count {
                table.insert(entry(counter, 1));
            }
            let each = table.memory_bytes() as f64 / count as f64;
            assert!(each <= 44.0, "{each} bytes for each of {count}");
        }
    }
}
