//! Parameters of a cluster and the thresholds that follow from them (PROTOCOL 1).

use crate::{Class, CoinKey, Configuration, Digest, Fast, Nanos, Node, NodeSet, Policy, Slot};
use std::fmt;

/// Most members of a cluster: node sets are one machine word.
pub const MEMBERS_MAX: usize = 64;

/// Windows that an operation of the queue policy lives for, and the least taken for one: enough for the
/// largest that is stored first while others fill slots.
const LIVES: Slot = 16;
const LEAST_ALPHA: Slot = 64;

/// How long a node that could vote waits for proposals that would spare the vote (PROTOCOL 5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The smaller of what a vote round costs and what the last proposal usually takes.
    Adaptive,
    Fixed(Nanos),
}

/// Timers; all are about speed, none about safety (PROTOCOL 6.5).
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Least T_skip: how long a silent owner may hold up a slot.
    pub skip_min: Nanos,
    /// Most that T_skip adapts to.
    pub skip_max: Nanos,
    /// T_hold: how long to wait for a batch that somebody proposed.
    pub hold: Nanos,
    /// tau1.
    pub vote_wait: Wait,
    /// tau2.
    pub support_wait: Nanos,
    /// Least and most time between two PULLs of a slot.
    pub pull_min: Nanos,
    pub pull_max: Nanos,
}

impl Default for Timing {
    fn default() -> Timing {
        const MS: Nanos = 1_000_000;
        Timing {
            skip_min: 3 * MS,
            skip_max: 100 * MS,
            hold: 20 * MS,
            vote_wait: Wait::Adaptive,
            support_wait: 2 * MS,
            pull_min: 2 * MS,
            pull_max: 100 * MS,
        }
    }
}

/// What a node needs to know to take part.
#[derive(Clone, Debug)]
pub struct Config {
    /// Members when the cluster was founded, numbered from 0; lost ones to survive, data fragments of
    /// a value. A node that joined later has a number from n on.
    pub n: usize,
    pub f: usize,
    pub k: usize,
    /// This node.
    pub me: Node,
    /// Incarnation of this node's disk; the first one is 1.
    pub incarnation: u32,
    /// Which of the node's lanes this is: each has coins of its own.
    pub lane: u16,
    /// No node speaks of a slot at or above exec + alpha.
    pub alpha: Slot,
    /// Who fills the slots; agreed by all members.
    pub policy: Policy,
    /// How many proposals decide a slot of class R; agreed by all members.
    pub fast: Fast,
    /// Own slots in flight (W).
    pub own_slots_max: usize,
    pub timing: Timing,
    /// Shared by the cluster: the common coin.
    pub coin: CoinKey,
    /// Private to this node: the coin of the local phases.
    pub local_coin: CoinKey,
}

/// Why parameters cannot make a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    NoDataFragment,
    TooManyMembers(usize),
    TooFewMembers { n: usize, f: usize, k: usize },
    ImpossibleMember(Node),
    WindowTooSmall { alpha: Slot, least: Slot },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::NoDataFragment => {
                write!(out, "k = 0: a value needs at least one fragment")
            }
            ConfigError::TooManyMembers(n) => {
                write!(out, "{n} nodes: a cluster has at most {MEMBERS_MAX}")
            }
            ConfigError::TooFewMembers { n, f, k } => write!(
                out,
                "(n,f,k) = ({n},{f},{k}) is impossible: n must be at least 2f+k = {}; \
                 add nodes, or lower f or k",
                2 * f + k
            ),
            ConfigError::ImpossibleMember(node) => write!(
                out,
                "node {node}: members have different numbers, from 0 to {}",
                MEMBERS_MAX - 1
            ),
            ConfigError::WindowTooSmall { alpha, least } => {
                write!(out, "alpha = {alpha}: must be at least n*W = {least}")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// The usual parameters, of a disk of the first incarnation; both coins are keys that everybody knows,
    /// which a cluster that is not a test replaces.
    pub fn new((n, f, k): (usize, usize, usize), me: Node) -> Config {
        Config {
            n,
            f,
            k,
            me,
            incarnation: 1,
            lane: 0,
            alpha: 1024,
            policy: Policy::OwnerSlots,
            fast: Fast::Support,
            own_slots_max: 2,
            timing: Timing::default(),
            coin: CoinKey(1, 2),
            local_coin: CoinKey(3, 4),
        }
    }

    /// Queue policy: slots from its acceptance on of which an operation gets one, or none.
    pub fn life(&self) -> Slot {
        LIVES * self.alpha.max(LEAST_ALPHA)
    }

    /// Checks the parameters and derives the thresholds.
    pub fn thresholds(&self) -> Result<Thresholds, ConfigError> {
        let least = (self.n * self.own_slots_max.max(1)) as Slot;
        if usize::from(self.me) >= MEMBERS_MAX {
            return Err(ConfigError::ImpossibleMember(self.me));
        }
        // PROTOCOL 6.1-c: alpha is at least n*W.
        if self.alpha < least {
            return Err(ConfigError::WindowTooSmall { alpha: self.alpha, least });
        }
        Ok(Thresholds::new(self.n, self.f, self.k)?.with(self.fast))
    }

    /// The configuration that the cluster was founded with.
    ///
    /// # Errors
    /// As [`Config::thresholds`].
    pub fn founding(&self) -> Result<Configuration, ConfigError> {
        self.thresholds()?;
        let founding = Configuration::new(0, (0..self.n as Node).collect(), self.f, self.k)?;
        Ok(founding.with(self.fast))
    }
}

