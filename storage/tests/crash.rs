//! Power cuts and deaths of the process at every write boundary, with torn writes.
//!
//! The rule that every run must keep: after reopening, the records are a prefix of what was
//! appended, byte for byte, and it contains every record that was reported `Flushed` or that an
//! earlier opening gave back.

mod common;

use common::*;
use racos_storage::device::memory::{MemoryDevice, Timing};
use racos_storage::{Class, Event, LogConfig, RecordId};

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// What was appended, and how much of it was promised.
#[derive(Default)]
struct Model {
    appended: Vec<(u8, u64, usize, usize)>,
    promised: usize,
    /// How often something interesting happened, over all runs.
    cut_records: u64,
    failed_openings: u64,
    failed_flushes: u64,
    segments: u32,
}

struct Run {
    disk: SharedDisk,
    config: LogConfig,
    rng: Rng,
    model: Model,
}

impl Run {
    fn new(seed: u64) -> Run {
        let config = LogConfig { segment_len: 32 << 10, reserve_bytes: 0, ..small() };
        let config = LogConfig { group_bytes_max: 16 << 10, inline_bytes_max: 8 << 10, ..config };
        let disk = fresh(&config, Timing::Immediate);
        Run { disk, config, rng: Rng(seed), model: Model::default() }
    }

    fn append(&mut self, opened: &mut Opened<MemoryDevice>) {
        let seed = self.rng.below(1 << 40);
        let kind = seed as u8;
        let head = self.rng.below(200) as usize;
        let body = match self.rng.below(4) {
            0 => 0,
            1 | 2 => self.rng.below(2000) as usize,
            _ => self.rng.below(10_000) as usize,
        };
        let slice = slice_of(&opened.pool, seed, body);
        let foreseen = opened.log.accepts(head, body, Class::Ordinary);
        let head_bytes = bytes_of(seed + 1, head);
        let appended = opened.log.append(kind, &head_bytes, &[slice], Class::Ordinary);
        assert_eq!(foreseen, appended.map(|_| ()), "what is foreseen is what happens");
        if let Ok(id) = appended {
            self.model.appended.push((kind, seed, head, body));
            assert_eq!(id, RecordId(self.model.appended.len() as u64));
        }
    }

    /// One generation: works until `operations` of the disk have completed, or a flush fails.
    fn work(&mut self, opened: &mut Opened<MemoryDevice>, operations: u64) {
        self.disk.borrow_mut().set_timing(Timing::Stepped);
        let mut events = Vec::new();
        let mut completed = 0;
        while completed < operations && !opened.log.is_stopped() {
            for _ in 0..self.rng.below(4) {
                self.append(opened);
            }
            if self.rng.below(10) == 0 {
                opened.log.idle_confirm();
            }
            opened.log.kick();
            for _ in 0..self.rng.below(3).min(operations - completed) {
                completed += self.disk.borrow_mut().complete_one() as u64;
            }
            opened.log.poll(&mut events);
            self.hear(&mut events);
        }
        self.disk.borrow_mut().set_timing(Timing::Immediate);
    }

    fn hear(&mut self, events: &mut Vec<Event>) {
        let mut placed = RecordId(self.model.promised as u64);
        for event in events.drain(..) {
            match event {
                Event::Placed { id, .. } => {
                    assert_eq!(id.0, placed.0 + 1, "placed in order, none left out");
                    placed = id;
                }
                Event::Flushed { up_to } => {
                    assert_eq!(placed, up_to, "all were placed before");
                    self.model.promised = up_to.0 as usize;
                }
                Event::Failed(_) => self.model.failed_flushes += 1,
                _ => {}
            }
        }
    }

    fn crash(&mut self) {
        let seed = self.rng.below(u64::MAX);
        match self.rng.below(3) {
            0 => self.disk.borrow_mut().kill(seed),
            _ => self.disk.borrow_mut().power_cut(seed),
        }
    }

    /// Opens; sometimes a flush of the opening itself fails, and the power goes.
    fn reopen(&mut self) -> Opened<MemoryDevice> {
        if self.rng.below(3) == 0 {
            let writes = self.rng.below(4);
            self.disk.borrow_mut().fail_flush_after(writes);
        }
        loop {
            match open(&self.disk, &self.config) {
                Ok(opened) => return opened,
                Err(error) => {
                    assert!(error.to_string().contains("simulated flush error"), "{error}");
                    self.model.failed_openings += 1;
                    let seed = self.rng.below(u64::MAX);
                    self.disk.borrow_mut().power_cut(seed);
                }
            }
        }
    }

