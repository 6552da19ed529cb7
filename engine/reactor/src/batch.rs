//! Batches on their way in: operations gathered, encoded and ready to be spread.
//!
//! Purpose: while own slots are out, what arrives is encoded at once into the next batch; there is
//! no timer (PROTOCOL 6.1-b). Small values are split straight into one body per node; large ones
//! stay in the buffer that received them.
//! Invariant: body j holds exactly the fragments that `layout` says, and the batch's bytes, digest
//! and bodies never change once sealed.

mod width;

use crate::layout::{self, FragmentSpot, LARGE_BYTES_MIN};
use crate::secrets::Secrets;
use bytes::Bytes;
use racos_buffer::{Buf, Pool, Slice};
use racos_codec::Codec;
use racos_machine::{
    Action, BATCH_VERSION, BatchLimits, Content, DecodeError, Op, OpId, Problem, Value,
    decode_batch, encode_batch,
};
use racos_protocol::{BatchInfo, Slot};
use rustc_hash::FxHasher;
use std::hash::Hasher;
use std::net::SocketAddr;
use std::rc::Rc;
use width::code;

/// Most bytes of one node's body and of the encoded metas, together, of a batch of small values: with
/// headers they fit one datagram on loopback.
const SMALL_BATCH_BYTES: usize = 56 << 10;
/// Most bytes of the encoded metas of any batch.
const META_BYTES_MAX: usize = 28 << 10;
/// Most operations of a batch.
const OPS_MAX: usize = 1024;
/// A batch of large values is closed at this many bytes of values.
pub const LARGE_BATCH_BYTES: usize = 512 << 10;
/// What a fragment adds to the head of a SPREAD.
const CRC_BYTES: usize = 4;
/// Estimate of what one operation adds to the encoded metas, besides its key.
const META_BYTES: usize = 96;

/// Hash of a key for read marks.
pub fn key_hash(key: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(key);
    hasher.finish().min(TOUCHES_ALL - 1)
}

/// Stands for a lease among the keys that a batch touches, if the batch ends the lease.
pub fn lease_hash(id: i64) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(b"lease");
    hasher.write_i64(id);
    hasher.finish().min(TOUCHES_ALL - 1)
}

/// A batch with this hash among its keys touches every key.
pub const TOUCHES_ALL: u64 = u64::MAX;

/// Whether a batch may touch the key with this hash.
pub fn touches(info: &BatchInfo, hash: u64) -> bool {
    info.touches(hash) || info.touches(TOUCHES_ALL)
}

/// Begins the bytes of a batch of class R; the name that it is stored under comes next.
pub(crate) const READY_MARK: u8 = b'R';
const READY_BYTES: usize = 17;
/// Likewise of an operation of the queue policy; behind the name, below which slot it is in none.
pub(crate) const QUEUED_MARK: u8 = b'Q';
const QUEUED_BYTES: usize = 25;
const _: () = assert!(READY_MARK != BATCH_VERSION && QUEUED_MARK != BATCH_VERSION);

/// What a batch that is stored before it has a slot is stored under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    pub id: OpId,
    /// Queue policy: the slot below which it is in none.
    pub born: Option<Slot>,
}

impl Name {
    fn put(self, out: &mut Vec<u8>) {
        out.push(self.born.map_or(READY_MARK, |_| QUEUED_MARK));
        out.extend_from_slice(&self.id.0.to_le_bytes());
        self.born.iter().for_each(|born| out.extend_from_slice(&born.to_le_bytes()));
    }

    /// The name that the bytes of a batch begin with, if they do, and the rest.
    fn split(bytes: &[u8]) -> (Option<Name>, &[u8]) {
        let id = |bytes: &[u8]| OpId(u128::from_le_bytes(bytes.try_into().expect("16 bytes")));
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        let (born, len) = match bytes.first() {
            Some(&READY_MARK) if bytes.len() >= READY_BYTES => (None, READY_BYTES),
            Some(&QUEUED_MARK) if bytes.len() >= QUEUED_BYTES => {
                (Some(word(&bytes[READY_BYTES..QUEUED_BYTES])), QUEUED_BYTES)
            }
            _ => return (None, bytes),
        };
        (Some(Name { id: id(&bytes[1..READY_BYTES]), born }), &bytes[len..])
    }
}

