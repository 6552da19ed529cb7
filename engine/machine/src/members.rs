//! Who the members are: the replicated configuration (PROTOCOL 10).
//!
//! Purpose: says of every slot which nodes and which incarnation of each count in it, of every value
//! on which nodes its fragments lie, and which changes are admitted.
//! Invariant: a function of the changes executed, in slot order; at any time one change at most is
//! on its way into effect, and of no value in use more than f members of its layout are without the
//! fragments that they should have, unless an operator said so. What would break it: admitting a
//! change by anything that a node alone knows.

use crate::address::{check_address, get_address, put_address};
use crate::hash::{self, Kind, halves, pair};
use crate::op::{Action, check_bounds};
use crate::outcome::Refusal;
use crate::wire::{DecodeError, Problem, Reader, put_varint, require};

/// Most nodes that a cluster ever has, those that left included: a number is never used again.
pub const MEMBERS_MAX: usize = 64;

/// What a cluster was founded with; equal on all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Founding {
    /// Members, all of incarnation 1.
    pub nodes: u8,
    /// Members that may be lost (f).
    pub lost_max: u8,
    /// Fragments needed to rebuild a value (k).
    pub data: u8,
    /// A change executed in slot s takes effect in slot s + alpha.
    pub alpha: u64,
}

/// One node's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat {
    /// What counts in slots from `from` on; in those below it is the incarnation before.
    pub incarnation: u32,
    pub from: u64,
    /// The disk that speaks as this incarnation; 0: the one it was founded with.
    pub disk: u128,
    /// It was replaced and has not made all fragments of older values again.
    pub is_rebuilding: bool,
    /// It left, and its disk is lost.
    pub is_lost: bool,
    /// It left, and no value in use has fragments on it: it may be wiped.
    pub is_released: bool,
}

impl Seat {
    const FOUNDING: Seat = Seat {
        incarnation: 1,
        from: 0,
        disk: 0,
        is_rebuilding: false,
        is_lost: false,
        is_released: false,
    };
}

/// Members and code of the slots from `from` on, up to the next layout's; values stored in them have
/// fragment i on node `members[i]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Counts the layouts, from 0: the one that the cluster was founded with.
    pub number: u16,
    pub from: u64,
    pub members: Vec<u8>,
    pub lost_max: u8,
    pub data: u8,
}

impl Layout {
    /// The place of a node's fragments.
    pub fn place(&self, node: u8) -> Option<usize> {
        self.members.iter().position(|member| *member == node)
    }
}

/// A node that joins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joining {
    pub disk: u128,
    pub address: Box<str>,
}

/// RECONF: other members, or another f or k.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reconfigure {
    /// The epoch that it changes.
    pub expected: u32,
    /// All members then, in order; those that join have the next numbers never used.
    pub members: Vec<u8>,
    /// Those that join, in the order of their numbers.
    pub joining: Vec<Joining>,
    pub lost_max: u8,
    pub data: u8,
    /// Of those that leave, the ones whose disks are lost.
    pub lost: Vec<u8>,
    /// Even if more than f members of a layout are without their fragments then.
    pub is_forced: bool,
}

impl Reconfigure {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        check_bounds("members", self.members.len(), 1, MEMBERS_MAX)?;
        check_bounds("joining", self.joining.len(), 0, self.members.len())?;
        check_bounds("lost", self.lost.len(), 0, MEMBERS_MAX)?;
        let addresses = self.joining.iter().map(|joining| &joining.address);
        addresses.into_iter().try_for_each(|it| check_address(it, 0))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.expected.into());
        put_nodes(out, &self.members);
        put_varint(out, self.joining.len() as u64);
        for Joining { disk, address } in &self.joining {
            out.extend_from_slice(&disk.to_le_bytes());
            put_address(out, address);
        }
        out.extend_from_slice(&[self.lost_max, self.data]);
        put_nodes(out, &self.lost);
        out.push(u8::from(self.is_forced));
    }

    pub(crate) fn get(from: &mut Reader<'_>) -> Result<Reconfigure, DecodeError> {
        let expected = from.number32("epoch")?;
        let members = get_nodes(from)?;
        let count = from.varint("joining")? as usize;
        check_bounds("joining", count, 0, MEMBERS_MAX)?;
        let mut joining = Vec::with_capacity(count);
        for _ in 0..count {
            let disk = u128::from_le_bytes(from.array("disk id")?);
            joining.push(Joining { disk, address: get_address(from)? });
        }
        let [lost_max, data] = from.array("f and k")?;
        let lost = get_nodes(from)?;
        let is_forced = from.flag("forced")?;
        Ok(Reconfigure { expected, members, joining, lost_max, data, lost, is_forced })
    }
}

