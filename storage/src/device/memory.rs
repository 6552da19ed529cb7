//! A simulated disk: deterministic, with the faults of real ones.
//!
//! Purpose: the device under whole nodes in the simulator and under the log's crash tests. The
//! [`Disk`] lives outside the node, survives its crash, and is opened again by the next one.
//!
//! Model: a write is one unit with its flush. Until it completes, each of its sectors is old or
//! new; a power cut decides which ([`Disk::power_cut`]). After a failed flush, or a death of the
//! process in mid-write ([`Disk::kill`]), new sectors may stay *volatile*: reads see them, the next
//! power cut may take them, and no later flush saves them unless they are written again.
//!
//! Invariant: everything follows from the calls made and the seeds given; completed writes are
//! never changed except by [`Disk::corrupt`] and its like.
//! What would break it: a map with random order, or completing anything out of (time, number)
//! order.

use super::{Completion, Device, FileId, RECYCLED_ZEROS};
use racos_buffer::{Buf, Slice};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::rc::Rc;

const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// What an operation is, for a latency model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A write with its flush; bytes.
    Write(usize),
    /// A read; bytes.
    Read(usize),
    /// Making a file; bytes.
    Prepare(u64),
}

/// Nanoseconds that an operation takes.
pub type Latency = Box<dyn FnMut(Op) -> u64>;

/// When operations complete.
pub enum Timing {
    /// At the next poll.
    Immediate,
    /// One at a time, in the order they were started, by [`Disk::complete_one`].
    Stepped,
    /// When [`Disk::advance`] reaches their start plus this latency.
    Timed(Latency),
}

/// Pages of disks that are gone, for the next ones: memory that was never touched costs more than
/// all that a disk does with it.
const SPARE_PAGES_MAX: usize = 16 << 10;

thread_local! {
    static SPARE_PAGES: RefCell<Vec<Box<[u8; PAGE]>>> = const { RefCell::new(Vec::new()) };
}

type Page = Box<[u8; PAGE]>;

/// One file: zeros but for the pages kept.
#[derive(Clone, Default)]
struct Image {
    len: u64,
    /// By their number; none are behind the last that was ever written.
    pages: Vec<Option<Page>>,
}

/// A page that holds this from there on, and zeros.
fn new_page(within: usize, bytes: &[u8]) -> Page {
    let mut page = SPARE_PAGES.with_borrow_mut(Vec::pop).unwrap_or_else(|| Box::new([0; PAGE]));
    let end = within + bytes.len();
    page[..within].fill(0);
    page[within..end].copy_from_slice(bytes);
    page[end..].fill(0);
    page
}

impl Drop for Image {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages).into_iter().flatten();
        // While the thread ends there is nothing to keep them in.
        let _ = SPARE_PAGES.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            let room = SPARE_PAGES_MAX.saturating_sub(spare.len());
            spare.extend(pages.take(room));
        });
    }
}

impl Image {
    fn of_len(len: u64) -> Image {
        Image { len, pages: Vec::new() }
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        let (mut at, mut rest) = (offset, into);
        while !rest.is_empty() {
            let within = at as usize % PAGE;
            let (part, behind) = rest.split_at_mut((PAGE - within).min(rest.len()));
            match self.pages.get(at as usize / PAGE) {
                Some(Some(page)) => part.copy_from_slice(&page[within..within + part.len()]),
                _ => part.fill(0),
            }
            at += part.len() as u64;
            rest = behind;
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (offset as usize, bytes);
        while !rest.is_empty() {
            let (number, within) = (at / PAGE, at % PAGE);
            let (part, behind) = rest.split_at((PAGE - within).min(rest.len()));
            if number >= self.pages.len() {
                self.pages.resize(number + 1, None);
            }
            match &mut self.pages[number] {
                Some(page) => page[within..within + part.len()].copy_from_slice(part),
                none => *none = Some(new_page(within, part)),
            }
            at += part.len();
            rest = behind;
        }
    }
}

enum Work {
    Write { token: u64, file: FileId, offset: u64, parts: Vec<Slice> },
    Read { token: u64, file: FileId, offset: u64, buf: Buf },
    Prepare { file: FileId, len: u64 },
    Recycle { from: FileId, file: FileId },
    Remove { file: FileId },
}

/// The disk itself. Share it as `Rc<RefCell<Disk>>` between the driver and a [`MemoryDevice`].
pub struct Disk {
    files: BTreeMap<FileId, Image>,
    /// What sectors held before a write that may still be lost.
    volatile: BTreeMap<(FileId, u64), [u8; SECTOR]>,
    unreadable: BTreeMap<(FileId, u64), ()>,
    capacity: u64,
    timing: Timing,
    now_ns: u64,
    number: u64,
    /// In flight, by (due time, number of the operation).
    work: BTreeMap<(u64, u64), Work>,
    done: Vec<Completion>,
    frozen: bool,
    /// Writes still to succeed before one fails.
    fail_flush: Option<u64>,
    writes: u64,
}

impl Disk {
    /// An empty disk that takes `capacity` bytes of files.
    pub fn new(capacity: u64, timing: Timing) -> Rc<RefCell<Disk>> {
        Rc::new(RefCell::new(Disk {
            files: BTreeMap::new(),
            volatile: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            capacity,
            timing,
            now_ns: 0,
            number: 0,
            work: BTreeMap::new(),
            done: Vec::new(),
            frozen: false,
            fail_flush: None,
            writes: 0,
        }))
    }

