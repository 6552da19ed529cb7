//! Messages between nodes (PROTOCOL 3.2).

use super::cursor::{Reader, WireError, Writer};
use super::value::{get_value, get_values, put_value};
use racos_machine::{KEY_BYTES_MAX, Value};
use racos_protocol::{Ballot, Digest, Fast, Message, Policy, Slot, Terms, Value as SlotValue};

/// Kinds of frames between nodes.
pub mod kind {
    /// A batch and the receiver's fragments; the head is also the head of the log record.
    pub const SPREAD: u8 = 0x01;
    /// A run of the core's messages.
    pub const CORE: u8 = 0x02;
    /// The batch of a slot.
    pub const META: u8 = 0x03;
    /// A range of decided slots with their batches.
    pub const FACTS: u8 = 0x04;
    pub const READQ: u8 = 0x05;
    pub const READR: u8 = 0x06;
    pub const GETSEG: u8 = 0x07;
    pub const SEG: u8 = 0x08;
    /// As GETSEG, or the asker's own fragment, if the receiver keeps it.
    pub const GETOWN: u8 = 0x1c;
    /// This node cannot store the batch of a slot: its disk is full.
    pub const FULL: u8 = 0x09;
    /// The newest incarnation of the receiver that this node has heard, and its highest boot.
    pub const BOOT: u8 = 0x0a;
    /// The receiver's fragment of an operation is not what its value gives.
    pub const BAD: u8 = 0x0b;
    /// What a node that lags may take instead of the slots that it asked for: the sender's checkpoint.
    pub const SNAPOFFER: u8 = 0x10;
    /// Pieces of a checkpoint, asked for and sent.
    pub const SNAPQ: u8 = 0x11;
    pub const SNAP: u8 = 0x12;
    /// A batch of class R and the receiver's fragments, without a slot: head as in SPREAD.
    pub const STORE: u8 = 0x18;
    /// Name of a batch of the receiver, and 1 if the sender has stored it, 0 if its disk is full.
    pub const STORED: u8 = 0x19;
    /// What the sender has settled of the batches that it let others store.
    pub const FLOOR: u8 = 0x1a;
    /// Queue policy: name of a batch that its owner does not go on with; whoever has stored it says so.
    pub const ASKSTORED: u8 = 0x1b;
    /// Which slots must be executed before a state is linearizable: number of the round.
    pub const PINQ: u8 = 0x20;
    /// The same, and the first slot above all that count.
    pub const PINR: u8 = 0x21;
    /// What the sender reads: how many slots the oldest state was of that it reads; 0: it reads none.
    pub const PIN: u8 = 0x24;
    /// Leases, some of them renewed: number of the round, then (lease, 1 if renewed) each.
    pub const LEASEQ: u8 = 0x22;
    /// The same number, the first slot above all that may end one of them, the epoch,
    /// and their ages.
    pub const LEASER: u8 = 0x23;
    /// Another disk is in the receiver's place: its incarnation.
    pub const REPLACED: u8 = 0x0c;
    /// The last record that the sender has flushed.
    pub const LOGGED: u8 = 0x13;
    /// The receiver's log was longer once: its incarnation, and the last record heard of.
    pub const LONGER: u8 = 0x14;
    /// Hashes of the sender's state: what they are made of, then (exec, hash) each.
    pub const STATES: u8 = 0x15;
    /// The sender's disk shows itself, or asks whether another one is known.
    pub const HELLO: u8 = 0x0d;
    /// What the sender knows of the receiver's disks.
    pub const KNOWN: u8 = 0x0e;
    /// Where clients of other APIs reach the sender, a member that joined: text.
    pub const FACE: u8 = 0x0f;
}

