//! Repair: a fragment that this node lacks is made again from those of others (PROTOCOL 9.5).
//!
//! Purpose: takes entries of the missing list, collects k fragments of each, checks the value's
//! digest, encodes the own fragment again and stores it.
//! Invariant: nothing is stored that does not belong to the digest that was decided; what is stored
//! is no promise, and nothing is proposed for it.
//! What would break it: counting the own suspected fragment, or believing a checksum instead of the
//! digest.

use crate::assemble::{Placed, Unfit};
use crate::journal::Stored;
use crate::layout;
use crate::missing::MissingList;
use crate::node::Node;
use crate::reads::Held;
use crate::record;
use crate::wire::cursor::{Reader, Writer};
use crate::wire::node::{SegmentAnswer, kind, put_segment};
use racos_buffer::Slice;
use racos_machine::{MEMBERS_MAX, OpId, Value};
use racos_net::Link;
use racos_protocol::{Nanos, NodeSet, Release, Slot};
use racos_storage::device::Device;
use racos_storage::{Class, RecordId};
use std::collections::{BTreeMap, VecDeque};

const MS: Nanos = 1_000_000;
/// How long after its execution a batch that is under way is waited for before it is repaired.
const GRACE: Nanos = 500 * MS;
/// Most repairs under way at a time, and the bytes of their values.
const JOBS_MAX: usize = 32;
const JOB_BYTES_MAX: usize = 8 << 20;
/// A repair that lacks answers asks all others after this, and gives up for now after so many times.
const PATIENCE: Nanos = 50 * MS;
const ROUNDS_MAX: u32 = 4;
/// How long a repair is put aside: for want of buffers or disk, of answers, of fragments.
const ASIDE_BUSY: Nanos = 20 * MS;
const ASIDE_SILENT: Nanos = 500 * MS;
const ASIDE_LOST: Nanos = 5_000 * MS;

/// One value being collected.
struct Job {
    slot: Slot,
    value: Value,
    held: Vec<Held>,
    /// Asked and not answered; answered that they lack theirs.
    pending: NodeSet,
    denied: NodeSet,
    /// Answered that the value is not in use, as far as they have executed.
    gone: NodeSet,
    suspicious: bool,
    rounds: u32,
    retry_at: Nanos,
}

/// Repairs under way, and what they have done.
pub(crate) struct Repair {
    pub missing: MissingList,
    jobs: BTreeMap<u64, Job>,
    bytes: usize,
    /// Repairs that may be under way now: half as many after each that got too few answers in time, one
    /// more after each that did not. Over a slow link many at a time would all ask again and again, and
    /// fill it with answers to questions given up.
    jobs_max: usize,
    /// Records with repaired fragments that are not flushed, in order.
    unflushed: VecDeque<(RecordId, OpId)>,
    pub repaired: u64,
    /// Of these: kept by another node meanwhile.
    pub from_hosts: u64,
    /// Fragments with a good checksum that were found to be wrong, here or elsewhere.
    pub odd: u64,
}

impl Default for Repair {
    fn default() -> Repair {
        Repair {
            missing: MissingList::default(),
            jobs: BTreeMap::new(),
            bytes: 0,
            jobs_max: JOBS_MAX,
            unflushed: VecDeque::new(),
            repaired: 0,
            from_hosts: 0,
            odd: 0,
        }
    }
}

impl Repair {
    pub fn under_way(&self) -> usize {
        self.jobs.len()
    }

    fn has_room(&self) -> bool {
        self.jobs.len() < self.jobs_max && (self.bytes < JOB_BYTES_MAX || self.jobs.is_empty())
    }

    pub fn deadline(&self) -> Option<Nanos> {
        let retry = self.jobs.values().map(|job| job.retry_at).min();
        [retry, self.missing.deadline(self.has_room())].into_iter().flatten().min()
    }

    fn job_of(&self, op: OpId) -> Option<u64> {
        self.jobs.iter().find(|(_, job)| job.value.op == op).map(|(id, _)| *id)
    }

    /// A record with a fragment lies in the log; its flush is reported later.
    pub fn placed(&mut self, id: RecordId, op: OpId) {
        if self.missing.contains(op) {
            self.unflushed.push_back((id, op));
        }
    }

