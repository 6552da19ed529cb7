//! Exhaustive search of filling (PROTOCOL 10): the slots between a change of the members and its effect, of
//! three nodes with the shipped [`Core`], one of which is lost, or was replaced and does not know it.
//!
//! Slot 0 holds the change and is decided; it takes effect in slot 3. Every order in which the nodes learn of it,
//! flush, hear each other, open what they may still open, and hear what the lost node said before is
//! searched, while no time passes; and one of the living may lose power at any time, once. Where that makes too many
//! states, each node hears another one in the order in which that speaks. Invariants: of no slot two outcomes
//! are applied; no disk speaks of a slot in which it does not count; no slot is skipped that is not reserved, and none opened
//! twice; and when there is nothing left to do, the change has taken effect: at once, or, if power was lost or the
//! lost node's own slot had been named, after timers have run out, which is tried in one order.
//! Each rule that a mutant leaves out must be refuted.

use racos_mutants::leave_out;
use racos_protocol::{
    BatchInfo, Change, Config, Configuration, Core, Effect, Effects, Input, Membership, Message,
    Node, NodeSet, Record, Recovery, Release, Seat, Slot, Target, Value, Wait,
};
use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

/// Where the change takes effect.
const EFFECT: Slot = 3;
const STATES_MAX: usize = 200_000;
const SECOND: u64 = 1_000_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scenario {
    /// Node 2 is replaced; it is lost, and had opened its slot or not.
    Lost,
    /// It is removed as lost.
    Removed,
    /// It is removed, and nobody says that it is lost.
    RemovedUnsaid,
    /// It is replaced, and it is alive; it opens nothing, or whatever it may.
    Alive,
    AliveAtWork,
    /// It is lost, and the disk in its place is there; and there is a batch for the first slot of the new disk.
    Joined,
    JoinedAtWork,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Word {
    Says(Message),
    Spread(Slot, u8),
    Meta(Slot, u8),
    /// Decisions with their metas, from a slot on; and the exec of who tells them, if it was asked.
    Facts(Slot, Vec<Value>, Option<Slot>),
}

/// What a boot of its owner opens in a slot.
fn batch(slot: Slot, boot: u8) -> BatchInfo {
    let digest = 1000 * u128::from(boot) + u128::from(slot);
    BatchInfo { digest, touches: [].into(), is_change: slot == 0 }
}

/// What a log holds: a decision is written with the next flush.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Entry {
    Said(Record, u8),
    Decided(Slot, Value),
}

/// One process.
#[derive(Clone)]
struct Host {
    core: Rc<Core>,
    /// Appended and not flushed; and flushed, in a world in which power may be lost.
    pending: Vec<(Entry, Release)>,
    log: Vec<Entry>,
    boot: u8,
    /// Slots opened, with the boot that did.
    opened: Vec<(Slot, u8)>,
    /// R as flushed.
    reserved: Slot,
    inbox: Vec<(usize, Word)>,
    may_open: bool,
    /// It is lost: what it has said may still be heard.
    is_lost: bool,
}

#[derive(Clone)]
struct World {
    hosts: Vec<Host>,
    applied: Vec<Option<Value>>,
    seconds: u64,
    scenario: Scenario,
    /// This one may lose power.
    restarts: Option<usize>,
    in_order: bool,
}

fn config(me: Node, incarnation: u32) -> Config {
    let mut config = Config::new((3, 1, 1), me);
    (config.incarnation, config.alpha, config.own_slots_max) = (incarnation, EFFECT, 1);
    config.timing.vote_wait = Wait::Fixed(0);
    config.timing.support_wait = 0;
    config
}

fn membership() -> Membership {
    let mut seats = vec![Seat { incarnation: 1, from: 0 }; 3];
    seats[2] = Seat { incarnation: 2, from: EFFECT };
    let configurations = vec![Configuration::new(0, vec![0, 1, 2], 1, 1).unwrap()];
    Membership { seats, lost: NodeSet::EMPTY, configurations, epoch: 2, effect: EFFECT }
}

