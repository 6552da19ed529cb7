//! Whole nodes in one thread, asked through their doors as other threads would.

mod auth;
mod backup;
mod cluster;
mod gone;
mod keep;
mod removed;

use bytes::Bytes;
use cluster::Cluster;
use racos_engine::api::types::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

fn key(text: &str) -> Keys {
    Keys::One(bytes(text))
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn prefix(from: &str, to: &str) -> Keys {
    Keys::Span { from: bytes(from), to: Some(bytes(to)) }
}

fn put(at: &str, value: impl Into<Bytes>) -> Put {
    Put {
        key: bytes(at),
        value: value.into(),
        lease: 0,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    }
}

fn long(byte: u8, len: usize) -> Bytes {
    vec![byte; len].into()
}

impl Cluster {
    fn put(&mut self, node: usize, at: &str, value: impl Into<Bytes>) -> i64 {
        let pending = self.handles[node].put(put(at, value));
        self.wait(pending).expect("a put is done").revision
    }

    fn get(&mut self, node: usize, range: Range) -> RangeAnswer {
        let pending = self.handles[node].range(range, false);
        self.wait(pending).expect("a range is answered")
    }

    fn txn(&mut self, node: usize, txn: Txn) -> Result<TxnAnswer, Error> {
        let pending = self.handles[node].txn(txn, false);
        self.wait(pending)
    }
}

/// tests PROTOCOL 8.1-s
#[test]
fn puts_are_seen_by_reads_through_every_node_at_their_revision() {
    let mut cluster = Cluster::new(5, 1, 3);
    assert_eq!(cluster.put(0, "a", "short"), 2);
    assert_eq!(cluster.put(1, "b", long(7, 5000)), 3);
    (0..5).for_each(|node| cluster.block(node, 3, true));
    assert_eq!(cluster.put(2, "a", long(8, 100_000)), 4);
    (0..5).for_each(|node| cluster.block(node, 3, false));
    // Node 3 has not executed it, and it touches another key.
    let other = cluster.get(3, Range::new(key("none")));
    assert_eq!((other.revision, other.count), (4, 0));
    for node in 0..5 {
        let found = cluster.get(node, Range::new(prefix("a", "c")));
        assert_eq!((found.revision, found.count, found.more), (4, 2, false));
        let kv = |key: &str, create, modified, version, value| KeyValue {
            key: bytes(key),
            create,
            modified,
            version,
            lease: 0,
            value,
        };
        assert_eq!(found.kvs[0], kv("a", 2, 4, 2, long(8, 100_000)));
        assert_eq!(found.kvs[1], kv("b", 3, 3, 1, long(7, 5000)));
        let old = cluster.get(node, Range { revision: 2, ..Range::new(key("a")) });
        assert_eq!((old.revision, &old.kvs[0].value[..]), (4, &b"short"[..]));
    }
    let ahead = cluster.handles[0].range(Range { revision: 5, ..Range::new(key("a")) }, false);
    assert_eq!(cluster.wait(ahead), Err(Error::FutureRevision));
}

#[test]
fn values_larger_than_one_operation_carries_are_stored_in_stripes() {
    let mut cluster = Cluster::new(5, 1, 3);
    let most = cluster.value_bytes_max();
    let whole: Vec<u8> = (0..most * 5 / 2).map(|at| (at / 100) as u8).collect();
    cluster.put(0, "large", whole.clone());
    let found = cluster.get(3, Range::new(key("large")));
    assert!(found.kvs[0].value == whole);
    let txn = Txn {
        success: vec![TxnOp::Put(put("one", whole.clone())), TxnOp::Put(put("two", "small"))],
        ..Txn::default()
    };
    assert_eq!(cluster.txn(1, txn).expect("a large transaction").revision, 3);
    let found = cluster.get(2, Range::new(prefix("o", "z")));
    assert!(found.kvs[0].value == whole && &found.kvs[1].value[..] == b"small");
}

#[test]
fn deletes_and_puts_answer_with_what_was_there() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, "a", "1");
    let again = cluster.handles[1].put(Put { prev_kv: true, ..put("a", long(1, 4000)) });
    let again = cluster.wait(again).unwrap();
    assert_eq!((again.revision, &again.previous.unwrap().value[..]), (3, &b"1"[..]));
    cluster.put(2, "b", "2");
    let delete = Delete { keys: prefix("a", "z"), prev_kv: true };
    let gone = cluster.handles[3].delete(delete.clone());
    let gone = cluster.wait(gone).unwrap();
    assert_eq!((gone.revision, gone.deleted, gone.previous.len()), (5, 2, 2));
    assert_eq!(gone.previous[0].value, long(1, 4000));
    let nothing = cluster.handles[3].delete(delete);
    let nothing = cluster.wait(nothing).unwrap();
    assert_eq!((nothing.revision, nothing.deleted), (5, 0));
    let kept = Put { ignore_value: true, ..put("a", "") };
    let kept = cluster.handles[0].put(kept);
    assert_eq!(cluster.wait(kept), Err(Error::KeyNotFound));
    let both = Put { ignore_value: true, lease: 99, ..put("a", "") };
    let alone = cluster.handles[0].put(both.clone());
    assert_eq!(cluster.wait(alone), Err(Error::LeaseNotFound));
    let within = Txn { success: vec![TxnOp::Put(both)], ..Txn::default() };
    assert_eq!(cluster.txn(0, within), Err(Error::KeyNotFound));
}

