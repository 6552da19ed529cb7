//! Values written while nodes are missing, cut into fewer fragments for that (PROTOCOL 9.6).

mod common;

use common::{Cluster, MS};
use racos_engine::wire::client::{ErrorCode, Reply, Request};
use racos_engine::{Bounds, NodeConfig};

/// One that lies in the record of its slot, and one that is stored before it has one.
const SMALL: usize = 1300;
const LARGE: usize = 90_000;

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8 ^ seed).collect()
}

fn config(keeps: bool, config: &mut NodeConfig) {
    config.keeps_margin = keeps;
    config.bounds.ready_bytes_min = LARGE;
}

fn cluster(keeps: bool) -> Cluster {
    Cluster::configured(5, 1, 3, |it| config(keeps, it))
}

/// Lets time pass until each node that runs misses these.
fn misses(cluster: &mut Cluster, missing: &[u8]) {
    let all = |cluster: &mut Cluster| {
        let nodes = cluster.hosts.iter().filter_map(|host| host.node.as_ref());
        nodes.map(|node| node.status().margin).all(|margin| margin.missing == missing)
    };
    assert!(cluster.pass_until(8000 * MS, all), "{missing:?}");
}

fn keys() -> impl Iterator<Item = ([u8; 2], usize)> {
    (0..12u8).map(|index| ([b'k', index], if index % 3 == 0 { LARGE } else { SMALL }))
}

/// Writes through the first four nodes.
fn work(cluster: &mut Cluster) {
    for (key, len) in keys() {
        cluster.put(usize::from(key[1] % 4), &key, &value(len, key[1]));
    }
    cluster.put(1, b"inline", &value(100, 3));
}

fn widths(cluster: &Cluster, node: usize) -> Vec<u8> {
    let machine = cluster.node(node).machine();
    let of = |key: &[u8]| machine.get(key).unwrap().values().next().unwrap().k;
    keys().map(|(key, _)| of(&key)).collect()
}

/// What a node holds of all these is damaged on its disk.
fn spoil(cluster: &mut Cluster, node: usize) {
    for (key, _) in keys() {
        let op = cluster.stored(node, &key);
        let place = cluster.node(node).fragment_place(op).expect("it holds one");
        let offset = u64::from(place.offset) + 5;
        cluster.hosts[node].disk.borrow_mut().corrupt(place.segment, offset);
    }
}

/// tests PROTOCOL 9.6-a: k+f = 4 nodes hold each, and f+a = 2 of them lose it.
#[test]
fn what_is_written_while_a_node_is_missing_can_lose_as_many_as_before() {
    let mut cluster = cluster(true);
    cluster.stop(4);
    misses(&mut cluster, &[4]);
    work(&mut cluster);
    assert_eq!(widths(&cluster, 2), [2; 12]);
    let inline = cluster.node(2).machine().get(b"inline").unwrap().values().next().unwrap().k;
    assert_eq!(inline, 1, "PROTOCOL 3.1-i: whole at every node, as ever");
    (1..3).for_each(|node| spoil(&mut cluster, node));
    for (key, len) in keys() {
        assert_eq!(cluster.get(usize::from(key[1] % 4), &key), Some(value(len, key[1])));
    }
}

/// The same without: what the test above shows would be there is not.
#[test]
fn it_cannot_unless_it_is_asked_for() {
    let mut cluster = cluster(false);
    cluster.stop(4);
    cluster.pass(5000 * MS);
    assert!(cluster.node(0).status().margin.missing.is_empty(), "nobody looks");
    work(&mut cluster);
    assert_eq!(widths(&cluster, 2), [3; 12]);
    (1..3).for_each(|node| spoil(&mut cluster, node));
    cluster.start(4).unwrap();
    cluster.pass(500 * MS);
    let asked = cluster.ask(0, &Request::Get { key: vec![b'k', 1] }, &[]);
    match asked {
        Some((Reply::Error(error), _)) => assert_eq!(error.code, ErrorCode::DataLoss),
        other => panic!("{other:?}"),
    }
}

