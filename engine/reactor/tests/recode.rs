//! What was written before a change of the members is stored again in the newest layout (PROTOCOL 10).

mod common;

use common::{Cluster, MS, address};
use racos_engine::wire::client::{Reply, Request};
use racos_machine::{OpId, Value};
use std::collections::BTreeMap;

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8 ^ seed).collect()
}

fn key(index: u8) -> [u8; 2] {
    [b'k', index]
}

/// Empty, whole, coded, large, and large enough to be stored before its slot.
fn len(index: u8, round: u8) -> usize {
    [0, 40, 1300, 70_000, 120_000][usize::from(index + round) % 5]
}

/// Keys of three versions each, and some deleted ones.
fn fill(cluster: &mut Cluster, nodes: &[usize]) {
    for round in 0..3 {
        for index in 0..10 {
            let at = nodes[usize::from(index + round) % nodes.len()];
            cluster.put(at, &key(index), &value(len(index, round), index ^ round));
        }
    }
    (8..10).for_each(|index| cluster.delete(nodes[0], &key(index)));
}

fn readable(cluster: &mut Cluster, nodes: &[usize]) {
    for index in 0..10 {
        let at = nodes[usize::from(index) % nodes.len()];
        let expected = (index < 8).then(|| value(len(index, 2), index ^ 2));
        assert!(cluster.get(at, &key(index)) == expected, "{index} at node {at}");
    }
}

/// What anybody can see of a version: its numbers, and what is said of its bytes.
type Seen = (u64, u64, u64, i64, Vec<(u32, [u8; 16], u32)>);

fn seen(cluster: &Cluster, node: usize) -> (u64, u32, BTreeMap<u8, Vec<Seen>>) {
    let machine = cluster.node(node).machine();
    let bytes = |value: Value| (value.len, value.digest, value.crc);
    let history = |index: u8| {
        let versions = machine.history(&key(index)).map(|version| {
            let values = version.values().map(bytes).collect();
            let (created, modified) = (version.created(), version.modified().main);
            (created, modified, version.number(), version.lease(), values)
        });
        (index, versions.collect())
    };
    let hash = machine.hash_kv(0).expect("the newest revision").0;
    (machine.revision(), hash, (0..10).map(history).collect())
}

fn values(cluster: &Cluster, node: usize) -> Vec<Value> {
    let mut values: Vec<Value> =
        cluster.node(node).machine().values().map(|used| used.value).collect();
    values.sort_by_key(|value| value.op);
    values
}

fn left(cluster: &Cluster, nodes: &[usize]) -> u64 {
    let left = |node: &usize| cluster.node(*node).machine().older_values().values;
    nodes.iter().map(left).max().expect("some node")
}

/// Lets time pass until nothing has an older layout at these nodes.
fn recoded(cluster: &mut Cluster, nodes: &[usize]) {
    let done = cluster.pass_until(20_000 * MS, |cluster| {
        let newest = |node: &usize| {
            let members = cluster.node(*node).machine().members();
            (members.epoch(), members.effect() <= cluster.node(*node).exec())
        };
        let told: Vec<(u32, bool)> = nodes.iter().map(newest).collect();
        told.iter().all(|it| *it == (told[0].0, true)) && left(cluster, nodes) == 0
    });
    assert!(done, "{} values are left", left(cluster, nodes));
}

fn with_observers(recode_bytes_per_s: u64) -> Cluster {
    let mut cluster = Cluster::bounded(3, 1, 1, |bounds| {
        bounds.recode_bytes_per_s = recode_bytes_per_s;
        bounds.ready_bytes_min = 100 << 10;
    });
    fill(&mut cluster, &[0, 1, 2]);
    cluster.add_observers(&[103, 104]);
    cluster
}

