//! `racos member add|remove|set`: other members, or another f or k, of a running cluster (PROTOCOL 10).
//!
//! Invariant: the cluster itself judges a change, one at a time; what is asked for twice is done once: a
//! change names the epoch that it changes.
//! What would break it: asking again for other members after a lost answer, without looking first.

use crate::connect::{Connect, Target, resolve};
use crate::exit::{Failure, Outcome, UNAVAILABLE, failed, usage};
use crate::keys;
use crate::member::{check_terms, in_lane, lane_line, newest, terms};
use crate::output;
use clap::Args;
use racos_client::{Action, Client, Joining, KeyEntry, Op, Reconfigure, Route};
use racos_engine::lanes::lane_address;
use racos_engine::status::Status;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// A node that joins may be so many slots behind the others when it is proposed: what the cluster does
/// in a moment.
const BEHIND_MAX: u64 = 1000;

/// Make a running node, which looks on so far, a member.
///
/// Start the node first, on an empty data directory, with the configuration of another one, but a
/// `node` of its own (the next number never used: `racos member list` tells it) and its own `listen`.
/// It follows the others until it has caught up; then it becomes a member. Values written before stay
/// where they are, as they are; new ones are cut for the new members.
#[derive(Args, Debug)]
#[command(after_help = "Example, for a cluster of `racos up`:\n  \
    sed 's/^node = .*/node = 5/; s|^data_dir = .*|data_dir = \"racos-data/node5\"|' \\\n    \
    racos-data/node0.toml > racos-data/node5.toml\n  \
    sed -i '1i listen = \"127.0.0.1:7405\"' racos-data/node5.toml\n  \
    echo 'listen = \"127.0.0.1:2384\"' >> racos-data/node5.toml\n  \
    racos node --config racos-data/node5.toml &\n  racos member add 127.0.0.1:7405")]
pub struct AddArgs {
    /// Where the node is reached by the others and by clients.
    #[arg(value_name = "HOST:PORT")]
    address: String,
    #[command(flatten)]
    code: CodeArgs,
    #[command(flatten)]
    connect: Connect,
}

/// Let a member go.
///
/// One that runs must go on running until it is released: fragments of values written before lie on
/// it until these are re-coded, which the others do; `racos member list` shows how far they are. One
/// that is lost for ever is removed with --lost.
#[derive(Args, Debug)]
#[command(after_help = "Example, five members with f = 1, k = 3 to four:\n  \
    racos member remove 4 --k 2")]
pub struct RemoveArgs {
    /// The node's number.
    node: u8,
    /// Its disk is lost for ever: nothing on it is counted on, and it must never come back.
    #[arg(long)]
    lost: bool,
    #[command(flatten)]
    code: CodeArgs,
    #[command(flatten)]
    connect: Connect,
}

/// Choose another f or k for what is written from now on.
#[derive(Args, Debug)]
#[command(after_help = "Example, every value whole on every member:\n  racos member set --k 1")]
pub struct SetArgs {
    /// Members that there are then: a check, members come and go by `add` and `remove`.
    #[arg(long)]
    n: Option<usize>,
    #[command(flatten)]
    code: CodeArgs,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Args, Debug)]
struct CodeArgs {
    /// Members that may be down at the same time; as it is, if not given.
    #[arg(long)]
    f: Option<u8>,
    /// Fragments that make a value; as it is, if not given.
    #[arg(long)]
    k: Option<u8>,
    #[command(flatten)]
    force: ForceArgs,
}

/// How a condition of a change is overridden.
#[derive(Args, Debug, Clone, Copy, Default)]
pub struct ForceArgs {
    /// Even if more members than may be lost are without their fragments then: lists the keys whose values
    /// may be gone for ever and, if there is any, changes nothing without --yes.
    #[arg(long)]
    pub force: bool,
    /// With --force: list the keys, and go on.
    #[arg(long, requires = "force")]
    pub yes: bool,
}

/// What is to be changed.
#[derive(Debug, Default)]
struct Wish<'a> {
    joins: Option<(u8, u128, String)>,
    leaves: Option<u8>,
    is_lost: bool,
    f: Option<u8>,
    k: Option<u8>,
    force: ForceArgs,
    n: Option<usize>,
    /// The command that asks for it, to name in advice.
    command: &'a str,
}

