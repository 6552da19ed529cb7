//! Exactly once: the session table of PROTOCOL 11, by exhaustive search in small scope and by
//! named cases.

mod common;

use std::collections::{BTreeSet, VecDeque};

use common::{op, part, put, stamped, value_of};
use racos_machine::{
    AUTH_REVISION_FIRST, Action, Author, Content, Done, Limits, Machine, Op, OpId, Outcome,
    Refusal, SessionId, Stamp,
};

const SESSION: SessionId = SessionId { slot: 0, position: 0 };

fn open(window: u32, limits: Limits) -> Machine {
    let mut machine = Machine::new(limits);
    let opened = machine.apply(0, 0, &op(0, Action::OpenSession { window }));
    assert!(matches!(opened, Outcome::Applied(_)));
    machine
}

/// Feeds stamped puts, each to a slot of its own.
struct Feed {
    machine: Machine,
    slot: u64,
}

impl Feed {
    fn new(window: u32) -> Self {
        Self { machine: open(window, Limits::default()), slot: 0 }
    }

    fn put(&mut self, sequence: u64, low: u64) -> Outcome {
        self.slot += 1;
        let op = stamped(put(self.slot, &format!("key {sequence}")), SESSION, sequence, low);
        self.machine.apply(self.slot, 0, &op)
    }
}

fn refused(outcome: Outcome) -> Option<Refusal> {
    match outcome {
        Outcome::Refused { reason, .. } => Some(reason),
        _ => None,
    }
}

const NUMBERS: u64 = 5;

/// A client that keeps the rule, and a network that may decide every op it sent, at any time and
/// any number of times, and may deliver or lose every reply.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
struct World {
    /// Numbers given out so far.
    issued: u64,
    /// Numbers whose reply the client has.
    received: BTreeSet<u64>,
    /// Numbers the machine has applied.
    applied: BTreeSet<u64>,
    /// (number, low) of ops sent.
    sent: BTreeSet<(u64, u64)>,
    /// `low` of the table, and the numbers with a result: what the machine's future depends on.
    table: (u64, BTreeSet<u64>),
}

impl World {
    fn client_low(&self) -> u64 {
        (1..).find(|number| !self.received.contains(number)).expect("numbers do not end")
    }
}

/// A world and the ops decided on the way to it, to build the machine again.
type Step = (World, Vec<(u64, u64)>);

fn decide((world, decided): &Step, window: u32, op: (u64, u64)) -> Step {
    let mut feed = Feed::new(window);
    for &(sequence, low) in decided {
        feed.put(sequence, low);
    }
    let (sequence, low) = op;
    let hash = feed.machine.state_hash();
    let revision = feed.machine.revision();
    let outcome = feed.put(sequence, low);
    assert_ne!(feed.machine.state_hash(), hash, "the slot of last use moves at least");
    let mut world = world.clone();
    match outcome {
        Outcome::Applied(_) => {
            assert!(world.applied.insert(sequence), "{sequence} applied twice after {decided:?}");
            assert_eq!(feed.machine.revision(), revision + 1);
            let low_now = world.table.0.max(low);
            world.table.1.insert(sequence);
            world.table = (low_now, world.table.1.split_off(&low_now));
        }
        Outcome::Replayed(done) => {
            assert!(world.applied.contains(&sequence) && world.table.1.contains(&sequence));
            let key = format!("key {sequence}");
            let version = feed.machine.get(key.as_bytes()).expect("it was put");
            assert_eq!(done, Done { revision: version.modified().main, changes: 1 });
        }
        Outcome::Refused { reason: Refusal::Stale, .. } => {
            assert!(world.received.contains(&sequence), "stale although no reply was received");
        }
        other => panic!("a correct client met {other:?} for {op:?} after {decided:?}"),
    }
    assert_eq!(feed.machine.session(SESSION).expect("open").low, world.table.0);
    if !matches!(outcome, Outcome::Applied(_)) {
        assert_eq!(feed.machine.revision(), revision, "applied nothing, changed nothing");
    }
    let mut decided = decided.clone();
    decided.push(op);
    (world, decided)
}

fn successors(step: &Step, window: u32) -> Vec<Step> {
    let (world, decided) = step;
    let mut next = Vec::new();
    let low = world.client_low();
    let mut push = |change: &dyn Fn(&mut World)| {
        let mut changed = world.clone();
        change(&mut changed);
        next.push((changed, decided.clone()));
    };
    if world.issued < NUMBERS && world.issued + 1 < low + u64::from(window) {
        push(&|world| {
            world.issued += 1;
            world.sent.insert((world.issued, low));
        });
    }
    for number in (1..=world.issued).filter(|number| !world.received.contains(number)) {
        push(&|world| {
            world.sent.insert((number, low));
        });
        if world.applied.contains(&number) {
            push(&|world| {
                world.received.insert(number);
            });
        }
    }
    next.extend(world.sent.iter().map(|&op| decide(step, window, op)));
    next
}

