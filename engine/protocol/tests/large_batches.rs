//! A batch that takes longer to arrive than T_skip.

use racos_protocol::{Config, Core, Effect, Effects, Input, Message, Nanos, Record, Timing};

const MS: Nanos = 1_000_000;

fn node(me: u8) -> Core {
    let config = Config { alpha: 64, ..Config::new((3, 1, 1), me) };
    Core::new(config).expect("a possible configuration")
}

fn refused(effects: &Effects) -> bool {
    let null = |effect: &Effect| {
        matches!(effect, Effect::Persist { record: Record::NoHold { from: 0, .. }, .. })
    };
    effects.list.iter().any(null)
}

/// Slot 0 of node 0 in use at node 1 since `start`; `announced`: its owner has said OPENING.
/// Returns whether node 1 has refused the slot at `start + wait`.
fn refuses(announced: bool, wait: Nanos) -> bool {
    let (mut core, mut effects, start) = (node(1), Effects::default(), 10 * MS);
    core.start(start, &mut effects);
    effects.list.clear();
    let input = match announced {
        true => Input::Message { from: 0, message: Message::Opening { slot: 0 } },
        false => Input::InUse { slot: 0 },
    };
    core.step(input, start, &mut effects);
    core.step(Input::Tick, start + wait, &mut effects);
    refused(&effects)
}

#[test]
fn an_announced_batch_is_waited_for_longer_than_a_silent_owner() {
    // tests PROTOCOL 6.5-k
    let timing = Timing::default();
    assert!(refuses(false, timing.skip_min + MS), "T_skip for a silent owner");
    assert!(!refuses(true, timing.skip_min + MS), "T_hold for one that has announced its batch");
    assert!(refuses(true, timing.hold + MS), "and no longer than that");
}

#[test]
fn only_the_owner_can_announce() {
    // tests PROTOCOL 5.1-a
    let (mut core, mut effects) = (node(1), Effects::default());
    core.start(MS, &mut effects);
    let message = Message::Opening { slot: 0 };
    core.step(Input::Message { from: 2, message }, MS, &mut effects);
    assert_eq!(core.seen(), 0);
}