/// Does in each lane what is to be done in all: one after the other, and none that has it already, so
/// that a command that was cut off can be repeated.
fn in_each(client: &mut Client, each: &mut dyn FnMut(&mut Client, usize) -> Outcome) -> Outcome {
    let lanes = client.lanes();
    for lane in 0..lanes {
        each(client, lane).map_err(|failure| in_lane(lanes, lane, failure))?;
    }
    Ok(())
}

pub fn add(args: &AddArgs) -> Outcome {
    let target = args.connect.target()?;
    let address = resolve("ADDRESS", &args.address)?;
    let mut client = args.connect.client()?;
    let mut joiner = client_of(&target, address, &args.connect)
        .map_err(|failure| not_there(address, failure, &mut client))?;
    let (lanes, its) = (client.lanes(), joiner.lanes());
    if lanes != its {
        return Err(usage(format!(
            "the node at {address} has lanes = {its}, and the cluster has {lanes}: set `lanes = {lanes}`"
        )));
    }
    let own = newest(&mut joiner, 0).map_err(|failure| not_there(address, failure, &mut client))?;
    let who = format!("the node at {address}");
    check_terms(&who, terms(&own).as_deref(), &newest(&mut client, 0)?)?;
    in_each(&mut client, &mut |client, lane| add_in(args, client, &mut joiner, (address, lane)))
}

fn add_in(
    args: &AddArgs,
    client: &mut Client,
    joiner: &mut Client,
    (address, lane): (SocketAddr, usize),
) -> Outcome {
    let joining = caught_up(client, joiner, (address, lane), args.connect.timeout)?;
    let (status, own) = joining;
    if let Some(member) = status.members.iter().find(|member| member.node == own.node) {
        let is_same = member.is_member && member.disk == own.disk_id;
        return match is_same {
            true => {
                let text = format!("node {} is a member already", own.node);
                lane_line(client.lanes(), lane, &text);
                Ok(())
            }
            false => Err(usage(format!(
                "node number {} was used before: start the node with `node = {}` on an empty data \
                 directory",
                own.node,
                status.members.len()
            ))),
        };
    }
    let disk = u128::from_str_radix(&own.disk_id, 16).map_err(|_| {
        failed(format!("node {} tells no disk id: is it older than this one?", own.node))
    })?;
    let at = lane_address(address, lane as u8).expect("it answered there");
    let wish = Wish {
        joins: Some((own.node, disk, at.to_string())),
        command: "racos member add",
        ..wish(&args.code)
    };
    change(client, lane, &status, &wish)
}

pub fn remove(args: &RemoveArgs) -> Outcome {
    let mut client = args.connect.client()?;
    let all = (0..client.lanes()).map(|lane| newest(&mut client, lane));
    let all: Vec<Status> = all.collect::<Result<_, _>>()?;
    let is_member = |status: &Status| {
        status.members.iter().any(|member| member.node == args.node && member.is_member)
    };
    if !all.iter().any(is_member) {
        let mut members = all.iter().flat_map(|status| &status.members);
        let was = members.any(|member| member.node == args.node);
        let text = if was { "is not a member any more" } else { "never was a member" };
        return Err(usage(format!("node {} {text}; see `racos member list`", args.node)));
    }
    in_each(&mut client, &mut |client, lane| {
        let status = newest(client, lane)?;
        if !is_member(&status) {
            // By a command that was cut off.
            lane_line(client.lanes(), lane, &format!("node {} has left already", args.node));
            return Ok(());
        }
        let wish = Wish {
            leaves: Some(args.node),
            is_lost: args.lost,
            command: "racos member remove",
            ..wish(&args.code)
        };
        change(client, lane, &status, &wish)
    })
}

pub fn set(args: &SetArgs) -> Outcome {
    let mut client = args.connect.client()?;
    in_each(&mut client, &mut |client, lane| {
        let status = newest(client, lane)?;
        let wish = Wish { n: args.n, command: "racos member set", ..wish(&args.code) };
        let is_same = |wanted: Option<u8>, is: usize| wanted.is_none_or(|it| usize::from(it) == is);
        if is_same(wish.f, status.f)
            && is_same(wish.k, status.k)
            && args.n.is_none_or(|n| n == status.n)
        {
            let text = format!("n = {}, f = {}, k = {} already", status.n, status.f, status.k);
            lane_line(client.lanes(), lane, &text);
            return Ok(());
        }
        change(client, lane, &status, &wish)
    })
}

fn wish(code: &CodeArgs) -> Wish<'static> {
    Wish { f: code.f, k: code.k, force: code.force, ..Wish::default() }
}

