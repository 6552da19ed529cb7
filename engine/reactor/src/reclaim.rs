//! Using the files of the log again: segments that hold nothing of use are given back, and what is of
//! use in those that hold little is copied to the end of the log.
//!
//! Space is what it is about: a node copies while the log's files are larger than they need be
//! ([`Space`]), from the segment with the least in it first.
//!
//! Invariant: a segment is given back only if replay reads nothing of it (the log sees to it), no
//! fragment that the state or the newest checkpoint names lies there, and no batch that a node which
//! lags may need (PROTOCOL 9.2). A copy counts once it is flushed. What would break it: moving a place
//! before that, or believing bytes whose checksum was not looked at.

use crate::batch::Batch;
use crate::journal::{DiskRead, Stored};
use crate::layout;
use crate::node::Node;
use crate::record::{self, COPY_BYTES, CopyOf, kind};
use crate::wire::cursor::Reader;
use crate::wire::node::SpreadHead;
use racos_buffer::Slice;
use racos_machine::OpId;
use racos_net::Link;
use racos_protocol::Nanos;
use racos_storage::device::{Device, FileId};
use racos_storage::{Class, Look, Place};
use std::collections::{BTreeSet, VecDeque};

/// Bytes of a segment read at a time, and what one COPIES record holds at most.
const STRETCH: usize = 128 << 10;
const COPIES_MAX: usize = 512;
/// Segments with more than this share of use are not copied, in percent: little would be gained.
const USE_MAX_PERCENT: u64 = 85;

/// Between two segments' worth of history that go.
const SHORTEN_NS: Nanos = 1_000_000;

/// A segment being copied.
struct Job {
    segment: FileId,
    len: u32,
    /// Where the next stretch begins.
    at: u32,
    /// How much of it is to be read.
    want: usize,
    reading: bool,
    /// Fragments in use whose bytes are still to be read.
    single: VecDeque<(CopyOf, Place)>,
}

/// What is being done about space.
#[derive(Default)]
pub(crate) struct Reclaim {
    job: Option<Job>,
    /// Gathered for the next COPIES record.
    copies: Vec<(CopyOf, Place)>,
    bytes: Vec<u8>,
    unplaced: usize,
    /// Segments that were gone over since the last checkpoint.
    tried: BTreeSet<FileId>,
    look: bool,
    not_before: Nanos,
    pub(crate) copied_bytes: u64,
}

impl Reclaim {
    /// Another checkpoint is durable: more may be free.
    pub(crate) fn look_again(&mut self) {
        self.look = true;
        self.tried.clear();
    }

    /// A COPIES record is flushed.
    pub(crate) fn placed(&mut self) {
        self.unplaced -= 1;
        self.look = true;
    }

    pub(crate) fn deadline(&self, now: Nanos) -> Option<Nanos> {
        let waits = self.job.as_ref().is_some_and(|job| !job.reading);
        (waits || self.look).then_some(self.not_before.max(now))
    }
}

/// Bytes that the files of a log may take: those of live fragments and a quarter more, two checkpoints
/// with as much log in between, and a fixed reserve (segments being filled or ahead, and the log between
/// checkpoints with what went since the newest, which it names yet).
///
/// Copying begins at `wanted`, and is as hard as it can be from `bound` on: so the files of a store in
/// use stay below 1.3 times what is live, and what is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    pub wanted: u64,
    pub bound: u64,
}

impl Space {
    pub(crate) fn of(live: u64, checkpoint: u64, reserve: u64) -> Space {
        let fixed = 6 * checkpoint + reserve;
        let bound = live + live / 4 + live / 32 + fixed;
        Space { wanted: bound - live / 32 - reserve / 4, bound }
    }
}

/// How hard segments are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Bytes read a second.
    rate_bytes: u64,
    /// Bytes that may wait for a flush when copies add to them.
    backlog_max: usize,
}

impl Pace {
    const GENTLE: Pace = Pace { rate_bytes: 64 << 20, backlog_max: 1 << 20 };
    const BRISK: Pace = Pace { rate_bytes: 128 << 20, backlog_max: 8 << 20 };
    /// In the way of clients, who otherwise fill the disk before room is made.
    const HARD: Pace = Pace { rate_bytes: 1 << 30, backlog_max: 32 << 20 };

