//! The state of one node's protocol and the dispatch of its inputs.
//!
//! Purpose: owns the window of slots `[exec, exec + alpha)` and routes each input to the concern
//! that handles it: `own` (own slots), `timers`, `pull` (repair of lost messages), `exec`.
//! Invariant: slots below `exec` are decided and applied; every slot below `seen` is in use and has
//! a state in the window; what this node said of a slot is never said differently.

use crate::configuration::Configurations;
use crate::effects::{Effect, Effects, Input, Record, Release, Target};
use crate::estimate::{Mean, Quantile};
use crate::queue::Queue;
use crate::slot::{Said, Segment, SlotState, Step};
use crate::{
    Action, BatchInfo, Class, Config, ConfigError, Configuration, Fast, Message, Nanos, Node,
    NodeSet, Path, Policy, Seat, Slot, Thresholds, Value, Waiting,
};
use std::collections::VecDeque;

/// What this node knows of another one.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// T_skip expiries in a row without a word from this owner.
    pub silent: u32,
    /// Decided slots in a row in which its PROPOSE was not heard.
    pub missed: u32,
    /// T_skip(j) = 0, and it is not waited for.
    pub suspected: bool,
    /// How long after a slot is in use the owner's word usually comes.
    pub word: Quantile,
    /// T_hold(j).
    pub hold: Nanos,
    pub good_slots: u32,
    /// Highest exec it told.
    pub exec: Slot,
    /// PROTOCOL 12.3-e: asked for facts, it told none in time: nothing waits for what it knows.
    pub is_mute: bool,
}

impl Peer {
    pub(crate) fn new(config: &Config) -> Peer {
        Peer {
            silent: 0,
            missed: 0,
            suspected: false,
            word: Quantile::p99(config.timing.skip_min / 8),
            hold: config.timing.hold,
            good_slots: 0,
            exec: 0,
            is_mute: false,
        }
    }
}

/// Counts since start, for status and benches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Slots decided with a batch by proposals alone, by votes, or learned from others.
    pub fast: u64,
    pub slow: u64,
    pub told: u64,
    /// Null slots decided by consensus; slots skipped by their owner.
    pub null: u64,
    pub skipped: u64,
    pub pulls: u64,
    pub skip_timeouts: u64,
    pub votes: u64,
}

/// Catching up by ranges of facts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Catchup {
    pub from: Node,
    /// Own exec when it was asked.
    pub exec: Slot,
    /// Ask again, another node, when nothing came by then.
    pub deadline: Nanos,
}

/// One node's protocol state.
#[derive(Clone, Debug)]
pub struct Core {
    pub(crate) config: Config,
    pub(crate) exec: Slot,
    pub(crate) seen: Slot,
    /// All slots below were named by somebody: PROTOCOL 9.4-b notes the highest beyond the window.
    pub(crate) named: Slot,
    pub(crate) slots: VecDeque<SlotState>,
    /// What waits for a slot, under the queue policy.
    pub(crate) queue: Option<Box<Queue>>,
    /// First own slot not yet opened, skipped or found in use.
    pub(crate) own_next: Slot,
    /// PROTOCOL 4.3-b, 4.3-c: R as flushed, and as appended.
    pub(crate) reserved: Slot,
    pub(crate) reserved_appended: Slot,
    /// PROTOCOL 4.3: own slots in `[unknown_next, unknown_end)` may have been opened before a
    /// restart; `unknown_end` is R as it was found there.
    pub(crate) unknown_next: Slot,
    pub(crate) unknown_end: Slot,
    /// Own slots opened and not executed.
    pub(crate) own_open: usize,
    pub(crate) peers: Vec<Peer>,
    /// Who counts in which slot, as of exec: members and thresholds, which incarnation of each node,
    /// who left as lost; and how many changes led to it.
    pub(crate) configurations: Configurations,
    pub(crate) seats: Vec<Seat>,
    pub(crate) lost: NodeSet,
    pub(crate) epoch: u32,
    /// Where the newest change takes effect.
    pub(crate) fill_to: Slot,
    /// The last slot applied may have been a change: nothing is executed until its outcome is known.
    pub(crate) is_waiting_for_change: bool,
    pub(crate) catchup: Option<Catchup>,
    /// No timer is due before this.
    pub(crate) wake: Nanos,
    pub(crate) flush_cost: Mean,
    pub(crate) last_gap: Quantile,
    pub(crate) decision_time: Quantile,
    pub(crate) counters: Counters,
    /// A contradiction was found; nothing more is done.
    pub(crate) stopped: bool,
}

