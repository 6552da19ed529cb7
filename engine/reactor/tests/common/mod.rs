//! A cluster of whole nodes over a network and disks in memory, driven step by step.

// Every test file uses a part of it.
#![allow(dead_code)]

use racos_buffer::{Pool, Slice};
use racos_engine::wire::client::{self, Reply, Request, RequestError};
use racos_engine::{Bounds, Node, NodeConfig, OpenError};
use racos_machine::{Action, Joining, OpId, Reconfigure, Replace, SessionId, Stamp};
use racos_net::memory::{MemoryConfig, MemoryHub, MemoryLink};
use racos_net::{Identity, Lane, Transport, TransportConfig};
use racos_storage::device::memory::{Disk, MemoryDevice, Timing};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

pub const CLUSTER: u64 = 77;
pub const US: u64 = 1000;
pub const MS: u64 = 1000 * US;

pub fn address(place: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 4000 + place as u16))
}

pub type TestNode = Node<MemoryLink, MemoryDevice>;

pub struct Host {
    pub node: Option<TestNode>,
    pub disk: Rc<RefCell<Disk>>,
    pub config: NodeConfig,
}

pub struct Cluster {
    pub hub: MemoryHub,
    pub pool: Pool,
    pub now: u64,
    pub hosts: Vec<Host>,
    /// How many more steps stepped disks make, all together; `None`: as many as there are.
    pub steps_left: Option<u64>,
    client: Transport<MemoryLink>,
    session: SessionId,
    sequence: u64,
    request: u64,
}

impl Cluster {
    pub fn new(n: usize, f: usize, k: usize) -> Cluster {
        Cluster::bounded(n, f, k, |_| {})
    }

    /// A cluster whose nodes have other bounds.
    pub fn bounded(n: usize, f: usize, k: usize, change: impl Fn(&mut Bounds)) -> Cluster {
        Cluster::configured(n, f, k, |config| change(&mut config.bounds))
    }

    /// A cluster whose nodes are configured otherwise.
    pub fn configured(n: usize, f: usize, k: usize, change: impl Fn(&mut NodeConfig)) -> Cluster {
        Cluster::formatted(n, f, k, change).opened()
    }

    /// A cluster over a network of another kind.
    pub fn over(network: MemoryConfig, n: usize, f: usize, k: usize) -> Cluster {
        Cluster::formatted_over(network, n, f, k, |_| {}).opened()
    }

    /// All nodes run and take part.
    fn opened(self) -> Cluster {
        let mut cluster = self;
        let n = cluster.hosts.len();
        (0..n).for_each(|node| cluster.start(node).expect("a formatted disk opens"));
        cluster.founded();
        cluster.new_session();
        cluster
    }

    /// Lets time pass until all nodes that run take part.
    pub fn founded(&mut self) {
        let all = |cluster: &mut Cluster| {
            cluster.hosts.iter().filter_map(|host| host.node.as_ref()).all(TestNode::takes_part)
        };
        assert!(all(self) || self.pass_until(1000 * MS, all), "nodes vouch for each other");
    }

    /// Disks of a cluster, formatted; no node runs.
    pub fn formatted(n: usize, f: usize, k: usize, change: impl Fn(&mut NodeConfig)) -> Cluster {
        Cluster::formatted_over(MemoryConfig::default(), n, f, k, change)
    }

