//! F* at one node (PROTOCOL 5.5-h to 5.5-l): what it votes and takes, that it says the same after a restart, that
//! a read minds what it named, and that words of other terms say nothing to it.

mod cluster;

use cluster::config;
use racos_protocol::{
    Action, Ballot, BatchInfo, Change, Class, Config, Configuration, Consensus, Contest, Core,
    Digest, Effect, Effects, Fast, Input, Message, Node, NodeSet, Policy, Record, Recovery, Target,
    Thresholds, Value, Waiting,
};

type Shape = (usize, usize, usize);

fn least(shape: Shape, me: Node, policy: Policy) -> Config {
    Config { fast: Fast::Least, policy, ..config(shape, me, 1) }
}

fn ready(hash: Digest) -> Digest {
    Class::Ready.mark(hash)
}

const NOW: Waiting = Waiting { now: 0, suspected: NodeSet::EMPTY, vote_wait: 0, support_wait: 0 };

/// What a node does in a slot with an owner that has heard so many proposals for the batch, and for null.
fn after(shape: Shape, digest: Digest, batch: usize, null: usize) -> Action {
    let config = least(shape, 0, Policy::OwnerSlots);
    let t = config.thresholds().unwrap();
    let mut consensus = Consensus::default();
    for node in 0..batch + null {
        let value = if node < batch { Value::Batch(digest) } else { Value::Null };
        consensus.propose(node as Node, value, 0, t.quorum).unwrap();
    }
    consensus.advance(0, &config, &t, NOW).unwrap()
}

/// tests PROTOCOL 5.5-h, 5.5-k
#[test]
fn a_vote_is_weak_while_the_rest_may_have_proposed_the_batch_too() {
    let vote = |ballot| Action::Vote { phase: 0, ballot };
    let digest = ready(7);
    let held = Value::Batch(digest);
    // 7,2,3: q = 5, m = 4, F* = 5.
    for (batch, null, expected) in [
        (5, 0, None),
        (4, 1, Some(Ballot::For(held))),
        (3, 2, Some(Ballot::Weak(digest))),
        (2, 3, Some(Ballot::Open(None))),
        (3, 3, Some(Ballot::Open(None))),
        (1, 4, Some(Ballot::For(Value::Null))),
    ] {
        let action = after((7, 2, 3), digest, batch, null);
        match expected {
            Some(ballot) => assert_eq!(action, vote(ballot), "{batch}, {null}"),
            None => assert!(matches!(action, Action::Decided(_)), "{action:?}"),
        }
    }
    // Of class E nothing changes: five of seven neither decide nor make a vote weak.
    let eager = Class::Eager.mark(7);
    assert_eq!(after((7, 2, 3), eager, 5, 0), vote(Ballot::For(Value::Batch(eager))));
    assert_eq!(after((7, 2, 3), eager, 4, 1), vote(Ballot::Open(None)));
}

/// tests PROTOCOL 5.5-i, 5.5-j
#[test]
fn weak_votes_alone_are_taken_and_the_coins_of_phases_0_and_1_are_null() {
    let config = least((7, 2, 3), 0, Policy::OwnerSlots);
    let t = config.thresholds().unwrap();
    let digest = ready(7);
    let next = |phase: u32, slot, ballots: &[Ballot]| {
        let mut consensus = Consensus::default();
        for (node, ballot) in (0..).zip(ballots) {
            consensus.vote(node, phase, *ballot).unwrap();
        }
        consensus.resume(phase, true);
        match consensus.advance(slot, &config, &t, NOW).unwrap() {
            Action::State { value, .. } => value,
            other => panic!("{other:?}"),
        }
    };
    let (weak, held) = (Ballot::Weak(digest), Value::Batch(digest));
    assert_eq!(next(0, 0, &[weak; 5]), held);
    assert_eq!(next(0, 0, &[weak, weak, weak, weak, Ballot::Open(None)]), Value::Null);
    assert_eq!(next(0, 0, &[weak, weak, weak, weak, Ballot::For(Value::Null)]), Value::Null);
    assert_eq!(next(0, 0, &[weak, weak, weak, weak, Ballot::For(held)]), held);
    let open = [Ballot::Open(Some(digest)); 5];
    let sides = |phase, open: &[Ballot]| (0..32).any(|slot| next(phase, slot, open) != Value::Null);
    assert!(!sides(1, &open) && sides(2, &open), "the coin of phase 2 is free");
    // Of class E that of phase 1 is, too.
    assert!(sides(1, &[Ballot::Open(Some(Class::Eager.mark(7))); 5]));
}

