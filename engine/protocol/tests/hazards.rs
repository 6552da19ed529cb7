//! Shortcuts that look harmless and are not (PROTOCOL 2, second table), and proofs of a broken
//! promise that must stop a node: one fixed schedule each.

mod cluster;

use cluster::lab::{Lab, is_hold, is_spread, is_vote};
use cluster::log::{Entry, Key};
use cluster::{MS, Mail, Packet, SECOND, config};
use racos_protocol::{
    Ballot, Core, Effect, Effects, Input, Message, Node, ReadQuorum, ReadStep, Record, Recovery,
    Release, Slot, Target, Value, Wait,
};

type Shape = (usize, usize, usize);

/// A cluster whose nodes vote as soon as they may.
fn eager(shape: Shape) -> Lab {
    Lab::with(shape, |config| {
        config.timing.vote_wait = Wait::Fixed(0);
        config.timing.support_wait = 0;
    })
}

fn spread_batch(lab: &Lab, slot: Slot) -> racos_protocol::BatchInfo {
    let of_slot = |mail: &Mail| match &mail.packet {
        Packet::Spread { slot: of, batch } if *of == slot => Some(batch.clone()),
        _ => None,
    };
    lab.mail.iter().find_map(of_slot).expect("the SPREAD is on its way")
}

/// tests PROTOCOL 5.4-e, 6.2-g
/// PROTOCOL 4.1-f. 3,1,1, proposals 1,1,0.
#[test]
fn own_unflushed_vote_must_not_count() {
    let mut lab = eager((3, 1, 1));
    let slot = lab.open(0);
    let batch = spread_batch(&lab, slot);
    lab.lose(is_spread);
    lab.spread(1, slot, batch.clone(), true);
    lab.spread(2, slot, batch, false);
    lab.flush_each();
    // Nodes 0 and 1 hear 1,1 and vote; only node 1 flushes its vote.
    lab.deliver(|mail| is_hold(mail) && mail.to < 2);
    assert_eq!(lab.core(0).counters().votes, 1);
    lab.flush_all(1);
    lab.deliver(|mail| is_vote(mail) && mail.to == 0);
    assert_eq!(lab.exec(0), slot, "one vote is not f+1: its own is not flushed");
    assert!(lab.acknowledged.is_empty());
    // Node 0 loses power, and node 1 is cut off: 0 and 2 hear 1,0 and finish with what they like,
    // since nobody has decided anything. The oracle checks that node 1 agrees later.
    lab.crash(0);
    lab.lose(|_| true);
    lab.restart(0);
    lab.pass_among(100 * MS, &[0, 2]);
    assert!(lab.exec(0) > slot && lab.exec(2) > slot);
    lab.pass_among(300 * MS, &[0, 1, 2]);
    assert!(lab.exec(1) > slot);
}

/// PROTOCOL 4.3: the owner loses power between SPREAD and its flush.
#[test]
fn owner_restarts_between_spread_and_flush() {
    for heard in 0..3 {
        let mut lab = eager((3, 1, 1));
        let slot = lab.open(0);
        lab.deliver(|mail| is_spread(mail) && mail.to <= heard);
        lab.lose(|_| true);
        lab.crash(0);
        lab.restart(0);
        lab.pass_among(300 * MS, &[0, 1, 2]);
        assert!(lab.nodes().all(|node| lab.exec(node) > slot), "slot {slot} hangs");
        // With two holders and one null, the slot may be decided either way: the oracle checks that
        // it is one way, and that a batch has its holders.
        let value = lab.oracle.decided[&slot];
        assert!(heard == 2 || value == Value::Null);
        let next = lab.open(0);
        assert!(next > slot, "the slot is used twice");
        lab.settle();
        assert!(lab.acknowledged.contains(&next));
    }
}

