//! One node: its parts, and the turn of its loop.
//!
//! A turn drains the network, reaps the disk, opens own slots, sends everything in as few system
//! calls as the link can, then starts the next group commit. Nothing in it waits.

use crate::addresses::Addresses;
use crate::admission::{Admission, Notes};
use crate::ahead::{Ahead, HeldBatches};
use crate::api::Api;
use crate::assign::Assign;
use crate::batch::{Batch, Builder, LARGE_BATCH_BYTES, Parcel, Waiter};
use crate::checkpoint::Checkpoints;
use crate::compare::States;
use crate::config::NodeConfig;
use crate::expiry::Expiry;
use crate::facts::FactsJobs;
use crate::fragments::Fragments;
use crate::history::History;
use crate::hosting::Hosting;
use crate::journal::Journal;
use crate::keep::Keep;
use crate::margin::Margin;
use crate::observe::Observer;
use crate::placement::Codecs;
use crate::put_off::{PutOff, Question};
use crate::queued::Queued;
use crate::reads::Reads;
use crate::reclaim::Reclaim;
use crate::recode::Recode;
use crate::record::DecidedRun;
use crate::repair::Repair;
use crate::replay::HEAD_ROOM;
use crate::rollback::{LogEnd, LogEnds};
use crate::runtime::Usage;
use crate::scrub::{Noted, Scrub};
use crate::secrets::Secrets;
use crate::snap::Snaps;
use crate::status::RequestCounts;
use crate::wire::client::{self, ErrorCode, RequestError};
use crate::wire::cursor::Reader;
use crate::wire::node::{get_message, kind, put_message};
use racos_buffer::{Pool, Slice};
use racos_codec::Codec;
use racos_machine::{MEMBERS_MAX, Machine, OpId};
use racos_net::{Link, Message as Frame, Transport};
use racos_protocol::{
    ConfigError, Core, Effect, Effects, Input, Membership, Message, Nanos, NodeSet, Slot, Target,
};
use racos_storage::device::Device;
use racos_storage::{Class, Full, Log, LogError, Place};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

/// Why a node cannot start.
#[derive(Debug)]
pub enum OpenError {
    Config(ConfigError),
    Codec(racos_codec::CodecError),
    Log(LogError),
    /// A record has a good checksum and makes no sense: written by another version, or by nobody.
    Record(String),
}

impl fmt::Display for OpenError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Config(error) => write!(out, "{error}"),
            OpenError::Codec(error) => write!(out, "{error}"),
            OpenError::Log(error) => write!(out, "{error}"),
            OpenError::Record(what) => write!(
                out,
                "the log holds a record this version cannot use: {what}; run the version that \
                 wrote it, or replace the node with `racos member replace`"
            ),
        }
    }
}

impl std::error::Error for OpenError {}

/// A batch of a slot that is not executed.
pub(crate) struct Known {
    pub batch: Rc<Batch>,
    /// A record with the batch was handed to the log; where it lies, once that is known.
    pub recorded: bool,
    pub place: Option<Place>,
}

/// A batch that has just arrived, until the core has said what becomes of it.
pub(crate) struct Arrived {
    pub slot: Slot,
    pub head: Slice,
    pub body: Slice,
}

/// Counts of what a node has not finished.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnderWay {
    pub requests: usize,
    pub reads: usize,
    /// Own batches not executed, and records that wait for the disk.
    pub batches: usize,
    pub records: usize,
    pub disk_reads: usize,
    /// Records and reads of copies from segments of little use, which go on in an idle cluster.
    pub copies: usize,
    /// Fragments that this node lacks.
    pub missing: usize,
    /// Bytes of large messages that nobody has acknowledged yet.
    pub sending: usize,
}