fn put_nodes(out: &mut Vec<u8>, nodes: &[u8]) {
    put_varint(out, nodes.len() as u64);
    out.extend_from_slice(nodes);
}

fn get_nodes(from: &mut Reader<'_>) -> Result<Vec<u8>, DecodeError> {
    let count = from.varint("nodes")? as usize;
    check_bounds("nodes", count, 0, MEMBERS_MAX)?;
    Ok(from.take("nodes", count)?.to_vec())
}

/// The configuration as of the last slot executed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// Of every node that ever was a member, by number.
    seats: Vec<Seat>,
    /// Where a node was said to be; empty: where it was when the cluster was founded.
    pub(crate) addresses: Vec<Box<str>>,
    /// In the order of their slots; the last one is the newest, perhaps not in effect. Those that no
    /// value and no open slot needs are forgotten with the next change.
    layouts: Vec<Layout>,
    alpha: u64,
    epoch: u32,
    effect: u64,
}

impl Members {
    pub(crate) fn found(founding: Founding) -> Members {
        let Founding { nodes, lost_max, data, alpha } = founding;
        let count = usize::from(nodes);
        let members = (0..nodes).collect();
        Members {
            seats: vec![Seat::FOUNDING; count],
            addresses: vec![Box::default(); count],
            layouts: vec![Layout { number: 0, from: 0, members, lost_max, data }],
            alpha,
            epoch: 1,
            effect: 0,
        }
    }

    /// Of every node that ever was a member, by number.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }
    /// The layouts that values in use, or slots, may have, the newest one last.
    pub fn layouts(&self) -> &[Layout] {
        &self.layouts
    }
    /// The layout of the newest configuration, in effect or not.
    pub fn newest(&self) -> Option<&Layout> {
        self.layouts.last()
    }
    /// A change that changes nothing, to be changed; panics in a store without members.
    pub fn unchanged(&self) -> Reconfigure {
        let newest = self.newest().expect("a cluster has members");
        Reconfigure {
            expected: self.epoch(),
            members: newest.members.clone(),
            joining: Vec::new(),
            lost_max: newest.lost_max,
            data: newest.data,
            lost: Vec::new(),
            is_forced: false,
        }
    }
    pub fn layout(&self, number: u16) -> Option<&Layout> {
        self.layouts.iter().rev().find(|layout| layout.number == number)
    }
    /// The layout of values stored in a slot; 0 for a store without members.
    pub fn layout_at(&self, slot: u64) -> u16 {
        let layout = self.layouts.iter().rev().find(|layout| layout.from <= slot);
        layout.map_or(0, |layout| layout.number)
    }
    /// Whether a node is a member in the newest configuration.
    pub fn is_member(&self, node: u8) -> bool {
        self.newest().is_some_and(|layout| layout.place(node).is_some())
    }
    /// Counts the changes that were admitted, from 1.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }
    /// The slot from which on the newest change is in effect.
    pub fn effect(&self) -> u64 {
        self.effect
    }

    /// gone(c): members of a layout that lack fragments of it, or will never be heard again.
    fn gone(&self, layout: &Layout) -> usize {
        let lacks = |node: &&u8| {
            let seat = &self.seats[usize::from(**node)];
            // One that replaced another before this layout lacks nothing of it.
            seat.is_lost || (seat.is_rebuilding && seat.from > layout.from)
        };
        layout.members.iter().filter(lacks).count()
    }

