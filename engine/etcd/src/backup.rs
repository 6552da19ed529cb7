//! The format of a backup.
//!
//! ```text
//! backup  = magic (16 bytes), chunk..., zeros to a multiple of 512 bytes, SHA-256 (32 bytes)
//! chunk   = length (4 bytes), CRC-32C (4 bytes), kind (1 byte), message (see `racos.proto`)
//! chunks  = HEAD, LEASES..., AUTH..., VERSIONS..., END
//! ```
//! Length and CRC are of kind and message, the numbers little endian. The SHA-256 is of everything
//! before it; that it stands behind a multiple of 512 bytes is what etcdctl looks for.
//!
//! Invariant: what [`Reader`] gives out is well-formed, in order, and within its bounds, whatever
//! the bytes are; that nothing is missing or changed is known when [`Reader::finish`] says so.
//! What would break it: memory taken for a length that was only read.

use crate::pb::racospb as pb;
use crc32c::crc32c;
use prost::Message;
use racos_machine::AuthEntry;
use sha2::{Digest, Sha256};
use std::fmt;

/// What every backup begins with; the number is the version of the format.
pub const MAGIC: &[u8; 16] = b"racos backup  1\n";
const BLOCK: u64 = 512;
const DIGEST: usize = 32;
const CHUNK_HEADER: usize = 8;
/// Bytes of a chunk: of the largest value, or of a page of many.
const CHUNK_BYTES_MAX: usize = 160 << 20;
const KEY_BYTES_MAX: usize = 8 * 1024;

const HEAD: u8 = 1;
const LEASES: u8 = 2;
const VERSIONS: u8 = 3;
const END: u8 = 4;
/// Later than the others: a backup of a cluster without users is what it was.
const AUTH: u8 = 5;

/// Where chunks of a kind stand among the others.
fn rank(kind: u8) -> u8 {
    if kind == AUTH { 2 * LEASES + 1 } else { 2 * kind }
}

/// What a backup is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Head(pb::BackupHead),
    Leases(pb::BackupLeases),
    Auth(pb::BackupAuth),
    Versions(pb::BackupVersions),
    End(pb::BackupEnd),
}

/// Makes the bytes of a backup.
#[derive(Default)]
pub struct Writer {
    sum: Sha256,
    bytes: u64,
}

impl Writer {
    /// The next piece as bytes; the first comes with the magic, the last with the padding and sum.
    pub fn write(&mut self, piece: &Piece) -> Vec<u8> {
        let (kind, message) = match piece {
            Piece::Head(it) => (HEAD, it.encode_to_vec()),
            Piece::Leases(it) => (LEASES, it.encode_to_vec()),
            Piece::Auth(it) => (AUTH, it.encode_to_vec()),
            Piece::Versions(it) => (VERSIONS, it.encode_to_vec()),
            Piece::End(it) => (END, it.encode_to_vec()),
        };
        let mut out = Vec::with_capacity(message.len() + 64);
        if self.bytes == 0 {
            out.extend_from_slice(MAGIC);
        }
        // Whoever writes more makes what nobody reads.
        assert!(message.len() < CHUNK_BYTES_MAX, "a chunk of {} bytes", message.len());
        let len = message.len() as u32 + 1;
        let crc = crc32c::crc32c_append(crc32c(&[kind]), &message);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
        out.push(kind);
        out.extend_from_slice(&message);
        if kind == END {
            let total = self.bytes + out.len() as u64;
            let padded = total.next_multiple_of(BLOCK);
            out.resize(out.len() + (padded - total) as usize, 0);
        }
        self.sum.update(&out);
        self.bytes += out.len() as u64;
        if kind == END {
            out.extend_from_slice(&self.sum.clone().finalize());
        }
        out
    }
}

/// Why bytes are no backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatError {
    /// Bytes before the piece that is wrong.
    pub at: u64,
    pub what: &'static str,
}