    /// By how much too much the files take; `None`: they take no more than they may. Behind what clients
    /// write while that is little, so that they hardly notice; beside them when it grows all the same.
    pub(crate) fn of(file_bytes: u64, space: Space, is_disk_full: bool) -> Option<Pace> {
        let Space { wanted, bound } = space;
        if is_disk_full || file_bytes > bound {
            return Some(Pace::HARD);
        }
        if file_bytes > wanted + (bound - wanted) / 2 {
            return Some(Pace::BRISK);
        }
        (file_bytes > wanted).then_some(Pace::GENTLE)
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Whether a segment is being copied.
    pub fn is_reclaiming(&self) -> bool {
        self.reclaim.job.is_some()
    }

    /// Gives back what is free, and goes on with copying if too little is.
    pub(crate) fn reclaim_turn(&mut self) {
        if !self.checkpoints.settled {
            if self.log.is_disk_full() {
                self.checkpoints.demand();
            }
            return;
        }
        // What went counts as live until a checkpoint says that it is gone.
        let dying = self.fragments.dying_bytes();
        if self.log.is_disk_full() && dying * 4 >= u64::from(self.config.bounds.segment_bytes) {
            self.checkpoints.demand();
        }
        if self.reclaim.look && self.reclaim.not_before <= self.now {
            self.reclaim.look = false;
            self.shorten_history();
            self.give_back_free();
            self.choose_segment();
        }
        self.copy_some();
    }

    /// The history is what gives way first if the files take too much: the slots in the oldest
    /// segment that is kept for them, as far as checkpoints do not need them.
    fn shorten_history(&mut self) {
        if !self.takes_too_much() || self.checkpoints.is_writing() {
            return;
        }
        let behind = self.log.segments_behind();
        let end = behind.filter_map(|(segment, _)| self.history.end_in(segment)).next();
        let floor = self.history_floor(0);
        if let Some(end) = end.filter(|_| floor > self.history.first()) {
            self.history.drop_below(end.min(floor), usize::MAX);
            self.reclaim.look = end <= floor;
            self.reclaim.not_before = self.now + SHORTEN_NS;
        }
    }

    fn give_back_free(&mut self) {
        let free = |segment| {
            self.fragments.live_in(segment) == 0
                && !self.history.needs(segment)
                && !self.snaps.reads(segment)
        };
        let behind = self.log.segments_behind().map(|(segment, _)| segment);
        // PROTOCOL 9.2-c: nothing that replay reads, no fragment that the checkpoint names, and no
        // batch that a node which lags may need.
        let free: Vec<_> = behind.filter(|&segment| free(segment)).collect();
        for segment in free {
            if self.reclaim.job.take_if(|job| job.segment == segment && !job.reading).is_some() {
                self.reclaim.copies.clear();
                self.reclaim.bytes.clear();
            }
            match self.log.give_back(segment) {
                true => self.history.forget_segment(segment),
                false => {
                    self.reclaim.look = true;
                    self.reclaim.not_before = self.now + 1_000_000;
                }
            }
        }
    }

    /// Takes up the segment with the least in use, if the files take too much.
    fn choose_segment(&mut self) {
        if self.reclaim.job.is_some() || !self.takes_too_much() {
            return;
        }
        let candidates = self.log.segments_behind().filter(|(segment, len)| {
            let used = self.fragments.live_in(*segment);
            used > 0
                && used * 100 < u64::from(*len) * USE_MAX_PERCENT
                && !self.history.needs(*segment)
                && !self.reclaim.tried.contains(segment)
        });
        let least = candidates.min_by_key(|(segment, _)| self.fragments.live_in(*segment));
        if let Some((segment, len)) = least {
            self.reclaim.tried.insert(segment);
            let single = VecDeque::new();
            let at = racos_storage::SEGMENT_FRONT;
            let job = Job { segment, len, at, want: STRETCH, reading: false, single };
            self.reclaim.job = Some(job);
        }
    }

    /// What the files may take.
    pub(crate) fn space(&self) -> Space {
        let reserve = self.config.bounds.space_reserve_bytes;
        let live = self.fragments.needed_bytes();
        Space::of(live, self.checkpoints.newest().bytes, reserve)
    }

    fn takes_too_much(&self) -> bool {
        self.reclaim_pace().is_some()
    }

    fn reclaim_pace(&self) -> Option<Pace> {
        Pace::of(self.log.file_bytes(), self.space(), self.log.is_disk_full())
    }

    fn copy_some(&mut self) {
        if self.reclaim.job.is_none() || self.reclaim.not_before > self.now {
            return;
        }
        // A segment that was begun is ended.
        let pace = self.reclaim_pace().unwrap_or(Pace::GENTLE);
        if self.log.queued_bytes() > pace.backlog_max {
            return;
        }
        let full = self.reclaim.bytes.len() >= self.copies_bytes_max()
            || self.reclaim.copies.len() >= COPIES_MAX;
        if full && !self.write_copies() {
            return;
        }
        let Some(job) = &self.reclaim.job else { return };
        if job.reading {
            return;
        }
        let (what, place) = match job.single.front() {
            Some((copy, place)) => (DiskRead::ReclaimOne { op: copy.op }, *place),
            None if job.at < job.len => {
                let len = (job.len - job.at).min(job.want as u32);
                (DiskRead::Reclaim, Place { segment: job.segment, offset: job.at, len })
            }
            None => {
                if self.reclaim.copies.is_empty() || self.write_copies() {
                    self.reclaim.job = None;
                    self.reclaim.look = true;
                }
                return;
            }
        };
        let reading = self.read_disk(what, place, None);
        if let Some(job) = &mut self.reclaim.job {
            job.reading = reading;
        }
        self.reclaim.not_before = self.now + u64::from(place.len) * 1_000_000_000 / pace.rate_bytes;
    }

    fn copies_bytes_max(&self) -> usize {
        (self.config.bounds.segment_bytes as usize / 16).min(STRETCH)
    }

    /// A stretch of the segment has been read: what is in use in it is gathered.
    pub(crate) fn reclaim_read(&mut self, bytes: Option<Slice>) {
        let Some(mut job) = self.reclaim.job.take() else { return };
        job.reading = false;
        match bytes {
            Some(bytes) => self.gather_stretch(&bytes, &mut job),
            // Unreadable: what lies there is found missing by whoever reads or scrubs it.
            None => job.at += (STRETCH as u32).min(job.len - job.at),
        }
        self.reclaim.job = Some(job);
    }

    fn gather_stretch(&mut self, bytes: &[u8], job: &mut Job) {
        let mut at = 0;
        while at < bytes.len() {
            match self.log.look(&bytes[at..], job.segment, job.at) {
                Look::Group(group) => {
                    for record in group.records() {
                        self.gather_record(&record, bytes, at, job);
                    }
                    at += group.len() as usize;
                    job.at += group.len();
                    job.want = STRETCH;
                }
                Look::Short { need } if need <= (job.len - job.at) as usize => {
                    // Once more from the start of this group, far enough.
                    job.want = STRETCH.max(need);
                    return;
                }
                Look::Short { .. } | Look::Nothing => {
                    at += racos_storage::SEGMENT_FRONT as usize;
                    job.at += racos_storage::SEGMENT_FRONT;
                }
            }
        }
    }

    /// The fragments in use of one record.
    fn gather_record(
        &mut self,
        record: &racos_storage::RawRecord<'_>,
        bytes: &[u8],
        group_at: usize,
        job: &mut Job,
    ) {
        let body = record.body_place;
        let mut take = |node: &mut Self, op: OpId, offset: u32, len: u32| {
            let Some(place) = body.part(offset, len) else { return };
            let Some((held, crc)) = node.fragments.place(op) else { return };
            let Some(used) = node.machine.value(op).filter(|_| held == place) else { return };
            let copy = CopyOf { op: op.0, slot: used.slot, crc, len };
            // Where the fragment lies in what was read, if it does.
            let from = place.offset as usize + group_at;
            let from = from.checked_sub(job.at as usize);
            match from.and_then(|from| bytes.get(from..from + len as usize)) {
                Some(bytes) => node.gather_copy(copy, place, bytes),
                None => job.single.push_back((copy, place)),
            }
        };
        match record.kind {
            kind::HOLD | kind::SEGMENT_ONLY => {
                let Ok(head) = SpreadHead::get(record.head) else { return };
                let Ok(batch) = Batch::decode(head.batch, &self.secrets) else { return };
                for spot in layout::fragments(&batch.ops) {
                    take(self, spot.value.op, spot.offset as u32, spot.len as u32);
                }
            }
            kind::REPAIRED => {
                let Ok(op) = Reader::new(record.head).u128("op") else { return };
                take(self, OpId(op), 0, body.len);
            }
            kind::COPIES => {
                for (copy, offset) in record::get_copies(record.head).unwrap_or_default() {
                    take(self, OpId(copy.op), offset, copy.len);
                }
            }
            _ => {}
        }
    }

    fn gather_copy(&mut self, copy: CopyOf, place: Place, bytes: &[u8]) {
        if crc32fast::hash(bytes) != copy.crc {
            return self.fragment_damaged(OpId(copy.op));
        }
        self.reclaim.copies.push((copy, place));
        self.reclaim.bytes.extend_from_slice(bytes);
    }

    /// One fragment that lay outside of the stretch.
    pub(crate) fn reclaim_one(&mut self, op: OpId, bytes: Option<Slice>) {
        let Some(job) = &mut self.reclaim.job else { return };
        job.reading = false;
        let Some((copy, place)) = job.single.pop_front() else { return };
        assert_eq!(copy.op, op.0, "fragments are read one at a time, in order");
        let still = self.fragments.place(op).is_some_and(|(held, _)| held == place);
        match bytes {
            Some(bytes) if still => self.gather_copy(copy, place, &bytes),
            None if still => self.fragment_damaged(op),
            _ => {}
        }
    }

    /// Hands what was gathered to the log; false if it does not take all of it now.
    fn write_copies(&mut self) -> bool {
        // Behind what consensus waits to say.
        while !self.reclaim.copies.is_empty() && self.nothing_unappended() {
            let most = self.copies_bytes_max();
            let (mut count, mut len) = (0, 0);
            for (copy, _) in self.reclaim.copies.iter().take(COPIES_MAX) {
                if count > 0 && len + copy.len as usize > most {
                    break;
                }
                count += 1;
                len += copy.len as usize;
            }
            if !self.write_record(count, len) {
                return false;
            }
        }
        self.reclaim.copies.is_empty()
    }

    /// One record of the first `count` copies, whose bytes are the first `len`.
    fn write_record(&mut self, count: usize, len: usize) -> bool {
        let copies = &self.reclaim.copies[..count];
        let mut head = Vec::with_capacity(count * COPY_BYTES);
        record::put_copies(&mut head, copies.iter().map(|(copy, _)| *copy));
        let Some(body) = self.pool.copy(&self.reclaim.bytes[..len]) else { return false };
        let body = std::slice::from_ref(&body);
        let Ok(id) = self.log.append_until(kind::COPIES, &head, body, Class::Upkeep, 0) else {
            return false;
        };
        let mut offset = 0;
        let moves = self.reclaim.copies.drain(..count).map(|(copy, place)| {
            let at = offset;
            offset += copy.len;
            (OpId(copy.op), place, at)
        });
        let moves = moves.collect();
        self.placed_later(id, Stored::Copies { moves });
        self.reclaim.copied_bytes += len as u64;
        self.reclaim.bytes.drain(..len);
        self.reclaim.unplaced += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copying_is_gentle_until_it_does_not_keep_up() {
        let space = Space { wanted: 1000, bound: 1200 };
        let pace = |file_bytes| Pace::of(file_bytes, space, false);
        assert_eq!((pace(999), pace(1000)), (None, None));
        assert_eq!((pace(1001), pace(1100)), (Some(Pace::GENTLE), Some(Pace::GENTLE)));
        assert_eq!((pace(1101), pace(1200)), (Some(Pace::BRISK), Some(Pace::BRISK)));
        assert_eq!(pace(1201), Some(Pace::HARD));
        assert_eq!(Pace::of(10, space, true), Some(Pace::HARD), "a full disk waits for it");
    }

    #[test]
    fn the_files_may_take_less_than_1_3_times_what_is_live_and_what_is_fixed() {
        let fixed = Space::of(0, 10, 1000);
        assert_eq!(fixed, Space { wanted: 810, bound: 1060 });
        let live = 100 << 30;
        let space = Space::of(live, 10, 1000);
        assert_eq!(space.wanted, fixed.wanted + live / 4 * 5);
        assert!(space.bound - fixed.bound < live / 10 * 13);
    }
}
