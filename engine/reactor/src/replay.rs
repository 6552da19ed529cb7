//! Restart from disk (PROTOCOL 9.1): the log read once, in order, gives the node back.
//!
//! It is read from the place that the newest checkpoint needs, or from its beginning while there is
//! none. Until the last piece of that checkpoint is met, records are only collected, as they are
//! (`collected`); then the state is there, and they are applied.
//!
//! Invariant: the state machine gets exactly the decided batches in slot order, from the
//! checkpoint's exec on; what the node said in undecided slots is in the core again before anything
//! is sent.

use crate::admission::{self, Notes};
use crate::ahead::{self, Held, HeldBatches};
use crate::batch::Batch;
use crate::checkpoint::{Checkpoints, OWN_ENTRY, Piece, Snapshot, get_place, load_history};
use crate::collected::Collected;
use crate::config::NodeConfig;
use crate::fragments::{Fragments, UNASSIGNED};
use crate::history::{History, NULL};
use crate::jump;
use crate::layout;
use crate::members;
use crate::node::{Known, Node, OpenError, Parts};
use crate::observe::Observer;
use crate::record::{self, DecidedRun, get_record, kind};
use crate::rollback::{LogEnd, get_ends};
use crate::scrub::Noted;
use crate::secrets::{Secrets, local_coin};
use crate::wire::cursor::{Reader, WireError};
use crate::wire::node::SpreadHead;
use racos_buffer::Pool;
use racos_codec::Codec;
use racos_machine::{Founding, Import, Limits, Machine, OpId};
use racos_net::{Identity as NetIdentity, Link, Transport, TransportConfig};
use racos_protocol::{Config, Nanos, Record, Recovery, Slot, Value};
use racos_storage::device::Device;
use racos_storage::{Identity, Log, LogConfig, LogError, Mark, Place, Replayed, ReplayedBody};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::rc::Rc;

/// What a record takes in a group besides its fragments.
pub(crate) const HEAD_ROOM: usize = 8 << 10;

impl<L: Link, D: Device> Node<L, D> {
    /// Makes an empty log. `progress` is told segments made and to make.
    pub fn format(
        config: &NodeConfig,
        device: &mut D,
        pool: &Pool,
        disk_id: u128,
        progress: &mut dyn FnMut(u32, u32),
    ) -> Result<(), OpenError> {
        protocol_config(config, 0, &Secrets::new(config.cluster))
            .thresholds()
            .map_err(OpenError::Config)?;
        let (log, identity) = (log_config(config)?, identity(config));
        Log::format(device, pool, &log, identity, disk_id, progress).map_err(OpenError::Log)
    }

    /// Opens a formatted device and starts the node on it.
    pub fn open(
        config: NodeConfig,
        link: L,
        device: D,
        pool: Pool,
        now: Nanos,
    ) -> Result<Node<L, D>, OpenError> {
        Node::open_observed(config, link, device, pool, now, None)
    }

