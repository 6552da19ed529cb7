//! Nodes that missed more than the others tell one by one take a state (PROTOCOL 9.3), by whole nodes.

mod common;

use common::{Cluster, MS, address};
use racos_engine::status::Status;
use racos_engine::wire::client::{ErrorCode, Reply, Request};
use racos_machine::Action;

fn value(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|index| (index / 7 + seed * 31) as u8).collect()
}

/// Nodes that keep no more history than checkpoints need, and write checkpoints often.
fn cluster(n: usize, f: usize, k: usize) -> Cluster {
    Cluster::bounded(n, f, k, |bounds| {
        bounds.segment_bytes = 256 << 10;
        bounds.value_bytes_max = 32 << 10;
        bounds.checkpoint_bytes = 16 << 10;
        bounds.space_reserve_bytes = 0;
        bounds.history_slots = 0;
    })
}

fn key(index: usize) -> Vec<u8> {
    format!("key{index:04}").into_bytes()
}

fn fill(cluster: &mut Cluster, keys: usize, len: usize) {
    for index in 0..keys {
        cluster.put(0, &key(index), &value(len, index));
    }
}

fn status(cluster: &Cluster, node: usize) -> Status {
    cluster.node(node).status()
}

/// Overwrites a key until no running node tells the slots from `exec` on any more.
fn outrun(cluster: &mut Cluster, nodes: &[usize], exec: u64) {
    for round in 0.. {
        let kept = |node: &usize| status(cluster, *node).catch_up.history_from;
        if nodes.iter().all(|node| kept(node) > exec) {
            return;
        }
        assert!(round < 500, "the history stays");
        cluster.put(nodes[0], b"often", &value(1500, round));
    }
}

fn caught_up(cluster: &mut Cluster, node: usize) {
    let done = cluster.pass_until(20_000 * MS, |cluster| {
        let exec = (0..4).filter(|it| cluster.hosts.get(*it).is_some_and(|h| h.node.is_some()));
        let exec = exec.map(|it| cluster.node(it).exec()).max().unwrap();
        cluster.node(node).exec() == exec && cluster.node(node).under_way().missing == 0
    });
    assert!(done, "{:?}", status(cluster, node));
}

/// tests PROTOCOL 5.4-b, 9.3-d, 9.3-e: what it missed is gone; it takes a state, goes on from it, counts for a
/// quorum, and a restart finds it again.
#[test]
fn a_node_that_missed_more_than_is_kept_takes_a_state() {
    let mut cluster = cluster(3, 1, 1);
    fill(&mut cluster, 20, 700);
    cluster.stop(2);
    let exec = cluster.node(1).exec();
    outrun(&mut cluster, &[0, 1], exec);
    cluster.put(1, b"last", b"before it is back");
    cluster.start(2).unwrap();
    caught_up(&mut cluster, 2);
    assert_eq!(status(&cluster, 2).catch_up.installed, 1);
    let (mine, other) = (cluster.node(2).machine(), cluster.node(0).machine());
    assert_eq!(mine.state_hash(), other.state_hash());
    cluster.stop(0);
    cluster.put(2, b"more", b"through the one that was away");
    cluster.stop(2);
    cluster.start(2).unwrap();
    assert!(cluster.node(2).exec() > exec, "a restart begins at what was taken");
    assert_eq!(cluster.get(2, b"last").as_deref(), Some(&b"before it is back"[..]));
    assert_eq!(cluster.get(1, &key(7)), Some(value(700, 7)));
}