/// One racos node over a link and a device.
pub struct Node<L: Link, D: Device> {
    pub(crate) config: NodeConfig,
    pub(crate) me: u8,
    pub(crate) core: Core,
    pub(crate) machine: Machine,
    pub(crate) log: Log<D>,
    pub(crate) net: Transport<L>,
    pub(crate) pool: Pool,
    pub(crate) secrets: Secrets,
    pub(crate) codecs: Codecs,
    pub(crate) addresses: Addresses,
    /// See [`Node::others`].
    pub(crate) others: NodeSet,
    pub(crate) boot: u32,
    pub(crate) next_op: u64,
    pub(crate) builder: Builder,
    /// Batches ready to be opened, oldest first, and their bytes.
    pub(crate) sealed: VecDeque<Parcel>,
    pub(crate) opening: Option<Parcel>,
    /// Own batches opened and not executed.
    pub(crate) open: FxHashMap<Slot, Parcel>,
    pub(crate) window: FxHashMap<Slot, Known>,
    /// Batches stored without a slot, and own ones on their way to be.
    pub(crate) ahead: Ahead,
    pub(crate) assign: Assign,
    /// The same under the queue policy.
    pub(crate) queued: Queued,
    pub(crate) expiry: Expiry,
    pub(crate) arrived: Option<Arrived>,
    pub(crate) fragments: Fragments,
    pub(crate) keep: Keep,
    pub(crate) history: History,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) reclaim: Reclaim,
    pub(crate) snaps: Snaps,
    pub(crate) admission: Admission,
    pub(crate) decided: DecidedRun,
    effects: Effects,
    inbox: Vec<Frame>,
    /// Encoded core messages for all other nodes, and for each.
    out_all: Vec<u8>,
    out_one: Vec<Vec<u8>>,
    /// For whom there are some of the latter.
    out_some: NodeSet,
    /// Something among them cannot wait for the flush that is under way.
    out_urgent: bool,
    pub(crate) journal: Journal,
    pub(crate) reads: Reads,
    pub(crate) repair: Repair,
    pub(crate) recode: Recode,
    pub(crate) margin: Margin,
    pub(crate) hosting: Hosting,
    pub(crate) scrub: Scrub,
    pub(crate) api: Api<L, D>,
    /// The highest slot executed with a batch; after a restart, a slot that is not lower.
    pub(crate) last_batch: Option<Slot>,
    pub(crate) facts: FactsJobs,
    pub(crate) put_off: PutOff,
    /// Requests under way, by (client, request).
    pub(crate) requests: FxHashSet<(u64, u64)>,
    /// Own slots that another node could not store for want of space.
    pub(crate) refused_for_space: FxHashSet<Slot>,
    pub(crate) counts: RequestCounts,
    pub(crate) heard_at: Vec<Option<Nanos>>,
    pub(crate) log_ends: LogEnds,
    pub(crate) states: States,
    pub(crate) now: Nanos,
    pub(crate) started: Nanos,
    pub(crate) scratch: Vec<u8>,
    pub(crate) released: Vec<OpId>,
    last_work: Nanos,
    beacon_at: Nanos,
    beacons: u64,
    pub(crate) stalled_check_at: Nanos,
    pub(crate) rebuilt_at: Nanos,
    confirmed: bool,
    failed: Option<String>,
    pub(crate) observer: Option<Box<dyn Observer>>,
    /// What `Status::runtime` says.
    pub runtime_words: String,
    /// Where `Status` has CPU time and memory from; nowhere, unless the node is a process.
    pub usage: fn() -> Usage,
}

/// What a turn of the loop did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub busy: bool,
    /// Nothing more waits in the socket, as far as is known.
    pub drained: bool,
}

/// Parts of a node that replay has made.
pub(crate) struct Parts<L: Link, D: Device> {
    pub core: Core,
    pub machine: Machine,
    pub log: Log<D>,
    pub net: Transport<L>,
    pub codec: Codec,
    pub secrets: Secrets,
    pub fragments: Fragments,
    pub history: History,
    pub checkpoints: Checkpoints,
    pub window: FxHashMap<Slot, Known>,
    pub held: HeldBatches,
    pub boot: u32,
    /// Values of which no fragment was found, and some that turned out to be of no use.
    pub absent: Vec<OpId>,
    pub notes: Notes,
    /// How far the scrub was.
    pub scrubbed: Noted,
    pub peer_ends: Vec<LogEnd>,
    pub observer: Option<Box<dyn Observer>>,
}

