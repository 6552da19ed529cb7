//! Repair: a fragment that this node lacks is made again from those of others (PROTOCOL 9.5).
//!
//! Purpose: takes entries of the missing list, collects k fragments of each, checks the value's
//! digest, encodes the own fragment again and stores it.
//! Invariant: nothing is stored that does not belong to the digest that was decided; what is stored
//! is no promise, and nothing is proposed for it. A holder whose answer may be on the way is not asked
//! again, and what comes after a value was put aside is kept for it, within a bound: so each try goes on
//! where the one before it ended, however slow the link.
//! What would break it: counting the own suspected fragment, or believing a checksum instead of the
//! digest.

use crate::assemble::{Placed, Unfit};
use crate::awaited::{Answers, Awaited};
use crate::journal::Stored;
use crate::layout;
use crate::missing::MissingList;
use crate::node::Node;
use crate::reads::Held;
use crate::record;
use crate::wire::cursor::{Reader, Writer};
use crate::wire::node::{SegmentAnswer, kind, put_segment};
use racos_buffer::{Pool, Slice};
use racos_machine::{MEMBERS_MAX, OpId, Value};
use racos_net::Link;
use racos_protocol::{Nanos, NodeSet, Release, Slot};
use racos_storage::device::Device;
use racos_storage::{Class, RecordId};
use std::collections::{BTreeMap, VecDeque};

const MS: Nanos = 1_000_000;
/// How long after its execution a batch that is under way is waited for before it is repaired.
const GRACE: Nanos = 500 * MS;
/// Repairs that may be under way at a time: at least and at first, and at most; the bytes of their values.
const JOBS_FIRST: usize = 4;
const JOBS_MAX: usize = 32;
const JOB_BYTES_MAX: usize = 8 << 20;
/// A repair of which all answers are late makes room for another after this.
const TURN: Nanos = 1_500 * MS;
/// Values that are aside and of which is kept what came, and what was asked for; and the bytes of memory of
/// what came. Beyond, what was executed first is forgotten: it is the last to be tried again.
const KEPT_MAX: usize = 256;
const KEPT_BYTES_MAX: usize = 8 << 20;
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
    awaited: Awaited,
    denied: NodeSet,
    /// Answered that the value is not in use, as far as they have executed.
    gone: NodeSet,
    suspicious: bool,
    begun: Nanos,
    retry_at: Nanos,
}

impl Job {
    fn new(slot: Slot, value: Value) -> Job {
        Job {
            slot,
            value,
            held: Vec::new(),
            awaited: Awaited::default(),
            denied: NodeSet::EMPTY,
            gone: NodeSet::EMPTY,
            suspicious: false,
            begun: 0,
            retry_at: 0,
        }
    }

    /// It is taken up, for the first time or again: who lacked a fragment then may have it now.
    fn begin(&mut self, now: Nanos) {
        (self.denied, self.gone) = (NodeSet::EMPTY, NodeSet::EMPTY);
        self.awaited.begin();
        self.begun = now;
        self.retry_at = now + TURN;
    }

    fn fragment_len(&self) -> usize {
        layout::fragment_len(self.value.len as usize, usize::from(self.value.k))
    }

    /// What is kept for long keeps no more memory than it needs: small fragments came among others.
    fn keep_apart(&mut self, pool: &Pool) {
        self.held.retain_mut(|held| {
            let needs = held.bytes.len().max(racos_buffer::ALIGN);
            if held.bytes.block_bytes() <= 4 * needs {
                return true;
            }
            let copy = pool.copy(&held.bytes);
            copy.map(|copy| held.bytes = copy).is_some()
        });
    }

    /// Bytes of memory of what came.
    fn kept_bytes(&self) -> usize {
        self.held.iter().map(|held| held.bytes.block_bytes()).sum()
    }
}

