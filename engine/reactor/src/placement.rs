//! Where the nodes are, and on which of them a value's fragments lie (PROTOCOL 10).
//!
//! Purpose: addresses by node number, the nodes that this one talks to, and the codes of all layouts
//! in use; all of it follows from the founding list and the changes executed.
//! Invariant: fragment i of a value lies on the i-th member of the value's own layout, whoever the
//! members are now. What would break it: taking a node's number for the place of its fragment.

use crate::node::Node;
use racos_codec::Codec;
use racos_machine::{Layout, Members, Value};
use racos_net::Link;
use racos_protocol::{NodeSet, Thresholds};
use racos_storage::device::Device;
use std::net::SocketAddr;

/// The codes of the layouts in use.
pub(crate) struct Codecs(Vec<Codec>);

impl Codecs {
    pub fn new(first: Codec) -> Codecs {
        Codecs(vec![first])
    }

    /// The code of k of n fragments.
    pub fn of(&self, k: usize, n: usize) -> Option<&Codec> {
        self.0.iter().find(|codec| codec.k() == k && codec.k() + codec.m() == n)
    }

    /// Makes those ready that values of a layout may have. PROTOCOL 3.1-h, 9.6-a: a node that misses others
    /// cuts into fewer.
    pub fn learn_of(&mut self, layout: &Layout) {
        let data = usize::from(layout.data);
        self.learn(data, layout.members.len());
        (2..data).rev().for_each(|k| self.learn(k, layout.members.len()));
    }

    /// Makes the code ready, if it is possible.
    pub fn learn(&mut self, k: usize, n: usize) {
        if self.of(k, n).is_none()
            && let Some(m) = n.checked_sub(k)
            && let Ok(codec) = Codec::new(k, m)
        {
            self.0.push(codec);
        }
    }
}

/// Where the fragments of a value lie, if the layout is known and the value's code fits.
pub(crate) fn layout_of<'a>(members: &'a Members, value: &Value) -> Option<&'a Layout> {
    let layout = members.layout(value.layout)?;
    let code = usize::from(value.n) == layout.members.len() && (1..=layout.data).contains(&value.k);
    code.then_some(layout)
}

impl<L: Link, D: Device> Node<L, D> {
    pub(crate) fn address(&self, node: u8) -> Option<SocketAddr> {
        self.addresses.get(node)
    }

    /// The same as text, for people.
    pub(crate) fn address_text(&self, node: u8) -> String {
        self.address(node).map_or_else(|| "unknown".into(), |address| address.to_string())
    }

    /// Whom this node tells what it does: members, now or as soon as a change is in effect, and those
    /// that left and are still of use.
    pub(crate) fn others(&self) -> NodeSet {
        self.others
    }

    /// The members in the newest configuration executed.
    pub(crate) fn members(&self) -> NodeSet {
        self.core.newest().thresholds.members
    }

    /// Answers that make a quorum before and after a change, of nodes that count in both.
    pub(crate) fn quorum_of_both(&self) -> usize {
        let (before, after) = self.core.read_configurations();
        before.thresholds.quorum.max(after.thresholds.quorum)
    }

    /// PROTOCOL 10-am: follows what was executed of where nodes are.
    pub(crate) fn learn_addresses(&mut self) {
        let members = self.machine.members();
        for node in 0..members.seats().len() as u8 {
            if let Some(address) = members.address(node).and_then(|text| text.parse().ok()) {
                self.addresses.set(node, address);
            }
        }
    }

    /// Follows the changes that were executed.
    pub(crate) fn learn_members(&mut self) {
        if !mutant!("places forgotten at restart") {
            self.learn_addresses();
        }
        let members = self.machine.members();
        let mut others = NodeSet::EMPTY;
        for (node, seat) in members.seats().iter().enumerate() {
            let node = node as u8;
            if node != self.me && !seat.is_lost && !seat.is_released {
                others.insert(node);
            }
        }
        self.others = others;
        for layout in members.layouts() {
            self.codecs.learn_of(layout);
        }
        if let Some(newest) = members.newest() {
            let (k, n) = (usize::from(newest.data), newest.members.len());
            let codec = self.codecs.of(k, n).expect("the code of a layout that was admitted");
            self.builder.set_layout(newest.number, n, codec.clone());
            self.builder.set_width(self.margin.width(k));
        }
    }

    /// Where the fragments of a value lie, if this node knows it and the value's code fits.
    pub(crate) fn layout_of(&self, value: &Value) -> Option<&Layout> {
        layout_of(self.machine.members(), value)
    }

    /// The nodes that hold fragments of a value.
    pub(crate) fn holders_of(&self, value: &Value) -> NodeSet {
        let mut holders = NodeSet::EMPTY;
        let layout = self.layout_of(value);
        layout.iter().flat_map(|it| &it.members).for_each(|node| holders.insert(*node));
        holders
    }

    /// PROTOCOL 9.6-b: the place of a node's fragment of a value: its own, and no other.
    pub(crate) fn place_of(&self, node: u8, value: &Value) -> Option<usize> {
        self.layout_of(value)?.place(node)
    }

    /// Whether this node should have a fragment of a value.
    pub(crate) fn is_holder(&self, value: &Value) -> bool {
        self.place_of(self.me, value).is_some()
    }

    pub(crate) fn codec_of(&self, value: &Value) -> Option<&Codec> {
        self.codecs.of(usize::from(value.k), usize::from(value.n))
    }

    /// Holders that every value of a layout had when it was decided.
    pub(crate) fn support_of(&self, value: &Value) -> usize {
        let layout = self.layout_of(value);
        let made = layout.map(|it| {
            Thresholds::new(it.members.len(), usize::from(it.lost_max), usize::from(it.data))
        });
        made.and_then(Result::ok).map_or(0, |thresholds| thresholds.durable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_by_both_its_counts() {
        let mut codecs = Codecs::new(Codec::new(1, 2).unwrap());
        codecs.learn(3, 5);
        codecs.learn(3, 5);
        codecs.learn(5, 3);
        assert_eq!(codecs.0.len(), 2);
        assert!(codecs.of(3, 5).is_some() && codecs.of(1, 3).is_some());
        assert!(codecs.of(1, 5).is_none() && codecs.of(5, 3).is_none());
    }
}
