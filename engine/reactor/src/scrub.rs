//! Scrub: everything on disk that is of use is read again and again, so that what has rotten is found
//! while others can still replace it (PROTOCOL 9.5).
//!
//! A round goes first over the records that a restart would read, from the newest mark on, and then
//! over the fragments of all values in use, in the order of their places. One read is in flight, and
//! after each the disk is left alone for nineteen times as long as the read took (see [`crate::rest`]), and
//! for so long that a round takes as many days as the configuration says. The log is told now and then where the round is:
//! a restart goes on there, so that a node that restarts often comes everywhere all the same.
//!
//! | what is damaged | what is done |
//! |---|---|
//! | a fragment, wherever it lies | it counts as lost, and is made again from those of others |
//! | a record that a restart would read, or a piece of the newest checkpoint | the node goes on: it knows what it promised, and a restart that met the damage would refuse (cases M, S and T of the recovery table). A checkpoint is begun at once: its mark lies behind what it makes needless, and the damage is harmless once it lies before the mark |
//! | anything before the mark that is no fragment in use | nothing: nobody reads it, or whoever asks for a batch asks another node |
//!
//! Invariant: nothing is taken for good whose checksum was not looked at, and nothing for damaged that
//! does not lie there any more. What would break it: judging bytes by a place that has moved since.

use crate::checkpoint::Piece;
use crate::journal::DiskRead;
use crate::node::Node;
use crate::record::kind;
use crate::rest::Rest;
use crate::status::ScrubStatus;
use crate::wire::cursor::{Reader, WireError, Writer};
use racos_buffer::Slice;
use racos_machine::OpId;
use racos_net::Link;
use racos_protocol::Nanos;
use racos_storage::device::{Device, FileId};
use racos_storage::{Class, Look, Place, SEGMENT_FRONT};
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

const MS: Nanos = 1_000_000;
/// Bytes of one read, unless a single record or fragment is larger.
const STRETCH: u32 = 128 << 10;
/// Bytes between two fragments that are read along rather than left out.
const GAP: u32 = 16 << 10;
/// Values looked at in a turn, and fragments gathered in one pass over all of them: those that lie
/// first. So a round of ten million fragments makes 160 passes, a minute of the CPU's in its days.
const VISITS: usize = 256;
const PAGE: usize = 65_536;
/// The log is told this often at most, and at least so many times in a round.
const NOTE: Nanos = 600_000 * MS;
const NOTES: u64 = 4;
/// After a round, and while the disk is busy or buffers are short.
const PAUSE: Nanos = 20 * MS;
/// How often a checkpoint is asked for because of damage.
const DEMAND: Nanos = 10_000 * MS;

/// A fragment to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Check {
    segment: FileId,
    offset: u32,
    len: u32,
    crc: u32,
    op: OpId,
}

impl Check {
    fn place(&self) -> Place {
        Place { segment: self.segment, offset: self.offset, len: self.len }
    }
}

/// How far a round over the fragments is, as the log is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Noted {
    /// The last segment that the round comes to; 0: there is no round.
    last: FileId,
    /// All fragments that lie before this place of a segment are done.
    at: (FileId, u32),
}

impl Noted {
    fn put(self, out: &mut Vec<u8>) {
        [self.last, self.at.0, self.at.1].into_iter().for_each(|field| out.put_u32(field));
    }

    pub fn get(head: &[u8]) -> Result<Noted, WireError> {
        let mut from = Reader::new(head);
        let last = from.u32("last segment")?;
        let at = (from.u32("segment")?, from.u32("offset")?);
        from.end("scrub")?;
        Ok(Noted { last, at })
    }
}

/// Going over the fragments.
#[derive(Debug)]
struct Sweep {
    /// From the first segment, which holds anything, to the last: what is written later is of the next
    /// round.
    first: FileId,
    last: FileId,
    /// What lies before is done, or in the queue.
    from: (FileId, u32),
    /// The next place of the value table to look at in this pass.
    next: u32,
    /// Those that lie first of what was met in this pass.
    page: BinaryHeap<Check>,
    /// Others lie behind the page.
    is_more: bool,
    queue: VecDeque<Check>,
    /// None lie behind the queue.
    is_last: bool,
    /// How many of the queue's first are to be read one by one: together they cannot be.
    single: usize,
}

