//! Sessions of an export (see [`crate::export`]).
//!
//! Invariant: of the pinned state, what is not written yet is at its place in the order of last
//! use or saved. A session that is used leaves its place, so it is saved right before.

use std::collections::{BTreeMap, VecDeque};

use super::{NONE, Recorded, Session, Sessions};
use crate::export::{Out, entry};
use crate::op::{SESSION_WINDOW_MAX, SessionId, check_bounds};
use crate::outcome::Refusal;
use crate::slab::Handle;
use crate::wire::{DecodeError, Problem, Reader, put_session, put_varint, require};

/// Slot and position.
type At = (u64, u32);

/// The pinned sessions, and how far they are written.
#[derive(Debug)]
pub(super) struct Pinned {
    applied: Option<At>,
    /// The next session to write of those still at their place; [`NONE`]: none is left.
    next: Handle,
    saved: BTreeMap<At, Session>,
}

impl Sessions {
    pub(crate) fn pin(&mut self, applied: Option<At>) {
        self.pinned = Some(Pinned { applied, next: self.oldest, saved: BTreeMap::new() });
    }

    pub(crate) fn unpin(&mut self) {
        self.pinned = None;
    }

    /// Saves a session that is about to change or to go.
    pub(super) fn save_pinned(&mut self, handle: Handle) {
        let Some(pinned) = &mut self.pinned else { return };
        if pinned.next == NONE {
            return;
        }
        let session = self.slab.get(handle);
        let next = self.slab.get(pinned.next).last_use;
        if Some(session.last_use) > pinned.applied || session.last_use < next {
            return;
        }
        let results = session.results.clone();
        pinned.saved.insert(session.last_use, Session { results, ..*session });
        if pinned.next == handle {
            pinned.next = session.after;
            pinned.skip_newer(&self.slab);
        }
    }

    /// Writes on; true when all is written.
    pub(crate) fn export(&mut self, out: &mut Out<'_>) -> bool {
        let pinned = self.pinned.as_mut().expect("sessions are exported from a pinned table");
        loop {
            pinned.skip_newer(&self.slab);
            let held = (pinned.next != NONE).then(|| self.slab.get(pinned.next));
            let saved = pinned.saved.first_key_value().map(|(&at, _)| at);
            let Some(at) = held.map(|held| held.last_use).into_iter().chain(saved).min() else {
                return true;
            };
            if out.is_full() {
                return false;
            }
            if saved == Some(at) {
                let (_, session) = pinned.saved.pop_first().expect("looked at above");
                put(&session, out);
            } else {
                let session = held.expect("looked at above");
                put(session, out);
                pinned.next = session.after;
            }
        }
    }

    /// Takes a session, in order of last use.
    pub(crate) fn import(
        &mut self,
        from: &mut Reader<'_>,
        bounds: &SessionBounds,
    ) -> Result<(), DecodeError> {
        let session = get(from)?;
        let rule = |holds, rule| require(holds, "session", rule);
        let before = (self.newest != NONE).then(|| self.slab.get(self.newest).last_use);
        rule(before < Some(session.last_use), "sessions stand in order of last use")?;
        rule(Some(session.last_use) <= bounds.applied, "no use is of an operation not applied")?;
        rule(!self.by_id.contains_key(&session.id), "a session is opened once")?;
        rule(self.len() < bounds.sessions_max as usize, "no more sessions than may be")?;
        let windows = self.windows + u64::from(session.window);
        rule(windows <= bounds.windows_max, "no more numbers outstanding than may be")?;
        self.windows = windows;
        self.sum.add(session.hash());
        for (number, result) in (session.low..).zip(&session.results) {
            if let Some(result) = result {
                self.sum.add(session.hash_result(number, result));
            }
        }
        let id = session.id;
        let handle = self.slab.insert(session);
        self.by_id.insert(id, handle);
        self.link(handle);
        Ok(())
    }
}

/// What bounds imported sessions.
pub(crate) struct SessionBounds {
    pub(crate) applied: Option<At>,
    pub(crate) sessions_max: u32,
    pub(crate) windows_max: u64,
}

impl Pinned {
    /// Sessions used since the pin stand behind all others.
    fn skip_newer(&mut self, slab: &crate::slab::Slab<Session>) {
        if self.next != NONE && Some(slab.get(self.next).last_use) > self.applied {
            self.next = NONE;
        }
    }
}

fn put(session: &Session, out: &mut Out<'_>) {
    let Session { id, window, low, last_use: (slot, position), results, .. } = session;
    out.bytes.push(entry::SESSION);
    put_session(out.bytes, *id);
    let fields = [u64::from(*window), *low, *slot, u64::from(*position), results.len() as u64];
    fields.iter().for_each(|&field| put_varint(out.bytes, field));
    for result in results {
        let Some(Recorded { revision, changes, refusal }) = result else {
            out.bytes.push(0);
            continue;
        };
        out.bytes.push(refusal.map_or(1, |refusal| 2 + refusal as u8));
        put_varint(out.bytes, *revision);
        put_varint(out.bytes, u64::from(*changes));
    }
}

fn get(from: &mut Reader<'_>) -> Result<Session, DecodeError> {
    let id: SessionId = from.session("session")?;
    let window = from.number32("window")?;
    check_bounds("window", window as usize, 1, SESSION_WINDOW_MAX as usize)?;
    let low = from.varint("session low")?;
    let last_use = (from.varint("last use slot")?, from.number32("last use position")?);
    let count = from.varint("result count")?;
    let rule = |holds, rule| require(holds, "session", rule);
    rule(count <= u64::from(window), "no more results than its window")?;
    rule(low >= 1 && low.checked_add(count).is_some(), "numbers begin at 1 and do not overflow")?;
    rule((id.slot, id.position) <= last_use, "a session is used from its opening on")?;
    let results = (0..count).map(|_| get_result(from)).collect::<Result<VecDeque<_>, _>>()?;
    rule(!matches!(results.back(), Some(None)), "the last result is one")?;
    Ok(Session { id, window, low, last_use, before: NONE, after: NONE, results })
}

fn get_result(from: &mut Reader<'_>) -> Result<Option<Recorded>, DecodeError> {
    let refusal =
        match from.byte("result")? {
            0 => return Ok(None),
            1 => None,
            code => Some(Refusal::from_code(code - 2).ok_or_else(|| {
                DecodeError::new("result", Problem::Unknown { value: code.into() })
            })?),
        };
    let (revision, changes) = (from.varint("result revision")?, from.number32("result changes")?);
    Ok(Some(Recorded { revision, changes, refusal }))
}
