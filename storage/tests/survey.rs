//! A log looked at without opening it: what is counted, what is found damaged, and that a rehearsed
//! recovery comes to what a real one then does.

mod common;

use common::*;
use racos_buffer::Pool;
use racos_storage::device::picture::PictureDevice;
use racos_storage::device::sync::SyncDevice;
use racos_storage::survey::{
    Contents, CopyLook, Depth, Survey, read_place, rehearse, survey, survey_records,
};
use racos_storage::{Case, LogConfig, Mark, Place, Replay, Replayed};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Records of a log that was never marked, counted.
#[derive(Default)]
struct Count(u64);

impl Replay for Count {
    fn begin(&mut self, _: &Mark) {
        self.0 = 0;
    }
    fn wants_body(&self, _: u8) -> bool {
        false
    }
    fn record(&mut self, _: Replayed<'_>) -> u64 {
        self.0 += 1;
        u64::MAX
    }
    fn end(&mut self) -> Result<(), String> {
        Ok(())
    }
}

const RECORDS: u64 = 40;

/// A directory with a log of one record a group, every third with a payload.
fn written(name: &str, config: &LogConfig) -> PathBuf {
    let dir = scratch(name);
    let mut device = SyncDevice::open(&dir).unwrap();
    format_on(&mut device, config).unwrap();
    let mut opened = open_on(device, config).unwrap();
    for seed in 0..RECORDS {
        put(&mut opened, seed % 5, 300, if seed % 3 == 2 { 5000 } else { 20 });
    }
    dir
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn look(dir: &Path, depth: Depth) -> Survey {
    let mut picture = PictureDevice::open(dir).unwrap();
    assert!(!picture.in_use());
    survey(&mut picture, &pool(), depth, &mut |_, _| {}).unwrap()
}

/// The cases and the number of records, or the refusal.
fn rehearsed(dir: &Path) -> Result<(Vec<Case>, u64), String> {
    let (mut count, pool) = (Count::default(), Pool::new(64 << 20));
    let recovered = rehearse(PictureDevice::open(dir).unwrap(), &pool, &mut count);
    recovered.map(|found| (found.cases, count.0)).map_err(|error| error.to_string())
}

fn opened(dir: &Path, config: &LogConfig) -> Result<(Vec<Case>, u64), String> {
    let opened = open_on(SyncDevice::open(dir).unwrap(), config);
    let found = opened.map(|opened| (opened.found.cases, opened.entries.len() as u64));
    found.map_err(|error| error.to_string())
}

#[test]
fn what_was_written_is_counted_by_kind() {
    let dir = written("survey-counts", &small());
    let found = look(&dir, Depth::Payloads);
    assert_eq!(found.damage, []);
    let owner = found.owner.expect("a formatted log has an owner");
    assert_eq!((owner.identity, owner.disk_id, owner.boot), (IDENTITY, DISK_ID, 1));
    assert!(found.copies.contains(&CopyLook::Good { sequence: 3, boot: 1 }));
    for kind in 0..5 {
        let tallies = found.segments.iter().filter_map(|look| look.kinds.get(&kind));
        assert_eq!(tallies.map(|tally| tally.records).sum::<u64>(), RECORDS / 5, "kind {kind}");
    }
    let last = found.segments.iter().map(|look| look.records.1).max();
    assert_eq!(last, Some(RECORDS));
    let ahead = found.segments.iter().filter(|look| look.contents == Contents::Blank);
    assert!(ahead.count() >= 2, "segments made ahead are blank");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_bad_payload_is_found_where_payloads_are_looked_at() {
    let dir = written("survey-payload", &small());
    let path = dir.join("segment-00000001.log");
    let mut bytes = fs::read(&path).unwrap();
    // The third record's payload: behind two groups of a block and the inline area of its own.
    bytes[4096 * 3 + 2048] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(look(&dir, Depth::Records).damage, []);
    let damage = look(&dir, Depth::Payloads).damage;
    assert_eq!(damage.len(), 1);
    assert!(damage[0].what.contains("body of record 3"), "{damage:?}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_lost_group_is_found_in_the_middle_and_at_the_end_of_a_segment() {
    let config = small();
    let dir = written("survey-lost", &config);
    let whole = look(&dir, Depth::Records);
    let first = &whole.segments[0];
    for at in [4096 * 2, first.used as usize - 4096] {
        let path = dir.join("segment-00000001.log");
        let before = fs::read(&path).unwrap();
        let mut bytes = before.clone();
        bytes[at..at + 4096].fill(0);
        fs::write(&path, bytes).unwrap();
        let damage = look(&dir, Depth::Records).damage;
        assert_eq!(damage.len(), 1, "byte {at}: {damage:?}");
        assert!(damage[0].what.contains("missing"), "{damage:?}");
        fs::write(&path, before).unwrap();
    }
    fs::remove_dir_all(dir).unwrap();
}

/// Whatever was done to the files: the rehearsal changes nothing, and says what opening then does.
#[test]
fn a_rehearsal_comes_to_what_opening_does() {
    let config = small();
    let dir = written("survey-rehearsal", &config);
    let whole = files(&dir);
    let mut outcomes = BTreeMap::<String, u32>::new();
    for seed in 0..120u64 {
        let random = bytes_of(seed + 1, 16);
        let number = |at: usize| u64::from_le_bytes(random[at..at + 8].try_into().unwrap());
        let names =
            ["superblock", "segment-00000001.log", "segment-00000002.log", "segment-00000003.log"];
        let path = dir.join(names[number(0) as usize % names.len()]);
        let mut bytes = whole[&path].clone();
        let at = number(8) as usize % bytes.len();
        match seed % 4 {
            0 => bytes[at] ^= 1 << (seed % 8),
            1 => bytes[at / 4096 * 4096..].fill(0),
            2 => bytes.truncate(at),
            _ => bytes[at / 512 * 512..][..512].fill(0xee),
        }
        fs::write(&path, bytes).unwrap();
        let before = files(&dir);
        let told = rehearsed(&dir);
        assert!(files(&dir) == before, "seed {seed}: a rehearsal changes nothing");
        let done = opened(&dir, &config);
        assert_eq!(told, done, "seed {seed}");
        *outcomes.entry(format!("{:?}", done.map(|(cases, _)| cases).ok())).or_default() += 1;
        for (path, bytes) in &whole {
            fs::write(path, bytes).unwrap();
        }
        let kept = |path: &PathBuf| whole.contains_key(path);
        files(&dir)
            .into_keys()
            .filter(|path| !kept(path))
            .for_each(|path| fs::remove_file(path).unwrap());
    }
    assert!(outcomes.len() >= 4, "the damage shows in several ways: {outcomes:?}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_directory_in_use_is_said_to_be() {
    let dir = scratch("survey-in-use");
    let mut device = SyncDevice::open(&dir).unwrap();
    format_on(&mut device, &small()).unwrap();
    assert!(PictureDevice::open(&dir).unwrap().in_use());
    drop(device);
    let picture = PictureDevice::open(&dir).unwrap();
    assert!(!picture.in_use());
    assert!(SyncDevice::open(&dir).is_err(), "nobody starts on what is being looked at");
    drop(picture);
    assert!(SyncDevice::open(&dir).is_ok());
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn every_record_of_a_good_group_is_handed_over_before_and_behind_damage() {
    let dir = written("survey-records", &small());
    let seen = |dir: &Path| {
        let mut picture = PictureDevice::open(dir).unwrap();
        let (mut ids, mut bodies) = (Vec::new(), Vec::new());
        survey_records(&mut picture, &pool(), Depth::Records, &mut |_, _| {}, &mut |record| {
            ids.push(record.id.0);
            bodies.push((record.id.0, record.body_place, record.body_crc));
        })
        .unwrap();
        (ids, bodies)
    };
    let (all, bodies) = seen(&dir);
    assert_eq!(all, (1..=RECORDS).collect::<Vec<_>>());
    let mut picture = PictureDevice::open(&dir).unwrap();
    for (id, place, crc) in &bodies {
        let bytes = read_place(&mut picture, &pool(), *place).unwrap();
        assert_eq!((bytes.len() as u32, crc32fast::hash(&bytes)), (place.len, *crc), "record {id}");
    }
    let beyond = Place { offset: u32::MAX - 5000, ..bodies[0].1 };
    assert!(read_place(&mut picture, &pool(), beyond).is_err());
    // A group in the middle has rotten: its records are hidden, and no others.
    let (hidden, place, _) = bodies[RECORDS as usize / 2];
    let segment = dir.join(format!("segment-{:08}.log", place.segment));
    let mut bytes = fs::read(&segment).unwrap();
    let group = bodies[RECORDS as usize / 2].1.offset as usize / 4096 * 4096;
    let front = (0..=group).rev().step_by(4096).find(|at| &bytes[*at..*at + 4] == b"rGRP").unwrap();
    bytes[front + 20] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let rest: Vec<u64> = all.into_iter().filter(|id| *id != hidden).collect();
    assert_eq!(seen(&dir).0, rest);
}