pub(crate) const NEVER: Nanos = Nanos::MAX;

impl Core {
    /// A node with an empty log. A node with a log starts from [`crate::Recovery`].
    pub fn new(config: Config) -> Result<Core, ConfigError> {
        let founding = config.founding()?;
        let (timing, peer) = (config.timing, Peer::new(&config));
        let queue =
            (config.policy == Policy::Queue).then(|| Box::new(Queue::new(0, config.life())));
        let configurations = Configurations::founded(founding);
        Ok(Core {
            exec: 0,
            seen: 0,
            named: 0,
            slots: VecDeque::new(),
            queue,
            own_next: configurations.next_of(config.me, 0),
            reserved: 0,
            reserved_appended: 0,
            unknown_next: 0,
            unknown_end: 0,
            own_open: 0,
            peers: vec![peer; config.n.max(usize::from(config.me) + 1)],
            configurations,
            seats: vec![Seat::FOUNDING; config.n],
            lost: NodeSet::EMPTY,
            epoch: 1,
            fill_to: 0,
            is_waiting_for_change: false,
            catchup: None,
            wake: NEVER,
            flush_cost: Mean::new(200_000),
            last_gap: Quantile::p95(100_000),
            decision_time: Quantile::p99(timing.pull_min),
            counters: Counters::default(),
            stopped: false,
            config,
        })
    }

    /// Reserves own slots and asks the others where they are. To be called once, before any input.
    pub fn start(&mut self, now: Nanos, effects: &mut Effects) {
        self.reserve(effects);
        if self.configurations.newest().members != [self.config.me] {
            // PROTOCOL 9.1-c, 9.1-d: nothing is said again unasked; ask all nodes once for their
            // highest slot in use.
            effects
                .send(Target::Others, Message::Pull { from: self.exec, wanted: 0, facts: false });
        }
        self.fill(now, effects);
        self.null_unknown(now, effects);
        self.execute(now, effects);
        self.wake = now;
    }

    /// PROTOCOL 5.6-b: the private coin, drawn anew at every start. To be called before any input.
    pub fn set_local_coin(&mut self, coin: crate::CoinKey) {
        self.config.local_coin = coin;
    }
    /// All slots below are executed here.
    pub fn exec(&self) -> Slot {
        self.exec
    }
    /// Own slots below may be opened, or are about to be allowed so (PROTOCOL 4.3).
    pub fn reservation(&self) -> Slot {
        self.reserved_appended
    }
    /// All slots below are in use here.
    pub fn seen(&self) -> Slot {
        self.seen
    }
    pub fn counters(&self) -> Counters {
        self.counters
    }
    /// Thresholds of the next slot to be executed.
    pub fn thresholds(&self) -> &Thresholds {
        &self.at(self.exec).thresholds
    }
    /// The configuration that governs a slot: known for every slot below exec + alpha.
    pub fn at(&self, slot: Slot) -> &Configuration {
        self.configurations.at(slot)
    }
    /// The newest configuration executed, in effect or not.
    pub fn newest(&self) -> &Configuration {
        self.configurations.newest()
    }
    /// The node that may open a slot.
    pub fn owner(&self, slot: Slot) -> Node {
        self.at(slot).owner(slot)
    }
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// Nodes that are not waited for.
    pub fn suspected(&self) -> NodeSet {
        let mut set = NodeSet::EMPTY;
        for (node, peer) in self.peers.iter().enumerate() {
            if peer.suspected {
                set.insert(node as Node);
            }
        }
        set
    }
    /// The exec that a peer told last.
    pub fn peer_exec(&self, node: Node) -> Slot {
        self.peers.get(usize::from(node)).map_or(0, |peer| peer.exec)
    }
    /// When [`Input::Tick`] has something to do, if no other input comes before.
    pub fn deadline(&self) -> Option<Nanos> {
        (self.wake != NEVER).then_some(self.wake)
    }

    /// PROTOCOL 8.1-b, 8.1-c: the largest slot >= exec that this node has named, or knows decided
    /// with a batch, and that touches what `touches` says, or whose metas it lacks.
    pub fn mark(&self, touches: impl Fn(&BatchInfo) -> bool) -> Option<Slot> {
        if mutant!("marks left out") {
            return None;
        }
        let open = self.slots.iter().enumerate().rev();
        open.filter(|(_, state)| state.named_here())
            .find(|(_, state)| state.may_touch(self.queue.as_deref(), &touches))
            .map(|(index, _)| self.exec + index as Slot)
    }

