//! Where this node's fragments are: in memory, in the log, or on their way there.
//!
//! Invariant: every fragment that the log holds for a live value has an entry with its place and
//! checksum; a fragment whose record is not placed yet is kept in memory. `live` counts, by segment,
//! the bytes of all entries that are placed, and of those forgotten since the pin of the newest
//! durable checkpoint: it names them yet (PROTOCOL 9.2).

use crate::cache::{Cache, CacheCounts};
use crate::dying::Dying;
use crate::record::COPY_BYTES;
use crate::table::Table;
use racos_buffer::Slice;
use racos_machine::{OpId, Pile};
use racos_protocol::Slot;
use racos_storage::Place;
use racos_storage::device::FileId;
use std::collections::{BTreeMap, VecDeque};

/// Where to get a fragment.
#[derive(Debug, Clone)]
pub enum Fetch {
    Memory(Slice),
    Disk { place: Place, crc: u32 },
}

/// Where a fragment lies, and its checksum.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lying {
    /// No segment has number 0: the log has not said yet where the record lies.
    pub place: Place,
    pub crc: u32,
}

impl Lying {
    /// Where it lies, once that is known.
    fn placed(&self) -> Option<Place> {
        (self.place.segment != 0).then_some(self.place)
    }
}

/// Fragments by operation, with a bounded cache of bytes.
pub struct Fragments {
    table: Table<Lying>,
    cache: Cache,
    /// Of entries that are not executed, or not placed.
    slots: Table<Told>,
    slot_order: VecDeque<(Slot, OpId)>,
    live: Live,
    /// What only the newest checkpoint names yet; counted in `live`.
    dying: Dying,
    /// While a checkpoint is being written: what is to be forgotten when it is.
    deferred: Option<Going>,
    /// What was, and is forgotten some at a time: under load a checkpoint defers very many.
    leaving: Going,
    /// Bytes of both, and of what is kept for readers.
    going_bytes: u64,
    /// It is of a later state than the own: what it names, the node may not know yet.
    is_ahead: bool,
}

/// In the place of a slot: of a batch that is stored and has none (PROTOCOL 6.3).
pub const UNASSIGNED: Slot = Slot::MAX;

/// Operations whose fragments are to be forgotten, with their bytes: there may be millions.
type Going = Pile<(OpId, u64)>;

/// The slot whose record holds a fragment, and whether the log has said where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Told {
    slot: Slot,
    is_placed: bool,
}

/// What a fragment takes of the log at least: its bytes, and what names it beside others in a record of
/// copies.
pub(crate) fn bytes_of(place: Place) -> u64 {
    u64::from(place.len) + COPY_BYTES as u64
}

/// Bytes in use, by segment: each fragment with what names it.
#[derive(Default)]
struct Live {
    bytes: BTreeMap<FileId, u64>,
    total: u64,
}

impl Live {
    fn add(&mut self, place: Place) {
        *self.bytes.entry(place.segment).or_default() += bytes_of(place);
        self.total += bytes_of(place);
    }

    fn drop(&mut self, place: Place) {
        self.sub(place.segment, bytes_of(place));
    }

    fn sub(&mut self, segment: FileId, count: u64) {
        let bytes = self.bytes.get_mut(&segment).expect("what is taken off was counted");
        *bytes -= count;
        self.total -= count;
        if *bytes == 0 {
            self.bytes.remove(&segment);
        }
    }
}

impl Fragments {
    pub fn new(cache_bytes_max: usize) -> Fragments {
        Fragments {
            table: Table::default(),
            cache: Cache::new(cache_bytes_max),
            slots: Table::default(),
            slot_order: VecDeque::new(),
            live: Live::default(),
            dying: Dying::default(),
            deferred: None,
            leaving: Going::default(),
            going_bytes: 0,
            is_ahead: false,
        }
    }

    /// The state is pinned for a checkpoint: until [`Fragments::unpin`], nothing that it names is
    /// forgotten.
    ///
    /// # Panics
    /// If what the one before kept is not all forgotten: it would be taken for named by this one.
    pub fn pin(&mut self) {
        assert!(self.leaving.is_empty(), "a checkpoint begins when the one before has let go");
        self.deferred = Some(Going::default());
        self.dying.pin();
    }

    /// As [`Fragments::pin`], for the checkpoint of a state that a peer told: nothing of slots below
    /// it is forgotten until [`Fragments::keep_only`] or [`Fragments::outlive_ahead`] says what is of use.
    pub fn pin_ahead(&mut self) {
        self.pin();
        self.is_ahead = true;
    }

