//! Opening a log: what each state of its files means, and what is done about it.
//!
//! Purpose: find the end of the log, hand out every record, and never start from a state in which a
//! promise could be broken (PROTOCOL 4.4, 9.1).
//!
//! What may be found, and what is done about it, is the table in [`crate::cases`].
//!
//! Invariant: after `open`, the log ends at a place behind which no group can be taken for valid,
//! and everything before it is on stable storage (the last group, which may have been read from a
//! cache only, has been written again with the same bytes).
//! What would break it: cutting where a promise was made (M), leaving the header of a cut group
//! (K), or answering anyone before the last group was written anew (J).

use crate::cases::Case;
use crate::config::LogConfig;
use crate::device::{Completion, Device, FileId};
use crate::error::LogError;
use crate::format::{BLOCK, GroupHeader, SegmentHeader};
use crate::log::{Info, Log, Resume};
use crate::place::{Place, Position, RecordId};
use crate::scan::Scan;
use crate::space::Space;
use crate::superblock::{self, BOOT_MAX, Identity, Mark, Superblock};
use crate::survey::whole_blocks;
use racos_buffer::{Pool, Slice};
use std::collections::BTreeMap;

/// The body of a replayed record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayedBody<'a> {
    /// Here it is (empty if the record has none).
    Inline(&'a [u8]),
    /// On disk; its checksum is checked when it is read with it.
    Stored,
    /// On disk with a wrong checksum: missing, to be repaired from peers.
    Damaged,
}

/// A record found while opening.
#[derive(Debug)]
pub struct Replayed<'a> {
    /// Its number.
    pub id: RecordId,
    /// As appended.
    pub kind: u8,
    /// As appended.
    pub head: &'a [u8],
    /// Where the head lies.
    pub head_place: Place,
    /// The body, or where to get it.
    pub body: ReplayedBody<'a>,
    /// Where the body lies (`len` 0 if there is none).
    pub body_place: Place,
    /// CRC32 of the body, for [`Log::read`].
    pub body_crc: u32,
}

/// Who takes the records that an opening finds.
pub trait Replay {
    /// Replay begins, at this mark; whatever came before counts no more.
    fn begin(&mut self, mark: &Mark);
    /// Whether the body of records of this kind is to be read and handed over, wherever it lies.
    fn wants_body(&self, kind: u8) -> bool;
    /// A record, in order. Returns up to which horizon it is needed, as given to
    /// [`Log::append_until`].
    fn record(&mut self, record: Replayed<'_>) -> u64;
    /// The last record has come. An error: what the mark names is not whole, try the older one.
    fn end(&mut self) -> Result<(), String>;
}

/// For logs without marks: every record is taken as it comes, and needed for ever.
struct All<'a>(&'a mut dyn FnMut(Replayed<'_>));

impl Replay for All<'_> {
    fn begin(&mut self, _: &Mark) {}

    fn wants_body(&self, _: u8) -> bool {
        false
    }

    fn record(&mut self, record: Replayed<'_>) -> u64 {
        (self.0)(record);
        u64::MAX
    }

    fn end(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// What opening found.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Given when the log was formatted.
    pub disk_id: u128,
    /// Of this opening; durable, higher than any before (PROTOCOL 3.1-a).
    pub boot: u32,
    /// The last record, 0 if there is none.
    pub last_record: RecordId,
    /// Groups replayed.
    pub groups: u64,
    /// Where replay began.
    pub mark: Mark,
    /// Where the log goes on.
    pub end: Position,
    /// Cases met, in order, each once.
    pub cases: Vec<Case>,
}

/// What a device holds, before deciding to format or to open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing: format it.
    Empty,
    /// A format that did not end: format it again.
    Interrupted,
    /// A log.
    Formatted(Identity),
}

impl<D: Device> Log<D> {
    /// What the device holds. Errors: cases D, E, Q.
    pub fn inspect(device: &mut D, pool: &Pool) -> Result<Condition, LogError> {
        let files = device.list().map_err(LogError::io("listing the log's files"))?;
        match superblock::read(device, pool, &files) {
            Ok(found) if !found.newest.formatted => Ok(Condition::Interrupted),
            Ok(found) => Ok(Condition::Formatted(found.newest.identity)),
            Err(LogError::NotFormatted) => Ok(Condition::Empty),
            Err(error) => Err(error),
        }
    }

