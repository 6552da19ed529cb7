//! The transport over a network that loses, duplicates, damages, delays and reorders.

mod support;

use racos_buffer::Pool;
use racos_net::memory::MemoryConfig;
use racos_net::{Counters, SendError, TransportConfig};
use std::collections::BTreeMap;
use support::{World, mix, pattern};

const SECOND_NS: u64 = 1_000_000_000;
const FIFTH: u16 = (65_536 / 5) as u16;

fn storm(datagram_max: usize) -> MemoryConfig {
    MemoryConfig {
        lose: FIFTH,
        duplicate: FIFTH,
        damage: 655,
        delay_ns_min: 20_000,
        delay_ns_max: 1_000_000,
        datagram_max,
        ..MemoryConfig::default()
    }
}

/// Lengths spread evenly over the orders of magnitude up to `max`, 0 among them.
fn length(number: u64, max: usize) -> usize {
    let random = mix(number);
    let bits = random % u64::from(max.ilog2() + 1);
    let len = (1usize << bits) + (random >> 8) as usize % (1 << bits);
    if number.is_multiple_of(50) { 0 } else { len.min(max) }
}

/// `count` messages up to `max` bytes among three ends; returns what each has counted.
fn run_storm(seed: u64, network: MemoryConfig, count: u64, max: usize) -> (u64, Vec<Counters>) {
    let datagram_max = network.datagram_max;
    let mut world = World::new(seed, network);
    for _ in 0..3 {
        world.add(TransportConfig::default());
    }
    let mut expected = BTreeMap::new();
    for number in 0..count {
        let from = number as usize % 3;
        let to = (from + 1 + (mix(number) >> 60) as usize % 2) % 3;
        let body = pattern(number, length(number, max));
        let head = [&number.to_le_bytes()[..], &pattern(number, number as usize % 100)].concat();
        world.send(from, to, (number % 200) as u8, &head, &body);
        expected.insert(number, (from, to, head, body.len(), 0));
        // A bounded number at once, as a caller with flow control does it.
        let to = world.ends[to].address;
        while world.ends[from].transport.pending_bytes(to) > 4 << 20 {
            assert!(world.turn(), "something is under way");
        }
        check(&mut world, &mut expected);
    }
    while world.turn() {
        check(&mut world, &mut expected);
        assert!(world.now_ns < 20 * SECOND_NS, "everything arrives in bounded time");
    }
    for (number, (_, _, head, body_len, times)) in &expected {
        if head.len() + body_len > datagram_max {
            assert_eq!(*times, 1, "large message {number} of {body_len} bytes");
        }
    }
    (world.now_ns, world.ends.iter().map(|end| end.transport.counters()).collect())
}

type Expected = BTreeMap<u64, (usize, usize, Vec<u8>, usize, u32)>;

/// Every message that has arrived is one that was sent, byte for byte, to the right end.
fn check(world: &mut World, expected: &mut Expected) {
    let addresses: Vec<_> = world.ends.iter().map(|end| end.address).collect();
    for (index, end) in world.ends.iter_mut().enumerate() {
        for message in end.messages.drain(..) {
            let number = u64::from_le_bytes(message.head[..8].try_into().unwrap());
            let (from, to, head, body_len, times) = expected.get_mut(&number).expect("was sent");
            assert_eq!((index, message.from.address), (*to, addresses[*from]));
            assert_eq!(message.from.node, Some(*from as u16));
            assert_eq!(message.kind, (number % 200) as u8);
            assert!(*message.head == **head, "head of message {number}");
            assert!(*message.body == *pattern(number, *body_len), "body of message {number}");
            *times += 1;
        }
    }
}

