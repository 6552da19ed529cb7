//! Questions of other nodes that the disk cannot be asked for yet, since it is asked for so much already.
//!
//! Whoever asked waits: a read for up to 200 ms before it asks another node, one that lags for 300. So a
//! question is kept until a read has ended, and asked then.
//!
//! Invariant: each waits once, however often it is asked, in the order in which they came, and not for
//! longer than who asks waits for it. What would break it: a question kept while nothing is being read,
//! for nothing would take it up again.

use crate::node::Node;
use racos_machine::OpId;
use racos_net::Link;
use racos_protocol::{Nanos, Slot};
use racos_storage::device::Device;
use std::collections::VecDeque;

const MS: Nanos = 1_000_000;
/// Kept at most; others are asked again by who asked.
const KEPT_MAX: usize = 256;
/// For so long: whoever asked has asked others by then.
const KEPT_NS: Nanos = 200 * MS;

/// What another node asks of this one's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// A fragment, for a read or a repair.
    Fragment { to: u8, read: u64, op: OpId },
    /// A batch.
    Meta { to: u8, slot: Slot },
    /// A range of facts.
    Facts { to: u8, from: Slot, until: Slot },
}

#[derive(Debug, Default)]
pub(crate) struct PutOff {
    kept: VecDeque<(Question, Nanos)>,
}

impl PutOff {
    fn add(&mut self, question: Question, now: Nanos) {
        let is_kept = self.kept.iter().any(|(kept, _)| *kept == question);
        if !is_kept && self.kept.len() < KEPT_MAX {
            self.kept.push_back((question, now + KEPT_NS));
        }
    }

    /// The first that somebody still waits for.
    fn first(&mut self, now: Nanos) -> Option<Question> {
        while self.kept.pop_front_if(|(_, until)| *until <= now).is_some() {}
        self.kept.front().map(|(question, _)| *question)
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Answers another node's question, or keeps it until the disk has read something.
    pub(crate) fn on_question(&mut self, question: Question) {
        if !self.ask_log(question) && self.journal.reads_under_way() > 0 {
            self.put_off.add(question, self.now);
        }
    }

    /// Something was read: the disk can be asked for more.
    pub(crate) fn take_up_put_off(&mut self) {
        while let Some(question) = self.put_off.first(self.now) {
            if !self.ask_log(question) {
                return;
            }
            self.put_off.kept.pop_front();
        }
    }

    /// False if the disk cannot be asked now.
    fn ask_log(&mut self, question: Question) -> bool {
        match question {
            Question::Fragment { to, read, op } => self.serve_fragment(to, read, op),
            Question::Meta { to, slot } => self.send_meta(slot, to),
            Question::Facts { to, from, until } => self.send_facts(from, until, to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_kept_once_and_as_long_as_somebody_waits_for_the_answer() {
        let mut put_off = PutOff::default();
        let meta = |slot| Question::Meta { to: 1, slot };
        (0..3).for_each(|slot| put_off.add(meta(slot), slot * MS));
        put_off.add(meta(0), 5 * MS);
        assert_eq!((put_off.kept.len(), put_off.first(6 * MS)), (3, Some(meta(0))));
        assert_eq!(put_off.first(KEPT_NS), Some(meta(1)));
        assert_eq!(put_off.first(KEPT_NS + 2 * MS), None);
        (0..1000).for_each(|slot| put_off.add(meta(slot), 0));
        assert_eq!(put_off.kept.len(), KEPT_MAX);
    }
}
