//! A list that is taken from at the end where it is added to, in pieces that never move.
//!
//! Purpose: lists of millions of free places or names in the loop of a node. A plain vector moves all of
//! them at once each time it grows: half a megabyte at 100,000 numbers, within one turn.
//!
//! Invariant: every piece but the last is full, and none is empty but perhaps the last. What would break
//! it: taking from another piece than the last that holds something.

/// Entries of a piece.
const PIECE: usize = 1024;

/// See the module.
#[derive(Debug)]
pub struct Pile<T> {
    pieces: Vec<Vec<T>>,
}

impl<T> Default for Pile<T> {
    fn default() -> Pile<T> {
        Pile { pieces: Vec::new() }
    }
}

impl<T> Pile<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        let full = self.pieces.len().saturating_sub(1) * PIECE;
        full + self.pieces.last().map_or(0, Vec::len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.first().is_none_or(Vec::is_empty)
    }

    /// The newest.
    pub fn last(&self) -> Option<&T> {
        let newest = self.pieces.last()?;
        newest.last().or_else(|| self.pieces.iter().nth_back(1)?.last())
    }

    /// Adds one.
    pub fn push(&mut self, entry: T) {
        match self.pieces.last_mut().filter(|piece| piece.len() < PIECE) {
            Some(piece) => piece.push(entry),
            None => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(entry);
                self.pieces.push(piece);
            }
        }
    }

    /// Takes the newest out. One empty piece stays, so that an entry that comes and goes between two
    /// pieces allocates nothing.
    pub fn pop(&mut self) -> Option<T> {
        if self.pieces.len() > 1 && self.pieces.last().is_some_and(Vec::is_empty) {
            self.pieces.pop();
        }
        self.pieces.last_mut()?.pop()
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        let pieces = self.pieces.capacity() * size_of::<Vec<T>>();
        pieces + self.pieces.len() * PIECE * size_of::<T>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_back_what_was_put_in_newest_first() {
        let (mut pile, mut model, mut state) = (Pile::default(), Vec::new(), 7u64);
        for step in 0..200_000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // It grows to several pieces, shrinks to none, and goes back and forth between two.
            let grows = if step / 20_000 % 2 == 0 { 5 } else { 2 };
            match state >> 61 < grows {
                true => {
                    pile.push(step);
                    model.push(step);
                }
                false => assert_eq!(pile.pop(), model.pop()),
            }
            assert_eq!((pile.len(), pile.last()), (model.len(), model.last()));
            assert_eq!(pile.is_empty(), model.is_empty());
        }
    }

    /// Counted by the allocator: what one more allocates is the same at a hundred times as many.
    #[test]
    fn one_more_never_moves_those_that_are_there() {
        let (mut pile, mut most) = (Pile::default(), 0);
        for number in 0..1_000_000u32 {
            most = most.max(allocation_counter::measure(|| pile.push(number)).bytes_max);
        }
        assert!(most <= 64 << 10, "{most} bytes allocated at once");
        let each = pile.memory_bytes() as f64 / 1e6;
        assert!(each <= 4.1, "{each} bytes for each");
    }
}
