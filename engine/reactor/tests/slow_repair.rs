//! Repair over slow lines (PROTOCOL 9.5): that it ends, and how often fragments are asked for.

mod common;

use common::{Cluster, MS, address};
use racos_net::memory::{Line, MemoryConfig};

/// Its fragments are of some sixty datagrams each.
const LARGE: usize = 240_000;
/// As much as anybody sends.
const WIDE: u64 = 1 << 30;
const VALUES: u8 = 12;
/// k of each value.
const NEEDED: u64 = VALUES as u64 * 3;

fn value(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|index| (index / 7) as u8 ^ seed).collect()
}

/// Five nodes, over datagrams as networks carry them.
fn cluster() -> Cluster {
    Cluster::over(MemoryConfig { datagram_max: 1472, ..MemoryConfig::default() }, 5, 1, 3)
}

fn cut_off(cluster: &Cluster, is_cut: bool) {
    for node in 0..4 {
        cluster.hub.block(address(node), address(4), is_cut);
        cluster.hub.block(address(4), address(node), is_cut);
    }
}

/// The last node hears nothing while values are written, until what was sent to it is given up; then it
/// knows what it lacks, and the line to it is as slow as that.
fn lacks(cluster: &mut Cluster, round: u8, len: usize, line: Option<Line>) {
    cluster.hub.slow_down(address(4), None);
    cut_off(cluster, true);
    for index in 0..VALUES {
        cluster.put(0, &[round, index], &value(len, index));
    }
    cluster.pass(6000 * MS);
    cut_off(cluster, false);
    let goal = cluster.node(0).exec();
    assert!(cluster.pass_until(2000 * MS, |cluster| cluster.node(4).exec() >= goal));
    assert!(cluster.node(4).status().repair.missing >= u64::from(VALUES));
    cluster.hub.slow_down(address(4), line);
}

/// Fragments that the others have read from their disks to send them.
fn served(cluster: &Cluster) -> u64 {
    (0..4).map(|node| cluster.node(node).log().counters().reads).sum()
}

/// Lets the repair come to its end; how many fragments were sent for it.
fn repaired(cluster: &mut Cluster, within: u64) -> u64 {
    let before = served(cluster);
    let whole = |cluster: &mut Cluster| cluster.node(4).status().repair.missing == 0;
    assert!(
        cluster.pass_until(within, whole),
        "{} stay missing",
        cluster.node(4).status().repair.missing
    );
    served(cluster) - before
}

/// tests PROTOCOL 9.5-i: where an answer takes longer than a repair has its turn, and where all of them
/// together take longer than the line carries in that time. Asked again and again, the holders would send
/// ten times as much, and nothing would come to its end.
#[test]
fn over_a_slow_line_repair_ends_and_holders_are_asked_seldom() {
    let lines = [
        ("quick", 0, WIDE, 0),
        ("0.6 s", 600, WIDE, 2 * NEEDED),
        ("1.8 s", 1800, WIDE, 3 * NEEDED),
        ("4 MiB/s", 10, 4 << 20, NEEDED),
        ("1 MiB/s", 10, 1 << 20, 2 * NEEDED),
    ];
    for (name, delay_ms, bytes_per_s, more) in lines {
        let mut cluster = cluster();
        let line = Line { delay_ns: delay_ms * MS, bytes_per_s };
        lacks(&mut cluster, 1, LARGE, Some(line));
        let sent = repaired(&mut cluster, 15_000 * MS);
        assert!(sent <= NEEDED + more, "{name}: {sent} fragments sent, {NEEDED} are needed");
        for index in 0..VALUES {
            let op = cluster.stored(4, &[1, index]);
            assert!(cluster.node(4).has_fragment(op), "{name}");
        }
    }
}

