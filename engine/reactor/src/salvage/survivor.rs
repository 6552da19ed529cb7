//! One survivor's log, read where it lies.
//!
//! Invariant: nothing is written. What is taken from the log is what good groups hold, wherever they lie:
//! a damaged place hides what stood in it and nothing else, since a record says a fact, whatever stands
//! before it.
//! What would break it: a record that means something only together with one before it.

use crate::batch::Batch;
use crate::checkpoint::Piece;
use crate::jump;
use crate::record::{self, DecidedRun, get_record, kind};
use crate::secrets::Secrets;
use crate::wire::node::SpreadHead;
use racos_buffer::Pool;
use racos_machine::{Import, Limits, Machine, OpId};
use racos_protocol::{Ballot, Class, Digest, Record, Slot};
use racos_storage::device::Device;
use racos_storage::survey::{Damage, Depth, Owner, owner_of, read_place, survey_records};
use racos_storage::{Place, Replayed};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What one node's log says of a slot.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Where the metas of a batch lie, and its digest.
    pub batch: Option<(Place, Digest)>,
    /// What the slot was decided to be: null, a batch. Both would be a broken promise.
    pub is_null: bool,
    pub is_batch: bool,
    /// PROPOSE(slot, 1).
    pub held: Option<Digest>,
    pub votes: Vec<(u32, Ballot)>,
}

/// A checkpoint of which the first and the last record are there.
#[derive(Debug)]
pub(super) struct Draft {
    pub generation: u64,
    /// All slots below are in it.
    pub exec: Slot,
    /// Number of the part, whether it ends there, where the bytes lie, and their checksum.
    pieces: Vec<(u32, bool, Place, u32)>,
    is_whole: bool,
}

/// A log of a node that is left, and what it says.
pub struct Survivor<D: Device> {
    /// Where it lies, for people.
    pub name: String,
    pub owner: Owner,
    /// What of it cannot be used.
    pub damage: Vec<Damage>,
    pub(super) device: D,
    pub(super) said: BTreeMap<Slot, Said>,
    /// Ranges of one owner's slots for which the node proposed null.
    pub(super) refused: Vec<(Slot, Slot)>,
    pub(super) drafts: Vec<Draft>,
    /// Batches that were stored before they had a slot: where their records are.
    pub(super) stored: BTreeMap<OpId, Place>,
    /// Those that got one.
    pub(super) assigned: BTreeSet<OpId>,
    /// The queue policy filled the slots.
    pub(super) is_queue: bool,
}