    /// The id that a formatted device's disk got; `None` if it is not formatted. Errors: as `inspect`.
    pub fn disk_id_on(device: &mut D, pool: &Pool) -> Result<Option<u128>, LogError> {
        let files = device.list().map_err(LogError::io("listing the log's files"))?;
        match superblock::read(device, pool, &files) {
            Ok(found) => Ok(found.newest.formatted.then_some(found.newest.disk_id)),
            Err(LogError::NotFormatted) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a log on an empty device: superblock and `initial_segments` segments of zeros, all
    /// flushed. `progress` is told (segments made, segments in all). Blocks. `disk_id` should be
    /// random; it tells the log's own bytes from all others. A format that did not end may be
    /// repeated.
    pub fn format(
        device: &mut D,
        pool: &Pool,
        config: &LogConfig,
        identity: Identity,
        disk_id: u128,
        progress: &mut dyn FnMut(u32, u32),
    ) -> Result<(), LogError> {
        let config = config.checked()?;
        if let Condition::Formatted(found) = Self::inspect(device, pool)? {
            let what = format!("it holds the log of node {} already", found.node);
            return Err(LogError::NotEmpty(what));
        }
        let mut fresh = Superblock {
            identity,
            disk_id,
            sequence: 1,
            boot: 0,
            formatted: false,
            marks: [Mark::beginning(); 2],
        };
        // Both copies, so that none of an earlier attempt is left.
        superblock::write(device, pool, &fresh, 0)?;
        superblock::write(device, pool, &fresh, 1)?;
        for segment in 1..=config.initial_segments {
            progress(segment - 1, config.initial_segments);
            make_segment(device, segment, config.segment_len as u64)?;
        }
        fresh.formatted = true;
        fresh.sequence = 2;
        superblock::write(device, pool, &fresh, 0)?;
        progress(config.initial_segments, config.initial_segments);
        Ok(())
    }

    /// Opens a log: checks whose it is, makes the new boot number durable, gives every record in
    /// order to `each`, cuts a torn tail or refuses damage (see [`crate::TABLE`]), and
    /// writes the last group anew. Blocks.
    pub fn open(
        device: D,
        pool: Pool,
        config: LogConfig,
        identity: Identity,
        each: &mut dyn FnMut(Replayed<'_>),
    ) -> Result<(Log<D>, Recovered), LogError> {
        Log::open_with(device, pool, config, identity, &mut All(each))
    }

    /// [`Log::open`] for a log with marks: replay begins at the newest one, or at the older one if
    /// the newest does not do.
    pub fn open_with(
        mut device: D,
        pool: Pool,
        config: LogConfig,
        identity: Identity,
        replay: &mut dyn Replay,
    ) -> Result<(Log<D>, Recovered), LogError> {
        let config = config.checked()?;
        let files = device.list().map_err(LogError::io("listing the log's files"))?;
        // PROTOCOL 3.1-a, 9.1-a: the boot first, then replay, then the last group.
        let (superblock, copy, case) = begin_boot(&mut device, &pool, &files, identity)?;
        let mut walk = Walk::new(&mut device, &pool, superblock.disk_id, &files)?;
        walk.cases.push(case);
        let mark = walk.replay_from_marks(&superblock.marks, config.check_payloads, replay)?;
        let end = walk.settle_end()?;
        let (groups, mut cases) = (walk.groups, std::mem::take(&mut walk.cases));
        let (lengths, infos) = (&walk.scan.lengths, std::mem::take(&mut walk.infos));
        let lengths = usable_segments(lengths, end.cursor.segment, &config, &mut cases);
        cases.dedup();
        // It may have a read in flight: the log gets a device that does nothing.
        walk.finish()?;
        let resume = Resume {
            disk_id: superblock.disk_id,
            next_sequence: end.next_sequence,
            next_record: end.next_record,
            flushed: end.flushed,
            confirmed: end.confirmed,
            space: Space::new(lengths, end.cursor),
            superblock,
            copy,
            infos,
        };
        let recovered = Recovered {
            disk_id: superblock.disk_id,
            boot: superblock.boot,
            last_record: RecordId(end.next_record - 1),
            groups,
            mark,
            end: end.cursor,
            cases,
        };
        let log = Log::resume(device, pool, config, resume);
        Ok((log.ok_or(LogError::NoMemory("group buffers"))?, recovered))
    }
}

/// Checks whose log it is and makes a boot number durable that was never shown to anyone.
fn begin_boot<D: Device>(
    device: &mut D,
    pool: &Pool,
    files: &[(FileId, u64)],
    identity: Identity,
) -> Result<(Superblock, usize, Case), LogError> {
    let found = superblock::read(device, pool, files)?;
    let mut next = found.newest;
    if !next.formatted {
        return Err(LogError::FormatInterrupted);
    }
    superblock::check_identity(next.identity, identity)?;
    // The copies differ by one boot at most, so a bad one may have held the next number, in use.
    let one_copy = found.case == Case::B;
    next.boot += if one_copy { 2 } else { 1 };
    if mutant!("boot not raised") {
        next.boot = found.newest.boot.max(1);
    }
    next.sequence += 1;
    if next.boot > BOOT_MAX {
        let what = "all boot numbers are used up".to_string();
        return Err(LogError::Superblock { case: Case::D, what });
    }
    superblock::write(device, pool, &next, found.older_copy)?;
    if one_copy {
        superblock::write(device, pool, &next, 1 - found.older_copy)?;
    }
    Ok((next, 1 - found.older_copy, found.case))
}

/// What cannot be read is as bad as what reads wrong, where nothing follows from its being bad: see case
/// Q for where something does.
fn or_bad<T>(found: Result<Option<T>, LogError>) -> Result<Option<T>, LogError> {
    match found {
        Err(LogError::Unreadable { .. }) => Ok(None),
        found => found,
    }
}

/// The same of what is good or not.
fn or_false(is_good: Result<bool, LogError>) -> Result<bool, LogError> {
    or_bad(is_good.map(Some)).map(|is_good| is_good.unwrap_or(false))
}

fn make_segment<D: Device>(device: &mut D, segment: FileId, len: u64) -> Result<(), LogError> {
    let doing = || LogError::io(format!("making log segment {segment} of {len} bytes"));
    device.prepare(segment, len);
    device.submit();
    let mut completions = Vec::new();
    loop {
        device.settle().map_err(doing())?;
        device.poll(&mut completions);
        for completion in completions.drain(..) {
            if let Completion::Prepared { result, .. } = completion {
                return result.map_err(doing());
            }
        }
    }
}

/// Segments up to the current one as they are, and behind it those that are ready for use.
fn usable_segments(
    lengths: &BTreeMap<FileId, u32>,
    current: FileId,
    config: &LogConfig,
    cases: &mut Vec<Case>,
) -> BTreeMap<FileId, u32> {
    let mut usable: BTreeMap<FileId, u32> =
        lengths.range(..=current).map(|(segment, len)| (*segment, *len)).collect();
    let mut next = current + 1;
    while let Some(len) = lengths.get(&next).filter(|len| **len >= config.segment_len) {
        usable.insert(next, *len);
        next += 1;
    }
    if lengths.range(next..).next().is_some() {
        cases.push(Case::P);
    }
    usable
}

/// Where the log goes on after replay.
struct End {
    cursor: Position,
    flushed: Position,
    next_sequence: u64,
    next_record: u64,
    confirmed: bool,
}

/// Goes from group to group.
struct Walk<'a, D: Device> {
    scan: Scan<'a, D>,
    pool: &'a Pool,
    disk_id: u128,
    /// Where the last group replayed ends, and what must follow.
    end: Position,
    sequence: u64,
    record: u64,
    last: Option<GroupHeader>,
    groups: u64,
    cases: Vec<Case>,
    infos: BTreeMap<FileId, Info>,
    /// Bodies of the group that is being looked at that were asked for: damaged ones are `None`.
    bodies: BTreeMap<u64, Option<Vec<u8>>>,
    /// Header and records of the group that is being looked at.
    inline: Vec<u8>,
    /// Segments up to this one have a header that is theirs, or none.
    checked: FileId,
    /// Good group behind `end` with a bad payload, if the log ends with one.
    torn: Option<GroupHeader>,
}

impl<'a, D: Device> Walk<'a, D> {
    fn new(
        device: &'a mut D,
        pool: &'a Pool,
        disk_id: u128,
        files: &[(FileId, u64)],
    ) -> Result<Walk<'a, D>, LogError> {
        Ok(Walk {
            scan: Scan::new(device, pool, disk_id, whole_blocks(files))?,
            pool,
            disk_id,
            end: Position::default(),
            sequence: 0,
            record: 0,
            last: None,
            groups: 0,
            cases: Vec::new(),
            infos: BTreeMap::new(),
            bodies: BTreeMap::new(),
            inline: Vec::new(),
            checked: 0,
            torn: None,
        })
    }

    fn finish(self) -> Result<(), LogError> {
        self.scan.end()
    }

    fn note(&mut self, case: Case) {
        if !self.cases.contains(&case) {
            self.cases.push(case);
        }
    }

    /// Replays from the newest mark or, if that does not do, from the older one (S, T). Returns the
    /// mark that did.
    fn replay_from_marks(
        &mut self,
        marks: &[Mark; 2],
        check_payloads: bool,
        replay: &mut dyn Replay,
    ) -> Result<Mark, LogError> {
        let mut problem = match self.replay_from(&marks[0], check_payloads, replay)? {
            None => return Ok(marks[0]),
            Some(problem) => problem,
        };
        if marks[1] != marks[0] {
            self.note(Case::S);
            match self.replay_from(&marks[1], check_payloads, replay)? {
                None => return Ok(marks[1]),
                Some(older) => problem = format!("{problem}; and of the older one: {older}"),
            }
        }
        let what = format!("no checkpoint can be used: {problem}");
        Err(LogError::Damaged { case: Case::T, at: marks[0].start, what })
    }

    /// Replays from one mark; or says why that does not do.
    fn replay_from(
        &mut self,
        mark: &Mark,
        check_payloads: bool,
        replay: &mut dyn Replay,
    ) -> Result<Option<String>, LogError> {
        let first = mark.start.segment;
        if self.scan.lengths.get(&first).is_none_or(|len| *len <= mark.start.offset) {
            let what = "the first segment is missing or empty".to_string();
            return Err(LogError::Damaged { case: Case::R, at: mark.start, what });
        }
        (self.end, self.sequence, self.record) = (mark.start, mark.sequence, mark.record);
        (self.last, self.torn, self.groups, self.checked) = (None, None, 0, first - 1);
        self.infos.clear();
        if self.scan.lengths.range(..first).next().is_some() {
            self.note_recycled(first)?;
        }
        replay.begin(mark);
        self.replay(check_payloads, replay)?;
        if mark.tag != 0 && self.groups == 0 {
            let at = format!("segment {first} at byte {}", mark.start.offset);
            return Ok(Some(format!("its first group, in {at}, is missing")));
        }
        Ok(replay.end().err())
    }

    /// Case U.
    fn note_recycled(&mut self, first: FileId) -> Result<(), LogError> {
        let before: Vec<_> = self.scan.lengths.range(..first).map(|(file, _)| *file).collect();
        for segment in before {
            match self.scan.segment(segment) {
                Ok(None) => self.note(Case::U),
                // Nothing that lies there is needed.
                Ok(Some(_)) | Err(LogError::Unreadable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The group that continues the log behind `end`: there, or at the start of the next segment.
    fn next_group(
        &mut self,
        end: Position,
        sequence: u64,
    ) -> Result<Option<GroupHeader>, LogError> {
        // The first group behind a mark was written when the log ended in a segment before.
        let first = self.last.is_none();
        let follows = |group: &GroupHeader| {
            group.sequence == sequence && (group.flushed == end || first && group.at == end)
        };
        self.check_segment(end.segment)?;
        if let Some(group) = self.scan.group(end)?.filter(follows) {
            return Ok(Some(group));
        }
        let next = Position { segment: end.segment + 1, offset: BLOCK as u32 };
        self.check_segment(next.segment)?;
        Ok(self.scan.group(next)?.filter(follows))
    }

    /// Case O: a whole segment header that is not this segment's.
    fn check_segment(&mut self, segment: FileId) -> Result<(), LogError> {
        if segment <= self.checked {
            return Ok(());
        }
        self.checked = segment;
        // Groups name disk and segment too: a header that cannot be read hides nothing (N).
        let Some(header) = or_bad(self.scan.segment(segment))? else {
            return Ok(());
        };
        let at = Position { segment, offset: 0 };
        if self.scan.owns(&header, segment) {
            return Ok(());
        }
        if header.disk_id != self.disk_id {
            let what = "the segment belongs to another disk".to_string();
            return Err(LogError::Damaged { case: Case::O, at, what });
        }
        let what = format!("the file holds segment {}", header.segment);
        Err(LogError::Damaged { case: Case::O, at, what })
    }

    fn replay(&mut self, check_payloads: bool, replay: &mut dyn Replay) -> Result<(), LogError> {
        let mut held = self.next_group(self.end, self.sequence)?;
        while let Some(group) = held {
            self.hold(&group, replay)?;
            if group.first_record != self.record {
                let what = format!("record {} is missing", self.record);
                return Err(LogError::Damaged { case: Case::M, at: group.at, what });
            }
            let next = self.next_group(group.end(), group.sequence + 1)?;
            if next.is_some() {
                self.note(Case::H);
                self.deliver(&group, check_payloads, replay)?;
            } else if self.scan.payloads_are_good(&group)? {
                self.note(Case::J);
                self.deliver(&group, false, replay)?;
            } else {
                self.torn_or_damaged(group, replay)?;
            }
            held = next;
        }
        Ok(())
    }

    /// The last group that follows has good records and a bad payload: K, or I before M.
    fn torn_or_damaged(
        &mut self,
        group: GroupHeader,
        replay: &mut dyn Replay,
    ) -> Result<(), LogError> {
        if self.scan.witness(group.at, group.sequence + 1)?.is_some() {
            return self.deliver(&group, true, replay);
        }
        if mutant!("torn end accepted") {
            return self.deliver(&group, false, replay);
        }
        self.note(Case::K);
        self.torn = Some(group);
        Ok(())
    }

    /// Keeps the records at hand while the place behind them is looked at.
    fn hold(&mut self, group: &GroupHeader, replay: &dyn Replay) -> Result<(), LogError> {
        let inline = self.scan.bytes(group.at, group.inline_len as usize)?;
        self.inline.clear();
        self.inline.extend_from_slice(inline.expect("a good group lies inside its file"));
        self.bodies.clear();
        for (id, record) in (group.first_record..).zip(group.records(&self.inline)) {
            if record.body.is_none() && replay.wants_body(record.header.kind) {
                let body = or_bad(self.scan.body(record.body_place, record.header.body_crc))?;
                self.bodies.insert(id, body.map(<[u8]>::to_vec));
            }
        }
        Ok(())
    }

    fn deliver(
        &mut self,
        group: &GroupHeader,
        check_payloads: bool,
        replay: &mut dyn Replay,
    ) -> Result<(), LogError> {
        let mut damaged = Vec::new();
        if check_payloads {
            damaged = self.scan.damaged_payloads(group, or_false)?;
            if !damaged.is_empty() {
                self.note(Case::I);
            }
        }
        let is_first = group.at.offset as usize == BLOCK;
        if is_first && or_bad(self.scan.segment(group.at.segment))?.is_none() {
            self.note(Case::N);
            self.write_segment_header(group)?;
        }
        let info = self.infos.entry(group.at.segment).or_default();
        if group.at.offset as usize == BLOCK {
            info.first = Some((group.sequence, group.first_record));
        }
        let mut id = group.first_record;
        for record in group.records(&self.inline) {
            let body = match record.body {
                Some(body) => ReplayedBody::Inline(body),
                None if self.bodies.contains_key(&id) => match &self.bodies[&id] {
                    Some(body) => ReplayedBody::Inline(body),
                    None => ReplayedBody::Damaged,
                },
                // PROTOCOL 4.4-h
                None if damaged.contains(&id) => ReplayedBody::Damaged,
                None => ReplayedBody::Stored,
            };
            let until = replay.record(Replayed {
                id: RecordId(id),
                kind: record.header.kind,
                head: record.head,
                head_place: record.head_place,
                body,
                body_place: record.body_place,
                body_crc: record.header.body_crc,
            });
            info.until = info.until.max(Some(until));
            id += 1;
        }
        self.groups += 1;
        self.record = id;
        self.sequence = group.sequence + 1;
        self.end = group.end();
        self.last = Some(*group);
        Ok(())
    }

    fn write_segment_header(&mut self, group: &GroupHeader) -> Result<(), LogError> {
        let header = SegmentHeader {
            disk_id: self.disk_id,
            segment: group.at.segment,
            first_sequence: group.sequence,
        };
        let mut block = self.block()?;
        header.encode(&mut block);
        self.scan.write(Position { offset: 0, ..group.at }, &block.freeze())
    }

    fn block(&self) -> Result<racos_buffer::Buf, LogError> {
        self.pool.get(BLOCK).ok_or(LogError::NoMemory("a block"))
    }

    /// Behind the last group replayed: cut or refuse, then make the end certain.
    fn settle_end(&mut self) -> Result<End, LogError> {
        let cursor = self.torn.map_or(self.end, |torn| torn.at);
        // PROTOCOL 4.4-g: what was promised is never cut.
        if let Some(witness) = self.scan.witness(cursor, self.sequence)? {
            let what = format!(
                "no valid group here, but a later one at byte {} of segment {} proves that there \
                 was one",
                witness.offset, witness.segment
            );
            return Err(LogError::Damaged { case: Case::M, at: cursor, what });
        }
        if self.torn.is_none() {
            self.note(Case::L);
        }
        // PROTOCOL 4.4-i: for good.
        self.erase(cursor)?;
        if let Some(last) = self.last
            && !mutant!("last group not written anew")
        {
            self.write_anew(&last)?;
        }
        Ok(End {
            cursor,
            flushed: self.end,
            next_sequence: self.sequence,
            next_record: self.record,
            confirmed: self.last.is_none_or(|last| last.records == 0),
        })
    }

    /// Overwrites the first block at the cut, unless it is zeros, so that nothing there is ever
    /// taken for a group again.
    fn erase(&mut self, cut: Position) -> Result<(), LogError> {
        let dirty = self.scan.bytes(cut, BLOCK)?.is_some_and(|block| block.iter().any(|b| *b != 0));
        if !dirty {
            return Ok(());
        }
        let mut zeros = self.block()?;
        zeros.fill(0);
        self.scan.write(cut, &zeros.freeze())
    }

    /// PROTOCOL 4.4-j: writes the last group again, byte for byte: it may have been read from a
    /// cache only.
    fn write_anew(&mut self, last: &GroupHeader) -> Result<(), LogError> {
        let mut at = last.at;
        if at.offset as usize == BLOCK {
            at.offset = 0; // with the segment's header, which was written with it
        }
        while at < last.end() {
            let len = ((last.end().offset - at.offset) as usize).min(1 << 20);
            let bytes = self.scan.bytes(at, len)?.expect("a good group lies inside its file");
            let copy: Option<Slice> = self.pool.copy(bytes);
            let copy = copy.ok_or(LogError::NoMemory("writing the last group anew"))?;
            self.scan.write(at, &copy)?;
            at = at.plus(len as u32);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::{Disk, MemoryDevice, Timing};

    /// Whether a group is taken for the one that continues the log at `end` as number 5.
    fn follows(end: Position, at: Position, sequence: u64, flushed: Position) -> bool {
        let disk = Disk::new(1 << 20, Timing::Immediate);
        let mut image = vec![0; 64 << 10];
        let header = GroupHeader {
            disk_id: 7,
            sequence,
            first_record: 1,
            at,
            flushed,
            len: BLOCK as u32,
            inline_len: 96,
            payload_start: BLOCK as u32,
            records: 0,
        };
        header.encode(&mut image[at.offset as usize..]);
        disk.borrow_mut().put_file(at.segment, &image);
        disk.borrow_mut().put_file(3 - at.segment, &[0; 64 << 10]);
        let (mut device, pool) = (MemoryDevice::new(disk), Pool::new(8 << 20));
        let files = device.list().unwrap();
        let mut walk = Walk::new(&mut device, &pool, 7, &files).unwrap();
        walk.last = Some(header);
        walk.next_group(end, 5).unwrap().is_some()
    }

    #[test]
    fn a_group_continues_the_log_only_with_its_number_and_written_at_its_end() {
        let end = Position { segment: 1, offset: 8192 };
        let next = Position { segment: 2, offset: 4096 };
        assert!(follows(end, end, 5, end));
        assert!(follows(end, next, 5, end));
        assert!(!follows(end, end, 4, end), "left by an earlier use of the place");
        assert!(!follows(end, end, 6, end), "one is missing");
        assert!(!follows(end, end, 5, end.plus(4096)), "written when the log ended elsewhere");
        assert!(!follows(end, Position { segment: 1, offset: 12288 }, 5, end), "not at the end");
        assert!(!follows(end, Position { segment: 2, offset: 8192 }, 5, end), "nor at a start");
    }
}
