//! Whether nodes that have executed the same slots hold the same state (PROTOCOL 9.2-a).
//!
//! Purpose: two state machines that came apart, by a bug or by a bit that flipped in memory, must not go
//! on unseen. Each node notes the hash of its state at some slots and tells the others, twice a second;
//! whoever finds that the others agree on another one stops. Where nobody can tell who is right, those
//! that differ say so.
//!
//! A node tells the newest hash of each step: its state as it is now, and those after the last multiple of
//! 64, 1024, 16384 and 262144 slots. The first compares nodes at rest, the last those that execute a
//! hundred thousand slots a second: at some step each node gets to tell every multiple, so that three that
//! differ are compared at one and the same slot.
//!
//! Invariant: only hashes after the same slots are compared, and each node counts once. A hash is no part
//! of the state, and nothing that is decided or answered depends on one.
//! What would break it: a hash taken in the middle of a slot, or one kept from before a jump.

use crate::node::Node;
use crate::status::StatesStatus;
use crate::wire::cursor::{Reader, Writer};
use crate::wire::node::kind;
use racos_machine::{EXPORT_FORMAT, MEMBERS_MAX};
use racos_net::Link;
use racos_protocol::{NodeSet, Slot};
use racos_storage::device::Device;
use std::collections::VecDeque;

/// The steps at which hashes are noted, as powers of two; the smallest is looked for after every slot.
const STEPS: [u32; 4] = [6, 10, 14, 18];
/// Hashes kept of each step: own ones, for peers that are behind; of each peer, while it is ahead.
const OWN_KEPT: usize = 16;
const TOLD_KEPT: usize = 4;
/// Slots of each step, and one of no step, of which it is kept who said what, if it was not the same.
const CASES_KEPT: usize = 4;
/// Rounds of telling after which those that could say something of a slot have said it.
const ROUNDS: u32 = 6;
/// Most hashes in a message.
const TOLD_MAX: usize = 1 + STEPS.len();

/// The hash of the state once all slots below `exec` are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hashed {
    pub exec: Slot,
    pub hash: u128,
}

/// The largest step that an exec is a multiple of.
fn step_of(exec: Slot) -> Option<usize> {
    let zeros = exec.trailing_zeros();
    STEPS.iter().rposition(|step| zeros >= *step).filter(|_| exec > 0)
}

/// Whether the hash at this exec is noted.
#[inline]
pub(crate) fn is_noted(exec: Slot) -> bool {
    exec.trailing_zeros() >= STEPS[0]
}

/// The newest hashes of each step.
#[derive(Debug, Default)]
struct Kept([VecDeque<Hashed>; STEPS.len()]);

impl Kept {
    /// One that was said before is said anew.
    fn put(&mut self, step: usize, hashed: Hashed, most: usize) {
        let kept = &mut self.0[step];
        kept.retain(|it| it.exec != hashed.exec);
        if kept.len() == most {
            kept.pop_front();
        }
        kept.push_back(hashed);
    }

    fn at(&self, exec: Slot) -> Option<u128> {
        let kept = &self.0[step_of(exec)?];
        kept.iter().find(|it| it.exec == exec).map(|it| it.hash)
    }
}

/// What is known of a peer.
#[derive(Debug, Default)]
struct Peer {
    incarnation: u32,
    told: Kept,
    /// The highest exec at which its state was the same, and the last at which it was not.
    same: Option<Slot>,
    other: Option<Other>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Other {
    exec: Slot,
    own: u128,
    theirs: u128,
}

/// Who said what of a slot of which not all said the same.
#[derive(Debug)]
struct Case {
    exec: Slot,
    own: u128,
    told: Vec<(u8, u128)>,
    rounds: u32,
}

/// This node's state is not that of these others, who agree.
#[derive(Debug, PartialEq, Eq)]
struct Outvoted {
    exec: Slot,
    own: u128,
    theirs: u128,
    by: NodeSet,
}

/// Hashes of states, this node's and those of others.
#[derive(Debug)]
pub(crate) struct States {
    own: Kept,
    /// By number of the node.
    peers: Vec<Peer>,
    cases: Vec<Case>,
    /// Those whose state was another one when it was last compared.
    differing: NodeSet,
    /// How often a state was the same.
    same: u64,
}

impl Default for States {
    fn default() -> States {
        let peers = (0..MEMBERS_MAX).map(|_| Peer::default()).collect();
        let (own, cases) = (Kept::default(), Vec::new());
        States { own, peers, cases, differing: NodeSet::EMPTY, same: 0 }
    }
}

impl States {
    /// The own state at a multiple of the smallest step.
    fn note(&mut self, own: Hashed) {
        let Some(step) = step_of(own.exec) else { return };
        self.own.put(step, own, OWN_KEPT);
        for node in 0..MEMBERS_MAX as u8 {
            if let Some(hash) = self.peers[usize::from(node)].told.at(own.exec) {
                self.compare(own, node, hash);
            }
        }
    }

