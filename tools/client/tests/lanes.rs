//! Nodes of several lanes, whole, and the client that chooses among them, on a network and disks in memory.

use racos_buffer::Pool;
use racos_client::{
    Answer, ClientConfig, ClientCore, ClientError, Completion, Lanes, Op, Route, Ticket,
};
use racos_engine::lanes::{lane_address, lane_of};
use racos_engine::{Bounds, Node, NodeConfig, OpenError};
use racos_net::Lane;
use racos_net::memory::{MemoryConfig, MemoryHub, MemoryLink};
use racos_storage::LogError;
use racos_storage::device::memory::{Disk, MemoryDevice, Timing};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

const CLUSTER: u64 = 77;
const MS: u64 = 1_000_000;
const NODES: usize = 3;

type TestNode = Node<MemoryLink, MemoryDevice>;

/// A lane of a node.
struct Host {
    node: Option<TestNode>,
    disk: Rc<RefCell<Disk>>,
    config: NodeConfig,
    at: SocketAddr,
    /// Not polled: its thread stands still.
    is_frozen: bool,
}

struct World {
    hub: MemoryHub,
    pool: Pool,
    now: u64,
    lanes: u8,
    /// By node, then by lane.
    hosts: Vec<Host>,
    client: Lanes<MemoryLink>,
}

/// Where a node is, and behind that its further lanes.
fn base(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 4000 + 100 * node as u16))
}

fn all_at(lane: u8) -> Vec<SocketAddr> {
    (0..NODES).map(|node| lane_address(base(node), lane).unwrap()).collect()
}

impl World {
    fn new(lanes: u8) -> World {
        let (hub, pool) = (MemoryHub::new(1, MemoryConfig::default()), Pool::new(256 << 20));
        let places = (0..NODES).flat_map(|node| (0..lanes).map(move |lane| (node, lane)));
        let hosts = places.map(|(node, lane)| {
            let mut config = NodeConfig::new(CLUSTER, node as u8, all_at(lane), 1, 1);
            config.lane = Lane { number: lane, count: lanes };
            config.bounds = Bounds {
                segment_bytes: 1 << 20,
                value_bytes_max: 128 << 10,
                disk_reserve_bytes: 0,
                ..Bounds::default()
            };
            let disk = Disk::new(64 << 20, Timing::Immediate);
            let mut device = MemoryDevice::new(disk.clone());
            let disk_id = 100 * node as u128 + u128::from(lane) + 1;
            TestNode::format(&config, &mut device, &pool, disk_id, &mut |_, _| {}).unwrap();
            let at = lane_address(base(node), lane).unwrap();
            Host { node: None, disk, config, at, is_frozen: false }
        });
        let hosts = hosts.collect();
        let cores =
            (0..lanes).map(|number| core(&hub, &pool, Lane { number, count: lanes }, number));
        let client = Lanes::new(cores.collect());
        let mut world = World { hub, pool, now: 0, lanes, hosts, client };
        world.start();
        world
    }

    /// All lanes of all nodes begin, or begin again with what their disks hold.
    fn start(&mut self) {
        for host in &mut self.hosts {
            let (link, device) = (self.hub.link(host.at), MemoryDevice::new(host.disk.clone()));
            let node =
                TestNode::open(host.config.clone(), link, device, self.pool.clone(), self.now);
            host.node = Some(node.expect("its own disk opens"));
        }
        let all_in = |world: &mut World| world.hosts.iter().all(|host| host.node().takes_part());
        assert!(self.pass_until(2000 * MS, all_in));
    }

    fn stop(&mut self) {
        for host in &mut self.hosts {
            host.node = None;
            host.disk.borrow_mut().kill(1);
        }
    }

    fn host(&mut self, node: usize, lane: u8) -> &mut Host {
        let lanes = usize::from(self.lanes);
        &mut self.hosts[node * lanes + usize::from(lane)]
    }

    fn step(&mut self) {
        self.now += MS / 20;
        self.hub.advance(self.now);
        for host in self.hosts.iter_mut().filter(|host| !host.is_frozen) {
            host.disk.borrow_mut().advance(self.now);
            if let Some(node) = &mut host.node {
                node.poll(self.now);
                assert_eq!(node.failed(), None);
            }
        }
    }

    fn pass_until(&mut self, time: u64, mut done: impl FnMut(&mut World) -> bool) -> bool {
        let end = self.now + time;
        while self.now < end {
            self.step();
            if done(self) {
                return true;
            }
        }
        false
    }

