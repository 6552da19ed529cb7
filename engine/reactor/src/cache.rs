//! Fragments in memory: what was used more than once stays, what is read once passes through.
//!
//! S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): what is new
//! stands in a small queue, a tenth of the memory. What is asked for while it stands there moves to the
//! main queue, and what is not goes, and is remembered by name for a while: if it comes back in that
//! time it goes to the main queue at once. In the main queue an entry that was used goes round again.
//! So a scan of everything, or a stream of writes that nobody reads, passes through the tenth and leaves
//! what is hot where it is.
//!
//! Invariant: the cost of all entries is at most the bound after every call, but for those that the log
//! does not hold yet, which stay. What would break it: an entry in no queue.

use racos_buffer::Slice;
use racos_machine::OpId;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// The share of the small queue: a tenth.
const SMALL_SHARE: usize = 10;
/// An entry that was used so often, or more, goes round so often.
const USES_MAX: u8 = 3;
/// Names of entries that went, for each that is there, and at least.
const GHOSTS_MIN: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    /// The log does not hold it yet.
    Held,
    Small,
    Main,
}

#[derive(Debug)]
struct Cached {
    bytes: Slice,
    /// Memory that this entry is charged for: its share of the block that it pins.
    cost: u32,
    uses: u8,
    queue: Queue,
    /// Tells a later caching of the same fragment from this one in the queues.
    ticket: u64,
}

/// Hits and misses of those who asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CacheCounts {
    pub hits: u64,
    pub misses: u64,
}

pub(crate) struct Cache {
    entries: FxHashMap<OpId, Cached>,
    small: VecDeque<(OpId, u64)>,
    main: VecDeque<(OpId, u64)>,
    /// Names of what went from the small queue, oldest first, and with the ticket of its going.
    ghosts: FxHashMap<OpId, u64>,
    ghost_order: VecDeque<(OpId, u64)>,
    small_bytes: usize,
    bytes: usize,
    bytes_max: usize,
    next_ticket: u64,
    pub counts: CacheCounts,
}

impl Cache {
    pub fn new(bytes_max: usize) -> Cache {
        Cache {
            entries: FxHashMap::default(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: FxHashMap::default(),
            ghost_order: VecDeque::new(),
            small_bytes: 0,
            bytes: 0,
            bytes_max,
            next_ticket: 0,
            counts: CacheCounts::default(),
        }
    }

    /// Bytes that all of them are charged for.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn contains(&self, op: OpId) -> bool {
        self.entries.contains_key(&op)
    }

    /// The bytes for a reader.
    pub fn get(&mut self, op: OpId) -> Option<Slice> {
        let Some(entry) = self.entries.get_mut(&op) else {
            self.counts.misses += 1;
            return None;
        };
        self.counts.hits += 1;
        entry.uses = (entry.uses + 1).min(USES_MAX);
        Some(entry.bytes.clone())
    }

    /// Bytes that are to be kept until [`Cache::release`], since they are nowhere else.
    pub fn hold(&mut self, op: OpId, bytes: Slice, cost: usize) {
        self.put(op, bytes, cost, Queue::Held);
        self.evict();
    }

    /// Bytes that were read, for the next reader.
    pub fn keep(&mut self, op: OpId, bytes: Slice, cost: usize) {
        let queue = self.queue_for(op);
        self.put(op, bytes, cost, queue);
        self.evict();
    }

    /// What was held may go now.
    pub fn release(&mut self, op: OpId) {
        let queue = self.queue_for(op);
        let Some(entry) = self.entries.get_mut(&op) else { return };
        if entry.queue == Queue::Held {
            entry.queue = queue;
            let (cost, ticket) = (entry.cost as usize, entry.ticket);
            self.enqueue(op, ticket, cost, queue);
            self.evict();
        }
    }

    pub fn remove(&mut self, op: OpId) {
        if let Some(entry) = self.entries.remove(&op) {
            self.bytes -= entry.cost as usize;
            if entry.queue == Queue::Small {
                self.small_bytes -= entry.cost as usize;
            }
        }
        self.sweep();
    }

    fn queue_for(&mut self, op: OpId) -> Queue {
        match self.ghosts.remove(&op) {
            Some(_) => Queue::Main,
            None => Queue::Small,
        }
    }

    fn put(&mut self, op: OpId, bytes: Slice, cost: usize, queue: Queue) {
        self.remove(op);
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.bytes += cost;
        self.entries.insert(op, Cached { bytes, cost: cost as u32, uses: 0, queue, ticket });
        self.enqueue(op, ticket, cost, queue);
    }

    fn enqueue(&mut self, op: OpId, ticket: u64, cost: usize, queue: Queue) {
        match queue {
            Queue::Held => {}
            Queue::Small => {
                self.small_bytes += cost;
                self.small.push_back((op, ticket));
            }
            Queue::Main => self.main.push_back((op, ticket)),
        }
    }

    fn evict(&mut self) {
        while self.bytes > self.bytes_max {
            let from_small = self.small_bytes > self.bytes_max / SMALL_SHARE;
            let went = match from_small {
                true => self.evict_small() || self.evict_main(),
                false => self.evict_main() || self.evict_small(),
            };
            if !went {
                return; // the rest is held
            }
        }
        self.sweep();
    }

