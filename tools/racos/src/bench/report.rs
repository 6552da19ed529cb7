//! What a bench tells.

use super::Kind;
use super::worker::Tally;
use crate::exit::{Failure, failed};
use crate::output;
use hdrhistogram::Histogram;
use racos_client::Client;
use racos_engine::status::Status;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// Counts of all nodes, and CPU of this process, at one time.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    nodes: Vec<Status>,
    own_cpu_us: u64,
    unreachable: usize,
}

impl Snapshot {
    /// Asks all nodes. Nodes that do not answer are left out; with none it is an error.
    pub fn take(client: &mut Client) -> Result<Snapshot, Failure> {
        let reports = client.status_lanes();
        let unreachable = reports.iter().filter(|report| report.is_err()).count();
        let nodes: Vec<_> = reports.into_iter().flatten().collect();
        if nodes.is_empty() {
            return Err(failed("no node tells its status"));
        }
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let own_cpu_us = cpu.tv_sec as u64 * 1_000_000 + cpu.tv_nsec as u64 / 1_000;
        Ok(Snapshot { nodes, own_cpu_us, unreachable })
    }

    fn sum(&self, of: impl Fn(&Status) -> u64) -> u64 {
        self.nodes.iter().map(of).sum()
    }

    /// What every lane of a node tells of the whole process, counted once.
    fn processes(&self) -> impl Iterator<Item = &Status> {
        self.nodes.iter().filter(|status| status.lane == 0)
    }
}

/// Counts of the nodes over the time measured.
#[derive(Debug, Clone, Default)]
struct Costs {
    cpu_us: u64,
    client_cpu_us: u64,
    flushed_bytes: u64,
    flushes: u64,
    fast: u64,
    slow: u64,
    null: u64,
    told: u64,
    skipped: u64,
    memory_bytes_max: u64,
    unreachable: usize,
    /// How the nodes wait and flush, as the first one tells.
    runtime: String,
}

/// The result of a bench.
pub struct Report {
    kind: Kind,
    value_bytes: u64,
    clients: u32,
    seconds: f64,
    latency_ns: Histogram<u64>,
    done: u64,
    reads: u64,
    errors: u64,
    first_error: Option<String>,
    resent: u64,
    costs: Costs,
}

impl Report {
    pub fn new(kind: Kind, value_bytes: u64, clients: u32) -> Report {
        let latency_ns = Histogram::new(3).expect("three digits are valid");
        Report {
            kind,
            value_bytes,
            clients,
            seconds: 0.0,
            latency_ns,
            done: 0,
            reads: 0,
            errors: 0,
            first_error: None,
            resent: 0,
            costs: Costs::default(),
        }
    }

    /// Adds what one thread has measured.
    pub fn add(&mut self, tally: &Tally) {
        self.latency_ns.add(&tally.latency_ns).expect("a histogram that grows takes any other");
        self.done += tally.done;
        self.reads += tally.reads;
        self.errors += tally.errors;
        self.resent += tally.resent;
        if self.first_error.is_none() {
            self.first_error.clone_from(&tally.first_error);
        }
    }

    pub fn finish(&mut self, before: &Snapshot, after: &Snapshot, seconds: f64) {
        let over = |of: fn(&Status) -> u64| after.sum(of).saturating_sub(before.sum(of));
        let cpu_us =
            |snapshot: &Snapshot| -> u64 { snapshot.processes().map(|node| node.cpu_us).sum() };
        let client_cpu_us = after.own_cpu_us.saturating_sub(before.own_cpu_us);
        self.seconds = seconds;
        self.costs = Costs {
            cpu_us: cpu_us(after).saturating_sub(cpu_us(before)) + client_cpu_us,
            client_cpu_us,
            flushed_bytes: over(|node| node.disk.flushed_bytes),
            flushes: over(|node| node.disk.flushes),
            fast: over(|node| node.slots.fast),
            slow: over(|node| node.slots.slow),
            null: over(|node| node.slots.null),
            told: over(|node| node.slots.told),
            skipped: over(|node| node.slots.skipped),
            memory_bytes_max: after.processes().map(|node| node.memory_bytes).max().unwrap_or(0),
            unreachable: before.unreachable.max(after.unreachable),
            runtime: after.nodes.first().map(|node| node.runtime.clone()).unwrap_or_default(),
        };
    }

    pub fn errors(&self) -> u64 {
        self.errors
    }

    pub fn first_error(&self) -> &str {
        self.first_error.as_deref().unwrap_or("")
    }

