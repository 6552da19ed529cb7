//! Large messages on their way in from one peer.
//!
//! Purpose: chunks are copied once, to their place in an aligned buffer; a message is handed on when
//! the last one is there, once, and acknowledged again if its chunks come again.
//!
//! Invariant (PROTOCOL 9.4-e): a peer has at most [`Room::assemblies_max`] messages half received,
//! all peers together hold at most [`Room::bytes_max`] bytes for them, and one that makes no
//! progress is given up. A sender never works on a number more than [`SPAN`] above its oldest open
//! one: what lies lower is over, so remembering [`SPAN`] numbers tells every duplicate.
//! What would break it: a sender that renumbers without a new stream or boot.

use crate::chunk::{Ack, ChunkHeader};
use crate::counters::Counters;
use crate::transport::Sender;
use racos_buffer::{Buf, Pool, Slice};

/// Most numbers between a sender's oldest open message and the newest it works on.
pub const SPAN: u64 = 1024;
/// Most completed messages that wait for their acknowledgement; beyond it the sender asks again.
const DONE_MAX: usize = 256;
/// A half-received message that has rested this long gives way to a new one when there are too many.
const RESTED_NS: u64 = 1_000_000_000;
/// Room behind a body, so that whoever writes it to disk may pad it in place.
const BODY_SPARE_BYTES: usize = 4096;

/// What the assemblies of all peers share.
pub struct Room {
    pub pool: Pool,
    /// Most bytes of head and body of a message.
    pub message_max: usize,
    /// Most half-received messages of one peer.
    pub assemblies_max: usize,
    /// Most bytes of buffers of all half-received messages.
    pub bytes_max: usize,
    pub bytes: usize,
    generation: u32,
    spare_bits: Vec<Vec<u8>>,
}

impl Room {
    pub fn new(pool: Pool, message_max: usize, assemblies_max: usize, bytes_max: usize) -> Room {
        let (bytes, generation, spare_bits) = (0, 0, Vec::new());
        Room { pool, message_max, assemblies_max, bytes_max, bytes, generation, spare_bits }
    }
}

/// A large message that is complete.
#[derive(Debug)]
pub struct Complete {
    pub kind: u8,
    pub head: Slice,
    pub body: Slice,
}

/// What is half received from one address.
#[derive(Default)]
pub struct Inbound {
    /// Whose numbering `stream` and `seen` are about.
    from: Option<(Option<u16>, u32, u32)>,
    stream: u32,
    seen: Seen,
    assemblies: Vec<Assembly>,
    /// Completed messages to acknowledge: number and echo.
    done: Vec<(u64, u32)>,
}

struct Assembly {
    /// As in the chunk that came first.
    header: ChunkHeader,
    generation: u32,
    missing: usize,
    /// Every chunk below this is there.
    cumulative: usize,
    /// No chunk from here on is there.
    end: usize,
    /// One bit a chunk.
    bits: Vec<u8>,
    head: Option<Buf>,
    body: Option<Buf>,
    progress_ns: u64,
    echo: u32,
    ack_due: bool,
}

impl Inbound {
    pub fn is_idle(&self) -> bool {
        self.assemblies.is_empty()
    }

    pub fn has_acks(&self) -> bool {
        !self.done.is_empty() || self.assemblies.iter().any(|assembly| assembly.ack_due)
    }

    /// Takes in a chunk whose payload is `payload` joined; the whole message if that was the last.
    pub fn accept(
        &mut self,
        from: &Sender,
        header: ChunkHeader,
        payload: [&[u8]; 2],
        now_ns: u64,
        room: &mut Room,
        counters: &mut Counters,
    ) -> Option<Complete> {
        if !self.is_current(from, header.stream, room) {
            counters.dropped_stale += 1;
            return None;
        }
        match self.seen.state(header.sequence) {
            State::Over => {
                counters.dropped_stale += 1;
                return None;
            }
            State::Done => {
                counters.dropped_duplicate += 1;
                self.acknowledge_done(header.sequence, header.stamp);
                return None;
            }
            State::Open => {}
        }
        let number = header.sequence;
        let known = self.assemblies.iter().position(|known| known.header.sequence == number);
        let index = match known {
            Some(index) => index,
            None => self.start(header, now_ns, room, counters)?,
        };
        let assembly = &mut self.assemblies[index];
        if !assembly.header.agrees(&header) {
            counters.junk_chunk += 1;
            return None;
        }
        assembly.put(&header, payload, now_ns);
        if assembly.missing > 0 {
            return None;
        }
        let assembly = self.assemblies.swap_remove(index);
        self.seen.insert(number);
        self.acknowledge_done(number, header.stamp);
        Some(assembly.complete(room))
    }

