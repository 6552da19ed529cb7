//! One node: the shipped core, a log, and the least engine that carries out its effects.

use super::log::{Entry, Key, Log};
use super::oracle::Oracle;
use racos_protocol::{
    Ballot, BatchInfo, Config, Core, Digest, Effect, Effects, Input, Message, Nanos, Node, NodeSet,
    Policy, Record, Recovery, Slot, Target, Value,
};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Most decided slots in one answer to a PULL for facts.
const FACTS_MAX: Slot = 64;

/// What travels between nodes.
#[derive(Clone, Debug)]
pub enum Packet {
    Message(Message),
    Spread { slot: Slot, batch: BatchInfo },
    Store { batch: BatchInfo },
    Stored { candidate: Digest },
    Meta { slot: Slot, batch: BatchInfo },
    Facts { rows: Rc<[(Slot, Value, Option<BatchInfo>)]>, exec: Slot },
    ReadQuery { read: u64, key: u64 },
    ReadReply { read: u64, exec: Slot, mark: Option<Slot> },
}

/// A packet on its way.
#[derive(Clone, Debug)]
pub struct Mail {
    pub from: Node,
    pub to: Node,
    pub packet: Packet,
}

/// What a node did that somebody else has to act on.
#[derive(Default, Debug)]
pub struct Outbox {
    pub mail: Vec<Mail>,
    /// Own batches executed: their clients are answered.
    pub acknowledged: Vec<Slot>,
}

#[derive(Clone)]
pub struct Host {
    pub me: Node,
    pub config: Config,
    /// None while the node is down.
    pub core: Option<Core>,
    pub log: Log,
    /// Executed slots, from slot 0, in this life.
    pub applied: Vec<Value>,
    /// Metas known in this life.
    metas: BTreeMap<Slot, BatchInfo>,
    /// Batches opened in this life: only these can be spread again or acknowledged.
    opened: BTreeSet<Slot>,
    /// What is stored here and in no executed slot; own operations of this life: who has stored them.
    stored: BTreeMap<Digest, BatchInfo>,
    offered: BTreeMap<Digest, NodeSet>,
    /// Decisions without a record so far.
    unlogged: Vec<Slot>,
    /// Own batches that came out null in this life.
    pub void: u64,
    /// Exec before the input whose effects are carried out.
    exec_before: Slot,
    /// The last batch given to the core, until it gets its slot.
    opening: Option<BatchInfo>,
}

impl Host {
    /// A node with an empty disk, not started.
    pub fn new(config: Config) -> Host {
        Host {
            me: config.me,
            core: None,
            log: Log::new(config.n),
            config,
            applied: Vec::new(),
            metas: BTreeMap::new(),
            opened: BTreeSet::new(),
            stored: BTreeMap::new(),
            offered: BTreeMap::new(),
            unlogged: Vec::new(),
            void: 0,
            exec_before: 0,
            opening: None,
        }
    }

    pub fn core(&self) -> &Core {
        self.core.as_ref().expect("the node is up")
    }

    /// Replays the log and starts.
    pub fn start(&mut self, now: Nanos, oracle: &mut Oracle, out: &mut Outbox) {
        assert!(self.core.is_none(), "node {} is up", self.me);
        let mut recovery = Recovery::new(self.config.clone()).expect("a possible configuration");
        for entry in self.log.entries.clone() {
            match entry {
                Entry::Record { record, batch, .. } => {
                    if let Record::Hold { slot, .. } | Record::SegmentOnly { slot, .. } = record {
                        let batch = batch.clone().expect("a fragment has metas");
                        self.metas.insert(slot, batch);
                    }
                    recovery.record(record, batch).expect("own records fit together");
                }
                Entry::Stored { batch } => {
                    self.stored.insert(batch.digest, batch);
                }
                Entry::Decided { slot, value, batch } => {
                    if let Some(batch) = batch {
                        self.metas.insert(slot, batch.clone());
                        recovery.meta(slot, batch);
                    }
                    recovery.decided(slot, value).expect("recorded decisions are facts");
                }
            }
            while let Some((slot, value)) = recovery.apply() {
                self.apply(slot, value, oracle);
            }
        }
        // Replayed decisions have their records already.
        self.unlogged.clear();
        let mut core = recovery.finish(now);
        let mut effects = Effects::default();
        self.exec_before = core.exec();
        self.stored.values().for_each(|batch| core.store_ahead(batch.clone()));
        core.start(now, &mut effects);
        self.core = Some(core);
        self.carry_out(effects, now, oracle, out);
    }

