//! Using the files of the log again: segments that hold nothing of use are given back, and what is of
//! use in those that hold little is copied to the end of the log.
//!
//! Space is what it is about: a node copies while the log's files are larger than they need be
//! ([`Space`]), from the segment with the least in it first, as fast as the log is written ([`Pace`]).
//! What only a checkpoint names is copied too, unless that is most of what a segment holds: such ones
//! wait for the next checkpoint, and if too much waits, one is written before its time.
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
use crate::space::{Load, Pace, STRETCH_MAX, STRETCH_MIN, Space};
use crate::visits::Visits;
use crate::wire::cursor::Reader;
use crate::wire::node::SpreadHead;
use racos_buffer::Slice;
use racos_machine::OpId;
use racos_net::Link;
use racos_protocol::{Nanos, Slot};
use racos_storage::device::{Device, FileId};
use racos_storage::{Class, Cursor, Look, Place};
use std::collections::{BTreeSet, VecDeque};

/// What one COPIES record holds at most: a write that clients wait behind.
const COPIES_BYTES_MAX: usize = 64 << 10;
const COPIES_MAX: usize = 512;
/// Records and fragments that a turn looks at: each is checked, and copied if it is in use. While writes
/// are refused for want of room, a turn copies more, since no other clients wait for it.
const VISITS: Visits = Visits { least: 32, per_write: 2, most: 512 };
const VISITS_URGENT: Visits = Visits { least: 128, ..VISITS };
/// Bytes that may wait for a flush when copies add to them, and while clients wait for room.
const BACKLOG_MAX: usize = 4 << 20;
const URGENT_BACKLOG_MAX: usize = 32 << 20;
/// Segments with more than this share of use are not copied, in percent: little would be gained.
const USE_MAX_PERCENT: u64 = 85;

/// Between two segments' worth of history that go.
const SHORTEN_NS: Nanos = 1_000_000;
/// A log that takes no copies now is asked again after this.
const RETRY_NS: Nanos = 1_000_000;
/// Between two looks for something to copy while clients wait for room.
const LOOK_NS: Nanos = 10_000_000;

/// A segment being copied.
struct Job {
    segment: FileId,
    len: u32,
    /// Where the next stretch begins.
    at: u32,
    /// How much of it is to be read at least: a group is looked at whole.
    want: u32,
    reading: bool,
    /// What was read of it and not gathered yet, and how far the group at `at` is.
    stretch: Option<Stretch>,
    group: Option<Cursor>,
    /// Fragments in use whose bytes are still to be read.
    single: VecDeque<(CopyOf, Place)>,
}

impl Job {
    /// How many bytes of a group are to be at hand before it is looked at: all, if that is not too much
    /// and the segment has them. What lies beyond is read one by one.
    fn wanted_of(&self, group_len: u32) -> usize {
        let whole = group_len <= STRETCH_MAX.min(self.len - self.at);
        if whole { group_len as usize } else { 0 }
    }
}

/// Bytes of a segment from a place on.
struct Stretch {
    at: u32,
    bytes: Slice,
}

/// What is being done about space.
#[derive(Default)]
pub(crate) struct Reclaim {
    job: Option<Job>,
    /// Gathered for the next COPIES record.
    copies: Vec<(CopyOf, Place)>,
    bytes: Vec<u8>,
    unplaced: usize,
    /// Segments that were gone over since the last checkpoint, and whether there was one.
    tried: BTreeSet<FileId>,
    is_marked: bool,
    /// Bytes of segments of which only the newest checkpoint names something.
    waiting_bytes: u64,
    /// No room can be made now: clients would wait in vain.
    is_hopeless: bool,
    pace: Pace,
    /// When to look what is free, and what to copy next.
    look_at: Option<Nanos>,
    /// Not to copy before: the log takes none now.
    not_before: Nanos,
    pub(crate) copied_bytes: u64,
}

impl Reclaim {
    /// Another checkpoint is durable: more may be free.
    pub(crate) fn look_again(&mut self) {
        self.look_at = Some(0);
        self.is_marked = true;
    }

    /// A COPIES record is flushed.
    pub(crate) fn placed(&mut self) {
        self.unplaced -= 1;
        if self.unplaced == 0 {
            self.look_at = Some(0);
        }
    }

    /// Records of copies that are not placed.
    pub(crate) fn unplaced(&self) -> usize {
        self.unplaced
    }

