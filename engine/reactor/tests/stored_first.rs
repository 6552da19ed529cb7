//! Class R: large values are stored at the others before they get a slot (PROTOCOL 6.3, 9.7).

mod common;

use common::{Cluster, MS, address};
use racos_engine::Bounds;

const KEY: &[u8] = b"large";

fn bounds(bounds: &mut Bounds) {
    bounds.ready_bytes_min = 10_000;
    bounds.checkpoint_bytes = 64 << 10;
}

fn value(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8).collect()
}

fn held(cluster: &Cluster, node: usize) -> usize {
    cluster.node(node).stored_ahead()
}

/// A large value is stored at node 1 of four that run, on its way to a fifth that does not, and its
/// owner, node 0, ends before it could assign a slot.
fn orphaned() -> Cluster {
    let mut cluster = Cluster::bounded(5, 1, 3, bounds);
    cluster.put(0, b"small", b"before");
    let exec = cluster.node(0).exec();
    cluster.send_put(0, KEY, &value(100_000));
    let came = cluster.pass_until(1000 * MS, |cluster| (1..5).all(|it| held(cluster, it) == 1));
    assert!(came, "the others store it");
    assert_eq!(cluster.node(0).exec(), exec, "and it has no slot yet");
    cluster.stop(0);
    cluster
}

/// tests PROTOCOL 6.3-a, 6.3-b, 6.3-c, 7-i
#[test]
fn a_large_value_is_stored_and_then_written() {
    let mut cluster = Cluster::bounded(5, 1, 3, bounds);
    let large = value(200_000);
    let mut most = 0;
    let number = cluster.send_put(0, KEY, &large);
    let done = cluster.pass_until(1000 * MS, |cluster| {
        most = (0..5).map(|node| held(cluster, node)).sum::<usize>().max(most);
        cluster.replies().iter().any(|(of, ..)| *of == number)
    });
    assert!(done && most >= 4, "D = 4 of 5 nodes hold it before it is executed: {most}");
    for node in 0..5 {
        assert_eq!(cluster.get(node, KEY), Some(large.clone()), "node {node}");
    }
    cluster.pass(100 * MS);
    for node in 0..5 {
        assert_eq!(held(&cluster, node), 0, "node {node}: it is in use, and held no more");
        assert_eq!(cluster.node(node).fragments_len(), 1, "node {node}");
    }
}

/// tests PROTOCOL 4.1-d, 6.3-b
#[test]
fn nobody_says_stored_before_its_disk_has_it() {
    let mut cluster = Cluster::bounded(5, 1, 3, bounds);
    cluster.put(0, b"small", b"before");
    cluster.pass(100 * MS);
    let freeze = |cluster: &Cluster, frozen| {
        (2..5).for_each(|node| cluster.hosts[node].disk.borrow_mut().freeze(frozen));
    };
    freeze(&cluster, true);
    let seen = cluster.node(0).core().seen();
    let number = cluster.send_put(0, KEY, &value(100_000));
    let came = cluster.pass_until(300 * MS, |cluster| (0..5).all(|it| held(cluster, it) == 1));
    assert!(came, "all have it in memory");
    cluster.pass(300 * MS);
    assert_eq!(cluster.node(0).core().seen(), seen, "two of D = 4 have it on disk: no slot yet");
    freeze(&cluster, false);
    let answered = |cluster: &mut Cluster| cluster.replies().iter().any(|(of, ..)| *of == number);
    assert!(cluster.pass_until(2000 * MS, answered), "it is written once the disks go on");
}

/// Whether a small put at another node is answered while a large one is on its way to nodes that do not
/// hear its owner for a moment.
fn small_is_answered_beside_a_large_one(ready_bytes_min: usize) -> bool {
    let mut cluster = Cluster::bounded(5, 1, 3, |bounds| bounds.ready_bytes_min = ready_bytes_min);
    cluster.put(0, b"small", b"before");
    let block = |cluster: &Cluster, blocked| {
        [3, 4].into_iter().for_each(|to| cluster.hub.block(address(0), address(to), blocked));
    };
    block(&cluster, true);
    let large = cluster.send_put(0, KEY, &value(200_000));
    let begun = |cluster: &mut Cluster| cluster.node(0).under_way().batches == 1;
    assert!(cluster.pass_until(1000 * MS, begun), "all of it has come to its owner");
    cluster.pass(MS);
    let small = cluster.send_put(1, b"small", b"after");
    let mut answered = Vec::new();
    let mut answer = |cluster: &mut Cluster, all: &[u64]| {
        answered.extend(cluster.replies().into_iter().map(|(number, ..)| number));
        all.iter().all(|number| answered.contains(number))
    };
    // Less than the others wait for a batch that somebody has proposed.
    let is_beside = cluster.pass_until(10 * MS, |cluster| answer(cluster, &[small]));
    assert!(!answer(&mut cluster, &[large]), "too few nodes have heard of it");
    block(&cluster, false);
    assert!(cluster.pass_until(2000 * MS, |cluster| answer(cluster, &[small, large])));
    is_beside
}

