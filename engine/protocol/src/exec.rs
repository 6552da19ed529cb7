//! Execution in slot order, and what a decision teaches about the other nodes (PROTOCOL 7).
//!
//! Invariant: `exec` moves over a slot only when it is decided and, if it holds a batch, its metas
//! are known; effects `Apply` come in slot order without gaps.

use crate::consensus::Contradiction;
use crate::core::Core;
use crate::effects::{Effect, Effects};
use crate::{Nanos, Node, Path, Slot, Thresholds, Value};

impl Core {
    /// Applies what can be applied, and does what waited for exec to move.
    pub(crate) fn execute(&mut self, now: Nanos, fx: &mut Effects) {
        self.follow_queue(fx);
        // PROTOCOL 4.3-j, 6.1-j
        while !self.stopped && !self.is_waiting_for_change && self.execute_run(fx) {
            if self.is_waiting_for_change {
                return;
            }
            // Continue what stopped at exec + alpha. It may decide own slots.
            self.in_use_named(now, fx);
            self.skip_own(fx);
            self.null_unknown(now, fx);
        }
        self.propose_oldest(now, fx);
        if self.slots.front().is_some_and(|head| head.decided().is_some())
            && self.exec >= self.told_below()
        {
            // Decided, but its metas are missing: the timer of the slot asks for them.
            let at = self.slots[0].pull_at;
            self.wake = self.wake.min(at);
        }
    }

    /// Returns whether `exec` moved.
    fn execute_run(&mut self, fx: &mut Effects) -> bool {
        let start = self.exec;
        // PROTOCOL 3.3-c, 7-a, 7-b: in slot order, without gaps, never without the metas.
        while let Some(head) = self.slots.front() {
            let Some(value) = head.decided() else { break };
            if value != Value::Null && head.batch.is_none() {
                break;
            }
            let slot = self.exec;
            if head.unsupported(&self.configurations.at(slot).thresholds) {
                // PROTOCOL 13-c: a promise was broken; nobody may build on this slot.
                let why = "decided with a batch that fewer than sup nodes hold".into();
                self.fatal(slot, Contradiction(why), fx);
                break;
            }
            let opened = head.opened;
            let batch = head.batch.as_ref().filter(|_| value != Value::Null);
            let is_change = batch.is_some_and(|batch| batch.is_change);
            // PROTOCOL 9.4-a: what was received of it goes with it.
            self.slots.pop_front();
            self.exec += 1;
            self.seen = self.seen.max(self.exec);
            fx.push(Effect::Apply { slot, value });
            if opened {
                self.own_open -= 1;
                if value == Value::Null {
                    // PROTOCOL 6.2-h: only now may its operations be opened again.
                    fx.push(Effect::Void { slot });
                }
            }
            if is_change {
                self.is_waiting_for_change = true;
                break;
            }
        }
        self.exec != start
    }

    /// Counts a decision and learns from it who was late.
    pub(crate) fn note_decision(&mut self, slot: Slot, value: Value, path: Path, now: Nanos) {
        match (value, path) {
            (Value::Null, Path::Told) => self.counters.skipped += 1,
            (Value::Null, _) => self.counters.null += 1,
            (_, Path::Fast) => self.counters.fast += 1,
            (_, Path::Votes) => self.counters.slow += 1,
            (_, Path::Told) => self.counters.told += 1,
        }
        let Some(state) = self.get(slot) else { return };
        let (heard, since, quorum_at) = (state.heard(), state.since, state.quorum_at);
        if path == Path::Told {
            return;
        }
        self.decision_time.observe(now.saturating_sub(since));
        let others = self.at(slot).thresholds.members.iter().filter(|node| *node != self.config.me);
        for node in others.map(usize::from) {
            if heard.contains(node as Node) {
                self.peers[node].missed = 0;
            } else {
                self.peers[node].missed += 1;
                if let Some(quorum_at) = quorum_at {
                    // How late it will be is not known yet: at least this late.
                    self.last_gap.observe(now.saturating_sub(quorum_at));
                }
            }
        }
    }

    /// Measures how long after a quorum the last proposal comes.
    pub(crate) fn note_heard(&mut self, from: Node, slot: Slot, now: Nanos) {
        self.peers[usize::from(from)].missed = 0;
        let Thresholds { n, quorum, .. } = self.at(slot).thresholds;
        let Some(state) = self.get_mut(slot) else { return };
        let heard = state.heard().len();
        if heard >= quorum {
            let quorum_at = *state.quorum_at.get_or_insert(now);
            if heard == n {
                self.last_gap.observe(now.saturating_sub(quorum_at));
            }
        }
    }
}
