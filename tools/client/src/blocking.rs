//! Blocking calls over UDP, on the caller's thread.
//!
//! Purpose: what programs and people use: one operation at a time, or a value of any size from a
//! reader or to a writer with a few stripes in memory. [`Client::turn`] is the loop for those who
//! keep many operations under way themselves. Keys choose the lane, if nodes have several.

use crate::config::ClientConfig;
use crate::core::{ClientCore, Counts};
use crate::error::ClientError;
use crate::lanes::Lanes;
use crate::op::{Answer, Completion, Op, Route, Ticket};
use racos_buffer::{Pool, Slice};
use racos_engine::lanes::lane_address;
use racos_engine::status::Status;
use racos_engine::wire::client::LIST_LIMIT_MAX;
use racos_engine::wire::node::KeyEntry;
use racos_machine::{Action, Revision, STRIPES_MAX, Value, prefix_end};
use racos_net::{Lane, UdpConfig, UdpLink};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::Instant;

/// Buffers of a client that asks how many lanes there are.
const ASK_BYTES: usize = 4 << 20;
/// Most bytes of buffers: those of values under way.
const POOL_BYTES: usize = 512 << 20;
/// Longest sleep; nothing depends on it.
const SLEEP_NS_MAX: u64 = 1_000_000_000;

/// Told the bytes done so far and, if known, in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, Option<u64>);

/// Some keys in order, of all lanes.
#[derive(Debug, Clone)]
pub struct ListPage {
    pub entries: Vec<KeyEntry>,
    /// Where to go on; `None` at the end.
    pub next: Option<Vec<u8>>,
}

/// A client with a socket of its own for each lane.
pub struct Client {
    lanes: Lanes<UdpLink>,
    config: ClientConfig,
    pool: Pool,
    start: Instant,
    route: Route,
    done: Vec<Completion>,
}

