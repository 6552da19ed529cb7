//! What clients did and what they were told.

use std::fmt;
use std::ops::{Bound, RangeBounds};

pub type Key = Vec<u8>;

/// Something a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Writes a value that no other put writes to this key.
    Put {
        key: Key,
        value: u64,
    },
    Delete {
        key: Key,
    },
    Get {
        key: Key,
    },
    /// Reads all keys from `from` up to but not including `to` (`None`: to the end) at one instant.
    RangeRead {
        from: Key,
        to: Option<Key>,
    },
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A put or delete was acknowledged.
    Done,
    /// A get found this value, or no value.
    Found(Option<u64>),
    /// A range read found these keys and no others.
    FoundRange(Vec<(Key, u64)>),
    /// It failed, or was never answered: it may happen at any time after it was invoked, or never.
    Unknown,
    /// It was refused: it did not and will not happen.
    Never,
}

/// The place of an operation in a [`History`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EventId(pub usize);

/// One operation from invocation to response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    pub id: EventId,
    pub client: u64,
    pub operation: Operation,
    pub outcome: Outcome,
    /// When it was invoked, in the units of the history's times.
    pub invoked: u64,
    /// When it was answered; `None` if it was not.
    pub responded: Option<u64>,
}

impl Event {
    pub(crate) fn is_range_read(&self) -> bool {
        matches!(self.operation, Operation::RangeRead { .. })
    }

    pub(crate) fn is_read(&self) -> bool {
        matches!(self.operation, Operation::RangeRead { .. } | Operation::Get { .. })
    }

    /// The bounds of the keys that it reads or writes; those of an empty range hold no key.
    pub(crate) fn key_bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        match &self.operation {
            Operation::Put { key, .. } | Operation::Delete { key } | Operation::Get { key } => {
                (Bound::Included(key), Bound::Included(key))
            }
            Operation::RangeRead { from, to: None } => (Bound::Included(from), Bound::Unbounded),
            Operation::RangeRead { from, to: Some(to) } => {
                (Bound::Included(from), Bound::Excluded(to.max(from)))
            }
        }
    }

    /// Whether it reads or writes the key.
    pub(crate) fn covers(&self, key: &[u8]) -> bool {
        self.key_bounds().contains(key)
    }

    /// The keys and values that a read found.
    pub(crate) fn found(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let one = match (&self.operation, &self.outcome) {
            (Operation::Get { key }, Outcome::Found(Some(value))) => Some((&**key, *value)),
            _ => None,
        };
        let many = match &self.outcome {
            Outcome::FoundRange(found) => found.as_slice(),
            _ => &[],
        };
        one.into_iter().chain(many.iter().map(|(key, value)| (&**key, *value)))
    }

    /// Whether it is a read that found the key absent.
    pub(crate) fn finds_absent(&self, key: &[u8]) -> bool {
        let answered = matches!(self.outcome, Outcome::Found(_) | Outcome::FoundRange(_));
        answered && self.covers(key) && self.found().all(|(found, _)| found != key)
    }

    /// The keys that it names, or found.
    pub(crate) fn named_keys<'a>(&'a self, mut each: impl FnMut(&'a [u8])) {
        match &self.operation {
            Operation::Put { key, .. } | Operation::Delete { key } | Operation::Get { key } => {
                each(key);
            }
            Operation::RangeRead { .. } => self.found().for_each(|(key, _)| each(key)),
        }
    }
}

/// All operations of a run. Times are of one clock; an operation that responds at the very time at
/// which another is invoked counts as overlapping it.
#[derive(Clone, Default, Debug)]
pub struct History {
    events: Vec<Event>,
}

impl History {
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that a client sent an operation. Without a response it counts as unknown.
    pub fn invoke(&mut self, client: u64, operation: Operation, time: u64) -> EventId {
        let id = EventId(self.events.len());
        self.events.push(Event {
            id,
            client,
            operation,
            outcome: Outcome::Unknown,
            invoked: time,
            responded: None,
        });
        id
    }

    /// Notes what the client was told.
    ///
    /// # Panics
    /// If it was told before, earlier than it asked, or something that is no answer to what it
    /// asked: then the history does not tell what happened, and checking it would prove nothing.
    pub fn respond(&mut self, id: EventId, outcome: Outcome, time: u64) {
        let event = &mut self.events[id.0];
        assert!(event.responded.is_none(), "an operation is answered once: {event}");
        assert!(time >= event.invoked, "an answer follows the question: {event}, at {time}");
        let fits = match (&event.operation, &outcome) {
            (_, Outcome::Unknown | Outcome::Never) => true,
            (Operation::Put { .. } | Operation::Delete { .. }, Outcome::Done) => true,
            (Operation::Get { .. }, Outcome::Found(_)) => true,
            (Operation::RangeRead { .. }, Outcome::FoundRange(found)) => {
                found.is_sorted_by(|left, right| left.0 < right.0)
                    && found.iter().all(|(key, _)| event.covers(key))
            }
            _ => false,
        };
        assert!(fits, "an answer fits the question: {event}, not {outcome}");
        event.outcome = outcome;
        event.responded = Some(time);
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }
}

/// A key as text: ASCII as it is, other bytes escaped.
pub(crate) fn show(key: &[u8]) -> String {
    format!("\"{}\"", key.escape_ascii())
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Put { key, value } => write!(f, "put {} = {value}", show(key)),
            Operation::Delete { key } => write!(f, "delete {}", show(key)),
            Operation::Get { key } => write!(f, "get {}", show(key)),
            Operation::RangeRead { from, to: Some(to) } => {
                write!(f, "read {} to {}", show(from), show(to))
            }
            Operation::RangeRead { from, to: None } => write!(f, "read {} to the end", show(from)),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done => write!(f, "done"),
            Outcome::Found(Some(value)) => write!(f, "{value}"),
            Outcome::Found(None) => write!(f, "absent"),
            Outcome::FoundRange(found) if found.is_empty() => write!(f, "all absent"),
            Outcome::FoundRange(found) => {
                let found: Vec<String> =
                    found.iter().map(|(key, value)| format!("{} = {value}", show(key))).collect();
                f.write_str(&found.join(", "))
            }
            Outcome::Unknown => write!(f, "unknown"),
            Outcome::Never => write!(f, "refused"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event { client, operation, outcome, invoked, responded, .. } = self;
        let until = responded.map_or("never".to_owned(), |time| time.to_string());
        write!(f, "{invoked} to {until}, client {client}: {operation} -> {outcome}")
    }
}
