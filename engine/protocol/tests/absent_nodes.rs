//! What must go on working while nodes are dead, suspected, frozen, cut off or behind, and how they
//! come back: one fixed schedule each (PROTOCOL 6.1, 6.5, 9.3, 12).

mod cluster;

use cluster::lab::{Lab, is_spread};
use cluster::{Cluster, Event, MS, Mail, Packet, SECOND, Weather, config};
use racos_protocol::{Effect, Effects, Input, Message, Node, Record, Recovery, Slot, Value};

/// tests PROTOCOL 6.5-j
/// PROTOCOL 6.5-i. A dead node is suspected; after that its slots cost no timeout.
#[test]
fn a_suspected_owner_costs_no_time() {
    for shape in [(3, 1, 1), (5, 1, 3), (5, 1, 2)] {
        let mut lab = Lab::new(shape);
        let dead = shape.0 as Node - 1;
        lab.crash(dead);
        let rest: Vec<Node> = (0..dead).collect();
        let mut costs = Vec::new();
        for _ in 0..12 {
            let before = lab.now;
            let slot = lab.open(0);
            // The write of node 1 puts the slots of the dead node between in use.
            let next = lab.open(1);
            let done =
                |lab: &Lab| lab.acknowledged.contains(&slot) && lab.acknowledged.contains(&next);
            while !done(&lab) {
                lab.pass_among(MS / 10, &rest);
            }
            costs.push(lab.now - before);
        }
        let skip_min = lab.core(0).config().timing.skip_min;
        assert!(costs.iter().any(|cost| *cost >= skip_min), "at first T_skip runs: {costs:?}");
        assert!(costs[6..].iter().all(|cost| *cost < skip_min), "{shape:?}: {costs:?}");
        assert!(lab.core(0).suspected().contains(dead));
    }
}

/// PROTOCOL 6.5 "Fairness". A suspected owner that is alive is heard again, though its word comes
/// only after the others have passed its slot.
#[test]
fn a_suspected_owner_that_writes_is_heard_again() {
    let mut lab = Lab::new((3, 1, 1));
    // Node 2 is cut off until the others suspect it.
    for _ in 0..6 {
        lab.open(0);
        lab.pass_among(30 * MS, &[0, 1]);
    }
    lab.lose(|_| true);
    assert!(lab.core(0).suspected().contains(2));
    // Its SPREAD arrives when its slot is null already.
    let slot = lab.open(2);
    assert!(slot < lab.exec(0));
    lab.deliver(is_spread);
    assert!(!lab.core(0).suspected().contains(2), "its message was not heard");
}

/// PROTOCOL 6.1-f, 12.3. A node is frozen, the others go on, it thaws.
#[test]
fn a_frozen_node_catches_up() {
    for (shape, alpha) in [((3, 1, 1), 48), ((5, 1, 3), 20), ((5, 1, 2), 80)] {
        let configs = (0..shape.0 as Node)
            .map(|me| racos_protocol::Config { alpha, ..config(shape, me, 3) })
            .collect();
        let mut cluster = Cluster::new(configs, 11);
        let busy = Weather { offer_every: MS / 2, ..Weather::fair() };
        cluster.schedule(0, Event::Weather(Box::new(busy)));
        let until = 400 * MS;
        cluster.schedule(20 * MS, Event::Freeze { node: 1, until });
        cluster.run_until(until - MS);
        let behind = cluster.host(0).core().exec() - cluster.host(1).core().exec();
        assert!(behind > alpha, "it is more than a window behind: {behind}");
        let open_before =
            cluster.oracle.opened().filter(|slot| slot % shape.0 as Slot == 1).count();
        cluster.run_until(until + 200 * MS);
        let lag = cluster.host(0).core().exec().abs_diff(cluster.host(1).core().exec());
        assert!(lag < alpha, "still {lag} behind");
        let open_after = cluster.oracle.opened().filter(|slot| slot % shape.0 as Slot == 1).count();
        assert!(open_after > open_before + 10, "it does not write again");
        cluster.schedule(cluster.now, Event::Weather(Box::new(Weather::fair())));
        assert!(cluster.run_dry(10 * SECOND));
        cluster.check_settled();
    }
}

