//! Jumping over slots of which the peers tell only what came of them all (PROTOCOL 9.3).
//!
//! Invariant: a jump only goes forward, to a state that is durable here; what this node said of slots
//! at or above it stands as it was said.
//! What would break it: forgetting a record of a slot beyond the jump, or opening a slot below it.

use crate::core::Core;
use crate::effects::Effects;
use crate::{Membership, Nanos, Node, Slot};

impl Core {
    /// All slots below `exec` are executed: a state after them was taken from a peer, and is durable.
    ///
    /// # Panics
    /// If `exec` is not above the own one.
    pub fn jump(
        &mut self,
        exec: Slot,
        to: Membership,
        told_by: Node,
        now: Nanos,
        fx: &mut Effects,
    ) {
        assert!(exec > self.exec, "a jump to slot {exec} from {} goes back", self.exec);
        assert!(!self.is_waiting_for_change, "a jump comes between inputs");
        // PROTOCOL 9.3-g: those at or above it stay, with everything that was said of them.
        while self.exec < exec
            && let Some(state) = self.slots.pop_front()
        {
            self.own_open -= usize::from(state.opened);
            self.exec += 1;
        }
        self.exec = exec;
        self.seen = self.seen.max(exec);
        if let Some(queue) = &mut self.queue {
            queue.passed(exec);
        }
        if mutant!("own records dropped by a jump") {
            let opened = self.slots.iter().filter(|state| state.opened).count();
            self.own_open -= opened;
            self.slots.clear();
            self.seen = exec;
        }
        self.catchup = None;
        self.configure(to);
        self.fill(now, fx);
        self.in_use_named(now, fx);
        // PROTOCOL 9.3-i
        self.skip_own(fx);
        self.null_unknown(now, fx);
        self.execute(now, fx);
        if let Some(peer) = self.peers.get_mut(usize::from(told_by)) {
            peer.exec = peer.exec.max(exec);
            peer.is_mute = false;
        }
        self.seek_facts(told_by, now, fx);
        self.wake = now;
    }

    /// PROTOCOL 9.3-i, 10-n: own slots below are settled, or may have been opened; where a change
    /// takes effect that was jumped over, none was.
    fn configure(&mut self, to: Membership) {
        let (epoch, before) = (self.epoch, self.own_next);
        self.set_membership(to);
        let before = if self.epoch == epoch { before } else { before.min(self.fill_to) };
        let exec = if mutant!("own_next left behind") { 0 } else { self.exec };
        // PROTOCOL 4.3-f
        let least = exec.max(self.unknown_end);
        self.own_next = self.own_from(self.own_next.max(before).max(least));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Ballot, BatchInfo, Config, Configuration, Effect, Input, Message, NodeSet, Record,
        Recovery, Seat, Target, Value,
    };

    /// Node 4 of 5,1,3; slot s belongs to node s mod 5.
    fn config() -> Config {
        Config { alpha: 64, ..Config::new((5, 1, 3), 4) }
    }

    fn founding() -> Membership {
        Membership {
            seats: vec![Seat::FOUNDING; 5],
            lost: NodeSet::EMPTY,
            configurations: vec![Configuration::new(0, (0..5).collect(), 1, 3).unwrap()],
            epoch: 1,
            effect: 0,
        }
    }

    fn batch(slot: Slot) -> BatchInfo {
        BatchInfo { digest: u128::from(slot), touches: [1].into(), is_change: false }
    }

    /// Flushes everything that was appended; what was recorded.
    fn flush(core: &mut Core, fx: &mut Effects) -> Vec<Record> {
        let mut records = Vec::new();
        while let Some(at) = fx.list.iter().position(|it| matches!(it, Effect::Persist { .. })) {
            let Effect::Persist { record, release } = fx.list.remove(at) else { unreachable!() };
            records.push(record);
            core.step(Input::Durable(release), 0, fx);
        }
        records
    }

    fn spread(core: &mut Core, slot: Slot, fx: &mut Effects) {
        let from = core.owner(slot);
        core.step(Input::Spread { from, slot, batch: batch(slot), room: true }, 0, fx);
    }

    /// What is said of a slot to whoever asks.
    fn said(core: &mut Core, slot: Slot) -> Vec<Message> {
        let mut fx = Effects::default();
        let message = Message::Pull { from: slot, wanted: 1, facts: false };
        core.step(Input::Message { from: 0, message }, 0, &mut fx);
        let to_asker = fx.list.into_iter().filter_map(|effect| match effect {
            Effect::Send { to: Target::One(0), message } => Some(message),
            _ => None,
        });
        to_asker.filter(|message| !matches!(message, Message::Seen { .. })).collect()
    }

