//! Exhaustive search of F* at small scope (PROTOCOL 5.5-h to 5.5-k): slots of class R with an owner, and slots
//! in which three operations of a queue meet, with the shipped [`Consensus`] and [`Contest`].
//!
//! As the search of rounds in `search.rs`: nodes are anonymous, a state is a multiset of what was said in each
//! round. Every node may act on any set of at least n-f messages of a round, its own or not, or stay silent for
//! ever; every coin that is free comes up both ways; any complete or incomplete set may decide at any time.
//! This covers every order, delay, loss, broadcast cut short, crash and, by PROTOCOL 4.1, restart.
//!
//! Deliberate errors must be refuted by the same search; each prints what it found.

mod cluster;
mod star;

use cluster::config;
use racos_protocol::{
    Action, Ballot, Config, Consensus, Contest, Fast, NodeSet, Slot, Thresholds, Waiting,
};
use star::{
    CANDIDATES, KINDS, NULL, OPEN, OPEN_FOR, Said, WEAK_FOR, ballot, count, kind_of,
    kind_of_ballot, parts, senders, value,
};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;

type Shape = (usize, usize, usize);

/// All multisets of up to `n` things of these kinds.
fn multisets(kinds: &BTreeSet<usize>, n: usize) -> Vec<Said> {
    let mut most = [0; KINDS];
    kinds.iter().for_each(|kind| most[*kind] = n as u8);
    let mut all = parts(&most, 0);
    all.retain(|said| count(said) <= n);
    all
}

#[derive(Clone)]
struct Rules {
    t: Thresholds,
    config: Config,
    /// Nodes propose operations of a queue, else the owner's batch or null.
    is_queue: bool,
    /// The fewest proposals that a candidate may be decided with.
    least: usize,
    /// A mutant: the coin of phase 1 is free, so that two candidates may be left for good.
    free_coin: bool,
    /// A mutant: no `?` is weak.
    never_weak: bool,
}

impl Rules {
    fn new(shape: Shape, is_queue: bool) -> Rules {
        let mut config = config(shape, 0, 3);
        config.fast = Fast::Least;
        let t = config.thresholds().unwrap();
        let (n, f, _) = shape;
        assert_eq!((t.ready_fast, t.has_weak_votes), ((n + f) / 2 + 1, true));
        let least = t.majority.min(t.ready_fast - f);
        Rules { t, config, is_queue, least, free_coin: false, never_weak: false }
    }

    /// A slot whose common coin of this phase shows this side.
    fn slot_with_coin(&self, phase: u32, side: bool) -> Slot {
        let key = if phase.is_multiple_of(4) { self.config.local_coin } else { self.config.coin };
        (0..).find(|slot| key.flip(1, 0, *slot, phase) == side).expect("coins have two sides")
    }
}

/// What a node does that has heard some of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deed {
    Vote(usize),
    State(usize),
    Decide(usize),
    Wait,
}

/// The nodes' part: the shipped code, asked once for everything.
struct Nodes<'a> {
    rules: &'a Rules,
    deeds: HashMap<(u32, bool, Said), Result<Deed, String>>,
    rounds: HashMap<(u32, Said), Rc<After>>,
}

/// What may follow from the votes of a phase: decisions, and states for each side of the coin.
#[derive(Debug, Default)]
struct After {
    decided: BTreeSet<usize>,
    states: Vec<BTreeSet<usize>>,
}

