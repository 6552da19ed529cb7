//! Operations: what is decided in slots and applied by every node.
//!
//! Invariant: an [`Op`] that passes [`Op::check`] has exactly one encoding, and means the same on
//! every node. A rule that is checked while decoding but not here would let a node apply an
//! operation of its own making that its peers refuse to read.

use std::fmt;

use crate::address::check_address;
use crate::auth::AuthStep;
use crate::members::{self, Reconfigure, Replace};
use crate::restore::Restore;
use crate::txn::{PutStep, Span, Step, Txn, Written};
use crate::wire::{DecodeError, Problem};

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 8 * 1024;
/// The most stripes one value may have.
pub const STRIPES_MAX: usize = 4096;
/// Outstanding numbers of a session unless its opening says other (PROTOCOL 11, `W_s`).
pub const SESSION_WINDOW_DEFAULT: u32 = 64;
/// The largest window a session may ask for (PROTOCOL 11).
pub const SESSION_WINDOW_MAX: u32 = 4096;

/// The longest name of a user, in bytes.
pub const USER_BYTES_MAX: usize = 1024;
/// The revision of users and roles in a cluster that never had any; each change of them adds 1.
pub const AUTH_REVISION_FIRST: u64 = 1;

/// The longest time to live of a lease, in seconds.
pub const LEASE_TTL_MAX: i64 = 9_000_000_000;

/// A key: any bytes, at most [`KEY_BYTES_MAX`] of them.
pub type Key = Box<[u8]>;

/// The name of one operation, and of the value it stores: never used twice (PROTOCOL 3.1-b).
///
/// From the highest bits down: 16 bits zero, 16 bits node, 32 bits incarnation of the node's disk,
/// 24 bits boot, 40 bits counter. Order is (node, incarnation, boot, counter).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Ord, PartialOrd, Debug, Default)]
pub struct OpId(pub u128);

impl OpId {
    const COUNTER_BITS: u32 = 40;
    const BOOT_BITS: u32 = 24;

    /// Names the operation `counter` of one boot of one incarnation of a node.
    ///
    /// # Panics
    /// If `boot` needs more than 24 bits or `counter` more than 40: the name would be used twice.
    pub fn new(node: u16, incarnation: u32, boot: u32, counter: u64) -> Self {
        assert!(boot >> Self::BOOT_BITS == 0, "op names are unique: boot {boot} exceeds 24 bits");
        assert!(
            counter >> Self::COUNTER_BITS == 0,
            "op names are unique: counter {counter} exceeds 40 bits"
        );
        let high = (u128::from(node) << 32) | u128::from(incarnation);
        let low = (u128::from(boot) << Self::COUNTER_BITS) | u128::from(counter);
        Self((high << (Self::BOOT_BITS + Self::COUNTER_BITS)) | low)
    }

    /// The node through which the operation entered the cluster.
    pub fn node(self) -> u16 {
        (self.0 >> 96) as u16
    }

    /// The incarnation of that node's disk.
    pub fn incarnation(self) -> u32 {
        (self.0 >> 64) as u32
    }

    /// The boot of that incarnation, 24 bits.
    pub fn boot(self) -> u32 {
        (self.0 >> Self::COUNTER_BITS) as u32 & ((1 << Self::BOOT_BITS) - 1)
    }

    /// The number of the operation within the boot, 40 bits.
    pub fn counter(self) -> u64 {
        self.0 as u64 & ((1 << Self::COUNTER_BITS) - 1)
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.node(), self.incarnation(), self.boot(), self.counter())
    }
}

/// A client session: the slot and the position in its batch of the operation that opened it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Ord, PartialOrd, Debug, Default)]
pub struct SessionId {
    pub slot: u64,
    pub position: u32,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.position)
    }
}

/// What makes an operation exactly once (PROTOCOL 11-b).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    pub session: SessionId,
    /// The client's number of this write, from 1. A retry carries the same number.
    pub sequence: u64,
    /// The smallest number whose reply the client has not received: at least 1, at most `sequence`.
    pub low: u64,
}

