//! Leases: renewed in memory by a question to a quorum, ended by batches that every node guards.
//!
//! Invariant: a lease is ended only if at least as many nodes as decide a batch found, each by its own
//! clock and at the moment of its promise, that it had not been renewed for the time to live; and a
//! renewal is acknowledged only when a quorum has noted it and everything that a node of it had
//! promised before about the lease has been executed without ending it. The two sets have a node in
//! common, so an acknowledged renewal is never followed by an end before its time.
//! What would break it: a promise without looking at the clock, an answer that hides a promise, or
//! clocks that start anew in the past. Times are readings of this node's own monotonic clock.

use super::auth::Who;
use super::pending::Answer;
use super::types::*;
use crate::batch::{Payload, Waiter, lease_hash};
use crate::node::Node;
use crate::wire::cursor::{Reader, Writer};
use crate::wire::node::kind;
use racos_machine::{Action, Op, Restore};
use racos_net::{Link, Message as Frame};
use racos_protocol::{Input, Nanos, NodeSet, Slot};
use racos_storage::device::Device;
use rustc_hash::{FxHashMap, FxHashSet};

const MS: Nanos = 1_000_000;
const SECOND: Nanos = 1_000 * MS;
const RETRY_MIN: Nanos = 5 * MS;
const RETRY_MAX: Nanos = 200 * MS;
const GIVE_UP: Nanos = 5 * SECOND;
/// How often leases are looked at for their end.
const SCAN: Nanos = 100 * MS;
/// How much later each further node looks after the end of a lease.
const RANK: Nanos = 500 * MS;
/// Questions about leases in one round; the others wait for the next.
const ROUND_MAX: usize = 1024;
/// Leases ended by one batch.
const EXPIRE_MAX: usize = 256;
/// A loop that stood still for longer has not heard renewals.
const STALL: Nanos = SECOND;
/// An age that no lease has: it is not known.
const UNKNOWN: Nanos = Nanos::MAX;
/// A renewal that finds promises about the lease again and again is given up.
const TRIES_MAX: u32 = 16;

/// What a quorum says of a lease.
pub(super) struct Seen {
    /// The least age that a node found.
    age: Nanos,
    /// Something was promised about it; by now it is executed here.
    waited: bool,
}

type AskJob<L, D> = Box<dyn FnOnce(&mut Node<L, D>, Result<Seen, Error>)>;

struct Ask<L: Link, D: Device> {
    id: i64,
    /// It is a renewal.
    refresh: bool,
    job: AskJob<L, D>,
}

struct Round<L: Link, D: Device> {
    number: u64,
    /// Of the configuration when it began.
    epoch: u32,
    asks: Vec<Ask<L, D>>,
    ages: Vec<Nanos>,
    answered: NodeSet,
    /// All slots below are to be executed here first.
    above: Slot,
    waited: bool,
    started: Nanos,
    retry_at: Nanos,
    pause: Nanos,
}

pub(super) struct LeaseClocks<L: Link, D: Device> {
    /// When each lease was renewed last, as far as this node knows.
    renewed: FxHashMap<i64, Nanos>,
    waiting: Vec<Ask<L, D>>,
    round: Option<Round<L, D>>,
    next: u64,
    scan_at: Nanos,
    /// Leases whose end is being looked into or proposed.
    ending: FxHashSet<i64>,
    /// Of those: found overdue by a quorum.
    overdue: Vec<i64>,
    last_turn: Nanos,
}

/// The age from which on a node agrees that a lease has ended.
fn end_of(ttl: i64) -> Nanos {
    let ttl = u64::try_from(ttl).unwrap_or(0);
    ttl.saturating_mul(SECOND + MS).saturating_add(10 * MS)
}

impl<L: Link, D: Device> LeaseClocks<L, D> {
    pub(super) fn new(base: u64) -> Self {
        LeaseClocks {
            renewed: FxHashMap::default(),
            waiting: Vec::new(),
            round: None,
            next: base,
            scan_at: 0,
            ending: FxHashSet::default(),
            overdue: Vec::new(),
            last_turn: 0,
        }
    }

