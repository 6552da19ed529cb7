//! The log: records in, group commits out, reads of what was written.
//!
//! Purpose: one flush in flight; everything queued meanwhile goes with the next one
//! (PROTOCOL 4.4-a). Records are encoded straight into the group's buffer, large bodies written from
//! where they lie.
//!
//! Invariant: a record is reported `Flushed` only after the write that holds it, and every one
//! before it, has been flushed; after a failed flush nothing is accepted and nothing more is
//! reported.
//! What would break it: a second write in flight, a retried flush, or a group written anywhere but
//! at the end of the one before it or at the start of the next segment.

mod marking;
mod room;

use crate::bytes::round_up;
use crate::config::LogConfig;
use crate::device::{Completion, Device, FileId};
use crate::error::{Full, ReadError, ReadRefused};
use crate::format::{BLOCK, GroupHeader, SegmentHeader};
use crate::group::{Group, Need};
use crate::place::{Place, Position, RecordId};
use crate::raw::Look;
use crate::space::{Space, Spot};
use crate::superblock::{Mark, Superblock};
use racos_buffer::{Buf, Pool, Slice};
use std::collections::{BTreeMap, VecDeque};

/// Token of a write of the superblock; groups have their sequence.
const MARK_TOKEN: u64 = u64::MAX;
/// Group buffers kept for reuse: one in flight, one filling.
const BUFFERS_KEPT: usize = 2;
/// Kinds that a record may have.
const KINDS: usize = 1 << u8::BITS;

/// Who may take the last prepared bytes of a full disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Refused first.
    Ordinary,
    /// What makes room: may use half of the reserve, and segments made of the space that is left free
    /// on the disk, so that a full disk does not keep itself full.
    Upkeep,
    /// May use all of the reserve, and that space, so that consensus goes on while the disk is full.
    Urgent,
}

/// What [`Log::poll`] reports.
#[derive(Debug)]
pub enum Event {
    /// Where a record lies; comes before the `Flushed` that covers it, in the order of records.
    Placed {
        /// The record.
        id: RecordId,
        /// Its head.
        head: Place,
        /// Its body (`len` 0 if it has none).
        body: Place,
        /// CRC32 of the body, for [`Log::read`].
        body_crc: u32,
    },
    /// Every record up to this one is on stable storage.
    Flushed {
        /// The last one.
        up_to: RecordId,
    },
    /// The read with this token has ended.
    Read {
        /// As given to [`Log::read`].
        token: u64,
        /// Exactly the bytes asked for.
        result: Result<Slice, ReadError>,
    },
    /// No segment could be made for want of disk space; ordinary records are refused once the
    /// prepared ones are used up.
    SpaceLow {
        /// Bytes that records can still take, the reserve included.
        prepared_bytes: u64,
    },
    /// Another segment could be made after a `SpaceLow`.
    SpaceBack,
    /// The mark with this tag is durable: opening begins there from now on.
    Marked {
        /// As given to [`Log::find_mark`].
        tag: u64,
    },
    /// A write or flush failed. The node must stop: nothing may be assumed about what was queued.
    Failed(String),
}

/// What the log has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Group commits completed.
    pub flushes: u64,
    /// Bytes written by them, padding included.
    pub bytes_flushed: u64,
    /// Records in them.
    pub records_flushed: u64,
    /// Reads completed.
    pub reads: u64,
    /// Segments made.
    pub segments_prepared: u64,
    /// Segments given back.
    pub segments_back: u64,
    /// Segments made of files given back.
    pub segments_recycled: u64,
}

/// What the log knows of a segment that replay would read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Info {
    /// Sequence and first record of its first group.
    pub first: Option<(u64, u64)>,
    /// Up to which number its records are needed at most; `None`: it has none.
    pub until: Option<u64>,
}

struct Flight {
    group: Group,
    inline: Slice,
    at: Position,
    payload_start: u32,
    len: u32,
    bytes: u64,
}

struct Reading {
    token: u64,
    segment: FileId,
    skip: usize,
    len: usize,
    crc: Option<u32>,
}

/// What recovery hands over: where the log goes on.
pub(crate) struct Resume {
    pub disk_id: u128,
    pub next_sequence: u64,
    pub next_record: u64,
    /// End of the last group.
    pub flushed: Position,
    /// Whether damage to the last group would be noticed: it is empty, or there is none.
    pub confirmed: bool,
    pub space: Space,
    pub superblock: Superblock,
    /// The copy of the superblock to write next.
    pub copy: usize,
    pub infos: BTreeMap<FileId, Info>,
}

