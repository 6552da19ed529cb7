//! The client as a state machine: operations in, answers out, over any link.
//!
//! Purpose: sessions, retries, failover and large values, without clock, threads or random numbers,
//! so that the simulator runs the shipped code. A turn is: [`ClientCore::poll`], handle what
//! completed, [`ClientCore::submit`], [`ClientCore::flush`], then sleep until something arrives or
//! [`ClientCore::deadline`].
//!
//! Invariant: every submitted operation completes exactly once, at the latest when its patience
//! ends; a write keeps its session and number however often and wherever it is sent
//! (PROTOCOL 11-d).
//! What would break it: giving a write a second number while the first may still be applied.

use crate::config::ClientConfig;
use crate::endpoints::{Class, Endpoints};
use crate::error::ClientError;
use crate::large::Jobs;
use crate::op::{Answer, Completion, Op, Route, Ticket};
use crate::pending::{AskedNodes, Origin, Pending, Phase, Table};
use crate::session::Session;
use racos_buffer::{Pool, Slice};
use racos_engine::wire::client::{
    ErrorCode, LIST_LIMIT_MAX, Reply, Request, RequestError, get_stripes, kind, put_stripes,
};
use racos_engine::wire::node::get_keys;
use racos_machine::{KEY_BYTES_MAX, SESSION_WINDOW_MAX, STRIPES_MAX, SessionId, Stamp};
use racos_net::{Identity, Lane, Link, Message, SendError, Transport, TransportConfig};
use std::collections::VecDeque;

pub use crate::pending::OUTSTANDING_MAX;

const MS: u64 = 1_000_000;
/// Most calls of the link's receive in one poll.
const RECEIVE_CALLS_MAX: usize = 16;
/// Datagrams from which on more may have arrived than one call received.
const RECEIVE_FULL: usize = 64;
/// Tries at a node that answers other operations, and at one that is silent.
const TRIES_HERE_MAX: u32 = 3;
const TRIES_SILENT_MAX: u32 = 2;
/// How often a request to a node that answers others is waited for before it is sent again.
const WAITS_MAX: u32 = 3;
/// Time to allow for each byte of the values under way: 100 MB/s.
const VALUE_NS_PER_BYTE: u64 = 10;
/// Pause after a node that cannot: doubled each time up to the most.
const PAUSE_NS_MIN: u64 = 2 * MS;
const PAUSE_NS_MAX: u64 = 100 * MS;

/// What a client has seen so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub submitted: u64,
    pub completed: u64,
    pub failed: u64,
    /// Requests sent again to the same node, and to another.
    pub resent: u64,
    pub failovers: u64,
    /// Replies to operations that were over, and replies that made no sense.
    pub late: u64,
    pub junk: u64,
    pub sessions: u64,
}

impl Counts {
    /// The sums.
    pub(crate) fn plus(self, other: Counts) -> Counts {
        Counts {
            submitted: self.submitted + other.submitted,
            completed: self.completed + other.completed,
            failed: self.failed + other.failed,
            resent: self.resent + other.resent,
            failovers: self.failovers + other.failovers,
            late: self.late + other.late,
            junk: self.junk + other.junk,
            sessions: self.sessions + other.sessions,
        }
    }
}

/// The client's state machine over a link.
pub struct ClientCore<L: Link> {
    pub(crate) config: ClientConfig,
    transport: Transport<L>,
    pub(crate) pool: Pool,
    endpoints: Endpoints,
    pub(crate) table: Table,
    pub(crate) jobs: Jobs,
    session: Option<Session>,
    /// Whether the operation that opens a session is under way.
    is_opening: bool,
    /// Writes that wait for the session, by place, in order.
    queue: VecDeque<usize>,
    finished: Vec<Completion>,
    messages: Vec<Message>,
    head: Vec<u8>,
    tickets: u64,
    /// No operation is due before.
    check_ns: u64,
    /// Bytes of values in requests under way, either direction.
    value_bytes: u64,
    counts: Counts,
}