fn messages(fx: &Effects) -> Vec<Message> {
    let sent = fx.list.iter().filter_map(|effect| match effect {
        Effect::Send { to: Target::One(_), message } => Some(*message),
        _ => None,
    });
    sent.collect()
}

/// tests PROTOCOL 5.2-w, 4.1-g, 5.5-h: also two operations of a queue, in different phases.
#[test]
fn what_was_said_is_said_the_same_after_a_restart() {
    for policy in [Policy::OwnerSlots, Policy::Queue] {
        let (a, b) = (ready(1 << 90), ready(2 << 90));
        let second = if policy == Policy::Queue { b } else { a };
        let proposed = match policy {
            Policy::Queue => Record::Propose { slot: 0, candidate: a },
            Policy::OwnerSlots => Record::Hold { slot: 0, digest: a },
        };
        let vote = |phase, ballot| Record::Vote { slot: 0, phase, ballot };
        let mut recovery = Recovery::new(least((7, 2, 3), 2, policy)).unwrap();
        for record in [
            proposed,
            vote(0, Ballot::Weak(a)),
            vote(0, Ballot::Open(None)),
            Record::State { slot: 0, phase: 1, value: Value::Batch(second) },
            vote(1, Ballot::Open(Some(a))),
        ] {
            recovery.record(record, None).unwrap();
        }
        let (mut core, mut fx) = (recovery.finish(0), Effects::default());
        core.start(0, &mut fx);
        fx.list.clear();
        let message = Message::Pull { from: 0, wanted: 1, facts: false };
        core.step(Input::Message { from: 4, message }, 0, &mut fx);
        let said = [
            Message::Propose { slot: 0, value: Value::Batch(a) },
            Message::Vote { slot: 0, phase: 0, ballot: Ballot::Weak(a) },
            Message::State { slot: 0, phase: 1, value: Value::Batch(second) },
            Message::Vote { slot: 0, phase: 1, ballot: Ballot::Open(Some(a)) },
        ];
        assert_eq!(messages(&fx)[1..], said, "after SEEN");
        // And nothing else: with all votes of phase 0 for another it stays where it was.
        fx.list.clear();
        for from in [0, 1, 3, 4, 5, 6] {
            let ballot = if from == 0 { Ballot::Open(None) } else { Ballot::Weak(a) };
            let message = Message::Vote { slot: 0, phase: 0, ballot };
            core.step(Input::Message { from, message }, 0, &mut fx);
        }
        let is_said = |effect: &Effect| matches!(effect, Effect::Persist { .. });
        assert!(!fx.list.iter().any(is_said), "{:?}", fx.list);
    }
}

/// tests PROTOCOL 5.5-l
#[test]
fn a_log_with_a_weak_vote_is_not_gone_on_with_on_other_terms() {
    for policy in [Policy::OwnerSlots, Policy::Queue] {
        let config = Config { fast: Fast::Support, ..least((7, 2, 3), 2, policy) };
        let mut recovery = Recovery::new(config).unwrap();
        let record = Record::Vote { slot: 0, phase: 0, ballot: Ballot::Weak(ready(1)) };
        let why = recovery.record(record, None).unwrap_err();
        assert!(why.contains("founded with fast = \"f*\""), "{why}");
    }
}

/// tests PROTOCOL 5.5-l
#[test]
fn a_weak_vote_says_nothing_to_a_node_of_other_terms() {
    let slots = |fast| {
        let config = Config { fast, ..least((5, 2, 1), 1, Policy::OwnerSlots) };
        let (mut core, mut fx) = (Core::new(config).unwrap(), Effects::default());
        core.start(0, &mut fx);
        let message = Message::Vote { slot: 0, phase: 0, ballot: Ballot::Weak(ready(1)) };
        core.step(Input::Message { from: 0, message }, 0, &mut fx);
        core.seen()
    };
    assert_eq!((slots(Fast::Support), slots(Fast::Least)), (0, 1));
}

