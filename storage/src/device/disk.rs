//! Numbered files on a whole block device, without a file system.
//!
//! ```text
//! 0        label: magic, version, length of the device, checksum
//! 1 MiB    first copy of the table: which file lies where, with a number and a checksum
//! 2 MiB    second copy; they are written alternately
//! 4 MiB    files, each at a multiple of 64 KiB
//! ```
//!
//! Purpose: what [`super::directory`] is on a file system: names, exclusive use, and who owns the
//! disk.
//!
//! Invariant: the newest good copy of the table is the state. A change is one write of the older copy;
//! while it is in flight no other begins, and what it names is written and flushed before it.
//! What would break it: an extent given out again before the table that frees it is durable.

use super::lock::Lock;
use super::{FileId, posix};
use racos_buffer::{ALIGN, Pool, Slice};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"racosDK\n";
const TABLE_MAGIC: &[u8; 8] = b"racosTB\n";
const VERSION: u32 = 1;
/// Where the copies of the table lie, and what a copy takes at most.
const TABLES: [u64; 2] = [1 << 20, 2 << 20];
const TABLE_BYTES: usize = 1 << 20;
const FILES_AT: u64 = 4 << 20;
/// Files begin at multiples of this many bytes.
const UNIT: u64 = 64 << 10;
const ENTRY_BYTES: usize = 16;
const HEAD_BYTES: usize = 32;
/// Looked at for what others wrote, at both ends: file systems and partition tables show there.
const LOOKED_AT: u64 = 1 << 20;

/// Where a file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub at: u64,
    pub len: u64,
}

impl Extent {
    fn end(&self) -> u64 {
        self.at + self.len.next_multiple_of(UNIT)
    }
}

/// What the next table says that this one does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A file lies here now, in place of any that it had.
    Put(FileId, Extent),
    /// The first file has the second number now.
    Rename(FileId, FileId),
    Remove(FileId),
}

/// A block device, taken for this process alone.
pub(super) struct Disk {
    path: PathBuf,
    pub file: File,
    /// Taken for this process alone. Another handle than the one that is written to, which the ring may
    /// keep for a moment after it was closed.
    _lock: Lock,
    len: u64,
    files: BTreeMap<FileId, Extent>,
    /// Of the newest copy of the table, and which one it is.
    sequence: u64,
    copy: usize,
    /// Extents of files that are being made.
    reserved: Vec<Extent>,
    waiting: VecDeque<Change>,
    /// The change in flight, with the table that holds it.
    changing: Option<(Change, Slice)>,
    pool: Pool,
}

impl Disk {
    /// Takes the device, and makes it a disk of racos if it is empty, or if `take` says that what it
    /// holds may go.
    pub fn open(path: &Path, take: bool) -> io::Result<Disk> {
        let about = |what: String| {
            move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
        };
        let lock = Lock::take(posix::open_exclusive(path)?, || {
            format!("{} is in use by another process: stop it first", path.display())
        })?;
        let mut file = posix::open_direct(path, false)?;
        let len =
            file.seek(SeekFrom::End(0)).map_err(about(format!("length of {}", path.display())))?;
        if len < FILES_AT + LOOKED_AT {
            let what = format!("{} is too small: {len} bytes", path.display());
            return Err(io::Error::new(ErrorKind::InvalidInput, what));
        }
        let mut disk = Disk {
            path: path.to_owned(),
            file,
            _lock: lock,
            len,
            files: BTreeMap::new(),
            sequence: 0,
            copy: 1,
            reserved: Vec::new(),
            waiting: VecDeque::new(),
            changing: None,
            pool: Pool::new(16 << 20),
        };
        if has_label(&disk.file, &disk.pool, path)? {
            let newest = newest_table(&disk.file, &disk.pool, len, path)?;
            (disk.sequence, disk.copy, disk.files) = (newest.sequence, newest.copy, newest.files);
        } else {
            disk.refuse_others(take)?;
            disk.format()?;
        }
        Ok(disk)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, at: u64, len: usize) -> io::Result<Slice> {
        read(&self.file, &self.pool, at, len)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let copy = self.pool.copy(bytes).expect("the pool is larger than what is written at once");
        self.file.write_all_at(&copy, at)?;
        self.file.sync_data()
    }

