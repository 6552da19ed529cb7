//! Exports: the same parts whatever goes on meanwhile, and the same machine back from them.

mod common;

use common::{Source, key, op, part, put, value_of};
use proptest::prelude::*;
use racos_machine::{
    Action, Content, EXPORT_ENTRY_BYTES_MAX, EXPORT_PART_BYTES, Exported, Import, ImportError,
    Limits, Machine, Op, OpId,
};

fn limits(history_max: u32) -> Limits {
    Limits { sessions_max: 3, parts_max: 3, history_max, ..Limits::default() }
}

/// The parts of an export that nothing disturbs, and the values named in them, in order.
fn export(machine: &mut Machine, part_bytes: usize) -> (Vec<Vec<u8>>, Vec<OpId>) {
    machine.export_begin(part_bytes);
    let (mut parts, mut named) = (Vec::new(), Vec::new());
    while machine.is_exporting() {
        match machine.export_slice(usize::MAX, &mut |op| named.push(op)) {
            Exported::Working => panic!("an unlimited slice fills its part"),
            Exported::Part(part) | Exported::Last(part) => parts.push(part),
        }
    }
    (parts, named)
}

fn import(parts: &[Vec<u8>], limits: Limits) -> Result<(Machine, Vec<OpId>), ImportError> {
    let (mut import, mut named) = (Import::new(limits), Vec::new());
    for part in parts {
        import.part(part, &mut |op| named.push(op))?;
    }
    import.finish().map(|machine| (machine, named))
}

/// A machine after the first `count` operations that the choices make.
fn run(choices: &[[u8; 4]], count: usize, limits: Limits) -> (Machine, Source) {
    let (mut machine, mut source) = (Machine::new(limits), Source::default());
    for (slot, &choice) in (0..).zip(&choices[..count]) {
        let op = source.op(slot, 0, choice);
        machine.apply(slot, 0, &op);
    }
    (machine, source)
}

/// Exports the state at `pin` in slices of `visits` entries, one after every `every` operations.
fn disturbed(
    choices: &[[u8; 4]],
    pin: usize,
    (visits, every): (usize, usize),
    limits: Limits,
    part_bytes: usize,
) -> (Vec<Vec<u8>>, Vec<OpId>, Machine) {
    let (mut machine, mut source) = run(choices, pin, limits);
    machine.export_begin(part_bytes);
    let (mut parts, mut named) = (Vec::new(), Vec::new());
    let mut slice = |machine: &mut Machine| {
        if machine.is_exporting() {
            match machine.export_slice(visits, &mut |op| named.push(op)) {
                Exported::Working => {}
                Exported::Part(part) | Exported::Last(part) => parts.push(part),
            }
        }
    };
    for (at, &choice) in choices.iter().enumerate().skip(pin) {
        let op = source.op(at as u64, 0, choice);
        machine.apply(at as u64, 0, &op);
        if (at - pin) % every == every - 1 {
            slice(&mut machine);
        }
    }
    while machine.is_exporting() {
        slice(&mut machine);
    }
    (parts, named, machine)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Every point of a run is pinned, and the rest of the run comes between the slices.
    #[test]
    fn an_export_is_the_pinned_state_whatever_is_applied_meanwhile(
        choices in prop::collection::vec(any::<[u8; 4]>(), 1..70),
        history_max in prop::sample::select(vec![1, 2, 3, u32::MAX]),
        visits in 1usize..6,
        every in 1usize..4,
        part_bytes in prop::sample::select(vec![1usize, 150, 700, 1 << 16]),
    ) {
        let limits = limits(history_max);
        for pin in 0..=choices.len() {
            let (mut quiet, _) = run(&choices, pin, limits);
            let (expected, expected_named) = export(&mut quiet, part_bytes);
            let (parts, named, mut later) =
                disturbed(&choices, pin, (visits, every), limits, part_bytes);
            prop_assert_eq!(&parts, &expected, "pinned after {} operations", pin);
            prop_assert_eq!(&named, &expected_named);
            prop_assert_eq!(later.state_hash(), later.full_hash());
            let (mut back, told) = import(&parts, limits).expect("an export is imported");
            prop_assert_eq!(&told, &named);
            prop_assert_eq!(back.state_hash(), quiet.state_hash());
            prop_assert_eq!(back.full_hash(), quiet.full_hash());
            prop_assert_eq!(back.applied(), quiet.applied());
            prop_assert_eq!(&export(&mut back, part_bytes).0, &expected, "exports are canonical");
            // What the node goes on with behaves as what it had.
            let (_, mut source) = run(&choices, pin, limits);
            for (at, &choice) in choices.iter().enumerate().skip(pin) {
                let op = source.op(at as u64, 0, choice);
                back.apply(at as u64, 0, &op);
            }
            prop_assert_eq!(back.state_hash(), later.state_hash());
            prop_assert_eq!(&export(&mut back, 150).0, &export(&mut later, 150).0);
        }
    }

    /// Leases of the pinned state are exported as they were, whether they go, come, or come again.
    #[test]
    fn leases_are_exported_as_they_were_pinned(
        before in prop::collection::vec((0i64..12, 1i64..9, any::<bool>()), 0..30),
        meanwhile in prop::collection::vec((0i64..12, 1i64..9, any::<bool>()), 0..60),
        visits in 1usize..4,
        part_bytes in prop::sample::select(vec![1usize, 40, 1 << 16]),
    ) {
        let lease = |machine: &mut Machine, slot: u64, (id, ttl, grant): (i64, i64, bool)| {
            let id = id - 5 + i64::from(id >= 5);
            let action = match grant {
                true => Action::LeaseGrant { id, ttl },
                false => Action::LeaseRevoke { id },
            };
            machine.apply(slot, 0, &op(slot, action));
        };
        let mut quiet = Machine::new(limits(1));
        let mut pinned = Machine::new(limits(1));
        for (slot, choice) in (1..).zip(&before) {
            lease(&mut quiet, slot, *choice);
            lease(&mut pinned, slot, *choice);
        }
        let (expected, _) = export(&mut quiet, part_bytes);
        pinned.export_begin(part_bytes);
        let mut parts = Vec::new();
        let mut changes = (100..).zip(&meanwhile);
        while pinned.is_exporting() {
            if let Some((slot, choice)) = changes.next() {
                lease(&mut pinned, slot, *choice);
            }
            match pinned.export_slice(visits, &mut |_| {}) {
                Exported::Working => {}
                Exported::Part(part) | Exported::Last(part) => parts.push(part),
            }
        }
        prop_assert_eq!(parts, expected);
    }

    #[test]
    fn no_bytes_make_an_import_panic(
        choices in prop::collection::vec(any::<[u8; 4]>(), 1..60),
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 1..8),
        which in any::<prop::sample::Index>(),
    ) {
        let limits = limits(3);
        let (mut machine, _) = run(&choices, choices.len(), limits);
        let (mut parts, _) = export(&mut machine, 300);
        let part = which.index(parts.len());
        // Damage that the chain cannot see: as if a peer had made it.
        let entries = parts[part].len() - 21;
        if entries > 0 {
            let from = at.index(entries);
            for (place, byte) in parts[part][21 + from..].iter_mut().zip(&bytes) {
                *place = *byte;
            }
        }
        let rechained = rechain(&parts);
        let (mut import, mut refused) = (Import::new(limits), None);
        for part in &rechained {
            if let Err(error) = import.part(part, &mut |_| ()) {
                refused = Some(error);
                break;
            }
        }
        if refused.is_none() && let Ok(back) = import.finish() {
            prop_assert_eq!(back.state_hash(), back.full_hash());
        }
        let mut raw = Import::new(limits);
        let _ = raw.part(&bytes, &mut |_| ());
    }
}

