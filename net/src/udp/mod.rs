//! Datagrams over UDP, with as few system calls as Linux allows.
//!
//! Purpose: one socket that receives into pooled buffers with `recvmmsg` and sends gathered slices
//! with `sendmmsg`; the kernel splits and joins runs of equal datagrams where it can (GSO, GRO).
//!
//! Invariant: nothing here waits, except [`UdpLink::bind`]; what the kernel refuses counts as loss.
//! What would break it: memory that a system call is pointed at and that moves or is freed during
//! the call. This module and those below it are the only ones of the crate with `unsafe`.

mod address;
mod options;
mod receive;
mod send;

pub use receive::ReceiveCounts;
pub use send::SendCounts;

use crate::link::{Datagram, Link, Received};
use racos_buffer::Slice;
use receive::Receiver;
use send::SendQueue;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// A payload of 56 KiB, which the loopback device carries whole, and its headers.
const LOOPBACK_DATAGRAM_MAX: usize = (56 << 10) + 1024;
/// Largest payload of a UDP datagram over IPv4.
const UDP_PAYLOAD_MAX: usize = 65_507;
const BIND_PAUSE: Duration = Duration::from_millis(20);

/// How a [`UdpLink`] is set up.
#[derive(Debug, Clone)]
pub struct UdpConfig {
    /// Size wanted for the socket's receive and send buffers. Without CAP_NET_ADMIN the system's
    /// limits (`net.core.rmem_max`, `wmem_max`) hold; [`UdpLink::describe`] says what came of it.
    pub socket_buffer_bytes: usize,
    /// Most bytes of receive buffers that may be in use, also by those who hold on to received slices.
    pub receive_pool_bytes: usize,
    /// Most messages that one call receives.
    pub receive_batch: usize,
    /// What the network towards other hosts carries, IP header included.
    pub mtu: usize,
    /// Overrides the datagram size that follows from `mtu`, or from the loopback device.
    pub datagram_max: Option<usize>,
    /// How often binding is tried, 20 ms apart, while the port is in use: it stays bound for a while
    /// after its process was killed with work in an io_uring.
    pub bind_tries: u32,
    /// Whether the kernel may split and join datagrams if it can.
    pub offload: bool,
}

impl Default for UdpConfig {
    fn default() -> UdpConfig {
        UdpConfig {
            socket_buffer_bytes: 64 << 20,
            receive_pool_bytes: 32 << 20,
            receive_batch: 64,
            mtu: 1500,
            datagram_max: None,
            bind_tries: 100,
            offload: true,
        }
    }
}

/// A [`Link`] over one UDP socket.
pub struct UdpLink {
    socket: UdpSocket,
    local: SocketAddr,
    config: UdpConfig,
    receiver: Receiver,
    queue: SendQueue,
    receive_buffer: usize,
    send_buffer: usize,
    joining: bool,
}

impl UdpLink {
    /// Opens and binds the socket. Waits for up to `bind_tries` x 20 ms while the port is in use.
    pub fn bind(address: SocketAddr, config: UdpConfig) -> io::Result<UdpLink> {
        let socket = bind_patiently(address, config.bind_tries)?;
        let local = socket.local_addr()?;
        let fd = socket.as_raw_fd();
        let receive_buffer = options::set_buffer(fd, true, config.socket_buffer_bytes);
        let send_buffer = options::set_buffer(fd, false, config.socket_buffer_bytes);
        let joining = config.offload && options::enable_joining(fd);
        let splitting = config.offload && options::can_split(fd);
        let batch = config.receive_batch.max(1);
        Ok(UdpLink {
            local,
            receiver: Receiver::new(batch, config.receive_pool_bytes),
            queue: SendQueue::new(local.is_ipv6(), splitting),
            receive_buffer,
            send_buffer,
            joining,
            config,
            socket,
        })
    }

    /// The socket, for a loop that sleeps until it is readable.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// What is in use, in a line for people.
    pub fn describe(&self) -> String {
        let yes_no = |yes: bool| if yes { "yes" } else { "no" };
        let wanted = self.config.socket_buffer_bytes;
        let short = if self.receive_buffer < wanted {
            format!(" (wanted {} KiB: raise net.core.rmem_max)", wanted >> 10)
        } else {
            String::new()
        };
        format!(
            "udp {}: kernel splits {}, joins {}; socket buffers {} KiB in{short}, {} KiB out; \
             {} messages a call",
            self.local,
            yes_no(self.queue.split),
            yes_no(self.joining),
            self.receive_buffer >> 10,
            self.send_buffer >> 10,
            self.config.receive_batch,
        )
    }

    pub fn receive_counts(&self) -> ReceiveCounts {
        self.receiver.counts
    }

    pub fn send_counts(&self) -> SendCounts {
        self.queue.counts
    }
}

impl AsFd for UdpLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Link for UdpLink {
    fn send(&mut self, datagram: Datagram) {
        if self.queue.is_full() {
            self.flush();
        }
        debug_assert!(
            send::len_of(&datagram) <= self.datagram_max(datagram.to),
            "a datagram above the limit of its destination"
        );
        self.queue.push(datagram);
    }

    fn flush(&mut self) {
        self.queue.flush(self.socket.as_raw_fd());
    }

    fn receive(&mut self, into: &mut Vec<Received>) -> usize {
        self.receiver.receive(self.socket.as_raw_fd(), into)
    }

    fn datagram_max(&self, to: SocketAddr) -> usize {
        let headers = if to.is_ipv4() { 28 } else { 48 };
        let size = match self.config.datagram_max {
            Some(size) => size,
            None if is_own(to.ip(), self.local.ip()) => LOOPBACK_DATAGRAM_MAX,
            None => self.config.mtu.saturating_sub(headers),
        };
        size.clamp(512, UDP_PAYLOAD_MAX)
    }

    fn head(&mut self) -> Vec<u8> {
        self.queue.head()
    }

    fn body(&mut self) -> Vec<Slice> {
        self.queue.body()
    }

    fn local(&self) -> SocketAddr {
        self.local
    }
}

/// Whether packets to `to` stay on the loopback device.
fn is_own(to: IpAddr, local: IpAddr) -> bool {
    to.is_loopback() || (to == local && !to.is_unspecified())
}

fn bind_patiently(address: SocketAddr, tries: u32) -> io::Result<UdpSocket> {
    let mut tried = 1;
    loop {
        match UdpSocket::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tried < tries => {
                tried += 1;
                std::thread::sleep(BIND_PAUSE);
            }
            Err(error) => {
                let text = format!("cannot bind UDP {address} after {tried} tries: {error}");
                return Err(io::Error::new(error.kind(), text));
            }
            Ok(socket) => return Ok(socket),
        }
    }
}

#[cfg(test)]
mod tests;
