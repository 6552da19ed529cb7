//! Exhaustive search of the consensus rules at small scope (PROTOCOL 5, 13).
//!
//! Three searches, all driven by the shipped [`Consensus`]:
//!
//! * *rounds*: nodes are anonymous, a state is a multiset of what was said in each round. Every node
//!   may act on any set of at least n-f messages of a round, or stay silent for ever; every coin
//!   comes up both ways; any complete or incomplete set may decide at any time. This covers every
//!   order, delay, loss, crash and, by PROTOCOL 4.1, restart.
//! * *rounds of a queue*: the same when nodes propose up to three different operations (PROTOCOL 6.4),
//!   which only phase 0 notices.
//! * *messages*: three nodes without lock-step, one message at a time, each own message counted only
//!   when flushed.
//!
//! Mutants of the thresholds and of the coin must be refuted by the same search.

mod cluster;

use cluster::config;
use racos_protocol::{
    Action, Ballot, Class, Config, Consensus, Contest, Digest, Node, NodeSet, Slot, Thresholds,
    Value, Waiting,
};
use std::collections::{BTreeSet, HashSet, VecDeque};

const BATCH: Digest = 0xba7c;

/// What is searched: thresholds, and whether the coin of phase 0 is broken.
#[derive(Clone)]
struct Rules {
    t: Thresholds,
    config: Config,
    /// A mutant: all `?` in phase 0 gives the candidate.
    coin_of_phase_zero: bool,
    /// The real support: a decided batch needs so many holders.
    holders: usize,
    /// The batch that the slot may hold.
    batch: Digest,
    /// Nodes propose operations, of which the batch has the most proposals, and nobody null.
    is_queue: bool,
}

impl Rules {
    fn new(shape: (usize, usize, usize)) -> Rules {
        let config = config(shape, 0, 3);
        let t = config.thresholds().unwrap();
        let batch = Class::Eager.mark(BATCH);
        let (coin_of_phase_zero, is_queue) = (false, false);
        Rules { t, config, coin_of_phase_zero, holders: t.support, batch, is_queue }
    }

    /// Of a slot that is assigned when the batch is stored: so many proposed it, and no more is asked.
    fn ready(shape: (usize, usize, usize)) -> Rules {
        let rules = Rules::new(shape);
        let (holders, batch) = (rules.t.majority, Class::Ready.mark(BATCH));
        Rules { holders, batch, ..rules }
    }

    /// Of a slot in which operations of a queue meet.
    fn queue(shape: (usize, usize, usize)) -> Rules {
        Rules { is_queue: true, ..Rules::ready(shape) }
    }

    fn held(&self) -> Value {
        Value::Batch(self.batch)
    }

    fn value(&self, kind: usize) -> Value {
        if kind == 0 { self.held() } else { Value::Null }
    }

    fn ballot(&self, kind: usize, candidate: Option<Digest>) -> Ballot {
        if kind == 2 { Ballot::Open(candidate) } else { Ballot::For(self.value(kind)) }
    }

    fn with(shape: (usize, usize, usize), change: impl FnOnce(&mut Rules)) -> Rules {
        let mut rules = Rules::new(shape);
        change(&mut rules);
        rules
    }

    /// Nobody waits: every message that may be sent can be sent now.
    fn advance(&self, slot: Slot, consensus: &mut Consensus) -> Result<Action, String> {
        let waiting = Waiting { now: 0, suspected: NodeSet::EMPTY, vote_wait: 0, support_wait: 0 };
        consensus.advance(slot, &self.config, &self.t, waiting).map_err(|why| why.0)
    }

    /// A slot whose common coin of this phase shows this side.
    fn slot_with_coin(&self, phase: u32, side: bool) -> Slot {
        let key = if phase.is_multiple_of(4) { self.config.local_coin } else { self.config.coin };
        (0..).find(|slot| key.flip(1, 0, *slot, phase) == side).expect("coins have two sides")
    }
}

/// How often each thing was said in a round: for the batch, for null, `?`.
type Said = [usize; 3];

/// All ways to take at least `least` of what was said.
fn parts(said: Said, least: usize) -> impl Iterator<Item = Said> {
    (0..=said[0]).flat_map(move |batch| {
        (0..=said[1]).flat_map(move |null| {
            (0..=said[2])
                .map(move |open| [batch, null, open])
                .filter(move |part| part.iter().sum::<usize>() >= least)
        })
    })
}

