//! The log's promises on the simulated disk.

mod common;

use common::*;
use racos_storage::device::Device;
use racos_storage::device::memory::{MemoryDevice, Timing};
use racos_storage::{Class, Event, Full, LogConfig, Place, ReadRefused, RecordId};

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

/// tests PROTOCOL 4.4-m
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

/// tests PROTOCOL 4.4-a, 4.4-b
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

/// tests PROTOCOL 4.4-c
#[test]
fn a_failed_flush_stops_the_log_for_good() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    put(&mut opened, 1, 10, 10);
    disk.borrow_mut().fail_flush_after(0);
    opened.log.append(1, b"lost", &[], Class::Urgent).unwrap();
    let events = drain(&mut opened.log);
    assert!(matches!(&events[..], [Event::Failed(why)] if why.contains("flush")), "{events:?}");
    let writes = disk.borrow().writes();
    for class in [Class::Ordinary, Class::Urgent] {
        assert_eq!(opened.log.append(1, b"no", &[], class), Err(Full::Stopped));
    }
    opened.log.kick();
    opened.log.idle_confirm();
    let mut events = Vec::new();
    opened.log.poll(&mut events);
    assert!(events.is_empty() && opened.log.is_stopped());
    assert_eq!(disk.borrow().writes(), writes, "a failed flush is never retried");
    assert_eq!(opened.log.flushed_record(), RecordId(1));
}

#[test]
fn on_a_full_disk_urgent_records_and_reads_go_on_and_space_brings_the_rest_back() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    disk.borrow_mut().set_capacity(3 * (64 << 10) + 8192);
    let mut opened = open(&disk, &config).unwrap();
    let mut events = drain(&mut opened.log);
    let body = slice_of(&opened.pool, 3, 3000);
    let mut first = None;
    let full = loop {
        match opened.log.append(1, b"", std::slice::from_ref(&body), Class::Ordinary) {
            Ok(_) => events.extend(drain(&mut opened.log)),
            Err(full) => break full,
        }
        first = first.or(bodies(&events).first().copied());
    };
    assert_eq!(full, Full::Disk);
    assert!(events.iter().any(|event| matches!(event, Event::SpaceLow { .. })));
    let reserve = opened.log.bytes_prepared();
    assert!(reserve >= config.reserve_bytes, "{reserve} bytes are kept for urgent records");
    opened.log.append(2, b"vote", &[], Class::Urgent).unwrap();
    let last = opened.log.last_record();
    assert_eq!(flushed(&drain(&mut opened.log)), Some(last));
    let (place, crc) = first.unwrap();
    assert_eq!(&*read(&mut opened.log, place, Some(crc)).unwrap(), &*body);
    // Still refused, also after reopening; then space returns.
    drop(opened);
    let mut opened = open(&disk, &config).unwrap();
    let again = |opened: &mut Opened<_>| opened.log.append(1, b"", &[], Class::Ordinary);
    assert_eq!(again(&mut opened), Err(Full::Disk));
    disk.borrow_mut().set_capacity(1 << 30);
    assert_eq!(again(&mut opened), Err(Full::Disk), "this one asks for space again");
    let events = drain(&mut opened.log);
    assert!(events.iter().any(|event| matches!(event, Event::SpaceBack)), "{events:?}");
    again(&mut opened).unwrap();
    drain(&mut opened.log);
    // The reserve itself can be used up, and then even urgent records are refused.
    disk.borrow_mut().set_capacity(0);
    loop {
        match opened.log.append(2, b"vote", &[], Class::Urgent) {
            Ok(_) => drop(drain(&mut opened.log)),
            Err(full) => break assert_eq!(full, Full::Disk),
        }
    }
    assert!(opened.log.bytes_prepared() < 4096);
}

/// tests PROTOCOL 9.4-e
/// What makes room may use the space that is to be left free on the disk; ordinary records get none of
/// it, and come back when it is whole again.
#[test]
fn the_space_left_free_is_lent_to_what_makes_room_and_to_nobody_else() {
    let config = LogConfig { free_bytes_min: 512 << 10, ..small() };
    let disk = fresh(&config, Timing::Immediate);
    let used = 2 * u64::from(config.segment_len) + 8192;
    disk.borrow_mut().set_capacity(used + config.free_bytes_min + 3 * (64 << 10));
    let mut opened = open(&disk, &config).unwrap();
    let mut events = Vec::new();
    let mut fill = |opened: &mut Opened<_>, class| {
        let mut records = 0;
        for _ in 0..400 {
            let body = [slice_of(&opened.pool, records, 8000)];
            match opened.log.append(1, b"", &body, class) {
                Ok(_) => records += 1,
                Err(Full::Preparing) => {}
                Err(full) => {
                    assert_eq!(full, Full::Disk);
                    opened.log.poll(&mut events);
                }
            }
            events.extend(drain(&mut opened.log));
            opened.log.poll(&mut events);
        }
        assert!(!events.drain(..).any(|event| matches!(event, Event::Failed(_))));
        records
    };
    assert!(fill(&mut opened, Class::Ordinary) >= 20);
    let free = |opened: &mut Opened<MemoryDevice>| opened.log.device_mut().free_bytes().unwrap();
    assert!((512 << 10..576 << 10).contains(&free(&mut opened)), "{}", free(&mut opened));
    assert_eq!(fill(&mut opened, Class::Ordinary), 0);
    let lent = fill(&mut opened, Class::Upkeep);
    assert!(lent >= 40, "{lent} records in half a MiB");
    assert!(free(&mut opened) < 64 << 10);
    assert_eq!(fill(&mut opened, Class::Ordinary), 0);
    assert!(opened.log.is_disk_full());
    // Not whole again: none for them.
    disk.borrow_mut().set_capacity(used + config.free_bytes_min + 4 * (64 << 10));
    assert_eq!(fill(&mut opened, Class::Ordinary), 0);
    disk.borrow_mut().set_capacity(1 << 30);
    assert!(fill(&mut opened, Class::Ordinary) > 300);
    assert!(!opened.log.is_disk_full());
}

