//! Blocking calls over UDP, on the caller's thread.
//!
//! Purpose: what programs and people use: one operation at a time, or a value of any size from a
//! reader or to a writer with a few stripes in memory. [`Client::turn`] is the loop for those who
//! keep many operations under way themselves.

use crate::config::ClientConfig;
use crate::core::ClientCore;
use crate::error::ClientError;
use crate::op::{Answer, Completion, Op, Route, Ticket};
use racos_buffer::{Pool, Slice};
use racos_engine::status::Status;
use racos_engine::wire::client::LIST_LIMIT_MAX;
use racos_engine::wire::node::KeyEntry;
use racos_machine::{Action, Revision, STRIPES_MAX, Value, prefix_end};
use racos_net::{UdpConfig, UdpLink};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

/// Most bytes of buffers: those of values under way.
const POOL_BYTES: usize = 512 << 20;
/// Longest sleep; nothing depends on it.
const SLEEP_NS_MAX: u64 = 1_000_000_000;

/// Told the bytes done so far and, if known, in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, Option<u64>);

/// Some keys in order.
#[derive(Debug, Clone)]
pub struct ListPage {
    pub entries: Vec<KeyEntry>,
    /// Where to go on; `None` at the end.
    pub next: Option<Vec<u8>>,
}

/// A client with a socket of its own.
pub struct Client {
    core: ClientCore<UdpLink>,
    pool: Pool,
    start: Instant,
    route: Route,
    done: Vec<Completion>,
}

