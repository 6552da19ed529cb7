//! What every executed slot held: null, or where its batch lies in the log.
//!
//! Purpose: answers nodes that lag (PROTOCOL 9.3): nothing is truncated yet, so every slot since the
//! first can be told. Twelve bytes a slot.
//! Invariant: entry s describes slot s; entries exist for exactly the slots below exec.

use racos_protocol::Slot;
use racos_storage::Place;

/// What a slot held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    Null,
    /// The head of the record that holds the batch.
    Batch(Place),
    /// A batch whose record is on its way to the log.
    Unplaced,
}

const NULL: Place = Place { segment: 0, offset: 0, len: 0 };
const UNPLACED: Place = Place { segment: 0, offset: 1, len: 0 };

/// All executed slots.
#[derive(Default)]
pub struct History {
    slots: Vec<Place>,
}

impl History {
    /// The next slot held nothing.
    pub fn push_null(&mut self) {
        self.slots.push(NULL);
    }

    /// The next slot held a batch; where its record lies, if known.
    pub fn push_batch(&mut self, place: Option<Place>) {
        self.slots.push(place.unwrap_or(UNPLACED));
    }

    /// The record of an executed slot's batch lies here.
    pub fn placed(&mut self, slot: Slot, place: Place) {
        if let Some(entry) = usize::try_from(slot).ok().and_then(|slot| self.slots.get_mut(slot))
            && *entry == UNPLACED
        {
            *entry = place;
        }
    }

    pub fn get(&self, slot: Slot) -> Option<Past> {
        let place = *self.slots.get(usize::try_from(slot).ok()?)?;
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
}