    /// Errors if the device holds what somebody else may want, unless it may be taken.
    fn refuse_others(&self, take: bool) -> io::Result<()> {
        if take {
            return Ok(());
        }
        let front = self.read(0, LOOKED_AT as usize)?;
        let back = self.read((self.len - LOOKED_AT) / 4096 * 4096, LOOKED_AT as usize)?;
        if front.iter().chain(back.iter()).all(|byte| *byte == 0) {
            return Ok(());
        }
        let what = format!(
            "{} is not empty ({}): it is not taken unless `racos node --take-device` says so, which \
             destroys what it holds; if it was a disk of racos whose label is lost, replace the node \
             with `racos member replace`",
            self.path.display(),
            what_it_looks_like(&front)
        );
        Err(io::Error::new(ErrorKind::AlreadyExists, what))
    }

    /// The label comes last: without it there is nothing yet.
    fn format(&mut self) -> io::Result<()> {
        self.write(TABLES[1], &vec![0; TABLE_BYTES])?;
        self.write(TABLES[0], &self.encode(1, &BTreeMap::new()))?;
        (self.sequence, self.copy) = (1, 0);
        let mut block = vec![0; LOOKED_AT as usize];
        block[..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12..20].copy_from_slice(&self.len.to_le_bytes());
        let crc = crc32fast::hash(&block[..20]);
        block[20..24].copy_from_slice(&crc.to_le_bytes());
        self.write(0, &block)
    }

