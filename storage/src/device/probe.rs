//! What reads gain on this disk from memory that the kernel knows beforehand, and from polling.
//!
//! Purpose: `racos tune` says it. The log registers what it reads at once if that is 64 KiB or more, and
//! does not poll: a ring that polls cannot flush, so it would be a second ring beside the log's.
//! Invariant: nothing is left behind in the directory.

use super::posix;
use io_uring::{IoUring, opcode, squeue, types};
use racos_buffer::{Buf, Pool};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const FILE_BYTES: u64 = 16 << 20;
const SMALL: usize = 4096;
/// A large read.
pub const LARGE: usize = 1 << 20;
/// Enough for the buffers, in arenas too.
const POOL_BYTES: usize = 64 << 20;
/// Reads under way at once.
pub const DEPTH: usize = 8;

/// Reads a second, or why there are none.
#[derive(Debug)]
pub struct Reads {
    /// Of 4 KiB.
    pub plain: io::Result<f64>,
    /// Of 4 KiB, into registered buffers, of a registered file.
    pub registered: io::Result<f64>,
    /// Of 4 KiB, by a ring that polls the disk.
    pub polled: io::Result<f64>,
    /// Of [`LARGE`] bytes, into buffers that are allocated one by one.
    pub large_alone: io::Result<f64>,
    /// Of as many, into registered arenas of a pool, as the log does it.
    pub large_registered: io::Result<f64>,
}

/// How one measurement reads.
#[derive(Clone, Copy)]
struct How {
    bytes: usize,
    registered: bool,
    polled: bool,
}

/// Reads from a new file in a directory, each way for this long.
///
/// # Errors
/// The file cannot be made, or there are no direct reads.
pub fn reads(dir: &Path, each: Duration) -> io::Result<Reads> {
    let path = dir.join(format!("racos-probe-{}", std::process::id()));
    let result = fill(&path).map(|()| Reads {
        plain: measure(&path, each, How { bytes: SMALL, registered: false, polled: false }),
        registered: measure(&path, each, How { bytes: SMALL, registered: true, polled: false }),
        polled: measure(&path, each, How { bytes: SMALL, registered: false, polled: true }),
        large_alone: measure(&path, each, How { bytes: LARGE, registered: false, polled: false }),
        large_registered: measure(
            &path,
            each,
            How { bytes: LARGE, registered: true, polled: false },
        ),
    });
    // There may be none.
    let _ = std::fs::remove_file(&path);
    result
}

fn fill(path: &Path) -> io::Result<()> {
    let file = posix::open_direct(path, true)?;
    let mut piece = Pool::new(1 << 20).get(1 << 20).expect("a pool of one piece has a piece");
    piece.fill(0x5a);
    for at in (0..FILE_BYTES).step_by(piece.len()) {
        file.write_all_at(&piece, at)?;
    }
    file.sync_all()
}

fn measure(path: &Path, each: Duration, how: How) -> io::Result<f64> {
    let How { bytes, registered, polled } = how;
    let file = posix::open_direct(path, false)?;
    let pool = if registered { Pool::with_arenas(POOL_BYTES) } else { Pool::new(POOL_BYTES) };
    // Declared before the ring, and so dropped after it: what the kernel may write to outlives it.
    let mut bufs: Vec<Buf> = (0..DEPTH).filter_map(|_| pool.get(bytes)).collect();
    let mut builder = IoUring::builder();
    if polled {
        builder.setup_iopoll();
    }
    let mut ring: IoUring = builder.build(DEPTH as u32)?;
    if registered {
        let iovecs: Vec<libc::iovec> = bufs
            .iter_mut()
            .map(|buf| libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: bytes })
            .collect();
        // SAFETY: the buffers are not moved in memory and are freed only after the ring is.
        unsafe { ring.submitter().register_buffers(&iovecs) }?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
    }
    let mut entry = |number: usize, count: u64| -> squeue::Entry {
        // A walk over the whole file, in no order that a disk would see ahead.
        let block = count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let offset = block % (FILE_BYTES / bytes as u64) * bytes as u64;
        let (memory, len) = (bufs[number].as_mut_ptr(), bytes as u32);
        let entry = match registered {
            true => opcode::ReadFixed::new(types::Fixed(0), memory, len, number as u16)
                .offset(offset)
                .build(),
            false => {
                opcode::Read::new(types::Fd(file.as_raw_fd()), memory, len).offset(offset).build()
            }
        };
        entry.user_data(number as u64)
    };
    let (clock, mut count, mut done, mut under_way) = (Instant::now(), 0, 0u64, 0);
    let mut free: Vec<usize> = (0..DEPTH).collect();
    let mut failed = None;
    loop {
        let more = failed.is_none() && clock.elapsed() < each;
        while let Some(number) = free.pop_if(|_| more) {
            count += 1;
            // SAFETY: the buffer is not touched until its read has ended, and the ring is gone first.
            let pushed = unsafe { ring.submission().push(&entry(number, count)) };
            pushed.expect("the queue has room for every buffer");
            under_way += 1;
        }
        if under_way == 0 {
            break;
        }
        ring.submit_and_wait(1)?;
        for completion in ring.completion() {
            under_way -= 1;
            free.push(completion.user_data() as usize);
            match completion.result() {
                ..0 => failed = Some(io::Error::from_raw_os_error(-completion.result())),
                _ => done += 1,
            }
        }
    }
    let per_second = done as f64 / clock.elapsed().as_secs_f64();
    failed.map_or(Ok(per_second), Err)
}
