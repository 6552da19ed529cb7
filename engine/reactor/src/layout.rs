//! How a value becomes fragments, and how the fragments of a batch lie in a body.
//!
//! Invariant: a function of lengths and code only, stable on disk and wire, so that every node
//! computes the same offsets from the metas.

use racos_machine::{Action, Op, Outcome, Value};

/// Largest value of one operation; larger ones are split into stripes by the client.
pub const VALUE_BYTES_MAX: usize = 2 << 20;
/// Most bytes of one version in a backup: it is held whole while it is written and read, and with the rest of its
/// page it is a chunk of the format.
pub const BACKED_UP_BYTES_MAX: u64 = 128 << 20;

/// From this length on a value's fragments are whole sectors, so that the log and the network take
/// them from the buffer where they were encoded.
pub const LARGE_BYTES_MIN: usize = 32 << 10;

/// Fragments of large values are multiples of this.
pub const SECTOR: usize = 512;

/// Length of each fragment of a value.
pub fn fragment_len(value_len: usize, k: usize) -> usize {
    let len = value_len.div_ceil(k);
    if value_len >= LARGE_BYTES_MIN { len.next_multiple_of(SECTOR) } else { len }
}

/// Bytes that a fragment takes in a body.
pub fn span(fragment_len: usize) -> usize {
    fragment_len.next_multiple_of(8)
}

/// The values that this operation stores, in order: each node gets a fragment of them with the batch.
pub fn stored_values(op: &Op) -> impl Iterator<Item = &Value> {
    op.stored_values().filter(|value| value.len > 0)
}

/// Whether values that an operation brought may be in no use after it: it was refused, or answered
/// from its session, or a transaction took the other branch.
pub fn may_be_unused(op: &Op, outcome: &Outcome) -> bool {
    !matches!(outcome, Outcome::Applied(_)) || matches!(op.action, Action::Txn(_))
}

/// One fragment in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentSpot<'a> {
    pub value: &'a Value,
    pub offset: usize,
    pub len: usize,
}

/// The fragments of a batch, in order, with their offsets in the body.
pub fn fragments(ops: &[Op]) -> impl Iterator<Item = FragmentSpot<'_>> {
    let mut offset = 0;
    ops.iter().flat_map(stored_values).map(move |value| {
        let len = fragment_len(value.len as usize, usize::from(value.k));
        let spot = FragmentSpot { value, offset, len };
        offset += span(len);
        spot
    })
}

/// Length of the body that every node gets for a batch.
pub fn body_len(ops: &[Op]) -> usize {
    fragments(ops).last().map_or(0, |spot| spot.offset + span(spot.len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_cover_the_value_and_large_ones_are_whole_sectors() {
        for k in [1, 2, 3, 5] {
            for len in [1, 7, 8, 1300, 32767, 32768, 133_333, 1_333_333, VALUE_BYTES_MAX] {
                let fragment = fragment_len(len, k);
                assert!(fragment * k >= len && fragment * k < len + k * SECTOR);
                assert!(len < LARGE_BYTES_MIN || fragment.is_multiple_of(SECTOR));
            }
        }
    }
}
