//! Linearizability of histories of keys: could a single store, doing one operation at a time, each
//! between its invocation and its response, have given these answers?
//!
//! ```
//! use racos_linear::{History, Operation, Outcome, check};
//!
//! let key = b"a".to_vec();
//! let mut history = History::new();
//! let put = history.invoke(1, Operation::Put { key: key.clone(), value: 7 }, 10);
//! history.respond(put, Outcome::Done, 20);
//! let get = history.invoke(2, Operation::Get { key }, 30);
//! history.respond(get, Outcome::Found(None), 40);
//! let violation = check(&history).unwrap_err();
//! assert_eq!(violation.operations.len(), 2, "a stale read: {violation}");
//! ```
//!
//! Each key is a register that starts absent. Every put to a key writes a value of its own, which
//! is what makes thousands of operations a key feasible. A request that failed may or may not have
//! happened, and may happen at any time after it was sent; one known to have been refused did not.
//! Keys are checked one by one, since linearizability is local; keys that one range read covers
//! are checked together, as one object.
//!
//! Invariant: no verdict is a guess. Every rule by which the search leaves orders out is exact
//! (`search` gives the reasons), and a search that grows beyond its bound says so instead of
//! passing. What would break it: a rule that holds only for histories of a correct store.
#![forbid(unsafe_code)]

mod history;
mod problem;
mod search;
mod shrink;
mod violation;
mod zones;

use std::collections::BTreeMap;

pub use history::{Event, EventId, History, Key, Operation, Outcome};
pub use violation::{Reason, Violation};

/// States that [`check`] is willing to remember for one group of keys.
pub const STATES_MAX: usize = 2_000_000;

/// Checks a whole history.
///
/// # Errors
/// The first key, in order, or group of keys, whose operations have no order that explains their
/// outcomes, with the fewest operations that show it.
pub fn check(history: &History) -> Result<(), Violation> {
    check_within(history, STATES_MAX)
}

/// [`check`] with another bound on the states remembered, and so on memory and time.
///
/// # Errors
/// As [`check`], and [`Reason::Undecided`] if the bound is met.
pub fn check_within(history: &History, states_max: usize) -> Result<(), Violation> {
    for events in groups(history) {
        if let Err(reason) = problem::check(&events, states_max) {
            return Err(shrink::explain(events, reason, states_max));
        }
    }
    Ok(())
}

/// Splits a history into groups of events that share no key with each other, in order of keys.
fn groups(history: &History) -> Vec<Vec<Event>> {
    let mut numbers: BTreeMap<&[u8], usize> = BTreeMap::new();
    for event in history.events() {
        event.named_keys(|key| {
            numbers.insert(key, 0);
        });
    }
    for (next, number) in numbers.values_mut().enumerate() {
        *number = next;
    }
    let covered = |event: &Event| {
        let (from, to) = event.key_bounds();
        numbers.range::<[u8], _>((from, to)).map(|(_, &number)| number).collect::<Vec<_>>()
    };
    // Each key points to a smaller one of its group, the smallest to itself.
    let mut smaller: Vec<usize> = (0..numbers.len()).collect();
    for event in history.events().iter().filter(|event| event.is_range_read()) {
        for pair in covered(event).windows(2) {
            let (left, right) = (root(&mut smaller, pair[0]), root(&mut smaller, pair[1]));
            smaller[left.max(right)] = left.min(right);
        }
    }
    let mut groups: BTreeMap<usize, Vec<Event>> = BTreeMap::new();
    for event in history.events() {
        // A range in which nobody ever named a key has nothing to check.
        if let Some(&key) = covered(event).first() {
            groups.entry(root(&mut smaller, key)).or_default().push(event.clone());
        }
    }
    groups.into_values().collect()
}

fn root(smaller: &mut [usize], mut key: usize) -> usize {
    while smaller[key] != key {
        smaller[key] = smaller[smaller[key]];
        key = smaller[key];
    }
    key
}
