//! Slots of large values decided by F* proposals (PROTOCOL 5.5-h to 5.5-l), by whole nodes: what it brings,
//! and that nodes with and without it are no cluster, whoever comes first, joins or comes back.

mod common;

use common::{Cluster, MS};
use racos_engine::NodeConfig;
use racos_protocol::{Fast, Policy};

const KEY: &[u8] = b"key";
const LARGE: usize = 5000;

/// Values from 1000 bytes on are stored before they have a slot.
fn usual(config: &mut NodeConfig) {
    config.bounds.ready_bytes_min = 1000;
}

fn least(config: &mut NodeConfig) {
    usual(config);
    config.fast = Fast::Least;
}

fn value(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8).collect()
}

/// Slots decided at node 0 by proposals alone, and by votes, while `count` values of this length are written
/// and one node is down.
fn decided(change: impl Fn(&mut NodeConfig), len: usize, count: u8) -> (u64, u64) {
    let mut cluster = Cluster::configured(4, 1, 2, change);
    cluster.stop(3);
    // It is suspected from then on.
    (0..4).for_each(|index| cluster.put(0, &[b'a', index], &value(10)));
    let counters = |cluster: &Cluster| {
        let counters = cluster.node(0).core().counters();
        (counters.fast, counters.slow)
    };
    let before = counters(&cluster);
    (0..count).for_each(|index| cluster.put(0, &[b'k', index], &value(len)));
    let after = counters(&cluster);
    assert_eq!(cluster.get(1, b"k\0"), Some(value(len)));
    (after.0 - before.0, after.1 - before.1)
}

/// tests PROTOCOL 5.5-h, 5.5-k: of 4,1,2 with a node down a large value has its slot by proposals alone, which
/// it never has otherwise; a small one does not.
#[test]
fn with_an_even_number_of_nodes_one_may_be_down() {
    assert_eq!(decided(usual, LARGE, 10), (0, 10));
    assert_eq!(decided(least, LARGE, 10), (10, 0));
    assert_eq!(decided(least, 500, 10), (0, 10));
}

/// What a node that starts now, and ends, says.
fn refused(cluster: &mut Cluster, node: usize) -> String {
    cluster.start(node).unwrap();
    let ended = |cluster: &mut Cluster| cluster.node(node).failed().is_some();
    assert!(cluster.pass_until(3000 * MS, ended), "it ends");
    let why = cluster.node(node).failed().expect("looked at above").to_owned();
    cluster.stop(node);
    why
}

/// tests PROTOCOL 5.5-l
#[test]
fn nodes_of_different_fast_thresholds_are_no_cluster() {
    let mut cluster = Cluster::formatted(5, 1, 3, least);
    cluster.hosts[4].config.fast = Fast::Support;
    (0..4).for_each(|node| cluster.start(node).unwrap());
    let why = refused(&mut cluster, 4);
    assert!(
        why.contains("others have policy = \"owner\", fast = \"f*\"")
            && why.contains("node 4 has policy = \"owner\", fast = \"sup+f\""),
        "{why}"
    );
    cluster.founded();
    cluster.new_session();
    cluster.put(0, KEY, &value(LARGE));
    cluster.hosts[4].config.fast = Fast::Least;
    cluster.start(4).unwrap();
    cluster.founded();
    cluster.put(4, KEY, &value(LARGE + 1));
    // What a disk was founded with stays, also that of a cluster of before there was a choice.
    cluster.stop(4);
    cluster.hosts[4].config.fast = Fast::Support;
    let why = refused(&mut cluster, 4);
    assert!(why.contains("founded with policy = \"owner\", fast = \"f*\""), "{why}");
    for (n, f, k) in [(1, 0, 1), (3, 1, 1)] {
        let mut cluster = Cluster::configured(n, f, k, usual);
        cluster.put(0, KEY, &value(10));
        cluster.stop(0);
        cluster.hosts[0].config.fast = Fast::Least;
        let why = refused(&mut cluster, 0);
        assert!(why.contains("founded with policy = \"owner\", fast = \"sup+f\""), "{why}");
    }
    let mut alone = Cluster::configured(1, 0, 1, least);
    alone.put(0, KEY, &value(10));
    alone.stop(0);
    alone.hosts[0].config.fast = Fast::Support;
    let why = refused(&mut alone, 0);
    assert!(why.contains("fast = \"f*\""), "{why}");
    alone.hosts[0].config.fast = Fast::Least;
    alone.start(0).unwrap();
    alone.founded();
    assert_eq!(alone.get(0, KEY), Some(value(10)));
}

