//! Fragments of members that are missing, kept by the owner of what is written meanwhile (PROTOCOL 9.6).
//!
//! Purpose: who writes a value has the fragments of all its holders for a moment. Where hosting is asked for,
//! those of members that are missing are kept in the own log, and each is handed to its member when that one
//! is back: it need not collect k fragments of others and code its own again.
//!
//! Invariant: this is a cache. No promise, no read and no repair of anybody else counts what is hosted. The
//! log knows nothing of it: its room is given back as if it were not there, and what lay in it is not found
//! any more. A restart forgets all of it.
//! What would break it: a fragment of another node taken for the own one, or room kept for it.

use crate::batch::Parcel;
use crate::journal::{DiskRead, Stored};
use crate::layout;
use crate::node::Node;
use crate::put_off::Question;
use crate::record;
use crate::wire::cursor::Writer;
use crate::wire::node::{SegmentAnswer, kind, put_segment};
use racos_buffer::Slice;
use racos_machine::{OpId, Value};
use racos_net::Link;
use racos_protocol::{Release, Slot};
use racos_storage::device::{Device, FileId};
use racos_storage::{Class, Place};
use std::collections::BTreeMap;

/// What one costs besides its bytes: it is named in memory.
const ENTRY_BYTES: u64 = 128;
/// What the head of a record adds, generously.
const HEAD_BYTES: usize = 64;

/// One fragment of another node in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostedSpot {
    pub op: OpId,
    pub offset: u32,
    pub len: u32,
    pub crc: u32,
}

/// What is kept for other members.
#[derive(Debug, Default)]
pub(crate) struct Hosting {
    /// Operations of this node and boot: the oldest come first.
    fragments: BTreeMap<(OpId, u8), (Place, u32)>,
    bytes: u64,
    bytes_max: u64,
    pub handed_over: u64,
}

fn cost(place: Place) -> u64 {
    u64::from(place.len) + ENTRY_BYTES
}

impl Hosting {
    /// `bytes_max`: of what is kept for all; 0: nothing is.
    pub fn new(bytes_max: u64) -> Hosting {
        Hosting { bytes_max, ..Hosting::default() }
    }

    /// Whether fragments are kept for others, and asked for.
    pub fn is_on(&self) -> bool {
        self.bytes_max > 0
    }

