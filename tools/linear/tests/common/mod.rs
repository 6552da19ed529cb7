//! What the tests share: histories made by a correct store, and a checker that tries everything.

#![allow(dead_code)] // Each test program uses a part of it.

use std::collections::BTreeMap;

use racos_linear::{Event, EventId, History, Key, Operation, Outcome};

/// A fixed sequence of numbers that look random.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

pub type Store = BTreeMap<Key, u64>;

/// Does an operation and says what it answers.
pub fn execute(store: &mut Store, operation: &Operation) -> Outcome {
    match operation {
        Operation::Put { key, value } => {
            store.insert(key.clone(), *value);
            Outcome::Done
        }
        Operation::Delete { key } => {
            store.remove(key);
            Outcome::Done
        }
        Operation::Get { key } => Outcome::Found(store.get(key).copied()),
        Operation::RangeRead { from, to } => {
            let inside = |key: &Key| key >= from && to.as_ref().is_none_or(|to| key < to);
            let found = store.iter().filter(|(key, _)| inside(key));
            Outcome::FoundRange(found.map(|(key, &value)| (key.clone(), value)).collect())
        }
    }
}

/// What clients do: how many, how much, and in which mixture (each of 100 operations).
#[derive(Clone, Copy)]
pub struct Load {
    pub clients: u64,
    pub operations: u64,
    pub keys: u64,
    pub puts: u64,
    pub deletes: u64,
    pub range_reads: u64,
    /// Of 100 operations how many fail, some of them with an effect, at once or later.
    pub failures: u64,
    /// Longest time from invocation to effect, and from effect to response.
    pub delay: u64,
}

pub fn key(number: u64) -> Key {
    format!("key {number}").into_bytes()
}

impl Load {
    fn operation(&self, dice: &mut Dice, value: u64) -> Operation {
        let key_at = key(dice.roll(self.keys));
        match dice.roll(100) {
            kind if kind < self.puts => Operation::Put { key: key_at, value },
            kind if kind < self.puts + self.deletes => Operation::Delete { key: key_at },
            kind if kind < self.puts + self.deletes + self.range_reads => {
                let to = dice.roll(3) > 0;
                Operation::RangeRead { from: key_at, to: to.then(|| key(dice.roll(self.keys + 1))) }
            }
            _ => Operation::Get { key: key_at },
        }
    }

    /// A history of a correct store.
    pub fn run(&self, seed: u64) -> History {
        let mut dice = Dice::new(seed);
        // (effect, client, invoked, responded, operation, failed)
        let mut plan = Vec::new();
        for client in 0..self.clients {
            let mut now = dice.roll(self.delay);
            for _ in 0..self.operations {
                let operation = self.operation(&mut dice, plan.len() as u64);
                let failed = dice.roll(100) < self.failures;
                let invoked = now;
                let late = if failed { 1 + dice.roll(10) } else { 1 };
                let effect = invoked + dice.roll(self.delay) * late;
                let responded = if failed { invoked } else { effect } + dice.roll(self.delay);
                now = responded + 1 + dice.roll(3);
                plan.push((effect, client, invoked, responded, operation, failed));
            }
        }
        plan.sort_by_key(|&(effect, client, ..)| (effect, client));
        let mut history = History::new();
        let mut store = Store::new();
        for (_, client, invoked, responded, operation, failed) in plan {
            let id = history.invoke(client, operation.clone(), invoked);
            if !failed {
                history.respond(id, execute(&mut store, &operation), responded);
                continue;
            }
            match dice.roll(4) {
                0 => history.respond(id, Outcome::Never, responded),
                1 => history.respond(id, Outcome::Unknown, responded),
                2 => drop(execute(&mut store, &operation)),
                _ => {
                    execute(&mut store, &operation);
                    history.respond(id, Outcome::Unknown, responded);
                }
            }
        }
        history
    }
}

/// The history again, with changed outcomes.
pub fn change(history: &History, outcome: impl Fn(&Event) -> Outcome) -> History {
    let mut changed = History::new();
    for event in history.events() {
        let id = changed.invoke(event.client, event.operation.clone(), event.invoked);
        if let Some(responded) = event.responded {
            changed.respond(id, outcome(event), responded);
        }
    }
    changed
}

pub fn change_one(history: &History, id: EventId, outcome: &Outcome) -> History {
    change(history, |event| if event.id == id { outcome } else { &event.outcome }.clone())
}

/// Whether some order explains the history, by trying every one.
pub fn oracle(history: &History) -> bool {
    let counts = |event: &&Event| event.outcome != Outcome::Never;
    let events: Vec<&Event> = history.events().iter().filter(counts).collect();
    try_all(&events, &mut vec![false; events.len()], &Store::new())
}

fn try_all(events: &[&Event], done: &mut [bool], store: &Store) -> bool {
    let optional = |event: &Event| event.outcome == Outcome::Unknown;
    let outstanding = || (0..events.len()).filter(|&at| !done[at] && !optional(events[at]));
    let Some(deadline) = outstanding().map(|at| events[at].responded.unwrap()).min() else {
        return true;
    };
    for at in 0..events.len() {
        if done[at] || events[at].invoked > deadline {
            continue;
        }
        let mut after = store.clone();
        let answer = execute(&mut after, &events[at].operation);
        if optional(events[at]) || answer == events[at].outcome {
            done[at] = true;
            if try_all(events, done, &after) {
                return true;
            }
            done[at] = false;
        }
    }
    false
}
