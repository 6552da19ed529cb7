//! Exhaustive search of guarded batches (PROTOCOL 6.2-i), as a model of its own: one lease that has run out
//! everywhere, one renewal of it, a batch in each of one or two slots that ends it; every order of opening, asking,
//! promising, flushing, answering, deciding, executing and restarting, within the time to live after the renewal came.
//!
//! Invariant: the renewal is not acknowledged and the lease ended, in whatever order. A slot may be decided
//! with its batch as soon as so many nodes as a batch needs have promised it durably, which is what the search of one slot
//! shows (`search.rs`), and null at any time. Each rule that a mutant leaves out must be refuted.

use racos_protocol::Thresholds;
use std::collections::{HashSet, VecDeque};

const SLOTS_MAX: usize = 2;
/// The node that the client asks to renew.
const ASKED: usize = 0;
const STATES_MAX: usize = 400_000;

/// A rule left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    None,
    /// Only who opens the batch looks at its clock.
    OthersDoNotLook,
    /// A node looks when the batch comes, and not again when it promises.
    LooksEarly,
    /// An answer does not tell what the node has promised.
    NoMark,
    /// It tells promises that are flushed.
    MarkOfFlushed,
    /// Whoever has executed the end says nothing of it.
    SilentAfterwards,
    /// Who answers does not note the renewal.
    NotNoted,
    /// Clocks start in the past.
    OldAfterRestart,
    /// Acknowledged by so few that none of them need have promised.
    QuorumShort,
    /// Decided by so few that none of them need have answered.
    SupportShort,
    /// The renewal is acknowledged whatever was promised before it.
    DoesNotWait,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Said {
    Nothing,
    /// Only of a mutant: the guard held when it was asked.
    Looked,
    Appended,
    Durable,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Node {
    /// It has noted the renewal, or begun anew: its clock allows no end in the time that is looked at.
    is_fresh: bool,
    exec: u8,
    said: [Said; SLOTS_MAX],
    /// Its answer: all slots below this are to be executed first.
    answer: Option<u8>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    nodes: Vec<Node>,
    opened: [bool; SLOTS_MAX],
    /// Whether each slot holds its batch, or nothing.
    decided: [Option<bool>; SLOTS_MAX],
    is_acknowledged: bool,
    slots: usize,
    restarts_left: u8,
}

fn owner(slot: usize) -> usize {
    slot + 1
}

impl State {
    fn new(n: usize, slots: usize, restarts_left: u8) -> State {
        let said = [Said::Nothing; SLOTS_MAX];
        let node = Node { is_fresh: false, exec: 0, said, answer: None };
        State {
            nodes: vec![node; n],
            opened: [false; SLOTS_MAX],
            decided: [None; SLOTS_MAX],
            is_acknowledged: false,
            slots,
            restarts_left,
        }
    }

    /// Nodes that own no slot and are not asked are alike but for what they did.
    fn normal(mut self) -> State {
        if self.is_acknowledged {
            self.nodes.iter_mut().for_each(|node| node.answer = None);
        }
        self.nodes[1 + self.slots..].sort_unstable();
        self
    }

    fn has_ended(&self) -> bool {
        self.decided.contains(&Some(true))
    }

    /// No batch is left that could end the lease.
    fn is_settled(&self) -> bool {
        self.decided[..self.slots].iter().all(|held| *held == Some(false))
    }

    fn check(&self) -> Result<(), String> {
        match self.is_acknowledged && self.has_ended() {
            true => Err(format!("a renewal is acknowledged and the lease ended: {self:?}")),
            false => Ok(()),
        }
    }

    /// The last slot that this node has executed with a batch.
    fn end_executed(&self, node: &Node) -> Option<usize> {
        (0..usize::from(node.exec)).rfind(|slot| self.decided[*slot] == Some(true))
    }

    fn guard_holds(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        !node.is_fresh && self.end_executed(node).is_none()
    }

    /// What a node answers: see `lease_ages`.
    fn answer(&self, node: &Node, mutant: Mutant) -> u8 {
        let least = match mutant {
            Mutant::MarkOfFlushed => Said::Durable,
            _ => Said::Appended,
        };
        let is_named = |slot: &usize| node.said[*slot] >= least && mutant != Mutant::NoMark;
        let mark = (usize::from(node.exec)..self.slots).rfind(is_named);
        let end = self.end_executed(node).filter(|_| mutant != Mutant::SilentAfterwards);
        mark.max(end).map_or(0, |slot| slot as u8 + 1)
    }

    /// Whether some quorum of the answers, with its own, lets the node that was asked acknowledge.
    /// Another quorum may make it wait, or find the end; it then acknowledges nothing.
    fn may_acknowledge(&self, quorum: usize, mutant: Mutant) -> bool {
        let asked = &self.nodes[ASKED];
        let is_past = |above: u8| above <= asked.exec || mutant == Mutant::DoesNotWait;
        let past = self.nodes.iter().filter(|node| node.answer.is_some_and(is_past)).count();
        asked.answer.is_some_and(is_past) && past >= quorum && self.end_executed(asked).is_none()
    }

    fn restart(&mut self, index: usize, exec: u8, mutant: Mutant) {
        self.restarts_left -= 1;
        let node = &mut self.nodes[index];
        for said in node.said.iter_mut().filter(|said| **said < Said::Durable) {
            *said = Said::Nothing;
        }
        node.is_fresh = mutant != Mutant::OldAfterRestart;
        node.exec = exec;
    }

    fn next(&self, t: &Thresholds, mutant: Mutant) -> Vec<State> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut State)| {
            let mut next = self.clone();
            change(&mut next);
            all.push(next.normal());
        };
        let (mut quorum, mut support) = (t.quorum, t.support);
        match mutant {
            Mutant::QuorumShort => quorum = t.n - t.support,
            Mutant::SupportShort => support = t.n - t.quorum,
            _ => {}
        }
        for slot in (0..self.slots).filter(|slot| self.decided[*slot].is_none()) {
            step(&|state| state.decided[slot] = Some(false));
            let promised = self.nodes.iter().filter(|node| node.said[slot] == Said::Durable);
            if promised.count() >= support {
                step(&|state| state.decided[slot] = Some(true));
            }
        }
        if !self.is_acknowledged && self.may_acknowledge(quorum, mutant) {
            step(&|state| state.is_acknowledged = true);
        }
        for (index, node) in self.nodes.iter().enumerate() {
            self.promises(index, mutant, &mut step);
            if self.decided.get(usize::from(node.exec)).is_some_and(Option::is_some) {
                step(&|state| state.nodes[index].exec += 1);
            }
            // It may be asked again, and the last answer be the first that comes.
            if !self.is_acknowledged {
                let answer = Some(self.answer(node, mutant));
                step(&|state| {
                    state.nodes[index].answer = answer;
                    state.nodes[index].is_fresh |= mutant != Mutant::NotNoted;
                });
            }
            // If the node that was asked forgets it, nobody will ever be told anything.
            let is_over = index == ASKED && !self.is_acknowledged;
            if self.restarts_left > 0 && !is_over {
                // What it had learned may not be in its log.
                step(&|state| state.restart(index, node.exec, mutant));
                step(&|state| state.restart(index, 0, mutant));
            }
        }
        all
    }

    fn promises(&self, index: usize, mutant: Mutant, step: &mut impl FnMut(&dyn Fn(&mut State))) {
        let node = &self.nodes[index];
        for slot in usize::from(node.exec)..self.slots {
            let becomes = |said| move |state: &mut State| state.nodes[index].said[slot] = said;
            let is_owner = owner(slot) == index;
            let holds = self.guard_holds(index);
            match node.said[slot] {
                // PROTOCOL 6.1-a: opened once.
                Said::Nothing if is_owner && !self.opened[slot] && holds => step(&|state| {
                    state.opened[slot] = true;
                    becomes(Said::Appended)(state);
                }),
                Said::Nothing if is_owner || !self.opened[slot] => {}
                Said::Nothing if mutant == Mutant::LooksEarly && holds => {
                    step(&becomes(Said::Looked))
                }
                // What it refuses it may be asked again, and nothing is noted of it: the more it may promise.
                Said::Nothing if holds || mutant == Mutant::OthersDoNotLook => {
                    step(&becomes(Said::Appended));
                }
                Said::Looked => step(&becomes(Said::Appended)),
                Said::Appended => step(&becomes(Said::Durable)),
                Said::Nothing | Said::Durable => {}
            }
        }
    }
}

