//! Which incarnation of each node counts in which slot (PROTOCOL 10).
//!
//! Purpose: a replaced disk speaks for the slots below the one where the change takes effect, the new
//! one for those from there on; a node follows both rules for itself.
//! Invariant: of one node, no two incarnations count in one slot.
//! What would break it: learning of a change later than the first slot that it governs comes into the
//! window; hence execution stops at a change until its outcome is known.

use crate::core::Core;
use crate::effects::Effects;
use crate::{Message, Nanos, Node, Slot};

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
        if incarnation == self.incarnation {
            return slot >= self.from;
        }
        slot < self.from && incarnation.checked_add(1) == Some(self.incarnation)
    }
}

/// An admitted change, executed just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub node: Node,
    pub seat: Seat,
}

impl Core {
    /// The configuration as of exec.
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

    /// Whether a message of this incarnation may be taken in: what takes part in a slot only if it
    /// counts there, facts and questions from everybody.
    pub fn hears(&self, from: Node, incarnation: u32, message: &Message) -> bool {
        let Some(seat) = self.seats.get(usize::from(from)) else { return false };
        let counts = |first: Slot, last: Slot| {
            seat.counts(incarnation, first) && seat.counts(incarnation, last)
        };
        match *message {
            Message::Propose { slot, .. }
            | Message::Vote { slot, .. }
            | Message::State { slot, .. }
            | Message::Opening { slot } => counts(slot, slot),
            Message::ProposeNull { from, to } | Message::Skip { from, to } => {
                from < to && counts(from, to - 1)
            }
            // PROTOCOL 9.3-a
            Message::Decide { .. }
            | Message::Pull { .. }
            | Message::Seen { .. }
            | Message::GetMeta { .. } => true,
        }
    }

    /// Whether an answer to a READQ counts in the quorum of the old configuration and in that of the
    /// new one; they differ only while a change is executed and not in effect.
    pub fn reads_count(&self, from: Node, incarnation: u32) -> (bool, bool) {
        let Some(seat) = self.seats.get(usize::from(from)) else { return (false, false) };
        let is_new = incarnation == seat.incarnation;
        let is_replaced = self.is_filling() && seat.from == self.fill_to;
        let is_old = match is_replaced {
            true => incarnation.checked_add(1) == Some(seat.incarnation),
            false => is_new,
        };
        (is_old, is_new)
    }

    /// PROTOCOL 8.1-f, 10-r, 10-t: whether this node may answer READQ and serve clients' reads: a new
    /// incarnation once it has executed all slots below its first, an old one until then.
    pub fn may_answer(&self) -> bool {
        self.speaks(self.exec)
    }

    /// Whether this node is a member that takes clients' work: not if it was replaced, or is not a
    /// member yet.
    pub fn is_active(&self) -> bool {
        self.seats[usize::from(self.config.me)].incarnation == self.config.incarnation
            && self.may_answer()
    }

    /// PROTOCOL 10-q, 10-s, 10-t: whether this node takes part in a slot: a new incarnation not before
    /// it has executed all that its predecessor may have spoken of.
    pub(crate) fn speaks(&self, slot: Slot) -> bool {
        let seat = self.seats[usize::from(self.config.me)];
        let incarnation = self.config.incarnation;
        seat.counts(incarnation, slot)
            && (incarnation != seat.incarnation || self.exec >= seat.from)
    }

    /// The owner of the slot has been replaced and speaks of it no more, as far as anyone knows.
    pub(crate) fn is_replaced(&self, owner: Node, slot: Slot) -> bool {
        slot < self.seats[usize::from(owner)].from
    }

    /// The end of the slots that this incarnation may speak of.
    pub(crate) fn speaks_until(&self) -> Slot {
        let seat = self.seats[usize::from(self.config.me)];
        if seat.incarnation == self.config.incarnation { Slot::MAX } else { seat.from }
    }

    /// PROTOCOL 10-l, 10-o, 10-p: a change was executed: what it says of every slot is known before
    /// any slot that it governs comes into the window, and the slots before it are filled, work or
    /// none.
    pub(crate) fn on_executed(&mut self, change: Option<Change>, now: Nanos, fx: &mut Effects) {
        self.is_waiting_for_change = false;
        if let Some(change) = change {
            self.take_seat(change);
            self.fill(now, fx);
        }
        self.in_use_named(now, fx);
        self.skip_own(fx);
        self.null_unknown(now, fx);
    }

    pub(crate) fn take_seat(&mut self, change: Change) {
        let Change { node, seat } = change;
        self.seats[usize::from(node)] = seat;
        self.epoch += 1;
        self.fill_to = self.fill_to.max(seat.from);
        if node == self.config.me && seat.incarnation == self.config.incarnation {
            // PROTOCOL 10-s
            self.own_next = self.own_next.max(self.first_own(seat.from));
        }
    }

    /// The first own slot at or above this one.
    pub(crate) fn first_own(&self, slot: Slot) -> Slot {
        let (n, me) = (self.t.n as Slot, Slot::from(self.config.me));
        me + slot.saturating_sub(me).div_ceil(n) * n
    }

    /// All slots up to where a change takes effect are in use: owners skip theirs, and those of the
    /// replaced one are nulled at once.
    pub(crate) fn fill(&mut self, now: Nanos, fx: &mut Effects) {
        if self.is_filling() && self.fill_to <= self.exec + self.config.alpha {
            self.in_use(self.fill_to - 1, now, fx);
            // PROTOCOL 10-o: replaced owners' slots are not waited for.
            self.wake = now;
        }
    }
}