/// Appends one of the core's messages (PROTOCOL 12.1-a: at most 30 bytes).
pub fn put_message(out: &mut Vec<u8>, message: &Message) {
    match *message {
        Message::Propose { slot, value: SlotValue::Batch(digest) } => {
            out.put_u8(1);
            out.put_u64(slot);
            out.put_u128(digest);
        }
        Message::Propose { slot, value: SlotValue::Null } => {
            out.put_u8(2);
            out.put_u64(slot);
        }
        Message::ProposeNull { from, to } => {
            out.put_u8(3);
            out.put_u64(from);
            out.put_u64(to);
        }
        Message::Vote { slot, phase, ballot } => {
            out.put_u8(4);
            out.put_u64(slot);
            out.put_u32(phase);
            put_ballot(out, ballot);
        }
        Message::State { slot, phase, value } => {
            out.put_u8(5);
            out.put_u64(slot);
            out.put_u32(phase);
            put_slot_value(out, value);
        }
        Message::Decide { slot, value } => {
            out.put_u8(6);
            out.put_u64(slot);
            put_slot_value(out, value);
        }
        Message::Skip { from, to } => {
            out.put_u8(7);
            out.put_u64(from);
            out.put_u64(to);
        }
        Message::Pull { from, wanted, facts } => {
            out.put_u8(8);
            out.put_u64(from);
            out.put_u64(wanted);
            out.put_u8(u8::from(facts));
        }
        Message::Seen { exec, seen } => {
            out.put_u8(9);
            out.put_u64(exec);
            out.put_u64(seen);
        }
        Message::GetMeta { slot } => {
            out.put_u8(10);
            out.put_u64(slot);
        }
        Message::Opening { slot } => {
            out.put_u8(11);
            out.put_u64(slot);
        }
        Message::Ready { candidate, below } => {
            out.put_u8(12);
            out.put_u64(below);
            out.put_u128(candidate);
        }
    }
}

/// Takes one of the core's messages (PROTOCOL 1-c: whole and within bounds, or not at all).
pub fn get_message(from: &mut Reader<'_>) -> Result<Message, WireError> {
    let tag = from.u8("message tag")?;
    let slot = from.u64("slot")?;
    Ok(match tag {
        1 => Message::Propose { slot, value: SlotValue::Batch(from.u128("digest")?) },
        2 => Message::Propose { slot, value: SlotValue::Null },
        3 => Message::ProposeNull { from: slot, to: from.u64("to")? },
        4 => {
            let phase = from.u32("phase")?;
            Message::Vote { slot, phase, ballot: get_ballot(from, phase)? }
        }
        5 => {
            let phase = from.u32("phase")?;
            Message::State { slot, phase, value: get_slot_value(from)? }
        }
        6 => Message::Decide { slot, value: get_slot_value(from)? },
        7 => Message::Skip { from: slot, to: from.u64("to")? },
        8 => {
            let wanted = from.u64("wanted")?;
            let facts = match from.u8("facts")? {
                0 => false,
                1 => true,
                _ => return Err(WireError { field: "facts" }),
            };
            Message::Pull { from: slot, wanted, facts }
        }
        9 => Message::Seen { exec: slot, seen: from.u64("seen")? },
        10 => Message::GetMeta { slot },
        11 => Message::Opening { slot },
        12 => Message::Ready { candidate: from.u128("candidate")?, below: slot },
        _ => return Err(WireError { field: "message tag" }),
    })
}

pub fn put_slot_value(out: &mut Vec<u8>, value: SlotValue) {
    match value {
        SlotValue::Null => out.put_u8(0),
        SlotValue::Batch(digest) => {
            out.put_u8(1);
            out.put_u128(digest);
        }
    }
}

pub fn get_slot_value(from: &mut Reader<'_>) -> Result<SlotValue, WireError> {
    match from.u8("value")? {
        0 => Ok(SlotValue::Null),
        1 => Ok(SlotValue::Batch(from.u128("digest")?)),
        _ => Err(WireError { field: "value" }),
    }
}

pub fn put_ballot(out: &mut Vec<u8>, ballot: Ballot) {
    match ballot {
        Ballot::For(value) => put_slot_value(out, value),
        Ballot::Open(None) => out.put_u8(2),
        Ballot::Open(Some(digest)) => {
            out.put_u8(3);
            out.put_u128(digest);
        }
        Ballot::Weak(digest) => {
            out.put_u8(4);
            out.put_u128(digest);
        }
    }
}

