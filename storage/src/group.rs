//! A group being filled: the records of one flush.
//!
//! Purpose: encodes records straight into an aligned buffer and keeps references to large bodies,
//! so that a record costs no allocation.
//! Invariant: the encoded length never exceeds the limits, and every part handed to the device is
//! aligned to its sector in memory and a multiple of it long.
//! What would break it: adding a record without asking [`Group::takes`] first.

use crate::bytes::round_up;
use crate::config::LogConfig;
use crate::device::PARTS_MAX;
use crate::format::{GROUP_HEADER, RECORD_HEADER, RecordHeader, group_shape};
use crate::place::{Place, Position};
use racos_buffer::{Buf, Pool, Slice};

/// Segment header, inline area and padding need parts of their own.
const PAYLOAD_PARTS_MAX: usize = PARTS_MAX - 3;
/// Bodies in more pieces than this are copied together.
const BODY_PARTS_MAX: usize = 256;

/// What a record takes of a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    inline: usize,
    payload: usize,
    parts: usize,
}

impl Need {
    /// For a head and a body of these lengths, the body in this many pieces.
    pub fn new(
        head_len: usize,
        body_len: usize,
        pieces: usize,
        config: &LogConfig,
        sector: usize,
    ) -> Need {
        let inline = RECORD_HEADER + head_len;
        if body_len < config.inline_body_max {
            return Need { inline: inline + body_len, payload: 0, parts: 0 };
        }
        let parts = if pieces > BODY_PARTS_MAX { 1 } else { pieces };
        Need { inline, payload: round_up(body_len, sector), parts }
    }

    pub fn bytes(&self) -> usize {
        self.inline + self.payload
    }
}

/// Where a record of a group lies, relative to it.
#[derive(Clone, Copy, Debug)]
struct Note {
    head_at: u32,
    head_len: u32,
    body_at: u32,
    body_len: u32,
    body_crc: u32,
    /// `body_at` counts from the payload start.
    payload: bool,
}

/// A record's places, once its group has one.
pub(crate) struct Placed {
    pub head: Place,
    pub body: Place,
    pub body_crc: u32,
}

#[derive(Default)]
pub(crate) struct Group {
    buf: Option<Buf>,
    used: usize,
    parts: Vec<Slice>,
    payload_len: usize,
    notes: Vec<Note>,
    pub first_record: u64,
    /// What the records count for in the bound of waiting bytes.
    pub queued_bytes: usize,
}

impl Group {
    /// Gives the group its buffer, once.
    pub fn supply(&mut self, buf: Buf) {
        debug_assert!(self.buf.is_none(), "a group has one buffer");
        self.buf = Some(buf);
        self.used = GROUP_HEADER;
    }

