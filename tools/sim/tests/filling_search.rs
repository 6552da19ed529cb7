//! Exhaustive search of filling (PROTOCOL 10): the slots between a change of the members and its effect, of
//! three nodes with the shipped [`Core`], one of which is lost, or was replaced and does not know it.
//!
//! Slot 0 holds the change and is decided; it takes effect in slot 3. Every order in which the nodes learn of it,
//! flush, hear each other, open what they may still open, and hear what the lost node said before is
//! searched, while no time passes. Invariants: of no slot two outcomes are applied; no disk speaks of a slot in
//! which it does not count; no slot is skipped that is not reserved; and when there is nothing left to
//! do, the change has taken effect: at once, or, if the lost node's own slot had been named, when its timers have run out.
//! Each rule that a mutant leaves out must be refuted.

use racos_mutants::leave_out;
use racos_protocol::{
    BatchInfo, Change, Config, Configuration, Core, Effect, Effects, Input, Membership, Message,
    Node, NodeSet, Recovery, Release, Seat, Slot, Target, Value, Wait,
};
use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::rc::Rc;

/// Where the change takes effect.
const EFFECT: Slot = 3;
const STATES_MAX: usize = 100_000;
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
    Spread(Slot),
    /// A decision, with its metas.
    Fact(Slot, Value),
}

fn batch(slot: Slot) -> BatchInfo {
    BatchInfo { digest: 100 + u128::from(slot), touches: [].into(), is_change: slot == 0 }
}

/// One process.
#[derive(Clone)]
struct Host {
    core: Rc<Core>,
    /// Appended and not flushed.
    pending: Vec<Release>,
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
    let (pending, inbox) = (Vec::new(), Vec::new());
    Host { core: Rc::new(core), pending, reserved: 0, inbox, may_open: false, is_lost: false }
}

impl Word {
    /// The slots that it is about, if it is of no use once they are decided.
    fn slots(&self) -> Range<Slot> {
        match *self {
            Word::Fact(slot, _) => slot..slot + 1,
            Word::Says(message) => match message {
                Message::Propose { slot, .. }
                | Message::Vote { slot, .. }
                | Message::State { slot, .. }
                | Message::Decide { slot, .. }
                | Message::Opening { slot } => slot..slot + 1,
                Message::ProposeNull { from, to } | Message::Skip { from, to } => from..to,
                _ => 0..Slot::MAX,
            },
            Word::Spread(_) => 0..Slot::MAX,
        }
    }

    /// Whether it changes nothing more where this much is known.
    fn is_stale(&self, core: &Core) -> bool {
        let slots = self.slots();
        let window = slots.end.min(core.exec() + EFFECT);
        slots.end <= window
            && (slots.start.max(core.exec())..window).all(|slot| core.decided(slot).is_some())
    }
}

