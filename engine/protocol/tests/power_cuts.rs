//! PROTOCOL 4.1, claim (a): what was acknowledged survives a power cut of all nodes at any moment
//! followed by the loss of any f disks, and every slot is finished with the value that was seen.

mod cluster;

use cluster::{Cluster, Event, MS, SECOND, Weather, config};
use racos_protocol::{Node, NodeSet, Slot};

type Shape = (usize, usize, usize);

/// PROTOCOL 4.1, claim (a). All nodes lose power at every flush boundary of a small run; then any f
/// disks are lost for ever. The others finish every slot, with the values that somebody has seen.
fn power_cut_everywhere(shape: Shape, flushes: u64) {
    let configs: Vec<_> = (0..shape.0 as Node).map(|me| config(shape, me, 5)).collect();
    let mut cluster = Cluster::new(configs, 21);
    let busy = Weather { offer_every: MS / 2, loss_per_mille: 50, ..Weather::fair() };
    cluster.schedule(0, Event::Weather(Box::new(busy)));
    let mut boundaries = 0;
    while cluster.flushes < flushes {
        let before = cluster.flushes;
        cluster.next_event();
        if cluster.flushes == before {
            continue;
        }
        boundaries += 1;
        for lost in 0..1u64 << shape.0 {
            if lost.count_ones() as usize == shape.1 {
                finish_without(cluster.clone(), NodeSet(lost));
            }
        }
    }
    assert!(boundaries >= flushes && !cluster.oracle.acknowledged.is_empty());
}

/// tests PROTOCOL 6.2-e
fn finish_without(mut cluster: Cluster, lost: NodeSet) {
    let acknowledged = cluster.oracle.acknowledged.clone();
    cluster.nodes().for_each(|node| cluster.crash(node));
    lost.iter().for_each(|node| cluster.wipe(node));
    let k = cluster.oracle.t.k;
    for slot in &acknowledged {
        assert!(cluster.oracle.holders(*slot).len() >= k, "slot {slot} is not decodable");
    }
    // Everything decided, acknowledged or not, must come out the same: the oracle remembers.
    let decided = cluster.oracle.decided.len() as Slot;
    cluster.weather = Weather::fair();
    let rest: Vec<Node> = cluster.nodes().filter(|node| !lost.contains(*node)).collect();
    rest.iter().for_each(|node| cluster.restart(*node));
    cluster.run_until(cluster.now + 50 * MS);
    assert!(cluster.run_dry(10 * SECOND), "the survivors do not finish");
    cluster.check_settled();
    for node in rest {
        assert!(cluster.host(node).core().exec() >= decided, "a decided slot is not finished");
    }
}

#[test]
fn power_cut_of_all_at_every_flush_then_any_disk_lost() {
    power_cut_everywhere((3, 1, 1), 60);
    power_cut_everywhere((5, 1, 3), 60);
}

#[test]
fn power_cut_of_all_at_every_flush_then_any_two_disks_lost() {
    power_cut_everywhere((7, 2, 3), 24);
}
