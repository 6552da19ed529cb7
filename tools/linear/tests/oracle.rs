//! The checker against one that tries every order, on small histories, good and bad.

mod common;

use common::{Dice, Load, change_one, key, oracle};
use racos_linear::{Event, History, Operation, Outcome, check};

const SMALL: Load = Load {
    clients: 3,
    operations: 3,
    keys: 1,
    puts: 35,
    deletes: 20,
    range_reads: 0,
    failures: 25,
    delay: 6,
};

/// Another outcome of the same kind, true or not.
fn lie(event: &Event, history: &History, dice: &mut Dice) -> Option<Outcome> {
    let puts: Vec<(&Vec<u8>, u64)> = history
        .events()
        .iter()
        .filter_map(|event| match &event.operation {
            Operation::Put { key, value } => Some((key, *value)),
            _ => None,
        })
        .collect();
    let mut any_value = |key: &Vec<u8>| {
        let values: Vec<u64> =
            puts.iter().filter(|(at, _)| *at == key).map(|(_, value)| *value).collect();
        let pick = dice.roll(1 + values.len() as u64) as usize;
        values.get(pick).copied()
    };
    match (&event.operation, &event.outcome) {
        (Operation::Get { key }, Outcome::Found(_)) => Some(Outcome::Found(any_value(key))),
        (Operation::RangeRead { from, to }, Outcome::FoundRange(_)) => {
            let keys = (0..3).map(key);
            let inside = keys.filter(|key| key >= from && to.as_ref().is_none_or(|to| key < to));
            let found = inside.filter_map(|key| any_value(&key).map(|value| (key, value)));
            Some(Outcome::FoundRange(found.collect()))
        }
        (_, Outcome::Unknown) => Some(Outcome::Never),
        (_, Outcome::Never) => Some(Outcome::Unknown),
        _ => None,
    }
}

fn compare(load: Load, seeds: u64, rejected_min: u64) {
    let mut rejected = 0;
    for seed in 0..seeds {
        let mut dice = Dice::new(!seed);
        let mut history = load.run(seed);
        assert_eq!(check(&history), Ok(()), "a correct store, seed {seed}");
        for _ in 0..1 + dice.roll(4) {
            let at = dice.roll(history.events().len() as u64) as usize;
            let event = &history.events()[at];
            if let Some(outcome) = lie(event, &history, &mut dice)
                && event.responded.is_some()
            {
                history = change_one(&history, event.id, &outcome);
            }
        }
        let verdict = check(&history);
        assert_eq!(verdict.is_ok(), oracle(&history), "seed {seed}: {verdict:?}\n{history:#?}");
        if let Err(violation) = verdict {
            rejected += 1;
            check_explanation(&history, &violation.operations, seed);
        }
    }
    assert!(rejected >= rejected_min, "{rejected} of {seeds} were bad");
}

/// An explanation is part of the history, bad by itself, and every read of it matters. The writes
/// that it leaves out are no excuse for the reads that it shows.
fn check_explanation(history: &History, operations: &[Event], seed: u64) {
    let is_read = |event: &Event| {
        matches!(event.operation, Operation::Get { .. } | Operation::RangeRead { .. })
    };
    for event in operations {
        let original = &history.events()[event.id.0];
        assert_eq!(event.operation, original.operation);
        assert!(event.responded.is_none() || event.outcome == original.outcome, "{event}");
        let others = operations.iter().filter(|other| !is_read(event) || other.id != event.id);
        assert_eq!(oracle(&collect(others)), is_read(event), "seed {seed}: {event}");
    }
    let shown = |event: &Event| operations.iter().any(|other| other.id == event.id);
    let excuses = history.events().iter().filter(|event| !is_read(event) || shown(event));
    assert!(!oracle(&collect(excuses)), "seed {seed}: {operations:?} hides what matters");
}

fn collect<'a>(events: impl Iterator<Item = &'a Event>) -> History {
    let mut history = History::new();
    for event in events {
        let id = history.invoke(event.client, event.operation.clone(), event.invoked);
        if let Some(responded) = event.responded {
            history.respond(id, event.outcome.clone(), responded);
        }
    }
    history
}

#[test]
fn one_key_agrees_with_trying_every_order() {
    compare(SMALL, 8_000, 1_500);
}

#[test]
fn one_key_with_many_deletes_agrees() {
    let load = Load { puts: 25, deletes: 35, failures: 45, clients: 4, operations: 2, ..SMALL };
    compare(load, 8_000, 500);
}

#[test]
fn range_reads_agree() {
    let load = Load { keys: 3, range_reads: 35, puts: 35, deletes: 15, ..SMALL };
    compare(load, 8_000, 1_000);
    compare(Load { keys: 2, delay: 12, operations: 4, ..load }, 5_000, 750);
}
