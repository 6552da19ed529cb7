//! Where this node's fragments are: in memory, in the log, or on their way there.
//!
//! Invariant: every fragment that the log holds for a live value has an entry with its place and
//! checksum; a fragment whose record is not placed yet is kept in memory. `live` counts, by segment,
//! the bytes of all entries that are placed, and of those forgotten since the pin of the newest
//! durable checkpoint: it names them yet (PROTOCOL 9.2).

use racos_buffer::Slice;
use racos_machine::OpId;
use racos_storage::Place;
use racos_storage::device::FileId;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, VecDeque};

/// The slot of an entry that a checkpoint told of: executed, and before that of any later record.
const EXECUTED: u64 = 0;

/// One fragment.
#[derive(Debug)]
struct Entry {
    /// None until the log says where the record lies.
    place: Option<Place>,
    /// The slot whose record holds it.
    slot: u64,
    crc: u32,
    cached: Option<Cached>,
}

/// Bytes in memory.
#[derive(Debug)]
struct Cached {
    bytes: Slice,
    /// Memory that this entry is charged for: its share of the block that it pins.
    cost: u32,
    /// Tells a later caching of the same fragment from this one in the eviction order.
    ticket: u64,
}

/// Where to get a fragment.
#[derive(Debug, Clone)]
pub enum Fetch {
    Memory(Slice),
    Disk { place: Place, crc: u32 },
}

/// Fragments by operation, with a bounded cache of bytes, oldest first out.
pub struct Fragments {
    entries: FxHashMap<OpId, Entry>,
    order: VecDeque<(OpId, u64)>,
    cached_len: usize,
    cached_bytes: usize,
    cache_bytes_max: usize,
    next_ticket: u64,
    live: Live,
    /// While a checkpoint is being written: what is to be forgotten when it is.
    deferred: Option<Vec<OpId>>,
}

/// Bytes in use, by segment.
#[derive(Default)]
struct Live {
    bytes: BTreeMap<FileId, u64>,
    total: u64,
    /// Bytes of values that went after, and before, the pin of the checkpoint being written.
    dying: BTreeMap<FileId, u64>,
    dying_pinned: BTreeMap<FileId, u64>,
}

impl Live {
    fn add(&mut self, place: Place) {
        *self.bytes.entry(place.segment).or_default() += u64::from(place.len);
        self.total += u64::from(place.len);
    }

    fn sub(&mut self, segment: FileId, len: u64) {
        let bytes = self.bytes.get_mut(&segment).expect("what is taken off was counted");
        *bytes -= len;
        self.total -= len;
        if *bytes == 0 {
            self.bytes.remove(&segment);
        }
    }
}

impl Fragments {
    pub fn new(cache_bytes_max: usize) -> Fragments {
        Fragments {
            entries: FxHashMap::default(),
            order: VecDeque::new(),
            cached_len: 0,
            cached_bytes: 0,
            cache_bytes_max,
            next_ticket: 0,
            live: Live::default(),
            deferred: None,
        }
    }

    /// The state is pinned for a checkpoint: until [`Fragments::unpin`], nothing that it names is
    /// forgotten.
    pub fn pin(&mut self) {
        self.deferred = Some(Vec::new());
        let before = std::mem::take(&mut self.live.dying);
        for (segment, len) in before {
            *self.live.dying_pinned.entry(segment).or_default() += len;
        }
    }

    /// The checkpoint names all it has to, or was given up.
    pub fn unpin(&mut self) {
        let deferred = self.deferred.take().unwrap_or_default();
        deferred.into_iter().for_each(|op| self.forget(op, None));
    }

    /// The checkpoint is durable: what went before its pin is of no use to anybody.
    pub fn settle(&mut self) {
        for (segment, len) in std::mem::take(&mut self.live.dying_pinned) {
            self.live.sub(segment, len);
        }
    }

    /// Bytes in use in a segment.
    pub fn live_in(&self, segment: FileId) -> u64 {
        self.live.bytes.get(&segment).copied().unwrap_or(0)
    }

