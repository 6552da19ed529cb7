//! Aligned, pooled, reference-counted buffers.
//!
//! Purpose: one kind of buffer that the socket fills, the codec encodes in place, the log writes
//! with `O_DIRECT` and the socket sends again, so that a value is not copied between them.
//!
//! Invariant: a [`Buf`] is the only handle to its bytes and may be written; once frozen into
//! [`Slice`]s the bytes never change again until the last slice is dropped, when the block goes
//! back to its pool. A block is 4096-aligned and zeroed when first allocated, so no byte read
//! through this API is ever uninitialised.
//!
//! A pool [with arenas](Pool::with_arenas) cuts blocks of 64 KiB to 2 MiB from memory that a device
//! can tell the kernel of beforehand; all others, and those for which no arena has room, are allocated
//! one by one.
//!
//! What would break it: handing out a second mutable view of a block (there is no API for it), or
//! sending a pool to another thread (`Rc` forbids it: a pool belongs to one reactor).

mod arena;

pub use arena::{ARENA_BYTES, ARENAS_MAX, Arena};

use arena::LEAF;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::rc::Rc;

/// Every block starts at a multiple of this many bytes, enough for `O_DIRECT` on any disk.
pub const ALIGN: usize = 4096;

const CLASSES: usize = 16; // 4 KiB << 0 ..= 4 KiB << 15 = 128 MiB

/// A bounded pool of blocks in power-of-two size classes. Cloning gives another handle to it.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

struct Inner {
    state: RefCell<State>,
    limit: usize,
    /// Most bytes of memory that nobody uses: of `idle` blocks, and in arenas.
    keep: usize,
    arenas_max: usize,
}

struct State {
    free: [Vec<NonNull<u8>>; CLASSES],
    /// Bytes in blocks that are handed out.
    used: usize,
    /// Bytes in blocks that wait in `free`.
    idle: usize,
    /// Never given back before the pool is: at most three quarters of `keep`.
    arenas: Vec<Arena>,
    /// Bytes of the arenas that are in no block.
    arena_free: usize,
}

impl Pool {
    /// A pool that hands out at most `limit` bytes of blocks at any time and keeps at most `limit / 4`
    /// bytes of returned blocks for reuse.
    pub fn new(limit: usize) -> Pool {
        Pool::with(limit, 0)
    }

    /// The same, bounded alike, with blocks of 64 KiB to 2 MiB in arenas: as many of them as fit in
    /// three quarters of what it keeps, each made when it is first needed.
    pub fn with_arenas(limit: usize) -> Pool {
        Pool::with(limit, (limit / 16 * 3 / ARENA_BYTES).min(ARENAS_MAX))
    }

    fn with(limit: usize, arenas_max: usize) -> Pool {
        let state = State {
            free: Default::default(),
            used: 0,
            idle: 0,
            arenas: Vec::with_capacity(arenas_max),
            arena_free: 0,
        };
        Pool(Rc::new(Inner { state: RefCell::new(state), limit, keep: limit / 4, arenas_max }))
    }

    /// A buffer of `len` bytes (contents: zeros or what an earlier user left), or `None` if the pool
    /// is at its limit or `len` exceeds the largest class (128 MiB).
    pub fn get(&self, len: usize) -> Option<Buf> {
        let class = class_of(len)?;
        let size = ALIGN << class;
        let mut state = self.0.state.borrow_mut();
        if state.used + size > self.0.limit {
            return None;
        }
        state.used += size;
        let (ptr, arena) = match state.cut(size, &self.0) {
            Some((ptr, arena)) => (ptr, Some(arena)),
            None => (state.alone(class), None),
        };
        drop(state);
        Some(Buf { block: Block { ptr, class, arena, pool: self.clone() }, len })
    }

    /// A frozen copy of `bytes`, or `None` as for [`Pool::get`].
    pub fn copy(&self, bytes: &[u8]) -> Option<Slice> {
        let mut buf = self.get(bytes.len())?;
        buf.copy_from_slice(bytes);
        Some(buf.freeze())
    }

    /// Bytes of blocks handed out now.
    pub fn used(&self) -> usize {
        self.0.state.borrow().used
    }

    /// Most bytes that may be handed out at once.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Bytes of memory that the pool has, in use or not.
    pub fn memory(&self) -> usize {
        let state = self.0.state.borrow();
        state.used + state.idle + state.arena_free
    }
}

