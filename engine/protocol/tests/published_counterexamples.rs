//! The counterexamples of PROTOCOL 2, one schedule each: the published rule, written out here in a
//! few lines, breaks its promise on the schedule, and the shipped core keeps it.

mod cluster;

use cluster::lab::{Lab, is_hold, is_spread, is_vote};
use cluster::{MS, Packet, config};
use racos_protocol::{
    Action, Ballot, Config, Consensus, Core, Digest, Effect, Effects, Input, Message, Node,
    NodeSet, ReadQuorum, ReadStep, Record, Recovery, Slot, Thresholds, Value, Waiting,
};

type Shape = (usize, usize, usize);

/// A cluster whose nodes vote as soon as they may.
fn eager(shape: Shape) -> Lab {
    Lab::with(shape, |config| {
        config.timing.vote_wait = racos_protocol::Wait::Fixed(0);
        config.timing.support_wait = 0;
    })
}

/// Node 0 opens a slot; these nodes store their fragments, those have no room and refuse, others hear
/// nothing. All flushed, no proposal delivered.
fn open_with(lab: &mut Lab, holders: &[Node], refusers: &[Node]) -> Slot {
    let slot = lab.open(0);
    let batch = match &lab.mail[0].packet {
        Packet::Spread { batch, .. } => batch.clone(),
        other => panic!("{other:?} before SPREAD"),
    };
    lab.lose(is_spread);
    for node in holders.iter().chain(refusers).copied().filter(|node| *node != 0) {
        lab.spread(node, slot, batch.clone(), holders.contains(&node));
    }
    for node in lab.nodes() {
        lab.flush_all(node);
    }
    slot
}

/// P of the published protocol: identical proposals that decide at once, awaited among n-f.
fn published_fast(t: &Thresholds) -> usize {
    t.n / 2 + t.f + 1
}

/// Row 1. 5,1,3 with proposals A,A,A,B,C: every node hears three A among four.
#[test]
fn published_lookup_f_plus_k_never_finds_the_id() {
    let t = Thresholds::new(5, 1, 3).unwrap();
    let proposals = ["A", "A", "A", "B", "C"];
    let named_a = proposals.iter().filter(|id| **id == "A").count();
    // Published: three A are a majority, so all take state 1, all vote 1, all decide 1...
    assert!(named_a >= t.majority && t.n > t.f);
    // ...and then return the id that f+k proposals name: there is none, however long they listen.
    assert!(named_a < t.f + t.k, "the published lookup finds its id");

    // Shipped, the same proposals (only the owner's batch can be named): all nodes finish the slot.
    let mut lab = eager((5, 1, 3));
    let slot = open_with(&mut lab, &[0, 1, 2], &[3, 4]);
    lab.lose(|mail| mail.from == 4 && mail.to < 3 || mail.from == 3 && mail.to == 4);
    lab.settle();
    assert!(lab.nodes().all(|node| lab.exec(node) > slot), "some node never finishes the slot");

    // And a node that hears votes only knows what was decided, since they name it.
    let mut lab = eager((5, 1, 3));
    let slot = open_with(&mut lab, &[0, 1, 2, 3], &[]);
    lab.lose(|mail| mail.to == 4);
    lab.deliver(is_hold);
    (0..4).for_each(|node| lab.flush_all(node));
    assert!(lab.deliver(|mail| mail.to == 4 && is_vote(mail)) >= 2, "nobody voted");
    assert!(lab.core(4).lacks_meta(slot), "decided with a batch whose name it learned");
}

/// tests PROTOCOL 5.4-a
/// Row 2. 5,1,2 with proposals A,A,A,A,B: two nodes hear four A and return, three hear A,A,A,B.
#[test]
fn a_decided_node_answers_with_decide() {
    let t = Thresholds::new(5, 1, 2).unwrap();
    let heard_a: [usize; 5] = [4, 4, 3, 3, 3];
    // Published: who hears P equal proposals returns and is silent, the others send a STATE and
    // wait for n-f of them.
    let states = heard_a.iter().filter(|heard| **heard < published_fast(&t)).count();
    assert!(states < t.quorum, "the published rule ends");

    // Shipped: four nodes have decided; the fifth heard nothing, and asks.
    for answered in [false, true] {
        let mut lab = eager((5, 1, 2));
        let slot = open_with(&mut lab, &[0, 1, 2, 3], &[4]);
        lab.lose(|mail| mail.to == 4);
        lab.settle_among(&[0, 1, 2, 3]);
        assert!((0..4).all(|node| lab.exec(node) > slot));
        lab.lose(|_| true);
        let mut decides = 0;
        for _ in 0..200 {
            lab.pass(MS);
            lab.flush_all(4);
            lab.deliver(|mail| mail.from == 4);
            let told = |packet: &Packet| {
                matches!(packet, Packet::Facts { .. } | Packet::Message(Message::Decide { .. }))
            };
            decides += lab.mail.iter().filter(|mail| mail.to == 4 && told(&mail.packet)).count();
            if !answered {
                lab.lose(|mail| told(&mail.packet));
            }
            lab.deliver(|_| true);
        }
        assert!(decides > 0, "a decided node is silent");
        assert_eq!(lab.exec(4) > slot, answered, "without the answers it waits for ever");
    }
}