/// tests PROTOCOL 9.3-e: wherever its process ends, it is at the old place or at the new one, and
/// comes to the end all the same.
#[test]
fn a_state_is_taken_whole_or_not_at_all() {
    let mut cluster = cluster(3, 1, 1);
    fill(&mut cluster, 400, 60);
    cluster.stop(2);
    let exec = cluster.node(1).exec();
    outrun(&mut cluster, &[0, 1], exec);
    let (mut kept, mut taken) = (0, 0);
    for turns in 1.. {
        cluster.start(2).unwrap();
        let before = cluster.node(2).exec();
        let mut turn = 0;
        cluster.pass_until(5000 * MS, |_| {
            turn += 1;
            turn == 3 * turns
        });
        let jumped = cluster.node(2).exec() > before;
        cluster.stop(2);
        cluster.start(2).unwrap();
        let after = cluster.node(2).exec();
        let first = cluster.node(2).snapshot().exec;
        assert!(after == before || after >= first, "{before} {after} {first}");
        kept += usize::from(after == before);
        taken += usize::from(after > before);
        cluster.stop(2);
        if jumped {
            break;
        }
    }
    assert!(kept > 3 && taken > 0, "{kept} {taken}");
    cluster.start(2).unwrap();
    caught_up(&mut cluster, 2);
    let (mine, other) = (cluster.node(2).machine(), cluster.node(0).machine());
    assert_eq!(mine.state_hash(), other.state_hash());
}

/// tests PROTOCOL 9.3-f: fragments of what the state names stay, whenever they were stored; the others
/// go; what is not here is listed, and comes to be here.
#[test]
fn fragments_of_what_the_state_names_stay() {
    let mut cluster = cluster(5, 1, 3);
    fill(&mut cluster, 12, 5000);
    cluster.put(0, b"often", &value(1500, 0));
    cluster.pass(50 * MS);
    let overwritten = cluster.stored(4, b"often");
    let here: Vec<_> = (0..12).map(|index| cluster.stored(4, &key(index))).collect();
    let exec = cluster.node(4).exec();
    cluster.stop(4);
    for index in 20..25 {
        cluster.put(1, &key(index), &value(5000, index));
    }
    (0..8).for_each(|round| cluster.put(1, b"often", &value(1500, round)));
    outrun(&mut cluster, &[0, 1, 2, 3], exec);
    cluster.start(4).unwrap();
    assert!(cluster.node(4).has_fragment(overwritten));
    let jumped =
        cluster.pass_until(5000 * MS, |cluster| status(cluster, 4).catch_up.installed == 1);
    assert!(jumped, "{:?}", status(&cluster, 4));
    assert!(here.iter().all(|op| cluster.node(4).has_fragment(*op)));
    assert_eq!(status(&cluster, 4).repair.repaired, 0, "kept, not made again");
    assert!(!cluster.node(4).has_fragment(overwritten), "no version names it any more");
    assert!(cluster.node(4).under_way().missing >= 5);
    caught_up(&mut cluster, 4);
    for index in 20..25 {
        let op = cluster.stored(4, &key(index));
        assert!(cluster.node(4).has_fragment(op));
    }
    cluster.stop(0);
    assert_eq!(cluster.get(4, &key(22)), Some(value(5000, 22)));
}

/// tests PROTOCOL 9.3-d, 9.3-h: a sender that writes further checkpoints goes on with the one that it
/// is being asked for, and with the slots behind it.
#[test]
fn a_transfer_goes_on_though_newer_checkpoints_are_written() {
    let mut cluster = cluster(3, 1, 1);
    fill(&mut cluster, 1500, 60);
    cluster.stop(2);
    let exec = cluster.node(1).exec();
    outrun(&mut cluster, &[0, 1], exec);
    cluster.start(2).unwrap();
    let begun = cluster.pass_until(5000 * MS, |cluster| {
        status(cluster, 0).catch_up.pieces_sent + status(cluster, 1).catch_up.pieces_sent > 0
    });
    assert!(begun);
    let sender = usize::from(status(&cluster, 1).catch_up.pieces_sent > 0);
    let other = 1 - sender;
    let offered = status(&cluster, 2).catch_up.fetching.expect("it has begun");
    let block = |cluster: &Cluster, blocked| {
        for (from, to) in [(sender, 2), (2, sender), (other, 2), (2, other)] {
            cluster.hub.block(address(from), address(to), blocked);
        }
    };
    block(&cluster, true);
    let written = status(&cluster, sender).disk.checkpoints;
    for round in 0.. {
        if status(&cluster, sender).disk.checkpoints >= written + 4 {
            break;
        }
        assert!(round < 600);
        cluster.put(other, b"often", &value(30_000, round));
    }
    assert!(status(&cluster, sender).catch_up.history_from <= offered);
    assert_eq!(status(&cluster, 2).catch_up.fetching, Some(offered), "it goes on asking");
    block(&cluster, false);
    let jumped =
        cluster.pass_until(5000 * MS, |cluster| status(cluster, 2).catch_up.installed == 1);
    assert!(jumped, "{:?}", status(&cluster, 2));
    let taken = cluster.node(2).snapshot().exec;
    assert_eq!(taken, offered, "the checkpoint that was begun with: {:?}", status(&cluster, 2));
    caught_up(&mut cluster, 2);
    assert_eq!(status(&cluster, 2).catch_up.installed, 1, "what follows it was still told");
    // And is given free in the end.
    cluster.pass(31_000 * MS);
    outrun(&mut cluster, &[sender], offered);
}