/// Queue policy: below which slot the operation in a batch with these bytes is in none.
pub(crate) fn born_of(bytes: &[u8]) -> Option<Slot> {
    Name::split(bytes).0.and_then(|name| name.born)
}

/// A batch as every node knows it.
#[derive(Debug)]
pub struct Batch {
    pub bytes: Box<[u8]>,
    pub ops: Vec<Op>,
    pub info: BatchInfo,
    /// The name that a batch of class R is stored under before it has a slot.
    stored_as: Option<Name>,
}

impl Batch {
    fn new(bytes: Vec<u8>, ops: Vec<Op>, stored_as: Option<Name>, secrets: &Secrets) -> Rc<Batch> {
        // PROTOCOL 3.1-f: the digest of its metas names a batch.
        let digest = secrets.batch_digest(&bytes);
        let mut keys = Vec::with_capacity(ops.len());
        for op in &ops {
            op.each_key(&mut |key| keys.push(key_hash(key)));
            if let Action::LeaseRevoke { id } | Action::LeaseExpire { id } = op.action {
                keys.push(lease_hash(id));
            }
            // PROTOCOL 8.1-g
            if op.touches_many() || op.is_change() {
                keys.push(TOUCHES_ALL);
            }
        }
        keys.sort_unstable();
        keys.dedup();
        let is_change = ops.iter().any(Op::is_change);
        let info = BatchInfo { digest, touches: keys.into(), is_change };
        Rc::new(Batch { bytes: bytes.into(), ops, info, stored_as })
    }

    /// Whether it is of class R: stored first, and assigned to a slot then.
    pub fn is_ready(&self) -> bool {
        self.stored_as.is_some()
    }

    /// The name that it is stored under.
    ///
    /// # Panics
    /// If it is of class E: such a batch is named by its slot.
    pub fn id(&self) -> OpId {
        self.stored_as.expect("a batch of class R has a name").id
    }

    /// Queue policy: the slot below which the operation is in none; `None` under the other policy.
    pub fn born(&self) -> Option<Slot> {
        self.stored_as.and_then(|name| name.born)
    }

    /// The fragments that travel, and lie in the log, with its slot: none of class R.
    pub fn slot_fragments(&self) -> impl Iterator<Item = FragmentSpot<'_>> {
        layout::fragments(if self.is_ready() { &[] } else { &self.ops })
    }

    /// Whether it ends leases that have run out: every node checks that before it promises to hold it.
    pub fn is_guarded(&self) -> bool {
        self.ops.iter().any(|op| matches!(op.action, Action::LeaseExpire { .. }))
    }

    /// Takes a batch off the wire or the disk.
    pub fn decode(bytes: &[u8], secrets: &Secrets) -> Result<Rc<Batch>, DecodeError> {
        let (stored_as, encoded) = Name::split(bytes);
        let ops = decode_batch(encoded, &BatchLimits::default())?;
        let batch = Batch::new(bytes.to_vec(), ops, stored_as, secrets);
        // PROTOCOL 6.2-j: what is stored is promised without looking at leases; a change is alone.
        if batch.is_ready() && (batch.is_guarded() || batch.info.is_change) {
            let why = "guarded batches and changes of members cannot be stored before their slot";
            return Err(DecodeError { field: "class", problem: Problem::Inconsistent(why) });
        }
        // PROTOCOL 6.4-f
        if batch.born().is_some() && batch.ops.len() != 1 {
            let why = "a slot of the queue policy holds one operation";
            return Err(DecodeError { field: "class", problem: Problem::Inconsistent(why) });
        }
        Ok(batch)
    }
}

/// Who waits for the outcome of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiter {
    /// A client on the network.
    Client { to: SocketAddr, client: u64, request: u64 },
    /// A task of the api role.
    Api(u64),
    /// This node itself, which re-codes a value.
    Recode(u64),
}

/// What one node gets of a batch: its fragments and their checksums.
#[derive(Debug, Default, Clone)]
pub struct Body {
    pub slices: Vec<Slice>,
    pub crcs: Vec<u8>,
}

/// A sealed batch with everything to spread.
#[derive(Debug)]
pub struct Parcel {
    pub batch: Rc<Batch>,
    /// Body i is for the i-th member of this layout.
    pub layout: u16,
    pub bodies: Vec<Body>,
    /// What is to be stored before it gets a slot, in the same order: of class R.
    pub ahead: Vec<Body>,
    pub waiters: Vec<Waiter>,
    /// Nodes, with their incarnation, that have stored it: of class R.
    pub stored: Vec<(u8, u32)>,
    /// How often its slot was decided null.
    pub voids: u32,
    /// When it was first seen waiting for the cluster, in nanoseconds.
    pub waiting_since: Option<u64>,
}