impl State {
    /// A block of an arena, the first that has room; of a new one if there may be another.
    fn cut(&mut self, size: usize, pool: &Inner) -> Option<(NonNull<u8>, Arena)> {
        if pool.arenas_max == 0 || !(LEAF..=ARENA_BYTES).contains(&size) {
            return None;
        }
        let found = self.arenas.iter().find_map(|arena| Some((arena.take(size)?, arena)));
        let (at, arena) = match found {
            Some((at, arena)) => (at, arena.clone()),
            None if self.arenas.len() < pool.arenas_max => {
                let arena = Arena::new(self.arenas.len());
                let at = arena.take(size).expect("a new arena is free");
                self.arenas.push(arena.clone());
                self.arena_free += ARENA_BYTES;
                (at, arena)
            }
            None => return None,
        };
        self.arena_free -= size;
        self.trim(pool.keep);
        Some((arena.at(at), arena))
    }

    /// A block of its own.
    fn alone(&mut self, class: usize) -> NonNull<u8> {
        match self.free[class].pop() {
            Some(ptr) => {
                self.idle -= ALIGN << class;
                ptr
            }
            None => allocate(ALIGN << class, ALIGN, false),
        }
    }

    /// Gives idle blocks back to the system, large ones first, until no more than `keep` bytes are of
    /// no use now. Arenas alone are always less than that.
    fn trim(&mut self, keep: usize) {
        for class in (0..CLASSES).rev() {
            while self.idle + self.arena_free > keep
                && let Some(ptr) = self.free[class].pop()
            {
                self.idle -= ALIGN << class;
                free(ptr, ALIGN << class, ALIGN);
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for (class, list) in self.state.get_mut().free.iter_mut().enumerate() {
            for ptr in list.drain(..) {
                free(ptr, ALIGN << class, ALIGN);
            }
        }
    }
}

fn class_of(len: usize) -> Option<usize> {
    let blocks = len.div_ceil(ALIGN).max(1);
    let class = blocks.next_power_of_two().trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).expect("a class size is a valid layout")
}

/// Zeros, for [`free`] with the same size and alignment; with `huge`, in huge pages where there are any.
fn allocate(size: usize, align: usize, huge: bool) -> NonNull<u8> {
    // SAFETY: the layout has a non-zero size (the smallest class is one page).
    let ptr = unsafe { alloc(layout(size, align)) };
    let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout(size, align)) };
    if huge {
        want_huge_pages(ptr, size);
    }
    // SAFETY: the allocation has `size` bytes, and nobody else knows of it yet.
    unsafe { ptr.write_bytes(0, size) };
    ptr
}

