//! Phase 0 of a slot of the queue policy, in which nodes propose different operations (PROTOCOL 5.2, 6.4).
//!
//! Purpose: counts proposals by candidate, and casts the vote of phase 0. From then on at most one
//! candidate is left (5.3, L5), and the rounds are those of [`Consensus`], like in any slot; under F* it is
//! one later, see `rivals`.
//! Invariant: a candidate is handed to [`Consensus`] only with the proposals of a majority, so no two are;
//! under F* only when it is decided.
//! What would break it: candidates that are sets of operations and compared for equality (6.4-f).

use crate::consensus::{Action, Consensus, Contradiction, Path, Waiting};
use crate::rivals::{RIVALS_LAST, Rivals, Tally};
use crate::{Ballot, Class, Config, Digest, Nanos, Node, NodeSet, Slot, Thresholds, Value};

/// The proposals of one slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Contest {
    /// PROTOCOL 6.4-f: each by the one operation that it names.
    proposed: Tally<Digest>,
    /// Of phases 0 and 1, under F*.
    rivals: Rivals,
    /// When a quorum of proposals was complete.
    quorum_at: Option<Nanos>,
}

impl Contest {
    /// Nodes whose PROPOSE was heard.
    pub fn heard(&self) -> NodeSet {
        self.proposed.heard()
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
        if !self.proposed.count(from, candidate) {
            return Err(Contradiction(format!("node {from} proposed two operations")));
        }
        if self.quorum_at.is_none() && self.heard().len() >= quorum {
            self.quorum_at = Some(now);
        }
        Ok(())
    }

    /// Counts a VOTE of phase 0 or 1, under F*.
    ///
    /// # Errors
    /// As [`Consensus::vote`].
    pub fn vote(&mut self, from: Node, phase: u32, ballot: Ballot) -> Result<(), Contradiction> {
        self.rivals.vote(from, phase, ballot)
    }

    /// Counts a STATE of phase 1, under F*.
    ///
    /// # Errors
    /// As [`Consensus::state`].
    pub fn state(&mut self, from: Node, phase: u32, value: Value) -> Result<(), Contradiction> {
        self.rivals.state(from, phase, value)
    }

    /// What most nodes proposed.
    fn leader(&self) -> Option<(Digest, NodeSet)> {
        self.proposed.iter().max_by_key(|(of, by)| (by.len(), std::cmp::Reverse(*of)))
    }

    /// Names the candidate that a majority has proposed, if there is one.
    fn lead(&self, consensus: &mut Consensus, t: &Thresholds) -> Result<(), Contradiction> {
        match self.leader() {
            Some((candidate, by)) if by.len() >= t.of(Class::Ready).0 => {
                consensus.support(candidate, by)
            }
            _ => Ok(()),
        }
    }

    /// The decision that what was heard shows, if there was none.
    ///
    /// # Errors
    /// As [`Consensus::advance`].
    pub(crate) fn follow(
        &self,
        consensus: &mut Consensus,
        t: &Thresholds,
    ) -> Result<Option<crate::Decision>, Contradiction> {
        if !t.has_weak_votes {
            self.lead(consensus, t)?;
        } else if let Some((value, path)) = self.reached(t) {
            consensus.name(value)?;
            if consensus.decide(value, path)? {
                return Ok(consensus.decision());
            }
        }
        consensus.follow(t)
    }

    /// PROTOCOL 5.2 "at any time", in phases 0 and 1 under F*.
    fn reached(&self, t: &Thresholds) -> Option<(Value, Path)> {
        // PROTOCOL 5.2-b, 5.5-h: fast decisions by proposals.
        let fast = self.leader().filter(|(_, by)| by.len() >= t.of(Class::Ready).1);
        let fast = fast.map(|(candidate, _)| (Value::Batch(candidate), Path::Fast));
        fast.or_else(|| self.rivals.reached(t).map(|value| (value, Path::Votes)))
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
        // PROTOCOL 5.5-a: decisions come before any waiting.
        if let Some(decision) = self.follow(consensus, t)? {
            return Ok(Action::Decided(decision));
        }
        // PROTOCOL 5.2-q
        if consensus.decision().is_some() {
            return Ok(Action::Nothing);
        }
        if !consensus.has_voted() {
            return Ok(self.first_vote(consensus, t, waiting));
        }
        if !t.has_weak_votes || consensus.phase() > RIVALS_LAST {
            return consensus.advance(slot, config, t, waiting);
        }
        Ok(self.go_on(consensus, t))
    }

    /// After the vote of phase 0, under F*, up to the state of phase 2.
    fn go_on(&self, consensus: &mut Consensus, t: &Thresholds) -> Action {
        let phase = consensus.phase();
        if consensus.awaits_votes() {
            let Some(value) = self.rivals.next_state(phase, t) else { return Action::Nothing };
            consensus.resume(phase + 1, false);
            // PROTOCOL 5.2-k: the next phase begins with the state.
            return Action::State { phase: phase + 1, value };
        }
        let Some(ballot) = self.rivals.second_vote(t) else { return Action::Nothing };
        consensus.resume(phase, true);
        Action::Vote { phase, ballot }
    }

    /// PROTOCOL 5.2 phase 0 round 1, with the waiting rule of 5.5. Null is no proposal here.
    fn first_vote(&self, consensus: &mut Consensus, t: &Thresholds, waiting: Waiting) -> Action {
        let heard = self.heard();
        // PROTOCOL 5.2-d
        if heard.len() < t.quorum {
            return Action::Nothing;
        }
        let (support, fast) = t.of(Class::Ready);
        let (candidate, by) = self.leader().expect("a quorum has proposed something");
        let awaited = t.members.without(heard).without(waiting.suspected).len();
        let wait = waiting.worth(by.len(), support, fast, awaited);
        let until = self.quorum_at.unwrap_or(waiting.now).saturating_add(wait);
        // PROTOCOL 5.5-d: every wait ends.
        if wait > 0 && waiting.now < until {
            return Action::WaitUntil(until);
        }
        // PROTOCOL 5.2-e, 5.2-g, 5.5-h: the operation that enough have proposed, or `?`, weak if some
        // operation may be decided.
        let ballot = if by.len() >= support {
            Ballot::For(Value::Batch(candidate))
        } else if t.is_weak(candidate, by.len(), heard.len()) {
            Ballot::Weak(candidate)
        } else {
            Ballot::Open(None)
        };
        consensus.vote_cast();
        Action::Vote { phase: 0, ballot }
    }

    /// PROTOCOL 13-c: everybody's proposal is known, and they contradict the decision.
    pub(crate) fn unsupported(&self, decided: Option<Value>, t: &Thresholds) -> bool {
        let Some(Value::Batch(digest)) = decided else { return false };
        let least = t.least_proposals(Class::Ready);
        self.heard().len() == t.n && self.proposed.by(digest).len() < least
    }
}