/// Every node of the newest layout has its fragment of every value, and none of the old ones'.
fn only_new_fragments(cluster: &mut Cluster, nodes: &[usize], old: &[Value]) {
    let newest = cluster.node(nodes[0]).machine().members().newest().expect("members").clone();
    for value in values(cluster, nodes[0]) {
        assert_eq!(value.layout, newest.number, "{value:?}");
        let has = |node: &&usize| cluster.node(**node).has_fragment(value.op);
        let holders = nodes.iter().filter(has).count();
        assert!(value.len == 0 || holders == newest.members.len(), "{value:?}: {holders}");
    }
    let gone = cluster.pass_until(5000 * MS, |cluster| {
        nodes.iter().all(|node| old.iter().all(|it| !cluster.node(*node).has_fragment(it.op)))
    });
    assert!(gone, "fragments of older layouts are forgotten");
}

/// tests PROTOCOL 10-aa, 10-ab, 10-ac, 10-ad: three nodes become five with another code, then four: all
/// values, old versions too, come to lie in the newest layout, nothing that anybody can see changes, and
/// the node that left is released although nobody has written anything.
#[test]
fn everything_comes_to_lie_in_the_newest_layout() {
    let mut cluster = with_observers(16 << 20);
    let (before, old) = (seen(&cluster, 0), values(&cluster, 0));
    assert_eq!(cluster.reconfigure(1, &[0, 1, 2, 3, 4], (1, 3), &[]), Ok(()));
    recoded(&mut cluster, &[0, 1, 2, 3, 4]);
    for node in 0..5 {
        assert!(seen(&cluster, node) == before, "node {node}");
    }
    cluster.pass(300 * MS);
    only_new_fragments(&mut cluster, &[0, 1, 2, 3, 4], &old);
    let done: Vec<u64> = (0..5).map(|node| cluster.node(node).status().recode.done).collect();
    assert_eq!(done.iter().sum::<u64>(), old.len() as u64, "each by one of them: {done:?}");
    assert!(done.iter().filter(|done| **done > 0).count() >= 3, "they share the work: {done:?}");
    readable(&mut cluster, &[0, 1, 2, 3, 4]);
    let old = values(&cluster, 0);
    assert_eq!(cluster.reconfigure(2, &[0, 2, 3, 4], (1, 2), &[]), Ok(()));
    let released = |cluster: &mut Cluster| {
        let seat = cluster.node(0).machine().members().seats()[1];
        seat.is_released && cluster.node(1).failed().is_some()
    };
    assert!(cluster.pass_until(20_000 * MS, released), "{:?}", cluster.node(0).status());
    cluster.stop(1);
    assert!(seen(&cluster, 3) == before);
    cluster.pass(300 * MS);
    only_new_fragments(&mut cluster, &[0, 2, 3, 4], &old);
    // A restart finds it on the disks.
    [0, 2, 3, 4].into_iter().for_each(|node| cluster.stop(node));
    [0, 2, 3, 4].into_iter().for_each(|node| cluster.start(node).unwrap());
    cluster.pass(500 * MS);
    assert_eq!(left(&cluster, &[0, 2, 3, 4]), 0);
    readable(&mut cluster, &[0, 2, 3, 4]);
    assert!(seen(&cluster, 4) == before);
    for node in [0, 2, 3, 4] {
        let machine = cluster.node(node).machine();
        assert_eq!(machine.state_hash(), machine.full_hash());
    }
}