/// tests PROTOCOL 9.1-e, 6.1-f
/// PROTOCOL 9.3. Several windows behind, by power cut; meanwhile nobody keeps anything in memory.
#[test]
fn a_node_several_windows_behind_catches_up() {
    let shape = (3, 1, 1);
    let alpha = 24;
    let mut lab = Lab::with(shape, |config| config.alpha = alpha);
    lab.crash(2);
    while lab.exec(0) < 6 * alpha {
        lab.open(0);
        lab.pass_among(30 * MS, &[0, 1]);
    }
    lab.restart(2);
    // Until it has executed what the others have, it opens nothing below that.
    lab.settle_among(&[2]);
    lab.deliver(|mail| mail.from == 2);
    lab.deliver(|mail| matches!(mail.packet, Packet::Message(Message::Seen { .. })));
    assert_eq!(lab.core(2).can_open(), None, "others have decided its next slot");
    lab.settle();
    assert_eq!(lab.exec(2), lab.exec(0), "one range of facts after the other, without a pause");
    lab.pass_among(20 * MS, &[0, 1, 2]);
    let slot = lab.open(2);
    lab.settle();
    lab.pass_among(20 * MS, &[0, 1, 2]);
    assert!(lab.acknowledged.contains(&slot), "its first write is not lost");
}

/// tests PROTOCOL 12.3-b
/// PROTOCOL 12.3-a, 12.1-b. A repeated or useless answer does not add requests for facts.
#[test]
fn repeated_facts_ask_for_the_next_range_once() {
    let mut lab = Lab::new((3, 1, 1));
    lab.crash(2);
    while lab.exec(0) < 100 {
        lab.open(0);
        lab.pass_among(30 * MS, &[0, 1]);
    }
    lab.mail.clear();
    lab.restart(2);
    lab.lose(|_| true);
    let (exec, seen) = (lab.exec(0), lab.core(0).seen());
    lab.message(0, 2, Message::Seen { exec, seen });
    let asks = |lab: &Lab| {
        let sent = lab.sent(2, 0).into_iter();
        sent.filter(|message| matches!(message, Message::Pull { facts: true, .. })).count()
    };
    assert_eq!(asks(&lab), 1);
    lab.deliver(|mail| mail.from == 2 && mail.to == 0);
    lab.lose(|mail| !matches!(mail.packet, Packet::Facts { .. }));
    let answers = lab.mail.clone();
    assert_eq!(answers.len(), 1);
    lab.mail.extend(answers.iter().cloned().chain(answers.clone()));
    assert_eq!(lab.deliver(|mail| mail.to == 2), 3);
    assert_eq!((lab.exec(2), asks(&lab)), (64, 1));
    lab.input(2, Input::FactsEnd { from: 0, exec });
    assert_eq!(asks(&lab), 1, "an answer without facts is not asked for again at once");
    // If nothing more comes, another node is asked, if one is known to be ahead, or the same.
    lab.lose(|_| true);
    lab.pass(400 * MS);
    assert_eq!(asks(&lab), 1);
}