    /// Whether this node holds its fragments of an unexecuted slot, or has asked the log to.
    pub fn has_segment(&self, slot: Slot) -> bool {
        self.get(slot).is_some_and(|state| state.segment == Segment::Appended)
    }

    /// What a slot in the window is known to hold.
    #[cfg(feature = "mutants")]
    pub fn decided(&self, slot: Slot) -> Option<Value> {
        self.get(slot).and_then(|state| state.decided())
    }

    /// For searches of all states: what decides what this node does, but for when and what is measured.
    #[cfg(feature = "mutants")]
    pub fn fingerprint(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        self.slots.iter().for_each(|state| state.fingerprint(hasher));
        (self.exec, self.seen, self.named, self.own_next, self.own_open).hash(hasher);
        (self.reserved, self.reserved_appended, self.unknown_next, self.unknown_end).hash(hasher);
        (self.epoch, self.fill_to, self.is_waiting_for_change, self.stopped).hash(hasher);
        self.peers.iter().for_each(|peer| (peer.exec, peer.suspected, peer.is_mute).hash(hasher));
    }

    /// Whether a slot in the window is known to hold a batch whose metas are missing here.
    pub fn lacks_meta(&self, slot: Slot) -> bool {
        self.get(slot)
            .is_some_and(|s| s.batch.is_none() && matches!(s.decided(), Some(Value::Batch(_))))
    }

    /// Feeds one input; effects are appended in the order in which they must be carried out.
    pub fn step(&mut self, input: Input, now: Nanos, effects: &mut Effects) {
        if self.stopped {
            return;
        }
        match input {
            Input::Message { from, message } => self.on_message(from, message, now, effects),
            Input::Spread { from, slot, batch, room } => {
                self.on_spread(from, slot, batch, room, now, effects)
            }
            Input::Meta { slot, batch } => self.on_meta(slot, batch),
            Input::FactsEnd { from, exec } => self.on_facts_end(from, exec, now, effects),
            Input::Ready { candidate } => self.own_ready(candidate, effects),
            Input::Open { batch } => self.open(batch, now, effects),
            Input::Durable(release) => self.on_durable(release, now, effects),
            Input::Executed { change } => self.on_executed(change, now, effects),
            Input::InUse { slot } => self.wanted(slot, now, effects),
            Input::Tick => self.tick(now, effects),
        }
        self.execute(now, effects);
    }

    fn on_message(&mut self, from: Node, message: Message, now: Nanos, effects: &mut Effects) {
        // PROTOCOL 9.3-a, 10-z: facts and questions are taken from everybody; the rest from those who
        // are, or were, members.
        let from_all = matches!(
            message,
            Message::Pull { .. }
                | Message::GetMeta { .. }
                | Message::Decide { .. }
                | Message::Seen { .. }
        );
        // Words of the other policy say nothing here.
        let of_owners = matches!(
            message,
            Message::ProposeNull { .. } | Message::Skip { .. } | Message::Opening { .. }
        );
        if self.is_queue() && of_owners {
            return;
        }
        if from == self.config.me || (usize::from(from) >= self.peers.len() && !from_all) {
            return;
        }
        // PROTOCOL 6.5-i: whoever takes part is heard, also when this node is past the slot, if it is
        // not a whole window past it. Asking and answering alone is what a node does that only
        // catches up: it need not be waited for.
        if let Message::Propose { slot: last, .. }
        | Message::ProposeNull { to: last, .. }
        | Message::Vote { slot: last, .. }
        | Message::State { slot: last, .. }
        | Message::Skip { to: last, .. } = message
            && last.saturating_add(self.config.alpha) >= self.exec
        {
            self.heard(from);
        }
        match message {
            Message::Propose { slot, value } => self.on_propose(from, slot, value, now, effects),
            Message::ProposeNull { from: first, to } => {
                self.on_propose_null(from, first, to, now, effects)
            }
            Message::Vote { slot, phase, ballot } => {
                // PROTOCOL 5.5-l: words of other terms say nothing here.
                let is_weak = matches!(ballot, crate::Ballot::Weak(_));
                if is_weak && self.config.fast == Fast::Support {
                    return;
                }
                let rivals = self.has_rivals();
                self.counted(from, slot, now, effects, |s| s.vote(from, phase, ballot, rivals));
            }
            Message::State { slot, phase, value } => {
                let rivals = self.has_rivals();
                self.counted(from, slot, now, effects, |s| s.state(from, phase, value, rivals));
            }
            Message::Decide { slot, value } => self.on_decide(slot, value, now, effects),
            Message::Skip { from: first, to } => self.on_skip(from, first, to, now, effects),
            // PROTOCOL 3.2-e: these may differ from one sending to the next; nothing is compared.
            Message::Pull { from: first, wanted, facts } => {
                self.on_pull(from, first, wanted, facts, now, effects)
            }
            Message::Seen { exec, seen } => self.on_seen(from, exec, seen, now, effects),
            Message::Ready { candidate, below } => self.on_ready(candidate, below),
            Message::Opening { slot } => self.on_opening(from, slot, now, effects),
            // PROTOCOL 12.1-g: names a slot, and decides nothing.
            Message::GetMeta { slot } => {
                self.in_use(slot, now, effects);
                effects.push(Effect::SendMeta { slot, to: from });
            }
        }
    }

