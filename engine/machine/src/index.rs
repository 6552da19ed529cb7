//! The ordered, multi-version index of keys.
//!
//! Invariant: the versions of a key are in order of revision, the first is not a tombstone unless
//! a compaction stopped right at it, no two tombstones follow each other, and every value that a
//! version names is retained in the value table once per mention. What would break it: dropping a
//! version from the middle, or without releasing its values.
//!
//! A key costs about 12 bytes of its block, one version of 24, and 56 in the value table; only a
//! key with several versions, a lease, or a value of several stripes costs an allocation more.

pub(crate) mod export;
mod keys;

use std::collections::VecDeque;
use std::ops::Bound;

use crate::hash::{self, Kind, Sum};
use crate::op::{Content, Key, Value};
use crate::slab::{Handle, Slab};
use crate::values::ValueTable;
use keys::Keys;

/// A point in the history of the store: `main` counts operations that changed something, `sub`
/// the changes of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Ord, PartialOrd, Debug, Default)]
pub struct Revision {
    pub main: u64,
    pub sub: u32,
}

/// Where a change stands, and the lease that the version is attached to (0: none).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) modified: Revision,
    pub(crate) lease: i64,
}

/// What a version names, by handles of the value table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Named {
    /// A tombstone.
    #[default]
    Nothing,
    Whole(Handle),
    /// A list in [`Index::lists`].
    Stripes(Handle),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Record {
    named: Named,
    create: u64,
    main: u64,
    number: u64,
    lease: i64,
    sub: u32,
}

impl Record {
    fn is_tombstone(&self) -> bool {
        self.named == Named::Nothing
    }
}

#[derive(Debug)]
enum History {
    /// A single version of a whole value, without a lease, whose numbers are small: nearly all are.
    Short {
        /// As halves, so that all of it takes 24 bytes.
        main: [u32; 2],
        /// From the revision at which the key came to be to this one.
        since_create: u32,
        number: u32,
        handle: Handle,
        sub: u16,
    },
    One(Box<Record>),
    /// In order of revision, at least two. Boxed, so that the others need no room for it.
    #[allow(clippy::box_collection)]
    Many(Box<VecDeque<Record>>),
}

impl Default for History {
    fn default() -> Self {
        History::Short { main: [0; 2], since_create: 0, number: 0, handle: 0, sub: 0 }
    }
}

impl History {
    fn of(record: Record) -> History {
        let short = || {
            let Named::Whole(handle) = record.named else { return None };
            let since_create = record.main.checked_sub(record.create)?;
            (record.lease == 0).then_some(History::Short {
                main: [record.main as u32, (record.main >> 32) as u32],
                since_create: since_create.try_into().ok()?,
                number: record.number.try_into().ok()?,
                handle,
                sub: record.sub.try_into().ok()?,
            })
        };
        short().unwrap_or_else(|| History::One(Box::new(record)))
    }

    fn newest(&self) -> Record {
        self.get(self.len() - 1)
    }

    fn len(&self) -> usize {
        match self {
            History::Short { .. } | History::One(_) => 1,
            History::Many(records) => records.len(),
        }
    }

    fn get(&self, at: usize) -> Record {
        match *self {
            History::Short { main: [low, high], since_create, number, handle, sub } => {
                assert_eq!(at, 0, "a single version stands first");
                let main = u64::from(high) << 32 | u64::from(low);
                Record {
                    named: Named::Whole(handle),
                    create: main - u64::from(since_create),
                    main,
                    number: u64::from(number),
                    lease: 0,
                    sub: u32::from(sub),
                }
            }
            History::One(ref record) => {
                assert_eq!(at, 0, "a single version stands first");
                **record
            }
            History::Many(ref records) => records[at],
        }
    }

