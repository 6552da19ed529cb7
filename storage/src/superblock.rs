//! The superblock: whose disk this is, and how often it was opened.
//!
//! Purpose: two copies of one small block, written alternately with a sequence number, so that a
//! torn write leaves the other copy.
//! Invariant: the newest good copy is the state; `boot` in it is higher than any that the node has
//! shown to anyone before.
//! What would break it: writing over the newest copy, or going on after a copy that cannot be read
//! when the other is bad too.

use crate::bytes::{Reader, Writer};
use crate::cases::Case;
use crate::device::{Device, FileId, SUPERBLOCK};
use crate::error::LogError;
use crate::place::Position;
use racos_buffer::Pool;

/// Bytes from one copy to the next; the file holds two.
pub(crate) const COPY_LEN: usize = 4096;
/// Highest boot number: 24 bits of an operation's id (PROTOCOL 3.1-b).
pub const BOOT_MAX: u32 = (1 << 24) - 1;

const MAGIC: &[u8; 8] = b"racosSB\n";
const VERSION: u8 = 2;
const CHECKED: usize = 12; // after magic and checksum

/// Whose log this is. All of it must be equal at every open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster: u64,
    /// The node's number in it.
    pub node: u16,
    /// The incarnation of this node's disk (PROTOCOL 3.1).
    pub incarnation: u32,
    /// Which of the node's lanes this log is of, from 0, and how many it has, from 1.
    pub lane: u8,
    pub lanes: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub identity: Identity,
    pub disk_id: u128,
    pub sequence: u64,
    pub boot: u32,
    /// False while `format` is still making the first segments: nothing was promised yet.
    pub formatted: bool,
    /// Where replay may begin: the newest mark, and the one before it.
    pub marks: [Mark; 2],
}

/// A place where replay may begin, and what that leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The caller's name for it; 0: the beginning of the log, nothing is left out.
    pub tag: u64,
    /// Records that are only needed up to a lower number may be left out (see
    /// [`crate::Log::append_until`]).
    pub horizon: u64,
    /// The first group of a segment, its sequence, and its first record.
    pub(crate) start: Position,
    pub(crate) sequence: u64,
    pub(crate) record: u64,
}

impl Mark {
    /// The beginning of a new log.
    pub(crate) fn beginning() -> Mark {
        let start = Position { segment: 1, offset: crate::format::BLOCK as u32 };
        Mark { tag: 0, horizon: 0, start, sequence: 1, record: 1 }
    }

    /// The segment in which replay begins; those before it hold no record that replay needs.
    pub fn segment(&self) -> FileId {
        self.start.segment
    }
}

/// What one copy looks like.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Copy {
    Good(Superblock),
    /// Good checksum, but written by another version of the format.
    Unknown {
        version: u8,
    },
    Bad,
}

impl Superblock {
    pub fn encode(&self, out: &mut [u8]) {
        let (front, checked) = out[..COPY_LEN].split_at_mut(CHECKED);
        checked.fill(0);
        let mut put = Writer::new(checked);
        put.u8(VERSION);
        put.u8(self.formatted as u8);
        put.u16(self.identity.node);
        put.u32(self.identity.incarnation);
        put.u64(self.identity.cluster);
        put.u128(self.disk_id);
        put.u64(self.sequence);
        put.u32(self.boot);
        for mark in &self.marks {
            put.u64(mark.tag);
            put.u64(mark.horizon);
            put.u32(mark.start.segment);
            put.u32(mark.start.offset);
            put.u64(mark.sequence);
            put.u64(mark.record);
        }
        put.u8(self.identity.lane);
        put.u8(self.identity.lanes - 1);
        let crc = crc32fast::hash(checked);
        let mut put = Writer::new(front);
        put.put(MAGIC);
        put.u32(crc);
    }

    pub fn decode(bytes: &[u8]) -> Copy {
        Superblock::parse(bytes).unwrap_or(Copy::Bad)
    }

    fn parse(bytes: &[u8]) -> Option<Copy> {
        let mut get = Reader(bytes.get(..COPY_LEN)?);
        if get.take(MAGIC.len())? != MAGIC || get.u32()? != crc32fast::hash(get.0) {
            return None;
        }
        let version = get.u8()?;
        if version != VERSION {
            return Some(Copy::Unknown { version });
        }
        let formatted = get.u8()? == 1;
        let (node, incarnation, cluster) = (get.u16()?, get.u32()?, get.u64()?);
        let (disk_id, sequence, boot) = (get.u128()?, get.u64()?, get.u32()?);
        let marks = [get_mark(&mut get)?, get_mark(&mut get)?];
        let (lane, lanes) = (get.u8()?, get.u8()?.checked_add(1)?);
        let identity = Identity { cluster, node, incarnation, lane, lanes };
        let good = Superblock { identity, disk_id, sequence, boot, formatted, marks };
        (lane < lanes).then_some(Copy::Good(good))
    }
}

fn get_mark(get: &mut Reader<'_>) -> Option<Mark> {
    Some(Mark {
        tag: get.u64()?,
        horizon: get.u64()?,
        start: Position { segment: get.u32()?, offset: get.u32()? },
        sequence: get.u64()?,
        record: get.u64()?,
    })
}

