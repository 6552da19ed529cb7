//! Checkpoints (PROTOCOL 9.2): what a restart needs instead of the whole log.
//!
//! A checkpoint is a row of records of the log itself: BEGIN, pieces of the parts of the machine's
//! export (the *replicated* part), between them where this node's fragments of the values just named
//! lie, then where the batches of executed slots lie (the *own* part), END. Once END is flushed, the
//! log's mark is moved: a restart begins to read where the first record that is still needed stands,
//! meets the checkpoint on its way, and goes on behind it. The one before is kept for as long as the
//! newest is not replaced in turn.
//!
//! It is written a slice a turn, as the log takes it, at a bounded rate.
//!
//! The state may be one that a peer has told (PROTOCOL 9.3): then it is the node's own from the time on
//! when the mark is durable, and not before.
//!
//! Invariant: at END, the replicated part is the state at `exec`, whatever was executed meanwhile;
//! and of every fragment that it names, the log says the place: in the own part, or in a record at or
//! behind the mark. What would break it: forgetting a fragment's place between the pin and its being
//! written, or a mark behind a record that was not placed when the state was pinned.

use crate::admission::put_note;
use crate::history::{History, NULL};
use crate::jump::Peers;
use crate::node::Node;
use crate::record::kind;
use crate::visits::Visits;
use crate::wire::cursor::{Reader, WireError, Writer};
use racos_machine::{EXPORT_PART_BYTES, Exported, OpId};
use racos_net::Link;
use racos_protocol::{Nanos, Slot};
use racos_storage::device::Device;
use racos_storage::{Class, Mark, Place, RecordId};
use std::collections::VecDeque;
use std::rc::Rc;

/// Entries that a turn looks at, and fragments that it forgets: some tens of microseconds.
const VISITS: usize = 64;
const FORGETS: usize = 256;
const VISITS_OF_TURN: Visits = Visits { least: VISITS, per_write: 4, most: 4096 };
/// Bytes that a turn hands to the log; and for each entry, if that is more.
const HANDED_BYTES: usize = 256 << 10;
const ENTRY_BYTES: usize = 128;
/// Bytes of a checkpoint a second, so that what clients wait for goes first.
const RATE_BYTES: u64 = 96 << 20;
/// Slots of the history in one record.
const HISTORY_SLOTS: usize = 2048;
/// Bytes of an entry of the own part: a place and a checksum.
pub(crate) const OWN_ENTRY: usize = 16;
pub(crate) const HISTORY_ENTRY: usize = 12;
/// Records waiting for the log.
const QUEUE_MAX: usize = 8;
/// Bytes that may wait for a flush when a checkpoint adds to them.
const BACKLOG_MAX: usize = 1 << 20;
/// The same for a checkpoint that is late.
const LATE_BACKLOG_MAX: usize = 32 << 20;
/// Another is due, too, when so many times the bytes between two were written in all.
const ALL_SHARE: u64 = 4;

/// What a record of a checkpoint holds, in its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    Begin {
        exec: Slot,
        reserved: Slot,
    },
    /// Bytes of a part of the replicated state; `last` if the part ends with them.
    Part {
        number: u32,
        last: bool,
    },
    /// Places for the values named by the parts, in their order.
    Own,
    /// Places of batches, from this slot on.
    History {
        first: Slot,
    },
    End {
        parts: u32,
        exec: Slot,
    },
    /// Which disks the other nodes have: see `admission`.
    Notes,
    /// A batch that is stored without a slot: where its fragments lie, and the head of its record.
    Stored,
}

impl Piece {
    pub(crate) fn put(self, generation: u64, out: &mut Vec<u8>) {
        let (sort, first, second) = match self {
            Piece::Begin { exec, reserved } => (0, exec, reserved),
            Piece::Part { number, last } => (1, u64::from(number), u64::from(last)),
            Piece::Own => (2, 0, 0),
            Piece::History { first } => (3, first, 0),
            Piece::End { parts, exec } => (4, u64::from(parts), exec),
            Piece::Notes => (5, 0, 0),
            Piece::Stored => (6, 0, 0),
        };
        out.put_u8(sort);
        [generation, first, second].into_iter().for_each(|field| out.put_u64(field));
    }