    fn start(&mut self, op: Op, work: Work) {
        let latency_ns = match &mut self.timing {
            Timing::Timed(latency) => latency(op),
            Timing::Immediate | Timing::Stepped => 0,
        };
        self.number += 1;
        self.work.insert((self.now_ns + latency_ns, self.number), work);
    }

    /// Moves the time (ns) on and completes what is due.
    pub fn advance(&mut self, now_ns: u64) {
        assert!(now_ns >= self.now_ns, "simulated time went back");
        self.now_ns = now_ns;
        while self.next_due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
            self.complete_one();
        }
    }

    /// When the next operation completes (ns), if one is in flight and the disk is not frozen.
    pub fn next_due_ns(&self) -> Option<u64> {
        let (due_ns, _) = *self.work.first_key_value()?.0;
        (!self.frozen).then_some(due_ns)
    }

    /// Completes the next operation. False if none is in flight or the disk is frozen.
    pub fn complete_one(&mut self) -> bool {
        if self.frozen {
            return false;
        }
        let Some((_, work)) = self.work.pop_first() else {
            return false;
        };
        let completion = match work {
            Work::Write { token, file, offset, parts } => {
                self.finish_write(token, file, offset, parts)
            }
            Work::Read { token, file, offset, mut buf } => {
                let result = self.read(file, offset, &mut buf);
                Completion::Read { token, buf, result }
            }
            Work::Prepare { file, len } => {
                let result = self.make(file, len);
                Completion::Prepared { file, result }
            }
            Work::Recycle { from, file } => {
                let result = self.recycle(from, file);
                Completion::Prepared { file, result }
            }
            Work::Remove { file } => {
                self.remove(file);
                Completion::Removed { file, result: Ok(()) }
            }
        };
        self.done.push(completion);
        true
    }

    fn finish_write(&mut self, token: u64, file: FileId, at: u64, parts: Vec<Slice>) -> Completion {
        self.writes += 1;
        let failed = self.fail_flush == Some(0);
        let volatile = failed || mutant!("flush skipped");
        self.fail_flush = self.fail_flush.and_then(|left| left.checked_sub(1));
        if volatile || !self.volatile.is_empty() || !self.unreadable.is_empty() {
            for (offset, sector) in sectors(at, &parts) {
                self.put(file, offset, sector, volatile);
            }
        } else {
            self.put_whole(file, at, &parts);
        }
        let result = match failed {
            true => Err(io::Error::other("simulated flush error")),
            false => Ok(()),
        };
        Completion::Written { token, result }
    }

    /// Writes what replaces nothing that is volatile or unreadable, durably.
    fn put_whole(&mut self, file: FileId, at: u64, parts: &[Slice]) {
        let image = self.files.get_mut(&file).expect("a write goes to a file that exists");
        let mut at = at;
        for part in parts {
            assert!(at + part.len() as u64 <= image.len, "a write stays inside its file");
            image.write(at, part);
            at += part.len() as u64;
        }
    }

