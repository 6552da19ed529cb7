use super::*;
use racos_buffer::Pool;

const CHUNK: usize = 1000;
const STREAM: u32 = 7;
const RECEIVER: u32 = 3;

fn outbound() -> Outbound {
    Outbound::new(STREAM, PaceConfig::default())
}

fn push(outbound: &mut Outbound, len: usize, now_ns: u64) {
    let body = Pool::new(64 << 20).get(len).unwrap().freeze();
    outbound.push(Outgoing::default(), 1, &[], &[body], CHUNK, now_ns);
}

/// Everything that may leave at that time, as (message, chunk, again).
fn drain(outbound: &mut Outbound, now_ns: u64) -> Vec<(u64, u32, bool)> {
    let mut sent = Vec::new();
    while let Some(next) = outbound.next_chunk(now_ns) {
        sent.push((next.header.sequence, next.header.index, next.again));
    }
    sent
}

fn ack(sequence: u64, cumulative: u32, sent_ns: u64) -> Ack {
    Ack {
        sequence,
        stream: STREAM,
        incarnation: 1,
        boot: 1,
        generation: 1,
        echo: stamp_of(sent_ns),
        cumulative,
        done: false,
    }
}

fn losses(outbound: &mut Outbound, now_ns: u64) -> usize {
    let mut over = Vec::new();
    outbound.check_losses(now_ns, 5_000_000_000, &mut over);
    over.len()
}

#[test]
fn messages_take_turns_chunk_by_chunk() {
    let mut outbound = outbound();
    push(&mut outbound, 3 * CHUNK, 0);
    push(&mut outbound, CHUNK, 0);
    push(&mut outbound, 2 * CHUNK, 0);
    let order: Vec<_> = drain(&mut outbound, 0).iter().map(|(m, c, _)| (*m, *c)).collect();
    assert_eq!(order, [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2)]);
    assert_eq!(outbound.pace.in_flight(), 6 * CHUNK);
}

#[test]
fn the_window_bounds_what_is_under_way() {
    let mut outbound = outbound();
    for _ in 0..4 {
        push(&mut outbound, 1 << 20, 0);
    }
    let sent = drain(&mut outbound, 0).len();
    assert_eq!(sent, (1 << 20) / CHUNK);
    assert!(outbound.pace.in_flight() <= outbound.pace.window());
}

#[test]
fn only_the_chunk_that_was_overtaken_is_sent_again() {
    let mut outbound = outbound();
    push(&mut outbound, 4 * CHUNK, 0);
    assert_eq!(drain(&mut outbound, 0).len(), 4);
    push(&mut outbound, 4 * CHUNK, 1_000_000);
    assert_eq!(drain(&mut outbound, 1_000_000).len(), 4);
    // Chunk 1 of message 0 is missing; a chunk of message 1, sent later, has arrived.
    outbound.acknowledged(&ack(0, 1, 0), &[0b1101], RECEIVER, 1_500_000);
    outbound.acknowledged(&ack(1, 2, 1_000_000), &[], RECEIVER, 1_600_000);
    assert_eq!(losses(&mut outbound, 1_600_000), 0);
    assert_eq!(drain(&mut outbound, 1_600_000), [(0, 1, true)]);
    assert_eq!(outbound.pace.in_flight(), 3 * CHUNK);
    assert!(outbound.pace.window() < 1 << 20, "a loss shrinks the window");
}

#[test]
fn silence_sends_again_what_was_not_acknowledged() {
    let mut outbound = outbound();
    push(&mut outbound, 3 * CHUNK, 0);
    drain(&mut outbound, 0);
    outbound.acknowledged(&ack(0, 1, 0), &[], RECEIVER, 1_000_000);
    let deadline_ns = outbound.deadline_ns(5_000_000_000).unwrap();
    losses(&mut outbound, deadline_ns - 1);
    assert!(drain(&mut outbound, deadline_ns - 1).is_empty());
    losses(&mut outbound, deadline_ns);
    assert_eq!(drain(&mut outbound, deadline_ns), [(0, 1, true), (0, 2, true)]);
}

/// 20 chunks sent at time 0, and the time of the first timeout, at which probes have left.
fn probed() -> (Outbound, u64) {
    let mut outbound = outbound();
    push(&mut outbound, 20 * CHUNK, 0);
    assert_eq!(drain(&mut outbound, 0).len(), 20);
    let now_ns = outbound.deadline_ns(5_000_000_000).unwrap();
    losses(&mut outbound, now_ns);
    assert_eq!(drain(&mut outbound, now_ns), [(0, 0, true), (0, 1, true)]);
    losses(&mut outbound, now_ns);
    assert!(drain(&mut outbound, now_ns).is_empty(), "once a timeout");
    (outbound, now_ns)
}

#[test]
fn a_peer_that_was_only_slow_is_sent_no_more_than_probes() {
    let (mut outbound, now_ns) = probed();
    let now_ns = now_ns + 1_000_000;
    outbound.acknowledged(&ack(0, 15, 0), &[], RECEIVER, now_ns);
    losses(&mut outbound, now_ns);
    assert!(drain(&mut outbound, now_ns).is_empty());
    assert_eq!(outbound.pace.window(), 1 << 20, "nothing was lost");
}

#[test]
fn a_probe_that_arrives_alone_shows_that_the_rest_was_lost() {
    let (mut outbound, probed_ns) = probed();
    let now_ns = probed_ns + 1_000_000;
    outbound.acknowledged(&ack(0, 2, probed_ns), &[], RECEIVER, now_ns);
    losses(&mut outbound, now_ns);
    let again: Vec<_> = drain(&mut outbound, now_ns).iter().map(|(_, c, _)| *c).collect();
    assert_eq!(again, (2..20).collect::<Vec<u32>>());
    assert_eq!(outbound.pace.window(), 1 << 19);
}