/// tests PROTOCOL 7-e
#[test]
fn a_transaction_takes_one_branch_and_shows_its_own_changes() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, "a", "1");
    let compare = |relation, target| Compare { keys: key("a"), relation, target };
    let txn = Txn {
        compares: vec![
            compare(Relation::Equal, Target::Modified(2)),
            compare(Relation::Less, Target::Value(bytes("2"))),
        ],
        success: vec![
            TxnOp::Put(put("a", "2")),
            TxnOp::Range(Range::new(prefix("a", "z"))),
            TxnOp::Put(put("b", "3")),
            TxnOp::Txn(Txn {
                compares: vec![compare(Relation::Equal, Target::Value(bytes("1")))],
                success: vec![TxnOp::Delete(Delete { keys: key("none"), prev_kv: false })],
                failure: vec![],
            }),
        ],
        failure: vec![TxnOp::Range(Range::new(key("a")))],
    };
    let done = cluster.txn(1, txn.clone()).unwrap();
    assert_eq!((done.revision, done.succeeded, done.answers.len()), (3, true, 4));
    let TxnOpAnswer::Range(seen) = &done.answers[1] else { panic!("{done:?}") };
    assert_eq!((seen.revision, &seen.kvs[0].value[..], seen.kvs.len()), (3, &b"2"[..], 1));
    let TxnOpAnswer::Txn(inner) = &done.answers[3] else { panic!("{done:?}") };
    assert!(inner.succeeded, "nested compares look at the state before the transaction");
    let other = cluster.txn(2, txn).unwrap();
    assert_eq!((other.revision, other.succeeded), (3, false));
    let TxnOpAnswer::Range(seen) = &other.answers[0] else { panic!("{other:?}") };
    assert_eq!(&seen.kvs[0].value[..], b"2");
}

#[test]
fn values_with_the_same_beginning_are_compared_by_evidence() {
    let mut cluster = Cluster::new(5, 1, 3);
    let value = |last: u8| {
        let mut value = vec![b'x'; 3000];
        value[2999] = last;
        Bytes::from(value)
    };
    cluster.put(0, "a", value(5));
    for (given, relation, expected) in [
        (4, Relation::Greater, true),
        (5, Relation::Greater, false),
        (6, Relation::Less, true),
        (5, Relation::Equal, true),
        (6, Relation::NotEqual, true),
    ] {
        let target = Target::Value(value(given));
        let compares = vec![Compare { keys: key("a"), relation, target }];
        let read = Txn { compares: compares.clone(), ..Txn::default() };
        assert_eq!(cluster.txn(1, read).unwrap().succeeded, expected);
        let success = vec![TxnOp::Put(put("b", "yes"))];
        let write = Txn { compares, success, ..Txn::default() };
        assert_eq!(cluster.txn(2, write).unwrap().succeeded, expected);
    }
}

