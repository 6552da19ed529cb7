//! Five endpoints in five threads, each sending messages of 433 KB to the four others, as nodes do
//! that store values of 1.3 MB: how much arrives, and how much of it is sent in vain.
//!
//! `cargo run --release -p racos-net --example mesh`

use racos_buffer::Pool;
use racos_net::{Counters, Identity, Lane, Link, Transport, TransportConfig, UdpConfig, UdpLink};
use std::net::SocketAddr;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

const ENDS: u16 = 5;
const BODY_BYTES: usize = 433 << 10;
const PENDING_BYTES: usize = 4 * BODY_BYTES;
const TIME: Duration = Duration::from_secs(3);

fn end(node: u16, addresses: &Mutex<Vec<SocketAddr>>, barrier: &Barrier) -> (Counters, u64) {
    let link = UdpLink::bind(SocketAddr::from(([127, 0, 0, 1], 0)), UdpConfig::default());
    let link = link.expect("a free port");
    let own = link.local();
    addresses.lock().expect("no panic").push(own);
    barrier.wait();
    let peers: Vec<_> =
        addresses.lock().expect("no panic").iter().copied().filter(|at| *at != own).collect();
    let identity =
        Identity { cluster: 1, node: Some(node), incarnation: 1, boot: 1, lane: Lane::ONLY };
    let pool = Pool::new(256 << 20);
    let mut transport = Transport::new(link, identity, pool.clone(), TransportConfig::default());
    let body = pool.get(BODY_BYTES).expect("within the pool").freeze();
    let (mut messages, mut received) = (Vec::new(), 0);
    let start = Instant::now();
    while start.elapsed() < TIME {
        let now_ns = start.elapsed().as_nanos() as u64;
        let got = transport.receive(now_ns, &mut messages);
        received += messages.drain(..).map(|message| message.body.len() as u64).sum::<u64>();
        for to in &peers {
            while transport.pending_bytes(*to) < PENDING_BYTES {
                let body = std::slice::from_ref(&body);
                transport.send(*to, 1, b"meta", body, now_ns).expect("within the backlog");
            }
        }
        transport.flush(now_ns);
        if got == 0 {
            std::thread::yield_now();
        }
    }
    (transport.counters(), received)
}

fn main() {
    let (addresses, barrier) = (Mutex::new(Vec::new()), Barrier::new(ENDS.into()));
    std::thread::scope(|scope| {
        let (addresses, barrier) = (&addresses, &barrier);
        let ends: Vec<_> =
            (0..ENDS).map(|node| scope.spawn(move || end(node, addresses, barrier))).collect();
        let (mut bytes, mut sent, mut again, mut duplicates) = (0, 0, 0, 0);
        for end in ends {
            let (counters, received) = end.join().expect("an end ends well");
            bytes += received;
            sent += counters.chunks_sent;
            again += counters.chunks_retransmitted;
            duplicates += counters.dropped_duplicate;
        }
        println!(
            "{:.2} GB/s in all; {sent} chunks, {again} again, {duplicates} of complete messages",
            bytes as f64 / TIME.as_secs_f64() / 1e9
        );
    });
}
