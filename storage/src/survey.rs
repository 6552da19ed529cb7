//! A log looked at as a whole, segment by segment, and its recovery rehearsed.
//!
//! Purpose: `racos inspect` and whoever wants to know what lies in a directory, whether or not a node
//! could start on it.
//!
//! Invariant: what a group is, and whether it is good, is said by the scan that recovery itself uses;
//! what would be done about it, by recovery itself, run on a picture that it cannot change.
//! What would break it: a second opinion about what bytes mean.

use crate::config::LogConfig;
use crate::device::picture::PictureDevice;
use crate::device::{Device, FileId, SUPERBLOCK};
use crate::error::LogError;
use crate::format::{BLOCK, GroupHeader};
use crate::log::Log;
use crate::place::{Place, Position, RecordId};
use crate::recovery::{Recovered, Replay, Replayed, ReplayedBody};
use crate::scan::Scan;
use crate::superblock::{self, COPY_LEN, Copy, Identity, Mark, Superblock};
use racos_buffer::{Pool, Slice};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};

/// What a copy of the superblock looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyLook {
    /// Good, with its number among all copies written, and the boot that wrote it.
    Good { sequence: u64, boot: u32 },
    /// Written by another version of this program.
    Unknown { version: u8 },
    /// Not usable, and why.
    Bad(String),
}

/// What the newest good copy of the superblock says.
#[derive(Clone, Debug)]
pub struct Owner {
    pub identity: Identity,
    pub disk_id: u128,
    pub boot: u32,
    /// Whether the format ended.
    pub formatted: bool,
    /// The newest mark, and the one before it.
    pub marks: [Mark; 2],
}

/// Records of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub records: u64,
    /// Of heads and bodies.
    pub bytes: u64,
}

/// What a segment file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Groups of this log.
    Groups,
    /// Nothing of this log: made ahead, or given back and not used again yet.
    Blank,
    /// Of another disk, or of another number than its name says.
    Foreign,
}

/// One segment file.
#[derive(Clone, Debug)]
pub struct SegmentLook {
    pub segment: FileId,
    /// Bytes of the file.
    pub len: u64,
    pub contents: Contents,
    /// Bytes up to the end of its last group.
    pub used: u64,
    pub groups: u64,
    /// Numbers of its first and last group in the log; 0 if it has none.
    pub sequences: (u64, u64),
    /// Numbers of its first and last record; 0 if it has none.
    pub records: (u64, u64),
    /// By kind.
    pub kinds: BTreeMap<u8, Tally>,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub at: Position,
    pub what: String,
}

/// A log as it lies.
#[derive(Clone, Debug)]
pub struct Survey {
    pub copies: [CopyLook; 2],
    /// None: no copy is good.
    pub owner: Option<Owner>,
    pub segments: Vec<SegmentLook>,
    /// In order of place.
    pub damage: Vec<Damage>,
}

/// How much to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Headers and records, with their checksums.
    Records,
    /// Large bodies too.
    Payloads,
}

