//! Phases 0 and 1 of a slot of the queue policy under F* (PROTOCOL 5.5-h to 5.5-j): phase 1 may begin with two
//! operations, one that was voted for in phase 0 and one that all votes a node heard were weak for.
//!
//! Purpose: counts votes and states by what they name. The coins of both phases are 0, so that phase 2 begins
//! with null and what was voted for in phase 1, which is one operation; from then on the rounds are those of
//! [`Consensus`], as in any slot.
//! Invariant: [`Consensus`] is told of one candidate: that which is decided, or which a STATE of phase 2 names.
//! What would break it: taking a candidate that a `?` of phase 1 carries.

use crate::consensus::Contradiction;
use crate::{Ballot, Node, NodeSet, Thresholds, Value};

/// The last phase with more than one candidate.
pub(crate) const RIVALS_LAST: u32 = 1;

/// Who said what: each sender one thing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tally<T>(Vec<(T, NodeSet)>);

impl<T> Default for Tally<T> {
    fn default() -> Tally<T> {
        Tally(Vec::new())
    }
}

impl<T: Copy + PartialEq> Tally<T> {
    /// PROTOCOL 3.2-b, 3.2-c: the first one counts. `false`: this sender said something else before.
    pub fn count(&mut self, from: Node, what: T) -> bool {
        let mut place = None;
        for (index, (said, by)) in self.0.iter().enumerate() {
            if *said == what {
                place = Some(index);
            } else if by.contains(from) {
                return false;
            }
        }
        let place = place.unwrap_or_else(|| {
            self.0.push((what, NodeSet::EMPTY));
            self.0.len() - 1
        });
        self.0[place].1.insert(from);
        true
    }

    pub fn heard(&self) -> NodeSet {
        self.0.iter().fold(NodeSet::EMPTY, |all, (_, by)| all.union(*by))
    }

    pub fn by(&self, what: T) -> NodeSet {
        self.0.iter().find(|(said, _)| *said == what).map_or(NodeSet::EMPTY, |(_, by)| *by)
    }

    pub fn iter(&self) -> impl Iterator<Item = (T, NodeSet)> + '_ {
        self.0.iter().copied()
    }
}

/// Votes of phases 0 and 1, and the states between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Rivals {
    votes: [Tally<Ballot>; 2],
    states: Tally<Value>,
}

impl Rivals {
    /// PROTOCOL 3.2-c, 13-a
    pub fn vote(&mut self, from: Node, phase: u32, ballot: Ballot) -> Result<(), Contradiction> {
        if !ballot.is_possible(phase) {
            return Err(Contradiction(format!("node {from} cast no possible vote: {ballot:?}")));
        }
        let votes = &mut self.votes[phase as usize];
        if !votes.count(from, ballot) {
            return Err(Contradiction(format!("node {from} voted twice in phase {phase}")));
        }
        // L1
        let values = votes.iter().filter(|(ballot, _)| matches!(ballot, Ballot::For(_)));
        if values.count() > 1 {
            return Err(Contradiction(format!("two values voted in phase {phase}")));
        }
        Ok(())
    }

    pub fn state(&mut self, from: Node, phase: u32, value: Value) -> Result<(), Contradiction> {
        if phase == 0 {
            return Err(Contradiction("a STATE of phase 0".into()));
        }
        match self.states.count(from, value) {
            true => Ok(()),
            false => Err(Contradiction(format!("node {from} has two states in phase {phase}"))),
        }
    }

    fn voted(&self, phase: u32) -> Option<(Value, NodeSet)> {
        self.votes[phase as usize].iter().find_map(|(ballot, by)| match ballot {
            Ballot::For(value) => Some((value, by)),
            _ => None,
        })
    }

    /// PROTOCOL 5.2-h: f+1 votes decide as they come.
    pub fn reached(&self, t: &Thresholds) -> Option<Value> {
        let enough = |(value, by): (Value, NodeSet)| (by.len() >= t.decide).then_some(value);
        (0..=RIVALS_LAST).find_map(|phase| self.voted(phase).and_then(enough))
    }

    /// PROTOCOL 5.2 phase 1 round 1: the vote, once there is a quorum of states.
    pub fn second_vote(&self, t: &Thresholds) -> Option<Ballot> {
        // PROTOCOL 5.2-n
        if self.states.heard().len() < t.quorum {
            return None;
        }
        // PROTOCOL 5.2-l: a majority of states.
        let most = self.states.iter().find(|(_, by)| by.len() >= t.majority);
        let seen = self.states.iter().find_map(|(value, _)| Ballot::For(value).candidate());
        // PROTOCOL 5.2-m
        Some(most.map_or(Ballot::Open(seen), |(value, _)| Ballot::For(value)))
    }

