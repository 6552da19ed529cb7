//! Batches: spread by their owner, stored by everybody, executed in slot order.
//!
//! Invariant: PROPOSE(s, 1) leaves a node only after the record with its fragments of that batch is
//! flushed; the machine applies exactly the batch whose digest was decided.

use crate::ahead;
use crate::batch::{Batch, Body, Parcel, Waiter};
use crate::compare::is_noted;
use crate::fragments::UNASSIGNED;
use crate::journal::{DiskRead, Stored};
use crate::layout;
use crate::node::{Arrived, Known, Node};
use crate::record::kind as record_kind;
use crate::wire::client::{ErrorCode, Reply, RequestError};
use crate::wire::cursor::{Reader, Writer};
use crate::wire::node::{SpreadHead, kind};
use racos_buffer::{ALIGN, Slice};
use racos_machine::{Action, Op, OpId, Outcome, SessionId};
use racos_net::{Link, Message as Frame};
use racos_protocol::{Input, Message, Release, Slot, Target, Value};
use racos_storage::device::Device;
use racos_storage::{Class, Full};
use std::rc::Rc;

/// A batch whose slot was decided null so often is given up: the cluster cannot store it.
const VOIDS_MAX: u32 = 16;
/// Writes that wait for the cluster so long are answered "unavailable"; how often that is looked at.
const STALLED_NS: u64 = 5_000_000_000;
const STALLED_CHECK_NS: u64 = 500_000_000;
/// Bytes that headers add to a SPREAD, generously.
const SPREAD_OVERHEAD: usize = 256;
/// PROTOCOL 9.4-e. Bytes of batches that may wait for a node that was heard lately, and for one
/// that was not.
const BACKLOG_BYTES_MAX: usize = 24 << 20;
const BACKLOG_SILENT_BYTES_MAX: usize = 2 << 20;
const SILENT_NS: u64 = 100_000_000;
/// Decisions noted beyond this are written even if nothing else is.
const DECIDED_RUN_MAX: u32 = 4096;

impl<L: Link, D: Device> Node<L, D> {
    /// SPREAD: metas and this node's fragments.
    pub(crate) fn on_spread(&mut self, from: u8, frame: Frame) {
        let Ok(head) = SpreadHead::get(&frame.head) else { return };
        let slot = head.slot;
        // PROTOCOL 10-q
        if !self.core.hears(from, frame.from.incarnation, &Message::Opening { slot }) {
            return;
        }
        if slot < self.core.exec() {
            self.store_late(slot, &frame);
            // The core learns that its owner's word came late.
            let batch = racos_protocol::BatchInfo {
                digest: head.digest,
                touches: Rc::new([]),
                is_change: false,
            };
            return self.step(Input::Spread { from, slot, batch, room: false });
        }
        if let Some(known) = self.window.get(&slot)
            && known.batch.info.digest == head.digest
            && self.core.has_segment(slot)
        {
            let batch = known.batch.info.clone();
            return self.step(Input::Spread { from, slot, batch, room: true });
        }
        if slot >= self.core.exec() + self.core.config().alpha {
            // Evidence that this node lags; nothing of it is kept.
            let batch = racos_protocol::BatchInfo {
                digest: head.digest,
                touches: Rc::new([]),
                is_change: false,
            };
            return self.step(Input::Spread { from, slot, batch, room: false });
        }
        let Some(batch) = self.checked_batch(&head, &frame.body) else { return };
        // Metas alone, as of deletes, may use the reserve: they are how space comes back.
        let class = if frame.body.is_empty() { Class::Urgent } else { Class::Ordinary };
        let room = match self.log.accepts(frame.head.len(), frame.body.len(), class) {
            Ok(()) => true,
            Err(Full::Disk) => false,
            // Too busy at this moment: as if the datagram had been lost, it is asked for again.
            Err(_) => return,
        };
        let Some(body) = self.own_body(&frame.body) else { return };
        let info = batch.info.clone();
        // PROTOCOL 6.2-i: asked when the promise is appended. Not to take it for another reason than space:
        // the promise is that the leases have run out.
        let allowed = self.guards_allow(&batch.ops);
        self.window.entry(slot).or_insert_with(|| Known { batch, recorded: false, place: None });
        self.arrived = Some(Arrived { slot, head: frame.head, body });
        self.step(Input::Spread { from, slot, batch: info, room: room && allowed });
        self.arrived = None;
        if !room {
            let mut head = Vec::with_capacity(8);
            head.put_u64(slot);
            self.send(from, kind::FULL, &head, &[]);
        }
    }

