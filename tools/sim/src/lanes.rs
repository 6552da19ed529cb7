//! Nodes of several lanes, whole, that crash, freeze and lose power as one.
//!
//! Purpose: the shipped choice of a lane (`racos_client::Lanes`), and lanes of shipped nodes that share
//! nothing but their fate, on a network that loses, doubles and delays datagrams and delivers some to
//! another lane than they were sent to. What a single lane promises is the other worlds' business; here
//! it is held that every key stays linearizable, lies in its lane alone, and is there in the end.
//!
//! Invariant: as of every run, a seed reproduces it bit for bit.

use crate::rng::Rng;
use crate::run::caught;
use crate::trace::Trace;
use racos_buffer::{Pool, Slice};
use racos_client::{Answer, ClientConfig, ClientCore, ClientError, Lanes, Op, Route, Ticket};
use racos_engine::lanes::{lane_address, lane_of};
use racos_engine::{Bounds, Node, NodeConfig};
use racos_linear::{EventId, History, Operation, Outcome};
use racos_net::memory::{MemoryConfig, MemoryHub, MemoryLink};
use racos_net::{Datagram, Lane, Link, Received};
use racos_protocol::Policy;
use racos_storage::device::memory::{Disk, MemoryDevice, Op as DiskOp, Timing};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

const CLUSTER: u64 = 0x6c61_6e65_7300;
const MS: u64 = 1_000_000;
const NODES: usize = 3;
const CLIENTS: usize = 3;
const KEYS: u64 = 16;
const OUTSTANDING_MAX: usize = 4;
/// How long there are faults, and clients that ask.
const FAULTS_NS: u64 = 2_000 * MS;
const FAULT_NS_MEAN: u64 = 150 * MS;
const THINK_NS_MEAN: u64 = 8 * MS;
/// Afterwards, until all operations have ended, and until all nodes are equal.
const ENDS_NS: u64 = 30_000 * MS;
const PATIENCE_NS: u64 = 12_000 * MS;
/// Of a million datagrams to nodes, those that reach another lane too.
const STRAY_PPM: u32 = 10_000;
/// Least time between two turns.
const TURN_NS: u64 = 20_000;
/// Operations that must succeed.
const DONE_MIN: u64 = 50;
/// Node 0 lane 0; nodes are so many ports apart.
const PORT: u16 = 4000;
const APART: u16 = 64;
const NODES_AT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const CLIENTS_AT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// What a run came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LanesReport {
    pub trace_hash: u64,
    pub virtual_ns: u64,
    pub done: u64,
    pub failed: u64,
    pub crashes: u64,
    pub freezes: u64,
    pub blackouts: u64,
    /// Datagrams that were delivered to another lane too, and those that a lane dropped as another's.
    pub strays: u64,
    pub dropped: u64,
}

impl LanesReport {
    /// As that of [`crate::Report`].
    pub fn hash(&self, seed: u64) -> u64 {
        crate::trace::hash_of(&(seed, self))
    }
}

/// One run; the same for the same seed, number of lanes and policy.
///
/// # Errors
/// The promise that was broken.
pub fn run(seed: u64, lanes: u8, policy: Policy) -> Result<LanesReport, String> {
    caught(|| World::new(seed, lanes, policy).whole_run())
}

/// Where some datagrams go astray.
struct Astray {
    rng: Rng,
    lanes: u8,
    count: u64,
}

/// A link whose datagrams sometimes reach another lane of the node, too.
struct StrayLink {
    link: MemoryLink,
    astray: Rc<RefCell<Astray>>,
}

impl Link for StrayLink {
    fn send(&mut self, datagram: Datagram) {
        let mut astray = self.astray.borrow_mut();
        if datagram.to.ip() == NODES_AT && astray.rng.chance(STRAY_PPM) {
            let port = datagram.to.port();
            let (lane, lanes) = ((port - PORT) % APART, u16::from(astray.lanes));
            let other = (lane + 1 + astray.rng.below(u64::from(lanes) - 1) as u16) % lanes;
            let to = SocketAddr::new(NODES_AT, port - lane + other);
            astray.count += 1;
            let (head, body) = (datagram.head.clone(), datagram.body.clone());
            self.link.send(Datagram { to, head, body });
        }
        drop(astray);
        self.link.send(datagram);
    }

    fn flush(&mut self) {
        self.link.flush();
    }