    /// What to tell: the state as it is now, and the newest of each step.
    fn telling(&self, now: Hashed) -> Vec<Hashed> {
        let newest = self.own.0.iter().filter_map(|kept| kept.back());
        std::iter::once(now).chain(newest.copied().filter(|it| it.exec != now.exec)).collect()
    }

    /// A peer tells a hash. `now`: the own state as it is.
    fn heard(&mut self, node: u8, incarnation: u32, told: Hashed, now: Hashed) {
        let peer = &mut self.peers[usize::from(node)];
        if incarnation < peer.incarnation {
            return;
        }
        if incarnation > peer.incarnation {
            *peer = Peer { incarnation, ..Peer::default() };
            self.differing.remove(node);
            self.cases.iter_mut().for_each(|case| case.told.retain(|(who, _)| *who != node));
        }
        if let Some(step) = step_of(told.exec) {
            self.peers[usize::from(node)].told.put(step, told, TOLD_KEPT);
        }
        let own = if now.exec == told.exec { Some(now.hash) } else { self.own.at(told.exec) };
        if let Some(hash) = own {
            self.compare(Hashed { exec: told.exec, hash }, node, told.hash);
        }
    }

    fn compare(&mut self, own: Hashed, node: u8, theirs: u128) {
        let Hashed { exec, hash } = own;
        let peer = &mut self.peers[usize::from(node)];
        if hash == theirs {
            peer.same = peer.same.max(Some(exec));
            peer.other.take_if(|other| other.exec <= exec);
            self.same += 1;
        } else if peer.other.is_none_or(|other| other.exec <= exec) {
            peer.other = Some(Other { exec, own: hash, theirs });
        }
        match peer.other {
            Some(_) => self.differing.insert(node),
            None => self.differing.remove(node),
        }
        match self.cases.iter_mut().find(|case| case.exec == exec) {
            Some(case) => {
                case.own = hash;
                case.told.retain(|(who, _)| *who != node);
                case.told.push((node, theirs));
            }
            None if hash != theirs => self.open_case(own, node, theirs),
            None => return,
        }
        // A node that was started again may say another one of the same slot.
        self.cases.retain(|case| case.told.iter().any(|(_, theirs)| *theirs != case.own));
    }

    fn open_case(&mut self, own: Hashed, node: u8, theirs: u128) {
        let Hashed { exec, hash } = own;
        let step = step_of(exec);
        let of_step = |case: &Case| step_of(case.exec) == step;
        if self.cases.iter().filter(|case| of_step(case)).count() == CASES_KEPT {
            let first = self.cases.iter().position(of_step).expect("there are some");
            self.cases.remove(first);
        }
        let said = |(who, peer): (usize, &Peer)| Some((who as u8, peer.told.at(exec)?));
        let mut told: Vec<(u8, u128)> = self.peers.iter().enumerate().filter_map(said).collect();
        told.retain(|(who, _)| *who != node);
        told.push((node, theirs));
        self.cases.push(Case { exec, own: hash, told, rounds: 0 });
    }