    /// Writes one sector, durably or so that a power cut may still take it back.
    fn put(&mut self, file: FileId, offset: u64, sector: &[u8], volatile: bool) {
        let image = self.files.get_mut(&file).expect("a write goes to a file that exists");
        assert!(offset + sector.len() as u64 <= image.len, "a write stays inside its file");
        if volatile {
            let mut old = [0; SECTOR];
            image.read(offset, &mut old);
            self.volatile.entry((file, offset)).or_insert(old);
        } else {
            self.volatile.remove(&(file, offset));
        }
        self.unreadable.remove(&(file, offset));
        image.write(offset, sector);
    }

    fn read(&self, file: FileId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        check_aligned(offset, into);
        let Some(image) = self.files.get(&file) else {
            return Err(io::Error::new(ErrorKind::NotFound, format!("no file {file}")));
        };
        let end = offset + into.len() as u64;
        if end > image.len {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "read beyond the end"));
        }
        if self.unreadable.range((file, offset)..(file, end)).next().is_some() {
            return Err(io::Error::other("simulated unreadable sector"));
        }
        image.read(offset, into);
        Ok(())
    }

    fn make(&mut self, file: FileId, len: u64) -> io::Result<()> {
        if len > self.free_bytes() {
            return Err(io::Error::new(ErrorKind::StorageFull, "simulated disk is full"));
        }
        self.forget(file);
        self.files.insert(file, Image::of_len(len));
        Ok(())
    }

    fn forget(&mut self, file: FileId) {
        self.volatile.retain(|(of, _), _| *of != file);
        self.unreadable.retain(|(of, _), _| *of != file);
    }

    fn free_bytes(&self) -> u64 {
        self.capacity.saturating_sub(self.files.values().map(|image| image.len).sum())
    }

    /// Power loss: every sector not yet flushed is, independently, old or new; then the node's
    /// device is gone and a new one may be made.
    pub fn power_cut(&mut self, seed: u64) {
        let mut rng = Rng(seed);
        self.drop_work(&mut rng, false);
        for ((file, offset), old) in std::mem::take(&mut self.volatile) {
            if rng.next() & 1 == 0
                && let Some(image) = self.files.get_mut(&file)
            {
                image.write(offset, &old);
            }
        }
    }

    /// Death of the process alone: what it had in flight may have reached the disk in part, visible
    /// to the next process and yet not flushed.
    pub fn kill(&mut self, seed: u64) {
        self.drop_work(&mut Rng(seed), true);
    }

    /// The first block is zeroed, then the file has its new number.
    fn recycle(&mut self, from: FileId, file: FileId) -> io::Result<()> {
        self.zero_front(from)?;
        self.forget(file);
        let image = self.files.remove(&from).expect("looked at above");
        self.volatile.retain(|(of, _), _| *of != from);
        let bad = std::mem::take(&mut self.unreadable).into_keys();
        let renamed = |(of, at)| ((if of == from { file } else { of }, at), ());
        self.unreadable = bad.map(renamed).collect();
        self.files.insert(file, image);
        Ok(())
    }

    fn zero_front(&mut self, from: FileId) -> io::Result<()> {
        let Some(image) = self.files.get_mut(&from) else {
            return Err(io::Error::new(ErrorKind::NotFound, format!("no file {from}")));
        };
        (0..RECYCLED_ZEROS).step_by(SECTOR).for_each(|at| image.write(at, &[0; SECTOR]));
        Ok(())
    }

    fn drop_work(&mut self, rng: &mut Rng, volatile: bool) {
        for work in std::mem::take(&mut self.work).into_values() {
            match work {
                Work::Recycle { from, file } => match rng.next() % 3 {
                    0 => {}
                    1 => drop(self.zero_front(from)),
                    _ => drop(self.recycle(from, file)),
                },
                Work::Remove { file } if rng.next() & 1 == 1 => self.remove(file),
                Work::Write { file, offset, parts, .. } => {
                    let mode = rng.next() % 4; // none, all, or each sector on its own
                    for (offset, sector) in sectors(offset, &parts) {
                        let new = mode == 1 || mode >= 2 && rng.next() & 1 == 1;
                        if new {
                            self.put(file, offset, sector, volatile);
                        }
                    }
                }
                _ => {}
            }
        }
        self.done.clear();
        self.frozen = false;
        self.fail_flush = None;
    }

    /// Flips bits of the byte at `offset`.
    pub fn corrupt(&mut self, file: FileId, offset: u64) {
        let image = self.files.get_mut(&file).expect("the file to corrupt exists");
        let start = offset / SECTOR as u64 * SECTOR as u64;
        let mut sector = [0; SECTOR];
        image.read(start, &mut sector);
        sector[(offset - start) as usize] ^= 0x5a;
        image.write(start, &sector);
    }

    /// As if a write of `len` bytes at `from` had gone to `to` as well: good bytes at a wrong place.
    /// Offsets and length are whole sectors.
    pub fn misdirect(&mut self, from: (FileId, u64), to: (FileId, u64), len: usize) {
        let mut bytes = vec![0; len];
        self.files.get(&from.0).expect("the file written to exists").read(from.1, &mut bytes);
        let image = self.files.get_mut(&to.0).expect("the file hit exists");
        for (at, sector) in (to.1..).step_by(SECTOR).zip(bytes.chunks(SECTOR)) {
            image.write(at, sector);
        }
    }

    /// Makes the sector at `offset` fail to read until it is written again.
    pub fn make_unreadable(&mut self, file: FileId, offset: u64) {
        self.unreadable.insert((file, offset / SECTOR as u64 * SECTOR as u64), ());
    }

    /// One flush fails, after `writes` more that succeed; its sectors become volatile.
    pub fn fail_flush_after(&mut self, writes: u64) {
        self.fail_flush = Some(writes);
    }

    /// A frozen disk completes nothing until it is thawed.
    pub fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    /// Whether it is.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Changes when operations that start from now on complete.
    pub fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// Changes how many bytes of files the disk takes.
    pub fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
    }

    /// Writes completed so far, failed ones included.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.work.len()
    }

    /// Cuts the file to `len` bytes, a multiple of the sector.
    pub fn truncate(&mut self, file: FileId, len: u64) {
        let image = self.files.get_mut(&file).expect("the file to truncate exists");
        image.len = len;
        image.pages.truncate(len.div_ceil(PAGE as u64) as usize);
    }

    /// Removes the file.
    pub fn remove(&mut self, file: FileId) {
        self.forget(file);
        self.files.remove(&file);
    }

    /// CRC32 of some bytes as reads see them; none if one of their sectors cannot be read.
    pub fn checksum(&self, file: FileId, offset: u64, len: u32) -> Option<u32> {
        let (first, end) = (offset / SECTOR as u64 * SECTOR as u64, offset + u64::from(len));
        let is_readable = self.unreadable.range((file, first)..(file, end)).next().is_none();
        let mut bytes = vec![0; len as usize];
        self.files.get(&file).filter(|_| is_readable)?.read(offset, &mut bytes);
        Some(crc32fast::hash(&bytes))
    }

    /// Names of all files, in order.
    pub fn files(&self) -> Vec<FileId> {
        self.files.keys().copied().collect()
    }

    /// The whole file as reads see it.
    pub fn contents(&self, file: FileId) -> Option<Vec<u8>> {
        let image = self.files.get(&file)?;
        let mut bytes = vec![0; image.len as usize];
        image.read(0, &mut bytes);
        Some(bytes)
    }

    /// Puts a whole file there, durably, as from another disk or an older image of this one.
    pub fn put_file(&mut self, file: FileId, bytes: &[u8]) {
        assert!(bytes.len().is_multiple_of(SECTOR), "files are whole sectors");
        self.forget(file);
        let mut image = Image::of_len(bytes.len() as u64);
        for (offset, sector) in (0..).step_by(SECTOR).zip(bytes.chunks(SECTOR)) {
            image.write(offset, sector);
        }
        self.files.insert(file, image);
    }
}

