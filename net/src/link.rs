//! The seam under everything that speaks to other nodes: unreliable datagrams.
//!
//! Purpose: `Link` is all that differs between UDP, RDMA, AF_XDP and the simulator.
//! Invariant: a link may lose, duplicate, delay and reorder datagrams; it never splits or joins
//! them. What is queued leaves at the latest in `flush`.

use racos_buffer::Slice;
use std::net::SocketAddr;

/// Most body slices that one datagram may gather.
pub const BODY_SLICES_MAX: usize = 16;

/// One datagram to send: a head that the link recycles, then slices gathered without a copy.
#[derive(Debug)]
pub struct Datagram {
    pub to: SocketAddr,
    pub head: Vec<u8>,
    pub body: Vec<Slice>,
}

/// One received datagram; `bytes` is a view of the link's receive buffer. Copy what is kept for
/// longer than a turn of the loop: a small view pins the whole buffer.
#[derive(Debug, Clone)]
pub struct Received {
    pub from: SocketAddr,
    pub bytes: Slice,
}

/// Unreliable datagrams to and from addresses.
pub trait Link: 'static {
    /// Queues a datagram of at most [`Link::datagram_max`] bytes and [`BODY_SLICES_MAX`] slices.
    /// Bounded: a link whose queue is full flushes first. Errors of the network are losses, not
    /// results.
    fn send(&mut self, datagram: Datagram);
    /// Hands everything queued to the network in as few system calls as it can.
    fn flush(&mut self);
    /// Appends datagrams that have arrived to `into` and returns how many. Never waits. A call takes a
    /// bounded number from the network (about 64, where those that the kernel joined count as one).
    fn receive(&mut self, into: &mut Vec<Received>) -> usize;
    /// Largest datagram to that address, headers of racos included, of the network's excluded.
    fn datagram_max(&self, to: SocketAddr) -> usize;
    /// An empty head with capacity, recycled from sent datagrams.
    fn head(&mut self) -> Vec<u8>;
    /// An empty list of body slices, recycled likewise.
    fn body(&mut self) -> Vec<Slice>;
    /// The address that this link receives on.
    fn local(&self) -> SocketAddr;
}
