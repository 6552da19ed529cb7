//! Which incarnation of each node counts in which slot (PROTOCOL 10).
//!
//! Purpose: a replaced disk speaks for the slots below the one where the change takes effect, the new
//! one for those from there on; a node follows both rules for itself.
//! Invariant: of one node, no two incarnations count in one slot.
//! What would break it: learning of a change later than the first slot that it governs comes into the
//! window; hence execution stops at a change until its outcome is known.

use crate::core::Core;
use crate::effects::Effects;
use crate::{Configuration, Message, Nanos, Node, NodeSet, Slot};

/// A member's place: `incarnation` counts in slots from `from` on, the one before it in those below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    pub incarnation: u32,
    pub from: Slot,
}

impl Seat {
    pub(crate) const FOUNDING: Seat = Seat { incarnation: 1, from: 0 };

    /// PROTOCOL 10-q: whether what this incarnation says of a slot counts.
    pub fn counts(self, incarnation: u32, slot: Slot) -> bool {
        if mutant!("both disks of a node count") {
            return true;
        }
        if incarnation == self.incarnation {
            return slot >= self.from;
        }
        slot < self.from && incarnation.checked_add(1) == Some(self.incarnation)
    }
}

/// An admitted change, executed just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// REPLACE: another disk in a node's place.
    Replace { node: Node, seat: Seat },
    /// RECONF: other members or thresholds. Nodes with numbers never used before join; `lost`: those
    /// that leave and will not be heard again.
    Reconfigure { next: Configuration, lost: NodeSet },
}

/// Who counts, as of some slot: what a checkpoint tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Of every node that ever was a member, by number.
    pub seats: Vec<Seat>,
    pub lost: NodeSet,
    /// In the order of their slots; those that no slot at or above exec needs may be left out.
    pub configurations: Vec<Configuration>,
    pub epoch: u32,
    /// Where the newest change takes effect.
    pub effect: Slot,
}

impl Core {
    /// Of every node that is, was, or is about to be a member: its incarnations.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// How many changes were executed.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether a change has been executed that is not in effect yet: slots up to it are being filled.
    pub fn is_filling(&self) -> bool {
        self.exec < self.fill_to
    }

    /// PROTOCOL 10-q: whether what this incarnation says of a slot counts: it is a member there.
    pub fn counts(&self, from: Node, incarnation: u32, slot: Slot) -> bool {
        let seat = self.seats.get(usize::from(from));
        seat.is_some_and(|seat| seat.counts(incarnation, slot)) && self.at(slot).contains(from)
    }

    /// Whether a message of this incarnation may be taken in: what takes part in a slot only if it
    /// counts there, facts and questions from everybody. Of a slot beyond the window only the
    /// incarnation is judged: that it is named is all that is used of it.
    pub fn hears(&self, from: Node, incarnation: u32, message: &Message) -> bool {
        let end = self.exec + self.config.alpha;
        let seat = self.seats.get(usize::from(from));
        let counts = |slot: Slot| {
            seat.is_some_and(|seat| seat.counts(incarnation, slot))
                && (slot >= end || self.at(slot).contains(from))
        };
        match *message {
            Message::Propose { slot, .. }
            | Message::Vote { slot, .. }
            | Message::State { slot, .. }
            | Message::Opening { slot } => counts(slot),
            Message::Ready { .. } => counts(self.exec),
            Message::ProposeNull { from, to } | Message::Skip { from, to } => {
                from < to && counts(from) && seat.is_some_and(|it| it.counts(incarnation, to - 1))
            }
            // PROTOCOL 3.2-g, 9.3-a
            Message::Decide { .. }
            | Message::Pull { .. }
            | Message::Seen { .. }
            | Message::GetMeta { .. } => true,
        }
    }

    /// The configurations whose quorums a read needs: before and after the newest change while that is
    /// executed and not in effect.
    pub fn read_configurations(&self) -> (&Configuration, &Configuration) {
        let until = if self.is_filling() { self.fill_to } else { self.exec };
        (self.at(self.exec), self.at(until))
    }

