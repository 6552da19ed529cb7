//! What goes into the core and what comes out.
//!
//! Invariant: a message whose record must be durable first exists only as a [`Release`] inside
//! [`Effect::Persist`]; it becomes an [`Effect::Send`] when the engine hands the release back with
//! [`Input::Durable`] after the flush (PROTOCOL 4.1-a, 4.1-b, 4.1-c, 13-d). The order is in the
//! types, not in a rule to remember.

use crate::{Ballot, BatchInfo, Change, Digest, Message, Node, Slot, Value};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message from another node.
    Message { from: Node, message: Message },
    /// SPREAD of a batch with this node's fragments, complete and checked, or ASSIGN of one that is
    /// stored. `room` says whether the log can take them; if not, the node proposes 0.
    Spread { from: Node, slot: Slot, batch: BatchInfo, room: bool },
    /// The metas of a slot's batch, learned from any node. Of use only once the slot's candidate is
    /// known: feed the DECIDE that came with it first, else it is dropped.
    Meta { slot: Slot, batch: BatchInfo },
    /// A range of facts asked for with `facts` has been fed in; the peer's exec.
    FactsEnd { from: Node, exec: Slot },
    /// Queue policy: this operation, accepted here, is stored at D nodes.
    Ready { candidate: Digest },
    /// Clients' operations, encoded and ready; the caller has checked [`crate::Core::can_open`].
    Open { batch: BatchInfo },
    /// The record that carried this release is on stable storage.
    Durable(Release),
    /// A slot whose batch may be a change was applied: what came of it. Comes before any other input.
    Executed { change: Option<Change> },
    /// A read must see everything up to and with this slot.
    InUse { slot: Slot },
    /// Time has passed.
    Tick,
}

/// A record for the log. The engine adds bytes: the metas and fragments of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// Own fragments of the batch of this slot, and PROPOSE(slot, 1). Of class R: its metas.
    // PROTOCOL 6.2-c: one record.
    Hold {
        slot: Slot,
        digest: Digest,
    },
    /// Own fragments that came too late to propose: no promise.
    SegmentOnly {
        slot: Slot,
        digest: Digest,
    },
    /// PROPOSE(slot, candidate) of the queue policy.
    Propose {
        slot: Slot,
        candidate: Digest,
    },
    /// PROPOSE(s, 0) for the slots of one owner in `[from, to)`.
    NoHold {
        from: Slot,
        to: Slot,
    },
    Vote {
        slot: Slot,
        phase: u32,
        ballot: Ballot,
    },
    State {
        slot: Slot,
        phase: u32,
        value: Value,
    },
    /// Own slots below this may be opened, assigned or skipped.
    Reserve {
        to: Slot,
    },
}

/// What becomes true, and is sent, when its record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Release {
    Nothing,
    Propose { slot: Slot, value: Value },
    ProposeNull { from: Slot, to: Slot },
    Vote { slot: Slot, phase: u32, ballot: Ballot },
    State { slot: Slot, phase: u32, value: Value },
    Reserve { to: Slot },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// All other members.
    Others,
    One(Node),
}

/// What the engine must do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Append the record; when it is flushed, hand `release` back.
    Persist {
        record: Record,
        release: Release,
    },
    Send {
        to: Target,
        message: Message,
    },
    /// The batch given with [`Input::Open`] has this slot: spread it, and append its record.
    Opened {
        slot: Slot,
    },
    /// Queue policy: this slot holds this operation; its metas are asked for if they are not here.
    Chosen {
        slot: Slot,
        candidate: Digest,
    },
    /// Send SPREAD of an own open slot again to one node.
    SpreadAgain {
        slot: Slot,
        to: Node,
    },
    /// Send the metas of this slot's batch, if they are known here.
    SendMeta {
        slot: Slot,
        to: Node,
    },
    /// Send the decisions of executed slots in `[from, until)`, with metas, and the own exec.
    SendFacts {
        from: Slot,
        until: Slot,
        to: Node,
    },
    /// Execute this slot; slots come in order without gaps.
    Apply {
        slot: Slot,
        value: Value,
    },
    /// An own slot was decided null though it had been opened: its operations may be opened again.
    Void {
        slot: Slot,
    },
    /// A broken invariant: the node must stop and say this.
    Fatal(String),
}

/// A reusable list of effects.
#[derive(Debug, Default)]
pub struct Effects {
    pub list: Vec<Effect>,
}

impl Effects {
    pub(crate) fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }
    pub(crate) fn send(&mut self, to: Target, message: Message) {
        self.list.push(Effect::Send { to, message });
    }
}
