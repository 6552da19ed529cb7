//! Whole nodes on disks that rot, fail, hang and fill up.

mod common;

use common::{Cluster, MS};
use racos_engine::wire::client::{ErrorCode, Reply, Request};
use racos_engine::{Bounds, OpenError};
use racos_storage::SEGMENT_FRONT;
use racos_storage::device::memory::{Op, Timing};

/// Its fragments lie in sectors of their own.
const LARGE: usize = 90_000;
const ROUND: u64 = 100 * MS;

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8 ^ seed).collect()
}

/// A cluster whose nodes go over their disks ten times a second.
fn scrubbed(change: impl Fn(&mut Bounds)) -> Cluster {
    Cluster::bounded(5, 1, 3, |bounds| {
        bounds.scrub_ns = ROUND;
        change(bounds);
    })
}

fn filled(cluster: &mut Cluster, count: u8) {
    for index in 0..count {
        let len = if index % 4 == 0 { LARGE } else { 1000 + 37 * usize::from(index) };
        cluster.put(usize::from(index % 5), &[b'k', index], &value(len, index));
    }
}

/// Lets so many rounds pass at a node.
fn rounds(cluster: &mut Cluster, node: usize, count: u64) {
    let goal = cluster.node(node).status().scrub.rounds + count;
    let over =
        cluster.pass_until(20_000 * MS, |cluster| cluster.node(node).status().scrub.rounds >= goal);
    assert!(over, "{:?}", cluster.node(node).status().scrub);
}

fn is_whole(cluster: &Cluster, node: usize) -> bool {
    cluster.node(node).status().repair.missing == 0
}

fn refused(cluster: &mut Cluster, node: usize) -> String {
    match cluster.start(node) {
        Err(OpenError::Log(error)) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(()) => panic!("node {node} started"),
    }
}

/// tests PROTOCOL 9.5-h: a round comes by every fragment in use, large and small, and what has rotten is
/// made again though nobody asked for it.
#[test]
fn a_round_finds_every_rotten_fragment_and_has_it_made_again() {
    let mut cluster = scrubbed(|_| {});
    filled(&mut cluster, 40);
    let ops: Vec<_> = (0..40).map(|index| cluster.stored(2, &[b'k', index])).collect();
    rounds(&mut cluster, 2, 2);
    assert_eq!(cluster.node(2).status().scrub.fragments_damaged, 0, "all is well");
    let mut rotten = 0;
    for (index, op) in ops.iter().enumerate() {
        let place = cluster.node(2).fragment_place(*op).unwrap();
        let offset = u64::from(place.offset);
        let mut disk = cluster.hosts[2].disk.borrow_mut();
        match index % 8 {
            // The large ones: damaged, unreadable.
            0 => disk.corrupt(place.segment, offset + u64::from(place.len) / 2),
            4 => disk.make_unreadable(place.segment, offset + 4096),
            _ => continue,
        }
        rotten += 1;
    }
    let before: Vec<_> = ops.iter().map(|op| cluster.node(2).fragment_place(*op)).collect();
    rounds(&mut cluster, 2, 2);
    assert!(cluster.pass_until(2000 * MS, |cluster| is_whole(cluster, 2)));
    let status = cluster.node(2).status();
    assert_eq!((status.scrub.fragments_damaged, status.repair.repaired), (rotten, rotten));
    for (index, (op, before)) in ops.iter().zip(before).enumerate() {
        let moved = cluster.node(2).fragment_place(*op) != before;
        assert_eq!(moved, index % 4 == 0, "value {index}");
    }
    assert_eq!(status.scrub.records_damaged, 0, "these lay apart from any record");
    // What was made again is good, and so is what all others hold.
    rounds(&mut cluster, 2, 2);
    assert_eq!(cluster.node(2).status().scrub.fragments_damaged, rotten);
    assert_eq!(cluster.node(2).status().problem, None);
    cluster.stop(0);
    for index in 0..40 {
        let len = if index % 4 == 0 { LARGE } else { 1000 + 37 * usize::from(index) };
        assert_eq!(cluster.get(2, &[b'k', index]), Some(value(len, index)));
    }
}

