//! The state of the cluster read for a backup, page by page, and written again from one.
//!
//! Invariant: the pages of a backup hold every version that the state at its revision needs above
//! the compact revision that the backup ends with. A compaction that comes while it is read may take
//! versions out of pages that are not read yet, never others; one above the backup's revision ends
//! it.
//! What would break it: a page that is answered without versions whose values were gone, though they
//! are not compacted.

use super::auth::Who;
use super::gather::{Lost, Values};
use super::pending::Answer;
use super::types::*;
use super::write::{Then, contents_of_one};
use crate::batch::Payload;
use crate::layout::BACKED_UP_BYTES_MAX;
use crate::node::Node;
use bytes::Bytes;
use racos_machine::{
    Action, AuthPlace, Content, Key, Op, Refusal, Restore, RestoreEnd, RestoredVersion, Revision,
    Version,
};
use racos_net::Link;
use racos_storage::device::Device;

/// A page ends with the key that reaches one of these,
const PAGE: Room = Room { bytes: 1 << 20, versions: 1000, scanned: 20_000 };
/// or, of a key with so much history, in the middle of it. With one version more, and 64 bytes of numbers for each,
/// it stays within a chunk of the format.
const PAGE_MAX: Room = Room { bytes: 24 << 20, versions: 50_000, scanned: 500_000 };
/// A page whose values go while they are fetched is read again so often.
const TRIES_MAX: u32 = 64;

/// What a page takes: bytes, versions, versions looked at.
struct Room {
    bytes: u64,
    versions: usize,
    scanned: usize,
}

impl Room {
    fn is_used_up(&self, by: &Room) -> bool {
        by.bytes >= self.bytes || by.versions >= self.versions || by.scanned >= self.scanned
    }
}

/// Such a value is asked of nobody: a backup that holds it could not be read again.
fn too_large(key: &[u8], version: &Version<'_>) -> Error {
    Error::TooLarge(format!(
        "the value of key {} at revision {} has {} bytes; in a backup one may have {} MiB: fetch it with \
         `racos get`, delete the key, compact, and save again",
        key.escape_ascii(),
        version.modified().main,
        version.len(),
        BACKED_UP_BYTES_MAX >> 20,
    ))
}

struct Draft {
    key: Bytes,
    modified: Revision,
    create: u64,
    number: u64,
    lease: i64,
    content: Option<Content>,
}

impl Draft {
    fn version(self, values: &Values) -> BackupVersion {
        let Revision { main, sub } = self.modified;
        BackupVersion {
            key: self.key,
            main,
            sub,
            create: self.create,
            number: self.number,
            lease: self.lease,
            value: self.content.map(|content| values.bytes(&content)),
        }
    }
}

impl<L: Link, D: Device> Node<L, D> {
    /// What a backup begins with: a state that holds all that was completed before.
    pub(super) fn backup_begin(&mut self, who: Who, answer: Answer<BackupHead>) {
        self.at_pin(Box::new(move |node, pinned| {
            let allowed = pinned.and_then(|()| node.may_administer(&who));
            let head = allowed.and_then(|()| match node.machine.is_restoring() {
                true => Err(node.refusal(Refusal::Restoring)),
                false => Ok(BackupHead {
                    revision: node.machine.revision() as i64,
                    leases: node.machine.leases().collect(),
                }),
            });
            answer.send(head);
        }));
    }

    /// Users and roles behind a place.
    pub(super) fn backup_auth(
        &self,
        who: &Who,
        after: Option<AuthPlace>,
    ) -> Result<BackupAuth, Error> {
        self.may_administer(who)?;
        let (entries, next) = self.machine.auth_entries_behind(after);
        Ok(BackupAuth { entries, auth_revision: self.machine.auth().revision(), next })
    }