/// Repairs under way, and what they have done.
pub(crate) struct Repair {
    pub missing: MissingList,
    jobs: BTreeMap<OpId, Job>,
    bytes: usize,
    /// Put aside, with what came of it. PROTOCOL 9.5-i
    aside: BTreeMap<OpId, Job>,
    answers: Answers,
    /// Repairs that may be under way now: one more after each that came to its end, half as many when one of
    /// those begun since the last time was put aside for want of answers.
    jobs_max: usize,
    narrowed: Nanos,
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
            aside: BTreeMap::new(),
            answers: Answers::default(),
            jobs_max: JOBS_FIRST,
            narrowed: 0,
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

    /// Its fragment is here, or is not needed any more.
    pub fn remove(&mut self, op: OpId) {
        self.missing.remove(op);
        self.aside.remove(&op);
    }

    /// Keeps what came of a value until it is taken up again, as far as there is room.
    fn keep_aside(&mut self, job: Job) {
        self.aside.insert(job.value.op, job);
        let mut bytes: usize = self.aside.values().map(Job::kept_bytes).sum();
        while self.aside.len() > KEPT_MAX || bytes > KEPT_BYTES_MAX {
            let first = self.aside.values().min_by_key(|job| (job.slot, job.value.op));
            let op = first.expect("there is too much of it").value.op;
            bytes -= self.aside.remove(&op).map_or(0, |job| job.kept_bytes());
        }
    }

    /// When something is to be done about a repair if nothing comes.
    fn look_at(&mut self, op: OpId, now: Nanos) {
        let job = self.jobs.get_mut(&op).expect("its repair is under way");
        let next = job.awaited.next(&self.answers, job.fragment_len(), now);
        let turn = Some(job.begun + TURN).filter(|turn| *turn > now);
        job.retry_at = [next, turn].into_iter().flatten().min().unwrap_or(now + TURN);
    }

    /// Too few answers came: fewer at a time.
    fn narrow(&mut self, begun: Nanos, now: Nanos) {
        if begun >= self.narrowed {
            self.jobs_max = (self.jobs_max / 2).max(JOBS_FIRST);
            self.narrowed = now;
        }
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
        if !self.jobs.contains_key(&op) {
            self.missing.put_aside(op, now);
        }
    }

