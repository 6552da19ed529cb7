//! A cluster of shipped cores in virtual time: network, disks, power and clients are simulated,
//! every choice comes from one seed, and an oracle watches every step.
//!
//! Invariant: the same configuration and seed give the same run, event for event.
//! What would break it: a clock, a hash map, or a choice that does not come from [`Rng`].
#![allow(dead_code, reason = "each test file uses its part of this module")]

pub mod host;
pub mod lab;
pub mod log;
pub mod oracle;
pub mod rng;
pub mod story;

pub use host::{Host, Mail, Outbox, Packet};
pub use oracle::Oracle;
pub use rng::Rng;

use racos_protocol::{
    BatchInfo, Class, CoinKey, Config, Fast, Input, Nanos, Node, NodeSet, Policy, ReadQuorum,
    ReadStep, Slot,
};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

pub const US: Nanos = 1_000;
pub const MS: Nanos = 1_000_000;
pub const SECOND: Nanos = 1_000_000_000;
/// Keys that the clients use.
pub const KEYS: u64 = 4;

/// Parameters of one node of a cluster with (n, f, k).
pub fn config((n, f, k): (usize, usize, usize), me: Node, seed: u64) -> Config {
    Config {
        n,
        f,
        k,
        me,
        incarnation: 1,
        lane: 0,
        alpha: (n * 16) as Slot,
        policy: Policy::OwnerSlots,
        fast: Fast::Support,
        own_slots_max: 2,
        timing: racos_protocol::Timing::default(),
        coin: CoinKey(seed, 1),
        local_coin: CoinKey(seed, 2 + u64::from(me)),
    }
}

/// What the network, the disks and the clients do.
#[derive(Clone, Debug)]
pub struct Weather {
    pub delay: Nanos,
    pub flush: Nanos,
    pub loss_per_mille: u64,
    pub duplicate_per_mille: u64,
    /// A disk now and then takes this long.
    pub stall: Nanos,
    /// SPREADs refused for lack of space.
    pub no_room_per_mille: u64,
    /// Packets between these nodes and the others are lost.
    pub apart: NodeSet,
    /// Mean time between two offers of a node's clients; 0: none.
    pub offer_every: Nanos,
}

impl Weather {
    pub fn fair() -> Weather {
        Weather {
            delay: 50 * US,
            flush: 100 * US,
            loss_per_mille: 0,
            duplicate_per_mille: 0,
            stall: 0,
            no_room_per_mille: 0,
            apart: NodeSet::EMPTY,
            offer_every: 0,
        }
    }
}

/// Something that will happen.
#[derive(Clone, Debug)]
pub enum Event {
    Deliver(Mail),
    Flushed { node: Node, life: u32 },
    Tick { node: Node, life: u32 },
    Offer { node: Node },
    Read { node: Node },
    Crash { node: Node },
    Restart { node: Node },
    PowerCut,
    Freeze { node: Node, until: Nanos },
    Weather(Box<Weather>),
}

#[derive(Clone)]
struct Read {
    node: Node,
    life: u32,
    key: u64,
    floor: Option<Slot>,
    quorum: ReadQuorum,
    execs: BTreeMap<Node, Slot>,
    wait: Option<Slot>,
}

/// State of a node that is not the node's own.
#[derive(Clone, Default)]
struct Around {
    life: u32,
    tick_at: Option<Nanos>,
    ticked_at: Nanos,
    /// Timers in a row that were still due after they had run, with nothing else happening.
    hasty: u32,
    frozen_until: Nanos,
    offering: bool,
}

#[derive(Clone)]
pub struct Cluster {
    pub now: Nanos,
    pub hosts: Vec<Host>,
    pub oracle: Oracle,
    pub weather: Weather,
    pub rng: Rng,
    around: Vec<Around>,
    events: BTreeMap<(Nanos, u64), Event>,
    sequence: u64,
    reads: BTreeMap<u64, Read>,
    batches: u64,
    /// Flushes that have ended.
    pub flushes: u64,
    pub handled: u64,
    /// Hash of all events, if wanted.
    pub trace: Option<DefaultHasher>,
}

impl Cluster {
    /// All nodes up, with empty disks.
    pub fn new(configs: Vec<Config>, seed: u64) -> Cluster {
        let mut oracle = Oracle::new(configs[0].thresholds().expect("a possible configuration"));
        oracle.is_queue = configs[0].policy == Policy::Queue;
        let mut cluster = Cluster {
            now: 0,
            around: vec![Around::default(); configs.len()],
            hosts: configs.into_iter().map(Host::new).collect(),
            oracle,
            weather: Weather::fair(),
            rng: Rng::new(seed),
            events: BTreeMap::new(),
            sequence: 0,
            reads: BTreeMap::new(),
            batches: 0,
            flushes: 0,
            handled: 0,
            trace: None,
        };
        for node in cluster.nodes() {
            cluster.restart(node);
        }
        cluster
    }

