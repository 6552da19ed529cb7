//! Lost disks are replaced (PROTOCOL 10), by whole nodes.

mod common;

use common::{CLUSTER, Cluster, MS, address};
use racos_engine::wire::client::{ErrorCode, Reply, Request};
use racos_engine::wire::node::kind;
use racos_net::{Identity, Lane, Transport, TransportConfig};

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8 ^ seed).collect()
}

fn fill(cluster: &mut Cluster, count: u8) {
    for index in 0..count {
        cluster.put(usize::from(index % 4), &[b'k', index], &value(1300, index));
    }
}

/// Lets time pass until node `node` holds everything and the cluster says so.
fn rebuilt(cluster: &mut Cluster, node: usize) {
    let done = cluster.pass_until(20_000 * MS, |cluster| {
        let members = cluster.node(0).status().members;
        !members[node].is_rebuilding
    });
    let status = cluster.node(node).status();
    assert!(done, "{:?} {:?} {} {}", status.members, status.repair, status.exec, status.is_active);
}

/// tests PROTOCOL 10-d, 10-l, 10-n, 10-o, 10-p, 10-s, 10-t, 10-u, 10-v, 8.1-f: on a cluster without
/// any other work, a new disk in the place of a lost one comes to hold everything and takes part.
#[test]
fn a_new_disk_takes_the_place_of_a_lost_one() {
    let mut cluster = Cluster::new(5, 1, 3);
    fill(&mut cluster, 12);
    cluster.stop(4);
    cluster.put(0, b"after", &value(5000, 9));
    cluster.new_disk(4, 44);
    let before = cluster.node(0).exec();
    assert_eq!(cluster.replace(1, 4, 1, 44), Ok(()));
    let effect = cluster.node(1).machine().members().effect();
    assert!(effect >= before + 1024, "in effect alpha slots later");
    // No client asks for anything: the slots in between are filled all the same, and quickly.
    let filled = cluster
        .pass_until(1000 * MS, |cluster| (0..4).all(|node| cluster.node(node).exec() >= effect));
    assert!(filled, "{} of {effect}", cluster.node(0).exec());
    assert!(cluster.node(0).status().members[4].is_rebuilding);
    cluster.start(4).unwrap();
    rebuilt(&mut cluster, 4);
    assert!(cluster.node(4).exec() >= effect && cluster.node(4).status().is_active);
    for index in 0..12u8 {
        let op = cluster.stored(4, &[b'k', index]);
        assert!(cluster.node(4).has_fragment(op), "{index}");
    }
    // It counts: without another node there is a quorum with it only, for reads, writes and fragments.
    cluster.stop(1);
    assert_eq!(cluster.get(4, b"after"), Some(value(5000, 9)));
    cluster.put(4, b"through the new one", &value(4000, 3));
    assert_eq!(cluster.get(0, b"through the new one"), Some(value(4000, 3)));
    // And goes on after a restart.
    cluster.stop(4);
    cluster.start(4).unwrap();
    cluster.put(4, b"again", &value(4000, 4));
    assert_eq!(cluster.get(4, b"k\x03"), Some(value(1300, 3)));
}

/// tests PROTOCOL 10-g, 10-h, 10-i, 10-j, 10-k: what is not admitted changes nothing, and the reply
/// says why.
#[test]
fn a_change_that_would_break_the_promise_is_refused() {
    let mut cluster = Cluster::new(5, 1, 3);
    fill(&mut cluster, 4);
    let why = |result: Result<(), String>| result.expect_err("it must be refused");
    assert!(why(cluster.replace(0, 9, 1, 44)).contains("no member"));
    assert!(why(cluster.replace(0, 4, 2, 44)).contains("another incarnation"));
    assert_eq!(cluster.node(0).status().epoch, 1);
    cluster.stop(4);
    cluster.new_disk(4, 44);
    assert_eq!(cluster.replace(0, 4, 1, 44), Ok(()));
    let effect = cluster.node(0).machine().members().effect();
    cluster.pass_until(1000 * MS, |cluster| cluster.node(0).exec() > effect);
    assert!(why(cluster.replace(0, 4, 1, 45)).contains("another incarnation"), "once");
    assert!(why(cluster.replace(0, 3, 1, 45)).contains("rebuilding"), "f = 1");
    assert_eq!(cluster.node(0).status().epoch, 2);
    cluster.start(4).unwrap();
    rebuilt(&mut cluster, 4);
    cluster.stop(3);
    cluster.new_disk(3, 45);
    assert_eq!(cluster.replace(0, 3, 1, 45), Ok(()), "now another one may");
    cluster.start(3).unwrap();
    rebuilt(&mut cluster, 3);
}

