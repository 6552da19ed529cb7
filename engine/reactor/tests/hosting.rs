//! Fragments kept for nodes that are missing, and handed over when they are back (PROTOCOL 9.6).

mod common;

use common::{Cluster, MS, address};
use racos_engine::layout::fragment_len;
use racos_engine::status::Status;
use racos_engine::wire::client::Reply;
use racos_engine::wire::node::{SegmentAnswer, get_segment_question, kind, put_segment};
use racos_machine::OpId;

const SMALL: usize = 1300;
/// Stored before it gets a slot.
const LARGE: usize = 90_000;
const KEYS: u8 = 12;
const OF_LARGE: usize = 4;
/// Values that each of the four writers wrote.
const EACH: u64 = KEYS as u64 / 4;

fn cluster(hosting_bytes_max: u64) -> Cluster {
    Cluster::configured(5, 1, 3, |config| {
        config.bounds.hosting_bytes_max = hosting_bytes_max;
        config.bounds.ready_bytes_min = LARGE;
    })
}

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8 ^ seed).collect()
}

fn key(index: u8) -> [u8; 2] {
    [b'k', index]
}

fn written(index: u8) -> Vec<u8> {
    value(if index.is_multiple_of(3) { LARGE } else { SMALL }, index)
}

fn status(cluster: &Cluster, node: usize) -> Status {
    cluster.node(node).status()
}

/// Node 4 is missing, and the others know if they look.
fn lose_4(cluster: &mut Cluster) {
    cluster.stop(4);
    let all =
        |cluster: &mut Cluster| (0..4).all(|node| status(cluster, node).margin.missing == [4]);
    cluster.pass_until(8000 * MS, all);
}

/// The others write while node 4 is missing.
fn work_without_4(cluster: &mut Cluster) {
    lose_4(cluster);
    (0..KEYS).for_each(|index| cluster.put(usize::from(index % 4), &key(index), &written(index)));
    cluster.put(1, b"inline", &value(100, 3));
    cluster.pass(20 * MS);
}

fn hosted(cluster: &Cluster) -> Vec<u64> {
    let up = (0..4).filter(|node| cluster.hosts[*node].node.is_some());
    up.map(|node| status(cluster, node).margin.hosted).collect()
}

/// Node 4 is back, and has all its fragments: how many it made, and had from those that kept them.
fn come_back(cluster: &mut Cluster) -> (u64, u64) {
    cluster.start(4).unwrap();
    let exec = cluster.node(0).exec();
    let whole = |cluster: &mut Cluster| {
        let node = cluster.node(4);
        node.exec() >= exec && node.status().repair.missing == 0
    };
    assert!(cluster.pass_until(20_000 * MS, whole), "{:?}", status(cluster, 4).repair);
    let repair = status(cluster, 4).repair;
    (repair.repaired - repair.from_hosts, repair.from_hosts)
}

/// A node's own fragments of these values are damaged on its disk.
fn spoil(cluster: &mut Cluster, node: usize) {
    for index in 0..KEYS {
        let op = cluster.stored(node, &key(index));
        let place = cluster.node(node).fragment_place(op).expect("it holds one");
        cluster.hosts[node].disk.borrow_mut().corrupt(place.segment, u64::from(place.offset) + 5);
    }
}

fn read_all(cluster: &mut Cluster) {
    for index in 0..KEYS {
        assert_eq!(cluster.get(usize::from(index % 5), &key(index)), Some(written(index)));
    }
}

