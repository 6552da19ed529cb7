//! What can be seen to have no order without looking for one (after Gibbons and Korach).
//!
//! A key holds a value without a break from its put to the last read of it. So it holds it at
//! least from the first response among these operations to the last invocation, if that comes
//! later: its *hold*. Everything else that happens to the key, and all of another value together,
//! lies before the hold or after it.
//!
//! This finds what is most often wrong, a value that comes back, at once and whatever else is in
//! flight, where the search would have to try everything. It never rejects what has an order, and
//! the search follows for what it lets pass.

use crate::problem::{ABSENT, Effect, Problem};

/// First response and last invocation of operations that belong together.
#[derive(Clone, Copy)]
struct Zone {
    first_end: u64,
    last_start: u64,
}

impl Zone {
    const EMPTY: Zone = Zone { first_end: u64::MAX, last_start: 0 };

    fn add(&mut self, from: u64, to: u64) {
        self.first_end = self.first_end.min(to);
        self.last_start = self.last_start.max(from);
    }

    fn is_hold(&self) -> bool {
        self.first_end < self.last_start
    }
}

/// Whether two values of some key, or a value and an absence, would have to be held at once.
pub(crate) fn clash(problem: &Problem) -> bool {
    let mut values = vec![Zone::EMPTY; problem.values];
    let mut key_of_value = vec![None; problem.values];
    // Absences need not be of one piece: each read of one, and each delete, stands alone.
    let mut zones: Vec<Vec<Zone>> = vec![Vec::new(); problem.optional_deletes.len()];
    for step in &problem.steps {
        let mut touch = |key: u32, value: u32| {
            if value == ABSENT {
                zones[key as usize].push(Zone { first_end: step.to, last_start: step.from });
            } else {
                key_of_value[value as usize] = Some(key);
                values[value as usize].add(step.from, step.to);
            }
        };
        match &step.effect {
            Effect::Put { key, value } => touch(*key, *value),
            Effect::Delete { key } => touch(*key, ABSENT),
            Effect::Read(found) => found.iter().for_each(|&(key, value)| touch(key, value)),
        }
    }
    for (zone, key) in values.iter().zip(key_of_value) {
        if let Some(key) = key {
            zones[key as usize].push(*zone);
        }
    }
    zones.iter().any(|zones| clash_of_key(zones))
}

fn clash_of_key(zones: &[Zone]) -> bool {
    let mut holds: Vec<Zone> = zones.iter().copied().filter(Zone::is_hold).collect();
    holds.sort_by_key(|hold| hold.first_end);
    if holds.windows(2).any(|pair| pair[1].first_end < pair[0].last_start) {
        return true;
    }
    // The holds follow each other, so only the last that begins before a zone can enclose it.
    zones.iter().filter(|zone| !zone.is_hold()).any(|zone| {
        let after = holds.partition_point(|hold| hold.first_end < zone.last_start);
        after.checked_sub(1).is_some_and(|at| zone.first_end < holds[at].last_start)
    })
}
