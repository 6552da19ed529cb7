//! The few system calls that the standard library has no name for.

use std::ffi::CString;
#[cfg(target_os = "linux")]
use std::fs::{File, OpenOptions};
use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
#[cfg(target_os = "linux")]
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes free on the file system of `path` for those who are not root.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `statvfs` is plain data for which all zeros is a value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a C string and `found` a place for the answer, both alive during the call.
    if unsafe { libc::statvfs(path.as_ptr(), &mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.f_bavail as u64 * found.f_frsize as u64)
}

/// Sleeps until one of `fds` can be read or the time is over.
pub(super) fn wait_readable(fds: &[RawFd], timeout_ns: Option<u64>) -> io::Result<()> {
    let mut polled: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    let timeout_ms = match timeout_ns {
        None => -1,
        Some(ns) => ns.div_ceil(1_000_000).min(i32::MAX as u64) as i32,
    };
    // SAFETY: the array lives during the call and its length is given with it.
    let found = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, timeout_ms) };
    match found {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()).or_else(ignore_interrupt),
    }
}

pub(super) fn ignore_interrupt(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

/// Opens a file for reading and writing past the page cache, making it empty if `create`.
#[cfg(target_os = "linux")]
pub(super) fn open_direct(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).truncate(create);
    options.custom_flags(libc::O_DIRECT).open(path).map_err(|error| {
        let what = format!("cannot open {} with O_DIRECT: {error}", path.display());
        match error.raw_os_error() {
            Some(libc::EINVAL) => io::Error::new(io::ErrorKind::Unsupported, what),
            _ => io::Error::new(error.kind(), what),
        }
    })
}

/// Takes a whole device; one that a file system uses is refused by the kernel.
#[cfg(target_os = "linux")]
pub(super) fn open_exclusive(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_EXCL);
    options.open(path).map_err(|error| {
        let why = match error.raw_os_error() {
            Some(libc::EBUSY) => "it is mounted, or used by another program",
            _ => "is it a block device that this user may write to?",
        };
        io::Error::new(error.kind(), format!("cannot open {}: {error}; {why}", path.display()))
    })
}

/// The unit of direct reads and writes on a device.
#[cfg(target_os = "linux")]
pub(super) fn disk_sector(disk: &File) -> io::Result<usize> {
    let mut unit: libc::c_int = 0;
    // SAFETY: the descriptor is open and `unit` a place for the answer, alive during the call.
    let failed = unsafe { libc::ioctl(disk.as_raw_fd(), libc::BLKSSZGET as _, &mut unit) } != 0;
    match unit as usize {
        // An image of a disk in a file.
        _ if failed => Ok(4096),
        unit if unit.is_power_of_two() && unit <= 4096 => Ok(unit.max(512)),
        unit => {
            let what = format!("the device has sectors of {unit} bytes");
            Err(io::Error::new(io::ErrorKind::Unsupported, what))
        }
    }
}

/// The unit of direct reads and writes on the file system of the file at `path`, which must exist;
/// `ErrorKind::Unsupported` if it has none.
#[cfg(target_os = "linux")]
pub(super) fn direct_sector(path: &Path) -> io::Result<usize> {
    let file = open_direct(path, false)?;
    // SAFETY: `statx` is plain data for which all zeros is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let (fd, flags) = (file.as_raw_fd(), libc::AT_EMPTY_PATH);
    // SAFETY: the path is an empty C string, `found` a place for the answer, both alive.
    let failed =
        unsafe { libc::statx(fd, c"".as_ptr(), flags, libc::STATX_DIOALIGN, &mut found) } != 0;
    if failed || found.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(4096); // unknown: a multiple of what any disk asks for
    }
    let unit = found.stx_dio_offset_align.max(found.stx_dio_mem_align).max(512) as usize;
    match unit.is_power_of_two() && unit <= 4096 {
        true => Ok(unit),
        false => {
            let what = format!("direct writes there take units of {unit} bytes");
            Err(io::Error::new(io::ErrorKind::Unsupported, what))
        }
    }
}

/// Writes all parts at `offset` and flushes, in the calling thread.
#[cfg(target_os = "linux")]
pub(super) fn write_flush(
    file: &File,
    parts: &[libc::iovec],
    offset: u64,
    expected: usize,
) -> io::Result<()> {
    let (fd, count) = (file.as_raw_fd(), parts.len() as libc::c_int);
    let written = loop {
        // SAFETY: the caller's parts describe live memory, and the count is theirs.
        let written = unsafe { libc::pwritev(fd, parts.as_ptr(), count, offset as libc::off_t) };
        if written >= 0 {
            break written as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    if written != expected {
        let what = format!("short write: {written} of {expected} bytes");
        return Err(io::Error::new(io::ErrorKind::WriteZero, what));
    }
    file.sync_data()
}

/// The set of these CPUs.
#[cfg(target_os = "linux")]
pub(super) fn cpu_set(cpus: &[usize]) -> io::Result<libc::cpu_set_t> {
    // SAFETY: `cpu_set_t` is plain data for which all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        if *cpu >= libc::CPU_SETSIZE as usize {
            let what = format!("there is no CPU {cpu}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        // SAFETY: the index is inside the set.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    Ok(set)
}