#[test]
fn compaction_ends_the_past() {
    let mut cluster = Cluster::new(5, 1, 3);
    for round in 0..5 {
        cluster.put(round, "a", long(round as u8, 3000));
    }
    let done = cluster.handles[0].compact(4, true);
    assert_eq!(cluster.wait(done).unwrap().revision, 6);
    let old = cluster.handles[1].range(Range { revision: 3, ..Range::new(key("a")) }, false);
    assert_eq!(cluster.wait(old), Err(Error::Compacted { compact_revision: 4 }));
    let kept = cluster.get(1, Range { revision: 4, ..Range::new(key("a")) });
    assert_eq!(kept.kvs[0].value, long(2, 3000));
    let again = cluster.handles[0].compact(4, false);
    assert_eq!(cluster.wait(again), Err(Error::Compacted { compact_revision: 4 }));
    let hashes: Vec<HashAnswer> = (0..5)
        .map(|node| {
            let hash = cluster.handles[node].hash_kv(0);
            cluster.wait(hash).unwrap()
        })
        .collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}

#[test]
fn whoever_asks_through_the_door_finds_every_version_that_was_written_through_one() {
    let mut cluster = Cluster::founded_to_keep(2, 5, 1, 3);
    for round in 0..8 {
        assert_eq!(cluster.put(round % 5, "a", format!("{round}").into_bytes()), 2 + round as i64);
    }
    for node in 0..5 {
        for round in 0..8 {
            let old = Range { revision: 2 + round, ..Range::new(key("a")) };
            assert_eq!(cluster.get(node, old).kvs[0].value, format!("{round}").into_bytes());
        }
    }
}

/// What waits until a quorum agrees to keep every version is bounded, and is done once it has.
#[test]
fn writes_that_wait_for_the_first_agreement_are_bounded() {
    let mut cluster = Cluster::founded_to_keep(2, 5, 1, 3);
    cluster.enter(0);
    (2..5).for_each(|node| cluster.stop(node));
    let mut first = cluster.handles[0].put(put("a", "first"));
    let refused = (0..40_000).find_map(|count| {
        let mut pending = cluster.handles[0].put(put("b", "later"));
        // So often that the queue of the door itself does not fill.
        if count % 400 == 0 {
            cluster.pass(1);
        }
        match pending.try_take() {
            Some(Err(error)) => Some(error),
            Some(Ok(_)) => panic!("without a quorum nothing is done"),
            None => None,
        }
    });
    assert_eq!(first.try_take(), None);
    match refused {
        Some(Error::Busy(text)) => assert!(text.contains("keep every version"), "{text}"),
        other => panic!("{other:?}"),
    }
    (2..5).for_each(|node| cluster.start(node));
    assert_eq!(cluster.wait(first).map(|put| put.revision), Ok(2));
}

#[test]
fn a_transaction_that_only_reads_does_not_wait_until_all_keep_history() {
    let mut cluster = Cluster::founded_to_keep(1, 3, 1, 1);
    cluster.enter(0);
    (1..3).for_each(|node| cluster.stop(node));
    let reading = || Txn { success: vec![TxnOp::Range(Range::new(key("a")))], ..Txn::default() };
    let read = cluster.handles[0].txn(reading(), true);
    assert!(cluster.wait(read).expect("this node alone answers").succeeded);
    let mut written = cluster.handles[0].put(put("a", "1"));
    cluster.pass(50);
    assert_eq!(written.try_take(), None, "a write waits");
    (1..3).for_each(|node| cluster.start(node));
    assert_eq!(cluster.wait(written).expect("the others are back").revision, 2);
}

fn watch(keys: Keys, start_revision: i64) -> WatchCreate {
    WatchCreate {
        id: 0,
        keys,
        start_revision,
        no_put: false,
        no_delete: false,
        prev_kv: true,
        progress_notify: false,
    }
}

#[test]
fn a_watch_tells_the_past_and_then_what_comes_with_values_and_former_ones() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, "a", "1");
    cluster.put(0, "b", "other");
    cluster.put(0, "a", long(2, 3000));
    let mut stream = cluster.handles[4].watches();
    stream.create(watch(key("a"), 1)).unwrap();
    let created = cluster.next(&mut stream);
    assert_eq!((created.id, created.revision, &created.what), (0, 4, &WatchNews::Created));
    let past = cluster.next(&mut stream);
    let WatchNews::Events(events) = past.what else { panic!("{past:?}") };
    assert_eq!((past.revision, events.len()), (4, 2));
    assert_eq!((events[0].kv.modified, &events[0].kv.value[..]), (2, &b"1"[..]));
    assert_eq!(events[1].kv.value, long(2, 3000));
    assert_eq!(&events[1].previous.as_ref().unwrap().value[..], b"1");
    let delete = cluster.handles[1].delete(Delete { keys: key("a"), prev_kv: false });
    cluster.wait(delete).unwrap();
    let gone = cluster.next(&mut stream);
    let WatchNews::Events(events) = gone.what else { panic!("{gone:?}") };
    assert!(events[0].is_delete && events[0].kv.modified == 5);
    assert_eq!(events[0].previous.as_ref().unwrap().value, long(2, 3000));
    stream.progress().unwrap();
    let progress = cluster.next(&mut stream);
    assert_eq!((progress.id, progress.revision, progress.what), (-1, 5, WatchNews::Progress));
    stream.create(WatchCreate { id: 7, ..watch(prefix("z", "a"), 0) }).unwrap();
    let refused = WatchNews::Refused(WatchRefusal::EmptyRange);
    assert_eq!(cluster.next(&mut stream).what, refused);
    stream.cancel(0).unwrap();
    assert_eq!(cluster.next(&mut stream).what, WatchNews::Cancelled);
}

