//! Who the members are: the replicated configuration (PROTOCOL 10).
//!
//! Purpose: says of every slot which incarnation of each node counts in it, and which changes are
//! admitted.
//! Invariant: a function of the changes executed, in slot order; at any time one change at most is
//! on its way into effect, and no more than f members are without the fragments that they should
//! have, unless an operator said so. What would break it: admitting a change by anything that a node
//! alone knows.

use crate::hash::{self, Kind, halves, pair};
use crate::outcome::Refusal;
use crate::wire::{DecodeError, Reader, put_varint, require};

/// Most members of a cluster.
pub const MEMBERS_MAX: usize = 64;

/// What a cluster was founded with; equal on all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Founding {
    /// Members, all of incarnation 1.
    pub nodes: u8,
    /// Members that may be lost (f).
    pub lost_max: u8,
    /// A change executed in slot s takes effect in slot s + alpha.
    pub alpha: u64,
}

/// One member's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat {
    /// What counts in slots from `from` on; in those below it is the incarnation before.
    pub incarnation: u32,
    pub from: u64,
    /// The disk that speaks as this incarnation; 0: the one it was founded with.
    pub disk: u128,
    /// It was replaced and has not made all fragments of older values again.
    pub is_rebuilding: bool,
}

/// The configuration as of the last slot executed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    seats: Vec<Seat>,
    lost_max: u8,
    alpha: u64,
    epoch: u32,
    effect: u64,
}