impl fmt::Display for FormatError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "at byte {}: {}", self.at, self.what)
    }
}

impl std::error::Error for FormatError {}

/// Reads a backup from bytes that come in pieces.
#[derive(Default)]
pub struct Reader {
    /// Bytes that were not given out yet, from `taken` on.
    pending: Vec<u8>,
    taken: usize,
    at: u64,
    sum: Sha256,
    has_magic: bool,
    last: u8,
    revision: i64,
    last_lease: Option<i64>,
    last_version: Option<(Vec<u8>, u64, u32)>,
    seen: pb::BackupEnd,
    end: Option<pb::BackupEnd>,
}

impl Reader {
    /// More bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.taken);
        self.taken = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// Keys, versions, leases and bytes of values so far.
    pub fn seen(&self) -> &pb::BackupEnd {
        &self.seen
    }

    /// Bytes read so far.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next piece; `None` if more bytes have to come first.
    ///
    /// # Errors
    /// If the bytes are not those of a backup. The reader is of no use then.
    pub fn next_piece(&mut self) -> Result<Option<Piece>, FormatError> {
        if !self.has_magic {
            let Some(magic) = self.pending.get(self.taken..self.taken + MAGIC.len()) else {
                return Ok(None);
            };
            if magic != MAGIC {
                return Err(
                    self.wrong("not a backup of racos, or of a newer version of the format")
                );
            }
            self.advance(MAGIC.len());
            self.has_magic = true;
        }
        if self.end.is_some() {
            let left = self.pending.len() - self.taken;
            let most = BLOCK as usize + DIGEST;
            let trailing = Err(self.wrong("bytes behind the end"));
            return if left < most { Ok(None) } else { trailing };
        }
        let rest = &self.pending[self.taken..];
        let Some((header, rest)) = rest.split_at_checked(CHUNK_HEADER) else { return Ok(None) };
        let (len, crc) = header.split_at(4);
        let len = u32::from_le_bytes(len.try_into().expect("four bytes")) as usize;
        let crc = u32::from_le_bytes(crc.try_into().expect("four bytes"));
        if len == 0 || len > CHUNK_BYTES_MAX {
            return Err(self.wrong("a chunk of an impossible length"));
        }
        let Some(chunk) = rest.get(..len) else { return Ok(None) };
        if crc32c(chunk) != crc {
            return Err(self.wrong("a chunk is damaged: its checksum differs"));
        }
        let (kind, message) = (chunk[0], &chunk[1..]);
        let piece = match kind {
            HEAD => pb::BackupHead::decode(message).map(Piece::Head),
            LEASES => pb::BackupLeases::decode(message).map(Piece::Leases),
            AUTH => pb::BackupAuth::decode(message).map(Piece::Auth),
            VERSIONS => pb::BackupVersions::decode(message).map(Piece::Versions),
            END => pb::BackupEnd::decode(message).map(Piece::End),
            _ => return Err(self.wrong("a chunk of an unknown kind")),
        };
        let piece = piece.map_err(|_| self.wrong("a chunk that cannot be decoded"))?;
        let in_order = match kind {
            HEAD => self.last == 0,
            _ => self.last != 0 && rank(kind) >= rank(self.last),
        };
        if !in_order {
            return Err(self.wrong("a chunk out of order"));
        }
        self.last = kind;
        self.check(&piece).map_err(|what| self.wrong(what))?;
        self.advance(CHUNK_HEADER + len);
        Ok(Some(piece))
    }

    fn wrong(&self, what: &'static str) -> FormatError {
        FormatError { at: self.at, what }
    }

    fn advance(&mut self, bytes: usize) {
        self.sum.update(&self.pending[self.taken..self.taken + bytes]);
        self.taken += bytes;
        self.at += bytes as u64;
    }