    /// The state that a peer told is in place, and a durable checkpoint of it: all else goes.
    /// PROTOCOL 9.3-f
    pub fn keep_only(&mut self, wanted: impl Fn(OpId, Slot) -> bool) {
        self.is_ahead = false;
        for op in self.unwanted(wanted) {
            self.lose(op);
        }
    }

    /// The checkpoint names all it has to, or was given up: what it kept goes by
    /// [`Fragments::forget_some`].
    pub fn unpin(&mut self) {
        if let Some(deferred) = self.deferred.take() {
            assert!(self.leaving.is_empty(), "what leaves is what one checkpoint kept");
            self.leaving = deferred;
        }
    }

    /// Whether [`Fragments::forget_some`] has something to do.
    pub fn are_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Forgets up to so many of what a checkpoint kept, and says how many.
    pub fn forget_some(&mut self, most: usize) -> usize {
        self.dying.wear_down();
        for gone in 0..most {
            let Some((op, bytes)) = self.leaving.pop() else { return gone };
            self.going_bytes -= bytes;
            self.forget(op, None);
        }
        most
    }

    /// The checkpoint is durable: what went before its pin is of no use to anybody.
    pub fn settle(&mut self) {
        for (segment, bytes) in self.dying.settle() {
            self.live.sub(segment, bytes);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Bytes in use in a segment.
    pub fn live_in(&self, segment: FileId) -> u64 {
        self.live.bytes.get(&segment).copied().unwrap_or(0)
    }

    /// The same without those that a checkpoint alone names yet.
    pub fn needed_in(&self, segment: FileId) -> u64 {
        self.live_in(segment) - self.dying.bytes_in(segment)
    }

    /// Bytes in use in all segments.
    pub fn live_bytes(&self) -> u64 {
        self.live.total
    }

    /// Bytes of values in use: without those that a checkpoint alone names yet, or is to name.
    pub fn needed_bytes(&self) -> u64 {
        // One that is lost while a checkpoint keeps it is taken off twice until then.
        (self.live.total - self.dying.bytes()).saturating_sub(self.going_bytes)
    }

    /// Bytes of fragments that only the newest checkpoint names yet.
    pub fn dying_bytes(&self) -> u64 {
        self.dying.bytes_now()
    }

    /// How those who asked for fragments fared.
    pub fn cache_counts(&self) -> CacheCounts {
        self.cache.counts
    }

    /// Where the log holds a fragment, with its checksum.
    pub fn place(&self, op: OpId) -> Option<(Place, u32)> {
        let lying = self.table.get(op)?;
        lying.placed().map(|place| (place, lying.crc))
    }

    /// A fragment that a checkpoint names. What a later record said already stands.
    pub fn fill(&mut self, op: OpId, place: Place, crc: u32) {
        if self.table.put(op, Lying { place, crc }).is_ok() {
            self.live.add(place);
        }
    }

    /// The same fragment lies at another place now, if it still lay at `from`.
    pub fn moved(&mut self, op: OpId, from: Place, to: Place) {
        if let Some(lying) = self.table.get_mut(op).filter(|lying| lying.place == from) {
            lying.place = to;
        } else if !self.dying.moved(op, from, to) {
            return;
        }
        self.live.drop(from);
        self.live.add(to);
    }

    /// A fragment that is copied when its segment is gone over: that of a value in use, or one that a
    /// checkpoint names yet. Where it lies, and its checksum.
    pub fn kept(&self, op: OpId) -> Option<(Place, u32)> {
        self.place(op).or_else(|| self.dying.place(op))
    }

    /// Whether a fragment that no value in use needs is kept for a checkpoint; else it is one of what is
    /// not executed, or the log has not said where it lies.
    pub fn is_going(&self, op: OpId) -> bool {
        self.slots.get(op).is_none()
    }

    /// The state that a peer told is in place in the log, and the own one has come as far meanwhile.
    pub fn outlive_ahead(&mut self, wanted: impl Fn(OpId, Slot) -> bool) {
        self.is_ahead = false;
        self.retain(wanted);
    }

    /// Forgets all but what is wanted: for when too many values left at once to be named. The slot of
    /// what was executed long ago is 0. While a peer's state is being written, what is not wanted is
    /// deferred as ever, and what that state may name of a null slot stays: [`Fragments::pin_ahead`].
    pub fn retain(&mut self, wanted: impl Fn(OpId, Slot) -> bool) {
        for op in self.unwanted(wanted) {
            self.forget(op, None);
        }
    }

    fn unwanted(&self, wanted: impl Fn(OpId, Slot) -> bool) -> Vec<OpId> {
        let slot_of = |op| self.slot_of(op).unwrap_or(0);
        let ops = self.table.iter().map(|(op, _)| op);
        ops.filter(|op| !wanted(*op, slot_of(*op))).collect()
    }

    /// A fragment whose record was handed to the log. `cost`: the bytes of memory that it pins.
    /// An operation that was opened again is in the later slot: what comes late of the earlier one,
    /// which is null, takes nothing from it.
    pub fn insert(&mut self, op: OpId, slot: Slot, bytes: Slice, cost: usize, crc: u32) {
        if self.is_of_later_slot(op, slot) {
            return;
        }
        let old = self.table.insert(op, Lying { place: Place::default(), crc });
        self.drop_place(old);
        self.note_slot(op, Told { slot, is_placed: false });
        self.cache.hold(op, bytes, cost);
    }

    /// A fragment found in the log at start-up.
    pub fn replay(&mut self, op: OpId, slot: Slot, place: Place, crc: u32) {
        if self.is_of_later_slot(op, slot) {
            return;
        }
        let old = self.table.insert(op, Lying { place, crc });
        self.drop_place(old);
        self.note_slot(op, Told { slot, is_placed: true });
        self.live.add(place);
    }

    fn slot_of(&self, op: OpId) -> Option<Slot> {
        self.slots.get(op).map(|told| told.slot)
    }

    fn note_slot(&mut self, op: OpId, told: Told) {
        let before = self.slots.insert(op, told);
        if told.slot == UNASSIGNED {
            return;
        }
        if before.is_none_or(|before| before.slot != told.slot) {
            self.slot_order.push_back((told.slot, op));
        }
    }

    /// The batch of what was stored without a slot is in this one, which is executed.
    pub fn assign(&mut self, op: OpId, slot: Slot) {
        if let Some(told) = self.slots.get_mut(op).filter(|told| told.slot == UNASSIGNED) {
            told.slot = slot;
            self.slot_order.push_back((slot, op));
        }
    }

    /// As [`Fragments::placed`], whichever slot the operation has come to be in meanwhile.
    pub fn placed_anywhere(&mut self, op: OpId, place: Place) -> bool {
        self.slot_of(op).is_some_and(|slot| self.placed(op, slot, place))
    }

    /// All slots below are executed: of which one an entry is, matters no more once it is placed.
    pub fn executed(&mut self, exec: Slot) {
        // Bounded by what was executed since the last call, nearly: records come in order of slots.
        for _ in 0..self.slot_order.len() {
            let Some((slot, op)) = self.slot_order.pop_front_if(|(slot, _)| *slot < exec) else {
                return;
            };
            match self.slots.get(op).filter(|told| told.slot == slot) {
                Some(Told { is_placed: true, .. }) => drop(self.slots.remove(op)),
                // Behind what is not executed: it is met again.
                Some(_) => self.slot_order.push_back((slot, op)),
                None => {}
            }
        }
    }

    fn drop_place(&mut self, lying: Option<Lying>) {
        if let Some(place) = lying.and_then(|lying| lying.placed()) {
            self.live.drop(place);
        }
    }

    fn is_of_later_slot(&self, op: OpId, slot: Slot) -> bool {
        self.slot_of(op).is_some_and(|of| of > slot && of != UNASSIGNED)
    }

    /// The log says where the record lies. False: the fragment was forgotten meanwhile.
    pub fn placed(&mut self, op: OpId, slot: Slot, place: Place) -> bool {
        let told = self.slots.get_mut(op).filter(|told| told.slot == slot);
        let Some(told) = told else { return false };
        told.is_placed = true;
        let Some(kept) = self.table.get_mut(op) else { return false };
        let old = std::mem::replace(&mut kept.place, place);
        if old.segment != 0 {
            self.live.drop(old);
        }
        self.live.add(place);
        self.cache.release(op);
        true
    }

    /// Bytes read from the log, kept for the next reader.
    pub fn cache(&mut self, op: OpId, bytes: Slice, cost: usize) {
        if self.contains(op) && !self.cache.contains(op) {
            self.cache.keep(op, bytes, cost);
        }
    }

    /// A newer version of its key was written: of what is in memory it goes first.
    pub fn supersede(&mut self, op: OpId) {
        self.cache.supersede(op);
    }

    /// Where the fragment of this operation is, if this node has it.
    /// PROTOCOL 3.1-e
    pub fn find(&mut self, op: OpId) -> Option<Fetch> {
        let lying = *self.table.get(op)?;
        match (self.cache.get(op), lying.placed()) {
            (Some(bytes), _) => Some(Fetch::Memory(bytes)),
            (None, Some(place)) => Some(Fetch::Disk { place, crc: lying.crc }),
            (None, None) => None,
        }
    }

    pub fn contains(&self, op: OpId) -> bool {
        self.table.contains(op)
    }

    /// The slot was decided null, or the value is not live any more: nobody will ask.
    pub fn forget(&mut self, op: OpId, slot: Option<Slot>) {
        if slot.is_some() && self.slot_of(op) != slot {
            return;
        }
        if slot.is_some() && self.is_ahead {
            // It may have been opened again in a slot that the checkpoint is of.
            return;
        }
        if slot.is_none()
            && let Some(deferred) = &mut self.deferred
        {
            let place = self.table.get(op).and_then(Lying::placed);
            let bytes = place.map_or(0, bytes_of);
            self.going_bytes += bytes;
            return deferred.push((op, bytes));
        }
        let removed = self.take(op);
        match slot {
            Some(_) => self.drop_place(removed),
            // PROTOCOL 9.2-c: the newest checkpoint may name it.
            None => {
                if let Some(lying) = removed.filter(|lying| lying.placed().is_some()) {
                    self.dying.note(op, lying);
                }
            }
        }
    }

    /// The value went, and somebody may still ask for it: the fragment stays until [`Fragments::let_go`].
    /// Its bytes of the log; `None`: there is none.
    pub fn keep(&mut self, op: OpId) -> Option<u64> {
        let bytes = self.table.get(op)?.placed().map_or(0, bytes_of);
        self.going_bytes += bytes;
        Some(bytes)
    }

    /// Nobody asks for it any more.
    pub fn let_go(&mut self, op: OpId, bytes: u64) {
        self.going_bytes -= bytes;
        self.forget(op, None);
    }

    /// It cannot be read: it is not here, whatever a checkpoint says.
    pub fn lose(&mut self, op: OpId) {
        let removed = self.take(op);
        self.drop_place(removed);
    }

    fn take(&mut self, op: OpId) -> Option<Lying> {
        self.slots.remove(op);
        self.cache.remove(op);
        self.table.remove(op)
    }

    #[cfg(test)]
    fn cached_bytes(&self) -> usize {
        self.cache.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use racos_buffer::Pool;

    /// tests PROTOCOL 9.4-e
    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_not_on_disk() {
        let pool = Pool::new(1 << 20);
        let mut fragments = Fragments::new(250);
        for counter in 0..5 {
            let op = OpId::new(0, 1, 1, counter);
            fragments.insert(op, counter, pool.copy(&[counter as u8; 100]).unwrap(), 100, 0);
        }
        assert_eq!(fragments.cached_bytes(), 500, "none of them is on disk yet");
        for counter in 0..5 {
            let op = OpId::new(0, 1, 1, counter);
            fragments.placed(op, counter, Place { segment: 1, offset: 0, len: 100 });
        }
        assert!(fragments.cached_bytes() <= 250, "what is on disk may go at once");
        let last = OpId::new(0, 1, 1, 9);
        fragments.insert(last, 9, pool.copy(&[9; 100]).unwrap(), 100, 0);
        assert!(fragments.cached_bytes() <= 250);
        assert!(matches!(fragments.find(last), Some(Fetch::Memory(_))));
        assert!(matches!(fragments.find(OpId::new(0, 1, 1, 0)), Some(Fetch::Disk { .. })));
        fragments.forget(last, Some(8));
        assert!(fragments.contains(last), "another slot's record does not matter");
        fragments.forget(last, Some(9));
        assert!(!fragments.contains(last));
    }

    #[test]
    fn what_comes_late_of_an_earlier_slot_takes_nothing_from_the_later_one() {
        let pool = Pool::new(1 << 20);
        let mut fragments = Fragments::new(0);
        let op = OpId::new(0, 1, 1, 1);
        fragments.insert(op, 9, pool.copy(&[1; 10]).unwrap(), 10, 0);
        fragments.insert(op, 4, pool.copy(&[2; 10]).unwrap(), 10, 0);
        fragments.forget(op, Some(4));
        assert!(fragments.contains(op), "slot 4 is null, slot 9 holds the operation");
        let place = Place { segment: 1, offset: 0, len: 10 };
        assert!(!fragments.placed(op, 4, place) && fragments.placed(op, 9, place));
        fragments.replay(op, 4, Place { segment: 0, offset: 0, len: 10 }, 0);
        assert_eq!(fragments.place(op), Some((place, 0)));
    }

    /// A checkpoint that names a place says so after a restart: the place must not be given back.
    #[test]
    fn a_peers_state_keeps_what_it_may_name_though_many_values_leave_the_own_one_at_once() {
        let mut fragments = Fragments::new(0);
        let op = |counter| OpId::new(0, 1, 1, counter);
        for counter in 0..4 {
            let place = Place { segment: 1, offset: 100 * counter as u32, len: 100 };
            fragments.replay(op(counter), 10 + counter, place, 0);
        }
        fragments.pin_ahead();
        let (live, other) = (fragments.live_bytes(), fragments.live_bytes() / 4);
        fragments.retain(|_, slot| slot >= 12);
        fragments.forget(op(2), Some(12));
        assert_eq!(
            (fragments.len(), fragments.live_bytes()),
            (4, live),
            "none is gone before the end"
        );
        fragments.outlive_ahead(|_, slot| slot >= 12);
        fragments.forget(op(2), Some(12));
        assert_eq!((fragments.len(), fragments.live_bytes()), (3, live - other), "slot 12 is null");
        fragments.unpin();
        while fragments.forget_some(8) > 0 {}
        assert!(fragments.contains(op(3)) && fragments.len() == 1);
    }

    /// Counted by the allocator: a turn that pays for all that a checkpoint kept stalls the loop.
    #[test]
    fn what_a_checkpoint_kept_is_never_moved_at_once_however_many_there_are() {
        const COUNT: u64 = 100_000;
        let mut fragments = Fragments::new(0);
        let op = |counter| OpId::new(0, 1, 1, counter);
        for counter in 0..COUNT {
            let place = Place { segment: 1, offset: counter as u32, len: 100 };
            fragments.replay(op(counter), counter, place, 0);
        }
        fragments.executed(COUNT);
        fragments.pin();
        let mut most = 0;
        let mut measure = |step: &mut dyn FnMut()| {
            most = most.max(allocation_counter::measure(step).bytes_total);
        };
        (0..COUNT).for_each(|counter| measure(&mut || fragments.forget(op(counter), None)));
        measure(&mut || fragments.unpin());
        assert_eq!(fragments.len(), COUNT as usize);
        let mut most_forgetting = 0;
        while fragments.are_leaving() {
            let mut gone = 0;
            let info = allocation_counter::measure(|| gone = fragments.forget_some(256));
            assert!(gone > 0);
            most_forgetting = most_forgetting.max(info.bytes_max);
        }
        assert_eq!(fragments.len(), 0);
        assert!(most <= 64 << 10, "{most} bytes allocated at once");
        assert!(most_forgetting <= 128 << 10, "{most_forgetting} bytes allocated in a turn");
    }

    #[test]
    fn slots_are_remembered_only_until_they_are_executed_and_placed() {
        let pool = Pool::new(1 << 20);
        let mut fragments = Fragments::new(200);
        for slot in 0..1000 {
            let op = OpId::new(0, 1, 1, slot);
            fragments.insert(op, slot, pool.copy(&[0; 100]).unwrap(), 100, 0);
            if slot != 500 {
                fragments.placed(op, slot, Place { segment: 1, offset: 0, len: 100 });
            }
            fragments.executed(slot);
        }
        assert_eq!((fragments.slots.len(), fragments.slot_order.len()), (2, 2));
        let late = OpId::new(0, 1, 1, 500);
        assert!(fragments.placed(late, 500, Place { segment: 1, offset: 0, len: 100 }));
        fragments.executed(1000);
        assert_eq!((fragments.slots.len(), fragments.slot_order.len()), (0, 0));
        assert_eq!(fragments.live_bytes(), 1000 * (100 + COPY_BYTES as u64));
        assert!(fragments.cached_bytes() <= 200);
    }
}
