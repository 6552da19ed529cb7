//! The end of sessions that nobody uses (PROTOCOL 11-i).
//!
//! Purpose: a client that died leaves its session behind, with the parts of values that it did not
//! finish. A node that saw no use of it for long, by its own clock, proposes its end; whoever used it
//! meanwhile makes that void.
//! Invariant: proposed is the end of what this node has executed no use of for at least the time set,
//! while it ran and heard a quorum. Cost: a few comparisons now and then, and of each session that is
//! idle; how many others there are does not matter, since they are kept in the order of their last use.
//! What would break it: taking a time in which nobody could have used a session for idleness.

use crate::batch::Payload;
use crate::node::Node;
use racos_machine::{Action, Op, SessionId, SessionState};
use racos_net::Link;
use racos_protocol::{Nanos, Slot};
use racos_storage::device::Device;
use std::collections::VecDeque;

/// How often a node looks, in the time after which a session is idle.
const LOOKS: u64 = 16;
/// How many looks later each further node proposes the same, if the one before does not.
const RANK_LOOKS: u64 = 2;
/// Most sessions looked at in one look, and most ends proposed in it: the rest is for the next one.
const LOOKED_MAX: usize = 256;
const ENDS_MAX: usize = 64;

/// How long ago what was used last.
#[derive(Debug, Default)]
pub(crate) struct Expiry {
    looked_at: Option<Nanos>,
    /// At this time all slots below were executed; the oldest first.
    marks: VecDeque<(Nanos, Slot)>,
    /// Ends proposed here that nothing is known of yet.
    under_way: usize,
}

impl Expiry {
    /// When to look again, if there is anything to look at.
    pub fn deadline(&self, idle_ns: Nanos) -> Option<Nanos> {
        self.looked_at.map(|at| at.saturating_add(pause(idle_ns)))
    }

    /// Notes how much is executed now. Time that does not count, and time in which the node stood still,
    /// is as if it had not passed.
    fn note(&mut self, now: Nanos, exec: Slot, idle_ns: Nanos, ranks: u64, counts: bool) {
        let gap = self.looked_at.map_or(0, |at| now.saturating_sub(at));
        if !counts || gap > 2 * pause(idle_ns) {
            self.marks.iter_mut().for_each(|mark| mark.0 = (mark.0 + gap).min(now));
        }
        self.looked_at = Some(now);
        self.marks.push_back((now, exec));
        // One that is old enough for everybody is enough.
        let oldest = wait(idle_ns, ranks);
        while self.marks.get(1).is_some_and(|mark| mark.0.saturating_add(oldest) <= now) {
            self.marks.pop_front();
        }
    }

    /// What was used last in a lower slot has not been used for this long.
    fn idle_below(&self, now: Nanos, wait: Nanos) -> Slot {
        let old = self.marks.partition_point(|mark| mark.0.saturating_add(wait) <= now);
        old.checked_sub(1).map_or(0, |newest| self.marks[newest].1)
    }

    /// Sessions whose end this node should propose now: of those used longest ago, which come first.
    fn ended(
        &self,
        sessions: impl Iterator<Item = SessionState>,
        rank: impl Fn(SessionId) -> u64,
        now: Nanos,
        idle_ns: Nanos,
    ) -> Vec<SessionState> {
        let any = self.idle_below(now, wait(idle_ns, 0));
        let is_due = |session: &SessionState| {
            let below = self.idle_below(now, wait(idle_ns, rank(session.session)));
            session.last_use.0 < below
        };
        let idle = sessions.take_while(|session| session.last_use.0 < any).take(LOOKED_MAX);
        idle.filter(is_due).take(ENDS_MAX).collect()
    }
}

fn pause(idle_ns: Nanos) -> Nanos {
    (idle_ns / LOOKS).max(1)
}

/// How long a node of this rank waits.
fn wait(idle_ns: Nanos, rank: u64) -> Nanos {
    idle_ns.saturating_add(rank.saturating_mul(RANK_LOOKS * pause(idle_ns)))
}

