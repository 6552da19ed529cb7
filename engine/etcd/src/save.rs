//! A backup of the running cluster, streamed (Maintenance.Snapshot).
//!
//! Invariant: at most a page of versions is held here, and it is asked for when what was before it
//! has been taken; a client that is gone ends it. A backup that cannot be whole ends with an error,
//! never with a good end.

use crate::backup::{Piece, Writer};
use crate::errors::status_of;
use crate::face::{Face, answer};
use crate::http::API_VERSION;
use crate::pb::etcdserverpb as pb;
use crate::pb::racospb::{
    BackupAuth, BackupEnd, BackupHead, BackupLease, BackupLeases, BackupVersion, BackupVersions,
};
use bytes::Bytes;
use racos_engine::api::Error;
use racos_engine::api::types::{self, BackupPage, BackupPlace};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;

/// Blobs that wait to be sent, and bytes of one.
const BLOBS_WAITING: usize = 4;
const BLOB_BYTES: usize = 256 << 10;
/// Leases of one chunk.
const LEASES_CHUNK: usize = 10_000;

type Blob = Result<pb::SnapshotResponse, Status>;

/// The blobs of a backup.
pub struct Saving(mpsc::Receiver<Blob>);

impl Saving {
    pub fn start(face: Face) -> Saving {
        let (sender, receiver) = mpsc::channel(BLOBS_WAITING);
        tokio::spawn(async move {
            let mut saver = Saver { face, sender: sender.clone(), writer: Writer::default() };
            if let Err(Ended::Failed(status)) = saver.save().await {
                // Nobody left to be told: the same end.
                let _ = sender.send(Err(status)).await;
            }
        });
        Saving(receiver)
    }
}

impl Stream for Saving {
    type Item = Blob;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Blob>> {
        self.0.poll_recv(context)
    }
}

/// Why a backup ended early.
enum Ended {
    /// The client takes no more.
    Dropped,
    Failed(Status),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Ended {
        Ended::Failed(status)
    }
}

struct Saver {
    face: Face,
    sender: mpsc::Sender<Blob>,
    writer: Writer,
}

impl Saver {
    async fn save(&mut self) -> Result<(), Ended> {
        let node = self.face.node.clone();
        let head = answer(node.backup_begin()).await?;
        let saved_at = SystemTime::now().duration_since(UNIX_EPOCH);
        self.send(&Piece::Head(BackupHead {
            cluster_id: node.identity().cluster_id,
            revision: head.revision,
            saved_by: format!("racos {}", env!("CARGO_PKG_VERSION")),
            saved_at: saved_at.map_or(0, |since| since.as_secs() as i64),
        }))
        .await?;
        let mut end = BackupEnd { leases: head.leases.len() as u64, ..BackupEnd::default() };
        for leases in head.leases.chunks(LEASES_CHUNK) {
            let leases = leases.iter().map(|(id, ttl)| BackupLease { id: *id, ttl: *ttl });
            self.send(&Piece::Leases(BackupLeases { leases: leases.collect() })).await?;
        }
        self.save_auth().await?;
        self.save_versions(head.revision, &mut end).await?;
        // One step tells what was compacted and what the history then is.
        let hashed = answer(node.hash_kv(head.revision)).await?;
        (end.compact_revision, end.hash) = (hashed.compact_revision, hashed.hash);
        self.send(&Piece::End(end)).await
    }

    async fn save_auth(&mut self) -> Result<(), Ended> {
        let (mut after, mut revision) = (None, None);
        loop {
            let page = answer(self.face.node.backup_auth(after)).await?;
            if revision.is_some_and(|revision| revision != page.auth_revision) {
                let text = "racos: users or roles changed while they were saved; save again";
                return Err(Ended::Failed(Status::unavailable(text)));
            }
            revision = Some(page.auth_revision);
            let entries: Vec<Bytes> =
                page.entries.iter().map(|entry| entry.encoded().into()).collect();
            if !entries.is_empty() {
                self.send(&Piece::Auth(BackupAuth { entries })).await?;
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn save_versions(&mut self, revision: i64, end: &mut BackupEnd) -> Result<(), Ended> {
        let mut after = BackupPlace::default();
        let mut last_key: Option<Bytes> = None;
        let mut compacted = -1;
        loop {
            let page = self.face.node.backup_page(revision as u64, after.clone());
            let BackupPage { versions, compact_revision, next } = match page.await {
                // etcd's word for it is about a request, and says nothing of the key.
                Err(Error::TooLarge(text)) => {
                    return Err(Ended::Failed(Status::failed_precondition(format!(
                        "racos: {text}"
                    ))));
                }
                page => page.map_err(status_of)?,
            };
            if after.is_within_key && compact_revision != compacted {
                let text = "racos: a compaction came in the middle of a key with very much \
                            history; save again";
                return Err(Ended::Failed(Status::unavailable(text)));
            }
            compacted = compact_revision;
            for version in &versions {
                if last_key.as_ref() != Some(&version.key) {
                    end.keys += 1;
                    last_key = Some(version.key.clone());
                }
                end.versions += 1;
                end.value_bytes += version.value.as_ref().map_or(0, Bytes::len) as u64;
            }
            if !versions.is_empty() {
                let versions = versions.into_iter().map(message).collect();
                self.send(&Piece::Versions(BackupVersions { versions })).await?;
            }
            match next {
                Some(next) => after = next,
                None => return Ok(()),
            }
        }
    }

    async fn send(&mut self, piece: &Piece) -> Result<(), Ended> {
        let bytes: Bytes = self.writer.write(piece).into();
        for start in (0..bytes.len()).step_by(BLOB_BYTES) {
            let blob = bytes.slice(start..(start + BLOB_BYTES).min(bytes.len()));
            let response = pb::SnapshotResponse {
                header: self.face.header(0),
                // How much there will be is not known before the end.
                remaining_bytes: 0,
                blob,
                version: API_VERSION.into(),
            };
            self.sender.send(Ok(response)).await.map_err(|_| Ended::Dropped)?;
        }
        Ok(())
    }
}

fn message(from: types::BackupVersion) -> BackupVersion {
    BackupVersion {
        key: from.key,
        main: from.main,
        sub: from.sub,
        create_revision: from.create,
        version: from.number,
        lease: from.lease,
        is_delete: from.value.is_none(),
        value: from.value.unwrap_or_default(),
    }
}
