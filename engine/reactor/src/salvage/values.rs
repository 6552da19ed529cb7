//! The values of a state, from the fragments that survivors hold.
//!
//! Invariant: a value is given out only with the digest that was decided. Memory holds one version's bytes
//! at a time, and for each value in use where its fragments lie.
//! What would break it: taking a fragment by its node's number in place of its place in the layout.

use super::survivor::{Survivor, fragments};
use super::{Kept, Salvage};
use crate::assemble::{Assembler, Placed, Unfit};
use crate::fragments::Lying;
use crate::layout::{self, BACKED_UP_BYTES_MAX};
use crate::placement::{Codecs, layout_of};
use crate::reads::Held;
use crate::secrets::Secrets;
use crate::table::Table;
use racos_buffer::{Pool, Slice};
use racos_machine::{Key, Members, OpId, Revision, Value, Version};
use racos_protocol::Slot;
use racos_storage::device::Device;
use racos_storage::survey::{Depth, read_place, survey_records};
use racos_storage::{Place, Replayed};
use std::collections::BTreeSet;
use std::io::ErrorKind;

/// Why a value cannot be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// So many good fragments are left of those that it needs.
    TooFew { good: usize, needed: usize },
    /// No k of the fragments make the bytes that were written.
    Damaged,
    /// The code of it is not known.
    Layout,
    /// It does not fit the memory that there is for it.
    Memory,
    /// It has more bytes than a backup takes in one value.
    TooLarge,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unreadable::TooFew { good, needed } => {
                write!(out, "{good} good fragments are left, {needed} are needed")
            }
            Unreadable::Damaged => write!(out, "its fragments do not make what was written"),
            Unreadable::Layout => write!(out, "its layout is not known"),
            Unreadable::Memory => write!(out, "there is no memory for it"),
            Unreadable::TooLarge => {
                write!(out, "a value of a backup has at most {} MiB", BACKED_UP_BYTES_MAX >> 20)
            }
        }
    }
}

/// A version whose bytes are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub key: Key,
    pub modified: Revision,
    /// Where the key's next version is; `None`: it is the newest.
    pub next: Option<Revision>,
    pub why: Unreadable,
}

/// A version of a key.
pub struct Shown<'a> {
    pub key: &'a [u8],
    pub version: Version<'a>,
    /// Where the key's next version is; `None`: it is the newest.
    pub next: Option<Revision>,
    /// `None`: it is a tombstone.
    pub bytes: Result<Option<Vec<u8>>, Unreadable>,
}

impl Shown<'_> {
    /// The version as one whose bytes are gone.
    pub fn lost(&self, why: Unreadable) -> Lost {
        Lost { key: self.key.into(), modified: self.version.modified(), next: self.next, why }
    }
}

/// What of a state is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    /// Keys of which nothing is.
    pub keys: BTreeSet<Key>,
    /// What only reads below this revision would see is not.
    pub compacted: Option<u64>,
}

impl<D: Device> Salvage<D> {
    /// Finds the fragments of the values in use. `progress` is told bytes gone over, and all of them, for
    /// each survivor.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn find_fragments(
        &mut self,
        progress: &mut dyn FnMut(usize, u64, u64),
    ) -> Result<(), String> {
        self.lying.clear();
        let (machine, secrets) = (&self.machine, &self.secrets);
        for (at, survivor) in self.survivors.iter_mut().enumerate() {
            let mut table = Table::<Kept>::default();
            let mut found = |op: OpId, place: Place, crc: u32| {
                if machine.value(op).is_none() {
                    return;
                }
                let before = table.get(op).map_or_else(Lying::default, |kept| kept.0[0]);
                table.insert(op, Kept([Lying { place, crc }, before]));
            };
            let mut each = |record: Replayed<'_>| fragments(&record, secrets, &mut found);
            let mut progress = |done, all| progress(at, done, all);
            let (device, pool) = (&mut survivor.device, &self.pool);
            survey_records(device, pool, Depth::Records, &mut progress, &mut each)
                .map_err(|error| format!("{}: {error}", survivor.name))?;
            self.lying.push(table);
        }
        Ok(())
    }

    /// What is to be left out so that the rest is whole: a key whose newest value is lost goes with all of
    /// its versions, for an older one is not what was written last; for a lost version that is not the
    /// newest of its key, the history up to where the next one begins.
    pub fn without(&self, lost: &[Lost]) -> Cut {
        let newest = lost.iter().filter(|lost| lost.next.is_none());
        let keys: BTreeSet<Key> = newest.map(|lost| lost.key.clone()).collect();
        let older = lost.iter().filter(|lost| !keys.contains(&lost.key));
        let compacted = older.filter_map(|lost| lost.next).map(|next| next.main).max();
        Cut { compacted: compacted.max(self.machine.compact_revision()), keys }
    }

    /// Nothing but what is compacted.
    pub fn uncut(&self) -> Cut {
        Cut { keys: BTreeSet::new(), compacted: self.machine.compact_revision() }
    }

    /// Goes over the versions that are shown, by key and then by revision.
    ///
    /// # Errors
    /// What `take` says.
    pub fn each_version<E>(
        &mut self,
        cut: &Cut,
        take: &mut dyn FnMut(Shown<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Salvage { survivors, machine, pool, secrets, codecs, lying, .. } = self;
        let members = machine.members();
        let mut shelf = Shelf { survivors, lying, pool, secrets, codecs, members };
        let mut versions = machine.versions_after(b"", Revision::default()).peekable();
        while let Some((key, version)) = versions.next() {
            let next = versions.peek().filter(|(other, _)| *other == key);
            let next = next.map(|(_, next)| next.modified());
            // What a finished compaction drops.
            let is_dropped = next.is_some_and(|next| Some(next.main) <= cut.compacted);
            if is_dropped || cut.keys.contains(key) {
                continue;
            }
            let bytes = (!version.is_tombstone()).then(|| shelf.bytes(&version));
            take(Shown { key, version, next, bytes: bytes.transpose() })?;
        }
        Ok(())
    }
}

