//! Messages between this endpoint and its peers, over any link.
//!
//! Purpose: what fits a datagram shares one with others to the same address and leaves at the end of
//! the turn; it may be lost. What does not is sent in chunks until acknowledged, and is delivered
//! once. A turn is: [`Transport::receive`] and handle, [`Transport::send`], [`Transport::flush`], then
//! sleep until something arrives or [`Transport::next_deadline_ns`].
//!
//! Invariant: time comes from the caller and never goes back; a small message never waits for a
//! large one; nothing grows with what the network sends.
//! What would break it: a link that joins or splits datagrams.

use crate::chunk::{self, Ack, CHUNK_HEADER_BYTES, ChunkHeader, HEAD_MAX};
use crate::counters::Counters;
use crate::frame::{self, FRAME_BYTES, Frame, Frames, HEADER_BYTES, Identity};
use crate::inbound::Room;
use crate::link::{BODY_SLICES_MAX, Datagram, Link, Received};
use crate::outbound::{NextChunk, Outgoing};
use crate::pace::PaceConfig;
use crate::peers::{Open, Peer, Peers};
use racos_buffer::{Pool, Slice};
use std::fmt;
use std::net::SocketAddr;

/// Bodies from this size on are gathered into their datagram instead of copied.
const GATHER_BYTES_MIN: usize = 8 << 10;
/// Most bytes of an acknowledgement's bitmap.
const BITMAP_BYTES_MAX: usize = 1024;
/// Chunks of at least two blocks are cut at whole blocks, so that they are copied aligned.
const BLOCK_BYTES: usize = 4096;
/// Most message records kept for reuse.
const SPARE_MAX: usize = 64;

/// Bounds of a [`Transport`].
#[derive(Debug, Clone)]
pub struct TransportConfig {
    /// Most bytes of head and body together.
    pub message_bytes_max: usize,
    /// PROTOCOL 9.4-e. Most bytes of large messages that may wait for one peer;
    /// [`SendError::Backlog`] beyond.
    pub pending_bytes_max: usize,
    /// Most addresses remembered; idle ones give way.
    pub peers_max: usize,
    /// Most half-received messages of one peer, and most bytes of those of all peers.
    pub assemblies_max: usize,
    pub assembly_bytes_max: usize,
    /// A half-received message without a new chunk for this long is given up.
    pub assembly_timeout_ns: u64,
    /// A large message without progress for this long is given up.
    pub give_up_ns: u64,
    /// Most bytes of chunks that one flush sends to one peer.
    pub turn_bytes_max: usize,
    pub pace: PaceConfig,
    /// Flags of every datagram: 0 or [`frame::LEAST`].
    pub flags: u8,
}

impl Default for TransportConfig {
    fn default() -> TransportConfig {
        TransportConfig {
            message_bytes_max: (8 << 20) + HEAD_MAX,
            pending_bytes_max: 64 << 20,
            peers_max: 4096,
            assemblies_max: 64,
            assembly_bytes_max: 128 << 20,
            assembly_timeout_ns: 10_000_000_000,
            give_up_ns: 5_000_000_000,
            turn_bytes_max: 512 << 10,
            pace: PaceConfig::default(),
            flags: 0,
        }
    }
}

/// Who sent a message, as its datagram says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    pub address: SocketAddr,
    /// `None` for a client.
    pub node: Option<u16>,
    pub incarnation: u32,
    pub boot: u32,
    /// False for a client that has yet to ask how many lanes there are.
    pub knows_lanes: bool,
    /// Flags of its datagram.
    pub flags: u8,
}

/// A message that has arrived. Head and body of a small one are views of the receive buffer, which
/// they pin: copy what is kept. The body of a large one is a buffer of its own, aligned to 4096
/// bytes, with at least 4096 bytes behind it.
#[derive(Debug)]
pub struct Message {
    pub from: Sender,
    pub kind: u8,
    pub head: Slice,
    pub body: Slice,
}

