//! Exhaustive search of a change of the members at small scope (PROTOCOL 8, 10, 13).
//!
//! Slot 0 holds the change, slot 1 a write of the configuration before it, slot 2, where the change
//! takes effect, a write of the one after it. Every interleaving of who names, learns and executes
//! which slot is searched, and in every state a read is begun at every node that may serve one, with
//! every set of answers that the rules accept: none may miss a write that was acknowledged before.
//! Decisions are as easy as the proofs allow: a slot counts as decided once a majority of its
//! configuration has named it (L7). Each rule left out must be refuted by the same search.

use racos_protocol::{
    Action, Ballot, Configuration, Consensus, Decision, Node, NodeSet, Value, Waiting,
};
use std::collections::HashSet;

/// Which quorums a reader collects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ask {
    Before,
    After,
    Both,
}

/// The rules, and what a mutant leaves out of them.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// A reader that has executed the change, not all slots before its effect; one that has.
    filling: Ask,
    after: Ask,
    /// READR tells the epoch; the change touches every key.
    epoch: bool,
    change_marked: bool,
    /// A mutant: every answer counts in both quorums.
    everybody_counts: bool,
    /// A mutant: the change takes effect where it is executed, whoever has not executed it yet.
    at_once: bool,
}

const SHIPPED: Rules = Rules {
    filling: Ask::Both,
    after: Ask::After,
    epoch: true,
    change_marked: true,
    everybody_counts: false,
    at_once: false,
};

/// What one node has done: slots executed (0 to 3), and slots named, a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Local {
    exec: u8,
    named: u8,
}

struct Model {
    rules: Rules,
    before: Configuration,
    after: Configuration,
    nodes: usize,
}

impl Model {
    fn new(before: (&[Node], usize, usize), after: (&[Node], usize, usize), rules: Rules) -> Model {
        let made = |from, (members, f, k): (&[Node], usize, usize)| {
            Configuration::new(from, members.to_vec(), f, k).expect("a possible cluster")
        };
        let nodes = before.0.iter().chain(after.0).max().map_or(0, |node| usize::from(*node) + 1);
        Model { rules, before: made(0, before), after: made(2, after), nodes }
    }

    fn named(&self, state: &[Local], slot: u8, configuration: &Configuration) -> bool {
        let members = configuration.members.iter().map(|node| state[usize::from(*node)]);
        let named = members.filter(|local| local.named >> slot & 1 == 1).count();
        named >= configuration.thresholds.majority
    }

    fn is_decided(&self, state: &[Local], slot: u8) -> bool {
        match slot {
            2 => {
                self.named(state, slot, &self.after)
                    || (self.rules.at_once && self.named(state, slot, &self.before))
            }
            _ => self.named(state, slot, &self.before),
        }
    }

    /// Whether a node may name a slot now.
    fn takes_part(&self, node: Node, local: Local, slot: u8) -> bool {
        if local.exec > slot || local.named >> slot & 1 == 1 {
            return false;
        }
        let (was, is) = (self.before.contains(node), self.after.contains(node));
        match slot {
            2 if self.rules.at_once && local.exec == 0 => was,
            // PROTOCOL 10-l, 10-t: only who knows the configuration of the slot; a new member only
            // after all slots before it.
            2 => is && local.exec >= if was { 1 } else { 2 },
            _ => was,
        }
    }

    fn successors(&self, state: &[Local]) -> Vec<Vec<Local>> {
        let mut next = Vec::new();
        for (node, local) in state.iter().enumerate() {
            let mut push = |local| {
                let mut state = state.to_vec();
                state[node] = local;
                next.push(state);
            };
            for slot in 0..3 {
                if self.takes_part(node as Node, *local, slot) {
                    push(Local { named: local.named | 1 << slot, ..*local });
                }
            }
            if local.exec < 3 && self.is_decided(state, local.exec) {
                push(Local { exec: local.exec + 1, ..*local });
            }
        }
        next
    }

    /// Nodes of one kind are alike.
    fn canonical(&self, mut state: Vec<Local>) -> Vec<Local> {
        let kind = |node: usize| {
            let node = node as Node;
            (self.before.contains(node), self.after.contains(node))
        };
        let mut from = 0;
        for to in 1..=state.len() {
            if to == state.len() || kind(to) != kind(from) {
                state[from..to].sort_unstable();
                from = to;
            }
        }
        state
    }

    fn search(&self) -> Result<usize, String> {
        let mut seen = HashSet::new();
        let mut front = vec![vec![Local { exec: 0, named: 0 }; self.nodes]];
        while let Some(state) = front.pop() {
            if !seen.insert(state.clone()) {
                continue;
            }
            self.check_reads(&state)?;
            let next = self.successors(&state).into_iter();
            front.extend(next.map(|state| self.canonical(state)));
        }
        Ok(seen.len())
    }

