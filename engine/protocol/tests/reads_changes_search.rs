//! Exhaustive search of reads across two changes of the members, one after another (PROTOCOL 8.1, 10): two RECONFs,
//! a RECONF and a REPLACE, or two REPLACEs of one node.
//!
//! Five slots count: the first change, a write of the configuration before it, the second change, in the first slot in
//! which it may be admitted, a write of the configuration between, and one of the last. Every interleaving of
//! who names, learns and executes which of them is searched, and in every state a read is begun at every disk that
//! may serve one, with every set of answers. What the rules say of a disk at its exec, the shipped [`Core`] says
//! that executed so far: whether it may answer, whom it asks and how many, whose answers count where; and
//! the shipped [`ReadQuorum`] says what to do with the answers. An answer that comes when the reader has
//! executed more is counted as it counts then. Decisions are as easy as the proofs allow: a slot counts as
//! decided once a majority of its members has named it (L7).
//!
//! Invariant: no read misses a write that was acknowledged before it began. Each rule left out must be refuted.

mod changes;

use changes::{Log, executing};
use racos_protocol::{
    Change, Config, Configuration, Core, Membership, Node, NodeSet, ReadQuorum, ReadStep, Recovery,
    Seat, Slot,
};
use std::collections::HashSet;

/// Slots that count; all others are null.
const SLOTS: usize = 5;
const ALPHA: Slot = 10;
const STATES_MAX: usize = 4_000_000;

/// A rule left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    None,
    /// Nobody tells the epoch, and a change is no mark.
    NeitherEpochNorMark,
    /// A read goes on when its reader has executed a change.
    GoesOn,
    /// While a change comes into effect: the quorum of the members after it only, or of those before it.
    AfterOnly,
    BeforeOnly,
    /// Every answer counts before and after the change.
    EverybodyCounts,
    /// The second change is admitted while the first one is in flight.
    Overlap,
    /// A disk answers as soon as a change that it has executed names it.
    AnswersEarly,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Reconf(&'static [Node], usize, usize),
    Replace(Node),
}

/// What one disk has done: of the slots that count, how many it has executed, and which of the others it has named.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Local {
    exec: u8,
    named: u8,
}

/// A disk, and its core at each exec.
struct Disk {
    name: (Node, u32),
    at: Vec<Core>,
}

/// A disk's answer, as early as it can come: it says no less later.
#[derive(Clone, Copy)]
struct Answer {
    exec: u8,
    epoch: u32,
}

struct Model {
    mutant: Mutant,
    disks: Vec<Disk>,
    numbers: [Slot; SLOTS],
    is_change: [bool; SLOTS],
    /// By slot: its members among the disks, and how many of them decide it.
    members: Vec<(u32, usize)>,
    /// By disk and exec: the slots that it may name.
    may_name: Vec<Vec<u8>>,
    answers: Vec<Vec<Option<Answer>>>,
    /// By reader, its exec, and who answers: for which quorums that counts, then or later.
    counts: Vec<Vec<Vec<(bool, bool)>>>,
    /// Disks from each of these to the next are alike.
    kinds: Vec<usize>,
}

fn founding(shape: (usize, usize, usize)) -> Membership {
    let (n, f, k) = shape;
    Membership {
        seats: vec![Seat { incarnation: 1, from: 0 }; n],
        lost: NodeSet::EMPTY,
        configurations: vec![Configuration::new(0, (0..n as Node).collect(), f, k).unwrap()],
        epoch: 1,
        effect: 0,
    }
}

