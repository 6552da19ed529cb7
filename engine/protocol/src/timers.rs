//! Slots in use, timers and suspicion (PROTOCOL 3.3, 5.5, 6.5).
//!
//! Invariant: every slot below the highest in use has, until it is decided, a timer that ends in a
//! proposal of this node and one that asks the others. No timer matters for safety.

use crate::config::Wait;
use crate::core::{Core, NEVER};
use crate::effects::Effects;
use crate::slot::{Segment, SlotState};
use crate::{Nanos, Node, NodeSet, Slot, Value};

/// T_skip expiries in a row after which an owner is not waited for.
const EXPIRIES_TO_SUSPECT: u32 = 3;
/// Slots decided in a row without a node's PROPOSE after which votes do not wait for it.
const MISSED_TO_IGNORE: u32 = 3;
/// Slots stored in time after which a doubled T_hold is halved again.
const GOOD_SLOTS_TO_RELAX: u32 = 1000;
const HOLD_MAX: Nanos = 1_000_000_000;

impl Core {
    /// Marks a slot, and with it every lower one, as in use. False: it lies beyond the window.
    /// PROTOCOL 3.3-a, 6.1-d, 6.1-p: the lower ones are in use from now on, and nothing else is
    /// inferred.
    pub(crate) fn in_use(&mut self, slot: Slot, now: Nanos, fx: &mut Effects) -> bool {
        if slot < self.seen {
            return true;
        }
        if slot >= self.exec + self.config.alpha && !mutant!("no end of the window") {
            self.named = self.named.max(slot.saturating_add(1));
            return false;
        }
        let wait = self.pull_wait();
        for index in self.seen..=slot {
            if self.get(index).is_none() {
                self.slots.push_back(SlotState::new(now, wait));
            }
            if self.is_queue() {
                self.wake = self.wake.min(now + wait);
                continue;
            }
            let owner = usize::from(self.owner(index));
            // PROTOCOL 6.5-j: at once, so that its record goes with that of the slot named.
            let due = if self.peers[owner].suspected { now } else { now + self.skip_wait(owner) };
            self.wake = self.wake.min(due).min(now + wait);
        }
        self.seen = slot + 1;
        self.skip_own(fx);
        true
    }

    /// What was named beyond the window is in use as soon as the window reaches it.
    pub(crate) fn in_use_named(&mut self, now: Nanos, fx: &mut Effects) {
        if self.seen < self.named && self.named <= self.exec + self.config.alpha {
            self.in_use(self.named - 1, now, fx);
        }
    }

    /// PROTOCOL 8.1-m: somebody here waits for a slot: if it lies beyond the window, the whole
    /// window is in use, so that this node asks for it and learns from the answers how far behind
    /// it is.
    pub(crate) fn wanted(&mut self, slot: Slot, now: Nanos, fx: &mut Effects) {
        if slot >= self.exec && !self.in_use(slot, now, fx) {
            self.in_use(self.exec + self.config.alpha - 1, now, fx);
        }
    }

    /// A message that takes part in some slot came from this node.
    pub(crate) fn heard(&mut self, from: Node) {
        let peer = &mut self.peers[usize::from(from)];
        peer.silent = 0;
        peer.suspected = false;
    }

    /// The owner of a slot said what becomes of it: learn how long that takes.
    pub(crate) fn word_of_owner(&mut self, slot: Slot, owner: Node, now: Nanos) {
        let Some(state) = self.get_mut(slot) else { return };
        if state.batch.is_some() || state.skipped {
            return;
        }
        let waited = now.saturating_sub(state.since);
        let refused = state.proposal.is_some_and(|said| said.what == Value::Null);
        let announced = state.announced;
        if !announced {
            self.peers[usize::from(owner)].word.observe(waited);
        }
        if refused {
            self.word_came_late(owner);
        } else {
            let least = self.config.timing.hold;
            let peer = &mut self.peers[usize::from(owner)];
            peer.good_slots += 1;
            if peer.good_slots >= GOOD_SLOTS_TO_RELAX {
                peer.good_slots = 0;
                // PROTOCOL 6.5-h
                peer.hold = (peer.hold / 2).max(least);
            }
        }
    }

