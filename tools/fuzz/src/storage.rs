//! A disk whose bytes were changed behind the log's back.
//!
//! Rule: the log opens and hands out records without a gap in their numbers, or it refuses with a
//! reason; it never panics, and never hands out more than was written.

use crate::input::Input;
use racos_buffer::Pool;
use racos_storage::device::Device;
use racos_storage::device::memory::{Disk, MemoryDevice, Timing};
use racos_storage::{Class, Full, Identity, Log, LogConfig};

const IDENTITY: Identity = Identity { cluster: 11, node: 3, incarnation: 1, lane: 0, lanes: 1 };
const RECORDS: u64 = 12;
/// Files of the disk that is damaged: the superblock and the first segments.
const FILES: u32 = 5;

type Image = Vec<(u32, Vec<u8>)>;

thread_local! {
    static WRITTEN: Image = written();
}

fn config() -> LogConfig {
    LogConfig {
        segment_len: 64 << 10,
        initial_segments: 2,
        reserve_bytes: 16 << 10,
        free_bytes_min: 0,
        inline_body_max: 2048,
        inline_bytes_max: 16 << 10,
        group_bytes_max: 32 << 10,
        queue_bytes_max: 256 << 10,
        check_payloads: true,
        ..LogConfig::default()
    }
}

fn pool() -> Pool {
    Pool::new(8 << 20)
}

/// A log of a few groups, each a record; some have a body apart.
fn written() -> Image {
    let disk = Disk::new(4 << 20, Timing::Immediate);
    let (pool, config) = (pool(), config());
    let mut device = MemoryDevice::new(disk.clone());
    Log::format(&mut device, &pool, &config, IDENTITY, 7, &mut |_, _| {}).expect("an empty disk");
    drop(device);
    let device = MemoryDevice::new(disk.clone());
    let opened = Log::open(device, pool.clone(), config, IDENTITY, &mut |_| {});
    let (mut log, _) = opened.expect("just formatted");
    let mut events = Vec::new();
    for number in 0..RECORDS {
        let body = vec![number as u8; if number % 4 == 3 { 4000 } else { 40 }];
        let body = [pool.copy(&body).expect("a pool large enough")];
        while let Err(full) = log.append(number as u8, &[1; 100], &body, Class::Ordinary) {
            assert_eq!(full, Full::Preparing);
            log.device_mut().settle().expect("a disk without faults");
            log.poll(&mut events);
        }
        while log.is_busy() {
            log.kick();
            log.submit();
            log.poll(&mut events);
        }
    }
    drop(log);
    disk.borrow_mut().kill(0);
    (0..FILES).filter_map(|file| Some((file, disk.borrow().contents(file)?))).collect()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // File, kind of damage, block, place in it, and what is put there.
    let one = |file, kind, block, at: u16, rest: &[u8]| {
        let mut bytes = vec![file, kind, block];
        bytes.extend(at.to_be_bytes());
        bytes.extend(rest);
        bytes
    };
    let mut seeds = vec![Vec::new()];
    for file in 0..4 {
        seeds.push(one(file, 0, 3, 100, &[]));
        seeds.push(one(file, 1, 2, 0, &[]));
        seeds.push(one(file, 2, 3, 0, &[1]));
        seeds.push(one(file, 3, 1, 8, &[3, 1, 2, 3, 4]));
    }
    seeds
}

pub(crate) fn check(input: &[u8]) {
    let mut input = Input(input);
    let disk = Disk::new(4 << 20, Timing::Immediate);
    let mut image = WRITTEN.with(Clone::clone);
    while !input.0.is_empty() {
        damage(&mut image, &mut input);
    }
    for (file, bytes) in &image {
        disk.borrow_mut().put_file(*file, bytes);
    }
    let mut next = None;
    let mut count = 0;
    let opened = Log::open(MemoryDevice::new(disk), pool(), config(), IDENTITY, &mut |record| {
        assert_eq!(record.id.0, *next.get_or_insert(record.id.0), "records without a gap");
        next = Some(record.id.0 + 1);
        count += 1;
    });
    match opened {
        Ok(_) => assert!(count <= RECORDS, "{count} records of {RECORDS} that were written"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// One change: bytes put anywhere, a block moved, zeros, or a file cut.
fn damage(image: &mut Image, input: &mut Input<'_>) {
    let which = input.below(image.len());
    let (_, bytes) = &mut image[which];
    let kind = input.below(8);
    // Most of what matters is at the start of a block.
    let block = input.below(bytes.len().div_ceil(4096).max(1)) * 4096;
    let at = (block + input.below(4096)).min(bytes.len());
    match kind {
        0 => bytes.truncate(block),
        1 => bytes[at..].iter_mut().take(4096).for_each(|byte| *byte = 0),
        2 => {
            let from = (input.below(16) * 4096).min(bytes.len());
            let moved = bytes[from..].iter().take(4096).copied().collect::<Vec<_>>();
            let room = moved.len().min(bytes.len() - block.min(bytes.len()));
            bytes[block..][..room].copy_from_slice(&moved[..room]);
        }
        _ => {
            let count = 1 + input.below(16);
            let put = input.take(count);
            let room = put.len().min(bytes.len() - at);
            bytes[at..][..room].copy_from_slice(&put[..room]);
        }
    }
}
