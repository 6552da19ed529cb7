//! Restart from disk (PROTOCOL 9.1): the log read once, in order, gives the node back.
//!
//! Invariant: the state machine gets exactly the decided batches in slot order; what the node said
//! in undecided slots is in the core again before anything is sent.

use crate::batch::Batch;
use crate::config::NodeConfig;
use crate::fragments::Fragments;
use crate::history::History;
use crate::layout;
use crate::members;
use crate::node::{Known, Node, OpenError, Parts};
use crate::observe::Observer;
use crate::record::{DecidedRun, get_record, kind};
use crate::secrets::{Secrets, local_coin};
use crate::wire::cursor::{Reader, WireError};
use crate::wire::node::SpreadHead;
use racos_buffer::Pool;
use racos_codec::Codec;
use racos_machine::{Action, Founding, Limits, Machine, OpId};
use racos_net::{Identity as NetIdentity, Link, Transport, TransportConfig};
use racos_protocol::{Config, Nanos, Record, Recovery, Slot, Value};
use racos_storage::device::Device;
use racos_storage::{Identity, Log, LogConfig, LogError, Place, Replayed, ReplayedBody};
use rustc_hash::FxHashMap;
use std::rc::Rc;

/// What a record takes in a group besides its fragments.
const HEAD_ROOM: usize = 8 << 10;

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
        let recovery = Recovery::new(protocol).map_err(OpenError::Config)?;
        let codec = Codec::new(config.k, n - config.k).map_err(OpenError::Codec)?;
        let mut replay = Replay {
            recovery,
            machine: Machine::with_members(limits(&config), founding(&config)),
            secrets: secrets.clone(),
            fragments: Fragments::new(config.bounds.cache_bytes_max),
            history: History::default(),
            pending: FxHashMap::default(),
            problem: None,
            observer,
        };
        let (log, identity) = (log_config(&config)?, identity(&config));
        // PROTOCOL 9.1-a, 8.1-e: superblock and boot, replay, last group anew; only then a link.
        let opened =
            Log::open(device, pool.clone(), log, identity, &mut |record| replay.record(&record));
        let (log, recovered) = opened.map_err(OpenError::Log)?;
        if let Some(problem) = replay.problem {
            return Err(OpenError::Record(problem));
        }
        let exec = replay.recovery.exec();
        let machine = &replay.machine;
        replay.fragments.retain(|op, slot| slot >= exec || machine.value(op).is_some());
        let mut core = replay.recovery.finish(now);
        core.set_local_coin(local_coin(config.seed, config.node, recovered.boot));
        let net_identity = NetIdentity {
            cluster: config.cluster,
            node: Some(u16::from(config.node)),
            incarnation: config.incarnation,
            boot: recovered.boot,
        };
        let net = Transport::new(link, net_identity, pool.clone(), TransportConfig::default());
        let parts = Parts {
            core,
            machine: replay.machine,
            log,
            net,
            codec,
            secrets,
            fragments: replay.fragments,
            history: replay.history,
            window: replay.pending,
            boot: recovered.boot,
            observer: replay.observer,
        };
        Ok(Node::assemble(config, pool, parts, now))
    }
}

fn limits(config: &NodeConfig) -> Limits {
    Limits { history_max: config.versions_per_key_max, ..Limits::default() }
}

/// The members that the cluster was founded with.
fn founding(config: &NodeConfig) -> Founding {
    let nodes = config.members.len() as u8;
    Founding { nodes, lost_max: config.f as u8, alpha: config.alpha }
}

fn identity(config: &NodeConfig) -> Identity {
    let NodeConfig { cluster, incarnation, .. } = *config;
    Identity { cluster, node: u16::from(config.node), incarnation }
}

fn log_config(config: &NodeConfig) -> Result<LogConfig, OpenError> {
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
        alpha: config.alpha,
        own_slots_max: config.own_slots_max,
        timing: config.timing,
        coin: secrets.coin,
        local_coin: local_coin(config.seed, config.node, boot),
    }
}

struct Replay {
    recovery: Recovery,
    machine: Machine,
    secrets: Secrets,
    fragments: Fragments,
    history: History,
    /// Batches of slots that are not applied yet.
    pending: FxHashMap<Slot, Known>,
    problem: Option<String>,
    observer: Option<Box<dyn Observer>>,
}

impl Replay {
    fn record(&mut self, record: &Replayed<'_>) {
        if self.problem.is_none()
            && let Err(problem) = self.take(record)
        {
            self.problem =
                Some(format!("record {} (kind {}): {problem}", record.id.0, record.kind));
        }
    }

    fn take(&mut self, record: &Replayed<'_>) -> Result<(), String> {
        match record.kind {
            kind::HOLD | kind::SEGMENT_ONLY => self.batch_record(record)?,
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
            for (index, spot) in layout::fragments(&batch.ops).enumerate() {
                let crc = head.crc(index).ok_or("a fragment without a checksum")?;
                let place = record.body_place.part(spot.offset as u32, spot.len as u32);
                let place = place.ok_or("a fragment outside of the body")?;
                self.fragments.replay(spot.value.op, slot, place, crc);
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

    fn repaired(&mut self, record: &Replayed<'_>) -> Result<(), String> {
        let mut head = Reader::new(record.head);
        let mut fields = || Ok((head.u128("op")?, head.u64("slot")?, head.u32("checksum")?));
        let (op, slot, crc) = fields().map_err(|error: WireError| error.to_string())?;
        if !matches!(record.body, ReplayedBody::Damaged) {
            self.fragments.replay(OpId(op), slot, record.body_place, crc);
        }
        Ok(())
    }

    fn pend(&mut self, slot: Slot, batch: Rc<Batch>, place: Place) {
        if slot >= self.recovery.exec() {
            let known = Known { batch, recorded: true, place: Some(place) };
            self.pending.entry(slot).or_insert(known);
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
                        if matches!(op.action, Action::Txn(_)) {
                            let unused = layout::stored_values(op)
                                .filter(|value| self.machine.value(value.op).is_none());
                            unused.for_each(|value| self.fragments.forget(value.op, None));
                        }
                    }
                    if let Some(change) = members::change_since(&self.machine, epoch) {
                        self.recovery.change(change);
                    }
                    let mut released = Vec::new();
                    self.machine.take_released(&mut released);
                    released.into_iter().for_each(|op| self.fragments.forget(op, None));
                }
                (Value::Batch(_), None) => {
                    unreachable!("recovery applies a batch only with its metas")
                }
                (Value::Null, known) => {
                    for spot in known.iter().flat_map(|known| layout::fragments(&known.batch.ops)) {
                        self.fragments.forget(spot.value.op, Some(slot));
                    }
                    self.history.push_null();
                }
            }
            if let Some(observer) = &mut self.observer {
                observer.executed(slot, value, &self.machine);
            }
        }
    }
}