/// What a VOTE of this phase says.
pub fn get_ballot(from: &mut Reader<'_>, phase: u32) -> Result<Ballot, WireError> {
    let ballot = match from.u8("ballot")? {
        0 => Ballot::For(SlotValue::Null),
        1 => Ballot::For(SlotValue::Batch(from.u128("digest")?)),
        2 => Ballot::Open(None),
        3 => Ballot::Open(Some(from.u128("digest")?)),
        4 => Ballot::Weak(from.u128("digest")?),
        _ => return Err(WireError { field: "ballot" }),
    };
    // PROTOCOL 5.5-h, 5.5-k: nobody says anything else.
    match ballot.is_possible(phase) {
        true => Ok(ballot),
        false => Err(WireError { field: "ballot" }),
    }
}

/// Head of a SPREAD and of the log record that it becomes: slot, digest, batch, and one CRC for
/// each fragment of this receiver, in the order of the operations that have one.
pub struct SpreadHead<'a> {
    pub slot: Slot,
    pub digest: Digest,
    pub batch: &'a [u8],
    pub crcs: &'a [u8],
}

impl<'a> SpreadHead<'a> {
    pub fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.slot);
        out.put_u128(self.digest);
        out.put_long(self.batch);
        out.extend_from_slice(self.crcs);
    }

    pub fn get(bytes: &'a [u8]) -> Result<SpreadHead<'a>, WireError> {
        let mut from = Reader::new(bytes);
        Ok(SpreadHead {
            slot: from.u64("slot")?,
            digest: from.u128("digest")?,
            batch: from.long("batch")?,
            crcs: from.rest(),
        })
    }

    /// CRC of the fragment with this number, if the head has that many.
    pub fn crc(&self, index: usize) -> Option<u32> {
        let bytes = self.crcs.get(index * 4..index * 4 + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
    }
}

/// What a read asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    Key(Vec<u8>),
    /// Keys from `from` up to but not including `to`, at most `limit`.
    Range {
        from: Vec<u8>,
        to: Option<Vec<u8>>,
        limit: u32,
    },
}

/// READQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadQuestion<'a> {
    pub read: u64,
    /// Send the fragment along.
    pub fragment: bool,
    /// The reader's own newest operation on the key: it need not be described again.
    pub guess: u128,
    pub query: &'a Query,
}

impl ReadQuestion<'_> {
    pub fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.read);
        out.put_u128(self.guess);
        let range = matches!(self.query, Query::Range { .. });
        out.put_u8(u8::from(self.fragment) | u8::from(range) << 1);
        match self.query {
            Query::Key(key) => out.extend_from_slice(key),
            Query::Range { from, to, limit } => {
                out.put_u32(*limit);
                out.put_short(from);
                out.put_u8(u8::from(to.is_some()));
                out.extend_from_slice(to.as_deref().unwrap_or_default());
            }
        }
    }
}

/// A READQ taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct ReadAsked<'a> {
    pub read: u64,
    pub guess: u128,
    pub fragment: bool,
    pub query: Asked<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    Key(&'a [u8]),
    Range { from: &'a [u8], to: Option<&'a [u8]>, limit: u32 },
}

pub fn get_question(bytes: &[u8]) -> Result<ReadAsked<'_>, WireError> {
    let mut from = Reader::new(bytes);
    let read = from.u64("read")?;
    let guess = from.u128("guess")?;
    let flags = from.u8("flags")?;
    let query = match flags >> 1 {
        0 => Asked::Key(from.rest()),
        1 => {
            let limit = from.u32("limit")?;
            let first = from.short("range start")?;
            let bounded = from.u8("bounded")? != 0;
            let to = bounded.then(|| from.rest());
            from.end("range end")?;
            Asked::Range { from: first, to, limit }
        }
        _ => return Err(WireError { field: "flags" }),
    };
    let longest = match &query {
        Asked::Key(key) => key.len(),
        Asked::Range { from, to, .. } => from.len().max(to.map_or(0, <[u8]>::len)),
    };
    if longest > KEY_BYTES_MAX {
        return Err(WireError { field: "key" });
    }
    Ok(ReadAsked { read, guess, fragment: flags & 1 == 1, query })
}

/// A version as a reader needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub revision: u64,
    pub values: Vec<Value>,
}