    fn check(&mut self, piece: &Piece) -> Result<(), &'static str> {
        match piece {
            Piece::Head(head) => {
                self.revision = head.revision;
                require(head.revision >= 1, "a revision below 1")
            }
            Piece::Leases(leases) => leases.leases.iter().try_for_each(|lease| {
                let in_order = self.last_lease.is_none_or(|last| last < lease.id);
                self.last_lease = Some(lease.id);
                self.seen.leases += 1;
                require(in_order && lease.id != 0, "leases out of order")
            }),
            Piece::Auth(auth) => auth.entries.iter().try_for_each(|entry| {
                let known = AuthEntry::decode(entry).is_ok();
                require(known, "users or roles that cannot be decoded")
            }),
            Piece::Versions(versions) => {
                versions.versions.iter().try_for_each(|version| self.check_version(version))
            }
            Piece::End(end) => {
                let possible = (-1..=self.revision).contains(&end.compact_revision);
                require(possible, "more compacted than there is")?;
                let told = pb::BackupEnd { compact_revision: 0, hash: 0, ..*end };
                require(told == self.seen, "not as much as the end says")?;
                self.end = Some(*end);
                Ok(())
            }
        }
    }

    fn check_version(&mut self, version: &pb::BackupVersion) -> Result<(), &'static str> {
        let pb::BackupVersion { key, main, sub, is_delete, value, .. } = version;
        require((1..=KEY_BYTES_MAX).contains(&key.len()), "a key of an impossible length")?;
        let within = (1..=self.revision as u64).contains(main);
        require(within, "a version above the revision of the backup")?;
        require(!is_delete || value.is_empty(), "a deletion with a value")?;
        let is_new_key = match &self.last_version {
            Some((last, ..)) if last[..] > key[..] => return Err("keys out of order"),
            Some((last, last_main, last_sub)) if last[..] == key[..] => {
                let later = (*last_main, *last_sub) < (*main, *sub);
                require(later, "versions of a key out of order")?;
                false
            }
            _ => true,
        };
        self.seen.keys += u64::from(is_new_key);
        self.seen.versions += 1;
        self.seen.value_bytes += value.len() as u64;
        match &mut self.last_version {
            Some(last) if !is_new_key => (last.1, last.2) = (*main, *sub),
            last => *last = Some((key.to_vec(), *main, *sub)),
        }
        Ok(())
    }

    /// Where the last version stood: that of the same key, or 0.
    pub fn end(&self) -> Option<&pb::BackupEnd> {
        self.end.as_ref()
    }

    /// All bytes have come: whether they are a whole and undamaged backup.
    ///
    /// # Errors
    /// If they are not.
    pub fn finish(mut self) -> Result<pb::BackupEnd, FormatError> {
        let Some(end) = self.end else {
            return Err(self.wrong("it breaks off"));
        };
        let left = self.pending.len() - self.taken;
        let padding = (self.at.next_multiple_of(BLOCK) - self.at) as usize;
        if left != padding + DIGEST {
            return Err(self.wrong("it breaks off in its sum, or goes on behind it"));
        }
        let zeros = self.pending[self.taken..self.taken + padding].iter().all(|byte| *byte == 0);
        self.advance(padding);
        if !zeros || self.sum.clone().finalize()[..] != self.pending[self.taken..] {
            return Err(self.wrong("it is damaged: its SHA-256 differs"));
        }
        Ok(end)
    }
}