    /// PROTOCOL 9.2-a: whether others agree on another state than this node's: more than half of the
    /// members, or, once all that could say something of the slot have, more than agree with this node.
    fn outvoted(&self, me: u8, members: NodeSet) -> Option<Outvoted> {
        self.cases.iter().find_map(|case| {
            let counts = |node: u8| members.contains(node);
            let saying = |hash: u128| {
                let by = case.told.iter().filter(|(node, it)| counts(*node) && *it == hash);
                by.fold(NodeSet::EMPTY, |mut set, (node, _)| {
                    set.insert(*node);
                    set
                })
            };
            let mine = saying(case.own).len() + usize::from(counts(me));
            let others = case.told.iter().map(|(_, hash)| *hash).filter(|hash| *hash != case.own);
            let (theirs, by) =
                others.map(|hash| (hash, saying(hash))).max_by_key(|(_, by)| by.len())?;
            let is_most = by.len() > members.len() / 2;
            let is_more = by.len() >= 2 && by.len() > mine && case.rounds >= ROUNDS;
            let Case { exec, own, .. } = *case;
            (is_most || is_more).then_some(Outvoted { exec, own, theirs, by })
        })
    }

    /// Another round of telling begins.
    fn round(&mut self) {
        self.cases.iter_mut().for_each(|case| case.rounds += 1);
    }

    /// The own state is another one now, taken from a peer.
    pub fn jumped(&mut self) {
        (self.own, self.cases) = (Kept::default(), Vec::new());
        self.differing = NodeSet::EMPTY;
        self.peers.iter_mut().for_each(|peer| peer.other = None);
    }

    /// Of these nodes, whose states are not that of this one.
    fn others(&self, of: NodeSet) -> impl Iterator<Item = (u8, Other)> + '_ {
        let differing = NodeSet(of.0 & self.differing.0);
        differing.iter().filter_map(|node| Some((node, self.peers[usize::from(node)].other?)))
    }

    /// That states differ, if any do, for the person who runs the node.
    fn problem(&self, of: NodeSet) -> Option<String> {
        let (node, Other { exec, own, theirs }) = self.others(of).next()?;
        let agreeing = of.without(self.differing);
        let with = agreeing.iter().filter(|it| self.peers[usize::from(*it)].same >= Some(exec));
        let with = with.map(|node| node.to_string()).collect::<Vec<_>>().join(", ");
        let advice = match with.is_empty() {
            true => format!(
                "nobody else can say which of the two is right, so both go on: start one and then the \
                 other again, which reads their states from their disks, and if they still differ \
                 find out which is right and put an empty disk in the place of the other one with \
                 `racos member replace`, {node} or this one"
            ),
            false => format!(
                "the state here is that of nodes {with} too: start node {node} again, which reads its \
                 state from its disk, and if they still differ put an empty disk in its place with \
                 `racos member replace {node}`"
            ),
        };
        Some(format!(
            "the state of node {node} is not that of this one: with all slots below {exec} executed its \
             hash is {theirs:032x} there and {own:032x} here; {advice}"
        ))
    }

    fn status(&self, of: NodeSet) -> StatesStatus {
        let highest = of.iter().filter_map(|node| self.peers[usize::from(node)].same).max();
        StatesStatus {
            compared: self.same,
            same_until: highest.unwrap_or(0),
            differing: self.others(of).map(|(node, _)| node).collect(),
        }
    }
}

/// Why a node stops whose state is not that of the others.
fn reason(me: u8, outvoted: &Outvoted) -> String {
    let Outvoted { exec, own, theirs, by } = outvoted;
    let by = by.iter().map(|node| node.to_string()).collect::<Vec<_>>().join(" and ");
    format!(
        "the state of this node is not that of the others: with all slots below {exec} executed its hash \
         is {own:032x} here and {theirs:032x} at nodes {by}; a bit of its memory flipped, or there is a fault in \
         racos: keep a copy of its directory for whoever looks for that, and start the node again, \
         which reads the state from its disk; if it stops so again, put an empty disk in its place \
         with `racos member replace {me}`"
    )
}

impl<L: Link, D: Device> Node<L, D> {
    fn state_now(&self) -> Hashed {
        Hashed { exec: self.core.exec(), hash: self.machine.state_hash() }
    }