impl Nodes<'_> {
    /// Two operations may be left: who counts the votes of this phase.
    fn is_contest(&self, phase: u32) -> bool {
        self.rules.is_queue && (phase <= 1 || self.rules.free_coin)
    }

    /// With the mutant all later phases are like phase 1.
    fn phase(&self, phase: u32) -> u32 {
        if self.is_contest(phase) { phase.min(1) } else { phase }
    }

    fn first(&mut self, phase: u32, part: &Said) -> Result<Deed, String> {
        let key = (self.phase(phase), false, *part);
        if let Some(known) = self.deeds.get(&key) {
            return known.clone();
        }
        let deed = self.hear_first(self.phase(phase), part);
        self.deeds.insert(key, deed.clone());
        deed
    }

    fn hear_first(&self, phase: u32, part: &Said) -> Result<Deed, String> {
        let quorum = self.rules.t.quorum;
        let (mut contest, mut consensus) = (Contest::default(), Consensus::default());
        if phase > 0 {
            consensus.resume(phase, false);
        }
        for (node, kind) in senders(part) {
            match (phase, self.is_contest(phase)) {
                (0, true) => contest.propose(node, value(kind), 0, quorum),
                (0, false) => consensus.propose(node, value(kind), 0, quorum),
                (_, true) => contest.state(node, phase, value(kind)),
                (_, false) => consensus.state(node, phase, value(kind)),
            }
            .map_err(|why| why.0)?;
        }
        self.deed(&contest, &mut consensus, 0)
    }

    fn deed(
        &self,
        contest: &Contest,
        consensus: &mut Consensus,
        slot: Slot,
    ) -> Result<Deed, String> {
        let Rules { t, config, is_queue, .. } = self.rules;
        let waiting = Waiting { now: 0, suspected: NodeSet::EMPTY, vote_wait: 0, support_wait: 0 };
        let action = match is_queue {
            true => contest.advance(consensus, slot, config, t, waiting),
            false => consensus.advance(slot, config, t, waiting),
        };
        Ok(match action.map_err(|why| why.0)? {
            Action::Vote { ballot: Ballot::Weak(_), .. } if self.rules.never_weak => {
                Deed::Vote(OPEN)
            }
            Action::Vote { ballot, .. } => Deed::Vote(kind_of_ballot(ballot)),
            Action::State { value, .. } => Deed::State(kind_of(value)),
            Action::Decided(decision) => Deed::Decide(kind_of(decision.value)),
            Action::Nothing | Action::WaitUntil(_) => Deed::Wait,
        })
    }

    fn hear_votes(&self, phase: u32, part: &Said, side: bool) -> Result<Deed, String> {
        let (mut contest, mut consensus) = (Contest::default(), Consensus::default());
        for (node, kind) in senders(part) {
            match self.is_contest(phase) {
                true => contest.vote(node, phase, ballot(kind)),
                false => consensus.vote(node, phase, ballot(kind)),
            }
            .map_err(|why| why.0)?;
        }
        consensus.resume(phase, true);
        self.deed(&contest, &mut consensus, self.rules.slot_with_coin(phase.max(1), side))
    }

    fn after_votes(&mut self, phase: u32, said: &Said) -> Result<Rc<After>, String> {
        let key = (self.phase(phase), *said);
        if let Some(known) = self.rounds.get(&key) {
            return Ok(known.clone());
        }
        let (phase, quorum) = (self.phase(phase), self.rules.t.quorum);
        let mut after = After::default();
        for side in [false, true] {
            let mut states = BTreeSet::new();
            for part in parts(said, 0) {
                let deed = match self.deeds.get(&(phase, true, part)).filter(|_| phase == 0) {
                    Some(known) => known.clone(),
                    None => self.hear_votes(phase, &part, side),
                };
                if phase == 0 {
                    self.deeds.insert((phase, true, part), deed.clone());
                }
                match deed? {
                    Deed::Decide(kind) => {
                        after.decided.insert(kind);
                    }
                    Deed::State(kind) => {
                        states.insert(kind);
                        // A free coin takes any candidate that the votes carry.
                        let is_open = part[..OPEN].iter().all(|count| *count == 0);
                        if self.rules.free_coin && phase > 0 && is_open {
                            let carried = (0..CANDIDATES).filter(|kind| part[OPEN_FOR + kind] > 0);
                            states.extend(carried);
                        }
                    }
                    Deed::Wait if count(&part) < quorum => {}
                    other => return Err(format!("{other:?} with votes {part:?}")),
                }
            }
            after.states.push(states);
        }
        if phase > 0 && phase.is_multiple_of(4) {
            let both = after.states.iter().flatten().copied().collect();
            after.states.push(both);
        }
        after.states.dedup();
        let after = Rc::new(after);
        self.rounds.insert(key, after.clone());
        Ok(after)
    }
}

/// A slot at the end of some round, for the nodes together.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Round {
    phase: u32,
    /// PROPOSEs, or STATEs of the phase.
    first: Said,
    /// Proposals for each candidate, of all nodes that ever proposed.
    proposed: [u8; CANDIDATES],
    /// What somebody may have decided so far.
    decided: Option<usize>,
}

/// What was searched, and seen.
#[derive(Default, Debug)]
struct Found {
    states: usize,
    /// Decisions for a candidate, for null; by how few proposals.
    candidate: bool,
    null: bool,
    fewest: usize,
    /// A weak vote; a slot in which two candidates begin phase 1, or phase 2.
    weak: bool,
    rivals: [bool; 2],
}

