//! What a node hands to its log, and what the log tells of it.
//!
//! Invariant: records go to the log in the order in which they were handed over, also those that it
//! could not take at once; what waits for a flush is said only after it (PROTOCOL 4.1-h), in that order.
//! What would break it: a record that overtakes [`Waiting`] ones, or a release given back before the log
//! has reported its flush.

use crate::batch::Batch;
use crate::hosting::HostedSpot;
use crate::node::Node;
use crate::record;
use racos_buffer::Slice;
use racos_machine::OpId;
use racos_net::Link;
use racos_protocol::{Input, Nanos, Record, Release, Slot};
use racos_storage::device::Device;
use racos_storage::{Class, Event, Full, Place, RecordId};
use std::collections::VecDeque;
use std::rc::Rc;

/// A disk that has completed nothing of what it was asked for so long hangs: clients are sent to other
/// nodes until it goes on.
const HANGS_NS: Nanos = 1_000_000_000;

/// What of a record is to be found again.
pub(crate) enum Stored {
    /// A batch; `fragments`: with this node's fragments.
    Batch { slot: Slot, batch: Rc<Batch>, fragments: bool },
    /// A batch without a slot, with this node's fragments.
    Ahead { batch: Rc<Batch> },
    /// A repaired fragment.
    Repaired { slot: Slot, op: OpId },
    /// Fragments copied from another segment: operation, where it lay, offset in the body.
    Copies { moves: Vec<(OpId, Place, u32)> },
    /// Another node's fragments, kept while it is missing.
    Hosted { node: u8, spots: Vec<HostedSpot> },
    /// Which disk another node has.
    Note { node: u8 },
}

/// A record that the log could not take yet. Order is kept.
pub(crate) struct Waiting {
    pub kind: u8,
    pub head: Vec<u8>,
    pub body: Vec<Slice>,
    pub release: Release,
    pub stored: Option<Stored>,
}

/// What a read of the log is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum DiskRead {
    /// The own fragment, for a read of this node.
    Own {
        read: u64,
        op: u128,
        at: Place,
    },
    /// A fragment for another node's read.
    Serve {
        to: u8,
        read: u64,
        op: u128,
        at: Place,
    },
    /// The fragment of a node that was missing, for itself.
    Hosted {
        to: u8,
        read: u64,
        op: u128,
        crc: u32,
    },
    /// A batch that a node asked for.
    Meta {
        to: u8,
        slot: Slot,
    },
    /// A batch of a range of facts.
    Facts {
        to: u8,
        job: u64,
        index: usize,
    },
    /// What is read only to see whether it is good.
    Scrub,
    /// A piece of a checkpoint that a node takes.
    Snap {
        to: u8,
        generation: u64,
        index: u32,
    },
    /// A stretch of a segment that is to be used again; one large fragment of it.
    Reclaim,
    ReclaimOne {
        op: u128,
    },
}

/// What is on its way to the log and from it.
pub(crate) struct Journal {
    /// What may be said when a record is flushed; where it lies is told before that. Both in order.
    releases: VecDeque<(RecordId, Release)>,
    placing: VecDeque<(RecordId, Stored)>,
    unappended: VecDeque<Waiting>,
    /// Reads of the log under way, by token, and tokens to be used again.
    reads: Vec<Option<DiskRead>>,
    reads_free: Vec<usize>,
    events: Vec<Event>,
    /// The record of decisions, while it is written.
    decisions: Vec<u8>,
    /// When the disk last completed something, or had nothing to do.
    disk_at: Nanos,
}

impl Journal {
    pub fn new(now: Nanos) -> Journal {
        Journal {
            releases: VecDeque::new(),
            placing: VecDeque::new(),
            unappended: VecDeque::new(),
            reads: Vec::new(),
            reads_free: Vec::new(),
            events: Vec::new(),
            decisions: Vec::new(),
            disk_at: now,
        }
    }

    /// Records that wait for the log or the disk.
    pub fn records(&self) -> usize {
        self.unappended.len() + self.releases.len() + self.placing.len()
    }