/// tests PROTOCOL 4.3-f, 9.1-a, 11-n
/// PROTOCOL 4.3-g. The batch spread before the crash is decided; a new one in the same slot would
/// be the second.
#[test]
fn restarted_owner_does_not_reopen_unknown_slots() {
    let mut lab = eager((3, 1, 1));
    let slot = lab.open(0);
    lab.deliver(is_spread);
    lab.crash(0);
    lab.settle_among(&[1, 2]);
    assert!(lab.exec(1) > slot, "both others hold it and vote for it");
    lab.mail.clear();
    lab.restart(0);
    let reserved = lab.hosts[0].log.reserved();
    assert!(reserved > slot);
    assert_eq!(lab.core(0).can_open(), None, "nothing above the old reservation is reserved yet");
    lab.flush_all(0);
    assert!(lab.core(0).can_open().is_none_or(|next| next >= reserved));
    // Nor does it skip them: a SKIP would contradict nodes 1 and 2, which decide the batch.
    let skips = |mail: &Mail| matches!(mail.packet, Packet::Message(Message::Skip { .. }));
    assert!(!lab.mail.iter().any(skips), "it skipped a slot that it may have opened");
    assert_eq!(lab.hosts[0].log.durable(Key::Propose(slot)), Some(Ballot::For(Value::Null)));
    lab.pass_among(300 * MS, &[0, 1, 2]);
    assert!(matches!(lab.oracle.decided[&slot], Value::Batch(_)));
    let next = lab.core(0).can_open().expect("a new reservation is flushed");
    assert!(next >= reserved, "own slots below {reserved} may have been opened before");
}

/// PROTOCOL 6.1-p. A SPREAD of a higher slot says nothing of a lower one that is late.
#[test]
fn silence_below_a_higher_slot_is_not_null() {
    let mut lab = eager((5, 1, 2));
    let (low, high) = (lab.open(0), lab.open(0));
    let late = |mail: &Mail| match mail.packet {
        Packet::Spread { slot, .. } => slot == low && mail.to > 2,
        Packet::Message(Message::Propose { slot, .. }) => slot == low && mail.to > 2,
        _ => false,
    };
    let held: Vec<Mail> = lab.mail.iter().filter(|mail| late(mail)).cloned().collect();
    lab.lose(late);
    lab.flush_each();
    while lab.deliver(|mail| !late(mail)) > 0 {
        lab.flush_each();
    }
    assert!(lab.nodes().skip(3).all(|node| lab.core(node).seen() > high));
    assert!(lab.nodes().skip(3).all(|node| lab.exec(node) <= low), "null was inferred");
    lab.mail.extend(held);
    lab.settle();
    assert_eq!(lab.acknowledged, [low, high]);
}

/// tests PROTOCOL 6.1-h, 6.1-i
/// PROTOCOL 6.1-m. SKIP leaves when slots are skipped, and not for a slot opened after that.
#[test]
fn skip_range_is_fixed_when_slots_are_skipped() {
    let mut lab = eager((3, 1, 1));
    // Node 0 hears of slot 4 and skips its slots 0 and 3; then it opens slot 6 before the SKIP
    // has arrived anywhere.
    lab.input(0, Input::InUse { slot: 4 });
    assert_eq!(lab.sent(0, 1), [Message::Skip { from: 0, to: 5 }]);
    let slot = lab.open(0);
    assert_eq!(slot, 6);
    let skips: Vec<Message> = lab.sent(0, 1);
    assert_eq!(skips, [Message::Skip { from: 0, to: 5 }], "the range grew");
    lab.settle();
    lab.pass_among(100 * MS, &[0, 1, 2]);
    assert_eq!(lab.acknowledged, [slot]);
}

/// PROTOCOL 7-f. A decided slot waits for the lower ones before its client is answered.
#[test]
fn acknowledged_only_when_all_lower_slots_are_decided() {
    let mut lab = eager((3, 1, 1));
    // Node 1 opens slot 1, while node 0 has said nothing of slot 0.
    lab.lose(|_| true);
    let slot = lab.open(1);
    assert_eq!(slot, 1);
    let from_owner_of_zero = |mail: &Mail| {
        mail.from == 0 && matches!(mail.packet, Packet::Message(Message::Skip { .. }))
    };
    // Everything but node 0's SKIP arrives.
    for _ in 0..6 {
        lab.deliver(|mail| !from_owner_of_zero(mail));
        lab.flush_each();
    }
    assert_eq!(lab.core(1).counters().fast + lab.core(1).counters().slow, 1, "slot 1 is decided");
    assert!(lab.acknowledged.is_empty(), "a later write may still take slot 0");
    lab.settle();
    assert_eq!(lab.acknowledged, [slot]);
}

