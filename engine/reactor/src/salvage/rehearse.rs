//! A restore of what was salvaged, done by the shipped machine before anybody does it for real.
//!
//! Purpose: a backup that a new cluster would refuse at its end is of no use; and what the end must tell is
//! the hash of what was written, which only a store that holds that has.
//!
//! Invariant: the steps are those of a restore, in its order, judged by the code that judges them there.
//! The hash is made of the bytes that were put together.

use racos_machine::{
    Action, AuthEntry, Content, Founding, Key, Limits, Machine, Op, OpId, Outcome, Restore,
    RestoreEnd, RestoredVersion, Revision, Value, Version,
};

/// See the module.
pub struct Rehearsal {
    machine: Machine,
    steps: u64,
    last: Option<(Key, Revision)>,
}

impl Rehearsal {
    /// # Errors
    /// As a restore would be refused; so for all of these.
    pub fn begin(revision: u64) -> Result<Rehearsal, String> {
        let founding = Founding { nodes: 1, lost_max: 0, data: 1, alpha: 1024 };
        let machine = Machine::with_members(Limits::default(), founding);
        let mut rehearsal = Rehearsal { machine, steps: 0, last: None };
        rehearsal.step(Restore::Begin { revision })?;
        Ok(rehearsal)
    }

    pub fn lease(&mut self, id: i64, ttl: i64) -> Result<(), String> {
        self.step(Restore::Lease { id, ttl })
    }

    pub fn auth(&mut self, entry: AuthEntry) -> Result<(), String> {
        self.step(Restore::Auth(Box::new(entry)))
    }

    /// The next version by key and revision; `bytes`: `None` for a tombstone.
    pub fn version(
        &mut self,
        key: &[u8],
        version: &Version<'_>,
        bytes: Option<&[u8]>,
    ) -> Result<(), String> {
        let modified = version.modified();
        let before = self.last.take().filter(|(last, _)| **last == *key);
        let before = before.map_or(Revision::default(), |(_, before)| before);
        self.last = Some((key.into(), modified));
        let content = bytes.map(|bytes| {
            let mut head = [0; 8];
            let used = bytes.len().min(8);
            head[..used].copy_from_slice(&bytes[..used]);
            Content::Whole(Value {
                op: OpId(u128::from(self.steps + 1)),
                len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                digest: [0; 16],
                crc: crc32c::crc32c(bytes),
                head,
                k: 1,
                n: 1,
                layout: 0,
            })
        });
        self.step(Restore::Version(Box::new(RestoredVersion {
            key: key.into(),
            before,
            modified,
            create: version.created(),
            number: version.number(),
            lease: version.lease(),
            content,
        })))
    }

    /// What the end of the backup has to tell.
    pub fn end(&mut self, compacted: Option<u64>) -> Result<RestoreEnd, String> {
        let hash = self.machine.hash_as_compacted(compacted);
        let end = RestoreEnd {
            keys: self.machine.keys_len() as u64,
            versions: self.machine.versions_len() as u64,
            leases: self.machine.leases().count() as u64,
            compacted,
            hash: hash.map_err(|refusal| refused(&format!("{refusal:?}")))?,
        };
        self.step(Restore::End(end))?;
        Ok(end)
    }

    fn step(&mut self, step: Restore) -> Result<(), String> {
        self.steps += 1;
        let id = OpId(u128::from(self.steps));
        let op = Op { id, author: None, stamp: None, action: Action::Restore(step) };
        match self.machine.apply(self.steps, 0, &op) {
            Outcome::Refused { reason, .. } => Err(refused(&format!("{reason:?}"))),
            _ => Ok(()),
        }
    }
}

fn refused(why: &str) -> String {
    format!("a new cluster would not take what was salvaged: {why}")
}
