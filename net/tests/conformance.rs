//! What every link must do, run against each of them; and what the transport does over each.

use racos_buffer::{Pool, Slice};
use racos_net::memory::{MemoryConfig, MemoryHub, MemoryLink};
use racos_net::{
    BODY_SLICES_MAX, Datagram, Identity, Lane, Link, Message, Received, Transport, TransportConfig,
    UdpConfig, UdpLink,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Makes links of one kind and lets time pass for them.
trait Network {
    type Link: Link;
    fn link(&mut self) -> Self::Link;
    /// Lets a little time pass and returns it, in ns.
    fn pass(&mut self) -> u64;
}

struct Udp {
    start: std::time::Instant,
    config: UdpConfig,
}

impl Network for Udp {
    type Link = UdpLink;

    fn link(&mut self) -> UdpLink {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        UdpLink::bind(address, self.config.clone()).expect("a free port")
    }

    fn pass(&mut self) -> u64 {
        std::thread::yield_now();
        self.start.elapsed().as_nanos() as u64
    }
}

struct Memory {
    hub: MemoryHub,
    ports: u16,
    now_ns: u64,
}

impl Network for Memory {
    type Link = MemoryLink;

    fn link(&mut self) -> MemoryLink {
        self.ports += 1;
        self.hub.link(SocketAddr::from(([10, 0, 0, 1], self.ports)))
    }

    fn pass(&mut self) -> u64 {
        self.now_ns += 10_000;
        self.hub.advance(self.now_ns);
        self.now_ns
    }
}

fn udp(datagram_max: Option<usize>, offload: bool) -> Udp {
    let config = UdpConfig { datagram_max, offload, ..UdpConfig::default() };
    Udp { start: std::time::Instant::now(), config }
}

/// The buffers that a process without privileges gets on a system as it is installed.
fn udp_small_buffers() -> Udp {
    let config = UdpConfig { socket_buffer_bytes: 416 << 10, ..UdpConfig::default() };
    Udp { config, ..udp(None, true) }
}

fn memory(datagram_max: usize) -> Memory {
    let hub = MemoryHub::new(1, MemoryConfig { datagram_max, ..MemoryConfig::default() });
    Memory { hub, ports: 4000, now_ns: 0 }
}

/// Bytes that differ from place to place and from message to message.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mix = |at: usize| (at as u64 ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0xff51_afd7);
    (0..len).map(|at| (mix(at) >> 24) as u8).collect()
}

/// Receives until `count` datagrams have come.
fn collect<N: Network>(network: &mut N, link: &mut N::Link, count: usize) -> Vec<Received> {
    let mut received = Vec::new();
    for _ in 0..1_000_000 {
        if received.len() >= count {
            break;
        }
        network.pass();
        link.receive(&mut received);
    }
    assert_eq!(received.len(), count, "datagrams arrive on a network without loss");
    received
}

fn queue<L: Link>(link: &mut L, to: SocketAddr, head: &[u8], body: &[Slice]) {
    let mut datagram = Datagram { to, head: link.head(), body: link.body() };
    assert!(datagram.head.is_empty() && datagram.body.is_empty(), "recycled parts are empty");
    datagram.head.extend_from_slice(head);
    datagram.body.extend_from_slice(body);
    link.send(datagram);
}

fn datagrams_arrive_whole_from_their_sender<N: Network>(mut network: N) {
    let (mut a, mut b) = (network.link(), network.link());
    let to = b.local();
    let max = a.datagram_max(to);
    let pool = Pool::new(16 << 20);
    let mut expected = Vec::new();
    for (number, len) in [0, 1, 31, 500, 1000, 1000, 1000, 7, max - 1, max].iter().enumerate() {
        let bytes = pattern(number as u64, *len);
        let head = len / 3;
        let parts: Vec<Slice> = bytes[head..]
            .chunks((len - head).div_ceil(BODY_SLICES_MAX).max(1))
            .map(|part| pool.copy(part).unwrap())
            .collect();
        queue(&mut a, to, &bytes[..head], &parts);
        expected.push(bytes);
    }
    a.flush();
    let mut received: Vec<_> = collect(&mut network, &mut b, expected.len())
        .iter()
        .map(|datagram| {
            assert_eq!(datagram.from, a.local());
            datagram.bytes.to_vec()
        })
        .collect();
    received.sort();
    expected.sort();
    assert!(received == expected, "every datagram arrives as it was sent");
}

fn runs_of_equal_datagrams_stay_apart<N: Network>(mut network: N) {
    let (mut a, mut b, mut c) = (network.link(), network.link(), network.link());
    let mut expected = BTreeMap::new();
    for (to, count, len) in [(b.local(), 50, 1400), (c.local(), 3, 900), (b.local(), 20, 600)] {
        for number in 0..count {
            let bytes = pattern(number, len);
            queue(&mut a, to, &bytes, &[]);
            *expected.entry((to, bytes)).or_insert(0) += 1;
        }
        // A shorter one ends a run.
        queue(&mut a, to, b"end", &[]);
        *expected.entry((to, b"end".to_vec())).or_insert(0) += 1;
    }
    a.flush();
    let mut received = BTreeMap::new();
    for (link, count) in [(&mut b, 72), (&mut c, 4)] {
        for datagram in collect(&mut network, link, count) {
            assert_eq!(datagram.from, a.local());
            *received.entry((link.local(), datagram.bytes.to_vec())).or_insert(0) += 1;
        }
    }
    assert!(received == expected, "each datagram arrives once, at its address only");
}

