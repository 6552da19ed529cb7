//! A network in memory, in virtual time, for tests and simulation.
//!
//! Purpose: links that lose, duplicate, damage, delay and reorder datagrams as a seed says, driven
//! by a time that the caller advances.
//!
//! Invariant: the same seed and the same calls give the same deliveries. A datagram is delivered
//! whole, to the address it was sent to, at or after its time; queues are bounded, what does not fit
//! is lost.

use crate::link::{Datagram, Link, Received};
use racos_buffer::{Pool, Slice};
use rustc_hash::{FxHashMap, FxHashSet};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

/// Most datagrams that one call receives.
const RECEIVE_MAX: usize = 64;

/// What the network does to datagrams. Probabilities are in 1 of 65,536.
#[derive(Debug, Clone)]
pub struct MemoryConfig {
    pub lose: u16,
    pub duplicate: u16,
    /// Flips one bit.
    pub damage: u16,
    /// Each copy is delayed by a time drawn evenly from this range, which reorders.
    pub delay_ns_min: u64,
    pub delay_ns_max: u64,
    pub datagram_max: usize,
    /// Most datagrams on the way to one address.
    pub queue_max: usize,
    /// Most bytes of buffers of all datagrams, on the way or held by receivers.
    pub pool_bytes: usize,
}

impl Default for MemoryConfig {
    fn default() -> MemoryConfig {
        MemoryConfig {
            lose: 0,
            duplicate: 0,
            damage: 0,
            delay_ns_min: 20_000,
            delay_ns_max: 20_000,
            datagram_max: 58_368,
            queue_max: 4096,
            pool_bytes: 1 << 30,
        }
    }
}

/// A slow way to an address: all that is sent there goes through it, one datagram after the other.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// Added to the time that every datagram takes.
    pub delay_ns: u64,
    pub bytes_per_s: u64,
}

/// What has happened to datagrams so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryCounts {
    pub sent: u64,
    pub delivered: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub damaged: u64,
    /// Lost because a queue or the pool was full, or nobody has the address.
    pub dropped: u64,
}

/// The network. Cloning gives another handle to it.
#[derive(Clone)]
pub struct MemoryHub(Rc<RefCell<Hub>>);

struct Hub {
    config: MemoryConfig,
    pool: Pool,
    now_ns: u64,
    random: u64,
    sent: u64,
    /// Per address: datagrams on the way by arrival and order of sending.
    queues: FxHashMap<SocketAddr, BTreeMap<(u64, u64), Received>>,
    blocked: FxHashSet<(SocketAddr, SocketAddr)>,
    /// Slow lines, and until when what was sent keeps them busy.
    lines: FxHashMap<SocketAddr, (Line, u64)>,
    counts: MemoryCounts,
}

impl MemoryHub {
    pub fn new(seed: u64, config: MemoryConfig) -> MemoryHub {
        MemoryHub(Rc::new(RefCell::new(Hub {
            pool: Pool::new(config.pool_bytes),
            config,
            now_ns: 0,
            random: seed,
            sent: 0,
            queues: FxHashMap::default(),
            blocked: FxHashSet::default(),
            lines: FxHashMap::default(),
            counts: MemoryCounts::default(),
        })))
    }

    /// A link at `address`; what was on the way to an earlier one there is lost.
    pub fn link(&self, address: SocketAddr) -> MemoryLink {
        self.0.borrow_mut().queues.insert(address, BTreeMap::new());
        let (heads, bodies) = (Vec::new(), Vec::new());
        MemoryLink { hub: self.clone(), address, heads, bodies }
    }

    /// Sets the time; it never goes back.
    pub fn advance(&self, now_ns: u64) {
        let mut hub = self.0.borrow_mut();
        hub.now_ns = hub.now_ns.max(now_ns);
    }

    /// When the next datagram arrives somewhere.
    pub fn next_arrival_ns(&self) -> Option<u64> {
        let hub = self.0.borrow();
        hub.queues.values().filter_map(|queue| queue.keys().next()).map(|key| key.0).min()
    }

    /// Bytes of the datagrams that have been sent and have not been received.
    pub fn bytes_on_the_way(&self) -> usize {
        let hub = self.0.borrow();
        hub.queues.values().flat_map(BTreeMap::values).map(|received| received.bytes.len()).sum()
    }

    /// From now on loses everything from one address to another, or no longer.
    pub fn block(&self, from: SocketAddr, to: SocketAddr, blocked: bool) {
        let mut hub = self.0.borrow_mut();
        if blocked {
            hub.blocked.insert((from, to));
        } else {
            hub.blocked.remove(&(from, to));
        }
    }

    /// What is sent to an address from now on takes a slow line, or none any more.
    pub fn slow_down(&self, to: SocketAddr, line: Option<Line>) {
        let lines = &mut self.0.borrow_mut().lines;
        match line {
            Some(line) => drop(lines.insert(to, (line, 0))),
            None => drop(lines.remove(&to)),
        }
    }

    /// Changes what the network does to datagrams sent from now on.
    pub fn configure(&self, change: impl FnOnce(&mut MemoryConfig)) {
        change(&mut self.0.borrow_mut().config);
    }