/// Asks for huge pages: a hint, taken before the memory is first touched.
fn want_huge_pages(ptr: NonNull<u8>, size: usize) {
    #[cfg(all(target_os = "linux", not(miri)))]
    // SAFETY: the range is an allocation of the caller; the hint changes none of its bytes.
    unsafe {
        libc::madvise(ptr.as_ptr().cast(), size, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (ptr, size);
}

fn free(ptr: NonNull<u8>, size: usize, align: usize) {
    // SAFETY: `ptr` came from `allocate` with this same layout and is freed once: a block that
    // is of no arena is either in exactly one `Block` or in exactly one free list, and an arena's
    // memory is freed by its last handle.
    unsafe { dealloc(ptr.as_ptr(), layout(size, align)) }
}

/// Owner of a range of memory; returns it to the pool when dropped.
struct Block {
    ptr: NonNull<u8>,
    class: usize,
    /// Where it was cut from; `None`: it is an allocation of its own.
    arena: Option<Arena>,
    pool: Pool,
}

impl Block {
    fn size(&self) -> usize {
        ALIGN << self.class
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let size = self.size();
        let inner = &self.pool.0;
        let mut state = inner.state.borrow_mut();
        state.used -= size;
        if let Some(arena) = &self.arena {
            arena.give(arena.offset_of(self.ptr), size);
            state.arena_free += size;
            state.trim(inner.keep);
        } else if state.idle + state.arena_free + size <= inner.keep {
            state.idle += size;
            state.free[self.class].push(self.ptr);
        } else {
            free(self.ptr, size, ALIGN);
        }
    }
}

/// A buffer with one owner, who may write it.
pub struct Buf {
    block: Block,
    len: usize,
}

impl Buf {
    /// Bytes that the block holds, at least `len()`.
    pub fn capacity(&self) -> usize {
        self.block.size()
    }

    /// The arena that it lies in.
    pub fn arena(&self) -> Option<&Arena> {
        self.block.arena.as_ref()
    }

    /// Changes the visible length. Panics if `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "length {len} above capacity {}", self.capacity());
        self.len = len;
    }

    /// Gives up the right to write and makes the bytes shareable.
    pub fn freeze(self) -> Slice {
        let len = self.len;
        Slice { block: Some(Rc::new(self.block)), start: 0, len }
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the block has at least `len` initialised bytes and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.block.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `self` is the only handle to the block, so no other view exists.
        unsafe { std::slice::from_raw_parts_mut(self.block.ptr.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Buf({} bytes)", self.len)
    }
}

/// A shared, read-only view of part of a block. Cloning is a counter increment.
#[derive(Clone)]
pub struct Slice {
    block: Option<Rc<Block>>,
    start: usize,
    len: usize,
}

impl Slice {
    /// A view of nothing, without a block.
    pub const fn empty() -> Slice {
        Slice { block: None, start: 0, len: 0 }
    }

    /// A narrower view of the same bytes. Panics if the range is not inside this view.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len, "slice out of range");
        let block = if range.is_empty() { None } else { self.block.clone() };
        Slice { block, start: self.start + range.start, len: range.len() }
    }

    /// A view with the same start and `len` bytes, which may reach beyond this one up to the end of
    /// the block: for writing whole sectors whose tail is padding. Panics beyond the block.
    pub fn extend_to(&self, len: usize) -> Slice {
        let Some(block) = &self.block else {
            assert_eq!(len, 0, "an empty slice cannot be extended");
            return Slice::empty();
        };
        assert!(self.start + len <= block.size(), "slice beyond its block");
        Slice { block: Some(block.clone()), start: self.start, len }
    }

    /// Bytes of memory that the view keeps from being reused: those of its whole block.
    pub fn block_bytes(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.size())
    }

    /// The arena that it lies in.
    pub fn arena(&self) -> Option<&Arena> {
        self.block.as_ref()?.arena.as_ref()
    }

    /// Whether the view starts where its block does, so that [`Slice::try_thaw`] keeps its bytes in
    /// place.
    pub fn starts_block(&self) -> bool {
        self.start == 0 && self.block.is_some()
    }

    /// Whether the bytes start at a multiple of `align` in memory.
    pub fn is_aligned(&self, align: usize) -> bool {
        self.start.is_multiple_of(align)
    }

    /// Gives the buffer back for writing if this is the only view of its block; the whole block,
    /// with length = capacity.
    pub fn try_thaw(self) -> Result<Buf, Slice> {
        let Slice { block, start, len } = self;
        match block.map(Rc::try_unwrap) {
            Some(Ok(block)) => Ok(Buf { len: block.size(), block }),
            Some(Err(shared)) => Err(Slice { block: Some(shared), start, len }),
            None => Err(Slice { block: None, start, len }),
        }
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.block {
            // SAFETY: `start + len` is inside the block (checked wherever a slice is made), the block
            // is initialised, nobody can write it while a slice exists, and it lives as long as `self`.
            Some(block) => unsafe {
                std::slice::from_raw_parts(block.ptr.as_ptr().add(self.start), self.len)
            },
            None => &[],
        }
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Slice({} bytes)", self.len)
    }
}

impl Default for Slice {
    fn default() -> Slice {
        Slice::empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_zeroed_and_reused() {
        let pool = Pool::new(1 << 20);
        let mut buf = pool.get(5000).unwrap();
        assert_eq!((buf.as_ptr() as usize) % ALIGN, 0);
        assert!(buf.iter().all(|byte| *byte == 0));
        assert_eq!(buf.capacity(), 8192);
        buf[0] = 7;
        let first = buf.as_ptr();
        drop(buf.freeze());
        assert_eq!(pool.used(), 0);
        assert_eq!(pool.get(8000).unwrap().as_ptr(), first);
    }

    #[test]
    fn the_limit_holds_and_is_given_back() {
        let pool = Pool::new(8192);
        let held = pool.get(8192).unwrap();
        assert!(pool.get(1).is_none());
        drop(held);
        assert!(pool.get(1).is_some());
        assert!(Pool::new(1 << 40).get((128 << 20) + 1).is_none());
    }

    #[test]
    fn slices_share_and_thaw_only_when_alone() {
        let pool = Pool::new(1 << 20);
        let whole = pool.copy(b"hello world").unwrap();
        let part = whole.slice(6..11);
        assert_eq!(&*part, b"world");
        assert_eq!(part.extend_to(100).len(), 100);
        let part = part.try_thaw().unwrap_err();
        drop(whole);
        let buf = part.try_thaw().unwrap();
        assert_eq!(buf.len(), ALIGN);
        assert_eq!(&buf[..5], b"hello");
    }

    #[test]
    #[should_panic(expected = "slice out of range")]
    fn a_slice_stays_inside_its_parent() {
        let pool = Pool::new(1 << 20);
        pool.copy(b"abc").unwrap().slice(1..3).slice(0..3);
    }

    /// Whether a block of the length comes from the arena of that number.
    fn is_in(buf: &Buf, number: usize) -> bool {
        let Some(arena) = buf.arena() else { return false };
        let (from, at) = (arena.start() as usize, buf.as_ptr() as usize);
        assert!(at >= from && at + buf.capacity() <= from + ARENA_BYTES, "it lies in its arena");
        arena.number() == number
    }

    #[test]
    fn blocks_of_arenas_share_them_and_the_others_are_alone() {
        // Three arenas.
        let pool = Pool::with_arenas(32 << 20);
        let (least, most) = (pool.get(LEAF).unwrap(), pool.get(ARENA_BYTES).unwrap());
        assert!(is_in(&least, 0) && is_in(&most, 1));
        assert!(least[..] == [0; LEAF] && most[..] == vec![0; ARENA_BYTES]);
        for len in [1, LEAF / 2, ARENA_BYTES + 1] {
            assert_eq!(pool.get(len).unwrap().arena(), None, "{len} bytes");
        }
        // The first that has room, and a third.
        let more: Vec<Buf> = (0..2).map(|_| pool.get(1 << 20).unwrap()).collect();
        assert!(is_in(&more[0], 0) && is_in(&more[1], 2));
        let whole = pool.get(ARENA_BYTES).unwrap();
        assert_eq!(whole.arena(), None, "there may be three");
        assert_eq!(Pool::new(32 << 20).get(LEAF).unwrap().arena(), None, "nobody asked for them");
    }

    #[test]
    fn neighbours_in_an_arena_do_not_touch_each_other() {
        let pool = Pool::with_arenas(32 << 20);
        let mut bufs: Vec<Buf> = (0..ARENA_BYTES / LEAF).map(|_| pool.get(LEAF).unwrap()).collect();
        assert!(bufs.iter().all(|buf| is_in(buf, 0)));
        for (number, buf) in bufs.iter_mut().enumerate() {
            buf.fill(number as u8);
        }
        // Views of one are read while another is written and a third was given back.
        let frozen = bufs.swap_remove(7).freeze();
        drop(bufs.swap_remove(3));
        bufs[0].fill(200);
        assert!(frozen[..] == [7; LEAF]);
        assert_eq!(frozen.arena(), bufs[0].arena());
        assert_eq!(frozen.slice(5..9).arena(), bufs[0].arena());
    }

    #[test]
    fn an_arena_outlives_its_pool_for_who_has_it() {
        let pool = Pool::with_arenas(32 << 20);
        let buf = pool.get(LEAF).unwrap();
        let arena = buf.arena().unwrap().clone();
        drop((buf, pool));
        // The kernel may have been told of this memory: it is nobody else's yet.
        assert!((0..4).all(|_| Arena::new(0).start() != arena.start()));
        assert_eq!(arena.take(ARENA_BYTES), Some(0), "its block came back");
    }

    #[test]
    fn blocks_that_wait_make_room_for_a_new_arena() {
        let limit = 64 << 20;
        let pool = Pool::with_arenas(limit);
        let held: Vec<Buf> = (0..4).map(|_| pool.get(4 << 20).unwrap()).collect();
        drop(held);
        assert_eq!(pool.memory(), limit / 4, "all of them wait");
        let first = pool.get(LEAF).unwrap();
        assert!(is_in(&first, 0) && pool.memory() - pool.used() <= limit / 4);
    }

    #[test]
    fn what_is_kept_is_bounded_with_arenas_too() {
        let limit = 64 << 20;
        let pool = Pool::with_arenas(limit);
        let mut held = Vec::new();
        let mut seed = 1u64;
        for _ in 0..if cfg!(miri) { 300 } else { 4000 } {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            match pool.get(1 << (8 + (seed >> 33) % 15)) {
                Some(buf) if !(seed >> 60).is_multiple_of(3) => held.push(buf.freeze()),
                _ if held.is_empty() => {}
                _ => drop(held.swap_remove((seed >> 20) as usize % held.len())),
            }
            assert!(pool.used() <= limit);
            assert!(pool.memory() - pool.used() <= limit / 4, "{}", pool.memory());
        }
        assert!(held.len() > 5, "it was filled");
        held.clear();
        assert_eq!(pool.used(), 0);
        assert!(pool.memory() <= limit / 4);
    }
}
