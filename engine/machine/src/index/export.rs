//! Keys and versions of an export (see [`crate::export`]).
//!
//! Invariant: of the pinned state, what is not written yet is in the index or among the saved
//! versions, and of one key the saved ones are the older. Versions are only ever added at the end
//! and dropped from the front, so dropping is the one change to save; what they name may be re-coded,
//! which the value table saves. That a version came later shows by its revision, unless it was restored:
//! then where the pinned versions of its key end is noted.
//! What would break it: a version with an old revision that is added without that note.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{Change, History, Index, Named, Record, Revision};
use crate::export::{Out, entry};
use crate::hash;
use crate::op::{Key, OpId, STRIPES_MAX, Value, check_key};
use crate::slab::Handle;
use crate::values::ValueTable;
use crate::wire::{
    DecodeError, Problem, Reader, put_key, put_signed, put_stored, put_varint, require,
};

/// A version that was dropped before it was written.
#[derive(Debug)]
struct Saved {
    record: Record,
    /// Values with the slots that stored them.
    values: Vec<(Value, u64)>,
}

/// The pinned keys, and how far they are written.
#[derive(Debug)]
pub(super) struct Pinned {
    revision: u64,
    /// Everything up to this key and this revision of it is written; `None`: nothing is.
    written: Option<(Key, Revision)>,
    saved: BTreeMap<Key, Vec<Saved>>,
    /// Of keys that got restored versions since: the last version that the pinned state has, 0 if none.
    /// Revisions do not tell: a restored version has the one that it had in another store.
    ends: BTreeMap<Key, Revision>,
}

/// All of a key.
const ALL: Revision = Revision { main: u64::MAX, sub: u32::MAX };

impl Record {
    fn modified(&self) -> Revision {
        Revision { main: self.main, sub: self.sub }
    }
}

impl Pinned {
    /// Whether a version belongs to the pinned state and has to be written yet.
    fn lacks(&self, key: &[u8], record: &Record) -> bool {
        let at = (key, record.modified());
        self.is_pinned(key, record) && !self.has_written(at)
    }

    fn has_written(&self, at: (&[u8], Revision)) -> bool {
        self.written.as_ref().is_some_and(|(key, upto)| at <= (&**key, *upto))
    }

    /// Whether a version belongs to the pinned state, or came later.
    fn is_pinned(&self, key: &[u8], record: &Record) -> bool {
        let came_later = self.ends.get(key).is_some_and(|&end| record.modified() > end);
        record.main <= self.revision && !came_later
    }

    /// How many of the versions that a key has now are of the pinned state: the first so many.
    fn count(&self, key: &[u8], history: &History) -> usize {
        let count = history.count_up_to(self.revision);
        self.ends.get(key).map_or(count, |&end| count.min(history.count_upto(end)))
    }

    /// How much of this key is written, if it is begun.
    fn begun(&self, key: &[u8]) -> Option<Revision> {
        self.written.as_ref().filter(|(begun, _)| **begun == *key).map(|&(_, upto)| upto)
    }
}

impl Index {
    pub(crate) fn pin(&mut self, revision: u64) {
        let (saved, ends) = (BTreeMap::new(), BTreeMap::new());
        self.pinned = Some(Pinned { revision, written: None, saved, ends });
    }

    pub(crate) fn unpin(&mut self) {
        self.pinned = None;
    }

    /// Saves a version that is about to go.
    pub(super) fn save_pinned(&mut self, key: &[u8], record: &Record, values: &ValueTable) {
        if !self.pinned.as_ref().is_some_and(|pinned| pinned.lacks(key, record)) {
            return;
        }
        let handles = self.handles(&record.named).iter();
        let named = handles.map(|&handle| values.pinned_value(handle)).collect();
        let saved = Saved { record: *record, values: named };
        let pinned = self.pinned.as_mut().expect("looked at above");
        pinned.saved.entry(key.into()).or_default().push(saved);
    }

    /// Notes where a key ends that is about to get a restored version: the first time, it is as it was
    /// pinned.
    pub(super) fn note_restored(&mut self, key: &Key, modified: Revision) {
        let end = self.last_modified(key);
        if let Some(pinned) = &mut self.pinned
            && !pinned.has_written((key, modified))
        {
            pinned.ends.entry(key.clone()).or_insert(end);
        }
    }

    /// Writes on; true when all is written.
    pub(crate) fn export(&mut self, values: &ValueTable, out: &mut Out<'_>) -> bool {
        let mut pinned = self.pinned.take().expect("keys are exported from a pinned index");
        let done = self.export_from(&mut pinned, values, out);
        self.pinned = Some(pinned);
        done
    }

