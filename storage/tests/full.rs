//! A log on a real file system that fills up. Needs root, loop devices and `mkfs`: says so and passes
//! where they are not to be had.

mod common;

use common::*;
use racos_storage::device::file::FileDevice;
use racos_storage::device::{Device, UringConfig};
use racos_storage::{Class, Event, Full, LogConfig};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file system in a file, mounted; gone when it is dropped.
struct Mounted {
    folder: PathBuf,
}

impl Mounted {
    /// `Err`: why it cannot be had here.
    fn new(kind: &str, mib: u64) -> Result<Mounted, String> {
        let folder = scratch(&format!("full-{kind}"));
        std::fs::create_dir_all(folder.join("mnt")).unwrap();
        let mounted = Mounted { folder };
        let image = mounted.folder.join("image");
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let image = image.to_str().unwrap();
        run(&format!("mkfs.{kind}"), &["-q", image])?;
        let place = mounted.path().to_str().unwrap().to_string();
        run("mount", &["-o", "loop", image, &place])?;
        Ok(mounted)
    }

    fn path(&self) -> PathBuf {
        self.folder.join("mnt")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let place = self.path();
        // Not mounted, if making it failed.
        let _ = Command::new("umount").arg(&place).stderr(Stdio::null()).status();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn run(command: &str, arguments: &[&str]) -> Result<(), String> {
    let outcome = Command::new(command).args(arguments).stderr(Stdio::piped()).output();
    let outcome = outcome.map_err(|error| format!("{command}: {error}"))?;
    match outcome.status.success() {
        true => Ok(()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&outcome.stderr).trim())),
    }
}

fn free_bytes(mounted: &Mounted) -> u64 {
    device(&mounted.path().join("probe")).free_bytes().unwrap()
}

fn ballast(mounted: &Mounted, name: &str, bytes: u64) {
    let path = mounted.path().join(name);
    run("fallocate", &["-l", &bytes.to_string(), path.to_str().unwrap()]).unwrap();
}

fn config(free_bytes_min: u64) -> LogConfig {
    LogConfig { segment_len: 2 << 20, reserve_bytes: 256 << 10, free_bytes_min, ..small() }
}

fn device(path: &Path) -> FileDevice {
    FileDevice::open(path, &UringConfig::default()).unwrap()
}

/// Appends until the disk is full; how many records.
fn fill(opened: &mut Opened<FileDevice>) -> u64 {
    let mut records = 0;
    loop {
        let body = [slice_of(&opened.pool, records, 20_000)];
        match opened.log.append(1, b"filler", &body, Class::Ordinary) {
            Ok(_) => records += 1,
            Err(Full::Preparing | Full::Backlog) => {}
            // Being refused, it has tried again to make a segment, which may end well yet.
            Err(Full::Disk) if opened.log.device_mut().settle().is_err() => return records,
            Err(Full::Disk) => {}
            Err(full) => panic!("{full}"),
        }
        let mut events = drain(&mut opened.log);
        // A segment in the making, if one is.
        let _ = opened.log.device_mut().settle();
        opened.log.poll(&mut events);
        for event in events {
            assert!(!matches!(event, Event::Failed(_)), "a full disk stops nothing: {event:?}");
        }
    }
}

fn fills_up_and_recovers(kind: &str, mib: u64, free_bytes_min: u64) {
    let mounted = match Mounted::new(kind, mib) {
        Ok(mounted) => mounted,
        Err(why) => return println!("SKIPPED on {kind}, which needs root and loop devices: {why}"),
    };
    let data = mounted.path().join("data");
    // What is left is for the log, in two halves, whatever the file system takes for itself.
    let half = 14 << 20;
    let free = free_bytes(&mounted);
    ballast(&mounted, "rest", free - free_bytes_min - 2 * half);
    ballast(&mounted, "half", half);
    let config = config(free_bytes_min);
    format_on(&mut device(&data), &config).unwrap();
    let mut opened = open_on(device(&data), &config).unwrap();
    let first = fill(&mut opened);
    assert!(first > 100, "{first} records of 20 KB");
    assert!(opened.log.is_disk_full());
    // Said again and again, and what may use the reserve goes on.
    let body = [slice_of(&opened.pool, 1, 20_000)];
    assert_eq!(opened.log.append(1, b"more", &body, Class::Ordinary), Err(Full::Disk));
    for number in 0..8u64 {
        opened.log.append(2, &number.to_le_bytes(), &[], Class::Urgent).unwrap();
        assert!(drain(&mut opened.log).iter().any(|event| matches!(event, Event::Flushed { .. })));
    }
    // A restart on the full disk is one as any other.
    let found = opened.entries.len() as u64;
    drop(opened);
    let mut opened = open_on(device(&data), &config).unwrap();
    assert_eq!(opened.entries.len() as u64, found + first + 8);
    assert_eq!(fill(&mut opened), 0, "as full as before");
    // Room: it goes on by itself.
    std::fs::remove_file(mounted.path().join("half")).unwrap();
    // Some file systems free it later.
    run("sync", &["-f", mounted.path().to_str().unwrap()]).unwrap();
    let before = std::time::Instant::now();
    while free_bytes(&mounted) < half && before.elapsed().as_secs() < 30 {
        std::thread::yield_now();
    }
    let second = fill(&mut opened);
    assert!(second > first / 2, "{second} records more in as much room again, after {first}");
    let free = opened.log.device_mut().free_bytes().unwrap();
    assert!(free < free_bytes_min + (3 << 20), "{free} bytes are free");
    println!("{kind}: {first} records, then {second} more");
}

#[test]
fn a_full_ext4_refuses_by_name_and_goes_on_when_there_is_room() {
    fills_up_and_recovers("ext4", 48, 0);
}

#[test]
fn a_full_xfs_does_the_same() {
    fills_up_and_recovers("xfs", 320, 4 << 20);
}