/// What a node knows of the keys of a read, as of its exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Absent,
    /// The version whose operation the reader guessed.
    AsGuessed,
    Version(Version),
    /// Keys of a range with their versions' revision and length; `more`: the limit cut it.
    Keys {
        keys: Vec<KeyEntry>,
        more: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEntry {
    pub key: Vec<u8>,
    pub revision: u64,
    pub len: u64,
}

/// Head of a READR. The fragment, or for a range the keys, or for several stripes their
/// descriptors, are the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerHead {
    pub read: u64,
    pub exec: Slot,
    pub mark: Option<Slot>,
    /// The newest change of the members that the sender has executed.
    pub epoch: u32,
    pub form: AnswerForm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerForm {
    Absent,
    /// As guessed; the body is the fragment, or empty.
    AsGuessed,
    /// One value; the body is its fragment, or empty.
    Value {
        revision: u64,
        value: Value,
    },
    /// Several stripes, described in the body.
    Stripes {
        revision: u64,
    },
    /// Keys, in the body.
    Keys {
        more: bool,
    },
}

impl AnswerHead {
    pub fn put(&self, out: &mut Vec<u8>) {
        out.put_u64(self.read);
        out.put_u64(self.exec);
        out.put_u64(self.mark.map_or(0, |mark| mark + 1));
        out.put_u32(self.epoch);
        match self.form {
            AnswerForm::Absent => out.put_u8(0),
            AnswerForm::AsGuessed => out.put_u8(1),
            AnswerForm::Value { revision, value } => {
                out.put_u8(2);
                out.put_u64(revision);
                put_value(out, &value);
            }
            AnswerForm::Stripes { revision } => {
                out.put_u8(3);
                out.put_u64(revision);
            }
            AnswerForm::Keys { more } => {
                out.put_u8(4);
                out.put_u8(u8::from(more));
            }
        }
    }

    pub fn get(bytes: &[u8]) -> Result<AnswerHead, WireError> {
        let mut from = Reader::new(bytes);
        let read = from.u64("read")?;
        let exec = from.u64("exec")?;
        let mark = from.u64("mark")?.checked_sub(1);
        let epoch = from.u32("epoch")?;
        let form = match from.u8("form")? {
            0 => AnswerForm::Absent,
            1 => AnswerForm::AsGuessed,
            2 => {
                let revision = from.u64("revision")?;
                AnswerForm::Value { revision, value: get_value(&mut from)? }
            }
            3 => AnswerForm::Stripes { revision: from.u64("revision")? },
            4 => AnswerForm::Keys { more: from.u8("more")? != 0 },
            _ => return Err(WireError { field: "form" }),
        };
        from.end("answer")?;
        Ok(AnswerHead { read, exec, mark, epoch, form })
    }
}

/// Descriptors of stripes, as a body.
pub fn get_stripes(body: &[u8]) -> Result<Vec<Value>, WireError> {
    get_values(body)
}

pub fn put_keys(out: &mut Vec<u8>, key: &[u8], revision: u64, len: u64) {
    out.put_u64(revision);
    out.put_u64(len);
    out.put_short(key);
}

pub fn get_keys(body: &[u8]) -> Result<Vec<KeyEntry>, WireError> {
    let mut from = Reader::new(body);
    let mut keys = Vec::new();
    while !from.is_empty() {
        let revision = from.u64("revision")?;
        let len = from.u64("length")?;
        keys.push(KeyEntry { key: from.short("key")?.to_vec(), revision, len });
    }
    Ok(keys)
}

/// How a SEG answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentAnswer {
    /// The fragment is the body.
    Here,
    /// This node should have it and does not, or its copy is damaged.
    Missing,
    /// No version that this node knows uses the value: it was replaced, deleted or given up in a slot
    /// below this node's exec, or is not executed here yet.
    Gone { exec: Slot },
    /// The body is the fragment of who asked, kept for it, with the checksum that its owner computed.
    Hosted { crc: u32 },
}