    /// All slots below `exec` are executed, one of those after which states are compared.
    #[cold]
    pub(crate) fn note_state(&mut self, exec: Slot) {
        self.states.note(Hashed { exec, hash: self.machine.state_hash() });
    }

    /// Tells the others what the own state is, and stops if it is known to be another one than theirs.
    pub(crate) fn tell_state(&mut self) {
        self.states.round();
        let members = self.members();
        let outvoted = self.states.outvoted(self.me, members);
        if let Some(outvoted) = outvoted.filter(|_| !mutant!("another state than the others'")) {
            let why = reason(self.me, &outvoted);
            return self.fail(why);
        }
        let mut head = Vec::with_capacity(1 + TOLD_MAX * 24);
        // What a hash is made of changes with what is exported: those of other versions are no news.
        head.put_u8(EXPORT_FORMAT);
        for told in self.states.telling(self.state_now()) {
            head.put_u64(told.exec);
            head.put_u128(told.hash);
        }
        for node in self.others().iter() {
            self.send(node, kind::STATES, &head, &[]);
        }
    }

    /// STATES.
    pub(crate) fn on_states(&mut self, from: u8, incarnation: u32, head: &[u8]) {
        let mut reader = Reader::new(head);
        if reader.u8("format") != Ok(EXPORT_FORMAT) {
            return;
        }
        let now = self.state_now();
        for _ in 0..TOLD_MAX {
            let (Ok(exec), Ok(hash)) = (reader.u64("exec"), reader.u128("hash")) else { return };
            self.states.heard(from, incarnation, Hashed { exec, hash }, now);
        }
    }

    /// A bit flips in the memory of this node, in builds that can leave guards out; in no other.
    #[doc(hidden)]
    pub fn harm_state(&mut self) {
        #[cfg(feature = "mutants")]
        self.machine.harm();
    }

    /// Nodes whose state is not that of this one, as far as is known.
    pub(crate) fn differing(&self) -> NodeSet {
        NodeSet(self.states.differing.0 & self.others().0)
    }

    /// That another node's state is not that of this one.
    pub(crate) fn state_problem(&self) -> Option<String> {
        self.states.problem(self.others())
    }