/// tests PROTOCOL 5.2-b
/// Row 3. P among exactly n-f proposals cannot be had in four of the paper's configurations.
#[test]
fn late_proposals_still_decide() {
    let bold = [(5, 1, 3), (7, 1, 5), (7, 2, 3), (9, 3, 3), (11, 4, 3), (13, 5, 3)];
    let unattainable = bold.iter().filter(|(n, f, k)| {
        let t = Thresholds::new(*n, *f, *k).unwrap();
        published_fast(&t) > t.quorum
    });
    assert_eq!(unattainable.count(), 4);

    // Shipped, 7,2,3: node 0 hears five and votes; the last two come after that and decide.
    let mut lab = eager((7, 2, 3));
    let slot = open_with(&mut lab, &[0, 1, 2, 3, 4, 5, 6], &[]);
    lab.deliver(|mail| mail.to == 0 && mail.from < 5);
    assert_eq!((lab.core(0).counters().votes, lab.exec(0)), (1, slot), "it voted, undecided");
    lab.deliver(|mail| mail.to == 0);
    assert_eq!((lab.core(0).counters().fast, lab.exec(0)), (1, slot + 1));
}

/// Nodes that have heard nobody's proposal but decide at these nodes only.
fn decided_only_at(shape: Shape, some: &[Node]) -> (Lab, Slot) {
    let mut lab = eager(shape);
    let all: Vec<Node> = lab.nodes().collect();
    let slot = open_with(&mut lab, &all, &[]);
    lab.deliver(|mail| some.contains(&mail.to) && is_hold(mail));
    lab.lose(|_| true);
    assert!(lab.nodes().all(|node| (lab.exec(node) > slot) == some.contains(&node)));
    (lab, slot)
}

fn read(lab: &Lab, asked: &[Node], key: u64) -> ReadStep {
    let mut quorum = ReadQuorum::new(lab.core(0).thresholds().quorum);
    for node in asked {
        let core = lab.core(*node);
        quorum.answer(*node, core.exec(), core.mark(|batch| batch.touches(key)));
    }
    quorum.step()
}

/// The published read: the largest number of decided slots that n-f nodes know of.
fn published_read(lab: &Lab, asked: &[Node]) -> Slot {
    asked.iter().map(|node| lab.exec(*node)).max().unwrap_or(0)
}

/// Row 4. One node has decided and acknowledged; a reader asks the other n-f.
#[test]
fn read_quorum_without_the_owner_sees_an_acknowledged_write() {
    for shape in [(3, 1, 1), (5, 1, 2), (5, 1, 3)] {
        let (lab, slot) = decided_only_at(shape, &[0]);
        assert_eq!(lab.acknowledged, [slot]);
        let asked: Vec<Node> = lab.nodes().skip(1).collect();
        assert!(published_read(&lab, &asked) <= slot, "the published read sees the write");
        assert_eq!(read(&lab, &asked, 0), ReadStep::WaitExecuted(slot));
        assert!(matches!(read(&lab, &asked, 1), ReadStep::Use(_)), "other keys need not wait");
    }
}

/// Row 5. k <= f: a second quorum may miss all k nodes that served a first read.
#[test]
fn a_second_read_never_goes_back_in_time() {
    let served: Vec<Node> = vec![0, 1, 2];
    let (lab, slot) = decided_only_at((9, 3, 3), &served);
    let first: Vec<Node> = (0..6).collect();
    let second: Vec<Node> = (3..9).collect();
    assert!(published_read(&lab, &first) > slot);
    assert!(published_read(&lab, &second) <= slot, "the published read stays in time");
    assert!(matches!(read(&lab, &first, 0), ReadStep::Use(node) if served.contains(&node)));
    assert_eq!(read(&lab, &second, 0), ReadStep::WaitExecuted(slot));
}