#[test]
fn a_receiver_that_begins_anew_is_sent_everything_again() {
    for (generation, boot) in [(2, RECEIVER), (1, RECEIVER + 1), (1, RECEIVER - 1)] {
        let mut outbound = outbound();
        push(&mut outbound, 4 * CHUNK, 0);
        drain(&mut outbound, 0);
        outbound.acknowledged(&ack(0, 3, 0), &[], RECEIVER, 1000);
        let anew = Ack { generation, ..ack(0, 0, 0) };
        outbound.acknowledged(&anew, &[0b1000], boot, 2000);
        let sent: Vec<_> = drain(&mut outbound, 2000).iter().map(|(_, c, _)| *c).collect();
        assert_eq!(sent, [0, 1, 2], "generation {generation} of boot {boot}");
    }
}

#[test]
fn a_late_acknowledgement_of_an_earlier_attempt_is_ignored() {
    let mut outbound = outbound();
    push(&mut outbound, 4 * CHUNK, 0);
    drain(&mut outbound, 0);
    outbound.acknowledged(&Ack { generation: 2, ..ack(0, 1, 0) }, &[], RECEIVER, 1000);
    outbound.acknowledged(&ack(0, 3, 0), &[], RECEIVER, 2000);
    assert_eq!(outbound.pace.in_flight(), 3 * CHUNK);
    assert!(drain(&mut outbound, 2000).is_empty());
}

#[test]
fn an_acknowledged_message_is_over_and_lets_go() {
    let mut outbound = outbound();
    let pool = Pool::new(1 << 20);
    let body = pool.get(2 * CHUNK).unwrap().freeze();
    outbound.push(Outgoing::default(), 1, b"head", &[body], CHUNK, 0);
    push(&mut outbound, CHUNK, 0);
    assert_eq!(outbound.pending_bytes(), 3 * CHUNK + 4);
    drain(&mut outbound, 0);
    let done = Ack { done: true, ..ack(0, 0, 0) };
    let over = outbound.acknowledged(&done, &[], RECEIVER, 1000).expect("over");
    assert_eq!(over.release().len(), 0);
    assert_eq!(pool.used(), 0);
    assert_eq!((outbound.pending_bytes(), outbound.pace.in_flight()), (CHUNK, CHUNK));
    assert!(outbound.acknowledged(&done, &[], RECEIVER, 1000).is_none(), "once");
    outbound.acknowledged(&Ack { done: true, ..ack(1, 0, 0) }, &[], RECEIVER, 1000);
    assert!(outbound.is_idle());
    assert_eq!(outbound.deadline_ns(1), None);
}

#[test]
fn acknowledgements_of_what_was_never_sent_change_nothing() {
    let mut outbound = outbound();
    for _ in 0..STARTED_MAX + 1 {
        push(&mut outbound, 100 * CHUNK, 0);
    }
    let sent = drain(&mut outbound, 0).iter().filter(|(message, ..)| *message == 1).count();
    assert!((1..100).contains(&sent));
    let in_flight = outbound.pace.in_flight();
    let waiting = STARTED_MAX as u64;
    for sequence in [waiting, waiting + 1, u64::MAX] {
        let done = Ack { done: true, ..ack(sequence, 0, 0) };
        assert!(outbound.acknowledged(&done, &[], RECEIVER, 1).is_none());
    }
    outbound.acknowledged(&ack(0, 100, 0), &[255; 100], RECEIVER, 1);
    outbound.acknowledged(&ack(0, u32::MAX, 0), &[255; 100], RECEIVER, 1);
    outbound.acknowledged(&Ack { stream: 8, ..ack(0, 1, 0) }, &[], RECEIVER, 1);
    assert_eq!(outbound.pace.in_flight(), in_flight);
    outbound.acknowledged(&ack(1, 1, 0), &[255; 100], RECEIVER, 1);
    let rest = outbound.pace.in_flight();
    assert_eq!((in_flight - rest) / CHUNK, sent, "no more than was sent of it");
}

#[test]
fn what_is_not_acknowledged_is_given_up_at_last() {
    let mut outbound = outbound();
    for _ in 0..3 {
        push(&mut outbound, 2 << 20, 0);
    }
    let (mut now_ns, mut over, mut turns) = (0, 0, 0);
    while !outbound.is_idle() {
        drain(&mut outbound, now_ns);
        now_ns = outbound.deadline_ns(5_000_000_000).unwrap().max(now_ns + 1);
        over += losses(&mut outbound, now_ns);
        turns += 1;
        assert!(turns < 1000, "the timeout doubles");
    }
    assert_eq!(over, 3);
    assert!((5_000_000_000..5_300_000_000).contains(&now_ns), "{now_ns}");
    assert_eq!((outbound.pending_bytes(), outbound.pace.in_flight()), (0, 0));
}

#[test]
fn the_list_of_flights_stays_bounded_behind_a_lost_chunk() {
    let mut outbound = outbound();
    push(&mut outbound, 2 * CHUNK, 0);
    drain(&mut outbound, 0);
    // The first message is never acknowledged; others come and go at the same instant.
    for sequence in 1..20_000 {
        push(&mut outbound, CHUNK, 0);
        drain(&mut outbound, 0);
        outbound.acknowledged(&Ack { done: true, ..ack(sequence, 0, 0) }, &[], RECEIVER, 0);
        if sequence == SPAN - 1 {
            break;
        }
    }
    assert!(!outbound.has_room(1, usize::MAX), "no number beyond the span");
    assert!(outbound.flights.len() <= COMPACT_MIN, "{}", outbound.flights.len());
}
