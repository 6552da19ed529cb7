//! RECODE changes where bytes lie, and nothing else (PROTOCOL 10).

mod common;

use common::{key, op, part, put, value_of};
use proptest::prelude::*;
use racos_machine::{
    Action, Content, Extent, Founding, Limits, Machine, Op, OpId, Outcome, Reconfigure, Refusal,
    Value,
};

const ALPHA: u64 = 64;

/// A store that was founded with three members and has four, with another code, from slot 110 on.
fn changed(before: &[Op]) -> Machine {
    let founding = Founding { nodes: 5, lost_max: 1, data: 3, alpha: ALPHA };
    let mut machine = Machine::with_members(Limits::default(), founding);
    for (slot, op) in (1..).zip(before) {
        assert!(machine.apply(slot, 0, op).done().is_some(), "{op:?}");
    }
    let change = Reconfigure { data: 2, ..machine.members().unchanged() };
    let done = machine.apply(46, 0, &op(900, Action::Reconfigure(Box::new(change))));
    assert!(done.done().is_some());
    machine
}

fn id(number: u64) -> OpId {
    OpId::new(1, 1, 1, number)
}

/// The value of one operation stored again by another, for the members of slots from 110 on.
fn again(old: u64, new: u64) -> Value {
    Value { op: id(new), k: 2, layout: 1, ..value_of(id(old)) }
}

fn recode(old: u64, new: u64) -> Op {
    op(new, Action::Recode { old: id(old), value: again(old, new) })
}

fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

/// tests PROTOCOL 10-ab
#[test]
fn recode_is_void_for_the_reason_it_breaks() {
    let mut machine = changed(&[put(1, "a"), put(2, "b"), part(3)]);
    let mut slot = 110;
    let mut apply = |machine: &mut Machine, op: Op| {
        slot += 1;
        let (before, applied) = (machine.state_hash(), machine.apply(slot, 0, &op));
        assert!(applied.done().is_some() || machine.state_hash() == before, "nothing changed");
        applied
    };
    let other = |change: &dyn Fn(&mut Value)| {
        let mut value = again(1, 10);
        change(&mut value);
        op(10, Action::Recode { old: id(1), value })
    };
    assert_eq!(refused(apply(&mut machine, recode(9, 10))), Refusal::ValueMissing);
    assert_eq!(refused(apply(&mut machine, recode(3, 10))), Refusal::ValueMissing, "it waits");
    let others: [&dyn Fn(&mut Value); 4] = [
        &|value| value.digest[7] ^= 1,
        &|value| value.len -= 1,
        &|value| value.crc ^= 1,
        &|value| value.head[0] ^= 1,
    ];
    for change in others {
        assert_eq!(refused(apply(&mut machine, other(change))), Refusal::ValueConflict);
    }
    let stale = other(&|value| (value.layout, value.k) = (0, 3));
    assert_eq!(refused(apply(&mut machine, stale)), Refusal::OtherLayout);
    assert!(recode(1, 10).check().is_ok());
    let mut foreign = recode(1, 10);
    foreign.id = id(11);
    assert!(foreign.check().is_err(), "it stores its own value");
    // It takes effect once; whoever comes second finds that the old one is gone.
    let revision = machine.revision();
    assert_eq!(apply(&mut machine, recode(1, 10)).done().expect("applied").changes, 0);
    assert_eq!(machine.revision(), revision);
    assert_eq!(refused(apply(&mut machine, recode(1, 12))), Refusal::ValueMissing);
    let value = machine.get(b"a").expect("it is there").values().next().expect("one");
    assert_eq!((value, machine.value(id(10)).expect("in use").slot), (again(1, 10), 118));
    // Nobody but the one in the place of the old one is in use.
    let mut released = Vec::new();
    assert!(machine.take_released(&mut released));
    assert_eq!(released, [id(1)]);
    assert!(machine.value(id(1)).is_none() && machine.value(id(12)).is_none());
    // A name is used once.
    let mut twice = recode(2, 10);
    twice.action = Action::Recode { old: id(2), value: Value { op: id(10), ..again(2, 10) } };
    assert_eq!(refused(apply(&mut machine, twice)), Refusal::ValueConflict);
}