    /// Whether a chunk of `from` and `stream` belongs to the numbering at hand; a newer one replaces
    /// it.
    fn is_current(&mut self, from: &Sender, stream: u32, room: &mut Room) -> bool {
        let sender = (from.node, from.incarnation, from.boot);
        if self.from == Some(sender) && self.stream == stream {
            return true;
        }
        if let Some(known) = self.from {
            // The boots of a node count up; those of clients are nonces and tell no order.
            let older_boot = sender.0.is_some() && sender.0 == known.0 && sender < known;
            let older_stream = sender == known && stream < self.stream;
            if older_boot || older_stream {
                return false;
            }
        }
        for assembly in self.assemblies.drain(..) {
            assembly.release(room);
        }
        self.done.clear();
        self.seen = Seen::default();
        self.from = Some(sender);
        self.stream = stream;
        true
    }

    /// Makes room for a message and returns its index.
    fn start(
        &mut self,
        header: ChunkHeader,
        now_ns: u64,
        room: &mut Room,
        counters: &mut Counters,
    ) -> Option<usize> {
        if header.total() > room.message_max {
            counters.dropped_too_large += 1;
            return None;
        }
        if self.assemblies.len() >= room.assemblies_max {
            self.drop_rested(now_ns, room, counters);
        }
        let assembly = (self.assemblies.len() < room.assemblies_max)
            .then(|| Assembly::new(header, now_ns, room))
            .flatten();
        let Some(assembly) = assembly else {
            counters.dropped_no_room += 1;
            return None;
        };
        self.assemblies.push(assembly);
        Some(self.assemblies.len() - 1)
    }

    /// Gives up the message that has rested longest, if that is long.
    fn drop_rested(&mut self, now_ns: u64, room: &mut Room, counters: &mut Counters) {
        let rested = self.assemblies.iter().enumerate().min_by_key(|(_, a)| a.progress_ns);
        if let Some((index, assembly)) = rested
            && now_ns.saturating_sub(assembly.progress_ns) > RESTED_NS
        {
            self.assemblies.swap_remove(index).release(room);
            counters.assemblies_expired += 1;
        }
    }

    fn acknowledge_done(&mut self, sequence: u64, echo: u32) {
        if let Some(known) = self.done.iter_mut().rev().find(|(done, _)| *done == sequence) {
            known.1 = echo;
        } else if self.done.len() < DONE_MAX {
            self.done.push((sequence, echo));
        }
    }

    /// Hands every acknowledgement that is due to `emit`, each with at most `bitmap_max` bytes of
    /// bitmap.
    pub fn take_acks(&mut self, bitmap_max: usize, mut emit: impl FnMut(&Ack, &[u8])) {
        let Some((_, incarnation, boot)) = self.from else { return };
        let ack = Ack {
            sequence: 0,
            stream: self.stream,
            incarnation,
            boot,
            generation: 0,
            echo: 0,
            cumulative: 0,
            done: false,
        };
        for (sequence, echo) in self.done.drain(..) {
            emit(&Ack { sequence, echo, done: true, ..ack }, &[]);
        }
        for assembly in self.assemblies.iter_mut().filter(|assembly| assembly.ack_due) {
            assembly.ack_due = false;
            let ack = Ack {
                sequence: assembly.header.sequence,
                generation: assembly.generation,
                echo: assembly.echo,
                cumulative: assembly.cumulative as u32,
                ..ack
            };
            emit(&ack, assembly.bitmap(bitmap_max));
        }
    }

    /// Gives up what has made no progress for `timeout_ns`.
    pub fn expire(
        &mut self,
        now_ns: u64,
        timeout_ns: u64,
        room: &mut Room,
        counters: &mut Counters,
    ) {
        let mut index = 0;
        while index < self.assemblies.len() {
            if now_ns.saturating_sub(self.assemblies[index].progress_ns) < timeout_ns {
                index += 1;
                continue;
            }
            self.assemblies.swap_remove(index).release(room);
            counters.assemblies_expired += 1;
        }
    }

    /// When [`Inbound::expire`] next has something to do.
    pub fn deadline_ns(&self, timeout_ns: u64) -> Option<u64> {
        let oldest = self.assemblies.iter().map(|assembly| assembly.progress_ns).min()?;
        Some(oldest.saturating_add(timeout_ns))
    }
}