/// The parts with headers that fit their entries.
fn rechain(parts: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut chain = 0u128;
    let mut out = Vec::new();
    for part in parts {
        let mut hashed = part[..5].to_vec();
        hashed.extend(chain.to_le_bytes());
        hashed.extend(xxhash_rust::xxh3::xxh3_128(&part[21..]).to_le_bytes());
        chain = xxhash_rust::xxh3::xxh3_128(&hashed);
        let mut part = part.clone();
        part[5..21].copy_from_slice(&chain.to_le_bytes());
        out.push(part);
    }
    out
}

fn filled(keys: u64) -> Machine {
    let mut machine = Machine::new(Limits::default());
    for id in 0..keys {
        machine.apply(id, 0, &put(id, &format!("key{id:08}")));
    }
    machine
}

#[test]
fn parts_are_bounded_and_a_slice_looks_at_no_more_than_it_may() {
    let mut machine = filled(3000);
    machine.apply(5000, 0, &common::op(9999, Action::DeleteRange { from: key(b""), to: None }));
    machine.apply(5001, 0, &put(10_000, "key"));
    let stripes = 4096;
    for id in 0..stripes {
        machine.apply(6000 + id, 0, &part(20_000 + id));
    }
    let values = (0..stripes).map(|id| value_of(OpId::new(1, 1, 1, 20_000 + id))).collect();
    let content = Content::Stripes(values);
    machine.apply(20_000, 0, &common::op(30_000, Action::Put { key: key(b"large"), content }));
    let (parts, named) = export(&mut machine, EXPORT_PART_BYTES);
    let largest = parts.iter().map(Vec::len).max().unwrap();
    assert!(largest > 200_000 && largest < EXPORT_PART_BYTES + EXPORT_ENTRY_BYTES_MAX);
    assert!(parts.len() > 3);
    assert_eq!(named.len(), 3000 + 1 + stripes as usize);
    // In slices of ten, no call names more than ten versions' values.
    let mut machine = filled(500);
    machine.export_begin(EXPORT_PART_BYTES);
    let mut slices = 0;
    while machine.is_exporting() {
        let mut named = 0;
        machine.export_slice(10, &mut |_| named += 1);
        assert!(named <= 10);
        slices += 1;
    }
    assert!(slices >= 50, "{slices}");
}

