//! Names of operations in half of their bytes.
//!
//! Purpose: an index has the name of an operation twice for every key. All but its counter is the same
//! for all operations of one boot of a node, so that is kept once and goes by a number.
//!
//! Invariant: within one [`Origins`], a short name stands for one operation, for ever. What would break
//! it: an origin that is forgotten, or a short name used with the origins of another table.

use crate::op::OpId;
use std::collections::BTreeMap;

const COUNTER_BITS: u32 = 40;
/// Boots of nodes that one table can tell apart.
const ORIGINS_MAX: usize = 1 << (u64::BITS - COUNTER_BITS);

/// A name that [`Origins`] made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShortOp(u64);

/// So many operations that a node named one after the other lie side by side in a hash table.
const RUN: u64 = 8;

impl ShortOp {
    /// For tables by operation. A log names operations in their order, and so do keys that were
    /// written in theirs: with their neighbours beside them, most are found where the one before was.
    pub fn hash(self) -> u64 {
        let product = u128::from((self.0 / RUN) ^ 0x2545_F491_4F6C_DD1D) * 0xD6E8_FEB8_6659_FD93;
        let run = (product as u64) ^ ((product >> 64) as u64);
        // The highest bits tell those apart that lie in one place of a table.
        let own = self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((run / RUN * RUN) | (self.0 % RUN)) ^ (own & !(u64::MAX >> 7))
    }

    #[cfg(test)]
    pub(crate) fn of_counter(counter: u64) -> ShortOp {
        ShortOp(counter)
    }
}

/// Where operations come from: a few bytes for each boot of a node that stored something.
#[derive(Debug, Default)]
pub struct Origins {
    /// All of a name but the counter, by number.
    numbered: Vec<u128>,
    numbers: BTreeMap<u128, u32>,
}

impl Origins {
    fn short(number: u32, op: OpId) -> ShortOp {
        let counter = op.0 as u64 & ((1 << COUNTER_BITS) - 1);
        ShortOp(u64::from(number) << COUNTER_BITS | counter)
    }

    /// The short name, if the operation's origin is known.
    pub fn find(&self, op: OpId) -> Option<ShortOp> {
        let number = self.numbers.get(&(op.0 >> COUNTER_BITS))?;
        Some(Self::short(*number, op))
    }

    /// The short name.
    ///
    /// # Panics
    /// At the 2^24th boot of a node: no cluster lives to see it.
    pub fn shorten(&mut self, op: OpId) -> ShortOp {
        if let Some(short) = self.find(op) {
            return short;
        }
        let (origin, number) = (op.0 >> COUNTER_BITS, self.numbered.len());
        assert!(number < ORIGINS_MAX, "operations come from fewer than 2^24 boots of nodes");
        self.numbered.push(origin);
        self.numbers.insert(origin, number as u32);
        Self::short(number as u32, op)
    }

    /// The operation of a short name of this table.
    pub fn name(&self, short: ShortOp) -> OpId {
        let counter = short.0 & ((1 << COUNTER_BITS) - 1);
        let origin = self.numbered[(short.0 >> COUNTER_BITS) as usize];
        OpId(origin << COUNTER_BITS | u128::from(counter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_short_name_stands_for_one_operation(
            ops in prop::collection::vec((0u16..3, 0u32..3, 0u32..3, 0u64..1 << 40), 0..200),
            any in prop::collection::vec(any::<u128>(), 0..20),
        ) {
            let mut origins = Origins::default();
            let made = ops.iter().map(|&(node, incarnation, boot, counter)| {
                OpId::new(node, incarnation, boot, counter)
            });
            let ops: Vec<OpId> = made.chain(any.into_iter().map(OpId)).collect();
            let short: Vec<ShortOp> = ops.iter().map(|&op| origins.shorten(op)).collect();
            for (op, short) in ops.iter().zip(&short) {
                prop_assert_eq!(origins.name(*short), *op);
                prop_assert_eq!(origins.find(*op), Some(*short));
            }
            let unknown = OpId::new(9, 9, 9, 9);
            prop_assert_eq!(origins.find(unknown), None);
        }
    }
}