    /// Puts raw bytes on the way, without loss or delay, as if `from` had sent them.
    pub fn inject(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let mut hub = self.0.borrow_mut();
        let slice = hub.pool.copy(bytes);
        let at_ns = hub.now_ns;
        hub.enqueue(from, to, slice, at_ns);
    }

    pub fn counts(&self) -> MemoryCounts {
        self.0.borrow().counts
    }
}

impl Hub {
    /// The next number of a splitmix64 sequence.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn chance(&mut self, of_65536: u16) -> bool {
        self.draw() & 0xffff < u64::from(of_65536)
    }

    fn send(&mut self, from: SocketAddr, datagram: &Datagram) {
        self.counts.sent += 1;
        let copies = 1 + u64::from(self.chance(self.config.duplicate));
        self.counts.duplicated += copies - 1;
        for _ in 0..copies {
            let lost = self.chance(self.config.lose);
            let damaged = self.chance(self.config.damage);
            let range = self.config.delay_ns_max.saturating_sub(self.config.delay_ns_min);
            let delay_ns = self.config.delay_ns_min + self.draw() % (range + 1);
            if lost || self.blocked.contains(&(from, datagram.to)) {
                self.counts.lost += 1;
                continue;
            }
            let bytes = self.gather(datagram, damaged);
            let len = bytes.as_ref().map_or(0, |bytes| bytes.len());
            let sent_ns = self.leaves_line_ns(datagram.to, len);
            self.enqueue(from, datagram.to, bytes, sent_ns + delay_ns);
        }
    }

    /// When a datagram that is sent now has gone through the line to its receiver.
    fn leaves_line_ns(&mut self, to: SocketAddr, len: usize) -> u64 {
        let Some((line, busy_ns)) = self.lines.get_mut(&to) else { return self.now_ns };
        let takes_ns = len as u64 * 1_000_000_000 / line.bytes_per_s;
        *busy_ns = self.now_ns.max(*busy_ns) + takes_ns;
        *busy_ns + line.delay_ns
    }

    fn gather(&mut self, datagram: &Datagram, damaged: bool) -> Option<Slice> {
        let parts = || std::iter::once(&*datagram.head).chain(datagram.body.iter().map(|s| &**s));
        let len: usize = parts().map(<[u8]>::len).sum();
        let mut buffer = self.pool.get(len)?;
        let mut at = 0;
        for part in parts() {
            buffer[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        if damaged && len > 0 {
            let bit = self.draw() as usize % (len * 8);
            buffer[bit / 8] ^= 1 << (bit % 8);
            self.counts.damaged += 1;
        }
        Some(buffer.freeze())
    }

    fn enqueue(&mut self, from: SocketAddr, to: SocketAddr, bytes: Option<Slice>, at_ns: u64) {
        self.sent += 1;
        let order = self.sent;
        let queue_max = self.config.queue_max;
        match (self.queues.get_mut(&to).filter(|queue| queue.len() < queue_max), bytes) {
            (Some(queue), Some(bytes)) => {
                queue.insert((at_ns, order), Received { from, bytes });
            }
            _ => self.counts.dropped += 1,
        }
    }

    fn receive(&mut self, to: SocketAddr, into: &mut Vec<Received>) -> usize {
        let Some(queue) = self.queues.get_mut(&to) else { return 0 };
        let mut count = 0;
        while count < RECEIVE_MAX
            && let Some(first) = queue.first_entry()
            && first.key().0 <= self.now_ns
        {
            into.push(first.remove());
            count += 1;
        }
        self.counts.delivered += count as u64;
        count
    }
}

/// An endpoint of a [`MemoryHub`]. Sends at once; nothing waits for a flush.
pub struct MemoryLink {
    hub: MemoryHub,
    address: SocketAddr,
    heads: Vec<Vec<u8>>,
    bodies: Vec<Vec<Slice>>,
}

impl Link for MemoryLink {
    fn send(&mut self, mut datagram: Datagram) {
        {
            let mut hub = self.hub.0.borrow_mut();
            let len = datagram.body.iter().map(|s| s.len()).sum::<usize>() + datagram.head.len();
            assert!(len <= hub.config.datagram_max, "a datagram of {len} bytes is too large");
            hub.send(self.address, &datagram);
        }
        datagram.head.clear();
        datagram.body.clear();
        if self.heads.len() < RECEIVE_MAX {
            self.heads.push(datagram.head);
            self.bodies.push(datagram.body);
        }
    }

    fn flush(&mut self) {}

    fn receive(&mut self, into: &mut Vec<Received>) -> usize {
        self.hub.0.borrow_mut().receive(self.address, into)
    }

    fn datagram_max(&self, _to: SocketAddr) -> usize {
        self.hub.0.borrow().config.datagram_max
    }

    fn head(&mut self) -> Vec<u8> {
        self.heads.pop().unwrap_or_default()
    }

    fn body(&mut self) -> Vec<Slice> {
        self.bodies.pop().unwrap_or_default()
    }

    fn local(&self) -> SocketAddr {
        self.address
    }
}
