//! The log's promises on the simulated disk.

mod common;

use common::*;
use racos_storage::device::memory::{MemoryDevice, Timing};
use racos_storage::{Case, Class, Event, Full, Log, LogError, Place, ReadRefused, RecordId};

fn flushed(events: &[Event]) -> Option<RecordId> {
    events.iter().rev().find_map(|event| match event {
        Event::Flushed { up_to } => Some(*up_to),
        _ => None,
    })
}

fn bodies(events: &[Event]) -> Vec<(Place, u32)> {
    let places = events.iter().filter_map(|event| match event {
        Event::Placed { body, body_crc, .. } => Some((*body, *body_crc)),
        _ => None,
    });
    places.collect()
}

#[test]
fn what_was_flushed_is_there_after_reopening_in_order() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    assert_eq!((opened.found.boot, opened.found.last_record), (1, RecordId(0)));
    let sizes = [(10, 0), (0, 5), (300, 2047), (0, 2048), (7, 9000), (1, 20_000), (0, 0)];
    for round in 0..20 {
        for (index, (head, body)) in sizes.iter().enumerate() {
            let events = put(&mut opened, round * 10 + index as u64, *head, *body);
            let placed = bodies(&events);
            assert_eq!(placed.len(), 1);
            let bytes = read(&mut opened.log, placed[0].0, Some(placed[0].1)).unwrap();
            assert_eq!(&*bytes, &bytes_of(round * 10 + index as u64, *body));
        }
    }
    assert!(opened.log.counters().segments_prepared > 5, "the workload crossed segments");
    drop(opened);
    disk.borrow_mut().kill(1);
    let mut opened = open(&disk, &config).unwrap();
    assert_eq!(opened.found.boot, 2);
    assert_eq!(opened.entries.len(), 140);
    for (index, entry) in opened.entries.clone().iter().enumerate() {
        let (round, (head, body)) = (index as u64 / 7, sizes[index % 7]);
        let seed = round * 10 + index as u64 % 7;
        assert_eq!((entry.kind, &entry.head), (seed as u8, &bytes_of(seed + 1, head)));
        let bytes = read(&mut opened.log, entry.body_place, Some(entry.crc)).unwrap();
        assert_eq!(&*bytes, &bytes_of(seed, body));
        if let Some(inline) = &entry.body {
            assert_eq!(inline, &bytes_of(seed, body));
        }
    }
}

#[test]
fn what_queues_during_a_flush_goes_with_the_next_one() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    disk.borrow_mut().freeze(true);
    opened.log.append(1, b"a", &[], Class::Ordinary).unwrap();
    opened.log.kick();
    for _ in 0..50 {
        opened.log.append(1, b"b", &[], Class::Ordinary).unwrap();
        opened.log.kick();
    }
    disk.borrow_mut().freeze(false);
    let events = drain(&mut opened.log);
    assert_eq!(opened.log.counters().flushes, 2);
    let placed = events.iter().take_while(|event| matches!(event, Event::Placed { .. })).count();
    assert_eq!(placed, 1, "a record is placed before the flush that covers it is reported");
    assert_eq!(flushed(&events), Some(RecordId(51)));
}