/// An open log. One reactor owns it; nothing in it blocks.
pub struct Log<D: Device> {
    device: D,
    pool: Pool,
    config: LogConfig,
    sector: usize,
    disk_id: u128,
    space: Space,
    superblock: Superblock,
    copy: usize,
    /// A mark to write, and the superblock that is being written.
    wanted: Option<Mark>,
    marking: Option<Superblock>,
    infos: BTreeMap<FileId, Info>,
    /// Files given back, to be used again or removed.
    spare: VecDeque<(FileId, u32)>,
    recycling: bool,
    /// The segment being made takes of the space that is to be left free.
    lending: bool,
    removing: bool,
    /// Beyond so many bytes of files, none is made for ordinary records.
    files_max: u64,
    filling: Group,
    sealed: VecDeque<(Group, Position)>,
    flight: Option<Flight>,
    spare_groups: Vec<Group>,
    spare_bufs: Vec<Buf>,
    zeros: Slice,
    /// Holds the header of a segment while the write that opens it is in flight.
    segment_block: Slice,
    parts: Vec<Slice>,
    queued_bytes: usize,
    next_sequence: u64,
    next_record: u64,
    flushed: Position,
    flushed_record: RecordId,
    confirmed: bool,
    reads: Vec<Option<Reading>>,
    reads_free: Vec<usize>,
    completions: Vec<Completion>,
    pending: Vec<Event>,
    counters: Counters,
    /// Bytes of records appended, by kind.
    kind_bytes: Box<[u64; KINDS]>,
    stopped: bool,
}

impl<D: Device> Log<D> {
    pub(crate) fn resume(device: D, pool: Pool, config: LogConfig, from: Resume) -> Option<Log<D>> {
        let sector = device.sector();
        let mut zeros = pool.get(BLOCK)?;
        zeros.fill(0);
        let mut spare_bufs = Vec::with_capacity(BUFFERS_KEPT);
        for _ in 0..BUFFERS_KEPT {
            spare_bufs.push(pool.get(config.inline_bytes_max)?);
        }
        let reads: Vec<Option<Reading>> = (0..config.reads_max).map(|_| None).collect();
        let mut log = Log {
            reads_free: (0..reads.len()).rev().collect(),
            reads,
            device,
            config,
            sector,
            disk_id: from.disk_id,
            space: from.space,
            superblock: from.superblock,
            copy: from.copy,
            wanted: None,
            marking: None,
            infos: from.infos,
            spare: VecDeque::new(),
            recycling: false,
            lending: false,
            removing: false,
            files_max: u64::MAX,
            filling: Group::default(),
            sealed: VecDeque::new(),
            flight: None,
            spare_groups: Vec::new(),
            spare_bufs,
            zeros: zeros.freeze(),
            segment_block: pool.get(BLOCK)?.freeze(),
            parts: Vec::new(),
            queued_bytes: 0,
            next_sequence: from.next_sequence,
            next_record: from.next_record,
            flushed: from.flushed,
            flushed_record: RecordId(from.next_record - 1),
            confirmed: from.confirmed,
            completions: Vec::new(),
            pending: Vec::new(),
            counters: Counters::default(),
            kind_bytes: Box::new([0; KINDS]),
            stopped: false,
            pool,
        };
        log.filling.first_record = log.next_record;
        log.prepare_more();
        Some(log)
    }

    /// Bytes of the records of a kind that were appended since the log was opened: what they take of
    /// their groups, payloads padded to the sector.
    pub fn bytes_of_kind(&self, kind: u8) -> u64 {
        self.kind_bytes[usize::from(kind)]
    }

    /// The random number that this disk got when it was formatted.
    pub fn disk_id(&self) -> u128 {
        self.disk_id
    }

    /// Queues a record; [`Log::kick`] starts its flush. A body shorter than
    /// [`LogConfig::inline_body_max`] is copied; a larger one is kept by reference until it is
    /// flushed (its slices are written as one, in order).
    ///
    /// Errors: see [`Full`]; nothing is queued then.
    pub fn append(
        &mut self,
        kind: u8,
        head: &[u8],
        body: &[Slice],
        class: Class,
    ) -> Result<RecordId, Full> {
        self.append_until(kind, head, body, class, u64::MAX)
    }