fn log_of(
    shape: (usize, usize, usize),
    steps: [Step; 2],
    at: [Slot; 2],
) -> (Log, Vec<(Node, u32)>) {
    let mut names: Vec<(Node, u32)> = (0..shape.0 as Node).map(|node| (node, 1)).collect();
    let mut log = Log::new();
    for (step, slot) in steps.into_iter().zip(at) {
        let from = slot + ALPHA;
        let change = match step {
            Step::Reconf(members, f, k) => {
                let next = Configuration::new(from, members.to_vec(), f, k).unwrap();
                let new = members.iter().filter(|it| names.iter().all(|(known, _)| known != *it));
                let new: Vec<_> = new.map(|node| (*node, 1)).collect();
                names.extend(new);
                Change::Reconfigure { next, lost: NodeSet::EMPTY }
            }
            Step::Replace(node) => {
                let last = names.iter().filter(|name| name.0 == node).map(|name| name.1).max();
                let incarnation = last.unwrap() + 1;
                names.push((node, incarnation));
                Change::Replace { node, seat: Seat { incarnation, from } }
            }
        };
        log.push((slot, change));
    }
    (log, names)
}

/// The core of a disk at each exec of the slots that count: the last one before it executes the next of them.
fn at_each(
    shape: (usize, usize, usize),
    (me, incarnation): (Node, u32),
    log: &Log,
    numbers: &[Slot],
) -> Vec<Core> {
    let config = Config { alpha: ALPHA, incarnation, ..Config::new(shape, me) };
    let mut recovery = Recovery::new(config).unwrap();
    recovery.begin_at(0);
    recovery.configure(founding(shape)).unwrap();
    let all = executing(recovery.finish(0), log, numbers.last().unwrap() + 1);
    let mut at = Vec::new();
    for (index, number) in numbers.iter().enumerate() {
        let core = all.iter().rfind(|core| core.exec() <= *number).unwrap();
        assert!(index == 0 || core.exec() > numbers[index - 1]);
        at.push(core.clone());
    }
    at.push(all.last().unwrap().clone());
    at
}

impl Model {
    fn new(shape: (usize, usize, usize), steps: [Step; 2], mutant: Mutant) -> Model {
        let (e, two) = (ALPHA, 2 * ALPHA);
        // The writes stand where those who wait for the window can name them soonest.
        let overlap = 3;
        let (numbers, is_change) = match mutant {
            Mutant::Overlap => (
                [0, overlap, e - 1, e + overlap - 1, e + overlap],
                [true, true, false, false, false],
            ),
            _ => ([0, e - 1, e, two - 2, two], [true, false, true, false, false]),
        };
        let second = if mutant == Mutant::Overlap { overlap } else { e };
        let (log, names) = log_of(shape, steps, [0, second]);
        let disk = |name| Disk { name, at: at_each(shape, name, &log, &numbers) };
        let disks: Vec<Disk> = names.into_iter().map(disk).collect();
        let mut model = Model {
            mutant,
            disks,
            numbers,
            is_change,
            members: Vec::new(),
            may_name: Vec::new(),
            answers: Vec::new(),
            counts: Vec::new(),
            kinds: Vec::new(),
        };
        model.members = (0..SLOTS).map(|slot| model.members_of(slot)).collect();
        for disk in 0..model.disks.len() {
            let each = 0..=SLOTS;
            model.may_name.push(each.clone().map(|exec| model.nameable(disk, exec)).collect());
            model.answers.push(each.clone().map(|exec| model.answer_of(disk, exec)).collect());
            model.counts.push(each.map(|exec| model.counts_of(disk, exec)).collect());
        }
        model.kinds = model.kinds();
        model
    }

    /// As those know it who are about to execute the slot.
    fn members_of(&self, slot: usize) -> (u32, usize) {
        let (core, number) = (&self.disks[0].at[slot], self.numbers[slot]);
        let members = self.disks.iter().enumerate().map(|(index, disk)| {
            let (node, incarnation) = disk.name;
            u32::from(core.counts(node, incarnation, number)) << index
        });
        (members.sum(), core.at(number).thresholds.majority)
    }

