//! The racos log: records and sectors, nothing about what they mean.
//!
//! A [`Log`] appends records to files written with zeros beforehand, many records a flush, and
//! reports each when it is on stable storage; opening it again gives back every record that was
//! ever reported (see [`TABLE`] for what each kind of damage leads to). It runs on any
//! [`device::Device`]: io_uring with `O_DIRECT`, plain system calls, or a simulated disk.
//!
//! The log grows for ever. Reclaiming will move the start that the superblock names
//! and reuse files under new segment numbers; nothing in the format stands in its way.

#![deny(unsafe_code)]

mod bytes;
mod cases;
mod config;
pub mod device;
mod error;
mod format;
mod group;
mod log;
mod place;
mod recovery;
mod scan;
mod space;
mod superblock;

pub use cases::{Action, Case, TABLE};
pub use config::LogConfig;
pub use error::{Full, LogError, ReadError, ReadRefused};
pub use log::{Class, Counters, Event, Log};
pub use place::{Place, Position, RecordId};
pub use recovery::{Condition, Recovered, Replayed, ReplayedBody};
pub use superblock::{BOOT_MAX, Identity};
