//! One instance of randomized consensus: the rules of PROTOCOL 5.2 for one slot of either class.
//!
//! Purpose: count messages, say when to vote, what to vote, and when the slot is decided.
//! Invariant: agreement, for every set of proposals and every order, loss and delay of messages, as
//! long as each sender says one thing per (phase, kind) and nothing it has not made durable.
//! PROTOCOL 1-d, 5.5-g: the time and who is suspected choose when to vote, never what is counted.
//! What would break it: counting the own message before its flush (PROTOCOL 4.1), a threshold off
//! by one, a coin other than 0 in phase 0, or, under F*, a `?` that is not weak though it must be.

use crate::{Ballot, Class, Config, Digest, Nanos, Node, NodeSet, Slot, Thresholds, Value};

/// Messages of one phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Round {
    states_batch: NodeSet,
    states_null: NodeSet,
    votes_batch: NodeSet,
    votes_null: NodeSet,
    votes_open: NodeSet,
}

impl Round {
    fn states(&self) -> usize {
        self.states_batch.len() + self.states_null.len()
    }
    fn votes(&self) -> usize {
        self.votes_batch.len() + self.votes_null.len() + self.votes_open.len()
    }
}

/// Which messages this node waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Proposals in phase 0, STATEs later.
    First,
    Votes,
}

/// How a decision was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// By proposals alone.
    Fast,
    /// By votes.
    Votes,
    /// Told by a node that knew, or by the owner's SKIP.
    Told,
}

/// What a slot holds for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    pub value: Value,
    pub path: Path,
}

/// What this node must say next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Vote {
        phase: u32,
        ballot: Ballot,
    },
    State {
        phase: u32,
        value: Value,
    },
    Decided(Decision),
    /// Nothing before this time unless messages come.
    WaitUntil(Nanos),
    Nothing,
}

/// What the waiting rule needs to know besides the messages (PROTOCOL 5.5).
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub now: Nanos,
    /// Nodes not waited for.
    pub suspected: NodeSet,
    /// tau1 and tau2.
    pub vote_wait: Nanos,
    pub support_wait: Nanos,
}

impl Waiting {
    /// PROTOCOL 5.5-b, 5.5-c: how long to wait with a vote, as long as it can help: for a value with
    /// `count` proposals while `awaited` nodes have not spoken.
    pub(crate) fn worth(self, count: usize, support: usize, fast: usize, awaited: usize) -> Nanos {
        if count >= support && count + awaited >= fast {
            self.vote_wait
        } else if count < support && count + awaited >= support {
            self.support_wait
        } else {
            0
        }
    }
}

/// Two messages that one correct node cannot both have sent, or two decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction(pub String);

/// State of one slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Consensus {
    proposed_batch: NodeSet,
    proposed_null: NodeSet,
    candidate: Option<Digest>,
    /// Of the `?` of phase 0, those that are weak for the candidate (PROTOCOL 5.5-h).
    weak: NodeSet,
    first: Round,
    /// Rounds of phases 1, 2, ...: empty unless phase 0 did not decide.
    later: Vec<Round>,
    phase: u32,
    stage: Stage,
    /// When a quorum of proposals was complete.
    quorum_at: Option<Nanos>,
    decision: Option<Decision>,
}

impl Default for Consensus {
    fn default() -> Consensus {
        Consensus {
            proposed_batch: NodeSet::EMPTY,
            proposed_null: NodeSet::EMPTY,
            candidate: None,
            weak: NodeSet::EMPTY,
            first: Round::default(),
            later: Vec::new(),
            phase: 0,
            stage: Stage::First,
            quorum_at: None,
            decision: None,
        }
    }
}

/// Phases beyond this are refused: with a fair coin the chance of reaching it is below 2^-4000.
const PHASE_MAX: u32 = 4096;

type Counted = Result<(), Contradiction>;

