//! One suite that every device passes, and what only real directories can show.

mod common;

use common::*;
use racos_buffer::{Buf, Pool, Slice};
use racos_storage::device::file::FileDevice;
use racos_storage::device::memory::{Disk, MemoryDevice, Timing};
use racos_storage::device::sync::SyncDevice;
use racos_storage::device::{Completion, Device, PARTS_MAX, SUPERBLOCK, UringConfig};
use std::collections::BTreeMap;
use std::io::ErrorKind;

const LEN: u64 = 6 << 20;

/// A device with a way to have another one on the same files.
trait Subject {
    type Device: Device;
    fn open(&self) -> Self::Device;
}

fn finish<D: Device>(device: &mut D) -> Completion {
    let mut completions = Vec::new();
    loop {
        device.submit();
        device.settle().unwrap();
        device.poll(&mut completions);
        if let Some(completion) = completions.pop() {
            assert!(completions.is_empty(), "one operation, one completion");
            return completion;
        }
    }
}

fn prepare<D: Device>(device: &mut D, file: u32, len: u64) {
    device.prepare(file, len);
    match finish(device) {
        Completion::Prepared { file: made, result: Ok(()) } => assert_eq!(made, file),
        other => panic!("{other:?}"),
    }
}

fn write<D: Device>(device: &mut D, file: u32, offset: u64, parts: &[Slice]) {
    device.write_flush(offset + 1, file, offset, parts);
    match finish(device) {
        Completion::Written { token, result: Ok(()) } => assert_eq!(token, offset + 1),
        other => panic!("{other:?}"),
    }
}

fn read<D: Device>(device: &mut D, file: u32, offset: u64, buf: Buf) -> Result<Slice, ErrorKind> {
    device.read(offset + 2, file, offset, buf);
    match finish(device) {
        Completion::Read { token, buf, result } => {
            assert_eq!(token, offset + 2);
            result.map(|()| buf.freeze()).map_err(|error| error.kind())
        }
        other => panic!("{other:?}"),
    }
}

/// Everything that [`Device`] promises and that can be seen without pulling the plug.
fn conforms<S: Subject>(subject: &S) {
    let pool = Pool::new(64 << 20);
    let mut device = subject.open();
    let sector = device.sector();
    assert!(sector.is_power_of_two() && sector >= 512);
    assert_eq!(device.list().unwrap(), []);
    assert!(device.free_bytes().unwrap() > LEN);

    // A made file is zeros, whole, listed; the superblock is made by its first write.
    prepare(&mut device, 1, LEN);
    prepare(&mut device, 2, 8192);
    let superblock = slice_of(&pool, 9, 8192);
    device.write_now(SUPERBLOCK, 0, &superblock).unwrap();
    assert_eq!(device.list().unwrap(), [(0, 8192), (1, LEN), (2, 8192)]);
    let mut buf = pool.get(8192).unwrap();
    device.read_now(SUPERBLOCK, 0, &mut buf).unwrap();
    assert_eq!(&*buf, &*superblock);
    let zeros = read(&mut device, 1, 1 << 20, pool.get(1 << 20).unwrap()).unwrap();
    assert!(zeros.iter().all(|byte| *byte == 0));

    // Gathered writes land in order, at their offset and nowhere else.
    let parts: Vec<Slice> =
        (0..PARTS_MAX as u64).map(|seed| slice_of(&pool, seed, sector)).collect();
    write(&mut device, 1, 4096, &parts);
    let all = read(&mut device, 1, 0, pool.get(4096 + PARTS_MAX * sector + sector).unwrap());
    let all = all.unwrap();
    assert!(all[..4096].iter().all(|byte| *byte == 0));
    for (index, part) in parts.iter().enumerate() {
        assert_eq!(&all[4096 + index * sector..][..sector], &**part, "part {index}");
    }
    assert!(all[4096 + PARTS_MAX * sector..].iter().all(|byte| *byte == 0));

    // The device has let go of what it was given.
    for part in parts {
        part.try_thaw().expect("nobody else holds the part");
    }

    // Beyond the end is an error, now or later, and says so.
    let mut buf = pool.get(8192).unwrap();
    let beyond = device.read_now(2, 4096, &mut buf).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::UnexpectedEof);
    let beyond = read(&mut device, 2, 4096, pool.get(8192).unwrap());
    assert_eq!(beyond.unwrap_err(), ErrorKind::UnexpectedEof);

    many_at_once(&mut device, &pool);

    // A file of that number is replaced by zeros.
    write(&mut device, 2, 0, &[slice_of(&pool, 5, 4096)]);
    prepare(&mut device, 2, 4096);
    assert_eq!(device.list().unwrap()[2], (2, 4096));
    let again = read(&mut device, 2, 0, pool.get(4096).unwrap()).unwrap();
    assert!(again.iter().all(|byte| *byte == 0));

    recycles_and_removes(&mut device, &pool);

    // All of it is there for the next one.
    drop(device);
    let mut device = subject.open();
    assert_eq!(device.list().unwrap(), [(0, 8192), (1, LEN), (2, 4096)]);
    let mut buf = pool.get(8192).unwrap();
    device.read_now(SUPERBLOCK, 0, &mut buf).unwrap();
    assert_eq!(&*buf, &*superblock);
}