/// What every node holds of a stored value, or of one stripe of it: everything but its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value {
    // PROTOCOL 3.1-d, 3.1-h: enough to decide every result without the bytes.
    /// The operation that stored it: fragments are asked for by this name.
    pub op: OpId,
    /// Length of the bytes before coding.
    pub len: u32,
    /// Keyed cryptographic hash of the bytes, checked after decoding; stands in for equality.
    pub digest: [u8; 16],
    /// CRC-32C of the bytes.
    pub crc: u32,
    /// The first 8 bytes, padded with zeros.
    pub head: [u8; 8],
    /// Fragments needed to rebuild it, at least 1.
    pub k: u8,
    /// Fragments made of it, at least `k`.
    pub n: u8,
    /// The layout that says on which nodes they lie.
    pub layout: u16,
}

impl Value {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        if self.k == 0 || self.k > self.n || usize::from(self.n) > members::MEMBERS_MAX {
            let problem = Problem::Inconsistent("k must be at least 1 and at most n, n at most 64");
            return Err(DecodeError::new("value code", problem));
        }
        let used = self.head.len().min(self.len as usize);
        if self.head[used..].iter().any(|&byte| byte != 0) {
            let problem = Problem::Inconsistent("bytes beyond the value's length must be zero");
            return Err(DecodeError::new("value head", problem));
        }
        Ok(())
    }
}

/// What a put makes of its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// One value. Stored by the put itself, or, if it names another operation, already stored.
    Whole(Value),
    /// The stripes of a large value in order, each stored earlier by an [`Action::Part`].
    Stripes(Box<[Value]>),
}

impl Content {
    /// Its values in order.
    pub fn values(&self) -> &[Value] {
        match self {
            Content::Whole(value) => std::slice::from_ref(value),
            Content::Stripes(stripes) => stripes,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.values().iter().map(|value| u64::from(value.len)).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first 8 bytes, padded with zeros; of stripes, those of the first.
    pub fn head(&self) -> [u8; 8] {
        self.values().first().map_or([0; 8], |value| value.head)
    }

    /// The operation that stored its beginning.
    pub fn first_op(&self) -> OpId {
        self.values().first().map_or(OpId(0), |value| value.op)
    }

    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        match self {
            Content::Whole(value) => value.check(),
            Content::Stripes(stripes) => {
                check_bounds("stripe count", stripes.len(), 1, STRIPES_MAX)?;
                stripes.iter().try_for_each(Value::check)
            }
        }
    }
}

/// What an operation does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing.
    Noop,
    Put {
        key: Key,
        content: Content,
    },
    Delete {
        key: Key,
    },
    /// Deletes every key from `from` up to but not including `to`; without `to`, to the end.
    DeleteRange {
        from: Key,
        to: Option<Key>,
    },
    /// Stores a stripe of a large value. No key shows it until a put names it. It goes when the
    /// session that stored it ends, or when too many stripes wait for their put.
    Part {
        value: Value,
    },
    /// Opens the session named by the slot and position of this operation.
    OpenSession {
        window: u32,
    },
    CloseSession {
        session: SessionId,
    },
    /// Closes the session if it has not been used since slot `last_use`.
    ExpireSession {
        session: SessionId,
        last_use: u64,
    },
    /// Forgets what only reads at a revision below `revision` could see.
    Compact {
        revision: u64,
    },
    /// From now on all versions are kept until they are compacted.
    KeepHistory,
    /// A transaction; also what a put or delete with leases or former values comes as.
    Txn(Box<Txn>),
    /// Makes a lease; `ttl` in seconds.
    LeaseGrant {
        id: i64,
        ttl: i64,
    },
    /// Ends a lease and deletes the keys attached to it.
    LeaseRevoke {
        id: i64,
    },
    /// The same because it ran out: of an unknown lease, nothing.
    LeaseExpire {
        id: i64,
    },
    /// Raises or lowers an alarm of a member.
    Alarm {
        member: u64,
        kind: AlarmKind,
        raised: bool,
    },
    /// Fills an empty store from a backup.
    Restore(Restore),
    /// Changes users, roles, or whether they count.
    Auth(Box<AuthStep>),
    /// Puts a disk in the place of a node's, as its next incarnation, if the node's is the expected one
    /// and the change is admitted (PROTOCOL 10).
    ReplaceNode(Box<Replace>),
    /// Changes who the members are, or f and k, if the epoch is the expected one and the change is
    /// admitted (PROTOCOL 10).
    Reconfigure(Box<Reconfigure>),
    /// A replaced node has made all fragments again.
    NodeRebuilt {
        node: u8,
        incarnation: u32,
    },
    /// A node, of this incarnation, is reached at another address from now on (PROTOCOL 10-am).
    MoveNode {
        node: u8,
        expected: u32,
        address: Box<str>,
    },
    /// The disk of a node that left is lost.
    NodeLost {
        node: u8,
    },
    /// Nothing in use has fragments on a node that left.
    NodeReleased {
        node: u8,
    },
    /// Every version that uses the value that `old` stored uses this one from now on, which has the
    /// same bytes, if there is such a version.
    Recode {
        old: OpId,
        value: Value,
    },
}