/// tests PROTOCOL 5.5-l: one that joins is told nothing by nodes of another choice and counts nowhere; told of
/// the mistake, it comes again with theirs, joins, and keeps it.
#[test]
fn who_joins_has_the_terms_of_the_cluster() {
    for (theirs, other) in [(Fast::Least, Fast::Support), (Fast::Support, Fast::Least)] {
        let mut cluster = Cluster::configured(3, 1, 1, |config| {
            usual(config);
            config.fast = theirs;
        });
        (0..10).for_each(|index| cluster.put(0, &[b'k', index], &value(LARGE)));
        let node = cluster.add_host(103);
        cluster.hosts[node].config.fast = other;
        let why = refused(&mut cluster, node);
        let (theirs_text, own) = (format!("fast = \"{theirs}\""), format!("fast = \"{other}\""));
        assert!(why.contains(&theirs_text) && why.contains(&own), "{why}");
        cluster.hosts[node].config.fast = theirs;
        cluster.start(node).unwrap();
        let exec = cluster.node(0).exec();
        let follows = |cluster: &mut Cluster| cluster.node(node).exec() >= exec;
        assert!(cluster.pass_until(3000 * MS, follows), "it follows");
        assert_eq!(cluster.reconfigure(0, &[0, 1, 2, 3], (1, 2), &[]), Ok(()));
        let is_member = |cluster: &mut Cluster| cluster.node(node).status().is_active;
        assert!(cluster.pass_until(5000 * MS, is_member), "it is a member");
        cluster.put(node, KEY, &value(LARGE));
        // F* of four, of which one is down, is three.
        cluster.stop(2);
        (0..4).for_each(|index| cluster.put(node, &[b'a', index], &value(10)));
        let fast = |cluster: &Cluster| cluster.node(node).core().counters().fast;
        let before = fast(&cluster);
        (0..5).for_each(|index| cluster.put(node, &[b'l', index], &value(LARGE)));
        let by_proposals = fast(&cluster) - before;
        assert_eq!(by_proposals, if theirs == Fast::Least { 5 } else { 0 });
        cluster.stop(node);
        cluster.hosts[node].config.fast = other;
        let why = refused(&mut cluster, node);
        assert!(why.contains(&format!("founded with policy = \"owner\", {theirs_text}")), "{why}");
        cluster.hosts[node].config.fast = theirs;
        cluster.start(node).unwrap();
        cluster.put(node, KEY, &value(LARGE + 1));
        assert_eq!(cluster.get(0, KEY), Some(value(LARGE + 1)));
    }
}

/// tests PROTOCOL 5.5-l: a new disk in a node's place likewise.
#[test]
fn a_new_disk_has_the_terms_of_the_cluster() {
    let mut cluster = Cluster::configured(5, 2, 1, least);
    cluster.put(0, KEY, &value(LARGE));
    cluster.new_disk(4, 104);
    assert_eq!(cluster.replace(0, 4, 1, 104), Ok(()));
    cluster.hosts[4].config.fast = Fast::Support;
    let why = refused(&mut cluster, 4);
    assert!(why.contains("fast = \"f*\"") && why.contains("node 4 has"), "{why}");
    cluster.hosts[4].config.fast = Fast::Least;
    cluster.start(4).unwrap();
    let is_member = |cluster: &mut Cluster| cluster.node(4).status().is_active;
    assert!(cluster.pass_until(5000 * MS, is_member), "it is a member");
    cluster.put(4, KEY, &value(LARGE + 1));
    cluster.stop(4);
    cluster.start(4).unwrap();
    cluster.put(4, KEY, &value(LARGE + 2));
    assert_eq!(cluster.get(4, KEY), Some(value(LARGE + 2)));
}

/// tests PROTOCOL 5.5-h, 6.4-f
#[test]
fn a_queue_decides_by_as_few() {
    let mut cluster = Cluster::configured(4, 1, 2, |config| {
        least(config);
        config.policy = Policy::Queue;
    });
    cluster.stop(3);
    for index in 0..20 {
        cluster.put(usize::from(index % 3), &[b'k', index], &value(usize::from(index) * 100));
    }
    let counters = cluster.node(0).core().counters();
    assert!(counters.fast >= 18 && counters.slow <= 2, "{counters:?}");
    cluster.start(3).unwrap();
    let exec = cluster.node(0).exec();
    assert!(cluster.pass_until(3000 * MS, |cluster| cluster.node(3).exec() >= exec));
    assert_eq!(cluster.get(3, b"k\x05"), Some(value(500)));
}
