//! Schedules for mutants that seeds meet too rarely: each passes with all guards in place.
//!
//! Purpose: shipped parts (the core, the state machine, the log) driven message by message and
//! flush by flush, where what must coincide is one message in thousands of runs.
//! Invariant: a probe says nothing but what clients, or other nodes, could see.

mod least;
mod margin;
mod members;
mod queue;
mod recode;
mod states;
mod stored_first;

pub use least::*;
pub use margin::*;
pub use members::*;
pub use queue::*;
use racos_buffer::Pool;
use racos_machine::{
    Action, Content, Exported, Import, Limits, Machine, Op, OpId, Outcome, Refusal, SessionId,
    Stamp, Value as Stored,
};
use racos_protocol::{
    BatchInfo, Config, Configuration, Core, Effect, Effects, Input, Membership, Message, Node,
    NodeSet, ReadQuorum, ReadStep, Record, Recovery, Release, Slot, Target, Timing, Value, Wait,
};
use racos_storage::device::memory::{Disk, MemoryDevice, Timing as DiskTiming};
use racos_storage::{Class, Event, Identity, Log, LogConfig, Place, Replayed, ReplayedBody};
pub use recode::*;
pub use states::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
pub use stored_first::*;

const BATCH: u128 = 0xba7c;
const MS: u64 = 1_000_000;

fn batch() -> BatchInfo {
    BatchInfo { digest: BATCH, touches: [1].into(), is_change: false }
}

fn config(n: usize, f: usize, k: usize, me: Node) -> Config {
    let timing = Timing { vote_wait: Wait::Fixed(0), support_wait: 0, ..Timing::default() };
    Config { timing, ..Config::new((n, f, k), me) }
}

/// A few cores whose messages and flushes are moved by hand.
struct Lab {
    code: (usize, usize, usize),
    now: u64,
    cores: Vec<Core>,
    /// Flushed, and appended but not flushed.
    records: Vec<Vec<Record>>,
    appended: Vec<VecDeque<(Record, Release)>>,
    sent: Vec<(Node, Target, Message)>,
    applied: Vec<Vec<(Slot, Value)>>,
    /// How much of that was in earlier lives of the node.
    before: Vec<usize>,
    opened: Vec<Vec<Slot>>,
    fatal: Option<String>,
}

impl Lab {
    fn new(n: usize, f: usize, k: usize) -> Lab {
        let core = |me| Core::new(config(n, f, k, me as Node)).expect("possible parameters");
        let mut lab = Lab {
            code: (n, f, k),
            now: 0,
            cores: (0..n).map(core).collect(),
            records: vec![Vec::new(); n],
            appended: vec![VecDeque::new(); n],
            sent: Vec::new(),
            applied: vec![Vec::new(); n],
            before: vec![0; n],
            opened: vec![Vec::new(); n],
            fatal: None,
        };
        for node in 0..n {
            let mut effects = Effects::default();
            lab.cores[node].start(0, &mut effects);
            lab.carry_out(node, effects);
            lab.flush(node);
        }
        lab.sent.clear();
        lab
    }

    fn step(&mut self, node: usize, input: Input) {
        let mut effects = Effects::default();
        self.cores[node].step(input, self.now, &mut effects);
        self.carry_out(node, effects);
    }

    fn carry_out(&mut self, node: usize, effects: Effects) {
        for effect in effects.list {
            match effect {
                Effect::Persist { record, release } => {
                    self.appended[node].push_back((record, release));
                }
                Effect::Send { to, message } => self.sent.push((node as Node, to, message)),
                Effect::Apply { slot, value } => self.applied[node].push((slot, value)),
                Effect::SendFacts { from, until, to } => {
                    let told = self.applied[node].iter().copied().skip(self.before[node]);
                    let told = told.filter(|(slot, _)| (from..until).contains(slot));
                    let told = told.map(|(slot, value)| Message::Decide { slot, value });
                    self.sent.extend(told.map(|told| (node as Node, Target::One(to), told)));
                }
                Effect::Opened { slot } => self.opened[node].push(slot),
                Effect::Fatal(what) => self.fatal = Some(format!("node {node}: {what}")),
                _ => {}
            }
        }
    }

