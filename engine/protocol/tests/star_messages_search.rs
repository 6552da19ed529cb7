//! Exhaustive search of F* at small scope, without lock-step (PROTOCOL 5.5-h to 5.5-j): one slot of class R with
//! an owner, and one in which operations of a queue meet, from the first PROPOSE to the STATEs of phase 2, with the
//! shipped [`Consensus`] and [`Contest`].
//!
//! A state is what each node has said, in whichever phase it is: some have not proposed while others are two phases
//! on. Every node may do its next step, or decide, with any part of all that was said so far in any round; and it may
//! propose at any time or never. What it heard before that step it may have to hear again: it may have lost power
//! meanwhile, after any flush, and then it knows no more than what it said itself. One that has not lost power
//! must come to the same: of every part it is tried, message by message, whether such a life leads there, and
//! what it does then. Every part is heard in two orders, from the first round on and from the last one back,
//! which must come to the same. Of two nodes that said the same it makes no difference which is heard.
//!
//! Three operations in a cluster of four are searched with any part of the round that a node is in, and nothing or all of
//! each other one; and so are two where nodes that have not lost power are compared. Two operations that both
//! begin phase 1 (5,2,1 and larger) are not: see `star_search`.
//!
//! Invariants: one decision; whatever is decided by then is the state of everybody in phase 2; one candidate at most is
//! left there; nothing is decided that too few have proposed. Deliberate errors must be refuted.

mod cluster;
mod star;

use cluster::config;
use racos_protocol::{
    Action, Config, Consensus, Contest, Fast, Node, NodeSet, Thresholds, Waiting,
};
use star::{
    CANDIDATES, KINDS, NULL, OPEN, OPEN_FOR, Said, WEAK_FOR, ballot, count, kind_of,
    kind_of_ballot, parts, senders, value,
};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

/// What is searched: a cluster, and what may be proposed; an owner's slot if null is among it.
#[derive(Clone, Copy, Debug)]
struct Scope {
    shape: Shape,
    proposals: &'static [usize],
    is_whole: bool,
    /// Each part is tried with a node that has not lost power too.
    has_lives: bool,
}

const OWNER: &[usize] = &[0, NULL];
const TWO: &[usize] = &[0, 1];
const THREE_OPERATIONS: &[usize] = &[0, 1, 2];

type Shape = (usize, usize, usize);

/// PROPOSE, VOTE of phase 0, STATE and VOTE of phase 1, STATE of phase 2.
const ROUNDS: usize = 5;
const STATES_MAX: usize = 3_000_000;

/// An error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutant {
    None,
    /// No `?` is weak.
    NeverWeak,
    /// F* is one lower.
    OneLower,
    /// A node goes on with one message less than a quorum.
    SmallQuorum,
    /// f votes decide.
    FewVotes,
    /// A candidate that a `?` of phase 1 carries is taken, though null was voted for.
    CarriedBeforeVoted,
}

/// What one node has said: in each round something, or nothing. Its steps come one after another, its PROPOSE any time.
type Words = [Option<u8>; ROUNDS];

/// How often each thing was said, by round: three bits each, so that they can be added.
type Heard = u128;

/// Most of the time goes into looking up what is known already.
type Quick = BuildHasherDefault<Mix>;

#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
    fn write_u128(&mut self, word: u128) {
        self.write_u64(word as u64);
        self.write_u64((word >> 64) as u64);
    }
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
}

/// What may be said in a round.
fn kinds(round: usize) -> impl Iterator<Item = usize> {
    let more = match round {
        1 => OPEN..WEAK_FOR + CANDIDATES,
        3 => OPEN..WEAK_FOR,
        _ => OPEN..OPEN,
    };
    let is_said = move |kind: &usize| round != 1 || !(OPEN_FOR..WEAK_FOR).contains(kind);
    (0..=NULL).chain(more).filter(is_said)
}

/// One more of this kind.
fn one(round: usize, kind: usize) -> Heard {
    const BEFORE: [u32; ROUNDS] = [0, 4, 12, 16, 24];
    let place = kinds(round).position(|it| it == kind).expect("it may be said");
    1 << (3 * (BEFORE[round] + place as u32))
}

