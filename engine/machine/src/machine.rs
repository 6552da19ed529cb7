//! Applying operations, and reading what they left.
//!
//! Invariant: `apply` is total and deterministic. Whatever was decided, however malformed, has the
//! same outcome on every node and stops none. What would break it: a panic that an operation's
//! contents can cause, or a refusal that depends on anything but the state and the limits.

use crate::auth::Auth;
use crate::export::Export;
use crate::hash::{self, Kind};
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::changes::{Changed, Changes};
use crate::index::{Change, Index, Named, Revision, Version};
use crate::leases::Leases;
use crate::members::{Founding, Members};
use crate::op::{
    Action, AlarmKind, Content, Key, LEASE_TTL_MAX, Op, OpId, SESSION_WINDOW_MAX, SessionId, Stamp,
    Value,
};
use crate::outcome::{Done, Outcome, Refusal};
use crate::select::{Item, Selection};
use crate::sessions::{Recorded, SessionState, Sessions, Verdict};
use crate::slab::Handle;
use crate::transact::TxnReport;
use crate::txn::Select;
use crate::values::{ValueTable, ValueUse};

/// Keys that one applied operation sweeps while a compaction is under way.
const SWEEP_KEYS: usize = 8;

/// Bounds of the state. Part of the replicated configuration: equal on all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most sessions; opening one more ends the one used longest ago.
    pub sessions_max: u32,
    /// Most numbers outstanding over all sessions (the sum of their windows), at 16 bytes each.
    pub windows_max: u64,
    /// Most stripes stored for puts that have not come; one more drops the oldest.
    pub parts_max: u32,
    /// Most versions, and most values, of all keys together; puts beyond are refused.
    pub versions_max: u32,
    /// Most versions kept of one key, at least 1. An overwrite beyond drops the oldest, and with
    /// it the right to read at revisions that would show it. None is dropped once an operation has said
    /// that all are to be kept.
    pub history_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        let sessions_max = 65_536;
        Self {
            sessions_max,
            windows_max: u64::from(sessions_max) * 64,
            parts_max: 16_384,
            versions_max: u32::MAX / 2,
            history_max: u32::MAX,
        }
    }
}

/// A compaction under way.
#[derive(Debug)]
pub(crate) struct Sweep {
    /// The next key to look at.
    pub(crate) next: Key,
    /// Another compaction came in between: go through all keys once more.
    pub(crate) again: bool,
}

/// The replicated state.
#[derive(Debug)]
pub struct Machine {
    pub(crate) limits: Limits,
    pub(crate) revision: u64,
    pub(crate) compacted: Option<u64>,
    pub(crate) sweep: Option<Sweep>,
    pub(crate) index: Index,
    pub(crate) values: ValueTable,
    pub(crate) sessions: Sessions,
    pub(crate) leases: Leases,
    pub(crate) alarms: BTreeSet<(u64, AlarmKind)>,
    /// Shared with an export under way: a change makes another one then.
    pub(crate) auth: Arc<Auth>,
    /// Derived from the index; empty unless it is kept.
    changes: Changes,
    /// While an operation is applied: that a report is wanted, and the report.
    reporting: Option<Option<TxnReport>>,
    pub(crate) members: Members,
    pub(crate) members_hash: u128,
    /// Slot and position of the last operation applied.
    pub(crate) applied: Option<(u64, u32)>,
    /// An export under way; not part of the state.
    pub(crate) export: Option<Box<Export>>,
}

/// The answer to a number that was applied before.
fn replayed(Recorded { revision, changes, refusal }: Recorded) -> Outcome {
    match refusal {
        Some(reason) => Outcome::Refused { reason, revision },
        None => Outcome::Replayed(Done { revision, changes }),
    }
}

