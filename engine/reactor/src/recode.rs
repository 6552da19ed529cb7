//! Values of older layouts, stored again in the newest one (PROTOCOL 10-aa).
//!
//! Purpose: after a change of the members, or of f or k, goes over the values that versions use, reads
//! those whose fragments lie as an older layout says, and proposes each once more as an operation of its
//! own, by the path of any write: in a batch with others, or stored first if it is large. RECODE,
//! executed, puts it in the place of the old one. One value is the unit, not a batch: the value table
//! and the fragments go by value, and of a batch of long ago some are in use and some are not.
//!
//! Every member re-codes its share, those whose name falls on it among the members that it hears; what
//! nobody seems to do, all do. Who is right does not matter: the second RECODE of a value is void. The
//! table is the only memory: a restart, or the next change, begins anew with what is left.
//!
//! Invariant: bytes in hand stay below [`BYTES_MAX`], and what is begun in a second below a rate; while
//! clients' work is under way here, below an eighth of both: less, so that nobody notices, and not
//! nothing, so that it ends. What would break it: a job that ends without being told.

use crate::batch::{Payload, Waiter};
use crate::node::Node;
use crate::status::RecodeStatus;
use crate::wire::client::Reply;
use racos_buffer::Slice;
use racos_machine::{Action, AlarmKind, Op, OpId, Outcome, Value};
use racos_net::Link;
use racos_protocol::Nanos;
use racos_storage::device::Device;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};

const MS: Nanos = 1_000_000;
/// Values being re-coded at a time, and their bytes (or one value).
const JOBS_MAX: usize = 32;
const BYTES_MAX: usize = 4 << 20;
/// What one value costs besides its bytes: its messages, its metas at every node, its flush.
const VALUE_COST: u64 = 16 << 10;
/// What may be saved up while others have their turn.
const BURST_BYTES: i64 = 1 << 20;
/// Places of the table looked at in one turn.
const PLACES_TURN: usize = 1024;
/// What is left of all that while clients' work is under way.
const SHARE_OF_BUSY: u64 = 8;
/// Pauses: between looks, after a round or a failure.
const LOOK: Nanos = MS;
const REST: Nanos = 250 * MS;
/// The pause when all that is left waits for its put, so that going over the table costs little.
const LONG_REST: Nanos = 60_000 * MS;
/// So long after a client's write others are expected.
const BUSY: Nanos = 50 * MS;
/// A member that was not heard for so long leaves its share to the others.
const SILENT: Nanos = 3_000 * MS;
/// Nothing was re-coded for so long: everybody does what is left.
const STUCK: Nanos = 5_000 * MS;
/// Names of what was re-coded that are remembered for reads under way.
const FORWARDS_MAX: usize = 65_536;

/// A value that is being read, or waits for its RECODE to be executed.
#[derive(Debug, Clone, Copy)]
struct Job {
    old: OpId,
    len: usize,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Recode {
    jobs: BTreeMap<u64, Job>,
    bytes: usize,
    /// Clients' work was under way when last looked.
    is_busy: bool,
    /// When an operation of a client was executed last.
    written_at: Option<Nanos>,
    next_job: u64,
    /// Where the round over the table goes on, and whether it has met work for this node.
    place: u32,
    met: bool,
    /// What was left when somebody was last seen to have re-coded something, and when that was.
    left: u64,
    moved_at: Nanos,
    takes_all: bool,
    look_at: Nanos,
    /// Bytes that may be begun now; below zero: a debt that time pays.
    allowance: i64,
    paid_at: Nanos,
    forwards: Forwards,
    done: u64,
}

impl Recode {
    /// When there may be something to begin, as far as is known.
    pub fn deadline(&self) -> Option<Nanos> {
        (self.left > 0).then_some(self.look_at)
    }

    fn share(&self) -> u64 {
        if self.is_busy { SHARE_OF_BUSY } else { 1 }
    }

    /// Whether another one may be begun now.
    fn has_room(&self) -> bool {
        let share = self.share() as usize;
        let fits = self.jobs.len() < JOBS_MAX / share && self.bytes < BYTES_MAX / share;
        self.allowance > 0 && (fits || self.jobs.is_empty())
    }

