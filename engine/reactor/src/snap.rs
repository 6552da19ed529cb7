//! Checkpoints sent to nodes that lag behind the history, and taken from nodes that are ahead
//! (PROTOCOL 9.3).
//!
//! Purpose: the receiver asks for pieces, some at a time, and again for those that did not come; the
//! sender reads them from its log, at a bounded rate, and keeps them, and the history from there on,
//! for as long as it is asked. What is lost, or a sender that starts again, costs the pieces lost.
//!
//! Invariant: what comes is believed in nothing: a state is handed on only if its parts follow each
//! other and give the state that was exported ([`Import`]). Of what is sent, a few pieces are in memory
//! at a time on either side.
//! What would break it: using a segment again that a transfer reads, or dropping slots behind the
//! checkpoint before the receiver has had them.

use crate::checkpoint::Snapshot;
use crate::journal::DiskRead;
use crate::jump;
use crate::node::Node;
use crate::wire::node::kind;
use crate::wire::snap::{Offer, PIECE_BYTES_MAX, PieceHead, Question, SnapId};
use racos_buffer::Slice;
use racos_machine::{EXPORT_ENTRY_BYTES_MAX, EXPORT_PART_BYTES, Import};
use racos_net::{Link, Message as Frame};
use racos_protocol::{Nanos, Slot};
use racos_storage::device::{Device, FileId};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

const MS: Nanos = 1_000_000;
/// Pieces asked for and not taken in.
const PIECES_AHEAD: u32 = 8;
/// Bytes of checkpoints sent a second, to all together, so that what clients wait for goes first.
const RATE_BYTES: u64 = 64 << 20;
/// A sender keeps what it sends for so long after the last question.
const KEPT_NS: Nanos = 30_000 * MS;
/// Pieces that did not come are asked for again after this.
const RETRY_NS: Nanos = 100 * MS;
/// A transfer without progress for so long is given up, and its sender not asked for a while.
const PATIENCE_NS: Nanos = 2_000 * MS;
const AVOID_NS: Nanos = 5_000 * MS;
/// While slots come one by one, no state is taken.
const FACTS_FLOW_NS: Nanos = 500 * MS;
/// How often a sender is told that it is to keep on keeping.
const STILL_NS: Nanos = 1_000 * MS;
/// Bytes of one part of a state, at most.
const PART_BYTES_MAX: usize = EXPORT_PART_BYTES + EXPORT_ENTRY_BYTES_MAX + 64;

/// One node's checkpoint on its way to another.
struct Sending {
    snapshot: Rc<Snapshot>,
    segments: BTreeSet<FileId>,
    /// Pieces in `[next, until)` are to be sent.
    next: u32,
    until: u32,
    reading: bool,
    asked_at: Nanos,
}

/// A checkpoint on its way in.
struct Fetching {
    from: u8,
    offer: Offer,
    import: Import,
    /// What has come of a part that lies in several pieces.
    part: Vec<u8>,
    /// The piece to take next, and what came before its turn.
    next: u32,
    early: BTreeMap<u32, (bool, Slice)>,
    /// All pieces below were asked for.
    asked: u32,
    retry_at: Nanos,
    progress_at: Nanos,
}

/// Checkpoints on their way in and out.
#[derive(Default)]
pub(crate) struct Snaps {
    sending: BTreeMap<u8, Sending>,
    send_at: Nanos,
    fetching: Option<Fetching>,
    /// The sender of a state that waits to be in place: it keeps the history behind it.
    keeper: Option<(u8, Offer)>,
    still_at: Nanos,
    /// Not to be asked before this.
    avoid: Option<(u8, Nanos)>,
    /// When facts were of use last.
    facts_at: Option<Nanos>,
    /// Why a transfer was given up last.
    pub(crate) refused: Option<String>,
    pub(crate) pieces_sent: u64,
    pub(crate) installed: u64,
}

impl Snaps {
    /// The slots of the checkpoints that are being sent.
    pub(crate) fn under_way(&self) -> impl Iterator<Item = Slot> {
        self.sending.values().map(|sending| sending.snapshot.exec)
    }

    /// Whether a transfer reads a segment.
    pub(crate) fn reads(&self, segment: FileId) -> bool {
        self.sending.values().any(|sending| sending.segments.contains(&segment))
    }

    /// A range of facts brought this node on.
    pub(crate) fn facts_flow(&mut self, now: Nanos) {
        self.facts_at = Some(now);
    }

    /// The slot up to which a state is on its way in.
    pub(crate) fn fetching(&self) -> Option<Slot> {
        self.fetching.as_ref().map(|fetching| fetching.offer.id.exec)
    }