    /// Power is cut.
    pub fn crash(&mut self, keep_group: bool, oracle: &mut Oracle) {
        let kept = self.log.cut(keep_group);
        self.note_durable(&kept, oracle);
        self.core = None;
        self.applied.clear();
        self.metas.clear();
        self.opened.clear();
        self.stored.clear();
        self.offered.clear();
        self.unlogged.clear();
        self.opening = None;
    }

    pub fn input(&mut self, input: Input, now: Nanos, oracle: &mut Oracle, out: &mut Outbox) {
        let Some(core) = self.core.as_mut() else { return };
        let mut effects = Effects::default();
        self.exec_before = core.exec();
        core.step(input, now, &mut effects);
        self.carry_out(effects, now, oracle, out);
    }

    pub fn is_queue(&self) -> bool {
        self.config.policy == Policy::Queue
    }

    /// Queue policy: a client's operation is stored, here and at the others.
    pub fn offer(&mut self, batch: BatchInfo, oracle: &mut Oracle, out: &mut Outbox) {
        oracle.offers(batch.clone());
        self.offered.insert(batch.digest, NodeSet::EMPTY);
        self.store(batch.clone());
        self.send(Target::Others, Packet::Store { batch }, out);
    }

    fn store(&mut self, batch: BatchInfo) {
        if self.stored.insert(batch.digest, batch.clone()).is_none() {
            self.core.as_mut().expect("the node is up").store_ahead(batch.clone());
            self.log.append(Entry::Stored { batch });
        }
    }

    /// STORED: PROTOCOL 6.3-b, D nodes have it.
    fn stored_by(
        &mut self,
        node: Node,
        candidate: Digest,
        now: Nanos,
        oracle: &mut Oracle,
        out: &mut Outbox,
    ) {
        let Some(by) = self.offered.get_mut(&candidate) else { return };
        by.insert(node);
        if by.len() == oracle.t.durable {
            self.input(Input::Ready { candidate }, now, oracle, out);
        }
    }

    /// Opens a batch if the core would take one: its slot.
    pub fn open(
        &mut self,
        batch: BatchInfo,
        now: Nanos,
        oracle: &mut Oracle,
        out: &mut Outbox,
    ) -> Option<Slot> {
        let slot = self.core.as_ref()?.can_open()?;
        oracle.opens(self.me, slot, batch.clone(), self.log.reserved());
        self.opening = Some(batch.clone());
        self.input(Input::Open { batch }, now, oracle, out);
        assert!(self.opening.is_none(), "the core opened the batch");
        Some(slot)
    }

    /// The flush in progress ends: its releases go back to the core, in order.
    pub fn flushed(&mut self, now: Nanos, oracle: &mut Oracle, out: &mut Outbox) {
        let group = self.log.end_flush();
        self.note_durable(&group, oracle);
        for entry in group {
            match entry {
                Entry::Record { release, .. } => {
                    self.input(Input::Durable(release), now, oracle, out);
                }
                // PROTOCOL 6.4-a
                Entry::Stored { batch } => {
                    let candidate = batch.digest;
                    let owner = (candidate >> 96 & 0xff) as Node;
                    match owner == self.me {
                        true => self.stored_by(owner, candidate, now, oracle, out),
                        false => self.send(Target::One(owner), Packet::Stored { candidate }, out),
                    }
                }
                Entry::Decided { .. } => {}
            }
        }
    }

    fn note_durable(&mut self, group: &[Entry], oracle: &mut Oracle) {
        for entry in group {
            match entry {
                Entry::Record { record: Record::Hold { slot, .. }, .. } => {
                    oracle.holds(self.me, *slot);
                }
                Entry::Record { record: Record::Propose { slot, candidate }, .. } => {
                    oracle.proposes(self.me, *slot, *candidate);
                }
                Entry::Stored { batch } => oracle.stores(self.me, batch.digest),
                _ => {}
            }
        }
    }

