//! A node under the queue policy (PROTOCOL 6.4): slots are filled by all nodes together, each with the
//! operation that waits longest.
//!
//! Purpose: every operation is stored by the machinery of class R (`assign`, `ahead`); here is what comes
//! after it instead of an own slot: the core is told what is stored and what is READY, an operation that
//! was chosen is executed from what is held, one that its owner does not go on with is taken over, and
//! one that gets no slot any more is dropped.
//! Invariant: the core is told READY only when D members have said that the operation is durable there;
//! what is held is dropped only when it was executed, or when no slot can hold it any more (6.4-g).
//! What would break it: taking over what may lie in a slot that was passed over unseen.

use crate::assign::is_stored;
use crate::batch::{Batch, Parcel};
use crate::node::{Known, Node};
use crate::wire::client::{ErrorCode, RequestError};
use crate::wire::cursor::{Reader, Writer};
use crate::wire::node::kind;
use racos_machine::OpId;
use racos_net::Link;
use racos_protocol::{Digest, Input, Nanos, Policy, Slot};
use racos_storage::device::Device;
use std::collections::BTreeMap;

/// An operation that is stored and does not wait for a slot for so long is asked about, and again after
/// pauses that double.
const ASK_NS: Nanos = 50_000_000;
/// How often it is: fewer than D nodes have it, then.
const ASKS_MAX: u32 = 6;
/// Most that are asked about in one turn.
const ASKS_A_TURN: usize = 64;

/// An operation whose owner may not go on with it.
struct Asked {
    stored: Vec<(u8, u32)>,
    at: Nanos,
    asks: u32,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Queued {
    /// What is held, by the slot below which it is in none.
    names: BTreeMap<(Slot, Digest), OpId>,
    /// Slots that came to hold an operation, until the effects of the same step are carried out.
    pub chosen: Vec<(Slot, OpId)>,
    asked: BTreeMap<OpId, Asked>,
    /// When to look for what its owner left; none: nothing new has come since there was none.
    look_at: Option<Nanos>,
}

impl Queued {
    pub fn deadline(&self) -> Option<Nanos> {
        self.look_at
    }

    /// A slot with this batch was executed.
    pub fn executed(&mut self, batch: &Batch) {
        if let Some(born) = batch.born() {
            self.names.remove(&(born, batch.info.digest));
            self.asked.remove(&batch.id());
        }
    }
}

impl<L: Link, D: Device> Node<L, D> {
    pub(crate) fn is_queue(&self) -> bool {
        self.config.policy == Policy::Queue
    }

    /// What is held from before the start.
    pub(crate) fn queue_held(&mut self) {
        let held: Vec<_> = self.ahead.held.values().map(|held| held.batch.clone()).collect();
        held.iter().for_each(|batch| self.queue_stored(batch));
    }

    /// The fragments of an operation were handed to the log, or found in it.
    pub(crate) fn queue_stored(&mut self, batch: &Batch) {
        let Some(born) = batch.born() else { return };
        self.core.store_ahead(batch.info.clone());
        self.queued.names.insert((born, batch.info.digest), batch.id());
        self.queued.look_at.get_or_insert(self.now + ASK_NS);
    }

    /// Whether an operation that comes to be stored has had its slots, or was executed.
    pub(crate) fn is_past(&self, batch: &Batch) -> bool {
        let digest = batch.info.digest;
        let is_executed = self.core.slot_of(digest).is_some_and(|slot| slot < self.core.exec());
        batch.born().is_some() && (is_executed || self.core.is_over(digest))
    }

    /// A slot came to hold an operation: if it is one of an own client, who waits for it is there when the
    /// slot is executed, which may be the next effect.
    pub(crate) fn chosen(&mut self, slot: Slot, digest: Digest) {
        let key = (racos_protocol::born(digest), digest);
        let Some(id) = self.queued.names.get(&key).copied() else { return };
        if let Some(parcel) = self.assign.take(id) {
            self.open.insert(slot, parcel);
        }
        self.queued.chosen.push((slot, id));
    }

    /// Those that are held here are executed from what is held. The core asks the others for the metas of
    /// the rest.
    pub(crate) fn take_chosen(&mut self) {
        for (slot, id) in std::mem::take(&mut self.queued.chosen) {
            let Some(held) = self.ahead.held.get(&id) else { continue };
            let batch = held.batch.clone();
            let info = batch.info.clone();
            let known = || Known { batch, recorded: false, place: None };
            self.window.entry(slot).or_insert_with(known);
            self.step(Input::Meta { slot, batch: info });
        }
    }

