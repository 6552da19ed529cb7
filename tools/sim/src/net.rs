//! Simulated packets: a network that loses, repeats, delays, reorders, cuts and damages datagrams.
//!
//! Purpose: the [`Link`] under every node and client of a world. What is sent waits in an outbox
//! with its time of arrival; the world moves it to the receiver's inbox when that time has come.
//! Invariant: everything follows from the seed and the order of calls; a datagram that arrives
//! undamaged is exactly one that was sent; inboxes are bounded as socket buffers are.

use crate::plan::NetPlan;
use crate::rng::Rng;
use racos_buffer::{Pool, Slice};
use racos_net::{Datagram, Link, Received};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

/// Most datagrams that one call receives.
const RECEIVE_MAX: usize = 64;
/// Bytes that a socket holds for a process that does not read: as Linux, a datagram counts whole.
const INBOX_BYTES_MAX: usize = 4 << 20;
const POOL_BYTES: usize = 1 << 30;

/// One datagram on its way.
#[derive(Debug)]
pub struct Packet {
    pub from: usize,
    /// Where the sender was when it sent it, and where it was sent to.
    pub from_address: SocketAddr,
    pub to_address: SocketAddr,
    pub bytes: Slice,
    pub is_damaged: bool,
}

#[derive(Default)]
struct Inbox {
    /// Nobody listens at the address.
    is_closed: bool,
    queue: VecDeque<(Received, bool)>,
    bytes: usize,
}

/// What happened to datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetCounts {
    pub sent: u64,
    pub delivered: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub damaged: u64,
    /// Lost at a cut.
    pub cut: u64,
    /// Lost because the receiver was dead, its socket full, or nobody at the address any more.
    pub unheard: u64,
}

/// The network of one world.
pub struct Net {
    pub plan: NetPlan,
    pub now_ns: u64,
    /// Packets in a million lost in addition to the plan, for a while.
    pub extra_loss_ppm: u32,
    pub counts: NetCounts,
    rng: Rng,
    pool: Pool,
    /// `cuts[from][to]`: nothing gets through.
    cuts: Vec<Vec<bool>>,
    /// Latest arrival so far from one endpoint at another, for packets that keep their order.
    latest_ns: Vec<Vec<u64>>,
    inboxes: Vec<Inbox>,
    /// Where each endpoint is, and who is at each address; by the numbers of addresses.
    places: Vec<usize>,
    residents: Vec<Option<usize>>,
    /// Addresses named so far that no endpoint has from its beginning.
    named: usize,
    outbox: Vec<(u64, Packet)>,
}

/// The first address beyond those that endpoints have from their beginning.
const NAMED_FROM: usize = 30_000;

/// The address of this number; an endpoint is at that of its own number until it moves.
pub fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 10_000 + number as u16))
}

pub fn number(address: SocketAddr) -> usize {
    usize::from(address.port()) - 10_000
}

impl Net {
    pub fn new(plan: NetPlan, rng: Rng) -> Rc<RefCell<Net>> {
        Rc::new(RefCell::new(Net {
            plan,
            now_ns: 0,
            extra_loss_ppm: 0,
            counts: NetCounts::default(),
            rng,
            pool: Pool::new(POOL_BYTES),
            cuts: Vec::new(),
            latest_ns: Vec::new(),
            inboxes: Vec::new(),
            places: Vec::new(),
            residents: Vec::new(),
            named: 0,
            outbox: Vec::new(),
        }))
    }

    /// One more endpoint; its number.
    pub fn enter(&mut self) -> usize {
        let count = self.inboxes.len() + 1;
        assert!(count <= NAMED_FROM, "more endpoints than addresses");
        self.inboxes.push(Inbox::default());
        self.places.push(count - 1);
        self.settle(count - 1, count - 1);
        self.cuts.push(Vec::new());
        self.latest_ns.push(Vec::new());
        self.cuts.iter_mut().for_each(|row| row.resize(count, false));
        self.latest_ns.iter_mut().for_each(|row| row.resize(count, 0));
        count - 1
    }

    /// Where an endpoint is.
    pub fn address_of(&self, endpoint: usize) -> SocketAddr {
        address(self.places[endpoint])
    }

    /// An address at which nobody ever was.
    pub fn fresh_address(&mut self) -> SocketAddr {
        self.named += 1;
        address(NAMED_FROM + self.named)
    }

    /// An endpoint is elsewhere from now on. What is sent to where it was is lost, or reaches who comes
    /// there next.
    pub fn relocate(&mut self, endpoint: usize, to: SocketAddr) {
        let (from, to) = (self.places[endpoint], number(to));
        self.residents[from] = None;
        self.places[endpoint] = to;
        self.settle(to, endpoint);
    }

    fn settle(&mut self, place: usize, endpoint: usize) {
        if self.residents.len() <= place {
            self.residents.resize(place + 1, None);
        }
        let before = self.residents[place].replace(endpoint);
        assert!(before.is_none_or(|before| before == endpoint), "{place} has a resident");
    }