    fn records(&self) -> impl Iterator<Item = Record> + '_ {
        (0..self.len()).map(|at| self.get(at))
    }

    fn push(&mut self, record: Record) {
        match self {
            History::Many(records) => records.push_back(record),
            first => {
                let both = VecDeque::from([first.newest(), record]);
                *first = History::Many(Box::new(both));
            }
        }
    }

    /// Takes the oldest version off; there must be another.
    fn pop_oldest(&mut self) -> Record {
        let History::Many(records) = self else { panic!("the last version goes with its key") };
        let oldest = records.pop_front().expect("a history holds a version");
        if records.len() == 1 {
            *self = History::of(records[0]);
        }
        oldest
    }

    /// How many versions are at or below a revision.
    fn count_up_to(&self, revision: u64) -> usize {
        match self {
            History::Many(records) => records.partition_point(|record| record.main <= revision),
            single => usize::from(single.newest().main <= revision),
        }
    }
}

/// One version of a key.
#[derive(Clone, Copy)]
pub struct Version<'a> {
    record: Record,
    index: &'a Index,
    values: &'a ValueTable,
}

impl<'a> Version<'a> {
    /// Revision at which the key came to be, in this generation of it. 0 for a tombstone.
    pub fn created(&self) -> u64 {
        self.record.create
    }

    /// Revision of this version.
    pub fn modified(&self) -> Revision {
        Revision { main: self.record.main, sub: self.record.sub }
    }

    /// Puts of the key since it was created, this one included. 0 for a tombstone.
    pub fn number(&self) -> u64 {
        self.record.number
    }

    /// The lease that it is attached to; 0: none.
    pub fn lease(&self) -> i64 {
        self.record.lease
    }

    /// What it says of its value; `None` for a tombstone.
    pub fn content(&self) -> Option<Content> {
        let mut values = self.values();
        match self.record.named {
            Named::Nothing => None,
            Named::Whole(_) => values.next().map(Content::Whole),
            Named::Stripes(_) => Some(Content::Stripes(values.collect())),
        }
    }

    /// Whether it records a deletion.
    pub fn is_tombstone(&self) -> bool {
        self.record.is_tombstone()
    }

    /// The values whose bytes, one after the other, are the content: one, or the stripes in order;
    /// none for a tombstone.
    pub fn values(&self) -> impl ExactSizeIterator<Item = Value> + 'a {
        let values = self.values;
        self.index.named(self.record.named).map(move |handle| values.value(handle))
    }

    /// Length of the content in bytes.
    pub fn len(&self) -> u64 {
        self.values().map(|value| u64::from(value.len)).sum()
    }

    /// Whether the content has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for Version<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values: Vec<Value> = self.values().collect();
        f.debug_struct("Version").field("record", &self.record).field("values", &values).finish()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    keys: Keys,
    histories: Slab<History>,
    lists: Slab<Box<[Handle]>>,
    versions: usize,
    sum: Sum,
    /// The state of an export under way; not part of the state.
    pinned: Option<export::Pinned>,
}

impl Index {
    /// Keys with at least one version, tombstones included.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// All versions, tombstones included.
    pub(crate) fn versions(&self) -> usize {
        self.versions
    }

    pub(crate) fn newest<'a>(&'a self, key: &[u8], values: &'a ValueTable) -> Option<Version<'a>> {
        let history = self.histories.get(self.keys.get(key)?);
        self.live(history.newest(), values)
    }

