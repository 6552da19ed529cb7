//! Measures this host's disk and looks at its cores, chooses a profile, and says why.
//!
//! Purpose: `racos tune` prints the `[tuning]` section of a node's configuration.
//! Invariant: what is chosen follows from what was measured by the rules in [`choose`] alone, so
//! that a person can check it; a measurement leaves nothing behind on the disk.
#![forbid(unsafe_code)]

use racos_buffer::Pool;
use racos_storage::device::uring::UringDevice;
use racos_storage::device::{Completion, Device, FileId, FlushMethod, Sleep, UringConfig};
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How a node should wait for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    Blocking,
    Adaptive { spin_us: u64 },
    Busy,
}

/// Durable writes of 4 KiB into blocks written before, by one method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlushTimes {
    pub method: FlushMethod,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// What was found and what follows from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    pub poll: Poll,
    pub flush: FlushMethod,
    /// CPUs to pin the node and the kernel's flush workers to, if it spins.
    pub cpus: Option<(usize, usize)>,
    pub reasons: Vec<String>,
}

/// All ways to flush, the safe default first.
pub const METHODS: [FlushMethod; 3] = [FlushMethod::Linked, FlushMethod::Dsync, FlushMethod::Sync];

/// A method must be this much quicker than the default to be chosen over it: figures vary from run
/// to run.
const CLEARLY_QUICKER: f64 = 0.8;
const FILE: FileId = 1;
const WRITE_BYTES: usize = 4096;
const FILE_BYTES: u64 = 8 << 20;

