//! `racos bench`: how fast a cluster is, and what that costs.
//!
//! Closed loop: each client has one operation under way and begins the next when it ends. All
//! clients share one thread (or `--threads`) and one socket, so that the load takes little of the
//! machine that the nodes run on too.
//!
//! Invariant: what is measured is checked: each value read must be one that was written under that
//! key; operations that fail are counted and are no throughput.

mod codec;
mod etcd;
mod fault;
mod report;
mod storage;
mod worker;

use crate::cluster::{Cluster, Plan};
use crate::config::{parse_flush, parse_poll};
use crate::connect::{Connect, Target};
use crate::exit::{Failure, Outcome, failed, usage};
use crate::node::stop_flag;
use crate::output;
use crate::scratch::Scratch;
use crate::tune::profile_here;
use clap::{Args, Subcommand, ValueEnum};
use fault::Fault;
use indicatif::ProgressBar;
use racos_engine::PollMode;
use racos_protocol::{Fast, Policy};
use report::{Report, Snapshot};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use worker::{Phase, Shared, Workload};

/// Measure a cluster: its own, on this machine, unless endpoints are given.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  racos bench --op put --value-size 1300 --clients 64\n  \
    racos bench --op get --value-size 133kb --clients 16 --seconds 10 --json\n  \
    racos bench --op mix --endpoint 10.0.0.1:7400 --cluster 1f2e3d4c5b6a7988\n  \
    racos bench --op put --clients 16 --fault kill:2\n  \
    racos bench codec\n  racos bench storage\n\n\
    Writes are acknowledged once they are flushed at a quorum. CPU is that of all nodes and of \
    this process. Exit status 1 if an operation failed or a value was wrong.")]
pub struct BenchArgs {
    #[command(subcommand)]
    part: Option<Part>,
    /// What to do.
    #[arg(long, value_enum, default_value_t = Kind::Put)]
    op: Kind,
    /// Bytes of a value (1300, 16k, 133kb, 1.3mb, ...).
    #[arg(long, value_name = "SIZE", value_parser = output::parse_bytes, default_value = "1300")]
    value_size: u64,
    /// Operations under way at once.
    #[arg(long, short, value_name = "COUNT", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    clients: u32,
    /// How long to measure.
    #[arg(long, short, default_value_t = 5.0)]
    seconds: f64,
    /// How long to run before.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    warm: f64,
    /// Different keys.
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    keys: u32,
    /// Of a mix, how many operations of 100 are reads.
    #[arg(long, value_name = "PERCENT", default_value_t = 50)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    read_percent: u32,
    /// Threads that share the clients.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Send everything to this endpoint (from 0) instead of spreading the clients over all.
    #[arg(long, value_name = "NUMBER")]
    pin: Option<usize>,
    /// Measure a second time after this has happened to the cluster: kill:NODE or freeze:NODE.
    #[arg(long, value_name = "FAULT", conflicts_with_all = ["endpoint", "pin"])]
    fault: Option<Fault>,
    /// Which API the load uses.
    #[arg(long, value_enum, default_value_t = Api::Native)]
    api: Api,
    /// With `--api etcd` and no endpoint: which server to start.
    #[arg(long, value_enum, default_value_t = etcd::ServerKind::Racos)]
    server: etcd::ServerKind,
    /// With `--api etcd`: watches of all keys, all of which must be told of every put.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100_000))]
    watchers: u32,
    /// With `--api etcd`: operations a second of all clients, instead of as many as they can.
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate)]
    rate: Option<f64>,
    /// One JSON object instead of lines for people.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    own: OwnArgs,
    #[command(flatten)]
    connect: Connect,
}

