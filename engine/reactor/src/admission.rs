//! A disk's first words (PROTOCOL 10-ag to 10-al): it takes part only once enough of the others have
//! noted that it, and no other, is the first incarnation of its node.
//!
//! Purpose: a node whose directory was lost and that is started with an empty one must not vote again
//! as if it had promised nothing. The others remember which disk a node was founded on, on disk, from
//! before the time when it could say anything that counts; so they tell the second one.
//! Invariant: of one node, at most one disk of incarnation 1 ever takes part. What would break it:
//! answering before the note is flushed, noting a second disk in the place of one that may have spoken,
//! or vouching with a memory that does not reach back to the founding.

use crate::journal::Stored;
use crate::node::Node;
use crate::record::kind as record_kind;
use crate::wire::cursor::{Reader, WireError, Writer};
use crate::wire::node::{Hello, Known, KnownAs, get_part, kind, put_part};
use racos_net::{Link, Message as Frame};
use racos_protocol::{Nanos, NodeSet, Release, Slot, Terms};
use racos_storage::RecordId;
use racos_storage::device::Device;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

/// How soon a disk that does not take part yet asks again, at first and at last.
const ASK_NS: Nanos = 100_000_000;
const ASK_NS_MAX: Nanos = 1_600_000_000;

/// The disk that was the first of a node to show itself here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Note {
    pub disk: u128,
    /// It takes part: no other can.
    pub takes_part: bool,
    /// What it was founded with.
    pub terms: Terms,
}

/// A node that is no member and looks on (PROTOCOL 10-m), as it shows itself. Nothing rests on it but
/// what a change that is proposed here will say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Onlooker {
    pub disk: u128,
    pub address: SocketAddr,
    /// All slots below are executed there, as it said last.
    pub exec: Slot,
    pub heard_at: Nanos,
}

/// Notes, by node.
pub(crate) type Notes = BTreeMap<u8, Note>;

/// Encodes a note: the head of its record, and an entry of a checkpoint.
pub(crate) fn put_note(out: &mut Vec<u8>, node: u8, note: Note) {
    out.put_u8(node);
    put_part(out, note.takes_part, note.terms);
    out.put_u128(note.disk);
}

pub(crate) fn get_note(from: &mut Reader<'_>) -> Result<(u8, Note), WireError> {
    let node = from.u8("node")?;
    let (takes_part, terms) = get_part(from)?;
    Ok((node, Note { disk: from.u128("disk")?, takes_part, terms }))
}

/// How many of the others must have noted a disk before it takes part, in a cluster founded with `n`
/// members of which `f` may be lost: of two such sets f members are in both at least, so one of them
/// remembers the other disk though f - 1 besides the node itself have forgotten.
pub fn vouchers(n: usize, f: usize) -> usize {
    ((n + f.max(1)) / 2).min(n - 1)
}

/// What came of a HELLO here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// It is the one noted, or the first.
    Is(Note),
    IsNew(Note),
    Other(u128),
}

/// PROTOCOL 10-ai: what a disk that shows itself, on the own terms, is to one that has this note.
fn judge(note: Option<Note>, disk: u128, takes_part: bool, terms: Terms) -> Heard {
    let shown = Note { disk, takes_part, terms };
    match note {
        Some(note) if note.disk == disk && (note.takes_part || !takes_part) => Heard::Is(note),
        // It has enough vouchers, so the one noted here can never get them.
        Some(note) if note.disk != disk && (note.takes_part || !takes_part) => {
            if mutant!("another disk is vouched for") {
                return Heard::IsNew(shown);
            }
            Heard::Other(note.disk)
        }
        _ => Heard::IsNew(shown),
    }
}

/// Whether this disk takes part, and what it knows of those of the others.
#[derive(Default)]
pub(crate) struct Admission {
    pub takes_part: bool,
    /// As handed to the log, and those of them that are not flushed.
    notes: Notes,
    placing: VecDeque<u8>,
    flushing: VecDeque<(RecordId, u8)>,
    /// Who has noted this disk; who of them remembers the founding; who does not.
    noted_by: NodeSet,
    vouched: NodeSet,
    late: NodeSet,
    /// Who has other terms.
    apart: NodeSet,
    /// Who spoke to this node before it takes part, and is not in its configuration.
    strangers: NodeSet,
    ask_at: Nanos,
    /// By number; those that became members since are still here.
    onlookers: BTreeMap<u8, Onlooker>,
    asked: u32,
}

impl Admission {
    pub fn new(notes: Notes) -> Admission {
        Admission { notes, ..Admission::default() }
    }

    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    pub fn ask_at(&self) -> Nanos {
        self.ask_at
    }