impl Machine {
    /// An empty store, at revision 1.
    ///
    /// # Panics
    /// If a limit is zero, or no session with the largest window would fit.
    pub fn new(limits: Limits) -> Self {
        assert!(
            limits.sessions_max > 0
                && limits.windows_max >= u64::from(SESSION_WINDOW_MAX)
                && limits.parts_max > 0
                && (1..=u32::MAX / 2).contains(&limits.versions_max)
                && limits.history_max > 0,
            "limits leave room for one session, part and version: {limits:?}"
        );
        Self {
            limits,
            revision: 1,
            compacted: None,
            sweep: None,
            index: Index::default(),
            values: ValueTable::default(),
            sessions: Sessions::default(),
            leases: Leases::default(),
            alarms: BTreeSet::new(),
            auth: Arc::default(),
            changes: Changes::default(),
            reporting: None,
            members: Members::default(),
            members_hash: Members::default().hash(),
            applied: None,
            export: None,
        }
    }

    /// Keeps the list of changes from now on, for [`Machine::changes_since`].
    pub fn keep_changes(&mut self) {
        let held = self.index.all(&self.values).map(|(key, version)| Changed {
            modified: version.modified(),
            is_delete: version.is_tombstone(),
            key: key.into(),
        });
        let held = held.filter(|changed| Some(changed.modified.main) >= self.compacted).collect();
        self.changes.keep(held);
    }

    /// Lists the changes anew, if they are kept.
    pub(crate) fn relist_changes(&mut self) {
        if self.changes.are_kept() {
            self.keep_changes();
        }
    }

    /// An empty store of a cluster with these members.
    ///
    /// # Panics
    /// As [`Machine::new`].
    pub fn with_members(limits: Limits, founding: Founding) -> Self {
        let members = Members::found(founding);
        let members_hash = members.hash();
        Self { members, members_hash, ..Self::new(limits) }
    }

    /// Applies the operation at `position` of the batch decided in `slot`.
    ///
    /// # Panics
    /// If operations are not applied in order of slot and position.
    pub fn apply(&mut self, slot: u64, position: u32, op: &Op) -> Outcome {
        let at = (slot, position);
        // PROTOCOL 7-a: in order, each once.
        assert!(self.applied < Some(at), "operations are applied in order: {at:?} came late");
        self.applied = Some(at);
        let outcome = self.judge_and_execute(at, op);
        self.sweep_slice();
        outcome
    }

    /// [`Machine::apply`], with what a transaction answers. There is no report of one that was
    /// refused, or that a session had applied before.
    ///
    /// # Panics
    /// As `apply`.
    pub fn apply_reporting(
        &mut self,
        slot: u64,
        position: u32,
        op: &Op,
    ) -> (Outcome, Option<TxnReport>) {
        self.reporting = Some(None);
        let outcome = self.apply(slot, position, op);
        (outcome, self.reporting.take().flatten())
    }

    /// PROTOCOL 7-c, 7-d: by metas and former state alone, the session first.
    fn judge_and_execute(&mut self, at: (u64, u32), op: &Op) -> Outcome {
        if op.check().is_err() {
            return self.refuse(Refusal::Malformed);
        }
        // Before the session: a client sends it again under the same number, let in anew.
        if let Err(reason) = self.judge_author(op) {
            return self.refuse(reason);
        }
        let Some(stamp) = &op.stamp else {
            return match self.execute(at, op) {
                Ok(changes) => Outcome::Applied(Done { revision: self.revision, changes }),
                Err(reason) => self.refuse(reason),
            };
        };
        match self.sessions.judge(stamp, at) {
            Verdict::Refuse(reason) => self.refuse(reason),
            Verdict::Replay(recorded) => replayed(recorded),
            Verdict::Apply => self.execute_and_record(at, op, stamp),
        }
    }

    fn execute_and_record(&mut self, at: (u64, u32), op: &Op, stamp: &Stamp) -> Outcome {
        let result = self.execute(at, op);
        let revision = self.revision;
        let (changes, refusal) = match result {
            Ok(changes) => (changes, None),
            Err(reason) => (0, Some(reason)),
        };
        // PROTOCOL 11-k
        if !refusal.is_some_and(Refusal::asks_again) {
            self.sessions.record(stamp, Recorded { revision, changes, refusal });
        }
        match refusal {
            None => Outcome::Applied(Done { revision, changes }),
            Some(reason) => Outcome::Refused { reason, revision },
        }
    }