    /// The batch of a SPREAD, if its bytes are what its digest says and its body has every fragment. One of
    /// class R is an ASSIGN: it has no body, and whether its fragments are here does not matter.
    /// PROTOCOL 6.3-c, 7-i
    fn checked_batch(&self, head: &SpreadHead<'_>, body: &[u8]) -> Option<Rc<Batch>> {
        let batch = Batch::decode(head.batch, &self.secrets).ok()?;
        // PROTOCOL 10-w: coded for the members of its slot.
        let layout = self.machine.members().layout_at(head.slot);
        let fits = |spot: layout::FragmentSpot<'_>| {
            spot.value.layout == layout && self.is_holder(spot.value)
        };
        let whole = batch.info.digest == head.digest
            && layout::fragments(&batch.ops).all(fits)
            && match batch.is_ready() {
                true => head.crcs.is_empty() && body.is_empty(),
                false => is_intact(&batch.ops, head, body),
            };
        whole.then_some(batch)
    }

    /// The body in a block of its own: as received if it was assembled in one, else copied once, so
    /// that it does not pin a receive buffer and the log can write it from where it lies.
    pub(crate) fn own_body(&self, body: &Slice) -> Option<Slice> {
        if body.is_empty() || body.is_aligned(ALIGN) {
            return Some(body.clone());
        }
        self.pool.copy(body)
    }

    /// Fragments of a slot that was executed without them: kept, they spare a repair.
    fn store_late(&mut self, slot: Slot, frame: &Frame) {
        let Ok(head) = SpreadHead::get(&frame.head) else { return };
        let Some(batch) = self.checked_batch(&head, &frame.body) else { return };
        let wanted = batch.slot_fragments().any(|spot| {
            let live =
                self.machine.value(spot.value.op).is_some_and(|used| used.value == *spot.value);
            live && !self.fragments.contains(spot.value.op)
        });
        if !wanted || self.log.accepts(frame.head.len(), frame.body.len(), Class::Ordinary).is_err()
        {
            return;
        }
        let Some(body) = self.own_body(&frame.body) else { return };
        let arrived = Arrived { slot, head: frame.head.clone(), body };
        self.append_batch(record_kind::SEGMENT_ONLY, &batch, arrived, Release::Nothing);
    }

    /// The core wants the fragments of a slot on disk: the own ones, or those that just arrived.
    pub(crate) fn store(&mut self, slot: Slot, kind: u8, release: Release) {
        if let Some(arrived) = self.arrived.take_if(|arrived| arrived.slot == slot) {
            let known = self.window.get_mut(&slot).expect("what arrived is in the window");
            known.recorded = true;
            let batch = known.batch.clone();
            return self.append_batch(kind, &batch, arrived, release);
        }
        let parcel = self.open.get(&slot).expect("the core stores what arrived or was opened");
        let batch = parcel.batch.clone();
        let own = self.body_of(parcel, self.me).expect("an owner is a member");
        let mut body = own.clone();
        body.slices = self.compact(&body.slices);
        let mut head = Vec::with_capacity(batch.bytes.len() + body.crcs.len() + 32);
        let digest = batch.info.digest;
        SpreadHead { slot, digest, batch: &batch.bytes, crcs: &body.crcs }.put(&mut head);
        self.insert_fragments(slot, &batch, &head, &body.slices);
        let stored = Some(Stored::Batch { slot, batch, fragments: true });
        self.append(kind, &head, &body.slices, release, stored);
    }

    fn append_batch(&mut self, kind: u8, batch: &Rc<Batch>, arrived: Arrived, release: Release) {
        let slices: &[Slice] = match arrived.body.is_empty() {
            true => &[],
            false => std::slice::from_ref(&arrived.body),
        };
        self.insert_fragments(arrived.slot, batch, &arrived.head, slices);
        let batch = batch.clone();
        let stored = Some(Stored::Batch { slot: arrived.slot, batch, fragments: true });
        self.append(kind, &arrived.head, slices, release, stored);
    }

    pub(crate) fn insert_fragments(
        &mut self,
        slot: Slot,
        batch: &Batch,
        head: &[u8],
        body: &[Slice],
    ) {
        if batch.is_ready() && slot != UNASSIGNED {
            return;
        }
        let head = SpreadHead::get(head).expect("the head was checked or made here");
        let spots = layout::fragments(&batch.ops).count();
        for (index, spot) in layout::fragments(&batch.ops).enumerate() {
            let crc = head.crc(index).expect("one checksum for each fragment");
            let bytes = match body {
                [whole] => whole.slice(spot.offset..spot.offset + spot.len),
                pieces => pieces[index].slice(0..spot.len),
            };
            // Fragments share the block of their body; a piece of its own pins a block alone.
            let shared = if body.len() == 1 { spots } else { 1 };
            let cost = spot.len.max(bytes.block_bytes() / shared);
            self.fragments.insert(spot.value.op, slot, bytes, cost, crc);
        }
    }

    /// The own body in blocks not much larger than it is: what is cached pins them.
    pub(crate) fn compact(&self, slices: &[Slice]) -> Vec<Slice> {
        let fit = |slice: &Slice| {
            let roomy = slice.block_bytes() > 2 * slice.len().next_multiple_of(ALIGN);
            if roomy {
                self.pool.copy(slice).unwrap_or_else(|| slice.clone())
            } else {
                slice.clone()
            }
        };
        slices.iter().map(fit).collect()
    }

    /// The core opened a slot for the batch that was offered.
    pub(crate) fn opened(&mut self, slot: Slot) {
        let parcel = self.opening.take().expect("a batch was offered");
        let known = Known { batch: parcel.batch.clone(), recorded: true, place: None };
        self.window.insert(slot, known);
        let members = self.core.at(slot).thresholds.members;
        // PROTOCOL 6.5-k
        if members.iter().any(|node| self.is_chunked(&parcel, node)) {
            self.queue_message(Target::Others, &Message::Opening { slot });
        }
        self.open.insert(slot, parcel);
        // PROTOCOL 6.2-a: to every other member that is not hopelessly behind.
        for node in members.iter() {
            if node != self.me && !self.is_backlogged(node) {
                self.spread_to(slot, node);
            }
        }
    }

    /// Whether so much waits for a node that another batch would only pin memory: it is down, or far
    /// behind, and asks for what it lacks when it is back.
    pub(crate) fn is_backlogged(&self, node: u8) -> bool {
        let silent = !self.heard_within(node, SILENT_NS);
        let most = if silent { BACKLOG_SILENT_BYTES_MAX } else { BACKLOG_BYTES_MAX };
        self.address(node).is_none_or(|address| self.net.pending_bytes(address) > most)
    }

    /// Whether a node's share of a batch is more than one datagram: the transport sends it in chunks,
    /// and again what is lost of it.
    fn is_chunked(&self, parcel: &Parcel, node: u8) -> bool {
        let Some(body) = self.body_of(parcel, node) else { return false };
        let body: usize = body.slices.iter().map(|slice| slice.len()).sum();
        let Some(address) = self.address(node) else { return false };
        let most = self.net.link().datagram_max(address);
        parcel.batch.bytes.len() + body + SPREAD_OVERHEAD > most
    }

    /// What a node gets of a batch with its slot, if it is one of those who hold it.
    fn body_of<'a>(&self, parcel: &'a Parcel, node: u8) -> Option<&'a Body> {
        let place = self.machine.members().layout(parcel.layout)?.place(node)?;
        parcel.bodies.get(place)
    }

    /// A node asked for the SPREAD of an own open slot (PROTOCOL 12.2-g). What the transport is still
    /// sending it need not be sent twice.
    pub(crate) fn spread_again(&mut self, slot: Slot, to: u8) {
        let Some(parcel) = self.open.get(&slot) else { return };
        let under_way = self.address(to).is_some_and(|it| self.net.pending_bytes(it) > 0);
        if !(under_way && self.is_chunked(parcel, to)) {
            self.spread_to(slot, to);
        }
    }

    /// Sends SPREAD of an own open slot.
    pub(crate) fn spread_to(&mut self, slot: Slot, to: u8) {
        // PROTOCOL 11-n
        // After a restart the other nodes' fragments are gone: they finish the slot without us.
        let Some(parcel) = self.open.get(&slot) else { return };
        let Some(body) = self.body_of(parcel, to) else { return };
        let Some(address) = self.address(to) else { return };
        let batch = &parcel.batch;
        let mut head = std::mem::take(&mut self.scratch);
        head.clear();
        let digest = batch.info.digest;
        SpreadHead { slot, digest, batch: &batch.bytes, crcs: &body.crcs }.put(&mut head);
        let _ = self.net.send(address, kind::SPREAD, &head, &body.slices, self.now);
        self.scratch = head;
    }

    /// FULL: a node could not store an own batch.
    pub(crate) fn on_full(&mut self, _from: u8, head: &[u8]) {
        let Ok(slot) = Reader::new(head).u64("slot") else { return };
        if self.open.contains_key(&slot) {
            self.refused_for_space.insert(slot);
        }
    }

    /// PROTOCOL 7-a: executes a slot.
    pub(crate) fn apply(&mut self, slot: Slot, value: Value) {
        let epoch = self.machine.members().epoch();
        let mut is_change = false;
        match value {
            Value::Null => {
                if let Some(known) = self.window.remove(&slot) {
                    // PROTOCOL 9.7: the fragments of a slot decided null may be dropped; those of class R
                    // may be in a later one.
                    for spot in known.batch.slot_fragments() {
                        self.fragments.forget(spot.value.op, Some(slot));
                    }
                }
                self.history.push_null();
                self.decided.push(slot, false);
            }
            Value::Batch(digest) => is_change = self.apply_batch(slot, digest),
        }
        self.fragments.executed(slot + 1);
        if is_noted(slot + 1) {
            self.note_state(slot + 1);
        }
        if let Some(observer) = &mut self.observer {
            observer.executed(slot, value, &self.machine);
        }
        // The members change with the next slot: what the former ones know of renewals may be lost.
        if slot + 1 == self.machine.members().effect() {
            self.restart_leases();
        }
        if self.decided.len() >= DECIDED_RUN_MAX {
            let mut head = Vec::new();
            self.decided.take(&mut head);
            self.append(record_kind::DECIDED, &head, &[], Release::Nothing, None);
        }
        if is_change {
            self.executed_change(epoch);
        }
    }

    /// Returns whether the batch may have changed who the members are.
    fn apply_batch(&mut self, slot: Slot, digest: u128) -> bool {
        // PROTOCOL 7-b, 13-e: with its metas, and those that were decided.
        let known = self.window.remove(&slot).expect("exec moves over a slot only with its metas");
        assert_eq!(known.batch.info.digest, digest, "slot {slot}: another batch was decided");
        self.history.push_batch(known.place);
        self.last_batch = Some(slot);
        if !known.recorded {
            let batch = &known.batch;
            let mut head = Vec::with_capacity(batch.bytes.len() + 32);
            SpreadHead { slot, digest, batch: &batch.bytes, crcs: &[] }.put(&mut head);
            let stored = Stored::Batch { slot, batch: batch.clone(), fragments: false };
            // PROTOCOL 3.1-e: the metas of what is executed, also without fragments.
            self.append(record_kind::META, &head, &[], Release::Nothing, Some(stored));
        }
        self.decided.push(slot, true);
        let own = self.open.remove(&slot);
        // PROTOCOL 7-c: in batch order; the machine looks each up in its session first.
        for (position, op) in known.batch.ops.iter().enumerate() {
            // None is left if they were told that the outcome is open.
            let waiter = own.as_ref().and_then(|parcel| parcel.waiters.get(position));
            let mut report = None;
            let outcome = match waiter {
                Some(Waiter::Api(_)) => {
                    let done = self.machine.apply_reporting(slot, position as u32, op);
                    report = done.1;
                    done.0
                }
                _ => self.machine.apply(slot, position as u32, op),
            };
            if let Some(observer) = &mut self.observer {
                observer.applied(slot, position as u32, op, &outcome);
            }
            let is_client = !matches!(waiter, Some(Waiter::Recode(_)));
            self.counts.writes += u64::from(own.is_some() && is_client);
            // PROTOCOL 7-f: exec is above the slot, so all lower ones are decided and applied.
            match waiter {
                Some(Waiter::Api(task)) => self.api_applied(*task, outcome, report),
                Some(waiter) => {
                    let reply = reply_to(slot, position as u32, op.id, &op.action, outcome);
                    self.reply(waiter, &reply, &[]);
                }
                None => {}
            }
            self.lease_applied(op);
            self.recode.executed(op, &outcome, self.now);
            self.note_width(op);
            if layout::may_be_unused(op, &outcome) {
                self.forget_unused(op);
            }
        }
        ahead::executed(&mut self.ahead.held, &mut self.fragments, slot, &known.batch);
        self.queued.executed(&known.batch);
        // PROTOCOL 6.3-e
        self.list_missing_of(slot, &known.batch.ops);
        self.refused_for_space.remove(&slot);
        self.forget_released(slot);
        if let Some(parcel) = own {
            self.host_for_missing(slot, &parcel);
        }
        known.batch.info.is_change
    }

    /// Values that an operation brought, and that no version names.
    fn forget_unused(&mut self, op: &Op) {
        for value in layout::stored_values(op) {
            if self.machine.value(value.op).is_none() {
                self.fragments.forget(value.op, None);
            }
        }
    }

    /// PROTOCOL 6.2-h, 11-l: an own slot was decided null: its operations may be opened again.
    pub(crate) fn void(&mut self, slot: Slot) {
        let Some(mut parcel) = self.open.remove(&slot) else { return };
        parcel.voids += 1;
        let full = self.refused_for_space.remove(&slot);
        if parcel.layout != self.builder.layout() && !self.fit_parcel(&mut parcel) {
            return self.give_up_changed(parcel);
        }
        // Whether leases have run out is looked into anew.
        if !full && parcel.voids <= VOIDS_MAX && !parcel.batch.is_guarded() {
            return self.sealed.push_front(parcel);
        }
        let error = match full {
            true => RequestError {
                code: ErrorCode::NoSpace,
                text: "too many nodes have a full disk: free space on them, writes resume by \
                       themselves; nothing of this write took effect"
                    .into(),
            },
            false => RequestError {
                code: ErrorCode::Unavailable,
                text: format!(
                    "the cluster refused this write {VOIDS_MAX} times: too many nodes are down or \
                     slow; nothing of it took effect, try again"
                ),
            },
        };
        self.give_up(parcel, &error);
    }

    /// PROTOCOL 10-w: what waits to be opened is for the members of slots to come.
    pub(crate) fn fit_parcels(&mut self) {
        for mut parcel in std::mem::take(&mut self.sealed) {
            match self.fit_parcel(&mut parcel) {
                true => self.sealed.push_back(parcel),
                false => self.give_up_changed(parcel),
            }
        }
        let layout = self.builder.layout();
        for parcel in self.assign.take_if(|parcel| parcel.layout != layout) {
            self.give_up_changed(parcel);
        }
    }

    /// Makes a batch one of the newest layout; false if it names values, empty ones too, of another.
    fn fit_parcel(&self, parcel: &mut Parcel) -> bool {
        let stores = parcel.batch.ops.iter().any(|op| op.stored_values().next().is_some());
        let is_old = parcel.layout != self.builder.layout();
        if is_old && !stores {
            self.builder.fit(parcel);
        }
        !is_old || !stores
    }

    pub(crate) fn give_up_changed(&mut self, parcel: Parcel) {
        let what = "the members changed before this write took effect, and it did not";
        let text = match self.idle_reason() {
            Some(why) => format!("{what}; {why}"),
            None => format!("{what}; try again"),
        };
        let error = RequestError { code: ErrorCode::Unavailable, text };
        self.give_up(parcel, &error);
    }

    pub(crate) fn give_up(&mut self, parcel: Parcel, error: &RequestError) {
        self.answer_all(parcel.waiters, error);
    }

    fn answer_all(&mut self, waiters: Vec<Waiter>, error: &RequestError) {
        for waiter in &waiters {
            self.reply(waiter, &Reply::Error(error.clone()), &[]);
        }
    }

    /// Tells the clients of writes that wait for the cluster too long that the outcome is open. The
    /// writes stay where they are: they take effect when a quorum is back, once (PROTOCOL 11).
    pub(crate) fn answer_stalled(&mut self) {
        if self.now < self.stalled_check_at {
            return;
        }
        self.stalled_check_at = self.now + STALLED_CHECK_NS;
        if self.core.can_open().is_none() {
            self.sealed.extend(self.builder.seal());
        }
        let mut stalled = Vec::new();
        let mut open: Vec<Slot> = self.open.keys().copied().collect();
        open.sort_unstable();
        for slot in open {
            let parcel = self.open.get_mut(&slot).expect("listed above");
            stalled.append(&mut overdue(parcel, self.now));
        }
        for parcel in self.sealed.iter_mut().chain(self.assign.parcels_mut()) {
            stalled.append(&mut overdue(parcel, self.now));
        }
        if !stalled.is_empty() {
            let heard = self.heard_at.iter().flatten().filter(|at| self.now < **at + STALLED_NS);
            let text = format!(
                "the write waits for a quorum: node {} has heard {} of {} other nodes in the last \
                 {} s, and {} are needed; it may still take effect",
                self.me,
                heard.count(),
                self.members().len() - 1,
                STALLED_NS / 1_000_000_000,
                self.core.thresholds().quorum - 1
            );
            let error = RequestError { code: ErrorCode::Unavailable, text };
            self.answer_all(stalled, &error);
        }
    }

    /// META: the batch of a slot, asked for by GETMETA.
    pub(crate) fn on_meta(&mut self, frame: &Frame) {
        let Ok(slot) = Reader::new(&frame.head).u64("slot") else { return };
        let Ok(batch) = Batch::decode(&frame.body, &self.secrets) else { return };
        self.learn_batch(slot, batch);
    }

    /// PROTOCOL 3.1-f, 9.3-c: a batch told by another node: of use if the slot is decided and its
    /// metas are missing here.
    pub(crate) fn learn_batch(&mut self, slot: Slot, batch: Rc<Batch>) {
        if !self.core.lacks_meta(slot) {
            return;
        }
        let info = batch.info.clone();
        self.window.insert(slot, Known { batch, recorded: false, place: None });
        self.step(Input::Meta { slot, batch: info });
        if self.core.lacks_meta(slot) {
            // It was not the batch that was decided.
            self.window.remove(&slot);
        }
    }

    /// PROTOCOL 7-h, 12.1-g: from memory or from the log. False if the disk cannot be asked now.
    pub(crate) fn send_meta(&mut self, slot: Slot, to: u8) -> bool {
        if let Some(known) = self.window.get(&slot) {
            let batch = known.batch.clone();
            self.send_meta_bytes(slot, to, &batch.bytes);
        } else if let Some(crate::history::Past::Batch(place)) = self.history.get(slot) {
            return self.read_disk(DiskRead::Meta { to, slot }, place, None);
        }
        true
    }

    pub(crate) fn meta_read(&mut self, to: u8, slot: Slot, bytes: Option<Slice>) {
        let Some(bytes) = bytes else { return };
        if let Some(head) = self.stored_head(slot, &bytes) {
            self.send_meta_bytes(slot, to, head.batch);
        }
    }

    /// The head of a record read back, if it is what was written.
    pub(crate) fn stored_head<'a>(&self, slot: Slot, bytes: &'a [u8]) -> Option<SpreadHead<'a>> {
        let head = SpreadHead::get(bytes).ok()?;
        let good = head.slot == slot && self.secrets.batch_digest(head.batch) == head.digest;
        good.then_some(head)
    }

    fn send_meta_bytes(&mut self, slot: Slot, to: u8, bytes: &[u8]) {
        let Some(body) = self.pool.copy(bytes) else { return };
        let mut head = Vec::with_capacity(8);
        head.put_u64(slot);
        self.send(to, kind::META, &head, &[body]);
    }
}