    pub fn reads_under_way(&self) -> usize {
        self.reads.len() - self.reads_free.len()
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// A turn begins. What a disk did while this loop stood still (replay, a process that was stopped)
    /// is looked at only after the requests that have come meanwhile: it does not count as hanging.
    pub(crate) fn begin_turn(&mut self, now: Nanos) {
        if now.saturating_sub(self.now) >= HANGS_NS {
            self.journal.disk_at = now;
        }
        self.now = now;
    }

    /// How long the disk has completed nothing of what it was asked, if that is too long.
    pub fn disk_hangs_ns(&self) -> Option<Nanos> {
        let hangs = self.now.saturating_sub(self.journal.disk_at);
        (hangs >= HANGS_NS).then_some(hangs)
    }

    pub(crate) fn persist(&mut self, record: Record, release: Release) {
        match record {
            Record::Vote { .. } if mutant!("votes not recorded") => {
                self.journal.releases.push_front((RecordId(0), release));
            }
            Record::Hold { slot, .. } => self.store(slot, record::kind::HOLD, release),
            Record::SegmentOnly { slot, .. } => {
                self.store(slot, record::kind::SEGMENT_ONLY, release)
            }
            _ => {
                let mut head = std::mem::take(&mut self.scratch);
                head.clear();
                let kind = record::put_record(&mut head, &record);
                self.append(kind, &head, &[], release, None);
                self.scratch = head;
            }
        }
    }

    /// Hands a record to the log, behind everything handed to it before.
    ///
    /// Decisions noted so far go first: a record for slot s implies that the decisions of all slots
    /// below s - alpha are in the log before it (`Recovery::finish` relies on it).
    pub(crate) fn append(
        &mut self,
        kind: u8,
        head: &[u8],
        body: &[Slice],
        release: Release,
        stored: Option<Stored>,
    ) {
        if !self.decided.is_empty() {
            let mut decisions = std::mem::take(&mut self.journal.decisions);
            self.decided.take(&mut decisions);
            self.append_now(record::kind::DECIDED, &decisions, &[], Release::Nothing, None);
            decisions.clear();
            self.journal.decisions = decisions;
        }
        self.append_now(kind, head, body, release, stored);
    }

    fn append_now(
        &mut self,
        kind: u8,
        head: &[u8],
        body: &[Slice],
        release: Release,
        stored: Option<Stored>,
    ) {
        if self.journal.unappended.is_empty()
            && let Ok(id) = self.append_to_log(kind, head, body)
        {
            return self.appended(id, release, stored);
        }
        let (head, body) = (head.to_vec(), body.to_vec());
        self.journal.unappended.push_back(Waiting { kind, head, body, release, stored });
    }

    fn append_to_log(&mut self, kind: u8, head: &[u8], body: &[Slice]) -> Result<RecordId, Full> {
        let until = record::needed_until(kind, head);
        self.log.append_until(kind, head, body, Class::Urgent, until)
    }

    /// Whether the log has taken everything that was to be said.
    pub(crate) fn nothing_unappended(&self) -> bool {
        self.journal.unappended.is_empty()
    }

    fn appended(&mut self, id: RecordId, release: Release, stored: Option<Stored>) {
        let early = match release {
            Release::Propose { .. } => mutant!("PROPOSE sent before its flush"),
            Release::Reserve { .. } => mutant!("reservation used before its flush"),
            _ => false,
        };
        if early {
            self.journal.releases.push_front((RecordId(0), release));
        } else if release != Release::Nothing {
            self.journal.releases.push_back((id, release));
        }
        if let Some(stored) = stored {
            self.journal.placing.push_back((id, stored));
        }
    }

    /// What becomes of a record when it is placed. Records are placed in order.
    pub(crate) fn placed_later(&mut self, id: RecordId, stored: Stored) {
        self.journal.placing.push_back((id, stored));
    }

    /// Tries again what the log could not take.
    fn append_waiting(&mut self) {
        while let Some(waiting) = self.journal.unappended.pop_front() {
            match self.append_to_log(waiting.kind, &waiting.head, &waiting.body) {
                Ok(id) => self.appended(id, waiting.release, waiting.stored),
                Err(_) => return self.journal.unappended.push_front(waiting),
            }
        }
    }

    /// Collects what the disk has done.
    pub(crate) fn reap(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.journal.events);
        self.log.poll(&mut events);
        let any = !events.is_empty();
        let has_read = events.iter().any(|event| matches!(event, Event::Read { .. }));
        for event in events.drain(..) {
            match event {
                Event::Placed { id, head, body, .. } => self.placed(id, head, body),
                Event::Flushed { up_to } => self.flushed(up_to),
                Event::Read { token, result } => self.on_disk_read(token, result.ok()),
                Event::Failed(what) => self.fail(format!("the disk failed: {what}")),
                Event::Marked { tag } => self.checkpoint_marked(tag),
                Event::SpaceLow { .. } | Event::SpaceBack => {}
            }
        }
        self.journal.events = events;
        self.append_waiting();
        if has_read {
            self.take_up_put_off();
        }
        if any || !(self.log.is_writing() || self.journal.reads_under_way() > 0) {
            self.journal.disk_at = self.now;
        }
        #[cfg(feature = "mutants")]
        self.flushed(RecordId(0));
        any
    }