/// All multisets of up to `n` things of these kinds.
fn multisets(kinds: &BTreeSet<usize>, n: usize) -> Vec<Said> {
    let most = |kind| if kinds.contains(&kind) { n } else { 0 };
    let all = parts([most(0), most(1), most(2)], 0);
    all.filter(|said| said.iter().sum::<usize>() <= n).collect()
}

/// The senders of a part, numbered.
fn senders(said: Said) -> impl Iterator<Item = (Node, usize)> {
    let kinds = (0..3).flat_map(move |kind| std::iter::repeat_n(kind, said[kind]));
    kinds.enumerate().map(|(node, kind)| (node as Node, kind))
}

fn kind_of(value: Value) -> usize {
    usize::from(value == Value::Null)
}

/// What was searched, and the decisions that were seen.
#[derive(Default, Debug)]
struct Found {
    states: usize,
    batch: bool,
    null: bool,
}

/// A slot at the end of some round, for the nodes together.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Round {
    phase: u32,
    /// PROPOSEs, or STATEs of the phase.
    first: Said,
    /// Proposals for the batch, of all nodes that ever proposed: decides whether it is durable.
    holders: usize,
    /// What somebody may have decided so far.
    decided: Option<Value>,
}

/// Searches all runs of up to `phases` phases after phase 0.
fn search_rounds(rules: &Rules, phases: u32) -> Result<Found, String> {
    let n = rules.t.n;
    let mut found = Found::default();
    let mut seen = HashSet::new();
    let mut queue = VecDeque::new();
    let kinds = if rules.is_queue { BTreeSet::from([0, 1, 2]) } else { BTreeSet::from([0, 1]) };
    for first in multisets(&kinds, n) {
        // Operations are alike but for how many propose them.
        if rules.is_queue && (first[0] < first[1] || first[1] < first[2]) {
            continue;
        }
        queue.push_back(Round { phase: 0, first, holders: first[0], decided: None });
    }
    while let Some(round) = queue.pop_front() {
        if !seen.insert(round.clone()) {
            continue;
        }
        found.states += 1;
        let decided = first_decision(rules, &round)?;
        let votes = votes_of(rules, &round)?;
        for said in multisets(&votes, n) {
            let decided = votes_decision(rules, &round, said, decided)?;
            found.batch |= decided == Some(rules.held());
            found.null |= decided == Some(Value::Null);
            if round.phase == phases {
                continue;
            }
            for states in states_of(rules, &round, said)? {
                for first in multisets(&states, n) {
                    let (phase, holders) = (round.phase + 1, round.holders);
                    queue.push_back(Round { phase, first, holders, decided });
                }
            }
        }
    }
    Ok(found)
}

/// Agreement and support of whatever can be decided.
fn agree(
    rules: &Rules,
    round: &Round,
    known: Option<Value>,
    new: Option<Value>,
) -> Result<Option<Value>, String> {
    match (known, new) {
        (Some(known), Some(new)) if known != new => {
            Err(format!("decided {known:?} and {new:?} in or before {round:?}"))
        }
        (_, Some(value)) if value == rules.held() && round.holders < rules.holders => {
            Err(format!("a batch with {} holders is decided in {round:?}", round.holders))
        }
        _ => Ok(new.or(known)),
    }
}

/// Decisions by proposals alone: some node hears any part of them.
fn first_decision(rules: &Rules, round: &Round) -> Result<Option<Value>, String> {
    let mut known = round.decided;
    if round.phase > 0 {
        return Ok(known);
    }
    for part in parts(round.first, 0) {
        if let Action::Decided(decision) = after_first(rules, round, part)? {
            known = agree(rules, round, known, Some(decision.value))?;
        }
    }
    Ok(known)
}

/// What a node does that has heard this part of the first round of the phase.
fn after_first(rules: &Rules, round: &Round, part: Said) -> Result<Action, String> {
    if rules.is_queue && round.phase == 0 {
        return after_contest(rules, part);
    }
    let mut consensus = Consensus::default();
    if round.phase > 0 {
        consensus.resume(round.phase, false);
    }
    for (node, kind) in senders(part) {
        match round.phase {
            0 => consensus.propose(node, rules.value(kind), 0, rules.t.quorum),
            phase => consensus.state(node, phase, rules.value(kind)),
        }
        .map_err(|why| why.0)?;
    }
    rules.advance(0, &mut consensus)
}