    fn on_propose(&mut self, from: Node, slot: Slot, value: Value, now: Nanos, fx: &mut Effects) {
        let is_queue = self.is_queue();
        let is_operation =
            matches!(value, Value::Batch(digest) if Class::of(digest) == Class::Ready);
        if is_queue && !is_operation {
            return;
        }
        let owner_null = value == Value::Null && from == self.owner(slot) && !is_queue;
        let quorum = self.at(slot).thresholds.quorum;
        let ok = self.counted(from, slot, now, fx, |state| {
            state.propose(from, value, now, quorum, is_queue)
        });
        if ok {
            self.note_heard(from, slot, now);
        }
        if let (true, Value::Batch(candidate)) = (is_queue && !self.stopped, value) {
            return self.on_ready(candidate, slot);
        }
        if !ok || !owner_null {
            return;
        }
        // PROTOCOL 4.3-k: the owner itself does not know whether it opened the slot.
        if let Some(state) = self.get_mut(slot) {
            state.owner_null = true;
            if state.proposal.is_none() && state.decided().is_none() {
                self.wake = now;
            }
        }
    }

    fn on_propose_null(&mut self, from: Node, first: Slot, to: Slot, now: Nanos, fx: &mut Effects) {
        // PROTOCOL 9.4-c: a range reaches at most over the window: cut the rest, it is pulled again
        // later.
        let end = to.min(self.exec + self.config.alpha);
        let owner = self.owner(first);
        let mut slot = self.configurations.next_of(owner, first.max(self.exec));
        if to > end {
            self.named = self.named.max(to);
            self.lags_behind(from, to - 1, now, fx);
        }
        while slot < end {
            self.on_propose(from, slot, Value::Null, now, fx);
            slot = self.configurations.next_of(owner, slot + 1);
        }
    }

    /// Counts one PROPOSE, VOTE or STATE of a slot in the window and acts on what follows.
    pub(crate) fn counted(
        &mut self,
        from: Node,
        slot: Slot,
        now: Nanos,
        effects: &mut Effects,
        count: impl FnOnce(&mut SlotState) -> Result<(), crate::consensus::Contradiction>,
    ) -> bool {
        if slot < self.exec {
            return false;
        }
        // PROTOCOL 1-b, 1.2-a, 12.1-h: only members in the configuration of the slot count. Beyond the
        // window it may be one that is not known yet.
        if slot < self.exec + self.config.alpha && !self.at(slot).contains(from) {
            return false;
        }
        // PROTOCOL 3.3-a, 6.1-e: what lies beyond the window is evidence of lagging, nothing else.
        if !self.in_use(slot, now, effects) {
            self.lags_behind(from, slot, now, effects);
            return false;
        }
        let state = self.get_mut(slot).expect("a slot in use has a state");
        if let Err(contradiction) = count(state) {
            self.fatal(slot, contradiction, effects);
            return false;
        }
        if state.named_since.is_none() && state.consensus.candidate().is_some() {
            state.named_since = Some(now);
        }
        self.advance(slot, now, effects);
        true
    }