/// The cluster to start if no endpoint is given.
#[derive(Args, Debug)]
#[command(next_help_heading = "Own cluster")]
struct OwnArgs {
    /// Nodes.
    #[arg(long, value_name = "N", default_value_t = 5)]
    nodes: usize,
    /// Nodes that may be down at the same time.
    #[arg(long, default_value_t = 1)]
    f: usize,
    /// Data fragments of a value; N >= 2F + K.
    #[arg(long, default_value_t = 3)]
    k: usize,
    /// Who fills the slots: owner or queue.
    #[arg(long, default_value_t = Policy::OwnerSlots)]
    policy: Policy,
    /// How many equal proposals decide a large value's slot at once: sup+f, or f*, the fewest that can.
    #[arg(long, default_value_t = Fast::Support)]
    fast: Fast,
    /// Independent lanes of each node.
    #[arg(long, value_name = "L", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=64))]
    lanes: u8,
    /// Log files of each node written with zeros before measuring [default: what the load will
    /// need, at most 4g].
    #[arg(long, value_name = "SIZE", value_parser = output::parse_bytes)]
    prepare: Option<u64>,
    /// Memory for fragments kept after use, each node.
    #[arg(long, value_name = "SIZE", value_parser = output::parse_bytes, default_value = "128m")]
    cache: u64,
    /// How the nodes wait: blocking, adaptive or busy [default: measured, as by `racos tune`].
    #[arg(long)]
    poll: Option<String>,
    /// Microseconds that an adaptive node goes on looking before it sleeps.
    #[arg(long, value_name = "MICROSECONDS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    spin_us: Option<u64>,
    /// How the nodes flush: linked, dsync or sync [default: measured, as by `racos tune`].
    #[arg(long)]
    flush: Option<String>,
    /// Own slots in flight, each node.
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    own_slots: u32,
    /// Values from this size on are stored before they get a slot [default: as of a node].
    #[arg(long, value_name = "KIB")]
    store_first_kib: Option<u32>,
    /// Keep data in this new directory instead of a temporary one.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

impl OwnArgs {
    /// The `[tuning]` lines of the nodes: as asked, the rest as measured.
    fn tuning(&self, dir: &Path) -> Result<String, Failure> {
        let threads = (self.nodes * usize::from(self.lanes)).min(64);
        let mut profile = match (&self.poll, &self.flush) {
            (Some(_), Some(_)) => racos_tuning::choose(&[], 1, threads),
            _ => profile_here(dir, threads),
        };
        let spin_us = self.spin_us.unwrap_or(racos_tuning::SPIN_US_DEFAULT);
        if let Some(poll) = &self.poll {
            profile.poll = parse_poll(poll, spin_us)
                .ok_or_else(|| usage("--poll: blocking, adaptive or busy"))?;
        } else if let PollMode::Adaptive { spin_ns } = &mut profile.poll {
            *spin_ns = spin_us * 1000;
        }
        if let Some(flush) = &self.flush {
            profile.flush =
                parse_flush(flush).ok_or_else(|| usage("--flush: linked, dsync or sync"))?;
        }
        profile.reasons.clear();
        let mut lines = format!("{}own_slots_in_flight = {}\n", profile.to_toml(), self.own_slots);
        if let Some(kib) = self.store_first_kib {
            lines += &format!("store_first_kib = {kib}\n");
        }
        Ok(lines)
    }
}

/// How clients talk to the servers.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    Native,
    Etcd,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "give operations per second".to_string())?;
    let is_sensible = (0.1..=1e6).contains(&rate);
    is_sensible.then_some(rate).ok_or_else(|| "from 0.1 to 1000000".to_string())
}

#[derive(Subcommand, Debug)]
enum Part {
    Codec(codec::CodecArgs),
    Storage(storage::StorageArgs),
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Put,
    Get,
    Mix,
}

/// Bytes of a log segment of an own cluster.
const SEGMENT_MIB: u64 = 64;
const PREPARE_MAX: u64 = 4 << 30;
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