    /// The versions behind `after` that a backup of a revision holds.
    pub(super) fn backup_page(
        &mut self,
        who: Who,
        revision: u64,
        after: BackupPlace,
        answer: Answer<BackupPage>,
        tries: u32,
    ) {
        if let Err(error) = self.may_administer(&who) {
            return answer.send(Err(error));
        }
        if Some(revision) < self.machine.compact_revision() {
            return answer.send(Err(self.refusal(Refusal::Compacted)));
        }
        let modified = Revision { main: after.main, sub: after.sub };
        let compact_revision = self.compact_revision();
        let (mut drafts, mut next) = (Vec::<Draft>::new(), None);
        let mut used = Room { bytes: 0, versions: 0, scanned: 0 };
        let mut last: Option<(&[u8], Revision)> = None;
        for (key, version) in self.machine.versions_after(&after.key, modified) {
            let same_key = last.is_some_and(|(last, _)| last == key);
            if (PAGE.is_used_up(&used) && !same_key) || PAGE_MAX.is_used_up(&used) {
                next = last.map(|(key, modified)| BackupPlace {
                    key: Bytes::copy_from_slice(key),
                    main: modified.main,
                    sub: modified.sub,
                    is_within_key: same_key,
                });
                break;
            }
            let modified = version.modified();
            last = Some((key, modified));
            used.scanned += 1;
            if modified.main <= revision {
                if version.len() > BACKED_UP_BYTES_MAX {
                    return answer.send(Err(too_large(key, &version)));
                }
                used.bytes += version.len() + key.len() as u64;
                used.versions += 1;
                drafts.push(Draft {
                    key: Bytes::copy_from_slice(key),
                    modified,
                    create: version.created(),
                    number: version.number(),
                    lease: version.lease(),
                    content: version.content(),
                });
            }
        }
        let wanted: Vec<Content> =
            drafts.iter().filter_map(|draft| draft.content.clone()).collect();
        self.gather(
            wanted.iter(),
            Box::new(move |node, gathered| match gathered {
                Ok(values) => {
                    let versions = drafts.into_iter().map(|draft| draft.version(&values));
                    let versions = versions.collect();
                    answer.send(Ok(BackupPage { versions, compact_revision, next }));
                }
                // A compaction took a version of the page: it is not needed any more.
                Err(Lost::Gone) if tries < TRIES_MAX => {
                    node.backup_page(who, revision, after, answer, tries + 1);
                }
                Err(Lost::Gone) => answer.send(Err(Error::Unavailable(
                    "values were compacted again and again while they were read".into(),
                ))),
                Err(Lost::Failed(error)) => answer.send(Err(error)),
            }),
        );
    }

    /// A step of a restore.
    pub(super) fn restore_step(&mut self, who: &Who, step: RestoreStep, answer: Answer<Done>) {
        if let Err(error) = self.may_administer(who) {
            return answer.send(Err(error));
        }
        let restore = match step {
            RestoreStep::Begin { revision } => Restore::Begin { revision },
            RestoreStep::Lease { id, ttl } => Restore::Lease { id, ttl },
            RestoreStep::Auth(entry) => Restore::Auth(entry),
            RestoreStep::End { keys, versions, leases, compact_revision, hash } => {
                let compacted = u64::try_from(compact_revision).ok();
                Restore::End(RestoreEnd { keys, versions, leases, compacted, hash })
            }
            RestoreStep::Version { before: (main, sub), version } => {
                let before = Revision { main, sub };
                return self.restore_version(before, version, answer);
            }
        };
        self.propose_action(&Who::Node, Action::Restore(restore), move |result| {
            answer.send(result.map(|revision| Done { revision }));
        });
    }

    fn restore_version(&mut self, before: Revision, version: BackupVersion, answer: Answer<Done>) {
        let BackupVersion { key, main, sub, create, number, lease, value } = version;
        let key: Key = key[..].into();
        let modified = Revision { main, sub };
        let restored = move |content| {
            let key = key.clone();
            RestoredVersion { key, before, modified, create, number, lease, content }
        };
        let done = |node: &Self, applied, answer: Answer<Done>| {
            answer.send(node.revision_after(applied).map(|revision| Done { revision }));
        };
        let Some(value) = value else {
            let restore = Restore::Version(Box::new(restored(None)));
            return self.propose_action(&Who::Node, Action::Restore(restore), move |result| {
                answer.send(result.map(|revision| Done { revision }));
            });
        };
        if value.len() > self.config.bounds.value_bytes_max {
            let then: Then<L, D> = Box::new(move |node, stored| match stored {
                Err(error) => answer.send(Err(error)),
                Ok(stored) => {
                    let version = restored(Some(contents_of_one(stored)));
                    let action = Action::Restore(Restore::Version(Box::new(version)));
                    node.propose_action(&Who::Node, action, move |result| {
                        answer.send(result.map(|revision| Done { revision }));
                    });
                }
            });
            return self.store_stripes(Who::Node, vec![(0, value)], then);
        }
        let Some(body) = self.pool.copy(&value) else {
            return answer.send(Err(super::write::no_buffers()));
        };
        let id = self.next_op_id();
        let content = Content::Whole(self.builder.describe(id, &value));
        let action = Action::Restore(Restore::Version(Box::new(restored(Some(content)))));
        self.propose(
            Op { id, author: None, stamp: None, action },
            Payload::Value(body),
            Box::new(move |node, applied| done(node, applied, answer)),
        );
    }
}
