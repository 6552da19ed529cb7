//! The policy closest to the paper (PROTOCOL 6.4), run by whole nodes: every write is stored first, and all
//! nodes agree which of those that are stored comes next.

mod common;

use common::{Cluster, MS, address};
use racos_engine::NodeConfig;
use racos_machine::{Action, Replace};
use racos_protocol::Policy;

const KEY: &[u8] = b"key";
/// Slots that an operation could get, with the smallest window.
const LIFE: u64 = 1024;

fn queue(config: &mut NodeConfig) {
    config.policy = Policy::Queue;
    config.alpha = 16;
    config.bounds.checkpoint_bytes = 64 << 10;
}

fn founded() -> Cluster {
    Cluster::configured(5, 1, 3, queue)
}

fn value(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8).collect()
}

fn held(cluster: &Cluster, node: usize) -> usize {
    cluster.node(node).stored_ahead()
}

/// Lets time pass until all nodes that run have executed as much.
fn level(cluster: &mut Cluster) {
    let is_level = |cluster: &mut Cluster| {
        let nodes = cluster.hosts.iter().filter_map(|host| host.node.as_ref());
        let execs: Vec<u64> = nodes.map(|node| node.exec()).collect();
        execs.iter().all(|exec| *exec == execs[0])
    };
    assert!(cluster.pass_until(20_000 * MS, is_level), "all get as far");
}

/// tests PROTOCOL 6.4-f: each write has a slot of its own, whatever its size and through whichever node.
#[test]
fn every_write_has_one_slot_and_is_read_everywhere() {
    let mut cluster = founded();
    let before = cluster.node(0).exec();
    for (index, len) in [1, 100, 1300, 40_000, 200_000, 0].into_iter().enumerate() {
        cluster.put(index % 5, &[b'k', index as u8], &value(len));
    }
    cluster.delete(3, b"k\x01");
    level(&mut cluster);
    assert_eq!(cluster.node(0).exec(), before + 7);
    for node in 0..5 {
        assert_eq!(cluster.get(node, b"k\x04"), Some(value(200_000)), "node {node}");
        assert_eq!(cluster.get(node, b"k\x02"), Some(value(1300)), "node {node}");
        assert_eq!(cluster.get(node, b"k\x01"), None, "node {node}");
        assert_eq!(held(&cluster, node), 0, "node {node}: nothing waits");
    }
}

/// Writes of many clients at a time, through all nodes: none is lost, none has two slots.
#[test]
fn writes_at_once_are_executed_once_each() {
    let mut cluster = founded();
    cluster.new_session_of(200);
    let (before, revision) = (cluster.node(0).exec(), cluster.node(0).machine().revision());
    let sent: Vec<u64> = (0..150usize)
        .map(|index| {
            cluster.send_put_beside(index % 5, &[b'k', index as u8], &value(500 + index), 1)
        })
        .collect();
    let mut answered = Vec::new();
    let done = cluster.pass_until(6000 * MS, |cluster| {
        answered.extend(cluster.replies().into_iter().map(|(number, ..)| number));
        sent.iter().all(|number| answered.contains(number))
    });
    assert!(done, "{} of {} are answered", answered.len(), sent.len());
    level(&mut cluster);
    let batches = cluster.node(0).status().slots;
    assert_eq!(cluster.node(0).machine().revision(), revision + 150, "{batches:?}");
    assert!(cluster.node(0).exec() >= before + 150, "a slot each, and some that are null");
}

/// tests PROTOCOL 6.4-a, 6.4-c: what two disks of D = 4 have is READY to nobody.
#[test]
fn nothing_is_ready_before_enough_disks_have_it() {
    let mut cluster = founded();
    cluster.put(0, b"small", b"before");
    cluster.pass(100 * MS);
    let freeze = |cluster: &Cluster, frozen| {
        (2..5).for_each(|node| cluster.hosts[node].disk.borrow_mut().freeze(frozen));
    };
    freeze(&cluster, true);
    let number = cluster.send_put(0, KEY, &value(1300));
    let came = cluster.pass_until(300 * MS, |cluster| (0..5).all(|it| held(cluster, it) == 1));
    assert!(came, "all have it in memory");
    cluster.pass(300 * MS);
    for node in 0..5 {
        assert_eq!(cluster.node(node).core().waiting(), 0, "node {node}");
    }
    freeze(&cluster, false);
    let answered = |cluster: &mut Cluster| cluster.replies().iter().any(|(of, ..)| *of == number);
    assert!(cluster.pass_until(2000 * MS, answered), "it is written once the disks go on");
}