/// tests PROTOCOL 6.1-e
/// PROTOCOL 9.4-b. The last message of a burst lies beyond the window of a node that lags: it is
/// noted, and the slot is in use as soon as the window reaches it.
#[test]
fn a_slot_named_beyond_the_window_is_not_forgotten() {
    let alpha = 6;
    let mut lab = Lab::with((3, 1, 1), |config| {
        config.alpha = alpha;
        config.own_slots_max = 2;
    });
    // Node 2 hears nothing of the first slots.
    while lab.exec(0) < alpha {
        lab.open(0);
        lab.pass_among(30 * MS, &[0, 1]);
    }
    lab.lose(|_| true);
    let slot = lab.open(0);
    assert!(slot >= alpha);
    lab.settle_among(&[0, 1]);
    // The others finish it, node 2 hears their proposals only, drops them and asks for facts; the
    // answer ends below the slot.
    lab.pass_among(30 * MS, &[0, 1]);
    lab.lose(|_| true);
    let batch = lab.oracle.decided[&slot];
    lab.message(0, 2, Message::Propose { slot, value: batch });
    let until = lab.core(2).config().alpha;
    let rows: Vec<_> = (0..until).map(|slot| (slot, lab.oracle.decided[&slot])).collect();
    for (slot, value) in rows {
        lab.message(0, 2, Message::Decide { slot, value });
        if value != Value::Null {
            let packet = Packet::Message(Message::GetMeta { slot });
            lab.lose(|_| true);
            lab.mail.push(Mail { from: 2, to: 0, packet });
            lab.deliver(|_| true);
            lab.deliver(|_| true);
        }
    }
    lab.lose(|_| true);
    assert_eq!(lab.exec(2), until);
    assert!(lab.core(2).seen() > slot, "slot {slot} is forgotten");
    lab.input(2, Input::FactsEnd { from: 0, exec: until });
    lab.lose(|_| true);
    lab.pass_among(SECOND, &[0, 1, 2]);
    assert_eq!(lab.exec(2), lab.exec(0));
}

/// tests PROTOCOL 8.1-m
/// PROTOCOL 8.1. A reader waits for a slot that lies beyond its own window.
#[test]
fn a_reader_that_lags_by_windows_catches_up() {
    let alpha = 12;
    let mut lab = Lab::with((3, 1, 1), |config| config.alpha = alpha);
    while lab.exec(0) < 4 * alpha {
        lab.open(0);
        lab.pass_among(30 * MS, &[0, 1]);
    }
    lab.lose(|_| true);
    let slot = lab.exec(0) - 1;
    lab.input(2, Input::InUse { slot });
    lab.pass_among(500 * MS, &[0, 1, 2]);
    assert!(lab.exec(2) > slot, "the read waits for ever at {}", lab.exec(2));
}

/// tests PROTOCOL 5.4-a, 12.3-d
/// PROTOCOL 5.4, 12.2-f. A PULL is answered for slots that are decided, executed or both.
#[test]
fn pull_is_answered_for_decided_slots() {
    let mut lab = Lab::new((5, 1, 2));
    let first = lab.open(0);
    lab.settle();
    assert!(lab.exec(1) > first);
    // Executed: facts. Decided above an undecided slot: DECIDE.
    let open = lab.open(1);
    let decided = lab.open(2);
    lab.lose(|mail| matches!(mail.packet, Packet::Spread { slot, .. } if slot == open));
    let about_open = |mail: &Mail| match mail.packet {
        Packet::Message(Message::Propose { slot, .. }) => slot == open,
        _ => false,
    };
    for _ in 0..4 {
        lab.lose(about_open);
        lab.deliver(|_| true);
        lab.flush_each();
    }
    lab.lose(|_| true);
    assert!(lab.exec(3) <= open && lab.core(3).seen() > decided);
    let wanted = 1 | 1 << (decided - first);
    lab.message(4, 3, Message::Pull { from: first, wanted, facts: false });
    let exec = lab.exec(3);
    let answers = lab.sent(3, 4);
    assert!(answers.contains(&Message::Seen { exec, seen: lab.core(3).seen() }));
    let value = Value::Batch(3);
    assert!(answers.contains(&Message::Decide { slot: decided, value }), "{answers:?}");
    let facts = |mail: &Mail| match &mail.packet {
        Packet::Facts { rows, .. } => rows.iter().any(|(slot, ..)| *slot == first),
        _ => false,
    };
    assert!(lab.mail.iter().any(facts), "executed slots are answered with facts");
}

