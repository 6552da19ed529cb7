//! The native API: what clients ask and what nodes answer.
//!
//! Every request names the client (a random number of its own) and the request (a number that the
//! client counts up), so that a repeated datagram is recognised while the request is under way.
//! Writes carry a session stamp, which makes retries exactly once (PROTOCOL 11).

use super::cursor::{Reader, WireError, Writer};
use super::value::{get_value, get_values, put_value};
use racos_machine::{Action, KEY_BYTES_MAX, Op, OpId, Refusal, Revision, SessionId, Stamp, Value};
use std::fmt;

/// Kinds of frames between clients and nodes.
pub mod kind {
    pub const REQUEST: u8 = 0x40;
    pub const REPLY: u8 = 0x41;
}

/// Most keys that one LIST answers.
pub const LIST_LIMIT_MAX: u32 = 1000;

/// What a client asks. A PUT's or PART's value is the body of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    OpenSession {
        window: u32,
    },
    CloseSession {
        session: SessionId,
    },
    /// Store the body under the key.
    Put {
        stamp: Stamp,
        key: Vec<u8>,
    },
    /// Store the body as one stripe of a large value.
    Part {
        stamp: Stamp,
    },
    /// Make stripes stored before visible as one value; their descriptors are the body.
    PutStripes {
        stamp: Stamp,
        key: Vec<u8>,
    },
    Delete {
        stamp: Stamp,
        key: Vec<u8>,
    },
    Get {
        key: Vec<u8>,
    },
    /// The bytes of one stripe that a GET described.
    GetStripe {
        value: Value,
    },
    /// Keys from `from` (inclusive) up to `to`, at most `limit`.
    List {
        from: Vec<u8>,
        to: Option<Vec<u8>>,
        limit: u32,
    },
    Status,
    /// Change who the members are: nothing but what [`changes_members`] admits.
    Members {
        action: Action,
    },
    /// The versions, from the one behind `after` on, of which a change of the members would leave fewer
    /// fragments than a value is made of (PROTOCOL 10-ja).
    AtRisk {
        action: Action,
        after: (Vec<u8>, Revision),
    },
}

impl Request {
    pub fn put(&self, client: u64, request: u64, out: &mut Vec<u8>) {
        out.put_u64(client);
        out.put_u64(request);
        match self {
            Request::OpenSession { window } => {
                out.put_u8(1);
                out.put_u32(*window);
            }
            Request::CloseSession { session } => {
                out.put_u8(2);
                out.put_u64(session.slot);
                out.put_u32(session.position);
            }
            Request::Put { stamp, key } => put_keyed(out, 3, stamp, key),
            Request::Part { stamp } => put_keyed(out, 4, stamp, &[]),
            Request::PutStripes { stamp, key } => put_keyed(out, 5, stamp, key),
            Request::Delete { stamp, key } => put_keyed(out, 6, stamp, key),
            Request::Get { key } => {
                out.put_u8(7);
                out.put_short(key);
            }
            Request::GetStripe { value } => {
                out.put_u8(8);
                put_value(out, value);
            }
            Request::List { from, to, limit } => {
                out.put_u8(9);
                out.put_u32(*limit);
                out.put_short(from);
                out.put_u8(u8::from(to.is_some()));
                out.put_short(to.as_deref().unwrap_or_default());
            }
            Request::Status => out.put_u8(10),
            Request::Members { action } => {
                out.put_u8(12);
                put_change(out, action);
            }
            Request::AtRisk { action, after: (key, revision) } => {
                out.put_u8(13);
                put_place(out, key, *revision);
                put_change(out, action);
            }
        }
    }

    /// Client number, request number, and what is asked.
    pub fn get(bytes: &[u8]) -> Result<(u64, u64, Request), WireError> {
        let mut from = Reader::new(bytes);
        let (client, request) = (from.u64("client")?, from.u64("request")?);
        let asked = match from.u8("request kind")? {
            1 => Request::OpenSession { window: from.u32("window")? },
            2 => Request::CloseSession { session: get_session(&mut from)? },
            3 => {
                let (stamp, key) = get_keyed(&mut from)?;
                Request::Put { stamp, key }
            }
            4 => Request::Part { stamp: get_keyed(&mut from)?.0 },
            5 => {
                let (stamp, key) = get_keyed(&mut from)?;
                Request::PutStripes { stamp, key }
            }
            6 => {
                let (stamp, key) = get_keyed(&mut from)?;
                Request::Delete { stamp, key }
            }
            7 => Request::Get { key: get_key(&mut from)? },
            8 => Request::GetStripe { value: get_value(&mut from)? },
            9 => {
                let limit = from.u32("limit")?;
                let first = get_key(&mut from)?;
                let bounded = from.u8("bounded")? != 0;
                let end = get_key(&mut from)?;
                Request::List { from: first, to: bounded.then_some(end), limit }
            }
            10 => Request::Status,
            12 => Request::Members { action: get_change(&mut from)? },
            13 => {
                let after = get_place(&mut from)?;
                Request::AtRisk { action: get_change(&mut from)?, after }
            }
            _ => return Err(WireError { field: "request kind" }),
        };
        from.end("request")?;
        Ok((client, request, asked))
    }
}

