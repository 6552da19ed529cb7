//! Clusters of node processes on this machine, for `up`, `bench`, `demo` and the tests.
//!
//! Invariant: no node outlives the process that started it: the kernel kills them when it ends,
//! however it ends.

use crate::config;
use crate::connect::{Target, random_u64};
use crate::exit::{Failure, failed, usage};
use crate::node::{PREPARING, READY};
use crate::output;
use racos_protocol::{Fast, Policy, Thresholds};
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How long a node may take to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long a node may take to say that it is ready, apart from preparing its log.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// What a local cluster looks like.
#[derive(Debug, Clone)]
pub struct Plan {
    pub n: usize,
    pub f: usize,
    pub k: usize,
    pub policy: Policy,
    pub fast: Fast,
    /// Lanes of each node, which uses as many ports.
    pub lanes: u8,
    /// First port; `None` or 0: whatever is free.
    pub port_base: Option<u16>,
    /// First port of the etcd API; `None`: it is not served, 0: whatever is free.
    pub etcd_port_base: Option<u16>,
    pub segment_mib: u32,
    /// Segments written with zeros when a node is made.
    pub initial_segments: u32,
    /// More lines for `[limits]` and `[tuning]`.
    pub limits: String,
    pub tuning: String,
}

impl Plan {
    pub fn new(n: usize, f: usize, k: usize) -> Plan {
        let (limits, tuning) = (String::new(), String::new());
        let (segment_mib, initial_segments) = (64, 2);
        let (policy, fast, lanes) = (Policy::OwnerSlots, Fast::Support, 1);
        let (port_base, etcd_port_base) = (None, None);
        Plan {
            n,
            f,
            k,
            policy,
            fast,
            lanes,
            port_base,
            etcd_port_base,
            segment_mib,
            initial_segments,
            limits,
            tuning,
        }
    }
}

enum Event {
    Prepared { node: usize, done: u64, total: u64 },
    Ready { node: usize },
}

/// Node processes, and where their data is.
pub struct Cluster {
    dir: PathBuf,
    pub target: Target,
    /// Where etcd clients connect, `HOST:PORT`; empty if that API is not served.
    pub etcd: Vec<String>,
    pub f: usize,
    pub k: usize,
    pub policy: Policy,
    pub fast: Fast,
    pub lanes: u8,
    /// Options for the nodes that are started, beside their configuration.
    pub node_options: Vec<String>,
    children: Vec<Option<Child>>,
    events: Receiver<Event>,
    sender: Sender<Event>,
}

impl Cluster {
    /// Writes the configuration of a new cluster; starts nothing.
    pub fn create(dir: &Path, plan: &Plan) -> Result<Cluster, Failure> {
        Thresholds::new(plan.n, plan.f, plan.k).map_err(|error| usage(error.to_string()))?;
        fs::create_dir_all(dir)
            .map_err(|error| failed(format!("cannot make {}: {error}", dir.display())))?;
        let members =
            choose_addresses("--port-base", plan.port_base, (plan.n, plan.lanes), UdpSocket::bind)?;
        let etcd = match plan.etcd_port_base {
            None => Vec::new(),
            base => choose_addresses("--etcd-port-base", base, (plan.n, 1), TcpListener::bind)?,
        };
        let etcd: Vec<String> = etcd.iter().map(ToString::to_string).collect();
        let target = Target { cluster: random_u64().max(1), endpoints: members };
        for node in 0..plan.n {
            let text = node_toml(dir, &target, &etcd, plan, node);
            write_file(&dir.join(format!("node{node}.toml")), &text)?;
        }
        target.write_file(dir).map_err(|error| failed(format!("{}: {error}", dir.display())))?;
        Ok(Cluster::new(dir, target, etcd, plan))
    }

