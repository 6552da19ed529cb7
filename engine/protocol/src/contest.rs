//! Phase 0 of a slot of the queue policy, in which nodes propose different operations (PROTOCOL 5.2, 6.4).
//!
//! Purpose: counts proposals by candidate, and casts the vote of phase 0. From then on at most one
//! candidate is left (5.3, L5), and the rounds are those of [`Consensus`], like in any slot.
//! Invariant: a candidate is handed to [`Consensus`] only with the proposals of a majority, so no two are.
//! What would break it: candidates that are sets of operations and compared for equality (6.4-f).

use crate::consensus::{Action, Consensus, Contradiction, Waiting};
use crate::{Ballot, Class, Config, Digest, Nanos, Node, NodeSet, Slot, Thresholds, Value};

/// The proposals of one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Contest {
    /// PROTOCOL 6.4-f: each by the one operation that it names.
    proposed: Vec<(Digest, NodeSet)>,
    heard: NodeSet,
    /// When a quorum of proposals was complete.
    quorum_at: Option<Nanos>,
}

impl Contest {
    /// Nodes whose PROPOSE was heard.
    pub fn heard(&self) -> NodeSet {
        self.heard
    }

    /// Counts a PROPOSE.
    /// PROTOCOL 3.2-c: a second one of the same node that names another operation takes back the first.
    pub fn propose(
        &mut self,
        from: Node,
        value: Value,
        now: Nanos,
        quorum: usize,
    ) -> Result<(), Contradiction> {
        let Value::Batch(candidate) = value else {
            return Err(Contradiction(format!("node {from} proposed null to a queue")));
        };
        let (same, other): (Vec<_>, Vec<_>) =
            self.proposed.iter().partition(|(of, _)| *of == candidate);
        if other.iter().any(|(_, by)| by.contains(from)) {
            return Err(Contradiction(format!("node {from} proposed two operations")));
        }
        if same.is_empty() {
            self.proposed.push((candidate, NodeSet::EMPTY));
        }
        let known = self.proposed.iter_mut().find(|(of, _)| *of == candidate);
        known.expect("inserted above").1.insert(from);
        self.heard.insert(from);
        if self.quorum_at.is_none() && self.heard.len() >= quorum {
            self.quorum_at = Some(now);
        }
        Ok(())
    }

    /// What most nodes proposed.
    fn leader(&self) -> Option<(Digest, NodeSet)> {
        self.proposed.iter().copied().max_by_key(|(of, by)| (by.len(), std::cmp::Reverse(*of)))
    }

    /// Names the candidate that a majority has proposed, if there is one.
    pub(crate) fn lead(
        &self,
        consensus: &mut Consensus,
        t: &Thresholds,
    ) -> Result<(), Contradiction> {
        match self.leader() {
            Some((candidate, by)) if by.len() >= t.of(Class::Ready).0 => {
                consensus.support(candidate, by)
            }
            _ => Ok(()),
        }
    }

    /// As [`Consensus::advance`], with the proposals counted here.
    ///
    /// # Errors
    /// As there.
    pub fn advance(
        &self,
        consensus: &mut Consensus,
        slot: Slot,
        config: &Config,
        t: &Thresholds,
        waiting: Waiting,
    ) -> Result<Action, Contradiction> {
        self.lead(consensus, t)?;
        if consensus.decision().is_some() || consensus.has_voted() {
            return consensus.advance(slot, config, t, waiting);
        }
        // PROTOCOL 5.5-a: decisions come before any waiting.
        match consensus.follow(t)? {
            Some(decision) => Ok(Action::Decided(decision)),
            None => Ok(self.first_vote(consensus, t, waiting)),
        }
    }

    /// PROTOCOL 5.2 phase 0 round 1, with the waiting rule of 5.5. Null is no proposal here.
    fn first_vote(&self, consensus: &mut Consensus, t: &Thresholds, waiting: Waiting) -> Action {
        // PROTOCOL 5.2-d
        if self.heard.len() < t.quorum {
            return Action::Nothing;
        }
        let (support, fast) = t.of(Class::Ready);
        let (candidate, by) = self.leader().expect("a quorum has proposed something");
        let awaited = t.members.without(self.heard).without(waiting.suspected).len();
        let wait = waiting.worth(by.len(), support, fast, awaited);
        let until = self.quorum_at.unwrap_or(waiting.now).saturating_add(wait);
        // PROTOCOL 5.5-d: every wait ends.
        if wait > 0 && waiting.now < until {
            return Action::WaitUntil(until);
        }
        // PROTOCOL 5.2-e, 5.2-g: the operation that enough have proposed, or `?`.
        let ballot = match by.len() >= support {
            true => Ballot::For(Value::Batch(candidate)),
            false => Ballot::Open(None),
        };
        consensus.vote_cast();
        Action::Vote { phase: 0, ballot }
    }

    /// PROTOCOL 13-c: everybody's proposal is known, and they contradict the decision.
    pub(crate) fn unsupported(&self, decided: Option<Value>, t: &Thresholds) -> bool {
        let Some(Value::Batch(digest)) = decided else { return false };
        let by = self.proposed.iter().find(|(of, _)| *of == digest);
        self.heard.len() == t.n && by.map_or(0, |(_, by)| by.len()) < t.of(Class::Ready).0
    }
}