/// Takes a value, the slot that stored it, and the fragment if it is there and good.
pub(super) type TakeFragment<'a> =
    dyn FnMut(&Value, Slot, Option<Slice>) -> Result<(), String> + 'a;

impl<D: Device> Salvage<D> {
    /// Goes over the values in use that the only survivor should hold a fragment of.
    pub(super) fn each_fragment(&mut self, take: &mut TakeFragment<'_>) -> Result<(), String> {
        let Salvage { survivors, machine, pool, secrets, codecs, lying, .. } = self;
        let members = machine.members();
        let mut shelf = Shelf { survivors, lying, pool, secrets, codecs, members };
        for used in machine.values().filter(|used| used.value.len > 0) {
            let node = u8::try_from(shelf.survivors[0].node()).unwrap_or(u8::MAX);
            let place = layout_of(members, &used.value).and_then(|layout| layout.place(node));
            if place.is_none() {
                continue;
            }
            let len = layout::fragment_len(used.value.len as usize, usize::from(used.value.k));
            let held = shelf.good_fragment(0, &used.value, len).map_err(|why| why.to_string())?;
            take(&used.value, used.slot, held.map(|held| held.bytes))?;
        }
        Ok(())
    }
}

/// Fragments, and what values are put together with.
struct Shelf<'a, D: Device> {
    survivors: &'a mut [Survivor<D>],
    lying: &'a [Table<Kept>],
    pool: &'a Pool,
    secrets: &'a Secrets,
    codecs: &'a Codecs,
    members: &'a Members,
}

impl<D: Device> Shelf<'_, D> {
    fn bytes(&mut self, version: &Version<'_>) -> Result<Vec<u8>, Unreadable> {
        if version.len() > BACKED_UP_BYTES_MAX {
            return Err(Unreadable::TooLarge);
        }
        let mut bytes = Vec::with_capacity(version.len() as usize);
        for value in version.values() {
            self.append(&value, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// PROTOCOL 10-af, 8.1-n: from any k good fragments, checked; those of data first.
    fn append(&mut self, value: &Value, into: &mut Vec<u8>) -> Result<(), Unreadable> {
        if value.len == 0 {
            return Ok(());
        }
        let layout = layout_of(self.members, value).ok_or(Unreadable::Layout)?;
        let len = layout::fragment_len(value.len as usize, usize::from(value.k));
        let place = |it: &Survivor<D>| layout.place(u8::try_from(it.node()).ok()?);
        let places = self.survivors.iter().map(place).enumerate();
        let mut places: Vec<(usize, usize)> =
            places.filter_map(|(at, place)| Some((place?, at))).collect();
        places.sort_unstable();
        let needed = usize::from(value.k);
        let (mut held, mut taken) = (Vec::new(), Vec::new());
        for (place, at) in places {
            let Some(fragment) = self.good_fragment(at, value, len)? else { continue };
            held.push(fragment);
            taken.push(place);
            if held.len() == needed && self.join(&held, &taken, value, false, into)? {
                return Ok(());
            }
        }
        match held.len() {
            good if good < needed => Err(Unreadable::TooFew { good, needed }),
            // PROTOCOL 9.5-b: find the subset that fits.
            _ if self.join(&held, &taken, value, true, into)? => Ok(()),
            _ => Err(Unreadable::Damaged),
        }
    }

    /// A survivor's fragment of a value, if its bytes have the checksum that was written beside them.
    fn good_fragment(
        &mut self,
        at: usize,
        value: &Value,
        len: usize,
    ) -> Result<Option<Held>, Unreadable> {
        let Some(Kept(places)) = self.lying[at].get(value.op).copied() else { return Ok(None) };
        let survivor = &mut self.survivors[at];
        let there =
            places.iter().filter(|it| it.place.segment != 0 && it.place.len as usize == len);
        for Lying { place, crc } in there {
            match read_place(&mut survivor.device, self.pool, *place) {
                Ok(bytes) if crc32fast::hash(&bytes) == *crc => {
                    let node = survivor.node() as u8;
                    return Ok(Some(Held { op: value.op, node, bytes }));
                }
                Err(error) if error.kind() == ErrorKind::OutOfMemory => {
                    return Err(Unreadable::Memory);
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Appends the value that these make; false if they do not make what was written.
    fn join(
        &self,
        held: &[Held],
        places: &[usize],
        value: &Value,
        suspicious: bool,
        into: &mut Vec<u8>,
    ) -> Result<bool, Unreadable> {
        let codec = self.codecs.of(usize::from(value.k), usize::from(value.n));
        let assembler = Assembler { pool: self.pool, secrets: self.secrets, codec };
        let placed = held.iter().zip(places).map(|(held, place)| Placed { place: *place, held });
        match assembler.decode(placed.collect(), value, suspicious) {
            Ok(decoded) => {
                decoded.pieces.iter().for_each(|piece| into.extend_from_slice(piece));
                Ok(true)
            }
            Err(Unfit::Digest) => Ok(false),
            Err(Unfit::NoBuffers) => Err(Unreadable::Memory),
        }
    }
}
