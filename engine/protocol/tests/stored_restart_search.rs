//! Exhaustive search of class R across restarts (PROTOCOL 4.3, 6.3, 9.7), as a model of its own: one operation of
//! one owner, and any other one of its second boot; what is appended and what is flushed told apart; every node may
//! lose power at any time, again and again.
//!
//! Invariants: an operation that is in a slot, or may come to be, is durable at D nodes; it is in one slot; and no slot
//! is assigned twice. Each rule that a mutant leaves out must be refuted.

use racos_protocol::Thresholds;
use std::collections::{HashSet, VecDeque};

const SLOTS_MAX: usize = 2;
const OWNER: usize = 0;
const STATES_MAX: usize = 400_000;
/// So many restarts: no end of them.
const ANY: u8 = u8::MAX;

/// A rule left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    None,
    /// STORED is said, or counted at the owner itself, before the flush.
    StoredEarly,
    OwnCountedEarly,
    /// Assigned when one node fewer than D has it.
    OneShort,
    /// A slot is assigned before R is flushed that reserves it.
    Unreserved,
    /// A restarted owner goes on behind the last own slot that its log shows.
    OpensUnknown,
    /// The bar of a restarted owner is what its log shows.
    BarOfMemory,
    /// A restarted owner assigns what it finds stored.
    AssignsFound,
    /// An operation gets another slot though the first one is not decided.
    AssignsTwice,
    /// Dropped as soon as the owner has settled it, whatever was executed.
    NoBar,
    /// What has no slot is dropped at a restart.
    DroppedAtRestart,
    /// Learned again, it is taken as of no use: exec is remembered and what was executed is not.
    UseForgotten,
}

/// What is in a node's log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Kept {
    Nothing,
    Appended,
    Durable,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Node {
    fragment: Kept,
    /// STORED was said; it was counted.
    said: bool,
    counted: bool,
    /// ASSIGN of each slot, and with it PROPOSE(1).
    assign: [Kept; SLOTS_MAX],
    exec: u8,
    /// What it has executed names the operation.
    uses: bool,
    /// The bar below which it may drop what is settled, if FLOOR has come.
    bar: Option<u8>,
}

/// Who has a slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Slot {
    Free,
    Assigned,
    Batch,
    Null,
    /// Of another operation, of the second boot.
    Other,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    nodes: Vec<Node>,
    slots: Vec<Slot>,
    /// Of the owner: it has begun anew; its next slot; R as flushed, and as appended.
    is_new: bool,
    next: u8,
    reserved: u8,
    appended: u8,
    /// R as found at the restart, or what the mutant takes for it.
    found: u8,
    /// It has the operation in hand, and waits for that slot.
    in_hand: bool,
    waits_for: Option<u8>,
    restarts_left: u8,
    /// Not the owner only.
    by_any: bool,
}

impl State {
    fn new(n: usize, slots: usize, restarts_left: u8, by_any: bool) -> State {
        let node = Node {
            fragment: Kept::Nothing,
            said: false,
            counted: false,
            assign: [Kept::Nothing; SLOTS_MAX],
            exec: 0,
            uses: false,
            bar: None,
        };
        State {
            nodes: vec![node; n],
            slots: vec![Slot::Free; slots],
            is_new: false,
            next: 0,
            reserved: 0,
            appended: 0,
            found: 0,
            in_hand: true,
            waits_for: None,
            restarts_left,
            by_any,
        }
    }

    /// Nodes but for the owner are alike but for what they did.
    fn normal(mut self) -> State {
        if !self.by_any {
            // Who never loses power has flushed as soon as it has appended.
            for node in &mut self.nodes[1..] {
                node.said |= node.fragment == Kept::Appended;
                for kept in node.assign.iter_mut().chain([&mut node.fragment]) {
                    *kept = if *kept == Kept::Appended { Kept::Durable } else { *kept };
                }
            }
        }
        if !self.in_hand {
            // Nobody counts any more.
            self.nodes.iter_mut().for_each(|node| (node.said, node.counted) = (false, false));
        }
        self.nodes[1..].sort_unstable();
        self
    }

    fn count(&self, is: impl Fn(&Node) -> bool) -> usize {
        self.nodes.iter().filter(|node| is(node)).count()
    }

    fn check(&self, t: &Thresholds) -> Result<(), String> {
        let may_hold = |slot: &&Slot| matches!(slot, Slot::Assigned | Slot::Batch);
        let durable = self.count(|node| node.fragment == Kept::Durable);
        if self.slots.iter().any(|slot| may_hold(&slot)) && durable < t.durable {
            return Err(format!("{durable} nodes hold what is in a slot: {self:?}"));
        }
        match self.slots.iter().filter(|slot| **slot == Slot::Batch).count() {
            0 | 1 => Ok(()),
            _ => Err(format!("it is in two slots: {self:?}")),
        }
    }

    /// What FLOOR says of the operation: nothing while it is in hand.
    fn floor(&self) -> Option<u8> {
        let is_settled = self.is_new && !self.in_hand || self.nodes[OWNER].uses;
        is_settled.then_some(if self.is_new { self.found } else { self.next })
    }

