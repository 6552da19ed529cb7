//! The steps of the demo, in order.

use super::Show;
use super::files::{Selection, select};
use super::load::{Counters, Load, Sum, sum, verify};
use crate::cluster::{Cluster, Plan};
use crate::exit::{Failure, Outcome, failed};
use crate::output;
use crate::tune::profile_here;
use racos_client::{Answer, Client, ClientError, Op, Route, Ticket};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

const NODES: usize = 5;
/// Values under way at once, and their bytes.
const AT_ONCE: usize = 8;
const BYTES_AT_ONCE: u64 = 16 << 20;
/// How long load runs before and while something is wrong.
const BEFORE: Duration = Duration::from_secs(1);
const DURING: Duration = Duration::from_secs(3);
/// Longest time that a write may wait while one node is gone.
const STALL_NS_MAX: u64 = 3_000_000_000;
/// How often to look whether the user wants to stop.
const LOOK_NS: u64 = 100_000_000;
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(20);

pub fn all(show: &mut Show, dir: &Path, root: &Path) -> Outcome {
    show.begin("start five nodes");
    let mut cluster = Cluster::create(&dir.join("cluster"), &plan(dir))?;
    cluster.start(&mut |done, total| show.tell(&format!("log files {done} of {total}")))?;
    show.check(cluster.first_ended().is_none(), || "a node has ended".to_string());
    show.end(&format!("n = {NODES}, f = 1, k = 3, {}", dir.display()));

    let mut client = cluster.target.client(|config| config.window = 256)?;
    let files = select(root, &dir.join("racos-made"))?;
    let sums = store(show, &mut client, &files)?;
    read_back(show, &mut client, &files, &sums, "read back through other nodes", 2)?;
    disk(show, &mut client, &files)?;
    one_killed(show, &mut cluster, &mut client, &files, &sums)?;
    one_frozen(show, &mut cluster, &mut client, &files, &sums)?;
    all_killed(show, &mut cluster)?;
    // The old client's session is still good: what it stored is where it was.
    read_back(show, &mut client, &files, &sums, "read all files again", 3)?;

    show.begin("stop");
    drop(client);
    cluster.stop();
    show.check((0..NODES).all(|node| !cluster.is_running(node)), || "a node runs on".to_string());
    show.end("nothing is left running");
    Ok(())
}

fn plan(dir: &Path) -> Plan {
    let mut plan = Plan::new(NODES, 1, 3);
    plan.initial_segments = 3;
    plan.tuning = profile_here(dir, NODES).to_toml();
    plan
}

/// Runs many operations, a few at a time: `next` gives one with its size, `done` takes what came.
fn run_all(
    stop: &AtomicBool,
    client: &mut Client,
    count: usize,
    mut next: impl FnMut(&mut Client, usize) -> Result<(Op, Route, u64), Failure>,
    mut done: impl FnMut(usize, Result<Answer, ClientError>) -> Outcome,
) -> Outcome {
    let mut under_way: BTreeMap<Ticket, (usize, u64)> = BTreeMap::new();
    let (mut begun, mut ended, mut bytes_under_way) = (0, 0, 0);
    let mut completions = Vec::new();
    while ended < count {
        while begun < count && under_way.len() < AT_ONCE && bytes_under_way < BYTES_AT_ONCE {
            let (op, route, bytes) = next(client, begun)?;
            under_way.insert(client.submit(op, route), (begun, bytes));
            bytes_under_way += bytes;
            begun += 1;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(failed("stopped"));
        }
        client.turn(client.now_ns() + LOOK_NS, &mut completions)?;
        for completion in completions.drain(..) {
            let Some((at, bytes)) = under_way.remove(&completion.ticket) else { continue };
            bytes_under_way -= bytes;
            ended += 1;
            done(at, completion.result)?;
        }
    }
    Ok(())
}

/// Stores all files through rotating nodes. Returns what was stored.
fn store(show: &mut Show, client: &mut Client, files: &Selection) -> Result<Vec<Sum>, Failure> {
    show.begin("store files through rotating nodes");
    let since = Instant::now();
    let mut sums = vec![Sum::default(); files.entries.len()];
    let mut stored = 0;
    run_all(
        &show.stop.clone(),
        client,
        files.entries.len(),
        |client, at| {
            let entry = &files.entries[at];
            let bytes = fs::read(&entry.path)
                .map_err(|error| failed(format!("{}: {error}", entry.path.display())))?;
            sums[at] = sum(&bytes);
            let value = client.pool().copy(&bytes).ok_or_else(|| failed("no buffer"))?;
            let op = Op::Put { key: entry.key.clone(), value };
            Ok((op, Route::Only(at % NODES), entry.bytes))
        },
        |at, result| {
            let name = files.entries[at].key.escape_ascii();
            show.check(matches!(result, Ok(Answer::Done { .. })), || format!("{name}: {result:?}"));
            stored += 1;
            show.tell(&format!("{stored} of {}", files.entries.len()));
            Ok(())
        },
    )?;
    let rate = files.bytes as f64 / since.elapsed().as_secs_f64() / 1e6;
    show.end(&format!(
        "{} files ({} made for their size), {}, {rate:.0} MB/s",
        files.entries.len(),
        files.made,
        output::bytes(files.bytes)
    ));
    Ok(sums)
}

