//! A user of the doors of the nodes: transactions, leases and watches with etcd's meaning.
//!
//! Purpose: asks whichever nodes are up, and holds what it is told against what must be true.
//! Invariants checked: no answer shows a revision below one that was told before it was asked for;
//! counted increments are exactly those acknowledged, and at most those with an open outcome more;
//! every watch, resumed at other nodes, tells all changes of its keys once and in order; no lease
//! ends before its time after an acknowledged renewal, none is renewed after its end was seen, and
//! none outlives its time for long once the faults are over.

use crate::rng::Rng;
use bytes::Bytes;
use racos_engine::api::types::*;
use racos_engine::api::{Handle, Pending, WatchStream};
use racos_machine::Machine;
use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

/// Between two looks at what has come.
pub const STEP_NS: u64 = 2_000_000;
const SECOND: u64 = 1_000_000_000;
/// Requests under way.
const OPEN_MAX: usize = 8;
/// Before all keys of other clients.
const PREFIX: &[u8] = b"\x01guest/";
const COUNTER: &[u8] = b"\x01guest/counter";
const KEYS: u64 = 6;
/// Long enough that some of it outlives the faults.
const LEASE_TTL: i64 = 3;
/// What a lease may lose to clocks that drift, in a thousand.
const DRIFT_MAX: u64 = 5;

enum What {
    Put(Pending<PutAnswer>),
    Delete(Pending<DeleteAnswer>),
    Range(Pending<RangeAnswer>),
    Read(Pending<RangeAnswer>),
    Count(Pending<TxnAnswer>),
    Grant(i64, Pending<LeaseAnswer>),
    Renew(i64, Pending<LeaseAnswer>),
    Attach(Pending<PutAnswer>),
}

struct Open {
    node: usize,
    started_ns: u64,
    /// The highest revision told to anybody before it was asked.
    least: i64,
    what: What,
}

/// One lease and the key attached to it.
#[derive(Default)]
struct Lease {
    /// When the last acknowledged renewal was asked for.
    renewed_ns: u64,
    /// When the deletion of its key was seen first.
    gone_ns: Option<u64>,
}

struct Watcher {
    /// The node, its boot, and the stream.
    at: Option<(usize, u32, WatchStream)>,
    /// All events below were told.
    next: i64,
    told: Vec<(i64, Bytes, bool)>,
}

/// A node that can be asked.
pub struct Door<'a> {
    pub node: usize,
    pub boot: u32,
    pub handle: &'a Handle,
}

pub struct Guest {
    rng: Rng,
    open: Vec<Open>,
    watchers: Vec<Watcher>,
    leases: BTreeMap<i64, Lease>,
    pub is_issuing: bool,
    pub done: u64,
    newest: i64,
    /// Increments acknowledged, and with an open outcome.
    counted: u64,
    uncertain: u64,
    /// What the counter was read as: its revision and number.
    counter: Option<(i64, u64)>,
    numbers: u64,
    /// Nanoseconds by which clocks jumped ahead.
    pub jumped_ns: u64,
}

impl Guest {
    pub fn new(rng: Rng) -> Guest {
        let watcher = || Watcher { at: None, next: 1, told: Vec::new() };
        Guest {
            rng,
            open: Vec::new(),
            watchers: (0..3).map(|_| watcher()).collect(),
            leases: BTreeMap::new(),
            is_issuing: true,
            done: 0,
            newest: 0,
            counted: 0,
            uncertain: 0,
            counter: None,
            numbers: 0,
            jumped_ns: 0,
        }
    }

    /// Requests without an answer.
    pub fn outstanding(&self) -> usize {
        self.open.len()
    }

    /// When each of them was asked.
    pub fn open_since(&self) -> impl Iterator<Item = u64> {
        self.open.iter().map(|open| open.started_ns)
    }

