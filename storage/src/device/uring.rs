//! io_uring on files opened with `O_DIRECT`, or on a whole block device.
//!
//! Purpose: the log's device on Linux: one gathered write linked to a flush, reads beside it,
//! segments made in the background, and the place where the reactor sleeps. One thread creates and
//! uses it.
//!
//! Invariant: memory that the kernel may still read or write is owned by this struct until the
//! completion has been reaped; `Drop` waits for it, or leaks it.
//! What would break it: reporting a write before its flush, or dropping a buffer in flight.

use super::directory::Directory;
use super::disk::{Change, Disk, Extent};
use super::make::{Making, Step};
use super::registered::{Fixed, Registered};
use super::{
    Completion, Device, FileId, FlushMethod, PARTS_MAX, RECYCLED_ZEROS, Sleep, UringConfig, posix,
};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use racos_buffer::{Buf, Slice};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Most files kept open; a segment beyond is opened again when needed.
const FILES_OPEN_MAX: usize = 256;
/// Bytes of a file on a disk that comes to be by its first write.
const NAMED_BY_WRITING: u64 = 8192;
/// Seconds that `Drop` waits for the kernel to give memory back.
const DROP_WAIT_S: u64 = 10;

// User data: what completed in the upper byte, a number in the others.
const KIND_SHIFT: u32 = 56;
const WRITE: u64 = 1;
const FLUSH: u64 = 2;
const READ: u64 = 3;
const MAKE: u64 = 4;
const READABLE: u64 = 5;
const REMOVE: u64 = 6;
const TABLE: u64 = 7;

struct Writing {
    token: u64,
    expected: usize,
    /// Completions still to come: write and flush, or the write alone.
    left: u8,
    error: Option<io::Error>,
}

struct Reading {
    token: u64,
    buf: Buf,
}

/// Where the files are.
enum Home {
    Directory(Directory),
    Disk(Box<Disk>),
}

/// Segment files in a directory or on a block device, written through io_uring.
pub struct UringDevice {
    ring: IoUring,
    /// Dropped after the ring: the kernel knows its memory.
    registered: Registered,
    home: Home,
    flush: FlushMethod,
    /// Others compute on this CPU.
    disturbed: bool,
    setup: &'static str,
    sector: usize,
    files: BTreeMap<FileId, File>,
    writing: Option<Writing>,
    /// Of the write in flight; kept for their memory.
    parts: Vec<Slice>,
    iovecs: Vec<libc::iovec>,
    reads: Vec<Option<Reading>>,
    reads_free: Vec<usize>,
    making: Option<Making>,
    /// The file being removed, and its name for the kernel.
    removing: Option<(FileId, CString)>,
    /// Bytes of the disk's table in flight.
    table_len: usize,
    /// Descriptors ever waited for, and whether a poll of them is in flight.
    armed: Vec<(RawFd, bool)>,
    done: Vec<Completion>,
    reaped: Vec<(u64, i32)>,
}

impl UringDevice {
    /// Opens (and creates if needed) the directory, for this process alone, and sets up a ring for
    /// the calling thread. `ErrorKind::Unsupported` if this kernel or file system cannot do it: use
    /// [`super::sync::SyncDevice`] there.
    pub fn open(path: &Path, config: &UringConfig) -> io::Result<UringDevice> {
        let directory = Directory::open(path)?;
        let sector = posix::direct_sector(&path.join("lock"))?;
        UringDevice::on(Home::Directory(directory), sector, config)
    }

    /// Takes a block device, for this process alone. One that holds something that is not racos's is
    /// refused, unless `config` says that it may go.
    pub fn open_disk(path: &Path, config: &UringConfig) -> io::Result<UringDevice> {
        let disk = Disk::open(path, config.take_device)?;
        let sector = posix::disk_sector(&disk.file)?;
        UringDevice::on(Home::Disk(Box::new(disk)), sector, config)
    }

