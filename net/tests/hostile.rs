//! Whatever the network delivers: counted by reason, never a panic, never more memory than allowed,
//! and never in the way of what is genuine.

mod support;

use proptest::prelude::*;
use racos_buffer::{Pool, Slice};
use racos_net::chunk::{Ack, ChunkHeader, KIND_ACK, KIND_CHUNK};
use racos_net::frame;
use racos_net::memory::MemoryConfig;
use racos_net::{Counters, Identity, Lane, TransportConfig};
use std::net::SocketAddr;
use support::{CLUSTER, World, pattern};

const NOW_NS: u64 = 1_000_000;

fn stranger() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 66], 666))
}

/// A world of one end that has met `datagrams`, and the counts of what it made of them.
fn meet(datagrams: &[Vec<u8>]) -> (World, Counters) {
    let mut world = World::new(1, MemoryConfig::default());
    world.add(TransportConfig::default());
    let end = &mut world.ends[0];
    for datagram in datagrams {
        world.hub.inject(stranger(), end.address, datagram);
        end.transport.receive(NOW_NS, &mut end.messages);
        end.transport.flush(NOW_NS);
    }
    let counters = world.ends[0].transport.counters();
    (world, counters)
}

fn counter(counters: &Counters, name: &str) -> u64 {
    match name {
        "junk_short" => counters.junk_short,
        "junk_magic" => counters.junk_magic,
        "junk_version" => counters.junk_version,
        "junk_cluster" => counters.junk_cluster,
        "junk_checksum" => counters.junk_checksum,
        "junk_frame" => counters.junk_frame,
        "junk_kind" => counters.junk_kind,
        "junk_chunk" => counters.junk_chunk,
        "junk_ack" => counters.junk_ack,
        "acks_received" => counters.acks_received,
        "dropped_too_large" => counters.dropped_too_large,
        "dropped_duplicate" => counters.dropped_duplicate,
        _ => panic!("the corpus names an unknown counter: {name}"),
    }
}

/// tests PROTOCOL 1-c
#[test]
fn every_datagram_of_the_corpus_meets_its_end() {
    let corpus = include_str!("corpus/datagrams.txt");
    let mut lines = 0;
    for line in corpus.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [name, expected, hex] = fields[..] else { panic!("three fields: {line}") };
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
            .collect();
        let (world, counters) = meet(&[bytes]);
        let (mut junk, mut accepted) = (0, 0);
        let mut words = expected.split(' ');
        while let Some(word) = words.next() {
            if word == "accepted" {
                accepted = words.next().expect("a number").parse().expect("a number");
                continue;
            }
            assert_eq!(counter(&counters, word), 1, "{name}: {counters:?}");
            junk += u64::from(word.starts_with("junk"));
        }
        assert_eq!(world.ends[0].messages.len(), accepted, "{name}");
        assert_eq!(counters.junk_total(), junk, "{name}: {counters:?}");
        lines += 1;
    }
    assert!(lines >= 40, "the corpus is complete");
}

fn sealed(boot: u32, node: Option<u16>, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let identity = Identity { cluster: CLUSTER, node, incarnation: 1, boot, lane: Lane::ONLY };
    let mut bytes = frame::header(&identity).to_vec();
    fill(&mut bytes);
    frame::seal(&mut bytes, &[]);
    bytes
}

/// Chunks that are consistent in themselves, of few messages, streams and boots, so that they meet.
fn some_chunk() -> impl Strategy<Value = Vec<u8>> {
    let place = (0u64..6, 0u32..3, 0u32..3, 0u32..8, any::<u32>());
    let shape =
        (0u32..600, prop_oneof![0u32..3000, (9u32 << 20)..=u32::MAX], 250u16..700, 0u8..=255);
    (place, shape, any::<bool>()).prop_map(|(place, shape, is_node)| {
        let (sequence, stream, boot, index, stamp) = place;
        let (head_len, body_len, chunk_len, kind) = shape;
        let header =
            ChunkHeader { sequence, stream, head_len, body_len, chunk_len, kind, index, stamp };
        let payload = vec![kind; header.range().len().min(700)];
        sealed(boot, is_node.then_some(3), |bytes| {
            frame::append(bytes, KIND_CHUNK, [&header.write(), &payload], Some(&[]), 0);
        })
    })
}

fn some_ack() -> impl Strategy<Value = Vec<u8>> {
    let numbers = (0u64..4, 0u32..3, 0u32..3, 0u32..3, any::<u32>());
    let place = (prop_oneof![0u32..40, any::<u32>()], any::<bool>(), 0u32..3);
    let bitmap = proptest::collection::vec(any::<u8>(), 0..40);
    (numbers, place, bitmap).prop_map(|(numbers, place, bitmap)| {
        let (sequence, stream, boot, generation, echo) = numbers;
        let (cumulative, done, from_boot) = place;
        let incarnation = 1;
        let ack = Ack { sequence, stream, incarnation, boot, generation, echo, cumulative, done };
        sealed(from_boot, Some(9), |bytes| {
            frame::append(bytes, KIND_ACK, [&ack.write(), &bitmap], Some(&[]), 0);
        })
    })
}

