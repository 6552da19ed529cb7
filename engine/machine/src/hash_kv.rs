//! etcd's hash of its key-value store, from metadata alone.
//!
//! Invariant: for the same history the number is etcd's: CRC-32C over the bucket's name and, for
//! every revision that a finished compaction leaves, in order, the revision's key and the marshalled
//! `KeyValue`. The value stands within the marshalled bytes; its own CRC and length stand in for it.
//! It depends on the logical state only, not on how far a compaction has dropped what it frees.

use crate::index::{Revision, Version};
use crate::machine::Machine;
use crate::op::{Key, Value};
use crate::outcome::Refusal;
use std::collections::BTreeMap;

/// A CRC over bytes of which some are known by their own CRC only.
#[derive(Debug)]
struct Crc(u32);

impl Crc {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    fn value(&mut self, value: &Value) {
        self.0 = crc32c::crc32c_combine(self.0, value.crc, value.len as usize);
    }
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A field of `KeyValue` that is a number; 0 is left out.
fn put_number(out: &mut Vec<u8>, field: u8, number: u64) {
    if number != 0 {
        out.push(field << 3);
        put_varint(out, number);
    }
}

fn put_length(out: &mut Vec<u8>, field: u8, len: u64) {
    out.push(field << 3 | 2);
    put_varint(out, len);
}

/// One revision as it lies in etcd's bucket.
fn write(crc: &mut Crc, out: &mut Vec<u8>, key: &[u8], version: &Version<'_>) {
    let Revision { main, sub } = version.modified();
    out.clear();
    out.extend_from_slice(&main.to_be_bytes());
    out.push(b'_');
    out.extend_from_slice(&u64::from(sub).to_be_bytes());
    if version.is_tombstone() {
        out.push(b't');
    }
    put_length(out, 1, key.len() as u64);
    out.extend_from_slice(key);
    if version.is_tombstone() {
        return crc.bytes(out);
    }
    put_number(out, 2, version.created());
    put_number(out, 3, main);
    put_number(out, 4, version.number());
    if !version.is_empty() {
        put_length(out, 5, version.len());
        crc.bytes(out);
        version.values().for_each(|value| crc.value(&value));
        out.clear();
    }
    put_number(out, 6, version.lease() as u64);
    crc.bytes(out);
}

/// A hash that is put together slice by slice, while other operations are applied.
#[derive(Debug)]
pub struct Hashing {
    revision: u64,
    /// What was compacted when it was begun: what is left out follows from it.
    compacted: Option<u64>,
    /// The last version looked at; `None`: all were.
    after: Option<(Key, Revision)>,
    /// The versions that count, in the order of their revisions, with whether the state shows them.
    listed: BTreeMap<Revision, (Key, bool)>,
    any_alive: bool,
    crc: Crc,
}

impl Hashing {
    /// The revision up to which the history is hashed.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

impl Machine {
    /// The hash of the history up to a revision, 0: the newest; and that revision.
    ///
    /// # Errors
    /// `Compacted` or `FutureRevision`.
    pub fn hash_kv(&self, revision: u64) -> Result<(u32, u64), Refusal> {
        let mut hashing = self.begin_hashing(revision)?;
        loop {
            if let Some(hash) = self.go_on_hashing(&mut hashing, usize::MAX)? {
                return Ok((hash, hashing.revision));
            }
        }
    }

    /// Begins the hash of the history up to a revision, 0: the newest.
    ///
    /// # Errors
    /// `Compacted` or `FutureRevision`.
    pub fn begin_hashing(&self, revision: u64) -> Result<Hashing, Refusal> {
        if self.compacted.is_some_and(|compacted| revision > 0 && revision < compacted) {
            return Err(Refusal::Compacted);
        }
        if revision > self.revision {
            return Err(Refusal::FutureRevision);
        }
        let mut crc = Crc(0);
        crc.bytes(b"key");
        Ok(Hashing {
            revision: if revision == 0 { self.revision } else { revision },
            compacted: self.compacted,
            after: Some((Key::default(), Revision::default())),
            listed: BTreeMap::new(),
            any_alive: false,
            crc,
        })
    }

    /// Looks at so many versions more; the hash when it is complete.
    ///
    /// # Errors
    /// `Compacted`: something was compacted since it was begun, and it is to be begun again.
    pub fn go_on_hashing(
        &self,
        hashing: &mut Hashing,
        versions_max: usize,
    ) -> Result<Option<u32>, Refusal> {
        if self.compacted != hashing.compacted {
            return Err(Refusal::Compacted);
        }
        match hashing.after.take() {
            Some((key, modified)) => {
                self.list_versions(hashing, &key, modified, versions_max);
                Ok(None)
            }
            None => {
                self.hash_listed(hashing, versions_max);
                Ok(hashing.listed.is_empty().then_some(hashing.crc.0))
            }
        }
    }

    /// Lists the versions behind one that count.
    fn list_versions(&self, hashing: &mut Hashing, key: &[u8], modified: Revision, most: usize) {
        let revision = hashing.revision;
        let mut versions = self.index.versions_after(key, modified, &self.values).peekable();
        let mut looked = 0;
        while let Some((key, version)) = versions.next() {
            let next = versions.peek().filter(|(other, _)| *other == key);
            let next = next.map(|(_, next)| next.modified().main);
            // The state at `revision` shows it.
            let newest = version.modified().main <= revision && next.is_none_or(|at| at > revision);
            let alive = newest && !version.is_tombstone();
            hashing.any_alive |= alive;
            if version.modified().main <= revision && !self.is_compacted_away(&version, next) {
                hashing.listed.insert(version.modified(), (key.into(), alive));
            }
            looked += 1;
            if looked == most {
                hashing.after = Some((key.into(), version.modified()));
                return;
            }
        }
    }

    /// Hashes the first of those that are listed.
    fn hash_listed(&self, hashing: &mut Hashing, most: usize) {
        let mut scratch = Vec::new();
        for _ in 0..most {
            let Some((modified, (key, alive))) = hashing.listed.pop_first() else { return };
            let (version, _) = self
                .index
                .exactly(&key, modified, &self.values)
                .expect("what no compaction leaves out stays");
            // As in etcd: with no key alive, nothing is left out.
            let skipped = Some(modified.main) <= self.compacted && hashing.any_alive && !alive;
            let at_compaction = Some(modified.main) == self.compacted && version.is_tombstone();
            if !skipped && !at_compaction {
                write(&mut hashing.crc, &mut scratch, &key, &version);
            }
        }
    }

    /// Whether a finished compaction would have dropped it; `next`: where the key's next version is.
    fn is_compacted_away(&self, version: &Version<'_>, next: Option<u64>) -> bool {
        let Some(compacted) = self.compacted else { return false };
        let main = version.modified().main;
        main <= compacted
            && (next.is_some_and(|next| next <= compacted)
                || (version.is_tombstone() && main < compacted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Limits;

    #[test]
    fn an_empty_store_hashes_the_name_of_its_bucket() {
        let machine = Machine::new(Limits::default());
        assert_eq!(machine.hash_kv(0), Ok((crc32c::crc32c(b"key"), 1)));
        assert_eq!(machine.hash_kv(2), Err(Refusal::FutureRevision));
    }
}
