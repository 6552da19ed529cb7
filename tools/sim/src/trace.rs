//! What happened, as a hash and, if asked, as lines.
//!
//! Invariant: two runs with the same hash delivered the same packets, completed the same disk
//! operations and answered the same to clients, at the same times in the same order.

use std::fmt;

/// Hash and text of a run.
pub struct Trace {
    hash: u64,
    events: u64,
    print: bool,
}

/// A time as a person reads it: milliseconds with six digits.
struct Millis(u64);

impl fmt::Display for Millis {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:>6}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// A hash of all that the debug form of something shows: the same in every build.
pub(crate) fn hash_of(of: &impl fmt::Debug) -> u64 {
    let mut trace = Trace::new(false);
    format!("{of:?}").bytes().for_each(|byte| trace.note(0, &[byte.into()]));
    trace.hash()
}

impl Trace {
    pub fn new(print: bool) -> Trace {
        Trace { hash: 0, events: 0, print }
    }

    /// Notes an event by the numbers that make it.
    pub fn note(&mut self, at_ns: u64, words: &[u64]) {
        self.events += 1;
        for word in std::iter::once(at_ns).chain(words.iter().copied()) {
            self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        }
    }

    /// Prints a line if the run is traced.
    pub fn say(&self, at_ns: u64, line: impl FnOnce() -> String) {
        if self.print {
            println!("{} {}", Millis(at_ns), line());
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash ^ self.events
    }

    pub fn events(&self) -> u64 {
        self.events
    }
}
