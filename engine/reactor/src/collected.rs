//! Records kept as they were met, until there is a state that they can be applied to.
//!
//! Purpose: behind the mark that a restart begins at lies what was said while its checkpoint was being
//! written: with many clients, millions of operations. Their heads are kept as bytes, in large blocks,
//! which the system gets back one by one as they are applied: decoded they would take several times as
//! much, in small pieces between what stays.
//!
//! Invariant: records come out as they were put in, in their order, but for bodies: of those it matters
//! only whether they are damaged.

use racos_storage::{Place, RecordId, Replayed, ReplayedBody};
use std::collections::VecDeque;
use std::ops::Range;

/// Bytes of heads in a block: above what allocators keep for themselves when it is freed (32 MiB in
/// glibc). Pages that are not written take no memory.
const BLOCK_BYTES: usize = 48 << 20;

struct Entry {
    id: u64,
    kind: u8,
    is_damaged: bool,
    head: Range<u32>,
    head_place: Place,
    body_place: Place,
    body_crc: u32,
}

struct Block {
    heads: Vec<u8>,
    entries: Vec<Entry>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Collected {
    blocks: VecDeque<Block>,
}

impl Collected {
    pub fn push(&mut self, record: &Replayed<'_>) {
        let fits = |block: &Block| block.heads.len() + record.head.len() <= block.heads.capacity();
        if !self.blocks.back().is_some_and(fits) {
            let heads = Vec::with_capacity(BLOCK_BYTES.max(record.head.len()));
            self.blocks.push_back(Block { heads, entries: Vec::new() });
        }
        let block = self.blocks.back_mut().expect("a block was ensured");
        let start = block.heads.len() as u32;
        block.heads.extend_from_slice(record.head);
        block.entries.push(Entry {
            id: record.id.0,
            kind: record.kind,
            is_damaged: matches!(record.body, ReplayedBody::Damaged),
            head: start..block.heads.len() as u32,
            head_place: record.head_place,
            body_place: record.body_place,
            body_crc: record.body_crc,
        });
    }

    /// Hands all of them over, in order.
    pub fn each(mut self, take: &mut dyn FnMut(Replayed<'_>)) {
        while let Some(Block { heads, entries }) = self.blocks.pop_front() {
            for entry in entries {
                let body = match entry.is_damaged {
                    true => ReplayedBody::Damaged,
                    false => ReplayedBody::Stored,
                };
                take(Replayed {
                    id: RecordId(entry.id),
                    kind: entry.kind,
                    head: &heads[entry.head.start as usize..entry.head.end as usize],
                    head_place: entry.head_place,
                    body,
                    body_place: entry.body_place,
                    body_crc: entry.body_crc,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_out_as_they_were_put_in() {
        let mut collected = Collected::default();
        let place = |offset| Place { segment: 3, offset, len: 9 };
        let long = vec![7; BLOCK_BYTES - 4];
        let heads: [&[u8]; 4] = [b"one", &long, b"three", b""];
        for (number, head) in heads.into_iter().enumerate() {
            let is_damaged = number == 2;
            collected.push(&Replayed {
                id: RecordId(number as u64),
                kind: number as u8,
                head,
                head_place: place(number as u32),
                body: if is_damaged { ReplayedBody::Damaged } else { ReplayedBody::Inline(b"x") },
                body_place: place(100 + number as u32),
                body_crc: number as u32,
            });
        }
        assert_eq!(collected.blocks.len(), 2, "a block is never moved to grow");
        let mut number = 0;
        collected.each(&mut |record| {
            assert_eq!((record.id.0, record.kind), (number as u64, number as u8));
            assert_eq!(record.head, heads[number]);
            assert_eq!(record.head_place, place(number as u32));
            assert_eq!(record.body_place, place(100 + number as u32));
            assert_eq!(record.body_crc, number as u32);
            assert_eq!(matches!(record.body, ReplayedBody::Damaged), number == 2);
            number += 1;
        });
        assert_eq!(number, 4);
    }
}