/// tests PROTOCOL 1-c, 12.1-b
#[test]
fn a_thousand_messages_survive_loss_duplication_damage_and_reordering() {
    let (_, counters) = run_storm(1, storm(58_368), 1000, 4 << 20);
    for counters in counters {
        assert!(counters.large_received > 50, "{counters:?}");
        assert!(counters.chunks_retransmitted > 0, "{counters:?}");
        assert!(counters.dropped_duplicate > 0, "{counters:?}");
        assert!(counters.junk_checksum > 0, "{counters:?}");
        assert_eq!(
            counters.junk_total(),
            counters.junk_checksum
                + counters.junk_magic
                + counters.junk_version
                + counters.junk_cluster,
            "{counters:?}"
        );
        assert_eq!(counters.given_up, 0, "{counters:?}");
    }
}

#[test]
fn small_datagrams_survive_the_same() {
    let (_, counters) = run_storm(2, storm(1472), 300, 200_000);
    assert!(counters.iter().all(|counters| counters.large_received > 20), "{counters:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || run_storm(3, storm(58_368), 100, 1 << 20);
    assert_eq!(run(), run());
}

#[test]
fn without_loss_nothing_is_sent_twice() {
    let network = MemoryConfig { delay_ns_max: 40_000, ..MemoryConfig::default() };
    let (_, counters) = run_storm(4, network, 300, 4 << 20);
    for counters in counters {
        assert_eq!(counters.chunks_retransmitted, 0, "{counters:?}");
        assert_eq!(counters.dropped_duplicate, 0, "{counters:?}");
    }
}

#[test]
fn a_restarted_sender_is_not_mistaken_for_the_one_before() {
    let mut world = World::new(5, MemoryConfig::default());
    let (a, b) = (world.add(TransportConfig::default()), world.add(TransportConfig::default()));
    world.send(a, b, 1, b"first boot", &pattern(1, 300_000));
    world.settle(SECOND_NS);
    // Same number, same stream, but half under way when the process is replaced.
    world.send(a, b, 1, b"lost with its sender", &pattern(2, 8 << 20));
    world.pass(60_000);
    world.restart(a, 2, TransportConfig::default());
    world.send(a, b, 1, b"second boot", &pattern(3, 300_000));
    world.settle(20 * SECOND_NS);
    let heads: Vec<_> = world.ends[b].messages.iter().map(|m| m.head.to_vec()).collect();
    assert_eq!(heads, [b"first boot".to_vec(), b"second boot".to_vec()]);
    let boots: Vec<_> = world.ends[b].messages.iter().map(|m| m.from.boot).collect();
    assert_eq!(boots, [1, 2]);
    assert!(*world.ends[b].messages[1].body == *pattern(3, 300_000));
}

#[test]
fn a_receiver_that_restarts_in_the_middle_gets_the_whole_message() {
    let mut world = World::new(6, storm(58_368));
    let (a, b) = (world.add(TransportConfig::default()), world.add(TransportConfig::default()));
    let body = pattern(1, 8 << 20);
    world.send(a, b, 1, b"", &body);
    world.pass(3_000_000);
    assert!(world.ends[b].pool.used() > 0, "half received");
    world.restart(b, 2, TransportConfig::default());
    world.settle(60 * SECOND_NS);
    assert_eq!(world.ends[b].messages.len(), 1);
    assert!(*world.ends[b].messages[0].body == *body);
}

#[test]
fn a_receiver_that_forgot_its_half_gets_the_whole_message() {
    let mut world = World::new(7, MemoryConfig::default());
    let hasty = TransportConfig { assembly_timeout_ns: 50_000_000, ..TransportConfig::default() };
    let (a, b) = (world.add(TransportConfig::default()), world.add(hasty));
    let body = pattern(1, 8 << 20);
    world.send(a, b, 1, b"", &body);
    world.pass(100_000);
    let (from, to) = (world.ends[a].address, world.ends[b].address);
    world.hub.block(from, to, true);
    world.pass(SECOND_NS);
    assert_eq!(world.ends[b].transport.counters().assemblies_expired, 1);
    assert_eq!(world.ends[b].pool.used(), 0);
    world.hub.block(from, to, false);
    world.settle(20 * SECOND_NS);
    assert!(*world.ends[b].messages[0].body == *body);
    assert_eq!(world.ends[a].transport.counters().given_up, 0);
}

#[test]
fn a_silent_peer_is_given_up_and_slows_nobody() {
    let run = |silent: bool| {
        let mut world = World::new(8, MemoryConfig::default());
        let ends: Vec<_> = (0..3).map(|_| world.add(TransportConfig::default())).collect();
        let (from, to) = (world.ends[ends[0]].address, world.ends[ends[1]].address);
        world.hub.block(from, to, true);
        if silent {
            for number in 0..10 {
                world.send(ends[0], ends[1], 1, b"", &pattern(number, 1 << 20));
            }
        }
        for number in 0..10 {
            world.send(ends[0], ends[2], 1, b"", &pattern(number, 1 << 20));
        }
        let start_ns = world.now_ns;
        while world.ends[ends[2]].messages.len() < 10 {
            assert!(world.turn());
        }
        let took_ns = world.now_ns - start_ns;
        world.settle(10 * SECOND_NS);
        (took_ns, world)
    };
    let (undisturbed_ns, _) = run(false);
    let (took_ns, world) = run(true);
    assert!(took_ns <= undisturbed_ns + 40_000, "{took_ns} against {undisturbed_ns}");
    let counters = world.ends[0].transport.counters();
    assert_eq!((counters.large_sent, counters.given_up), (10, 10));
    assert_eq!(world.ends[0].pool.used(), 0, "the bodies are let go");
    assert_eq!(world.ends[0].transport.pending_bytes(world.ends[1].address), 0);
}

#[test]
fn what_is_under_way_stays_within_the_window() {
    for lose in [0, FIFTH] {
        let network = MemoryConfig { lose, ..MemoryConfig::default() };
        let mut world = World::new(9, network);
        let mut config = TransportConfig::default();
        config.pace.window_max = 2 << 20;
        let (a, b) = (world.add(config.clone()), world.add(config.clone()));
        for number in 0..30 {
            world.send(a, b, 1, b"", &pattern(number, 2 << 20));
        }
        while world.turn() {
            // With the headers of the chunks and the acknowledgements, which the window leaves out.
            assert!(world.hub.bytes_on_the_way() <= (2 << 20) + (16 << 10));
        }
        assert_eq!(world.ends[b].messages.len(), 30);
    }
}

#[test]
fn small_messages_overtake_large_ones_and_large_ones_take_turns() {
    let mut world = World::new(10, MemoryConfig::default());
    let (a, b) = (world.add(TransportConfig::default()), world.add(TransportConfig::default()));
    for number in 0..4 {
        world.send(a, b, 1, b"large", &pattern(number, 8 << 20));
    }
    world.send(a, b, 1, b"middle", &pattern(9, 200_000));
    world.send(a, b, 1, b"small", b"");
    world.turn();
    world.turn();
    assert_eq!(&*world.ends[b].messages[0].head, b"small", "in the first turn");
    world.settle(10 * SECOND_NS);
    assert_eq!(&*world.ends[b].messages[1].head, b"middle");
    assert_eq!(world.ends[b].messages.len(), 6);
}

#[test]
fn at_the_edge_of_a_datagram_every_length_arrives() {
    for datagram_max in [1472, 58_368] {
        let network = MemoryConfig { datagram_max, ..MemoryConfig::default() };
        let mut world = World::new(15, network);
        let (a, b) = (world.add(TransportConfig::default()), world.add(TransportConfig::default()));
        for head in 0..10 {
            for body in datagram_max - 80..datagram_max {
                world.send(a, b, 1, &pattern(1, head), &pattern(2, body));
                world.settle(SECOND_NS);
                let messages = &mut world.ends[b].messages;
                assert!(*messages[0].head == *pattern(1, head), "{head} and {body} bytes");
                assert!(*messages[0].body == *pattern(2, body), "{head} and {body} bytes");
                messages.clear();
            }
        }
        let counters = world.ends[b].transport.counters();
        assert!((100..700).contains(&counters.large_received), "on both sides of the edge");
    }
}

#[test]
fn what_exceeds_a_limit_is_refused_with_a_reason() {
    let mut world = World::new(11, MemoryConfig::default());
    let config = TransportConfig { pending_bytes_max: 4 << 20, ..TransportConfig::default() };
    let (a, b) = (world.add(config), world.add(TransportConfig::default()));
    let to = world.ends[b].address;
    let pool = Pool::new(64 << 20);
    let mut send = |head: usize, body: usize| {
        let body = pool.get(body).unwrap().freeze();
        world.ends[a].transport.send(to, 1, &vec![0; head], &[body], 0)
    };
    assert_eq!(send(65_537, 0), Err(SendError::HeadTooLarge { len: 65_537 }));
    let max = (8 << 20) + 65_536;
    assert_eq!(send(1, max), Err(SendError::TooLarge { len: max + 1, max }));
    assert_eq!(send(65_536, 3 << 20), Ok(()));
    let pending_bytes = (3 << 20) + 65_536;
    assert_eq!(send(0, 1 << 20), Err(SendError::Backlog { to, pending_bytes }));
    assert_eq!(world.ends[a].transport.pending_bytes(to), pending_bytes);
    world.settle(SECOND_NS);
    assert_eq!(world.ends[b].messages[0].head.len(), 65_536);
    assert_eq!(pool.used(), 0);
}

/// tests PROTOCOL 9.4-e
#[test]
fn a_receiver_without_room_makes_the_sender_wait() {
    let mut world = World::new(12, MemoryConfig::default());
    let tight = TransportConfig {
        assembly_bytes_max: 2 << 20,
        assemblies_max: 2,
        ..TransportConfig::default()
    };
    let (a, b) = (world.add(TransportConfig::default()), world.add(tight));
    for number in 0..10 {
        world.send(a, b, 1, b"", &pattern(number, 1 << 20));
    }
    world.settle(60 * SECOND_NS);
    assert_eq!(world.ends[b].messages.len(), 10);
    let counters = world.ends[b].transport.counters();
    assert!(counters.dropped_no_room > 0, "{counters:?}");
}

#[test]
fn what_the_receiver_will_never_take_is_given_up() {
    let mut world = World::new(13, MemoryConfig::default());
    let narrow = TransportConfig { message_bytes_max: 1 << 20, ..TransportConfig::default() };
    let (a, b) = (world.add(TransportConfig::default()), world.add(narrow));
    world.send(a, b, 1, b"too large", &pattern(1, 2 << 20));
    world.send(a, b, 1, b"fits", &pattern(2, 1_000_000));
    world.settle(10 * SECOND_NS);
    assert_eq!(world.ends[b].messages.len(), 1);
    assert!(world.ends[b].transport.counters().dropped_too_large > 0);
    assert_eq!(world.ends[a].transport.counters().given_up, 1);
}

#[test]
fn peers_come_and_go_without_end() {
    let mut world = World::new(14, MemoryConfig::default());
    let config = TransportConfig { peers_max: 4, ..TransportConfig::default() };
    let server = world.add(config);
    let clients: Vec<_> = (0..12).map(|_| world.add(TransportConfig::default())).collect();
    for round in 0..3u64 {
        for client in &clients {
            world.send(*client, server, 1, b"up", &pattern(round, 100_000));
            world.settle(SECOND_NS);
            world.send(server, *client, 1, b"down", &pattern(round, 100_000));
            world.settle(SECOND_NS);
        }
    }
    assert_eq!(world.ends[server].messages.len(), 36);
    assert!(clients.iter().all(|client| world.ends[*client].messages.len() == 3));
    assert!(world.ends[server].transport.counters().peers_evicted >= 32);
}