/// Beyond the limit of all files ordinary records wait, without an error, and leave a segment to what
/// makes room, which gets more files all the same. They go on when the limit is raised.
#[test]
fn beyond_the_limit_of_files_ordinary_records_wait_and_what_makes_room_goes_on() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    let limit = 6 * u64::from(config.segment_len) + 8192;
    opened.log.limit_files(limit);
    let fill = |opened: &mut Opened<_>, class| {
        let mut records = 0;
        for _ in 0..200 {
            let body = [slice_of(&opened.pool, records, 8000)];
            match opened.log.append(1, b"", &body, class) {
                Ok(_) => records += 1,
                Err(full) => assert_eq!(full, Full::Preparing),
            }
            drain(&mut opened.log);
        }
        records
    };
    assert!(fill(&mut opened, Class::Ordinary) >= 20);
    assert!(opened.log.is_at_limit() && opened.log.file_bytes() <= limit);
    assert!(opened.log.bytes_prepared() >= u64::from(config.segment_len));
    assert_eq!(fill(&mut opened, Class::Ordinary), 0);
    assert!(fill(&mut opened, Class::Upkeep) > 100);
    assert!(opened.log.file_bytes() > limit && !opened.log.is_disk_full());
    assert_eq!(fill(&mut opened, Class::Ordinary), 0);
    opened.log.limit_files(u64::MAX);
    assert!(fill(&mut opened, Class::Ordinary) > 100);
}

#[test]
fn records_beyond_what_may_wait_are_refused_and_taken_later() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    disk.borrow_mut().freeze(true);
    let body = slice_of(&opened.pool, 3, 1000);
    let mut taken = 0;
    let full = loop {
        match opened.log.append(1, b"", std::slice::from_ref(&body), Class::Ordinary) {
            Ok(_) => taken += 1,
            Err(full) => break full,
        }
        opened.log.kick();
    };
    assert!(matches!(full, Full::Preparing | Full::Backlog), "{full}");
    assert!(opened.log.queued_bytes() <= config.queue_bytes_max);
    disk.borrow_mut().freeze(false);
    assert_eq!(flushed(&drain(&mut opened.log)), Some(RecordId(taken)));
    assert_eq!(opened.log.queued_bytes(), 0);
    put(&mut opened, 4, 0, 1000);
}

#[test]
fn the_bound_of_waiting_bytes_holds_with_room_on_disk() {
    let config = LogConfig { queue_bytes_max: 20_000, ..small() };
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    let body = slice_of(&opened.pool, 3, 5000);
    let body = std::slice::from_ref(&body);
    let taken = |opened: &mut Opened<_>, class| {
        (0..).take_while(|_| opened.log.append(1, b"", body, class).is_ok()).count()
    };
    assert_eq!(taken(&mut opened, Class::Ordinary), 3);
    assert_eq!(opened.log.append(1, b"", body, Class::Ordinary), Err(Full::Backlog));
    assert_eq!(taken(&mut opened, Class::Urgent), 4, "urgent records may take twice as many");
    drain(&mut opened.log);
    assert_eq!(taken(&mut opened, Class::Ordinary), 3);
}

#[test]
fn a_record_that_fits_no_group_is_refused_at_once() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    let long_head = vec![1; config.inline_bytes_max];
    assert_eq!(opened.log.append(1, &long_head, &[], Class::Urgent), Err(Full::TooLarge));
    let large = slice_of(&opened.pool, 1, config.group_bytes_max);
    assert_eq!(opened.log.append(1, b"", &[large], Class::Urgent), Err(Full::TooLarge));
    let largest = slice_of(&opened.pool, 1, config.group_bytes_max - 4096);
    opened.log.append(1, b"", &[largest], Class::Urgent).unwrap();
    assert_eq!(flushed(&drain(&mut opened.log)), Some(RecordId(1)));
}