pub fn run(args: &BenchArgs) -> Outcome {
    match &args.part {
        Some(Part::Codec(codec)) => return codec::run(codec),
        Some(Part::Storage(storage)) => return storage::run(storage),
        None => {}
    }
    for (name, value) in [("--seconds", args.seconds), ("--warm", args.warm)] {
        if !(0.0..=1e6).contains(&value) || (name == "--seconds" && value < 0.01) {
            return Err(usage(format!("{name} {value}: give a number of seconds")));
        }
    }
    if args.value_size > 128 << 20 {
        return Err(usage("--value-size: at most 128 MiB"));
    }
    let stop = stop_flag()?;
    let bar = output::step_bar(0);
    if args.api == Api::Etcd {
        if args.fault.is_some() {
            return Err(usage("--fault: with --api native only"));
        }
        if args.own.policy == Policy::Queue {
            return Err(usage("--policy queue: with --api native only"));
        }
        if args.own.lanes > 1 {
            return Err(usage("--lanes: with --api native only"));
        }
        return etcd::run(args, &stop, &bar);
    }
    if let Some(fault) = args.fault {
        return fault::run(args, fault, &stop, &bar);
    }
    let result = if args.connect.endpoint.is_empty() {
        with_own_cluster(args, &stop, &bar)
    } else {
        measure(args, &args.connect.target()?, None, &stop, &bar)
    };
    bar.finish_and_clear();
    let report = result?;
    if args.json {
        output::line(&report.to_json().to_string());
    } else {
        output::line(report.to_text().trim_end());
    }
    match report.errors() {
        0 => Ok(()),
        errors => Err(failed(format!("{errors} operations failed: {}", report.first_error()))),
    }
}

fn with_own_cluster(
    args: &BenchArgs,
    stop: &Arc<AtomicBool>,
    bar: &ProgressBar,
) -> Result<Report, Failure> {
    let own = &args.own;
    let prepare = own.prepare.unwrap_or_else(|| volume(args));
    on_own_cluster(own, prepare, None, bar, |cluster| {
        measure(args, &cluster.target, None, stop, bar)
    })
}

