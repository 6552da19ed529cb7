//! A real block device: a loop device, which only root can make.
//!
//! Alone in its process: it starts others, and a process between its birth and its own program holds a
//! copy of every lock that this one holds.
#![cfg(target_os = "linux")]

mod common;

use common::conformance::whole::whole_disk_conforms;
use common::scratch;
use racos_storage::device::UringConfig;
use racos_storage::device::file::FileDevice;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A loop device on a file; gone when dropped.
struct Loop {
    device: String,
    file: PathBuf,
}

impl Loop {
    fn new(name: &str) -> Option<Loop> {
        let file = scratch(name);
        std::fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
        let made =
            std::process::Command::new("losetup").args(["--find", "--show"]).arg(&file).output();
        let device = made.ok().filter(|made| made.status.success());
        let device = device.map(|made| String::from_utf8_lossy(&made.stdout).trim().to_string());
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
        let refused = FileDevice::open(path, &UringConfig::default()).err().unwrap().to_string();
        assert!(refused.contains("ext4") && refused.contains("--take-device"), "{refused}");
        let take = UringConfig { take_device: true, ..UringConfig::default() };
        assert!(FileDevice::open(path, &take).is_ok());
    }
}
