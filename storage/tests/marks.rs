//! Marks, segments given back and their files used again: what replay begins with, whatever is cut
//! short in between.

mod common;

use common::store::{STATE, Store};
use common::{IDENTITY, SharedDisk, bytes_of, drain, fresh, pool, slice_of, small};
use racos_storage::device::memory::{MemoryDevice, Timing};
use racos_storage::device::{Device, FileId};
use racos_storage::{
    Case, Class, Event, Full, Log, LogConfig, LogError, Mark, Recovered, Replay, Replayed,
};

struct Opened {
    log: Log<MemoryDevice>,
    store: Store,
    found: Recovered,
}

fn open(disk: &SharedDisk, config: &LogConfig) -> Result<Opened, LogError> {
    let mut store = Store::default();
    let device = MemoryDevice::new(disk.clone());
    let (log, found) = Log::open_with(device, pool(), config.clone(), IDENTITY, &mut store)?;
    Ok(Opened { log, store, found })
}

fn config() -> LogConfig {
    LogConfig { check_payloads: false, ..small() }
}

impl Opened {
    /// Appends a record as soon as there is room; the events.
    fn append(&mut self, kind: u8, number: u64, body: &[u8], until: u64) -> Vec<Event> {
        let slices = if body.is_empty() { vec![] } else { vec![pool().copy(body).unwrap()] };
        let head = number.to_le_bytes();
        let mut events = Vec::new();
        while let Err(full) = self.log.append_until(kind, &head, &slices, Class::Ordinary, until) {
            assert_eq!(full, Full::Preparing);
            self.log.device_mut().settle().unwrap();
            self.log.poll(&mut events);
        }
        events.append(&mut drain(&mut self.log));
        events
    }

    fn put(&mut self) {
        let number = self.store.next;
        let body = bytes_of(number, 3000);
        self.append(1, number, &body, number);
        self.store.put(number);
    }

    fn mark(&mut self) -> Mark {
        self.mark_of(1)
    }

    /// A mark whose state is written so many times over, which makes no difference to who reads it.
    fn mark_of(&mut self, times: usize) -> Mark {
        let horizon = self.store.next;
        let tag = self.log.marks()[0].tag + 1;
        let mark = self.log.find_mark(tag, horizon).expect("something was flushed");
        let state = self.store.state();
        self.append(STATE, horizon, &[state, vec![0; 16]].concat()[..160].repeat(times), 0);
        self.log.set_mark(mark);
        let mut events = Vec::new();
        while !events.iter().any(|event| matches!(event, Event::Marked { .. })) {
            self.log.kick();
            self.log.poll(&mut events);
        }
        mark
    }

    fn give_all_back(&mut self) -> usize {
        let behind: Vec<FileId> = self.log.segments_behind().map(|(file, _)| file).collect();
        behind.iter().for_each(|file| assert!(self.log.give_back(*file)));
        let mut events = Vec::new();
        for _ in 0..4 {
            self.log.poll(&mut events);
        }
        behind.len()
    }
}

/// A log with marks behind it, most segments used again.
fn marked(disk: &SharedDisk, config: &LogConfig, rounds: usize) -> Store {
    let mut opened = open(disk, config).unwrap();
    for _ in 0..10 {
        opened.put();
    }
    for _ in 0..rounds {
        for _ in 0..30 {
            opened.put();
        }
        opened.mark();
        opened.give_all_back();
    }
    opened.put();
    opened.store
}

/// tests PROTOCOL 9.2-c, 9.2-d
#[test]
fn replay_begins_at_the_newest_mark_and_gives_the_same_state() {
    let config = config();
    let disk = fresh(&config, Timing::Immediate);
    let before = marked(&disk, &config, 6);
    let opened = open(&disk, &config).unwrap();
    assert_eq!(opened.store.keys, before.keys);
    assert_eq!(opened.store.begun, [6]);
    assert_eq!((opened.found.mark.tag, opened.found.mark.horizon), (6, 190));
    assert!(opened.found.groups < 60, "{} groups of 197", opened.found.groups);
}