fn host(core: Core) -> Host {
    let (pending, log, opened, inbox) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (core, boot, reserved) = (Rc::new(core), 1, 0);
    Host { core, pending, log, boot, opened, reserved, inbox, may_open: false, is_lost: false }
}

impl Word {
    /// The slots that it is about, if it is of no use once they are decided.
    fn slots(&self) -> Range<Slot> {
        match *self {
            Word::Facts(from, ref values, _) => from..from + values.len() as Slot,
            Word::Says(message) => match message {
                Message::Propose { slot, .. }
                | Message::Vote { slot, .. }
                | Message::State { slot, .. }
                | Message::Decide { slot, .. }
                | Message::Opening { slot } => slot..slot + 1,
                Message::ProposeNull { from, to } | Message::Skip { from, to } => from..to,
                _ => 0..Slot::MAX,
            },
            Word::Meta(slot, _) => slot..slot + 1,
            Word::Spread(..) => 0..Slot::MAX,
        }
    }

    /// Whether it changes nothing more where this much is known.
    fn is_stale(&self, core: &Core) -> bool {
        if let Word::Meta(slot, _) = *self {
            return slot < core.exec();
        }
        let slots = self.slots();
        let window = slots.end.min(core.exec() + EFFECT);
        slots.end <= window
            && (slots.start.max(core.exec())..window).all(|slot| core.decided(slot).is_some())
    }
}

impl Scenario {
    fn change(self) -> Change {
        match self {
            Scenario::Removed | Scenario::RemovedUnsaid => {
                let next = Configuration::new(EFFECT, vec![0, 1, 3], 1, 1).unwrap();
                let mut lost = NodeSet::EMPTY;
                if self == Scenario::Removed {
                    lost.insert(2);
                }
                Change::Reconfigure { next, lost }
            }
            _ => Change::Replace { node: 2, seat: Seat { incarnation: 2, from: EFFECT } },
        }
    }
}

impl World {
    fn new(scenario: Scenario) -> World {
        let mut hosts: Vec<Host> =
            (0..3).map(|me| host(Core::new(config(me, 1)).unwrap())).collect();
        if matches!(scenario, Scenario::Joined | Scenario::JoinedAtWork) {
            let mut recovery = Recovery::new(config(2, 2)).unwrap();
            recovery.begin_at(1);
            recovery.configure(membership()).unwrap();
            hosts.push(host(recovery.finish(0)));
        }
        let applied = vec![None; 16];
        let mut world =
            World { hosts, applied, seconds: 0, scenario, restarts: None, in_order: false };
        for index in 0..world.hosts.len() {
            let mut fx = Effects::default();
            Rc::make_mut(&mut world.hosts[index].core).start(0, &mut fx);
            world.carry_out(index, fx).unwrap();
            world.flush(index).unwrap();
        }
        // Slot 0 was opened and decided; only its outcome is still to be learned.
        for index in 0..3 {
            world.hosts[index].inbox.clear();
            let spread = Input::Spread { from: 0, slot: 0, batch: batch(0, 1), room: true };
            match index {
                0 => world.step(0, Input::Open { batch: batch(0, 1) }).unwrap(),
                _ => world.step(index, spread).unwrap(),
            }
            world.flush(index).unwrap();
        }
        let fact = Word::Facts(0, vec![Value::Batch(batch(0, 1).digest)], None);
        for (index, host) in world.hosts.iter_mut().enumerate() {
            let slot_0 = (usize::from(index == 0), fact.clone());
            host.inbox = if index < 3 { vec![slot_0] } else { Vec::new() };
        }
        world.hosts[0].may_open = scenario == Scenario::JoinedAtWork;
        world.hosts[1].may_open = matches!(scenario, Scenario::Lost | Scenario::Removed);
        world.hosts[2].may_open = scenario == Scenario::AliveAtWork;
        if !matches!(scenario, Scenario::Alive | Scenario::AliveAtWork) {
            world.hosts[2].is_lost = true;
            world.hosts[2].inbox.clear();
        }
        world
    }

