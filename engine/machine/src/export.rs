//! The whole replicated state as numbered parts, written while operations go on being applied.
//!
//! [`Machine::export_begin`] pins the state; each [`Machine::export_slice`] writes a bounded piece
//! of it. A table that is changed meanwhile saves what the pinned state held there and was not
//! written yet: versions and waiting parts never change, so only those that go are saved, and a
//! session is saved when it is first used. So a slice costs what it writes, and applying costs
//! nothing but the saving.
//!
//! ```text
//! part    = format (1 byte), number (4), chain (16), entry...
//! chain   = XXH3-128 of (the part's format and number, chain of the part before, XXH3-128 of
//!           the entries): names this part and every one before it
//! entries = HEAD, SESSION in order of last use, WAITING in order of age, LEASE in order of id,
//!           ALARM in order, AUTH if there ever was a user, (KEY, VERSION in order of revision) in order of keys, END
//! ```
//!
//! Invariant: the parts are a function of the state pinned and of the part size alone: equal on
//! all nodes at the same operation, whatever was applied while they were written. What would break
//! it: a table that drops or changes an entry without saving it, an order that is a node's own, or
//! the end of a part that depends on how the work was cut into slices.

use crate::auth::{Auth, Place};
use crate::hash::halves;
use crate::machine::{Machine, Sweep};
use crate::op::OpId;
use crate::wire::auth::put_entry;
use crate::wire::{put_key, put_varint};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// The version of the encoding.
pub const EXPORT_FORMAT: u8 = 4;
/// Bytes of a part in checkpoints and transfers: one ends with the entry that reaches this.
pub const EXPORT_PART_BYTES: usize = 64 << 10;
/// Format, number, chain.
pub(crate) const PART_HEADER: usize = 1 + 4 + 16;
/// The largest entry is a version of as many stripes as there may be, at most 80 bytes each.
pub const EXPORT_ENTRY_BYTES_MAX: usize = 80 * crate::op::STRIPES_MAX + 256;

/// The first byte of every entry.
pub(crate) mod entry {
    pub(crate) const HEAD: u8 = 1;
    pub(crate) const SESSION: u8 = 2;
    pub(crate) const WAITING: u8 = 3;
    pub(crate) const LEASE: u8 = 4;
    pub(crate) const ALARM: u8 = 5;
    pub(crate) const KEY: u8 = 6;
    pub(crate) const VERSION: u8 = 7;
    pub(crate) const END: u8 = 8;
    /// Between ALARM and KEY; later than those that follow it, so that exports without it are as before.
    pub(crate) const AUTH: u8 = 9;

    /// Where entries of a kind stand among the others.
    pub(crate) fn rank(kind: u8) -> u16 {
        if kind == AUTH { 2 * u16::from(ALARM) + 1 } else { 2 * u16::from(kind) }
    }
}

/// What a slice of an export came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Exported {
    /// The part is not full yet.
    Working,
    Part(Vec<u8>),
    /// The last part; the export has ended.
    Last(Vec<u8>),
}

/// Where a table writes its entries.
pub(crate) struct Out<'a> {
    pub(crate) bytes: &'a mut Vec<u8>,
    bytes_max: usize,
    /// Entries that may still be looked at in this slice.
    visits: usize,
    stored: &'a mut dyn FnMut(OpId),
}

impl Out<'_> {
    /// Whether the slice or the part ends here. Asked between entries; counts one as looked at.
    pub(crate) fn is_full(&mut self) -> bool {
        if self.visits == 0 || self.bytes.len() >= self.bytes_max {
            return true;
        }
        self.visits -= 1;
        false
    }

    /// A value of the table is named by what was just written.
    pub(crate) fn stored(&mut self, op: OpId) {
        (self.stored)(op);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Sessions,
    Waiting,
    Leases,
    Auth,
    Keys,
    End,
}

/// An export under way.
#[derive(Debug)]
pub(crate) struct Export {
    /// A part of this many bytes is full.
    bytes_max: usize,
    number: u32,
    chain: u128,
    bytes: Vec<u8>,
    section: Section,
    auth: Arc<Auth>,
    auth_place: Place,
    /// Keys, versions, sessions, waiting parts and leases of the pinned state.
    counts: [u64; 5],
}

/// The chain up to and with a part.
pub(crate) fn chain(before: u128, number: u32, entries: &[u8]) -> u128 {
    let mut bytes = [0; 1 + 4 + 16 + 16];
    bytes[0] = EXPORT_FORMAT;
    bytes[1..5].copy_from_slice(&number.to_le_bytes());
    bytes[5..21].copy_from_slice(&before.to_le_bytes());
    bytes[21..].copy_from_slice(&xxh3_128(entries).to_le_bytes());
    xxh3_128(&bytes)
}

