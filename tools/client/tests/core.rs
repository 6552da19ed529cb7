//! The client's state machine against nodes on a network in memory.

mod common;

use common::{MS, Mood, World, address};
use racos_client::{Answer, ClientError, Completion, Op, Route, Ticket};
use racos_engine::wire::client::ErrorCode;
use racos_net::memory::MemoryConfig;
use std::collections::{BTreeMap, BTreeSet};

fn lossy(of_65536: u16) -> MemoryConfig {
    MemoryConfig {
        lose: of_65536,
        duplicate: of_65536,
        delay_ns_min: 50_000,
        delay_ns_max: 3_000_000,
        ..MemoryConfig::default()
    }
}

fn calm(nodes: u16) -> World {
    World::new(1, nodes, MemoryConfig::default(), |_| {})
}

fn put(world: &mut World, key: &str, value: &[u8], route: Route) -> Ticket {
    let value = world.pool.copy(value).unwrap();
    world.core.submit(Op::Put { key: key.into(), value }, route, world.now_ns)
}

fn get(world: &mut World, key: &str) -> Option<Vec<u8>> {
    world.core.submit(Op::Get { key: key.into() }, Route::Any, world.now_ns);
    match world.run(1).pop().unwrap().result.unwrap() {
        Answer::Value { bytes, .. } => Some(bytes.to_vec()),
        Answer::NotFound => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reply_to_a_client_that_had_the_address_before_is_not_taken_for_ours() {
    let mut world = calm(3);
    world.strangers = true;
    put(&mut world, "key", b"value", Route::Any);
    assert!(matches!(world.run(1)[0].result, Ok(Answer::Done { .. })));
    assert_eq!(get(&mut world, "key").as_deref(), Some(&b"value"[..]));
    assert!(world.core.counts().junk >= 3, "session, put and get: {:?}", world.core.counts());
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Puts and deletes of 40 keys on a bad network; what must be there in the end.
fn churn(world: &mut World) -> (BTreeMap<String, Vec<u8>>, Vec<Completion>) {
    let mut expected = BTreeMap::new();
    let mut done = Vec::new();
    for round in 0..15 {
        for key in 0..40 {
            let name = format!("key{key:02}");
            if (round + key) % 5 == 0 {
                let op = Op::Delete { key: name.clone().into_bytes() };
                world.core.submit(op, Route::Any, world.now_ns);
                expected.remove(&name);
            } else {
                let value = format!("{round}/{key}");
                put(world, &name, value.as_bytes(), Route::Any);
                expected.insert(name, value.into_bytes());
            }
        }
        done.extend(world.run(40));
    }
    (expected, done)
}

/// tests PROTOCOL 11-d
#[test]
fn every_write_is_applied_exactly_once_whatever_the_network_does() {
    let mut resent = 0;
    for seed in 0..10 {
        let mut world = World::new(seed, 3, lossy(13_000), |config| config.window = 16);
        let (expected, done) = churn(&mut world);
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        assert_eq!(world.seen.applied.iter().sum::<u64>(), 600, "once each");
        assert!(world.seen.outstanding_max <= 16, "{:?}", world.seen);
        for key in 0..40 {
            let name = format!("key{key:02}");
            assert_eq!(get(&mut world, &name).as_ref(), expected.get(&name), "seed {seed} {name}");
        }
        resent += world.core.counts().resent;
    }
    assert!(resent > 500, "the network was not bad enough: {resent}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut world = World::new(7, 3, lossy(13_000), |_| {});
        churn(&mut world);
        (world.now_ns, world.seen.clone(), world.core.counts(), world.hub.counts())
    };
    assert_eq!(run(), run());
}

/// tests PROTOCOL 11-c
#[test]
fn writes_beyond_the_window_wait() {
    let mut world = World::new(1, 3, MemoryConfig::default(), |config| config.window = 8);
    (0..1000).for_each(|at| {
        put(&mut world, &format!("k{at}"), b"v", Route::Any);
    });
    let done = world.run(1000);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    assert_eq!(world.seen.outstanding_max, 8);
    assert_eq!(world.core.counts().sessions, 1);
}

#[test]
fn completions_give_keys_and_values_back() {
    let mut world = calm(1);
    let ticket = put(&mut world, "a", b"value", Route::Any);
    let done = world.run(1).pop().unwrap();
    assert_eq!((done.ticket, &done.key[..], &done.value[..]), (ticket, &b"a"[..], &b"value"[..]));
}

#[test]
fn a_dead_node_is_gone_around_and_asked_again_later() {
    let mut world = calm(3);
    put(&mut world, "warm", b"", Route::Prefer(1));
    world.run(1);
    world.hub.block(address(1000), address(0), true);
    let start_ns = world.now_ns;
    for at in 0..20 {
        put(&mut world, &format!("k{at}"), b"v", Route::Prefer(0));
    }
    let done = world.run(20);
    assert!(done.iter().all(|completion| completion.result.is_ok() && completion.endpoint != 0));
    assert!(world.now_ns - start_ns < 2_000 * MS, "took {} ms", (world.now_ns - start_ns) / MS);
    world.hub.block(address(1000), address(0), false);
    world.now_ns += 5_000 * MS;
    put(&mut world, "back", b"v", Route::Prefer(0));
    assert_eq!(world.run(1)[0].endpoint, 0);
}

/// tests PROTOCOL 11-d
#[test]
fn a_write_whose_replies_were_lost_is_not_applied_again_elsewhere() {
    let mut world = calm(3);
    world.moods[0] = Mood::Mute;
    put(&mut world, "k", b"v", Route::Prefer(1));
    world.run(1);
    put(&mut world, "k", b"w", Route::Prefer(0));
    assert!(world.run(1)[0].result.is_ok());
    assert_eq!(world.seen.applied.iter().sum::<u64>(), 2);
    assert!(world.seen.replayed >= 1 && world.seen.applied[0] == 1, "{:?}", world.seen);
}

/// tests PROTOCOL 11-m
#[test]
fn a_pinned_operation_fails_with_its_node_and_says_that_it_may_have_happened() {
    let mut world = World::new(1, 2, MemoryConfig::default(), |config| {
        config.patience_ns = 3_000 * MS;
    });
    put(&mut world, "k", b"v", Route::Only(1));
    world.run(1);
    world.moods[0] = Mood::Mute;
    put(&mut world, "k", b"w", Route::Only(0));
    match world.run(1).pop().unwrap().result {
        Err(ClientError::Unreachable { may_have_happened: true, waited_ms: 3000.., .. }) => {}
        other => panic!("{other:?}"),
    }
    // The number is over: the window goes on.
    put(&mut world, "k", b"x", Route::Only(1));
    assert!(world.run(1)[0].result.is_ok());
}

#[test]
fn with_no_node_the_error_names_the_endpoints_and_nothing_has_happened() {
    let mut world = calm(2);
    world.hub.configure(|network| network.lose = u16::MAX);
    put(&mut world, "k", b"v", Route::Any);
    world.core.submit(Op::Get { key: b"k".to_vec() }, Route::Any, world.now_ns);
    for completion in world.run(2) {
        let Err(ClientError::Unreachable { endpoints, waited_ms, may_have_happened }) =
            completion.result
        else {
            panic!("{:?}", completion.result)
        };
        assert_eq!(endpoints, [address(0), address(1)]);
        assert!(waited_ms >= 10_000 && !may_have_happened);
    }
    world.hub.configure(|network| network.lose = 0);
    put(&mut world, "k", b"v", Route::Any);
    assert!(world.run(1)[0].result.is_ok(), "the client goes on once nodes are back");
}

#[test]
fn a_write_that_waited_goes_to_a_node_that_answers_now() {
    let mut world = World::new(1, 2, MemoryConfig::default(), |config| config.window = 1);
    put(&mut world, "a", b"v", Route::Only(1));
    world.run(1);
    let before = world.core.counts().failovers;
    world.moods[0] = Mood::Mute;
    for key in ["b", "c", "d", "e"] {
        put(&mut world, key, b"v", Route::Prefer(0));
    }
    assert!(world.run(4).iter().all(|done| done.result.is_ok() && done.endpoint == 1));
    assert_eq!(world.core.counts().failovers, before + 1, "the first one has found it out");
}

/// A request that is sent again before its answer can come is never a measure of how long answers take.
#[test]
fn a_cluster_that_becomes_slow_is_asked_once_again_before_long() {
    let mut world = calm(3);
    let write_one_by_one = |world: &mut World, count: usize| {
        let requests = world.seen.requests;
        for at in 0..count {
            put(world, &format!("k{at}"), b"v", Route::Any);
            assert!(world.run(1)[0].result.is_ok());
        }
        world.seen.requests - requests
    };
    write_one_by_one(&mut world, 60);
    world.reply_after_ns = 400 * MS;
    let first = write_one_by_one(&mut world, 1);
    assert!(first <= 7, "20, 40, 40, 80, 80 and 160 ms lie between seven: {first}");
    write_one_by_one(&mut world, 20);
    assert_eq!(write_one_by_one(&mut world, 30), 30, "each is sent once");
    world.reply_after_ns = 0;
    write_one_by_one(&mut world, 300);
    world.moods[1] = Mood::Mute;
    let start_ns = world.now_ns;
    write_one_by_one(&mut world, 3);
    assert!(world.now_ns - start_ns < 200 * MS, "a fast one is given up soon again");
}

/// However long it takes to find a node dead: of nine nodes three may be, and all answers slow.
#[test]
fn dead_nodes_cost_a_small_share_of_the_time_of_a_slow_cluster() {
    let mut world = calm(9);
    let write_one_by_one = |world: &mut World, count: u64| {
        let start_ns = world.now_ns;
        for at in 0..count {
            put(world, &format!("k{at}"), b"v", Route::Any);
            assert!(world.run(1)[0].result.is_ok());
        }
        world.now_ns - start_ns
    };
    write_one_by_one(&mut world, 60);
    world.reply_after_ns = 400 * MS;
    write_one_by_one(&mut world, 60);
    (6..9).for_each(|node| world.moods[node] = Mood::Mute);
    write_one_by_one(&mut world, 20);
    let requests = world.seen.requests;
    let took_ns = write_one_by_one(&mut world, 200);
    let in_vain = world.seen.requests - requests - 200;
    assert!(in_vain <= 15, "{in_vain} times it was looked whether they are back");
    assert!(took_ns < 200 * 400 * MS * 9 / 8, "{} ms", took_ns / MS);
    (6..9).for_each(|node| world.moods[node] = Mood::Well);
    write_one_by_one(&mut world, 200);
    let mut answer = |_| {
        put(&mut world, "key", b"v", Route::Any);
        world.run(1)[0].endpoint
    };
    let answered: BTreeSet<usize> = (0..9).map(&mut answer).collect();
    assert_eq!(answered.len(), 9, "those that are back are asked again");
}

/// Nodes do not know a copy of the request that opens a session for one: each opens another.
#[test]
fn sessions_that_copies_of_a_request_have_opened_are_closed_and_the_one_in_use_is_not() {
    let mut world = calm(3);
    (world.reply_after_ns, world.twice) = (2_000 * MS, true);
    let sessions = |world: &World| world.machine.sessions_by_last_use().count();
    put(&mut world, "a", b"v", Route::Any);
    let (mut done, mut most) = (Vec::new(), 0);
    while done.is_empty() || world.core.outstanding() > 0 {
        world.step(&mut done);
        most = most.max(sessions(&world));
    }
    assert!(most > 1 && done[0].result.is_ok(), "{most}");
    assert_eq!((sessions(&world), world.core.counts().sessions), (1, 1));
    put(&mut world, "b", b"v", Route::Any);
    assert!(world.run(1)[0].result.is_ok());
    assert_eq!(world.core.counts().sessions, 1);
}

/// What arrives as the next operation leaves was said before it.
#[test]
fn a_node_that_dies_with_an_answer_is_silent_to_what_is_sent_upon_it() {
    let mut world = World::new(1, 2, MemoryConfig::default(), |config| config.window = 1);
    for node in [0, 1] {
        put(&mut world, "warm", b"v", Route::Only(node));
        world.run(1);
    }
    put(&mut world, "a", b"v", Route::Prefer(0));
    put(&mut world, "b", b"v", Route::Prefer(0));
    let (mut done, applied) = (Vec::new(), world.seen.applied[0]);
    while world.seen.applied[0] == applied {
        world.step(&mut done);
    }
    world.moods[0] = Mood::Mute;
    while done.is_empty() {
        world.step(&mut done);
    }
    let sent_ns = world.now_ns;
    while done.len() < 2 {
        world.step(&mut done);
    }
    assert_eq!(done[1].endpoint, 1);
    // Its answer is waited for once, asked for once more, and then elsewhere.
    let patience_ns = 3 * world.core.config().resend_ns_min + MS;
    let waited_ns = world.now_ns - sent_ns;
    assert!(waited_ns <= patience_ns, "{} ms", waited_ns / MS);
}

#[test]
fn a_busy_node_is_asked_again_or_another_one() {
    let mut world = calm(2);
    world.moods[0] = Mood::Says(ErrorCode::Busy);
    for at in 0..10 {
        put(&mut world, &format!("k{at}"), b"v", Route::Prefer(0));
    }
    assert!(world.run(10).iter().all(|done| done.result.is_ok() && done.endpoint == 1));
    assert_eq!(world.seen.applied, [0, 10]);
}

#[test]
fn full_disks_are_an_error_once_every_node_says_so() {
    let mut world = calm(3);
    put(&mut world, "a", b"v", Route::Any);
    world.run(1);
    world.moods = vec![Mood::Says(ErrorCode::NoSpace), Mood::Says(ErrorCode::NoSpace), Mood::Well];
    put(&mut world, "b", b"v", Route::Prefer(0));
    assert!(world.run(1)[0].result.is_ok());
    world.moods[2] = Mood::Says(ErrorCode::NoSpace);
    put(&mut world, "c", b"v", Route::Any);
    match &world.run(1)[0].result {
        Err(ClientError::NoSpace { may_have_happened: false, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_ended_session_is_an_uncertain_error_and_the_next_write_opens_another() {
    let mut world = calm(1);
    put(&mut world, "a", b"v", Route::Any);
    world.run(1);
    world.end_sessions();
    put(&mut world, "b", b"v", Route::Any);
    match &world.run(1)[0].result {
        Err(ClientError::SessionLost { may_have_happened: true }) => {}
        other => panic!("{other:?}"),
    }
    put(&mut world, "c", b"v", Route::Any);
    assert!(world.run(1)[0].result.is_ok());
    assert_eq!(world.core.counts().sessions, 2);
}

#[test]
fn a_session_idle_for_long_is_replaced_before_it_is_used() {
    let mut world = calm(1);
    put(&mut world, "a", b"v", Route::Any);
    world.run(1);
    world.end_sessions();
    world.now_ns += 61_000 * MS;
    put(&mut world, "b", b"v", Route::Any);
    assert!(world.run(1)[0].result.is_ok());
}

#[test]
fn writes_that_wait_for_room_go_on_in_a_session_however_long_each_answer_takes() {
    let mut world = World::new(1, 3, MemoryConfig::default(), |config| {
        config.session_idle_ns_max = 10 * MS;
        config.window = 1;
    });
    world.reply_after_ns = 50 * MS;
    for key in ["a", "b", "c", "d", "e"] {
        put(&mut world, key, b"v", Route::Any);
    }
    assert!(world.run(5).iter().all(|done| done.result.is_ok()));
    assert_eq!(world.core.counts().sessions, 1, "it was in use all the time");
}

/// tests PROTOCOL 7-j, 11-i
#[test]
fn parts_that_take_long_stay_in_their_session_and_those_that_lost_it_are_sent_again() {
    let large = |world: &mut World| put(world, "large", &pattern(5 << 20), Route::Any);
    let mut world = World::new(1, 3, MemoryConfig::default(), |config| {
        config.session_idle_ns_max = 10 * MS;
    });
    world.reply_after_ns = 50 * MS;
    large(&mut world);
    assert!(matches!(world.run(1)[0].result, Ok(Answer::Done { .. })));
    assert_eq!(world.core.counts().sessions, 1, "not replaced while it holds parts");
    // The cluster ends it while the last part is on its way.
    let mut world = calm(3);
    world.reply_after_ns = 50 * MS;
    let ticket = large(&mut world);
    let mut done = Vec::new();
    while world.core.progress(ticket).is_some_and(|(stored, _)| stored == 0) {
        world.step(&mut done);
    }
    world.end_sessions();
    put(&mut world, "small", b"v", Route::Any);
    while done.len() < 2 {
        world.step(&mut done);
    }
    let lost = |done: &Completion| matches!(done.result, Err(ClientError::SessionLost { .. }));
    assert!(done.iter().all(lost), "{:?}", done.iter().map(|it| &it.result).collect::<Vec<_>>());
    large(&mut world);
    assert!(world.run(1)[0].result.is_ok());
}

/// tests PROTOCOL 7-j, 7-k
#[test]
fn large_values_are_stored_in_stripes_a_few_at_a_time_and_come_back_whole() {
    for (seed, lose) in [(1, 0), (2, 2_000), (3, 2_000)] {
        let mut world = World::new(seed, 3, lossy(lose), |config| config.stripe_bytes = 100_000);
        world.reply_after_ns = 2 * MS;
        for len in [100_000, 100_001, 1_999_999, 2_000_000] {
            let value = pattern(len);
            put(&mut world, "large", &value, Route::Any);
            let done = world.run(1).pop().unwrap();
            assert!(done.result.is_ok(), "{:?}", done.result);
            assert_eq!(&done.key, b"large");
            assert_eq!(get(&mut world, "large").unwrap(), value, "{len} bytes");
        }
        assert_eq!(world.machine.get(b"large").unwrap().values().len(), 20);
        assert_eq!(world.machine.revision(), 5, "each value appeared at once");
        // A part whose reply was lost is stored once more; the first one stays until its session
        // ends.
        assert!(world.machine.parts_len() as u64 <= world.seen.replayed);
        assert!((2..=4).contains(&world.seen.parts_in_flight_max), "{:?}", world.seen);
        assert_eq!(world.core.outstanding(), 0);
    }
}

#[test]
fn a_large_value_overwritten_while_it_is_fetched_is_fetched_anew() {
    let mut world = World::new(1, 1, MemoryConfig::default(), |config| {
        config.stripe_bytes = 1000;
        config.stripes_in_flight_max = 1;
    });
    put(&mut world, "k", &pattern(50_000), Route::Any);
    world.run(1);
    for replacement in [pattern(7777), b"small".to_vec()] {
        world.core.submit(Op::Get { key: b"k".to_vec() }, Route::Any, world.now_ns);
        let mut done = Vec::new();
        while world.seen.stripes_served < 2 {
            world.step(&mut done);
        }
        put(&mut world, "k", &replacement, Route::Any);
        world.forget_replaced = true;
        let results = world.run(2);
        let fetched = results.iter().find_map(|done| match &done.result {
            Ok(Answer::Value { bytes, .. }) => Some(bytes.to_vec()),
            _ => None,
        });
        assert!(done.is_empty() && fetched.unwrap() == replacement);
        world.forget_replaced = false;
        put(&mut world, "k", &pattern(50_000), Route::Any);
        world.run(1);
        world.seen.stripes_served = 0;
    }
}

#[test]
fn progress_counts_the_bytes_of_a_large_value() {
    let mut world = World::new(1, 1, MemoryConfig::default(), |config| config.stripe_bytes = 1000);
    let ticket = put(&mut world, "k", &pattern(9_500), Route::Any);
    let (mut seen, mut done) = (Vec::new(), Vec::new());
    while done.is_empty() {
        seen.extend(world.core.progress(ticket));
        world.step(&mut done);
    }
    assert!(seen.is_sorted() && seen[0] == (0, 9_500) && *seen.last().unwrap() == (9_500, 9_500));
    assert_eq!(world.core.progress(ticket), None);
}

#[test]
fn lists_come_in_order_and_say_whether_there_is_more() {
    let mut world = calm(2);
    (0..30).for_each(|at| {
        put(&mut world, &format!("k{at:02}"), &vec![0; at], Route::Any);
    });
    world.run(30);
    let list = Op::List { from: b"k05".to_vec(), to: Some(b"k25".to_vec()), limit: 7 };
    world.core.submit(list, Route::Any, world.now_ns);
    match world.run(1).pop().unwrap().result.unwrap() {
        Answer::Keys { entries, more: true } => {
            let lens: Vec<_> = entries.iter().map(|entry| entry.len).collect();
            assert_eq!(lens, [5, 6, 7, 8, 9, 10, 11]);
            assert_eq!(entries[0].key, b"k05");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_beyond_a_limit_is_refused_before_anything_is_sent() {
    let mut world = calm(1);
    let value = world.pool.copy(b"v").unwrap();
    let ops = [
        (Op::Put { key: vec![], value: value.clone() }, Route::Any),
        (Op::Put { key: vec![0; 8193], value }, Route::Any),
        (Op::Get { key: b"k".to_vec() }, Route::Only(1)),
        (Op::List { from: vec![], to: None, limit: 1001 }, Route::Any),
    ];
    for (op, route) in ops {
        world.core.submit(op, route, world.now_ns);
        match &world.run(1)[0].result {
            Err(ClientError::Limit { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(world.hub.counts().sent, 0);
}

#[test]
fn a_forgotten_operation_completes_no_more_and_frees_the_window() {
    let mut world = World::new(1, 1, MemoryConfig::default(), |config| {
        config.window = 1;
        config.stripe_bytes = 1000;
    });
    let forgotten = put(&mut world, "a", &pattern(5000), Route::Any);
    let mut done = Vec::new();
    (0..3).for_each(|_| world.step(&mut done));
    world.core.forget(forgotten);
    put(&mut world, "b", b"v", Route::Any);
    let finished = world.run(1);
    assert!(finished[0].key == b"b" && finished[0].result.is_ok() && done.is_empty());
    assert_eq!(get(&mut world, "a"), None);
}