    /// The owner's word came after this node had given up: wait longer next time.
    pub(crate) fn word_came_late(&mut self, owner: Node) {
        let longest = self.config.timing.skip_max;
        let peer = &mut self.peers[usize::from(owner)];
        peer.word.observe(longest);
        // PROTOCOL 6.5-h
        peer.hold = (peer.hold * 2).min(HOLD_MAX);
        peer.good_slots = 0;
    }

    /// PROTOCOL 6.5-g: T_skip of an owner: 8 x the 99th percentile of what its word takes, within
    /// bounds.
    fn skip_wait(&self, owner: usize) -> Nanos {
        let timing = &self.config.timing;
        (self.peers[owner].word.get() * 8).clamp(timing.skip_min, timing.skip_max)
    }

    /// PROTOCOL 5.5-e: tau1: waiting longer than a vote round costs is pointless, and so is waiting
    /// longer than the last proposal usually takes.
    pub(crate) fn vote_wait(&self) -> Nanos {
        match self.config.timing.vote_wait {
            Wait::Fixed(wait) => wait,
            Wait::Adaptive => (self.flush_cost.get() * 3 / 2).min(self.last_gap.get()),
        }
    }

    /// PROTOCOL 12.2-b: first wait before asking the others about an undecided slot.
    pub(crate) fn pull_wait(&self) -> Nanos {
        let timing = &self.config.timing;
        (self.decision_time.get() * 2).clamp(timing.pull_min, timing.pull_max)
    }

    /// PROTOCOL 5.5-f: nodes that votes do not wait for.
    pub(crate) fn not_awaited(&self) -> NodeSet {
        let mut set = NodeSet::EMPTY;
        for (node, peer) in self.peers.iter().enumerate() {
            if peer.suspected || peer.missed >= MISSED_TO_IGNORE {
                set.insert(node as Node);
            }
        }
        set
    }

    /// PROTOCOL 3.3-b: everything that is due, of every undecided slot in use.
    pub(crate) fn tick(&mut self, now: Nanos, fx: &mut Effects) {
        self.wake = NEVER;
        self.catchup_due(now, fx);
        let told_below = self.told_below();
        let mut expired = Vec::new();
        // What is waited for follows from the slots decided so far.
        let mut waiting = self.waiting_rule(now);
        for slot in self.exec..self.seen {
            let state = self.get(slot).expect("every slot in use has a state");
            if state.decided().is_some() {
                continue;
            }
            let thresholds = &self.configurations.at(slot).thresholds;
            let is_silent = state.contest.is_none() && state.consensus.heard_little(thresholds);
            // PROTOCOL 6.5-l
            let is_coming = slot < told_below;
            if let Some(due) = self.refusal_due(slot, state).filter(|_| !is_coming) {
                if due <= now {
                    expired.push(slot);
                } else {
                    self.wake = self.wake.min(due);
                }
            }
            if !is_silent && self.advance_by(slot, waiting, fx) {
                waiting = self.waiting_rule(now);
            }
        }
        self.expire(&expired, fx);
        self.pull_due(now, fx);
    }

    /// When this node gives up waiting for the batch of a slot and proposes 0 (T_skip, T_hold).
    /// PROTOCOL 5.2-s, 6.5-a, 6.5-f: until it has proposed, or the slot is decided, also after a
    /// vote.
    fn refusal_due(&self, slot: Slot, state: &SlotState) -> Option<Nanos> {
        // Most slots in use were proposed for: that is looked at before anything else.
        if state.proposal.is_some() || mutant!("no timer for a silent owner") {
            return None;
        }
        let owner = usize::from(self.owner(slot));
        // PROTOCOL 6.5-c: own slots are opened, skipped, or treated as 4.3-j says.
        if state.consensus.has_voted() && mutant!("a vote stops the timer") {
            return None;
        }
        let is_own = owner == usize::from(self.config.me) || self.is_queue();
        if is_own || !self.speaks(slot) {
            return None;
        }
        let peer = &self.peers[owner];
        Some(match state.named_since {
            // PROTOCOL 4.3-l, 6.5-d: T_hold once a candidate is named.
            Some(named) => named + peer.hold,
            // PROTOCOL 6.5-i
            None if peer.suspected => state.since,
            // PROTOCOL 10-o
            None if self.is_replaced(owner as Node, slot) => state.since,
            // PROTOCOL 4.3-k
            None if state.owner_null && state.segment == Segment::None => state.since,
            None => state.since + self.skip_wait(owner),
        })
    }

