//! Sending many datagrams with one call, gathered from their slices.
//!
//! Invariant: the queue never holds more than [`QUEUE_MAX`] datagrams, and every call that fails
//! takes at least one of them out of it, so that a flush ends. What the network refuses is lost,
//! as if it had been lost on the way.

use super::address::Name;
use super::options::Control;
use crate::link::{BODY_SLICES_MAX, Datagram};
use libc::{iovec, mmsghdr, socklen_t};
use racos_buffer::Slice;
use std::io;
use std::os::fd::RawFd;

/// Most datagrams that wait for a flush.
pub const QUEUE_MAX: usize = 256;
/// Datagrams up to this size are joined for the kernel to split; larger ones gain nothing.
const SPLIT_SIZE_MAX: usize = 16 << 10;
/// Most bytes and parts that the kernel splits.
const SPLIT_BYTES_MAX: usize = 65_000;
const SPLIT_PARTS_MAX: usize = 64;
/// The kernel takes 1024 vectors a message.
const VECTORS_MAX: usize = 1024;
/// How often a full socket is tried again at once before the rest is dropped.
const FULL_RETRIES: usize = 2;

/// What has been sent so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendCounts {
    pub calls: u64,
    pub datagrams: u64,
    pub bytes: u64,
    /// Messages that the kernel was asked to split into several datagrams.
    pub joined: u64,
    /// Datagrams dropped because the socket's buffer stayed full.
    pub dropped_full: u64,
    /// Datagrams that the kernel refused: no route, too large, filtered, no memory.
    pub dropped_refused: u64,
}

/// One message of a call: `datagrams` of the queue, the first at `first`.
#[derive(Clone, Copy)]
struct Group {
    first: usize,
    datagrams: usize,
    size: usize,
    vector: usize,
    vectors: usize,
    name_len: socklen_t,
}

pub struct SendQueue {
    queue: Vec<Datagram>,
    groups: Vec<Group>,
    names: Vec<Name>,
    vectors: Vec<iovec>,
    controls: Vec<Control>,
    headers: Vec<mmsghdr>,
    heads: Vec<Vec<u8>>,
    bodies: Vec<Vec<Slice>>,
    socket_is_v6: bool,
    pub split: bool,
    pub counts: SendCounts,
}

impl SendQueue {
    pub fn new(socket_is_v6: bool, split: bool) -> SendQueue {
        SendQueue {
            queue: Vec::with_capacity(QUEUE_MAX),
            groups: Vec::new(),
            names: Vec::new(),
            vectors: Vec::new(),
            controls: Vec::new(),
            headers: Vec::new(),
            heads: Vec::new(),
            bodies: Vec::new(),
            socket_is_v6,
            split,
            counts: SendCounts::default(),
        }
    }

    pub fn is_full(&self) -> bool {
        self.queue.len() >= QUEUE_MAX
    }

    pub fn push(&mut self, datagram: Datagram) {
        assert!(datagram.body.len() <= BODY_SLICES_MAX, "a datagram gathers too many slices");
        if datagram.to.is_ipv6() && !self.socket_is_v6 {
            self.counts.dropped_refused += 1;
            return;
        }
        self.queue.push(datagram);
    }

    pub fn head(&mut self) -> Vec<u8> {
        self.heads.pop().unwrap_or_else(|| Vec::with_capacity(2048))
    }

    pub fn body(&mut self) -> Vec<Slice> {
        self.bodies.pop().unwrap_or_else(|| Vec::with_capacity(BODY_SLICES_MAX))
    }

    /// Sends everything queued.
    pub fn flush(&mut self, fd: RawFd) {
        let mut start = 0;
        while start < self.queue.len() {
            start += self.send_from(start, fd);
        }
        for Datagram { mut head, mut body, .. } in self.queue.drain(..) {
            head.clear();
            body.clear();
            if self.heads.len() < QUEUE_MAX {
                self.heads.push(head);
                self.bodies.push(body);
            }
        }
    }

