//! Bounds, compaction in slices, what is released, and parts of the state that only the hash
//! shows.

mod common;

use common::{key, op, part, put, stamped, value_of};
use racos_machine::{
    Action, Content, Done, Limits, Machine, Op, OpId, Outcome, RELEASED_MAX, Refusal, SessionId,
};

fn refused(outcome: Outcome) -> Option<Refusal> {
    match outcome {
        Outcome::Refused { reason, .. } => Some(reason),
        _ => None,
    }
}

/// Applies each op in a slot of its own, from slot 0.
fn run(limits: Limits, ops: impl IntoIterator<Item = Op>) -> Machine {
    let mut machine = Machine::new(limits);
    for (slot, op) in (0..).zip(ops) {
        machine.apply(slot, 0, &op);
    }
    machine
}

fn compact(revision: u64) -> Op {
    op(1 << 30, Action::Compact { revision })
}

fn delete_all(id: u64) -> Op {
    op(id, Action::DeleteRange { from: key(b""), to: None })
}

#[test]
#[should_panic(expected = "operations are applied in order")]
fn an_operation_applied_twice_stops_the_node() {
    let mut machine = Machine::new(Limits::default());
    machine.apply(1, 0, &put(1, "a"));
    machine.apply(1, 0, &put(1, "a"));
}

#[test]
fn malformed_operations_are_refused_and_stop_nothing() {
    let mut machine = Machine::new(Limits::default());
    let hash = machine.state_hash();
    let outcome = machine.apply(0, 0, &put(1, ""));
    assert_eq!(outcome, Outcome::Refused { reason: Refusal::Malformed, revision: 1 });
    assert_eq!(machine.state_hash(), hash);
}

#[test]
fn a_range_delete_is_one_revision_with_one_sub_a_key() {
    let mut machine = run(Limits::default(), [put(1, "a"), put(2, "b"), put(3, "c")]);
    let range = Action::DeleteRange { from: key(b"a"), to: Some(key(b"c")) };
    let outcome = machine.apply(9, 4, &op(4, range.clone()));
    assert_eq!(outcome, Outcome::Applied(Done { revision: 5, changes: 2 }));
    let tombstone = machine.history(b"b").last().expect("a tombstone");
    assert!(tombstone.is_tombstone() && tombstone.is_empty());
    assert_eq!((tombstone.modified().main, tombstone.modified().sub), (5, 1));
    let outcome = machine.apply(10, 0, &op(5, range));
    assert_eq!(outcome, Outcome::Applied(Done { revision: 5, changes: 0 }));
    assert_eq!(machine.prefix(b"", 10).count(), 1);
}

#[test]
fn a_full_index_refuses_puts_but_not_deletes() {
    let limits = Limits { versions_max: 3, ..Limits::default() };
    let mut machine = run(limits, [put(1, "a"), put(2, "b"), put(3, "c")]);
    assert_eq!(refused(machine.apply(3, 0, &put(4, "d"))), Some(Refusal::NoSpace));
    assert_eq!(refused(machine.apply(4, 0, &part(5))), Some(Refusal::NoSpace));
    assert_eq!(machine.values_len(), 3);
    assert!(machine.apply(5, 0, &delete_all(6)).done().is_some());
    assert!(machine.apply(6, 0, &compact(5)).done().is_some());
    machine.apply(7, 0, &op(7, Action::Noop));
    assert!(machine.apply(8, 0, &put(8, "d")).done().is_none(), "tombstones at 5 stay");
    assert!(machine.apply(9, 0, &op(9, Action::Delete { key: key(b"zz") })).done().is_some());
}

#[test]
fn history_max_one_keeps_only_what_is_live() {
    let limits = Limits { history_max: 1, ..Limits::default() };
    let mut machine = run(limits, [put(1, "a"), put(2, "a"), put(3, "b")]);
    assert_eq!((machine.versions_len(), machine.values_len()), (2, 2));
    assert_eq!(machine.compact_revision(), Some(3), "revision 2 of a is gone");
    assert_eq!(machine.get_at(b"a", 2).err(), Some(Refusal::Compacted));
    assert_eq!(machine.get(b"a").expect("live").number(), 2);
    machine.apply(3, 0, &delete_all(4));
    assert_eq!((machine.versions_len(), machine.values_len(), machine.keys_len()), (0, 0, 0));
    let mut released = Vec::new();
    assert!(machine.take_released(&mut released));
    assert_eq!(released.len(), 3);
    assert_eq!(machine.state_hash(), machine.full_hash());
}

#[test]
fn what_is_written_over_is_named_once_and_within_bounds() {
    let op_id = |id| OpId::new(1, 1, 1, id);
    let mut machine = run(Limits::default(), [put(1, "a"), put(2, "b"), put(3, "a")]);
    machine.apply(3, 0, &delete_all(4));
    machine.apply(4, 0, &put(5, "a"));
    let mut superseded = Vec::new();
    machine.take_superseded(&mut superseded);
    assert_eq!(superseded, [1, 3, 2].map(op_id), "a deleted key has nothing that could be");
    superseded.clear();
    for id in 0..2 * RELEASED_MAX as u64 {
        machine.apply(5 + id, 0, &put(6 + id, "c"));
    }
    machine.take_superseded(&mut superseded);
    assert_eq!(superseded.len(), RELEASED_MAX);
    machine.take_superseded(&mut superseded);
    assert_eq!((superseded.len(), superseded[0]), (RELEASED_MAX, op_id(6)), "told once");
}