    /// What the lost node said before to these, if it had opened its slot.
    fn with_an_open_slot(mut self, heard_by: &[usize]) -> World {
        let value = Value::Batch(batch(2, 1).digest);
        self.hosts[1].may_open = false;
        for index in heard_by.iter().copied() {
            let host = &mut self.hosts[index];
            host.inbox.push((2, Word::Spread(2, 1)));
            host.inbox.push((2, Word::Says(Message::Propose { slot: 2, value })));
        }
        self
    }

    /// This one may lose power, once.
    fn with_a_restart(self, restarts: usize) -> World {
        World { restarts: Some(restarts), in_order: true, ..self }
    }

    /// Each node hears another one in the order in which that speaks: of every order there are too many states.
    fn is_in_order(&self) -> bool {
        self.scenario == Scenario::JoinedAtWork || self.in_order
    }

    fn now(&self) -> u64 {
        self.seconds * SECOND
    }

    fn name(&self, index: usize) -> (Node, u32) {
        let config = self.hosts[index].core.config();
        (config.me, config.incarnation)
    }

    fn step(&mut self, index: usize, input: Input) -> Result<(), String> {
        let (mut fx, now) = (Effects::default(), self.now());
        let host = &mut self.hosts[index];
        Rc::make_mut(&mut host.core).step(input, now, &mut fx);
        // What is decided nobody need hear of.
        host.inbox.retain(|(_, word)| !word.is_stale(&host.core));
        self.carry_out(index, fx)?;
        // Only R is worth waiting for, and, where power may be lost, what was spread already: any other flush
        // that is late is like what it releases being late.
        let may_restart = self.restarts.is_some();
        let waits = |(_, release): &(Entry, Release)| match release {
            Release::Reserve { .. } => true,
            Release::Propose { slot, .. } => may_restart && self.boot_of(index, *slot).is_some(),
            _ => false,
        };
        let pending = &self.hosts[index].pending;
        let is_said = pending.iter().any(|(_, release)| *release != Release::Nothing);
        match pending.iter().any(waits) || !is_said {
            true => Ok(()),
            false => self.flush(index),
        }
    }

    fn flush(&mut self, index: usize) -> Result<(), String> {
        let pending = std::mem::take(&mut self.hosts[index].pending);
        self.hosts[index].log.extend(pending.iter().map(|(entry, _)| *entry));
        for (_, release) in pending {
            if let Release::Reserve { to } = release {
                self.hosts[index].reserved = to;
            }
            if release != Release::Nothing {
                self.step(index, Input::Durable(release))?;
            }
        }
        Ok(())
    }

    /// Power is lost and comes back.
    fn restart(&mut self, index: usize) -> Result<(), String> {
        self.restarts = None;
        let now = self.now();
        let (me, incarnation) = self.name(index);
        let host = &mut self.hosts[index];
        host.pending.clear();
        host.boot += 1;
        host.may_open = true;
        let mut recovery = Recovery::new(config(me, incarnation)).expect("it ran before");
        for entry in host.log.iter().copied() {
            match entry {
                Entry::Said(record, boot) => {
                    let batch = match record {
                        Record::Hold { slot, .. } | Record::SegmentOnly { slot, .. } => {
                            Some(batch(slot, boot))
                        }
                        _ => None,
                    };
                    recovery.record(record, batch)?;
                }
                Entry::Decided(slot, value) => recovery.decided(slot, value)?,
            }
            while let Some((slot, _)) = recovery.apply() {
                if slot == 0 {
                    recovery.change(self.scenario.change());
                }
            }
        }
        let mut core = recovery.finish(now);
        let mut fx = Effects::default();
        core.start(now, &mut fx);
        self.hosts[index].core = Rc::new(core);
        self.carry_out(index, fx)
    }