#[test]
fn files_given_back_become_segments_and_the_log_stays_small() {
    let config = config();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    let mut largest = 0;
    for round in 0..30 {
        for _ in 0..30 {
            opened.put();
        }
        opened.mark();
        opened.give_all_back();
        if round > 3 {
            largest = largest.max(opened.log.file_bytes());
        }
    }
    let counters = opened.log.counters();
    assert!(counters.segments_recycled > 40, "{counters:?}");
    assert!(counters.segments_prepared < 12, "{counters:?}");
    assert!(largest < 12 * (64 << 10), "{largest} bytes");
    let keys = opened.store.keys.clone();
    drop(opened);
    let files = MemoryDevice::new(disk.clone()).list().unwrap().len();
    assert!(files <= 12, "{files} files");
    assert_eq!(open(&disk, &config).unwrap().store.keys, keys);
}

/// Where the state that a mark of two rounds of forty puts names was written: somewhere behind it.
fn newest_state(disk: &SharedDisk, mark: Mark) -> (FileId, usize) {
    let state: Vec<u8> =
        (0..10).flat_map(|key| [key, 70 + key]).flat_map(u64::to_le_bytes).collect();
    let found = (mark.segment()..mark.segment() + 4).find_map(|file| {
        let image = disk.borrow().contents(file)?;
        Some((file, image.windows(160).position(|bytes| bytes == &state[..])?))
    });
    found.expect("the state was written behind its mark")
}

#[test]
fn case_s_a_newest_mark_that_does_not_do_is_passed_over_for_the_older() {
    let config = config();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    for _ in 0..2 {
        (0..40).for_each(|_| opened.put());
        opened.mark();
    }
    opened.put();
    let (keys, mark) = (opened.store.keys.clone(), opened.log.marks()[0]);
    drop(opened);
    let (file, at) = newest_state(&disk, mark);
    disk.borrow_mut().corrupt(file, at as u64);
    // A body in the group's own area is under the group's checksum, and its loss is a lost promise.
    match open(&disk, &config) {
        Ok(opened) => {
            assert_eq!(opened.store.begun, [2, 1]);
            assert!(opened.found.cases.contains(&Case::S));
            assert_eq!(opened.store.keys, keys);
        }
        Err(error) => assert_eq!(error.case(), Some(Case::M), "{error}"),
    }
}

#[test]
fn case_s_also_when_a_piece_of_what_the_mark_names_cannot_be_read() {
    let config = config();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    for _ in 0..2 {
        (0..40).for_each(|_| opened.put());
        opened.mark_of(40);
    }
    opened.put();
    let (keys, mark) = (opened.store.keys.clone(), opened.log.marks()[0]);
    drop(opened);
    let (file, at) = newest_state(&disk, mark);
    disk.borrow_mut().make_unreadable(file, at as u64 + 3000);
    let opened = open(&disk, &config).unwrap();
    assert_eq!(opened.store.begun, [2, 1]);
    assert!(opened.found.cases.contains(&Case::S));
    assert_eq!(opened.store.keys, keys);
}

#[test]
fn case_t_without_a_mark_that_does_the_node_is_lost() {
    let config = config();
    let disk = fresh(&config, Timing::Immediate);
    marked(&disk, &config, 3);
    struct Never;
    impl Replay for Never {
        fn begin(&mut self, _: &Mark) {}
        fn wants_body(&self, _: u8) -> bool {
            false
        }
        fn record(&mut self, _: Replayed<'_>) -> u64 {
            0
        }
        fn end(&mut self) -> Result<(), String> {
            Err("it is not whole".into())
        }
    }
    let device = MemoryDevice::new(disk.clone());
    let Err(error) = Log::open_with(device, pool(), config.clone(), IDENTITY, &mut Never) else {
        panic!("opened")
    };
    assert_eq!(error.case(), Some(Case::T));
    assert!(error.to_string().contains("racos member"), "{error}");
    // Nothing was changed by the attempt.
    assert!(open(&disk, &config).is_ok());
}

#[test]
fn case_u_a_file_cut_off_while_it_was_recycled_is_left() {
    let config = config();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    for _ in 0..3 {
        (0..40).for_each(|_| opened.put());
        opened.mark();
    }
    let keys = opened.store.keys.clone();
    let (first, _) = opened.log.segments_behind().next().expect("segments lie behind");
    drop(opened);
    let mut image = disk.borrow().contents(first).unwrap();
    image[..4096].fill(0);
    disk.borrow_mut().put_file(first, &image);
    let mut opened = open(&disk, &config).unwrap();
    assert!(opened.found.cases.contains(&Case::U));
    assert_eq!(opened.store.keys, keys);
    assert!(opened.give_all_back() > 0);
}