fn sectors(offset: u64, parts: &[Slice]) -> impl Iterator<Item = (u64, &[u8])> {
    (offset..).step_by(SECTOR).zip(parts.iter().flat_map(|part| part.chunks(SECTOR)))
}

fn check_aligned(offset: u64, memory: &[u8]) {
    assert!(offset.is_multiple_of(SECTOR as u64), "offset {offset} is a multiple of the sector");
    assert!(memory.len().is_multiple_of(SECTOR), "length is a multiple of the sector");
    assert!((memory.as_ptr() as usize).is_multiple_of(SECTOR), "memory is aligned to the sector");
}

/// splitmix64: enough for choosing which sectors survive.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The node's handle to a [`Disk`].
pub struct MemoryDevice {
    disk: Rc<RefCell<Disk>>,
}

impl MemoryDevice {
    /// Opens the disk. Panics if another device's work is still in flight there: cut its power or
    /// kill it first.
    pub fn new(disk: Rc<RefCell<Disk>>) -> MemoryDevice {
        assert!(disk.borrow().work.is_empty(), "the disk has work in flight of an earlier device");
        disk.borrow_mut().done.clear();
        MemoryDevice { disk }
    }
}

impl Device for MemoryDevice {
    fn sector(&self) -> usize {
        SECTOR
    }

