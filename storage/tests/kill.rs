//! A real process, killed in mid-work: everything it had reported as flushed is there afterwards.

mod common;

use common::store::{STATE, Store};
use common::*;
use racos_storage::device::FileId;
use racos_storage::device::file::FileDevice;
use racos_storage::device::{Sleep, UringConfig};
use racos_storage::{Class, Event, Full, Log, LogConfig, Mark, RecordId};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const THIS_TEST: &str = "a_killed_process_loses_nothing_that_it_reported";
const DIRECTORY: &str = "RACOS_STORAGE_KILL_TEST";

fn sizes(id: u64) -> (usize, usize) {
    ((id * 37 % 400) as usize, (id * 997 % 30_000) as usize)
}

fn config() -> LogConfig {
    LogConfig { segment_len: 2 << 20, ..small() }
}

/// A child of the other test that is forked and not its own program yet holds what was open here.
fn device(path: &Path) -> FileDevice {
    for _ in 0..5000 {
        match FileDevice::open(path, &UringConfig::default()) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(1));
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("{} stays in use", path.display());
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

/// Runs a test of this program by itself in a directory, and kills it when it has said a word with a
/// number so many times; the last number.
fn killed(test: &str, path: &Path, word: &str, reports_max: u64) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut reports, mut last) = (0, None);
    for line in lines {
        // The harness may have put its own words in front.
        let line = line.unwrap();
        let Some((_, number)) = line.split_once(word) else { continue };
        last = Some(number.parse().unwrap());
        reports += 1;
        if reports == reports_max {
            child.kill().unwrap(); // what was written before is still read
        }
    }
    child.wait().unwrap();
    assert!(reports >= reports_max, "the child ended by itself after {reports} reports");
    last
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
        promised = killed(THIS_TEST, &path, "flushed ", 20 + round * 7).unwrap_or(promised);
        let mut opened = open_on(device(&path), &config).unwrap();
        assert!(opened.entries.len() as u64 >= promised, "{} of {promised}", opened.entries.len());
        for (id, entry) in (1..).zip(opened.entries.clone()) {
            let (head, body) = sizes(id);
            assert_eq!((entry.kind, entry.head), (id as u8, bytes_of(id, head)));
            let bytes = read(&mut opened.log, entry.body_place, Some(entry.crc)).unwrap();
            assert_eq!(&*bytes, &bytes_of(id, body), "record {id}");
        }
        assert_eq!(u64::from(opened.found.boot), 2 * round + 2);
    }
    assert!(promised > 200, "{promised} records were promised in all");
    std::fs::remove_dir_all(path).unwrap();
}

const UPKEEP_TEST: &str =
    "a_process_killed_while_it_marks_and_recycles_loses_nothing_that_it_reported";
/// Puts from one mark to the next.
const PUTS_A_MARK: u64 = 150;

fn open_store(path: &Path) -> (Log<FileDevice>, Store) {
    let mut store = Store::default();
    let log = Log::open_with(device(path), pool(), config(), IDENTITY, &mut store);
    (log.unwrap().0, store)
}

/// What the killed process runs: puts without end, a mark now and then, and every file behind the
/// marks used again; it tells which put is flushed.
fn put_and_recycle_for_ever(path: &Path) -> ! {
    let (mut log, mut store) = open_store(path);
    let (pool, mut out, mut events) = (pool(), std::io::stdout(), Vec::new());
    let mut puts: VecDeque<(RecordId, u64)> = VecDeque::new();
    let mut state: Option<(RecordId, Mark)> = None;
    let (mut marking, mut marked_at) = (false, store.next);
    loop {
        for _ in 0..8 {
            let number = store.next;
            let body = [slice_of(&pool, number, sizes(number).1)];
            let head = number.to_le_bytes();
            let Ok(id) = log.append_until(1, &head, &body, Class::Ordinary, number) else { break };
            store.put(number);
            puts.push_back((id, number));
        }
        let due = store.next >= marked_at + PUTS_A_MARK && state.is_none() && !marking;
        if due && let Some(mark) = log.find_mark(log.marks()[0].tag + 1, store.next) {
            let body = [pool.copy(&store.state()).unwrap()];
            let head = store.next.to_le_bytes();
            if let Ok(id) = log.append_until(STATE, &head, &body, Class::Ordinary, 0) {
                (state, marked_at) = (Some((id, mark)), store.next);
            }
        }
        log.kick();
        log.device_mut().wait(&[], Some(1_000_000)).unwrap();
        log.poll(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Flushed { up_to } => {
                    if let Some((_, mark)) = state.take_if(|(id, _)| *id <= up_to) {
                        log.set_mark(mark);
                        marking = true;
                    }
                    let mut flushed = None;
                    while let Some((_, number)) = puts.pop_front_if(|(id, _)| *id <= up_to) {
                        flushed = Some(number);
                    }
                    if let Some(number) = flushed {
                        writeln!(out, "put {number}").unwrap();
                        out.flush().unwrap();
                    }
                }
                Event::Marked { .. } => {
                    marking = false;
                    let behind: Vec<FileId> = log.segments_behind().map(|(file, _)| file).collect();
                    behind.into_iter().for_each(|file| assert!(log.give_back(file)));
                }
                Event::Failed(why) => panic!("{why}"),
                _ => {}
            }
        }
    }
}

#[test]
fn a_process_killed_while_it_marks_and_recycles_loses_nothing_that_it_reported() {
    // This program started by itself, below.
    if let Ok(path) = std::env::var(DIRECTORY) {
        put_and_recycle_for_ever(Path::new(&path));
    }
    let path = scratch("kill-upkeep");
    format_on(&mut device(&path), &config()).unwrap();
    for round in 0..8 {
        let promised = killed(UPKEEP_TEST, &path, "put ", 120 + round * 40).unwrap();
        let (log, store) = open_store(&path);
        assert!(store.next > promised, "round {round}: put {promised} is gone of {}", store.next);
        let keys = (store.next.saturating_sub(10)..store.next).map(|number| (number % 10, number));
        assert_eq!(store.keys, keys.collect(), "round {round}");
        if round > 2 {
            assert!(log.marks()[0].tag > 0, "no mark was set");
        }
    }
    let (log, store) = open_store(&path);
    assert!(log.marks()[0].segment() > 3, "{:?}", log.marks());
    // Some MB were written for each 2 MiB file: most of them again and again.
    let files = log.file_bytes() >> 20;
    let written: u64 = (0..store.next).map(|number| sizes(number).1 as u64).sum::<u64>() >> 20;
    assert!(written > 3 * files, "{written} MiB were put into {files} MiB of files");
    drop(log);
    std::fs::remove_dir_all(path).unwrap();
}