#[test]
fn a_mark_needs_every_record_that_is_needed_from_its_horizon_on() {
    let config = config();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    assert_eq!(opened.log.find_mark(1, 0), None, "nothing was flushed");
    // A promise about a late number, then many about early ones.
    opened.append(1, 500, &[], 500);
    (0..60).for_each(|_| opened.put());
    let old = opened.log.find_mark(1, 60).unwrap();
    assert_eq!(old.segment(), 1, "number 500 is needed from 60 on");
    let new = opened.log.find_mark(1, 501).unwrap();
    assert!(new.segment() > 1);
}

#[test]
#[should_panic(expected = "what replay may read stays")]
fn a_segment_that_the_older_mark_needs_is_not_given_back() {
    let config = config();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    (0..60).for_each(|_| opened.put());
    opened.mark();
    opened.log.give_back(1);
}

/// Every step of the disk on its own: power is cut before each, and what was flushed is there.
///
/// tests PROTOCOL 9.2-b
#[test]
fn a_power_cut_at_any_step_of_marking_and_recycling_loses_nothing_flushed() {
    let config = LogConfig { segment_len: 32 << 10, reserve_bytes: 0, ..config() };
    let config = LogConfig { group_bytes_max: 8 << 10, inline_bytes_max: 8 << 10, ..config };
    for steps in 0..260 {
        let disk = fresh(&config, Timing::Stepped);
        let flushed = run_steps(&disk, &config, steps);
        disk.borrow_mut().power_cut(steps * 7 + 1);
        let opened = open(&disk, &config).unwrap_or_else(|error| panic!("step {steps}: {error}"));
        let next = opened.store.next;
        assert!(next >= flushed, "step {steps}: {flushed} were flushed, {next} found");
        let keys = (next.saturating_sub(10)..next).map(|number| (number % 10, number)).collect();
        assert_eq!(opened.store.keys, keys, "step {steps}");
        drop(opened);
        disk.borrow_mut().power_cut(0);
        let again = open(&disk, &config).unwrap();
        assert_eq!(again.store.next, next, "step {steps}: opened twice");
    }
}

/// Puts, marks and gives back, with so many steps of the disk; how many puts were flushed.
fn run_steps(disk: &SharedDisk, config: &LogConfig, steps: u64) -> u64 {
    let Ok(Opened { mut log, mut store, .. }) = open(disk, config) else { panic!("fresh") };
    let pool = pool();
    let (mut flushed, mut events, mut state_at) = (0, Vec::new(), None);
    let mut marking = false;
    for _ in 0..steps {
        let number = store.next;
        let body = [slice_of(&pool, number, 1500)];
        let head = number.to_le_bytes();
        if log.append_until(1, &head, &body, Class::Ordinary, number).is_ok() {
            store.put(number);
        }
        if store.next.is_multiple_of(12) && !marking && state_at.is_none() {
            let horizon = store.next;
            if let Some(mark) = log.find_mark(log.marks()[0].tag + 1, horizon)
                && let Ok(id) = log.append_until(
                    STATE,
                    &horizon.to_le_bytes(),
                    &[pool.copy(&store.state()).unwrap()],
                    Class::Ordinary,
                    0,
                )
            {
                state_at = Some((id, mark));
            }
        }
        log.kick();
        disk.borrow_mut().complete_one();
        log.poll(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Flushed { up_to } => {
                    if let Some((_, mark)) = state_at.take_if(|(id, _)| *id <= up_to) {
                        log.set_mark(mark);
                        marking = true;
                    }
                    flushed = log_puts(&log, up_to.0);
                }
                Event::Marked { .. } => {
                    marking = false;
                    let behind: Vec<FileId> = log.segments_behind().map(|(file, _)| file).collect();
                    behind.into_iter().for_each(|file| assert!(log.give_back(file)));
                }
                Event::Failed(why) => panic!("{why}"),
                _ => {}
            }
        }
    }
    flushed
}

/// Puts among the first `records` records: at least these.
fn log_puts(log: &Log<MemoryDevice>, records: u64) -> u64 {
    records.saturating_sub(log.marks()[0].tag + 1)
}