    fn receive(&mut self, into: &mut Vec<Received>) -> usize {
        self.link.receive(into)
    }

    fn datagram_max(&self, to: SocketAddr) -> usize {
        self.link.datagram_max(to)
    }

    fn head(&mut self) -> Vec<u8> {
        self.link.head()
    }

    fn body(&mut self) -> Vec<Slice> {
        self.link.body()
    }

    fn local(&self) -> SocketAddr {
        self.link.local()
    }
}

type LaneNode = Node<StrayLink, MemoryDevice>;

/// One lane of a machine.
struct Part {
    node: Option<LaneNode>,
    disk: Rc<RefCell<Disk>>,
    config: NodeConfig,
    at: SocketAddr,
    /// Takes what arrives while nothing runs.
    sink: Option<MemoryLink>,
}

/// One machine: its lanes run, stand still and end together.
struct Machine {
    parts: Vec<Part>,
    is_up: bool,
    /// When it starts again, or goes on.
    down_until_ns: u64,
    frozen_until_ns: u64,
}

/// A client, and what it waits for.
struct Asker {
    lanes: Lanes<StrayLink>,
    under_way: BTreeMap<Ticket, EventId>,
    next_ns: u64,
    rng: Rng,
}

struct World {
    hub: MemoryHub,
    astray: Rc<RefCell<Astray>>,
    pool: Pool,
    lanes: u8,
    now_ns: u64,
    machines: Vec<Machine>,
    askers: Vec<Asker>,
    history: History,
    values: u64,
    rng: Rng,
    fault_ns: u64,
    trace: Trace,
    report: LanesReport,
}

fn base(machine: usize) -> SocketAddr {
    SocketAddr::new(NODES_AT, PORT + APART * machine as u16)
}

fn all_at(lane: u8) -> Vec<SocketAddr> {
    (0..NODES).map(|node| lane_address(base(node), lane).expect("ports are low")).collect()
}

fn key_name(key: u64) -> Vec<u8> {
    format!("key/{key:02}").into_bytes()
}

impl Part {
    fn new(machine: usize, (lane, policy): (Lane, Policy), pool: &Pool, rng: &mut Rng) -> Part {
        let mut config = NodeConfig::new(CLUSTER, machine as u8, all_at(lane.number), 1, 1);
        (config.lane, config.policy) = (lane, policy);
        config.seed = rng.number();
        config.bounds = Bounds {
            segment_bytes: 1 << 20,
            value_bytes_max: 64 << 10,
            checkpoint_bytes: 256 << 10,
            space_reserve_bytes: 0,
            disk_reserve_bytes: 0,
            scrub_ns: 0,
            ..Bounds::default()
        };
        let mut latency = rng.fork(7);
        let timing = Timing::Timed(Box::new(move |op| match op {
            DiskOp::Write(bytes) => 60_000 + latency.exponential(60_000) + bytes as u64 / 2,
            DiskOp::Read(bytes) => 40_000 + latency.exponential(40_000) + bytes as u64 / 2,
            DiskOp::Prepare(bytes) => bytes,
        }));
        let disk = Disk::new(256 << 20, timing);
        let mut device = MemoryDevice::new(disk.clone());
        let disk_id = u128::from(rng.number());
        LaneNode::format(&config, &mut device, pool, disk_id, &mut |_, _| {})
            .expect("an empty disk can be formatted");
        let at = lane_address(base(machine), lane.number).expect("ports are low");
        Part { node: None, disk, config, at, sink: None }
    }
}

impl World {
    fn new(seed: u64, lanes: u8, policy: Policy) -> World {
        assert!((2..=APART as u8).contains(&lanes), "{lanes} lanes: 2 to {APART}");
        let mut rng = Rng::new(seed ^ u64::from(lanes) << 56);
        let network = MemoryConfig {
            lose: *rng.pick(&[0, 300, 2_000]),
            duplicate: *rng.pick(&[0, 600]),
            delay_ns_min: 10_000,
            delay_ns_max: *rng.pick(&[60_000, 2_000_000]),
            ..MemoryConfig::default()
        };
        let hub = MemoryHub::new(rng.number(), network);
        let astray = Rc::new(RefCell::new(Astray { rng: rng.fork(1), lanes, count: 0 }));
        let pool = Pool::new(512 << 20);
        let machines = (0..NODES).map(|machine| {
            let lanes = (0..lanes).map(|number| (Lane { number, count: lanes }, policy));
            let parts = lanes.map(|lane| Part::new(machine, lane, &pool, &mut rng)).collect();
            Machine { parts, is_up: false, down_until_ns: 0, frozen_until_ns: 0 }
        });
        let machines = machines.collect();
        let fault_ns = 50 * MS + rng.exponential(FAULT_NS_MEAN);
        let mut world = World {
            hub,
            astray,
            pool,
            lanes,
            now_ns: 0,
            machines,
            askers: Vec::new(),
            history: History::new(),
            values: 0,
            rng,
            fault_ns,
            trace: Trace::new(false),
            report: LanesReport::default(),
        };
        (0..CLIENTS).for_each(|_| world.new_asker());
        world
    }

