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
    /// While a change is executed and not in effect: the quorum of the configuration before it, and who
    /// answered for that.
    before: Option<(usize, NodeSet)>,
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
    pub fn joint(before: usize, after: usize) -> ReadQuorum {
        ReadQuorum { before: Some((before, NodeSet::EMPTY)), ..ReadQuorum::new(after) }
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
        let fresh_before = is_old && self.before.is_some_and(|(_, seen)| !seen.contains(from));
        if !fresh && !fresh_before {
            return false;
        }
        if fresh {
            self.answered.insert(from);
        }
        if let Some((_, before)) = self.before.as_mut().filter(|_| fresh_before) {
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

    /// Of these nodes, those in the configuration before and after the newest change, the ones that
    /// are to be asked (again).
    pub fn missing(&self, before: NodeSet, after: NodeSet) -> NodeSet {
        let old = self.before.map_or(NodeSet::EMPTY, |(_, seen)| before.without(seen));
        old.union(after.without(self.answered))
    }

    /// PROTOCOL 8.1-i, 8.1-j, 8.1-k, 8.1-l: one comparison of the newest exec with the highest
    /// mark, for all keys of the read.
    pub fn step(&self) -> ReadStep {
        let short = usize::from(mutant!("read quorum one short"));
        let reached = |least: usize, answered: NodeSet| answered.len() + short >= least;
        let old = self.before.is_none_or(|(least, answered)| reached(least, answered));
        let old = old || mutant!("a read asks the new members only");
        if !reached(self.quorum, self.answered) || !old {
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
        let mut read = ReadQuorum::joint(2, 2);
        read.answer_as(0, (true, true), 10, None);
        read.answer_as(1, (true, false), 10, None);
        assert_eq!(read.step(), ReadStep::Wait, "the old one alone");
        let all = NodeSet::first(3);
        assert_eq!(read.missing(all, all), NodeSet(0b110), "its successor may answer still");
        read.answer_as(1, (false, true), 12, None);
        assert_eq!(read.step(), ReadStep::Use(1));
        let mut read = ReadQuorum::joint(2, 2);
        read.answer_as(0, (true, true), 10, None);
        read.answer_as(1, (false, true), 10, None);
        assert_eq!(read.step(), ReadStep::Wait, "the new one alone");
        assert!(!read.answer_as(2, (false, false), 20, Some(30)), "neither");
        read.answer_as(2, (true, true), 10, None);
        assert_eq!(read.step(), ReadStep::Use(0));
    }

    /// tests PROTOCOL 10-x
    #[test]
    fn quorums_of_both_configurations_are_counted_each_by_its_own_size() {
        // 3,1,1 to 5,1,3: two of the old three, four of the new five.
        let mut read = ReadQuorum::joint(2, 4);
        for (node, counts) in [(0, (true, true)), (1, (true, true)), (3, (false, true))] {
            read.answer_as(node, counts, 10, None);
            assert_eq!(read.step(), ReadStep::Wait);
        }
        read.answer_as(4, (false, true), 10, None);
        assert_eq!(read.step(), ReadStep::Use(0));
        // And back: four of the old five.
        let mut read = ReadQuorum::joint(4, 2);
        read.answer_as(0, (true, true), 10, None);
        read.answer_as(1, (true, true), 10, None);
        read.answer_as(3, (true, false), 10, None);
        assert_eq!(read.step(), ReadStep::Wait);
        read.answer_as(4, (true, false), 10, None);
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
