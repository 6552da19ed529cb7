//! Exhaustive search of class R across a REPLACE (PROTOCOL 6.3, 9.7, 10), as a model of its own: one operation; a slot of its
//! owner between the change and its effect, and one behind the effect; the disk of a holder, or of the owner,
//! is replaced, and is lost at any time or never.
//!
//! Invariant: an operation that is in a slot, or may come to be, is stored at D members of that slot's
//! configuration, less the disk that is lost, and is in one slot. Each rule that a mutant leaves out must be refuted.

use racos_protocol::Thresholds;
use std::collections::{HashSet, VecDeque};

const OWNER: usize = 0;
/// Slots of the owner: before the effect of the change, and behind it.
const BEFORE: usize = 0;
const BEHIND: usize = 1;
const STATES_MAX: usize = 400_000;

/// A rule left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    None,
    /// STORED of a disk counts in every slot, whether it is a member there or not.
    AnyDisk,
    /// The slot behind the effect is assigned by who has not executed the change.
    Unknowing,
    /// What a replaced owner had stored is of no use as soon as the change is executed.
    BarAtChange,
    /// A replaced owner goes on behind the effect.
    OldOwnerGoesOn,
    /// The new disk answers for the one before it.
    SpeaksForOld,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Replaced {
    Holder,
    Owner,
}

/// One disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Disk {
    stored: bool,
    /// STORED was said; it was counted.
    said: bool,
    counted: bool,
    /// It has executed the change; and so many of the two slots.
    knows: bool,
    exec: u8,
    uses: bool,
    /// The bar below which it may drop what is settled, if FLOOR has come.
    bar: Option<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Slot {
    Free,
    Assigned,
    Batch,
    Null,
}

/// The disks: those of all nodes, then the new one of the last node, or of the owner.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    disks: Vec<Disk>,
    slots: [Slot; 2],
    /// The owner has the operation in hand, and waits for that slot.
    in_hand: bool,
    waits_for: Option<usize>,
    /// The replaced disk is lost.
    is_lost: bool,
}

struct Search {
    t: Thresholds,
    replaced: Replaced,
    mutant: Mutant,
}

impl Search {
    fn first(&self) -> State {
        let disk = Disk {
            stored: false,
            said: false,
            counted: false,
            knows: false,
            exec: 0,
            uses: false,
            bar: None,
        };
        State {
            disks: vec![disk; self.t.n + 1],
            slots: [Slot::Free; 2],
            in_hand: true,
            waits_for: None,
            is_lost: false,
        }
    }

    fn old(&self) -> usize {
        match self.replaced {
            Replaced::Holder => self.t.n - 1,
            Replaced::Owner => OWNER,
        }
    }

    fn new_disk(&self) -> usize {
        self.t.n
    }

    /// Whether a disk is a member in the configuration of a slot.
    fn counts(&self, disk: usize, slot: usize) -> bool {
        match slot {
            BEFORE => disk != self.new_disk(),
            _ => disk != self.old(),
        }
    }

    /// Holders that are not replaced are alike but for what they did.
    fn normal(&self, mut state: State) -> State {
        if !state.in_hand {
            state.disks.iter_mut().for_each(|disk| (disk.said, disk.counted) = (false, false));
        }
        let end = if self.replaced == Replaced::Holder { self.t.n - 1 } else { self.t.n };
        state.disks[1..end].sort_unstable();
        state
    }

    fn check(&self, state: &State) -> Result<(), String> {
        for slot in [BEFORE, BEHIND] {
            if !matches!(state.slots[slot], Slot::Assigned | Slot::Batch) {
                continue;
            }
            let holds = |(index, disk): &(usize, &Disk)| disk.stored && self.counts(*index, slot);
            let stored = state.disks.iter().enumerate().filter(holds).count();
            let lost = usize::from(state.is_lost && self.counts(self.old(), slot));
            if stored + lost < self.t.durable {
                return Err(format!("{stored} disks hold what is in slot {slot}: {state:?}"));
            }
        }
        match state.slots {
            [Slot::Batch, Slot::Batch] => Err(format!("it is in two slots: {state:?}")),
            _ => Ok(()),
        }
    }

    /// PROTOCOL 9.7-b, 9.7-d: what a disk knows of the owner's floor, if that passes the operation.
    fn floor(&self, state: &State, disk: &Disk) -> Option<u8> {
        if self.replaced == Replaced::Owner && disk.knows {
            let bar = if self.mutant == Mutant::BarAtChange { BEFORE } else { BEHIND };
            return Some(bar as u8);
        }
        let opened = state.slots.iter().rposition(|held| *held != Slot::Free);
        let is_settled = !state.in_hand || state.disks[OWNER].uses;
        is_settled.then_some(opened.map_or(0, |slot| slot as u8 + 1))
    }

    fn may_assign(&self, state: &State, slot: usize) -> bool {
        let owner = &state.disks[OWNER];
        let counted = |(index, disk): &(usize, &Disk)| {
            disk.counted && (self.counts(*index, slot) || self.mutant == Mutant::AnyDisk)
        };
        let counted = match (slot, self.mutant) {
            // By the members that it knows.
            (BEHIND, Mutant::Unknowing) if !owner.knows => {
                let old =
                    |(index, disk): &(usize, &Disk)| disk.counted && self.counts(*index, BEFORE);
                state.disks.iter().enumerate().filter(old).count()
            }
            _ => state.disks.iter().enumerate().filter(counted).count(),
        };
        let is_its_time = match slot {
            // PROTOCOL 10-n: who knows of the change goes on behind its effect.
            BEFORE => !owner.knows,
            _ => {
                let is_gone =
                    self.replaced == Replaced::Owner && self.mutant != Mutant::OldOwnerGoesOn;
                (owner.knows || self.mutant == Mutant::Unknowing) && !is_gone
            }
        };
        let is_next = state.slots[slot..].iter().all(|held| *held == Slot::Free);
        state.in_hand
            && state.waits_for.is_none()
            && is_next
            && is_its_time
            && counted >= self.t.durable
    }