#[test]
fn a_watch_that_falls_behind_compaction_ends_with_the_revision() {
    let mut cluster = Cluster::new(5, 1, 3);
    for round in 0..4 {
        cluster.put(round, "a", "x");
    }
    let done = cluster.handles[0].compact(4, false);
    cluster.wait(done).unwrap();
    let mut stream = cluster.handles[0].watches();
    stream.create(watch(key("a"), 2)).unwrap();
    assert_eq!(cluster.next(&mut stream).what, WatchNews::Created);
    let ended = cluster.next(&mut stream).what;
    assert_eq!(ended, WatchNews::Compacted { compact_revision: 4 });
    stream.create(watch(key("a"), 4)).unwrap();
    assert_eq!(cluster.next(&mut stream).what, WatchNews::Created);
    let told = cluster.next(&mut stream);
    let WatchNews::Events(events) = told.what else { panic!("{told:?}") };
    let revisions: Vec<i64> = events.iter().map(|event| event.kv.modified).collect();
    assert_eq!(revisions, [4, 5]);
    assert!(events[0].previous.is_none(), "what was before is compacted");
}

#[test]
fn a_slow_watcher_holds_up_nobody_and_misses_nothing() {
    let mut cluster = Cluster::new(5, 1, 3);
    let mut slow = cluster.handles[2].watches();
    let mut quick = cluster.handles[2].watches();
    for stream in [&slow, &quick] {
        stream.create(watch(prefix("a", "b"), 0)).unwrap();
    }
    assert_eq!(cluster.next(&mut quick).what, WatchNews::Created);
    let mut seen = 0;
    for round in 0..50 {
        cluster.put(round % 5, "a", format!("{round}").into_bytes());
        let told = cluster.next(&mut quick);
        let WatchNews::Events(events) = told.what else { panic!("{told:?}") };
        seen += events.len();
    }
    assert_eq!(seen, 50);
    assert_eq!(cluster.next(&mut slow).what, WatchNews::Created);
    let (mut revisions, mut responses) = (Vec::new(), 0);
    while revisions.len() < 50 {
        let told = cluster.next(&mut slow);
        let WatchNews::Events(events) = told.what else { panic!("{told:?}") };
        revisions.extend(events.iter().map(|event| event.kv.modified));
        responses += 1;
    }
    assert_eq!(revisions, (2..52).collect::<Vec<_>>());
    assert!(responses <= 3, "what waited came together: {responses}");
}

/// What twenty puts of watched keys cost in looks at spans and watches, beside so many watches of
/// other keys on one stream.
fn steps_of_twenty_puts(others: usize) -> u64 {
    let mut cluster = Cluster::new(3, 1, 1);
    let mut stream = cluster.handles[0].watches();
    let watched = |at: usize| format!("watched/{at:06}");
    for at in 0..others {
        stream.create(watch(key(&watched(at)), 0)).unwrap();
        // Ranges that hold none of the keys put.
        stream.create(watch(prefix(&format!("x{at:06}"), &format!("x{at:06}/")), 0)).unwrap();
        if at % 1000 == 999 {
            (0..2000).for_each(|_| assert_eq!(cluster.next(&mut stream).what, WatchNews::Created));
        }
    }
    let steps = |cluster: &mut Cluster| {
        let status = cluster.handles[0].status();
        cluster.wait(status).unwrap().native.requests.watch_steps
    };
    let before = steps(&mut cluster);
    for at in 0..20 {
        let revision = cluster.put(1, &watched(at * others / 20), "v");
        let told = cluster.next(&mut stream);
        let WatchNews::Events(events) = told.what else { panic!("{told:?}") };
        assert_eq!((told.revision, events.len(), events[0].kv.modified), (revision, 1, revision));
    }
    steps(&mut cluster) - before
}

