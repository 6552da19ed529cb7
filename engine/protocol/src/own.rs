//! Own slots: reservation, opening and skipping (PROTOCOL 4.3, 6.1).
//!
//! Invariant: an own slot is opened at most once in the life of the disk, never after it was
//! skipped, and opened or skipped only below the flushed reservation.

use crate::consensus::Contradiction;
use crate::core::Core;
use crate::effects::{Effect, Effects, Record, Release, Target};
use crate::slot::{Said, Segment};
use crate::{BatchInfo, Message, Nanos, Path, Slot, Value};

/// Own slots reserved ahead of need. A restart has to null at most this many.
const RESERVE_AHEAD: Slot = 64;

impl Core {
    /// The slot that [`crate::Input::Open`] would take now, if it may.
    pub fn can_open(&self) -> Option<Slot> {
        let slot = self.own_next;
        let behind = self.peers.iter().any(|peer| peer.exec > slot);
        // PROTOCOL 4.3-b, 6.1-b, 6.1-d: below R and the window, at most W at a time.
        let usable = !self.is_queue()
            && (slot < self.reserved || mutant!("slots opened beyond the reservation"))
            && slot < self.exec + self.config.alpha
            && self.own_open < self.config.own_slots_max
            && self.speaks(slot)
            && !behind
            && !self.stopped;
        usable.then_some(slot)
    }

    /// The first own slot at or above this one; the end of all slots for a node that has none.
    pub(crate) fn own_from(&self, slot: Slot) -> Slot {
        self.configurations.next_of(self.config.me, slot)
    }

    /// Own slots opened and not executed.
    pub fn own_open(&self) -> usize {
        self.own_open
    }

    pub(crate) fn open(&mut self, batch: BatchInfo, now: Nanos, fx: &mut Effects) {
        let slot = self.can_open().expect("the caller asked can_open");
        // PROTOCOL 6.1-a, 6.1-l: from here on the slot can never be skipped or opened again.
        self.own_next = self.own_from(slot + 1);
        self.in_use(slot, now, fx);
        let digest = batch.digest;
        let state = self.get_mut(slot).expect("an opened slot is in the window");
        assert!(state.proposal.is_none() && !state.skipped, "own slot {slot} opened twice");
        state.opened = true;
        state.named_since = Some(now);
        state.batch = Some(batch);
        state.segment = Segment::Appended;
        state.appended_at = now;
        state.proposal = Some(Said { what: Value::Batch(digest), durable: false });
        state.consensus.name(Value::Batch(digest)).expect("a fresh own slot names nothing");
        self.own_open += 1;
        fx.push(Effect::Opened { slot });
        fx.push(Effect::Persist {
            record: Record::Hold { slot, digest },
            release: Release::Propose { slot, value: Value::Batch(digest) },
        });
        self.reserve(fx);
    }

    /// PROTOCOL 6.1-h, 6.5-c: own slots below the highest slot in use will never be opened.
    pub(crate) fn skip_own(&mut self, fx: &mut Effects) {
        if self.is_queue() {
            return;
        }
        // PROTOCOL 6.1-l, 9.3-i: nothing below exec is opened.
        if self.own_next < self.exec && !mutant!("own_next left behind") {
            // Decided without this node having spoken: nothing is left to skip there.
            self.own_next = self.own_from(self.exec);
        }
        // PROTOCOL 4.3-c, 6.1-j: below R as flushed and the window; the rest later.
        let mut to = self.seen.min(self.reserved).min(self.exec + self.config.alpha);
        if mutant!("slots skipped beyond the reservation") {
            to = self.seen.min(self.exec + self.config.alpha);
        }
        // PROTOCOL 10-q, 10-s: only slots in which this incarnation counts.
        let to = if self.speaks(self.own_next) { to.min(self.speaks_until()) } else { 0 };
        if self.own_next < to {
            let from = self.own_next;
            let mut slot = from;
            while slot < to {
                if let Some(state) = self.get_mut(slot) {
                    assert!(!state.opened, "own open slot {slot} skipped");
                    state.skipped = true;
                    // PROTOCOL 6.1-k
                    match state.consensus.told(Value::Null) {
                        Ok(true) => self.counters.skipped += 1,
                        Ok(false) => {}
                        Err(contradiction) => return self.fatal(slot, contradiction, fx),
                    }
                }
                slot = self.own_from(slot + 1);
            }
            self.own_next = slot;
            // PROTOCOL 6.1-i, 6.1-m: the range is fixed now: computed when sent, it could cover a
            // slot opened in between.
            fx.send(Target::Others, Message::Skip { from, to });
        }
        self.reserve(fx);
    }

