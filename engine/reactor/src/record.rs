//! Log records: what a node writes before it speaks (PROTOCOL 3.3, 4.1).

use crate::wire::cursor::{Reader, WireError, Writer};
use crate::wire::node::{get_ballot, get_slot_value, put_ballot, put_slot_value};
use racos_protocol::{Record, Slot};

/// Kinds of records.
pub mod kind {
    /// Head as in SPREAD; the body holds this node's fragments. Implies PROPOSE(slot, 1).
    /// PROTOCOL 6.2-c
    pub const HOLD: u8 = 1;
    /// The same without the promise.
    pub const SEGMENT_ONLY: u8 = 2;
    pub const NO_HOLD: u8 = 3;
    pub const VOTE: u8 = 4;
    pub const STATE: u8 = 5;
    pub const RESERVE: u8 = 6;
    /// A run of decisions: first slot, count, one bit a slot (1: its batch). Nothing waits for it.
    /// PROTOCOL 9.1-g
    pub const DECIDED: u8 = 7;
    /// Head as in SPREAD without checksums: a batch learned without fragments.
    pub const META: u8 = 8;
    /// Head: operation, slot of its execution, checksum; the body is this node's fragment. No
    /// promise.
    pub const REPAIRED: u8 = 9;
    /// A piece of a checkpoint: see `checkpoint`.
    pub const CHECKPOINT: u8 = 10;
    /// Fragments copied from a segment that is to be used again: operation, slot,
    /// checksum and length of each; the body is their bytes, one after the other. No promise.
    pub const COPIES: u8 = 12;

    /// The first disk of another node that showed itself here, and whether it takes part. About no
    /// slot; a checkpoint says it again.
    pub const NOTE: u8 = 13;
    /// How far the scrub is: see `scrub`.
    pub const SCRUBBED: u8 = 14;
    /// A batch of class R and this node's fragments, without a slot: head as in STORE.
    /// PROTOCOL 4.1-d
    pub const STORED: u8 = 15;
    /// PROPOSE(slot, candidate) of the queue policy.
    pub const PROPOSE: u8 = 16;
    /// How far the other nodes were when they were heard last: see `rollback`.
    pub const HEARD: u8 = 17;
    /// Fragments of a node that is missing: slot, node; the body is what it was sent with the slot. No
    /// promise, and of no use after a restart.
    /// PROTOCOL 9.6-b
    pub const HOSTED: u8 = 18;

    /// For people.
    pub fn name(kind: u8) -> Option<&'static str> {
        Some(match kind {
            HOLD => "hold",
            SEGMENT_ONLY => "fragments",
            NO_HOLD => "no-hold",
            VOTE => "vote",
            STATE => "state",
            RESERVE => "reserve",
            DECIDED => "decided",
            META => "meta",
            REPAIRED => "repaired",
            CHECKPOINT => "checkpoint",
            COPIES => "copies",
            NOTE => "note",
            SCRUBBED => "scrubbed",
            STORED => "stored",
            PROPOSE => "propose",
            HEARD => "heard",
            HOSTED => "hosted",
            _ => return None,
        })
    }
}

/// Up to which checkpoint's exec a record is needed by a replay that begins there: its slot, or
/// the last of them. What is not about slots is said again by the checkpoint.
pub fn needed_until(record_kind: u8, head: &[u8]) -> u64 {
    let mut from = Reader::new(head);
    let first = from.u64("slot").unwrap_or(0);
    match record_kind {
        kind::HOLD | kind::SEGMENT_ONLY | kind::META => first,
        kind::VOTE | kind::STATE | kind::PROPOSE => first,
        kind::NO_HOLD => from.u64("to").unwrap_or(first).saturating_sub(1),
        kind::DECIDED => first + u64::from(from.u32("count").unwrap_or(1)).saturating_sub(1),
        _ => 0,
    }
}