fn power_cut_of_all(lab: &mut Lab) {
    lab.mail.clear();
    lab.nodes().for_each(|node| lab.crash(node));
}

/// tests PROTOCOL 4.1-a
/// Row 6. Acknowledgements of memory, and all nodes lose power.
#[test]
fn power_loss_of_all_nodes_keeps_acknowledged_writes() {
    let shape = (5, 1, 3);
    let mut lab = eager(shape);
    let slot = lab.open(0);
    lab.flush_all(0);
    lab.deliver(is_spread);
    // Published: every node has its fragment in memory and says so; the proxy, which has flushed
    // its own, replies. After a power cut there is one fragment where k = 3 are needed.
    let memory = lab.nodes().filter(|node| lab.core(*node).has_segment(slot)).count();
    assert!(memory == 5 && lab.oracle.holders(slot).len() < shape.2);
    // Shipped: nobody has said anything, so nothing was acknowledged.
    lab.deliver(|_| true);
    assert!(lab.acknowledged.is_empty() && lab.nodes().all(|node| lab.exec(node) == slot));

    // Once it is acknowledged, it survives the power cut and the loss of any one disk after it.
    lab.settle();
    assert_eq!(lab.acknowledged, [slot]);
    for lost in 0..5 {
        let mut lab = eager(shape);
        let slot = lab.open(0);
        lab.settle();
        power_cut_of_all(&mut lab);
        lab.oracle.wiped(lost);
        assert!(lab.oracle.holders(slot).len() >= shape.2, "not decodable without node {lost}");
        let rest: Vec<Node> = lab.nodes().filter(|node| *node != lost).collect();
        rest.iter().for_each(|node| lab.restart(*node));
        lab.pass_among(200 * MS, &rest);
        // The oracle remembers the decision and stops at another one.
        assert!(rest.iter().all(|node| lab.exec(*node) > slot), "slot {slot} is not finished");
    }
}

const BATCH: Digest = 77;
const HELD: Value = Value::Batch(BATCH);

fn go(consensus: &mut Consensus, config: &Config, slot: Slot) -> Action {
    let waiting = Waiting { now: 0, suspected: NodeSet::EMPTY, vote_wait: 0, support_wait: 0 };
    let t = config.thresholds().unwrap();
    consensus.advance(slot, config, &t, waiting).unwrap()
}

/// A node in phase 1 that hears these STATEs, and votes.
fn vote_on(config: &Config, slot: Slot, states: &[(Node, Value)]) -> (Consensus, Ballot) {
    let mut consensus = Consensus::default();
    consensus.resume(1, false);
    for (node, value) in states {
        consensus.state(*node, 1, *value).unwrap();
    }
    match go(&mut consensus, config, slot) {
        Action::Vote { phase: 1, ballot } => (consensus, ballot),
        other => panic!("{other:?} instead of a vote"),
    }
}

/// tests PROTOCOL 4.1-b
/// Row 7. 3,1,1, STATEs 1,1,0: the second voter restarts.
#[test]
fn restart_without_memory_decides_twice() {
    let config = config((3, 1, 1), 1, 9);
    let slot = (0..).find(|slot| !config.coin.flip(1, 0, *slot, 1)).unwrap();
    let (mut first, ballot) = vote_on(&config, slot, &[(0, HELD), (1, HELD)]);
    assert_eq!(ballot, Ballot::For(HELD));
    first.vote(0, 1, ballot).unwrap();
    first.vote(1, 1, ballot).unwrap();
    assert!(matches!(go(&mut first, &config, slot), Action::Decided(d) if d.value == HELD));

    // Published: node 1 has forgotten all and hears 1 and 0; so does node 2.
    let (mut second, again) = vote_on(&config, slot, &[(0, HELD), (2, Value::Null)]);
    assert!(matches!(again, Ballot::Open(_)), "it said the same as before");
    second.vote(1, 1, again).unwrap();
    second.vote(2, 1, again).unwrap();
    assert_eq!(go(&mut second, &config, slot), Action::State { phase: 2, value: Value::Null });
    second.state(1, 2, Value::Null).unwrap();
    second.state(2, 2, Value::Null).unwrap();
    let null = Ballot::For(Value::Null);
    assert_eq!(go(&mut second, &config, slot), Action::Vote { phase: 2, ballot: null });
    second.vote(1, 2, null).unwrap();
    second.vote(2, 2, null).unwrap();
    assert!(matches!(go(&mut second, &config, slot), Action::Decided(d) if d.value != HELD));

    // Shipped: what node 1 finds in its log is what it says, whatever it hears now.
    let slot = 0;
    let mut recovery = Recovery::new(config).unwrap();
    let vote = Record::Vote { slot, phase: 1, ballot };
    for record in [Record::State { slot, phase: 1, value: HELD }, vote] {
        recovery.record(record, None).unwrap();
    }
    let (mut core, mut fx) = (recovery.finish(0), Effects::default());
    core.start(0, &mut fx);
    for (from, value) in [(0, HELD), (2, Value::Null)] {
        let message = Message::State { slot, phase: 1, value };
        core.step(Input::Message { from, message }, MS, &mut fx);
    }
    let votes_again =
        |effect: &Effect| matches!(effect, Effect::Persist { record: Record::Vote { .. }, .. });
    assert!(!fx.list.iter().any(votes_again), "it votes a second time");
    let pull = Message::Pull { from: slot, wanted: 1, facts: false };
    core.step(Input::Message { from: 2, message: pull }, MS, &mut fx);
    let message = Message::Vote { slot, phase: 1, ballot };
    let to = racos_protocol::Target::One(2);
    assert!(fx.list.contains(&Effect::Send { to, message }), "it says what it said");
}