    fn carry_out(&mut self, index: usize, fx: Effects) -> Result<(), String> {
        for effect in fx.list {
            match effect {
                Effect::Persist { release: Release::Nothing, .. } if self.restarts.is_none() => {}
                Effect::Persist { record, release } => {
                    let boot = match record {
                        Record::Hold { digest, .. } | Record::SegmentOnly { digest, .. } => {
                            (digest / 1000) as u8
                        }
                        _ => 0,
                    };
                    self.hosts[index].pending.push((Entry::Said(record, boot), release));
                }
                Effect::Send { to, message } => {
                    self.check_word(index, &message)?;
                    self.send(index, to, Word::Says(message));
                }
                Effect::Opened { slot } => self.opens(index, slot)?,
                Effect::SpreadAgain { slot, to } => {
                    let boot = self.boot_of(index, slot).expect("it opened the slot");
                    self.send(index, Target::One(to), Word::Spread(slot, boot));
                }
                Effect::SendFacts { from, until, to } => {
                    let applied = &self.applied[from as usize..until as usize];
                    let values = applied.iter().map(|it| it.expect("below its exec")).collect();
                    let exec = Some(self.hosts[index].core.exec());
                    self.send(index, Target::One(to), Word::Facts(from, values, exec));
                }
                Effect::SendMeta { slot, to } => self.send_meta(index, slot, to),
                Effect::Void { .. } | Effect::Chosen { .. } => {}
                Effect::Apply { slot, value } => self.apply(index, slot, value)?,
                Effect::Fatal(what) => return Err(format!("fatal at {index}: {what}")),
            }
        }
        Ok(())
    }

    fn boot_of(&self, index: usize, slot: Slot) -> Option<u8> {
        let opened = self.hosts[index].opened.iter().find(|(opened, _)| *opened == slot);
        opened.map(|(_, boot)| *boot)
    }

    /// From memory, as far as this process has the batch.
    fn send_meta(&mut self, index: usize, slot: Slot, to: Node) {
        let host = &self.hosts[index];
        let held = host.log.iter().chain(host.pending.iter().map(|(entry, _)| entry));
        let mut found = held.filter_map(|entry| match entry {
            Entry::Said(Record::Hold { slot: of, .. }, boot)
            | Entry::Said(Record::SegmentOnly { slot: of, .. }, boot) => {
                (*of == slot).then_some(*boot)
            }
            _ => None,
        });
        if let Some(boot) = found.next() {
            self.send(index, Target::One(to), Word::Meta(slot, boot));
        }
    }

    /// PROTOCOL 6.1-a, 4.3-g
    fn opens(&mut self, index: usize, slot: Slot) -> Result<(), String> {
        if self.boot_of(index, slot).is_some() {
            return Err(format!("process {index} opens slot {slot} twice"));
        }
        let host = &mut self.hosts[index];
        let boot = host.boot;
        host.opened.push((slot, boot));
        self.send(index, Target::Others, Word::Spread(slot, boot));
        Ok(())
    }

    fn send(&mut self, from: usize, to: Target, word: Word) {
        let me = self.name(from).0;
        for host in &mut self.hosts {
            let node = host.core.config().me;
            let is_meant = match to {
                Target::Others => node != me,
                Target::One(to) => node == to,
            };
            let letter = (from, word.clone());
            if is_meant && !host.is_lost && !host.inbox.contains(&letter) {
                host.inbox.push(letter);
            }
        }
    }