/// PROTOCOL 6.1-l, 9.3-i. A node that lags does not open slots that others have decided.
#[test]
fn a_node_that_lags_does_not_open_decided_slots() {
    let mut lab = Lab::new((3, 1, 1));
    for _ in 0..4 {
        lab.open(0);
        lab.pass_among(30 * MS, &[0, 1]);
    }
    lab.lose(|_| true);
    // Node 2 knows nothing of all that. A message beyond its window says that slots below are decided.
    let slot = lab.core(2).config().alpha + 3;
    let mut other = Lab::new((3, 1, 1));
    assert_eq!(other.core(2).can_open(), Some(2));
    other.message(0, 2, Message::Propose { slot, value: Value::Null });
    assert_eq!(other.core(2).can_open(), None);
    // One SEEN is enough, too.
    let before = lab.core(2).can_open().expect("it thinks that it may");
    assert!(before < lab.exec(0));
    let seen = Message::Seen { exec: lab.exec(0), seen: lab.core(0).seen() };
    lab.message(0, 2, seen);
    assert!(lab.core(2).can_open().is_none_or(|slot| slot >= lab.exec(0)));
    lab.settle();
    lab.pass_among(50 * MS, &[0, 1, 2]);
    let slot = lab.open(2);
    assert!(slot >= lab.exec(0).min(lab.exec(1)));
    lab.settle();
    assert!(lab.acknowledged.contains(&slot));
}

/// PROTOCOL 13, 4.3-j: the only writer of an idle cluster restarts; its first write takes no
/// timeout longer than 10 ms.
#[test]
fn the_only_writer_restarts_on_an_idle_cluster() {
    for shape in [(3, 1, 1), (5, 1, 3), (7, 2, 3), (1, 0, 1)] {
        let all: Vec<Node> = (0..shape.0 as Node).collect();
        let mut lab = Lab::new(shape);
        for _ in 0..3 {
            lab.open(0);
            lab.pass_among(5 * MS, &all);
        }
        let written = lab.acknowledged.len();
        assert_eq!(written, 3);
        lab.crash(0);
        lab.mail.clear();
        lab.pass_among(SECOND, &all[1..]);
        lab.restart(0);
        let before = lab.now;
        while lab.core(0).can_open().is_none() {
            lab.pass_among(MS / 10, &all);
        }
        let slot = lab.open(0);
        while !lab.acknowledged.contains(&slot) {
            lab.pass_among(MS / 10, &all);
            assert!(
                lab.now - before < 10 * MS,
                "{shape:?}: the first write takes {}",
                lab.now - before
            );
        }
    }
}

/// tests PROTOCOL 4.1-e, 4.1-h, 6.2-g
/// PROTOCOL 12.1-e, 12.1-b. SPREAD repeated is answered with what was recorded, and stored once.
#[test]
fn a_repeated_spread_is_answered_with_the_recorded_proposal() {
    for room in [true, false] {
        let mut lab = Lab::new((5, 1, 3));
        let slot = lab.open(0);
        let batch = match &lab.mail[0].packet {
            Packet::Spread { batch, .. } => batch.clone(),
            other => panic!("{other:?} before SPREAD"),
        };
        lab.lose(|_| true);
        lab.spread(3, slot, batch.clone(), room);
        lab.spread(3, slot, batch.clone(), room);
        assert!(lab.mail.is_empty(), "nothing is said before the flush");
        lab.flush_all(3);
        lab.lose(|_| true);
        let records = lab.hosts[3].log.entries.len();
        lab.spread(3, slot, batch.clone(), room);
        let value = if room { Value::Batch(batch.digest) } else { Value::Null };
        assert_eq!(lab.sent(3, 0), [Message::Propose { slot, value }]);
        assert_eq!(lab.hosts[3].log.entries.len(), records, "stored twice");
    }
}

/// tests PROTOCOL 5.4-c, 9.3-a
/// PROTOCOL 12.1-e. The same for a slot that is decided, above an undecided one or executed.
#[test]
fn a_spread_of_a_decided_slot_is_answered_with_the_decision() {
    let mut lab = Lab::new((5, 1, 3));
    let (low, high) = (lab.open(0), lab.open(0));
    let spreads = std::mem::take(&mut lab.mail);
    let null = Value::Null;
    lab.message(1, 3, Message::Decide { slot: high, value: null });
    let answers = |lab: &mut Lab| {
        lab.lose(|_| true);
        lab.mail = spreads.iter().filter(|mail| mail.to == 3).cloned().collect();
        lab.deliver(is_spread);
    };
    answers(&mut lab);
    assert_eq!(lab.sent(3, 0), [Message::Decide { slot: high, value: null }]);
    lab.message(1, 3, Message::Decide { slot: low, value: null });
    answers(&mut lab);
    let told = |of: Slot| move |mail: &Mail| matches!(&mail.packet, Packet::Facts { rows, .. } if rows[0].0 == of);
    assert!(lab.mail.iter().any(told(low)), "an executed slot is answered with the fact");
}

