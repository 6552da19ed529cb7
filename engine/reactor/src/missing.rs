//! The fragments of live values that this node should have and has not (PROTOCOL 9.5).
//!
//! Purpose: says which one to repair next, and when: newest first, at a bounded rate.
//! Invariant: a fragment stays on the list until its new record is flushed, or its value is no longer
//! in use. What would break it: taking an entry off when its repair begins.

use racos_machine::OpId;
use racos_protocol::{Nanos, Slot};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// Bytes a second that repairs may move while the list does not grow; a repair also costs what its
/// messages take.
const RATE_BYTES_PER_S: u64 = 64 << 20;
const REPAIR_COST: u64 = 8 << 10;
/// What may be saved up while there is nothing to do.
const BURST_BYTES: i64 = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// Not before this time: its SPREAD may be under way still, or too few nodes answered.
    Aside(Nanos),
    UnderWay,
}

#[derive(Debug, Clone, Copy)]
struct Lack {
    slot: Slot,
    state: State,
    /// The own fragment is there and has a good checksum, but others say it is not the right one.
    suspect: bool,
    /// So many nodes lack theirs too that the value cannot be rebuilt now.
    lost: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct MissingList {
    all: FxHashMap<OpId, Lack>,
    ready: BTreeSet<(Slot, OpId)>,
    aside: BTreeSet<(Nanos, OpId)>,
    lost: usize,
    /// Bytes that may be moved now; below zero: a debt that time pays.
    allowance: i64,
    paid_at: Nanos,
}

impl MissingList {
    pub fn len(&self) -> usize {
        self.all.len()
    }
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
    /// Values of which fewer than k fragments were found.
    pub fn lost(&self) -> usize {
        self.lost
    }
    pub fn contains(&self, op: OpId) -> bool {
        self.all.contains_key(&op)
    }
    /// Whether anything of a slot below this one is missing.
    pub fn any_below(&self, slot: Slot) -> bool {
        self.all.values().any(|lack| lack.slot < slot)
    }
    pub fn is_suspect(&self, op: OpId) -> bool {
        self.all.get(&op).is_some_and(|lack| lack.suspect)
    }

    /// The fragment of a value executed in `slot` is missing; it is looked for from `not_before` on.
    pub fn add(&mut self, op: OpId, slot: Slot, not_before: Nanos) {
        if self.all.contains_key(&op) {
            return;
        }
        let lack = Lack { slot, state: State::UnderWay, suspect: false, lost: false };
        self.all.insert(op, lack);
        self.put_aside(op, not_before);
    }

    /// PROTOCOL 9.5-c: never below the rate at which the list grows.
    pub fn grew(&mut self, bytes: u64) {
        self.allowance += (bytes + REPAIR_COST) as i64;
    }

    /// Another node found the own fragment to be wrong, though its checksum is good.
    pub fn suspect(&mut self, op: OpId, slot: Slot, now: Nanos) {
        self.add(op, slot, now);
        self.all.get_mut(&op).expect("just added").suspect = true;
    }

    /// Stored and flushed, or not in use any more.
    pub fn remove(&mut self, op: OpId) {
        let Some(lack) = self.all.remove(&op) else { return };
        self.unlist(op, lack);
        self.lost -= usize::from(lack.lost);
    }

    /// Gives up for now.
    pub fn put_aside(&mut self, op: OpId, until: Nanos) {
        let Some(lack) = self.all.get_mut(&op) else { return };
        let before = *lack;
        lack.state = State::Aside(until);
        self.unlist(op, before);
        self.aside.insert((until, op));
    }

    /// Whether too few fragments exist, as far as could be found out.
    pub fn set_lost(&mut self, op: OpId, lost: bool) {
        let Some(lack) = self.all.get_mut(&op) else { return };
        self.lost += usize::from(lost);
        self.lost -= usize::from(lack.lost);
        lack.lost = lost;
    }

    fn unlist(&mut self, op: OpId, lack: Lack) {
        match lack.state {
            State::Ready => drop(self.ready.remove(&(lack.slot, op))),
            State::Aside(until) => drop(self.aside.remove(&(until, op))),
            State::UnderWay => {}
        }
    }

    /// PROTOCOL 9.5-c: the newest one that may be repaired now; it is under way from here on, until
    /// `remove` or `put_aside`.
    pub fn next(&mut self, now: Nanos) -> Option<(Slot, OpId)> {
        self.pay(now);
        while let Some((until, op)) = self.aside.first().copied()
            && until <= now
        {
            self.aside.remove(&(until, op));
            let lack = self.all.get_mut(&op).expect("what is aside is on the list");
            lack.state = State::Ready;
            self.ready.insert((lack.slot, op));
        }
        if self.allowance <= 0 {
            return None;
        }
        let (slot, op) = self.ready.pop_last()?;
        self.all.get_mut(&op).expect("what is ready is on the list").state = State::UnderWay;
        Some((slot, op))
    }