    fn list(&mut self) -> io::Result<Vec<(FileId, u64)>> {
        Ok(self.disk.borrow().files.iter().map(|(file, image)| (*file, image.len)).collect())
    }

    fn read_now(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.borrow().read(file, offset, into)
    }

    fn write_now(&mut self, file: FileId, offset: u64, bytes: &Slice) -> io::Result<()> {
        check_aligned(offset, bytes);
        let mut disk = self.disk.borrow_mut();
        let end = offset + bytes.len() as u64;
        let image = disk.files.entry(file).or_default();
        image.len = image.len.max(end);
        let parts = vec![bytes.clone()];
        match disk.finish_write(0, file, offset, parts) {
            Completion::Written { result, .. } => result,
            _ => unreachable!("a write completes as a write"),
        }
    }

    fn prepare(&mut self, file: FileId, len: u64) {
        self.disk.borrow_mut().start(Op::Prepare(len), Work::Prepare { file, len });
    }

    fn recycle(&mut self, from: FileId, file: FileId) {
        let work = Work::Recycle { from, file };
        self.disk.borrow_mut().start(Op::Prepare(RECYCLED_ZEROS), work);
    }

    fn remove(&mut self, file: FileId) {
        self.disk.borrow_mut().start(Op::Prepare(0), Work::Remove { file });
    }

    fn write_flush(&mut self, token: u64, file: FileId, offset: u64, parts: &[Slice]) {
        let mut at = offset;
        for part in parts {
            check_aligned(at, part);
            at += part.len() as u64;
        }
        let work = Work::Write { token, file, offset, parts: parts.to_vec() };
        self.disk.borrow_mut().start(Op::Write((at - offset) as usize), work);
    }

    fn read(&mut self, token: u64, file: FileId, offset: u64, buf: Buf) {
        check_aligned(offset, &buf);
        let work = Work::Read { token, file, offset, buf };
        let mut disk = self.disk.borrow_mut();
        let bytes = match &work {
            Work::Read { buf, .. } => buf.len(),
            _ => 0,
        };
        disk.start(Op::Read(bytes), work);
    }

    fn poll(&mut self, into: &mut Vec<Completion>) {
        let mut disk = self.disk.borrow_mut();
        if matches!(disk.timing, Timing::Immediate) {
            while disk.complete_one() {}
        }
        into.append(&mut disk.done);
    }

    fn submit(&mut self) {}