    pub(crate) fn get(head: &[u8]) -> Result<(u64, Piece), WireError> {
        let mut from = Reader::new(head);
        let sort = from.u8("piece")?;
        let generation = from.u64("generation")?;
        let (first, second) = (from.u64("first")?, from.u64("second")?);
        from.end("piece")?;
        let narrow = |field| u32::try_from(field).map_err(|_| WireError { field: "part" });
        let piece = match sort {
            0 => Piece::Begin { exec: first, reserved: second },
            1 => Piece::Part { number: narrow(first)?, last: second == 1 },
            2 => Piece::Own,
            3 => Piece::History { first },
            4 => Piece::End { parts: narrow(first)?, exec: second },
            5 => Piece::Notes,
            6 => Piece::Stored,
            _ => return Err(WireError { field: "piece" }),
        };
        Ok((generation, piece))
    }
}

pub(crate) fn put_place(place: Place, out: &mut Vec<u8>) {
    [place.segment, place.offset, place.len].into_iter().for_each(|field| out.put_u32(field));
}

pub(crate) fn get_place(from: &mut Reader<'_>) -> Result<Place, WireError> {
    Ok(Place { segment: from.u32("segment")?, offset: from.u32("offset")?, len: from.u32("len")? })
}

/// The newest durable checkpoint, for nodes that lag.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub generation: u64,
    /// All slots below are in it.
    pub exec: Slot,
    /// Pieces of the parts of the replicated state, in order: part number, and where the bytes lie.
    pub pieces: Vec<(u32, Place)>,
    /// Bytes of the whole checkpoint.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    State,
    History { next: Slot },
    End,
    Flushing { end: RecordId },
    Marking,
}

/// A checkpoint being written.
struct Writing {
    /// The state is a peer's; else it is the own one.
    peers: Option<Box<Peers>>,
    mark: Mark,
    stage: Stage,
    /// Parts handed to the log, and the own places of what the one that is being made names.
    parts: u32,
    own: Vec<u8>,
    queue: VecDeque<(Piece, Vec<u8>)>,
    placing: VecDeque<(RecordId, u32)>,
    snapshot: Snapshot,
    /// Not to go on before.
    not_before: Nanos,
}

/// What a node knows of its checkpoints.
#[derive(Default)]
pub(crate) struct Checkpoints {
    writing: Option<Writing>,
    /// A peer's state that waits to be written.
    peers: Option<Box<Peers>>,
    newest: Rc<Snapshot>,
    before: Option<Rc<Snapshot>>,
    /// The highest generation that the log has a piece of: no two checkpoints have the same.
    generation: u64,
    /// Bytes flushed when the newest was begun, without copies and checkpoints, and all.
    begun_at: [u64; 2],
    /// One was made durable since the start: what it does not name may go.
    pub(crate) settled: bool,
    /// One is wanted whatever was written since the last: see `scrub`.
    demanded: bool,
    pub(crate) written: u64,
    /// Empty between turns: its memory is used again.
    named: Vec<OpId>,
    work: TurnWork,
    /// The newest revision at the last turn, how many writes this one executed, and bytes that it may hand
    /// to the log.
    revision: u64,
    writes: u64,
    handed_max: usize,
}

/// What the last turn did for a checkpoint: bounded, however large the state is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TurnWork {
    /// Values named by what was written.
    pub named: usize,
    /// Bytes handed to the log.
    pub handed_bytes: usize,
    /// Fragments forgotten that it had kept.
    pub forgotten: usize,
}

impl Checkpoints {
    pub(crate) fn new(newest: Snapshot, generation: u64) -> Checkpoints {
        Checkpoints { newest: Rc::new(newest), generation, ..Checkpoints::default() }
    }

    /// Another is to be begun as soon as there is anything new to say.
    pub(crate) fn demand(&mut self) {
        self.demanded = true;
    }

    /// Writes that this turn executed.
    pub(crate) fn writes_of_turn(&self) -> u64 {
        self.writes
    }

    /// The newest that was begun: what is logged from now on lies behind its mark.
    pub(crate) fn begun(&self) -> u64 {
        self.generation
    }

    pub(crate) fn newest(&self) -> &Rc<Snapshot> {
        &self.newest
    }

    /// One of the newest two.
    pub(crate) fn find(&self, generation: u64) -> Option<&Rc<Snapshot>> {
        let both = std::iter::once(&self.newest).chain(&self.before);
        both.into_iter().find(|snapshot| snapshot.generation == generation && generation > 0)
    }

