//! The machine against the naive model, and replicas against each other.

mod common;

use common::{Model, ModelVersion, Source};
use proptest::prelude::*;
use racos_machine::{Action, Limits, Machine, Op, OpId, SessionState, Version};

fn limits(history_max: u32) -> Limits {
    Limits { sessions_max: 3, parts_max: 3, history_max, ..Limits::default() }
}

fn seen(version: Version<'_>) -> ModelVersion {
    ModelVersion {
        created: version.created(),
        main: version.modified().main,
        sub: version.modified().sub,
        number: version.number(),
        values: version.values().collect(),
    }
}

fn check_state(machine: &Machine, model: &Model, ops: &[OpId]) {
    assert_eq!(machine.revision(), model.revision);
    assert_eq!(machine.compact_revision(), model.compacted);
    assert_eq!(machine.keys_len(), model.keys.len());
    assert_eq!(machine.versions_len(), model.keys.values().map(Vec::len).sum::<usize>());
    for (key, versions) in &model.keys {
        assert_eq!(&machine.history(key).map(seen).collect::<Vec<_>>(), versions, "{key:?}");
        let newest = machine.get(key).map(seen);
        assert_eq!(newest.as_ref(), model.at(key, u64::MAX));
    }
    for &op in ops {
        let held = machine.value(op);
        assert_eq!(held.map(|held| held.value), model.find(op), "{op}");
        assert_eq!(held.map_or(0, |held| held.uses), model.uses(op), "{op}");
    }
    assert_eq!(machine.parts_len(), model.parts.len());
    let mut sessions: Vec<SessionState> = machine.sessions_by_last_use().collect();
    assert!(sessions.is_sorted_by_key(|held| held.last_use));
    sessions.sort_by_key(|held| held.session);
    assert_eq!(sessions.len(), model.sessions.len());
    for (held, (id, expected)) in sessions.iter().zip(&model.sessions) {
        assert_eq!((held.session, held.low), (*id, expected.low));
        assert_eq!((u64::from(held.window), held.last_use), (expected.window, expected.last_use));
    }
}

fn check_reads(machine: &Machine, model: &Model, pick: u64) {
    let oldest = model.compacted.unwrap_or(0);
    let revision = oldest + pick % (model.revision - oldest + 1);
    let (from, to) = ([b'a' + pick as u8 % 16], [b'a' + (pick / 16) as u8 % 18]);
    let in_range = |key: &[u8]| key >= &from[..] && (pick.is_multiple_of(5) || key < &to[..]);
    let to = (!pick.is_multiple_of(5)).then_some(&to[..]);
    let limit = 1 + pick as usize % 7;
    let collect = |found: &mut dyn Iterator<Item = (&[u8], Version<'_>)>| {
        found.map(|(key, version)| (key.to_vec(), seen(version))).collect::<Vec<_>>()
    };
    let expected = |revision| {
        let keys = model.keys.keys().filter(|key| in_range(key));
        let found = keys.filter_map(|key| Some((key.clone(), model.at(key, revision)?.clone())));
        found.take(limit).collect::<Vec<_>>()
    };
    assert_eq!(collect(&mut machine.range(&from, to, limit)), expected(u64::MAX));
    let at = machine.range_at(&from, to, revision, limit);
    assert_eq!(collect(&mut at.expect("readable")), expected(revision));
    for key in model.keys.keys() {
        let found = machine.get_at(key, revision).expect("readable").map(seen);
        assert_eq!(found.as_ref(), model.at(key, revision));
    }
    assert!(machine.get_at(b"a", model.revision + 1).is_err());
    assert!(oldest == 0 || machine.get_at(b"a", oldest - 1).is_err());
}

/// Applies to both replicas and the model, and finishes compactions at once as the model does.
fn apply_all(replicas: &mut [Machine; 2], model: &mut Model, slot: u64, op: &Op) {
    let expected = model.apply(slot, 0, op);
    for machine in replicas.iter_mut() {
        assert_eq!(machine.apply(slot, 0, op), expected, "{op:?}");
        let idle = common::op(0, Action::Noop);
        (1..)
            .take_while(|&position| {
                let sweeping = machine.is_sweeping();
                if sweeping {
                    machine.apply(slot, position, &idle);
                }
                sweeping
            })
            .for_each(drop);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// tests PROTOCOL 7-c, 7-d, 7-j, 7-k
    #[test]
    fn machine_does_what_the_model_does(
        choices in prop::collection::vec(any::<[u8; 4]>(), 1..150),
        history_max in prop::sample::select(vec![1, 2, 3, u32::MAX]),
    ) {
        let limits = limits(history_max);
        let mut replicas = [Machine::new(limits), Machine::new(limits)];
        let mut model = Model::new(limits);
        let mut source = Source::default();
        let (mut ops, mut released) = (Vec::new(), Vec::new());
        for (slot, &choice) in (0..).zip(&choices) {
            let op = source.op(slot, 0, choice);
            ops.push(op.id);
            let live: Vec<OpId> = ops.iter().copied().filter(|&op| model.find(op).is_some()).collect();
            apply_all(&mut replicas, &mut model, slot, &op);
            check_state(&replicas[0], &model, &ops);
            check_reads(&replicas[0], &model, u64::from(choice[1]) * 256 + u64::from(choice[2]));
            prop_assert_eq!(replicas[0].state_hash(), replicas[1].state_hash());
            prop_assert_eq!(replicas[0].state_hash(), replicas[0].full_hash());
            released.clear();
            prop_assert!(replicas[0].take_released(&mut released));
            released.sort();
            let mut gone: Vec<OpId> =
                live.into_iter().filter(|&op| model.find(op).is_none()).collect();
            gone.sort();
            gone.dedup();
            prop_assert_eq!(&released, &gone, "values that leave the table are reported");
        }
    }

    #[test]
    fn states_that_differ_have_different_hashes(
        choices in prop::collection::vec(any::<[u8; 4]>(), 1..60),
        change_at in any::<prop::sample::Index>(),
        change in any::<[u8; 4]>(),
    ) {
        let run = |choices: &[[u8; 4]]| {
            let mut machine = Machine::new(limits(u32::MAX));
            let mut source = Source::default();
            let mut ops = Vec::new();
            let mut trace = String::new();
            for (slot, &choice) in (0..).zip(choices) {
                let op = source.op(slot, 0, choice);
                machine.apply(slot, 0, &op);
                ops.push(op.id);
                // Every state of one history that differs from the last one differs in hash, too.
                trace = dump(&machine, &ops);
            }
            (trace, machine.state_hash())
        };
        let mut changed = choices.clone();
        changed[change_at.index(choices.len())] = change;
        let (left, right) = (run(&choices), run(&changed));
        prop_assert!(left.0 == right.0 || left.1 != right.1, "{} hides a difference", left.1);
    }
}

/// All that can be seen of a state.
fn dump(machine: &Machine, ops: &[OpId]) -> String {
    let keys: Vec<String> = (b'a'..b'a' + 16)
        .flat_map(|first| [vec![first], vec![first, b'x']])
        .map(|key| format!("{:?}", machine.history(&key).map(seen).collect::<Vec<_>>()))
        .collect();
    let values: Vec<_> = ops.iter().filter_map(|&op| machine.value(op)).collect();
    let sessions: Vec<_> = machine.sessions_by_last_use().collect();
    let revisions = (machine.revision(), machine.compact_revision(), machine.is_sweeping());
    format!("{keys:?} {values:?} {sessions:?} {revisions:?} {}", machine.parts_len())
}
