//! What the executed slots held that a node which lags may ask for: null, or where the batch lies.
//!
//! Purpose: answers nodes that lag (PROTOCOL 9.3). Twelve bytes a slot, from the slot that
//! [`crate::checkpoint::history_floor`] says on.
//! Invariant: entries exist for exactly the slots from `first` up to exec, and `heads` counts no
//! segment out that holds the batch of one of them.

use racos_protocol::Slot;
use racos_storage::Place;
use racos_storage::device::FileId;
use std::collections::{BTreeMap, VecDeque};

/// What a slot held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    Null,
    /// The head of the record that holds the batch.
    Batch(Place),
    /// A batch whose record is on its way to the log.
    Unplaced,
}

pub(crate) const NULL: Place = Place { segment: 0, offset: 0, len: 0 };
const UNPLACED: Place = Place { segment: 0, offset: 1, len: 0 };

/// Executed slots.
#[derive(Default)]
pub struct History {
    first: Slot,
    slots: VecDeque<Place>,
    /// For every segment that holds a batch's head: the highest slot of one.
    heads: BTreeMap<FileId, Slot>,
}

impl History {
    /// No slot below `first` is described, and none from there on executed.
    pub fn starting_at(first: Slot) -> History {
        History { first, ..History::default() }
    }

    /// The first slot described.
    pub fn first(&self) -> Slot {
        self.first
    }

    /// The slot behind the last one described.
    pub fn end(&self) -> Slot {
        self.first + self.slots.len() as Slot
    }

    /// The next slot held nothing.
    pub fn push_null(&mut self) {
        self.slots.push_back(NULL);
    }

    /// The next slot held a batch; where its record lies, if known.
    pub fn push_batch(&mut self, place: Option<Place>) {
        self.push(place.unwrap_or(UNPLACED));
    }

    /// The next slot, as [`History::raw`] gave it.
    pub fn push(&mut self, raw: Place) {
        self.note(self.end(), raw);
        self.slots.push_back(raw);
    }

    /// The record of an executed slot's batch lies here.
    pub fn placed(&mut self, slot: Slot, place: Place) {
        let index = slot.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(entry) = index.and_then(|index| self.slots.get_mut(index))
            && *entry == UNPLACED
        {
            *entry = place;
            self.note(slot, place);
        }
    }

    fn note(&mut self, slot: Slot, place: Place) {
        if place != NULL && place != UNPLACED {
            let highest = self.heads.entry(place.segment).or_default();
            *highest = slot.max(*highest);
        }
    }

    /// Up to `most` entries from `from` on, as they are, for a checkpoint.
    pub fn raw(&self, from: Slot, most: usize) -> impl Iterator<Item = Place> + '_ {
        let skip = from.saturating_sub(self.first) as usize;
        self.slots.iter().skip(skip).take(most).copied()
    }

    /// Forgets the slots below `floor`, some of them a call.
    pub fn drop_below(&mut self, floor: Slot, most: usize) {
        let count = floor.saturating_sub(self.first).min(most as Slot);
        self.slots.drain(..(count as usize).min(self.slots.len()));
        self.first += count;
    }

    /// Drops the slots whose batches lay in segments that are gone, and all slots below them.
    pub fn drop_gone(&mut self, exists: impl Fn(FileId) -> bool) {
        let gone = self.heads.iter().filter(|(segment, _)| !exists(**segment));
        if let Some(highest) = gone.map(|(_, highest)| *highest).max() {
            self.drop_below(highest + 1, usize::MAX);
            self.heads.retain(|segment, _| exists(*segment));
        }
    }

    /// The slot behind the last one whose batch lies in a segment; `None`: no such slot is described.
    pub fn end_in(&self, segment: FileId) -> Option<Slot> {
        self.heads.get(&segment).map(|highest| highest + 1).filter(|end| *end > self.first)
    }

    /// Whether a segment holds the head of a slot described.
    pub fn needs(&self, segment: FileId) -> bool {
        self.end_in(segment).is_some()
    }

    /// The segment is gone.
    pub fn forget_segment(&mut self, segment: FileId) {
        self.heads.remove(&segment);
    }

    pub fn get(&self, slot: Slot) -> Option<Past> {
        let place = *self.slots.get(usize::try_from(slot.checked_sub(self.first)?).ok()?)?;
        Some(match place {
            NULL => Past::Null,
            UNPLACED => Past::Unplaced,
            place => Past::Batch(place),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_described_in_order_and_placed_later() {
        let mut history = History::default();
        history.push_null();
        history.push_batch(None);
        assert_eq!(history.get(1), Some(Past::Unplaced));
        let place = Place { segment: 3, offset: 4096, len: 100 };
        history.placed(0, place);
        history.placed(1, place);
        history.placed(7, place);
        assert_eq!(history.get(0), Some(Past::Null));
        assert_eq!(history.get(1), Some(Past::Batch(place)));
        assert_eq!(history.get(2), None);
    }

    #[test]
    fn what_lay_in_segments_that_are_gone_is_not_described() {
        let mut history = History::starting_at(10);
        let at = |segment| Place { segment, offset: 4096, len: 100 };
        [1, 1, 2, 3].into_iter().for_each(|segment| history.push_batch(Some(at(segment))));
        history.drop_gone(|segment| segment != 4);
        assert_eq!((history.first(), history.end_in(1)), (10, Some(12)));
        history.drop_gone(|segment| segment > 1);
        assert_eq!((history.first(), history.end_in(1), history.end_in(3)), (12, None, Some(14)));
    }

    #[test]
    fn a_segment_is_needed_while_a_slot_described_has_its_batch_there() {
        let mut history = History::starting_at(10);
        let at = |segment| Place { segment, offset: 4096, len: 100 };
        history.push_batch(Some(at(3)));
        history.push_null();
        history.push_batch(None);
        history.push_batch(Some(at(3)));
        history.placed(12, at(2));
        assert_eq!((history.first(), history.end()), (10, 14));
        history.drop_below(13, 2);
        assert_eq!(history.first(), 12, "two a call");
        assert_eq!(history.get(11), None);
        assert!(history.needs(2) && history.needs(3) && !history.needs(4));
        history.drop_below(13, 100);
        assert!(!history.needs(2) && history.needs(3));
        assert_eq!(history.get(13), Some(Past::Batch(at(3))));
        let again: Vec<Place> = history.raw(13, 9).collect();
        assert_eq!(again, [at(3)]);
    }
}
