//! Why an operation failed, for programs and for people.

use std::fmt;
use std::net::SocketAddr;

/// A failed operation. The variants that carry `may_have_happened` tell whether a write may have
/// been applied all the same; all others were certainly not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientError {
    /// No node answered anything.
    Unreachable { endpoints: Vec<SocketAddr>, waited_ms: u64, may_have_happened: bool },
    /// Nodes are there, but the operation was not finished in time; `last` is what one said last.
    Timeout { waited_ms: u64, may_have_happened: bool, last: Option<String> },
    /// Disks are full.
    NoSpace { text: String, may_have_happened: bool },
    /// The cluster ended the session while the write was under way.
    SessionLost { may_have_happened: bool },
    /// Fewer fragments of the value are left than are needed to rebuild it.
    DataLoss { text: String },
    /// The cluster says that the request is wrong.
    Refused { text: String },
    /// The nodes have another number of lanes than this client was told.
    Lanes { told: u8, are: u8 },
    /// A value, key or number beyond a limit, found before anything was sent.
    Limit { text: String },
    /// A node's answer contradicts itself or what was asked.
    BadAnswer { text: String },
    /// The value was replaced while it was fetched stripe by stripe: fetch it again.
    Replaced,
    /// Reading the source, writing the destination, or the socket failed.
    Io { text: String },
}

impl ClientError {
    /// Whether the write that failed may have been applied.
    pub fn may_have_happened(&self) -> bool {
        match self {
            ClientError::Unreachable { may_have_happened, .. }
            | ClientError::Timeout { may_have_happened, .. }
            | ClientError::NoSpace { may_have_happened, .. }
            | ClientError::SessionLost { may_have_happened } => *may_have_happened,
            _ => false,
        }
    }

    /// Whether trying again later may succeed.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            ClientError::Unreachable { .. }
                | ClientError::Timeout { .. }
                | ClientError::SessionLost { .. }
        )
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Unreachable { endpoints, waited_ms, .. } => {
                let list: Vec<_> = endpoints.iter().map(SocketAddr::to_string).collect();
                write!(
                    out,
                    "no node answered within {waited_ms} ms (tried {}): are the nodes running, and \
                     is the cluster number right?",
                    list.join(", ")
                )?;
            }
            ClientError::Timeout { waited_ms, last, .. } => {
                write!(out, "not finished within {waited_ms} ms")?;
                if let Some(last) = last {
                    write!(out, "; a node said: {last}")?;
                }
            }
            ClientError::NoSpace { text, .. } => write!(out, "no space: {text}")?,
            ClientError::SessionLost { .. } => {
                let why = "it was not used for long, or there were too many";
                write!(out, "the cluster ended this client's session ({why})")?;
            }
            ClientError::DataLoss { text } => write!(out, "data loss: {text}")?,
            ClientError::Refused { text } => write!(out, "refused: {text}")?,
            ClientError::Lanes { told, are } => write!(
                out,
                "the nodes of this cluster have {are} lane(s), and this client was told {told}: give it \
                 the right number, or none"
            )?,
            ClientError::Limit { text } => write!(out, "{text}")?,
            ClientError::BadAnswer { text } => write!(out, "a node answered nonsense: {text}")?,
            ClientError::Replaced => {
                write!(out, "the value was replaced while it was fetched: fetch it again")?;
            }
            ClientError::Io { text } => write!(out, "{text}")?,
        }
        if self.may_have_happened() {
            write!(out, " (the write may or may not take effect)")?;
        }
        Ok(())
    }
}

impl std::error::Error for ClientError {}