    fn refuse(&self, reason: Refusal) -> Outcome {
        Outcome::Refused { reason, revision: self.revision }
    }

    /// Executes an operation that was not executed before. Returns the number of changes to keys.
    fn execute(&mut self, at: (u64, u32), op: &Op) -> Result<u32, Refusal> {
        if self.is_restoring() && op.action.is_client_work() {
            return Err(Refusal::Restoring);
        }
        match &op.action {
            Action::Noop => Ok(0),
            Action::KeepHistory => {
                self.limits.history_max = u32::MAX;
                Ok(0)
            }
            Action::Put { key, content } => self.put(at, op.id, key, content),
            Action::Delete { key } => Ok(self.delete_attached(std::slice::from_ref(key))),
            Action::DeleteRange { from, to } => {
                let keys = self.index.live_keys(from, to.as_deref());
                Ok(self.delete_attached(&keys))
            }
            Action::Part { value } => self.store_part(at, value, op.stamp.map(|s| s.session)),
            Action::OpenSession { window } => {
                self.open_session(at, *window);
                Ok(0)
            }
            Action::CloseSession { session } => {
                self.close_session(*session);
                Ok(0)
            }
            Action::ExpireSession { session, last_use } => {
                // PROTOCOL 11-i
                let held = self.sessions.state(*session);
                let is_void = held.is_none_or(|held| held.last_use.0 != *last_use);
                if !is_void || mutant!("session ended though it was used since") {
                    self.close_session(*session);
                }
                Ok(0)
            }
            Action::Compact { revision } => self.compact(*revision).map(|()| 0),
            Action::Txn(txn) => {
                let (changes, report) = self.transact(at.0, txn, self.reporting.is_some())?;
                self.reporting = self.reporting.take().map(|_| Some(report));
                Ok(changes)
            }
            Action::LeaseGrant { id, ttl } => self.grant(*id, *ttl),
            Action::LeaseRevoke { id } => {
                let keys = self.leases.take(*id).ok_or(Refusal::LeaseNotFound)?;
                Ok(self.delete_attached(&keys))
            }
            Action::LeaseExpire { id } => {
                let keys = self.leases.take(*id).unwrap_or_default();
                Ok(self.delete_attached(&keys))
            }
            Action::Alarm { member, kind, raised: true } => {
                self.alarms.insert((*member, *kind));
                Ok(0)
            }
            Action::Alarm { member, kind, raised: false } => {
                self.alarms.remove(&(*member, *kind));
                Ok(0)
            }
            Action::Restore(step) => self.restore(at, op.id, step),
            Action::Auth(step) => Arc::make_mut(&mut self.auth).apply(step).map(|()| 0),
            Action::ReplaceNode(_)
            | Action::Reconfigure(_)
            | Action::NodeRebuilt { .. }
            | Action::MoveNode { .. }
            | Action::NodeLost { .. }
            | Action::NodeReleased { .. } => {
                self.change_members(at.0, &op.action)?;
                self.members_hash = self.members.hash();
                Ok(0)
            }
            Action::Recode { old, value } => self.recode(at.0, *old, value).map(|()| 0),
        }
    }

    fn change_members(&mut self, slot: u64, action: &Action) -> Result<(), Refusal> {
        let (members, values) = (&mut self.members, &self.values);
        let values = &|layout| values.len_of(layout);
        match action {
            Action::ReplaceNode(change) => members.replace(slot, change, values),
            Action::Reconfigure(change) => members.reconfigure(slot, change, values),
            Action::NodeRebuilt { node, incarnation } => members.rebuilt(*node, *incarnation),
            Action::MoveNode { node, expected, address } => {
                members.moved(*node, *expected, address)
            }
            Action::NodeLost { node } => members.lost(slot, *node),
            Action::NodeReleased { node } => members.released(slot, *node, values),
            _ => Ok(()),
        }
    }

    fn grant(&mut self, id: i64, ttl: i64) -> Result<u32, Refusal> {
        if id == 0 {
            return Err(Refusal::LeaseNotFound);
        }
        if ttl > LEASE_TTL_MAX {
            return Err(Refusal::LeaseTtlTooLarge);
        }
        if self.is_out_of_space() {
            return Err(Refusal::NoSpace);
        }
        if self.leases.grant(id, ttl) { Ok(0) } else { Err(Refusal::LeaseExists) }
    }