#[test]
fn a_part_is_taken_once_in_order_and_undamaged_or_not_at_all() {
    let mut machine = filled(300);
    let (parts, _) = export(&mut machine, 4096);
    assert!(parts.len() >= 4);
    let limits = Limits::default();
    let mut import = Import::new(limits);
    let take = |import: &mut Import, part: &[u8]| import.part(part, &mut |_| ());
    assert_eq!(take(&mut import, &parts[1]), Err(ImportError::Order { part: 0, found: 1 }));
    assert_eq!(take(&mut import, &[]), Err(ImportError::Format { part: 0 }));
    assert_eq!(take(&mut import, &parts[0]), Ok(false));
    assert_eq!(take(&mut import, &parts[0]), Err(ImportError::Order { part: 1, found: 0 }));
    for at in 21..parts[1].len() {
        let mut damaged = parts[1].clone();
        damaged[at] ^= 0x10;
        assert_eq!(take(&mut import, &damaged), Err(ImportError::Damaged { part: 1 }));
    }
    let mut older = parts[1].clone();
    older[0] += 1;
    assert_eq!(take(&mut import, &older), Err(ImportError::Format { part: 1 }));
    // A part of another export, whole in itself.
    let mut other = filled(301);
    other.apply(400, 0, &put(1000, "key00000000"));
    let (others, _) = export(&mut other, 4096);
    assert_eq!(take(&mut import, &others[1]), Err(ImportError::Damaged { part: 1 }));
    for part in &parts[1..parts.len() - 1] {
        assert_eq!(take(&mut import, part), Ok(false));
    }
    let last = parts.last().unwrap();
    assert_eq!(take(&mut import, last), Ok(true));
    let again = take(&mut import, last);
    assert!(matches!(again, Err(ImportError::Order { .. })), "{again:?}");
    assert_eq!(import.finish().unwrap().state_hash(), machine.state_hash());
    let unfinished = self::import(&parts[..2], limits).map(drop);
    assert_eq!(unfinished, Err(ImportError::Unfinished { part: 2 }));
}

#[test]
fn a_state_of_other_limits_or_another_hash_is_refused() {
    let mut machine = filled(3);
    let (parts, _) = export(&mut machine, EXPORT_PART_BYTES);
    let other = Limits { parts_max: 7, ..Limits::default() };
    let refused = import(&parts, other).map(drop);
    assert_eq!(refused, Err(ImportError::Limits { found: Limits::default() }));
    // A key that stands just as well in the order, so that only the hash can tell.
    let mut changed = parts.clone();
    let key = changed[0].windows(11).position(|bytes| bytes == b"key00000002").unwrap();
    changed[0][key + 10] = b'3';
    let refused = import(&rechain(&changed), Limits::default()).map(drop);
    assert!(matches!(refused, Err(ImportError::State { .. })), "{refused:?}");
}

#[test]
fn a_cancelled_export_leaves_nothing_behind() {
    let mut machine = filled(100);
    machine.export_begin(256);
    machine.export_slice(5, &mut |_| ());
    machine.apply(1000, 0, &put(1000, "key00000050"));
    machine.export_cancel();
    assert!(!machine.is_exporting());
    let (parts, _) = export(&mut machine, 256);
    let (back, _) = import(&parts, Limits::default()).unwrap();
    assert_eq!(back.state_hash(), machine.state_hash());
}

#[test]
fn an_empty_state_is_one_part() {
    let mut machine = Machine::new(Limits::default());
    let (parts, _) = export(&mut machine, EXPORT_PART_BYTES);
    assert_eq!(parts.len(), 1);
    let (mut back, _) = import(&parts, Limits::default()).unwrap();
    assert_eq!(back.applied(), None);
    let op: Op = put(1, "a");
    assert_eq!(back.apply(0, 0, &op), machine.apply(0, 0, &op));
}

#[test]
fn every_version_is_kept_once_an_operation_has_said_so_and_in_a_copy_of_the_state_too() {
    let mut machine = Machine::new(limits(2));
    for slot in 0..3 {
        machine.apply(slot, 0, &put(slot, "a"));
    }
    assert_eq!((machine.history(b"a").count(), machine.compact_revision()), (2, Some(3)));
    let before = machine.state_hash();
    machine.apply(3, 0, &op(3, Action::KeepHistory));
    assert_ne!(machine.state_hash(), before, "it decides what comes");
    let (parts, _) = export(&mut machine, EXPORT_PART_BYTES);
    let (mut copy, _) = import(&parts, limits(2)).expect("the whole state");
    for machine in [&mut machine, &mut copy] {
        for slot in 4..9 {
            machine.apply(slot, 0, &put(slot, "a"));
        }
        assert_eq!((machine.history(b"a").count(), machine.compact_revision()), (7, Some(3)));
    }
    assert_eq!(machine.state_hash(), copy.full_hash());
}
