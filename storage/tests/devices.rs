//! One suite that every device passes, and what only real directories can show.

mod common;

use common::conformance::*;
use common::*;
use racos_buffer::Pool;
use racos_storage::device::file::FileDevice;
use racos_storage::device::memory::{Disk, MemoryDevice, Timing};
use racos_storage::device::sync::SyncDevice;
use racos_storage::device::{Completion, Device, SUPERBLOCK, UringConfig};
use std::io::ErrorKind;

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
    use common::conformance::{self, whole::whole_disk_conforms};
    use racos_buffer::{ARENA_BYTES, Slice};
    use racos_storage::device::FlushMethod;
    use racos_storage::device::Sleep;
    use racos_storage::device::picture::PictureDevice;
    use racos_storage::device::registered::Fixed;
    use racos_storage::device::uring::UringDevice;
    use racos_storage::survey::{Depth, survey};
    use racos_storage::{Event, LogConfig};
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};

    /// `None`, with a message, where the kernel or the file system has no direct writes.
    fn uring(path: &Path, flush: FlushMethod) -> Option<UringDevice> {
        uring_as(
            path,
            &UringConfig { flush, registered_bytes_max: usize::MAX, ..UringConfig::default() },
        )
    }

    fn uring_as(path: &Path, config: &UringConfig) -> Option<UringDevice> {
        match UringDevice::open(path, config) {
            Ok(device) => Some(device),
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                eprintln!("skipped: {error}");
                let _ = std::fs::remove_dir_all(path);
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    struct Direct(PathBuf, UringConfig);

    impl Subject for Direct {
        type Device = UringDevice;
        fn open(&self) -> UringDevice {
            let _ = std::fs::remove_file(self.0.join("segment-00000003.log"));
            uring_as(&self.0, &self.1).expect("it opened before")
        }
    }

    /// Registered buffers: all, no more than one arena, none.
    const REGISTERED: [usize; 3] = [usize::MAX, ARENA_BYTES, 0];

    #[test]
    fn uring_conforms_with_every_flush_method_and_with_and_without_registered_buffers() {
        for flush in [FlushMethod::Linked, FlushMethod::Dsync, FlushMethod::Sync] {
            for registered_bytes_max in REGISTERED {
                let path = scratch(&format!("uring-{flush:?}-{registered_bytes_max}"));
                let config = UringConfig { flush, registered_bytes_max, ..UringConfig::default() };
                if let Some(device) = uring_as(&path, &config) {
                    println!("{}", device.describe());
                    drop(device);
                    conforms(&Direct(path.clone(), config));
                    std::fs::remove_dir_all(path).unwrap();
                }
            }
        }
    }

    /// Writes and reads values in several arenas, and some that are in none; what came back, and what
    /// was done by fixed operations.
    fn values_there_and_back(path: &Path, config: &UringConfig) -> Option<(Vec<Slice>, Fixed)> {
        let mut device = uring_as(path, config)?;
        let pool = Pool::with_arenas(64 << 20);
        prepare(&mut device, 1, 16 << 20);
        let (mut back, mut offset) = (Vec::new(), 0);
        let mut held = Vec::new();
        for (seed, len) in [4096, 64 << 10, 1 << 20, 2 << 20, 300 << 10, 2 << 20].iter().enumerate()
        {
            let value = slice_of(&pool, seed as u64, *len);
            // One of them is written in two parts, as every group with a large body is.
            let parts = match seed {
                1 => vec![value.slice(0..4096), value.slice(4096..*len)],
                _ => vec![value.clone()],
            };
            write(&mut device, 1, offset, &parts);
            back.push(conformance::read(&mut device, 1, offset, pool.get(*len).unwrap()).unwrap());
            assert!(back[seed][..] == value[..], "{len} bytes");
            offset += value.len() as u64;
            held.push(value);
        }
        let fixed = device.fixed();
        drop(device);
        std::fs::remove_dir_all(path).unwrap();
        Some((back, fixed))
    }

    #[test]
    fn fixed_operations_are_used_where_buffers_are_registered_and_give_the_same_bytes() {
        let mut found = Vec::new();
        for registered_bytes_max in REGISTERED {
            let path = scratch(&format!("fixed-{registered_bytes_max}"));
            let config = UringConfig { registered_bytes_max, ..UringConfig::default() };
            let Some(values) = values_there_and_back(&path, &config) else { return };
            found.push(values);
        }
        let [(all, all_fixed), (some, some_fixed), (none, none_fixed)] = &found[..] else {
            unreachable!("one for each")
        };
        let bytes =
            |values: &[Slice]| values.iter().map(|value| value.to_vec()).collect::<Vec<_>>();
        assert!(bytes(all) == bytes(none) && bytes(some) == bytes(none));
        // All but those of 4 KiB, which are in no arena, and the write of two parts. The pool has six
        // arenas and what is held fills five and a half.
        assert_eq!((all_fixed.reads, all_fixed.writes), (5, 4), "{all_fixed:?}");
        assert!(all_fixed.arenas > 3, "{all_fixed:?}");
        assert_eq!(some_fixed.arenas, 1);
        assert!(some_fixed.reads > 0 && some_fixed.reads < 5, "{some_fixed:?}");
        assert_eq!(*none_fixed, Fixed::default());
    }

    #[test]
    fn the_log_reads_and_writes_by_fixed_operations() {
        let path = scratch("log-fixed");
        let config = LogConfig {
            segment_len: 4 << 20,
            inline_bytes_max: 256 << 10,
            group_bytes_max: 2 << 20,
            queue_bytes_max: 4 << 20,
            ..small()
        };
        let Some(mut device) = uring(&path, FlushMethod::Linked) else { return };
        format_on(&mut device, &config).unwrap();
        let mut opened = open_on(device, &config).unwrap();
        let before = opened.log.device_mut().fixed();
        let mut places = Vec::new();
        for seed in 0..8 {
            let events = put(&mut opened, seed, 100, if seed % 2 == 0 { 500 } else { 400 << 10 });
            places.extend(events.into_iter().filter_map(|event| match event {
                Event::Placed { body, body_crc, .. } => Some((seed, body, body_crc)),
                _ => None,
            }));
        }
        // Groups of short records are one part; a large body makes a group of several. The first group
        // of a segment has the segment's head before it.
        let written = opened.log.device_mut().fixed().writes - before.writes;
        assert!((2..=4).contains(&written), "{written}");
        assert_eq!(places.len(), 8);
        for (seed, place, crc) in places {
            let len = if seed % 2 == 0 { 500 } else { 400 << 10 };
            let body = common::read(&mut opened.log, place, Some(crc)).unwrap();
            assert!(*body == bytes_of(seed, len)[..], "record {seed}");
        }
        assert_eq!(opened.log.device_mut().fixed().reads - before.reads, 4, "the large ones");
        drop(opened);
        // The restart reads windows of the log so, too.
        let mut opened = open_on(uring(&path, FlushMethod::Linked).unwrap(), &config).unwrap();
        assert_eq!(opened.entries.len(), 8);
        let fixed = opened.log.device_mut().fixed();
        assert!(fixed.reads > 0, "{fixed:?}");
        drop(opened);
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn where_others_compute_the_caller_flushes_itself() {
        let path = scratch("uring-disturbed");
        let Some(mut device) = uring(&path, FlushMethod::Dsync) else { return };
        let pool = Pool::new(1 << 20);
        let block = pool.copy(&[7; 4096]).unwrap();
        device.write_now(SUPERBLOCK, 0, &block).unwrap();
        let mut done = Vec::new();
        device.write_flush(1, SUPERBLOCK, 0, std::slice::from_ref(&block));
        device.poll(&mut done);
        assert!(done.is_empty(), "nothing was handed to the kernel yet: {done:?}");
        device.settle().unwrap();
        device.poll(&mut done);
        device.set_disturbed(true);
        device.write_flush(2, SUPERBLOCK, 0, std::slice::from_ref(&block));
        device.poll(&mut done);
        assert!(
            matches!(
                done[..],
                [
                    Completion::Written { token: 1, result: Ok(()) },
                    Completion::Written { token: 2, result: Ok(()) }
                ]
            ),
            "{done:?}"
        );
        drop(device);
        std::fs::remove_dir_all(path).unwrap();
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

    /// The kernel's workers of this thread's rings, by the CPUs that they may run on.
    fn workers_may_run_on() -> Vec<String> {
        let own = std::fs::read_link("/proc/thread-self").unwrap();
        let name = format!("iou-wrk-{}", own.file_name().unwrap().to_str().unwrap());
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let ours = tasks.filter(|task| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
        });
        let status = ours.filter_map(|task| std::fs::read_to_string(task.join("status")).ok());
        let line = |status: String| {
            status
                .lines()
                .find_map(|line| Some(line.strip_prefix("Cpus_allowed_list:")?.trim().into()))
        };
        status.filter_map(line).collect()
    }

    #[test]
    fn workers_stay_on_the_cpus_they_are_given() {
        let path = scratch("workers");
        let Some(device) = uring(&path, FlushMethod::Linked) else { return };
        drop(device);
        let last = std::thread::available_parallelism().unwrap().get() - 1;
        let config = UringConfig { worker_cpus: vec![last], ..UringConfig::default() };
        let mut device = UringDevice::open(&path, &config).unwrap();
        prepare(&mut device, 1, 1 << 20);
        // The flush behind each write is done by a worker.
        (0..20).for_each(|at| write(&mut device, 1, at * 4096, &[slice_of(&pool(), at, 4096)]));
        let found = workers_may_run_on();
        assert!(!found.is_empty(), "flushes are done by workers");
        assert!(found.iter().all(|cpus| *cpus == last.to_string()), "{found:?}");
        drop(device);
        std::fs::remove_dir_all(path).unwrap();
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
        let pool = Pool::with_arenas(64 << 20);
        prepare(&mut device, 1, 1 << 20);
        device.prepare(2, 1 << 20);
        device.write_flush(1, 1, 0, &[slice_of(&pool, 1, 65536)]);
        for token in 0..10 {
            device.read(token, 1, 65536 * token, pool.get(65536).unwrap());
        }
        device.submit();
        assert_eq!(device.fixed().reads, 10, "into registered memory");
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
