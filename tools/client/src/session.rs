//! The session that makes retries exactly once (PROTOCOL 11).
//!
//! Invariant: fewer than `window` numbers are outstanding, and `low` is the smallest of them. A
//! number that was given up counts as received: from then on its write either has been applied or
//! never will be.

use racos_machine::{SessionId, Stamp};
use std::collections::VecDeque;

/// Numbers of the writes of one session.
#[derive(Debug)]
pub struct Session {
    pub id: SessionId,
    window: u32,
    /// Smallest outstanding number; everything below is over.
    low: u64,
    /// Whether `low`, `low + 1`, ... are over; as long as there are numbers given out.
    over: VecDeque<bool>,
    /// When the session was last used: a number was given out, or answered.
    pub used_ns: u64,
}

impl Session {
    pub fn new(id: SessionId, window: u32, now_ns: u64) -> Session {
        let over = VecDeque::with_capacity(window as usize);
        Session { id, window, low: 1, over, used_ns: now_ns }
    }

    pub fn has_room(&self) -> bool {
        self.over.len() < self.window as usize
    }

    pub fn is_idle(&self) -> bool {
        self.over.is_empty()
    }

    /// The stamp of a new write; `None` while the window is full.
    pub fn take(&mut self, now_ns: u64) -> Option<Stamp> {
        // PROTOCOL 11-c
        if !self.has_room() {
            return None;
        }
        let sequence = self.low + self.over.len() as u64;
        self.over.push_back(false);
        self.used_ns = now_ns;
        // PROTOCOL 11-b
        Some(Stamp { session: self.id, sequence, low: self.low })
    }

    /// The smallest outstanding number.
    pub fn low(&self) -> u64 {
        self.low
    }

    /// The reply to a number came, or it was given up.
    pub fn release(&mut self, sequence: u64) {
        let Some(place) = sequence.checked_sub(self.low) else { return };
        self.over[place as usize] = true;
        while self.over.front() == Some(&true) {
            self.over.pop_front();
            self.low += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests PROTOCOL 11-b, 11-c, 11-f
    #[test]
    fn low_is_the_smallest_outstanding_number_and_the_window_is_never_exceeded() {
        let id = SessionId { slot: 3, position: 1 };
        let mut session = Session::new(id, 3, 0);
        let stamps: Vec<_> = (0..3).map(|_| session.take(1).unwrap()).collect();
        assert_eq!(stamps.iter().map(|stamp| stamp.sequence).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(session.take(1).is_none());
        session.release(2);
        assert_eq!(session.low(), 1);
        assert!(session.take(1).is_none(), "number 1 still holds the window");
        session.release(1);
        assert_eq!(session.low(), 3);
        let next = session.take(1).unwrap();
        assert_eq!((next.sequence, next.low), (4, 3));
        session.release(1);
        session.release(3);
        session.release(4);
        assert!(session.is_idle());
        assert_eq!(session.low(), 5);
    }
}