/// tests PROTOCOL 9.5-i: once it is known how long answers take, nothing is asked for twice.
#[test]
fn what_is_known_to_take_long_is_asked_for_once() {
    for delay_ms in [600, 1800] {
        let mut cluster = cluster();
        let slow = Some(Line { delay_ns: delay_ms * MS, bytes_per_s: WIDE });
        lacks(&mut cluster, 1, LARGE, slow);
        repaired(&mut cluster, 15_000 * MS);
        lacks(&mut cluster, 2, LARGE, slow);
        assert_eq!(repaired(&mut cluster, 15_000 * MS), NEEDED, "{delay_ms} ms");
    }
}

/// tests PROTOCOL 9.5-i: what came for a value that was put aside is not asked for again.
#[test]
fn what_came_too_late_for_one_try_serves_the_next() {
    let mut cluster = cluster();
    let slow = Some(Line { delay_ns: 600 * MS, bytes_per_s: WIDE });
    lacks(&mut cluster, 1, LARGE, slow);
    repaired(&mut cluster, 15_000 * MS);
    lacks(&mut cluster, 2, LARGE, slow);
    // Of two holders all is lost at first: no try gets all that it needs.
    let lossy = |cluster: &Cluster, is_cut: bool| {
        for node in [0, 1] {
            cluster.hub.block(address(node), address(4), is_cut);
        }
    };
    let others = |cluster: &Cluster| -> u64 {
        [2, 3].map(|node| cluster.node(node).log().counters().reads).iter().sum()
    };
    let (repaired_before, sent_before) =
        (cluster.node(4).status().repair.repaired, others(&cluster));
    lossy(&cluster, true);
    let under_way = |cluster: &Cluster| cluster.node(4).status().repair.under_way;
    cluster.pass(1_500 * MS);
    assert_eq!(under_way(&cluster), u64::from(VALUES));
    let put_aside = |cluster: &mut Cluster| under_way(cluster) < u64::from(VALUES);
    assert!(cluster.pass_until(3_000 * MS, put_aside));
    cluster.pass(3_000 * MS);
    assert_eq!(cluster.node(4).status().repair.repaired, repaired_before);
    lossy(&cluster, false);
    repaired(&mut cluster, 15_000 * MS);
    assert_eq!(others(&cluster) - sent_before, 2 * u64::from(VALUES), "theirs once, and no more");
}

/// tests PROTOCOL 9.5-i: what was put aside after its turn of 1.5 s is made again as soon as enough came, and
/// not when it has its turn again.
#[test]
fn what_came_for_a_value_that_was_put_aside_is_used_at_once() {
    let mut cluster = cluster();
    lacks(&mut cluster, 1, LARGE, Some(Line { delay_ns: 1800 * MS, bytes_per_s: WIDE }));
    // Half a second passes before the first try; what is put aside is taken up after another half.
    let is_repaired = |cluster: &mut Cluster| cluster.node(4).status().repair.repaired > 0;
    cluster.pass(2_150 * MS);
    let status = cluster.node(4).status().repair;
    assert!(status.under_way <= 4 && !is_repaired(&mut cluster), "the first are aside");
    assert!(cluster.pass_until(250 * MS, is_repaired));
}

/// Small fragments are single datagrams, which nobody sends again: what is lost is asked for again.
#[test]
fn small_fragments_are_repaired_over_lines_that_are_slow_or_lose() {
    for (delay_ms, lose) in [(0, 0), (0, 13_000), (700, 0), (2500, 0), (700, 13_000)] {
        let mut cluster = cluster();
        let line = Line { delay_ns: delay_ms * MS, bytes_per_s: WIDE };
        lacks(&mut cluster, 1, 2000, Some(line));
        cluster.hub.configure(|config| config.lose = lose);
        repaired(&mut cluster, 20_000 * MS);
        assert!(cluster.node(4).status().repair.repaired >= u64::from(VALUES));
    }
}

/// tests PROTOCOL 9.5-i: pauses are bounded: holders that were silent for long are asked soon after they are
/// back.
#[test]
fn repair_goes_on_soon_after_a_long_silence() {
    let mut cluster = cluster();
    lacks(&mut cluster, 1, LARGE, None);
    cut_off(&cluster, true);
    cluster.pass(12_000 * MS);
    cut_off(&cluster, false);
    repaired(&mut cluster, 4_500 * MS);
}