    pub(crate) fn states_status(&self) -> StatesStatus {
        self.states.status(self.others())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(exec: Slot, hash: u128) -> Hashed {
        Hashed { exec, hash }
    }

    /// The own state at these slots is 1.
    fn states(noted: &[Slot]) -> States {
        let mut states = States::default();
        noted.iter().for_each(|exec| states.note(hashed(*exec, 1)));
        states
    }

    fn outvoted(states: &States, n: usize) -> Option<(Slot, Vec<u8>)> {
        let found = states.outvoted(0, NodeSet::first(n))?;
        Some((found.exec, found.by.iter().collect()))
    }

    /// tests PROTOCOL 9.2-a
    #[test]
    fn a_majority_with_another_state_stops_the_odd_node() {
        let (mut states, now) = (states(&[64, 128]), hashed(130, 1));
        states.heard(1, 1, hashed(128, 1), now);
        assert_eq!((states.same, states.problem(NodeSet::first(5))), (1, None));
        states.heard(2, 1, hashed(128, 2), now);
        states.heard(3, 1, hashed(128, 2), now);
        states.heard(3, 1, hashed(128, 2), now);
        assert_eq!(outvoted(&states, 5), None, "two and two");
        states.heard(4, 1, hashed(64, 2), now);
        assert_eq!(outvoted(&states, 5), None, "of another slot");
        states.heard(4, 1, hashed(128, 2), now);
        assert_eq!(outvoted(&states, 5), Some((128, vec![2, 3, 4])));
        // It is one of the odd ones that looks: it goes on.
        assert_eq!(outvoted(&states, 9), None);
    }

    /// tests PROTOCOL 9.2-a: those who have not said anything may be dead.
    #[test]
    fn two_that_agree_stop_the_third_once_all_have_had_the_time_to_speak() {
        let (mut states, now) = (states(&[64]), hashed(70, 1));
        states.heard(1, 1, hashed(64, 2), now);
        states.heard(2, 1, hashed(64, 2), now);
        assert_eq!(outvoted(&states, 5), None);
        (0..ROUNDS).for_each(|_| states.round());
        assert_eq!(outvoted(&states, 5), Some((64, vec![1, 2])));
        states.heard(3, 1, hashed(64, 1), now);
        assert_eq!(outvoted(&states, 5), None, "two and two");
        // Those who are no members do not count.
        states.heard(7, 1, hashed(64, 2), now);
        assert_eq!(outvoted(&states, 5), None);
    }

    /// tests PROTOCOL 9.2-a
    #[test]
    fn of_two_that_differ_neither_stops_and_both_say_so() {
        let (mut states, now) = (states(&[64]), hashed(70, 1));
        states.heard(1, 1, hashed(64, 2), now);
        (0..100).for_each(|_| states.round());
        assert_eq!(outvoted(&states, 3), None);
        let problem = states.problem(NodeSet::first(3)).expect("it is said");
        assert!(
            problem.contains("all slots below 64 executed") && problem.contains("nobody else"),
            "{problem}"
        );
        assert_eq!(states.status(NodeSet::first(3)).differing, vec![1]);
        states.heard(2, 1, hashed(64, 1), now);
        let problem = states.problem(NodeSet::first(3)).expect("it is said");
        assert!(problem.contains("that of nodes 2 too"), "{problem}");
        assert!(problem.contains("`racos member replace 1`"), "{problem}");
        // It was started again and has read a good state.
        states.heard(1, 1, hashed(64, 1), now);
        assert_eq!(states.problem(NodeSet::first(3)), None);
        assert!(states.cases.is_empty());
    }

    #[test]
    fn what_a_node_ahead_said_is_compared_when_this_one_gets_there() {
        let mut states = states(&[64]);
        states.heard(1, 1, hashed(128, 2), hashed(70, 1));
        states.heard(1, 1, hashed(131, 2), hashed(70, 1));
        assert!(states.status(NodeSet::first(3)).differing.is_empty());
        states.note(hashed(128, 1));
        assert_eq!(states.status(NodeSet::first(3)).differing, vec![1]);
        // At rest, at any slot.
        states.heard(1, 1, hashed(131, 1), hashed(131, 1));
        assert!(states.status(NodeSet::first(3)).differing.is_empty());
    }

    #[test]
    fn another_disk_and_another_state_begin_anew() {
        let (mut states, now) = (states(&[64]), hashed(70, 1));
        states.heard(1, 1, hashed(64, 2), now);
        states.heard(1, 2, hashed(64, 1), now);
        assert_eq!((states.problem(NodeSet::first(3)), states.cases.len()), (None, 0));
        states.heard(1, 1, hashed(64, 2), now);
        assert_eq!(states.problem(NodeSet::first(3)), None, "a straggler of the old disk");
        states.heard(2, 1, hashed(64, 2), now);
        states.jumped();
        assert_eq!((states.problem(NodeSet::first(3)), states.cases.len()), (None, 0));
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_largest_steps_last_longest() {
        let mut states = States::default();
        let slots: Vec<Slot> = (1..=5000).map(|number| number << STEPS[0]).collect();
        for exec in &slots {
            states.note(hashed(*exec, 1));
            (1..MEMBERS_MAX as u8)
                .for_each(|node| states.heard(node, 1, hashed(*exec, 2), hashed(*exec, 1)));
        }
        assert!(states.own.0.iter().all(|kept| kept.len() <= OWN_KEPT));
        assert!(states.cases.len() <= STEPS.len() * CASES_KEPT);
        assert!(states.cases.iter().all(|case| case.told.len() < MEMBERS_MAX));
        let last = *slots.last().unwrap();
        let told: Vec<Slot> =
            states.telling(hashed(last + 1, 1)).iter().map(|it| it.exec).collect();
        let newest = |step: u32| slots.iter().rev().find(|exec| exec.trailing_zeros() >= step);
        assert_eq!(told.len(), TOLD_MAX);
        assert!(STEPS.iter().all(|step| told.contains(newest(*step).unwrap())), "{told:?}");
    }
}