#[test]
fn an_event_costs_no_more_beside_ten_times_the_watches() {
    let (few, many) = (steps_of_twenty_puts(1_000), steps_of_twenty_puts(10_000));
    assert!(many <= few * 2, "{few} looks beside 2,000 watches, {many} beside 20,000");
}

#[test]
fn a_watch_of_the_future_begins_there_and_progress_waits_for_it() {
    let mut cluster = Cluster::new(3, 1, 1);
    let mut stream = cluster.handles[0].watches();
    stream.create(watch(prefix("a", "b"), 4)).unwrap();
    assert_eq!(cluster.next(&mut stream).what, WatchNews::Created);
    stream.progress().unwrap();
    for revision in 2..6 {
        assert_eq!(cluster.put(1, "a", "v"), revision);
    }
    let mut revisions = Vec::new();
    loop {
        let told = cluster.next(&mut stream);
        match told.what {
            WatchNews::Events(events) => revisions.extend(events.iter().map(|it| it.kv.modified)),
            other => {
                assert_eq!((other, told.id), (WatchNews::Progress, -1));
                break;
            }
        }
    }
    assert!(revisions.starts_with(&[4]), "{revisions:?}: nothing before, and progress after");
}

/// Notes that it was called.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn who_asks_a_stream_without_reading_waits_and_is_answered_in_order() {
    let mut cluster = Cluster::new(3, 1, 1);
    let mut stream = cluster.handles[0].watches();
    let mut context = Context::from_waker(Waker::noop());
    let mut said = 0;
    // Each is answered twice: a watch begins, and ends.
    for _ in 0..40 {
        while stream.poll_room(&mut context) {
            stream.create(watch(key("a"), 0)).expect("there is room");
            said += 1;
            if stream.poll_room(&mut context) {
                stream.cancel(said - 1).expect("there is room");
            }
        }
        cluster.pass(1);
    }
    assert!(!stream.poll_room(&mut context), "commands wait for the reader");
    assert!(stream.progress().is_err(), "and are bounded");
    assert!((2000..20_000).contains(&said), "{said} watches asked for");
    let mut begun = 0;
    while begun < said {
        let told = cluster.next(&mut stream);
        if told.what == WatchNews::Created {
            assert_eq!(told.id, begun, "in the order of the commands");
            begun += 1;
        }
    }
    assert!(stream.poll_room(&mut context), "there is room again");
}

#[test]
fn who_waits_for_room_in_a_stream_is_woken_though_there_is_no_response() {
    let mut cluster = Cluster::new(3, 1, 1);
    let stream = cluster.handles[0].watches();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    cluster.stop(0);
    while stream.poll_room(&mut context) {
        stream.cancel(1).expect("there is room");
    }
    cluster.start(0);
    assert!(!woken.0.load(Ordering::Relaxed));
    cluster.pass(1);
    assert!(woken.0.load(Ordering::Relaxed) && stream.poll_room(&mut context));
}

#[test]
fn what_is_compacted_in_the_turn_of_its_change_ends_a_watch_that_did_not_see_it() {
    let mut cluster = Cluster::new(3, 1, 1);
    let mut stream = cluster.handles[0].watches();
    stream.create(watch(key("a"), 0)).unwrap();
    assert_eq!(cluster.next(&mut stream).what, WatchNews::Created);
    // Node 0 sees all of it at once.
    cluster.stop(0);
    for _ in 0..3 {
        cluster.put(1, "a", "v");
    }
    let done = cluster.handles[1].compact(4, false);
    cluster.wait(done).unwrap();
    cluster.start(0);
    let mut told = Vec::new();
    while told.last() != Some(&4) {
        match cluster.next(&mut stream).what {
            WatchNews::Events(events) => told.extend(events.iter().map(|it| it.kv.modified)),
            // A gap, and it says so.
            other => {
                assert_eq!(other, WatchNews::Compacted { compact_revision: 4 });
                break;
            }
        }
    }
    let all: Vec<i64> = (2..5).collect();
    assert!(all.starts_with(&told), "{told:?}: nothing is passed by");
}