impl Action {
    /// Whether it changes keys, leases or users by a client's will, or because one does nothing.
    pub(crate) fn is_client_work(&self) -> bool {
        matches!(
            self,
            Action::Put { .. }
                | Action::Delete { .. }
                | Action::DeleteRange { .. }
                | Action::Compact { .. }
                | Action::Txn(_)
                | Action::LeaseGrant { .. }
                | Action::LeaseRevoke { .. }
                | Action::LeaseExpire { .. }
                | Action::Auth(_)
        )
    }
}

/// What is wrong with a member.
#[derive(Clone, Copy, PartialEq, Eq, Ord, PartialOrd, Debug)]
pub enum AlarmKind {
    /// It is over its quota. While one stands, nothing is stored.
    NoSpace = 1,
    /// Its state differs from the others'.
    Corrupt = 2,
    /// The store is being filled from a backup. Of no member, and nobody's to raise or lower.
    Restoring = 3,
}

/// On whose behalf an operation is, once there are users.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Author {
    /// The user's name: 1 to [`USER_BYTES_MAX`] bytes.
    pub user: Box<[u8]>,
    /// The state of users and roles by which the operation was let in.
    pub auth_revision: u64,
}

/// One operation as decided in a slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    pub id: OpId,
    /// Absent while authentication is off.
    pub author: Option<Box<Author>>,
    /// Absent for requests outside any session.
    pub stamp: Option<Stamp>,
    pub action: Action,
}

impl Op {
    /// Whether every field is within its bounds.
    ///
    /// # Errors
    /// Names the first field that is not. Decoding makes the same check, and applying too.
    pub fn check(&self) -> Result<(), DecodeError> {
        if let Some(author) = &self.author {
            check_bounds("user", author.user.len(), 1, USER_BYTES_MAX)?;
        }
        if let Some(stamp) = &self.stamp {
            check_stamp(stamp, &self.action)?;
        }
        match &self.action {
            Action::Noop
            | Action::KeepHistory
            | Action::CloseSession { .. }
            | Action::ExpireSession { .. } => Ok(()),
            Action::Compact { .. }
            | Action::LeaseGrant { .. }
            | Action::LeaseRevoke { .. }
            | Action::LeaseExpire { .. } => Ok(()),
            Action::Alarm { kind: AlarmKind::Restoring, .. } => {
                let problem = Problem::Inconsistent("a restore ends by itself");
                Err(DecodeError::new("alarm", problem))
            }
            Action::Alarm { .. } => Ok(()),
            Action::Restore(step) => step.check(self.id),
            Action::Auth(step) => step.check(),
            Action::Txn(txn) => txn.check(self.id),
            Action::NodeRebuilt { .. } | Action::NodeLost { .. } | Action::NodeReleased { .. } => {
                Ok(())
            }
            Action::ReplaceNode(change) => check_address(&change.address, 0),
            Action::MoveNode { address, .. } => check_address(address, 1),
            Action::Reconfigure(change) => change.check(),
            Action::Put { key, content } => {
                check_key("key", key, 1)?;
                content.check()
            }
            Action::Delete { key } => check_key("key", key, 1),
            Action::DeleteRange { from, to } => {
                check_key("range start", from, 0)?;
                to.as_ref().map_or(Ok(()), |to| check_key("range end", to, 1))
            }
            Action::Part { value } | Action::Recode { value, .. } if value.op != self.id => {
                let problem = Problem::Inconsistent("a stored value is named by its operation");
                Err(DecodeError::new("value op", problem))
            }
            Action::Part { value } | Action::Recode { value, .. } => value.check(),
            Action::OpenSession { window } => {
                check_bounds("window", *window as usize, 1, SESSION_WINDOW_MAX as usize)
            }
        }
    }

