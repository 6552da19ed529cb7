//! What a client can ask, and what comes back.

use crate::error::ClientError;
use racos_buffer::Slice;
use racos_engine::wire::node::KeyEntry;
use racos_machine::{Action, Revision, Value};

/// An operation to submit.
#[derive(Debug, Clone)]
pub enum Op {
    /// Store the value; one larger than a stripe is stored as several and appears at once.
    Put {
        key: Vec<u8>,
        value: Slice,
    },
    Delete {
        key: Vec<u8>,
    },
    /// Fetch the value in one piece, at most 128 MiB.
    Get {
        key: Vec<u8>,
    },
    /// Fetch the value if it is one stripe, else the descriptors of its stripes.
    GetDescribed {
        key: Vec<u8>,
    },
    /// Fetch one stripe that [`Op::GetDescribed`] described.
    GetStripe {
        value: Value,
    },
    /// Store one stripe; no key shows it until [`Op::PutStripes`] names it.
    Part {
        value: Slice,
    },
    /// Make stripes stored before visible as the key's value.
    PutStripes {
        key: Vec<u8>,
        stripes: Vec<Value>,
    },
    /// Keys from `from` (inclusive) up to `to`, at most `limit` of them.
    List {
        from: Vec<u8>,
        to: Option<Vec<u8>>,
        limit: u32,
    },
    /// A node's report, as JSON.
    Status,
    /// Change who the members are: REPLACE, RECONF, or that the disk of one that left is lost.
    Members {
        action: Action,
    },
    /// What such a change, forced, would put at risk, behind this version.
    AtRisk {
        action: Action,
        after: (Vec<u8>, Revision),
    },
}

impl Op {
    /// The key that it reads or writes, if it is one.
    pub fn key(&self) -> Option<&[u8]> {
        match self {
            Op::Put { key, .. }
            | Op::Delete { key }
            | Op::Get { key }
            | Op::GetDescribed { key }
            | Op::PutStripes { key, .. } => Some(key),
            _ => None,
        }
    }
}

/// Which node an operation is sent to; numbers are places in the list of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Turn by turn, around nodes that do not answer.
    Any,
    /// This one first, then the others.
    Prefer(usize),
    /// This one or none.
    Only(usize),
}

impl Route {
    /// The node that is asked for; the first one if it does not matter.
    pub(crate) fn wanted(self) -> usize {
        match self {
            Route::Any => 0,
            Route::Prefer(place) | Route::Only(place) => place,
        }
    }
}

/// Names a submitted operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What came of an operation that succeeded.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A write took effect at this revision; a delete of an absent key has `changes` 0.
    Done {
        revision: u64,
        changes: u32,
    },
    /// A stripe was stored.
    Stored {
        value: Value,
    },
    NotFound,
    /// The bytes may be a view of a receive buffer, which they pin: copy what is kept.
    Value {
        revision: u64,
        bytes: Slice,
    },
    Stripes {
        revision: u64,
        stripes: Vec<Value>,
    },
    Keys {
        entries: Vec<KeyEntry>,
        more: bool,
    },
    Status {
        json: Slice,
    },
    AtRisk {
        entries: Vec<KeyEntry>,
        next: Option<(Vec<u8>, Revision)>,
    },
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    pub ticket: Ticket,
    /// The endpoint that answered last, or that was asked last.
    pub endpoint: usize,
    pub result: Result<Answer, ClientError>,
    /// The key and value that were submitted, for reuse.
    pub key: Vec<u8>,
    pub value: Slice,
}