/// Measures one method in a fresh directory below `dir`, which is removed again. `writes` durable
/// writes one after the other.
pub fn measure_flush(dir: &Path, method: FlushMethod, writes: usize) -> io::Result<FlushTimes> {
    let dir = dir.join(format!("racos-tune-{}", std::process::id()));
    let result = measure_in(&dir, method, writes);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn measure_in(dir: &Path, method: FlushMethod, writes: usize) -> io::Result<FlushTimes> {
    let config = UringConfig { flush: method, ..UringConfig::default() };
    let mut device = UringDevice::open(dir, &config)?;
    device.prepare(FILE, FILE_BYTES);
    let mut done = Vec::new();
    wait_for(&mut device, &mut done)?;
    let pool = Pool::new(1 << 20);
    let buf = pool.get(WRITE_BYTES).expect("the pool is large enough");
    let parts = [buf.freeze()];
    let mut times: Vec<Duration> = Vec::with_capacity(writes);
    for turn in 0..writes as u64 {
        let offset = turn * WRITE_BYTES as u64 % FILE_BYTES;
        let start = Instant::now();
        device.write_flush(turn, FILE, offset, &parts);
        wait_for(&mut device, &mut done)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let at = |share: f64| {
        let index = ((times.len() - 1) as f64 * share) as usize;
        times[index].as_secs_f64() * 1e6
    };
    Ok(FlushTimes { method, p50_us: at(0.5), p99_us: at(0.99) })
}

/// Sleeps in the ring until one thing has completed, as a node does.
fn wait_for(device: &mut UringDevice, done: &mut Vec<Completion>) -> io::Result<()> {
    done.clear();
    while done.is_empty() {
        device.wait(&[], Some(1_000_000_000))?;
        device.poll(done);
    }
    done.drain(..).try_for_each(|completion| match completion {
        Completion::Written { result, .. } | Completion::Prepared { result, .. } => result,
        Completion::Read { result, .. } => result,
    })
}

/// Chooses from measurements, the CPUs this process may use, and the number of nodes (and other busy
/// programs) that share them.
pub fn choose(times: &[FlushTimes], cpus: usize, nodes_here: usize) -> Profile {
    let mut reasons = Vec::new();
    let poll = choose_poll(cpus, nodes_here, &mut reasons);
    let flush = choose_flush(times, poll, &mut reasons);
    let pinned = matches!(poll, Poll::Busy).then_some((cpus - 1, 0));
    if let Some((node, workers)) = pinned {
        reasons.push(format!(
            "the node spins on CPU {node}: the kernel's flush workers are kept on CPU {workers}, \
             because a spinning thread starves them"
        ));
    }
    Profile { poll, flush, cpus: pinned, reasons }
}

fn choose_poll(cpus: usize, nodes_here: usize, reasons: &mut Vec<String>) -> Poll {
    let nodes = nodes_here.max(1);
    if cpus < nodes + 2 {
        reasons.push(format!(
            "{cpus} CPUs for {nodes} node(s): with fewer than two to spare, spinning nodes stop \
             each other and the clients, so sleep at once"
        ));
        Poll::Blocking
    } else if cpus < 2 * nodes + 2 {
        reasons.push(format!(
            "{cpus} CPUs for {nodes} node(s): enough to look again for a moment before sleeping"
        ));
        Poll::Adaptive { spin_us: 50 }
    } else {
        reasons.push(format!("{cpus} CPUs for {nodes} node(s): one can be the node's own"));
        Poll::Busy
    }
}

fn choose_flush(times: &[FlushTimes], poll: Poll, reasons: &mut Vec<String>) -> FlushMethod {
    let default = FlushMethod::Linked;
    let Some(linked) = times.iter().find(|times| times.method == default) else {
        reasons.push("nothing was measured: a linked write and flush is safe everywhere".into());
        return default;
    };
    let allowed = |method: FlushMethod| match method {
        FlushMethod::Linked => true,
        // It ends on a kernel worker that a spinning thread starves.
        FlushMethod::Dsync => poll == Poll::Blocking,
        // It stalls the node's thread: only where there is no core for anything else anyway.
        FlushMethod::Sync => poll == Poll::Blocking,
    };
    let quickest = times
        .iter()
        .filter(|times| allowed(times.method))
        .min_by(|a, b| a.p50_us.total_cmp(&b.p50_us))
        .expect("the default is allowed and was measured");
    if quickest.p50_us < linked.p50_us * CLEARLY_QUICKER {
        reasons.push(format!(
            "{} flushes in {:.0} us where the default takes {:.0} us",
            flush_name(quickest.method),
            quickest.p50_us,
            linked.p50_us
        ));
        return quickest.method;
    }
    reasons.push("no other way to flush is clearly quicker than the default".into());
    default
}

/// The name of a method in a node's configuration.
pub fn flush_name(method: FlushMethod) -> &'static str {
    match method {
        FlushMethod::Linked => "linked",
        FlushMethod::Dsync => "dsync",
        FlushMethod::Sync => "sync",
    }
}

impl Profile {
    /// The `[tuning]` section of a node's configuration, with the reasons as comments.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("[tuning]\n");
        for reason in &self.reasons {
            let _ = writeln!(text, "# {reason}");
        }
        let (poll, spin_us) = match self.poll {
            Poll::Blocking => ("blocking", None),
            Poll::Adaptive { spin_us } => ("adaptive", Some(spin_us)),
            Poll::Busy => ("busy", None),
        };
        let _ = writeln!(text, "poll = \"{poll}\"");
        if let Some(spin_us) = spin_us {
            let _ = writeln!(text, "spin_us = {spin_us}");
        }
        let _ = writeln!(text, "flush = \"{}\"", flush_name(self.flush));
        if let Some((cpu, flush_cpu)) = self.cpus {
            let _ = writeln!(text, "cpu = {cpu}\nflush_cpu = {flush_cpu}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(linked: f64, dsync: f64, sync: f64) -> Vec<FlushTimes> {
        let of = |method, p50_us| FlushTimes { method, p50_us, p99_us: 2.0 * p50_us };
        vec![
            of(FlushMethod::Linked, linked),
            of(FlushMethod::Dsync, dsync),
            of(FlushMethod::Sync, sync),
        ]
    }

    #[test]
    fn few_cpus_sleep_and_many_spin_on_one_of_their_own() {
        assert_eq!(choose(&[], 2, 5).poll, Poll::Blocking);
        assert_eq!(choose(&[], 3, 1).poll, Poll::Adaptive { spin_us: 50 });
        let own = choose(&[], 8, 1);
        assert_eq!((own.poll, own.cpus), (Poll::Busy, Some((7, 0))));
    }

    #[test]
    fn another_way_to_flush_must_be_clearly_quicker_and_safe_beside_a_spinning_thread() {
        let sleeping = |times: &[FlushTimes]| choose(times, 2, 5).flush;
        assert_eq!(sleeping(&times(100.0, 90.0, 95.0)), FlushMethod::Linked);
        assert_eq!(sleeping(&times(100.0, 60.0, 70.0)), FlushMethod::Dsync);
        assert_eq!(sleeping(&times(100.0, 4000.0, 70.0)), FlushMethod::Sync);
        assert_eq!(choose(&times(100.0, 10.0, 10.0), 8, 1).flush, FlushMethod::Linked);
    }

    #[test]
    fn the_profile_is_printed_as_configuration_with_its_reasons() {
        let text = choose(&times(100.0, 60.0, 70.0), 2, 5).to_toml();
        assert!(text.starts_with("[tuning]\n# 2 CPUs for 5 node(s)"), "{text}");
        assert!(text.contains("poll = \"blocking\"\nflush = \"dsync\"\n"), "{text}");
    }

    #[test]
    fn a_measurement_writes_durably_and_leaves_nothing_behind() {
        let dir = std::env::temp_dir().join(format!("racos-tuning-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        match measure_flush(&dir, FlushMethod::Linked, 8) {
            Ok(times) => assert!(times.p50_us > 0.0 && times.p99_us >= times.p50_us),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}"),
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
