//! What is known of each node: how fast it answers, and whether it does.
//!
//! Invariant: the estimates change only which node is asked and when, never what an answer means.

use crate::op::Route;
use std::net::SocketAddr;

const MS: u64 = 1_000_000;
/// How long a silent node is avoided at first, and at most; but not for less than so many times what it took
/// to find that out: where answers take long, dead nodes would take most of the time.
const AVOID_NS_MIN: u64 = 100 * MS;
const AVOID_NS_MAX: u64 = 2_000 * MS;
const AVOID_TIMES: u64 = 32;
/// Wait for a reply before the first one has been measured.
const RESEND_NS_START: u64 = 100 * MS;

/// Deviations beyond the usual reply that are still no loss. More than for packets: writes that wait
/// for the same flush are late together, and asking for them again would make them later.
const DEVIATIONS: u64 = 8;

/// Kinds of operations whose replies take differently long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Read,
    Write,
    /// Anything that carries, or asks for, more than a datagram.
    Large,
}

/// Smoothed time to reply and its deviation.
#[derive(Debug, Clone, Copy, Default)]
struct Estimate {
    smoothed_ns: u64,
    deviation_ns: u64,
    /// How often the wait was doubled since the last reply to what was sent once.
    doublings: u32,
}

impl Estimate {
    fn sample(&mut self, reply_ns: u64) {
        let sample = reply_ns.max(1);
        self.doublings = 0;
        if self.smoothed_ns == 0 {
            *self = Estimate { smoothed_ns: sample, deviation_ns: sample / 2, doublings: 0 };
            return;
        }
        let deviation = sample.abs_diff(self.smoothed_ns);
        self.deviation_ns = (3 * self.deviation_ns + deviation) / 4;
        self.smoothed_ns = (7 * self.smoothed_ns + sample) / 8;
    }
}

#[derive(Debug)]
struct Endpoint {
    address: SocketAddr,
    estimates: [Estimate; 3],
    /// When anything last came from it.
    heard_ns: Option<u64>,
    /// Timeouts in a row without a word.
    strikes: u32,
    avoid_until_ns: u64,
}

/// All nodes that a client knows.
#[derive(Debug)]
pub struct Endpoints {
    entries: Vec<Endpoint>,
    next: usize,
    resend_ns_min: u64,
    resend_ns_max: u64,
}