    /// Everything appended so far is flushed, and what it releases.
    fn flush(&mut self, node: usize) {
        for _ in 0..self.appended[node].len() {
            let (record, release) = self.appended[node].pop_front().expect("counted");
            self.records[node].push(record);
            self.step(node, Input::Durable(release));
        }
    }

    /// Delivers what one node has sent to another, and forgets it.
    fn deliver(&mut self, from: usize, to: usize) {
        let (mine, rest) = std::mem::take(&mut self.sent).into_iter().partition(|(of, at, _)| {
            *of == from as Node && (*at == Target::Others || *at == Target::One(to as Node))
        });
        self.sent = rest;
        let mine: Vec<(Node, Target, Message)> = mine;
        for (from, _, message) in mine {
            self.step(to, Input::Message { from, message });
        }
    }

    fn spread(&mut self, slot: Slot, to: usize) {
        let from = (slot % self.cores.len() as Slot) as Node;
        self.step(to, Input::Spread { from, slot, batch: batch(), room: true });
    }

    /// The node loses power and starts again with what was flushed.
    fn restart(&mut self, node: usize) {
        let (n, f, k) = self.code;
        let mut recovery = Recovery::new(config(n, f, k, node as Node)).expect("as before");
        for record in &self.records[node] {
            recovery.record(*record, Some(batch())).expect("own records make sense");
        }
        self.appended[node].clear();
        self.before[node] = self.applied[node].len();
        self.cores[node] = recovery.finish(self.now);
        let mut effects = Effects::default();
        self.cores[node].start(self.now, &mut effects);
        self.carry_out(node, effects);
        self.flush(node);
    }

    /// Every slot was executed with one value, and nobody found a contradiction.
    fn verdict(&self) -> Result<(), String> {
        if let Some(what) = &self.fatal {
            return Err(what.clone());
        }
        let mut known = std::collections::BTreeMap::new();
        for (slot, value) in self.applied.iter().flatten() {
            if *known.entry(*slot).or_insert(*value) != *value {
                return Err(format!("slot {slot} was executed with a batch and with null"));
            }
        }
        Ok(())
    }
}

/// Datagrams that reach another lane than they were sent to leave no trace there.
///
/// # Errors
/// What came of one.
pub fn lanes_hear_nothing_of_each_other() -> Result<(), String> {
    crate::lanes::run(2, 2, racos_protocol::Policy::OwnerSlots).map(drop)
}

/// PROTOCOL 9.5-h: whole nodes whose fragments rot, and nobody who reads them but the scrub.
pub fn what_rots_is_made_again_unasked() -> Result<(), String> {
    let mut rotten = 0;
    for seed in 3..7 {
        let report = crate::run::run_rotting(seed)?;
        rotten += report.faults[crate::world::place(crate::plan::Kind::Spoil)];
    }
    if rotten < 40 { Err(format!("only {rotten} fragments rotted")) } else { Ok(()) }
}

