//! A state from what survivors' logs hold, when too many nodes are lost for a quorum to meet ever again
//! (PROTOCOL 10-af).
//!
//! Purpose: offline. The newest sound checkpoint of any survivor, and what is proven decided above it in
//! all of their logs together, executed by the shipped machine; and the values of that state, from the
//! fragments that are left. What cannot be proven, and what cannot be put together, is told.
//!
//! A slot is proven decided if a survivor has noted it, or if a node that heard everything that the
//! survivors have written would decide it (PROTOCOL 5.2): a node that restarts says what it has written
//! and nothing else, so such a decision cannot be another one. Execution ends at the first slot that is
//! not proven: nobody was told of what comes behind it (PROTOCOL 7-f).
//!
//! Invariant: nothing is written anywhere; the state is one that a node of the cluster had or could have
//! come to, unless undecided writes were asked for; a value is the bytes that were written.
//! What would break it: a decision from a vote that does not count in its slot, or going on behind a slot
//! that may hold something else.

mod adopt;
mod rehearse;
mod survivor;
mod values;

pub use adopt::{Adopted, adopt};
pub use rehearse::Rehearsal;
pub use survivor::Survivor;
pub use values::{Cut, Lost, Shown, Unreadable};

use crate::batch::Batch;
use crate::config::NodeConfig;
use crate::fragments::Lying;
use crate::members::configuration;
use crate::placement::{Codecs, layout_of};
use crate::replay::{founding, limits};
use crate::secrets::Secrets;
use crate::table::Table;
use racos_buffer::Pool;
use racos_codec::Codec;
use racos_machine::{Action, Machine, Op, OpId, Span, Step};
use racos_protocol::{
    Configuration, Consensus, Digest, Node as NodeNumber, Seat, Slot, Value as SlotValue,
};
use racos_storage::device::Device;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

/// Where a survivor's fragment of a value lies: the newest place, and the one before.
#[derive(Debug, Clone, Copy, Default)]
struct Kept([Lying; 2]);

/// How the cluster was founded: asked for where no checkpoint tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Founded {
    pub nodes: usize,
    pub f: usize,
    pub k: usize,
}

/// What to do with writes that cannot be proven decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecided {
    Leave,
    /// They take effect in the order of their slots, whether or not they had.
    Take,
}

/// Something that a write does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    pub what: &'static str,
    /// What it is done to, if that is a key.
    pub key: Option<Box<[u8]>>,
}

/// A batch above what is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// `None`: it is stored and no slot is known that holds it.
    pub slot: Option<Slot>,
    /// Decided, behind a slot that is not.
    pub is_decided: bool,
    /// Survivors that hold it.
    pub nodes: Vec<u16>,
    /// `None`: no survivor has its metas.
    pub deeds: Option<Vec<Deed>>,
}

/// Where the state begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Whose checkpoint; `None`: the beginning of the log.
    pub of: Option<String>,
    pub exec: Slot,
    /// Newer checkpoints that could not be used, and why.
    pub unusable: Vec<String>,
}

/// What is known of a slot.
enum Verdict {
    Null,
    Batch(Rc<Batch>),
    Open,
}

/// See the module.
pub struct Salvage<D: Device> {
    survivors: Vec<Survivor<D>>,
    machine: Machine,
    pool: Pool,
    secrets: Secrets,
    codecs: Codecs,
    /// Where each survivor's fragments of values in use lie.
    lying: Vec<Table<Kept>>,
    pub base: Base,
    /// All slots below are executed.
    pub exec: Slot,
    /// What is left out, or was taken though nothing proves it.
    pub open: Vec<Open>,
}

