//! Compactions that nobody asks for: by revision, or by age.
//!
//! Invariant: nothing is proposed that is younger than what is to be kept: by age, only a revision
//! that this node itself saw to be the newest a whole period ago, by its own monotonic clock. Every
//! node proposes, one after the other; whoever comes second finds it done. After a restart the
//! samples begin anew, so a node never compacts too early, and the others go on.

use crate::node::Node;
use racos_machine::{Action, Op};
use racos_net::Link;
use racos_protocol::Nanos;
use racos_storage::device::Device;
use std::collections::VecDeque;

const SECOND: Nanos = 1_000_000_000;
/// How often the newest revision is compared with the last compaction.
const REVISION_INTERVAL: Nanos = 300 * SECOND;
/// By age: compactions are not further apart.
const INTERVAL_MAX: Nanos = 3600 * SECOND;
/// Samples in a period.
const SAMPLES: u64 = 10;
/// How much later each further node proposes.
const RANK: Nanos = SECOND / 2;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AutoCompaction {
    /// Everything, until somebody compacts.
    #[default]
    Off,
    /// So many revisions.
    Revisions(u64),
    /// What was the newest state within so many nanoseconds.
    Period(u64),
}

#[derive(Default)]
pub(super) struct Compactor {
    next_at: Option<Nanos>,
    /// The newest revision, and when it was that; the oldest first.
    samples: VecDeque<(Nanos, u64)>,
    proposed_at: Nanos,
}

impl Compactor {
    pub(super) fn deadline(&self) -> Option<Nanos> {
        self.next_at
    }

    /// What may be compacted now, and when to ask again.
    fn due(&mut self, rule: AutoCompaction, now: Nanos, revision: u64) -> (Option<u64>, Nanos) {
        match rule {
            AutoCompaction::Off => (None, Nanos::MAX),
            AutoCompaction::Revisions(kept) => {
                (revision.checked_sub(kept), now.saturating_add(REVISION_INTERVAL))
            }
            AutoCompaction::Period(period) => {
                let step = (period / SAMPLES).max(1);
                self.samples.push_back((now, revision));
                let mut old = None;
                while let Some(&(at, revision)) = self.samples.front()
                    && at.saturating_add(period) <= now
                {
                    old = Some(revision);
                    self.samples.pop_front();
                }
                let interval = period.min(INTERVAL_MAX);
                if old.is_some() && now < self.proposed_at.saturating_add(interval) {
                    // Not yet; a sample that is as old will be there then.
                    old = None;
                }
                if old.is_some() {
                    self.proposed_at = now;
                }
                (old, now.saturating_add(step))
            }
        }
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// Looks whether something may be compacted.
    pub(super) fn turn_compactor(&mut self) {
        let (now, rank) = (self.now, u64::from(self.me) * RANK);
        let rule = self.config.auto_compaction;
        if rule == AutoCompaction::Off {
            return;
        }
        let first = now + rank;
        let next_at = *self.api.compactor.next_at.get_or_insert(first);
        if now < next_at {
            return;
        }
        let current = self.machine.revision();
        let (revision, again) = self.api.compactor.due(rule, now, current);
        self.api.compactor.next_at = Some(again);
        let done = self.machine.compact_revision().unwrap_or(0);
        if let Some(revision) = revision.filter(|revision| *revision > done) {
            let op = Op {
                id: self.next_op_id(),
                author: self.own_author(),
                stamp: None,
                action: Action::Compact { revision },
            };
            // Another node may have been first: that is as good.
            self.propose(op, crate::batch::Payload::None, Box::new(|_, _| {}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_the_newest_a_period_ago_is_compacted() {
        let (mut compactor, period) = (Compactor::default(), 100 * SECOND);
        let rule = AutoCompaction::Period(period);
        let (mut now, mut compacted) = (0, Vec::new());
        // A revision a second.
        while now <= 400 * SECOND {
            let (revision, again) = compactor.due(rule, now, now / SECOND);
            assert_eq!(again - now, period / 10);
            compacted.extend(revision.map(|revision| (now / SECOND, revision)));
            now = again;
        }
        assert_eq!(compacted, [(100, 0), (200, 100), (300, 200), (400, 300)]);
    }

    #[test]
    fn so_many_revisions_are_kept() {
        let mut compactor = Compactor::default();
        let rule = AutoCompaction::Revisions(1000);
        assert_eq!(compactor.due(rule, 0, 999).0, None);
        assert_eq!(compactor.due(rule, 0, 1500).0, Some(500));
    }
}