/// Encodes the head of a record that carries no batch; returns its kind.
pub fn put_record(out: &mut Vec<u8>, record: &Record) -> u8 {
    match *record {
        Record::NoHold { from, to } => {
            out.put_u64(from);
            out.put_u64(to);
            kind::NO_HOLD
        }
        Record::Vote { slot, phase, ballot } => {
            out.put_u64(slot);
            out.put_u32(phase);
            put_ballot(out, ballot);
            kind::VOTE
        }
        Record::State { slot, phase, value } => {
            out.put_u64(slot);
            out.put_u32(phase);
            put_slot_value(out, value);
            kind::STATE
        }
        Record::Propose { slot, candidate } => {
            out.put_u64(slot);
            out.put_u128(candidate);
            kind::PROPOSE
        }
        Record::Reserve { to } => {
            out.put_u64(to);
            kind::RESERVE
        }
        Record::Hold { .. } | Record::SegmentOnly { .. } => {
            unreachable!("records with a batch are written with its fragments")
        }
    }
}

/// Takes a record that carries no batch.
pub fn get_record(record_kind: u8, head: &[u8]) -> Result<Record, WireError> {
    let mut from = Reader::new(head);
    let first = from.u64("slot")?;
    let record = match record_kind {
        kind::NO_HOLD => Record::NoHold { from: first, to: from.u64("to")? },
        kind::VOTE => {
            let phase = from.u32("phase")?;
            Record::Vote { slot: first, phase, ballot: get_ballot(&mut from, phase)? }
        }
        kind::STATE => {
            let phase = from.u32("phase")?;
            Record::State { slot: first, phase, value: get_slot_value(&mut from)? }
        }
        kind::RESERVE => Record::Reserve { to: first },
        kind::PROPOSE => Record::Propose { slot: first, candidate: from.u128("candidate")? },
        _ => return Err(WireError { field: "record kind" }),
    };
    from.end("record")?;
    Ok(record)
}

/// One fragment of a COPIES record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOf {
    pub op: u128,
    pub slot: Slot,
    pub crc: u32,
    pub len: u32,
}

/// Bytes of one in the head.
pub const COPY_BYTES: usize = 32;

/// Encodes the head of a COPIES record.
pub fn put_copies(out: &mut Vec<u8>, copies: impl Iterator<Item = CopyOf>) {
    for copy in copies {
        out.put_u128(copy.op);
        out.put_u64(copy.slot);
        out.put_u32(copy.crc);
        out.put_u32(copy.len);
    }
}

/// The fragments of a COPIES record with their offsets in the body.
pub fn get_copies(head: &[u8]) -> Result<Vec<(CopyOf, u32)>, WireError> {
    let mut from = Reader::new(head);
    let (mut copies, mut offset) = (Vec::with_capacity(head.len() / COPY_BYTES), 0u32);
    while !from.is_empty() {
        let copy = CopyOf {
            op: from.u128("op")?,
            slot: from.u64("slot")?,
            crc: from.u32("checksum")?,
            len: from.u32("length")?,
        };
        copies.push((copy, offset));
        offset = offset.checked_add(copy.len).ok_or(WireError { field: "length" })?;
    }
    Ok(copies)
}

/// Decisions of consecutive slots that are not in the log yet.
#[derive(Debug, Default)]
pub struct DecidedRun {
    first: Slot,
    count: u32,
    bits: Vec<u8>,
}

impl DecidedRun {
    /// Notes the decision of the next slot.
    pub fn push(&mut self, slot: Slot, batch: bool) {
        if self.count == 0 {
            self.first = slot;
        }
        assert_eq!(slot, self.first + Slot::from(self.count), "decisions are noted in slot order");
        if self.count.is_multiple_of(8) {
            self.bits.push(0);
        }
        if batch {
            *self.bits.last_mut().expect("pushed above") |= 1 << (self.count % 8);
        }
        self.count += 1;
    }

