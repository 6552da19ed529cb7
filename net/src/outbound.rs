//! Large messages on their way out to one peer.
//!
//! Purpose: messages are numbered, cut into chunks, sent in turns (one chunk each), and held until
//! they are acknowledged or given up. What is missing is found by time: a chunk is lost if one that
//! was sent clearly later has arrived. After a timeout two are sent again, and their arrival tells
//! of the others. Only lost chunks are sent again.
//!
//! Invariant: `pace.in_flight` is the sum of the sizes of the chunks in state `InFlight`; a message
//! below `base` is over; `queue[i]` is message `base + i`; no message at or above `base + SPAN` has
//! been started; a message is in `ready` exactly if it says so.
//! What would break it: changing a chunk's state other than through the functions that keep the
//! sum.

use crate::chunk::{Ack, CHUNK_BYTES_MIN, ChunkHeader};
use crate::inbound::SPAN;
use crate::pace::{Pace, PaceConfig};
use racos_buffer::Slice;
use std::collections::VecDeque;

/// Most messages that are sent in turns; the next one starts when one of them is over.
const STARTED_MAX: usize = 32;
/// Chunks sent again at a timeout. Their acknowledgement tells whether the others were lost too or
/// the peer was slow: sending all of them again would waste what a busy peer lacks most.
const PROBES: usize = 2;
/// Added to a quarter of the round trip before an overtaken chunk is taken for lost.
const REORDER_NS: u64 = 100_000;
/// Fewest entries of `flights` worth sorting out.
const COMPACT_MIN: usize = 1024;
/// Echoes older than this are not believed.
const ECHO_MAX_NS: u64 = 10_000_000_000;

/// Stamp of a time, in units of 1024 ns.
pub fn stamp_of(now_ns: u64) -> u32 {
    (now_ns >> 10) as u32
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chunk {
    Unsent,
    InFlight,
    Lost,
    Arrived,
}

/// One message.
#[derive(Default)]
pub struct Outgoing {
    kind: u8,
    head: Vec<u8>,
    body: Vec<Slice>,
    body_len: usize,
    chunk_len: usize,
    chunks: Vec<Chunk>,
    /// Chunks in state `Lost`, to be sent first.
    lost: VecDeque<u32>,
    unsent: usize,
    arrived: usize,
    /// Every chunk below this has arrived.
    cumulative: usize,
    /// The receiver's boot and attempt that `chunks` is about.
    attempt: Option<(u32, u32)>,
    progress_ns: u64,
    started: bool,
    ready: bool,
}

struct Flight {
    sequence: u64,
    index: u32,
    sent_ns: u64,
}

/// The way to one peer.
pub struct Outbound {
    stream: u32,
    base: u64,
    queue: VecDeque<Option<Outgoing>>,
    /// Number of the first message that has not been started.
    unstarted: u64,
    started: usize,
    ready: VecDeque<u64>,
    /// In the order of sending; entries of chunks no longer under way are skipped.
    flights: VecDeque<Flight>,
    compact_at: usize,
    pending_bytes: usize,
    progress_ns: u64,
    /// When the timeout last struck.
    timed_out_ns: u64,
    /// When the latest-sent chunk known to have arrived was sent.
    delivered_ns: u64,
    pub pace: Pace,
}

/// A chunk to put on the wire: its header, and which bytes of the message it carries.
pub struct NextChunk<'a> {
    pub header: ChunkHeader,
    pub message: &'a Outgoing,
    pub again: bool,
}

impl Outbound {
    pub fn new(stream: u32, config: PaceConfig) -> Outbound {
        Outbound {
            stream,
            base: 0,
            queue: VecDeque::new(),
            unstarted: 0,
            started: 0,
            ready: VecDeque::new(),
            flights: VecDeque::new(),
            compact_at: COMPACT_MIN,
            pending_bytes: 0,
            progress_ns: 0,
            timed_out_ns: 0,
            delivered_ns: 0,
            pace: Pace::new(config),
        }
    }

