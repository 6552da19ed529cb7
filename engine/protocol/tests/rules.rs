//! One requirement of PROTOCOL 3 to 12 at a time, on one slot's [`Consensus`] or one node's
//! [`Core`]: what must happen at a threshold, and that it does not happen one message below.

mod cluster;

use cluster::lab::{Lab, is_hold, is_spread};
use cluster::log::Key;
use cluster::{MS, config};
use racos_protocol::{
    Action, Ballot, BatchInfo, Class, Config, ConfigError, Consensus, Core, Decision, Digest,
    Effect, Effects, Input, Message, Node, NodeSet, Path, Record, Recovery, Release, Slot, Target,
    Value, Waiting,
};

const BATCH: Digest = 0xba7c;
const HELD: Value = Value::Batch(BATCH);
const NULL: Value = Value::Null;
const SHAPES: [(usize, usize, usize); 5] = [(3, 1, 1), (5, 1, 2), (5, 1, 3), (7, 2, 3), (9, 3, 3)];

/// One slot at one node.
struct Slate {
    config: Config,
    consensus: Consensus,
    waiting: Waiting,
    slot: Slot,
}

impl Slate {
    /// Nobody is waited for.
    fn new(shape: (usize, usize, usize)) -> Slate {
        let waiting = Waiting { now: 0, suspected: NodeSet::EMPTY, vote_wait: 0, support_wait: 0 };
        Slate { config: config(shape, 0, 3), consensus: Consensus::default(), waiting, slot: 0 }
    }

    /// At a slot whose coin of this phase shows this side.
    fn with_coin(shape: (usize, usize, usize), phase: u32, side: bool) -> Slate {
        let mut slate = Slate::new(shape);
        let coin = slate.config.coin;
        slate.slot = (0..).find(|slot| coin.flip(1, 0, *slot, phase) == side).unwrap();
        slate
    }

    fn advance(&mut self) -> Action {
        let t = self.config.thresholds().unwrap();
        self.consensus.advance(self.slot, &self.config, &t, self.waiting).unwrap()
    }

    /// So many nodes, from node `first` on, propose.
    fn propose(&mut self, first: usize, count: usize, value: Value) {
        let quorum = self.config.thresholds().unwrap().quorum;
        for node in first..first + count {
            self.consensus.propose(node as Node, value, self.waiting.now, quorum).unwrap();
        }
    }

    fn vote(&mut self, first: usize, count: usize, phase: u32, ballot: Ballot) {
        for node in first..first + count {
            self.consensus.vote(node as Node, phase, ballot).unwrap();
        }
    }

    fn state(&mut self, first: usize, count: usize, phase: u32, value: Value) {
        for node in first..first + count {
            self.consensus.state(node as Node, phase, value).unwrap();
        }
    }
}

fn decided(value: Value, path: Path) -> Action {
    Action::Decided(Decision { value, path })
}

/// tests PROTOCOL 1-b, 5.2-b, 5.2-c, 12.1-c: a node that says it twice counts once.
#[test]
fn fast_decisions_count_distinct_nodes() {
    for shape in SHAPES {
        let t = config(shape, 0, 3).thresholds().unwrap();
        for (value, fast) in [(HELD, t.fast), (NULL, t.fast_null)] {
            let mut slate = Slate::new(shape);
            slate.propose(0, fast - 1, value);
            slate.propose(0, fast - 1, value);
            let short = slate.advance();
            assert!(!matches!(short, Action::Decided(_)), "{shape:?} {short:?}");
            // Also after it has voted, in whatever phase.
            slate.consensus.resume(3, true);
            slate.propose(fast - 1, 1, value);
            assert_eq!(slate.advance(), decided(value, Path::Fast));
        }
    }
}