    /// The cluster whose configuration is in this directory, if there is one; starts nothing.
    pub fn open(dir: &Path) -> Result<Option<Cluster>, Failure> {
        let first = dir.join("node0.toml");
        if !first.exists() {
            return Ok(None);
        }
        let config = config::read(&first).map_err(|error| usage(error.to_string()))?;
        let etcd = config.etcd.map_or_else(Vec::new, |etcd| etcd.settings.endpoints);
        let config = config.node.config;
        let mut plan = Plan::new(config.members.len(), config.f, config.k);
        (plan.policy, plan.fast, plan.lanes) = (config.policy, config.fast, config.lane.count);
        let target = Target { cluster: config.cluster, endpoints: config.members };
        target.write_file(dir).map_err(|error| failed(format!("{}: {error}", dir.display())))?;
        Ok(Some(Cluster::new(dir, target, etcd, &plan)))
    }

    fn new(dir: &Path, target: Target, etcd: Vec<String>, plan: &Plan) -> Cluster {
        let Plan { f, k, policy, fast, lanes, .. } = *plan;
        let (sender, events) = channel();
        let children = target.endpoints.iter().map(|_| None).collect();
        let dir = dir.to_path_buf();
        let node_options = Vec::new();
        Cluster {
            dir,
            target,
            etcd,
            f,
            k,
            policy,
            fast,
            lanes,
            node_options,
            children,
            events,
            sender,
        }
    }

    pub fn n(&self) -> usize {
        self.children.len()
    }

    fn log_path(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node{node}.log"))
    }

    /// Starts all nodes and waits until they listen. `progress` is told how many log segments have
    /// been prepared, and of how many.
    pub fn start(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), Failure> {
        let all: Vec<usize> = (0..self.n()).collect();
        self.start_nodes(&all, progress)
    }

    /// As [`Cluster::start`], with a bar for who waits for the log files.
    pub fn start_with_bar(&mut self) -> Result<(), Failure> {
        self.start_all_but(0).map(drop)
    }

    /// [`Cluster::start_with_bar`] that goes on without those that cannot start, if no more than may be
    /// down: they are returned, each with the reason.
    pub fn start_most(&mut self) -> Result<Vec<(usize, Failure)>, Failure> {
        self.start_all_but(self.f)
    }

