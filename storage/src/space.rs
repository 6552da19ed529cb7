//! Which segments there are, and what room is left in them.
//!
//! Purpose: decides where the next group goes and when another segment must be made.
//! PROTOCOL 4.4-m: whether a record may be dropped is the caller's to say, and its place says
//! nothing about it.
//! Invariant: `ahead` holds whole, zeroed, flushed segments with consecutive numbers behind the
//! current one; room that was promised to a record stays.
//! What would break it: counting a segment before its `Prepared` has come.

use crate::device::FileId;
use crate::format::BLOCK;
use crate::place::Position;
use std::collections::{BTreeMap, VecDeque};

pub(crate) struct Space {
    /// Usable length of every segment, by number.
    lengths: BTreeMap<FileId, u32>,
    /// The sum of them.
    total: u64,
    ahead: VecDeque<FileId>,
    /// What records can take of those. Kept, because every record asks for it.
    ahead_bytes: u64,
    /// Where the group that is being filled will go.
    pub cursor: Position,
    pub preparing: bool,
    pub disk_full: bool,
    /// Bytes of segments that were made of space that is to be left free, and not made good for.
    pub lent_bytes: u64,
}

/// Where a group of some length goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub at: Position,
    pub rolls: bool,
    /// Prepared bytes that are left behind it.
    pub left: u64,
}

/// What records can take of a segment of some length: all but its header.
fn room_of(len: u32) -> u64 {
    u64::from(len) - BLOCK as u64
}

impl Space {
    pub fn new(lengths: BTreeMap<FileId, u32>, cursor: Position) -> Space {
        let mut ahead = VecDeque::new();
        let mut next = cursor.segment + 1;
        while lengths.contains_key(&next) {
            ahead.push_back(next);
            next += 1;
        }
        let total = lengths.values().map(|len| u64::from(*len)).sum();
        let ahead_bytes = ahead.iter().map(|segment| room_of(lengths[segment])).sum();
        Space {
            lengths,
            total,
            ahead,
            ahead_bytes,
            cursor,
            preparing: false,
            disk_full: false,
            lent_bytes: 0,
        }
    }

    pub fn len_of(&self, segment: FileId) -> Option<u32> {
        self.lengths.get(&segment).copied()
    }

    /// The number for the next new segment.
    pub fn next_file(&self) -> FileId {
        self.ahead.back().copied().unwrap_or(self.cursor.segment) + 1
    }

    pub fn ahead(&self) -> usize {
        self.ahead.len()
    }

    pub fn add(&mut self, segment: FileId, len: u32) {
        debug_assert_eq!(segment, self.next_file(), "segments are made in order");
        self.lengths.insert(segment, len);
        self.total += u64::from(len);
        self.ahead_bytes += room_of(len);
        self.ahead.push_back(segment);
    }

    /// Bytes that records can still take without another segment.
    pub fn prepared_bytes(&self) -> u64 {
        let current = self.lengths[&self.cursor.segment].saturating_sub(self.cursor.offset);
        u64::from(current) + self.ahead_bytes
    }

    /// Takes a segment out that is not the current one, nor ahead of it. Returns its length.
    pub fn remove(&mut self, segment: FileId) -> Option<u32> {
        assert!(segment < self.cursor.segment, "only what lies behind is given back");
        let len = self.lengths.remove(&segment)?;
        self.total -= u64::from(len);
        Some(len)
    }

    /// All segments with their lengths, in order.
    pub fn segments(&self) -> impl Iterator<Item = (FileId, u32)> + '_ {
        self.lengths.iter().map(|(segment, len)| (*segment, *len))
    }

    /// Bytes of all segment files.
    pub fn file_bytes(&self) -> u64 {
        self.total
    }

    /// Bytes of all segments behind `cursor`, the current one up to it.
    pub fn used_bytes(&self) -> u64 {
        let before = self.lengths.range(..self.cursor.segment).map(|(_, len)| *len as u64);
        before.sum::<u64>() + self.cursor.offset as u64
    }

    /// Where a group of `len` bytes goes that starts at `from` (in the current segment) or, if it
    /// does not fit there, in the next segment. `None` if there is none or it is too short.
    pub fn spot(&self, from: Position, len: usize) -> Option<Spot> {
        let room = self.lengths[&from.segment].saturating_sub(from.offset) as usize;
        if len <= room {
            let left = (room - len) as u64 + self.ahead_bytes;
            return Some(Spot { at: from, rolls: false, left });
        }
        let next = *self.ahead.front()?;
        let room = room_of(self.lengths[&next]);
        let at = Position { segment: next, offset: BLOCK as u32 };
        let left = room.checked_sub(len as u64)? + self.ahead_bytes - room;
        Some(Spot { at, rolls: true, left })
    }

    /// Moves the cursor to a spot.
    pub fn take(&mut self, spot: Spot) {
        if spot.rolls {
            let next = self.ahead.pop_front();
            debug_assert_eq!(next, Some(spot.at.segment), "segments are used in order");
            self.ahead_bytes -= room_of(self.lengths[&spot.at.segment]);
        }
        self.cursor = spot.at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left is what the segments themselves say, whatever came before.
    #[test]
    fn room_that_is_left_follows_segments_that_come_and_are_used_up() {
        let len = |segment: FileId| 3 * BLOCK as u32 * (1 + segment % 3);
        let lengths = (1..4).map(|segment| (segment, len(segment))).collect();
        let mut space = Space::new(lengths, Position { segment: 1, offset: BLOCK as u32 });
        for step in 0..40 {
            if step % 3 == 0 {
                let next = space.next_file();
                space.add(next, len(next));
            }
            let Some(spot) = space.spot(space.cursor, BLOCK) else { continue };
            let behind = space.segments().filter(|(segment, _)| *segment > spot.at.segment);
            let behind: u64 = behind.map(|(_, len)| u64::from(len) - BLOCK as u64).sum();
            let here = u64::from(len(spot.at.segment) - spot.at.offset) - BLOCK as u64;
            assert_eq!(spot.left, here + behind);
            space.take(spot);
            space.cursor.offset += BLOCK as u32;
            assert_eq!(space.prepared_bytes(), spot.left);
        }
        assert!(space.cursor.segment > 3, "segments were used up");
    }
}