/// tests PROTOCOL 10-ab, 10-ac, 9.8-a: newest, old and compacted ones, alone and in stripes.
#[test]
fn all_versions_follow_and_overwritten_or_deleted_ones_too() {
    let stripes = Content::Stripes([value_of(id(1)), value_of(id(2)), value_of(id(1))].into());
    let shared = |number, at: &str, of: u64| {
        let content = Content::Whole(value_of(id(of)));
        op(number, Action::Put { key: key(at.as_bytes()), content })
    };
    let mut machine = changed(&[
        put(1, "a"),
        put(2, "a"),
        shared(3, "b", 1),
        op(4, Action::Put { key: key(b"c"), content: stripes }),
        op(5, Action::Delete { key: key(b"a") }),
    ]);
    let ops = |machine: &Machine, at: &[u8]| -> Vec<Vec<OpId>> {
        machine.history(at).map(|it| it.values().map(|value| value.op).collect()).collect()
    };
    assert_eq!(machine.older_values(), Extent { values: 2, bytes: 2600 });
    let hash = machine.hash_kv(0);
    machine.apply(110, 0, &recode(1, 10));
    assert_eq!(ops(&machine, b"a"), [vec![id(10)], vec![id(2)], vec![]]);
    assert_eq!(ops(&machine, b"b"), [[id(10)]]);
    assert_eq!(ops(&machine, b"c"), [[id(10), id(2), id(10)]]);
    assert_eq!(machine.value(id(10)).expect("in use").uses, 4);
    assert_eq!((machine.hash_kv(0), machine.state_hash()), (hash, machine.full_hash()));
    assert_eq!(machine.older_values(), Extent { values: 1, bytes: 1300 });
    let left: Vec<OpId> = machine.older_values_from(0, 100).map(|used| used.value.op).collect();
    assert_eq!(left, [id(2)]);
    // An old one that a compaction has taken is gone for good.
    machine.apply(111, 0, &op(20, Action::Delete { key: key(b"c") }));
    machine.apply(112, 0, &op(21, Action::Compact { revision: machine.revision() }));
    for slot in 113..120 {
        machine.apply(slot, 0, &op(22 + slot, Action::Noop));
    }
    assert_eq!(refused(machine.apply(120, 0, &recode(2, 11))), Refusal::ValueMissing);
    assert_eq!(machine.older_values(), Extent::default());
}

/// What anybody can see: without where the bytes lie.
fn seen(machine: &Machine) -> String {
    let keys = (b'a'..b'e').map(|at| {
        let versions = machine.history(&[at]).map(|version| {
            let values = version.values().map(|it| (it.len, it.digest, it.crc, it.head));
            let numbers = (version.created(), version.modified(), version.number());
            (numbers, version.lease(), values.collect::<Vec<_>>())
        });
        format!("{:?}", versions.collect::<Vec<_>>())
    });
    let revisions = (machine.revision(), machine.compact_revision(), machine.is_sweeping());
    let sessions: Vec<_> = machine.sessions_by_last_use().collect();
    let changes: Vec<_> = machine.changes_since(0).cloned().collect();
    let hash = machine.hash_kv(0);
    format!("{:?} {revisions:?} {sessions:?} {changes:?} {hash:?}", keys.collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// tests PROTOCOL 10-ac: the same history with and without re-coding between any two operations.
    #[test]
    fn nobody_sees_that_anything_was_re_coded(
        choices in prop::collection::vec((0u8..8, 0u8..4, any::<prop::sample::Index>()), 1..80),
        history_max in prop::sample::select(vec![1, 2, u32::MAX]),
    ) {
        let limits = Limits { history_max, ..Limits::default() };
        let mut with = Machine::new(limits);
        let mut without = Machine::new(limits);
        with.keep_changes();
        without.keep_changes();
        for (slot, &(what, at, pick)) in (1u64..).zip(&choices) {
            let at = key(&[b'a' + at]);
            let action = match what {
                0..=2 => Action::Put { key: at, content: Content::Whole(value_of(id(slot))) },
                3 => Action::Delete { key: at },
                4 => Action::Compact { revision: 1 + pick.index(without.revision() as usize) as u64 },
                _ => {
                    // Of what is in use, or was.
                    let held: Vec<Value> = with.values().map(|used| used.value).collect();
                    let mut old = match held.is_empty() {
                        true => value_of(id(slot / 2)),
                        false => held[pick.index(held.len())],
                    };
                    old.digest[0] ^= u8::from(what == 7);
                    let value = Value { op: id(slot), k: 1 + what % 3, ..old };
                    Action::Recode { old: old.op, value }
                }
            };
            let is_recode = matches!(action, Action::Recode { .. });
            let op = op(slot, action);
            let outcome = with.apply(slot, 0, &op);
            if is_recode {
                without.apply(slot, 0, &common::op(slot, Action::Noop));
            } else {
                prop_assert_eq!(outcome, without.apply(slot, 0, &op));
            }
            prop_assert_eq!(seen(&with), seen(&without));
            prop_assert_eq!(with.state_hash(), with.full_hash());
            prop_assert_eq!(with.values_len(), without.values_len());
        }
    }
}