    /// PROTOCOL 6.5-b, 5.2-u: NOHOLD for expired slots, as one range for each run of one owner's
    /// slots.
    fn expire(&mut self, expired: &[Slot], fx: &mut Effects) {
        let mut owners = NodeSet::EMPTY;
        expired.iter().for_each(|slot| owners.insert(self.owner(*slot)));
        for owner in owners.iter() {
            let mut run: Option<(Slot, Slot)> = None;
            for slot in expired.iter().copied() {
                if self.owner(slot) != owner {
                    continue;
                }
                let Some(state) = self.get(slot) else { continue };
                if state.proposal.is_some() || state.decided().is_some() {
                    continue;
                }
                let waited = !self.peers[usize::from(owner)].suspected
                    && !state.owner_null
                    && !self.is_replaced(owner, slot);
                if waited {
                    self.note_expiry(usize::from(owner));
                }
                match run {
                    Some((from, last)) if slot == self.configurations.next_of(owner, last + 1) => {
                        run = Some((from, slot));
                    }
                    Some((from, last)) => {
                        self.refuse(from, last + 1, fx);
                        run = Some((slot, slot));
                    }
                    None => run = Some((slot, slot)),
                }
            }
            if let Some((from, last)) = run {
                self.refuse(from, last + 1, fx);
            }
        }
    }