impl<D: Device> Survivor<D> {
    /// Reads a log. `progress` is told bytes gone over, and all of them.
    ///
    /// # Errors
    /// There is no log of a node, or nothing says whose it is.
    pub fn read(
        name: &str,
        mut device: D,
        pool: &Pool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Survivor<D>, String> {
        let about = |what: String| format!("{name}: {what}");
        let owner = owner_of(&mut device, pool).map_err(|error| about(error.to_string()))?;
        let owner = owner.filter(|owner| owner.formatted).ok_or_else(|| {
            about("there is no log of a node here, or both copies of its superblock are bad".into())
        })?;
        let mut survivor = Survivor {
            name: name.into(),
            damage: Vec::new(),
            device,
            said: BTreeMap::new(),
            refused: Vec::new(),
            drafts: Vec::new(),
            stored: BTreeMap::new(),
            assigned: BTreeSet::new(),
            is_queue: false,
            owner,
        };
        survivor.take_all(pool, progress).map_err(about)?;
        Ok(survivor)
    }

    /// The node's number.
    pub fn node(&self) -> u16 {
        self.owner.identity.node
    }

    fn take_all(&mut self, pool: &Pool, progress: &mut dyn FnMut(u64, u64)) -> Result<(), String> {
        let Survivor { device, said, refused, drafts, stored, assigned, is_queue, owner, .. } =
            self;
        let secrets = Secrets::new(owner.identity.cluster);
        let mut reading = Reading {
            // What is older is in both checkpoints that the node kept.
            floor: owner.marks[1].horizon,
            behind: owner.marks[1].segment(),
            secrets: &secrets,
            bad: Vec::new(),
            said,
            refused,
            drafts,
            stored,
            assigned,
            is_queue,
        };
        let mut each = |record: Replayed<'_>| reading.take_or_note(&record);
        let found = survey_records(device, pool, Depth::Records, progress, &mut each);
        let bad = reading.bad;
        self.damage = found.map_err(|error| error.to_string())?.damage;
        self.damage.extend(bad);
        self.drafts.retain(|draft| draft.is_whole);
        Ok(())
    }

    /// The batch of a slot, as this log has it.
    pub(super) fn batch(
        &mut self,
        place: Place,
        pool: &Pool,
        secrets: &Secrets,
    ) -> Option<Rc<Batch>> {
        let bytes = read_place(&mut self.device, pool, place).ok()?;
        let head = SpreadHead::get(&bytes).ok()?;
        let batch = Batch::decode(head.batch, secrets).ok()?;
        (batch.info.digest == head.digest).then_some(batch)
    }

    /// The state of a checkpoint.
    pub(super) fn load(
        &mut self,
        at: usize,
        limits: Limits,
        pool: &Pool,
    ) -> Result<Machine, String> {
        let Draft { exec, pieces, .. } = &self.drafts[at];
        let (mut import, mut part) = (Import::new(limits), Vec::new());
        for (_, last, place, crc) in pieces {
            let bytes = read_place(&mut self.device, pool, *place);
            let bytes = bytes.map_err(|error| format!("a piece of it cannot be read: {error}"))?;
            if crc32fast::hash(&bytes) != *crc {
                return Err("a piece of it is damaged".into());
            }
            part.extend_from_slice(&bytes);
            if *last {
                import.part(&part, &mut |_| {}).map_err(|error| error.to_string())?;
                part.clear();
            }
        }
        let machine = import.finish().map_err(|error| error.to_string())?;
        jump::unfit(&machine, *exec).map_or(Ok(machine), Err)
    }
}

/// Records on their way in.
struct Reading<'a> {
    /// What is said of slots below is not needed.
    floor: Slot,
    /// What is stored without a slot counts from this segment on.
    behind: u32,
    secrets: &'a Secrets,
    bad: Vec<Damage>,
    said: &'a mut BTreeMap<Slot, Said>,
    refused: &'a mut Vec<(Slot, Slot)>,
    drafts: &'a mut Vec<Draft>,
    stored: &'a mut BTreeMap<OpId, Place>,
    assigned: &'a mut BTreeSet<OpId>,
    is_queue: &'a mut bool,
}

