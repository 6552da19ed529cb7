use super::*;
use racos_buffer::Pool;
use std::net::Ipv4Addr;

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn link(config: UdpConfig) -> UdpLink {
    UdpLink::bind(any_port(), config).expect("a free port")
}

fn send(link: &mut UdpLink, to: SocketAddr, bytes: &[u8]) {
    let mut datagram = Datagram { to, head: link.head(), body: link.body() };
    datagram.head.extend_from_slice(bytes);
    link.send(datagram);
}

#[test]
fn a_port_in_use_is_tried_again_and_then_named() {
    let holder = link(UdpConfig::default());
    let config = UdpConfig { bind_tries: 3, ..UdpConfig::default() };
    let error = UdpLink::bind(holder.local(), config).err().expect("in use");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let text = error.to_string();
    assert!(text.contains(&holder.local().to_string()) && text.contains("3 tries"), "{text}");
}

#[test]
fn a_port_that_becomes_free_is_taken() {
    let holder = link(UdpConfig::default());
    let address = holder.local();
    let releaser = std::thread::spawn({
        let socket = holder.socket.try_clone().expect("a second handle");
        drop(holder);
        move || {
            std::thread::sleep(3 * BIND_PAUSE);
            drop(socket);
        }
    });
    assert_eq!(UdpLink::bind(address, UdpConfig::default()).expect("free").local(), address);
    releaser.join().expect("the releaser ends well");
}

#[test]
fn the_datagram_size_follows_from_the_destination() {
    let default = link(UdpConfig::default());
    let to = |text: &str| text.parse::<SocketAddr>().unwrap();
    assert_eq!(default.datagram_max(to("127.0.0.1:1")), 58_368);
    assert_eq!(default.datagram_max(to("[::1]:1")), 58_368);
    assert_eq!(default.datagram_max(to("192.0.2.1:1")), 1472);
    assert_eq!(default.datagram_max(to("[2001:db8::1]:1")), 1452);
    let jumbo = link(UdpConfig { mtu: 9000, ..UdpConfig::default() });
    assert_eq!(jumbo.datagram_max(to("192.0.2.1:1")), 8972);
    let fixed = link(UdpConfig { datagram_max: Some(1 << 20), ..UdpConfig::default() });
    assert_eq!(fixed.datagram_max(to("127.0.0.1:1")), UDP_PAYLOAD_MAX);
}

#[test]
fn what_is_in_use_is_told() {
    let on = link(UdpConfig::default());
    let off = link(UdpConfig { offload: false, ..UdpConfig::default() });
    assert!(on.describe().contains(&on.local().to_string()), "{}", on.describe());
    assert!(off.describe().contains("kernel splits no, joins no"), "{}", off.describe());
}

#[test]
fn when_every_buffer_is_held_datagrams_are_dropped_and_counted() {
    let mut a = link(UdpConfig::default());
    let mut b = link(UdpConfig {
        receive_batch: 4,
        receive_pool_bytes: 0,
        offload: false,
        ..UdpConfig::default()
    });
    let mut held = Vec::new();
    for number in 0..10 {
        send(&mut a, b.local(), &[number]);
    }
    a.flush();
    while b.receive(&mut held) > 0 {}
    assert_eq!(held.len(), 4, "as many as there are buffers");
    b.receive(&mut held);
    assert_eq!(held.len() as u64 + b.receive_counts().dropped_no_buffer, 10);
    let bytes: Vec<u8> = held.iter().map(|received| received.bytes[0]).collect();
    assert_eq!(bytes, [0, 1, 2, 3]);
    held.truncate(2);
    for number in 10..13 {
        send(&mut a, b.local(), &[number]);
    }
    a.flush();
    assert_eq!(b.receive(&mut held), 2, "buffers come back when slices are dropped");
    let bytes: Vec<u8> = held.iter().map(|received| received.bytes[0]).collect();
    assert_eq!(bytes, [0, 1, 10, 11]);
}