    /// PROTOCOL 10-q, 10-t, 6.1-d: slots in which a disk takes part.
    fn nameable(&self, disk: usize, exec: usize) -> u8 {
        let Disk { name: (node, incarnation), ref at } = self.disks[disk];
        let core = &at[exec];
        let seat = core.seats().get(usize::from(node)).copied();
        let may = |slot: &usize| {
            let number = self.numbers[*slot];
            let is_there = seat
                .is_some_and(|seat| incarnation != seat.incarnation || core.exec() >= seat.from);
            core.counts(node, incarnation, number)
                && is_there
                && number < self.numbers[exec] + ALPHA
        };
        (exec..SLOTS).filter(may).map(|slot| 1 << slot).sum()
    }

    /// PROTOCOL 8.1-f, 10-r
    fn answer_of(&self, disk: usize, exec: usize) -> Option<Answer> {
        let Disk { name: (node, incarnation), ref at } = self.disks[disk];
        let is_named = |core: &Core| {
            let seat = core.seats().get(usize::from(node));
            seat.is_some_and(|seat| seat.incarnation == incarnation) && core.newest().contains(node)
        };
        let may = |core: &Core| {
            core.may_answer() || (self.mutant == Mutant::AnswersEarly && is_named(core))
        };
        let exec = (exec..=SLOTS).find(|exec| may(&at[*exec]))?;
        Some(Answer { exec: exec as u8, epoch: at[exec].epoch() })
    }

    /// By whoever answers: in which of the two quorums that counts, for a read begun at this exec and not begun again.
    fn counts_of(&self, reader: usize, exec: usize) -> Vec<(bool, bool)> {
        let at = &self.disks[reader].at;
        let goes_on =
            |core: &&Core| core.epoch() == at[exec].epoch() || self.mutant == Mutant::GoesOn;
        let count = |disk: &Disk| {
            let (node, incarnation) = disk.name;
            let each = at[exec..].iter().take_while(goes_on);
            let each = each.map(|core| core.reads_count(node, incarnation));
            each.fold((false, false), |any, one| (any.0 | one.0, any.1 | one.1))
        };
        self.disks.iter().map(count).collect()
    }

    /// Disks of which each slot, each read and each other disk thinks the same.
    fn kinds(&self) -> Vec<usize> {
        let kind = |disk: usize| {
            let members: Vec<bool> = self.members.iter().map(|it| it.0 >> disk & 1 == 1).collect();
            (members, self.may_name[disk].clone())
        };
        let begins = |disk: &usize| *disk == 0 || kind(*disk) != kind(*disk - 1);
        (0..self.disks.len()).filter(begins).chain([self.disks.len()]).collect()
    }

    /// What somebody executed is decided, and what a majority named.
    fn decided(&self, state: &[Local]) -> [bool; SLOTS] {
        let executed = state.iter().map(|local| local.exec).max().unwrap_or(0);
        std::array::from_fn(|slot| {
            let (members, least) = self.members[slot];
            let named = |(disk, local): &(usize, &Local)| {
                members >> disk & 1 == 1 && local.named >> slot & 1 == 1
            };
            slot < usize::from(executed) || state.iter().enumerate().filter(named).count() >= least
        })
    }

    fn successors(&self, state: &[Local], decided: [bool; SLOTS]) -> Vec<Vec<Local>> {
        let mut next = Vec::new();
        for (disk, local) in state.iter().enumerate() {
            let mut push = |local| {
                let mut state = state.to_vec();
                state[disk] = local;
                next.push(self.normal(state));
            };
            let may = self.may_name[disk][usize::from(local.exec)] & !local.named;
            for slot in (0..SLOTS).filter(|slot| may >> slot & 1 == 1) {
                push(Local { named: local.named | 1 << slot, ..*local });
            }
            let exec = usize::from(local.exec);
            if exec < SLOTS && decided[exec] {
                // Of what is executed somewhere nobody need know any more who named it.
                push(Local { exec: local.exec + 1, named: local.named & !(1 << exec) });
            }
        }
        next
    }

    fn normal(&self, mut state: Vec<Local>) -> Vec<Local> {
        for range in self.kinds.windows(2) {
            state[range[0]..range[1]].sort_unstable();
        }
        state
    }