/// tests PROTOCOL 5.2-d, 5.2-e, 5.2-f, 5.2-g, 5.2-n
#[test]
fn the_first_vote_follows_from_a_quorum_of_proposals() {
    for shape in SHAPES {
        let t = config(shape, 0, 3).thresholds().unwrap();
        for held in 0..=t.quorum {
            let mut slate = Slate::new(shape);
            slate.propose(0, held, HELD);
            if held < t.quorum {
                slate.propose(held, t.quorum - 1 - held, NULL);
                assert_eq!(slate.advance(), Action::Nothing, "one is missing");
                slate.propose(t.quorum - 1, 1, NULL);
            }
            if held >= t.fast || t.quorum - held >= t.fast_null {
                assert!(matches!(slate.advance(), Action::Decided(_)));
                continue;
            }
            let ballot = match (held >= t.support, t.quorum - held >= t.majority) {
                (true, _) => Ballot::For(HELD),
                (false, true) => Ballot::For(NULL),
                (false, false) => Ballot::Open(None),
            };
            assert_eq!(slate.advance(), Action::Vote { phase: 0, ballot }, "{shape:?} {held}");
            // PROTOCOL 5.2-a: it has voted, and waits for votes.
            assert_eq!(slate.advance(), Action::Nothing);
        }
    }
}

/// tests PROTOCOL 5.2-h, 5.2-q: f+1 votes of one phase, before a quorum of votes is there.
#[test]
fn f_plus_one_votes_of_one_phase_decide() {
    for shape in SHAPES {
        let f = shape.1;
        for (phase, value) in [(0, HELD), (0, NULL), (2, HELD), (2, NULL)] {
            let mut slate = Slate::new(shape);
            slate.vote(0, f, phase, Ballot::For(value));
            // Votes of another phase are other votes.
            slate.vote(f, 1, phase + 1, Ballot::For(value));
            assert_eq!(slate.advance(), Action::Nothing);
            slate.vote(f, 1, phase, Ballot::For(value));
            assert_eq!(slate.advance(), decided(value, Path::Votes));
            slate.propose(0, shape.0, value);
            assert_eq!(slate.advance(), Action::Nothing, "it is over");
        }
    }
}

/// tests PROTOCOL 5.2-i, 5.2-j, 5.2-k, 5.2-n, 5.2-o, 5.2-p, 5.6-a, 5.6-c
#[test]
fn the_next_state_follows_from_a_quorum_of_votes() {
    for shape in SHAPES {
        let quorum = shape.0 - shape.1;
        let next = |phase: u32, side, votes: &[(usize, Ballot)]| {
            let mut slate = Slate::with_coin(shape, phase.max(1), side);
            slate.consensus.name(HELD).unwrap();
            slate.consensus.resume(phase, true);
            let mut first = 0;
            for (count, ballot) in votes {
                slate.vote(first, *count, phase, *ballot);
                first += count;
            }
            slate.advance()
        };
        let open = Ballot::Open(Some(BATCH));
        for phase in [0, 1, 2] {
            for side in [false, true] {
                assert_eq!(next(phase, side, &[(quorum - 1, open)]), Action::Nothing);
                for value in [HELD, NULL] {
                    let votes = [(quorum - 1, open), (1, Ballot::For(value))];
                    let state = Action::State { phase: phase + 1, value };
                    assert_eq!(next(phase, side, &votes), state, "one vote for a value is enough");
                }
                let value = if side && phase > 0 { HELD } else { NULL };
                let state = Action::State { phase: phase + 1, value };
                assert_eq!(next(phase, side, &[(quorum, open)]), state, "{shape:?} {phase} {side}");
            }
        }
    }
}

/// tests PROTOCOL 5.2-l, 5.2-m, 5.2-n
#[test]
fn a_later_vote_follows_from_a_quorum_of_states() {
    for shape in SHAPES {
        let t = config(shape, 0, 3).thresholds().unwrap();
        for held in 0..=t.quorum {
            let mut slate = Slate::new(shape);
            slate.consensus.resume(1, false);
            slate.state(0, held.min(t.quorum - 1), 1, HELD);
            slate.state(held, (t.quorum - 1).saturating_sub(held), 1, NULL);
            assert_eq!(slate.advance(), Action::Nothing, "one is missing");
            let last = if held == t.quorum { HELD } else { NULL };
            slate.state(t.quorum - 1, 1, 1, last);
            let ballot = match (held >= t.majority, t.quorum - held >= t.majority) {
                (true, _) => Ballot::For(HELD),
                (_, true) => Ballot::For(NULL),
                _ => Ballot::Open(Some(BATCH)),
            };
            assert_eq!(slate.advance(), Action::Vote { phase: 1, ballot }, "{shape:?} {held}");
        }
    }
}