    pub(crate) fn at<'a>(
        &'a self,
        key: &[u8],
        revision: u64,
        values: &'a ValueTable,
    ) -> Option<Version<'a>> {
        self.live_at(self.keys.get(key)?, revision, values)
    }

    /// The version of a key that was made at a revision, and the one before it if that is held and
    /// live.
    pub(crate) fn exactly<'a>(
        &'a self,
        key: &[u8],
        modified: Revision,
        values: &'a ValueTable,
    ) -> Option<(Version<'a>, Option<Version<'a>>)> {
        let history = self.histories.get(self.keys.get(key)?);
        let mut at = history.count_up_to(modified.main).checked_sub(1)?;
        while history.get(at).main == modified.main && history.get(at).sub != modified.sub {
            at = at.checked_sub(1)?;
        }
        let record = history.get(at);
        if record.main != modified.main {
            return None;
        }
        let before = at.checked_sub(1).and_then(|at| self.live(history.get(at), values));
        Some((Version { record, index: self, values }, before))
    }

    /// All versions of all keys, by key and then by revision.
    pub(crate) fn all<'a>(
        &'a self,
        values: &'a ValueTable,
    ) -> impl Iterator<Item = (&'a [u8], Version<'a>)> + use<'a> {
        self.keys.iter().flat_map(move |(key, handle)| {
            let records = self.histories.get(handle).records();
            records.map(move |record| (key, Version { record, index: self, values }))
        })
    }

    /// Live keys whose newest version names a lease.
    pub(crate) fn leased<'a>(
        &'a self,
        values: &'a ValueTable,
    ) -> impl Iterator<Item = (&'a [u8], i64)> + use<'a> {
        let all = self.range(&[], None, None, values);
        all.map(|(key, version)| (key, version.lease())).filter(|(_, lease)| *lease != 0)
    }

    /// What the newest version of a key names, for another version to name; the caller adds it.
    pub(crate) fn share_newest(&mut self, key: &[u8]) -> Option<Named> {
        let handle = self.keys.get(key)?;
        Some(match self.histories.get(handle).newest().named {
            Named::Stripes(list) => {
                let copy = self.lists.get(list).clone();
                self.add_list(copy)
            }
            named => named,
        })
    }

    /// The lease of the newest version of a key; 0 if it has none or is not there.
    pub(crate) fn lease_of(&self, key: &[u8]) -> i64 {
        self.keys.get(key).map_or(0, |handle| self.histories.get(handle).newest().lease)
    }

    /// All versions of a key, oldest first.
    pub(crate) fn history<'a>(
        &'a self,
        key: &[u8],
        values: &'a ValueTable,
    ) -> impl Iterator<Item = Version<'a>> + use<'a> {
        let history = self.keys.get(key).map(|handle| self.histories.get(handle));
        history.into_iter().flat_map(History::records).map(move |record| Version {
            record,
            index: self,
            values,
        })
    }

    /// Live keys in order, as of `revision` or, without one, now.
    pub(crate) fn range<'a>(
        &'a self,
        from: &[u8],
        to: Option<&[u8]>,
        revision: Option<u64>,
        values: &'a ValueTable,
    ) -> impl Iterator<Item = (&'a [u8], Version<'a>)> + use<'a> {
        self.keys.range(Bound::Included(from), to).filter_map(move |(key, handle)| {
            Some((key, self.live_as_of(handle, revision, values)?))
        })
    }

    /// Visits live keys in order, and looks at no more than `keys_max` keys, live or not. Returns the
    /// key to go on from; `None` after the last one.
    pub(crate) fn visit<'a>(
        &'a self,
        from: &[u8],
        to: Option<&[u8]>,
        revision: Option<u64>,
        keys_max: usize,
        values: &'a ValueTable,
        mut visit: impl FnMut(&'a [u8], Version<'a>),
    ) -> Option<Key> {
        let mut keys = self.keys.range(Bound::Included(from), to);
        for (key, handle) in keys.by_ref().take(keys_max) {
            if let Some(version) = self.live_as_of(handle, revision, values) {
                visit(key, version);
            }
        }
        keys.next().map(|(key, _)| key.into())
    }

    fn live_as_of<'a>(
        &'a self,
        handle: Handle,
        revision: Option<u64>,
        values: &'a ValueTable,
    ) -> Option<Version<'a>> {
        match revision {
            Some(revision) => self.live_at(handle, revision, values),
            None => self.live(self.histories.get(handle).newest(), values),
        }
    }

    fn live_at<'a>(
        &'a self,
        handle: Handle,
        revision: u64,
        values: &'a ValueTable,
    ) -> Option<Version<'a>> {
        let history = self.histories.get(handle);
        let at = history.count_up_to(revision).checked_sub(1)?;
        self.live(history.get(at), values)
    }

    fn live<'a>(&'a self, record: Record, values: &'a ValueTable) -> Option<Version<'a>> {
        (!record.is_tombstone()).then_some(Version { record, index: self, values })
    }

    /// Keeps a list of stripes for a version that will name it.
    pub(crate) fn add_list(&mut self, handles: Box<[Handle]>) -> Named {
        Named::Stripes(self.lists.insert(handles))
    }

    /// Adds a version to a key, and takes one mention of the values it names for it.
    ///
    /// Returns the oldest revision that is still complete if `history_max` made versions go.
    pub(crate) fn put(
        &mut self,
        key: &Key,
        named: Named,
        change: Change,
        history_max: u32,
        values: &mut ValueTable,
    ) -> Option<u64> {
        for &handle in self.handles(&named) {
            values.retain(handle);
        }
        let main = change.modified.main;
        let known = self.keys.get(key);
        let (create, number) = match known.map(|handle| self.histories.get(handle).newest()) {
            Some(newest) if !newest.is_tombstone() => (newest.create, newest.number + 1),
            _ => (main, 1),
        };
        let record = Record::new(named, create, number, change);
        self.sum.add(self.hash_of(hash::bytes(key), &record, values));
        self.versions += 1;
        let Some(handle) = known else {
            let handle = self.histories.insert(History::of(record));
            self.keys.insert(key, handle);
            return None;
        };
        self.push(handle, record, history_max, values);
        self.trim(key, handle, history_max, values)
    }

    /// Another version of a key that has one.
    fn push(&mut self, handle: Handle, record: Record, history_max: u32, values: &mut ValueTable) {
        // If no other is kept, the one before goes altogether.
        if history_max > 1 {
            let newest = self.histories.get(handle).newest();
            self.handles(&newest.named).iter().for_each(|&value| values.note_superseded(value));
        }
        self.histories.get_mut(handle).push(record);
    }

    /// Where the newest version of a key stands; 0 if there is none.
    pub(crate) fn last_modified(&self, key: &[u8]) -> Revision {
        let newest = self.keys.get(key).map(|handle| self.histories.get(handle).newest());
        newest.map_or(Revision::default(), |newest| Revision { main: newest.main, sub: newest.sub })
    }

    /// All versions behind a revision of a key, by key and then by revision.
    pub(crate) fn versions_after<'a>(
        &'a self,
        key: &[u8],
        modified: Revision,
        values: &'a ValueTable,
    ) -> impl Iterator<Item = (&'a [u8], Version<'a>)> + use<'a> {
        // The key itself comes first, if it is here.
        let begun =
            self.keys.get(key).map(|handle| self.histories.get(handle).count_upto(modified));
        let firsts = begun.into_iter().chain(std::iter::repeat(0));
        let keys = self.keys.range(Bound::Included(key), None).zip(firsts);
        keys.flat_map(move |((key, handle), first)| {
            let history = self.histories.get(handle);
            (first..history.len())
                .map(move |at| (key, Version { record: history.get(at), index: self, values }))
        })
    }

    /// Adds a version with the numbers that it had in another store, and takes one mention of the
    /// values it names for it.
    pub(crate) fn restore(
        &mut self,
        key: &Key,
        named: Named,
        (create, number): (u64, u64),
        change: Change,
        values: &mut ValueTable,
    ) {
        self.note_restored(key, change.modified);
        self.handles(&named).iter().for_each(|&handle| values.retain(handle));
        let record = Record::new(named, create, number, change);
        self.sum.add(self.hash_of(hash::bytes(key), &record, values));
        self.versions += 1;
        match self.keys.get(key) {
            Some(handle) => self.histories.get_mut(handle).push(record),
            None => {
                let handle = self.histories.insert(History::of(record));
                self.keys.insert(key, handle);
            }
        }
    }

    /// Adds a tombstone to a key if it is live. Returns what [`Index::put`] returns, or `Err` if
    /// there was nothing to delete.
    pub(crate) fn delete(
        &mut self,
        key: &[u8],
        change: Change,
        history_max: u32,
        values: &mut ValueTable,
    ) -> Result<Option<u64>, ()> {
        let handle = self.keys.get(key).ok_or(())?;
        if self.histories.get(handle).newest().is_tombstone() {
            return Err(());
        }
        let record = Record::new(Named::Nothing, 0, 0, change);
        self.sum.add(self.hash_of(hash::bytes(key), &record, values));
        self.versions += 1;
        self.push(handle, record, history_max, values);
        Ok(self.trim(key, handle, history_max, values))
    }

    /// Live keys of a range, for deleting them.
    pub(crate) fn live_keys(&self, from: &[u8], to: Option<&[u8]>) -> Vec<Key> {
        let keys = self.keys.range(Bound::Included(from), to);
        keys.filter(|&(_, handle)| !self.histories.get(handle).newest().is_tombstone())
            .map(|(key, _)| key.into())
            .collect()
    }

    /// Drops, of up to `keys_max` keys from `from` on, the versions that only reads below
    /// `revision` could see. Returns the key to go on from; `None` after the last key.
    pub(crate) fn sweep(
        &mut self,
        from: &[u8],
        keys_max: usize,
        revision: u64,
        values: &mut ValueTable,
    ) -> Option<Key> {
        let mut keys = self.keys.range(Bound::Included(from), None);
        let slice: Vec<(Handle, Option<Key>)> = keys
            .by_ref()
            .take(keys_max)
            .map(|(key, handle)| {
                let history = self.histories.get(handle);
                let idle = history.len() == 1 && !history.newest().is_tombstone();
                (handle, (!idle).then(|| key.into()))
            })
            .collect();
        let next = keys.next().map(|(key, _)| key.into());
        for (handle, key) in slice {
            let Some(key) = key else { continue };
            self.compact_key(&key, handle, revision, values);
        }
        next
    }

    fn compact_key(&mut self, key: &Key, handle: Handle, revision: u64, values: &mut ValueTable) {
        while self.histories.get(handle).count_up_to(revision) > 1 {
            self.drop_oldest(key, handle, values);
        }
        let oldest = self.histories.get(handle).get(0);
        // A tombstone right at the revision stays, as in etcd: hashes of the store count it.
        if oldest.is_tombstone() && oldest.main < revision {
            self.drop_oldest(key, handle, values);
        }
    }

    fn trim(
        &mut self,
        key: &[u8],
        handle: Handle,
        history_max: u32,
        values: &mut ValueTable,
    ) -> Option<u64> {
        let mut complete_from = None;
        while self.histories.get(handle).len() > history_max as usize {
            self.drop_oldest(key, handle, values);
            let oldest = self.histories.get(handle).get(0);
            complete_from = Some(oldest.main);
            if oldest.is_tombstone() {
                let last = self.histories.get(handle).len() == 1;
                self.drop_oldest(key, handle, values);
                if last {
                    break;
                }
            }
        }
        complete_from
    }

    /// Drops the oldest version of a key, and the key with its last one.
    fn drop_oldest(&mut self, key: &[u8], handle: Handle, values: &mut ValueTable) {
        let history = self.histories.get_mut(handle);
        let record = if history.len() > 1 {
            history.pop_oldest()
        } else {
            let last = history.newest();
            self.histories.remove(handle);
            self.keys.remove(key);
            last
        };
        self.save_pinned(key, &record, values);
        self.sum.sub(self.hash_of(hash::bytes(key), &record, values));
        self.versions -= 1;
        for &named in self.handles(&record.named) {
            values.release(named);
        }
        if let Named::Stripes(list) = record.named {
            self.lists.remove(list);
        }
    }

    /// The same, of a version that is not held by reference.
    fn named(&self, named: Named) -> impl ExactSizeIterator<Item = Handle> + '_ {
        let (list, whole) = match named {
            Named::Nothing => (&[][..], None),
            Named::Whole(handle) => (&[][..], Some(handle)),
            Named::Stripes(list) => (&self.lists.get(list)[..], None),
        };
        (0..list.len() + usize::from(whole.is_some()))
            .map(move |at| whole.unwrap_or_else(|| list[at]))
    }

    fn handles<'a>(&'a self, named: &'a Named) -> &'a [Handle] {
        match named {
            Named::Nothing => &[],
            Named::Whole(handle) => std::slice::from_ref(handle),
            Named::Stripes(list) => self.lists.get(*list),
        }
    }

    /// PROTOCOL 10-ac: by the bytes that it names, not by who stored them: re-coding changes no version.
    fn hash_of(&self, key: u128, record: &Record, values: &ValueTable) -> u128 {
        let handles = self.handles(&record.named);
        let content = match *handles {
            [] => 0,
            [whole] if matches!(record.named, Named::Whole(_)) => values.content(whole),
            _ => handles.iter().fold(0, |before, &stripe| {
                let [before_low, before_high] = hash::halves(before);
                let [op_low, op_high] = hash::halves(values.content(stripe));
                hash::entry(Kind::Stripe, [before_low, before_high, op_low, op_high])
            }),
        };
        let [key_low, key_high] = hash::halves(key);
        let [content_low, content_high] = hash::halves(content);
        let Record { create, main, number, lease, sub, .. } = *record;
        let sizes = hash::pair(sub, handles.len() as u32);
        hash::entry(
            Kind::Version,
            [
                key_low,
                key_high,
                content_low,
                content_high,
                sizes,
                create,
                main,
                number,
                lease as u64,
            ],
        )
    }

    pub(crate) fn hash(&self) -> u128 {
        self.sum.get()
    }

    /// The hash from the entries themselves.
    pub(crate) fn full_hash(&self, values: &ValueTable) -> u128 {
        let mut sum = Sum::default();
        let (mut versions, mut lists) = (0, 0);
        for (key, handle) in self.keys.iter() {
            let key = hash::bytes(key);
            for record in self.histories.get(handle).records() {
                sum.add(self.hash_of(key, &record, values));
                versions += 1;
                lists += usize::from(matches!(record.named, Named::Stripes(_)));
            }
        }
        assert_eq!(self.versions, versions, "versions are counted");
        assert_eq!(self.lists.len(), lists, "a list of stripes goes with its version");
        sum.get()
    }
}