    /// Takes the oldest of the small queue out of it; false if there is none.
    fn evict_small(&mut self) -> bool {
        while let Some((op, ticket)) = self.small.pop_front() {
            let Some(entry) = self.entries.get_mut(&op).filter(|it| it.ticket == ticket) else {
                continue;
            };
            self.small_bytes -= entry.cost as usize;
            if entry.uses > 0 {
                (entry.uses, entry.queue) = (0, Queue::Main);
                self.main.push_back((op, ticket));
            } else {
                self.bytes -= entry.cost as usize;
                self.entries.remove(&op);
                self.ghosts.insert(op, ticket);
                self.ghost_order.push_back((op, ticket));
            }
            return true;
        }
        false
    }

    /// Lets the oldest of the main queue go that was not used since it last came by; false if there
    /// is none.
    fn evict_main(&mut self) -> bool {
        while let Some((op, ticket)) = self.main.pop_front() {
            let Some(entry) = self.entries.get_mut(&op).filter(|it| it.ticket == ticket) else {
                continue;
            };
            if entry.uses > 0 {
                entry.uses -= 1;
                self.main.push_back((op, ticket));
                continue;
            }
            self.bytes -= entry.cost as usize;
            self.entries.remove(&op);
            return true;
        }
        false
    }

    /// Names in the queues outlive what was removed: swept when they are the larger half.
    fn sweep(&mut self) {
        let most = 2 * self.entries.len() + GHOSTS_MIN;
        let (entries, ghosts) = (&self.entries, &self.ghosts);
        for queue in [&mut self.small, &mut self.main] {
            if queue.len() > most {
                queue.retain(|(op, ticket)| {
                    entries.get(op).is_some_and(|entry| entry.ticket == *ticket)
                });
            }
        }
        if self.ghost_order.len() > 2 * most {
            self.ghost_order.retain(|(op, ticket)| ghosts.get(op) == Some(ticket));
        }
        while self.ghosts.len() > self.entries.len().max(GHOSTS_MIN) {
            let Some((op, ticket)) = self.ghost_order.pop_front() else { return };
            if self.ghosts.get(&op) == Some(&ticket) {
                self.ghosts.remove(&op);
            }
        }
    }

    #[cfg(test)]
    fn names(&self) -> usize {
        self.small.len() + self.main.len() + self.ghost_order.len() + self.ghosts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use racos_buffer::Pool;

    fn op(counter: u64) -> OpId {
        OpId::new(0, 1, 1, counter)
    }

    /// A cache of 100 entries of 100 bytes, and what reads through it.
    struct Reader {
        cache: Cache,
        bytes: Slice,
    }

    impl Reader {
        fn new() -> Reader {
            let pool = Pool::new(1 << 20);
            Reader { cache: Cache::new(10_000), bytes: pool.copy(&[1; 100]).unwrap() }
        }

        fn read(&mut self, counter: u64) -> bool {
            let hit = self.cache.get(op(counter)).is_some();
            if !hit {
                self.cache.keep(op(counter), self.bytes.clone(), 100);
            }
            assert!(self.cache.bytes() <= 10_000);
            hit
        }

        fn hits(&mut self, hot: std::ops::Range<u64>) -> usize {
            hot.filter(|counter| self.read(*counter)).count()
        }
    }

    /// tests PROTOCOL 9.4-e
    #[test]
    fn a_scan_does_not_flush_what_is_hot() {
        let mut reader = Reader::new();
        for _ in 0..4 {
            reader.hits(0..80);
        }
        assert_eq!(reader.hits(0..80), 80);
        reader.hits(1_000..3_000);
        assert!(reader.hits(0..80) >= 76, "a scan of twenty times the cache");
        assert!(reader.cache.counts.hits > 300 && reader.cache.counts.misses >= 2080);
    }

    #[test]
    fn a_scan_between_hot_reads_costs_them_nothing() {
        let mut reader = Reader::new();
        let mut hits = 0;
        for round in 0..40 {
            hits += reader.hits(0..50);
            reader.hits(1_000 + round * 100..1_100 + round * 100);
        }
        assert!(hits >= 40 * 50 - 150, "{hits} of {}", 40 * 50);
    }

    #[test]
    fn what_becomes_hot_takes_the_place_of_what_was() {
        let mut reader = Reader::new();
        for _ in 0..6 {
            reader.hits(0..80);
        }
        for _ in 0..12 {
            reader.hits(500..580);
        }
        assert!(reader.hits(500..580) >= 76);
    }

    #[test]
    fn what_is_held_stays_and_names_are_bounded() {
        let mut reader = Reader::new();
        let bytes = reader.bytes.clone();
        (0..300).for_each(|counter| reader.cache.hold(op(counter), bytes.clone(), 100));
        assert_eq!(reader.cache.bytes(), 30_000, "none of them is in the log yet");
        (0..300).for_each(|counter| reader.cache.release(op(counter)));
        assert_eq!(reader.cache.bytes(), 10_000);
        for round in 0..50_000 {
            reader.read(10_000 + round);
            if round % 3 == 0 {
                reader.cache.remove(op(10_000 + round));
            }
        }
        assert!(reader.cache.names() < 1_500, "{}", reader.cache.names());
        (0..60_000).for_each(|counter| reader.cache.remove(op(counter)));
        assert_eq!((reader.cache.bytes(), reader.cache.small_bytes), (0, 0));
    }
}