    /// Whether executing this may change who the members are, or where: then it is alone in its batch.
    pub fn is_change(&self) -> bool {
        matches!(
            self.action,
            Action::ReplaceNode(_) | Action::Reconfigure(_) | Action::MoveNode { .. }
        )
    }

    /// Whether executing this may change what a read of `key` returns.
    pub fn touches(&self, key: &[u8]) -> bool {
        match &self.action {
            Action::Put { key: own, .. } | Action::Delete { key: own } => **own == *key,
            Action::DeleteRange { from, to } => {
                **from <= *key && to.as_ref().is_none_or(|to| *key < **to)
            }
            Action::Txn(txn) => txn.writes(&|span| span.contains(key)),
            // Which keys are attached is known at execution only.
            Action::LeaseRevoke { .. } | Action::LeaseExpire { .. } => true,
            _ => false,
        }
    }

    /// Whether executing this may change a read of the keys in `from..to` (`None`: to the end).
    pub fn touches_range(&self, from: &[u8], to: Option<&[u8]>) -> bool {
        match &self.action {
            Action::Put { key, .. } | Action::Delete { key } => {
                *from <= **key && to.is_none_or(|to| **key < *to)
            }
            Action::DeleteRange { from: own, to: end } => {
                end.as_ref().is_none_or(|end| *from < **end) && to.is_none_or(|to| **own < *to)
            }
            Action::Txn(txn) => txn.writes(&|span| span.meets(from, to)),
            Action::LeaseRevoke { .. } | Action::LeaseExpire { .. } => true,
            _ => false,
        }
    }

    /// The values that this operation stores, in order.
    pub fn stored_values(&self) -> impl Iterator<Item = &Value> {
        let (one, many) = match &self.action {
            Action::Put { content: Content::Whole(value), .. } if value.op == self.id => {
                (Some(value), Vec::new())
            }
            Action::Part { value } | Action::Recode { value, .. } => (Some(value), Vec::new()),
            Action::Restore(step) => (step.own_value(), Vec::new()),
            Action::Txn(txn) => (None, txn.own_values()),
            _ => (None, Vec::new()),
        };
        one.into_iter().chain(many)
    }

    /// Calls `visit` with every value that this stores or names.
    pub fn each_value<'a>(&'a self, visit: &mut dyn FnMut(&'a Value)) {
        match &self.action {
            Action::Put { content, .. } => content.values().iter().for_each(visit),
            Action::Part { value } | Action::Recode { value, .. } => visit(value),
            Action::Restore(Restore::Version(version)) => {
                version.content.iter().flat_map(Content::values).for_each(visit);
            }
            Action::Txn(txn) => txn.each_step(&mut |step| match step {
                Step::Put(PutStep { written: Written::Own(value), .. }) => visit(value),
                Step::Put(PutStep { written: Written::Stored(content), .. }) => {
                    content.values().iter().for_each(&mut *visit);
                }
                _ => {}
            }),
            _ => {}
        }
    }

    /// Whether it may delete keys that it does not name one by one.
    pub fn touches_many(&self) -> bool {
        match &self.action {
            Action::DeleteRange { .. }
            | Action::LeaseRevoke { .. }
            | Action::LeaseExpire { .. } => true,
            Action::Txn(txn) => {
                let mut many = false;
                txn.each_step(&mut |step| {
                    many |= matches!(step, Step::Delete { span: Span::Range { .. }, .. });
                });
                many
            }
            _ => false,
        }
    }