/// tests PROTOCOL 9.6-c: and they are the right ones: with two others damaged, all is read from them.
#[test]
fn who_was_missing_has_its_fragments_from_who_wrote_the_values() {
    let mut cluster = cluster(64 << 20);
    work_without_4(&mut cluster);
    assert_eq!(hosted(&cluster), [EACH; 4]);
    let bytes: u64 = (0..4).map(|node| status(&cluster, node).margin.hosted_bytes).sum();
    let values = OF_LARGE * LARGE + (usize::from(KEYS) - OF_LARGE) * SMALL;
    assert!(bytes > values as u64 / 3 && bytes < values as u64 / 3 + 8192, "{bytes}");
    assert_eq!(come_back(&mut cluster), (1, u64::from(KEYS)), "one is whole at every node");
    assert_eq!(hosted(&cluster), [0; 4], "nothing is kept any more");
    let handed: u64 = (0..4).map(|node| status(&cluster, node).margin.handed_over).sum();
    assert_eq!(handed, u64::from(KEYS));
    (1..3).for_each(|node| spoil(&mut cluster, node));
    read_all(&mut cluster);
}

#[test]
fn without_hosting_each_is_made_of_others() {
    let mut cluster = cluster(0);
    work_without_4(&mut cluster);
    assert_eq!(hosted(&cluster), [0; 4]);
    assert_eq!(come_back(&mut cluster), (u64::from(KEYS) + 1, 0));
    read_all(&mut cluster);
}

/// A restart forgets what was kept, and one whose disk lost it has its own to give.
#[test]
fn what_is_kept_no_longer_is_made_of_others() {
    let mut cluster = cluster(64 << 20);
    work_without_4(&mut cluster);
    cluster.stop(0);
    cluster.start(0).unwrap();
    let lost: Vec<_> = (0..KEYS).filter(|index| index % 4 == 1).collect();
    for index in &lost {
        let op = cluster.stored(1, &key(*index));
        let place = cluster.node(1).hosted_place(op, 4).expect("it is kept");
        cluster.hosts[1].disk.borrow_mut().corrupt(place.segment, u64::from(place.offset) + 5);
    }
    assert_eq!(hosted(&cluster), [0, EACH, EACH, EACH]);
    assert_eq!(come_back(&mut cluster), (2 * EACH + 1, 2 * EACH));
    let own = status(&cluster, 1).repair;
    assert_eq!((own.missing, own.repaired), (0, 0), "its own fragments are as they were");
    read_all(&mut cluster);
}

#[test]
fn a_value_that_was_overwritten_is_kept_for_nobody() {
    let mut cluster = cluster(64 << 20);
    work_without_4(&mut cluster);
    // All through one node: it keeps what it wrote, and the others forget.
    let versions = usize::try_from(cluster.hosts[0].config.versions_per_key_max).unwrap();
    for round in 0..versions {
        for index in 0..KEYS {
            cluster.put(0, &key(index), &value(SMALL, round as u8 ^ index));
        }
    }
    cluster.pass(20 * MS);
    assert_eq!(hosted(&cluster), [versions as u64 * u64::from(KEYS), 0, 0, 0]);
}

/// tests PROTOCOL 9.6-b: what it keeps for another is none of its own: it makes its own again.
#[test]
fn who_keeps_another_nodes_fragment_is_no_holder_by_that() {
    let mut cluster = cluster(64 << 20);
    work_without_4(&mut cluster);
    spoil(&mut cluster, 0);
    for index in 0..KEYS {
        assert_eq!(cluster.get(0, &key(index)), Some(written(index)));
    }
    let made = |cluster: &mut Cluster| {
        let repair = status(cluster, 0).repair;
        repair.missing == 0 && repair.repaired > 0
    };
    assert!(cluster.pass_until(20_000 * MS, made));
    assert_eq!(status(&cluster, 0).repair.from_hosts, 0, "nobody keeps one for it");
    assert_eq!(hosted(&cluster), [EACH; 4]);
}

