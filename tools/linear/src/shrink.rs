//! Cutting a violation down to what people need to see.
//!
//! Every cut keeps a linearizable history linearizable, so what is left of a bad one after cuts is
//! bad because the whole is. The cuts:
//!
//! - the end: what was invoked after some time goes, and what was not answered by then is unknown;
//! - reads;
//! - a put with all reads of its value: what comes next on the key is a write or does not care;
//! - deletes after which no read finds the key absent, and deletes that were over before a put
//!   which itself was over before every such read;
//! - keys of which no event is left.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashSet;

use crate::history::{Event, EventId, Key, Operation, Outcome};
use crate::problem;
use crate::violation::{Reason, Violation};

/// Checks that cutting down may cost.
const CHECKS_MAX: usize = 20_000;

/// Makes a violation of a group of events that was found to be one for `reason`.
pub(crate) fn explain(mut events: Vec<Event>, reason: Reason, states_max: usize) -> Violation {
    if matches!(reason, Reason::Undecided { .. }) {
        return Violation { reason, keys: keys_of(&events), operations: Vec::new() };
    }
    let mut shrinker = Shrinker { reason, states_max, checks: 0 };
    events = shrinker.cut_end(events);
    events = shrinker.cut_parts(events);
    events.sort_by_key(|event| (event.invoked, event.id));
    Violation { reason, keys: keys_of(&events), operations: events }
}

fn keys_of(events: &[Event]) -> Vec<Key> {
    let mut keys = BTreeSet::new();
    for event in events {
        event.named_keys(|key| {
            keys.insert(key.to_vec());
        });
    }
    keys.into_iter().collect()
}

struct Shrinker {
    reason: Reason,
    states_max: usize,
    checks: usize,
}

impl Shrinker {
    fn is_bad(&mut self, events: &[Event]) -> bool {
        self.checks += 1;
        self.checks <= CHECKS_MAX && problem::check(events, self.states_max) == Err(self.reason)
    }

    /// The shortest beginning that is bad.
    fn cut_end(&mut self, events: Vec<Event>) -> Vec<Event> {
        let mut times: Vec<u64> = events.iter().filter_map(|event| event.responded).collect();
        times.sort_unstable();
        times.dedup();
        let (mut good, mut bad) = (0, times.len());
        let mut shortest = events.clone();
        while good < bad {
            let middle = good + (bad - good) / 2;
            let beginning = until(&events, times[middle]);
            if self.is_bad(&beginning) {
                shortest = beginning;
                bad = middle;
            } else {
                good = middle + 1;
            }
        }
        shortest
    }

    /// Takes out parts, large ones first, until none can go.
    fn cut_parts(&mut self, mut events: Vec<Event>) -> Vec<Event> {
        let mut size = events.len() / 2;
        loop {
            let before = events.len();
            let mut at = 0;
            while at < events.len() {
                let mut fewer = events.clone();
                let end = (at + size.max(1)).min(fewer.len());
                fewer.drain(at..end);
                drop_dependent(&mut fewer, &events);
                if fewer.len() < events.len() && self.is_bad(&fewer) {
                    events = fewer;
                } else {
                    at = end;
                }
            }
            if size <= 1 && events.len() == before {
                return events;
            }
            size /= 2;
        }
    }
}

fn until(events: &[Event], time: u64) -> Vec<Event> {
    let begun = events.iter().filter(|event| event.invoked <= time).cloned();
    let cut = begun.map(|event| match event.responded {
        Some(responded) if responded <= time => event,
        // A refusal learned later is still a fact.
        _ if event.outcome == Outcome::Never => event,
        _ => Event { outcome: Outcome::Unknown, responded: None, ..event },
    });
    cut.filter(|event| !(event.is_read() && event.outcome == Outcome::Unknown)).collect()
}

/// Completes a cut: reads go with their put, and deletes come back unless they may go.
fn drop_dependent(fewer: &mut Vec<Event>, all: &[Event]) {
    let kept: FxHashSet<EventId> = fewer.iter().map(|event| event.id).collect();
    let cut = || all.iter().filter(|event| !kept.contains(&event.id));
    let values: FxHashSet<(&[u8], u64)> = cut()
        .filter_map(|event| match &event.operation {
            Operation::Put { key, value } => Some((&**key, *value)),
            _ => None,
        })
        .collect();
    fewer.retain(|event| !event.found().any(|found| values.contains(&found)));
    let mut absences = BTreeMap::new();
    let mut needed = Vec::new();
    for event in cut() {
        let Operation::Delete { key } = &event.operation else { continue };
        let absence = absences.entry(&**key).or_insert_with(|| Absence::of(key, fewer));
        if !absence.may_lose(event) {
            needed.push(event.clone());
        }
    }
    fewer.extend(needed);
    fewer.sort_by_key(|event| event.id);
}

/// When reads found a key absent.
struct Absence {
    /// First invocation and last response of those reads; `None` without any.
    from: Option<u64>,
    until: Option<u64>,
    /// Last invocation of a put that was done before any of those reads began.
    put_before: Option<u64>,
}

impl Absence {
    fn of(key: &[u8], events: &[Event]) -> Self {
        let absent = || events.iter().filter(|event| event.finds_absent(key));
        let from = absent().map(|read| read.invoked).min();
        let until = absent().filter_map(|read| read.responded).max();
        let puts = events.iter().filter(|event| {
            matches!(&event.operation, Operation::Put { key: own, .. } if own == key)
                && event.outcome == Outcome::Done
                && event.responded < from
        });
        Self { from, until, put_before: puts.map(|put| put.invoked).max() }
    }

    /// Whether no read can owe it to the delete that it found the key absent.
    fn may_lose(&self, delete: &Event) -> bool {
        let ended_before_put =
            delete.outcome == Outcome::Done && delete.responded < self.put_before;
        self.from.is_none() || self.until < Some(delete.invoked) || ended_before_put
    }
}
