use super::*;
use crate::chunk::SEQUENCE_MAX;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;

const CHUNK: u16 = 256;

fn node(incarnation: u32, boot: u32) -> Sender {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    Sender { address, node: Some(1), incarnation, boot, knows_lanes: true, flags: 0 }
}

fn room() -> Room {
    Room::new(Pool::new(64 << 20), 8 << 20, 4, 16 << 20)
}

fn header(sequence: u64, stream: u32, index: u32) -> ChunkHeader {
    ChunkHeader {
        sequence,
        stream,
        head_len: 100,
        body_len: 700,
        chunk_len: CHUNK,
        kind: 5,
        index,
        stamp: index + 1000,
    }
}

struct Bench {
    inbound: Inbound,
    room: Room,
    counters: Counters,
    now_ns: u64,
}

impl Bench {
    fn new() -> Bench {
        let (inbound, room) = (Inbound::default(), room());
        Bench { inbound, room, counters: Counters::default(), now_ns: 0 }
    }

    /// A chunk of 800 bytes that count up; whether it completed the message.
    fn put(&mut self, from: Sender, header: ChunkHeader) -> bool {
        let range = header.range();
        let bytes: Vec<u8> = range.clone().map(|at| (at % 251) as u8).collect();
        let (first, second) = bytes.split_at(bytes.len() / 3);
        let (room, counters) = (&mut self.room, &mut self.counters);
        let payload = [first, second];
        let done = self.inbound.accept(&from, header, payload, self.now_ns, room, counters);
        if let Some(done) = &done {
            let whole: Vec<u8> = done.head.iter().chain(done.body.iter()).copied().collect();
            assert_eq!(whole, (0..800).map(|at| (at % 251) as u8).collect::<Vec<u8>>());
            assert_eq!((done.kind, done.head.len(), done.body.len()), (5, 100, 700));
        }
        done.is_some()
    }

    fn whole(&mut self, from: Sender, sequence: u64, stream: u32) -> bool {
        let done = [0, 1, 2, 3].map(|index| self.put(from, header(sequence, stream, index)));
        done.contains(&true)
    }

    fn acks(&mut self) -> Vec<(Ack, Vec<u8>)> {
        let mut acks = Vec::new();
        self.inbound.take_acks(1024, |ack, bitmap| acks.push((*ack, bitmap.to_vec())));
        acks
    }
}

#[test]
fn a_message_is_complete_with_its_last_chunk_in_any_order() {
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let mut bench = Bench::new();
        let done = order.map(|index| bench.put(node(1, 1), header(0, 1, index)));
        assert_eq!(done, [false, false, false, true]);
        assert_eq!((bench.room.bytes, bench.inbound.is_idle()), (0, true));
    }
}

#[test]
fn an_acknowledgement_tells_what_is_there_and_is_sent_once() {
    let mut bench = Bench::new();
    for index in [0, 2, 3] {
        bench.put(node(3, 4), header(7, 2, index));
    }
    let acks = bench.acks();
    assert_eq!(acks.len(), 1);
    let (ack, bitmap) = &acks[0];
    assert_eq!((ack.sequence, ack.stream, ack.incarnation, ack.boot), (7, 2, 3, 4));
    assert_eq!((ack.cumulative, ack.echo, ack.done), (1, 1003, false));
    assert_eq!(bitmap, &[0b1101]);
    assert!(!bench.inbound.has_acks() && bench.acks().is_empty());
    bench.put(node(3, 4), header(7, 2, 1));
    let (ack, bitmap) = &bench.acks()[0];
    assert_eq!((ack.done, ack.echo, bitmap.len()), (true, 1001, 0));
}

#[test]
fn a_repeated_chunk_asks_for_the_acknowledgement_again() {
    let mut bench = Bench::new();
    assert!(bench.whole(node(1, 1), 0, 1));
    bench.acks();
    assert!(!bench.whole(node(1, 1), 0, 1));
    let acks = bench.acks();
    assert_eq!(acks.len(), 1);
    assert!(acks[0].0.done);
    assert_eq!(bench.counters.dropped_duplicate, 4);
}

