//! The racos log: records and sectors, nothing about what they mean.
//!
//! A [`Log`] appends records to files written with zeros beforehand, many records a flush, and
//! reports each when it is on stable storage; opening it again gives back every record that was
//! ever reported (see [`TABLE`] for what each kind of damage leads to). It runs on any
//! [`device::Device`]: io_uring with `O_DIRECT`, plain system calls, or a simulated disk.
//!
//! The superblock holds two marks: where replay begins, and where it began before. The caller sets
//! one when what it leaves out is told by records behind it (a checkpoint), and gives back the
//! segments before both marks once nothing in them is of use; their files become new segments.

#![deny(unsafe_code)]

#[macro_use]
extern crate racos_mutants;

mod bytes;
mod cases;
mod config;
pub mod device;
mod error;
mod format;
mod group;
mod log;
mod place;
mod raw;
mod recovery;
mod scan;
mod space;
mod superblock;
pub mod survey;

/// Bytes at the front of a segment before its first group; groups begin at multiples of it.
pub const SEGMENT_FRONT: u32 = format::BLOCK as u32;

pub use cases::{Action, Case, TABLE};
pub use config::LogConfig;
pub use error::{Full, LogError, ReadError, ReadRefused};
pub use log::{Class, Counters, Event, Log};
pub use place::{Place, Position, RecordId};
pub use raw::{Cursor, Look, RawGroup, RawRecord};
pub use recovery::{Condition, Recovered, Replay, Replayed, ReplayedBody};
pub use superblock::{BOOT_MAX, Identity, Mark};