    /// The highest write acknowledged: decided, and all lower slots too.
    fn acknowledged(&self, state: &[Local]) -> Option<u8> {
        let decided = (0..3).take_while(|slot| self.is_decided(state, *slot)).count();
        (decided >= 2).then(|| decided as u8 - 1)
    }

    fn check_reads(&self, state: &[Local]) -> Result<(), String> {
        let Some(newest) = self.acknowledged(state) else { return Ok(()) };
        for reader in 0..self.nodes {
            let (node, exec) = (reader as Node, state[reader].exec);
            let (was, is) = (self.before.contains(node), self.after.contains(node));
            // PROTOCOL 10-r, 10-t: one that leaves refuses clients, one that joins is not there yet.
            let serves = if was { is || exec == 0 } else { exec >= 2 };
            if serves {
                self.check_read(state, reader, newest)?;
            }
        }
        Ok(())
    }

    /// What a node answers at the earliest: it says no less later.
    fn answer(&self, node: Node, local: Local) -> Option<Local> {
        let (was, is) = (self.before.contains(node), self.after.contains(node));
        match (was, is) {
            // PROTOCOL 10-t: once it has executed up to the effect.
            (false, _) => Some(Local { exec: local.exec.max(2), ..local }),
            (true, false) => (local.exec < 2).then_some(local),
            (true, true) => Some(local),
        }
    }

    fn check_read(&self, state: &[Local], reader: usize, newest: u8) -> Result<(), String> {
        let own = state[reader];
        let ask = match own.exec {
            0 => Ask::Before,
            1 => self.rules.filling,
            _ => self.rules.after,
        };
        for set in 0u32..1 << self.nodes {
            if set >> reader & 1 == 0 {
                continue;
            }
            let mut counted = [0; 2];
            let (mut exec, mut mark, mut is_usable) = (own.exec, None, true);
            for node in (0..self.nodes).filter(|node| set >> node & 1 == 1) {
                let answer = match node == reader {
                    true => Some(own),
                    false => self.answer(node as Node, state[node]),
                };
                let Some(answer) = answer else {
                    is_usable = false;
                    break;
                };
                // PROTOCOL 8.1-q, 10-y: a newer epoch: the reader executes it and starts again.
                is_usable &= !(self.rules.epoch && answer.exec > 0 && own.exec == 0);
                let both = self.rules.everybody_counts;
                counted[0] += usize::from(both || self.before.contains(node as Node));
                counted[1] += usize::from(both || self.after.contains(node as Node));
                exec = exec.max(answer.exec);
                let lowest = answer.exec.max(u8::from(!self.rules.change_marked));
                let highest = (lowest..3).rev().find(|slot| answer.named >> slot & 1 == 1);
                mark = mark.max(highest);
            }
            let old = counted[0] >= self.before.thresholds.quorum;
            let new = counted[1] >= self.after.thresholds.quorum;
            let enough = match ask {
                Ask::Before => old,
                Ask::After => new,
                Ask::Both => old && new,
            };
            if !is_usable || !enough {
                continue;
            }
            // PROTOCOL 8.1-j, 8.1-l: a prefix up to the newest exec, or up to the mark; a reader that
            // executes the change meanwhile starts again.
            let waits = mark.filter(|mark| *mark >= exec);
            let restarts = waits.is_some() && own.exec == 0 && self.rules.epoch;
            let shown = waits.map_or(exec, |mark| mark + 1);
            if !restarts && shown <= newest {
                return Err(format!("node {reader} misses slot {newest}: {set:b} of {state:?}"));
            }
        }
        Ok(())
    }
}