/// Why a message was not taken. Nothing has been sent of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// The head is longer than 64 KiB.
    HeadTooLarge { len: usize },
    /// Head and body are longer than the configured limit.
    TooLarge { len: usize, max: usize },
    /// So much is waiting for that peer that no more is taken.
    Backlog { to: SocketAddr, pending_bytes: usize },
    /// Every entry of the table of peers is busy.
    TooManyPeers { max: usize },
}

impl fmt::Display for SendError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::HeadTooLarge { len } => {
                write!(out, "message head of {len} bytes exceeds {HEAD_MAX}")
            }
            SendError::TooLarge { len, max } => write!(
                out,
                "message of {len} bytes exceeds the limit of {max}: split it or raise \
                 message_bytes_max on both sides"
            ),
            SendError::Backlog { to, pending_bytes } => write!(
                out,
                "{to} has not acknowledged {pending_bytes} bytes: wait, or raise pending_bytes_max"
            ),
            SendError::TooManyPeers { max } => {
                write!(out, "all {max} entries for peers are busy: wait, or raise peers_max")
            }
        }
    }
}

impl std::error::Error for SendError {}

/// Messages over a link.
pub struct Transport<L: Link> {
    wire: Wire<L>,
    identity: Identity,
    config: TransportConfig,
    peers: Peers,
    /// Peers with an open datagram; with large messages in either direction; to be acknowledged.
    dirty: Vec<usize>,
    active: Vec<usize>,
    acking: Vec<usize>,
    room: Room,
    received: Vec<Received>,
    spare: Vec<Outgoing>,
    over: Vec<Outgoing>,
    counters: Counters,
    /// Whether large messages were taken since the last flush.
    is_unflushed: bool,
}

impl<L: Link> Transport<L> {
    /// `pool` gives the buffers of large messages that arrive.
    pub fn new(link: L, identity: Identity, pool: Pool, config: TransportConfig) -> Transport<L> {
        let message_max = config.message_bytes_max.min(u32::MAX as usize - HEAD_MAX);
        let mut header = frame::header(&identity);
        header[frame::FLAGS_AT] = config.flags;
        Transport {
            wire: Wire { link, header, datagrams: 0 },
            identity,
            peers: Peers::new(config.peers_max),
            dirty: Vec::new(),
            active: Vec::new(),
            acking: Vec::new(),
            room: Room::new(pool, message_max, config.assemblies_max, config.assembly_bytes_max),
            received: Vec::new(),
            spare: Vec::new(),
            over: Vec::new(),
            counters: Counters::default(),
            is_unflushed: false,
            config: TransportConfig { message_bytes_max: message_max, ..config },
        }
    }

    /// Takes a message for `to`; it leaves in the next flush or, if its datagram fills up, before.
    /// `body` is the slices joined; large bodies are never copied and are held until acknowledged or
    /// given up. Panics if `kind` is one of the transport's own (0xf0 and above).
    pub fn send(
        &mut self,
        to: SocketAddr,
        kind: u8,
        head: &[u8],
        body: &[Slice],
        now_ns: u64,
    ) -> Result<(), SendError> {
        assert!(kind < chunk::KIND_OWN_MIN, "message kinds from 0xf0 on are the transport's own");
        let body_len: usize = body.iter().map(|slice| slice.len()).sum();
        let place = self.peer(to, now_ns)?;
        let peer = &mut self.peers[place];
        // Wherever the body is put, inside its frame or behind the frames.
        let size = frame::frame_bytes(head.len(), 0) + body_len.next_multiple_of(8);
        if HEADER_BYTES + size <= peer.open.bytes_max {
            self.wire.append(&mut peer.open, kind, [head, &[]], body, body_len);
            self.counters.messages_sent += 1;
            if !peer.is_dirty {
                peer.is_dirty = true;
                self.dirty.push(place);
            }
            return Ok(());
        }
        self.send_large(place, kind, head, body, body_len, now_ns)
    }