    /// PROTOCOL 10-q, 10-s, 10-t, 10-n: what may be said of which slot.
    fn check_word(&self, index: usize, message: &Message) -> Result<(), String> {
        let (last, first) = match *message {
            Message::Propose { slot, .. }
            | Message::Vote { slot, .. }
            | Message::State { slot, .. }
            | Message::Opening { slot } => (slot, slot),
            Message::ProposeNull { from, to } | Message::Skip { from, to } => (to - 1, from),
            _ => return Ok(()),
        };
        let (node, incarnation) = self.name(index);
        let is_skip = matches!(message, Message::Skip { .. });
        let host = &self.hosts[index];
        if is_skip && last >= host.reserved {
            return Err(format!(
                "{message:?} of node {node}, reserved are those below {}",
                host.reserved
            ));
        }
        // One that has not heard of the change speaks of slots in its window, all of them below the effect.
        let is_out = match (node, incarnation) {
            (2, 1) => last >= EFFECT,
            (2, _) => first < EFFECT || host.core.exec() < EFFECT,
            _ => false,
        };
        match is_out {
            true => {
                Err(format!("{message:?} of node {node}, disk {incarnation}: it does not count"))
            }
            false => Ok(()),
        }
    }

    fn apply(&mut self, index: usize, slot: Slot, value: Value) -> Result<(), String> {
        let applied = &mut self.applied[slot as usize];
        if applied.is_some_and(|known| known != value) {
            return Err(format!("slot {slot}: {applied:?} and {value:?} are applied"));
        }
        *applied = Some(value);
        if self.restarts.is_some() {
            let entry = Entry::Decided(slot, value);
            self.hosts[index].pending.push((entry, Release::Nothing));
        }
        match slot {
            0 => self.step(index, Input::Executed { change: Some(self.scenario.change()) }),
            _ => Ok(()),
        }
    }

    fn deliver(&mut self, index: usize, at: usize) -> Result<(), String> {
        let (from, word) = self.hosts[index].inbox.remove(at);
        let (node, incarnation) = self.name(from);
        let hears = |message: &Message| self.hosts[index].core.hears(node, incarnation, message);
        match word {
            Word::Says(message) if hears(&message) => {
                self.step(index, Input::Message { from: node, message })
            }
            Word::Spread(slot, boot) if hears(&Message::Opening { slot }) => {
                let batch = batch(slot, boot);
                self.step(index, Input::Spread { from: node, slot, batch, room: true })
            }
            Word::Meta(slot, boot) => {
                self.step(index, Input::Meta { slot, batch: batch(slot, boot) })
            }
            Word::Facts(first, values, exec) => {
                for (slot, value) in (first..).zip(values) {
                    let message = Message::Decide { slot, value };
                    self.step(index, Input::Message { from: node, message })?;
                    if let Value::Batch(digest) = value {
                        let batch = batch(slot, (digest / 1000) as u8);
                        self.step(index, Input::Meta { slot, batch })?;
                    }
                }
                exec.map_or(Ok(()), |exec| self.step(index, Input::FactsEnd { from: node, exec }))
            }
            _ => Ok(()),
        }
    }

    fn is_due(&self, index: usize) -> bool {
        self.hosts[index].core.deadline().is_some_and(|at| at <= self.now())
    }

    /// Everything that can happen next; and whether any of it must.
    fn next(&self) -> Result<(Vec<World>, bool), String> {
        let (mut all, mut must) = (Vec::new(), false);
        for (index, host) in self.hosts.iter().enumerate().filter(|(_, host)| !host.is_lost) {
            let mut step = |change: &dyn Fn(&mut World) -> Result<(), String>| {
                let mut next = self.clone();
                change(&mut next)?;
                all.push(next);
                Ok::<(), String>(())
            };
            if host.pending.iter().any(|(_, release)| *release != Release::Nothing) {
                must = true;
                step(&|next| next.flush(index))?;
            }
            if self.is_due(index) {
                must = true;
                step(&|next| next.step(index, Input::Tick))?;
            }
            for (at, (from, _)) in host.inbox.iter().enumerate() {
                let is_first = host.inbox[..at].iter().all(|(before, _)| before != from);
                if self.is_in_order() && !is_first && !self.hosts[*from].is_lost {
                    continue;
                }
                must |= !self.hosts[*from].is_lost;
                step(&|next| next.deliver(index, at))?;
            }
            if host.may_open
                && let Some(slot) = host.core.can_open()
            {
                step(&|next| {
                    next.hosts[index].may_open = false;
                    let batch = batch(slot, next.hosts[index].boot);
                    next.step(index, Input::Open { batch })
                })?;
            }
            if self.restarts == Some(index) {
                step(&|next| next.restart(index))?;
            }
        }
        Ok((all, must))
    }