#[test]
fn a_newer_boot_or_stream_begins_anew_and_an_older_one_is_stale() {
    let mut bench = Bench::new();
    assert!(bench.whole(node(1, 5), 0, 3));
    assert!(bench.whole(node(1, 5), 0, 4), "a newer stream");
    assert!(!bench.whole(node(1, 5), 1, 3), "an older stream");
    assert!(bench.whole(node(1, 6), 0, 1), "a newer boot");
    assert!(!bench.whole(node(1, 5), 1, 9), "an older boot");
    assert!(bench.whole(node(2, 0), 0, 1), "a newer incarnation");
    assert_eq!(bench.counters.dropped_stale, 8);
    let client = |boot| Sender { node: None, ..node(1, boot) };
    assert!(bench.whole(client(9), 0, 1));
    assert!(bench.whole(client(2), 0, 1), "the boots of clients have no order");
}

#[test]
fn what_was_half_received_from_an_older_boot_is_let_go() {
    let mut bench = Bench::new();
    bench.put(node(1, 1), header(0, 1, 0));
    assert!(bench.room.bytes > 0 && bench.room.pool.used() > 0);
    assert!(bench.whole(node(1, 2), 0, 1));
    assert_eq!((bench.room.bytes, bench.room.pool.used()), (0, 0));
}

#[test]
fn too_many_at_once_wait_until_one_has_rested() {
    let mut bench = Bench::new();
    for sequence in 0..4 {
        bench.now_ns += 1;
        bench.put(node(1, 1), header(sequence, 1, 0));
    }
    assert!(!bench.whole(node(1, 1), 4, 1));
    assert_eq!(bench.counters.dropped_no_room, 4);
    bench.now_ns += RESTED_NS;
    assert!(bench.whole(node(1, 1), 4, 1));
    assert_eq!(bench.counters.assemblies_expired, 1);
    assert!(!bench.put(node(1, 1), header(0, 1, 3)), "the one that had rested longest");
}

#[test]
fn a_new_attempt_has_a_new_generation() {
    let mut bench = Bench::new();
    bench.put(node(1, 1), header(0, 1, 0));
    let first = bench.acks()[0].0.generation;
    let (room, counters) = (&mut bench.room, &mut bench.counters);
    assert_eq!(bench.inbound.deadline_ns(10), Some(10));
    bench.inbound.expire(10, 10, room, counters);
    assert_eq!(bench.inbound.deadline_ns(10), None);
    bench.put(node(1, 1), header(0, 1, 1));
    let second = bench.acks()[0].0;
    assert!(second.generation > first);
    assert_eq!(second.cumulative, 0);
}

#[test]
fn the_bitmap_is_cut_to_its_limit() {
    let mut bench = Bench::new();
    let long = ChunkHeader { head_len: 0, body_len: 256 * 1000, ..header(0, 1, 999) };
    let (room, counters) = (&mut bench.room, &mut bench.counters);
    let payload = [&[0; 256][..], &[]];
    bench.inbound.accept(&node(1, 1), long, payload, 0, room, counters);
    let mut len = None;
    bench.inbound.take_acks(16, |_, bitmap| len = Some(bitmap.len()));
    assert_eq!(len, Some(16));
}

#[test]
fn the_largest_number_is_remembered() {
    let mut seen = Seen::default();
    seen.insert(SEQUENCE_MAX);
    assert!(matches!(seen.state(SEQUENCE_MAX), State::Done));
    assert!(matches!(seen.state(0), State::Over));
}

proptest! {
    #[test]
    fn the_last_numbers_are_told_apart(steps in proptest::collection::vec(0u64..900, 1..200)) {
        let (mut seen, mut done) = (Seen::default(), BTreeSet::new());
        for step in steps {
            // Within the span below the end, or ahead of it.
            let sequence = (seen.end + step).saturating_sub(700);
            seen.insert(sequence);
            done.insert(sequence);
            for probe in seen.end.saturating_sub(SPAN + 2)..seen.end + 2 {
                let expected = done.contains(&probe);
                match seen.state(probe) {
                    State::Done => prop_assert!(expected, "{probe}"),
                    State::Open => prop_assert!(!expected, "{probe}"),
                    State::Over => prop_assert!(probe + SPAN < seen.end),
                }
            }
        }
    }
}