    pub(super) fn deadline(&self) -> Option<Nanos> {
        let retry = self.round.as_ref().map(|round| round.retry_at);
        let scan = (!self.renewed.is_empty()).then_some(self.scan_at);
        let now = (self.round.is_none() && !self.waiting.is_empty()) || !self.overdue.is_empty();
        [retry, scan, now.then_some(0)].into_iter().flatten().min()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.round.as_ref().map_or(0, |round| round.asks.len())
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Every lease counts as renewed now: after a start, or when the members have changed.
    pub(crate) fn restart_leases(&mut self) {
        let now = self.now;
        self.api.leases.renewed = self.machine.leases().map(|(id, _)| (id, now)).collect();
    }

    /// An operation was executed.
    pub(crate) fn lease_applied(&mut self, op: &Op) {
        match op.action {
            Action::LeaseGrant { id, .. } if self.machine.lease_ttl(id).is_some() => {
                self.api.leases.renewed.insert(id, self.now);
            }
            // Time did not run while nobody could renew.
            Action::Restore(Restore::End(_)) => self.restart_leases(),
            Action::LeaseRevoke { id } | Action::LeaseExpire { id } => {
                self.api.leases.renewed.remove(&id);
            }
            _ => {}
        }
    }

    /// Whether this node may promise to hold a batch: if it ends leases, each has run out here.
    pub(crate) fn guards_allow(&self, ops: &[Op]) -> bool {
        ops.iter().all(|op| match op.action {
            Action::LeaseExpire { id } => self.is_overdue(id),
            _ => true,
        })
    }

    fn is_overdue(&self, id: i64) -> bool {
        let ttl = self.machine.lease_ttl(id);
        ttl.is_some_and(|ttl| self.lease_age(id) != UNKNOWN && self.lease_age(id) >= end_of(ttl))
    }

    fn lease_age(&self, id: i64) -> Nanos {
        let renewed = self.api.leases.renewed.get(&id);
        renewed.map_or(UNKNOWN, |at| self.now.saturating_sub(*at))
    }

    /// Whoever may not delete what is attached to a lease may not keep it, either.
    pub(super) fn keep_alive_of(&mut self, who: Who, id: i64, answer: Answer<LeaseAnswer>) {
        if !self.machine.auth().is_enabled() {
            return self.keep_alive(id, answer, 0);
        }
        self.at_pin(Box::new(move |node, pinned| {
            let permit = pinned.and_then(|()| node.permit(&who));
            let allowed = permit.and_then(|permit| {
                node.machine.permits_lease_end(&permit, id).map_err(Error::Auth)
            });
            match allowed {
                Ok(()) => node.keep_alive(id, answer, 0),
                Err(error) => answer.send(Err(error)),
            }
        }));
    }

    fn keep_alive(&mut self, id: i64, answer: Answer<LeaseAnswer>, tries: u32) {
        // Taken before: nobody is to see a renewal at a revision at which the lease was gone.
        let revision = self.machine.revision() as i64;
        if self.machine.lease_ttl(id).is_none() {
            // Its grant may be complete and not executed here.
            return self.at_pin(Box::new(move |node, pinned| match pinned {
                Ok(()) if node.machine.lease_ttl(id).is_some() => {
                    node.renew(id, revision, answer, tries);
                }
                Ok(()) => answer.send(Ok(LeaseAnswer { revision, id, ttl: 0 })),
                Err(error) => answer.send(Err(error)),
            }));
        }
        self.renew(id, revision, answer, tries);
    }

    fn renew(&mut self, id: i64, revision: i64, answer: Answer<LeaseAnswer>, tries: u32) {
        let job: AskJob<L, D> = Box::new(move |node, seen| match seen {
            Ok(seen) if seen.waited && node.machine.lease_ttl(id).is_some() => {
                if tries >= TRIES_MAX {
                    let text = "the lease is about to end whenever it is renewed; try again";
                    return answer.send(Err(Error::Unavailable(text.into())));
                }
                node.keep_alive(id, answer, tries + 1);
            }
            Ok(_) => {
                let ttl = node.machine.lease_ttl(id).unwrap_or(0);
                answer.send(Ok(LeaseAnswer { revision, id, ttl }));
            }
            Err(error) => answer.send(Err(error)),
        });
        self.api.leases.waiting.push(Ask { id, refresh: true, job });
    }

    pub(super) fn time_to_live(
        &mut self,
        who: Who,
        id: i64,
        keys: bool,
        answer: Answer<TimeToLiveAnswer>,
    ) {
        self.at_pin(Box::new(move |node, pinned| {
            if let Err(error) = pinned.and_then(|()| node.may_see_lease(&who, id, keys)) {
                return answer.send(Err(error));
            }
            // Keys may have been attached while the others were asked.
            let job: AskJob<L, D> = Box::new(move |node, seen| {
                let allowed = seen.and_then(|seen| {
                    node.may_see_lease(&who, id, keys)?;
                    Ok(node.lease_left(id, keys, seen.age))
                });
                answer.send(allowed);
            });
            node.api.leases.waiting.push(Ask { id, refresh: false, job });
        }));
    }

    fn may_see_lease(&self, who: &Who, id: i64, keys: bool) -> Result<(), Error> {
        let permit = self.permit(who)?;
        match keys {
            true => self.machine.permits_lease_keys(&permit, id).map_err(Error::Auth),
            false => Ok(()),
        }
    }

    /// All leases, for whoever may read all that is attached to them, as in etcd.
    pub(super) fn list_leases(&mut self, who: Who, answer: Answer<LeasesAnswer>) {
        self.at_pin(Box::new(move |node, pinned| {
            let allowed = pinned.and_then(|()| {
                let permit = node.permit(&who)?;
                let mut leases = node.machine.leases().filter(|_| !permit.is_all());
                leases.try_for_each(|(id, _)| {
                    node.machine.permits_lease_keys(&permit, id).map_err(Error::Auth)
                })
            });
            answer.send(allowed.map(|()| LeasesAnswer {
                revision: node.machine.revision() as i64,
                ids: node.machine.leases().map(|(id, _)| id).collect(),
            }));
        }));
    }

    fn lease_left(&self, id: i64, keys: bool, age: Nanos) -> TimeToLiveAnswer {
        let revision = self.machine.revision() as i64;
        let Some(granted) = self.machine.lease_ttl(id) else {
            return TimeToLiveAnswer { revision, id, ttl: -1, ..TimeToLiveAnswer::default() };
        };
        let left = (granted as u64).saturating_mul(SECOND).saturating_sub(age);
        let attached = self.machine.lease_keys(id).filter(|_| keys);
        TimeToLiveAnswer {
            revision,
            id,
            ttl: (left / SECOND) as i64,
            granted,
            keys: attached.map(bytes::Bytes::copy_from_slice).collect(),
        }
    }

    /// The share of a turn; whether anything was done.
    pub(super) fn turn_leases(&mut self) -> bool {
        let now = self.now;
        let gap = now.saturating_sub(self.api.leases.last_turn);
        if self.api.leases.last_turn > 0 && gap > STALL {
            self.api.leases.renewed.values_mut().for_each(|at| *at = (*at + gap).min(now));
        }
        self.api.leases.last_turn = now;
        if now >= self.api.leases.scan_at && !self.api.leases.renewed.is_empty() {
            self.api.leases.scan_at = now + SCAN;
            self.scan_leases();
        }
        let any = self.advance_leases();
        self.end_overdue();
        any
    }

    fn advance_leases(&mut self) -> bool {
        let mut any = false;
        loop {
            if self.api.leases.round.is_none() {
                if self.api.leases.waiting.is_empty() {
                    return any;
                }
                if let Some(error) = self.no_member() {
                    any = true;
                    let asks = std::mem::take(&mut self.api.leases.waiting);
                    asks.into_iter().for_each(|ask| (ask.job)(self, Err(error.clone())));
                    continue;
                }
                self.begin_lease_round();
            }
            let exec = self.core.exec();
            let quorum = self.quorum_of_both();
            let round = self.api.leases.round.as_mut().expect("begun above");
            if round.answered.len() >= quorum && round.above <= exec {
                let mut round = self.api.leases.round.take().expect("there is a round");
                // PROTOCOL 8.1-q: the members have changed meanwhile: another quorum.
                if round.epoch != self.core.epoch() || !self.core.is_active() {
                    round.asks.append(&mut self.api.leases.waiting);
                    self.api.leases.waiting = round.asks;
                    continue;
                }
                any = true;
                for (ask, age) in round.asks.into_iter().zip(round.ages) {
                    (ask.job)(self, Ok(Seen { age, waited: round.waited }));
                }
                continue;
            }
            if round.answered.len() >= quorum && !round.waited {
                round.waited = true;
                let slot = round.above - 1;
                self.step(Input::InUse { slot });
                continue;
            }
            let now = self.now;
            if now < round.retry_at {
                return any;
            }
            if now >= round.started + GIVE_UP {
                let round = self.api.leases.round.take().expect("there is a round");
                let text = "too few nodes answer: a lease is renewed by n-f of them";
                for ask in round.asks {
                    (ask.job)(self, Err(Error::Unavailable(text.into())));
                }
                any = true;
                continue;
            }
            round.pause = (round.pause * 2).min(RETRY_MAX);
            round.retry_at = now + round.pause;
            match round.waited {
                true => {
                    let slot = round.above - 1;
                    self.step(Input::InUse { slot });
                }
                false => self.ask_leases(),
            }
        }
    }

    fn begin_lease_round(&mut self) {
        let leases = &mut self.api.leases;
        let count = leases.waiting.len().min(ROUND_MAX);
        let asks: Vec<Ask<L, D>> = leases.waiting.drain(..count).collect();
        let asked: Vec<(i64, bool)> = asks.iter().map(|ask| (ask.id, ask.refresh)).collect();
        let mut answered = NodeSet::EMPTY;
        answered.insert(self.me);
        let (ages, above) = self.lease_ages(&asked);
        self.api.leases.next += 1;
        self.api.leases.round = Some(Round {
            number: self.api.leases.next,
            epoch: self.core.epoch(),
            asks,
            ages,
            answered,
            above,
            waited: false,
            started: self.now,
            retry_at: self.now + RETRY_MIN,
            pause: RETRY_MIN,
        });
        self.ask_leases();
    }

    fn ask_leases(&mut self) {
        let Some(round) = &self.api.leases.round else { return };
        let mut head = Vec::with_capacity(8 + 9 * round.asks.len());
        head.put_u64(round.number);
        for ask in &round.asks {
            head.put_u64(ask.id as u64);
            head.put_u8(u8::from(ask.refresh));
        }
        for node in self.members().without(round.answered).iter() {
            self.send(node, kind::LEASEQ, &head, &[]);
        }
    }

    /// Notes renewals; says how old each lease was found, and the first slot above all that hold
    /// something about them which the asker may not have executed.
    fn lease_ages(&mut self, asked: &[(i64, bool)]) -> (Vec<Nanos>, Slot) {
        let now = self.now;
        let mut above = 0;
        let ages = asked.iter().map(|&(id, refresh)| {
            let age = self.lease_age(id);
            match self.api.leases.renewed.get_mut(&id) {
                Some(at) if refresh => *at = now,
                Some(_) => {}
                // Ended, or not granted yet here: whoever has executed as much knows which.
                None => above = above.max(self.last_batch.map_or(0, |slot| slot + 1)),
            }
            let hash = lease_hash(id);
            let mark = self.core.mark(|batch| batch.touches(hash) || batch.is_change);
            above = above.max(mark.map_or(0, |slot| slot + 1));
            age
        });
        let ages = ages.collect();
        (ages, above)
    }

    /// LEASEQ.
    pub(crate) fn on_lease_question(&mut self, from: u8, frame: &Frame) {
        let mut reader = Reader::new(&frame.head);
        let Ok(number) = reader.u64("round") else { return };
        let mut asked = Vec::new();
        while !reader.is_empty() && asked.len() < ROUND_MAX {
            let (Ok(id), Ok(refresh)) = (reader.u64("lease"), reader.u8("refresh")) else { return };
            asked.push((id as i64, refresh != 0));
        }
        let (ages, above) = self.lease_ages(&asked);
        let mut head = Vec::with_capacity(20 + 8 * ages.len());
        head.put_u64(number);
        head.put_u64(above);
        head.put_u32(self.core.epoch());
        ages.iter().for_each(|age| head.put_u64(*age));
        self.send(from, kind::LEASER, &head, &[]);
    }

    /// LEASER.
    pub(crate) fn on_lease_answer(&mut self, from: u8, frame: &Frame) {
        let mut reader = Reader::new(&frame.head);
        let (Ok(number), Ok(above)) = (reader.u64("round"), reader.u64("above")) else { return };
        let Ok(epoch) = reader.u32("epoch") else { return };
        // PROTOCOL 8.1-q: a change that this node has not executed; it is asked again afterwards.
        if epoch > self.core.epoch() {
            return;
        }
        let Some(round) = self.api.leases.round.as_mut() else { return };
        if round.number != number || round.waited || round.answered.contains(from) {
            return;
        }
        let ages: Result<Vec<Nanos>, _> = round.ages.iter().map(|_| reader.u64("age")).collect();
        let Ok(ages) = ages else { return };
        round.answered.insert(from);
        round.above = round.above.max(above);
        for (least, age) in round.ages.iter_mut().zip(ages) {
            *least = (*least).min(age);
        }
    }

    /// Looks into leases that have run out here. The nodes take turns, so that usually one does.
    fn scan_leases(&mut self) {
        let members = &self.core.newest().members;
        let place = self.core.newest().place(self.me).unwrap_or(0) as u64;
        let n = members.len() as u64;
        let mut overdue = Vec::new();
        for (id, ttl) in self.machine.leases() {
            let rank = (place + n - lease_hash(id) % n) % n;
            let age = self.lease_age(id);
            if age != UNKNOWN
                && age >= end_of(ttl) + rank * RANK
                && overdue.len() < EXPIRE_MAX
                && !self.api.leases.ending.contains(&id)
            {
                overdue.push((id, ttl));
            }
        }
        for (id, ttl) in overdue {
            self.api.leases.ending.insert(id);
            // Somebody may know better: that spares a slot that would be decided null.
            let job: AskJob<L, D> = Box::new(move |node, seen| {
                let run_out = seen.is_ok_and(|seen| seen.age != UNKNOWN && seen.age >= end_of(ttl));
                match run_out {
                    true => node.api.leases.overdue.push(id),
                    false => drop(node.api.leases.ending.remove(&id)),
                }
            });
            self.api.leases.waiting.push(Ask { id, refresh: false, job });
        }
    }

    /// A batch of nothing but ends of leases.
    fn end_overdue(&mut self) {
        if self.api.leases.overdue.is_empty() {
            return;
        }
        self.sealed.extend(self.builder.seal());
        for id in std::mem::take(&mut self.api.leases.overdue) {
            let number = self.api.next_number();
            let op = Op {
                id: self.next_op_id(),
                author: None,
                stamp: None,
                action: Action::LeaseExpire { id },
            };
            self.api.writes.insert(
                number,
                Box::new(move |node, _| {
                    node.api.leases.ending.remove(&id);
                }),
            );
            self.write_op(Waiter::Api(number), op, Payload::None);
        }
        self.sealed.extend(self.builder.seal());
    }
}