/// The same of proposals of three operations.
fn after_contest(rules: &Rules, part: Said) -> Result<Action, String> {
    let (mut contest, mut consensus) = (Contest::default(), Consensus::default());
    for (node, kind) in senders(part) {
        let operation = Value::Batch(rules.batch + kind as Digest);
        contest.propose(node, operation, 0, rules.t.quorum).map_err(|why| why.0)?;
    }
    let waiting = Waiting { now: 0, suspected: NodeSet::EMPTY, vote_wait: 0, support_wait: 0 };
    let action = contest.advance(&mut consensus, 0, &rules.config, &rules.t, waiting);
    action.map_err(|why| why.0)
}

/// The votes that nodes may cast, each on any quorum of the first round.
fn votes_of(rules: &Rules, round: &Round) -> Result<BTreeSet<usize>, String> {
    let mut votes = BTreeSet::new();
    for part in parts(round.first, rules.t.quorum) {
        match after_first(rules, round, part)? {
            Action::Vote { ballot: Ballot::For(value), .. }
                if value != rules.held() && value != Value::Null =>
            {
                return Err(format!("two values voted in {round:?}"));
            }
            Action::Vote { ballot: Ballot::For(value), .. } => {
                votes.insert(kind_of(value));
            }
            Action::Vote { ballot: Ballot::Open(candidate), phase } => {
                // L4: whoever may have to take the batch as state must know it.
                if phase > 0 && candidate.is_none() {
                    return Err(format!("a `?` without the candidate in {round:?}"));
                }
                votes.insert(2);
            }
            // It decided by proposals and stops; late proposals may still let it vote before that.
            Action::Decided(_) => {}
            other => return Err(format!("{other:?} with a quorum of {part:?} in {round:?}")),
        }
    }
    Ok(votes)
}

/// A node that has heard this part of the votes.
fn heard_votes(rules: &Rules, round: &Round, part: Said) -> Result<Consensus, String> {
    let candidate = (round.phase > 0).then_some(rules.batch);
    let mut consensus = Consensus::default();
    for (node, kind) in senders(part) {
        consensus.vote(node, round.phase, rules.ballot(kind, candidate)).map_err(|why| why.0)?;
    }
    consensus.resume(round.phase, true);
    Ok(consensus)
}

fn votes_decision(
    rules: &Rules,
    round: &Round,
    said: Said,
    mut known: Option<Value>,
) -> Result<Option<Value>, String> {
    for part in parts(said, 0) {
        let mut consensus = heard_votes(rules, round, part)?;
        if let Action::Decided(decision) = rules.advance(0, &mut consensus)? {
            known = agree(rules, round, known, Some(decision.value))?;
        }
    }
    Ok(known)
}

/// The states of the next phase, for both sides of a common coin, or mixed for a local one.
fn states_of(rules: &Rules, round: &Round, said: Said) -> Result<Vec<BTreeSet<usize>>, String> {
    let mut sides = Vec::new();
    for side in [false, true] {
        let slot = rules.slot_with_coin(round.phase.max(1), side);
        let mut states = BTreeSet::new();
        for part in parts(said, rules.t.quorum) {
            let mut consensus = heard_votes(rules, round, part)?;
            // A node that decides by these votes helps with DECIDE only; one that has heard fewer
            // of the same votes goes on.
            match rules.advance(slot, &mut consensus)? {
                Action::State { value, .. } => {
                    let all_open = part[0] == 0 && part[1] == 0;
                    let broken = rules.coin_of_phase_zero && round.phase == 0 && all_open;
                    // Somebody must have named a candidate, or the mutant has nothing to take.
                    let take = broken && round.holders > 0;
                    states.insert(if take { 0 } else { kind_of(value) });
                }
                Action::Decided(_) => {}
                other => return Err(format!("{other:?} with votes {part:?} in {round:?}")),
            }
        }
        sides.push(states);
    }
    if round.phase > 0 && round.phase.is_multiple_of(4) {
        let both = sides.iter().flatten().copied().collect();
        sides.push(both);
    }
    sides.dedup();
    Ok(sides)
}

