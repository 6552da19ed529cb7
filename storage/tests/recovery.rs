//! Each case of the recovery table, by its letter.

mod common;

use common::*;
use racos_storage::device::SUPERBLOCK;
use racos_storage::device::memory::{Disk, MemoryDevice, Timing};
use racos_storage::{
    Action, Case, Class, Condition, Event, Identity, Log, LogConfig, LogError, Position, TABLE,
};

/// A log of `groups` groups, each one record: a head of 300 bytes and, every third, a payload of
/// 5000. The disk and where each group starts.
fn written(config: &LogConfig, groups: u64) -> (SharedDisk, Vec<Position>) {
    let disk = fresh(config, Timing::Immediate);
    let mut opened = open(&disk, config).unwrap();
    let mut starts = Vec::new();
    for seed in 0..groups {
        let body = if seed % 3 == 2 { 5000 } else { 20 };
        let events = put(&mut opened, seed, 300, body);
        let Event::Placed { head, .. } = events[0] else { panic!("{events:?}") };
        starts.push(Position { segment: head.segment, offset: head.offset / 4096 * 4096 });
    }
    drop(opened);
    disk.borrow_mut().kill(0);
    (disk, starts)
}

fn cases(disk: &SharedDisk, config: &LogConfig) -> (Vec<Case>, usize) {
    let opened = open(disk, config).unwrap();
    let found = (opened.found.cases.clone(), opened.entries.len());
    drop(opened);
    disk.borrow_mut().kill(0);
    found
}

fn refused(disk: &SharedDisk, config: &LogConfig) -> LogError {
    let error = open(disk, config).err().expect("the log must not open");
    assert!(error.case().is_none_or(|case| case.action() == Action::Refuse));
    error
}

fn lost(disk: &SharedDisk, config: &LogConfig, case: Case) -> String {
    let before = images(disk);
    let error = refused(disk, config);
    assert_eq!(error.case(), Some(case), "{error}");
    let text = error.to_string();
    assert!(text.contains("racos member replace") && text.contains("do not edit"), "{text}");
    assert!(images(disk)[1..] == before[1..], "a refusal changes nothing but the boot number");
    text
}

fn images(disk: &SharedDisk) -> Vec<Option<Vec<u8>>> {
    (0..8).map(|file| disk.borrow().contents(file)).collect()
}

fn corrupt(disk: &SharedDisk, at: Position, by: u32) {
    disk.borrow_mut().corrupt(at.segment, (at.offset + by) as u64);
}

#[test]
fn the_table_has_each_case_once() {
    let letters: Vec<String> = TABLE.iter().map(|(case, _)| format!("{case:?}")).collect();
    assert_eq!(letters.concat(), "ABCDEFGHIJKLMNOPQRSTU");
}

#[test]
fn case_a_the_newer_superblock_copy_counts() {
    let config = small();
    let (disk, _) = written(&config, 1);
    for boot in 2..6 {
        let opened = open(&disk, &config).unwrap();
        assert_eq!((opened.found.boot, opened.found.cases[0]), (boot, Case::A));
    }
}

#[test]
fn case_b_a_torn_superblock_copy_is_left_aside_and_written_over() {
    let config = small();
    for copy in [0, 4096] {
        let (disk, _) = written(&config, 4);
        open(&disk, &config).unwrap();
        disk.borrow_mut().corrupt(SUPERBLOCK, copy + 40);
        let opened = open(&disk, &config).unwrap();
        assert_eq!(opened.found.cases[0], Case::B);
        assert_eq!(opened.entries.len(), 4);
        let boot = opened.found.boot;
        drop(opened);
        let opened = open(&disk, &config).unwrap();
        assert_eq!((opened.found.boot, opened.found.cases[0]), (boot + 1, Case::A));
    }
}

/// tests PROTOCOL 3.1-a
#[test]
fn case_b_no_boot_number_comes_twice_whichever_copy_rots() {
    let config = small();
    for pattern in 0..64u32 {
        let (disk, _) = written(&config, 1);
        let mut boots = vec![1];
        for round in 0..6 {
            let boot = open(&disk, &config).unwrap().found.boot;
            assert!(boot > *boots.last().unwrap(), "boot {boot} after {boots:?}");
            boots.push(boot);
            let copy = (pattern >> round & 1) as u64 * 4096;
            disk.borrow_mut().corrupt(SUPERBLOCK, copy + 60);
        }
    }
}