/// tests PROTOCOL 5.5-b, 5.5-c, 5.5-d, 5.5-g, 1-d: 5,1,2, where m = sup = 3 and fast = 4.
#[test]
fn waiting_chooses_when_to_vote_and_nothing_else() {
    let slate = |held: usize, null: usize| {
        let mut slate = Slate::new((5, 1, 2));
        slate.waiting = Waiting { now: 100, vote_wait: 10, support_wait: 50, ..slate.waiting };
        slate.propose(0, held, HELD);
        slate.propose(held, null, NULL);
        slate
    };
    for (held, null, wait) in [(3, 1, 10), (1, 3, 10), (2, 2, 50)] {
        let mut patient = slate(held, null);
        assert_eq!(patient.advance(), Action::WaitUntil(100 + wait), "{held} {null}");
        patient.waiting.now = 100 + wait - 1;
        assert_eq!(patient.advance(), Action::WaitUntil(100 + wait));
        // PROTOCOL 5.5-d: the wait ends, however late the node looks, with one and the same vote.
        patient.waiting.now = 100 + wait;
        let vote = patient.advance();
        assert!(matches!(vote, Action::Vote { phase: 0, .. }));
        let mut late = slate(held, null);
        late.advance();
        late.waiting.now = u64::MAX;
        assert_eq!(late.advance(), vote);
        // PROTOCOL 5.5-c: nobody is left who could help.
        let mut alone = slate(held, null);
        alone.waiting.suspected.insert(4);
        assert_eq!(alone.advance(), vote, "the same vote, at once");
    }
    // 7,2,3: fast = 7 cannot be reached once one node has proposed null, sup = 5 is.
    let mut slate = Slate::new((7, 2, 3));
    slate.waiting.vote_wait = 10;
    slate.propose(0, 5, HELD);
    assert_eq!(slate.advance(), Action::WaitUntil(10));
    slate.propose(5, 1, NULL);
    assert_eq!(slate.advance(), Action::Vote { phase: 0, ballot: Ballot::For(HELD) });
}

/// tests PROTOCOL 5.5-a: the last proposal decides while the node waits.
#[test]
fn a_decision_does_not_wait() {
    let mut slate = Slate::new((5, 1, 2));
    slate.waiting.vote_wait = 1000;
    slate.propose(0, 4 - 1, HELD);
    slate.propose(4, 1, NULL);
    assert_eq!(slate.advance(), Action::WaitUntil(1000));
    slate.propose(3, 1, HELD);
    assert_eq!(slate.advance(), decided(HELD, Path::Fast));
}

/// tests PROTOCOL 6.1-c
#[test]
fn a_window_below_n_times_w_is_refused() {
    let with = |alpha| Config { alpha, own_slots_max: 3, ..config((5, 1, 3), 0, 1) }.thresholds();
    assert_eq!(with(14), Err(ConfigError::WindowTooSmall { alpha: 14, least: 15 }));
    assert!(with(15).is_ok());
}

/// One node, driven by hand.
struct Alone {
    core: Core,
    fx: Effects,
}

impl Alone {
    fn new(shape: (usize, usize, usize), me: Node) -> Alone {
        let mut core = Core::new(config(shape, me, 1)).unwrap();
        let mut fx = Effects::default();
        core.start(0, &mut fx);
        fx.list.clear();
        let mut alone = Alone { core, fx };
        let reserved = Release::Reserve { to: Slot::from(me) + (shape.0 * 16) as Slot };
        alone.step(Input::Durable(reserved));
        alone
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        self.core.step(input, MS, &mut self.fx);
        std::mem::take(&mut self.fx.list)
    }