/// PROTOCOL 3.1-g, 6.2-b: whether a body has every fragment of these operations, with its checksum.
pub(crate) fn is_intact(ops: &[Op], head: &SpreadHead<'_>, body: &[u8]) -> bool {
    let intact = |(index, spot): (usize, layout::FragmentSpot<'_>)| {
        let bytes = &body[spot.offset..spot.offset + spot.len];
        head.crc(index) == Some(crc32fast::hash(bytes))
    };
    head.crcs.len() == layout::fragments(ops).count() * 4
        && layout::body_len(ops) == body.len()
        && layout::fragments(ops).enumerate().all(intact)
}

/// The clients of a batch that has waited too long.
fn overdue(parcel: &mut Parcel, now: u64) -> Vec<Waiter> {
    let since = *parcel.waiting_since.get_or_insert(now);
    if now < since + STALLED_NS {
        return Vec::new();
    }
    std::mem::take(&mut parcel.waiters)
}

/// What a client is told of its operation.
pub(crate) fn reply_to(
    slot: Slot,
    position: u32,
    op: OpId,
    action: &Action,
    outcome: Outcome,
) -> Reply {
    match (outcome, action) {
        (Outcome::Applied(_), Action::OpenSession { .. }) => {
            Reply::SessionOpened { session: SessionId { slot, position } }
        }
        (Outcome::Applied(done), Action::Part { value }) => {
            debug_assert_eq!(value.op, op);
            Reply::Done { revision: done.revision, changes: done.changes, value: Some(*value) }
        }
        (Outcome::Applied(done) | Outcome::Replayed(done), _) => {
            Reply::Done { revision: done.revision, changes: done.changes, value: None }
        }
        (Outcome::Refused { reason, .. }, _) => {
            Reply::Error(RequestError { code: ErrorCode::of(reason), text: reason.to_string() })
        }
    }
}
