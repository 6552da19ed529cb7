//! What threads outside of the reactor ask of a node, and what they are told.
//!
//! The words and numbers are etcd's: revisions, versions and leases are `i64`, and where etcd's
//! answer depends on an odd input (a negative revision, a sort target without an order) the input
//! is passed on as it is. Whoever speaks a protocol translates into these types and checks what
//! can be checked without the state: empty keys, unknown enum values, counts of operations,
//! `ignore_value` beside a value.

use bytes::Bytes;
use racos_machine::{AuthEntry, AuthPlace, Refusal};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Which keys an operation is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    One(Bytes),
    /// From `from` up to but not including `to`; without `to`, to the last key. `from >= to` names
    /// no key. All keys: from the empty key, without end.
    Span {
        from: Bytes,
        to: Option<Bytes>,
    },
}

/// By what the keys of a [`Range`] are put in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortBy {
    #[default]
    Key,
    Version,
    Create,
    Modified,
    Value,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortOrder {
    /// By key as they are stored; with a target other than the key, ascending after the limit.
    #[default]
    None,
    Ascending,
    Descending,
}

/// What to read. `Default` in all but `keys` asks for everything at the newest revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub keys: Keys,
    /// Most keys to answer with; 0 or less: no limit.
    pub limit: i64,
    /// The state to read; 0 or less: the newest.
    pub revision: i64,
    pub sort_order: SortOrder,
    pub sort_by: SortBy,
    /// Without values: nothing is fetched.
    pub keys_only: bool,
    /// Only the count.
    pub count_only: bool,
    /// Bounds, inclusive, on the revisions of what is answered; 0: none.
    pub modified_min: i64,
    pub modified_max: i64,
    pub create_min: i64,
    pub create_max: i64,
}

impl Range {
    /// Everything of these keys, at the newest revision.
    pub fn new(keys: Keys) -> Range {
        Range {
            keys,
            limit: 0,
            revision: 0,
            sort_order: SortOrder::None,
            sort_by: SortBy::Key,
            keys_only: false,
            count_only: false,
            modified_min: 0,
            modified_max: 0,
            create_min: 0,
            create_max: 0,
        }
    }
}

/// A key as of a revision. Tombstones (in events) have version and creation 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyValue {
    pub key: Bytes,
    pub create: i64,
    pub modified: i64,
    pub version: i64,
    /// 0: none.
    pub lease: i64,
    /// Empty if it was not asked for.
    pub value: Bytes,
}

/// The answer to a [`Range`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeAnswer {
    /// For the header: of the state read, not the one asked for.
    pub revision: i64,
    pub kvs: Vec<KeyValue>,
    /// The limit cut something off.
    pub more: bool,
    /// Keys in the span, before filters and limit.
    pub count: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    /// 0: none.
    pub lease: i64,
    pub prev_kv: bool,
    /// Keep the value, or the lease, that the key has; an absent key is an error.
    pub ignore_value: bool,
    pub ignore_lease: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutAnswer {
    pub revision: i64,
    pub previous: Option<KeyValue>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    pub keys: Keys,
    pub prev_kv: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeleteAnswer {
    pub revision: i64,
    pub deleted: i64,
    /// In key order; empty if not asked for.
    pub previous: Vec<KeyValue>,
}

/// How the stored side stands to the given one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    Equal,
    NotEqual,
    Greater,
    Less,
}

/// What is compared, with the given side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Version(i64),
    Create(i64),
    Modified(i64),
    Lease(i64),
    Value(Bytes),
}