/// tests PROTOCOL 11-c, 11-e
#[test]
fn no_number_is_applied_twice_and_no_correct_client_meets_window() {
    for (window, worlds) in [(1, 16), (2, 748), (3, 8685)] {
        let start = World { table: (1, BTreeSet::new()), ..World::default() };
        let mut known = BTreeSet::from([start.clone()]);
        let mut open = VecDeque::from([(start, Vec::new())]);
        let mut finished = 0;
        while let Some(step) = open.pop_front() {
            finished += u32::from(step.0.received.len() as u64 == NUMBERS);
            for next in successors(&step, window) {
                if known.insert(next.0.clone()) {
                    open.push_back(next);
                }
            }
        }
        assert!(finished > 0, "window {window}: some run gets all replies");
        assert_eq!(known.len(), worlds, "window {window}: the search was exhaustive before");
    }
}

#[test]
fn a_number_frozen_for_100_others_keeps_its_result() {
    let mut feed = Feed::new(128);
    let Outcome::Applied(first) = feed.put(1, 1) else { panic!("applied") };
    for sequence in 2..=101 {
        assert!(matches!(feed.put(sequence, 1), Outcome::Applied(_)), "{sequence}");
    }
    let revision = feed.machine.revision();
    assert_eq!(feed.put(1, 1), Outcome::Replayed(first));
    assert_eq!(feed.machine.revision(), revision);
    assert!(matches!(feed.put(102, 102), Outcome::Applied(_)));
    assert_eq!(refused(feed.put(1, 1)), Some(Refusal::Stale));
}

#[test]
fn a_frozen_number_that_was_never_applied_is_applied_once_at_last() {
    let mut feed = Feed::new(64);
    for sequence in 2..=64 {
        assert!(matches!(feed.put(sequence, 1), Outcome::Applied(_)), "{sequence}");
    }
    assert_eq!(refused(feed.put(65, 1)), Some(Refusal::Window));
    assert!(matches!(feed.put(1, 1), Outcome::Applied(_)));
    assert!(matches!(feed.put(1, 1), Outcome::Replayed(_)));
    assert!(matches!(feed.put(65, 2), Outcome::Applied(_)), "WINDOW left nothing behind");
}

/// tests PROTOCOL 11-e, 11-f
#[test]
fn window_counts_from_the_larger_low() {
    let mut feed = Feed::new(4);
    assert_eq!(refused(feed.put(5, 1)), Some(Refusal::Window));
    assert!(matches!(feed.put(5, 2), Outcome::Applied(_)));
    assert_eq!(refused(feed.put(6, 1)), Some(Refusal::Window));
    assert!(matches!(feed.put(4, 1), Outcome::Applied(_)), "an older low does not turn it back");
    assert_eq!(refused(feed.put(1, 1)), Some(Refusal::Stale));
    assert!(matches!(feed.put(u64::MAX, u64::MAX), Outcome::Applied(_)));
    assert!(matches!(feed.put(u64::MAX, u64::MAX), Outcome::Replayed(_)));
    assert_eq!(refused(feed.put(u64::MAX - 1, 1)), Some(Refusal::Stale));
}

/// tests PROTOCOL 7-k
#[test]
fn a_refusal_is_recorded_like_any_result() {
    let mut machine = open(8, Limits::default());
    let missing = Content::Whole(value_of(OpId(5)));
    let action = Action::Put { key: common::key(b"a"), content: missing };
    let lacking = stamped(op(1, action), SESSION, 1, 1);
    let first = machine.apply(1, 0, &lacking);
    assert_eq!(refused(first), Some(Refusal::ValueMissing));
    assert!(matches!(machine.apply(2, 0, &put(2, "b")), Outcome::Applied(_)));
    assert_eq!(machine.apply(3, 0, &stamped(put(3, "a"), SESSION, 1, 1)), first);
    assert!(machine.get(b"a").is_none());
}

/// tests PROTOCOL 11-e, 11-j
#[test]
fn an_unknown_or_closed_session_changes_nothing() {
    let mut machine = open(8, Limits::default());
    let hash = machine.state_hash();
    let foreign = SessionId { slot: 0, position: 1 };
    let outcome = machine.apply(1, 0, &stamped(put(1, "a"), foreign, 1, 1));
    assert_eq!(refused(outcome), Some(Refusal::SessionExpired));
    assert_eq!(machine.state_hash(), hash);
    let close = op(2, Action::CloseSession { session: SESSION });
    let outcome = machine.apply(2, 0, &stamped(close, SESSION, 1, 1));
    assert_eq!(outcome, Outcome::Applied(Done { revision: 1, changes: 0 }));
    assert_eq!(machine.state_hash(), Machine::new(Limits::default()).state_hash());
    let outcome = machine.apply(3, 0, &stamped(put(3, "a"), SESSION, 2, 1));
    assert_eq!(refused(outcome), Some(Refusal::SessionExpired));
}