/// PROTOCOL 4.1-f, the counterexample of three nodes that propose 1, 1, 0: a node that counts its
/// own VOTE before the flush executes the batch, loses power, and votes otherwise.
pub fn a_vote_counts_from_its_flush_on() -> Result<(), String> {
    let mut lab = Lab::new(3, 1, 1);
    lab.step(0, Input::Open { batch: batch() });
    lab.flush(0);
    lab.spread(0, 1);
    lab.flush(1);
    lab.step(2, Input::InUse { slot: 0 });
    lab.now = 200 * MS;
    lab.step(2, Input::Tick);
    lab.flush(2);
    let refusal = std::mem::take(&mut lab.sent);
    let of = |node: Node| refusal.iter().filter(move |(from, _, _)| *from == node).cloned();
    let (owner, holder, refuser): (Vec<_>, Vec<_>, Vec<_>) =
        (of(0).collect(), of(1).collect(), of(2).collect());
    // Node 1 hears the owner, votes, and its vote reaches the owner, whose own is not flushed.
    lab.sent = owner.clone();
    lab.deliver(0, 1);
    lab.flush(1);
    let votes = std::mem::replace(&mut lab.sent, holder);
    lab.deliver(1, 0);
    lab.sent = votes;
    lab.deliver(1, 0);
    lab.sent.clear();
    // The owner loses power; it and node 2 are all that is left.
    lab.restart(0);
    lab.sent = refuser;
    lab.deliver(2, 0);
    lab.flush(0);
    let after = std::mem::replace(&mut lab.sent, owner);
    lab.deliver(0, 2);
    lab.flush(2);
    lab.sent.extend(after);
    for _ in 0..8 {
        lab.now += 200 * MS;
        lab.step(2, Input::Tick);
        for (from, to) in [(0, 2), (2, 0)] {
            lab.deliver(from, to);
            lab.flush(to);
        }
    }
    if lab.applied[2].is_empty() {
        return Err("the schedule did not end".into());
    }
    lab.verdict()
}

/// Five nodes: node 0 has opened slot 0, node 4 has said that it does not hold it.
fn a_node_has_refused() -> Lab {
    let mut lab = Lab::new(5, 1, 3);
    lab.step(0, Input::Open { batch: batch() });
    lab.flush(0);
    lab.sent.clear();
    lab.step(4, Input::InUse { slot: 0 });
    lab.now = 200 * MS;
    lab.step(4, Input::Tick);
    lab.flush(4);
    lab.deliver(4, 0);
    lab
}

/// PROTOCOL 5.2-v: fragments that came after the refusal are no promise, not after a restart either.
pub fn late_fragments_are_no_promise_after_a_restart() -> Result<(), String> {
    let mut lab = a_node_has_refused();
    lab.spread(0, 4);
    lab.flush(4);
    lab.restart(4);
    lab.sent.clear();
    let pull = Message::Pull { from: 0, wanted: 1, facts: false };
    lab.step(4, Input::Message { from: 0, message: pull });
    lab.deliver(4, 0);
    lab.verdict()
}

/// PROTOCOL 4.3-c: what an owner skips lies below its flushed reservation, or it may open it after a
/// restart.
pub fn what_was_skipped_is_not_opened_after_a_restart() -> Result<(), String> {
    let mut lab = Lab::new(3, 1, 1);
    let propose = Message::Propose { slot: 900, value: Value::Null };
    lab.step(1, Input::Message { from: 0, message: propose });
    let skipped = |slot: Slot| {
        move |(from, _, message): &(Node, Target, Message)| match message {
            Message::Skip { from: first, to } => *from == 1 && (*first..*to).contains(&slot),
            _ => false,
        }
    };
    let told = std::mem::take(&mut lab.sent);
    lab.restart(1);
    lab.step(1, Input::Open { batch: batch() });
    let slot = *lab.opened[1].last().ok_or("the owner opens nothing")?;
    match told.iter().any(skipped(slot)) {
        true => Err(format!("slot {slot} was skipped before the restart and opened after it")),
        false => Ok(()),
    }
}

/// PROTOCOL 4.3-b: all below the reservation is skipped and decided, the next one is not flushed.
pub fn nothing_is_opened_beyond_the_reservation() -> Result<(), String> {
    let mut lab = Lab::new(3, 1, 1);
    let reserved = lab.cores[1].reservation();
    let propose = Message::Propose { slot: 900, value: Value::Null };
    lab.step(1, Input::Message { from: 0, message: propose });
    for slot in 0..reserved {
        let message = Message::Decide { slot, value: Value::Null };
        lab.step(1, Input::Message { from: 0, message });
    }
    if lab.cores[1].exec() < reserved {
        return Err(format!("slots up to {} of {reserved} are executed", lab.cores[1].exec()));
    }
    match lab.cores[1].can_open() {
        Some(slot) => Err(format!("slot {slot} would be opened; {reserved} is reserved")),
        None => Ok(()),
    }
}