/// A write that landed elsewhere: good bytes of another fragment, at the place of this one.
#[test]
fn a_misdirected_write_is_found_by_what_it_covered() {
    let mut cluster = scrubbed(|_| {});
    filled(&mut cluster, 8);
    let (one, other) = (cluster.stored(3, b"k\0"), cluster.stored(3, b"k\x04"));
    let place = |cluster: &Cluster, op| cluster.node(3).fragment_place(op).unwrap();
    let (from, to) = (place(&cluster, one), place(&cluster, other));
    let sector = |place: racos_storage::Place| u64::from(place.offset + 8192) / 512 * 512;
    cluster.hosts[3].disk.borrow_mut().misdirect(
        (from.segment, sector(from)),
        (to.segment, sector(to)),
        4096,
    );
    rounds(&mut cluster, 3, 2);
    assert!(cluster.pass_until(2000 * MS, |cluster| is_whole(cluster, 3)));
    assert_eq!(cluster.node(3).status().scrub.fragments_damaged, 1);
    assert_eq!((place(&cluster, one), place(&cluster, other) == to), (from, false));
}

/// tests PROTOCOL 4.4-o: damage in a promise, found while the node knows it yet, is made harmless by a
/// checkpoint behind it; a restart before that is refused, and one after it is not.
#[test]
fn a_damaged_promise_is_outlived_by_a_checkpoint_or_refused() {
    for is_restarted_at_once in [true, false] {
        let mut cluster = scrubbed(|bounds| bounds.checkpoint_bytes = 1 << 40);
        filled(&mut cluster, 60);
        rounds(&mut cluster, 1, 1);
        assert_eq!(cluster.node(1).status().disk.checkpoints, 0);
        // The head of some group in the middle of the first segment.
        let op = cluster.stored(1, b"k\x08");
        let place = cluster.node(1).fragment_place(op).unwrap();
        let head = u64::from(place.offset) / 4096 * 4096 - 4096;
        let heads = (0..).map(|back| head - back * 4096);
        let contents = cluster.hosts[1].disk.borrow().contents(place.segment).unwrap();
        let is_group = |at: &u64| &contents[*at as usize..][..4] == b"rGRP";
        let group = heads.take_while(|at| *at > 0).find(is_group).expect("a group begins there");
        cluster.hosts[1].disk.borrow_mut().corrupt(place.segment, group + 200);
        if is_restarted_at_once {
            cluster.stop(1);
            let why = refused(&mut cluster, 1);
            assert!(why.contains("lost promises") && why.contains("member replace"), "{why}");
            continue;
        }
        rounds(&mut cluster, 1, 1);
        let status = cluster.node(1).status();
        assert!(status.scrub.records_damaged > 0);
        // It lies behind the mark that a checkpoint can have only once the log has gone on.
        let problem = status.problem.clone().unwrap_or_default();
        let is_told = problem.contains("do not restart") && problem.contains("segment-");
        assert!(is_told || status.disk.checkpoints > 0, "{problem}");
        for round in 0..60u8 {
            cluster.put(2, &[b'n', round], &value(LARGE, round));
            cluster.pass(300 * MS);
            if cluster.node(1).status().problem.is_none() {
                break;
            }
        }
        let status = cluster.node(1).status();
        assert_eq!(status.problem, None);
        assert!((1..8).contains(&status.disk.checkpoints), "{}", status.disk.checkpoints);
        cluster.stop(1);
        cluster.start(1).expect("the mark lies behind the damage");
        cluster.stop(0);
        for index in 0..60 {
            let len = if index % 4 == 0 { LARGE } else { 1000 + 37 * usize::from(index) };
            assert_eq!(cluster.get(1, &[b'k', index]), Some(value(len, index)), "{index}");
        }
    }
}

