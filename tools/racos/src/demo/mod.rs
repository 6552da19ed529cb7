//! `racos demo`: what racos promises, shown on five processes on this machine.
//!
//! Invariant: every claim on the screen was checked in this run; whatever happens, nothing is left
//! running and, unless asked for, nothing is left on disk.

mod files;
mod load;
mod steps;

pub use load::pattern;

use crate::exit::{Outcome, failed};
use crate::node::stop_flag;
use crate::output;
use crate::scratch::Scratch;
use clap::Args;
use indicatif::ProgressBar;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Show, on five processes on this machine, that racos keeps its promises (about a minute).
#[derive(Args, Debug)]
#[command(after_help = "Stores files of the current directory on five nodes, kills and freezes \
                        nodes under load, kills all of them at once, and checks every byte.\n\
                        Exit status 0 if every check passed, 1 if not.")]
pub struct DemoArgs {
    /// Where to take files from.
    #[arg(long, value_name = "DIR", default_value = ".")]
    files: PathBuf,
    /// Keep the cluster's data in this directory, which must not exist; otherwise it is removed.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Most failed checks that are told one by one.
const FAILURES_SHOWN_MAX: usize = 20;
/// Steps of the demo.
const STEPS: u64 = 9;

/// The checks so far, and how they are shown.
pub struct Show {
    passed: u64,
    failures: Vec<String>,
    rows: Vec<Vec<String>>,
    bar: ProgressBar,
    step: String,
    failures_before: usize,
    since: Instant,
    stop: Arc<AtomicBool>,
}

impl Show {
    /// Begins a step.
    fn begin(&mut self, step: &str) {
        self.step = step.to_string();
        self.failures_before = self.failures.len();
        self.since = Instant::now();
        self.bar.set_message(step.to_string());
    }

    /// Tells how far the step is.
    fn tell(&self, detail: &str) {
        self.bar.set_message(format!("{}: {detail}", self.step));
    }

    /// Counts a check; `differs` says what differed if it failed.
    fn check(&mut self, holds: bool, differs: impl FnOnce() -> String) {
        if holds {
            self.passed += 1;
        } else {
            let text = format!("{}: {}", self.step, differs());
            self.failures.push(text);
        }
    }

    /// Ends the step; `detail` goes into the closing table.
    fn end(&mut self, detail: &str) {
        let is_good = self.failures.len() == self.failures_before;
        let verdict = if is_good { "ok" } else { "FAILED" };
        let seconds = format!("{:.1} s", self.since.elapsed().as_secs_f64());
        self.bar.inc(1);
        let text = format!("{verdict:6} {:8} {}: {detail}", seconds, self.step);
        self.bar.suspend(|| output::line(&text));
        self.rows.push(vec![self.step.clone(), verdict.into(), seconds, detail.into()]);
    }

    /// An error once the user has asked to stop.
    fn go_on(&self) -> Outcome {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(failed("stopped")),
            false => Ok(()),
        }
    }
}

pub fn run(args: &DemoArgs) -> Outcome {
    let stop = stop_flag()?;
    let scratch = Scratch::new("demo", args.keep.as_deref())?;
    let mut show = Show {
        passed: 0,
        failures: Vec::new(),
        rows: Vec::new(),
        bar: output::step_bar(STEPS),
        step: String::new(),
        failures_before: 0,
        since: Instant::now(),
        stop,
    };
    let begun = Instant::now();
    let result = steps::all(&mut show, scratch.path(), &args.files);
    show.bar.finish_and_clear();
    if let Err(failure) = result {
        show.failures.push(format!("{}: {}", show.step, failure.text));
    }
    drop(scratch);
    let heading = ["step", "result", "time", "what was seen"].map(String::from).to_vec();
    let rows: Vec<_> = std::iter::once(heading).chain(show.rows.clone()).collect();
    output::line(&format!("\n{}", output::table(&rows)));
    for failure in show.failures.iter().take(FAILURES_SHOWN_MAX) {
        output::line(&format!("FAILED {failure}"));
    }
    let (passed, count) = (show.passed, show.failures.len());
    output::line(&format!("took {:.0} s", begun.elapsed().as_secs_f64()));
    output::line(&format!("demo: {passed} checks passed, {count} failed"));
    match show.failures.first() {
        None => Ok(()),
        Some(first) => Err(failed(format!("the demo failed: {first}"))),
    }
}
