//! Sessions that nobody uses come to their end (PROTOCOL 11-i).

mod common;

use common::{Cluster, MS};
use racos_engine::wire::client::ErrorCode;

const IDLE: u64 = 400 * MS;

fn cluster() -> Cluster {
    with_idle(IDLE)
}

fn with_idle(idle_ns: u64) -> Cluster {
    Cluster::bounded(5, 1, 3, |bounds| bounds.session_idle_ns = idle_ns)
}

fn sessions(cluster: &Cluster, node: usize) -> usize {
    cluster.node(node).machine().sessions_by_last_use().count()
}

/// tests PROTOCOL 11-i
#[test]
fn an_idle_session_ends_by_one_proposal_and_one_in_use_does_not() {
    let mut cluster = cluster();
    let left = 20;
    // Each but the last is left behind.
    (0..left).for_each(|_| cluster.new_session());
    let (start, slots) = (cluster.now, cluster.node(0).exec());
    let mut puts = 0;
    while cluster.now < start + 3 * IDLE {
        cluster.put(puts % 5, b"key", b"used");
        puts += 1;
        cluster.pass(20 * MS);
    }
    for node in 0..5 {
        assert_eq!(sessions(&cluster, node), 1, "node {node}: the one in use");
    }
    let batches = (cluster.node(0).exec() - slots) / 5;
    assert!(batches < puts as u64 + left + 1, "{batches} rounds of slots for {puts} puts");
    // Then it is not used either.
    cluster.pass(2 * IDLE);
    assert_eq!(sessions(&cluster, 0), 0);
    let error = cluster.try_put(0, b"key", b"late").expect_err("its session has ended");
    assert_eq!(error.code, ErrorCode::SessionExpired);
    cluster.new_session();
    cluster.put(0, b"key", b"anew");
}

/// tests PROTOCOL 11-i
#[test]
fn with_the_first_proposer_down_another_one_ends_a_session() {
    for down in 0..5 {
        let mut cluster = cluster();
        cluster.put((down + 1) % 5, b"key", b"value");
        cluster.stop(down);
        cluster.pass(2 * IDLE);
        for node in (0..5).filter(|node| *node != down) {
            assert_eq!(sessions(&cluster, node), 0, "node {node} with {down} down");
        }
    }
}

/// tests PROTOCOL 11-i
#[test]
fn without_a_quorum_no_session_grows_old() {
    // Longer than it takes to notice that nodes are silent.
    let idle = 3_000 * MS;
    let mut cluster = with_idle(idle);
    cluster.put(0, b"key", b"value");
    cluster.stop(3);
    cluster.stop(4);
    cluster.pass(3 * idle);
    cluster.start(3).unwrap();
    cluster.start(4).unwrap();
    // Whoever could not write for so long still can.
    cluster.pass(idle / 4);
    cluster.put(0, b"key", b"after");
    assert_eq!(sessions(&cluster, 0), 1);
}