    /// Nodes that are no members, by number.
    pub fn onlookers(&self) -> &BTreeMap<u8, Onlooker> {
        &self.onlookers
    }

    /// A node that is no member shows its disk; there are as many as numbers of nodes.
    fn looks_on(&mut self, node: u8, disk: u128, address: SocketAddr, now: Nanos) {
        if disk != 0 {
            let exec = self.onlookers.get(&node).map_or(0, |known| known.exec);
            self.onlookers.insert(node, Onlooker { disk, address, exec, heard_at: now });
        }
    }

    /// A node says how far it is.
    pub fn tells_exec(&mut self, node: u8, exec: Slot, now: Nanos) {
        if let Some(onlooker) = self.onlookers.get_mut(&node) {
            (onlooker.exec, onlooker.heard_at) = (exec, now);
        }
    }

    /// Another disk is in the place of one that had noted this one.
    pub fn forgotten_by(&mut self, node: u8) {
        self.noted_by.remove(node);
    }

    fn is_flushing(&self, node: u8) -> bool {
        self.placing.contains(&node) || self.flushing.iter().any(|(_, of)| *of == node)
    }

    /// The record of the oldest note on its way has its place.
    pub fn placed(&mut self, id: RecordId, node: u8) {
        let first = self.placing.pop_front();
        assert_eq!(first, Some(node), "notes are placed in order");
        self.flushing.push_back((id, node));
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Whether this disk takes part, or may as far as it is up to the others' notes: see `admission`.
    pub fn takes_part(&self) -> bool {
        self.admission.takes_part
    }

    /// At the start: this disk takes part, or waits for others to vouch for it.
    pub(crate) fn enter(&mut self) {
        // PROTOCOL 10-ag: one that a change names needs nobody else, and one whose log says that it took
        // part, or anything of slots, was vouched for.
        let is_founding = usize::from(self.me) < self.core.config().n;
        let own = self.own_note();
        let noted = self.admission.notes.get(&self.me).copied();
        let is_reserving = self.core.reservation() > 0;
        // A disk that joined notes its terms with the first word that counts; without a note, and with
        // nothing executed, it has heard nobody's.
        let joins = self.config.incarnation > 1 || !is_founding;
        let is_bound = noted.is_some() || (is_reserving && !(joins && self.core.exec() == 0));
        // PROTOCOL 6.4-h: nothing of a queue's log says whose slots are whose, nor the other way round.
        // PROTOCOL 5.5-l: what was decided by so many proposals stays so.
        let founded = noted.map_or(Terms::default(), |note| note.terms);
        if is_bound && founded != own.terms {
            return self.fail(format!(
                "node {} was founded with {founded} and is started with {}: \
                 write the former into its configuration; for the latter found another cluster, on \
                 empty directories",
                self.me, own.terms
            ));
        }
        let took_part = is_reserving || noted == Some(own);
        let is_waiting = self.vouchers() > 0 || own.terms != Terms::default();
        if self.config.incarnation == 1 && is_founding && !took_part && is_waiting {
            return;
        }
        self.admission.takes_part = true;
        self.start_core();
        // One that waits asks at once whoever has come back.
        self.say_hello(|_, _| true);
    }

    /// PROTOCOL 5.5-l: whether what a datagram says may count: it comes from a node of the same terms. With
    /// the first such one a disk that joins notes its own, before anything follows from it.
    pub(crate) fn shares_terms(&mut self, frame: &Frame) -> bool {
        if frame.from.flags != self.config.flags() {
            return false;
        }
        let is_founding =
            self.config.incarnation == 1 && usize::from(self.me) < self.core.config().n;
        let is_usual = self.config.terms() == Terms::default();
        if !is_founding && !is_usual && !self.admission.notes.contains_key(&self.me) {
            self.note(self.me, self.own_note());
        }
        true
    }

    /// Whether a member is known to have taken part: nothing that is heard of one that has not gets here.
    pub(crate) fn has_taken_part(&self, node: u8) -> bool {
        let seat = self.machine.members().seats().get(usize::from(node));
        let is_named = seat.is_some_and(|seat| seat.disk != 0 || seat.incarnation > 1);
        let is_noted = self.admission.notes.get(&node).is_some_and(|note| note.takes_part);
        node == self.me || is_named || is_noted || self.heard_at[usize::from(node)].is_some()
    }

    fn own_note(&self) -> Note {
        Note { disk: self.log.disk_id(), takes_part: true, terms: self.config.terms() }
    }

    /// How many must vouch.
    fn vouchers(&self) -> usize {
        vouchers(self.core.config().n, self.config.f)
    }

    /// What this node waits for before it takes part, if it does.
    pub fn waits_for(&self) -> Option<String> {
        if self.admission.takes_part {
            return None;
        }
        let (me, needed) = (self.me, self.vouchers());
        let admission = &self.admission;
        let silent: Vec<String> = self
            .other_members()
            .filter(|node| !admission.vouched.contains(*node) && !admission.late.contains(*node))
            .map(|node| format!("{node} ({})", self.address_text(node)))
            .collect();
        Some(format!(
            "node {me} is new: {needed} of the others must say that they know of no other disk of it, \
             {} have; no answer yet from {}",
            admission.vouched.len(),
            silent.join(", ")
        ))
    }

    /// Founding members other than this one, but those that are gone for ever; for one that looks on,
    /// whoever may propose it.
    fn other_members(&self) -> impl Iterator<Item = u8> + use<L, D> {
        let looks_on = usize::from(self.me) >= self.core.seats().len();
        let (others, n) = (self.others(), self.core.config().n);
        others.iter().filter(move |node| looks_on || usize::from(*node) < n)
    }

    /// PROTOCOL 10-al: to whom this disk shows itself: to those that joined too. Those that it was founded with
    /// may all have left when its directory is lost.
    fn greeted(&self) -> NodeSet {
        if self.admission.takes_part {
            return self.others();
        }
        let mut greeted = self.admission.strangers;
        self.other_members().for_each(|node| greeted.insert(node));
        greeted
    }

    /// Somebody speaks to this node, which does not take part yet.
    pub(crate) fn meet(&mut self, from: u8, address: SocketAddr) {
        if self.core.seats().get(usize::from(from)).is_none() {
            self.addresses.set(from, address);
            self.admission.strangers.insert(from);
        } else {
            self.addresses.heard(from, address);
        }
    }

    /// Shows this disk to those that have not said that they have noted it.
    fn say_hello(&mut self, to: impl Fn(&Self, u8) -> bool) {
        let mut head = Vec::with_capacity(25);
        let hello = Hello {
            disk: self.log.disk_id(),
            takes_part: self.admission.takes_part,
            terms: self.config.terms(),
            found: self.log_ends.found.0,
        };
        hello.put(&mut head);
        for node in self.greeted().iter() {
            if !self.admission.noted_by.contains(node) && to(self, node) {
                self.send(node, kind::HELLO, &head, &[]);
            }
        }
    }

    /// A disk that takes part shows itself to those that live and have not noted it. Nobody notes one
    /// that only looks on: it does so now and then.
    pub(crate) fn say_hello_again(&mut self, now_and_then: bool) {
        if now_and_then || self.core.seats().len() > usize::from(self.me) {
            self.say_hello(Self::hears);
        }
    }

    /// A disk that does not take part: asks, and goes on waiting.
    pub(crate) fn admission_turn(&mut self) {
        if self.admission.vouched.len() >= self.vouchers() || mutant!("takes part unasked") {
            // PROTOCOL 10-ag: who of the others may be gone at the next start is not known.
            if !self.admission.notes.contains_key(&self.me) {
                self.note(self.me, self.own_note());
            }
            return;
        }
        if self.now >= self.admission.ask_at {
            let wait = (ASK_NS << self.admission.asked.min(8)).min(ASK_NS_MAX);
            self.admission.asked += 1;
            self.admission.ask_at = self.now + wait;
            self.say_hello(|_, _| true);
            // PROTOCOL 10-an: with an empty disk only the configuration says where they are.
            self.addresses.try_other(self.others);
        }
    }

    /// From now on this disk speaks.
    fn take_part(&mut self) {
        self.admission.takes_part = true;
        // That it does is noted, too.
        self.admission.noted_by = NodeSet::EMPTY;
        self.start_core();
        self.say_hello(|_, _| true);
    }

    /// HELLO: the disk of another node shows itself.
    pub(crate) fn on_hello(&mut self, from: u8, frame: &Frame) {
        let Ok(Hello { disk, takes_part, terms, found }) = Hello::get(&frame.head) else { return };
        let incarnation = frame.from.incarnation;
        let own = self.config.terms();
        // PROTOCOL 6.4-h, 5.5-l
        if disk != 0 && terms != own {
            if self.core.seats().get(usize::from(from)).is_none() {
                // Nothing else that it says says where it is.
                self.addresses.set(from, frame.from.address);
            }
            return self.tell_known(from, incarnation, disk, KnownAs::OtherTerms(own));
        }
        let admission = &mut self.admission;
        if !admission.vouched.contains(from) && !admission.late.contains(from) {
            // It may not have been there when it was asked.
            admission.ask_at = admission.ask_at.min(self.now + ASK_NS);
        }
        let Some(seat) = self.machine.members().seats().get(usize::from(from)).copied() else {
            return self.admission.looks_on(from, disk, frame.from.address, self.now);
        };
        if incarnation < seat.incarnation {
            // One that takes part goes on until the change is in effect (PROTOCOL 10-r).
            if !takes_part {
                self.tell_replaced(from, seat.incarnation);
            }
            return;
        }
        // A change that is not executed here may name it: it asks again.
        if incarnation > seat.incarnation {
            return;
        }
        let founded = seat.disk == 0;
        let note = match founded {
            true => self.admission.notes.get(&from).copied(),
            // PROTOCOL 10-e
            false => Some(Note { disk: seat.disk, takes_part: true, terms }),
        };
        // Only asked, by one that has no disk yet.
        if disk == 0 {
            let known = note.map_or(KnownAs::Nothing, |note| KnownAs::Other(note.disk));
            return self.tell_known(from, incarnation, disk, known);
        }
        match judge(note, disk, takes_part || !founded, terms) {
            Heard::Other(known) => {
                self.tell_known(from, incarnation, disk, KnownAs::Other(known));
            }
            // PROTOCOL 9.1-j
            Heard::Is(_) if self.was_rolled_back(from, incarnation, frame.from.boot, found) => {}
            Heard::Is(_) if self.admission.is_flushing(from) => {}
            Heard::Is(_) => self.vouch(from, incarnation, disk),
            Heard::IsNew(note) => self.note(from, note),
        }
    }

    fn note(&mut self, node: u8, note: Note) {
        self.admission.notes.insert(node, note);
        let mut head = Vec::with_capacity(18);
        put_note(&mut head, node, note);
        self.admission.placing.push_back(node);
        let stored = Some(Stored::Note { node });
        self.append(record_kind::NOTE, &head, &[], Release::Nothing, stored);
    }

    /// PROTOCOL 10-ah: notes that are durable may be told; that of this disk itself lets it take part.
    pub(crate) fn notes_flushed(&mut self, up_to: RecordId) {
        while let Some((_, node)) = self.admission.flushing.pop_front_if(|(id, _)| *id <= up_to) {
            if node == self.me && self.admission.takes_part {
                // It joined: the note is for its next start.
            } else if node == self.me {
                self.take_part();
            } else if let Some(note) = self.admission.notes.get(&node)
                && !self.admission.is_flushing(node)
            {
                self.vouch(node, 1, note.disk);
            }
        }
    }

    /// Tells a disk that it is the one noted here.
    fn vouch(&mut self, to: u8, incarnation: u32, disk: u128) {
        // PROTOCOL 10-aj: a disk that came later does not know who spoke before.
        let is_first = self.config.incarnation == 1 && usize::from(self.me) < self.core.config().n;
        let known = if is_first { KnownAs::OnlyThis } else { KnownAs::ThisNow };
        self.tell_known(to, incarnation, disk, known);
    }

    fn tell_known(&mut self, to: u8, incarnation: u32, disk: u128, known: KnownAs) {
        let mut head = Vec::with_capacity(37);
        Known { incarnation, disk, known }.put(&mut head);
        self.send(to, kind::KNOWN, &head, &[]);
    }

    /// KNOWN: what another node knows of this node's disks.
    pub(crate) fn on_known(&mut self, from: u8, head: &[u8]) {
        let Ok(Known { incarnation, disk, known }) = Known::get(head) else { return };
        if incarnation != self.config.incarnation || disk != self.log.disk_id() {
            return;
        }
        let (me, needed, founding) = (self.me, self.vouchers(), self.core.config().n);
        match known {
            KnownAs::OnlyThis => {
                self.admission.noted_by.insert(from);
                self.admission.vouched.insert(from);
            }
            KnownAs::ThisNow => {
                self.admission.noted_by.insert(from);
                // Those that joined never count.
                if usize::from(from) < founding {
                    self.admission.late.insert(from);
                }
                if self.admission.takes_part {
                    return;
                }
                // PROTOCOL 10-al: this is a founding member, as those that join take part at once.
                let left = founding - 1 - self.admission.late.len();
                if left < needed {
                    self.fail(format!(
                        "so many of the others were replaced that nobody can tell whether node {me} \
                         ever had another disk: put this one in its place with {}",
                        remedy(me, " --erase")
                    ));
                }
            }
            // PROTOCOL 10-al, 10-e
            KnownAs::Other(other) => self.fail(known_otherwise(me, from, other, " --erase")),
            KnownAs::Nothing => {}
            KnownAs::OtherTerms(terms) => self.on_other_terms(from, terms),
        }
    }

    /// So many of the others have other terms that it is not one of them that is wrong.
    fn on_other_terms(&mut self, from: u8, terms: Terms) {
        self.admission.apart.insert(from);
        // One that joins takes part from its start, and notes its terms with the first word that counts.
        let is_bound = self.admission.notes.contains_key(&self.me);
        let is_wrong = !self.admission.takes_part || (!is_bound && self.core.exec() == 0);
        if is_wrong && self.admission.apart.len() > self.config.f {
            self.fail(format!(
                "node {from} and others have {terms}, and node {} has {}: all \
                 nodes of a cluster have the same; write theirs into its configuration and start it \
                 again",
                self.me,
                self.config.terms()
            ));
        }
    }
}

/// The command that puts another disk in a node's place.
fn remedy(node: u8, erase: &str) -> String {
    format!("`racos member replace {node}{erase}`")
}

/// Why an empty directory is not a node that was replaced before.
pub(crate) fn replaced(me: u8, newer: u32, erase: &str) -> String {
    format!(
        "node {me} was replaced before, its disk is incarnation {newer}: an empty one in its place would \
         break what that one promised. Start the node on its own directory; if that is lost, run {}, \
         which puts a new one in its place",
        remedy(me, erase)
    )
}

/// Why a disk must not take part. `erase`: the option that the directory needs.
pub(crate) fn known_otherwise(me: u8, by: u8, disk: u128, erase: &str) -> String {
    format!(
        "node {by} knows node {me} by another disk ({:08x}): an empty one in its place would break what \
         that one promised. Start the node on its own directory; if that is lost, run {}, which puts a \
         new one in its place",
        disk >> 96,
        remedy(me, erase)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use racos_protocol::{Fast, Policy};

    /// tests PROTOCOL 10-ag: for every cluster that is possible, two sets of vouchers have a member in
    /// common that is not among those lost; and where n > 3f, f absent nodes keep nobody out.
    #[test]
    fn two_disks_of_a_node_cannot_both_be_vouched_for() {
        for n in 2..=64usize {
            for f in 0..=(n - 1) / 2 {
                let (needed, others) = (vouchers(n, f), n - 1);
                assert!(needed <= others);
                let common = (2 * needed).saturating_sub(others);
                assert!(common > f.saturating_sub(1), "{n} {f}: {needed} of {others}");
                assert!(n <= 3 * f || f == 0 || others - f >= needed, "{n} {f}");
            }
        }
        assert_eq!(vouchers(1, 0), 0, "nobody else is there");
        assert_eq!([(3, 1), (5, 1), (5, 2), (7, 2)].map(|(n, f)| vouchers(n, f)), [2, 3, 3, 4]);
    }

    /// tests PROTOCOL 10-ai
    #[test]
    fn the_first_disk_stays_unless_another_one_takes_part() {
        let terms = Terms::default();
        let judge = |note, disk, takes_part| judge(note, disk, takes_part, terms);
        let note = |disk, takes_part| Note { disk, takes_part, terms };
        assert_eq!(judge(None, 7, false), Heard::IsNew(note(7, false)));
        assert_eq!(judge(Some(note(7, false)), 7, false), Heard::Is(note(7, false)));
        assert_eq!(judge(Some(note(7, false)), 7, true), Heard::IsNew(note(7, true)));
        assert_eq!(judge(Some(note(7, false)), 8, false), Heard::Other(7));
        assert_eq!(judge(Some(note(7, false)), 8, true), Heard::IsNew(note(8, true)));
        assert_eq!(judge(Some(note(7, true)), 8, true), Heard::Other(7), "never both");
        assert_eq!(judge(Some(note(7, true)), 7, false), Heard::Is(note(7, true)));
    }

    #[test]
    fn notes_survive_the_log() {
        for takes_part in [false, true] {
            let mut bytes = Vec::new();
            let policy = if takes_part { Policy::Queue } else { Policy::OwnerSlots };
            let fast = if takes_part { Fast::Support } else { Fast::Least };
            let note = Note { disk: 1 << 100 | 9, takes_part, terms: Terms { policy, fast } };
            put_note(&mut bytes, 4, note);
            assert_eq!(get_note(&mut Reader::new(&bytes)), Ok((4, note)));
            for cut in 0..bytes.len() {
                assert!(get_note(&mut Reader::new(&bytes[..cut])).is_err());
            }
        }
    }
}