impl Scenario {
    /// Each node hears another one in the order in which that speaks: of every order there are too many states.
    fn is_in_order(self) -> bool {
        self == Scenario::JoinedAtWork
    }

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
        let mut world = World { hosts, applied, seconds: 0, scenario };
        for index in 0..world.hosts.len() {
            let mut fx = Effects::default();
            Rc::make_mut(&mut world.hosts[index].core).start(0, &mut fx);
            world.carry_out(index, fx).unwrap();
            world.flush(index).unwrap();
        }
        // Slot 0 was opened and decided; only its outcome is still to be learned.
        for index in 0..3 {
            world.hosts[index].inbox.clear();
            let spread = Input::Spread { from: 0, slot: 0, batch: batch(0), room: true };
            match index {
                0 => world.step(0, Input::Open { batch: batch(0) }).unwrap(),
                _ => world.step(index, spread).unwrap(),
            }
            world.flush(index).unwrap();
        }
        for (index, host) in world.hosts.iter_mut().enumerate() {
            let slot_0 = (usize::from(index == 0), Word::Fact(0, Value::Batch(batch(0).digest)));
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

    /// What the lost node said before, if it had opened its slot.
    fn with_an_open_slot(mut self) -> World {
        let value = Value::Batch(batch(2).digest);
        self.hosts[1].may_open = false;
        for host in &mut self.hosts[..2] {
            host.inbox.push((2, Word::Spread(2)));
            host.inbox.push((2, Word::Says(Message::Propose { slot: 2, value })));
        }
        self
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
        // Only R is worth waiting for: any other flush that is late is like what it releases being late.
        let waits = |release: &Release| matches!(release, Release::Reserve { .. });
        match self.hosts[index].pending.iter().any(waits) {
            true => Ok(()),
            false => self.flush(index),
        }
    }

    fn flush(&mut self, index: usize) -> Result<(), String> {
        for release in std::mem::take(&mut self.hosts[index].pending) {
            if let Release::Reserve { to } = release {
                self.hosts[index].reserved = to;
            }
            self.step(index, Input::Durable(release))?;
        }
        Ok(())
    }

    fn carry_out(&mut self, index: usize, fx: Effects) -> Result<(), String> {
        for effect in fx.list {
            match effect {
                Effect::Persist { release: Release::Nothing, .. } => {}
                Effect::Persist { release, .. } => self.hosts[index].pending.push(release),
                Effect::Send { to, message } => {
                    self.check_word(index, &message)?;
                    self.send(index, to, Word::Says(message));
                }
                Effect::Opened { slot } => self.send(index, Target::Others, Word::Spread(slot)),
                Effect::SpreadAgain { slot, to } => {
                    self.send(index, Target::One(to), Word::Spread(slot));
                }
                Effect::SendFacts { from, until, to } => {
                    for slot in from..until {
                        let value = self.applied[slot as usize].expect("below its exec");
                        self.send(index, Target::One(to), Word::Fact(slot, value));
                    }
                }
                Effect::SendMeta { .. } | Effect::Void { .. } | Effect::Chosen { .. } => {}
                Effect::Apply { slot, value } => self.apply(index, slot, value)?,
                Effect::Fatal(what) => return Err(format!("fatal at {index}: {what}")),
            }
        }
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
            Word::Spread(slot) if hears(&Message::Opening { slot }) => {
                let batch = batch(slot);
                self.step(index, Input::Spread { from: node, slot, batch, room: true })
            }
            Word::Fact(slot, value) => {
                let message = Message::Decide { slot, value };
                self.step(index, Input::Message { from: node, message })?;
                match value {
                    Value::Null => Ok(()),
                    Value::Batch(_) => self.step(index, Input::Meta { slot, batch: batch(slot) }),
                }
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
            if !host.pending.is_empty() {
                must = true;
                step(&|next| next.flush(index))?;
            }
            if self.is_due(index) {
                must = true;
                step(&|next| next.step(index, Input::Tick))?;
            }
            for (at, (from, _)) in host.inbox.iter().enumerate() {
                let is_first = host.inbox[..at].iter().all(|(before, _)| before != from);
                if self.scenario.is_in_order() && !is_first && !self.hosts[*from].is_lost {
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
                    next.step(index, Input::Open { batch: batch(slot) })
                })?;
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
            let hash_of = |letter: &(usize, Word)| {
                let mut hasher = DefaultHasher::new();
                letter.hash(&mut hasher);
                hasher.finish()
            };
            let mut letters: Vec<(usize, u64)> =
                host.inbox.iter().map(|letter| (letter.0, hash_of(letter))).collect();
            match self.scenario.is_in_order() {
                true => letters.sort_by_key(|(from, _)| *from),
                false => letters.sort_unstable(),
            }
            letters.hash(&mut hasher);
        }
        (&self.applied, self.seconds).hash(&mut hasher);
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
        let found = search(World::new(scenario).with_an_open_slot(), 4).unwrap();
        println!("{scenario:?}, with an open slot: {} states", found.states);
        assert!(found.held && found.null, "it may be written, or not: {found:?}");
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
