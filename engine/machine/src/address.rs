//! Where nodes are reached (PROTOCOL 10-am): a part of the configuration that no quorum depends on.
//!
//! Invariant: of the addresses that were ever named, no two nodes that are of use have the same one.
//! Addresses of the founding stand in the nodes' configurations, not here: whoever proposes a change
//! compares with those.

use crate::members::{Members, Seat};
use crate::op::check_bounds;
use crate::outcome::Refusal;
use crate::wire::{DecodeError, Problem, Reader, put_varint};

/// Longest address of a node, as text.
pub const ADDRESS_BYTES_MAX: usize = 64;

pub(crate) fn check_address(address: &str, least: usize) -> Result<(), DecodeError> {
    check_bounds("address", address.len(), least, ADDRESS_BYTES_MAX)
}

pub(crate) fn put_address(out: &mut Vec<u8>, address: &str) {
    put_varint(out, address.len() as u64);
    out.extend_from_slice(address.as_bytes());
}

pub(crate) fn get_address(from: &mut Reader<'_>) -> Result<Box<str>, DecodeError> {
    let len = from.varint("address")? as usize;
    check_bounds("address", len, 0, ADDRESS_BYTES_MAX)?;
    let text = std::str::from_utf8(from.take("address", len)?);
    let problem = Problem::Inconsistent("an address is text");
    Ok(text.map_err(|_| DecodeError::new("address", problem))?.into())
}

fn is_of_use(seat: &Seat) -> bool {
    !seat.is_lost && !seat.is_released
}

impl Members {
    /// Where a node is, if another place was named than where it was at the founding.
    pub fn address(&self, node: u8) -> Option<&str> {
        let address = self.addresses.get(usize::from(node))?;
        (!address.is_empty()).then_some(address)
    }

    /// MOVE: a node is reached at another address from now on.
    ///
    /// # Errors
    /// If there is no such node or no such incarnation of it, or another one is there.
    pub(crate) fn moved(&mut self, node: u8, expected: u32, address: &str) -> Result<(), Refusal> {
        let index = usize::from(node);
        let seat = self.seats().get(index).filter(|seat| is_of_use(seat));
        // PROTOCOL 10-am: of the node that was meant.
        let is_other = seat.ok_or(Refusal::NoSuchNode)?.incarnation != expected;
        if is_other && !mutant!("another incarnation is moved") {
            return Err(Refusal::OtherIncarnation);
        }
        self.check_free(index, address)?;
        self.name_address(index, address);
        Ok(())
    }

    /// PROTOCOL 10-am: whether no other node is at this address, as far as addresses were named.
    pub(crate) fn check_free(&self, node: usize, address: &str) -> Result<(), Refusal> {
        let mut others = self.seats().iter().zip(&self.addresses).enumerate();
        let is_taken = others.any(|(other, (seat, at))| {
            other != node && is_of_use(seat) && !at.is_empty() && **at == *address
        });
        match is_taken && !mutant!("two nodes at one address") {
            true => Err(Refusal::AddressInUse),
            false => Ok(()),
        }
    }

    /// Empty: it stays where it was.
    pub(crate) fn name_address(&mut self, node: usize, address: &str) {
        if !address.is_empty() {
            self.addresses[node] = address.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::{Founding, Replace};

    const NONE: &dyn Fn(u16) -> u64 = &|_| 0;

    fn found() -> Members {
        Members::found(Founding { nodes: 3, lost_max: 1, data: 1, alpha: 5 })
    }

    fn disk(node: u8, address: &str) -> Replace {
        Replace { node, expected: 1, disk: 7, address: address.into(), is_forced: false }
    }

    /// tests PROTOCOL 10-am
    #[test]
    fn a_node_moves_if_it_is_the_one_that_was_meant_and_nobody_is_there() {
        let mut members = found();
        let (epoch, effect, hash) = (members.epoch(), members.effect(), members.hash());
        assert_eq!(members.moved(3, 1, "a:1"), Err(Refusal::NoSuchNode));
        assert_eq!(members.moved(1, 2, "a:1"), Err(Refusal::OtherIncarnation));
        assert_eq!(members.hash(), hash);
        assert_eq!(members.moved(1, 1, "a:1"), Ok(()));
        assert_eq!((members.address(1), members.address(2)), (Some("a:1"), None));
        assert_ne!(members.hash(), hash, "it is part of the state");
        assert_eq!(
            (members.epoch(), members.effect()),
            (epoch, effect),
            "no quorum is another one"
        );
        assert_eq!(members.moved(2, 1, "a:1"), Err(Refusal::AddressInUse));
        assert_eq!(members.moved(1, 1, "a:1"), Ok(()), "asked again");
        assert_eq!(members.moved(1, 1, "b:1"), Ok(()));
        assert_eq!(members.moved(2, 1, "a:1"), Ok(()), "it was left");
    }

    /// tests PROTOCOL 10-am
    #[test]
    fn a_disk_that_replaces_another_may_be_elsewhere() {
        let mut members = found();
        members.moved(1, 1, "a:1").unwrap();
        let before = members.clone();
        assert_eq!(members.replace(9, &disk(2, "a:1"), NONE), Err(Refusal::AddressInUse));
        assert_eq!(members, before);
        assert_eq!(members.replace(9, &disk(2, "c:1"), NONE), Ok(()));
        assert_eq!((members.address(2), members.address(1)), (Some("c:1"), Some("a:1")));
        let stays = Replace { expected: 2, disk: 8, ..disk(2, "") };
        assert_eq!(members.replace(99, &stays, NONE), Ok(()));
        assert_eq!(members.address(2), Some("c:1"));
        // The disk that was replaced is not the one that is moved.
        assert_eq!(members.moved(2, 2, "d:1"), Err(Refusal::OtherIncarnation));
    }
}