    /// Time passes, and all timers run out, again and again, until the change has taken effect or so many
    /// seconds have passed; in between everything is done in one order.
    fn wait(mut self, seconds: u64) -> Result<World, String> {
        let living: Vec<usize> =
            (0..self.hosts.len()).filter(|index| !self.hosts[*index].is_lost).collect();
        while self.check_end().is_err() && self.seconds < seconds {
            self.seconds += 1;
            for index in living.iter().copied() {
                self.step(index, Input::Tick)?;
            }
            let has_letters = |world: &World, index: &usize| !world.hosts[*index].inbox.is_empty();
            while let Some(index) = living.iter().copied().find(|it| has_letters(&self, it)) {
                self.flush(index)?;
                if has_letters(&self, &index) {
                    self.deliver(index, 0)?;
                }
            }
        }
        Ok(self)
    }

    /// With nothing left to do.
    fn check_end(&self) -> Result<(), String> {
        for (index, host) in self.hosts.iter().enumerate().filter(|(_, host)| !host.is_lost) {
            let exec = host.core.exec();
            if exec < EFFECT {
                return Err(format!(
                    "the change does not take effect: process {index} is at {exec}"
                ));
            }
        }
        Ok(())
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (index, host) in self.hosts.iter().enumerate() {
            host.core.fingerprint(&mut hasher);
            (&host.pending, host.reserved, host.may_open, self.is_due(index)).hash(&mut hasher);
            if self.restarts.is_some() {
                host.log.hash(&mut hasher);
            }
            (host.boot, &host.opened).hash(&mut hasher);
            let hash_of = |letter: &(usize, Word)| {
                let mut hasher = DefaultHasher::new();
                letter.hash(&mut hasher);
                hasher.finish()
            };
            let mut letters: Vec<(usize, u64)> =
                host.inbox.iter().map(|letter| (letter.0, hash_of(letter))).collect();
            match self.is_in_order() {
                true => letters.sort_by_key(|(from, _)| *from),
                false => letters.sort_unstable(),
            }
            letters.hash(&mut hasher);
        }
        (&self.applied, self.seconds, self.restarts).hash(&mut hasher);
        hasher.finish()
    }
}

#[derive(Default, Debug)]
struct Found {
    states: usize,
    /// What slot 2 came to hold.
    held: bool,
    null: bool,
}

/// Every state that can be reached; timers may run out so many times if there is nothing else left to do.
fn search(first: World, seconds: u64) -> Result<Found, String> {
    let mut seen = HashSet::from([first.hash()]);
    let mut queue = VecDeque::from([first]);
    let mut found = Found::default();
    while let Some(world) = queue.pop_front() {
        found.held |= matches!(world.applied[2], Some(Value::Batch(_)));
        found.null |= world.applied[2] == Some(Value::Null);
        let (all, must) = world.next()?;
        if !must {
            world.clone().wait(seconds)?.check_end()?;
        }
        for next in all {
            if seen.insert(next.hash()) {
                queue.push_back(next);
                assert!(seen.len() < STATES_MAX, "too many states to search them all");
            }
        }
    }
    found.states = seen.len();
    Ok(found)
}

/// tests PROTOCOL 10-n, 10-o, 10-p, 10-q, 10-s, 10-t
#[test]
fn a_change_takes_effect_at_once_in_every_order() {
    for scenario in [
        Scenario::Lost,
        Scenario::Removed,
        Scenario::Alive,
        Scenario::Joined,
        Scenario::JoinedAtWork,
    ] {
        let states = search(World::new(scenario), 0).unwrap().states;
        println!("{scenario:?}: {states} states");
    }
}