    /// Whether the history is being written too, so that it must stay as it is.
    pub(crate) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Whether a peer's state is on its way into the log.
    pub(crate) fn takes_peers(&self) -> bool {
        let writes = self.writing.as_ref().is_some_and(|writing| writing.peers.is_some());
        writes || self.peers.is_some()
    }

    /// A peer's state is complete: it is in place once a checkpoint of it is durable.
    pub(crate) fn take_peers(&mut self, peers: Peers) {
        assert!(!self.takes_peers(), "one state of a peer is taken at a time");
        self.peers = Some(Box::new(peers));
    }

    #[cfg(feature = "mutants")]
    pub(crate) fn drop_peers(&mut self) -> Option<Box<Peers>> {
        self.peers.take()
    }

    /// The lowest slot of which the newest two checkpoints are.
    fn oldest_exec(&self) -> Slot {
        self.before.as_ref().map_or(self.newest.exec, |before| before.exec)
    }

    pub(crate) fn placed(&mut self, id: RecordId, body: Place) {
        let Some(writing) = &mut self.writing else { return };
        if let Some((_, number)) = writing.placing.pop_front_if(|(of, _)| *of == id) {
            writing.snapshot.pieces.push((number, body));
        }
    }

    /// When there is something to do though nothing comes.
    /// `leaves`: what a checkpoint kept is being forgotten.
    pub(crate) fn deadline(&self, now: Nanos, leaves: bool) -> Option<Nanos> {
        if self.peers.is_some() || leaves {
            return Some(now);
        }
        let writing = self.writing.as_ref()?;
        match writing.stage {
            Stage::Flushing { .. } | Stage::Marking if writing.queue.is_empty() => None,
            _ => Some(writing.not_before.max(now)),
        }
    }
}

/// The lowest slot whose batch is kept for nodes that lag: the one policy of what history stays.
///
/// A node that asks for less gets a checkpoint (PROTOCOL 9.3-d), so it need not reach back to the
/// slowest member; it reaches back to the checkpoints that such a node may get.
/// PROTOCOL 9.3-h
pub(crate) fn history_floor(
    exec: Slot,
    slots: Slot,
    checkpoints: impl Iterator<Item = Slot>,
) -> Slot {
    checkpoints.fold(exec.saturating_sub(slots), Slot::min)
}

impl<L: Link, D: Device> Node<L, D> {
    /// The newest durable checkpoint.
    pub fn snapshot(&self) -> &Snapshot {
        self.checkpoints.newest()
    }

    /// What the last turn did for a checkpoint: for tests that hold it to its bounds.
    pub fn checkpoint_work(&self) -> TurnWork {
        self.checkpoints.work
    }

    /// Goes on with a checkpoint, or begins one that is due.
    pub(crate) fn checkpoint_turn(&mut self) {
        self.checkpoints.work = TurnWork::default();
        self.checkpoints.work.forgotten = self.fragments.forget_some(FORGETS);
        let revision = self.machine.revision();
        let before = std::mem::replace(&mut self.checkpoints.revision, revision);
        self.checkpoints.writes = revision.saturating_sub(before);
        let visits = VISITS_OF_TURN.of(self.checkpoints.writes);
        self.checkpoints.handed_max = HANDED_BYTES.max(visits * ENTRY_BYTES);
        self.begin_peers();
        if self.checkpoints.writing.is_none() && self.checkpoint_is_due() {
            self.begin_checkpoint();
        }
        let Some(mut writing) = self.checkpoints.writing.take() else { return };
        let mut is_ready = self.hand_over(&mut writing) && writing.not_before <= self.now;
        for _ in 0..visits / VISITS {
            if !is_ready {
                break;
            }
            let goes_on = self.write_some(&mut writing);
            is_ready = self.hand_over(&mut writing) && goes_on;
        }
        self.checkpoints.writing = Some(writing);
    }

    /// Bytes of log since the newest was begun, without copies and pieces of checkpoints: those follow
    /// from the others, and if they counted, one checkpoint would bring the next about.
    pub(crate) fn written_since_checkpoint(&self) -> u64 {
        self.log_bytes_of_others().saturating_sub(self.checkpoints.begun_at[0])
    }

    fn log_bytes_of_others(&self) -> u64 {
        let own = [kind::COPIES, kind::CHECKPOINT].map(|kind| self.log.bytes_of_kind(kind));
        self.log.counters().bytes_flushed.saturating_sub(own.iter().sum())
    }