    pub fn ops_per_s(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    fn mb_per_s(&self) -> f64 {
        self.ops_per_s() * self.value_bytes as f64 / 1e6
    }

    pub fn latency_us(&self, quantile: f64) -> f64 {
        self.latency_ns.value_at_quantile(quantile) as f64 / 1e3
    }

    fn cpu_s_per_1000_ops(&self) -> f64 {
        self.costs.cpu_us as f64 / 1e3 / self.done.max(1) as f64
    }

    /// `None` if nothing was written.
    fn flushed_per_value_byte(&self) -> Option<f64> {
        let written = (self.done - self.reads) * self.value_bytes;
        (written > 0).then(|| self.costs.flushed_bytes as f64 / written as f64)
    }

    /// Share of the slots that consensus decided, over all nodes.
    fn share(&self, of: u64) -> f64 {
        let all = self.costs.fast + self.costs.slow + self.costs.null;
        of as f64 / all.max(1) as f64
    }

    pub fn to_json(&self) -> Value {
        let costs = &self.costs;
        let kind = match self.kind {
            Kind::Put => "put",
            Kind::Get => "get",
            Kind::Mix => "mix",
        };
        let flushed = self.flushed_per_value_byte().map_or(Value::Null, |ratio| json!(ratio));
        json!({
            "op": kind,
            "value_bytes": self.value_bytes,
            "clients": self.clients,
            "seconds": self.seconds,
            "ops": self.done,
            "ops_per_s": self.ops_per_s(),
            "mb_per_s": self.mb_per_s(),
            "p50_us": self.latency_us(0.5),
            "p99_us": self.latency_us(0.99),
            "p999_us": self.latency_us(0.999),
            "max_us": self.latency_ns.max() as f64 / 1e3,
            "cpu_s_per_1000_ops": self.cpu_s_per_1000_ops(),
            "client_cpu_s": costs.client_cpu_us as f64 / 1e6,
            "flushed_per_value_byte": flushed,
            "flushes": costs.flushes,
            "fast": self.share(costs.fast),
            "slow": self.share(costs.slow),
            "null": self.share(costs.null),
            "slots": {"fast": costs.fast, "slow": costs.slow, "null": costs.null,
                "told": costs.told, "skipped": costs.skipped},
            "memory_bytes_max": costs.memory_bytes_max,
            "resent": self.resent,
            "errors": self.errors,
            "unreachable": costs.unreachable,
            "runtime": costs.runtime,
        })
    }

    pub fn to_text(&self) -> String {
        let costs = &self.costs;
        let mut text = format!(
            "{:.0} ops/s, {:.1} MB/s ({} operations of {} in {:.1} s, {} clients)\n",
            self.ops_per_s(),
            self.mb_per_s(),
            self.done,
            output::bytes(self.value_bytes),
            self.seconds,
            self.clients,
        );
        let ms = |quantile| self.latency_us(quantile) / 1e3;
        text += &format!(
            "latency p50 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms, max {:.1} ms\n",
            ms(0.5),
            ms(0.99),
            ms(0.999),
            self.latency_ns.max() as f64 / 1e6
        );
        text += &format!(
            "cpu {:.4} s per 1000 operations, all nodes and clients (clients {:.0}%)\n",
            self.cpu_s_per_1000_ops(),
            100.0 * costs.client_cpu_us as f64 / costs.cpu_us.max(1) as f64
        );
        if let Some(ratio) = self.flushed_per_value_byte() {
            text += &format!(
                "flushed {ratio:.3} bytes per byte of value, all nodes, in {} flushes\n",
                costs.flushes
            );
        }
        text += &format!(
            "slots {:.1}% fast, {:.1}% slow, {:.1}% null; {} told, {} skipped\n",
            100.0 * self.share(costs.fast),
            100.0 * self.share(costs.slow),
            100.0 * self.share(costs.null),
            costs.told,
            costs.skipped
        );
        text += &format!(
            "memory of a node at most {}; {} requests sent again, {} errors\n",
            output::bytes(costs.memory_bytes_max),
            self.resent,
            self.errors
        );
        text += &format!("nodes: {}\n", costs.runtime);
        if costs.unreachable > 0 {
            text += &format!("{} nodes did not tell their counts\n", costs.unreachable);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_follow_from_counts_and_json_has_all_that_is_promised() {
        let mut report = Report::new(Kind::Mix, 1000, 4);
        report.done = 300;
        report.reads = 100;
        for latency_us in 1..=1000 {
            report.latency_ns.record(latency_us * 1000).unwrap();
        }
        let mut before = Snapshot { nodes: vec![Status::default(); 2], ..Snapshot::default() };
        before.nodes[0].disk.flushed_bytes = 5;
        let mut after = before.clone();
        after.nodes[0].cpu_us = 2_000;
        after.nodes[1].slots.fast = 30;
        after.nodes[1].slots.slow = 10;
        after.nodes[0].disk.flushed_bytes = 5 + 340_000;
        after.own_cpu_us = 1_000;
        report.finish(&before, &after, 2.0);
        let value = report.to_json();
        let number = |key: &str| value[key].as_f64().unwrap_or_else(|| panic!("{key}"));
        assert_eq!((number("ops_per_s"), number("mb_per_s")), (150.0, 0.15));
        assert!((number("p50_us") - 500.0).abs() < 2.0);
        assert!((number("p99_us") - 990.0).abs() < 2.0 && number("p999_us") <= 1001.0);
        assert_eq!(number("cpu_s_per_1000_ops"), 0.01);
        assert_eq!(number("flushed_per_value_byte"), 1.7);
        assert_eq!((number("fast"), number("slow"), number("null")), (0.75, 0.25, 0.0));
        assert_eq!(number("errors"), 0.0);
    }
}
