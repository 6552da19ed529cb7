//! Arenas of a pool that the kernel was told of: it looks their pages up once, not at each read.
//!
//! Purpose: a table beside the kernel's. An arena is registered when the device first meets a buffer of
//! it; reads into registered memory and writes from it are the ring's *fixed* operations. Where the
//! kernel refuses, the same reads and writes go on without.
//!
//! Invariant: what the kernel has at a number is the arena that is here at that number, and its memory
//! is kept for as long as the ring: this table is dropped after it.
//! What would break it: naming an arena of another pool, which has the same numbers, by its number
//! alone.

use io_uring::Submitter;
use racos_buffer::{ARENA_BYTES, ARENAS_MAX, Arena};
use std::io;

/// What was done with registered buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Arenas that the kernel knows.
    pub arenas: usize,
    /// Reads into them.
    pub reads: u64,
    /// Writes from one of them.
    pub writes: u64,
}

pub(super) struct Registered {
    /// By number. Empty: the kernel has no table.
    arenas: Vec<Option<Arena>>,
    /// No more are registered, and why.
    refused: Option<String>,
    is_wanted: bool,
    /// Not yet told.
    is_news: bool,
    /// Bytes that may still be registered.
    left: usize,
    pub done: Fixed,
}

impl Registered {
    /// An empty table in the kernel, unless nothing is to be registered or the kernel has none.
    pub fn new(ring: &Submitter<'_>, bytes_max: usize) -> Registered {
        let mut table = Registered {
            arenas: Vec::new(),
            refused: None,
            is_wanted: bytes_max > 0,
            is_news: false,
            left: bytes_max,
            done: Fixed::default(),
        };
        if bytes_max == 0 {
            table.refused = Some("not asked for".into());
            return table;
        }
        match ring.register_buffers_sparse(ARENAS_MAX as u32) {
            Ok(()) => table.arenas.resize(ARENAS_MAX, None),
            Err(error) => table.refuse(&error),
        }
        table
    }

    /// The kernel's number of a buffer's arena, which it is told of now if it was not before. `None`:
    /// the buffer is of no arena, or the kernel does not know it.
    pub fn index(&mut self, ring: &Submitter<'_>, arena: Option<&Arena>) -> Option<u16> {
        let arena = arena?;
        let number = arena.number();
        match self.arenas.get(number)? {
            Some(known) if known != arena => return None,
            Some(_) => {}
            None if self.refused.is_some() => return None,
            None => {
                if let Err(error) = self.register(ring, arena) {
                    self.refuse(&error);
                    return None;
                }
            }
        }
        Some(number as u16)
    }

    fn register(&mut self, ring: &Submitter<'_>, arena: &Arena) -> io::Result<()> {
        let Some(left) = self.left.checked_sub(ARENA_BYTES) else {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        };
        let memory = libc::iovec { iov_base: arena.start().cast(), iov_len: ARENA_BYTES };
        // SAFETY: the arena has ARENA_BYTES bytes there, and the handle that is kept below keeps them
        // until the ring is gone. The kernel touches only what an operation names, whose buffer the
        // device owns until it has ended.
        unsafe { ring.register_buffers_update(arena.number() as u32, &[memory], None) }?;
        self.left = left;
        self.done.arenas += 1;
        self.arenas[arena.number()] = Some(arena.clone());
        Ok(())
    }

    fn refuse(&mut self, error: &io::Error) {
        let advice = match error.raw_os_error() {
            Some(libc::ENOMEM) => {
                "; raise the limit of locked memory: `ulimit -l`, or LimitMEMLOCK= of the service"
            }
            _ => "",
        };
        let known = self.done.arenas * (ARENA_BYTES >> 20);
        self.refused = Some(format!("{error}, with {known} MiB registered{advice}"));
        self.is_news = true;
    }

    /// In use or not, for people.
    pub fn describe(&self) -> String {
        match &self.refused {
            None => ", registered buffers".into(),
            Some(_) if !self.is_wanted => String::new(),
            Some(why) if self.done.arenas == 0 => format!(", no registered buffers ({why})"),
            Some(why) => format!(", some registered buffers ({why})"),
        }
    }