    /// Whether an answer to a READQ counts in the quorum of the old configuration and in that of the
    /// new one; they differ only while a change is executed and not in effect.
    pub fn reads_count(&self, from: Node, incarnation: u32) -> (bool, bool) {
        let Some(seat) = self.seats.get(usize::from(from)) else { return (false, false) };
        let (before, after) = self.read_configurations();
        let is_new = incarnation == seat.incarnation;
        let is_replaced = self.is_filling() && seat.from == self.fill_to;
        let is_old = match is_replaced {
            true => incarnation.checked_add(1) == Some(seat.incarnation),
            false => is_new,
        };
        (is_old && before.contains(from), is_new && after.contains(from))
    }

    /// PROTOCOL 8.1-f, 10-r, 10-t: whether this node may answer READQ and serve clients' reads: a new
    /// incarnation, or a new member, once it has executed all slots below its first, one that goes
    /// until then.
    pub fn may_answer(&self) -> bool {
        self.speaks(self.exec)
    }

    /// Whether this node is a member that takes clients' work: not if it was replaced or removed, or is
    /// not a member yet.
    pub fn is_active(&self) -> bool {
        let seat = self.seats.get(usize::from(self.config.me));
        seat.is_some_and(|seat| seat.incarnation == self.config.incarnation)
            && self.newest().contains(self.config.me)
            && self.may_answer()
    }

    /// PROTOCOL 10-q, 10-s, 10-t: whether this node takes part in a slot: a new incarnation, or a new
    /// member, not before it has executed all slots in which it does not count.
    pub(crate) fn speaks(&self, slot: Slot) -> bool {
        let (me, incarnation) = (self.config.me, self.config.incarnation);
        let Some(seat) = self.seats.get(usize::from(me)) else { return false };
        self.counts(me, incarnation, slot)
            && (incarnation != seat.incarnation
                || self.exec >= seat.from
                || mutant!("a new disk speaks before its place"))
    }

    /// The owner of the slot has been replaced, or was removed as lost, and speaks of it no more, as
    /// far as anyone knows.
    pub(crate) fn is_replaced(&self, owner: Node, slot: Slot) -> bool {
        let is_replaced = slot < self.seats[usize::from(owner)].from || self.lost.contains(owner);
        is_replaced && !mutant!("a replaced owner is waited for")
    }

    /// The end of the slots that this incarnation may speak of.
    pub(crate) fn speaks_until(&self) -> Slot {
        let me = self.config.me;
        match self.seats.get(usize::from(me)) {
            Some(seat) if seat.incarnation != self.config.incarnation => seat.from,
            _ if !self.newest().contains(me) => self.newest().from,
            _ => Slot::MAX,
        }
    }

    /// PROTOCOL 10-l, 10-o, 10-p: a change was executed: what it says of every slot is known before
    /// any slot that it governs comes into the window, and the slots before it are filled, work or
    /// none.
    pub(crate) fn on_executed(&mut self, change: Option<Change>, now: Nanos, fx: &mut Effects) {
        self.is_waiting_for_change = false;
        if let Some(change) = change {
            self.take_change(change);
            self.fill(now, fx);
        }
        self.in_use_named(now, fx);
        self.skip_own(fx);
        self.null_unknown(now, fx);
    }

    pub(crate) fn take_change(&mut self, change: Change) {
        let from = match &change {
            Change::Replace { seat, .. } => seat.from,
            Change::Reconfigure { next, .. } => next.from,
        };
        match change {
            Change::Replace { node, seat } => self.seats[usize::from(node)] = seat,
            Change::Reconfigure { next, lost } => {
                let joined = next.members.iter().map(|node| usize::from(*node) + 1).max();
                let count = joined.unwrap_or(0).max(self.seats.len());
                self.seats.resize(count, Seat { incarnation: 1, from });
                self.lost = self.lost.union(lost);
                // PROTOCOL 5.5-h: F* of the new n and f.
                self.configurations.push(next.with(self.config.fast));
            }
        }
        self.epoch += 1;
        self.fill_to = self.fill_to.max(from);
        self.take_place(from);
    }