impl Consensus {
    pub fn decision(&self) -> Option<Decision> {
        self.decision
    }
    /// The batch that any message of this slot named.
    pub fn candidate(&self) -> Option<Digest> {
        self.candidate
    }
    /// Nodes whose PROPOSE was heard.
    pub fn heard(&self) -> NodeSet {
        self.proposed_batch.union(self.proposed_null)
    }
    /// Nodes that hold their fragments durably.
    pub fn holders(&self) -> NodeSet {
        self.proposed_batch
    }
    /// PROTOCOL 13-c: everybody's proposal is known, and they contradict the decision.
    pub(crate) fn unsupported(&self, t: &Thresholds) -> bool {
        // All n proposals, too few of them for the batch.
        let Some(Value::Batch(digest)) = self.decision.map(|it| it.value) else { return false };
        let least = t.least_proposals(Class::of(digest));
        self.heard().len() == t.n && self.proposed_batch.len() < least
    }

    /// PROTOCOL 5.2-x: support and fast threshold of the candidate. While none is named there is none to
    /// count for, and the larger ones do.
    fn thresholds(&self, t: &Thresholds) -> (usize, usize) {
        t.of(self.candidate.map_or(Class::Eager, Class::of))
    }

    /// Whether this node has voted in phase 0 or gone further.
    pub fn has_voted(&self) -> bool {
        self.stage == Stage::Votes || self.phase > 0
    }

    /// Whether this node has voted in the phase that it is in.
    pub(crate) fn awaits_votes(&self) -> bool {
        self.stage == Stage::Votes
    }

    /// The phase that this node is in.
    pub(crate) fn phase(&self) -> u32 {
        self.phase
    }

    /// PROTOCOL 3.2-b: the first message of a key counts; another one with the same key that says
    /// something else is proof of equivocation.
    pub fn propose(&mut self, from: Node, value: Value, now: Nanos, quorum: usize) -> Counted {
        self.name(value)?;
        let (same, other) = match value {
            Value::Batch(_) => (&mut self.proposed_batch, self.proposed_null),
            Value::Null => (&mut self.proposed_null, self.proposed_batch),
        };
        if other.contains(from) {
            return Err(Contradiction(format!("node {from} proposed both null and a batch")));
        }
        same.insert(from);
        if self.quorum_at.is_none() && self.heard().len() >= quorum {
            self.quorum_at = Some(now);
        }
        Ok(())
    }

    /// PROTOCOL 3.2-c, 13-a: a second VOTE of one key that says something else is refused.
    pub fn vote(&mut self, from: Node, phase: u32, ballot: Ballot) -> Counted {
        if !ballot.is_possible(phase) {
            return Err(Contradiction(format!("node {from} cast no possible vote: {ballot:?}")));
        }
        if let Some(candidate) = ballot.candidate() {
            self.name(Value::Batch(candidate))?;
        }
        let weak = self.weak;
        let round = self.round_mut(phase)?;
        let all = round.votes_batch.union(round.votes_null).union(round.votes_open);
        let set = match ballot {
            Ballot::For(Value::Batch(_)) => &mut round.votes_batch,
            Ballot::For(Value::Null) => &mut round.votes_null,
            Ballot::Open(_) | Ballot::Weak(_) => &mut round.votes_open,
        };
        let is_weak = matches!(ballot, Ballot::Weak(_));
        let was_weak = phase == 0 && weak.contains(from);
        if all.contains(from) && (!set.contains(from) || was_weak != is_weak) {
            return Err(Contradiction(format!("node {from} voted twice in phase {phase}")));
        }
        set.insert(from);
        if is_weak {
            self.weak.insert(from);
        }
        let round = self.round(phase);
        if !round.votes_batch.is_empty() && !round.votes_null.is_empty() {
            return Err(Contradiction(format!("two values voted in phase {phase}")));
        }
        Ok(())
    }

