//! One whole node in this thread, on a real disk and a network in memory: what its log costs, without
//! sockets and processes in between.
//!
//! Invariant: the node is the shipped one, turned as the runtime turns it; every operation is answered
//! by it, and what it reads is checked.
//! What would break it: time that is not the loop's own counted as a turn.

use crate::exit::{Failure, failed};
use hdrhistogram::Histogram;
use racos_buffer::Pool;
use racos_engine::wire::client::{ErrorCode, Reply, Request, kind};
use racos_engine::{Bounds, Node, NodeConfig};
use racos_machine::{SessionId, Stamp};
use racos_net::memory::{MemoryConfig, MemoryHub, MemoryLink};
use racos_net::{Identity, Message, Transport, TransportConfig};
use racos_storage::device::file::FileDevice;
use racos_storage::device::{FlushMethod, Sleep, UringConfig};
use rustc_hash::FxHashMap;
use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

const CLUSTER: u64 = 0xbe7c;
/// Operations of one session under way.
const WINDOW: u32 = 64;
const POOL_BYTES: usize = 768 << 20;
/// A fragment of one is at most a quarter of the shortest segment that a bench asks for.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// Longest sleep of the loop.
const SLEEP_NS_MAX: u64 = 1_000_000;
/// Bytes of a key.
pub const KEY_BYTES: usize = 16;

/// What a node of a bench is given.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub flush: FlushMethod,
    pub cache_bytes: usize,
    pub checkpoint_bytes: u64,
    pub space_reserve_bytes: u64,
    pub initial_segments: u32,
    pub segment_bytes: u32,
    /// Executed slots that keep their batches.
    pub history_slots: u64,
}

/// One operation on the key of a number.
#[derive(Debug, Clone, Copy)]
pub enum Operation {
    Put { key: u64, len: usize },
    Get { key: u64, len: usize },
    Delete { key: u64 },
}

/// An operation that has ended, how long it took, and whether a segment was being copied by then.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    pub ns: u64,
    pub beside_copying: bool,
}

/// How long turns of the loop took, in nanoseconds: by the clock, and of CPU alone, in which another
/// program on the same CPU does not count.
pub struct Turns {
    pub clock: Histogram<u64>,
    pub cpu: Histogram<u64>,
}

impl Turns {
    pub fn new() -> Turns {
        let histogram = || Histogram::new(3).expect("three digits are a valid precision");
        Turns { clock: histogram(), cpu: histogram() }
    }

    /// Counts what `turn` takes.
    pub fn time<T>(&mut self, turn: impl FnOnce() -> T) -> T {
        let (clock, cpu) = (Instant::now(), cpu_ns());
        let done = turn();
        note(&mut self.cpu, cpu_ns() - cpu);
        note(&mut self.clock, clock.elapsed().as_nanos() as u64);
        done
    }
}

#[derive(Default)]
struct Lane {
    session: SessionId,
    next: u64,
    under_way: BTreeSet<u64>,
}

struct Asked {
    operation: Operation,
    lane: usize,
    sequence: u64,
    began_ns: u64,
}

pub struct Lone {
    hub: MemoryHub,
    pool: Pool,
    node: Node<MemoryLink, FileDevice>,
    client: Transport<MemoryLink>,
    clock: Instant,
    lanes: Vec<Lane>,
    requests: FxHashMap<u64, Asked>,
    again: VecDeque<Operation>,
    next_request: u64,
    messages: Vec<Message>,
    /// Turns are timed while this is there.
    pub turns: Option<Turns>,
    pub open_ns: u64,
}

/// Counts one time.
pub fn note(times: &mut Histogram<u64>, ns: u64) {
    times.record(ns).expect("a histogram that grows takes any time");
}

fn address(place: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1 + u16::from(place)))
}

fn config(setup: &Setup) -> NodeConfig {
    let mut config = NodeConfig::new(CLUSTER, 0, vec![address(0)], 0, 1);
    config.versions_per_key_max = 1;
    config.bounds = Bounds {
        buffer_bytes_max: POOL_BYTES,
        cache_bytes_max: setup.cache_bytes,
        initial_segments: setup.initial_segments,
        segment_bytes: setup.segment_bytes,
        value_bytes_max: VALUE_BYTES_MAX,
        checkpoint_bytes: setup.checkpoint_bytes,
        space_reserve_bytes: setup.space_reserve_bytes,
        history_slots: setup.history_slots,
        ..Bounds::default()
    };
    config
}