    pub fn nodes(&self) -> std::ops::Range<Node> {
        0..self.hosts.len() as Node
    }

    pub fn up(&self, node: Node) -> bool {
        self.host(node).core.is_some()
    }

    pub fn host(&self, node: Node) -> &Host {
        &self.hosts[usize::from(node)]
    }

    pub fn schedule(&mut self, at: Nanos, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    /// Handles everything that happens before `until`.
    pub fn run_until(&mut self, until: Nanos) {
        while let Some(first) = self.events.first_key_value()
            && first.0.0 < until
        {
            self.next_event();
        }
        self.now = self.now.max(until);
    }

    /// Runs until nothing more will happen; false if that takes longer than `limit`.
    pub fn run_dry(&mut self, limit: Nanos) -> bool {
        let end = self.now + limit;
        while let Some(first) = self.events.first_key_value() {
            if first.0.0 > end {
                return false;
            }
            self.next_event();
        }
        true
    }

    pub fn next_event(&mut self) {
        let ((at, _), event) = self.events.pop_first().expect("the caller looked");
        self.now = self.now.max(at);
        self.handled += 1;
        if let Some(hasher) = &mut self.trace {
            (self.now, format!("{event:?}")).hash(hasher);
        }
        if std::env::var_os("RACOS_PROTOCOL_TRACE").is_some() {
            eprintln!("{:>12} {event:?}", self.now);
        }
        let frozen = |node: Node| self.around[usize::from(node)].frozen_until;
        let thaw = match &event {
            Event::Deliver(mail) => frozen(mail.to),
            Event::Flushed { node, .. } | Event::Tick { node, .. } | Event::Offer { node } => {
                frozen(*node)
            }
            _ => 0,
        };
        if thaw > self.now {
            if let Event::Tick { node, life } = event
                && self.alive(node, life)
            {
                self.around[usize::from(node)].tick_at = Some(thaw);
            }
            return self.schedule(thaw, event);
        }
        self.handle(event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver(mail) => self.deliver(mail),
            Event::Flushed { node, life } if self.alive(node, life) => {
                self.flushes += 1;
                self.act(node, |host, now, oracle, out| host.flushed(now, oracle, out));
            }
            Event::Tick { node, life } if self.alive(node, life) => self.tick(node),
            Event::Flushed { .. } | Event::Tick { .. } => {}
            Event::Offer { node } => self.offer(node),
            Event::Read { node } => self.read(node),
            Event::Crash { node } => self.crash(node),
            Event::Restart { node } => self.restart(node),
            Event::PowerCut => self.nodes().for_each(|node| self.crash(node)),
            Event::Freeze { node, until } => self.around[usize::from(node)].frozen_until = until,
            Event::Weather(weather) => {
                self.weather = *weather;
                self.start_offers();
            }
        }
    }

    fn alive(&self, node: Node, life: u32) -> bool {
        self.up(node) && self.around[usize::from(node)].life == life
    }

    /// Lets a node do something, then carries out what follows from it.
    pub fn act(
        &mut self,
        node: Node,
        what: impl FnOnce(&mut Host, Nanos, &mut Oracle, &mut Outbox),
    ) {
        let mut out = Outbox::default();
        self.around[usize::from(node)].hasty = 0;
        let host = &mut self.hosts[usize::from(node)];
        what(host, self.now, &mut self.oracle, &mut out);
        if host.log.begin_flush() {
            let stalled = self.weather.stall > 0 && self.rng.chance(10);
            let base = if stalled { self.weather.stall } else { self.weather.flush };
            let at = self.now + self.rng.delay(base);
            let life = self.around[usize::from(node)].life;
            self.schedule(at, Event::Flushed { node, life });
        }
        for mail in out.mail {
            self.post(mail);
        }
        if !out.acknowledged.is_empty() {
            self.read_at_once(node);
        }
        self.arm(node);
        self.end_reads(node);
    }

    fn arm(&mut self, node: Node) {
        let Some(core) = &self.hosts[usize::from(node)].core else { return };
        let around = &mut self.around[usize::from(node)];
        let Some(due) = core.deadline() else { return };
        // A timer that is due again at once must not stop the clock.
        let due = due.max(self.now).max(around.ticked_at + US);
        if around.tick_at.is_none_or(|at| due < at) {
            around.tick_at = Some(due);
            let life = around.life;
            self.schedule(due, Event::Tick { node, life });
        }
    }

    fn tick(&mut self, node: Node) {
        let around = &mut self.around[usize::from(node)];
        if around.tick_at != Some(self.now) {
            // An earlier one took its place.
            return;
        }
        around.tick_at = None;
        around.ticked_at = self.now;
        let hasty = around.hasty;
        self.act(node, |host, now, oracle, out| host.input(Input::Tick, now, oracle, out));
        let again = self.host(node).core().deadline().is_some_and(|due| due <= self.now);
        let hasty = if again { hasty + 1 } else { 0 };
        assert!(hasty < 5, "node {node} spins: its timer is always due");
        self.around[usize::from(node)].hasty = hasty;
    }

    fn post(&mut self, mail: Mail) {
        let weather = &self.weather;
        let cut = weather.apart.contains(mail.from) != weather.apart.contains(mail.to);
        let (delay, duplicate) = (weather.delay, weather.duplicate_per_mille);
        if cut || self.rng.chance(weather.loss_per_mille) {
            return;
        }
        if self.rng.chance(duplicate) {
            let at = self.now + self.rng.delay(delay * 3);
            self.schedule(at, Event::Deliver(mail.clone()));
        }
        let at = self.now + self.rng.delay(delay);
        self.schedule(at, Event::Deliver(mail));
    }

    fn deliver(&mut self, mail: Mail) {
        if !self.up(mail.to) {
            return;
        }
        let to = mail.to;
        match mail.packet {
            Packet::ReadReply { read, exec, mark } => {
                if let Some(read) = self.reads.get_mut(&read) {
                    read.quorum.answer(mail.from, exec, mark);
                    read.execs.entry(mail.from).or_insert(exec);
                }
                self.step_read(read);
            }
            Packet::Spread { slot, batch } => {
                let room = !self.rng.chance(self.weather.no_room_per_mille);
                self.act(to, |host, now, oracle, out| {
                    host.spread(mail.from, slot, batch, room, now, oracle, out);
                });
            }
            _ => self.act(to, |host, now, oracle, out| host.receive(mail, now, oracle, out)),
        }
    }

    /// A batch that was never used before.
    pub fn batch(&mut self) -> BatchInfo {
        self.batches += 1;
        let mut keys = vec![self.rng.below(KEYS)];
        if self.rng.chance(300) {
            keys.push(KEYS + self.rng.below(KEYS));
        }
        // Where classes differ in more than a number, both come.
        let is_assigned =
            self.hosts[0].config.fast == Fast::Least && !self.batches.is_multiple_of(3);
        let class = if is_assigned { Class::Ready } else { Class::Eager };
        let digest = class.mark(u128::from(self.batches));
        BatchInfo { digest, touches: keys.into(), is_change: false }
    }

    /// Opens a batch at a node, if its core would take one.
    pub fn open(&mut self, node: Node) -> Option<Slot> {
        let batch = self.batch();
        let mut slot = None;
        self.act(node, |host, now, oracle, out| slot = host.open(batch, now, oracle, out));
        slot
    }

    /// Queue policy: an operation of a client of this node.
    fn offer_operation(&mut self, node: Node) {
        let mut batch = self.batch();
        let core = self.host(node).core.as_ref().expect("the node is up");
        let hash = u128::from(node) << 96 | batch.digest << 40;
        batch.digest = racos_protocol::candidate(hash, core.born_now());
        self.act(node, |host, _, oracle, out| host.offer(batch, oracle, out));
    }

    fn start_offers(&mut self) {
        for node in self.nodes() {
            let around = &mut self.around[usize::from(node)];
            if self.weather.offer_every > 0 && !std::mem::replace(&mut around.offering, true) {
                self.schedule(self.now, Event::Offer { node });
            }
        }
    }

    fn offer(&mut self, node: Node) {
        if self.weather.offer_every == 0 {
            self.around[usize::from(node)].offering = false;
            return;
        }
        match self.up(node) {
            true if self.host(node).is_queue() => self.offer_operation(node),
            true => drop(self.open(node)),
            false => {}
        }
        let at = self.now + self.rng.between(1, 2 * self.weather.offer_every);
        self.schedule(at, Event::Offer { node });
    }

    pub fn crash(&mut self, node: Node) {
        if !self.up(node) {
            return;
        }
        let keep_group = self.rng.chance(400);
        self.hosts[usize::from(node)].crash(keep_group, &mut self.oracle);
        let around = &mut self.around[usize::from(node)];
        around.life += 1;
        around.tick_at = None;
        around.frozen_until = 0;
    }

    /// The disk of a node that is down is lost for ever.
    pub fn wipe(&mut self, node: Node) {
        assert!(!self.up(node));
        self.oracle.wiped(node);
    }

    pub fn restart(&mut self, node: Node) {
        if !self.up(node) {
            self.act(node, |host, now, oracle, out| host.start(now, oracle, out));
        }
    }

    /// A client asks this node for a key (PROTOCOL 8.1).
    pub fn read(&mut self, node: Node) {
        if !self.up(node) {
            return;
        }
        let key = self.rng.below(KEYS);
        let id = self.sequence;
        let mut quorum = ReadQuorum::new(self.oracle.t.quorum);
        let core = self.host(node).core();
        quorum.answer(node, core.exec(), core.mark(|batch| batch.touches(key)));
        let execs = BTreeMap::from([(node, core.exec())]);
        let life = self.around[usize::from(node)].life;
        let floor = self.oracle.read_floor(key);
        self.reads.insert(id, Read { node, life, key, floor, quorum, execs, wait: None });
        for to in self.nodes().filter(|to| *to != node) {
            self.post(Mail { from: node, to, packet: Packet::ReadQuery { read: id, key } });
        }
        self.step_read(id);
    }

    fn step_read(&mut self, id: u64) {
        let Some(read) = self.reads.get_mut(&id) else { return };
        if read.wait.is_some() {
            return;
        }
        let (node, life) = (read.node, read.life);
        if !self.alive(node, life) {
            self.reads.remove(&id);
            return;
        }
        let read = &self.reads[&id];
        match read.quorum.step() {
            ReadStep::Wait => {}
            ReadStep::Use(from) => {
                let exec = read.execs[&from];
                self.end_read(id, exec);
            }
            ReadStep::WaitExecuted(slot) => {
                self.reads.get_mut(&id).expect("it was there").wait = Some(slot);
                self.act(node, |host, now, oracle, out| {
                    host.input(Input::InUse { slot }, now, oracle, out);
                });
            }
        }
    }

    /// Reads that waited for this node's exec.
    fn end_reads(&mut self, node: Node) {
        let Some(exec) = self.hosts[usize::from(node)].core.as_ref().map(|core| core.exec()) else {
            return;
        };
        let ready: Vec<u64> = self
            .reads
            .iter()
            .filter(|(_, read)| read.node == node && read.wait.is_some_and(|slot| exec > slot))
            .map(|(id, _)| *id)
            .collect();
        for id in ready {
            if self.alive(node, self.reads[&id].life) {
                self.end_read(id, exec);
            } else {
                self.reads.remove(&id);
            }
        }
    }

    fn end_read(&mut self, id: u64, prefix: Slot) {
        let read = self.reads.remove(&id).expect("the read is known");
        self.oracle.read_ends(read.key, read.floor, prefix);
    }

    /// PROTOCOL 8.1, at the worst moment: right after an acknowledgement, a quorum that leaves out
    /// the owner (and, where more are left out, some others) must see the write or its mark.
    fn read_at_once(&mut self, owner: Node) {
        let key = self.rng.below(KEYS);
        let floor = self.oracle.read_floor(key);
        let mut asked: Vec<Node> =
            self.nodes().filter(|node| *node != owner && self.up(*node)).collect();
        while asked.len() > self.oracle.t.quorum {
            asked.swap_remove(self.rng.below(asked.len() as u64) as usize);
        }
        let mut quorum = ReadQuorum::new(self.oracle.t.quorum);
        for node in asked {
            let core = self.host(node).core();
            quorum.answer(node, core.exec(), core.mark(|batch| batch.touches(key)));
        }
        if let ReadStep::Use(node) = quorum.step() {
            let prefix = self.host(node).core().exec();
            self.oracle.read_ends(key, floor, prefix);
        }
    }

    /// The power is back, packets arrive, disks are quick.
    pub fn heal(&mut self) {
        self.weather = Weather::fair();
        for around in &mut self.around {
            around.frozen_until = 0;
        }
        self.nodes().for_each(|node| self.restart(node));
    }

    /// Everything that was opened is decided, all nodes have executed the same, and none waits.
    pub fn check_settled(&self) {
        let live: Vec<&Host> = self.hosts.iter().filter(|host| host.core.is_some()).collect();
        let exec = live[0].core().exec();
        for host in &live {
            let core = host.core();
            assert_eq!((core.exec(), core.seen()), (exec, exec), "node {} is behind", host.me);
            assert_eq!(core.deadline(), None, "node {} has a timer and nothing to do", host.me);
            assert_eq!(core.waiting(), 0, "node {} has operations without a slot", host.me);
            assert_eq!(core.own_open(), 0, "node {} has an open slot", host.me);
        }
        assert!(self.oracle.opened().all(|slot| slot < exec), "an opened slot is not decided");
        assert!(self.reads.values().all(|read| read.wait.is_none()), "a read waits for ever");
    }

    pub fn trace_hash(&self) -> u64 {
        self.trace.as_ref().expect("the trace was wanted").finish()
    }
}

/// Says how to repeat a run if it panics.
pub struct Replay(pub String);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to replay: {}", self.0);
        }
    }
}
