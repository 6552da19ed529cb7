//! Values that went while a read was on its way to their fragments (PROTOCOL 9.8-c).

use super::cluster::Cluster;
use super::{key, long};
use racos_engine::api::types::*;

/// A read through node 3 that has looked at its state and asked for fragments when node 3 hears nothing any
/// more; the others write the key again and compact what was before. `revision` 0: the newest.
fn read_across(revision: i64) -> Result<RangeAnswer, Error> {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, "a", long(1, 5000));
    cluster.put(0, "a", long(2, 5000));
    cluster.pass(100);
    let hears = |cluster: &Cluster, nothing| {
        (0..5).filter(|node| *node != 3).for_each(|node| cluster.block(node, 3, nothing));
    };
    hears(&cluster, true);
    let read = cluster.handles[3].range(Range { revision, ..Range::new(key("a")) }, true);
    cluster.pass(1);
    assert_eq!(cluster.put(0, "a", long(3, 5000)), 4);
    let compacted = cluster.handles[1].compact(4, true);
    cluster.wait(compacted).expect("it is compacted");
    hears(&cluster, false);
    cluster.wait(read)
}

/// tests PROTOCOL 9.8-c
#[test]
fn a_read_of_the_newest_state_begins_anew_when_the_value_is_gone() {
    let found = read_across(0).expect("it is found again");
    assert_eq!((found.kvs[0].modified, &found.kvs[0].value), (4, &long(3, 5000)));
}

/// tests PROTOCOL 9.8-c
#[test]
fn a_read_of_a_named_revision_fails_as_compacted_when_the_value_is_gone() {
    for revision in [2, 3] {
        assert_eq!(read_across(revision), Err(Error::Compacted { compact_revision: 4 }));
    }
}