    fn pay(&mut self, now: Nanos, rate: u64) {
        let elapsed = now.saturating_sub(self.paid_at);
        let bytes = u128::from(elapsed) * u128::from(rate / self.share()) / 1_000_000_000;
        if bytes > 0 {
            self.paid_at = now;
            let sum = i128::from(self.allowance) + bytes as i128;
            self.allowance = sum.min(i128::from(BURST_BYTES)) as i64;
        }
    }

    fn begin(&mut self, value: &Value) -> u64 {
        self.next_job += 1;
        let job = Job { old: value.op, len: value.len as usize };
        self.bytes += job.len;
        self.allowance -= (u64::from(value.len) + VALUE_COST) as i64;
        self.jobs.insert(self.next_job, job);
        self.next_job
    }

    fn end(&mut self, number: u64) {
        if let Some(job) = self.jobs.remove(&number) {
            self.bytes -= job.len;
        }
    }

    fn is_under_way(&self, op: OpId) -> bool {
        self.jobs.values().any(|job| job.old == op)
    }

    /// The members have changed: there may be work at once.
    pub fn begin_anew(&mut self) {
        (self.left, self.place, self.takes_all, self.look_at) = (0, 0, false, 0);
    }

    /// The round has come to the end of the table.
    fn end_round(&mut self, left: u64, now: Nanos) {
        let idle = !std::mem::take(&mut self.met) && self.jobs.is_empty();
        if left != self.left || !idle {
            (self.left, self.moved_at) = (left, now);
        }
        let is_done = idle && self.takes_all;
        self.takes_all = idle && now >= self.moved_at + STUCK;
        self.place = 0;
        self.look_at = now + if is_done { LONG_REST } else { REST };
    }

    /// An operation was executed: if it re-coded a value, who still reads the old one finds the new one.
    pub fn executed(&mut self, op: &Op, outcome: &Outcome, now: Nanos) {
        match (&op.action, outcome) {
            (Action::Recode { old, .. }, Outcome::Applied(_)) => self.forwards.insert(*old, op.id),
            (Action::Recode { .. }, _) => {}
            _ => self.written_at = Some(now),
        }
    }
}

/// The operations that took the place of others lately, the oldest first out.
#[derive(Default)]
struct Forwards {
    table: FxHashMap<OpId, OpId>,
    order: VecDeque<OpId>,
}

impl Forwards {
    fn insert(&mut self, old: OpId, new: OpId) {
        if self.table.insert(old, new).is_none() {
            self.order.push_back(old);
        }
        if self.order.len() > FORWARDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.table.remove(&oldest);
        }
    }