    /// Bytes of messages that are neither acknowledged nor given up.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether one more message of `len` bytes is within the bounds.
    pub fn has_room(&self, len: usize, bytes_max: usize) -> bool {
        let fits = self.pending_bytes == 0 || self.pending_bytes.saturating_add(len) <= bytes_max;
        fits && self.queue.len() < SPAN as usize
    }

    /// Takes in a message to be sent in chunks of `chunk_len`; `message` is a recycled one.
    pub fn push(
        &mut self,
        mut message: Outgoing,
        kind: u8,
        head: &[u8],
        body: &[Slice],
        chunk_len: usize,
        now_ns: u64,
    ) {
        assert!((CHUNK_BYTES_MIN..=usize::from(u16::MAX)).contains(&chunk_len), "chunk length");
        message.clear();
        message.kind = kind;
        message.head.extend_from_slice(head);
        message.body.extend(body.iter().filter(|slice| !slice.is_empty()).cloned());
        message.body_len = body.iter().map(|slice| slice.len()).sum();
        message.chunk_len = chunk_len;
        message.chunks.resize(message.len().div_ceil(chunk_len), Chunk::Unsent);
        if self.queue.is_empty() {
            self.progress_ns = now_ns;
        }
        self.pending_bytes += message.len();
        self.queue.push_back(Some(message));
    }

