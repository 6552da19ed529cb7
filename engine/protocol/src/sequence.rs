//! Slots of the queue policy, one after the other (PROTOCOL 6.4).
//!
//! Purpose: proposes the oldest operation that waits in the first slot that is not decided, takes in what
//! others propose, and tells the engine which operation a slot came to hold. Votes, states, decisions and
//! asking again are those of every slot.
//! Invariant: a node proposes in a slot only once it knows all lower ones as decided, and nothing that one
//! of them holds.
//! What would break it: proposing in two slots at a time.

use crate::core::Core;
use crate::effects::{Effect, Effects, Record, Release, Target};
use crate::queue::born;
use crate::slot::Said;
use crate::{BatchInfo, Class, Digest, Fast, Message, Nanos, Slot, Value};

impl Core {
    /// Whether the slots are filled from a queue.
    pub(crate) fn is_queue(&self) -> bool {
        self.queue.is_some()
    }

    /// Whether two operations may be voted for in a slot, in different phases.
    pub(crate) fn has_rivals(&self) -> bool {
        self.is_queue() && self.config.fast == Fast::Least
    }

    /// The first slot that is not decided here: an operation that is accepted now is in none below.
    pub fn born_now(&self) -> Slot {
        self.queue.as_ref().map_or(self.exec, |queue| queue.next())
    }

    /// The slot that holds an operation, as far as that is remembered.
    pub fn slot_of(&self, candidate: Digest) -> Option<Slot> {
        self.queue.as_ref().and_then(|queue| queue.slot_of(candidate))
    }

    /// Whether every slot that an operation could get is executed here.
    /// PROTOCOL 6.4-g
    pub fn is_over(&self, candidate: Digest) -> bool {
        let end = born(candidate).saturating_add(self.config.life());
        self.exec >= end
    }

    /// Whether this node can say that no slot decided here holds an operation: if none does, it may say
    /// that it is READY.
    pub fn remembers(&self, candidate: Digest) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.remembers(candidate))
    }

    /// Whether an operation waits here for a slot.
    pub fn is_waiting(&self, candidate: Digest) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.contains(candidate))
    }

    /// Operations that wait here for a slot.
    pub fn waiting(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.len())
    }

    /// An operation is stored here, and no slot is known that holds it.
    pub fn store_ahead(&mut self, batch: BatchInfo) {
        if let Some(queue) = &mut self.queue {
            queue.store(batch);
        }
    }

    /// What was stored is given up, and never gets a slot.
    pub fn forget_ahead(&mut self, candidate: Digest) {
        if let Some(queue) = &mut self.queue {
            queue.forget(candidate);
        }
    }

    /// The caller knows that an operation is stored at D nodes.
    pub(crate) fn own_ready(&mut self, candidate: Digest, fx: &mut Effects) {
        let Some(queue) = &mut self.queue else { return };
        // Another node may have said so long ago: what the slots since its acceptance hold counts.
        if queue.ready(candidate, born(candidate)) {
            let below = queue.next();
            fx.send(Target::Others, Message::Ready { candidate, below });
        }
    }

    /// READY of another node.
    /// PROTOCOL 6.4-b: a PROPOSE is one: its sender knew all lower slots, and the operation in none.
    pub(crate) fn on_ready(&mut self, candidate: Digest, below: Slot) {
        if let Some(queue) = &mut self.queue
            && Class::of(candidate) == Class::Ready
        {
            queue.ready(candidate, below);
        }
    }

    /// Every step ends with this.
    /// PROTOCOL 6.4-b, 6.4-d: the operation that waits longest, in the first slot not decided here.
    pub(crate) fn propose_oldest(&mut self, now: Nanos, fx: &mut Effects) {
        let Some(queue) = &self.queue else { return };
        let (slot, Some(candidate)) = (queue.next(), queue.oldest()) else { return };
        if !self.speaks(slot) || !self.in_use(slot, now, fx) {
            return;
        }
        let state = self.get_mut(slot).expect("a slot in use has a state");
        // PROTOCOL 4.1-e, 5.2-a: one PROPOSE of a slot, whatever becomes ready afterwards.
        if state.proposal.is_some() || state.decided().is_some() {
            return;
        }
        let value = Value::Batch(candidate);
        state.proposal = Some(Said { what: value, durable: false });
        state.appended_at = now;
        fx.push(Effect::Persist {
            record: Record::Propose { slot, candidate },
            release: Release::Propose { slot, value },
        });
    }

    /// Goes past what is decided, to the slot in which this node proposes next, once the window has reached
    /// it.
    pub(crate) fn follow_queue(&mut self, fx: &mut Effects) {
        let Some(mut queue) = self.queue.take() else { return };
        while let Some(state) = self.get(queue.next())
            && let Some(value) = state.decided()
        {
            let slot = queue.next();
            let candidate = match value {
                Value::Null => None,
                Value::Batch(candidate) => Some(candidate),
            };
            if let Some(candidate) = candidate {
                fx.push(Effect::Chosen { slot, candidate });
            }
            queue.decided(candidate);
        }
        self.queue = Some(queue);
    }
}
