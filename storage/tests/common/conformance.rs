//! One suite that every device passes.
#![allow(dead_code)]

use super::*;
use racos_buffer::{Buf, Pool, Slice};
use racos_storage::device::{Completion, Device, PARTS_MAX, SUPERBLOCK};
use std::collections::BTreeMap;
use std::io::ErrorKind;

pub const LEN: u64 = 6 << 20;

/// A device with a way to have another one on the same files.
pub trait Subject {
    type Device: Device;
    fn open(&self) -> Self::Device;
}

pub fn finish<D: Device>(device: &mut D) -> Completion {
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

pub fn prepare<D: Device>(device: &mut D, file: u32, len: u64) {
    device.prepare(file, len);
    match finish(device) {
        Completion::Prepared { file: made, result: Ok(()) } => assert_eq!(made, file),
        other => panic!("{other:?}"),
    }
}

pub fn write<D: Device>(device: &mut D, file: u32, offset: u64, parts: &[Slice]) {
    device.write_flush(offset + 1, file, offset, parts);
    match finish(device) {
        Completion::Written { token, result: Ok(()) } => assert_eq!(token, offset + 1),
        other => panic!("{other:?}"),
    }
}

pub fn read<D: Device>(
    device: &mut D,
    file: u32,
    offset: u64,
    buf: Buf,
) -> Result<Slice, ErrorKind> {
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
pub fn conforms<S: Subject>(subject: &S) {
    let pool = Pool::with_arenas(64 << 20);
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
pub fn recycles_and_removes<D: Device>(device: &mut D, pool: &Pool) {
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
pub fn many_at_once<D: Device>(device: &mut D, pool: &Pool) {
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

#[cfg(target_os = "linux")]
pub mod whole {
    use super::*;
    use racos_storage::device::uring::UringDevice;
    use racos_storage::device::{FlushMethod, UringConfig};
    use std::path::Path;

    /// A block device, or an image of one.
    pub struct Whole(pub PathBuf, pub FlushMethod);

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
    pub fn whole_disk_conforms(path: &Path) {
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
}