    pub fn has_buffer(&self) -> bool {
        self.buf.is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    pub fn records(&self) -> u32 {
        self.notes.len() as u32
    }

    fn shape_with(&self, need: Option<&Need>, sector: usize) -> (usize, usize) {
        let used = self.used.max(GROUP_HEADER);
        let (inline, payload) = need.map_or((0, 0), |need| (need.inline, need.payload));
        group_shape(used + inline, self.payload_len + payload, sector)
    }

    /// Bytes on disk as it stands.
    pub fn len(&self, sector: usize) -> usize {
        self.shape_with(None, sector).1
    }

    /// Bytes on disk with one more record, or `None` if the group cannot take it.
    pub fn takes(&self, need: &Need, config: &LogConfig, sector: usize) -> Option<usize> {
        let (payload_start, len) = self.shape_with(Some(need), sector);
        let fits = payload_start <= config.inline_bytes_max
            && len <= config.group_bytes_max
            && self.parts.len() + need.parts <= PAYLOAD_PARTS_MAX;
        fits.then_some(len)
    }

    /// Adds a record. `false`, with nothing added, if the pool has no buffer for a copy that the
    /// body needs.
    pub fn add(
        &mut self,
        kind: u8,
        head: &[u8],
        body: &[Slice],
        need: &Need,
        pool: &Pool,
        sector: usize,
    ) -> bool {
        let is_payload = need.parts > 0;
        if is_payload && !gather(&mut self.parts, body, pool, sector) {
            return false;
        }
        let mut crc = crc32fast::Hasher::new();
        body.iter().for_each(|slice| crc.update(slice));
        let body_len: usize = body.iter().map(|slice| slice.len()).sum();
        let header = RecordHeader {
            kind,
            head_len: head.len() as u32,
            body_len: body_len as u32,
            body_crc: crc.finalize(),
            payload: is_payload.then_some(self.payload_len as u32),
        };
        let buf = self.buf.as_mut().expect("a group that takes a record has a buffer");
        header.encode(&mut buf[self.used..]);
        let head_at = self.used + RECORD_HEADER;
        let body_at = head_at + head.len();
        buf[head_at..body_at].copy_from_slice(head);
        self.used = body_at;
        if !is_payload {
            for slice in body {
                buf[self.used..self.used + slice.len()].copy_from_slice(slice);
                self.used += slice.len();
            }
        }
        self.notes.push(Note {
            head_at: head_at as u32,
            head_len: header.head_len,
            body_at: if is_payload { self.payload_len as u32 } else { body_at as u32 },
            body_len: header.body_len,
            body_crc: header.body_crc,
            payload: is_payload,
        });
        self.payload_len += need.payload;
        self.queued_bytes += need.bytes();
        true
    }

    /// The buffer, and what lies where in it: (buffer, inline length, payload start, group length).
    pub fn take_buffer(&mut self, sector: usize) -> (Buf, usize, usize, usize) {
        let (payload_start, len) = self.shape_with(None, sector);
        let buf = self.buf.take().expect("a group to be written has a buffer");
        (buf, self.used, payload_start, len)
    }

    pub fn payload_parts(&mut self) -> &mut Vec<Slice> {
        &mut self.parts
    }

    pub fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// Where each record lies, in order, for a group at `at`.
    pub fn placed(&self, at: Position, payload_start: u32) -> impl Iterator<Item = Placed> {
        let place = move |offset: u32, len: u32| Place {
            segment: at.segment,
            offset: at.offset + offset,
            len,
        };
        self.notes.iter().map(move |note| {
            let base = if note.payload { payload_start } else { 0 };
            Placed {
                head: place(note.head_at, note.head_len),
                body: place(base + note.body_at, note.body_len),
                body_crc: note.body_crc,
            }
        })
    }

    /// Empties the group for reuse; what it has allocated stays.
    pub fn clear(&mut self) {
        self.buf = None;
        self.used = 0;
        self.parts.clear();
        self.payload_len = 0;
        self.queued_bytes = 0;
        self.notes.clear();
    }
}

/// Appends the body as sector-aligned parts: as it lies while the slices are aligned and whole
/// sectors (the last may end anywhere: what follows it in its block is written as padding), and the
/// rest copied together.
fn gather(parts: &mut Vec<Slice>, body: &[Slice], pool: &Pool, sector: usize) -> bool {
    let body = match body.iter().rposition(|slice| !slice.is_empty()) {
        Some(last) => &body[..=last],
        None => return true,
    };
    let before = parts.len();
    let mut direct = 0;
    while body.len() <= BODY_PARTS_MAX && direct < body.len() {
        let slice = &body[direct];
        let last = direct + 1 == body.len();
        if slice.is_empty() {
            direct += 1;
            continue;
        }
        if !slice.is_aligned(sector) || !last && !slice.len().is_multiple_of(sector) {
            break;
        }
        // Blocks are whole sectors, so the padding of an aligned slice is inside its block.
        parts.push(slice.extend_to(round_up(slice.len(), sector)));
        direct += 1;
    }
    let rest = &body[direct..];
    let rest_len: usize = rest.iter().map(|slice| slice.len()).sum();
    if rest_len == 0 {
        return true;
    }
    let Some(mut copy) = pool.get(round_up(rest_len, sector)) else {
        parts.truncate(before);
        return false;
    };
    let mut at = 0;
    for slice in rest {
        copy[at..at + slice.len()].copy_from_slice(slice);
        at += slice.len();
    }
    copy[at..].fill(0);
    parts.push(copy.freeze());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn gathered_parts_are_aligned_and_hold_the_body(
            pieces in prop::collection::vec((0usize..3, 0usize..3000, any::<bool>()), 0..12),
        ) {
            let pool = Pool::new(1 << 22);
            let mut body = Vec::new();
            let mut bytes = Vec::new();
            for (index, (skip, len, whole)) in pieces.iter().enumerate() {
                let len = if *whole { len / 512 * 512 } else { *len };
                let mut buf = pool.get(skip * 100 + len).unwrap();
                buf.fill(index as u8 + 1);
                let slice = buf.freeze().slice(skip * 100..skip * 100 + len);
                bytes.extend_from_slice(&slice);
                body.push(slice);
            }
            let mut parts = Vec::new();
            prop_assert!(gather(&mut parts, &body, &pool, 512));
            prop_assert!(parts.len() <= body.len());
            let mut written = Vec::new();
            for part in &parts {
                prop_assert!(part.is_aligned(512) && part.len().is_multiple_of(512));
                written.extend_from_slice(part);
            }
            prop_assert_eq!(written.len(), round_up(bytes.len(), 512));
            prop_assert_eq!(&written[..bytes.len()], &bytes[..]);
        }
    }

    #[test]
    fn a_body_is_not_copied_when_it_is_aligned() {
        let pool = Pool::new(1 << 20);
        let body = [pool.get(4096).unwrap().freeze(), pool.get(1000).unwrap().freeze()];
        let used = pool.used();
        let mut parts = Vec::new();
        assert!(gather(&mut parts, &body, &pool, 512));
        assert_eq!((parts.len(), pool.used()), (2, used));
        assert_eq!(parts[1].len(), 1024);
    }

    #[test]
    fn an_exhausted_pool_leaves_nothing_behind() {
        let pool = Pool::new(8192);
        let body = [pool.get(4096).unwrap().freeze(), pool.get(1000).unwrap().freeze()];
        let crooked = [body[0].clone(), body[1].slice(1..900)];
        let mut parts = Vec::new();
        assert!(!gather(&mut parts, &crooked, &pool, 512));
        assert!(parts.is_empty());
    }
}