fn client_of(target: &Target, address: SocketAddr, connect: &Connect) -> Result<Client, Failure> {
    let one = Target { cluster: target.cluster, endpoints: vec![address] };
    one.client(|config| config.patience_ns = (connect.timeout.clamp(0.001, 2.0) * 1e9) as u64)
}

fn not_there(address: SocketAddr, failure: Failure, client: &mut Client) -> Failure {
    if failure.code != UNAVAILABLE {
        return failure;
    }
    let terms = newest(client, 0).ok().and_then(|status| terms(&status));
    let terms = terms.map_or_else(String::new, |terms| {
        format!("; one whose configuration means anything but {terms} has stopped")
    });
    let text = format!(
        "no node of this cluster answers at {address}: start it first (`racos node --config FILE`), see \
         `racos member add --help`{terms}"
    );
    Failure { text, ..failure }
}

/// Waits until a node that looks on knows nearly all that the members know (PROTOCOL 10-m).
fn caught_up(
    client: &mut Client,
    joiner: &mut Client,
    (address, lane): (SocketAddr, usize),
    timeout: f64,
) -> Result<(Status, Status), Failure> {
    let mut progress_at = Instant::now();
    let mut told = None;
    loop {
        let own = newest(joiner, lane).map_err(|failure| not_there(address, failure, client))?;
        let status = newest(client, lane)?;
        if own.exec + BEHIND_MAX >= status.exec {
            return Ok((status, own));
        }
        if told != Some(own.exec) {
            let text =
                format!("node {} catches up: {} of {} slots", own.node, own.exec, status.exec);
            lane_line(client.lanes(), lane, &text);
            (told, progress_at) = (Some(own.exec), Instant::now());
        }
        if progress_at.elapsed().as_secs_f64() > timeout {
            return Err(failed(format!(
                "node {} does not catch up: {} of {} slots; see `racos status`",
                own.node, own.exec, status.exec
            )));
        }
        std::thread::sleep(LOOK);
    }
}

/// The change that makes of the members as they are what is wished for, or why it cannot be.
fn plan(status: &Status, wish: &Wish<'_>) -> Result<Reconfigure, String> {
    let present = status.members.iter().filter(|member| member.is_member);
    let mut members: Vec<u8> = present.map(|member| member.node).collect();
    let mut joining = Vec::new();
    if let Some((node, disk, address)) = &wish.joins {
        if usize::from(*node) != status.members.len() {
            return Err(format!(
                "the next node that joins is node {}, not node {node}: numbers are never used again, \
                 and none is left out; change `node` in its configuration and start it on an empty data \
                 directory",
                status.members.len()
            ));
        }
        members.push(*node);
        joining.push(Joining { disk: *disk, address: address.as_str().into() });
    }
    members.retain(|node| Some(*node) != wish.leaves);
    let f = wish.f.unwrap_or(status.f as u8);
    let k = wish.k.unwrap_or(status.k as u8);
    let n = members.len();
    if wish.n.is_some_and(|wanted| wanted != n) {
        return Err(format!(
            "the cluster has {n} members: `racos member add` and `racos member remove` change that"
        ));
    }
    let needed = 2 * usize::from(f) + usize::from(k);
    if k == 0 || n < needed {
        let most = n.saturating_sub(2 * usize::from(f));
        let advice = match most {
            0 => format!("choose a smaller f: at most {}", n.saturating_sub(1) / 2),
            _ => format!("add --k {most}, or less"),
        };
        return Err(format!(
            "{n} members with f = {f} and k = {k} would break the promise: n >= 2f + k and k >= 1 must \
             hold; {}: {advice}",
            wish.command
        ));
    }
    let lost = wish.leaves.filter(|_| wish.is_lost).into_iter().collect();
    let (expected, is_forced) = (status.epoch, wish.force.force);
    Ok(Reconfigure { expected, members, joining, lost_max: f, data: k, lost, is_forced })
}