#[test]
fn the_oldest_waiting_part_goes_when_there_are_too_many() {
    let limits = Limits { parts_max: 2, ..Limits::default() };
    let mut machine = run(limits, (1..=3).map(part));
    let op_id = |id| OpId::new(1, 1, 1, id);
    assert_eq!([1, 2, 3].map(|id| machine.value(op_id(id)).is_some()), [false, true, true]);
    let name = |ids: &[u64]| {
        let stripes = ids.iter().map(|&id| value_of(op_id(id))).collect();
        Action::Put { key: key(b"a"), content: Content::Stripes(stripes) }
    };
    let outcome = machine.apply(5, 0, &op(5, name(&[1, 2])));
    assert_eq!(refused(outcome), Some(Refusal::ValueMissing));
    assert_eq!(machine.parts_len(), 2, "a refused put names nothing");
    assert!(machine.apply(6, 0, &op(6, name(&[3, 2, 3]))).done().is_some());
    assert_eq!(machine.parts_len(), 0);
    assert_eq!(machine.value(op_id(3)).expect("named").uses, 2);
    let named: Vec<OpId> = machine.get(b"a").expect("put").values().map(|value| value.op).collect();
    assert_eq!(named, [3, 2, 3].map(op_id));
}

#[test]
fn compaction_goes_in_slices_that_no_read_can_tell() {
    let keys = 100u64;
    let name = |id: u64| format!("key {:02}", id % keys);
    let ops = (1..=3 * keys).map(|id| match id {
        id if id > 2 * keys && id % 2 == 0 => {
            op(id, Action::Delete { key: name(id).into_bytes().into() })
        }
        id => put(id, &name(id)),
    });
    let mut machine = run(Limits::default(), ops);
    let revision = 1 + 3 * keys;
    let seen = |machine: &Machine, at| {
        let range = machine.range_at(b"", None, at, usize::MAX).expect("readable");
        range.map(|(key, version)| format!("{key:?} {version:?}")).collect::<Vec<_>>()
    };
    let before: Vec<_> = (revision - 50..=revision).map(|at| seen(&machine, at)).collect();
    machine.apply(1000, 0, &compact(revision - 100));
    let mut slices = 1;
    while machine.is_sweeping() {
        if slices == 5 {
            machine.apply(1000 + slices, 0, &compact(revision - 50));
        } else {
            machine.apply(1000 + slices, 0, &op(slices, Action::Noop));
        }
        slices += 1;
        let from = if slices > 5 { revision - 50 } else { revision - 100 };
        assert_eq!(machine.compact_revision(), Some(from));
        assert_eq!(machine.get_at(b"key 01", from - 1).err(), Some(Refusal::Compacted));
        for (at, expected) in (revision - 50..=revision).zip(&before) {
            assert_eq!(&seen(&machine, at), expected);
        }
        assert_eq!(machine.state_hash(), machine.full_hash());
    }
    assert!(slices > 20, "two rounds in slices, not one sweep: {slices}");
    // 25 keys put before, one tombstone right at the revision, two versions each of the others.
    assert_eq!(machine.versions_len(), 25 + 100 + 1);
    assert_eq!(refused(machine.apply(2000, 0, &compact(1))), Some(Refusal::Compacted));
    let future = machine.apply(2001, 0, &compact(revision + 1));
    assert_eq!(refused(future), Some(Refusal::FutureRevision));
}

#[test]
fn more_released_values_than_are_remembered_are_said_to_be_missing() {
    let limits = Limits { history_max: 1, ..Limits::default() };
    let count = RELEASED_MAX as u64 + 1;
    let mut machine = run(limits, (1..=count).map(|id| put(id, &id.to_string())));
    machine.apply(count, 0, &delete_all(count + 1));
    let mut released = Vec::new();
    assert!(!machine.take_released(&mut released));
    assert_eq!(released.len(), RELEASED_MAX);
    assert!(machine.take_released(&mut released), "told once");
    assert_eq!(machine.values_len(), 0);
}

#[test]
fn recorded_results_are_part_of_the_hash() {
    let open = || op(0, Action::OpenSession { window: 8 });
    let lacking = |sequence| {
        let content = Content::Whole(value_of(OpId(5)));
        let put = op(1, Action::Put { key: key(b"a"), content });
        stamped(put, SessionId::default(), sequence, 1)
    };
    let noop = |sequence| stamped(op(1, Action::Noop), SessionId::default(), sequence, 1);
    let hashes = [lacking(1), lacking(2), noop(1), noop(2)]
        .map(|op| run(Limits::default(), [open(), op]).state_hash());
    for (at, hash) in hashes.iter().enumerate() {
        assert!(!hashes[..at].contains(hash));
    }
}

#[test]
fn the_session_of_a_waiting_part_is_part_of_the_hash() {
    let open = |id| op(id, Action::OpenSession { window: 8 });
    let [a, b] = [0, 1].map(|slot| SessionId { slot, position: 0 });
    let noop = |session, sequence| stamped(op(9, Action::Noop), session, sequence, sequence);
    let of = |owner, other| {
        let stored = stamped(part(2), owner, 1, 1);
        let ops = [open(0), open(1), stored, noop(other, 1), noop(a, 2), noop(b, 2)];
        run(Limits::default(), ops)
    };
    let (left, right) = (of(a, b), of(b, a));
    assert!(left.sessions_by_last_use().eq(right.sessions_by_last_use()));
    assert_ne!(left.state_hash(), right.state_hash());
}

#[test]
fn how_far_a_compaction_is_shows_in_the_hash() {
    let ops = || (1..=40).map(|id| put(id, &format!("{id:02}")));
    let mut machine = run(Limits::default(), ops().chain([compact(41)]));
    let mut hashes = vec![machine.state_hash()];
    while machine.is_sweeping() {
        machine.apply(100 + hashes.len() as u64, 0, &op(1, Action::Noop));
        assert!(!hashes.contains(&machine.state_hash()));
        hashes.push(machine.state_hash());
    }
    assert!(hashes.len() >= 4);
}
