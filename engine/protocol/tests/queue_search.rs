//! Exhaustive search of slots that are filled from queues (PROTOCOL 6.4): three nodes, two operations, two
//! slots, every order of storing, telling, proposing, deciding, learning, restarting and passing over.
//!
//! The queues are the shipped [`Queue`]; a slot is decided in every way that its proposals allow, as the
//! search of one slot shows (`search.rs`). States are known by a hash of 64 bits. Invariant: no operation is in two slots.
//! Each rule that a mutant leaves out must be refuted.

use racos_protocol::{Class, Digest, Queue, Slot, Thresholds};
use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

const NODES: usize = 3;
const SLOTS: usize = 2;
/// Operation i is accepted by node i.
const OPERATIONS: usize = 2;
const STATES_MAX: usize = 1_000_000;
/// Slots that an operation could get: more than there are.
const LIFE: Slot = 100;

/// A rule left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    None,
    /// READY is believed, whatever was decided since it was said.
    Believed,
    /// What waits stays when slots are passed over.
    Kept,
    /// The next slot is proposed in before the one before is decided.
    Pipelined,
}

fn candidate(operation: usize) -> Digest {
    Class::Ready.mark((operation as Digest) << 96 | (1 + operation as Digest))
}

fn operation(candidate: Digest) -> usize {
    (candidate & 0xff) as usize - 1
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Node {
    queue: Queue,
    proposed: [Option<usize>; SLOTS],
    /// It has begun anew since it accepted its operation, which it never says is ready again.
    is_forgetful: bool,
    has_said_ready: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    nodes: Vec<Node>,
    decided: [Option<Option<usize>>; SLOTS],
    /// READYs ever sent: operation, and the slot below which it is in none.
    ready: [[bool; SLOTS + 1]; OPERATIONS],
    /// A restart, or a jump over slots.
    faults_left: u8,
}

impl State {
    fn new() -> State {
        let node = Node {
            queue: Queue::new(0, LIFE),
            proposed: [None; SLOTS],
            is_forgetful: false,
            has_said_ready: false,
        };
        State {
            nodes: vec![node; NODES],
            decided: [None; SLOTS],
            ready: [[false; SLOTS + 1]; OPERATIONS],
            faults_left: 1,
        }
    }

    /// PROTOCOL 6.4-d
    fn check(&self) -> Result<(), String> {
        for operation in 0..OPERATIONS {
            let slots = self.decided.iter().filter(|held| **held == Some(Some(operation)));
            if slots.count() > 1 {
                return Err(format!("operation {operation} is in two slots: {:?}", self.decided));
            }
        }
        Ok(())
    }

    /// What a slot may come to hold, by the proposals made so far.
    fn outcomes(&self, slot: usize, t: &Thresholds) -> Vec<Option<usize>> {
        let proposed = |it: &Node, of| it.proposed[slot] == Some(of);
        let by = |of: usize| self.nodes.iter().filter(|it| proposed(it, of)).count();
        let counts: Vec<usize> = (0..OPERATIONS).map(by).collect();
        let least = |count: &usize| *count >= t.ready_support;
        let mut outcomes: Vec<Option<usize>> =
            (0..OPERATIONS).filter(|operation| least(&counts[*operation])).map(Some).collect();
        let all: usize = counts.iter().sum();
        // L3: with fewer than the fast threshold some quorum may have heard too few of the same.
        if all >= t.quorum && counts.iter().all(|count| *count < t.ready_fast) {
            outcomes.push(None);
        }
        outcomes
    }

    fn next(&self, t: &Thresholds, mutant: Mutant) -> Vec<State> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut State)| {
            let mut next = self.clone();
            change(&mut next);
            all.push(next);
        };
        for slot in (0..SLOTS).filter(|slot| self.decided[*slot].is_none()) {
            for outcome in self.outcomes(slot, t) {
                step(&|state| state.decided[slot] = Some(outcome));
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let next = node.queue.next();
            if index < OPERATIONS && !node.has_said_ready && !node.is_forgetful {
                step(&|state| state.says_ready(index));
            }
            self.hears(index, mutant, &mut step);
            self.proposes(index, mutant, &mut step);
            if let Some(Some(held)) = self.decided.get(next as usize) {
                step(&|state| state.nodes[index].queue.decided(held.map(candidate)));
            }
            if self.faults_left > 0 {
                // What it had learned may not be in its log.
                step(&|state| state.restart(index, next));
                step(&|state| state.restart(index, 0));
            }
            let known = self.decided.iter().take_while(|held| held.is_some()).count() as Slot;
            if self.faults_left > 0 && known > next {
                step(&|state| state.jump(index, known, mutant));
            }
        }
        all
    }

    fn says_ready(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let below = node.queue.next();
        node.has_said_ready = true;
        if node.queue.ready(candidate(index), below) {
            self.ready[index][below as usize] = true;
        }
    }

    /// Whatever was ever said may come now, again and again.
    fn hears(&self, index: usize, mutant: Mutant, step: &mut impl FnMut(&dyn Fn(&mut State))) {
        let proposals = self.nodes.iter().flat_map(|node| {
            (0..).zip(node.proposed).filter_map(|(slot, it)| it.map(|it| (it, slot)))
        });
        let ready = self.ready.iter().enumerate().flat_map(|(operation, at)| {
            (0..).zip(at).filter(|(_, said)| **said).map(move |(below, _)| (operation, below))
        });
        for (operation, below) in proposals.chain(ready) {
            // Beyond everything decided there is nothing to compare with.
            let below = if mutant == Mutant::Believed { Slot::MAX } else { below };
            let mut queue = self.nodes[index].queue.clone();
            if queue.ready(candidate(operation), below) && queue != self.nodes[index].queue {
                step(&|state| state.nodes[index].queue = queue.clone());
            }
        }
    }

    fn proposes(&self, index: usize, mutant: Mutant, step: &mut impl FnMut(&dyn Fn(&mut State))) {
        let node = &self.nodes[index];
        let Some(oldest) = node.queue.oldest() else { return };
        let most = if mutant == Mutant::Pipelined { 2 } else { 1 };
        let slots = (node.queue.next() as usize..SLOTS).take(most);
        for slot in slots.filter(|slot| node.proposed[*slot].is_none()) {
            step(&|state| state.nodes[index].proposed[slot] = Some(operation(oldest)));
        }
    }

    /// PROTOCOL 4.1: what was proposed is in the log; the queue is not.
    fn restart(&mut self, index: usize, from: Slot) {
        self.faults_left -= 1;
        let node = &mut self.nodes[index];
        node.is_forgetful = true;
        node.queue = Queue::new(from, LIFE);
        for (slot, proposed) in (0..).zip(node.proposed) {
            if let Some(operation) = proposed.filter(|_| slot >= from) {
                node.queue.ready(candidate(operation), slot);
            }
        }
    }

    fn jump(&mut self, index: usize, to: Slot, mutant: Mutant) {
        self.faults_left -= 1;
        let queue = &mut self.nodes[index].queue;
        let waited: Vec<Digest> =
            (0..OPERATIONS).map(candidate).filter(|it| queue.contains(*it)).collect();
        queue.passed(to);
        if mutant == Mutant::Kept {
            waited.into_iter().for_each(|it| assert!(queue.ready(it, Slot::MAX)));
        }
    }
}

