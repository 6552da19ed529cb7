//! Nodes without a cluster behind them: they share one state machine and answer at once.

use racos_buffer::Pool;
use racos_client::{ClientConfig, ClientCore, Completion};
use racos_engine::wire::client::{
    ErrorCode, Reply, Request, RequestError, get_stripes, kind, put_stripes,
};
use racos_engine::wire::node::put_keys;
use racos_machine::{
    Action, Content, Limits, Machine, Op, OpId, Outcome, Refusal, SessionId, Stamp, Value,
};
use racos_net::memory::{MemoryConfig, MemoryHub, MemoryLink};
use racos_net::{Identity, Lane, Message, Transport, TransportConfig};
use rustc_hash::FxHashMap;
use std::net::SocketAddr;

pub const MS: u64 = 1_000_000;
const CLUSTER: u64 = 77;

pub fn address(node: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 4000 + node))
}

/// What the nodes have seen.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    pub requests: u64,
    /// Writes that took effect, by node that was asked.
    pub applied: Vec<u64>,
    pub replayed: u64,
    pub stale: u64,
    pub parts_in_flight_max: usize,
    pub outstanding_max: u64,
    pub stripes_served: u64,
}

/// What a node answers instead of working.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    Says(ErrorCode),
    /// Works, but every reply is lost.
    Mute,
}

pub struct World {
    pub hub: MemoryHub,
    pub now_ns: u64,
    pub core: ClientCore<MemoryLink>,
    pub pool: Pool,
    nodes: Vec<Transport<MemoryLink>>,
    pub moods: Vec<Mood>,
    pub machine: Machine,
    slot: u64,
    bytes: FxHashMap<OpId, Vec<u8>>,
    pub seen: Seen,
    /// Replies held back, so that parts overlap.
    pub reply_after_ns: u64,
    delayed: Vec<Delayed>,
    /// Stripes that no key shows are not served any more.
    pub forget_replaced: bool,
    /// Before each reply comes one to another client, which had this address before.
    pub strangers: bool,
    /// Every reply is given twice.
    pub twice: bool,
}

/// When, from which node, to whom, head, body, and whether it answers a part.
type Delayed = (u64, usize, SocketAddr, Vec<u8>, Vec<u8>, bool);

impl World {
    pub fn new(
        seed: u64,
        nodes: u16,
        network: MemoryConfig,
        change: impl FnOnce(&mut ClientConfig),
    ) -> World {
        let hub = MemoryHub::new(seed, network);
        let pool = Pool::new(256 << 20);
        let addresses: Vec<_> = (0..nodes).map(address).collect();
        let transports = addresses.iter().zip(0..).map(|(address, node)| {
            let identity = Identity {
                cluster: CLUSTER,
                node: Some(node),
                incarnation: 1,
                boot: 1,
                lane: Lane::ONLY,
            };
            let link = hub.link(*address);
            Transport::new(link, identity, pool.clone(), TransportConfig::default())
        });
        let transports = transports.collect();
        let mut config = ClientConfig::new(CLUSTER, addresses, 99);
        change(&mut config);
        let core = ClientCore::new(hub.link(address(1000)), pool.clone(), config);
        World {
            core,
            pool,
            nodes: transports,
            moods: vec![Mood::Well; usize::from(nodes)],
            machine: Machine::new(Limits::default()),
            slot: 0,
            bytes: FxHashMap::default(),
            seen: Seen { applied: vec![0; usize::from(nodes)], ..Seen::default() },
            reply_after_ns: 0,
            delayed: Vec::new(),
            forget_replaced: false,
            strangers: false,
            twice: false,
            hub,
            now_ns: 0,
        }
    }

    /// Ends all sessions, as the cluster may do.
    pub fn end_sessions(&mut self) {
        let sessions: Vec<_> =
            self.machine.sessions_by_last_use().map(|state| state.session).collect();
        for session in sessions {
            self.slot += 1;
            let id = OpId::new(9, 1, 1, self.slot);
            let action = Action::CloseSession { session };
            self.machine.apply(self.slot, 0, &Op { id, author: None, stamp: None, action });
        }
    }