    pub fn state(&mut self, from: Node, phase: u32, value: Value) -> Counted {
        self.name(value)?;
        if phase == 0 {
            return Err(Contradiction("a STATE of phase 0".into()));
        }
        let round = self.round_mut(phase)?;
        let (same, other) = match value {
            Value::Batch(_) => (&mut round.states_batch, round.states_null),
            Value::Null => (&mut round.states_null, round.states_batch),
        };
        if other.contains(from) {
            return Err(Contradiction(format!("node {from} has two states in phase {phase}")));
        }
        same.insert(from);
        Ok(())
    }

    /// A fact: DECIDE, SKIP, or a replayed decision.
    pub fn told(&mut self, value: Value) -> Result<bool, Contradiction> {
        self.name(value)?;
        self.decide(value, Path::Told)
    }

    /// PROTOCOL 5.1-c: an owner slot has one candidate, whoever names it.
    /// The batch is known from a SPREAD or META, though nobody has proposed it to this node yet.
    pub fn name(&mut self, value: Value) -> Counted {
        let Value::Batch(digest) = value else { return Ok(()) };
        match self.candidate {
            Some(known) if known != digest => {
                Err(Contradiction("two batches in one owner slot".into()))
            }
            _ => {
                self.candidate = Some(digest);
                Ok(())
            }
        }
    }

    /// These have proposed the candidate: of a slot whose proposals are counted by [`crate::Contest`].
    pub(crate) fn support(&mut self, candidate: Digest, by: NodeSet) -> Counted {
        self.name(Value::Batch(candidate))?;
        self.proposed_batch = by;
        Ok(())
    }

    /// This node has voted in phase 0, as the same says.
    pub(crate) fn vote_cast(&mut self) {
        self.stage = Stage::Votes;
    }

    /// Own VOTE or STATE found at replay: it was said and must not be said differently.
    pub fn resume(&mut self, phase: u32, voted: bool) {
        if (phase, voted) > (self.phase, self.stage == Stage::Votes) {
            self.phase = phase;
            self.stage = if voted { Stage::Votes } else { Stage::First };
        }
    }

    /// PROTOCOL 3.2-d, 13-b: a slot is decided once.
    pub(crate) fn decide(&mut self, value: Value, path: Path) -> Result<bool, Contradiction> {
        match self.decision {
            Some(known) if known.value != value => {
                Err(Contradiction(format!("decided {:?} and then {value:?}", known.value)))
            }
            Some(_) => Ok(false),
            None => {
                self.decision = Some(Decision { value, path });
                Ok(true)
            }
        }
    }

    /// PROTOCOL 5.2: the next thing this node must do, given what was counted so far. Call again
    /// until it answers `Nothing` or `WaitUntil`; a vote or state returned counts here only when it
    /// comes back through [`Consensus::vote`] or [`Consensus::state`] after its flush.
    pub fn advance(
        &mut self,
        slot: Slot,
        config: &Config,
        thresholds: &Thresholds,
        waiting: Waiting,
    ) -> Result<Action, Contradiction> {
        // PROTOCOL 5.2-q: a decided slot needs no more rounds.
        if self.decision.is_some() {
            return Ok(Action::Nothing);
        }
        // PROTOCOL 5.5-a: decisions come before any waiting.
        if let Some((value, path)) = self.reached(thresholds) {
            self.decide(value, path)?;
            return Ok(Action::Decided(Decision { value, path }));
        }
        Ok(match (self.stage, self.phase) {
            (Stage::First, 0) => self.first_vote(thresholds, waiting),
            (Stage::First, phase) => self.later_vote(phase, thresholds),
            (Stage::Votes, phase) => self.next_state(phase, slot, config, thresholds)?,
        })
    }

    /// Whether so little was heard that [`Consensus::advance`] says nothing, at whatever time.
    #[inline]
    pub(crate) fn heard_little(&self, t: &Thresholds) -> bool {
        // PROTOCOL 5.2-d: no quorum of proposals, and none of the votes and states that others send after one.
        self.heard().len() < t.quorum
            && self.phase == 0
            && self.stage == Stage::First
            && self.later.is_empty()
            && self.first.votes() == 0
            // PROTOCOL 5.2-b, 5.2-c
            && self.proposed_batch.len() < self.thresholds(t).1
            && self.proposed_null.len() < t.fast_null
    }