/// Reads each file through the node `shift` after the one that it was stored through.
fn read_back(
    show: &mut Show,
    client: &mut Client,
    files: &Selection,
    sums: &[Sum],
    step: &str,
    shift: usize,
) -> Outcome {
    show.begin(step);
    let since = Instant::now();
    let mut read = 0;
    run_all(
        &show.stop.clone(),
        client,
        files.entries.len(),
        |_, at| {
            let op = Op::Get { key: files.entries[at].key.clone() };
            Ok((op, Route::Only((at + shift) % NODES), files.entries[at].bytes))
        },
        |at, result| {
            check_file(show, files, sums, at, result);
            read += 1;
            show.tell(&format!("{read} of {}", files.entries.len()));
            Ok(())
        },
    )?;
    let rate = files.bytes as f64 / since.elapsed().as_secs_f64() / 1e6;
    show.end(&format!("{read} files, SHA-256 compared, {rate:.0} MB/s"));
    Ok(())
}

fn check_file(
    show: &mut Show,
    files: &Selection,
    sums: &[Sum],
    at: usize,
    result: Result<Answer, ClientError>,
) {
    let name = files.entries[at].key.escape_ascii();
    match result {
        Ok(Answer::Value { bytes, .. }) => show.check(sum(&bytes) == sums[at], || {
            format!(
                "{name}: {} bytes that differ from the {} stored",
                bytes.len(),
                files.entries[at].bytes
            )
        }),
        other => show.check(false, || format!("{name}: {other:?}")),
    }
}

/// Compares bytes on disk with bytes of values.
fn disk(show: &mut Show, client: &mut Client, files: &Selection) -> Outcome {
    show.begin("bytes on disk");
    let mut shares = Vec::new();
    for (node, report) in client.status_all(0).into_iter().enumerate() {
        let share = report?.disk.log_bytes as f64 / files.bytes as f64;
        show.check((0.33..0.42).contains(&share), || {
            format!("node {node} has {share:.2} bytes on disk for each byte stored, not about 1/3")
        });
        shares.push(share);
    }
    let sum: f64 = shares.iter().sum();
    show.check(sum < 2.0, || format!("{sum:.2} bytes on disk for each byte stored"));
    let shares: Vec<_> = shares.iter().map(|share| format!("{share:.2}")).collect();
    show.end(&format!("{} of the values' bytes per node, {sum:.2}x in all", shares.join(" ")));
    Ok(())
}

/// What the load did while something was wrong.
struct During {
    writes: u64,
    reads: u64,
    stall_ms: u64,
}

/// Lets load go on for a while, and checks that it does.
fn watch(show: &mut Show, counters: &Counters, during: Duration) -> Result<During, Failure> {
    let count = || {
        let (writes, reads) = (&counters.writes, &counters.reads);
        (writes.load(Ordering::Relaxed), reads.load(Ordering::Relaxed))
    };
    let (writes, reads) = count();
    counters.stall_ns.store(0, Ordering::Relaxed);
    let until = Instant::now() + during;
    while Instant::now() < until {
        sleep(Duration::from_millis(50));
        show.go_on()?;
    }
    let after = count();
    let (writes, reads) = (after.0 - writes, after.1 - reads);
    let stall_ns = counters.stall_ns.load(Ordering::Relaxed);
    show.check(writes > 0, || "no write was acknowledged".to_string());
    show.check(reads > 0, || "no read was answered".to_string());
    show.check(stall_ns < STALL_NS_MAX, || {
        format!("no write was acknowledged for {} ms", stall_ns / 1_000_000)
    });
    Ok(During { writes, reads, stall_ms: stall_ns / 1_000_000 })
}

/// Ends load that had no reason to fail, and checks all it wrote.
fn settle(show: &mut Show, client: &mut Client, load: Load) -> Outcome {
    let counters = load.counters.clone();
    let journal = load.stop()?;
    let problems = counters.problems.lock().expect("no holder panics").clone();
    show.check(problems.is_empty(), || first_of(&problems));
    let wrong = verify(client, &journal, |_| {})?;
    (wrong.len()..journal.len()).for_each(|_| show.check(true, String::new));
    wrong.into_iter().for_each(|differs| show.check(false, || differs));
    Ok(())
}