    /// [`Log::append`] of a record that replay needs only from a mark whose horizon is at most
    /// `until`.
    pub fn append_until(
        &mut self,
        kind: u8,
        head: &[u8],
        body: &[Slice],
        class: Class,
        until: u64,
    ) -> Result<RecordId, Full> {
        let body_len = body.iter().map(|slice| slice.len()).sum();
        let need = Need::new(head.len(), body_len, body.len(), &self.config, self.sector);
        let (seal, spot) = self.admit(&need, class)?;
        if seal {
            self.seal();
        }
        if !self.filling.has_buffer() {
            self.supply_filling();
        }
        if !self.filling.add(kind, head, body, &need, &self.pool, self.sector) {
            return Err(Full::Memory);
        }
        self.space.take(spot);
        let info = self.infos.entry(spot.at.segment).or_default();
        info.until = info.until.max(Some(until));
        self.queued_bytes += need.bytes();
        self.kind_bytes[usize::from(kind)] += need.bytes() as u64;
        let id = RecordId(self.next_record);
        self.next_record += 1;
        if spot.rolls {
            self.prepare_more();
        }
        Ok(id)
    }

    /// Whether a record with a head and a body of these lengths, in one aligned slice, would be
    /// accepted now. The answer holds until the next `append`, `kick` or `poll`.
    pub fn accepts(&mut self, head_len: usize, body_len: usize, class: Class) -> Result<(), Full> {
        let need = Need::new(head_len, body_len, 1, &self.config, self.sector);
        self.admit(&need, class).map(|_| ())
    }

    /// Whether a new group is needed for the record, and where its group goes; or why it is
    /// refused.
    fn admit(&mut self, need: &Need, class: Class) -> Result<(bool, Spot), Full> {
        if self.stopped {
            return Err(Full::Stopped);
        }
        let (reserve, backlog_max) = (self.config.reserve_bytes, self.config.queue_bytes_max);
        let (reserve, backlog_max) = match class {
            // What was lent is not theirs.
            Class::Ordinary => (reserve + self.space.lent_bytes + self.kept_bytes(), backlog_max),
            Class::Upkeep => (reserve / 2, backlog_max),
            Class::Urgent => (0, backlog_max * 2),
        };
        if self.queued_bytes > 0 && self.queued_bytes + need.bytes() > backlog_max {
            return Err(Full::Backlog);
        }
        let (seal, spot) = self.plan(need)?;
        let Some(spot) = spot.filter(|spot| spot.left >= reserve) else {
            return Err(self.no_space(class));
        };
        let needs_buffer = seal || !self.filling.has_buffer();
        if needs_buffer && self.spare_bufs.is_empty() {
            let buf = self.pool.get(self.config.inline_bytes_max).ok_or(Full::Memory)?;
            self.spare_bufs.push(buf);
        }
        Ok((seal, spot))
    }

    fn plan(&self, need: &Need) -> Result<(bool, Option<Spot>), Full> {
        let cursor = self.space.cursor;
        let alone = Group::default().takes(need, &self.config, self.sector);
        let alone = alone.ok_or(Full::TooLarge)?;
        if self.filling.is_empty() {
            return Ok((false, self.space.spot(cursor, alone)));
        }
        // A group stays in the segment where it began: its place is promised to its records.
        if let Some(len) = self.filling.takes(need, &self.config, self.sector)
            && let Some(spot) = self.space.spot(cursor, len)
            && !spot.rolls
        {
            return Ok((false, Some(spot)));
        }
        let behind = cursor.plus(self.filling.len(self.sector) as u32);
        Ok((true, self.space.spot(behind, alone)))
    }

    fn no_space(&mut self, class: Class) -> Full {
        self.prepare_if(true, class != Class::Ordinary);
        let is_lent_to = self.lending && class != Class::Ordinary;
        if self.space.disk_full && !is_lent_to { Full::Disk } else { Full::Preparing }
    }

    fn supply_filling(&mut self) {
        let mut buf = self.spare_bufs.pop().expect("a spare buffer was ensured");
        buf.set_len(self.config.inline_bytes_max);
        self.filling.supply(buf);
        self.filling.first_record = self.next_record;
    }

    /// Ends the group that is being filled and begins another behind it.
    fn seal(&mut self) {
        let next = self.spare_groups.pop().unwrap_or_default();
        let group = std::mem::replace(&mut self.filling, next);
        let at = self.space.cursor;
        self.space.cursor = at.plus(group.len(self.sector) as u32);
        self.sealed.push_back((group, at));
    }

    /// Starts a group commit if none is in flight and something is queued. Call it once per turn of
    /// the loop, after everything was appended; then [`Log::submit`].
    pub fn kick(&mut self) {
        // PROTOCOL 4.4-a, 4.4-b: one at a time, and no timer.
        if self.stopped || self.flight.is_some() || self.marking.is_some() {
            return;
        }
        if let Some(mark) = self.wanted.take() {
            return self.launch_mark(mark);
        }
        if self.sealed.is_empty() && !self.filling.is_empty() {
            self.seal();
        }
        if let Some((group, at)) = self.sealed.pop_front() {
            self.launch(group, at);
        }
    }

