//! The files of a directory or a block device mapped read-only; what is written is kept in memory.
//!
//! Purpose: recovery rehearsed and segments looked at without changing a byte of the disk.
//!
//! Invariant: no file is ever opened for writing. A sector that cannot be read is an error and no
//! signal: pages are brought in, which tells, before they are touched.
//! What would break it: a file made shorter by another program while it is looked at; racos never
//! does that to one of its own.

use super::directory::{LOCK_NAME, parse_name};
use super::{Completion, Device, FileId};
use memmap2::{Advice, Mmap};
use racos_buffer::{Buf, Slice};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

const SECTOR: usize = 512;

/// A file, or a device that many files lie on.
struct Mapped {
    file: File,
    /// None: it is empty.
    map: Option<Mmap>,
}

impl Mapped {
    fn open(file: File) -> io::Result<Mapped> {
        if (&file).seek(SeekFrom::End(0))? == 0 {
            return Ok(Mapped { file, map: None });
        }
        // SAFETY: the map is only read, and racos never shortens a file of a log (see above); what
        // another process writes meanwhile is copied out as bytes, which may be any.
        let map = unsafe { Mmap::map(&file) }?;
        // A hint, no more.
        let _ = map.advise(Advice::Sequential);
        Ok(Mapped { file, map: Some(map) })
    }

    fn len(&self) -> u64 {
        self.map.as_ref().map_or(0, |map| map.len() as u64)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let end = offset + into.len() as u64;
        let Some(map) = self.map.as_ref().filter(|_| end <= self.len()) else {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file ends before"));
        };
        let range = offset as usize..end as usize;
        match map.advise_range(Advice::PopulateRead, range.start, range.len()) {
            Ok(()) => {
                into.copy_from_slice(&map[range]);
                Ok(())
            }
            // Not readable, or a kernel that cannot bring pages in: this tells, and never signals.
            Err(_) => self.file.read_exact_at(into, offset),
        }
    }
}

/// A file of the log, in what is mapped.
struct Part {
    mapped: Rc<Mapped>,
    at: u64,
    len: u64,
}

/// The files of a log, to be looked at. See the module.
pub struct PictureDevice {
    files: BTreeMap<FileId, Part>,
    /// Sectors that were written, by file and offset.
    written: BTreeMap<(FileId, u64), [u8; SECTOR]>,
    in_use: bool,
    /// Held so that no node starts on the directory meanwhile.
    _lock: Option<File>,
    done: Vec<Completion>,
}

impl PictureDevice {
    /// Takes a picture of a directory or a block device. It may be in use by a node: then what is seen
    /// may change while it is looked at ([`PictureDevice::in_use`]); else no node can start on it
    /// meanwhile.
    pub fn open(path: &Path) -> io::Result<PictureDevice> {
        let is_directory = fs::metadata(path)?.is_dir();
        let lock = match is_directory {
            true => File::open(path.join(LOCK_NAME)).ok(),
            false => Some(File::open(path)?),
        };
        let taken = lock.as_ref().map(File::try_lock_shared);
        let in_use = matches!(taken, Some(Err(TryLockError::WouldBlock)));
        let files = if is_directory { directory(path, in_use)? } else { whole_disk(path)? };
        Ok(PictureDevice { files, written: BTreeMap::new(), in_use, _lock: lock, done: Vec::new() })
    }

    /// Whether a node uses the directory.
    pub fn in_use(&self) -> bool {
        self.in_use
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|part| part.len).sum()
    }

    fn refuse() -> io::Error {
        io::Error::new(ErrorKind::ReadOnlyFilesystem, "a picture is only looked at")
    }
}

fn directory(path: &Path, in_use: bool) -> io::Result<BTreeMap<FileId, Part>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let Some(file) = entry.file_name().to_str().and_then(parse_name) else { continue };
        match File::open(entry.path()).and_then(Mapped::open) {
            Ok(mapped) => {
                let len = mapped.len();
                files.insert(file, Part { mapped: Rc::new(mapped), at: 0, len });
            }
            // Renamed or removed meanwhile by the node that uses it.
            Err(error) if error.kind() == ErrorKind::NotFound && in_use => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

#[cfg(target_os = "linux")]
fn whole_disk(path: &Path) -> io::Result<BTreeMap<FileId, Part>> {
    let mut file = File::open(path)?;
    let extents = super::disk::look(&mut file, path)?;
    let mapped = Rc::new(Mapped::open(file)?);
    let part = |extent: super::disk::Extent| Part {
        mapped: Rc::clone(&mapped),
        at: extent.at,
        len: extent.len,
    };
    Ok(extents.into_iter().map(|(file, extent)| (file, part(extent))).collect())
}

#[cfg(not(target_os = "linux"))]
fn whole_disk(path: &Path) -> io::Result<BTreeMap<FileId, Part>> {
    let what = format!("{} is no directory", path.display());
    Err(io::Error::new(ErrorKind::Unsupported, what))
}

impl Device for PictureDevice {
    fn sector(&self) -> usize {
        SECTOR
    }

    fn list(&mut self) -> io::Result<Vec<(FileId, u64)>> {
        Ok(self.files.iter().map(|(file, part)| (*file, part.len)).collect())
    }

    fn read_now(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let part = self.files.get(&file).ok_or(ErrorKind::NotFound)?;
        let end = offset + into.len() as u64;
        if end > part.len {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the file ends before"));
        }
        part.mapped.read(part.at + offset, into)?;
        for ((_, at), sector) in self.written.range((file, offset)..(file, end)) {
            let at = (at - offset) as usize;
            let len = SECTOR.min(into.len() - at);
            into[at..at + len].copy_from_slice(&sector[..len]);
        }
        Ok(())
    }

    fn write_now(&mut self, file: FileId, offset: u64, bytes: &Slice) -> io::Result<()> {
        for (at, sector) in (offset..).step_by(SECTOR).zip(bytes.chunks_exact(SECTOR)) {
            let sector = sector.try_into().expect("a chunk is a sector long");
            self.written.insert((file, at), sector);
        }
        Ok(())
    }

    fn prepare(&mut self, file: FileId, _: u64) {
        self.done.push(Completion::Prepared { file, result: Err(Self::refuse()) });
    }

    fn recycle(&mut self, _: FileId, file: FileId) {
        self.done.push(Completion::Prepared { file, result: Err(Self::refuse()) });
    }

    fn remove(&mut self, file: FileId) {
        self.done.push(Completion::Removed { file, result: Err(Self::refuse()) });
    }

    fn write_flush(&mut self, token: u64, _: FileId, _: u64, _: &[Slice]) {
        self.done.push(Completion::Written { token, result: Err(Self::refuse()) });
    }

    fn read(&mut self, token: u64, file: FileId, offset: u64, mut buf: Buf) {
        let result = self.read_now(file, offset, &mut buf);
        self.done.push(Completion::Read { token, buf, result });
    }

    fn poll(&mut self, into: &mut Vec<Completion>) {
        into.append(&mut self.done);
    }

    fn submit(&mut self) {}

    fn settle(&mut self) -> io::Result<()> {
        match self.done.is_empty() {
            true => Err(io::Error::new(ErrorKind::InvalidInput, "nothing was started")),
            false => Ok(()),
        }
    }

    /// None: what is looked at makes no new segments.
    fn free_bytes(&mut self) -> io::Result<u64> {
        Ok(0)
    }
}
