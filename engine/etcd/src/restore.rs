//! Filling a new cluster from a backup (Backup.Restore).
//!
//! The steps go through the log like every write, so each node codes and keeps what it should, and a
//! node may die meanwhile. Versions are sent ahead of their answers; of one key they may then come in
//! another order than they were sent, which the state machine sees and refuses: those are sent again.
//!
//! Invariant: bytes and steps on their way are bounded. Nobody sees what was restored before the end
//! of the backup has come, undamaged, and the state machine has found that all is there.

use crate::auth::draw_secret;
use crate::backup::{FormatError, Piece, Reader};
use crate::errors::status_of;
use crate::face::{Face, Token, answer, reply};
use crate::pb::racospb as pb;
use crate::pb::racospb::backup_server::Backup;
use bytes::Bytes;
use racos_engine::api::types::{BackupVersion, Done, RestoreStep};
use racos_engine::api::{Error, Pending};
use racos_machine::AuthEntry;
use std::collections::VecDeque;
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::{Request, Response, Status, Streaming};

/// Versions on their way, and bytes of them.
const FLYING_MAX: usize = 1024;
const FLYING_BYTES_MAX: usize = 16 << 20;
/// How often a step that was not taken is sent again, and the pause before that.
const TRIES_MAX: u32 = 200;
const PAUSE: Duration = Duration::from_millis(20);

#[tonic::async_trait]
impl Backup for Face {
    async fn restore(
        &self,
        request: Request<Streaming<pb::RestoreRequest>>,
    ) -> Result<Response<pb::RestoreResponse>, Status> {
        self.check_leader(request.metadata())?;
        let face = self.of(&Token::of(request.metadata())).await?;
        face.require_root().await?;
        let mut blobs = request.into_inner();
        let mut reader = Reader::default();
        // From here on it is this node that restores: the users of the backup are not those who ask.
        let node = face.node.itself();
        let mut restoring = Restoring::new(Face { node, ..face });
        while let Some(blob) = blobs.next().await {
            reader.push(&blob?.blob);
            while let Some(piece) = reader.next_piece().map_err(malformed)? {
                restoring.take(piece).await?;
            }
        }
        // Only a backup that is whole and undamaged is ended.
        let end = reader.finish().map_err(malformed)?;
        let revision = restoring.end(&end).await?;
        reply(pb::RestoreResponse {
            cluster_id: self.node.identity().cluster_id,
            revision,
            keys: end.keys,
            versions: end.versions,
        })
    }
}

fn malformed(error: FormatError) -> Status {
    Status::invalid_argument(format!("racos: this is not a good backup: {error}"))
}

struct Flying {
    step: RestoreStep,
    bytes: usize,
    pending: Pending<Done>,
}

struct Restoring {
    face: Face,
    flying: VecDeque<Flying>,
    bytes: usize,
    /// The last version sent.
    last: Option<(Bytes, u64, u32)>,
}

impl Restoring {
    fn new(face: Face) -> Restoring {
        Restoring { face, flying: VecDeque::new(), bytes: 0, last: None }
    }

    async fn take(&mut self, piece: Piece) -> Result<(), Status> {
        match piece {
            Piece::Head(head) => {
                // Sent once: whether it was taken must be known.
                let step = RestoreStep::Begin { revision: head.revision as u64 };
                answer(self.face.node.restore(step)).await?;
            }
            Piece::Leases(leases) => {
                for lease in leases.leases {
                    self.send(RestoreStep::Lease { id: lease.id, ttl: lease.ttl }, 16).await?;
                }
            }
            Piece::Auth(auth) => {
                for entry in auth.entries {
                    self.auth(&entry).await?;
                }
            }
            Piece::Versions(versions) => {
                for version in versions.versions {
                    self.version(version).await?;
                }
            }
            // It is acted upon when the sum behind it has come.
            Piece::End(_) => {}
        }
        Ok(())
    }

    /// One after the other: each may name those before it. Tokens of the cluster that was saved are good
    /// for nothing in this one.
    async fn auth(&mut self, bytes: &[u8]) -> Result<(), Status> {
        let mut entry = AuthEntry::decode(bytes)
            .map_err(|error| Status::invalid_argument(format!("racos: {error}")))?;
        if let AuthEntry::State { secret, .. } = &mut entry {
            *secret = draw_secret();
        }
        self.send(RestoreStep::Auth(Box::new(entry)), bytes.len()).await?;
        while !self.flying.is_empty() {
            self.land().await?;
        }
        Ok(())
    }

    async fn version(&mut self, from: pb::BackupVersion) -> Result<(), Status> {
        let before = match self.last.take() {
            Some((key, main, sub)) if key == from.key => (main, sub),
            _ => (0, 0),
        };
        self.last = Some((from.key.clone(), from.main, from.sub));
        let bytes = from.key.len() + from.value.len();
        let version = BackupVersion {
            key: from.key,
            main: from.main,
            sub: from.sub,
            create: from.create_revision,
            number: from.version,
            lease: from.lease,
            value: (!from.is_delete).then_some(from.value),
        };
        self.send(RestoreStep::Version { before, version }, bytes).await
    }

    /// Sends a step, when there is room for it.
    async fn send(&mut self, step: RestoreStep, bytes: usize) -> Result<(), Status> {
        let is_full = |flying: usize, held: usize| {
            flying >= FLYING_MAX || (flying > 0 && held + bytes > FLYING_BYTES_MAX)
        };
        while is_full(self.flying.len(), self.bytes) {
            self.land().await?;
        }
        let pending = self.face.node.restore(step.clone());
        self.bytes += bytes;
        self.flying.push_back(Flying { step, bytes, pending });
        Ok(())
    }

    /// Waits for the oldest step, and sends it again until it is taken.
    async fn land(&mut self) -> Result<(), Status> {
        let Some(Flying { step, bytes, pending }) = self.flying.pop_front() else { return Ok(()) };
        self.bytes -= bytes;
        let mut result = pending.await;
        for _ in 0..TRIES_MAX {
            match result {
                Ok(_) => return Ok(()),
                // Taken or not: a step that was is not taken twice.
                Err(Error::Busy(_) | Error::Unavailable(_)) => {}
                Err(error) => return Err(status_of(error)),
            }
            tokio::time::sleep(PAUSE).await;
            result = self.face.node.restore(step.clone()).await;
        }
        result.map(|_| ()).map_err(status_of)
    }

    async fn end(&mut self, end: &pb::BackupEnd) -> Result<i64, Status> {
        while !self.flying.is_empty() {
            self.land().await?;
        }
        let step = RestoreStep::End {
            keys: end.keys,
            versions: end.versions,
            leases: end.leases,
            compact_revision: end.compact_revision,
            hash: end.hash,
        };
        Ok(answer(self.face.node.restore(step)).await?.revision)
    }
}