/// Whether an operation is one that a client may ask for by [`Request::Members`].
pub fn changes_members(action: &Action) -> bool {
    matches!(
        action,
        Action::ReplaceNode(_)
            | Action::Reconfigure(_)
            | Action::MoveNode { .. }
            | Action::NodeLost { .. }
    )
}

fn put_change(out: &mut Vec<u8>, action: &Action) {
    Op { id: OpId(0), author: None, stamp: None, action: action.clone() }.encode(out);
}

/// A version among all: its key, and where it was written.
fn put_place(out: &mut Vec<u8>, key: &[u8], revision: Revision) {
    out.put_short(key);
    out.put_u64(revision.main);
    out.put_u32(revision.sub);
}

fn get_place(from: &mut Reader<'_>) -> Result<(Vec<u8>, Revision), WireError> {
    let key = get_key(from)?;
    Ok((key, Revision { main: from.u64("revision")?, sub: from.u32("sub-revision")? }))
}

fn get_change(from: &mut Reader<'_>) -> Result<Action, WireError> {
    let mut rest = from.rest();
    let op = Op::decode(&mut rest).map_err(|_| WireError { field: "change" })?;
    let plain = op.id == OpId(0) && op.stamp.is_none() && rest.is_empty();
    match plain && changes_members(&op.action) {
        true => Ok(op.action),
        false => Err(WireError { field: "change" }),
    }
}

fn put_keyed(out: &mut Vec<u8>, tag: u8, stamp: &Stamp, key: &[u8]) {
    out.put_u8(tag);
    out.put_u64(stamp.session.slot);
    out.put_u32(stamp.session.position);
    out.put_u64(stamp.sequence);
    out.put_u64(stamp.low);
    out.put_short(key);
}

fn get_keyed(from: &mut Reader<'_>) -> Result<(Stamp, Vec<u8>), WireError> {
    let session = get_session(from)?;
    let stamp = Stamp { session, sequence: from.u64("sequence")?, low: from.u64("low")? };
    // PROTOCOL 11-b
    if stamp.low == 0 || stamp.low > stamp.sequence {
        return Err(WireError { field: "low" });
    }
    Ok((stamp, get_key(from)?))
}

fn get_session(from: &mut Reader<'_>) -> Result<SessionId, WireError> {
    Ok(SessionId { slot: from.u64("session slot")?, position: from.u32("session position")? })
}