/// tests PROTOCOL 5.2-t
/// PROTOCOL 5.2-v. SEG-ONLY is not a proposal, also not after a restart.
#[test]
fn a_late_fragment_is_no_proposal_after_restart() {
    let mut lab = eager((5, 1, 3));
    let slot = lab.open(0);
    let batch = spread_batch(&lab, slot);
    lab.lose(|_| true);
    lab.spread(4, slot, batch.clone(), false);
    lab.flush_all(4);
    let null = Some(Ballot::For(Value::Null));
    assert_eq!(lab.hosts[4].log.durable(Key::Propose(slot)), null);
    // Now there is room, and the fragment is kept.
    lab.spread(4, slot, batch.clone(), true);
    lab.flush_all(4);
    let kept = |entry: &Entry| matches!(entry, Entry::Record { record: Record::SegmentOnly { slot: s, .. }, .. } if *s == slot);
    assert!(lab.hosts[4].log.entries.iter().any(kept));
    lab.crash(4);
    lab.mail.clear();
    lab.restart(4);
    assert!(lab.core(4).has_segment(slot));
    // Asked, and given the fragment again, it says 0 and nothing else.
    lab.message(3, 4, Message::Pull { from: slot, wanted: 1, facts: false });
    lab.spread(4, slot, batch, true);
    lab.flush_all(4);
    let said: Vec<Message> = lab
        .mail
        .iter()
        .filter(|mail| mail.from == 4)
        .filter_map(|mail| match mail.packet {
            Packet::Message(message @ Message::Propose { slot: of, .. }) if of == slot => {
                Some(message)
            }
            _ => None,
        })
        .collect();
    assert!(!said.is_empty());
    assert!(said.iter().all(|m| *m == Message::Propose { slot, value: Value::Null }), "{said:?}");
    assert_ne!(lab.core(4).mark(|_| true), Some(slot), "it has named the batch");
}

/// PROTOCOL 5.2-m. A `?` of a later phase carries the candidate to nodes that heard nothing else.
#[test]
fn open_votes_carry_the_candidate() {
    let shape = (3, 1, 1);
    let config = config(shape, 2, 7);
    let slot = (2u64..).step_by(3).find(|slot| config.coin.flip(1, 0, *slot, 1)).unwrap();
    let mut config = config;
    config.alpha = slot + 64;
    config.timing.vote_wait = Wait::Fixed(0);
    let mut core = Core::new(config).unwrap();
    let mut fx = Effects::default();
    core.start(0, &mut fx);
    // Node 2 voted `?` in phase 0 and is now in phase 1, without a word of the batch. It hears two
    // votes `?` of phase 1 that carry the candidate, and must take it, as the coin says.
    let value = Value::Null;
    let mut feed = |core: &mut Core, from, message| {
        fx.list.clear();
        core.step(Input::Message { from, message }, MS, &mut fx);
        std::mem::take(&mut fx.list)
    };
    for from in 0..2 {
        feed(&mut core, from, Message::Propose { slot, value });
    }
    for from in 0..2 {
        feed(&mut core, from, Message::Vote { slot, phase: 0, ballot: Ballot::Open(None) });
    }
    feed(&mut core, 0, Message::State { slot, phase: 1, value });
    feed(&mut core, 1, Message::State { slot, phase: 1, value });
    let ballot = Ballot::Open(Some(99));
    feed(&mut core, 0, Message::Vote { slot, phase: 1, ballot });
    let done = feed(&mut core, 1, Message::Vote { slot, phase: 1, ballot });
    let state = Record::State { slot, phase: 2, value: Value::Batch(99) };
    let takes =
        |effect: &Effect| matches!(effect, Effect::Persist { record, .. } if *record == state);
    assert!(done.iter().any(takes), "{done:?}");
    // It says so; hearing another state than its own, it votes `?` and names the candidate.
    fx.list.clear();
    core.step(
        Input::Durable(Release::State { slot, phase: 2, value: Value::Batch(99) }),
        MS,
        &mut fx,
    );
    core.step(
        Input::Message { from: 0, message: Message::State { slot, phase: 2, value } },
        MS,
        &mut fx,
    );
    let record = Record::Vote { slot, phase: 2, ballot };
    let votes =
        |effect: &Effect| matches!(effect, Effect::Persist { record: r, .. } if *r == record);
    assert!(fx.list.iter().any(votes), "{:?}", fx.list);
}