/// tests PROTOCOL 8.1-b, 8.1-c: an operation named in a weak vote or a STATE may have been written.
#[test]
fn a_read_waits_for_the_slot_in_which_its_key_was_named() {
    let (own, weak, state) = (ready(1 << 90), ready(2 << 90), ready(3 << 90));
    let records = [
        Record::Propose { slot: 0, candidate: own },
        Record::Vote { slot: 0, phase: 0, ballot: Ballot::Weak(weak) },
        Record::State { slot: 0, phase: 1, value: Value::Batch(state) },
    ];
    for named in 1..=records.len() {
        let mut recovery = Recovery::new(least((7, 2, 3), 2, Policy::Queue)).unwrap();
        for record in &records[..named] {
            recovery.record(*record, None).unwrap();
        }
        let (mut core, mut fx) = (recovery.finish(0), Effects::default());
        core.start(0, &mut fx);
        for (key, digest) in (1..).zip([own, weak, state]) {
            core.store_ahead(BatchInfo { digest, touches: [key].into(), is_change: false });
        }
        for key in 1..=3u64 {
            let mark = core.mark(|batch: &BatchInfo| batch.touches(key));
            assert_eq!(mark, (key <= named as u64).then_some(0), "{named} said, key {key}");
        }
    }
}

/// tests PROTOCOL 5.5-h, 10-l: F* is that of the configuration of the slot.
#[test]
fn another_configuration_has_a_threshold_of_its_own() {
    let fast = |t: &Thresholds| (t.ready_fast, t.has_weak_votes);
    for (chosen, old, new) in
        [(Fast::Least, (4, true), (5, true)), (Fast::Support, (4, false), (6, false))]
    {
        let config = Config { fast: chosen, ..least((5, 1, 3), 0, Policy::OwnerSlots) };
        let (mut core, mut fx) = (Core::new(config).unwrap(), Effects::default());
        core.start(0, &mut fx);
        let next = Configuration::new(100, (0..7).collect(), 2, 3).unwrap();
        assert!(!fast(&next.thresholds).1);
        let change = Change::Reconfigure { next, lost: NodeSet::EMPTY };
        core.step(Input::Executed { change: Some(change) }, 0, &mut fx);
        assert_eq!(fast(&core.at(99).thresholds), old);
        assert_eq!(fast(&core.at(100).thresholds), new);
    }
}

/// tests PROTOCOL 3.2-c, 13-a, 5.5-h: that a vote is weak is part of what it says.
#[test]
fn a_weak_vote_is_not_taken_back() {
    let digest = ready(7);
    let all = [
        Ballot::Weak(digest),
        Ballot::Open(None),
        Ballot::For(Value::Batch(digest)),
        Ballot::For(Value::Null),
    ];
    for first in all {
        for second in all {
            let mut consensus = Consensus::default();
            consensus.vote(3, 0, first).unwrap();
            let again = consensus.vote(3, 0, second);
            assert_eq!(again.is_ok(), first == second, "{first:?}, {second:?}: {again:?}");
        }
    }
    let eager = Ballot::Weak(Class::Eager.mark(7));
    for (phase, ballot) in [(1, Ballot::Weak(digest)), (0, eager)] {
        assert!(Consensus::default().vote(3, phase, ballot).is_err(), "{phase}, {ballot:?}");
    }
}

/// tests PROTOCOL 5.5-j: that a majority proposed one operation does not name it while another may be left.
#[test]
fn another_operation_than_most_proposed_may_be_decided() {
    let config = least((5, 2, 1), 0, Policy::Queue);
    let t = config.thresholds().unwrap();
    let (a, b) = (Value::Batch(ready(1 << 90)), Value::Batch(ready(2 << 90)));
    let (mut contest, mut consensus) = (Contest::default(), Consensus::default());
    for (node, value) in (0..).zip([a, a, a, b, b]) {
        contest.propose(node, value, 0, t.quorum).unwrap();
    }
    let first = contest.advance(&mut consensus, 0, &config, &t, NOW).unwrap();
    assert_eq!(first, Action::Vote { phase: 0, ballot: Ballot::For(a) });
    for from in [1, 3, 4] {
        contest.vote(from, 1, Ballot::For(b)).unwrap();
    }
    match contest.advance(&mut consensus, 0, &config, &t, NOW).unwrap() {
        Action::Decided(decision) => assert_eq!(decision.value, b),
        other => panic!("{other:?}"),
    }
}