/// A file gets another number with its front zeroed and the rest as it is; one removed is gone.
fn recycles_and_removes<D: Device>(device: &mut D, pool: &Pool) {
    prepare(device, 7, 64 << 10);
    let kept = slice_of(pool, 11, 60 << 10);
    write(device, 7, 0, &[slice_of(pool, 10, 4096)]);
    write(device, 7, 4096, std::slice::from_ref(&kept));
    device.recycle(7, 9);
    match finish(device) {
        Completion::Prepared { file: 9, result: Ok(()) } => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(device.list().unwrap().last(), Some(&(9, 64 << 10)));
    let all = read(device, 9, 0, pool.get(64 << 10).unwrap()).unwrap();
    assert!(all[..4096].iter().all(|byte| *byte == 0));
    assert_eq!(&all[4096..], &*kept);
    assert!(read(device, 7, 0, pool.get(4096).unwrap()).is_err(), "the old number is nobody's");
    // It is written like any other.
    write(device, 9, 0, &[slice_of(pool, 12, 4096)]);
    let front = read(device, 9, 0, pool.get(4096).unwrap()).unwrap();
    assert_eq!(&*front, &*slice_of(pool, 12, 4096));
    device.recycle(77, 78);
    match finish(device) {
        Completion::Prepared { file: 78, result: Err(_) } => {}
        other => panic!("{other:?}"),
    }
    device.remove(9);
    match finish(device) {
        Completion::Removed { file: 9, result: Ok(()) } => {}
        other => panic!("{other:?}"),
    }
    assert!(device.list().unwrap().iter().all(|(file, _)| ![7, 9, 77, 78].contains(file)));
}

/// Reads, a write and a file in the making, all in flight together.
fn many_at_once<D: Device>(device: &mut D, pool: &Pool) {
    device.prepare(3, 2 << 20);
    let value = slice_of(pool, 1000, 64 << 10);
    device.write_flush(7, 1, 2 << 20, std::slice::from_ref(&value));
    for token in 0..100 {
        device.read(token, 1, 4096 * (token + 1), pool.get(4096).unwrap());
    }
    let (mut reads, mut written, mut made) = (BTreeMap::new(), false, false);
    let mut completions = Vec::new();
    while reads.len() < 100 || !written || !made {
        device.submit();
        device.settle().unwrap();
        device.poll(&mut completions);
        for completion in completions.drain(..) {
            match completion {
                Completion::Written { token: 7, result: Ok(()) } => written = true,
                Completion::Prepared { file: 3, result: Ok(()) } => made = true,
                Completion::Read { token, buf, result: Ok(()) } => {
                    assert!(reads.insert(token, buf).is_none(), "a read completes once");
                }
                other => panic!("{other:?}"),
            }
        }
    }
    let first = bytes_of(0, device.sector());
    assert_eq!(&reads[&0][..first.len()], &first[..]);
    let back = read(device, 1, 2 << 20, pool.get(64 << 10).unwrap()).unwrap();
    assert_eq!(&*back, &*value);
    device.prepare(3, 4096);
    finish(device);
    // Leave three files for the caller.
    assert_eq!(device.list().unwrap().len(), 4);
}

struct InMemory(SharedDisk);

impl Subject for InMemory {
    type Device = MemoryDevice;
    fn open(&self) -> MemoryDevice {
        self.0.borrow_mut().remove(3);
        MemoryDevice::new(self.0.clone())
    }
}

#[test]
fn memory_conforms() {
    conforms(&InMemory(Disk::new(1 << 30, Timing::Immediate)));
    conforms(&InMemory(Disk::new(1 << 30, Timing::Stepped)));
    let latency = |_| 1000;
    conforms(&InMemory(Disk::new(1 << 30, Timing::Timed(Box::new(latency)))));
}

struct Either(std::path::PathBuf);

impl Subject for Either {
    type Device = FileDevice;
    fn open(&self) -> FileDevice {
        let _ = std::fs::remove_file(self.0.join("segment-00000003.log"));
        FileDevice::open(&self.0, &UringConfig::default()).unwrap()
    }
}

#[test]
fn whichever_file_device_there_is_conforms() {
    let path = scratch("either");
    conforms(&Either(path.clone()));
    std::fs::remove_dir_all(path).unwrap();
}

struct Plain(std::path::PathBuf);

impl Subject for Plain {
    type Device = SyncDevice;
    fn open(&self) -> SyncDevice {
        let _ = std::fs::remove_file(self.0.join("segment-00000003.log"));
        SyncDevice::open(&self.0).unwrap()
    }
}

#[test]
fn sync_conforms() {
    let path = scratch("sync");
    conforms(&Plain(path.clone()));
    std::fs::remove_dir_all(path).unwrap();
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;
    use racos_storage::device::FlushMethod;
    use racos_storage::device::Sleep;
    use racos_storage::device::picture::PictureDevice;
    use racos_storage::device::uring::UringDevice;
    use racos_storage::survey::{Depth, survey};
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};

    /// `None`, with a message, where the kernel or the file system has no direct writes.
    fn uring(path: &Path, flush: FlushMethod) -> Option<UringDevice> {
        match UringDevice::open(path, &UringConfig { flush, ..UringConfig::default() }) {
            Ok(device) => Some(device),
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                eprintln!("skipped: {error}");
                let _ = std::fs::remove_dir_all(path);
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    struct Direct(PathBuf, FlushMethod);

    impl Subject for Direct {
        type Device = UringDevice;
        fn open(&self) -> UringDevice {
            let _ = std::fs::remove_file(self.0.join("segment-00000003.log"));
            uring(&self.0, self.1).expect("it opened before")
        }
    }

    #[test]
    fn uring_conforms_with_every_flush_method() {
        for flush in [FlushMethod::Linked, FlushMethod::Dsync, FlushMethod::Sync] {
            let path = scratch(&format!("uring-{flush:?}"));
            if let Some(device) = uring(&path, flush) {
                println!("{}", device.describe());
                drop(device);
                conforms(&Direct(path.clone(), flush));
                std::fs::remove_dir_all(path).unwrap();
            }
        }
    }

    /// A block device, or an image of one.
    struct Whole(PathBuf, FlushMethod);

    impl Subject for Whole {
        type Device = UringDevice;
        fn open(&self) -> UringDevice {
            let config = UringConfig { flush: self.1, ..UringConfig::default() };
            let mut device = UringDevice::open_disk(&self.0, &config).unwrap();
            if device.list().unwrap().iter().any(|(file, _)| *file == 3) {
                device.remove(3);
                finish(&mut device);
            }
            device
        }
    }

    /// What an image shows, and what a log on it does.
    fn whole_disk_conforms(path: &Path) {
        conforms(&Whole(path.to_owned(), FlushMethod::Linked));
        for file in 1..3 {
            let mut device = Whole(path.to_owned(), FlushMethod::Linked).open();
            device.remove(file);
            finish(&mut device);
        }
        for flush in [FlushMethod::Linked, FlushMethod::Dsync, FlushMethod::Sync] {
            let mut device = Whole(path.to_owned(), flush).open();
            println!("{}", device.describe());
            prepare(&mut device, 5, 1 << 20);
            let parts = [slice_of(&pool(), 3, 4096), slice_of(&pool(), 4, 512)];
            write(&mut device, 5, 8192, &parts);
            let back = read(&mut device, 5, 8192, pool().get(4608).unwrap()).unwrap();
            assert!(back[..4096] == parts[0][..] && back[4096..] == parts[1][..]);
            let error = read(&mut device, 5, 1 << 20, pool().get(4096).unwrap());
            assert_eq!(error.unwrap_err(), ErrorKind::UnexpectedEof, "not the next file's bytes");
            device.remove(5);
            finish(&mut device);
        }
    }

    fn image(name: &str, bytes: u64) -> Option<PathBuf> {
        let path = scratch(name);
        std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        match UringDevice::open_disk(&path, &UringConfig::default()) {
            Ok(_) => Some(path),
            Err(error) => {
                eprintln!("skipped: {error}");
                let _ = std::fs::remove_file(path);
                None
            }
        }
    }

    #[test]
    fn an_image_of_a_disk_conforms() {
        let Some(path) = image("image", 64 << 20) else { return };
        whole_disk_conforms(&path);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_log_on_an_image_of_a_disk_is_found_again_and_makes_its_segments_there() {
        let Some(path) = image("log-image", 64 << 20) else { return };
        let config = small();
        let mut device = UringDevice::open_disk(&path, &UringConfig::default()).unwrap();
        format_on(&mut device, &config).unwrap();
        let mut opened = open_on(device, &config).unwrap();
        for seed in 0..100 {
            put(&mut opened, seed, 300, if seed % 3 == 2 { 5000 } else { 20 });
        }
        drop(opened);
        let device = UringDevice::open_disk(&path, &UringConfig::default()).unwrap();
        let opened = open_on(device, &config).unwrap();
        assert_eq!((opened.entries.len(), opened.found.boot), (100, 2));
        drop(opened);
        let mut picture = PictureDevice::open(&path).unwrap();
        let found = survey(&mut picture, &pool(), Depth::Payloads, &mut |_, _| {}).unwrap();
        assert_eq!((found.damage.len(), picture.in_use()), (0, false));
        let records = found.segments.iter().flat_map(|look| look.kinds.values());
        assert_eq!(records.map(|tally| tally.records).sum::<u64>(), 100);
        drop(picture);
        std::fs::remove_file(path).unwrap();
    }

    /// A loop device on a file; gone when dropped.
    struct Loop {
        device: String,
        file: PathBuf,
    }

    impl Loop {
        fn new(name: &str) -> Option<Loop> {
            let file = scratch(name);
            std::fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
            let made = std::process::Command::new("losetup")
                .args(["--find", "--show"])
                .arg(&file)
                .output();
            let device = made.ok().filter(|made| made.status.success());
            let device =
                device.map(|made| String::from_utf8_lossy(&made.stdout).trim().to_string());
            match device {
                Some(device) => Some(Loop { device, file }),
                None => {
                    eprintln!("skipped: only root can make loop devices, with losetup");
                    let _ = std::fs::remove_file(file);
                    None
                }
            }
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = std::process::Command::new("losetup").args(["--detach", &self.device]).status();
            let _ = std::fs::remove_file(&self.file);
        }
    }

    #[test]
    fn a_block_device_conforms_and_one_with_a_file_system_is_refused() {
        let Some(looped) = Loop::new("loop") else { return };
        let path = Path::new(&looped.device);
        whole_disk_conforms(path);
        let either = FileDevice::open(path, &UringConfig::default()).unwrap();
        assert!(either.describe().contains(&looped.device), "{}", either.describe());
        let second = FileDevice::open(path, &UringConfig::default()).err().unwrap();
        assert_eq!(second.kind(), ErrorKind::ResourceBusy, "{second}");
        drop(either);
        let made = std::process::Command::new("mkfs.ext4").args(["-q", "-F"]).arg(path).status();
        if made.is_ok_and(|made| made.success()) {
            let refused =
                FileDevice::open(path, &UringConfig::default()).err().unwrap().to_string();
            assert!(refused.contains("ext4") && refused.contains("--take-device"), "{refused}");
            let take = UringConfig { take_device: true, ..UringConfig::default() };
            assert!(FileDevice::open(path, &take).is_ok());
        }
    }

    #[test]
    fn a_sleeper_wakes_for_its_socket_its_disk_and_its_time() {
        let path = scratch("sleep");
        let Some(mut device) = uring(&path, FlushMethod::Linked) else {
            return;
        };
        let pool = Pool::new(1 << 20);
        let (mut near, far) = UnixStream::pair().unwrap();
        let fds = [far.as_raw_fd()];
        let mut completions = Vec::new();

        // Time.
        device.wait(&fds, Some(1_000_000)).unwrap();
        device.poll(&mut completions);
        assert!(completions.is_empty());

        // Socket: would sleep for ever if the poll armed by the first wait were lost.
        near.write_all(b"x").unwrap();
        device.wait(&fds, None).unwrap();
        device.poll(&mut completions);
        // Still readable: the poll is armed again and fires at once.
        device.wait(&fds, None).unwrap();
        device.poll(&mut completions);
        assert!(completions.is_empty());

        // Disk, with a socket that stays silent.
        let (_silent, other) = UnixStream::pair().unwrap();
        device.write_now(SUPERBLOCK, 0, &slice_of(&pool, 1, 4096)).unwrap();
        device.read(5, SUPERBLOCK, 0, pool.get(4096).unwrap());
        while completions.is_empty() {
            device.wait(&[other.as_raw_fd()], None).unwrap();
            device.poll(&mut completions);
        }
        assert!(matches!(completions[0], Completion::Read { token: 5, result: Ok(()), .. }));
        drop(device);
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn a_device_dropped_with_work_in_flight_waits_for_it() {
        let path = scratch("drop");
        let Some(mut device) = uring(&path, FlushMethod::Linked) else {
            return;
        };
        let pool = Pool::new(1 << 24);
        prepare(&mut device, 1, 1 << 20);
        device.prepare(2, 1 << 20);
        device.write_flush(1, 1, 0, &[slice_of(&pool, 1, 65536)]);
        for token in 0..10 {
            device.read(token, 1, 65536 * token, pool.get(65536).unwrap());
        }
        device.submit();
        drop(device);
        assert_eq!(pool.used(), 0, "every buffer came back");
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn the_log_runs_on_the_real_disk_and_reads_back_what_it_wrote() {
        let path = scratch("log");
        let config = small();
        let Some(mut device) = uring(&path, FlushMethod::Linked) else {
            return;
        };
        format_on(&mut device, &config).unwrap();
        let mut opened = open_on(device, &config).unwrap();
        for seed in 0..60 {
            put(&mut opened, seed, 100, (seed as usize * 517) % 20_000);
        }
        drop(opened);
        // The oracle sees the same records in the same files.
        let mut opened = open_on(SyncDevice::open(&path).unwrap(), &config).unwrap();
        assert_eq!(opened.entries.len(), 60);
        for (seed, entry) in opened.entries.clone().iter().enumerate() {
            assert_eq!(entry.head, bytes_of(seed as u64 + 1, 100));
            let body = common::read(&mut opened.log, entry.body_place, Some(entry.crc)).unwrap();
            assert_eq!(&*body, &bytes_of(seed as u64, (seed * 517) % 20_000));
        }
        drop(opened);
        std::fs::remove_dir_all(path).unwrap();
    }
}

/// tests PROTOCOL 10-b
#[test]
fn a_directory_in_use_is_refused_with_its_name() {
    let path = scratch("lock");
    let first = SyncDevice::open(&path).unwrap();
    let error = SyncDevice::open(&path).err().expect("the directory is taken").to_string();
    assert!(error.contains("in use by another process"), "{error}");
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    drop(first);
    SyncDevice::open(&path).unwrap();
    std::fs::remove_dir_all(path).unwrap();
}

#[test]
fn a_file_whose_making_was_cut_short_is_not_a_segment() {
    let path = scratch("partial");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("segment-00000004.new"), [0; 4096]).unwrap();
    let mut device = SyncDevice::open(&path).unwrap();
    assert_eq!(device.list().unwrap(), []);
    assert!(!path.join("segment-00000004.new").exists());
    drop(device);
    std::fs::remove_dir_all(path).unwrap();
}
