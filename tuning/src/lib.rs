//! Measures this host's disk and looks at its cores, chooses a profile, and says why.
//!
//! Purpose: `racos tune` prints the `[tuning]` section of a node's configuration; local clusters are
//! started with it.
//! Invariant: what is chosen follows from what was measured by the rules in [`choose`] alone, so
//! that a person can check it.
#![forbid(unsafe_code)]

mod freed;
mod measure;

pub use freed::keep_freed_memory;
pub use measure::{measure, reads_here};
pub use racos_storage::device::FlushMethod;
pub use racos_storage::device::waiting::PollMode;

use std::fmt::Write as _;

/// A way to flush and to wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub flush: FlushMethod,
    /// Look again for a moment, giving the CPU away, before sleeping.
    pub adaptive: bool,
}

impl Way {
    /// What is safe and good enough everywhere.
    pub const DEFAULT: Way = Way { flush: FlushMethod::Linked, adaptive: false };
    /// All that are measured, the default first. A flush in the caller leaves nothing to wait for.
    pub const ALL: [Way; 5] = [
        Way::DEFAULT,
        Way { flush: FlushMethod::Linked, adaptive: true },
        Way { flush: FlushMethod::Dsync, adaptive: false },
        Way { flush: FlushMethod::Dsync, adaptive: true },
        Way { flush: FlushMethod::Sync, adaptive: false },
    ];

    fn describe(self) -> String {
        let wait = if self.adaptive { "looking again before sleeping" } else { "sleeping" };
        format!("{} flushes, {wait}", flush_name(self.flush))
    }
}

/// Durable writes of 4 KiB into blocks written before, one way, all writers together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    pub way: Way,
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// What was found and what follows from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    pub poll: PollMode,
    pub flush: FlushMethod,
    /// CPUs to pin the node and the kernel's flush workers to, if it spins.
    pub cpus: Option<(usize, usize)>,
    pub reasons: Vec<String>,
}

/// How long an adaptive node goes on looking, unless its configuration says: somewhat longer than a
/// flush takes, so that a node with a flush under way need not be woken for it.
pub const SPIN_US_DEFAULT: u64 = 150;
/// A way must be this much quicker than the default to be chosen over it: figures vary from run to
/// run.
const CLEARLY_QUICKER: f64 = 1.1;

/// CPUs of a host whose only node may have one for itself.
const OWN_CPU_MIN: usize = 4;

/// Chooses from measurements, the CPUs this process may use, and the number of nodes (and other busy
/// programs) that share them.
pub fn choose(measured: &[Measured], cpus: usize, nodes_here: usize) -> Profile {
    let nodes = nodes_here.max(1);
    if nodes == 1 && cpus >= OWN_CPU_MIN {
        return own_cpu(cpus);
    }
    let mut reasons = vec![format!(
        "{cpus} CPUs for {nodes} node(s): a node must sleep when it has nothing to do"
    )];
    let way = choose_way(measured, cpus < nodes + 2, &mut reasons);
    let spin_ns = SPIN_US_DEFAULT * 1000;
    let poll = if way.adaptive { PollMode::Adaptive { spin_ns } } else { PollMode::Blocking };
    Profile { poll, flush: way.flush, cpus: None, reasons }
}

fn own_cpu(cpus: usize) -> Profile {
    let (node, workers) = (cpus - 1, 0);
    let reasons = vec![
        format!("{cpus} CPUs for one node: one can be its own"),
        format!(
            "the node spins on CPU {node}: the kernel's flush workers are kept on CPU {workers}, \
             because a spinning thread starves them"
        ),
    ];
    let cpus = Some((node, workers));
    Profile { poll: PollMode::Busy, flush: FlushMethod::Linked, cpus, reasons }
}

