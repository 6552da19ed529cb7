//! How much of a long piece of work a turn of the loop does: writing a checkpoint, copying a segment.
//!
//! A turn without writes does little, since the next client waits for it. A turn with many writes takes
//! longer by itself and does more: or the work would hardly come nearer to its end while clients write all
//! that they can, and what they write is what makes the work.
//!
//! Invariant: never more than the bound of the work, however many writes there were, so that a turn stays
//! well below a millisecond; and at least so much for each write up to it, so that the work keeps pace.

/// What a turn of one sort of work looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visits {
    /// However few writes there were.
    pub least: usize,
    /// For each write.
    pub per_write: usize,
    pub most: usize,
}

impl Visits {
    /// Of a turn with so many writes.
    pub fn of(self, writes: u64) -> usize {
        let wanted = usize::try_from(writes).unwrap_or(usize::MAX).saturating_mul(self.per_write);
        wanted.clamp(self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_does_as_much_more_as_there_are_writes_and_never_more_than_its_bound() {
        let visits = Visits { least: 32, per_write: 2, most: 512 };
        let of = [0, 16, 17, 255, 256, 257, u64::MAX].map(|writes| visits.of(writes));
        assert_eq!(of, [32, 32, 34, 510, 512, 512, 512]);
    }
}
