//! `racos up`: a local cluster to play with.

use crate::cluster::{Cluster, Ended, Plan};
use crate::connect::{DIR_DEFAULT, PORT_DEFAULT};
use crate::exit::{Outcome, failed, usage};
use crate::node::stop_flag;
use crate::output;
use crate::tune::profile_here;
use clap::Args;
use racos_protocol::{Fast, Policy};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A killed node is started again after this long: time to see the others go on.
const RESTART_SECONDS: u64 = 5;
/// First port of the etcd API: where etcd's clients look.
const ETCD_PORT_DEFAULT: u16 = 2379;

/// Run a cluster of node processes on this machine, until Ctrl-C.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  racos up\n  racos up --nodes 3 --f 1 --k 1 --dir /tmp/three\n\n\
                        Started again with the same --dir it finds its data."
)]
pub struct UpArgs {
    /// Number of nodes [default: 5].
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Nodes that may be down at the same time [default: 1].
    #[arg(long)]
    f: Option<usize>,
    /// Data fragments of a value; N >= 2F + K [default: 3].
    #[arg(long)]
    k: Option<usize>,
    /// Who fills the slots: owner or queue; the latter without the etcd API [default: owner].
    #[arg(long)]
    policy: Option<Policy>,
    /// How many equal proposals decide a large value's slot at once: sup+f, or f*, the fewest that can
    /// [default: sup+f].
    #[arg(long)]
    fast: Option<Fast>,
    /// Independent lanes of each node, 1 to 64, for native clients: with more than one, without the etcd
    /// API [default: 1].
    #[arg(long, value_name = "L")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=64))]
    lanes: Option<u8>,
    /// Where configuration and data are kept.
    #[arg(long, value_name = "DIR", env = "RACOS_DIR", default_value = DIR_DEFAULT)]
    dir: PathBuf,
    /// The nodes use this UDP port on 127.0.0.1 and those after it, one for each lane; 0: any that are free
    /// [default: 7400].
    #[arg(long, value_name = "PORT")]
    port_base: Option<u16>,
    /// etcd clients reach the nodes at this port on 127.0.0.1 and those after it; 0: any that are
    /// free [default: 2379].
    #[arg(long, value_name = "PORT")]
    etcd_port_base: Option<u16>,
    /// Size of a log file in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=1024))]
    segment_mib: u32,
    /// A native client's session that nobody used for so long is ended; 0: only when there are too
    /// many [default: 10].
    #[arg(long, value_name = "MINUTES")]
    session_idle_minutes: Option<u32>,
    /// Largest request of an etcd client, in bytes [default: 64 MiB].
    #[arg(long, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u32).range(1024..=1 << 30))]
    max_request_bytes: Option<u32>,
}

pub fn run(args: &UpArgs) -> Outcome {
    let stop = stop_flag()?;
    let mut cluster = match Cluster::open(&args.dir)? {
        Some(cluster) => check_same(args, cluster)?,
        None => {
            let (n, f, k) = (args.nodes.unwrap_or(5), args.f.unwrap_or(1), args.k.unwrap_or(3));
            let mut plan = Plan::new(n, f, k);
            plan.port_base = Some(args.port_base.unwrap_or(PORT_DEFAULT));
            // Whoever wants any ports means all of them.
            let etcd_default = if plan.port_base == Some(0) { 0 } else { ETCD_PORT_DEFAULT };
            plan.policy = args.policy.unwrap_or_default();
            plan.fast = args.fast.unwrap_or_default();
            plan.lanes = args.lanes.unwrap_or(1);
            let native = match (plan.policy, plan.lanes) {
                (Policy::Queue, _) => Some("--policy queue"),
                (Policy::OwnerSlots, 2..) => Some("more than one lane"),
                (Policy::OwnerSlots, _) => None,
            };
            plan.etcd_port_base = match (native, args.etcd_port_base) {
                (None, asked) => Some(asked.unwrap_or(etcd_default)),
                (Some(_), None) => None,
                (Some(what), Some(_)) => {
                    return Err(usage(format!(
                        "--etcd-port-base: with {what} there are native clients only; leave one of \
                         them out"
                    )));
                }
            };
            plan.segment_mib = args.segment_mib;
            if let Some(minutes) = args.session_idle_minutes {
                plan.limits = format!("session_idle_minutes = {minutes}\n");
            }
            let threads = (n * usize::from(plan.lanes)).min(64);
            plan.tuning = profile_here(&args.dir, threads).to_toml();
            Cluster::create(&args.dir, &plan)?
        }
    };
    if let Some(bytes) = args.max_request_bytes {
        cluster.node_options = vec![format!("--max-request-bytes={bytes}")];
    }
    let ended = cluster.start_most()?;
    greet(&args.dir, &cluster);
    let mut killed: Vec<(usize, Instant)> = Vec::new();
    let mut said: Vec<String> = vec![String::new(); cluster.n()];
    let again = || Instant::now() + Duration::from_secs(RESTART_SECONDS);
    for (node, failure) in ended {
        output::line(&format!("{}; the others go on", failure.text));
        said[node] = failure.text;
        killed.push((node, again()));
    }
    while !stop.load(Ordering::Relaxed) {
        match cluster.take_ended() {
            Some((node, Ended::Killed)) => {
                output::line(&format!(
                    "node {node} was killed; the others go on, and it is started again in \
                     {RESTART_SECONDS} s"
                ));
                killed.push((node, again()));
            }
            Some((node, Ended::ByItself)) => {
                let words = cluster.last_words(node);
                output::line(&format!("node {node} has ended by itself: {words}"));
            }
            None if killed.is_empty() && !cluster.any_running() => {
                return Err(failed("no node is running any more"));
            }
            None => std::thread::sleep(Duration::from_millis(100)),
        }
        if let Some(place) = killed.iter().position(|(_, at)| Instant::now() >= *at) {
            let (node, _) = killed.swap_remove(place);
            match cluster.start_nodes(&[node], &mut |_, _| {}) {
                Ok(()) => {
                    output::line(&format!("node {node} is back and catches up"));
                }
                // It may have lost its disk: the others go on, and it is tried again, quietly, so
                // that it is there as soon as it was replaced.
                Err(failure) => {
                    if said[node] != failure.text {
                        output::line(&format!("{}; the others go on", failure.text));
                        said[node] = failure.text;
                    }
                    killed.push((node, again()));
                }
            }
        }
    }
    cluster.stop();
    output::line("stopped; `racos up` with the same --dir goes on where this ended");
    Ok(())
}