/// tests PROTOCOL 4.4-f
#[test]
fn an_idle_log_is_confirmed_once() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    opened.log.idle_confirm();
    assert_eq!(drain(&mut opened.log).len(), 0);
    assert_eq!(opened.log.counters().flushes, 0, "there is nothing to confirm");
    put(&mut opened, 1, 10, 10);
    for _ in 0..3 {
        opened.log.idle_confirm();
        assert_eq!(drain(&mut opened.log).len(), 0, "an empty group says nothing to anyone");
    }
    assert_eq!(opened.log.counters().flushes, 2);
    drop(opened);
    let mut opened = open(&disk, &config).unwrap();
    assert_eq!(opened.found.last_record, RecordId(1));
    opened.log.idle_confirm();
    drain(&mut opened.log);
    assert_eq!(opened.log.counters().flushes, 0, "still confirmed after reopening");
    put(&mut opened, 2, 10, 10);
    assert_eq!(opened.log.last_record(), RecordId(2));
}

#[test]
fn any_flushed_range_can_be_read_and_nothing_else() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    let (place, crc) = bodies(&put(&mut opened, 1, 0, 9000))[0];
    let whole = bytes_of(1, 9000);
    for (skip, len) in [(0, 1), (511, 2), (1, 8999), (512, 512), (8999, 1), (700, 0), (9000, 0)] {
        let bytes = read(&mut opened.log, place.part(skip, len).unwrap(), None).unwrap();
        assert_eq!(&*bytes, &whole[skip as usize..(skip + len) as usize]);
    }
    assert!(place.part(8999, 2).is_none() && place.part(u32::MAX, 2).is_none());
    let outside = [
        Place { offset: opened.found.end.offset + (1 << 20), ..place },
        Place { segment: 9, ..place },
        Place { segment: 2, offset: 4096, len: 1 },
        Place { offset: u32::MAX, ..place },
    ];
    for place in outside {
        assert_eq!(opened.log.read(1, place, None), Err(ReadRefused::Outside), "{place:?}");
    }
    disk.borrow_mut().freeze(true);
    for token in 0..config.reads_max as u64 {
        opened.log.read(token, place, Some(crc)).unwrap();
    }
    assert_eq!(opened.log.read(99, place, None), Err(ReadRefused::Busy));
    disk.borrow_mut().freeze(false);
    let mut events = Vec::new();
    opened.log.poll(&mut events);
    let good = events.iter().filter(|event| matches!(event, Event::Read { result: Ok(_), .. }));
    assert_eq!(good.count(), config.reads_max);
}

/// tests PROTOCOL 4.4-d
#[test]
fn a_read_of_damaged_bytes_says_so() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    let (place, crc) = bodies(&put(&mut opened, 1, 0, 9000))[0];
    disk.borrow_mut().corrupt(place.segment, place.offset as u64 + 4000);
    let error = read(&mut opened.log, place, Some(crc)).unwrap_err();
    assert!(error.contains("damaged"), "{error}");
    disk.borrow_mut().make_unreadable(place.segment, place.offset as u64 + 4000);
    let error = read(&mut opened.log, place, Some(crc)).unwrap_err();
    assert!(error.contains("unreadable"), "{error}");
}

#[test]
fn buffers_come_back_and_no_record_costs_one() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    put(&mut opened, 1, 100, 100);
    let used = opened.pool.used();
    for seed in 0..200 {
        put(&mut opened, seed, 50, (seed as usize * 100) % 15_000);
    }
    assert_eq!(opened.pool.used(), used);
}

#[test]
fn an_exhausted_pool_refuses_and_harms_nothing() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    let crooked = slice_of(&opened.pool, 5, 9001).slice(1..9001);
    let mut hoard = Vec::new();
    while let Some(buf) = opened.pool.get(4096) {
        hoard.push(buf);
    }
    let refused = opened.log.append(1, b"", std::slice::from_ref(&crooked), Class::Urgent);
    assert_eq!(refused, Err(Full::Memory));
    opened.log.append(2, b"small", &[], Class::Ordinary).unwrap();
    assert_eq!(flushed(&drain(&mut opened.log)), Some(RecordId(1)));
    hoard.clear();
    opened.log.append(1, b"", &[crooked], Class::Ordinary).unwrap();
    assert_eq!(flushed(&drain(&mut opened.log)), Some(RecordId(2)));
    drop(opened);
    let opened = open(&disk, &config).unwrap();
    assert_eq!(opened.entries.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn padding_holds_nothing_of_earlier_groups() {
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    for seed in 0..4 {
        put(&mut opened, seed, 1500, 1500);
    }
    for (head, body) in [(10, 10), (10, 2500)] {
        let events = put(&mut opened, 9, head, body);
        let Event::Placed { head: at, .. } = events[0] else { panic!("{events:?}") };
        let image = disk.borrow().contents(at.segment).unwrap();
        let (records_end, block) =
            ((at.offset + at.len) as usize, at.offset as usize / 4096 * 4096);
        let inline_end = records_end + if body < 2048 { body } else { 0 };
        let padding_end = if body < 2048 { block + 4096 } else { block + 512 };
        assert!(image[inline_end..padding_end].iter().all(|byte| *byte == 0), "body of {body}");
    }
}