/// PROTOCOL 8.1-b, the counterexample to the published read: only the owner knows that the slot is
/// decided, and the read quorum is without it.
pub fn a_decision_known_to_one_node_is_read() -> Result<(), String> {
    let mut lab = Lab::new(5, 1, 2);
    lab.step(0, Input::Open { batch: batch() });
    lab.flush(0);
    lab.sent.clear();
    for node in 1..4 {
        lab.spread(0, node);
        lab.flush(node);
        lab.deliver(node, 0);
    }
    if lab.applied[0].is_empty() {
        return Err("four of five proposals do not decide".into());
    }
    let mut read = ReadQuorum::new(4);
    for node in 1..5 {
        let core = &lab.cores[node];
        read.answer(node as Node, core.exec(), core.mark(|_| true));
    }
    match read.step() {
        ReadStep::WaitExecuted(0) => Ok(()),
        other => Err(format!("a read after the acknowledgement is answered by {other:?}: stale")),
    }
}

/// PROTOCOL 6.2-f: three of five nodes hold a batch with k = 3, two have refused it: once one of the
/// three is lost it could not be read, so it must not be decided.
pub fn a_decided_batch_has_holders_to_spare() -> Result<(), String> {
    let mut lab = Lab::new(5, 1, 3);
    lab.step(0, Input::Open { batch: batch() });
    lab.flush(0);
    for node in [1, 2] {
        lab.spread(0, node);
        lab.flush(node);
    }
    for node in [3, 4] {
        lab.step(node, Input::InUse { slot: 0 });
    }
    lab.now = 200 * MS;
    for node in [3, 4] {
        lab.step(node, Input::Tick);
        lab.flush(node);
    }
    for _ in 0..4 {
        let sent = std::mem::take(&mut lab.sent);
        for (from, to) in (0..5).flat_map(|from| [0, 1, 2].map(|to| (from, to))) {
            if from != to {
                lab.sent = sent.clone();
                lab.deliver(from, to);
                lab.sent.clear();
            }
        }
        (0..5).for_each(|node| lab.flush(node));
    }
    let applied = lab.applied.iter().flatten();
    match applied.filter(|(_, value)| *value == Value::Batch(BATCH)).count() {
        0 => lab.verdict(),
        _ => Err("a batch was decided that three nodes hold; k+f is 4".into()),
    }
}

/// PROTOCOL 5.2-s: a node that voted before it had anything to propose still owes its PROPOSE.
pub fn who_has_voted_still_proposes() -> Result<(), String> {
    let mut lab = Lab::new(5, 1, 3);
    for from in 0..4 {
        let value = if from < 2 { Value::Batch(BATCH) } else { Value::Null };
        lab.step(4, Input::Message { from, message: Message::Propose { slot: 0, value } });
    }
    lab.flush(4);
    let has = |lab: &Lab, wanted: fn(&Record) -> bool| lab.records[4].iter().any(wanted);
    if !has(&lab, |record| matches!(record, Record::Vote { .. })) {
        return Err("four of five proposals do not lead to a vote".into());
    }
    lab.now += 2_000 * MS;
    lab.step(4, Input::Tick);
    lab.flush(4);
    match has(&lab, |record| matches!(record, Record::NoHold { .. })) {
        true => Ok(()),
        false => Err("others wait for the proposal of a node that has voted".into()),
    }
}