/// tests PROTOCOL 10-aa: restarts and another change in the middle of it: it goes on with what is left,
/// and ends in the newest layout of all.
#[test]
fn it_goes_on_after_restarts_and_with_the_newest_change() {
    // Slow: a value every few milliseconds.
    let mut cluster = with_observers(1 << 20);
    let before = seen(&cluster, 0);
    assert_eq!(cluster.reconfigure(1, &[0, 1, 2, 3, 4], (1, 3), &[]), Ok(()));
    let all = &[0, 1, 2, 3, 4];
    let is_begun = |cluster: &mut Cluster| {
        let machine = cluster.node(0).machine();
        (1..machine.values_len() as u64).contains(&machine.older_values().values)
    };
    assert!(cluster.pass_until(10_000 * MS, is_begun), "{:?}", cluster.node(0).status().recode);
    let told = cluster.node(0).status().recode;
    assert!(told.values_left > 0 && told.values_left < told.values && told.bytes_left > 0);
    all.iter().for_each(|node| cluster.stop(*node));
    all.iter().for_each(|node| cluster.start(*node).unwrap());
    cluster.pass(100 * MS);
    assert!(left(&cluster, all) > 0);
    assert_eq!(cluster.reconfigure(0, &[0, 1, 2, 3, 4], (1, 2), &[]), Ok(()));
    // One is down: the others do its share.
    cluster.stop(2);
    recoded(&mut cluster, &[0, 1, 3, 4]);
    assert!(seen(&cluster, 3) == before);
    readable(&mut cluster, &[0, 1, 3, 4]);
    cluster.start(2).unwrap();
    recoded(&mut cluster, all);
    assert!(seen(&cluster, 2) == before);
}

/// tests PROTOCOL 10-aa, 9.8-c: who still knows a value by its old operation gets its bytes, by its new
/// one: at a node that has executed RECODE, and at one that is told by the others that it is gone.
#[test]
fn a_reader_that_holds_the_old_operation_finds_the_new_one() {
    let mut cluster = with_observers(16 << 20);
    let large: Vec<Value> =
        values(&cluster, 0).into_iter().filter(|value| value.len == 70_000).collect();
    let fetch = |cluster: &mut Cluster, node: usize, value: Value| {
        cluster.ask(node, &Request::GetStripe { value }, &[])
    };
    let expected: Vec<Vec<u8>> = large
        .iter()
        .map(|value| match fetch(&mut cluster, 1, *value) {
            Some((Reply::Found { .. }, bytes)) => bytes.to_vec(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(cluster.reconfigure(1, &[0, 1, 2, 3, 4], (1, 3), &[]), Ok(()));
    let in_effect = |cluster: &mut Cluster| {
        let reached = |node: usize| {
            let node = cluster.node(node);
            node.machine().members().epoch() == 2
                && node.exec() >= node.machine().members().effect()
        };
        (0..5).all(reached)
    };
    assert!(cluster.pass_until(5000 * MS, in_effect));
    let cut_off = |cluster: &Cluster, blocked| {
        (0..4).for_each(|from| cluster.hub.block(address(from), address(4), blocked));
    };
    cut_off(&cluster, true);
    recoded(&mut cluster, &[0, 1, 2, 3]);
    let ops: Vec<OpId> = large.iter().map(|value| value.op).collect();
    let is_gone = |cluster: &mut Cluster| {
        (0..4).all(|node| ops.iter().all(|op| !cluster.node(node).has_fragment(*op)))
    };
    assert!(cluster.pass_until(5000 * MS, is_gone));
    let lagging = cluster.node(4).machine();
    assert!(ops.iter().any(|op| lagging.value(*op).is_some()), "it has not executed all of them");
    cut_off(&cluster, false);
    for at in [4, 2] {
        for (value, expected) in large.iter().zip(&expected) {
            match fetch(&mut cluster, at, *value) {
                Some((Reply::Found { .. }, bytes)) => assert!(*bytes == **expected),
                other => panic!("{other:?}"),
            }
        }
    }
    // After a restart nobody remembers: the client looks for the key again.
    (0..5).for_each(|node| cluster.stop(node));
    (0..5).for_each(|node| cluster.start(node).unwrap());
    cluster.pass(500 * MS);
    let answer = fetch(&mut cluster, 2, large[0]);
    assert!(matches!(answer, Some((Reply::NotFound, _))), "{answer:?}");
    readable(&mut cluster, &[0, 1, 2, 3, 4]);
}
