//! The fragments of a disk that is to be replaced, taken over by the one that replaces it
//! (PROTOCOL 10-f).
//!
//! Purpose: a disk that may not take part any more, since it lost promises or was put back, still holds
//! most of what it held. What is copied into the new log before the new incarnation's first start need not
//! be made again from the fragments of others.
//!
//! Invariant: what is copied has its checksum and is of a value that the old log shows to be in use, and
//! it is written as a repaired fragment: no promise comes with it. Whether its value is in use still, the
//! new incarnation judges by the state that it takes from the others (PROTOCOL 9.3-f).
//! What would break it: a record of another kind, or a fragment of another node's place.

use super::survivor::Survivor;
use super::{Founded, Salvage, Undecided};
use crate::config::NodeConfig;
use crate::record::kind;
use crate::replay::{identity, log_config};
use crate::wire::cursor::Writer;
use racos_buffer::{Pool, Slice};
use racos_machine::Value;
use racos_protocol::Slot;
use racos_storage::device::Device;
use racos_storage::{Class, Event, Full, Log};

/// What was taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Adopted {
    pub fragments: u64,
    pub bytes: u64,
    /// Of values that the old log shows to be in use: damaged, or not there.
    pub missing: u64,
}

/// Copies what an old disk of a node holds into the log of the new incarnation, which has never run.
/// `progress` is told fragments looked at, and all of them.
///
/// # Errors
/// The old disk is not one of an earlier incarnation of this node, nothing can be made of its log, or the
/// new log takes no more.
pub fn adopt<O: Device, D: Device>(
    config: &NodeConfig,
    device: D,
    old: Survivor<O>,
    pool: &Pool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Adopted, String> {
    let (mine, theirs) = (identity(config), old.owner.identity);
    let of = |it: racos_storage::Identity| (it.cluster, it.node, it.lane, it.lanes);
    if of(mine) != of(theirs) || theirs.incarnation >= mine.incarnation {
        return Err(format!(
            "{} holds the log of node {}, incarnation {}, lane {} of {}, of cluster {:016x}: fragments \
             are taken over from an earlier disk of the same node and lane",
            old.name, theirs.node, theirs.incarnation, theirs.lane, theirs.lanes, theirs.cluster
        ));
    }
    let founded = Founded { nodes: config.members.len(), f: config.f, k: config.k };
    let mut salvage = Salvage::execute(vec![old], Some(founded), Undecided::Leave, pool.clone())?;
    salvage.find_fragments(&mut |_, _, _| {})?;
    let settings = log_config(config).map_err(|error| error.to_string())?;
    let opened = Log::open(device, pool.clone(), settings, mine, &mut |_| {});
    let (log, _) = opened.map_err(|error| error.to_string())?;
    let mut into = NewLog { log, pool };
    let mut adopted = Adopted::default();
    let all = salvage.machine().values_len() as u64;
    let mut done = 0;
    salvage.each_fragment(&mut |value, slot, bytes| {
        done += 1;
        progress(done, all);
        let Some(bytes) = bytes else {
            adopted.missing += 1;
            return Ok(());
        };
        adopted.fragments += 1;
        adopted.bytes += bytes.len() as u64;
        into.append(value, slot, &bytes)
    })?;
    into.finish()?;
    Ok(adopted)
}

/// The new log.
struct NewLog<'a, D: Device> {
    log: Log<D>,
    pool: &'a Pool,
}

impl<D: Device> NewLog<'_, D> {
    /// PROTOCOL 10-f: with its checksum, and as what was made again.
    fn append(&mut self, value: &Value, slot: Slot, bytes: &Slice) -> Result<(), String> {
        let mut head = Vec::with_capacity(28);
        head.put_u128(value.op.0);
        head.put_u64(slot);
        head.put_u32(crc32fast::hash(bytes));
        loop {
            // In a buffer of its own, as the log wants it.
            let body = self.pool.copy(bytes).ok_or("no memory")?;
            match self.log.append_until(kind::REPAIRED, &head, &[body], Class::Upkeep, 0) {
                Ok(_) => return Ok(()),
                Err(Full::Disk) => return Err("the new disk is full".into()),
                Err(_) => self.wait()?,
            }
        }
    }

    /// Lets the disk complete something.
    fn wait(&mut self) -> Result<(), String> {
        self.log.kick();
        self.log.submit();
        let idle = self.log.device_mut().settle();
        let mut events = Vec::new();
        self.log.poll(&mut events);
        let failed = events.iter().find_map(|event| match event {
            Event::Failed(what) => Some(format!("the new disk failed: {what}")),
            _ => None,
        });
        match (failed, idle) {
            (Some(failed), _) => Err(failed),
            (None, Err(error)) if events.is_empty() => Err(format!("the new disk: {error}")),
            _ => Ok(()),
        }
    }

    fn finish(mut self) -> Result<(), String> {
        while self.log.flushed_record() < self.log.last_record() {
            self.wait()?;
        }
        Ok(())
    }
}