/// PROTOCOL 8.1-k. One decision for all keys of a read: a key deleted at the newest node is absent,
/// whatever an older node still shows.
#[test]
fn a_read_of_several_keys_is_one_instant() {
    let mut read = ReadQuorum::new(3);
    // Node 1 shows an old version of key b, which slot 11 has deleted: nodes 0 and 2 have executed it.
    assert!(read.answer(1, 10, None), "the first answer is kept");
    assert!(read.answer(0, 12, None), "a newer one replaces all of it");
    assert!(!read.answer(2, 12, Some(11)), "an equal one does not");
    assert_eq!(read.step(), ReadStep::Use(0), "all keys come from node 0");
}

/// tests PROTOCOL 4.3-a, 4.3-d, 4.3-e
/// PROTOCOL 4.3. The reservation is exclusive, durable before use, and ends at the window.
#[test]
fn the_reservation_is_exact() {
    for alpha in [6, 7, 8, 30, 64] {
        let mut lab = Lab::with((3, 1, 1), |config| config.alpha = alpha);
        for node in lab.nodes() {
            let reserved = lab.hosts[usize::from(node)].log.reserved();
            assert_eq!(reserved % 3, u64::from(node), "R is one of the own slots");
            // The first own slot at or above exec + alpha.
            assert!(
                reserved >= alpha && reserved < alpha + 3,
                "node {node}: {reserved} of {alpha}"
            );
        }
        // Writes by one node only; after every single one it loses power. The oracle stops a slot
        // that is used twice.
        for _ in 0..12 {
            let slot = lab.open(0);
            assert!(slot < lab.hosts[0].log.reserved(), "slot {slot} is not below R");
            lab.crash(0);
            lab.mail.clear();
            lab.restart(0);
            lab.pass_among(200 * MS, &[0, 1, 2]);
            assert!(lab.exec(0) > slot);
        }
    }
}

/// tests PROTOCOL 6.1-n, 12.2-a
/// PROTOCOL 6.1, 12. SKIP is lost on the way to one node: it asks and goes on.
#[test]
fn a_lost_skip_is_repaired() {
    let mut lab = Lab::new((3, 1, 1));
    let slot = lab.open(2);
    assert_eq!(slot, 2);
    let skip = |mail: &Mail| matches!(mail.packet, Packet::Message(Message::Skip { .. }));
    lab.deliver(is_spread);
    assert_eq!(lab.lose(|mail| skip(mail) && mail.to == 1), 1, "node 0's SKIP to node 1");
    lab.settle();
    assert_eq!(lab.exec(1), 0);
    assert!(lab.exec(2) > slot);
    lab.pass_among(20 * MS, &[0, 1, 2]);
    assert!(lab.exec(1) > slot);
    assert_eq!(lab.oracle.decided[&0], Value::Null);
}

/// tests PROTOCOL 5.2-r, 5.2-s
/// PROTOCOL 6.5-f. A node that has voted and not proposed still owes its proposal.
#[test]
fn timers_go_on_after_a_vote() {
    let mut lab = eager((5, 1, 2));
    let slot = lab.open(0);
    lab.deliver(|mail| is_spread(mail) && mail.to < 4);
    lab.lose(is_spread);
    lab.flush_each();
    // Node 4 hears four proposals... three: with two more nodes away nobody else can help.
    let batch = lab.hosts[0].log.durable(Key::Propose(slot)).unwrap().candidate().unwrap();
    lab.lose(|_| true);
    for (from, value) in
        [(0, Value::Batch(batch)), (1, Value::Batch(batch)), (2, Value::Null), (3, Value::Null)]
    {
        lab.message(from, 4, Message::Propose { slot, value });
    }
    assert_eq!(lab.core(4).counters().votes, 1, "it has voted");
    lab.flush_all(4);
    assert_eq!(lab.hosts[4].log.durable(Key::Propose(slot)), None);
    lab.lose(|_| true);
    lab.pass(100 * MS);
    lab.flush_all(4);
    let null = Some(Ballot::For(Value::Null));
    assert_eq!(lab.hosts[4].log.durable(Key::Propose(slot)), null, "T_hold stopped at the vote");
    let proposes = |message: &Message| match *message {
        Message::ProposeNull { from, to } => (from..to).contains(&slot),
        Message::Propose { slot: of, value: Value::Null } => of == slot,
        _ => false,
    };
    assert!(lab.sent(4, 0).iter().any(proposes));
}

