//! A state from the parts of an export (see [`crate::export`]).
//!
//! Invariant: the parts come from a disk or a peer and are believed in nothing: a machine results
//! only if every part is the one that follows, every entry keeps the rules that applying keeps,
//! and the state hash computed from the entries is the one that the pinned state had. What would
//! break it: memory taken for a count that was only read, or a rule that is left to the hash and
//! whose violation makes the machine panic before the hash is compared.

use std::fmt;
use std::sync::Arc;

use crate::export::{EXPORT_FORMAT, PART_HEADER, chain, entry};
use crate::index::export::{Bounds, KeysIn};
use crate::machine::{Limits, Machine, Sweep};
use crate::members::Members;
use crate::op::OpId;
use crate::sessions::SessionBounds;
use crate::wire::{DecodeError, Problem, Reader, require};

/// Why parts do not give a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImportError {
    /// Not a part of this format: too short, or of another version.
    Format { part: u32 },
    /// Another part was to come: one is missing, or came twice.
    Order { part: u32, found: u32 },
    /// The part was damaged, or belongs to another export than those before it.
    Damaged { part: u32 },
    /// An entry that no export holds.
    Entry { part: u32, error: DecodeError },
    /// The state was made under other limits; they must be equal on all nodes.
    Limits { found: Limits },
    /// The last part has not come.
    Unfinished { part: u32 },
    /// The entries do not make the state that was exported.
    State { expected: u128, found: u128 },
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImportError::Format { part } => write!(f, "part {part} is not of this format"),
            ImportError::Order { part, found } => {
                write!(f, "part {found} came where part {part} was to come")
            }
            ImportError::Damaged { part } => {
                write!(f, "part {part} is damaged, or of another export than those before it")
            }
            ImportError::Entry { part, error } => write!(f, "part {part}: {error}"),
            ImportError::Limits { found } => {
                write!(f, "the state was made under other limits: {found:?}")
            }
            ImportError::Unfinished { part } => write!(f, "part {part} and the rest are missing"),
            ImportError::State { expected, found } => {
                write!(f, "the state hash is {found:032x} where {expected:032x} was exported")
            }
        }
    }
}

impl std::error::Error for ImportError {}

/// A machine that is being put together.
#[derive(Debug)]
pub struct Import {
    machine: Machine,
    number: u32,
    chain: u128,
    keys: KeysIn,
    /// The kind of the last entry: kinds only go up, but for versions and the next key.
    last: u8,
    state_hash: u128,
}

impl Import {
    /// Waits for part 0 of a state that was made under these limits.
    pub fn new(limits: Limits) -> Self {
        let (machine, keys) = (Machine::new(limits), KeysIn::default());
        Self { machine, number: 0, chain: 0, keys, last: 0, state_hash: 0 }
    }

    /// The number of the next part.
    pub fn next_part(&self) -> u32 {
        self.number
    }

    /// Whether the last part was taken.
    pub fn is_complete(&self) -> bool {
        self.last == entry::END
    }

    /// Slot and position of the last operation that the state contains; `None` before part 0.
    pub fn applied(&self) -> Option<(u64, u32)> {
        self.machine.applied
    }

    /// Takes the next part; true if it was the last one. `stored` is told the operation of every
    /// value named in it, in the order in which [`Machine::export_slice`] told them.
    ///
    /// # Errors
    /// If it is not the part that follows those before it. `Format`, `Order` and `Damaged` leave
    /// the import as it was, so the right part may come next; after any other, it is to be dropped.
    pub fn part(
        &mut self,
        bytes: &[u8],
        stored: &mut dyn FnMut(OpId),
    ) -> Result<bool, ImportError> {
        let part = self.number;
        let (header, entries) =
            bytes.split_at_checked(PART_HEADER).ok_or(ImportError::Format { part })?;
        if header[0] != EXPORT_FORMAT {
            return Err(ImportError::Format { part });
        }
        let number = u32::from_le_bytes(header[1..5].try_into().expect("four bytes"));
        if number != part || self.is_complete() {
            return Err(ImportError::Order { part, found: number });
        }
        let chain = chain(self.chain, number, entries);
        if chain.to_le_bytes() != header[5..] {
            return Err(ImportError::Damaged { part });
        }
        let mut from = Reader { rest: entries };
        while !from.rest.is_empty() {
            let kind = from.byte("entry").map_err(|error| ImportError::Entry { part, error })?;
            if kind == entry::HEAD && self.last == 0 {
                self.head(&mut from)?;
            } else {
                let taken = self.entry(kind, &mut from, stored);
                taken.map_err(|error| ImportError::Entry { part, error })?;
            }
            self.last = kind;
        }
        (self.number, self.chain) = (number + 1, chain);
        Ok(self.is_complete())
    }

    /// The machine, equal to the one that was pinned.
    ///
    /// # Errors
    /// If parts are missing, or the state is not the one exported.
    pub fn finish(self) -> Result<Machine, ImportError> {
        if mutant!("state taken in part") {
            return Ok(self.machine);
        }
        if !self.is_complete() {
            return Err(ImportError::Unfinished { part: self.number });
        }
        let (expected, found) = (self.state_hash, self.machine.state_hash());
        if expected != found {
            return Err(ImportError::State { expected, found });
        }
        Ok(self.machine)
    }