    /// Whether a member has raised the alarm that forbids to store.
    pub(crate) fn is_out_of_space(&self) -> bool {
        self.alarms.iter().any(|(_, kind)| *kind == AlarmKind::NoSpace)
    }

    fn put(
        &mut self,
        (slot, _): (u64, u32),
        id: OpId,
        key: &Key,
        content: &Content,
    ) -> Result<u32, Refusal> {
        if self.index.versions() >= self.limits.versions_max as usize || self.is_out_of_space() {
            return Err(Refusal::NoSpace);
        }
        let named = self.named(slot, id, content)?;
        let modified = Revision { main: self.revision + 1, sub: 0 };
        self.put_version(key, named, Change { modified, lease: 0 });
        self.revision += 1;
        Ok(1)
    }

    /// What a version with this content names: values that are here, or the operation's own.
    pub(crate) fn named(
        &mut self,
        slot: u64,
        id: OpId,
        content: &Content,
    ) -> Result<Named, Refusal> {
        Ok(match content {
            Content::Whole(value) if value.op == id && self.values.find(id).is_none() => {
                self.check_room_for_value()?;
                self.check_layout(value, slot)?;
                Named::Whole(self.values.add(value, slot))
            }
            Content::Whole(value) => Named::Whole(self.stored(value)?),
            // PROTOCOL 7-k: all of them, in the order named, or nothing.
            Content::Stripes(stripes) => {
                let handles = stripes.iter().map(|stripe| self.stored(stripe));
                let handles = handles.collect::<Result<_, _>>()?;
                self.index.add_list(handles)
            }
        })
    }

    /// Adds a version to a key, whatever was attached before.
    pub(crate) fn put_version(&mut self, key: &Key, named: Named, change: Change) {
        if !self.leases.is_empty() {
            self.leases.detach(self.index.lease_of(key), key);
            self.leases.attach(change.lease, key);
        }
        let complete_from =
            self.index.put(key, named, change, self.limits.history_max, &mut self.values);
        self.changes.push(change.modified, false, key);
        self.complete_from(complete_from);
    }

    /// Adds a tombstone to a key; false if it is not live.
    pub(crate) fn delete_version(&mut self, key: &[u8], modified: Revision) -> bool {
        let lease = if self.leases.is_empty() { 0 } else { self.index.lease_of(key) };
        let change = Change { modified, lease: 0 };
        let history_max = self.limits.history_max;
        let done = self.index.delete(key, change, history_max, &mut self.values);
        let Ok(complete_from) = done else { return false };
        self.leases.detach(lease, key);
        self.changes.push(modified, true, key);
        self.complete_from(complete_from);
        true
    }

    /// Versions beyond what is kept of a key went.
    fn complete_from(&mut self, revision: Option<u64>) {
        if let Some(revision) = revision
            && self.compacted < Some(revision)
        {
            self.compacted = Some(revision);
            self.changes.compact(revision);
        }
    }

    /// PROTOCOL 7-j: no key shows it.
    fn store_part(
        &mut self,
        (slot, position): (u64, u32),
        value: &Value,
        session: Option<SessionId>,
    ) -> Result<u32, Refusal> {
        match self.stored(value) {
            Ok(_) => return Ok(0),
            Err(Refusal::ValueMissing) => self.check_room_for_value()?,
            Err(reason) => return Err(reason),
        }
        self.check_layout(value, slot)?;
        let handle = self.values.add(value, slot);
        self.values.wait(handle, position, session, self.limits.parts_max);
        Ok(0)
    }

    pub(crate) fn stored(&self, value: &Value) -> Result<Handle, Refusal> {
        let handle = self.values.find(value.op).ok_or(Refusal::ValueMissing)?;
        if self.values.value(handle) != *value {
            return Err(Refusal::ValueConflict);
        }
        Ok(handle)
    }