#[test]
fn a_power_cut_while_the_boot_number_is_written_leaves_one_copy() {
    let config = small();
    for seed in 0..40 {
        let (disk, _) = written(&config, 2);
        disk.borrow_mut().fail_flush_after(0);
        refused(&disk, &config);
        disk.borrow_mut().power_cut(seed);
        let opened = open(&disk, &config).unwrap();
        assert!(opened.found.boot == 2 || opened.found.boot == 3, "never lower than before");
        assert_eq!(opened.entries.len(), 2);
    }
}

#[test]
fn case_c_an_empty_device_is_not_formatted() {
    let disk = Disk::new(1 << 30, Timing::Immediate);
    assert_eq!(refused(&disk, &small()).case(), Some(Case::C));
    let condition = Log::inspect(&mut MemoryDevice::new(disk), &pool()).unwrap();
    assert_eq!(condition, Condition::Empty);
}

#[test]
fn case_d_without_a_good_superblock_copy_the_node_is_lost() {
    let config = small();
    let (disk, _) = written(&config, 2);
    disk.borrow_mut().corrupt(SUPERBLOCK, 100);
    disk.borrow_mut().corrupt(SUPERBLOCK, 4096 + 100);
    assert!(lost(&disk, &config, Case::D).contains("checksum"));
    disk.borrow_mut().remove(SUPERBLOCK);
    assert!(lost(&disk, &config, Case::D).contains("missing"));
    let device = &mut MemoryDevice::new(disk.clone());
    assert!(format_on(device, &config).is_err(), "nor is it formatted over");
}

#[test]
fn case_e_superblock_copies_of_two_disks_are_refused() {
    let config = small();
    let (disk, _) = written(&config, 2);
    let mut image = disk.borrow().contents(SUPERBLOCK).unwrap();
    let other = Disk::new(1 << 30, Timing::Immediate);
    let mut device = MemoryDevice::new(other.clone());
    Log::format(&mut device, &pool(), &config, IDENTITY, DISK_ID + 1, &mut |_, _| {}).unwrap();
    let theirs = other.borrow().contents(SUPERBLOCK).unwrap();
    image[..4096].copy_from_slice(&theirs[..4096]);
    disk.borrow_mut().put_file(SUPERBLOCK, &image);
    assert!(lost(&disk, &config, Case::E).contains("different disks"));
}

#[test]
fn case_f_another_identity_is_refused_by_name() {
    let config = small();
    let (disk, _) = written(&config, 1);
    // The log that is there is of lane 0 of 1.
    let others = [
        (Identity { cluster: 1, ..IDENTITY }, "cluster"),
        (Identity { node: 9, ..IDENTITY }, "node"),
        (Identity { incarnation: 9, ..IDENTITY }, "incarnation"),
        (Identity { lanes: 4, ..IDENTITY }, "lanes"),
        (Identity { lane: 1, ..IDENTITY }, "lane"),
    ];
    let before = images(&disk);
    for (identity, what) in others {
        let device = MemoryDevice::new(disk.clone());
        let opened = Log::open(device, pool(), config.clone(), identity, &mut |_| {});
        let error = opened.err().expect("refused");
        assert!(matches!(error, LogError::Identity { what: named, .. } if named == what));
        assert!(error.to_string().contains(what));
        assert_eq!(error.case(), Some(Case::F));
    }
    assert!(images(&disk) == before, "not even the boot number is touched");
}

#[test]
fn case_g_a_format_cut_short_anywhere_may_be_repeated_and_not_opened() {
    let config = small();
    for writes in 0..3 {
        for seed in 0..10 {
            let disk = Disk::new(1 << 30, Timing::Immediate);
            disk.borrow_mut().fail_flush_after(writes);
            let mut device = MemoryDevice::new(disk.clone());
            assert!(format_on(&mut device, &config).is_err());
            disk.borrow_mut().power_cut(seed);
            match Log::inspect(&mut device, &pool()).unwrap() {
                Condition::Formatted(_) => assert_eq!(writes, 2, "only the last write formats"),
                condition => {
                    let empty = condition == Condition::Empty;
                    let case = if empty { Case::C } else { Case::G };
                    assert_eq!(refused(&disk, &config).case(), Some(case));
                    format_on(&mut device, &config).unwrap();
                }
            }
            assert_eq!(open(&disk, &config).unwrap().entries.len(), 0);
            assert!(matches!(format_on(&mut device, &config), Err(LogError::NotEmpty(_))));
        }
    }
}

