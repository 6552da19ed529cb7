//! `racos bench --fault`: the same load before and after a node fails.
//!
//! Both measurements are taken on one cluster in one run, so that their ratio means something on a
//! machine whose speed drifts. Clients of the second begin at the nodes that are left: what is
//! measured is what the failure costs everybody else.

use super::{BenchArgs, measure, on_own_cluster, volume};
use crate::cluster::Cluster;
use crate::exit::{Outcome, failed, usage};
use crate::output;
use indicatif::ProgressBar;
use serde_json::json;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What happens to one node between the two measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It dies (SIGKILL).
    Kill(usize),
    /// It stands still and keeps what it holds (SIGSTOP).
    Freeze(usize),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let known = "give kill:NODE or freeze:NODE, nodes being counted from 0";
        let (what, node) = text.split_once(':').ok_or(known)?;
        let node = node.parse().map_err(|_| known)?;
        match what {
            "kill" => Ok(Fault::Kill(node)),
            "freeze" => Ok(Fault::Freeze(node)),
            _ => Err(known.to_string()),
        }
    }
}

impl Fault {
    fn node(self) -> usize {
        match self {
            Fault::Kill(node) | Fault::Freeze(node) => node,
        }
    }

    fn strike(self, cluster: &mut Cluster) {
        match self {
            Fault::Kill(node) => cluster.kill(&[node]),
            Fault::Freeze(node) => cluster.freeze(node),
        }
    }

    fn state(self) -> String {
        match self {
            Fault::Kill(node) => format!("node {node} killed"),
            Fault::Freeze(node) => format!("node {node} frozen"),
        }
    }
}

pub fn run(args: &BenchArgs, fault: Fault, stop: &Arc<AtomicBool>, bar: &ProgressBar) -> Outcome {
    let (own, node) = (&args.own, fault.node());
    if node >= own.nodes {
        return Err(usage(format!("--fault: there are nodes 0 to {}", own.nodes - 1)));
    }
    if own.f == 0 {
        return Err(usage("--fault: with --f 0 no node may fail"));
    }
    let prepare = own.prepare.unwrap_or_else(|| volume(args) * 2);
    let result = on_own_cluster(own, prepare, None, bar, |cluster| {
        let healthy = measure(args, &cluster.target, None, stop, bar)?;
        fault.strike(cluster);
        let faulty = measure(args, &cluster.target, Some(node), stop, bar);
        if matches!(fault, Fault::Freeze(_)) {
            cluster.thaw(node);
        }
        Ok((healthy, faulty?))
    });
    bar.finish_and_clear();
    let (healthy, faulty) = result?;
    let rate = faulty.ops_per_s() / healthy.ops_per_s().max(f64::MIN_POSITIVE);
    let p99 = faulty.latency_us(0.99) / healthy.latency_us(0.99).max(f64::MIN_POSITIVE);
    if args.json {
        let both = json!({
            "fault": fault.state(),
            "healthy": healthy.to_json(),
            "faulty": faulty.to_json(),
            "rate_ratio": rate,
            "p99_ratio": p99,
        });
        output::line(&both.to_string());
    } else {
        output::line(&format!("healthy:\n{}", healthy.to_text()));
        output::line(&format!("{}:\n{}", fault.state(), faulty.to_text()));
        output::line(&format!("rate {rate:.2} of healthy, p99 {p99:.2} of healthy"));
    }
    match healthy.errors() + faulty.errors() {
        0 => Ok(()),
        errors => {
            let first = [&healthy, &faulty].map(|report| report.first_error()).concat();
            Err(failed(format!("{errors} operations failed: {first}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_named_with_its_node() {
        assert_eq!("kill:2".parse(), Ok(Fault::Kill(2)));
        assert_eq!("freeze:0".parse(), Ok(Fault::Freeze(0)));
        for wrong in ["kill", "kill:", "kill:x", "stop:1", "freeze:-1", ""] {
            assert!(wrong.parse::<Fault>().unwrap_err().contains("kill:NODE"), "{wrong}");
        }
    }
}