/// The quickest way, if it is clearly quicker than the default. A flush in the caller stalls the
/// node's loop: only `few_cpus` make up for that.
fn choose_way(measured: &[Measured], few_cpus: bool, reasons: &mut Vec<String>) -> Way {
    let default = measured.iter().find(|one| one.way == Way::DEFAULT);
    let allowed = |one: &&Measured| few_cpus || one.way.flush != FlushMethod::Sync;
    let best = measured.iter().filter(allowed).max_by(|a, b| a.per_second.total_cmp(&b.per_second));
    let (Some(default), Some(best)) = (default, best) else {
        reasons.push("nothing was measured: the default is safe everywhere".into());
        return Way::DEFAULT;
    };
    if best.per_second <= CLEARLY_QUICKER * default.per_second {
        reasons.push("no other way is clearly quicker than the default".into());
        return Way::DEFAULT;
    }
    reasons.push(format!(
        "{}: {:.0} durable writes a second, where the default makes {:.0}",
        best.way.describe(),
        best.per_second,
        default.per_second
    ));
    best.way
}

/// The name of a method in a node's configuration.
pub fn flush_name(method: FlushMethod) -> &'static str {
    match method {
        FlushMethod::Linked => "linked",
        FlushMethod::Dsync => "dsync",
        FlushMethod::Sync => "sync",
    }
}

impl Profile {
    /// The lines of the `[tuning]` section of a node's configuration, with the reasons as comments.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for reason in &self.reasons {
            let _ = writeln!(text, "# {reason}");
        }
        let (poll, spin_ns) = match self.poll {
            PollMode::Blocking => ("blocking", None),
            PollMode::Adaptive { spin_ns } => ("adaptive", Some(spin_ns)),
            PollMode::Busy => ("busy", None),
        };
        let _ = writeln!(text, "poll = \"{poll}\"");
        if let Some(spin_ns) = spin_ns {
            let _ = writeln!(text, "spin_us = {}", spin_ns / 1000);
        }
        let _ = writeln!(text, "flush = \"{}\"", flush_name(self.flush));
        if let Some((cpu, flush_cpu)) = self.cpus {
            let _ = writeln!(text, "cpu = {cpu}\nflush_cpu = {flush_cpu}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the order of [`Way::ALL`].
    fn rates(rates: [f64; 5]) -> Vec<Measured> {
        let of = |(way, per_second): (&Way, f64)| Measured {
            way: *way,
            per_second,
            p50_us: 1e6 / per_second,
            p99_us: 2e6 / per_second,
        };
        Way::ALL.iter().zip(rates).map(of).collect()
    }

    #[test]
    fn a_node_with_cpus_to_spare_spins_on_one_of_its_own() {
        let own = choose(&rates([1.0, 9.0, 9.0, 9.0, 9.0]), 8, 1);
        assert_eq!((own.poll, own.cpus), (PollMode::Busy, Some((7, 0))));
        assert_eq!(own.flush, FlushMethod::Linked, "a spinning thread starves the others");
    }

    #[test]
    fn another_way_must_be_clearly_quicker_than_the_default() {
        let chosen = |measured: [f64; 5], cpus| {
            let profile = choose(&rates(measured), cpus, 2);
            (profile.poll, profile.flush)
        };
        let adaptive = PollMode::Adaptive { spin_ns: 150_000 };
        let sleeping = PollMode::Blocking;
        assert_eq!(chosen([100.0, 105.0, 109.0, 90.0, 90.0], 2), (sleeping, FlushMethod::Linked));
        assert_eq!(chosen([100.0, 120.0, 109.0, 90.0, 90.0], 2), (adaptive, FlushMethod::Linked));
        assert_eq!(chosen([100.0, 90.0, 120.0, 140.0, 90.0], 2), (adaptive, FlushMethod::Dsync));
        assert_eq!(chosen([100.0, 90.0, 120.0, 40.0, 150.0], 2), (sleeping, FlushMethod::Sync));
        let stalls = chosen([100.0, 90.0, 120.0, 40.0, 150.0], 5);
        assert_eq!(stalls, (sleeping, FlushMethod::Dsync), "CPUs are not that few");
        assert_eq!(choose(&[], 2, 5).flush, FlushMethod::Linked);
    }

    #[test]
    fn the_profile_is_printed_as_configuration_with_its_reasons() {
        let text = choose(&rates([100.0, 90.0, 120.0, 140.0, 90.0]), 2, 5).to_toml();
        assert!(text.starts_with("# 2 CPUs for 5 node(s)"), "{text}");
        assert!(
            text.contains("\npoll = \"adaptive\"\nspin_us = 150\nflush = \"dsync\"\n"),
            "{text}"
        );
    }
}