/// A rotten piece of the checkpoint that a restart would begin at is found, and another is written.
#[test]
fn a_rotten_checkpoint_is_replaced_before_it_is_needed() {
    let mut cluster = scrubbed(|bounds| bounds.checkpoint_bytes = 512 << 10);
    for index in 0..600u16 {
        let [high, low] = index.to_be_bytes();
        cluster.put(0, &[b's', high, low], &value(400, low));
    }
    (0..24).for_each(|index| cluster.put(0, b"large", &value(LARGE, index)));
    let has_one = |cluster: &mut Cluster| !cluster.node(4).snapshot().pieces.is_empty();
    assert!(cluster.pass_until(1000 * MS, has_one));
    // The last one under way is done.
    rounds(&mut cluster, 4, 3);
    let snapshot = cluster.node(4).snapshot().clone();
    let (_, piece) = *snapshot.pieces.iter().max_by_key(|(_, place)| place.len).unwrap();
    assert!(piece.len >= 16 << 10, "it lies apart from its head");
    let at = u64::from(piece.offset) + 5000;
    cluster.hosts[4].disk.borrow_mut().corrupt(piece.segment, at);
    rounds(&mut cluster, 4, 2);
    assert!(cluster.node(4).status().scrub.records_damaged > 0);
    (0..3).for_each(|index| cluster.put(0, b"large", &value(LARGE, index)));
    let newer = |cluster: &mut Cluster| {
        cluster.node(4).snapshot().generation > snapshot.generation
            && cluster.node(4).status().problem.is_none()
    };
    for index in 0..40 {
        if newer(&mut cluster) {
            break;
        }
        cluster.put(0, b"large", &value(LARGE, index));
        cluster.pass(300 * MS);
    }
    assert!(newer(&mut cluster), "{:?}", cluster.node(4).status().problem);
    cluster.stop(4);
    cluster.start(4).expect("the newer checkpoint is good");
    assert!(cluster.node(4).snapshot().generation > snapshot.generation);
}

/// At most a twentieth of the disk's time goes into it, however slow the disk is, and a round takes at
/// least as long as is said.
#[test]
fn a_scrub_is_paced_by_the_disk_and_by_the_days() {
    let reads = std::rc::Rc::new(std::cell::Cell::new(0u64));
    // What a read takes, a round, so many seconds, and the most reads in them.
    let cases = [(4, 1, 8, 100), (0, 4000, 1, 1000 * 30 / 4000 + 30), (900, 1, 180, 10)];
    for (read_ms, round, seconds, most) in cases {
        let mut cluster = Cluster::bounded(1, 0, 1, |bounds| {
            bounds.scrub_ns = round * MS;
            bounds.value_bytes_max = 128 << 10;
        });
        (0..30).for_each(|index| cluster.put(0, &[index], &value(LARGE, index)));
        cluster.pass(5 * MS);
        let count = reads.clone();
        let latency = move |op| match op {
            Op::Read(_) => {
                count.set(count.get() + 1);
                read_ms * MS
            }
            _ => 1000,
        };
        let disk = cluster.hosts[0].disk.clone();
        disk.borrow_mut().advance(cluster.now);
        disk.borrow_mut().set_timing(Timing::Timed(Box::new(latency)));
        // What most reads take is seen by the first three.
        cluster.pass(100 * MS + 3 * (read_ms * MS + 5_000 * MS));
        reads.set(0);
        cluster.pass(seconds * 1000 * MS);
        let read = reads.get();
        assert!(read > 0 && read <= most, "{read} reads of {read_ms} ms in {seconds} s, of {most}");
    }
}