    /// Bytes in use in all segments.
    pub fn live_bytes(&self) -> u64 {
        self.live.total
    }

    /// Where the log holds a fragment, with its checksum.
    pub fn place(&self, op: OpId) -> Option<(Place, u32)> {
        let entry = self.entries.get(&op)?;
        entry.place.map(|place| (place, entry.crc))
    }

    /// A fragment that a checkpoint names. What a later record said already stands.
    pub fn fill(&mut self, op: OpId, place: Place, crc: u32) {
        if !self.entries.contains_key(&op) {
            self.replay(op, EXECUTED, place, crc);
        }
    }

    /// The same fragment lies at another place now, if it still lay at `from`.
    pub fn moved(&mut self, op: OpId, from: Place, to: Place) {
        if let Some(entry) = self.entries.get_mut(&op).filter(|entry| entry.place == Some(from)) {
            entry.place = Some(to);
            self.live.sub(from.segment, u64::from(from.len));
            self.live.add(to);
        }
    }

    /// Forgets all but what is wanted: for when too many values left at once to be named.
    pub fn retain(&mut self, wanted: impl Fn(OpId, u64) -> bool) {
        let unwanted = |(op, entry): (&OpId, &Entry)| (!wanted(*op, entry.slot)).then_some(*op);
        let gone: Vec<OpId> = self.entries.iter().filter_map(unwanted).collect();
        gone.into_iter().for_each(|op| self.forget(op, None));
    }

    /// A fragment whose record was handed to the log. `cost`: the bytes of memory that it pins.
    /// An operation that was opened again is in the later slot: what comes late of the earlier one,
    /// which is null, takes nothing from it.
    pub fn insert(&mut self, op: OpId, slot: u64, bytes: Slice, cost: usize, crc: u32) {
        if self.is_of_later_slot(op, slot) {
            return;
        }
        let old = self.entries.insert(op, Entry { place: None, slot, crc, cached: None });
        self.drop_place(&old);
        self.uncount(old);
        self.keep(op, bytes, cost);
        self.evict();
    }

    /// A fragment found in the log at start-up.
    pub fn replay(&mut self, op: OpId, slot: u64, place: Place, crc: u32) {
        if self.is_of_later_slot(op, slot) {
            return;
        }
        let entry = Entry { place: Some(place), slot, crc, cached: None };
        let old = self.entries.insert(op, entry);
        self.drop_place(&old);
        self.live.add(place);
    }

    fn drop_place(&mut self, entry: &Option<Entry>) {
        if let Some(place) = entry.as_ref().and_then(|entry| entry.place) {
            self.live.sub(place.segment, u64::from(place.len));
        }
    }

    fn is_of_later_slot(&self, op: OpId, slot: u64) -> bool {
        self.entries.get(&op).is_some_and(|entry| entry.slot > slot)
    }

    /// The log says where the record lies. False: the fragment was forgotten meanwhile.
    pub fn placed(&mut self, op: OpId, slot: u64, place: Place) -> bool {
        let entry = self.entries.get_mut(&op).filter(|entry| entry.slot == slot);
        let Some(entry) = entry else { return false };
        if let Some(old) = entry.place.replace(place) {
            self.live.sub(old.segment, u64::from(old.len));
        }
        self.live.add(place);
        self.evict();
        true
    }

    /// Bytes read from the log, kept for the next reader.
    pub fn cache(&mut self, op: OpId, bytes: Slice, cost: usize) {
        if self.entries.get(&op).is_some_and(|entry| entry.cached.is_none()) {
            self.keep(op, bytes, cost);
            self.evict();
        }
    }

    fn keep(&mut self, op: OpId, bytes: Slice, cost: usize) {
        let Some(entry) = self.entries.get_mut(&op) else { return };
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        entry.cached = Some(Cached { bytes, cost: cost as u32, ticket });
        self.order.push_back((op, ticket));
        self.cached_len += 1;
        self.cached_bytes += cost;
    }

