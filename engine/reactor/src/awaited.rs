//! Who was asked for a fragment that a repair needs, and when the answer can be thought lost.
//!
//! Purpose: a question and its answer are single datagrams, which may be lost, or many, which take their
//! time over a slow link. A holder whose answer is *late* is not waited for: another one is asked beside it.
//! The same one is asked again only when its answer can be thought *lost*: much later, and not while others
//! of its answers still come.
//! Invariant: a holder that does not answer changes no other wait than its own; and a fragment that takes
//! long is asked for a few times, until it is known how long it takes, however long that is.
//! What would break it: measuring from the latest question: an answer is to the one whose id it bears, and
//! of a link on which it takes longer than the longest pause nothing would ever be learnt. Or measuring only
//! what is still needed: the slowest holder's answers come last, and it would be taken for a quick one.

use crate::layout::LARGE_BYTES_MIN;
use racos_protocol::{Mean, Nanos, NodeSet};
use std::collections::BTreeMap;

const MS: Nanos = 1_000_000;
/// An answer is late after so many times what the holder's answers took in the mean, and after this at least,
/// and at most.
const TIMES: u64 = 3;
const LATE_MIN: Nanos = 50 * MS;
const LATE_MAX: Nanos = 30_000 * MS;
/// It can be thought lost after this at least; twice as long each time it was asked for in vain, up to the
/// bound, unless the holder's answers are known to take longer.
const LOST_MIN: Nanos = 300 * MS;
const LOST_MAX: Nanos = 2_000 * MS;
/// While others of the holder's answers come it is waited for longer, but not for more than so many times.
const BEHIND_OTHERS: u64 = 4;
/// Questions without an answer that are remembered.
const ASKS_MAX: usize = 1024;

/// What the answers of one holder took lately.
#[derive(Debug)]
struct Took {
    /// Small ones, and large ones; 0: none came.
    mean: [Mean; 2],
    came: Nanos,
}

/// What the answers of all holders took lately.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    of: BTreeMap<u8, Took>,
    /// Who was asked by the question with that id, and when; ids grow. Also those of values that are done.
    asks: BTreeMap<u64, (u8, Nanos)>,
}

impl Answers {
    pub fn ask(&mut self, id: u64, node: u8, now: Nanos) {
        self.asks.insert(id, (node, now));
        if self.asks.len() > ASKS_MAX {
            self.asks.pop_first();
        }
    }

    /// An answer of so many bytes came; false if the question is not known.
    pub fn came(&mut self, id: u64, node: u8, len: usize, now: Nanos) -> bool {
        match self.asks.get(&id) {
            Some((asked, at)) if *asked == node => {
                let took = now.saturating_sub(*at);
                self.asks.remove(&id);
                self.observe(node, len, took, now);
                true
            }
            _ => false,
        }
    }

    fn observe(&mut self, node: u8, len: usize, sample: Nanos, now: Nanos) {
        let new = || Took { mean: [Mean::new(0); 2], came: 0 };
        let took = self.of.entry(node).or_insert_with(new);
        took.came = now;
        let mean = &mut took.mean[class(len)];
        match mean.get() {
            0 => *mean = Mean::new(sample),
            _ => mean.observe(sample),
        }
    }

    /// After how long one of this length is late.
    fn late_after(&self, node: u8, len: usize) -> Nanos {
        let mean = self.of.get(&node).map_or(0, |took| took.mean[class(len)].get());
        (mean * TIMES).clamp(LATE_MIN, LATE_MAX)
    }

    fn last_came(&self, node: u8) -> Nanos {
        self.of.get(&node).map_or(0, |took| took.came)
    }
}

fn class(len: usize) -> usize {
    usize::from(len >= LARGE_BYTES_MIN)
}

/// A holder that has not answered.
#[derive(Debug)]
struct Open {
    node: u8,
    times: u32,
    /// When it was asked the last time, and the first time in this turn of the repair.
    asked: Nanos,
    turn: Option<Nanos>,
}

impl Open {
    fn late_at(&self, answers: &Answers, len: usize) -> Nanos {
        self.asked + answers.late_after(self.node, len)
    }

    fn lost_at(&self, answers: &Answers, len: usize) -> Nanos {
        let late = answers.late_after(self.node, len);
        let doubled = late.max(LOST_MIN) << (self.times - 1).min(8);
        let wait = doubled.min(LOST_MAX.max(late));
        let since = self.asked.max(answers.last_came(self.node));
        (since + wait).min(self.asked + wait * BEHIND_OTHERS)
    }
}

/// The holders of one value that were asked and have not answered.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    open: Vec<Open>,
}

impl Awaited {
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub fn contains(&self, node: u8) -> bool {
        self.open.iter().any(|open| open.node == node)
    }

    pub fn ask(&mut self, node: u8, now: Nanos) {
        match self.open.iter_mut().find(|open| open.node == node) {
            Some(open) => {
                (open.times, open.asked) = (open.times + 1, now);
                open.turn = open.turn.or(Some(now));
            }
            None => self.open.push(Open { node, times: 1, asked: now, turn: Some(now) }),
        }
    }

    /// A holder has answered.
    pub fn answered(&mut self, node: u8) {
        self.open.retain(|open| open.node != node);
    }

    /// Those whose answer is not late yet.
    pub fn on_time(&self, answers: &Answers, len: usize, now: Nanos) -> usize {
        self.open.iter().filter(|open| open.late_at(answers, len) > now).count()
    }

    /// A turn of the repair begins.
    pub fn begin(&mut self) {
        self.open.iter_mut().for_each(|open| open.turn = None);
    }