/// tests PROTOCOL 9.3-e: a sender whose piece is damaged gives nothing; another one does.
#[test]
fn a_damaged_piece_is_not_taken() {
    let mut cluster = cluster(3, 1, 1);
    fill(&mut cluster, 50, 60);
    cluster.stop(2);
    let exec = cluster.node(1).exec();
    outrun(&mut cluster, &[0, 1], exec);
    cluster.pass(300 * MS);
    let piece = cluster.node(0).snapshot().pieces[0].1;
    cluster.hosts[0].disk.borrow_mut().corrupt(piece.segment, u64::from(piece.offset) + 100);
    // Only the damaged one is heard at first.
    cluster.hub.block(address(1), address(2), true);
    cluster.start(2).unwrap();
    let refused =
        cluster.pass_until(5000 * MS, |cluster| status(cluster, 2).catch_up.refused.is_some());
    assert!(refused, "{:?}", status(&cluster, 2));
    let why = status(&cluster, 2).catch_up.refused.unwrap();
    assert!(why.contains("node 0") && why.contains("damaged"), "{why}");
    cluster.hub.block(address(1), address(2), false);
    caught_up(&mut cluster, 2);
    assert_eq!(status(&cluster, 2).catch_up.installed, 1);
}

/// tests PROTOCOL 9.3-j: clients of own slots that are jumped over are told what the session table
/// says, or that it is not known.
#[test]
fn clients_of_slots_jumped_over_are_answered() {
    let mut cluster = cluster(5, 1, 3);
    fill(&mut cluster, 4, 700);
    cluster.pass(20 * MS);
    let exec = cluster.node(4).exec();
    // Node 4 is heard and hears nothing: the others decide what it opens.
    (0..4).for_each(|from| cluster.hub.block(address(from), address(4), true));
    let stamped = cluster.send_put(4, b"counted", &value(900, 1));
    cluster.pass(5 * MS);
    let other = Request::Members { action: Action::NodeLost { node: 9 } };
    let plain = cluster.send(4, &other, &[]);
    let done = cluster
        .pass_until(3000 * MS, |cluster| cluster.node(0).machine().get(b"counted").is_some());
    assert!(done, "the others decide it");
    assert!(cluster.replies().is_empty());
    cluster.new_session();
    for round in 0..200 {
        if (0..4).all(|node| status(&cluster, node).catch_up.history_from > exec + 40) {
            break;
        }
        cluster.put(0, b"often", &value(1500, round));
    }
    (0..4).for_each(|from| cluster.hub.block(address(from), address(4), false));
    let mut replies = Vec::new();
    cluster.pass_until(4000 * MS, |cluster| {
        replies.extend(cluster.replies());
        replies.len() == 2
    });
    assert_eq!(status(&cluster, 4).catch_up.installed, 1, "{:?}", status(&cluster, 4));
    let reply = |number| replies.iter().find(|(of, ..)| *of == number).map(|(_, reply, _)| reply);
    assert!(matches!(reply(stamped), Some(Reply::Done { changes: 1, .. })), "{replies:?}");
    match reply(plain) {
        Some(Reply::Error(error)) => {
            assert_eq!(error.code, ErrorCode::Unavailable);
            assert!(error.text.contains("not known"), "{}", error.text);
        }
        other => panic!("{other:?}"),
    }
}
