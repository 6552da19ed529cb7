//! Who the members are, as this node acts on it (PROTOCOL 10).
//!
//! Purpose: carries executed changes to the core, stops a disk that was replaced, proposes REBUILT for
//! one that has replaced another, and judges from whom datagrams are taken in.
//! Invariant: a node takes part only as the incarnation that the configuration names for its disk.

use crate::admission::replaced;
use crate::batch::Waiter;
use crate::layout::fragment_len;
use crate::node::Node;
use crate::replay::HEAD_ROOM;
use crate::wire::cursor::{Reader, Writer};
use crate::wire::node::{kind, put_message};
use racos_machine::{Action, Layout, Machine, Members, Op, Reconfigure, Replace};
use racos_net::Link;
use racos_protocol::{Change, Configuration, Input, Membership, Message, Nanos, NodeSet, Seat};
use racos_storage::device::Device;
use std::net::SocketAddr;

/// How often a rebuilding node looks whether it is done, and proposes it again.
const REBUILT_LOOK: Nanos = 250_000_000;
const REBUILT_AGAIN: Nanos = 3_000_000_000;

/// A node that was not heard for so long is not spoken to unasked.
const SILENCE_NS: Nanos = 2_000_000_000;

/// The change that was admitted since an epoch, if any: there is one at a time.
pub(crate) fn change_since(machine: &Machine, epoch: u32) -> Option<Change> {
    let members = machine.members();
    if members.epoch() == epoch {
        return None;
    }
    let newest = members.newest().expect("a cluster has members");
    if newest.from == members.effect() {
        let next = configuration(newest);
        return Some(Change::Reconfigure { next, lost: lost(members.seats()) });
    }
    let changed = |(_, seat): &(usize, &racos_machine::Seat)| seat.from == members.effect();
    let (node, seat) = members.seats().iter().enumerate().find(changed).expect("one was replaced");
    let seat = Seat { incarnation: seat.incarnation, from: seat.from };
    Some(Change::Replace { node: node as u8, seat })
}

pub(crate) fn configuration(layout: &Layout) -> Configuration {
    let Layout { from, lost_max, data, .. } = *layout;
    let made = Configuration::new(from, layout.members.clone(), lost_max.into(), data.into());
    made.expect("what was admitted is possible")
}

fn lost(seats: &[racos_machine::Seat]) -> NodeSet {
    let lost = seats.iter().enumerate().filter(|(_, seat)| seat.is_lost);
    lost.fold(NodeSet::EMPTY, |mut set, (node, _)| {
        set.insert(node as u8);
        set
    })
}