/// PROTOCOL 8.1-i: two of three nodes have decided a write; the third alone knows nothing of it.
pub fn one_of_three_nodes_answers_no_read() -> Result<(), String> {
    let mut lab = Lab::new(3, 1, 1);
    lab.step(0, Input::Open { batch: batch() });
    lab.flush(0);
    let core = &lab.cores[2];
    let mut read = ReadQuorum::new(core.thresholds().quorum);
    read.answer(2, core.exec(), core.mark(|_| true));
    match read.step() {
        ReadStep::Wait => Ok(()),
        other => Err(format!("a read is answered by {other:?}, one node of three: stale")),
    }
}

/// PROTOCOL 9.1-c: a node that has refused a slot before its restart does not hold it afterwards.
pub fn a_refusal_stands_after_a_restart() -> Result<(), String> {
    let mut lab = a_node_has_refused();
    lab.restart(4);
    lab.sent.clear();
    lab.spread(0, 4);
    lab.flush(4);
    lab.deliver(4, 0);
    lab.verdict()
}

fn session_op(counter: u64, stamp: Option<Stamp>, action: Action) -> Op {
    Op { id: OpId::new(1, 1, 1, counter), author: None, stamp, action }
}

/// A store and the one session that it knows.
fn a_session() -> (Machine, SessionId) {
    let mut machine = Machine::new(Limits::default());
    machine.apply(0, 0, &session_op(1, None, Action::OpenSession { window: 4 }));
    (machine, SessionId { slot: 0, position: 0 })
}

/// PROTOCOL 11-j: an operation of a session that has ended has no effect.
pub fn an_ended_session_applies_nothing() -> Result<(), String> {
    let (mut machine, session) = a_session();
    machine.apply(1, 0, &session_op(2, None, Action::CloseSession { session }));
    let id = OpId::new(1, 1, 1, 3);
    let value =
        Stored { op: id, len: 8, digest: [0; 16], crc: 0, head: [1; 8], k: 1, n: 1, layout: 0 };
    let put = Action::Put { key: b"key".as_slice().into(), content: Content::Whole(value) };
    let late = session_op(3, Some(Stamp { session, sequence: 1, low: 1 }), put);
    match machine.apply(2, 0, &late) {
        Outcome::Refused { reason: Refusal::SessionExpired, .. } => Ok(()),
        other => Err(format!("an operation of an ended session came to {other:?}")),
    }
}

/// PROTOCOL 11-i: a proposal to end a session that was used since has no effect.
pub fn a_session_used_since_is_not_ended() -> Result<(), String> {
    let (mut machine, session) = a_session();
    let delete = Action::Delete { key: b"key".as_slice().into() };
    machine.apply(1, 0, &session_op(2, Some(Stamp { session, sequence: 1, low: 1 }), delete));
    machine.apply(2, 0, &session_op(3, None, Action::ExpireSession { session, last_use: 0 }));
    match machine.session(session) {
        Some(_) => Ok(()),
        None => Err("a session was ended though it was used after the node had looked".into()),
    }
}

const IDENTITY: Identity = Identity { cluster: 7, node: 1, incarnation: 1, lane: 0, lanes: 1 };

/// A log of small segments on a fresh disk.
fn fresh_log(timing: DiskTiming) -> (Rc<RefCell<Disk>>, Pool, LogConfig) {
    let config = LogConfig {
        segment_len: 64 << 10,
        prepare_ahead: 1,
        reserve_bytes: 0,
        free_bytes_min: 0,
        inline_body_max: 2048,
        inline_bytes_max: 16 << 10,
        group_bytes_max: 32 << 10,
        queue_bytes_max: 256 << 10,
        reads_max: 4,
        ..LogConfig::default()
    };
    let (disk, pool) = (Disk::new(1 << 24, timing), Pool::new(16 << 20));
    let mut device = MemoryDevice::new(disk.clone());
    Log::format(&mut device, &pool, &config, IDENTITY, 99, &mut |_, _| {})
        .expect("an empty disk can be formatted");
    (disk, pool, config)
}

