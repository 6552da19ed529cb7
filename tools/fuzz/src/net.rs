//! Datagrams at an endpoint, from strangers and, with header and checksum put right, from whoever
//! knows the format.
//!
//! Rule: no panic; whatever comes, no more memory is held than the bounds allow.

use crate::input::Input;
use racos_buffer::Pool;
use racos_net::chunk::{ChunkHeader, KIND_CHUNK};
use racos_net::memory::{MemoryConfig, MemoryHub};
use racos_net::{Identity, Lane, Transport, TransportConfig, frame};
use std::net::SocketAddr;

const CLUSTER: u64 = 11;
const POOL_BYTES: usize = 8 << 20;
const DATAGRAM_MAX: usize = 700;
const DATAGRAMS_MAX: usize = 32;

/// Datagrams that another endpoint sends: a small message, a large one in one chunk and in two.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let pool = Pool::new(POOL_BYTES);
    let frame = |kind: u8, head: &[u8], body: usize| {
        let slice = pool.copy(&vec![9; body]).expect("a pool large enough");
        let mut frame = Vec::new();
        frame::append(&mut frame, kind, [head, &[]], Some(&[slice]), body);
        frame
    };
    let chunk = |body_len, index, bytes| {
        let (head_len, chunk_len) = (5, 256);
        let header = ChunkHeader {
            sequence: 0,
            stream: 1,
            head_len,
            body_len,
            chunk_len,
            kind: 1,
            index,
            stamp: 0,
        };
        frame(KIND_CHUNK, &header.write(), bytes)
    };
    let datagrams = |frames: &[Vec<u8>]| {
        let mut input = Vec::new();
        for frame in frames {
            input.extend([1, 0]);
            input.extend((frame.len() as u16).to_be_bytes());
            input.extend(frame);
        }
        input
    };
    vec![
        datagrams(&[frame(1, b"head", 30)]),
        datagrams(&[chunk(30, 0, 35)]),
        datagrams(&[chunk(300, 1, 49), chunk(300, 0, 256), frame(2, b"", 0)]),
    ]
}

pub(crate) fn check(input: &[u8]) {
    let mut input = Input(input);
    let hub = MemoryHub::new(1, MemoryConfig::default());
    let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
    let identity = |node| Identity {
        cluster: CLUSTER,
        node: Some(node),
        incarnation: 1,
        boot: 1,
        lane: Lane::ONLY,
    };
    let pool = Pool::new(POOL_BYTES);
    let config = TransportConfig { assembly_bytes_max: 1 << 20, ..TransportConfig::default() };
    let mut end = Transport::new(hub.link(address(1)), identity(1), pool.clone(), config);
    let (mut now_ns, mut messages) = (1_000_000, Vec::new());
    for _ in 0..DATAGRAMS_MAX {
        if input.0.is_empty() {
            break;
        }
        let (control, node) = (input.byte(), input.byte() % 4);
        let length = input.below(DATAGRAM_MAX);
        let payload = input.take(length);
        let datagram = match control & 3 {
            0 => payload.to_vec(),
            _ => sealed(&identity(u16::from(node)), payload, usize::from(control & 12) * 16, &pool),
        };
        hub.inject(address(2 + u16::from(node)), address(1), &datagram);
        end.receive(now_ns, &mut messages);
        end.flush(now_ns);
        now_ns += u64::from(control >> 4) * 400_000_000;
        assert!(pool.used() <= POOL_BYTES, "the pool's bound holds");
    }
}

/// A datagram of `identity` with `payload` behind the header, the last `behind` bytes of it behind the
/// frames.
fn sealed(identity: &Identity, payload: &[u8], behind: usize, pool: &Pool) -> Vec<u8> {
    let (frames, tail) = payload.split_at(payload.len() - behind.min(payload.len()));
    let mut datagram = frame::header(identity).to_vec();
    datagram.extend_from_slice(frames);
    datagram.resize(datagram.len().next_multiple_of(8), 0);
    match pool.copy(tail) {
        Some(slice) if !tail.is_empty() => frame::seal(&mut datagram, &[slice]),
        _ => frame::seal(&mut datagram, &[]),
    }
    datagram.extend_from_slice(tail);
    datagram
}
