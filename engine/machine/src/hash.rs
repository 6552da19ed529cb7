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

/// Room for the kind and the fields of the largest entry.
const ENTRY_BYTES_MAX: usize = 160;

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
    Lease,
    Alarm,
    Seat,
    Layout,
    Auth,
    AuthEntry,
    WithAuth,
}

/// Hash of one entry: its kind and its fields, always in the same order.
///
/// Called several times for every operation, so it works on words in registers.
#[inline]
pub(crate) fn entry<const WORDS: usize>(kind: Kind, fields: [u64; WORDS]) -> u128 {
    const { assert!(8 * (WORDS + 1) <= ENTRY_BYTES_MAX) };
    let mut bytes = [0; ENTRY_BYTES_MAX];
    let words = [kind as u64].into_iter().chain(fields);
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    xxh3_128(&bytes[..8 * (WORDS + 1)])
}

/// A field of 128 bits as two words, the lower one first.
#[inline]
pub(crate) fn halves(field: u128) -> [u64; 2] {
    [field as u64, (field >> 64) as u64]
}

/// Two fields of 32 bits as one word.
#[inline]
pub(crate) fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
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