    pub fn len(&self) -> u32 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Encodes the head of a DECIDED record and starts anew.
    pub fn take(&mut self, out: &mut Vec<u8>) {
        out.put_u64(self.first);
        out.put_u32(self.count);
        out.extend_from_slice(&self.bits);
        self.count = 0;
        self.bits.clear();
    }

    /// The decisions of a DECIDED record: slots, and whether each holds its batch.
    pub fn get(head: &[u8]) -> Result<impl Iterator<Item = (Slot, bool)> + '_, WireError> {
        let mut from = Reader::new(head);
        let first = from.u64("first slot")?;
        let count = from.u32("count")?;
        let bits = from.rest();
        if bits.len() != (count as usize).div_ceil(8) || first.checked_add(count.into()).is_none() {
            return Err(WireError { field: "decisions" });
        }
        Ok((0..count).map(move |index| {
            let bit = bits[index as usize / 8] >> (index % 8) & 1;
            (first + Slot::from(index), bit == 1)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use racos_protocol::{Ballot, Value};

    #[test]
    fn copies_survive_the_log_with_their_offsets() {
        let copy = |op, len| CopyOf { op, slot: 7, crc: 9, len };
        let mut head = Vec::new();
        put_copies(&mut head, [copy(1, 100), copy(2, 30), copy(3, 5)].into_iter());
        assert_eq!(head.len(), 3 * COPY_BYTES);
        let back = get_copies(&head).unwrap();
        assert_eq!(back, [(copy(1, 100), 0), (copy(2, 30), 100), (copy(3, 5), 130)]);
    }

    #[test]
    fn a_record_is_needed_up_to_its_last_slot() {
        let until = |record| {
            let mut head = Vec::new();
            let kind = put_record(&mut head, &record);
            needed_until(kind, &head)
        };
        assert_eq!(until(Record::NoHold { from: 3, to: 9 }), 8);
        assert_eq!(until(Record::State { slot: 4, phase: 1, value: Value::Null }), 4);
        assert_eq!(until(Record::Reserve { to: 100 }), 0, "the checkpoint says it");
        let mut run = DecidedRun::default();
        (10..13).for_each(|slot| run.push(slot, true));
        let mut head = Vec::new();
        run.take(&mut head);
        assert_eq!(needed_until(kind::DECIDED, &head), 12);
    }

    #[test]
    fn records_survive_the_log() {
        for record in [
            Record::NoHold { from: 3, to: 9 },
            Record::Vote { slot: 4, phase: 2, ballot: Ballot::Open(Some(7)) },
            Record::Vote { slot: 4, phase: 0, ballot: Ballot::For(Value::Batch(1)) },
            Record::Vote { slot: 4, phase: 0, ballot: Ballot::Weak(1 << 127 | 9) },
            Record::State { slot: 4, phase: 1, value: Value::Null },
            Record::Reserve { to: 100 },
            Record::Propose { slot: 5, candidate: 1 << 127 | 9 },
        ] {
            let mut head = Vec::new();
            let kind = put_record(&mut head, &record);
            assert_eq!(get_record(kind, &head), Ok(record));
        }
    }

    proptest! {
        /// tests PROTOCOL 9.1-g
        #[test]
        fn decisions_survive_the_log(first in 0u64..1 << 60, bits: Vec<bool>) {
            let mut run = DecidedRun::default();
            for (index, bit) in bits.iter().enumerate() {
                run.push(first + index as u64, *bit);
            }
            let mut head = Vec::new();
            run.take(&mut head);
            prop_assert!(run.is_empty());
            let back: Vec<(Slot, bool)> = DecidedRun::get(&head).unwrap().collect();
            let slots = bits.iter().enumerate().map(|(index, bit)| (index as u64 + first, *bit));
            prop_assert!(bits.is_empty() || back == slots.collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(kind: u8, bytes: Vec<u8>) {
            let _ = get_record(kind, &bytes);
            let _ = DecidedRun::get(&bytes).map(Iterator::count);
            let _ = get_copies(&bytes);
            needed_until(kind, &bytes);
        }
    }
}
