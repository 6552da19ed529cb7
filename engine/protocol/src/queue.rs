//! Operations that wait for a slot under the queue policy (PROTOCOL 6.4).
//!
//! Purpose: every node has a queue of READY operations, the oldest first, and proposes its head in the
//! first slot that it does not know as decided. The others' proposals bring what it has not heard of.
//! Invariant: what waits here is in no slot below [`Queue::next`], so that nobody proposes an operation
//! again that is in the log.
//! What would break it: believing a READY that may be older than what is remembered of the slots, or
//! keeping what waits while slots are passed over unseen.

use crate::{BatchInfo, Digest, Slot};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Who fills the slots: part of what a cluster is founded with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Policy {
    /// Each slot belongs to a node, which puts a batch into it (PROTOCOL 6.1).
    #[default]
    OwnerSlots,
    /// One operation a slot, one slot after the other; all propose the oldest that is stored (6.4).
    Queue,
}

/// Decided slots that are remembered to judge a READY by.
const HELD_MAX: usize = 1024;
/// Operations that wait; above it a READY is not taken in, and comes again with a PROPOSE.
const WAITING_MAX: usize = 1 << 16;
/// Bits of the counter in an op id, its lowest ones (PROTOCOL 3.1).
const COUNTER_BITS: u32 = 40;

/// The order in which operations are proposed: nodes keep their counters close together, and so
/// operations of different nodes stand about in the order in which they were accepted.
type Age = (u64, Digest);

fn age(candidate: Digest) -> Age {
    ((candidate & ((1 << COUNTER_BITS) - 1)) as u64, candidate)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    waiting: BTreeSet<Age>,
    /// What slots from `known` up to `next` hold.
    held: VecDeque<Option<Digest>>,
    known: Slot,
    next: Slot,
    /// Of what is stored here, decided or not: which keys it touches.
    stored: BTreeMap<Digest, BatchInfo>,
}

impl Queue {
    /// All slots below are decided, and which operations they hold is not remembered.
    pub fn new(from: Slot) -> Queue {
        Queue {
            waiting: BTreeSet::new(),
            held: VecDeque::new(),
            known: from,
            next: from,
            stored: BTreeMap::new(),
        }
    }

    /// The first slot that is not decided here.
    pub fn next(&self) -> Slot {
        self.next
    }

    /// READY: the operation is stored at enough nodes, and in no slot below `below`. Returns whether it
    /// waits here now.
    /// PROTOCOL 6.4-c: whether its fragment is here does not matter.
    pub fn ready(&mut self, candidate: Digest, below: Slot) -> bool {
        if self.waiting.contains(&age(candidate)) {
            return true;
        }
        // PROTOCOL 6.4-d: in none of the slots from there on either, as far as all of them are known.
        let is_known = below >= self.known;
        let from = (below.max(self.known) - self.known).min(self.held.len() as Slot) as usize;
        let is_held = self.held.range(from..).any(|held| *held == Some(candidate));
        if !is_known || is_held || self.waiting.len() >= WAITING_MAX {
            return false;
        }
        self.waiting.insert(age(candidate))
    }

    /// The operation that waits longest.
    pub fn oldest(&self) -> Option<Digest> {
        self.waiting.first().map(|(_, candidate)| *candidate)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn contains(&self, candidate: Digest) -> bool {
        self.waiting.contains(&age(candidate))
    }

    /// What [`Queue::next`] holds.
    /// PROTOCOL 6.4-c: an operation goes when it is decided, and not before.
    pub fn decided(&mut self, candidate: Option<Digest>) {
        if let Some(candidate) = candidate {
            self.waiting.remove(&age(candidate));
            self.stored.remove(&candidate);
        }
        self.held.push_back(candidate);
        self.next += 1;
        if self.held.len() > HELD_MAX {
            self.held.pop_front();
            self.known += 1;
        }
    }

    /// Slots were passed over (PROTOCOL 9.3): what waits may be in one of them. What is in none comes
    /// again with the next PROPOSE of it.
    pub fn passed(&mut self, to: Slot) {
        let stored = std::mem::take(&mut self.stored);
        *self = Queue { stored, ..Queue::new(to) };
    }

    /// An operation is stored here: reads that do not touch its keys need not wait for it.
    pub fn store(&mut self, batch: BatchInfo) {
        self.stored.insert(batch.digest, batch);
    }

    /// An operation that was stored here is given up.
    pub fn forget(&mut self, candidate: Digest) {
        self.stored.remove(&candidate);
    }

    pub fn stored(&self, candidate: Digest) -> Option<&BatchInfo> {
        self.stored.get(&candidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    fn candidate(node: u8, counter: u64) -> Digest {
        Class::Ready.mark(Digest::from(node) << 96 | Digest::from(counter))
    }

    /// tests PROTOCOL 6.4-c
    #[test]
    fn what_waits_goes_when_it_is_decided_and_the_oldest_is_that_of_the_lowest_counter() {
        let mut queue = Queue::new(0);
        let (first, second, third) = (candidate(4, 7), candidate(0, 8), candidate(1, 8));
        for waiting in [third, first, second, first] {
            assert!(queue.ready(waiting, 0));
        }
        assert_eq!((queue.oldest(), queue.len()), (Some(first), 3));
        (0..5000).for_each(|_| queue.decided(None));
        assert_eq!((queue.oldest(), queue.next()), (Some(first), 5000));
        for next in [second, third] {
            queue.decided(queue.oldest());
            assert_eq!(queue.oldest(), Some(next));
        }
    }

    /// tests PROTOCOL 6.4-d
    #[test]
    fn what_is_in_the_log_or_may_be_does_not_wait_again() {
        let mut queue = Queue::new(10);
        let (held, other) = (candidate(0, 1), candidate(0, 2));
        queue.decided(Some(held));
        assert!(!queue.ready(held, 10), "it is in slot 10");
        assert!(!queue.ready(other, 9), "what slot 9 holds is not known");
        assert!(queue.ready(other, 10));
        // However long ago: then it is not known any more.
        (0..HELD_MAX).for_each(|_| queue.decided(None));
        assert!(!queue.ready(held, 10) && queue.held.len() == HELD_MAX);
        queue.passed(9_000);
        assert!(queue.is_empty() && !queue.ready(other, 8_999) && queue.ready(other, 9_000));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut queue = Queue::new(0);
        let taken = (0..WAITING_MAX as u64 + 5).filter(|at| queue.ready(candidate(0, *at), 0));
        assert_eq!(taken.count(), WAITING_MAX);
        queue.decided(queue.oldest());
        assert!(queue.ready(candidate(1, 0), 1));
    }
}