    fn on(home: Home, sector: usize, config: &UringConfig) -> io::Result<UringDevice> {
        let (ring, setup) = build(config.entries)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            let what = "this kernel's io_uring is too old (5.11 or later is needed)";
            return Err(io::Error::new(ErrorKind::Unsupported, what));
        }
        if !config.worker_cpus.is_empty() {
            let cpus = posix::cpu_set(&config.worker_cpus)?;
            ring.submitter().register_iowq_aff(&cpus)?;
        }
        let registered = Registered::new(&ring.submitter(), config.registered_bytes_max);
        Ok(UringDevice {
            ring,
            registered,
            home,
            flush: config.flush,
            disturbed: false,
            setup,
            sector,
            files: BTreeMap::new(),
            writing: None,
            parts: Vec::with_capacity(PARTS_MAX),
            iovecs: Vec::with_capacity(PARTS_MAX),
            reads: Vec::new(),
            reads_free: Vec::new(),
            making: None,
            removing: None,
            table_len: 0,
            armed: Vec::new(),
            done: Vec::new(),
            reaped: Vec::new(),
        })
    }

    /// What is in use, for people: ring flags, sector, flush method.
    pub fn describe(&self) -> String {
        let flush = match self.flush {
            FlushMethod::Linked => "WRITEV linked to FSYNC(DATASYNC)",
            FlushMethod::Dsync => "WRITEV with RWF_DSYNC",
            FlushMethod::Sync => "pwritev and fdatasync in the caller",
        };
        let home = match &self.home {
            Home::Directory(_) => "O_DIRECT".to_string(),
            Home::Disk(disk) => format!("block device {}", disk.path().display()),
        };
        let (setup, sector, registered) = (self.setup, self.sector, self.registered.describe());
        format!("io_uring ({setup}), {home}, sector {sector}{registered}, flush: {flush}")
    }

    /// What was done with registered buffers.
    pub fn fixed(&self) -> Fixed {
        self.registered.done
    }

    /// Why the kernel refused to register buffers; told once.
    pub fn take_refusal(&mut self) -> Option<&str> {
        self.registered.take_refusal()
    }

    /// Says whether others compute on this CPU. They starve the kernel worker that ends a
    /// `RWF_DSYNC` write: the caller flushes itself while they do, and works on what came meanwhile
    /// together.
    pub fn set_disturbed(&mut self, disturbed: bool) {
        self.disturbed = disturbed;
    }

    /// How the next write is made durable.
    fn method(&self) -> FlushMethod {
        match self.flush {
            FlushMethod::Dsync if self.disturbed => FlushMethod::Sync,
            method => method,
        }
    }

    /// The descriptor for a file, and where the file begins in it. An error if it is not `end` bytes
    /// long, where that must be known.
    fn file(&mut self, file: FileId, end: u64) -> io::Result<(RawFd, u64)> {
        let directory = match &self.home {
            Home::Directory(directory) => directory,
            Home::Disk(disk) => {
                let extent = disk.extent(file)?;
                if end > extent.len {
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file ends before"));
                }
                return Ok((disk.file.as_raw_fd(), extent.at));
            }
        };
        if let Some(open) = self.files.get(&file) {
            return Ok((open.as_raw_fd(), 0));
        }
        let opened = posix::open_direct(&directory.file_path(file), false)?;
        Ok((self.keep(file, opened), 0))
    }

    /// The same for calls that block.
    fn file_now(&mut self, file: FileId, end: u64) -> io::Result<(&File, u64)> {
        let (_, base) = self.file(file, end)?;
        match &self.home {
            Home::Directory(_) => Ok((&self.files[&file], base)),
            Home::Disk(disk) => Ok((&disk.file, base)),
        }
    }

    fn keep(&mut self, file: FileId, opened: File) -> RawFd {
        if self.files.len() >= FILES_OPEN_MAX {
            // What is queued names descriptors: it must reach the kernel before one is closed.
            self.submit();
            self.files.pop_first();
        }
        let fd = opened.as_raw_fd();
        self.files.insert(file, opened);
        fd
    }

    /// Makes sure that `count` entries can be queued together.
    fn ensure_room(&mut self, count: usize) {
        let room = |queue: squeue::SubmissionQueue<'_>| queue.capacity() - queue.len();
        while room(self.ring.submission()) < count {
            self.submit();
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        self.ensure_room(1);
        // SAFETY: every entry made in this module points to memory that `self` owns until the
        // completion is reaped (`parts`, `iovecs`, `reads`, `making`, `removing`) or to none.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("room was made for the entry");
    }

    fn queue_write(&mut self, fd: RawFd, offset: u64, method: FlushMethod) {
        self.ensure_room(2);
        let flags = if method == FlushMethod::Dsync { libc::RWF_DSYNC } else { 0 };
        let write = self.write_entry(types::Fd(fd), offset, flags).user_data(WRITE << KIND_SHIFT);
        if method == FlushMethod::Dsync {
            self.push(&write);
            return;
        }
        let write = write.flags(squeue::Flags::IO_LINK);
        let flush = opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).build();
        self.push(&write);
        self.push(&flush.user_data(FLUSH << KIND_SHIFT));
    }

    /// The write of `parts`. What is gathered is mostly of several arenas and the kernel takes one in a
    /// fixed write, so that only single parts are written so.
    fn write_entry(&mut self, fd: types::Fd, offset: u64, flags: i32) -> squeue::Entry {
        if let [part] = &self.parts[..]
            && let Some(index) = self.registered.index(&self.ring.submitter(), part.arena())
        {
            self.registered.done.writes += 1;
            let write = opcode::WriteFixed::new(fd, part.as_ptr(), part.len() as u32, index);
            return write.offset(offset).rw_flags(flags).build();
        }
        let (iovecs, count) = (self.iovecs.as_ptr(), self.iovecs.len() as u32);
        opcode::Writev::new(fd, iovecs, count).offset(offset).rw_flags(flags).build()
    }

    fn write_ended(&mut self, is_write: bool, result: i32) {
        let writing = self.writing.as_mut().expect("a write completion has a write in flight");
        writing.left -= 1;
        let error = match result {
            ..0 => Some(io::Error::from_raw_os_error(-result)),
            _ if is_write && result as usize != writing.expected => {
                let what = format!("short write: {result} of {} bytes", writing.expected);
                Some(io::Error::new(ErrorKind::WriteZero, what))
            }
            _ => None,
        };
        // The first error is the cause: a flush behind a failed write is only cancelled.
        writing.error = writing.error.take().or(error);
        if writing.left == 0 {
            let writing = self.writing.take().expect("checked above");
            self.parts.clear();
            let result = writing.error.map_or(Ok(()), Err);
            self.done.push(Completion::Written { token: writing.token, result });
        }
    }

    fn read_ended(&mut self, number: usize, result: i32) {
        let Reading { token, buf } = self.reads[number].take().expect("a read completes once");
        self.reads_free.push(number);
        let result = match result {
            ..0 => Err(io::Error::from_raw_os_error(-result)),
            _ if result as usize != buf.len() => {
                Err(io::Error::new(ErrorKind::UnexpectedEof, "the file ends before"))
            }
            _ => Ok(()),
        };
        self.done.push(Completion::Read { token, buf, result });
    }

    fn make_ended(&mut self, result: i32) {
        let making = self.making.as_mut().expect("a step of a file in the making");
        let ended = making.ended(result);
        if let Ok(Some(step)) = ended {
            return self.queue_step(step);
        }
        let making = self.making.take().expect("checked above");
        let failed = ended.err();
        match &mut self.home {
            Home::Directory(directory) => match failed {
                None => {
                    self.files.remove(&making.id);
                    self.keep(making.id, making.file);
                    self.done.push(Completion::Prepared { file: making.id, result: Ok(()) });
                }
                Some(error) => {
                    // Best effort: it is removed at the next opening otherwise.
                    let _ = fs::remove_file(directory.new_path(making.id));
                    self.done.push(Completion::Prepared { file: making.id, result: Err(error) });
                }
            },
            Home::Disk(disk) => match (failed, making.change()) {
                (None, change) => {
                    disk.change(change);
                    self.queue_table();
                }
                (Some(error), change) => {
                    if let Change::Put(_, extent) = change {
                        disk.give_up(extent);
                    }
                    self.done.push(Completion::Prepared { file: making.id, result: Err(error) });
                }
            },
        }
    }

    fn begin_recycling(&mut self, from: FileId, id: FileId) -> io::Result<()> {
        self.close(from);
        let making = match &self.home {
            Home::Directory(directory) => {
                let (old, name) = (directory.file_path(from), directory.file_path(id));
                Making::recycled(id, posix::open_direct(&old, false)?, &old, &name)?
            }
            Home::Disk(disk) => {
                let extent = disk.extent(from)?;
                let front = Extent { len: RECYCLED_ZEROS.min(extent.len), ..extent };
                Making::on_disk(id, disk.file.try_clone()?, front, Change::Rename(from, id))?
            }
        };
        self.begin(making);
        Ok(())
    }

    fn begin_removing(&mut self, file: FileId) -> io::Result<()> {
        self.close(file);
        let directory = match &mut self.home {
            Home::Directory(directory) => directory,
            Home::Disk(disk) => {
                disk.extent(file)?;
                disk.change(Change::Remove(file));
                self.queue_table();
                return Ok(());
            }
        };
        let name = CString::new(directory.file_path(file).as_os_str().as_bytes())?;
        let entry = opcode::UnlinkAt::new(types::Fd(libc::AT_FDCWD), name.as_ptr()).build();
        self.removing = Some((file, name));
        self.push(&entry.user_data(REMOVE << KIND_SHIFT));
        Ok(())
    }

    fn remove_ended(&mut self, result: i32) {
        let (file, _) = self.removing.take().expect("a file is being removed");
        let failed = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        self.done.push(Completion::Removed { file, result: failed.map_or(Ok(()), Err) });
    }

    /// Starts the next change of a disk's table, if none is in flight.
    fn queue_table(&mut self) {
        let Home::Disk(disk) = &mut self.home else { return };
        let Some((table, at)) = disk.next_table() else { return };
        let fd = types::Fd(disk.file.as_raw_fd());
        let write = opcode::Write::new(fd, table.as_ptr(), table.len() as u32).offset(at);
        let entry = write.rw_flags(libc::RWF_DSYNC).build();
        self.table_len = table.len();
        self.push(&entry.user_data(TABLE << KIND_SHIFT));
    }

    fn table_ended(&mut self, result: i32) {
        let result = match result {
            ..0 => Err(io::Error::from_raw_os_error(-result)),
            _ if result as usize != self.table_len => {
                Err(io::Error::new(ErrorKind::WriteZero, "the table was written in part"))
            }
            _ => Ok(()),
        };
        let Home::Disk(disk) = &mut self.home else { unreachable!("a directory has no table") };
        self.done.push(match disk.changed(result.is_ok()) {
            Change::Put(file, _) | Change::Rename(_, file) => Completion::Prepared { file, result },
            Change::Remove(file) => Completion::Removed { file, result },
        });
        self.queue_table();
    }

    /// Closes a file that nothing reads or writes; what is queued names descriptors, and must
    /// reach the kernel first.
    fn close(&mut self, file: FileId) {
        self.submit();
        self.files.remove(&file);
    }

    fn queue_step(&mut self, step: Step) {
        let making = self.making.as_ref().expect("a step of a file in the making");
        let directory = match &self.home {
            Home::Directory(directory) => directory.handle.as_raw_fd(),
            // There is no such step on a disk.
            Home::Disk(disk) => disk.file.as_raw_fd(),
        };
        let entry = making.entry(step, directory);
        self.push(&entry.user_data(MAKE << KIND_SHIFT));
    }

    fn begin(&mut self, making: Making) {
        let step = making.first_step();
        self.making = Some(making);
        self.queue_step(step);
    }

    fn begin_making(&mut self, id: FileId, len: u64) -> io::Result<()> {
        let making = match &mut self.home {
            Home::Directory(directory) => {
                let new = directory.new_path(id);
                let file = posix::open_direct(&new, true)?;
                Making::new(id, file, len, &new, &directory.file_path(id))?
            }
            Home::Disk(disk) => {
                let extent = disk.reserve(len)?;
                Making::on_disk(id, disk.file.try_clone()?, extent, Change::Put(id, extent))?
            }
        };
        self.begin(making);
        Ok(())
    }

    /// Takes completions from the ring to `done`: also those that the kernel has put off, whatever stands
    /// in the ring already, or they would wait for another turn.
    fn reap(&mut self) {
        if self.ring.submission().taskrun() {
            self.enter(None, 0);
        }
        let mut reaped = std::mem::take(&mut self.reaped);
        let entry = |entry: cqueue::Entry| (entry.user_data(), entry.result());
        reaped.extend(self.ring.completion().map(entry));
        for (data, result) in reaped.drain(..) {
            let number = (data & ((1 << KIND_SHIFT) - 1)) as usize;
            match data >> KIND_SHIFT {
                WRITE => self.write_ended(true, result),
                FLUSH => self.write_ended(false, result),
                READ => self.read_ended(number, result),
                MAKE => self.make_ended(result),
                REMOVE => self.remove_ended(result),
                TABLE => self.table_ended(result),
                READABLE => self.armed[number].1 = false,
                kind => unreachable!("no entry of kind {kind} is ever queued"),
            }
        }
        self.reaped = reaped;
    }

    /// Submits, runs deferred work, and waits for `want` completions or the time.
    fn enter(&mut self, timeout_ns: Option<u64>, want: usize) {
        let submitter = self.ring.submitter();
        let result = match timeout_ns {
            None => submitter.submit_and_wait(want),
            Some(ns) => {
                let time = types::Timespec::new().sec(ns / 1_000_000_000);
                let time = time.nsec((ns % 1_000_000_000) as u32);
                submitter.submit_with_args(want, &types::SubmitArgs::new().timespec(&time))
            }
        };
        let Err(error) = result else {
            return;
        };
        // Time over, a signal, completions to be reaped first, or short of memory: try again later.
        let passing = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
        let passes = error.raw_os_error().is_some_and(|code| passing.contains(&code));
        assert!(passes, "io_uring_enter refused what this module queued: {error}");
    }

    fn is_table_in_flight(&self) -> bool {
        matches!(&self.home, Home::Disk(disk) if disk.is_changing())
    }

    /// Whether the kernel may still use memory that this struct owns.
    fn is_busy(&self) -> bool {
        let changing =
            self.making.is_some() || self.removing.is_some() || self.is_table_in_flight();
        self.writing.is_some() || changing || self.reads.iter().any(Option::is_some)
    }
}

