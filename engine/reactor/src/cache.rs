//! Fragments in memory: what was used more than once stays, what is read once passes through.
//!
//! S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): what is new
//! stands in a small queue, a tenth of the memory. What is asked for while it stands there moves to the
//! main queue, and what is not goes, and is remembered by name for a while: if it comes back in that
//! time it goes to the main queue at once. In the main queue an entry that was used goes round again.
//! So a scan of everything, or a stream of writes that nobody reads, passes through the tenth and leaves
//! what is hot where it is.
//!
//! A fragment of which there is a newer version goes before all of that: those who read want the newest, and
//! old versions, of which etcd's clients keep many, are read rarely.
//!
//! Queues are rows of entries that know their neighbours: what goes leaves nothing behind that would
//! have to be cleared away at once, later.
//!
//! Invariant: the cost of all entries is at most the bound after every call, but for those that the log
//! does not hold yet, which stay. What would break it: an entry in no queue.

use crate::table::Table;
use racos_buffer::Slice;
use racos_machine::OpId;

/// The share of the small queue: a tenth.
const SMALL_SHARE: usize = 10;
/// An entry that was used so often, or more, goes round so often.
const USES_MAX: u8 = 3;
/// So many entries of the main queue go round at most before one goes, used or not.
const ROUND_MAX: usize = 64;
/// Names of entries that went, for each that is there, and at least.
const GHOSTS_MIN: usize = 64;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Queue {
    /// The log does not hold it yet: in no queue.
    #[default]
    Held,
    Small,
    Main,
    Superseded,
}

/// The neighbours of an entry in its queue, by number.
#[derive(Debug, Clone, Copy, Default)]
struct Links {
    older: Option<u32>,
    newer: Option<u32>,
}

#[derive(Debug, Default)]
struct Cached {
    bytes: Slice,
    /// Memory that this entry is charged for: its share of the block that it pins.
    cost: u32,
    uses: u8,
    /// There is a newer version.
    is_old: bool,
    queue: Queue,
    links: Links,
}

/// What stands in a queue.
trait Linked: Default {
    fn links(&mut self) -> &mut Links;
}

impl Linked for Cached {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// The name of an entry that went is its neighbours alone.
impl Linked for Links {
    fn links(&mut self) -> &mut Links {
        self
    }
}

/// A queue of entries of a table.
#[derive(Debug, Default)]
struct Row {
    oldest: Option<u32>,
    newest: Option<u32>,
}

impl Row {
    fn push<T: Linked>(&mut self, table: &mut Table<T>, number: u32) {
        *table.at_mut(number).links() = Links { older: self.newest, newer: None };
        match self.newest.replace(number) {
            Some(before) => table.at_mut(before).links().newer = Some(number),
            None => self.oldest = Some(number),
        }
    }

    fn unlink<T: Linked>(&mut self, table: &mut Table<T>, number: u32) {
        let Links { older, newer } = *table.at_mut(number).links();
        match older {
            Some(older) => table.at_mut(older).links().newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => table.at_mut(newer).links().older = older,
            None => self.newest = older,
        }
    }
}

/// Hits and misses of those who asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CacheCounts {
    pub hits: u64,
    pub misses: u64,
}

#[derive(Default)]
pub(crate) struct Cache {
    entries: Table<Cached>,
    small: Row,
    main: Row,
    superseded: Row,
    /// Names of what went from the small queue.
    ghosts: Table<Links>,
    ghost_row: Row,
    small_bytes: usize,
    bytes: usize,
    bytes_max: usize,
    pub counts: CacheCounts,
}

impl Cache {
    pub fn new(bytes_max: usize) -> Cache {
        Cache { bytes_max, ..Cache::default() }
    }