/// Messages for the others are sent at the latest when so many bytes are waiting.
const OUT_BYTES_MAX: usize = 16 << 10;
/// How often a node tells the others where it is, so that one that missed the last message of a
/// burst learns of it without traffic.
const BEACON_NS: Nanos = 500_000_000;
/// A log without work for this long confirms its last group.
const IDLE_CONFIRM_NS: Nanos = 200_000_000;
/// Turns of receiving before the disk gets its turn.
const RECEIVE_ROUNDS: usize = 4;
const RECEIVE_FULL: usize = 64;

impl<L: Link, D: Device> Node<L, D> {
    pub(crate) fn assemble(
        config: NodeConfig,
        pool: Pool,
        parts: Parts<L, D>,
        now: Nanos,
    ) -> Node<L, D> {
        let n = config.members.len();
        let last_batch = parts.core.exec().checked_sub(1);
        let mut builder = Builder::new(
            n,
            parts.codec.clone(),
            config.inline_bytes_max,
            LARGE_BATCH_BYTES.min(config.bounds.value_bytes_max),
            parts.secrets.clone(),
            pool.clone(),
        );
        if config.keeps_margin {
            builder.keep_margin(config.bounds.segment_bytes as usize / 4 - HEAD_ROOM);
        }
        let (reserved, policy) = (parts.core.reservation(), config.policy);
        let scrub = Scrub::new(parts.scrubbed, parts.checkpoints.begun(), now);
        let found = parts.log.last_record();
        let mut node = Node {
            me: config.node,
            core: parts.core,
            machine: parts.machine,
            log: parts.log,
            net: parts.net,
            pool,
            secrets: parts.secrets,
            addresses: Addresses::founding(&config.members),
            others: NodeSet::EMPTY,
            codecs: Codecs::new(parts.codec),
            boot: parts.boot,
            next_op: 0,
            builder,
            sealed: VecDeque::new(),
            opening: None,
            open: FxHashMap::default(),
            window: parts.window,
            ahead: Ahead::new(parts.held),
            assign: Assign::new(reserved, policy),
            queued: Queued::default(),
            expiry: Expiry::default(),
            arrived: None,
            fragments: parts.fragments,
            keep: Keep::default(),
            history: parts.history,
            checkpoints: parts.checkpoints,
            reclaim: Reclaim::default(),
            snaps: Snaps::default(),
            admission: Admission::new(parts.notes),
            decided: DecidedRun::default(),
            effects: Effects::default(),
            inbox: Vec::new(),
            out_all: Vec::new(),
            out_one: vec![Vec::new(); MEMBERS_MAX],
            out_some: NodeSet::EMPTY,
            out_urgent: false,
            journal: Journal::new(now),
            // PROTOCOL 3.1-c: no read id of an earlier boot.
            reads: Reads::new(u64::from(parts.boot) << 40),
            repair: Repair::default(),
            recode: Recode::default(),
            margin: Margin::new(&config),
            hosting: Hosting::new(config.bounds.hosting_bytes_max),
            scrub,
            api: Api::new(u64::from(parts.boot) << 40, config.seed),
            last_batch,
            facts: FactsJobs::default(),
            put_off: PutOff::default(),
            requests: FxHashSet::default(),
            refused_for_space: FxHashSet::default(),
            counts: RequestCounts::default(),
            heard_at: vec![None; MEMBERS_MAX],
            log_ends: LogEnds::new(found, parts.peer_ends),
            states: States::default(),
            now,
            started: now,
            scratch: Vec::new(),
            released: Vec::new(),
            last_work: now,
            beacon_at: now + BEACON_NS,
            beacons: 0,
            stalled_check_at: now + BEACON_NS,
            rebuilt_at: now,
            confirmed: false,
            failed: None,
            observer: parts.observer,
            runtime_words: String::new(),
            usage: Usage::default,
            config,
        };
        node.history.drop_gone(|segment| node.log.holds(segment));
        node.learn_members();
        node.list_missing_of_these(parts.absent);
        node.restart_leases();
        node.queue_held();
        node.enter();
        node.check_seat();
        node
    }

    /// The core begins to speak.
    pub(crate) fn start_core(&mut self) {
        self.core.start(self.now, &mut self.effects);
        self.carry_out();
    }