    /// What was stored of it cannot be read: a record of it that is about to be flushed is of no use.
    fn again(&mut self, op: OpId, slot: Slot, now: Nanos) {
        self.unflushed.retain(|(_, of)| *of != op);
        self.missing.add(op, slot, now);
        self.look_again(op, now);
    }

    /// Its repair came to nothing: unless another is under way, whether it is needed yet is looked at anew.
    pub fn look_again(&mut self, op: OpId, now: Nanos) {
        if self.job_of(op).is_none() {
            self.missing.put_aside(op, now);
        }
    }

    /// PROTOCOL 9.5-a: stored and flushed: only now it leaves the list.
    pub fn flushed(&mut self, up_to: RecordId) {
        while let Some((_, op)) = self.unflushed.pop_front_if(|(id, _)| *id <= up_to) {
            self.missing.remove(op);
        }
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// PROTOCOL 10-u: after a restart, or on a new disk: what no fragment was found of, as far as it is
    /// in use and belongs here. Of all other values replay met one: nobody has to go over all of them.
    pub(crate) fn list_missing_of_these(&mut self, absent: Vec<OpId>) {
        for op in absent {
            let used = self.machine.value(op).filter(|used| used.value.len > 0);
            let used = used.filter(|used| self.is_holder(&used.value));
            if let Some(used) = used.filter(|_| !self.fragments.contains(op)) {
                self.repair.missing.add(op, used.slot, self.now);
            }
        }
    }

    /// A slot was executed: its values that are in use and not here are missing.
    pub(crate) fn list_missing_of(&mut self, slot: Slot, ops: &[racos_machine::Op]) {
        for spot in layout::fragments(ops) {
            let op = spot.value.op;
            let is_here = !self.is_holder(spot.value) || self.fragments.contains(op);
            if !is_here && self.machine.value(op).is_some() {
                self.repair.missing.add(op, slot, self.now + GRACE);
                self.repair.missing.grew(u64::from(spot.value.len));
            }
        }
    }

    /// PROTOCOL 9.5-e: the own fragment cannot be read: from now on it counts as lost.
    pub(crate) fn fragment_damaged(&mut self, op: OpId) {
        let Some(used) = self.machine.value(op) else { return };
        self.fragments.lose(op);
        // PROTOCOL 9.6-b: whatever is kept here for another node.
        if mutant!("hosted fragment counted") && self.hosting.contains(op) {
            return;
        }
        if mutant!("damage not put on the missing list") {
            return;
        }
        self.repair.again(op, used.slot, self.now);
        self.repair.missing.grew(u64::from(used.value.len));
    }

    /// BAD: another node put the value together without this node's fragment, and found that this
    /// one is not what the value gives. It is made again from the others'; until then it stays, in
    /// case the other node is mistaken.
    pub(crate) fn on_bad_fragment(&mut self, head: &[u8]) {
        let Ok(op) = Reader::new(head).u128("op") else { return };
        let Some(used) = self.machine.value(OpId(op)) else { return };
        self.repair.odd += 1;
        self.repair.missing.suspect(OpId(op), used.slot, self.now);
    }

    /// Goes on with repairs: takes up what is due.
    pub(crate) fn repair_turn(&mut self) {
        if self.repair.missing.is_empty() && self.repair.jobs.is_empty() {
            return;
        }
        let now = self.now;
        let due = self.repair.jobs.iter().filter(|(_, job)| job.retry_at <= now);
        let due: Vec<u64> = due.map(|(id, _)| *id).collect();
        due.into_iter().for_each(|id| self.repair_overdue(id));
        while self.repair.has_room() {
            let Some((slot, op)) = self.repair.missing.next(now) else { return };
            self.start_repair(slot, op);
        }
    }

    fn start_repair(&mut self, slot: Slot, op: OpId) {
        let missing = &mut self.repair.missing;
        let Some(used) = self.machine.value(op) else { return missing.remove(op) };
        if self.fragments.contains(op) && !missing.is_suspect(op) {
            // Its SPREAD came late; the record is on its way to the disk.
            return missing.put_aside(op, self.now + GRACE);
        }
        let value = used.value;
        missing.spend(u64::from(value.len));
        let id = self.reads.new_id();
        let job = Job {
            slot,
            value,
            held: Vec::new(),
            pending: NodeSet::EMPTY,
            denied: NodeSet::EMPTY,
            gone: NodeSet::EMPTY,
            suspicious: false,
            rounds: 0,
            retry_at: self.now + PATIENCE,
        };
        self.repair.bytes += value.len as usize;
        self.repair.jobs.insert(id, job);
        if !self.ask_host(id, &value) {
            self.repair_ask(id, usize::from(value.k));
        }
    }

    /// PROTOCOL 9.6-c: who wrote the value is asked first, alone: it may keep what this node needs. False: it
    /// cannot be asked.
    fn ask_host(&mut self, id: u64, value: &Value) -> bool {
        let Ok(owner) = u8::try_from(value.op.node()) else { return false };
        // Heard: one that takes no part in slots, as when there is nothing to do, may keep it all the same.
        let can_answer =
            self.holders_of(value).contains(owner) && owner != self.me && self.hears(owner);
        let is_of_use = self.hosting.is_on() && value.k > 1;
        if !is_of_use || !can_answer || self.repair.missing.is_suspect(value.op) {
            return false;
        }
        let job = self.repair.jobs.get_mut(&id).expect("the caller made it");
        job.pending.insert(owner);
        let mut head = Vec::with_capacity(32);
        put_segment(&mut head, id, value.op.0, None);
        self.send(owner, kind::GETOWN, &head, &[]);
        true
    }

    /// PROTOCOL 9.6-c: the own fragment, as its owner made it.
    fn take_hosted(&mut self, id: u64, crc: u32, bytes: &Slice) {
        let job = &self.repair.jobs[&id];
        let (slot, value) = (job.slot, job.value);
        let len = layout::fragment_len(value.len as usize, usize::from(value.k));
        let is_good = bytes.len() == len && crc32fast::hash(bytes) == crc;
        if !is_good || self.machine.value(value.op).is_none() {
            return self.repair_progress(id);
        }
        let has_room = self.log.accepts(64, len, Class::Ordinary).is_ok();
        match self.own_body(bytes).filter(|_| has_room) {
            Some(bytes) => {
                self.end_repair(id);
                self.repair.from_hosts += 1;
                self.store_repaired(slot, value.op, bytes);
            }
            None => self.repair_later(id, ASIDE_BUSY),
        }
    }

    fn end_repair(&mut self, id: u64) -> Option<Job> {
        let job = self.repair.jobs.remove(&id)?;
        self.repair.bytes -= job.value.len as usize;
        Some(job)
    }

    fn repair_later(&mut self, id: u64, wait: Nanos) {
        if let Some(job) = self.end_repair(id) {
            self.repair.missing.put_aside(job.value.op, self.now + wait);
        }
    }

    /// Asks `more` further nodes; they take turns, so that none is asked more than the others.
    fn repair_ask(&mut self, id: u64, more: usize) {
        let suspected = self.core.suspected();
        let Some(job) = self.repair.jobs.get(&id) else { return };
        let holders = self.holders_of(&job.value);
        let op = job.value.op;
        let turn = op.counter() as usize;
        let nodes: Vec<u8> = holders.iter().collect();
        let mut targets = Vec::with_capacity(more);
        for trusted in [true, false] {
            for step in 0..nodes.len() {
                let node = nodes[(turn + step) % nodes.len()];
                let have = job.held.iter().any(|held| held.node == node);
                let out = job.pending.union(job.denied).union(job.gone).contains(node);
                let fits = suspected.contains(node) != trusted && node != self.me;
                if fits && !have && !out && targets.len() < more {
                    targets.push(node);
                }
            }
        }
        for node in targets {
            let job = self.repair.jobs.get_mut(&id).expect("looked up above");
            job.pending.insert(node);
            let mut head = Vec::with_capacity(32);
            put_segment(&mut head, id, op.0, None);
            self.send(node, kind::GETSEG, &head, &[]);
        }
    }

    /// Too few answers in time: everybody is asked, again where nothing came; then later.
    fn repair_overdue(&mut self, id: u64) {
        let now = self.now;
        let Some(job) = self.repair.jobs.get_mut(&id) else { return };
        job.rounds += 1;
        if job.rounds > ROUNDS_MAX {
            self.repair.jobs_max = (self.repair.jobs_max / 2).max(1);
            return self.repair_later(id, ASIDE_SILENT);
        }
        job.retry_at = now + (PATIENCE << job.rounds);
        job.pending = NodeSet::EMPTY;
        self.repair_ask(id, MEMBERS_MAX);
    }

    /// SEG: the answer to a question of a repair, or of one that was given up: a fragment that took long
    /// serves the next try of the same value.
    pub(crate) fn repair_answer(
        &mut self,
        id: u64,
        from: u8,
        op: OpId,
        answer: SegmentAnswer,
        bytes: &Slice,
    ) {
        let is_late = !self.repair.jobs.contains_key(&id);
        let id = if is_late { self.repair.job_of(op) } else { Some(id) };
        let Some((id, job)) = id.and_then(|id| Some((id, self.repair.jobs.get_mut(&id)?))) else {
            return;
        };
        if job.value.op != op || (is_late && answer != SegmentAnswer::Here) {
            return;
        }
        job.pending.remove(from);
        match answer {
            SegmentAnswer::Here if !job.held.iter().any(|held| held.node == from) => {
                job.held.push(Held { op, node: from, bytes: bytes.clone() });
            }
            SegmentAnswer::Here => {}
            SegmentAnswer::Missing => job.denied.insert(from),
            // It has not executed the value yet, or this node has not executed its end.
            SegmentAnswer::Gone { .. } => job.gone.insert(from),
            SegmentAnswer::Hosted { crc } => return self.take_hosted(id, crc, bytes),
        }
        self.repair_progress(id);
    }

    fn repair_progress(&mut self, id: u64) {
        let Some(job) = self.repair.jobs.get(&id) else { return };
        let (k, held) = (usize::from(job.value.k), job.held.len());
        if self.machine.value(job.value.op).is_none() {
            let job = self.end_repair(id).expect("looked up above");
            return self.repair.missing.remove(job.value.op);
        }
        // This node lacks its own.
        let mut others = self.holders_of(&job.value);
        others.remove(self.me);
        if others.without(job.denied).len() < k {
            let op = job.value.op;
            self.repair.missing.set_lost(op, true);
            return self.repair_later(id, ASIDE_LOST);
        }
        if held >= k && (!job.suspicious || job.pending.is_empty()) {
            return self.repair_finish(id);
        }
        let awaited = job.pending.len();
        if held + awaited < k {
            self.repair_ask(id, k - held - awaited);
            if self.repair.jobs.get(&id).is_some_and(|job| job.held.len() + job.pending.len() < k) {
                self.repair_later(id, ASIDE_SILENT);
            }
        }
    }

    /// PROTOCOL 9.5-a: decode, check the digest, encode again, store.
    fn repair_finish(&mut self, id: u64) {
        let job = &self.repair.jobs[&id];
        let value = job.value;
        let made = match self.decode(&job.held, &value, job.suspicious) {
            Ok(decoded) => self.own_fragment(&decoded.chosen, &value),
            Err(unfit) => Err(unfit),
        };
        let bytes = match made {
            Ok(bytes) => bytes,
            Err(Unfit::NoBuffers) => return self.repair_later(id, ASIDE_BUSY),
            // PROTOCOL 9.5-b: one of them is wrong though its checksum is good: ask all.
            Err(Unfit::Digest) if !job.suspicious => {
                let job = self.repair.jobs.get_mut(&id).expect("looked up above");
                job.suspicious = true;
                self.repair_ask(id, MEMBERS_MAX);
                return self.repair_progress(id);
            }
            Err(Unfit::Digest) => {
                self.repair.missing.set_lost(value.op, true);
                return self.repair_later(id, ASIDE_LOST);
            }
        };
        if self.log.accepts(64, bytes.len(), Class::Ordinary).is_err() {
            return self.repair_later(id, ASIDE_BUSY);
        }
        let job = self.end_repair(id).expect("looked up above");
        if job.suspicious {
            self.report_odd(&job.held, &value);
        }
        self.store_repaired(job.slot, value.op, bytes);
    }

    fn store_repaired(&mut self, slot: Slot, op: OpId, bytes: Slice) {
        self.repair.repaired += 1;
        self.repair.jobs_max = (self.repair.jobs_max + 1).min(JOBS_MAX);
        self.repair.missing.set_lost(op, false);
        let crc = crc32fast::hash(&bytes);
        let mut head = Vec::with_capacity(32);
        head.put_u128(op.0);
        head.put_u64(slot);
        head.put_u32(crc);
        let cost = bytes.block_bytes().max(bytes.len());
        self.fragments.insert(op, slot, bytes.clone(), cost, crc);
        // PROTOCOL 9.5-d: a record of its own kind, from which no proposal follows.
        let stored = Some(Stored::Repaired { slot, op });
        self.append(record::kind::REPAIRED, &head, &[bytes], Release::Nothing, stored);
    }

    /// PROTOCOL 9.5-b: tells every node whose fragment is not the one that the value gives.
    pub(crate) fn report_odd(&mut self, held: &[Held], value: &Value) {
        let Ok(decoded) = self.decode(held, value, true) else { return };
        let chosen: Vec<u8> = decoded.chosen.iter().map(|it| it.held.node).collect();
        let others = held.iter().filter(|held| held.op == value.op);
        let others: Vec<&Held> = others.filter(|held| !chosen.contains(&held.node)).collect();
        for other in others {
            let right = self.fragment_of(other.node, &decoded.chosen, value);
            if right.is_ok_and(|right| *right != *other.bytes) {
                self.repair.odd += 1;
                if other.node == self.me {
                    let slot = self.machine.value(value.op).map_or(0, |used| used.slot);
                    self.repair.missing.suspect(value.op, slot, self.now);
                    continue;
                }
                let mut head = Vec::with_capacity(16);
                head.put_u128(value.op.0);
                self.send(other.node, kind::BAD, &head, &[]);
            }
        }
    }

    fn own_fragment(&self, chosen: &[Placed<'_>], value: &Value) -> Result<Slice, Unfit> {
        self.fragment_of(self.me, chosen, value)
    }

    /// A node's fragment of a value, from k good ones, in a block of its own.
    fn fragment_of(&self, node: u8, chosen: &[Placed<'_>], value: &Value) -> Result<Slice, Unfit> {
        let len = layout::fragment_len(value.len as usize, usize::from(value.k));
        if value.k == 1 {
            return self.pool.copy(&chosen[0].held.bytes).ok_or(Unfit::NoBuffers);
        }
        let mut buf = self.pool.get(len).ok_or(Unfit::NoBuffers)?;
        let place = self.place_of(node, value).ok_or(Unfit::Digest)?;
        self.rebuild(chosen, value, &[place], &mut [&mut buf[..len]]);
        Ok(buf.freeze().slice(0..len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_that_cannot_be_read_before_its_flush_is_made_once_more() {
        let mut repair = Repair::default();
        let op = OpId::new(1, 1, 1, 7);
        const SECOND: Nanos = 1_000_000_000;
        repair.missing.add(op, 3, 0);
        assert_eq!(repair.missing.next(SECOND), Some((3, op)), "its repair is begun");
        repair.placed(RecordId(9), op);
        repair.again(op, 3, 2 * SECOND);
        repair.flushed(RecordId(9));
        assert!(repair.missing.contains(op), "the record that is flushed cannot be read");
        assert_eq!(repair.missing.next(2 * SECOND), Some((3, op)), "and is repaired again");
        repair.placed(RecordId(11), op);
        repair.flushed(RecordId(11));
        assert!(!repair.missing.contains(op));
    }

    #[test]
    fn a_fragment_that_was_dropped_before_it_was_placed_is_looked_at_again() {
        let mut repair = Repair::default();
        let op = OpId::new(1, 1, 1, 7);
        repair.missing.add(op, 3, 0);
        assert_eq!(repair.missing.next(1_000_000_000), Some((3, op)), "its repair is begun");
        assert_eq!(repair.deadline(), None);
        repair.look_again(op, 5);
        assert_eq!(repair.deadline(), Some(5));
        assert_eq!(repair.missing.next(2_000_000_000), Some((3, op)));
    }
}
