//! From events to the puzzle that the search solves.
//!
//! Unknown puts are settled here, exactly. One whose value nobody read is left out: in any order
//! that contains it, what follows it is a write or nothing that depends on it, so the order without
//! it is as good. One whose value somebody read did happen, before the first such read responded.
//! Unknown deletes stay optional; see `search`.

use std::collections::BTreeMap;

use crate::history::{Event, Operation, Outcome};
use crate::search;
use crate::violation::Reason;
use crate::zones;

/// Marks "absent" where a put's number could stand.
pub(crate) const ABSENT: u32 = u32::MAX;
/// The response time of what may happen at any time.
const OPEN: u64 = u64::MAX;

/// Keys, and the values found there at one instant; [`ABSENT`] for no value.
pub(crate) type Found = Box<[(u32, u32)]>;

/// An operation that has a place in the order.
#[derive(Debug)]
pub(crate) struct Step {
    /// It happens not before this time,
    pub(crate) from: u64,
    /// and not after this one.
    pub(crate) to: u64,
    pub(crate) effect: Effect,
}

#[derive(Debug)]
pub(crate) enum Effect {
    /// The key comes to hold the value with this number.
    Put {
        key: u32,
        value: u32,
    },
    Delete {
        key: u32,
    },
    Read(Found),
}

/// Operations of one group of keys. Steps must all happen, optional deletes need not.
#[derive(Debug)]
pub(crate) struct Problem {
    /// In order of `from`.
    pub(crate) steps: Vec<Step>,
    /// For each key the times from which on an unknown delete may happen, in order.
    pub(crate) optional_deletes: Vec<Vec<u64>>,
    /// Number of values put.
    pub(crate) values: usize,
}

struct Put {
    key: u32,
    invoked: u64,
    /// When it had certainly happened; [`OPEN`] if that is not known.
    happened: u64,
    never: bool,
}

/// Whether the events, all of one group, can be ordered.
pub(crate) fn check(events: &[Event], states_max: usize) -> Result<(), Reason> {
    let problem = translate(events)?;
    if zones::clash(&problem) {
        return Err(Reason::NoOrder);
    }
    // What is wrong with one key alone is found much sooner by looking at it alone.
    let keys = problem.optional_deletes.len() as u32;
    if keys > 1 {
        (0..keys).try_for_each(|key| search::solve(&problem.of_key(key), states_max))?;
    }
    search::solve(&problem, states_max)
}

impl Problem {
    /// What is left if all keys but one are left out.
    fn of_key(&self, only: u32) -> Problem {
        let steps = self.steps.iter().filter_map(|&Step { from, to, ref effect }| {
            let effect = match effect {
                Effect::Put { key, value } if *key == only => Effect::Put { key: 0, value: *value },
                Effect::Delete { key } if *key == only => Effect::Delete { key: 0 },
                Effect::Read(found) => {
                    let (_, value) = found.iter().find(|(key, _)| *key == only)?;
                    Effect::Read([(0, *value)].into())
                }
                _ => return None,
            };
            Some(Step { from, to, effect })
        });
        Problem {
            steps: steps.collect(),
            optional_deletes: vec![self.optional_deletes[only as usize].clone()],
            values: self.values,
        }
    }
}

fn translate(events: &[Event]) -> Result<Problem, Reason> {
    let keys = number_keys(events);
    let (mut puts, by_value) = collect_puts(events, &keys)?;
    let mut steps = Vec::new();
    let mut optional_deletes = vec![Vec::new(); keys.len()];
    for event in events {
        let to = event.responded.unwrap_or(OPEN);
        match (&event.operation, &event.outcome) {
            (Operation::Delete { key }, Outcome::Done) => {
                let effect = Effect::Delete { key: keys[&**key] };
                steps.push(Step { from: event.invoked, to, effect });
            }
            (Operation::Delete { key }, Outcome::Unknown) => {
                optional_deletes[keys[&**key] as usize].push(event.invoked);
            }
            _ => {
                if let Some(found) = found(event, &keys, &by_value)? {
                    steps.push(read(event.invoked, to, found, &mut puts)?);
                }
            }
        }
    }
    for (value, put) in (0..).zip(&puts) {
        if put.happened != OPEN {
            let effect = Effect::Put { key: put.key, value };
            steps.push(Step { from: put.invoked, to: put.happened, effect });
        }
    }
    steps.sort_by_key(|step| step.from);
    optional_deletes.iter_mut().for_each(|times| times.sort_unstable());
    Ok(Problem { steps, optional_deletes, values: puts.len() })
}

fn number_keys(events: &[Event]) -> BTreeMap<&[u8], u32> {
    let mut keys = BTreeMap::new();
    for event in events {
        event.named_keys(|key| {
            let next = keys.len() as u32;
            keys.entry(key).or_insert(next);
        });
    }
    keys
}

type Values = BTreeMap<(u32, u64), u32>;

fn collect_puts(
    events: &[Event],
    keys: &BTreeMap<&[u8], u32>,
) -> Result<(Vec<Put>, Values), Reason> {
    let mut puts = Vec::new();
    let mut by_value = Values::new();
    for event in events {
        let Operation::Put { key, value } = &event.operation else { continue };
        let key = keys[&**key];
        if by_value.insert((key, *value), puts.len() as u32).is_some() {
            return Err(Reason::NotUnique);
        }
        let done = event.outcome == Outcome::Done;
        puts.push(Put {
            key,
            invoked: event.invoked,
            happened: event.responded.filter(|_| done).unwrap_or(OPEN),
            never: event.outcome == Outcome::Never,
        });
    }
    Ok((puts, by_value))
}

/// What a read found at every key it covers; `None` if the event is no read or has no result.
fn found(
    event: &Event,
    keys: &BTreeMap<&[u8], u32>,
    by_value: &Values,
) -> Result<Option<Found>, Reason> {
    let number =
        |key: u32, value: u64| by_value.get(&(key, value)).copied().ok_or(Reason::NeverWritten);
    match (&event.operation, &event.outcome) {
        (Operation::Get { key }, Outcome::Found(value)) => {
            let key = keys[&**key];
            let value = value.map_or(Ok(ABSENT), |value| number(key, value))?;
            Ok(Some([(key, value)].into()))
        }
        (Operation::RangeRead { .. }, Outcome::FoundRange(found)) => {
            let values: BTreeMap<&[u8], u64> =
                found.iter().map(|(key, value)| (&**key, *value)).collect();
            let covered = keys.iter().filter(|(key, _)| event.covers(key));
            let all = covered.map(|(key, &at)| {
                Ok((at, values.get(key).map_or(Ok(ABSENT), |&value| number(at, value))?))
            });
            all.collect::<Result<_, _>>().map(Some)
        }
        _ => Ok(None),
    }
}

/// Makes the step of a read, and notes that the puts it saw happened before it responded.
fn read(from: u64, to: u64, found: Found, puts: &mut [Put]) -> Result<Step, Reason> {
    for &(_, value) in found.iter().filter(|&&(_, value)| value != ABSENT) {
        let put = &mut puts[value as usize];
        if put.never {
            return Err(Reason::NeverWritten);
        }
        if put.invoked > to {
            return Err(Reason::FromTheFuture);
        }
        put.happened = put.happened.min(to);
    }
    Ok(Step { from, to, effect: Effect::Read(found) })
}
