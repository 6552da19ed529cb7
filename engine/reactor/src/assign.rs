//! The owner's side of class R (PROTOCOL 6.3): a large batch is stored first, and gets a slot when enough
//! nodes have it. Under the queue policy (6.4) every operation is such a batch.
//!
//! Purpose: sends STORE, counts STORED, hands what may be assigned to where batches wait for a slot, and
//! knows below which operation everything of this node is settled (9.7).
//! Invariant: a batch is opened in a slot only after D members of that slot's configuration have said that
//! their fragments of it are durable.
//! What would break it: counting a node twice, or the answer of a disk that was replaced.

use crate::ahead::Floor;
use crate::batch::Parcel;
use crate::fragments::UNASSIGNED;
use crate::node::Node;
use crate::wire::client::{ErrorCode, RequestError};
use crate::wire::cursor::Reader;
use crate::wire::node::{SpreadHead, kind};
use racos_machine::OpId;
use racos_net::Link;
use racos_protocol::{Core, Input, Nanos, NodeSet, Policy, Slot};
use racos_storage::device::Device;
use std::collections::{BTreeMap, VecDeque};

/// Batches on their way to the others at a time: more would only share the same network and disks, and
/// keep each other, and what is small, waiting.
const UNDER_WAY_MAX: usize = 4;
/// The same under the queue policy, where most are small.
const QUEUED_UNDER_WAY_MAX: usize = 256;
/// When STORE is sent again to those who have not answered: after this, doubling.
const AGAIN_NS_MIN: Nanos = 200_000_000;
const AGAIN_NS_MAX: Nanos = 2_000_000_000;

/// A batch on its way to the others.
struct Storing {
    parcel: Parcel,
    full: NodeSet,
    again_at: Nanos,
    wait: Nanos,
}

/// Own batches that have no slot yet because they are not stored.
#[derive(Default)]
pub(crate) struct Assign {
    /// In the order in which they came.
    queue: VecDeque<Parcel>,
    storing: BTreeMap<OpId, Storing>,
    under_way_max: usize,
    /// Queue policy: those that are stored and wait for a slot, whoever proposes them.
    ready: BTreeMap<OpId, Parcel>,
    /// Every own slot that such a batch was opened in lies below: of earlier boots below R as found.
    bar: Slot,
}

impl Assign {
    /// `reserved`: R as found at the start.
    pub fn new(reserved: Slot, policy: Policy) -> Assign {
        let under_way_max = match policy {
            Policy::OwnerSlots => UNDER_WAY_MAX,
            Policy::Queue => QUEUED_UNDER_WAY_MAX,
        };
        Assign { bar: reserved, under_way_max, ..Assign::default() }
    }

    /// A batch is opened in this slot.
    pub fn opened(&mut self, slot: Slot) {
        self.bar = self.bar.max(slot + 1);
    }

    pub fn len(&self) -> usize {
        self.queue.len() + self.storing.len() + self.ready.len()
    }

    /// Takes one that is being stored, or is ready, out.
    pub fn take(&mut self, id: OpId) -> Option<Parcel> {
        let storing = self.storing.remove(&id).map(|storing| storing.parcel);
        storing.or_else(|| self.ready.remove(&id))
    }

    /// Whether one is stored at enough nodes, and waits for a slot.
    pub fn is_ready(&self, id: OpId) -> bool {
        self.ready.contains_key(&id)
    }

    /// Whether one is being stored.
    pub fn stores(&self, id: OpId) -> bool {
        self.storing.contains_key(&id)
    }

    /// How many wait for their turn.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether another could be begun.
    pub fn has_turn(&self) -> bool {
        !self.queue.is_empty() && self.storing.len() < self.under_way_max
    }

    pub fn push(&mut self, parcel: Parcel) {
        self.queue.push_back(parcel);
    }

    pub fn deadline(&self) -> Option<Nanos> {
        self.storing.values().map(|storing| storing.again_at).min()
    }

    pub fn parcels_mut(&mut self) -> impl Iterator<Item = &mut Parcel> {
        let storing = self.storing.values_mut().map(|storing| &mut storing.parcel);
        storing.chain(&mut self.queue).chain(self.ready.values_mut())
    }

    /// Takes out those that `unwanted` says.
    pub fn take_if(&mut self, unwanted: impl Fn(&Parcel) -> bool) -> Vec<Parcel> {
        let ids = self.storing.iter().filter(|(_, storing)| unwanted(&storing.parcel));
        let ids: Vec<OpId> = ids.map(|(id, _)| *id).collect();
        let storing = ids.iter().filter_map(|id| self.storing.remove(id));
        let mut taken: Vec<Parcel> = storing.map(|storing| storing.parcel).collect();
        let (out, stay) = std::mem::take(&mut self.queue).into_iter().partition(|it| unwanted(it));
        self.queue = stay;
        taken.extend::<VecDeque<Parcel>>(out);
        let (out, stay) =
            std::mem::take(&mut self.ready).into_iter().partition(|it| unwanted(&it.1));
        self.ready = stay;
        taken.extend(BTreeMap::into_values(out));
        taken
    }