    /// PROTOCOL 10-j: whether values in use, by layout, can bear what is gone.
    fn bears(&self, values: &dyn Fn(u16) -> u64) -> bool {
        let newest = self.newest().map(|layout| layout.number);
        let is_used = |layout: &&Layout| Some(layout.number) == newest || values(layout.number) > 0;
        let mut used = self.layouts.iter().filter(is_used);
        used.all(|layout| self.gone(layout) <= usize::from(layout.lost_max))
    }

    /// PROTOCOL 10-ja: the layouts with values of which more than may be lost would be gone once this change
    /// is admitted, whatever overrides it.
    ///
    /// # Errors
    /// Why it would be void even if it is forced.
    pub fn short_after(
        &self,
        change: &Action,
        values: &dyn Fn(u16) -> u64,
    ) -> Result<Vec<u16>, Refusal> {
        let mut after = self.clone();
        // The first slot in which no other change is in flight.
        let slot = self.effect;
        match change {
            Action::ReplaceNode(change) => {
                let forced = Replace { is_forced: true, ..(**change).clone() };
                after.replace(slot, &forced, values)?;
            }
            Action::Reconfigure(change) => {
                let forced = Reconfigure { is_forced: true, ..(**change).clone() };
                after.reconfigure(slot, &forced, values)?;
            }
            _ => return Err(Refusal::Malformed),
        }
        let is_short = |layout: &&Layout| {
            let is_used = values(layout.number) > 0;
            is_used && after.gone(layout) > usize::from(layout.lost_max)
        };
        Ok(after.layouts.iter().filter(is_short).map(|layout| layout.number).collect())
    }

    /// PROTOCOL 10-g
    fn check_time(&self, slot: u64) -> Result<(), Refusal> {
        let overlaps = slot < self.effect && !mutant!("changes overlap");
        if overlaps { Err(Refusal::ChangeInFlight) } else { Ok(()) }
    }

    /// PROTOCOL 10-i: nothing is used twice.
    fn check_disk(&self, disk: u128) -> Result<(), Refusal> {
        let is_used = disk == 0 || self.seats.iter().any(|seat| seat.disk == disk);
        if is_used && !mutant!("a disk comes back in another place") {
            Err(Refusal::DiskInUse)
        } else {
            Ok(())
        }
    }

    /// REPLACE, executed in `slot`. `values` counts the values in use of a layout.
    ///
    /// # Errors
    /// PROTOCOL 10-k: why it is void. Nothing has changed then.
    pub(crate) fn replace(
        &mut self,
        slot: u64,
        change: &Replace,
        values: &dyn Fn(u16) -> u64,
    ) -> Result<(), Refusal> {
        let Replace { node, expected, disk, ref address, is_forced } = *change;
        let index = usize::from(node);
        let seat = *self.seats.get(index).ok_or(Refusal::NoSuchNode)?;
        if !self.is_member(node) {
            return Err(Refusal::NoSuchNode);
        }
        self.check_time(slot)?;
        // PROTOCOL 10-h
        let is_other = seat.incarnation != expected && !mutant!("another incarnation is replaced");
        if is_other || seat.incarnation == u32::MAX {
            return Err(Refusal::OtherIncarnation);
        }
        self.check_disk(disk)?;
        self.check_free(index, address)?;
        let (from, incarnation) = (slot + self.alpha, seat.incarnation + 1);
        self.seats[index] = Seat { incarnation, from, disk, is_rebuilding: true, ..seat };
        if !self.bears(values) && !is_forced && !mutant!("any number may rebuild") {
            self.seats[index] = seat;
            return Err(Refusal::TooManyRebuilding);
        }
        self.name_address(index, address);
        self.epoch += 1;
        self.effect = from;
        Ok(())
    }

