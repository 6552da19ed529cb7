//! What a checkpoint does in one turn of a node's loop is bounded, however many keys there are.

mod common;

use common::{Cluster, MS};
use racos_engine::TurnWork;
use racos_engine::wire::client::Reply;
use std::ops::Range;

/// Puts that a node has at a time, and so many of them a step.
const UNDER_WAY: usize = 256;
const A_STEP: usize = 64;
/// Entries that a turn looks at, four for each of its writes or 64; the first of a slice may be followed
/// by a value's stripes.
const VISITS_MAX: usize = 4 * UNDER_WAY;
const FORGOTTEN_MAX: usize = 256;
const HANDED_MAX: usize = 256 << 10;
/// Puts under way where clients write all that they can.
const MANY: usize = 1024;

fn cluster() -> Cluster {
    Cluster::configured(1, 0, 1, |config| {
        // What is overwritten goes at once.
        config.versions_per_key_max = 1;
        config.bounds.segment_bytes = 1 << 20;
        config.bounds.checkpoint_bytes = 1 << 20;
        config.bounds.value_bytes_max = 64 << 10;
    })
}

/// The most of each in one turn, and how much was forgotten in all.
#[derive(Default)]
struct Seen {
    most: TurnWork,
    forgotten: usize,
}

impl Seen {
    fn note(&mut self, work: TurnWork) {
        self.most = TurnWork {
            named: self.most.named.max(work.named),
            handed_bytes: self.most.handed_bytes.max(work.handed_bytes),
            forgotten: self.most.forgotten.max(work.forgotten),
        };
        self.forgotten += work.forgotten;
    }
}

/// Puts keys, many at a time, and looks at every turn.
fn put(cluster: &mut Cluster, keys: Range<usize>, value: &[u8], seen: &mut Seen) {
    let (mut next, mut open) = (keys.start, 0);
    let done = cluster.pass_until(600_000 * MS, |cluster| {
        seen.note(cluster.node(0).checkpoint_work());
        for (_, reply, _) in cluster.replies() {
            assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
            open -= 1;
        }
        for _ in 0..A_STEP.min(UNDER_WAY - open).min(keys.end - next) {
            cluster.send_put(0, format!("key{next:06}").as_bytes(), value);
            (next, open) = (next + 1, open + 1);
        }
        next == keys.end && open == 0
    });
    assert!(done, "all puts are answered");
}

/// Writes keys and overwrites them all, again and again, while checkpoints are written.
fn checkpoints_of(keys: usize) -> Seen {
    let mut cluster = cluster();
    cluster.new_session_of(UNDER_WAY as u32);
    let mut seen = Seen::default();
    put(&mut cluster, 0..keys, &[7; 200], &mut seen);
    let first = cluster.node(0).snapshot().generation;
    for round in 0.. {
        put(&mut cluster, 0..keys, &[round as u8; 200], &mut seen);
        if cluster.node(0).snapshot().generation >= first + 2 {
            break;
        }
    }
    let gone = cluster.pass_until(10_000 * MS, |cluster| {
        let node = cluster.node(0);
        seen.note(node.checkpoint_work());
        node.fragments_len() == node.machine().values_len()
    });
    assert!(gone, "what was kept is forgotten though nothing comes any more");
    seen
}

/// tests PROTOCOL 9.2: a checkpoint, and the forgetting of what it kept, go slice by slice.
#[test]
fn a_turn_does_as_little_for_a_checkpoint_of_ten_times_the_keys() {
    for keys in [2_000, 20_000] {
        let seen = checkpoints_of(keys);
        assert!(seen.most.named <= VISITS_MAX, "{keys} keys: {:?}", seen.most);
        assert!(seen.most.handed_bytes <= HANDED_MAX, "{keys} keys: {:?}", seen.most);
        assert!(seen.most.forgotten <= FORGOTTEN_MAX, "{keys} keys: {:?}", seen.most);
        // Far more went while checkpoints were written than one turn forgets.
        assert!(seen.forgotten > keys / 4, "{keys} keys: {} of them", seen.forgotten);
    }
}

/// tests PROTOCOL 9.2: what a restart reads stays bounded under any load: a turn with many writes, which are
/// as many entries more, does as much more for the checkpoint.
#[test]
fn a_checkpoint_keeps_pace_with_clients_who_write_all_that_they_can() {
    let mut cluster = cluster();
    cluster.new_session_of(MANY as u32);
    let (mut revision, mut most, mut next) = (cluster.node(0).machine().revision(), 0, 0);
    while cluster.node(0).snapshot().generation < 3 {
        for _ in 0..MANY {
            cluster.send_put(0, format!("key{:06}", next % 20_000).as_bytes(), &[7; 200]);
            next += 1;
        }
        let mut open = MANY;
        let done = cluster.pass_until(60_000 * MS, |cluster| {
            let node = cluster.node(0);
            let written = (node.machine().revision() - revision) as usize;
            revision = node.machine().revision();
            let work = node.checkpoint_work();
            assert!(work.named <= (4 * written).max(64), "{work:?} beside {written} writes");
            most = most.max(work.named);
            open -= cluster.replies().len();
            open == 0
        });
        assert!(done, "all puts are answered");
    }
    assert!(most > 2 * 256, "{most} entries in the turn with the most");
}