    /// Drops what gets no slot any more.
    /// PROTOCOL 6.4-g
    pub(crate) fn settle_queued(&mut self) {
        while let Some((&(born, digest), &id)) = self.queued.names.first_key_value()
            && (self.core.is_over(digest) || mutant!("what is stored dropped unasked"))
        {
            self.queued.names.remove(&(born, digest));
            self.queued.asked.remove(&id);
            self.core.forget_ahead(digest);
            self.drop_held(id);
            if let Some(parcel) = self.assign.take(id) {
                let text =
                    "other writes had all the slots that this one could get: it took no effect";
                let error = RequestError { code: ErrorCode::Unavailable, text: text.into() };
                self.give_up(parcel, &error);
            }
        }
    }

    /// Own operations that may be in a slot that is jumped over: what came of them is not known here.
    pub(crate) fn take_unjudged(&mut self, exec: Slot) -> Vec<(Slot, Parcel)> {
        let is_before = |parcel: &Parcel| parcel.batch.born().is_some_and(|born| born < exec);
        let taken = self.assign.take_if(is_before);
        taken.into_iter().map(|parcel| (exec, parcel)).collect()
    }

    /// Asks the others about operations that are held here and wait for no slot.
    /// PROTOCOL 6.4-e
    pub(crate) fn take_over_turn(&mut self) {
        if self.queued.look_at.is_none_or(|at| self.now < at) {
            return;
        }
        let (mut due, mut known, mut is_more) = (Vec::new(), Vec::new(), false);
        for (&(_, digest), &id) in &self.queued.names {
            let is_pursued = self.core.is_waiting(digest) || self.assign.stores(id);
            if is_pursued || self.core.slot_of(digest).is_some() || !self.core.remembers(digest) {
                // Its own may fall silent yet.
                is_more |= is_pursued;
                continue;
            }
            if self.assign.is_ready(id) {
                // Forgotten with the slots that were passed over; it was accepted after them.
                known.push(digest);
                continue;
            }
            let begun = Asked { stored: Vec::new(), at: self.now + ASK_NS, asks: 0 };
            let asked = self.queued.asked.entry(id).or_insert(begun);
            is_more |= asked.asks < ASKS_MAX;
            if asked.asks < ASKS_MAX && asked.at <= self.now && due.len() < ASKS_A_TURN {
                asked.at = self.now + (ASK_NS << asked.asks);
                asked.asks += 1;
                due.push(id);
            }
        }
        is_more |= !known.is_empty();
        self.queued.look_at = is_more.then_some(self.now + ASK_NS);
        known.into_iter().for_each(|candidate| self.step(Input::Ready { candidate }));
        for id in due {
            let mut head = Vec::with_capacity(16);
            head.put_u128(id.0);
            for node in self.others().iter() {
                self.send(node, kind::ASKSTORED, &head, &[]);
            }
            if self.ahead.held.get(&id).is_some_and(|held| held.is_flushed) {
                self.found_stored(self.me, self.config.incarnation, id);
            }
        }
    }

    /// ASKSTORED: says what is stored here, or again that it is READY.
    pub(crate) fn on_ask_stored(&mut self, from: u8, head: &[u8]) {
        let Ok(id) = Reader::new(head).u128("op") else { return };
        let Some(held) = self.ahead.held.get(&OpId(id)) else { return };
        let candidate = held.batch.info.digest;
        if self.core.is_waiting(candidate) {
            self.step(Input::Ready { candidate });
        } else if held.is_flushed && self.is_queue() {
            self.answer_store(from, OpId(id), true);
        }
    }

    /// A node has an operation that was asked about, durably.
    /// PROTOCOL 6.4-e: with fewer than D it is left, and over when its slots are.
    pub(crate) fn found_stored(&mut self, node: u8, incarnation: u32, id: OpId) {
        let Some(asked) = self.queued.asked.get_mut(&id) else { return };
        if !asked.stored.contains(&(node, incarnation)) {
            asked.stored.push((node, incarnation));
        }
        let Some(held) = self.ahead.held.get(&id) else { return };
        let candidate = held.batch.info.digest;
        if is_stored(&self.core, &asked.stored, self.core.exec()) {
            self.queued.asked.remove(&id);
            self.step(Input::Ready { candidate });
        }
    }
}
