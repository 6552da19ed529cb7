//! Deterministic simulator of whole racos clusters.
//!
//! Purpose: runs the shipped node (protocol, state machine, log, codec, transport) and the shipped
//! client core over simulated packets, disks and clocks, with faults drawn from a seed, and holds
//! everything that nodes do and clients are told against what racos promises.
//! Invariant: a seed reproduces a run bit for bit. What would break it: a clock of the real world,
//! a map with random order, or a thread inside of a run.
//!
//! | module | duty |
//! |---|---|
//! | [`plan`] | what a run is like, drawn from its seed |
//! | [`world`], [`queue`] | the events of a run, in order |
//! | [`faults`] | what is done to nodes, disks and network |
//! | [`host`], [`net`] | machines; packets |
//! | `moves`, `replace`, `reconfigure` | what operators do: other places, disks and members |
//! | `wipe`, `lag` | empty directories; nodes that are away for long |
//! | [`client`], [`content`] | what clients ask and are told; keys and values |
//! | [`lanes`] | nodes of several lanes, which fail as one; a world of its own |
//! | [`guest`] | transactions, leases and watches through the doors of the nodes |
//! | [`oracle`] | agreement, equal states, exactly once |
//! | [`run`](mod@run), `ends`, [`swarm`] | faults, calm, account; what was asked ends; many runs |
//! | [`mutants`], [`probes`] | guards left out, and who notices; schedules for the rarest |
#![forbid(unsafe_code)]

pub mod client;
pub mod content;
mod ends;
pub mod faults;
pub mod guest;
pub mod host;
mod lag;
pub mod lanes;
mod moves;
pub mod mutants;
pub mod net;
pub mod oracle;
pub mod plan;
pub mod probes;
pub mod queue;
mod reconfigure;
mod replace;
pub mod rng;
pub mod run;
pub mod swarm;
pub mod trace;
mod wipe;
pub mod world;

pub use plan::Fixed;
pub use run::{Report, run};