impl Parcel {
    fn new(batch: Rc<Batch>, layout: u16, bodies: Vec<Body>, waiters: Vec<Waiter>) -> Parcel {
        let (ahead, stored) = (Vec::new(), Vec::new());
        Parcel { batch, layout, bodies, ahead, waiters, stored, voids: 0, waiting_since: None }
    }
}

/// Why a value cannot be taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoBuffers;

/// Encodes operations into batches.
pub struct Builder {
    /// Of the members who will hold what is sealed.
    layout: u16,
    n: usize,
    /// That of the members first, then those of fewer data fragments as they are asked for.
    codecs: Vec<Codec>,
    /// Data fragments of what is described from now on, if it fits the log in so few.
    width: usize,
    /// May some day be cut into fewer data fragments than the members have.
    keeps_margin: bool,
    /// Most bytes of one node's body.
    body_bytes_max: usize,
    inline_bytes_max: usize,
    large_batch_bytes: usize,
    secrets: Secrets,
    pool: Pool,
    open: Option<Open>,
    /// Bytes of the bodies of the next batch of small values.
    small_bytes: usize,
}

struct Open {
    ops: Vec<Op>,
    waiters: Vec<Waiter>,
    bodies: OpenBodies,
    crcs: Vec<Vec<u8>>,
    meta_bytes: usize,
}

enum OpenBodies {
    Small { bufs: Vec<Buf>, used: usize },
    Large { slices: Vec<Vec<Slice>>, value_bytes: usize, body_bytes: usize },
}

/// What an operation stores, besides its key.
pub enum Payload {
    /// No bytes.
    None,
    /// The value; a slice at the start of a block that nobody else views is encoded in place.
    Value(Slice),
    /// Several values, each shorter than [`LARGE_BYTES_MIN`], in the order of the operation.
    Small(Vec<Bytes>),
}

impl Builder {
    pub fn new(
        n: usize,
        codec: Codec,
        inline_bytes_max: usize,
        large_batch_bytes: usize,
        secrets: Secrets,
        pool: Pool,
    ) -> Builder {
        let (layout, width, codecs) = (0, codec.k(), vec![codec]);
        let (open, small_bytes) = (None, SMALL_BATCH_BYTES);
        Builder {
            layout,
            n,
            codecs,
            width,
            keeps_margin: false,
            body_bytes_max: usize::MAX,
            inline_bytes_max,
            large_batch_bytes,
            secrets,
            pool,
            open,
            small_bytes,
        }
    }

    /// What is sealed from now on is of this layout. What is being filled must have been sealed.
    pub fn set_layout(&mut self, layout: u16, n: usize, codec: Codec) {
        assert!(self.open.is_none() || self.layout == layout, "a batch has one layout");
        (self.layout, self.n, self.width) = (layout, n, codec.k());
        self.codecs = vec![codec];
    }

    pub fn layout(&self) -> u16 {
        self.layout
    }

    /// Fragments that rebuild a coded value: the fewest that may do so before it is sealed.
    pub fn k(&self) -> usize {
        if self.keeps_margin { 1 } else { self.codecs[0].k() }
    }

    /// The same batch, which stores nothing, for the members now.
    pub fn fit(&self, parcel: &mut Parcel) {
        parcel.bodies = vec![Body::default(); self.n];
        parcel.layout = self.layout;
    }

    /// Describes a value that operation `op` stores.
    pub fn describe(&self, op: OpId, bytes: &[u8]) -> Value {
        // PROTOCOL 3.1-h, 3.1-i: the code goes with the value; a small one is whole at every node.
        let is_inline = bytes.len() <= self.inline_bytes_max;
        let k = if is_inline { 1 } else { self.width_of(bytes.len()) };
        let mut head = [0; 8];
        let used = bytes.len().min(8);
        head[..used].copy_from_slice(&bytes[..used]);
        Value {
            op,
            len: u32::try_from(bytes.len()).expect("a value is at most 2 MiB"),
            digest: self.secrets.value_digest([bytes]),
            crc: crc32c::crc32c(bytes),
            head,
            k: k as u8,
            n: self.n as u8,
            layout: self.layout,
        }
    }