    /// All slots below are executed here.
    pub fn exec(&self) -> Slot {
        self.core.exec()
    }
    pub fn core(&self) -> &Core {
        &self.core
    }
    pub fn machine(&self) -> &Machine {
        &self.machine
    }
    pub fn log(&self) -> &Log<D> {
        &self.log
    }
    pub fn log_mut(&mut self) -> &mut Log<D> {
        &mut self.log
    }
    pub fn net(&self) -> &Transport<L> {
        &self.net
    }
    /// Why the node must stop, if it must.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }
    /// What is under way: nothing, once every request is answered and every slot executed.
    pub fn under_way(&self) -> UnderWay {
        let (copied, is_copying) = (self.reclaim.unplaced(), self.reclaim.is_reading());
        let upkeep_reads = usize::from(self.scrub.is_reading()) + usize::from(is_copying);
        UnderWay {
            requests: self.requests.len() + self.api.len(),
            reads: self.reads.len(),
            batches: self.open.len()
                + self.sealed.len()
                + self.assign.len()
                + usize::from(self.opening.is_some()),
            records: self.journal.records() - copied,
            disk_reads: self.journal.reads_under_way() - upkeep_reads,
            copies: copied + usize::from(is_copying),
            missing: self.repair.missing.len(),
            sending: self.net.pending_bytes_of_all(),
        }
    }
    /// What is wrong with this node, in words for the person who runs it.
    pub fn problem(&self) -> Option<String> {
        let hangs = self.disk_hangs_ns().map(|ns| {
            format!(
                "the disk has completed nothing for {} ms: this node promises nothing and serves no \
                 client until it goes on; look at the disk, or replace the node with `racos member \
                 replace`",
                ns / 1_000_000
            )
        });
        let hangs = hangs.or_else(|| self.state_problem());
        hangs.or_else(|| self.waits_for()).or_else(|| self.scrub.danger())
    }

    /// States taken from peers since the start.
    pub fn jumps(&self) -> u64 {
        self.snaps.installed
    }
    /// Whether a peer's state is on its way in.
    pub fn takes_state(&self) -> bool {
        self.snaps.fetching().is_some() || self.checkpoints.takes_peers()
    }
    /// Whether this node has its fragment of what an operation stored, in memory or in the log.
    pub fn has_fragment(&self, op: OpId) -> bool {
        self.fragments.contains(op)
    }

    /// Fragments that this node has, those of values included that went and are being forgotten.
    pub fn fragments_len(&self) -> usize {
        self.fragments.len()
    }

    /// Where this node's fragment lies in the log: for tests that damage it.
    pub fn fragment_place(&self, op: OpId) -> Option<Place> {
        self.fragment_stored(op).map(|(place, _)| place)
    }

    /// The same with the checksum that it must have.
    pub fn fragment_stored(&self, op: OpId) -> Option<(Place, u32)> {
        self.fragments.place(op)
    }

    /// One turn, and its work for the disk handed to the kernel. Returns whether anything was done.
    pub fn poll(&mut self, now: Nanos) -> bool {
        let busy = self.turn(now).busy;
        self.log.submit();
        busy
    }

    /// One turn; what it started on the disk waits for `Log::submit`, or for the call that sleeps.
    /// If the network is drained, the loop may sleep until the socket or the disk has something, or
    /// [`Node::deadline`].
    pub fn turn(&mut self, now: Nanos) -> Turn {
        if self.failed.is_some() {
            return Turn { busy: false, drained: true };
        }
        self.begin_turn(now);
        let (received, drained) = self.receive();
        let completed = self.reap();
        if !self.takes_part() {
            self.admission_turn();
            self.send_all();
            self.log.kick();
            return Turn { busy: received || completed, drained };
        }
        // Timers judge what did not come: first everything that has come must be taken in.
        if drained && self.core.deadline().is_some_and(|at| at <= now) {
            self.step(Input::Tick);
        }
        self.wake_reads();
        self.repair_turn();
        self.propose_rebuilt();
        self.margin_turn();
        self.recode_turn();
        self.expiry_turn();
        let served = self.turn_api();
        self.keep_turn();
        self.assign_turn();
        self.take_over_turn();
        self.open_batches();
        self.settle_ahead();
        self.answer_stalled();
        if now >= self.beacon_at {
            self.beacon_at = now + BEACON_NS;
            let (exec, seen) = (self.core.exec(), self.core.seen());
            self.queue_message(Target::Others, &Message::Seen { exec, seen });
            self.beacons += 1;
            let now_and_then = self.beacons % 4 == 1;
            self.say_hello_again(now_and_then);
            self.tell_log_end();
            self.tell_state();
            self.note_log_ends();
            if now_and_then {
                self.say_face();
            }
            self.say_floor();
            let is_told = usize::from(self.me) < self.core.seats().len() && self.hears_any();
            if !self.core.is_active() && !is_told {
                // PROTOCOL 10-m: nobody tells one that is no member yet what it misses.
                let asked = Message::Pull { from: exec, wanted: 0, facts: false };
                self.queue_message(Target::Others, &asked);
            }
            self.look_elsewhere();
            self.ask_contacts();
        }
        self.snapshot_turn();
        self.checkpoint_turn();
        self.reclaim_turn();
        self.scrub_turn();
        self.send_all();
        let busy = received || completed || served;
        if busy || self.log.is_busy() {
            self.last_work = now;
            self.confirmed = false;
        } else if !self.confirmed && now >= self.last_work + IDLE_CONFIRM_NS {
            // PROTOCOL 4.4-f
            self.log.idle_confirm();
            self.confirmed = true;
        }
        self.log.kick();
        Turn { busy, drained }
    }

