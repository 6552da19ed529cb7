//! `racos member`: who the members are, and a new disk in the place of a lost one. Members that come and
//! go: `reconfigure.rs`.

use crate::config;
use crate::connect::{Connect, Target};
use crate::exit::{Failure, Outcome, UNAVAILABLE, failed, usage};
use crate::output;
use crate::reconfigure::{self, AddArgs, ForceArgs, RemoveArgs, SetArgs};
use crate::status;
use clap::{Args, Subcommand};
use racos_client::{Action, Client, ClientError, Op, Replace, Route};
use racos_engine::runtime::{Options, PrepareError, prepare};
use racos_engine::status::{MemberStatus, Status};
use std::fs;
use std::path::{Path, PathBuf};

/// Show the members, add or remove one, choose another f or k, or replace the disk of one.
#[derive(Args, Debug)]
pub struct MemberArgs {
    #[command(subcommand)]
    command: MemberCommand,
}

#[derive(Subcommand, Debug)]
enum MemberCommand {
    List(ListArgs),
    Add(AddArgs),
    Remove(RemoveArgs),
    Set(SetArgs),
    Replace(ReplaceArgs),
}

/// Show every member: incarnation and id of its disk, and whether it holds all that it should.
#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    connect: Connect,
}

/// Put a new, empty disk in the place of a node's that is lost.
///
/// To be run where the node runs, with the node stopped and its data directory empty: makes the
/// directory, then tells the cluster. After that start the node: it catches up and makes every
/// fragment that the lost disk held again from those of the others; `racos status` shows how far it
/// is. Stopped half-way, the command may be repeated.
#[derive(Args, Debug)]
#[command(after_help = "Example, for a cluster of `racos up` whose node 2 lost its disk:\n  \
    racos member replace 2 --erase\n  racos up")]
struct ReplaceArgs {
    /// The node's number.
    node: u8,
    /// Configuration of the node; by default nodeN.toml in the directory of `racos up`.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Erase what the data directory holds: the old disk is of no use to anyone.
    #[arg(long)]
    erase: bool,
    #[command(flatten)]
    force: ForceArgs,
    #[command(flatten)]
    connect: Connect,
}

pub fn run(args: &MemberArgs) -> Outcome {
    match &args.command {
        MemberCommand::List(args) => list(args),
        MemberCommand::Add(args) => reconfigure::add(args),
        MemberCommand::Remove(args) => reconfigure::remove(args),
        MemberCommand::Set(args) => reconfigure::set(args),
        MemberCommand::Replace(args) => replace(args),
    }
}

/// The newest report, of the nodes that answer soon.
pub fn newest(client: &mut Client) -> Result<Status, Failure> {
    let reports = client.status_all();
    let newest = reports.into_iter().flatten().max_by_key(|status| (status.epoch, status.exec));
    newest.ok_or_else(|| Failure { code: UNAVAILABLE, text: "no node answered".into() })
}

fn client_of(target: &Target, connect: &Connect) -> Result<Client, Failure> {
    let patience_ns = (connect.timeout.clamp(0.001, 2.0) * 1e9) as u64;
    target.client(|config| config.patience_ns = patience_ns)
}

