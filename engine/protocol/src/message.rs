//! The words of the protocol: slots, values, ballots and the messages that carry them.

use std::fmt;
use std::rc::Rc;

/// Number of a slot of the log, from 0 (PROTOCOL 3.1).
pub type Slot = u64;
/// A reading of the node's monotonic clock, in nanoseconds.
pub type Nanos = u64;
/// Position of a node in the member list, from 0.
pub type Node = u8;
/// Identifies a batch: its class in the highest bit, then a keyed hash of its encoded metas.
pub type Digest = u128;

/// How a slot is filled (PROTOCOL 6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Class {
    /// E: PROPOSE(1) says that the fragments are durable at its sender.
    Eager,
    /// R: the fragments were durable at enough nodes before the slot was assigned.
    Ready,
}

impl Class {
    const READY_BIT: Digest = 1 << 127;

    /// PROTOCOL 5.1-b: whatever carries the digest carries the class.
    pub fn of(digest: Digest) -> Class {
        if digest & Class::READY_BIT == 0 { Class::Eager } else { Class::Ready }
    }

    /// The digest of a batch of this class whose metas have this hash.
    pub fn mark(self, hash: u128) -> Digest {
        match self {
            Class::Eager => hash & !Class::READY_BIT,
            Class::Ready => hash | Class::READY_BIT,
        }
    }
}

/// A set of nodes, one bit each.
/// PROTOCOL 1-b, 12.1-b, 12.1-c: whoever is counted is a member of such a set, however often it
/// says so.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct NodeSet(pub u64);

impl NodeSet {
    pub const EMPTY: NodeSet = NodeSet(0);

    /// The set of the first `n` nodes.
    pub fn first(n: usize) -> NodeSet {
        NodeSet(if n >= 64 { u64::MAX } else { (1 << n) - 1 })
    }
    pub fn insert(&mut self, node: Node) {
        self.0 |= 1 << node;
    }
    pub fn remove(&mut self, node: Node) {
        self.0 &= !(1 << node);
    }
    pub fn contains(self, node: Node) -> bool {
        self.0 >> node & 1 == 1
    }
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn union(self, other: NodeSet) -> NodeSet {
        NodeSet(self.0 | other.0)
    }
    pub fn without(self, other: NodeSet) -> NodeSet {
        NodeSet(self.0 & !other.0)
    }
    pub fn iter(self) -> impl Iterator<Item = Node> {
        (0..64).filter(move |node| self.contains(*node))
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(self.iter()).finish()
    }
}

/// What a slot can hold: nothing, or the one batch that its owner opened (PROTOCOL 5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
// PROTOCOL 5.1-b: whatever names a batch carries its digest, and in it its class.
pub enum Value {
    Null,
    Batch(Digest),
}

/// What a VOTE says: a value, or `?` with the candidate seen in a STATE, if any (PROTOCOL 5.2); or a `?`
/// of phase 0 that is weak for a candidate, which F* may have decided (5.5-h).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Ballot {
    For(Value),
    Open(Option<Digest>),
    Weak(Digest),
}

impl Ballot {
    /// The candidate that this ballot names.
    pub fn candidate(self) -> Option<Digest> {
        match self {
            Ballot::For(Value::Batch(digest)) | Ballot::Weak(digest) => Some(digest),
            Ballot::Open(candidate) => candidate,
            Ballot::For(Value::Null) => None,
        }
    }

    /// Whether a VOTE of this phase may say so.
    /// PROTOCOL 5.5-h, 5.5-k: phase 0 of a slot of class R alone knows weak votes.
    pub fn is_possible(self, phase: u32) -> bool {
        !matches!(self, Ballot::Weak(of) if phase > 0 || Class::of(of) == Class::Eager)
    }
}

/// What the core knows of a batch: its name and which keys it touches, by hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchInfo {
    pub digest: Digest,
    /// Hashes of the keys, sorted. A hash that is equal by chance only makes a reader wait.
    pub touches: Rc<[u64]>,
    /// It may change who the members are.
    pub is_change: bool,
}

impl BatchInfo {
    /// Whether a key with this hash may be touched.
    pub fn touches(&self, key_hash: u64) -> bool {
        self.touches.binary_search(&key_hash).is_ok()
    }
}

/// Messages between nodes that the core understands (PROTOCOL 3.2). SPREAD, META, ranges of DECIDE
/// and reads carry bytes and are the engine's; the core sees them as inputs of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Message {
    Propose {
        slot: Slot,
        value: Value,
    },
    /// PROPOSE(s, 0) for every slot of `owner(from)` in `[from, to)`.
    ProposeNull {
        from: Slot,
        to: Slot,
    },
    Vote {
        slot: Slot,
        phase: u32,
        ballot: Ballot,
    },
    State {
        slot: Slot,
        phase: u32,
        value: Value,
    },
    Decide {
        slot: Slot,
        value: Value,
    },
    /// The sender's own slots in `[from, to)` will never be opened.
    Skip {
        from: Slot,
        to: Slot,
    },
    /// Asks for what the receiver said in slot `from + i` for each bit i of `wanted`; with `facts`,
    /// also for a range of decided slots from `from` on.
    Pull {
        from: Slot,
        wanted: u64,
        facts: bool,
    },
    /// Answer to every PULL: all slots below `exec` are executed here, all below `seen` in use.
    Seen {
        exec: Slot,
        seen: Slot,
    },
    /// Asks for the batch of a slot.
    GetMeta {
        slot: Slot,
    },
    /// Queue policy: an operation is stored at D nodes, and in no slot below `below`.
    Ready {
        candidate: Digest,
        below: Slot,
    },
    /// From the owner: it has opened the slot, and the batch, which is large, is on its way.
    Opening {
        slot: Slot,
    },
}