/// tests PROTOCOL 4.4-j, 9.1-a
#[test]
fn cases_h_and_j_a_whole_log_is_replayed_and_its_last_group_written_anew() {
    let config = small();
    let (disk, _) = written(&config, 40);
    let before = disk.borrow().writes();
    let (found, entries) = cases(&disk, &config);
    assert_eq!((found, entries), (vec![Case::A, Case::H, Case::J, Case::L], 40));
    assert_eq!(disk.borrow().writes(), before + 2, "superblock and last group");
}

/// tests PROTOCOL 4.4-h
#[test]
fn case_i_a_bad_payload_of_a_confirmed_group_takes_nothing_else_with_it() {
    let config = small();
    let (disk, starts) = written(&config, 9);
    corrupt(&disk, starts[5], 1000);
    let mut opened = open(&disk, &config).unwrap();
    assert_eq!(opened.entries.len(), 9);
    let entry = opened.entries[5].clone();
    assert!(read(&mut opened.log, entry.body_place, Some(entry.crc)).is_err());
    assert!(!opened.found.cases.contains(&Case::I), "payloads are not looked at by default");
    drop(opened);
    disk.borrow_mut().kill(0);
    let config = LogConfig { check_payloads: true, ..config };
    let opened = open(&disk, &config).unwrap();
    assert!(opened.found.cases.contains(&Case::I));
    let damaged: Vec<bool> = opened.entries.iter().map(|entry| entry.damaged).collect();
    assert_eq!(damaged, (0..9).map(|index| index == 5).collect::<Vec<_>>());
}

#[test]
fn case_i_a_payload_that_cannot_be_read_is_one_that_is_bad() {
    let config = LogConfig { check_payloads: true, ..small() };
    let (disk, starts) = written(&config, 9);
    disk.borrow_mut().make_unreadable(starts[5].segment, (starts[5].offset + 4096) as u64);
    let opened = open(&disk, &config).unwrap();
    assert!(opened.found.cases.contains(&Case::I));
    let damaged: Vec<bool> = opened.entries.iter().map(|entry| entry.damaged).collect();
    assert_eq!(damaged, (0..9).map(|index| index == 5).collect::<Vec<_>>());
}

#[test]
fn case_i_also_when_the_next_group_is_gone_and_the_log_is_refused_for_that() {
    let config = small();
    let (disk, starts) = written(&config, 9);
    corrupt(&disk, starts[5], 1000);
    corrupt(&disk, starts[6], 10);
    let text = lost(&disk, &config, Case::M);
    assert!(text.contains(&format!("byte {}", starts[6].offset)), "{text}");
}

/// tests PROTOCOL 4.4-i
#[test]
fn case_k_a_last_group_with_a_torn_payload_is_cut_and_never_comes_back() {
    let config = small();
    let (disk, starts) = written(&config, 9);
    let whole = disk.borrow().contents(1).unwrap();
    corrupt(&disk, starts[8], 1000);
    let (found, entries) = cases(&disk, &config);
    assert!(found.contains(&Case::K) && entries == 8);
    // Even if the torn sector were to heal now.
    let sector = (starts[8].offset + 512) as usize;
    let mut image = disk.borrow().contents(1).unwrap();
    image[sector..sector + 1024].copy_from_slice(&whole[sector..sector + 1024]);
    disk.borrow_mut().put_file(1, &image);
    assert_eq!(cases(&disk, &config).1, 8);
}

#[test]
fn a_cut_group_that_did_not_fit_its_place_again_is_not_read_twice() {
    // A group torn in its payload at the end of a segment; the group that takes its number is too
    // long for what is left there and goes to the next segment.
    let config = small();
    let disk = fresh(&config, Timing::Immediate);
    let mut opened = open(&disk, &config).unwrap();
    let mut seed = 0;
    while opened.log.bytes_used() < (64 << 10) - 16_384 {
        put(&mut opened, seed, 10, 0);
        seed += 1;
    }
    let events = put(&mut opened, 100, 10, 5000);
    let Event::Placed { body, .. } = events[0] else { panic!("{events:?}") };
    assert_eq!(body.segment, 1);
    drop(opened);
    disk.borrow_mut().corrupt(1, body.offset as u64);
    let mut opened = open(&disk, &config).unwrap();
    assert_eq!(opened.entries.len() as u64, seed, "cut: nothing behind it");
    for next in 0..3 {
        put(&mut opened, 200 + next, 10, 25_000);
    }
    assert!(opened.log.bytes_used() > 64 << 10, "the next segment is in use");
    drop(opened);
    let mut opened = open(&disk, &config).unwrap();
    assert_eq!(opened.entries.len() as u64, seed + 3);
    for (next, entry) in (200..).zip(opened.entries[seed as usize..].to_vec()) {
        let bytes = read(&mut opened.log, entry.body_place, Some(entry.crc)).unwrap();
        assert_eq!(&*bytes, &bytes_of(next, 25_000));
    }
}