/// PROTOCOL 4.3-k, 4.3-l. An owner that proposes null for its own slot will not open it: who has
/// nothing of the slot proposes null at once, who has heard of a holder waits for T_hold.
#[test]
fn null_of_the_owner_is_followed_at_once() {
    for heard_of_a_holder in [false, true] {
        let mut lab = Lab::new((5, 1, 3));
        let slot = 0;
        if heard_of_a_holder {
            lab.message(1, 3, Message::Propose { slot, value: Value::Batch(9) });
        }
        lab.message(0, 3, Message::ProposeNull { from: slot, to: slot + 1 });
        lab.input(3, Input::Tick);
        lab.flush_all(3);
        let null = Some(racos_protocol::Ballot::For(Value::Null));
        let said = lab.hosts[3].log.durable(cluster::log::Key::Propose(slot));
        assert_eq!(said == null, !heard_of_a_holder);
        lab.pass(25 * MS);
        lab.flush_all(3);
        assert_eq!(lab.hosts[3].log.durable(cluster::log::Key::Propose(slot)), null);
    }
}

/// tests PROTOCOL 3.2-e
/// PROTOCOL 9.1-d, 12.3-d. SEEN says which slots are in use; beyond the window, that all of it is.
#[test]
fn seen_puts_slots_in_use() {
    let mut lab = Lab::new((3, 1, 1));
    lab.message(0, 2, Message::Seen { exec: 0, seen: 5 });
    assert_eq!(lab.core(2).seen(), 5);
    lab.message(0, 2, Message::Seen { exec: 0, seen: 4 });
    assert_eq!(lab.core(2).seen(), 5);
    let alpha = lab.core(2).config().alpha;
    lab.message(0, 2, Message::Seen { exec: 0, seen: alpha + 9 });
    assert_eq!(lab.core(2).seen(), alpha);
}

/// PROTOCOL 6.1-g. A SKIP that reaches beyond the window is applied below its end.
#[test]
fn a_skip_is_cut_at_the_window() {
    let mut lab = Lab::new((3, 1, 1));
    let alpha = lab.core(2).config().alpha;
    for (from, first) in [(0, 0), (1, 1)] {
        lab.message(from, 2, Message::Skip { from: first, to: alpha + 30 });
    }
    // Its own slots it skips itself, since all of the window is in use now.
    assert!(lab.exec(2) >= alpha, "{}", lab.exec(2));
    assert!(lab.core(2).seen() <= lab.exec(2) + alpha);
}

/// PROTOCOL 4.3-j. A restarted node whose R0 lies beyond its window nulls what is in the window,
/// and goes on as exec moves.
#[test]
fn unknown_own_slots_beyond_the_window_are_nulled_later() {
    let config = config((3, 1, 1), 0, 1);
    let (alpha, reserved) = (config.alpha, config.alpha + 30);
    let mut recovery = Recovery::new(config).unwrap();
    recovery.record(Record::Reserve { to: reserved }, None).unwrap();
    let (mut core, mut fx) = (recovery.finish(0), Effects::default());
    core.start(0, &mut fx);
    let nulled = |fx: &Effects| {
        let range = |effect: &Effect| match effect {
            Effect::Persist { record: Record::NoHold { from, to }, .. } => Some((*from, *to)),
            _ => None,
        };
        fx.list.iter().find_map(range)
    };
    assert_eq!(nulled(&fx), Some((0, alpha - 2)));
    fx.list.clear();
    let message = Message::Decide { slot: 0, value: Value::Null };
    core.step(Input::Message { from: 1, message }, MS, &mut fx);
    assert_eq!((core.exec(), nulled(&fx)), (1, Some((alpha, alpha + 1))));
}