    fn send_large(
        &mut self,
        place: usize,
        kind: u8,
        head: &[u8],
        body: &[Slice],
        body_len: usize,
        now_ns: u64,
    ) -> Result<(), SendError> {
        if head.len() > HEAD_MAX {
            return Err(SendError::HeadTooLarge { len: head.len() });
        }
        let (len, max) = (head.len() + body_len, self.config.message_bytes_max);
        if len > max {
            return Err(SendError::TooLarge { len, max });
        }
        let peer = &mut self.peers[place];
        if !peer.outbound.has_room(len, self.config.pending_bytes_max) {
            let pending_bytes = peer.outbound.pending_bytes();
            return Err(SendError::Backlog { to: peer.open.to, pending_bytes });
        }
        let record = self.spare.pop().unwrap_or_default();
        let chunk_len = chunk_len(peer.open.bytes_max);
        peer.outbound.push(record, kind, head, body, chunk_len, now_ns);
        self.counters.messages_sent += 1;
        self.is_unflushed = true;
        activate(&mut self.active, peer, place);
        Ok(())
    }

    /// Appends the messages that have arrived to `into`; never waits. Returns how many datagrams
    /// there were: with none, everything that had arrived has been handled.
    pub fn receive(&mut self, now_ns: u64, into: &mut Vec<Message>) -> usize {
        let mut received = std::mem::take(&mut self.received);
        let datagrams = self.wire.link.receive(&mut received);
        let before = into.len();
        for datagram in received.drain(..) {
            self.counters.datagrams_received += 1;
            match frame::open(&datagram.bytes, &self.identity) {
                Ok(header) => self.take_frames(&datagram, &header, now_ns, into),
                Err(junk) => self.counters.junk(junk),
            }
        }
        self.received = received;
        self.counters.messages_received += (into.len() - before) as u64;
        datagrams
    }

    fn take_frames(
        &mut self,
        datagram: &Received,
        header: &frame::Header,
        now_ns: u64,
        into: &mut Vec<Message>,
    ) {
        let bytes = &datagram.bytes;
        let from = Sender {
            address: datagram.from,
            node: header.node,
            incarnation: header.incarnation,
            boot: header.boot,
            knows_lanes: header.knows_lanes,
            flags: header.flags,
        };
        for Frame { kind, head, body } in Frames::new(bytes, header) {
            match kind {
                0..chunk::KIND_OWN_MIN => {
                    let (head, body) = (bytes.slice(head), bytes.slice(body));
                    into.push(Message { from, kind, head, body });
                }
                chunk::KIND_CHUNK => {
                    into.extend(self.take_chunk(from, &bytes[head], &bytes[body], now_ns));
                }
                chunk::KIND_ACK => self.take_ack(from, &bytes[head], now_ns),
                _ => self.counters.junk_kind += 1,
            }
        }
    }

    fn take_chunk(
        &mut self,
        from: Sender,
        head: &[u8],
        body: &[u8],
        now_ns: u64,
    ) -> Option<Message> {
        let inline = head.get(CHUNK_HEADER_BYTES..).unwrap_or_default();
        let Some(header) = ChunkHeader::read(head, inline.len() + body.len()) else {
            self.counters.junk_chunk += 1;
            return None;
        };
        let Ok(place) = self.peer(from.address, now_ns) else {
            self.counters.dropped_no_room += 1;
            return None;
        };
        let (peer, counters) = (&mut self.peers[place], &mut self.counters);
        let payload = [inline, body];
        let complete =
            peer.inbound.accept(&from, header, payload, now_ns, &mut self.room, counters);
        if !peer.inbound.is_idle() {
            activate(&mut self.active, peer, place);
        }
        if !peer.is_acking && peer.inbound.has_acks() {
            peer.is_acking = true;
            self.acking.push(place);
        }
        let complete = complete?;
        self.counters.large_received += 1;
        Some(Message { from, kind: complete.kind, head: complete.head, body: complete.body })
    }

    fn take_ack(&mut self, from: Sender, head: &[u8], now_ns: u64) {
        let Some((ack, bitmap)) = Ack::read(head) else {
            self.counters.junk_ack += 1;
            return;
        };
        self.counters.acks_received += 1;
        let is_mine =
            (ack.incarnation, ack.boot) == (self.identity.incarnation, self.identity.boot);
        let Some(place) = self.peers.find(from.address).filter(|_| is_mine) else { return };
        let peer = &mut self.peers[place];
        peer.used_ns = now_ns;
        if let Some(done) = peer.outbound.acknowledged(&ack, bitmap, from.boot, now_ns) {
            self.counters.large_sent += 1;
            recycle(&mut self.spare, done);
        }
    }