impl<L: Link> ClientCore<L> {
    /// `pool` gives the buffers of large values that arrive. Panics if there is no endpoint or the
    /// window is out of its bounds.
    pub fn new(link: L, pool: Pool, config: ClientConfig) -> ClientCore<L> {
        ClientCore::of_lane(link, pool, config, Lane::ONLY)
    }

    /// The client of one lane; the endpoints are those of that lane. In a lane of which it is not known
    /// how many there are, only a status is answered.
    pub fn of_lane(link: L, pool: Pool, config: ClientConfig, lane: Lane) -> ClientCore<L> {
        assert!(!config.endpoints.is_empty(), "a client has at least one endpoint");
        let window = config.window;
        assert!((1..=SESSION_WINDOW_MAX).contains(&window), "a window of {window} is not 1..4096");
        let boot = (config.client ^ (config.client >> 32)) as u32;
        let cluster = config.cluster;
        let identity = Identity { cluster, node: None, incarnation: 0, boot, lane };
        let transport = Transport::new(link, identity, pool.clone(), TransportConfig::default());
        let (least, most) = (config.resend_ns_min, config.resend_ns_max);
        ClientCore {
            endpoints: Endpoints::new(&config.endpoints, least, most),
            transport,
            pool,
            table: Table::default(),
            jobs: Jobs::default(),
            session: None,
            is_opening: false,
            queue: VecDeque::new(),
            finished: Vec::new(),
            messages: Vec::new(),
            head: Vec::new(),
            tickets: 0,
            check_ns: u64::MAX,
            value_bytes: 0,
            counts: Counts::default(),
            config,
        }
    }

    /// Takes an operation. It leaves with the next [`ClientCore::flush`] or [`ClientCore::poll`] at
    /// the latest; its completion comes from a later poll.
    pub fn submit(&mut self, op: Op, route: Route, now_ns: u64) -> Ticket {
        if let Err(error) = self.check(&op, route) {
            return self.refuse(op, error);
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.counts.submitted += 1;
        match op {
            Op::Put { key, value } if value.len() > self.config.stripe_bytes => {
                self.begin_large_put(ticket, key, value, route, now_ns);
            }
            op => {
                let described = matches!(op, Op::GetDescribed { .. });
                let (request, body, class) = self.request_of(op);
                let origin = Origin::User { described };
                self.start(ticket, origin, request, body, class, route, now_ns);
            }
        }
        ticket
    }

    /// Completes an operation with an error before anything of it is sent.
    pub(crate) fn refuse(&mut self, op: Op, error: ClientError) -> Ticket {
        self.tickets += 1;
        self.counts.submitted += 1;
        let ticket = Ticket(self.tickets);
        let (key, value) = give_back(op);
        self.finish(ticket, 0, Err(error), key, value);
        ticket
    }

    fn check(&self, op: &Op, route: Route) -> Result<(), ClientError> {
        let limit = |text: String| Err(ClientError::Limit { text });
        match route {
            Route::Prefer(place) | Route::Only(place) if place >= self.endpoints.len() => {
                return limit(format!("endpoint {place} of {}", self.endpoints.len()));
            }
            _ => {}
        }
        if let Op::List { limit: most, .. } = op
            && !(1..=LIST_LIMIT_MAX).contains(most)
        {
            return limit(format!("a list of {most} keys: 1 to {LIST_LIMIT_MAX} at a time"));
        }
        let Some(key) = op.key() else { return Ok(()) };
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return limit(format!("a key of {} bytes: 1 to {KEY_BYTES_MAX}", key.len()));
        }
        let stripes = match op {
            Op::Put { value, .. } => value.len().div_ceil(self.config.stripe_bytes),
            Op::PutStripes { stripes, .. } => stripes.len(),
            _ => 0,
        };
        if stripes > STRIPES_MAX {
            return limit(format!("a value of {stripes} stripes: at most {STRIPES_MAX}"));
        }
        Ok(())
    }