    /// Takes what has come and asks for more; nodes that were asked are named to `woken`.
    ///
    /// # Errors
    /// What cannot be true.
    pub fn turn(
        &mut self,
        now_ns: u64,
        doors: &[Door<'_>],
        woken: &mut Vec<usize>,
    ) -> Result<(), String> {
        self.take_answers(now_ns)?;
        self.take_events(now_ns, doors, woken)?;
        if doors.is_empty() {
            return Ok(());
        }
        while self.is_issuing && self.open.len() < OPEN_MAX && self.rng.one_in(3) {
            let door = &doors[self.rng.below(doors.len() as u64) as usize];
            self.ask(now_ns, door);
            woken.push(door.node);
        }
        Ok(())
    }

    fn key(&mut self) -> Bytes {
        let number = self.rng.below(KEYS);
        [PREFIX, format!("{number}").as_bytes()].concat().into()
    }

    fn value(&mut self) -> Bytes {
        self.numbers += 1;
        let len = *self.rng.pick(&[0, 20, 400, 3000, 40_000]);
        let mut value = format!("{} ", self.numbers).into_bytes();
        value.resize(value.len().max(len), self.numbers as u8);
        value.into()
    }

    fn ask(&mut self, now_ns: u64, door: &Door<'_>) {
        let handle = door.handle;
        let what = match self.rng.below(10) {
            0 | 1 => {
                let put = self.put();
                What::Put(handle.put(put))
            }
            2 => {
                let keys = Keys::One(self.key());
                What::Delete(handle.delete(Delete { keys, prev_kv: true }))
            }
            3 | 4 => {
                let (from, to) = (PREFIX.into(), Some(b"\x02"[..].into()));
                What::Range(handle.range(Range::new(Keys::Span { from, to }), false))
            }
            5 | 6 => match self.counter.take() {
                None => {
                    let range = Range::new(Keys::One(COUNTER.into()));
                    What::Read(handle.range(range, false))
                }
                Some((revision, number)) => {
                    let compares = vec![Compare {
                        keys: Keys::One(COUNTER.into()),
                        relation: Relation::Equal,
                        target: Target::Modified(revision),
                    }];
                    let value = format!("{}", number + 1).into_bytes().into();
                    let success = vec![TxnOp::Put(Put { prev_kv: true, ..put(COUNTER, value) })];
                    let txn = Txn { compares, success, failure: Vec::new() };
                    What::Count(handle.txn(txn, false))
                }
            },
            7 => {
                let id = 1 + self.leases.len() as i64;
                self.leases.insert(id, Lease::default());
                What::Grant(id, handle.lease_grant(id, LEASE_TTL))
            }
            kind => {
                let Some(id) = self.live_lease() else { return };
                match kind {
                    8 => {
                        let key = lease_key(id);
                        let put = Put { lease: id, prev_kv: true, ..put(&key, Bytes::new()) };
                        What::Attach(handle.put(put))
                    }
                    _ => What::Renew(id, handle.lease_keep_alive(id)),
                }
            }
        };
        let least = self.newest;
        self.open.push(Open { node: door.node, started_ns: now_ns, least, what });
    }

    fn put(&mut self) -> Put {
        let (key, value) = (self.key(), self.value());
        // With the version before: otherwise it is the native put, which other oracles watch.
        Put { prev_kv: true, ..put(&key, value) }
    }

    fn live_lease(&mut self) -> Option<i64> {
        let live = |lease: &Lease| lease.renewed_ns > 0 && lease.gone_ns.is_none();
        let live: Vec<i64> =
            self.leases.iter().filter(|(_, lease)| live(lease)).map(|(id, _)| *id).collect();
        (!live.is_empty()).then(|| *self.rng.pick(&live))
    }

    fn take_answers(&mut self, now_ns: u64) -> Result<(), String> {
        let mut at = 0;
        while at < self.open.len() {
            let open = &mut self.open[at];
            let Some(answer) = open.what.take() else {
                at += 1;
                continue;
            };
            let open = self.open.swap_remove(at);
            match answer {
                Ok(answer) => {
                    self.done += 1;
                    self.answered(now_ns, &open, answer)?;
                }
                Err(_) => self.uncertain += u64::from(matches!(open.what, What::Count(..))),
            }
        }
        Ok(())
    }

    fn answered(&mut self, now_ns: u64, open: &Open, answer: Answered) -> Result<(), String> {
        let node = open.node;
        if let Some(revision) = answer.revision {
            if revision < open.least {
                let least = open.least;
                return Err(format!(
                    "guest: node {node} answered at revision {revision} what was asked after \
                     {least} had been told"
                ));
            }
            self.newest = self.newest.max(revision);
        }
        match &open.what {
            What::Read(_) => {
                let (revision, value) = answer.counter.unwrap_or((0, Bytes::new()));
                let text = String::from_utf8_lossy(&value);
                self.counter = Some((revision, text.parse().unwrap_or(0)));
            }
            What::Count(..) => self.counted += u64::from(answer.succeeded),
            What::Grant(id, _) | What::Renew(id, _) if answer.ttl > 0 => {
                let tolerance = self.tolerance();
                let lease = self.leases.get_mut(id).expect("it was asked for");
                lease.renewed_ns = lease.renewed_ns.max(open.started_ns);
                let due_ns = open.started_ns + LEASE_TTL as u64 * SECOND;
                if let Some(gone_ns) = lease.gone_ns
                    && gone_ns + tolerance < due_ns
                {
                    return Err(format!(
                        "guest: lease {id} was renewed at {} through node {node}, told at {now_ns}, \
                         and its end seen at {gone_ns}",
                        open.started_ns
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn tolerance(&self) -> u64 {
        LEASE_TTL as u64 * SECOND / 1000 * DRIFT_MAX + self.jumped_ns
    }

    fn take_events(
        &mut self,
        now_ns: u64,
        doors: &[Door<'_>],
        woken: &mut Vec<usize>,
    ) -> Result<(), String> {
        let mut ended = Vec::new();
        for watcher in &mut self.watchers {
            if let Some((node, boot, _)) = watcher.at
                && !doors.iter().any(|door| door.node == node && door.boot == boot)
            {
                watcher.at = None;
            }
            if watcher.at.is_none() && !doors.is_empty() {
                let door = &doors[self.rng.below(doors.len() as u64) as usize];
                watcher.begin(door);
                woken.push(door.node);
            }
            // A slow reader is one that often does not look.
            if self.rng.one_in(3) {
                woken.extend(watcher.take(&mut ended)?);
            }
        }
        for key in ended {
            let Some(id) = lease_of(&key) else { continue };
            let tolerance = self.tolerance();
            let lease = self.leases.get_mut(&id).expect("only granted leases have keys");
            lease.gone_ns.get_or_insert(now_ns);
            let due_ns = lease.renewed_ns + LEASE_TTL as u64 * SECOND;
            if now_ns + tolerance < due_ns {
                return Err(format!(
                    "guest: lease {id} ended by {now_ns}, before {due_ns}: it was renewed at {}",
                    lease.renewed_ns
                ));
            }
        }
        Ok(())
    }

    /// Whether every watch has told all changes of a node's history.
    pub fn has_seen_all(&self, machine: &Machine) -> bool {
        let next = machine.revision() as i64 + 1;
        let last =
            machine.changes_since(0).filter(|changed| changed.key.starts_with(PREFIX)).last();
        let last = last.map_or(0, |changed| changed.modified.main as i64);
        self.watchers.iter().all(|watcher| watcher.next > last && watcher.next <= next)
    }

    /// Holds everything told against the history of a node.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, machine: &Machine) -> Result<(), String> {
        let changes = machine.changes_since(0).filter(|changed| changed.key.starts_with(PREFIX));
        let history: Vec<(i64, &[u8], bool)> = changes
            .map(|changed| (changed.modified.main as i64, &*changed.key, changed.is_delete))
            .collect();
        for (number, watcher) in self.watchers.iter().enumerate() {
            let told = watcher.told.iter().map(|(at, key, gone)| (*at, &**key, *gone));
            if !told.clone().eq(history.iter().copied()) {
                let same = told.zip(&history).take_while(|(told, made)| told == *made).count();
                let (told, made) = (watcher.told.get(same), history.get(same));
                return Err(format!(
                    "guest: watch {number} differs from the history at change {same}: told \
                     {told:?}, made {made:?}"
                ));
            }
        }
        let counter = history.iter().filter(|(_, key, _)| *key == COUNTER).count() as u64;
        if counter < self.counted || counter > self.counted + self.uncertain {
            let (counted, uncertain) = (self.counted, self.uncertain);
            return Err(format!(
                "guest: {counter} increments of {counted} acknowledged and {uncertain} uncertain"
            ));
        }
        if machine.leases().count() > 0 {
            return Err(format!("guest: leases that do not end: {}", machine.leases().count()));
        }
        Ok(())
    }
}

fn put(key: &[u8], value: Bytes) -> Put {
    Put {
        key: Bytes::copy_from_slice(key),
        value,
        lease: 0,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    }
}

fn lease_key(id: i64) -> Vec<u8> {
    [PREFIX, format!("lease/{id}").as_bytes()].concat()
}

fn lease_of(key: &[u8]) -> Option<i64> {
    let id = key.strip_prefix(PREFIX)?.strip_prefix(b"lease/")?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// What of an answer is looked at.
#[derive(Default)]
struct Answered {
    revision: Option<i64>,
    succeeded: bool,
    ttl: i64,
    /// Revision and value of the counter.
    counter: Option<(i64, Bytes)>,
}

impl What {
    /// The answer, if it has come.
    fn take(&mut self) -> Option<Result<Answered, Error>> {
        let at = |revision: i64| Answered { revision: Some(revision), ..Answered::default() };
        Some(match self {
            What::Put(pending) | What::Attach(pending) => {
                pending.try_take()?.map(|done| at(done.revision))
            }
            What::Delete(pending) => pending.try_take()?.map(|done| at(done.revision)),
            What::Range(pending) => pending.try_take()?.map(|found| at(found.revision)),
            What::Read(pending) => pending.try_take()?.map(|found| {
                let kv = found.kvs.into_iter().next();
                let counter = kv.map(|kv| (kv.modified, kv.value));
                Answered { counter, ..at(found.revision) }
            }),
            What::Count(pending) => pending
                .try_take()?
                .map(|done| Answered { succeeded: done.succeeded, ..at(done.revision) }),
            // Its revision is that of a node that may lag.
            What::Grant(_, pending) | What::Renew(_, pending) => {
                pending.try_take()?.map(|lease| Answered { ttl: lease.ttl, ..Answered::default() })
            }
        })
    }
}

impl Watcher {
    fn begin(&mut self, door: &Door<'_>) {
        let stream = door.handle.watches();
        let create = WatchCreate {
            id: 0,
            keys: Keys::Span { from: PREFIX.into(), to: Some(b"\x02"[..].into()) },
            start_revision: self.next,
            no_put: false,
            no_delete: false,
            prev_kv: true,
            progress_notify: false,
        };
        if stream.create(create).is_ok() {
            self.at = Some((door.node, door.boot, stream));
        }
    }

    /// Takes a response, and says which node to wake; keys that were deleted go to `ended`.
    fn take(&mut self, ended: &mut Vec<Bytes>) -> Result<Option<usize>, String> {
        let Some((node, _, stream)) = &mut self.at else { return Ok(None) };
        let node = *node;
        let response = match stream.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => return Ok(None),
            Poll::Ready(None) => {
                self.at = None;
                return Ok(None);
            }
            Poll::Ready(Some(response)) => response,
        };
        match response.what {
            WatchNews::Created => {}
            WatchNews::Events(events) => {
                for event in events.iter() {
                    let (at, kv) = (event.kv.modified, &event.kv);
                    if at < self.next {
                        return Err(format!("guest: node {node} told revision {at} twice"));
                    }
                    if event.is_delete {
                        ended.push(kv.key.clone());
                    }
                    self.told.push((at, kv.key.clone(), event.is_delete));
                }
                self.next = response.revision + 1;
            }
            other => return Err(format!("guest: node {node}: a watch was told {other:?}")),
        }
        Ok(Some(node))
    }
}