/// Counts of distinct senders that the rules wait for (PROTOCOL 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    pub n: usize,
    pub f: usize,
    pub k: usize,
    /// Those who are counted.
    pub members: NodeSet,
    /// Messages a node waits for.
    pub quorum: usize,
    /// Majority of all nodes (m).
    pub majority: usize,
    /// Durable fragments before a write may be acknowledged or read (D).
    pub durable: usize,
    /// Proposals needed to vote for a batch of class E.
    pub support: usize,
    /// Identical proposals that decide one at once.
    pub fast: usize,
    /// The same of class R.
    pub ready_support: usize,
    pub ready_fast: usize,
    /// F* is chosen: votes of phase 0 of class R may be weak.
    pub has_weak_votes: bool,
    /// Null proposals that decide null at once.
    pub fast_null: usize,
    /// Equal votes that decide.
    pub decide: usize,
}

impl Thresholds {
    /// PROTOCOL 1-a: n >= 2f+k, k >= 1.
    pub fn new(n: usize, f: usize, k: usize) -> Result<Thresholds, ConfigError> {
        if k == 0 {
            return Err(ConfigError::NoDataFragment);
        }
        if n > MEMBERS_MAX {
            return Err(ConfigError::TooManyMembers(n));
        }
        if n < 2 * f + k {
            return Err(ConfigError::TooFewMembers { n, f, k });
        }
        let majority = n / 2 + 1;
        let durable = k + f;
        // PROTOCOL 6.2-f: sup = max(m, k+f), fast = sup+f.
        let support = majority.max(durable);
        let t = Thresholds {
            n,
            f,
            k,
            members: NodeSet::first(n),
            quorum: n - f,
            majority,
            durable,
            support,
            fast: support + f,
            ready_support: majority,
            ready_fast: majority + f,
            has_weak_votes: false,
            fast_null: majority + f,
            decide: f + 1,
        };
        Ok(t.mutated())
    }

    /// The same under what the cluster decides class R by.
    /// PROTOCOL 5.5-k: class E and null are decided as before.
    pub fn with(self, fast: Fast) -> Thresholds {
        if fast == Fast::Support {
            return self;
        }
        // PROTOCOL 5.5-h: F* = floor((n+f)/2)+1.
        let mut ready_fast = (self.n + self.f) / 2 + 1;
        if mutant!("F* one short") {
            ready_fast -= 1;
        }
        Thresholds { ready_fast, has_weak_votes: true, ..self }
    }

    /// PROTOCOL 5.5-h: whether a candidate that so many of those `heard` have proposed may be decided by
    /// F* proposals, of which this node has not heard all.
    pub(crate) fn is_weak(&self, candidate: Digest, count: usize, heard: usize) -> bool {
        let may_be_decided = count + (self.n - heard) >= self.ready_fast;
        self.has_weak_votes
            && Class::of(candidate) == Class::Ready
            && may_be_decided
            && !mutant!("no vote is weak")
    }

    /// PROTOCOL 13-c: the fewest proposals of a candidate that is decided. A vote that is weak for it takes
    /// no more of them than this.
    pub fn least_proposals(&self, class: Class) -> usize {
        let (support, fast) = self.of(class);
        match class == Class::Ready && self.has_weak_votes {
            true => support.min(fast - self.f),
            false => support,
        }
    }

    /// PROTOCOL 5.2-x, 6.3-d: proposals needed to vote for a batch, and to decide it at once. Of class R
    /// they say nothing about fragments: a majority keeps agreement, and what is durable is settled.
    pub fn of(&self, class: Class) -> (usize, usize) {
        match class {
            Class::Eager => (self.support, self.fast),
            Class::Ready => (self.ready_support, self.ready_fast),
        }
    }