    fn search(&self) -> Result<usize, String> {
        let first = vec![Local { exec: 0, named: 0 }; self.disks.len()];
        let mut seen = HashSet::from([first.clone()]);
        let mut front = vec![first];
        while let Some(state) = front.pop() {
            let decided = self.decided(&state);
            self.check_reads(&state, decided)?;
            for next in self.successors(&state, decided) {
                if seen.insert(next.clone()) {
                    front.push(next);
                    assert!(seen.len() < STATES_MAX, "too many states to search them all");
                }
            }
        }
        Ok(seen.len())
    }

    fn check_reads(&self, state: &[Local], decided: [bool; SLOTS]) -> Result<(), String> {
        // Acknowledged: it is decided, and all lower slots are.
        let prefix = decided.iter().take_while(|decided| **decided).count();
        let Some(newest) = (0..prefix).rfind(|slot| !self.is_change[*slot]) else { return Ok(()) };
        for (reader, local) in state.iter().enumerate() {
            let core = &self.disks[reader].at[usize::from(local.exec)];
            // PROTOCOL 10-r, 10-t: one that leaves refuses clients, one that joins is not there yet. To read
            // with more executed shows more.
            if core.is_active() && usize::from(local.exec) <= newest {
                self.check_read(state, reader, newest as u8)?;
            }
        }
        Ok(())
    }

    fn mark(&self, local: Local, exec: u8) -> Option<Slot> {
        let marked = |slot: &usize| {
            let is_unseen = self.mutant == Mutant::NeitherEpochNorMark && self.is_change[*slot];
            local.named >> slot & 1 == 1 && !is_unseen
        };
        (usize::from(exec)..SLOTS).rfind(marked).map(|slot| slot as Slot)
    }

    fn quorum(&self, core: &Core) -> ReadQuorum {
        let (before, after) = core.read_configurations();
        let (before, after) = (before.thresholds.quorum, after.thresholds.quorum);
        match (core.is_filling(), self.mutant) {
            (true, Mutant::AfterOnly) => ReadQuorum::new(after),
            (true, Mutant::BeforeOnly) => ReadQuorum::joint(before, 1),
            (true, _) => ReadQuorum::joint(before, after),
            (false, _) => ReadQuorum::new(after),
        }
    }

    fn check_read(&self, state: &[Local], reader: usize, newest: u8) -> Result<(), String> {
        let own = state[reader];
        let core = &self.disks[reader].at[usize::from(own.exec)];
        let mut read = self.quorum(core);
        read.answer(self.disks[reader].name.0, Slot::from(own.exec), self.mark(own, own.exec));
        let counts = &self.counts[reader][usize::from(own.exec)];
        let mut answers = Vec::new();
        for (disk, local) in state.iter().enumerate().filter(|(disk, _)| *disk != reader) {
            let Some(answer) = self.answers[disk][usize::from(local.exec)] else { continue };
            // PROTOCOL 8.1-q, 10-y: a newer epoch: the reader executes it and starts again.
            let is_told = !matches!(self.mutant, Mutant::NeitherEpochNorMark | Mutant::GoesOn);
            let (is_old, is_new) = match self.mutant {
                Mutant::EverybodyCounts => (true, true),
                _ => counts[disk],
            };
            if (answer.epoch > core.epoch() && is_told) || !(is_old || is_new) {
                continue;
            }
            let mark = self.mark(*local, answer.exec);
            answers.push((disk, (is_old, is_new), Slot::from(answer.exec), mark));
        }
        for set in 0u32..1 << answers.len() {
            let (mut read, mut best) = (read.clone(), Slot::from(own.exec));
            let given = answers.iter().enumerate().filter(|(index, _)| set >> index & 1 == 1);
            for (_, (disk, counts, exec, mark)) in given {
                if read.answer_as(self.disks[*disk].name.0, *counts, *exec, *mark) {
                    best = *exec;
                }
            }
            if self.shown(&read, own, best).is_some_and(|shown| shown <= Slot::from(newest)) {
                let answered: Vec<_> = answers
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| set >> index & 1 == 1)
                    .map(|(_, answer)| self.disks[answer.0].name)
                    .collect();
                let reader = self.disks[reader].name;
                return Err(format!(
                    "{reader:?} misses slot {newest} with answers of {answered:?}: {state:?}"
                ));
            }
        }
        Ok(())
    }

    /// PROTOCOL 8.1-j, 8.1-l: the prefix that the read shows, unless it waits or starts again.
    fn shown(&self, read: &ReadQuorum, own: Local, best: Slot) -> Option<Slot> {
        match read.step() {
            ReadStep::Wait => None,
            ReadStep::Use(_) => Some(best),
            ReadStep::WaitExecuted(mark) => {
                let executes = usize::from(own.exec)..mark as usize + 1;
                let changes = executes.into_iter().any(|slot| self.is_change[slot]);
                let starts_again =
                    changes && !matches!(self.mutant, Mutant::NeitherEpochNorMark | Mutant::GoesOn);
                (!starts_again).then_some(mark + 1)
            }
        }
    }
}