/// Holds if `stored relation given` does for every key. With no key, version, creation,
/// modification and lease count as 0, and a value compare fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    pub keys: Keys,
    pub relation: Relation,
    pub target: Target,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOp {
    Range(Range),
    Put(Put),
    Delete(Delete),
    Txn(Txn),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<TxnOp>,
    pub failure: Vec<TxnOp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOpAnswer {
    Range(RangeAnswer),
    Put(PutAnswer),
    Delete(DeleteAnswer),
    /// Its revision is 0, as in etcd.
    Txn(TxnAnswer),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TxnAnswer {
    pub revision: i64,
    pub succeeded: bool,
    pub answers: Vec<TxnOpAnswer>,
}

/// The answer to operations that answer with a header only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    pub revision: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseAnswer {
    pub revision: i64,
    pub id: i64,
    /// Seconds: granted, or left. 0 from a keep-alive: there is no such lease.
    pub ttl: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TimeToLiveAnswer {
    pub revision: i64,
    pub id: i64,
    /// Whole seconds left, rounded down; -1: there is no such lease.
    pub ttl: i64,
    pub granted: i64,
    /// Attached keys in order, if asked for.
    pub keys: Vec<Bytes>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeasesAnswer {
    pub revision: i64,
    /// In order.
    pub ids: Vec<i64>,
}

/// A watch to begin on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchCreate {
    /// Chosen by the client, or 0: the stream gives the lowest free one from 0 on.
    pub id: i64,
    pub keys: Keys,
    /// The first revision to tell of; 0: whatever comes after the watch was created.
    pub start_revision: i64,
    pub no_put: bool,
    pub no_delete: bool,
    /// Events carry the version before, unless it is compacted.
    pub prev_kv: bool,
    /// Tell the revision now and then while there is no event.
    pub progress_notify: bool,
}

/// One change of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub is_delete: bool,
    /// For a deletion: the key and the revision of it.
    pub kv: KeyValue,
    pub previous: Option<KeyValue>,
}

/// Events that several watches may share, with room for the form in which they are sent on.
#[derive(Debug, Clone, Default)]
pub struct Events {
    list: Vec<Event>,
    encoded: OnceLock<Bytes>,
}

impl Events {
    pub fn new(list: Vec<Event>) -> Events {
        Events { list, encoded: OnceLock::new() }
    }

    /// What `encode` makes of them; it is asked once, however many watches tell them.
    pub fn encoded(&self, encode: impl FnOnce(&[Event]) -> Bytes) -> &Bytes {
        self.encoded.get_or_init(|| encode(&self.list))
    }
}

impl std::ops::Deref for Events {
    type Target = [Event];

    fn deref(&self) -> &[Event] {
        &self.list
    }
}

impl PartialEq for Events {
    fn eq(&self, other: &Events) -> bool {
        self.list == other.list
    }
}

impl Eq for Events {}

/// What a stream of watches delivers, in the order in which it is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchResponse {
    /// Every event of the watch up to and with this revision has been delivered with this response.
    pub revision: i64,
    pub id: i64,
    pub what: WatchNews,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchNews {
    Created,
    /// The watch was not created; the reason is for the client.
    Refused(WatchRefusal),
    /// All changes that match of one revision or several: a revision is never split.
    Events(Arc<Events>),
    /// Nothing matched up to the revision. On a progress request the id is -1 and all watches of the
    /// stream are meant.
    Progress,
    /// The client asked for it.
    Cancelled,
    /// What the watch has not delivered was compacted; it has ended.
    Compacted {
        compact_revision: i64,
    },
    /// The watch ended for another reason: a value of it is lost.
    Failed(Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchRefusal {
    DuplicateId,
    /// The span names no key.
    EmptyRange,
    /// The keys are not the user's to read.
    Auth(Refusal),
}

/// etcd's number for the history up to a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HashAnswer {
    pub revision: i64,
    pub hash: u32,
    pub compact_revision: i64,
    /// The revision that was hashed.
    pub hash_revision: i64,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    pub node: u8,
    /// Where other nodes reach it.
    pub address: std::net::SocketAddr,
    /// Where clients reach it, if it joined later and has said so.
    pub clients: Option<Box<str>>,
}

/// All members as the node knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembersAnswer {
    pub revision: i64,
    /// The one that joined, or whose change was asked for, if it is a member.
    pub id: u64,
    pub members: Vec<Member>,
}

/// What is wrong with a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlarmKind {
    NoSpace,
    Corrupt,
    /// The cluster is being restored from a backup.
    Restoring,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusAnswer {
    pub revision: i64,
    /// -1: nothing was compacted.
    pub compact_revision: i64,
    /// All slots below are in use, and executed.
    pub seen: u64,
    pub exec: u64,
    /// Bytes of the log's files, and those in use.
    pub db_size: u64,
    pub db_size_in_use: u64,
    pub keys: u64,
    /// A fixed stand-in, or 0 while no quorum is heard: there is no leader.
    pub leader: u64,
    pub members: Vec<Member>,
    pub alarms: Vec<(u64, AlarmKind)>,
    pub native: crate::status::Status,
}

/// What a backup begins with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackupHead {
    /// The revision that is saved.
    pub revision: i64,
    /// Ids and times to live in seconds, in order.
    pub leases: Vec<(i64, i64)>,
}

/// Some of what a backup holds of users and roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupAuth {
    pub entries: Vec<AuthEntry>,
    /// How often users or roles had changed: another number in a later part, and it is not whole.
    pub auth_revision: u64,
    /// From where to go on; `None`: these were the last.
    pub next: Option<AuthPlace>,
}

