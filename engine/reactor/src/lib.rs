//! A racos node: the loop that joins the protocol, the state machine, the log and the network.
//!
//! Purpose: carries out what `racos_protocol::Core` decides, in the order it decides, over any
//! `racos_net::Link` and `racos_storage::Device`; the simulator runs this same code.
//! Invariant: nothing leaves before the record it depends on is flushed (the core only says it when
//! told so), and executed batches reach the state machine in slot order.
//!
//! | module | duty |
//! |---|---|
//! | `node` | the turn of the loop; effects |
//! | `spread` | batches arriving, being stored, being executed |
//! | `batch`, `layout` | operations gathered and encoded into fragments |
//! | `assign`, `ahead` | large batches stored before they get a slot: the owner's side, and everybody's |
//! | `queued` | every operation stored first, and chosen by all: the queue policy |
//! | `reads`, `assemble` | quorum reads and collecting fragments; values from fragments |
//! | `requests` | what clients ask |
//! | `admission` | a new disk takes part only once others have vouched for it |
//! | `addresses` | where the others are, and what is tried if that is not so |
//! | `hosting` | fragments kept for members that are missing |
//! | `margin` | fewer data fragments while nodes are missing |
//! | `expiry` | sessions that nobody uses come to their end |
//! | `compare` | states of nodes that have executed the same slots are the same |
//! | `keep` | values that went while somebody read them |
//! | `checkpoint` | what a restart reads instead of the whole log; which segments are free |
//! | `reclaim` | segments of little use copied together, so that their files are used again |
//! | `facts` | telling lagging nodes what was decided, and being told |
//! | `replay` | restart from disk |
//! | `salvage` | a state from the logs of too few survivors, without a node |
//! | `lanes` | which lane a key belongs to; the lanes of a node in one process |
//! | `api` | the door for threads outside of the reactor: etcd's meaning in native types |
//! | `runtime` | the loop in a real process |
#![forbid(unsafe_code)]

#[macro_use]
extern crate racos_mutants;

mod addresses;
mod admission;
mod ahead;
pub mod api;
mod assemble;
mod assign;
mod at_risk;
mod awaited;
mod batch;
mod cache;
mod checkpoint;
mod collected;
mod compare;
pub mod config;
mod dying;
mod expiry;
mod facts;
mod fragments;
mod history;
mod hosting;
mod inquiry;
pub mod inspect;
mod journal;
mod jump;
mod keep;
pub mod lanes;
pub mod layout;
mod margin;
mod members;
mod missing;
#[cfg(feature = "mutants")]
mod mutants;
mod node;
mod observe;
mod patience;
mod placement;
mod put_off;
mod queued;
mod reads;
mod reclaim;
mod recode;
mod record;
mod repair;
mod replay;
mod requests;
mod rest;
mod rollback;
pub mod runtime;
pub mod salvage;
mod scrub;
mod secrets;
mod serve;
mod snap;
mod space;
mod spread;
pub mod status;
mod table;
mod visits;
pub mod wire;

pub use checkpoint::{Snapshot, TurnWork};
pub use config::{Bounds, DAY_NS, NodeConfig, PollMode, Profile};
pub use node::{Node, OpenError, UnderWay};
pub use observe::Observer;
pub use space::SpaceParts;

/// Whether this build can leave guards out, for tests.
pub const MUTANTS: bool = cfg!(feature = "mutants");
