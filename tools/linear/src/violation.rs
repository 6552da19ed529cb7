//! What is wrong with a history, for people to read.

use std::fmt;

use crate::history::{Event, Key, show};

/// Why a history was rejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A read found a value that no put wrote to the key, or only one that was refused.
    NeverWritten,
    /// A read found a value before the put of it was invoked.
    FromTheFuture,
    /// Two puts wrote the same value to a key: the history cannot be checked.
    NotUnique,
    /// No order of the operations explains all outcomes.
    NoOrder,
    /// The search grew beyond its bound. Nothing is known; the history needs fewer operations in
    /// flight, or smaller ranges.
    Undecided { states: usize },
}

/// A history that is not linearizable, cut down to what shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    pub reason: Reason,
    /// The keys concerned, in order.
    pub keys: Vec<Key>,
    /// The operations that show it, in order of invocation. An outcome may be weaker than in the
    /// history (unknown instead of done) where the rest suffices.
    pub operations: Vec<Event>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NeverWritten => write!(f, "a read found a value that was never written"),
            Reason::FromTheFuture => {
                write!(f, "a read found a value before its put was invoked")
            }
            Reason::NotUnique => {
                write!(f, "two puts wrote the same value, so reads cannot be told apart")
            }
            Reason::NoOrder => write!(f, "no order of these operations explains their outcomes"),
            Reason::Undecided { states } => {
                write!(f, "not decided within {states} states; use fewer operations in flight")
            }
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(|key| show(key)).collect();
        let noun = if keys.len() == 1 { "key" } else { "keys" };
        write!(f, "{noun} {}: {}", keys.join(", "), self.reason)?;
        for event in &self.operations {
            write!(f, "\n  {event}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Violation {}