fn key_bytes(key: u64) -> Vec<u8> {
    format!("k{key:015x}").into_bytes()
}

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Lone {
    /// Opens the node's directory, and makes it first if it is empty.
    pub fn open(dir: &Path, setup: &Setup) -> Result<Lone, Failure> {
        let config = config(setup);
        let uring = UringConfig { flush: setup.flush, ..UringConfig::default() };
        let mut device = FileDevice::open(dir, &uring)
            .map_err(|error| failed(format!("cannot use {}: {error}", dir.display())))?;
        let pool = Pool::with_arenas(POOL_BYTES);
        let about = |error| failed(format!("the node in {}: {error}", dir.display()));
        type Bench = Node<MemoryLink, FileDevice>;
        if !dir.join("superblock").exists() {
            Bench::format(&config, &mut device, &pool, 7, &mut |_, _| {}).map_err(about)?;
        }
        let network = MemoryConfig { delay_ns_min: 0, delay_ns_max: 0, ..MemoryConfig::default() };
        let hub = MemoryHub::new(1, network);
        let clock = Instant::now();
        let node = Bench::open(config, hub.link(address(0)), device, pool.clone(), 0);
        let node = node.map_err(about)?;
        let open_ns = clock.elapsed().as_nanos() as u64;
        let identity = Identity {
            cluster: CLUSTER,
            node: None,
            incarnation: 1,
            boot: 1,
            lane: racos_net::Lane::ONLY,
        };
        let link = hub.link(address(1));
        let client = Transport::new(link, identity, pool.clone(), TransportConfig::default());
        let mut lone = Lone {
            hub,
            pool,
            node,
            client,
            clock,
            lanes: Vec::new(),
            requests: FxHashMap::default(),
            again: VecDeque::new(),
            next_request: 0,
            messages: Vec::new(),
            turns: None,
            open_ns,
        };
        // A node whose opening took long looks for what the disk did meanwhile before it takes requests.
        lone.turn()?;
        Ok(lone)
    }

    pub fn node(&self) -> &Node<MemoryLink, FileDevice> {
        &self.node
    }

    fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    /// One turn of the loop, and what has come for the client. Sleeps if there was nothing to do.
    fn turn(&mut self) -> Result<(), Failure> {
        let now = self.now();
        self.hub.advance(now);
        let node = &mut self.node;
        let mut turn = || {
            let turn = node.turn(now);
            node.log_mut().submit();
            turn
        };
        let turn = match &mut self.turns {
            Some(turns) => turns.time(turn),
            None => turn(),
        };
        if let Some(why) = self.node.failed() {
            return Err(failed(format!("the node stopped itself: {why}")));
        }
        let now = self.now();
        self.client.receive(now, &mut self.messages);
        if !turn.busy && self.messages.is_empty() && self.hub.next_arrival_ns().is_none() {
            let due = self.node.deadline().map_or(SLEEP_NS_MAX, |due| due.saturating_sub(now));
            let device = self.node.log_mut().device_mut();
            device
                .wait(&[], Some(due.min(SLEEP_NS_MAX)))
                .map_err(|error| failed(format!("cannot wait for the disk: {error}")))?;
        }
        Ok(())
    }

    fn send(&mut self, asked: &Request, body: &[racos_buffer::Slice]) -> Result<u64, Failure> {
        self.next_request += 1;
        let mut head = Vec::new();
        asked.put(7, self.next_request, &mut head);
        let now = self.now();
        self.client
            .send(address(0), kind::REQUEST, &head, body, now)
            .map_err(|error| failed(format!("the network in memory is full: {error:?}")))?;
        Ok(self.next_request)
    }

    /// Sessions for so many operations under way.
    fn open_lanes(&mut self, under_way: usize) -> Result<(), Failure> {
        while self.lanes.len() * (WINDOW as usize) < under_way {
            let request = self.send(&Request::OpenSession { window: WINDOW }, &[])?;
            self.client.flush(self.now());
            let session = loop {
                self.turn()?;
                self.client.flush(self.now());
                let reply = self.messages.drain(..).find_map(|message| {
                    let (_, number, reply) = Reply::get(&message.head).ok()?;
                    (number == request).then_some(reply)
                });
                match reply {
                    Some(Reply::SessionOpened { session }) => break session,
                    Some(other) => return Err(failed(format!("no session: {other:?}"))),
                    None => {}
                }
            };
            self.lanes.push(Lane { session, next: 1, under_way: BTreeSet::new() });
        }
        Ok(())
    }

    /// Keeps `under_way` operations under way until `next` gives none, and all have ended. Without
    /// an operation and with `Some(false)` from `idle`, only turns.
    pub fn drive(
        &mut self,
        under_way: usize,
        next: &mut dyn FnMut(&Lone) -> Option<Operation>,
        ended: &mut dyn FnMut(Ended),
    ) -> Result<(), Failure> {
        self.open_lanes(under_way)?;
        let mut more = true;
        while more || !self.requests.is_empty() || !self.again.is_empty() {
            while self.requests.len() < under_way {
                let again = self.again.pop_front();
                let operation = match again {
                    Some(operation) => Some(operation),
                    None if more => next(self),
                    None => None,
                };
                let Some(operation) = operation else {
                    more = false;
                    break;
                };
                if !self.begin(operation)? {
                    self.again.push_back(operation);
                    break;
                }
            }
            self.client.flush(self.now());
            self.turn()?;
            self.take(ended)?;
        }
        Ok(())
    }

    /// Lets the loop turn for a while, or until `done`.
    pub fn rest(&mut self, seconds: f64, done: &dyn Fn(&Lone) -> bool) -> Result<(), Failure> {
        let end = self.now() + (seconds * 1e9) as u64;
        while self.now() < end && !done(self) {
            self.turn()?;
        }
        Ok(())
    }

    /// Sends an operation. False: no session or no memory has room for it now.
    fn begin(&mut self, operation: Operation) -> Result<bool, Failure> {
        let room = |lane: &Lane| {
            let first = lane.under_way.first().copied().unwrap_or(lane.next);
            lane.next < first + u64::from(WINDOW)
        };
        let Some(at) = self.lanes.iter().position(room) else { return Ok(false) };
        let sequence = self.lanes[at].next;
        let low = self.lanes[at].under_way.first().copied().unwrap_or(sequence);
        let stamp = Stamp { session: self.lanes[at].session, sequence, low };
        let began_ns = self.now();
        let mut stamped = true;
        let request = match operation {
            Operation::Put { key, len } => {
                let Some(mut buf) = self.pool.get(len) else { return Ok(false) };
                fill(key, &mut buf);
                let body = [buf.freeze()];
                self.send(&Request::Put { stamp, key: key_bytes(key) }, &body)?
            }
            Operation::Delete { key } => {
                self.send(&Request::Delete { stamp, key: key_bytes(key) }, &[])?
            }
            Operation::Get { key, .. } => {
                stamped = false;
                self.send(&Request::Get { key: key_bytes(key) }, &[])?
            }
        };
        if stamped {
            self.lanes[at].under_way.insert(sequence);
            self.lanes[at].next += 1;
        }
        let sequence = if stamped { sequence } else { 0 };
        self.requests.insert(request, Asked { operation, lane: at, sequence, began_ns });
        Ok(true)
    }

    fn take(&mut self, ended: &mut dyn FnMut(Ended)) -> Result<(), Failure> {
        let now = self.now();
        let mut messages = std::mem::take(&mut self.messages);
        for message in messages.drain(..) {
            let Ok((_, number, reply)) = Reply::get(&message.head) else { continue };
            let Some(asked) = self.requests.remove(&number) else { continue };
            self.lanes[asked.lane].under_way.remove(&asked.sequence);
            match (asked.operation, reply) {
                // Or it waited long for the disk: the same value again does no harm.
                (_, Reply::Error(error))
                    if matches!(error.code, ErrorCode::Busy | ErrorCode::Unavailable) =>
                {
                    self.again.push_back(asked.operation);
                    continue;
                }
                (Operation::Get { key, len }, Reply::Found { .. }) => {
                    check(key, len, &message.body)?;
                }
                (Operation::Put { .. } | Operation::Delete { .. }, Reply::Done { .. }) => {}
                (operation, reply) => {
                    return Err(failed(format!("{operation:?} was answered by {reply:?}")));
                }
            }
            let beside_copying = self.node.is_reclaiming();
            ended(Ended { ns: now - asked.began_ns, beside_copying });
        }
        self.messages = messages;
        Ok(())
    }
}

/// The value of a key: bytes that follow from it.
fn fill(key: u64, into: &mut [u8]) {
    let mut state = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for piece in into.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
}

fn check(key: u64, len: usize, bytes: &[u8]) -> Result<(), Failure> {
    let mut expected = vec![0; len];
    fill(key, &mut expected);
    match bytes == expected {
        true => Ok(()),
        false => Err(failed(format!("the value of key {key} is not the one that was written"))),
    }
}