/// Which of `n` nodes proposes the end of a session first is as good as random; the others follow in a
/// circle.
fn rank(place: u64, session: SessionId, n: u64) -> u64 {
    let mixed =
        (session.slot << 12 ^ u64::from(session.position)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (place + n - (mixed >> 32) % n) % n
}

impl<L: Link, D: Device> Node<L, D> {
    /// Looks for sessions to end.
    pub(crate) fn expiry_turn(&mut self) {
        let (now, idle_ns) = (self.now, self.config.bounds.session_idle_ns);
        if idle_ns == 0 || self.expiry.deadline(idle_ns).is_some_and(|at| now < at) {
            return;
        }
        if self.machine.sessions_by_last_use().next().is_none() {
            self.expiry = Expiry { under_way: self.expiry.under_way, ..Expiry::default() };
            return;
        }
        let newest = self.core.newest();
        let (n, place) = (newest.members.len() as u64, newest.place(self.me));
        let heard = self.others.iter().filter(|node| self.hears(*node)).count();
        let counts = self.core.is_active() && heard + 1 >= newest.thresholds.quorum;
        self.expiry.note(now, self.core.exec(), idle_ns, n, counts);
        let Some(place) = place.filter(|_| counts && self.expiry.under_way == 0) else { return };
        let rank = |session| rank(place as u64, session, n);
        let sessions = self.machine.sessions_by_last_use();
        for idle in self.expiry.ended(sessions, rank, now, idle_ns) {
            self.propose_end(idle);
        }
    }

    /// PROTOCOL 11-i: EXPIRE, with the slot of the last use, so that it is void if there is a later one.
    fn propose_end(&mut self, idle: SessionState) {
        let (session, last_use) = (idle.session, idle.last_use.0);
        let action = Action::ExpireSession { session, last_use };
        let op = Op { id: self.next_op_id(), author: None, stamp: None, action };
        self.expiry.under_way += 1;
        self.propose(op, Payload::None, Box::new(|node, _| node.expiry.under_way -= 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const IDLE: Nanos = 1600;
    const PAUSE: Nanos = IDLE / LOOKS;

    fn session(slot: Slot, used: Slot) -> SessionState {
        let session = SessionId { slot, position: 0 };
        SessionState { session, window: 64, low: 1, last_use: (used, 0) }
    }

    /// A node that has looked since time 0, with a slot executed in each unit of time.
    fn watched_until(end: Nanos) -> Expiry {
        let mut expiry = Expiry::default();
        (0..=end / PAUSE).for_each(|look| expiry.note(look * PAUSE, look * PAUSE, IDLE, 5, true));
        expiry
    }

    /// tests PROTOCOL 11-i
    #[test]
    fn only_what_was_not_used_for_the_whole_time_is_ended() {
        let expiry = watched_until(10_000);
        let used = |at: Slot| {
            let rank = |_| 0;
            !expiry.ended(std::iter::once(session(1, at)), rank, 10_000, IDLE).is_empty()
        };
        assert!(used(10_000 - IDLE - 1) && !used(10_000 - IDLE), "by the clock of this node");
        let young = watched_until(IDLE - PAUSE);
        assert_eq!(young.idle_below(IDLE - PAUSE, IDLE), 0, "it has not watched for so long");
    }

    /// tests PROTOCOL 11-i
    #[test]
    fn one_node_proposes_an_end_and_each_other_one_later() {
        let expiry = watched_until(10_000);
        for slot in 0..200 {
            let mut ranks: Vec<u64> =
                (0..5).map(|place| rank(place, session(slot, 0).session, 5)).collect();
            ranks.sort_unstable();
            assert_eq!(ranks, [0, 1, 2, 3, 4], "slot {slot}");
        }
        let first =
            |place| (0..1000).filter(move |slot| rank(place, session(*slot, 0).session, 5) == 0);
        assert!((0..5).all(|place| (100..300).contains(&first(place).count())));
        let used = 10_000 - IDLE - 2 * RANK_LOOKS * PAUSE - 1;
        let propose = |rank| {
            let sessions = std::iter::once(session(1, used));
            !expiry.ended(sessions, |_| rank, 10_000, IDLE).is_empty()
        };
        assert_eq!([0, 1, 2, 3, 4].map(propose), [true, true, true, false, false]);
    }

    /// tests PROTOCOL 11-i
    #[test]
    fn time_in_which_nobody_could_use_a_session_does_not_count() {
        for counts in [true, false] {
            let mut expiry = watched_until(PAUSE);
            let exec = expiry.marks.back().expect("it has looked").1;
            let mut now = PAUSE;
            for _ in 0..2 * LOOKS {
                now += PAUSE;
                expiry.note(now, exec, IDLE, 5, counts);
            }
            assert_eq!(expiry.idle_below(now, IDLE) > 0, counts);
        }
        // It stood still, or its clock jumped.
        let mut expiry = watched_until(PAUSE);
        expiry.note(50 * IDLE, PAUSE, IDLE, 5, true);
        assert_eq!(expiry.idle_below(50 * IDLE, IDLE), 0);
    }

    #[test]
    fn a_look_costs_the_same_however_many_sessions_there_are() {
        let expiry = watched_until(10_000);
        for (idle, most) in [(0, 1), (10, 11), (1_000_000, LOOKED_MAX)] {
            for used in [1_000, 10_000, 100_000] {
                let looked = Cell::new(0);
                let old = (0..idle).map(|slot| session(slot, 1));
                let sessions = old.chain((0..used).map(|slot| session(slot, 9_999)));
                let sessions = sessions.inspect(|_| looked.set(looked.get() + 1));
                let ended = expiry.ended(sessions, |session| session.slot % 5, 10_000, IDLE);
                assert!(looked.get() <= most, "{idle} idle of {used}: {}", looked.get());
                assert_eq!(ended.len(), (idle as usize).min(ENDS_MAX));
            }
        }
        assert!(expiry.marks.len() as u64 <= LOOKS + 5 * RANK_LOOKS + 2);
    }
}
