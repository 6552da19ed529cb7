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
        // PROTOCOL 12.3-c: what is told in ranges is not asked for one by one.
        for slot in self.exec.max(self.told_below())..self.seen {
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
        self.seek_facts(from, now, fx);
    }

    /// PROTOCOL 6.1-f, 9.4-b: a message beyond the window is evidence that this node lags.
    pub(crate) fn lags_behind(&mut self, from: Node, slot: Slot, now: Nanos, fx: &mut Effects) {
        let Some(peer) = self.peers.get_mut(usize::from(from)) else { return };
        peer.exec = peer.exec.max(slot.saturating_add(1).saturating_sub(self.config.alpha));
        self.seek_facts(from, now, fx);
    }

    /// The slots below were executed by a peer that tells them when it is asked: they come in ranges
    /// of facts, and nothing else is done about them.
    pub(crate) fn told_below(&self) -> Slot {
        let tells = self.peers.iter().filter(|peer| !peer.is_mute);
        tells.map(|peer| peer.exec).max().unwrap_or(0)
    }

    /// PROTOCOL 12.3-a, 12.3-e: if peers are known to be ahead, and none of them is asked, one is: of
    /// those that answer, if there are such, the first from this one on.
    pub(crate) fn seek_facts(&mut self, first: Node, now: Nanos, fx: &mut Effects) {
        if self.catchup.is_some() {
            return;
        }
        let (n, me) = (self.peers.len(), usize::from(self.config.me));
        let ahead = (0..n)
            .map(|step| (usize::from(first) + step) % n)
            .filter(|node| *node != me && self.peers[*node].exec > self.exec);
        if let Some(node) = ahead.min_by_key(|node| self.peers[*node].is_mute) {
            self.ask_facts(node as Node, now, fx);
        }
    }

    /// PROTOCOL 12.3-a, 9.1-e: one peer at a time.
    fn ask_facts(&mut self, from: Node, now: Nanos, fx: &mut Effects) {
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
            self.peers[usize::from(from)].is_mute = false;
        }
        self.seek_facts(from, now, fx);
    }

    /// PROTOCOL 12.3-b, 12.3-e: the node asked for facts is silent: another one that is ahead, if any.
    pub(crate) fn catchup_due(&mut self, now: Nanos, fx: &mut Effects) {
        let Some(catchup) = self.catchup else { return };
        if now < catchup.deadline {
            self.wake = self.wake.min(catchup.deadline);
            return;
        }
        self.catchup = None;
        let asked = &mut self.peers[usize::from(catchup.from)];
        asked.is_mute |= self.exec < asked.exec && !mutant!("a silent peer waited for");
        self.seek_facts(catchup.from + 1, now, fx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchInfo, Config, Input, Record};

    const MS: Nanos = 1_000_000;
    /// Slots told at once: the next one is not its own, which it has skipped.
    const RANGE: Slot = 65;

    /// Node 4 of 5,1,3, started; slot s belongs to node s mod 5.
    struct Lagging {
        core: Core,
        now: Nanos,
        /// The first slot of each range asked for, and of whom.
        asked: Vec<(Node, Slot)>,
        /// Questions about single slots; slots of others refused.
        pulls: usize,
        refused: usize,
    }

    impl Lagging {
        fn new() -> Lagging {
            let config = Config { alpha: 256, ..Config::new((5, 1, 3), 4) };
            let core = Core::new(config).expect("possible parameters");
            let mut node = Lagging { core, now: 0, asked: vec![], pulls: 0, refused: 0 };
            let mut fx = Effects::default();
            node.core.start(0, &mut fx);
            node.carry_out(fx);
            node
        }

        fn step(&mut self, input: Input) {
            let mut fx = Effects::default();
            self.core.step(input, self.now, &mut fx);
            self.carry_out(fx);
        }

        fn carry_out(&mut self, fx: Effects) {
            for effect in fx.list {
                match effect {
                    Effect::Send { to, message: Message::Pull { from, facts: true, .. } } => {
                        let Target::One(to) = to else { panic!("facts are asked of one node") };
                        self.asked.push((to, from));
                    }
                    Effect::Send { message: Message::Pull { wanted, .. }, .. } if wanted != 0 => {
                        self.pulls += 1;
                    }
                    Effect::Persist { record, release } => {
                        if let Record::NoHold { from, to } = record {
                            self.refused += (from..to).step_by(5).count();
                        }
                        self.step(Input::Durable(release));
                    }
                    _ => {}
                }
            }
        }

        fn says(&mut self, from: Node, message: Message) {
            self.step(Input::Message { from, message });
        }

        fn tells_exec(&mut self, from: Node, exec: Slot) {
            self.says(from, Message::Seen { exec, seen: exec });
        }

        /// A range of facts: the slots of node 1 hold batches.
        fn tells(&mut self, from: Node, slots: std::ops::Range<Slot>, exec: Slot) {
            for slot in slots {
                let batch = BatchInfo { digest: 7, touches: [1].into(), is_change: false };
                let is_null = slot % 5 != 1;
                let value = if is_null { Value::Null } else { Value::Batch(batch.digest) };
                self.says(from, Message::Decide { slot, value });
                if !is_null {
                    self.step(Input::Meta { slot, batch });
                }
            }
            self.step(Input::FactsEnd { from, exec });
        }

        /// Time passes, and every timer runs out that is due.
        fn pass(&mut self, time: Nanos) {
            let until = self.now + time;
            while self.now < until {
                self.now += MS;
                if self.core.deadline().is_some_and(|at| at <= self.now) {
                    self.step(Input::Tick);
                }
            }
        }
    }

    /// tests PROTOCOL 12.3-a, 12.3-c, 6.5-l
    #[test]
    fn a_node_that_lags_asks_once_for_each_range_and_refuses_nothing_that_others_executed() {
        for ranges in [10, 100] {
            let mut node = Lagging::new();
            let behind = ranges * RANGE;
            for peer in 0..4 {
                node.tells_exec(peer, behind);
            }
            while node.core.exec() < behind {
                // It takes longer than any timer of a slot waits.
                node.pass(120 * MS);
                (0..4).for_each(|peer| node.tells_exec(peer, behind));
                let (of, from) = *node.asked.last().expect("it knows that it lags");
                assert_eq!(from, node.core.exec());
                node.tells(of, from..from + RANGE, behind);
            }
            let starts: Vec<Slot> = (0..ranges).map(|range| range * RANGE).collect();
            let asked: Vec<Slot> = node.asked.iter().map(|(_, from)| *from).collect();
            assert_eq!(asked, starts, "each range once, the next as soon as one came");
            assert!(node.asked.iter().all(|(of, _)| *of == 0), "of one node that answers");
            assert_eq!((node.refused, node.pulls), (0, 0), "{behind} slots behind");
        }
    }

    /// tests PROTOCOL 12.3-b, 12.3-e
    #[test]
    fn what_silent_peers_executed_is_refused_and_asked_for_like_any_other_slot() {
        let mut node = Lagging::new();
        node.tells_exec(2, 100);
        node.pass(FACTS_PATIENCE - MS);
        assert_eq!((node.refused, node.pulls, node.asked.len()), (0, 0, 1));
        // Nobody says anything: the slots have owners 0 to 3 in four of five cases.
        node.pass(20 * MS);
        assert_eq!((node.refused, node.asked.len()), (80, 2));
        assert!(node.pulls > 0, "all are asked, too");
        // That it says how far it is shows nothing; that it tells what it knows does.
        let pulls = node.pulls;
        node.tells_exec(2, 200);
        node.pass(20 * MS);
        assert_eq!(node.refused, 160);
        assert!(node.pulls > pulls);
        node.tells(2, 0..RANGE, 200);
        let (refused, pulls) = (node.refused, node.pulls);
        node.tells_exec(2, 250);
        node.pass(200 * MS);
        assert_eq!((node.refused, node.pulls), (refused, pulls));
        assert_eq!(node.asked.last(), Some(&(2, RANGE)));
    }

    /// tests PROTOCOL 12.3-e
    #[test]
    fn a_peer_that_answers_is_asked_rather_than_one_that_did_not() {
        let mut node = Lagging::new();
        node.tells_exec(1, 200);
        node.pass(FACTS_PATIENCE + MS);
        node.tells_exec(3, 200);
        node.pass(FACTS_PATIENCE);
        assert_eq!(node.asked.iter().map(|(of, _)| *of).collect::<Vec<_>>(), [1, 1, 3]);
        node.tells(3, 0..RANGE, 200);
        assert_eq!(node.asked.last(), Some(&(3, RANGE)));
        node.tells_exec(2, 300);
        node.pass(FACTS_PATIENCE + MS);
        assert_eq!(node.asked.last(), Some(&(2, RANGE)), "the other one that is not silent");
    }

    /// tests PROTOCOL 6.5-i
    #[test]
    fn a_node_that_is_a_whole_window_behind_is_not_waited_for_again() {
        let mut node = Lagging::new();
        node.tells(0, 0..300, 300);
        assert_eq!(node.core.exec(), 300);
        node.core.peers[3].suspected = true;
        node.says(3, Message::Skip { from: 3, to: 40 });
        node.says(3, Message::Vote { slot: 43, phase: 0, ballot: crate::Ballot::Open(None) });
        assert!(node.core.suspected().contains(3));
        node.says(3, Message::Propose { slot: 44, value: Value::Null });
        assert!(!node.core.suspected().contains(3));
    }
}