    /// Runs until `wanted` operations have completed; panics after ten virtual minutes.
    pub fn run(&mut self, wanted: usize) -> Vec<Completion> {
        let mut done = Vec::new();
        let limit_ns = self.now_ns + 600_000 * MS;
        while done.len() < wanted {
            self.step(&mut done);
            assert!(
                self.now_ns < limit_ns,
                "{} of {wanted} completed: {:?}",
                done.len(),
                self.seen
            );
        }
        done
    }

    /// Goes to the next event and lets everybody handle it.
    pub fn step(&mut self, done: &mut Vec<Completion>) {
        self.core.flush(self.now_ns);
        let nodes = self.nodes.iter().filter_map(Transport::next_deadline_ns);
        let replies = self.delayed.iter().map(|delayed| delayed.0);
        let next = [self.hub.next_arrival_ns(), self.core.deadline()];
        let next = next.into_iter().flatten().chain(nodes).chain(replies).min();
        self.now_ns = next.unwrap_or(self.now_ns + MS).max(self.now_ns + 1000);
        self.hub.advance(self.now_ns);
        (0..self.nodes.len()).for_each(|node| self.serve(node));
        self.core.poll(self.now_ns, done);
    }

    fn serve(&mut self, node: usize) {
        let mut messages = Vec::new();
        while self.nodes[node].receive(self.now_ns, &mut messages) > 0 {}
        for message in messages {
            self.answer(node, &message);
        }
        let now_ns = self.now_ns;
        let due = |delayed: &mut Delayed| delayed.0 <= now_ns && delayed.1 == node;
        let due: Vec<_> = self.delayed.extract_if(.., due).collect();
        for (_, _, to, head, body, _) in due {
            let body = self.pool.copy(&body).unwrap();
            self.nodes[node].send(to, kind::REPLY, &head, &[body], now_ns).unwrap();
        }
        self.nodes[node].flush(now_ns);
    }

    fn answer(&mut self, node: usize, message: &Message) {
        assert_eq!(message.kind, kind::REQUEST);
        let (client, number, request) = Request::get(&message.head).expect("a valid request");
        self.seen.requests += 1;
        let mut body = Vec::new();
        let is_part = matches!(request, Request::Part { .. });
        let reply = match self.moods[node] {
            Mood::Says(code) => Reply::Error(RequestError { code, text: format!("{code:?}") }),
            Mood::Well | Mood::Mute => self.work(node, request, &message.body, &mut body),
        };
        if self.moods[node] == Mood::Mute {
            return;
        }
        let mut head = Vec::new();
        reply.put(client, number, &mut head);
        if self.strangers {
            let mut head = Vec::new();
            Reply::NotFound.put(client ^ 1, number, &mut head);
            self.delayed.push((self.now_ns, node, message.from.address, head, Vec::new(), false));
        }
        let at_ns = self.now_ns + self.reply_after_ns;
        if self.twice {
            let again = (at_ns, node, message.from.address, head.clone(), body.clone(), is_part);
            self.delayed.push(again);
        }
        self.delayed.push((at_ns, node, message.from.address, head, body, is_part));
        let parts = self.delayed.iter().filter(|delayed| delayed.5).count();
        self.seen.parts_in_flight_max = self.seen.parts_in_flight_max.max(parts);
    }

