//! Reads whose fragments come late: what is asked for again, and what is not.

mod common;

use common::{Cluster, MS};
use racos_storage::device::memory::{Op, Timing};

const LARGE: usize = 200_000;

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index as u8).wrapping_mul(31) ^ seed).collect()
}

/// Disks of all nodes that take so long for a read.
fn slow_reads(cluster: &mut Cluster, read_ms: u64) {
    for host in &cluster.hosts {
        let latency = move |op| match op {
            Op::Read(_) => read_ms * MS,
            _ => 1000,
        };
        let mut disk = host.disk.borrow_mut();
        disk.advance(cluster.now);
        disk.set_timing(Timing::Timed(Box::new(latency)));
    }
}

/// Reads of the disk that so many gets cost, all nodes together.
fn disk_reads(cluster: &mut Cluster, gets: u8) -> u64 {
    let count = |cluster: &Cluster| -> u64 {
        (0..5).map(|node| cluster.node(node).log().counters().reads).sum()
    };
    let before = count(cluster);
    for index in 0..gets {
        assert_eq!(cluster.get(usize::from(index % 5), b"key"), Some(value(LARGE, 1)));
    }
    // What was asked for in vain is read, too.
    cluster.pass(300 * MS);
    count(cluster) - before
}

/// tests PROTOCOL 8.1-u: disks that take longer than the shortest wait. The first reads ask again, the later
/// ones know that it takes as long.
#[test]
fn fragments_that_are_all_late_are_asked_for_once() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, b"key", &value(LARGE, 1));
    assert_eq!(disk_reads(&mut cluster, 5), 5 * 3, "k of them while the disks are quick");
    for read_ms in [12, 40] {
        slow_reads(&mut cluster, read_ms);
        let learning = disk_reads(&mut cluster, 40);
        // Few of them are asked again until it is known how long it takes.
        assert!(learning <= 40 * 3 + 5 * 2 * 4, "{learning} reads of 40 gets");
        assert_eq!(disk_reads(&mut cluster, 10), 10 * 3, "reads of {read_ms} ms");
    }
}

/// tests PROTOCOL 8.1-t, 8.1-u: a node whose disk hangs: one more is asked in its place, and waits do not grow by
/// what was waited for it.
#[test]
fn a_node_that_does_not_answer_is_replaced_by_one_more_and_makes_no_wait_longer() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, b"key", &value(LARGE, 1));
    disk_reads(&mut cluster, 5);
    let hang = |op| if matches!(op, Op::Read(_)) { 100_000 * MS } else { 1000 };
    let disk = cluster.hosts[1].disk.clone();
    disk.borrow_mut().advance(cluster.now);
    disk.borrow_mut().set_timing(Timing::Timed(Box::new(hang)));
    let reads = |cluster: &Cluster| -> Vec<u64> {
        (0..5).map(|node| cluster.node(node).log().counters().reads).collect()
    };
    for _ in 0..30 {
        let (before, since) = (reads(&cluster), cluster.now);
        assert_eq!(cluster.get(0, b"key"), Some(value(LARGE, 1)));
        assert!(cluster.now - since <= 12 * MS, "{} us", (cluster.now - since) / 1000);
        cluster.pass(20 * MS);
        let read: u64 = reads(&cluster).iter().zip(before).map(|(now, before)| now - before).sum();
        assert_eq!(read, 3, "its own, and those of two others");
    }
}

/// tests PROTOCOL 8.1-u: however often others are asked meanwhile.
#[test]
fn what_the_own_disk_is_reading_is_not_read_again() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, b"key", &value(LARGE, 1));
    slow_reads(&mut cluster, 90);
    assert_eq!(cluster.get(0, b"key"), Some(value(LARGE, 1)));
    cluster.pass(300 * MS);
    let reads = |node: usize| cluster.node(node).log().counters().reads;
    assert!((1..5).any(|node| reads(node) > 1), "they were asked again");
    assert_eq!(reads(0), 1);
}