    fn oldest(&self) -> Option<OpId> {
        let storing = self.storing.keys().next().copied();
        self.queue.iter().map(|parcel| parcel.batch.id()).chain(storing).min()
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Goes on with own batches that are being stored.
    pub(crate) fn assign_turn(&mut self) {
        while self.assign.has_turn()
            && self.log_has_room()
            && let Some(parcel) = self.assign.queue.pop_front()
        {
            self.begin_store(parcel);
        }
        if self.assign.deadline().is_some_and(|at| at <= self.now) {
            self.store_again();
        }
    }

    /// PROTOCOL 6.3-a: STORE to all, the own fragments into the own log.
    pub(crate) fn begin_store(&mut self, parcel: Parcel) {
        let (batch, id) = (parcel.batch.clone(), parcel.batch.id());
        let again_at = self.now + AGAIN_NS_MIN;
        let storing = Storing { parcel, full: NodeSet::EMPTY, again_at, wait: AGAIN_NS_MIN };
        let own = self.place_in(storing.parcel.layout, self.me);
        let own = own.and_then(|place| storing.parcel.ahead.get(place)).cloned();
        self.assign.storing.insert(id, storing);
        for node in self.members_but_me().iter() {
            if !self.is_backlogged(node) && !self.has_stored(id, node) {
                self.send_store(id, node);
            }
        }
        // It was stored before if it has to be stored at more nodes after a change.
        match (self.ahead.held.get(&id).map(|held| held.is_flushed), own) {
            // PROTOCOL 6.3-a: flushed while it waited for its slot, when nobody counted.
            (Some(true), _) => self.stored_by(self.me, self.config.incarnation, id),
            (Some(false), _) | (None, None) => {}
            (None, Some(body)) => {
                let slices = self.compact(&body.slices);
                let mut head = Vec::with_capacity(batch.bytes.len() + body.crcs.len() + 32);
                store_head(&mut head, &batch, &body.crcs);
                self.hold(&batch, body.crcs.into(), &head, &slices);
            }
        }
    }

    /// Whether a node has stored a batch as one that counts in the next slot.
    fn has_stored(&self, id: OpId, node: u8) -> bool {
        let Some(storing) = self.assign.storing.get(&id) else { return false };
        let slot = self.next_slot();
        let mut stored = storing.parcel.stored.iter().filter(|(by, _)| *by == node);
        stored.any(|(by, incarnation)| self.core.counts(*by, *incarnation, slot))
    }

    fn members_but_me(&self) -> NodeSet {
        let mut members = self.members();
        members.remove(self.me);
        members
    }

    fn place_in(&self, layout: u16, node: u8) -> Option<usize> {
        self.machine.members().layout(layout)?.place(node)
    }

    fn send_store(&mut self, id: OpId, to: u8) {
        let Some(storing) = self.assign.storing.get(&id) else { return };
        let place = self.place_in(storing.parcel.layout, to);
        let body = place.and_then(|place| storing.parcel.ahead.get(place));
        let (Some(body), Some(address)) = (body, self.address(to)) else { return };
        let mut head = std::mem::take(&mut self.scratch);
        head.clear();
        store_head(&mut head, &storing.parcel.batch, &body.crcs);
        let _ = self.net.send(address, kind::STORE, &head, &body.slices, self.now);
        self.scratch = head;
    }

    /// Sends STORE again to those who have not answered, unless it is still on its way.
    fn store_again(&mut self) {
        let mut due = Vec::new();
        for (id, storing) in &mut self.assign.storing {
            if storing.again_at <= self.now {
                storing.wait = (storing.wait * 2).min(AGAIN_NS_MAX);
                storing.again_at = self.now + storing.wait;
                storing.full = NodeSet::EMPTY;
                due.push(*id);
            }
        }
        for id in due {
            for node in self.members_but_me().iter() {
                let under_way = self.address(node).is_none_or(|it| self.net.pending_bytes(it) > 0);
                if !under_way && !self.has_stored(id, node) {
                    self.send_store(id, node);
                }
            }
            self.look_at_store(id);
        }
    }

    /// STORED of another node.
    pub(crate) fn on_stored(&mut self, from: u8, incarnation: u32, head: &[u8]) {
        let mut reader = Reader::new(head);
        let (Ok(id), Ok(status)) = (reader.u128("op"), reader.u8("status")) else { return };
        let id = OpId(id);
        if status == 1 {
            return self.stored_by(from, incarnation, id);
        }
        let Some(storing) = self.assign.storing.get_mut(&id) else { return };
        storing.full.insert(from);
        let members = self.core.newest().thresholds;
        if members.n - storing.full.len().min(members.n) < members.durable {
            let storing = self.assign.storing.remove(&id).expect("found above");
            let error = RequestError {
                code: ErrorCode::NoSpace,
                text: "too many nodes have a full disk: free space on them, writes resume by \
                       themselves; nothing of this write took effect"
                    .into(),
            };
            self.give_up(storing.parcel, &error);
        }
    }

    /// A node has its fragments of an own batch, durably.
    pub(crate) fn stored_by(&mut self, node: u8, incarnation: u32, id: OpId) {
        let Some(storing) = self.assign.storing.get_mut(&id) else {
            return self.found_stored(node, incarnation, id);
        };
        // PROTOCOL 1-b, 9.6-b: once each, whatever it holds.
        let stored = &mut storing.parcel.stored;
        if !stored.contains(&(node, incarnation)) {
            stored.push((node, incarnation));
        }
        self.look_at_store(id);
    }

    /// Hands a batch over once enough nodes have it.
    fn look_at_store(&mut self, id: OpId) {
        let slot = self.next_slot();
        let Some(storing) = self.assign.storing.get(&id) else { return };
        let is_early = self.is_queue() && mutant!("READY before enough have stored");
        if self.may_assign(&storing.parcel, slot) || is_early {
            let storing = self.assign.storing.remove(&id).expect("found above");
            if self.is_queue() {
                let candidate = storing.parcel.batch.info.digest;
                self.assign.ready.insert(id, storing.parcel);
                return self.step(Input::Ready { candidate });
            }
            self.sealed.push_back(storing.parcel);
        }
    }

    /// The slot that the next batch gets, or one like it.
    fn next_slot(&self) -> Slot {
        self.core.can_open().unwrap_or(self.core.exec())
    }

    /// PROTOCOL 6.3-b, 10-w: D = k+f of those that count in the slot have it.
    pub(crate) fn may_assign(&self, parcel: &Parcel, slot: Slot) -> bool {
        is_stored(&self.core, &parcel.stored, slot)
    }

    /// PROTOCOL 9.7-b, 9.7-c: the oldest own batch of class R that is not executed, or the next one; every
    /// one of an earlier boot is below, and in a slot below R as it was found, if in any. The bar is no
    /// higher than it must be: what is idle never gets far beyond it.
    pub(crate) fn floor(&self) -> Floor {
        let next =
            OpId::new(u16::from(self.me), self.config.incarnation, self.boot, self.next_op + 1);
        let waiting = self.sealed.iter().chain(&self.opening).chain(self.open.values());
        let waiting = waiting.filter(|parcel| parcel.batch.is_ready());
        let ids = waiting.map(|parcel| parcel.batch.id()).chain(self.assign.oldest());
        Floor { low: ids.min().unwrap_or(next), bar: self.assign.bar }
    }
}

/// Whether so many of these nodes, with their incarnations, count in the slot as its batch must have.
pub(crate) fn is_stored(core: &Core, stored: &[(u8, u32)], slot: Slot) -> bool {
    let counts = |(node, incarnation): &&(u8, u32)| core.counts(*node, *incarnation, slot);
    let least = match mutant!("assigned before enough have stored") {
        true => 1,
        false => core.at(slot).thresholds.durable,
    };
    stored.iter().filter(counts).count() >= least
}

pub(crate) fn store_head(head: &mut Vec<u8>, batch: &crate::batch::Batch, crcs: &[u8]) {
    let digest = batch.info.digest;
    SpreadHead { slot: UNASSIGNED, digest, batch: &batch.bytes, crcs }.put(head);
}

#[cfg(test)]
mod tests {
    use super::*;
    use racos_protocol::{Config, Configuration, Membership, Recovery, Seat};

