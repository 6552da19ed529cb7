//! What a node's log costs it with many keys: restarts, memory, checkpoints, reclaiming.

use super::lone::{KEY_BYTES, Lone, Operation, Setup, Turns};
use crate::exit::{Failure, failed};
use racos_engine::SpaceParts;
use racos_engine::inspect::kind_name;
use racos_engine::runtime::usage;
use racos_storage::device::FlushMethod;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Operations under way while keys are written.
const UNDER_WAY: usize = 1024;
/// A loop that only counts is timed for so long at most.
const COUNTING_S_MAX: f64 = 30.0;
/// And where turns are timed: those of a node that has some work, and not as much as it can take.
const UNDER_WAY_TIMED: usize = 16;

/// Random numbers that are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end.max(1)
    }
}

pub fn setup(flush: FlushMethod) -> Setup {
    Setup {
        flush,
        cache_bytes: 64 << 20,
        checkpoint_bytes: 256 << 20,
        space_reserve_bytes: 1 << 30,
        initial_segments: 4,
        segment_bytes: 64 << 20,
        history_slots: 1024,
    }
}

/// Writes keys in order.
pub fn fill(
    lone: &mut Lone,
    keys: u64,
    len: usize,
    told: &mut dyn FnMut(u64),
) -> Result<(), Failure> {
    let (mut next, mut done) = (0, 0);
    lone.drive(
        UNDER_WAY,
        &mut |_| {
            let key = next;
            next += 1;
            (key < keys).then_some(Operation::Put { key, len })
        },
        &mut |_| {
            done += 1;
            if done % 4096 == 0 {
                told(done);
            }
        },
    )
}

#[derive(Debug, Clone)]
pub struct Restart {
    pub keys: u64,
    pub len: usize,
    pub open_s: f64,
    pub file_bytes: u64,
    /// Resident memory for each key, beyond the bytes of the key itself.
    pub memory_per_key: f64,
    pub fill_per_second: f64,
}

/// Writes keys, ends the node, and opens its directory again in a process of its own.
pub fn restart(
    dir: &Path,
    keys: u64,
    len: usize,
    flush: FlushMethod,
    told: &mut dyn FnMut(u64),
) -> Result<Restart, Failure> {
    let mut lone = Lone::open(dir, &setup(flush))?;
    let clock = Instant::now();
    fill(&mut lone, keys, len, told)?;
    let fill_per_second = keys as f64 / clock.elapsed().as_secs_f64();
    let file_bytes = lone.node().log().file_bytes();
    drop(lone);
    let opened = reopen_elsewhere(dir)?;
    let number = |name: &str| opened[name].as_u64().unwrap_or(0);
    if number("keys") != keys {
        return Err(failed(format!("{} keys of {keys} were found again", number("keys"))));
    }
    let memory = number("memory_after") as f64 - number("memory_before") as f64;
    let memory_per_key = memory / keys as f64 - KEY_BYTES as f64;
    let open_s = number("open_ns") as f64 / 1e9;
    Ok(Restart { keys, len, open_s, file_bytes, memory_per_key, fill_per_second })
}

fn reopen_elsewhere(dir: &Path) -> Result<Value, Failure> {
    let own = std::env::current_exe().map_err(|error| failed(format!("no own path: {error}")))?;
    let output = Command::new(own)
        .args(["bench", "storage", "--reopen"])
        .arg(dir)
        .output()
        .map_err(|error| failed(format!("cannot start a process: {error}")))?;
    serde_json::from_slice(&output.stdout)
        .map_err(|_| failed(String::from_utf8_lossy(&output.stderr).trim().to_string()))
}

/// In the process of its own.
pub fn reopen(dir: &Path) -> Result<Value, Failure> {
    let memory_before = usage().memory_bytes;
    let mut setup = setup(FlushMethod::Linked);
    setup.cache_bytes = 0;
    let mut lone = Lone::open(dir, &setup)?;
    let memory_after = usage().memory_bytes;
    // What was acknowledged and not noted as decided is decided again.
    lone.rest(0.5, &|_| false)?;
    Ok(json!({
        "open_ns": lone.open_ns,
        "keys": lone.node().machine().keys_len(),
        "memory_before": memory_before,
        "memory_after": memory_after,
    }))
}

#[derive(Debug, Clone)]
pub struct Stall {
    pub keys: u64,
    pub checkpoints: u64,
    /// Turns while checkpoints are written and while not.
    pub with: TurnFigures,
    pub without: TurnFigures,
    /// Steps of a loop that does nothing but count, for as long, in the same minute: what of the
    /// longest turns is the machine's. A host that takes a CPU away does so in CPU time, too.
    pub counting: TurnFigures,
}