type Shape = (usize, usize, usize);

const THREE: Shape = (3, 1, 1);
const CHANGES: [(Shape, [Step; 2]); 10] = [
    (THREE, [Step::Reconf(&[0, 1, 2, 3], 1, 2), Step::Reconf(&[1, 2, 3], 1, 1)]),
    (THREE, [Step::Reconf(&[0, 1, 3], 1, 1), Step::Reconf(&[0, 3, 4], 1, 1)]),
    ((4, 1, 2), [Step::Reconf(&[0, 1, 2], 1, 1), Step::Reconf(&[0, 1, 2, 4], 1, 2)]),
    ((2, 0, 1), [Step::Reconf(&[0, 1, 2], 1, 1), Step::Reconf(&[1, 2, 3], 1, 1)]),
    (THREE, [Step::Reconf(&[0, 1, 3], 1, 1), Step::Replace(1)]),
    (THREE, [Step::Replace(2), Step::Reconf(&[1, 2, 3], 1, 1)]),
    (THREE, [Step::Replace(2), Step::Replace(1)]),
    (THREE, [Step::Replace(2), Step::Replace(2)]),
    (THREE, [Step::Reconf(&[0, 1, 2, 3, 4], 1, 3), Step::Reconf(&[2, 3, 4], 1, 1)]),
    ((5, 1, 3), [Step::Reconf(&[2, 3, 4], 1, 1), Step::Replace(4)]),
];

/// tests PROTOCOL 8.1-q, 10-l, 10-q, 10-r, 10-t, 10-x, 10-y
#[test]
fn no_read_across_two_changes_misses_an_acknowledged_write() {
    for (shape, steps) in CHANGES {
        let found = Model::new(shape, steps, Mutant::None).search();
        let states = found.unwrap_or_else(|why| panic!("{shape:?}, {steps:?}: {why}"));
        println!("{shape:?}, {steps:?}: {states} states");
        assert!(states > 1000, "{shape:?}, {steps:?}: {states} states");
    }
}

/// tests PROTOCOL 8.1-f, 8.1-g, 8.1-q, 10-g, 10-q, 10-t, 10-x, 10-y
#[test]
fn each_rule_of_reads_across_two_changes_is_needed() {
    for mutant in [
        Mutant::NeitherEpochNorMark,
        Mutant::GoesOn,
        Mutant::AfterOnly,
        Mutant::BeforeOnly,
        Mutant::EverybodyCounts,
        Mutant::Overlap,
        Mutant::AnswersEarly,
    ] {
        let why = CHANGES.iter().find_map(|(shape, steps)| {
            let why = Model::new(*shape, *steps, mutant).search().err()?;
            Some(format!("{shape:?}, {steps:?}: {why}"))
        });
        let why = why.unwrap_or_else(|| panic!("the search must refute {mutant:?}"));
        println!("{mutant:?}: {why}");
        assert!(why.contains("misses slot"), "{mutant:?}: {why}");
    }
}
