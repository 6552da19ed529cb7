//! Many seeds on several threads, and what they add up to.
//!
//! Purpose: each thread runs whole worlds, one at a time; nothing is shared between worlds, so that
//! what a seed gives does not depend on how many run beside it.

use crate::plan::{Fixed, KINDS, Kind};
use crate::run::{Report, run};
use crate::world::place;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

/// A seed that failed, and why.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub what: String,
}

/// What many runs did.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    pub passed: u64,
    pub failures: Vec<Failure>,
    sum: Report,
    /// Of all runs that passed, in whatever order they ended: two builds that give the same for the same
    /// seeds do the same in each of them.
    hash: u64,
}

impl Totals {
    /// Counts one run in.
    pub fn add(&mut self, seed: u64, result: Result<Report, String>) {
        match result {
            Err(what) => self.failures.push(Failure { seed, what }),
            Ok(report) => {
                self.passed += 1;
                self.hash = self.hash.wrapping_add(report.hash(seed));
                self.sum.add(&report);
            }
        }
    }

    /// Virtual time of all runs that passed, in nanoseconds.
    pub fn virtual_ns(&self) -> u64 {
        self.sum.virtual_ns
    }

    /// Values that were re-coded.
    pub fn recoded(&self) -> u64 {
        self.sum.recoded[0]
    }

    /// Faults of this kind.
    pub fn faults(&self, kind: Kind) -> u64 {
        self.sum.faults[place(kind)]
    }

    /// One line on how far a long run is.
    pub fn progress(&self) -> String {
        let (passed, failed) = (self.passed, self.failures.len());
        let (hours, slots) = (hours(self.sum.virtual_ns), self.sum.slots);
        format!("{passed} passed, {failed} failed, {hours} simulated hours, {slots} slots")
    }
}

/// Hours with two digits.
fn hours(ns: u64) -> String {
    let hundredths = ns / 36_000_000_000;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

impl fmt::Display for Totals {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = &self.sum;
        writeln!(out, "simulated hours     {}", hours(sum.virtual_ns))?;
        let (longest_ms, seed) = (sum.settled_ns / 1_000_000, sum.seed);
        writeln!(out, "longest to settle   {longest_ms} ms (seed {seed})")?;
        writeln!(out, "events              {}", sum.events)?;
        writeln!(out, "load                {}", sum.load)?;
        writeln!(out, "slots committed     {}, {} with a batch", sum.slots, sum.batches)?;
        writeln!(
            out,
            "decisions at nodes  {} fast, {} slow, {} told, {} null, {} skipped",
            sum.fast, sum.slow, sum.told, sum.null, sum.skipped
        )?;
        writeln!(out, "values left narrow  {} when faults stopped", sum.narrow)?;
        writeln!(
            out,
            "operations          {} puts, {} gets, {} deletes, {} lists; {} failed",
            sum.puts, sum.gets, sum.deletes, sum.lists, sum.failed
        )?;
        writeln!(
            out,
            "packets             {} sent, {} lost, {} repeated, {} damaged, {} cut, {} unheard",
            sum.net.sent,
            sum.net.lost,
            sum.net.duplicated,
            sum.net.damaged,
            sum.net.cut,
            sum.net.unheard
        )?;
        let upkeep = sum.upkeep;
        writeln!(
            out,
            "starts of nodes     {}, {} of them from a checkpoint",
            sum.boots, upkeep.starts_from_one
        )?;
        writeln!(
            out,
            "checkpoints         {}; taken from peers {}; segments given back {}, {} bytes copied",
            upkeep.checkpoints, upkeep.jumps, upkeep.segments_back, upkeep.copied_bytes
        )?;
        writeln!(
            out,
            "fragments           {} made again, {} had from nodes that had kept them",
            upkeep.repaired, upkeep.from_hosts
        )?;
        let [recoded, void] = sum.recoded;
        writeln!(out, "re-coded            {recoded} values; {void} came too late")?;
        let faults = KINDS.iter().zip(sum.faults);
        let faults: Vec<String> = faults.map(|(kind, count)| format!("{kind:?} {count}")).collect();
        writeln!(out, "faults              {}", faults.join(", "))?;
        writeln!(out, "histories undecided {}", sum.undecided)?;
        write!(out, "hash of all runs    {:016x}", self.hash)
    }
}

/// Runs `count` seeds from `first` on. `each` is told of every result as it comes, in no order;
/// false ends it early.
pub fn run_many(
    first: u64,
    count: u64,
    jobs: usize,
    fixed: &Fixed,
    mut each: impl FnMut(&Totals) -> bool,
) -> Totals {
    let next = AtomicU64::new(0);
    let (sender, receiver) = mpsc::sync_channel(64);
    let mut totals = Totals::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let seed = first.wrapping_add(index);
                    if index >= count || sender.send((seed, run(seed, fixed, false))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (seed, result) in receiver.iter() {
            totals.add(seed, result);
            if !each(&totals) {
                break;
            }
        }
        drop(receiver);
    });
    totals.failures.sort_by_key(|failure| failure.seed);
    totals
}
