//! Where this node sends to each of the others (PROTOCOL 10-am, 10-an).
//!
//! Purpose: as a rule to where the configuration executed names them, or that of the founding. A node that was
//! away, or has an empty disk, may not know of a move yet, and those who could tell it may be the ones it
//! does not reach: if it comes no further it tries where it hears them from.
//! Invariant: a node that lacks nothing, or hears another where it is named, sends there and nowhere else.
//! What would break it: taking what is heard for what was decided; a router in between may show any address.

use racos_machine::MEMBERS_MAX;
use racos_protocol::{Nanos, NodeSet, Slot};
use std::net::SocketAddr;

/// A node that executes nothing for so long, though others say that there is something, tries elsewhere.
const STALLED_NS: Nanos = 1_000_000_000;

type ByNode = [Option<SocketAddr>; MEMBERS_MAX];

/// Addresses by number of the node.
pub(crate) struct Addresses {
    used: ByNode,
    named: ByNode,
    /// Where it was heard from last, if that is another one.
    heard: ByNode,
    /// Slots that somebody has executed, or seen in use.
    told: Slot,
    exec: Slot,
    since: Nanos,
}

impl Addresses {
    pub fn founding(members: &[SocketAddr]) -> Addresses {
        let mut named = [None; MEMBERS_MAX];
        for (address, member) in named.iter_mut().zip(members) {
            *address = Some(*member);
        }
        let (used, heard) = (named, [None; MEMBERS_MAX]);
        Addresses { used, named, heard, told: 0, exec: 0, since: 0 }
    }

    pub fn get(&self, node: u8) -> Option<SocketAddr> {
        self.used.get(usize::from(node)).copied().flatten()
    }

    /// It is there, as was executed, or nothing says where it is.
    pub fn set(&mut self, node: u8, address: SocketAddr) {
        let index = usize::from(node);
        if index < MEMBERS_MAX {
            (self.used[index], self.named[index]) = (Some(address), Some(address));
        }
    }

    /// A node was heard from there, in its newest boot.
    pub fn heard(&mut self, node: u8, from: SocketAddr) {
        let index = usize::from(node);
        if self.used[index] == Some(from) {
            return;
        }
        match self.named[index] == Some(from) {
            true => (self.used[index], self.heard[index]) = (Some(from), None),
            false => self.heard[index] = Some(from),
        }
    }

    /// Somebody says how far the slots are.
    pub fn told(&mut self, slot: Slot) {
        self.told = self.told.max(slot);
    }

    /// PROTOCOL 10-an: how far this node is by now, and whom it hears.
    pub fn look(&mut self, exec: Slot, hears: NodeSet, now: Nanos) {
        if self.told <= exec {
            self.used = self.named;
        } else if exec == self.exec && now >= self.since + STALLED_NS {
            self.try_other(hears);
        } else if exec == self.exec {
            return;
        }
        (self.exec, self.since) = (exec, now);
    }

    /// Sends to where these are heard from, or were they are named again.
    pub fn try_other(&mut self, hears: NodeSet) {
        for index in hears.iter().map(usize::from) {
            let is_named = self.used[index] == self.named[index];
            let heard = self.heard[index].filter(|_| is_named);
            self.used[index] = heard.or(self.named[index]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Two others, of which node 1 is heard from elsewhere.
    fn addresses() -> Addresses {
        let mut addresses = Addresses::founding(&[at(0), at(1), at(2)]);
        addresses.heard(1, at(11));
        addresses.heard(2, at(2));
        addresses
    }

    fn heard() -> NodeSet {
        NodeSet(0b110)
    }

    /// tests PROTOCOL 10-an
    #[test]
    fn who_comes_no_further_tries_where_others_are_heard_from() {
        let mut addresses = addresses();
        addresses.told(7);
        let mut used = Vec::new();
        for beacon in 0..12 {
            addresses.look(5, heard(), beacon * 500 * MS);
            used.push(addresses.get(1).unwrap().port());
            assert_eq!(addresses.get(2), Some(at(2)), "it is where it is named");
        }
        assert_eq!(used, [1, 1, 11, 11, 1, 1, 11, 11, 1, 1, 11, 11], "in turns");
        // As long as it comes further it stays so; who is not heard is not tried.
        addresses.look(6, heard(), 7_000 * MS);
        assert_eq!(addresses.get(1), Some(at(11)));
        addresses.look(7, heard(), 7_500 * MS);
        assert_eq!(addresses.get(1), Some(at(1)), "it lacks nothing");
        addresses.told(9);
        addresses.look(7, NodeSet::EMPTY, 20_000 * MS);
        addresses.look(7, NodeSet::EMPTY, 30_000 * MS);
        assert_eq!(addresses.get(1), Some(at(1)));
    }

    /// tests PROTOCOL 10-an
    #[test]
    fn who_is_heard_where_it_is_named_is_not_looked_for_elsewhere() {
        let mut addresses = addresses();
        addresses.told(7);
        addresses.look(5, heard(), 0);
        addresses.look(5, heard(), 1_000 * MS);
        assert_eq!(addresses.get(1), Some(at(11)));
        addresses.heard(1, at(1));
        assert_eq!(addresses.get(1), Some(at(1)));
        addresses.look(5, heard(), 2_000 * MS);
        assert_eq!(addresses.get(1), Some(at(1)));
        // What was executed goes before whatever was heard.
        addresses.heard(1, at(11));
        addresses.look(5, heard(), 3_000 * MS);
        assert_eq!(addresses.get(1), Some(at(11)));
        addresses.set(1, at(21));
        assert_eq!(addresses.get(1), Some(at(21)));
    }
}
