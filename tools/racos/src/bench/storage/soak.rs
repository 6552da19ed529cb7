//! A store that is read and written for long, minute by minute, while checkpoints are written and
//! segments reclaimed; and at the end, how that compares with what is asked.

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
/// Short ones: those ahead, spare, and kept for two marks are to fit the reserve.
const SEGMENT_BYTES: u32 = 16 << 20;
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

/// All of it, beside what is asked of it.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    /// Of all operations.
    pub p999_us: f64,
    pub first_p50_us: f64,
    pub memory_first_bytes: u64,
    pub memory_last_bytes: u64,
    /// p99 of the operations that ended while a segment was being copied, and of the others; `None`:
    /// there were too few of either.
    pub p99_us: Option<(f64, f64)>,
    pub copied_bytes: u64,
    pub checkpoints: u64,
    /// The most that the files took, for each byte that was live beyond the reserve.
    pub space: f64,
}

/// p99.9 is to stay below so many times the p50 of the first minute.
const P999_TIMES: f64 = 3.0;
/// p99 beside copying below so many times the p99 without.
const P99_TIMES: f64 = 1.5;
/// The last minute's memory below so many times the first's: else it is not flat.
const MEMORY_TIMES: f64 = 1.05;
/// Files below so many times what is live, the reserve aside.
const SPACE_TIMES: f64 = 1.3;
/// Operations from which on a p99 says something.
const P99_SAMPLES: u64 = 10_000;

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are a valid precision")
}

fn quantile_us(times: &Histogram<u64>, share: f64) -> f64 {
    times.value_at_quantile(share) as f64 / 1e3
}

/// Times of the whole run.
struct Whole {
    beside_copying: Histogram<u64>,
    others: Histogram<u64>,
}

impl Whole {
    fn verdict(&self, minutes: &[Minute], reserve_bytes: u64) -> Option<Verdict> {
        let (first, last) = (minutes.first()?, minutes.last()?);
        let mut all = self.others.clone();
        all.add(&self.beside_copying).expect("histograms that grow can be added");
        let is_enough = |times: &Histogram<u64>| times.len() >= P99_SAMPLES;
        let both = is_enough(&self.beside_copying) && is_enough(&self.others);
        let p99 = |times| quantile_us(times, 0.99);
        let space = |minute: &Minute| {
            minute.file_bytes.saturating_sub(reserve_bytes) as f64 / minute.live_bytes.max(1) as f64
        };
        Some(Verdict {
            p999_us: quantile_us(&all, 0.999),
            first_p50_us: first.p50_us,
            memory_first_bytes: first.memory_bytes,
            memory_last_bytes: last.memory_bytes,
            p99_us: both.then(|| (p99(&self.beside_copying), p99(&self.others))),
            copied_bytes: minutes.iter().map(|minute| minute.copied_bytes).sum(),
            checkpoints: minutes.iter().map(|minute| minute.checkpoints).sum(),
            space: minutes.iter().map(space).fold(0.0, f64::max),
        })
    }
}

/// Runs the load on a fresh node; `told` is given each minute as it ends. `None`: there was none.
pub fn soak(
    dir: &Path,
    load: &Load,
    told: &mut dyn FnMut(&Minute),
) -> Result<Option<Verdict>, Failure> {
    let tuned = Setup {
        cache_bytes: CACHE_BYTES,
        checkpoint_bytes: CHECKPOINT_BYTES,
        space_reserve_bytes: load.reserve_bytes,
        segment_bytes: SEGMENT_BYTES,
        ..setup(load.flush)
    };
    let mut lone = Lone::open(dir, &tuned)?;
    fill(&mut lone, load.keys, load.len, &mut |_| {})?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let clock = Instant::now();
    let mut number = 0;
    let mut whole = Whole { beside_copying: histogram(), others: histogram() };
    let mut minutes = Vec::new();
    while clock.elapsed().as_secs_f64() < load.minutes * 60.0 {
        number += 1;
        let end = (number as f64 * 60.0).min(load.minutes * 60.0);
        let began = clock.elapsed().as_secs_f64();
        let before = lone.node().status();
        let mut times = histogram();
        let mut next = |_: &Lone| {
            let (key, len) = (random.below(load.keys), load.len);
            let read = random.below(2) == 0;
            let over = clock.elapsed().as_secs_f64() >= end;
            (!over).then_some(match read {
                true => Operation::Get { key, len },
                false => Operation::Put { key, len },
            })
        };
        lone.drive(load.under_way, &mut next, &mut |ended| {
            note(&mut times, ended.ns);
            match ended.beside_copying {
                true => note(&mut whole.beside_copying, ended.ns),
                false => note(&mut whole.others, ended.ns),
            }
        })?;
        let took = clock.elapsed().as_secs_f64() - began;
        let after = lone.node().status();
        let us = |share: f64| quantile_us(&times, share);
        let minute = Minute {
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
        };
        told(&minute);
        minutes.push(minute);
    }
    Ok(whole.verdict(&minutes, load.reserve_bytes))
}

