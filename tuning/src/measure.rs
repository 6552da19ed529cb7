//! How quickly this host makes writes durable, by every way to flush and to wait.
//!
//! Purpose: as many writers as nodes will share the host, each a thread that does what a node's loop
//! does around a flush. One writer alone would not show what decides where CPUs are few: how often
//! a way needs them.
//!
//! Invariant: nothing is left behind on the disk.

use crate::{CLEARLY_QUICKER, Measured, Way};
use racos_buffer::{Pool, Slice};
use racos_storage::device::probe::{self, Reads};
use racos_storage::device::uring::UringDevice;
use racos_storage::device::waiting::{Next, PollMode, Waiting};
use racos_storage::device::{Completion, Device, FileId, FlushMethod, Sleep, UringConfig};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

const FILE: FileId = 1;
const WRITE_BYTES: usize = 4096;
const FILE_BYTES: u64 = 4 << 20;
/// More would not show more.
const WRITERS_MAX: usize = 16;
/// The ways take turns so often, and the middle one of a way's figures counts: what disturbs a host for a
/// moment is not taken for a property of the way that met it.
const ROUNDS: u32 = 5;

/// Measures each way for `duration`, in rounds, with `writers` writers, in a fresh directory below `dir`. A
/// node that waits adaptively looks for `spin_us` here.
///
/// # Errors
/// The directory cannot be written, or the system has no io_uring with direct writes.
pub fn measure(
    dir: &Path,
    writers: usize,
    duration: Duration,
    spin_us: u64,
) -> io::Result<Vec<Measured>> {
    let dir = dir.join(format!("racos-tune-{}", std::process::id()));
    let writers = writers.clamp(1, WRITERS_MAX);
    let result = prepare(&dir, writers).and_then(|()| {
        let round =
            || Way::ALL.map(|way| measure_way(&dir, way, writers, duration / ROUNDS, spin_us));
        let rounds = (0..ROUNDS).flat_map(|_| round()).collect::<io::Result<Vec<_>>>()?;
        Ok(Way::ALL.map(|way| median(rounds.iter().filter(|one| one.way == way))).to_vec())
    });
    std::fs::remove_dir_all(&dir)?;
    result
}

/// The middle one by its rate.
fn median<'a>(rounds: impl Iterator<Item = &'a Measured>) -> Measured {
    let mut rounds: Vec<&Measured> = rounds.collect();
    rounds.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
    *rounds[rounds.len() / 2]
}

/// What is found about reads in a directory, in words: registered buffers, and polling. The log registers
/// buffers of 64 KiB and more where the kernel lets it; for short ones it was not clearly quicker anywhere
/// yet, nor was polling; a host where one is, is worth knowing.
pub fn reads_here(dir: &Path, each: Duration) -> Vec<String> {
    let reads = match probe::reads(dir, each) {
        Ok(reads) => reads,
        Err(error) => return vec![format!("reads were not measured: {error}")],
    };
    let words = |rate: &io::Result<f64>| match rate {
        Ok(rate) => format!("{rate:.0} a second"),
        Err(error) => format!("not possible here ({error})"),
    };
    let Reads { plain, registered, polled, large_alone, large_registered } = &reads;
    let base = plain.as_ref().copied().unwrap_or(0.0);
    let is_quicker = |rate: &io::Result<f64>| {
        rate.as_ref().is_ok_and(|rate| base > 0.0 && *rate > base * CLEARLY_QUICKER)
    };
    let verdict = |rate| match is_quicker(rate) {
        true => "clearly quicker, and not used by this version",
        false => "no gain, not used",
    };
    vec![
        format!("reads of 4 KiB, {} at once: {}", probe::DEPTH, words(plain)),
        format!(
            "with registered buffers and files: {}; {}",
            words(registered),
            verdict(registered)
        ),
        format!("by polling (IOPOLL): {}; {}", words(polled), verdict(polled)),
        format!(
            "reads of {} KiB, {} at once: {}",
            probe::LARGE >> 10,
            probe::DEPTH,
            words(large_alone)
        ),
        format!(
            "with registered buffers: {}; {}",
            words(large_registered),
            match large_registered {
                Ok(_) => "used",
                Err(_) => "used as far as the kernel registers any",
            }
        ),
    ]
}

fn writer_dir(dir: &Path, writer: usize) -> PathBuf {
    dir.join(writer.to_string())
}