    /// Adds an operation. A batch that has become full comes back sealed. On `NoBuffers` nothing was
    /// added.
    pub fn add(
        &mut self,
        op: Op,
        payload: Payload,
        waiter: Waiter,
    ) -> Result<Option<Parcel>, NoBuffers> {
        let meta = meta_bytes(&op);
        let large = match &payload {
            Payload::Value(value) if value.len() >= LARGE_BYTES_MIN => value.len(),
            _ => 0,
        };
        let (span, values) = layout::stored_values(&op).fold((0, 0), |(span, count), value| {
            let len = layout::fragment_len(value.len as usize, usize::from(value.k));
            (span + layout::span(len), count + 1)
        });
        let full = self.open.as_ref().is_some_and(|open| !{
            let most = (self.large_batch_bytes, self.body_bytes_max);
            open.takes(large, span, meta + CRC_BYTES * values, most)
        });
        let sealed = if full { self.seal() } else { None };
        let added = match payload {
            Payload::Value(slice) if large > 0 => self.add_large(&op, slice),
            Payload::Value(slice) => self.add_small(&op, &[&slice], span),
            Payload::Small(values) => {
                let values: Vec<&[u8]> = values.iter().map(|value| &**value).collect();
                self.add_small(&op, &values, span)
            }
            Payload::None => self.add_small(&op, &[], span),
        };
        if let Err(error) = added {
            // What was sealed is lost to the caller only if it is not handed over: keep it open.
            return match sealed {
                Some(parcel) => {
                    self.unseal(parcel);
                    Err(error)
                }
                None => Err(error),
            };
        }
        let open = self.open.as_mut().expect("an operation was just added");
        open.ops.push(op);
        open.waiters.push(waiter);
        open.meta_bytes += meta;
        Ok(sealed)
    }

    /// A batch of class R of one operation; what is being filled stays as it is.
    pub fn ready(
        &mut self,
        name: Name,
        op: Op,
        payload: Payload,
        waiter: Waiter,
    ) -> Result<Parcel, NoBuffers> {
        let kept = self.open.take();
        // There are many of these at a time: none takes more than it needs.
        self.small_bytes = layout::body_len(std::slice::from_ref(&op)).max(1);
        let added = self.add(op, payload, waiter);
        self.small_bytes = SMALL_BATCH_BYTES;
        let open = std::mem::replace(&mut self.open, kept);
        added?;
        Ok(self.sealed(open.expect("an operation was just added"), Some(name)))
    }

    /// A batch of one operation that stores nothing; what is being filled stays as it is.
    pub fn alone(&self, op: Op, waiter: Option<Waiter>) -> Parcel {
        let mut bytes = Vec::new();
        let ops = vec![op];
        encode_batch(&ops, &mut bytes);
        let batch = Batch::new(bytes, ops, None, &self.secrets);
        let bodies = vec![Body::default(); self.n];
        let waiters = waiter.into_iter().collect();
        Parcel::new(batch, self.layout, bodies, waiters)
    }

    /// Closes the batch that is being filled.
    pub fn seal(&mut self) -> Option<Parcel> {
        let open = self.open.take()?;
        Some(self.sealed(open, None))
    }

    fn sealed(&self, open: Open, stored_as: Option<Name>) -> Parcel {
        let mut bytes = Vec::with_capacity(open.meta_bytes + QUEUED_BYTES);
        stored_as.iter().for_each(|name| name.put(&mut bytes));
        encode_batch(&open.ops, &mut bytes);
        let batch = Batch::new(bytes, open.ops, stored_as, &self.secrets);
        let slices: Vec<Vec<Slice>> = match open.bodies {
            OpenBodies::Small { bufs, used } => bufs
                .into_iter()
                .map(|mut buf| {
                    buf.set_len(used);
                    if used == 0 { Vec::new() } else { vec![buf.freeze()] }
                })
                .collect(),
            OpenBodies::Large { slices, .. } => slices,
        };
        let bodies = slices.into_iter().zip(open.crcs);
        let bodies: Vec<Body> = bodies.map(|(slices, crcs)| Body { slices, crcs }).collect();
        let (bodies, ahead) = match stored_as {
            Some(_) => (vec![Body::default(); self.n], bodies),
            None => (bodies, Vec::new()),
        };
        Parcel { ahead, ..Parcel::new(batch, self.layout, bodies, open.waiters) }
    }