    fn start_all_but(&mut self, ended_max: usize) -> Result<Vec<(usize, Failure)>, Failure> {
        let all: Vec<usize> = (0..self.n()).collect();
        let bar = output::step_bar(0);
        let ended = self.start_but(ended_max, &all, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message("log files written for the first time");
        })?;
        bar.finish_and_clear();
        Ok(ended)
    }

    /// As [`Cluster::start`], for some nodes.
    pub fn start_nodes(
        &mut self,
        nodes: &[usize],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Failure> {
        self.start_but(0, nodes, progress).map(drop)
    }

    fn start_but(
        &mut self,
        ended_max: usize,
        nodes: &[usize],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<(usize, Failure)>, Failure> {
        for node in nodes {
            self.spawn(*node)?;
        }
        let mut ended: Vec<(usize, Failure)> = Vec::new();
        let mut waiting = nodes.to_vec();
        let mut prepared = vec![(0, 0); self.n()];
        let mut deadline = Instant::now() + READY_PATIENCE;
        while !waiting.is_empty() {
            match self.events.recv_timeout(Duration::from_millis(50)) {
                Ok(Event::Prepared { node, done, total }) => {
                    prepared[node] = (done, total);
                    deadline = Instant::now() + READY_PATIENCE;
                    let sum = |of: fn(&(u64, u64)) -> u64| prepared.iter().map(of).sum();
                    progress(sum(|node| node.0), sum(|node| node.1));
                }
                Ok(Event::Ready { node }) => waiting.retain(|other| *other != node),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some((node, failure)) = self.first_that_ended(&waiting) {
                        if ended.len() == ended_max {
                            return Err(failure);
                        }
                        self.kill(&[node]);
                        waiting.retain(|other| *other != node);
                        ended.push((node, failure));
                    } else if Instant::now() > deadline {
                        let (node, words) = (waiting[0], self.last_words(waiting[0]));
                        return Err(failed(format!("node {node} does not get ready: {words}")));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("this cluster has a sender"),
            }
        }
        Ok(ended)
    }

    fn first_that_ended(&mut self, waiting: &[usize]) -> Option<(usize, Failure)> {
        let node = *waiting.iter().find(|node| !self.is_running(**node))?;
        let words = self.last_words(node);
        Some((node, failed(format!("node {node} ended before it was ready: {words}"))))
    }

    fn spawn(&mut self, node: usize) -> Result<(), Failure> {
        let config = self.dir.join(format!("node{node}.toml"));
        let problem = |what: &str, error: std::io::Error| {
            failed(format!("cannot start node {node}: {what}: {error}"))
        };
        let program = std::env::current_exe().map_err(|error| problem("no program", error))?;
        let log = File::options().create(true).append(true).open(self.log_path(node));
        let log = log.map_err(|error| problem("no log file", error))?;
        let mut child = Command::new(program)
            .args(["node", "--parent", &std::process::id().to_string(), "--config"])
            .arg(&config)
            .args(&self.node_options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(log))
            // Ctrl-C is for the parent, which stops its nodes in its own time.
            .process_group(0)
            .spawn()
            .map_err(|error| problem("no process", error))?;
        let lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            // Ends with the node; events that nobody waits for any more are of no use.
            lines.map_while(Result::ok).filter_map(|line| event_of(node, &line)).for_each(
                |event| {
                    let _ = sender.send(event);
                },
            );
        });
        self.children[node] = Some(child);
        Ok(())
    }

    /// Whether the process of a node is there (it may be frozen).
    pub fn is_running(&mut self, node: usize) -> bool {
        let child = self.children[node].as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The end of what a node wrote to its log file.
    pub fn last_words(&self, node: usize) -> String {
        const TAIL: u64 = 2000;
        let read = || -> std::io::Result<String> {
            let mut file = File::open(self.log_path(node))?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(TAIL)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_string())
        };
        match read() {
            Ok(text) if !text.is_empty() => text,
            _ => format!("it said nothing (see {})", self.log_path(node).display()),
        }
    }

    fn signal(&mut self, node: usize, signal: Signal) {
        if self.is_running(node) {
            let child = self.children[node].as_ref().expect("a running node has a process");
            // It can only have ended in between, which is checked where it matters.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    /// Kills a node as a power failure of its process would, and waits until it is gone.
    pub fn kill(&mut self, nodes: &[usize]) {
        for node in nodes {
            self.signal(*node, Signal::KILL);
        }
        for node in nodes {
            if let Some(mut child) = self.children[*node].take() {
                let _ = child.wait();
            }
        }
    }

    /// Stops a node in its tracks without ending it.
    pub fn freeze(&mut self, node: usize) {
        self.signal(node, Signal::STOP);
    }

    pub fn thaw(&mut self, node: usize) {
        self.signal(node, Signal::CONT);
    }

    /// Asks all nodes to stop; kills those that do not within a few seconds.
    pub fn stop(&mut self) {
        for node in 0..self.n() {
            self.signal(node, Signal::CONT);
            self.signal(node, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        while Instant::now() < deadline && (0..self.n()).any(|node| self.is_running(node)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let all: Vec<usize> = (0..self.n()).collect();
        self.kill(&all);
    }

    /// The first node that is not running any more.
    pub fn first_ended(&mut self) -> Option<usize> {
        (0..self.n()).find(|node| !self.is_running(*node))
    }

    /// Takes up a node that has ended since it was started: whether a signal killed it, or else it
    /// ended by itself.
    pub fn take_ended(&mut self) -> Option<(usize, Ended)> {
        let node =
            (0..self.n()).find(|node| self.children[*node].is_some() && !self.is_running(*node))?;
        let mut child = self.children[node].take().expect("found above");
        let killed = child.wait().ok().is_some_and(|status| status.code().is_none());
        Some((node, if killed { Ended::Killed } else { Ended::ByItself }))
    }

    /// Whether any node is running.
    pub fn any_running(&mut self) -> bool {
        (0..self.n()).any(|node| self.is_running(node))
    }
}

/// How a node's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Killed,
    ByItself,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let all: Vec<usize> = (0..self.n()).collect();
        self.kill(&all);
    }
}

fn event_of(node: usize, line: &str) -> Option<Event> {
    if line.starts_with(READY) {
        return Some(Event::Ready { node });
    }
    let (done, total) = line.strip_prefix(PREPARING)?.split_once('/')?;
    Some(Event::Prepared { node, done: done.parse().ok()?, total: total.parse().ok()? })
}

/// How often ports that follow each other are looked for.
const PORT_TRIES: usize = 100;

/// Addresses of `n` nodes on this machine, each with `ports` ports: from a first port on, or whatever
/// `bind` finds free.
fn choose_addresses<S: LocalAddress>(
    option: &str,
    base: Option<u16>,
    (n, ports): (usize, u8),
    bind: impl Fn(SocketAddr) -> std::io::Result<S>,
) -> Result<Vec<SocketAddr>, Failure> {
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    if let Some(base) = base.filter(|base| *base != 0) {
        let needed = n * usize::from(ports);
        if usize::from(base) + needed > 65_536 {
            return Err(usage(format!("{option} {base}: no room for {needed} ports")));
        }
        return Ok((0..n as u16).map(|node| local(base + node * u16::from(ports))).collect());
    }
    // All are held until all are chosen, so that none is chosen twice.
    let (mut held, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let run = free_run(ports, &|port| bind(local(port)));
        let run = run.map_err(|error| failed(format!("no free ports on 127.0.0.1: {error}")))?;
        addresses.push(local(run.0));
        held.push(run);
    }
    Ok(addresses)
}

/// The first of some free ports that follow each other, and what holds them.
fn free_run<S: LocalAddress>(
    ports: u8,
    bind: &dyn Fn(u16) -> std::io::Result<S>,
) -> std::io::Result<(u16, Vec<S>)> {
    let try_run = || -> std::io::Result<(u16, Vec<S>)> {
        let mut held = vec![bind(0)?];
        let first = held[0].local_address()?.port();
        for after in 1..u16::from(ports) {
            held.push(bind(first.checked_add(after).ok_or(std::io::ErrorKind::AddrNotAvailable)?)?);
        }
        Ok((first, held))
    };
    let mut run = try_run();
    for _ in 1..PORT_TRIES {
        if run.is_ok() {
            break;
        }
        run = try_run();
    }
    run
}

/// A socket that tells its address.
trait LocalAddress {
    fn local_address(&self) -> std::io::Result<SocketAddr>;
}

impl LocalAddress for UdpSocket {
    fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.local_addr()
    }
}

impl LocalAddress for TcpListener {
    fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.local_addr()
    }
}

fn node_toml(dir: &Path, target: &Target, etcd: &[String], plan: &Plan, node: usize) -> String {
    let mut text = String::from("# Written by racos; see node.example.toml for all keys.\n");
    let members: Vec<_> = target.endpoints.iter().map(|member| format!("\"{member}\"")).collect();
    let data_dir = dir.join(format!("node{node}"));
    let data_dir = toml::Value::String(data_dir.to_string_lossy().into_owned());
    let lanes = match plan.lanes {
        1 => String::new(),
        lanes => format!("lanes = {lanes}\n"),
    };
    let fast = match plan.fast {
        Fast::Support => String::new(),
        fast => format!("fast = \"{fast}\"\n"),
    };
    let write = write!(
        text,
        "cluster = \"{:016x}\"\nnode = {node}\nmembers = [{}]\nf = {}\nk = {}\n\
         policy = \"{}\"\n{fast}{lanes}data_dir = {data_dir}\n\n[limits]\nsegment_mib = {}\ninitial_segments = {}\n{}\n\
         [tuning]\n{}",
        target.cluster,
        members.join(", "),
        plan.f,
        plan.k,
        plan.policy,
        plan.segment_mib,
        plan.initial_segments,
        plan.limits,
        plan.tuning,
    );
    write.expect("writing to a string");
    if !etcd.is_empty() {
        let endpoints: Vec<_> = etcd.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
        let write = write!(text, "\n[etcd]\nendpoints = [{}]\n", endpoints.join(", "));
        write.expect("writing to a string");
    }
    text
}

fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| failed(format!("{}: {error}", path.display())))
}
