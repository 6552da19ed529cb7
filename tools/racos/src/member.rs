//! `racos member`: who the members are, where they are, and a new disk in the place of a lost one. Members
//! that come and go: `reconfigure.rs`.

use crate::config;
use crate::connect::{Connect, Target, resolve};
use crate::exit::{Failure, Outcome, UNAVAILABLE, failed, usage};
use crate::output;
use crate::reconfigure::{self, AddArgs, ForceArgs, RemoveArgs, SetArgs};
use crate::status;
use clap::{Args, Subcommand};
use racos_client::{Action, Client, ClientError, Op, Replace, Route};
use racos_engine::lanes::{Part, check_layout, lane_address, part};
use racos_engine::runtime::{PrepareError, adopt_from, prepare};
use racos_engine::status::{MemberStatus, Status};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Show the members, add, move or remove one, choose another f or k, or replace the disk of one.
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
    Move(MoveArgs),
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
    /// Where the other nodes reach it from now on, HOST:PORT; by default where they reached the old disk.
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Take over what the node's old directory, moved away, still holds: those fragments need not be made
    /// again.
    #[arg(long, value_name = "OLD_DIR", conflicts_with = "erase")]
    adopt: Option<PathBuf>,
    #[command(flatten)]
    force: ForceArgs,
    #[command(flatten)]
    connect: Connect,
}

/// Tell the cluster that a node is reached at another address from now on.
///
/// Its disk stays the same. The other nodes speak to the new address at once, and keep it over restarts, so
/// that their configurations need no change. Run this first (the node may run or not), then start the
/// node at its new address.
#[derive(Args, Debug)]
#[command(after_help = "Example, for node 2 of a cluster of `racos up`:\n  \
    racos member move 2 127.0.0.1:8402\n  \
    then stop node 2, set its own place in `members` (or `listen`) to 127.0.0.1:8402, and start it")]
struct MoveArgs {
    /// The node's number.
    node: u8,
    /// Where the other nodes reach it from now on, HOST:PORT; with several lanes, lane 0.
    address: String,
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
        MemberCommand::Move(args) => move_node(args),
    }
}

/// The newest report on a lane, of the nodes that answer soon.
pub fn newest(client: &mut Client, lane: usize) -> Result<Status, Failure> {
    let reports = client.status_all(lane);
    let newest = reports.into_iter().flatten().max_by_key(|status| (status.epoch, status.exec));
    newest.ok_or_else(|| Failure { code: UNAVAILABLE, text: "no node answered".into() })
}

/// Where a lane of a node at this address is reached.
fn address_in(base: SocketAddr, lane: usize) -> Result<SocketAddr, Failure> {
    lane_address(base, lane as u8)
        .ok_or_else(|| usage(format!("{base}: there is no port for lane {lane}")))
}

/// What the cluster was founded with, as in a configuration; `None`: its nodes are too old to tell.
pub fn terms(of: &Status) -> Option<String> {
    let known = !of.policy.is_empty() && !of.fast.is_empty();
    known.then(|| format!("policy = \"{}\", fast = \"{}\"", of.policy, of.fast))
}

/// Refuses a node with other terms than the cluster's before anything is changed: started, it would stop.
pub fn check_terms(who: &str, its: Option<&str>, cluster: &Status) -> Outcome {
    match (its, terms(cluster)) {
        (Some(its), Some(is)) if its != is => Err(usage(format!(
            "{who} has {its}, and the cluster was founded with {is}: write the latter into its configuration"
        ))),
        _ => Ok(()),
    }
}

fn move_node(args: &MoveArgs) -> Outcome {
    let base = resolve("ADDRESS", &args.address)?;
    let target = args.connect.target()?;
    let mut client = args.connect.client()?;
    // The node that moves may not answer: its status is not waited for as long.
    let mut quick = client_of(&target, &args.connect)?;
    let lanes = client.lanes();
    for lane in 0..lanes {
        move_lane(args.node, address_in(base, lane)?, (&mut quick, &mut client), lane)
            .map_err(|failure| in_lane(lanes, lane, failure))?;
    }
    output::line(&format!(
        "start node {} there: set its own place in `members`, or `listen`, of its configuration",
        args.node
    ));
    Ok(())
}