    fn hear(&mut self, from: Node, message: Message) -> Vec<Effect> {
        self.step(Input::Message { from, message })
    }

    fn spread(&mut self, from: Node, slot: Slot, digest: Digest) -> Vec<Effect> {
        let batch = BatchInfo { digest, touches: [digest as u64].into(), is_change: false };
        self.step(Input::Spread { from, slot, batch, room: true })
    }
}

fn records(effects: &[Effect]) -> Vec<Record> {
    let record = |effect: &Effect| match effect {
        Effect::Persist { record, .. } => Some(*record),
        _ => None,
    };
    effects.iter().filter_map(record).filter(|r| !matches!(r, Record::Reserve { .. })).collect()
}

fn sends(effects: &[Effect]) -> Vec<Message> {
    let message = |effect: &Effect| match effect {
        Effect::Send { message, .. } => Some(*message),
        _ => None,
    };
    effects.iter().filter_map(message).collect()
}

/// tests PROTOCOL 1.2-a, 12.1-h, 1-b: three votes of strangers decide nothing, two of members do.
#[test]
fn only_members_count() {
    let mut node = Alone::new((3, 1, 1), 0);
    let vote = Message::Vote { slot: 1, phase: 0, ballot: Ballot::For(NULL) };
    for stranger in [3, 4, 63, 0] {
        assert!(node.hear(stranger, vote).is_empty(), "{stranger} is no other member");
    }
    assert_eq!(node.core.seen(), 0);
    node.hear(1, vote);
    node.hear(2, vote);
    assert_eq!(node.core.exec(), 2, "slot 0 is its own and skipped, slot 1 is null");
}

/// tests PROTOCOL 5.1-a: a batch of another node's slot is not looked at.
#[test]
fn a_spread_comes_from_the_owner() {
    let mut node = Alone::new((5, 1, 3), 2);
    assert!(node.spread(1, 0, 7).is_empty());
    assert_eq!((node.core.seen(), node.core.has_segment(0)), (0, false));
    assert_eq!(records(&node.spread(0, 0, 7)), [Record::Hold { slot: 0, digest: 7 }]);
}

/// tests PROTOCOL 6.3-c: PROPOSE(s, 1) of class R says that the slot is assigned, of class E that the
/// fragments are here.
#[test]
fn an_assigned_slot_is_proposed_by_whoever_hears_of_it() {
    let room = false;
    for (class, value) in [(Class::Eager, None), (Class::Ready, Some(Class::Ready.mark(7)))] {
        let mut node = Alone::new((5, 1, 3), 2);
        let batch = BatchInfo { digest: class.mark(7), touches: [1].into(), is_change: false };
        let wanted = match value {
            Some(digest) => Record::Hold { slot: 0, digest },
            None => Record::NoHold { from: 0, to: 1 },
        };
        let effects = node.step(Input::Spread { from: 0, slot: 0, batch, room });
        assert_eq!(records(&effects), [wanted]);
    }
}

/// tests PROTOCOL 3.3-a: whatever names a slot puts it, and all below, in use.
#[test]
fn every_message_that_names_a_slot_puts_it_in_use() {
    let slot = 4;
    for message in [
        Message::Propose { slot, value: HELD },
        Message::Propose { slot, value: NULL },
        Message::ProposeNull { from: slot, to: slot + 1 },
        Message::Vote { slot, phase: 0, ballot: Ballot::Open(None) },
        Message::State { slot, phase: 1, value: NULL },
        Message::Decide { slot, value: NULL },
        Message::Skip { from: 1, to: slot + 1 },
        Message::Pull { from: 2, wanted: 0b101, facts: false },
        Message::GetMeta { slot },
    ] {
        let mut node = Alone::new((3, 1, 1), 2);
        node.hear(1, message);
        assert_eq!(node.core.seen(), slot + 1, "{message:?}");
    }
    let mut node = Alone::new((3, 1, 1), 2);
    node.spread(1, slot, 7);
    assert_eq!(node.core.seen(), slot + 1);
    let mut node = Alone::new((3, 1, 1), 2);
    node.step(Input::InUse { slot });
    assert_eq!(node.core.seen(), slot + 1);
}