    pub(crate) fn is_reading(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.reading)
    }

    pub(crate) fn deadline(&self, now: Nanos, is_urgent: bool) -> Option<Nanos> {
        let waits = self.job.as_ref().is_some_and(|job| !job.reading);
        let want = self.job.as_ref().map_or(0, |job| job.want);
        let gathers = self.job.as_ref().is_some_and(|job| job.stretch.is_some());
        let due_at = || if gathers { 0 } else { self.pace.due_at(is_urgent, want) };
        let reads = waits.then(|| due_at().max(self.not_before));
        [reads, self.look_at].into_iter().flatten().min().map(|at| at.max(now))
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Whether a segment is being copied.
    pub fn is_reclaiming(&self) -> bool {
        self.reclaim.job.is_some()
    }

    /// Gives back what is free, and goes on with copying if too little is.
    pub(crate) fn reclaim_turn(&mut self) {
        let (is_full, space) = (self.log.is_disk_full(), self.space());
        if !self.checkpoints.settled {
            if is_full || self.log.file_bytes() > space.bound {
                self.checkpoints.demand();
            }
            return;
        }
        // What went counts as live until a checkpoint says that it is gone.
        let segment = u64::from(self.config.bounds.segment_bytes);
        if is_full && self.fragments.dying_bytes() * 4 >= segment {
            self.checkpoints.demand();
        }
        if self.log.is_at_limit() {
            self.reclaim.look_at.get_or_insert(self.now + LOOK_NS);
        }
        if self.reclaim.look_at.take_if(|at| *at <= self.now).is_some() {
            self.shorten_history();
            self.give_back_free();
            self.choose_segment();
            self.reclaim.is_hopeless = !self.can_make_room();
        }
        // What clients write waits beyond the bound, as long as there is something to wait for. The
        // last two files are for what makes room.
        let most = if self.reclaim.is_hopeless { u64::MAX } else { space.for_clients(segment) };
        self.log.limit_files(most);
        self.copy_some(space);
    }

    /// Whether the files may come to take less without anything being written by clients.
    fn can_make_room(&self) -> bool {
        self.reclaim.job.is_some()
            || self.reclaim.unplaced > 0
            || self.checkpoints.is_writing()
            || self.checkpoint_is_awaited()
    }

    /// The history is what gives way first if the files take too much: the slots in the oldest
    /// segment that is kept for them, as far as checkpoints do not need them.
    fn shorten_history(&mut self) {
        let takes_too_much = self.log.file_bytes() > self.space().wanted;
        let is_wanted = takes_too_much || self.log.is_disk_full();
        if !is_wanted || self.checkpoints.is_writing() {
            return;
        }
        let behind = self.log.segments_behind();
        let end = behind.filter_map(|(segment, _)| self.history.end_in(segment)).next();
        let floor = self.history_floor(0);
        if let Some(end) = end.filter(|_| floor > self.history.first()) {
            self.history.drop_below(end.min(floor), usize::MAX);
            if end <= floor {
                self.reclaim.look_at = Some(self.now + SHORTEN_NS);
            }
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
                false => self.reclaim.look_at = Some(self.now + RETRY_NS),
            }
        }
        self.hosting.forget_given_back(|segment| self.log.holds(segment));
    }

    /// Takes up the segment with the least in use, if the files take too much.
    fn choose_segment(&mut self) {
        if std::mem::take(&mut self.reclaim.is_marked) {
            // What went while that checkpoint was written is in the way until it is forgotten.
            match self.fragments.are_leaving() {
                true => self.reclaim.is_marked = true,
                false => self.reclaim.tried.clear(),
            }
        }
        let (mut waiting, mut least) = (0, None);
        for (segment, len) in self.log.segments_behind() {
            let (live, needed) =
                (self.fragments.live_in(segment), self.fragments.needed_in(segment));
            let is_job = self.reclaim.job.as_ref().is_some_and(|job| job.segment == segment);
            if is_job || self.history.needs(segment) || self.snaps.reads(segment) {
                continue;
            }
            // Where most of what would be copied is named by a checkpoint alone, the next one is better
            // waited for.
            if needed <= live - needed || self.reclaim.tried.contains(&segment) {
                waiting += u64::from(len);
            } else if live * 100 < u64::from(len) * USE_MAX_PERCENT {
                least = least.min(Some((live, segment, len))).or(Some((live, segment, len)));
            }
        }
        self.reclaim.waiting_bytes = waiting;
        if self.reclaim.job.is_none()
            && self.takes_too_much()
            && let Some((_, segment, len)) = least
        {
            self.reclaim.tried.insert(segment);
            let at = racos_storage::SEGMENT_FRONT;
            let (single, stretch, group) = (VecDeque::new(), None, None);
            let job = Job { segment, len, at, want: 0, reading: false, stretch, group, single };
            self.reclaim.job = Some(job);
        }
        self.hasten_checkpoint(self.reclaim.job.is_none());
    }

    /// Segments come back when a checkpoint is durable that does not name what was in them: one is
    /// written before its time if many wait for it, or if nothing else can be done.
    fn hasten_checkpoint(&mut self, nothing_else: bool) {
        let segment = u64::from(self.config.bounds.segment_bytes);
        let least =
            self.written_since_checkpoint() > segment.max(2 * self.checkpoints.newest().bytes);
        let last = nothing_else && self.log.is_at_limit();
        let is_of_use = self.much_waits() || last && (self.reclaim.waiting_bytes > 0 || least);
        if is_of_use && !self.checkpoints.is_writing() {
            self.checkpoints.demand();
        }
    }

    /// Whether what waits for a checkpoint is worth one of its own.
    fn much_waits(&self) -> bool {
        let (space, waiting) = (self.space(), self.reclaim.waiting_bytes);
        waiting > 2 * self.checkpoints.newest().bytes && waiting > (space.bound - space.wanted) / 2
    }

    /// What the files may take.
    pub(crate) fn space(&self) -> Space {
        let bounds = &self.config.bounds;
        let (live, checkpoint) = (self.fragments.needed_bytes(), self.checkpoints.newest().bytes);
        Space::of(live, checkpoint, bounds.space_reserve_bytes, u64::from(bounds.segment_bytes))
    }

    /// What the pace of copying follows from.
    fn reclaim_load(&self) -> Load {
        // With two segments ahead, however many there are now.
        let ahead = 2 * u64::from(self.config.bounds.segment_bytes);
        let taken = self.log.file_bytes() - self.log.bytes_spare() - self.log.bytes_prepared();
        let gone_over = self.reclaim.job.as_ref().map_or(0, |job| u64::from(job.at));
        let taken = (taken + ahead).saturating_sub(self.reclaim.waiting_bytes + gone_over);
        // Room for one segment more will do: the rest is gone over while clients write.
        let is_short = self.log.is_at_limit() && taken + ahead > self.space().bound;
        let is_urgent = is_short || self.log.is_disk_full();
        Load { taken, written: self.log.counters().bytes_flushed, is_urgent }
    }

    fn takes_too_much(&self) -> bool {
        let load = self.reclaim_load();
        load.is_urgent || load.taken > self.space().wanted
    }

    /// When there is something to do about space though nothing comes.
    pub(crate) fn reclaim_deadline(&self) -> Option<Nanos> {
        self.reclaim.deadline(self.now, self.reclaim_load().is_urgent)
    }

    fn copy_some(&mut self, space: Space) {
        let load = self.reclaim_load();
        let want = self.reclaim.job.as_ref().map_or(0, |job| job.want);
        let allowed = self.reclaim.pace.turn(self.now, space, load, want);
        let Some(job) = &self.reclaim.job else { return };
        if job.reading || allowed.is_none() && job.stretch.is_none() {
            return;
        }
        // What waits for a checkpoint comes back without any more being written.
        let segment = u64::from(self.config.bounds.segment_bytes);
        let is_beyond = self.log.file_bytes() + segment > space.bound && self.much_waits();
        if is_beyond && (self.checkpoints.is_writing() || self.checkpoint_is_awaited()) {
            self.reclaim.not_before = self.now + RETRY_NS;
            return;
        }
        let backlog_max = if load.is_urgent { URGENT_BACKLOG_MAX } else { BACKLOG_MAX };
        if self.log.queued_bytes() > backlog_max {
            self.reclaim.not_before = self.now + RETRY_NS;
            return;
        }
        let full = self.reclaim.bytes.len() >= self.copies_bytes_max()
            || self.reclaim.copies.len() >= COPIES_MAX;
        if full && !self.write_copies() {
            self.reclaim.not_before = self.now + RETRY_NS;
            return;
        }
        if let Some(mut job) = self.reclaim.job.take_if(|job| job.stretch.is_some()) {
            if let Some(stretch) = job.stretch.take() {
                let visits = if load.is_urgent { VISITS_URGENT } else { VISITS };
                let most = visits.of(self.checkpoints.writes_of_turn());
                job = self.gather_some(job, stretch, most);
            }
            self.reclaim.job = Some(job);
            return;
        }
        let (Some(job), Some(allowed)) = (&self.reclaim.job, allowed) else { return };
        let (what, place) = match job.single.front() {
            Some((copy, place)) => (DiskRead::ReclaimOne { op: copy.op }, *place),
            None if job.at < job.len => {
                let len = allowed.max(job.want).min(job.len - job.at);
                (DiskRead::Reclaim, Place { segment: job.segment, offset: job.at, len })
            }
            None => {
                if self.reclaim.copies.is_empty() || self.write_copies() {
                    self.reclaim.job = None;
                    self.reclaim.look_at = Some(0);
                }
                return;
            }
        };
        let reading = self.read_disk(what, place, None);
        if let Some(job) = &mut self.reclaim.job {
            job.reading = reading;
        }
        self.reclaim.pace.spend(place.len);
    }

    fn copies_bytes_max(&self) -> usize {
        (self.config.bounds.segment_bytes as usize / 16).min(COPIES_BYTES_MAX)
    }

    /// A stretch of the segment has been read.
    pub(crate) fn reclaim_read(&mut self, bytes: Option<Slice>) {
        let Some(job) = &mut self.reclaim.job else { return };
        job.reading = false;
        match bytes {
            Some(bytes) => job.stretch = Some(Stretch { at: job.at, bytes }),
            // Unreadable: what lies there is found missing by whoever reads or scrubs it.
            None => job.at += STRETCH_MIN.min(job.len - job.at),
        }
    }

    /// Gathers what is in use in the stretch that was read: so many fragments of it this turn.
    fn gather_some(&mut self, mut job: Job, stretch: Stretch, most: usize) -> Job {
        let mut visits = 0;
        while visits < most {
            let Some(bytes) = stretch.bytes.get((job.at - stretch.at) as usize..) else {
                return job;
            };
            if let Some(mut group) = job.group.take() {
                if let Some(record) = group.next(bytes) {
                    visits += 1 + self.gather_record(&record, &stretch, &mut job);
                    job.group = Some(group);
                } else {
                    job.at += group.group_len();
                    // The next one may be as long.
                    job.want = (2 * group.group_len()).min(STRETCH_MAX);
                }
                continue;
            }
            match self.log.look(bytes, job.segment, job.at) {
                _ if bytes.is_empty() => return job,
                Look::Group(group) if bytes.len() < job.wanted_of(group.len()) => {
                    // Once more from its start, with what its records hold.
                    job.want = group.len();
                    return job;
                }
                Look::Group(group) => {
                    visits += 1;
                    job.group = Some(group.cursor());
                }
                Look::Short { need } if need <= (job.len - job.at) as usize => {
                    job.want = need as u32;
                    return job;
                }
                Look::Short { .. } | Look::Nothing => {
                    visits += 1;
                    job.at += racos_storage::SEGMENT_FRONT;
                }
            }
        }
        job.stretch = Some(stretch);
        job
    }

    /// The fragments in use of one record; how many fragments were looked at.
    fn gather_record(
        &mut self,
        record: &racos_storage::RawRecord<'_>,
        stretch: &Stretch,
        job: &mut Job,
    ) -> usize {
        let (body, mut looked_at) = (record.body_place, 0);
        // `slot`: of its execution, as far as the record says.
        let mut take = |node: &mut Self, op: OpId, slot: Option<Slot>, offset: u32, len: u32| {
            looked_at += 1;
            let Some(place) = body.part(offset, len) else { return };
            let Some((_, crc)) = node.fragments.kept(op).filter(|(held, _)| *held == place) else {
                return;
            };
            let used = node.machine.value(op).map(|used| used.slot);
            // PROTOCOL 9.2-c: what a checkpoint alone names is kept, but not in the way.
            let slot = used.or_else(|| slot.filter(|_| node.fragments.is_going(op)));
            let Some(slot) = slot else { return };
            let copy = CopyOf { op: op.0, slot, crc, len };
            // Where the fragment lies in what was read, if it does.
            let from = (place.offset - stretch.at) as usize;
            match stretch.bytes.get(from..from + len as usize) {
                Some(bytes) => node.gather_copy(copy, place, bytes),
                None => job.single.push_back((copy, place)),
            }
        };
        match record.kind {
            kind::HOLD | kind::SEGMENT_ONLY => {
                let Ok(head) = SpreadHead::get(record.head) else { return 0 };
                let Ok(batch) = Batch::decode(head.batch, &self.secrets) else { return 0 };
                for spot in batch.slot_fragments() {
                    let (offset, len) = (spot.offset as u32, spot.len as u32);
                    take(self, spot.value.op, Some(head.slot), offset, len);
                }
            }
            // What is in no executed slot yet stays where it is, and its segment with it.
            kind::STORED => {
                let Ok(head) = SpreadHead::get(record.head) else { return 0 };
                let Ok(batch) = Batch::decode(head.batch, &self.secrets) else { return 0 };
                for spot in layout::fragments(&batch.ops) {
                    take(self, spot.value.op, None, spot.offset as u32, spot.len as u32);
                }
            }
            kind::REPAIRED => {
                let mut head = Reader::new(record.head);
                let (Ok(op), Ok(slot)) = (head.u128("op"), head.u64("slot")) else { return 0 };
                take(self, OpId(op), Some(slot), 0, body.len);
            }
            kind::COPIES => {
                for (copy, offset) in record::get_copies(record.head).unwrap_or_default() {
                    take(self, OpId(copy.op), Some(copy.slot), offset, copy.len);
                }
            }
            _ => {}
        }
        looked_at
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
        let still = self.fragments.kept(op).is_some_and(|(held, _)| held == place);
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