    fn resident(&self, at: SocketAddr) -> Option<usize> {
        self.residents.get(number(at)).copied().flatten()
    }

    /// A process listens at the endpoint, or none does any more; what waited there is gone.
    pub fn listen(&mut self, endpoint: usize, open: bool) {
        self.inboxes[endpoint] = Inbox { is_closed: !open, ..Inbox::default() };
    }

    pub fn cut(&mut self, from: usize, to: usize, cut: bool) {
        self.cuts[from][to] = cut;
    }

    pub fn heal_all(&mut self) {
        self.extra_loss_ppm = 0;
        self.cuts.iter_mut().flatten().for_each(|cut| *cut = false);
    }

    /// Bytes of buffers of datagrams that somebody still holds.
    pub fn held_bytes(&self) -> usize {
        self.pool.used()
    }

    /// Moves what was sent since the last call to `each`, with its time of arrival.
    pub fn take_sent(&mut self, mut each: impl FnMut(u64, Packet)) {
        self.outbox.drain(..).for_each(|(at_ns, packet)| each(at_ns, packet));
    }

    /// Whether nothing was sent since then.
    pub fn is_silent(&self) -> bool {
        self.outbox.is_empty()
    }

    /// A packet reaches the socket of whoever is at its address by now; who that is, or nobody if it is lost
    /// there.
    pub fn arrive(&mut self, packet: Packet) -> Option<usize> {
        let len = packet.bytes.len();
        let to = self.resident(packet.to_address);
        let open = to.filter(|to| {
            let inbox = &self.inboxes[*to];
            !inbox.is_closed && inbox.bytes + len <= INBOX_BYTES_MAX
        });
        let Some(to) = open else {
            self.counts.unheard += 1;
            return None;
        };
        let inbox = &mut self.inboxes[to];
        self.counts.delivered += 1;
        inbox.bytes += len;
        let received = Received { from: packet.from_address, bytes: packet.bytes };
        inbox.queue.push_back((received, packet.is_damaged));
        Some(to)
    }

    fn send(&mut self, from: usize, datagram: &Datagram) {
        self.counts.sent += 1;
        let (from_address, to_address) = (self.address_of(from), datagram.to);
        let Some(to) = self.resident(to_address) else {
            self.counts.unheard += 1;
            return;
        };
        let copies = 1 + u64::from(self.rng.chance(self.plan.duplicate_ppm));
        self.counts.duplicated += copies - 1;
        for _ in 0..copies {
            if self.cuts[from][to] {
                self.counts.cut += 1;
                continue;
            }
            let loss_ppm = self.plan.lose_ppm + self.extra_loss_ppm;
            if self.rng.chance(loss_ppm) {
                self.counts.lost += 1;
                continue;
            }
            let at_ns = self.arrival(from, to, datagram);
            let is_damaged = self.rng.chance(self.plan.damage_ppm);
            if let Some(bytes) = self.gather(datagram, is_damaged) {
                let packet = Packet { from, from_address, to_address, bytes, is_damaged };
                self.outbox.push((at_ns, packet));
            }
        }
    }

    fn arrival(&mut self, from: usize, to: usize, datagram: &Datagram) -> u64 {
        let plan = &self.plan;
        let len = datagram.head.len() + datagram.body.iter().map(|part| part.len()).sum::<usize>();
        let mut delay = plan.delay_ns_min + self.rng.exponential(plan.delay_ns_mean);
        delay += len as u64 * plan.byte_ns_per_1024 / 1024;
        if self.rng.chance(plan.straggler_ppm) {
            delay += self.rng.exponential(plan.straggler_ns_mean);
        }
        if plan.late_node.is_some_and(|late| late == from || late == to) {
            delay += self.rng.exponential(plan.late_ns_mean);
        }
        let at_ns = self.now_ns + delay;
        if self.rng.chance(plan.reorder_ppm) {
            return at_ns;
        }
        let latest = &mut self.latest_ns[from][to];
        *latest = at_ns.max(*latest);
        *latest
    }

