//! The files of a node's log take no more than they may, however much clients write.

mod common;

use common::{Cluster, MS};
use racos_engine::Bounds;
use racos_engine::wire::client::Reply;
use racos_machine::OpId;
use racos_protocol::Slot;
use std::collections::BTreeMap;

const KEYS: u64 = 2048;
const VALUE: usize = 4096;
const SEGMENT: u32 = 512 << 10;
const RESERVE: u64 = 6 << 20;
const UNDER_WAY: usize = 16;

fn cluster_of(also: impl Fn(&mut Bounds)) -> Cluster {
    Cluster::configured(1, 0, 1, |config| {
        config.versions_per_key_max = 1;
        let bounds = &mut config.bounds;
        (bounds.segment_bytes, bounds.checkpoint_bytes) = (SEGMENT, 512 << 10);
        (bounds.value_bytes_max, bounds.space_reserve_bytes) = (64 << 10, RESERVE);
        bounds.history_slots = 16;
        also(bounds);
    })
}

/// Numbers that are the same in every run.
fn below(state: &mut u64, end: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % end
}

/// Keeps puts under way until so many were answered. The most that the files took meanwhile.
fn put(cluster: &mut Cluster, count: u64, key: &mut dyn FnMut() -> u64) -> u64 {
    let mut most = 0;
    put_watched(cluster, count, key, &mut |cluster| {
        most = most.max(cluster.node(0).log().file_bytes());
    });
    most
}

fn put_watched(
    cluster: &mut Cluster,
    count: u64,
    key: &mut dyn FnMut() -> u64,
    watch: &mut dyn FnMut(&Cluster),
) {
    let (mut sent, mut open) = (0, 0);
    let done = cluster.pass_until(600_000 * MS, |cluster| {
        watch(cluster);
        for (_, reply, _) in cluster.replies() {
            assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
            open -= 1;
        }
        while sent < count && open < UNDER_WAY {
            cluster.send_put(0, format!("key{:06}", key()).as_bytes(), &[sent as u8; VALUE]);
            (sent, open) = (sent + 1, open + 1);
        }
        sent == count && open == 0
    });
    assert!(done, "all puts are answered");
}

fn fill(cluster: &mut Cluster) {
    cluster.new_session_of(64);
    let mut next = 0..KEYS;
    put(cluster, KEYS, &mut || next.next().unwrap_or(0));
}

fn filled() -> Cluster {
    let mut cluster = cluster_of(|_| {});
    fill(&mut cluster);
    cluster
}

/// Everything is overwritten again and again, as fast as the node takes it, and a write to this disk
/// takes no time: what keeps the files small is what is copied for each byte written, not time.
#[test]
fn the_files_of_a_store_under_full_load_stay_below_1_3_times_what_is_live_and_the_reserve() {
    let mut cluster = filled();
    let mut state = 7;
    let most = put(&mut cluster, 10 * KEYS, &mut || below(&mut state, KEYS));
    // What went while a checkpoint was written is forgotten soon.
    cluster.pass(100 * MS);
    let disk = cluster.node(0).status().disk;
    let (bytes, live) = (KEYS * VALUE as u64, disk.live_bytes);
    assert!((bytes..bytes + bytes / 50).contains(&live), "{disk:?}");
    assert!(disk.segments_back > 50 && disk.copied_bytes > live, "{disk:?}");
    let superblock = 8192;
    let fixed = RESERVE + superblock;
    assert!(most <= live * 13 / 10 + fixed, "{most} bytes of files, {live} live, {fixed} fixed");
    // And not by copying everything all the time.
    assert!(disk.flushed_bytes < 3 * 11 * live, "{disk:?}");
}

/// What is deleted gives its space back though nobody writes any more.
#[test]
fn the_files_of_a_store_that_was_emptied_come_back_to_what_they_take_at_rest() {
    let mut cluster = filled();
    let mut state = 7;
    put(&mut cluster, 2 * KEYS, &mut || below(&mut state, KEYS));
    for key in 0..KEYS {
        if key % 16 != 0 {
            cluster.delete(0, format!("key{key:06}").as_bytes());
        }
    }
    let few = cluster.pass_until(60_000 * MS, |cluster| {
        let disk = cluster.node(0).status().disk;
        disk.file_bytes <= disk.live_bytes * 5 / 4 + RESERVE
    });
    assert!(few, "{:?}", cluster.node(0).status().disk);
}

