//! One node's log: records, group commit, what a power cut leaves of it.
//!
//! Invariant: `said` holds exactly the promises (PROPOSE, VOTE, STATE) of the flushed part, the
//! first record of a key winning; what is flushed is never lost.

use racos_protocol::{Ballot, BatchInfo, Record, Release, Slot, Value};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
pub enum Entry {
    Record {
        record: Record,
        release: Release,
        batch: Option<BatchInfo>,
    },
    /// An operation of the queue policy and this node's fragment of it.
    Stored {
        batch: BatchInfo,
    },
    /// A decision, written lazily; with the batch's metas unless an earlier record has them.
    Decided {
        slot: Slot,
        value: Value,
        batch: Option<BatchInfo>,
    },
}

/// What makes a message unique at its sender (PROTOCOL 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Propose(Slot),
    Vote(Slot, u32),
    State(Slot, u32),
}

#[derive(Clone, Debug)]
pub struct Log {
    /// Members: a NOHOLD range covers every n-th slot.
    n: usize,
    pub entries: Vec<Entry>,
    /// Entries below are on stable storage.
    flushed: usize,
    /// The flush in progress ends here.
    flushing: Option<usize>,
    said: BTreeMap<Key, Ballot>,
    reserved: Slot,
    /// Slots whose metas some record carries, flushed or not.
    metas: BTreeSet<Slot>,
}

impl Log {
    pub fn new(n: usize) -> Log {
        Log {
            n,
            entries: Vec::new(),
            flushed: 0,
            flushing: None,
            said: BTreeMap::new(),
            reserved: 0,
            metas: BTreeSet::new(),
        }
    }

    pub fn append(&mut self, entry: Entry) {
        self.metas.extend(metas_of(&entry));
        self.entries.push(entry);
    }

    /// Starts a flush of everything appended, unless one is in progress or there is nothing to do.
    /// Decisions alone are not worth a flush.
    pub fn begin_flush(&mut self) -> bool {
        let waiting = &self.entries[self.flushed..];
        let worth = waiting.iter().any(|entry| !matches!(entry, Entry::Decided { .. }));
        if self.flushing.is_some() || !worth {
            return false;
        }
        self.flushing = Some(self.entries.len());
        true
    }

    /// Ends the flush in progress: what became durable, in order.
    pub fn end_flush(&mut self) -> Vec<Entry> {
        let Some(end) = self.flushing.take() else { return Vec::new() };
        let group = self.entries[self.flushed..end].to_vec();
        for entry in &group {
            if let Entry::Record { record, .. } = entry {
                self.promise(*record);
            }
        }
        self.flushed = end;
        group
    }

    /// Power is cut: the group in flight is kept whole or lost whole, the rest is lost.
    pub fn cut(&mut self, keep_group: bool) -> Vec<Entry> {
        let group = if keep_group { self.end_flush() } else { Vec::new() };
        self.flushing = None;
        self.entries.truncate(self.flushed);
        self.metas = self.entries.iter().filter_map(metas_of).collect();
        group
    }

    /// Votes said that are weak.
    pub fn weak_votes(&self) -> usize {
        self.said.values().filter(|said| matches!(said, Ballot::Weak(_))).count()
    }

    /// The content of the flushed record with this key: null is `For(Null)`.
    pub fn durable(&self, key: Key) -> Option<Ballot> {
        self.said.get(&key).copied()
    }

    /// Highest phase of which anything is said.
    pub fn phase_max(&self) -> u32 {
        let phase = |key: &Key| match *key {
            Key::Propose(_) => 0,
            Key::Vote(_, phase) | Key::State(_, phase) => phase,
        };
        self.said.keys().map(phase).max().unwrap_or(0)
    }

    /// Own slots below may be opened or skipped, durably.
    pub fn reserved(&self) -> Slot {
        self.reserved
    }

    /// Whether some record, flushed or not, carries the metas of the slot.
    pub fn has_metas(&self, slot: Slot) -> bool {
        self.metas.contains(&slot)
    }

    fn promise(&mut self, record: Record) {
        match record {
            Record::Hold { slot, digest } => {
                self.first(Key::Propose(slot), Ballot::For(Value::Batch(digest)));
            }
            Record::Propose { slot, candidate } => {
                self.first(Key::Propose(slot), Ballot::For(Value::Batch(candidate)));
            }
            Record::Vote { slot, phase, ballot } => self.first(Key::Vote(slot, phase), ballot),
            Record::State { slot, phase, value } => {
                self.first(Key::State(slot, phase), Ballot::For(value));
            }
            Record::Reserve { to } => self.reserved = self.reserved.max(to),
            Record::NoHold { from, to } => {
                for slot in (from..to).step_by(self.n) {
                    self.first(Key::Propose(slot), Ballot::For(Value::Null));
                }
            }
            Record::SegmentOnly { .. } => {}
        }
    }

    fn first(&mut self, key: Key, said: Ballot) {
        self.said.entry(key).or_insert(said);
    }
}

fn metas_of(entry: &Entry) -> Option<Slot> {
    match entry {
        Entry::Record {
            record: Record::Hold { slot, .. } | Record::SegmentOnly { slot, .. },
            ..
        }
        | Entry::Decided { slot, batch: Some(_), .. } => Some(*slot),
        _ => None,
    }
}