    fn formatted_over(
        network: MemoryConfig,
        n: usize,
        f: usize,
        k: usize,
        change: impl Fn(&mut NodeConfig),
    ) -> Cluster {
        let hub = MemoryHub::new(1, network);
        let pool = Pool::new(512 << 20);
        let members: Vec<SocketAddr> = (0..n).map(address).collect();
        let hosts = (0..n).map(|index| {
            let mut config = NodeConfig::new(CLUSTER, index as u8, members.clone(), f, k);
            config.bounds = Bounds {
                segment_bytes: 1 << 20,
                // A fragment is at most a quarter of a segment.
                value_bytes_max: if k == 1 { 128 << 10 } else { 256 << 10 },
                // Fragments are read from the disk.
                cache_bytes_max: 0,
                disk_reserve_bytes: 0,
                scrub_ns: 0,
                ..Bounds::default()
            };
            change(&mut config);
            let disk = Disk::new(256 << 20, Timing::Immediate);
            format(&config, &disk, &pool, 9 + index as u128);
            Host { node: None, disk, config }
        });
        let hosts = hosts.collect();
        let identity =
            Identity { cluster: CLUSTER, node: None, incarnation: 1, boot: 1, lane: Lane::ONLY };
        let link = hub.link(address(100));
        let client = Transport::new(link, identity, pool.clone(), TransportConfig::default());
        let session = SessionId::default();
        let (sequence, request, steps_left) = (0, 0, None);
        Cluster { hub, pool, now: 0, hosts, steps_left, client, session, sequence, request }
    }

    /// Puts from now on are of a session of their own.
    pub fn new_session(&mut self) {
        self.new_session_of(8);
    }

    /// So many of them may be under way at a time.
    pub fn new_session_of(&mut self, window: u32) {
        self.session = match self.ask(0, &Request::OpenSession { window }, &[]) {
            Some((Reply::SessionOpened { session }, _)) => session,
            other => panic!("{other:?}"),
        };
        self.sequence = 0;
    }

    /// The disk of a node is gone; an empty one of the next incarnation is in its place.
    pub fn new_disk(&mut self, node: usize, disk_id: u128) {
        self.hosts[node].node = None;
        let host = &mut self.hosts[node];
        host.config.incarnation += 1;
        host.disk = Disk::new(256 << 20, Timing::Immediate);
        format(&host.config, &host.disk, &self.pool, disk_id);
    }

    /// The disk of a node is gone; an empty one is in its place, as if the node had never been there.
    pub fn wipe(&mut self, node: usize, disk_id: u128) {
        self.hosts[node].node = None;
        let host = &mut self.hosts[node];
        host.config.incarnation = 1;
        host.disk = Disk::new(256 << 20, Timing::Immediate);
        format(&host.config, &host.disk, &self.pool, disk_id);
    }

    /// Asks a node for a change, and says what came of it.
    pub fn replace(
        &mut self,
        at: usize,
        node: u8,
        expected: u32,
        disk: u128,
    ) -> Result<(), String> {
        let (address, is_forced) = (Box::default(), false);
        let change = Replace { node, expected, disk, address, is_forced };
        self.change(at, Action::ReplaceNode(Box::new(change)))
    }

    /// A disk for a node that is no member yet; its number is the next one.
    pub fn add_host(&mut self, disk_id: u128) -> usize {
        let node = self.hosts.len();
        let config = NodeConfig { node: node as u8, ..self.hosts[0].config.clone() };
        let disk = Disk::new(256 << 20, Timing::Immediate);
        format(&config, &disk, &self.pool, disk_id);
        self.hosts.push(Host { node: None, disk, config });
        node
    }

    /// Nodes with these disks that look on, and have caught up.
    pub fn add_observers(&mut self, disks: &[u128]) {
        let first = self.hosts.len();
        for disk in disks {
            let node = self.add_host(*disk);
            self.start(node).unwrap();
        }
        let (exec, nodes) = (self.node(0).exec(), self.hosts.len());
        let caught_up =
            |cluster: &mut Cluster| (first..nodes).all(|node| cluster.node(node).exec() >= exec);
        assert!(self.pass_until(3000 * MS, caught_up), "those who join look on");
    }

