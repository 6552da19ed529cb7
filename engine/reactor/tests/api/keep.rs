//! Values that went while somebody read them, and are kept for who announced it (PROTOCOL 9.8-b).

use super::cluster::Cluster;
use super::{bytes, key, long, prefix, put};
use ::bytes::Bytes;
use racos_engine::api::types::*;
use racos_engine::wire::node::kind;

const SECOND: u64 = 1000;

/// Five nodes with two versions of a key, at revisions 2 and 3.
fn with_two_versions() -> Cluster {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, "a", long(1, 5000));
    cluster.put(0, "a", long(2, 5000));
    cluster.pass(100);
    cluster
}

/// Node 3 hears nothing of the others, or everything again.
fn hears(cluster: &Cluster, nothing: bool) {
    (0..5).filter(|node| *node != 3).for_each(|node| cluster.block(node, 3, nothing));
}

/// The key is written again, and what was before revision 4 compacted.
fn compact_away(cluster: &mut Cluster) {
    assert_eq!(cluster.put(0, "a", long(3, 5000)), 4);
    let compacted = cluster.handles[1].compact(4, true);
    cluster.wait(compacted).expect("it is compacted");
}

fn kept(cluster: &Cluster) -> [usize; 5] {
    std::array::from_fn(|node| cluster.node(node).kept_for_readers().0)
}

/// What a transaction through node 3 reads that had asked for fragments when node 3 heard nothing any more,
/// and goes on after a compaction.
fn read_across(cluster: &mut Cluster) -> Result<Bytes, Error> {
    hears(cluster, true);
    let range = Range { revision: 2, ..Range::new(key("a")) };
    let txn = Txn { success: vec![TxnOp::Range(range)], ..Txn::default() };
    let read = cluster.handles[3].txn(txn, true);
    cluster.pass(100);
    compact_away(cluster);
    hears(cluster, false);
    let found = cluster.wait(read)?;
    match &found.answers[..] {
        [TxnOpAnswer::Range(found)] => Ok(found.kvs[0].value.clone()),
        other => panic!("{other:?}"),
    }
}

/// tests PROTOCOL 9.8-b, 9.8-d
#[test]
fn who_has_read_for_a_while_finds_what_was_compacted_meanwhile() {
    let mut cluster = with_two_versions();
    assert_eq!(read_across(&mut cluster), Ok(long(1, 5000)));
    // Until it is told that nobody reads any more.
    cluster.pass(SECOND);
    assert_eq!(kept(&cluster), [0; 5]);
    let gone = cluster.handles[3].range(Range { revision: 2, ..Range::new(key("a")) }, true);
    assert_eq!(cluster.wait(gone), Err(Error::Compacted { compact_revision: 4 }));
}

/// tests PROTOCOL 9.8-d: the first message was lost.
#[test]
fn a_pin_is_said_again_while_it_stands() {
    let mut cluster = with_two_versions();
    let speaks = |cluster: &Cluster, nothing| {
        (0..5).filter(|node| *node != 3).for_each(|node| cluster.block(3, node, nothing));
    };
    hears(&cluster, true);
    let read = cluster.handles[3].range(Range { revision: 3, ..Range::new(key("a")) }, true);
    cluster.pass(1);
    speaks(&cluster, true);
    cluster.pass(100);
    speaks(&cluster, false);
    cluster.pass(1100);
    compact_away(&mut cluster);
    assert_eq!(kept(&cluster), [2, 2, 2, 0, 2]);
    hears(&cluster, false);
    assert_eq!(cluster.wait(read).expect("it is there").kvs[0].value, long(2, 5000));
}

/// tests PROTOCOL 9.8-b, 9.8-d: a range looks at its keys first, and fetches a thousand values at a time.
#[test]
fn what_a_range_has_not_fetched_yet_is_kept_until_it_has() {
    const KEYS: usize = 10_000;
    let mut cluster = Cluster::new(1, 0, 1);
    let names: Vec<String> = (0..KEYS).map(|number| format!("k{number:05}")).collect();
    let mut revision = 1;
    // The later ones take all the room that there is for values just written.
    for (byte, len) in [(1, 200), (2, 4000)] {
        for some in names.chunks(100) {
            let puts = some.iter().map(|name| TxnOp::Put(put(name, long(byte, len))));
            let txn = Txn { success: puts.collect(), ..Txn::default() };
            revision = cluster.txn(0, txn).expect("it is written").revision;
        }
    }
    let first = 1 + (revision - 1) / 2;
    // The first keys, which are compacted first, are fetched last.
    let sort_order = SortOrder::Descending;
    let range = Range { revision: first, sort_order, ..Range::new(prefix("k", "l")) };
    let read = cluster.handles[0].range(range, true);
    // All keys are looked at, and no value fetched.
    cluster.turns(KEYS / 1000);
    let compacted = cluster.handles[0].compact(revision, true);
    let found = cluster.wait(read).expect("it is all there");
    assert_ne!(cluster.node(0).kept_for_readers(), (0, 0));
    assert_eq!(found.kvs.len(), KEYS);
    assert!(found.kvs.iter().all(|kv| kv.value == long(1, 200)));
    cluster.wait(compacted).expect("it is compacted");
    cluster.pass(2 * SECOND);
    assert_eq!(cluster.node(0).kept_for_readers(), (0, 0));
}

