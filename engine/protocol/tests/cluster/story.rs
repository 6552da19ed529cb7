//! What a node did, in words: the lines that scripts compare.
//!
//! Invariant: everything that leaves a step is told: records appended, packets sent, slots executed,
//! clients answered. A script that tells less would not notice what is missing.

use super::host::{Host, Mail, Outbox, Packet};
use super::log::Entry;
use racos_protocol::{Ballot, Class, Digest, Message, Node, Record, Slot, Value};

/// A node before a step.
pub struct Before {
    appended: usize,
    applied: usize,
}

impl Before {
    pub fn of(host: &Host) -> Before {
        Before { appended: host.log.entries.len(), applied: host.applied.len() }
    }

    /// Adds what came of the step.
    pub fn tell(&self, host: &Host, out: &Outbox, story: &mut Vec<String>) {
        let me = host.me;
        for entry in host.log.entries.iter().skip(self.appended) {
            story.push(format!("{me} appends {}", of_entry(entry)));
        }
        for (text, to) in by_packet(&out.mail) {
            let to: Vec<String> = to.iter().map(Node::to_string).collect();
            story.push(format!("{me} sends {text} to {}", to.join(" ")));
        }
        for (slot, value) in host.applied.iter().enumerate().skip(self.applied) {
            story.push(format!("{me} executes {slot} = {}", of_value(*value)));
        }
        for slot in &out.acknowledged {
            story.push(format!("{me} answers the client of {slot}"));
        }
    }
}

/// Equal packets once, with all that they go to.
fn by_packet(mail: &[Mail]) -> Vec<(String, Vec<Node>)> {
    let mut all: Vec<(String, Vec<Node>)> = Vec::new();
    for mail in mail {
        let text = of_packet(&mail.packet);
        match all.iter_mut().find(|(known, _)| *known == text) {
            Some((_, to)) => to.push(mail.to),
            None => all.push((text, vec![mail.to])),
        }
    }
    all
}

/// Mail that is neither delivered nor lost.
pub fn of_mail(mail: &Mail) -> String {
    format!("{} to {}: {}", mail.from, mail.to, of_packet(&mail.packet))
}

fn of_value(value: Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Batch(digest) => named(digest),
    }
}

/// A batch, or an operation of a queue by its node and counter.
fn named(digest: Digest) -> String {
    match Class::of(digest) {
        Class::Eager => format!("b{digest}"),
        Class::Ready => format!("op{}.{}", digest >> 96 & 0xff, digest & 0xffff_ffff),
    }
}

fn of_ballot(ballot: Ballot) -> String {
    match ballot {
        Ballot::For(value) => of_value(value),
        Ballot::Open(None) => "?".into(),
        Ballot::Open(Some(digest)) => format!("?({})", named(digest)),
        Ballot::Weak(digest) => format!("?(weak {})", named(digest)),
    }
}

fn of_entry(entry: &Entry) -> String {
    match entry {
        Entry::Stored { batch } => format!("STORED {}", named(batch.digest)),
        Entry::Decided { slot, value, .. } => format!("DECIDED {slot} {}", of_value(*value)),
        Entry::Record { record, .. } => match *record {
            Record::Hold { slot, digest } => format!("HOLD {slot} {}", named(digest)),
            Record::SegmentOnly { slot, digest } => format!("SEG-ONLY {slot} {}", named(digest)),
            Record::NoHold { from, to } => format!("NOHOLD [{from}, {to})"),
            Record::Propose { slot, candidate } => format!("PROPOSE {slot} {}", named(candidate)),
            Record::Vote { slot, phase, ballot } => {
                format!("VOTE {slot} phase {phase} {}", of_ballot(ballot))
            }
            Record::State { slot, phase, value } => {
                format!("STATE {slot} phase {phase} {}", of_value(value))
            }
            Record::Reserve { to } => format!("RESERVE {to}"),
        },
    }
}

/// The kind of a packet, as scripts name it, and the slot that it is about.
pub fn kind_of(packet: &Packet) -> (&'static str, Option<Slot>) {
    match packet {
        Packet::Spread { slot, .. } => ("spread", Some(*slot)),
        Packet::Meta { slot, .. } => ("meta", Some(*slot)),
        Packet::Facts { .. } => ("facts", None),
        Packet::Store { .. } | Packet::Stored { .. } => ("store", None),
        Packet::ReadQuery { .. } | Packet::ReadReply { .. } => ("read", None),
        Packet::Message(message) => match *message {
            Message::Propose { slot, .. } => ("propose", Some(slot)),
            Message::ProposeNull { from, .. } => ("propose", Some(from)),
            Message::Vote { slot, .. } => ("vote", Some(slot)),
            Message::State { slot, .. } => ("state", Some(slot)),
            Message::Decide { slot, .. } => ("decide", Some(slot)),
            Message::Skip { .. } => ("skip", None),
            Message::Pull { .. } => ("pull", None),
            Message::Seen { .. } => ("seen", None),
            Message::GetMeta { slot } => ("getmeta", Some(slot)),
            Message::Ready { .. } => ("ready", None),
            _ => ("other", None),
        },
    }
}

fn of_packet(packet: &Packet) -> String {
    match packet {
        Packet::Spread { slot, batch } => format!("SPREAD {slot} {}", named(batch.digest)),
        Packet::Meta { slot, batch } => format!("META {slot} {}", named(batch.digest)),
        Packet::Facts { rows, exec } => {
            let rows: Vec<String> = rows
                .iter()
                .map(|(slot, value, _)| format!("{slot} {}", of_value(*value)))
                .collect();
            format!("DECIDE [{}], exec {exec}", rows.join(", "))
        }
        Packet::Store { batch } => format!("STORE {}", named(batch.digest)),
        Packet::Stored { candidate } => format!("STORED {}", named(*candidate)),
        Packet::ReadQuery { key, .. } => format!("READQ of key {key}"),
        Packet::ReadReply { exec, mark, .. } => format!("READR exec {exec} mark {mark:?}"),
        Packet::Message(message) => match *message {
            Message::Propose { slot, value } => format!("PROPOSE {slot} {}", of_value(value)),
            Message::ProposeNull { from, to } => format!("PROPOSE [{from}, {to}) null"),
            Message::Vote { slot, phase, ballot } => {
                format!("VOTE {slot} phase {phase} {}", of_ballot(ballot))
            }
            Message::State { slot, phase, value } => {
                format!("STATE {slot} phase {phase} {}", of_value(value))
            }
            Message::Decide { slot, value } => format!("DECIDE {slot} {}", of_value(value)),
            Message::Skip { from, to } => format!("SKIP [{from}, {to})"),
            Message::Pull { from, wanted, facts } => {
                let wanted: Vec<String> = (0..64)
                    .filter(|bit| wanted >> bit & 1 == 1)
                    .map(|bit| (from + bit).to_string())
                    .collect();
                let facts = if facts { " and facts" } else { "" };
                format!("PULL from {from} [{}]{facts}", wanted.join(" "))
            }
            Message::Seen { exec, seen } => format!("SEEN exec {exec} seen {seen}"),
            Message::GetMeta { slot } => format!("GETMETA {slot}"),
            Message::Ready { candidate, below } => {
                format!("READY {} below {below}", named(candidate))
            }
            other => format!("{other:?}"),
        },
    }
}
