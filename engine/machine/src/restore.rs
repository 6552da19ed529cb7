//! A store filled with the history of another, as a backup tells it.
//!
//! [`Restore::Begin`] turns an empty store into one that is being restored: it has the revision of
//! the other at once, an alarm says what it is, and nothing but the steps of the restore is taken,
//! until [`Restore::End`] finds that all has come. So nobody ever sees a part of it.
//!
//! Invariant: versions come key by key in order of revision. Each names the one before it, so one
//! that comes too early, or a second time, is told from the one that is due; what a version may be
//! is judged by the same rules as in an export. At the end the numbers and the hash of the history
//! are those of the store that was saved.
//! What would break it: a change to keys that is taken while the alarm stands, or a list of changes
//! that is kept before the end: keys do not come in the order of revisions.

use crate::auth::AuthEntry;
use crate::index::export::Bounds;
use crate::index::{Change, Named, Revision};
use crate::machine::{Machine, Sweep};
use crate::op::{AlarmKind, Content, Key, LEASE_TTL_MAX, OpId};
use crate::outcome::Refusal;
use std::sync::Arc;

/// The alarm is of no member.
const NO_MEMBER: u64 = 0;

/// One step of filling an empty store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Restore {
    Begin {
        revision: u64,
    },
    Lease {
        id: i64,
        ttl: i64,
    },
    /// Users and roles, each behind what it names, and their state last: it tells the revision.
    Auth(Box<AuthEntry>),
    Version(Box<RestoredVersion>),
    /// What must have come.
    End(RestoreEnd),
}

/// One version of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoredVersion {
    pub key: Key,
    /// Where the version before stands; 0: there is none.
    pub before: Revision,
    pub modified: Revision,
    pub create: u64,
    pub number: u64,
    pub lease: i64,
    /// `None`: a tombstone.
    pub content: Option<Content>,
}

/// What a restored store must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestoreEnd {
    /// Keys, tombstones included.
    pub keys: u64,
    pub versions: u64,
    pub leases: u64,
    /// What is below was compacted.
    pub compacted: Option<u64>,
    /// [`Machine::hash_kv`] of all of it.
    pub hash: u32,
}

impl Machine {
    /// Whether the store is being filled: what it holds is shown to nobody.
    pub fn is_restoring(&self) -> bool {
        self.alarms.contains(&(NO_MEMBER, AlarmKind::Restoring))
    }

    /// [`Machine::hash_kv`] of all that is here, as if what is below a revision had been compacted: what the
    /// end of a restore must tell.
    ///
    /// # Errors
    /// As `hash_kv`.
    pub fn hash_as_compacted(&mut self, compacted: Option<u64>) -> Result<u32, Refusal> {
        let before = std::mem::replace(&mut self.compacted, compacted);
        let hash = self.hash_kv(0).map(|(hash, _)| hash);
        self.compacted = before;
        hash
    }

    pub(crate) fn restore(
        &mut self,
        at: (u64, u32),
        id: OpId,
        step: &Restore,
    ) -> Result<u32, Refusal> {
        match step {
            Restore::Begin { revision } => {
                let is_new = self.revision == 1
                    && self.index.len() == 0
                    && self.leases.is_empty()
                    && self.compacted.is_none()
                    && self.auth.is_unused()
                    && !self.is_restoring();
                if !is_new {
                    return Err(Refusal::NotEmpty);
                }
                self.revision = *revision;
                self.alarms.insert((NO_MEMBER, AlarmKind::Restoring));
                Ok(0)
            }
            _ if !self.is_restoring() => Err(Refusal::NotRestoring),
            Restore::Lease { id, ttl } => self.restore_lease(*id, *ttl),
            Restore::Auth(entry) => {
                let taken = Arc::make_mut(&mut self.auth).take(entry);
                taken.map_err(|_| Refusal::RestoreMismatch).map(|()| 0)
            }
            Restore::Version(version) => self.restore_version(at.0, id, version),
            Restore::End(end) => self.restore_end(end),
        }
    }

