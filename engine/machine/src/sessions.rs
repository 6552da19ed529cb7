//! The session table: what makes retries exactly once (PROTOCOL 11).
//!
//! Invariant: no number of a session is applied twice. Once applied, its result stays until `low`
//! passes it, and below `low` nothing is applied; `low` only grows, by what the client itself
//! says it has received. What would break it: forgetting results by age, or keeping a fixed number
//! of the newest ones.
//!
//! Sessions are kept in order of last use. Operations are applied in order, so a session that is
//! used moves to the end of a linked list, and the one to evict is its head: no cost grows with
//! the table.

mod export;

pub(crate) use export::SessionBounds;

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::hash::{self, Kind, Sum};
use crate::op::{SessionId, Stamp};
use crate::outcome::Refusal;
use crate::slab::{Handle, Slab};

const NONE: Handle = Handle::MAX;

/// What the table holds of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionState {
    pub session: SessionId,
    /// Numbers that may be outstanding.
    pub window: u32,
    /// Smallest number whose reply the client may still lack.
    pub low: u64,
    /// Slot and position of the last operation of the session, whatever became of it.
    pub last_use: (u64, u32),
}

/// The result of a number, kept for its retries (PROTOCOL 11-g: no values).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Recorded {
    pub(crate) revision: u64,
    pub(crate) changes: u32,
    pub(crate) refusal: Option<Refusal>,
}

/// What is to be done with a stamped operation.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Refuse(Refusal),
    Replay(Recorded),
    /// Apply it and record what came of it.
    Apply,
}

#[derive(Default, Debug)]
struct Session {
    id: SessionId,
    window: u32,
    low: u64,
    last_use: (u64, u32),
    before: Handle,
    after: Handle,
    /// Results of `low`, `low + 1`, ...; at most `window` of them.
    results: VecDeque<Option<Recorded>>,
}

impl Session {
    fn hash(&self) -> u128 {
        let positions = hash::pair(self.id.position, self.last_use.1);
        let window = u64::from(self.window);
        hash::entry(Kind::Session, [self.id.slot, positions, window, self.low, self.last_use.0])
    }

    fn hash_result(&self, number: u64, result: &Recorded) -> u128 {
        let refusal = result.refusal.map_or(0, |refusal| 1 + refusal as u32);
        let SessionId { slot, position } = self.id;
        let changes = hash::pair(result.changes, refusal);
        let fields = [slot, u64::from(position), number, result.revision, changes];
        hash::entry(Kind::Recorded, fields)
    }

    fn state(&self) -> SessionState {
        let Self { id: session, window, low, last_use, .. } = *self;
        SessionState { session, window, low, last_use }
    }

    fn result(&self, number: u64) -> Option<Recorded> {
        let at = usize::try_from(number - self.low).ok()?;
        self.results.get(at).copied().flatten()
    }
}

#[derive(Debug)]
pub(crate) struct Sessions {
    by_id: FxHashMap<SessionId, Handle>,
    slab: Slab<Session>,
    /// Head and tail of the list in order of last use.
    oldest: Handle,
    newest: Handle,
    /// Sum of all windows: what bounds the memory of results.
    windows: u64,
    sum: Sum,
    /// The state of an export under way; not part of the state.
    pinned: Option<export::Pinned>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            by_id: FxHashMap::default(),
            slab: Slab::default(),
            oldest: NONE,
            newest: NONE,
            windows: 0,
            sum: Sum::default(),
            pinned: None,
        }
    }
}

impl Sessions {
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn windows(&self) -> u64 {
        self.windows
    }

    pub(crate) fn state(&self, id: SessionId) -> Option<SessionState> {
        self.by_id.get(&id).map(|&handle| self.slab.get(handle).state())
    }