impl Client {
    /// Opens a socket. Sends nothing yet: whether the nodes are there shows at the first operation.
    pub fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        Client::with_pool(config, POOL_BYTES)
    }

    /// As [`Client::connect`], with at most `pool_bytes` of buffers.
    pub fn with_pool(config: ClientConfig, pool_bytes: usize) -> Result<Client, ClientError> {
        if config.endpoints.is_empty() {
            return Err(ClientError::Limit { text: "no endpoint is given".to_string() });
        }
        let link = UdpLink::bind(local_for(&config.endpoints), UdpConfig::default())
            .map_err(|error| ClientError::Io { text: error.to_string() })?;
        let pool = Pool::new(pool_bytes);
        let core = ClientCore::new(link, pool.clone(), config);
        let start = Instant::now();
        Ok(Client { core, pool, start, route: Route::Any, done: Vec::new() })
    }

    /// Sends what follows to this node first, to this one only, or turn by turn.
    pub fn set_route(&mut self, route: Route) {
        self.route = route;
    }

    /// Buffers for values to store.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    pub fn core(&self) -> &ClientCore<UdpLink> {
        &self.core
    }

    /// Nanoseconds since this client was made.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a run of less than 500 years")
    }

    /// Takes an operation without waiting; it leaves in the next [`Client::turn`].
    pub fn submit(&mut self, op: Op, route: Route) -> Ticket {
        let now_ns = self.now_ns();
        self.core.submit(op, route, now_ns)
    }

    /// Sends what was submitted, waits until something has arrived, is due, or `until_ns` has come,
    /// and appends what completed.
    pub fn turn(&mut self, until_ns: u64, into: &mut Vec<Completion>) -> Result<(), ClientError> {
        let now_ns = self.now_ns();
        self.core.flush(now_ns);
        let due_ns = self.core.deadline().map_or(until_ns, |due| due.min(until_ns));
        if due_ns > now_ns {
            self.sleep((due_ns - now_ns).min(SLEEP_NS_MAX))?;
        }
        let now_ns = self.now_ns();
        self.core.poll(now_ns, into);
        Ok(())
    }

    fn sleep(&self, sleep_ns: u64) -> Result<(), ClientError> {
        let timeout = Timespec {
            tv_sec: (sleep_ns / 1_000_000_000) as i64,
            tv_nsec: (sleep_ns % 1_000_000_000) as i64,
        };
        let mut ready = [PollFd::new(self.core.link(), PollFlags::IN)];
        match poll(&mut ready, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(ClientError::Io { text: format!("waiting for the socket: {error}") }),
        }
    }

    /// Runs one operation to its end.
    pub fn run(&mut self, op: Op, route: Route) -> Result<Answer, ClientError> {
        let ticket = self.submit(op, route);
        self.await_any(|other| other == ticket).map(|(_, answer)| answer)
    }

    /// Waits until one of the operations that `is_wanted` names completes.
    fn await_any(
        &mut self,
        is_wanted: impl Fn(Ticket) -> bool,
    ) -> Result<(Ticket, Answer), ClientError> {
        loop {
            let mut done = std::mem::take(&mut self.done);
            let place = done.iter().position(|completion| is_wanted(completion.ticket));
            let found = place.map(|place| done.swap_remove(place));
            if let Some(completion) = found {
                self.done = done;
                return completion.result.map(|answer| (completion.ticket, answer));
            }
            // Whoever waits here waits for all it has submitted: the rest was given up.
            done.clear();
            let result = self.turn(u64::MAX, &mut done);
            self.done = done;
            result?;
        }
    }

    /// Stores a value. Returns the revision at which it took effect.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<u64, ClientError> {
        if value.len() > self.core.config().stripe_bytes {
            return self.put_reader(key, &mut &*value, &mut |_, _| {});
        }
        let value = self.pool.copy(value).ok_or_else(no_buffers)?;
        let route = self.route;
        match self.run(Op::Put { key: key.to_vec(), value }, route)? {
            Answer::Done { revision, .. } => Ok(revision),
            other => Err(nonsense(&other)),
        }
    }

    /// Fetches a value, with its revision.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<(u64, Vec<u8>)>, ClientError> {
        let mut bytes = Vec::new();
        for _ in 0..5 {
            bytes.clear();
            match self.get_writer(key, &mut bytes, &mut |_, _| {}) {
                Ok(found) => return Ok(found.map(|(revision, _)| (revision, bytes))),
                Err(ClientError::Replaced) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ClientError::Replaced)
    }

    /// Deletes a key. Whether it was there, and the revision.
    pub fn delete(&mut self, key: &[u8]) -> Result<(bool, u64), ClientError> {
        let route = self.route;
        match self.run(Op::Delete { key: key.to_vec() }, route)? {
            Answer::Done { revision, changes } => Ok((changes > 0, revision)),
            other => Err(nonsense(&other)),
        }
    }

    /// One page of the keys that begin with `prefix`, from `from` on if given. Each page is
    /// consistent in itself; keys may change between two.
    pub fn list(&mut self, prefix: &[u8], from: Option<&[u8]>) -> Result<ListPage, ClientError> {
        let start = from.unwrap_or(prefix).to_vec();
        let to = prefix_end(prefix).map(|end| end.into_vec());
        let route = self.route;
        match self.run(Op::List { from: start, to, limit: LIST_LIMIT_MAX }, route)? {
            Answer::Keys { entries, more } => {
                let last = entries.last().filter(|_| more).map(|entry| &entry.key);
                // The smallest key after another one is that key and a zero.
                let next = last.map(|key| [key, &[0][..]].concat());
                Ok(ListPage { entries, next })
            }
            other => Err(nonsense(&other)),
        }
    }

    /// Every version of which a change of the members, forced, would leave fewer fragments than the value
    /// is made of at some nodes (PROTOCOL 10-ja); told to `each`, by key and then by revision.
    pub fn at_risk(
        &mut self,
        change: &Action,
        each: &mut dyn FnMut(&KeyEntry),
    ) -> Result<(), ClientError> {
        let (route, mut after) = (self.route, (Vec::new(), Revision::default()));
        loop {
            match self.run(Op::AtRisk { action: change.clone(), after }, route)? {
                Answer::AtRisk { entries, next } => {
                    entries.iter().for_each(&mut *each);
                    match next {
                        Some(next) => after = next,
                        None => return Ok(()),
                    }
                }
                other => return Err(nonsense(&other)),
            }
        }
    }

    /// The report of one node.
    pub fn status(&mut self, endpoint: usize) -> Result<Status, ClientError> {
        match self.run(Op::Status, Route::Only(endpoint))? {
            Answer::Status { json } => parse_status(&json),
            other => Err(nonsense(&other)),
        }
    }

    /// The reports of all nodes, asked at once.
    pub fn status_all(&mut self) -> Vec<Result<Status, ClientError>> {
        let count = self.core.config().endpoints.len();
        let tickets: Vec<_> =
            (0..count).map(|place| self.submit(Op::Status, Route::Only(place))).collect();
        let mut reports: Vec<Option<Result<Status, ClientError>>> = vec![None; count];
        let mut done = Vec::new();
        while reports.iter().any(Option::is_none) {
            if let Err(error) = self.turn(u64::MAX, &mut done) {
                reports.iter_mut().for_each(|report| *report = Some(Err(error.clone())));
            }
            for completion in done.drain(..) {
                let place = tickets.iter().position(|ticket| *ticket == completion.ticket);
                let Some(place) = place else { continue };
                reports[place] = Some(match completion.result {
                    Ok(Answer::Status { json }) => parse_status(&json),
                    Ok(other) => Err(nonsense(&other)),
                    Err(error) => Err(error),
                });
            }
        }
        reports.into_iter().flatten().collect()
    }

    /// Stores what a reader gives, of any size, with a few stripes in memory. The key shows the
    /// value once all of it is stored. Returns the revision.
    pub fn put_reader(
        &mut self,
        key: &[u8],
        source: &mut dyn Read,
        progress: Progress<'_>,
    ) -> Result<u64, ClientError> {
        let first = self.read_stripe(source)?;
        let second = match first.len() < self.core.config().stripe_bytes {
            true => Slice::empty(),
            false => self.read_stripe(source)?,
        };
        let route = self.route;
        let op = if second.is_empty() {
            Op::Put { key: key.to_vec(), value: first }
        } else {
            let stripes = self.put_parts(first, second, source, progress)?;
            Op::PutStripes { key: key.to_vec(), stripes }
        };
        match self.run(op, route)? {
            Answer::Done { revision, .. } => Ok(revision),
            other => Err(nonsense(&other)),
        }
    }

    fn put_parts(
        &mut self,
        first: Slice,
        second: Slice,
        source: &mut dyn Read,
        progress: Progress<'_>,
    ) -> Result<Vec<Value>, ClientError> {
        let mut ready = VecDeque::from([first, second]);
        let mut under_way: BTreeMap<Ticket, usize> = BTreeMap::new();
        let mut stored: Vec<Option<Value>> = Vec::new();
        let (mut bytes_done, mut at_end) = (0, false);
        let result = loop {
            while under_way.len() < self.core.config().stripes_in_flight_max {
                let next = match ready.pop_front() {
                    Some(stripe) => stripe,
                    None if at_end => break,
                    None => match self.read_stripe(source) {
                        Ok(stripe) => stripe,
                        Err(error) => return self.drop_all(under_way, error),
                    },
                };
                if next.is_empty() {
                    at_end = true;
                    break;
                }
                if stored.len() == STRIPES_MAX {
                    let text = format!("a value of more than {STRIPES_MAX} stripes");
                    return self.drop_all(under_way, ClientError::Limit { text });
                }
                let ticket = self.submit(Op::Part { value: next }, self.route);
                under_way.insert(ticket, stored.len());
                stored.push(None);
            }
            if under_way.is_empty() {
                break stored.into_iter().flatten().collect();
            }
            match self.await_any(|ticket| under_way.contains_key(&ticket)) {
                Ok((ticket, Answer::Stored { value })) => {
                    let place = under_way.remove(&ticket).expect("only these are waited for");
                    bytes_done += u64::from(value.len);
                    stored[place] = Some(value);
                    progress(bytes_done, None);
                }
                Ok((_, other)) => return self.drop_all(under_way, nonsense(&other)),
                Err(error) => return self.drop_all(under_way, error),
            }
        };
        Ok(result)
    }

    fn drop_all<T>(
        &mut self,
        under_way: BTreeMap<Ticket, usize>,
        error: ClientError,
    ) -> Result<T, ClientError> {
        under_way.into_keys().for_each(|ticket| self.core.forget(ticket));
        Err(error)
    }

    /// Reads a whole stripe, or what is left; empty at the end.
    fn read_stripe(&mut self, source: &mut dyn Read) -> Result<Slice, ClientError> {
        let mut buffer = self.pool.get(self.core.config().stripe_bytes).ok_or_else(no_buffers)?;
        let mut len = 0;
        while len < buffer.len() {
            match source.read(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(count) => len += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(ClientError::Io { text: format!("reading the value: {error}") });
                }
            }
        }
        buffer.set_len(len);
        Ok(buffer.freeze())
    }

    /// Writes a value of any size to a writer, with a few stripes in memory. Returns revision and
    /// length. [`ClientError::Replaced`] means that what was written so far is to be thrown away.
    pub fn get_writer(
        &mut self,
        key: &[u8],
        sink: &mut dyn Write,
        progress: Progress<'_>,
    ) -> Result<Option<(u64, u64)>, ClientError> {
        let route = self.route;
        match self.run(Op::GetDescribed { key: key.to_vec() }, route)? {
            Answer::NotFound => Ok(None),
            Answer::Value { revision, bytes } => {
                write_all(sink, &bytes)?;
                Ok(Some((revision, bytes.len() as u64)))
            }
            Answer::Stripes { revision, stripes } => {
                let len = self.get_parts(&stripes, sink, progress)?;
                Ok(Some((revision, len)))
            }
            other => Err(nonsense(&other)),
        }
    }

    fn get_parts(
        &mut self,
        stripes: &[Value],
        sink: &mut dyn Write,
        progress: Progress<'_>,
    ) -> Result<u64, ClientError> {
        let total: u64 = stripes.iter().map(|stripe| u64::from(stripe.len)).sum();
        let window = self.core.config().stripes_in_flight_max;
        let mut under_way: BTreeMap<Ticket, usize> = BTreeMap::new();
        let mut arrived: BTreeMap<usize, Slice> = BTreeMap::new();
        let (mut next, mut written, mut bytes_done) = (0, 0, 0);
        while written < stripes.len() {
            while next < stripes.len() && next < written + window {
                let ticket = self.submit(Op::GetStripe { value: stripes[next] }, self.route);
                under_way.insert(ticket, next);
                next += 1;
            }
            match self.await_any(|ticket| under_way.contains_key(&ticket)) {
                Ok((ticket, Answer::Value { bytes, .. })) => {
                    let place = under_way.remove(&ticket).expect("only these are waited for");
                    arrived.insert(place, bytes);
                }
                Ok((_, Answer::NotFound)) => {
                    return self.drop_all(under_way, ClientError::Replaced);
                }
                Ok((_, other)) => return self.drop_all(under_way, nonsense(&other)),
                Err(error) => return self.drop_all(under_way, error),
            }
            while let Some(bytes) = arrived.remove(&written) {
                if let Err(error) = write_all(sink, &bytes) {
                    return self.drop_all(under_way, error);
                }
                written += 1;
                bytes_done += bytes.len() as u64;
                progress(bytes_done, Some(total));
            }
        }
        Ok(total)
    }
}

