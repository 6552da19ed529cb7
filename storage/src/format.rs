//! What lies in a segment file: a header block, then groups of records.
//!
//! ```text
//! segment   0      header block: whose disk, which segment, sequence of its first group
//!           4096   group, group, ... each at a multiple of 4096, each the bytes of one flush
//! group     0      header (96 bytes), then the inline area: records one after the other
//!           P      payloads: large bodies, each at a sector boundary, padded to one
//!           end    padded to 4096
//! record    0      kind, flags, head length, body length, body checksum, payload offset (20 bytes)
//!           20     head, then the body if it is inline
//! ```
//!
//! Invariant: a group is good only at the disk, segment and offset for which it was written, and
//! only whole: its checksum covers header and inline area. A payload has a checksum of its own in
//! its record, so that a bad one does not take the records with it.
//! What would break it: a group that decodes at another place (value bytes may hold a copy of one).

use crate::bytes::{Reader, Writer, round_up};
use crate::place::{Place, Position};

/// Groups start at multiples of this many bytes.
pub(crate) const BLOCK: usize = 4096;
pub(crate) const GROUP_HEADER: usize = 96;
pub(crate) const RECORD_HEADER: usize = 20;
/// A group never exceeds this, whatever the configuration: the bound of what a decoder believes.
pub(crate) const GROUP_MAX: u32 = 64 << 20;

const SEGMENT_MAGIC: &[u8; 8] = b"racosSG\n";
const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"rGRP");
const VERSION: u8 = 1;
const CHECKED: usize = 8; // of a group: after magic and checksum
const PAYLOAD: u8 = 1; // record flag: the body is a payload

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub disk_id: u128,
    pub segment: u32,
    pub first_sequence: u64,
}

impl SegmentHeader {
    pub fn encode(&self, out: &mut [u8]) {
        let (front, checked) = out[..BLOCK].split_at_mut(12);
        checked.fill(0);
        let mut put = Writer::new(checked);
        put.u8(VERSION);
        put.u128(self.disk_id);
        put.u32(self.segment);
        put.u64(self.first_sequence);
        let crc = crc32fast::hash(checked);
        let mut put = Writer::new(front);
        put.put(SEGMENT_MAGIC);
        put.u32(crc);
    }

    /// `None` for anything that is not a whole header of this version.
    pub fn decode(bytes: &[u8]) -> Option<SegmentHeader> {
        let mut get = Reader(bytes.get(..BLOCK)?);
        if get.take(SEGMENT_MAGIC.len())? != SEGMENT_MAGIC || get.u32()? != crc32fast::hash(get.0) {
            return None;
        }
        if get.u8()? != VERSION {
            return None;
        }
        let (disk_id, segment, first_sequence) = (get.u128()?, get.u32()?, get.u64()?);
        Some(SegmentHeader { disk_id, segment, first_sequence })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    pub disk_id: u128,
    pub sequence: u64,
    pub first_record: u64,
    pub at: Position,
    /// The log up to here was flushed when this group was written: where the group before it ends.
    pub flushed: Position,
    /// Whole length, a multiple of 4096.
    pub len: u32,
    /// Header and records.
    pub inline_len: u32,
    pub payload_start: u32,
    pub records: u32,
}

impl GroupHeader {
    pub fn end(&self) -> Position {
        self.at.plus(self.len)
    }

    /// Writes the header in front of the records that `group` holds up to `inline_len`.
    pub fn encode(&self, group: &mut [u8]) {
        let (front, checked) = group[..self.inline_len as usize].split_at_mut(CHECKED);
        let mut put = Writer::new(&mut checked[..GROUP_HEADER - CHECKED]);
        put.u8(VERSION);
        put.put(&[0; 3]);
        put.u32(self.len);
        put.u128(self.disk_id);
        put.u64(self.sequence);
        put.u64(self.first_record);
        put.u32(self.at.segment);
        put.u32(self.at.offset);
        put.u32(self.flushed.segment);
        put.u32(self.flushed.offset);
        put.u32(self.inline_len);
        put.u32(self.payload_start);
        put.u32(self.records);
        put.put(&[0; 20]);
        let crc = crc32fast::hash(checked);
        let mut put = Writer::new(front);
        put.u32(GROUP_MAGIC);
        put.u32(crc);
    }