    /// Ends a turn: acknowledgements, open datagrams, chunks that are due, and all of it to the
    /// network.
    pub fn flush(&mut self, now_ns: u64) {
        self.queue_acks();
        self.check_time(now_ns);
        for place in self.dirty.drain(..) {
            let peer = &mut self.peers[place];
            peer.is_dirty = false;
            self.wire.close(&mut peer.open);
        }
        self.send_chunks(now_ns);
        let peers = &mut self.peers;
        self.active.retain(|place| {
            let peer = &mut peers[*place];
            peer.is_active = !(peer.outbound.is_idle() && peer.inbound.is_idle());
            peer.is_active
        });
        self.is_unflushed = false;
        self.wire.link.flush();
    }

    fn queue_acks(&mut self) {
        for place in self.acking.drain(..) {
            let peer = &mut self.peers[place];
            peer.is_acking = false;
            let fixed = HEADER_BYTES + FRAME_BYTES + chunk::ACK_HEADER_BYTES + 8;
            let bitmap_max = BITMAP_BYTES_MAX.min(peer.open.bytes_max - fixed);
            peer.inbound.take_acks(bitmap_max, |ack, bitmap| {
                let head = [&ack.write(), bitmap];
                self.wire.append(&mut peer.open, chunk::KIND_ACK, head, &[], 0);
                self.counters.acks_sent += 1;
            });
            if !peer.is_dirty && !peer.open.head.is_empty() {
                peer.is_dirty = true;
                self.dirty.push(place);
            }
        }
    }

    /// Losses, and what has waited for too long in either direction.
    fn check_time(&mut self, now_ns: u64) {
        for place in &self.active {
            let peer = &mut self.peers[*place];
            let timeout_ns = self.config.assembly_timeout_ns;
            peer.inbound.expire(now_ns, timeout_ns, &mut self.room, &mut self.counters);
            peer.outbound.check_losses(now_ns, self.config.give_up_ns, &mut self.over);
            for message in self.over.drain(..) {
                self.counters.given_up += 1;
                recycle(&mut self.spare, message);
            }
        }
    }

    fn send_chunks(&mut self, now_ns: u64) {
        for place in &self.active {
            let peer = &mut self.peers[*place];
            let mut bytes = 0;
            while bytes < self.config.turn_bytes_max
                && let Some(next) = peer.outbound.next_chunk(now_ns)
            {
                bytes += next.header.range().len();
                self.counters.chunks_sent += 1;
                self.counters.chunks_retransmitted += u64::from(next.again);
                self.wire.send_chunk(peer.open.to, &next);
            }
        }
    }

    /// When to flush again though nothing arrives; `None` if nothing is under way. To be asked after
    /// [`Transport::flush`].
    pub fn next_deadline_ns(&self) -> Option<u64> {
        if self.is_unflushed || !self.dirty.is_empty() || !self.acking.is_empty() {
            return Some(0);
        }
        let deadlines = self.active.iter().flat_map(|place| {
            let peer = &self.peers[*place];
            let outbound = peer.outbound.deadline_ns(self.config.give_up_ns);
            [outbound, peer.inbound.deadline_ns(self.config.assembly_timeout_ns)]
        });
        deadlines.flatten().min()
    }

    /// Bytes of large messages to that address that are neither acknowledged nor given up.
    pub fn pending_bytes(&self, to: SocketAddr) -> usize {
        self.peers.find(to).map_or(0, |place| self.peers[place].outbound.pending_bytes())
    }

    /// The same of all peers together.
    pub fn pending_bytes_of_all(&self) -> usize {
        self.active.iter().map(|place| self.peers[*place].outbound.pending_bytes()).sum()
    }

    pub fn counters(&self) -> Counters {
        Counters {
            datagrams_sent: self.wire.datagrams,
            peers_evicted: self.peers.evicted,
            ..self.counters
        }
    }