    /// For a node that does not take part in the slot: the decision that the messages show, if any.
    pub fn follow(&mut self, t: &Thresholds) -> Result<Option<Decision>, Contradiction> {
        if self.decision.is_some() {
            return Ok(None);
        }
        let Some((value, path)) = self.reached(t) else { return Ok(None) };
        self.decide(value, path)?;
        Ok(self.decision)
    }

    /// PROTOCOL 5.2 "at any time": late messages always count.
    /// PROTOCOL 5.4-e: all that is counted here is flushed at its sender, the own messages
    /// included.
    fn reached(&self, t: &Thresholds) -> Option<(Value, Path)> {
        let batch = self.candidate.map(Value::Batch);
        // PROTOCOL 5.2-b: fast decisions by proposals.
        if self.proposed_batch.len() >= self.thresholds(t).1 {
            return Some((batch?, Path::Fast));
        }
        // PROTOCOL 5.2-c: the same for null.
        if self.proposed_null.len() >= t.fast_null {
            return Some((Value::Null, Path::Fast));
        }
        // PROTOCOL 5.2-h: f+1 votes decide as they come.
        for round in std::iter::once(&self.first).chain(&self.later) {
            if round.votes_batch.len() >= t.decide {
                return Some((batch?, Path::Votes));
            }
            if round.votes_null.len() >= t.decide {
                return Some((Value::Null, Path::Votes));
            }
        }
        None
    }

    /// PROTOCOL 5.2 phase 0 round 1, with the waiting rule of 5.5.
    /// PROTOCOL 5.2-r: whether this node has proposed does not matter.
    fn first_vote(&mut self, t: &Thresholds, waiting: Waiting) -> Action {
        let heard = self.heard();
        // PROTOCOL 5.2-d, 5.2-n: a quorum, the own message among it only once flushed.
        if heard.len() < t.quorum {
            return Action::Nothing;
        }
        let quorum_at = *self.quorum_at.get_or_insert(waiting.now);
        let (batch, null) = (self.proposed_batch.len(), self.proposed_null.len());
        let (batch_support, batch_fast) = self.thresholds(t);
        let awaited = t.members.without(heard).without(waiting.suspected).len();
        // The value closest to its threshold.
        let (count, support, fast) = if batch + t.majority >= null + batch_support {
            (batch, batch_support, batch_fast)
        } else {
            (null, t.majority, t.fast_null)
        };
        let wait = waiting.worth(count, support, fast, awaited);
        // PROTOCOL 5.5-d: every wait ends.
        if wait > 0 && waiting.now < quorum_at.saturating_add(wait) {
            return Action::WaitUntil(quorum_at.saturating_add(wait));
        }
        // PROTOCOL 5.2-e, 5.2-f, 5.2-g: the batch, null, or `?`.
        let ballot = match self.candidate {
            Some(candidate)
                if batch >= batch_support || mutant!("a vote for whatever was seen") =>
            {
                Ballot::For(Value::Batch(candidate))
            }
            _ if null >= t.majority => Ballot::For(Value::Null),
            // PROTOCOL 5.5-h
            Some(candidate) if t.is_weak(candidate, batch, heard.len()) => Ballot::Weak(candidate),
            _ => Ballot::Open(None),
        };
        // PROTOCOL 5.2-a: one vote in a phase.
        self.stage = Stage::Votes;
        Action::Vote { phase: 0, ballot }
    }

