//! Reading a log from its files: what lies at a place, and whether anything valid lies behind it.
//!
//! Purpose: blocking, windowed reads for start-up and offline inspection.
//! Invariant: "nothing here" is said only of bytes that were read; a device error is told as such,
//! because an unreadable sector is no proof of a torn write.
//! What would break it: taking a read error for an empty place.

use crate::bytes::round_up;
use crate::device::{Device, FileId};
use crate::error::LogError;
use crate::format::{BLOCK, GROUP_HEADER, GroupHeader, SegmentHeader};
use crate::place::{Place, Position};
use racos_buffer::{Buf, Pool, Slice};
use std::collections::BTreeMap;

/// Bytes read at a time.
const WINDOW: usize = 1 << 20;
/// Bytes read at first behind a payload that was skipped.
const JUMP: usize = 64 << 10;

pub(crate) struct Scan<'a, D: Device> {
    device: &'a mut D,
    pool: &'a Pool,
    disk_id: u128,
    /// Whole blocks in each segment file.
    pub lengths: BTreeMap<FileId, u32>,
    window: Buf,
    at: Position,
    filled: usize,
}

impl<'a, D: Device> Scan<'a, D> {
    pub fn new(
        device: &'a mut D,
        pool: &'a Pool,
        disk_id: u128,
        lengths: BTreeMap<FileId, u32>,
    ) -> Result<Scan<'a, D>, LogError> {
        let window = pool.get(WINDOW).ok_or(LogError::NoMemory("reading the log"))?;
        Ok(Scan { device, pool, disk_id, lengths, window, at: Position::default(), filled: 0 })
    }

    /// The `len` bytes at a block boundary, or `None` if the file ends before.
    pub fn bytes(&mut self, at: Position, len: usize) -> Result<Option<&[u8]>, LogError> {
        let file_len = self.lengths.get(&at.segment).copied().unwrap_or(0) as usize;
        let offset = at.offset as usize;
        if offset + len > file_len {
            return Ok(None);
        }
        let start = self.at.offset as usize;
        let held =
            self.at.segment == at.segment && start <= offset && offset + len <= start + self.filled;
        if !held {
            self.fill(at, len, file_len - offset)?;
        }
        let skip = offset - self.at.offset as usize;
        Ok(Some(&self.window[skip..skip + len]))
    }

    fn fill(&mut self, at: Position, len: usize, left: usize) -> Result<(), LogError> {
        let least = round_up(len, BLOCK);
        if least > self.window.capacity() {
            self.window = self.pool.get(least).ok_or(LogError::NoMemory("reading a group"))?;
        }
        // Far reads while going on from where the last one ended, short ones after a jump.
        let (start, end) = (self.at.offset, self.at.offset as usize + self.filled);
        let goes_on =
            self.at.segment == at.segment && (start as usize..=end).contains(&(at.offset as usize));
        self.filled = 0;
        let wide = least.max(if goes_on { WINDOW } else { JUMP }).min(left);
        // Perhaps only a sector that nobody asked for is unreadable, at last one of the same block.
        let exact = round_up(len, self.device.sector());
        if self.read(at, wide).is_err() && self.read(at, least).is_err() {
            self.read(at, exact).map_err(|error| LogError::Unreadable { at, error })?;
        }
        Ok(())
    }

    fn read(&mut self, at: Position, len: usize) -> std::io::Result<()> {
        self.window.set_len(len);
        self.device.read_now(at.segment, at.offset as u64, &mut self.window)?;
        (self.at, self.filled) = (at, len);
        Ok(())
    }

    /// The group at `at`, if header, inline area and place are good. Payloads are not looked at.
    pub fn group(&mut self, at: Position) -> Result<Option<GroupHeader>, LogError> {
        let disk_id = self.disk_id;
        let Some(bytes) = self.bytes(at, GROUP_HEADER)? else {
            return Ok(None);
        };
        let Some(header) = GroupHeader::decode(bytes, disk_id, at) else {
            return Ok(None);
        };
        let file_len = self.lengths.get(&at.segment).copied().unwrap_or(0);
        if header.end().offset > file_len {
            return Ok(None);
        }
        let inline = self.bytes(at, header.inline_len as usize)?;
        Ok(inline.is_some_and(|inline| header.check(inline)).then_some(header))
    }

    /// The segment's header block, if it is whole.
    pub fn segment(&mut self, segment: FileId) -> Result<Option<SegmentHeader>, LogError> {
        let bytes = self.bytes(Position { segment, offset: 0 }, BLOCK)?;
        Ok(bytes.and_then(SegmentHeader::decode))
    }

    /// Whether a segment's header is that of this disk and this number.
    pub fn owns(&self, header: &SegmentHeader, segment: FileId) -> bool {
        header.disk_id == self.disk_id && header.segment == segment
    }

    /// Whether the bytes of a body have this checksum. Reads past the window's bounds.
    pub fn body_is_good(&mut self, body: Place, crc: u32) -> Result<bool, LogError> {
        let mut hasher = crc32fast::Hasher::new();
        let (mut offset, end) = (body.offset as usize, (body.offset + body.len) as usize);
        while offset < end {
            let block = offset / BLOCK * BLOCK;
            let len = (end - block).min(WINDOW);
            let at = Position { segment: body.segment, offset: block as u32 };
            let Some(bytes) = self.bytes(at, round_up(len, BLOCK))? else {
                return Ok(false);
            };
            hasher.update(&bytes[offset - block..len]);
            offset = block + len;
        }
        Ok(hasher.finalize() == crc)
    }

    /// The bytes of a body, if they have this checksum.
    pub fn body(&mut self, body: Place, crc: u32) -> Result<Option<&[u8]>, LogError> {
        let block = body.offset as usize / BLOCK * BLOCK;
        let skip = body.offset as usize - block;
        let len = body.len as usize;
        let at = Position { segment: body.segment, offset: block as u32 };
        let bytes = self.bytes(at, round_up(skip + len, BLOCK))?;
        let bytes = bytes.map(|bytes| &bytes[skip..skip + len]);
        Ok(bytes.filter(|bytes| crc32fast::hash(bytes) == crc))
    }

    /// Whether every payload of a good group is good. One that cannot be read stops the scan.
    pub fn payloads_are_good(&mut self, header: &GroupHeader) -> Result<bool, LogError> {
        Ok(self.damaged_payloads(header, |is_good| is_good)?.is_empty())
    }

    /// Numbers of the records whose payload is bad; `judge` says what one that cannot be read is.
    pub fn damaged_payloads(
        &mut self,
        header: &GroupHeader,
        judge: impl Fn(Result<bool, LogError>) -> Result<bool, LogError>,
    ) -> Result<Vec<u64>, LogError> {
        let inline = self.bytes(header.at, header.inline_len as usize)?;
        let records = inline.into_iter().flat_map(|inline| header.records(inline));
        let stored: Vec<_> = (header.first_record..)
            .zip(records)
            .filter(|(_, record)| record.body.is_none())
            .map(|(id, record)| (id, record.body_place, record.header.body_crc))
            .collect();
        let mut damaged = Vec::new();
        for (id, body, crc) in stored {
            if !judge(self.body_is_good(body, crc))? {
                damaged.push(id);
            }
        }
        Ok(damaged)
    }

    /// Writes and flushes; what was read before is read again.
    pub fn write(&mut self, at: Position, bytes: &Slice) -> Result<(), LogError> {
        self.filled = 0;
        let doing = format!("writing segment {} at byte {}", at.segment, at.offset);
        self.device.write_now(at.segment, at.offset as u64, bytes).map_err(LogError::io(doing))
    }

    /// Whether nothing was written to a segment since its front was zeroed: its header and its first
    /// group are written together, before anything else.
    fn is_unused(&mut self, segment: FileId) -> Result<bool, LogError> {
        let first = Position { segment, offset: BLOCK as u32 };
        Ok(self.segment(segment)?.is_none() && self.group(first)?.is_none())
    }

    /// A valid group behind `p` that proves that `p` was flushed and promised: of this log, with a
    /// sequence of at least `sequence`, written when everything up to beyond `p` was flushed.
    pub fn witness(&mut self, p: Position, sequence: u64) -> Result<Option<Position>, LogError> {
        let segments: Vec<_> = self.lengths.range(p.segment..).map(|(s, len)| (*s, *len)).collect();
        for (segment, len) in segments {
            // Segments made ahead are many, and hold what their files held in an earlier use.
            if segment != p.segment && self.is_unused(segment)? {
                continue;
            }
            let first = if segment == p.segment { p.offset as usize + BLOCK } else { 0 };
            for offset in (first..len as usize).step_by(BLOCK) {
                let at = Position { segment, offset: offset as u32 };
                let group = self.group(at)?;
                if group.is_some_and(|group| group.sequence >= sequence && group.flushed > p) {
                    return Ok(Some(at));
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::{Disk, MemoryDevice, Timing};

    const DISK: u128 = 77;
    const P: Position = Position { segment: 1, offset: 8192 };

    /// A disk of two segments with one group in it, as this disk would write it.
    fn with_group(at: Position, sequence: u64, flushed: Position) -> MemoryDevice {
        let disk = Disk::new(1 << 20, Timing::Immediate);
        for segment in [1, 2] {
            let mut image = vec![0; 64 << 10];
            if segment == at.segment {
                let header = GroupHeader {
                    disk_id: DISK,
                    sequence,
                    first_record: 1,
                    at,
                    flushed,
                    len: BLOCK as u32,
                    inline_len: GROUP_HEADER as u32,
                    payload_start: BLOCK as u32,
                    records: 0,
                };
                header.encode(&mut image[at.offset as usize..]);
            }
            disk.borrow_mut().put_file(segment, &image);
        }
        MemoryDevice::new(disk)
    }

    fn witness(at: Position, sequence: u64, flushed: Position) -> Option<Position> {
        let (mut device, pool) = (with_group(at, sequence, flushed), Pool::new(8 << 20));
        let lengths = BTreeMap::from([(1, 64 << 10), (2, 64 << 10)]);
        let mut scan = Scan::new(&mut device, &pool, DISK, lengths).unwrap();
        scan.witness(P, 5).unwrap()
    }

    /// tests PROTOCOL 4.4-e
    #[test]
    fn only_a_group_written_after_p_was_flushed_proves_that_p_was_promised() {
        let behind = Position { segment: 1, offset: 16384 };
        let next = Position { segment: 2, offset: 4096 };
        let beyond_p = P.plus(4096);
        assert_eq!(witness(behind, 6, beyond_p), Some(behind));
        assert_eq!(witness(behind, 5, beyond_p), Some(behind));
        assert_eq!(witness(next, 9, beyond_p), Some(next));
        assert_eq!(witness(behind, 6, P), None, "of the same flush, or begun before p's end");
        assert_eq!(witness(behind, 4, beyond_p), None, "older than what is expected");
        assert_eq!(witness(P, 6, beyond_p), None, "p itself");
        assert_eq!(witness(Position { segment: 1, offset: 4096 }, 6, beyond_p), None, "before p");
    }

    #[test]
    fn a_group_is_found_only_whole_and_inside_its_file() {
        let at = Position { segment: 1, offset: 16384 };
        let (mut device, pool) = (with_group(at, 6, P), Pool::new(8 << 20));
        for (len, found) in [(64 << 10, true), (20_480, true), (16_384, false), (12_288, false)] {
            let lengths = BTreeMap::from([(1, len)]);
            let mut scan = Scan::new(&mut device, &pool, DISK, lengths).unwrap();
            assert_eq!(scan.group(at).unwrap().is_some(), found, "file of {len} bytes");
        }
    }
}