impl Sweep {
    fn at(&self) -> (FileId, u32) {
        self.queue.front().map_or(self.from, |check| (check.segment, check.offset))
    }

    fn gather(&mut self, check: Check) {
        if (check.segment, check.offset) < self.from || check.segment > self.last {
            return;
        }
        self.page.push(check);
        if self.page.len() > PAGE {
            self.page.pop();
            self.is_more = true;
        }
    }

    /// The pass is over: its page is read next.
    fn turn_page(&mut self) {
        self.queue = std::mem::take(&mut self.page).into_sorted_vec().into();
        self.next = 0;
        self.is_last = !std::mem::take(&mut self.is_more);
        if let Some(last) = self.queue.back() {
            self.from = (last.segment, last.offset + 1);
        }
    }
}

/// Where in the records a round is.
#[derive(Debug)]
struct Records {
    segment: FileId,
    at: u32,
    /// The sequence of the group that should stand there.
    sequence: u64,
    want: u32,
    /// Something could not be read: block by block.
    is_careful: bool,
    /// Bodies of checkpoint pieces that lie by themselves.
    bodies: VecDeque<(Place, u32)>,
}

#[derive(Debug)]
enum Stage {
    /// Between rounds.
    Resting,
    Records(Records),
    Fragments(Sweep),
}

/// What is being read.
#[derive(Debug, Clone, Copy)]
enum Reading {
    Groups,
    Body,
    /// So many of the queue's first.
    Checks(usize),
}

pub(crate) struct Scrub {
    stage: Stage,
    reading: Option<(Reading, Place, Nanos)>,
    not_before: Nanos,
    rest: Rest,
    /// What the log was told last, when, and beside which checkpoint.
    noted: Noted,
    noted_at: Nanos,
    noted_beside: u64,
    /// Damage in records that a restart would read, by segment: the first byte.
    damaged: BTreeMap<FileId, u32>,
    demanded_at: Option<Nanos>,
    rounds: u64,
    bytes: u64,
    fragments_damaged: u64,
    records_damaged: u64,
}

impl Scrub {
    /// `noted`: what the log was told before the restart, behind the mark of this checkpoint.
    pub fn new(noted: Noted, noted_beside: u64, now: Nanos) -> Scrub {
        Scrub {
            stage: Stage::Resting,
            reading: None,
            not_before: 0,
            rest: Rest::default(),
            noted,
            noted_at: now,
            noted_beside,
            damaged: BTreeMap::new(),
            demanded_at: None,
            rounds: 0,
            bytes: 0,
            fragments_damaged: 0,
            records_damaged: 0,
        }
    }

    pub fn deadline(&self, now: Nanos, round: Nanos) -> Option<Nanos> {
        (round > 0 && self.reading.is_none()).then_some(self.not_before.max(now))
    }

    pub fn status(&self) -> ScrubStatus {
        ScrubStatus {
            rounds: self.rounds,
            bytes: self.bytes,
            percent: self.percent(),
            fragments_damaged: self.fragments_damaged,
            records_damaged: self.records_damaged,
        }
    }

    /// How far the round is, records aside, which are little.
    fn percent(&self) -> u8 {
        match &self.stage {
            Stage::Fragments(sweep) => {
                let done = u64::from(sweep.at().0.saturating_sub(sweep.first));
                (100 * done / u64::from(sweep.last - sweep.first + 1)) as u8
            }
            Stage::Resting | Stage::Records(_) => 0,
        }
    }