    fn encode(&self, sequence: u64, files: &BTreeMap<FileId, Extent>) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES];
        for (file, extent) in files {
            bytes.extend_from_slice(&file.to_le_bytes());
            bytes.extend_from_slice(&(extent.len as u32).to_le_bytes());
            bytes.extend_from_slice(&extent.at.to_le_bytes());
        }
        bytes[..8].copy_from_slice(TABLE_MAGIC);
        bytes[12..16].copy_from_slice(&(files.len() as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
        let crc = crc32fast::hash(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        bytes
    }

    /// Where a file lies.
    pub fn extent(&self, file: FileId) -> io::Result<Extent> {
        self.files.get(&file).copied().ok_or_else(|| {
            let what = format!("there is no file {file} on {}", self.path.display());
            io::Error::new(ErrorKind::NotFound, what)
        })
    }

    pub fn list(&self) -> Vec<(FileId, u64)> {
        self.files.iter().map(|(file, extent)| (*file, extent.len)).collect()
    }

    /// All that is taken, in order.
    fn taken(&self) -> Vec<Extent> {
        let mut taken: Vec<Extent> = self.files.values().chain(&self.reserved).copied().collect();
        taken.sort_unstable_by_key(|extent| extent.at);
        taken
    }

    /// Room for a file that is going to be made: the first that there is.
    pub fn reserve(&mut self, len: u64) -> io::Result<Extent> {
        let mut at = FILES_AT;
        for taken in self.taken() {
            if (Extent { at, len }).end() <= taken.at {
                break;
            }
            at = taken.end();
        }
        let extent = Extent { at, len };
        let entries = self.files.len() + self.reserved.len() + 1;
        if extent.end() > self.len || HEAD_BYTES + entries * ENTRY_BYTES > TABLE_BYTES {
            return Err(io::Error::new(
                ErrorKind::StorageFull,
                "the device has no room for the file",
            ));
        }
        self.reserved.push(extent);
        Ok(extent)
    }

    /// The file was not made.
    pub fn give_up(&mut self, extent: Extent) {
        self.reserved.retain(|other| *other != extent);
    }

    pub fn free_bytes(&self) -> u64 {
        let taken: u64 = self.taken().iter().map(|extent| extent.end() - extent.at).sum();
        (self.len - FILES_AT).saturating_sub(taken) / UNIT * UNIT
    }

    /// Has the change made; at once or, if one is in flight, behind it.
    pub fn change(&mut self, change: Change) {
        self.waiting.push_back(change);
    }

    /// The next change to write, if none is in flight: the table, and where it goes.
    pub fn next_table(&mut self) -> Option<(Slice, u64)> {
        if self.changing.is_some() {
            return None;
        }
        let change = self.waiting.pop_front()?;
        let mut files = self.files.clone();
        apply(&mut files, change);
        let bytes = self.encode(self.sequence + 1, &files);
        let table = self.pool.copy(&bytes).expect("the pool holds more than one table");
        self.changing = Some((change, table.clone()));
        Some((table, TABLES[1 - self.copy]))
    }

    /// The table in flight is durable, or could not be written. Says which change it was.
    pub fn changed(&mut self, is_durable: bool) -> Change {
        let (change, _) = self.changing.take().expect("a table is in flight");
        if let Change::Put(_, extent) = change {
            self.give_up(extent);
        }
        if is_durable {
            apply(&mut self.files, change);
            self.sequence += 1;
            self.copy = 1 - self.copy;
        }
        change
    }

    pub fn is_changing(&self) -> bool {
        self.changing.is_some()
    }

    /// Memory of the table in flight, never to be freed.
    pub fn leak(&mut self) {
        std::mem::forget(self.changing.take());
    }

    /// Makes a short file of zeros at once, for start-up.
    pub fn put_now(&mut self, file: FileId, len: u64) -> io::Result<Extent> {
        let extent = self.reserve(len)?;
        // What an earlier owner left there would be taken for this one's.
        self.write(extent.at, &vec![0; len as usize])?;
        self.change(Change::Put(file, extent));
        while let Some((table, at)) = self.next_table() {
            let written = self.write(at, &table);
            self.changed(written.is_ok());
            written?;
        }
        Ok(extent)
    }
}

/// A table that was found good.
struct Newest {
    sequence: u64,
    copy: usize,
    files: BTreeMap<FileId, Extent>,
}

/// The files of a device that somebody else may use; errors if it is none of racos.
pub(super) fn look(file: &mut File, path: &Path) -> io::Result<BTreeMap<FileId, Extent>> {
    let (pool, len) = (Pool::new(16 << 20), file.seek(SeekFrom::End(0))?);
    if len < FILES_AT || !has_label(file, &pool, path)? {
        let what = format!("{} is no disk of racos", path.display());
        return Err(io::Error::new(ErrorKind::InvalidData, what));
    }
    newest_table(file, &pool, len, path).map(|newest| newest.files)
}

fn read(file: &File, pool: &Pool, at: u64, len: usize) -> io::Result<Slice> {
    let mut buf = pool.get(len).expect("the pool is larger than what is read at once");
    file.read_exact_at(&mut buf, at)?;
    Ok(buf.freeze())
}

fn has_label(file: &File, pool: &Pool, path: &Path) -> io::Result<bool> {
    let block = read(file, pool, 0, ALIGN)?;
    let field = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"));
    if &block[..8] != MAGIC || crc32fast::hash(&block[..20]) != field(20) {
        return Ok(false);
    }
    if field(8) != VERSION {
        let version = field(8);
        let what =
            format!("{} has format version {version}, newer than this program", path.display());
        return Err(io::Error::new(ErrorKind::InvalidData, what));
    }
    Ok(true)
}

fn newest_table(file: &File, pool: &Pool, len: u64, path: &Path) -> io::Result<Newest> {
    let mut newest: Option<Newest> = None;
    for (copy, at) in TABLES.into_iter().enumerate() {
        let bytes = read(file, pool, at, TABLE_BYTES)?;
        if let Some((sequence, files)) = decode(&bytes, len)
            && newest.as_ref().is_none_or(|best| sequence > best.sequence)
        {
            newest = Some(Newest { sequence, copy, files });
        }
    }
    newest.ok_or_else(|| {
        let what = format!(
            "both tables of {} are damaged: its data is lost; replace the node with `racos member \
             replace`",
            path.display()
        );
        io::Error::new(ErrorKind::InvalidData, what)
    })
}

fn apply(files: &mut BTreeMap<FileId, Extent>, change: Change) {
    match change {
        Change::Put(file, extent) => drop(files.insert(file, extent)),
        Change::Rename(from, to) => {
            if let Some(extent) = files.remove(&from) {
                files.insert(to, extent);
            }
        }
        Change::Remove(file) => drop(files.remove(&file)),
    }
}

/// Number and files of a table that is whole, of files that lie on the device and apart.
fn decode(bytes: &[u8], device_len: u64) -> Option<(u64, BTreeMap<FileId, Extent>)> {
    let field = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if bytes.get(..8)? != TABLE_MAGIC {
        return None;
    }
    let count = field(12)? as usize;
    let end = count.checked_mul(ENTRY_BYTES)?.checked_add(HEAD_BYTES)?;
    if crc32fast::hash(bytes.get(12..end)?) != field(8)? {
        return None;
    }
    let sequence = u64::from(field(16)?) | u64::from(field(20)?) << 32;
    let mut files = BTreeMap::new();
    for at in (HEAD_BYTES..end).step_by(ENTRY_BYTES) {
        let at_bytes = u64::from(field(at + 8)?) | u64::from(field(at + 12)?) << 32;
        let extent = Extent { at: at_bytes, len: u64::from(field(at + 4)?) };
        let inside = extent.at >= FILES_AT && extent.at.checked_add(extent.len)? <= device_len;
        if !inside || !extent.at.is_multiple_of(UNIT) || files.insert(field(at)?, extent).is_some()
        {
            return None;
        }
    }
    let mut extents: Vec<Extent> = files.values().copied().collect();
    extents.sort_unstable_by_key(|extent| extent.at);
    let apart = extents.windows(2).all(|pair| pair[0].end() <= pair[1].at);
    apart.then_some((sequence, files))
}

fn what_it_looks_like(front: &[u8]) -> &'static str {
    let at = |offset: usize, magic: &[u8]| front.get(offset..offset + magic.len()) == Some(magic);
    match () {
        () if at(0x438, &[0x53, 0xef]) => "an ext2, ext3 or ext4 file system",
        () if at(0, b"XFSB") => "an XFS file system",
        () if at(0x10040, b"_BHRfS_M") => "a btrfs file system",
        () if at(512, b"EFI PART") => "a partition table",
        () if at(510, &[0x55, 0xaa]) => "a partition table or a boot sector",
        () if at(0x218, b"LVM2") => "a volume of LVM",
        () => "somebody's data",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(name: &str, len: u64) -> PathBuf {
        let path = std::env::temp_dir().join(format!("racos-disk-{}-{name}", std::process::id()));
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    #[test]
    fn what_is_made_renamed_and_removed_is_so_for_the_next_one() {
        let path = image("changes", 64 << 20);
        let mut disk = Disk::open(&path, false).unwrap();
        let first = disk.put_now(1, 1 << 20).unwrap();
        let second = disk.put_now(2, 8192).unwrap();
        assert!(second.at >= first.end());
        disk.change(Change::Rename(1, 7));
        disk.change(Change::Remove(2));
        let third = disk.put_now(3, 4096).unwrap();
        drop(disk);
        let mut disk = Disk::open(&path, false).unwrap();
        assert_eq!(disk.list(), [(3, 4096), (7, 1 << 20)]);
        assert_eq!((disk.extent(7).unwrap(), disk.extent(3).unwrap()), (first, third));
        assert_eq!(disk.put_now(4, 4096).unwrap().at, second.at, "what was removed is used again");
        assert!(disk.extent(2).is_err());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_torn_table_leaves_the_one_before() {
        let path = image("torn", 64 << 20);
        let mut disk = Disk::open(&path, false).unwrap();
        disk.put_now(1, 4096).unwrap();
        disk.put_now(2, 4096).unwrap();
        let newest = TABLES[disk.copy];
        drop(disk);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[9; 100], newest + 30).unwrap();
        assert_eq!(Disk::open(&path, false).unwrap().list(), [(1, 4096)]);
        file.write_all_at(&[9; 100], TABLES[0] + 30).unwrap();
        file.write_all_at(&[9; 100], TABLES[1] + 30).unwrap();
        let error = Disk::open(&path, false).err().unwrap().to_string();
        assert!(error.contains("both tables") && error.contains("member replace"), "{error}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_device_that_holds_something_is_taken_only_when_told() {
        let path = image("taken", 64 << 20);
        for (at, magic, word) in [
            (0x438u64, &[0x53, 0xef][..], "ext4"),
            (0, b"XFSB", "XFS"),
            ((64 << 20) - 5, b"x", "data"),
        ] {
            let file = File::create(&path).unwrap();
            file.set_len(64 << 20).unwrap();
            file.write_all_at(magic, at).unwrap();
            let error = Disk::open(&path, false).err().expect("it is not empty").to_string();
            assert!(error.contains(word) && error.contains("--take-device"), "{error}");
        }
        drop(Disk::open(&path, true).unwrap());
        assert!(Disk::open(&path, false).is_ok(), "it is racos's now");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_device_has_one_user_and_an_end() {
        let path = image("end", 16 << 20);
        let mut disk = Disk::open(&path, false).unwrap();
        let error = Disk::open(&path, false).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        let free = disk.free_bytes();
        assert_eq!(free, 12 << 20);
        assert_eq!(disk.reserve(free + 1).unwrap_err().kind(), ErrorKind::StorageFull);
        let all = disk.reserve(free).unwrap();
        assert_eq!(
            (disk.free_bytes(), disk.reserve(1).unwrap_err().kind()),
            (0, ErrorKind::StorageFull)
        );
        disk.give_up(all);
        assert_eq!(disk.free_bytes(), free);
        std::fs::remove_file(path).unwrap();
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), shaped: bool) {
            if shaped && bytes.len() >= HEAD_BYTES {
                bytes[..8].copy_from_slice(TABLE_MAGIC);
                let count = (bytes.len() - HEAD_BYTES) / ENTRY_BYTES;
                bytes[12..16].copy_from_slice(&(count as u32).to_le_bytes());
                let crc = crc32fast::hash(&bytes[12..HEAD_BYTES + count * ENTRY_BYTES]);
                bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = decode(&bytes, 1 << 40);
        }
    }
}
