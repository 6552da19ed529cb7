//! The role's state, and its share of the turn.

use super::auth::{AuthView, Who};
use super::compactor::Compactor;
use super::door::{Asked, Door, Handle, Identity, QUEUE_MAX, Request, Wake};
use super::gather::Gatherings;
use super::lease::LeaseClocks;
use super::members::Faces;
use super::pin::Pins;
use super::types::*;
use super::watch::Watches;
use super::write::{Applied, WriteJob};
use crate::node::Node;
use racos_machine::{self as machine, Action, LEASE_TTL_MAX, Op};
use racos_net::Link;
use racos_protocol::Nanos;
use racos_storage::device::Device;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Requests taken in a turn.
const REQUESTS_TURN: usize = 512;
/// Slices of long work done in a turn.
const SLICES_TURN: usize = 8;
/// So long after it could not be agreed on that all versions are kept it is proposed again.
const KEEP_AGAIN_NS: Nanos = 200_000_000;
/// The shortest time to live that is granted, in seconds; as in etcd, more than its longest election.
const LEASE_TTL_MIN: i64 = 2;
/// Operations of nothing that drive a compaction on, at a time.
const SWEEP_OPS: usize = 256;
/// A node that was not heard for so long does not count for the quorum that clients are told of.
pub(super) const SILENT_NS: Nanos = 3_000_000_000;

/// What is done at a time.
pub(super) type Later<L, D> = Box<dyn FnOnce(&mut Node<L, D>)>;

/// The role's state.
pub(crate) struct Api<L: Link, D: Device> {
    door: Option<Arc<Door>>,
    inbox: VecDeque<Asked>,
    next: u64,
    random: u64,
    pub(super) pins: Pins<L, D>,
    pub(super) gatherings: Gatherings<L, D>,
    pub(super) writes: FxHashMap<u64, WriteJob<L, D>>,
    /// Outcomes whose jobs are to be done.
    pub(super) applied: VecDeque<(u64, Applied)>,
    pub(super) watches: Watches,
    pub(super) leases: LeaseClocks<L, D>,
    pub(super) compactor: Compactor,
    pub(super) faces: Faces,
    /// The alarm of this member is being raised.
    alarming: bool,
    /// That all versions are kept is being agreed on, and writes that wait for it.
    keeping: bool,
    held: VecDeque<Asked>,
    /// What other threads were told of users and roles last.
    auth_told: Option<AuthView>,
    timers: BTreeMap<(Nanos, u64), Later<L, D>>,
    /// Work that goes on when others have had their turn, in order.
    slices: VecDeque<Later<L, D>>,
    /// Compactions that wait until what they free is dropped.
    physical: Vec<(super::pending::Answer<Done>, i64)>,
    sweeping: usize,
}

impl<L: Link, D: Device> Api<L, D> {
    /// `base` differs from boot to boot, `seed` from node to node.
    pub(crate) fn new(base: u64, seed: u64) -> Self {
        Api {
            door: None,
            inbox: VecDeque::new(),
            next: base,
            random: seed ^ base,
            pins: Pins::new(base),
            gatherings: Gatherings::default(),
            writes: FxHashMap::default(),
            applied: VecDeque::new(),
            watches: Watches::new(seed ^ base),
            leases: LeaseClocks::new(base),
            compactor: Compactor::default(),
            faces: Faces::default(),
            alarming: false,
            keeping: false,
            held: VecDeque::new(),
            auth_told: None,
            timers: BTreeMap::new(),
            slices: VecDeque::new(),
            physical: Vec::new(),
            sweeping: 0,
        }
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Does the job at a time, or soon after.
    pub(super) fn later(&mut self, at: Nanos, job: Later<L, D>) {
        let number = self.next_number();
        self.timers.insert((at, number), job);
    }

    /// Goes on with the job in a later turn, soon.
    pub(super) fn slice(&mut self, job: Later<L, D>) {
        self.slices.push_back(job);
    }

    /// Splitmix: numbers that differ between nodes and starts, not secrets.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed(self.random)
    }

    /// When there is something to do though nothing comes; 0: now.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        let now = !self.inbox.is_empty() || !self.applied.is_empty() || self.gatherings.has_news();
        let timer = self.timers.first_key_value().map(|((at, _), _)| *at);
        let now = now || self.watches.has_news() || !self.slices.is_empty();
        let parts = [self.pins.deadline(), self.watches.deadline(), self.leases.deadline()];
        [now.then_some(0), timer, self.compactor.deadline()]
            .into_iter()
            .chain(parts)
            .flatten()
            .min()
    }

    /// Requests under way.
    pub(crate) fn len(&self) -> usize {
        let asked = self.pins.len() + self.leases.len();
        let working = self.gatherings.len() + self.slices.len() + self.held.len();
        self.inbox.len() + self.writes.len() + working + asked
    }
}

