//! Exhaustive search of class R across a RECONF (PROTOCOL 6.3, 9.7, 10): one write; a slot of its owner between
//! the change and its effect, and one behind the effect. Members join, leave, are exchanged, or stay with another
//! code; one who left is lost, or wiped as soon as it may be; other disks are lost at any time or never.
//!
//! The write is an operation coded for the members before the change and, if that is given up, another one
//! coded for those after it. Which slots the owner may open, who counts in them, and how many are needed, the
//! shipped [`Core`] says, at each exec; what a slot comes to hold is open. STORED is counted as soon as it is said, since
//! counting it later is no more than assigning later; FLOOR is heard at once, with the lowest bar that 9.7-b
//! allows, since hearing it later is no more than dropping later.
//!
//! Invariant: an operation that is in a slot, or may come to be, can be decoded by the code of its layout, whichever
//! of that layout's members, up to its f, are lost in all; and the write is in one slot at most. Each rule
//! that a mutant leaves out must be refuted.

mod changes;

use changes::{Log, executing};
use racos_protocol::{Change, Config, Configuration, Core, Node, NodeSet, Recovery};
use racos_protocol::{Membership, Seat, Slot};
use std::collections::{HashSet, VecDeque};

const OWNER: Node = 0;
/// Slots of the owner, before the effect of the change and behind it; and, as they number operations, what is
/// coded for the members before the change, and after it.
const BEFORE: usize = 0;
const BEHIND: usize = 1;
const STATES_MAX: usize = 3_000_000;

/// How far a disk has executed: it knows of the change, the slots before its effect, the one behind.
const KNOWS: u8 = 1;
const FILLED: u8 = 2;
const ALL: u8 = 3;

