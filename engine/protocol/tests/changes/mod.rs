//! The shipped [`Core`] of one disk as it executes a log with changes of the members, slot by slot: whom it counts
//! in which slot, what it would open, and whom it asks, depends on nothing else.

use racos_protocol::{BatchInfo, Change, Core, Effect, Effects, Input, Message, Node, Slot, Value};

/// A change, and the slot that holds it. All other slots are null.
pub type Log = Vec<(Slot, Change)>;

fn batch(slot: Slot) -> BatchInfo {
    BatchInfo { digest: 1000 + u128::from(slot), touches: [].into(), is_change: true }
}

/// A disk at every exec that it comes to, from that of this core up to `until`: over own slots that it skips it
/// goes at once.
pub fn executing(mut core: Core, log: &Log, until: Slot) -> Vec<Core> {
    let mut fx = Effects::default();
    core.start(0, &mut fx);
    settle(&mut core, fx, log);
    let mut all = vec![core.clone()];
    while core.exec() < until {
        let slot = core.exec();
        let other: Node = if core.config().me == 0 { 1 } else { 0 };
        let is_change = log.iter().any(|(of, _)| *of == slot);
        open_own(&mut core, log);
        let value = if is_change { Value::Batch(batch(slot).digest) } else { Value::Null };
        let message = Message::Decide { slot, value };
        step(&mut core, Input::Message { from: other, message }, log);
        if is_change {
            step(&mut core, Input::Meta { slot, batch: batch(slot) }, log);
        }
        assert!(core.exec() > slot, "a slot is executed once it is decided");
        all.push(core.clone());
    }
    let executed = log.iter().filter(|(of, _)| *of < core.exec()).count();
    assert_eq!(core.epoch() as usize, 1 + executed, "the log is what it executed");
    all
}

/// Its own slots that hold changes it has opened itself, as soon as it could.
fn open_own(core: &mut Core, log: &Log) {
    let exec = core.exec();
    for slot in log.iter().map(|(slot, _)| *slot).filter(|slot| *slot >= exec) {
        if core.owner(slot) == core.config().me && core.can_open().is_some_and(|own| own < slot) {
            // It passes over those below.
            step(core, Input::InUse { slot: slot - 1 }, log);
        }
        if core.can_open() == Some(slot) {
            step(core, Input::Open { batch: batch(slot) }, log);
        }
    }
}

fn step(core: &mut Core, input: Input, log: &Log) {
    let mut fx = Effects::default();
    core.step(input, 0, &mut fx);
    settle(core, fx, log);
}

/// Every flush is done, every change that is applied is admitted.
fn settle(core: &mut Core, fx: Effects, log: &Log) {
    for effect in fx.list {
        match effect {
            Effect::Persist { release, .. } => step(core, Input::Durable(release), log),
            Effect::Apply { slot, value: Value::Batch(_) } => {
                let change = log.iter().find(|(of, _)| *of == slot);
                let change = change.map(|(_, change)| change.clone());
                step(core, Input::Executed { change }, log);
            }
            Effect::Fatal(why) => panic!("{why}"),
            _ => {}
        }
    }
}