fn heard_of(round: usize, said: &Said) -> Heard {
    kinds(round).map(|kind| one(round, kind) * Heard::from(said[kind])).sum()
}

fn said_in(heard: Heard, round: usize) -> Said {
    let mut said = [0; KINDS];
    for kind in kinds(round) {
        said[kind] = ((heard / one(round, kind)) & 7) as u8;
    }
    said
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    nodes: Vec<Words>,
    decided: Option<usize>,
}

/// What a node does that has heard some of what was said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deed {
    Says(usize),
    Decides(usize),
    Waits,
}

/// How many steps a node has done.
fn steps(words: &Words) -> usize {
    words[1..].iter().take_while(|word| word.is_some()).count()
}

/// The shipped code.
#[derive(Default)]
struct Slot {
    contest: Contest,
    consensus: Consensus,
}

impl Slot {
    fn count(
        &mut self,
        search: &Search,
        round: usize,
        node: Node,
        kind: usize,
    ) -> Result<(), String> {
        let Slot { contest, consensus } = self;
        let (phase, quorum) = (round as u32 / 2, search.t.quorum);
        match (round, search.is_queue && phase <= 1) {
            (0, true) => contest.propose(node, value(kind), 0, quorum),
            (0, false) => consensus.propose(node, value(kind), 0, quorum),
            (1 | 3, true) => contest.vote(node, phase, ballot(kind)),
            (1 | 3, false) => consensus.vote(node, phase, ballot(kind)),
            (_, true) => contest.state(node, phase, value(kind)),
            (_, false) => consensus.state(node, phase, value(kind)),
        }
        .map_err(|why| why.0)
    }

    fn advance(&mut self, search: &Search) -> Result<Deed, String> {
        let Search { t, config, is_queue, .. } = search;
        let waiting = Waiting { now: 0, suspected: NodeSet::EMPTY, vote_wait: 0, support_wait: 0 };
        let action = match is_queue {
            true => self.contest.advance(&mut self.consensus, 0, config, t, waiting),
            false => self.consensus.advance(0, config, t, waiting),
        };
        Ok(match action.map_err(|why| why.0)? {
            Action::Vote { ballot, .. } => Deed::Says(kind_of_ballot(ballot)),
            Action::State { value, .. } => Deed::Says(kind_of(value)),
            Action::Decided(decision) => Deed::Decides(kind_of(decision.value)),
            Action::Nothing | Action::WaitUntil(_) => Deed::Waits,
        })
    }
}

struct Search {
    t: Thresholds,
    config: Config,
    is_queue: bool,
    mutant: Mutant,
    /// What may be proposed.
    proposals: Vec<usize>,
    /// All parts of every round, or of the one that a node is in.
    is_whole: bool,
    has_lives: bool,
    deeds: HashMap<(usize, Heard), Result<Deed, String>, Quick>,
    lives: HashSet<(Words, Heard), Quick>,
    lived: usize,
    parts: HashMap<(usize, Said), Rc<Vec<Heard>>>,
}

#[derive(Default, Debug)]
struct Found {
    states: usize,
    candidate: bool,
    null: bool,
    weak: bool,
    /// Somebody proposed when it was decided.
    late: bool,
    /// Without a power cut.
    lives: usize,
}

impl Search {
    fn new(scope: &Scope, mutant: Mutant) -> Search {
        let Scope { shape, proposals, is_whole, has_lives } = *scope;
        let config = Config { fast: Fast::Least, ..config(shape, 0, 3) };
        let mut t = config.thresholds().unwrap();
        match mutant {
            Mutant::OneLower => t.ready_fast -= 1,
            Mutant::SmallQuorum => t.quorum -= 1,
            Mutant::FewVotes => t.decide -= 1,
            _ => {}
        }
        let is_queue = !proposals.contains(&NULL);
        let (deeds, lives, parts) = (HashMap::default(), HashSet::default(), HashMap::new());
        let proposals = proposals.to_vec();
        Search {
            t,
            config,
            is_queue,
            mutant,
            proposals,
            is_whole,
            has_lives,
            deeds,
            lives,
            lived: 0,
            parts,
        }
    }

