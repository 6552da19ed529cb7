//! The role through which threads outside of the reactor use a node: reads, writes, watches and
//! leases with etcd's meaning, in types of this crate and without any wire format.
//!
//! | module | duty |
//! |---|---|
//! | `types` | requests and answers |
//! | `pending` | an answer that comes later: a future, or a blocking wait |
pub mod pending;
pub mod types;

pub use pending::Pending;
pub use types::Error;
