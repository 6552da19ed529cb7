//! What can go wrong, in words for the person who runs the node.

use crate::cases::Case;
use crate::place::Position;
use std::fmt;
use std::io;

/// Why a log cannot be formatted or opened.
#[derive(Debug)]
pub enum LogError {
    /// `format` was asked for a device that holds something.
    NotEmpty(String),
    /// `open` was asked for a device that holds nothing.
    NotFormatted,
    /// `format` did not end: it may be run again, nothing was promised.
    FormatInterrupted,
    /// The log belongs to another cluster, node or incarnation.
    Identity {
        /// Which part of the identity differs.
        what: &'static str,
        /// What the superblock says.
        found: u64,
        /// What was asked for.
        expected: u64,
    },
    /// Promises may have been lost: the node must be replaced (PROTOCOL 4.4-g, 10-a).
    Damaged {
        /// Its row in the recovery table: M, O or R.
        case: Case,
        /// Where the first bad bytes are.
        at: Position,
        /// What is wrong there.
        what: String,
    },
    /// The superblock cannot be used.
    Superblock {
        /// Its row in the recovery table: D or E.
        case: Case,
        /// What is wrong with it.
        what: String,
    },
    /// The configuration cannot work.
    Config(String),
    /// The buffer pool is too small for start-up.
    NoMemory(&'static str),
    /// Bytes that recovery needs cannot be read. No proof of anything: the node must not start.
    Unreadable {
        /// Where.
        at: Position,
        /// The system's error.
        error: io::Error,
    },
    /// The device answered with an error.
    Io {
        /// What was being done.
        doing: String,
        /// The system's error.
        error: io::Error,
    },
}

impl LogError {
    /// The row of the recovery table that this refusal follows, if it is one.
    pub fn case(&self) -> Option<Case> {
        match self {
            LogError::NotFormatted => Some(Case::C),
            LogError::Superblock { case, .. } | LogError::Damaged { case, .. } => Some(*case),
            LogError::Identity { .. } => Some(Case::F),
            LogError::FormatInterrupted => Some(Case::G),
            LogError::Unreadable { .. } => Some(Case::Q),
            _ => None,
        }
    }

    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> LogError {
        let doing = doing.into();
        move |error| LogError::Io { doing, error }
    }
}

const LOST: &str = "this node has lost promises and must not start: replace it with `racos member \
                    replace`, and do not edit or copy its data";

impl fmt::Display for LogError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogError::NotEmpty(what) => {
                write!(out, "cannot format: {what}; use an empty directory")
            }
            LogError::NotFormatted => write!(out, "no log here yet: format it first"),
            LogError::FormatInterrupted => {
                write!(out, "formatting did not end; nothing was stored yet, format again")
            }
            LogError::Identity { what: "lanes", found, expected } => write!(
                out,
                "this log was made for a node with lanes = {found}, not {expected}: a node keeps the \
                 number of lanes that its cluster was founded with; set `lanes = {found}`"
            ),
            LogError::Identity { what: "lane", found, expected } => write!(
                out,
                "this is the log of lane {found}, not of lane {expected}: directories of lanes were \
                 swapped; move each back under its own name"
            ),
            LogError::Identity { what, found, expected } => write!(
                out,
                "this log belongs to {what} {found}, not {expected}: check the directory and the \
                 node's configuration"
            ),
            LogError::Damaged { at, what, .. } => write!(
                out,
                "log damaged in segment-{:08}.log at byte {}: {what}; {LOST}",
                at.segment, at.offset
            ),
            LogError::Superblock { what, .. } => {
                write!(out, "superblock unusable: {what}; {LOST}")
            }
            LogError::Config(what) => write!(out, "log configuration: {what}"),
            LogError::NoMemory(what) => {
                write!(out, "the buffer pool is too small for {what}: raise its limit")
            }
            LogError::Unreadable { at, error } => write!(
                out,
                "cannot read segment-{:08}.log at byte {}: {error}; check the disk, and if it is \
                 lost, replace the node with `racos member replace`",
                at.segment, at.offset
            ),
            LogError::Io { doing, error } => write!(out, "while {doing}: {error}"),
        }
    }
}

impl std::error::Error for LogError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LogError::Io { error, .. } | LogError::Unreadable { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// Why a record is not accepted now. Nothing of it was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The disk has no room for another segment; resumes by itself when there is.
    Disk,
    /// The next segment is still being written with zeros; try again after the next event.
    Preparing,
    /// Too many bytes wait for their flush; try again after the next event.
    Backlog,
    /// The buffer pool is exhausted; try again after the next event.
    Memory,
    /// The record can never fit into one group.
    TooLarge,
    /// A flush failed: the node must stop.
    Stopped,
}

impl fmt::Display for Full {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Full::Disk => "the disk is full; free space on it, writes resume by themselves",
            Full::Preparing => "the next log segment is not ready yet",
            Full::Backlog => "too many bytes wait for the disk",
            Full::Memory => "the buffer pool is exhausted",
            Full::TooLarge => "the record exceeds the largest group",
            Full::Stopped => "the log has stopped after a failed flush",
        })
    }
}

impl std::error::Error for Full {}

/// Why a read was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRefused {
    /// Too many reads are in flight.
    Busy,
    /// The buffer pool is exhausted.
    Memory,
    /// The range is not inside the flushed part of the log.
    Outside,
}

/// Why a read that was started brought nothing.
#[derive(Debug)]
pub enum ReadError {
    /// The bytes do not have the checksum asked for: the record's body is damaged.
    Damaged,
    /// The device could not read.
    Io(io::Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Damaged => write!(out, "checksum wrong: the stored bytes are damaged"),
            ReadError::Io(error) => write!(out, "{error}"),
        }
    }
}