    /// Hands `queue[start..]` to the kernel; returns how many datagrams are dealt with: all, unless
    /// splitting turned out not to work here and the rest must be joined anew.
    fn send_from(&mut self, start: usize, fd: RawFd) -> usize {
        self.group(start);
        self.point();
        let (mut done, mut retries) = (0, 0);
        while done < self.groups.len() {
            let left = self.groups.len() - done;
            // SAFETY: headers `done..` point at names, vectors, controls and bytes that live in
            // `self` and are not changed until after the call.
            let sent = unsafe {
                let headers = self.headers.as_mut_ptr().add(done);
                libc::sendmmsg(fd, headers, left as u32, libc::MSG_DONTWAIT)
            };
            self.counts.calls += 1;
            if let Ok(sent @ 1..) = usize::try_from(sent) {
                self.count_sent(done, sent);
                done += sent;
                retries = 0;
                continue;
            }
            let group = self.groups[done];
            match io::Error::last_os_error().raw_os_error().unwrap_or(0) {
                libc::EINTR | libc::EAGAIN if retries < FULL_RETRIES => retries += 1,
                libc::EINTR | libc::EAGAIN => {
                    let dropped: usize = self.groups[done..].iter().map(|g| g.datagrams).sum();
                    self.counts.dropped_full += dropped as u64;
                    break;
                }
                // The echo of an earlier datagram to a closed port, not of this one.
                libc::ECONNREFUSED if retries < FULL_RETRIES => retries += 1,
                libc::EINVAL | libc::EIO | libc::EOPNOTSUPP if group.datagrams > 1 => {
                    self.split = false;
                    return group.first - start;
                }
                _ => {
                    self.counts.dropped_refused += group.datagrams as u64;
                    done += 1;
                    retries = 0;
                }
            }
        }
        self.queue.len() - start
    }

    fn count_sent(&mut self, done: usize, sent: usize) {
        for (group, header) in self.groups[done..].iter().zip(&self.headers[done..]).take(sent) {
            self.counts.datagrams += group.datagrams as u64;
            self.counts.joined += u64::from(group.datagrams > 1);
            self.counts.bytes += u64::from(header.msg_len);
        }
    }

    /// Lists names, vectors and groups for `queue[start..]`.
    fn group(&mut self, start: usize) {
        self.groups.clear();
        self.names.clear();
        self.vectors.clear();
        let mut at = start;
        while at < self.queue.len() {
            let (name, name_len) = Name::new(self.queue[at].to, self.socket_is_v6)
                .expect("only addresses that this socket can reach are queued");
            let (datagrams, size) = self.run_from(at);
            let vector = self.vectors.len();
            for datagram in &self.queue[at..at + datagrams] {
                self.vectors.push(vector_of(&datagram.head));
                self.vectors.extend(datagram.body.iter().map(|slice| vector_of(slice)));
            }
            let vectors = self.vectors.len() - vector;
            self.names.push(name);
            self.groups.push(Group { first: at, datagrams, size, vector, vectors, name_len });
            at += datagrams;
        }
    }

    /// How many datagrams from `at` on can be one message, and the size of all but the last.
    fn run_from(&self, at: usize) -> (usize, usize) {
        let size = len_of(&self.queue[at]);
        if !self.split || size > SPLIT_SIZE_MAX {
            return (1, size);
        }
        let (mut bytes, mut vectors) = (size, 1 + self.queue[at].body.len());
        let mut count = 1;
        for next in self.queue[at + 1..].iter().take(SPLIT_PARTS_MAX - 1) {
            let len = len_of(next);
            bytes += len;
            vectors += 1 + next.body.len();
            let fits = bytes <= SPLIT_BYTES_MAX && vectors <= VECTORS_MAX;
            if next.to != self.queue[at].to || len > size || len == 0 || !fits {
                break;
            }
            count += 1;
            if len < size {
                break;
            }
        }
        (count, size)
    }

    /// Builds one header a group; the lists that they point into are complete and stay put.
    fn point(&mut self) {
        self.headers.clear();
        self.controls.clear();
        self.controls.resize(self.groups.len(), Control::EMPTY);
        for (index, group) in self.groups.iter().enumerate() {
            // SAFETY: a message header of zeros is one without name, vectors and control.
            let mut message: mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_name = (&raw mut self.names[index]).cast();
            message.msg_hdr.msg_namelen = group.name_len;
            message.msg_hdr.msg_iov = &raw mut self.vectors[group.vector];
            message.msg_hdr.msg_iovlen = group.vectors;
            if group.datagrams > 1 {
                let size = u16::try_from(group.size).expect("split sizes are below 16 KiB");
                self.controls[index].attach_segment(&mut message.msg_hdr, size);
            }
            self.headers.push(message);
        }
    }
}

fn vector_of(bytes: &[u8]) -> iovec {
    iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// Bytes of a datagram.
pub fn len_of(datagram: &Datagram) -> usize {
    datagram.head.len() + datagram.body.iter().map(|slice| slice.len()).sum::<usize>()
}