/// One phase of 5,1,k under a scheduler that knows which side the coin will show: the states of the
/// next phase, of which `ones_next` are for the batch. None: it cannot keep the nodes apart any more
/// (all would vote the same, or the coin agrees with the majority).
fn keep_apart(
    configs: &[Config],
    (slot, phase): (Slot, u32),
    states: &[Value],
    side: bool,
    ones_next: usize,
) -> Option<Vec<Value>> {
    // One node is made to vote for what the coin is not: three nodes must have that state.
    let voted = if side { Value::Null } else { HELD };
    let (same, other): (Vec<usize>, Vec<usize>) = (0..5).partition(|node| states[*node] == voted);
    let ([voter, second, third], [fourth, fifth]) = (&same[..], &other[..]) else { return None };
    let order = [*voter, *second, *third, *fourth, *fifth];
    let [voter, second, third, fourth, fifth] = order;
    // It hears three of its kind, the others two; all hear four STATEs, their own among them.
    let heard = |node: usize| match node {
        node if node == voter => [voter, second, third, fourth],
        node if node == second => [voter, second, fourth, fifth],
        _ => [voter, third, fourth, fifth],
    };
    let (mut nodes, mut ballots) = (Vec::new(), Vec::new());
    for (node, config) in configs.iter().enumerate() {
        let mut consensus = Consensus::default();
        consensus.resume(phase, false);
        for from in heard(node) {
            consensus.state(from as Node, phase, states[from]).unwrap();
        }
        let Action::Vote { ballot, .. } = go(&mut consensus, config, slot) else {
            panic!("four STATEs are enough to vote");
        };
        assert_eq!(node == voter, matches!(ballot, Ballot::For(_)));
        nodes.push(consensus);
        ballots.push(ballot);
    }
    // Those who hear the one vote take its value, the others hear four `?` and take the coin.
    let takers = if voted == HELD { ones_next } else { 5 - ones_next };
    let mut next = vec![Value::Null; 5];
    for (place, node) in order.into_iter().enumerate() {
        let taker = place < takers;
        // Somebody's `?`, but not the own one.
        let unheard = if place == 1 { third } else { second };
        let left_out = if taker { unheard } else { voter };
        for from in (0..5).filter(|from| *from != left_out) {
            nodes[node].vote(from as Node, phase, ballots[from]).unwrap();
        }
        next[node] = match go(&mut nodes[node], &configs[node], slot) {
            Action::State { value, .. } => value,
            other => panic!("{other:?} after four votes"),
        };
    }
    Some(next)
}

/// Phases that the scheduler keeps the slot open, at most 64, if it foresees `coin`.
fn blocked_phases(configs: &[Config], slot: Slot, coin: impl Fn(u32) -> bool) -> u32 {
    // (ones, coin) is (3,0) or (2,1).
    let wanted = |phase| if coin(phase) { 2 } else { 3 };
    let mut states = vec![Value::Null; 5];
    states[..wanted(1)].fill(HELD);
    for phase in 1..=64 {
        let next = keep_apart(configs, (slot, phase), &states, coin(phase), wanted(phase + 1));
        let Some(next) = next else { return phase };
        states = next;
    }
    64
}