/// tests PROTOCOL 10-l, 10-o
#[test]
fn what_a_lost_node_had_opened_is_decided_in_every_order() {
    for scenario in [Scenario::Lost, Scenario::Removed] {
        let found = search(World::new(scenario).with_an_open_slot(&[0, 1]), 4).unwrap();
        println!("{scenario:?}, with an open slot: {} states", found.states);
        assert!(found.held && found.null, "it may be written, or not: {found:?}");
    }
}

/// tests PROTOCOL 4.3-g, 4.3-j, 9.1-a, 10-n
#[test]
fn who_loses_power_while_slots_are_filled_goes_on_in_every_order() {
    let found = search(World::new(Scenario::Lost).with_a_restart(1), 4).unwrap();
    println!("1 restarts: {} states", found.states);
    for (heard, restarts) in [(0, 1), (1, 0), (1, 1)] {
        let world = World::new(Scenario::Lost).with_an_open_slot(&[heard]);
        let found = search(world.with_a_restart(restarts), 4).unwrap();
        println!("{restarts} restarts, {heard} may hear: {} states", found.states);
        assert!(found.held && found.null, "{found:?}");
    }
}

/// tests PROTOCOL 10-n, 10-o, 10-p, 10-q, 10-t, 10-ae
#[test]
fn every_rule_of_filling_is_needed() {
    let stuck = "the change does not take effect";
    for (name, scenario, because) in [
        ("slots before a change left open", Scenario::Lost, stuck),
        ("a replaced owner is waited for", Scenario::Lost, stuck),
        ("a replaced owner is waited for", Scenario::Removed, stuck),
        ("slots skipped beyond the reservation", Scenario::Lost, "reserved are those below"),
        ("both disks of a node count", Scenario::AliveAtWork, "it does not count"),
        ("a new disk speaks before its place", Scenario::JoinedAtWork, "it does not count"),
        ("the newest configuration for every slot", Scenario::Removed, stuck),
    ] {
        let world = World::new(scenario);
        let _out = leave_out(name);
        let why = search(world, 0).map(|found| format!("{found:?}"));
        let why = why.expect_err(&format!("the search must refute {name:?} at {scenario:?}"));
        println!("{name}: {why}");
        assert!(why.contains(because), "{name}: {why}");
    }
    search(World::new(Scenario::RemovedUnsaid), 0)
        .expect_err("who is not said to be lost is waited for");
}

/// tests PROTOCOL 4.1-g, 4.3-g, 4.3-j
#[test]
fn every_rule_of_restarts_is_needed_while_slots_are_filled() {
    let restarts = |world: World| world.with_a_restart(1);
    let open = restarts(World::new(Scenario::Lost).with_an_open_slot(&[1]));
    let idle = restarts(World::new(Scenario::Lost));
    for (name, world, because) in [
        ("refusals forgotten at restart", &open, "proposed both"),
        ("promises forgotten at restart", &open, "proposed both"),
        ("votes forgotten at restart", &open, "voted twice"),
        ("reservation forgotten at restart", &idle, "own open slot 1 skipped"),
        ("silent in unknown own slots", &idle, "the change does not take effect"),
    ] {
        let _out = leave_out(name);
        let search = || search(world.clone(), 4).map(|found| format!("{found:?}"));
        // A core that finds what it has done before stops at once.
        let why = match catch_unwind(AssertUnwindSafe(search)) {
            Ok(found) => found.expect_err(&format!("the search must refute {name:?}")),
            Err(panic) => match panic.downcast::<String>() {
                Ok(why) => *why,
                Err(other) => resume_unwind(other),
            },
        };
        println!("{name}: {why}");
        assert!(why.contains(because), "{name}: {why}");
    }
}
