//! `racos tune`: measures this host and prints how a node should run on it.

use crate::exit::{Outcome, failed};
use crate::output;
use clap::Args;
use std::path::PathBuf;

/// Durable writes measured for each way to flush.
const WRITES: usize = 400;

/// Measure this host's disk and cores; print the [tuning] section of a node's configuration
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  racos tune --dir /var/lib/racos\n  racos tune --nodes-here 5\n\n\
                        Paste what it prints into the file given to `racos node --config`."
)]
pub struct TuneArgs {
    /// A directory on the disk that will hold the log; what is written there is removed again
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Nodes, and other busy programs, that will share this host's CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes_here: usize,
}

pub fn run(args: &TuneArgs) -> Outcome {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut times = Vec::new();
    for method in racos_tuning::METHODS {
        let name = racos_tuning::flush_name(method);
        let measured = racos_tuning::measure_flush(&args.dir, method, WRITES).map_err(|error| {
            failed(format!("cannot measure {name} flushes in {}: {error}", args.dir.display()))
        })?;
        output::line(&format!(
            "# {name}: {WRITES} durable writes of 4 KiB, p50 {:.0} us, p99 {:.0} us",
            measured.p50_us, measured.p99_us
        ));
        times.push(measured);
    }
    output::line(racos_tuning::choose(&times, cpus, args.nodes_here).to_toml().trim_end());
    Ok(())
}