fn hash(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Every state that can be reached: how many, and whether both operations can get a slot.
fn search(mutant: Mutant) -> Result<(usize, bool), String> {
    let t = Thresholds::new(NODES, 1, 1).unwrap();
    let first = State::new();
    let mut seen = HashSet::from([hash(&first)]);
    let mut queue = VecDeque::from([first]);
    let mut both = false;
    while let Some(state) = queue.pop_front() {
        state.check()?;
        both |= (0..OPERATIONS).all(|it| state.decided.contains(&Some(Some(it))));
        for next in state.next(&t, mutant) {
            if seen.insert(hash(&next)) {
                queue.push_back(next);
                assert!(seen.len() < STATES_MAX, "too many states to search them all");
            }
        }
    }
    Ok((seen.len(), both))
}

/// tests PROTOCOL 6.4-b, 6.4-c, 6.4-d
#[test]
fn no_operation_is_in_two_slots_in_any_order() {
    let (states, both) = search(Mutant::None).unwrap();
    println!("{states} states");
    assert!(both, "both operations can be written");
}

/// tests PROTOCOL 6.4-d
#[test]
fn every_rule_of_the_queue_is_needed() {
    for mutant in [Mutant::Believed, Mutant::Kept, Mutant::Pipelined] {
        let why = search(mutant).expect_err("the search must refute this mutant");
        assert!(why.contains("in two slots"), "{mutant:?}: {why}");
    }
}