    fn note_expiry(&mut self, owner: usize) {
        self.counters.skip_timeouts += 1;
        let peer = &mut self.peers[owner];
        peer.silent += 1;
        // PROTOCOL 6.5-i
        if peer.silent >= EXPIRIES_TO_SUSPECT {
            peer.suspected = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchInfo, Config, Input, Message};

    const MS: Nanos = 1_000_000;

    /// Node 4 of 5,1,3; slot s belongs to node s mod 5.
    fn node() -> (Core, Effects) {
        let config = Config { alpha: 1 << 20, ..Config::new((5, 1, 3), 4) };
        (Core::new(config).expect("possible parameters"), Effects::default())
    }

    fn spread(core: &mut Core, slot: Slot, now: Nanos, fx: &mut Effects) {
        let from = core.owner(slot);
        let batch = BatchInfo { digest: u128::from(slot), touches: [1].into(), is_change: false };
        core.step(Input::Spread { from, slot, batch, room: true }, now, fx);
    }

    /// tests PROTOCOL 6.5-h
    #[test]
    fn hold_doubles_for_late_batches_and_is_halved_after_good_ones() {
        let (mut core, mut fx) = node();
        let least = core.config().timing.hold;
        assert_eq!((least, core.peers[0].hold), (20 * MS, 20 * MS));
        for (late, factor) in [(0, 2), (1, 4), (2, 8), (3, 16), (4, 32), (5, 50), (6, 50)] {
            let slot = late * 5;
            core.in_use(slot, 0, &mut fx);
            core.refuse(slot, slot + 1, &mut fx);
            spread(&mut core, slot, MS, &mut fx);
            assert_eq!(core.peers[0].hold, least * factor, "at most {HOLD_MAX}");
        }
        let doubled = core.peers[0].hold;
        for good in 0..2 * u64::from(GOOD_SLOTS_TO_RELAX) {
            let halvings = good / u64::from(GOOD_SLOTS_TO_RELAX);
            assert_eq!(core.peers[0].hold, doubled >> halvings, "after {good} good slots");
            spread(&mut core, 35 + good * 5, MS, &mut fx);
        }
        assert_eq!(core.peers[0].hold, doubled >> 2);
        assert_eq!(core.peers[1].hold, least, "of this owner only");
    }

    /// tests PROTOCOL 6.5-g
    #[test]
    fn skip_follows_what_the_owners_word_takes() {
        let (mut core, _) = node();
        assert_eq!(core.skip_wait(0), 3 * MS);
        let settle = |core: &mut Core, word| {
            (0..20_000).for_each(|_| core.peers[0].word.observe(word));
            core.skip_wait(0)
        };
        assert_eq!(settle(&mut core, MS), 8 * MS);
        assert_eq!(settle(&mut core, 500 * MS), core.config().timing.skip_max);
        assert_eq!(settle(&mut core, 1), 3 * MS);
        assert_eq!(core.skip_wait(1), 3 * MS);
    }

    /// tests PROTOCOL 5.5-e
    #[test]
    fn the_wait_before_a_vote_is_at_most_what_a_vote_costs_and_what_the_last_one_takes() {
        let (mut core, _) = node();
        let settle = |core: &mut Core, flush, gap| {
            (0..20_000).for_each(|_| {
                core.flush_cost.observe(flush);
                core.last_gap.observe(gap);
            });
            core.vote_wait()
        };
        let flush_bound = settle(&mut core, 400_000, 50 * MS);
        assert!((500_000..=600_000).contains(&flush_bound), "{flush_bound}");
        assert_eq!(settle(&mut core, 400_000, 20_000), 20_000);
        core.config.timing.vote_wait = Wait::Fixed(7);
        assert_eq!(core.vote_wait(), 7);
    }

    /// tests PROTOCOL 5.5-d: slots that a tick passes over because little was heard of them.
    #[test]
    fn a_slot_of_which_little_was_heard_is_voted_for_when_the_wait_that_a_quorum_began_ends() {
        let mut config = Config::new((7, 2, 3), 6);
        config.timing.vote_wait = Wait::Fixed(MS / 2);
        let (mut core, mut fx) = (Core::new(config).unwrap(), Effects::default());
        let heard_little = |core: &Core| core.slots[0].consensus.heard_little(core.thresholds());
        let votes = |core: &mut Core, now, fx: &mut Effects| {
            core.step(Input::Tick, now, fx);
            core.counters().votes
        };
        for from in [1, 2, 3, 4, 0] {
            assert_eq!(votes(&mut core, 0, &mut fx), 0, "before that of {from}");
            assert!(core.slots.is_empty() || heard_little(&core), "before that of {from}");
            let message = Message::Propose { slot: 0, value: Value::Null };
            core.step(Input::Message { from, message }, 0, &mut fx);
        }
        assert!(!heard_little(&core), "a quorum waits for more");
        assert_eq!(votes(&mut core, MS / 2 - 1, &mut fx), 0);
        assert_eq!(votes(&mut core, MS / 2, &mut fx), 1);
    }

    /// tests PROTOCOL 5.5-f
    #[test]
    fn who_missed_three_decisions_is_not_awaited_until_heard() {
        let (mut core, mut fx) = node();
        let slots: Vec<Slot> = (0..3).map(|round| round * 5).collect();
        for slot in slots {
            assert!(!core.not_awaited().contains(3), "slot {slot}");
            for from in 0..3 {
                let vote = crate::Ballot::For(Value::Null);
                let propose = Message::Propose { slot, value: Value::Null };
                core.step(Input::Message { from, message: propose }, MS, &mut fx);
                let message = Message::Vote { slot, phase: 0, ballot: vote };
                core.step(Input::Message { from, message }, MS, &mut fx);
            }
        }
        assert!(core.not_awaited().contains(3) && !core.not_awaited().contains(2));
        let propose = Message::Propose { slot: 15, value: Value::Null };
        core.step(Input::Message { from: 3, message: propose }, MS, &mut fx);
        assert!(!core.not_awaited().contains(3));
    }
}