/// A read that took long since the disk stood still, or the clock jumped, is not rested for as if the disk
/// had worked for it.
#[test]
fn a_scrub_goes_on_soon_after_a_disk_that_stood_still() {
    let mut cluster = scrubbed(|_| {});
    filled(&mut cluster, 8);
    rounds(&mut cluster, 2, 1);
    let disk = cluster.hosts[2].disk.clone();
    disk.borrow_mut().freeze(true);
    cluster.pass(10_000 * MS);
    disk.borrow_mut().freeze(false);
    rounds(&mut cluster, 2, 2);
    disk.borrow_mut().freeze(true);
    cluster.pass(ROUND);
    cluster.now += 3_600_000 * MS;
    disk.borrow_mut().freeze(false);
    rounds(&mut cluster, 2, 2);
}

/// A node that never runs for as long as a round takes comes to the end of one all the same: the log knows
/// how far it was.
#[test]
fn a_round_goes_on_where_it_was_before_a_restart() {
    const LONG: u64 = 2000 * MS;
    let mut cluster = Cluster::bounded(1, 0, 1, |bounds| {
        bounds.scrub_ns = LONG;
        bounds.value_bytes_max = 128 << 10;
        bounds.checkpoint_bytes = 256 << 10;
    });
    (0..60).for_each(|index| cluster.put(0, &[index], &value(LARGE, index)));
    let mut boots = 0;
    while cluster.node(0).status().scrub.rounds == 0 {
        assert!(boots < 30, "no round ends: {:?}", cluster.node(0).status().scrub);
        cluster.stop(0);
        cluster.start(0).unwrap();
        boots += 1;
        cluster.pass(LONG * 6 / 10);
    }
    assert!(boots > 1, "one boot alone is too short for it");
    let again = cluster.pass_until(3 * LONG, |cluster| cluster.node(0).status().scrub.rounds == 2);
    assert!(
        again,
        "and the next one begins at the beginning: {:?}",
        cluster.node(0).status().scrub
    );
}

/// A flush that fails stops the node, which says why; the others go on, and it comes back.
#[test]
fn a_write_error_stops_the_node_and_says_why() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, b"key", &value(LARGE, 1));
    cluster.hosts[3].disk.borrow_mut().fail_flush_after(0);
    cluster.put(0, b"key", &value(LARGE, 2));
    assert!(cluster.pass_until(1000 * MS, |cluster| cluster.node(3).failed().is_some()));
    let why = cluster.node(3).failed().unwrap().to_string();
    assert!(why.contains("the disk failed") && why.contains("flush failed"), "{why}");
    let exec = cluster.node(3).exec();
    cluster.put(0, b"key", &value(LARGE, 3));
    assert_eq!(cluster.node(3).exec(), exec, "it does nothing more");
    cluster.stop(3);
    cluster.start(3).expect("its log is as the flush before left it");
    let goal = cluster.node(0).exec();
    assert!(cluster.pass_until(3000 * MS, |cluster| cluster.node(3).exec() >= goal));
    assert_eq!(cluster.get(3, b"key"), Some(value(LARGE, 3)));
}

/// An unreadable sector is read around, and its fragment made again; nothing stops.
#[test]
fn a_read_error_is_read_around_and_repaired() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, b"key", &value(LARGE, 1));
    cluster.put(0, b"other", &value(2000, 1));
    let op = cluster.stored(1, b"key");
    let place = cluster.node(1).fragment_place(op).unwrap();
    cluster.hosts[1].disk.borrow_mut().make_unreadable(place.segment, place.offset.into());
    assert_eq!(cluster.get(1, b"key"), Some(value(LARGE, 1)));
    assert!(cluster.pass_until(2000 * MS, |cluster| {
        is_whole(cluster, 1) && cluster.node(1).status().repair.repaired == 1
    }));
    assert_ne!(cluster.node(1).fragment_place(op), Some(place));
}

/// Lets reads of a node's disk take so long.
fn slow_reads(cluster: &Cluster, node: usize, read_ms: u64) {
    let latency = move |op| if matches!(op, Op::Read(_)) { read_ms * MS } else { 1000 };
    let mut disk = cluster.hosts[node].disk.borrow_mut();
    disk.advance(cluster.now);
    disk.set_timing(Timing::Timed(Box::new(latency)));
}

