//! Reading a log from its files: what lies at a place, and whether anything valid lies behind it.
//!
//! Purpose: windowed reads for start-up and offline inspection, which block; while one window is gone
//! through in order, the next is on its way.
//! Invariant: "nothing here" is said only of bytes that were read; a device error is told as such,
//! because an unreadable sector is no proof of a torn write. Nothing is in flight when a write begins, or
//! when the scan has ended; a device that cannot be waited for is an error and not handed on.
//! What would break it: taking a read error for an empty place, or bytes read before a write for those
//! behind it; or forgetting a read that is still under way, for it ends as one of whoever has the device
//! then.

use crate::bytes::round_up;
use crate::device::{Completion, Device, FileId};
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
    /// What is being read ahead begins here.
    ahead: Option<Position>,
}

/// The one read that a scan has in flight. The log numbers its own from 0.
const AHEAD: u64 = u64::MAX;

impl<'a, D: Device> Scan<'a, D> {
    pub fn new(
        device: &'a mut D,
        pool: &'a Pool,
        disk_id: u128,
        lengths: BTreeMap<FileId, u32>,
    ) -> Result<Scan<'a, D>, LogError> {
        let window = pool.get(WINDOW).ok_or(LogError::NoMemory("reading the log"))?;
        let at = Position::default();
        Ok(Scan { device, pool, disk_id, lengths, window, at, filled: 0, ahead: None })
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
        // Far reads while going on from where the last one ended, short ones after a jump.
        let (start, end) = (self.at.offset, self.at.offset as usize + self.filled);
        let goes_on =
            self.at.segment == at.segment && (start as usize..=end).contains(&(at.offset as usize));
        let ahead = self.take_ahead()?;
        if goes_on
            && let Some((from, bytes)) = ahead
            && self.append(at, least, from, &bytes)
        {
            self.read_ahead(at.offset as usize + left);
            return Ok(());
        }
        self.filled = 0;
        if least > self.window.capacity() {
            self.window = self.pool.get(least).ok_or(LogError::NoMemory("reading a group"))?;
        }
        let wide = least.max(if goes_on { WINDOW } else { JUMP }).min(left);
        // Perhaps only a sector that nobody asked for is unreadable, at last one of the same block.
        let exact = round_up(len, self.device.sector());
        if self.read(at, wide).is_err() && self.read(at, least).is_err() {
            self.read(at, exact).map_err(|error| LogError::Unreadable { at, error })?;
        }
        if goes_on {
            self.read_ahead(at.offset as usize + left);
        }
        Ok(())
    }

    /// Starts to read what follows the window, up to the end of its file.
    fn read_ahead(&mut self, file_len: usize) {
        let from = self.at.plus(self.filled as u32);
        let len = file_len.saturating_sub(from.offset as usize).min(WINDOW);
        if len == 0 {
            return;
        }
        // Without memory for it, it is read when it is needed.
        let Some(mut buf) = self.pool.get(len) else { return };
        buf.set_len(len);
        self.device.read(AHEAD, from.segment, from.offset as u64, buf);
        self.device.submit();
        self.ahead = Some(from);
    }

    /// What was read ahead, if that went well; nothing is in flight then. An error: it still is, and the
    /// device must not be used any more.
    fn take_ahead(&mut self) -> Result<Option<(Position, Buf)>, LogError> {
        let mut completions = Vec::new();
        while let Some(at) = self.ahead {
            if let Err(error) = self.device.settle() {
                let doing = format!("waiting for segment {} to be read", at.segment);
                return Err(LogError::Io { doing, error });
            }
            self.device.poll(&mut completions);
            for completion in completions.drain(..) {
                if let Completion::Read { token: AHEAD, buf, result } = completion {
                    self.ahead = None;
                    return Ok(result.is_ok().then_some((at, buf)));
                }
            }
        }
        Ok(None)
    }

    /// Ends the scan: the device is its owner's again, with nothing in flight.
    ///
    /// # Errors
    /// The device cannot be waited for, and must not be used any more.
    pub fn end(mut self) -> Result<(), LogError> {
        self.take_ahead().map(drop)
    }

    /// Makes the window begin at `at`, within it now, and go on with the bytes from `from` on. False, and
    /// nothing done: they do not follow, or are not enough.
    fn append(&mut self, at: Position, least: usize, from: Position, bytes: &[u8]) -> bool {
        let skip = (at.offset - self.at.offset) as usize;
        let kept = self.filled - skip;
        let len = kept + bytes.len();
        if from != self.at.plus(self.filled as u32) || len < least {
            return false;
        }
        if len > self.window.capacity() {
            let Some(mut wider) = self.pool.get(len) else { return false };
            wider.set_len(len);
            wider[..kept].copy_from_slice(&self.window[skip..skip + kept]);
            self.window = wider;
        } else {
            self.window.copy_within(skip..skip + kept, 0);
            self.window.set_len(len);
        }
        self.window[kept..].copy_from_slice(bytes);
        (self.at, self.filled) = (at, len);
        true
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
        self.take_ahead()?;
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

impl<D: Device> Drop for Scan<'_, D> {
    /// Of a scan that failed, whose error is told already: nothing stays in flight if that can be had.
    fn drop(&mut self) {
        let _ = self.take_ahead();
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

    const FILE: usize = 5 << 20;

    /// A file of bytes that tell their places, on a disk that completes nothing by itself.
    fn long_file() -> (std::rc::Rc<std::cell::RefCell<Disk>>, Vec<u8>) {
        let bytes: Vec<u8> = (0..FILE).map(|at| (at / 64 * 31 + at) as u8).collect();
        let disk = Disk::new(16 << 20, Timing::Stepped);
        disk.borrow_mut().put_file(1, &bytes);
        (disk, bytes)
    }

    #[test]
    fn what_follows_is_read_while_a_window_is_gone_through() {
        let (disk, bytes) = long_file();
        let (mut device, pool) = (MemoryDevice::new(disk.clone()), Pool::new(16 << 20));
        let mut scan =
            Scan::new(&mut device, &pool, DISK, BTreeMap::from([(1, FILE as u32)])).unwrap();
        let (mut offset, mut in_flight, len) = (0, 0, 12 * BLOCK);
        while offset + len <= FILE {
            let at = Position { segment: 1, offset: offset as u32 };
            assert_eq!(scan.bytes(at, len).unwrap(), Some(&bytes[offset..offset + len]));
            in_flight += disk.borrow().in_flight();
            offset += 7 * BLOCK;
        }
        assert!(in_flight > FILE / (7 * BLOCK) / 2, "{in_flight} looks with a read under way");
        // Elsewhere, and a write: what was read ahead counts no more.
        let first = Position { segment: 1, offset: 0 };
        for offset in [0, WINDOW / 2, WINDOW] {
            let at = Position { segment: 1, offset: offset as u32 };
            assert_eq!(scan.bytes(at, len).unwrap(), Some(&bytes[offset..offset + len]));
        }
        let behind = first.plus(2 << 20);
        scan.write(behind, &pool.copy(&[7; BLOCK]).unwrap()).unwrap();
        assert_eq!(disk.borrow().in_flight(), 0, "nothing is read beside a write");
        assert_eq!(scan.bytes(behind, BLOCK).unwrap(), Some(&[7; BLOCK][..]));
        scan.bytes(first, len).unwrap();
        scan.bytes(first.plus(len as u32), WINDOW).unwrap();
        assert_eq!(disk.borrow().in_flight(), 1);
        scan.end().unwrap();
        assert_eq!(disk.borrow().in_flight(), 0, "a scan that has ended leaves nothing behind");
    }

    #[test]
    fn a_disk_that_stands_still_with_a_read_ahead_is_never_handed_on() {
        type Step = fn(Scan<'_, MemoryDevice>) -> Result<(), LogError>;
        let steps: [(&str, Step); 3] = [
            ("the end", |scan| scan.end()),
            ("a write", |mut scan| {
                let block = scan.pool.copy(&[7; BLOCK]).unwrap();
                scan.write(Position { segment: 1, offset: 0 }, &block)
            }),
            ("another place", |mut scan| {
                scan.bytes(Position { segment: 1, offset: 4 << 20 }, BLOCK).map(drop)
            }),
        ];
        for (name, step) in steps {
            let (disk, _) = long_file();
            let (mut device, pool) = (MemoryDevice::new(disk.clone()), Pool::new(16 << 20));
            let lengths = BTreeMap::from([(1, FILE as u32)]);
            let mut scan = Scan::new(&mut device, &pool, DISK, lengths).unwrap();
            for offset in [0, JUMP as u32] {
                scan.bytes(Position { segment: 1, offset }, BLOCK).unwrap();
            }
            assert_eq!(disk.borrow().in_flight(), 1, "{name}");
            disk.borrow_mut().freeze(true);
            let error = step(scan).unwrap_err().to_string();
            assert!(error.contains("waiting for segment 1 to be read"), "{name}: {error}");
        }
    }

    #[test]
    fn a_sector_that_cannot_be_read_ahead_is_told_of_where_it_is_asked_for() {
        let (disk, bytes) = long_file();
        disk.borrow_mut().make_unreadable(1, (3 << 20) + 5000);
        let (mut device, pool) = (MemoryDevice::new(disk), Pool::new(16 << 20));
        let mut scan =
            Scan::new(&mut device, &pool, DISK, BTreeMap::from([(1, FILE as u32)])).unwrap();
        for offset in (0..FILE).step_by(BLOCK) {
            let at = Position { segment: 1, offset: offset as u32 };
            let is_bad = offset == (3 << 20) + BLOCK;
            match scan.bytes(at, BLOCK) {
                Ok(read) => assert!(!is_bad && read == Some(&bytes[offset..offset + BLOCK])),
                Err(error) => assert!(is_bad && matches!(error, LogError::Unreadable { .. })),
            }
        }
    }
}