#[track_caller]
fn holds(shape: (usize, usize, usize), phases: u32) {
    for rules in [Rules::new(shape), Rules::ready(shape)] {
        let found = search_rounds(&rules, phases).unwrap();
        assert!(found.batch && found.null, "both outcomes are reachable: {found:?}");
        println!("{shape:?} {:?}: {} states", Class::of(rules.batch), found.states);
    }
}

#[track_caller]
fn refuted(rules: Rules, because: &str) {
    let why = search_rounds(&rules, 2).expect_err("the search must refute this mutant");
    assert!(why.contains(because), "{why}");
}

const SMALL: [(usize, usize, usize); 3] = [(3, 1, 1), (5, 1, 2), (5, 1, 3)];

/// tests PROTOCOL 5.6-d, 5.2-x
#[test]
fn the_rules_hold_in_every_run_of_a_small_cluster() {
    for shape in SMALL {
        holds(shape, 5);
    }
    holds((4, 1, 2), 5);
    holds((5, 2, 1), 5);
}

#[test]
fn the_rules_hold_in_every_run_of_larger_clusters() {
    for shape in [(6, 1, 3), (7, 1, 5), (7, 2, 3), (8, 2, 3), (9, 3, 3), (9, 2, 3)] {
        holds(shape, 3);
    }
}

/// tests PROTOCOL 5.2-e
/// PROTOCOL 6.2-f: with sup >= D every decided batch has D durable holders.
#[test]
fn every_decided_batch_has_d_durable_holders() {
    for shape in [(5, 1, 3), (7, 1, 5), (7, 2, 3), (9, 3, 3)] {
        let rules = Rules::new(shape);
        assert!(rules.t.support >= rules.t.durable && rules.t.durable > rules.t.majority);
        search_rounds(&rules, 2).unwrap();
        // Class E with the support of class R: sup = m.
        let mutant = Rules::with(shape, |rules| {
            rules.t.support = rules.t.majority;
            rules.t.fast = rules.t.majority + rules.t.f;
            rules.holders = rules.t.durable;
        });
        refuted(mutant, "holders is decided");
    }
}

/// tests PROTOCOL 5.6-c
/// PROTOCOL 5.2-j.
#[test]
fn coin_of_phase_zero_is_fixed() {
    for shape in SMALL {
        refuted(Rules::with(shape, |rules| rules.coin_of_phase_zero = true), "holders is decided");
    }
}

#[test]
fn fast_one_lower_is_refuted() {
    for shape in SMALL {
        refuted(Rules::with(shape, |rules| rules.t.fast -= 1), "decided");
    }
}

/// Null needs fewer proposals than m+f: the coin of phase 0 is null too, so it is enough that no
/// quorum can support the batch any more. One less than that is wrong.
#[test]
fn null_proposals_decide_only_when_the_batch_cannot_be_supported() {
    for shape in SMALL {
        let t = Rules::new(shape).t;
        let least = t.n - t.support + 1;
        assert!(least <= t.fast_null);
        search_rounds(&Rules::with(shape, |rules| rules.t.fast_null = least), 5).unwrap();
        refuted(Rules::with(shape, |rules| rules.t.fast_null = least - 1), "decided");
    }
}

#[test]
fn fast_equal_to_the_durable_count_is_refuted() {
    for shape in SMALL {
        refuted(Rules::with(shape, |rules| rules.t.fast = rules.t.durable), "decided");
    }
}

#[test]
fn support_below_a_majority_is_refuted() {
    for shape in SMALL {
        let mutant = Rules::with(shape, |rules| {
            rules.t.support = rules.t.majority - 1;
            // Whether the batch is durable is not what this mutant is about.
            rules.holders = 0;
        });
        refuted(mutant, "two values voted");
    }
}

/// tests PROTOCOL 6.3-d
#[test]
fn assigned_slots_need_a_majority_and_f_more_at_once() {
    for shape in [(3, 1, 1), (5, 1, 2), (5, 1, 3), (7, 2, 3)] {
        let with = |change: fn(&mut Thresholds)| {
            let mut rules = Rules::ready(shape);
            change(&mut rules.t);
            rules.holders = 0;
            rules
        };
        refuted(with(|t| t.ready_fast -= 1), "decided");
        refuted(with(|t| t.ready_support -= 1), "two values voted");
        // Those of the other class do not matter.
        search_rounds(&with(|t| (t.support, t.fast) = (1, 1)), 2).unwrap();
    }
}