    fn export_from(&self, pinned: &mut Pinned, values: &ValueTable, out: &mut Out<'_>) -> bool {
        let from = match &pinned.written {
            None => Bound::Unbounded,
            Some((key, ALL)) => Bound::Excluded(&**key),
            Some((key, _)) => Bound::Included(&**key),
        };
        let mut keys = self.keys.range(from, None).peekable();
        // The last key written whole in this slice.
        let mut whole: Option<Key> = None;
        loop {
            let saved = pinned.saved.first_key_value().map(|(key, _)| &**key);
            let held = keys.peek().map(|&(key, _)| key);
            let Some(key) = saved.into_iter().chain(held).min() else { return true };
            let upto = pinned.begun(key);
            if out.is_full() {
                // Of a key that is begun already, `written` says how far.
                if let Some(whole) = whole {
                    pinned.written = Some((whole, ALL));
                }
                return false;
            }
            let key: Key = key.into();
            let handle = keys.next_if(|(held, _)| *held == &*key).map(|(_, handle)| handle);
            let saved = pinned.saved.remove(&key).unwrap_or_default();
            let history = handle.map(|handle| self.histories.get(handle));
            let stopped = self.export_key(&key, upto, (saved, history), pinned, values, out);
            if let Some((upto, saved)) = stopped {
                if !saved.is_empty() {
                    pinned.saved.insert(key.clone(), saved);
                }
                pinned.written = Some((key, upto));
                return false;
            }
            pinned.ends.remove(&key);
            whole = Some(key);
        }
    }

    /// Writes what is lacking of a key of which `upto` is written. If the part or the slice is
    /// full before, says up to where it came and which saved versions are left.
    fn export_key(
        &self,
        key: &[u8],
        upto: Option<Revision>,
        (mut saved, history): (Vec<Saved>, Option<&History>),
        pinned: &Pinned,
        values: &ValueTable,
        out: &mut Out<'_>,
    ) -> Option<(Revision, Vec<Saved>)> {
        let last = history.map_or(0, |history| pinned.count(key, history));
        let first = history.map_or(0, |history| upto.map_or(0, |upto| history.count_upto(upto)));
        let kept = (first..last).filter_map(|at| history.map(|history| history.get(at)));
        let mut last_written = upto;
        for at in 0..saved.len() {
            if last_written != upto && out.is_full() {
                saved.drain(..at);
                return last_written.map(|upto| (upto, saved));
            }
            if last_written.is_none() {
                put_key_entry(key, out);
            }
            put_version(&saved[at].record, saved[at].values.iter().copied(), out);
            last_written = Some(saved[at].record.modified());
        }
        for record in kept {
            if last_written != upto && out.is_full() {
                return last_written.map(|upto| (upto, Vec::new()));
            }
            if last_written.is_none() {
                put_key_entry(key, out);
            }
            let handles = self.handles(&record.named).iter();
            put_version(&record, handles.map(|&handle| values.pinned_value(handle)), out);
            last_written = Some(record.modified());
        }
        None
    }
}

impl Index {
    /// Whether a key's next version may be this one.
    pub(crate) fn may_follow(
        &self,
        key: &[u8],
        (create, number): (u64, u64),
        change: Change,
        tombstone: bool,
        bounds: &Bounds,
    ) -> bool {
        let record = Record::new(Named::Nothing, create, number, change);
        let before = self.keys.get(key).map(|handle| self.histories.get(handle));
        change.modified.main > 0 && check_version(&record, tombstone, before, bounds).is_ok()
    }
}

impl History {
    /// How many versions are at or below a point in history.
    pub(super) fn count_upto(&self, revision: Revision) -> usize {
        match self {
            History::Many(records) => {
                records.partition_point(|record| record.modified() <= revision)
            }
            single => usize::from(single.newest().modified() <= revision),
        }
    }
}

fn put_key_entry(key: &[u8], out: &mut Out<'_>) {
    out.bytes.push(entry::KEY);
    put_key(out.bytes, key);
}

/// What a version names, in an encoding.
mod named {
    pub(super) const NOTHING: u8 = 0;
    pub(super) const WHOLE: u8 = 1;
    pub(super) const STRIPES: u8 = 2;
}

fn put_version(
    record: &Record,
    values: impl ExactSizeIterator<Item = (Value, u64)>,
    out: &mut Out<'_>,
) {
    out.bytes.push(entry::VERSION);
    let kind = match record.named {
        Named::Nothing => named::NOTHING,
        Named::Whole(_) => named::WHOLE,
        Named::Stripes(_) => named::STRIPES,
    };
    out.bytes.push(kind);
    let Record { create, main, number, lease, sub, .. } = *record;
    [main, sub.into(), create, number].iter().for_each(|&field| put_varint(out.bytes, field));
    put_signed(out.bytes, lease);
    if kind == named::STRIPES {
        put_varint(out.bytes, values.len() as u64);
    }
    for (value, slot) in values {
        put_stored(out.bytes, &value, slot);
        out.stored(value.op);
    }
}