impl Client {
    /// Asks a node how many lanes there are, and opens a socket for each.
    ///
    /// # Errors
    /// No node answers, or the configuration says another number.
    pub fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        Client::with_pool(config, POOL_BYTES)
    }

    /// As [`Client::connect`], with at most `pool_bytes` of buffers.
    pub fn with_pool(config: ClientConfig, pool_bytes: usize) -> Result<Client, ClientError> {
        if config.endpoints.is_empty() {
            return Err(ClientError::Limit { text: "no endpoint is given".to_string() });
        }
        let count = Client::ask_lanes(&config)?;
        if let Some(told) = config.lanes.filter(|told| *told != count) {
            return Err(ClientError::Lanes { told, are: count });
        }
        if !(1..=Lane::COUNT_MAX).contains(&count) {
            let text = format!("a node of {count} lanes");
            return Err(ClientError::BadAnswer { text });
        }
        let lanes = (0..count).map(|number| Lane { number, count });
        Client::of_lanes(config, lanes, Pool::new(pool_bytes))
    }

    fn of_lanes(
        config: ClientConfig,
        lanes: impl Iterator<Item = Lane>,
        pool: Pool,
    ) -> Result<Client, ClientError> {
        let cores = lanes.map(|lane| core_of(&config, lane, &pool));
        let lanes = Lanes::new(cores.collect::<Result<_, _>>()?);
        let (start, route, done) = (Instant::now(), Route::Any, Vec::new());
        Ok(Client { lanes, config, pool, start, route, done })
    }

    /// How many lanes the nodes have, as one of them says.
    fn ask_lanes(config: &ClientConfig) -> Result<u8, ClientError> {
        let lane = std::iter::once(Lane::UNKNOWN);
        let mut client = Client::of_lanes(config.clone(), lane, Pool::new(ASK_BYTES))?;
        match client.run(Op::Status, Route::Any)? {
            Answer::Status { json } => Ok(parse_status(&json)?.lanes),
            other => Err(nonsense(&other)),
        }
    }

    /// Sends what follows to this node first, to this one only, or turn by turn.
    pub fn set_route(&mut self, route: Route) {
        self.route = route;
    }

    /// Buffers for values to store.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    pub fn lanes(&self) -> usize {
        self.lanes.count()
    }

    /// What all lanes have seen so far.
    pub fn counts(&self) -> Counts {
        self.lanes.counts()
    }

    /// Nanoseconds since this client was made.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a run of less than 500 years")
    }

    /// Takes an operation without waiting; it leaves in the next [`Client::turn`].
    pub fn submit(&mut self, op: Op, route: Route) -> Ticket {
        let now_ns = self.now_ns();
        self.lanes.submit(op, route, now_ns)
    }

    /// As [`Client::submit`], for a lane.
    pub fn submit_to(&mut self, lane: usize, op: Op, route: Route) -> Ticket {
        let now_ns = self.now_ns();
        self.lanes.submit_to(lane, op, route, now_ns)
    }

    /// Sends what was submitted, waits until something has arrived, is due, or `until_ns` has come,
    /// and appends what completed.
    pub fn turn(&mut self, until_ns: u64, into: &mut Vec<Completion>) -> Result<(), ClientError> {
        let now_ns = self.now_ns();
        self.lanes.flush(now_ns);
        let due_ns = self.lanes.deadline().map_or(until_ns, |due| due.min(until_ns));
        if due_ns > now_ns {
            self.sleep((due_ns - now_ns).min(SLEEP_NS_MAX))?;
        }
        let now_ns = self.now_ns();
        self.lanes.poll(now_ns, into);
        Ok(())
    }

    fn sleep(&self, sleep_ns: u64) -> Result<(), ClientError> {
        let timeout = Timespec {
            tv_sec: (sleep_ns / 1_000_000_000) as i64,
            tv_nsec: (sleep_ns % 1_000_000_000) as i64,
        };
        let fd = |lane| PollFd::new(self.lanes.core(lane).link(), PollFlags::IN);
        let woken = match self.lanes.count() {
            1 => poll(&mut [fd(0)], Some(&timeout)),
            count => poll(&mut (0..count).map(fd).collect::<Vec<_>>(), Some(&timeout)),
        };
        match woken {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(ClientError::Io { text: format!("waiting for the socket: {error}") }),
        }
    }

    /// Runs one operation to its end.
    pub fn run(&mut self, op: Op, route: Route) -> Result<Answer, ClientError> {
        let ticket = self.submit(op, route);
        self.await_any(|other| other == ticket).map(|(_, answer)| answer)
    }

    /// As [`Client::run`], in a lane.
    pub fn run_in(&mut self, lane: usize, op: Op, route: Route) -> Result<Answer, ClientError> {
        let ticket = self.submit_to(lane, op, route);
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
        if value.len() > self.config.stripe_bytes {
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

    /// One page of the keys that begin with `prefix`, from `from` on if given. What a page has of one
    /// lane is consistent in itself; keys may change between two pages, and between two lanes of one.
    pub fn list(&mut self, prefix: &[u8], from: Option<&[u8]>) -> Result<ListPage, ClientError> {
        let start = from.unwrap_or(prefix);
        let to = prefix_end(prefix).map(|end| end.into_vec());
        let (route, count) = (self.route, self.lanes.count());
        // Keys are spread evenly: a page of all lanes has about as many as one of a single lane.
        let limit = LIST_LIMIT_MAX.div_ceil(count as u32);
        let (mut entries, mut end): (Vec<KeyEntry>, Option<Vec<u8>>) = (Vec::new(), None);
        for lane in 0..count {
            match self.run_in(
                lane,
                Op::List { from: start.to_vec(), to: to.clone(), limit },
                route,
            )? {
                Answer::Keys { entries: mut found, more } => {
                    let last = found.last().filter(|_| more).map(|entry| entry.key.clone());
                    end = match (end, last) {
                        (Some(end), Some(last)) => Some(end.min(last)),
                        (end, last) => end.or(last),
                    };
                    entries.append(&mut found);
                }
                other => return Err(nonsense(&other)),
            }
        }
        if count > 1 {
            // Beyond the least last key of a lane that has more, this page would have gaps.
            entries.retain(|entry| end.as_ref().is_none_or(|end| entry.key <= *end));
            entries.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        }
        // The smallest key after another one is that key and a zero.
        let next = end.map(|key| [&key, &[0][..]].concat());
        Ok(ListPage { entries, next })
    }

    /// Every version of which a change of the members, forced, would leave fewer fragments than the value
    /// is made of at some nodes (PROTOCOL 10-ja), in one lane; told to `each`, by key and then by revision.
    pub fn at_risk(
        &mut self,
        lane: usize,
        change: &Action,
        each: &mut dyn FnMut(&KeyEntry),
    ) -> Result<(), ClientError> {
        let (route, mut after) = (self.route, (Vec::new(), Revision::default()));
        loop {
            match self.run_in(lane, Op::AtRisk { action: change.clone(), after }, route)? {
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

    /// The report of one node, of lane 0.
    pub fn status(&mut self, endpoint: usize) -> Result<Status, ClientError> {
        match self.run(Op::Status, Route::Only(endpoint))? {
            Answer::Status { json } => parse_status(&json),
            other => Err(nonsense(&other)),
        }
    }

    /// The reports of all nodes on one lane, asked at once.
    pub fn status_all(&mut self, lane: usize) -> Vec<Result<Status, ClientError>> {
        self.status_of(lane..lane + 1)
    }

    /// The reports of all nodes, asked at once: for each, those of its lanes in order.
    pub fn status_lanes(&mut self) -> Vec<Result<Status, ClientError>> {
        self.status_of(0..self.lanes.count())
    }

    fn status_of(&mut self, lanes: Range<usize>) -> Vec<Result<Status, ClientError>> {
        let places = (0..self.config.endpoints.len())
            .flat_map(|place| lanes.clone().map(move |lane| (place, lane)));
        let ask = |(place, lane)| self.submit_to(lane, Op::Status, Route::Only(place));
        let tickets: Vec<_> = places.map(ask).collect();
        let mut reports: Vec<Option<Result<Status, ClientError>>> = vec![None; tickets.len()];
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
        let second = match first.len() < self.config.stripe_bytes {
            true => Slice::empty(),
            false => self.read_stripe(source)?,
        };
        let route = self.route;
        let op = if second.is_empty() {
            Op::Put { key: key.to_vec(), value: first }
        } else {
            let lane = self.lanes.of(key);
            let stripes = self.put_parts(lane, [first, second], source, progress)?;
            Op::PutStripes { key: key.to_vec(), stripes }
        };
        match self.run(op, route)? {
            Answer::Done { revision, .. } => Ok(revision),
            other => Err(nonsense(&other)),
        }
    }

    fn put_parts(
        &mut self,
        lane: usize,
        first: [Slice; 2],
        source: &mut dyn Read,
        progress: Progress<'_>,
    ) -> Result<Vec<Value>, ClientError> {
        let mut ready = VecDeque::from(first);
        let mut under_way: BTreeMap<Ticket, usize> = BTreeMap::new();
        let mut stored: Vec<Option<Value>> = Vec::new();
        let (mut bytes_done, mut at_end) = (0, false);
        let result = loop {
            while under_way.len() < self.config.stripes_in_flight_max {
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
                let ticket = self.submit_to(lane, Op::Part { value: next }, self.route);
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
        under_way.into_keys().for_each(|ticket| self.lanes.forget(ticket));
        Err(error)
    }

    /// Reads a whole stripe, or what is left; empty at the end.
    fn read_stripe(&mut self, source: &mut dyn Read) -> Result<Slice, ClientError> {
        let mut buffer = self.pool.get(self.config.stripe_bytes).ok_or_else(no_buffers)?;
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
                let len = self.get_parts(self.lanes.of(key), &stripes, sink, progress)?;
                Ok(Some((revision, len)))
            }
            other => Err(nonsense(&other)),
        }
    }

    fn get_parts(
        &mut self,
        lane: usize,
        stripes: &[Value],
        sink: &mut dyn Write,
        progress: Progress<'_>,
    ) -> Result<u64, ClientError> {
        let total: u64 = stripes.iter().map(|stripe| u64::from(stripe.len)).sum();
        let window = self.config.stripes_in_flight_max;
        let mut under_way: BTreeMap<Ticket, usize> = BTreeMap::new();
        let mut arrived: BTreeMap<usize, Slice> = BTreeMap::new();
        let (mut next, mut written, mut bytes_done) = (0, 0, 0);
        while written < stripes.len() {
            while next < stripes.len() && next < written + window {
                let op = Op::GetStripe { value: stripes[next] };
                let ticket = self.submit_to(lane, op, self.route);
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
    /// Ends the sessions, as far as one datagram each can.
    fn drop(&mut self) {
        let now_ns = self.now_ns();
        self.lanes.close_sessions(now_ns);
        self.lanes.flush(now_ns);
    }
}

/// The client of one lane, with a socket.
fn core_of(
    config: &ClientConfig,
    lane: Lane,
    pool: &Pool,
) -> Result<ClientCore<UdpLink>, ClientError> {
    let at = |endpoint: &SocketAddr| {
        lane_address(*endpoint, lane.number).ok_or_else(|| ClientError::Limit {
            text: format!("{endpoint}: there is no port for lane {}", lane.number),
        })
    };
    let endpoints = config.endpoints.iter().map(at).collect::<Result<Vec<_>, _>>()?;
    let link = UdpLink::bind(local_for(&endpoints), UdpConfig::default())
        .map_err(|error| ClientError::Io { text: error.to_string() })?;
    let config = ClientConfig { endpoints, ..config.clone() };
    Ok(ClientCore::of_lane(link, pool.clone(), config, lane))
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