    fn placed(&mut self, id: RecordId, head: Place, body: Place) {
        self.checkpoints.placed(id, body);
        let Some((_, stored)) = self.journal.placing.pop_front_if(|(of, _)| *of == id) else {
            return;
        };
        let (slot, batch, fragments) = match stored {
            Stored::Batch { slot, batch, fragments } => (slot, batch, fragments),
            Stored::Ahead { batch } => return self.ahead_placed(id, &batch, body),
            Stored::Repaired { slot, op } => {
                return match self.fragments.placed(op, slot, body) {
                    true => self.repair.placed(id, op),
                    // It went meanwhile, with its value or for a state that was taken from a peer.
                    false => self.repair.look_again(op, self.now),
                };
            }
            Stored::Copies { moves } => {
                for (op, from, offset) in moves {
                    if let Some(to) = body.part(offset, from.len) {
                        self.fragments.moved(op, from, to);
                    }
                }
                return self.reclaim.placed();
            }
            Stored::Hosted { node, spots } => return self.hosted_placed(node, &spots, body),
            Stored::Note { node } => return self.admission.placed(id, node),
        };
        if fragments {
            for spot in batch.slot_fragments() {
                if let Some(place) = body.part(spot.offset as u32, spot.len as u32)
                    && self.fragments.placed(spot.value.op, slot, place)
                {
                    self.repair.placed(id, spot.value.op);
                }
            }
        }
        match self.window.get_mut(&slot) {
            Some(known) => known.place = known.place.or(Some(head)),
            None => self.history.placed(slot, head),
        }
    }

    /// PROTOCOL 4.1-h, 13-d: what was waiting for this flush may now be said.
    fn flushed(&mut self, up_to: RecordId) {
        self.repair.flushed(up_to);
        self.ahead_flushed(up_to);
        self.notes_flushed(up_to);
        while let Some((id, release)) = self.journal.releases.front().copied()
            && id <= up_to
        {
            self.journal.releases.pop_front();
            self.step(Input::Durable(release));
        }
    }

    fn on_disk_read(&mut self, token: u64, bytes: Option<Slice>) {
        let index = token as usize;
        let Some(read) = self.journal.reads.get_mut(index).and_then(Option::take) else { return };
        self.journal.reads_free.push(index);
        match read {
            DiskRead::Own { read, op, at } => self.own_fragment_read(read, op, at, bytes),
            DiskRead::Serve { to, read, op, at } => {
                self.serve_fragment_read(to, read, op, at, bytes)
            }
            DiskRead::Hosted { to, read, op, crc } => self.hosted_read(to, read, op, crc, bytes),
            DiskRead::Meta { to, slot } => self.meta_read(to, slot, bytes),
            DiskRead::Facts { to, job, index } => self.facts_read(to, job, index, bytes),
            DiskRead::Scrub => self.scrub_read_done(bytes),
            DiskRead::Snap { to, generation, index } => {
                self.piece_read(to, generation, index, bytes)
            }
            DiskRead::Reclaim => self.reclaim_read(bytes),
            DiskRead::ReclaimOne { op } => self.reclaim_one(OpId(op), bytes),
        }
    }

    /// Starts a read of the log; false if it cannot take one now.
    pub(crate) fn read_disk(&mut self, what: DiskRead, place: Place, crc: Option<u32>) -> bool {
        let index = self.journal.reads_free.pop().unwrap_or_else(|| {
            self.journal.reads.push(None);
            self.journal.reads.len() - 1
        });
        if self.log.read(index as u64, place, crc).is_err() {
            self.journal.reads_free.push(index);
            return false;
        }
        self.journal.reads[index] = Some(what);
        true
    }
}