/// What replay hands out of a log: each body that lies inline, and where the others lie.
struct Handed {
    log: Log<MemoryDevice>,
    inline: Vec<Vec<u8>>,
    stored: Vec<(Place, u32)>,
}

/// `None`: the log refuses to open, which is no wrong answer.
fn reopen(disk: &Rc<RefCell<Disk>>, pool: &Pool, config: &LogConfig) -> Option<Handed> {
    let (mut inline, mut stored) = (Vec::new(), Vec::new());
    let mut each = |record: Replayed<'_>| match record.body {
        ReplayedBody::Inline(body) => inline.push(body.to_vec()),
        ReplayedBody::Stored => stored.push((record.body_place, record.body_crc)),
        ReplayedBody::Damaged => {}
    };
    let device = MemoryDevice::new(disk.clone());
    let (log, _) = Log::open(device, pool.clone(), config.clone(), IDENTITY, &mut each).ok()?;
    Some(Handed { log, inline, stored })
}

fn append_record(log: &mut Log<MemoryDevice>, pool: &Pool, len: usize) -> Result<(), String> {
    let body = pool.copy(&vec![7; len]).ok_or("the pool is used up")?;
    let appended = log.append(1, b"head", &[body], Class::Urgent);
    appended.map(drop).map_err(|full| format!("a fresh log takes no record: {full:?}"))
}

/// Where the body of a record lies that has been flushed, and its checksum.
fn place_record(
    log: &mut Log<MemoryDevice>,
    pool: &Pool,
    len: usize,
) -> Result<(Place, u32), String> {
    append_record(log, pool, len)?;
    let mut events = Vec::new();
    while log.is_busy() {
        log.kick();
        log.poll(&mut events);
    }
    let placed = events.iter().find_map(|event| match event {
        Event::Placed { body, body_crc, .. } => Some((*body, *body_crc)),
        _ => None,
    });
    placed.ok_or_else(|| "the record was not placed".into())
}

/// PROTOCOL 4.4-g: a group that was torn while it was written is cut, whatever of it is there.
pub fn a_torn_group_is_not_replayed() -> Result<(), String> {
    for seed in 0..64 {
        let (disk, pool, config) = fresh_log(DiskTiming::Stepped);
        let mut opened = reopen(&disk, &pool, &config).ok_or("a fresh log does not open")?;
        append_record(&mut opened.log, &pool, 9000)?;
        opened.log.kick();
        drop(opened);
        disk.borrow_mut().power_cut(seed);
        let Some(mut handed) = reopen(&disk, &pool, &config) else { continue };
        for (place, crc) in handed.stored {
            handed.log.read(1, place, Some(crc)).map_err(|why| format!("{why:?}"))?;
            while disk.borrow_mut().complete_one() {}
            let mut events = Vec::new();
            handed.log.poll(&mut events);
            if events.iter().any(|event| matches!(event, Event::Read { result: Err(_), .. })) {
                return Err(format!("power cut {seed}: a record came back without its payload"));
            }
        }
    }
    Ok(())
}

/// PROTOCOL 4.4-d: a record whose bytes changed on disk is not handed out.
pub fn a_damaged_record_is_not_replayed() -> Result<(), String> {
    let (disk, pool, config) = fresh_log(DiskTiming::Immediate);
    let mut opened = reopen(&disk, &pool, &config).ok_or("a fresh log does not open")?;
    let (place, _) = place_record(&mut opened.log, &pool, 300)?;
    drop(opened);
    disk.borrow_mut().corrupt(place.segment, u64::from(place.offset) + 100);
    match reopen(&disk, &pool, &config) {
        Some(handed) if handed.inline.iter().any(|body| body != &[7; 300]) => {
            Err("a record came back with other bytes than were written".into())
        }
        _ => Ok(()),
    }
}

