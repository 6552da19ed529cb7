//! racos: the command people run.
//!
//! One file a command; [`cluster`] starts node processes, [`connect`] finds a cluster, [`exit`] is
//! what scripts see.

#![forbid(unsafe_code)]

mod bench;
mod cluster;
mod config;
mod connect;
mod data;
mod demo;
mod exit;
mod inspect;
mod keys;
mod member;
mod node;
mod output;
mod reconfigure;
mod salvage;
mod scratch;
mod snapshot;
mod status;
mod tune;
mod up;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A leaderless, erasure-coded, replicated key-value store.
#[derive(Parser, Debug)]
#[command(version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Demo(demo::DemoArgs),
    Up(up::UpArgs),
    Node(node::NodeArgs),
    Put(data::PutArgs),
    Get(data::GetArgs),
    Del(data::DelArgs),
    Ls(data::LsArgs),
    Status(status::StatusArgs),
    Bench(Box<bench::BenchArgs>),
    Tune(tune::TuneArgs),
    Inspect(inspect::InspectArgs),
    Member(member::MemberArgs),
    Snapshot(snapshot::SnapshotArgs),
    Salvage(salvage::SalvageArgs),
}

fn main() -> ExitCode {
    racos_tuning::keep_freed_memory();
    let outcome = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Up(args) => up::run(&args),
        Command::Node(args) => node::run(&args),
        Command::Put(args) => data::put(args),
        Command::Get(args) => data::get(&args),
        Command::Del(args) => data::del(&args),
        Command::Ls(args) => data::ls(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Member(args) => member::run(&args),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::Salvage(args) => salvage::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.text.is_empty() {
                eprintln!("racos: {}", failure.text);
            }
            ExitCode::from(failure.code)
        }
    }
}