    fn deed(&mut self, steps: usize, heard: Heard) -> Result<Deed, String> {
        if let Some(known) = self.deeds.get(&(steps, heard)) {
            return known.clone();
        }
        let forward = self.hear(steps, heard, &[0, 1, 2, 3, 4]);
        let back = self.hear(steps, heard, &[4, 3, 2, 1, 0]);
        let deed = match (forward, back) {
            (Ok(forward), Ok(back)) if forward != back => {
                Err(format!("{forward:?} or {back:?} with {:?}", words_of(heard)))
            }
            (forward, back) => forward.and_then(|deed| back.map(|_| deed)),
        };
        let deed = deed.map(|deed| self.with_error(steps, heard, deed));
        self.deeds.insert((steps, heard), deed.clone());
        deed
    }

    /// One that has lost power, or hears of the slot for the first time.
    fn hear(&self, steps: usize, heard: Heard, order: &[usize]) -> Result<Deed, String> {
        let mut slot = Slot::default();
        for round in order.iter().copied() {
            for (node, kind) in senders(&said_in(heard, round)) {
                slot.count(self, round, node, kind)?;
            }
        }
        if steps > 0 {
            slot.consensus.resume(steps as u32 / 2, steps % 2 == 1);
        }
        slot.advance(self)
    }

    /// One that has not lost power and has heard this, its own words among it, one by one from the first round on:
    /// what it does with the last of them, if it has said by then what it did say.
    fn live(&self, own: &Words, heard: Heard) -> Result<Option<Deed>, String> {
        let (mut slot, mut step) = (Slot::default(), 0);
        let me = (self.t.n - 1) as Node;
        let mut left: usize = (0..ROUNDS).map(|round| count(&said_in(heard, round))).sum();
        left -= own.iter().flatten().count();
        for round in 0..ROUNDS {
            let mut others = said_in(heard, round);
            if let Some(kind) = own[round].map(usize::from) {
                others[kind] -= 1;
                if round == 0 {
                    slot.count(self, 0, me, kind)?;
                }
            }
            for (node, kind) in senders(&others) {
                slot.count(self, round, node, kind)?;
                left -= 1;
                loop {
                    let deed = slot.advance(self)?;
                    let said_next = own.get(step + 1).copied().flatten().map(usize::from);
                    match deed {
                        Deed::Waits => break,
                        Deed::Says(kind) if said_next == Some(kind) => {
                            step += 1;
                            slot.count(self, step, me, kind)?;
                        }
                        _ if left == 0 && said_next.is_none() => return Ok(Some(deed)),
                        _ => return Ok(None),
                    }
                }
            }
        }
        Ok((step == steps(own)).then_some(Deed::Waits))
    }

    fn with_error(&self, steps: usize, heard: Heard, deed: Deed) -> Deed {
        let carried = || {
            let said = said_in(heard, steps);
            (0..CANDIDATES).find(|kind| said[OPEN_FOR + kind] > 0)
        };
        match (self.mutant, steps, deed) {
            (Mutant::NeverWeak, 0, Deed::Says(WEAK_FOR..)) => Deed::Says(OPEN),
            (Mutant::CarriedBeforeVoted, 3, Deed::Says(NULL)) => {
                Deed::Says(carried().unwrap_or(NULL))
            }
            _ => deed,
        }
    }

