//! The seam under the log: numbered files of fixed length that are read and written by sector.
//!
//! Purpose: `Device` is all that differs between io_uring on a real disk, plain system calls, and
//! the simulator's disk.
//! Invariant: a write is durable when its completion arrives, not before; a file exists (after a
//! crash) with all its blocks written once its `Prepared` completion has arrived.
//! What would break it: completing a write before the flush, or answering from a page cache.

mod directory;
#[cfg(target_os = "linux")]
mod disk;
pub mod file;
mod lock;
#[cfg(target_os = "linux")]
mod make;
pub mod memory;
#[allow(unsafe_code)]
pub mod picture;
#[allow(unsafe_code)]
mod posix;
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub mod probe;
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub mod registered;
pub mod sync;
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub mod uring;
pub mod waiting;

use racos_buffer::{Buf, Slice};
use std::io;
use std::os::fd::RawFd;

/// Number of a log segment file. File 0 is the superblock.
pub type FileId = u32;

/// The superblock file: two copies of one small block, written alternately.
pub const SUPERBLOCK: FileId = 0;

/// Most slices in one [`Device::write_flush`]: what the kernel takes in one gathered write.
pub const PARTS_MAX: usize = 1024;

/// What a device reports later.
#[derive(Debug)]
pub enum Completion {
    /// The write with this token is on stable storage, or failed: after an error nothing may be
    /// assumed about it and the node must stop (PROTOCOL 4.4-c: a failed flush is never retried).
    Written { token: u64, result: io::Result<()> },
    /// The read with this token; the buffer comes back filled to the length asked for, or an error.
    Read { token: u64, buf: Buf, result: io::Result<()> },
    /// The file exists with its whole length written with zeros and flushed, or could not be made
    /// (`ErrorKind::StorageFull` when the disk is full).
    Prepared { file: FileId, result: io::Result<()> },
    /// The file is gone, or could not be removed.
    Removed { file: FileId, result: io::Result<()> },
}

/// Bytes at the front of a file that [`Device::recycle`] zeroes.
pub const RECYCLED_ZEROS: u64 = 4096;

/// Numbered files on one disk. Offsets and lengths given to a device are multiples of
/// [`Device::sector`]; memory is aligned to it.
pub trait Device: 'static {
    /// Smallest unit of a write, a power of two of at least 512 bytes.
    fn sector(&self) -> usize;
    /// Files that exist, in order, with their length in bytes. Start-up only; may block.
    fn list(&mut self) -> io::Result<Vec<(FileId, u64)>>;
    /// Reads at start-up; blocks. Reading beyond the end is `ErrorKind::UnexpectedEof`.
    fn read_now(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes and flushes at start-up; blocks. Makes the file if it does not exist.
    fn write_now(&mut self, file: FileId, offset: u64, bytes: &Slice) -> io::Result<()>;
    /// Starts to make a file of `len` zero bytes, all blocks written, file and directory flushed.
    /// One at a time (the log sees to it). A file of that number that exists is replaced. A crash
    /// before the completion leaves no new file, never part of one.
    fn prepare(&mut self, file: FileId, len: u64);
    /// Starts to give the file `from` the number `file`, with its first block zeroed and the rest
    /// as it is: blocks written before are kept. Reported as `Prepared`; with [`Device::prepare`],
    /// one at a time. A crash before the completion leaves the file under one of its two numbers.
    fn recycle(&mut self, from: FileId, file: FileId);
    /// Starts to remove a file that nothing reads or writes; one at a time. After a crash it may
    /// be there again.
    fn remove(&mut self, file: FileId);
    /// Starts one write of the gathered `parts` (at most [`PARTS_MAX`]) at `offset`, and a flush
    /// after it. At most one is in flight (the log sees to it). The device keeps the slices until
    /// the completion, and has dropped them when it reports it.
    fn write_flush(&mut self, token: u64, file: FileId, offset: u64, parts: &[Slice]);
    /// Starts a read of `buf.len()` bytes.
    fn read(&mut self, token: u64, file: FileId, offset: u64, buf: Buf);
    /// Appends what has completed to `into`. Never waits.
    fn poll(&mut self, into: &mut Vec<Completion>);
    /// Hands what was started to the kernel, if the device batches.
    fn submit(&mut self);
    /// Waits until a completion can be polled. Start-up only; blocks. An error if none can ever
    /// come.
    fn settle(&mut self) -> io::Result<()>;
    /// Free bytes that files could still take.
    fn free_bytes(&mut self) -> io::Result<u64>;
}

/// A device whose reactor may sleep in it.
pub trait Sleep: Device {
    /// Sleeps until something has completed, one of `fds` can be read, or `timeout_ns` nanoseconds
    /// have passed (`None`: no limit). Hands started work to the kernel first; returns at once if
    /// completions wait to be polled. May return early.
    fn wait(&mut self, fds: &[RawFd], timeout_ns: Option<u64>) -> io::Result<()>;
}

/// How a write is made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlushMethod {
    /// A write linked to an `fdatasync`, both in the ring. Never stalls the caller.
    #[default]
    Linked,
    /// One write with `RWF_DSYNC`. Less work, but it ends on a kernel worker that a spinning thread
    /// on the same CPU starves.
    Dsync,
    /// `pwritev` and `fdatasync` at once, in the caller. Best where cores are few.
    Sync,
}

/// How the ring is set up.
#[derive(Clone, Debug)]
pub struct UringConfig {
    /// How a write is made durable.
    pub flush: FlushMethod,
    /// Submission queue entries, a power of two.
    pub entries: u32,
    /// CPUs for the kernel's workers; empty: wherever this thread may run. Keep them off the CPU of
    /// a spinning thread.
    pub worker_cpus: Vec<usize>,
    /// Whether a block device that holds something else may be taken.
    pub take_device: bool,
    /// Most bytes of a pool's arenas that the kernel is told of; 0: none.
    pub registered_bytes_max: usize,
}

impl Default for UringConfig {
    fn default() -> UringConfig {
        UringConfig {
            flush: FlushMethod::default(),
            entries: 256,
            worker_cpus: Vec::new(),
            take_device: false,
            registered_bytes_max: usize::MAX,
        }
    }
}