    /// Bytes of log between two: not more often than it costs.
    fn checkpoint_interval(&self) -> u64 {
        self.config.bounds.checkpoint_bytes.max(2 * self.checkpoints.newest.bytes)
    }

    /// Whether one that was demanded will be begun though clients write nothing.
    pub(crate) fn checkpoint_is_awaited(&self) -> bool {
        self.checkpoints.demanded && self.core.exec() > self.checkpoints.newest.exec
    }

    fn checkpoint_is_due(&self) -> bool {
        let least = self.checkpoint_interval();
        let all = self.log.counters().bytes_flushed - self.checkpoints.begun_at[1];
        let is_time = self.written_since_checkpoint() >= least || all / ALL_SHARE >= least;
        let news = self.core.exec() > self.checkpoints.newest.exec;
        (is_time || self.checkpoints.demanded)
            && news
            && !self.machine.is_exporting()
            && !self.fragments.are_leaving()
            && self.nothing_unappended()
    }

    fn begin_checkpoint(&mut self) {
        let exec = self.core.exec();
        let Some(mark) = self.log.find_mark(self.next_generation(), exec) else { return };
        let writing = self.new_writing(mark);
        let floor = self.history_floor(self.config.bounds.history_slots);
        self.checkpoints.demanded = false;
        self.history.drop_below(floor, usize::MAX);
        self.machine.export_begin(EXPORT_PART_BYTES);
        self.fragments.pin();
        self.checkpoints.writing = Some(writing);
    }

    /// Begins to write a peer's state, once the checkpoint that is being written is out of the way.
    fn begin_peers(&mut self) {
        let Some(mut peers) = self.checkpoints.peers.take() else { return };
        let exec = peers.exec;
        if exec <= self.core.exec() {
            return;
        }
        match &self.checkpoints.writing {
            Some(Writing { stage: Stage::Flushing { .. } | Stage::Marking, .. }) => {
                // It is about to be what a restart reads.
                return self.checkpoints.peers = Some(peers);
            }
            Some(_) => {
                self.checkpoints.writing = None;
                self.machine.export_cancel();
                self.fragments.unpin();
            }
            None => {}
        }
        if !self.nothing_unappended() || self.fragments.are_leaving() {
            return self.checkpoints.peers = Some(peers);
        }
        // A new disk has nothing yet that a replay would need.
        let generation = self.next_generation();
        let mark = self.log.find_mark(generation, exec).unwrap_or_else(|| {
            let mut mark = self.log.marks()[0];
            (mark.tag, mark.horizon) = (generation, exec);
            mark
        });
        let mut writing = self.new_writing(mark);
        peers.machine.export_begin(EXPORT_PART_BYTES);
        self.fragments.pin_ahead();
        writing.peers = Some(peers);
        self.checkpoints.writing = Some(writing);
    }

    fn next_generation(&self) -> u64 {
        self.checkpoints.generation.max(self.log.marks()[0].tag) + 1
    }

    fn new_writing(&mut self, mark: Mark) -> Writing {
        let (generation, exec) = (mark.tag, mark.horizon);
        self.checkpoints.generation = generation;
        let flushed = self.log.counters().bytes_flushed;
        self.checkpoints.begun_at = [self.log_bytes_of_others(), flushed];
        let reserved = self.core.reservation();
        let mut queue = VecDeque::from([(Piece::Begin { exec, reserved }, Vec::new())]);
        // PROTOCOL 10-ak
        let mut notes = Vec::new();
        self.admission.notes().iter().for_each(|(node, note)| put_note(&mut notes, *node, *note));
        if !notes.is_empty() {
            queue.push_back((Piece::Notes, notes));
        }
        // PROTOCOL 9.2-c: those that are not placed yet lie behind the mark.
        for held in self.ahead.held.values() {
            if let Some(place) = held.place {
                let mut body = Vec::with_capacity(held.batch.bytes.len() + held.crcs.len() + 48);
                put_place(place, &mut body);
                crate::assign::store_head(&mut body, &held.batch, &held.crcs);
                queue.push_back((Piece::Stored, body));
            }
        }
        Writing {
            peers: None,
            mark,
            stage: Stage::State,
            parts: 0,
            own: Vec::new(),
            queue,
            placing: VecDeque::new(),
            snapshot: Snapshot { generation, exec, ..Snapshot::default() },
            not_before: self.now,
        }
    }

