//! A few transports on a network in memory, and time that jumps to whatever happens next.

#![allow(dead_code)] // Each test uses its part of it.

use racos_buffer::Pool;
use racos_net::memory::{MemoryConfig, MemoryHub, MemoryLink};
use racos_net::{Identity, Lane, Message, Transport, TransportConfig};
use std::net::SocketAddr;

pub const CLUSTER: u64 = 11;
/// Time is rounded up to this, so that a turn handles several datagrams.
const TURN_NS: u64 = 20_000;
const POOL_BYTES: usize = 512 << 20;

pub struct World {
    pub hub: MemoryHub,
    pub now_ns: u64,
    pub ends: Vec<End>,
}

pub struct End {
    pub address: SocketAddr,
    pub pool: Pool,
    pub transport: Transport<MemoryLink>,
    pub messages: Vec<Message>,
}

impl World {
    pub fn new(seed: u64, network: MemoryConfig) -> World {
        World { hub: MemoryHub::new(seed, network), now_ns: 1_000_000, ends: Vec::new() }
    }

    /// Adds a node at an address of its own and returns its index.
    pub fn add(&mut self, config: TransportConfig) -> usize {
        let node = self.ends.len() as u16;
        let address = SocketAddr::from(([10, 0, 0, 1], 5000 + node));
        let end = self.end(address, node, 1, config);
        self.ends.push(end);
        node as usize
    }

    /// Starts end `index` anew with another boot number; what it knew is gone.
    pub fn restart(&mut self, index: usize, boot: u32, config: TransportConfig) {
        self.ends[index] = self.end(self.ends[index].address, index as u16, boot, config);
    }

    fn end(&self, address: SocketAddr, node: u16, boot: u32, config: TransportConfig) -> End {
        let pool = Pool::new(POOL_BYTES);
        let identity =
            Identity { cluster: CLUSTER, node: Some(node), incarnation: 1, boot, lane: Lane::ONLY };
        let transport = Transport::new(self.hub.link(address), identity, pool.clone(), config);
        End { address, pool, transport, messages: Vec::new() }
    }

    /// One turn of every end, at the time of the next event. False if nothing is left to happen.
    pub fn turn(&mut self) -> bool {
        let deadlines = self.ends.iter().filter_map(|end| end.transport.next_deadline_ns());
        let Some(next_ns) = deadlines.chain(self.hub.next_arrival_ns()).min() else {
            return false;
        };
        self.now_ns = next_ns.max(self.now_ns + 1).next_multiple_of(TURN_NS);
        self.hub.advance(self.now_ns);
        for end in &mut self.ends {
            while end.transport.receive(self.now_ns, &mut end.messages) > 0 {}
            end.transport.flush(self.now_ns);
        }
        true
    }

    /// Turns until nothing is left to happen; panics if that takes longer than `ns`.
    pub fn settle(&mut self, ns: u64) {
        let end_ns = self.now_ns + ns;
        while self.turn() {
            assert!(self.now_ns < end_ns, "not settled after {ns} ns of virtual time");
        }
    }

    /// Turns until `ns` have passed or nothing is left to happen.
    pub fn pass(&mut self, ns: u64) {
        let end_ns = self.now_ns + ns;
        while self.now_ns < end_ns && self.turn() {}
        self.now_ns = self.now_ns.max(end_ns);
        self.hub.advance(self.now_ns);
    }

    /// Sends a message whose body is one slice; panics if it is refused.
    pub fn send(&mut self, from: usize, to: usize, kind: u8, head: &[u8], body: &[u8]) {
        let to = self.ends[to].address;
        let end = &mut self.ends[from];
        let body = end.pool.copy(body).expect("the pool is large enough");
        end.transport.send(to, kind, head, &[body], self.now_ns).expect("within the limits");
    }
}

/// Bytes that differ from place to place and from message to message.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mix = |at: usize| (at as u64 ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0xff51_afd7);
    (0..len).map(|at| (mix(at) >> 24) as u8).collect()
}

/// A number that looks random, the same for the same `seed` (the finish of splitmix64).
pub fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