    /// The header if these bytes could start a group of this disk at this place. The checksum,
    /// which needs the inline area, is checked by [`GroupHeader::check`].
    pub fn decode(bytes: &[u8], disk_id: u128, at: Position) -> Option<GroupHeader> {
        let mut get = Reader(bytes.get(..GROUP_HEADER)?);
        if get.u32()? != GROUP_MAGIC {
            return None;
        }
        let _checksum = get.u32()?;
        let version = get.u8()?;
        get.take(3)?;
        let len = get.u32()?;
        let header = GroupHeader {
            len,
            disk_id: get.u128()?,
            sequence: get.u64()?,
            first_record: get.u64()?,
            at: Position { segment: get.u32()?, offset: get.u32()? },
            flushed: Position { segment: get.u32()?, offset: get.u32()? },
            inline_len: get.u32()?,
            payload_start: get.u32()?,
            records: get.u32()?,
        };
        let shaped = version == VERSION
            && len <= GROUP_MAX
            && (len as usize).is_multiple_of(BLOCK)
            && header.inline_len as usize >= GROUP_HEADER
            && header.inline_len <= header.payload_start
            && header.payload_start <= len
            && at.offset.checked_add(len).is_some();
        // PROTOCOL 4.4-k: where it says it belongs, on the disk that wrote it.
        (shaped && header.disk_id == disk_id && header.at == at).then_some(header)
    }

    /// Whether `inline` (header and records, `inline_len` bytes) is what was written: checksum good
    /// and every record inside its bounds.
    pub fn check(&self, inline: &[u8]) -> bool {
        if inline.len() != self.inline_len as usize || inline.len() < GROUP_HEADER {
            return false;
        }
        let stored = u32::from_le_bytes([inline[4], inline[5], inline[6], inline[7]]);
        let checked = !mutant!("checksum of groups unchecked");
        if checked && crc32fast::hash(&inline[CHECKED..]) != stored {
            return false;
        }
        let mut records = self.records(inline);
        let counted = records.by_ref().count();
        counted == self.records as usize && records.at == inline.len()
    }

    /// The records of a group whose inline area passed [`GroupHeader::check`].
    pub fn records<'a>(&self, inline: &'a [u8]) -> Records<'a> {
        Records { header: *self, inline, at: GROUP_HEADER, left: self.records }
    }
}

/// One record's fixed part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub kind: u8,
    pub head_len: u32,
    pub body_len: u32,
    pub body_crc: u32,
    /// Offset from the group's payload start, if the body is a payload.
    pub payload: Option<u32>,
}

impl RecordHeader {
    pub fn encode(&self, out: &mut [u8]) {
        let mut put = Writer::new(&mut out[..RECORD_HEADER]);
        put.u8(self.kind);
        put.u8(if self.payload.is_some() { PAYLOAD } else { 0 });
        put.u16(0);
        put.u32(self.head_len);
        put.u32(self.body_len);
        put.u32(self.body_crc);
        put.u32(self.payload.unwrap_or(0));
    }

    fn decode(bytes: &[u8]) -> Option<RecordHeader> {
        let mut get = Reader(bytes);
        let (kind, flags, zero) = (get.u8()?, get.u8()?, get.u16()?);
        if flags > PAYLOAD || zero != 0 {
            return None;
        }
        let (head_len, body_len) = (get.u32()?, get.u32()?);
        let (body_crc, payload) = (get.u32()?, get.u32()?);
        let payload = (flags == PAYLOAD).then_some(payload);
        Some(RecordHeader { kind, head_len, body_len, body_crc, payload })
    }
}

/// A record found in a group.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub header: RecordHeader,
    pub head: &'a [u8],
    pub head_place: Place,
    /// The body if it is inline.
    pub body: Option<&'a [u8]>,
    pub body_place: Place,
}

/// Goes over the records of a group; ends early at one that is not inside its bounds.
pub(crate) struct Records<'a> {
    pub header: GroupHeader,
    pub inline: &'a [u8],
    pub at: usize,
    pub left: u32,
}

