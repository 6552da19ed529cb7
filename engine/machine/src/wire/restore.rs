//! The encoding of the steps of a restore.
//!
//! ```text
//! step    = kind (1 byte), begin: revision | lease: id, ttl (signed)
//!                          | version: key, before, modified (main, sub each), create, number,
//!                                     lease (signed), content
//!                          | auth: as in `wire/auth.rs`
//!                          | end: keys, versions, leases, compacted + 1 or 0, hash (4)
//! content = kind (1 byte), nothing | own value | stripe count, named value...
//! ```

use super::auth::put_entry;
use super::{Reader, put_key, put_signed, put_value, put_varint};
use crate::index::Revision;
use crate::op::{Content, OpId, Value, check_key};
use crate::restore::{Restore, RestoreEnd, RestoredVersion};
use crate::wire::{DecodeError, Problem};

const BEGIN: u8 = 1;
const LEASE: u8 = 2;
const VERSION: u8 = 3;
const END: u8 = 4;
const AUTH: u8 = 5;

const NOTHING: u8 = 0;
const OWN: u8 = 1;
const STRIPES: u8 = 2;

pub(super) fn put_step(out: &mut Vec<u8>, step: &Restore) {
    match step {
        Restore::Begin { revision } => {
            out.push(BEGIN);
            put_varint(out, *revision);
        }
        Restore::Lease { id, ttl } => {
            out.push(LEASE);
            put_signed(out, *id);
            put_signed(out, *ttl);
        }
        Restore::Auth(entry) => {
            out.push(AUTH);
            put_entry(out, entry);
        }
        Restore::Version(version) => {
            out.push(VERSION);
            put_version(out, version);
        }
        Restore::End(RestoreEnd { keys, versions, leases, compacted, hash }) => {
            out.push(END);
            [*keys, *versions, *leases].iter().for_each(|count| put_varint(out, *count));
            put_varint(out, compacted.map_or(0, |compacted| compacted + 1));
            out.extend_from_slice(&hash.to_le_bytes());
        }
    }
}

fn put_version(out: &mut Vec<u8>, version: &RestoredVersion) {
    put_key(out, &version.key);
    for revision in [version.before, version.modified] {
        put_varint(out, revision.main);
        put_varint(out, revision.sub.into());
    }
    put_varint(out, version.create);
    put_varint(out, version.number);
    put_signed(out, version.lease);
    match &version.content {
        None => out.push(NOTHING),
        Some(Content::Whole(value)) => {
            out.push(OWN);
            put_value(out, value, false);
        }
        Some(Content::Stripes(stripes)) => {
            out.push(STRIPES);
            put_varint(out, stripes.len() as u64);
            stripes.iter().for_each(|stripe| put_value(out, stripe, true));
        }
    }
}

impl Restore {
    pub(crate) fn check(&self, id: OpId) -> Result<(), DecodeError> {
        let rule = |holds, rule| match holds {
            true => Ok(()),
            false => Err(DecodeError::new("restore", Problem::Inconsistent(rule))),
        };
        match self {
            Restore::Begin { revision } => rule(*revision >= 1, "revisions begin at 1"),
            Restore::Lease { .. } => Ok(()),
            Restore::Auth(entry) => entry.check(),
            Restore::Version(version) => {
                check_key("key", &version.key, 1)?;
                match &version.content {
                    None => Ok(()),
                    Some(content @ Content::Whole(value)) => {
                        rule(value.op == id, "a version stores its own value")?;
                        content.check()
                    }
                    Some(content) => content.check(),
                }
            }
            Restore::End(end) => {
                rule(end.compacted != Some(u64::MAX), "no more is compacted than there is")
            }
        }
    }

    /// The value that the step stores.
    pub(crate) fn own_value(&self) -> Option<&Value> {
        match self {
            Restore::Version(version) => match &version.content {
                Some(Content::Whole(value)) => Some(value),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Reader<'_> {
    pub(super) fn restore_step(&mut self, id: OpId) -> Result<Restore, DecodeError> {
        Ok(match self.byte("restore step")? {
            BEGIN => Restore::Begin { revision: self.varint("revision")? },
            LEASE => Restore::Lease { id: self.signed("lease")?, ttl: self.signed("ttl")? },
            AUTH => Restore::Auth(Box::new(self.auth_entry()?)),
            VERSION => Restore::Version(Box::new(self.restored_version(id)?)),
            END => Restore::End(RestoreEnd {
                keys: self.varint("keys")?,
                versions: self.varint("versions")?,
                leases: self.varint("leases")?,
                compacted: self.varint("compacted revision")?.checked_sub(1),
                hash: u32::from_le_bytes(self.array("hash")?),
            }),
            other => {
                let problem = Problem::Unknown { value: other.into() };
                return Err(DecodeError::new("restore step", problem));
            }
        })
    }

    fn restored_version(&mut self, id: OpId) -> Result<RestoredVersion, DecodeError> {
        let key = self.key("key")?;
        let before = self.point()?;
        let modified = self.point()?;
        let create = self.varint("create")?;
        let number = self.varint("version number")?;
        let lease = self.signed("lease")?;
        let content = match self.byte("content")? {
            NOTHING => None,
            OWN => Some(Content::Whole(self.value(id)?)),
            STRIPES => Some(Content::Stripes(self.stripes()?)),
            other => {
                let problem = Problem::Unknown { value: other.into() };
                return Err(DecodeError::new("content", problem));
            }
        };
        Ok(RestoredVersion { key, before, modified, create, number, lease, content })
    }

    fn point(&mut self) -> Result<Revision, DecodeError> {
        Ok(Revision { main: self.varint("main")?, sub: self.number32("sub")? })
    }
}
