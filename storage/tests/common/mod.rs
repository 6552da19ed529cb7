//! What the log's tests share.
#![allow(dead_code)]

pub mod conformance;
pub mod store;

use racos_buffer::{Pool, Slice};
use racos_storage::device::Device;
use racos_storage::device::memory::{Disk, MemoryDevice, Timing};
use racos_storage::{
    Class, Event, Full, Identity, Log, LogConfig, LogError, Place, RecordId, Recovered,
    ReplayedBody,
};
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

pub const IDENTITY: Identity =
    Identity { cluster: 0xc0ffee, node: 3, incarnation: 1, lane: 0, lanes: 1 };
pub const DISK_ID: u128 = 0x1234_5678_9abc_def0_0fed_cba9_8765_4321;

pub type SharedDisk = Rc<RefCell<Disk>>;

/// Small sizes, so that a test goes through many segments.
pub fn small() -> LogConfig {
    LogConfig {
        segment_len: 64 << 10,
        prepare_ahead: 2,
        initial_segments: 2,
        reserve_bytes: 16 << 10,
        free_bytes_min: 0,
        inline_body_max: 2048,
        inline_bytes_max: 16 << 10,
        spare_max: 2,
        group_bytes_max: 32 << 10,
        queue_bytes_max: 256 << 10,
        reads_max: 16,
        check_payloads: false,
    }
}

pub fn pool() -> Pool {
    Pool::with_arenas(64 << 20)
}

/// A record as the test knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: u8,
    pub head: Vec<u8>,
    /// `None`: on disk, not looked at.
    pub body: Option<Vec<u8>>,
    pub body_place: Place,
    pub crc: u32,
    pub damaged: bool,
}

pub struct Opened<D: Device> {
    pub log: Log<D>,
    pub entries: Vec<Entry>,
    pub found: Recovered,
    pub pool: Pool,
}

pub fn open_on<D: Device>(device: D, config: &LogConfig) -> Result<Opened<D>, LogError> {
    let pool = pool();
    let mut entries = Vec::new();
    let mut each = |record: racos_storage::Replayed<'_>| {
        assert_eq!(record.id, RecordId(entries.len() as u64 + 1), "records come without gaps");
        entries.push(Entry {
            kind: record.kind,
            head: record.head.to_vec(),
            body: match record.body {
                ReplayedBody::Inline(bytes) => Some(bytes.to_vec()),
                _ => None,
            },
            body_place: record.body_place,
            crc: record.body_crc,
            damaged: record.body == ReplayedBody::Damaged,
        });
    };
    let (log, found) = Log::open(device, pool.clone(), config.clone(), IDENTITY, &mut each)?;
    Ok(Opened { log, entries, found, pool })
}

pub fn format_on<D: Device>(device: &mut D, config: &LogConfig) -> Result<(), LogError> {
    Log::format(device, &pool(), config, IDENTITY, DISK_ID, &mut |_, _| {})
}

/// A formatted simulated disk.
pub fn fresh(config: &LogConfig, timing: Timing) -> SharedDisk {
    let disk = Disk::new(1 << 30, timing);
    format_on(&mut MemoryDevice::new(disk.clone()), config).unwrap();
    disk
}

pub fn open(disk: &SharedDisk, config: &LogConfig) -> Result<Opened<MemoryDevice>, LogError> {
    open_on(MemoryDevice::new(disk.clone()), config)
}

/// Bytes that are a function of their seed.
pub fn bytes_of(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

pub fn slice_of(pool: &Pool, seed: u64, len: usize) -> Slice {
    pool.copy(&bytes_of(seed, len)).expect("the test's pool is large enough")
}

/// Polls until nothing is queued or in flight; the events.
pub fn drain<D: Device>(log: &mut Log<D>) -> Vec<Event> {
    let mut events = Vec::new();
    while log.is_busy() && !log.is_stopped() {
        log.kick();
        log.submit();
        log.poll(&mut events);
    }
    log.poll(&mut events);
    events
}

/// Reads a place and waits for it.
pub fn read<D: Device>(log: &mut Log<D>, at: Place, crc: Option<u32>) -> Result<Slice, String> {
    log.read(77, at, crc).map_err(|refused| format!("{refused:?}"))?;
    let mut events = Vec::new();
    for _ in 0..1_000_000 {
        log.submit();
        log.poll(&mut events);
        for event in events.drain(..) {
            if let Event::Read { token: 77, result } = event {
                return result.map_err(|error| error.to_string());
            }
        }
        std::thread::yield_now();
    }
    panic!("the read never ended");
}

/// Appends a record, when the next segment is ready, and flushes it.
pub fn put<D: Device>(opened: &mut Opened<D>, seed: u64, head: usize, body: usize) -> Vec<Event> {
    let body = [slice_of(&opened.pool, seed, body)];
    let head = bytes_of(seed + 1, head);
    let mut events = Vec::new();
    while let Err(full) = opened.log.append(seed as u8, &head, &body, Class::Ordinary) {
        assert_eq!(full, Full::Preparing);
        opened.log.device_mut().settle().unwrap();
        opened.log.poll(&mut events);
    }
    assert!(events.is_empty(), "nothing else was in flight");
    drain(&mut opened.log)
}

/// A directory of its own for a test, empty.
pub fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("racos-storage-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}
