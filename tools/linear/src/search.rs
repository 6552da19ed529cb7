//! Looking for an order, by trying and remembering what was tried (Wing and Gong, Lowe).
//!
//! The next step in an order may be any that began before every outstanding one had to be over: a
//! *candidate*. Since values are unique, most choices are none; each rule below keeps some order
//! if there is one.
//!
//! 1. A candidate read that finds what the keys hold goes next. It changes nothing, so in any
//!    order it may be moved up to here.
//! 2. A key whose value has reads outstanding is not written: those reads would never be true
//!    again. (Absence may come back, so it is not guarded this way.)
//! 3. A candidate write that no outstanding read asks for goes next, if none asks for what the
//!    key holds now either. The next step on the key is a write anyway, so moving this one up to
//!    here changes nothing that is read, nor does its missing where it stood.
//! 4. An unknown delete happens right before a read that needs it, or not at all: in any order it
//!    may be moved down to the first read of the key, and left out if a write comes first. Those
//!    of one key that may happen by now are all alike, so only their number matters.
//!
//! What has been tried is the set of steps done and what the keys hold (values that nobody asks for
//! are all alike), with as many unknown deletes used or fewer.

use rustc_hash::FxHashMap;

use crate::problem::{ABSENT, Effect, Problem, Step};
use crate::violation::Reason;

/// Stands for all held values, and absence, that no outstanding read asks for.
const FORGOTTEN: u32 = u32::MAX - 1;

pub(crate) fn solve(problem: &Problem, states_max: usize) -> Result<(), Reason> {
    let mut search = Search::new(problem);
    let mut tried = Tried::default();
    let mut choices: Vec<Choice> = Vec::new();
    loop {
        search.settle();
        if search.undone == 0 {
            return Ok(());
        }
        // What two ways lead to is looked at once.
        let is_new = tried.insert(search.key(), &search.deletes_used);
        let options = if is_new { search.options() } else { Vec::new() };
        if tried.states > states_max {
            return Err(Reason::Undecided { states: states_max });
        }
        choices.push(Choice { options, mark: search.trail.len() });
        loop {
            let Some(choice) = choices.last_mut() else { return Err(Reason::NoOrder) };
            search.undo(choice.mark);
            match choice.options.pop() {
                Some(step) => {
                    search.take(step);
                    break;
                }
                None => {
                    choices.pop();
                }
            }
        }
    }
}

/// What was tried, by [`Search::key`], with the unknown deletes used for each key of the store.
#[derive(Default)]
struct Tried {
    deletes_used: FxHashMap<Box<[u64]>, Vec<u32>>,
    states: usize,
}

impl Tried {
    /// False if the same was tried with as many deletes left for every key, or more.
    fn insert(&mut self, key: Box<[u64]>, used: &[u32]) -> bool {
        let known = self.deletes_used.entry(key).or_default();
        let no_more = |known: &[u32]| known.iter().zip(used).all(|(known, used)| known <= used);
        if known.chunks_exact(used.len()).any(no_more) {
            return false;
        }
        known.extend_from_slice(used);
        self.states += 1;
        true
    }
}

/// A point at which several steps might be next.
struct Choice {
    /// Those not tried yet, the best last.
    options: Vec<usize>,
    /// Length of the trail to go back to.
    mark: usize,
}

/// What was done, to be undone in reverse.
enum Trace {
    Done(usize),
    Held { key: u32, before: u32 },
    DeleteUsed { key: u32 },
}

