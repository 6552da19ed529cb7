//! Memory that many blocks are cut from, so that the kernel can be told of it once.
//!
//! Purpose: one huge page, where the system has them: the disk reads into it and writes from it in few
//! pieces, and io_uring knows it beforehand (a *registered* buffer), instead of 256 pages that are
//! looked up for each megabyte. Blocks of [`LEAF`] bytes to all of it.
//!
//! Invariant: a leaf is in at most one block, and the memory stays where it is for as long as anybody
//! has the [`Arena`]: each block has it, and so has a device that told the kernel.
//! What would break it: giving a block back twice, or a range that was not taken.

use crate::{ALIGN, allocate, free};
use std::cell::Cell;
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;

/// Bytes of an arena: a huge page.
pub const ARENA_BYTES: usize = 2 << 20;
/// Most arenas of a pool; their numbers are below it.
pub const ARENAS_MAX: usize = 256;

/// The shortest block that is cut from an arena: what the disk does with shorter ones costs the same
/// from anywhere, and those that stay long (in a cache) would leave no room for large ones.
pub(crate) const LEAF: usize = 64 << 10;

/// Bit i of the mask for blocks of 2^j leaves: whether such a block may begin at leaf i.
const STARTS: [u32; 6] = [!0, 0x5555_5555, 0x1111_1111, 0x0101_0101, 0x0001_0001, 1];

const _: () = assert!(ARENA_BYTES / LEAF == u32::BITS as usize && LEAF >= ALIGN);

/// A handle to an arena, which keeps its memory.
#[derive(Clone)]
pub struct Arena(Rc<Memory>);

struct Memory {
    ptr: NonNull<u8>,
    number: usize,
    /// Leaves that are in no block, a bit each.
    free: Cell<u32>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        free(self.ptr, ARENA_BYTES, ARENA_BYTES);
    }
}

impl Arena {
    pub(crate) fn new(number: usize) -> Arena {
        let ptr = allocate(ARENA_BYTES, ARENA_BYTES, true);
        Arena(Rc::new(Memory { ptr, number, free: Cell::new(!0) }))
    }

    /// Its place among those of its pool, below [`ARENAS_MAX`]. Another pool has arenas of the same
    /// numbers.
    pub fn number(&self) -> usize {
        self.0.number
    }

    /// Where its [`ARENA_BYTES`] begin, to tell the kernel. Its blocks have owners: nobody else may
    /// read or write there.
    pub fn start(&self) -> *mut u8 {
        self.0.ptr.as_ptr()
    }

    /// A free range of `size` bytes, a power of two: where it begins. `None` if there is none.
    pub(crate) fn take(&self, size: usize) -> Option<usize> {
        let leaves = size / LEAF;
        let order = leaves.trailing_zeros() as usize;
        let mut runs = self.0.free.get();
        // Afterwards bit i says that all leaves from i on, as many as are asked for, are free.
        (0..order).for_each(|step| runs &= runs >> (1 << step));
        let found = runs & STARTS[order];
        if found == 0 {
            return None;
        }
        let leaf = found.trailing_zeros();
        self.0.free.set(self.0.free.get() & !(mask(leaves) << leaf));
        Some(leaf as usize * LEAF)
    }

    /// Gives a range back that was taken.
    pub(crate) fn give(&self, at: usize, size: usize) {
        let back = mask(size / LEAF) << (at / LEAF);
        assert_eq!(self.0.free.get() & back, 0, "what is given back was taken");
        self.0.free.set(self.0.free.get() | back);
    }

    /// The memory at an offset.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < ARENA_BYTES, "an offset inside the arena");
        // SAFETY: the allocation has ARENA_BYTES bytes, and the offset is below that.
        unsafe { self.0.ptr.add(offset) }
    }

    /// Where memory that lies in the arena begins in it.
    pub(crate) fn offset_of(&self, ptr: NonNull<u8>) -> usize {
        ptr.as_ptr() as usize - self.0.ptr.as_ptr() as usize
    }
}

/// As many of the lowest bits.
fn mask(leaves: usize) -> u32 {
    u32::MAX >> (u32::BITS as usize - leaves)
}

impl PartialEq for Arena {
    /// Whether they are the same memory.
    fn eq(&self, other: &Arena) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Arena({}, {:032b} free)", self.0.number, self.0.free.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_apart_aligned_and_come_back() {
        let arena = Arena::new(0);
        let sizes = [64, 512, 64, 1024, 128, 64].map(|kib| kib << 10);
        let taken: Vec<(usize, usize)> =
            sizes.iter().map(|size| (arena.take(*size).unwrap(), *size)).collect();
        let mut sorted = taken.clone();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "{sorted:?}");
        assert!(taken.iter().all(|(at, size)| at % size == 0 && at + size <= ARENA_BYTES));
        assert_eq!(arena.take(ARENA_BYTES), None);
        taken.iter().for_each(|(at, size)| arena.give(*at, *size));
        assert_eq!(arena.take(ARENA_BYTES), Some(0), "all of it is free again");
        assert_eq!(arena.take(LEAF), None);
    }

    #[test]
    fn every_size_fills_it_exactly() {
        for order in 0..STARTS.len() {
            let (arena, size) = (Arena::new(0), LEAF << order);
            for index in 0..ARENA_BYTES / size {
                assert_eq!(arena.take(size), Some(index * size));
            }
            assert_eq!(arena.take(LEAF), None);
        }
    }

    #[test]
    #[should_panic(expected = "what is given back was taken")]
    fn nothing_is_given_back_twice() {
        let arena = Arena::new(0);
        let at = arena.take(LEAF).unwrap();
        arena.give(at, LEAF);
        arena.give(at, LEAF);
    }
}