    /// Puts a batch that was just sealed back, closed to small additions.
    fn unseal(&mut self, parcel: Parcel) {
        let batch = Rc::try_unwrap(parcel.batch).expect("nobody else has seen the batch");
        let (slices, crcs) = parcel.bodies.into_iter().map(|body| (body.slices, body.crcs)).unzip();
        let (value_bytes, body_bytes) = (usize::MAX / 2, 0);
        let bodies = OpenBodies::Large { slices, value_bytes, body_bytes };
        let meta_bytes = META_BYTES_MAX;
        self.open =
            Some(Open { ops: batch.ops, waiters: parcel.waiters, bodies, crcs, meta_bytes });
    }

    /// `span`: bytes that all of the values take in a body.
    fn add_small(&mut self, op: &Op, values: &[&[u8]], span: usize) -> Result<(), NoBuffers> {
        if self.open.is_none() {
            let mut bufs = Vec::with_capacity(self.n);
            for _ in 0..self.n {
                bufs.push(self.pool.get(self.small_bytes).ok_or(NoBuffers)?);
            }
            let bodies = OpenBodies::Small { bufs, used: 0 };
            self.open = Some(Open::new(self.n, bodies));
        }
        let open = self.open.as_mut().expect("opened above");
        let OpenBodies::Small { bufs, used } = &mut open.bodies else {
            unreachable!("a batch of large values takes no small ones")
        };
        let until = *used + span;
        bufs.iter_mut().for_each(|buf| buf.set_len(until));
        let filled = values.iter().filter(|value| !value.is_empty());
        for (stored, value) in layout::stored_values(op).zip(filled) {
            let (from, len) = (*used, layout::fragment_len(value.len(), usize::from(stored.k)));
            *used += layout::span(len);
            for buf in bufs.iter_mut() {
                buf[from + len..*used].fill(0);
            }
            if stored.k == 1 {
                bufs.iter_mut().for_each(|buf| buf[from..from + len].copy_from_slice(value));
            } else {
                let codec = code(&self.codecs, usize::from(stored.k));
                split_small(codec, value, bufs, from, len);
            }
            // PROTOCOL 3.1-g: made with the fragment; travels with it and lies beside it.
            for (buf, crcs) in bufs.iter().zip(&mut open.crcs) {
                crcs.extend_from_slice(&crc32fast::hash(&buf[from..from + len]).to_le_bytes());
            }
        }
        assert_eq!(*used, until, "an operation brings every value that it stores");
        Ok(())
    }

    fn add_large(&mut self, op: &Op, value: Slice) -> Result<(), NoBuffers> {
        let stored = layout::stored_values(op).next().expect("a large value is stored");
        let (k, value_len) = (usize::from(stored.k), value.len());
        let len = layout::fragment_len(value_len, k);
        let data = self.whole_fragments(value, k * len)?;
        let mut fragments: Vec<Slice> =
            (0..k).map(|index| data.slice(index * len..(index + 1) * len)).collect();
        if k == 1 {
            fragments.resize(self.n, data);
        } else if self.n > k {
            let mut parity = self.pool.get((self.n - k) * len).ok_or(NoBuffers)?;
            let data: Vec<&[u8]> = fragments.iter().map(|slice| &**slice).collect();
            let mut parities: Vec<&mut [u8]> = parity.chunks_exact_mut(len).collect();
            let coded = code(&self.codecs, k).encode(&data, &mut parities);
            coded.expect("equal lengths, the code's counts");
            let parity = parity.freeze();
            fragments
                .extend((0..self.n - k).map(|index| parity.slice(index * len..(index + 1) * len)));
        }
        let open = self.open.get_or_insert_with(|| {
            let slices = vec![Vec::new(); self.n];
            Open::new(self.n, OpenBodies::Large { slices, value_bytes: 0, body_bytes: 0 })
        });
        let OpenBodies::Large { slices, value_bytes, body_bytes } = &mut open.bodies else {
            unreachable!("a batch of small values takes no large ones")
        };
        *value_bytes += value_len;
        *body_bytes += len;
        let mut crc = crc32fast::hash(&fragments[0]);
        for (node, fragment) in fragments.into_iter().enumerate() {
            // Of a full copy all fragments are the same bytes.
            if k > 1 && node > 0 {
                crc = crc32fast::hash(&fragment);
            }
            open.crcs[node].extend_from_slice(&crc.to_le_bytes());
            slices[node].push(fragment);
        }
        Ok(())
    }