/// tests PROTOCOL 9.6-a, 3.1-h: as configured, once nobody is missing; nobody who reads sees a change.
#[test]
fn what_was_cut_into_fewer_fragments_is_stored_again_when_all_are_back() {
    let mut cluster = cluster(true);
    cluster.put(0, b"before", &value(SMALL, 99));
    cluster.stop(4);
    misses(&mut cluster, &[4]);
    work(&mut cluster);
    // One that lacks what it would read: it makes its fragment of two, and then of three.
    cluster.stop(0);
    cluster.start(4).unwrap();
    cluster.start(0).unwrap();
    let revision = cluster.node(1).machine().revision();
    misses(&mut cluster, &[]);
    let done = |cluster: &mut Cluster| (0..5).all(|node| widths(cluster, node) == [3; 12]);
    assert!(cluster.pass_until(20_000 * MS, done));
    let told = |cluster: &mut Cluster| {
        let left = |node| cluster.node(node).status().margin.left;
        (0..5).all(|node| left(node) == 0)
    };
    assert!(cluster.pass_until(5000 * MS, told));
    let hash = cluster.node(0).machine().state_hash();
    for node in 0..5 {
        let it = cluster.node(node);
        assert_eq!((it.machine().revision(), it.status().margin.k), (revision, 3));
        assert_eq!((it.machine().state_hash(), it.machine().full_hash()), (hash, hash));
    }
    // Any two may be gone now that five hold it.
    let whole =
        |cluster: &mut Cluster| (0..5).all(|node| cluster.node(node).under_way().missing == 0);
    assert!(cluster.pass_until(20_000 * MS, whole));
    (1..3).for_each(|node| spoil(&mut cluster, node));
    for (key, len) in keys() {
        assert_eq!(cluster.get(3, &key), Some(value(len, key[1])));
    }
    assert_eq!(cluster.get(4, b"before"), Some(value(SMALL, 99)));
}

/// tests PROTOCOL 9.6-b: four nodes answer, one of which has no space any more. Whatever the other three hold,
/// and however often they say so, they are three holders.
#[test]
fn what_a_node_holds_makes_it_one_holder() {
    let mut cluster = cluster(true);
    cluster.stop(4);
    misses(&mut cluster, &[4]);
    cluster.hub.configure(|config| config.duplicate = u16::MAX);
    cluster.hosts[3].disk.borrow_mut().set_capacity(0);
    let (mut written, mut refused) = (0, 0);
    for index in 0..100u8 {
        let key = [b'k', index];
        match cluster.try_put(usize::from(index % 3), &key, &value(LARGE, index)) {
            Ok(()) => {
                let op = cluster.stored(0, &key);
                let holds = |node: &usize| cluster.node(*node).has_fragment(op);
                assert_eq!((0..4).filter(holds).count(), 4, "value {index}");
                written += 1;
            }
            Err(_) => refused += 1,
        }
        if refused == 1 {
            break;
        }
    }
    assert!(written > 3 && refused == 1, "{written} written, {refused} refused");
}

/// tests PROTOCOL 9.6-a: with one more missing than may be, three of five would hold all of what is written, and
/// it is not acknowledged.
#[test]
fn the_thresholds_stay_whatever_a_value_is_cut_into() {
    let mut cluster = cluster(true);
    cluster.stop(4);
    cluster.stop(3);
    misses(&mut cluster, &[3, 4]);
    assert_eq!(cluster.node(0).status().margin.k, 1);
    let revision = cluster.node(0).machine().revision();
    for len in [SMALL, LARGE] {
        let refused = cluster.try_put(0, b"key", &value(len, 1)).expect_err("three hold it");
        assert_eq!(refused.code, ErrorCode::Unavailable, "{refused:?}");
    }
    assert!((0..3).all(|node| cluster.node(node).machine().revision() == revision));
    cluster.start(3).unwrap();
    misses(&mut cluster, &[4]);
    cluster.put(0, b"key", &value(SMALL, 2));
    assert_eq!(cluster.get(1, b"key"), Some(value(SMALL, 2)));
}

/// tests PROTOCOL 9.6-a: a node that hears the others differently cuts differently, and all read it.
#[test]
fn a_value_that_would_not_fit_the_log_is_cut_into_more() {
    let most = 700_000;
    let mut cluster = Cluster::configured(5, 1, 3, |it| {
        config(true, it);
        it.bounds = Bounds { value_bytes_max: most, ready_bytes_min: usize::MAX, ..it.bounds };
    });
    cluster.stop(4);
    misses(&mut cluster, &[4]);
    cluster.put(0, b"largest", &value(most, 1));
    // Together in a batch they are as many bytes for each node as its log takes, and no more.
    let many: Vec<u64> = (0..6u8)
        .map(|index| cluster.send_put_beside(1, &[b'm', index], &value(255_000, index), 1))
        .collect();
    let mut done = 0;
    let all = |cluster: &mut Cluster| {
        let replies = cluster.replies();
        let ours = replies.iter().filter(|(request, ..)| many.contains(request));
        done += ours.filter(|(_, reply, _)| matches!(reply, Reply::Done { .. })).count();
        done == many.len()
    };
    assert!(cluster.pass_until(8000 * MS, all), "all of them are written");
    let k = |key: &[u8]| cluster.node(2).machine().get(key).unwrap().values().next().unwrap().k;
    assert_eq!((k(b"largest"), k(&[b'm', 3])), (3, 2));
    assert_eq!(cluster.get(2, b"largest"), Some(value(most, 1)));
    assert_eq!(cluster.get(3, &[b'm', 3]), Some(value(255_000, 3)));
}
