//! Operations that wait for a slot under the queue policy (PROTOCOL 6.4).
//!
//! Purpose: every node has a queue of READY operations, the oldest first, and proposes its head in the
//! first slot that it does not know as decided. The others' proposals bring what it has not heard of.
//! Invariant: what waits here is in no slot below [`Queue::next`], so that nobody proposes an operation
//! again that is in the log; and nothing is proposed in a slot at or beyond the end of its life, so that
//! whoever has passed that end may forget it (6.4-g).
//! What would break it: believing a READY that may be older than what is remembered of the slots, or
//! keeping what waits while slots are passed over unseen.

use crate::{BatchInfo, Class, Digest, Slot};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Operations that wait; above it a READY is not taken in, and comes again with a PROPOSE.
const WAITING_MAX: usize = 1 << 16;
/// Bits of a candidate, its lowest ones, that say when the operation was accepted.
const BORN_BITS: u32 = 40;

/// The candidate that names an operation: its class, bits of a hash of its metas, and the first slot that
/// was not decided where and when it was accepted: it is in none below that.
pub fn candidate(hash: u128, born: Slot) -> Digest {
    let low = (1 << BORN_BITS) - 1;
    Class::Ready.mark((hash & !low) | (Digest::from(born) & low))
}

/// The slot below which an operation is in none, by its name.
pub fn born(candidate: Digest) -> Slot {
    (candidate & ((1 << BORN_BITS) - 1)) as Slot
}

/// The order in which operations are proposed: about that in which they were accepted, wherever.
type Age = (Slot, Digest);

fn age(candidate: Digest) -> Age {
    (born(candidate), candidate)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    waiting: BTreeSet<Age>,
    /// What slots from `known` up to `next` hold, `life` of them at most; and which slot holds what.
    held: VecDeque<Option<Digest>>,
    placed: BTreeMap<Digest, Slot>,
    known: Slot,
    next: Slot,
    life: Slot,
    /// Of what is stored here, decided or not: which keys it touches.
    stored: BTreeMap<Digest, BatchInfo>,
}

impl Queue {
    /// All slots below `from` are decided, and which operations they hold is not remembered. An operation
    /// gets one of `life` slots, or none.
    pub fn new(from: Slot, life: Slot) -> Queue {
        Queue {
            waiting: BTreeSet::new(),
            held: VecDeque::new(),
            placed: BTreeMap::new(),
            known: from,
            next: from,
            life,
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
        let is_held = self.slot_of(candidate).is_some_and(|slot| slot >= below)
            && !mutant!("what is in the log waits again");
        if !is_known || is_held || self.is_over(candidate) || self.waiting.len() >= WAITING_MAX {
            return false;
        }
        self.waiting.insert(age(candidate))
    }

    /// The slot that holds an operation, as far as that is remembered.
    pub fn slot_of(&self, candidate: Digest) -> Option<Slot> {
        self.placed.get(&candidate).copied()
    }

    /// Whether no slot that is not decided here will ever hold an operation.
    /// PROTOCOL 6.4-g
    pub fn is_over(&self, candidate: Digest) -> bool {
        let end = born(candidate).saturating_add(self.life);
        self.next >= end && !mutant!("proposed for ever")
    }

    /// Whether this node can tell which of the slots below [`Queue::next`] holds an operation, if any.
    pub fn remembers(&self, candidate: Digest) -> bool {
        born(candidate) >= self.known
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
    /// PROTOCOL 6.4-c: an operation goes when it is decided, or when its slots are, and not before.
    pub fn decided(&mut self, candidate: Option<Digest>) {
        if let Some(candidate) = candidate {
            self.waiting.remove(&age(candidate));
            self.stored.remove(&candidate);
            self.placed.insert(candidate, self.next);
        }
        self.held.push_back(candidate);
        self.next += 1;
        if self.held.len() as Slot > self.life {
            if let Some(gone) = self.held.pop_front().flatten() {
                self.placed.remove(&gone);
            }
            self.known += 1;
        }
        while self.waiting.first().is_some_and(|(_, oldest)| self.is_over(*oldest)) {
            self.waiting.pop_first();
        }
    }

    /// Slots were passed over (PROTOCOL 9.3): what waits may be in one of them. What is in none comes
    /// again with the next PROPOSE of it.
    pub fn passed(&mut self, to: Slot) {
        let stored = std::mem::take(&mut self.stored);
        *self = Queue { stored, ..Queue::new(to, self.life) };
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

    const LIFE: Slot = 10_000;

    fn candidate(node: u8, born: Slot) -> Digest {
        super::candidate(Digest::from(node) << 96, born)
    }

    /// tests PROTOCOL 6.4-c
    #[test]
    fn what_waits_goes_when_it_is_decided_and_the_oldest_is_the_one_accepted_first() {
        let mut queue = Queue::new(0, LIFE);
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
        let mut queue = Queue::new(10, LIFE);
        let (held, other) = (candidate(0, 10), candidate(0, 11));
        queue.decided(Some(held));
        assert!(!queue.ready(held, 10), "it is in slot 10");
        assert!(!queue.ready(other, 9), "what slot 9 holds is not known");
        assert!(queue.ready(other, 10));
        assert_eq!((queue.slot_of(held), queue.slot_of(other)), (Some(10), None));
        // However long ago: then it is over.
        (0..LIFE).for_each(|_| queue.decided(None));
        assert!(!queue.ready(held, 10) && queue.held.len() as Slot == LIFE);
        assert!(queue.placed.is_empty(), "what is remembered is bounded");
        let newer = candidate(0, 12_000);
        queue.passed(12_001);
        assert!(!queue.remembers(newer) && queue.remembers(candidate(0, 12_001)));
        assert!(queue.is_empty() && !queue.ready(newer, 12_000) && queue.ready(newer, 12_001));
    }

    /// tests PROTOCOL 6.4-g
    #[test]
    fn an_operation_gets_a_slot_within_its_life_or_none() {
        let mut queue = Queue::new(0, LIFE);
        let (old, young) = (candidate(0, 0), candidate(1, 1));
        assert!(queue.ready(old, 0) && queue.ready(young, 0));
        (1..LIFE).for_each(|_| queue.decided(None));
        assert_eq!((queue.oldest(), queue.is_over(old)), (Some(old), false), "its last slot");
        queue.decided(None);
        assert_eq!((queue.oldest(), queue.is_over(old)), (Some(young), true));
        assert!(!queue.ready(old, LIFE), "whoever says so");
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut queue = Queue::new(0, 1 << 20);
        let taken = (0..WAITING_MAX as u64 + 5).filter(|at| queue.ready(candidate(0, *at), 0));
        assert_eq!(taken.count(), WAITING_MAX);
        queue.decided(queue.oldest());
        assert!(queue.ready(candidate(1, 0), 1));
    }
}