impl<'a> Records<'a> {
    fn record(&mut self) -> Option<Record<'a>> {
        let mut get = Reader(self.inline.get(self.at..)?);
        let header = RecordHeader::decode(get.take(RECORD_HEADER)?)?;
        let group = self.header.at;
        let place = |offset: usize, len: u32| Place {
            segment: group.segment,
            offset: group.offset + offset as u32,
            len,
        };
        let head_at = self.at + RECORD_HEADER;
        let head = get.take(header.head_len as usize)?;
        let head_place = place(head_at, header.head_len);
        let body_at = head_at + head.len();
        let (body, body_place, end) = match header.payload {
            None => {
                let body = get.take(header.body_len as usize)?;
                (Some(body), place(body_at, header.body_len), body_at + body.len())
            }
            Some(offset) => {
                let start = self.header.payload_start.checked_add(offset)?;
                if start.checked_add(header.body_len)? > self.header.len {
                    return None;
                }
                (None, place(start as usize, header.body_len), body_at)
            }
        };
        self.at = end;
        Some(Record { header, head, head_place, body, body_place })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        self.left = self.left.checked_sub(1)?;
        let record = self.record();
        if record.is_none() {
            self.left = 0;
        }
        record
    }
}

/// Where payloads start behind `inline_len` bytes, and how long the group is with `payload_len`
/// bytes of them (both already padded to the sector).
pub(crate) fn group_shape(inline_len: usize, payload_len: usize, sector: usize) -> (usize, usize) {
    let payload_start = round_up(inline_len, sector);
    (payload_start, round_up(payload_start + payload_len, BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: u128 = 0xdead_beef << 64;
    const AT: Position = Position { segment: 2, offset: 8192 };

    fn group() -> (GroupHeader, Vec<u8>) {
        let mut bytes = vec![0; BLOCK * 2];
        let records = [
            RecordHeader { kind: 1, head_len: 3, body_len: 2, body_crc: 5, payload: None },
            RecordHeader { kind: 2, head_len: 0, body_len: 600, body_crc: 9, payload: Some(0) },
        ];
        let mut at = GROUP_HEADER;
        for record in records {
            record.encode(&mut bytes[at..]);
            at += RECORD_HEADER + record.head_len as usize;
            at += if record.payload.is_none() { record.body_len as usize } else { 0 };
        }
        let (start, len) = group_shape(at, 1024, 512);
        let header = GroupHeader {
            disk_id: DISK,
            sequence: 4,
            first_record: 10,
            at: AT,
            flushed: Position { segment: 2, offset: 4096 },
            len: len as u32,
            inline_len: at as u32,
            payload_start: start as u32,
            records: 2,
        };
        header.encode(&mut bytes);
        (header, bytes)
    }

    #[test]
    fn a_group_reads_back_with_the_places_of_its_parts() {
        let (header, bytes) = group();
        let found = GroupHeader::decode(&bytes, DISK, AT).unwrap();
        assert_eq!(found, header);
        let inline = &bytes[..found.inline_len as usize];
        assert!(found.check(inline));
        let records: Vec<_> = found.records(inline).collect();
        assert_eq!(records[0].head_place.offset, 8192 + 96 + 20);
        assert_eq!(records[0].body.unwrap().len(), 2);
        assert_eq!(records[1].body_place, Place { segment: 2, offset: 8192 + 512, len: 600 });
        assert!(records[1].body.is_none());
    }

    /// tests PROTOCOL 4.4-k
    #[test]
    fn a_group_counts_only_at_its_own_place_and_disk() {
        let (_, bytes) = group();
        assert!(GroupHeader::decode(&bytes, DISK + 1, AT).is_none());
        assert!(GroupHeader::decode(&bytes, DISK, AT.plus(4096)).is_none());
        assert!(GroupHeader::decode(&bytes, DISK, Position { segment: 3, ..AT }).is_none());
    }

    #[test]
    fn every_flipped_byte_of_header_and_records_is_seen() {
        let (header, mut bytes) = group();
        for at in 0..header.inline_len as usize {
            bytes[at] ^= 0x10;
            let good = GroupHeader::decode(&bytes, DISK, AT)
                .is_some_and(|found| found.check(&bytes[..(found.inline_len as usize).min(8192)]));
            assert!(!good, "byte {at}");
            bytes[at] ^= 0x10;
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..6000),
                                       shaped in any::<bool>(), records in any::<u32>()) {
            SegmentHeader::decode(&bytes);
            GroupHeader::decode(&bytes, DISK, AT);
            if shaped && bytes.len() >= GROUP_HEADER {
                // The right front, so that the record decoder is reached.
                let (mut header, _) = group();
                header.inline_len = bytes.len() as u32;
                header.payload_start = header.inline_len;
                header.len = GROUP_MAX;
                header.records = records;
                header.encode(&mut bytes);
                header.check(&bytes);
                header.records(&bytes).take(10_000).for_each(drop);
            }
        }
    }
}
