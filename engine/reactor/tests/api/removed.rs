//! A node that was removed and still runs, or is not a member yet: it changes nothing, reads what it knows itself,
//! and says that another is to be asked.

use super::cluster::Cluster;
use super::{key, long, put};
use racos_engine::api::types::*;

#[test]
fn a_node_that_was_removed_says_so_to_who_writes_and_is_not_healthy() {
    let mut cluster = Cluster::new(6, 1, 3);
    cluster.put(5, "a", long(1, 5000));
    let granted = cluster.handles[5].lease_grant(9, 1000);
    assert_eq!(cluster.wait(granted).expect("a lease").ttl, 1000);
    assert!(cluster.handles[5].identity().hears_quorum);
    let id = cluster.handles[5].identity().member_id;
    let removed = cluster.handles[0].member_remove(id);
    assert_eq!(cluster.wait(removed).expect("it is removed").members.len(), 5);
    cluster.pass(100);

    let refused = cluster.handles[5].put(put("a", "other"));
    let Err(Error::NoMember(text)) = cluster.wait(refused) else { panic!("it is no member") };
    assert!(text.contains("it did not; node 5 was removed; ask another"), "{text}");
    let refused = cluster.handles[5].lease_grant(7, 3);
    assert!(matches!(cluster.wait(refused), Err(Error::NoMember(_))));
    assert!(!cluster.handles[5].identity().hears_quorum);
    let status = cluster.handles[5].status();
    let status = cluster.wait(status).expect("it says how it is");
    assert_eq!(status.leader, 0);
    assert_eq!(status.native.problem.as_deref(), Some("node 5 was removed; ask another"));

    // PROTOCOL 10-r: it would count itself in a quorum that it is not part of.
    let refused = cluster.handles[5].range(Range::new(key("a")), false);
    assert!(matches!(cluster.wait(refused), Err(Error::NoMember(_))));
    let refused = cluster.handles[5].lease_keep_alive(9);
    assert!(matches!(cluster.wait(refused), Err(Error::NoMember(_))));
    let own = cluster.handles[5].range(Range::new(key("a")), true);
    assert_eq!(cluster.wait(own).expect("what it knows").kvs[0].value, long(1, 5000));
    for node in 0..5 {
        let found = cluster.get(node, Range::new(key("a")));
        assert_eq!((found.kvs[0].version, &found.kvs[0].value), (1, &long(1, 5000)), "node {node}");
    }
    assert!((0..5).all(|node| cluster.handles[node].identity().hears_quorum));
    cluster.put(2, "a", "other");
}