    /// Whether one that was asked in this turn is not late, however often it was asked again since: with
    /// two of them that never answer, one was always asked just now.
    pub fn is_hopeful(&self, answers: &Answers, len: usize, now: Nanos) -> bool {
        let is_late = |open: &Open, at| at + answers.late_after(open.node, len) <= now;
        self.open.iter().any(|open| open.turn.is_some_and(|at| !is_late(open, at)))
    }

    /// Those whose answer can be thought lost.
    pub fn lost(&self, answers: &Answers, len: usize, now: Nanos) -> NodeSet {
        let mut lost = NodeSet::EMPTY;
        let open = self.open.iter().filter(|open| open.lost_at(answers, len) <= now);
        open.for_each(|open| lost.insert(open.node));
        lost
    }

    /// When the next of them is late or lost.
    pub fn next(&self, answers: &Answers, len: usize, now: Nanos) -> Option<Nanos> {
        let times = self
            .open
            .iter()
            .flat_map(|open| [open.late_at(answers, len), open.lost_at(answers, len)]);
        times.filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 80 << 10;

    /// When a holder that never answers is asked, as often as it can be in so long.
    fn asked_in(answers: &Answers, time: Nanos) -> Vec<Nanos> {
        let mut awaited = Awaited::default();
        let (mut now, mut asked) = (1000 * MS, Vec::new());
        let until = now + time;
        while now < until {
            if awaited.is_empty() || awaited.lost(answers, LARGE, now).contains(3) {
                awaited.ask(3, now);
                asked.push((now - 1000 * MS) / MS);
            }
            now = awaited.next(answers, LARGE, now).unwrap_or(until);
        }
        asked
    }

    /// tests PROTOCOL 9.5-i
    #[test]
    fn a_silent_holder_is_asked_again_after_pauses_that_double_up_to_a_bound() {
        let asked = asked_in(&Answers::default(), 9_500 * MS);
        assert_eq!(asked, [0, 300, 900, 2100, 4100, 6100, 8100]);
    }

    /// tests PROTOCOL 9.5-i
    #[test]
    fn a_holder_that_takes_long_is_not_asked_again_before_its_answer_can_come() {
        let mut answers = Answers::default();
        answers.observe(3, LARGE, 5_000 * MS, 0);
        assert_eq!(asked_in(&answers, 60_000 * MS), [0, 15_000, 30_000, 45_000]);
        (0..50).for_each(|_| answers.observe(3, LARGE, 60_000 * MS, 0));
        assert_eq!(answers.late_after(3, LARGE), LATE_MAX);
        assert_eq!(answers.late_after(2, LARGE), LATE_MIN, "others are as they were");
        assert_eq!(answers.late_after(3, 100), LATE_MIN, "and small ones");
        (0..100).for_each(|_| answers.observe(3, LARGE, MS, 0));
        assert_eq!(answers.late_after(3, LARGE), LATE_MIN, "it has become quick again");
    }

    /// tests PROTOCOL 9.5-i: of what takes longer than the longest pause, too, it is learnt how long it takes.
    #[test]
    fn an_answer_is_to_the_question_whose_id_it_bears_and_counts_once() {
        let mut answers = Answers::default();
        (0..10).for_each(|id| answers.ask(id, 3, id * 2_000 * MS));
        assert!(answers.came(0, 3, LARGE, 19_000 * MS));
        assert_eq!(answers.late_after(3, LARGE), LATE_MAX, "not the one second since the latest");
        let all =
            [(0, 3), (1, 2), (10, 3)].map(|(id, node)| answers.came(id, node, LARGE, 20_000 * MS));
        assert_eq!(all, [false; 3], "had its answer; another holder's; never asked");
        assert_eq!(answers.late_after(2, LARGE), LATE_MIN);
        (10..5000).for_each(|id| answers.ask(id, 3, 0));
        assert_eq!(answers.asks.len(), ASKS_MAX);
        assert!(!answers.came(9, 3, LARGE, 1) && answers.came(4999, 3, LARGE, 1), "the oldest go");
    }

    /// tests PROTOCOL 9.5-i
    #[test]
    fn what_waits_behind_other_answers_is_waited_for_longer_but_not_for_ever() {
        let mut answers = Answers::default();
        let mut awaited = Awaited::default();
        awaited.ask(3, 0);
        let mut lost_at = 0;
        while awaited.lost(&answers, LARGE, lost_at).is_empty() {
            lost_at += 10 * MS;
            answers.observe(3, LARGE, 10 * MS, lost_at);
        }
        assert_eq!(lost_at, LOST_MIN * BEHIND_OTHERS);
        assert_eq!(awaited.on_time(&answers, LARGE, LATE_MIN - 1), 1);
        assert_eq!(awaited.on_time(&answers, LARGE, LATE_MIN), 0, "others are asked beside it");
    }

    /// tests PROTOCOL 9.5-i
    #[test]
    fn a_turn_ends_though_somebody_was_asked_just_now() {
        let (answers, mut awaited) = (Answers::default(), Awaited::default());
        let is_hopeful = |awaited: &Awaited, now| awaited.is_hopeful(&answers, LARGE, now * MS);
        awaited.ask(1, 0);
        awaited.ask(2, 40 * MS);
        awaited.ask(1, 80 * MS);
        assert!(is_hopeful(&awaited, 89) && !is_hopeful(&awaited, 90));
        awaited.begin();
        assert!(!is_hopeful(&awaited, 91), "none was asked in this one");
        awaited.ask(2, 92 * MS);
        assert!(is_hopeful(&awaited, 100));
    }
}