/// Longest turn, and that which all but one of 1000 stay below, in microseconds: by the clock and of
/// CPU; and how many turns a second took more than 1 ms of CPU.
#[derive(Debug, Clone, Copy)]
pub struct TurnFigures {
    pub max_us: f64,
    pub p999_us: f64,
    pub cpu_max_us: f64,
    pub long_per_s: f64,
}

/// A turn with more of CPU is a long one.
const LONG_NS: u64 = 1_000_000;

impl TurnFigures {
    fn of(turns: &Turns, seconds: f64) -> TurnFigures {
        TurnFigures {
            max_us: turns.clock.max() as f64 / 1e3,
            p999_us: turns.clock.value_at_quantile(0.999) as f64 / 1e3,
            cpu_max_us: turns.cpu.max() as f64 / 1e3,
            long_per_s: turns.cpu.count_between(LONG_NS, u64::MAX) as f64 / seconds,
        }
    }
}

/// Times a loop that does nothing but count, in steps of about 20 us.
fn count_for(seconds: f64) -> TurnFigures {
    const STEP: u64 = 20_000;
    let (mut turns, clock) = (Turns::new(), Instant::now());
    while clock.elapsed().as_secs_f64() < seconds {
        turns.time(|| (0..STEP).fold(0, |sum, step| std::hint::black_box(sum ^ step)));
    }
    TurnFigures::of(&turns, seconds)
}

/// Turns of a node with these keys under a light load, while it writes checkpoints and while it
/// writes none.
pub fn stall(
    dir: &Path,
    keys: u64,
    len: usize,
    flush: FlushMethod,
    told: &mut dyn FnMut(u64),
) -> Result<Stall, Failure> {
    let seldom = Setup { checkpoint_bytes: u64::MAX, ..setup(flush) };
    let mut lone = Lone::open(dir, &seldom)?;
    fill(&mut lone, keys, len, told)?;
    // The memory of the last checkpoint's end is given back before it counts.
    lone.rest(1.0, &|_| false)?;
    let count = (keys / 4).clamp(20_000, 200_000);
    lone.turns = Some(Turns::new());
    let clock = Instant::now();
    overwrite(&mut lone, keys, len, count)?;
    let seconds = clock.elapsed().as_secs_f64();
    let without = TurnFigures::of(&lone.turns.take().expect("set above"), seconds);
    drop(lone);
    let mut lone = Lone::open(dir, &Setup { checkpoint_bytes: 1 << 20, ..setup(flush) })?;
    lone.turns = Some(Turns::new());
    let clock = Instant::now();
    let before = lone.node().snapshot().generation;
    while lone.node().snapshot().generation < before + 2 {
        overwrite(&mut lone, keys, len, count)?;
    }
    let seconds = clock.elapsed().as_secs_f64();
    let with = TurnFigures::of(&lone.turns.take().expect("set above"), seconds);
    let checkpoints = lone.node().snapshot().generation - before;
    let counting = count_for(seconds.min(COUNTING_S_MAX));
    Ok(Stall { keys, checkpoints, with, without, counting })
}

fn overwrite(lone: &mut Lone, keys: u64, len: usize, count: u64) -> Result<(), Failure> {
    let (mut random, mut left) = (Random(88_172_645_463_325_252), count);
    let mut next = |_: &Lone| {
        left = left.checked_sub(1)?;
        Some(Operation::Put { key: random.below(keys), len })
    };
    lone.drive(UNDER_WAY_TIMED, &mut next, &mut |_| {})
}

#[derive(Debug, Clone)]
pub struct Amplification {
    pub name: &'static str,
    pub len: usize,
    /// Bytes written to the disk for each byte of keys and values that was put.
    pub written: f64,
    /// Of them, copied to make room.
    pub copied: f64,
    /// Live bytes of the log's files, in percent, at the end.
    pub full_percent: f64,
    pub file_bytes: u64,
    pub live_bytes: u64,
    /// The same in parts: of what was written, by kind of record, for each byte put; what is in no
    /// record is heads of groups and padding.
    pub kinds: Vec<(&'static str, f64)>,
    pub checkpoints: u64,
    /// Bytes of the files at the end.
    pub parts: SpaceParts,
}

/// Bytes of records by kind, as far as anything was written of it.
fn kinds(lone: &Lone) -> Vec<(&'static str, u64)> {
    let named = (0..=u8::MAX).filter_map(|kind| Some((kind, kind_name(kind)?)));
    named.map(|(kind, name)| (name, lone.node().log().bytes_of_kind(kind))).collect()
}

/// How a store that is in use is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Churn {
    /// Half of the puts overwrite any key, half are of new keys, for each of which the oldest goes.
    Half,
    /// All puts overwrite any key.
    Uniform,
}