    /// [`Node::open`] with a witness of everything that is executed, from the first slot on.
    pub fn open_observed(
        config: NodeConfig,
        link: L,
        device: D,
        pool: Pool,
        now: Nanos,
        observer: Option<Box<dyn Observer>>,
    ) -> Result<Node<L, D>, OpenError> {
        let n = config.members.len();
        let secrets = Secrets::new(config.cluster);
        // The boot number, part of the local coin, is known only once the log is open; recovery
        // itself flips no coin.
        let protocol = protocol_config(&config, 0, &secrets);
        let recovery = Recovery::new(protocol.clone()).map_err(OpenError::Config)?;
        let codec = Codec::new(config.k, n - config.k).map_err(OpenError::Codec)?;
        let mut replay = Replay {
            protocol,
            recovery,
            machine: Machine::with_members(limits(&config), founding(&config)),
            limits: limits(&config),
            founding: founding(&config),
            loading: None,
            collected: Collected::default(),
            secrets: secrets.clone(),
            cache_bytes_max: config.bounds.cache_bytes_max,
            fragments: Fragments::new(config.bounds.cache_bytes_max),
            history: History::default(),
            snapshot: Snapshot::default(),
            generation: 0,
            pending: FxHashMap::default(),
            held: HeldBatches::new(),
            absent: Vec::new(),
            notes: Notes::new(),
            scrubbed: Noted::default(),
            peer_ends: Vec::new(),
            problem: None,
            observer,
        };
        let (log, identity) = (log_config(&config)?, identity(&config));
        // PROTOCOL 9.1-a, 8.1-e: superblock and boot, replay, last group anew; only then a link.
        let opened = Log::open_with(device, pool.clone(), log, identity, &mut replay);
        let (log, recovered) = opened.map_err(OpenError::Log)?;
        if let Some(problem) = replay.problem {
            return Err(OpenError::Record(problem));
        }
        let mut core = replay.recovery.finish(now);
        core.set_local_coin(local_coin(config.seed, config.node, recovered.boot));
        let net_identity = NetIdentity {
            cluster: config.cluster,
            node: Some(u16::from(config.node)),
            incarnation: config.incarnation,
            boot: recovered.boot,
            lane: config.lane,
        };
        let net_config = TransportConfig { flags: config.flags(), ..TransportConfig::default() };
        let net = Transport::new(link, net_identity, pool.clone(), net_config);
        let parts = Parts {
            core,
            machine: replay.machine,
            log,
            net,
            codec,
            secrets,
            fragments: replay.fragments,
            history: replay.history,
            checkpoints: Checkpoints::new(replay.snapshot, replay.generation),
            window: replay.pending,
            held: replay.held,
            boot: recovered.boot,
            absent: replay.absent,
            notes: replay.notes,
            scrubbed: replay.scrubbed,
            peer_ends: replay.peer_ends,
            observer: replay.observer,
        };
        Ok(Node::assemble(config, pool, parts, now))
    }
}

pub(crate) fn limits(config: &NodeConfig) -> Limits {
    Limits { history_max: config.versions_per_key_max, ..Limits::default() }
}

/// The members that the cluster was founded with.
pub(crate) fn founding(config: &NodeConfig) -> Founding {
    let nodes = config.members.len() as u8;
    let (lost_max, data) = (config.f as u8, config.k as u8);
    Founding { nodes, lost_max, data, alpha: config.alpha }
}

pub(crate) fn identity(config: &NodeConfig) -> Identity {
    let NodeConfig { cluster, incarnation, lane, .. } = *config;
    let node = u16::from(config.node);
    Identity { cluster, node, incarnation, lane: lane.number, lanes: lane.count }
}

pub(crate) fn log_config(config: &NodeConfig) -> Result<LogConfig, OpenError> {
    let bounds = &config.bounds;
    let largest = layout::fragment_len(bounds.value_bytes_max, config.k.max(1));
    if bounds.value_bytes_max > layout::VALUE_BYTES_MAX
        || largest + HEAD_ROOM > bounds.segment_bytes as usize / 4
    {
        let (value, segment) = (bounds.value_bytes_max, bounds.segment_bytes);
        return Err(OpenError::Log(LogError::Config(format!(
            "values of {value} bytes do not fit segments of {segment}: a fragment may be at most a \
             quarter of a segment, and a value {} bytes; raise segment_bytes or lower \
             value_bytes_max",
            layout::VALUE_BYTES_MAX
        ))));
    }
    let defaults = LogConfig::default();
    let ready = u64::from(bounds.segment_bytes) * defaults.prepare_ahead as u64;
    Ok(LogConfig {
        segment_len: bounds.segment_bytes,
        initial_segments: bounds.initial_segments,
        free_bytes_min: bounds.disk_reserve_bytes,
        reserve_bytes: defaults.reserve_bytes.min(ready / 8),
        group_bytes_max: defaults.group_bytes_max.min(bounds.segment_bytes as usize / 4),
        inline_bytes_max: defaults.inline_bytes_max.min(bounds.segment_bytes as usize / 8),
        ..defaults
    })
}