    fn restore_lease(&mut self, id: i64, ttl: i64) -> Result<u32, Refusal> {
        let known = self.leases.ttl(id);
        if id == 0 || ttl > LEASE_TTL_MAX || known.is_some_and(|known| known != ttl) {
            return Err(Refusal::RestoreMismatch);
        }
        if known.is_none() {
            self.leases.grant(id, ttl);
        }
        Ok(0)
    }

    fn restore_version(
        &mut self,
        slot: u64,
        id: OpId,
        version: &RestoredVersion,
    ) -> Result<u32, Refusal> {
        let RestoredVersion { key, before, modified, create, number, lease, content } = version;
        let newest = self.index.last_modified(key);
        if newest >= *modified {
            // It came before: whoever sends it again did not hear so.
            return Ok(0);
        }
        if newest != *before {
            return Err(Refusal::OutOfOrder);
        }
        if self.index.versions() >= self.limits.versions_max as usize || self.is_out_of_space() {
            return Err(Refusal::NoSpace);
        }
        let change = Change { modified: *modified, lease: *lease };
        let numbers = (*create, *number);
        let bounds = Bounds { revision: self.revision, history_max: self.limits.history_max };
        if !self.index.may_follow(key, numbers, change, content.is_none(), &bounds) {
            return Err(Refusal::RestoreMismatch);
        }
        let named = match content {
            None => Named::Nothing,
            Some(content) => self.named(slot, id, content)?,
        };
        self.index.restore(key, named, numbers, change, &mut self.values);
        Ok(1)
    }