fn prepare(dir: &Path, writers: usize) -> io::Result<()> {
    for writer in 0..writers {
        let mut device = UringDevice::open(&writer_dir(dir, writer), &UringConfig::default())?;
        device.prepare(FILE, FILE_BYTES);
        let mut waiting = Waiting::new(PollMode::Blocking, 0);
        wait_for(&mut device, &mut waiting, Instant::now())?;
    }
    Ok(())
}

fn measure_way(
    dir: &Path,
    way: Way,
    writers: usize,
    duration: Duration,
    spin_us: u64,
) -> io::Result<Measured> {
    let start = Barrier::new(writers);
    let one = |writer: usize| write(&writer_dir(dir, writer), way, duration, spin_us, &start);
    let results: Vec<io::Result<Vec<Duration>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers).map(|writer| scope.spawn(move || one(writer))).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("writers return"));
        joined.collect()
    });
    let mut times = Vec::new();
    for result in results {
        times.extend(result?);
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    let per_second = times.len() as f64 / duration.as_secs_f64();
    Ok(Measured { way, per_second, p50_us: at(0.5), p99_us: at(0.99) })
}

/// Writes one after the other for `duration`; how long each took, at least one.
fn write(
    dir: &Path,
    way: Way,
    duration: Duration,
    spin_us: u64,
    start: &Barrier,
) -> io::Result<Vec<Duration>> {
    let opened = open(dir, way.flush);
    // Nobody waits for a writer that could not open.
    start.wait();
    let (mut device, parts) = opened?;
    let clock = Instant::now();
    let poll = if way.adaptive {
        PollMode::Adaptive { spin_ns: spin_us * 1000 }
    } else {
        PollMode::Blocking
    };
    let mut waiting = Waiting::new(poll, 0);
    let mut times = Vec::new();
    while times.is_empty() || clock.elapsed() < duration {
        let offset = (times.len() * WRITE_BYTES) as u64 % FILE_BYTES;
        let began = clock.elapsed();
        device.write_flush(times.len() as u64, FILE, offset, &parts);
        wait_for(&mut device, &mut waiting, clock)?;
        times.push(clock.elapsed() - began);
    }
    Ok(times)
}

fn open(dir: &Path, flush: FlushMethod) -> io::Result<(UringDevice, [Slice; 1])> {
    let device = UringDevice::open(dir, &UringConfig { flush, ..UringConfig::default() })?;
    let buf = Pool::new(1 << 20).get(WRITE_BYTES).expect("the pool is large enough");
    Ok((device, [buf.freeze()]))
}

/// Waits as a node does until one thing has completed.
fn wait_for(device: &mut UringDevice, waiting: &mut Waiting, clock: Instant) -> io::Result<()> {
    let now = || clock.elapsed().as_nanos() as u64;
    let mut done = Vec::new();
    loop {
        let at = now();
        device.poll(&mut done);
        let next = waiting.after_turn(at, !done.is_empty(), true);
        if !done.is_empty() {
            break;
        }
        device.submit();
        match next {
            Next::Look => {}
            Next::Yield => {
                let before = now();
                std::thread::yield_now();
                waiting.yielded(now(), now() - before);
            }
            Next::Sleep => device.wait(&[], Some(1_000_000_000))?,
        }
    }
    done.drain(..).try_for_each(|completion| match completion {
        Completion::Written { result, .. }
        | Completion::Prepared { result, .. }
        | Completion::Removed { result, .. }
        | Completion::Read { result, .. } => result,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disturbed_round_decides_nothing() {
        let rounds = [100.0, 20.0, 90.0, 900.0, 95.0].map(|per_second| Measured {
            way: Way::DEFAULT,
            per_second,
            p50_us: 1e6 / per_second,
            p99_us: 2e6 / per_second,
        });
        assert_eq!(median(rounds.iter()), rounds[4]);
    }

    #[test]
    fn a_measurement_writes_durably_in_every_way_and_leaves_nothing_behind() {
        let dir = std::env::temp_dir().join(format!("racos-tuning-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        match measure(&dir, 2, Duration::from_millis(10), 50) {
            Ok(measured) => {
                assert_eq!(measured.len(), Way::ALL.len());
                for one in measured {
                    assert!(one.per_second > 0.0 && one.p99_us >= one.p50_us, "{one:?}");
                }
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}"),
        }
        let found = reads_here(&dir, Duration::from_millis(10));
        let all = found.len() == 5 && found[2].contains("IOPOLL") && found[4].contains("used");
        assert!(all || found.len() == 1, "{found:?}");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