impl Assembly {
    fn new(header: ChunkHeader, now_ns: u64, room: &mut Room) -> Option<Assembly> {
        let (head_len, body_len) = (header.head_len as usize, header.body_len as usize);
        if header.total() > room.bytes_max.saturating_sub(room.bytes) {
            return None;
        }
        let head = if head_len > 0 { Some(room.pool.get(head_len)?) } else { None };
        let mut body = None;
        if body_len > 0 {
            let mut buffer = room.pool.get(body_len + BODY_SPARE_BYTES)?;
            buffer.set_len(body_len);
            body = Some(buffer);
        }
        room.bytes += header.total();
        room.generation = room.generation.wrapping_add(1);
        let mut bits = room.spare_bits.pop().unwrap_or_default();
        bits.clear();
        bits.resize(header.count().div_ceil(8), 0);
        Some(Assembly {
            header,
            generation: room.generation,
            missing: header.count(),
            cumulative: 0,
            end: 0,
            bits,
            head,
            body,
            progress_ns: now_ns,
            echo: header.stamp,
            ack_due: false,
        })
    }

    fn has(&self, index: usize) -> bool {
        self.bits.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }

    fn put(&mut self, header: &ChunkHeader, payload: [&[u8]; 2], now_ns: u64) {
        let index = header.index as usize;
        self.echo = header.stamp;
        self.ack_due = true;
        if self.has(index) {
            return;
        }
        self.bits[index / 8] |= 1 << (index % 8);
        self.missing -= 1;
        self.end = self.end.max(index + 1);
        while self.has(self.cumulative) {
            self.cumulative += 1;
        }
        self.progress_ns = now_ns;
        let mut at = header.range().start;
        for part in payload {
            self.copy(at, part);
            at += part.len();
        }
    }

    /// Copies `bytes` to offset `at` of the message.
    fn copy(&mut self, at: usize, bytes: &[u8]) {
        let head_len = self.header.head_len as usize;
        let (first, rest) = bytes.split_at(bytes.len().min(head_len.saturating_sub(at)));
        if let Some(head) = &mut self.head
            && !first.is_empty()
        {
            head[at..at + first.len()].copy_from_slice(first);
        }
        if let Some(body) = &mut self.body
            && !rest.is_empty()
        {
            let start = at + first.len() - head_len;
            body[start..start + rest.len()].copy_from_slice(rest);
        }
    }

    /// The bits of the chunks behind the first gap.
    fn bitmap(&self, max: usize) -> &[u8] {
        let start = self.cumulative / 8;
        let end = if self.end > self.cumulative { self.end.div_ceil(8) } else { start };
        &self.bits[start..end.min(start + max)]
    }

    fn complete(mut self, room: &mut Room) -> Complete {
        let head = self.head.take().map_or(Slice::empty(), Buf::freeze);
        let body = self.body.take().map_or(Slice::empty(), Buf::freeze);
        let kind = self.header.kind;
        self.release(room);
        Complete { kind, head, body }
    }

    fn release(self, room: &mut Room) {
        room.bytes -= self.header.total();
        if room.spare_bits.len() < 64 {
            room.spare_bits.push(self.bits);
        }
    }
}

/// Which of the last [`SPAN`] messages are complete.
#[derive(Default)]
struct Seen {
    /// One above the highest completed number.
    end: u64,
    bits: [u64; SPAN as usize / 64],
}

enum State {
    Open,
    Done,
    /// So old that its sender has finished or given it up.
    Over,
}

impl Seen {
    fn state(&self, sequence: u64) -> State {
        if sequence >= self.end {
            return State::Open;
        }
        if self.end - sequence > SPAN {
            return State::Over;
        }
        let bit = (sequence % SPAN) as usize;
        if self.bits[bit / 64] & (1 << (bit % 64)) != 0 { State::Done } else { State::Open }
    }

    fn insert(&mut self, sequence: u64) {
        if sequence >= self.end {
            let skipped = (sequence - self.end).min(SPAN);
            for clear in sequence - skipped..sequence {
                let bit = (clear % SPAN) as usize;
                self.bits[bit / 64] &= !(1 << (bit % 64));
            }
            self.end = sequence + 1;
        }
        let bit = (sequence % SPAN) as usize;
        self.bits[bit / 64] |= 1 << (bit % 64);
    }
}

#[cfg(test)]
mod tests;
