//! What nodes say in a slot under F*, as small numbers: candidates of class R, null, and the ballots of a vote.

#![allow(dead_code)]

use racos_protocol::{Ballot, Class, Digest, Node, Value};

pub const CANDIDATES: usize = 3;
/// What is said: a value or a ballot, as its place here.
pub const NULL: usize = CANDIDATES;
pub const OPEN: usize = NULL + 1;
pub const OPEN_FOR: usize = OPEN + 1;
pub const WEAK_FOR: usize = OPEN_FOR + CANDIDATES;
pub const KINDS: usize = WEAK_FOR + CANDIDATES;

/// How often each thing was said in a round.
pub type Said = [u8; KINDS];

pub fn candidate(kind: usize) -> Digest {
    Class::Ready.mark(1 + kind as Digest)
}

pub fn value(kind: usize) -> Value {
    if kind == NULL { Value::Null } else { Value::Batch(candidate(kind)) }
}

pub fn kind_of(value: Value) -> usize {
    match value {
        Value::Null => NULL,
        Value::Batch(digest) => (digest ^ Class::Ready.mark(0)) as usize - 1,
    }
}

pub fn ballot(kind: usize) -> Ballot {
    match kind {
        ..=NULL => Ballot::For(value(kind)),
        OPEN => Ballot::Open(None),
        OPEN_FOR..WEAK_FOR => Ballot::Open(Some(candidate(kind - OPEN_FOR))),
        _ => Ballot::Weak(candidate(kind - WEAK_FOR)),
    }
}

pub fn kind_of_ballot(ballot: Ballot) -> usize {
    match ballot {
        Ballot::For(value) => kind_of(value),
        Ballot::Open(None) => OPEN,
        Ballot::Open(Some(digest)) => OPEN_FOR + kind_of(Value::Batch(digest)),
        Ballot::Weak(digest) => WEAK_FOR + kind_of(Value::Batch(digest)),
    }
}

pub fn count(said: &Said) -> usize {
    said.iter().map(|count| usize::from(*count)).sum()
}

/// All ways to take at least `least` of what was said.
pub fn parts(said: &Said, least: usize) -> Vec<Said> {
    let mut all = vec![[0; KINDS]];
    for kind in (0..KINDS).filter(|kind| said[*kind] > 0) {
        let before = std::mem::take(&mut all);
        for part in before {
            for count in 0..=said[kind] {
                let mut part = part;
                part[kind] = count;
                all.push(part);
            }
        }
    }
    all.retain(|part| count(part) >= least);
    all
}

/// The senders of a part, numbered.
pub fn senders(said: &Said) -> impl Iterator<Item = (Node, usize)> + '_ {
    let kinds = (0..KINDS).flat_map(|kind| std::iter::repeat_n(kind, usize::from(said[kind])));
    kinds.enumerate().map(|(node, kind)| (node as Node, kind))
}
