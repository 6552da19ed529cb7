//! Restart from disk: records and recorded decisions become a [`Core`] again (PROTOCOL 9.1).
//!
//! Invariant: what this node said before is said again, the same; where there is no record nothing
//! was ever sent. The first record of a key wins.

use crate::core::Core;
use crate::effects::Record;
use crate::rivals::RIVALS_LAST;
use crate::slot::{Said, Segment, SlotState, Step};
use crate::{Ballot, BatchInfo, Change, Config, ConfigError, Fast, Membership, Nanos, Slot, Value};
use std::collections::BTreeMap;

/// Collects a replayed log.
pub struct Recovery {
    core: Core,
    /// Records met before the checkpoint that recovery starts from was: who owns their slots is not
    /// known yet.
    early: Option<Vec<(Record, Option<BatchInfo>)>>,
    slots: BTreeMap<Slot, SlotState>,
}

impl Recovery {
    pub fn new(config: Config) -> Result<Recovery, ConfigError> {
        Ok(Recovery { core: Core::new(config)?, early: None, slots: BTreeMap::new() })
    }

    /// Begins at a checkpoint: all slots below `exec` are applied, and what the node said in them
    /// is settled (PROTOCOL 9.2).
    pub fn begin_at(&mut self, exec: Slot) {
        assert!(self.core.exec == 0 && self.slots.is_empty(), "recovery begins once");
        self.core.exec = exec;
        if let Some(queue) = &mut self.core.queue {
            queue.passed(exec);
        }
        self.early = Some(Vec::new());
    }

    /// One record, in log order. A `Hold` or `SegmentOnly` carries the batch's metas.
    pub fn record(&mut self, record: Record, batch: Option<BatchInfo>) -> Result<(), String> {
        if let Some(early) = &mut self.early {
            early.push((record, batch));
            return Ok(());
        }
        match record {
            Record::Hold { slot, digest } => {
                let opened = self.core.owner(slot) == self.core.config.me;
                let Some(state) = self.slot(slot) else { return Ok(()) };
                name(state, slot, Value::Batch(digest))?;
                state.segment = Segment::Appended;
                state.opened = opened;
                state.batch = state.batch.take().or(batch);
                if !mutant!("promises forgotten at restart") {
                    said(state, Value::Batch(digest));
                }
            }
            Record::SegmentOnly { slot, digest } => {
                // PROTOCOL 5.2-v: no proposal follows from it.
                let Some(state) = self.slot(slot) else { return Ok(()) };
                name(state, slot, Value::Batch(digest))?;
                state.segment = Segment::Appended;
                state.batch = state.batch.take().or(batch);
                if mutant!("late fragments replayed as a promise") {
                    let durable = true;
                    state.proposal = Some(Said { what: Value::Batch(digest), durable });
                }
            }
            Record::Propose { slot, candidate } => {
                if let Some(state) = self.slot(slot) {
                    said(state, Value::Batch(candidate));
                }
            }
            Record::NoHold { .. } if mutant!("refusals forgotten at restart") => {}
            Record::Vote { .. } if mutant!("votes forgotten at restart") => {}
            Record::Reserve { .. } if mutant!("reservation forgotten at restart") => {}
            Record::NoHold { from, to } => {
                let (owner, mut slot) = (self.core.owner(from), from);
                while slot < to {
                    if let Some(state) = self.slot(slot) {
                        said(state, Value::Null);
                    }
                    slot = self.core.configurations.next_of(owner, slot + 1);
                }
            }
            Record::Vote { slot, phase, ballot } => self.step(slot, Step::Vote(phase, ballot))?,
            Record::State { slot, phase, value } => self.step(slot, Step::State(phase, value))?,
            Record::Reserve { to } => {
                self.core.reserved = self.core.reserved.max(to);
            }
        }
        Ok(())
    }

    /// The metas of a slot's batch, recorded without fragments.
    pub fn meta(&mut self, slot: Slot, batch: BatchInfo) {
        if let Some(state) = self.slot(slot) {
            state.batch.get_or_insert(batch);
        }
    }

    /// PROTOCOL 9.1-h: a decision that was recorded: a fact.
    pub fn decided(&mut self, slot: Slot, value: Value) -> Result<(), String> {
        let Some(state) = self.slot(slot) else { return Ok(()) };
        state.consensus.told(value).map(|_| ()).map_err(|c| format!("slot {slot}: {}", c.0))
    }

    /// The next slot that can be applied, in order; call until `None` after each record.
    pub fn apply(&mut self) -> Option<(Slot, Value)> {
        let slot = self.core.exec;
        let state = self.slots.get(&slot)?;
        let value = state.decided()?;
        if value != Value::Null && state.batch.is_none() {
            return None;
        }
        self.slots.remove(&slot);
        self.core.exec += 1;
        if let Some(queue) = &mut self.core.queue {
            queue.decided(match value {
                Value::Null => None,
                Value::Batch(candidate) => Some(candidate),
            });
        }
        Some((slot, value))
    }

    /// The state of a checkpoint that recovery starts from.
    ///
    /// # Errors
    /// If records met before contradict each other.
    pub fn configure(&mut self, membership: Membership) -> Result<(), String> {
        self.core.set_membership(membership);
        let early = self.early.take().unwrap_or_default();
        early.into_iter().try_for_each(|(record, batch)| self.record(record, batch))
    }