    /// PROTOCOL 5.2 phase p >= 1 round 1.
    fn later_vote(&mut self, phase: u32, t: &Thresholds) -> Action {
        let round = self.round(phase);
        // PROTOCOL 5.2-n
        if round.states() < t.quorum {
            return Action::Nothing;
        }
        // PROTOCOL 5.2-l: a majority of states.
        let ballot = if round.states_null.len() >= t.majority {
            Ballot::For(Value::Null)
        } else if round.states_batch.len() >= t.majority {
            Ballot::For(Value::Batch(self.candidate.expect("a STATE for a batch names it")))
        } else {
            // PROTOCOL 5.2-m, L4: a quorum without a majority of nulls holds at least one STATE for
            // the batch.
            Ballot::Open(self.candidate)
        };
        self.stage = Stage::Votes;
        Action::Vote { phase, ballot }
    }

    /// PROTOCOL 5.2 round 2: the state of the next phase.
    fn next_state(
        &mut self,
        phase: u32,
        slot: Slot,
        config: &Config,
        t: &Thresholds,
    ) -> Result<Action, Contradiction> {
        let round = self.round(phase);
        // PROTOCOL 5.2-n
        if round.votes() < t.quorum {
            return Ok(Action::Nothing);
        }
        let candidate = self.candidate.map(Value::Batch);
        let missing = || Contradiction("a batch was voted for that nobody named".into());
        let nothing_to_take = mutant!("coin of phase 0 is free") && candidate.is_none();
        // PROTOCOL 5.5-i: whoever has heard no other vote than weak ones may be the only one to learn what
        // F* proposals decided.
        let all_weak = phase == 0 && self.weak.len() == round.votes();
        let side = || coin(config, slot, phase, fixed_coins(t, self.candidate));
        // PROTOCOL 5.2-i, 5.2-j, 5.2-o, 5.2-p: a value that was voted for, else what the coin says.
        let value = if !round.votes_batch.is_empty() || all_weak {
            candidate.ok_or_else(missing)?
        } else if !round.votes_null.is_empty() || nothing_to_take || !side() {
            Value::Null
        } else {
            candidate.ok_or_else(missing)?
        };
        self.phase = phase + 1;
        self.stage = Stage::First;
        // PROTOCOL 5.2-k: the next phase begins with the state.
        Ok(Action::State { phase: phase + 1, value })
    }

    fn round(&self, phase: u32) -> &Round {
        match phase {
            0 => &self.first,
            _ => {
                const EMPTY: Round = Round {
                    states_batch: NodeSet::EMPTY,
                    states_null: NodeSet::EMPTY,
                    votes_batch: NodeSet::EMPTY,
                    votes_null: NodeSet::EMPTY,
                    votes_open: NodeSet::EMPTY,
                };
                self.later.get(phase as usize - 1).unwrap_or(&EMPTY)
            }
        }
    }

    fn round_mut(&mut self, phase: u32) -> Result<&mut Round, Contradiction> {
        if phase == 0 {
            return Ok(&mut self.first);
        }
        if phase > PHASE_MAX {
            return Err(Contradiction(format!("phase {phase} is out of range")));
        }
        let index = phase as usize - 1;
        if self.later.len() <= index {
            self.later.resize_with(index + 1, Round::default);
        }
        Ok(&mut self.later[index])
    }
}

/// The last phase whose coin is 0.
/// PROTOCOL 5.5-j: under F* two candidates may be left after phase 0, and one after phase 1.
fn fixed_coins(t: &Thresholds, candidate: Option<Digest>) -> u32 {
    u32::from(t.has_weak_votes && candidate.is_some_and(|it| Class::of(it) == Class::Ready))
}

/// PROTOCOL 5.6-a, 5.6-b, 5.6-c: 0 in phase 0; the cluster's coin, but every fourth phase the
/// node's own.
fn coin(config: &Config, slot: Slot, phase: u32, fixed: u32) -> bool {
    match phase {
        0 => mutant!("coin of phase 0 is free"),
        p if p <= fixed => false,
        p if p % 4 == 0 => config.local_coin.flip(1, config.lane, slot, p),
        p => config.coin.flip(1, config.lane, slot, p),
    }
}