    /// PROTOCOL 5.2 round 2: the state of the next phase, once there is a quorum of votes.
    pub fn next_state(&self, phase: u32, t: &Thresholds) -> Option<Value> {
        let votes = &self.votes[phase as usize];
        // PROTOCOL 5.2-n
        if votes.heard().len() < t.quorum {
            return None;
        }
        // PROTOCOL 5.2-i: a value that was voted for.
        if let Some((value, _)) = self.voted(phase) {
            return Some(value);
        }
        let mut all = votes.iter();
        Some(match (all.next(), all.next()) {
            // PROTOCOL 5.5-i: all are weak for the same one.
            (Some((Ballot::Weak(candidate), _)), None) => Value::Batch(candidate),
            // PROTOCOL 5.5-j: the coins of both phases are 0.
            _ => Value::Null,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Class, Config, Digest, Fast};

    fn operation(number: Digest) -> Digest {
        Class::Ready.mark(number)
    }

    /// 5,2,1: q = 3, F* = 4.
    fn thresholds() -> Thresholds {
        let config = Config { fast: Fast::Least, ..Config::new((5, 2, 1), 0) };
        config.thresholds().unwrap()
    }

    fn after(votes: &[(Node, Ballot)]) -> Option<Value> {
        let mut rivals = Rivals::default();
        for (from, ballot) in votes {
            rivals.vote(*from, 0, *ballot).unwrap();
        }
        rivals.next_state(0, &thresholds())
    }

    /// tests PROTOCOL 5.5-i, 5.5-j
    #[test]
    fn a_weak_candidate_is_taken_if_all_votes_are_weak_for_it_and_no_other() {
        let (a, b) = (operation(1), operation(2));
        let weak = Ballot::Weak;
        assert_eq!(after(&[(0, weak(a)), (1, weak(a))]), None, "no quorum");
        assert_eq!(after(&[(0, weak(a)), (1, weak(a)), (2, weak(a))]), Some(Value::Batch(a)));
        assert_eq!(after(&[(0, weak(a)), (1, weak(a)), (2, weak(b))]), Some(Value::Null));
        let open = Ballot::Open(None);
        assert_eq!(after(&[(0, weak(a)), (1, weak(a)), (2, open)]), Some(Value::Null));
        let voted = Ballot::For(Value::Batch(b));
        assert_eq!(after(&[(0, weak(a)), (1, weak(a)), (2, voted)]), Some(Value::Batch(b)));
    }

    /// tests PROTOCOL 3.2-c, 5.5-h
    #[test]
    fn a_vote_is_not_taken_back_nor_weak_in_phase_1() {
        let mut rivals = Rivals::default();
        let (a, b) = (operation(1), operation(2));
        rivals.vote(0, 0, Ballot::Weak(a)).unwrap();
        rivals.vote(0, 0, Ballot::Weak(a)).unwrap();
        for other in [Ballot::Weak(b), Ballot::Open(None), Ballot::For(Value::Batch(a))] {
            assert!(rivals.vote(0, 0, other).unwrap_err().0.contains("voted twice"));
        }
        rivals.vote(1, 0, Ballot::For(Value::Batch(a))).unwrap();
        let two = rivals.vote(2, 0, Ballot::For(Value::Batch(b))).unwrap_err();
        assert!(two.0.contains("two values"), "{two:?}");
        assert!(rivals.vote(3, 1, Ballot::Weak(a)).is_err());
        rivals.state(1, 1, Value::Batch(a)).unwrap();
        assert!(rivals.state(1, 1, Value::Null).unwrap_err().0.contains("two states"));
    }

    /// tests PROTOCOL 5.2-l, 5.2-m
    #[test]
    fn of_two_operations_left_a_majority_is_voted_for() {
        let t = thresholds();
        let (a, b) = (Value::Batch(operation(1)), Value::Batch(operation(2)));
        let vote = |states: &[Value]| {
            let mut rivals = Rivals::default();
            for (from, value) in (0..).zip(states) {
                rivals.state(from, 1, *value).unwrap();
            }
            rivals.second_vote(&t)
        };
        assert_eq!(vote(&[a, b]), None);
        assert_eq!(vote(&[a, b, a]), Some(Ballot::Open(Some(operation(1)))));
        assert_eq!(vote(&[b, a, a, a]), Some(Ballot::For(a)));
        assert_eq!(vote(&[Value::Null; 3]), Some(Ballot::For(Value::Null)));
        assert_eq!(vote(&[Value::Null, Value::Null, b]), Some(Ballot::Open(Some(operation(2)))));
    }
}
