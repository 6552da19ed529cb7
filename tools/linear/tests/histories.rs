//! Histories known to be good or bad, by name, and large ones.

mod common;

use common::{Load, change_one, key};
use racos_linear::{
    Event, EventId, History, Operation, Outcome, Reason, Violation, check, check_within,
};

const KEY: u64 = 0;

fn put(value: u64) -> Operation {
    Operation::Put { key: key(KEY), value }
}

fn get() -> Operation {
    Operation::Get { key: key(KEY) }
}

fn delete() -> Operation {
    Operation::Delete { key: key(KEY) }
}

fn range() -> Operation {
    Operation::RangeRead { from: b"".to_vec(), to: None }
}

fn found(value: u64) -> Outcome {
    Outcome::Found(Some(value))
}

const ABSENT: Outcome = Outcome::Found(None);

fn history(events: &[(Operation, u64, u64, Outcome)]) -> History {
    let mut history = History::new();
    for (client, (operation, invoked, responded, outcome)) in (0..).zip(events) {
        let id = history.invoke(client, operation.clone(), *invoked);
        history.respond(id, outcome.clone(), *responded);
    }
    history
}

fn verdict(events: &[(Operation, u64, u64, Outcome)]) -> Result<(), Violation> {
    check(&history(events))
}

fn ids(violation: &Violation) -> Vec<usize> {
    violation.operations.iter().map(|event| event.id.0).collect()
}

fn rejected(events: &[(Operation, u64, u64, Outcome)], reason: Reason, shown: &[usize]) {
    let violation = verdict(events).expect_err("a bad history");
    assert_eq!(violation.reason, reason, "{violation}");
    assert_eq!(ids(&violation), shown, "{violation}");
}

#[test]
fn nothing_and_reads_of_nothing_are_fine() {
    assert_eq!(verdict(&[]), Ok(()));
    assert_eq!(verdict(&[(get(), 1, 2, ABSENT), (delete(), 3, 4, Outcome::Done)]), Ok(()));
    assert_eq!(verdict(&[(range(), 1, 2, Outcome::FoundRange(vec![]))]), Ok(()));
}

#[test]
fn concurrent_operations_may_take_effect_in_any_order() {
    for outcome in [ABSENT, found(1), found(2)] {
        let events = [
            (put(1), 10, 100, Outcome::Done),
            (put(2), 20, 90, Outcome::Done),
            (get(), 30, 80, outcome),
        ];
        assert_eq!(verdict(&events), Ok(()));
    }
}

#[test]
fn touching_times_count_as_overlapping() {
    let events = [(put(1), 10, 20, Outcome::Done), (get(), 20, 30, ABSENT)];
    assert_eq!(verdict(&events), Ok(()));
}

#[test]
fn a_stale_read_is_rejected() {
    let events = [
        (put(1), 10, 20, Outcome::Done),
        (get(), 22, 25, found(1)),
        (put(2), 30, 40, Outcome::Done),
        (get(), 50, 60, found(1)),
        (get(), 70, 80, found(2)),
    ];
    rejected(&events, Reason::NoOrder, &[0, 2, 3]);
}

#[test]
fn a_lost_write_is_rejected() {
    let events = [
        (put(3), 1, 2, Outcome::Done),
        (delete(), 4, 5, Outcome::Done),
        (put(1), 10, 20, Outcome::Done),
        (get(), 30, 40, ABSENT),
    ];
    rejected(&events, Reason::NoOrder, &[2, 3]);
}

#[test]
fn a_read_going_backwards_is_rejected() {
    let events = [
        (put(1), 10, 20, Outcome::Done),
        (put(2), 30, 100, Outcome::Done),
        (get(), 40, 50, found(2)),
        (get(), 60, 70, found(1)),
    ];
    rejected(&events, Reason::NoOrder, &[0, 1, 2, 3]);
    let back_to_nothing =
        [(put(1), 10, 100, Outcome::Done), (get(), 20, 30, found(1)), (get(), 40, 50, ABSENT)];
    rejected(&back_to_nothing, Reason::NoOrder, &[0, 1, 2]);
}

#[test]
fn an_unknown_write_may_take_effect_late_or_never() {
    let unknown = (put(1), 10, 20, Outcome::Unknown);
    let later = |outcomes: [Outcome; 3]| {
        let [a, b, c] = outcomes;
        verdict(&[unknown.clone(), (get(), 30, 40, a), (get(), 50, 60, b), (get(), 70, 80, c)])
    };
    assert_eq!(later([ABSENT, ABSENT, ABSENT]), Ok(()));
    assert_eq!(later([ABSENT, found(1), found(1)]), Ok(()));
    assert_eq!(later([found(1), found(1), found(1)]), Ok(()));
    let violation = later([found(1), ABSENT, found(1)]).expect_err("it happens at most once");
    assert_eq!(ids(&violation), [0, 1, 2], "{violation}");
}

