//! Groups and records as they lie in a segment, for those who go over one without replaying it.
//!
//! Invariant: a group is given only whole, good, and at its own place, as in a replay.

use crate::format::{BLOCK, GROUP_HEADER, GroupHeader, Record, Records};
use crate::place::{Place, Position};

/// What lies at a place.
#[derive(Debug)]
pub enum Look<'a> {
    Group(RawGroup<'a>),
    /// A group may begin here; so many bytes from its start on would tell.
    Short {
        /// Bytes.
        need: usize,
    },
    /// No group begins here; one may in the next block.
    Nothing,
}

/// A group whose records are good; payloads are not looked at.
#[derive(Debug)]
pub struct RawGroup<'a> {
    header: GroupHeader,
    inline: &'a [u8],
}

/// A record of it.
#[derive(Debug)]
pub struct RawRecord<'a> {
    /// As appended.
    pub kind: u8,
    /// As appended.
    pub head: &'a [u8],
    /// Where the head lies.
    pub head_place: Place,
    /// The body if it lies with the head.
    pub body: Option<&'a [u8]>,
    /// Where the body lies (`len` 0 if there is none).
    pub body_place: Place,
    /// CRC32 of the body.
    pub body_crc: u32,
}

impl<'a> RawRecord<'a> {
    fn new(record: Record<'a>) -> RawRecord<'a> {
        RawRecord {
            kind: record.header.kind,
            head: record.head,
            head_place: record.head_place,
            body: record.body,
            body_place: record.body_place,
            body_crc: record.header.body_crc,
        }
    }
}

/// How far someone is who goes over the records of a group some at a time. What was looked at once is
/// not looked at again.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    header: GroupHeader,
    at: usize,
    left: u32,
}

impl Cursor {
    /// Bytes from the group's start to the next one's.
    pub fn group_len(&self) -> u32 {
        self.header.len
    }

    /// The next record; `None` behind the last. `bytes`: those that were looked at, from the group's
    /// start on.
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Option<RawRecord<'a>> {
        let inline = bytes.get(..self.header.inline_len as usize)?;
        let mut records = Records { header: self.header, inline, at: self.at, left: self.left };
        let record = records.next();
        (self.at, self.left) = (records.at, records.left);
        record.map(RawRecord::new)
    }
}

impl<'a> Look<'a> {
    pub(crate) fn at(bytes: &'a [u8], disk_id: u128, at: Position) -> Look<'a> {
        if bytes.len() < GROUP_HEADER {
            return Look::Short { need: BLOCK };
        }
        let Some(header) = GroupHeader::decode(bytes, disk_id, at) else { return Look::Nothing };
        let need = header.inline_len as usize;
        match bytes.get(..need) {
            None => Look::Short { need },
            Some(inline) if header.check(inline) => Look::Group(RawGroup { header, inline }),
            Some(_) => Look::Nothing,
        }
    }
}

impl<'a> RawGroup<'a> {
    /// Bytes from its start to the next one's.
    pub fn len(&self) -> u32 {
        self.header.len
    }

    /// Whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.header.records == 0
    }

    /// Its number in the log.
    pub fn sequence(&self) -> u64 {
        self.header.sequence
    }

    /// The number of its first record.
    pub fn first_record(&self) -> u64 {
        self.header.first_record
    }

    /// Its records, in order.
    pub fn records(&self) -> impl Iterator<Item = RawRecord<'a>> + use<'a> {
        self.header.records(self.inline).map(RawRecord::new)
    }

    /// Before its first record.
    pub fn cursor(&self) -> Cursor {
        Cursor { header: self.header, at: GROUP_HEADER, left: self.header.records }
    }
}