fn build(entries: u32) -> io::Result<(IoUring, &'static str)> {
    let mut deferred = IoUring::builder();
    deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    let mut cooperative = IoUring::builder();
    cooperative.setup_coop_taskrun().setup_taskrun_flag();
    let attempts = [
        (deferred, "single issuer, deferred task work"),
        (cooperative, "cooperative task work"),
        (IoUring::builder(), "no newer flags"),
    ];
    let mut last = None;
    for (mut builder, name) in attempts {
        match builder.setup_clamp().setup_cqsize(entries * 4).build(entries) {
            Ok(ring) => return Ok((ring, name)),
            Err(error) => last = Some(error),
        }
    }
    let why = last.map_or_else(String::new, |error| error.to_string());
    Err(io::Error::new(ErrorKind::Unsupported, format!("cannot set up an io_uring: {why}")))
}

impl Device for UringDevice {
    fn sector(&self) -> usize {
        self.sector
    }

    fn list(&mut self) -> io::Result<Vec<(FileId, u64)>> {
        match &self.home {
            Home::Directory(directory) => directory.list(),
            Home::Disk(disk) => Ok(disk.list()),
        }
    }

    fn read_now(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let (handle, base) = self.file_now(file, offset + into.len() as u64)?;
        handle.read_exact_at(into, base + offset)
    }