    fn work(&mut self, node: usize, request: Request, body: &[u8], out: &mut Vec<u8>) -> Reply {
        self.slot += 1;
        let id = OpId::new(node as u16, 1, 1, self.slot);
        match request {
            Request::Members { .. } | Request::AtRisk { .. } => {
                unreachable!("no test here changes the members")
            }
            Request::OpenSession { window } => {
                self.machine.apply(
                    self.slot,
                    0,
                    &Op { id, author: None, stamp: None, action: Action::OpenSession { window } },
                );
                Reply::SessionOpened { session: SessionId { slot: self.slot, position: 0 } }
            }
            Request::CloseSession { session } => {
                self.write(node, id, None, Action::CloseSession { session }, None)
            }
            Request::Put { stamp, key } => {
                let content = Content::Whole(self.store(id, body));
                let action = Action::Put { key: key.into(), content };
                self.write(node, id, Some(stamp), action, None)
            }
            Request::Part { stamp } => {
                let value = self.store(id, body);
                self.write(node, id, Some(stamp), Action::Part { value }, Some(value))
            }
            Request::PutStripes { stamp, key } => {
                let content = Content::Stripes(get_stripes(body).unwrap().into());
                let action = Action::Put { key: key.into(), content };
                self.write(node, id, Some(stamp), action, None)
            }
            Request::Delete { stamp, key } => {
                self.write(node, id, Some(stamp), Action::Delete { key: key.into() }, None)
            }
            Request::Get { key } => match self.machine.get(&key) {
                None => Reply::NotFound,
                Some(version) => {
                    let revision = version.modified().main;
                    let values: Vec<Value> = version.values().collect();
                    if values.len() == 1 {
                        out.extend_from_slice(&self.bytes[&values[0].op]);
                        return Reply::Found { revision };
                    }
                    put_stripes(out, &values);
                    Reply::FoundStripes { revision }
                }
            },
            Request::GetStripe { value } => {
                self.seen.stripes_served += 1;
                let mut all = self.machine.range(&[], None, usize::MAX);
                let is_shown = all.any(|(_, version)| version.values().any(|v| v == value));
                if self.forget_replaced && !is_shown {
                    return Reply::NotFound;
                }
                out.extend_from_slice(&self.bytes[&value.op]);
                Reply::Found { revision: 1 }
            }
            Request::List { from, to, limit } => {
                let all = self.machine.range(&from, to.as_deref(), limit as usize + 1);
                let all: Vec<_> = all.collect();
                for (key, version) in all.iter().take(limit as usize) {
                    put_keys(out, key, version.modified().main, version.len());
                }
                Reply::Keys { more: all.len() > limit as usize }
            }
            Request::Status => {
                out.extend_from_slice(b"{}");
                Reply::Status
            }
        }
    }

    fn store(&mut self, op: OpId, bytes: &[u8]) -> Value {
        self.bytes.insert(op, bytes.to_vec());
        let mut head = [0; 8];
        let len = bytes.len().min(8);
        head[..len].copy_from_slice(&bytes[..len]);
        Value { op, len: bytes.len() as u32, digest: [0; 16], crc: 0, head, k: 1, n: 1, layout: 0 }
    }

    fn write(
        &mut self,
        node: usize,
        id: OpId,
        stamp: Option<Stamp>,
        action: Action,
        value: Option<Value>,
    ) -> Reply {
        if let Some(stamp) = stamp {
            let outstanding = stamp.sequence - stamp.low + 1;
            self.seen.outstanding_max = self.seen.outstanding_max.max(outstanding);
        }
        let outcome = self.machine.apply(self.slot, 0, &Op { id, author: None, stamp, action });
        let error = |code, text: String| Reply::Error(RequestError { code, text });
        match outcome {
            Outcome::Applied(done) => {
                self.seen.applied[node] += 1;
                Reply::Done { revision: done.revision, changes: done.changes, value }
            }
            Outcome::Replayed(done) => {
                self.seen.replayed += 1;
                Reply::Done { revision: done.revision, changes: done.changes, value: None }
            }
            Outcome::Refused { reason: Refusal::SessionExpired, .. } => {
                error(ErrorCode::SessionExpired, "expired".into())
            }
            Outcome::Refused { reason: Refusal::Stale, .. } => {
                self.seen.stale += 1;
                error(ErrorCode::Stale, "stale".into())
            }
            Outcome::Refused { reason, .. } => panic!("the client caused {reason:?}"),
        }
    }
}