    fn launch(&mut self, mut group: Group, at: Position) {
        let (mut buf, inline_len, payload_start, len) = group.take_buffer(self.sector);
        let has_payload = group.payload_len() > 0;
        let inline_end = if has_payload { payload_start } else { len };
        buf[inline_len..inline_end].fill(0);
        let header = GroupHeader {
            disk_id: self.disk_id,
            sequence: self.next_sequence,
            first_record: group.first_record,
            at,
            // PROTOCOL 4.4-e
            flushed: self.flushed,
            len: len as u32,
            inline_len: inline_len as u32,
            payload_start: payload_start as u32,
            records: group.records(),
        };
        header.encode(&mut buf);
        self.next_sequence += 1;
        let inline = buf.freeze();
        let opens = at.offset as usize == BLOCK;
        let mut offset = at.offset as u64;
        if opens {
            let info = self.infos.entry(at.segment).or_default();
            info.first = Some((header.sequence, header.first_record));
            offset = 0;
            let segment = SegmentHeader {
                disk_id: self.disk_id,
                segment: at.segment,
                first_sequence: header.sequence,
            };
            let block = std::mem::take(&mut self.segment_block).try_thaw();
            let mut block = block.expect("no write is in flight that could hold the block");
            segment.encode(&mut block);
            self.segment_block = block.freeze();
            self.parts.push(self.segment_block.clone());
        }
        self.parts.push(inline.slice(0..inline_end));
        if has_payload {
            self.parts.append(group.payload_parts());
            let padding = len - payload_start - group.payload_len();
            if padding > 0 {
                self.parts.push(self.zeros.slice(0..padding));
            }
        }
        self.device.write_flush(header.sequence, at.segment, offset, &self.parts);
        self.parts.clear();
        let bytes = at.offset as u64 + len as u64 - offset;
        let payload_start = header.payload_start;
        self.flight = Some(Flight { group, inline, at, payload_start, len: len as u32, bytes });
    }

    /// Collects what has completed, in order. Never waits.
    pub fn poll(&mut self, events: &mut Vec<Event>) {
        let mut completions = std::mem::take(&mut self.completions);
        self.device.poll(&mut completions);
        for completion in completions.drain(..) {
            match completion {
                Completion::Written { token: MARK_TOKEN, result: Ok(()) } => self.marked(events),
                Completion::Written { token, result: Ok(()) } => self.written(token, events),
                // PROTOCOL 4.4-c: whatever the device says next, the log has stopped.
                Completion::Written { token, result: Err(_) } if mutant!("flush error ignored") => {
                    self.written(token, events);
                }
                Completion::Written { result: Err(error), .. } => {
                    self.fail(format!("a log flush failed: {error}"), events);
                }
                Completion::Read { token, buf, result } => {
                    self.counters.reads += 1;
                    let result = result.map_err(ReadError::Io);
                    events.push(self.read_done(token as usize, buf, result));
                }
                Completion::Prepared { file, result } => self.prepared(file, result, events),
                // One that stayed is found, and given back again, at the next start.
                Completion::Removed { .. } => {
                    self.removing = false;
                    self.remove_spare();
                }
            }
        }
        self.completions = completions;
        events.append(&mut self.pending);
    }

    fn written(&mut self, sequence: u64, events: &mut Vec<Event>) {
        let flight = self.flight.take().expect("a write completes only while one is in flight");
        assert_eq!(sequence + 1, self.next_sequence, "the write in flight is the newest");
        if self.stopped {
            return;
        }
        let Flight { mut group, inline, at, payload_start, len, bytes } = flight;
        self.flushed = at.plus(len);
        self.counters.flushes += 1;
        self.counters.bytes_flushed += bytes;
        self.counters.records_flushed += group.records() as u64;
        self.confirmed = group.is_empty();
        self.queued_bytes -= group.queued_bytes;
        let mut id = group.first_record;
        for placed in group.placed(at, payload_start) {
            let (head, body, body_crc) = (placed.head, placed.body, placed.body_crc);
            events.push(Event::Placed { id: RecordId(id), head, body, body_crc });
            id += 1;
        }
        if !group.is_empty() {
            self.flushed_record = RecordId(id - 1);
            events.push(Event::Flushed { up_to: self.flushed_record });
        }
        if self.spare_bufs.len() < BUFFERS_KEPT
            && let Ok(buf) = inline.try_thaw()
        {
            self.spare_bufs.push(buf);
        }
        group.clear();
        self.spare_groups.push(group);
    }