fn get_key(from: &mut Reader<'_>) -> Result<Vec<u8>, WireError> {
    let key = from.short("key")?;
    if key.len() > KEY_BYTES_MAX {
        return Err(WireError { field: "key" });
    }
    Ok(key.to_vec())
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ErrorCode {
    /// The request is malformed; the text says how.
    BadRequest = 1,
    /// No quorum answered in time; a write may or may not take effect.
    Unavailable = 2,
    /// The node is at its limit of work in progress; try again.
    Busy = 3,
    /// The disk of this node, or of too many others, is full.
    NoSpace = 4,
    SessionExpired = 5,
    /// The client itself has acknowledged this number before.
    Stale = 6,
    /// More numbers outstanding than the session's window.
    Window = 7,
    /// Fewer than k fragments of the value are left.
    DataLoss = 8,
    /// A stripe named by the put is not stored.
    ValueMissing = 9,
    /// The value is larger than one stripe may be.
    TooLarge = 10,
}

impl ErrorCode {
    /// What a client is told of a refusal; a client of the API is told some more exactly.
    pub(crate) fn of(reason: Refusal) -> ErrorCode {
        match reason {
            Refusal::SessionExpired => ErrorCode::SessionExpired,
            Refusal::Stale => ErrorCode::Stale,
            Refusal::Window => ErrorCode::Window,
            Refusal::ValueMissing | Refusal::ValueConflict => ErrorCode::ValueMissing,
            Refusal::OtherLayout | Refusal::Restoring | Refusal::AuthRevision => {
                ErrorCode::Unavailable
            }
            Refusal::NoSpace => ErrorCode::NoSpace,
            Refusal::OutOfOrder => ErrorCode::Busy,
            Refusal::Malformed
            | Refusal::Compacted
            | Refusal::FutureRevision
            | Refusal::LeaseNotFound
            | Refusal::LeaseExists
            | Refusal::LeaseTtlTooLarge
            | Refusal::KeyNotFound
            | Refusal::Unresolved
            | Refusal::NoSuchNode
            | Refusal::ChangeInFlight
            | Refusal::OtherIncarnation
            | Refusal::DiskInUse
            | Refusal::TooManyRebuilding
            | Refusal::OtherEpoch
            | Refusal::ImpossibleMembers
            | Refusal::NodeUsed
            | Refusal::StillMember
            | Refusal::NotEmpty
            | Refusal::NotRestoring
            | Refusal::RestoreMismatch
            | Refusal::UserEmpty
            | Refusal::AuthToken
            | Refusal::PermissionDenied
            | Refusal::UserExists
            | Refusal::UserNotFound
            | Refusal::RoleEmpty
            | Refusal::RoleExists
            | Refusal::RoleNotFound
            | Refusal::RoleNotGranted
            | Refusal::PermissionNotGranted
            | Refusal::RootUserMissing
            | Refusal::RootRoleMissing
            | Refusal::AuthManagement
            | Refusal::AddressInUse => ErrorCode::BadRequest,
        }
    }

    fn from_byte(byte: u8) -> Option<ErrorCode> {
        use ErrorCode::*;
        const ALL: [ErrorCode; 10] = [
            BadRequest,
            Unavailable,
            Busy,
            NoSpace,
            SessionExpired,
            Stale,
            Window,
            DataLoss,
            ValueMissing,
            TooLarge,
        ];
        ALL.into_iter().find(|code| *code as u8 == byte)
    }
}

/// A failed request, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestError {
    pub code: ErrorCode,
    pub text: String,
}

impl fmt::Display for RequestError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.text)
    }
}

impl std::error::Error for RequestError {}

/// What a node answers. A value's bytes are the body of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    SessionOpened {
        session: SessionId,
    },
    /// A write took effect at this revision; `changes` keys changed. `value` describes a PART.
    Done {
        revision: u64,
        changes: u32,
        value: Option<Value>,
    },
    NotFound,
    /// The value is the body.
    Found {
        revision: u64,
    },
    /// A large value: the descriptors of its stripes are the body.
    FoundStripes {
        revision: u64,
    },
    /// Keys, encoded as in READR, are the body.
    Keys {
        more: bool,
    },
    /// A status report, encoded as JSON, is the body.
    Status,
    /// Versions at risk, encoded as in READR, are the body; where to go on, if more were not looked at.
    AtRisk {
        next: Option<(Vec<u8>, Revision)>,
    },
    Error(RequestError),
}

impl Reply {
    /// `client` and `request`: whom it answers. An address alone does not say: another client may
    /// have used it a moment ago.
    pub fn put(&self, client: u64, request: u64, out: &mut Vec<u8>) {
        out.put_u64(client);
        out.put_u64(request);
        match self {
            Reply::SessionOpened { session } => {
                out.put_u8(1);
                out.put_u64(session.slot);
                out.put_u32(session.position);
            }
            Reply::Done { revision, changes, value } => {
                out.put_u8(2);
                out.put_u64(*revision);
                out.put_u32(*changes);
                if let Some(value) = value {
                    put_value(out, value);
                }
            }
            Reply::NotFound => out.put_u8(3),
            Reply::Found { revision } => {
                out.put_u8(4);
                out.put_u64(*revision);
            }
            Reply::FoundStripes { revision } => {
                out.put_u8(5);
                out.put_u64(*revision);
            }
            Reply::Keys { more } => {
                out.put_u8(6);
                out.put_u8(u8::from(*more));
            }
            Reply::Status => out.put_u8(7),
            Reply::AtRisk { next } => {
                out.put_u8(9);
                if let Some((key, revision)) = next {
                    put_place(out, key, *revision);
                }
            }
            Reply::Error(error) => {
                out.put_u8(8);
                out.put_u8(error.code as u8);
                out.extend_from_slice(error.text.as_bytes());
            }
        }
    }

