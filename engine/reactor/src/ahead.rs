//! Batches stored before they get a slot (PROTOCOL 6.3, class R): what a node holds of others and of its
//! own, and when it may go.
//!
//! Purpose: takes STORE, answers STORED once it is flushed, keeps the fragments until a slot with their
//! batch is executed, and drops those of which their owner has said that none ever will.
//! Invariant: what was answered STORED stays in the log, over restarts and checkpoints, until it is
//! executed or lies below its owner's FLOOR with all slots below the bar executed (9.7).
//! What would break it: dropping on a timeout, or a checkpoint that does not tell of it.

use crate::batch::Batch;
use crate::fragments::{Fragments, UNASSIGNED};
use crate::journal::Stored;
use crate::layout;
use crate::node::Node;
use crate::record::kind as record_kind;
use crate::wire::cursor::{Reader, WireError, Writer};
use crate::wire::node::{SpreadHead, kind};
use racos_buffer::Slice;
use racos_machine::{Machine, Members, OpId};
use racos_net::{Link, Message as Frame};
use racos_protocol::{Release, Slot};
use racos_storage::device::Device;
use racos_storage::{Class, Full, Place, RecordId};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// PROTOCOL 9.4-d: bytes of one owner's fragments that a node keeps without a slot.
const OWNER_BYTES_MAX: usize = 64 << 20;

/// A batch whose fragments are here and that no executed slot holds.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub batch: Rc<Batch>,
    pub crcs: Box<[u8]>,
    pub bytes: usize,
    /// Where the body lies, once the log has said so.
    pub place: Option<Place>,
    pub is_flushed: bool,
}

/// What an owner has said of its batches: those below `low` are in slots below `bar`, or never will be in
/// any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Floor {
    pub low: OpId,
    pub bar: Slot,
}

impl Floor {
    pub fn put(self, out: &mut Vec<u8>) {
        out.put_u128(self.low.0);
        out.put_u64(self.bar);
    }

    pub fn get(bytes: &[u8]) -> Result<Floor, WireError> {
        let mut from = Reader::new(bytes);
        let floor = Floor { low: OpId(from.u128("low")?), bar: from.u64("bar")? };
        from.end("floor")?;
        Ok(floor)
    }
}

/// Batches by their name: their first operation.
pub(crate) type HeldBatches = BTreeMap<OpId, Held>;

/// What is stored here and not executed.
#[derive(Default)]
pub(crate) struct Ahead {
    pub held: HeldBatches,
    /// Records that are not flushed, in order.
    unflushed: VecDeque<(RecordId, OpId)>,
    /// By owner and incarnation.
    floors: BTreeMap<(u16, u32), Floor>,
    /// A floor was told, here or by another node: that much more may be settled.
    is_news: bool,
}

impl Ahead {
    pub fn new(held: HeldBatches) -> Ahead {
        Ahead { held, is_news: true, ..Ahead::default() }
    }

    /// PROTOCOL 9.7-a: whether the owner has settled what becomes of this one.
    fn is_settled(&self, id: OpId) -> bool {
        let floor = self.floors.get(&(id.node(), id.incarnation()));
        floor.is_some_and(|floor| id < floor.low)
    }

    /// PROTOCOL 9.4-d
    fn has_room(&self, owner: u16, bytes: usize) -> bool {
        let first = OpId(u128::from(owner) << 96);
        let of_owner = self.held.range(first..).take_while(|(id, _)| id.node() == owner);
        of_owner.map(|(_, held)| held.bytes).sum::<usize>() + bytes <= OWNER_BYTES_MAX
    }
}

/// A slot with this batch was executed: its fragments are those of values in use, or of none.
pub(crate) fn executed(
    held: &mut HeldBatches,
    fragments: &mut Fragments,
    slot: Slot,
    batch: &Batch,
) {
    if !batch.is_ready() {
        return;
    }
    held.remove(&batch.id());
    for spot in layout::fragments(&batch.ops) {
        fragments.assign(spot.value.op, slot);
    }
}

/// Another state is in place: what it names of the held batches was executed.
pub(crate) fn executed_by(machine: &Machine, held: &mut HeldBatches, fragments: &mut Fragments) {
    held.retain(|_, held| !is_executed(machine, &held.batch, fragments));
}