/// Looks at all files of a device. `progress` is told bytes gone over, and all of them.
///
/// # Errors
/// The files cannot be listed, memory is short, or the device cannot be waited for. What cannot be read is
/// damage.
pub fn survey<D: Device>(
    device: &mut D,
    pool: &Pool,
    depth: Depth,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Survey, LogError> {
    survey_records(device, pool, depth, progress, &mut |_| {})
}

/// [`survey`] that hands every record of every good group over, by place: those before the marks and those
/// behind damage too. Bodies that lie apart are told of as stored, whatever their bytes are.
///
/// # Errors
/// As `survey`.
pub fn survey_records<D: Device>(
    device: &mut D,
    pool: &Pool,
    depth: Depth,
    progress: &mut dyn FnMut(u64, u64),
    each: &mut dyn FnMut(Replayed<'_>),
) -> Result<Survey, LogError> {
    let files = device.list().map_err(LogError::io("listing the log's files"))?;
    let (copies, owner) = look_at_superblock(device, pool, &files)?;
    let lengths = whole_blocks(&files);
    let all: u64 = lengths.values().map(|len| u64::from(*len)).sum();
    let disk_id = owner.as_ref().map_or(0, |owner| owner.disk_id);
    let scan = Scan::new(device, pool, disk_id, lengths.clone())?;
    let mut surveyor = Surveyor { scan, depth, damage: Vec::new(), each };
    let mut segments: Vec<SegmentLook> = Vec::new();
    let mut done = 0;
    // Without a superblock nobody can say which groups are this log's.
    let looked_at = if owner.is_some() { lengths } else { BTreeMap::new() };
    for (segment, len) in looked_at {
        progress(done, all);
        let look = surveyor.segment(segment, len)?;
        surveyor.check_neighbours(segments.last(), &look);
        segments.push(look);
        done += u64::from(len);
    }
    progress(all, all);
    let Surveyor { scan, damage, .. } = surveyor;
    scan.end()?;
    Ok(Survey { copies, owner, segments, damage })
}

/// The bytes at a place, whatever they are.
///
/// # Errors
/// The file ends before, or cannot be read there, or memory is short.
pub fn read_place<D: Device>(device: &mut D, pool: &Pool, place: Place) -> io::Result<Slice> {
    let sector = device.sector();
    let skip = place.offset as usize % sector;
    let len = (skip + place.len as usize).next_multiple_of(sector);
    let no_memory = || io::Error::new(ErrorKind::OutOfMemory, "no memory for what is read");
    let mut buf = pool.get(len).ok_or_else(no_memory)?;
    buf.set_len(len);
    device.read_now(place.segment, u64::from(place.offset) - skip as u64, &mut buf)?;
    Ok(buf.freeze().slice(skip..skip + place.len as usize))
}

/// Segment files with their lengths in whole blocks.
pub(crate) fn whole_blocks(files: &[(FileId, u64)]) -> BTreeMap<FileId, u32> {
    let whole = |len: u64| (len.min(1 << 30) as usize / BLOCK * BLOCK) as u32;
    let segments = files.iter().filter(|(file, _)| *file != SUPERBLOCK);
    segments.map(|(file, len)| (*file, whole(*len))).collect()
}

/// Whose log lies on a device; `None`: no copy of the superblock is good.
///
/// # Errors
/// The files cannot be listed, or memory is short.
pub fn owner_of<D: Device>(device: &mut D, pool: &Pool) -> Result<Option<Owner>, LogError> {
    let files = device.list().map_err(LogError::io("listing the log's files"))?;
    look_at_superblock(device, pool, &files).map(|(_, owner)| owner)
}

fn look_at_superblock<D: Device>(
    device: &mut D,
    pool: &Pool,
    files: &[(FileId, u64)],
) -> Result<([CopyLook; 2], Option<Owner>), LogError> {
    let (first, one) = look_at_copy(device, pool, files, 0)?;
    let (second, other) = look_at_copy(device, pool, files, 1)?;
    let newest = [one, other].into_iter().flatten().max_by_key(|copy| copy.sequence);
    let owner = newest.map(|newest| Owner {
        identity: newest.identity,
        disk_id: newest.disk_id,
        boot: newest.boot,
        formatted: newest.formatted,
        marks: newest.marks,
    });
    Ok(([first, second], owner))
}

fn look_at_copy<D: Device>(
    device: &mut D,
    pool: &Pool,
    files: &[(FileId, u64)],
    copy: usize,
) -> Result<(CopyLook, Option<Superblock>), LogError> {
    let bad = |why: &str| Ok((CopyLook::Bad(why.to_string()), None));
    let len = files.iter().find(|(file, _)| *file == SUPERBLOCK).map(|(_, len)| *len);
    let Some(len) = len else { return bad("no such file") };
    let offset = (copy * COPY_LEN) as u64;
    if offset + COPY_LEN as u64 > len {
        return bad("the file ends before");
    }
    let mut buf = pool.get(COPY_LEN).ok_or(LogError::NoMemory("the superblock"))?;
    if let Err(error) = device.read_now(SUPERBLOCK, offset, &mut buf) {
        return bad(&error.to_string());
    }
    match superblock::Superblock::decode(&buf) {
        Copy::Good(good) => {
            let look = CopyLook::Good { sequence: good.sequence, boot: good.boot };
            Ok((look, Some(good)))
        }
        Copy::Unknown { version } => Ok((CopyLook::Unknown { version }, None)),
        Copy::Bad => bad("checksum wrong"),
    }
}

struct Surveyor<'a, D: Device> {
    scan: Scan<'a, D>,
    depth: Depth,
    damage: Vec<Damage>,
    each: &'a mut dyn FnMut(Replayed<'_>),
}