/// Head of a GETSEG (and, with an answer, of a SEG).
pub fn put_segment(out: &mut Vec<u8>, read: u64, op: u128, answer: Option<SegmentAnswer>) {
    out.put_u64(read);
    out.put_u128(op);
    match answer {
        None => {}
        Some(SegmentAnswer::Here) => out.put_u8(0),
        Some(SegmentAnswer::Missing) => out.put_u8(1),
        Some(SegmentAnswer::Gone { exec }) => {
            out.put_u8(2);
            out.put_u64(exec);
        }
        Some(SegmentAnswer::Hosted { crc }) => {
            out.put_u8(3);
            out.put_u32(crc);
        }
    }
}

pub fn get_segment_question(bytes: &[u8]) -> Result<(u64, u128), WireError> {
    let mut from = Reader::new(bytes);
    let asked = (from.u64("read")?, from.u128("op")?);
    from.end("segment question")?;
    Ok(asked)
}

pub fn get_segment_answer(bytes: &[u8]) -> Result<(u64, u128, SegmentAnswer), WireError> {
    let mut from = Reader::new(bytes);
    let (read, op) = (from.u64("read")?, from.u128("op")?);
    let answer = match from.u8("answer")? {
        0 => SegmentAnswer::Here,
        1 => SegmentAnswer::Missing,
        2 => SegmentAnswer::Gone { exec: from.u64("exec")? },
        3 => SegmentAnswer::Hosted { crc: from.u32("checksum")? },
        _ => return Err(WireError { field: "answer" }),
    };
    from.end("segment answer")?;
    Ok((read, op, answer))
}

/// One byte of a HELLO, and of a note: whether a disk takes part, and on which terms. Those of a node that knew
/// of no others are the usual ones.
pub fn put_part(out: &mut Vec<u8>, takes_part: bool, terms: Terms) {
    let is_queue = u8::from(terms.policy == Policy::Queue);
    let is_least = u8::from(terms.fast == Fast::Least);
    out.put_u8(u8::from(takes_part) | is_queue << 1 | is_least << 2);
}

pub fn get_part(from: &mut Reader<'_>) -> Result<(bool, Terms), WireError> {
    let part = from.u8("takes part")?;
    if part > 7 {
        return Err(WireError { field: "takes part" });
    }
    let policy = if part & 2 == 0 { Policy::OwnerSlots } else { Policy::Queue };
    let fast = if part & 4 == 0 { Fast::Support } else { Fast::Least };
    Ok((part & 1 == 1, Terms { policy, fast }))
}

/// Head of HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The sender's disk; 0: it only asks.
    pub disk: u128,
    pub takes_part: bool,
    pub terms: Terms,
    /// The last record of its log when the sender started.
    pub found: u64,
}

impl Hello {
    /// Of one that has no disk yet.
    pub fn question(terms: Terms) -> Hello {
        Hello { disk: 0, takes_part: false, terms, found: 0 }
    }

    pub fn put(&self, out: &mut Vec<u8>) {
        out.put_u128(self.disk);
        put_part(out, self.takes_part, self.terms);
        out.put_u64(self.found);
    }

    pub fn get(bytes: &[u8]) -> Result<Hello, WireError> {
        let mut from = Reader::new(bytes);
        let disk = from.u128("disk")?;
        let (takes_part, terms) = get_part(&mut from)?;
        let found = from.u64("found")?;
        from.end("hello")?;
        Ok(Hello { disk, takes_part, terms, found })
    }
}

/// Head of KNOWN: which disk it is about, by the receiver's HELLO, and what the sender knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub incarnation: u32,
    pub disk: u128,
    pub known: KnownAs,
}

/// What a node knows of the disks of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownAs {
    /// None.
    Nothing,
    /// This one, durably, and no other from the founding on.
    OnlyThis,
    /// This one, durably; but it does not remember the founding.
    ThisNow,
    /// Another one.
    Other(u128),
    /// It does not matter: the sender has these terms, and the disk others.
    OtherTerms(Terms),
}