#[test]
fn an_unanswered_write_is_an_unknown_one() {
    let mut history = History::new();
    history.invoke(1, put(1), 10);
    let get_id = history.invoke(2, get(), 30);
    history.respond(get_id, found(1), 40);
    assert_eq!(check(&history), Ok(()));
}

#[test]
fn an_unknown_delete_explains_one_disappearance_only() {
    let events = [
        (delete(), 5, 6, Outcome::Unknown),
        (put(1), 10, 20, Outcome::Done),
        (get(), 30, 40, ABSENT),
    ];
    assert_eq!(verdict(&events), Ok(()));
    let mut twice = events.to_vec();
    twice.extend([(put(2), 50, 60, Outcome::Done), (get(), 70, 80, ABSENT)]);
    assert!(verdict(&twice).is_err());
    twice.push((delete(), 1, 2, Outcome::Unknown));
    assert_eq!(verdict(&twice), Ok(()));
    twice[5] = (delete(), 90, 91, Outcome::Unknown);
    assert!(verdict(&twice).is_err(), "a delete does not act before it is sent");
}

#[test]
fn a_delete_hides_what_was_before_it() {
    let events = [
        (put(1), 10, 20, Outcome::Done),
        (delete(), 30, 40, Outcome::Done),
        (get(), 50, 60, found(1)),
    ];
    rejected(&events, Reason::NoOrder, &[0, 1, 2]);
    let during = [
        (put(1), 10, 20, Outcome::Done),
        (delete(), 30, 80, Outcome::Done),
        (get(), 40, 50, found(1)),
        (get(), 60, 70, ABSENT),
    ];
    assert_eq!(verdict(&during), Ok(()));
}

#[test]
fn values_from_nowhere_are_rejected() {
    rejected(&[(get(), 10, 20, found(9))], Reason::NeverWritten, &[0]);
    let refused = [(put(9), 1, 2, Outcome::Never), (get(), 10, 20, found(9))];
    rejected(&refused, Reason::NeverWritten, &[0, 1]);
    let future = [(get(), 10, 20, found(9)), (put(9), 21, 30, Outcome::Done)];
    rejected(&future, Reason::FromTheFuture, &[0, 1]);
    let twice = [(put(9), 1, 2, Outcome::Done), (put(9), 21, 30, Outcome::Done)];
    rejected(&twice, Reason::NotUnique, &[0, 1]);
}

fn put_at(number: u64, value: u64) -> Operation {
    Operation::Put { key: key(number), value }
}

#[test]
fn a_range_read_is_one_instant() {
    let both = |first: Option<u64>, second: Option<u64>| {
        let values = [first, second].into_iter().zip(0..);
        let found = values.filter_map(|(value, at)| Some((key(at), value?)));
        verdict(&[
            (put_at(0, 1), 10, 20, Outcome::Done),
            (put_at(1, 2), 30, 40, Outcome::Done),
            (range(), 5, 50, Outcome::FoundRange(found.collect())),
        ])
    };
    for (first, second) in [(None, None), (Some(1), None), (Some(1), Some(2))] {
        assert_eq!(both(first, second), Ok(()));
    }
    // Each key by itself has an order; the two together have none.
    let violation = both(None, Some(2)).expect_err("no instant had this");
    assert_eq!(violation.keys, [key(0), key(1)]);
    assert_eq!(ids(&violation), [2, 0, 1], "{violation}");
}

#[test]
fn two_range_reads_agree_on_the_order_of_writes() {
    let events = [
        (put_at(0, 1), 10, 100, Outcome::Done),
        (put_at(1, 2), 10, 100, Outcome::Done),
        (range(), 20, 90, Outcome::FoundRange(vec![(key(0), 1)])),
        (range(), 20, 90, Outcome::FoundRange(vec![(key(1), 2)])),
    ];
    assert!(verdict(&events).is_err());
    assert_eq!(verdict(&events[..3]), Ok(()));
}

#[test]
fn a_violation_names_the_first_bad_key_and_reads_well() {
    let events = [
        (put_at(7, 1), 10, 20, Outcome::Done),
        (Operation::Get { key: key(7) }, 30, 40, ABSENT),
        (put_at(3, 2), 10, 20, Outcome::Done),
        (Operation::Get { key: key(3) }, 30, 40, ABSENT),
    ];
    let violation = verdict(&events).expect_err("two bad keys");
    assert_eq!(
        violation.to_string(),
        "key \"key 3\": no order of these operations explains their outcomes\n  \
         10 to 20, client 2: put \"key 3\" = 2 -> done\n  \
         30 to 40, client 3: get \"key 3\" -> absent"
    );
}