    /// Why the kernel refused, once.
    pub fn take_refusal(&mut self) -> Option<&str> {
        if !std::mem::take(&mut self.is_news) {
            return None;
        }
        self.refused.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::IoUring;
    use racos_buffer::Pool;

    /// `None` where there is no io_uring.
    fn ring() -> Option<IoUring> {
        IoUring::new(8).map_err(|error| eprintln!("skipped: {error}")).ok()
    }

    #[test]
    fn a_kernel_that_has_no_table_is_told_of_nothing_and_says_so_once() {
        let Some(ring) = ring() else { return };
        // It has one table, and another is refused.
        ring.submitter().register_buffers_sparse(1).unwrap();
        let mut table = Registered::new(&ring.submitter(), usize::MAX);
        let buf = Pool::with_arenas(32 << 20).get(1 << 20).unwrap();
        assert_eq!(table.index(&ring.submitter(), buf.arena()), None);
        let why = table.take_refusal().expect("it was refused").to_string();
        assert!(why.contains("busy"), "{why}");
        assert_eq!(table.take_refusal(), None);
        assert!(table.describe().starts_with(", no registered buffers"), "{}", table.describe());
    }

    #[test]
    fn what_was_registered_before_a_refusal_stays() {
        let Some(ring) = ring() else { return };
        let mut table = Registered::new(&ring.submitter(), usize::MAX);
        ring.submitter().unregister_buffers().unwrap();
        // The kernel's table ends behind the first arena.
        ring.submitter().register_buffers_sparse(1).unwrap();
        let pool = Pool::with_arenas(64 << 20);
        let bufs: Vec<_> = (0..3).map(|_| pool.get(ARENA_BYTES).unwrap()).collect();
        let twice = bufs.iter().chain(&bufs);
        let found: Vec<_> = twice.map(|buf| table.index(&ring.submitter(), buf.arena())).collect();
        assert_eq!(found, [Some(0), None, None, Some(0), None, None]);
        assert_eq!(table.done.arenas, 1);
        let why = table.take_refusal().expect("it was refused");
        assert!(why.contains("2 MiB registered"), "{why}");
        // Nothing is tried again, and nothing told twice.
        assert_eq!(table.index(&ring.submitter(), bufs[2].arena()), None);
        assert_eq!(table.take_refusal(), None);
    }

    #[test]
    fn who_wants_none_is_told_of_no_refusal() {
        let Some(ring) = ring() else { return };
        let mut table = Registered::new(&ring.submitter(), 0);
        let buf = Pool::with_arenas(32 << 20).get(1 << 20).unwrap();
        assert_eq!(table.index(&ring.submitter(), buf.arena()), None);
        assert_eq!(table.take_refusal(), None);
        assert_eq!(table.describe(), "");
    }

    #[test]
    fn an_arena_of_another_pool_is_not_taken_for_the_one_of_its_number() {
        let Some(ring) = ring() else { return };
        let mut table = Registered::new(&ring.submitter(), usize::MAX);
        let first = Pool::with_arenas(32 << 20).get(1 << 20).unwrap();
        let other = Pool::with_arenas(32 << 20).get(1 << 20).unwrap();
        assert_eq!(table.index(&ring.submitter(), first.arena()), Some(0));
        assert_eq!(table.index(&ring.submitter(), other.arena()), None);
        // Also when the pool of the first one is gone: its memory cannot come back in another.
        drop((first, other));
        let third = Pool::with_arenas(32 << 20).get(1 << 20).unwrap();
        assert_eq!(table.index(&ring.submitter(), third.arena()), None);
        assert_eq!(table.take_refusal(), None, "nothing was refused");
    }

    #[test]
    fn locked_memory_that_is_short_is_named_with_what_to_do() {
        let Some(ring) = ring() else { return };
        let mut table = Registered::new(&ring.submitter(), ARENA_BYTES);
        let pool = Pool::with_arenas(64 << 20);
        let bufs: Vec<_> = (0..2).map(|_| pool.get(ARENA_BYTES).unwrap()).collect();
        assert_eq!(table.index(&ring.submitter(), bufs[0].arena()), Some(0));
        assert_eq!(table.index(&ring.submitter(), bufs[1].arena()), None);
        let why = table.take_refusal().expect("it was refused");
        assert!(why.contains("LimitMEMLOCK=") && why.contains("2 MiB registered"), "{why}");
        assert!(table.describe().starts_with(", some registered buffers"), "{}", table.describe());
    }
}