    /// Asks a node for other members; those never seen before join with their disks.
    pub fn reconfigure(
        &mut self,
        at: usize,
        members: &[u8],
        (lost_max, data): (u8, u8),
        lost: &[u8],
    ) -> Result<(), String> {
        let known = self.node(at).machine().members();
        let (expected, used) = (known.epoch(), known.seats().len());
        let joining = members.iter().map(|node| usize::from(*node)).filter(|node| *node >= used);
        let joining = joining.map(|node| {
            let disk = self.node(node).log().disk_id();
            Joining { disk, address: address(node).to_string().into() }
        });
        let change = Reconfigure {
            expected,
            members: members.to_vec(),
            joining: joining.collect(),
            lost_max,
            data,
            lost: lost.to_vec(),
            is_forced: false,
        };
        self.change(at, Action::Reconfigure(Box::new(change)))
    }

    pub fn change(&mut self, at: usize, action: Action) -> Result<(), String> {
        match self.ask(at, &Request::Members { action }, &[]) {
            Some((Reply::Done { changes: 0, .. }, _)) => Ok(()),
            Some((Reply::Error(error), _)) => Err(error.text),
            other => panic!("{other:?}"),
        }
    }

    pub fn start(&mut self, node: usize) -> Result<(), OpenError> {
        self.start_at(node, node)
    }

    /// The node is at the address of this place.
    pub fn start_at(&mut self, node: usize, place: usize) -> Result<(), OpenError> {
        let host = &mut self.hosts[node];
        let (link, device) = (self.hub.link(address(place)), MemoryDevice::new(host.disk.clone()));
        let pool = self.pool.clone();
        host.node = Some(TestNode::open(host.config.clone(), link, device, pool, self.now)?);
        Ok(())
    }

    /// Somebody in the place of a node that does not run, as its boot of this number.
    pub fn stand_in(&self, node: usize, boot: u32) -> Transport<MemoryLink> {
        let (node, link) = (Some(node as u16), self.hub.link(address(node)));
        let identity = Identity { cluster: CLUSTER, node, incarnation: 1, boot, lane: Lane::ONLY };
        Transport::new(link, identity, self.pool.clone(), TransportConfig::default())
    }

    /// The process of a node ends.
    pub fn stop(&mut self, node: usize) {
        self.hosts[node].node = None;
        self.hosts[node].disk.borrow_mut().kill(1);
    }

    pub fn node(&self, node: usize) -> &TestNode {
        self.hosts[node].node.as_ref().expect("the node runs")
    }

    pub fn pass(&mut self, time: u64) {
        self.pass_until(time, |_| false);
    }

    /// Lets time pass until `done`; whether it came to that.
    pub fn pass_until(&mut self, time: u64, mut done: impl FnMut(&mut Cluster) -> bool) -> bool {
        let end = self.now + time;
        while self.now < end {
            self.now += 50 * US;
            self.hub.advance(self.now);
            for host in &mut self.hosts {
                if let Some(node) = &mut host.node {
                    match &mut self.steps_left {
                        Some(0) => return false,
                        Some(left) => {
                            let step = host.disk.borrow_mut().complete_one();
                            *left -= u64::from(step);
                        }
                        None => host.disk.borrow_mut().advance(self.now),
                    }
                    node.poll(self.now);
                }
            }
            if done(self) {
                return true;
            }
        }
        false
    }

    /// Sends a request to a node and waits for its reply.
    pub fn ask(&mut self, node: usize, asked: &Request, body: &[Slice]) -> Option<(Reply, Slice)> {
        let request = self.send(node, asked, body);
        let mut reply = None;
        self.pass_until(6000 * MS, |cluster| {
            let came = cluster.replies().into_iter().find(|(number, ..)| *number == request);
            reply = came.map(|(_, answer, body)| (answer, body));
            reply.is_some()
        });
        reply
    }

    /// Sends a request to a node; its number.
    pub fn send(&mut self, node: usize, asked: &Request, body: &[Slice]) -> u64 {
        self.request += 1;
        let mut head = Vec::new();
        asked.put(7, self.request, &mut head);
        let kind = client::kind::REQUEST;
        self.client.send(address(node), kind, &head, body, self.now).unwrap();
        self.client.flush(self.now);
        self.request
    }