#[test]
fn leases_delete_their_keys_when_they_are_revoked() {
    let mut cluster = Cluster::new(5, 1, 3);
    let granted = cluster.handles[0].lease_grant(7, 1);
    let granted = cluster.wait(granted).unwrap();
    assert_eq!(granted, LeaseAnswer { revision: 1, id: 7, ttl: 2 });
    let twice = cluster.handles[1].lease_grant(7, 60);
    assert_eq!(cluster.wait(twice), Err(Error::LeaseExists));
    for at in ["b", "a", "c"] {
        let attached = cluster.handles[2].put(Put { lease: 7, ..put(at, "v") });
        cluster.wait(attached).unwrap();
    }
    cluster.put(3, "c", "detached");
    let unknown = cluster.handles[2].put(Put { lease: 8, ..put("d", "v") });
    assert_eq!(cluster.wait(unknown), Err(Error::LeaseNotFound));
    let found = cluster.get(4, Range::new(prefix("a", "z")));
    let leases: Vec<i64> = found.kvs.iter().map(|kv| kv.lease).collect();
    assert_eq!(leases, [7, 7, 0]);
    let revoked = cluster.handles[3].lease_revoke(7);
    assert_eq!(cluster.wait(revoked).unwrap().revision, 6);
    let found = cluster.get(4, Range::new(prefix("a", "z")));
    assert_eq!((found.revision, found.count), (6, 1));
    let again = cluster.handles[3].lease_revoke(7);
    assert_eq!(cluster.wait(again), Err(Error::LeaseNotFound));
    let drawn = cluster.handles[0].lease_grant(0, 60);
    let drawn = cluster.wait(drawn).unwrap();
    let listed = cluster.handles[1].leases();
    assert_eq!(cluster.wait(listed).unwrap().ids, [drawn.id]);
}

#[test]
fn a_lease_lives_while_it_is_kept_alive_and_ends_soon_after() {
    let mut cluster = Cluster::new(5, 1, 3);
    let granted = cluster.handles[0].lease_grant(7, 3);
    cluster.wait(granted).unwrap();
    let attached = cluster.handles[1].put(Put { lease: 7, ..put("a", "v") });
    cluster.wait(attached).unwrap();
    // Each time through another node, for three times its length.
    for node in 0..5 {
        cluster.pass(1_900);
        let renewed = cluster.handles[node].lease_keep_alive(7);
        assert_eq!(cluster.wait(renewed), Ok(LeaseAnswer { revision: 2, id: 7, ttl: 3 }));
    }
    cluster.pass(500);
    for node in 0..5 {
        let left = cluster.handles[node].lease_time_to_live(7, true);
        let left = cluster.wait(left).unwrap();
        assert_eq!((left.ttl, left.granted, left.keys), (2, 3, vec![bytes("a")]));
    }
    cluster.pass(2_000);
    assert_eq!(cluster.get(2, Range::new(key("a"))).count, 1, "half a second is left");
    cluster.pass(1_200);
    let found = cluster.get(2, Range::new(key("a")));
    assert_eq!((found.count, found.revision), (0, 3));
    let gone = cluster.handles[3].lease_keep_alive(7);
    assert_eq!(cluster.wait(gone).unwrap().ttl, 0);
    let gone = cluster.handles[4].lease_time_to_live(7, false);
    assert_eq!(cluster.wait(gone).unwrap().ttl, -1);
}

#[test]
fn leases_end_and_are_renewed_with_f_nodes_gone_and_not_with_more() {
    let mut cluster = Cluster::new(5, 1, 3);
    let granted = cluster.handles[0].lease_grant(7, 3);
    cluster.wait(granted).unwrap();
    cluster.stop(1);
    cluster.pass(2_000);
    let renewed = cluster.handles[0].lease_keep_alive(7);
    assert_eq!(cluster.wait(renewed).unwrap().ttl, 3);
    cluster.pass(7_000);
    let gone = cluster.handles[0].lease_keep_alive(7);
    assert_eq!(cluster.wait(gone).unwrap().ttl, 0);
    let granted = cluster.handles[0].lease_grant(8, 3);
    cluster.wait(granted).unwrap();
    cluster.stop(2);
    let renewed = cluster.handles[0].lease_keep_alive(8);
    assert!(matches!(cluster.wait(renewed), Err(Error::Unavailable(_))));
}