    fn settle(&mut self) -> io::Result<()> {
        let mut disk = self.disk.borrow_mut();
        match !disk.done.is_empty() || disk.complete_one() {
            true => Ok(()),
            false => Err(io::Error::other("nothing is in flight, or the disk is frozen")),
        }
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        Ok(self.disk.borrow().free_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use racos_buffer::Pool;

    fn disk(timing: Timing) -> (Rc<RefCell<Disk>>, MemoryDevice, Pool) {
        let disk = Disk::new(1 << 20, timing);
        disk.borrow_mut().put_file(1, &[0; 64 << 10]);
        (disk.clone(), MemoryDevice::new(disk), Pool::new(1 << 20))
    }

    fn filled(pool: &Pool, byte: u8, len: usize) -> Slice {
        let mut buf = pool.get(len).unwrap();
        buf.fill(byte);
        buf.freeze()
    }

    /// The first byte of each sector.
    fn marks(disk: &Rc<RefCell<Disk>>) -> Vec<u8> {
        disk.borrow().contents(1).unwrap().chunks(SECTOR).map(|sector| sector[0]).collect()
    }

    #[test]
    fn operations_complete_in_the_order_of_their_latencies() {
        let latency = |op| match op {
            Op::Write(bytes) => 1000 + bytes as u64,
            Op::Read(_) => 100,
            Op::Prepare(_) => 5000,
        };
        let (disk, mut device, pool) = disk(Timing::Timed(Box::new(latency)));
        device.prepare(2, 4096);
        device.write_flush(1, 1, 0, &[filled(&pool, 1, 512)]);
        device.read(1, 1, 0, pool.get(512).unwrap());
        device.read(2, 1, 0, pool.get(512).unwrap());
        let mut done = Vec::new();
        let mut seen = Vec::new();
        let next = || disk.borrow().next_due_ns();
        while let Some(due_ns) = next() {
            disk.borrow_mut().advance(due_ns - 1);
            device.poll(&mut done);
            assert!(done.is_empty(), "nothing completes before its time");
            disk.borrow_mut().advance(due_ns);
            device.poll(&mut done);
            seen.push((due_ns, done.len()));
            done.clear();
        }
        assert_eq!(seen, [(100, 2), (1512, 1), (5000, 1)]);
    }

    #[test]
    fn a_frozen_disk_completes_nothing() {
        let (disk, mut device, pool) = disk(Timing::Immediate);
        disk.borrow_mut().freeze(true);
        device.write_flush(1, 1, 0, &[filled(&pool, 1, 512)]);
        let mut done = Vec::new();
        device.poll(&mut done);
        assert!(done.is_empty() && disk.borrow().next_due_ns().is_none());
        assert!(device.settle().is_err());
        disk.borrow_mut().freeze(false);
        device.poll(&mut done);
        assert_eq!(done.len(), 1);
    }

    #[test]
    fn a_power_cut_tears_what_is_in_flight_and_nothing_else() {
        let (mut none, mut all, mut mixed) = (0, 0, 0);
        for seed in 0..64 {
            let (disk, mut device, pool) = disk(Timing::Stepped);
            device.write_flush(1, 1, 0, &[filled(&pool, 1, 4096)]);
            disk.borrow_mut().complete_one();
            device.write_flush(2, 1, 4096, &[filled(&pool, 2, 4096)]);
            disk.borrow_mut().power_cut(seed);
            let marks = marks(&disk);
            assert!(marks[..8].iter().all(|mark| *mark == 1), "flushed sectors stay");
            assert!(marks[16..].iter().all(|mark| *mark == 0), "others are not touched");
            match marks[8..16].iter().filter(|mark| **mark == 2).count() {
                0 => none += 1,
                8 => all += 1,
                _ => mixed += 1,
            }
        }
        assert!(none > 5 && all > 5 && mixed > 20, "{none} {all} {mixed}");
    }

    #[test]
    fn what_a_failed_flush_left_in_the_cache_goes_with_the_power_unless_written_again() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..32 {
            let (disk, mut device, pool) = disk(Timing::Immediate);
            disk.borrow_mut().fail_flush_after(0);
            assert!(device.write_now(1, 0, &filled(&pool, 3, 8192)).is_err());
            assert!(marks(&disk)[..16].iter().all(|mark| *mark == 3), "reads see it");
            device.write_now(1, 0, &filled(&pool, 3, 4096)).unwrap();
            device.write_now(1, 16384, &filled(&pool, 4, 512)).unwrap();
            disk.borrow_mut().power_cut(seed);
            let marks = marks(&disk);
            assert!(marks[..8].iter().all(|mark| *mark == 3), "written again: durable");
            kept += marks[8..16].iter().filter(|mark| **mark == 3).count();
            lost += marks[8..16].iter().filter(|mark| **mark == 0).count();
        }
        assert!(lost > 50 && kept > 50, "another flush saves nothing: {lost} {kept}");
    }
}