    fn write_now(&mut self, file: FileId, offset: u64, bytes: &Slice) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let mut made = false;
        match &mut self.home {
            Home::Directory(directory) => {
                let path = directory.file_path(file);
                if !path.exists() {
                    made = true;
                    let opened = posix::open_direct(&path, true)?;
                    self.keep(file, opened);
                }
            }
            Home::Disk(disk) => {
                if disk.extent(file).is_err() {
                    // The only file that is made so is the superblock; it is never longer than this.
                    disk.put_now(file, end.max(NAMED_BY_WRITING))?;
                }
            }
        }
        let (handle, base) = self.file_now(file, end)?;
        handle.write_all_at(bytes, base + offset)?;
        handle.sync_all()?;
        match &self.home {
            Home::Directory(directory) if made => directory.handle.sync_all(),
            _ => Ok(()),
        }
    }

    fn prepare(&mut self, file: FileId, len: u64) {
        assert!(self.making.is_none(), "one file is made at a time");
        if let Err(error) = self.begin_making(file, len) {
            self.done.push(Completion::Prepared { file, result: Err(error) });
        }
    }

    fn recycle(&mut self, from: FileId, file: FileId) {
        assert!(self.making.is_none(), "one file is made at a time");
        if let Err(error) = self.begin_recycling(from, file) {
            self.done.push(Completion::Prepared { file, result: Err(error) });
        }
    }

    fn remove(&mut self, file: FileId) {
        assert!(self.removing.is_none(), "one file is removed at a time");
        if let Err(error) = self.begin_removing(file) {
            self.done.push(Completion::Removed { file, result: Err(error) });
        }
    }

    fn write_flush(&mut self, token: u64, file: FileId, offset: u64, parts: &[Slice]) {
        assert!(self.writing.is_none(), "one write is in flight at a time");
        assert!(parts.len() <= PARTS_MAX, "a write has at most {PARTS_MAX} parts");
        let expected = parts.iter().map(|part| part.len()).sum::<usize>();
        let (fd, base) = match self.file(file, offset + expected as u64) {
            Ok(found) => found,
            Err(error) => {
                self.done.push(Completion::Written { token, result: Err(error) });
                return;
            }
        };
        let offset = base + offset;
        self.parts.extend_from_slice(parts);
        self.iovecs.clear();
        let iovec = |part: &Slice| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        };
        self.iovecs.extend(parts.iter().map(iovec));
        let method = self.method();
        if method == FlushMethod::Sync {
            let handle = match &self.home {
                Home::Directory(_) => &self.files[&file],
                Home::Disk(disk) => &disk.file,
            };
            let result = posix::write_flush(handle, &self.iovecs, offset, expected);
            self.parts.clear();
            self.done.push(Completion::Written { token, result });
            return;
        }
        let left = if method == FlushMethod::Linked { 2 } else { 1 };
        self.writing = Some(Writing { token, expected, left, error: None });
        self.queue_write(fd, offset, method);
    }

    fn read(&mut self, token: u64, file: FileId, offset: u64, mut buf: Buf) {
        let (fd, base) = match self.file(file, offset + buf.len() as u64) {
            Ok(found) => found,
            Err(error) => {
                self.done.push(Completion::Read { token, buf, result: Err(error) });
                return;
            }
        };
        let (memory, len, fd) = (buf.as_mut_ptr(), buf.len() as u32, types::Fd(fd));
        let entry = match self.registered.index(&self.ring.submitter(), buf.arena()) {
            Some(index) => {
                self.registered.done.reads += 1;
                opcode::ReadFixed::new(fd, memory, len, index).offset(base + offset).build()
            }
            None => opcode::Read::new(fd, memory, len).offset(base + offset).build(),
        };
        let number = self.reads_free.pop().unwrap_or_else(|| {
            self.reads.push(None);
            self.reads.len() - 1
        });
        self.reads[number] = Some(Reading { token, buf });
        self.push(&entry.user_data(READ << KIND_SHIFT | number as u64));
    }

    fn poll(&mut self, into: &mut Vec<Completion>) {
        self.reap();
        into.append(&mut self.done);
    }

    fn submit(&mut self) {
        if !self.ring.submission().is_empty() {
            self.enter(None, 0);
        }
    }

    fn settle(&mut self) -> io::Result<()> {
        while self.done.is_empty() {
            if !self.is_busy() {
                return Err(io::Error::new(ErrorKind::InvalidInput, "nothing was started"));
            }
            self.enter(None, 1);
            self.reap();
        }
        Ok(())
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        match &self.home {
            Home::Directory(directory) => posix::free_bytes(directory.path()),
            Home::Disk(disk) => Ok(disk.free_bytes()),
        }
    }
}