/// All versions are kept, and those that were written over leave memory first.
#[test]
fn the_newest_values_stay_in_memory() {
    let mut cluster = Cluster::with_cache(1 << 20, 5, 1, 3);
    for round in 0..2 {
        for name in ["a", "b", "c", "d"] {
            cluster.put(round, name, long(round as u8, 180_000));
        }
    }
    // One that is written again and again takes their place, but for what nobody reads any more.
    (0..40).for_each(|node| assert!(cluster.put(node % 5, "e", long(2, 180_000)) > 9));
    cluster.pass(100);
    let missed = |cluster: &mut Cluster| {
        let told = (0..5).map(|node| cluster.handles[node].status()).collect::<Vec<_>>();
        told.into_iter().map(|it| cluster.wait(it).unwrap().native.disk.cache_misses).sum::<u64>()
    };
    let before = missed(&mut cluster);
    for name in ["a", "b", "c", "d"] {
        assert_eq!(cluster.get(4, Range::new(key(name))).kvs[0].value, long(1, 180_000));
    }
    assert_eq!(missed(&mut cluster), before, "none of them was read from the disk");
    let old = cluster.get(4, Range { revision: 3, ..Range::new(key("b")) });
    assert_eq!(old.kvs[0].value, long(0, 180_000));
    assert!(missed(&mut cluster) > before, "an old one was");
}

/// A cluster with the lease 7 of three seconds, to which "a" is attached.
fn with_a_lease() -> Cluster {
    let mut cluster = Cluster::new(5, 1, 3);
    let granted = cluster.handles[0].lease_grant(7, 3);
    cluster.wait(granted).unwrap();
    let attached = cluster.handles[1].put(Put { lease: 7, ..put("a", "v") });
    cluster.wait(attached).unwrap();
    // The put is executed everywhere, and no slot is open.
    cluster.pass(100);
    cluster
}

/// Nothing gets from these nodes to those, or everything again.
fn block_all(cluster: &Cluster, from: &[usize], to: &[usize], is_blocked: bool) {
    for (from, to) in from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to))) {
        if from != to {
            cluster.block(from, to, is_blocked);
        }
    }
}

/// tests PROTOCOL 6.2-i: who opened the batch found the lease run out, and the others were asked before it
/// was renewed.
#[test]
fn a_lease_renewed_after_its_end_was_opened_lives_on() {
    let (owner, turns) = with_a_lease().opened();
    let mut cluster = with_a_lease();
    cluster.turns(turns - 1);
    let others: Vec<usize> = (0..5).filter(|node| *node != owner).collect();
    block_all(&cluster, &[owner], &others, true);
    assert_eq!(cluster.opened(), (owner, 1), "the same again");
    let renewed = cluster.handles[others[0]].lease_keep_alive(7);
    assert_eq!(cluster.wait(renewed).unwrap().ttl, 3, "by all but one");
    block_all(&cluster, &[owner], &others, false);
    cluster.pass(2_500);
    assert_eq!(cluster.get(others[0], Range::new(key("a"))).count, 1, "half a second is left");
    let left = cluster.handles[owner].lease_time_to_live(7, false);
    assert_eq!(cluster.wait(left).unwrap().ttl, 0);
    cluster.pass(4_000);
    assert_eq!(cluster.get(others[0], Range::new(key("a"))).count, 0, "nobody renews it again");
}

/// tests PROTOCOL 6.2-i, 8.1-b: enough have promised before they are asked to renew.
#[test]
fn a_renewal_waits_for_an_end_that_was_promised_before() {
    let (owner, turns) = with_a_lease().opened();
    let mut cluster = with_a_lease();
    cluster.turns(turns - 1);
    let asked = (owner + 1) % 5;
    let promising: Vec<usize> = (0..5).filter(|node| *node != asked).collect();
    block_all(&cluster, &[owner], &[asked], true);
    assert_eq!(cluster.opened(), (owner, 1), "the same again");
    // They have the batch, and hear nothing of each other's promises.
    block_all(&cluster, &promising, &promising, true);
    cluster.turns(1);
    let mut renewed = cluster.handles[asked].lease_keep_alive(7);
    cluster.turns(20);
    assert!(renewed.try_take().is_none(), "whether the lease has ended is open");
    block_all(&cluster, &promising, &[0, 1, 2, 3, 4], false);
    assert_eq!(cluster.wait(renewed).unwrap().ttl, 0);
    assert_eq!(cluster.get(asked, Range::new(key("a"))).count, 0);
}