    /// The next chunk to send, if one may leave now; it counts as sent.
    pub fn next_chunk(&mut self, now_ns: u64) -> Option<NextChunk<'_>> {
        self.start_messages(now_ns);
        let (sequence, index) = loop {
            let sequence = *self.ready.front()?;
            let Some(message) = self.message(sequence) else {
                self.ready.pop_front();
                continue;
            };
            match message.pick() {
                Some(index) => break (sequence, index),
                None => {
                    message.ready = false;
                    self.ready.pop_front();
                }
            }
        };
        let slot = (sequence - self.base) as usize;
        let message = self.queue[slot].as_mut().expect("just seen there");
        let len = message.chunk_size(index);
        if !self.pace.may_send(len, now_ns) {
            return None;
        }
        self.pace.sent(len);
        let again = message.take(index);
        if message.pick().is_some() {
            self.ready.rotate_left(1);
        } else {
            message.ready = false;
            self.ready.pop_front();
        }
        let header = message.header(sequence, self.stream, index as u32, stamp_of(now_ns));
        self.note_flight(sequence, index, now_ns);
        let message = self.queue[slot].as_ref().expect("just seen there");
        Some(NextChunk { header, message, again })
    }

    fn start_messages(&mut self, now_ns: u64) {
        let end = self.base + (self.queue.len() as u64).min(SPAN);
        while self.started < STARTED_MAX && self.unstarted < end {
            let sequence = self.unstarted;
            self.unstarted += 1;
            self.started += 1;
            let message = self.message(sequence).expect("an unstarted message is not over");
            message.started = true;
            message.ready = true;
            message.progress_ns = now_ns;
            self.ready.push_back(sequence);
        }
    }

    /// Takes in an acknowledgement from a receiver with that boot number. A message that is over is
    /// returned for recycling.
    pub fn acknowledged(
        &mut self,
        ack: &Ack,
        bitmap: &[u8],
        receiver_boot: u32,
        now_ns: u64,
    ) -> Option<Outgoing> {
        if ack.stream != self.stream {
            return None;
        }
        let echoed_ns = self.measure(ack.echo, now_ns);
        let message = self.message(ack.sequence)?;
        if !message.started {
            return None;
        }
        if ack.done {
            let chunks = message.chunks.len() - message.arrived;
            self.note_progress(echoed_ns, chunks, now_ns);
            return self.finish(ack.sequence, true);
        }
        if ack.cumulative as usize > message.unsent {
            return None;
        }
        match message.attempt {
            Some((boot, attempt)) if boot == receiver_boot && ack.generation < attempt => {
                return None;
            }
            Some(known) if known != (receiver_boot, ack.generation) => message.forget_arrivals(),
            _ => {}
        }
        message.attempt = Some((receiver_boot, ack.generation));
        let arrived = message.mark_arrived(ack.cumulative as usize, bitmap);
        let all = message.arrived == message.chunks.len();
        if arrived.chunks > 0 {
            message.progress_ns = now_ns;
            self.note_progress(echoed_ns, arrived.chunks, now_ns);
            self.pace.arrived(arrived.in_flight_bytes);
        }
        if all {
            return self.finish(ack.sequence, true);
        }
        self.make_ready(ack.sequence);
        None
    }

    /// Takes a round trip from an echoed stamp; when that was, if it can be believed.
    fn measure(&mut self, echo: u32, now_ns: u64) -> Option<u64> {
        let round_trip_ns = u64::from(stamp_of(now_ns).wrapping_sub(echo)) << 10;
        if round_trip_ns > ECHO_MAX_NS {
            return None;
        }
        self.pace.sample(round_trip_ns);
        // Rounded down by the stamp: a chunk sent in that microsecond counts as not earlier.
        let echoed_ns = now_ns.saturating_sub(round_trip_ns + 1024);
        self.delivered_ns = self.delivered_ns.max(echoed_ns);
        Some(echoed_ns)
    }

    /// `chunks` more have arrived, the latest of them sent at `echoed_ns`.
    fn note_progress(&mut self, echoed_ns: Option<u64>, chunks: usize, now_ns: u64) {
        self.progress_ns = now_ns;
        // More than the probes can only be what was sent before them.
        let sent_ns = if chunks > PROBES { Some(0) } else { echoed_ns };
        if let Some(sent_ns) = sent_ns {
            self.pace.heard(sent_ns);
        }
    }

    /// Puts a message that has chunks to send into the turn.
    fn make_ready(&mut self, sequence: u64) {
        let Some(message) = self.message(sequence) else { return };
        if !message.ready && message.pick().is_some() {
            message.ready = true;
            self.ready.push_back(sequence);
        }
    }

    /// Finds lost chunks; messages without progress for `give_up_ns` are over and go to `over`.
    pub fn check_losses(&mut self, now_ns: u64, give_up_ns: u64, over: &mut Vec<Outgoing>) {
        if self.queue.is_empty() {
            self.flights.clear();
            return;
        }
        if now_ns.saturating_sub(self.progress_ns) > give_up_ns {
            self.give_up_all(over);
            return;
        }
        let overtaken_ns = self.pace.round_trip_ns() / 4 + REORDER_NS;
        let mut probes = None;
        while let Some(&Flight { sequence, index, sent_ns }) = self.flights.front() {
            let overtaken = sent_ns.saturating_add(overtaken_ns) < self.delivered_ns;
            let Some(message) = self.message(sequence).filter(|m| m.is_in_flight(index)) else {
                self.flights.pop_front();
                continue;
            };
            let silent = now_ns.saturating_sub(message.progress_ns) > give_up_ns;
            let len = message.chunk_size(index as usize);
            if overtaken {
                self.pace.overtaken(sent_ns, now_ns);
            } else {
                let left = probes.get_or_insert_with(|| self.probes_due(sent_ns, now_ns));
                if *left == 0 {
                    break;
                }
                *left -= 1;
            }
            self.flights.pop_front();
            self.pace.gone(len);
            self.message(sequence).expect("just seen there").lose(index as usize);
            if silent {
                over.extend(self.finish(sequence, false));
            } else {
                self.make_ready(sequence);
            }
        }
    }

    /// How many chunks to send again because of silence since the first was sent at `sent_ns`.
    fn probes_due(&mut self, sent_ns: u64, now_ns: u64) -> usize {
        if self.timeout_at_ns(sent_ns) > now_ns {
            return 0;
        }
        self.timed_out_ns = now_ns;
        self.pace.timed_out(PROBES, now_ns);
        PROBES
    }

    /// When silence means loss: the timeout runs from the last sign of progress.
    fn timeout_at_ns(&self, sent_ns: u64) -> u64 {
        let since_ns = sent_ns.max(self.progress_ns).max(self.timed_out_ns);
        since_ns.saturating_add(self.pace.timeout_ns())
    }

    fn give_up_all(&mut self, over: &mut Vec<Outgoing>) {
        for sequence in self.base..self.base + self.queue.len() as u64 {
            over.extend(self.finish(sequence, false));
        }
        self.flights.clear();
    }

    /// Takes a message out, because it has arrived or is given up.
    fn finish(&mut self, sequence: u64, arrived: bool) -> Option<Outgoing> {
        let slot = usize::try_from(sequence.checked_sub(self.base)?).ok()?;
        let message = self.queue.get_mut(slot)?.take()?;
        self.pending_bytes -= message.len();
        self.started -= usize::from(message.started);
        if arrived {
            self.pace.arrived(message.in_flight_bytes());
        } else {
            self.pace.gone(message.in_flight_bytes());
        }
        while let Some(None) = self.queue.front() {
            self.queue.pop_front();
            self.base += 1;
        }
        self.unstarted = self.unstarted.max(self.base);
        Some(message)
    }

    /// Notes that a chunk has been sent. Now and then drops the entries of chunks no longer under way,
    /// so that there are never more than about twice as many as chunks in the window.
    fn note_flight(&mut self, sequence: u64, index: usize, sent_ns: u64) {
        self.flights.push_back(Flight { sequence, index: index as u32, sent_ns });
        if self.flights.len() < self.compact_at {
            return;
        }
        let (queue, base) = (&self.queue, self.base);
        self.flights.retain(|flight| {
            let slot =
                flight.sequence.checked_sub(base).and_then(|slot| usize::try_from(slot).ok());
            let message = slot.and_then(|slot| queue.get(slot)).and_then(Option::as_ref);
            message.is_some_and(|message| message.is_in_flight(flight.index))
        });
        self.compact_at = COMPACT_MIN.max(2 * self.flights.len());
    }

    fn message(&mut self, sequence: u64) -> Option<&mut Outgoing> {
        let slot = usize::try_from(sequence.checked_sub(self.base)?).ok()?;
        self.queue.get_mut(slot)?.as_mut()
    }

    /// When something is due though nothing arrives: a timeout, the end of patience, or a chunk that
    /// waits for its turn in the pacing.
    pub fn deadline_ns(&self, give_up_ns: u64) -> Option<u64> {
        if self.queue.is_empty() {
            return None;
        }
        let mut deadline = self.progress_ns.saturating_add(give_up_ns).saturating_add(1);
        if let Some(flight) = self.flights.front() {
            deadline = deadline.min(self.timeout_at_ns(flight.sent_ns));
        }
        if let Some(sequence) = self.ready.front() {
            let len = self.ready_len(*sequence);
            if self.pace.has_window(len) {
                deadline = deadline.min(self.pace.tokens_at_ns(len));
            }
        }
        Some(deadline)
    }

    fn ready_len(&self, sequence: u64) -> usize {
        let slot = sequence.checked_sub(self.base).and_then(|slot| usize::try_from(slot).ok());
        let message = slot.and_then(|slot| self.queue.get(slot)).and_then(Option::as_ref);
        message.map_or(0, |message| message.chunk_len.min(message.len()))
    }
}