    /// PROTOCOL 6.5-k: a large batch takes longer than T_skip to arrive; its owner says so.
    fn on_opening(&mut self, from: Node, slot: Slot, now: Nanos, fx: &mut Effects) {
        let is_near = slot < self.exec + self.config.alpha;
        if slot < self.exec || (is_near && from != self.owner(slot)) {
            return;
        }
        self.heard(from);
        if !self.in_use(slot, now, fx) {
            return self.lags_behind(from, slot, now, fx);
        }
        self.word_of_owner(slot, from, now);
        let state = self.get_mut(slot).expect("a slot in use has a state");
        state.announced = true;
        state.named_since.get_or_insert(now);
    }

    fn on_spread(
        &mut self,
        from: Node,
        slot: Slot,
        batch: BatchInfo,
        room: bool,
        now: Nanos,
        fx: &mut Effects,
    ) {
        // PROTOCOL 5.1-a: a batch comes from its owner only.
        let is_near = slot < self.exec + self.config.alpha;
        if self.is_queue() || (is_near && from != self.owner(slot)) {
            return;
        }
        self.heard(from);
        if slot < self.exec {
            fx.push(Effect::SendFacts { from: slot, until: slot + 1, to: from });
            return self.word_came_late(from);
        }
        if !self.in_use(slot, now, fx) {
            self.lags_behind(from, slot, now, fx);
            return;
        }
        self.word_of_owner(slot, from, now);
        if mutant!("null inferred from a higher slot")
            && let Some(lower) = slot.checked_sub(self.thresholds().n as Slot)
            && let Some(state) = self.get_mut(lower)
            && state.proposal.is_none()
            && state.decided().is_none()
        {
            let _ = state.consensus.told(Value::Null);
        }
        let state = self.get_mut(slot).expect("a slot in use has a state");
        let digest = batch.digest;
        if let Err(contradiction) = state.consensus.name(Value::Batch(digest)) {
            return self.fatal(slot, contradiction, fx);
        }
        state.named_since.get_or_insert(now);
        state.batch.get_or_insert(batch);
        // PROTOCOL 12.1-e: SPREAD repeated is answered with the recorded PROPOSE, or with DECIDE.
        match (state.decided(), state.proposal) {
            (Some(value), _) => fx.send(Target::One(from), Message::Decide { slot, value }),
            (None, Some(Said { what: value, durable: true })) => {
                fx.send(Target::One(from), Message::Propose { slot, value });
            }
            (None, _) => {}
        }
        if state.segment == Segment::None && state.decided() != Some(Value::Null) {
            self.store(slot, digest, room, now, fx);
        }
    }

    /// Own fragments of a slot have come: propose 1 if nothing was proposed yet.
    fn store(&mut self, slot: Slot, digest: u128, room: bool, now: Nanos, fx: &mut Effects) {
        let speaks = self.speaks(slot);
        // PROTOCOL 6.3-c: enough others have the fragments of a batch of class R, whoever lacks them.
        let room = room || Class::of(digest) == Class::Ready;
        let state = self.get_mut(slot).expect("the caller looked");
        // PROTOCOL 10-t: an incarnation that does not count in the slot promises nothing.
        match (room, !speaks || state.proposal.is_some() || state.decided().is_some()) {
            // PROTOCOL 6.2-c, 6.2-e: PROPOSE(s, 1) means that all fragments are durable here, of class E.
            (true, false) => {
                state.segment = Segment::Appended;
                state.proposal = Some(Said { what: Value::Batch(digest), durable: false });
                state.appended_at = now;
                fx.push(Effect::Persist {
                    record: Record::Hold { slot, digest },
                    release: Release::Propose { slot, value: Value::Batch(digest) },
                });
            }
            (true, true) if mutant!("late fragments proposed") => {
                fx.push(Effect::Persist {
                    record: Record::Hold { slot, digest },
                    release: Release::Propose { slot, value: Value::Batch(digest) },
                });
            }
            // PROTOCOL 5.2-t, 5.4-c: too late to propose; kept as a record of its own kind.
            (true, true) => {
                state.segment = Segment::Appended;
                fx.push(Effect::Persist {
                    record: Record::SegmentOnly { slot, digest },
                    release: Release::Nothing,
                });
            }
            // PROTOCOL 6.2-g: no room for the fragments.
            (false, false) => self.refuse(slot, slot + 1, fx),
            (false, true) => {}
        }
    }