fn move_lane(
    node: u8,
    address: SocketAddr,
    (quick, client): (&mut Client, &mut Client),
    lane: usize,
) -> Outcome {
    let lanes = client.lanes();
    let find = |client: &mut Client| {
        let status = newest(client, lane)?;
        let member = status.members.into_iter().find(|member| member.node == node);
        member.ok_or_else(|| {
            usage(format!("node {node} never was a member; see `racos member list`"))
        })
    };
    let member = find(quick)?;
    let text = address.to_string();
    if member.address != text {
        let expected = member.incarnation;
        let action = Action::MoveNode { node, expected, address: text.clone().into() };
        if let Err(error) = client.run_in(lane, Op::Members { action }, Route::Any)
            && find(quick)?.address != text
        {
            return Err(error.into());
        }
    }
    lane_line(lanes, lane, &format!("node {node} is reached at {text} from now on"));
    Ok(())
}

fn client_of(target: &Target, connect: &Connect) -> Result<Client, Failure> {
    let patience_ns = (connect.timeout.clamp(0.001, 2.0) * 1e9) as u64;
    target.client(|config| config.patience_ns = patience_ns)
}

fn list(args: &ListArgs) -> Outcome {
    let target = args.connect.target()?;
    let mut client = client_of(&target, &args.connect)?;
    for lane in 0..client.lanes() {
        if client.lanes() > 1 {
            output::line(&format!("lane {lane}:"));
        }
        list_lane(args, &target, &mut client, lane)?;
    }
    Ok(())
}

