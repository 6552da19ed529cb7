//! Bytes on the wire and in log records: what nodes say to each other and to clients.
//!
//! Invariant: every decoder checks every length before it reads, and refuses what it does not know;
//! no input makes it panic or allocate more than a small multiple of what came in.

pub mod client;
pub mod cursor;
pub mod node;
pub mod snap;
pub mod value;
