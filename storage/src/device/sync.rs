//! Plain positioned reads and writes, each done when it is asked for.
//!
//! Purpose: systems without io_uring, and the oracle that other devices are compared with.
//! Invariant: a completion is made only after `fdatasync` has answered.
//! What would break it: nothing runs behind the caller's back, so little can.

use super::directory::Directory;
use super::{Completion, Device, FileId, RECYCLED_ZEROS, Sleep, posix};
use racos_buffer::{Buf, Slice};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SECTOR: usize = 512;
/// Bytes of zeros written per poll while a file is made.
const PIECE: u64 = 1 << 20;

struct Making {
    id: FileId,
    file: File,
    len: u64,
    written: u64,
}

/// Files in a directory, read and written by blocking calls through the page cache.
pub struct SyncDevice {
    directory: Directory,
    files: BTreeMap<FileId, File>,
    making: Option<Making>,
    done: Vec<Completion>,
}

impl SyncDevice {
    /// Opens (and creates if needed) the directory, for this process alone.
    pub fn open(path: &Path) -> io::Result<SyncDevice> {
        let directory = Directory::open(path)?;
        Ok(SyncDevice { directory, files: BTreeMap::new(), making: None, done: Vec::new() })
    }

    /// What is in use, for people.
    pub fn describe(&self) -> String {
        "pread, pwrite and fdatasync through the page cache".to_string()
    }

    fn file(&mut self, file: FileId, create: bool) -> io::Result<&File> {
        if !self.files.contains_key(&file) {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(create).truncate(false);
            let opened = options.open(self.directory.file_path(file))?;
            self.files.insert(file, opened);
        }
        Ok(&self.files[&file])
    }

    fn write(&mut self, file: FileId, offset: u64, parts: &[Slice]) -> io::Result<()> {
        let file = self.file(file, false)?;
        let mut at = offset;
        for part in parts {
            file.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        file.sync_data()
    }

    fn begin(&mut self, id: FileId, len: u64) -> io::Result<Making> {
        let path = self.directory.new_path(id);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        Ok(Making { id, file, len, written: 0 })
    }

    fn recycle_now(&mut self, from: FileId, file: FileId) -> io::Result<()> {
        let old = self.file(from, false)?;
        old.write_all_at(&vec![0; RECYCLED_ZEROS as usize], 0)?;
        old.sync_all()?;
        self.files.remove(&from);
        self.files.remove(&file);
        fs::rename(self.directory.file_path(from), self.directory.file_path(file))?;
        self.directory.handle.sync_all()
    }

    /// One piece of the file in the making. True when it is whole.
    fn make_some(&mut self) -> io::Result<bool> {
        let Some(making) = &mut self.making else {
            return Ok(false);
        };
        let piece = PIECE.min(making.len - making.written);
        making.file.write_all_at(&vec![0; piece as usize], making.written)?;
        making.written += piece;
        if making.written < making.len {
            return Ok(false);
        }
        making.file.sync_all()?;
        let id = making.id;
        fs::rename(self.directory.new_path(id), self.directory.file_path(id))?;
        self.directory.handle.sync_all()?;
        self.files.remove(&id);
        Ok(true)
    }
}

impl Device for SyncDevice {
    fn sector(&self) -> usize {
        SECTOR
    }

    fn list(&mut self) -> io::Result<Vec<(FileId, u64)>> {
        self.directory.list()
    }

    fn read_now(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file(file, false)?.read_exact_at(into, offset)
    }

    fn write_now(&mut self, file: FileId, offset: u64, bytes: &Slice) -> io::Result<()> {
        let handle = self.file(file, true)?;
        handle.write_all_at(bytes, offset)?;
        handle.sync_all()?;
        self.directory.handle.sync_all()
    }

    fn prepare(&mut self, file: FileId, len: u64) {
        match self.begin(file, len) {
            Ok(making) => self.making = Some(making),
            Err(error) => self.done.push(Completion::Prepared { file, result: Err(error) }),
        }
    }

    fn recycle(&mut self, from: FileId, file: FileId) {
        let result = self.recycle_now(from, file);
        self.done.push(Completion::Prepared { file, result });
    }

    fn remove(&mut self, file: FileId) {
        self.files.remove(&file);
        let result = fs::remove_file(self.directory.file_path(file));
        self.done.push(Completion::Removed { file, result });
    }

    fn write_flush(&mut self, token: u64, file: FileId, offset: u64, parts: &[Slice]) {
        let result = self.write(file, offset, parts);
        self.done.push(Completion::Written { token, result });
    }

    fn read(&mut self, token: u64, file: FileId, offset: u64, mut buf: Buf) {
        let result = self.read_now(file, offset, &mut buf);
        self.done.push(Completion::Read { token, buf, result });
    }

    fn poll(&mut self, into: &mut Vec<Completion>) {
        into.append(&mut self.done);
        let made = self.make_some();
        if made.is_err() || matches!(made, Ok(true)) {
            let making = self.making.take().expect("only a file in the making ends being made");
            if made.is_err() {
                // Best effort: it is removed at the next opening otherwise.
                let _ = fs::remove_file(self.directory.new_path(making.id));
            }
            into.push(Completion::Prepared { file: making.id, result: made.map(|_| ()) });
        }
    }

    fn submit(&mut self) {}

    fn settle(&mut self) -> io::Result<()> {
        match self.done.is_empty() && self.making.is_none() {
            true => Err(io::Error::new(ErrorKind::InvalidInput, "nothing was started")),
            false => Ok(()),
        }
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        posix::free_bytes(self.directory.path())
    }
}

impl Sleep for SyncDevice {
    fn wait(&mut self, fds: &[RawFd], timeout_ns: Option<u64>) -> io::Result<()> {
        match self.done.is_empty() && self.making.is_none() {
            true => posix::wait_readable(fds, timeout_ns),
            false => Ok(()),
        }
    }
}