    fn link(&self, at: SocketAddr) -> StrayLink {
        StrayLink { link: self.hub.link(at), astray: self.astray.clone() }
    }

    fn new_asker(&mut self) {
        let number = self.askers.len() as u16;
        let client = self.rng.number();
        let core = |lane: u8| {
            let at = SocketAddr::new(CLIENTS_AT, 1000 + APART * number + u16::from(lane));
            let mut config = ClientConfig::new(CLUSTER, all_at(lane), client);
            config.patience_ns = PATIENCE_NS;
            config.window = 8;
            let lane = Lane { number: lane, count: self.lanes };
            ClientCore::of_lane(self.link(at), self.pool.clone(), config, lane)
        };
        let lanes = Lanes::new((0..self.lanes).map(core).collect());
        let rng = self.rng.fork(100 + u64::from(number));
        self.askers.push(Asker { lanes, under_way: BTreeMap::new(), next_ns: 0, rng });
    }

    /// Starts every lane of a machine on what its disk holds.
    fn start(&mut self, machine: usize) -> Result<(), String> {
        for lane in 0..usize::from(self.lanes) {
            let part = &self.machines[machine].parts[lane];
            let (link, device) = (self.link(part.at), MemoryDevice::new(part.disk.clone()));
            let config = part.config.clone();
            let node = LaneNode::open(config, link, device, self.pool.clone(), self.now_ns);
            let node =
                node.map_err(|error| format!("node {machine} lane {lane} cannot start: {error}"))?;
            let part = &mut self.machines[machine].parts[lane];
            (part.node, part.sink) = (Some(node), None);
        }
        self.machines[machine].is_up = true;
        Ok(())
    }

    /// Ends every lane of a machine at one instant: its process dies, or the machine loses power.
    fn stop(&mut self, machine: usize, is_power: bool) {
        let machine = &mut self.machines[machine];
        machine.is_up = false;
        machine.frozen_until_ns = 0;
        for part in &mut machine.parts {
            if let Some(node) = part.node.take() {
                self.report.dropped += node.net().counters().junk_lane;
            }
            part.sink = Some(self.hub.link(part.at));
            let seed = self.rng.number();
            match is_power {
                true => part.disk.borrow_mut().power_cut(seed),
                false => part.disk.borrow_mut().kill(seed),
            }
        }
        machine.down_until_ns = self.now_ns + 5 * MS + self.rng.exponential(80 * MS);
    }

    fn fault(&mut self) {
        self.fault_ns = self.now_ns + self.rng.exponential(FAULT_NS_MEAN);
        let now_ns = self.now_ns;
        if self.rng.one_in(6) {
            self.report.blackouts += 1;
            return (0..NODES).for_each(|machine| self.stop(machine, true));
        }
        let is_well = |machine: &Machine| machine.is_up && machine.frozen_until_ns <= now_ns;
        if !self.machines.iter().all(is_well) {
            return;
        }
        let machine = self.rng.below(NODES as u64) as usize;
        match self.rng.below(3) {
            0 => {
                self.report.freezes += 1;
                self.machines[machine].frozen_until_ns = now_ns + self.rng.exponential(120 * MS);
            }
            kind => {
                self.report.crashes += 1;
                self.stop(machine, kind == 1);
            }
        }
    }