    /// Takes one packet. Reads are answered here, at one instant of the state.
    pub fn receive(&mut self, mail: Mail, now: Nanos, oracle: &mut Oracle, out: &mut Outbox) {
        let from = mail.from;
        match mail.packet {
            Packet::Message(message) => {
                self.input(Input::Message { from, message }, now, oracle, out);
            }
            Packet::Spread { slot, batch } => {
                self.spread(from, slot, batch, true, now, oracle, out)
            }
            Packet::Store { batch } => {
                let is_over = self.applied.contains(&Value::Batch(batch.digest));
                if !is_over {
                    self.store(batch);
                }
            }
            Packet::Stored { candidate } => self.stored_by(from, candidate, now, oracle, out),
            Packet::Meta { slot, batch } => {
                self.metas.entry(slot).or_insert_with(|| batch.clone());
                self.input(Input::Meta { slot, batch }, now, oracle, out);
            }
            Packet::Facts { rows, exec } => {
                for (slot, value, batch) in rows.iter().cloned() {
                    // The decision names the batch whose metas may then be taken.
                    let message = Message::Decide { slot, value };
                    self.input(Input::Message { from, message }, now, oracle, out);
                    if let Some(batch) = batch {
                        self.metas.entry(slot).or_insert_with(|| batch.clone());
                        self.input(Input::Meta { slot, batch }, now, oracle, out);
                    }
                }
                self.input(Input::FactsEnd { from, exec }, now, oracle, out);
            }
            Packet::ReadQuery { read, key } => {
                let Some(core) = self.core.as_ref() else { return };
                let mark = core.mark(|batch| batch.touches(key));
                let packet = Packet::ReadReply { read, exec: core.exec(), mark };
                out.mail.push(Mail { from: self.me, to: from, packet });
            }
            Packet::ReadReply { .. } => unreachable!("replies are for the reader"),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one more than `receive`")]
    pub fn spread(
        &mut self,
        from: Node,
        slot: Slot,
        batch: BatchInfo,
        room: bool,
        now: Nanos,
        oracle: &mut Oracle,
        out: &mut Outbox,
    ) {
        self.metas.entry(slot).or_insert_with(|| batch.clone());
        self.input(Input::Spread { from, slot, batch, room }, now, oracle, out);
    }

    fn apply(&mut self, slot: Slot, value: Value, oracle: &mut Oracle) {
        // PROTOCOL 7-a, 7-b, 3.3-c
        assert_eq!(slot, self.applied.len() as Slot, "node {} skips or repeats a slot", self.me);
        if let Value::Batch(digest) = value {
            let batch = self.metas.get(&slot).expect("exec never moves over a slot without metas");
            assert_eq!(batch.digest, digest, "metas of slot {slot} are of another batch");
            self.stored.remove(&digest);
        }
        oracle.applies(self.me, slot, value);
        self.applied.push(value);
        self.unlogged.push(slot);
    }

    fn carry_out(&mut self, effects: Effects, now: Nanos, oracle: &mut Oracle, out: &mut Outbox) {
        let mut chosen = Vec::new();
        for effect in effects.list {
            match effect {
                Effect::Persist { record, release } => {
                    self.log_decisions();
                    let batch = match record {
                        Record::Hold { slot, .. } | Record::SegmentOnly { slot, .. } => {
                            self.metas.get(&slot).cloned()
                        }
                        _ => None,
                    };
                    self.log.append(Entry::Record { record, release, batch });
                }
                Effect::Send { to, message } => {
                    self.check_sent(message, oracle);
                    self.send(to, Packet::Message(message), out);
                }
                Effect::Opened { slot } => {
                    let batch = self.opening.take().expect("a batch was given");
                    self.metas.insert(slot, batch.clone());
                    self.opened.insert(slot);
                    self.send(Target::Others, Packet::Spread { slot, batch }, out);
                }
                Effect::Chosen { slot, candidate } => chosen.push((slot, candidate)),
                Effect::SpreadAgain { slot, to } => {
                    if self.opened.contains(&slot) {
                        let batch = self.metas[&slot].clone();
                        self.send(Target::One(to), Packet::Spread { slot, batch }, out);
                    }
                }
                Effect::SendMeta { slot, to } => {
                    if let Some(batch) = self.metas.get(&slot).cloned() {
                        self.send(Target::One(to), Packet::Meta { slot, batch }, out);
                    }
                }
                Effect::SendFacts { from, until, to } => self.send_facts(from, until, to, out),
                Effect::Apply { slot, value } => {
                    self.apply(slot, value, oracle);
                    let is_own = match value {
                        Value::Null => false,
                        Value::Batch(digest) => {
                            self.opened.contains(&slot) || self.offered.remove(&digest).is_some()
                        }
                    };
                    if is_own {
                        oracle.acknowledges(self.me, slot);
                        out.acknowledged.push(slot);
                    }
                }
                Effect::Void { slot } => {
                    // PROTOCOL 6.2-h
                    assert_eq!(self.applied[slot as usize], Value::Null);
                    self.void += 1;
                }
                Effect::Fatal(why) => panic!("node {} stops: {why}", self.me),
            }
        }
        for (slot, candidate) in chosen {
            if let Some(batch) = self.stored.get(&candidate).cloned() {
                self.metas.insert(slot, batch.clone());
                self.input(Input::Meta { slot, batch }, now, oracle, out);
            }
        }
    }

    fn send(&self, to: Target, packet: Packet, out: &mut Outbox) {
        let from = self.me;
        match to {
            Target::One(to) => {
                assert_ne!(to, from, "a node writes to itself");
                out.mail.push(Mail { from, to, packet });
            }
            Target::Others => {
                for to in (0..self.config.n as Node).filter(|to| *to != from) {
                    out.mail.push(Mail { from, to, packet: packet.clone() });
                }
            }
        }
    }

    fn send_facts(&self, from: Slot, until: Slot, to: Node, out: &mut Outbox) {
        let exec = self.applied.len() as Slot;
        assert!(until <= exec, "facts of slots that are not executed");
        let rows: Vec<_> = (from..until.min(from + FACTS_MAX))
            .map(|slot| {
                let value = self.applied[slot as usize];
                let batch = (value != Value::Null).then(|| self.metas[&slot].clone());
                (slot, value, batch)
            })
            .collect();
        self.send(Target::One(to), Packet::Facts { rows: rows.into(), exec }, out);
    }

    /// Decisions ride with the next flush: their records come before any later record.
    fn log_decisions(&mut self) {
        for slot in std::mem::take(&mut self.unlogged) {
            let value = self.applied[slot as usize];
            let known = value == Value::Null || self.log.has_metas(slot);
            let batch = (!known).then(|| self.metas[&slot].clone());
            self.log.append(Entry::Decided { slot, value, batch });
        }
    }

    /// PROTOCOL 4.1-a, 4.1-b, 4.1-c, 4.1-g, 5.2-a, 5.4-d, 6.1-d, 13-d. A PROPOSE, VOTE or STATE
    /// leaves only if its record is flushed, and says what the record says: over all restarts a
    /// node says one thing per key. Nothing is said beyond the window or of executed slots.
    fn check_sent(&self, message: Message, oracle: &mut Oracle) {
        let said = match message {
            Message::Propose { slot, value } => (Key::Propose(slot), Ballot::For(value)),
            Message::Vote { slot, phase, ballot } => (Key::Vote(slot, phase), ballot),
            Message::State { slot, phase, value } => (Key::State(slot, phase), Ballot::For(value)),
            Message::ProposeNull { from, to } => {
                for slot in (from..to).step_by(self.config.n) {
                    self.check_said(Key::Propose(slot), Ballot::For(Value::Null));
                }
                return self.check_window(to - 1);
            }
            Message::Skip { from, to } => {
                oracle.skips(self.me, from, to, self.log.reserved());
                return self.check_window(to - 1);
            }
            _ => return,
        };
        let (Key::Propose(slot) | Key::Vote(slot, _) | Key::State(slot, _)) = said.0;
        self.check_window(slot);
        assert!(slot >= self.exec_before, "node {} speaks of executed slot {slot}", self.me);
        self.check_said(said.0, said.1);
    }

    fn check_said(&self, key: Key, said: Ballot) {
        let durable = self.log.durable(key);
        assert_eq!(durable, Some(said), "node {}: {key:?} sent, left: as recorded", self.me);
    }

    fn check_window(&self, slot: Slot) {
        // The effects of one step are carried out after it: exec may be ahead of this message.
        let end = self.core.as_ref().map_or(Slot::MAX, Core::exec) + self.config.alpha;
        assert!(slot < end, "node {} speaks of slot {slot}, its window ends at {end}", self.me);
    }
}