#[test]
fn a_full_queue_flushes_itself() {
    let (mut a, mut b) = (link(UdpConfig::default()), link(UdpConfig::default()));
    for _ in 0..send::QUEUE_MAX + 1 {
        send(&mut a, b.local(), b"x");
    }
    assert_eq!(a.send_counts().datagrams, send::QUEUE_MAX as u64);
    let mut received = Vec::new();
    while b.receive(&mut received) > 0 {}
    a.flush();
    assert_eq!(a.send_counts().datagrams, send::QUEUE_MAX as u64 + 1);
}

#[test]
fn equal_datagrams_leave_in_one_message_if_the_kernel_splits() {
    let (mut a, mut b) = (link(UdpConfig::default()), link(UdpConfig::default()));
    let body = Pool::new(1 << 20).copy(&[7; 1000]).unwrap();
    for number in 0..10u8 {
        let mut datagram = Datagram { to: b.local(), head: a.head(), body: a.body() };
        datagram.head.push(number);
        datagram.body.push(body.clone());
        a.send(datagram);
    }
    a.flush();
    let expected = if a.queue.split { (1, 1) } else { (0, 1) };
    assert_eq!((a.send_counts().joined, a.send_counts().calls), expected);
    assert_eq!(a.send_counts().datagrams, 10);
    let mut received = Vec::new();
    while b.receive(&mut received) > 0 {}
    assert_eq!(received.len(), 10);
    for (number, received) in received.iter().enumerate() {
        assert_eq!((received.bytes[0], received.bytes.len()), (number as u8, 1001));
    }
}

#[test]
fn what_the_kernel_refuses_does_not_hold_up_the_rest() {
    let (mut a, mut b) = (link(UdpConfig::default()), link(UdpConfig::default()));
    send(&mut a, b.local(), b"before");
    // Port 0 is no destination.
    send(&mut a, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), b"refused");
    send(&mut a, "[::1]:9".parse().unwrap(), b"other family");
    send(&mut a, b.local(), b"after");
    a.flush();
    assert_eq!((a.send_counts().datagrams, a.send_counts().dropped_refused), (2, 2));
    let mut received = Vec::new();
    while b.receive(&mut received) > 0 {}
    let received: Vec<_> = received.iter().map(|datagram| datagram.bytes.to_vec()).collect();
    assert_eq!(received, [b"before".to_vec(), b"after".to_vec()]);
}

#[test]
fn a_kernel_that_will_not_split_after_all_is_sent_single_datagrams() {
    let (mut a, mut b) = (link(UdpConfig::default()), link(UdpConfig::default()));
    // Without checksums of its own the kernel refuses to split.
    options::set(a.fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).expect("an option of any socket");
    send(&mut a, b.local(), b"alone");
    for number in 0..10u8 {
        send(&mut a, b.local(), &[number; 900]);
    }
    a.flush();
    assert!(!a.queue.split);
    assert_eq!((a.send_counts().datagrams, a.send_counts().joined), (11, 0));
    let mut received = Vec::new();
    while b.receive(&mut received) > 0 {}
    let first: Vec<u8> = received[1..].iter().map(|datagram| datagram.bytes[0]).collect();
    assert_eq!((&*received[0].bytes, first), (&b"alone"[..], (0..10).collect()));
}

#[test]
fn a_socket_of_both_families_tells_ipv4_senders_by_their_ipv4_address() {
    let both = UdpLink::bind("[::]:0".parse().unwrap(), UdpConfig::default());
    let Ok(mut both) = both else {
        eprintln!("skipped: this host has no IPv6");
        return;
    };
    let mut v4 = link(UdpConfig::default());
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, both.local().port()));
    send(&mut v4, to, b"ping");
    v4.flush();
    let mut received = Vec::new();
    while both.receive(&mut received) > 0 {}
    assert_eq!(received[0].from, v4.local());
    send(&mut both, received[0].from, b"pong");
    both.flush();
    received.clear();
    while v4.receive(&mut received) > 0 {}
    assert_eq!((received[0].from, &*received[0].bytes), (to, &b"pong"[..]));
}