/// tests PROTOCOL 9.8-e: however often it is said that something is read, and of whatever state.
#[test]
fn a_member_cannot_hold_back_what_went_for_longer_than_t_keep() {
    let mut cluster = with_two_versions();
    let mut liar = cluster.stand_in(2, 5);
    let mut say = |cluster: &mut Cluster, pin: u64| {
        cluster.speak(&mut liar, 0, kind::PIN, &pin.to_le_bytes());
        cluster.pass(500);
    };
    cluster.stop(2);
    say(&mut cluster, 1);
    compact_away(&mut cluster);
    say(&mut cluster, 1);
    assert_eq!(kept(&cluster), [2, 0, 0, 0, 0]);
    for pin in 0..19 {
        say(&mut cluster, 1 + pin % 2);
    }
    assert_eq!(kept(&cluster), [0; 5], "ten seconds after it went");
    // One of a state to come covers nothing that went before.
    say(&mut cluster, u64::MAX);
    cluster.put(0, "a", long(4, 5000));
    let compacted = cluster.handles[1].compact(5, true);
    cluster.wait(compacted).expect("it is compacted");
    assert_eq!(kept(&cluster), [0; 5]);
}

/// tests PROTOCOL 9.8-f, 1-c
#[test]
fn pins_of_strangers_and_pins_that_make_no_sense_count_for_nothing() {
    let mut cluster = with_two_versions();
    let pin = 1u64.to_le_bytes();
    let mut stranger = cluster.stand_in(9, 1);
    cluster.speak(&mut stranger, 0, kind::PIN, &pin);
    cluster.stop(2);
    let mut member = cluster.stand_in(2, 5);
    cluster.speak(&mut member, 0, kind::PIN, &pin[..7]);
    cluster.speak(&mut member, 0, kind::PIN, &[&pin[..], &[0]].concat());
    cluster.pass(10);
    compact_away(&mut cluster);
    assert_eq!(kept(&cluster), [0; 5]);
    // The same, if it made sense.
    cluster.speak(&mut member, 0, kind::PIN, &pin);
    cluster.pass(10);
    cluster.put(0, "a", long(4, 5000));
    let compacted = cluster.handles[1].compact(5, true);
    cluster.wait(compacted).expect("it is compacted");
    assert_eq!(kept(&cluster), [1, 0, 0, 0, 0]);
    assert_eq!(cluster.get(0, Range::new(key("a"))).kvs[0].key, bytes("a"));
}

/// tests PROTOCOL 9.8-b: of what one operation lets go only so many are named, and the rest is looked for
/// among all fragments.
#[test]
fn what_is_kept_stays_when_very_much_goes_at_once() {
    let mut cluster = Cluster::new(3, 1, 1);
    cluster.put(0, "a", "1");
    cluster.put(0, "a", "2");
    let mut liar = cluster.stand_in(2, 5);
    cluster.stop(2);
    let pin = 1u64.to_le_bytes();
    cluster.speak(&mut liar, 0, kind::PIN, &pin);
    let compacted = cluster.handles[0].compact(3, true);
    cluster.wait(compacted).expect("it is compacted");
    assert_eq!(cluster.node(0).kept_for_readers().0, 1);
    let mut last = 0;
    for _ in 0..50 {
        let puts: Vec<_> = (0..100).map(|_| cluster.handles[0].put(put("b", "1"))).collect();
        last = puts.into_iter().map(|put| cluster.wait(put).unwrap().revision).max().unwrap();
    }
    cluster.speak(&mut liar, 0, kind::PIN, &pin);
    let compacted = cluster.handles[0].compact(last, true);
    cluster.wait(compacted).expect("it is compacted");
    let node = cluster.node(0);
    let kept = node.kept_for_readers().0;
    assert!((4000..4999).contains(&kept), "{kept}: as many as were named, and the one before");
    assert_eq!(node.fragments_len(), node.machine().values_len() + kept);
}
