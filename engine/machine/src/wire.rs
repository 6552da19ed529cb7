//! The encoding of operations and batches.
//!
//! ```text
//! batch  = version (1 byte), count (varint), op...
//! op     = kind (1 byte), flags (varint), id (16 bytes), [author], [stamp], body of the kind
//! author = user (length and bytes), auth revision (varint)
//! stamp  = session slot, session position, sequence, sequence - low   (varints)
//! value  = [op (16 bytes)], len (varint), digest (16), crc (4), head (min(len, 8)), k (1), n (1),
//!          [layout (varint), if it is not 0: then 0x80 is added to n]
//! ```
//! Transactions are described in `wire/txn.rs`, users and roles in `wire/auth.rs`. Fixed-width integers are little-endian; varints are LEB128. Optional fields stand behind flag
//! bits, so that new ones can be added; a reader refuses flags it does not know.
//!
//! Invariant: the encoding is canonical. Bytes that decode are the bytes that the result encodes
//! to, so batches may be compared and digested as bytes. What would break it: accepting a longer
//! form of a number, an ignored byte, or two ways to say the same.

pub(crate) mod auth;
mod restore;
mod txn;

use std::fmt;

use crate::address::{get_address, put_address};
use crate::members::{Reconfigure, Replace};
use crate::op::{
    Action, AlarmKind, Author, Content, KEY_BYTES_MAX, Key, Op, OpId, SessionId, Stamp,
    USER_BYTES_MAX, Value, check_bounds,
};

/// The version of the batch encoding.
pub const BATCH_VERSION: u8 = 1;

/// A bit of a value's n, which is at most 64: the number of its layout follows.
const LAYOUT_FOLLOWS: u8 = 0x80;

/// The shortest op: kind, flags, id.
const OP_BYTES_MIN: usize = 18;
/// The shortest value within stripes: op, len, digest, crc, no head, k, n.
const STRIPE_BYTES_MIN: usize = 16 + 1 + 16 + 4 + 2;

mod kind {
    pub(super) const NOOP: u8 = 0;
    pub(super) const PUT: u8 = 1;
    pub(super) const DELETE: u8 = 2;
    pub(super) const DELETE_RANGE: u8 = 3;
    pub(super) const PART: u8 = 4;
    pub(super) const OPEN_SESSION: u8 = 5;
    pub(super) const CLOSE_SESSION: u8 = 6;
    pub(super) const EXPIRE_SESSION: u8 = 7;
    pub(super) const COMPACT: u8 = 8;
    pub(super) const TXN: u8 = 9;
    pub(super) const LEASE_GRANT: u8 = 10;
    pub(super) const LEASE_REVOKE: u8 = 11;
    pub(super) const LEASE_EXPIRE: u8 = 12;
    pub(super) const ALARM: u8 = 13;
    pub(super) const RESTORE: u8 = 14;
    pub(super) const KEEP_HISTORY: u8 = 15;
    pub(super) const AUTH: u8 = 16;
    pub(super) const REPLACE_NODE: u8 = 32;
    pub(super) const NODE_REBUILT: u8 = 33;
    pub(super) const RECONFIGURE: u8 = 34;
    pub(super) const NODE_LOST: u8 = 35;
    pub(super) const NODE_RELEASED: u8 = 36;
    pub(super) const RECODE: u8 = 37;
    pub(super) const MOVE_NODE: u8 = 38;
}

mod flag {
    /// The operation carries a stamp. Any kind.
    pub(super) const STAMP: u64 = 1 << 0;
    /// The content is a list of stripes. Put.
    pub(super) const STRIPES: u64 = 1 << 1;
    /// The value was stored by another operation, which is named. Put.
    pub(super) const FOREIGN_VALUE: u64 = 1 << 2;
    /// The range has no end. DeleteRange.
    pub(super) const OPEN_END: u64 = 1 << 3;
    /// The alarm is raised, not lowered. Alarm.
    pub(super) const RAISED: u64 = 1 << 4;
    /// The node has another address from now on. ReplaceNode.
    pub(super) const ADDRESS: u64 = 1 << 5;
    /// The operation names its author. Any kind.
    pub(super) const AUTHOR: u64 = 1 << 6;
}