    /// PROTOCOL 4.3-a, 4.3-d, 4.3-e: R is extended ahead of need, and never beyond the first own
    /// slot at or above exec + alpha.
    pub(crate) fn reserve(&mut self, fx: &mut Effects) {
        if self.is_queue() || !self.speaks(self.own_next) {
            return;
        }
        let n = self.at(self.own_next).members.len() as Slot;
        // An end of own slots: the first one behind it, or it itself where this node has none.
        let end_at = |slot: Slot| match self.own_from(slot) {
            Slot::MAX => slot,
            own => own,
        };
        // PROTOCOL 10-n: slots that are filled are reserved at once.
        let filled = if self.is_filling() { end_at(self.fill_to) } else { 0 };
        let enough = self.own_next + RESERVE_AHEAD / 2 * n < self.reserved_appended;
        if enough && filled <= self.reserved_appended {
            return;
        }
        let cap = end_at(self.exec + self.config.alpha);
        let to = (self.own_next + RESERVE_AHEAD * n).max(filled).min(cap);
        if to > self.reserved_appended {
            self.reserved_appended = to;
            let (record, release) = (Record::Reserve { to }, Release::Reserve { to });
            fx.push(Effect::Persist { record, release });
        }
    }

    /// PROTOCOL 4.3-j, 6.5-c: own slots below the R found at restart, without a PROPOSE record, may
    /// have been opened: they are proposed null like anybody else's.
    pub(crate) fn null_unknown(&mut self, now: Nanos, fx: &mut Effects) {
        if mutant!("silent in unknown own slots") {
            return;
        }
        // PROTOCOL 10-l: whose slots those beyond the window are is not known yet.
        let end = self.unknown_end.min(self.exec + self.config.alpha);
        if self.unknown_next >= end {
            return;
        }
        let mut run: Option<Slot> = None;
        let mut last = 0;
        let mut slot = self.own_from(self.unknown_next.max(self.exec));
        self.unknown_next = end;
        while slot < end {
            self.in_use(slot, now, fx);
            let state = self.get_mut(slot).expect("a slot in use has a state");
            // PROTOCOL 5.2-u: a range leaves out every slot with a PROPOSE record, and every
            // decided one.
            let refuse = state.proposal.is_none() && state.decided().is_none();
            let refuse = refuse && self.speaks(slot);
            match (refuse, run) {
                (true, None) => run = Some(slot),
                (false, Some(from)) => {
                    self.refuse(from, slot, fx);
                    run = None;
                }
                _ => {}
            }
            last = slot;
            slot = self.own_from(slot + 1);
        }
        if let Some(from) = run {
            self.refuse(from, last + 1, fx);
        }
    }

    /// PROTOCOL 6.1-n, 12.1-f: exactly the owner's slots of the range, each by itself.
    /// SKIP from the owner: null without consensus, since only the owner could make a candidate.
    pub(crate) fn on_skip(
        &mut self,
        from: crate::Node,
        first: Slot,
        to: Slot,
        now: Nanos,
        fx: &mut Effects,
    ) {
        // PROTOCOL 3.2-f: slots of one owner, the sender.
        let end = self.exec + self.config.alpha;
        if to <= first || (first < end && self.owner(first) != from) {
            return;
        }
        // PROTOCOL 6.1-g, 9.4-c: a SKIP that reaches beyond the window is applied below its end.
        if to > end {
            self.named = self.named.max(to);
            self.lags_behind(from, to - 1, now, fx);
        }
        let end = to.min(end);
        let mut slot = self.configurations.next_of(from, first.max(self.exec));
        if slot >= end {
            return;
        }
        self.in_use(end - 1, now, fx);
        while slot < end {
            self.word_of_owner(slot, from, now);
            if let Some(state) = self.get_mut(slot) {
                if state.proposal.is_some_and(|said| said.what != Value::Null) {
                    // PROTOCOL 6.1-o: the owner opened this slot and promised not to skip it.
                    let why = format!("node {from} skips a slot whose batch is held here");
                    return self.fatal(slot, Contradiction(why), fx);
                }
                match state.consensus.told(Value::Null) {
                    Ok(true) => {
                        state.skipped = true;
                        self.note_decision(slot, Value::Null, Path::Told, now);
                    }
                    Ok(false) => {}
                    Err(contradiction) => return self.fatal(slot, contradiction, fx),
                }
            }
            slot = self.configurations.next_of(from, slot + 1);
        }
    }
}
