//! The lease table: ids, times to live, and the keys attached to each.
//!
//! Invariant: a key is attached to a lease if and only if its newest version is live and names that
//! lease; so the attached keys follow from the index, and the state hash covers ids and times only.
//! Time itself is no part of the state: that a lease is overdue is for the nodes to agree on, and
//! reaches the machine as an operation that ends it.
//! What would break it: a put or delete that does not detach the key from its old lease.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use crate::export::{Out, entry};
use crate::hash::{self, Kind, Sum};
use crate::op::{AlarmKind, Key, LEASE_TTL_MAX};
use crate::wire::{DecodeError, Reader, put_signed, put_varint, require};

/// What the table holds of a lease.
#[derive(Default, Debug)]
struct Lease {
    /// Seconds.
    ttl: i64,
    keys: BTreeSet<Key>,
}

/// The leases of a pinned state: of those not written yet, the ones that went since are saved, and the
/// ones that came since are named. Alarms, at most two a member, are copied.
#[derive(Default, Debug)]
struct Pinned {
    /// All up to this one are written.
    written: Option<i64>,
    saved: BTreeMap<i64, i64>,
    newer: BTreeSet<i64>,
    alarms: VecDeque<(u64, AlarmKind)>,
}

impl Pinned {
    fn came(&mut self, id: i64) {
        if Some(id) > self.written {
            self.newer.insert(id);
        }
    }

    fn went(&mut self, id: i64, ttl: i64) {
        if Some(id) > self.written && !self.newer.remove(&id) {
            self.saved.insert(id, ttl);
        }
    }
}

#[derive(Default, Debug)]
pub(crate) struct Leases {
    table: BTreeMap<i64, Lease>,
    sum: Sum,
    pinned: Option<Pinned>,
}

fn hash_of(id: i64, ttl: i64) -> u128 {
    hash::entry(Kind::Lease, [id as u64, ttl as u64])
}

impl Leases {
    /// Adds a lease; false if there is one with this id.
    pub(crate) fn grant(&mut self, id: i64, ttl: i64) -> bool {
        if self.table.contains_key(&id) {
            return false;
        }
        self.sum.add(hash_of(id, ttl));
        self.table.insert(id, Lease { ttl, keys: BTreeSet::new() });
        if let Some(pinned) = &mut self.pinned {
            pinned.came(id);
        }
        true
    }

    /// Takes a lease out, with the keys attached to it, in order. `None` if there is none.
    pub(crate) fn take(&mut self, id: i64) -> Option<Vec<Key>> {
        let lease = self.table.remove(&id)?;
        self.sum.sub(hash_of(id, lease.ttl));
        if let Some(pinned) = &mut self.pinned {
            pinned.went(id, lease.ttl);
        }
        Some(lease.keys.into_iter().collect())
    }

    pub(crate) fn pin(&mut self, alarms: &BTreeSet<(u64, AlarmKind)>) {
        self.pinned =
            Some(Pinned { alarms: alarms.iter().copied().collect(), ..Pinned::default() });
    }

    pub(crate) fn unpin(&mut self) {
        self.pinned = None;
    }

    /// Writes on; true when all is written.
    pub(crate) fn export(&mut self, out: &mut Out<'_>) -> bool {
        let pinned = self.pinned.as_mut().expect("leases are exported from a pinned table");
        loop {
            let behind = pinned.written.map_or(Bound::Unbounded, Bound::Excluded);
            let held = self.table.range((behind, Bound::Unbounded)).next();
            let held = held.map(|(&id, lease)| (id, lease.ttl));
            let saved = pinned.saved.first_key_value().map(|(&id, &ttl)| (id, ttl));
            // One that went may have come again: the saved one is of the pinned state.
            let next = saved.into_iter().chain(held).min_by_key(|(id, _)| *id);
            let Some((id, ttl)) = next else { break };
            if out.is_full() {
                return false;
            }
            let is_saved = pinned.saved.remove(&id).is_some();
            if !pinned.newer.remove(&id) || is_saved {
                out.bytes.push(entry::LEASE);
                put_signed(out.bytes, id);
                put_signed(out.bytes, ttl);
            }
            pinned.written = Some(id);
        }
        while let Some(&(member, kind)) = pinned.alarms.front() {
            if out.is_full() {
                return false;
            }
            out.bytes.push(entry::ALARM);
            put_varint(out.bytes, member);
            out.bytes.push(kind as u8);
            pinned.alarms.pop_front();
        }
        true
    }

    /// Takes a lease, in order of id; its keys are attached when they have come.
    pub(crate) fn import(&mut self, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        let (id, ttl) = (from.signed("lease")?, from.signed("ttl")?);
        let rule = |holds, rule| require(holds, "lease", rule);
        rule(id != 0 && ttl <= LEASE_TTL_MAX, "it has an id, and its time is bounded")?;
        rule(self.table.last_key_value().is_none_or(|(&last, _)| last < id), "ids stand in order")?;
        self.grant(id, ttl);
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(crate) fn contains(&self, id: i64) -> bool {
        self.table.contains_key(&id)
    }

    pub(crate) fn ttl(&self, id: i64) -> Option<i64> {
        self.table.get(&id).map(|lease| lease.ttl)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, i64)> + '_ {
        self.table.iter().map(|(&id, lease)| (id, lease.ttl))
    }

    pub(crate) fn keys(&self, id: i64) -> impl Iterator<Item = &[u8]> {
        self.table.get(&id).into_iter().flat_map(|lease| lease.keys.iter().map(|key| &**key))
    }

    pub(crate) fn attach(&mut self, id: i64, key: &[u8]) {
        if id != 0 {
            let lease = self.table.get_mut(&id).expect("a key is attached to a lease that exists");
            lease.keys.insert(key.into());
        }
    }

    /// The lease may have been taken out already, with all its keys.
    pub(crate) fn detach(&mut self, id: i64, key: &[u8]) {
        if id != 0
            && let Some(lease) = self.table.get_mut(&id)
        {
            lease.keys.remove(key);
        }
    }

    pub(crate) fn hash(&self) -> u128 {
        self.sum.get()
    }

    /// The hash from the entries themselves; `live` are the keys with a lease, as the index has them.
    pub(crate) fn full_hash<'a>(&self, live: impl Iterator<Item = (&'a [u8], i64)>) -> u128 {
        let mut attached = 0;
        for (key, lease) in live {
            let held = self.table.get(&lease).is_some_and(|lease| lease.keys.contains(key));
            assert!(held, "a live key that names a lease is attached to it");
            attached += 1;
        }
        let all: usize = self.table.values().map(|lease| lease.keys.len()).sum();
        assert_eq!(all, attached, "only live keys that name a lease are attached to it");
        let mut sum = Sum::default();
        self.iter().for_each(|(id, ttl)| sum.add(hash_of(id, ttl)));
        sum.get()
    }
}