/// What the core answers to a message about slot 0, whose batch node 1 of 3 holds.
fn held_and_told(messages: &[(Node, Message)]) -> (Core, Vec<Effect>) {
    let mut core = Core::new(config((3, 1, 1), 1, 1)).unwrap();
    let mut fx = Effects::default();
    core.start(0, &mut fx);
    let batch = racos_protocol::BatchInfo { digest: 5, touches: [1].into(), is_change: false };
    core.step(Input::Spread { from: 0, slot: 0, batch, room: true }, MS, &mut fx);
    fx.list.clear();
    for (from, message) in messages {
        core.step(Input::Message { from: *from, message: *message }, MS, &mut fx);
    }
    (core, fx.list)
}

fn stops(messages: &[(Node, Message)]) -> bool {
    let (mut core, done) = held_and_told(messages);
    let fatal = done.iter().any(|effect| matches!(effect, Effect::Fatal(_)));
    // A node that has stopped does nothing more.
    let mut fx = Effects::default();
    core.step(Input::Tick, SECOND, &mut fx);
    assert!(!fatal || fx.list.is_empty());
    fatal
}

/// tests PROTOCOL 3.2-b, 3.2-c, 3.2-d, 5.1-c, 12.1-c
/// PROTOCOL 6.1-o, 13-a, 13-b, 13-c. Proof of a broken promise stops the node.
#[test]
fn a_broken_promise_stops_the_node() {
    let slot = 0;
    let (held, other, null) = (Value::Batch(5), Value::Batch(6), Value::Null);
    let propose = |value| Message::Propose { slot, value };
    let vote = |ballot| Message::Vote { slot, phase: 0, ballot };
    let (decide, state) =
        (|value| Message::Decide { slot, value }, |value| Message::State { slot, phase: 1, value });
    for messages in [
        &[(0, Message::Skip { from: 0, to: 3 })][..],
        &[(0, propose(other))],
        &[(2, propose(held)), (2, propose(null))],
        &[(2, vote(Ballot::For(held))), (2, vote(Ballot::Open(None)))],
        &[(0, vote(Ballot::For(held))), (2, vote(Ballot::For(null)))],
        &[(2, state(held)), (2, state(null))],
        &[(2, decide(other))],
    ] {
        assert!(stops(messages), "{messages:?}");
    }
    for messages in [
        &[(2, Message::Skip { from: 2, to: 5 }), (2, Message::Skip { from: 2, to: 9 })][..],
        &[(2, propose(held)), (2, propose(held))],
        &[(2, vote(Ballot::Open(None))), (2, vote(Ballot::Open(None)))],
        &[(2, decide(null)), (0, decide(null))],
    ] {
        assert!(!stops(messages), "{messages:?}");
    }
}

/// PROTOCOL 13-c. 5,1,3: all five proposals are known, three hold the batch, sup is four.
#[test]
fn a_decided_batch_without_support_stops_the_node() {
    for holders in [3, 4] {
        let mut core = Core::new(config((5, 1, 3), 1, 1)).unwrap();
        let mut fx = Effects::default();
        core.start(0, &mut fx);
        let (slot, batch) =
            (0, racos_protocol::BatchInfo { digest: 5, touches: [1].into(), is_change: false });
        let held = Value::Batch(5);
        core.step(Input::Spread { from: 0, slot, batch, room: true }, MS, &mut fx);
        core.step(Input::Durable(Release::Propose { slot, value: held }), MS, &mut fx);
        for (from, value) in [
            (0, held),
            (2, held),
            (3, if holders > 3 { held } else { Value::Null }),
            (4, Value::Null),
        ] {
            core.step(
                Input::Message { from, message: Message::Propose { slot, value } },
                MS,
                &mut fx,
            );
        }
        fx.list.clear();
        let message = Message::Decide { slot, value: held };
        core.step(Input::Message { from: 2, message }, MS, &mut fx);
        let fatal = fx.list.iter().any(|effect| matches!(effect, Effect::Fatal(_)));
        assert_eq!((fatal, core.exec()), (holders == 3, u64::from(holders > 3)));
    }
}

