//! The value table: every value that a version names, or that waits for the put that will.
//!
//! Invariant: an entry is here if and only if some version uses it (`uses` counts them) or it
//! waits as a part. So the table says which fragments a node must keep (PROTOCOL 9.8), and a
//! fragment whose operation is not here is garbage. What would break it: a version that names a
//! value without [`ValueTable::retain`], or goes without [`ValueTable::release`].
//!
//! Waiting parts are bounded: the oldest goes when there are too many, and those of a session go
//! with it.

mod export;
mod recode;

use std::collections::{BTreeMap, BTreeSet};

use crate::hash::{self, Kind, Sum};
use crate::numbers::Numbers;
use crate::op::{OpId, SessionId, Value};
use crate::origins::{Origins, ShortOp};
use crate::slab::{Handle, Slab};

/// How many released values are remembered for the caller to collect, and how many superseded ones.
pub const RELEASED_MAX: usize = 4096;

/// How a live value is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ValueUse {
    pub value: Value,
    /// Versions that name it; 0 for a part that waits for its put.
    pub uses: u32,
    /// The slot in which it was first stored.
    pub slot: u64,
}

/// A [`ValueUse`] in 56 bytes.
#[derive(Default, Debug)]
struct Stored {
    op: ShortOp,
    digest: [u8; 16],
    head: [u8; 8],
    slot: u64,
    len: u32,
    crc: u32,
    uses: u32,
    k: u8,
    n: u8,
    layout: u16,
}

impl Stored {
    fn new(op: ShortOp, value: &Value, slot: u64) -> Self {
        let Value { len, digest, crc, head, k, n, layout, .. } = *value;
        Self { op, digest, head, slot, len, crc, uses: 0, k, n, layout }
    }

    fn value(&self, origins: &Origins) -> Value {
        let Self { digest, head, len, crc, k, n, layout, .. } = *self;
        let op = origins.name(self.op);
        Value { op, len, digest, crc, head, k, n, layout }
    }

    /// A version's hash covers which bytes it names, not which operation stored them: so it is here
    /// that it shows how many versions name which one. Of one version or none: that is told by who
    /// waits.
    fn hash(&self, op: OpId) -> u128 {
        let [op_low, op_high] = hash::halves(op.0);
        let [digest_low, digest_high] = hash::halves(u128::from_le_bytes(self.digest));
        let head = u64::from_le_bytes(self.head);
        let sizes = hash::pair(self.len, self.crc);
        let code = u64::from(self.layout) << 16 | u64::from(self.k) << 8 | u64::from(self.n);
        let uses = u64::from(self.uses.max(1));
        let fields = [op_low, op_high, digest_low, digest_high, head, self.slot, sizes, code, uses];
        hash::entry(Kind::Value, fields)
    }
}

/// A part that no put has named yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    slot: u64,
    position: u32,
    session: Option<SessionId>,
}

impl Waiting {
    fn hash(&self, op: OpId) -> u128 {
        let [op_low, op_high] = hash::halves(op.0);
        let owned = u64::from(self.session.is_some());
        let session = self.session.unwrap_or_default();
        let positions = hash::pair(self.position, session.position);
        let fields = [op_low, op_high, self.slot, session.slot, positions, owned];
        hash::entry(Kind::Part, fields)
    }
}

#[derive(Debug, Default)]
pub(crate) struct ValueTable {
    /// Handles of `stored` by operation.
    by_op: Numbers,
    origins: Origins,
    stored: Slab<Stored>,
    waiting: BTreeMap<Handle, Waiting>,
    waiting_by_age: BTreeMap<(u64, u32), Handle>,
    waiting_by_session: BTreeSet<(SessionId, Handle)>,
    /// Values in the table, and their bytes, by layout.
    by_layout: BTreeMap<u16, Extent>,
    sum: Sum,
    /// Values that left the table since the caller last asked; not part of the state.
    released: Vec<OpId>,
    released_missed: bool,
    /// Values of which a newer version of their key was written, likewise.
    superseded: Vec<OpId>,
    /// The state of an export under way; not part of the state.
    pinned: Option<export::Pinned>,
}

