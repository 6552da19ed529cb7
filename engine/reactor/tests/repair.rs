//! Fragments that are missing or damaged are made again (PROTOCOL 9.5), by whole nodes.

mod common;

use common::{Cluster, MS};

const KEY: &[u8] = b"key";
/// Its fragments are written from where they lie, in sectors of their own.
const LARGE: usize = 90_000;

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8 ^ seed).collect()
}

fn settle(cluster: &mut Cluster) {
    let n = cluster.hosts.len();
    let whole = cluster.pass_until(5000 * MS, |cluster| {
        (0..n).all(|node| {
            let host = cluster.hosts[node].node.as_ref();
            host.is_none_or(|node| node.status().repair.missing == 0)
        })
    });
    assert!(whole, "fragments stay missing");
}

/// tests PROTOCOL 9.5-a, 9.5-e: a fragment that cannot be read back counts as missing, others serve
/// the reader, and it is made again.
#[test]
fn a_bad_sector_is_read_around_and_repaired() {
    let mut cluster = Cluster::new(5, 1, 3);
    let bytes = value(LARGE, 3);
    cluster.put(0, KEY, &bytes);
    cluster.put(0, b"other", &value(2000, 1));
    cluster.pass(50 * MS);
    let op = cluster.stored(2, KEY);
    let before = cluster.node(2).fragment_place(op).expect("it lies in the log");
    let (file, offset) = (before.segment, u64::from(before.offset) + 5000);
    cluster.hosts[2].disk.borrow_mut().corrupt(file, offset);
    assert_eq!(cluster.get(2, KEY), Some(bytes.clone()));
    settle(&mut cluster);
    let repair = cluster.node(2).status().repair;
    assert_eq!((repair.repaired, repair.lost), (1, 0));
    let after = cluster.node(2).fragment_place(op).expect("it lies in the log");
    assert_ne!(before, after);
    // With two other holders of data gone from the reads, the new fragment is used.
    cluster.stop(0);
    assert_eq!(cluster.get(2, KEY), Some(bytes.clone()));
    assert_eq!(cluster.node(2).status().repair.repaired, 1, "the new one is good");
    // It is found again after a restart, though the old one is damaged still.
    cluster.stop(2);
    cluster.start(2).expect("a damaged fragment is no lost promise");
    cluster.pass(300 * MS);
    assert!(cluster.node(2).has_fragment(op));
    assert_eq!(cluster.get(2, KEY), Some(bytes));
}

/// tests PROTOCOL 9.5-a, 9.5-d: what a node missed while it was away it makes again once it has
/// executed it, and proposes nothing for it, then or after a restart.
#[test]
fn a_node_that_was_away_repairs_what_it_missed() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, KEY, &value(3000, 1));
    cluster.stop(4);
    for index in 0..20u8 {
        cluster.put(0, &[b'k', index], &value(1300 + usize::from(index), index));
    }
    cluster.put(0, b"large", &value(LARGE, 9));
    cluster.put(0, KEY, &value(3000, 2));
    cluster.start(4).unwrap();
    let goal = cluster.node(0).exec();
    assert!(cluster.pass_until(2000 * MS, |cluster| cluster.node(4).exec() >= goal));
    assert_eq!(cluster.node(4).status().repair.repaired, 0);
    settle(&mut cluster);
    for key in (0..20u8).map(|index| vec![b'k', index]).chain([b"large".to_vec(), KEY.to_vec()]) {
        let op = cluster.stored(4, &key);
        assert!(cluster.node(4).has_fragment(op), "{key:?}");
    }
    let repaired = cluster.node(4).status().repair.repaired;
    assert!(repaired >= 22, "{repaired}");
    let fast = cluster.node(4).core().counters();
    assert_eq!((fast.fast, fast.slow), (0, 0), "it took no part in what it missed");
    cluster.stop(4);
    cluster.start(4).unwrap();
    assert_eq!(cluster.node(4).status().repair.missing, 0, "the log has them");
    cluster.stop(1);
    assert_eq!(cluster.get(4, b"large"), Some(value(LARGE, 9)));
}

/// tests PROTOCOL 9.5-g, 9.5-e: below k the value is lost and said so; a fragment that comes back
/// makes it whole again.
#[test]
fn a_value_below_k_fragments_is_reported_as_lost() {
    let mut cluster = Cluster::new(5, 1, 3);
    let bytes = value(LARGE, 5);
    cluster.put(0, KEY, &bytes);
    cluster.put(0, b"other", &value(2000, 1));
    cluster.pass(50 * MS);
    let op = cluster.stored(0, KEY);
    for node in [1, 2, 3] {
        let place = cluster.node(node).fragment_place(op).unwrap();
        let offset = u64::from(place.offset) + 100;
        cluster.hosts[node].disk.borrow_mut().corrupt(place.segment, offset);
    }
    let request = racos_engine::wire::client::Request::Get { key: KEY.to_vec() };
    match cluster.ask(1, &request, &[]) {
        Some((racos_engine::wire::client::Reply::Error(error), _)) => {
            assert_eq!(error.code, racos_engine::wire::client::ErrorCode::DataLoss);
        }
        other => panic!("{other:?}"),
    }
    cluster.pass(1500 * MS);
    let repair = cluster.node(1).status().repair;
    assert_eq!((repair.missing, repair.lost, repair.repaired), (1, 1, 0));
    cluster.put(0, KEY, &bytes);
    (0..8).for_each(|_| cluster.put(0, KEY, &bytes));
    cluster.pass(100 * MS);
    let repair = cluster.node(1).status().repair;
    assert_eq!((repair.missing, repair.lost), (0, 0), "no version uses it any more");
}