/// A rule left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    None,
    /// The slot behind the effect takes what is coded for the members before it.
    OtherLayout,
    /// The same, and STORED of those who left counts there.
    WhoLeftCounts,
    /// The slot behind the effect is assigned by who has not executed the change.
    Unknowing,
    /// The slot behind the effect asks for as many STOREDs as one before it.
    AsManyAsBefore,
    /// Whoever knows of the change goes by it in the slot before its effect too.
    AtOnce,
    /// What waits in a slot is given up with what waits for one.
    GivenUpInItsSlot,
    /// What the owner has settled is dropped before the slots below the bar are executed.
    NoBar,
    /// What an owner that leaves has stored is of no use as soon as the change is executed.
    BarAtChange,
    /// An owner that leaves goes on behind the effect.
    OldOwnerGoesOn,
    /// One who leaves is wiped with the effect, or with the change, whatever values it holds.
    WipedAtEffect,
    WipedAtChange,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Part {
    Never,
    /// It is stored, and STORED was said.
    Held,
    /// STORED was said.
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Life {
    Here,
    Lost,
    Wiped,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Disk {
    parts: [Part; 2],
    level: u8,
    life: Life,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Held {
    Free,
    Null,
    /// An operation may come to be in it, or is.
    Assigned(usize),
    Batch(usize),
}

impl Held {
    fn operation(self) -> Option<usize> {
        match self {
            Held::Assigned(op) | Held::Batch(op) => Some(op),
            _ => None,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    disks: Vec<Disk>,
    slots: [Held; 2],
    in_hand: Option<usize>,
}

impl State {
    fn is_in_a_slot(&self, op: usize) -> bool {
        self.slots.iter().any(|held| held.operation() == Some(op))
    }

    /// Whether a disk that has executed so far has executed the operation.
    fn uses(&self, level: u8, op: usize) -> bool {
        let executed = self.slots.iter().take(usize::from(level).saturating_sub(1));
        executed.into_iter().any(|held| *held == Held::Batch(op))
    }
}

type Shape = (&'static [Node], usize, usize);

struct Search {
    layouts: [Configuration; 2],
    /// The owner at each level, but the last one, at which it has nothing left to open.
    owner: Vec<Core>,
    numbers: [Slot; 2],
    mutant: Mutant,
}

impl Search {
    fn new(before: Shape, after: Shape, mutant: Mutant) -> Search {
        let (n, is) = (before.0.len() as Slot, after.0.len() as Slot);
        // The owner's slots: the second one is where the change takes effect, one turn lies between.
        let effect = n * is * 2;
        let alpha = (n + 1).max(is);
        let change = effect - alpha;
        let next = Configuration::new(effect, after.0.to_vec(), after.1, after.2).unwrap();
        let log: Log =
            vec![(change, Change::Reconfigure { next: next.clone(), lost: NodeSet::EMPTY })];
        let founding = Configuration::new(0, before.0.to_vec(), before.1, before.2).unwrap();
        let shape = (before.0.len(), before.1, before.2);
        let config = Config { alpha, own_slots_max: 1, ..Config::new(shape, OWNER) };
        let mut recovery = Recovery::new(config).unwrap();
        recovery.begin_at(change);
        let membership = Membership {
            seats: vec![Seat { incarnation: 1, from: 0 }; before.0.len()],
            lost: NodeSet::EMPTY,
            configurations: vec![founding.clone()],
            epoch: 1,
            effect: 0,
        };
        recovery.configure(membership).unwrap();
        let all = executing(recovery.finish(0), &log, effect);
        let owner = vec![all[0].clone(), all[1].clone(), all.last().unwrap().clone()];
        let numbers = [effect - n, effect];
        assert_eq!(owner[0].can_open(), Some(numbers[BEFORE]));
        Search { layouts: [founding, next], owner, numbers, mutant }
    }

    fn first(&self) -> State {
        let nodes = self.layouts.iter().flat_map(|it| &it.members).max().unwrap();
        let disk = Disk { parts: [Part::Never; 2], level: 0, life: Life::Here };
        State {
            disks: vec![disk; usize::from(*nodes) + 1],
            slots: [Held::Free; 2],
            in_hand: Some(BEFORE),
        }
    }

    fn is_in(&self, node: usize, layout: usize) -> bool {
        self.layouts[layout].contains(node as Node)
    }

    /// Nodes of one kind are alike, but the owner; and what is in no slot, and never will be, is like nothing.
    fn normal(&self, mut state: State) -> State {
        for op in [BEFORE, BEHIND] {
            let is_to_come = op == BEHIND && state.in_hand == Some(BEFORE);
            if state.in_hand != Some(op) && !state.is_in_a_slot(op) && !is_to_come {
                state.disks.iter_mut().for_each(|disk| disk.parts[op] = Part::Gone);
            }
        }
        let kind = |node: usize| (self.is_in(node, BEFORE), self.is_in(node, BEHIND));
        let mut from = 1;
        for to in 2..=state.disks.len() {
            if to == state.disks.len() || kind(to) != kind(from) {
                state.disks[from..to].sort_unstable();
                from = to;
            }
        }
        state
    }

    fn lost(&self, state: &State, layout: usize) -> usize {
        let disks = state.disks.iter().enumerate();
        disks.filter(|(node, disk)| self.is_in(*node, layout) && disk.life == Life::Lost).count()
    }

    fn check(&self, state: &State) -> Result<(), String> {
        for op in state.slots.iter().filter_map(|held| held.operation()) {
            let t = &self.layouts[op].thresholds;
            let held = state.disks.iter().filter(|disk| disk.parts[op] == Part::Held).count();
            let may_go = t.f - self.lost(state, op);
            if held < t.durable - t.f + may_go {
                return Err(format!("{held} disks hold what is in a slot: {state:?}"));
            }
        }
        match state.slots {
            [Held::Batch(_), Held::Batch(_)] => Err(format!("it is in two slots: {state:?}")),
            _ => Ok(()),
        }
    }

    /// The slot that the owner may open, as the shipped core has it.
    fn opens(&self, level: u8) -> Option<usize> {
        let can_open = self.owner.get(usize::from(level))?.can_open();
        self.numbers.iter().position(|number| Some(*number) == can_open)
    }

    fn may_open(&self, level: u8, slot: usize) -> bool {
        match self.mutant {
            Mutant::Unknowing if level < KNOWS => true,
            Mutant::AtOnce if level == KNOWS => true,
            Mutant::OldOwnerGoesOn if level >= KNOWS && slot == BEHIND => level < ALL,
            _ => self.opens(level) == Some(slot),
        }
    }

    fn may_assign(&self, state: &State, slot: usize) -> bool {
        let owner = &state.disks[usize::from(OWNER)];
        let Some(op) = state.in_hand.filter(|_| owner.life == Life::Here) else { return false };
        let is_next = state.slots[slot..].iter().all(|held| *held == Held::Free);
        if !is_next || state.is_in_a_slot(op) || !self.may_open(owner.level, slot) {
            return false;
        }
        // PROTOCOL 10-w: coded for the members of the slot.
        let takes_any = [
            Mutant::OtherLayout,
            Mutant::WhoLeftCounts,
            Mutant::Unknowing,
            Mutant::AtOnce,
            Mutant::OldOwnerGoesOn,
        ];
        if op != slot && !takes_any.contains(&self.mutant) {
            return false;
        }
        // PROTOCOL 6.3-b, 10-w: who counts there, and how many: as the engine asks the core.
        let core = &self.owner[usize::from(owner.level).min(self.owner.len() - 1)];
        let (mut counted_in, mut asked_in) = (self.numbers[slot], self.numbers[slot]);
        match self.mutant {
            Mutant::WhoLeftCounts | Mutant::OldOwnerGoesOn => counted_in = self.numbers[BEFORE],
            Mutant::AsManyAsBefore => asked_in = self.numbers[BEFORE],
            Mutant::AtOnce => (counted_in, asked_in) = (self.numbers[BEHIND], self.numbers[BEHIND]),
            _ => {}
        }
        let said = state.disks.iter().enumerate().filter(|(_, it)| it.parts[op] != Part::Never);
        let counted = said.filter(|(node, _)| core.counts(*node as Node, 1, counted_in)).count();
        counted >= core.at(asked_in).thresholds.durable
    }

    fn next(&self, state: &State) -> Vec<State> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut State)| {
            let mut next = state.clone();
            change(&mut next);
            all.push(self.normal(next));
        };
        for slot in [BEFORE, BEHIND] {
            if self.may_assign(state, slot) {
                step(&|state| state.slots[slot] = Held::Assigned(state.in_hand.unwrap()));
            }
            if let Held::Assigned(op) = state.slots[slot] {
                step(&|state| state.slots[slot] = Held::Null);
                step(&|state| state.slots[slot] = Held::Batch(op));
            }
        }
        // It was skipped, or nulled.
        if state.slots[BEFORE] == Held::Free {
            step(&|state| state.slots[BEFORE] = Held::Null);
        }
        self.owner_steps(state, &mut step);
        for node in 0..state.disks.len() {
            if state.disks[node].life == Life::Here {
                self.disk_steps(state, node, &mut step);
                self.end_steps(state, node, &mut step);
            }
        }
        all
    }

    /// What is given up, which nothing forbids while it has no slot.
    fn owner_steps(&self, state: &State, step: &mut impl FnMut(&dyn Fn(&mut State))) {
        let Some(op) = state.in_hand else { return };
        let is_early = self.mutant == Mutant::GivenUpInItsSlot;
        if state.is_in_a_slot(op) && !is_early {
            return;
        }
        step(&|state| state.in_hand = None);
        // PROTOCOL 10-w: stored again under a new name.
        let owner = &state.disks[usize::from(OWNER)];
        if op == BEFORE && owner.level >= KNOWS && self.is_in(usize::from(OWNER), BEHIND) {
            step(&|state| state.in_hand = Some(BEHIND));
        }
    }

    fn disk_steps(&self, state: &State, node: usize, step: &mut impl FnMut(&dyn Fn(&mut State))) {
        let disk = &state.disks[node];
        let may_go_on = match disk.level {
            0 => true,
            level => {
                let held = state.slots.get(usize::from(level) - 1);
                matches!(held, Some(Held::Null | Held::Batch(_)))
            }
        };
        if may_go_on {
            step(&|state| state.disks[node].level += 1);
        }
        for op in [BEFORE, BEHIND] {
            // PROTOCOL 6.3-a: to all of its layout.
            let is_sent = state.in_hand == Some(op) && self.is_in(node, op);
            if is_sent && disk.parts[op] == Part::Never && !state.uses(disk.level, op) {
                step(&|state| state.disks[node].parts[op] = Part::Held);
            }
            if disk.parts[op] == Part::Held && self.may_drop(state, disk.level, op) {
                step(&|state| state.disks[node].parts[op] = Part::Gone);
            }
        }
    }

    /// PROTOCOL 9.7-a, 9.7-b, 9.7-d
    fn may_drop(&self, state: &State, level: u8, op: usize) -> bool {
        if state.uses(level, op) {
            return false;
        }
        let effect = if self.mutant == Mutant::BarAtChange { KNOWS } else { FILLED };
        if !self.is_in(usize::from(OWNER), BEHIND) && level >= effect {
            return true;
        }
        let owner = &state.disks[usize::from(OWNER)];
        let opened = state.slots.iter().rposition(|held| held.operation() == Some(op));
        let bar = opened.map_or(0, |slot| slot as u8 + 2);
        let is_given_up = state.in_hand != Some(op) && owner.life == Life::Here;
        (is_given_up || state.uses(owner.level, op))
            && (level >= bar || self.mutant == Mutant::NoBar)
    }

    /// A disk is lost, which no layout sees more than f times, or wiped when it has left.
    fn end_steps(&self, state: &State, node: usize, step: &mut impl FnMut(&dyn Fn(&mut State))) {
        let mut end = |life| {
            step(&|state: &mut State| {
                let disk = &mut state.disks[node];
                disk.life = life;
                for part in disk.parts.iter_mut().filter(|part| **part == Part::Held) {
                    *part = Part::Gone;
                }
                if node == usize::from(OWNER) {
                    // Its clients try again, elsewhere.
                    state.in_hand = None;
                }
            });
        };
        let is_borne = |layout: usize| {
            !self.is_in(node, layout)
                || self.lost(state, layout) < self.layouts[layout].thresholds.f
        };
        if is_borne(BEFORE) && is_borne(BEHIND) {
            end(Life::Lost);
        }
        // PROTOCOL 10-ad: RELEASED is executed behind the effect, and void while a value names its layout.
        let (least, is_asked) = match self.mutant {
            Mutant::WipedAtEffect => (FILLED, false),
            Mutant::WipedAtChange => (KNOWS, true),
            _ => (FILLED, true),
        };
        let level = state.disks[node].level;
        if !self.is_in(node, BEHIND) && level >= least && !(is_asked && state.uses(level, BEFORE)) {
            end(Life::Wiped);
        }
    }
}

#[derive(Default, Debug)]
struct Found {
    states: usize,
    /// A slot came to hold it: which slot, before the effect or behind it.
    held: [bool; 2],
    dropped: bool,
    wiped: bool,
}

/// Every state that can be reached.
fn search((before, after): (Shape, Shape), mutant: Mutant) -> Result<Found, String> {
    let search = Search::new(before, after, mutant);
    let first = search.first();
    let mut seen = HashSet::from([first.clone()]);
    let mut queue = VecDeque::from([first]);
    let mut found = Found::default();
    while let Some(state) = queue.pop_front() {
        search.check(&state)?;
        for slot in [BEFORE, BEHIND] {
            found.held[slot] |= matches!(state.slots[slot], Held::Batch(_));
        }
        let gone = |disk: &Disk| disk.life == Life::Here && disk.parts.contains(&Part::Gone);
        found.dropped |= state.disks.iter().any(gone);
        found.wiped |= state.disks.iter().any(|disk| disk.life == Life::Wiped);
        for next in search.next(&state) {
            if seen.insert(next.clone()) {
                queue.push_back(next);
                assert!(seen.len() < STATES_MAX, "too many states to search them all");
            }
        }
    }
    found.states = seen.len();
    Ok(found)
}

const THREE: Shape = (&[0, 1, 2], 1, 1);
const FOUR: Shape = (&[0, 1, 2, 3], 1, 2);
const GROWS: (Shape, Shape) = (THREE, FOUR);
const SHRINKS: (Shape, Shape) = (FOUR, THREE);
/// Node 3 comes and node 2 goes; the owner goes; the same members with another code.
const EXCHANGES: (Shape, Shape) = (THREE, (&[0, 1, 3], 1, 1));
const OWNER_GOES: (Shape, Shape) = (THREE, (&[1, 2, 3], 1, 1));
const OTHER_CODE: (Shape, Shape) = ((&[0, 1, 2], 0, 2), THREE);
const FIVE: Shape = (&[0, 1, 2, 3, 4], 1, 3);

/// tests PROTOCOL 10-w, 10-ad, 9.7-a, 9.7-b, 9.7-d, 10-r
#[test]
fn what_is_in_a_slot_can_be_decoded_whoever_joins_and_leaves() {
    for change in [GROWS, SHRINKS, EXCHANGES, OWNER_GOES, OTHER_CODE] {
        holds(change);
    }
}

/// tests PROTOCOL 10-w, 10-ad, 9.7-a, 9.7-b, 9.7-d
#[test]
fn what_is_in_a_slot_can_be_decoded_whatever_five_become() {
    let two_lost: Shape = (&[0, 1, 2, 3, 4], 2, 1);
    for change in [(THREE, FIVE), (FIVE, (&[0, 3, 4], 1, 1)), (FIVE, two_lost)] {
        holds(change);
    }
}

#[track_caller]
fn holds((before, after): (Shape, Shape)) {
    let found = search((before, after), Mutant::None).unwrap();
    println!("{before:?} to {after:?}: {found:?}");
    assert!(found.held[BEFORE] && found.dropped, "{found:?}");
    let is_owner_there = after.0.contains(&OWNER);
    let leave = before.0.iter().any(|node| !after.0.contains(node));
    assert_eq!((found.held[BEHIND], found.wiped), (is_owner_there, leave));
}

/// tests PROTOCOL 10-w, 10-ad, 9.7-a, 9.7-d, 10-l, 10-n, 10-r, 6.2-h
#[test]
fn every_rule_of_class_r_across_another_list_of_members_is_needed() {
    let (held, twice) = ("disks hold what is in a slot", "it is in two slots");
    for (mutant, change, because) in [
        (Mutant::OtherLayout, SHRINKS, held),
        (Mutant::WhoLeftCounts, EXCHANGES, held),
        (Mutant::Unknowing, EXCHANGES, held),
        (Mutant::AsManyAsBefore, GROWS, held),
        (Mutant::AtOnce, SHRINKS, held),
        (Mutant::GivenUpInItsSlot, GROWS, twice),
        (Mutant::NoBar, EXCHANGES, held),
        (Mutant::BarAtChange, OWNER_GOES, held),
        (Mutant::OldOwnerGoesOn, OWNER_GOES, held),
        (Mutant::WipedAtEffect, EXCHANGES, held),
        (Mutant::WipedAtChange, EXCHANGES, held),
    ] {
        let why = search(change, mutant).map(|found| format!("{found:?}"));
        let why = why.expect_err(&format!("the search must refute {mutant:?}"));
        println!("{mutant:?}: {why}");
        assert!(why.contains(because), "{mutant:?}: {why}");
    }
}
