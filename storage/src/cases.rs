//! The recovery table: what the files of a log can look like, and what is done about it.
//!
//! "Behind" means: in a later block of this or a later segment there is a valid group of this disk
//! whose sequence is not lower than expected and which was written when the log was flushed beyond
//! the bad place. Such a group is proof that the bad bytes were promised.
//!
//! ```text
//!     what is found                                          action
//! A   both superblock copies good                            use the newer
//! B   one copy good, the other torn or bad                   use it; skip a boot number
//! C   no superblock, no segments                             refuse: not formatted
//! D   no good copy                                           refuse: lost
//! E   good copies of different disks or nodes                refuse: lost
//! F   another cluster, node or incarnation than asked for    refuse: wrong directory
//! G   format did not end                                     refuse: format again
//! H   good group, the next one follows                       replay; its payloads when read
//! I   H, but a payload is bad or cannot be read              replay; that payload is damaged
//! J   last group good, payloads too                          replay; write it anew, flush
//! K   last group's records good, a payload bad, none behind  cut there: never promised
//! L   no group (zeros, torn, stale), none behind             cut there: never promised
//! M   no group, one behind                                   refuse: lost
//! N   segment header bad or unreadable, but its first group  replay; write the header anew
//!     follows
//! O   segment of another disk, or of another number          refuse: lost
//! P   later segment file missing or short, none behind       make it again
//! Q   a sector of a group's records, of the last group, or   refuse: look at the disk
//!     behind it cannot be read
//! R   first segment file missing                             refuse: lost
//! S   the newest mark's first group is bad, or what it       replay from the older mark
//!     names is not whole or cannot be read
//! T   S, and the older mark does not do either               refuse: lost
//! U   a file before the marks, its front zeroed              leave it: it was being recycled
//! ```
//!
//! A sector that cannot be read is as bad as one that reads wrong wherever the rest of the log says what
//! was promised: a payload with a group behind it is one fragment missing (I), a header of a segment is
//! written anew (N), a piece of a checkpoint sends replay to the one before (S), and what lies before
//! the marks is not asked for. Q is what remains, and there is no safe guess in it. Records that cannot
//! be read are promises, or not. Of the last group, a payload that cannot be read is no proof that its
//! write was torn: if it was promised, to cut it (K) breaks the promise, and if it was not, to replay it
//! (I) promises a fragment that no node has, on top of those that the promise allows to be lost. Behind
//! the last group, the sector may be the very proof that something is missing before it (M). A disk
//! that reads the sector after all, at the next try or from a copy of it, is replayed as it is.
//!
//! Invariant: an opening that meets a case does what its row says; the tests hold each letter to
//! it.
//! What would break it: a state of the files that fits no row.

/// What is done about a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The state is taken as it is.
    Use,
    /// It is put right by writing what must have been there.
    Rewrite,
    /// The log ends there.
    Cut,
    /// The records stand; a payload is missing (PROTOCOL 9.5 repairs it).
    Report,
    /// The log is not opened.
    Refuse,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[rustfmt::skip]
pub enum Case { A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U }

/// Every case with its action, in order.
pub const TABLE: [(Case, Action); 21] = [
    (Case::A, Action::Use),
    (Case::B, Action::Rewrite),
    (Case::C, Action::Refuse),
    (Case::D, Action::Refuse),
    (Case::E, Action::Refuse),
    (Case::F, Action::Refuse),
    (Case::G, Action::Refuse),
    (Case::H, Action::Use),
    (Case::I, Action::Report),
    (Case::J, Action::Rewrite),
    (Case::K, Action::Cut),
    (Case::L, Action::Cut),
    (Case::M, Action::Refuse),
    (Case::N, Action::Rewrite),
    (Case::O, Action::Refuse),
    (Case::P, Action::Rewrite),
    (Case::Q, Action::Refuse),
    (Case::R, Action::Refuse),
    (Case::S, Action::Use),
    (Case::T, Action::Refuse),
    (Case::U, Action::Use),
];

impl Case {
    /// What is done about it.
    pub fn action(self) -> Action {
        TABLE[self as usize].1
    }
}