/// Searches all runs of up to `phases` phases after phase 0.
fn search(rules: &Rules, phases: u32) -> Result<Found, String> {
    let n = rules.t.n;
    let mut nodes = Nodes { rules, deeds: HashMap::new(), rounds: HashMap::new() };
    let mut found = Found { fewest: n, ..Found::default() };
    let (mut seen, mut queue) = (HashSet::new(), VecDeque::new());
    let kinds = match rules.is_queue {
        true => BTreeSet::from([0, 1, 2]),
        false => BTreeSet::from([0, NULL]),
    };
    for first in multisets(&kinds, n) {
        // Operations are not alike: of two that as many propose the lower one leads.
        let proposed = [first[0], first[1], first[2]];
        queue.push_back(Round { phase: 0, first, proposed, decided: None });
    }
    while let Some(round) = queue.pop_front() {
        if !seen.insert(round.clone()) {
            continue;
        }
        found.states += 1;
        candidates_left(rules, &round, &mut found)?;
        let mut decided = round.decided;
        let mut votes = BTreeSet::new();
        for part in parts(&round.first, 0) {
            match nodes.first(round.phase, &part).map_err(|why| format!("{why} in {round:?}"))? {
                Deed::Decide(kind) => agree(rules, &round, &mut decided, kind, &mut found)?,
                Deed::Vote(kind) => {
                    found.weak |= kind >= WEAK_FOR;
                    votes.insert(kind);
                }
                Deed::Wait if count(&part) < rules.t.quorum => {}
                other => return Err(format!("{other:?} with {part:?} in {round:?}")),
            }
        }
        if votes.iter().filter(|kind| **kind <= NULL).count() > 1 {
            return Err(format!("two values voted in {round:?}"));
        }
        for said in multisets(&votes, n) {
            let after = nodes.after_votes(round.phase, &said);
            let after = after.map_err(|why| format!("{why} in {round:?}"))?;
            let mut decided = decided;
            for kind in &after.decided {
                agree(rules, &round, &mut decided, *kind, &mut found)?;
            }
            if round.phase == phases {
                continue;
            }
            for first in after.states.iter().flat_map(|states| multisets(states, n)) {
                let (phase, proposed) = (round.phase + 1, round.proposed);
                queue.push_back(Round { phase, first, proposed, decided });
            }
        }
    }
    Ok(found)
}

/// PROTOCOL 5.5-j: two candidates at most after phase 0, and one after phase 1.
fn candidates_left(rules: &Rules, round: &Round, found: &mut Found) -> Result<(), String> {
    let left = round.first[..CANDIDATES].iter().filter(|count| **count > 0).count();
    if round.phase > 0 && left > 1 {
        found.rivals[usize::from(round.phase > 1)] = true;
        if left > 2 || (round.phase > 1 && !rules.free_coin) {
            return Err(format!("{left} candidates are left in {round:?}"));
        }
    }
    Ok(())
}

/// Agreement, and support, of whatever can be decided.
fn agree(
    rules: &Rules,
    round: &Round,
    known: &mut Option<usize>,
    new: usize,
    found: &mut Found,
) -> Result<(), String> {
    if let Some(known) = known.filter(|known| *known != new) {
        return Err(format!("decided {known} and {new} in or before {round:?}"));
    }
    *known = Some(new);
    match round.proposed.get(new) {
        None => found.null = true,
        Some(proposed) => {
            found.candidate = true;
            found.fewest = found.fewest.min(usize::from(*proposed));
            if usize::from(*proposed) < rules.least {
                return Err(format!("a candidate of {proposed} nodes is decided in {round:?}"));
            }
        }
    }
    Ok(())
}

/// Configurations of the table in which F* is less than support and f more, of those searched here.
fn is_lower(shape: Shape) -> bool {
    let t = Rules::new(shape, false).t;
    t.ready_fast < t.majority + t.f
}

#[track_caller]
fn holds(shape: Shape, phases: u32) {
    for is_queue in [false, true] {
        let rules = Rules::new(shape, is_queue);
        let found = search(&rules, phases).unwrap();
        println!("{shape:?} queue {is_queue}, {phases} phases: {found:?}");
        assert!(found.candidate && found.null, "both outcomes are reachable: {found:?}");
        assert_eq!(found.weak, is_lower(shape), "else it is support and f more");
        // 13-c asks for no more proposals than this, and could not ask for one more.
        assert_eq!(found.fewest, rules.least);
    }
}