    /// Everything that a checkpoint says of who counts.
    pub(crate) fn set_membership(&mut self, membership: Membership) {
        let Membership { seats, lost, configurations, epoch, effect } = membership;
        (self.seats, self.lost, self.epoch, self.fill_to) = (seats, lost, epoch, effect);
        let known = configurations.into_iter().map(|it| it.with(self.config.fast));
        self.configurations.replace_all(known.collect());
        let seat = self.seats.get(usize::from(self.config.me)).copied();
        self.own_next = self.own_from(0);
        self.take_place(seat.map_or(0, |seat| seat.from));
    }

    /// PROTOCOL 10-n, 10-s: own slots from where a change takes effect are those of the configuration
    /// there, and none of them was opened or skipped, but perhaps before a restart, below the R found
    /// then: what the log kept may end before the change; a new incarnation has none below.
    fn take_place(&mut self, from: Slot) {
        let (me, incarnation) = (self.config.me, self.config.incarnation);
        let seat = self.seats.get(usize::from(me));
        let is_new = seat.is_some_and(|it| it.incarnation == incarnation && it.from == from);
        if is_new || self.own_next >= from {
            self.own_next = self.own_from(from.max(self.unknown_end));
        }
        if let Some(last) = self.seats.len().checked_sub(1) {
            self.know(last as Node);
        }
    }

    /// What is heard of a node has its place, also of one that no change executed here names yet.
    pub(crate) fn know(&mut self, node: Node) {
        let peer = crate::core::Peer::new(&self.config);
        let count = self.peers.len().max(usize::from(node) + 1);
        self.peers.resize(count, peer);
    }

    /// All slots up to where a change takes effect are in use: owners skip theirs, and those of the
    /// replaced one are nulled at once.
    pub(crate) fn fill(&mut self, now: Nanos, fx: &mut Effects) {
        let is_near = self.fill_to <= self.exec + self.config.alpha;
        if self.is_filling() && is_near && !mutant!("slots before a change left open") {
            self.in_use(self.fill_to - 1, now, fx);
            // PROTOCOL 10-o: replaced owners' slots are not waited for.
            self.wake = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchInfo, Config, Effect, Input, Record, Recovery, Value};

    /// Node 2 of 3,1,1 as it restarts with R = 11 on its disk, and without any decision.
    fn restarted() -> Core {
        let config = Config { alpha: 10, ..Config::new((3, 1, 1), 2) };
        let mut recovery = Recovery::new(config).unwrap();
        recovery.record(Record::Reserve { to: 11 }, None).unwrap();
        recovery.finish(0)
    }

    /// tests PROTOCOL 10-n: slot 10 became an own one by a change that the log does not tell, and was
    /// opened perhaps, below the R that it tells.
    #[test]
    fn slots_that_a_change_gave_before_a_restart_are_not_opened_after_it() {
        let (mut core, mut fx) = (restarted(), Effects::default());
        core.start(0, &mut fx);
        let batch = BatchInfo { digest: 5, touches: [].into(), is_change: true };
        core.step(Input::Spread { from: 0, slot: 0, batch, room: true }, 0, &mut fx);
        let message = Message::Decide { slot: 0, value: Value::Batch(5) };
        core.step(Input::Message { from: 0, message }, 0, &mut fx);
        let next = Configuration::new(10, vec![0, 2, 1], 1, 1).unwrap();
        assert_eq!(next.owner(10), 2);
        let change = Change::Reconfigure { next, lost: NodeSet::EMPTY };
        core.step(Input::Executed { change: Some(change) }, 0, &mut fx);
        assert_eq!((core.exec(), core.reservation() > 10), (1, true));
        assert_eq!(core.own_next, 13, "10 is an own slot below R, the next one is 13");
        let refused = |slot: Slot| {
            let no_hold = |effect: &Effect| match effect {
                Effect::Persist { record: Record::NoHold { from, to }, .. } => {
                    (*from..*to).contains(&slot)
                }
                _ => false,
            };
            fx.list.iter().any(no_hold)
        };
        assert!(refused(8) && refused(10), "like any other that may have been opened");
    }
}