impl<D: Device> Salvage<D> {
    /// The newest state that the survivors' logs prove.
    ///
    /// # Errors
    /// They are not logs of different nodes of one cluster and lane, contradict each other, or do not reach
    /// back to a state.
    pub fn execute(
        survivors: Vec<Survivor<D>>,
        founded: Option<Founded>,
        undecided: Undecided,
        pool: Pool,
    ) -> Result<Salvage<D>, String> {
        check_together(&survivors)?;
        let mut survivors = survivors;
        let secrets = Secrets::new(survivors[0].owner.identity.cluster);
        let (machine, base) = find_base(&mut survivors, founded, &pool)?;
        let exec = base.exec;
        let codecs = Codecs::new(Codec::new(1, 0).map_err(|error| error.to_string())?);
        let (lying, open) = (Vec::new(), Vec::new());
        let mut salvage =
            Salvage { survivors, machine, pool, secrets, codecs, lying, base, exec, open };
        salvage.replay()?;
        salvage.check_founding(founded)?;
        salvage.list_open();
        if undecided == Undecided::Take {
            salvage.take_open()?;
        }
        if salvage.machine.is_restoring() {
            return Err(
                "the cluster was being restored from a backup, and had shown nothing of it to \
                        anybody: restore that backup again"
                    .into(),
            );
        }
        salvage.learn_codes();
        Ok(salvage)
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub fn survivors(&self) -> &[Survivor<D>] {
        &self.survivors
    }

    /// Members of the newest configuration, and how many of them a quorum needs.
    pub fn members(&self) -> (Vec<u8>, usize) {
        let newest = self.machine.members().newest();
        newest.map_or((Vec::new(), 0), |it| {
            (it.members.clone(), it.members.len() - usize::from(it.lost_max))
        })
    }

    /// Executes what is proven, in order.
    fn replay(&mut self) -> Result<(), String> {
        loop {
            match self.verdict(self.exec)? {
                Verdict::Open => return Ok(()),
                Verdict::Null => {}
                Verdict::Batch(batch) => self.apply(&batch),
            }
            self.exec += 1;
        }
    }

    /// What was said of the founding has to fit the values that were written.
    fn check_founding(&self, founded: Option<Founded>) -> Result<(), String> {
        let (None, Some(Founded { nodes, k, .. })) = (&self.base.of, founded) else {
            return Ok(());
        };
        let members = self.machine.members();
        match self.machine.values().find(|used| layout_of(members, &used.value).is_none()) {
            None => Ok(()),
            Some(used) => Err(format!(
                "the cluster was not founded with {nodes} nodes and k = {k}: a value is coded into {} \
                 fragments for k = {}",
                used.value.n, used.value.k
            )),
        }
    }

    fn apply(&mut self, batch: &Batch) {
        for (position, op) in batch.ops.iter().enumerate() {
            self.machine.apply(self.exec, position as u32, op);
        }
        // What is not used any more is not asked for.
        self.machine.take_released(&mut Vec::new());
    }

    /// PROTOCOL 10-af: what is proven of a slot.
    fn verdict(&mut self, slot: Slot) -> Result<Verdict, String> {
        let contradicts =
            |why: &str| format!("the logs contradict each other in slot {slot}: {why}");
        let said = self.survivors.iter().filter_map(|survivor| survivor.said.get(&slot));
        let (mut is_null, mut is_batch) = (false, false);
        said.for_each(|said| {
            (is_null, is_batch) = (is_null | said.is_null, is_batch | said.is_batch)
        });
        if is_null && is_batch {
            return Err(contradicts("decided null, and a batch"));
        }
        let mut digest = None;
        if !is_null && !is_batch {
            let proven = self.proven(slot).map_err(|why| contradicts(&why))?;
            match proven {
                None => return Ok(Verdict::Open),
                Some(SlotValue::Null) => return Ok(Verdict::Null),
                Some(SlotValue::Batch(named)) => digest = Some(named),
            }
        }
        if is_null {
            return Ok(Verdict::Null);
        }
        let batch = self.batch_of(slot, digest).map_err(|why| contradicts(&why))?;
        // Without its metas nothing behind it can be executed either.
        Ok(batch.map_or(Verdict::Open, Verdict::Batch))
    }

    /// What a node would decide that heard all that the survivors have written.
    fn proven(&self, slot: Slot) -> Result<Option<SlotValue>, String> {
        // What was stored first is named in more ways than are counted here.
        if self.survivors.iter().any(|survivor| survivor.is_queue) {
            return Ok(None);
        }
        let Some(configuration) = self.configuration(slot) else { return Ok(None) };
        let quorum = configuration.thresholds.quorum;
        let mut consensus = Consensus::default();
        for survivor in &self.survivors {
            let Some(node) = self.counts(survivor, slot, &configuration) else { continue };
            let said = survivor.said.get(&slot);
            let held = said.and_then(|said| said.held).map(SlotValue::Batch);
            let null = || self.refused(survivor, slot).then_some(SlotValue::Null);
            if let Some(value) = held.or_else(null) {
                consensus.propose(node, value, 0, quorum).map_err(|why| why.0)?;
            }
            for (phase, ballot) in said.into_iter().flat_map(|said| &said.votes) {
                consensus.vote(node, *phase, *ballot).map_err(|why| why.0)?;
            }
        }
        let decided = consensus.follow(&configuration.thresholds).map_err(|why| why.0)?;
        Ok(decided.map(|decision| decision.value))
    }

    fn configuration(&self, slot: Slot) -> Option<Configuration> {
        let layouts = self.machine.members().layouts();
        let governs = layouts.iter().rev().find(|layout| layout.from <= slot);
        governs.or(layouts.first()).map(configuration)
    }

    /// PROTOCOL 10-q: the survivor's number, if its disk counts in the slot.
    fn counts(
        &self,
        survivor: &Survivor<D>,
        slot: Slot,
        configuration: &Configuration,
    ) -> Option<NodeNumber> {
        let node = NodeNumber::try_from(survivor.node()).ok()?;
        let seat = self.machine.members().seats().get(usize::from(node))?;
        let seat = Seat { incarnation: seat.incarnation, from: seat.from };
        let counts = seat.counts(survivor.owner.identity.incarnation, slot);
        (counts && configuration.contains(node)).then_some(node)
    }

    /// Whether the survivor proposed null: a range is of one owner's slots.
    fn refused(&self, survivor: &Survivor<D>, slot: Slot) -> bool {
        let owner = |slot| self.configuration(slot).map(|it| it.owner(slot));
        let mut ranges = survivor.refused.iter();
        ranges.any(|(from, to)| (*from..*to).contains(&slot) && owner(*from) == owner(slot))
    }

    /// The batch of a slot that was decided to be one: with this digest, if that is known. `None`: no
    /// survivor has its metas.
    fn batch_of(&mut self, slot: Slot, named: Option<Digest>) -> Result<Option<Rc<Batch>>, String> {
        let mut digest = named;
        let mut found = None;
        // Who knows it to be decided, knows which; the others hold what the owner sent.
        self.survivors.sort_by_key(|it| !it.said.get(&slot).is_some_and(|said| said.is_batch));
        for survivor in &mut self.survivors {
            let said = survivor.said.get(&slot);
            let Some((place, known)) = said.and_then(|said| said.batch) else { continue };
            if *digest.get_or_insert(known) != known {
                if survivor.is_queue {
                    continue;
                }
                return Err("two batches".into());
            }
            found = found.or_else(|| survivor.batch(place, &self.pool, &self.secrets));
        }
        Ok(found)
    }

    /// Slots from `exec` on of which any survivor says something.
    fn open_slots(&self) -> BTreeSet<Slot> {
        let said = self.survivors.iter().flat_map(|it| it.said.range(self.exec..));
        said.map(|(slot, _)| *slot).collect()
    }

    /// PROTOCOL 10-af: what cannot be proven decided is told.
    fn list_open(&mut self) {
        for slot in self.open_slots() {
            let said =
                self.survivors.iter().filter_map(|it| Some((it.node(), it.said.get(&slot)?)));
            let (mut nodes, mut is_decided, mut is_named) = (Vec::new(), false, false);
            for (node, said) in said {
                is_decided |= said.is_batch;
                let names = said.votes.iter().any(|(_, ballot)| ballot.candidate().is_some());
                is_named |= said.is_batch || names || said.batch.is_some();
                if said.held.is_some() {
                    nodes.push(node);
                }
            }
            nodes.sort_unstable();
            let batch = self.batch_of(slot, None).ok().flatten();
            if is_named {
                let deeds = batch.map(|batch| deeds(&batch.ops));
                self.open.push(Open { slot: Some(slot), is_decided, nodes, deeds });
            }
        }
        self.list_stored();
    }

    /// Batches that are stored, and in no slot that anybody knows.
    fn list_stored(&mut self) {
        let assigned: BTreeSet<OpId> =
            self.survivors.iter().flat_map(|it| it.assigned.iter().copied()).collect();
        let mut stored = BTreeMap::<OpId, Open>::new();
        let (machine, pool, secrets) = (&self.machine, &self.pool, &self.secrets);
        for survivor in &mut self.survivors {
            let node = survivor.node();
            let waiting: Vec<_> =
                survivor.stored.iter().filter(|(id, _)| !assigned.contains(id)).collect();
            let waiting: Vec<_> = waiting.into_iter().map(|(id, place)| (*id, *place)).collect();
            for (id, place) in waiting {
                let Some(batch) = survivor.batch(place, pool, secrets) else { continue };
                let mut values = batch.ops.iter().flat_map(Op::stored_values);
                if values.any(|value| machine.value(value.op).is_some()) {
                    continue;
                }
                let open = stored.entry(id).or_insert_with(|| Open {
                    slot: None,
                    is_decided: false,
                    nodes: Vec::new(),
                    deeds: Some(deeds(&batch.ops)),
                });
                open.nodes.push(node);
            }
        }
        self.open.extend(stored.into_values());
    }

    /// Executes what is known of the slots that are open, in order.
    fn take_open(&mut self) -> Result<(), String> {
        let slots = self.open_slots();
        let mut last = BTreeMap::<Digest, Slot>::new();
        for slot in &slots {
            let said = self.survivors.iter().filter_map(|it| it.said.get(slot)?.batch);
            said.for_each(|(_, digest)| {
                last.insert(digest, *slot);
            });
        }
        for slot in slots {
            self.exec = slot;
            let is_null =
                self.survivors.iter().any(|it| it.said.get(&slot).is_some_and(|said| said.is_null));
            let batch = self.batch_of(slot, None)?;
            // PROTOCOL 6.2-h: what was opened again was null before.
            let batch =
                batch.filter(|batch| !is_null && last.get(&batch.info.digest) == Some(&slot));
            if let Some(batch) = batch {
                self.apply(&batch);
            }
            self.exec = slot + 1;
        }
        Ok(())
    }

    fn learn_codes(&mut self) {
        for layout in self.machine.members().layouts() {
            self.codecs.learn_of(layout);
        }
    }
}

/// Whether these are logs of different nodes of one cluster.
fn check_together<D: Device>(survivors: &[Survivor<D>]) -> Result<(), String> {
    let Some(first) = survivors.first() else { return Err("there are no survivors".into()) };
    for (at, other) in survivors.iter().enumerate().skip(1) {
        let (one, two) = (first.owner.identity, other.owner.identity);
        if one.cluster != two.cluster {
            return Err(format!(
                "{} is of cluster {:016x}, {} of cluster {:016x}: survivors are of one cluster",
                first.name, one.cluster, other.name, two.cluster
            ));
        }
        if (one.lane, one.lanes) != (two.lane, two.lanes) {
            return Err(format!(
                "{} is of lane {} of {}, {} of lane {} of {}: each lane is salvaged by itself",
                first.name, one.lane, one.lanes, other.name, two.lane, two.lanes
            ));
        }
        if let Some(same) = survivors[..at].iter().find(|it| it.node() == other.node()) {
            return Err(format!(
                "{} and {} are both of node {}: give the one that took part last",
                same.name,
                other.name,
                other.node()
            ));
        }
    }
    Ok(())
}

/// The newest sound checkpoint of all survivors; or the beginning.
fn find_base<D: Device>(
    survivors: &mut [Survivor<D>],
    founded: Option<Founded>,
    pool: &Pool,
) -> Result<(Machine, Base), String> {
    let members = |nodes: usize| vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); nodes];
    let cluster = survivors[0].owner.identity.cluster;
    let usual = NodeConfig::new(cluster, 0, members(1), 0, 1);
    let mut all: Vec<(Slot, usize, usize)> = Vec::new();
    for (at, survivor) in survivors.iter().enumerate() {
        let drafts = survivor.drafts.iter().enumerate();
        all.extend(drafts.map(|(draft, it)| (it.exec, at, draft)));
    }
    all.sort_unstable_by(|a, b| b.cmp(a));
    let mut unusable = Vec::new();
    for (exec, at, draft) in all {
        let survivor = &mut survivors[at];
        let generation = survivor.drafts[draft].generation;
        match survivor.load(draft, limits(&usual), pool) {
            Ok(machine) => {
                let of = Some(format!("checkpoint {generation} of {}", survivor.name));
                return Ok((machine, Base { of, exec, unusable }));
            }
            Err(why) => {
                unusable.push(format!("checkpoint {generation} of {}: {why}", survivor.name));
            }
        }
    }
    if let Some(survivor) = survivors.iter().find(|it| it.owner.marks[0].tag > 0) {
        let why = if unusable.is_empty() { String::new() } else { unusable.join("; ") + "; " };
        return Err(format!(
            "{why}no sound checkpoint is left, and the log in {} does not reach back to the beginning",
            survivor.name
        ));
    }
    let Some(Founded { nodes, f, k }) = founded else {
        return Err(
            "no survivor has written a checkpoint yet, which would tell who the members were: \
                    say how the cluster was founded, by --nodes N --f F --k K as in the \
                    configuration of any node"
                .into(),
        );
    };
    let config = NodeConfig { members: members(nodes), f, k, ..usual };
    let possible = racos_protocol::Config::new((nodes, f, k), 0).thresholds();
    possible.map_err(|error| error.to_string())?;
    let machine = Machine::with_members(limits(&config), founding(&config));
    Ok((machine, Base { of: None, exec: 0, unusable }))
}