/// tests PROTOCOL 5.6-b
/// Row 8. A scheduler that knows the coin keeps a slot undecided for ever.
#[test]
fn local_coin_phases_end_a_slot_that_the_common_coin_cannot() {
    let shape = (5, 1, 2);
    let common = config(shape, 0, 5).coin;
    // Published: all phases have one coin, which the scheduler computes.
    let published: Vec<Config> =
        (0..5).map(|me| Config { local_coin: common, ..config(shape, me, 5) }).collect();
    let shipped: Vec<Config> = (0..5).map(|me| config(shape, me, 5)).collect();
    assert!(shipped.iter().all(|one| one.coin == common && one.local_coin != common));
    for slot in 0..200 {
        let coin = |phase| common.flip(1, 0, slot, phase);
        assert_eq!(blocked_phases(&published, slot, coin), 64, "the slot ends by itself");
        // Shipped: in every fourth phase each node has a coin of its own, which it keeps secret.
        assert!(blocked_phases(&shipped, slot, coin) < 64, "slot {slot} stays open");
    }
}

/// tests PROTOCOL 6.5-a, 6.5-b
/// Row 9. READY reaches one node and the proxy dies: too few ever propose.
#[test]
fn a_slot_that_few_nodes_heard_of_is_still_decided() {
    let t = Thresholds::new(5, 1, 3).unwrap();
    let heard_ready = 2;
    assert!(heard_ready < t.quorum, "published: enough nodes propose");

    for owner_flushed in [false, true] {
        let mut lab = eager((5, 1, 3));
        let slot = lab.open(0);
        if owner_flushed {
            lab.flush_all(0);
        }
        lab.deliver(|mail| mail.to == 1 && is_spread(mail));
        lab.crash(0);
        lab.mail.clear();
        let rest = [1, 2, 3, 4];
        lab.pass_among(200 * MS, &rest);
        assert!(rest.iter().all(|node| lab.exec(*node) > slot), "the slot hangs");
    }
}

/// tests PROTOCOL 7-g, 12.2-h, 3.3-c
/// Row 10. The fragment is lost: published, READY for an unknown id is undefined.
#[test]
fn a_node_without_its_fragment_decides_with_the_others() {
    let mut lab = eager((5, 1, 2));
    let slot = lab.open(0);
    lab.lose(|mail| mail.to == 4 && is_spread(mail));
    lab.settle();
    assert!(!lab.core(4).has_segment(slot));
    // It knows the decision, asks for the metas on its timer, and executes.
    assert!(lab.core(4).lacks_meta(slot));
    lab.pass_among(20 * MS, &[0, 1, 2, 3, 4]);
    assert!(lab.nodes().all(|node| lab.exec(node) == slot + 1));
    assert_eq!(lab.acknowledged, [slot]);
}

/// What a node handed to its log for a slot, in order.
fn records(lab: &Lab, node: Node) -> Vec<Record> {
    let entries = lab.hosts[usize::from(node)].log.entries.iter();
    entries
        .filter_map(|entry| match entry {
            cluster::log::Entry::Record { record, .. } => Some(*record),
            _ => None,
        })
        .filter(|record| !matches!(record, Record::Reserve { .. }))
        .collect()
}

/// tests PROTOCOL 6.2-c, 5.2-r
/// Row 11. STATE after PROPOSE costs a third delay off the fast path.
#[test]
fn vote_follows_propose_without_a_state_round() {
    let mut lab = eager((5, 1, 3));
    let slot = open_with(&mut lab, &[0, 1, 2, 3], &[4]);
    lab.settle();
    assert!(lab.nodes().all(|node| lab.exec(node) > slot));
    for node in 0..4 {
        let said = records(&lab, node);
        assert!(
            matches!(said[..], [Record::Hold { .. }, Record::Vote { phase: 0, .. }]),
            "{said:?}"
        );
    }
}

/// tests PROTOCOL 6.1-b
/// Row 12. One slot at a time is one slot per round trip.
#[test]
fn slots_of_one_owner_overlap() {
    let mut lab = eager((3, 1, 1));
    let core: &Core = lab.core(0);
    assert_eq!(core.config().own_slots_max, 2);
    let (first, second) = (lab.open(0), lab.open(0));
    assert!(first < second && lab.core(0).can_open().is_none(), "W = 2 slots are in flight");
    // One round trip and one flush decide both.
    lab.flush_all(0);
    lab.deliver(|_| true);
    (1..3).for_each(|node| lab.flush_all(node));
    lab.deliver(|_| true);
    assert_eq!(lab.acknowledged, [first, second]);
}
