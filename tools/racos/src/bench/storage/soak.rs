//! A store that is read and written for long, minute by minute, while checkpoints are written and
//! segments reclaimed.

use super::keys::{Random, fill, setup};
use super::lone::{Lone, Operation, Setup, note};
use crate::exit::Failure;
use crate::output;
use hdrhistogram::Histogram;
use racos_engine::runtime::usage;
use racos_storage::device::FlushMethod;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Bytes of log between checkpoints: several a minute.
const CHECKPOINT_BYTES: u64 = 64 << 20;
/// Memory for fragments, less than the store: reads reach the disk.
const CACHE_BYTES: usize = 32 << 20;

#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub minutes: f64,
    pub keys: u64,
    pub len: usize,
    /// Operations under way, half of them reads.
    pub under_way: usize,
    pub reserve_bytes: u64,
    pub flush: FlushMethod,
}

/// One minute, or what there was of it.
#[derive(Debug, Clone, Copy)]
pub struct Minute {
    pub number: u64,
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub memory_bytes: u64,
    pub file_bytes: u64,
    pub live_bytes: u64,
    pub checkpoints: u64,
    pub copied_bytes: u64,
}

/// Runs the load on a fresh node; `told` is given each minute as it ends.
pub fn soak(dir: &Path, load: &Load, told: &mut dyn FnMut(&Minute)) -> Result<(), Failure> {
    let tuned = Setup {
        cache_bytes: CACHE_BYTES,
        checkpoint_bytes: CHECKPOINT_BYTES,
        space_reserve_bytes: load.reserve_bytes,
        ..setup(load.flush)
    };
    let mut lone = Lone::open(dir, &tuned)?;
    fill(&mut lone, load.keys, load.len, &mut |_| {})?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let clock = Instant::now();
    let mut number = 0;
    while clock.elapsed().as_secs_f64() < load.minutes * 60.0 {
        number += 1;
        let end = (number as f64 * 60.0).min(load.minutes * 60.0);
        let began = clock.elapsed().as_secs_f64();
        let before = lone.node().status();
        let mut times = Histogram::<u64>::new(3).expect("three digits are a valid precision");
        let mut next = |_: &Lone| {
            let (key, len) = (random.below(load.keys), load.len);
            let read = random.below(2) == 0;
            let over = clock.elapsed().as_secs_f64() >= end;
            (!over).then_some(match read {
                true => Operation::Get { key, len },
                false => Operation::Put { key, len },
            })
        };
        lone.drive(load.under_way, &mut next, &mut |ended| note(&mut times, ended.ns))?;
        let took = clock.elapsed().as_secs_f64() - began;
        let after = lone.node().status();
        let us = |share: f64| times.value_at_quantile(share) as f64 / 1e3;
        told(&Minute {
            number,
            per_second: times.len() as f64 / took,
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            memory_bytes: usage().memory_bytes,
            file_bytes: after.disk.file_bytes,
            live_bytes: after.disk.live_bytes,
            checkpoints: after.disk.checkpoints - before.disk.checkpoints,
            copied_bytes: after.disk.copied_bytes - before.disk.copied_bytes,
        });
    }
    Ok(())
}

impl Minute {
    pub fn to_json(self) -> Value {
        json!({
            "minute": self.number,
            "per_second": self.per_second,
            "p50_us": self.p50_us,
            "p99_us": self.p99_us,
            "p999_us": self.p999_us,
            "memory_bytes": self.memory_bytes,
            "file_bytes": self.file_bytes,
            "live_bytes": self.live_bytes,
            "checkpoints": self.checkpoints,
            "copied_bytes": self.copied_bytes,
        })
    }

    pub fn to_text(self) -> String {
        format!(
            "minute {}: {:.0} a second, p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us; memory {}, files \
             {}, live {}; {} checkpoints, {} copied",
            self.number,
            self.per_second,
            self.p50_us,
            self.p99_us,
            self.p999_us,
            output::bytes(self.memory_bytes),
            output::bytes(self.file_bytes),
            output::bytes(self.live_bytes),
            self.checkpoints,
            output::bytes(self.copied_bytes),
        )
    }
}