    fn assign(&mut self, slot: u8) {
        self.slots[usize::from(slot)] = Slot::Assigned;
        self.nodes[OWNER].assign[usize::from(slot)] = Kept::Appended;
        self.next = slot + 1;
        self.waits_for = Some(slot);
    }

    /// Power is lost: what was not flushed is gone, and what was learned may be.
    fn restart(&mut self, index: usize, exec: u8, mutant: Mutant) {
        if self.restarts_left != ANY {
            self.restarts_left -= 1;
        }
        let node = &mut self.nodes[index];
        for kept in node.assign.iter_mut().chain([&mut node.fragment]) {
            if *kept == Kept::Appended {
                *kept = Kept::Nothing;
            }
        }
        if mutant == Mutant::DroppedAtRestart && node.assign == [Kept::Nothing; SLOTS_MAX] {
            node.fragment = Kept::Nothing;
        }
        (node.exec, node.bar) = (exec, None);
        node.uses = mutant != Mutant::UseForgotten
            && self.slots[..usize::from(exec)].contains(&Slot::Batch);
        if index != OWNER {
            return;
        }
        let shown = node.assign.iter().rposition(|kept| *kept == Kept::Durable);
        let shown = shown.map_or(0, |slot| slot as u8 + 1);
        self.appended = self.reserved;
        // PROTOCOL 4.3-f, 9.7-c
        self.next = if mutant == Mutant::OpensUnknown { shown } else { self.reserved };
        self.found = if mutant == Mutant::BarOfMemory { shown } else { self.reserved };
        self.is_new = true;
        // PROTOCOL 11-n: it does not open it again.
        self.in_hand = mutant == Mutant::AssignsFound;
        self.waits_for = None;
    }

    fn next(&self, t: &Thresholds, mutant: Mutant) -> Result<Vec<State>, String> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut State)| {
            let mut next = self.clone();
            change(&mut next);
            all.push(next.normal());
        };
        self.owner_steps(t, mutant, &mut step)?;
        for (index, held) in self.slots.iter().enumerate() {
            let proposed = self.count(|node| node.assign[index] == Kept::Durable);
            if *held == Slot::Assigned && proposed >= t.ready_support {
                step(&|state| state.slots[index] = Slot::Batch);
            }
            // L3: with so many proposals the slot is decided with the batch.
            if matches!(held, Slot::Free | Slot::Assigned) && proposed < t.ready_fast {
                step(&|state| state.slots[index] = Slot::Null);
            }
        }
        for index in 0..self.nodes.len() {
            self.node_steps(index, mutant, &mut step);
        }
        Ok(all)
    }

    fn owner_steps(
        &self,
        t: &Thresholds,
        mutant: Mutant,
        step: &mut impl FnMut(&dyn Fn(&mut State)),
    ) -> Result<(), String> {
        if usize::from(self.appended) < self.slots.len() {
            step(&|state| state.appended += 1);
        }
        if self.reserved < self.appended {
            step(&|state| state.reserved = state.appended);
        }
        let reserved =
            if mutant == Mutant::Unreserved { self.slots.len() as u8 } else { self.reserved };
        let (next, least) = match mutant {
            Mutant::OneShort => (self.next, t.durable - 1),
            _ => (self.next, t.durable),
        };
        let enough = self.count(|node| node.counted) >= least;
        let is_free = self.waits_for.is_none() || mutant == Mutant::AssignsTwice;
        if next < reserved {
            let held = self.slots[usize::from(next)];
            // PROTOCOL 6.1-l: it may have learned that the slot is null.
            if held == Slot::Null {
                step(&|state| state.next += 1);
            }
            if self.in_hand && enough && is_free && held == Slot::Free {
                step(&|state| state.assign(next));
            }
            if self.is_new && matches!(held, Slot::Assigned | Slot::Batch) {
                return Err(format!("slot {next} is assigned twice: {self:?}"));
            }
            if self.is_new && held == Slot::Free {
                step(&|state| {
                    state.slots[usize::from(next)] = Slot::Other;
                    state.next += 1;
                });
            }
        }
        // It learns that its slot is null, and what is stored may have the next one.
        if self.waits_for.is_some_and(|slot| self.slots[usize::from(slot)] == Slot::Null) {
            step(&|state| state.waits_for = None);
        }
        Ok(())
    }

    fn node_steps(&self, index: usize, mutant: Mutant, step: &mut impl FnMut(&dyn Fn(&mut State))) {
        let node = &self.nodes[index];
        let early = |own: bool| {
            let is_out = if own { Mutant::OwnCountedEarly } else { Mutant::StoredEarly };
            mutant == is_out
        };
        match node.fragment {
            // STORE of the first boot may come late to others; whoever knows that it is settled takes none.
            Kept::Nothing
                if node.bar.is_none() && !node.uses && (index != OWNER || !self.is_new) =>
            {
                step(&|state| state.nodes[index].fragment = Kept::Appended);
            }
            Kept::Appended => step(&|state| {
                state.nodes[index].fragment = Kept::Durable;
                state.nodes[index].said = true;
            }),
            _ => {}
        }
        let may_say = node.said || node.fragment == Kept::Appended && early(index == OWNER);
        if self.in_hand && may_say && !node.counted {
            step(&|state| state.nodes[index].counted = true);
        }
        for slot in usize::from(node.exec)..self.slots.len() {
            match node.assign[slot] {
                // PROTOCOL 6.3-c: with the fragment or without. The owner has recorded its own, or has forgotten it.
                Kept::Nothing if self.slots[slot] == Slot::Assigned && index != OWNER => {
                    step(&|state| state.nodes[index].assign[slot] = Kept::Appended);
                }
                Kept::Appended => step(&|state| state.nodes[index].assign[slot] = Kept::Durable),
                _ => {}
            }
        }
        if let Some(held) = self.slots.get(usize::from(node.exec))
            && matches!(held, Slot::Batch | Slot::Null | Slot::Other)
        {
            step(&|state| {
                state.nodes[index].uses |= *held == Slot::Batch;
                state.nodes[index].exec += 1;
            });
        }
        if let Some(bar) = self.floor().filter(|bar| node.bar != Some(*bar)) {
            step(&|state| state.nodes[index].bar = Some(bar));
        }
        let may_drop =
            node.bar.is_some_and(|bar| node.exec >= bar || mutant == Mutant::NoBar) && !node.uses;
        if node.fragment != Kept::Nothing && may_drop {
            step(&|state| state.nodes[index].fragment = Kept::Nothing);
        }
        if self.restarts_left > 0 && (self.by_any || index == OWNER) {
            step(&|state| state.restart(index, node.exec, mutant));
            step(&|state| state.restart(index, 0, mutant));
        }
    }
}