impl Reading<'_> {
    fn take_or_note(&mut self, record: &Replayed<'_>) {
        if let Err(what) = self.take(record) {
            let Place { segment, offset, .. } = record.head_place;
            let at = racos_storage::Position { segment, offset };
            self.bad.push(Damage { at, what: format!("record {}: {what}", record.id.0) });
        }
    }

    fn take(&mut self, record: &Replayed<'_>) -> Result<(), String> {
        match record.kind {
            kind::CHECKPOINT => self.piece(record),
            kind::HOLD | kind::SEGMENT_ONLY | kind::META => self.batch(record),
            kind::STORED if record.head_place.segment >= self.behind => {
                let batch = self.decoded(record)?;
                self.stored.entry(batch.id()).or_insert(record.head_place);
                Ok(())
            }
            kind::DECIDED => {
                let run = DecidedRun::get(record.head).map_err(|error| error.to_string())?;
                for (slot, is_batch) in run.filter(|(slot, _)| *slot >= self.floor) {
                    let said = self.said.entry(slot).or_default();
                    *(if is_batch { &mut said.is_batch } else { &mut said.is_null }) = true;
                }
                Ok(())
            }
            kind::NO_HOLD | kind::VOTE | kind::PROPOSE => {
                let said = get_record(record.kind, record.head);
                self.word(&said.map_err(|error| error.to_string())?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn word(&mut self, record: &Record) {
        match *record {
            Record::NoHold { from, to } if to > self.floor => self.refused.push((from, to)),
            Record::Vote { slot, phase, ballot } if slot >= self.floor => {
                let votes = &mut self.said.entry(slot).or_default().votes;
                // PROTOCOL 5.2-w
                if votes.iter().all(|(of, _)| *of != phase) {
                    votes.push((phase, ballot));
                }
            }
            Record::Propose { .. } => *self.is_queue = true,
            _ => {}
        }
    }

    fn decoded(&self, record: &Replayed<'_>) -> Result<Rc<Batch>, String> {
        let head = SpreadHead::get(record.head).map_err(|error| error.to_string())?;
        let batch = Batch::decode(head.batch, self.secrets).map_err(|error| error.to_string())?;
        let is_named = batch.info.digest == head.digest && batch.is_ready();
        if is_named {
            Ok(batch)
        } else {
            Err("a batch that is not the one it is said to be".into())
        }
    }

    fn batch(&mut self, record: &Replayed<'_>) -> Result<(), String> {
        let head = SpreadHead::get(record.head).map_err(|error| error.to_string())?;
        let (slot, digest) = (head.slot, head.digest);
        if Class::of(digest) == Class::Ready && record.head_place.segment >= self.behind {
            let batch = self.decoded(record)?;
            *self.is_queue |= batch.born().is_some();
            self.assigned.insert(batch.id());
        }
        if slot < self.floor {
            return Ok(());
        }
        let said = self.said.entry(slot).or_default();
        said.batch.get_or_insert((record.head_place, digest));
        if record.kind == kind::HOLD {
            said.held.get_or_insert(digest);
        }
        Ok(())
    }

    fn piece(&mut self, record: &Replayed<'_>) -> Result<(), String> {
        let (generation, piece) = Piece::get(record.head).map_err(|error| error.to_string())?;
        if let Piece::Begin { exec, .. } = piece {
            // One that a crash cut short has the generation of the one that was begun after it.
            self.drafts.retain(|draft| draft.generation != generation || draft.is_whole);
            let (pieces, is_whole) = (Vec::new(), false);
            self.drafts.push(Draft { generation, exec, pieces, is_whole });
            return Ok(());
        }
        let mut open = self.drafts.iter_mut().rev();
        let draft = open.find(|draft| draft.generation == generation && !draft.is_whole);
        let Some(draft) = draft else { return Ok(()) };
        match piece {
            Piece::Part { number, last } => {
                draft.pieces.push((number, last, record.body_place, record.body_crc));
            }
            Piece::End { parts, exec } => {
                let count = draft.pieces.iter().filter(|(_, last, ..)| *last).count();
                draft.is_whole = exec == draft.exec && count == parts as usize;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Where the fragments that a record holds lie: operation, place, checksum.
pub(super) fn fragments(
    record: &Replayed<'_>,
    secrets: &Secrets,
    found: &mut dyn FnMut(OpId, Place, u32),
) {
    let body = record.body_place;
    match record.kind {
        kind::HOLD | kind::SEGMENT_ONLY | kind::STORED => {
            let Ok(head) = SpreadHead::get(record.head) else { return };
            let Ok(batch) = Batch::decode(head.batch, secrets) else { return };
            let with_slot = record.kind != kind::STORED;
            let ops = if with_slot && batch.is_ready() { &[] } else { &batch.ops[..] };
            for (index, spot) in crate::layout::fragments(ops).enumerate() {
                let place = body.part(spot.offset as u32, spot.len as u32);
                if let (Some(crc), Some(place)) = (head.crc(index), place) {
                    found(spot.value.op, place, crc);
                }
            }
        }
        kind::REPAIRED => {
            let mut head = crate::wire::cursor::Reader::new(record.head);
            if let (Ok(op), Ok(_), Ok(crc)) =
                (head.u128("op"), head.u64("slot"), head.u32("checksum"))
            {
                found(OpId(op), body, crc);
            }
        }
        kind::COPIES => {
            for (copy, offset) in record::get_copies(record.head).into_iter().flatten() {
                if let Some(place) = body.part(offset, copy.len) {
                    found(OpId(copy.op), place, copy.crc);
                }
            }
        }
        _ => {}
    }
}