    /// RECONF, executed in `slot`. `values` counts the values in use of a layout.
    ///
    /// # Errors
    /// PROTOCOL 10-k: why it is void. Nothing has changed then.
    pub(crate) fn reconfigure(
        &mut self,
        slot: u64,
        change: &Reconfigure,
        values: &dyn Fn(u16) -> u64,
    ) -> Result<(), Refusal> {
        let newest = self.newest().ok_or(Refusal::NoSuchNode)?;
        self.check_time(slot)?;
        // PROTOCOL 10-h
        if change.expected != self.epoch && !mutant!("members of another epoch are changed") {
            return Err(Refusal::OtherEpoch);
        }
        self.check_members(change)?;
        let number = newest.number.checked_add(1).ok_or(Refusal::ImpossibleMembers)?;
        let (from, lost_max, data) = (slot + self.alpha, change.lost_max, change.data);
        let mut next = self.clone();
        for Joining { disk, address } in &change.joining {
            next.check_disk(*disk)?;
            next.seats.push(Seat { from, disk: *disk, ..Seat::FOUNDING });
            next.addresses.push(address.clone());
        }
        let lost = change.lost.iter().map(|node| usize::from(*node));
        lost.for_each(|node| next.seats[node].is_lost = true);
        // What no value uses has no fragments anywhere; slots of the newest one may be open.
        next.layouts.retain(|it| it.number == newest.number || values(it.number) > 0);
        let members = change.members.clone();
        next.layouts.push(Layout { number, from, members, lost_max, data });
        // PROTOCOL 10-ae, 10-j
        if !next.bears(values) && !change.is_forced && !mutant!("any number may leave as lost") {
            return Err(Refusal::TooManyRebuilding);
        }
        next.epoch += 1;
        next.effect = from;
        *self = next;
        Ok(())
    }

    /// PROTOCOL 10-i, 10-c, 1-a: a possible cluster of members that stay and numbers never used.
    fn check_members(&self, change: &Reconfigure) -> Result<(), Refusal> {
        let n = change.members.len();
        let (f, k) = (usize::from(change.lost_max), usize::from(change.data));
        // Every owner has a slot in each window (10-i; W is the proposer's to check).
        let is_possible = k > 0 && n >= 2 * f + k && self.alpha >= n as u64;
        if !is_possible && !mutant!("members of any shape") {
            return Err(Refusal::ImpossibleMembers);
        }
        let used = self.seats.len();
        let mut next = used;
        for (at, &node) in change.members.iter().enumerate() {
            let is_new = usize::from(node) == next;
            next += usize::from(is_new);
            let is_again = change.members[..at].contains(&node);
            if is_again || (!is_new && !self.is_member(node)) {
                return Err(Refusal::NodeUsed);
            }
        }
        if next > MEMBERS_MAX || next - used != change.joining.len() {
            return Err(Refusal::NodeUsed);
        }
        let leaves = |node: &u8| self.is_member(*node) && !change.members.contains(node);
        if change.lost.iter().all(leaves) { Ok(()) } else { Err(Refusal::NoSuchNode) }
    }

    /// REBUILT: the node has every fragment that it should have.
    ///
    /// # Errors
    /// If it is not this incarnation that rebuilds.
    pub(crate) fn rebuilt(&mut self, node: u8, incarnation: u32) -> Result<(), Refusal> {
        let seat = self.seats.get_mut(usize::from(node)).ok_or(Refusal::NoSuchNode)?;
        if seat.incarnation != incarnation || !seat.is_rebuilding {
            return Err(Refusal::OtherIncarnation);
        }
        seat.is_rebuilding = false;
        Ok(())
    }

    /// A node that is no member any more, in effect.
    fn left(&mut self, slot: u64, node: u8) -> Result<&mut Seat, Refusal> {
        if self.is_member(node) || slot < self.effect {
            return Err(Refusal::StillMember);
        }
        self.seats.get_mut(usize::from(node)).ok_or(Refusal::NoSuchNode)
    }

    /// LOST: the disk of a node that left is lost.
    ///
    /// # Errors
    /// If it has not left.
    pub(crate) fn lost(&mut self, slot: u64, node: u8) -> Result<(), Refusal> {
        // PROTOCOL 10-ae
        self.left(slot, node)?.is_lost = true;
        Ok(())
    }

    /// RELEASED: nothing in use has fragments on a node that left.
    ///
    /// # Errors
    /// If it has not left, or something has.
    pub(crate) fn released(
        &mut self,
        slot: u64,
        node: u8,
        values: &dyn Fn(u16) -> u64,
    ) -> Result<(), Refusal> {
        // PROTOCOL 10-ad
        let mut used = self.layouts.iter().filter(|layout| values(layout.number) > 0);
        let is_used = used.any(|layout| layout.place(node).is_some());
        let seat = self.left(slot, node)?;
        if is_used {
            return Err(Refusal::StillMember);
        }
        seat.is_released = true;
        Ok(())
    }

