//! What a node knows by operation, found by 32-bit numbers that stay: 8 bytes each beside what is kept,
//! and what finding it costs.
//!
//! Purpose: the index has one entry for every live value, so its size bounds how many keys a node can
//! hold. Entries lie in chunks that never move, and what finds them holds their numbers alone and grows
//! by small pieces: no turn of the loop pays for the entries of others.
//!
//! Invariant: an operation has one entry at most, and its number stays until it is removed.

use racos_machine::{Numbers, OpId, Origins, Pile, ShortOp};

const CHUNK_ENTRIES: usize = 1024;

#[derive(Debug, Default)]
struct Kept<T> {
    op: ShortOp,
    what: T,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Table<T> {
    numbers: Numbers,
    origins: Origins,
    chunks: Vec<Vec<Kept<T>>>,
    free: Pile<u32>,
    allotted: u32,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        let (numbers, origins) = (Numbers::default(), Origins::default());
        Table { numbers, origins, chunks: Vec::new(), free: Pile::default(), allotted: 0 }
    }
}

fn kept<T>(chunks: &[Vec<Kept<T>>], number: u32) -> &Kept<T> {
    &chunks[number as usize / CHUNK_ENTRIES][number as usize % CHUNK_ENTRIES]
}

impl<T: Default> Table<T> {
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// The number of an operation's entry.
    pub fn find(&self, op: OpId) -> Option<u32> {
        self.find_short(self.origins.find(op)?)
    }

    fn find_short(&self, op: ShortOp) -> Option<u32> {
        self.numbers.find(op.hash(), |number| kept(&self.chunks, number).op == op)
    }

    pub fn contains(&self, op: OpId) -> bool {
        self.find(op).is_some()
    }

    pub fn get(&self, op: OpId) -> Option<&T> {
        self.find(op).map(|number| self.at(number))
    }

    pub fn get_mut(&mut self, op: OpId) -> Option<&mut T> {
        self.find(op).map(|number| self.at_mut(number))
    }

    /// The entry that has this number.
    pub fn at(&self, number: u32) -> &T {
        &kept(&self.chunks, number).what
    }

    pub fn at_mut(&mut self, number: u32) -> &mut T {
        &mut self.chunks[number as usize / CHUNK_ENTRIES][number as usize % CHUNK_ENTRIES].what
    }

    /// The operation of the entry that has this number.
    pub fn op_at(&self, number: u32) -> OpId {
        self.origins.name(kept(&self.chunks, number).op)
    }

    /// Puts an entry in, in the place of the operation's former one, which it returns.
    pub fn insert(&mut self, op: OpId, what: T) -> Option<T> {
        match self.put(op, what) {
            Ok(_) => None,
            Err((number, what)) => Some(std::mem::replace(self.at_mut(number), what)),
        }
    }

    /// Puts an entry in, and gives its number; or gives the number of the one that the operation has.
    pub fn put(&mut self, op: OpId, what: T) -> Result<u32, (u32, T)> {
        let op = self.origins.shorten(op);
        let number = self.free.last().copied().unwrap_or(self.allotted);
        let is_it = |number| kept(&self.chunks, number).op == op;
        if let Some(number) = self.numbers.find_or_insert(op.hash(), number, is_it) {
            return Err((number, what));
        }
        let entry = Kept { op, what };
        if self.free.pop().is_some() {
            let (chunk, at) = (number as usize / CHUNK_ENTRIES, number as usize % CHUNK_ENTRIES);
            self.chunks[chunk][at] = entry;
        } else {
            self.allotted = number + 1;
            if (number as usize).is_multiple_of(CHUNK_ENTRIES) {
                self.chunks.push(Vec::with_capacity(CHUNK_ENTRIES));
            }
            self.chunks.last_mut().expect("a chunk was ensured").push(entry);
        }
        Ok(number)
    }

    pub fn remove(&mut self, op: OpId) -> Option<T> {
        self.find(op).map(|number| self.remove_at(number))
    }

    /// Takes the entry out that has this number.
    pub fn remove_at(&mut self, number: u32) -> T {
        let op = kept(&self.chunks, number).op;
        let found = self.numbers.remove(op.hash(), |other| other == number);
        assert!(found.is_some(), "an entry that is there is found by its operation");
        self.free.push(number);
        std::mem::take(self.at_mut(number))
    }

    /// Gives the memory of some entries back, whatever they are, of a table that is of no use any more;
    /// false if no entry is left.
    pub fn wear_down(&mut self) -> bool {
        self.chunks.pop().is_some()
    }

    /// Every entry, with its operation.
    pub fn iter(&self) -> impl Iterator<Item = (OpId, &T)> {
        self.numbers.iter().map(|number| (self.op_at(number), self.at(number)))
    }

    /// Bytes of memory that entries and what finds them take.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        let free = self.free.memory_bytes();
        let chunks = self.chunks.len() * CHUNK_ENTRIES * size_of::<Kept<T>>();
        self.numbers.memory_bytes() + free + chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragments::Lying;
    use racos_machine::{Action, Content, Limits, Machine, Op, Value};
    use racos_storage::Place;
    use std::collections::BTreeMap;

    fn op(counter: u64) -> OpId {
        OpId::new((counter % 5) as u16, 1, 3, counter)
    }

    fn lying(offset: u32) -> Lying {
        Lying { place: Place { segment: 1, offset, len: 7 }, crc: offset ^ 1 }
    }

    #[test]
    fn it_holds_what_a_map_would() {
        let (mut table, mut model) = (Table::<Lying>::default(), BTreeMap::new());
        let mut state = 7u64;
        for step in 0..40_000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let counter = state >> 33 & 0xfff;
            match state >> 60 & 3 {
                0 => {
                    let removed = table.remove(op(counter)).map(|lying| lying.place.offset);
                    assert_eq!(removed, model.remove(&counter));
                }
                _ => {
                    let old = table.insert(op(counter), lying(step)).map(|old| old.place.offset);
                    assert_eq!(old, model.insert(counter, step));
                }
            }
        }
        assert_eq!(table.len(), model.len());
        for counter in 0..0x1000 {
            let found = table.get(op(counter)).map(|lying| lying.place.offset);
            assert_eq!(found, model.get(&counter).copied());
        }
        let mut all: Vec<u32> = table.iter().map(|(_, lying)| lying.place.offset).collect();
        all.sort_unstable();
        let mut expected: Vec<u32> = model.into_values().collect();
        expected.sort_unstable();
        assert_eq!(all, expected);
    }

    #[test]
    fn an_entry_costs_at_most_36_bytes_however_many_there_are() {
        let mut table = Table::<Lying>::default();
        for count in [300_000u64, 500_000, 700_000] {
            for counter in table.len() as u64..count {
                table.insert(op(counter), lying(1));
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
            let (mut machine, mut table) =
                (Machine::new(Limits::default()), Table::<Lying>::default());
            let (mut held, mut done) = (0, 0);
            for count in [30_000u64, 100_000, 130_000, 240_000] {
                let info = allocation_counter::measure(|| {
                    for number in done..count {
                        let name = if in_order { number } else { scattered(number) };
                        put(&mut machine, number, format!("{name:016x}").as_bytes());
                        table.insert(op(number), lying(1));
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