    /// Bytes that all of them are charged for.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn contains(&self, op: OpId) -> bool {
        self.entries.contains(op)
    }

    /// The bytes for a reader.
    pub fn get(&mut self, op: OpId) -> Option<Slice> {
        let Some(entry) = self.entries.get_mut(op) else {
            self.counts.misses += 1;
            return None;
        };
        self.counts.hits += 1;
        entry.uses = (entry.uses + 1).min(USES_MAX);
        Some(entry.bytes.clone())
    }

    /// Bytes that are to be kept until [`Cache::release`], since they are nowhere else.
    pub fn hold(&mut self, op: OpId, bytes: Slice, cost: usize) {
        self.put(op, bytes, cost);
        self.evict();
    }

    /// Bytes that were read, for the next reader.
    pub fn keep(&mut self, op: OpId, bytes: Slice, cost: usize) {
        let number = self.put(op, bytes, cost);
        self.enqueue(op, number);
        self.evict();
    }

    /// What was held may go now.
    pub fn release(&mut self, op: OpId) {
        let Some(number) = self.entries.find(op) else { return };
        if self.entries.at(number).queue == Queue::Held {
            self.enqueue(op, number);
            self.evict();
        }
    }

    /// There is a newer version: it goes first, once it may go.
    pub fn supersede(&mut self, op: OpId) {
        let Some(number) = self.entries.find(op) else { return };
        let entry = self.entries.at_mut(number);
        if std::mem::replace(&mut entry.is_old, true) || entry.queue == Queue::Held {
            return;
        }
        self.unlink(number);
        self.enqueue(op, number);
    }

    pub fn remove(&mut self, op: OpId) {
        if let Some(number) = self.entries.find(op) {
            self.take(number);
        }
        self.forget_ghosts();
    }

    /// Takes an entry out of its queue, and out.
    fn take(&mut self, number: u32) {
        self.unlink(number);
        self.bytes -= self.entries.at(number).cost as usize;
        self.entries.remove_at(number);
    }

    /// Takes an entry out of its queue.
    fn unlink(&mut self, number: u32) {
        let entry = self.entries.at(number);
        let cost = entry.cost as usize;
        match entry.queue {
            Queue::Held => {}
            Queue::Small => {
                self.small_bytes -= cost;
                self.small.unlink(&mut self.entries, number);
            }
            Queue::Main => self.main.unlink(&mut self.entries, number),
            Queue::Superseded => self.superseded.unlink(&mut self.entries, number),
        }
    }

    fn put(&mut self, op: OpId, bytes: Slice, cost: usize) -> u32 {
        self.remove(op);
        self.bytes += cost;
        let entry = Cached { bytes, cost: cost as u32, ..Cached::default() };
        self.entries.put(op, entry).expect("the one before was removed")
    }

    /// An entry that went a short while ago, and is wanted again, is of the main queue.
    fn enqueue(&mut self, op: OpId, number: u32) {
        let entry = self.entries.at_mut(number);
        if entry.is_old {
            entry.queue = Queue::Superseded;
            self.superseded.push(&mut self.entries, number);
        } else if let Some(ghost) = self.ghosts.find(op) {
            self.ghost_row.unlink(&mut self.ghosts, ghost);
            self.ghosts.remove_at(ghost);
            entry.queue = Queue::Main;
            self.main.push(&mut self.entries, number);
        } else {
            entry.queue = Queue::Small;
            self.small_bytes += entry.cost as usize;
            self.small.push(&mut self.entries, number);
        }
    }

    fn evict(&mut self) {
        while self.bytes > self.bytes_max {
            if let Some(number) = self.superseded.oldest {
                self.take(number);
                continue;
            }
            let from_small = self.small_bytes > self.bytes_max / SMALL_SHARE;
            let went = match from_small {
                true => self.evict_small() || self.evict_main(),
                false => self.evict_main() || self.evict_small(),
            };
            if !went {
                break; // the rest is held
            }
        }
        self.forget_ghosts();
    }

    /// Takes the oldest of the small queue out of it; false if there is none.
    fn evict_small(&mut self) -> bool {
        let Some(number) = self.small.oldest else { return false };
        let entry = self.entries.at_mut(number);
        if entry.uses > 0 {
            (entry.uses, entry.queue) = (0, Queue::Main);
            self.small_bytes -= entry.cost as usize;
            self.small.unlink(&mut self.entries, number);
            self.main.push(&mut self.entries, number);
            return true;
        }
        let op = self.entries.op_at(number);
        self.take(number);
        if let Ok(ghost) = self.ghosts.put(op, Links::default()) {
            self.ghost_row.push(&mut self.ghosts, ghost);
        }
        true
    }

    /// Lets the oldest of the main queue go that was not used since it last came by; false if there
    /// is none.
    fn evict_main(&mut self) -> bool {
        for round in 0..=ROUND_MAX {
            let Some(number) = self.main.oldest else { return false };
            let entry = self.entries.at_mut(number);
            if entry.uses == 0 || round == ROUND_MAX {
                self.take(number);
                break;
            }
            entry.uses -= 1;
            self.main.unlink(&mut self.entries, number);
            self.main.push(&mut self.entries, number);
        }
        true
    }

    fn forget_ghosts(&mut self) {
        while self.ghosts.len() > self.entries.len().max(GHOSTS_MIN) {
            let Some(oldest) = self.ghost_row.oldest else { return };
            self.ghost_row.unlink(&mut self.ghosts, oldest);
            self.ghosts.remove_at(oldest);
        }
    }

    #[cfg(test)]
    fn names(&self) -> usize {
        self.ghosts.len()
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
    fn what_is_superseded_goes_before_all_that_is_not() {
        let mut reader = Reader::new();
        let bytes = reader.bytes.clone();
        // Each is written anew once it was read: of a hundred, fifty are the newest.
        for key in 0..50 {
            reader.cache.hold(op(key), bytes.clone(), 100);
            reader.cache.release(op(key));
            assert!(reader.read(key) && reader.read(key));
            reader.cache.hold(op(key + 1_000), bytes.clone(), 100);
            reader.cache.supersede(op(key));
            reader.cache.release(op(key + 1_000));
        }
        (0..50).for_each(|key| reader.cache.supersede(op(key)));
        assert_eq!(reader.cache.bytes(), 10_000, "there is room for all of them");
        assert_eq!(reader.hits(0..3), 3, "they are there until memory is wanted");
        // One that is nowhere else yet stays, and goes once the log has it.
        reader.cache.hold(op(2_000), bytes, 100);
        reader.cache.supersede(op(2_000));
        for other in 0..49 {
            reader.read(5_000 + other);
            assert!(reader.cache.contains(op(2_000)));
        }
        assert_eq!(reader.hits(1_000..1_050), 50, "none of the newest went");
        assert!((0..50).all(|key| !reader.cache.contains(op(key))));
        reader.cache.release(op(2_000));
        reader.read(6_000);
        assert!(!reader.cache.contains(op(2_000)));
        assert_eq!(reader.hits(1_000..1_050), 50);
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
        assert!(reader.cache.names() <= 100, "{}", reader.cache.names());
        (0..60_000).for_each(|counter| reader.cache.remove(op(counter)));
        assert_eq!((reader.cache.bytes(), reader.cache.small_bytes), (0, 0));
    }
}