    /// Client, request number and answer.
    pub fn get(bytes: &[u8]) -> Result<(u64, u64, Reply), WireError> {
        let mut from = Reader::new(bytes);
        let client = from.u64("client")?;
        let request = from.u64("request")?;
        let reply = match from.u8("reply kind")? {
            1 => Reply::SessionOpened { session: get_session(&mut from)? },
            2 => {
                let (revision, changes) = (from.u64("revision")?, from.u32("changes")?);
                let value = match from.is_empty() {
                    true => None,
                    false => Some(get_value(&mut from)?),
                };
                Reply::Done { revision, changes, value }
            }
            3 => Reply::NotFound,
            4 => Reply::Found { revision: from.u64("revision")? },
            5 => Reply::FoundStripes { revision: from.u64("revision")? },
            6 => Reply::Keys { more: from.u8("more")? != 0 },
            7 => Reply::Status,
            8 => {
                let code = ErrorCode::from_byte(from.u8("error code")?);
                let code = code.ok_or(WireError { field: "error code" })?;
                let text = String::from_utf8_lossy(from.rest()).into_owned();
                Reply::Error(RequestError { code, text })
            }
            9 => {
                let is_end = from.is_empty();
                Reply::AtRisk { next: (!is_end).then(|| get_place(&mut from)).transpose()? }
            }
            _ => return Err(WireError { field: "reply kind" }),
        };
        from.end("reply")?;
        Ok((client, request, reply))
    }
}

/// Descriptors of stripes, as a body.
pub fn get_stripes(body: &[u8]) -> Result<Vec<Value>, WireError> {
    get_values(body)
}

/// Appends the descriptors of stripes.
pub fn put_stripes(out: &mut Vec<u8>, values: &[Value]) {
    values.iter().for_each(|value| put_value(out, value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use racos_machine::{Joining, Reconfigure, Replace};

    fn value() -> Value {
        Value { op: OpId(7), len: 5, digest: [1; 16], crc: 9, head: [2; 8], k: 3, n: 5, layout: 0 }
    }

    /// tests PROTOCOL 11-b
    #[test]
    fn requests_and_replies_survive_the_wire() {
        let session = SessionId { slot: 9, position: 2 };
        let stamp = Stamp { session, sequence: 4, low: 2 };
        let key = b"key".to_vec();
        for request in [
            Request::OpenSession { window: 64 },
            Request::CloseSession { session },
            Request::Put { stamp, key: key.clone() },
            Request::Part { stamp },
            Request::PutStripes { stamp, key: key.clone() },
            Request::Delete { stamp, key: key.clone() },
            Request::Get { key: key.clone() },
            Request::GetStripe { value: value() },
            Request::List { from: key.clone(), to: None, limit: 3 },
            Request::List { from: vec![], to: Some(key), limit: 3 },
            Request::Status,
            Request::Members { action: Action::NodeLost { node: 3 } },
            Request::AtRisk {
                action: Action::NodeLost { node: 3 },
                after: (b"key".to_vec(), Revision { main: 7, sub: 1 }),
            },
            Request::Members {
                action: Action::ReplaceNode(Box::new(Replace {
                    node: 2,
                    expected: 1,
                    disk: 9,
                    address: "127.0.0.1:7".into(),
                    is_forced: false,
                })),
            },
            Request::Members {
                action: Action::Reconfigure(Box::new(Reconfigure {
                    expected: 4,
                    members: vec![0, 1, 3],
                    joining: vec![Joining { disk: 7, address: "127.0.0.1:8".into() }],
                    lost_max: 1,
                    data: 1,
                    lost: vec![2],
                    is_forced: true,
                })),
            },
        ] {
            let mut bytes = Vec::new();
            request.put(1, 2, &mut bytes);
            assert_eq!(Request::get(&bytes), Ok((1, 2, request)));
        }
        let error = RequestError { code: ErrorCode::NoSpace, text: "disk full".into() };
        for reply in [
            Reply::SessionOpened { session },
            Reply::Done { revision: 3, changes: 1, value: None },
            Reply::Done { revision: 3, changes: 0, value: Some(value()) },
            Reply::NotFound,
            Reply::Found { revision: 1 },
            Reply::FoundStripes { revision: 1 },
            Reply::Keys { more: true },
            Reply::Status,
            Reply::AtRisk { next: None },
            Reply::AtRisk { next: Some((b"key".to_vec(), Revision { main: 7, sub: 1 })) },
            Reply::Error(error),
        ] {
            let mut bytes = Vec::new();
            reply.put(1, 2, &mut bytes);
            assert_eq!(Reply::get(&bytes), Ok((1, 2, reply)));
        }
    }

    #[test]
    fn a_client_changes_members_and_nothing_else() {
        let action = Action::NodeReleased { node: 1 };
        let mut bytes = Vec::new();
        Request::Members { action }.put(1, 2, &mut bytes);
        assert_eq!(Request::get(&bytes), Err(WireError { field: "change" }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::get(&bytes);
            let _ = Reply::get(&bytes);
            let _ = get_stripes(&bytes);
        }
    }
}