    fn check(&mut self, opened: &mut Opened<MemoryDevice>) {
        let (found, model) = (&opened.entries, &mut self.model);
        assert!(found.len() >= model.promised, "{} promised, {}", model.promised, found.len());
        assert!(found.len() <= model.appended.len(), "records from nowhere");
        for (entry, (kind, seed, head, body)) in found.iter().zip(&model.appended) {
            assert_eq!((entry.kind, &entry.head), (*kind, &bytes_of(seed + 1, *head)));
            let bytes = read(&mut opened.log, entry.body_place, Some(entry.crc)).unwrap();
            assert_eq!(&*bytes, &bytes_of(*seed, *body));
        }
        model.cut_records += (model.appended.len() - found.len()) as u64;
        model.appended.truncate(found.len());
        model.promised = found.len();
        model.segments = model.segments.max(opened.found.end.segment);
    }
}

#[test]
fn a_crash_at_every_write_boundary_keeps_every_promise() {
    let mut cut_records = 0;
    for operations in 0..50 {
        for seed in 0..4 {
            let mut run = Run::new(seed);
            let mut opened = run.reopen();
            run.work(&mut opened, operations);
            drop(opened);
            run.rng = Rng(seed << 8 | operations);
            run.crash();
            let mut opened = run.reopen();
            run.check(&mut opened);
            cut_records += run.model.cut_records;
        }
    }
    assert!(cut_records > 100, "the crashes hit records in flight");
}

/// tests PROTOCOL 4.1-g
#[test]
fn many_crashes_in_a_row_keep_every_promise() {
    let (mut openings, mut flushes, mut cut, mut segments) = (0, 0, 0, 0);
    for seed in 1000..1070 {
        let mut run = Run::new(seed);
        for _ in 0..12 {
            let mut opened = run.reopen();
            run.check(&mut opened);
            if run.rng.below(8) == 0 {
                let writes = run.rng.below(10);
                run.disk.borrow_mut().fail_flush_after(writes);
            }
            let operations = run.rng.below(12);
            run.work(&mut opened, operations);
            drop(opened);
            run.crash();
        }
        openings += run.model.failed_openings;
        flushes += run.model.failed_flushes;
        cut += run.model.cut_records;
        segments = segments.max(run.model.segments);
    }
    assert!(openings > 25 && flushes > 25, "{openings} openings and {flushes} flushes failed");
    assert!(cut > 250 && segments > 5, "{cut} records cut, {segments} segments");
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let image = |seed| {
        let mut run = Run::new(seed);
        for _ in 0..4 {
            let mut opened = run.reopen();
            run.check(&mut opened);
            run.work(&mut opened, 9);
            drop(opened);
            run.crash();
        }
        let disk = run.disk.borrow();
        (0..20).map(|file| disk.contents(file)).collect::<Vec<_>>()
    };
    assert!(image(5) == image(5) && image(5) != image(6));
}

/// tests PROTOCOL 4.4-j
#[test]
fn a_group_seen_only_in_a_cache_is_written_anew() {
    // The flush fails, yet the next process reads the group back from the cache and gives it out.
    let config = small();
    for seed in 0..40 {
        let disk = fresh(&config, Timing::Immediate);
        let mut opened = open(&disk, &config).unwrap();
        disk.borrow_mut().fail_flush_after(0);
        let body = slice_of(&opened.pool, seed, 6000);
        opened.log.append(1, b"seen", &[body], Class::Ordinary).unwrap();
        let events = drain(&mut opened.log);
        assert!(matches!(events[..], [Event::Failed(_)]));
        drop(opened);
        disk.borrow_mut().kill(seed);
        let opened = open(&disk, &config).unwrap();
        assert_eq!(opened.entries.len(), 1);
        drop(opened);
        disk.borrow_mut().power_cut(seed);
        let mut opened = open(&disk, &config).unwrap();
        assert_eq!(opened.entries.len(), 1, "what was given out once is there for good");
        let entry = opened.entries[0].clone();
        let bytes = read(&mut opened.log, entry.body_place, Some(entry.crc)).unwrap();
        assert_eq!(&*bytes, &bytes_of(seed, 6000));
    }
}