struct Search<'a> {
    steps: &'a [Step],
    optional_deletes: &'a [Vec<u64>],
    done: Vec<bool>,
    undone: usize,
    /// All steps before this one are done.
    first_undone: usize,
    /// Value number or [`ABSENT`], by key.
    held: Vec<u32>,
    /// Outstanding reads of each value, and of the absence of each key.
    value_reads: Vec<u32>,
    absent_reads: Vec<u32>,
    deletes_used: Vec<u32>,
    trail: Vec<Trace>,
    /// The candidates as last looked up, and the time by which one of them has to be over.
    candidates: Vec<usize>,
    deadline: u64,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem) -> Self {
        let keys = problem.optional_deletes.len();
        let mut search = Self {
            steps: &problem.steps,
            optional_deletes: &problem.optional_deletes,
            done: vec![false; problem.steps.len()],
            undone: problem.steps.len(),
            first_undone: 0,
            held: vec![ABSENT; keys],
            value_reads: vec![0; problem.values],
            absent_reads: vec![0; keys],
            deletes_used: vec![0; keys],
            trail: Vec::new(),
            candidates: Vec::new(),
            deadline: 0,
        };
        for step in search.steps {
            if let Effect::Read(found) = &step.effect {
                found.iter().for_each(|&(key, value)| *search.reads_mut(key, value) += 1);
            }
        }
        search
    }

    fn reads_mut(&mut self, key: u32, value: u32) -> &mut u32 {
        match value {
            ABSENT => &mut self.absent_reads[key as usize],
            _ => &mut self.value_reads[value as usize],
        }
    }

    /// Outstanding reads of what a key would hold.
    fn reads(&self, key: u32, value: u32) -> u32 {
        match value {
            ABSENT => self.absent_reads[key as usize],
            _ => self.value_reads[value as usize],
        }
    }

    /// The key and what it comes to hold, if the step is a write.
    fn written(&self, step: usize) -> Option<(u32, u32)> {
        match self.steps[step].effect {
            Effect::Put { key, value } => Some((key, value)),
            Effect::Delete { key } => Some((key, ABSENT)),
            Effect::Read(_) => None,
        }
    }

    /// Does everything for which there is no choice (rules 1 and 3).
    fn settle(&mut self) {
        loop {
            self.look_up_candidates();
            let candidates = std::mem::take(&mut self.candidates);
            let before = self.undone;
            for &step in &candidates {
                let forced = match &self.steps[step].effect {
                    Effect::Read(found) => {
                        found.iter().all(|&(key, value)| self.held[key as usize] == value)
                    }
                    _ => {
                        let (key, value) = self.written(step).expect("it is a write");
                        self.reads(key, value) == 0 && self.reads(key, self.held[key as usize]) == 0
                    }
                };
                if forced {
                    self.take(step);
                }
            }
            self.candidates = candidates;
            if self.undone == before {
                return;
            }
        }
    }

    fn look_up_candidates(&mut self) {
        while self.done.get(self.first_undone) == Some(&true) {
            self.first_undone += 1;
        }
        self.candidates.clear();
        self.deadline = u64::MAX;
        for at in self.first_undone..self.steps.len() {
            let step = &self.steps[at];
            if step.from > self.deadline {
                break;
            }
            if !self.done[at] {
                self.deadline = self.deadline.min(step.to);
                self.candidates.push(at);
            }
        }
    }

    /// The candidates that may be next, the one that has to be over first last.
    fn options(&self) -> Vec<usize> {
        let mut options: Vec<usize> =
            self.candidates.iter().copied().filter(|&step| self.is_possible(step)).collect();
        options.sort_by_key(|&step| std::cmp::Reverse(self.steps[step].to));
        options
    }

    fn is_possible(&self, step: usize) -> bool {
        match &self.steps[step].effect {
            Effect::Read(found) => found.iter().all(|&(key, value)| {
                self.held[key as usize] == value || (value == ABSENT && self.may_vanish(key))
            }),
            _ => !self.is_awaited(self.written(step).expect("it is a write").0),
        }
    }

    /// Whether an unknown delete may take away now what a key holds (rule 4).
    fn may_vanish(&self, key: u32) -> bool {
        let times = &self.optional_deletes[key as usize];
        let possible = times.partition_point(|&from| from <= self.deadline);
        !self.is_awaited(key) && (self.deletes_used[key as usize] as usize) < possible
    }

    /// Whether outstanding reads ask for the value that a key holds (rule 2).
    fn is_awaited(&self, key: u32) -> bool {
        let held = self.held[key as usize];
        held != ABSENT && self.value_reads[held as usize] > 0
    }

    fn take(&mut self, step: usize) {
        let steps = self.steps;
        if let Effect::Read(found) = &steps[step].effect {
            for &(key, value) in found {
                if self.held[key as usize] != value {
                    self.deletes_used[key as usize] += 1;
                    self.trail.push(Trace::DeleteUsed { key });
                    self.hold(key, ABSENT);
                }
                *self.reads_mut(key, value) -= 1;
            }
        } else {
            let (key, value) = self.written(step).expect("it is a write");
            self.hold(key, value);
        }
        self.done[step] = true;
        self.undone -= 1;
        self.trail.push(Trace::Done(step));
    }

    fn hold(&mut self, key: u32, value: u32) {
        let before = std::mem::replace(&mut self.held[key as usize], value);
        self.trail.push(Trace::Held { key, before });
    }

    fn undo(&mut self, mark: usize) {
        let steps = self.steps;
        while self.trail.len() > mark {
            match self.trail.pop().expect("the trail is longer than the mark") {
                Trace::Done(step) => {
                    self.done[step] = false;
                    self.undone += 1;
                    self.first_undone = self.first_undone.min(step);
                    if let Effect::Read(found) = &steps[step].effect {
                        found.iter().for_each(|&(key, value)| *self.reads_mut(key, value) += 1);
                    }
                }
                Trace::Held { key, before } => self.held[key as usize] = before,
                Trace::DeleteUsed { key } => self.deletes_used[key as usize] -= 1,
            }
        }
    }

    /// All that the rest of the search depends on, but for the deletes used.
    fn key(&self) -> Box<[u64]> {
        let mut words = Vec::with_capacity(2 + self.held.len());
        words.push(self.first_undone as u64);
        for (key, &held) in (0..).zip(&self.held) {
            words.push(u64::from(if self.reads(key, held) > 0 { held } else { FORGOTTEN }));
        }
        // Whatever is done was a candidate, and the deadline only moves on.
        let end = self.steps.partition_point(|step| step.from <= self.deadline);
        for chunk in self.done[self.first_undone..end].chunks(64) {
            words
                .push((0..).zip(chunk).fold(0, |word, (bit, &done)| word | u64::from(done) << bit));
        }
        while words.len() > 1 + self.held.len() && words.last() == Some(&0) {
            words.pop();
        }
        words.into_boxed_slice()
    }
}