/// How many values there are of something, and how many bytes they have before coding.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Extent {
    pub values: u64,
    pub bytes: u64,
}

impl Extent {
    fn add(&mut self, len: u32) {
        self.values += 1;
        self.bytes += u64::from(len);
    }

    fn sub(&mut self, len: u32) {
        self.values -= 1;
        self.bytes -= u64::from(len);
    }
}

impl ValueTable {
    pub(crate) fn len(&self) -> usize {
        self.stored.len()
    }

    /// Values in the table that have a layout.
    pub(crate) fn len_of(&self, layout: u16) -> u64 {
        self.by_layout.get(&layout).map_or(0, |extent| extent.values)
    }

    /// What names these bytes in a version's hash, whichever operation stored them.
    pub(crate) fn content(&self, handle: Handle) -> u128 {
        u128::from_le_bytes(self.stored.get(handle).digest)
    }

    pub(crate) fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn find(&self, op: OpId) -> Option<Handle> {
        let op = self.origins.find(op)?;
        self.by_op.find(op.hash(), |at| self.stored.get(at).op == op)
    }

    pub(crate) fn value(&self, handle: Handle) -> Value {
        self.stored.get(handle).value(&self.origins)
    }

    pub(crate) fn op(&self, handle: Handle) -> OpId {
        self.origins.name(self.stored.get(handle).op)
    }

    pub(crate) fn describe(&self, handle: Handle) -> ValueUse {
        self.used(self.stored.get(handle))
    }

    fn used(&self, stored: &Stored) -> ValueUse {
        let Stored { uses, slot, .. } = *stored;
        ValueUse { value: stored.value(&self.origins), uses, slot }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = ValueUse> + '_ {
        self.by_op.iter().map(|handle| self.describe(handle))
    }