    /// Lets time pass until so many operations have ended, or for ten seconds.
    fn run(&mut self, wanted: usize) -> Vec<Completion> {
        let mut done = Vec::new();
        self.pass_until(10_000 * MS, |world| {
            world.client.poll(world.now, &mut done);
            done.len() >= wanted
        });
        done
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Ticket {
        let op = Op::Put { key: key.into(), value: self.pool.copy(value).unwrap() };
        self.client.submit(op, Route::Any, self.now)
    }

    fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        self.client.submit(Op::Get { key: key.into() }, Route::Any, self.now);
        match self.run(1).pop().expect("an answer").result.unwrap() {
            Answer::Value { bytes, .. } => Some(bytes.to_vec()),
            Answer::NotFound => None,
            other => panic!("{other:?}"),
        }
    }

    /// What comes of an operation of a client that thinks that it talks to `lane`, sent to the port of
    /// lane `port`.
    fn ask(&mut self, lane: Lane, port: u8, op: Op) -> Option<Result<Answer, ClientError>> {
        let mut core = core(&self.hub, &self.pool, lane, port);
        core.submit(op, Route::Any, self.now);
        let mut done = Vec::new();
        self.pass_until(1000 * MS, |world| {
            core.poll(world.now, &mut done);
            !done.is_empty()
        });
        done.pop().map(|completion| completion.result)
    }
}

impl Host {
    fn node(&self) -> &TestNode {
        self.node.as_ref().expect("it runs")
    }
}

/// A client of a lane whose endpoints are those of the lane `port`.
fn core(hub: &MemoryHub, pool: &Pool, lane: Lane, port: u8) -> ClientCore<MemoryLink> {
    let own = SocketAddr::from(([10, 0, 0, 2], 1000 + u16::from(lane.number)));
    let mut config = ClientConfig::new(CLUSTER, all_at(port), 99);
    config.patience_ns = 60_000 * MS;
    ClientCore::of_lane(hub.link(own), pool.clone(), config, lane)
}

/// Some key of each lane.
fn key_of(lane: u8, lanes: u8) -> String {
    (0..).map(|key| format!("key{key}")).find(|key| lane_of(key.as_bytes(), lanes) == lane).unwrap()
}

/// tests PROTOCOL 3.1-j
#[test]
fn a_key_is_where_its_hash_says_and_is_there_after_a_restart() {
    let mut world = World::new(4);
    let keys: Vec<String> = (0..40).map(|key| format!("user/{key}")).collect();
    for key in &keys {
        world.put(key, key.as_bytes());
    }
    let done = world.run(keys.len());
    assert!(done.iter().all(|it| matches!(it.result, Ok(Answer::Done { .. }))), "{done:?}");
    assert_eq!(done.len(), keys.len());
    let mut tickets: Vec<Ticket> = done.iter().map(|completion| completion.ticket).collect();
    tickets.sort_unstable();
    tickets.dedup();
    assert_eq!(tickets.len(), keys.len(), "no two lanes give out the same ticket");
    let check = |world: &mut World| {
        for key in &keys {
            let own = lane_of(key.as_bytes(), 4);
            for lane in 0..4 {
                let is_there = world.host(0, lane).node().machine().get(key.as_bytes()).is_some();
                assert_eq!(is_there, lane == own, "{key} in lane {lane}");
            }
        }
    };
    let settled = |world: &mut World| {
        let held = world.hosts[..4].iter().map(|host| host.node().machine().keys_len());
        held.sum::<usize>() == 40
    };
    assert!(world.pass_until(1000 * MS, settled));
    check(&mut world);
    assert!((0..4).all(|lane| world.host(0, lane).node().machine().keys_len() > 0));
    world.stop();
    world.start();
    for key in &keys {
        assert_eq!(world.get(key).as_deref(), Some(key.as_bytes()));
    }
    check(&mut world);
}

/// tests PROTOCOL 3.1-j
#[test]
fn a_lane_that_stands_still_holds_up_nothing_of_another() {
    let mut world = World::new(2);
    let (stuck, free) = (key_of(0, 2), key_of(1, 2));
    world.put(&stuck, b"before");
    world.put(&free, b"before");
    assert_eq!(world.run(2).len(), 2);
    // Without a quorum, the slot of a write in lane 0 is never decided.
    world.host(1, 0).is_frozen = true;
    world.host(2, 0).is_frozen = true;
    let waits = world.put(&stuck, b"after");
    let exec = |world: &mut World, lane| world.host(0, lane).node().exec();
    let before = [exec(&mut world, 0), exec(&mut world, 1)];
    for round in 0..20u8 {
        let ticket = world.put(&free, &[round]);
        let done = world.run(1);
        assert_eq!(done.iter().map(|it| it.ticket).collect::<Vec<_>>(), [ticket]);
        assert!(matches!(done[0].result, Ok(Answer::Done { .. })), "{done:?}");
    }
    assert_eq!(exec(&mut world, 0), before[0], "the slot is still open");
    assert!(exec(&mut world, 1) >= before[1] + 20);
    world.host(1, 0).is_frozen = false;
    world.host(2, 0).is_frozen = false;
    assert_eq!(world.run(1)[0].ticket, waits);
    assert_eq!(world.get(&stuck).as_deref(), Some(&b"after"[..]));
    assert_eq!(world.get(&free), Some(vec![19]));
}