/// Starts the cluster, measures, stops it. `prepare`: bytes of log files that each node writes with
/// zeros first.
fn on_own_cluster<T>(
    own: &OwnArgs,
    prepare: u64,
    etcd_port_base: Option<u16>,
    bar: &ProgressBar,
    measure: impl FnOnce(&mut Cluster) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let scratch = Scratch::new("bench", own.keep.as_deref())?;
    let mut plan = Plan::new(own.nodes, own.f, own.k);
    (plan.policy, plan.fast, plan.lanes) = (own.policy, own.fast, own.lanes);
    plan.etcd_port_base = etcd_port_base;
    plan.segment_mib = SEGMENT_MIB as u32;
    let prepare = prepare / u64::from(own.lanes);
    plan.initial_segments = prepare.div_ceil(SEGMENT_MIB << 20).max(2) as u32;
    plan.limits = format!("cache_mib = {}\n", own.cache >> 20);
    plan.tuning = own.tuning(scratch.path())?;
    let mut cluster = Cluster::create(scratch.path(), &plan)?;
    bar.set_message("log files prepared");
    cluster.start(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    let result = measure(&mut cluster);
    if let (Err(_), Some(node)) = (&result, cluster.first_ended()) {
        return Err(failed(format!("node {node} has ended: {}", cluster.last_words(node))));
    }
    cluster.stop();
    result
}

/// Log bytes that a node will write, from a generous guess of the rate.
fn volume(args: &BenchArgs) -> u64 {
    let per_put = args.value_size as f64 / args.own.k as f64 * 1.1 + 600.0;
    let (puts_per_s, bytes_per_s_max) = (90_000.0, 320e6);
    let seconds = match args.op {
        Kind::Get => 0.0,
        Kind::Put | Kind::Mix => args.seconds + args.warm,
    };
    let preload = if args.op == Kind::Put { 0.0 } else { f64::from(args.keys) * per_put };
    let bytes = (puts_per_s * per_put).min(bytes_per_s_max) * seconds * 1.1 + preload;
    (bytes as u64 + (SEGMENT_MIB << 21)).min(PREPARE_MAX)
}

/// Runs the load. `avoid`: a node that no client begins at.
fn measure(
    args: &BenchArgs,
    target: &Target,
    avoid: Option<usize>,
    stop: &Arc<AtomicBool>,
    bar: &ProgressBar,
) -> Result<Report, Failure> {
    if args.pin.is_some_and(|node| node >= target.endpoints.len()) {
        return Err(usage(format!("--pin: there are {} endpoints", target.endpoints.len())));
    }
    let workload = Workload {
        kind: args.op,
        value_bytes: args.value_size as usize,
        keys: args.keys,
        read_percent: args.read_percent,
        pin: args.pin,
        avoid,
        patience_ns: (args.connect.timeout.clamp(0.001, 1e6) * 1e9) as u64,
    };
    if args.op != Kind::Put {
        worker::preload(target, &workload, &mut |done| {
            bar.set_length(u64::from(args.keys));
            bar.set_position(done);
            bar.set_message("keys stored to be read");
        })?;
    }
    let shared = Arc::new(Shared::default());
    let threads = args.threads.min(args.clients);
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let clients = args.clients / threads + u32::from(thread < args.clients % threads);
            let (target, shared, workload) = (target.clone(), shared.clone(), workload.clone());
            std::thread::spawn(move || worker::run(&target, &workload, thread, clients, &shared))
        })
        .collect();
    let result = watch(args, target, &shared, stop, bar);
    shared.set_phase(Phase::Over);
    let mut report = Report::new(args.op, args.value_size, args.clients);
    let mut problem = None;
    for worker in workers {
        match worker.join() {
            Ok(Ok(tally)) => report.add(&tally),
            Ok(Err(failure)) => problem = Some(failure),
            Err(_) => problem = Some(failed("a client thread panicked")),
        }
    }
    if let Some(failure) = problem {
        return Err(failure);
    }
    let (before, after, seconds) = result?;
    report.finish(&before, &after, seconds);
    Ok(report)
}

/// Lets the workers run: warm up, then measure. Returns what the nodes told before and after.
fn watch(
    args: &BenchArgs,
    target: &Target,
    shared: &Shared,
    stop: &AtomicBool,
    bar: &ProgressBar,
) -> Result<(Snapshot, Snapshot, f64), Failure> {
    let mut client = target.client(|config| config.patience_ns = 5_000_000_000)?;
    let wait = |seconds: f64, what: &str| -> Outcome {
        let since = Instant::now();
        let (mut done_before, mut shown) = (shared.done(), Instant::now());
        bar.set_length((seconds * 10.0) as u64);
        while since.elapsed().as_secs_f64() < seconds {
            let left = seconds - since.elapsed().as_secs_f64();
            std::thread::sleep(PROGRESS_EVERY.min(Duration::from_secs_f64(left.max(0.0))));
            if stop.load(Ordering::Relaxed) {
                return Err(failed("stopped"));
            }
            let rate = (shared.done() - done_before) as f64 / shown.elapsed().as_secs_f64();
            (done_before, shown) = (shared.done(), Instant::now());
            bar.set_position((since.elapsed().as_secs_f64() * 10.0) as u64);
            bar.set_message(format!("{what}: {rate:.0} ops/s"));
        }
        Ok(())
    };
    wait(args.warm, "warming up")?;
    let before = Snapshot::take(&mut client)?;
    shared.set_phase(Phase::Measured);
    let since = Instant::now();
    wait(args.seconds, "measuring")?;
    shared.set_phase(Phase::Cooling);
    let seconds = since.elapsed().as_secs_f64();
    let after = Snapshot::take(&mut client)?;
    Ok((before, after, seconds))
}