    /// Everything that is due now.
    fn step(&mut self, has_faults: bool) -> Result<(), String> {
        if has_faults && self.now_ns >= self.fault_ns {
            self.fault();
        }
        for machine in 0..NODES {
            let (is_up, due_ns) =
                (self.machines[machine].is_up, self.machines[machine].down_until_ns);
            if !is_up && self.now_ns >= due_ns {
                self.start(machine)?;
            }
        }
        let now_ns = self.now_ns;
        for (index, machine) in self.machines.iter_mut().enumerate() {
            let sinks = machine.parts.iter_mut().filter_map(|part| part.sink.as_mut());
            sinks.for_each(|sink| while sink.receive(&mut Vec::new()) > 0 {});
            if !machine.is_up || machine.frozen_until_ns > now_ns {
                continue;
            }
            for (lane, part) in machine.parts.iter_mut().enumerate() {
                part.disk.borrow_mut().advance(now_ns);
                let Some(node) = &mut part.node else { continue };
                if node.poll(now_ns) {
                    self.trace.note(now_ns, &[index as u64, lane as u64, node.exec()]);
                }
                if let Some(why) = node.failed() {
                    return Err(format!("node {index} lane {lane} has stopped: {why}"));
                }
            }
        }
        for asker in 0..self.askers.len() {
            self.ask(asker, has_faults);
            self.hear(asker)?;
        }
        Ok(())
    }

    /// When something happens next.
    fn next_ns(&self, has_faults: bool) -> u64 {
        let mut next_ns = self.hub.next_arrival_ns().unwrap_or(u64::MAX);
        if has_faults {
            next_ns = next_ns.min(self.fault_ns);
            next_ns = self.askers.iter().map(|asker| asker.next_ns).fold(next_ns, u64::min);
        }
        for machine in &self.machines {
            if !machine.is_up {
                next_ns = next_ns.min(machine.down_until_ns);
                continue;
            }
            for part in &machine.parts {
                let disk_ns = part.disk.borrow().next_due_ns();
                let node_ns = part.node.as_ref().and_then(LaneNode::deadline);
                let part_ns = disk_ns.into_iter().chain(node_ns).min().unwrap_or(u64::MAX);
                next_ns = next_ns.min(part_ns.max(machine.frozen_until_ns));
            }
        }
        let clients = self.askers.iter().filter_map(|asker| asker.lanes.deadline());
        clients.fold(next_ns, u64::min)
    }

    fn run_until(
        &mut self,
        end_ns: u64,
        has_faults: bool,
        mut done: impl FnMut(&World) -> bool,
    ) -> Result<bool, String> {
        while self.now_ns < end_ns {
            self.step(has_faults)?;
            if done(self) {
                return Ok(true);
            }
            // A turn takes some time, too; what is overdue is no reason to stand still.
            let next_ns = self.next_ns(has_faults).max(self.now_ns + TURN_NS);
            self.now_ns = next_ns.min(end_ns);
            self.hub.advance(self.now_ns);
        }
        Ok(false)
    }

    /// The next operation of a client, if it is due.
    fn ask(&mut self, index: usize, is_working: bool) {
        let asker = &mut self.askers[index];
        if !is_working || self.now_ns < asker.next_ns {
            return;
        }
        asker.next_ns = self.now_ns + asker.rng.exponential(THINK_NS_MEAN);
        if asker.under_way.len() >= OUTSTANDING_MAX {
            return;
        }
        let key = key_name(asker.rng.below(KEYS));
        let (operation, op) = match asker.rng.below(10) {
            0 => (Operation::Delete { key: key.clone() }, Op::Delete { key }),
            1..=4 => (Operation::Get { key: key.clone() }, Op::Get { key }),
            _ => {
                self.values += 1;
                let most = *asker.rng.pick(&[20, 3_000]);
                let len = 8 + asker.rng.below(most) as usize;
                let mut bytes = vec![0x5a; len];
                bytes[..8].copy_from_slice(&self.values.to_le_bytes());
                let value = self.pool.copy(&bytes).expect("the pool is large enough");
                let operation = Operation::Put { key: key.clone(), value: self.values };
                (operation, Op::Put { key, value })
            }
        };
        self.submit(index, operation, op);
    }

    fn submit(&mut self, index: usize, operation: Operation, op: Op) {
        let event = self.history.invoke(index as u64, operation, self.now_ns);
        let asker = &mut self.askers[index];
        let ticket = asker.lanes.submit(op, Route::Any, self.now_ns);
        asker.under_way.insert(ticket, event);
        asker.lanes.flush(self.now_ns);
    }