fn send_gets(cluster: &mut Cluster, node: usize, count: u16) {
    for index in 0..count {
        let key = index.to_be_bytes().to_vec();
        cluster.send(node, &Request::Get { key }, &[]);
    }
}

/// What a disk reads at a time at most.
const READS: u16 = 256;

/// Fragments that a disk cannot be asked for at once are read when it has read others: no read waits for
/// them in vain, nor asks another node.
#[test]
fn a_fragment_that_the_disk_has_no_room_to_read_is_told_when_it_has() {
    let mut cluster = Cluster::new(5, 1, 3);
    let count = READS * 3 / 2;
    (0..count).for_each(|index| cluster.put(0, &index.to_be_bytes(), &value(6000, index as u8)));
    cluster.pass(100 * MS);
    (1..5).for_each(|node| slow_reads(&cluster, node, 2));
    let before = cluster.node(0).status().requests.reads_one_round;
    send_gets(&mut cluster, 0, READS);
    send_gets(&mut cluster, 0, count - READS);
    let mut found = 0;
    cluster.pass_until(1000 * MS, |cluster| {
        let replies = cluster.replies();
        found += replies.iter().filter(|it| matches!(it.1, Reply::Found { .. })).count();
        found == usize::from(count)
    });
    let at_once = cluster.node(0).status().requests.reads_one_round - before;
    assert_eq!((found, at_once), (usize::from(count), u64::from(count)));
}

/// A node that was away is told what it missed by nodes whose disks are asked for much, before it would
/// ask again.
#[test]
fn a_node_is_told_facts_by_one_whose_disk_is_busy() {
    let mut cluster = Cluster::new(3, 1, 1);
    (0..READS).for_each(|index| cluster.put(0, &index.to_be_bytes(), &value(3000, index as u8)));
    cluster.stop(2);
    (0..40).for_each(|index| cluster.put(0, b"late", &value(3000, index)));
    cluster.pass(100 * MS);
    for node in 0..2 {
        slow_reads(&cluster, node, 60);
        send_gets(&mut cluster, node, READS);
    }
    cluster.pass(MS);
    cluster.start(2).unwrap();
    let goal = cluster.node(0).exec();
    let told = cluster.pass_until(250 * MS, |cluster| cluster.node(2).exec() >= goal);
    assert!(told, "it has {} of {goal}", cluster.node(2).exec());
}

/// How long puts of one client through a node take, in virtual nanoseconds, sorted.
fn put_times(cluster: &mut Cluster, node: usize, count: u8) -> Vec<u64> {
    let mut times: Vec<u64> = (0..count)
        .map(|index| {
            let before = cluster.now;
            cluster.put(node, &[b't', index], &value(1300, index));
            cluster.now - before
        })
        .collect();
    times.sort_unstable();
    times
}

