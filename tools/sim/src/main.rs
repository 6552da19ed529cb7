//! `racos-sim`: many seeds, or one of them again with everything that happens.

use clap::{Parser, Subcommand};
use racos_protocol::{Fast, Policy};
use racos_sim::mutants;
use racos_sim::plan::CODES;
use racos_sim::run::run_idle;
use racos_sim::swarm::{Totals, run_many};
use racos_sim::world::Load;
use racos_sim::{Fixed, run};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Runs whole racos clusters over simulated packets, disks and clocks, with faults drawn from a seed.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many seeds to run, from --seed on if it is given, else from a random one.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed; without --seeds the only one.
    #[arg(long)]
    seed: Option<u64>,
    /// Threads, each of which runs whole clusters.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Nodes of every cluster; drawn if not given. Goes with --f and --k.
    #[arg(long, requires = "f", requires = "k")]
    nodes: Option<usize>,
    /// Nodes that may be lost.
    #[arg(long, requires = "nodes")]
    f: Option<usize>,
    /// Fragments that make a value.
    #[arg(long, requires = "nodes")]
    k: Option<usize>,
    /// No faults.
    #[arg(long)]
    calm: bool,
    /// Transactions, leases and watches through the nodes' doors, besides the clients.
    #[arg(long)]
    guest: bool,
    /// Members join and leave, and k changes, while the cluster works.
    #[arg(long)]
    changes: bool,
    /// Nodes move to other addresses in every run, not in some.
    #[arg(long)]
    moves: bool,
    /// Minutes instead of seconds, with as many faults and operations: timers of every length come into it.
    #[arg(long, conflicts_with = "guest")]
    long: bool,
    /// Nodes of so many lanes, each with some of the keys, which crash, freeze and lose power as one.
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=64))]
    #[arg(conflicts_with_all = ["nodes", "calm", "guest", "changes", "moves", "long", "fast", "trace"])]
    lanes: Option<u8>,
    /// Who fills the slots: owner or queue.
    #[arg(long, default_value_t = Policy::OwnerSlots)]
    policy: Policy,
    /// How many proposals decide the slot of a large value: sup+f or f*; drawn if not given.
    #[arg(long)]
    fast: Option<Fast>,
    /// Print everything that happens; needs a single --seed.
    #[arg(long)]
    trace: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Leaves every guard out once and tells which test notices. Needs the feature `mutants`.
    Mutants {
        /// Threads.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Try so many seeds never used before for each, instead of the kept ones.
        #[arg(long)]
        fresh: Option<u64>,
        /// Only the guard of this name.
        #[arg(long)]
        only: Option<String>,
    },
    /// How fast a calm cluster without clients is simulated, for clusters drawn from some seeds.
    Idle {
        /// Simulated seconds of each.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 10)]
        seeds: u64,
        /// Disks are not gone over; as a rule they are within seconds, so that every run has some of it.
        #[arg(long)]
        no_scrub: bool,
    },
}

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let options = Options::parse();
    match options.command {
        Some(Command::Mutants { jobs, fresh, only }) => {
            return all_mutants(jobs, fresh, only.as_deref());
        }
        Some(Command::Idle { seconds, seed, seeds, no_scrub }) => {
            return idle(seconds, seed, seeds, !no_scrub);
        }
        None => {}
    }
    if let Some(lanes) = options.lanes {
        return of_lanes(&options, lanes);
    }
    let code = options.nodes.zip(options.f).zip(options.k).map(|((n, f), k)| (n, f, k));
    if let Some((n, f, k)) = code
        && (k == 0 || n < 2 * f + k || n > 9)
    {
        eprintln!(
            "racos-sim: ({n},{f},{k}) cannot be simulated: n must be at least 2f+k, and at most 9, \
             and k at least 1; for example {CODES:?}"
        );
        return ExitCode::from(2);
    }
    let Options { calm, guest, changes, moves, policy, fast, long, .. } = options;
    if policy == Policy::Queue && (guest || changes || moves) {
        eprintln!(
            "racos-sim: --policy queue has neither changes of the members nor the nodes' doors: leave \
             --guest, --changes and --moves out"
        );
        return ExitCode::from(2);
    }
    let moves = moves.then_some(true);
    let fixed = Fixed { code, calm, guest, changes, policy, fast, long, moves };
    match (options.seed, options.seeds) {
        (Some(seed), None | Some(1)) => one(seed, &fixed, options.trace),
        (_, _) if options.trace => {
            eprintln!("racos-sim: --trace needs one --seed");
            ExitCode::from(2)
        }
        (first, count) => {
            let first = first.unwrap_or_else(|| racos_engine::runtime::random_u128() as u64 >> 16);
            many(first, count.unwrap_or(100), &options, &fixed)
        }
    }
}