    /// What has come for a client.
    fn hear(&mut self, index: usize) -> Result<(), String> {
        let mut done = Vec::new();
        let asker = &mut self.askers[index];
        asker.lanes.poll(self.now_ns, &mut done);
        for completion in done {
            let event = asker.under_way.remove(&completion.ticket);
            let event = event.ok_or_else(|| format!("{:?} ended twice", completion.ticket))?;
            let outcome = judge(completion.result)?;
            match outcome {
                Outcome::Unknown | Outcome::Never => self.report.failed += 1,
                _ => self.report.done += 1,
            }
            self.trace.note(self.now_ns, &[9, index as u64, event.0 as u64]);
            self.history.respond(event, outcome, self.now_ns);
        }
        Ok(())
    }

    fn whole_run(mut self) -> Result<LanesReport, String> {
        self.run_until(FAULTS_NS, true, |_| false)?;
        self.machines.iter_mut().for_each(|machine| {
            machine.down_until_ns = 0;
            machine.frozen_until_ns = 0;
        });
        let end_ns = self.now_ns + ENDS_NS;
        let is_idle = |world: &World| world.askers.iter().all(|asker| asker.under_way.is_empty());
        if !self.run_until(end_ns, false, is_idle)? {
            return Err("operations did not end after the faults".into());
        }
        for key in 0..KEYS {
            let key = key_name(key);
            self.submit(0, Operation::Get { key: key.clone() }, Op::Get { key });
        }
        let failed_before = self.report.failed;
        if !self.run_until(self.now_ns + ENDS_NS, false, is_idle)? {
            return Err("what was written cannot be read after the faults".into());
        }
        if self.report.failed > failed_before {
            return Err("a read failed though all nodes are there".into());
        }
        if !self.run_until(self.now_ns + ENDS_NS, false, World::is_equal)? {
            return Err("the nodes of a lane do not come to the same state".into());
        }
        self.check_places()?;
        racos_linear::check(&self.history).map_err(|violation| violation.to_string())?;
        self.account()
    }

    /// Whether all nodes of each lane have executed as much.
    fn is_equal(&self) -> bool {
        (0..usize::from(self.lanes)).all(|lane| {
            let nodes =
                self.machines.iter().filter_map(|machine| machine.parts[lane].node.as_ref());
            let states: Vec<_> =
                nodes.map(|node| (node.exec(), node.machine().state_hash())).collect();
            states.len() == NODES && states.iter().all(|state| *state == states[0])
        })
    }

    /// PROTOCOL 3.1-j: each key lies in its lane alone.
    fn check_places(&self) -> Result<(), String> {
        for machine in &self.machines {
            for (lane, part) in machine.parts.iter().enumerate() {
                let node = part.node.as_ref().expect("all run");
                for key in (0..KEYS).map(key_name) {
                    let own = usize::from(lane_of(&key, self.lanes));
                    if own != lane && node.machine().get(&key).is_some() {
                        return Err(format!("a key of lane {own} lies in lane {lane}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn account(mut self) -> Result<LanesReport, String> {
        for part in self.machines.iter().flat_map(|machine| &machine.parts) {
            let node = part.node.as_ref().expect("all run");
            self.report.dropped += node.net().counters().junk_lane;
        }
        self.report.strays = self.astray.borrow().count;
        self.report.trace_hash = self.trace.hash();
        self.report.virtual_ns = self.now_ns;
        let LanesReport { done, strays, dropped, .. } = self.report;
        if done < DONE_MIN {
            return Err(format!("only {done} operations succeeded"));
        }
        // Some were lost, and some reached a lane that was down.
        if strays > 20 && dropped == 0 {
            return Err(format!("{strays} datagrams went astray, and no lane dropped one"));
        }
        Ok(self.report)
    }
}

fn judge(result: Result<Answer, ClientError>) -> Result<Outcome, String> {
    match result {
        Ok(Answer::Done { .. }) => Ok(Outcome::Done),
        Ok(Answer::NotFound) => Ok(Outcome::Found(None)),
        Ok(Answer::Value { bytes, .. }) => {
            let number = bytes.get(..8).ok_or("a value that nobody wrote")?;
            Ok(Outcome::Found(Some(u64::from_le_bytes(number.try_into().expect("8 bytes")))))
        }
        Ok(other) => Err(format!("an unexpected {other:?}")),
        Err(error) if error.may_have_happened() || error.is_unavailable() => Ok(Outcome::Unknown),
        Err(error) => Err(format!("answered: {error}")),
    }
}