    pub(crate) fn hash(&self) -> u128 {
        let mut sum = 0u128;
        for (node, seat) in self.seats.iter().enumerate() {
            let [low, high] = halves(seat.disk);
            let flags = pair(seat.incarnation, u32::from(seat_flags(seat)));
            let address = halves(hash::bytes(self.addresses[node].as_bytes()))[0];
            let fields = [node as u64, flags, seat.from, low, high, address];
            sum = sum.wrapping_add(hash::entry(Kind::Seat, fields));
        }
        for layout in &self.layouts {
            let code = [layout.lost_max, layout.data];
            let members = halves(hash::bytes(&[&layout.members[..], &code].concat()));
            let fields = [layout.number.into(), layout.from, members[0], members[1]];
            sum = sum.wrapping_add(hash::entry(Kind::Layout, fields));
        }
        sum.wrapping_add(hash::entry(Kind::Seat, [self.epoch.into(), self.alpha, self.effect]))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.seats.len() as u64);
        put_varint(out, self.alpha);
        put_varint(out, self.epoch.into());
        put_varint(out, self.effect);
        for (seat, address) in self.seats.iter().zip(&self.addresses) {
            put_varint(out, seat.incarnation.into());
            put_varint(out, seat.from);
            out.extend_from_slice(&seat.disk.to_le_bytes());
            out.push(seat_flags(seat));
            put_address(out, address);
        }
        put_varint(out, self.layouts.len() as u64);
        for layout in &self.layouts {
            put_varint(out, layout.number.into());
            put_varint(out, layout.from);
            put_nodes(out, &layout.members);
            out.extend_from_slice(&[layout.lost_max, layout.data]);
        }
    }

    pub(crate) fn get(from: &mut Reader<'_>) -> Result<Members, DecodeError> {
        let count = from.varint("members")? as usize;
        require(count <= MEMBERS_MAX, "members", "at most 64")?;
        let mut members = Members {
            alpha: from.varint("alpha")?,
            epoch: from.number32("epoch")?,
            effect: from.varint("effect")?,
            ..Members::default()
        };
        for _ in 0..count {
            let (incarnation, first) = (from.number32("incarnation")?, from.varint("first slot")?);
            let disk = u128::from_le_bytes(from.array("disk id")?);
            let flags = from.byte("seat")?;
            require(flags < 8, "seat", "three flags")?;
            members.seats.push(Seat {
                incarnation,
                from: first,
                disk,
                is_rebuilding: flags & 1 != 0,
                is_lost: flags & 2 != 0,
                is_released: flags & 4 != 0,
            });
            members.addresses.push(get_address(from)?);
        }
        members.get_layouts(from)?;
        Ok(members)
    }

    fn get_layouts(&mut self, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        let layouts = from.varint("layouts")?;
        let (is_empty, used) = (self.seats.is_empty(), self.seats.len());
        require(is_empty == (layouts == 0), "layouts", "members have a layout")?;
        for _ in 0..layouts {
            let number = from.varint("layout")?;
            let number = u16::try_from(number);
            let problem = Problem::Inconsistent("layouts are numbered with 16 bits");
            let number = number.map_err(|_| DecodeError::new("layout", problem))?;
            let first = from.varint("layout from")?;
            let last = self.layouts.last();
            let follows = last.is_none_or(|it| it.number < number && it.from < first);
            require(follows, "layout", "layouts stand in order")?;
            let members = get_nodes(from)?;
            let known = members.iter().all(|node| usize::from(*node) < used);
            let [lost_max, data] = from.array("f and k")?;
            let least = 2 * usize::from(lost_max) + usize::from(data);
            let possible = known && data > 0 && members.len() >= least;
            let distinct = (1..members.len()).all(|at| !members[..at].contains(&members[at]));
            require(possible && distinct, "layout", "n >= 2f+k different members")?;
            self.layouts.push(Layout { number, from: first, members, lost_max, data });
        }
        Ok(())
    }
}