fn require(holds: bool, what: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(what) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(key: &str, main: u64) -> pb::BackupVersion {
        let (create_revision, version) = (main, 1);
        let (key, value) = (key.to_string().into(), "value".into());
        pb::BackupVersion { key, main, create_revision, version, value, ..Default::default() }
    }

    fn pieces() -> Vec<Piece> {
        let lease = |id| pb::BackupLease { id, ttl: 60 };
        let end = pb::BackupEnd {
            keys: 2,
            versions: 3,
            leases: 2,
            compact_revision: -1,
            hash: 77,
            value_bytes: 15,
        };
        let role = AuthEntry::Role { name: b"r"[..].into() }.encoded();
        vec![
            Piece::Head(pb::BackupHead { cluster_id: 5, revision: 9, ..Default::default() }),
            Piece::Leases(pb::BackupLeases { leases: vec![lease(1), lease(2)] }),
            Piece::Auth(pb::BackupAuth { entries: vec![role.into()] }),
            Piece::Versions(pb::BackupVersions { versions: vec![version("a", 2)] }),
            Piece::Versions(pb::BackupVersions {
                versions: vec![version("a", 4), version("b", 3)],
            }),
            Piece::End(end),
        ]
    }

    fn written(pieces: &[Piece]) -> Vec<u8> {
        let mut writer = Writer::default();
        pieces.iter().flat_map(|piece| writer.write(piece)).collect()
    }

    /// Reads bytes that come `step` at a time.
    fn read(bytes: &[u8], step: usize) -> Result<Vec<Piece>, FormatError> {
        let (mut reader, mut pieces) = (Reader::default(), Vec::new());
        for some in bytes.chunks(step) {
            reader.push(some);
            while let Some(piece) = reader.next_piece()? {
                pieces.push(piece);
            }
        }
        reader.finish()?;
        Ok(pieces)
    }

    #[test]
    fn what_was_written_is_read_however_the_bytes_come() {
        let bytes = written(&pieces());
        assert_eq!(bytes.len() % 512, 32, "where etcdctl looks for the sum");
        for step in [1, 7, 100, bytes.len()] {
            assert_eq!(read(&bytes, step).unwrap(), pieces());
        }
    }

    #[test]
    fn no_byte_can_be_changed_or_cut_off_without_notice() {
        let bytes = written(&pieces());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(read(&damaged, 4096).is_err(), "byte {at} changed");
            assert!(read(&bytes[..at], 4096).is_err(), "cut at {at}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(read(&longer, 4096).is_err());
        longer.resize(bytes.len() + 4096, 0);
        assert!(read(&longer, 4096).is_err());
    }

    #[test]
    fn contents_out_of_order_or_beyond_their_bounds_are_refused() {
        let good = pieces();
        let cases: Vec<(Vec<Piece>, &str)> = vec![
            (vec![good[1].clone()], "a chunk out of order"),
            (vec![good[0].clone(), good[0].clone()], "a chunk out of order"),
            (vec![good[0].clone(), good[2].clone(), good[1].clone()], "a chunk out of order"),
            (vec![good[0].clone(), good[3].clone(), good[2].clone()], "a chunk out of order"),
            (vec![good[0].clone(), good[5].clone()], "not as much as the end says"),
            (vec![good[0].clone(), good[4].clone(), good[3].clone()], "keys out of order"),
            (
                vec![
                    good[0].clone(),
                    Piece::Auth(pb::BackupAuth { entries: vec![vec![77].into()] }),
                ],
                "users or roles that cannot be decoded",
            ),
            (
                vec![good[0].clone(), good[3].clone(), good[3].clone()],
                "versions of a key out of order",
            ),
            (
                vec![
                    good[0].clone(),
                    Piece::Versions(pb::BackupVersions { versions: vec![version("a", 10)] }),
                ],
                "a version above the revision of the backup",
            ),
            (
                vec![
                    good[0].clone(),
                    Piece::Versions(pb::BackupVersions { versions: vec![version("", 1)] }),
                ],
                "a key of an impossible length",
            ),
            (vec![good[0].clone(), good[1].clone(), good[1].clone()], "leases out of order"),
        ];
        for (pieces, what) in cases {
            assert_eq!(read(&written(&pieces), 4096).unwrap_err().what, what);
        }
        let mut huge = MAGIC.to_vec();
        huge.extend_from_slice(&u32::MAX.to_le_bytes());
        huge.extend_from_slice(&[0; 4]);
        assert_eq!(read(&huge, 4096).unwrap_err().what, "a chunk of an impossible length");
    }
}