/// A write that some nodes, besides node 0 which takes it in, have stored when that ends.
fn orphaned(holders: &[usize]) -> Cluster {
    let mut cluster = founded();
    cluster.put(0, b"small", b"before");
    for node in (1..5).filter(|node| !holders.contains(node)) {
        cluster.hub.block(address(0), address(node), true);
    }
    cluster.send_put(0, KEY, &value(1300));
    let stored = |cluster: &mut Cluster| holders.iter().all(|it| held(cluster, *it) == 1);
    assert!(cluster.pass_until(1000 * MS, stored));
    cluster.stop(0);
    for node in 1..5 {
        cluster.hub.block(address(0), address(node), false);
    }
    assert!((1..5).all(|node| cluster.node(node).core().waiting() == 0), "READY to nobody");
    cluster
}

/// tests PROTOCOL 6.4-e
#[test]
fn what_enough_nodes_have_stored_is_taken_over_from_a_dead_proxy() {
    let mut cluster = orphaned(&[1, 2, 3, 4]);
    let exec = cluster.node(1).exec();
    let revision = cluster.node(1).machine().revision();
    cluster.pass(40 * MS);
    assert_eq!(cluster.node(1).exec(), exec, "its proxy may only be slow");
    let executed = |cluster: &mut Cluster| (1..5).all(|it| cluster.node(it).exec() > exec);
    assert!(cluster.pass_until(1000 * MS, executed), "it is executed");
    for node in 1..5 {
        assert_eq!(cluster.get(node, KEY), Some(value(1300)), "node {node}");
    }
    cluster.start(0).unwrap();
    level(&mut cluster);
    assert_eq!(cluster.node(0).machine().revision(), revision + 1, "once");
}

/// tests PROTOCOL 6.4-e, 6.4-g
#[test]
fn what_too_few_have_stored_is_left_and_goes_when_it_gets_no_slot_any_more() {
    let mut cluster = orphaned(&[1, 2]);
    let exec = cluster.node(1).exec();
    cluster.pass(10_000 * MS);
    assert_eq!((held(&cluster, 1), held(&cluster, 2)), (1, 1), "who knows");
    assert_eq!(cluster.node(1).exec(), exec, "two of D = 4");
    assert_eq!(cluster.get(3, KEY), None);
    for index in 0..LIFE + 8 {
        cluster.put(1 + index as usize % 4, b"other", &index.to_le_bytes());
    }
    assert_eq!((held(&cluster, 1), held(&cluster, 2)), (0, 0));
    // Its proxy had it on disk.
    cluster.start(0).unwrap();
    level(&mut cluster);
    cluster.pass(1000 * MS);
    assert_eq!((held(&cluster, 0), cluster.get(0, KEY)), (0, None));
}

/// Logs give back what was written, and where everybody was.
#[test]
fn all_nodes_start_again_from_their_logs() {
    let mut cluster = founded();
    for round in 0..3u8 {
        for index in 0..40u8 {
            cluster.put(usize::from(index % 5), &[b'k', index], &value(900 + usize::from(round)));
        }
        (0..5).for_each(|node| cluster.stop(node));
        (0..5).for_each(|node| cluster.start(node).unwrap());
        level(&mut cluster);
        for index in 0..40u8 {
            let stored = cluster.get(usize::from(index % 5), &[b'k', index]);
            assert_eq!(stored, Some(value(900 + usize::from(round))), "{round} {index}");
        }
    }
    let checkpoints = cluster.node(0).snapshot().generation;
    assert!(checkpoints > 0, "the log was long enough for one");
}

