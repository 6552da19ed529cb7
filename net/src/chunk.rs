//! The bytes of a chunk of a large message, and of the acknowledgement that answers it.
//!
//! A large message is its head followed by its body, cut into chunks of equal size (the last may be
//! shorter). A chunk's header tells everything about the message, so that any chunk may come first.
//!
//! Both travel in frames whose kinds are the transport's own. Integers are little-endian.
//! Invariant: [`ChunkHeader::read`] accepts only a chunk whose place and length agree with its
//! message, so that whoever stores it cannot write outside the message.

use crate::frame::{u16_at, u32_at, u64_at};

/// Kinds from here on are the transport's.
pub const KIND_OWN_MIN: u8 = 0xf0;
/// Frame kind of a chunk.
pub const KIND_CHUNK: u8 = 0xf0;
/// Frame kind of an acknowledgement.
pub const KIND_ACK: u8 = 0xf1;
/// Most bytes of the head of any message.
pub const HEAD_MAX: usize = 64 << 10;
/// Bytes of a chunk's header.
pub const CHUNK_HEADER_BYTES: usize = 32;
/// Bytes of an acknowledgement before its bitmap.
pub const ACK_HEADER_BYTES: usize = 40;
/// Smallest chunk accepted, but for the last: bounds how many chunks a message can claim to have.
pub const CHUNK_BYTES_MIN: usize = 256;
/// Largest number of a message; keeps sums of numbers from overflowing.
pub const SEQUENCE_MAX: u64 = u64::MAX >> 1;

/// A chunk's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Number of the message within `stream`.
    pub sequence: u64,
    /// Renewed whenever the sender forgets and restarts its numbering towards this receiver.
    pub stream: u32,
    pub head_len: u32,
    pub body_len: u32,
    /// Bytes of every chunk but the last.
    pub chunk_len: u16,
    /// Kind of the message, the caller's.
    pub kind: u8,
    /// Which chunk this is, from 0.
    pub index: u32,
    /// When it was sent, by the sender's clock, in units of 1024 ns; echoed by the acknowledgement.
    pub stamp: u32,
}

impl ChunkHeader {
    pub fn write(&self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut bytes = [0; CHUNK_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.stream.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.head_len.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[20..22].copy_from_slice(&self.chunk_len.to_le_bytes());
        bytes[22] = self.kind;
        bytes[24..28].copy_from_slice(&self.index.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.stamp.to_le_bytes());
        bytes
    }

    /// The header at the start of `head`, if a payload of `payload_len` bytes is what it announces.
    /// `None` for anything inconsistent.
    pub fn read(head: &[u8], payload_len: usize) -> Option<ChunkHeader> {
        if head.len() < CHUNK_HEADER_BYTES || head[23] != 0 {
            return None;
        }
        let header = ChunkHeader {
            sequence: u64_at(head, 0),
            stream: u32_at(head, 8),
            head_len: u32_at(head, 12),
            body_len: u32_at(head, 16),
            chunk_len: u16_at(head, 20),
            kind: head[22],
            index: u32_at(head, 24),
            stamp: u32_at(head, 28),
        };
        let usable = header.head_len as usize <= HEAD_MAX
            && header.chunk_len as usize >= CHUNK_BYTES_MIN
            && header.kind < KIND_OWN_MIN
            && header.sequence <= SEQUENCE_MAX
            && (header.index as usize) < header.count();
        (usable && header.range().len() == payload_len).then_some(header)
    }

    /// Bytes of the whole message.
    pub fn total(&self) -> usize {
        (self.head_len as usize).saturating_add(self.body_len as usize)
    }

    /// Chunks of the whole message.
    pub fn count(&self) -> usize {
        self.total().div_ceil(self.chunk_len as usize)
    }

    /// Where this chunk lies in the message.
    pub fn range(&self) -> std::ops::Range<usize> {
        let start = self.index as usize * self.chunk_len as usize;
        start..self.total().min(start.saturating_add(self.chunk_len as usize))
    }

    /// Whether both are chunks of one message.
    pub fn agrees(&self, other: &ChunkHeader) -> bool {
        ChunkHeader { index: other.index, stamp: other.stamp, ..*self } == *other
    }
}

/// What the receiver has of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    pub sequence: u64,
    pub stream: u32,
    /// Incarnation and boot of the message's sender, as its datagrams said.
    pub incarnation: u32,
    pub boot: u32,
    /// Number of the receiver's attempt at this message: a new one has forgotten the chunks of the
    /// one before.
    pub generation: u32,
    /// Stamp of the chunk that arrived last.
    pub echo: u32,
    /// Every chunk below this has arrived.
    pub cumulative: u32,
    /// The message is complete and has been handed on.
    pub done: bool,
}