    /// Of the places from `from` on, at most `most`, the values that stand there.
    pub(crate) fn some(&self, from: Handle, most: usize) -> impl Iterator<Item = ValueUse> + '_ {
        // A free place holds the default, which has no bytes.
        let taken = self.stored.places(from, most).filter(|stored| stored.len > 0);
        taken.map(|stored| self.used(stored))
    }

    pub(crate) fn places_len(&self) -> usize {
        self.stored.places_len()
    }

    /// Adds a value that is not in the table. The caller retains it or lets it wait at once.
    pub(crate) fn add(&mut self, value: &Value, slot: u64) -> Handle {
        debug_assert!(self.find(value.op).is_none(), "a value is stored once");
        let op = self.origins.shorten(value.op);
        let stored = Stored::new(op, value, slot);
        self.by_layout.entry(value.layout).or_default().add(value.len);
        self.sum.add(stored.hash(value.op));
        let handle = self.stored.insert(stored);
        self.enter(handle);
        handle
    }

    /// Makes a value to be found by its operation.
    fn enter(&mut self, handle: Handle) {
        self.by_op.insert(self.stored.get(handle).op.hash(), handle);
    }

    /// The operation is not found any more, and is told to be released.
    fn leave(&mut self, handle: Handle, op: OpId) {
        let short = self.origins.shorten(op);
        let found = self.by_op.remove(short.hash(), |at| at == handle);
        assert!(found.is_some(), "every stored value is in the value table");
        if self.released.len() < RELEASED_MAX {
            self.released.push(op);
        } else {
            self.released_missed = true;
        }
    }

    /// One version more or fewer names a value that others name.
    fn count_uses(&mut self, handle: Handle, uses: u32) {
        let op = self.op(handle);
        let stored = self.stored.get_mut(handle);
        self.sum.sub(stored.hash(op));
        stored.uses = uses;
        self.sum.add(stored.hash(op));
    }

    /// Counts one more version that names the value; a waiting part waits no longer.
    pub(crate) fn retain(&mut self, handle: Handle) {
        if !self.waiting.is_empty() {
            self.stop_waiting(handle);
        }
        match self.stored.get(handle).uses {
            // As if it had been there from the beginning: nearly all have one.
            0 => self.stored.get_mut(handle).uses = 1,
            uses => self.count_uses(handle, uses + 1),
        }
    }

    /// Counts one version less; the last one takes the value out of the table.
    pub(crate) fn release(&mut self, handle: Handle) {
        match self.stored.get(handle).uses {
            1 => {
                self.stored.get_mut(handle).uses = 0;
                self.remove(handle);
            }
            uses => self.count_uses(handle, uses - 1),
        }
    }

    /// Makes a value just added wait for its put, and drops the oldest one above `waiting_max`.
    pub(crate) fn wait(
        &mut self,
        handle: Handle,
        position: u32,
        session: Option<SessionId>,
        waiting_max: u32,
    ) {
        let waiting = Waiting { slot: self.stored.get(handle).slot, position, session };
        self.sum.add(waiting.hash(self.op(handle)));
        self.waiting.insert(handle, waiting);
        self.waiting_by_age.insert((waiting.slot, position), handle);
        if let Some(session) = session {
            self.waiting_by_session.insert((session, handle));
        }
        if self.waiting.len() > waiting_max as usize {
            let (_, &oldest) = self.waiting_by_age.first_key_value().expect("one waits");
            self.abandon(oldest);
        }
    }

    /// Drops the parts of a session that ended.
    pub(crate) fn abandon_session(&mut self, session: SessionId) {
        let range = (session, Handle::MIN)..=(session, Handle::MAX);
        while let Some(&(_, part)) = self.waiting_by_session.range(range.clone()).next() {
            self.abandon(part);
        }
    }

    /// Moves the names of the values that left the table to `into`. False if there were more than
    /// [`RELEASED_MAX`] since the last call, so that some are not named.
    pub(crate) fn take_released(&mut self, into: &mut Vec<OpId>) -> bool {
        into.append(&mut self.released);
        !std::mem::take(&mut self.released_missed)
    }

    /// A newer version of its key was written. What is beyond [`RELEASED_MAX`] is not noted.
    pub(crate) fn note_superseded(&mut self, handle: Handle) {
        if self.superseded.len() < RELEASED_MAX {
            self.superseded.push(self.op(handle));
        }
    }

    pub(crate) fn take_superseded(&mut self, into: &mut Vec<OpId>) {
        into.append(&mut self.superseded);
    }

    pub(crate) fn hash(&self) -> u128 {
        self.sum.get()
    }

    /// The hash from the entries themselves.
    pub(crate) fn full_hash(&self) -> u128 {
        let mut sum = Sum::default();
        for handle in self.by_op.iter() {
            sum.add(self.stored.get(handle).hash(self.op(handle)));
        }
        for (&handle, waiting) in &self.waiting {
            sum.add(waiting.hash(self.op(handle)));
        }
        sum.get()
    }

    fn stop_waiting(&mut self, handle: Handle) {
        let Some(waiting) = self.waiting.remove(&handle) else { return };
        self.save_pinned(handle, &waiting);
        self.sum.sub(waiting.hash(self.op(handle)));
        self.waiting_by_age.remove(&(waiting.slot, waiting.position));
        if let Some(session) = waiting.session {
            self.waiting_by_session.remove(&(session, handle));
        }
    }

    fn abandon(&mut self, handle: Handle) {
        self.stop_waiting(handle);
        self.remove(handle);
    }

    /// PROTOCOL 9.8-a
    fn remove(&mut self, handle: Handle) {
        let stored = self.stored.get(handle);
        assert_eq!(stored.uses, 0, "a value that a version names stays in the value table");
        let (op, layout, len) = (self.origins.name(stored.op), stored.layout, stored.len);
        self.sum.sub(stored.hash(op));
        self.by_layout.get_mut(&layout).expect("every value was counted").sub(len);
        self.leave(handle, op);
        self.forget_pinned(handle);
        self.stored.remove(handle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_value_takes_56_bytes() {
        assert_eq!(size_of::<Stored>(), 56);
    }
}
