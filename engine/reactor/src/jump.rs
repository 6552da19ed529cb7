//! Taking a peer's state in the place of the own one (PROTOCOL 9.3).
//!
//! The state is written into the log as a checkpoint first, while the node goes on with its own. When
//! that is durable, a restart begins at it, and at the same time the node itself does.
//!
//! Invariant: before the checkpoint is durable nothing here knows of it; from then on the machine, the
//! core, the fragments and the history are those of its slot. Of the log nothing is taken away but what
//! such a node never asks for again, so all that it said of later slots stands.
//! What would break it: speaking of a slot above the own window before a restart would know why it may.

use crate::ahead;
use crate::batch::{Parcel, Waiter};
use crate::history::History;
use crate::layout;
use crate::members::membership;
use crate::node::Node;
use crate::record::DecidedRun;
use crate::spread::reply_to;
use crate::wire::client::{ErrorCode, Reply, RequestError};
use racos_machine::{Action, Done, Machine, Op, OpId, Outcome, SessionId, Value};
use racos_net::Link;
use racos_protocol::Slot;
use racos_storage::device::Device;
use rustc_hash::{FxHashMap, FxHashSet};
use std::rc::Rc;

/// A state that a peer has told.
pub(crate) struct Peers {
    pub machine: Machine,
    /// All slots below are in it.
    pub exec: Slot,
    /// Who told.
    pub from: u8,
    /// What batches that are here and not executed store.
    pub(crate) waiting: FxHashMap<OpId, Value>,
}

/// Why a state is not one that this node can go on from.
pub(crate) fn unfit(machine: &Machine, exec: Slot) -> Option<String> {
    let applied = machine.applied().map_or(0, |(slot, _)| slot + 1);
    if applied > exec {
        return Some(format!("it holds slot {applied}, beyond its own"));
    }
    machine.members().seats().is_empty().then(|| "it has no members".into())
}

impl<L: Link, D: Device> Node<L, D> {
    /// A peer's state is complete and checked.
    pub(crate) fn take_state(&mut self, machine: Machine, exec: Slot, from: u8) {
        let known = self.window.values().map(|known| &known.batch);
        let known = known.chain(self.ahead.held.values().map(|held| &held.batch));
        let spots = known.flat_map(|batch| layout::fragments(&batch.ops));
        let waiting = spots.map(|spot| (spot.value.op, *spot.value)).collect();
        self.checkpoints.take_peers(Peers { machine, exec, from, waiting });
        #[cfg(feature = "mutants")]
        self.install_early();
    }

    /// PROTOCOL 9.3-f: by op and digest: whether the fragment here is one of what the state names.
    pub(crate) fn fits(&self, op: OpId, peers: &Peers) -> bool {
        let own = self.machine.value(op).map(|used| used.value);
        let own = own.or_else(|| peers.waiting.get(&op).copied());
        let named = peers.machine.value(op).map(|used| used.value);
        named.is_some_and(|named| own.is_none_or(|own| own == named))
    }

    /// The checkpoint of a peer's state is durable: the node goes on from it, unless facts have
    /// brought it as far meanwhile.
    pub(crate) fn install(&mut self, peers: Peers) {
        let exec = peers.exec;
        if self.core.exec() >= exec {
            let (machine, exec) = (&self.machine, self.core.exec());
            let wanted = |op, slot| slot >= exec || machine.value(op).is_some();
            return self.fragments.outlive_ahead(wanted);
        }
        // PROTOCOL 9.3-f: what the state names stays, whichever slot's record holds it.
        let named = peers.machine.values().map(|used| used.value.op);
        let named: FxHashSet<OpId> =
            named.filter(|op| self.fragments.contains(*op) && self.fits(*op, &peers)).collect();
        let by_slot = mutant!("fragments matched by slot");
        self.fragments.keep_only(|op, slot| slot >= exec || (named.contains(&op) && !by_slot));
        let to = membership(peers.machine.members());
        self.machine = peers.machine;
        self.states.jumped();
        ahead::executed_by(&self.machine, &mut self.ahead.held, &mut self.fragments);
        self.history = History::starting_at(exec);
        self.window.retain(|slot, _| *slot >= exec);
        self.decided = DecidedRun::default();
        self.last_batch = exec.checked_sub(1);
        self.follow_members();
        let mut jumped = self.take_jumped(exec);
        jumped.extend(self.take_unjudged(exec));
        if self.api_is_open() {
            self.machine.keep_changes();
        }
        self.restart_leases();
        let named = self.machine.values().map(|used| used.value.op).collect();
        self.list_missing_of_these(named);
        if let Some(observer) = &mut self.observer {
            observer.loaded(exec, &self.machine);
        }
        jumped.into_iter().for_each(|(slot, parcel)| self.answer_jumped(slot, parcel));
        self.snaps.installed += 1;
        self.jump_core(exec, to, peers.from);
        self.check_seat();
    }

    /// Own batches whose slots are jumped over, in order.
    fn take_jumped(&mut self, exec: Slot) -> Vec<(Slot, Parcel)> {
        let mut slots: Vec<Slot> = self.open.keys().copied().filter(|slot| *slot < exec).collect();
        slots.sort_unstable();
        self.refused_for_space.retain(|slot| *slot >= exec);
        let take = |slot| self.open.remove(&slot).map(|parcel| (slot, parcel));
        slots.into_iter().filter_map(take).collect()
    }

    /// PROTOCOL 9.3-j: from the session table; what is not in it is not known, and asked again if it
    /// has a number.
    fn answer_jumped(&mut self, slot: Slot, parcel: Parcel) {
        let unknown = Reply::Error(RequestError {
            code: ErrorCode::Unavailable,
            text: format!(
                "node {} fell behind and took the state from another: the outcome of this request \
                 is not known here; it may have taken effect",
                self.me
            ),
        });
        let batch = Rc::clone(&parcel.batch);
        for (position, (waiter, op)) in parcel.waiters.iter().zip(&batch.ops).enumerate() {
            let outcome = self.outcome_in_table(slot, position as u32, op);
            let reply = match (waiter, outcome) {
                (Waiter::Client { .. }, Some(outcome)) => {
                    reply_to(slot, position as u32, op.id, &op.action, outcome)
                }
                _ => unknown.clone(),
            };
            self.reply(waiter, &reply, &[]);
        }
    }

    fn outcome_in_table(&self, slot: Slot, position: u32, op: &Op) -> Option<Outcome> {
        if let Action::OpenSession { .. } = op.action {
            let session = self.machine.session(SessionId { slot, position })?;
            debug_assert_eq!(session.session, SessionId { slot, position });
            let revision = self.machine.revision();
            return Some(Outcome::Applied(Done { revision, changes: 0 }));
        }
        self.machine.recorded(op.stamp.as_ref()?)
    }
}