/// A node that was away is told slot by slot, or takes a state.
#[test]
fn a_node_that_was_away_catches_up() {
    for history_slots in [1 << 20, 0] {
        let mut cluster = Cluster::configured(5, 1, 3, |config| {
            queue(config);
            config.bounds.history_slots = history_slots;
            if history_slots == 0 {
                config.bounds.space_reserve_bytes = 0;
            }
        });
        cluster.put(0, KEY, &value(700));
        cluster.stop(4);
        for index in 0..400usize {
            cluster.put(index % 4, &[b'k', index as u8], &value(2000));
        }
        cluster.start(4).unwrap();
        level(&mut cluster);
        cluster.put(4, b"back", &value(800));
        assert_eq!(cluster.get(4, b"k\x07"), Some(value(2000)));
        assert_eq!(cluster.node(4).jumps() > 0, history_slots == 0);
    }
}

/// Starts a node that must not run, and why it says so.
fn refused(cluster: &mut Cluster, node: usize) -> String {
    cluster.start(node).unwrap();
    let ended = |cluster: &mut Cluster| cluster.node(node).failed().is_some();
    assert!(cluster.pass_until(3000 * MS, ended), "it ends");
    assert!(!cluster.node(node).takes_part());
    let why = cluster.node(node).failed().expect("looked at above").to_owned();
    cluster.stop(node);
    why
}

/// tests PROTOCOL 6.4-h
#[test]
fn nodes_of_different_policies_are_no_cluster() {
    let mut cluster = Cluster::formatted(5, 1, 3, queue);
    cluster.hosts[4].config.policy = Policy::OwnerSlots;
    (0..4).for_each(|node| cluster.start(node).unwrap());
    let why = refused(&mut cluster, 4);
    assert!(
        why.contains("policy = \"queue\"") && why.contains("node 4 has policy = \"owner\""),
        "{why}"
    );
    cluster.founded();
    cluster.new_session();
    cluster.put(0, KEY, &value(10));
    cluster.hosts[4].config.policy = Policy::Queue;
    cluster.start(4).unwrap();
    cluster.founded();
    cluster.put(4, KEY, &value(11));
    // What a disk was founded with stays.
    cluster.stop(4);
    cluster.hosts[4].config.policy = Policy::OwnerSlots;
    let why = refused(&mut cluster, 4);
    assert!(why.contains("founded with policy = \"queue\""), "{why}");
    for (n, f, k) in [(1, 0, 1), (3, 1, 1)] {
        let mut cluster = Cluster::new(n, f, k);
        cluster.put(0, KEY, &value(10));
        cluster.stop(0);
        cluster.hosts[0].config.policy = Policy::Queue;
        let why = refused(&mut cluster, 0);
        assert!(why.contains("founded with policy = \"owner\""), "{why}");
    }
    let mut alone = Cluster::configured(1, 0, 1, queue);
    alone.put(0, KEY, &value(10));
    alone.stop(0);
    alone.hosts[0].config.policy = Policy::OwnerSlots;
    let why = refused(&mut alone, 0);
    assert!(why.contains("founded with policy = \"queue\""), "{why}");
}

/// Slots without owners cannot be filled up to a change (PROTOCOL 10-n).
#[test]
fn members_do_not_change() {
    let mut cluster = founded();
    let why = cluster.replace(0, 4, 1, 92).unwrap_err();
    assert!(why.contains("policy = \"queue\"") && why.contains("policy = \"owner\""), "{why}");
    let why = cluster.reconfigure(0, &[0, 1, 2, 3], (1, 2), &[]).unwrap_err();
    assert!(why.contains("policy = \"queue\""), "{why}");
    let (address, is_forced) = (Box::default(), true);
    let change = Replace { node: 4, expected: 1, disk: 92, address, is_forced };
    let why = cluster.change(0, Action::ReplaceNode(Box::new(change))).unwrap_err();
    assert!(why.contains("policy = \"queue\""), "{why}");
    assert_eq!(cluster.node(0).machine().members().epoch(), 1);
}