    /// PROTOCOL 3.1-h, 10-w: every node must find the fragments where the value says.
    pub(crate) fn check_layout(&self, value: &Value, slot: u64) -> Result<(), Refusal> {
        let fits = value.layout == self.members.layout_at(slot);
        if fits { Ok(()) } else { Err(Refusal::OtherLayout) }
    }

    fn check_room_for_value(&self) -> Result<(), Refusal> {
        let full = self.values.len() >= self.limits.versions_max as usize;
        if full { Err(Refusal::NoSpace) } else { Ok(()) }
    }

    fn open_session(&mut self, (slot, position): (u64, u32), window: u32) {
        let Limits { sessions_max, windows_max, .. } = self.limits;
        while self.sessions.len() >= sessions_max as usize
            || self.sessions.windows() + u64::from(window) > windows_max
        {
            // PROTOCOL 11-h
            let oldest = self.sessions.by_last_use().next().expect("a full table has a session");
            self.close_session(oldest.session);
        }
        // PROTOCOL 11-a: slot and position are never the same again.
        self.sessions.open(SessionId { slot, position }, window);
    }

    fn close_session(&mut self, session: SessionId) {
        if self.sessions.close(session) {
            self.values.abandon_session(session);
        }
    }

    fn compact(&mut self, revision: u64) -> Result<(), Refusal> {
        if self.compacted.is_some_and(|compacted| revision <= compacted) {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        self.compacted = Some(revision);
        self.changes.compact(revision);
        match &mut self.sweep {
            Some(sweep) => sweep.again = true,
            None => self.sweep = Some(Sweep { next: Key::default(), again: false }),
        }
        Ok(())
    }

    /// Goes on with a compaction. Tied to applying, so that all nodes are equally far.
    fn sweep_slice(&mut self) {
        let (Some(sweep), Some(revision)) = (&mut self.sweep, self.compacted) else { return };
        match self.index.sweep(&sweep.next, SWEEP_KEYS, revision, &mut self.values) {
            Some(next) => sweep.next = next,
            None if sweep.again => *sweep = Sweep { next: Key::default(), again: false },
            None => self.sweep = None,
        }
    }
}

#[cfg(feature = "mutants")]
impl Machine {
    /// What a flipped bit may do, for tests that see whether somebody notices. In no other build.
    pub fn harm(&mut self) {
        self.revision ^= 1 << 20;
    }
}

/// Reading.
impl Machine {
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Who the members are, as of the last slot executed.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The number of operations that changed a key, plus 1.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The oldest revision that can be read; `None` while all can.
    pub fn compact_revision(&self) -> Option<u64> {
        self.compacted
    }

    /// Whether a compaction is still dropping versions, some with every operation applied.
    pub fn is_sweeping(&self) -> bool {
        self.sweep.is_some()
    }

    /// Slot and position of the last operation applied.
    pub fn applied(&self) -> Option<(u64, u32)> {
        self.applied
    }

    /// The newest version of a key; `None` if it is absent or deleted.
    pub fn get(&self, key: &[u8]) -> Option<Version<'_>> {
        self.index.newest(key, &self.values)
    }