    /// NOHOLD and PROPOSE(s, 0) for one owner's slots in `[from, to)`, none of which has a
    /// proposal.
    pub(crate) fn refuse(&mut self, from: Slot, to: Slot, fx: &mut Effects) {
        let (owner, mut slot) = (self.owner(from), from);
        while slot < to {
            let state = self.get_mut(slot).expect("a refused slot is in the window");
            // PROTOCOL 4.1-e, 5.2-a: one PROPOSE of a slot, fixed when its record is appended.
            assert!(state.proposal.is_none(), "slot {slot} was proposed already");
            state.proposal = Some(Said { what: Value::Null, durable: false });
            slot = self.configurations.next_of(owner, slot + 1);
        }
        fx.push(Effect::Persist {
            record: Record::NoHold { from, to },
            release: Release::ProposeNull { from, to },
        });
    }

    fn on_meta(&mut self, slot: Slot, batch: BatchInfo) {
        let Some(state) = self.get_mut(slot) else { return };
        // PROTOCOL 3.1-f, 9.3-c
        // Only the batch that consensus names is of use; another one is a stale or hostile answer.
        if state.batch.is_none() && state.consensus.candidate() == Some(batch.digest) {
            state.batch = Some(batch);
        }
    }

    /// PROTOCOL 4.1-f: what was appended is flushed; from now on it counts, here and elsewhere.
    fn on_durable(&mut self, release: Release, now: Nanos, fx: &mut Effects) {
        let me = self.config.me;
        match release {
            Release::Nothing => {}
            Release::Reserve { to } => {
                self.reserved = self.reserved.max(to);
                self.skip_own(fx);
            }
            // PROTOCOL 4.1-a, 6.2-d: to all, the owner's own too.
            Release::Propose { slot, value } => {
                let Some(state) = self.get_mut(slot) else { return };
                state.proposal = Some(Said { what: value, durable: true });
                let cost = now.saturating_sub(state.appended_at);
                self.flush_cost.observe(cost);
                fx.send(Target::Others, Message::Propose { slot, value });
                let (quorum, is_queue) = (self.at(slot).thresholds.quorum, self.is_queue());
                self.counted(me, slot, now, fx, |s| s.propose(me, value, now, quorum, is_queue));
            }
            Release::ProposeNull { from, to } => self.null_durable(from, to, now, fx),
            // PROTOCOL 4.1-b
            Release::Vote { slot, phase, ballot } => {
                if self.step_durable(slot, Step::Vote(phase, ballot)) {
                    fx.send(Target::Others, Message::Vote { slot, phase, ballot });
                    let rivals = self.has_rivals();
                    self.counted(me, slot, now, fx, |s| s.vote(me, phase, ballot, rivals));
                }
            }
            // PROTOCOL 4.1-c
            Release::State { slot, phase, value } => {
                if self.step_durable(slot, Step::State(phase, value)) {
                    fx.send(Target::Others, Message::State { slot, phase, value });
                    let rivals = self.has_rivals();
                    self.counted(me, slot, now, fx, |s| s.state(me, phase, value, rivals));
                }
            }
        }
    }

    fn null_durable(&mut self, from: Slot, to: Slot, now: Nanos, fx: &mut Effects) {
        let (me, owner) = (self.config.me, self.owner(from));
        // PROTOCOL 5.4-d, 9.1-f: nothing but facts is sent of slots below exec.
        let first = self.configurations.next_of(owner, from.max(self.exec));
        if first >= to {
            return;
        }
        fx.send(Target::Others, Message::ProposeNull { from: first, to });
        let mut slot = first;
        while slot < to {
            if let Some(state) = self.get_mut(slot) {
                state.proposal = Some(Said { what: Value::Null, durable: true });
            }
            let quorum = self.at(slot).thresholds.quorum;
            let null = Value::Null;
            self.counted(me, slot, now, fx, |s| s.propose(me, null, now, quorum, false));
            slot = self.configurations.next_of(owner, slot + 1);
        }
    }

    fn step_durable(&mut self, slot: Slot, step: Step) -> bool {
        let Some(state) = self.get_mut(slot) else { return false };
        let said = state.steps.iter_mut().find(|said| said.what == step);
        said.expect("a step that was flushed was appended").durable = true;
        true
    }

    /// What the waiting rule goes by now: the same for every slot until one is decided.
    pub(crate) fn waiting_rule(&self, now: Nanos) -> Waiting {
        Waiting {
            now,
            suspected: self.not_awaited(),
            vote_wait: self.vote_wait(),
            support_wait: self.config.timing.support_wait,
        }
    }

