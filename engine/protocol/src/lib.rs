//! The consensus core of racos: a pure function of (state, input) to effects.
//!
//! Purpose: everything that PROTOCOL.md sections 3 to 9 decide, and nothing else: no time but the
//! `now` that each input carries, no input or output, no threads, no randomness, no value bytes.
//! Invariant: the same inputs in the same order give the same effects, bit for bit; a message that
//! must not leave before its record is durable leaves only in answer to [`Input::Durable`].
//! What would break it: a hash map with a random seed, a clock, or an effect that sends a PROPOSE,
//! VOTE or STATE directly.
#![forbid(unsafe_code)]

#[macro_use]
extern crate racos_mutants;

mod coin;
mod config;
mod configuration;
mod consensus;
mod contest;
mod core;
mod effects;
mod estimate;
mod exec;
mod jump;
mod message;
mod own;
mod pull;
mod queue;
mod read;
mod recovery;
mod rivals;
mod seats;
mod sequence;
mod slot;
mod terms;
mod timers;

pub use crate::core::{Core, Counters};
pub use coin::{CoinKey, siphash_2_4};
pub use config::{Config, ConfigError, MEMBERS_MAX, Thresholds, Timing, Wait};
pub use configuration::Configuration;
pub use consensus::{Action, Consensus, Decision, Path, Waiting};
pub use contest::Contest;
pub use effects::{Effect, Effects, Input, Record, Release, Target};
pub use estimate::Mean;
pub use message::{Ballot, BatchInfo, Class, Digest, Message, Nanos, Node, NodeSet, Slot, Value};
pub use queue::{Queue, born, candidate};
pub use read::{ReadQuorum, ReadStep};
pub use recovery::Recovery;
pub use seats::{Change, Membership, Seat};
pub use terms::{Fast, Policy, Terms};