/// Whether the state names values of the batch; their fragments are those of the slots it tells, then.
pub(crate) fn is_executed(machine: &Machine, batch: &Batch, fragments: &mut Fragments) -> bool {
    let used = layout::fragments(&batch.ops).filter_map(|it| machine.value(it.value.op));
    let mut is_executed = false;
    for used in used {
        fragments.assign(used.value.op, used.slot);
        is_executed = true;
    }
    is_executed
}

/// PROTOCOL 9.7-d: the incarnation that stored it was replaced or removed, and the change is in effect.
/// One that the own state does not know yet is neither: a node that lags has its word counted.
fn has_left(members: &Members, exec: Slot, id: OpId) -> bool {
    let Some(seat) = members.seats().get(usize::from(id.node())) else { return false };
    let is_member = u8::try_from(id.node()).is_ok_and(|node| members.is_member(node));
    let is_past = id.incarnation() < seat.incarnation;
    let is_removed = id.incarnation() == seat.incarnation && !is_member;
    (is_past || is_removed) && exec >= members.effect()
}

impl<L: Link, D: Device> Node<L, D> {
    /// Batches whose fragments are stored here and that no executed slot holds.
    pub fn stored_ahead(&self) -> usize {
        self.ahead.held.len()
    }

    /// STORE: a batch and this node's fragments, without a slot.
    pub(crate) fn on_store(&mut self, from: u8, frame: Frame) {
        let Some((batch, crcs)) = self.checked_store(from, &frame) else { return };
        let id = batch.id();
        // PROTOCOL 12.1-e: STORE repeated is answered with STORED.
        if let Some(held) = self.ahead.held.get(&id) {
            if held.is_flushed {
                self.answer_store(from, id, true);
            }
            return;
        }
        let mut spots = layout::fragments(&batch.ops);
        let executed = spots.find_map(|spot| self.machine.value(spot.value.op));
        let wanted = executed.is_none_or(|used| !self.fragments.contains(used.value.op));
        let is_settled = self.ahead.is_settled(id) || self.is_past(&batch);
        if !wanted || (executed.is_none() && is_settled) {
            return;
        }
        // Above the bound it is not answered, and sent again later.
        if !self.ahead.has_room(id.node(), frame.body.len()) {
            return;
        }
        match self.log.accepts(frame.head.len(), frame.body.len(), Class::Ordinary) {
            Ok(()) => {}
            Err(Full::Disk) => return self.answer_store(from, id, false),
            // Too busy at this moment: it is sent again.
            Err(_) => return,
        }
        let Some(body) = self.own_body(&frame.body) else { return };
        self.hold(&batch, crcs, &frame.head, std::slice::from_ref(&body));
    }

    /// The batch of a STORE and its checksums, if it is one of the sender's, coded for a layout in which
    /// this node holds fragments, and its bytes are what they should be.
    fn checked_store(&self, from: u8, frame: &Frame) -> Option<(Rc<Batch>, Box<[u8]>)> {
        let head = SpreadHead::get(&frame.head).ok()?;
        let batch = Batch::decode(head.batch, &self.secrets).ok()?;
        let id = batch.id();
        let is_senders = (id.node(), id.incarnation()) == (u16::from(from), frame.from.incarnation);
        let good = batch.is_ready()
            && batch.born().is_some() == self.is_queue()
            && is_senders
            && head.slot == UNASSIGNED
            && batch.info.digest == head.digest
            && layout::fragments(&batch.ops).all(|spot| self.is_holder(spot.value))
            && crate::spread::is_intact(&batch.ops, &head, &frame.body);
        good.then(|| (batch, head.crcs.into()))
    }

    /// Appends the record of a batch without a slot; STORED follows its flush.
    pub(crate) fn hold(&mut self, batch: &Rc<Batch>, crcs: Box<[u8]>, head: &[u8], body: &[Slice]) {
        self.insert_fragments(UNASSIGNED, batch, head, body);
        let bytes = body.iter().map(|slice| slice.len()).sum();
        let held = Held { batch: batch.clone(), crcs, bytes, place: None, is_flushed: false };
        if !is_executed(&self.machine, batch, &mut self.fragments) {
            self.ahead.held.insert(batch.id(), held);
            self.queue_stored(batch);
        }
        let stored = Some(Stored::Ahead { batch: batch.clone() });
        self.append(record_kind::STORED, head, body, Release::Nothing, stored);
    }

