//! Fragments that no value needs any more, and that the newest checkpoint names yet.
//!
//! They stay until the next checkpoint is durable (PROTOCOL 9.2-c). Each lies somewhere among what is in
//! use: if segments with one of them could not be given back until then, hardly one could, and a cleaner
//! would work in vain. So it is known where they lie, and they are copied with the rest: there are few,
//! since only those count that went since the newest checkpoint was begun.
//!
//! Invariant: what is counted of a segment is the bytes of the fragments that lie there; of those beyond
//! `PLACES_MAX` the places are not known, and their segments wait. What would break it: a fragment that is
//! moved and not counted anew.

use crate::fragments::{Lying, bytes_of};
use crate::table::Table;
use racos_machine::OpId;
use racos_storage::Place;
use racos_storage::device::FileId;
use std::collections::BTreeMap;

/// Places that are remembered, 36 bytes each.
const PLACES_MAX: usize = 1 << 18;

/// Those that went in one time between checkpoints.
#[derive(Default)]
struct Part {
    bytes: BTreeMap<FileId, u64>,
    places: Table<Lying>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Dying {
    /// After the pin of the checkpoint that is being written, or that was written last.
    now: Part,
    /// Before it; more than one if checkpoints were given up.
    pinned: Vec<Part>,
    bytes: u64,
    /// Of no use: freed some at a time.
    spent: Vec<Table<Lying>>,
}

impl Dying {
    /// This fragment went.
    pub fn note(&mut self, op: OpId, lying: Lying) {
        let bytes = bytes_of(lying.place);
        *self.now.bytes.entry(lying.place.segment).or_default() += bytes;
        self.bytes += bytes;
        if self.places_len() < PLACES_MAX {
            self.now.places.insert(op, lying);
        }
    }

    fn places_len(&self) -> usize {
        self.parts().map(|part| part.places.len()).sum()
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.now).chain(&self.pinned)
    }

    /// The state is pinned for a checkpoint: what went before, it does not name.
    pub fn pin(&mut self) {
        let now = std::mem::take(&mut self.now);
        if !now.bytes.is_empty() {
            self.pinned.push(now);
        }
    }

    /// That checkpoint is durable: what went before its pin is of no use, so many bytes of each segment.
    pub fn settle(&mut self) -> Vec<(FileId, u64)> {
        let pinned = std::mem::take(&mut self.pinned);
        let mut settled = Vec::new();
        for part in pinned {
            self.bytes -= part.bytes.values().sum::<u64>();
            settled.extend(part.bytes);
            self.spent.push(part.places);
        }
        settled
    }

    /// Gives some of the memory of what is settled back.
    pub fn wear_down(&mut self) {
        if self.spent.last_mut().is_some_and(|table| !table.wear_down()) {
            self.spent.pop();
        }
    }

    /// Bytes of all.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of those that a checkpoint begun now would not name.
    pub fn bytes_now(&self) -> u64 {
        self.now.bytes.values().sum()
    }

    /// Bytes that lie in a segment.
    pub fn bytes_in(&self, segment: FileId) -> u64 {
        self.parts().filter_map(|part| part.bytes.get(&segment)).sum()
    }

    /// Where one of them lies, and its checksum.
    pub fn place(&self, op: OpId) -> Option<(Place, u32)> {
        let lying = self.parts().find_map(|part| part.places.get(op))?;
        Some((lying.place, lying.crc))
    }

    /// One of them lies at another place now. False: it did not lie at `from`.
    pub fn moved(&mut self, op: OpId, from: Place, to: Place) -> bool {
        let parts = std::iter::once(&mut self.now).chain(&mut self.pinned);
        for part in parts {
            let Some(lying) = part.places.get_mut(op).filter(|lying| lying.place == from) else {
                continue;
            };
            lying.place = to;
            let left = part.bytes.get_mut(&from.segment).expect("what lies there is counted");
            *left -= bytes_of(from);
            if *left == 0 {
                part.bytes.remove(&from.segment);
            }
            *part.bytes.entry(to.segment).or_default() += bytes_of(to);
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(counter: u64) -> OpId {
        OpId::new(0, 1, 1, counter)
    }

    fn lying(segment: FileId, offset: u32) -> Lying {
        Lying { place: Place { segment, offset, len: 100 }, crc: offset }
    }

    const EACH: u64 = 132;

    /// tests PROTOCOL 9.2-c
    #[test]
    fn what_went_counts_where_it_lies_until_the_checkpoint_after_is_durable() {
        let mut dying = Dying::default();
        dying.note(op(1), lying(1, 0));
        dying.note(op(2), lying(1, 100));
        dying.pin();
        dying.note(op(3), lying(2, 0));
        assert_eq!((dying.bytes(), dying.bytes_now()), (3 * EACH, EACH));
        let to = lying(7, 0).place;
        assert!(dying.moved(op(1), lying(1, 0).place, to));
        assert!(!dying.moved(op(1), lying(1, 0).place, to), "it lies there no more");
        assert!(!dying.moved(op(9), lying(1, 0).place, to), "it is not one of them");
        assert_eq!([1, 2, 7].map(|segment| dying.bytes_in(segment)), [EACH; 3]);
        assert_eq!(dying.place(op(1)), Some((to, 0)));
        // One that was given up settles nothing.
        dying.pin();
        dying.note(op(4), lying(2, 100));
        let settled = dying.settle();
        assert_eq!(settled.iter().map(|(_, bytes)| bytes).sum::<u64>(), 3 * EACH);
        assert_eq!((dying.bytes(), dying.bytes_in(2), dying.bytes_in(7)), (EACH, EACH, 0));
        assert_eq!((dying.place(op(1)), dying.place(op(4)).is_some()), (None, true));
        assert_eq!(dying.settle(), [], "the next one was not begun");
    }

    #[test]
    fn the_places_of_so_many_are_known_and_the_rest_is_counted() {
        let mut dying = Dying::default();
        let count = PLACES_MAX as u64 + 1000;
        (0..count).for_each(|counter| dying.note(op(counter), lying(1, counter as u32)));
        assert_eq!((dying.bytes_in(1), dying.places_len()), (count * EACH, PLACES_MAX));
        dying.pin();
        dying.pin();
        assert_eq!(dying.pinned.len(), 1, "nothing went between the two");
        assert_eq!(dying.settle(), [(1, count * EACH)]);
        let mut steps = 0;
        while !dying.spent.is_empty() {
            dying.wear_down();
            steps += 1;
        }
        assert_eq!(steps, PLACES_MAX / 1024 + 1, "freed by pieces");
    }
}