    /// When the node has something to do even if nothing comes; `None`: never.
    pub fn deadline(&self) -> Option<Nanos> {
        if !self.takes_part() {
            return [self.net.next_deadline_ns(), Some(self.admission.ask_at())]
                .into_iter()
                .flatten()
                .min();
        }
        let idle = (!self.confirmed).then_some(self.last_work + IDLE_CONFIRM_NS);
        let waiting = !self.nothing_unappended()
            || self.assign.has_turn()
            || (!self.sealed.is_empty() && self.core.can_open().is_some());
        let retry = waiting.then_some(self.now + 1_000_000);
        let beacon = (!self.others.is_empty()).then_some(self.beacon_at);
        [
            beacon,
            self.core.deadline(),
            self.net.next_deadline_ns(),
            self.reads.deadline(),
            self.assign.deadline(),
            self.queued.deadline(),
            self.repair.deadline(),
            self.recode.deadline(),
            self.margin.deadline(),
            self.expiry.deadline(self.config.bounds.session_idle_ns),
            self.api.deadline(),
            self.keep.deadline(),
            idle,
            retry,
            self.checkpoints.deadline(self.now, self.fragments.are_leaving()),
            self.reclaim_deadline(),
            self.scrub.deadline(self.now, self.config.bounds.scrub_ns),
            self.snaps.deadline(self.now),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn receive(&mut self) -> (bool, bool) {
        let mut any = false;
        for _ in 0..RECEIVE_ROUNDS {
            let mut inbox = std::mem::take(&mut self.inbox);
            let got = self.net.receive(self.now, &mut inbox);
            any |= got > 0;
            for frame in inbox.drain(..) {
                self.on_frame(frame);
            }
            self.inbox = inbox;
            if got < RECEIVE_FULL {
                return (any, true);
            }
        }
        (any, false)
    }

    fn on_frame(&mut self, frame: Frame) {
        let Some(node) = frame.from.node else {
            if frame.kind == client::kind::REQUEST {
                self.on_request(frame);
            }
            return;
        };
        if usize::from(node) >= MEMBERS_MAX || node == u16::from(self.me) {
            return;
        }
        let from = node as u8;
        let incarnation = frame.from.incarnation;
        // A disk shows itself before anything else of it counts.
        match frame.kind {
            kind::HELLO => return self.on_hello(from, &frame),
            kind::KNOWN => return self.on_known(from, &frame.head),
            kind::REPLACED => return self.on_replaced(&frame.head),
            kind::LONGER => return self.on_longer(from, &frame.head),
            _ if !self.takes_part() => return self.meet(from, frame.from.address),
            _ if !self.shares_terms(&frame) => return,
            _ => {}
        }
        if !self.is_peer(from, incarnation, frame.from.boot, frame.from.address) {
            return;
        }
        match frame.kind {
            kind::CORE => self.on_core(from, incarnation, &frame.head),
            kind::SPREAD => self.on_spread(from, frame),
            kind::STORE => self.on_store(from, frame),
            kind::STORED => self.on_stored(from, incarnation, &frame.head),
            kind::ASKSTORED => self.on_ask_stored(from, &frame.head),
            kind::FLOOR => self.on_floor(from, incarnation, &frame.head),
            kind::PIN => self.on_pin(from, incarnation, &frame.head),
            kind::META => self.on_meta(&frame),
            kind::FACTS => self.on_facts(from, &frame),
            kind::SNAPOFFER => self.on_snapshot_offer(from, &frame),
            kind::SNAPQ => self.on_snapshot_question(from, &frame),
            kind::SNAP => self.on_snapshot_piece(from, &frame),
            kind::READQ => self.on_read_question(from, &frame),
            kind::READR => self.on_read_answer(from, &frame),
            kind::GETSEG | kind::GETOWN => self.on_segment_question(from, &frame),
            kind::SEG => self.on_segment_answer(from, &frame),
            kind::FULL => self.on_full(from, &frame.head),
            kind::BOOT => self.on_boot(&frame.head),
            kind::LOGGED => {
                self.on_log_end(from, incarnation, frame.from.boot, &frame.head);
            }
            kind::STATES => self.on_states(from, incarnation, &frame.head),
            kind::BAD => self.on_bad_fragment(&frame.head),
            // PROTOCOL 8.1-f, 10-x: asked and answered by those that count before and after a change.
            kind::PINQ | kind::LEASEQ if !self.core.may_answer() => {}
            kind::PINR | kind::LEASER
                if self.core.reads_count(from, incarnation) != (true, true) => {}
            kind::PINQ => self.on_pin_question(from, &frame),
            kind::PINR => self.on_pin_answer(from, &frame),
            kind::LEASEQ => self.on_lease_question(from, &frame),
            kind::LEASER => self.on_lease_answer(from, &frame),
            kind::FACE => self.on_face(from, &frame.head),
            _ => {}
        }
    }

    fn on_core(&mut self, from: u8, incarnation: u32, bytes: &[u8]) {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let Ok(message) = get_message(&mut reader) else { return };
            if let Message::Seen { exec, seen } = message {
                self.admission.tells_exec(from, exec, self.now);
                self.addresses.told(exec.max(seen));
            }
            if self.core.hears(from, incarnation, &message) {
                self.step(Input::Message { from, message });
            }
        }
    }

    /// The core goes on behind a state that was taken from a peer.
    pub(crate) fn jump_core(&mut self, exec: Slot, to: Membership, told_by: u8) {
        self.core.jump(exec, to, told_by, self.now, &mut self.effects);
        self.carry_out();
    }

    /// Feeds the core and carries out what it says.
    pub(crate) fn step(&mut self, input: Input) {
        self.core.step(input, self.now, &mut self.effects);
        self.carry_out();
        #[cfg(feature = "mutants")]
        self.acknowledge_early();
    }

    fn carry_out(&mut self) {
        let mut list = std::mem::take(&mut self.effects.list);
        for effect in list.drain(..) {
            match effect {
                Effect::Persist { record, release } => self.persist(record, release),
                Effect::Send { to, message } => self.queue_message(to, &message),
                Effect::Opened { slot } => self.opened(slot),
                Effect::Chosen { slot, candidate } => self.chosen(slot, candidate),
                Effect::SpreadAgain { slot, to } => self.spread_again(slot, to),
                Effect::SendMeta { slot, to } => self.on_question(Question::Meta { to, slot }),
                Effect::SendFacts { from, until, to } => {
                    self.on_question(Question::Facts { to, from, until });
                }
                Effect::Apply { slot, value } => self.apply(slot, value),
                Effect::Void { slot } => self.void(slot),
                Effect::Fatal(what) => self.fail(format!("invariant broken: {what}")),
            }
        }
        self.effects.list = list;
        if !self.queued.chosen.is_empty() {
            self.take_chosen();
        }
        if self.out_all.len() > OUT_BYTES_MAX {
            self.send_core_messages();
        }
        self.wake_executed();
    }

    pub(crate) fn queue_message(&mut self, to: Target, message: &Message) {
        // PROTOCOL 6.1-i: a SKIP may go together with the PROPOSE, which a flush releases soon.
        self.out_urgent |= !matches!(message, Message::Skip { .. });
        match to {
            Target::Others => put_message(&mut self.out_all, message),
            Target::One(node) => {
                self.out_some.insert(node);
                put_message(&mut self.out_one[usize::from(node)], message);
            }
        }
    }

    pub(crate) fn fail(&mut self, why: String) {
        self.failed.get_or_insert(why);
    }

    fn open_batches(&mut self) {
        if !self.core.is_active() {
            // PROTOCOL 10-r: what waited here is not opened any more.
            self.sealed.extend(self.builder.seal());
            for parcel in std::mem::take(&mut self.sealed) {
                self.give_up_changed(parcel);
            }
            for parcel in self.assign.take_if(|_| true) {
                self.give_up_changed(parcel);
            }
            return;
        }
        // PROTOCOL 6.1-b: what has come by now is the next batch.
        while let Some(slot) = self.core.can_open()
            && self.log_has_room()
        {
            let Some(parcel) = self.sealed.pop_front().or_else(|| self.builder.seal()) else {
                return;
            };
            // PROTOCOL 10-w
            if parcel.layout != self.machine.members().layout_at(slot) {
                self.give_up_changed(parcel);
                continue;
            }
            if parcel.batch.is_ready() && !self.may_assign(&parcel, slot) {
                self.begin_store(parcel);
                continue;
            }
            // PROTOCOL 6.2-i
            if parcel.batch.is_guarded() && !self.guards_allow(&parcel.batch.ops) {
                let text = "a lease was renewed just before its end".into();
                self.give_up(parcel, &RequestError { code: ErrorCode::Unavailable, text });
                continue;
            }
            if parcel.batch.is_ready() {
                self.assign.opened(slot);
            }
            let batch = parcel.batch.info.clone();
            self.opening = Some(parcel);
            self.step(Input::Open { batch });
        }
    }

    /// Whether the log takes another batch. If it is only behind, what waits is opened later; a full
    /// disk is reported by `write_op`, and what is here already may still use the reserve.
    pub(crate) fn log_has_room(&mut self) -> bool {
        let room = self.log.accepts(OUT_BYTES_MAX, OUT_BYTES_MAX, Class::Ordinary);
        matches!(room, Ok(()) | Err(Full::Disk))
    }

    fn send_core_messages(&mut self) {
        let to_all = if self.out_all.is_empty() { NodeSet::EMPTY } else { self.others };
        for node in to_all.union(std::mem::take(&mut self.out_some)).iter() {
            let one = usize::from(node);
            let all: &[u8] = if to_all.contains(node) { &self.out_all } else { &[] };
            for bytes in [all, &self.out_one[one]] {
                if let Some(to) = self.addresses.get(node)
                    && !bytes.is_empty()
                {
                    // A datagram that is lost is asked for again (PROTOCOL 12).
                    let _ = self.net.send(to, kind::CORE, bytes, &[], self.now);
                }
            }
            self.out_one[one].clear();
        }
        self.out_all.clear();
        self.out_urgent = false;
    }

    fn send_all(&mut self) {
        if self.out_urgent || !self.log.is_busy() {
            self.send_core_messages();
        }
        self.net.flush(self.now);
    }

    /// Sends to another node; what is lost is asked for again.
    pub(crate) fn send(&mut self, to: u8, kind: u8, head: &[u8], body: &[Slice]) {
        let Some(address) = self.address(to) else { return };
        let _ = self.net.send(address, kind, head, body, self.now);
    }

    /// Answers a client; what is lost it asks for again.
    pub(crate) fn reply(&mut self, waiter: &Waiter, reply: &client::Reply, body: &[Slice]) {
        let (to, client, request) = match *waiter {
            Waiter::Client { to, client, request } => (to, client, request),
            Waiter::Api(task) => return self.api_reply(task, reply, body),
            Waiter::Recode(number) => return self.recode_reply(number, reply, body),
        };
        self.requests.remove(&(client, request));
        if matches!(reply, client::Reply::Error(_)) {
            self.counts.failed += 1;
        }
        let mut head = std::mem::take(&mut self.scratch);
        head.clear();
        reply.put(client, request, &mut head);
        let _ = self.net.send(to, client::kind::REPLY, &head, body, self.now);
        self.scratch = head;
    }
}