fn words(met: bool) -> &'static str {
    if met { "met" } else { "NOT MET" }
}

impl Verdict {
    fn p999_times(&self) -> f64 {
        self.p999_us / self.first_p50_us
    }

    fn memory_times(&self) -> f64 {
        self.memory_last_bytes as f64 / self.memory_first_bytes as f64
    }

    fn p99_times(&self) -> Option<f64> {
        self.p99_us.map(|(beside, without)| beside / without)
    }

    pub fn to_json(self) -> Value {
        json!({
            "p999_us": self.p999_us,
            "first_minute_p50_us": self.first_p50_us,
            "p999_to_first_p50": self.p999_times(),
            "p999_met": self.p999_times() <= P999_TIMES,
            "memory_first_bytes": self.memory_first_bytes,
            "memory_last_bytes": self.memory_last_bytes,
            "memory_flat": self.memory_times() <= MEMORY_TIMES,
            "p99_reclaiming_us": self.p99_us.map(|both| both.0),
            "p99_otherwise_us": self.p99_us.map(|both| both.1),
            "p99_ratio": self.p99_times(),
            "p99_met": self.p99_times().map(|times| times <= P99_TIMES),
            "space_to_live": self.space,
            "space_met": self.space <= SPACE_TIMES,
            "copied_bytes": self.copied_bytes,
            "checkpoints": self.checkpoints,
        })
    }

    pub fn to_text(self) -> String {
        let p99 = match (self.p99_us, self.p99_times()) {
            (Some((beside, without)), Some(times)) => format!(
                "p99 {beside:.0} us while a segment was copied, {without:.0} us otherwise: {times:.2} \
                 times, asked {P99_TIMES}: {}",
                words(times <= P99_TIMES)
            ),
            _ => {
                "p99 while a segment was copied and otherwise: too few operations of either".into()
            }
        };
        format!(
            "p99.9 of all {:.0} us, p50 of the first minute {:.0} us: {:.2} times, asked {P999_TIMES}: \
             {}\nmemory in the first minute {}, in the last {}: {:.3} times, asked flat: {}\n{p99}\n\
             files at most {:.2} times what is live, beyond the reserve, asked {SPACE_TIMES}: {}\n\
             {} checkpoints, {} copied",
            self.p999_us,
            self.first_p50_us,
            self.p999_times(),
            words(self.p999_times() <= P999_TIMES),
            output::bytes(self.memory_first_bytes),
            output::bytes(self.memory_last_bytes),
            self.memory_times(),
            words(self.memory_times() <= MEMORY_TIMES),
            self.space,
            words(self.space <= SPACE_TIMES),
            self.checkpoints,
            output::bytes(self.copied_bytes),
        )
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(number: u64, p50_us: f64, memory_bytes: u64) -> Minute {
        Minute {
            number,
            per_second: 1000.0,
            p50_us,
            p99_us: 0.0,
            p999_us: 0.0,
            memory_bytes,
            file_bytes: 700,
            live_bytes: 400,
            checkpoints: 2,
            copied_bytes: 3,
        }
    }

    #[test]
    fn a_run_is_judged_by_its_first_minute_and_by_what_went_beside_copying() {
        let mut whole = Whole { beside_copying: histogram(), others: histogram() };
        (0..P99_SAMPLES).for_each(|_| note(&mut whole.others, 200_000));
        let minutes = [minute(1, 100.0, 1000), minute(2, 900.0, 1051)];
        let verdict = whole.verdict(&minutes, 300).unwrap();
        assert_eq!((verdict.p99_us, verdict.p99_times()), (None, None), "nothing was copied");
        (0..P99_SAMPLES).for_each(|_| note(&mut whole.beside_copying, 400_000));
        let verdict = whole.verdict(&minutes, 300).unwrap();
        let json = verdict.to_json();
        assert!((verdict.p999_times() - 4.0).abs() < 0.01 && json["p999_met"] == false);
        assert!((verdict.p99_times().unwrap() - 2.0).abs() < 0.01 && json["p99_met"] == false);
        assert!(json["memory_flat"] == false && json["space_met"] == true);
        assert_eq!((verdict.checkpoints, verdict.copied_bytes, verdict.space), (4, 6, 1.0));
        let text = verdict.to_text();
        assert_eq!(text.matches("NOT MET").count(), 3, "{text}");
        let calm = whole.verdict(&[minute(1, 150.0, 1000), minute(2, 9.0, 1049)], 300).unwrap();
        assert_eq!(calm.to_text().matches("NOT MET").count(), 1, "{}", calm.to_text());
        assert!(whole.verdict(&[], 300).is_none());
    }
}
