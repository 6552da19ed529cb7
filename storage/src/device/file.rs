//! Files by the best means that this system has: io_uring with `O_DIRECT`, else plain calls.
//!
//! Purpose: a node that starts anywhere, also where a container forbids io_uring or a file system
//! has no direct writes, and says which it uses.
//! Invariant: the files are the same, whichever device wrote them.

use super::sync::SyncDevice;
#[cfg(target_os = "linux")]
use super::uring::UringDevice;
use super::{Completion, Device, FileId, Sleep, UringConfig};
use racos_buffer::{Buf, Slice};
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

/// One of the devices on a file system.
pub enum FileDevice {
    /// io_uring on files opened with `O_DIRECT`.
    #[cfg(target_os = "linux")]
    Uring(Box<UringDevice>),
    /// Plain positioned reads and writes, and why.
    Sync(SyncDevice, String),
}

/// The same call on whichever device it is.
macro_rules! either {
    ($device:expr, $inner:ident => $call:expr) => {
        match $device {
            #[cfg(target_os = "linux")]
            FileDevice::Uring($inner) => $call,
            FileDevice::Sync($inner, _) => $call,
        }
    };
}

impl FileDevice {
    /// Opens (and creates if needed) the directory, or the block device, for this process and thread
    /// alone.
    pub fn open(path: &Path, config: &UringConfig) -> io::Result<FileDevice> {
        #[cfg(target_os = "linux")]
        if is_block_device(path) {
            let device = UringDevice::open_disk(path, config)?;
            return Ok(FileDevice::Uring(Box::new(device)));
        }
        #[cfg(target_os = "linux")]
        let why = match UringDevice::open(path, config) {
            Ok(device) => return Ok(FileDevice::Uring(Box::new(device))),
            Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
            Err(error) => error.to_string(),
        };
        #[cfg(not(target_os = "linux"))]
        let (why, _) = ("not Linux".to_string(), config);
        Ok(FileDevice::Sync(SyncDevice::open(path)?, why))
    }

    /// What is in use, for people, and why not something faster.
    pub fn describe(&self) -> String {
        match self {
            #[cfg(target_os = "linux")]
            FileDevice::Uring(device) => device.describe(),
            FileDevice::Sync(device, why) => format!("{} (because: {why})", device.describe()),
        }
    }
}

/// Whether a path names a block device.
pub fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

impl FileDevice {
    /// Why the kernel refused to register buffers, once; see [`UringDevice::take_refusal`].
    pub fn take_refusal(&mut self) -> Option<&str> {
        match self {
            #[cfg(target_os = "linux")]
            FileDevice::Uring(device) => device.take_refusal(),
            FileDevice::Sync(..) => None,
        }
    }

    /// Says whether others compute on this CPU; see [`UringDevice::set_disturbed`].
    pub fn set_disturbed(&mut self, disturbed: bool) {
        match self {
            #[cfg(target_os = "linux")]
            FileDevice::Uring(device) => device.set_disturbed(disturbed),
            FileDevice::Sync(..) => {}
        }
    }
}

impl Device for FileDevice {
    fn sector(&self) -> usize {
        either!(self, device => device.sector())
    }

    fn list(&mut self) -> io::Result<Vec<(FileId, u64)>> {
        either!(self, device => device.list())
    }

    fn read_now(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        either!(self, device => device.read_now(file, offset, into))
    }

    fn write_now(&mut self, file: FileId, offset: u64, bytes: &Slice) -> io::Result<()> {
        either!(self, device => device.write_now(file, offset, bytes))
    }

    fn prepare(&mut self, file: FileId, len: u64) {
        either!(self, device => device.prepare(file, len))
    }

    fn recycle(&mut self, from: FileId, file: FileId) {
        either!(self, device => device.recycle(from, file))
    }

    fn remove(&mut self, file: FileId) {
        either!(self, device => device.remove(file))
    }

    fn write_flush(&mut self, token: u64, file: FileId, offset: u64, parts: &[Slice]) {
        either!(self, device => device.write_flush(token, file, offset, parts))
    }

    fn read(&mut self, token: u64, file: FileId, offset: u64, buf: Buf) {
        either!(self, device => device.read(token, file, offset, buf))
    }

    fn poll(&mut self, into: &mut Vec<Completion>) {
        either!(self, device => device.poll(into))
    }

    fn submit(&mut self) {
        either!(self, device => device.submit())
    }

    fn settle(&mut self) -> io::Result<()> {
        either!(self, device => device.settle())
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        either!(self, device => device.free_bytes())
    }
}

impl Sleep for FileDevice {
    fn wait(&mut self, fds: &[RawFd], timeout_ns: Option<u64>) -> io::Result<()> {
        either!(self, device => device.wait(fds, timeout_ns))
    }
}