    /// Where a restart should go on.
    fn to_note(&self) -> Noted {
        match &self.stage {
            Stage::Fragments(sweep) => Noted { last: sweep.last, at: sweep.at() },
            // Until the fragments' turn comes, what was noted before the restart stands.
            Stage::Records(_) => self.noted,
            Stage::Resting => Noted::default(),
        }
    }

    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Why this node must not be restarted now, if so.
    pub fn danger(&self) -> Option<String> {
        let (segment, offset) = self.damaged.first_key_value()?;
        Some(format!(
            "segment-{segment:08}.log is damaged at byte {offset}, in records that a restart reads: \
             do not restart this node; a checkpoint that makes them needless is being written, and if \
             this stays, replace the node with `racos member replace`"
        ))
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// What [`Node::status`] says of it.
    pub fn scrub_status(&self) -> ScrubStatus {
        self.scrub.status()
    }

    /// Goes on with the round.
    pub(crate) fn scrub_turn(&mut self) {
        let round = self.config.bounds.scrub_ns;
        if round == 0 || self.scrub.reading.is_some() || self.now < self.scrub.not_before {
            return;
        }
        if !self.scrub.damaged.is_empty() {
            self.heal_records();
        }
        self.note_scrub();
        match self.scrub.stage {
            Stage::Resting => {
                let (begin, _) = self.log.replayed();
                self.scrub.stage =
                    Stage::Records(Records { segment: begin.segment, ..fresh_records() });
            }
            Stage::Records(_) => self.scrub_records(),
            Stage::Fragments(_) => self.scrub_fragments(),
        }
    }

    /// Tells the log where the round is, now and then, and again behind the mark of each checkpoint.
    fn note_scrub(&mut self) {
        let note = self.scrub.to_note();
        let often = NOTE.min(self.config.bounds.scrub_ns / NOTES);
        let is_due = note != self.scrub.noted && self.now >= self.scrub.noted_at + often;
        let beside = self.checkpoints.begun();
        let is_left_behind = note.last > 0 && beside != self.scrub.noted_beside;
        if !(is_due || is_left_behind) || !self.nothing_unappended() {
            return;
        }
        let mut head = Vec::with_capacity(12);
        note.put(&mut head);
        if self.log.append_until(kind::SCRUBBED, &head, &[], Class::Upkeep, 0).is_ok() {
            self.scrub.noted = note;
            (self.scrub.noted_at, self.scrub.noted_beside) = (self.now, beside);
        }
    }

    /// PROTOCOL 4.4-o: the mark has passed what was damaged, or another checkpoint is asked for.
    fn heal_records(&mut self) {
        let (begin, _) = self.log.replayed();
        self.scrub.damaged.retain(|segment, _| *segment >= begin.segment);
        let due = self.scrub.demanded_at.is_none_or(|at| self.now >= at + DEMAND);
        if due && !self.scrub.damaged.is_empty() {
            self.scrub.demanded_at = Some(self.now);
            self.checkpoints.demand();
        }
    }

    fn damaged_record(&mut self, segment: FileId, offset: u32) {
        self.scrub.records_damaged += 1;
        self.scrub.damaged.entry(segment).or_insert(offset);
    }

    /// Starts a read, unless the log cannot take one now.
    fn scrub_read(&mut self, what: Reading, place: Place) {
        match self.read_disk(DiskRead::Scrub, place, None) {
            true => self.scrub.reading = Some((what, place, self.now)),
            false => self.scrub.not_before = self.now + PAUSE,
        }
    }

    fn scrub_records(&mut self) {
        let (begin, end) = self.log.replayed();
        let Stage::Records(records) = &mut self.scrub.stage else { return };
        // What lies before the mark is of no use any more.
        if records.segment < begin.segment {
            *records = Records { segment: begin.segment, ..fresh_records() };
        }
        if let Some((place, _)) = records.bodies.front() {
            let place = *place;
            return self.scrub_read(Reading::Body, place);
        }
        let is_last = records.segment == end.segment;
        if records.at == SEGMENT_FRONT {
            records.sequence = self.log.first_sequence(records.segment).unwrap_or(0);
        }
        let next = self.log.first_sequence(records.segment + 1);
        let limit = match is_last {
            true => end.offset,
            false => self.log.segment_len(records.segment).unwrap_or(0),
        };
        let is_over = match is_last {
            true => records.at >= limit,
            // All groups before the next segment's first.
            false => next.is_none_or(|next| records.sequence >= next) || records.at >= limit,
        };
        if !is_over {
            let len = records.want.min(limit - records.at);
            let place = Place { segment: records.segment, offset: records.at, len };
            return self.scrub_read(Reading::Groups, place);
        }
        let lacking = !is_last && next.is_some_and(|next| records.sequence < next);
        let (segment, at) = (records.segment, records.at);
        if is_last {
            let first = self.log.first_segment();
            let resumed = Some(self.scrub.noted).filter(|noted| noted.last > 0);
            let Noted { last, at: from } =
                resumed.unwrap_or(Noted { last: end.segment, at: (first, 0) });
            self.scrub.stage = Stage::Fragments(Sweep {
                first: first.min(last),
                last,
                from,
                next: 0,
                page: BinaryHeap::new(),
                is_more: false,
                queue: VecDeque::new(),
                is_last: false,
                single: 0,
            });
        } else {
            *records = Records { segment: segment + 1, ..fresh_records() };
        }
        if lacking {
            self.damaged_record(segment, at);
        }
    }

    fn scrub_fragments(&mut self) {
        let places = self.machine.value_places();
        let Stage::Fragments(sweep) = &mut self.scrub.stage else { return };
        if !sweep.queue.is_empty() {
            return self.scrub_checks();
        }
        if sweep.is_last {
            return self.end_round();
        }
        if sweep.next < places {
            let visits = VISITS.min((places - sweep.next) as usize);
            for used in self.machine.values_from(sweep.next, visits) {
                let op = used.value.op;
                if let Some((place, crc)) = self.fragments.place(op) {
                    let Place { segment, offset, len } = place;
                    sweep.gather(Check { segment, offset, len, crc, op });
                }
            }
            sweep.next += visits as u32;
        } else {
            sweep.turn_page();
        }
    }

    /// Reads the next fragments, as many as lie together.
    fn scrub_checks(&mut self) {
        let fragments = &self.fragments;
        let Stage::Fragments(sweep) = &mut self.scrub.stage else { return };
        let Sweep { queue, single, .. } = sweep;
        let is_there =
            |check: &Check| fragments.place(check.op) == Some((check.place(), check.crc));
        while queue.front().is_some_and(|check| !is_there(check)) {
            queue.pop_front();
            *single = single.saturating_sub(1);
        }
        let Some(first) = queue.front().copied() else { return };
        let (mut end, mut count) = (first.offset + first.len, 1);
        let together = if *single > 0 { 0 } else { queue.len() };
        for check in queue.iter().take(together).skip(1) {
            let fits = check.segment == first.segment
                && check.offset >= end
                && check.offset - end <= GAP
                && check.offset + check.len - first.offset <= STRETCH;
            if !fits {
                break;
            }
            (end, count) = (check.offset + check.len, count + 1);
        }
        let place = Place { len: end - first.offset, ..first.place() };
        self.scrub_read(Reading::Checks(count), place);
    }

    fn end_round(&mut self) {
        self.scrub.rounds += 1;
        self.scrub.stage = Stage::Resting;
        // Whatever the log says yet, the next round begins at the beginning.
        self.scrub.noted = Noted::default();
        let least = self.config.bounds.scrub_ns / 16;
        self.scrub.not_before = self.scrub.not_before.max(self.now + least.max(PAUSE));
    }

    /// What was read has come, or cannot be read.
    pub(crate) fn scrub_read_done(&mut self, bytes: Option<Slice>) {
        let Some((what, place, started)) = self.scrub.reading.take() else { return };
        let len = u64::from(place.len);
        self.scrub.bytes += len;
        let took = self.now.saturating_sub(started);
        let rest = self.scrub.rest.after(took);
        self.scrub.not_before = self.now + rest.max(self.scrub_pace(len));
        match what {
            Reading::Groups => self.scrub_groups(place, bytes),
            Reading::Body => self.scrub_body(bytes),
            Reading::Checks(count) => self.scrub_checked(count, place, bytes),
        }
    }

    /// So long a read of `len` bytes may take, if a round is to take as long as is configured.
    fn scrub_pace(&self, len: u64) -> Nanos {
        let (begin, end) = self.log.replayed();
        let segments = u64::from(end.segment - begin.segment + 1);
        let records = segments * u64::from(self.config.bounds.segment_bytes);
        let total = (self.fragments.live_bytes() + records).max(len);
        let round = u128::from(self.config.bounds.scrub_ns);
        (round * u128::from(len) / u128::from(total)) as Nanos
    }

    fn scrub_groups(&mut self, place: Place, bytes: Option<Slice>) {
        let stage = std::mem::replace(&mut self.scrub.stage, Stage::Resting);
        let Stage::Records(mut records) = stage else {
            return self.scrub.stage = stage;
        };
        match bytes {
            Some(bytes) => self.look_at_groups(&bytes, place, &mut records),
            None if records.is_careful => {
                self.damaged_record(place.segment, records.at);
                records.at += SEGMENT_FRONT;
                records.want = SEGMENT_FRONT;
            }
            // Perhaps only a sector that nobody asks for is unreadable.
            None => (records.is_careful, records.want) = (true, SEGMENT_FRONT),
        }
        self.scrub.stage = Stage::Records(records);
    }

    fn look_at_groups(&mut self, bytes: &[u8], place: Place, records: &mut Records) {
        let usual = if records.is_careful { SEGMENT_FRONT } else { STRETCH };
        let segment = place.segment;
        let limit = match self.log.replayed().1 {
            end if end.segment == segment => end.offset,
            _ => self.log.segment_len(segment).unwrap_or(0),
        };
        let next = self.log.first_sequence(segment + 1);
        let mut at = 0;
        while at < bytes.len() && next.is_none_or(|next| records.sequence < next) {
            match self.log.look(&bytes[at..], segment, records.at) {
                Look::Group(group) if group.sequence() >= records.sequence => {
                    if group.sequence() > records.sequence {
                        self.damaged_record(segment, records.at);
                    }
                    for record in group.records().filter(|it| it.kind == kind::CHECKPOINT) {
                        if record.body.is_none() && self.is_of_newest(record.head) {
                            records.bodies.push_back((record.body_place, record.body_crc));
                        }
                    }
                    records.sequence = group.sequence() + 1;
                    records.at += group.len();
                    at += group.len() as usize;
                    (records.is_careful, records.want) = (false, STRETCH);
                }
                // From the start of this group, far enough.
                Look::Short { need } if need as u32 <= limit - records.at => {
                    return records.want = (need as u32).max(usual);
                }
                _ => {
                    self.damaged_record(segment, records.at);
                    records.at += SEGMENT_FRONT;
                    at += SEGMENT_FRONT as usize;
                }
            }
        }
    }

    /// Whether a piece is one of the checkpoint that a restart begins at.
    fn is_of_newest(&self, head: &[u8]) -> bool {
        Piece::get(head).is_ok_and(|(generation, _)| generation == self.log.marks()[0].tag)
    }

    fn scrub_body(&mut self, bytes: Option<Slice>) {
        let Stage::Records(records) = &mut self.scrub.stage else { return };
        let Some((place, crc)) = records.bodies.pop_front() else { return };
        if bytes.is_none_or(|bytes| crc32fast::hash(&bytes) != crc) {
            self.damaged_record(place.segment, place.offset);
        }
    }

    /// PROTOCOL 9.5-h: each fragment by its own checksum, if it still lies there.
    fn scrub_checked(&mut self, count: usize, place: Place, bytes: Option<Slice>) {
        let Stage::Fragments(Sweep { queue, single, .. }) = &mut self.scrub.stage else { return };
        if bytes.is_none() && count > 1 {
            return *single = count;
        }
        *single = single.saturating_sub(1);
        let checks: Vec<Check> = queue.drain(..count.min(queue.len())).collect();
        for check in checks {
            let from = (check.offset - place.offset) as usize;
            let part = bytes.as_ref().map(|bytes| &bytes[from..from + check.len as usize]);
            let is_good = part.is_some_and(|part| crc32fast::hash(part) == check.crc)
                || mutant!("scrub passes over damage");
            let is_there = self.fragments.place(check.op) == Some((check.place(), check.crc));
            if !is_good && is_there {
                self.scrub.fragments_damaged += 1;
                self.fragment_damaged(check.op);
            }
        }
    }
}

fn fresh_records() -> Records {
    Records {
        segment: 0,
        at: SEGMENT_FRONT,
        sequence: 0,
        want: STRETCH,
        is_careful: false,
        bodies: VecDeque::new(),
    }
}
