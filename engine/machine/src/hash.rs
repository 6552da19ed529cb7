//! The state hash: a sum, modulo 2^128, of one hash per entry of the state.
//!
//! Invariant: equal states have equal sums whatever the order of the changes that led there, since
//! addition commutes and a removed entry is subtracted with the very hash it was added with. So a
//! change costs one or two entry hashes, not a walk over the state.
//!
//! What would break it: changing an entry without taking its old hash off, or hashing anything
//! that is a node's own (a handle, a capacity). [`crate::Machine::full_hash`] finds both.
//!
//! The hash is XXH3-128: it finds forks that come from faults, not from an adversary who may
//! choose metadata freely.

use xxhash_rust::xxh3::xxh3_128;

/// Room for the largest entry.
const ENTRY_BYTES_MAX: usize = 128;

/// What an entry is, so that entries of different kinds never cancel out.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    State = 1,
    Version,
    Stripe,
    Value,
    Part,
    Session,
    Recorded,
}

/// Collects the fields of one entry.
pub(crate) struct Entry {
    bytes: [u8; ENTRY_BYTES_MAX],
    len: usize,
}

impl Entry {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { bytes: [0; ENTRY_BYTES_MAX], len: 0 }.u64(kind as u64)
    }

    pub(crate) fn u64(self, field: u64) -> Self {
        self.put(&field.to_le_bytes())
    }

    pub(crate) fn u32(self, field: u32) -> Self {
        self.put(&field.to_le_bytes())
    }

    pub(crate) fn u128(self, field: u128) -> Self {
        self.put(&field.to_le_bytes())
    }

    /// A field of constant length.
    pub(crate) fn array<const LEN: usize>(self, field: &[u8; LEN]) -> Self {
        self.put(field)
    }

    fn put(mut self, field: &[u8]) -> Self {
        self.bytes[self.len..self.len + field.len()].copy_from_slice(field);
        self.len += field.len();
        self
    }

    pub(crate) fn finish(self) -> u128 {
        xxh3_128(&self.bytes[..self.len])
    }
}

/// Hash of a field of variable length.
pub(crate) fn bytes(field: &[u8]) -> u128 {
    xxh3_128(field)
}

/// The sum over the entries of one table.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Sum(u128);

impl Sum {
    pub(crate) fn add(&mut self, entry: u128) {
        self.0 = self.0.wrapping_add(entry);
    }

    pub(crate) fn sub(&mut self, entry: u128) {
        self.0 = self.0.wrapping_sub(entry);
    }

    pub(crate) fn get(self) -> u128 {
        self.0
    }
}