    /// The log says where the fragments lie.
    pub(crate) fn ahead_placed(&mut self, id: RecordId, batch: &Batch, body: Place) {
        for spot in layout::fragments(&batch.ops) {
            if let Some(place) = body.part(spot.offset as u32, spot.len as u32)
                && self.fragments.placed_anywhere(spot.value.op, place)
            {
                self.repair.placed(id, spot.value.op);
            }
        }
        if let Some(held) = self.ahead.held.get_mut(&batch.id()) {
            held.place = Some(body);
            self.ahead.unflushed.push_back((id, batch.id()));
        }
    }

    /// PROTOCOL 4.1-d, 6.4-a: STORED, once it is true after a power loss too.
    pub(crate) fn ahead_flushed(&mut self, up_to: RecordId) {
        while let Some((_, id)) = self.ahead.unflushed.pop_front_if(|(record, _)| *record <= up_to)
        {
            let Some(held) = self.ahead.held.get_mut(&id) else { continue };
            held.is_flushed = true;
            match u8::try_from(id.node()) {
                Ok(me) if me == self.me => self.stored_by(self.me, self.config.incarnation, id),
                Ok(owner) => self.answer_store(owner, id, true),
                Err(_) => {}
            }
        }
    }

    /// STORED, or that there is no space.
    pub(crate) fn answer_store(&mut self, owner: u8, id: OpId, is_stored: bool) {
        let mut head = Vec::with_capacity(17);
        head.put_u128(id.0);
        head.put_u8(u8::from(is_stored));
        self.send(owner, kind::STORED, &head, &[]);
    }

    /// FLOOR of another node.
    pub(crate) fn on_floor(&mut self, from: u8, incarnation: u32, head: &[u8]) {
        let Ok(floor) = Floor::get(head) else { return };
        if (floor.low.node(), floor.low.incarnation()) == (u16::from(from), incarnation) {
            self.ahead.floors.insert((u16::from(from), incarnation), floor);
            self.ahead.is_news = true;
        }
    }

    /// PROTOCOL 9.7-a, 9.7-f: drops what was settled, however long that takes: executed, or never to be.
    /// Not in every turn in which a slot is executed: floors come with every beacon.
    pub(crate) fn settle_ahead(&mut self) {
        if self.is_queue() {
            return self.settle_queued();
        }
        if self.ahead.held.is_empty() || !std::mem::take(&mut self.ahead.is_news) {
            return;
        }
        let exec = self.core.exec();
        let own = self.floor();
        self.ahead.floors.insert((own.low.node(), own.low.incarnation()), own);
        let over = |id: &OpId| {
            let floor = self.ahead.floors.get(&(id.node(), id.incarnation()));
            let is_over = floor.is_some_and(|floor| *id < floor.low && exec >= floor.bar);
            is_over || self.is_owner_gone(*id) || mutant!("what is stored dropped unasked")
        };
        let over: Vec<OpId> = self.ahead.held.keys().copied().filter(over).collect();
        over.into_iter().for_each(|id| self.drop_held(id));
    }

    /// What is stored gets no slot any more.
    pub(crate) fn drop_held(&mut self, id: OpId) {
        let Some(held) = self.ahead.held.remove(&id) else { return };
        for spot in layout::fragments(&held.batch.ops) {
            // PROTOCOL 9.7-a: what is in use stays.
            if self.machine.value(spot.value.op).is_none() {
                self.fragments.forget(spot.value.op, None);
            }
        }
    }

    fn is_owner_gone(&self, id: OpId) -> bool {
        has_left(self.machine.members(), self.core.exec(), id)
    }

