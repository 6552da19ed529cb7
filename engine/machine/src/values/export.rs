//! Waiting parts of an export, and values named by others (see [`crate::export`]).
//!
//! Invariant: of the pinned state, what is not written yet waits still or is saved. A part never
//! changes while it waits, so that it stops waiting is the one change to save. What stored a value
//! that versions name may be another operation later: then the one of the pinned state is saved.

use std::collections::BTreeMap;

use super::{Stored, ValueTable, ValueUse, Waiting};
use crate::export::{Out, entry};
use crate::op::{OpId, SessionId, Value};
use crate::slab::Handle;
use crate::wire::{DecodeError, Reader, put_session, put_stored, put_varint, require};

/// Slot and position.
type At = (u64, u32);

/// The pinned parts, and how far they are written.
#[derive(Debug)]
pub(super) struct Pinned {
    applied: Option<At>,
    written: Option<At>,
    saved: BTreeMap<At, (Value, Waiting)>,
    /// Values that were re-coded since, as they were, with their slots.
    recoded: BTreeMap<Handle, (Value, u64)>,
}

impl ValueTable {
    pub(crate) fn pin(&mut self, applied: Option<At>) {
        self.pinned = Some(Pinned {
            applied,
            written: None,
            saved: BTreeMap::new(),
            recoded: BTreeMap::new(),
        });
    }

    pub(crate) fn unpin(&mut self) {
        self.pinned = None;
    }

    /// Saves a part that waits no longer.
    pub(super) fn save_pinned(&mut self, handle: Handle, waiting: &Waiting) {
        let at = (waiting.slot, waiting.position);
        let value = self.value(handle);
        if let Some(pinned) = &mut self.pinned
            && Some(at) <= pinned.applied
            && Some(at) > pinned.written
        {
            pinned.saved.insert(at, (value, *waiting));
        }
    }

    /// Saves a value that is about to be re-coded: the first time, it is as it was pinned.
    pub(super) fn save_recoded(&mut self, handle: Handle) {
        let ValueUse { value, slot, .. } = self.describe(handle);
        if let Some(pinned) = &mut self.pinned
            && !mutant!("an export names what was re-coded meanwhile")
        {
            pinned.recoded.entry(handle).or_insert((value, slot));
        }
    }

    /// The handle is given out again: to a value that the pinned state does not have.
    pub(super) fn forget_pinned(&mut self, handle: Handle) {
        if let Some(pinned) = &mut self.pinned {
            pinned.recoded.remove(&handle);
        }
    }

    /// A value that a version of the pinned state names, and the slot that stored it, as of then.
    pub(crate) fn pinned_value(&self, handle: Handle) -> (Value, u64) {
        let recoded = self.pinned.as_ref().and_then(|pinned| pinned.recoded.get(&handle));
        recoded.copied().unwrap_or_else(|| {
            let ValueUse { value, slot, .. } = self.describe(handle);
            (value, slot)
        })
    }

    /// Writes on; true when all is written.
    pub(crate) fn export_waiting(&mut self, out: &mut Out<'_>) -> bool {
        let mut pinned = self.pinned.take().expect("parts are exported from a pinned table");
        let done = self.export_waiting_from(&mut pinned, out);
        self.pinned = Some(pinned);
        done
    }

    fn export_waiting_from(&self, pinned: &mut Pinned, out: &mut Out<'_>) -> bool {
        loop {
            let from = pinned.written.map_or((0, 0), |(slot, position)| (slot, position + 1));
            let held = self.waiting_by_age.range(from..).next().map(|(&at, _)| at);
            let held = held.filter(|&at| Some(at) <= pinned.applied);
            let saved = pinned.saved.first_key_value().map(|(&at, _)| at);
            let Some(at) = held.into_iter().chain(saved).min() else { return true };
            if out.is_full() {
                return false;
            }
            let (value, waiting) = match pinned.saved.remove(&at) {
                Some(saved) => saved,
                None => {
                    let handle = self.waiting_by_age[&at];
                    (self.value(handle), self.waiting[&handle])
                }
            };
            put_waiting(&value, &waiting, out);
            pinned.written = Some(at);
        }
    }

    /// Takes a value named by a version, or by a part, and adds it unless it is here.
    pub(crate) fn import(
        &mut self,
        from: &mut Reader<'_>,
        stored: &mut dyn FnMut(OpId),
    ) -> Result<Handle, DecodeError> {
        let value = from.named_value()?;
        let slot = from.varint("value slot")?;
        value.check()?;
        stored(value.op);
        let Some(handle) = self.find(value.op) else {
            require(self.len() < u32::MAX as usize, "value", "values have 32-bit handles")?;
            return Ok(self.add(&value, slot));
        };
        let same = self.value(handle) == value && self.stored.get(handle).slot == slot;
        require(same, "value", "a value is the same wherever it is named")?;
        Ok(handle)
    }

    /// Takes a part that waits, in order of age.
    pub(crate) fn import_waiting(
        &mut self,
        from: &mut Reader<'_>,
        parts_max: u32,
        known_session: &dyn Fn(SessionId) -> bool,
        stored: &mut dyn FnMut(OpId),
    ) -> Result<(), DecodeError> {
        let values = self.len();
        let handle = self.import(from, stored)?;
        require(self.len() > values, "part", "a value waits once")?;
        let position = from.number32("part position")?;
        let session = match from.byte("part session")? {
            0 => None,
            1 => Some(from.session("part session")?),
            _ => return require(false, "part session", "a part has a session or none").map(drop),
        };
        let Stored { slot, .. } = *self.stored.get(handle);
        let last = self.waiting_by_age.last_key_value().map(|(&at, _)| at);
        require(last < Some((slot, position)), "part", "parts stand in order of age")?;
        require(session.is_none_or(known_session), "part", "its session is open")?;
        require(self.waiting.len() < parts_max as usize, "part", "no more wait than may")?;
        self.wait(handle, position, session, parts_max);
        Ok(())
    }
}

fn put_waiting(value: &Value, waiting: &Waiting, out: &mut Out<'_>) {
    out.bytes.push(entry::WAITING);
    put_stored(out.bytes, value, waiting.slot);
    out.stored(value.op);
    put_varint(out.bytes, waiting.position.into());
    match waiting.session {
        None => out.bytes.push(0),
        Some(session) => {
            out.bytes.push(1);
            put_session(out.bytes, session);
        }
    }
}