    /// tests PROTOCOL 6.3-b, 10-w
    #[test]
    fn a_slot_is_assigned_when_d_of_its_members_have_stored_the_batch() {
        let config = Config { alpha: 64, ..Config::new((5, 1, 3), 0) };
        let mut seats = vec![Seat { incarnation: 1, from: 0 }; 5];
        seats[3] = Seat { incarnation: 2, from: 40 };
        let configurations = vec![Configuration::new(0, (0..5).collect(), 1, 3).unwrap()];
        let (lost, epoch, effect) = (NodeSet::EMPTY, 2, 40);
        let mut recovery = Recovery::new(config).unwrap();
        recovery.begin_at(10);
        recovery
            .configure(Membership { seats, lost, configurations, epoch, effect })
            .expect("nothing was recorded");
        let core = recovery.finish(0);
        let may = |stored: &[(u8, u32)], slot| is_stored(&core, stored, slot);
        assert!(!may(&[(0, 1), (1, 1), (2, 1)], 39), "three of D = 4");
        assert!(may(&[(0, 1), (1, 1), (2, 1), (3, 1)], 39));
        assert!(!may(&[(0, 1), (1, 1), (2, 1), (3, 1)], 40), "another disk is in its place");
        assert!(!may(&[(0, 1), (1, 1), (2, 1), (3, 2)], 39), "not yet in its place");
        assert!(may(&[(0, 1), (1, 1), (2, 1), (3, 1), (3, 2)], 40));
        assert!(!may(&[(0, 1), (1, 1), (2, 1), (7, 1)], 39), "no member");
    }
}