impl Known {
    pub fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.incarnation);
        out.put_u128(self.disk);
        match self.known {
            KnownAs::Nothing => out.put_u8(0),
            KnownAs::OnlyThis => out.put_u8(1),
            KnownAs::ThisNow => out.put_u8(2),
            KnownAs::Other(disk) => {
                out.put_u8(3);
                out.put_u128(disk);
            }
            KnownAs::OtherTerms(terms) => {
                out.put_u8(4);
                put_part(out, false, terms);
            }
        }
    }

    pub fn get(bytes: &[u8]) -> Result<Known, WireError> {
        let mut from = Reader::new(bytes);
        let (incarnation, disk) = (from.u32("incarnation")?, from.u128("disk")?);
        let known = match from.u8("known as")? {
            0 => KnownAs::Nothing,
            1 => KnownAs::OnlyThis,
            2 => KnownAs::ThisNow,
            3 => KnownAs::Other(from.u128("other disk")?),
            4 => KnownAs::OtherTerms(get_part(&mut from)?.1),
            _ => return Err(WireError { field: "known as" }),
        };
        from.end("known")?;
        Ok(Known { incarnation, disk, known })
    }
}

/// Head of PIN. A state of no slots holds no value.
pub fn put_pin(out: &mut Vec<u8>, pin: Option<Slot>) {
    out.put_u64(pin.unwrap_or(0));
}

pub fn get_pin(from: &mut Reader<'_>) -> Result<Option<Slot>, WireError> {
    let pin = from.u64("pin")?;
    from.end("pin")?;
    Ok((pin > 0).then_some(pin))
}

/// Head of FACTS: the sender's exec and the first slot. The body holds one entry a slot: a length,
/// 0 for null, then the batch.
pub fn put_facts_head(out: &mut Vec<u8>, exec: Slot, from: Slot) {
    out.put_u64(exec);
    out.put_u64(from);
}