/// Takes keys and versions in, in the order of an export.
#[derive(Debug, Default)]
pub(crate) struct KeysIn {
    /// The key whose versions are coming, with its hash, and its handle from the first one on.
    key: Option<(Key, u128, Option<Handle>)>,
}

/// What bounds imported versions.
pub(crate) struct Bounds {
    pub(crate) revision: u64,
    pub(crate) history_max: u32,
}

impl KeysIn {
    /// Begins a key: the one before must have a version, and stand before it.
    pub(crate) fn key(&mut self, key: Key) -> Result<(), DecodeError> {
        check_key("key", &key, 1)?;
        if let Some((before, _, handle)) = &self.key {
            require(handle.is_some(), "key", "a key has a version")?;
            require(*before < key, "key", "keys stand in order")?;
        }
        let hash = hash::bytes(&key);
        self.key = Some((key, hash, None));
        Ok(())
    }

    /// After the last key.
    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        let whole = self.key.as_ref().is_none_or(|(_, _, handle)| handle.is_some());
        require(whole, "key", "a key has a version")
    }

    pub(crate) fn version(
        &mut self,
        from: &mut Reader<'_>,
        index: &mut Index,
        values: &mut ValueTable,
        bounds: &Bounds,
        stored: &mut dyn FnMut(OpId),
    ) -> Result<(), DecodeError> {
        let (key, hash, handle) = self.key.as_mut().ok_or_else(|| {
            DecodeError::new("version", Problem::Inconsistent("a version follows its key"))
        })?;
        let kind = from.byte("version kind")?;
        let modified = Revision { main: from.varint("main")?, sub: from.number32("sub")? };
        let (create, number) = (from.varint("create")?, from.varint("version number")?);
        let change = Change { modified, lease: from.signed("lease")? };
        let mut record = Record::new(Named::Nothing, create, number, change);
        let before = handle.map(|handle| index.histories.get(handle));
        check_version(&record, kind == named::NOTHING, before, bounds)?;
        let count = match kind {
            named::NOTHING => 0,
            named::WHOLE => 1,
            named::STRIPES => from.count("stripe count", STRIPES_MAX)?,
            _ => {
                return Err(DecodeError::new(
                    "version kind",
                    Problem::Unknown { value: kind.into() },
                ));
            }
        };
        record.named = match kind {
            named::NOTHING => Named::Nothing,
            named::WHOLE => Named::Whole(values.import(from, stored)?),
            _ => {
                let handles = (0..count).map(|_| values.import(from, stored));
                index.add_list(handles.collect::<Result<_, _>>()?)
            }
        };
        index.handles(&record.named).iter().for_each(|&handle| values.retain(handle));
        index.sum.add(index.hash_of(*hash, &record, values));
        index.versions += 1;
        match *handle {
            Some(handle) => index.histories.get_mut(handle).push(record),
            None => {
                let new = index.histories.insert(History::of(record));
                index.keys.insert(key, new);
                *handle = Some(new);
            }
        }
        Ok(())
    }
}

fn check_version(
    record: &Record,
    tombstone: bool,
    before: Option<&History>,
    bounds: &Bounds,
) -> Result<(), DecodeError> {
    let rule = |holds, rule| require(holds, "version", rule);
    rule(record.main <= bounds.revision, "no version is newer than the state")?;
    rule(!tombstone || record.lease == 0, "a tombstone has no lease")?;
    let long = before.map_or(0, History::len) >= bounds.history_max as usize;
    rule(!long, "a key has no more versions than its history may")?;
    if let Some(before) = before.map(History::newest) {
        rule(before.modified() < record.modified(), "versions stand in order of revision")?;
        rule(!(tombstone && before.is_tombstone()), "no two tombstones follow each other")?;
        if !tombstone && !before.is_tombstone() {
            let follows = (record.create, record.number) == (before.create, before.number + 1);
            return rule(follows, "a version counts on from the one before");
        }
    }
    let fits = match tombstone {
        true => (record.create, record.number) == (0, 0),
        // The first one held may have lost those before it.
        false if before.is_none() => record.number >= 1 && record.create <= record.main,
        false => (record.create, record.number) == (record.main, 1),
    };
    rule(fits, "a version is created before it counts")
}