    /// tests PROTOCOL 9.3-g: what was said of a slot beyond the jump is said again, the same, after the
    /// jump and after a restart behind it.
    #[test]
    fn what_was_said_of_slots_beyond_a_jump_stands() {
        let (mut core, mut fx) = (Core::new(config()).unwrap(), Effects::default());
        core.start(0, &mut fx);
        let mut records = flush(&mut core, &mut fx);
        [3, 20, 22].into_iter().for_each(|slot| spread(&mut core, slot, &mut fx));
        for from in 0..3 {
            let message = Message::Propose { slot: 22, value: Value::Batch(22) };
            core.step(Input::Message { from, message }, 0, &mut fx);
        }
        records.extend(flush(&mut core, &mut fx));
        let before = [said(&mut core, 20), said(&mut core, 22)];
        let holds = Message::Propose { slot: 20, value: Value::Batch(20) };
        assert_eq!(before[0], [holds]);
        core.jump(15, founding(), 0, 0, &mut fx);
        assert_eq!((core.exec(), core.seen()), (15, 23));
        assert_eq!([said(&mut core, 20), said(&mut core, 22)], before);
        // A refusal of what was promised would contradict it.
        core.step(Input::Tick, u64::MAX / 2, &mut fx);
        let late = flush(&mut core, &mut fx);
        let refuses = |slot: Slot| {
            late.iter().any(|record| match *record {
                Record::NoHold { from, to } => (from..to).step_by(5).any(|it| it == slot),
                _ => false,
            })
        };
        assert!(!refuses(20) && !refuses(22), "{late:?}");
        let mut recovery = Recovery::new(config()).unwrap();
        recovery.begin_at(15);
        recovery.configure(founding()).unwrap();
        for record in records {
            let info = match record {
                Record::Hold { slot, .. } => Some(batch(slot)),
                _ => None,
            };
            recovery.record(record, info).unwrap();
        }
        assert_eq!(recovery.check(), Ok(()));
        let mut core = recovery.finish(0);
        assert_eq!([said(&mut core, 20), said(&mut core, 22)], before);
    }

    /// tests PROTOCOL 9.3-i: nothing below the jump is opened, and nothing below R either.
    #[test]
    fn own_slots_below_a_jump_are_not_opened() {
        let (mut core, mut fx) = (Core::new(config()).unwrap(), Effects::default());
        core.start(0, &mut fx);
        flush(&mut core, &mut fx);
        assert_eq!(core.can_open(), Some(4));
        core.step(Input::Open { batch: batch(4) }, 0, &mut fx);
        assert_eq!(core.own_open(), 1);
        let reserved = core.reservation();
        core.jump(1003, founding(), 0, 0, &mut fx);
        flush(&mut core, &mut fx);
        assert_eq!(core.own_open(), 0, "what came of it is in the state");
        assert_eq!(core.can_open(), Some(1004));
        assert!(core.reservation() > reserved.max(1004));
        let asks = fx.list.iter().any(|effect| {
            let facts = Message::Pull { from: 1003, wanted: 0, facts: true };
            *effect == Effect::Send { to: Target::One(0), message: facts }
        });
        assert!(!asks, "its sender is not ahead of it");
        assert_eq!(said(&mut core, 4), [], "nothing is said of it any more");
    }

    /// tests PROTOCOL 9.3-i: R as found at a restart counts as well.
    #[test]
    fn own_slots_that_may_have_been_opened_before_a_restart_are_not_opened_after_a_jump() {
        let mut recovery = Recovery::new(config()).unwrap();
        recovery.record(Record::Reserve { to: 54 }, None).unwrap();
        let (mut core, mut fx) = (recovery.finish(0), Effects::default());
        core.start(0, &mut fx);
        flush(&mut core, &mut fx);
        core.jump(20, founding(), 0, 0, &mut fx);
        flush(&mut core, &mut fx);
        assert!(core.can_open().is_some_and(|slot| slot >= 54), "{:?}", core.can_open());
    }

    /// A checkpoint that is lost after a jump leaves a node without the decisions between.
    #[test]
    fn records_beyond_the_window_are_not_believed() {
        let mut recovery = Recovery::new(config()).unwrap();
        let vote = |slot| Record::Vote { slot, phase: 0, ballot: Ballot::For(Value::Null) };
        recovery.record(vote(63), None).unwrap();
        assert_eq!(recovery.check(), Ok(()));
        recovery.record(vote(64), None).unwrap();
        assert!(recovery.check().unwrap_err().contains("missing"));
    }
}
