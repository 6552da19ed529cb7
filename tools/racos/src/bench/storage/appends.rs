//! Durable appends to the log alone, beside fio's writes to the same disk.
//!
//! Closed loop: each writer has one record under way and appends the next when it is flushed.

use super::fio::{self, Fio, Job};
use super::lone::note;
use crate::exit::{Failure, failed};
use hdrhistogram::Histogram;
use racos_buffer::{Pool, Slice};
use racos_storage::device::file::FileDevice;
use racos_storage::device::{FlushMethod, Sleep, UringConfig};
use racos_storage::{Class, Event, Full, Identity, Log, LogConfig};
use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

pub const IDENTITY: Identity = Identity { cluster: 1, node: 0, incarnation: 1, lane: 0, lanes: 1 };
/// Bytes of log written with zeros beforehand: what is measured is appending, not preparing.
const PREPARED: u64 = 2 << 30;

/// What is appended.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub name: &'static str,
    pub bytes: usize,
    pub writers: usize,
}

pub const LOADS: [Load; 3] = [
    Load { name: "4 KiB, 1 writer", bytes: 4096, writers: 1 },
    Load { name: "4 KiB, 16 writers", bytes: 4096, writers: 16 },
    Load { name: "1 MiB, 16 writers", bytes: 1 << 20, writers: 16 },
];

#[derive(Debug, Clone)]
pub struct Row {
    pub load: Load,
    pub per_second: f64,
    pub mb_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub mean_us: f64,
    /// Records in a flush, and bytes written for each byte appended.
    pub per_flush: f64,
    pub written: f64,
    pub device: String,
    pub fio: Option<Fio>,
}

impl Row {
    /// How the log stands to fio: of a single writer by time (below 1 is quicker), else by rate.
    pub fn ratio(&self) -> Option<f64> {
        let fio = self.fio.as_ref()?;
        Some(match self.load.writers {
            1 => self.mean_us / fio.mean_us,
            _ => self.mb_per_s / fio.mb_per_s,
        })
    }
}

/// Measures one load, twice as fio before and after if that is installed.
pub fn measure(dir: &Path, load: Load, flush: FlushMethod, seconds: f64) -> Result<Row, Failure> {
    let rival = dir.join("fio");
    std::fs::create_dir_all(&rival)
        .map_err(|error| failed(format!("cannot make {}: {error}", rival.display())))?;
    let is_bulk = load.bytes >= 1 << 20;
    let job = Job {
        block: load.bytes as u64,
        writers: if is_bulk { 1 } else { load.writers as u32 },
        reads: false,
        flush: !is_bulk,
        depth: if is_bulk { 8 } else { 1 },
        seconds: seconds.max(1.0),
        file_bytes: if is_bulk { 1 << 30 } else { 64 << 20 },
    };
    let fio = fio::run(&rival, &job);
    let _ = std::fs::remove_dir_all(&rival);
    let mut row = append(&dir.join("log"), load, flush, seconds)?;
    row.fio = fio;
    Ok(row)
}

fn append(dir: &Path, load: Load, flush: FlushMethod, seconds: f64) -> Result<Row, Failure> {
    let about = |error: String| failed(format!("the log in {}: {error}", dir.display()));
    let config = LogConfig::default();
    let config = LogConfig {
        initial_segments: (PREPARED / u64::from(config.segment_len)) as u32,
        prepare_ahead: 2,
        ..config
    };
    let pool = Pool::with_arenas(512 << 20);
    let uring = UringConfig { flush, ..UringConfig::default() };
    let mut device = FileDevice::open(dir, &uring).map_err(|error| about(error.to_string()))?;
    let words = device.describe();
    if let racos_storage::Condition::Empty =
        Log::inspect(&mut device, &pool).map_err(|error| about(error.to_string()))?
    {
        Log::format(&mut device, &pool, &config, IDENTITY, 9, &mut |_, _| {})
            .map_err(|error| about(error.to_string()))?;
    }
    let opened = Log::open(device, pool.clone(), config, IDENTITY, &mut |_| {});
    let (mut log, _) = opened.map_err(|error| about(error.to_string()))?;
    let mut buf = pool.get(load.bytes).ok_or_else(|| about("no memory".into()))?;
    buf.fill(0xa5);
    let body = [buf.freeze()];
    let mut times = Histogram::<u64>::new(3).expect("three digits are a valid precision");
    let clock = Instant::now();
    let before = log.counters();
    run(&mut log, load.writers, &body, seconds, clock, &mut times).map_err(about)?;
    let took = clock.elapsed().as_secs_f64();
    let after = log.counters();
    let _ = std::fs::remove_dir_all(dir);
    let bytes = times.len() as f64 * load.bytes as f64;
    Ok(Row {
        load,
        per_second: times.len() as f64 / took,
        mb_per_s: bytes / took / 1e6,
        p50_us: times.value_at_quantile(0.5) as f64 / 1e3,
        p99_us: times.value_at_quantile(0.99) as f64 / 1e3,
        mean_us: times.mean() / 1e3,
        per_flush: times.len() as f64 / (after.flushes - before.flushes).max(1) as f64,
        written: (after.bytes_flushed - before.bytes_flushed) as f64 / bytes.max(1.0),
        device: words,
        fio: None,
    })
}

fn run(
    log: &mut Log<FileDevice>,
    writers: usize,
    body: &[Slice],
    seconds: f64,
    clock: Instant,
    times: &mut Histogram<u64>,
) -> Result<(), String> {
    let mut under_way: VecDeque<(u64, Instant)> = VecDeque::new();
    let mut events = Vec::new();
    let mut more = true;
    while more || !under_way.is_empty() {
        more = more && clock.elapsed().as_secs_f64() < seconds && log.bytes_prepared() > 64 << 20;
        while more && under_way.len() < writers {
            match log.append(1, b"head", body, Class::Ordinary) {
                Ok(id) => under_way.push_back((id.0, Instant::now())),
                Err(Full::Preparing | Full::Backlog | Full::Memory) => break,
                Err(full) => return Err(full.to_string()),
            }
        }
        log.kick();
        log.poll(&mut events);
        let idle = events.is_empty();
        for event in events.drain(..) {
            match event {
                Event::Flushed { up_to } => {
                    while let Some((_, began)) = under_way.pop_front_if(|(id, _)| *id <= up_to.0) {
                        note(times, began.elapsed().as_nanos() as u64);
                    }
                }
                Event::Failed(why) => return Err(why),
                _ => {}
            }
        }
        if idle {
            let wait = log.device_mut().wait(&[], Some(100_000_000));
            wait.map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