impl Members {
    pub(crate) fn found(founding: Founding) -> Members {
        let Founding { nodes, lost_max, alpha } = founding;
        let seat = Seat { incarnation: 1, from: 0, disk: 0, is_rebuilding: false };
        let seats = vec![seat; usize::from(nodes)];
        Members { seats, lost_max, alpha, epoch: 1, effect: 0 }
    }

    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }
    /// Counts the changes that were admitted, from 1.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }
    /// The slot from which on the newest change is in effect.
    pub fn effect(&self) -> u64 {
        self.effect
    }

    /// REPLACE, executed in `slot`.
    ///
    /// # Errors
    /// PROTOCOL 10-k: why it is void. Nothing has changed then.
    pub(crate) fn replace(
        &mut self,
        slot: u64,
        node: u8,
        expected: u32,
        disk: u128,
        is_forced: bool,
    ) -> Result<(), Refusal> {
        let index = usize::from(node);
        let seat = *self.seats.get(index).ok_or(Refusal::NoSuchNode)?;
        // PROTOCOL 10-g
        if slot < self.effect {
            return Err(Refusal::ChangeInFlight);
        }
        // PROTOCOL 10-h
        if seat.incarnation != expected || expected == u32::MAX {
            return Err(Refusal::OtherIncarnation);
        }
        // PROTOCOL 10-i: nothing is used twice.
        if disk == 0 || self.seats.iter().any(|seat| seat.disk == disk) {
            return Err(Refusal::DiskInUse);
        }
        // PROTOCOL 10-j
        let others = self.seats.iter().enumerate();
        let gone = others.filter(|(at, seat)| *at != index && seat.is_rebuilding).count() + 1;
        if gone > usize::from(self.lost_max) && !is_forced {
            return Err(Refusal::TooManyRebuilding);
        }
        let from = slot + self.alpha;
        self.seats[index] = Seat { incarnation: expected + 1, from, disk, is_rebuilding: true };
        self.epoch += 1;
        self.effect = from;
        Ok(())
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

    pub(crate) fn hash(&self) -> u128 {
        let mut sum = 0u128;
        for (node, seat) in self.seats.iter().enumerate() {
            let [low, high] = halves(seat.disk);
            let flags = pair(seat.incarnation, u32::from(seat.is_rebuilding));
            let fields = [node as u64, flags, seat.from, low, high];
            sum = sum.wrapping_add(hash::entry(Kind::Seat, fields));
        }
        let sizes = u64::from(self.lost_max) << 32 | u64::from(self.epoch);
        sum.wrapping_add(hash::entry(Kind::Seat, [sizes, self.alpha, self.effect]))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.seats.len() as u64);
        put_varint(out, self.lost_max.into());
        put_varint(out, self.alpha);
        put_varint(out, self.epoch.into());
        put_varint(out, self.effect);
        for seat in &self.seats {
            put_varint(out, seat.incarnation.into());
            put_varint(out, seat.from);
            out.extend_from_slice(&seat.disk.to_le_bytes());
            out.push(u8::from(seat.is_rebuilding));
        }
    }

    pub(crate) fn get(from: &mut Reader<'_>) -> Result<Members, DecodeError> {
        let count = from.varint("members")? as usize;
        require(count <= MEMBERS_MAX, "members", "at most 64")?;
        let mut members = Members {
            seats: Vec::with_capacity(count),
            lost_max: from.byte("lost members")?,
            alpha: from.varint("alpha")?,
            epoch: from.number32("epoch")?,
            effect: from.varint("effect")?,
        };
        for _ in 0..count {
            members.seats.push(Seat {
                incarnation: from.number32("incarnation")?,
                from: from.varint("first slot")?,
                disk: u128::from_le_bytes(from.array("disk id")?),
                is_rebuilding: from.byte("rebuilding")? != 0,
            });
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const ALPHA: u64 = 3;

    fn found(nodes: u8, lost_max: u8) -> Members {
        Members::found(Founding { nodes, lost_max, alpha: ALPHA })
    }

    /// tests PROTOCOL 10-g, 10-h, 10-i, 10-j, 10-k
    #[test]
    fn a_change_is_void_for_the_reason_it_breaks() {
        let mut members = found(5, 1);
        assert_eq!(members.replace(9, 5, 1, 7, false), Err(Refusal::NoSuchNode));
        assert_eq!(members.replace(9, 2, 2, 7, false), Err(Refusal::OtherIncarnation));
        assert_eq!(members.replace(9, 2, 1, 0, false), Err(Refusal::DiskInUse));
        assert_eq!((members.clone(), members.epoch()), (found(5, 1), 1), "nothing has changed");
        assert_eq!(members.replace(9, 2, 1, 7, false), Ok(()));
        let seat = Seat { incarnation: 2, from: 12, disk: 7, is_rebuilding: true };
        assert_eq!((members.seats()[2], members.effect(), members.epoch()), (seat, 12, 2));
        assert_eq!(members.replace(11, 3, 1, 8, false), Err(Refusal::ChangeInFlight));
        assert_eq!(members.replace(12, 3, 1, 8, false), Err(Refusal::TooManyRebuilding));
        assert_eq!(members.replace(12, 2, 2, 7, false), Err(Refusal::DiskInUse));
        assert_eq!(members.clone().replace(12, 3, 1, 8, true), Ok(()), "an operator may");
        // The same node lost again is one lost node still.
        assert_eq!(members.clone().replace(12, 2, 2, 8, false), Ok(()));
        assert_eq!(members.rebuilt(2, 1), Err(Refusal::OtherIncarnation));
        assert_eq!(members.rebuilt(2, 2), Ok(()));
        assert_eq!(members.rebuilt(2, 2), Err(Refusal::OtherIncarnation));
        assert_eq!(members.replace(12, 3, 1, 8, false), Ok(()));
    }

    /// tests PROTOCOL 10-g, 10-h, 10-j: every sequence of changes up to ten slots, 3 and 4 nodes: at
    /// most f rebuild, changes do not overlap, an incarnation is never used again.
    #[test]
    fn no_sequence_of_changes_breaks_the_promise() {
        for (nodes, lost_max) in [(3, 1), (4, 1), (4, 2)] {
            let mut seen = BTreeSet::new();
            let mut front = vec![(found(nodes, lost_max), 0u64)];
            while let Some((members, slot)) = front.pop() {
                let mut bytes = Vec::new();
                members.put(&mut bytes);
                if slot == 10 || !seen.insert((bytes, slot)) {
                    continue;
                }
                front.push((members.clone(), slot + 1));
                for node in 0..nodes {
                    let held = members.seats()[usize::from(node)];
                    for expected in [held.incarnation, held.incarnation + 1] {
                        let mut next = members.clone();
                        let disk = u128::from(slot) + 1;
                        if next.replace(slot, node, expected, disk, false).is_ok() {
                            let new = next.seats()[usize::from(node)];
                            assert_eq!(expected, held.incarnation);
                            assert!(new.from >= held.from + ALPHA && slot >= members.effect());
                            assert_eq!(new.incarnation, held.incarnation + 1);
                            let gone = next.seats().iter().filter(|seat| seat.is_rebuilding);
                            assert!(gone.count() <= usize::from(lost_max));
                            // Of any slot, two configurations differ in one member at most.
                            let low = members.seats().iter().zip(next.seats());
                            assert_eq!(low.filter(|(old, new)| old != new).count(), 1);
                            front.push((next, slot + 1));
                        }
                    }
                    let mut next = members.clone();
                    if next.rebuilt(node, held.incarnation).is_ok() {
                        assert!(held.is_rebuilding);
                        front.push((next, slot + 1));
                    }
                }
            }
            assert!(seen.len() > 100, "{} states", seen.len());
        }
    }

    #[test]
    fn members_survive_their_encoding_and_each_field_shows_in_the_hash() {
        let mut members = found(3, 1);
        let founded = members.hash();
        members.replace(4, 1, 1, 99, false).unwrap();
        let replaced = members.hash();
        let mut bytes = Vec::new();
        members.put(&mut bytes);
        let mut reader = Reader { rest: &bytes };
        assert_eq!(Members::get(&mut reader).as_ref(), Ok(&members));
        members.rebuilt(1, 2).unwrap();
        assert!(founded != replaced && replaced != members.hash() && founded != members.hash());
        for cut in 0..bytes.len() {
            assert!(Members::get(&mut Reader { rest: &bytes[..cut] }).is_err());
        }
    }
}