/// Up to where a backup has been read: a key, and a revision of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackupPlace {
    pub key: Bytes,
    pub main: u64,
    pub sub: u32,
    /// There was more of the key.
    pub is_within_key: bool,
}

/// One version of a key, as a backup holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupVersion {
    pub key: Bytes,
    /// Its revision, and its place among the changes of that.
    pub main: u64,
    pub sub: u32,
    pub create: u64,
    pub number: u64,
    pub lease: i64,
    /// `None`: the key was deleted.
    pub value: Option<Bytes>,
}

/// Some versions, by key and then by revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupPage {
    pub versions: Vec<BackupVersion>,
    /// -1: nothing was compacted when they were looked at.
    pub compact_revision: i64,
    /// From where to go on; `None`: these were the last.
    pub next: Option<BackupPlace>,
}

/// One step of filling a new cluster from a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreStep {
    Begin {
        revision: u64,
    },
    Lease {
        id: i64,
        ttl: i64,
    },
    /// Of users and roles, in the order of the backup; taken once, however often it is sent.
    Auth(Box<AuthEntry>),
    /// Taken once, however often it is sent. "Busy" if `before`, the version before it of its key
    /// ((0, 0): there is none), has not come yet.
    Version {
        before: (u64, u32),
        version: BackupVersion,
    },
    /// What must have come; if it has not, the restore goes on being open, and nobody sees it.
    End {
        keys: u64,
        versions: u64,
        leases: u64,
        /// -1: nothing was compacted.
        compact_revision: i64,
        /// That of the history up to the revision.
        hash: u32,
    },
}

/// Why a request was not served. `Display` says so in words; what clients of etcd match on is the
/// caller's to produce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The revision, or what a watch or an answer needed, was compacted away.
    Compacted {
        compact_revision: i64,
    },
    FutureRevision,
    LeaseNotFound,
    LeaseExists,
    LeaseTtlTooLarge,
    /// `ignore_value` or `ignore_lease` on an absent key.
    KeyNotFound,
    NoSpace(String),
    /// Larger than this node takes, or answers with.
    TooLarge(String),
    /// A field that no well-formed request has.
    Invalid(String),
    /// Nothing was done, there was no room for it; try again.
    Busy(String),
    /// Too few nodes answer. Of a write the outcome is open.
    Unavailable(String),
    /// Fewer fragments of a value are left than are needed.
    DataLoss(String),
    /// This node is no member, not yet or not any more: another is to be asked.
    NoMember(String),
    /// No member has this id.
    MemberNotFound,
    /// A member is at this address already.
    MemberExists,
    /// With the members that would be left no n >= 2f + k, or values with too few holders.
    TooFewMembers(String),
    /// Too few of the members that there would be answer, or another change is on its way.
    MembersUnhealthy(String),
    /// A change of members that cannot be, and what to do instead.
    MemberRefused(String),
    /// Other writers changed what a value compare looked at whenever it was tried.
    Unresolved,
    /// Of users, roles, and what they permit.
    Auth(Refusal),
    /// The node has stopped.
    Stopped,
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Compacted { compact_revision } => {
                write!(out, "the revision has been compacted, up to {compact_revision}")
            }
            Error::FutureRevision => out.write_str("the revision is in the future"),
            Error::LeaseNotFound => out.write_str("the lease does not exist; it may have expired"),
            Error::LeaseExists => out.write_str("a lease with this id exists already"),
            Error::LeaseTtlTooLarge => out.write_str("the time to live of the lease is too large"),
            Error::KeyNotFound => out.write_str("the key does not exist, so nothing can be kept"),
            Error::NoSpace(text)
            | Error::TooLarge(text)
            | Error::Invalid(text)
            | Error::Busy(text)
            | Error::Unavailable(text)
            | Error::DataLoss(text)
            | Error::NoMember(text)
            | Error::TooFewMembers(text)
            | Error::MembersUnhealthy(text)
            | Error::MemberRefused(text) => out.write_str(text),
            Error::MemberNotFound => out.write_str("no member has this id"),
            Error::MemberExists => out.write_str("a member is at this address already"),
            Error::Unresolved => out.write_str(
                "the compared keys were written again whenever the transaction was tried; try again",
            ),
            Error::Auth(reason) => reason.fmt(out),
            Error::Stopped => out.write_str("the node has stopped"),
        }
    }
}

impl std::error::Error for Error {}