fn some_message() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    (any::<u8>(), bytes(), bytes(), any::<u16>()).prop_map(|(kind, head, body, node)| {
        let body: &[Slice] = &[Pool::new(8192).copy(&body).expect("small")];
        sealed(1, Some(node), |bytes| {
            frame::append(bytes, kind, [&head, &[]], Some(body), body[0].len());
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn noise_is_counted(noise in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let (world, counters) = meet(&[noise]);
        prop_assert_eq!(counters.junk_total(), 1);
        prop_assert!(world.ends[0].messages.is_empty());
    }

    #[test]
    fn noise_in_a_valid_envelope_does_no_harm(
        noise in proptest::collection::vec(prop_oneof![0u8..9, 0xefu8..=0xff, any::<u8>()], 0..400),
        frames_len in prop_oneof![0u32..400, any::<u32>()],
    ) {
        let mut bytes = sealed(1, Some(2), |bytes| bytes.extend_from_slice(&noise));
        bytes[12..16].copy_from_slice(&(frames_len / 8 * 8).to_le_bytes());
        let checksum = crc32fast::hash(&bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        let (_, counters) = meet(&[bytes]);
        prop_assert_eq!(counters.junk_short + counters.junk_checksum, 0);
    }

    #[test]
    fn a_changed_byte_is_noticed(message in some_message(), at in any::<usize>(), by in 1u8..=255) {
        let mut message = message;
        let at = at % message.len();
        message[at] ^= by;
        let (world, counters) = meet(&[message]);
        prop_assert_eq!(counters.junk_total(), 1);
        prop_assert!(world.ends[0].messages.is_empty());
    }

    #[test]
    fn chunks_in_any_order_stay_within_bounds_and_are_let_go(
        chunks in proptest::collection::vec(some_chunk(), 0..120),
    ) {
        let (mut world, counters) = meet(&chunks);
        prop_assert_eq!(counters.datagrams_received, chunks.len() as u64);
        let end = &mut world.ends[0];
        let handed_out: usize = end.messages.iter().map(|m| 2 * 8192 + m.body.len() * 2).sum();
        prop_assert!(end.pool.used() <= handed_out + 64 * (32 << 10), "{}", end.pool.used());
        end.messages.clear();
        world.pass(11_000_000_000);
        prop_assert_eq!(world.ends[0].pool.used(), 0);
    }

    /// Forged acknowledgements from the peer's own address may end a message early or send chunks
    /// again; the transport stays consistent and serves the next message.
    #[test]
    fn forged_acknowledgements_break_nothing(
        acks in proptest::collection::vec(some_ack(), 0..60),
        blocked in any::<bool>(),
    ) {
        let mut world = World::new(1, MemoryConfig::default());
        let (a, b) =
            (world.add(TransportConfig::default()), world.add(TransportConfig::default()));
        let (at_a, at_b) = (world.ends[a].address, world.ends[b].address);
        for number in 0..3 {
            world.send(a, b, 1, b"attacked", &pattern(number, 900_000));
        }
        world.hub.block(at_a, at_b, blocked);
        for ack in &acks {
            world.hub.inject(at_b, at_a, ack);
            world.turn();
        }
        world.hub.block(at_a, at_b, false);
        world.settle(30_000_000_000);
        prop_assert_eq!(world.ends[a].transport.pending_bytes(at_b), 0);
        prop_assert_eq!(world.ends[a].pool.used(), 0);
        world.send(a, b, 2, b"after", &pattern(7, 900_000));
        world.settle(30_000_000_000);
        let after: Vec<_> = world.ends[b].messages.iter().filter(|m| m.kind == 2).collect();
        prop_assert_eq!(after.len(), 1);
        prop_assert!(*after[0].body == *pattern(7, 900_000));
    }
}

#[test]
fn genuine_messages_pass_between_forged_ones() {
    let mut world = World::new(1, MemoryConfig::default());
    let (a, b) = (world.add(TransportConfig::default()), world.add(TransportConfig::default()));
    let to = world.ends[b].address;
    world.send(a, b, 1, b"genuine", &pattern(1, 4 << 20));
    let mut number = 0;
    while world.ends[b].messages.is_empty() {
        assert!(world.turn());
        // Each opens an assembly that will never be complete.
        let header = ChunkHeader {
            sequence: number,
            stream: 1,
            head_len: 0,
            body_len: 1 << 20,
            chunk_len: 512,
            kind: 1,
            index: 7,
            stamp: 0,
        };
        let forged = sealed(1, None, |bytes| {
            frame::append(bytes, KIND_CHUNK, [&header.write(), &[0; 512]], Some(&[]), 0);
        });
        for port in 0..10 {
            world.hub.inject(SocketAddr::from(([10, 6, 6, 6], port)), to, &forged);
        }
        number += 1;
    }
    assert!(*world.ends[b].messages[0].body == *pattern(1, 4 << 20));
    assert!(world.ends[b].pool.used() < 300 << 20);
}