/// Asks for a change in a lane, and shows how it takes effect.
fn change(client: &mut Client, lane: usize, before: &Status, wish: &Wish<'_>) -> Outcome {
    let lanes = client.lanes();
    let change = plan(before, wish).map_err(usage)?;
    let wanted = (change.members.len(), usize::from(change.lost_max), usize::from(change.data));
    let members = change.members.clone();
    let action = Action::Reconfigure(Box::new(change));
    list_at_risk(client, lane, &action, wish.force)?;
    let operation = Op::Members { action };
    if let Err(error) = client.run_in(lane, operation, Route::Any) {
        // It may have taken effect all the same.
        let status = newest(client, lane)?;
        let is_done = status.epoch == before.epoch + 1 && is_as(&status, &members, wanted);
        if !is_done {
            return Err(error.into());
        }
    }
    let (n, f, k) = wanted;
    lane_line(lanes, lane, &format!("admitted: n = {n}, f = {f}, k = {k}"));
    loop {
        let status = newest(client, lane)?;
        if status.epoch > before.epoch && status.exec >= status.effect {
            lane_line(lanes, lane, &format!("in effect from slot {} on", status.effect));
            break;
        }
        lane_line(lanes, lane, &format!("slot {} of {}", status.exec, status.effect));
        std::thread::sleep(LOOK);
    }
    let is_last = lane + 1 == lanes;
    if let Some(node) = wish.leaves.filter(|_| is_last && !wish.is_lost) {
        output::line(&format!(
            "keep node {node} running until `racos member list` calls it released: values written \
             before lie on it"
        ));
    }
    Ok(())
}

/// PROTOCOL 10-ja: before a change is forced, what it may cost is listed.
pub fn list_at_risk(
    client: &mut Client,
    lane: usize,
    change: &Action,
    force: ForceArgs,
) -> Outcome {
    if !force.force {
        return Ok(());
    }
    let mut count = 0u64;
    client.at_risk(lane, change, &mut |entry: &KeyEntry| {
        count += 1;
        output::line(&format!(
            "at risk: {} ({} bytes, written at revision {})",
            keys::show(&entry.key),
            entry.len,
            entry.revision
        ));
    })?;
    if count > 0 && !force.yes {
        return Err(failed(format!(
            "{count} version(s), listed above, may be gone for ever after this change: nothing was \
             changed; bring nodes back first, or accept it with --yes"
        )));
    }
    Ok(())
}

fn is_as(status: &Status, members: &[u8], code: (usize, usize, usize)) -> bool {
    let present = status.members.iter().filter(|member| member.is_member);
    present.map(|member| member.node).eq(members.iter().copied())
        && (status.n, status.f, status.k) == code
}

#[cfg(test)]
mod tests {
    use super::*;
    use racos_engine::status::MemberStatus;

    /// Five members 0 to 5 without node 3, which left.
    fn status() -> Status {
        let member =
            |node: u8| MemberStatus { node, is_member: node != 3, ..MemberStatus::default() };
        let members = (0..6).map(member).collect();
        Status { n: 5, f: 1, k: 3, epoch: 4, members, ..Status::default() }
    }

    #[test]
    fn what_is_wished_for_is_all_that_changes() {
        let joins = Some((6, 77, "10.0.0.7:7400".to_string()));
        let change = plan(&status(), &Wish { joins, ..Wish::default() }).unwrap();
        assert_eq!(change.members, [0, 1, 2, 4, 5, 6]);
        assert_eq!((change.expected, change.lost_max, change.data), (4, 1, 3));
        assert_eq!((change.joining.len(), change.joining[0].disk), (1, 77));
        let wish = Wish { leaves: Some(1), is_lost: true, k: Some(2), ..Wish::default() };
        let change = plan(&status(), &wish).unwrap();
        assert_eq!((change.members, change.lost, change.data), (vec![0, 2, 4, 5], vec![1], 2));
        let change = plan(&status(), &Wish { f: Some(2), k: Some(1), ..Wish::default() }).unwrap();
        assert_eq!((change.members.len(), change.lost_max, change.data), (5, 2, 1));
    }

    #[test]
    fn what_would_break_the_promise_is_refused_with_what_to_do() {
        let why = |wish: Wish<'_>| plan(&status(), &wish).unwrap_err();
        let text = why(Wish { leaves: Some(1), ..Wish::default() });
        assert!(text.contains("4 members") && text.contains("--k 2"), "{text}");
        let text = why(Wish { f: Some(3), ..Wish::default() });
        assert!(text.contains("smaller f: at most 2"), "{text}");
        let text = why(Wish { k: Some(0), ..Wish::default() });
        assert!(text.contains("k >= 1"), "{text}");
        let text = why(Wish { joins: Some((9, 1, String::new())), ..Wish::default() });
        assert!(text.contains("node 6, not node 9"), "{text}");
        let text = why(Wish { n: Some(7), ..Wish::default() });
        assert!(text.contains("has 5 members"), "{text}");
    }
}
