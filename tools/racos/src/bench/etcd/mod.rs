//! `racos bench --api etcd`: the same closed loop over etcd's API, against racos or against etcd.
//!
//! Invariant: both servers are asked by the same code with the same load; what is read is checked,
//! and with watchers every event must arrive at each of them.

mod load;
mod rival;

use super::worker::Shared;
use super::{BenchArgs, Kind, PREPARE_MAX};
use crate::exit::{Failure, Outcome, failed, usage};
use crate::output;
use crate::scratch::Scratch;
use clap::ValueEnum;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Which cluster to start if no endpoint is given.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerKind {
    /// A cluster of `--nodes` racos nodes.
    Racos,
    /// Three etcd members, each of which flushes every write, as etcd does by default.
    Etcd,
}

/// What was measured.
pub struct Measured {
    pub seconds: f64,
    pub latency_ns: Histogram<u64>,
    pub done: u64,
    pub errors: u64,
    pub first_error: Option<String>,
    /// From the begin of a put to the arrival of its event, for each watcher.
    pub delivery_ns: Histogram<u64>,
    pub events: u64,
    pub events_expected: u64,
}

pub fn run(args: &BenchArgs, stop: &Arc<AtomicBool>, bar: &ProgressBar) -> Outcome {
    let measured = match (args.connect.endpoint.is_empty(), args.server) {
        (false, _) => measure(args, &args.connect.endpoint, stop, bar),
        (true, ServerKind::Racos) => with_racos(args, stop, bar),
        (true, ServerKind::Etcd) => {
            let scratch = Scratch::new("bench-etcd", args.own.keep.as_deref())?;
            let rival = rival::Etcd::start(scratch.path())?;
            measure(args, &rival.endpoints, stop, bar)
        }
    };
    bar.finish_and_clear();
    let measured = measured?;
    output::line(&if args.json { to_json(args, &measured) } else { to_text(args, &measured) });
    if measured.errors > 0 {
        let first = measured.first_error.unwrap_or_default();
        return Err(failed(format!("{} operations failed: {first}", measured.errors)));
    }
    if measured.events != measured.events_expected {
        let (got, expected) = (measured.events, measured.events_expected);
        return Err(failed(format!("{got} events arrived, {expected} were expected")));
    }
    Ok(())
}

fn with_racos(
    args: &BenchArgs,
    stop: &Arc<AtomicBool>,
    bar: &ProgressBar,
) -> Result<Measured, Failure> {
    let own = &args.own;
    let prepare = own.prepare.unwrap_or_else(|| super::volume(args)).min(PREPARE_MAX);
    super::on_own_cluster(own, prepare, Some(0), bar, |cluster| {
        measure(args, &cluster.etcd, stop, bar)
    })
}

fn measure(
    args: &BenchArgs,
    endpoints: &[String],
    stop: &Arc<AtomicBool>,
    bar: &ProgressBar,
) -> Result<Measured, Failure> {
    if args.watchers > 0 && args.op != Kind::Put {
        return Err(usage("--watchers: watches are of use with --op put only"));
    }
    if args.threads != 1 || args.pin.is_some() {
        return Err(usage("--threads and --pin are for the native API only"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(format!("no runtime for the clients: {error}")))?;
    let shared = Arc::new(Shared::default());
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(load::measure(args, endpoints, shared, stop, bar)))
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Put => "put",
        Kind::Get => "get",
        Kind::Mix => "mix",
    }
}

fn us(of: &Histogram<u64>, quantile: f64) -> f64 {
    of.value_at_quantile(quantile) as f64 / 1e3
}

fn to_json(args: &BenchArgs, measured: &Measured) -> String {
    let per_s = measured.done as f64 / measured.seconds;
    serde_json::json!({
        "api": "etcd",
        "op": name_of(args.op),
        "value_bytes": args.value_size,
        "clients": args.clients,
        "seconds": measured.seconds,
        "ops": measured.done,
        "ops_per_s": per_s,
        "mb_per_s": per_s * args.value_size as f64 / 1e6,
        "p50_us": us(&measured.latency_ns, 0.5),
        "p99_us": us(&measured.latency_ns, 0.99),
        "max_us": us(&measured.latency_ns, 1.0),
        "errors": measured.errors,
        "watchers": args.watchers,
        "events": measured.events,
        "events_expected": measured.events_expected,
        "delivery_p50_us": us(&measured.delivery_ns, 0.5),
        "delivery_p99_us": us(&measured.delivery_ns, 0.99),
        "delivery_max_us": us(&measured.delivery_ns, 1.0),
    })
    .to_string()
}

fn to_text(args: &BenchArgs, measured: &Measured) -> String {
    let per_s = measured.done as f64 / measured.seconds;
    let ms = |of: &Histogram<u64>, quantile| us(of, quantile) / 1e3;
    let mut text = format!(
        "{per_s:.0} ops/s, {:.1} MB/s ({} operations of {} in {:.1} s, {} clients)\n\
         latency p50 {:.3} ms, p99 {:.3} ms, max {:.1} ms; {} errors",
        per_s * args.value_size as f64 / 1e6,
        measured.done,
        output::bytes(args.value_size),
        measured.seconds,
        args.clients,
        ms(&measured.latency_ns, 0.5),
        ms(&measured.latency_ns, 0.99),
        ms(&measured.latency_ns, 1.0),
        measured.errors,
    );
    if args.watchers > 0 {
        text += &format!(
            "\n{} of {} events arrived at {} watchers, after p50 {:.3} ms, p99 {:.3} ms, max {:.1} ms",
            measured.events,
            measured.events_expected,
            args.watchers,
            ms(&measured.delivery_ns, 0.5),
            ms(&measured.delivery_ns, 0.99),
            ms(&measured.delivery_ns, 1.0),
        );
    }
    text
}
