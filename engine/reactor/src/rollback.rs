//! Disks that were put back to what they held earlier (PROTOCOL 4.4-l, 4.4-n, 9.1-b, 9.1-j).
//!
//! Purpose: a disk restored from an image has forgotten promises, and its node must stop. The others
//! find it out: each remembers of each, on its own disk too, the highest boot and how long the log was
//! said to be, and compares when a restarted node shows its disk.
//! Invariant: what a node says of its log is flushed, so whatever a crash leaves is at least as long; a
//! node that is refused here has lost something that it had promised.
//! What would break it: telling records that are queued, or comparing lengths of one and the same boot.

use crate::node::Node;
use crate::record::kind as record_kind;
use crate::wire::cursor::{Reader, WireError, Writer};
use crate::wire::node::kind;
use racos_machine::MEMBERS_MAX;
use racos_net::Link;
use racos_protocol::Nanos;
use racos_storage::device::Device;
use racos_storage::{Class, RecordId};

/// What was heard of the others is written at most this often.
const NOTE_NS: Nanos = 10_000_000_000;

/// How far a node was when it was heard last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LogEnd {
    pub incarnation: u32,
    pub boot: u32,
    /// The last record that it had flushed, as it said, and in which boot; 0: it has not said.
    pub record: u64,
    pub said_in: u32,
}

/// Where the logs of all nodes end.
pub(crate) struct LogEnds {
    /// The last record of the own log at the start of this process.
    pub found: RecordId,
    /// By number of the node.
    peers: Vec<LogEnd>,
    /// What of the others is not written.
    is_new: bool,
    /// The record that says it, when it was written, and beside which checkpoint.
    noted: RecordId,
    noted_at: Nanos,
    noted_beside: u64,
}

impl LogEnds {
    /// `peers`: as the own log tells.
    pub fn new(found: RecordId, mut peers: Vec<LogEnd>) -> LogEnds {
        peers.resize(MEMBERS_MAX, LogEnd::default());
        let noted = RecordId(0);
        LogEnds { found, peers, is_new: false, noted, noted_at: 0, noted_beside: 0 }
    }

    /// The highest incarnation and boot that was heard of a node.
    pub fn boot(&self, node: u8) -> (u32, u32) {
        let end = self.peers[usize::from(node)];
        (end.incarnation, end.boot)
    }

    /// A node, in the boot that its datagram says, has flushed up to `record`; 0: it has only been heard.
    pub fn heard(&mut self, node: u8, incarnation: u32, boot: u32, record: u64) {
        let known = &mut self.peers[usize::from(node)];
        if incarnation < known.incarnation {
            return;
        }
        let before = *known;
        if incarnation > known.incarnation {
            *known = LogEnd { incarnation, ..LogEnd::default() };
        }
        known.boot = known.boot.max(boot);
        if record > known.record {
            (known.record, known.said_in) = (record, boot);
        }
        self.is_new |= *known != before;
    }

    /// PROTOCOL 9.1-j: how long the log was that a node found to end at `found` when it started, if it
    /// was longer in an earlier boot.
    pub fn longer(&self, node: u8, incarnation: u32, boot: u32, found: u64) -> Option<u64> {
        let known = self.peers.get(usize::from(node))?;
        let is_before = known.incarnation == incarnation && known.said_in < boot;
        (is_before && found < known.record).then_some(known.record)
    }
}

/// Encodes what was heard of all others: the head of a record.
fn put_ends(out: &mut Vec<u8>, peers: &[LogEnd]) {
    for (node, end) in peers.iter().enumerate().filter(|(_, end)| end.incarnation > 0) {
        out.put_u8(node as u8);
        out.put_u32(end.incarnation);
        out.put_u32(end.boot);
        out.put_u64(end.record);
        out.put_u32(end.said_in);
    }
}

/// Takes the head of such a record.
pub(crate) fn get_ends(bytes: &[u8]) -> Result<Vec<LogEnd>, WireError> {
    let mut from = Reader::new(bytes);
    let mut peers = vec![LogEnd::default(); MEMBERS_MAX];
    while !from.is_empty() {
        let node = usize::from(from.u8("node")?);
        let (incarnation, boot) = (from.u32("incarnation")?, from.u32("boot")?);
        let (record, said_in) = (from.u64("record")?, from.u32("boot of the record")?);
        let end = LogEnd { incarnation, boot, record, said_in };
        *peers.get_mut(node).ok_or(WireError { field: "node" })? = end;
    }
    Ok(peers)
}

impl<L: Link, D: Device> Node<L, D> {
    /// PROTOCOL 4.4-n: tells the others how long the own log is.
    pub(crate) fn tell_log_end(&mut self) {
        let mut head = Vec::with_capacity(8);
        head.put_u64(self.log.flushed_record().0);
        for node in self.others().iter() {
            self.send(node, kind::LOGGED, &head, &[]);
        }
    }

    /// LOGGED.
    pub(crate) fn on_log_end(&mut self, from: u8, incarnation: u32, boot: u32, head: &[u8]) {
        if let Ok(record) = Reader::new(head).u64("record") {
            self.log_ends.heard(from, incarnation, boot, record);
        }
    }