#[test]
fn case_l_zeros_or_stale_bytes_end_the_log() {
    let config = small();
    let (disk, starts) = written(&config, 5);
    // The last group is torn in its header, its records, or overwritten with anything.
    for by in [0, 4, 60, 96, 150] {
        let image = disk.borrow().contents(1).unwrap();
        corrupt(&disk, starts[4], by);
        let (found, entries) = cases(&disk, &config);
        assert!(found.contains(&Case::L) && entries == 4, "byte {by}");
        disk.borrow_mut().put_file(1, &image);
    }
    let mut image = disk.borrow().contents(1).unwrap();
    let tail = starts[4].offset as usize;
    let stale = bytes_of(1, image.len() - tail);
    image[tail..].copy_from_slice(&stale);
    disk.borrow_mut().put_file(1, &image);
    assert_eq!(cases(&disk, &config).1, 4);
    let mut opened = open(&disk, &config).unwrap();
    put(&mut opened, 50, 10, 10);
    drop(opened);
    assert_eq!(cases(&disk, &config).1, 5, "the log goes on over stale bytes");
}

/// tests PROTOCOL 4.4-k
#[test]
fn case_l_a_value_that_holds_a_copy_of_the_log_forges_nothing() {
    let config = small();
    let (disk, starts) = written(&config, 12);
    let image = disk.borrow().contents(1).unwrap();
    let copy = &image[starts[3].offset as usize..starts[3].offset as usize + 20_480];
    let mut opened = open(&disk, &config).unwrap();
    let body = opened.pool.copy(copy).unwrap();
    opened.log.append(9, &[1; 440], &[body], Class::Ordinary).unwrap();
    let events = drain(&mut opened.log);
    let Event::Placed { body, .. } = events[0] else { panic!("{events:?}") };
    drop(opened);
    // The header is torn, the payload is whole: full of groups that are valid elsewhere.
    let start = (body.offset / 4096 * 4096) as u64;
    disk.borrow_mut().corrupt(body.segment, start);
    let (found, entries) = cases(&disk, &config);
    assert!(found.contains(&Case::L) && entries == 12);
}

/// tests PROTOCOL 4.4-g, 10-a
#[test]
fn a_confirmed_group_that_is_bad_stops_the_node() {
    let config = small();
    for group in [0, 3, 4, 5, 15, 38] {
        for by in [0, 5, 70, 97, 200] {
            let (disk, starts) = written(&config, 40);
            corrupt(&disk, starts[group], by);
            let text = lost(&disk, &config, Case::M);
            let place = starts[group];
            let at = format!("segment-{:08}.log at byte {}", place.segment, place.offset);
            assert!(text.contains(&at), "case M: {text}");
        }
    }
}

/// tests PROTOCOL 4.4-f
#[test]
fn case_m_after_an_idle_confirmation_even_the_last_group_is_missed() {
    let config = small();
    let (disk, starts) = written(&config, 5);
    let mut opened = open(&disk, &config).unwrap();
    opened.log.idle_confirm();
    drain(&mut opened.log);
    drop(opened);
    corrupt(&disk, starts[4], 100);
    lost(&disk, &config, Case::M);
}

#[test]
fn case_m_a_whole_segment_lost_in_the_middle_is_missed() {
    let config = small();
    let (disk, starts) = written(&config, 60);
    let last = starts[59].segment;
    assert!(last >= 3);
    disk.borrow_mut().remove(last - 1);
    lost(&disk, &config, Case::M);
    disk.borrow_mut().put_file(last - 1, &vec![0; 64 << 10]);
    lost(&disk, &config, Case::M);
}