impl Drop for Client {
    /// Ends the session, as far as one datagram can.
    fn drop(&mut self) {
        let now_ns = self.now_ns();
        self.core.close_session(now_ns);
        self.core.flush(now_ns);
    }
}

/// The address to bind so that all endpoints can answer.
fn local_for(endpoints: &[SocketAddr]) -> SocketAddr {
    let all_loopback = endpoints.iter().all(|endpoint| endpoint.ip().is_loopback());
    match (endpoints.iter().all(SocketAddr::is_ipv4), all_loopback) {
        (true, true) => (Ipv4Addr::LOCALHOST, 0).into(),
        (true, false) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        (false, _) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn write_all(sink: &mut dyn Write, bytes: &[u8]) -> Result<(), ClientError> {
    sink.write_all(bytes)
        .map_err(|error| ClientError::Io { text: format!("writing the value: {error}") })
}

fn parse_status(json: &[u8]) -> Result<Status, ClientError> {
    serde_json::from_slice(json)
        .map_err(|error| ClientError::BadAnswer { text: format!("a status report: {error}") })
}

fn nonsense(answer: &Answer) -> ClientError {
    ClientError::BadAnswer { text: format!("an unexpected {answer:?}") }
}

fn no_buffers() -> ClientError {
    ClientError::Limit { text: "every buffer of this client is in use: wait, or give more".into() }
}