/// What class R is for: the slot is taken when the data is down.
#[test]
fn a_small_put_does_not_wait_for_a_large_one_that_is_stored_first() {
    assert!(!small_is_answered_beside_a_large_one(usize::MAX), "it has the higher slot");
    assert!(small_is_answered_beside_a_large_one(10_000));
}

/// tests PROTOCOL 6.3-e
#[test]
fn a_node_that_was_away_repairs_its_fragment() {
    let mut cluster = Cluster::bounded(5, 1, 3, bounds);
    cluster.stop(4);
    cluster.put(0, KEY, &value(100_000));
    cluster.start(4).unwrap();
    let repaired = cluster.pass_until(5000 * MS, |cluster| {
        let status = cluster.node(4).status();
        status.repair.repaired == 1 && status.repair.missing == 0
    });
    assert!(repaired, "{:?}", cluster.node(4).status().repair);
    assert_eq!(cluster.node(4).fragments_len(), 1);
}

/// tests PROTOCOL 9.7-a, 9.7-f, 9.7-c, 9.7-e
#[test]
fn what_a_dead_owner_stored_stays_until_it_says_that_it_is_of_no_use() {
    let mut cluster = orphaned();
    cluster.pass(30_000 * MS);
    for node in 1..5 {
        assert_eq!(held(&cluster, node), 1, "node {node}: the owner may count it yet");
    }
    let may_hold_it = cluster.node(1).exec();
    cluster.start(0).unwrap();
    cluster.pass(3000 * MS);
    for node in 1..5 {
        assert_eq!(held(&cluster, node), 1, "it may be in a slot below R that nobody has executed");
    }
    // Until those are executed, other work goes on.
    let mut puts = 0;
    while (0..5).any(|node| held(&cluster, node) > 0) {
        puts += 1;
        assert!(puts < 100, "its operations of an earlier boot are in no slot behind R");
        cluster.put(1, b"small", b"after");
        cluster.pass(10 * MS);
    }
    assert!(puts > 0 && cluster.node(1).exec() > may_hold_it + 50, "{puts} puts");
    assert_eq!(cluster.get(1, KEY), None);
    cluster.pass(1000 * MS);
    for node in 0..5 {
        let versions = cluster.node(node).machine().values().count();
        assert_eq!(cluster.node(node).fragments_len(), versions, "node {node}");
    }
}

/// tests PROTOCOL 4.1-d, 9.7-a
#[test]
fn what_is_stored_is_there_after_checkpoints_and_restarts() {
    let mut cluster = orphaned();
    // A session of a node that runs.
    // Enough for the log to begin behind the record: a restart reads the checkpoint alone.
    for round in 0..600u32 {
        cluster.put(1, format!("key{}", round % 50).as_bytes(), &value(9_000));
    }
    for node in 1..5 {
        assert!(cluster.node(node).snapshot().exec > 100, "node {node} has written checkpoints");
        cluster.stop(node);
        cluster.start(node).unwrap();
        assert_eq!(held(&cluster, node), 1, "node {node}: it said so to the owner");
    }
}

/// tests PROTOCOL 9.7-d
#[test]
fn what_a_replaced_owner_stored_is_dropped_when_the_change_is_in_effect() {
    let mut cluster = orphaned();
    cluster.new_disk(0, 99);
    cluster.replace(1, 0, 1, 99).unwrap();
    assert!((1..5).any(|node| held(&cluster, node) == 1));
    cluster.start(0).unwrap();
    let dropped = cluster.pass_until(5000 * MS, |cluster| (1..5).all(|it| held(cluster, it) == 0));
    assert!(dropped, "nobody will assign it a slot any more");
}