/// tests PROTOCOL 11-a, 11-h, 11-j
#[test]
fn a_full_table_evicts_the_session_used_longest_ago() {
    let limits = Limits { sessions_max: 3, ..Limits::default() };
    let mut machine = open(64, limits);
    let open = |id| op(id, Action::OpenSession { window: 64 });
    let at = |slot, position| SessionId { slot, position };
    machine.apply(1, 0, &open(1));
    machine.apply(1, 1, &open(2));
    // Even a replay is a use: the client is there.
    machine.apply(2, 0, &stamped(put(3, "a"), SESSION, 1, 1));
    machine.apply(3, 0, &stamped(put(4, "a"), at(1, 0), 1, 1));
    machine.apply(4, 0, &stamped(put(5, "a"), SESSION, 1, 1));
    machine.apply(5, 0, &open(6));
    let held: Vec<SessionId> = machine.sessions_by_last_use().map(|held| held.session).collect();
    assert_eq!(held, [at(1, 0), SESSION, at(5, 0)]);
    machine.apply(6, 0, &open(7));
    assert!(machine.session(at(1, 0)).is_none() && machine.session(SESSION).is_some());
    assert_eq!(machine.state_hash(), machine.full_hash());
}

#[test]
fn windows_are_bounded_together() {
    let limits = Limits { windows_max: 4096, ..Limits::default() };
    let mut machine = open(4096, limits);
    machine.apply(1, 0, &op(1, Action::OpenSession { window: 1 }));
    let held: Vec<u64> = machine.sessions_by_last_use().map(|held| held.session.slot).collect();
    assert_eq!(held, [1]);
    machine.apply(2, 0, &op(2, Action::OpenSession { window: 4095 }));
    assert_eq!(machine.sessions_by_last_use().count(), 2);
}

/// tests PROTOCOL 11-i
#[test]
fn expiry_is_void_if_the_session_was_used_since() {
    let mut machine = open(64, Limits::default());
    machine.apply(1, 0, &stamped(put(1, "a"), SESSION, 1, 1));
    let expire = |id, last_use| op(id, Action::ExpireSession { session: SESSION, last_use });
    machine.apply(2, 0, &expire(2, 0));
    assert!(machine.session(SESSION).is_some());
    machine.apply(3, 0, &expire(3, 1));
    assert!(machine.session(SESSION).is_none());
}

/// tests PROTOCOL 7-k
#[test]
fn parts_go_with_their_session_unless_a_put_names_them() {
    let mut machine = open(64, Limits::default());
    for number in 1..=3 {
        machine.apply(number, 0, &stamped(part(number), SESSION, number, 1));
    }
    machine.apply(4, 0, &part(4));
    let stripes = [1, 2].map(|id| value_of(OpId::new(1, 1, 1, id)));
    let content = Content::Stripes(stripes.into());
    machine.apply(5, 0, &op(5, Action::Put { key: common::key(b"large"), content }));
    machine.apply(6, 0, &op(6, Action::CloseSession { session: SESSION }));
    let mut released = Vec::new();
    assert!(machine.take_released(&mut released));
    assert_eq!(released, [OpId::new(1, 1, 1, 3)]);
    assert_eq!(machine.parts_len(), 1, "the one without a session stays");
    assert_eq!(machine.get(b"large").expect("named").len(), 2600);
    assert_eq!(machine.state_hash(), machine.full_hash());
}

#[test]
fn an_operation_let_in_by_users_as_they_were_is_refused_and_may_be_sent_again() {
    let mut machine = Machine::new(Limits::default());
    machine.apply(0, 0, &op(1, Action::OpenSession { window: 8 }));
    let session = SessionId { slot: 0, position: 0 };
    let by = |auth_revision| Op {
        author: Some(Box::new(Author { user: b"root"[..].into(), auth_revision })),
        ..stamped(put(2, "a"), session, 1, 1)
    };
    let refused = machine.apply(1, 0, &by(AUTH_REVISION_FIRST - 1));
    assert_eq!(refused, Outcome::Refused { reason: Refusal::AuthRevision, revision: 1 });
    let done = machine.apply(2, 0, &by(AUTH_REVISION_FIRST));
    assert_eq!(done, Outcome::Applied(Done { revision: 2, changes: 1 }));
}

/// tests PROTOCOL 11-k: a write that came in a slot of other members is not what came of its number: sent
/// again, it is applied.
#[test]
fn a_refusal_that_asks_for_another_attempt_leaves_the_number_free() {
    let mut feed = Feed::new(4);
    let mut other = put(50, "key");
    if let Action::Put { content: Content::Whole(value), .. } = &mut other.action {
        value.layout = 7;
    }
    feed.slot += 1;
    let outcome = feed.machine.apply(feed.slot, 0, &stamped(other, SESSION, 1, 1));
    assert_eq!(refused(outcome), Some(Refusal::OtherLayout));
    assert_eq!(feed.machine.recorded(&Stamp { session: SESSION, sequence: 1, low: 1 }), None);
    assert!(matches!(feed.put(1, 1), Outcome::Applied(_)));
    assert!(matches!(feed.put(1, 1), Outcome::Replayed(_)), "and once only");
}
