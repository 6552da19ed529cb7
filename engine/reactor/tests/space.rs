//! The files of a node's log take no more than they may, however much clients write.

mod common;

use common::{Cluster, MS};
use racos_engine::wire::client::Reply;

const KEYS: u64 = 2048;
const VALUE: usize = 4096;
const SEGMENT: u32 = 512 << 10;
const RESERVE: u64 = 6 << 20;
const UNDER_WAY: usize = 16;

fn cluster() -> Cluster {
    Cluster::configured(1, 0, 1, |config| {
        config.versions_per_key_max = 1;
        let bounds = &mut config.bounds;
        (bounds.segment_bytes, bounds.checkpoint_bytes) = (SEGMENT, 512 << 10);
        (bounds.value_bytes_max, bounds.space_reserve_bytes) = (64 << 10, RESERVE);
        bounds.history_slots = 16;
    })
}

/// Numbers that are the same in every run.
fn below(state: &mut u64, end: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % end
}

/// Keeps puts under way until so many were answered, looking at the files before each step. The most
/// that they took.
fn put(cluster: &mut Cluster, count: u64, key: &mut dyn FnMut() -> u64) -> u64 {
    let (mut sent, mut open, mut most) = (0, 0, 0);
    let done = cluster.pass_until(600_000 * MS, |cluster| {
        most = most.max(cluster.node(0).log().file_bytes());
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
    most
}

fn filled() -> Cluster {
    let mut cluster = cluster();
    cluster.new_session_of(64);
    let mut next = 0..KEYS;
    put(&mut cluster, KEYS, &mut || next.next().unwrap_or(0));
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
    let fixed = RESERVE + 6 * disk.checkpoint_bytes + superblock;
    assert!(most <= live * 13 / 10 + fixed, "{most} bytes of files, {live} live, {fixed} fixed");
    // And not by copying everything all the time.
    assert!(disk.flushed_bytes < 4 * 11 * live, "{disk:?}");
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