impl Endpoints {
    pub fn new(addresses: &[SocketAddr], resend_ns_min: u64, resend_ns_max: u64) -> Endpoints {
        let entries = addresses.iter().map(|address| Endpoint {
            address: *address,
            estimates: Default::default(),
            heard_ns: None,
            strikes: 0,
            avoid_until_ns: 0,
        });
        Endpoints { entries: entries.collect(), next: 0, resend_ns_min, resend_ns_max }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn address(&self, place: usize) -> SocketAddr {
        self.entries[place].address
    }

    pub fn find(&self, address: SocketAddr) -> Option<usize> {
        self.entries.iter().position(|entry| entry.address == address)
    }

    /// Whether any node has said anything since.
    pub fn any_heard_since(&self, since_ns: u64) -> bool {
        (0..self.entries.len()).any(|place| self.heard_since(place, since_ns))
    }

    /// Where to send an operation for the first time.
    pub fn first(&mut self, route: Route, now_ns: u64) -> usize {
        match route {
            Route::Only(place) => place,
            Route::Prefer(place) if !self.is_avoided(place, now_ns) => place,
            Route::Prefer(place) => self.after(place, now_ns),
            Route::Any => {
                self.next = self.after(self.next, now_ns);
                self.next
            }
        }
    }

    /// Where to send it after this node has failed to answer.
    pub fn other(&mut self, route: Route, failed: usize, now_ns: u64) -> usize {
        match route {
            Route::Only(place) => place,
            _ => self.after(failed, now_ns),
        }
    }

    /// The next node in order that is not avoided; simply the next if all are.
    fn after(&self, place: usize, now_ns: u64) -> usize {
        let count = self.entries.len();
        let others = (1..=count).map(|step| (place + step) % count);
        let answering = others.into_iter().find(|other| !self.is_avoided(*other, now_ns));
        answering.unwrap_or((place + 1) % count)
    }

    fn is_avoided(&self, place: usize, now_ns: u64) -> bool {
        now_ns < self.entries[place].avoid_until_ns
    }

    /// Whether the node has said anything since: what arrived at that very time had been sent before.
    pub fn heard_since(&self, place: usize, since_ns: u64) -> bool {
        self.entries[place].heard_ns.is_some_and(|heard| heard > since_ns)
    }

    /// Something came from the node.
    pub fn heard(&mut self, place: usize, now_ns: u64) {
        let entry = &mut self.entries[place];
        entry.heard_ns = Some(now_ns);
        entry.strikes = 0;
        entry.avoid_until_ns = 0;
    }

    /// It answered what it had been sent once.
    pub fn sample(&mut self, place: usize, class: Class, reply_ns: u64) {
        self.entries[place].estimates[class as usize].sample(reply_ns);
    }

    /// It answered what it had been sent more than once, so long after the first time. That is no measure of
    /// a reply. But if the wait for one is shorter, everything may be sent again before it can be answered,
    /// and there would never be a measure: the wait doubles, and stays so until there is one (RFC 6298, 5.5 to
    /// 5.7, but only where an answer came after all: who is dead is given up as soon as before).
    pub fn answered_within(&mut self, place: usize, class: Class, most_ns: u64) {
        let wait_ns = self.resend_after_ns(place, class);
        if most_ns > wait_ns && wait_ns < self.resend_ns_max {
            self.entries[place].estimates[class as usize].doublings += 1;
        }
    }

    /// The node has said nothing since it was asked, so long ago. If it is avoided no more and still silent, it
    /// is for twice as long. Whether it was silent the last time, too.
    pub fn silent(&mut self, place: usize, waited_ns: u64, now_ns: u64) -> bool {
        let entry = &mut self.entries[place];
        if now_ns >= entry.avoid_until_ns {
            let avoid_ns = (AVOID_NS_MIN << entry.strikes.min(16)).min(AVOID_NS_MAX);
            entry.strikes += 1;
            entry.avoid_until_ns = now_ns + avoid_ns.max(AVOID_TIMES * waited_ns);
        }
        entry.strikes > 1
    }

    /// How long to wait for a reply.
    pub fn resend_after_ns(&self, place: usize, class: Class) -> u64 {
        let estimate = self.entries[place].estimates[class as usize];
        let (start, least) = match class {
            Class::Large => (5 * RESEND_NS_START, 10 * self.resend_ns_min),
            _ => (RESEND_NS_START, self.resend_ns_min),
        };
        let usual = match estimate.smoothed_ns {
            0 => start,
            smoothed => smoothed + DEVIATIONS * estimate.deviation_ns,
        };
        let usual = usual.clamp(least.min(self.resend_ns_max), self.resend_ns_max);
        (usual << estimate.doublings).min(self.resend_ns_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u16) -> Endpoints {
        let addresses: Vec<_> =
            (0..count).map(|port| SocketAddr::from(([127, 0, 0, 1], 4000 + port))).collect();
        Endpoints::new(&addresses, 20 * MS, 1_000 * MS)
    }

    #[test]
    fn turns_go_around_silent_nodes_until_they_are_tried_again() {
        let mut nodes = endpoints(3);
        let turns: Vec<_> = (0..4).map(|_| nodes.first(Route::Any, 0)).collect();
        assert_eq!(turns, [1, 2, 0, 1]);
        nodes.silent(2, 0, MS);
        assert_eq!(nodes.first(Route::Any, 2 * MS), 0);
        assert_eq!(nodes.first(Route::Prefer(2), 2 * MS), 0);
        assert_eq!(nodes.first(Route::Only(2), 2 * MS), 2);
        let later = MS + AVOID_NS_MIN;
        assert_eq!(nodes.first(Route::Prefer(2), later), 2);
        nodes.silent(2, 0, later + 1);
        assert_eq!(
            nodes.first(Route::Prefer(2), later + AVOID_NS_MIN + 1),
            0,
            "avoided twice as long"
        );
        nodes.heard(2, later + 2);
        assert_eq!(nodes.first(Route::Prefer(2), later + 2), 2);
    }

    #[test]
    fn who_takes_long_to_be_found_silent_is_avoided_for_long() {
        let mut nodes = endpoints(2);
        assert!(!nodes.silent(1, 500 * MS, 0), "for the first time");
        assert!(!nodes.silent(1, 900 * MS, 400 * MS), "of the same silence");
        let until = AVOID_TIMES * 500 * MS;
        assert_eq!(nodes.first(Route::Prefer(1), until - 1), 0);
        assert_eq!(nodes.first(Route::Prefer(1), until), 1);
        assert!(nodes.silent(1, 500 * MS, until), "again");
        nodes.heard(1, until + 1);
        assert_eq!(nodes.first(Route::Prefer(1), until + 1), 1);
        assert!(!nodes.silent(1, 500 * MS, until + 2), "it was there in between");
    }

    #[test]
    fn with_all_silent_the_next_in_order_is_tried() {
        let mut nodes = endpoints(3);
        (0..3).for_each(|place| assert!(!nodes.silent(place, 0, MS)));
        assert_eq!(nodes.other(Route::Any, 1, 2 * MS), 2);
        assert_eq!(nodes.other(Route::Only(1), 1, 2 * MS), 1);
    }

    #[test]
    fn the_wait_doubles_while_replies_come_after_it_until_one_is_measured() {
        let mut nodes = endpoints(2);
        (0..50).for_each(|_| nodes.sample(0, Class::Write, MS));
        let mut waits_ms = Vec::new();
        for _ in 0..4 {
            nodes.answered_within(0, Class::Write, 130 * MS);
            waits_ms.push(nodes.resend_after_ns(0, Class::Write) / MS);
        }
        assert_eq!(waits_ms, [40, 80, 160, 160], "until it is long enough");
        assert_eq!(nodes.resend_after_ns(0, Class::Read), RESEND_NS_START, "of its kind only");
        assert_eq!(nodes.resend_after_ns(1, Class::Write), RESEND_NS_START, "of this node only");
        (0..1_000).for_each(|_| nodes.answered_within(0, Class::Write, 5_000 * MS));
        assert_eq!(nodes.resend_after_ns(0, Class::Write), 1_000 * MS, "bounded");
        // One had been lost: as before.
        nodes.sample(0, Class::Write, MS);
        assert_eq!(nodes.resend_after_ns(0, Class::Write), 20 * MS);
    }

    #[test]
    fn the_wait_follows_replies_and_stays_bounded() {
        let mut nodes = endpoints(1);
        assert_eq!(nodes.resend_after_ns(0, Class::Write), RESEND_NS_START);
        (0..50).for_each(|_| nodes.sample(0, Class::Write, MS));
        assert_eq!(nodes.resend_after_ns(0, Class::Write), 20 * MS);
        (0..50).for_each(|_| nodes.sample(0, Class::Write, 300 * MS));
        let wait = nodes.resend_after_ns(0, Class::Write);
        assert!((300 * MS..400 * MS).contains(&wait), "{wait}");
        (0..50).for_each(|_| nodes.sample(0, Class::Write, 5_000 * MS));
        assert_eq!(nodes.resend_after_ns(0, Class::Write), 1_000 * MS);
    }
}