/// tests PROTOCOL 9.6-d: what is kept gives way, and the files stay within what they may take.
#[test]
fn what_is_kept_for_others_takes_no_room_from_what_is_live() {
    const BIG: usize = 24_000;
    let mut cluster = Cluster::configured(5, 1, 3, |config| {
        config.versions_per_key_max = 1;
        let bounds = &mut config.bounds;
        (bounds.segment_bytes, bounds.checkpoint_bytes) = (256 << 10, 256 << 10);
        (bounds.value_bytes_max, bounds.space_reserve_bytes) = (64 << 10, 2 << 20);
        (bounds.history_slots, bounds.hosting_bytes_max) = (16, 1 << 40);
    });
    lose_4(&mut cluster);
    cluster.put(0, b"old", &vec![1; BIG]);
    let old = cluster.stored(0, b"old");
    assert!(cluster.node(0).hosted_place(old, 4).is_some());
    cluster.new_session_of(64);
    let (mut most_of_limit, mut sent, mut open) = (0, 0u32, 0);
    let done = cluster.pass_until(600_000 * MS, |cluster| {
        let disk = status(cluster, 0).disk;
        most_of_limit = most_of_limit.max(disk.file_bytes * 100 / disk.wanted_bytes);
        for (_, reply, _) in cluster.replies() {
            assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
            open -= 1;
        }
        while sent < 3000 && open < 8 {
            cluster.send_put(0, &key(100 + (sent * 7 % 40) as u8), &vec![sent as u8; BIG]);
            (sent, open) = (sent + 1, open + 1);
        }
        sent == 3000 && open == 0
    });
    assert!(done, "all writes are answered");
    let (disk, margin) = (status(&cluster, 0).disk, status(&cluster, 0).margin);
    assert!(most_of_limit <= 100, "{most_of_limit}% of {disk:?}");
    // Its own fragments alone would be half of what was written.
    assert!(disk.flushed_bytes > 2 * 3000 * (BIG as u64 / 3), "{disk:?}");
    assert!(disk.segments_back > 50 && margin.hosted > 0, "{disk:?} {margin:?}");
    assert_eq!(cluster.node(0).hosted_place(old, 4), None, "its segment was given back");
    come_back(&mut cluster);
    let newest = (0..40u8).map(|index| cluster.get(4, &key(100 + index)).map(|value| value.len()));
    assert!(newest.collect::<Vec<_>>().iter().all(|len| *len == Some(BIG)));
}

/// tests PROTOCOL 9.6-c: what a node says that it kept is taken only with its length and its checksum.
#[test]
fn what_comes_from_a_host_is_looked_at_like_all_that_comes_off_the_wire() {
    let mut cluster = cluster(64 << 20);
    work_without_4(&mut cluster);
    let exec = cluster.node(0).exec();
    cluster.stop(1);
    // In its place somebody who gets the checksum or the length wrong.
    let mut liar = cluster.stand_in(1, 9);
    cluster.start(4).unwrap();
    let mut told = 0;
    let done = cluster.pass_until(20_000 * MS, |cluster| {
        // It takes no part in slots, and is suspected; but it is heard.
        liar.send(address(4), kind::CORE, &[], &[], cluster.now).unwrap();
        let mut came = Vec::new();
        liar.receive(cluster.now, &mut came);
        for message in came.iter().filter(|message| message.kind == kind::GETOWN) {
            let (read, op) = get_segment_question(&message.head).unwrap();
            let used = cluster.node(0).machine().value(OpId(op)).expect("it is in use");
            let len = fragment_len(used.value.len as usize, 3);
            let len = if told % 2 == 0 { len } else { len - 8 };
            let bytes = cluster.pool.copy(&vec![9; len]).unwrap();
            let crc = crc32fast::hash(&bytes) ^ u32::from(told % 2 == 0);
            let mut head = Vec::new();
            put_segment(&mut head, read, op, Some(SegmentAnswer::Hosted { crc }));
            liar.send(address(4), kind::SEG, &head, &[bytes], cluster.now).unwrap();
            told += 1;
        }
        liar.flush(cluster.now);
        let node = cluster.node(4);
        node.exec() >= exec && node.status().repair.missing == 0
    });
    let repair = status(&cluster, 4).repair;
    assert!(done && told >= 2, "told {told}: {repair:?}");
    assert!(cluster.node(4).core().suspected().contains(1));
    assert_eq!(repair.from_hosts, 3 * EACH, "from the others");
    for index in 0..KEYS {
        assert_eq!(cluster.get(4, &key(index)), Some(written(index)));
    }
}