impl Record {
    fn new(named: Named, create: u64, number: u64, change: Change) -> Self {
        let Change { modified: Revision { main, sub }, lease } = change;
        Self { named, create, main, number, lease, sub }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_takes_24_bytes() {
        assert_eq!(size_of::<History>(), 24);
    }

    #[test]
    fn a_version_is_the_same_however_it_is_kept() {
        let usual = Record {
            named: Named::Whole(9),
            create: 7,
            main: 1 << 40,
            number: 3,
            lease: 0,
            sub: 2,
        };
        let usual = Record { create: usual.main - 5, ..usual };
        let others = [
            Record { lease: 4, ..usual },
            Record { named: Named::Stripes(2), ..usual },
            Record { named: Named::Nothing, create: 0, number: 0, ..usual },
            Record { create: 7, ..usual },
            Record { number: 1 << 32, ..usual },
            Record { sub: 1 << 16, ..usual },
        ];
        for record in [usual, Record::default()].into_iter().chain(others) {
            let kept = History::of(record);
            let short = matches!(kept, History::Short { .. });
            assert_eq!(short, record == usual, "{record:?}");
            assert_eq!((kept.newest(), kept.len()), (record, 1));
            let mut kept = kept;
            kept.push(Record { main: record.main + 1, ..record });
            assert_eq!((kept.get(0), kept.len()), (record, 2));
            assert_eq!(kept.pop_oldest(), record);
            assert_eq!(kept.newest().main, record.main + 1);
        }
    }
}