    /// PROTOCOL 5.2: says whatever the messages counted so far call for.
    pub(crate) fn advance(&mut self, slot: Slot, now: Nanos, fx: &mut Effects) {
        self.advance_by(slot, self.waiting_rule(now), fx);
    }

    /// The same where the waiting rule is known already. Whether that decided the slot.
    pub(crate) fn advance_by(&mut self, slot: Slot, waiting: Waiting, fx: &mut Effects) -> bool {
        let now = waiting.now;
        if !self.speaks(slot) {
            return self.follow(slot, now, fx);
        }
        loop {
            let Some(index) = self.index(slot) else { return false };
            let state = &mut self.slots[index];
            let thresholds = &self.configurations.at(slot).thresholds;
            let SlotState { consensus, contest, .. } = state;
            let action = match contest {
                Some(contest) => {
                    contest.advance(consensus, slot, &self.config, thresholds, waiting)
                }
                None => consensus.advance(slot, &self.config, thresholds, waiting),
            };
            match action {
                Ok(Action::Nothing) => return false,
                Ok(Action::WaitUntil(at)) => {
                    self.wake = self.wake.min(at);
                    return false;
                }
                Ok(Action::Vote { phase, ballot }) => {
                    state.steps.push(Said { what: Step::Vote(phase, ballot), durable: false });
                    if mutant!("own vote counted before its flush") {
                        let me = self.config.me;
                        let _ = state.consensus.vote(me, phase, ballot);
                    }
                    self.counters.votes += 1;
                    fx.push(Effect::Persist {
                        record: Record::Vote { slot, phase, ballot },
                        release: Release::Vote { slot, phase, ballot },
                    });
                }
                Ok(Action::State { phase, value }) => {
                    state.steps.push(Said { what: Step::State(phase, value), durable: false });
                    fx.push(Effect::Persist {
                        record: Record::State { slot, phase, value },
                        release: Release::State { slot, phase, value },
                    });
                }
                Ok(Action::Decided(decision)) => {
                    self.note_decision(slot, decision.value, decision.path, now);
                    return true;
                }
                Err(contradiction) => {
                    self.fatal(slot, contradiction, fx);
                    return false;
                }
            }
        }
    }

    /// PROTOCOL 10-t: decides with the others and says nothing.
    fn follow(&mut self, slot: Slot, now: Nanos, fx: &mut Effects) -> bool {
        let Some(index) = self.index(slot) else { return false };
        let thresholds = &self.configurations.at(slot).thresholds;
        let SlotState { consensus, contest, .. } = &mut self.slots[index];
        let followed = match contest {
            Some(contest) => contest.follow(consensus, thresholds),
            None => consensus.follow(thresholds),
        };
        match followed {
            Ok(Some(decision)) => {
                self.note_decision(slot, decision.value, decision.path, now);
                return true;
            }
            Ok(None) => {}
            Err(contradiction) => self.fatal(slot, contradiction, fx),
        }
        false
    }

    /// PROTOCOL 9.3-a: a fact, whichever node of the cluster states it.
    fn on_decide(&mut self, slot: Slot, value: Value, now: Nanos, fx: &mut Effects) {
        if slot < self.exec || !self.in_use(slot, now, fx) {
            return;
        }
        let state = self.get_mut(slot).expect("a slot in use has a state");
        match state.consensus.told(value) {
            Ok(true) => self.note_decision(slot, value, Path::Told, now),
            Ok(false) => {}
            Err(contradiction) => self.fatal(slot, contradiction, fx),
        }
    }

    pub(crate) fn index(&self, slot: Slot) -> Option<usize> {
        let index = usize::try_from(slot.checked_sub(self.exec)?).ok()?;
        (index < self.slots.len()).then_some(index)
    }
    pub(crate) fn get(&self, slot: Slot) -> Option<&SlotState> {
        self.index(slot).map(|index| &self.slots[index])
    }
    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut SlotState> {
        self.index(slot).map(|index| &mut self.slots[index])
    }

    /// PROTOCOL 3.2-c, 3.2-d, 13-a, 13-b: nobody may build on what this node does after this.
    pub(crate) fn fatal(
        &mut self,
        slot: Slot,
        contradiction: crate::consensus::Contradiction,
        fx: &mut Effects,
    ) {
        self.stopped = true;
        fx.push(Effect::Fatal(format!("slot {slot}: {}", contradiction.0)));
    }
}