/// Options that contradict the cluster that is there are refused rather than ignored.
fn check_same(args: &UpArgs, cluster: Cluster) -> Result<Cluster, crate::exit::Failure> {
    let port = cluster.target.endpoints[0].port();
    if args.session_idle_minutes.is_some() {
        let dir = args.dir.display();
        return Err(usage(format!(
            "--session-idle-minutes: the cluster in {dir} is there already; change \
             session_idle_minutes in its node*.toml, or give another --dir"
        )));
    }
    for (name, asked, is) in [
        ("--nodes", args.nodes, cluster.n()),
        ("--f", args.f, cluster.f),
        ("--k", args.k, cluster.k),
        ("--lanes", args.lanes.map(usize::from), usize::from(cluster.lanes)),
        (
            "--port-base",
            args.port_base.filter(|base| *base != 0).map(usize::from),
            usize::from(port),
        ),
    ] {
        if let Some(asked) = asked.filter(|asked| *asked != is) {
            let dir = args.dir.display();
            return Err(usage(format!(
                "{name} {asked}: the cluster in {dir} has {is}; leave the option out, or give \
                 another --dir"
            )));
        }
    }
    let policy = args.policy.filter(|asked| *asked != cluster.policy);
    let fast = args.fast.filter(|asked| *asked != cluster.fast);
    let other = match (policy, fast) {
        (Some(asked), _) => (format!("--policy {asked}"), cluster.policy.name()),
        (None, Some(asked)) => (format!("--fast {asked}"), cluster.fast.name()),
        (None, None) => return Ok(cluster),
    };
    let (dir, (asked, is)) = (args.dir.display(), other);
    Err(usage(format!(
        "{asked}: the cluster in {dir} was founded with {is}; leave the option out, or give another --dir"
    )))
}

fn greet(dir: &Path, cluster: &Cluster) {
    let endpoints: Vec<_> = cluster.target.endpoints.iter().map(ToString::to_string).collect();
    let option = match dir == Path::new(DIR_DEFAULT) {
        true => String::new(),
        false => format!(" --dir {}", dir.display()),
    };
    let (n, f, k) = (cluster.n(), cluster.f, cluster.k);
    let lanes = match cluster.lanes {
        1 => String::new(),
        lanes => format!(" of {lanes} lanes"),
    };
    let etcd = match cluster.etcd.is_empty() {
        true => String::new(),
        false => {
            // Without "http://": etcdctl before 3.5 sends it as part of the host's name.
            let endpoints = cluster.etcd.join(",");
            format!(
                "etcd endpoints: {endpoints}\n  \
                 export ETCDCTL_API=3 ETCDCTL_ENDPOINTS={endpoints}\n  \
                 etcdctl put greeting hello\n  \
                 etcdctl get greeting\n  \
                 etcdctl watch --prefix greet\n"
            )
        }
    };
    output::line(&format!(
        "cluster {:016x}: {n} nodes{lanes}, {f} may be down, each stores 1/{k} of every value\n\
         endpoints: {}\n\
         data: {}\n\
         try, in another terminal:\n  \
         racos put{option} greeting hello\n  \
         racos get{option} greeting\n  \
         racos status{option}\n\
         {etcd}Ctrl-C stops the cluster",
        cluster.target.cluster,
        endpoints.join(","),
        dir.display(),
    ));
}