/// tests PROTOCOL 3.2-f, 6.1-n, 12.1-f: two ranges with a gap, of one owner of three.
#[test]
fn a_skip_nulls_exactly_the_owners_slots_of_its_ranges() {
    let mut node = Alone::new((3, 1, 1), 2);
    // Not the owner of slot 0.
    assert!(node.hear(1, Message::Skip { from: 0, to: 9 }).is_empty());
    assert_eq!(node.core.seen(), 0);
    node.hear(0, Message::Skip { from: 0, to: 1 });
    node.hear(0, Message::Skip { from: 6, to: 8 });
    node.hear(0, Message::Skip { from: 6, to: 7 });
    // Slots 2 and 5 are its own and skipped, 1 and 4 are node 1's, 3 is in no range.
    assert_eq!((node.core.exec(), node.core.seen()), (1, 8));
    let told = |node: &mut Alone, slot| {
        let wanted = Message::Pull { from: slot, wanted: 1, facts: false };
        let answer = sends(&node.hear(1, wanted));
        answer.contains(&Message::Decide { slot, value: NULL })
    };
    let known: Vec<bool> = (1..8).map(|slot| told(&mut node, slot)).collect();
    assert_eq!(known, [false, true, false, false, true, true, false], "slots 1 to 7");
}

/// tests PROTOCOL 6.1-h, 6.1-i, 6.1-j, 6.1-k: no further than R is flushed, and on when it is.
#[test]
fn own_slots_passed_over_are_skipped_below_the_reservation() {
    let mut core = Core::new(config((3, 1, 1), 0, 1)).unwrap();
    let mut fx = Effects::default();
    core.start(0, &mut fx);
    let mut node = Alone { core, fx };
    node.fx.list.clear();
    let message = Message::Propose { slot: 7, value: HELD };
    assert!(node.hear(1, message).iter().all(|effect| !matches!(effect, Effect::Send { .. })));
    assert_eq!(node.core.exec(), 0, "nothing is reserved");
    let done = node.step(Input::Durable(Release::Reserve { to: 3 }));
    assert_eq!(sends(&done), [Message::Skip { from: 0, to: 3 }]);
    assert_eq!(node.core.exec(), 1, "null for itself too");
    let done = node.step(Input::Durable(Release::Reserve { to: 30 }));
    assert_eq!(sends(&done), [Message::Skip { from: 3, to: 8 }]);
    assert_eq!(node.core.can_open(), Some(9));
}

/// tests PROTOCOL 3.1-f, 9.3-c, 7-b, 3.3-c: metas of another digest are dropped.
#[test]
fn only_the_metas_that_were_decided_are_taken() {
    let mut node = Alone::new((3, 1, 1), 2);
    node.hear(1, Message::Decide { slot: 0, value: HELD });
    let meta = |digest| Input::Meta {
        slot: 0,
        batch: BatchInfo { digest, touches: [1].into(), is_change: false },
    };
    node.step(meta(BATCH + 1));
    assert_eq!((node.core.exec(), node.core.lacks_meta(0)), (0, true));
    node.step(meta(BATCH));
    assert_eq!((node.core.exec(), node.core.lacks_meta(0)), (1, false));
}

/// tests PROTOCOL 8.1-b, 8.1-c: said or decided, and touching the key, or nobody knows what.
#[test]
fn a_mark_is_the_highest_slot_named_that_may_touch_the_key() {
    let mark = |node: &Alone, key: u64| node.core.mark(|batch| batch.touches(key));
    let mut node = Alone::new((5, 1, 3), 4);
    node.hear(1, Message::Propose { slot: 1, value: HELD });
    assert_eq!(mark(&node, 7), None, "what others say is not what this node has said");
    node.spread(0, 0, 7);
    assert_eq!((mark(&node, 7), mark(&node, 8)), (Some(0), None));
    node.hear(1, Message::Decide { slot: 3, value: HELD });
    assert_eq!((mark(&node, 7), mark(&node, 8)), (Some(3), Some(3)), "its metas are not known");
    let batch = BatchInfo { digest: BATCH, touches: [8].into(), is_change: false };
    node.step(Input::Meta { slot: 3, batch });
    assert_eq!((mark(&node, 7), mark(&node, 8)), (Some(0), Some(3)));
}

