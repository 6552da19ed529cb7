//! The service Lock: who has the oldest key under a name has the lock.

use crate::face::{Face, answer, reply};
use crate::pb::v3lockpb as pb;
use crate::pb::v3lockpb::lock_server::Lock;
use crate::queue;
use bytes::Bytes;
use racos_engine::api::types::{Delete, Keys};
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Lock for Face {
    async fn lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<Response<pb::LockResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let lease = queue::session(&face.node, asked.lease).await?;
        let (mut place, _) = queue::enter(&face.node, &asked.name, lease, Bytes::new()).await?;
        let entered = place.revision;
        place.come_first(&face.node).await?;
        // Who waited may have lost the lease meanwhile.
        if place.revision != entered && !place.is_held(&face.node).await? {
            return Err(Status::unknown("mutex: session is expired"));
        }
        reply(pb::LockResponse { header: self.header(place.revision), key: place.key })
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let delete = Delete { keys: Keys::One(asked.key), prev_kv: false };
        let done = answer(face.node.delete(delete)).await?;
        reply(pb::UnlockResponse { header: self.header(done.revision) })
    }
}