/// Bounds on a batch taken off the network or the disk.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Most operations in a batch.
    pub ops_max: u32,
    /// Most bytes of an encoded batch.
    pub bytes_max: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { ops_max: 16 * 1024, bytes_max: 1 << 20 }
    }
}

/// Why bytes are not an operation or a batch, or why an operation may not be encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodeError {
    /// The field that is wrong.
    pub field: &'static str,
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem {
    /// The bytes end within it.
    Truncated,
    OutOfRange {
        value: u64,
        min: u64,
        max: u64,
    },
    /// A kind, flag or version that this release does not know.
    Unknown {
        value: u64,
    },
    /// A number in a longer form than needed, or above 64 bits.
    NotMinimal,
    /// Bytes left over after the last field.
    Trailing {
        bytes: usize,
    },
    /// It contradicts another field.
    Inconsistent(&'static str),
}

impl DecodeError {
    pub(crate) fn new(field: &'static str, problem: Problem) -> Self {
        Self { field, problem }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation field \"{}\": ", self.field)?;
        match self.problem {
            Problem::Truncated => write!(f, "the bytes end within it"),
            Problem::OutOfRange { value, min, max } => {
                write!(f, "{value} is not between {min} and {max}")
            }
            Problem::Unknown { value } => write!(f, "{value:#x} is not known to this release"),
            Problem::NotMinimal => write!(f, "the number is not in its shortest form"),
            Problem::Trailing { bytes } => write!(f, "{bytes} bytes are left over"),
            Problem::Inconsistent(rule) => f.write_str(rule),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Appends the encoding of a batch.
///
/// # Panics
/// If an operation fails [`Op::check`]: whoever made it must have checked it.
pub fn encode_batch(ops: &[Op], out: &mut Vec<u8>) {
    out.push(BATCH_VERSION);
    put_varint(out, ops.len() as u64);
    for op in ops {
        op.encode(out);
    }
}

/// Decodes a batch that takes up all of `bytes`.
///
/// # Errors
/// If the bytes are not exactly one batch of 1 to `ops_max` well-formed operations.
pub fn decode_batch(bytes: &[u8], limits: &BatchLimits) -> Result<Vec<Op>, DecodeError> {
    check_bounds("batch bytes", bytes.len(), 0, limits.bytes_max)?;
    let mut reader = Reader { rest: bytes };
    let version = reader.byte("batch version")?;
    if version != BATCH_VERSION {
        let problem = Problem::Unknown { value: u64::from(version) };
        return Err(DecodeError::new("batch version", problem));
    }
    let room = (reader.rest.len() / OP_BYTES_MIN).min(limits.ops_max as usize);
    let count = reader.count("op count", room)?;
    let mut ops = Vec::with_capacity(count);
    for _ in 0..count {
        ops.push(reader.op()?);
    }
    match reader.rest.len() {
        0 => Ok(ops),
        bytes => Err(DecodeError::new("batch end", Problem::Trailing { bytes })),
    }
}

impl Op {
    /// Appends the encoding of the operation.
    ///
    /// # Panics
    /// If it fails [`Op::check`]: whoever made it must have checked it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if let Err(error) = self.check() {
            panic!("only well-formed operations are encoded: {error}");
        }
        let (kind, flags) = self.kind_and_flags();
        out.push(kind);
        put_varint(out, flags);
        out.extend_from_slice(&self.id.0.to_le_bytes());
        if let Some(author) = &self.author {
            put_key(out, &author.user);
            put_varint(out, author.auth_revision);
        }
        if let Some(stamp) = &self.stamp {
            put_session(out, stamp.session);
            put_varint(out, stamp.sequence);
            put_varint(out, stamp.sequence - stamp.low);
        }
        match &self.action {
            Action::Noop | Action::KeepHistory => {}
            Action::Put { key, content } => {
                put_key(out, key);
                match content {
                    Content::Whole(value) => put_value(out, value, self.id != value.op),
                    Content::Stripes(stripes) => {
                        put_varint(out, stripes.len() as u64);
                        stripes.iter().for_each(|stripe| put_value(out, stripe, true));
                    }
                }
            }
            Action::Delete { key } => put_key(out, key),
            Action::DeleteRange { from, to } => {
                put_key(out, from);
                to.iter().for_each(|to| put_key(out, to));
            }
            Action::Part { value } => put_value(out, value, false),
            Action::OpenSession { window } => put_varint(out, u64::from(*window)),
            Action::CloseSession { session } => put_session(out, *session),
            Action::ExpireSession { session, last_use } => {
                put_session(out, *session);
                put_varint(out, *last_use);
            }
            Action::Compact { revision } => put_varint(out, *revision),
            Action::Txn(txn) => txn::put_txn(out, txn),
            Action::LeaseGrant { id, ttl } => {
                put_signed(out, *id);
                put_signed(out, *ttl);
            }
            Action::LeaseRevoke { id } | Action::LeaseExpire { id } => put_signed(out, *id),
            Action::Alarm { member, kind, .. } => {
                put_varint(out, *member);
                out.push(*kind as u8);
            }
            Action::Restore(step) => restore::put_step(out, step),
            Action::Auth(step) => auth::put_step(out, step),
            Action::ReplaceNode(change) => {
                out.push(change.node);
                put_varint(out, u64::from(change.expected));
                out.extend_from_slice(&change.disk.to_le_bytes());
                out.push(u8::from(change.is_forced));
                if !change.address.is_empty() {
                    put_address(out, &change.address);
                }
            }
            Action::Reconfigure(change) => change.put(out),
            Action::MoveNode { node, expected, address } => {
                out.push(*node);
                put_varint(out, u64::from(*expected));
                put_address(out, address);
            }
            Action::NodeLost { node } | Action::NodeReleased { node } => out.push(*node),
            Action::Recode { old, value } => {
                out.extend_from_slice(&old.0.to_le_bytes());
                put_value(out, value, false);
            }
            Action::NodeRebuilt { node, incarnation } => {
                out.push(*node);
                put_varint(out, u64::from(*incarnation));
            }
        }
    }

    /// Takes one operation off the front of `bytes`; on error nothing is said about what is left.
    ///
    /// # Errors
    /// Names the field that is truncated, unknown, out of bounds or not canonical.
    pub fn decode(bytes: &mut &[u8]) -> Result<Op, DecodeError> {
        let mut reader = Reader { rest: bytes };
        let op = reader.op()?;
        *bytes = reader.rest;
        Ok(op)
    }

    fn kind_and_flags(&self) -> (u8, u64) {
        let (kind, flags) = match &self.action {
            Action::Noop => (kind::NOOP, 0),
            Action::KeepHistory => (kind::KEEP_HISTORY, 0),
            Action::Put { content: Content::Stripes(_), .. } => (kind::PUT, flag::STRIPES),
            Action::Put { content: Content::Whole(value), .. } if value.op != self.id => {
                (kind::PUT, flag::FOREIGN_VALUE)
            }
            Action::Put { .. } => (kind::PUT, 0),
            Action::Delete { .. } => (kind::DELETE, 0),
            Action::DeleteRange { to: None, .. } => (kind::DELETE_RANGE, flag::OPEN_END),
            Action::DeleteRange { .. } => (kind::DELETE_RANGE, 0),
            Action::Part { .. } => (kind::PART, 0),
            Action::OpenSession { .. } => (kind::OPEN_SESSION, 0),
            Action::CloseSession { .. } => (kind::CLOSE_SESSION, 0),
            Action::ExpireSession { .. } => (kind::EXPIRE_SESSION, 0),
            Action::Compact { .. } => (kind::COMPACT, 0),
            Action::Txn(_) => (kind::TXN, 0),
            Action::LeaseGrant { .. } => (kind::LEASE_GRANT, 0),
            Action::LeaseRevoke { .. } => (kind::LEASE_REVOKE, 0),
            Action::LeaseExpire { .. } => (kind::LEASE_EXPIRE, 0),
            Action::Alarm { raised: true, .. } => (kind::ALARM, flag::RAISED),
            Action::Alarm { .. } => (kind::ALARM, 0),
            Action::Restore(_) => (kind::RESTORE, 0),
            Action::Auth(_) => (kind::AUTH, 0),
            Action::ReplaceNode(change) if !change.address.is_empty() => {
                (kind::REPLACE_NODE, flag::ADDRESS)
            }
            Action::ReplaceNode(_) => (kind::REPLACE_NODE, 0),
            Action::Reconfigure(_) => (kind::RECONFIGURE, 0),
            Action::MoveNode { .. } => (kind::MOVE_NODE, 0),
            Action::NodeLost { .. } => (kind::NODE_LOST, 0),
            Action::NodeReleased { .. } => (kind::NODE_RELEASED, 0),
            Action::Recode { .. } => (kind::RECODE, 0),
            Action::NodeRebuilt { .. } => (kind::NODE_REBUILT, 0),
        };
        let stamp = if self.stamp.is_some() { flag::STAMP } else { 0 };
        let author = if self.author.is_some() { flag::AUTHOR } else { 0 };
        (kind, flags | stamp | author)
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Small numbers of either sign are short.
pub(crate) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put_varint(out, ((number << 1) ^ (number >> 63)) as u64);
}

pub(crate) fn put_key(out: &mut Vec<u8>, key: &[u8]) {
    put_varint(out, key.len() as u64);
    out.extend_from_slice(key);
}

pub(crate) fn put_session(out: &mut Vec<u8>, session: SessionId) {
    put_varint(out, session.slot);
    put_varint(out, u64::from(session.position));
}

fn put_value(out: &mut Vec<u8>, value: &Value, named: bool) {
    if named {
        out.extend_from_slice(&value.op.0.to_le_bytes());
    }
    put_varint(out, u64::from(value.len));
    out.extend_from_slice(&value.digest);
    out.extend_from_slice(&value.crc.to_le_bytes());
    out.extend_from_slice(&value.head[..value.head.len().min(value.len as usize)]);
    out.push(value.k);
    match value.layout {
        0 => out.push(value.n),
        layout => {
            out.push(value.n | LAYOUT_FOLLOWS);
            put_varint(out, layout.into());
        }
    }
}

/// Appends a value with the slot that stored it.
pub(crate) fn put_stored(out: &mut Vec<u8>, value: &Value, slot: u64) {
    put_value(out, value, true);
    put_varint(out, slot);
}

/// A rule that fields must keep among each other.
pub(crate) fn require(
    holds: bool,
    field: &'static str,
    rule: &'static str,
) -> Result<(), DecodeError> {
    if holds { Ok(()) } else { Err(DecodeError::new(field, Problem::Inconsistent(rule))) }
}

pub(crate) struct Reader<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn take(
        &mut self,
        field: &'static str,
        len: usize,
    ) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) =
            self.rest.split_at_checked(len).ok_or(DecodeError::new(field, Problem::Truncated))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const LEN: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; LEN], DecodeError> {
        let (taken, rest) =
            self.rest.split_first_chunk().ok_or(DecodeError::new(field, Problem::Truncated))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(crate) fn varint(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(field)?;
            let bits = u64::from(byte & 0x7F);
            let padded = byte == 0 && shift > 0;
            if padded || (bits << shift) >> shift != bits {
                return Err(DecodeError::new(field, Problem::NotMinimal));
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(DecodeError::new(field, Problem::NotMinimal))
    }

    pub(crate) fn signed(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        let folded = self.varint(field)?;
        Ok((folded >> 1) as i64 ^ -((folded & 1) as i64))
    }

    pub(crate) fn number32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        let value = self.varint(field)?;
        u32::try_from(value).map_err(|_| {
            DecodeError::new(field, Problem::OutOfRange { value, min: 0, max: u64::from(u32::MAX) })
        })
    }

    pub(crate) fn count(&mut self, field: &'static str, max: usize) -> Result<usize, DecodeError> {
        let count = usize::try_from(self.varint(field)?).unwrap_or(usize::MAX);
        check_bounds(field, count, 1, max)?;
        Ok(count)
    }

    pub(crate) fn key(&mut self, field: &'static str) -> Result<Key, DecodeError> {
        let len = usize::try_from(self.varint(field)?).unwrap_or(usize::MAX);
        check_bounds(field, len, 0, KEY_BYTES_MAX)?;
        self.take(field, len).map(Key::from)
    }

    fn op_id(&mut self, field: &'static str) -> Result<OpId, DecodeError> {
        self.array(field).map(|bytes| OpId(u128::from_le_bytes(bytes)))
    }

    pub(crate) fn session(&mut self, field: &'static str) -> Result<SessionId, DecodeError> {
        Ok(SessionId { slot: self.varint(field)?, position: self.number32(field)? })
    }

    fn stamp(&mut self) -> Result<Stamp, DecodeError> {
        let session = self.session("stamp session")?;
        let sequence = self.varint("stamp sequence")?;
        let behind = self.varint("stamp low")?;
        let low = sequence.checked_sub(behind).ok_or(DecodeError::new(
            "stamp low",
            Problem::OutOfRange { value: behind, min: 0, max: sequence },
        ))?;
        Ok(Stamp { session, sequence, low })
    }

    pub(crate) fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.byte(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::new(field, Problem::Unknown { value: other.into() })),
        }
    }

    fn replace(&mut self, flags: u64) -> Result<Replace, DecodeError> {
        let (node, expected) = (self.byte("node")?, self.number32("incarnation")?);
        let disk = u128::from_le_bytes(self.array("disk id")?);
        let is_forced = self.flag("forced")?;
        let address = match flags & flag::ADDRESS {
            0 => Box::default(),
            _ => get_address(self)?,
        };
        let is_named = flags & flag::ADDRESS != 0;
        require(is_named != address.is_empty(), "address", "an address is not empty")?;
        Ok(Replace { node, expected, disk, address, is_forced })
    }

    /// The layout of a value, if another one than the first.
    fn layout(&mut self) -> Result<u16, DecodeError> {
        let number = self.varint("value layout")?;
        let max = u64::from(u16::MAX);
        let problem = Problem::OutOfRange { value: number, min: 1, max };
        let number = u16::try_from(number).ok().filter(|number| *number > 0);
        number.ok_or(DecodeError::new("value layout", problem))
    }

    fn value(&mut self, op: OpId) -> Result<Value, DecodeError> {
        let len = self.number32("value length")?;
        let digest = self.array("value digest")?;
        let crc = u32::from_le_bytes(self.array("value crc")?);
        let mut head = [0; 8];
        let used = head.len().min(len as usize);
        head[..used].copy_from_slice(self.take("value head", used)?);
        let [k, n] = self.array("value code")?;
        let layout = if n & LAYOUT_FOLLOWS == 0 { 0 } else { self.layout()? };
        let n = n & !LAYOUT_FOLLOWS;
        Ok(Value { op, len, digest, crc, head, k, n, layout })
    }

    pub(crate) fn named_value(&mut self) -> Result<Value, DecodeError> {
        let op = self.op_id("value op")?;
        self.value(op)
    }

    fn content(&mut self, id: OpId, flags: u64) -> Result<Content, DecodeError> {
        match (flags & flag::STRIPES != 0, flags & flag::FOREIGN_VALUE != 0) {
            (false, false) => self.value(id).map(Content::Whole),
            (false, true) => {
                let value = self.named_value()?;
                if value.op == id {
                    let problem = Problem::Inconsistent("named although it is the put's own");
                    return Err(DecodeError::new("value op", problem));
                }
                Ok(Content::Whole(value))
            }
            (true, false) => self.stripes().map(Content::Stripes),
            (true, true) => Err(DecodeError::new(
                "flags",
                Problem::Inconsistent("stripes and a foreign value exclude each other"),
            )),
        }
    }

    fn author(&mut self) -> Result<Author, DecodeError> {
        let len = self.count("user", USER_BYTES_MAX)?;
        let user = self.take("user", len)?.into();
        Ok(Author { user, auth_revision: self.varint("auth revision")? })
    }

    fn op(&mut self) -> Result<Op, DecodeError> {
        let kind = self.byte("kind")?;
        let flags = self.varint("flags")?;
        let known = flag::STAMP
            | flag::AUTHOR
            | match kind {
                kind::PUT => flag::STRIPES | flag::FOREIGN_VALUE,
                kind::DELETE_RANGE => flag::OPEN_END,
                kind::ALARM => flag::RAISED,
                kind::REPLACE_NODE => flag::ADDRESS,
                _ => 0,
            };
        let id = self.op_id("id")?;
        if flags & !known != 0 {
            let value = flags & !known;
            return Err(DecodeError::new("flags", Problem::Unknown { value }));
        }
        let author = if flags & flag::AUTHOR != 0 { Some(Box::new(self.author()?)) } else { None };
        let stamp = if flags & flag::STAMP != 0 { Some(self.stamp()?) } else { None };
        let action = self.action(kind, flags, id)?;
        let op = Op { id, author, stamp, action };
        op.check()?;
        Ok(op)
    }

    pub(crate) fn alarm_kind(&mut self) -> Result<AlarmKind, DecodeError> {
        match self.byte("alarm")? {
            1 => Ok(AlarmKind::NoSpace),
            2 => Ok(AlarmKind::Corrupt),
            3 => Ok(AlarmKind::Restoring),
            other => Err(DecodeError::new("alarm", Problem::Unknown { value: other.into() })),
        }
    }

    fn action(&mut self, kind: u8, flags: u64, id: OpId) -> Result<Action, DecodeError> {
        Ok(match kind {
            kind::NOOP => Action::Noop,
            kind::KEEP_HISTORY => Action::KeepHistory,
            kind::PUT => {
                let key = self.key("key")?;
                Action::Put { key, content: self.content(id, flags)? }
            }
            kind::DELETE => Action::Delete { key: self.key("key")? },
            kind::DELETE_RANGE => {
                let from = self.key("range start")?;
                let open = flags & flag::OPEN_END != 0;
                let to = if open { None } else { Some(self.key("range end")?) };
                Action::DeleteRange { from, to }
            }
            kind::PART => Action::Part { value: self.value(id)? },
            kind::OPEN_SESSION => Action::OpenSession { window: self.number32("window")? },
            kind::CLOSE_SESSION => Action::CloseSession { session: self.session("session")? },
            kind::EXPIRE_SESSION => Action::ExpireSession {
                session: self.session("session")?,
                last_use: self.varint("last use")?,
            },
            kind::COMPACT => Action::Compact { revision: self.varint("revision")? },
            kind::TXN => Action::Txn(Box::new(self.txn(id)?)),
            kind::LEASE_GRANT => {
                Action::LeaseGrant { id: self.signed("lease")?, ttl: self.signed("ttl")? }
            }
            kind::LEASE_REVOKE => Action::LeaseRevoke { id: self.signed("lease")? },
            kind::LEASE_EXPIRE => Action::LeaseExpire { id: self.signed("lease")? },
            kind::ALARM => {
                let member = self.varint("member")?;
                let kind = self.alarm_kind()?;
                Action::Alarm { member, kind, raised: flags & flag::RAISED != 0 }
            }
            kind::RESTORE => Action::Restore(self.restore_step(id)?),
            kind::AUTH => Action::Auth(Box::new(self.auth_step()?)),
            kind::REPLACE_NODE => Action::ReplaceNode(Box::new(self.replace(flags)?)),
            kind::RECONFIGURE => Action::Reconfigure(Box::new(Reconfigure::get(self)?)),
            kind::MOVE_NODE => Action::MoveNode {
                node: self.byte("node")?,
                expected: self.number32("incarnation")?,
                address: get_address(self)?,
            },
            kind::NODE_LOST => Action::NodeLost { node: self.byte("node")? },
            kind::NODE_RELEASED => Action::NodeReleased { node: self.byte("node")? },
            kind::RECODE => {
                let old = OpId(u128::from_le_bytes(self.array("old op")?));
                Action::Recode { old, value: self.value(id)? }
            }
            kind::NODE_REBUILT => Action::NodeRebuilt {
                node: self.byte("node")?,
                incarnation: self.number32("incarnation")?,
            },
            _ => return Err(DecodeError::new("kind", Problem::Unknown { value: kind.into() })),
        })
    }
}
