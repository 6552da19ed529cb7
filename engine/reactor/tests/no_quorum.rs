//! Reads while too few nodes answer: how often the others are asked, and that it is found at once when they
//! are back.

mod common;

use common::{Cluster, MS};
use racos_engine::wire::client::{Reply, Request};

/// Messages that node 0 has sent.
fn sent(cluster: &Cluster) -> u64 {
    cluster.node(0).net().counters().messages_sent
}

/// tests PROTOCOL 12.2-i: after 5, 10, 20 ms, and so on up to every 200 ms.
#[test]
fn a_read_without_a_quorum_asks_less_and_less_often() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, b"key", &[7; 1000]);
    let silent = [2, 3, 4];
    silent.iter().for_each(|node| cluster.stop(*node));
    cluster.pass(2000 * MS);
    let before = sent(&cluster);
    cluster.pass(4000 * MS);
    let otherwise = sent(&cluster) - before;
    for key in [&b"key"[..], b"none"] {
        let before = sent(&cluster);
        let number = cluster.send(0, &Request::Get { key: key.to_vec() }, &[]);
        cluster.pass(4000 * MS);
        let asked = sent(&cluster) - before - otherwise;
        // Once, five times while the pause grows, and then 19 times.
        assert!(asked <= 26 * silent.len() as u64, "{asked} questions in four seconds");
        assert!(asked >= 24 * silent.len() as u64, "{asked}: it does ask");
        cluster.pass(1500 * MS);
        let replies = cluster.replies();
        let ended = replies.iter().find(|(of, ..)| *of == number).map(|(_, reply, _)| reply);
        assert!(matches!(ended, Some(Reply::Error(_))), "{ended:?}");
    }
}

/// tests PROTOCOL 12.2-i: whoever is back is asked within the longest pause.
#[test]
fn a_read_that_waited_long_for_a_quorum_ends_soon_after_it_is_back() {
    let mut cluster = Cluster::new(5, 1, 3);
    cluster.put(0, b"key", &[7; 1000]);
    let hub = cluster.hub.clone();
    let cut = |is_cut: bool| {
        for node in [2, 3, 4] {
            hub.block(common::address(0), common::address(node), is_cut);
            hub.block(common::address(node), common::address(0), is_cut);
        }
    };
    cut(true);
    let number = cluster.send(0, &Request::Get { key: b"none".to_vec() }, &[]);
    cluster.pass(3000 * MS);
    assert!(cluster.replies().is_empty());
    cut(false);
    let is_answered = |cluster: &mut Cluster| {
        let replies = cluster.replies();
        let mut answers = replies.iter().filter(|(of, ..)| *of == number);
        answers.any(|(_, reply, _)| matches!(reply, Reply::NotFound))
    };
    assert!(cluster.pass_until(202 * MS, is_answered), "the longest pause, and a round trip");
}