    /// Calls `visit` with every single key that this may write or delete.
    pub fn each_key<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8])) {
        match &self.action {
            Action::Put { key, .. } | Action::Delete { key } => visit(key),
            Action::Restore(Restore::Version(version)) => visit(&version.key),
            Action::Txn(txn) => txn.each_step(&mut |step| match step {
                Step::Put(put) => visit(&put.key),
                Step::Delete { span: Span::One(key), .. } => visit(key),
                _ => {}
            }),
            _ => {}
        }
    }
}

fn check_stamp(stamp: &Stamp, action: &Action) -> Result<(), DecodeError> {
    if stamp.low == 0 || stamp.low > stamp.sequence {
        let problem = Problem::Inconsistent("low must be at least 1 and at most the sequence");
        return Err(DecodeError::new("stamp low", problem));
    }
    if matches!(action, Action::OpenSession { .. }) {
        let problem = Problem::Inconsistent("a session is opened outside any session");
        return Err(DecodeError::new("stamp", problem));
    }
    Ok(())
}

pub(crate) fn check_key(
    field: &'static str,
    key: &[u8],
    bytes_min: usize,
) -> Result<(), DecodeError> {
    check_bounds(field, key.len(), bytes_min, KEY_BYTES_MAX)
}

pub(crate) fn check_bounds(
    field: &'static str,
    value: usize,
    min: usize,
    max: usize,
) -> Result<(), DecodeError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let problem = Problem::OutOfRange { value: value as u64, min: min as u64, max: max as u64 };
    Err(DecodeError::new(field, problem))
}

/// The end of the range of all keys that begin with `prefix`: `None` if there is no upper end.
pub fn prefix_end(prefix: &[u8]) -> Option<Key> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests PROTOCOL 3.1-b
    #[test]
    fn an_op_id_gives_back_its_parts_and_orders_by_them() {
        let id = OpId::new(7, 0xDEAD_BEEF, (1 << 24) - 1, (1 << 40) - 1);
        assert_eq!(
            (id.node(), id.incarnation(), id.boot(), id.counter()),
            (7, 0xDEAD_BEEF, (1 << 24) - 1, (1 << 40) - 1)
        );
        assert!(id < OpId::new(7, 0xDEAD_BEF0, 0, 0));
        assert!(OpId::new(1, 2, 3, 4) < OpId::new(1, 2, 4, 0));
        assert_eq!(OpId::new(1, 2, 3, 4).to_string(), "1.2.3.4");
    }

    #[test]
    #[should_panic(expected = "op names are unique")]
    fn a_counter_that_would_spill_into_the_boot_is_refused() {
        OpId::new(1, 1, 1, 1 << 40);
    }

    #[test]
    fn a_prefix_ends_before_the_first_key_that_does_not_begin_with_it() {
        assert_eq!(prefix_end(b"ab").as_deref(), Some(&b"ac"[..]));
        assert_eq!(prefix_end(b"a\xff\xff").as_deref(), Some(&b"b"[..]));
        assert_eq!(prefix_end(b"\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }

    fn op(action: Action) -> Op {
        Op { id: OpId(1), author: None, stamp: None, action }
    }

    fn key(text: &str) -> Key {
        text.as_bytes().into()
    }

    #[test]
    fn touching_follows_half_open_ranges() {
        let put = op(Action::Delete { key: key("m") });
        assert!(put.touches(b"m") && !put.touches(b"n"));
        assert!(put.touches_range(b"m", Some(b"n")) && !put.touches_range(b"a", Some(b"m")));
        assert!(put.touches_range(b"", None));
        let range = op(Action::DeleteRange { from: key("b"), to: Some(key("d")) });
        assert!(range.touches(b"b") && range.touches(b"c") && !range.touches(b"d"));
        assert!(range.touches_range(b"a", Some(b"c")) && !range.touches_range(b"a", Some(b"b")));
        assert!(!range.touches_range(b"d", None));
        let open = op(Action::DeleteRange { from: key("b"), to: None });
        assert!(open.touches_range(b"zz", None) && !open.touches(b"a"));
        assert!(!op(Action::Noop).touches_range(b"", None));
    }
}