type Shape = (&'static [Node], usize, usize);

const THREE: Shape = (&[0, 1, 2], 1, 1);
/// From, to: growing, shrinking, both at once, another f or k for the same members.
const CHANGES: [(Shape, Shape); 7] = [
    (THREE, (&[0, 1, 2, 3], 1, 2)),
    ((&[0, 1, 2, 3], 1, 2), (&[1, 2, 3], 1, 1)),
    (THREE, (&[0, 1, 2, 3, 4], 1, 3)),
    ((&[0, 1, 2, 3, 4], 1, 3), (&[2, 3, 4], 1, 1)),
    (THREE, (&[1, 2, 3], 1, 1)),
    ((&[0, 1, 2, 3, 4], 1, 3), (&[0, 1, 2, 3, 4], 2, 1)),
    ((&[0], 0, 1), (&[0, 1, 2], 1, 1)),
];

/// tests PROTOCOL 10-l, 10-r, 10-t, 10-x, 10-y
#[test]
fn no_read_across_a_change_misses_an_acknowledged_write() {
    for (before, after) in CHANGES {
        let found = Model::new(before, after, SHIPPED).search();
        let states = found.unwrap_or_else(|why| panic!("{before:?} to {after:?}: {why}"));
        assert!(states > 50, "{before:?} to {after:?}: {states} states");
    }
}

/// tests PROTOCOL 10-l, 10-x, 10-y
#[test]
fn each_rule_of_a_change_left_out_is_refuted() {
    let mutants = [
        ("the change is seen by nobody", Rules { epoch: false, change_marked: false, ..SHIPPED }),
        ("the old quorum only", Rules { filling: Ask::Before, ..SHIPPED }),
        ("the new quorum only", Rules { filling: Ask::After, ..SHIPPED }),
        ("the old quorum after the effect", Rules { after: Ask::Before, ..SHIPPED }),
        ("everybody counts in both", Rules { everybody_counts: true, ..SHIPPED }),
        ("the change takes effect at once", Rules { at_once: true, ..SHIPPED }),
    ];
    for (name, rules) in mutants {
        let refuted = CHANGES
            .iter()
            .filter(|(before, after)| Model::new(*before, *after, rules).search().is_err());
        let refuted = refuted.count();
        println!("{name}: refuted by {refuted} of {} changes", CHANGES.len());
        assert!(refuted > 0, "{name} breaks nothing");
    }
}

/// One node of a slot that counts by some configuration and votes as soon as it may.
fn decides(configuration: &Configuration, proposals: &[(Node, Value)]) -> Option<Value> {
    let mut consensus = Consensus::default();
    let t = &configuration.thresholds;
    let counted = proposals.iter().filter(|(node, _)| configuration.contains(*node));
    for (node, value) in counted {
        consensus.propose(*node, *value, 0, t.quorum).unwrap();
    }
    let followed = consensus.follow(t).unwrap();
    followed.map(|Decision { value, .. }| value)
}

/// tests PROTOCOL 10-l, 12.1-h
/// Two configurations in one slot, by the shipped rules: the members of the old one decide its batch,
/// those of the new one null, of the same proposals.
#[test]
fn two_configurations_in_one_slot_decide_two_values() {
    let old = Configuration::new(0, vec![0, 1, 2, 3, 4, 5, 6], 1, 1).unwrap();
    let new = Configuration::new(0, vec![5, 6], 0, 1).unwrap();
    let batch = Value::Batch(7);
    let proposals: Vec<(Node, Value)> =
        (0..7).map(|node| (node, if node < 5 { batch } else { Value::Null })).collect();
    assert_eq!(decides(&old, &proposals), Some(batch));
    assert_eq!(decides(&new, &proposals), Some(Value::Null));
}

/// tests PROTOCOL 12.1-h
/// A vote of a node that is no member of the slot's configuration is not counted: the quorum of those
/// who are decides what is voted.
#[test]
fn thresholds_of_a_slot_wait_for_its_members_only() {
    let five = Configuration::new(0, vec![0, 2, 3, 4, 6], 1, 3).unwrap();
    let mut consensus = Consensus::default();
    let t = &five.thresholds;
    assert_eq!(t.members, NodeSet(0b101_1101));
    for node in [0, 2, 3, 4] {
        consensus.propose(node, Value::Batch(9), 0, t.quorum).unwrap();
    }
    let config = racos_protocol::Config {
        n: 3,
        f: 1,
        k: 1,
        me: 6,
        incarnation: 1,
        lane: 0,
        alpha: 64,
        policy: racos_protocol::Policy::OwnerSlots,
        fast: racos_protocol::Fast::Support,
        own_slots_max: 2,
        timing: racos_protocol::Timing::default(),
        coin: racos_protocol::CoinKey(1, 2),
        local_coin: racos_protocol::CoinKey(3, 4),
    };
    // One member is awaited; all others are in.
    let waiting = Waiting { now: 5, suspected: NodeSet::EMPTY, vote_wait: 10, support_wait: 10 };
    assert_eq!(consensus.advance(0, &config, t, waiting), Ok(Action::WaitUntil(10)));
    let suspected = NodeSet(1 << 6);
    let ballot = Ballot::For(Value::Batch(9));
    let waiting = Waiting { suspected, ..waiting };
    assert_eq!(consensus.advance(0, &config, t, waiting), Ok(Action::Vote { phase: 0, ballot }));
}