/// What an acknowledgement told anew.
struct Arrived {
    chunks: usize,
    in_flight_bytes: usize,
}

impl Outgoing {
    fn clear(&mut self) {
        let Outgoing { mut head, mut body, mut chunks, mut lost, .. } = std::mem::take(self);
        head.clear();
        body.clear();
        chunks.clear();
        lost.clear();
        *self = Outgoing { head, body, chunks, lost, ..Outgoing::default() };
    }

    /// Lets go of the buffers that the message held.
    pub fn release(mut self) -> Outgoing {
        self.clear();
        self
    }

    pub fn len(&self) -> usize {
        self.head.len() + self.body_len
    }

    fn chunk_size(&self, index: usize) -> usize {
        self.chunk_len.min(self.len() - index * self.chunk_len)
    }

    fn header(&self, sequence: u64, stream: u32, index: u32, stamp: u32) -> ChunkHeader {
        ChunkHeader {
            sequence,
            stream,
            head_len: self.head.len() as u32,
            body_len: self.body_len as u32,
            chunk_len: self.chunk_len as u16,
            kind: self.kind,
            index,
            stamp,
        }
    }

    /// The bytes of the message in `range` that belong to its head.
    pub fn head_part(&self, range: &std::ops::Range<usize>) -> &[u8] {
        &self.head[range.start.min(self.head.len())..range.end.min(self.head.len())]
    }

