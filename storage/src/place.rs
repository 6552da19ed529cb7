//! Names for things in the log: records, positions, byte ranges.

use crate::device::FileId;

/// Number of a record, from 1, without gaps. The last one is the "last record number" that nodes
/// tell each other (PROTOCOL 4.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub u64);

/// A log position: a segment file and a byte offset in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The segment's file number, from 1.
    pub segment: FileId,
    /// Bytes from the start of the file.
    pub offset: u32,
}

impl Position {
    pub(crate) fn plus(self, len: u32) -> Position {
        Position { offset: self.offset + len, ..self }
    }
}

/// A byte range in one segment file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// The segment's file number, from 1.
    pub segment: FileId,
    /// Bytes from the start of the file.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

impl Place {
    /// A narrower range: `len` bytes that start `skip` bytes into this one. `None` if it reaches
    /// outside.
    pub fn part(self, skip: u32, len: u32) -> Option<Place> {
        let end = skip.checked_add(len)?;
        (end <= self.len).then(|| Place { offset: self.offset + skip, len, ..self })
    }
}