#[derive(Default, Debug)]
struct Found {
    states: usize,
    /// It was decided; and dropped by a node that knows it is settled.
    written: bool,
    dropped: bool,
}

/// n, f, k; slots of the owner; how often power is lost; and whether by any node, or by the owner only.
type Scope = ((usize, usize, usize), usize, u8, bool);

const SCOPES: [Scope; 4] = [
    ((3, 1, 1), 1, ANY, true),
    ((3, 1, 1), 2, ANY, false),
    ((4, 1, 2), 1, 1, true),
    ((5, 1, 3), 1, ANY, false),
];

/// Every state that can be reached.
fn search(((n, f, k), slots, restarts, by_any): Scope, mutant: Mutant) -> Result<Found, String> {
    let t = Thresholds::new(n, f, k).unwrap();
    let first = State::new(n, slots, restarts, by_any).normal();
    let mut seen = HashSet::from([first.clone()]);
    let mut queue = VecDeque::from([first]);
    let mut found = Found::default();
    while let Some(state) = queue.pop_front() {
        state.check(&t)?;
        found.written |= state.slots.contains(&Slot::Batch);
        found.dropped |=
            state.nodes.iter().any(|node| node.bar.is_some() && node.fragment == Kept::Nothing);
        for next in state.next(&t, mutant)? {
            if seen.insert(next.clone()) {
                queue.push_back(next);
                assert!(seen.len() < STATES_MAX, "too many states to search them all");
            }
        }
    }
    found.states = seen.len();
    Ok(found)
}

/// tests PROTOCOL 4.1-d, 4.3-b, 4.3-g, 6.3-b, 6.3-c, 9.7-a, 9.7-c
#[test]
fn what_is_in_a_slot_is_stored_at_d_nodes_whoever_loses_power() {
    for scope in SCOPES {
        let found = search(scope, Mutant::None).unwrap();
        println!("{scope:?}: {} states", found.states);
        assert!(found.written && found.dropped, "{found:?}");
    }
}

/// tests PROTOCOL 4.1-d, 4.3-b, 4.3-g, 6.3-b, 9.7-a, 9.7-c, 11-n
#[test]
fn every_rule_of_class_r_across_restarts_is_needed() {
    let (held, two, twice) = ("hold what is in a slot", "in two slots", "assigned twice");
    for (mutant, slots, because) in [
        (Mutant::StoredEarly, 1, held),
        (Mutant::OwnCountedEarly, 1, held),
        (Mutant::OneShort, 1, held),
        (Mutant::Unreserved, 1, twice),
        (Mutant::OpensUnknown, 1, twice),
        (Mutant::BarOfMemory, 1, held),
        // Two slots, or dropped between them: what comes first.
        (Mutant::AssignsFound, 2, ""),
        (Mutant::AssignsTwice, 2, two),
        (Mutant::NoBar, 1, held),
        (Mutant::DroppedAtRestart, 1, held),
        (Mutant::UseForgotten, 1, held),
    ] {
        for shape in [(3, 1, 1), (4, 1, 2)] {
            let why =
                search((shape, slots, 1, slots == 1), mutant).map(|found| format!("{found:?}"));
            let why = why.expect_err(&format!("the search must refute {mutant:?} at {shape:?}"));
            assert!(why.contains(because), "{mutant:?} at {shape:?}: {why}");
        }
    }
}