    /// PROTOCOL 4.4-n: writes what was heard of the others, now and then and with the records of others'
    /// work: in a cluster at rest nothing is written because others have written this.
    pub(crate) fn note_log_ends(&mut self) {
        let ends = &self.log_ends;
        let beside = self.checkpoints.begun();
        let is_due = ends.is_new && self.now >= ends.noted_at + NOTE_NS;
        let is_left_behind = beside != ends.noted_beside;
        let alone = self.log.last_record() == ends.noted;
        if alone || !(is_due || is_left_behind) || !self.nothing_unappended() {
            return;
        }
        let mut head = Vec::new();
        put_ends(&mut head, &ends.peers);
        let appended = self.log.append_until(record_kind::HEARD, &head, &[], Class::Upkeep, 0);
        if let Ok(id) = appended {
            let ends = &mut self.log_ends;
            (ends.noted, ends.noted_at, ends.noted_beside) = (id, self.now, beside);
            ends.is_new = false;
        }
    }

    /// HELLO of a disk whose log ends where it says: whether it was longer before, which it is told.
    pub(crate) fn was_rolled_back(
        &mut self,
        from: u8,
        incarnation: u32,
        boot: u32,
        found: u64,
    ) -> bool {
        let Some(record) = self.log_ends.longer(from, incarnation, boot, found) else {
            return false;
        };
        let mut head = Vec::with_capacity(12);
        head.put_u32(incarnation);
        head.put_u64(record);
        self.send(from, kind::LONGER, &head, &[]);
        true
    }

    /// PROTOCOL 9.1-j: a peer remembers that this disk's log was longer.
    pub(crate) fn on_longer(&mut self, from: u8, head: &[u8]) {
        let mut reader = Reader::new(head);
        let (Ok(incarnation), Ok(record)) = (reader.u32("incarnation"), reader.u64("record"))
        else {
            return;
        };
        let found = self.log_ends.found.0;
        if incarnation == self.config.incarnation && record > found {
            let me = self.me;
            self.fail(format!(
                "this disk was put back to what it held earlier: node {from} has heard of record \
                 {record} in its log, which ended at {found} when the node started; what it promised \
                 since is lost: put an empty one in its place with `racos member replace {me}`"
            ));
        }
    }

    /// PROTOCOL 4.4-l, 9.1-b: a datagram with an older boot than this peer is known to have had. It
    /// is a straggler from before the peer's restart, or the peer's disk was rolled back: it is
    /// told.
    pub(crate) fn on_old_boot(&mut self, from: u8) {
        let (incarnation, boot) = self.log_ends.boot(from);
        let mut head = Vec::with_capacity(8);
        head.put_u32(incarnation);
        head.put_u32(boot);
        self.send(from, kind::BOOT, &head, &[]);
    }

    /// PROTOCOL 9.1-b, 10-a: a peer remembers a boot of this node. A higher one than its own was on
    /// this disk once.
    pub(crate) fn on_boot(&mut self, head: &[u8]) {
        let mut reader = Reader::new(head);
        let (Ok(incarnation), Ok(boot)) = (reader.u32("incarnation"), reader.u32("boot")) else {
            return;
        };
        // What was heard of the disk that this one has replaced says nothing of this one.
        if incarnation == self.config.incarnation && boot > self.boot {
            self.fail(format!(
                "this disk was rolled back or copied: another node has heard boot {boot}, the disk \
                 says {}; replace the node with `racos member replace`, and do not edit its data",
                self.boot
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests PROTOCOL 9.1-j
    #[test]
    fn only_a_log_that_ends_below_what_it_said_in_an_earlier_boot_was_put_back() {
        let mut ends = LogEnds::new(RecordId(0), Vec::new());
        assert_eq!(ends.longer(3, 1, 9, 0), None, "nothing is known of it");
        ends.heard(3, 1, 5, 700);
        assert_eq!(ends.longer(3, 1, 5, 600), None, "it has written more since it started");
        assert_eq!(ends.longer(3, 1, 6, 699), Some(700));
        assert_eq!(ends.longer(3, 1, 6, 700), None);
        // Whatever else of that boot arrives first, and however short it says its log is.
        ends.heard(3, 1, 6, 0);
        ends.heard(3, 1, 6, 650);
        assert_eq!(ends.longer(3, 1, 6, 640), Some(700));
        assert_eq!(ends.boot(3), (1, 6));
        // Another disk begins anew; stragglers of the old one say nothing of it.
        ends.heard(3, 2, 1, 10);
        ends.heard(3, 1, 6, 900);
        assert_eq!((ends.longer(3, 2, 2, 10), ends.longer(3, 2, 2, 9)), (None, Some(10)));
    }

    #[test]
    fn what_was_heard_comes_back_from_its_record_and_nonsense_is_refused() {
        let mut ends = LogEnds::new(RecordId(0), Vec::new());
        ends.heard(0, 1, 2, 3);
        ends.heard(63, 4, 5, u64::MAX);
        let mut bytes = Vec::new();
        put_ends(&mut bytes, &ends.peers);
        assert_eq!(get_ends(&bytes).as_ref(), Ok(&ends.peers));
        assert!(get_ends(&bytes[..bytes.len() - 1]).is_err());
        bytes[0] = MEMBERS_MAX as u8;
        assert!(get_ends(&bytes).is_err());
    }
}