/// What operations do, for people.
fn deeds(ops: &[Op]) -> Vec<Deed> {
    ops.iter().flat_map(deeds_of).collect()
}

fn deeds_of(op: &Op) -> Vec<Deed> {
    let one = |what, key: Option<&[u8]>| vec![Deed { what, key: key.map(Into::into) }];
    match &op.action {
        Action::Put { key, .. } => one("put", Some(key)),
        Action::Delete { key } => one("delete", Some(key)),
        Action::DeleteRange { from, .. } => one("delete the keys from", Some(from)),
        Action::Part { .. } => one("store a part of a large value", None),
        Action::Txn(txn) => {
            let mut all = Vec::new();
            txn.each_step(&mut |step| match step {
                Step::Put(put) => all.extend(one("perhaps put", Some(&put.key))),
                Step::Delete { span: Span::One(key), .. } => {
                    all.extend(one("perhaps delete", Some(key)));
                }
                Step::Delete { .. } => all.extend(one("perhaps delete a range of keys", None)),
                _ => {}
            });
            all
        }
        Action::LeaseGrant { .. } => one("grant a lease", None),
        Action::LeaseRevoke { .. } | Action::LeaseExpire { .. } => one("end a lease", None),
        Action::Compact { .. } => one("compact", None),
        Action::Auth(_) => one("change users or roles", None),
        Action::Restore(_) => one("restore", None),
        Action::ReplaceNode(_) | Action::Reconfigure(_) | Action::MoveNode { .. } => {
            one("change the members", None)
        }
        // About sessions, or of the nodes' own: nobody misses them.
        _ => Vec::new(),
    }
}