    /// Tells the others what is settled here.
    /// PROTOCOL 9.7-e
    pub(crate) fn say_floor(&mut self) {
        // PROTOCOL 6.4-g says instead what is over: others may go on with what its owner left.
        if self.is_queue() {
            return;
        }
        self.ahead.is_news = true;
        let mut head = Vec::with_capacity(24);
        self.floor().put(&mut head);
        for node in self.others().iter() {
            self.send(node, kind::FLOOR, &head, &[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::Secrets;
    use proptest::prelude::*;
    use racos_machine::{
        Action, Founding, Joining, Limits, Op, Outcome, Reconfigure, Replace, SessionId,
        encode_batch,
    };

    fn held(owner: u16, bytes: usize) -> Held {
        let op = Op {
            id: OpId::new(owner, 1, 1, 1),
            author: None,
            stamp: None,
            action: Action::CloseSession { session: SessionId::default() },
        };
        let mut encoded = Vec::new();
        encode_batch(&[op], &mut encoded);
        let batch = Batch::decode(&encoded, &Secrets::new(1)).unwrap();
        Held { batch, crcs: Box::default(), bytes, place: None, is_flushed: true }
    }

    /// tests PROTOCOL 9.4-d
    #[test]
    fn what_one_owner_has_stored_without_slots_is_bounded() {
        let mut ahead = Ahead::default();
        let add = |ahead: &mut Ahead, owner, counter, bytes| {
            ahead.held.insert(OpId::new(owner, 1, 1, counter), held(owner, bytes));
        };
        assert!(ahead.has_room(3, OWNER_BYTES_MAX) && !ahead.has_room(3, OWNER_BYTES_MAX + 1));
        add(&mut ahead, 3, 1, OWNER_BYTES_MAX / 2);
        add(&mut ahead, 3, 2, OWNER_BYTES_MAX / 4);
        add(&mut ahead, 4, 1, 100);
        assert!(ahead.has_room(3, OWNER_BYTES_MAX / 4));
        assert!(!ahead.has_room(3, OWNER_BYTES_MAX / 4 + 1));
        assert!(ahead.has_room(4, OWNER_BYTES_MAX - 100) && !ahead.has_room(4, OWNER_BYTES_MAX));
    }

    /// tests PROTOCOL 9.7-d
    #[test]
    fn an_owner_has_left_when_a_change_that_says_so_is_in_effect_and_not_before_it_is_known() {
        let founding = Founding { nodes: 3, lost_max: 1, data: 1, alpha: 10 };
        let mut machine = Machine::with_members(Limits::default(), founding);
        let stored = |node, incarnation| OpId::new(node, incarnation, 1, 7);
        let change = |machine: &mut Machine, slot, action| {
            let op = Op { id: OpId::new(1, 1, 1, slot), author: None, stamp: None, action };
            let outcome = machine.apply(slot, 0, &op);
            assert!(matches!(outcome, Outcome::Applied(_)), "{outcome:?}");
        };
        let left = |machine: &Machine, exec, id| has_left(machine.members(), exec, id);
        assert!(!left(&machine, 0, stored(0, 1)));
        // The others have replaced it already, and a fourth has joined.
        assert!(!left(&machine, 0, stored(0, 2)) && !left(&machine, 0, stored(3, 1)));
        let replace =
            Replace { node: 0, expected: 1, disk: 99, address: Box::default(), is_forced: false };
        change(&mut machine, 20, Action::ReplaceNode(Box::new(replace)));
        assert!(!left(&machine, 29, stored(0, 1)), "it counts in slots below 30");
        assert!(left(&machine, 30, stored(0, 1)) && !left(&machine, 30, stored(0, 2)));
        assert!(!left(&machine, 30, stored(0, 3)), "it is replaced again elsewhere");
        let joining = vec![Joining { disk: 98, address: "10.0.0.1:4003".into() }];
        let members = vec![0, 1, 3];
        let unchanged = machine.members().unchanged();
        let reconfigure = Reconfigure { members, joining, is_forced: true, ..unchanged };
        change(&mut machine, 40, Action::Reconfigure(Box::new(reconfigure)));
        assert!(!left(&machine, 49, stored(2, 1)) && left(&machine, 50, stored(2, 1)));
        assert!(!left(&machine, 50, stored(3, 1)) && !left(&machine, 50, stored(1, 1)));
    }

    proptest! {
        #[test]
        fn floors_survive_the_wire(low: u128, bar: u64) {
            let floor = Floor { low: OpId(low), bar };
            let mut head = Vec::new();
            floor.put(&mut head);
            prop_assert_eq!(Floor::get(&head), Ok(floor));
            head.pop();
            prop_assert!(Floor::get(&head).is_err());
        }
    }
}