    /// The newest in the place of an operation, if it is another one.
    fn last(&self, op: OpId) -> Option<OpId> {
        let mut found = None;
        let mut next = self.table.get(&op);
        // One for each change of the members; a row without an end is nobody's work.
        for _ in 0..u8::MAX {
            let Some(&new) = next else { break };
            found = Some(new);
            next = self.table.get(&new);
        }
        found
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// The same bytes as another operation has stored them meanwhile, if one has and this node knows it.
    pub(crate) fn forwarded(&self, value: Value) -> Value {
        let newest = self.recode.forwards.last(value.op).and_then(|op| self.machine.value(op));
        match newest {
            Some(used) if !mutant!("readers are not told of re-coded values") => used.value,
            _ => value,
        }
    }

    /// Begins to re-code what may be begun now.
    pub(crate) fn recode_turn(&mut self) {
        let (now, rate) = (self.now, self.config.bounds.recode_bytes_per_s);
        if now < self.recode.look_at {
            return;
        }
        // PROTOCOL 9.6-a: what was cut into fewer fragments while nodes were missing, too.
        let (older, narrow) = (self.machine.older_values().values, self.margin.is_due());
        let left = older + if narrow { self.margin.left.max(1) } else { 0 };
        if left == 0 || rate == 0 || !self.may_recode() {
            let recode = &mut self.recode;
            (recode.left, recode.moved_at, recode.place) = (0, now, 0);
            recode.look_at = now + REST;
            self.margin.met = 0;
            return;
        }
        if self.recode.left == 0 {
            (self.recode.left, self.recode.moved_at) = (left, now);
        }
        self.recode.is_busy = self.has_clients_work();
        self.recode.pay(now, rate);
        self.recode.look_at = now + LOOK;
        if !self.recode.has_room() {
            return;
        }
        let from = self.recode.place;
        let (mut wanted, met) = self.recodable(from, narrow);
        let is_free = |value: &Value| !self.recode.is_under_way(value.op);
        wanted.retain(|value| is_free(value) && self.is_recoder(value.op));
        self.recode.met |= !wanted.is_empty();
        for value in wanted {
            // What does not begin now is met again: the round has not gone on.
            let has_failed = self.recode.look_at > now + LOOK;
            if !self.recode.has_room() || has_failed {
                return;
            }
            self.recode_one(value);
        }
        self.recode.place = from.saturating_add(PLACES_TURN as u32);
        self.margin.met += met;
        if self.recode.place >= self.machine.value_places() {
            if narrow {
                self.margin.end_round();
            }
            self.recode.end_round(older + self.margin.left, now);
        }
    }

    /// The values in the next places that are to be stored again; how many of them for their code alone.
    fn recodable(&self, from: u32, narrow: bool) -> (Vec<Value>, u64) {
        let mut found: Vec<Value> =
            self.machine.older_values_from(from, PLACES_TURN).map(|used| used.value).collect();
        let older = found.len();
        if narrow {
            let used = self.machine.values_from(from, PLACES_TURN);
            found.extend(used.filter(|used| self.is_owed_again(used)).map(|used| used.value));
        }
        let met = (found.len() - older) as u64;
        (found, met)
    }

    /// Whether this node may propose anything in the newest layout now.
    fn may_recode(&self) -> bool {
        let members = self.machine.members();
        let is_settled = members.newest().is_some_and(|newest| {
            newest.number == self.builder.layout() && self.core.exec() >= members.effect()
        });
        let is_full = self.machine.alarms().any(|(_, kind)| kind == AlarmKind::NoSpace);
        is_settled && self.core.is_active() && !is_full && !self.machine.is_restoring()
    }

    /// Whether clients wait for this node, or have written through any just now.
    fn has_clients_work(&self) -> bool {
        let written = self.recode.written_at.is_some_and(|at| self.now < at + BUSY);
        written || !self.requests.is_empty() || self.api.len() > 0
    }

    /// Whether a value is of this node's share.
    fn is_recoder(&self, op: OpId) -> bool {
        if self.recode.takes_all {
            return true;
        }
        let lives = |node: &u8| *node == self.me || self.heard_within(*node, SILENT);
        let living: Vec<u8> = self.members().iter().filter(lives).collect();
        let mixed = (op.0 as u64 ^ (op.0 >> 64) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let turn = (mixed >> 32) % living.len().max(1) as u64;
        living.get(turn as usize) == Some(&self.me)
    }

    fn recode_one(&mut self, value: Value) {
        let number = self.recode.begin(&value);
        match value.len {
            0 => self.recode_write(number, value.op, &[]),
            _ => self.start_fetch(Waiter::Recode(number), value),
        }
    }

    /// What came of reading or proposing a value.
    pub(crate) fn recode_reply(&mut self, number: u64, reply: &Reply, body: &[Slice]) {
        let Some(job) = self.recode.jobs.get(&number).copied() else { return };
        match reply {
            Reply::Found { .. } => self.recode_write(number, job.old, body),
            Reply::Done { .. } => {
                self.recode.done += 1;
                self.recode.end(number);
            }
            // No version uses it any more.
            Reply::NotFound => self.recode.end(number),
            _ => self.recode_failed(number),
        }
    }

    /// It is met again in a later round, if it is still there.
    fn recode_failed(&mut self, number: u64) {
        self.recode.end(number);
        self.recode.look_at = self.now + REST;
    }

    /// PROTOCOL 10-aa: by the path of any write, so that D members hold it before it counts.
    fn recode_write(&mut self, number: u64, old: OpId, pieces: &[Slice]) {
        let len = pieces.iter().map(|piece| piece.len()).sum();
        let bytes = match len {
            0 => Some(Slice::empty()),
            _ => self.pool.get(len).map(|mut buf| {
                let mut rest = &mut buf[..len];
                for piece in pieces {
                    let (part, behind) = rest.split_at_mut(piece.len());
                    part.copy_from_slice(piece);
                    rest = behind;
                }
                buf.freeze().slice(0..len)
            }),
        };
        let Some(bytes) = bytes else { return self.recode_failed(number) };
        let id = self.next_op_id();
        let value = self.builder.describe(id, &bytes);
        let action = Action::Recode { old, value };
        let op = Op { id, author: None, stamp: None, action };
        self.write_op(Waiter::Recode(number), op, Payload::Value(bytes));
    }

    pub(crate) fn recode_status(&self) -> RecodeStatus {
        let left = self.machine.older_values();
        RecodeStatus {
            values: self.machine.values_len() as u64,
            values_left: left.values,
            bytes_left: left.bytes,
            under_way: self.recode.jobs.len() as u64,
            done: self.recode.done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(counter: u64) -> OpId {
        OpId::new(0, 1, 1, counter)
    }

    fn value(counter: u64, len: u32) -> Value {
        let op = op(counter);
        Value { op, len, digest: [0; 16], crc: 0, head: [0; 8], k: 1, n: 3, layout: 0 }
    }

    /// tests PROTOCOL 10-aa
    #[test]
    fn bytes_in_hand_and_bytes_a_second_are_bounded() {
        const RATE: u64 = 16 << 20;
        let mut recode = Recode::default();
        let (mut begun, mut most, mut counter) = (0u64, 0, 0);
        for ms in 0..1000 {
            recode.pay(ms * MS, RATE);
            while recode.has_room() {
                counter += 1;
                recode.begin(&value(counter, 100_000));
                begun += 100_000 + VALUE_COST;
            }
            most = most.max(recode.bytes);
            let oldest = *recode.jobs.keys().next().unwrap_or(&0);
            recode.end(oldest);
        }
        assert!(most <= BYTES_MAX + 100_000, "{most}");
        assert!(begun <= RATE + BURST_BYTES as u64 + 200_000, "{begun}");
        assert!(begun >= RATE * 9 / 10, "{begun}");
        let mut alone = Recode::default();
        alone.pay(MS, RATE);
        assert!(alone.has_room() && alone.allowance > 0);
        alone.begin(&value(1, 2 * BYTES_MAX as u32));
        assert!(!alone.has_room(), "one may be larger than the bound, alone");
        let mut busy = Recode { is_busy: true, ..Recode::default() };
        busy.pay(1000 * MS, RATE);
        assert_eq!(busy.allowance, BURST_BYTES);
        busy.allowance = 0;
        busy.pay(1080 * MS, RATE);
        assert_eq!(busy.allowance, (RATE / 100) as i64, "an eighth");
        for counter in 0..JOBS_MAX as u64 / 8 {
            busy.begin(&value(counter, 10));
        }
        assert!(!busy.has_room() && busy.allowance > 0, "an eighth");
    }

    #[test]
    fn what_nobody_does_all_do_and_only_then() {
        let mut recode = Recode { left: 10, ..Recode::default() };
        recode.met = true;
        recode.end_round(10, 100_000 * MS);
        assert!(!recode.takes_all, "it has work of its own");
        recode.end_round(9, 104_000 * MS);
        recode.end_round(9, 108_000 * MS);
        assert!(!recode.takes_all, "somebody has re-coded one meanwhile");
        recode.end_round(9, 109_000 * MS);
        assert_eq!((recode.takes_all, recode.look_at), (true, 109_000 * MS + REST));
        recode.end_round(9, 110_000 * MS);
        assert_eq!(recode.look_at, 110_000 * MS + LONG_REST, "nobody can do what is left");
        recode.begin_anew();
        assert_eq!((recode.takes_all, recode.look_at), (false, 0), "another change has come");
        recode.end_round(8, 170_000 * MS);
        assert!(!recode.takes_all);
    }

    #[test]
    fn names_are_followed_to_the_newest_and_forgotten_in_order() {
        let mut forwards = Forwards::default();
        forwards.insert(op(1), op(2));
        forwards.insert(op(2), op(3));
        assert_eq!((forwards.last(op(1)), forwards.last(op(3))), (Some(op(3)), None));
        for counter in 10..10 + FORWARDS_MAX as u64 {
            forwards.insert(op(counter), op(counter + (1 << 30)));
        }
        assert_eq!((forwards.last(op(1)), forwards.table.len()), (None, FORWARDS_MAX));
    }
}