fn protocol_config(config: &NodeConfig, boot: u32, secrets: &Secrets) -> Config {
    Config {
        n: config.members.len(),
        f: config.f,
        k: config.k,
        me: config.node,
        incarnation: config.incarnation,
        lane: u16::from(config.lane.number),
        alpha: config.alpha,
        policy: config.policy,
        fast: config.fast,
        own_slots_max: config.own_slots_max,
        timing: config.timing,
        coin: secrets.coin,
        local_coin: local_coin(config.seed, config.node, boot),
    }
}

struct Replay {
    protocol: Config,
    recovery: Recovery,
    machine: Machine,
    limits: Limits,
    founding: Founding,
    /// The checkpoint that replay began at, until its end has come; and what comes before that.
    loading: Option<Box<Loading>>,
    collected: Collected,
    secrets: Secrets,
    cache_bytes_max: usize,
    fragments: Fragments,
    history: History,
    snapshot: Snapshot,
    /// The highest generation of a checkpoint that a piece was met of.
    generation: u64,
    /// Batches of slots that are not applied yet.
    pending: FxHashMap<Slot, Known>,
    /// Batches that are stored and in no executed slot.
    held: HeldBatches,
    /// Values of which no fragment was met.
    absent: Vec<OpId>,
    notes: Notes,
    /// How far the scrub was.
    scrubbed: Noted,
    /// How far the others were when they were heard last.
    peer_ends: Vec<LogEnd>,
    problem: Option<String>,
    observer: Option<Box<dyn Observer>>,
}

/// A checkpoint on its way in.
struct Loading {
    generation: u64,
    limits: Limits,
    /// Its first piece has come: those before it are of one that was given up.
    is_begun: bool,
    import: Import,
    /// What has come of a part that lies in several pieces.
    part: Vec<u8>,
    /// Values named by the parts whose places have not come.
    named: VecDeque<OpId>,
    history: Option<History>,
    snapshot: Snapshot,
    /// Why this checkpoint cannot be used.
    problem: Option<String>,
}

impl Loading {
    fn new(generation: u64, exec: Slot, limits: Limits) -> Loading {
        Loading {
            generation,
            limits,
            is_begun: false,
            import: Import::new(limits),
            part: Vec::new(),
            named: VecDeque::new(),
            history: None,
            snapshot: Snapshot { generation, exec, ..Snapshot::default() },
            problem: None,
        }
    }

    /// A first piece: what came of another attempt is of no use.
    fn begin_again(&mut self, is_this_one: bool) {
        let Snapshot { generation, exec, .. } = self.snapshot;
        let fresh = Loading::new(generation, exec, self.limits);
        *self = Loading { is_begun: is_this_one, ..fresh };
    }
}

impl racos_storage::Replay for Replay {
    fn begin(&mut self, mark: &Mark) {
        let recovery = Recovery::new(self.protocol.clone());
        self.recovery = recovery.expect("the same configuration was accepted before");
        self.machine = Machine::with_members(self.limits, self.founding);
        self.fragments = Fragments::new(self.cache_bytes_max);
        self.history = History::default();
        self.snapshot = Snapshot::default();
        self.pending.clear();
        self.held.clear();
        self.collected = Collected::default();
        self.absent.clear();
        self.notes.clear();
        self.scrubbed = Noted::default();
        self.problem = None;
        self.loading = (mark.tag > 0).then(|| {
            self.recovery.begin_at(mark.horizon);
            Box::new(Loading::new(mark.tag, mark.horizon, self.limits))
        });
    }

    fn wants_body(&self, record_kind: u8) -> bool {
        record_kind == kind::CHECKPOINT && self.loading.is_some()
    }