    /// The value in an aligned block of `total` bytes, zeros behind it: in place if it has a block of
    /// its own that is long enough, else copied once.
    fn whole_fragments(&self, value: Slice, total: usize) -> Result<Slice, NoBuffers> {
        let len = value.len();
        let value = match value.starts_block() {
            true => match value.try_thaw() {
                Ok(mut buf) if buf.capacity() >= total => {
                    buf[len..total].fill(0);
                    buf.set_len(total);
                    return Ok(buf.freeze());
                }
                Ok(buf) => buf.freeze().slice(0..len),
                Err(shared) => shared,
            },
            false => value,
        };
        let mut buf = self.pool.get(total).ok_or(NoBuffers)?;
        buf[..len].copy_from_slice(&value);
        buf[len..].fill(0);
        Ok(buf.freeze())
    }
}

/// At least as many bytes as an operation adds to the encoded metas.
fn meta_bytes(op: &Op) -> usize {
    match &op.action {
        Action::Put { key, content } => {
            let stripes = match content {
                Content::Whole(_) => 0,
                Content::Stripes(stripes) => stripes.len(),
            };
            META_BYTES + key.len() + stripes * crate::wire::value::VALUE_BYTES
        }
        Action::Delete { key } => META_BYTES + key.len(),
        Action::Txn(_) => {
            let mut bytes = Vec::new();
            op.encode(&mut bytes);
            bytes.len()
        }
        _ => META_BYTES,
    }
}

impl Open {
    fn new(n: usize, bodies: OpenBodies) -> Open {
        let crcs = vec![Vec::new(); n];
        Open { ops: Vec::new(), waiters: Vec::new(), bodies, crcs, meta_bytes: 0 }
    }

    /// `large`: bytes of a large value, 0 if the operation stores none. `most`: of all values, and of a body.
    fn takes(&self, large: usize, span: usize, meta: usize, most: (usize, usize)) -> bool {
        if self.ops.len() >= OPS_MAX || self.meta_bytes + meta > META_BYTES_MAX {
            return false;
        }
        match &self.bodies {
            OpenBodies::Small { used, .. } => {
                let bytes = used + span + self.meta_bytes + meta + CRC_BYTES * (self.ops.len() + 1);
                large == 0 && bytes <= SMALL_BATCH_BYTES
            }
            OpenBodies::Large { value_bytes, body_bytes, .. } => {
                large > 0 && value_bytes + large <= most.0 && body_bytes + span <= most.1
            }
        }
    }
}

/// Writes the data fragments of a small value into the first k bodies and the parities into the
/// others.
fn split_small(codec: &Codec, value: &[u8], bufs: &mut [Buf], from: usize, len: usize) {
    const NODES_MAX: usize = racos_protocol::MEMBERS_MAX;
    let k = codec.k();
    let (data_bufs, parity_bufs) = bufs.split_at_mut(k);
    for (index, buf) in data_bufs.iter_mut().enumerate() {
        let piece = &value[(index * len).min(value.len())..((index + 1) * len).min(value.len())];
        let target = &mut buf[from..from + len];
        target[..piece.len()].copy_from_slice(piece);
        target[piece.len()..].fill(0);
    }
    let mut data: [&[u8]; NODES_MAX] = [&[]; NODES_MAX];
    for (slot, buf) in data.iter_mut().zip(data_bufs.iter()) {
        *slot = &buf[from..from + len];
    }
    let mut parity: [&mut [u8]; NODES_MAX] = std::array::from_fn(|_| &mut [] as &mut [u8]);
    let parities = parity_bufs.len();
    for (slot, buf) in parity.iter_mut().zip(parity_bufs.iter_mut()) {
        *slot = &mut buf[from..from + len];
    }
    let coded = codec.encode(&data[..k], &mut parity[..parities]);
    coded.expect("equal lengths, the code's counts");
}

#[cfg(test)]
mod tests {
    use super::*;
    use racos_protocol::Class;

    fn builder(n: usize, k: usize, pool: &Pool) -> Builder {
        let codec = Codec::new(k, n - k).unwrap();
        Builder::new(n, codec, 16, LARGE_BATCH_BYTES, Secrets::new(7), pool.clone())
    }