fn list_lane(args: &ListArgs, target: &Target, client: &mut Client, lane: usize) -> Outcome {
    let newest = newest(client, lane)?;
    // Those that joined, too. They tell their address of this lane; clients are given that of lane 0.
    let address = |member: &MemberStatus| member.address.parse::<SocketAddr>().ok();
    let first = |address: SocketAddr| {
        let port = address.port().checked_sub(lane as u16)?;
        Some(SocketAddr::new(address.ip(), port))
    };
    let addresses = newest.members.iter().filter_map(address).filter_map(first);
    let all = Target { cluster: target.cluster, endpoints: addresses.collect() };
    let reports = match all.endpoints.is_empty() {
        true => client.status_all(lane),
        // That they cannot be reached from here is told of each.
        false => client_of(&all, &args.connect).map_or(vec![], |mut them| them.status_all(lane)),
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
    let patience_ns = (args.connect.timeout.max(0.001) * 1e9) as u64;
    let mut client = target.client(|config| config.patience_ns = patience_ns)?;
    // The node that is replaced does not answer: its status is not waited for as long.
    let mut quick = client_of(&target, &args.connect)?;
    let (told, are) = (usize::from(options.config.lane.count), client.lanes());
    if told != are {
        return Err(usage(format!(
            "{} says lanes = {told}, and the cluster has {are}: set `lanes = {are}`",
            path.display()
        )));
    }
    let its = options.config.terms().to_string();
    check_terms(&path.display().to_string(), Some(&its), &newest(&mut quick, 0)?)?;
    check_layout(&options.dir, options.config.lane.count).map_err(usage)?;
    // Each lane has a disk of its own; one after the other, so that what was cut off can be repeated.
    for lane in 0..are {
        let part = part(&options, lane as u8).map_err(|error| usage(error.to_string()))?;
        replace_lane(args, &part, (&mut quick, &mut client), lane)
            .map_err(|failure| in_lane(are, lane, failure))?;
    }
    output::line(&format!(
        "start the node (`racos node --config {}`), then follow it with `racos member list`",
        path.display()
    ));
    Ok(())
}

/// A failure that says in which lane, if there are several, and that lanes before it are done.
pub fn in_lane(lanes: usize, lane: usize, failure: Failure) -> Failure {
    let text = match (lanes, lane) {
        (1, _) => return failure,
        (_, 0) => format!("lane 0 of {lanes}: {}", failure.text),
        _ => format!(
            "lane {lane} of {lanes}: {}; the lanes before it are done: run the same command again to go \
             on",
            failure.text
        ),
    };
    Failure { text, ..failure }
}

/// A line about a lane; with one lane, about the node.
pub fn lane_line(lanes: usize, lane: usize, text: &str) {
    match lanes {
        1 => output::line(text),
        _ => output::line(&format!("lane {lane}: {text}")),
    };
}

fn replace_lane(
    args: &ReplaceArgs,
    part: &Part,
    (quick, client): (&mut Client, &mut Client),
    lane: usize,
) -> Outcome {
    let (node, lanes) = (args.node, client.lanes());
    let status = newest(quick, lane)?;
    let member = status.members.iter().find(|member| member.node == node);
    let expected = member.map_or(1, |member| member.incarnation);
    // A lane whose disk is there keeps it; what an attempt that was cut off has made is not erased again.
    let keeps = |member: &MemberStatus| !args.erase || (lanes > 1 && member.is_rebuilding);
    if let Some(member) = member.filter(|member| keeps(member))
        && holds(part, expected, &member.disk, lanes > 1)
    {
        let text = format!("node {node} has this disk already: incarnation {expected}");
        lane_line(lanes, lane, &text);
        return Ok(());
    }
    let address = match &args.address {
        Some(text) => address_in(resolve("--address", text)?, lane)?.to_string().into(),
        None => Box::default(),
    };
    let prepared = make_directory(part, expected, args.erase)?;
    if let Some(old) = &args.adopt {
        adopt(part, expected, old, (lanes, lane))?;
    }
    let id = format!("{:032x}", prepared.disk_id);
    let change =
        Replace { node, expected, disk: prepared.disk_id, address, is_forced: args.force.force };
    let action = Action::ReplaceNode(Box::new(change));
    reconfigure::list_at_risk(client, lane, &action, args.force)?;
    let operation = Op::Members { action };
    if let Err(error) = client.run_in(lane, operation, Route::Any) {
        settle(quick, lane, (node, &id), error)?;
    }
    lane_line(lanes, lane, &format!("node {node} is incarnation {} now", expected + 1));
    Ok(())
}

/// A request that failed may have taken effect: then the members show it.
fn settle(client: &mut Client, lane: usize, (node, id): (u8, &str), error: ClientError) -> Outcome {
    let status = newest(client, lane)?;
    let is_done = status.members.iter().any(|member| member.node == node && member.disk == id);
    if is_done { Ok(()) } else { Err(error.into()) }
}

/// Whether the directory holds the disk that is a member: the command was run before, to the end; or,
/// where several lanes have disks, this one's was not lost. The cluster does not know the ids of the disks
/// that it was founded with.
fn holds(part: &Part, incarnation: u32, disk: &str, or_founding: bool) -> bool {
    let is_founding = or_founding && disk.bytes().all(|digit| digit == b'0');
    let mut config = part.config.clone();
    config.incarnation = incarnation;
    part.dir.join("superblock").exists()
        && prepare(&config, &part.dir, &mut |_, _| {})
            .is_ok_and(|held| is_founding || format!("{:032x}", held.disk_id) == disk)
}

/// Takes over the fragments of the old directory, before the cluster hears of the new one.
fn adopt(part: &Part, expected: u32, old: &Path, (lanes, lane): (usize, usize)) -> Outcome {
    let old = if lanes > 1 { old.join(format!("lane-{lane}")) } else { old.to_path_buf() };
    let mut config = part.config.clone();
    config.incarnation = expected + 1;
    let bar = output::step_bar(0);
    let adopted = adopt_from(&config, &part.dir, &old, &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let adopted = adopted.map_err(failed)?;
    let text = format!(
        "{} fragments ({}) taken over from {}, {} are not there or damaged",
        adopted.fragments,
        output::bytes(adopted.bytes),
        old.display(),
        adopted.missing
    );
    lane_line(lanes, lane, &text);
    Ok(())
}

/// The directory as the node's next incarnation.
fn make_directory(
    part: &Part,
    expected: u32,
    erase: bool,
) -> Result<racos_engine::runtime::Prepared, Failure> {
    let (dir, node) = (&part.dir, part.config.node);
    fs::create_dir_all(dir)
        .map_err(|error| failed(format!("cannot make {}: {error}", dir.display())))?;
    let mut config = part.config.clone();
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

    #[test]
    fn a_node_with_other_terms_than_the_clusters_is_refused_and_an_old_one_tells_none() {
        let of = |policy: &str, fast: &str| Status {
            policy: policy.into(),
            fast: fast.into(),
            ..Status::default()
        };
        let (usual, least, old) = (of("owner", "sup+f"), of("owner", "f*"), of("", ""));
        let check = |node, cluster| check_terms("node 5", terms(node).as_deref(), cluster);
        for (node, cluster) in [(&usual, &usual), (&least, &least), (&old, &least), (&least, &old)]
        {
            assert!(check(node, cluster).is_ok(), "{node:?} {cluster:?}");
        }
        for (node, cluster) in [(&usual, &least), (&least, &usual), (&of("queue", "f*"), &least)] {
            let refused = check(node, cluster).expect_err("they differ").text;
            assert!(refused.contains(&terms(cluster).unwrap()), "{refused}");
        }
    }
}