    /// The lowest slot of the history if so many slots of it are kept.
    pub(crate) fn history_floor(&self, slots: Slot) -> Slot {
        let checkpoints = std::iter::once(self.checkpoints.oldest_exec());
        history_floor(self.core.exec(), slots, checkpoints.chain(self.snaps.under_way()))
    }

    /// Makes some more records. True while there is more of the state.
    fn write_some(&mut self, writing: &mut Writing) -> bool {
        match writing.stage {
            Stage::State => {
                let mut named = std::mem::take(&mut self.checkpoints.named);
                let machine = match &mut writing.peers {
                    Some(peers) => &mut peers.machine,
                    None => &mut self.machine,
                };
                let exported = machine.export_slice(VISITS, &mut |op| named.push(op));
                self.put_places(&named, writing);
                self.checkpoints.work.named += named.len();
                named.clear();
                self.checkpoints.named = named;
                match exported {
                    Exported::Working => {}
                    Exported::Part(part) => self.queue_part(part, writing),
                    Exported::Last(part) => {
                        self.queue_part(part, writing);
                        // Behind a peer's state there is no history here yet.
                        let exec = writing.snapshot.exec;
                        let next =
                            if writing.peers.is_some() { exec } else { self.history.first() };
                        writing.stage = Stage::History { next };
                    }
                }
            }
            Stage::History { next } if next < writing.snapshot.exec => {
                let left = (writing.snapshot.exec - next).min(HISTORY_SLOTS as Slot);
                let mut body = Vec::with_capacity(left as usize * HISTORY_ENTRY);
                let raw = self.history.raw(next, left as usize);
                raw.for_each(|place| put_place(place, &mut body));
                writing.queue.push_back((Piece::History { first: next }, body));
                writing.stage = Stage::History { next: next + left };
            }
            Stage::History { .. } => {
                let (parts, exec) = (writing.parts, writing.snapshot.exec);
                writing.queue.push_back((Piece::End { parts, exec }, Vec::new()));
                writing.stage = Stage::End;
            }
            Stage::Flushing { end } if self.log.flushed_record() >= end => {
                // PROTOCOL 9.2-b: all of it is flushed; now it is what a restart reads.
                self.fragments.unpin();
                self.log.set_mark(writing.mark);
                writing.stage = Stage::Marking;
            }
            Stage::End | Stage::Flushing { .. } | Stage::Marking => {}
        }
        matches!(writing.stage, Stage::State)
    }

    /// A part of the replicated state, cut to what the log takes in one record, and the own places of
    /// what it names.
    fn queue_part(&mut self, part: Vec<u8>, writing: &mut Writing) {
        let bounds = &self.config.bounds;
        let most = bounds.piece_bytes_max.min(bounds.segment_bytes as usize / 16).max(OWN_ENTRY);
        let number = writing.parts;
        writing.parts += 1;
        let cost = part.len() as u64 * 1_000_000_000 / RATE_BYTES;
        writing.not_before = writing.not_before.max(self.now) + cost;
        let pieces = part.chunks(most);
        let count = pieces.len();
        for (index, piece) in pieces.enumerate() {
            let last = index + 1 == count;
            writing.queue.push_back((Piece::Part { number, last }, piece.to_vec()));
        }
        for own in writing.own.chunks(most / OWN_ENTRY * OWN_ENTRY) {
            writing.queue.push_back((Piece::Own, own.to_vec()));
        }
        writing.own.clear();
    }

    /// Where this node's fragments of what a slice has named lie. One that is moved before the part is
    /// complete is told of by the record of its copy, behind the mark.
    fn put_places(&self, named: &[OpId], writing: &mut Writing) {
        for op in named {
            let fits = writing.peers.as_ref().is_none_or(|peers| self.fits(*op, peers));
            let place = self.fragments.place(*op).filter(|_| fits);
            let (place, crc) = place.unwrap_or((NULL, 0));
            put_place(place, &mut writing.own);
            writing.own.put_u32(crc);
        }
    }