pub fn get_facts_head(bytes: &[u8]) -> Result<(Slot, Slot), WireError> {
    let mut from = Reader::new(bytes);
    let head = (from.u64("exec")?, from.u64("first slot")?);
    from.end("facts head")?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use racos_protocol::Class;

    fn slot_value() -> impl Strategy<Value = SlotValue> {
        prop_oneof![Just(SlotValue::Null), any::<u128>().prop_map(SlotValue::Batch)]
    }

    fn ballot() -> impl Strategy<Value = Ballot> {
        prop_oneof![
            slot_value().prop_map(Ballot::For),
            any::<Option<u128>>().prop_map(Ballot::Open),
            any::<u128>().prop_map(|hash| Ballot::Weak(Class::Ready.mark(hash)))
        ]
    }

    /// Weak in phase 0 only.
    fn vote() -> impl Strategy<Value = (u32, Ballot)> {
        (any::<u32>(), ballot())
            .prop_map(|(phase, ballot)| (if ballot.is_possible(phase) { phase } else { 0 }, ballot))
    }

    fn message() -> impl Strategy<Value = Message> {
        let (slot, to) = (any::<u64>(), any::<u64>());
        prop_oneof![
            (slot, slot_value()).prop_map(|(slot, value)| Message::Propose { slot, value }),
            (slot, to).prop_map(|(from, to)| Message::ProposeNull { from, to }),
            (slot, vote()).prop_map(|(slot, (phase, ballot))| Message::Vote {
                slot,
                phase,
                ballot
            }),
            (slot, any::<u32>(), slot_value()).prop_map(|(slot, phase, value)| Message::State {
                slot,
                phase,
                value
            }),
            (slot, slot_value()).prop_map(|(slot, value)| Message::Decide { slot, value }),
            (slot, any::<u64>()).prop_map(|(from, to)| Message::Skip { from, to }),
            (slot, any::<u64>(), any::<bool>()).prop_map(|(from, wanted, facts)| Message::Pull {
                from,
                wanted,
                facts
            }),
            (slot, any::<u64>()).prop_map(|(exec, seen)| Message::Seen { exec, seen }),
            slot.prop_map(|slot| Message::GetMeta { slot }),
            slot.prop_map(|slot| Message::Opening { slot }),
            (slot, any::<u128>())
                .prop_map(|(below, candidate)| Message::Ready { candidate, below }),
        ]
    }

    proptest! {
        /// tests PROTOCOL 5.1-b, 12.1-a
        #[test]
        fn messages_survive_the_wire(messages in proptest::collection::vec(message(), 0..20)) {
            let mut bytes = Vec::new();
            for message in &messages {
                let before = bytes.len();
                put_message(&mut bytes, message);
                prop_assert!(bytes.len() - before <= 30, "a message fits any datagram");
            }
            let mut from = Reader::new(&bytes);
            for message in &messages {
                prop_assert_eq!(get_message(&mut from).unwrap(), *message);
            }
            prop_assert!(from.is_empty());
        }

        /// tests PROTOCOL 1-c
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = get_message(&mut Reader::new(&bytes));
            let _ = SpreadHead::get(&bytes);
            let _ = get_question(&bytes);
            let _ = AnswerHead::get(&bytes);
            let _ = get_stripes(&bytes);
            let _ = get_keys(&bytes);
            let _ = get_segment_question(&bytes);
            let _ = get_segment_answer(&bytes);
            let _ = get_facts_head(&bytes);
            let _ = get_pin(&mut Reader::new(&bytes));
            let _ = Hello::get(&bytes);
            let _ = Known::get(&bytes);
        }

        /// tests PROTOCOL 5.5-h, 5.5-k, 1-c
        #[test]
        fn a_weak_vote_is_of_phase_0_and_of_class_r(hash: u128, slot: u64, phase in 1u32..) {
            let (weak, eager) = (Ballot::Weak(Class::Ready.mark(hash)), Class::Eager.mark(hash));
            for (phase, ballot) in [(phase, weak), (0, Ballot::Weak(eager)), (phase, Ballot::Weak(eager))] {
                let mut bytes = Vec::new();
                put_message(&mut bytes, &Message::Vote { slot, phase, ballot });
                let refused = get_message(&mut Reader::new(&bytes));
                prop_assert_eq!(refused, Err(WireError { field: "ballot" }));
            }
        }

        /// tests PROTOCOL 5.5-l: what older nodes wrote means the usual terms.
        #[test]
        fn a_byte_of_terms_is_one_of_eight(byte: u8) {
            let got = get_part(&mut Reader::new(&[byte]));
            prop_assert_eq!(got.is_ok(), byte < 8);
            if let Ok((takes_part, terms)) = got {
                let mut bytes = Vec::new();
                put_part(&mut bytes, takes_part, terms);
                prop_assert_eq!(&bytes[..], &[byte][..]);
                prop_assert_eq!(terms == Terms::default(), byte < 2);
            }
        }

        #[test]
        fn disks_that_show_themselves_survive_the_wire(
            disk: u128, takes_part: bool, incarnation: u32, other: u128
        ) {
            let mut bytes = Vec::new();
            let policy = if other % 2 == 0 { Policy::OwnerSlots } else { Policy::Queue };
            let fast = if other % 3 == 0 { Fast::Support } else { Fast::Least };
            let terms = Terms { policy, fast };
            let hello = Hello { disk, takes_part, terms, found: disk as u64 };
            hello.put(&mut bytes);
            prop_assert_eq!(Hello::get(&bytes), Ok(hello));
            let apart = KnownAs::OtherTerms(terms);
            let all =
                [KnownAs::Nothing, KnownAs::OnlyThis, KnownAs::ThisNow, KnownAs::Other(other), apart];
            for known in all {
                let said = Known { incarnation, disk, known };
                bytes.clear();
                said.put(&mut bytes);
                prop_assert_eq!(Known::get(&bytes), Ok(said));
            }
        }

        #[test]
        fn questions_survive_the_wire(
            read: u64, guess: u128, fragment: bool,
            from in proptest::collection::vec(any::<u8>(), 1..50),
            to in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..50)),
            limit: u32, range: bool,
        ) {
            let query = match range {
                true => Query::Range { from: from.clone(), to: to.clone(), limit },
                false => Query::Key(from.clone()),
            };
            let mut bytes = Vec::new();
            ReadQuestion { read, fragment, guess, query: &query }.put(&mut bytes);
            let asked = get_question(&bytes).unwrap();
            prop_assert_eq!((asked.read, asked.guess, asked.fragment), (read, guess, fragment));
            match asked.query {
                Asked::Key(key) => prop_assert_eq!(query, Query::Key(key.to_vec())),
                Asked::Range { from, to, limit } => prop_assert_eq!(
                    query,
                    Query::Range { from: from.to_vec(), to: to.map(<[u8]>::to_vec), limit }
                ),
            }
        }
    }
}