fn received_bytes_stay_as_they_are_while_held<N: Network>(mut network: N) {
    let (mut a, mut b) = (network.link(), network.link());
    let to = b.local();
    let mut held = Vec::new();
    for round in 0..20 {
        for number in 0..10 {
            queue(&mut a, to, &pattern(round * 10 + number, 1300), &[]);
        }
        a.flush();
        held.extend(collect(&mut network, &mut b, 10));
    }
    let mut expected: Vec<_> = (0..200).map(|number| pattern(number, 1300)).collect();
    let mut received: Vec<_> = held.iter().map(|datagram| datagram.bytes.to_vec()).collect();
    expected.sort();
    received.sort();
    assert!(received == expected, "no buffer is reused while a slice of it is held");
}

fn a_destination_that_is_not_there_is_loss<N: Network>(mut network: N) {
    let (mut a, mut b) = (network.link(), network.link());
    let gone = network.link();
    let nowhere = gone.local();
    drop(gone);
    for round in 0..10 {
        queue(&mut a, nowhere, b"lost", &[]);
        queue(&mut a, b.local(), &[round], &[]);
        queue(&mut a, "[::1]:9".parse().unwrap(), b"other family", &[]);
        a.flush();
        let received = collect(&mut network, &mut b, 1);
        assert_eq!(&*received[0].bytes, &[round]);
    }
}

fn end<L: Link>(link: L, node: Option<u16>) -> Transport<L> {
    let identity = Identity { cluster: 9, node, incarnation: 1, boot: 5, lane: Lane::ONLY };
    Transport::new(link, identity, Pool::new(256 << 20), TransportConfig::default())
}

fn messages_of_every_size_arrive<N: Network>(mut network: N) {
    let (mut a, mut b) = (end(network.link(), Some(1)), end(network.link(), None));
    let (at_a, at_b) = (a.link().local(), b.link().local());
    let pool = Pool::new(256 << 20);
    let max = a.link().datagram_max(at_b);
    let sizes = [0, 1, 100, 8191, 8192, max - 100, max, max + 1, 300_000, 1 << 20, (8 << 20) - 100];
    let mut expected = BTreeMap::new();
    for (number, len) in sizes.iter().enumerate() {
        let body = pattern(number as u64, *len);
        let head = pattern(99, number * 7);
        let parts: Vec<Slice> = body.chunks(100_000).map(|p| pool.copy(p).unwrap()).collect();
        a.send(at_b, number as u8, &head, &parts, 0).unwrap();
        b.send(at_a, number as u8, &head, &parts, 0).unwrap();
        expected.insert(number as u8, (head, body));
    }
    let mut messages: [Vec<Message>; 2] = Default::default();
    for _ in 0..1_000_000 {
        let now_ns = network.pass();
        for (end, into) in [&mut a, &mut b].into_iter().zip(&mut messages) {
            end.receive(now_ns, into);
            end.flush(now_ns);
        }
        let left = a.pending_bytes(at_b) + b.pending_bytes(at_a);
        if left == 0 && messages.iter().all(|messages| messages.len() >= sizes.len()) {
            break;
        }
    }
    for (messages, from, node) in [(&messages[0], at_b, None), (&messages[1], at_a, Some(1))] {
        assert_eq!(messages.len(), sizes.len());
        for message in messages {
            assert_eq!((message.from.address, message.from.node), (from, node));
            let (head, body) = &expected[&message.kind];
            assert!(*message.head == **head && *message.body == **body, "kind {}", message.kind);
            if body.len() > max {
                assert!(message.body.is_aligned(4096));
                assert!(message.body.extend_to(body.len() + 4096).len() > body.len());
            }
        }
    }
    for counters in [a.counters(), b.counters()] {
        assert_eq!(counters.junk_total(), 0);
        assert_eq!((counters.messages_sent, counters.messages_received), (11, 11));
    }
}

fn small_messages_share_datagrams<N: Network>(mut network: N) {
    let (mut a, mut b) = (end(network.link(), Some(1)), end(network.link(), Some(2)));
    let at_b = b.link().local();
    for number in 0..20u8 {
        a.send(at_b, 1, &[number; 40], &[], 0).unwrap();
    }
    a.flush(0);
    assert_eq!(a.counters().datagrams_sent, 1);
    let mut messages = Vec::new();
    for _ in 0..1_000_000 {
        if b.receive(network.pass(), &mut messages) > 0 {
            break;
        }
    }
    let heads: Vec<_> = messages.iter().map(|message| message.head[0]).collect();
    assert_eq!(heads, (0..20).collect::<Vec<u8>>(), "in order within a datagram");
}

macro_rules! conformance {
    ($($name:ident: $network:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn datagrams_arrive_whole_from_their_sender() {
                super::datagrams_arrive_whole_from_their_sender($network);
            }
            #[test]
            fn runs_of_equal_datagrams_stay_apart() {
                super::runs_of_equal_datagrams_stay_apart($network);
            }
            #[test]
            fn received_bytes_stay_as_they_are_while_held() {
                super::received_bytes_stay_as_they_are_while_held($network);
            }
            #[test]
            fn a_destination_that_is_not_there_is_loss() {
                super::a_destination_that_is_not_there_is_loss($network);
            }
            #[test]
            fn messages_of_every_size_arrive() {
                super::messages_of_every_size_arrive($network);
            }
            #[test]
            fn small_messages_share_datagrams() {
                super::small_messages_share_datagrams($network);
            }
        }
    )*};
}

conformance! {
    udp_loopback: udp(None, true);
    udp_ethernet: udp(Some(1472), true);
    udp_without_offload: udp(Some(1472), false);
    udp_small_buffers: udp_small_buffers();
    memory_jumbo: memory(58_368);
    memory_ethernet: memory(1472);
}