    fn uncount(&mut self, removed: Option<Entry>) {
        if let Some(cached) = removed.and_then(|entry| entry.cached) {
            self.cached_len -= 1;
            self.cached_bytes -= cached.cost as usize;
        }
    }

    fn evict(&mut self) {
        let mut turns = self.order.len();
        while self.cached_bytes > self.cache_bytes_max && turns > 0 {
            turns -= 1;
            let Some((op, ticket)) = self.order.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&op) else { continue };
            let Some(cached) = entry.cached.take_if(|cached| cached.ticket == ticket) else {
                continue;
            };
            if entry.place.is_none() {
                entry.cached = Some(cached);
                self.order.push_back((op, ticket));
                continue;
            }
            self.cached_len -= 1;
            self.cached_bytes -= cached.cost as usize;
        }
        // Places in the order outlive what was forgotten: swept when they are the larger half.
        if self.order.len() > 2 * self.cached_len + 64 {
            let entries = &self.entries;
            self.order.retain(|(op, ticket)| {
                let cached = entries.get(op).and_then(|entry| entry.cached.as_ref());
                cached.is_some_and(|cached| cached.ticket == *ticket)
            });
        }
    }

    /// Where the fragment of this operation is, if this node has it.
    /// PROTOCOL 3.1-e
    pub fn find(&self, op: OpId) -> Option<Fetch> {
        let entry = self.entries.get(&op)?;
        match (&entry.cached, entry.place) {
            (Some(cached), _) => Some(Fetch::Memory(cached.bytes.clone())),
            (None, Some(place)) => Some(Fetch::Disk { place, crc: entry.crc }),
            (None, None) => None,
        }
    }

    pub fn contains(&self, op: OpId) -> bool {
        self.entries.contains_key(&op)
    }

    /// Records of slots below `exec` told of it, and the checkpoint that replay began at does not
    /// name it. One of a later slot may have told of it again.
    pub fn discard(&mut self, op: OpId, exec: u64) {
        if self.entries.get(&op).is_none_or(|entry| entry.slot >= exec) {
            return;
        }
        let removed = self.entries.remove(&op);
        self.drop_place(&removed);
    }

    /// The slot was decided null, or the value is not live any more: nobody will ask.
    pub fn forget(&mut self, op: OpId, slot: Option<u64>) {
        if slot.is_some_and(|slot| self.entries.get(&op).is_none_or(|entry| entry.slot != slot)) {
            return;
        }
        if slot.is_none()
            && let Some(deferred) = &mut self.deferred
        {
            return deferred.push(op);
        }
        let removed = self.entries.remove(&op);
        match slot {
            Some(_) => self.drop_place(&removed),
            // PROTOCOL 9.2-c: the newest checkpoint may name it.
            None => {
                if let Some(place) = removed.as_ref().and_then(|entry| entry.place) {
                    *self.live.dying.entry(place.segment).or_default() += u64::from(place.len);
                }
            }
        }
        self.uncount(removed);
    }

    /// It cannot be read: it is not here, whatever a checkpoint says.
    pub fn lose(&mut self, op: OpId) {
        let removed = self.entries.remove(&op);
        self.drop_place(&removed);
        self.uncount(removed);
    }

    /// Bytes of memory charged to the cache.
    #[cfg(test)]
    fn cached_bytes(&self) -> usize {
        self.cached_bytes
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

    #[test]
    fn order_does_not_grow_without_bound() {
        let pool = Pool::new(1 << 20);
        let mut fragments = Fragments::new(200);
        let op = OpId::new(0, 1, 1, 1);
        for slot in 0..1000 {
            fragments.insert(op, slot, pool.copy(&[0; 100]).unwrap(), 100, 0);
            fragments.placed(op, slot, Place { segment: 1, offset: 0, len: 100 });
        }
        assert_eq!(fragments.cached_bytes(), 100);
        assert!(fragments.order.len() <= 66, "{}", fragments.order.len());
    }
}
