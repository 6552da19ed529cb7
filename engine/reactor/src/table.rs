//! Where fragments lie, by operation: 24 bytes each, and what finding them costs.
//!
//! Purpose: the index has one entry for every live value, so its size bounds how many keys a node can
//! hold. Entries lie in chunks that never move, and the hash tables over them, of which there are many
//! small ones, hold only 32-bit numbers: no growth copies more than a small part of it at a time.
//!
//! Invariant: an operation has one entry at most, and its number stays until it is removed.

use hashbrown::{HashTable, hash_table};
use racos_machine::{OpId, Origins, ShortOp};
use racos_storage::Place;
use rustc_hash::FxBuildHasher;
use std::hash::BuildHasher;

const CHUNK_ENTRIES: usize = 1024;
const SHARDS: usize = 2048;

/// One fragment.
#[derive(Debug, Clone, Copy)]
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

/// An [`Entry`] in 24 bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    op: ShortOp,
    place: Place,
    crc: u32,
}

pub(crate) struct Table {
    shards: Box<[HashTable<u32>]>,
    origins: Origins,
    chunks: Vec<Vec<Kept>>,
    free: Vec<u32>,
    allotted: u32,
}

impl Default for Table {
    fn default() -> Table {
        Table {
            shards: (0..SHARDS).map(|_| HashTable::new()).collect(),
            origins: Origins::default(),
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

fn at(chunks: &[Vec<Kept>], number: u32) -> &Kept {
    &chunks[number as usize / CHUNK_ENTRIES][number as usize % CHUNK_ENTRIES]
}

impl Table {
    pub fn len(&self) -> usize {
        self.allotted as usize - self.free.len()
    }

    fn find(&self, op: OpId) -> Option<u32> {
        let (hash, op) = (hash_of(op), self.origins.find(op)?);
        self.shards[shard_of(hash)].find(hash, |&number| at(&self.chunks, number).op == op).copied()
    }

    fn entry(&self, number: u32) -> Entry {
        let Kept { op, place, crc } = *at(&self.chunks, number);
        Entry { op: self.origins.name(op), place, crc }
    }

    fn slot(&mut self, number: u32) -> &mut Kept {
        &mut self.chunks[number as usize / CHUNK_ENTRIES][number as usize % CHUNK_ENTRIES]
    }

    pub fn contains(&self, op: OpId) -> bool {
        self.find(op).is_some()
    }

    pub fn get(&self, op: OpId) -> Option<Entry> {
        self.find(op).map(|number| self.entry(number))
    }

    /// Where an operation's fragment lies, to be told anew.
    pub fn place_mut(&mut self, op: OpId) -> Option<&mut Place> {
        let number = self.find(op)?;
        Some(&mut self.slot(number).place)
    }

    /// Puts an entry in, in the place of the operation's former one, which it returns.
    pub fn insert(&mut self, entry: Entry) -> Option<Entry> {
        match self.put(entry) {
            (_, true) => None,
            (number, false) => {
                let old = self.entry(number);
                let short = self.slot(number).op;
                *self.slot(number) = Kept { op: short, place: entry.place, crc: entry.crc };
                Some(old)
            }
        }
    }

    /// Puts an entry in unless the operation has one; whether it had none.
    pub fn insert_new(&mut self, entry: Entry) -> bool {
        self.put(entry).1
    }

    /// The number of an operation's entry, and whether it was put in now: found and put in one search.
    fn put(&mut self, entry: Entry) -> (u32, bool) {
        let Entry { op, place, crc } = entry;
        let (hash, kept) = (hash_of(op), Kept { op: self.origins.shorten(op), place, crc });
        let (chunks, origins) = (&self.chunks, &self.origins);
        let same = |&number: &u32| at(chunks, number).op == kept.op;
        let rehash = |&number: &u32| hash_of(origins.name(at(chunks, number).op));
        let vacant = match self.shards[shard_of(hash)].entry(hash, same, rehash) {
            hash_table::Entry::Occupied(found) => return (*found.get(), false),
            hash_table::Entry::Vacant(vacant) => vacant,
        };
        let number = self.free.pop().unwrap_or(self.allotted);
        vacant.insert(number);
        if number < self.allotted {
            *self.slot(number) = kept;
            return (number, true);
        }
        self.allotted = number.checked_add(1).expect("fewer than 2^32 fragments");
        if (number as usize).is_multiple_of(CHUNK_ENTRIES) {
            self.chunks.push(Vec::with_capacity(CHUNK_ENTRIES));
        }
        self.chunks.last_mut().expect("a chunk was ensured").push(kept);
        (number, true)
    }

    pub fn remove(&mut self, op: OpId) -> Option<Entry> {
        let (hash, short, chunks) = (hash_of(op), self.origins.find(op)?, &self.chunks);
        let same = |&number: &u32| at(chunks, number).op == short;
        let found = self.shards[shard_of(hash)].find_entry(hash, same).ok()?;
        let (number, _) = found.remove();
        self.free.push(number);
        let Kept { place, crc, .. } = std::mem::take(self.slot(number));
        Some(Entry { op, place, crc })
    }

    /// Every entry, in the order of the shards.
    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        self.shards.iter().flatten().map(|&number| self.entry(number))
    }

    /// Bytes of memory that entries and what finds them take.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        let shards: usize = self.shards.iter().map(HashTable::allocation_size).sum();
        let free = self.free.capacity() * size_of::<u32>();
        shards + free + self.chunks.len() * CHUNK_ENTRIES * size_of::<Kept>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use racos_machine::{Action, Content, Limits, Machine, Op, Value};
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
    fn an_entry_costs_at_most_36_bytes_however_many_there_are() {
        let mut table = Table::default();
        for count in [300_000u64, 500_000, 700_000] {
            for counter in table.len() as u64..count {
                table.insert(entry(counter, 1));
            }
            let each = table.memory_bytes() as f64 / count as f64;
            assert!(each <= 36.0, "{each} bytes for each of {count}");
        }
    }

    /// Every byte that the machine and this table hold for a key with one version, counted by the
    /// allocator: beyond the key itself, what the issue of a node's memory asks for.
    #[test]
    fn a_key_costs_at_most_150_bytes_beyond_itself_however_many_there_are() {
        const KEY_BYTES: usize = 16;
        for in_order in [true, false] {
            let (mut machine, mut table) = (Machine::new(Limits::default()), Table::default());
            let (mut held, mut done) = (0, 0);
            for count in [30_000u64, 100_000, 130_000, 240_000] {
                let info = allocation_counter::measure(|| {
                    for number in done..count {
                        let name = if in_order { number } else { scattered(number) };
                        put(&mut machine, number, format!("{name:016x}").as_bytes());
                        table.insert(entry(number, 1));
                    }
                });
                (held, done) = (held + info.bytes_current, count);
                assert_eq!(machine.keys_len(), count as usize);
                let each = held as f64 / count as f64 - KEY_BYTES as f64;
                assert!(each <= 150.0, "{each} bytes for each of {count}, in order: {in_order}");
            }
        }
    }

    /// Numbers in an order that no index likes, none of them twice.
    fn scattered(number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn put(machine: &mut Machine, number: u64, key: &[u8]) {
        let value = Value {
            op: op(number),
            len: 100,
            digest: [number as u8; 16],
            crc: number as u32,
            head: [7; 8],
            k: 3,
            n: 5,
            layout: 0,
        };
        let action = Action::Put { key: key.into(), content: Content::Whole(value) };
        machine.apply(number, 0, &Op { id: op(number), stamp: None, author: None, action });
    }
}