    fn request_of(&self, op: Op) -> (Request, Slice, Class) {
        let stamp = Stamp { session: SessionId::default(), sequence: 0, low: 0 };
        let class_of = |body: &Slice| match body.len() > LARGE_BODY {
            true => Class::Large,
            false => Class::Write,
        };
        match op {
            Op::Put { key, value } => {
                let class = class_of(&value);
                (Request::Put { stamp, key }, value, class)
            }
            Op::Part { value } => (Request::Part { stamp }, value, Class::Large),
            Op::PutStripes { key, stripes } => {
                let mut body = Vec::new();
                put_stripes(&mut body, &stripes);
                let body = self.pool.copy(&body).unwrap_or_default();
                (Request::PutStripes { stamp, key }, body, Class::Large)
            }
            Op::Delete { key } => (Request::Delete { stamp, key }, Slice::empty(), Class::Write),
            Op::Get { key } | Op::GetDescribed { key } => {
                (Request::Get { key }, Slice::empty(), Class::Read)
            }
            Op::GetStripe { value } => (Request::GetStripe { value }, Slice::empty(), Class::Large),
            Op::List { from, to, limit } => {
                (Request::List { from, to, limit }, Slice::empty(), Class::Large)
            }
            Op::Status => (Request::Status, Slice::empty(), Class::Read),
            Op::Members { action } => (Request::Members { action }, Slice::empty(), Class::Write),
            Op::AtRisk { action, after } => {
                (Request::AtRisk { action, after }, Slice::empty(), Class::Large)
            }
        }
    }