impl Churn {
    fn name(self) -> &'static str {
        match self {
            Churn::Half => "50% overwrite, 50% new and the oldest deleted",
            Churn::Uniform => "100% overwrite",
        }
    }
}

/// Writes keys of `live` bytes in all, then three times as much of puts as `churn` says, of which the
/// last third is measured: the log is steady by then.
pub fn amplification(
    dir: &Path,
    live: u64,
    len: usize,
    churn: Churn,
    flush: FlushMethod,
    told: &mut dyn FnMut(u64),
) -> Result<Amplification, Failure> {
    let keys = live / len as u64;
    let tight = Setup {
        space_reserve_bytes: 0,
        history_slots: 16,
        // Short ones: those ahead, spare, and kept for the marks take the same however full the rest is.
        segment_bytes: 8 << 20,
        checkpoint_bytes: (live / 16).max(16 << 20),
        ..setup(flush)
    };
    let mut lone = Lone::open(dir, &tight)?;
    fill(&mut lone, keys, len, told)?;
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let (mut first, mut end) = (0, keys);
    let mut pass = |lone: &mut Lone, puts: u64| -> Result<u64, Failure> {
        let (mut left, mut bytes, mut gone) = (puts, 0, None);
        let mut next = |_: &Lone| {
            if let Some(key) = gone.take() {
                return Some(Operation::Delete { key });
            }
            left = left.checked_sub(1)?;
            bytes += (len + KEY_BYTES) as u64;
            if churn == Churn::Half && left % 2 == 0 {
                (first, end, gone) = (first + 1, end + 1, Some(first));
                return Some(Operation::Put { key: end - 1, len });
            }
            Some(Operation::Put { key: first + random.below(end - first), len })
        };
        lone.drive(64, &mut next, &mut |_| {})?;
        Ok(bytes)
    };
    pass(&mut lone, 2 * keys)?;
    let (before, kinds_before) = (lone.node().status(), kinds(&lone));
    let put = pass(&mut lone, keys)?;
    let (after, kinds_after) = (lone.node().status(), kinds(&lone));
    let each = kinds_after.iter().zip(kinds_before);
    let each = each.map(|((name, after), (_, before))| (*name, *after - before));
    let kinds =
        each.filter(|(_, bytes)| *bytes > 0).map(|(name, bytes)| (name, bytes as f64 / put as f64));
    let share = |after: u64, before: u64| (after - before) as f64 / put as f64;
    let (file_bytes, live_bytes) = (after.disk.file_bytes, after.disk.live_bytes);
    Ok(Amplification {
        name: churn.name(),
        len,
        written: share(after.disk.flushed_bytes, before.disk.flushed_bytes),
        copied: share(after.disk.copied_bytes, before.disk.copied_bytes),
        full_percent: live_bytes as f64 * 100.0 / file_bytes as f64,
        file_bytes,
        live_bytes,
        kinds: kinds.collect(),
        checkpoints: after.disk.checkpoints - before.disk.checkpoints,
        parts: lone.node().space_parts(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    /// Real files, the shipped node and its log, of a store in use for several times its size: at no
    /// time do they take more than 1.3 times what is live and the reserve.
    #[test]
    fn the_files_of_a_store_in_use_stay_below_1_3_times_what_is_live_and_the_reserve() {
        const KEYS: u64 = 2048;
        const LEN: usize = 16 << 10;
        const RESERVE: u64 = 96 << 20;
        let scratch = Scratch::new("space", None).unwrap();
        let setup = Setup {
            checkpoint_bytes: 8 << 20,
            space_reserve_bytes: RESERVE,
            segment_bytes: 8 << 20,
            history_slots: 16,
            ..setup(FlushMethod::Sync)
        };
        let mut lone = Lone::open(scratch.path(), &setup).unwrap();
        fill(&mut lone, KEYS, LEN, &mut |_| {}).unwrap();
        let (mut random, mut left, mut most) = (Random(7), 4 * KEYS, 0);
        let mut next = |lone: &Lone| {
            most = most.max(lone.node().log().file_bytes());
            left = left.checked_sub(1)?;
            Some(Operation::Put { key: random.below(KEYS), len: LEN })
        };
        lone.drive(16, &mut next, &mut |_| {}).unwrap();
        let disk = lone.node().status().disk;
        let live = KEYS * LEN as u64;
        assert!((live..live + live / 50).contains(&disk.live_bytes), "{disk:?}");
        assert!(disk.copied_bytes > 0, "segments were copied together: {disk:?}");
        assert!(most <= live * 13 / 10 + RESERVE, "{most} bytes of files, {live} live");
        assert!(disk.wanted_bytes <= live * 13 / 10 + RESERVE);
    }
}
