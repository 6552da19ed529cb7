//! A cluster in one thread and virtual time.

use racos_buffer::Pool;
use racos_engine::api::types::{Error, WatchResponse};
use racos_engine::api::{Handle, Pending, WatchStream};
use racos_engine::{Bounds, Node, NodeConfig};
use racos_net::memory::{MemoryConfig, MemoryHub, MemoryLink};
use racos_net::{Identity, Lane, Transport, TransportConfig};
use racos_storage::device::memory::{Disk, MemoryDevice, Timing};
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

const US: u64 = 1000;
/// Nothing takes longer.
const PATIENCE: u64 = 10_000_000 * US;

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 4000 + node as u16))
}

pub struct Cluster {
    hub: MemoryHub,
    nodes: Vec<Node<MemoryLink, MemoryDevice>>,
    pub handles: Vec<Handle>,
    now: u64,
    value_bytes_max: usize,
    stopped: Vec<usize>,
    pool: Pool,
}

impl Cluster {
    pub fn new(n: usize, f: usize, k: usize) -> Cluster {
        Cluster::founded_to_keep(u32::MAX, n, f, k)
    }

    /// One that keeps so many versions of a key while nobody asks for more.
    pub fn founded_to_keep(versions: u32, n: usize, f: usize, k: usize) -> Cluster {
        Cluster::founded(versions, Bounds::default().cache_bytes_max, (n, f, k))
    }

    /// One whose nodes have so much memory for fragments.
    pub fn with_cache(bytes: usize, n: usize, f: usize, k: usize) -> Cluster {
        Cluster::founded(u32::MAX, bytes, (n, f, k))
    }

    fn founded(versions: u32, cache_bytes_max: usize, (n, f, k): (usize, usize, usize)) -> Cluster {
        let hub = MemoryHub::new(1, MemoryConfig::default());
        let members: Vec<SocketAddr> = (0..n).map(address).collect();
        let value_bytes_max = 256 << 10;
        let pool = Pool::new(512 << 20);
        let nodes = (0..n).map(|index| {
            let mut config = NodeConfig::new(77, index as u8, members.clone(), f, k);
            config.seed = index as u64;
            config.versions_per_key_max = versions;
            config.bounds = Bounds {
                segment_bytes: 4 << 20,
                value_bytes_max,
                cache_bytes_max,
                disk_reserve_bytes: 0,
                ..Bounds::default()
            };
            let mut device = MemoryDevice::new(Disk::new(128 << 20, Timing::Immediate));
            let disk = 9 + index as u128;
            Node::<MemoryLink, _>::format(&config, &mut device, &pool, disk, &mut |_, _| {})
                .unwrap();
            let link = hub.link(address(index));
            Node::open(config, link, device, pool.clone(), 0).expect("a formatted device opens")
        });
        let mut nodes: Vec<_> = nodes.collect();
        let handles = nodes.iter_mut().map(|node| node.open_api(Box::new(|| {}))).collect();
        let stopped = Vec::new();
        Cluster { hub, nodes, handles, now: 0, value_bytes_max, stopped, pool }
    }

    pub fn value_bytes_max(&self) -> usize {
        self.value_bytes_max
    }

    pub fn node(&self, node: usize) -> &Node<MemoryLink, MemoryDevice> {
        &self.nodes[node]
    }

    /// Somebody who speaks under the name of a node, from elsewhere.
    pub fn stand_in(&self, node: u16, boot: u32) -> Transport<MemoryLink> {
        let (cluster, lane) = (77, Lane::ONLY);
        let identity = Identity { cluster, node: Some(node), incarnation: 1, boot, lane };
        let link = self.hub.link(address(100 + usize::from(node)));
        Transport::new(link, identity, self.pool.clone(), TransportConfig::default())
    }

    pub fn speak(&self, who: &mut Transport<MemoryLink>, to: usize, kind: u8, head: &[u8]) {
        who.send(address(to), kind, head, &[], self.now).expect("it fits");
        who.flush(self.now);
    }

    /// Lets time pass until `done` gives something.
    fn until<T>(&mut self, mut done: impl FnMut() -> Option<T>) -> T {
        let end = self.now + PATIENCE;
        while self.now < end {
            if let Some(result) = done() {
                return result;
            }
            self.turn();
        }
        panic!("nothing came in {} s of virtual time", PATIENCE / 1_000_000_000);
    }

    fn turn(&mut self) {
        self.now += 50 * US;
        self.hub.advance(self.now);
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if !self.stopped.contains(&index) {
                node.poll(self.now);
                assert_eq!(node.failed(), None);
            }
        }
    }

    /// Nothing gets from one node to the other, or everything again.
    pub fn block(&self, from: usize, to: usize, is_blocked: bool) {
        self.hub.block(address(from), address(to), is_blocked);
    }

    /// Lets turns pass until a node has opened a slot: which one, after how many.
    pub fn opened(&mut self) -> (usize, usize) {
        let end = self.now + PATIENCE;
        for turns in 1.. {
            self.turn();
            let open = |node: &Node<_, _>| node.core().own_open() > 0;
            if let Some(node) = self.nodes.iter().position(open) {
                return (node, turns);
            }
            assert!(self.now < end, "no slot is opened");
        }
        unreachable!("a slot is opened, or none in time")
    }

    pub fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    /// Lets milliseconds pass.
    pub fn pass(&mut self, ms: u64) {
        let end = self.now + 1000 * US * ms;
        while self.now < end {
            self.turn();
        }
    }

    /// Lets time pass until a node has enough others that know its disk, and no longer.
    pub fn enter(&mut self, node: usize) {
        while !self.nodes[node].takes_part() {
            self.turn();
        }
    }

    /// A node has no more turns.
    pub fn stop(&mut self, node: usize) {
        self.stopped.push(node);
    }

    /// It has turns again.
    pub fn start(&mut self, node: usize) {
        self.stopped.retain(|stopped| *stopped != node);
    }

    pub fn wait<T>(&mut self, mut pending: Pending<T>) -> Result<T, Error> {
        self.until(|| pending.try_take())
    }

    /// The next response of a stream.
    pub fn next(&mut self, stream: &mut WatchStream) -> WatchResponse {
        let mut context = Context::from_waker(Waker::noop());
        self.until(|| match stream.poll_next(&mut context) {
            Poll::Ready(response) => Some(response.expect("the stream goes on")),
            Poll::Pending => None,
        })
    }
}