/// Seeds of nodes with several lanes, one after the other.
fn of_lanes(options: &Options, lanes: u8) -> ExitCode {
    let drawn = || racos_engine::runtime::random_u128() as u64 >> 16;
    let first = options.seed.unwrap_or_else(drawn);
    let count = options.seeds.unwrap_or(if options.seed.is_some() { 1 } else { 100 });
    let (last, policy) = (first.wrapping_add(count - 1), options.policy);
    println!("seeds {first} to {last}, of {lanes} lanes, --policy {policy}");
    let (mut failed, mut sum, mut hash) = (0, [0; 7], 0u64);
    for seed in (0..count).map(|after| first.wrapping_add(after)) {
        match racos_sim::lanes::run(seed, lanes, policy) {
            Ok(report) => {
                hash = hash.wrapping_add(report.hash(seed));
                let of = [report.done, report.failed, report.crashes, report.freezes];
                let more = [report.blackouts, report.strays, report.dropped];
                sum.iter_mut().zip(of.into_iter().chain(more)).for_each(|(sum, one)| *sum += one);
            }
            Err(what) => {
                failed += 1;
                println!("seed {seed}: {what}");
                println!(
                    "  again: cargo run --release --bin racos-sim -- --lanes {lanes} --seed {seed}"
                );
            }
        }
    }
    let [done, unknown, crashes, freezes, blackouts, strays, dropped] = sum;
    println!("operations          {done} succeeded, {unknown} did not");
    println!(
        "nodes               {crashes} crashes, {freezes} freezes, {blackouts} blackouts of all"
    );
    println!("datagrams           {strays} to another lane too, {dropped} dropped as another's");
    println!("hash of all runs    {hash:016x}");
    println!("seeds: {} passed, {failed} failed", count - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn all_mutants(jobs: usize, fresh: Option<u64>, only: Option<&str>) -> ExitCode {
    if !mutants::are_built_in() {
        eprintln!(
            "racos-sim: the guards of this build cannot be left out; run \
             cargo run --release -p racos-sim --features mutants -- mutants"
        );
        return ExitCode::from(2);
    }
    println!("{}", mutants::heading());
    let verdicts = mutants::judge_all(jobs, fresh, only, |verdict| println!("{verdict}"));
    let caught = verdicts.iter().filter(|verdict| verdict.is_caught()).count();
    let missed = verdicts.len() - caught;
    println!("mutants: {caught} caught, {missed} missed");
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn idle(seconds: u64, first: u64, seeds: u64, scrubs: bool) -> ExitCode {
    let (started, mut sum) = (Instant::now(), Load::default());
    for seed in first..first + seeds {
        match run_idle(seed, &Fixed::default(), seconds * 1_000_000_000, scrubs) {
            Ok(load) => sum.add(&load),
            Err(what) => {
                println!("seed {seed}: {what}");
                return ExitCode::FAILURE;
            }
        }
    }
    let (virtual_s, real) = (seconds * seeds, started.elapsed());
    println!("idle clusters       {seeds}, of seeds {first} to {}", first + seeds - 1);
    println!("load                {sum}");
    println!("a simulated second  {} handled", sum.handled / virtual_s);
    println!(
        "real time           {:.1} s, {:.0} simulated seconds a second",
        real.as_secs_f64(),
        virtual_s as f64 / real.as_secs_f64()
    );
    ExitCode::SUCCESS
}

fn one(seed: u64, fixed: &Fixed, trace: bool) -> ExitCode {
    let mut totals = Totals::default();
    totals.add(seed, run(seed, fixed, trace));
    finish(&totals, fixed)
}

fn many(first: u64, count: u64, options: &Options, fixed: &Fixed) -> ExitCode {
    println!("seeds {first} to {}", first.wrapping_add(count - 1));
    let started = Instant::now();
    let (mut told, mut failed) = (started, 0);
    let totals = run_many(first, count, options.jobs, fixed, |totals| {
        for failure in &totals.failures[failed..] {
            eprintln!("seed {}: {}", failure.seed, failure.what);
        }
        failed = totals.failures.len();
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            eprintln!("{}", totals.progress());
        }
        true
    });
    let real = started.elapsed();
    let ratio = totals.virtual_ns() as f64 / real.as_nanos() as f64;
    println!(
        "real time           {:.1} s, {ratio:.0} simulated seconds a second",
        real.as_secs_f64()
    );
    finish(&totals, fixed)
}

/// The account, and how to run again what failed.
fn finish(totals: &Totals, fixed: &Fixed) -> ExitCode {
    println!("{totals}");
    let code = fixed.code.map(|(n, f, k)| format!(" --nodes {n} --f {f} --k {k}"));
    let code = code.unwrap_or_default()
        + if fixed.calm { " --calm" } else { "" }
        + if fixed.guest { " --guest" } else { "" }
        + if fixed.changes { " --changes" } else { "" }
        + if fixed.moves == Some(true) { " --moves" } else { "" }
        + if fixed.long { " --long" } else { "" }
        + if fixed.policy == Policy::Queue { " --policy queue" } else { "" }
        + &fixed.fast.map(|fast| format!(" --fast '{fast}'")).unwrap_or_default();
    for failure in &totals.failures {
        println!("seed {}: {}", failure.seed, failure.what);
        println!(
            "  again: cargo run --release --bin racos-sim -- --seed {}{code} --trace",
            failure.seed
        );
    }
    println!("seeds: {} passed, {} failed", totals.passed, totals.failures.len());
    if totals.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