    /// Whether the log tells all that a node needs that has spoken of the slots recorded: a node
    /// that jumped, and whose newest checkpoint is lost, has not the decisions that it jumped over.
    pub fn check(&self) -> Result<(), String> {
        let (exec, alpha) = (self.core.exec, self.core.config.alpha);
        match self.slots.last_key_value() {
            Some((slot, _)) if *slot >= exec + alpha => Err(format!(
                "slot {slot} is recorded, and decisions from slot {exec} on are missing"
            )),
            _ => Ok(()),
        }
    }

    /// A change was applied and admitted.
    pub fn change(&mut self, change: Change) {
        self.core.take_change(change);
    }

    /// All slots below are applied.
    pub fn exec(&self) -> Slot {
        self.core.exec
    }

    /// The core as it was, minus what was only in memory.
    pub fn finish(mut self, now: Nanos) -> Core {
        assert!(self.early.is_none(), "recovery from a checkpoint ends with its membership");
        let core = &mut self.core;
        core.seen = core.exec;
        core.reserved_appended = core.reserved;
        // PROTOCOL 4.3-f, 4.3-g, 4.3-h: own_next = R0; own slots below it without a record are
        // unknown.
        core.own_next = core.own_from(core.own_next.max(core.reserved));
        core.unknown_next = 0;
        // A node that is no member has none, and none of those that it will have later is unknown.
        core.unknown_end = core.reserved;
        let wait = core.pull_wait();
        for (slot, mut state) in self.slots {
            assert!(
                slot < core.exec + core.config.alpha,
                "a record of slot {slot} lies beyond exec {} + alpha: decisions are missing",
                core.exec
            );
            while core.exec + (core.slots.len() as Slot) < slot {
                core.slots.push_back(SlotState::new(now, wait));
            }
            state.since = now;
            state.pull_at = now;
            state.pull_wait = wait;
            state.named_since = state.consensus.candidate().map(|_| now);
            let quorum = core.at(slot).thresholds.quorum;
            let (is_queue, rivals) = (core.is_queue(), core.has_rivals());
            resume(&mut state, core.config.me, (now, quorum), is_queue, rivals);
            if let (Some(queue), Some(Said { what: Value::Batch(candidate), .. })) =
                (&mut core.queue, state.proposal)
            {
                queue.ready(candidate, slot);
            }
            core.own_open += usize::from(state.opened);
            core.slots.push_back(state);
            core.seen = slot + 1;
        }
        if core.own_next < core.exec {
            core.own_next = core.own_from(core.exec);
        }
        self.core
    }

    fn slot(&mut self, slot: Slot) -> Option<&mut SlotState> {
        (slot >= self.core.exec).then(|| self.slots.entry(slot).or_default())
    }

    fn step(&mut self, slot: Slot, step: Step) -> Result<(), String> {
        // PROTOCOL 5.5-l: nodes of other terms cast no such vote.
        if matches!(step, Step::Vote(_, Ballot::Weak(_))) && self.core.config.fast == Fast::Support
        {
            return Err(format!(
                "slot {slot}: this node was founded with fast = \"{}\" and is started with fast = \"{}\": \
                 write the former into its configuration",
                Fast::Least,
                Fast::Support
            ));
        }
        let has_rivals = self.core.has_rivals();
        let Some(state) = self.slot(slot) else { return Ok(()) };
        // Two operations of a queue may be voted for, under F*.
        let may_differ = has_rivals && step.phase() <= RIVALS_LAST;
        if let Some(digest) = step.candidate().filter(|_| !may_differ) {
            name(state, slot, Value::Batch(digest))?;
        }
        // PROTOCOL 5.2-w
        if !state.steps.iter().any(|said| same_key(said.what, step)) {
            state.steps.push(Said { what: step, durable: true });
        }
        Ok(())
    }
}

fn name(state: &mut SlotState, slot: Slot, value: Value) -> Result<(), String> {
    state.consensus.name(value).map_err(|c| format!("slot {slot}: {}", c.0))
}

fn said(state: &mut SlotState, value: Value) {
    // PROTOCOL 5.2-w: the first record of a key wins.
    state.proposal.get_or_insert(Said { what: value, durable: true });
}

fn same_key(a: Step, b: Step) -> bool {
    match (a, b) {
        (Step::Vote(a, _), Step::Vote(b, _)) | (Step::State(a, _), Step::State(b, _)) => a == b,
        _ => false,
    }
}

/// PROTOCOL 4.1-g: counts the own recorded messages again: they were sent, or may have been.
fn resume(
    state: &mut SlotState,
    me: crate::Node,
    (now, quorum): (Nanos, usize),
    is_queue: bool,
    rivals: bool,
) {
    const OWN: &str = "own records do not contradict each other";
    if let Some(said) = state.proposal {
        state.propose(me, said.what, now, quorum, is_queue).expect(OWN);
    }
    for said in state.steps.clone() {
        match said.what {
            Step::Vote(phase, ballot) => {
                state.vote(me, phase, ballot, rivals).expect(OWN);
                state.consensus.resume(phase, true);
            }
            Step::State(phase, value) => {
                state.state(me, phase, value, rivals).expect(OWN);
                state.consensus.resume(phase, false);
            }
        }
    }
}