/// What a new disk in an owner's place stores at a node that has not heard of it: that it is stored there
/// counts for the owner as from any other.
///
/// tests PROTOCOL 9.7-d, 9.7-f
#[test]
fn what_a_new_owner_stored_stays_at_a_node_that_does_not_know_of_it_yet() {
    let mut cluster = Cluster::bounded(5, 2, 1, |all| {
        bounds(all);
        all.segment_bytes = 256 << 10;
        all.value_bytes_max = 32 << 10;
        all.checkpoint_bytes = 16 << 10;
        all.space_reserve_bytes = 0;
        all.history_slots = 0;
    });
    cluster.put(1, b"small", b"before");
    cluster.stop(4);
    cluster.new_disk(0, 99);
    cluster.replace(1, 0, 1, 99).unwrap();
    let effect = cluster.node(1).machine().members().effect();
    cluster.start(0).unwrap();
    let whole = |cluster: &mut Cluster| {
        let status = cluster.node(1).status();
        status.exec > effect && !status.members[0].is_rebuilding
    };
    assert!(cluster.pass_until(20_000 * MS, whole), "{:?}", cluster.node(1).status().members);
    // The node that was away must take a state, and cannot: its disk writes nothing.
    for round in 0..200 {
        cluster.put(1, b"often", &value(1500 + round));
    }
    cluster.start(4).unwrap();
    cluster.hosts[4].disk.borrow_mut().freeze(true);
    let number = cluster.send_put(0, KEY, &value(20_000));
    assert!(cluster.pass_until(1000 * MS, |cluster| held(cluster, 4) == 1), "it is stored there");
    let written = |cluster: &mut Cluster| cluster.replies().iter().any(|(of, ..)| *of == number);
    assert!(cluster.pass_until(1000 * MS, written));
    cluster.pass(5000 * MS);
    assert!(cluster.node(4).exec() < effect, "it knows of no change");
    assert_eq!(held(&cluster, 4), 1, "its owner may count it");
    cluster.hosts[4].disk.borrow_mut().freeze(false);
    let caught_up = |cluster: &mut Cluster| cluster.node(4).exec() == cluster.node(0).exec();
    assert!(cluster.pass_until(20_000 * MS, caught_up));
    let op = cluster.stored(4, KEY);
    assert!(cluster.node(4).has_fragment(op), "it did not have to be made again");
    assert_eq!(held(&cluster, 4), 0, "it is in use");
}

/// tests PROTOCOL 9.7-b
#[test]
fn what_is_stored_while_no_slot_can_be_decided_is_not_dropped() {
    let mut cluster = Cluster::bounded(5, 1, 2, bounds);
    cluster.stop(3);
    cluster.stop(4);
    // Three of five store it, D = 3; four are needed to decide.
    let number = cluster.send_put(0, KEY, &value(50_000));
    cluster.pass(4000 * MS);
    for node in 0..3 {
        assert_eq!(held(&cluster, node), 1, "node {node}");
    }
    cluster.start(3).unwrap();
    let done = cluster
        .pass_until(5000 * MS, |cluster| cluster.replies().iter().any(|(of, ..)| *of == number));
    assert!(done, "it takes effect when a quorum is back");
    assert_eq!(cluster.get(3, KEY), Some(value(50_000)));
    assert!(cluster.pass_until(2000 * MS, |cluster| (0..4).all(|it| held(cluster, it) == 0)));
}

/// tests PROTOCOL 6.3-a, 10-w: enough others have it before the owner's own disk does, but in the slot that it
/// gets one of them, replaced meanwhile, does not count. The owner's own counts then, and nobody else can.
#[test]
fn what_the_owner_has_stored_counts_though_it_was_not_needed_at_first() {
    let mut cluster = Cluster::bounded(5, 1, 3, bounds);
    cluster.put(0, KEY, b"before");
    cluster.pass(100 * MS);
    let epoch = cluster.node(0).core().epoch();
    cluster.hosts[0].disk.borrow_mut().freeze(true);
    cluster.replace(2, 1, 1, 77).unwrap();
    let knows = |cluster: &mut Cluster| cluster.node(0).core().epoch() > epoch;
    assert!(cluster.pass_until(1000 * MS, knows), "the change is executed, and takes effect later");
    let large = value(100_000);
    let number = cluster.send_put(0, KEY, &large);
    let came = cluster.pass_until(300 * MS, |cluster| (1..5).all(|it| held(cluster, it) == 1));
    assert!(came && held(&cluster, 0) == 1);
    cluster.pass(5 * MS);
    cluster.hosts[0].disk.borrow_mut().freeze(false);
    let answered = |cluster: &mut Cluster| cluster.replies().iter().any(|(of, ..)| *of == number);
    assert!(cluster.pass_until(3000 * MS, answered), "four of the five that count have it");
    assert_eq!(cluster.get(2, KEY), Some(large));
}
