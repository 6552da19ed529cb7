//! Repair of lost messages and catching up (PROTOCOL 9.3, 12).
//!
//! Invariant: an undecided node goes on asking, with growing pauses, until it knows; what it is
//! answered are recorded, durable messages or facts.

use crate::core::{Catchup, Core};
use crate::effects::{Effect, Effects, Target};
use crate::slot::Step;
use crate::{Message, Nanos, Node, NodeSet, Slot, Value};

/// A range of facts that is not answered within this time is asked from another node.
const FACTS_PATIENCE: Nanos = 300_000_000;

impl Core {
    /// PROTOCOL 12.2-a, 12.3-c, 6.5-e, 9.1-e: asks all others, the owner for its SPREAD, about
    /// every slot that is due: what is said here goes along.
    pub(crate) fn pull_due(&mut self, now: Nanos, fx: &mut Effects) {
        if mutant!("nothing asked for again") {
            return;
        }
        let mut base: Option<(Slot, u64)> = None;
        for slot in self.exec..self.seen {
            let Some(index) = self.index(slot) else { continue };
            let (me, state) = (self.config.me, &mut self.slots[index]);
            let undecided = match state.decided() {
                None => true,
                Some(Value::Batch(_)) if state.batch.is_none() => false,
                Some(_) => continue,
            };
            if state.pull_at > now {
                self.wake = self.wake.min(state.pull_at);
                continue;
            }
            // PROTOCOL 12.2-b, 12.2-j: doubling, with jitter that follows from slot and node.
            state.pull_wait = (state.pull_wait * 2).min(self.config.timing.pull_max);
            let jitter = (slot ^ Slot::from(me)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            state.pull_at = now + state.pull_wait + jitter % (state.pull_wait / 4 + 1);
            self.wake = self.wake.min(state.pull_at);
            if !undecided {
                // PROTOCOL 7-g, 12.2-h
                fx.send(Target::Others, Message::GetMeta { slot });
                continue;
            }
            self.counters.pulls += 1;
            // PROTOCOL 12.2-e: as messages of their own, taken like any other.
            self.say_again(slot, Target::Others, fx);
            base = match base {
                Some((from, wanted)) if slot - from < 64 => {
                    Some((from, wanted | 1 << (slot - from)))
                }
                Some((from, wanted)) => {
                    fx.send(Target::Others, Message::Pull { from, wanted, facts: false });
                    Some((slot, 1))
                }
                None => Some((slot, 1)),
            };
        }
        if let Some((from, wanted)) = base {
            fx.send(Target::Others, Message::Pull { from, wanted, facts: false });
        }
    }

    /// PROTOCOL 4.1-g, 4.1-h, 12.2-c: sends what this node has recorded, durably, of an undecided
    /// slot.
    fn say_again(&self, slot: Slot, to: Target, fx: &mut Effects) {
        let Some(state) = self.get(slot) else { return };
        if let Some(said) = state.proposal.filter(|said| said.durable) {
            fx.send(to, Message::Propose { slot, value: said.what });
        }
        for said in state.steps.iter().filter(|said| said.durable) {
            fx.send(
                to,
                match said.what {
                    Step::Vote(phase, ballot) => Message::Vote { slot, phase, ballot },
                    Step::State(phase, value) => Message::State { slot, phase, value },
                },
            );
        }
    }

    /// PROTOCOL 12.2-d, 12.2-f: a PULL makes its slots in use here and is answered with all that is
    /// known.
    pub(crate) fn on_pull(
        &mut self,
        from: Node,
        first: Slot,
        wanted: u64,
        facts: bool,
        now: Nanos,
        fx: &mut Effects,
    ) {
        let highest = match wanted {
            0 => None,
            bits => first.checked_add(63 - u64::from(bits.leading_zeros())),
        };
        if let Some(highest) = highest
            && !self.in_use(highest, now, fx)
        {
            self.lags_behind(from, highest, now, fx);
        }
        // PROTOCOL 12.3-d
        fx.send(Target::One(from), Message::Seen { exec: self.exec, seen: self.seen });
        let wanted_facts =
            highest.map(|highest| highest.saturating_add(1).min(self.exec)).unwrap_or(0);
        let mut until = if facts { self.exec } else { wanted_facts };
        if mutant!("silent once decided") {
            until = first;
        }
        if first < until {
            fx.push(Effect::SendFacts { from: first, until, to: from });
        }
        for bit in NodeSet(wanted).iter() {
            let Some(slot) = first.checked_add(Slot::from(bit)) else { return };
            let Some(state) = self.get(slot) else { continue };
            match state.decided() {
                // PROTOCOL 4.3-i, 5.4-a: DECIDE of what is decided, never a SKIP made up now.
                Some(_) if mutant!("silent once decided") => {}
                Some(value) => fx.send(Target::One(from), Message::Decide { slot, value }),
                None => {
                    self.say_again(slot, Target::One(from), fx);
                    // PROTOCOL 12.2-g
                    if state.opened && !state.consensus.holders().contains(from) {
                        fx.push(Effect::SpreadAgain { slot, to: from });
                    }
                }
            }
        }
    }

    pub(crate) fn on_seen(
        &mut self,
        from: Node,
        exec: Slot,
        seen: Slot,
        now: Nanos,
        fx: &mut Effects,
    ) {
        self.know(from);
        let peer = &mut self.peers[usize::from(from)];
        peer.exec = peer.exec.max(exec);
        if let Some(last) = seen.checked_sub(1) {
            self.wanted(last, now, fx);
        }
        if exec > self.exec && self.catchup.is_none() {
            self.ask_facts(from, now, fx);
        }
    }

    /// PROTOCOL 6.1-f, 9.4-b: a message beyond the window is evidence that this node lags.
    pub(crate) fn lags_behind(&mut self, from: Node, slot: Slot, now: Nanos, fx: &mut Effects) {
        let Some(peer) = self.peers.get_mut(usize::from(from)) else { return };
        peer.exec = peer.exec.max(slot.saturating_add(1).saturating_sub(self.config.alpha));
        if peer.exec > self.exec && self.catchup.is_none() {
            self.ask_facts(from, now, fx);
        }
    }

    /// PROTOCOL 12.3-a, 9.1-e: one peer at a time.
    pub(crate) fn ask_facts(&mut self, from: Node, now: Nanos, fx: &mut Effects) {
        let deadline = now + FACTS_PATIENCE;
        self.catchup = Some(Catchup { from, exec: self.exec, deadline });
        self.wake = self.wake.min(deadline);
        let message = Message::Pull { from: self.exec, wanted: 0, facts: true };
        fx.send(Target::One(from), message);
    }

    pub(crate) fn on_facts_end(&mut self, from: Node, exec: Slot, now: Nanos, fx: &mut Effects) {
        let Some(peer) = self.peers.get_mut(usize::from(from)) else { return };
        peer.exec = peer.exec.max(exec);
        // The facts fed in before this input are decided but not executed yet.
        self.execute(now, fx);
        // An answer that brought nothing is a repeated one, or this peer cannot help: asking it
        // again at once would double the requests in flight, or never end.
        if self.catchup.is_some_and(|catchup| catchup.from == from && catchup.exec < self.exec) {
            self.catchup = None;
            if self.exec < self.peers[usize::from(from)].exec {
                self.ask_facts(from, now, fx);
            }
        }
    }

    /// PROTOCOL 12.3-b: the node asked for facts is silent: another one that is ahead, if any.
    pub(crate) fn catchup_due(&mut self, now: Nanos, fx: &mut Effects) {
        let Some(catchup) = self.catchup else { return };
        if now < catchup.deadline {
            self.wake = self.wake.min(catchup.deadline);
            return;
        }
        self.catchup = None;
        let n = self.peers.len();
        let ahead = (1..=n).map(|step| (usize::from(catchup.from) + step) % n).find(|node| {
            *node != usize::from(self.config.me) && self.peers[*node].exec > self.exec
        });
        if let Some(node) = ahead {
            self.ask_facts(node as Node, now, fx);
        }
    }
}