/// Exporting.
impl Machine {
    /// Pins the state as it is, for [`Machine::export_slice`] to write in parts of about
    /// `part_bytes` bytes: [`EXPORT_PART_BYTES`] wherever parts of several nodes may meet.
    ///
    /// # Panics
    /// If another export is under way.
    pub fn export_begin(&mut self, part_bytes: usize) {
        assert!(self.export.is_none(), "one export is under way at a time");
        let counts = [
            self.index.len() as u64,
            self.index.versions() as u64,
            self.sessions.len() as u64,
            self.values.waiting_len() as u64,
            self.leases.len() as u64,
        ];
        let mut bytes = Vec::with_capacity(part_bytes + part_bytes / 8);
        bytes.resize(PART_HEADER, 0);
        self.put_head(&mut bytes);
        self.sessions.pin(self.applied);
        self.values.pin(self.applied);
        self.leases.pin(&self.alarms);
        self.index.pin(self.revision);
        let section = Section::Sessions;
        let bytes_max = PART_HEADER + part_bytes.max(1);
        // A store that never had users has nothing to tell.
        let auth_place = if self.auth.is_unused() { Place::End } else { Place::Start };
        let auth = self.auth.clone();
        let (number, chain) = (0, 0);
        let export = Export { bytes_max, number, chain, bytes, section, auth, auth_place, counts };
        self.export = Some(Box::new(export));
    }

    /// Whether an export is under way.
    pub fn is_exporting(&self) -> bool {
        self.export.is_some()
    }

    /// Writes some more of the pinned state, looking at about `visits_max` entries (1000 take well
    /// under a millisecond). `stored` is told the operation of every value named by what was
    /// written, in the order in which [`crate::Import::part`] tells them.
    ///
    /// # Panics
    /// If no export is under way.
    pub fn export_slice(&mut self, visits_max: usize, stored: &mut dyn FnMut(OpId)) -> Exported {
        let mut export = self.export.take().expect("an export was begun");
        let mut bytes = std::mem::take(&mut export.bytes);
        let bytes_max = export.bytes_max;
        let mut out = Out { bytes: &mut bytes, bytes_max, visits: visits_max.max(1), stored };
        while export.section != Section::End {
            let done = match export.section {
                Section::Sessions => self.sessions.export(&mut out),
                Section::Waiting => self.values.export_waiting(&mut out),
                Section::Leases => self.leases.export(&mut out),
                Section::Auth => export.put_auth(&mut out),
                Section::Keys => self.index.export(&self.values, &mut out),
                Section::End => unreachable!("left above"),
            };
            if !done {
                break;
            }
            export.section = match export.section {
                Section::Sessions => Section::Waiting,
                Section::Waiting => Section::Leases,
                Section::Leases => Section::Auth,
                Section::Auth => Section::Keys,
                Section::Keys | Section::End => Section::End,
            };
        }
        // A full part ends before the end, too: whether keys that are not of the pinned state are
        // looked at in between must not show.
        let full = bytes.len() >= export.bytes_max;
        if export.section == Section::End && !full {
            bytes.push(entry::END);
            export.counts.iter().for_each(|&count| put_varint(&mut bytes, count));
            self.unpin();
            return Exported::Last(export.finish_part(bytes));
        }
        if !full {
            export.bytes = bytes;
            self.export = Some(export);
            return Exported::Working;
        }
        let part = export.finish_part(bytes);
        self.export = Some(export);
        Exported::Part(part)
    }

    /// Gives an export up. Does nothing if none is under way.
    pub fn export_cancel(&mut self) {
        if self.export.take().is_some() {
            self.unpin();
        }
    }

    fn unpin(&mut self) {
        self.sessions.unpin();
        self.values.unpin();
        self.leases.unpin();
        self.index.unpin();
    }

    fn put_head(&self, out: &mut Vec<u8>) {
        out.push(entry::HEAD);
        let limits = &self.limits;
        put_varint(out, limits.sessions_max.into());
        put_varint(out, limits.windows_max);
        put_varint(out, limits.parts_max.into());
        put_varint(out, limits.versions_max.into());
        put_varint(out, limits.history_max.into());
        put_varint(out, self.revision);
        put_varint(out, self.compacted.map_or(0, |compacted| compacted + 1));
        match &self.sweep {
            None => out.push(0),
            Some(Sweep { next, again }) => {
                out.push(1 + u8::from(*again));
                put_key(out, next);
            }
        }
        match self.applied {
            None => out.push(0),
            Some((slot, position)) => {
                out.push(1);
                put_varint(out, slot);
                put_varint(out, position.into());
            }
        }
        self.members.put(out);
        halves(self.state_hash()).iter().for_each(|half| out.extend(half.to_le_bytes()));
    }
}

impl Export {
    /// Writes on about users and roles; true when all is written.
    fn put_auth(&mut self, out: &mut Out<'_>) -> bool {
        while self.auth_place != Place::End {
            if out.is_full() {
                return false;
            }
            if let Some(entry) = self.auth.next(&mut self.auth_place) {
                out.bytes.push(entry::AUTH);
                put_entry(out.bytes, &entry);
            }
        }
        true
    }

    /// Completes the header of a part and makes ready for the next.
    fn finish_part(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        self.chain = chain(self.chain, self.number, &bytes[PART_HEADER..]);
        bytes[0] = EXPORT_FORMAT;
        bytes[1..5].copy_from_slice(&self.number.to_le_bytes());
        bytes[5..PART_HEADER].copy_from_slice(&self.chain.to_le_bytes());
        self.number += 1;
        self.bytes = Vec::with_capacity(bytes.len());
        self.bytes.resize(PART_HEADER, 0);
        bytes
    }
}