#[test]
#[should_panic(expected = "an answer fits the question")]
fn an_answer_to_another_question_is_a_broken_harness() {
    history(&[(get(), 1, 2, Outcome::Done)]);
}

#[test]
#[should_panic(expected = "an operation is answered once")]
fn a_second_answer_is_a_broken_harness() {
    let mut history = history(&[(get(), 1, 2, ABSENT)]);
    history.respond(EventId(0), ABSENT, 3);
}

const LARGE: Load = Load {
    clients: 10,
    operations: 500,
    keys: 1,
    puts: 40,
    deletes: 5,
    range_reads: 0,
    failures: 5,
    delay: 20,
};

#[test]
fn thousands_of_operations_on_a_key_are_checked() {
    for seed in 0..10 {
        assert_eq!(check(&LARGE.run(seed)), Ok(()), "seed {seed}");
        let puts = Load { puts: 90, ..LARGE };
        assert_eq!(check(&puts.run(seed)), Ok(()), "seed {seed}");
        let deletes = Load { puts: 30, deletes: 30, failures: 20, ..LARGE };
        assert_eq!(check(&deletes.run(seed)), Ok(()), "seed {seed}");
    }
}

#[test]
fn range_reads_over_thousands_of_operations_are_checked() {
    let load = Load { keys: 4, range_reads: 25, operations: 200, clients: 8, ..LARGE };
    for seed in 0..10 {
        assert_eq!(check(&load.run(seed)), Ok(()), "seed {seed}");
    }
}

/// A get that could have found a value that was surely overwritten before it began.
fn stale_choice(history: &History, seed: u64) -> (EventId, u64) {
    let done = |event: &&Event| event.outcome == Outcome::Done;
    let value = |event: &Event| match event.operation {
        Operation::Put { value, .. } => Some(value),
        _ => None,
    };
    let events = history.events();
    let mut gets = events.iter().filter(|event| matches!(event.outcome, Outcome::Found(_)));
    let get = gets.nth(200 + 97 * seed as usize).expect("a get");
    let before = |end: u64| {
        let puts = events.iter().filter(done).filter(move |event| event.responded < Some(end));
        puts.filter(|event| value(event).is_some()).max_by_key(|event| event.invoked)
    };
    let newer = before(get.invoked).expect("a put before it");
    let older = before(newer.invoked).expect("a put before that");
    (get.id, value(older).expect("a put"))
}

#[test]
fn one_stale_read_among_thousands_is_found_and_shown() {
    for seed in 0..10 {
        let good = LARGE.run(seed);
        let (get, value) = stale_choice(&good, seed);
        let bad = change_one(&good, get, &found(value));
        let violation = check(&bad).expect_err("a stale read");
        assert_eq!(violation.reason, Reason::NoOrder);
        let shown = ids(&violation).len();
        assert!(shown <= 5, "seed {seed}: {shown} operations are too many: {violation}");
        assert!(check_within(&good, 100_000).is_ok());
    }
}

#[test]
fn one_torn_range_read_among_thousands_is_found() {
    let load = Load { keys: 4, range_reads: 25, operations: 150, clients: 8, ..LARGE };
    for seed in 0..10 {
        let good = load.run(seed);
        let reads = good.events().iter().filter_map(|event| match &event.outcome {
            Outcome::FoundRange(found) if found.len() > 1 => Some((event, found)),
            _ => None,
        });
        let reads: Vec<_> = reads.collect();
        let (early, old) = reads[reads.len() / 3];
        let (late, new) = reads
            .iter()
            .find(|(late, new)| late.invoked > early.invoked + 500 && new.len() > 1)
            .expect("a later read");
        let Some(at) = new.iter().position(|(key, _)| *key == old[0].0) else { continue };
        let mut torn = (*new).clone();
        torn[at] = old[0].clone();
        let bad = change_one(&good, late.id, &Outcome::FoundRange(torn));
        let violation = check(&bad).expect_err("a torn read");
        assert!(ids(&violation).len() <= 8, "seed {seed}: {violation}");
    }
}

#[test]
fn a_search_without_room_says_so() {
    let crowd = Load { clients: 40, operations: 2, puts: 50, deletes: 30, delay: 1000, ..LARGE };
    let undecided = (0..50).filter_map(|seed| check_within(&crowd.run(seed), 1).err());
    let reasons: Vec<Reason> = undecided.map(|violation| violation.reason).collect();
    assert!(!reasons.is_empty());
    assert!(reasons.iter().all(|&reason| reason == Reason::Undecided { states: 1 }));
}
