//! Random reads of large fragments from the log alone, beside fio's reads of the same disk.
//!
//! The same files are read twice: into buffers that the kernel knows beforehand, and into buffers that
//! are allocated one by one. Each read is checked against its checksum, as a node's are.

use super::appends::{IDENTITY, Load};
use super::fio::{self, Fio, Job};
use super::lone::note;
use crate::exit::{Failure, failed};
use hdrhistogram::Histogram;
use racos_buffer::Pool;
use racos_storage::device::file::FileDevice;
use racos_storage::device::{Sleep, UringConfig};
use racos_storage::{Class, Event, Full, Log, LogConfig, Place};
use std::path::Path;
use std::time::Instant;

/// Bytes of records that are read from.
const STORED: u64 = 1 << 30;
const POOL_BYTES: usize = 512 << 20;

/// Readers of these have one read under way each.
pub const LOADS: [Load; 2] = [
    Load { name: "64 KiB, 8 at once", bytes: 64 << 10, writers: 8 },
    Load { name: "1 MiB, 8 at once", bytes: 1 << 20, writers: 8 },
];

#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub per_second: f64,
    pub mb_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// CPU time of each read.
    pub cpu_us: f64,
}

#[derive(Debug, Clone)]
pub struct Row {
    pub load: Load,
    pub registered: Figures,
    pub alone: Figures,
    pub device: String,
    pub fio: Option<Fio>,
}

/// A stored record: where its body lies, and its checksum.
type Stored = (Place, u32);

/// Measures one load, both ways, after fio if that is installed.
pub fn measure(dir: &Path, load: Load, seconds: f64) -> Result<Row, Failure> {
    let rival = dir.join("fio");
    std::fs::create_dir_all(&rival)
        .map_err(|error| failed(format!("cannot make {}: {error}", rival.display())))?;
    let job = Job {
        block: load.bytes as u64,
        writers: 1,
        reads: true,
        flush: false,
        depth: load.writers as u32,
        seconds: seconds.max(1.0),
        file_bytes: STORED,
    };
    let fio = fio::run(&rival, &job);
    let _ = std::fs::remove_dir_all(&rival);
    let dir = dir.join("log");
    let about = |error: String| failed(format!("the log in {}: {error}", dir.display()));
    let stored = store(&dir, load.bytes).map_err(about)?;
    let (alone, _) = way(&dir, load, &stored, seconds, false).map_err(about)?;
    let (registered, device) = way(&dir, load, &stored, seconds, true).map_err(about)?;
    let _ = std::fs::remove_dir_all(&dir);
    Ok(Row { load, registered, alone, device, fio })
}

fn config() -> LogConfig {
    LogConfig { initial_segments: 4, ..LogConfig::default() }
}

fn open(dir: &Path, registered: bool) -> Result<(Log<FileDevice>, Pool, String), String> {
    let (pool, registered_bytes_max) = match registered {
        true => (Pool::with_arenas(POOL_BYTES), usize::MAX),
        false => (Pool::new(POOL_BYTES), 0),
    };
    let uring = UringConfig { registered_bytes_max, ..UringConfig::default() };
    let mut device = FileDevice::open(dir, &uring).map_err(|error| error.to_string())?;
    let words = device.describe();
    let condition = Log::inspect(&mut device, &pool).map_err(|error| error.to_string())?;
    if let racos_storage::Condition::Empty = condition {
        Log::format(&mut device, &pool, &config(), IDENTITY, 9, &mut |_, _| {})
            .map_err(|error| error.to_string())?;
    }
    let opened = Log::open(device, pool.clone(), config(), IDENTITY, &mut |_| {});
    let (log, _) = opened.map_err(|error| error.to_string())?;
    Ok((log, pool, words))
}

/// Writes the records to read.
fn store(dir: &Path, bytes: usize) -> Result<Vec<Stored>, String> {
    let (mut log, pool, _) = open(dir, true)?;
    let mut buf = pool.get(bytes).ok_or("no memory")?;
    buf.iter_mut().enumerate().for_each(|(at, byte)| *byte = ((at * 31) >> 3) as u8);
    let body = [buf.freeze()];
    let (mut stored, mut events, mut queued) = (Vec::new(), Vec::new(), 0);
    let wanted = STORED / bytes as u64;
    while (stored.len() as u64) < wanted {
        while queued < wanted {
            match log.append(1, b"head", &body, Class::Ordinary) {
                Ok(_) => queued += 1,
                Err(Full::Preparing | Full::Backlog | Full::Memory) => break,
                Err(full) => return Err(full.to_string()),
            }
        }
        log.kick();
        let wait = log.device_mut().wait(&[], Some(100_000_000));
        wait.map_err(|error| error.to_string())?;
        log.poll(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Placed { body, body_crc, .. } => stored.push((body, body_crc)),
                Event::Failed(why) => return Err(why),
                _ => {}
            }
        }
    }
    Ok(stored)
}

fn way(
    dir: &Path,
    load: Load,
    stored: &[Stored],
    seconds: f64,
    registered: bool,
) -> Result<(Figures, String), String> {
    let (mut log, _pool, words) = open(dir, registered)?;
    let mut times = Histogram::<u64>::new(3).expect("three digits are a valid precision");
    let mut began = vec![Instant::now(); load.writers];
    let mut free: Vec<usize> = (0..load.writers).collect();
    let (mut events, mut count) = (Vec::new(), 0u64);
    let cpu = racos_engine::runtime::usage().cpu_us;
    let clock = Instant::now();
    loop {
        let more = clock.elapsed().as_secs_f64() < seconds;
        while let Some(reader) = free.pop_if(|_| more) {
            count += 1;
            // A walk over all of it, in no order that a disk would see ahead.
            let pick = count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let (place, crc) = stored[pick as usize % stored.len()];
            began[reader] = Instant::now();
            log.read(reader as u64, place, Some(crc)).map_err(|refused| format!("{refused:?}"))?;
        }
        if free.len() == load.writers {
            break;
        }
        let wait = log.device_mut().wait(&[], Some(100_000_000));
        wait.map_err(|error| error.to_string())?;
        log.poll(&mut events);
        for event in events.drain(..) {
            if let Event::Read { token, result } = event {
                result.map_err(|error| error.to_string())?;
                note(&mut times, began[token as usize].elapsed().as_nanos() as u64);
                free.push(token as usize);
            }
        }
    }
    let took = clock.elapsed().as_secs_f64();
    let cpu = racos_engine::runtime::usage().cpu_us - cpu;
    let figures = Figures {
        per_second: times.len() as f64 / took,
        mb_per_s: times.len() as f64 * load.bytes as f64 / took / 1e6,
        p50_us: times.value_at_quantile(0.5) as f64 / 1e3,
        p99_us: times.value_at_quantile(0.99) as f64 / 1e3,
        cpu_us: cpu as f64 / times.len().max(1) as f64,
    };
    Ok((figures, words))
}