    /// Datagrams and frames dropped so far because they were wrong in themselves.
    pub fn junk_total(&self) -> u64 {
        self.counters.junk_total()
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn link(&self) -> &L {
        &self.wire.link
    }

    pub fn link_mut(&mut self) -> &mut L {
        &mut self.wire.link
    }

    fn peer(&mut self, address: SocketAddr, now_ns: u64) -> Result<usize, SendError> {
        let place = match self.peers.find(address) {
            Some(place) => place,
            None => {
                let datagram_max = self.wire.link.datagram_max(address);
                let entered = self.peers.enter(address, datagram_max, self.config.pace);
                entered.ok_or(SendError::TooManyPeers { max: self.config.peers_max })?
            }
        };
        self.peers[place].used_ns = now_ns;
        Ok(place)
    }
}

fn activate(active: &mut Vec<usize>, peer: &mut Peer, place: usize) {
    if !peer.is_active {
        peer.is_active = true;
        active.push(place);
    }
}

fn recycle(spare: &mut Vec<Outgoing>, message: Outgoing) {
    if spare.len() < SPARE_MAX {
        spare.push(message.release());
    }
}

/// Bytes of a chunk in a datagram of at most `datagram_max`.
fn chunk_len(datagram_max: usize) -> usize {
    // The chunk that ends the message's head may need padding before its part of the body.
    let padding = 7;
    let room = datagram_max - HEADER_BYTES - FRAME_BYTES - CHUNK_HEADER_BYTES - padding;
    let unit = if room >= 2 * BLOCK_BYTES { BLOCK_BYTES } else { 8 };
    room / unit * unit
}

/// The link, and how datagrams are filled.
struct Wire<L> {
    link: L,
    header: [u8; HEADER_BYTES],
    datagrams: u64,
}

impl<L: Link> Wire<L> {
    /// Appends a frame to the peer's open datagram; closes that first if there is no room.
    fn append(
        &mut self,
        open: &mut Open,
        kind: u8,
        head: [&[u8]; 2],
        body: &[Slice],
        body_len: usize,
    ) {
        let gathers = body_len >= GATHER_BYTES_MIN && body.len() <= BODY_SLICES_MAX;
        let head_len = head[0].len() + head[1].len();
        let size = if gathers {
            frame::frame_bytes(head_len, 0) + body_len
        } else {
            frame::frame_bytes(head_len, body_len)
        };
        let too_many = gathers && open.tails.len() + body.len() > BODY_SLICES_MAX;
        let full = open.head.len() + open.tail_bytes + size > open.bytes_max;
        if !open.head.is_empty() && (full || too_many) {
            self.close(open);
        }
        if open.head.is_empty() {
            self.start(open);
        }
        frame::append(&mut open.head, kind, head, (!gathers).then_some(body), body_len);
        if gathers {
            open.tails.extend(body.iter().filter(|slice| !slice.is_empty()).cloned());
            open.tail_bytes += body_len;
        }
    }

    fn start(&mut self, open: &mut Open) {
        open.head = self.link.head();
        open.head.extend_from_slice(&self.header);
        open.tails = self.link.body();
        open.tail_bytes = 0;
    }

    /// Seals a datagram and hands it to the link.
    fn close(&mut self, open: &mut Open) {
        let mut head = std::mem::take(&mut open.head);
        let body = std::mem::take(&mut open.tails);
        frame::seal(&mut head, &body);
        self.datagrams += 1;
        self.link.send(Datagram { to: open.to, head, body });
    }

    /// Sends a chunk in a datagram of its own.
    fn send_chunk(&mut self, to: SocketAddr, next: &NextChunk<'_>) {
        let mut open = Open::new(to, 0);
        self.start(&mut open);
        let range = next.header.range();
        let head = next.message.head_part(&range);
        next.message.body_part(&range, &mut open.tails);
        let body_len = range.len() - head.len();
        let fixed = next.header.write();
        if open.tails.len() <= BODY_SLICES_MAX {
            frame::append(&mut open.head, chunk::KIND_CHUNK, [&fixed, head], None, body_len);
        } else {
            let tails = Some(&*open.tails);
            frame::append(&mut open.head, chunk::KIND_CHUNK, [&fixed, head], tails, body_len);
            open.tails.clear();
        }
        self.close(&mut open);
    }
}