    fn record(&mut self, record: Replayed<'_>) -> u64 {
        let until = record::needed_until(record.kind, record.head);
        self.take_or_refuse(&record);
        until
    }

    fn end(&mut self) -> Result<(), String> {
        let Some(loading) = &self.loading else { return self.recovery.check() };
        let (generation, exec) = (loading.generation, self.recovery.exec());
        let why = loading.problem.as_deref().unwrap_or("its end is missing");
        Err(format!("checkpoint {generation} (of slot {exec}): {why}"))
    }
}

impl Replay {
    fn take_or_refuse(&mut self, record: &Replayed<'_>) {
        if self.problem.is_none()
            && let Err(problem) = self.take(record)
        {
            self.problem =
                Some(format!("record {} (kind {}): {problem}", record.id.0, record.kind));
        }
    }

    /// A piece of a checkpoint. Of others than the one that replay began at, nothing is taken.
    fn piece(&mut self, record: &Replayed<'_>) -> Result<(), String> {
        let (generation, piece) = Piece::get(record.head).map_err(|error| error.to_string())?;
        self.generation = self.generation.max(generation);
        let Some(mut loading) = self.loading.take_if(|it| it.generation == generation) else {
            // True whatever became of the checkpoint.
            if let (Piece::Notes, ReplayedBody::Inline(body)) = (piece, record.body) {
                self.take_notes(body).map_err(|error| error.to_string())?;
            }
            return Ok(());
        };
        if let Piece::Begin { exec, .. } = piece {
            // No other has its generation: one that a crash cut short is counted above.
            loading.begin_again(exec == self.recovery.exec());
        }
        if !loading.is_begun {
            self.loading = Some(loading);
            return Ok(());
        }
        loading.snapshot.bytes += (record.head.len() + record.body_place.len as usize) as u64;
        if loading.problem.is_none() {
            match self.take_piece(piece, record, &mut loading) {
                Ok(true) => {
                    self.loaded(*loading);
                    return Ok(());
                }
                Ok(false) => {}
                Err(problem) => loading.problem = Some(problem),
            }
        }
        self.loading = Some(loading);
        Ok(())
    }

    /// PROTOCOL 10-ak: which disks the others have.
    fn take_notes(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let mut from = Reader::new(bytes);
        while !from.is_empty() {
            let (node, note) = admission::get_note(&mut from)?;
            if !mutant!("notes forgotten at restart") {
                self.notes.insert(node, note);
            }
        }
        Ok(())
    }

    /// Takes a piece; true if it was the last one and all of it is there.
    fn take_piece(
        &mut self,
        piece: Piece,
        record: &Replayed<'_>,
        loading: &mut Loading,
    ) -> Result<bool, String> {
        let ReplayedBody::Inline(body) = record.body else {
            return Err("a piece of it is damaged".into());
        };
        match piece {
            Piece::Begin { reserved, .. } => {
                self.recovery.record(Record::Reserve { to: reserved }, None)?;
            }
            Piece::Part { number, last } => {
                loading.part.extend_from_slice(body);
                loading.snapshot.pieces.push((number, record.body_place));
                if last {
                    let Loading { import, part, named, .. } = loading;
                    let taken = import.part(part, &mut |op| named.push_back(op));
                    taken.map_err(|error| error.to_string())?;
                    part.clear();
                }
            }
            Piece::Own => self.take_places(body, loading).map_err(|error| error.to_string())?,
            Piece::History { first } => {
                load_history(&mut loading.history, first, body).map_err(|e| e.to_string())?;
            }
            Piece::Notes => self.take_notes(body).map_err(|error| error.to_string())?,
            Piece::Stored => self.take_stored(body)?,
            Piece::End { parts, exec } => {
                let whole = parts == loading.import.next_part()
                    && exec == self.recovery.exec()
                    && loading.import.is_complete()
                    && loading.named.is_empty()
                    && loading.history.as_ref().is_none_or(|history| history.end() == exec);
                return if whole { Ok(true) } else { Err("pieces of it are missing".into()) };
            }
        }
        Ok(false)
    }