    /// What has come: number of the request, the reply and its body.
    pub fn replies(&mut self) -> Vec<(u64, Reply, Slice)> {
        let mut messages = Vec::new();
        self.client.receive(self.now, &mut messages);
        self.client.flush(self.now);
        let taken = messages.into_iter().map(|message| {
            let (_, number, answer) = Reply::get(&message.head).unwrap();
            (number, answer, message.body)
        });
        taken.collect()
    }

    /// Sends a put to a node; the number of the request.
    pub fn send_put(&mut self, node: usize, key: &[u8], value: &[u8]) -> u64 {
        let low = self.sequence + 1;
        self.send_put_beside(node, key, value, low)
    }

    /// The same while writes from number `low` of the session on are not answered.
    pub fn send_put_beside(&mut self, node: usize, key: &[u8], value: &[u8], low: u64) -> u64 {
        self.sequence += 1;
        let (session, sequence) = (self.session, self.sequence);
        let stamp = Stamp { session, sequence, low };
        let mut buf = self.pool.get(value.len()).unwrap();
        buf.copy_from_slice(value);
        self.send(node, &Request::Put { stamp, key: key.to_vec() }, &[buf.freeze()])
    }

    pub fn put(&mut self, node: usize, key: &[u8], value: &[u8]) {
        let stamp = self.stamp();
        let mut buf = self.pool.get(value.len()).unwrap();
        buf.copy_from_slice(value);
        let put = Request::Put { stamp, key: key.to_vec() };
        let done = self.ask(node, &put, &[buf.freeze()]);
        assert!(matches!(done, Some((Reply::Done { changes: 1, .. }, _))), "{done:?}");
    }

    /// [`Cluster::put`] that may be refused.
    pub fn try_put(&mut self, node: usize, key: &[u8], value: &[u8]) -> Result<(), RequestError> {
        let body = self.pool.copy(value).unwrap();
        let stamp = self.stamp();
        match self.ask(node, &Request::Put { stamp, key: key.to_vec() }, &[body]) {
            Some((Reply::Done { .. }, _)) => Ok(()),
            Some((Reply::Error(error), _)) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    /// A write, unless the disks have made their last step before it is answered.
    pub fn ask_stamped(
        &mut self,
        node: usize,
        asked: impl FnOnce(Stamp) -> Request,
        body: &[u8],
    ) -> Option<Reply> {
        let stamp = self.stamp();
        let body = self.pool.copy(body).unwrap();
        self.ask(node, &asked(stamp), &[body]).map(|(reply, _)| reply)
    }

    pub fn delete(&mut self, node: usize, key: &[u8]) {
        let stamp = self.stamp();
        let done = self.ask(node, &Request::Delete { stamp, key: key.to_vec() }, &[]);
        assert!(matches!(done, Some((Reply::Done { .. }, _))), "{done:?}");
    }

    fn stamp(&mut self) -> Stamp {
        self.sequence += 1;
        Stamp { session: self.session, sequence: self.sequence, low: self.sequence }
    }

    pub fn get(&mut self, node: usize, key: &[u8]) -> Option<Vec<u8>> {
        match self.ask(node, &Request::Get { key: key.to_vec() }, &[])? {
            (Reply::Found { .. }, bytes) => Some(bytes.to_vec()),
            (Reply::NotFound, _) => None,
            other => panic!("{other:?}"),
        }
    }

    /// The operation that stored the newest version of a key, as a node knows it.
    pub fn stored(&self, node: usize, key: &[u8]) -> OpId {
        let version = self.node(node).machine().get(key).expect("the key is there");
        version.values().next().unwrap().op
    }
}

pub fn format(config: &NodeConfig, disk: &Rc<RefCell<Disk>>, pool: &Pool, disk_id: u128) {
    let mut device = MemoryDevice::new(disk.clone());
    TestNode::format(config, &mut device, pool, disk_id, &mut |_, _| {}).unwrap();
}