/// Disks that fill up: puts are refused by name, deletes are not, and once what was deleted is enough the
/// log makes room by itself, with nobody adding any.
#[test]
fn a_full_cluster_takes_deletes_and_makes_room_by_itself() {
    let mut cluster = Cluster::configured(5, 1, 3, |config| {
        // What is deleted goes at once.
        config.versions_per_key_max = 1;
        let bounds = &mut config.bounds;
        bounds.checkpoint_bytes = 1 << 20;
        bounds.space_reserve_bytes = 1 << 20;
        bounds.history_slots = 64;
        bounds.disk_reserve_bytes = 6 << 20;
    });
    for host in &cluster.hosts {
        host.disk.borrow_mut().set_capacity(24 << 20);
    }
    let mut stored = 0u16;
    let refused = loop {
        let key = stored.to_be_bytes();
        match cluster.try_put(0, &key, &value(LARGE, stored as u8)) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 2000, "24 MiB take no more");
        // So slowly that the nodes tell each other meanwhile how far they are.
        cluster.pass(4 * MS);
    };
    assert_eq!(refused.code, ErrorCode::NoSpace, "{}", refused.text);
    assert!(refused.text.contains("disk"), "{}", refused.text);
    assert!(stored > 200, "{stored} values of 30 KB a node");
    assert!((0..5).any(|node| cluster.node(node).status().disk.full));
    for number in 0..stored / 2 {
        cluster.delete(1, &number.to_be_bytes());
        cluster.pass(4 * MS);
    }
    let room = |cluster: &mut Cluster| (0..5).all(|node| !cluster.node(node).status().disk.full);
    assert!(cluster.pass_until(20_000 * MS, room), "{:?}", cluster.node(0).status().disk);
    for number in 0..stored / 4 {
        cluster.try_put(2, &number.to_be_bytes(), &value(LARGE, 7)).expect("there is room");
    }
    for number in 0..stored {
        let expected = match number {
            _ if number < stored / 4 => Some(value(LARGE, 7)),
            _ if number < stored / 2 => None,
            _ => Some(value(LARGE, number as u8)),
        };
        assert_eq!(cluster.get(3, &number.to_be_bytes()), expected, "{number}");
    }
}

/// A disk that hangs: the node says so and sends clients away, the others go on as if it were gone, and
/// once the disk answers it serves as before.
#[test]
fn a_node_whose_disk_hangs_says_so_and_is_no_burden() {
    let mut cluster = Cluster::new(5, 1, 3);
    put_times(&mut cluster, 0, 20);
    cluster.stop(4);
    put_times(&mut cluster, 0, 20);
    let without = put_times(&mut cluster, 0, 200);
    cluster.start(4).unwrap();
    cluster.pass(1000 * MS);
    put_times(&mut cluster, 0, 20);
    cluster.hosts[4].disk.borrow_mut().freeze(true);
    put_times(&mut cluster, 0, 60);
    cluster.pass(1500 * MS);
    let status = cluster.node(4).status();
    assert!(status.disk.hangs_ms >= 1000, "{}", status.disk.hangs_ms);
    let problem = status.problem.unwrap_or_default();
    assert!(problem.contains("the disk has completed nothing"), "{problem}");
    match cluster.ask(4, &Request::Get { key: b"t\0".to_vec() }, &[]) {
        Some((Reply::Error(error), _)) => {
            assert_eq!(error.code, ErrorCode::Unavailable);
            assert!(error.text.contains("ask another"), "{}", error.text);
        }
        other => panic!("{other:?}"),
    }
    put_times(&mut cluster, 0, 60);
    let beside = put_times(&mut cluster, 0, 200);
    let (p50, p99) = ((without[100], beside[100]), (without[197], beside[197]));
    assert!(p99.1 <= p99.0 + MS && p50.1 <= p50.0 + MS, "p50 {p50:?}, p99 {p99:?}");
    cluster.hosts[4].disk.borrow_mut().freeze(false);
    let goal = cluster.node(0).exec();
    assert!(cluster.pass_until(8000 * MS, |cluster| cluster.node(4).exec() >= goal));
    assert_eq!(cluster.node(4).status().problem, None);
    cluster.put(4, b"t\0", &value(1300, 99));
    assert_eq!(cluster.get(4, b"t\0"), Some(value(1300, 99)));
    assert!(cluster.pass_until(8000 * MS, |cluster| is_whole(cluster, 4)));
}

/// A loop that stood still for seconds serves what came meanwhile: its disk has not hung.
#[test]
fn a_node_that_stood_still_does_not_blame_its_disk() {
    let mut cluster = Cluster::new(1, 0, 1);
    cluster.put(0, b"k", &value(1300, 1));
    cluster.now += 5_000 * MS;
    assert_eq!(cluster.get(0, b"k"), Some(value(1300, 1)));
}

#[test]
fn groups_begin_where_the_front_ends() {
    assert_eq!(SEGMENT_FRONT, 4096, "`a_damaged_promise` looks for groups at such places");
}