/// tests PROTOCOL 4.3-i, 4.3-h, 9.1-c: asked for a slot that it may have opened, a node does not
/// say that it is null, and after its start it says nothing unasked but its refusals.
#[test]
fn unknown_own_slots_are_not_declared_null() {
    let mut recovery = Recovery::new(config((3, 1, 1), 0, 1)).unwrap();
    recovery.record(Record::Reserve { to: 9 }, None).unwrap();
    recovery.record(Record::Hold { slot: 0, digest: BATCH }, None).unwrap();
    let (mut core, mut fx) = (recovery.finish(0), Effects::default());
    core.start(0, &mut fx);
    let pull = Message::Pull { from: 0, wanted: 0, facts: false };
    assert_eq!(sends(&fx.list), [pull]);
    assert_eq!(records(&fx.list), [Record::NoHold { from: 3, to: 7 }], "all but slot 0");
    fx.list.clear();
    let mut node = Alone { core, fx };
    for slot in [0, 3, 6] {
        let answers = sends(&node.hear(1, Message::Pull { from: slot, wanted: 1, facts: false }));
        let null = |message: &Message| {
            matches!(message, Message::Skip { .. } | Message::Decide { .. })
                || *message == Message::Propose { slot, value: NULL }
        };
        assert!(!answers.iter().any(null), "slot {slot}: {answers:?}");
    }
}

/// tests PROTOCOL 5.2-w: what comes later in the log does not change what was said.
#[test]
fn the_first_record_of_a_key_wins() {
    let mut recovery = Recovery::new(config((5, 1, 3), 2, 1)).unwrap();
    let ballot = Ballot::For(NULL);
    for record in [
        Record::NoHold { from: 0, to: 1 },
        Record::Hold { slot: 0, digest: BATCH },
        Record::Vote { slot: 0, phase: 0, ballot },
        Record::Vote { slot: 0, phase: 0, ballot: Ballot::Open(None) },
        Record::State { slot: 0, phase: 1, value: NULL },
        Record::State { slot: 0, phase: 1, value: HELD },
    ] {
        recovery.record(record, None).unwrap();
    }
    let (mut core, mut fx) = (recovery.finish(0), Effects::default());
    core.start(0, &mut fx);
    fx.list.clear();
    let said =
        sends(&Alone { core, fx }.hear(4, Message::Pull { from: 0, wanted: 1, facts: false }));
    let first = [
        Message::Propose { slot: 0, value: NULL },
        Message::Vote { slot: 0, phase: 0, ballot },
        Message::State { slot: 0, phase: 1, value: NULL },
    ];
    assert_eq!(said[1..], first, "after SEEN");
}

/// tests PROTOCOL 9.1-h: a recorded decision is executed at replay, and nobody is asked for it.
#[test]
fn decisions_found_at_replay_are_facts() {
    let mut recovery = Recovery::new(config((3, 1, 1), 2, 1)).unwrap();
    let batch = BatchInfo { digest: BATCH, touches: [1].into(), is_change: false };
    recovery.record(Record::Hold { slot: 0, digest: BATCH }, Some(batch)).unwrap();
    recovery.decided(0, HELD).unwrap();
    recovery.decided(1, NULL).unwrap();
    assert_eq!([recovery.apply(), recovery.apply()], [Some((0, HELD)), Some((1, NULL))]);
    assert_eq!((recovery.apply(), recovery.exec()), (None, 2));
    assert!(recovery.decided(2, NULL).is_ok() && recovery.decided(2, HELD).is_err());
}