#[test]
fn case_m_an_older_image_of_a_segment_is_missed_when_later_ones_are_newer() {
    let config = small();
    let (disk, starts) = written(&config, 8);
    let old = disk.borrow().contents(1).unwrap();
    assert_eq!(starts[7].segment, 1);
    let mut opened = open(&disk, &config).unwrap();
    for seed in 0..30 {
        put(&mut opened, seed, 300, 20);
    }
    assert!(opened.log.bytes_used() > 64 << 10);
    drop(opened);
    disk.borrow_mut().put_file(1, &old);
    lost(&disk, &config, Case::M);
}

#[test]
fn case_n_a_bad_segment_header_is_written_again() {
    let config = small();
    let (disk, starts) = written(&config, 60);
    for segment in [1, starts[59].segment] {
        let image = disk.borrow().contents(segment).unwrap();
        disk.borrow_mut().corrupt(segment, 20);
        let (found, entries) = cases(&disk, &config);
        assert!(found.contains(&Case::N) && entries == 60);
        assert!(disk.borrow().contents(segment).unwrap() == image);
        assert!(!cases(&disk, &config).0.contains(&Case::N));
        disk.borrow_mut().make_unreadable(segment, 0);
        let (found, entries) = cases(&disk, &config);
        assert!(found.contains(&Case::N) && entries == 60, "nor can it be read");
        assert!(!cases(&disk, &config).0.contains(&Case::N));
    }
}

#[test]
fn case_o_a_segment_of_another_disk_or_number_is_refused() {
    let config = small();
    let (disk, starts) = written(&config, 60);
    let other = Disk::new(1 << 30, Timing::Immediate);
    let mut device = MemoryDevice::new(other.clone());
    Log::format(&mut device, &pool(), &config, IDENTITY, DISK_ID + 1, &mut |_, _| {}).unwrap();
    let mut opened = open(&other, &config).unwrap();
    put(&mut opened, 1, 10, 10);
    drop(opened);
    let foreign = other.borrow().contents(1).unwrap();
    let last = starts[59].segment;
    for segment in 1..=last {
        let image = disk.borrow().contents(segment).unwrap();
        disk.borrow_mut().put_file(segment, &foreign);
        assert!(lost(&disk, &config, Case::O).contains("another disk"), "segment {segment}");
        let wrong = disk.borrow().contents(if segment == 1 { 2 } else { 1 }).unwrap();
        disk.borrow_mut().put_file(segment, &image);
        if segment > 1 {
            disk.borrow_mut().put_file(segment, &wrong);
            assert!(lost(&disk, &config, Case::O).contains("the file holds segment 1"));
        }
        disk.borrow_mut().put_file(segment, &image);
    }
    assert_eq!(cases(&disk, &config).1, 60);
}

#[test]
fn case_p_missing_or_short_empty_segments_are_made_again() {
    let config = small();
    type Change = fn(&mut Disk);
    let changes: [(Change, bool); 4] = [
        (|disk| disk.remove(2), true),
        (|disk| disk.remove(3), false),
        (|disk| disk.truncate(2, 8192), true),
        (|disk| disk.truncate(3, 0), true),
    ];
    for (change, expected) in changes {
        let (disk, starts) = written(&config, 5);
        assert_eq!(starts[4].segment, 1);
        let mut opened = open(&disk, &config).unwrap();
        drain(&mut opened.log);
        assert!(disk.borrow().contents(3).is_some(), "two segments ahead");
        drop(opened);
        change(&mut disk.borrow_mut());
        let mut opened = open(&disk, &config).unwrap();
        assert_eq!(opened.entries.len(), 5);
        assert_eq!(opened.found.cases.contains(&Case::P), expected);
        let mut events = Vec::new();
        for seed in 0..60 {
            opened.log.poll(&mut events);
            put(&mut opened, seed, 300, 2000);
        }
        drop(opened);
        assert_eq!(cases(&disk, &config).1, 65);
    }
}

#[test]
fn a_truncated_current_segment_is_cut_or_missed_and_then_left_for_the_next() {
    let config = small();
    let (disk, starts) = written(&config, 5);
    // Behind the last group: nothing is lost, and the log goes on in the next segment.
    let end = open(&disk, &config).unwrap().found.end;
    disk.borrow_mut().truncate(1, end.offset as u64);
    let mut opened = open(&disk, &config).unwrap();
    assert_eq!(opened.entries.len(), 5);
    put(&mut opened, 10, 300, 20);
    drop(opened);
    assert_eq!(cases(&disk, &config).1, 6);
    // Inside it: it is torn, and the next segment proves that it was promised.
    disk.borrow_mut().truncate(1, (starts[4].offset + 512) as u64);
    lost(&disk, &config, Case::M);
    // Without that proof it is cut.
    disk.borrow_mut().put_file(2, &vec![0; 64 << 10]);
    assert_eq!(cases(&disk, &config).1, 4);
}