/// The superblock as found.
pub(crate) struct Found {
    pub newest: Superblock,
    /// The copy to write next: the older or the bad one.
    pub older_copy: usize,
    pub case: Case,
}

/// Reads both copies and chooses. Errors: cases C, D, E.
pub(crate) fn read<D: Device>(
    device: &mut D,
    pool: &Pool,
    files: &[(FileId, u64)],
) -> Result<Found, LogError> {
    let Some((_, len)) = files.iter().find(|(file, _)| *file == SUPERBLOCK) else {
        return match files.is_empty() {
            true => Err(LogError::NotFormatted),
            false => Err(unusable(Case::D, "it is missing, but there are segments")),
        };
    };
    let mut copies = [None, None];
    let mut why = [String::new(), String::new()];
    for (index, copy) in copies.iter_mut().enumerate() {
        let offset = (index * COPY_LEN) as u64;
        if offset + COPY_LEN as u64 > *len {
            why[index] = "missing".to_string();
            continue;
        }
        let mut buf = pool.get(COPY_LEN).ok_or(LogError::NoMemory("the superblock"))?;
        if let Err(error) = device.read_now(SUPERBLOCK, offset, &mut buf) {
            why[index] = error.to_string();
            continue;
        }
        match Superblock::decode(&buf) {
            Copy::Good(good) => *copy = Some(good),
            Copy::Bad => why[index] = "checksum wrong".to_string(),
            Copy::Unknown { version } => {
                let what = format!("written by format version {version}, newer than this program");
                return Err(LogError::Config(what));
            }
        }
    }
    choose(copies, &why, files)
}

fn choose(
    copies: [Option<Superblock>; 2],
    why: &[String; 2],
    files: &[(FileId, u64)],
) -> Result<Found, LogError> {
    let found = |newest, older_copy, case| Ok(Found { newest, older_copy, case });
    match copies {
        [Some(first), Some(second)] => {
            let same = first.disk_id == second.disk_id && first.identity == second.identity;
            if !same {
                return Err(unusable(Case::E, "its two copies belong to different disks"));
            }
            match first.sequence >= second.sequence {
                true => found(first, 1, Case::A),
                false => found(second, 0, Case::A),
            }
        }
        [Some(first), None] => found(first, 1, Case::B),
        [None, Some(second)] => found(second, 0, Case::B),
        // The very first write of a format: segments are made only after both copies.
        [None, None] if files.len() == 1 => Err(LogError::NotFormatted),
        [None, None] => {
            let what = format!("first copy: {}, second copy: {}", why[0], why[1]);
            Err(unusable(Case::D, what))
        }
    }
}

/// Writes one copy and flushes it.
pub(crate) fn write<D: Device>(
    device: &mut D,
    pool: &Pool,
    superblock: &Superblock,
    copy: usize,
) -> Result<(), LogError> {
    let mut buf = pool.get(COPY_LEN).ok_or(LogError::NoMemory("the superblock"))?;
    superblock.encode(&mut buf);
    let offset = (copy * COPY_LEN) as u64;
    let written = device.write_now(SUPERBLOCK, offset, &buf.freeze());
    written.map_err(LogError::io("writing the superblock"))
}

fn unusable(case: Case, what: impl Into<String>) -> LogError {
    LogError::Superblock { case, what: what.into() }
}

/// Refuses a log that is another's (case F).
pub(crate) fn check_identity(found: Identity, expected: Identity) -> Result<(), LogError> {
    let parts = [
        ("cluster", found.cluster, expected.cluster),
        ("node", found.node as u64, expected.node as u64),
        ("incarnation", found.incarnation as u64, expected.incarnation as u64),
        ("lanes", found.lanes as u64, expected.lanes as u64),
        ("lane", found.lane as u64, expected.lane as u64),
    ];
    for (what, found, expected) in parts {
        if found != expected {
            return Err(LogError::Identity { what, found, expected });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Superblock {
        Superblock {
            identity: Identity { cluster: 7, node: 3, incarnation: 9, lane: 2, lanes: 4 },
            disk_id: 1 << 100,
            sequence: 5,
            boot: 77,
            formatted: true,
            marks: [
                Mark { tag: 9, horizon: 70, sequence: 4, ..Mark::beginning() },
                Mark::beginning(),
            ],
        }
    }

    #[test]
    fn what_is_written_is_read_and_any_flipped_bit_is_seen() {
        let mut bytes = vec![0; COPY_LEN];
        sample().encode(&mut bytes);
        assert_eq!(Superblock::decode(&bytes), Copy::Good(sample()));
        for at in [0, 9, 13, 40, 90, COPY_LEN - 1] {
            bytes[at] ^= 4;
            assert_eq!(Superblock::decode(&bytes), Copy::Bad, "byte {at}");
            bytes[at] ^= 4;
        }
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let mut bytes = vec![0; COPY_LEN];
        sample().encode(&mut bytes);
        bytes[CHECKED] = VERSION + 1;
        let crc = crc32fast::hash(&bytes[CHECKED..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Superblock::decode(&bytes), Copy::Unknown { version: VERSION + 1 });
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            Superblock::decode(&bytes);
        }
    }
}
