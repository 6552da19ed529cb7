//! fio beside the log: the same disk, the same sizes, by the tool that everybody knows.

use std::path::Path;
use std::process::{Command, Stdio};

/// One job's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Fio {
    /// As `fio --version` tells.
    pub version: String,
    pub per_second: f64,
    pub mb_per_s: f64,
    /// Of a write and the flush behind it.
    pub mean_us: f64,
}

/// The version, if fio is installed.
pub fn version() -> Option<String> {
    let output = Command::new("fio").arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// What one run writes, or reads.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub block: u64,
    pub writers: u32,
    /// Whether it reads, in random order.
    pub reads: bool,
    /// Whether each write is followed by `fdatasync`.
    pub flush: bool,
    /// Writes under way at once, of each writer.
    pub depth: u32,
    pub seconds: f64,
    /// Bytes of each writer's file, written beforehand.
    pub file_bytes: u64,
}

/// Runs a job in a directory, on files that it has written before. None: fio is not installed, or
/// told nothing that can be read.
pub fn run(dir: &Path, job: &Job) -> Option<Fio> {
    let version = version()?;
    let written = call(dir, job, &["--rw=write", "--bs=1m", "--end_fsync=1", "--ioengine=psync"])?;
    drop(written);
    let block = format!("--bs={}", job.block);
    let depth = format!("--iodepth={}", job.depth);
    let runtime = format!("--runtime={}", job.seconds.ceil());
    let rw = if job.reads { "--rw=randread" } else { "--rw=write" };
    let mut args = vec![rw, &block, "--overwrite=1", "--time_based", &runtime];
    match job.depth {
        1 => args.push("--ioengine=psync"),
        _ => args.extend(["--ioengine=io_uring", &depth]),
    }
    if job.flush {
        args.push("--fdatasync=1");
    }
    let report = call(dir, job, &args)?;
    let done = &report["jobs"][0][if job.reads { "read" } else { "write" }];
    let per_second = done["iops"].as_f64()?;
    let mb_per_s = done["bw_bytes"].as_f64()? / 1e6;
    let mean_us = f64::from(job.writers) * f64::from(job.depth) * 1e6 / per_second;
    Some(Fio { version, per_second, mb_per_s, mean_us })
}

fn call(dir: &Path, job: &Job, args: &[&str]) -> Option<serde_json::Value> {
    let output = Command::new("fio")
        .args(["--name=racos", "--direct=1", "--group_reporting", "--output-format=json"])
        .arg(format!("--directory={}", dir.display()))
        .arg(format!("--numjobs={}", job.writers))
        .arg(format!("--size={}", job.file_bytes))
        .args(args)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    // Notes of fio may stand before the report.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(&text[text.find('{')?..]).ok()
}
