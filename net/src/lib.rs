//! Datagrams between racos nodes, and between clients and nodes.
//!
//! Purpose: [`Transport`] carries messages (a kind, a head, a body) over any [`Link`]. Small ones
//! share a datagram and may be lost; what is larger than a datagram is split, paced, selectively
//! retransmitted and delivered once. It knows peers, frames and buffers, and no slot.
//!
//! Invariant: everything is bounded, nothing here reads a clock or draws a random number, and
//! whatever the network delivers is checked before it is used and dropped by reason if it is wrong.
//!
//! | module | duty |
//! |---|---|
//! | [`link`] | the seam: unreliable datagrams to addresses |
//! | [`udp`] | the link over Linux UDP; the only module with `unsafe` |
//! | [`memory`] | the link over virtual time, with loss, for tests and simulation |
//! | [`frame`] | the bytes of a datagram |
//! | [`chunk`] | the bytes of a chunk and of its acknowledgement |
//! | [`transport`] | messages: coalescing, peers, the turn of the loop |

#![deny(unsafe_code)]

#[macro_use]
extern crate racos_mutants;

pub mod chunk;
pub mod counters;
pub mod frame;
mod inbound;
pub mod link;
pub mod memory;
mod outbound;
pub mod pace;
mod peers;
pub mod transport;
#[allow(unsafe_code)]
pub mod udp;

pub use counters::Counters;
pub use frame::{Identity, Lane};
pub use link::{BODY_SLICES_MAX, Datagram, Link, Received};
pub use transport::{Message, SendError, Sender, Transport, TransportConfig};
pub use udp::{UdpConfig, UdpLink};