#[test]
fn case_q_a_sector_that_recovery_needs_and_cannot_read_is_refused() {
    let config = small();
    let (disk, starts) = written(&config, 9);
    let last = starts[8];
    for by in [0, 512, 4096] {
        disk.borrow_mut().make_unreadable(last.segment, (last.offset + by) as u64);
        let error = refused(&disk, &config);
        assert_eq!(error.case(), Some(Case::Q));
        assert!(error.to_string().contains("check the disk"), "{error}");
        let image = disk.borrow().contents(last.segment).unwrap();
        disk.borrow_mut().put_file(last.segment, &image);
    }
    // One in a payload that recovery does not need is met when it is read.
    disk.borrow_mut().make_unreadable(starts[2].segment, (starts[2].offset + 4096) as u64);
    assert_eq!(cases(&disk, &config).1, 9);
}

#[test]
fn case_r_without_its_first_segment_the_node_is_lost() {
    let config = small();
    let (disk, _) = written(&config, 9);
    disk.borrow_mut().remove(1);
    assert!(lost(&disk, &config, Case::R).contains("first segment"));
}

#[test]
fn segments_of_another_length_are_used_as_they_are_or_made_again() {
    let config = small();
    let (disk, _) = written(&config, 20);
    for segment_len in [128 << 10, 32 << 10, 64 << 10] {
        let config = LogConfig { segment_len, reserve_bytes: 0, ..small() };
        let group_bytes_max = 16 << 10;
        let config = LogConfig { group_bytes_max, inline_bytes_max: 8 << 10, ..config };
        let mut opened = open(&disk, &config).unwrap();
        let before = opened.entries.len();
        for seed in 0..40 {
            put(&mut opened, seed, 300, 5000);
        }
        drop(opened);
        assert_eq!(cases(&disk, &config).1, before + 40);
    }
}

#[test]
fn the_refusals_of_the_table_are_the_ones_tested_here() {
    let refusals: Vec<Case> = TABLE
        .iter()
        .filter(|(_, action)| *action == Action::Refuse)
        .map(|(case, _)| *case)
        .collect();
    use Case::*;
    // T is tested beside the marks, in marks.rs.
    assert_eq!(refusals, [C, D, E, F, G, M, O, Q, R, T]);
}

mod damage {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// One flipped byte anywhere: all but the last, unconfirmed group is there, or the log is
        /// refused.
        #[test]
        fn one_bad_byte_never_loses_a_confirmed_record_in_silence(
            file in 0u32..4, offset in 0u64..(64 << 10),
        ) {
            let config = LogConfig { check_payloads: true, ..small() };
            let (disk, _) = written(&config, 30);
            let offset = if file == SUPERBLOCK { offset % 8192 } else { offset };
            disk.borrow_mut().corrupt(file, offset);
            if let Ok(opened) = open(&disk, &config) {
                prop_assert!(opened.entries.len() >= 29);
                for (seed, entry) in (0..).zip(&opened.entries) {
                    prop_assert_eq!(&entry.head, &bytes_of(seed + 1, 300));
                    prop_assert!(entry.damaged || entry.crc != 0);
                }
            }
        }

        /// Any damage at all: no panic, and what is given out is a prefix of what was written.
        #[test]
        fn whatever_lies_in_the_files_is_refused_or_read_as_a_prefix(
            hits in prop::collection::vec(
                (0u32..4, 0usize..(64 << 10), 1usize..6000, 0u64..9), 1..6,
            ),
        ) {
            let config = small();
            let (disk, _) = written(&config, 30);
            for (file, at, len, seed) in hits {
                let mut image = disk.borrow().contents(file).unwrap();
                let at = at % image.len();
                let end = (at + len).min(image.len());
                let bytes = if seed == 0 { vec![0; end - at] } else { bytes_of(seed, end - at) };
                image[at..end].copy_from_slice(&bytes);
                disk.borrow_mut().put_file(file, &image);
            }
            if let Ok(opened) = open(&disk, &config) {
                prop_assert!(opened.entries.len() <= 30);
                for (seed, entry) in (0..).zip(&opened.entries) {
                    prop_assert_eq!(&entry.head, &bytes_of(seed + 1, 300));
                }
            }
        }
    }
}