    fn restore_end(&mut self, end: &RestoreEnd) -> Result<u32, Refusal> {
        let counts = [
            (self.index.len(), end.keys),
            (self.index.versions(), end.versions),
            (self.leases.len(), end.leases),
        ];
        let counted = counts.iter().all(|(held, told)| *held as u64 == *told);
        let leased = self.index.leased(&self.values).all(|(_, lease)| self.leases.contains(lease));
        let possible = end.compacted <= Some(self.revision);
        if !counted || !leased || !possible {
            return Err(Refusal::RestoreMismatch);
        }
        if self.hash_as_compacted(end.compacted) != Ok(end.hash) {
            return Err(Refusal::RestoreMismatch);
        }
        self.compacted = end.compacted;
        for (key, lease) in self.index.leased(&self.values) {
            self.leases.attach(lease, key);
        }
        if end.compacted.is_some() {
            // What was compacted while it was saved may have come too.
            self.sweep = Some(Sweep { next: Key::default(), again: false });
        }
        self.alarms.remove(&(NO_MEMBER, AlarmKind::Restoring));
        self.relist_changes();
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Limits;
    use crate::op::{Action, Op, Value};
    use crate::outcome::Outcome;

    /// A machine and where its next operation stands.
    struct Store(Machine, u64);

    impl Store {
        fn new() -> Store {
            let mut machine = Machine::new(Limits::default());
            machine.keep_changes();
            Store(machine, 0)
        }

        fn act(&mut self, make: impl FnOnce(OpId) -> Action) -> Result<u64, Refusal> {
            self.1 += 1;
            let id = OpId(u128::from(self.1));
            match self.0.apply(self.1, 0, &Op { id, author: None, stamp: None, action: make(id) }) {
                Outcome::Refused { reason, .. } => Err(reason),
                outcome => Ok(outcome.revision()),
            }
        }

        fn step(&mut self, step: Restore) -> Result<u64, Refusal> {
            self.act(|_| Action::Restore(step))
        }

        fn put(&mut self, key: &str) {
            let key = key.as_bytes().into();
            self.act(|id| Action::Put { key, content: content(id) }).unwrap();
        }
    }

    fn content(op: OpId) -> Content {
        let value = Value {
            op,
            len: 3,
            digest: [1; 16],
            crc: 77,
            head: *b"abc\0\0\0\0\0",
            k: 1,
            n: 5,
            layout: 0,
        };
        Content::Whole(value)
    }

    /// A store with history, deletions, leases and a compaction.
    fn original() -> Store {
        let mut store = Store::new();
        store.act(|_| Action::LeaseGrant { id: 7, ttl: 60 }).unwrap();
        for key in ["b", "a", "c", "a", "b", "a"] {
            store.put(key);
        }
        store.act(|_| Action::Delete { key: b"c"[..].into() }).unwrap();
        store.put("c");
        store.act(|_| Action::Delete { key: b"b"[..].into() }).unwrap();
        store.act(|_| Action::Compact { revision: 4 }).unwrap();
        store
    }

    /// All versions of a store, each with the one before it.
    fn versions(store: &Machine) -> Vec<RestoredVersion> {
        let mut all: Vec<RestoredVersion> = Vec::new();
        for (key, version) in store.versions_after(b"", Revision::default()) {
            let before = all.last().filter(|last| *last.key == *key).map(|last| last.modified);
            all.push(RestoredVersion {
                key: key.into(),
                before: before.unwrap_or_default(),
                modified: version.modified(),
                create: version.created(),
                number: version.number(),
                lease: version.lease(),
                content: version.content(),
            });
        }
        all
    }

    fn end_of(store: &Machine) -> RestoreEnd {
        RestoreEnd {
            keys: store.keys_len() as u64,
            versions: store.versions_len() as u64,
            leases: store.leases().count() as u64,
            compacted: store.compact_revision(),
            hash: store.hash_kv(0).unwrap().0,
        }
    }

    fn restore_one(store: &mut Store, version: &RestoredVersion) -> Result<u64, Refusal> {
        let version = version.clone();
        store.act(|id| {
            let content = version.content.as_ref().map(|_| content(id));
            Action::Restore(Restore::Version(Box::new(RestoredVersion { content, ..version })))
        })
    }

    fn begun(original: &Machine) -> Store {
        let mut store = Store::new();
        store.step(Restore::Begin { revision: original.revision() }).unwrap();
        store.step(Restore::Lease { id: 7, ttl: 60 }).unwrap();
        store
    }

    #[test]
    fn a_restored_store_shows_what_the_other_showed_at_every_revision() {
        let original = original();
        let mut store = begun(&original.0);
        for version in &versions(&original.0) {
            restore_one(&mut store, version).unwrap();
            // Sent twice, it is taken once.
            restore_one(&mut store, version).unwrap();
        }
        assert_eq!(store.step(Restore::End(end_of(&original.0))), Ok(original.0.revision()));
        assert_eq!(store.0.revision(), original.0.revision());
        for revision in 4..=original.0.revision() {
            let shown = |machine: &Machine| -> Vec<_> {
                let range = machine.range_at(b"", None, revision, usize::MAX).unwrap();
                range
                    .map(|(key, it)| (key.to_vec(), it.modified(), it.created(), it.number()))
                    .collect()
            };
            assert_eq!(shown(&store.0), shown(&original.0));
            assert_eq!(store.0.hash_kv(revision), original.0.hash_kv(revision));
        }
        let changes = |machine: &Machine| machine.changes_since(0).cloned().collect::<Vec<_>>();
        assert_eq!(changes(&store.0), changes(&original.0));
        // And it goes on as the other would.
        store.put("d");
        assert_eq!(store.0.revision(), original.0.revision() + 1);
    }

    #[test]
    fn nothing_but_the_restore_is_taken_until_it_has_ended() {
        let original = original();
        let mut store = begun(&original.0);
        let key: Key = b"x"[..].into();
        let refused = Err(Refusal::Restoring);
        let own = key.clone();
        assert_eq!(store.act(|id| Action::Put { key: own, content: content(id) }), refused);
        assert_eq!(store.act(|_| Action::Delete { key }), refused);
        assert_eq!(store.act(|_| Action::Compact { revision: 3 }), refused);
        assert_eq!(store.act(|_| Action::LeaseGrant { id: 9, ttl: 5 }), refused);
        assert_eq!(store.act(|_| Action::LeaseRevoke { id: 7 }), refused);
        let lower = Action::Alarm { member: 0, kind: AlarmKind::Restoring, raised: false };
        assert_eq!(store.act(|_| lower), Err(Refusal::Malformed));
        assert!(store.0.is_restoring());
        assert_eq!(store.step(Restore::Begin { revision: 5 }), Err(Refusal::NotEmpty));
    }

    #[test]
    fn a_version_that_is_not_the_next_is_refused_and_one_that_cannot_be_too() {
        let original = original();
        let all = versions(&original.0);
        let second = all.iter().position(|version| version.before != Revision::default()).unwrap();
        let mut store = begun(&original.0);
        assert_eq!(restore_one(&mut store, &all[second]), Err(Refusal::OutOfOrder));
        restore_one(&mut store, &all[second - 1]).unwrap();
        for wrong in [
            RestoredVersion { number: all[second].number + 1, ..all[second].clone() },
            RestoredVersion { create: all[second].create + 1, ..all[second].clone() },
            RestoredVersion { modified: Revision { main: 1000, sub: 0 }, ..all[second].clone() },
        ] {
            assert_eq!(restore_one(&mut store, &wrong), Err(Refusal::RestoreMismatch), "{wrong:?}");
        }
        restore_one(&mut store, &all[second]).unwrap();
    }

    #[test]
    fn an_end_that_does_not_fit_leaves_the_store_unseen() {
        let original = original();
        let end = end_of(&original.0);
        let mut store = begun(&original.0);
        let all = versions(&original.0);
        for version in &all {
            restore_one(&mut store, version).unwrap();
        }
        for wrong in [
            RestoreEnd { keys: end.keys + 1, ..end },
            RestoreEnd { versions: end.versions - 1, ..end },
            RestoreEnd { leases: 0, ..end },
            RestoreEnd { hash: end.hash ^ 1, ..end },
            RestoreEnd { compacted: Some(5), ..end },
            RestoreEnd { compacted: Some(1000), ..end },
        ] {
            assert_eq!(store.step(Restore::End(wrong)), Err(Refusal::RestoreMismatch), "{wrong:?}");
            assert!(store.0.is_restoring());
        }
        store.step(Restore::End(end)).unwrap();
        assert_eq!(store.step(Restore::End(end)), Err(Refusal::NotRestoring));
    }

    #[test]
    fn a_store_that_holds_something_is_not_restored_into() {
        let mut store = original();
        assert_eq!(store.step(Restore::Begin { revision: 50 }), Err(Refusal::NotEmpty));
        let mut leased = Store::new();
        leased.act(|_| Action::LeaseGrant { id: 1, ttl: 5 }).unwrap();
        assert_eq!(leased.step(Restore::Begin { revision: 50 }), Err(Refusal::NotEmpty));
    }

    #[test]
    fn a_store_exported_in_the_middle_of_a_restore_goes_on_with_it() {
        let original = original();
        let mut store = begun(&original.0);
        let all = versions(&original.0);
        let (first, rest) = all.split_at(3);
        for version in first {
            restore_one(&mut store, version).unwrap();
        }
        store.0.export_begin(crate::EXPORT_PART_BYTES);
        let crate::Exported::Last(part) = store.0.export_slice(1000, &mut |_| {}) else {
            panic!("it is one part");
        };
        let mut import = crate::Import::new(Limits::default());
        assert_eq!(import.part(&part, &mut |_| {}), Ok(true));
        let mut again = Store(import.finish().unwrap(), store.1);
        assert!(again.0.is_restoring());
        for version in rest {
            restore_one(&mut again, version).unwrap();
        }
        again.step(Restore::End(end_of(&original.0))).unwrap();
    }

    /// What fills a store with the history of another, and what clients do behind it. The end brings a
    /// compaction with it, so that restored versions go again at once.
    fn whole_restore(original: &mut Store) -> Vec<Action> {
        let compacted = Some(original.0.revision() - 1);
        let hash = original.0.hash_as_compacted(compacted).unwrap();
        let end = RestoreEnd { compacted, hash, ..end_of(&original.0) };
        let mut store = begun(&original.0);
        let begin = Restore::Begin { revision: original.0.revision() };
        let mut actions = vec![begin, Restore::Lease { id: 7, ttl: 60 }];
        for version in versions(&original.0) {
            restore_one(&mut store, &version).unwrap();
            let id = OpId(1000 + u128::from(store.1));
            let content = version.content.as_ref().map(|_| content(id));
            actions.push(Restore::Version(Box::new(RestoredVersion { content, ..version })));
        }
        actions.push(Restore::End(end));
        let mut actions: Vec<_> = actions.into_iter().map(Action::Restore).collect();
        for (id, key) in (2000..).zip(["b", "a", "e"]) {
            let (key, content) = (key.as_bytes().into(), content(OpId(id)));
            actions.push(Action::Put { key, content });
        }
        actions
    }

    /// Applies the action of a slot, under the name that its value has.
    fn act_at(machine: &mut Machine, slot: usize, action: &Action) {
        let own = match action {
            Action::Put { content: Content::Whole(value), .. } => Some(value.op),
            Action::Restore(Restore::Version(version)) => match &version.content {
                Some(Content::Whole(value)) => Some(value.op),
                _ => None,
            },
            _ => None,
        };
        let id = own.unwrap_or(OpId(5000 + slot as u128));
        let op = Op { id, author: None, stamp: None, action: action.clone() };
        let outcome = machine.apply(slot as u64, 0, &op);
        assert!(!matches!(outcome, Outcome::Refused { .. }), "{action:?}: {outcome:?}");
    }

    /// Exports the state behind `pin` actions, with `every` actions before each slice of `visits`.
    fn exported(actions: &[Action], pin: usize, (visits, every): (usize, usize)) -> Vec<Vec<u8>> {
        let mut machine = Machine::new(Limits::default());
        let mut slots = actions.iter().enumerate();
        slots.by_ref().take(pin).for_each(|(slot, action)| act_at(&mut machine, slot, action));
        machine.export_begin(40);
        let mut parts = Vec::new();
        while machine.is_exporting() {
            slots.by_ref().take(every).for_each(|(slot, it)| act_at(&mut machine, slot, it));
            match machine.export_slice(visits, &mut |_| {}) {
                crate::Exported::Working => {}
                crate::Exported::Part(part) | crate::Exported::Last(part) => parts.push(part),
            }
        }
        parts
    }

    fn imported(parts: &[Vec<u8>]) -> Machine {
        let mut import = crate::Import::new(Limits::default());
        for part in parts {
            import.part(part, &mut |_| {}).expect("a good part");
        }
        import.finish().expect("the state is the one that was pinned")
    }

    /// Restored versions have the revisions of another store, at and below the one that was pinned.
    #[test]
    fn an_export_has_nothing_that_was_restored_since_it_was_begun() {
        let mut original = original();
        // Versions of several keys in one revision, and a key that is restored as the last.
        original.act(|_| Action::DeleteRange { from: b""[..].into(), to: None }).unwrap();
        original.put("d");
        let actions = whole_restore(&mut original);
        let mut at_pin = Machine::new(Limits::default());
        for pin in 0..=actions.len() {
            let quiet = exported(&actions[..pin], pin, (usize::MAX, 0));
            assert_eq!(imported(&quiet).state_hash(), at_pin.state_hash());
            for every in 1..=actions.len() - pin {
                for visits in [1, 2, 3, 1000] {
                    let parts = exported(&actions, pin, (visits, every));
                    assert_eq!(imported(&parts).state_hash(), at_pin.state_hash(), "pin {pin}");
                    assert_eq!(parts, quiet, "pin {pin}, {every} actions, {visits} visits");
                }
            }
            if let Some(action) = actions.get(pin) {
                act_at(&mut at_pin, pin, action);
            }
        }
    }

    /// Revision 1, which an empty store has, may be one of a version.
    #[test]
    fn an_export_of_an_empty_store_stays_empty_when_a_restore_begins() {
        let value = content(OpId(900));
        let version = RestoredVersion {
            key: b"a"[..].into(),
            before: Revision::default(),
            modified: Revision { main: 1, sub: 0 },
            create: 1,
            number: 1,
            lease: 0,
            content: Some(value),
        };
        let steps = [Restore::Begin { revision: 9 }, Restore::Version(Box::new(version))];
        let actions = steps.map(Action::Restore);
        let machine = imported(&exported(&actions, 0, (1, 2)));
        assert_eq!((machine.versions_len(), machine.is_restoring()), (0, false));
    }
}
