//! `racos status`: what every node tells about itself.

use crate::connect::{Connect, Target};
use crate::exit::{Failure, Outcome, UNAVAILABLE};
use crate::output;
use clap::Args;
use racos_client::ClientError;
use racos_engine::lanes::lane_address;
use racos_engine::status::{RecodeStatus, RepairStatus, ScrubStatus, Status};
use serde_json::json;
use std::net::SocketAddr;

/// Show every node: slots executed and lag, peers, disk, slots decided fast, slow and null.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racos status\n  racos status --json | jq '.nodes[].exec'\n\n\
                        Exit status 0 if a node answered, 4 if none did.")]
pub struct StatusArgs {
    /// Everything, as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

type Report = Result<Status, ClientError>;

pub fn run(args: &StatusArgs) -> Outcome {
    let target = args.connect.target()?;
    // A node that is there answers at once; do not wait long for the others.
    let patience_ns = (args.connect.timeout.clamp(0.001, 2.0) * 1e9) as u64;
    let connect = |target: &Target| target.connect(|config| config.patience_ns = patience_ns);
    let (endpoints, reports) = match connect(&target) {
        Ok(mut client) => {
            let reports = client.status_lanes();
            match where_they_moved(&target.endpoints, &reports, client.lanes()) {
                None => (of_lanes(&target.endpoints, client.lanes()), reports),
                Some(endpoints) => {
                    let moved = Target { cluster: target.cluster, endpoints };
                    let reports = connect(&moved)?.status_lanes();
                    (of_lanes(&moved.endpoints, client.lanes()), reports)
                }
            }
        }
        Err(error) if error.is_unavailable() => {
            (target.endpoints.clone(), vec![Err(error); target.endpoints.len()])
        }
        Err(error) => return Err(error.into()),
    };
    if args.json {
        output::line(&to_json(target.cluster, &endpoints, &reports));
    } else {
        output::line(to_table(target.cluster, &endpoints, &reports).trim_end());
    }
    if reports.iter().all(Result::is_err) {
        let text = format!("none of {} nodes answered", reports.len());
        return Err(Failure { code: UNAVAILABLE, text });
    }
    Ok(())
}

/// The endpoints with those of members that moved in place of those where nobody is any more; `None` if all
/// members are where they were thought to be. `reports`: those of an endpoint's lanes side by side.
fn where_they_moved(
    endpoints: &[SocketAddr],
    reports: &[Report],
    lanes: usize,
) -> Option<Vec<SocketAddr>> {
    let of_first_lane = reports.iter().step_by(lanes);
    let first = of_first_lane.clone().flatten();
    let newest = first.clone().max_by_key(|status| (status.epoch, status.exec))?;
    let members = newest.members.iter().filter(|member| member.is_member);
    let at: Vec<SocketAddr> =
        members.clone().filter_map(|member| member.address.parse().ok()).collect();
    let is_heard = |node: u8| first.clone().any(|status| status.node == node);
    let silent = members.filter(|member| !is_heard(member.node));
    let silent = silent.filter_map(|member| member.address.parse().ok());
    let mut moved = silent.filter(|address| !endpoints.contains(address)).peekable();
    moved.peek()?;
    let stay = endpoints.iter().zip(of_first_lane);
    let stay = stay.filter(|(endpoint, report)| report.is_ok() || at.contains(endpoint));
    Some(stay.map(|(endpoint, _)| *endpoint).chain(moved).collect())
}

/// Where each lane of each node is.
fn of_lanes(endpoints: &[SocketAddr], lanes: usize) -> Vec<SocketAddr> {
    let lanes = 0..lanes as u8;
    let at = |endpoint: &SocketAddr| {
        let endpoint = *endpoint;
        lanes.clone().filter_map(move |lane| lane_address(endpoint, lane))
    };
    endpoints.iter().flat_map(at).collect()
}

fn to_json(cluster: u64, endpoints: &[SocketAddr], reports: &[Report]) -> String {
    let nodes = endpoints.iter().zip(reports).map(|(endpoint, report)| match report {
        Ok(status) => {
            let mut node = serde_json::to_value(status).expect("a status is plain data");
            node["endpoint"] = json!(endpoint.to_string());
            node["reachable"] = json!(true);
            node
        }
        Err(error) => json!({
            "endpoint": endpoint.to_string(),
            "reachable": false,
            "error": error.to_string(),
        }),
    });
    let nodes: Vec<_> = nodes.collect();
    json!({"cluster": format!("{cluster:016x}"), "nodes": nodes}).to_string()
}

fn to_table(cluster: u64, endpoints: &[SocketAddr], reports: &[Report]) -> String {
    let answered = || reports.iter().flatten();
    let lanes = answered().map(|status| status.lanes).max().unwrap_or(1).max(1);
    let newest = |lane: u8| {
        let of_lane = answered().filter(|status| status.lane == lane);
        of_lane.map(|status| status.exec).max().unwrap_or(0)
    };
    let heading = [
        "node", "endpoint", "executed", "lag", "repair", "scrub", "keys", "peers", "live", "disk",
        "bound", "reserve", "fast", "slow", "told", "null", "memory", "up",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for (endpoint, report) in endpoints.iter().zip(reports) {
        rows.push(match report {
            Ok(status) => row(endpoint, status, newest(status.lane)),
            Err(_) => vec!["?".into(), endpoint.to_string(), "unreachable".into()],
        });
    }
    let first = answered().next();
    let code = first.map_or(String::new(), |status| {
        format!(", {} nodes, {} may be down, k = {}", status.n, status.f, status.k)
    });
    let revision = answered().map(|status| status.revision).max();
    let revision = match (revision, lanes) {
        (Some(revision), 1) => format!(", revision {revision}"),
        // Each has its own.
        (Some(_), _) => format!(", {lanes} lanes"),
        (None, _) => String::new(),
    };
    let mut text = format!("cluster {cluster:016x}{code}{revision}\n{}", output::table(&rows));
    for lane in 0..lanes {
        let of_lane = answered().filter(|status| status.lane == lane);
        let ahead = of_lane.max_by_key(|status| (status.epoch, status.exec));
        if let Some(line) = ahead.and_then(|status| recode(&status.recode)) {
            text += &format!("{}{line}\n", if lanes > 1 { in_lane(lane) } else { String::new() });
        }
    }
    for status in answered() {
        if let Some(line) = margin(status) {
            let lane = if lanes > 1 { in_lane(status.lane) } else { String::new() };
            text += &format!("{lane}node {}: {line}\n", status.node);
        }
        if let Some(problem) = &status.problem {
            let lane = if lanes > 1 { in_lane(status.lane) } else { String::new() };
            text += &format!("{lane}node {}: {problem}\n", status.node);
        }
    }
    text
}

/// That members are missing and what is written meanwhile, or is to be written again.
fn margin(status: &Status) -> Option<String> {
    let margin = &status.margin;
    let missing: Vec<_> = margin.missing.iter().map(|node| node.to_string()).collect();
    match (missing.is_empty(), margin.left) {
        (false, _) if margin.k < status.k => Some(format!(
            "misses {}: new values are cut into {} data fragments instead of {}",
            missing.join(", "),
            margin.k,
            status.k
        )),
        (true, left) if left > 0 => Some(format!(
            "{left} values in fewer data fragments than {} are being stored again",
            status.k
        )),
        (false, _) if margin.hosted > 0 => Some(format!(
            "misses {}: keeps {} fragments for those missing, {}",
            missing.join(", "),
            margin.hosted,
            output::bytes(margin.hosted_bytes)
        )),
        _ => None,
    }
}

fn in_lane(lane: u8) -> String {
    format!("lane {lane}: ")
}

fn row(endpoint: &SocketAddr, status: &Status, newest: u64) -> Vec<String> {
    let suspected: Vec<_> = status.peers.iter().filter(|peer| peer.suspected).collect();
    let peers = match suspected.len() {
        0 => format!("{} ok", status.peers.len()),
        _ => {
            let names: Vec<_> = suspected.iter().map(|peer| peer.node.to_string()).collect();
            format!("{} ok, not {}", status.peers.len() - suspected.len(), names.join(","))
        }
    };
    let full = if status.disk.full { " FULL" } else { "" };
    let slots = &status.slots;
    vec![
        match status.lanes {
            0 | 1 => status.node.to_string(),
            _ => format!("{}.{}", status.node, status.lane),
        },
        endpoint.to_string(),
        status.exec.to_string(),
        newest.saturating_sub(status.exec).to_string(),
        repair(&status.repair),
        scrub(&status.scrub),
        status.keys.to_string(),
        peers,
        output::bytes(status.disk.live_bytes),
        format!("{}{full}", output::bytes(status.disk.file_bytes)),
        output::bytes(status.disk.wanted_bytes),
        output::bytes(status.disk.reserve_bytes),
        slots.fast.to_string(),
        slots.slow.to_string(),
        slots.told.to_string(),
        slots.null.to_string(),
        output::bytes(status.memory_bytes),
        format!("{} s", status.uptime_ms / 1000),
    ]
}

/// Fragments that a node has still to make again, and values that it cannot.
fn repair(repair: &RepairStatus) -> String {
    match repair.lost {
        0 => repair.missing.to_string(),
        lost => format!("{}, {lost} LOST", repair.missing),
    }
}

/// How far it is that all values lie in the newest layout; none: they do.
pub fn recode(recode: &RecodeStatus) -> Option<String> {
    let RecodeStatus { values, values_left, bytes_left, .. } = *recode;
    let done = values.saturating_sub(values_left);
    let left = output::bytes(bytes_left);
    (values_left > 0).then(|| format!("re-coding: {done} of {values} values done, {left} left"))
}

/// Rounds over all that is on disk, how far this one is, and what was found damaged so far.
fn scrub(scrub: &ScrubStatus) -> String {
    let found = match scrub.fragments_damaged + scrub.records_damaged {
        0 => String::new(),
        found => format!(", {found} BAD"),
    };
    format!("{} + {}%{found}", scrub.rounds, scrub.percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports() -> (Vec<SocketAddr>, Vec<Report>) {
        let status = Status { node: 1, exec: 90, n: 2, k: 1, ..Status::default() };
        let other = Status { exec: 100, ..status.clone() };
        let lost = ClientError::Timeout { waited_ms: 1, may_have_happened: false, last: None };
        let endpoints = (1..4).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        (endpoints.collect(), vec![Ok(status), Ok(other), Err(lost)])
    }

    #[test]
    fn lag_is_told_against_the_newest_node_and_the_lost_one_is_shown() {
        let (endpoints, reports) = reports();
        let text = to_table(7, &endpoints, &reports);
        let line = |at: usize| text.lines().nth(at).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(line(2)[..4], ["1", "127.0.0.1:1", "90", "10"]);
        assert_eq!(line(3)[3], "0");
        assert_eq!(line(4), ["?", "127.0.0.1:3", "unreachable"]);
    }

    #[test]
    fn a_node_that_moved_is_looked_for_where_the_members_say() {
        let (endpoints, mut reports) = reports();
        let member = |node: u8, port: u16| racos_engine::status::MemberStatus {
            node,
            address: format!("127.0.0.1:{port}"),
            is_member: true,
            ..Default::default()
        };
        let members =
            |ports: [u16; 3]| (1..).zip(ports).map(|(node, at)| member(node, at)).collect();
        let look = |reports: &[Report]| where_they_moved(&endpoints, reports, 1);
        let Ok([first, second]) = reports.get_disjoint_mut([0, 1]) else { panic!() };
        let (Ok(first), Ok(second)) = (first, second) else { panic!() };
        (first.node, second.node) = (1, 2);
        (first.members, second.members) = (members([1, 2, 3]), members([1, 2, 3]));
        assert_eq!(look(&reports), None, "it is down");
        let Ok(second) = &mut reports[1] else { panic!() };
        second.members = members([1, 2, 9]);
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(look(&reports), Some(vec![at(1), at(2), at(9)]));
    }

    #[test]
    fn what_the_files_take_is_told_beside_what_is_live_and_what_they_may_take() {
        let mut status = Status { n: 1, k: 1, ..Status::default() };
        (status.disk.live_bytes, status.disk.file_bytes) = (3 << 30, 4 << 30);
        (status.disk.wanted_bytes, status.disk.reserve_bytes) = (5 << 30, 1 << 30);
        let text = to_table(7, &[SocketAddr::from(([127, 0, 0, 1], 1))], &[Ok(status)]);
        assert!(text.contains("3.0 GiB  4.0 GiB  5.0 GiB  1.0 GiB"), "{text}");
    }

    #[test]
    fn who_is_missing_is_told_where_it_makes_a_difference() {
        let mut status = Status { node: 2, n: 5, k: 3, ..Status::default() };
        let text = |status: &Status| {
            to_table(7, &[SocketAddr::from(([127, 0, 0, 1], 1))], &[Ok(status.clone())])
        };
        (status.margin.missing, status.margin.k) = (vec![4], 3);
        assert!(!text(&status).contains("misses"), "nothing is written otherwise");
        (status.margin.hosted, status.margin.hosted_bytes) = (12, 5 << 20);
        let words = "node 2: misses 4: keeps 12 fragments for those missing, 5.0 MiB\n";
        assert!(text(&status).ends_with(words), "{}", text(&status));
        (status.margin.k, status.margin.left) = (2, 7);
        let words = "node 2: misses 4: new values are cut into 2 data fragments instead of 3\n";
        assert!(text(&status).ends_with(words), "{}", text(&status));
        (status.margin.missing, status.margin.k) = (vec![], 3);
        assert!(text(&status).contains("node 2: 7 values in fewer data fragments than 3"));
        status.margin.left = 0;
        assert!(!text(&status).contains("fewer"));
    }

    #[test]
    fn what_is_left_to_re_code_is_told_until_nothing_is() {
        let status = |values_left| {
            let recode =
                RecodeStatus { values: 10, values_left, bytes_left: 2048, ..Default::default() };
            to_table(7, &[], &[Ok(Status { recode, ..Status::default() })])
        };
        let text = status(3);
        assert!(text.contains("re-coding: 7 of 10 values done, 2.0 KiB left\n"), "{text}");
        assert!(!status(0).contains("re-coding"));
    }

    #[test]
    fn json_has_all_nodes() {
        let (endpoints, reports) = reports();
        let value: serde_json::Value =
            serde_json::from_str(&to_json(7, &endpoints, &reports)).unwrap();
        assert_eq!(value["nodes"].as_array().unwrap().len(), 3);
        assert_eq!(value["nodes"][0]["exec"], 90);
        assert_eq!(value["nodes"][2]["reachable"], false);
    }
}