impl<L: Link, D: Device> Drop for Api<L, D> {
    fn drop(&mut self) {
        self.watches.end();
        self.door.iter().for_each(|door| door.close());
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Opens the door for other threads. `wake` is called from them when the loop may sleep and there
    /// is something for it.
    ///
    /// # Panics
    /// If it was opened before.
    pub fn open_api(&mut self, wake: Wake) -> Handle {
        assert!(self.api.door.is_none(), "the door is opened once");
        self.machine.keep_changes();
        let identity = Identity {
            cluster_id: self.config.cluster,
            member_id: self.member_id(self.me),
            term: 1,
            hears_quorum: self.hears_quorum(),
        };
        let door = Arc::new(Door::new(identity, self.auth_view(), wake));
        self.api.door = Some(door.clone());
        Handle::new(door)
    }

    /// Whether other threads may ask this node: then its machine keeps the list of changes.
    pub fn api_is_open(&self) -> bool {
        self.api.door.is_some()
    }

    /// 64 bits that stand for a node and its disk; never 0.
    pub(super) fn member_id(&self, node: u8) -> u64 {
        let incarnation = match node == self.me {
            true => self.config.incarnation,
            false => self.core.seats()[usize::from(node)].incarnation,
        };
        self.member_id_of(node, incarnation)
    }

    pub(super) fn member_id_of(&self, node: u8, incarnation: u32) -> u64 {
        let mut name = Vec::with_capacity(16);
        name.extend_from_slice(&self.config.cluster.to_le_bytes());
        name.extend_from_slice(&incarnation.to_le_bytes());
        name.push(node);
        let digest = self.secrets.value_digest([&name[..]]);
        u64::from_le_bytes(digest[..8].try_into().expect("8 bytes")).max(1)
    }

    fn hears_quorum(&self) -> bool {
        let others = self.core.at(self.core.exec()).thresholds.members.iter();
        let lately = others.filter(|node| self.heard_within(*node, SILENT_NS)).count();
        // A node whose disk hangs, or that is no member, can take part in none.
        let takes_part = self.core.is_active() && self.disk_hangs_ns().is_none();
        takes_part && lately + 1 >= self.core.thresholds().quorum
    }

    /// The role's share of a turn; whether anything was done.
    pub(crate) fn turn_api(&mut self) -> bool {
        if let Some(door) = self.api.door.clone() {
            door.take(REQUESTS_TURN, &mut self.api.inbox);
            door.set_hears_quorum(self.hears_quorum());
            self.tell_auth(&door);
        }
        let mut any = false;
        if self.api.door.is_some() && self.keeps_history() {
            while let Some(asked) = self.api.held.pop_front() {
                any = true;
                self.take_request(asked);
            }
        }
        while let Some(asked) = self.api.inbox.pop_front() {
            any = true;
            if !asked.request.writes() || self.keeps_history() {
                self.take_request(asked);
            } else if self.api.held.len() < QUEUE_MAX {
                self.api.held.push_back(asked);
            } else {
                let text = "too many writes wait until a quorum agrees to keep every version";
                asked.request.refuse(Error::Busy(text.into()));
            }
        }
        while let Some(timer) = self.api.timers.first_entry()
            && timer.key().0 <= self.now
        {
            any = true;
            (timer.remove())(self);
        }
        for _ in 0..self.api.slices.len().min(SLICES_TURN) {
            any = true;
            let job = self.api.slices.pop_front().expect("they are counted");
            job(self);
        }
        self.turn_compactor();
        loop {
            let mut more = self.finish_writes();
            more |= self.finish_gatherings();
            more |= self.advance_pins();
            more |= self.turn_leases();
            if !more {
                break;
            }
            any = true;
        }
        any |= self.turn_watches();
        self.drive_sweep();
        if let Some(door) = &self.api.door {
            door.bells.ring();
        }
        any
    }

    /// Whether all nodes keep all versions until they are compacted, as clients of this role expect; if
    /// not, it is proposed: in a new cluster, or one that was not asked through this role before.
    fn keeps_history(&mut self) -> bool {
        if self.machine.limits().history_max == u32::MAX {
            return true;
        }
        if !self.api.keeping {
            self.api.keeping = true;
            let (id, action) = (self.next_op_id(), Action::KeepHistory);
            let done: WriteJob<L, D> = Box::new(|node, _| {
                let again = node.now + KEEP_AGAIN_NS;
                node.api.later(again, Box::new(|node| node.api.keeping = false));
            });
            let op = Op { id, author: None, stamp: None, action };
            self.propose(op, crate::batch::Payload::None, done);
        }
        false
    }

    fn take_request(&mut self, Asked { who, request }: Asked) {
        match request {
            Request::Range { range, serializable, answer } => {
                self.range(who, range, serializable, answer);
            }
            Request::Put { put, answer } => match self.over_quota() {
                Some(error) => answer.send(Err(error)),
                None => self.api_put(who, put, answer),
            },
            Request::Delete { delete, answer } => self.api_delete(who, delete, answer),
            Request::Txn { txn, serializable, answer } => {
                if super::txn::is_read(&txn) {
                    return self.read_txn(who, txn, serializable, answer, 0);
                }
                if super::txn::has_puts(&txn)
                    && let Some(error) = self.over_quota()
                {
                    return answer.send(Err(error));
                }
                self.api_txn(who, txn, Box::new(move |_, result| answer.send(result)));
            }
            Request::Compact { revision, physical, answer } => {
                self.api_compact(&who, revision, physical, answer);
            }
            Request::LeaseGrant { id, ttl, answer } => match self.over_quota() {
                Some(error) => answer.send(Err(error)),
                None => self.lease_grant(&who, id, ttl, answer),
            },
            Request::LeaseKeepAlive { id, answer } => self.keep_alive_of(who, id, answer),
            Request::LeaseTimeToLive { id, keys, answer } => {
                self.time_to_live(who, id, keys, answer);
            }
            Request::Alarm { member, kind, raised, answer } => {
                self.set_alarm(who, (member, kind), raised, answer);
            }
            Request::Alarms { answer } => self.list_alarms(who, answer),
            Request::LeaseRevoke { id, answer } => {
                self.act(&who, Action::LeaseRevoke { id }, answer);
            }
            Request::Leases { answer } => self.list_leases(who, answer),
            Request::Status { answer } => answer.send(self.api_status(&who)),
            Request::Members { serializable, answer } => {
                self.list_members(who, serializable, answer);
            }
            Request::MemberAdd { address, answer } => self.member_add(who, address, answer),
            Request::MemberRemove { id, answer } => self.member_remove(who, id, answer),
            Request::MemberUpdate { id, address, answer } => {
                self.member_update(who, id, address, answer);
            }
            Request::Announce { clients } => self.api.faces.own = Some(clients),
            Request::HashKv { revision, answer } => self.hash_kv(&who, revision, answer),
            Request::BackupBegin { answer } => self.backup_begin(who, answer),
            Request::BackupPage { revision, after, answer } => {
                self.backup_page(who, revision, after, answer, 0);
            }
            Request::BackupAuth { after, answer } => answer.send(self.backup_auth(&who, after)),
            Request::Restore { step, answer } => self.restore_step(&who, step, answer),
            Request::Auth { ask, answer } => self.auth_ask(who, ask, answer),
            Request::AuthStep { step, answer } => {
                self.act(&who, Action::Auth(Box::new(step)), answer);
            }
            Request::Login { user, answer } => self.login(user, answer),
            Request::CatchUp { answer } => self.catch_up(answer),
            Request::OpenStream { stream } => self.api.watches.open(stream, who),
            Request::Stream { number } => self.stream_says(number),
        }
    }

    /// Why nothing may be stored, if this node's share of the log is as large as it may be; the
    /// others are told by an alarm.
    fn over_quota(&mut self) -> Option<Error> {
        let quota = self.config.quota_bytes;
        let used = self.log.bytes_used();
        if quota == 0 || used <= quota {
            return None;
        }
        if !self.api.alarming {
            self.api.alarming = true;
            let (member, kind) = (self.member_id(self.me), machine::AlarmKind::NoSpace);
            let op = Op {
                id: self.next_op_id(),
                author: None,
                stamp: None,
                action: Action::Alarm { member, kind, raised: true },
            };
            let done: WriteJob<L, D> = Box::new(|node, _| node.api.alarming = false);
            self.propose(op, crate::batch::Payload::None, done);
        }
        Some(Error::NoSpace(format!("the log takes {used} bytes; the quota is {quota}")))
    }

    fn set_alarm(
        &mut self,
        who: Who,
        (member, kind): (u64, AlarmKind),
        raised: bool,
        answer: super::pending::Answer<Done>,
    ) {
        let kind = match kind {
            AlarmKind::NoSpace => machine::AlarmKind::NoSpace,
            AlarmKind::Corrupt => machine::AlarmKind::Corrupt,
            AlarmKind::Restoring => machine::AlarmKind::Restoring,
        };
        // One of nobody would be this node's own.
        self.as_root(who.clone(), move |node, allowed| match allowed {
            Ok(()) => node.act(&who, Action::Alarm { member, kind, raised }, answer),
            Err(error) => answer.send(Err(error)),
        });
    }

    /// Does what is answered with a revision only.
    fn act(&mut self, who: &Who, action: Action, answer: super::pending::Answer<Done>) {
        self.propose_action(who, action, move |result| {
            answer.send(result.map(|revision| Done { revision }));
        });
    }

    fn catch_up(&mut self, answer: super::pending::Answer<Done>) {
        self.at_pin(Box::new(move |node, pinned| {
            let revision = node.machine.revision() as i64;
            if let Some(door) = node.api.door.clone() {
                node.tell_auth(&door);
            }
            answer.send(pinned.map(|()| Done { revision }));
        }));
    }

    /// Tells other threads what tokens are checked by, if it has changed.
    fn tell_auth(&mut self, door: &Door) {
        let auth = self.auth_view();
        if self.api.auth_told != Some(auth) {
            self.api.auth_told = Some(auth);
            door.set_auth(auth);
        }
    }

    /// Proposes an operation without values; the revision after it is answered.
    pub(super) fn propose_action(
        &mut self,
        who: &Who,
        action: Action,
        answer: impl FnOnce(Result<i64, Error>) + 'static,
    ) {
        let author = match self.author(who) {
            Ok(author) => author,
            Err(error) => return answer(Err(error)),
        };
        let op = Op { id: self.next_op_id(), author, stamp: None, action };
        self.propose(
            op,
            crate::batch::Payload::None,
            Box::new(move |node, applied| answer(node.revision_after(applied))),
        );
    }

    fn api_compact(
        &mut self,
        who: &Who,
        revision: i64,
        physical: bool,
        answer: super::pending::Answer<Done>,
    ) {
        let author = match self.author(who) {
            Ok(author) => author,
            Err(error) => return answer.send(Err(error)),
        };
        let Ok(asked) = u64::try_from(revision) else {
            // At least -1 is compacted from the beginning.
            return answer.send(Err(self.refusal(machine::Refusal::Compacted)));
        };
        let op = Op {
            id: self.next_op_id(),
            author,
            stamp: None,
            action: Action::Compact { revision: asked },
        };
        self.propose(
            op,
            crate::batch::Payload::None,
            Box::new(move |node, applied| match node.revision_after(applied) {
                Ok(revision) if physical => node.api.physical.push((answer, revision)),
                result => answer.send(result.map(|revision| Done { revision })),
            }),
        );
    }

    /// Compactions that somebody waits for go on with every operation applied: in an idle cluster,
    /// with operations of nothing.
    fn drive_sweep(&mut self) {
        if self.api.physical.is_empty() {
            return;
        }
        if !self.machine.is_sweeping() {
            for (answer, revision) in std::mem::take(&mut self.api.physical) {
                answer.send(Ok(Done { revision }));
            }
        } else if self.api.sweeping == 0 {
            for _ in 0..SWEEP_OPS {
                self.api.sweeping += 1;
                let op =
                    Op { id: self.next_op_id(), author: None, stamp: None, action: Action::Noop };
                self.propose(
                    op,
                    crate::batch::Payload::None,
                    Box::new(|node, _| node.api.sweeping -= 1),
                );
            }
        }
    }

    fn lease_grant(
        &mut self,
        who: &Who,
        id: i64,
        ttl: i64,
        answer: super::pending::Answer<LeaseAnswer>,
    ) {
        if ttl > LEASE_TTL_MAX {
            return answer.send(Err(Error::LeaseTtlTooLarge));
        }
        let ttl = ttl.max(LEASE_TTL_MIN);
        let id = match id {
            0 => (self.api.draw() >> 1).max(1) as i64,
            id => id,
        };
        self.propose_action(who, Action::LeaseGrant { id, ttl }, move |result| {
            answer.send(result.map(|revision| LeaseAnswer { revision, id, ttl }));
        });
    }

    fn api_status(&mut self, who: &Who) -> Result<StatusAnswer, Error> {
        self.permit(who)?;
        let mut native = self.status();
        native.problem = native.problem.or_else(|| self.idle_reason());
        native.disk.free_bytes = self.log.device_mut().free_bytes().unwrap_or(0);
        let members = self.member_list();
        let lowest = members.iter().map(|member| member.id).min().unwrap_or(0);
        Ok(StatusAnswer {
            revision: self.machine.revision() as i64,
            compact_revision: self.compact_revision(),
            seen: self.core.seen(),
            exec: self.core.exec(),
            db_size: native.disk.file_bytes,
            db_size_in_use: native.disk.log_bytes,
            keys: native.keys,
            leader: if self.hears_quorum() { lowest } else { 0 },
            members,
            alarms: self.machine.alarms().map(alarm).collect(),
            native,
        })
    }
}

/// Every bit of the result depends on every bit of the word.
pub(super) fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

pub(super) fn alarm((member, kind): (u64, machine::AlarmKind)) -> (u64, AlarmKind) {
    match kind {
        machine::AlarmKind::NoSpace => (member, AlarmKind::NoSpace),
        machine::AlarmKind::Corrupt => (member, AlarmKind::Corrupt),
        machine::AlarmKind::Restoring => (member, AlarmKind::Restoring),
    }
}
