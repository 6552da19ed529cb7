//! What the allocator does with memory that is given back.
//!
//! glibc returns the top of its heap to the kernel as soon as 128 KiB of it are free, and takes blocks
//! beyond that from the kernel each time: with values of that size every request pays for fresh pages,
//! zeroed one by one. It keeps more once a larger block was given back: twice its size at the top of each
//! heap, and blocks up to its size come from heaps.

use std::hint::black_box;

/// Blocks up to this size are used again; at the top of a heap twice as much stays at most.
const BLOCK_BYTES: usize = 8 << 20;

/// To be called once, before anything else. Elsewhere than on glibc it changes nothing.
pub fn keep_what_is_given_back() {
    // No page of it is touched.
    drop(black_box(Vec::<u8>::with_capacity(BLOCK_BYTES)));
}