/// tests PROTOCOL 1-c, 9.4-c
/// Hostile or damaged numbers in messages are dropped, and cost nothing.
#[test]
fn absurd_slots_in_messages_are_harmless() {
    let mut core = Core::new(config((3, 1, 1), 1, 1)).unwrap();
    let mut fx = Effects::default();
    core.start(0, &mut fx);
    let (value, ballot) = (Value::Null, Ballot::Open(None));
    for slot in [u64::MAX, u64::MAX - 1, u64::MAX - 2, 1 << 63] {
        for message in [
            Message::Propose { slot, value },
            Message::ProposeNull { from: slot, to: u64::MAX },
            Message::ProposeNull { from: u64::MAX, to: slot },
            Message::ProposeNull { from: 0, to: slot },
            Message::Vote { slot, phase: 0, ballot },
            Message::State { slot, phase: 1, value },
            Message::Decide { slot, value },
            Message::Skip { from: slot, to: u64::MAX },
            Message::Skip { from: 0, to: slot },
            Message::Pull { from: slot, wanted: u64::MAX, facts: true },
            Message::Pull { from: slot, wanted: 1, facts: false },
            Message::Seen { exec: slot, seen: slot },
            Message::GetMeta { slot },
        ] {
            let mut core = core.clone();
            core.step(Input::Message { from: 0, message }, MS, &mut fx);
            core.step(Input::Message { from: 9, message }, MS, &mut fx);
            core.step(Input::Tick, SECOND, &mut fx);
            assert!(core.seen() <= core.exec() + core.config().alpha, "{message:?}");
        }
    }
    assert!(!fx.list.iter().any(|effect| matches!(effect, Effect::Fatal(_))));
}

/// tests PROTOCOL 4.1-g, 8.1-e, 12.2-c
/// PROTOCOL 9.1-f. What was said is said again after a restart, and nothing that was not.
#[test]
fn a_restarted_node_repeats_what_it_said() {
    let config = config((5, 1, 3), 2, 1);
    let mut recovery = Recovery::new(config).unwrap();
    let batch = racos_protocol::BatchInfo { digest: 5, touches: [1].into(), is_change: false };
    recovery.record(Record::Hold { slot: 0, digest: 5 }, Some(batch)).unwrap();
    recovery.record(Record::NoHold { from: 1, to: 12 }, None).unwrap();
    let ballot = Ballot::For(Value::Batch(5));
    recovery.record(Record::Vote { slot: 0, phase: 0, ballot }, None).unwrap();
    let (mut core, mut fx) = (recovery.finish(0), Effects::default());
    core.start(0, &mut fx);
    fx.list.clear();
    let pull = Message::Pull { from: 0, wanted: u64::MAX >> 52, facts: false };
    core.step(Input::Message { from: 4, message: pull }, 0, &mut fx);
    let null = |slot| Message::Propose { slot, value: Value::Null };
    let mut said = vec![
        Message::Propose { slot: 0, value: Value::Batch(5) },
        Message::Vote { slot: 0, phase: 0, ballot },
    ];
    said.extend([null(1), null(6), null(11)]);
    let to_four = fx.list.iter().filter_map(|effect| match effect {
        Effect::Send {
            to: Target::One(4),
            message: message @ (Message::Propose { .. } | Message::Vote { .. }),
        } => Some(*message),
        _ => None,
    });
    assert_eq!(to_four.collect::<Vec<_>>(), said);
    // A release of an older life would be a bug of the engine; one of this life counts once.
    core.step(Input::Durable(Release::Nothing), 0, &mut fx);
    assert_eq!(core.mark(|batch| batch.touches(1)), Some(0));
    assert_eq!(core.mark(|batch| batch.touches(2)), None);
}
