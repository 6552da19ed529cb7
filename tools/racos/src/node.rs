//! `racos node`: one node of a cluster.

use crate::config;
use crate::exit::{Outcome, failed, usage};
use crate::output;
use clap::Args;
use racos_engine::runtime::Told;
use racos_storage::device::file::is_block_device;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

/// What a node's lines on standard output begin with while it writes its log files for the first
/// time, and once it takes part.
pub const PREPARING: &str = "preparing: ";
pub const READY: &str = "ready: ";
/// The same while it waits for others, because it is new.
const WAITING: &str = "waiting: ";

/// Run one node of a cluster, until SIGINT or SIGTERM.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  racos node --config node0.toml\n\nThe file is documented line \
                        by line in tools/racos/node.example.toml."
)]
pub struct NodeArgs {
    /// Configuration of this node, in TOML.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration.
    #[arg(long)]
    check: bool,
    /// If `data_dir` is a block device that holds something that is not racos's: take it, and destroy
    /// what it holds.
    #[arg(long)]
    take_device: bool,
    /// Largest request of an etcd client, in bytes, whatever the configuration says.
    #[arg(long, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u32).range(1024..=1 << 30))]
    max_request_bytes: Option<u32>,
    /// End when the process with this number, our parent, does.
    #[arg(long, hide = true)]
    parent: Option<i32>,
}

/// Set by the first SIGINT or SIGTERM.
pub fn stop_flag() -> Result<Arc<AtomicBool>, crate::exit::Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|error| failed(format!("cannot handle signals: {error}")))?;
    }
    Ok(stop)
}

pub fn run(args: &NodeArgs) -> Outcome {
    if let Some(parent) = args.parent {
        die_with(parent)?;
    }
    let mut config = config::read(&args.config).map_err(|error| usage(error.to_string()))?;
    if let (Some(bytes), Some(etcd)) = (args.max_request_bytes, &mut config.etcd) {
        etcd.settings.request_bytes_max = bytes as usize;
    }
    let mut options = config.node;
    if args.check {
        output::line("the configuration is good");
        return Ok(());
    }
    options.config.seed = crate::connect::random_u64();
    options.take_device = args.take_device;
    let stop = stop_flag()?;
    let node = options.config.node;
    let lanes = match options.config.lane.count {
        1 => String::new(),
        lanes => format!(" (and the {} ports after it, for {lanes} lanes)", lanes - 1),
    };
    let greeting = format!(
        "{READY}node {node} of cluster {:016x} on {}{lanes}, data in {}",
        options.config.cluster,
        options.listen,
        options.dir.display()
    );
    if !is_block_device(&options.dir) {
        std::fs::create_dir_all(&options.dir)
            .map_err(|error| failed(format!("cannot make {}: {error}", options.dir.display())))?;
    }
    // The port is taken before anything else is done, so that it is known early that it is free.
    let etcd = config.etcd.map(bind_etcd).transpose()?;
    let (started, face) = channel();
    if let Some(bound) = etcd {
        options.api = Some(Box::new(move |handle| {
            // The receiver waits below for as long as the node serves.
            let _ = started.send(bound.serve(handle));
        }));
    }
    // Kept until the node has ended: the API ends with it.
    let mut serving = None;
    let mut told = |told: Told<'_>| {
        let line = match told {
            Told::Preparing { done, total } => format!("{PREPARING}{done}/{total}"),
            Told::Waiting(words) => format!("{WAITING}{words}"),
            Told::Differs(words) | Told::Without(words) => return eprintln!("racos: {words}"),
            Told::Ready => {
                match face.try_recv() {
                    Ok(Ok(server)) => serving = Some(server),
                    Ok(Err(error)) => {
                        eprintln!("racos: the etcd API cannot be served: {error}");
                        stop.store(true, Ordering::Relaxed);
                    }
                    // It was not asked for.
                    Err(_) => {}
                }
                greeting.clone()
            }
        };
        output::line(&line);
    };
    let served = racos_engine::runtime::serve(options, &mut told, &stop)
        .map_err(|error| failed(format!("node {node}: {error}")));
    drop(serving);
    served
}

fn bind_etcd(options: racos_etcd::Options) -> Result<racos_etcd::Bound, crate::exit::Failure> {
    let listen = options.listen;
    racos_etcd::Bound::new(options).map_err(|error| {
        failed(format!(
            "cannot serve the etcd API on {listen}: {error}; is an etcd running here? `racos up \
             --etcd-port-base` and `endpoints` in the configuration choose other ports"
        ))
    })
}

/// Lets the kernel kill this process when its parent ends.
fn die_with(parent: i32) -> Outcome {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| failed(format!("cannot follow the parent process: {error}")))?;
    match getppid().map(|pid| pid.as_raw_nonzero().get()) {
        Some(pid) if pid == parent => Ok(()),
        _ => Err(failed("the parent process has ended")),
    }
}
