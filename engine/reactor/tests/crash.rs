//! A whole node loses power after every single step of its disk, while it puts, deletes, writes
//! checkpoints and uses its files again: whatever it acknowledged is there afterwards.

mod common;

use common::{Cluster, MS};
use racos_engine::Bounds;
use racos_engine::wire::client::{Reply, Request};
use racos_storage::device::memory::Timing;
use std::collections::BTreeMap;

const KEYS: u64 = 7;

fn bounds(bounds: &mut Bounds) {
    bounds.segment_bytes = 256 << 10;
    bounds.value_bytes_max = 40 << 10;
    // The large ones are stored before they get a slot.
    bounds.ready_bytes_min = 20_000;
    bounds.checkpoint_bytes = 128 << 10;
    bounds.space_reserve_bytes = 0;
    bounds.history_slots = 16;
    bounds.scrub_ns = 50 * MS;
}

fn key(number: u64) -> Vec<u8> {
    vec![b'k', (number % KEYS) as u8]
}

/// Small ones lie with their record, large ones in sectors of their own.
fn value(number: u64) -> Vec<u8> {
    let len = if number.is_multiple_of(3) { 30_000 } else { 500 + number as usize % 9_000 };
    (0..len).map(|index| ((index as u64 / 5) ^ number) as u8).collect()
}

fn is_delete(number: u64) -> bool {
    number % 11 == 4
}

/// What the keys must hold: acknowledged, and what was asked last and not answered.
#[derive(Default)]
struct Model {
    acknowledged: BTreeMap<Vec<u8>, u64>,
    open: Option<u64>,
    next: u64,
}

impl Model {
    /// Puts and deletes until the disk has made its steps.
    fn work(&mut self, cluster: &mut Cluster, steps: u64) {
        cluster.hosts[0].disk.borrow_mut().set_timing(Timing::Stepped);
        cluster.steps_left = Some(steps);
        while cluster.steps_left != Some(0) {
            let number = self.next;
            self.next += 1;
            self.open = Some(number);
            let answered = match is_delete(number) {
                true => {
                    cluster.ask_stamped(0, |stamp| Request::Delete { stamp, key: key(number) }, &[])
                }
                false => {
                    let put = |stamp| Request::Put { stamp, key: key(number) };
                    cluster.ask_stamped(0, put, &value(number))
                }
            };
            match answered {
                Some(Reply::Done { .. }) => {
                    self.acknowledged.insert(key(number), number);
                    self.open = None;
                }
                None => {}
                Some(other) => panic!("put {number}: {other:?}"),
            }
        }
        cluster.steps_left = None;
        cluster.hosts[0].disk.borrow_mut().set_timing(Timing::Immediate);
    }

    /// Puts until another checkpoint is durable.
    fn finish_checkpoint(&mut self, cluster: &mut Cluster) {
        let written = cluster.node(0).status().disk.checkpoints;
        for _ in 0..100 {
            let number = self.next;
            self.next += 1;
            if !is_delete(number) {
                cluster.put(0, &key(number), &value(number));
                self.acknowledged.insert(key(number), number);
            }
            if cluster.node(0).status().disk.checkpoints > written {
                return;
            }
        }
        panic!("no checkpoint in a hundred puts");
    }

    /// Restarts and reads everything.
    fn check(&mut self, cluster: &mut Cluster, seed: u64, what: &str) {
        cluster.hosts[0].node = None;
        match seed % 3 {
            0 => cluster.hosts[0].disk.borrow_mut().kill(seed),
            _ => cluster.hosts[0].disk.borrow_mut().power_cut(seed),
        }
        cluster.start(0).unwrap_or_else(|error| panic!("{what}: {error}"));
        for index in 0..KEYS {
            let found = cluster.get(0, &key(index));
            let shown = |number: u64| (!is_delete(number)).then(|| value(number));
            let acknowledged = self.acknowledged.get(&key(index)).copied().and_then(shown);
            let open = self.open.filter(|number| number % KEYS == index);
            let fits = found == acknowledged || open.is_some_and(|open| found == shown(open));
            assert!(fits, "{what}: key {index} is not what was acknowledged");
            if let Some(open) = open
                && found == shown(open)
            {
                self.acknowledged.insert(key(index), open);
            }
        }
        self.open = None;
        let missing = cluster.node(0).status().repair.missing;
        assert_eq!(missing, 0, "{what}: nothing can be made again, there is one copy");
    }
}

/// tests PROTOCOL 4.1-g, 9.2-b
#[test]
fn a_power_cut_after_every_step_of_the_disk_loses_nothing_acknowledged() {
    let (mut checkpoints, mut recycled, mut from_one) = (0, 0, 0);
    for steps in 1..320 {
        let mut cluster = Cluster::bounded(1, 0, 1, bounds);
        let mut model = Model::default();
        model.work(&mut cluster, steps);
        let disk = cluster.node(0).status().disk;
        (checkpoints, recycled) = (disk.checkpoints.max(checkpoints), disk.segments_recycled);
        model.check(&mut cluster, steps, &format!("after {steps} steps"));
        from_one += u64::from(cluster.node(0).snapshot().generation > 0);
        // Whatever was cut short, the next checkpoint is one that a restart begins at.
        model.finish_checkpoint(&mut cluster);
        let generation = cluster.node(0).snapshot().generation;
        model.check(&mut cluster, steps + 1, &format!("after {steps} steps, and a checkpoint"));
        assert_eq!(cluster.node(0).snapshot().generation, generation, "after {steps} steps");
    }
    assert!(checkpoints >= 4 && recycled >= 4, "{checkpoints} checkpoints, {recycled} files again");
    assert!(from_one > 100, "{from_one} starts from a checkpoint");
}

#[test]
fn crash_upon_crash_loses_nothing_acknowledged() {
    let mut from_one = 0;
    for seed in 0..6u64 {
        let mut cluster = Cluster::bounded(1, 0, 1, bounds);
        let mut model = Model::default();
        for round in 0..40 {
            let steps = 1 + (seed * 31 + round * round * 7) % 47;
            model.work(&mut cluster, steps);
            model.check(&mut cluster, seed << 8 | round, &format!("seed {seed}, round {round}"));
            from_one += u64::from(cluster.node(0).snapshot().generation > 0);
        }
    }
    assert!(from_one > 100, "{from_one} starts from a checkpoint");
}