    /// Where this node's fragments of the values just named lie.
    fn take_places(&mut self, body: &[u8], loading: &mut Loading) -> Result<(), String> {
        if !body.len().is_multiple_of(OWN_ENTRY) {
            return Err("places are cut short".into());
        }
        let mut from = Reader::new(body);
        while !from.is_empty() {
            let place = get_place(&mut from).map_err(|error| error.to_string())?;
            let crc = from.u32("checksum").map_err(|error| error.to_string())?;
            let op = loading.named.pop_front().ok_or("more places than values are named")?;
            match place {
                NULL => self.absent.push(op),
                place => self.fragments.fill(op, place, crc),
            }
        }
        Ok(())
    }

    /// The state is there: what was collected meanwhile is judged by it.
    fn loaded(&mut self, loading: Loading) {
        let Loading { generation, import, history, snapshot, .. } = loading;
        let exec = self.recovery.exec();
        self.machine = match import.finish() {
            Ok(machine) => machine,
            Err(error) => return self.refuse_checkpoint(generation, error.to_string()),
        };
        if let Some(why) = jump::unfit(&self.machine, exec) {
            return self.refuse_checkpoint(generation, why);
        }
        // PROTOCOL 10-l: who counts in the slots that follow.
        let membership = members::membership(self.machine.members());
        if let Err(problem) = self.recovery.configure(membership) {
            return self.refuse_checkpoint(generation, problem);
        }
        if let Some(observer) = &mut self.observer {
            observer.loaded(exec, &self.machine);
        }
        ahead::executed_by(&self.machine, &mut self.held, &mut self.fragments);
        self.history = history.unwrap_or_else(|| History::starting_at(exec));
        self.snapshot = snapshot;
        let collected = std::mem::take(&mut self.collected);
        collected.each(&mut |record| self.take_or_refuse(&record));
    }

    fn refuse_checkpoint(&mut self, generation: u64, problem: String) {
        let problem = Some(problem);
        self.loading =
            Some(Box::new(Loading { problem, ..Loading::new(generation, 0, self.limits) }));
    }

    fn take(&mut self, record: &Replayed<'_>) -> Result<(), String> {
        // What is about no slot is true whatever the checkpoint says, and it says some of it again.
        let is_apart =
            matches!(record.kind, kind::CHECKPOINT | kind::NOTE | kind::SCRUBBED | kind::HEARD);
        if self.loading.is_some() && !is_apart {
            self.collected.push(record);
            return Ok(());
        }
        match record.kind {
            kind::CHECKPOINT => self.piece(record)?,
            kind::COPIES => self.copies(record)?,
            kind::NOTE => self.take_notes(record.head).map_err(|error| error.to_string())?,
            kind::SCRUBBED => {
                self.scrubbed = Noted::get(record.head).map_err(|error| error.to_string())?;
            }
            kind::HEARD => {
                self.peer_ends = get_ends(record.head).map_err(|error| error.to_string())?;
            }
            kind::HOLD | kind::SEGMENT_ONLY => self.batch_record(record)?,
            kind::STORED => {
                if !matches!(record.body, ReplayedBody::Damaged) {
                    self.stored(record.head, record.body_place, true)?;
                }
            }
            kind::HOSTED => {}
            kind::META => {
                let (head, batch) = self.batch(record.head)?;
                let slot = head.slot;
                self.recovery.meta(slot, batch.info.clone());
                self.pend(slot, batch, record.head_place);
            }
            // PROTOCOL 9.5-d: nothing was promised with it.
            kind::REPAIRED => self.repaired(record)?,
            kind::DECIDED => {
                let run = DecidedRun::get(record.head).map_err(|error| error.to_string())?;
                for (slot, batch) in run {
                    self.decided(slot, batch)?;
                }
            }
            other => {
                let said = get_record(other, record.head).map_err(|error| error.to_string())?;
                self.recovery.record(said, None)?;
            }
        }
        self.apply();
        Ok(())
    }