/// tests PROTOCOL 5.2-h
#[test]
fn f_votes_do_not_decide() {
    for shape in SMALL {
        refuted(Rules::with(shape, |rules| rules.t.decide = rules.t.f), "decided");
    }
}

/// tests PROTOCOL 5.2-d, 5.2-n
#[test]
fn a_quorum_below_n_minus_f_is_refuted() {
    for shape in [(3, 1, 1), (5, 1, 2), (5, 1, 3), (7, 2, 3)] {
        refuted(Rules::with(shape, |rules| rules.t.quorum -= 1), "");
    }
}

/// tests PROTOCOL 6.4-f, 5.2-a: whichever operations nodes propose, a slot holds one of them or none.
#[test]
fn operations_of_a_queue_agree_in_every_run() {
    for (shape, phases) in [((3, 1, 1), 5), ((5, 1, 3), 5), ((5, 1, 2), 5), ((7, 2, 3), 3)] {
        let found = search_rounds(&Rules::queue(shape), phases).unwrap();
        assert!(found.batch && found.null, "both outcomes are reachable: {found:?}");
        println!("{shape:?} queue: {} states", found.states);
    }
}

/// tests PROTOCOL 6.4-f
#[test]
fn thresholds_of_a_queue_cannot_be_lower() {
    for shape in [(3, 1, 1), (5, 1, 2), (5, 1, 3), (7, 2, 3)] {
        let with = |change: fn(&mut Thresholds)| {
            let mut rules = Rules::queue(shape);
            change(&mut rules.t);
            rules.holders = 0;
            rules
        };
        refuted(with(|t| t.ready_fast -= 1), "decided");
        refuted(with(|t| t.ready_support -= 1), "");
        refuted(with(|t| t.quorum -= 1), "");
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Word {
    Propose(Value),
    Vote(Ballot),
}

impl Word {
    fn count(self, consensus: &mut Consensus, from: Node, quorum: usize) -> Result<(), String> {
        match self {
            Word::Propose(value) => consensus.propose(from, value, 0, quorum),
            Word::Vote(ballot) => consensus.vote(from, 0, ballot),
        }
        .map_err(|why| why.0)
    }
}

/// One node of the search without lock-step.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Speaker {
    consensus: Consensus,
    /// A vote that is appended and not flushed.
    unflushed: Option<Word>,
    /// PROPOSE and VOTE, once flushed.
    words: [Option<Word>; 2],
    /// The state that it takes into phase 1.
    state: Option<Value>,
    proposal: Value,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Talk {
    nodes: Vec<Speaker>,
    /// Power cuts still to come.
    cuts: u32,
    decided: Option<Value>,
}

impl Talk {
    /// L2: what somebody decided in phase 0 is the state of everybody in phase 1.
    fn check(&self) -> Result<(), String> {
        let states = self.nodes.iter().filter_map(|speaker| speaker.state);
        match self.decided {
            Some(known) if states.into_iter().any(|state| state != known) => {
                Err(format!("decided {known:?} against a state"))
            }
            _ => Ok(()),
        }
    }

    fn decides(&mut self, node: usize, value: Value) -> Result<(), String> {
        if self.decided.is_some_and(|known| known != value) {
            return Err("two decisions".into());
        }
        self.decided = Some(value);
        // What was received for a decided slot is dropped (PROTOCOL 9.4).
        let fresh = &mut self.nodes[node].consensus;
        *fresh = Consensus::default();
        fresh.told(value).map(|_| ()).map_err(|why| why.0)
    }

    /// Lets a node do what follows from what it has counted, up to its next append.
    fn advance(&mut self, rules: &Rules, node: usize, mutant: bool) -> Result<(), String> {
        let speaker = &mut self.nodes[node];
        if speaker.state.is_some() || speaker.unflushed.is_some() && !mutant {
            return Ok(());
        }
        match rules.advance(0, &mut speaker.consensus)? {
            Action::Vote { ballot, .. } => {
                let word = Word::Vote(ballot);
                speaker.unflushed = Some(word);
                if mutant {
                    word.count(&mut speaker.consensus, node as Node, rules.t.quorum)?;
                    return self.advance(rules, node, mutant);
                }
                Ok(())
            }
            Action::State { value, .. } => {
                speaker.state = Some(value);
                Ok(())
            }
            Action::Decided(decision) => self.decides(node, decision.value),
            Action::Nothing | Action::WaitUntil(_) => Ok(()),
        }
    }

    fn flush(&mut self, rules: &Rules, node: usize) -> Result<(), String> {
        let speaker = &mut self.nodes[node];
        let word = speaker.unflushed.take().expect("the caller looked");
        speaker.words[1] = Some(word);
        match speaker.consensus.decision() {
            Some(_) => Ok(()),
            None => word.count(&mut speaker.consensus, node as Node, rules.t.quorum),
        }
    }

    fn propose(&mut self, rules: &Rules, node: usize) -> Result<(), String> {
        let speaker = &mut self.nodes[node];
        let word = Word::Propose(speaker.proposal);
        speaker.words[0] = Some(word);
        word.count(&mut speaker.consensus, node as Node, rules.t.quorum)
    }

    /// What is left of a node after a power cut: what it said. The state was not said yet.
    fn cut(&mut self, rules: &Rules, node: usize) -> Result<(), String> {
        self.cuts -= 1;
        let speaker = &mut self.nodes[node];
        speaker.unflushed = None;
        speaker.state = None;
        speaker.consensus = Consensus::default();
        for word in speaker.words.into_iter().flatten() {
            word.count(&mut speaker.consensus, node as Node, rules.t.quorum)?;
            if let Word::Vote(_) = word {
                speaker.consensus.resume(0, true);
            }
        }
        Ok(())
    }

    /// Everything that can happen next.
    fn next(&self, rules: &Rules, mutant: bool) -> Result<Vec<Talk>, String> {
        let mut all = Vec::new();
        let mut step = |node: usize, change: &dyn Fn(&mut Talk) -> Result<(), String>| {
            let mut next = self.clone();
            change(&mut next)?;
            next.advance(rules, node, mutant)?;
            next.check()?;
            all.push(next);
            Ok::<(), String>(())
        };
        for (node, speaker) in self.nodes.iter().enumerate() {
            if speaker.unflushed.is_some() {
                step(node, &|next| next.flush(rules, node))?;
            }
            let undecided = speaker.consensus.decision().is_none();
            if undecided && speaker.words[0].is_none() {
                step(node, &|next| next.propose(rules, node))?;
            }
            if self.cuts > 0 {
                step(node, &|next| next.cut(rules, node))?;
            }
            for (from, other) in self.nodes.iter().enumerate().filter(|(from, _)| *from != node) {
                for word in other.words.into_iter().flatten().filter(|_| undecided) {
                    step(node, &|next| {
                        let consensus = &mut next.nodes[node].consensus;
                        word.count(consensus, from as Node, rules.t.quorum)
                    })?;
                }
            }
        }
        Ok(all)
    }
}

/// All interleavings of phase 0 of three nodes, of which `ones` propose the batch: how many states.
fn search_messages(ones: usize, cuts: u32, mutant: bool) -> Result<usize, String> {
    let rules = Rules::new((3, 1, 1));
    let nodes = (0..3)
        .map(|node| Speaker {
            consensus: Consensus::default(),
            unflushed: None,
            words: [None; 2],
            state: None,
            proposal: if node < ones { rules.held() } else { Value::Null },
        })
        .collect();
    let first = Talk { nodes, cuts, decided: None };
    let mut seen = HashSet::from([first.clone()]);
    let mut queue = VecDeque::from([first]);
    while let Some(talk) = queue.pop_front() {
        for next in talk.next(&rules, mutant)? {
            if seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn three_nodes_agree_in_every_interleaving() {
    for ones in 0..=3 {
        let states = search_messages(ones, 0, false).unwrap();
        println!("{ones} proposals for the batch: {states} states");
    }
}

#[test]
fn three_nodes_agree_in_every_interleaving_with_a_power_cut() {
    let states = search_messages(2, 1, false).unwrap();
    println!("with a power cut: {states} states");
}

/// PROTOCOL 4.1-f, found by search: the own vote counted when it is appended.
#[test]
fn a_vote_counted_before_its_flush_is_refuted() {
    search_messages(2, 1, true).expect_err("the search must refute this mutant");
}