    fn fail(&mut self, why: String, events: &mut Vec<Event>) {
        if !self.stopped {
            self.stopped = true;
            events.push(Event::Failed(why));
        }
    }

    /// Starts a read of `at`, which may be any range of flushed bytes. With `crc`, the bytes must
    /// have that checksum (the one reported with a body's place).
    pub fn read(&mut self, token: u64, at: Place, crc: Option<u32>) -> Result<(), ReadRefused> {
        let end = at.offset.checked_add(at.len).ok_or(ReadRefused::Outside)?;
        let segment_len = self.space.len_of(at.segment).ok_or(ReadRefused::Outside)?;
        let limit = match at.segment.cmp(&self.flushed.segment) {
            std::cmp::Ordering::Less => segment_len,
            std::cmp::Ordering::Equal => self.flushed.offset,
            std::cmp::Ordering::Greater => 0,
        };
        if end > limit {
            return Err(ReadRefused::Outside);
        }
        if at.len == 0 {
            self.pending.push(Event::Read { token, result: Ok(Slice::empty()) });
            return Ok(());
        }
        let start = at.offset as usize / self.sector * self.sector;
        let len = round_up(end as usize, self.sector) - start;
        let number = self.reads_free.pop().ok_or(ReadRefused::Busy)?;
        let Some(buf) = self.pool.get(len) else {
            self.reads_free.push(number);
            return Err(ReadRefused::Memory);
        };
        let skip = at.offset as usize - start;
        self.reads[number] =
            Some(Reading { token, segment: at.segment, skip, len: at.len as usize, crc });
        self.device.read(number as u64, at.segment, start as u64, buf);
        Ok(())
    }

    fn read_done(&mut self, number: usize, buf: Buf, result: Result<(), ReadError>) -> Event {
        let reading = self.reads[number].take().expect("a read completes once");
        self.reads_free.push(number);
        let Reading { token, skip, len, crc, .. } = reading;
        let result = result.and_then(|()| {
            let bytes = buf.freeze().slice(skip..skip + len);
            match crc {
                // PROTOCOL 3.1-g, 4.4-d
                Some(_) if mutant!("checksum of fragments unchecked") => Ok(bytes),
                Some(crc) if crc32fast::hash(&bytes) != crc => Err(ReadError::Damaged),
                _ => Ok(bytes),
            }
        });
        Event::Read { token, result }
    }

    /// For a log that has fallen idle: writes one empty group, so that damage to the last group
    /// with records would be noticed (PROTOCOL 4.4-f). Does nothing if that is so already, if
    /// something is queued or in flight, or if there is no room.
    pub fn idle_confirm(&mut self) {
        let idle = self.flight.is_none() && self.sealed.is_empty() && self.filling.is_empty();
        let marking = self.marking.is_some() || self.wanted.is_some();
        if self.stopped || self.confirmed || marking || !idle || self.spare_bufs.is_empty() {
            return;
        }
        if let Some(spot) = self.space.spot(self.space.cursor, BLOCK) {
            if !self.filling.has_buffer() {
                self.supply_filling();
            }
            self.space.take(spot);
            self.seal();
            self.kick();
            self.prepare_more();
        }
    }

    /// What lies at the front of `bytes`, read from `offset` of a segment.
    pub fn look<'a>(&self, bytes: &'a [u8], segment: FileId, offset: u32) -> Look<'a> {
        Look::at(bytes, self.disk_id, Position { segment, offset })
    }

    /// Hands started work to the kernel, if the device batches. Once per turn of the loop.
    pub fn submit(&mut self) {
        self.device.submit();
    }

    /// The device, for sleeping in it.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// What was done since the log was opened.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The newest record that is on stable storage (0: none).
    pub fn flushed_record(&self) -> RecordId {
        self.flushed_record
    }

    /// The newest record queued (0: none).
    pub fn last_record(&self) -> RecordId {
        RecordId(self.next_record - 1)
    }

    /// Whether a record waits for its flush or a flush is in flight.
    pub fn is_busy(&self) -> bool {
        self.flight.is_some() || !self.sealed.is_empty() || !self.filling.is_empty()
    }

    /// Whether the device has not completed a write that it was given.
    pub fn is_writing(&self) -> bool {
        self.flight.is_some() || self.marking.is_some()
    }

    /// Bytes of records that wait for their flush.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Whether a write or flush has failed.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }
}