    fn entry(
        &mut self,
        kind: u8,
        from: &mut Reader<'_>,
        stored: &mut dyn FnMut(OpId),
    ) -> Result<(), DecodeError> {
        // Nothing is taken before the head, or behind the end.
        let follows = self.last != 0
            && self.last != entry::END
            && (entry::rank(kind) >= entry::rank(self.last)
                || (kind == entry::KEY && self.last == entry::VERSION));
        require(follows, "entry", "entries stand in the order of their kinds")?;
        let Machine { limits, applied, revision, index, values, sessions, leases, .. } =
            &mut self.machine;
        match kind {
            entry::SESSION => {
                let bounds = SessionBounds {
                    applied: *applied,
                    sessions_max: limits.sessions_max,
                    windows_max: limits.windows_max,
                };
                sessions.import(from, &bounds)
            }
            entry::WAITING => {
                let known = |session| sessions.state(session).is_some();
                values.import_waiting(from, limits.parts_max, &known, stored)
            }
            entry::LEASE => leases.import(from),
            entry::ALARM => self.alarm(from),
            entry::AUTH => {
                let taken = Arc::make_mut(&mut self.machine.auth).take(&from.auth_entry()?);
                taken.map_err(|rule| DecodeError::new("auth", Problem::Inconsistent(rule)))
            }
            entry::KEY => {
                let key = from.key("key")?;
                self.keys.key(key)
            }
            entry::VERSION => {
                let history_max = limits.history_max;
                let bounds = Bounds { revision: *revision, history_max };
                self.keys.version(from, index, values, &bounds, stored)
            }
            entry::END => self.end(from),
            _ => Err(DecodeError::new("entry", Problem::Unknown { value: kind.into() })),
        }
    }

    fn head(&mut self, from: &mut Reader<'_>) -> Result<(), ImportError> {
        let error = |error| ImportError::Entry { part: 0, error };
        let found = get_limits(from).map_err(error)?;
        // An operation may have said that all versions are kept.
        let own = &mut self.machine.limits;
        let known = [own.history_max, u32::MAX].contains(&found.history_max);
        if !known || (Limits { history_max: own.history_max, ..found }) != *own {
            return Err(ImportError::Limits { found });
        }
        own.history_max = found.history_max;
        self.head_fields(from).map_err(error)
    }

    fn head_fields(&mut self, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        let machine = &mut self.machine;
        machine.revision = from.varint("revision")?;
        require(machine.revision >= 1, "revision", "revisions begin at 1")?;
        machine.compacted = from.varint("compacted revision")?.checked_sub(1);
        let known = machine.compacted <= Some(machine.revision);
        require(known, "compacted revision", "no more is compacted than there is")?;
        machine.sweep = match from.byte("sweep")? {
            0 => None,
            again @ (1 | 2) => Some(Sweep { next: from.key("sweep")?, again: again == 2 }),
            _ => return require(false, "sweep", "none, once, or once more"),
        };
        let sweeping = machine.sweep.is_none() || machine.compacted.is_some();
        require(sweeping, "sweep", "a sweep belongs to a compaction")?;
        machine.applied = match from.byte("applied")? {
            0 => None,
            1 => Some((from.varint("applied slot")?, from.number32("applied position")?)),
            _ => return require(false, "applied", "something or nothing was applied"),
        };
        machine.members = Members::get(from)?;
        machine.members_hash = machine.members.hash();
        self.state_hash = u128::from_le_bytes(from.array("state hash")?);
        Ok(())
    }

    fn alarm(&mut self, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        let alarm = (from.varint("member")?, from.alarm_kind()?);
        let alarms = &mut self.machine.alarms;
        require(alarms.last() < Some(&alarm), "alarm", "alarms stand in order")?;
        alarms.insert(alarm);
        Ok(())
    }

    fn end(&mut self, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        self.keys.end()?;
        // In the middle of a restore, newest versions may be old ones, of leases that are gone.
        let restoring = self.machine.is_restoring();
        let Machine { index, values, leases, .. } = &mut self.machine;
        for (key, lease) in index.leased(values).filter(|_| !restoring) {
            require(leases.contains(lease), "lease", "a live key's lease exists")?;
            leases.attach(lease, key);
        }
        let machine = &self.machine;
        let held = [
            machine.index.len(),
            machine.index.versions(),
            machine.sessions.len(),
            machine.values.waiting_len(),
            machine.leases.len(),
        ];
        for count in held {
            let counted = from.varint("count")? == count as u64;
            require(counted, "count", "as many entries as were exported")?;
        }
        match from.rest.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::new("export end", Problem::Trailing { bytes })),
        }
    }
}

fn get_limits(from: &mut Reader<'_>) -> Result<Limits, DecodeError> {
    Ok(Limits {
        sessions_max: from.number32("sessions limit")?,
        windows_max: from.varint("windows limit")?,
        parts_max: from.number32("parts limit")?,
        versions_max: from.number32("versions limit")?,
        history_max: from.number32("history limit")?,
    })
}
