//! Quorum reads with marks (PROTOCOL 8): whose answer to use, or what to wait for.
//!
//! Invariant: the result is the state of the keys after a decided prefix of the log that contains
//! every write that completed before the read began, and everything an earlier read showed.
//! What would break it: fewer than n-f answers, ignoring a mark at or above the newest exec, or
//! deciding key by key.

use crate::{Node, NodeSet, Slot};

/// What to do with the answers so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStep {
    /// Fewer answers than a quorum.
    Wait,
    /// The result is what this node answered.
    Use(Node),
    /// The slot is in use; the result is the own index once own exec is above it.
    WaitExecuted(Slot),
}

/// Answers to one READQ.
#[derive(Clone, Debug)]
pub struct ReadQuorum {
    quorum: usize,
    answered: NodeSet,
    /// While a change is executed and not in effect: who answered for the configuration before it.
    before: Option<NodeSet>,
    newest: Option<(Slot, Node)>,
    mark: Option<Slot>,
}

impl ReadQuorum {
    /// `quorum` is n-f.
    pub fn new(quorum: usize) -> ReadQuorum {
        ReadQuorum { quorum, answered: NodeSet::EMPTY, before: None, newest: None, mark: None }
    }

    /// PROTOCOL 10-x: between the execution of a change and its effect, a quorum of each
    /// configuration.
    pub fn joint(quorum: usize) -> ReadQuorum {
        ReadQuorum { before: Some(NodeSet::EMPTY), ..ReadQuorum::new(quorum) }
    }

    /// Counts the answer of one node, taken at one instant of its state. Returns whether this
    /// answer is now the newest, so that the caller keeps what it carries.
    pub fn answer(&mut self, from: Node, exec: Slot, mark: Option<Slot>) -> bool {
        self.answer_as(from, (true, true), exec, mark)
    }

    /// As [`ReadQuorum::answer`], of an incarnation that counts in the configuration before the newest
    /// change, in that after it, in both or in none.
    pub fn answer_as(
        &mut self,
        from: Node,
        (is_old, is_new): (bool, bool),
        exec: Slot,
        mark: Option<Slot>,
    ) -> bool {
        // PROTOCOL 1-b, 8.1-i: distinct nodes.
        let fresh = is_new && !self.answered.contains(from);
        let fresh_before = is_old && self.before.is_some_and(|answered| !answered.contains(from));
        if !fresh && !fresh_before {
            return false;
        }
        if fresh {
            self.answered.insert(from);
        }
        if let Some(before) = self.before.as_mut().filter(|_| fresh_before) {
            before.insert(from);
        }
        self.mark = self.mark.max(mark);
        let newest_wins = !mutant!("the first answer of a read wins");
        let newer = self.newest.is_none_or(|(newest, _)| exec > newest && newest_wins);
        if newer {
            self.newest = Some((exec, from));
        }
        newer
    }

    /// Nodes that need not be asked again.
    pub fn answered(&self) -> NodeSet {
        match self.before {
            Some(before) => NodeSet(self.answered.0 & before.0),
            None => self.answered,
        }
    }

    /// PROTOCOL 8.1-i, 8.1-j, 8.1-k, 8.1-l: one comparison of the newest exec with the highest
    /// mark, for all keys of the read.
    pub fn step(&self) -> ReadStep {
        let least = self.quorum - usize::from(mutant!("read quorum one short"));
        let quorum = |answered: NodeSet| answered.len() >= least;
        if !quorum(self.answered) || !self.before.is_none_or(quorum) {
            return ReadStep::Wait;
        }
        let (exec, node) = self.newest.expect("a quorum holds at least one answer");
        match self.mark {
            Some(mark) if mark >= exec && !mutant!("marks not waited for") => {
                ReadStep::WaitExecuted(mark)
            }
            _ => ReadStep::Use(node),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests PROTOCOL 8.1-i, 8.1-j
    #[test]
    fn nothing_in_flight_takes_one_round_trip() {
        let mut read = ReadQuorum::new(3);
        assert!(read.answer(0, 10, None));
        assert!(!read.answer(1, 10, None));
        assert_eq!(read.step(), ReadStep::Wait);
        assert!(read.answer(2, 12, Some(11)));
        assert_eq!(read.step(), ReadStep::Use(2), "a mark below the newest exec is executed there");
    }

    /// tests PROTOCOL 8.1-l
    #[test]
    fn a_mark_at_or_above_the_newest_exec_is_waited_for() {
        let mut read = ReadQuorum::new(2);
        read.answer(4, 10, None);
        read.answer(1, 10, Some(10));
        assert_eq!(read.step(), ReadStep::WaitExecuted(10));
    }

    /// tests PROTOCOL 10-x
    #[test]
    fn while_a_change_comes_into_effect_both_configurations_answer() {
        let mut read = ReadQuorum::joint(2);
        read.answer_as(0, (true, true), 10, None);
        read.answer_as(1, (true, false), 10, None);
        assert_eq!(read.step(), ReadStep::Wait, "the old one alone");
        assert!(!read.answered().contains(1), "its successor may answer still");
        read.answer_as(1, (false, true), 12, None);
        assert_eq!(read.step(), ReadStep::Use(1));
        let mut read = ReadQuorum::joint(2);
        read.answer_as(0, (true, true), 10, None);
        read.answer_as(1, (false, true), 10, None);
        assert_eq!(read.step(), ReadStep::Wait, "the new one alone");
        assert!(!read.answer_as(2, (false, false), 20, Some(30)), "neither");
        read.answer_as(2, (true, true), 10, None);
        assert_eq!(read.step(), ReadStep::Use(0));
    }

    /// tests PROTOCOL 1-b, 3.2-b, 8.1-i
    #[test]
    fn a_repeated_answer_counts_once() {
        let mut read = ReadQuorum::new(2);
        read.answer(4, 10, None);
        assert!(!read.answer(4, 11, Some(20)));
        assert_eq!(read.step(), ReadStep::Wait);
    }
}