/// tests PROTOCOL 10-d, 10-q, 10-r: a disk that no change names says nothing that counts and serves
/// no client; of two disks made for one change one only comes in; the replaced disk stops.
#[test]
fn only_the_disk_that_the_change_names_speaks() {
    let mut cluster = Cluster::new(5, 1, 3);
    fill(&mut cluster, 4);
    cluster.stop(4);
    let old = (cluster.hosts[4].disk.clone(), cluster.hosts[4].config.clone());
    cluster.new_disk(4, 43);
    cluster.start(4).unwrap();
    let exec = cluster.node(0).exec();
    cluster.pass_until(2000 * MS, |cluster| cluster.node(4).exec() >= exec);
    assert!(cluster.node(4).exec() >= exec, "it looks on");
    match cluster.ask(4, &Request::Get { key: b"k\x01".to_vec() }, &[]) {
        Some((Reply::Error(error), _)) => {
            assert_eq!(error.code, ErrorCode::Unavailable);
            assert!(error.text.contains("not a member yet"), "{}", error.text);
        }
        other => panic!("{other:?}"),
    }
    let counters = cluster.node(4).core().counters();
    assert_eq!((counters.votes, counters.skip_timeouts), (0, 0));
    assert_eq!(cluster.replace(0, 4, 1, 44), Ok(()), "for another disk");
    let stopped = cluster.pass_until(3000 * MS, |cluster| cluster.node(4).failed().is_some());
    assert!(stopped && cluster.node(4).failed().unwrap().contains("another disk"));
    // The old disk comes back, and is told.
    cluster.hosts[4].node = None;
    (cluster.hosts[4].disk, cluster.hosts[4].config) = old;
    cluster.start(4).unwrap();
    let stopped = cluster.pass_until(3000 * MS, |cluster| cluster.node(4).failed().is_some());
    assert!(stopped && cluster.node(4).failed().unwrap().contains("was replaced"));
    assert_eq!(cluster.get(2, b"k\x01"), Some(value(1300, 1)));
}

/// tests PROTOCOL 9.1-b, 10-d: what a peer remembers of the boots of a lost disk does not stop the one
/// that has replaced it: its boots begin anew.
#[test]
fn a_boot_of_the_lost_disk_does_not_stop_the_new_one() {
    let mut cluster = Cluster::new(5, 1, 3);
    fill(&mut cluster, 4);
    cluster.stop(4);
    cluster.new_disk(4, 44);
    assert_eq!(cluster.replace(0, 4, 1, 44), Ok(()));
    cluster.start(4).unwrap();
    rebuilt(&mut cluster, 4);
    let tell = |cluster: &mut Cluster, incarnation: u32| {
        let head = [incarnation.to_le_bytes(), 99u32.to_le_bytes()].concat();
        let identity =
            Identity { cluster: CLUSTER, node: Some(0), incarnation: 1, boot: 1, lane: Lane::ONLY };
        let (link, pool) = (cluster.hub.link(address(50)), cluster.pool.clone());
        let mut peer = Transport::new(link, identity, pool, TransportConfig::default());
        peer.send(address(4), kind::BOOT, &head, &[], cluster.now).unwrap();
        peer.flush(cluster.now);
        cluster.pass(10 * MS);
        cluster.node(4).failed().map(str::to_owned)
    };
    assert_eq!(tell(&mut cluster, 1), None);
    assert!(tell(&mut cluster, 2).is_some_and(|why| why.contains("rolled back")));
}

/// tests PROTOCOL 10-q, 10-r: the replaced disk runs on until the change is in effect: what it says of
/// the slots before counts, and nothing depends on its being dead.
#[test]
fn a_disk_may_be_replaced_while_it_runs() {
    let mut cluster = Cluster::new(5, 1, 3);
    fill(&mut cluster, 4);
    let put = |cluster: &mut Cluster, at: usize, index: u8| {
        cluster.put(at, &[b'w', index], &value(2000, index));
    };
    put(&mut cluster, 4, 1);
    assert_eq!(cluster.replace(4, 4, 1, 44), Ok(()), "asked of itself");
    let stopped = cluster.pass_until(3000 * MS, |cluster| cluster.node(4).failed().is_some());
    assert!(stopped && cluster.node(4).failed().unwrap().contains("was replaced"));
    put(&mut cluster, 0, 2);
    cluster.new_disk(4, 44);
    cluster.start(4).unwrap();
    rebuilt(&mut cluster, 4);
    put(&mut cluster, 4, 3);
    for index in 1..4 {
        assert_eq!(cluster.get(4, &[b'w', index]), Some(value(2000, index)));
    }
}