/// tests PROTOCOL 5.2-u, 6.5-b, 6.5-c: one owner's expired slots in as few ranges as leave out what
/// is held; own slots are nobody's to time out.
#[test]
fn refused_ranges_leave_out_what_was_proposed() {
    let mut node = Alone::new((3, 1, 1), 2);
    node.spread(0, 6, 7);
    node.hear(1, Message::Pull { from: 12, wanted: 1, facts: false });
    node.core.step(Input::Tick, 1000 * MS, &mut node.fx);
    let mut refused = records(&node.fx.list);
    refused.sort_unstable_by_key(|record| format!("{record:?}"));
    let range = |from, to| Record::NoHold { from, to };
    assert_eq!(refused, [range(0, 4), range(1, 11), range(9, 13)], "slots 0,3 | 1,4,7,10 | 9,12");
}

/// tests PROTOCOL 6.5-a, 6.5-d: T_skip for a slot of which nobody has said anything, T_hold from
/// the first message that names a candidate.
#[test]
fn a_named_candidate_is_waited_for_longer() {
    let timing = config((3, 1, 1), 2, 1).timing;
    for named in [false, true] {
        let mut lab = Lab::new((3, 1, 1));
        // Slot 1 of node 1 is in use at node 2 because slot 3 is.
        let other = if named { 1 } else { 3 };
        lab.message(0, 2, Message::Propose { slot: 3, value: Value::Batch(9) });
        lab.message(0, 2, Message::Propose { slot: other, value: Value::Batch(9) });
        let null = |lab: &Lab| lab.hosts[2].log.durable(Key::Propose(1)).is_some();
        let mut waited = 0;
        while !null(&lab) {
            lab.pass(MS / 10);
            lab.flush_all(2);
            waited += MS / 10;
        }
        let (least, most) = match named {
            true => (timing.hold, timing.hold + MS),
            false => (timing.skip_min, timing.skip_max),
        };
        assert!((least..=most).contains(&waited), "{waited} of {least}..={most}, named: {named}");
    }
}

/// tests PROTOCOL 6.5-e, 12.2-a, 12.2-d, 12.2-g: the SPREAD that was lost is asked for before
/// T_hold ends, and who is asked has the slot in use.
#[test]
fn a_lost_spread_is_pulled_from_the_owner() {
    let mut lab = Lab::new((5, 1, 3));
    let slot = lab.open(0);
    assert_eq!(lab.lose(|mail| mail.to == 4 && is_spread(mail)), 1);
    lab.lose(is_spread);
    lab.flush_all(0);
    lab.deliver(|mail| mail.to == 4 && is_hold(mail));
    lab.lose(|_| true);
    assert!(!lab.core(4).has_segment(slot));
    let hold = lab.core(4).config().timing.hold;
    lab.pass_among(hold - MS, &[0, 4]);
    assert!(lab.core(4).has_segment(slot), "it waits for T_hold without asking");
    let held = lab.hosts[4].log.durable(Key::Propose(slot));
    assert!(matches!(held, Some(Ballot::For(Value::Batch(_)))), "{held:?}");
    // Node 1 has heard of the slot from nobody but node 4, which asks.
    lab.lose(|_| true);
    lab.pass_among(200 * MS, &[4]);
    lab.deliver(|mail| mail.from == 4 && mail.to == 1);
    assert_eq!(lab.core(1).seen(), slot + 1);
    let told = lab.sent(1, 4);
    assert!(told.iter().any(|message| matches!(message, Message::Seen { .. })), "{told:?}");
}

/// tests PROTOCOL 12.2-c, 12.2-e: node 2 hears two proposals with two questions, and votes.
#[test]
fn what_travels_with_a_pull_counts() {
    let mut lab = Lab::with((3, 1, 1), |config| {
        config.timing.vote_wait = racos_protocol::Wait::Fixed(0);
        config.timing.support_wait = 0;
    });
    lab.open(0);
    lab.deliver(|mail| mail.to == 1 && is_spread(mail));
    lab.flush_all(0);
    lab.flush_all(1);
    lab.lose(|_| true);
    lab.pass(10 * MS);
    assert_eq!(lab.core(2).counters().votes, 0);
    lab.deliver(|mail| mail.to == 2);
    assert_eq!(lab.core(2).counters().votes, 1);
}