/// tests PROTOCOL 3.1-j
#[test]
fn a_disk_is_opened_as_the_lane_that_it_is_of_only() {
    let mut world = World::new(2);
    world.stop();
    let as_lane = |world: &mut World, from: u8, lane: Lane| {
        let (disk, pool) = (world.host(0, from).disk.clone(), world.pool.clone());
        let mut config = world.host(0, lane.number.min(1)).config.clone();
        config.lane = lane;
        let link = world.hub.link(base(9));
        TestNode::open(config, link, MemoryDevice::new(disk), pool, 0).map(drop)
    };
    for (from, number, count, differs) in
        [(0, 1, 2, "lane"), (1, 0, 2, "lane"), (0, 0, 1, "lanes"), (1, 1, 4, "lanes")]
    {
        let opened = as_lane(&mut world, from, Lane { number, count });
        let Err(OpenError::Log(error)) = opened else { panic!("{opened:?}") };
        assert!(matches!(error, LogError::Identity { what, .. } if what == differs), "{error}");
    }
    world.start();
}

/// tests PROTOCOL 3.1-j, 1.2-a
#[test]
fn a_lane_refuses_keys_of_others_and_clients_that_have_not_asked() {
    let mut world = World::new(2);
    let (own, other) = (key_of(0, 2), key_of(1, 2));
    let get = |key: &str| Op::Get { key: key.into() };
    let lane = Lane { number: 0, count: 2 };
    assert!(matches!(world.ask(lane, 0, get(&own)), Some(Ok(Answer::NotFound))));
    let value = world.pool.copy(b"x").unwrap();
    for op in [get(&other), Op::Put { key: other.clone().into(), value }] {
        let Some(Err(ClientError::Refused { text })) = world.ask(lane, 0, op) else { panic!() };
        assert!(text.contains("lane 1 of 2, not 0"), "{text}");
    }
    // Who does not know how many there are may ask that.
    let Some(Err(ClientError::Refused { text })) = world.ask(Lane::UNKNOWN, 0, get(&own)) else {
        panic!()
    };
    assert!(text.contains("has not asked"), "{text}");
    let Some(Ok(Answer::Status { json })) = world.ask(Lane::UNKNOWN, 0, Op::Status) else {
        panic!()
    };
    let status: racos_engine::status::Status = serde_json::from_slice(&json).unwrap();
    assert_eq!((status.lane, status.lanes), (0, 2));
    // What is of another lane, or of a cluster of another number of lanes, is dropped and counted.
    let junk = |world: &mut World| -> u64 {
        let of = |host: &Host| host.node().net().counters().junk_lane;
        world.hosts.iter().map(of).sum()
    };
    let before = junk(&mut world);
    for lane in [Lane { number: 1, count: 2 }, Lane { number: 0, count: 3 }, Lane::ONLY] {
        assert!(world.ask(lane, 0, Op::Status).is_none(), "{lane:?}");
    }
    assert!(junk(&mut world) >= before + 3);
}

/// tests PROTOCOL 3.1-k, 8.1-r
#[test]
fn what_concerns_several_keys_names_its_lane_or_is_refused() {
    let mut world = World::new(2);
    let list = || Op::List { from: b"k".to_vec(), to: None, limit: 10 };
    let part = || Op::Part { value: racos_buffer::Slice::empty() };
    for op in [list(), part()] {
        world.client.submit(op, Route::Any, world.now);
        let Err(ClientError::Limit { text }) = world.run(1).pop().unwrap().result else { panic!() };
        assert!(text.contains("the nodes have 2 (0 to 1)"), "{text}");
    }
    let keys = [key_of(0, 2), key_of(1, 2)];
    for key in &keys {
        world.put(key, b"x");
    }
    assert_eq!(world.run(2).len(), 2);
    for (lane, key) in keys.iter().enumerate() {
        world.client.submit_to(lane, list(), Route::Any, world.now);
        let Ok(Answer::Keys { entries, .. }) = world.run(1).pop().unwrap().result else { panic!() };
        let found: Vec<_> = entries.iter().map(|entry| entry.key.as_slice()).collect();
        assert_eq!(found, [key.as_bytes()]);
        let op = Op::Get { key: keys[1 - lane].clone().into() };
        world.client.submit_to(lane, op, Route::Any, world.now);
        let Err(ClientError::Limit { text }) = world.run(1).pop().unwrap().result else { panic!() };
        assert!(text.contains(&format!("to lane {}, not to lane {lane}", 1 - lane)), "{text}");
    }
}