/// Looks at every turn whether what the newest checkpoint names is still there.
#[derive(Default)]
struct Named {
    /// Values in use after each of the last slots.
    seen: BTreeMap<Slot, Vec<OpId>>,
    generation: u64,
    ops: Vec<OpId>,
    turns: u64,
    checkpoints: u64,
    /// Those of the newest that were looked at and that no value needed any more.
    gone: u64,
}

impl Named {
    fn look(&mut self, cluster: &Cluster) {
        let node = cluster.node(0);
        let live = || node.machine().values().map(|used| used.value.op).collect();
        self.seen.entry(node.exec()).or_insert_with(live);
        let newest = node.snapshot();
        if newest.generation != self.generation {
            self.generation = newest.generation;
            self.ops = self.seen.remove(&newest.exec).unwrap_or_default();
            self.seen = self.seen.split_off(&newest.exec);
            self.checkpoints += u64::from(!self.ops.is_empty());
        }
        self.turns += 1;
        if self.turns.is_multiple_of(8) {
            for op in &self.ops {
                let place = node.fragment_kept(*op).expect("what a checkpoint names has a place");
                assert!(node.log().holds(place.segment), "{op:?} was in a segment given back");
                self.gone += u64::from(node.machine().value(*op).is_none());
            }
        }
    }
}

/// tests PROTOCOL 9.2-c
#[test]
fn what_the_newest_checkpoint_names_lies_in_a_segment_that_is_there() {
    const FEW: u64 = 256;
    let mut cluster = cluster_of(|bounds| {
        (bounds.segment_bytes, bounds.checkpoint_bytes) = (256 << 10, 512 << 10);
        (bounds.value_bytes_max, bounds.space_reserve_bytes) = (40 << 10, 0);
    });
    cluster.new_session_of(64);
    let (mut state, mut named) = (7, Named::default());
    put_watched(&mut cluster, 40 * FEW, &mut || below(&mut state, FEW), &mut |cluster| {
        named.look(cluster);
    });
    assert!(named.checkpoints > 20, "{} checkpoints looked at", named.checkpoints);
    assert!(named.gone > 10_000, "{} times something was there that had gone", named.gone);
    let disk = cluster.node(0).status().disk;
    assert!(disk.segments_back > 50 && disk.copied_bytes > 0, "{disk:?}");
}

/// A checkpoint names values that went since it was written, and such values lie everywhere. Their
/// fragments are copied with those in use: else no segment would come back until the next checkpoint.
/// tests PROTOCOL 9.2-c
#[test]
fn segments_come_back_between_checkpoints_though_one_names_what_went() {
    let mut cluster = cluster_of(|bounds| {
        (bounds.checkpoint_bytes, bounds.space_reserve_bytes) = (3 << 20, 0);
    });
    fill(&mut cluster);
    let mut state = 7;
    put(&mut cluster, 4 * KEYS, &mut || below(&mut state, KEYS));
    let (mut back, mut checkpoints, mut between, mut named) = (0, 0, 0, 0);
    let before = cluster.node(0).status().disk;
    for _ in 0..2 * KEYS / 16 {
        put(&mut cluster, 16, &mut || below(&mut state, KEYS));
        let disk = cluster.node(0).status().disk;
        if disk.checkpoints == checkpoints {
            between += disk.segments_back - back;
        }
        (back, checkpoints) = (disk.segments_back, disk.checkpoints);
        named = named.max(cluster.node(0).space_parts().named);
    }
    let disk = cluster.node(0).status().disk;
    let all = disk.segments_back - before.segments_back;
    assert!(disk.checkpoints >= before.checkpoints + 4 && named > u64::from(SEGMENT), "{disk:?}");
    assert!(
        between * 4 >= all * 3 && all >= 40,
        "{between} of {all} segments came back in between"
    );
}