    pub fn len(&self) -> usize {
        self.fragments.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether another node's fragment of this operation is kept.
    pub fn contains(&self, op: OpId) -> bool {
        self.fragments.range((op, 0)..=(op, u8::MAX)).next().is_some()
    }

    fn add(&mut self, op: OpId, node: u8, place: Place, crc: u32) {
        self.bytes += cost(place);
        if let Some((old, _)) = self.fragments.insert((op, node), (place, crc)) {
            self.bytes -= cost(old);
        }
        while self.bytes > self.bytes_max
            && let Some((_, (place, _))) = self.fragments.pop_first()
        {
            self.bytes -= cost(place);
        }
    }

    fn take(&mut self, op: OpId, node: u8) -> Option<(Place, u32)> {
        let taken = self.fragments.remove(&(op, node))?;
        self.bytes -= cost(taken.0);
        Some(taken)
    }

    /// Segments were given back: what lay in them is kept no longer. The oldest go first; what is behind one
    /// that is still there is looked at when that one goes, so that a turn pays for no more than goes.
    pub fn forget_given_back(&mut self, holds: impl Fn(FileId) -> bool) {
        while let Some(oldest) = self.fragments.first_entry()
            && let (place, _) = *oldest.get()
            && !holds(place.segment)
        {
            oldest.remove();
            self.bytes -= cost(place);
        }
    }

    /// No version uses the value any more.
    pub fn forget(&mut self, op: OpId) {
        while let Some((&(_, node), _)) = self.fragments.range((op, 0)..=(op, u8::MAX)).next() {
            self.take(op, node);
        }
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Where the fragment of another node lies that is kept for it.
    pub fn hosted_place(&self, op: OpId, node: u8) -> Option<Place> {
        self.hosting.fragments.get(&(op, node)).map(|(place, _)| *place)
    }

    /// An own batch was executed: keeps what the missing members did not get of it.
    pub(crate) fn host_for_missing(&mut self, slot: Slot, parcel: &Parcel) {
        if self.hosting.is_on() {
            for node in self.margin.missing().iter() {
                self.host(slot, parcel, node);
            }
        }
    }

    fn host(&mut self, slot: Slot, parcel: &Parcel, node: u8) {
        let place = self.machine.members().layout(parcel.layout).and_then(|it| it.place(node));
        let bodies = if parcel.batch.is_ready() { &parcel.ahead } else { &parcel.bodies };
        let Some(body) = place.and_then(|place| bodies.get(place)) else { return };
        // One that is whole at every node is as soon had from another one.
        let is_of_use = |value: &Value| value.k > 1 && self.machine.value(value.op).is_some();
        let spots = layout::fragments(&parcel.batch.ops).zip(body.crcs.chunks_exact(4));
        let spots = spots.filter(|(spot, _)| is_of_use(spot.value));
        let spots: Vec<HostedSpot> = spots
            .map(|(spot, crc)| HostedSpot {
                op: spot.value.op,
                offset: spot.offset as u32,
                len: spot.len as u32,
                crc: u32::from_le_bytes(crc.try_into().expect("chunks of four")),
            })
            .collect();
        let len = layout::body_len(&parcel.batch.ops);
        // PROTOCOL 9.6-d: nobody waits for it, and nothing is refused for it.
        let has_room = self.nothing_unappended()
            && !self.log.is_at_limit()
            && self.log.accepts(HEAD_BYTES, len, Class::Ordinary).is_ok();
        if spots.is_empty() || !has_room {
            return;
        }
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.put_u64(slot);
        head.put_u8(node);
        let stored = Some(Stored::Hosted { node, spots });
        // PROTOCOL 9.6-b: nothing is said of it.
        self.append(record::kind::HOSTED, &head, &body.slices, Release::Nothing, stored);
    }

    /// The log says where what is kept for a node lies.
    pub(crate) fn hosted_placed(&mut self, node: u8, spots: &[HostedSpot], body: Place) {
        for spot in spots {
            if let Some(place) = body.part(spot.offset, spot.len)
                && self.machine.value(spot.op).is_some()
            {
                self.hosting.add(spot.op, node, place, spot.crc);
            }
        }
    }

    /// GETOWN: the fragment that is kept here for who asks. It is not kept any longer: if it does not
    /// arrive, it is collected as any other. False: nothing is, or it cannot be read now.
    pub(crate) fn send_hosted(&mut self, to: u8, read: u64, op: OpId) -> bool {
        let Some((place, crc)) = self.hosting.take(op, to) else { return false };
        let is_in_use = self.machine.value(op).is_some();
        is_in_use && self.read_disk(DiskRead::Hosted { to, read, op: op.0, crc }, place, Some(crc))
    }

    /// What is kept for another node was read. If it is not what it was, the own fragment is sent.
    pub(crate) fn hosted_read(
        &mut self,
        to: u8,
        read: u64,
        op: u128,
        crc: u32,
        bytes: Option<Slice>,
    ) {
        let Some(bytes) = bytes else {
            return self.on_question(Question::Fragment { to, read, op: OpId(op) });
        };
        self.hosting.handed_over += 1;
        let mut head = Vec::with_capacity(32);
        put_segment(&mut head, read, op, Some(SegmentAnswer::Hosted { crc }));
        self.send(to, kind::SEG, &head, &[bytes]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: u64 = 100 + ENTRY_BYTES;

    fn op(counter: u64) -> OpId {
        OpId::new(0, 1, 1, counter)
    }

    fn place(offset: u32) -> Place {
        Place { segment: 1, offset, len: 100 }
    }

    /// tests PROTOCOL 9.6-d
    #[test]
    fn what_is_kept_for_others_is_bounded_and_the_oldest_goes() {
        let mut hosting = Hosting::new(3 * OLD);
        for counter in 0..5 {
            hosting.add(op(counter), 4, place(counter as u32 * 100), counter as u32);
        }
        assert_eq!((hosting.len(), hosting.bytes()), (3, 3 * OLD));
        assert_eq!(hosting.take(op(1), 4), None);
        assert_eq!(hosting.take(op(3), 2), None, "it is that of node 4");
        assert_eq!(hosting.take(op(3), 4), Some((place(300), 3)));
        assert_eq!((hosting.take(op(3), 4), hosting.bytes()), (None, 2 * OLD), "handed over once");
        hosting.add(op(4), 4, place(500), 9);
        assert_eq!((hosting.len(), hosting.bytes()), (2, 2 * OLD), "the same one again");
        assert_eq!(hosting.take(op(4), 4), Some((place(500), 9)));
    }

    #[test]
    fn a_value_that_is_used_no_more_is_kept_for_nobody() {
        let mut hosting = Hosting::new(1 << 20);
        for node in [2, 4] {
            (0..3).for_each(|counter| hosting.add(op(counter), node, place(0), 0));
        }
        hosting.forget(op(1));
        hosting.forget(op(7));
        assert_eq!((hosting.len(), hosting.bytes()), (4, 4 * OLD));
        assert_eq!((hosting.take(op(1), 2), hosting.take(op(1), 4)), (None, None));
        assert!(hosting.take(op(2), 4).is_some());
    }

    #[test]
    fn what_lay_in_a_segment_that_was_given_back_is_kept_no_longer() {
        let mut hosting = Hosting::new(1 << 20);
        for (counter, segment) in [(0, 3), (1, 3), (2, 4), (3, 5), (4, 5)] {
            hosting.add(op(counter), 4, Place { segment, ..place(0) }, 0);
        }
        hosting.forget_given_back(|_| true);
        assert_eq!((hosting.len(), hosting.bytes()), (5, 5 * OLD));
        hosting.forget_given_back(|segment| ![3, 5].contains(&segment));
        assert_eq!((hosting.len(), hosting.bytes()), (3, 3 * OLD));
        assert!(!hosting.contains(op(1)) && hosting.contains(op(3)), "behind one that is there");
        hosting.forget_given_back(|_| false);
        assert_eq!((hosting.len(), hosting.bytes()), (0, 0));
    }

    #[test]
    fn nothing_is_kept_unless_it_is_asked_for() {
        let mut hosting = Hosting::new(0);
        assert!(!hosting.is_on());
        hosting.add(op(1), 4, place(0), 0);
        assert_eq!((hosting.len(), hosting.bytes()), (0, 0));
    }
}