    /// Appends views of the bytes in `range` that belong to the body.
    pub fn body_part(&self, range: &std::ops::Range<usize>, into: &mut Vec<Slice>) {
        let start = range.start.saturating_sub(self.head.len());
        let end = range.end.saturating_sub(self.head.len());
        let mut at = 0;
        for slice in &self.body {
            if at >= end {
                break;
            }
            let next = at + slice.len();
            if next > start {
                into.push(slice.slice(start.max(at) - at..end.min(next) - at));
            }
            at = next;
        }
    }

    /// The chunk to send next: a lost one, else the first unsent.
    fn pick(&mut self) -> Option<usize> {
        while let Some(index) = self.lost.front() {
            if self.chunks[*index as usize] == Chunk::Lost {
                return Some(*index as usize);
            }
            self.lost.pop_front();
        }
        (self.unsent < self.chunks.len()).then_some(self.unsent)
    }

    /// Marks the chunk that `pick` named as under way; whether it had been sent before.
    fn take(&mut self, index: usize) -> bool {
        let again = self.chunks[index] == Chunk::Lost;
        if again {
            self.lost.pop_front();
        } else {
            self.unsent = index + 1;
        }
        self.chunks[index] = Chunk::InFlight;
        again
    }

    fn is_in_flight(&self, index: u32) -> bool {
        self.chunks[index as usize] == Chunk::InFlight
    }

    fn lose(&mut self, index: usize) {
        self.chunks[index] = Chunk::Lost;
        self.lost.push_back(index as u32);
    }

    fn mark_arrived(&mut self, cumulative: usize, bitmap: &[u8]) -> Arrived {
        let mut news = Arrived { chunks: 0, in_flight_bytes: 0 };
        for index in self.cumulative..cumulative {
            self.mark(index, &mut news);
        }
        self.cumulative = self.cumulative.max(cumulative);
        let start = cumulative / 8 * 8;
        for (byte_index, byte) in bitmap.iter().enumerate() {
            let mut byte = *byte;
            while byte != 0 {
                let index = start + byte_index * 8 + byte.trailing_zeros() as usize;
                byte &= byte - 1;
                if index < self.unsent {
                    self.mark(index, &mut news);
                }
            }
        }
        news
    }

    fn mark(&mut self, index: usize, news: &mut Arrived) {
        let before = std::mem::replace(&mut self.chunks[index], Chunk::Arrived);
        if before == Chunk::Arrived {
            return;
        }
        news.chunks += 1;
        self.arrived += 1;
        if before == Chunk::InFlight {
            news.in_flight_bytes += self.chunk_size(index);
        }
    }

    /// The receiver has lost what it had and begins anew.
    fn forget_arrivals(&mut self) {
        for index in 0..self.chunks.len() {
            if self.chunks[index] == Chunk::Arrived {
                self.lose(index);
            }
        }
        self.arrived = 0;
        self.cumulative = 0;
    }

    fn in_flight_bytes(&self) -> usize {
        let chunks = self.chunks.iter().enumerate();
        chunks
            .filter(|(_, chunk)| **chunk == Chunk::InFlight)
            .map(|(i, _)| self.chunk_size(i))
            .sum()
    }
}

#[cfg(test)]
mod tests;
