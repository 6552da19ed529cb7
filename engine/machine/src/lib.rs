//! The replicated state machine of racos.
//!
//! Every node applies the same operations in slot order and so holds the same state: an ordered,
//! multi-version index of keys, the table of live values, and the table of client sessions. The
//! machine never reads a value: all it holds and decides on is metadata (length, digest, first
//! bytes, code), so no fragment, however late or lost, can stall or fork execution.
//!
//! Invariant: the state, and the answer to every operation, is a function of the sequence of
//! `(slot, position, operation)` applied and of [`Limits`], which must be equal on all nodes.
//! [`Machine::state_hash`] covers all of it, so that replicas can compare themselves.
//!
//! What would break it: a clock, a random number, an iteration over a randomly seeded map, a
//! decision that depends on which values this node happens to hold, or limits that differ.
//!
//! PROTOCOL 7 (execution), 9.8 (value table) and 11 (sessions) are the rules followed here.
#![forbid(unsafe_code)]

#[macro_use]
extern crate racos_mutants;

mod address;
mod auth;
mod changes;
mod export;
mod hash;
mod hash_kv;
mod import;
mod index;
mod leases;
mod machine;
mod members;
mod numbers;
mod op;
mod origins;
mod outcome;
mod pile;
mod recode;
mod restore;
mod select;
mod sessions;
mod slab;
mod transact;
mod txn;
mod values;
mod wire;

pub use address::ADDRESS_BYTES_MAX;
pub use auth::{
    AUTH_ENTRIES_MAX, Auth, AuthEntry, AuthPlace, AuthStep, Caller, Name, PASSWORD_BYTES_MAX,
    Password, Permission, PermissionKind, Permit, ROOT, Role, Secret, User,
};
pub use changes::Changed;
pub use export::{EXPORT_ENTRY_BYTES_MAX, EXPORT_FORMAT, EXPORT_PART_BYTES, Exported};
pub use hash_kv::Hashing;
pub use import::{Import, ImportError};
pub use index::{Revision, Version};
pub use machine::{Limits, Machine};
pub use members::{Founding, Joining, Layout, MEMBERS_MAX, Members, Reconfigure, Replace, Seat};
pub use numbers::Numbers;
pub use op::{
    AUTH_REVISION_FIRST, Action, AlarmKind, Author, Content, KEY_BYTES_MAX, Key, LEASE_TTL_MAX, Op,
    OpId, SESSION_WINDOW_DEFAULT, SESSION_WINDOW_MAX, STRIPES_MAX, SessionId, Stamp,
    USER_BYTES_MAX, Value, prefix_end,
};
pub use origins::{Origins, ShortOp};
pub use outcome::{Done, Outcome, Refusal};
pub use pile::Pile;
pub use restore::{Restore, RestoreEnd, RestoredVersion};
pub use select::{ByValue, Item, Selecting, Selection};
pub use sessions::SessionState;
pub use transact::{StepReport, TxnReport};
pub use txn::{
    Compare, Given, PutStep, Relation, Select, Side, SortBy, SortOrder, Span, Step, TXN_DEPTH_MAX,
    Txn, Written,
};
pub use values::{Extent, RELEASED_MAX, ValueUse};
pub use wire::{BATCH_VERSION, BatchLimits, DecodeError, Problem, decode_batch, encode_batch};