#[track_caller]
fn refuted(rules: &Rules, because: &str) {
    let why = search(rules, 2).expect_err("the search must refute this mutant");
    println!("{},{},{}: {why}", rules.t.n, rules.t.f, rules.t.k);
    assert!(why.contains(because), "{why}");
}

fn with(shape: Shape, is_queue: bool, change: impl FnOnce(&mut Rules)) -> Rules {
    let mut rules = Rules::new(shape, is_queue);
    // How many have proposed is not what these mutants are about.
    rules.least = 0;
    change(&mut rules);
    rules
}

/// tests PROTOCOL 5.5-h, 5.5-i, 5.5-j
#[test]
fn the_least_threshold_holds_in_every_run_of_a_small_cluster() {
    for shape in [(3, 1, 1), (4, 1, 2), (5, 1, 3), (5, 2, 1)] {
        holds(shape, 5);
    }
}

/// tests PROTOCOL 5.5-h, 5.5-i, 5.5-j
#[test]
fn the_least_threshold_holds_in_every_run_of_larger_clusters() {
    for shape in [(6, 1, 3), (7, 1, 5), (7, 2, 3), (8, 2, 3), (9, 3, 3), (9, 2, 3)] {
        holds(shape, 5);
    }
}

const SHAPES: [Shape; 6] = [(4, 1, 2), (5, 1, 3), (6, 1, 3), (5, 2, 1), (7, 1, 5), (7, 2, 3)];

/// tests PROTOCOL 5.5-h: fewer equal proposals than F* do not tell two operations apart.
#[test]
fn one_proposal_less_than_the_least_threshold_is_refuted() {
    for shape in SHAPES {
        refuted(&with(shape, true, |rules| rules.t.ready_fast -= 1), "");
    }
}

/// Beside one batch there is only null, which has no weak votes: what cannot be voted null is decided with
/// fewer proposals than F*. One less than that is wrong. What is used is F*, for both policies.
#[test]
fn with_one_candidate_the_fewest_proposals_are_those_that_leave_null_no_majority() {
    for shape in SHAPES {
        let with = |fast| with(shape, false, |rules| rules.t.ready_fast = fast);
        let t = Rules::new(shape, false).t;
        let least = t.n - t.majority + 1;
        assert!(least <= t.ready_fast);
        for fast in least..=t.ready_fast {
            search(&with(fast), 2).unwrap();
        }
        refuted(&with(least - 1), "decided");
    }
}

/// tests PROTOCOL 5.5-h
#[test]
fn the_least_threshold_without_weak_votes_is_refuted_where_it_is_lower() {
    for shape in SHAPES {
        for is_queue in [false, true] {
            let rules = with(shape, is_queue, |rules| rules.never_weak = true);
            match is_lower(shape) {
                true => refuted(&rules, "decided"),
                // It is the one of class R without F*.
                false => drop(search(&rules, 2).unwrap()),
            }
        }
    }
}

/// tests PROTOCOL 5.5-j: two operations survive a phase 1 whose coin is free. Nodes agree all the same.
#[test]
fn two_operations_survive_a_free_coin_in_phase_1_and_agreement_does_too() {
    for shape in [(5, 2, 1), (7, 2, 3)] {
        let fixed = search(&Rules::new(shape, true), 2).unwrap();
        assert_eq!(fixed.rivals, [true, false], "two begin phase 1 and one is left");
        let free = search(&with(shape, true, |rules| rules.free_coin = true), 3).unwrap();
        assert_eq!(free.rivals, [true, true], "{free:?}");
        println!("{shape:?}: {free:?}");
    }
}

/// tests PROTOCOL 5.5-k: weak votes adopt what fewer than D nodes hold.
#[test]
fn the_least_threshold_in_class_e_is_refuted() {
    for shape in [(4, 1, 2), (5, 1, 3), (6, 1, 3), (7, 1, 5), (7, 2, 3)] {
        let rules = with(shape, false, |rules| {
            // The support of class E, and each proposal a holder.
            rules.t.ready_support = rules.t.support;
            rules.least = rules.t.durable;
        });
        refuted(&rules, "nodes is decided");
    }
}