    /// PROTOCOL 9.5-a: stored and flushed: only now it leaves the list.
    pub fn flushed(&mut self, up_to: RecordId) {
        while let Some((_, op)) = self.unflushed.pop_front_if(|(id, _)| *id <= up_to) {
            self.remove(op);
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
        let due: Vec<OpId> = due.map(|(op, _)| *op).collect();
        due.into_iter().for_each(|op| self.repair_overdue(op));
        while self.repair.has_room() {
            let Some((slot, op)) = self.repair.missing.next(now) else { return };
            self.start_repair(slot, op);
        }
    }

    fn start_repair(&mut self, slot: Slot, op: OpId) {
        let Some(used) = self.machine.value(op) else { return self.repair.remove(op) };
        let missing = &mut self.repair.missing;
        if self.fragments.contains(op) && !missing.is_suspect(op) {
            // Its SPREAD came late; the record is on its way to the disk.
            return missing.put_aside(op, self.now + GRACE);
        }
        let value = used.value;
        missing.spend(u64::from(value.len));
        let kept = self.repair.aside.remove(&op).filter(|job| job.value == value);
        let is_new = kept.is_none();
        self.repair_begin(kept.unwrap_or_else(|| Job::new(slot, value)));
        if !is_new || !self.ask_host(op, &value) {
            self.repair_overdue(op);
        }
    }

    /// PROTOCOL 9.6-c: who wrote the value is asked first, alone: it may keep what this node needs. False: it
    /// cannot be asked.
    fn ask_host(&mut self, op: OpId, value: &Value) -> bool {
        let Ok(owner) = u8::try_from(op.node()) else { return false };
        // Heard: one that takes no part in slots, as when there is nothing to do, may keep it all the same.
        let can_answer =
            self.holders_of(value).contains(owner) && owner != self.me && self.hears(owner);
        let is_of_use = self.hosting.is_on() && value.k > 1;
        if !is_of_use || !can_answer || self.repair.missing.is_suspect(op) {
            return false;
        }
        self.repair_question(op, owner, kind::GETOWN);
        self.repair.look_at(op, self.now);
        true
    }

    /// PROTOCOL 9.6-c: the own fragment, as its owner made it.
    fn take_hosted(&mut self, op: OpId, crc: u32, bytes: &Slice) {
        let job = &self.repair.jobs[&op];
        let (slot, len) = (job.slot, job.fragment_len());
        let is_good = bytes.len() == len && crc32fast::hash(bytes) == crc;
        if !is_good || self.machine.value(op).is_none() {
            return self.repair_progress(op);
        }
        let has_room = self.log.accepts(64, len, Class::Ordinary).is_ok();
        match self.own_body(bytes).filter(|_| has_room) {
            Some(bytes) => {
                self.end_repair(op);
                self.repair.from_hosts += 1;
                self.store_repaired(slot, op, bytes);
            }
            None => self.repair_anew(op, ASIDE_BUSY),
        }
    }

    fn repair_begin(&mut self, mut job: Job) {
        job.begin(self.now);
        self.repair.bytes += job.value.len as usize;
        self.repair.jobs.insert(job.value.op, job);
    }

    fn end_repair(&mut self, op: OpId) -> Option<Job> {
        let job = self.repair.jobs.remove(&op)?;
        self.repair.bytes -= job.value.len as usize;
        Some(job)
    }

    /// Gives up for now, and forgets what came.
    fn repair_anew(&mut self, op: OpId, wait: Nanos) {
        self.end_repair(op);
        self.repair.missing.put_aside(op, self.now + wait);
    }

    /// Gives up for now, and keeps what came, and comes.
    fn repair_later(&mut self, op: OpId, wait: Nanos) {
        if let Some(mut job) = self.end_repair(op) {
            job.keep_apart(&self.pool);
            self.repair.keep_aside(job);
            self.repair.missing.put_aside(op, self.now + wait);
        }
    }

    /// Asks `more` further nodes; they take turns, so that none is asked more than the others.
    fn repair_ask(&mut self, op: OpId, more: usize) {
        let (suspected, now) = (self.core.suspected(), self.now);
        let Some(job) = self.repair.jobs.get(&op) else { return };
        let holders = self.holders_of(&job.value);
        let turn = op.counter() as usize;
        let nodes: Vec<u8> = holders.iter().collect();
        // PROTOCOL 9.5-i: of whom an answer may be on the way is not asked again.
        let lost = job.awaited.lost(&self.repair.answers, job.fragment_len(), now);
        let mut targets = Vec::with_capacity(nodes.len());
        for (trusted, again) in [(true, false), (true, true), (false, false), (false, true)] {
            for step in 0..nodes.len() {
                let node = nodes[(turn + step) % nodes.len()];
                let have = job.held.iter().any(|held| held.node == node);
                let out = job.denied.union(job.gone).contains(node);
                let is_due = match job.awaited.contains(node) {
                    true => again && lost.contains(node),
                    false => !again,
                };
                let fits = suspected.contains(node) != trusted && node != self.me;
                if fits && is_due && !have && !out && targets.len() < more {
                    targets.push(node);
                }
            }
        }
        targets.into_iter().for_each(|node| self.repair_question(op, node, kind::GETSEG));
        self.repair.look_at(op, now);
    }

    fn repair_question(&mut self, op: OpId, node: u8, kind: u8) {
        let id = self.reads.new_id();
        let job = self.repair.jobs.get_mut(&op).expect("its repair is under way");
        job.awaited.ask(node, self.now);
        self.repair.answers.ask(id, node, self.now);
        let mut head = Vec::with_capacity(32);
        put_segment(&mut head, id, op.0, None);
        self.send(node, kind, &head, &[]);
    }

    /// Asks as many as are needed beside those whose answers are not late; gives up for now when all are.
    fn repair_overdue(&mut self, op: OpId) {
        let now = self.now;
        let Some(job) = self.repair.jobs.get(&op) else { return };
        let (len, answers) = (job.fragment_len(), &self.repair.answers);
        let on_time = job.awaited.on_time(answers, len, now);
        if now >= job.begun + TURN && !job.awaited.is_hopeful(answers, len, now) {
            self.repair.narrow(job.begun, now);
            return self.repair_later(op, ASIDE_SILENT);
        }
        let more = match job.suspicious {
            true => MEMBERS_MAX,
            false => usize::from(job.value.k).saturating_sub(job.held.len() + on_time),
        };
        self.repair_ask(op, more);
        self.repair_progress(op);
    }

    /// SEG: the answer to a question of a repair, or of one that was put aside.
    pub(crate) fn repair_answer(
        &mut self,
        id: u64,
        from: u8,
        op: OpId,
        answer: SegmentAnswer,
        bytes: &Slice,
    ) {
        let is_known = self.repair.answers.came(id, from, bytes.len(), self.now);
        let is_aside = !self.repair.jobs.contains_key(&op);
        let jobs = if is_aside { &mut self.repair.aside } else { &mut self.repair.jobs };
        let Some(job) = jobs.get_mut(&op) else { return };
        // To a question that is forgotten: only a fragment says something about now.
        if !is_known && matches!(answer, SegmentAnswer::Missing | SegmentAnswer::Gone { .. }) {
            return;
        }
        job.awaited.answered(from);
        match answer {
            SegmentAnswer::Here if !job.held.iter().any(|held| held.node == from) => {
                job.held.push(Held { op, node: from, bytes: bytes.clone() });
            }
            SegmentAnswer::Here => {}
            SegmentAnswer::Missing => job.denied.insert(from),
            // It has not executed the value yet, or this node has not executed its end.
            SegmentAnswer::Gone { .. } => job.gone.insert(from),
            SegmentAnswer::Hosted { .. } => {}
        }
        let is_enough = matches!(answer, SegmentAnswer::Hosted { .. })
            || job.held.len() >= usize::from(job.value.k);
        match answer {
            _ if is_aside && !self.repair_goes_on(op, is_enough) => {}
            SegmentAnswer::Hosted { crc } => self.take_hosted(op, crc, bytes),
            _ => self.repair_progress(op),
        }
    }

    /// PROTOCOL 9.5-i: something came of a value that was put aside: it is kept, and taken up if it is enough.
    fn repair_goes_on(&mut self, op: OpId, is_enough: bool) -> bool {
        let Some(mut job) = self.repair.aside.remove(&op) else { return false };
        // If it is here, its SPREAD came late, and the record is on its way to the disk.
        let is_needed = !self.fragments.contains(op) || self.repair.missing.is_suspect(op);
        if is_enough && is_needed && self.repair.missing.take_up(op) {
            self.repair_begin(job);
            return true;
        }
        job.keep_apart(&self.pool);
        self.repair.keep_aside(job);
        false
    }

    fn repair_progress(&mut self, op: OpId) {
        let Some(job) = self.repair.jobs.get(&op) else { return };
        let (k, held) = (usize::from(job.value.k), job.held.len());
        if self.machine.value(op).is_none() {
            self.end_repair(op);
            return self.repair.remove(op);
        }
        // This node lacks its own.
        let mut others = self.holders_of(&job.value);
        others.remove(self.me);
        if others.without(job.denied).len() < k {
            self.repair.missing.set_lost(op, true);
            return self.repair_anew(op, ASIDE_LOST);
        }
        if held >= k && (!job.suspicious || job.awaited.is_empty()) {
            return self.repair_finish(op);
        }
        let awaited = job.awaited.len();
        if held + awaited < k {
            self.repair_ask(op, k - held - awaited);
            if self.repair.jobs.get(&op).is_some_and(|job| job.held.len() + job.awaited.len() < k) {
                self.repair_later(op, ASIDE_SILENT);
            }
        }
    }

    /// PROTOCOL 9.5-a: decode, check the digest, encode again, store.
    fn repair_finish(&mut self, op: OpId) {
        let job = &self.repair.jobs[&op];
        let value = job.value;
        let made = match self.decode(&job.held, &value, job.suspicious) {
            Ok(decoded) => self.own_fragment(&decoded.chosen, &value),
            Err(unfit) => Err(unfit),
        };
        let bytes = match made {
            Ok(bytes) => bytes,
            Err(Unfit::NoBuffers) => return self.repair_later(op, ASIDE_BUSY),
            // PROTOCOL 9.5-b: one of them is wrong though its checksum is good: ask all.
            Err(Unfit::Digest) if !job.suspicious => {
                let job = self.repair.jobs.get_mut(&op).expect("looked up above");
                job.suspicious = true;
                self.repair_ask(op, MEMBERS_MAX);
                return self.repair_progress(op);
            }
            Err(Unfit::Digest) => {
                self.repair.missing.set_lost(op, true);
                return self.repair_anew(op, ASIDE_LOST);
            }
        };
        if self.log.accepts(64, bytes.len(), Class::Ordinary).is_err() {
            return self.repair_later(op, ASIDE_BUSY);
        }
        let job = self.end_repair(op).expect("looked up above");
        if job.suspicious {
            self.report_odd(&job.held, &value);
        }
        self.store_repaired(job.slot, op, bytes);
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

    fn job(counter: u64, slot: Slot) -> Job {
        let op = OpId::new(1, 1, 1, counter);
        let (len, digest, crc, head) = (3 << 20, [0; 16], 0, [0; 8]);
        Job::new(slot, Value { op, len, digest, crc, head, k: 3, n: 5, layout: 0 })
    }

    /// tests PROTOCOL 9.5-i
    #[test]
    fn what_came_for_values_put_aside_is_kept_within_a_bound_of_the_newest() {
        let pool = Pool::new(64 << 20);
        let mut repair = Repair::default();
        // In an order that is not that of their slots; of each a fragment of a MiB.
        for counter in (0..24).map(|index| index * 7 % 24) {
            let mut job = job(counter, 100 + counter);
            let bytes = pool.get(1 << 20).unwrap().freeze();
            job.held.push(Held { op: job.value.op, node: 2, bytes });
            repair.keep_aside(job);
        }
        let kept: Vec<Slot> = repair.aside.values().map(|job| job.slot).collect();
        assert_eq!(kept, (116..124).collect::<Vec<_>>(), "eight MiB of the newest");
        assert_eq!(pool.used(), KEPT_BYTES_MAX);
        // Of which nothing came.
        (1000..2000).for_each(|counter| repair.keep_aside(job(counter, counter)));
        assert_eq!((repair.aside.len(), pool.used()), (KEPT_MAX, 0));
        assert!(repair.aside.values().all(|job| job.slot >= 2000 - KEPT_MAX as u64));
        repair.remove(OpId::new(1, 1, 1, 1999));
        assert_eq!(repair.aside.len(), KEPT_MAX - 1, "its fragment is here");
    }

    #[test]
    fn a_small_fragment_that_is_kept_does_not_keep_what_came_beside_it() {
        let pool = Pool::new(2 << 20);
        let mut job = job(1, 1);
        let op = job.value.op;
        let received = pool.get(1 << 20).unwrap().freeze();
        job.held.push(Held { op, node: 2, bytes: received.slice(100..900) });
        job.held.push(Held { op, node: 3, bytes: pool.get(30_000).unwrap().freeze() });
        drop(received);
        job.keep_apart(&pool);
        assert_eq!(pool.used(), 36 << 10, "4 KiB, and what is of no waste is not copied");
        assert_eq!((job.held[0].bytes.len(), job.held[1].bytes.len()), (800, 30_000));
    }

    #[test]
    fn fewer_are_under_way_once_for_all_that_were_begun_together() {
        let mut repair = Repair { jobs_max: JOBS_MAX, ..Repair::default() };
        (0..20).for_each(|_| repair.narrow(5, 1500));
        assert_eq!(repair.jobs_max, JOBS_MAX / 2);
        (1500..1600).for_each(|begun| repair.narrow(begun, begun + 1));
        assert_eq!(repair.jobs_max, JOBS_FIRST);
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
