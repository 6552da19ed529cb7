//! Exhaustive search of what is stored before it has a slot (PROTOCOL 6.3, 9.7), as a model of its own: one
//! operation of one owner, every order of storing, counting, assigning, deciding, executing, restarting,
//! telling FLOOR and dropping.
//!
//! Invariant: an operation that is assigned, or decided, is stored at D nodes, whatever was lost or late.
//! Each rule that a mutant leaves out must be refuted.

use racos_protocol::Thresholds;
use std::collections::{HashSet, VecDeque};

/// Slots of the owner that the search goes up to.
const SLOTS: u8 = 2;

/// A rule left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    None,
    /// Dropped as soon as the owner has settled it, whatever was executed.
    NoBar,
    /// Dropped though nobody has said that it is of no use.
    Timeout,
    /// Assigned when one node fewer than D has it.
    OneShort,
    /// FLOOR passes an operation that its owner may still assign.
    FloorTooHigh,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Slot {
    Free,
    Assigned,
    Batch,
    Null,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Owner {
    Storing,
    /// In the newest slot.
    Assigned,
    /// Executed, or forgotten by a restart.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Holder {
    stored: bool,
    /// It has said STORED, and the owner has counted it.
    said: bool,
    counted: bool,
    exec: u8,
    uses: bool,
    /// The bar below which it may drop what is settled, if FLOOR has come.
    bar: Option<u8>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    owner: Owner,
    next: u8,
    slots: [Slot; SLOTS as usize],
    holders: Vec<Holder>,
}

impl State {
    fn new(n: usize) -> State {
        let holder =
            Holder { stored: false, said: false, counted: false, exec: 0, uses: false, bar: None };
        State {
            owner: Owner::Storing,
            next: 0,
            slots: [Slot::Free; SLOTS as usize],
            holders: vec![holder; n],
        }
    }

    /// Nodes are alike but for what they did: one order of them is enough.
    fn normal(mut self) -> State {
        self.holders
            .sort_unstable_by_key(|it| (it.stored, it.said, it.counted, it.exec, it.uses, it.bar));
        self
    }

    fn check(&self, durable: usize) -> Result<(), String> {
        let in_slot = self.slots.iter().any(|slot| matches!(slot, Slot::Assigned | Slot::Batch));
        let stored = self.holders.iter().filter(|holder| holder.stored).count();
        match in_slot && stored < durable {
            true => Err(format!("{stored} nodes hold what is in a slot: {self:?}")),
            false => Ok(()),
        }
    }

    fn next(&self, durable: usize, mutant: Mutant) -> Vec<State> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut State)| {
            let mut next = self.clone();
            change(&mut next);
            all.push(next.normal());
        };
        let counted = self.holders.iter().filter(|holder| holder.counted).count();
        let least = if mutant == Mutant::OneShort { durable - 1 } else { durable };
        if self.owner == Owner::Storing && counted >= least && self.next < SLOTS {
            step(&|state| {
                state.slots[usize::from(state.next)] = Slot::Assigned;
                state.next += 1;
                state.owner = Owner::Assigned;
            });
        }
        for slot in 0..usize::from(self.next) {
            if self.slots[slot] == Slot::Assigned {
                // The owner opens it again after a null, if it remembers it.
                step(&|state| {
                    state.slots[slot] = Slot::Null;
                    if state.owner == Owner::Assigned {
                        state.owner = Owner::Storing;
                    }
                });
                step(&|state| state.slots[slot] = Slot::Batch);
            }
        }
        if self.owner == Owner::Assigned && self.slots.contains(&Slot::Batch) {
            step(&|state| state.owner = Owner::Over);
        }
        if self.owner != Owner::Over {
            // Power is lost: what was counted is forgotten, and the operation is never assigned again.
            step(&|state| state.owner = Owner::Over);
        }
        for (index, holder) in self.holders.iter().enumerate() {
            // A STORE may be late; whoever knows that it is settled takes none.
            if !holder.stored && holder.bar.is_none() && !holder.uses {
                step(&|state| {
                    (state.holders[index].stored, state.holders[index].said) = (true, true);
                });
            }
            if holder.said && !holder.counted && self.owner != Owner::Over {
                step(&|state| state.holders[index].counted = true);
            }
            let settled = self.owner == Owner::Over || mutant == Mutant::FloorTooHigh;
            if settled && holder.bar != Some(self.next) {
                step(&|state| state.holders[index].bar = Some(state.next));
            }
            let decided = self.slots.get(usize::from(holder.exec));
            if let Some(Slot::Batch | Slot::Null) = decided {
                step(&|state| {
                    state.holders[index].uses |= decided == Some(&Slot::Batch);
                    state.holders[index].exec += 1;
                });
            }
            let may_drop = match mutant {
                Mutant::NoBar => holder.bar.is_some(),
                Mutant::Timeout => true,
                _ => holder.bar.is_some_and(|bar| holder.exec >= bar),
            };
            if holder.stored && may_drop && !holder.uses {
                step(&|state| state.holders[index].stored = false);
            }
        }
        all
    }
}

/// Every state that can be reached: how many.
fn search((n, f, k): (usize, usize, usize), mutant: Mutant) -> Result<usize, String> {
    let durable = Thresholds::new(n, f, k).unwrap().durable;
    let first = State::new(n).normal();
    let mut seen = HashSet::from([first.clone()]);
    let mut queue = VecDeque::from([first]);
    while let Some(state) = queue.pop_front() {
        state.check(durable)?;
        for next in state.next(durable, mutant) {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    Ok(seen.len())
}

/// tests PROTOCOL 6.3-b, 9.7-a, 9.7-b, 9.7-c, 9.7-f
#[test]
fn what_is_in_a_slot_is_stored_at_d_nodes_in_every_order() {
    for shape in [(3, 1, 1), (4, 1, 2), (5, 1, 3)] {
        let states = search(shape, Mutant::None).unwrap();
        println!("{shape:?}: {states} states");
    }
}

#[test]
fn every_rule_of_what_is_stored_is_needed() {
    let all = [Mutant::NoBar, Mutant::Timeout, Mutant::OneShort, Mutant::FloorTooHigh];
    for mutant in all {
        for shape in [(3, 1, 1), (5, 1, 3)] {
            let why = search(shape, mutant).expect_err("the search must refute this mutant");
            assert!(why.contains("hold what is in a slot"), "{mutant:?}: {why}");
        }
    }
}
