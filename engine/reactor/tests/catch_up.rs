//! A node that was away is told in ranges what it missed (PROTOCOL 9.3, 12.3), by whole nodes.

mod common;

use common::{Cluster, MS};

/// Every part of what it costs grows as the number of slots does, and no faster.
/// tests PROTOCOL 9.3-b, 12.3-a, 12.3-f, 6.5-l
#[test]
fn a_node_that_was_away_is_told_what_it_missed_in_few_ranges_and_refuses_none_of_it() {
    for puts in [150, 1500] {
        let mut cluster = Cluster::new(5, 1, 3);
        cluster.put(0, b"first", b"value");
        cluster.stop(4);
        let before = cluster.node(0).exec();
        for index in 0..puts {
            cluster.put(index % 4, format!("key{index}").as_bytes(), b"value");
        }
        let missed = cluster.node(0).exec() - before;
        assert!(missed >= puts as u64);
        cluster.start(4).unwrap();
        let is_back = cluster.pass_until(5_000 * MS, |cluster| {
            cluster.node(4).exec() >= before + missed && cluster.node(4).under_way().missing == 0
        });
        assert!(is_back, "{:?}", cluster.node(4).status());
        let told = |node: usize| cluster.node(node).status().catch_up.ranges_told;
        let told: u64 = (0..4).map(told).sum();
        // A range holds so many batches, if it is not cut by the window.
        let least = puts as u64 / 128;
        assert!((least..=2 * least + 8).contains(&told), "{told} ranges for {missed} slots");
        let counters = cluster.node(4).core().counters();
        assert_eq!(counters.skip_timeouts, 0, "nothing was refused");
        assert!(counters.pulls <= 16, "{} questions about single slots", counters.pulls);
    }
}