    fn batch<'a>(&self, head: &'a [u8]) -> Result<(SpreadHead<'a>, Rc<Batch>), String> {
        let head = SpreadHead::get(head).map_err(|error| error.to_string())?;
        let batch = Batch::decode(head.batch, &self.secrets).map_err(|error| error.to_string())?;
        if batch.info.digest != head.digest {
            return Err("the batch does not have the digest recorded with it".into());
        }
        Ok((head, batch))
    }

    fn batch_record(&mut self, record: &Replayed<'_>) -> Result<(), String> {
        let (head, batch) = self.batch(record.head)?;
        let (slot, digest) = (head.slot, head.digest);
        // PROTOCOL 4.4-h: without its fragments the promise stands all the same.
        if !matches!(record.body, ReplayedBody::Damaged) {
            for (index, spot) in batch.slot_fragments().enumerate() {
                let crc = head.crc(index).ok_or("a fragment without a checksum")?;
                let place = record.body_place.part(spot.offset as u32, spot.len as u32);
                let place = place.ok_or("a fragment outside of the body")?;
                self.fragment(spot.value.op, slot, place, crc);
            }
        }
        let said = match record.kind {
            kind::HOLD => Record::Hold { slot, digest },
            _ => Record::SegmentOnly { slot, digest },
        };
        self.recovery.record(said, Some(batch.info.clone()))?;
        self.pend(slot, batch, record.head_place);
        Ok(())
    }

    /// A batch that was stored without a slot: it stays until it is known to be executed, or its owner
    /// says that it never will be.
    /// `is_newer`: than what was met of its fragments before.
    fn stored(&mut self, head: &[u8], body: Place, is_newer: bool) -> Result<(), String> {
        let (head, batch) = self.batch(head)?;
        if !batch.is_ready() {
            return Err("a batch that is stored without a slot has no name".into());
        }
        for (index, spot) in layout::fragments(&batch.ops).enumerate() {
            let crc = head.crc(index).ok_or("a fragment without a checksum")?;
            let place = body.part(spot.offset as u32, spot.len as u32);
            let place = place.ok_or("a fragment outside of the body")?;
            if is_newer || !self.fragments.contains(spot.value.op) {
                self.fragments.replay(spot.value.op, UNASSIGNED, place, crc);
            }
        }
        let (crcs, bytes) = (head.crcs.into(), body.len as usize);
        let held = Held { batch: batch.clone(), crcs, bytes, place: Some(body), is_flushed: true };
        // A checkpoint that is being loaded tells all of what was executed at its end.
        let is_loaded = self.loading.is_none();
        if !(is_loaded && ahead::is_executed(&self.machine, &batch, &mut self.fragments)) {
            self.held.insert(batch.id(), held);
        }
        Ok(())
    }

    /// What a checkpoint tells of one.
    fn take_stored(&mut self, body: &[u8]) -> Result<(), String> {
        let mut from = Reader::new(body);
        let place = get_place(&mut from).map_err(|error| error.to_string())?;
        self.stored(from.rest(), place, false)
    }

    fn repaired(&mut self, record: &Replayed<'_>) -> Result<(), String> {
        let mut head = Reader::new(record.head);
        let mut fields = || Ok((head.u128("op")?, head.u64("slot")?, head.u32("checksum")?));
        let (op, slot, crc) = fields().map_err(|error: WireError| error.to_string())?;
        if !matches!(record.body, ReplayedBody::Damaged) {
            self.fragment(OpId(op), slot, record.body_place, crc);
        }
        Ok(())
    }

    fn copies(&mut self, record: &Replayed<'_>) -> Result<(), String> {
        for (copy, offset) in record::get_copies(record.head).map_err(|error| error.to_string())? {
            let place = record.body_place.part(offset, copy.len);
            let place = place.ok_or("a fragment outside of the body")?;
            if !matches!(record.body, ReplayedBody::Damaged) {
                self.fragment(OpId(copy.op), copy.slot, place, copy.crc);
            }
        }
        Ok(())
    }

    /// A fragment that a record holds. That of an executed slot counts only if its value is live.
    fn fragment(&mut self, op: OpId, slot: Slot, place: Place, crc: u32) {
        if slot >= self.recovery.exec() || self.machine.value(op).is_some() {
            self.fragments.replay(op, slot, place, crc);
        }
    }

    fn pend(&mut self, slot: Slot, batch: Rc<Batch>, place: Place) {
        if slot >= self.recovery.exec() {
            let known = Known { batch, recorded: true, place: Some(place) };
            self.pending.entry(slot).or_insert(known);
        } else {
            self.history.placed(slot, place);
        }
    }

    fn decided(&mut self, slot: Slot, batch: bool) -> Result<(), String> {
        let value = match (batch, self.pending.get(&slot)) {
            (false, _) => Value::Null,
            (true, Some(known)) => Value::Batch(known.batch.info.digest),
            (true, None) if slot < self.recovery.exec() => return Ok(()),
            (true, None) => return Err(format!("slot {slot} is decided and its batch is missing")),
        };
        self.recovery.decided(slot, value)
    }

    fn apply(&mut self) {
        if self.loading.is_some() {
            return;
        }
        while let Some((slot, value)) = self.recovery.apply() {
            let known = self.pending.remove(&slot);
            match (value, known) {
                (Value::Batch(_), Some(known)) => {
                    self.history.push_batch(known.place);
                    let epoch = self.machine.members().epoch();
                    for (position, op) in known.batch.ops.iter().enumerate() {
                        // PROTOCOL 9.1-i: as at the first execution.
                        let outcome = self.machine.apply(slot, position as u32, op);
                        if let Some(observer) = &mut self.observer {
                            observer.applied(slot, position as u32, op, &outcome);
                        }
                        if layout::may_be_unused(op, &outcome) {
                            let unused = layout::stored_values(op)
                                .filter(|value| self.machine.value(value.op).is_none());
                            unused.for_each(|value| self.fragments.forget(value.op, None));
                        }
                    }
                    ahead::executed(&mut self.held, &mut self.fragments, slot, &known.batch);
                    for spot in layout::fragments(&known.batch.ops) {
                        if !self.fragments.contains(spot.value.op) {
                            self.absent.push(spot.value.op);
                        }
                    }
                    if let Some(change) = members::change_since(&self.machine, epoch) {
                        self.recovery.change(change);
                    }
                    self.forget_released();
                }
                (Value::Batch(_), None) => {
                    unreachable!("recovery applies a batch only with its metas")
                }
                (Value::Null, known) => {
                    for spot in known.iter().flat_map(|known| known.batch.slot_fragments()) {
                        self.fragments.forget(spot.value.op, Some(slot));
                    }
                    self.history.push_null();
                }
            }
            if let Some(observer) = &mut self.observer {
                observer.executed(slot, value, &self.machine);
            }
        }
        self.fragments.executed(self.recovery.exec());
    }

    fn forget_released(&mut self) {
        let mut released = Vec::new();
        let all_named = self.machine.take_released(&mut released);
        released.drain(..).for_each(|op| self.fragments.forget(op, None));
        // None is in memory yet.
        self.machine.take_superseded(&mut released);
        if !all_named {
            let (machine, exec) = (&self.machine, self.recovery.exec());
            self.fragments.retain(|op, slot| slot >= exec || machine.value(op).is_some());
        }
    }
}