    /// Enters an operation; sends it now, or, if it is a write, once the session has room.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn start(
        &mut self,
        ticket: Ticket,
        origin: Origin,
        request: Request,
        body: Slice,
        class: Class,
        route: Route,
        now_ns: u64,
    ) {
        let deadline_ns = now_ns.saturating_add(self.config.patience_ns);
        let pending = Pending {
            number: 0,
            ticket,
            origin,
            request,
            body,
            route,
            class,
            phase: Phase::Queued,
            endpoint: route.wanted(),
            sends_here: 0,
            sends: 0,
            asked: AskedNodes::default(),
            pauses: 0,
            waits: 0,
            begun_ns: now_ns,
            sent_ns: 0,
            due_ns: deadline_ns,
            deadline_ns,
            full_nodes: 0,
            last: None,
        };
        let is_write = pending.stamp().is_some();
        self.value_bytes += pending.value_bytes();
        match self.table.insert(pending) {
            Err(pending) => {
                let text = format!("{OUTSTANDING_MAX} operations are under way: wait for some");
                self.end(*pending, Err(ClientError::Limit { text }), now_ns);
            }
            Ok(place) if is_write => {
                self.check_ns = self.check_ns.min(deadline_ns);
                self.queue.push_back(place);
                self.pump(now_ns);
            }
            Ok(place) => self.send_first(place, now_ns),
        }
    }

    /// Sends an operation for the first time: to a node that is not known to be silent now, whatever was
    /// known when it was submitted.
    fn send_first(&mut self, place: usize, now_ns: u64) {
        let pending = &mut self.table[place];
        pending.endpoint = self.endpoints.first(pending.route, now_ns);
        self.send(place, now_ns);
    }

    /// Sends queued writes while the session has room; opens a session if there is none.
    fn pump(&mut self, now_ns: u64) {
        while let Some(place) = self.queue.front().copied() {
            let idle_ns = self.config.session_idle_ns_max;
            // The parts of a large value that are stored already go with their session.
            let has_parts = self.jobs.any_stored();
            let stale = |session: &Session| {
                let idle = session.is_idle() && now_ns.saturating_sub(session.used_ns) > idle_ns;
                idle && !has_parts
            };
            if self.session.as_ref().is_none_or(stale) {
                return self.open_session(now_ns);
            }
            let session = self.session.as_mut().expect("checked above");
            let Some(stamp) = session.take(now_ns) else { return };
            self.queue.pop_front();
            let slot = self.table[place].stamp_mut().expect("only writes are queued");
            *slot = stamp;
            self.send_first(place, now_ns);
        }
    }

    fn open_session(&mut self, now_ns: u64) {
        if self.is_opening {
            return;
        }
        self.close_session(now_ns);
        self.is_opening = true;
        let request = Request::OpenSession { window: self.config.window };
        let (origin, body) = (Origin::Session, Slice::empty());
        self.start(Ticket(0), origin, request, body, Class::Write, Route::Any, now_ns);
    }

    /// Lets the cluster forget the session, if there is one. Not waited for: at worst it is
    /// forgotten later.
    pub fn close_session(&mut self, now_ns: u64) {
        if let Some(session) = self.session.take() {
            self.close(session.id, now_ns);
        }
    }

    fn close(&mut self, session: SessionId, now_ns: u64) {
        let request = Request::CloseSession { session };
        let (origin, body) = (Origin::Nobody, Slice::empty());
        self.start(Ticket(0), origin, request, body, Class::Write, Route::Any, now_ns);
    }

    fn send(&mut self, place: usize, now_ns: u64) {
        let pending = &mut self.table[place];
        if let Some(session) = &self.session
            && let Some(stamp) = pending.stamp_mut()
            && stamp.session == session.id
        {
            // PROTOCOL 11-b, 11-f: as of now, the number as it was.
            stamp.low = session.low();
        }
        self.head.clear();
        pending.request.put(self.config.client, pending.number, &mut self.head);
        let body = match pending.body.is_empty() {
            true => &[][..],
            false => std::slice::from_ref(&pending.body),
        };
        let to = self.endpoints.address(pending.endpoint);
        match self.transport.send(to, kind::REQUEST, &self.head, body, now_ns) {
            Ok(()) => {
                let wait_ns = self.endpoints.resend_after_ns(pending.endpoint, pending.class);
                let wait_ns = wait_ns + self.value_bytes * VALUE_NS_PER_BYTE;
                // Twice as long for each time that it was sent here in vain, and for each other node that
                // does not answer: a cluster that has become slow gets no quicker by more of the same.
                let in_vain = pending.sends_here + pending.asked.others(pending.endpoint);
                let wait_ns = (wait_ns << in_vain.min(6)).min(self.config.resend_ns_max);
                pending.phase = Phase::Asked;
                pending.waits = 0;
                pending.sends += 1;
                pending.sends_here += 1;
                pending.asked.note(pending.endpoint, now_ns);
                pending.sent_ns = now_ns;
                pending.due_ns = now_ns + wait_ns;
            }
            Err(SendError::Backlog { .. } | SendError::TooManyPeers { .. }) => {
                pending.phase = Phase::Paused;
                pending.due_ns = now_ns + PAUSE_NS_MIN;
            }
            Err(error @ (SendError::TooLarge { .. } | SendError::HeadTooLarge { .. })) => {
                let pending = self.table.remove(place);
                return self.end(
                    pending,
                    Err(ClientError::Limit { text: error.to_string() }),
                    now_ns,
                );
            }
        }
        self.check_ns = self.check_ns.min(pending.due_ns).min(pending.deadline_ns);
    }

    /// Takes in what has arrived and what has become due, appends what completed, and sends.
    pub fn poll(&mut self, now_ns: u64, into: &mut Vec<Completion>) {
        let mut messages = std::mem::take(&mut self.messages);
        for _ in 0..RECEIVE_CALLS_MAX {
            let datagrams = self.transport.receive(now_ns, &mut messages);
            for message in messages.drain(..) {
                self.take(message, now_ns);
            }
            if datagrams < RECEIVE_FULL {
                break;
            }
        }
        self.messages = messages;
        if now_ns >= self.check_ns {
            self.check_time(now_ns);
        }
        self.pump(now_ns);
        into.append(&mut self.finished);
        self.transport.flush(now_ns);
    }

    /// Hands what was submitted since to the network.
    pub fn flush(&mut self, now_ns: u64) {
        self.transport.flush(now_ns);
    }

    /// When to poll again though nothing arrives; `None` if nothing is under way.
    pub fn deadline(&self) -> Option<u64> {
        if !self.finished.is_empty() {
            return Some(0);
        }
        let own = (self.table.len() > 0).then_some(self.check_ns);
        [own, self.transport.next_deadline_ns()].into_iter().flatten().min()
    }

    /// Operations under way, those that make up large values included.
    pub fn outstanding(&self) -> usize {
        self.table.len()
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn link(&self) -> &L {
        self.transport.link()
    }

    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// Gives an operation up; it completes no more. A write may have been applied.
    pub fn forget(&mut self, ticket: Ticket) {
        let is_of = |pending: &Pending| {
            pending.ticket == ticket && !matches!(pending.origin, Origin::Session | Origin::Nobody)
        };
        let places = self.table.iter().filter(|(_, pending)| is_of(pending));
        let places: Vec<_> = places.map(|(place, _)| place).collect();
        places.into_iter().for_each(|place| self.drop_pending(place));
        self.jobs.remove_ticket(ticket);
    }

    pub(crate) fn drop_pending(&mut self, place: usize) {
        self.queue.retain(|queued| *queued != place);
        let pending = self.table.remove(place);
        self.release(&pending);
    }

    fn take(&mut self, message: Message, now_ns: u64) {
        let from = self.endpoints.find(message.from.address);
        let (Some(from), kind::REPLY) = (from, message.kind) else {
            self.counts.junk += 1;
            return;
        };
        self.endpoints.heard(from, now_ns);
        let Ok((client, number, reply)) = Reply::get(&message.head) else {
            self.counts.junk += 1;
            return;
        };
        // Meant for a client that had this address before.
        if client != self.config.client {
            self.counts.junk += 1;
            return;
        }
        let Some(place) = self.table.find(number) else {
            self.counts.late += 1;
            // Opened by a copy of the request, or by one that was given up. Its numbers may not be taken: a
            // reply may be repeated, and they may have been used.
            if let Reply::SessionOpened { session } = reply
                && self.session.as_ref().is_none_or(|current| current.id != session)
            {
                self.close(session, now_ns);
            }
            return;
        };
        let pending = &mut self.table[place];
        if let Some(asked) = pending.asked.take(from) {
            let reply_ns = now_ns.saturating_sub(asked.first_ns);
            match asked.times {
                1 => self.endpoints.sample(from, pending.class, reply_ns),
                // Which of them it answers is not known, but none was sent before the first.
                _ => self.endpoints.answered_within(from, pending.class, reply_ns),
            }
        }
        if let Reply::Error(error) = reply {
            return self.take_error(place, from, error, now_ns);
        }
        pending.endpoint = from;
        self.take_answer(place, reply, message.body, now_ns);
    }

    fn take_answer(&mut self, place: usize, reply: Reply, body: Slice, now_ns: u64) {
        let request = &self.table[place].request;
        if let (Request::Part { .. }, Reply::Done { value: None, .. }) = (request, &reply) {
            // Applied before, and the node no longer knows as what. No key shows it: store it anew.
            return self.renumber(place, now_ns);
        }
        let pending = self.table.remove(place);
        let nonsense = |text: String| Err(ClientError::BadAnswer { text });
        let answer = match (&pending.request, reply) {
            (Request::OpenSession { window }, Reply::SessionOpened { session }) => {
                self.session = Some(Session::new(session, *window, now_ns));
                self.is_opening = false;
                self.counts.sessions += 1;
                return self.pump(now_ns);
            }
            (Request::Part { .. }, Reply::Done { value: Some(value), .. }) => {
                Ok(Answer::Stored { value })
            }
            (
                Request::Put { .. }
                | Request::PutStripes { .. }
                | Request::Delete { .. }
                | Request::Members { .. },
                Reply::Done { revision, changes, .. },
            ) => Ok(Answer::Done { revision, changes }),
            (Request::CloseSession { .. }, _) => Ok(Answer::NotFound),
            (Request::Get { .. } | Request::GetStripe { .. }, Reply::NotFound) => {
                Ok(Answer::NotFound)
            }
            (Request::GetStripe { value }, Reply::Found { .. })
                if body.len() != value.len as usize =>
            {
                nonsense(format!("{} bytes for a stripe of {}", body.len(), value.len))
            }
            (Request::Get { .. } | Request::GetStripe { .. }, Reply::Found { revision }) => {
                Ok(Answer::Value { revision, bytes: body })
            }
            (Request::Get { .. }, Reply::FoundStripes { revision }) => match get_stripes(&body) {
                Ok(stripes) => Ok(Answer::Stripes { revision, stripes }),
                Err(error) => nonsense(error.to_string()),
            },
            (Request::List { .. }, Reply::Keys { more }) => match get_keys(&body) {
                Ok(entries) => Ok(Answer::Keys { entries, more }),
                Err(error) => nonsense(error.to_string()),
            },
            (Request::AtRisk { .. }, Reply::AtRisk { next }) => match get_keys(&body) {
                Ok(entries) => Ok(Answer::AtRisk { entries, next }),
                Err(error) => nonsense(error.to_string()),
            },
            (Request::Status, Reply::Status) => Ok(Answer::Status { json: body }),
            (request, reply) => nonsense(format!("{reply:?} to {request:?}")),
        };
        self.end(pending, answer, now_ns);
    }

    fn take_error(&mut self, place: usize, from: usize, error: RequestError, now_ns: u64) {
        let pending = &mut self.table[place];
        let is_last_asked = pending.endpoint == from && pending.phase == Phase::Asked;
        let text = error.text.clone();
        let failure = match error.code {
            ErrorCode::Unavailable | ErrorCode::Busy | ErrorCode::Window => {
                pending.last = Some(error);
                if is_last_asked {
                    self.pause(place, now_ns);
                }
                return;
            }
            ErrorCode::NoSpace => {
                pending.full_nodes += 1;
                let only = matches!(pending.route, Route::Only(_));
                if !only && pending.full_nodes < self.endpoints.len() {
                    pending.last = Some(error);
                    if is_last_asked {
                        self.pause(place, now_ns);
                    }
                    return;
                }
                let sends_unknown = pending.sends as usize > pending.full_nodes;
                let may_have_happened = pending.may_have_happened() && sends_unknown;
                ClientError::NoSpace { text, may_have_happened }
            }
            ErrorCode::SessionExpired | ErrorCode::Stale => {
                let lost = pending.stamp().map(|stamp| stamp.session);
                if self.session.as_ref().map(|session| session.id) == lost {
                    self.session = None;
                }
                // Even sent once: the network may have delivered it twice, the first time in time.
                let may_have_happened = self.table[place].may_have_happened();
                ClientError::SessionLost { may_have_happened }
            }
            ErrorCode::DataLoss => ClientError::DataLoss { text },
            // Its parts were stored, and have gone with the session that they were stored in.
            ErrorCode::ValueMissing if matches!(pending.origin, Origin::Job { .. }) => {
                ClientError::SessionLost { may_have_happened: false }
            }
            ErrorCode::BadRequest | ErrorCode::ValueMissing | ErrorCode::TooLarge => {
                ClientError::Refused { text }
            }
        };
        let pending = self.table.remove(place);
        self.end(pending, Err(failure), now_ns);
    }

    /// Asks another node after a pause.
    fn pause(&mut self, place: usize, now_ns: u64) {
        let pending = &mut self.table[place];
        let pause_ns = (PAUSE_NS_MIN << pending.pauses.min(16)).min(PAUSE_NS_MAX);
        pending.pauses += 1;
        pending.phase = Phase::Paused;
        pending.due_ns = now_ns + pause_ns;
        pending.sends_here = 0;
        pending.endpoint = self.endpoints.other(pending.route, pending.endpoint, now_ns);
        self.check_ns = self.check_ns.min(pending.due_ns);
    }

    /// Gives a write that no key shows a new number.
    fn renumber(&mut self, place: usize, now_ns: u64) {
        let mut pending = self.table.remove(place);
        let stamp = *pending.stamp().expect("only writes have numbers");
        self.release_stamp(&stamp);
        pending.phase = Phase::Queued;
        pending.sends_here = 0;
        // Under another request number too: answers to what was sent before are of no use.
        let place = self.table.insert(pending).expect("a place was freed just now");
        self.queue.push_back(place);
        self.pump(now_ns);
    }

    fn check_time(&mut self, now_ns: u64) {
        self.check_ns = u64::MAX;
        for place in 0..self.table.end() {
            let Some(pending) = self.table.get_mut(place) else { continue };
            if pending.deadline_ns <= now_ns {
                self.give_up(place, now_ns);
            } else if pending.due_ns <= now_ns && pending.phase == Phase::Paused {
                self.send(place, now_ns);
            } else if pending.due_ns <= now_ns && pending.phase == Phase::Asked {
                self.ask_again(place, now_ns);
            }
            let Some(pending) = self.table.get_mut(place) else { continue };
            let next_ns = match pending.phase {
                Phase::Queued => pending.deadline_ns,
                Phase::Asked | Phase::Paused => pending.due_ns.min(pending.deadline_ns),
            };
            self.check_ns = self.check_ns.min(next_ns);
        }
    }

    /// No reply in time: once more, or another node.
    fn ask_again(&mut self, place: usize, now_ns: u64) {
        let pending = &mut self.table[place];
        let at = pending.endpoint;
        let is_silent = !self.endpoints.heard_since(at, pending.sent_ns);
        let was_silent = is_silent && self.endpoints.silent(at, now_ns - pending.sent_ns, now_ns);
        let wait_ns = self.endpoints.resend_after_ns(at, pending.class);
        let wait_ns = wait_ns + self.value_bytes * VALUE_NS_PER_BYTE;
        let wait_ns = wait_ns.min(self.config.resend_ns_max);
        if !is_silent && pending.waits < WAITS_MAX {
            // The node works; more likely the request is in a queue than lost, and to send a value
            // again costs disk at every node if the first one arrives too.
            pending.waits += 1;
            pending.due_ns = now_ns + wait_ns;
            return;
        }
        let tries_max = match (is_silent, was_silent) {
            (false, _) => TRIES_HERE_MAX,
            (true, false) => TRIES_SILENT_MAX,
            // It was only looked whether it is back.
            (true, true) => 1,
        };
        let is_large = pending.class == Class::Large;
        if pending.sends_here >= tries_max {
            pending.endpoint = self.endpoints.other(pending.route, at, now_ns);
            pending.sends_here = 0;
            self.counts.failovers += 1;
        } else if is_large && self.transport.pending_bytes(self.endpoints.address(at)) > 0 {
            // The transport is still at it; asking again would only add to what it has to send.
            pending.sends_here += 1;
            pending.due_ns = now_ns + wait_ns;
            return;
        }
        self.counts.resent += 1;
        self.send(place, now_ns);
    }

    fn give_up(&mut self, place: usize, now_ns: u64) {
        self.queue.retain(|queued| *queued != place);
        let pending = self.table.remove(place);
        // PROTOCOL 11-m: whether it was applied is not known.
        let waited_ms = now_ns.saturating_sub(pending.begun_ns) / MS;
        let may_have_happened = pending.may_have_happened();
        let since_ns = pending.begun_ns;
        let is_heard = match pending.route {
            Route::Only(place) => self.endpoints.heard_since(place, since_ns),
            _ => self.endpoints.any_heard_since(since_ns),
        };
        let error = if is_heard {
            let last = pending.last.as_ref().map(|error| error.text.clone());
            ClientError::Timeout { waited_ms, may_have_happened, last }
        } else {
            let endpoints = match pending.route {
                Route::Only(place) => vec![self.endpoints.address(place)],
                _ => self.config.endpoints.clone(),
            };
            ClientError::Unreachable { endpoints, waited_ms, may_have_happened }
        };
        self.end(pending, Err(error), now_ns);
    }

    /// Undoes what [`ClientCore::start`] counted.
    fn release(&mut self, pending: &Pending) {
        self.value_bytes -= pending.value_bytes();
        if let Some(stamp) = pending.stamp() {
            self.release_stamp(&stamp.clone());
        }
    }

    fn release_stamp(&mut self, stamp: &Stamp) {
        if let Some(session) = &mut self.session
            && session.id == stamp.session
            && stamp.sequence > 0
        {
            session.release(stamp.sequence);
        }
    }

    /// An operation that is out of the table is over.
    fn end(&mut self, mut pending: Pending, result: Result<Answer, ClientError>, now_ns: u64) {
        self.release(&pending);
        if result.is_ok()
            && let (Some(session), Some(stamp)) = (&mut self.session, pending.stamp())
            && session.id == stamp.session
        {
            // What waited for room goes on in it, however long the answer took.
            session.used_ns = now_ns;
        }
        match (pending.origin, result) {
            (Origin::Nobody, _) => {}
            (Origin::Session, result) => {
                self.is_opening = false;
                match result {
                    // Writes that still wait ask for another one.
                    Err(error) if !error.is_unavailable() => self.fail_queued(&error, now_ns),
                    _ => {}
                }
            }
            (Origin::Job { job, part }, result) => self.job_step(job, part, result, now_ns),
            (Origin::User { described: false }, Ok(Answer::Stripes { revision, stripes })) => {
                let key = pending.take_key();
                self.begin_large_get(pending.ticket, key, revision, stripes, pending.route, now_ns);
            }
            (Origin::User { .. }, result) => {
                let key = pending.take_key();
                self.finish(pending.ticket, pending.endpoint, result, key, pending.body);
            }
        }
    }

    /// No session is to be had.
    fn fail_queued(&mut self, error: &ClientError, now_ns: u64) {
        let queued = std::mem::take(&mut self.queue).into_iter();
        let queued: Vec<u64> = queued.map(|place| self.table[place].number).collect();
        for number in queued {
            // The end of one part of a large value is the end of the others.
            let Some(place) = self.table.find(number) else { continue };
            let pending = self.table.remove(place);
            self.end(pending, Err(error.clone()), now_ns);
        }
    }

    pub(crate) fn finish(
        &mut self,
        ticket: Ticket,
        endpoint: usize,
        result: Result<Answer, ClientError>,
        key: Vec<u8>,
        value: Slice,
    ) {
        self.counts.completed += 1;
        self.counts.failed += u64::from(result.is_err());
        self.finished.push(Completion { ticket, endpoint, result, key, value });
    }
}

/// Bodies above this do not share a datagram with others; they are large to the network.
const LARGE_BODY: usize = 16 << 10;

fn give_back(op: Op) -> (Vec<u8>, Slice) {
    match op {
        Op::Put { key, value } => (key, value),
        Op::Part { value } => (Vec::new(), value),
        Op::Delete { key } | Op::Get { key } | Op::GetDescribed { key } => (key, Slice::empty()),
        Op::PutStripes { key, .. } => (key, Slice::empty()),
        Op::GetStripe { .. }
        | Op::List { .. }
        | Op::Status
        | Op::Members { .. }
        | Op::AtRisk { .. } => (Vec::new(), Slice::empty()),
    }
}