    /// Who has not lost power does the same.
    fn compare(&mut self, own: &Words, heard: Heard, deed: Deed) -> Result<(), String> {
        if !self.has_lives || !self.lives.insert((*own, heard)) {
            return Ok(());
        }
        match self.live(own, heard)? {
            Some(lived) if lived != deed => Err(format!(
                "{lived:?}, and {deed:?} after a power cut, with {:?}",
                words_of(heard)
            )),
            Some(_) => {
                self.lived += 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What a node may have heard of a round.
    fn parts(&mut self, round: usize, said: &Said) -> Rc<Vec<Heard>> {
        let each = || parts(said, 0).iter().map(|part| heard_of(round, part)).collect();
        self.parts.entry((round, *said)).or_insert_with(|| Rc::new(each())).clone()
    }

    /// All that one node may do next.
    fn deeds_of(&mut self, state: &State, node: usize) -> Result<Vec<Deed>, String> {
        let own = state.nodes[node];
        let mut others = [[0; KINDS]; ROUNDS];
        for (_, words) in state.nodes.iter().enumerate().filter(|(other, _)| *other != node) {
            for (said, kind) in others.iter_mut().zip(words) {
                kind.iter().for_each(|kind| said[usize::from(*kind)] += 1);
            }
        }
        let said = own.iter().enumerate();
        let said = said.filter_map(|(round, kind)| Some(one(round, usize::from((*kind)?))));
        let (said, steps): (Heard, usize) = (said.sum(), steps(&own));
        let parts: [Rc<Vec<Heard>>; ROUNDS] = std::array::from_fn(|round| {
            let all = heard_of(round, &others[round]);
            match self.is_whole || round == steps.min(ROUNDS - 1) {
                true => self.parts(round, &others[round]),
                false if all == 0 => Rc::new(vec![0]),
                false => Rc::new(vec![0, all]),
            }
        });
        let (mut at, mut all) = ([0; ROUNDS], Vec::new());
        loop {
            let heard = (0..ROUNDS).fold(said, |heard, round| heard + parts[round][at[round]]);
            let deed = self.deed(steps, heard)?;
            self.compare(&own, heard, deed)?;
            if deed != Deed::Waits && !all.contains(&deed) {
                all.push(deed);
            }
            // The next one of all their combinations.
            let Some(round) = (0..ROUNDS).find(|round| at[*round] + 1 < parts[*round].len()) else {
                return Ok(all);
            };
            at[round] += 1;
            at[..round].fill(0);
        }
    }

    fn next(&mut self, state: &State, found: &mut Found) -> Result<Vec<State>, String> {
        let mut all = Vec::new();
        for node in 0..state.nodes.len() {
            // Nodes that said the same do the same.
            let words = state.nodes[node];
            if node > 0 && state.nodes[node - 1] == words {
                continue;
            }
            if words[0].is_none() {
                for kind in self.proposals.clone() {
                    let mut next = state.clone();
                    next.nodes[node][0] = Some(kind as u8);
                    found.late |= state.decided.is_some();
                    all.push(next);
                }
            }
            for deed in self.deeds_of(state, node)? {
                let mut next = state.clone();
                match deed {
                    // The vote of phase 2 is beyond what is searched.
                    Deed::Says(kind) if steps(&words) + 1 < ROUNDS => {
                        found.weak |= kind >= WEAK_FOR;
                        next.nodes[node][steps(&words) + 1] = Some(kind as u8);
                    }
                    Deed::Decides(kind) => {
                        if state.decided.is_some_and(|known| known != kind) {
                            return Err(format!("{kind} is decided too in {state:?}"));
                        }
                        found.candidate |= kind < NULL;
                        found.null |= kind == NULL;
                        next.decided = Some(kind);
                    }
                    _ => continue,
                }
                all.push(next);
            }
        }
        for next in &mut all {
            next.nodes.sort_unstable();
            self.check(next)?;
        }
        Ok(all)
    }

    fn check(&self, state: &State) -> Result<(), String> {
        let said = |round: usize| state.nodes.iter().filter_map(move |words| words[round]);
        // PROTOCOL 5.5-j
        let mut left: Vec<u8> = said(4).filter(|kind| usize::from(*kind) < NULL).collect();
        left.sort_unstable();
        left.dedup();
        if left.len() > 1 {
            return Err(format!("two candidates are left in {state:?}"));
        }
        let Some(decided) = state.decided else { return Ok(()) };
        // L2
        if said(4).any(|kind| usize::from(kind) != decided) {
            return Err(format!("{decided} is decided and not everybody's state in {state:?}"));
        }
        // PROTOCOL 13-c
        let proposed = said(0).filter(|kind| usize::from(*kind) == decided).count();
        let least = self.t.majority.min((self.t.n + self.t.f) / 2 + 1 - self.t.f);
        if decided < NULL && proposed < least {
            return Err(format!("{proposed} have proposed what is decided in {state:?}"));
        }
        Ok(())
    }
}

/// For people.
fn words_of(heard: Heard) -> [Said; ROUNDS] {
    std::array::from_fn(|round| said_in(heard, round))
}

fn search(scope: Scope, mutant: Mutant) -> Result<Found, String> {
    let mut search = Search::new(&scope, mutant);
    let first = State { nodes: vec![[None; ROUNDS]; scope.shape.0], decided: None };
    let mut seen = HashSet::from([first.clone()]);
    let (mut front, mut found) = (VecDeque::from([first]), Found::default());
    while let Some(state) = front.pop_front() {
        for next in search.next(&state, &mut found)? {
            if seen.insert(next.clone()) {
                front.push_back(next);
                assert!(seen.len() < STATES_MAX, "too many states to search them all");
            }
        }
    }
    (found.states, found.lives) = (seen.len(), search.lived);
    Ok(found)
}

const THREE: Shape = (3, 1, 1);
/// The smallest one in which F* is less than support and f more.
const FOUR: Shape = (4, 1, 2);

fn whole(shape: Shape, proposals: &'static [usize]) -> Scope {
    Scope { shape, proposals, is_whole: true, has_lives: true }
}

/// With any part of one round, and nothing or all of each other one.
fn by_round(shape: Shape, proposals: &'static [usize]) -> Scope {
    Scope { is_whole: false, ..whole(shape, proposals) }
}

#[track_caller]
fn holds(scope: Scope) -> Found {
    let found = search(scope, Mutant::None).unwrap();
    println!("{scope:?}: {found:?}");
    assert!(found.candidate && found.null && found.late, "{found:?}");
    assert_eq!(found.weak, scope.shape != THREE, "else F* is support and f more");
    assert!(!scope.has_lives || found.lives > 1000, "{found:?}");
    found
}

/// tests PROTOCOL 5.5-h, 5.5-i, 5.5-j, 4.1-g, 5.2-r
#[test]
fn three_nodes_agree_whatever_each_has_heard() {
    for proposals in [OWNER, TWO, THREE_OPERATIONS] {
        holds(whole(THREE, proposals));
    }
}

/// tests PROTOCOL 5.5-h, 5.5-i, 5.5-j, 4.1-g, 5.2-r
#[test]
fn four_nodes_agree_on_an_owners_batch_whatever_each_has_heard() {
    holds(whole(FOUR, OWNER));
}

/// tests PROTOCOL 5.5-h, 5.5-i, 5.5-j, 5.2-r
#[test]
fn four_nodes_agree_on_an_operation_whatever_each_has_heard() {
    holds(Scope { has_lives: false, ..whole(FOUR, TWO) });
    holds(by_round(FOUR, TWO));
    holds(by_round(FOUR, THREE_OPERATIONS));
}

/// tests PROTOCOL 5.5-h, 5.2-d, 5.2-h, 5.2-i
#[test]
fn each_error_is_refuted_without_lock_step() {
    let (two, few) = ("decided too in", "have proposed what is decided in");
    let late = "decided and not everybody's state in";
    for (mutant, shape, proposals, because) in [
        (Mutant::NeverWeak, FOUR, OWNER, two),
        (Mutant::NeverWeak, FOUR, TWO, two),
        (Mutant::OneLower, FOUR, OWNER, few),
        (Mutant::OneLower, FOUR, TWO, two),
        (Mutant::SmallQuorum, FOUR, OWNER, "a batch was voted for that nobody named"),
        (Mutant::SmallQuorum, FOUR, TWO, late),
        (Mutant::FewVotes, THREE, OWNER, two),
        (Mutant::FewVotes, FOUR, TWO, late),
        (Mutant::CarriedBeforeVoted, FOUR, OWNER, late),
        (Mutant::CarriedBeforeVoted, FOUR, TWO, late),
    ] {
        let scope = Scope { has_lives: false, ..by_round(shape, proposals) };
        let why = search(scope, mutant).map(|found| format!("{found:?}"));
        let why = why.expect_err(&format!("the search must refute {mutant:?}, {scope:?}"));
        println!("{mutant:?}, {shape:?}, {proposals:?}: {why}");
        assert!(why.contains(because), "{mutant:?}: {why}");
    }
}
