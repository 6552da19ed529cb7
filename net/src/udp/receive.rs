//! Receiving many datagrams with one call into pooled buffers.
//!
//! Invariant: `buffers[i]` is where header `i` points, for every `i < ready`; a buffer leaves the
//! array before anyone else may see it. A buffer goes back to the pool when its last slice is
//! dropped and is the first to be taken again, while still in the processor's cache.

use super::address::Name;
use super::options::{Control, joined_size};
use crate::link::Received;
use libc::{iovec, mmsghdr};
use racos_buffer::{Buf, Pool};
use std::mem::size_of;
use std::os::fd::RawFd;

/// Room for the largest UDP datagram, or for as many as the kernel joins.
pub const BUFFER_BYTES: usize = 64 << 10;

pub struct Receiver {
    pool: Pool,
    buffers: Vec<Option<Buf>>,
    /// How many of `buffers`, from the first, are there and have a header.
    ready: usize,
    names: Vec<Name>,
    controls: Vec<Control>,
    vectors: Vec<iovec>,
    headers: Vec<mmsghdr>,
    pub counts: ReceiveCounts,
}

/// What has been received so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReceiveCounts {
    /// Calls that returned something.
    pub calls: u64,
    /// Datagrams handed out.
    pub datagrams: u64,
    /// Messages that the kernel had joined from several datagrams.
    pub joined: u64,
    /// Datagrams dropped because every receive buffer was still held by somebody.
    pub dropped_no_buffer: u64,
    /// Datagrams dropped because they were cut or had no usable sender address.
    pub dropped_unusable: u64,
}

impl Receiver {
    /// Up to `batch` messages a call, in at most `pool_bytes` of buffers.
    pub fn new(batch: usize, pool_bytes: usize) -> Receiver {
        // SAFETY: a message header of zeros is one without name, vectors and control.
        let header: mmsghdr = unsafe { std::mem::zeroed() };
        let vector = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Receiver {
            pool: Pool::new(pool_bytes.max(batch * BUFFER_BYTES)),
            buffers: (0..batch).map(|_| None).collect(),
            ready: 0,
            names: vec![Name::empty(); batch],
            controls: vec![Control::EMPTY; batch],
            vectors: vec![vector; batch],
            headers: vec![header; batch],
            counts: ReceiveCounts::default(),
        }
    }

    /// Appends what has arrived to `into` and returns how many datagrams; never waits.
    pub fn receive(&mut self, fd: RawFd, into: &mut Vec<Received>) -> usize {
        while self.ready < self.buffers.len() && self.fill(self.ready) {
            self.ready += 1;
        }
        if self.ready == 0 {
            self.discard(fd);
            return 0;
        }
        let headers = self.headers.as_mut_ptr();
        // SAFETY: the first `ready` headers point at names, vectors, controls and buffers that live
        // in `self`, none of which is touched otherwise during the call.
        let count = unsafe {
            let flags = libc::MSG_DONTWAIT;
            libc::recvmmsg(fd, headers, self.ready as u32, flags, std::ptr::null_mut())
        };
        // Nothing there, or an error that an earlier send left behind (refused port): no datagram.
        let Ok(count @ 1..) = usize::try_from(count) else { return 0 };
        self.counts.calls += 1;
        let before = into.len();
        for index in 0..count {
            self.hand_out(index, into);
        }
        self.refill(count);
        self.counts.datagrams += (into.len() - before) as u64;
        into.len() - before
    }

    /// Takes a buffer from the pool for slot `index` and points the slot's header at it.
    fn fill(&mut self, index: usize) -> bool {
        let Some(buffer) = self.pool.get(BUFFER_BYTES) else { return false };
        self.place(index, buffer);
        true
    }

    fn place(&mut self, index: usize, mut buffer: Buf) {
        self.vectors[index] = iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: BUFFER_BYTES };
        self.buffers[index] = Some(buffer);
        let vector = &raw mut self.vectors[index];
        let name = (&raw mut self.names[index]).cast();
        let header = &mut self.headers[index].msg_hdr;
        header.msg_name = name;
        header.msg_namelen = size_of::<Name>() as u32;
        header.msg_iov = vector;
        header.msg_iovlen = 1;
        header.msg_flags = 0;
        self.controls[index].attach(header);
    }

    /// Makes slots `0..used` ready again; where the pool has no more, from the slots behind them.
    fn refill(&mut self, used: usize) {
        for index in 0..used.min(self.ready) {
            if self.fill(index) {
                continue;
            }
            let spare = (index + 1..self.ready).rev().find(|slot| self.buffers[*slot].is_some());
            let Some(spare) = spare else {
                self.ready = index;
                return;
            };
            let buffer = self.buffers[spare].take().expect("just seen there");
            self.place(index, buffer);
            self.ready = spare;
        }
    }

    /// The datagrams of message `index`, whose buffer leaves the array.
    fn hand_out(&mut self, index: usize, into: &mut Vec<Received>) {
        let message = &self.headers[index];
        let len = (message.msg_len as usize).min(BUFFER_BYTES);
        let from = self.names[index].get(message.msg_hdr.msg_namelen);
        let size = joined_size(&message.msg_hdr).unwrap_or(len);
        let cut = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        let mut buffer = self.buffers[index].take().expect("a ready slot has its buffer");
        let Some(from) = from.filter(|_| !cut) else {
            self.counts.dropped_unusable += 1;
            return;
        };
        buffer.set_len(len);
        let bytes = buffer.freeze();
        if size >= len {
            into.push(Received { from, bytes });
            return;
        }
        self.counts.joined += 1;
        for start in (0..len).step_by(size) {
            into.push(Received { from, bytes: bytes.slice(start..len.min(start + size)) });
        }
    }

    /// Drops what waits in the socket, so that a loop that sleeps on it does not spin while others
    /// hold every buffer. To the senders it is loss.
    fn discard(&mut self, fd: RawFd) {
        for _ in 0..self.buffers.len() {
            // SAFETY: a length of zero lets the kernel write nothing through the null pointer.
            let result = unsafe { libc::recv(fd, std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) };
            if result < 0 {
                return;
            }
            self.counts.dropped_no_buffer += 1;
        }
    }
}