impl Ack {
    pub fn write(&self) -> [u8; ACK_HEADER_BYTES] {
        let mut bytes = [0; ACK_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.stream.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.boot.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.echo.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.cumulative.to_le_bytes());
        bytes[32] = u8::from(self.done);
        bytes
    }

    /// The acknowledgement at the start of `head` and its bitmap: bit i (counted from the lowest of the
    /// first byte) says whether chunk `cumulative / 8 * 8 + i` has arrived. `None` for anything
    /// inconsistent.
    pub fn read(head: &[u8]) -> Option<(Ack, &[u8])> {
        if head.len() < ACK_HEADER_BYTES || head[32] > 1 || head[33..40] != [0; 7] {
            return None;
        }
        let ack = Ack {
            sequence: u64_at(head, 0),
            stream: u32_at(head, 8),
            incarnation: u32_at(head, 12),
            boot: u32_at(head, 16),
            generation: u32_at(head, 20),
            echo: u32_at(head, 24),
            cumulative: u32_at(head, 28),
            done: head[32] == 1,
        };
        Some((ack, &head[ACK_HEADER_BYTES..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> ChunkHeader {
        ChunkHeader {
            sequence: 1 << 40,
            stream: 5,
            head_len: 100,
            body_len: 10_000,
            chunk_len: 1000,
            kind: 3,
            index: 10,
            stamp: 77,
        }
    }

    #[test]
    fn a_chunk_header_comes_back() {
        let header = header();
        assert_eq!((header.count(), header.range()), (11, 10_000..10_100));
        assert_eq!(ChunkHeader::read(&header.write(), 100), Some(header));
    }

    #[test]
    fn an_inconsistent_chunk_is_refused() {
        let good = header();
        let refused = |header: ChunkHeader, len| ChunkHeader::read(&header.write(), len).is_none();
        assert!(refused(good, 99));
        assert!(refused(ChunkHeader { index: 11, ..good }, 0));
        assert!(refused(ChunkHeader { chunk_len: 0, ..good }, 0));
        assert!(refused(ChunkHeader { chunk_len: 255, ..good }, 255));
        assert!(refused(ChunkHeader { head_len: 65_537, ..good }, 1000));
        assert!(refused(ChunkHeader { kind: KIND_ACK, ..good }, 100));
        assert!(refused(ChunkHeader { sequence: u64::MAX, ..good }, 100));
        assert!(refused(ChunkHeader { head_len: 0, body_len: 0, index: 0, ..good }, 0));
        assert!(ChunkHeader::read(&good.write()[..31], 100).is_none());
        let mut reserved = good.write();
        reserved[23] = 1;
        assert!(ChunkHeader::read(&reserved, 100).is_none());
    }

    #[test]
    fn chunks_agree_only_if_all_but_their_place_is_equal() {
        let good = header();
        assert!(good.agrees(&ChunkHeader { index: 0, stamp: 1, ..good }));
        assert!(!good.agrees(&ChunkHeader { body_len: 9_999, ..good }));
        assert!(!good.agrees(&ChunkHeader { kind: 4, ..good }));
    }

    #[test]
    fn an_acknowledgement_comes_back() {
        let ack = Ack {
            sequence: 9,
            stream: 1,
            incarnation: 2,
            boot: 3,
            generation: 4,
            echo: 5,
            cumulative: 6,
            done: true,
        };
        let mut bytes = ack.write().to_vec();
        bytes.extend_from_slice(&[0b101]);
        assert_eq!(Ack::read(&bytes), Some((ack, &[0b101u8][..])));
        assert_eq!(Ack::read(&bytes[..39]), None);
        bytes[32] = 2;
        assert_eq!(Ack::read(&bytes), None);
    }
}