#[test]
fn alarms_stop_what_stores_until_they_are_lowered() {
    let mut cluster = Cluster::new(5, 1, 3);
    let raised = cluster.handles[0].alarm(9, AlarmKind::NoSpace, true);
    cluster.wait(raised).unwrap();
    let refused = cluster.handles[1].put(put("a", "v"));
    assert!(matches!(cluster.wait(refused), Err(Error::NoSpace(_))));
    let txn = Txn { failure: vec![TxnOp::Put(put("a", "v"))], ..Txn::default() };
    assert!(matches!(cluster.txn(2, txn), Err(Error::NoSpace(_))));
    let listed = cluster.handles[3].alarms();
    assert_eq!(cluster.wait(listed), Ok(vec![(9, AlarmKind::NoSpace)]));
    let lowered = cluster.handles[4].alarm(9, AlarmKind::NoSpace, false);
    cluster.wait(lowered).unwrap();
    assert_eq!(cluster.put(1, "a", "v"), 2);
}

/// Keys `k/000000` and on, 128 with each transaction.
fn fill(cluster: &mut Cluster, keys: usize) {
    for first in (0..keys).step_by(128) {
        let ops = (first..first + 128).map(|at| TxnOp::Put(put(&format!("k/{at:06}"), "v")));
        cluster.txn(1, Txn { success: ops.collect(), ..Txn::default() }).unwrap();
    }
}

#[test]
fn long_reads_are_made_in_slices_and_see_one_revision_beside_writes() {
    const KEYS: usize = 80 * 128;
    let mut cluster = Cluster::new(3, 1, 1);
    fill(&mut cluster, KEYS);
    let slices = |cluster: &mut Cluster| {
        let status = cluster.handles[0].status();
        cluster.wait(status).unwrap().native.requests.slices
    };
    let all = || Range::new(prefix("k/", "k0"));
    let before = slices(&mut cluster);
    assert_eq!(cluster.get(0, Range { count_only: true, ..all() }).count, KEYS as i64);
    // Ten thousand keys and a few more, and nothing to fetch.
    assert_eq!(slices(&mut cluster) - before, KEYS.div_ceil(1000) as u64 + 1);
    let hash = cluster.handles[0].hash_kv(0);
    let first = cluster.wait(hash).unwrap();

    // All that is asked in one turn has its first slice in it; a key is gone before the last.
    let read = |keys_only| {
        let sort = Range { sort_order: SortOrder::Descending, ..all() };
        cluster.handles[0].range(Range { keys_only, ..sort }, true)
    };
    let (whole, keys) = (read(false), read(true));
    let hash = cluster.handles[0].hash_kv(81);
    let gone = cluster.handles[0].delete(Delete { keys: prefix("k/", "k0"), prev_kv: false });
    let gone = cluster.wait(gone).unwrap();
    assert_eq!((gone.revision, gone.deleted), (82, KEYS as i64));
    for answer in [cluster.wait(whole).unwrap(), cluster.wait(keys).unwrap()] {
        assert_eq!((answer.revision, answer.count, answer.kvs.len()), (81, KEYS as i64, KEYS));
        assert_eq!(&answer.kvs[0].key[..], format!("k/{:06}", KEYS - 1).as_bytes());
    }
    assert_eq!(cluster.wait(hash).unwrap().hash, first.hash);
    assert_eq!(cluster.get(0, all()).count, 0);
}

#[test]
fn a_watch_that_looks_at_much_and_tells_little_lets_others_have_their_turn() {
    let mut cluster = Cluster::new(3, 1, 1);
    fill(&mut cluster, 100 * 128);
    fill(&mut cluster, 100 * 128);
    let revision = cluster.put(1, "z", "v");
    let mut stream = cluster.handles[0].watches();
    for _ in 0..2 {
        stream.create(watch(key("z"), 1)).unwrap();
        assert_eq!(cluster.next(&mut stream).what, WatchNews::Created);
    }
    // Both look at the same changes, ten thousand at a time.
    let told = [cluster.next(&mut stream), cluster.next(&mut stream)];
    assert_eq!(
        told.each_ref().map(|told| (told.id, told.revision)),
        [(0, revision), (1, revision)]
    );
    stream.progress().unwrap();
    let progress = cluster.next(&mut stream);
    assert_eq!((progress.id, progress.what), (-1, WatchNews::Progress));
}