    fn next(&self, state: &State) -> Vec<State> {
        let mut all = Vec::new();
        let mut step = |change: &dyn Fn(&mut State)| {
            let mut next = state.clone();
            change(&mut next);
            all.push(self.normal(next));
        };
        let is_owner_there = !(self.replaced == Replaced::Owner && state.is_lost);
        for slot in [BEFORE, BEHIND] {
            if is_owner_there && self.may_assign(state, slot) {
                step(&|state| {
                    state.slots[slot] = Slot::Assigned;
                    state.waits_for = Some(slot);
                });
            }
            if state.slots[slot] == Slot::Assigned {
                step(&|state| state.slots[slot] = Slot::Null);
                step(&|state| state.slots[slot] = Slot::Batch);
            }
        }
        // Nobody may use the slot before the effect any more: it was skipped, or nulled.
        if state.slots[BEFORE] == Slot::Free {
            step(&|state| state.slots[BEFORE] = Slot::Null);
        }
        if state.waits_for.is_some_and(|slot| state.slots[slot] == Slot::Null) {
            step(&|state| state.waits_for = None);
        }
        // It is given up, which nothing forbids while it has no slot.
        if state.in_hand && state.waits_for.is_none() {
            step(&|state| state.in_hand = false);
        }
        if !state.is_lost {
            step(&|state| {
                state.is_lost = true;
                state.disks[self.old()].stored = false;
                // Its clients try again, with another operation.
                state.in_hand &= self.replaced != Replaced::Owner;
            });
        }
        for index in 0..state.disks.len() {
            if index != self.old() || !state.is_lost {
                self.disk_steps(state, index, &mut step);
            }
            // What it said may be late.
            let disk = &state.disks[index];
            if disk.said && !disk.counted && state.in_hand {
                step(&|state| state.disks[index].counted = true);
            }
        }
        all
    }

    fn disk_steps(&self, state: &State, index: usize, step: &mut impl FnMut(&dyn Fn(&mut State))) {
        let disk = &state.disks[index];
        if !disk.stored && disk.bar.is_none() && !disk.uses {
            step(&|state| {
                (state.disks[index].stored, state.disks[index].said) = (true, true);
            });
        }
        let old_said = state.disks[self.old()].said;
        if self.mutant == Mutant::SpeaksForOld && index == self.new_disk() && old_said {
            step(&|state| state.disks[index].said = true);
        }
        if !disk.knows {
            return step(&|state| state.disks[index].knows = true);
        }
        let decided = state.slots.get(usize::from(disk.exec));
        if let Some(held @ (Slot::Batch | Slot::Null)) = decided {
            step(&|state| {
                state.disks[index].uses |= *held == Slot::Batch;
                state.disks[index].exec += 1;
            });
        }
        if let Some(bar) = self.floor(state, disk).filter(|bar| disk.bar != Some(*bar)) {
            step(&|state| state.disks[index].bar = Some(bar));
        }
        if disk.stored && disk.bar.is_some_and(|bar| disk.exec >= bar) && !disk.uses {
            step(&|state| state.disks[index].stored = false);
        }
    }
}

#[derive(Default, Debug)]
struct Found {
    states: usize,
    /// It was decided in the slot before the effect, or behind it; and dropped.
    held: [bool; 2],
    dropped: bool,
}

/// Every state that can be reached.
fn search(
    (n, f, k): (usize, usize, usize),
    replaced: Replaced,
    mutant: Mutant,
) -> Result<Found, String> {
    let search = Search { t: Thresholds::new(n, f, k).unwrap(), replaced, mutant };
    let first = search.first();
    let mut seen = HashSet::from([first.clone()]);
    let mut queue = VecDeque::from([first]);
    let mut found = Found::default();
    while let Some(state) = queue.pop_front() {
        search.check(&state)?;
        for slot in [BEFORE, BEHIND] {
            found.held[slot] |= state.slots[slot] == Slot::Batch;
        }
        found.dropped |= state.disks.iter().any(|disk| disk.bar.is_some() && !disk.stored);
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

/// tests PROTOCOL 10-w, 9.7-d, 10-r
#[test]
fn what_is_in_a_slot_is_stored_at_d_of_its_members_whoever_is_replaced() {
    for (shape, replaced) in [((3, 1, 1), Replaced::Holder), ((3, 1, 1), Replaced::Owner)] {
        let found = search(shape, replaced, Mutant::None).unwrap();
        println!("{shape:?}, {replaced:?}: {} states", found.states);
        assert!(found.held[BEFORE] && found.dropped, "{found:?}");
        assert_eq!(found.held[BEHIND], replaced == Replaced::Holder);
    }
}

/// tests PROTOCOL 10-w, 9.7-d, 10-r, 10-l
#[test]
fn every_rule_of_class_r_across_a_change_is_needed() {
    let (held, holder, owner) = ("disks hold what is in slot", Replaced::Holder, Replaced::Owner);
    for (mutant, replaced) in [
        (Mutant::AnyDisk, holder),
        (Mutant::Unknowing, holder),
        (Mutant::SpeaksForOld, holder),
        (Mutant::BarAtChange, owner),
        (Mutant::OldOwnerGoesOn, owner),
    ] {
        let why = search((3, 1, 1), replaced, mutant).map(|found| format!("{found:?}"));
        let why = why.expect_err(&format!("the search must refute {mutant:?}"));
        println!("{mutant:?}: {why}");
        assert!(why.contains(held), "{mutant:?}: {why}");
    }
}
