//! `racos tune`: measures this host and prints how a node should run on it.

use crate::exit::{Failure, Outcome, failed};
use crate::output;
use clap::Args;
use racos_tuning::{Measured, Profile, SPIN_US_DEFAULT};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long each way is measured for a configuration that stays.
const LONG: Duration = Duration::from_millis(1000);
/// And for a local cluster that is about to start.
const SHORT: Duration = Duration::from_millis(300);

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
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    nodes_here: u16,
}

pub fn run(args: &TuneArgs) -> Outcome {
    let nodes_here = usize::from(args.nodes_here);
    let measured = measure(&args.dir, nodes_here, LONG)?;
    for Measured { way, per_second, p50_us, p99_us } in &measured {
        let wait = if way.adaptive { "adaptive" } else { "blocking" };
        output::line(&format!(
            "# {}, {wait}: {per_second:.0} durable writes of 4 KiB a second, p50 {p50_us:.0} us, \
             p99 {p99_us:.0} us",
            racos_tuning::flush_name(way.flush)
        ));
    }
    for line in racos_tuning::reads_here(&args.dir, LONG / 2) {
        output::line(&format!("# {line}"));
    }
    let profile = racos_tuning::choose(&measured, cpus(), nodes_here);
    output::line(&format!("[tuning]\n{}", profile.to_toml().trim_end()));
    Ok(())
}

/// A profile for `nodes` nodes that are about to start on this host, with data in `dir`: a
/// second or two of measuring. Where it cannot be measured, the default.
pub fn profile_here(dir: &Path, nodes: usize) -> Profile {
    let measured = measure(dir, nodes, SHORT).unwrap_or_default();
    racos_tuning::choose(&measured, cpus(), nodes)
}

fn measure(dir: &Path, nodes: usize, duration: Duration) -> Result<Vec<Measured>, Failure> {
    racos_tuning::measure(dir, nodes, duration, SPIN_US_DEFAULT)
        .map_err(|error| failed(format!("cannot measure flushes in {}: {error}", dir.display())))
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