    /// The bytes of a datagram; damaged: one or two bits flipped, a burst, or the end missing.
    fn gather(&mut self, datagram: &Datagram, is_damaged: bool) -> Option<Slice> {
        let parts = || std::iter::once(&*datagram.head).chain(datagram.body.iter().map(|s| &**s));
        let len: usize = parts().map(<[u8]>::len).sum();
        let mut buffer = self.pool.get(len)?;
        let mut at = 0;
        for part in parts() {
            buffer[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        if is_damaged {
            self.counts.damaged += 1;
            let first = self.rng.below(len as u64 * 8) as usize;
            match self.rng.below(4) {
                0 => buffer[first / 8] ^= 1 << (first % 8),
                1 => {
                    let second =
                        (first + 1 + self.rng.below(len as u64 * 8 - 1) as usize) % (len * 8);
                    buffer[first / 8] ^= 1 << (first % 8);
                    buffer[second / 8] ^= 1 << (second % 8);
                }
                2 => buffer[first / 8] ^= self.rng.between(1, 255) as u8,
                _ => buffer.set_len(first / 8),
            }
        }
        Some(buffer.freeze())
    }

    fn receive(&mut self, at: usize, into: &mut Vec<Received>, damaged: &mut u64) -> usize {
        let inbox = &mut self.inboxes[at];
        let count = inbox.queue.len().min(RECEIVE_MAX);
        for (received, is_damaged) in inbox.queue.drain(..count) {
            inbox.bytes -= received.bytes.len();
            *damaged += u64::from(is_damaged);
            into.push(received);
        }
        count
    }
}

/// One endpoint's link.
pub struct SimLink {
    net: Rc<RefCell<Net>>,
    endpoint: usize,
    datagram_max: usize,
    heads: Vec<Vec<u8>>,
    bodies: Vec<Vec<Slice>>,
    /// Damaged datagrams handed out: as many must be found out.
    pub damaged_received: u64,
}

impl SimLink {
    pub fn new(net: Rc<RefCell<Net>>, endpoint: usize) -> SimLink {
        let datagram_max = net.borrow().plan.datagram_max;
        let (heads, bodies) = (Vec::new(), Vec::new());
        SimLink { net, endpoint, datagram_max, heads, bodies, damaged_received: 0 }
    }
}

impl Link for SimLink {
    fn send(&mut self, mut datagram: Datagram) {
        let len = datagram.body.iter().map(|s| s.len()).sum::<usize>() + datagram.head.len();
        assert!(len <= self.datagram_max, "a datagram of {len} bytes is too large");
        self.net.borrow_mut().send(self.endpoint, &datagram);
        datagram.head.clear();
        datagram.body.clear();
        if self.heads.len() < RECEIVE_MAX {
            self.heads.push(datagram.head);
            self.bodies.push(datagram.body);
        }
    }

    fn flush(&mut self) {}

    fn receive(&mut self, into: &mut Vec<Received>) -> usize {
        self.net.borrow_mut().receive(self.endpoint, into, &mut self.damaged_received)
    }

    fn datagram_max(&self, _to: SocketAddr) -> usize {
        self.datagram_max
    }

    fn head(&mut self) -> Vec<u8> {
        self.heads.pop().unwrap_or_default()
    }

    fn body(&mut self) -> Vec<Slice> {
        self.bodies.pop().unwrap_or_default()
    }

    fn local(&self) -> SocketAddr {
        self.net.borrow().address_of(self.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Fixed, Plan};

    fn net_of(endpoints: usize) -> (Rc<RefCell<Net>>, Vec<SimLink>) {
        let mut plan = Plan::draw(1, &Fixed { calm: true, ..Fixed::default() }).net;
        (plan.late_node, plan.straggler_ppm) = (None, 0);
        let net = Net::new(plan, Rng::new(1));
        let links = (0..endpoints).map(|_| {
            let endpoint = net.borrow_mut().enter();
            SimLink::new(net.clone(), endpoint)
        });
        let links = links.collect();
        (net, links)
    }

    fn send(link: &mut SimLink, to: SocketAddr) {
        link.send(Datagram { to, head: vec![7; 40], body: Vec::new() });
    }

    /// Who gets what is on its way, and whom it shows as its sender.
    fn arrivals(net: &Rc<RefCell<Net>>, links: &mut [SimLink]) -> Vec<(usize, SocketAddr)> {
        let mut packets = Vec::new();
        net.borrow_mut().take_sent(|_, packet| packets.push(packet));
        let mut came = Vec::new();
        for packet in packets {
            let Some(to) = net.borrow_mut().arrive(packet) else { continue };
            let mut received = Vec::new();
            links[to].receive(&mut received);
            came.extend(received.iter().map(|datagram| (to, datagram.from)));
        }
        came
    }

    #[test]
    fn what_is_sent_to_a_place_that_was_left_is_lost_or_reaches_who_came_there() {
        let (net, mut links) = net_of(3);
        let there = net.borrow_mut().fresh_address();
        send(&mut links[0], address(1));
        send(&mut links[1], address(0));
        net.borrow_mut().relocate(1, there);
        assert_eq!(links[1].local(), there);
        let unheard = |net: &Rc<RefCell<Net>>| net.borrow().counts.unheard;
        // The one on its way finds nobody; the other one shows where its sender was.
        assert_eq!(arrivals(&net, &mut links), [(0, address(1))]);
        assert_eq!(unheard(&net), 1);
        send(&mut links[0], address(1));
        assert_eq!((arrivals(&net, &mut links), unheard(&net)), (vec![], 2));
        send(&mut links[0], there);
        send(&mut links[1], address(0));
        assert_eq!(arrivals(&net, &mut links), [(1, address(0)), (0, there)]);
        // Another one comes to where it was.
        send(&mut links[0], address(2));
        net.borrow_mut().relocate(2, address(1));
        send(&mut links[0], address(1));
        assert_eq!((arrivals(&net, &mut links), unheard(&net)), (vec![(2, address(0))], 3));
        assert_ne!(net.borrow_mut().fresh_address(), there);
    }
}