    /// What is aside is under way before its time; false if it is not aside.
    pub fn take_up(&mut self, op: OpId) -> bool {
        let Some(lack) = self.all.get_mut(&op) else { return false };
        let before = *lack;
        if matches!(before.state, State::UnderWay) {
            return false;
        }
        lack.state = State::UnderWay;
        self.unlist(op, before);
        true
    }

    /// A repair that moves so many bytes begins.
    pub fn spend(&mut self, bytes: u64) {
        self.allowance -= (bytes + REPAIR_COST) as i64;
    }

    fn pay(&mut self, now: Nanos) {
        let elapsed = now.saturating_sub(self.paid_at);
        let bytes = u128::from(elapsed) * u128::from(RATE_BYTES_PER_S) / 1_000_000_000;
        if bytes == 0 {
            return;
        }
        self.paid_at = now;
        if self.allowance < BURST_BYTES {
            let sum = i128::from(self.allowance) + bytes as i128;
            self.allowance = sum.min(i128::from(BURST_BYTES)) as i64;
        }
    }

    /// When `next` may give something, nothing else happening; `can_start`: a job has room.
    pub fn deadline(&self, can_start: bool) -> Option<Nanos> {
        if !can_start {
            // Whoever woke for an entry that is due could do nothing, and would wake again at once.
            return None;
        }
        let aside = self.aside.first().map(|(until, _)| *until);
        let debt = (1 - self.allowance).max(0) as u64;
        let paid = self.paid_at + debt * (1_000_000_000 / RATE_BYTES_PER_S + 1);
        let ready = (!self.ready.is_empty()).then_some(paid);
        [aside, ready].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(counter: u64) -> OpId {
        OpId::new(0, 1, 1, counter)
    }

    /// tests PROTOCOL 9.5-c
    #[test]
    fn newest_first_and_not_before_its_time() {
        let mut list = MissingList::default();
        list.add(op(1), 10, 5);
        list.add(op(2), 30, 7);
        list.add(op(3), 20, 5);
        list.grew(1 << 20);
        assert_eq!(list.next(4), None);
        assert_eq!(list.deadline(true), Some(5));
        assert_eq!(list.deadline(false), None, "nobody wakes for what cannot be taken up");
        assert_eq!(list.next(6), Some((20, op(3))));
        assert_eq!(list.next(8), Some((30, op(2))));
        assert_eq!(list.next(8), Some((10, op(1))));
        assert_eq!(list.next(8), None, "all are under way");
        list.put_aside(op(2), 100);
        list.remove(op(1));
        assert_eq!((list.len(), list.next(99), list.next(100)), (2, None, Some((30, op(2)))));
    }

    #[test]
    fn what_is_aside_can_be_taken_up_before_its_time_once() {
        let mut list = MissingList::default();
        list.grew(1 << 20);
        list.add(op(1), 10, 500);
        list.add(op(2), 20, 5);
        assert!(list.take_up(op(1)) && !list.take_up(op(1)) && !list.take_up(op(3)));
        assert_eq!((list.next(1000), list.next(1000)), (Some((20, op(2))), None));
        list.put_aside(op(1), 2000);
        assert_eq!((list.next(1999), list.next(2000)), (None, Some((10, op(1)))));
    }

    /// tests PROTOCOL 9.5-c
    #[test]
    fn the_rate_is_bounded_but_never_below_what_is_added() {
        const MS: Nanos = 1_000_000;
        let run = |grown: u64| {
            let mut list = MissingList::default();
            (0..100_000).for_each(|counter| list.add(op(counter), counter, 0));
            (0..grown).for_each(|_| list.grew(1 << 20));
            let mut moved = 0u64;
            for now in (0..1000).map(|ms| ms * MS) {
                while list.next(now).is_some() {
                    list.spend(1 << 20);
                    moved += 1 << 20;
                }
            }
            moved
        };
        let bounded = run(0);
        assert!(bounded <= RATE_BYTES_PER_S + BURST_BYTES as u64, "{bounded}");
        assert!(bounded >= RATE_BYTES_PER_S * 9 / 10, "{bounded}");
        assert!(run(1000) >= bounded + (990 << 20));
    }

    #[test]
    fn lost_values_are_counted_until_they_are_found_or_unused() {
        let mut list = MissingList::default();
        list.add(op(1), 1, 0);
        list.add(op(2), 2, 0);
        list.set_lost(op(1), true);
        list.set_lost(op(1), true);
        list.set_lost(op(2), true);
        assert_eq!(list.lost(), 2);
        list.set_lost(op(2), false);
        list.remove(op(1));
        assert_eq!((list.lost(), list.len()), (0, 1));
    }
}
