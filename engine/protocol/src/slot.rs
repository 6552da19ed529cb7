//! What a node knows and has said about one slot that it has not executed.

use crate::rivals::RIVALS_LAST;
use crate::{
    Ballot, BatchInfo, Consensus, Contest, Digest, Nanos, Node, NodeSet, Queue, Thresholds, Value,
};

/// Something this node says: first appended to the log, later durable and sent (PROTOCOL 4.1-e).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Said<T> {
    pub what: T,
    pub durable: bool,
}

/// Where this node's fragments of the slot's batch are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum Segment {
    #[default]
    None,
    /// Handed to the log.
    Appended,
}

/// One VOTE or STATE of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Vote(u32, Ballot),
    State(u32, Value),
}

impl Step {
    pub fn phase(self) -> u32 {
        match self {
            Step::Vote(phase, _) | Step::State(phase, _) => phase,
        }
    }

    /// The candidate that it names.
    pub fn candidate(self) -> Option<Digest> {
        match self {
            Step::Vote(_, ballot) => ballot.candidate(),
            Step::State(_, value) => Ballot::For(value).candidate(),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct SlotState {
    pub consensus: Consensus,
    /// Who proposed what, under the queue policy.
    pub contest: Option<Box<Contest>>,
    /// The metas are known.
    pub batch: Option<BatchInfo>,
    pub segment: Segment,
    /// This node's PROPOSE.
    pub proposal: Option<Said<Value>>,
    /// This node's VOTEs and STATEs, in order.
    pub steps: Vec<Said<Step>>,
    /// This node opened the slot.
    pub opened: bool,
    /// PROPOSE(s, 0) came from the owner, which thereby says that it may not know the slot.
    pub owner_null: bool,
    /// Since when the slot, or a higher one, is in use here.
    pub since: Nanos,
    /// The owner said that a large batch is on its way.
    pub announced: bool,
    /// Since when a candidate is named here, or announced.
    pub named_since: Option<Nanos>,
    /// When the own record of the proposal was handed to the log: measures the flush.
    pub appended_at: Nanos,
    /// When to ask the others next, and how long to wait after that.
    pub pull_at: Nanos,
    pub pull_wait: Nanos,
    /// Members heard when a quorum was complete, to measure how late the last one is.
    pub quorum_at: Option<Nanos>,
    /// Own slots passed over by SKIP.
    pub skipped: bool,
}

impl SlotState {
    pub fn new(now: Nanos, pull_wait: Nanos) -> SlotState {
        SlotState { since: now, pull_at: now + pull_wait, pull_wait, ..SlotState::default() }
    }

    /// Counts a PROPOSE.
    pub fn propose(
        &mut self,
        from: Node,
        value: Value,
        now: Nanos,
        quorum: usize,
        is_queue: bool,
    ) -> Result<(), crate::consensus::Contradiction> {
        match is_queue {
            true => self.contest.get_or_insert_default().propose(from, value, now, quorum),
            false => self.consensus.propose(from, value, now, quorum),
        }
    }

    /// Counts a VOTE. `rivals`: two operations of a queue may be voted for, under F*.
    pub fn vote(
        &mut self,
        from: Node,
        phase: u32,
        ballot: Ballot,
        rivals: bool,
    ) -> Result<(), crate::consensus::Contradiction> {
        match rivals && phase <= RIVALS_LAST {
            true => self.contest.get_or_insert_default().vote(from, phase, ballot),
            false => self.consensus.vote(from, phase, ballot),
        }
    }

    /// Counts a STATE, likewise.
    pub fn state(
        &mut self,
        from: Node,
        phase: u32,
        value: Value,
        rivals: bool,
    ) -> Result<(), crate::consensus::Contradiction> {
        match rivals && phase <= RIVALS_LAST {
            true => self.contest.get_or_insert_default().state(from, phase, value),
            false => self.consensus.state(from, phase, value),
        }
    }

    /// Nodes whose PROPOSE was heard.
    pub fn heard(&self) -> NodeSet {
        self.contest.as_ref().map_or(self.consensus.heard(), |contest| contest.heard())
    }

    /// PROTOCOL 13-c
    pub fn unsupported(&self, t: &Thresholds) -> bool {
        match &self.contest {
            Some(contest) => contest.unsupported(self.decided(), t),
            None => self.consensus.unsupported(t),
        }
    }

    /// What this node has named in the slot, as far as it did.
    fn named(&self) -> impl Iterator<Item = Digest> + '_ {
        let proposed = self.proposal.and_then(|said| match said.what {
            Value::Batch(digest) => Some(digest),
            Value::Null => None,
        });
        let steps = self.steps.iter().filter_map(|said| said.what.candidate());
        proposed.into_iter().chain(steps).chain(self.consensus.candidate())
    }

    /// PROTOCOL 8.1-c: whether what this node has named here may touch what is asked for.
    pub fn may_touch(&self, queue: Option<&Queue>, touches: impl Fn(&BatchInfo) -> bool) -> bool {
        match (&self.batch, queue) {
            (Some(batch), _) => touches(batch),
            (None, None) => true,
            (None, Some(queue)) => {
                self.named().any(|digest| queue.stored(digest).is_none_or(&touches))
            }
        }
    }

    /// What decides what this node does with the slot, but for when.
    #[cfg(feature = "mutants")]
    pub fn fingerprint(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        (&self.batch, self.segment, self.proposal, self.opened, self.skipped).hash(hasher);
        match self.decided() {
            Some(value) => value.hash(hasher),
            None => (&self.consensus, &self.contest, &self.steps).hash(hasher),
        }
        (self.owner_null, self.announced, self.named_since.is_some()).hash(hasher);
    }

    pub fn decided(&self) -> Option<Value> {
        self.consensus.decision().map(|decision| decision.value)
    }

    /// PROTOCOL 8.1-b: whether this node has said, or knows as decided, that the slot holds a
    /// batch.
    pub fn named_here(&self) -> bool {
        if mutant!("marks of decided slots only") {
            return matches!(self.decided(), Some(Value::Batch(_)));
        }
        let proposed = matches!(self.proposal, Some(Said { what: Value::Batch(_), .. }));
        let stepped = self.steps.iter().any(|said| said.what.candidate().is_some());
        proposed || stepped || matches!(self.decided(), Some(Value::Batch(_)))
    }
}
