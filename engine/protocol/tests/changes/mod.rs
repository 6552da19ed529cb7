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
        let value = if is_change { Value::Batch(batch(slot).digest) } else { Value::Null };
        let message = Message::Decide { slot, value };
        step(&mut core, Input::Message { from: other, message }, log);
        if is_change {
            step(&mut core, Input::Meta { slot, batch: batch(slot) }, log);
        }
        assert!(core.exec() > slot, "a slot is executed once it is decided");
        all.push(core.clone());
    }
    all
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