#[derive(Default, Debug)]
struct Found {
    states: usize,
    ended: bool,
    acknowledged: bool,
}

/// n, f, k; slots; and restarts of any node.
type Scope = ((usize, usize, usize), usize, u8);

const SCOPES: [Scope; 6] = [
    ((3, 1, 1), 1, 3),
    ((3, 1, 1), 2, 0),
    ((4, 1, 2), 1, 2),
    ((5, 1, 2), 1, 1),
    ((5, 1, 3), 1, 1),
    ((5, 2, 1), 1, 1),
];

/// Every state that can be reached.
fn search(((n, f, k), slots, restarts): Scope, mutant: Mutant) -> Result<Found, String> {
    let t = Thresholds::new(n, f, k).unwrap();
    let first = State::new(n, slots, restarts).normal();
    let mut seen = HashSet::from([first.clone()]);
    let mut queue = VecDeque::from([first]);
    let mut found = Found::default();
    while let Some(state) = queue.pop_front() {
        state.check()?;
        found.states += 1;
        found.ended |= state.has_ended();
        found.acknowledged |= state.is_acknowledged;
        if state.is_settled() {
            continue;
        }
        for next in state.next(&t, mutant) {
            if seen.insert(next.clone()) {
                queue.push_back(next);
                assert!(seen.len() < STATES_MAX, "too many states to search them all");
            }
        }
    }
    Ok(found)
}

/// tests PROTOCOL 6.2-i
#[test]
fn no_lease_ends_that_was_renewed_in_any_order() {
    for scope in SCOPES {
        let found = search(scope, Mutant::None).unwrap();
        println!("{scope:?}: {} states", found.states);
        assert!(found.ended && found.acknowledged, "both can happen: {found:?}");
    }
}

/// tests PROTOCOL 6.2-i, 6.2-j
#[test]
fn every_rule_of_guarded_batches_is_needed() {
    let all = [
        Mutant::OthersDoNotLook,
        Mutant::LooksEarly,
        Mutant::NoMark,
        Mutant::MarkOfFlushed,
        Mutant::SilentAfterwards,
        Mutant::NotNoted,
        Mutant::OldAfterRestart,
        Mutant::QuorumShort,
        Mutant::SupportShort,
        Mutant::DoesNotWait,
    ];
    for mutant in all {
        for scope in SCOPES.into_iter().filter(|(_, slots, _)| *slots == 1) {
            let ((n, f, k), slots, _) = scope;
            let t = Thresholds::new(n, f, k).unwrap();
            // So many nodes have answered and promise, and all of them must have forgotten it.
            let restarts =
                if mutant == Mutant::OldAfterRestart { t.quorum + t.support - n } else { 0 };
            let why = search(((n, f, k), slots, restarts as u8), mutant)
                .map(|found| format!("{found:?}"));
            let why = why.expect_err(&format!("the search must refute {mutant:?} at {scope:?}"));
            assert!(why.contains("acknowledged and the lease ended"), "{mutant:?}: {why}");
        }
    }
}