impl<D: Device> Surveyor<'_, D> {
    fn note(&mut self, at: Position, what: impl Into<String>) {
        self.damage.push(Damage { at, what: what.into() });
    }

    /// What cannot be read is noted, and taken for nothing.
    fn readable<T>(&mut self, found: Result<Option<T>, LogError>) -> Result<Option<T>, LogError> {
        match found {
            Err(LogError::Unreadable { at, error }) => {
                self.note(at, format!("cannot be read: {error}"));
                Ok(None)
            }
            found => found,
        }
    }

    fn segment(&mut self, segment: FileId, len: u32) -> Result<SegmentLook, LogError> {
        let mut look = SegmentLook {
            segment,
            len: u64::from(len),
            contents: Contents::Groups,
            used: 0,
            groups: 0,
            sequences: (0, 0),
            records: (0, 0),
            kinds: BTreeMap::new(),
        };
        let front = Position { segment, offset: 0 };
        let header = self.scan.segment(segment);
        let header = self.readable(header)?;
        if header.is_some_and(|header| !self.scan.owns(&header, segment)) {
            self.note(front, "the segment is of another disk, or of another number");
            look.contents = Contents::Foreign;
            return Ok(look);
        }
        let first = self.scan.group(front.plus(BLOCK as u32));
        if header.is_none() && self.readable(first)?.is_none() {
            look.contents = Contents::Blank;
            return Ok(look);
        }
        if header.is_none() {
            self.note(front, "the segment's header is damaged, and its first group good");
        }
        self.groups(&mut look, len)?;
        Ok(look)
    }

    fn groups(&mut self, look: &mut SegmentLook, len: u32) -> Result<(), LogError> {
        let mut at = Position { segment: look.segment, offset: BLOCK as u32 };
        let mut gap = None;
        while at.offset < len {
            let found = self.scan.group(at);
            let Some(group) = self.readable(found)? else {
                gap.get_or_insert(at);
                at = at.plus(BLOCK as u32);
                continue;
            };
            let follows = look.groups == 0 || group.sequence == look.sequences.1 + 1;
            if gap.is_some() || !follows {
                let from = if look.groups == 0 { "before" } else { "between" };
                let last = look.sequences.1;
                let what = format!("groups are missing {from} {last} and {}", group.sequence);
                self.note(gap.take().unwrap_or(at), what);
            }
            self.group(&group, look)?;
            at = group.end();
            look.used = u64::from(at.offset);
        }
        Ok(())
    }

    fn group(&mut self, group: &GroupHeader, look: &mut SegmentLook) -> Result<(), LogError> {
        let last = group.first_record + u64::from(group.records) - 1;
        if look.groups == 0 {
            (look.sequences.0, look.records.0) = (group.sequence, group.first_record);
        }
        (look.sequences.1, look.records.1) = (group.sequence, last);
        look.groups += 1;
        let inline = self.scan.bytes(group.at, group.inline_len as usize)?;
        let records = inline.into_iter().flat_map(|inline| group.records(inline));
        for (id, record) in (group.first_record..).zip(records) {
            (self.each)(Replayed {
                id: RecordId(id),
                kind: record.header.kind,
                head: record.head,
                head_place: record.head_place,
                body: record.body.map_or(ReplayedBody::Stored, ReplayedBody::Inline),
                body_place: record.body_place,
                body_crc: record.header.body_crc,
            });
            let tally = look.kinds.entry(record.header.kind).or_default();
            tally.records += 1;
            let (head, body) = (record.header.head_len, record.header.body_len);
            tally.bytes += u64::from(head) + u64::from(body);
        }
        if self.depth == Depth::Payloads {
            let damaged = self.scan.damaged_payloads(group, |is_good| is_good).map(Some);
            for record in self.readable(damaged)?.unwrap_or_default() {
                self.note(group.at, format!("the body of record {record} has a wrong checksum"));
            }
        }
        Ok(())
    }

    /// Between segments of consecutive numbers no group is missing; those given back leave gaps.
    fn check_neighbours(&mut self, before: Option<&SegmentLook>, look: &SegmentLook) {
        let Some(before) = before.filter(|before| before.segment + 1 == look.segment) else {
            return;
        };
        let both = before.groups > 0 && look.groups > 0;
        if both && look.sequences.0 != before.sequences.1 + 1 {
            let at = Position { segment: before.segment, offset: before.used as u32 };
            let (last, next) = (before.sequences.1, look.sequences.0);
            self.note(at, format!("groups are missing between {last} and {next}"));
        }
    }
}

/// Opens the log of a picture as a node would, and says what came of it: the rows of the recovery
/// table that were met, or the refusal. Nothing is changed.
pub fn rehearse(
    picture: PictureDevice,
    pool: &Pool,
    replay: &mut dyn Replay,
) -> Result<Recovered, LogError> {
    let mut picture = picture;
    let files = picture.list().map_err(LogError::io("listing the log's files"))?;
    let found = superblock::read(&mut picture, pool, &files)?;
    // As long as most are, so that one that is too short is found to be.
    let mut counts = BTreeMap::<u32, usize>::new();
    whole_blocks(&files).into_values().for_each(|len| *counts.entry(len).or_default() += 1);
    let usual = counts.into_iter().max_by_key(|(_, count)| *count).map_or(0, |(len, _)| len);
    let config = LogConfig {
        segment_len: usual.max(4 * BLOCK as u32),
        reserve_bytes: 0,
        free_bytes_min: 0,
        inline_body_max: 0,
        ..LogConfig::default()
    };
    let identity = found.newest.identity;
    let opened = Log::open_with(picture, pool.clone(), config, identity, replay);
    opened.map(|(_, recovered)| recovered)
}