    /// Sessions, the one used longest ago first.
    pub(crate) fn by_last_use(&self) -> impl Iterator<Item = SessionState> + '_ {
        let mut next = self.oldest;
        std::iter::from_fn(move || {
            if next == NONE {
                return None;
            }
            let session = self.slab.get(next);
            next = session.after;
            Some(session.state())
        })
    }

    /// Opens a session; the caller has made room for it.
    pub(crate) fn open(&mut self, id: SessionId, window: u32) {
        let last_use = (id.slot, id.position);
        let session = Session { id, window, low: 1, last_use, ..Session::default() };
        self.sum.add(session.hash());
        self.windows += u64::from(window);
        let handle = self.slab.insert(session);
        let other = self.by_id.insert(id, handle);
        assert!(other.is_none(), "a session is opened once");
        self.link(handle);
    }

    /// Takes a session out of the table; false if it is not there.
    pub(crate) fn close(&mut self, id: SessionId) -> bool {
        let Some(handle) = self.by_id.remove(&id) else { return false };
        self.save_pinned(handle);
        self.unlink(handle);
        let session = self.slab.remove(handle);
        self.windows -= u64::from(session.window);
        self.sum.sub(session.hash());
        for (number, result) in (session.low..).zip(&session.results) {
            if let Some(result) = result {
                self.sum.sub(session.hash_result(number, result));
            }
        }
        true
    }

    /// The result recorded for a number, if it has one.
    pub(crate) fn recorded(&self, stamp: &Stamp) -> Option<Recorded> {
        let session = self.slab.get(*self.by_id.get(&stamp.session)?);
        (stamp.sequence >= session.low).then(|| session.result(stamp.sequence)).flatten()
    }

    /// Decides what a stamped operation at `at` (slot, position) comes to: the table of
    /// PROTOCOL 11-e, row by row. Every one counts as a use of the session.
    pub(crate) fn judge(&mut self, stamp: &Stamp, at: (u64, u32)) -> Verdict {
        let Some(&handle) = self.by_id.get(&stamp.session) else {
            if mutant!("operation of an unknown session applied") {
                return Verdict::Apply;
            }
            // PROTOCOL 11-j
            return Verdict::Refuse(Refusal::SessionExpired);
        };
        self.save_pinned(handle);
        self.sum.sub(self.slab.get(handle).hash());
        if self.newest != handle {
            self.unlink(handle);
            self.link(handle);
        }
        let session = self.slab.get_mut(handle);
        session.last_use = at;
        // PROTOCOL 11-f: only by what the client has sent.
        let mut low = session.low.max(stamp.low);
        if mutant!("what the client has received ignored") {
            low = session.low;
        }
        let verdict = if mutant!("numbers not looked up") {
            Verdict::Apply
        } else if stamp.sequence < session.low {
            Verdict::Refuse(Refusal::Stale)
        } else if let Some(result) = session.result(stamp.sequence) {
            Verdict::Replay(result)
        } else if stamp.sequence - low >= u64::from(session.window) {
            Verdict::Refuse(Refusal::Window)
        } else {
            while session.low < low {
                if let Some(Some(result)) = session.results.pop_front() {
                    self.sum.sub(session.hash_result(session.low, &result));
                }
                session.low = if session.results.is_empty() { low } else { session.low + 1 };
            }
            Verdict::Apply
        };
        self.sum.add(session.hash());
        verdict
    }

    /// Records the result of a number that [`Sessions::judge`] let through, if the session has
    /// not ended by the operation itself.
    pub(crate) fn record(&mut self, stamp: &Stamp, result: Recorded) {
        let Some(&handle) = self.by_id.get(&stamp.session) else { return };
        let session = self.slab.get_mut(handle);
        if mutant!("numbers not looked up") {
            return;
        }
        let place = (stamp.sequence - session.low) as usize;
        assert!(place < session.window as usize, "a recorded number is within the window");
        if session.results.len() <= place {
            session.results.resize(place + 1, None);
        }
        let before = session.results[place].replace(result);
        assert!(before.is_none(), "a number is applied once");
        self.sum.add(session.hash_result(stamp.sequence, &result));
    }

    pub(crate) fn hash(&self) -> u128 {
        self.sum.get()
    }

    /// The hash from the entries themselves.
    pub(crate) fn full_hash(&self) -> u128 {
        let mut sum = Sum::default();
        let mut next = self.oldest;
        let mut last_use = None;
        while next != NONE {
            let session = self.slab.get(next);
            assert!(last_use < Some(session.last_use), "sessions are kept in order of last use");
            last_use = Some(session.last_use);
            sum.add(session.hash());
            for (number, result) in (session.low..).zip(&session.results) {
                if let Some(result) = result {
                    sum.add(session.hash_result(number, result));
                }
            }
            next = session.after;
        }
        sum.get()
    }

    fn link(&mut self, handle: Handle) {
        let newest = self.newest;
        let session = self.slab.get_mut(handle);
        (session.before, session.after) = (newest, NONE);
        match newest {
            NONE => self.oldest = handle,
            _ => self.slab.get_mut(newest).after = handle,
        }
        self.newest = handle;
    }

    fn unlink(&mut self, handle: Handle) {
        let Session { before, after, .. } = *self.slab.get(handle);
        match before {
            NONE => self.oldest = after,
            _ => self.slab.get_mut(before).after = after,
        }
        match after {
            NONE => self.newest = before,
            _ => self.slab.get_mut(after).before = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests PROTOCOL 11-g
    #[test]
    fn a_recorded_result_takes_16_bytes() {
        assert_eq!(size_of::<Option<Recorded>>(), 16);
    }
}