/// REPLACE: another disk in a node's place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replace {
    pub node: u8,
    /// The incarnation that it replaces.
    pub expected: u32,
    pub disk: u128,
    /// Where the node is from now on; empty: where it was.
    pub address: Box<str>,
    /// Even if more than f members are rebuilding then.
    pub is_forced: bool,
}

fn seat_flags(seat: &Seat) -> u8 {
    u8::from(seat.is_rebuilding) | u8::from(seat.is_lost) << 1 | u8::from(seat.is_released) << 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const ALPHA: u64 = 5;

    fn found(nodes: u8, lost_max: u8, data: u8) -> Members {
        Members::found(Founding { nodes, lost_max, data, alpha: ALPHA })
    }

    fn disk(node: u8, expected: u32, disk: u128) -> Replace {
        Replace { node, expected, disk, address: Box::default(), is_forced: false }
    }

    fn reconf(members: &Members, list: &[u8], lost_max: u8, data: u8) -> Reconfigure {
        let used = members.seats().len();
        let new = list.iter().filter(|node| usize::from(**node) >= used);
        let joining = new.map(|node| Joining {
            disk: 100 + u128::from(*node),
            address: format!("host{node}").into(),
        });
        let (members_then, joining) = (list.to_vec(), joining.collect());
        Reconfigure { members: members_then, joining, lost_max, data, ..members.unchanged() }
    }

    const NONE: &dyn Fn(u16) -> u64 = &|_| 0;
    const ALL: &dyn Fn(u16) -> u64 = &|_| 1;

    /// tests PROTOCOL 10-g, 10-h, 10-i, 10-j, 10-k
    #[test]
    fn a_change_is_void_for_the_reason_it_breaks() {
        let mut members = found(5, 1, 3);
        let mut replace = |slot, change| {
            let before = members.clone();
            let result = members.replace(slot, &change, NONE);
            assert!(result.is_ok() || members == before, "nothing has changed");
            result
        };
        assert_eq!(replace(9, disk(5, 1, 7)), Err(Refusal::NoSuchNode));
        assert_eq!(replace(9, disk(2, 2, 7)), Err(Refusal::OtherIncarnation));
        assert_eq!(replace(9, disk(2, 1, 0)), Err(Refusal::DiskInUse));
        assert_eq!(replace(9, disk(2, 1, 7)), Ok(()));
        assert_eq!(replace(13, disk(3, 1, 8)), Err(Refusal::ChangeInFlight));
        assert_eq!(replace(14, disk(3, 1, 8)), Err(Refusal::TooManyRebuilding));
        assert_eq!(replace(14, disk(2, 2, 7)), Err(Refusal::DiskInUse));
        let seat =
            Seat { incarnation: 2, from: 14, disk: 7, is_rebuilding: true, ..Seat::FOUNDING };
        assert_eq!((members.seats()[2], members.effect(), members.epoch()), (seat, 14, 2));
        let forced = Replace { is_forced: true, ..disk(3, 1, 8) };
        assert_eq!(members.clone().replace(14, &forced, NONE), Ok(()), "an operator may");
        // The same node lost again is one lost node still.
        assert_eq!(members.clone().replace(14, &disk(2, 2, 8), NONE), Ok(()));
        assert_eq!(members.rebuilt(2, 1), Err(Refusal::OtherIncarnation));
        assert_eq!(members.rebuilt(2, 2), Ok(()));
        assert_eq!(members.rebuilt(2, 2), Err(Refusal::OtherIncarnation));
    }

    /// tests PROTOCOL 10-c, 10-g, 10-h, 10-i, 10-k
    #[test]
    fn a_reconfiguration_is_void_for_the_reason_it_breaks() {
        let mut members = found(3, 1, 1);
        let mut change = |slot, alter: &dyn Fn(&mut Reconfigure), list: &[u8], f, k| {
            let before = members.clone();
            let mut asked = reconf(&members, list, f, k);
            alter(&mut asked);
            let result = members.reconfigure(slot, &asked, ALL);
            assert!(result.is_ok() || members == before, "nothing has changed");
            result
        };
        let plain = &|_: &mut Reconfigure| {};
        let four = &[0, 1, 2, 3];
        assert_eq!(change(9, &|it| it.expected = 2, four, 1, 2), Err(Refusal::OtherEpoch));
        assert_eq!(change(9, plain, four, 1, 3), Err(Refusal::ImpossibleMembers));
        assert_eq!(change(9, plain, four, 1, 0), Err(Refusal::ImpossibleMembers));
        let six = &[0, 1, 2, 3, 4, 5];
        assert_eq!(change(9, plain, six, 1, 2), Err(Refusal::ImpossibleMembers), "alpha < n");
        assert_eq!(change(9, plain, &[0, 1, 1, 2], 1, 2), Err(Refusal::NodeUsed));
        assert_eq!(change(9, plain, &[0, 1, 2, 4], 1, 2), Err(Refusal::NodeUsed), "3 is next");
        assert_eq!(change(9, &|it| it.joining.clear(), four, 1, 2), Err(Refusal::NodeUsed));
        assert_eq!(change(9, &|it| it.joining[0].disk = 0, four, 1, 2), Err(Refusal::DiskInUse));
        assert_eq!(change(9, &|it| it.lost = vec![2], four, 1, 2), Err(Refusal::NoSuchNode));
        assert_eq!(change(9, plain, four, 1, 2), Ok(()));
        assert_eq!(change(13, plain, &[0, 1, 2], 1, 1), Err(Refusal::ChangeInFlight));
        assert_eq!(change(14, plain, &[0, 2, 3], 1, 1), Ok(()));
        assert_eq!(change(19, plain, four, 1, 2), Err(Refusal::NodeUsed), "1 has left");
        assert_eq!((members.epoch(), members.effect(), members.layouts().len()), (3, 19, 3));
        assert_eq!(members.seats()[3], Seat { from: 14, disk: 103, ..Seat::FOUNDING });
        let layouts = [8, 13, 14, 18, 19].map(|slot| members.layout_at(slot));
        assert_eq!(layouts, [0, 0, 1, 1, 2]);
        assert_eq!(members.replace(19, &disk(1, 1, 50), NONE), Err(Refusal::NoSuchNode));
    }

    /// tests PROTOCOL 10-j, 10-ad, 10-ae
    #[test]
    fn what_left_is_lost_or_released_and_counts_while_values_lie_on_it() {
        let mut members = found(4, 1, 2);
        let mut first = reconf(&members, &[0, 1, 2], 1, 1);
        first.lost = vec![3];
        assert_eq!(members.clone().reconfigure(9, &first, ALL), Ok(()), "one may be lost");
        members.reconfigure(9, &reconf(&members, &[0, 1, 2], 1, 1), ALL).unwrap();
        assert_eq!(members.lost(13, 3), Err(Refusal::StillMember), "it takes part until 14");
        assert_eq!(members.released(13, 3, NONE), Err(Refusal::StillMember));
        assert_eq!(members.released(14, 3, ALL), Err(Refusal::StillMember));
        assert_eq!(members.released(14, 2, NONE), Err(Refusal::StillMember));
        assert_eq!(members.clone().released(14, 3, NONE), Ok(()));
        assert_eq!(members.lost(14, 3), Ok(()));
        // Of the values of the first layout one member is gone; another one may not be.
        let only_new: &dyn Fn(u16) -> u64 = &|layout| u64::from(layout > 0);
        let next = disk(2, 1, 9);
        assert_eq!(members.clone().replace(14, &next, ALL), Err(Refusal::TooManyRebuilding));
        assert_eq!(members.clone().replace(14, &next, only_new), Ok(()));
        let mut leaving = reconf(&members, &[0, 1, 4], 1, 1);
        leaving.lost = vec![2];
        assert_eq!(members.reconfigure(14, &leaving, ALL), Err(Refusal::TooManyRebuilding));
        assert_eq!(members.reconfigure(14, &leaving, only_new), Ok(()));
        let numbers: Vec<u16> = members.layouts().iter().map(|layout| layout.number).collect();
        assert_eq!(numbers, [1, 2], "what nothing uses is forgotten");
    }

    /// tests PROTOCOL 10-g, 10-h, 10-j, 10-l: every sequence of changes in eleven slots: of no layout in
    /// use are more than f members without fragments, changes do not overlap, no incarnation, disk or
    /// number is used again, and every slot has one configuration, known alpha slots before it.
    #[test]
    fn no_sequence_of_changes_breaks_the_promise() {
        const SLOTS: u64 = 11;
        let shapes: [&[(u8, u8, u8)]; 2] =
            [&[(3, 1, 1), (4, 1, 2)], &[(5, 1, 3), (3, 1, 1), (4, 1, 2)]];
        for shapes in shapes {
            let (nodes, f, k) = shapes[0];
            let mut seen = BTreeSet::new();
            let mut front = vec![(found(nodes, f, k), 0u64)];
            while let Some((members, slot)) = front.pop() {
                let mut bytes = Vec::new();
                members.put(&mut bytes);
                if slot == SLOTS || !seen.insert((bytes, slot)) {
                    continue;
                }
                front.push((members.clone(), slot + 1));
                let mut nexts = Vec::new();
                for node in 0..members.seats().len() as u8 {
                    let held = members.seats()[usize::from(node)];
                    let change = disk(node, held.incarnation, u128::from(slot) + 1);
                    let mut next = members.clone();
                    if next.replace(slot, &change, ALL).is_ok() {
                        let new = next.seats()[usize::from(node)];
                        assert_eq!(new.incarnation, held.incarnation + 1);
                        nexts.push(next);
                    }
                    let mut next = members.clone();
                    if next.rebuilt(node, held.incarnation).is_ok() {
                        front.push((next, slot + 1));
                    }
                }
                for &(n, f, k) in shapes {
                    let mut list = members.newest().unwrap().members.clone();
                    let used = members.seats().len() as u8;
                    while list.len() < n.into() {
                        list.push(used + (list.iter().filter(|it| **it >= used).count() as u8));
                    }
                    let left = list.drain(..list.len() - usize::from(n)).collect::<Vec<_>>();
                    for lost in [Vec::new(), left] {
                        let change = Reconfigure { lost, ..reconf(&members, &list, f, k) };
                        let mut next = members.clone();
                        if next.reconfigure(slot, &change, ALL).is_ok() {
                            nexts.push(next);
                        }
                    }
                }
                for next in nexts {
                    assert!(slot >= members.effect() && next.effect() == slot + ALPHA);
                    let known =
                        (0..slot + ALPHA).all(|t| next.layout_at(t) == members.layout_at(t));
                    assert!(known, "slots below the effect keep their configuration");
                    for layout in next.layouts() {
                        assert!(next.gone(layout) <= usize::from(layout.lost_max));
                    }
                    front.push((next, slot + 1));
                }
            }
            assert!(seen.len() > 1000, "{} states", seen.len());
        }
    }

    #[test]
    fn members_survive_their_encoding_and_each_field_shows_in_the_hash() {
        let mut all = vec![found(3, 1, 1)];
        let mut members = found(3, 1, 1);
        members.replace(4, &disk(1, 1, 99), ALL).unwrap();
        all.push(members.clone());
        members.rebuilt(1, 2).unwrap();
        all.push(members.clone());
        let change = reconf(&members, &[0, 2, 3, 4, 5], 1, 3);
        members.reconfigure(9, &change, ALL).unwrap();
        all.push(members.clone());
        members.lost(14, 1).unwrap();
        all.push(members.clone());
        members.released(14, 1, NONE).unwrap();
        all.push(members.clone());
        let hashes: BTreeSet<u128> = all.iter().map(Members::hash).collect();
        assert_eq!(hashes.len(), all.len());
        for members in all {
            let mut bytes = Vec::new();
            members.put(&mut bytes);
            let mut reader = Reader { rest: &bytes };
            assert_eq!(Members::get(&mut reader).as_ref(), Ok(&members));
            for cut in 0..bytes.len() {
                assert!(Members::get(&mut Reader { rest: &bytes[..cut] }).is_err());
            }
        }
        let mut bytes = Vec::new();
        change.put(&mut bytes);
        assert_eq!(Reconfigure::get(&mut Reader { rest: &bytes }), Ok(change));
    }
}
