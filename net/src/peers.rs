//! The table of addresses that this endpoint talks to.
//!
//! Invariant: at most `max` entries; an entry that has something open, under way, half received or to
//! acknowledge is never evicted. Each new entry starts a stream of its own, so that the far side does
//! not take its numbers for those of an earlier entry.
//! What an eviction costs: the entry's memory of completed messages, so that a large message whose
//! chunks were all duplicated on the way and come that late would be delivered again.

use crate::inbound::Inbound;
use crate::outbound::Outbound;
use crate::pace::PaceConfig;
use racos_buffer::Slice;
use rustc_hash::FxHashMap;
use std::net::SocketAddr;

/// How many idle entries are looked at before the one unused for longest is evicted.
const EVICTION_SAMPLE: usize = 32;

/// A datagram that is being filled; empty if `head` is.
pub struct Open {
    pub to: SocketAddr,
    /// Most bytes of a datagram to that address.
    pub bytes_max: usize,
    pub head: Vec<u8>,
    pub tails: Vec<Slice>,
    pub tail_bytes: usize,
}

impl Open {
    pub fn new(to: SocketAddr, bytes_max: usize) -> Open {
        Open { to, bytes_max, head: Vec::new(), tails: Vec::new(), tail_bytes: 0 }
    }
}

pub struct Peer {
    pub open: Open,
    pub outbound: Outbound,
    pub inbound: Inbound,
    pub used_ns: u64,
    /// Whether the peer is on the list of open datagrams, of work under way, of acknowledgements.
    pub is_dirty: bool,
    pub is_active: bool,
    pub is_acking: bool,
}

impl Peer {
    fn is_idle(&self) -> bool {
        !(self.is_dirty || self.is_active || self.is_acking)
    }
}

pub struct Peers {
    entries: Vec<Peer>,
    index: FxHashMap<SocketAddr, usize>,
    max: usize,
    hand: usize,
    streams: u32,
    pub evicted: u64,
}

impl Peers {
    pub fn new(max: usize) -> Peers {
        let (entries, index) = (Vec::new(), FxHashMap::default());
        Peers { entries, index, max: max.max(1), hand: 0, streams: 0, evicted: 0 }
    }

    pub fn find(&self, address: SocketAddr) -> Option<usize> {
        self.index.get(&address).copied()
    }

    /// Enters an address that [`Peers::find`] does not know. `None` if every entry is busy.
    pub fn enter(
        &mut self,
        address: SocketAddr,
        datagram_max: usize,
        pace: PaceConfig,
    ) -> Option<usize> {
        let place = if self.entries.len() < self.max {
            self.entries.len()
        } else {
            let place = self.victim()?;
            self.index.remove(&self.entries[place].open.to);
            self.evicted += 1;
            place
        };
        self.streams = self.streams.wrapping_add(1);
        let peer = Peer {
            open: Open::new(address, datagram_max),
            outbound: Outbound::new(self.streams, pace),
            inbound: Inbound::default(),
            used_ns: 0,
            is_dirty: false,
            is_active: false,
            is_acking: false,
        };
        if place == self.entries.len() {
            self.entries.push(peer);
        } else {
            self.entries[place] = peer;
        }
        self.index.insert(address, place);
        Some(place)
    }

    /// The idle entry unused for longest among the next few; the search moves on from call to call.
    fn victim(&mut self) -> Option<usize> {
        let mut best: Option<usize> = None;
        let mut seen = 0;
        for _ in 0..self.entries.len() {
            self.hand = (self.hand + 1) % self.entries.len();
            if !self.entries[self.hand].is_idle() {
                continue;
            }
            let used_ns = |place: usize| self.entries[place].used_ns;
            if best.is_none_or(|best| used_ns(self.hand) < used_ns(best)) {
                best = Some(self.hand);
            }
            seen += 1;
            if seen == EVICTION_SAMPLE {
                break;
            }
        }
        best
    }
}

impl std::ops::Index<usize> for Peers {
    type Output = Peer;
    fn index(&self, place: usize) -> &Peer {
        &self.entries[place]
    }
}

impl std::ops::IndexMut<usize> for Peers {
    fn index_mut(&mut self, place: usize) -> &mut Peer {
        &mut self.entries[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn enter(peers: &mut Peers, port: u16, used_ns: u64) -> Option<usize> {
        let place = peers.enter(address(port), 1472, PaceConfig::default())?;
        peers[place].used_ns = used_ns;
        Some(place)
    }

    #[test]
    fn the_idle_entry_unused_for_longest_gives_way() {
        let mut peers = Peers::new(3);
        for (port, used_ns) in [(1, 30), (2, 10), (3, 20)] {
            enter(&mut peers, port, used_ns).unwrap();
        }
        enter(&mut peers, 4, 40).unwrap();
        assert_eq!(peers.find(address(2)), None);
        assert!([1, 3, 4].iter().all(|port| peers.find(address(*port)).is_some()));
        assert_eq!(peers.evicted, 1);
    }

    #[test]
    fn busy_entries_stay() {
        let mut peers = Peers::new(2);
        let (first, second) = (enter(&mut peers, 1, 1).unwrap(), enter(&mut peers, 2, 2).unwrap());
        peers[first].is_active = true;
        enter(&mut peers, 3, 3).unwrap();
        assert_eq!(peers.find(address(1)), Some(first));
        assert_eq!(peers.find(address(3)), Some(second));
        peers[second].is_dirty = true;
        assert_eq!(enter(&mut peers, 4, 4), None);
    }
}