/// Who counts, as a checkpoint tells.
pub(crate) fn membership(members: &Members) -> Membership {
    let seats = members.seats().iter();
    let seats = seats.map(|seat| Seat { incarnation: seat.incarnation, from: seat.from });
    Membership {
        seats: seats.collect(),
        lost: lost(members.seats()),
        configurations: members.layouts().iter().map(configuration).collect(),
        epoch: members.epoch(),
        effect: members.effect(),
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// A slot with a change was applied: the core goes on with what came of it.
    pub(crate) fn executed_change(&mut self, epoch: u32) {
        let change = change_since(&self.machine, epoch);
        match change.is_some() {
            true => self.follow_members(),
            false => self.learn_addresses(),
        }
        self.step(Input::Executed { change });
        self.check_seat();
    }

    /// The members may be others now: what waits to be opened is made for them, or given up.
    pub(crate) fn follow_members(&mut self) {
        self.sealed.extend(self.builder.seal());
        self.learn_members();
        self.recode.begin_anew();
        self.fit_parcels();
    }

    /// PROTOCOL 10-d, 10-r: stops a disk that has no place any more.
    pub(crate) fn check_seat(&mut self) {
        let members = self.machine.members();
        let Some(seat) = members.seats().get(usize::from(self.me)) else { return };
        let mine = self.config.incarnation;
        let (me, newer, disk, from) = (self.me, seat.incarnation, seat.disk, seat.from);
        if seat.is_released || seat.is_lost {
            self.fail(format!(
                "node {me} was removed and nothing lies on it any more: its directory is of no more \
                 use, and its number is never used again"
            ));
        } else if newer > mine && (newer > mine + 1 || self.core.exec() >= from) {
            self.fail(format!(
                "node {me} has incarnation {newer} now, this disk was {mine}: it was replaced; its \
                 directory is of no more use"
            ));
        } else if newer == mine && disk != 0 && disk != self.log.disk_id() {
            self.fail(format!(
                "another disk than this one was put in the place of node {me}: start the node with \
                 the directory that `racos member replace` made, or replace it again"
            ));
        }
    }

    /// PROTOCOL 10-q, 3.2-a: whether a datagram comes from a disk that has, or may get, a place, and
    /// not from before its last start.
    pub(crate) fn is_peer(
        &mut self,
        from: u8,
        incarnation: u32,
        boot: u32,
        address: SocketAddr,
    ) -> bool {
        let index = usize::from(from);
        let Some(seat) = self.core.seats().get(index).copied() else {
            // PROTOCOL 10-m: not a member, as far as is known here: it may ask for facts.
            self.addresses.set(from, address);
            return true;
        };
        let is_old = incarnation < seat.incarnation;
        if is_old && (incarnation + 1 < seat.incarnation || self.core.exec() >= seat.from) {
            self.tell_replaced(from, seat.incarnation);
            return false;
        }
        let known = self.log_ends.boot(from);
        if incarnation == known.0 && boot < known.1 {
            self.on_old_boot(from);
            return false;
        }
        if incarnation > known.0 {
            // It does not know this disk yet.
            self.admission.forgotten_by(from);
        }
        self.log_ends.heard(from, incarnation, boot, 0);
        if !is_old {
            self.addresses.heard(from, address);
            self.heard_at[index] = Some(self.now);
        }
        true
    }

    /// Whether a node was heard within this time.
    pub(crate) fn heard_within(&self, node: u8, ns: Nanos) -> bool {
        self.heard_at[usize::from(node)].is_some_and(|at| self.now < at + ns)
    }

    /// Whether a node was heard lately.
    pub(crate) fn hears(&self, node: u8) -> bool {
        self.heard_within(node, SILENCE_NS)
    }

    pub(crate) fn hears_any(&self) -> bool {
        self.others.iter().any(|node| self.hears(node))
    }

    /// PROTOCOL 10-an: who comes no further may not know where the others are.
    pub(crate) fn look_elsewhere(&mut self) {
        let mut hears = NodeSet::EMPTY;
        self.others.iter().filter(|node| self.hears(*node)).for_each(|node| hears.insert(node));
        self.addresses.look(self.core.exec(), hears, self.now);
    }

    /// PROTOCOL 10-z: while none of the nodes known is heard, any address given is asked for facts.
    pub(crate) fn ask_contacts(&mut self) {
        // The only member has nobody to hear.
        let needs_nobody = self.others.is_empty() && self.core.is_active();
        if needs_nobody || self.hears_any() {
            return;
        }
        let mut asked = Vec::with_capacity(32);
        put_message(&mut asked, &Message::Pull { from: self.core.exec(), wanted: 0, facts: false });
        for contact in &self.config.contacts {
            let _ = self.net.send(*contact, kind::CORE, &asked, &[], self.now);
        }
    }

    /// Tells a disk that another one is in its place.
    pub(crate) fn tell_replaced(&mut self, to: u8, incarnation: u32) {
        let mut head = Vec::with_capacity(4);
        head.put_u32(incarnation);
        self.send(to, kind::REPLACED, &head, &[]);
    }

    /// REPLACED: a member has executed a change that puts another disk in this one's place.
    pub(crate) fn on_replaced(&mut self, head: &[u8]) {
        let Ok(newer) = Reader::new(head).u32("incarnation") else { return };
        let (me, mine) = (self.me, self.config.incarnation);
        if newer > mine && !self.takes_part() {
            self.fail(replaced(me, newer, " --erase"));
        } else if newer > mine {
            self.fail(format!(
                "node {me} has incarnation {newer} now, this disk was {mine}: it was replaced; its \
                 directory is of no more use"
            ));
        }
    }

    /// Why this node takes no clients' work now, if it does not.
    pub(crate) fn idle_reason(&self) -> Option<String> {
        if let Some(ns) = self.disk_hangs_ns() {
            let (me, ms) = (self.me, ns / 1_000_000);
            return Some(format!("node {me}: its disk has not answered for {ms} ms; ask another"));
        }
        if let Some(why) = self.waits_for() {
            return Some(why);
        }
        if self.core.is_active() {
            return None;
        }
        let (me, mine) = (self.me, self.config.incarnation);
        let Some(seat) = self.core.seats().get(usize::from(me)) else {
            let exec = self.core.exec();
            return Some(format!(
                "node {me} is not a member yet and follows the others ({exec} slots executed); \
                 `racos member add` makes it one; ask another"
            ));
        };
        let is_leaving = !self.core.newest().contains(me);
        Some(if is_leaving {
            format!("node {me} was removed; ask another")
        } else if seat.incarnation == mine {
            let (exec, from) = (self.core.exec(), seat.from);
            format!("node {me} is new and catches up: {exec} of {from} slots; ask another")
        } else if seat.incarnation > mine {
            format!("node {me} was replaced; ask another")
        } else {
            format!(
                "node {me} is not a member yet: its disk is incarnation {mine}, the member is \
                 incarnation {}; `racos member replace {me}` makes it one",
                seat.incarnation
            )
        })
    }

    /// A change of the members: alone in its batch.
    pub(crate) fn propose_alone(&mut self, action: Action, waiter: Option<Waiter>) {
        let op = Op { id: self.next_op_id(), author: None, stamp: None, action };
        let before = self.builder.seal();
        self.sealed.extend(before);
        let parcel = self.builder.alone(op, waiter);
        self.sealed.push_back(parcel);
    }

    /// Why a change would be unwise though every node might admit it: what only a proposer knows.
    pub(crate) fn check_change(&self, action: &Action) -> Result<(), String> {
        if self.is_queue() {
            return Err("policy = \"queue\": changes of the members need slots with owners, and a cluster \
                        is founded with or without them; found another one with policy = \"owner\" and \
                        copy the data"
                .into());
        }
        let change = match action {
            Action::Reconfigure(change) => change,
            Action::ReplaceNode(change) if !change.address.is_empty() => {
                return self.check_place(change.node, &change.address);
            }
            Action::MoveNode { node, address, .. } => return self.check_place(*node, address),
            _ => return Ok(()),
        };
        // PROTOCOL 10-aj: whoever leaves does not vouch for one that comes for the first time.
        let members = self.members().iter().collect::<Vec<u8>>();
        let leaves = members.iter().any(|node| !change.members.contains(node));
        let mut stay = members.iter().filter(|node| change.members.contains(node));
        if leaves
            && !change.is_forced
            && let Some(new) = stay.find(|node| !self.has_taken_part(**node))
        {
            return Err(format!(
                "node {new} was never heard here: if it never ran, those that leave may be the ones that \
                 must say so; start it first, or remove it, or force the change and replace it later"
            ));
        }
        let (n, most) = (change.members.len() as u64, self.config.own_slots_max as u64);
        // PROTOCOL 10-i: alpha >= n*W.
        if n * most > self.config.alpha {
            let alpha = self.config.alpha;
            return Err(format!(
                "{n} members with {most} own slots in flight need alpha >= {}: it is {alpha}; lower \
                 own_slots_in_flight",
                n * most
            ));
        }
        let bounds = &self.config.bounds;
        let largest = fragment_len(bounds.value_bytes_max, usize::from(change.data).max(1));
        if largest + HEAD_ROOM > bounds.segment_bytes as usize / 4 {
            return Err(format!(
                "with k = {} a fragment may have {largest} bytes, more than a quarter of a log \
                 segment ({} bytes): choose a larger k, or larger segments",
                change.data, bounds.segment_bytes
            ));
        }
        Ok(())
    }

    /// PROTOCOL 10-am: no two nodes at one address, those of the founding included.
    fn check_place(&self, node: u8, address: &str) -> Result<(), String> {
        let parsed = address.parse::<SocketAddr>();
        let is_one = |at: &SocketAddr| !at.ip().is_unspecified() && at.port() != 0;
        let at = parsed.ok().filter(is_one).ok_or_else(|| {
            format!(
                "address = \"{address}\": this is not where a node can be reached; give IP:PORT, as the \
                 other nodes are to send to it"
            )
        })?;
        let mut others = self.others().iter().chain([self.me]).filter(|other| *other != node);
        match others.find(|other| self.address(*other) == Some(at)) {
            Some(other) => Err(format!(
                "address = {at}: node {other} is reached there; give node {node} one of its own"
            )),
            None => Ok(()),
        }
    }

    /// PROTOCOL 10-ad: a node that left, and has no fragment of a value in use, is not needed.
    fn propose_released(&mut self) {
        let members = self.machine.members();
        if !self.core.is_active() || self.core.exec() < members.effect() {
            return;
        }
        let used = |node: u8| {
            let mut holding = members.layouts().iter().filter(|it| it.place(node).is_some());
            holding.any(|layout| self.machine.values_of_layout(layout.number) > 0)
        };
        let seats = (0..).zip(members.seats());
        let mut left = seats
            .filter(|(node, seat)| !members.is_member(*node) && !seat.is_released && !used(*node));
        if let Some((node, _)) = left.next() {
            self.rebuilt_at = self.now + REBUILT_AGAIN;
            self.propose_alone(Action::NodeReleased { node }, None);
        }
    }

    /// Proposes other members, or another f or k, on nobody's behalf.
    ///
    /// # Errors
    /// Why it would be unwise; nothing is proposed.
    pub fn propose_reconfigure(&mut self, change: Reconfigure) -> Result<(), String> {
        let action = Action::Reconfigure(Box::new(change));
        self.check_change(&action)?;
        self.propose_alone(action, None);
        Ok(())
    }

    /// Proposes to put another disk in the place of a node's, on nobody's behalf. `address`: where it comes
    /// up; empty: where the node was.
    ///
    /// # Errors
    /// Why it would be unwise; nothing is proposed.
    pub fn propose_replace(
        &mut self,
        node: u8,
        expected: u32,
        disk: u128,
        address: &str,
    ) -> Result<(), String> {
        let (address, is_forced) = (address.into(), false);
        let change = Replace { node, expected, disk, address, is_forced };
        let action = Action::ReplaceNode(Box::new(change));
        self.check_change(&action)?;
        self.propose_alone(action, None);
        Ok(())
    }

    /// Proposes that a node is reached elsewhere from then on, on nobody's behalf.
    ///
    /// # Errors
    /// Why it would be unwise; nothing is proposed.
    pub fn propose_move(&mut self, node: u8, expected: u32, address: &str) -> Result<(), String> {
        let action = Action::MoveNode { node, expected, address: address.into() };
        self.check_change(&action)?;
        self.propose_alone(action, None);
        Ok(())
    }

    /// PROTOCOL 10-v: says that all fragments are here again, once they are.
    pub(crate) fn propose_rebuilt(&mut self) {
        if self.now < self.rebuilt_at {
            return;
        }
        self.rebuilt_at = self.now + REBUILT_LOOK;
        self.check_seat();
        self.propose_released();
        let seat = self.machine.members().seats().get(usize::from(self.me)).copied();
        let Some(seat) = seat.filter(|seat| seat.is_rebuilding) else { return };
        let is_mine = seat.incarnation == self.config.incarnation;
        if !is_mine || self.core.exec() < seat.from || self.repair.missing.any_below(seat.from) {
            return;
        }
        let (node, incarnation) = (self.me, seat.incarnation);
        self.rebuilt_at = self.now + REBUILT_AGAIN;
        self.propose_alone(Action::NodeRebuilt { node, incarnation }, None);
    }
}