    /// With one of them wrong, if a test asks for it.
    // Without mutants every condition is the same constant.
    #[allow(clippy::ifs_same_cond)]
    fn mutated(mut self) -> Thresholds {
        if mutant!("fast one short") {
            self.fast -= 1;
        } else if mutant!("null as soon as a quorum may lack support") {
            self.fast_null = self.n - self.support;
        } else if mutant!("support of a bare majority") {
            self.support = self.majority;
            self.fast = self.majority + self.f;
        } else if mutant!("f votes decide") {
            self.decide = self.f.max(1);
        } else if mutant!("quorum one short") {
            self.quorum -= 1;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests PROTOCOL 6.2-f
    #[test]
    fn thresholds_follow_the_table_of_section_1() {
        // (n, f, k) -> (n-f, m, sup, fast) of class E.
        for (n, f, k, quorum, majority, support, fast) in [
            (3, 1, 1, 2, 2, 2, 3),
            (4, 1, 2, 3, 3, 3, 4),
            (5, 1, 3, 4, 3, 4, 5),
            (5, 1, 2, 4, 3, 3, 4),
            (6, 1, 3, 5, 4, 4, 5),
            (7, 1, 5, 6, 4, 6, 7),
            (7, 2, 3, 5, 4, 5, 7),
            (8, 2, 3, 6, 5, 5, 7),
            (9, 3, 3, 6, 5, 6, 9),
            (9, 2, 3, 7, 5, 5, 7),
            (11, 4, 3, 7, 6, 7, 11),
            (13, 5, 3, 8, 7, 8, 13),
            (1, 0, 1, 1, 1, 1, 1),
        ] {
            let t = Thresholds::new(n, f, k).unwrap();
            assert_eq!(
                (t.quorum, t.majority, t.support, t.fast),
                (quorum, majority, support, fast)
            );
            assert!(t.quorum >= t.majority && t.majority > t.f && t.decide <= t.quorum);
            assert!(t.decide + t.quorum > n && t.quorum >= t.durable && t.fast <= n);
        }
    }

    /// tests PROTOCOL 6.3-d, 5.2-x
    #[test]
    fn the_class_of_a_candidate_says_how_many_proposals_it_takes() {
        for (n, f, k, eager, ready) in [
            (3, 1, 1, (2, 3), (2, 3)),
            (5, 1, 3, (4, 5), (3, 4)),
            (5, 1, 2, (3, 4), (3, 4)),
            (7, 1, 5, (6, 7), (4, 5)),
            (7, 2, 3, (5, 7), (4, 6)),
            (9, 3, 3, (6, 9), (5, 8)),
        ] {
            let t = Thresholds::new(n, f, k).unwrap();
            assert_eq!((t.of(Class::Eager), t.of(Class::Ready)), (eager, ready));
        }
        for hash in [0, 1, u128::MAX, 1 << 127] {
            assert_eq!(Class::of(Class::Eager.mark(hash)), Class::Eager);
            assert_eq!(Class::of(Class::Ready.mark(hash)), Class::Ready);
        }
    }

    /// tests PROTOCOL 5.5-h, 5.5-k
    #[test]
    fn the_least_threshold_stands_in_the_table_of_section_1() {
        // (n, f, k) -> P, whether a quorum can reach it; F*, likewise; fast of class E.
        for (shape, published, in_quorum, least, least_in_quorum, eager) in [
            ((3, 1, 1), 3, false, 3, false, 3),
            ((4, 1, 2), 4, false, 3, true, 4),
            ((5, 1, 3), 4, true, 4, true, 5),
            ((5, 1, 2), 4, true, 4, true, 4),
            ((6, 1, 3), 5, true, 4, true, 5),
            ((7, 1, 5), 5, true, 5, true, 7),
            ((7, 2, 3), 6, false, 5, true, 7),
            ((8, 2, 3), 7, false, 6, true, 7),
            ((9, 3, 3), 8, false, 7, false, 9),
            ((9, 2, 3), 7, true, 6, true, 7),
            ((11, 4, 3), 10, false, 8, false, 11),
            ((13, 5, 3), 12, false, 10, false, 13),
        ] {
            let (n, f, k) = shape;
            let plain = Thresholds::new(n, f, k).unwrap();
            let with = plain.with(Fast::Least);
            assert_eq!((plain.ready_fast, with.ready_fast), (published, least), "{shape:?}");
            assert_eq!(plain.quorum >= published, in_quorum, "{shape:?}");
            assert_eq!(with.quorum >= least, least_in_quorum, "{shape:?}");
            // It helps where n is even or f is 2 or more.
            assert_eq!(least < published, n % 2 == 0 || f >= 2, "{shape:?}");
            // Class E, null and everything else stay.
            assert_eq!((with.of(Class::Eager), with.fast), (plain.of(Class::Eager), eager));
            let same = Thresholds { ready_fast: published, has_weak_votes: false, ..with };
            assert_eq!((same, plain.with(Fast::Support)), (plain, plain));
            assert!(!with.is_weak(Class::Eager.mark(1), n, n), "no vote of class E is weak");
            let least = least - f;
            assert_eq!(with.least_proposals(Class::Ready), least.min(with.majority));
            assert_eq!(with.least_proposals(Class::Eager), with.support);
        }
    }

    /// tests PROTOCOL 1-a
    #[test]
    fn impossible_parameters_are_refused_with_the_fix() {
        let error = Thresholds::new(4, 1, 3).unwrap_err().to_string();
        assert!(error.contains("at least 2f+k = 5"), "{error}");
        assert!(Thresholds::new(3, 0, 0).is_err());
        assert!(Thresholds::new(65, 1, 1).is_err());
    }
}