impl Sleep for UringDevice {
    fn wait(&mut self, fds: &[RawFd], timeout_ns: Option<u64>) -> io::Result<()> {
        if !self.done.is_empty() || !self.ring.completion().is_empty() {
            self.submit();
            return Ok(());
        }
        for fd in fds {
            let known = self.armed.iter().position(|(of, _)| of == fd);
            let number = known.unwrap_or_else(|| {
                self.armed.push((*fd, false));
                self.armed.len() - 1
            });
            if !std::mem::replace(&mut self.armed[number].1, true) {
                let entry = opcode::PollAdd::new(types::Fd(*fd), libc::POLLIN as u32).build();
                self.push(&entry.user_data(READABLE << KIND_SHIFT | number as u64));
            }
        }
        self.enter(timeout_ns, 1);
        Ok(())
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        let ends = std::time::Instant::now() + std::time::Duration::from_secs(DROP_WAIT_S);
        // A file in the making takes no further step.
        while self.is_busy() && std::time::Instant::now() < ends {
            self.enter(Some(100_000_000), 1);
            let entry = |entry: cqueue::Entry| (entry.user_data(), entry.result());
            let reaped: Vec<_> = self.ring.completion().map(entry).collect();
            for (data, result) in reaped {
                let number = (data & ((1 << KIND_SHIFT) - 1)) as usize;
                match data >> KIND_SHIFT {
                    WRITE => self.write_ended(true, result),
                    FLUSH => self.write_ended(false, result),
                    READ => self.read_ended(number, result),
                    MAKE => self.making = None,
                    REMOVE => self.removing = None,
                    TABLE => {
                        if let Home::Disk(disk) = &mut self.home {
                            disk.changed(result >= 0);
                        }
                    }
                    _ => {}
                }
            }
        }
        if self.is_busy() {
            // A disk that hangs: the kernel may yet use this memory, so it is never freed.
            std::mem::forget(std::mem::take(&mut self.parts));
            std::mem::forget(std::mem::take(&mut self.iovecs));
            std::mem::forget(std::mem::take(&mut self.reads));
            std::mem::forget(self.making.take());
            std::mem::forget(self.removing.take());
            if let Home::Disk(disk) = &mut self.home {
                disk.leak();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use racos_buffer::Pool;
    use std::time::{Duration, Instant};

    const LEN: usize = 4096;

    /// Passes until the kernel has put work off, or a time that is enough for any read.
    fn work_is_put_off(device: &mut UringDevice) -> bool {
        let ends = Instant::now() + Duration::from_secs(20);
        while !device.ring.submission().taskrun() {
            if Instant::now() > ends {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    #[test]
    fn what_the_kernel_has_put_off_is_taken_with_what_stands_in_the_ring() {
        let path = std::env::temp_dir().join(format!("racos-reap-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory for the test");
        let Ok(mut device) = UringDevice::open(&path, &UringConfig::default()) else {
            eprintln!("skipped: no io_uring on {}", path.display());
            return;
        };
        let pool = Pool::new(1 << 20);
        device.prepare(1, 1 << 16);
        device.settle().expect("the file is made");
        device.poll(&mut Vec::new());
        let buffer = || {
            let mut buf = pool.get(LEN).expect("memory");
            buf.set_len(LEN);
            buf
        };
        let is_deferred = device.describe().contains("deferred");
        // The first stands in the ring, and nobody has looked.
        device.read(1, 1, 0, buffer());
        device.enter(None, 1);
        assert!(!device.ring.completion().is_empty());
        device.read(2, 1, LEN as u64, buffer());
        device.submit();
        assert!(!is_deferred || work_is_put_off(&mut device), "the second read ends");
        let mut came = Vec::new();
        while came.is_empty() {
            device.poll(&mut came);
        }
        drop(device);
        let _ = fs::remove_dir_all(&path);
        if is_deferred {
            assert_eq!(came.len(), 2, "one turn takes both: {came:?}");
        }
    }
}