    fn put(builder: &Builder, counter: u64, bytes: &[u8]) -> Op {
        let id = OpId::new(0, 1, 1, counter);
        let content = Content::Whole(builder.describe(id, bytes));
        let key = format!("key{counter}").into_bytes().into();
        Op { id, author: None, stamp: None, action: Action::Put { key, content } }
    }

    fn waiter() -> Waiter {
        Waiter::Client { to: ([127, 0, 0, 1], 1).into(), client: 1, request: 1 }
    }

    /// The value again from the fragments of the last k nodes.
    fn rebuild(parcel: &Parcel, index: usize, codec: &Codec) -> Vec<u8> {
        let spot = layout::fragments(&parcel.batch.ops).nth(index).unwrap();
        let fragment = |node: usize| {
            let body: Vec<u8> =
                parcel.bodies[node].slices.iter().flat_map(|slice| slice.to_vec()).collect();
            let crc = crc32fast::hash(&body[spot.offset..spot.offset + spot.len]);
            assert_eq!(parcel.bodies[node].crcs[index * 4..index * 4 + 4], crc.to_le_bytes());
            body[spot.offset..spot.offset + spot.len].to_vec()
        };
        let n = parcel.bodies.len();
        if spot.value.k == 1 {
            let mut value = fragment(n - 1);
            value.truncate(spot.value.len as usize);
            return value;
        }
        let k = codec.k();
        let held: Vec<(usize, Vec<u8>)> = (n - k..n).map(|node| (node, fragment(node))).collect();
        let present: Vec<(usize, &[u8])> = held.iter().map(|(i, bytes)| (*i, &bytes[..])).collect();
        let mut out: Vec<Vec<u8>> =
            (0..k).map(|i| if i < n - k { vec![0; spot.len] } else { fragment(i) }).collect();
        let wanted: Vec<usize> = (0..k.min(n - k)).collect();
        let missing = out.iter_mut().take(wanted.len());
        let mut outs: Vec<&mut [u8]> = missing.map(|bytes| &mut bytes[..]).collect();
        codec.rebuild(&present, &wanted, &mut outs).unwrap();
        let mut value = out.concat();
        value.truncate(spot.value.len as usize);
        value
    }

    /// tests PROTOCOL 3.1-h, 3.1-i
    #[test]
    fn every_value_of_a_batch_comes_back_from_any_k_bodies() {
        let pool = Pool::new(64 << 20);
        for (n, k) in [(1, 1), (3, 1), (5, 3), (5, 2), (9, 3)] {
            let mut builder = builder(n, k, &pool);
            let codec = Codec::new(k, n - k).unwrap();
            let lens = [1, 16, 17, 0, 1300, 4096, 32767, 32768, 133_333, 5];
            let values: Vec<Vec<u8>> =
                lens.iter().map(|len| (0..*len).map(|i| (i * 31 + len) as u8).collect()).collect();
            let mut parcels = Vec::new();
            for (counter, value) in values.iter().enumerate() {
                let op = put(&builder, counter as u64, value);
                let slice = pool.copy(value).unwrap();
                let sealed = builder.add(op, Payload::Value(slice), waiter()).unwrap();
                parcels.extend(sealed);
            }
            parcels.extend(builder.seal());
            let mut stored = values.iter().filter(|value| !value.is_empty());
            for parcel in &parcels {
                let decoded = Batch::decode(&parcel.batch.bytes, &Secrets::new(7)).unwrap();
                assert_eq!(decoded.info, parcel.batch.info);
                for index in 0..layout::fragments(&parcel.batch.ops).count() {
                    let (back, value) = (rebuild(parcel, index, &codec), stored.next().unwrap());
                    assert_eq!(back.len(), value.len(), "({n},{k})");
                    assert!(back == *value, "({n},{k}): {} bytes differ", value.len());
                }
            }
            assert!(stored.next().is_none());
        }
    }

