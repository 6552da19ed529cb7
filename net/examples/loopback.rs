//! What the transport moves over the loopback device between two threads.
//!
//! `cargo run --release -p racos-net --example loopback`
//!
//! Large: bodies of 1 MiB, acknowledged, counted where they arrive. Small: heads of 100 bytes, sent
//! in turns of 64, echoed. Datagrams for a network of 1500 bytes are measured as well.

use racos_buffer::Pool;
use racos_net::{Identity, Lane, Message, Transport, TransportConfig, UdpConfig, UdpLink};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const LARGE: u8 = 1;
const SMALL: u8 = 2;
const BODY_BYTES: usize = 1 << 20;
const TURN: usize = 64;

fn identity(node: u16) -> Identity {
    Identity { cluster: 1, node: Some(node), incarnation: 1, boot: 1, lane: Lane::ONLY }
}

fn transport(node: u16, datagram_max: Option<usize>) -> Transport<UdpLink> {
    let config = UdpConfig { datagram_max, ..UdpConfig::default() };
    let link = UdpLink::bind(SocketAddr::from(([127, 0, 0, 1], 0)), config).expect("a free port");
    Transport::new(link, identity(node), Pool::new(512 << 20), TransportConfig::default())
}

/// Echoes small messages and drops large ones, until told to stop.
fn serve(mut transport: Transport<UdpLink>, stop: &AtomicBool) -> (u64, u64) {
    let start = Instant::now();
    let (mut messages, mut bytes, mut count) = (Vec::<Message>::new(), 0u64, 0u64);
    while !stop.load(Ordering::Relaxed) {
        let now_ns = start.elapsed().as_nanos() as u64;
        if transport.receive(now_ns, &mut messages) == 0 {
            std::thread::yield_now();
        }
        for message in messages.drain(..) {
            count += 1;
            bytes += message.body.len() as u64;
            if message.kind == SMALL {
                let to = message.from.address;
                transport.send(to, SMALL, &message.head, &[], now_ns).expect("small");
            }
        }
        transport.flush(now_ns);
    }
    (count, bytes)
}

fn large(transport: &mut Transport<UdpLink>, to: SocketAddr, time: Duration) -> f64 {
    let pool = Pool::new(8 << 20);
    let body = pool.get(BODY_BYTES).expect("within the pool").freeze();
    let start = Instant::now();
    let mut messages = Vec::new();
    loop {
        let now_ns = start.elapsed().as_nanos() as u64;
        let got = transport.receive(now_ns, &mut messages);
        while start.elapsed() < time && transport.pending_bytes(to) < 8 * BODY_BYTES {
            let body = std::slice::from_ref(&body);
            transport.send(to, LARGE, b"head", body, now_ns).expect("within the backlog");
        }
        transport.flush(now_ns);
        if transport.pending_bytes(to) == 0 {
            break;
        }
        if got == 0 {
            std::thread::yield_now();
        }
    }
    let bytes = transport.counters().large_sent * BODY_BYTES as u64;
    bytes as f64 / start.elapsed().as_secs_f64() / 1e9
}

fn small(transport: &mut Transport<UdpLink>, to: SocketAddr, time: Duration) -> f64 {
    let start = Instant::now();
    let (mut messages, mut answers) = (Vec::new(), 0u64);
    let (mut waiting, mut heard) = (0, Duration::ZERO);
    while start.elapsed() < time {
        let now = start.elapsed();
        let now_ns = now.as_nanos() as u64;
        if transport.receive(now_ns, &mut messages) == 0 {
            std::thread::yield_now();
        } else {
            heard = now;
        }
        answers += messages.len() as u64;
        waiting -= messages.len().min(waiting);
        messages.clear();
        if now - heard > Duration::from_millis(20) {
            waiting = 0; // Lost: begin anew.
            heard = now;
        }
        while waiting < 4 * TURN {
            for _ in 0..TURN {
                transport.send(to, SMALL, &[7; 100], &[], now_ns).expect("small");
            }
            waiting += TURN;
        }
        transport.flush(now_ns);
    }
    2.0 * answers as f64 / start.elapsed().as_secs_f64()
}

fn measure(datagram_max: Option<usize>) {
    let stop = AtomicBool::new(false);
    let (tell, told) = mpsc::channel();
    let time = Duration::from_secs(2);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let transport = transport(1, datagram_max);
            let link = transport.link();
            tell.send((link.describe(), racos_net::Link::local(link))).expect("someone listens");
            serve(transport, &stop)
        });
        let (description, to) = told.recv().expect("the server starts");
        let mut client = transport(2, datagram_max);
        println!("{description}");
        let size = racos_net::Link::datagram_max(client.link(), to);
        let gigabytes = large(&mut client, to, time);
        let counters = client.counters();
        println!(
            "datagrams of {size}: bodies of 1 MiB {gigabytes:.2} GB/s, \
             {} chunks, {} again, {} acknowledgements",
            counters.chunks_sent, counters.chunks_retransmitted, counters.acks_received
        );
        let per_second = small(&mut client, to, time);
        println!("datagrams of {size}: heads of 100 B {:.2} million/s", per_second / 1e6);
        println!(
            "sent {:?}\nreceived {:?}",
            client.link().send_counts(),
            client.link().receive_counts()
        );
        stop.store(true, Ordering::Relaxed);
        let (count, bytes) = server.join().expect("the server ends well");
        assert!(count > 0 && bytes >= counters.large_sent * BODY_BYTES as u64);
    });
}

fn main() {
    measure(None);
    measure(Some(1472));
}
