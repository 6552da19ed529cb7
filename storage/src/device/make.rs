//! A file in the making: allocated, written with zeros a piece at a time, flushed, named.
//!
//! Purpose: the steps of [`super::Device::prepare`] as a machine that the ring drives, one step in
//! flight, at low priority.
//! Invariant: the file gets its final name only after all its zeros are flushed, and is reported
//! only after the directory is.
//! What would break it: another order of the steps.

use super::disk::{Change, Extent};
use super::{FileId, RECYCLED_ZEROS};
use io_uring::{opcode, squeue, types};
use racos_buffer::{Pool, Slice};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes of zeros written at a time.
const PIECE: usize = 1 << 20;
/// The lowest priority of the best-effort class: behind the log's own writes, but never starved.
const PRIORITY: u16 = 2 << 13 | 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Allocate,
    Zeros,
    Flush,
    Name,
    FlushDirectory,
}

pub(super) struct Making {
    pub id: FileId,
    pub file: File,
    len: u64,
    written: u64,
    step: Step,
    zeros: Slice,
    new_name: CString,
    name: CString,
    /// On a disk: where it begins, and what its table is to say when it is made.
    on_disk: Option<(u64, Change)>,
}

impl Making {
    pub fn new(id: FileId, file: File, len: u64, new: &Path, name: &Path) -> io::Result<Making> {
        let pool = Pool::new(PIECE);
        let mut zeros = pool.get(PIECE).expect("a pool of one piece has a piece");
        zeros.fill(0);
        Ok(Making {
            id,
            file,
            len,
            written: 0,
            step: Step::Allocate,
            zeros: zeros.freeze(),
            new_name: CString::new(new.as_os_str().as_bytes())?,
            name: CString::new(name.as_os_str().as_bytes())?,
            on_disk: None,
        })
    }

    /// The recycling of a file: its first block zeroed and flushed, then its new name.
    pub fn recycled(id: FileId, file: File, old: &Path, name: &Path) -> io::Result<Making> {
        let making = Making::new(id, file, RECYCLED_ZEROS, old, name)?;
        Ok(Making { step: Step::Zeros, ..making })
    }

    /// Zeros on a disk, in this extent; what the table says afterwards is the caller's to write.
    pub fn on_disk(id: FileId, file: File, extent: Extent, change: Change) -> io::Result<Making> {
        let nowhere = Path::new("");
        let making = Making::new(id, file, extent.len, nowhere, nowhere)?;
        Ok(Making { step: Step::Zeros, on_disk: Some((extent.at, change)), ..making })
    }

    /// What a disk's table is to say now that it is made.
    pub fn change(&self) -> Change {
        self.on_disk.expect("only files on a disk are asked for their change").1
    }

    /// The step to begin with.
    pub fn first_step(&self) -> Step {
        self.step
    }

    /// The ring entry of a step. It points to memory of `self`, which must live and stay until the
    /// step has ended.
    pub fn entry(&self, step: Step, directory: RawFd) -> squeue::Entry {
        let file = types::Fd(self.file.as_raw_fd());
        match step {
            Step::Allocate => opcode::Fallocate::new(file, self.len).build(),
            Step::Zeros => {
                let len = (self.len - self.written).min(PIECE as u64) as u32;
                let write = opcode::Write::new(file, self.zeros.as_ptr(), len);
                let base = self.on_disk.map_or(0, |(base, _)| base);
                write.offset(base + self.written).ioprio(PRIORITY).build()
            }
            Step::Flush => opcode::Fsync::new(file).build(),
            Step::Name => {
                let here = types::Fd(libc::AT_FDCWD);
                let (from, to) = (self.new_name.as_ptr(), self.name.as_ptr());
                opcode::RenameAt::new(here, from, here, to).build()
            }
            Step::FlushDirectory => opcode::Fsync::new(types::Fd(directory)).build(),
        }
    }

    /// Takes the result of the step in flight; the next step, or `None` when the file is made.
    pub fn ended(&mut self, result: i32) -> io::Result<Option<Step>> {
        // A file system without allocation ahead: writing the zeros allocates.
        let may_fail = self.step == Step::Allocate && result == -libc::EOPNOTSUPP;
        if result < 0 && !may_fail {
            return Err(io::Error::from_raw_os_error(-result));
        }
        if self.step == Step::Zeros {
            if result == 0 {
                return Err(io::Error::new(io::ErrorKind::WriteZero, "no zeros were written"));
            }
            self.written += result as u64;
        }
        let next = match self.step {
            Step::Allocate => Step::Zeros,
            Step::Zeros if self.written < self.len => Step::Zeros,
            Step::Zeros => Step::Flush,
            Step::Flush if self.on_disk.is_some() => return Ok(None),
            Step::Flush => Step::Name,
            Step::Name => Step::FlushDirectory,
            Step::FlushDirectory => return Ok(None),
        };
        self.step = next;
        Ok(Some(next))
    }
}