    /// tests PROTOCOL 6.2-j, 5.1-b
    #[test]
    fn a_batch_says_its_class_and_one_that_is_guarded_is_not_stored_first() {
        let (pool, secrets) = (Pool::new(8 << 20), Secrets::new(7));
        let mut builder = builder(5, 3, &pool);
        let (first, large) = (put(&builder, 1, &[1; 100]), put(&builder, 3, &[2; 50_000]));
        builder.add(first, Payload::Value(pool.copy(&[1; 100]).unwrap()), waiter()).unwrap();
        let name = OpId::new(0, 1, 1, 9);
        let payload = Payload::Value(pool.copy(&[2; 50_000]).unwrap());
        let ready = Name { id: name, born: None };
        let ready = builder.ready(ready, large, payload, waiter()).unwrap();
        assert_eq!((ready.batch.ops.len(), ready.batch.id()), (1, name));
        assert_eq!(ready.batch.slot_fragments().count(), 0);
        assert!(ready.bodies.iter().all(|body| body.slices.is_empty()) && ready.ahead.len() == 5);
        let eager = builder.seal().unwrap();
        assert_eq!((eager.batch.ops.len(), eager.batch.slot_fragments().count()), (1, 1));
        for (parcel, class) in [(&ready, Class::Ready), (&eager, Class::Eager)] {
            assert_eq!(Class::of(parcel.batch.info.digest), class);
            let back = Batch::decode(&parcel.batch.bytes, &secrets).unwrap();
            assert_eq!((&back.info, back.is_ready()), (&parcel.batch.info, class == Class::Ready));
        }
        let id = OpId::new(0, 1, 1, 4);
        let expire = Action::LeaseExpire { id: 5 };
        let op = Op { id, author: None, stamp: None, action: expire };
        let mut bytes = Vec::new();
        encode_batch(&[op], &mut bytes);
        assert!(Batch::decode(&bytes, &secrets).unwrap().is_guarded());
        let marked = [&[READY_MARK], &name.0.to_le_bytes()[..], &bytes].concat();
        assert!(Batch::decode(&marked, &secrets).is_err());
    }

    #[test]
    fn a_large_value_is_spread_from_the_block_that_received_it() {
        let pool = Pool::new(8 << 20);
        let (n, k) = (5, 3);
        let mut builder = builder(n, k, &pool);
        let mut received = pool.get(200_000).unwrap();
        received.fill(7);
        let value = received.freeze();
        let (start, used) = (value.as_ptr(), pool.used());
        let op = put(&builder, 1, &value);
        builder.add(op, Payload::Value(value), waiter()).unwrap();
        let parcel = builder.seal().unwrap();
        let len = layout::fragment_len(200_000, k);
        for (node, body) in parcel.bodies.iter().enumerate().take(k) {
            let [fragment] = &body.slices[..] else { panic!("{node}: one fragment") };
            assert_eq!(fragment.as_ptr(), start.wrapping_add(node * len), "{node}: a view");
        }
        // Nothing but the parities takes memory, one block for all of them.
        let parities = &parcel.bodies[k].slices[0];
        assert_eq!(pool.used(), used + parities.block_bytes());
        assert!(parities.starts_block() && parities.block_bytes() >= (n - k) * len);
    }

    /// tests PROTOCOL 3.1-h: k = 1 is a full copy, and nothing is calculated for it.
    #[test]
    fn a_full_copy_is_the_block_that_received_it_at_every_node() {
        let pool = Pool::new(8 << 20);
        let mut builder = builder(5, 1, &pool);
        let mut received = pool.get(204_800).unwrap();
        received.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8);
        let value = received.freeze();
        let (start, used) = (value.as_ptr(), pool.used());
        let op = put(&builder, 1, &value);
        builder.add(op, Payload::Value(value), waiter()).unwrap();
        let parcel = builder.seal().unwrap();
        for (node, body) in parcel.bodies.iter().enumerate() {
            let [copy] = &body.slices[..] else { panic!("{node}: one fragment") };
            assert_eq!((copy.as_ptr(), copy.len()), (start, 204_800), "{node}: the same bytes");
            assert_eq!(body.crcs, crc32fast::hash(copy).to_le_bytes(), "{node}");
        }
        assert_eq!(pool.used(), used, "no parity takes memory");
    }

    #[test]
    fn a_refused_operation_leaves_the_batch_as_it_was() {
        let pool = Pool::new(1 << 20);
        let mut builder = builder(5, 3, &pool);
        let small = put(&builder, 1, &[1; 100]);
        let value = pool.copy(&[1; 100]).unwrap();
        builder.add(small, Payload::Value(value), waiter()).unwrap();
        let big = Pool::new(8 << 20).copy(&vec![2; 1_500_000]).unwrap();
        let op = put(&builder, 2, &big);
        assert!(builder.add(op, Payload::Value(big), waiter()).is_err());
        let parcel = builder.seal().unwrap();
        assert_eq!((parcel.batch.ops.len(), parcel.waiters.len()), (1, 1));
    }
}
