//! A real process, killed in mid-work: everything it had reported as flushed is there afterwards.

mod common;

use common::*;
use racos_storage::device::file::FileDevice;
use racos_storage::device::{Sleep, UringConfig};
use racos_storage::{Class, Event, Full, LogConfig, RecordId};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const THIS_TEST: &str = "a_killed_process_loses_nothing_that_it_reported";
const DIRECTORY: &str = "RACOS_STORAGE_KILL_TEST";

fn sizes(id: u64) -> (usize, usize) {
    ((id * 37 % 400) as usize, (id * 997 % 30_000) as usize)
}

fn config() -> LogConfig {
    LogConfig { segment_len: 2 << 20, ..small() }
}

fn device(path: &Path) -> FileDevice {
    FileDevice::open(path, &UringConfig::default()).unwrap()
}

/// What the killed process runs: appends without end and tells what is flushed.
fn append_for_ever(path: &Path) -> ! {
    let mut opened = open_on(device(path), &config()).unwrap();
    let mut out = std::io::stdout();
    let mut events = Vec::new();
    loop {
        for _ in 0..8 {
            let id = opened.log.last_record().0 + 1;
            let (head, body) = sizes(id);
            let body = [slice_of(&opened.pool, id, body)];
            match opened.log.append(id as u8, &bytes_of(id, head), &body, Class::Ordinary) {
                Ok(given) => assert_eq!(given, RecordId(id)),
                Err(full) => {
                    assert!(matches!(full, Full::Preparing | Full::Backlog | Full::Memory));
                    break;
                }
            }
        }
        opened.log.kick();
        opened.log.device_mut().wait(&[], Some(1_000_000)).unwrap();
        opened.log.poll(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Flushed { up_to } => {
                    writeln!(out, "flushed {}", up_to.0).unwrap();
                    out.flush().unwrap();
                }
                Event::Failed(why) => panic!("{why}"),
                _ => {}
            }
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_it_reported() {
    // This program started by itself, below.
    if let Ok(path) = std::env::var(DIRECTORY) {
        append_for_ever(Path::new(&path));
    }
    let path = scratch("kill");
    let config = config();
    format_on(&mut device(&path), &config).unwrap();
    let mut promised = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", THIS_TEST, "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut reports = 0;
        for line in lines {
            // The harness may have put its own words in front.
            let line = line.unwrap();
            let Some((_, number)) = line.split_once("flushed ") else { continue };
            promised = number.parse().unwrap();
            reports += 1;
            if reports == 20 + round * 7 {
                child.kill().unwrap(); // what was written before is still read
            }
        }
        child.wait().unwrap();
        assert!(reports >= 20 + round * 7, "the child ended by itself after {reports} reports");
        let mut opened = open_on(device(&path), &config).unwrap();
        assert!(opened.entries.len() as u64 >= promised, "{} of {promised}", opened.entries.len());
        for (id, entry) in (1..).zip(opened.entries.clone()) {
            let (head, body) = sizes(id);
            assert_eq!((entry.kind, entry.head), (id as u8, bytes_of(id, head)));
            let bytes = read(&mut opened.log, entry.body_place, Some(entry.crc)).unwrap();
            assert_eq!(&*bytes, &bytes_of(id, body), "record {id}");
        }
        assert_eq!(opened.found.boot, 2 * round + 2);
    }
    assert!(promised > 200, "{promised} records were promised in all");
    std::fs::remove_dir_all(path).unwrap();
}