/// tests PROTOCOL 12.2-b, 12.2-c, 12.3-c: to all, with what was said here, less and less often.
#[test]
fn pulls_go_to_all_with_growing_pauses() {
    let mut lab = Lab::new((5, 1, 3));
    let slot = lab.open(0);
    lab.flush_all(0);
    lab.lose(|_| true);
    let held = lab.hosts[0].log.durable(Key::Propose(slot)).and_then(|said| said.candidate());
    let value = Value::Batch(held.expect("its own batch is flushed"));
    let mut at = Vec::new();
    while at.len() < 8 {
        lab.pass(MS / 10);
        let asked = |to| {
            let sent = lab.sent(0, to);
            let pull =
                |m: &Message| matches!(m, Message::Pull { from, wanted: 1, .. } if *from == slot);
            sent.contains(&Message::Propose { slot, value }) && sent.iter().any(pull)
        };
        if asked(1) {
            assert!((1..5).all(asked), "all others are asked");
            at.push(lab.now);
        }
        lab.lose(|_| true);
    }
    let pauses: Vec<u64> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let most = lab.core(0).config().timing.pull_max;
    assert!(pauses.windows(2).all(|p| p[1] > p[0] || p[1] >= most), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= most * 5 / 4 + MS / 5), "{pauses:?}");
}

/// tests PROTOCOL 6.2-d: the owner's own proposal goes to everybody once it is flushed.
#[test]
fn the_owner_proposes_to_all_after_its_flush() {
    let mut node = Alone::new((5, 1, 3), 0);
    let batch = BatchInfo { digest: BATCH, touches: [1].into(), is_change: false };
    let opened = node.step(Input::Open { batch });
    assert_eq!(records(&opened), [Record::Hold { slot: 0, digest: BATCH }]);
    assert!(sends(&opened).is_empty(), "nothing before the flush");
    let message = Message::Propose { slot: 0, value: HELD };
    let flushed = node.step(Input::Durable(Release::Propose { slot: 0, value: HELD }));
    assert!(flushed.contains(&Effect::Send { to: Target::Others, message }));
}

/// tests PROTOCOL 12.1-g: GETMETA is answered, and nothing is proposed, voted or decided for it.
#[test]
fn a_question_for_metas_decides_nothing() {
    let mut node = Alone::new((3, 1, 1), 2);
    node.spread(0, 0, 7);
    let done = node.hear(1, Message::GetMeta { slot: 0 });
    assert_eq!(done, [Effect::SendMeta { slot: 0, to: 1 }]);
    assert_eq!(node.core.exec(), 0);
}

/// tests PROTOCOL 9.4-a, 5.4-d, 9.1-f: of an executed slot nothing is kept in memory, and nothing
/// but the fact is said.
#[test]
fn executed_slots_are_let_go() {
    let mut node = Alone::new((3, 1, 1), 2);
    node.spread(0, 0, 7);
    assert!(node.core.has_segment(0));
    node.hear(0, Message::Decide { slot: 0, value: Value::Batch(7) });
    assert_eq!((node.core.exec(), node.core.has_segment(0)), (1, false));
    assert_eq!(node.core.mark(|_| true), None);
    // Its own proposal is flushed only now.
    let late = node.step(Input::Durable(Release::Propose { slot: 0, value: Value::Batch(7) }));
    assert!(late.is_empty(), "{late:?}");
    assert!(
        node.hear(1, Message::Vote { slot: 0, phase: 0, ballot: Ballot::For(NULL) }).is_empty()
    );
    let asked = node.hear(1, Message::Pull { from: 0, wanted: 1, facts: false });
    assert!(asked.contains(&Effect::SendFacts { from: 0, until: 1, to: 1 }));
    assert!(matches!(sends(&asked)[..], [Message::Seen { .. }]));
}
