//! `racos node`: one node of a cluster.

use crate::config;
use crate::exit::{Outcome, failed, usage};
use crate::output;
use clap::Args;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What a node's lines on standard output begin with while it writes its log files for the first
/// time, and once it listens.
pub const PREPARING: &str = "preparing: ";
pub const READY: &str = "ready: ";

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
    let mut options = config::read(&args.config).map_err(|error| usage(error.to_string()))?;
    if args.check {
        output::line("the configuration is good");
        return Ok(());
    }
    options.config.seed = crate::connect::random_u64();
    let stop = stop_flag()?;
    let node = options.config.node;
    let greeting = format!(
        "{READY}node {node} of cluster {:016x} on {}, data in {}",
        options.config.cluster,
        options.listen,
        options.dir.display()
    );
    std::fs::create_dir_all(&options.dir)
        .map_err(|error| failed(format!("cannot make {}: {error}", options.dir.display())))?;
    let mut progress = |done, total| {
        output::line(&format!("{PREPARING}{done}/{total}"));
    };
    let mut ready = || {
        output::line(&greeting);
    };
    racos_engine::runtime::serve(options, &mut progress, &mut ready, &stop)
        .map_err(|error| failed(format!("node {node}: {error}")))
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
