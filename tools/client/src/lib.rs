//! Native client of racos.
//!
//! Three layers:
//!
//! - [`ClientCore`]: a state machine without clock or threads, many operations at once over one
//!   link; what the bench and the simulator drive.
//! - [`Lanes`]: one of them for each lane of the nodes; keys choose.
//! - [`Client`]: blocking calls on top of it over UDP: put, get, delete, list, and values of any
//!   size with bounded memory.
//!
//! Invariant: a write is applied at most once however often it is sent (PROTOCOL 11), and an error
//! says whether it may have been applied.

#![forbid(unsafe_code)]

mod blocking;
mod config;
mod core;
mod endpoints;
mod error;
mod lanes;
mod large;
mod op;
mod pending;
mod session;

pub use blocking::{Client, ListPage, Progress};
pub use config::ClientConfig;
pub use core::{ClientCore, Counts, OUTSTANDING_MAX};
pub use error::ClientError;
pub use lanes::Lanes;
pub use op::{Answer, Completion, Op, Route, Ticket};

pub use racos_engine::wire::node::KeyEntry;
pub use racos_machine::{
    Action, Joining, KEY_BYTES_MAX, Reconfigure, Replace, STRIPES_MAX, Value, prefix_end,
};