    pub(crate) fn deadline(&self, now: Nanos) -> Option<Nanos> {
        let kept = self.sending.values().map(|sending| {
            let sends = sending.next < sending.until && !sending.reading;
            if sends { self.send_at } else { sending.asked_at + KEPT_NS }
        });
        let fetching = self.fetching.as_ref().map(|fetching| {
            let ready = fetching.early.contains_key(&fetching.next);
            if ready { now } else { fetching.retry_at }
        });
        let still = self.keeper.map(|_| self.still_at);
        kept.chain(fetching).chain(still).min()
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// PROTOCOL 9.3-d: a node asked for slots from `from` on that are not told here any more.
    pub(crate) fn offer_snapshot(&mut self, to: u8, from: Slot) {
        self.send_offer(to, from, false);
    }

    fn send_offer(&mut self, to: u8, from: Slot, is_instead: bool) {
        let newest = self.checkpoints.newest();
        if newest.generation == 0 || newest.exec <= from {
            return;
        }
        let id = SnapId { generation: newest.generation, exec: newest.exec };
        let mut head = Vec::with_capacity(32);
        Offer { id, pieces: newest.pieces.len() as u32, is_instead }.put(&mut head);
        self.send(to, kind::SNAPOFFER, &head, &[]);
    }

    /// SNAPQ.
    pub(crate) fn on_snapshot_question(&mut self, from: u8, frame: &Frame) {
        let Ok(Question { id, first, count }) = Question::get(&frame.head) else { return };
        let now = self.now;
        if let Some(sending) = self.snaps.sending.get_mut(&from)
            && sending.snapshot.generation == id.generation
            && sending.snapshot.exec == id.exec
        {
            sending.asked_at = now;
            sending.want(first, count);
            return;
        }
        let found = self.checkpoints.find(id.generation).filter(|found| found.exec == id.exec);
        let Some(snapshot) = found.cloned() else {
            // It was before a restart of this node: from the beginning, of another one.
            self.snaps.sending.remove(&from);
            return self.send_offer(from, 0, true);
        };
        let segments = snapshot.pieces.iter().map(|(_, place)| place.segment).collect();
        let (next, until, reading) = (0, 0, false);
        let mut sending = Sending { snapshot, segments, next, until, reading, asked_at: now };
        sending.want(first, count);
        self.snaps.sending.insert(from, sending);
    }

    /// SNAPOFFER: taken if this node is behind it, and slots do not come one by one.
    pub(crate) fn on_snapshot_offer(&mut self, from: u8, frame: &Frame) {
        let Ok(offer) = Offer::get(&frame.head) else { return };
        let now = self.now;
        let flows = self.snaps.facts_at.is_some_and(|at| now < at + FACTS_FLOW_NS);
        let avoided = self.snaps.avoid.is_some_and(|(node, until)| node == from && now < until);
        if offer.id.exec <= self.core.exec() || flows || avoided || self.checkpoints.takes_peers() {
            return;
        }
        match &self.snaps.fetching {
            // The sender has started again, and has not got that any more.
            Some(fetching) if fetching.from == from && offer.is_instead => {}
            Some(_) => return,
            None => {}
        }
        self.snaps.fetching = Some(Fetching {
            from,
            offer,
            import: Import::new(*self.machine.limits()),
            part: Vec::new(),
            next: 0,
            early: BTreeMap::new(),
            asked: 0,
            retry_at: now,
            progress_at: now,
        });
        self.ask_pieces();
    }

    /// SNAP.
    pub(crate) fn on_snapshot_piece(&mut self, from: u8, frame: &Frame) {
        let Ok(PieceHead { id, index, ends_part }) = PieceHead::get(&frame.head) else { return };
        let Some(fetching) = &mut self.snaps.fetching else { return };
        // PROTOCOL 9.4-e: no more than were asked for.
        let wanted = fetching.from == from
            && fetching.offer.id == id
            && (fetching.next..fetching.asked).contains(&index)
            && (1..=PIECE_BYTES_MAX).contains(&frame.body.len());
        if wanted {
            fetching.early.entry(index).or_insert_with(|| (ends_part, frame.body.clone()));
        }
    }

    /// Goes on with transfers: at most one piece a turn each way.
    pub(crate) fn snapshot_turn(&mut self) {
        if !self.snaps.sending.is_empty() {
            self.send_piece();
        }
        if self.snaps.fetching.is_some() {
            self.take_piece();
        }
        if let Some((node, offer)) = self.snaps.keeper {
            self.keep_keeper(node, offer);
        }
    }

    fn send_piece(&mut self) {
        let now = self.now;
        self.snaps.sending.retain(|_, sending| now < sending.asked_at + KEPT_NS);
        if now < self.snaps.send_at {
            return;
        }
        let ready = |sending: &Sending| sending.next < sending.until && !sending.reading;
        let Some((to, sending)) = self.snaps.sending.iter().find(|(_, sending)| ready(sending))
        else {
            return;
        };
        let (to, index, generation) = (*to, sending.next, sending.snapshot.generation);
        let place = sending.snapshot.pieces[index as usize].1;
        let reading = self.read_disk(DiskRead::Snap { to, generation, index }, place, None);
        let cost = u64::from(place.len) * 1_000_000_000 / RATE_BYTES;
        self.snaps.send_at = now + if reading { cost } else { MS };
        if let Some(sending) = self.snaps.sending.get_mut(&to) {
            sending.reading = reading;
        }
    }

    /// A piece was read from the log.
    pub(crate) fn piece_read(&mut self, to: u8, generation: u64, index: u32, bytes: Option<Slice>) {
        let Some(sending) = self.snaps.sending.get_mut(&to) else { return };
        if sending.snapshot.generation != generation {
            return;
        }
        sending.reading = false;
        // Unreadable: the receiver goes to another node.
        let Some(bytes) = bytes else { return drop(self.snaps.sending.remove(&to)) };
        if index == sending.next && sending.next < sending.until {
            sending.next += 1;
        }
        let part = |index: u32| sending.snapshot.pieces.get(index as usize).map(|piece| piece.0);
        let ends_part = part(index) != part(index + 1);
        let id = SnapId { generation, exec: sending.snapshot.exec };
        let mut head = Vec::with_capacity(32);
        PieceHead { id, index, ends_part }.put(&mut head);
        self.snaps.pieces_sent += 1;
        self.send(to, kind::SNAP, &head, &[bytes]);
    }

    /// Asks for what comes next and was not asked for, in halves of what may be under way.
    fn ask_pieces(&mut self) {
        let now = self.now;
        let Some(fetching) = &mut self.snaps.fetching else { return };
        let until = fetching.offer.pieces.min(fetching.next + PIECES_AHEAD);
        let again = now >= fetching.retry_at;
        let first = if again { fetching.next } else { fetching.asked };
        let few = until - first < PIECES_AHEAD / 2 && until < fetching.offer.pieces;
        if first >= until || (few && !again) {
            return;
        }
        fetching.asked = until;
        fetching.retry_at = now + RETRY_NS;
        let question = Question { id: fetching.offer.id, first, count: until - first };
        self.ask_snapshot(self.snaps.fetching.as_ref().map_or(0, |it| it.from), question);
    }

    fn ask_snapshot(&mut self, to: u8, question: Question) {
        let mut head = Vec::with_capacity(32);
        question.put(&mut head);
        self.send(to, kind::SNAPQ, &head, &[]);
    }

    /// Takes in the next piece if it is there, asks for more, or gives up.
    fn take_piece(&mut self) {
        let now = self.now;
        let Some(mut fetching) = self.snaps.fetching.take() else { return };
        if fetching.offer.id.exec <= self.core.exec() {
            return;
        }
        if let Some((ends_part, bytes)) = fetching.early.remove(&fetching.next) {
            fetching.next += 1;
            fetching.progress_at = now;
            fetching.retry_at = now + RETRY_NS;
            if let Err(why) = fetching.take(ends_part, &bytes) {
                return self.refuse_snapshot(fetching.from, why);
            }
            if fetching.next == fetching.offer.pieces {
                return self.finish_fetching(fetching);
            }
        } else if now >= fetching.progress_at + PATIENCE_NS {
            return self.refuse_snapshot(fetching.from, "its pieces do not come".into());
        }
        self.snaps.fetching = Some(fetching);
        self.ask_pieces();
    }

    /// PROTOCOL 9.3-e: whole, or not at all.
    fn finish_fetching(&mut self, fetching: Fetching) {
        let Fetching { from, offer, import, .. } = fetching;
        let exec = offer.id.exec;
        let machine = import.finish().map_err(|error| error.to_string());
        let machine = machine.and_then(|machine| match jump::unfit(&machine, exec) {
            None => Ok(machine),
            Some(why) => Err(why),
        });
        match machine {
            Ok(machine) => {
                self.snaps.keeper = Some((from, offer));
                self.take_state(machine, exec, from);
            }
            Err(why) => self.refuse_snapshot(from, why),
        }
    }

    /// What this node sends is of no use: another one is asked.
    fn refuse_snapshot(&mut self, from: u8, why: String) {
        self.snaps.avoid = Some((from, self.now + AVOID_NS));
        self.snaps.refused = Some(format!("the state that node {from} sends is of no use: {why}"));
    }

    /// PROTOCOL 9.3-h: the state is on its way into the log here; what follows it is still wanted.
    fn keep_keeper(&mut self, node: u8, offer: Offer) {
        if !self.checkpoints.takes_peers() {
            self.snaps.keeper = None;
        } else if self.now >= self.snaps.still_at {
            self.snaps.still_at = self.now + STILL_NS;
            self.ask_snapshot(node, Question { id: offer.id, first: 0, count: 0 });
        }
    }
}

impl Sending {
    /// Asked for so many pieces from `first` on.
    fn want(&mut self, first: u32, count: u32) {
        if count == 0 {
            return;
        }
        let pieces = self.snapshot.pieces.len() as u32;
        let until = first.saturating_add(count.min(PIECES_AHEAD)).min(pieces);
        // What follows what is on its way is sent after it; else what was lost comes again.
        if first != self.until || self.next >= self.until {
            self.next = first.min(until);
        }
        self.until = until;
    }
}

impl Fetching {
    fn take(&mut self, ends_part: bool, bytes: &[u8]) -> Result<(), String> {
        if self.part.len() + bytes.len() > PART_BYTES_MAX {
            return Err("a part is longer than any".into());
        }
        self.part.extend_from_slice(bytes);
        if ends_part {
            let taken = self.import.part(&self.part, &mut |_| {});
            taken.map_err(|error| error.to_string())?;
            self.part.clear();
        }
        Ok(())
    }
}