/// Waits until a node has executed what the others had when this was called.
fn catch_up(show: &mut Show, client: &mut Client, node: usize) -> Result<Duration, Failure> {
    let since = Instant::now();
    let reports = client.status_all(0);
    let others = reports.iter().enumerate().filter(|(other, _)| *other != node);
    let goal = others.filter_map(|(_, report)| report.as_ref().ok()).map(|report| report.exec);
    let goal = goal.max().ok_or_else(|| failed("no other node answers"))?;
    loop {
        let executed = client.status(node).map_or(0, |report| report.exec);
        if executed >= goal {
            show.check(true, String::new);
            return Ok(since.elapsed());
        }
        if since.elapsed() > CATCH_UP_PATIENCE {
            show.check(false, || {
                format!("node {node} has executed {executed} of {goal} slots and lags behind")
            });
            return Ok(since.elapsed());
        }
        show.tell(&format!("node {node} catches up: {executed} of {goal} slots"));
        show.go_on()?;
        sleep(Duration::from_millis(20));
    }
}

/// Reads files and stores a value through one node alone.
fn serves(
    show: &mut Show,
    client: &mut Client,
    files: &Selection,
    sums: &[Sum],
    node: usize,
) -> Outcome {
    let step = (files.entries.len() / 25).max(1);
    for at in (0..files.entries.len()).step_by(step) {
        let op = Op::Get { key: files.entries[at].key.clone() };
        let result = client.run(op, Route::Only(node));
        check_file(show, files, sums, at, result);
    }
    let key = format!("serves/{node}").into_bytes();
    let value = client.pool().copy(b"here I am").ok_or_else(|| failed("no buffer"))?;
    let result = client.run(Op::Put { key, value }, Route::Only(node));
    show.check(matches!(result, Ok(Answer::Done { .. })), || {
        format!("a write through node {node}: {result:?}")
    });
    Ok(())
}

fn first_of(problems: &[String]) -> String {
    format!("{} problems, the first: {}", problems.len(), problems[0])
}

fn one_killed(
    show: &mut Show,
    cluster: &mut Cluster,
    client: &mut Client,
    files: &Selection,
    sums: &[Sum],
) -> Outcome {
    const NODE: usize = 2;
    show.begin("kill one node under load");
    let load = Load::start(cluster.target.clone(), "kill");
    sleep(BEFORE);
    cluster.kill(&[NODE]);
    show.tell("node 2 is dead");
    let seen = watch(show, &load.counters, DURING)?;
    cluster.start_nodes(&[NODE], &mut |_, _| {})?;
    let caught_up = catch_up(show, client, NODE)?;
    serves(show, client, files, sums, NODE)?;
    settle(show, client, load)?;
    show.end(&format!(
        "{} writes and {} reads went on, longest pause {} ms; back and caught up in {} ms",
        seen.writes,
        seen.reads,
        seen.stall_ms,
        caught_up.as_millis()
    ));
    Ok(())
}

fn one_frozen(
    show: &mut Show,
    cluster: &mut Cluster,
    client: &mut Client,
    files: &Selection,
    sums: &[Sum],
) -> Outcome {
    const NODE: usize = 4;
    show.begin("freeze one node under load for 3 s");
    let load = Load::start(cluster.target.clone(), "freeze");
    sleep(BEFORE);
    cluster.freeze(NODE);
    show.tell("node 4 is frozen");
    let seen = watch(show, &load.counters, DURING)?;
    cluster.thaw(NODE);
    let caught_up = catch_up(show, client, NODE)?;
    serves(show, client, files, sums, NODE)?;
    settle(show, client, load)?;
    show.end(&format!(
        "{} writes and {} reads went on, longest pause {} ms; caught up in {} ms",
        seen.writes,
        seen.reads,
        seen.stall_ms,
        caught_up.as_millis()
    ));
    Ok(())
}

/// Kills all nodes at once under load and starts them again.
fn all_killed(show: &mut Show, cluster: &mut Cluster) -> Outcome {
    show.begin("kill all five nodes under load");
    let load = Load::start(cluster.target.clone(), "blackout");
    let counters = load.counters.clone();
    sleep(BEFORE + BEFORE);
    let all: Vec<usize> = (0..NODES).collect();
    cluster.kill(&all);
    let journal = load.stop()?;
    let writes = counters.writes.load(Ordering::Relaxed);
    let unknown = journal.values().filter(|state| !state.unknown.is_empty()).count();
    show.check(writes > 0, || "no write was acknowledged before".to_string());
    let since = Instant::now();
    cluster.start(&mut |_, _| {})?;
    let mut client = cluster.target.client(|config| config.patience_ns = 30_000_000_000)?;
    let problems = counters.problems.lock().expect("no holder panics").clone();
    show.check(problems.is_empty(), || first_of(&problems));
    let wrong = verify(&mut client, &journal, |checked| {
        show.tell(&format!("{checked} of {} keys checked", journal.len()));
    })?;
    let back = since.elapsed();
    (wrong.len()..journal.len()).for_each(|_| show.check(true, String::new));
    wrong.into_iter().for_each(|differs| show.check(false, || differs));
    show.end(&format!(
        "{writes} acknowledged writes of {} keys all there, {unknown} unacknowledged whole or \
         absent; back and checked in {} ms",
        journal.len(),
        back.as_millis()
    ));
    Ok(())
}