fn list(args: &ListArgs) -> Outcome {
    let target = args.connect.target()?;
    let mut client = client_of(&target, &args.connect)?;
    let newest = newest(&mut client)?;
    // Those that joined, too.
    let addresses = newest.members.iter().filter_map(|member| member.address.parse().ok());
    let all = Target { cluster: target.cluster, endpoints: addresses.collect() };
    let reports = match all.endpoints.is_empty() {
        true => client.status_all(),
        false => client_of(&all, &args.connect)?.status_all(),
    };
    let heading = ["node", "address", "incarnation", "disk", "state"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for member in &newest.members {
        let of = |status: &&Status| {
            status.node == member.node && status.incarnation == member.incarnation
        };
        rows.push(row(member, reports.iter().flatten().find(of)));
    }
    output::line(output::table(&rows).trim_end());
    let (n, f, k) = (newest.n, newest.f, newest.k);
    output::line(&format!(
        "n = {n}, f = {f}, k = {k}; the next node that joins is {}",
        rows.len() - 1
    ));
    if let Some(line) = status::recode(&newest.recode) {
        output::line(&line);
    }
    Ok(())
}

fn row(member: &MemberStatus, status: Option<&Status>) -> Vec<String> {
    let state = match (status, member.is_rebuilding) {
        _ if member.is_lost && member.is_released => "removed as lost; no value needs it".into(),
        _ if member.is_lost => "removed as lost".into(),
        _ if member.is_released => "released: it may be wiped".into(),
        _ if !member.is_member => {
            format!(
                "removed; keep it running: {} values are not re-coded yet and have fragments on it",
                member.values
            )
        }
        (None, false) => "does not answer".into(),
        (None, true) => "replaced; start it with its new directory".into(),
        (Some(status), true) if !status.is_active => format!(
            "catches up: {} of {} slots, then rebuilds",
            status.exec.min(member.from),
            member.from
        ),
        (Some(status), true) => {
            format!("rebuilds: {} fragments to go", status.repair.missing)
        }
        (Some(_), false) => "ok".into(),
    };
    let disk = match member.disk.trim_start_matches('0') {
        "" => "founding".into(),
        _ => member.disk[..8].to_string(),
    };
    let address = member.address.clone();
    vec![member.node.to_string(), address, member.incarnation.to_string(), disk, state]
}

fn replace(args: &ReplaceArgs) -> Outcome {
    let target = args.connect.target()?;
    let node = args.node;
    let default = args.connect.dir.join(format!("node{node}.toml"));
    let path = args.config.clone().unwrap_or(default);
    let read = config::read(&path).map_err(|error| usage(error.to_string()))?;
    let options = read.node;
    if options.config.cluster != target.cluster || options.config.node != node {
        return Err(usage(format!(
            "{} is of node {} of cluster {:016x}, not of node {node} of cluster {:016x}: give the \
             node's own file with --config",
            path.display(),
            options.config.node,
            options.config.cluster,
            target.cluster
        )));
    }
    let mut client = client_of(&target, &args.connect)?;
    let status = newest(&mut client)?;
    let member = status.members.iter().find(|member| member.node == node);
    let expected = member.map_or(1, |member| member.incarnation);
    if let Some(member) = member.filter(|_| !args.erase)
        && holds(&options, expected, &member.disk)
    {
        output::line(&format!("node {node} has this disk already: incarnation {expected}"));
        return Ok(());
    }
    let prepared = make_directory(&options, expected, args.erase)?;
    let id = format!("{:032x}", prepared.disk_id);
    let change = Replace {
        node,
        expected,
        disk: prepared.disk_id,
        address: Box::default(),
        is_forced: args.force.force,
    };
    let action = Action::ReplaceNode(Box::new(change));
    let mut client = target.client(|config| {
        config.patience_ns = (args.connect.timeout.max(0.001) * 1e9) as u64;
    })?;
    reconfigure::list_at_risk(&mut client, &action, args.force)?;
    let operation = Op::Members { action };
    if let Err(error) = client.run(operation, Route::Any) {
        settle(&mut client, node, &id, error)?;
    }
    output::line(&format!(
        "node {node} is incarnation {} now; start it (`racos node --config {}`), then follow it with \
         `racos member list`",
        expected + 1,
        path.display()
    ));
    Ok(())
}

/// A request that failed may have taken effect: then the members show it.
fn settle(client: &mut Client, node: u8, id: &str, error: ClientError) -> Outcome {
    let status = newest(client)?;
    let is_done = status.members.iter().any(|member| member.node == node && member.disk == id);
    if is_done { Ok(()) } else { Err(error.into()) }
}

/// Whether the directory holds the disk that is a member: the command was run before, to the end.
fn holds(options: &Options, incarnation: u32, disk: &str) -> bool {
    let mut config = options.config.clone();
    config.incarnation = incarnation;
    options.dir.join("superblock").exists()
        && prepare(&config, &options.dir, &mut |_, _| {})
            .is_ok_and(|held| format!("{:032x}", held.disk_id) == disk)
}

/// The directory as the node's next incarnation.
fn make_directory(
    options: &Options,
    expected: u32,
    erase: bool,
) -> Result<racos_engine::runtime::Prepared, Failure> {
    let (dir, node) = (&options.dir, options.config.node);
    fs::create_dir_all(dir)
        .map_err(|error| failed(format!("cannot make {}: {error}", dir.display())))?;
    let mut config = options.config.clone();
    let mut progress = |_: u64, _: u64| {};
    config.incarnation = expected + 1;
    match prepare(&config, dir, &mut progress) {
        Ok(prepared) => Ok(prepared),
        Err(PrepareError::Holds { .. }) if erase => {
            erase_log(dir)?;
            prepare(&config, dir, &mut progress).map_err(|error| cannot(dir, node, &error))
        }
        Err(error) => Err(cannot(dir, node, &error)),
    }
}

fn cannot(dir: &Path, node: u8, error: &PrepareError) -> Failure {
    match error {
        PrepareError::Holds { cluster, node: holder, incarnation } => usage(format!(
            "{} holds the log of node {holder}, incarnation {incarnation}, of cluster \
             {cluster:016x}: move it away, or erase it with --erase, if its disk is to be replaced",
            dir.display()
        )),
        PrepareError::Serve(error) => failed(format!("node {node}: {error}")),
    }
}

/// Removes the files of a log, and nothing else.
fn erase_log(dir: &Path) -> Outcome {
    let problem = |error| failed(format!("cannot erase {}: {error}", dir.display()));
    for entry in fs::read_dir(dir).map_err(problem)? {
        let entry = entry.map_err(problem)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_segment = name.starts_with("segment-") && !name.contains('/');
        if name == "superblock" || is_segment {
            fs::remove_file(entry.path()).map_err(problem)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_member_says_what_it_lacks() {
        let member = MemberStatus {
            node: 2,
            incarnation: 2,
            from: 900,
            disk: format!("{:032x}", 0xab_u128 << 120),
            is_rebuilding: true,
            is_member: true,
            ..MemberStatus::default()
        };
        let status = Status { node: 2, incarnation: 2, exec: 30, ..Status::default() };
        assert!(row(&member, None)[4].starts_with("replaced; start it"));
        assert_eq!(row(&member, Some(&status))[4], "catches up: 30 of 900 slots, then rebuilds");
        let active = Status { is_active: true, exec: 1000, ..status };
        assert_eq!(row(&member, Some(&active))[4], "rebuilds: 0 fragments to go");
        assert_eq!(row(&member, None)[3], "ab000000");
        let whole = MemberStatus { is_rebuilding: false, disk: "0".repeat(32), ..member };
        assert_eq!(row(&whole, Some(&active))[3..], ["founding".to_string(), "ok".to_string()]);
        assert_eq!(row(&whole, None)[4], "does not answer");
        let left = MemberStatus { is_member: false, values: 7, ..whole };
        assert!(row(&left, Some(&active))[4].contains("keep it running: 7 values"));
        let released = MemberStatus { is_released: true, ..left };
        assert_eq!(row(&released, None)[4], "released: it may be wiped");
    }

    #[test]
    fn only_the_files_of_a_log_are_erased() {
        let dir = std::env::temp_dir().join(format!("racos-member-{:x}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for name in ["superblock", "segment-00000001.log", "lock", "notes.txt"] {
            fs::write(dir.join(name), b"x").unwrap();
        }
        erase_log(&dir).unwrap();
        let mut left: Vec<_> = fs::read_dir(&dir).unwrap().flatten().collect();
        left.sort_by_key(fs::DirEntry::file_name);
        let names: Vec<_> = left.iter().map(fs::DirEntry::file_name).collect();
        assert_eq!(names, ["lock", "notes.txt"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
