//! Which nodes take part in which slot (PROTOCOL 10).
//!
//! Purpose: owners, quorums and thresholds of a slot are those of the configuration that governs it;
//! an admitted change gives the slots from its effect on another one.
//! Invariant: a slot has one configuration, and whoever acts in the slot knows which.
//! What would break it: an owner or a threshold taken from the newest configuration, or a range of an
//! owner's slots that is stepped through by the n of where it begins.

use crate::config::{ConfigError, MEMBERS_MAX, Thresholds};
use crate::{Fast, Node, NodeSet, Slot};

/// Members and thresholds of the slots from `from` on, up to where the next configuration begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    pub from: Slot,
    /// The owner of slot s is `members[s mod n]`; a member's place is that of its fragments.
    pub members: Vec<Node>,
    pub thresholds: Thresholds,
}

impl Configuration {
    /// # Errors
    /// If n, f and k are impossible, or a member stands in the list twice or has no possible number.
    pub fn new(
        from: Slot,
        members: Vec<Node>,
        f: usize,
        k: usize,
    ) -> Result<Configuration, ConfigError> {
        let mut thresholds = Thresholds::new(members.len(), f, k)?;
        let mut set = NodeSet::EMPTY;
        for &node in &members {
            if usize::from(node) >= MEMBERS_MAX || set.contains(node) {
                return Err(ConfigError::ImpossibleMember(node));
            }
            set.insert(node);
        }
        thresholds.members = set;
        Ok(Configuration { from, members, thresholds })
    }

    /// The same under what the cluster decides class R by.
    pub fn with(self, fast: Fast) -> Configuration {
        Configuration { thresholds: self.thresholds.with(fast), ..self }
    }

    pub fn contains(&self, node: Node) -> bool {
        self.thresholds.members.contains(node)
    }

    /// PROTOCOL 1.2-a: the node that may open a slot, if this configuration governs it.
    pub fn owner(&self, slot: Slot) -> Node {
        self.members[(slot % self.members.len() as Slot) as usize]
    }

    /// A member's place in the list.
    pub fn place(&self, node: Node) -> Option<usize> {
        self.members.iter().position(|member| *member == node)
    }

    fn next_of(&self, node: Node, slot: Slot) -> Option<Slot> {
        let (place, n) = (self.place(node)? as Slot, self.members.len() as Slot);
        let turns = slot.saturating_sub(place).div_ceil(n);
        turns.checked_mul(n)?.checked_add(place)
    }
}

/// The configurations known, in the order of their slots; the first one governs all before the second.
#[derive(Clone, Debug)]
pub(crate) struct Configurations(Vec<Configuration>);

impl Configurations {
    pub fn founded(founding: Configuration) -> Configurations {
        Configurations(vec![founding])
    }

    /// PROTOCOL 10-l: one configuration for a slot, never two.
    pub fn at(&self, slot: Slot) -> &Configuration {
        if mutant!("the newest configuration for every slot") {
            return self.newest();
        }
        let known = self.0.iter().rev().find(|configuration| configuration.from <= slot);
        known.unwrap_or(&self.0[0])
    }

    pub fn newest(&self) -> &Configuration {
        self.0.last().expect("a cluster was founded")
    }

    /// An admitted change takes effect beyond everything that was said.
    pub fn push(&mut self, next: Configuration) {
        assert!(next.from > self.newest().from, "a change takes effect after the one before");
        self.0.push(next);
    }

    pub fn replace_all(&mut self, all: Vec<Configuration>) {
        assert!(!all.is_empty() && all.is_sorted_by(|a, b| a.from < b.from));
        self.0 = all;
    }

    /// The first slot at or above this one that a node owns; the end of all slots if there is none.
    pub fn next_of(&self, node: Node, slot: Slot) -> Slot {
        let first = self.0.iter().rposition(|it| it.from <= slot).unwrap_or(0);
        for (index, configuration) in self.0.iter().enumerate().skip(first) {
            let end = self.0.get(index + 1).map_or(Slot::MAX, |next| next.from);
            let start = if index == first { slot } else { configuration.from };
            if let Some(next) = configuration.next_of(node, start)
                && next < end
            {
                return next;
            }
        }
        Slot::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests PROTOCOL 10-l
    #[test]
    fn every_slot_has_one_owner_and_every_owner_its_slots() {
        let founding = Configuration::new(0, vec![0, 1, 2], 1, 1).unwrap();
        let mut all = Configurations::founded(founding);
        all.push(Configuration::new(10, vec![0, 2, 3, 4, 5], 1, 3).unwrap());
        all.push(Configuration::new(31, vec![2, 3, 5], 1, 1).unwrap());
        for slot in 0..60 {
            let owner = all.at(slot).owner(slot);
            for node in 0..7 {
                let next = all.next_of(node, slot);
                assert_eq!(next == slot, owner == node, "slot {slot}, node {node}");
                assert!(next == Slot::MAX || all.at(next).owner(next) == node);
                let between = (slot..next.min(60)).all(|slot| all.at(slot).owner(slot) != node);
                assert!(between, "node {node} has none between {slot} and {next}");
            }
        }
        assert_eq!(all.next_of(1, 10), Slot::MAX, "it has left");
        assert_eq!((all.at(9).thresholds.quorum, all.at(10).thresholds.quorum), (2, 4));
    }

    #[test]
    fn members_are_distinct_and_have_possible_numbers() {
        for members in [vec![0, 1, 1], vec![0, 1, 64]] {
            assert!(Configuration::new(0, members, 1, 1).is_err());
        }
    }
}