    /// Whether one of which so much is handed over is to go on beside what clients keep the log busy
    /// with. It should be there when a quarter of the way to the next is gone: what the one before names
    /// stays for that long, and the log only grows.
    fn is_late(&self, handed: u64) -> bool {
        let (since, interval) = (self.written_since_checkpoint(), self.checkpoint_interval());
        let by_now = u128::from(self.checkpoints.newest.bytes) * u128::from(since) * 4;
        since > interval || u128::from(handed) * u128::from(interval) < by_now
    }

    /// Hands records to the log as far as it takes them; true if no more wait than may.
    fn hand_over(&mut self, writing: &mut Writing) -> bool {
        while let Some((piece, body)) = writing.queue.front() {
            let handed = self.checkpoints.work.handed_bytes;
            let is_much = handed > 0 && handed + body.len() > self.checkpoints.handed_max;
            let is_late = self.is_late(writing.snapshot.bytes);
            let backlog_max = if is_late { LATE_BACKLOG_MAX } else { BACKLOG_MAX };
            if self.log.queued_bytes() > backlog_max || is_much {
                return false;
            }
            let Some(slice) = self.pool.copy(body) else { return false };
            let mut head = Vec::with_capacity(32);
            piece.put(writing.snapshot.generation, &mut head);
            let slices = std::slice::from_ref(&slice);
            let body: &[_] = if body.is_empty() { &[] } else { slices };
            // It must not take the room that consensus needs on a full disk.
            let Ok(id) = self.log.append_until(kind::CHECKPOINT, &head, body, Class::Upkeep, 0)
            else {
                return false;
            };
            writing.snapshot.bytes += (head.len() + slice.len()) as u64;
            self.checkpoints.work.handed_bytes += slice.len();
            match *piece {
                Piece::Part { number, .. } => writing.placing.push_back((id, number)),
                Piece::End { .. } => writing.stage = Stage::Flushing { end: id },
                _ => {}
            }
            writing.queue.pop_front();
        }
        writing.queue.len() <= QUEUE_MAX
    }

    /// The mark of the checkpoint is durable.
    pub(crate) fn checkpoint_marked(&mut self, tag: u64) {
        let Some(writing) = self.checkpoints.writing.take() else { return };
        assert_eq!(writing.mark.tag, tag, "the mark written is that of the checkpoint");
        let newest = Rc::new(writing.snapshot);
        let before = std::mem::replace(&mut self.checkpoints.newest, newest);
        self.checkpoints.before = (before.generation > 0).then_some(before);
        self.checkpoints.settled = true;
        self.reclaim.look_again();
        self.checkpoints.written += 1;
        self.fragments.settle();
        if let Some(peers) = writing.peers {
            self.install(*peers);
        }
    }
}

/// The history of a checkpoint, put together again.
pub(crate) fn load_history(
    history: &mut Option<History>,
    first: Slot,
    body: &[u8],
) -> Result<(), WireError> {
    let history = history.get_or_insert_with(|| History::starting_at(first));
    let mut from = Reader::new(body);
    if history.end() != first {
        return Err(WireError { field: "history slot" });
    }
    while !from.is_empty() {
        history.push(get_place(&mut from)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pieces_survive_the_log() {
        for piece in [
            Piece::Begin { exec: 7, reserved: 99 },
            Piece::Part { number: 3, last: true },
            Piece::Part { number: 4, last: false },
            Piece::Own,
            Piece::History { first: 1 << 40 },
            Piece::End { parts: 5, exec: 7 },
            Piece::Stored,
        ] {
            let mut head = Vec::new();
            piece.put(12, &mut head);
            assert_eq!(Piece::get(&head), Ok((12, piece)));
        }
    }

    /// tests PROTOCOL 9.3-h
    #[test]
    fn history_reaches_back_so_many_slots_and_to_every_checkpoint_that_may_be_sent() {
        let floor = |exec, slots, kept: &[Slot]| history_floor(exec, slots, kept.iter().copied());
        assert_eq!(floor(50_000, 10_000, &[45_000, 48_000]), 40_000);
        assert_eq!(floor(50_000, 10_000, &[39_000, 48_000]), 39_000);
        assert_eq!(floor(50_000, 0, &[49_000, 12_000]), 12_000, "a transfer of it runs");
        assert_eq!(floor(50_000, 60_000, &[45_000]), 0);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes: Vec<u8>, first: u64) {
            let _ = Piece::get(&bytes);
            let mut history = None;
            let _ = load_history(&mut history, first >> 1, &bytes);
        }
    }
}