    /// A key as of a revision.
    ///
    /// # Errors
    /// `Compacted` or `FutureRevision`.
    pub fn get_at(&self, key: &[u8], revision: u64) -> Result<Option<Version<'_>>, Refusal> {
        self.check_readable(revision)?;
        Ok(self.index.at(key, revision, &self.values))
    }

    /// The live keys from `from` up to but not including `to` (`None`: to the end), in order, at
    /// most `limit` of them.
    pub fn range<'a>(
        &'a self,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> impl Iterator<Item = (&'a [u8], Version<'a>)> + use<'a> {
        self.index.range(from, to, None, &self.values).take(limit)
    }

    /// [`Machine::range`] as of a revision.
    ///
    /// # Errors
    /// `Compacted` or `FutureRevision`.
    pub fn range_at<'a>(
        &'a self,
        from: &[u8],
        to: Option<&[u8]>,
        revision: u64,
        limit: usize,
    ) -> Result<impl Iterator<Item = (&'a [u8], Version<'a>)> + use<'a>, Refusal> {
        self.check_readable(revision)?;
        Ok(self.index.range(from, to, Some(revision), &self.values).take(limit))
    }

    /// The live keys that begin with `prefix`, in order, at most `limit` of them.
    pub fn prefix<'a>(
        &'a self,
        prefix: &[u8],
        limit: usize,
    ) -> impl Iterator<Item = (&'a [u8], Version<'a>)> + use<'a> {
        self.range(prefix, crate::op::prefix_end(prefix).as_deref(), limit)
    }

    /// Answers a question, at the newest state unless it names a revision.
    ///
    /// # Errors
    /// `Compacted` or `FutureRevision`.
    pub fn select(&self, select: &Select) -> Result<Selection, Refusal> {
        if select.revision > 0 {
            self.check_readable(select.revision as u64)?;
        }
        Ok(self.selection(select))
    }

    /// Changes of keys from a revision on, in order. Empty unless [`Machine::keep_changes`] was
    /// called; none are below the compact revision.
    pub fn changes_since(&self, main: u64) -> impl Iterator<Item = &Changed> {
        self.changes.since(main)
    }

    /// What a key was made at a revision, and what it was before if that is held. `None` if it was
    /// deleted at that revision, or compacted since.
    pub fn made_at(&self, key: &[u8], modified: Revision) -> (Option<Item>, Option<Item>) {
        let found = self.index.exactly(key, modified, &self.values);
        found.map_or((None, None), |(version, before)| {
            // As etcd does, which reads the state of the revision before.
            let before = before.filter(|_| Some(modified.main - 1) >= self.compacted);
            (Item::new(key, &version), before.and_then(|before| Item::new(key, &before)))
        })
    }

    /// All versions behind a revision of a key, tombstones included, by key and then by revision.
    pub fn versions_after<'a>(
        &'a self,
        key: &[u8],
        modified: Revision,
    ) -> impl Iterator<Item = (&'a [u8], Version<'a>)> + use<'a> {
        self.index.versions_after(key, modified, &self.values)
    }

    /// Seconds that a lease was granted for; `None` if there is no such lease.
    pub fn lease_ttl(&self, id: i64) -> Option<i64> {
        self.leases.ttl(id)
    }

    /// All leases with their seconds, by id.
    pub fn leases(&self) -> impl Iterator<Item = (i64, i64)> {
        self.leases.iter()
    }

    /// Keys attached to a lease, in order.
    pub fn lease_keys(&self, id: i64) -> impl Iterator<Item = &[u8]> {
        self.leases.keys(id)
    }

    /// Alarms that stand, by member.
    pub fn alarms(&self) -> impl Iterator<Item = (u64, AlarmKind)> {
        self.alarms.iter().copied()
    }

    /// Every version held of a key, tombstones included, oldest first.
    pub fn history<'a>(&'a self, key: &[u8]) -> impl Iterator<Item = Version<'a>> + use<'a> {
        self.index.history(key, &self.values)
    }

    /// Keys held, deleted ones included until they are compacted away.
    pub fn keys_len(&self) -> usize {
        self.index.len()
    }

    /// Versions held of all keys, tombstones included.
    pub fn versions_len(&self) -> usize {
        self.index.versions()
    }

    /// Values in the value table.
    pub fn values_len(&self) -> usize {
        self.values.len()
    }

    /// Values in the value table whose fragments lie as a layout says.
    pub fn values_of_layout(&self, layout: u16) -> u64 {
        self.values.len_of(layout)
    }

    /// Parts that wait for their put.
    pub fn parts_len(&self) -> usize {
        self.values.waiting_len()
    }

    /// How a value is used; `None` if it is garbage (PROTOCOL 9.8).
    pub fn value(&self, op: OpId) -> Option<ValueUse> {
        self.values.find(op).map(|handle| self.values.describe(handle))
    }

    /// Every value in the table, in no particular order.
    pub fn values(&self) -> impl Iterator<Item = ValueUse> + '_ {
        self.values.iter()
    }

    /// The values with bytes in the places from `from` on of this node's memory, looking at `most`
    /// places: for going over all of them a little at a time. Nearly in the order in which they were
    /// stored; one that is stored meanwhile may be met or not.
    pub fn values_from(&self, from: u32, most: usize) -> impl Iterator<Item = ValueUse> + '_ {
        self.values.some(from, most)
    }

    /// How many places [`Machine::values_from`] goes over.
    pub fn value_places(&self) -> u32 {
        self.values.places_len() as u32
    }

    /// Moves the names of values that became garbage to `into`. False if more than
    /// [`crate::RELEASED_MAX`] did since the last call: then the rest is to be found by asking
    /// [`Machine::value`] for each fragment held.
    pub fn take_released(&mut self, into: &mut Vec<OpId>) -> bool {
        self.values.take_released(into)
    }

    /// Moves the names of values to `into` of which a newer version of their key was written: who reads wants
    /// the newest mostly. Advice: beyond [`crate::RELEASED_MAX`] since the last call they are not named.
    pub fn take_superseded(&mut self, into: &mut Vec<OpId>) {
        self.values.take_superseded(into);
    }

    /// What an operation with this stamp came to, if it was applied and its result is kept.
    pub fn recorded(&self, stamp: &Stamp) -> Option<Outcome> {
        self.sessions.recorded(stamp).map(replayed)
    }

    /// What the table holds of a session.
    pub fn session(&self, session: SessionId) -> Option<SessionState> {
        self.sessions.state(session)
    }

    /// All sessions, the one used longest ago first.
    pub fn sessions_by_last_use(&self) -> impl Iterator<Item = SessionState> {
        self.sessions.by_last_use()
    }

    /// Hash of the whole replicated state, in constant time. Equal on nodes that have applied the
    /// same operations.
    pub fn state_hash(&self) -> u128 {
        let tables =
            [self.index.hash(), self.values.hash(), self.sessions.hash(), self.leases.hash()];
        self.combine(tables, self.auth.hash())
    }

    /// [`Machine::state_hash`] computed from the state itself, to check the one kept along.
    pub fn full_hash(&self) -> u128 {
        let tables = [
            self.index.full_hash(&self.values),
            self.values.full_hash(),
            self.sessions.full_hash(),
            self.leases.full_hash(self.index.leased(&self.values)),
        ];
        self.combine(tables, self.auth.full_hash())
    }

    fn combine(&self, [index, values, sessions, leases]: [u128; 4], auth: u128) -> u128 {
        let mut alarms = hash::Sum::default();
        for (member, kind) in &self.alarms {
            alarms.add(hash::entry(Kind::Alarm, [*member, *kind as u64]));
        }
        let [leases_low, leases_high] = hash::halves(leases);
        let [alarms_low, alarms_high] = hash::halves(alarms.get());
        let sweep = self
            .sweep
            .as_ref()
            .map_or(0, |sweep| hash::bytes(&sweep.next).wrapping_add(1 + u128::from(sweep.again)));
        let [index_low, index_high] = hash::halves(index);
        let [values_low, values_high] = hash::halves(values);
        let [sessions_low, sessions_high] = hash::halves(sessions);
        let [sweep_low, sweep_high] = hash::halves(sweep);
        let [members_low, members_high] = hash::halves(self.members_hash);
        let compacted = self.compacted.map_or(0, |compacted| compacted + 1);
        let state = hash::entry(
            Kind::State,
            [
                index_low,
                index_high,
                values_low,
                values_high,
                sessions_low,
                sessions_high,
                sweep_low,
                sweep_high,
                self.revision,
                compacted,
                self.limits.history_max.into(),
                leases_low,
                leases_high,
                alarms_low,
                alarms_high,
                members_low,
                members_high,
            ],
        );
        // That of a store without users is what it was before there could be any.
        let ([low, high], [auth_low, auth_high]) = (hash::halves(state), hash::halves(auth));
        match auth {
            0 => state,
            _ => hash::entry(Kind::WithAuth, [low, high, auth_low, auth_high]),
        }
    }

    pub(crate) fn check_readable(&self, revision: u64) -> Result<(), Refusal> {
        if self.compacted.is_some_and(|compacted| revision < compacted) {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        Ok(())
    }
}