/// PROTOCOL 3.1-g: a fragment whose bytes changed on disk is not read as if it were whole.
pub fn a_damaged_fragment_is_not_read() -> Result<(), String> {
    let (disk, pool, config) = fresh_log(DiskTiming::Immediate);
    let mut opened = reopen(&disk, &pool, &config).ok_or("a fresh log does not open")?;
    let (place, crc) = place_record(&mut opened.log, &pool, 9000)?;
    disk.borrow_mut().corrupt(place.segment, u64::from(place.offset) + 100);
    opened.log.read(1, place, Some(crc)).map_err(|why| format!("{why:?}"))?;
    let mut events = Vec::new();
    opened.log.poll(&mut events);
    match events.iter().any(|event| matches!(event, Event::Read { result: Ok(_), .. })) {
        true => Err("a fragment was read with other bytes than were written".into()),
        false => Ok(()),
    }
}

/// PROTOCOL 9.3-e: parts of a state, but not the last: they make no state.
pub fn a_state_without_its_end_is_none() -> Result<(), String> {
    let mut machine = Machine::new(Limits::default());
    for slot in 0..64u64 {
        let action = Action::OpenSession { window: 4 };
        machine.apply(
            slot,
            0,
            &Op { id: OpId::new(0, 1, 1, slot + 1), author: None, stamp: None, action },
        );
    }
    machine.export_begin(64);
    let mut import = Import::new(Limits::default());
    let mut parts = 0;
    loop {
        match machine.export_slice(100, &mut |_| {}) {
            Exported::Part(part) => {
                import.part(&part, &mut |_| {}).map_err(|error| error.to_string())?;
                parts += 1;
            }
            Exported::Working => {}
            Exported::Last(_) => break,
        }
    }
    match import.finish() {
        Err(_) if parts > 1 => Ok(()),
        _ => Err(format!("{parts} parts, but not the last, were taken for a state")),
    }
}

/// PROTOCOL 9.3-i: a node that jumped says nothing of its slots below: what came of them is settled.
pub fn nothing_is_skipped_below_a_jump() -> Result<(), String> {
    let mut core = Core::new(config(5, 1, 3, 4)).expect("possible parameters");
    let mut effects = Effects::default();
    core.start(0, &mut effects);
    let founding = Configuration::new(0, (0..5).collect(), 1, 3).expect("possible parameters");
    let to = Membership {
        seats: core.seats().to_vec(),
        lost: NodeSet::EMPTY,
        configurations: vec![founding],
        epoch: 1,
        effect: 0,
    };
    core.jump(1003, to, 0, 0, &mut effects);
    core.step(Input::InUse { slot: 1200 }, 0, &mut effects);
    while let Some(at) = effects.list.iter().position(|it| matches!(it, Effect::Persist { .. })) {
        if let Effect::Persist { release, .. } = effects.list.remove(at) {
            core.step(Input::Durable(release), 0, &mut effects);
        }
    }
    for effect in &effects.list {
        if let Effect::Send { message: Message::Skip { from, .. }, .. } = effect
            && *from < 1003
        {
            return Err(format!("slot {from} was skipped after a jump to 1003"));
        }
    }
    Ok(())
}

/// PROTOCOL 12.3-e: a peer said how far it is and died with what it knew: the others need this node's word.
pub fn a_silent_peer_holds_up_nobody() -> Result<(), String> {
    let mut core = Core::new(config(5, 1, 3, 4)).expect("possible parameters");
    let mut effects = Effects::default();
    core.start(0, &mut effects);
    let message = Message::Seen { exec: 10, seen: 10 };
    core.step(Input::Message { from: 0, message }, 0, &mut effects);
    for now in (0..2_000).map(|at| at * MS) {
        core.step(Input::Tick, now, &mut effects);
    }
    let refused =
        |effect: &Effect| matches!(effect, Effect::Persist { record: Record::NoHold { .. }, .. });
    match effects.list.iter().any(refused) {
        true => Ok(()),
        false => Err("no word about slots that a silent node executed".into()),
    }
}
