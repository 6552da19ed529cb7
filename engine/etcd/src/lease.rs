//! The service Lease.

use crate::face::{Face, Token, answer, reply};
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::lease_server::Lease;
use racos_engine::api::Handle;
use std::pin::Pin;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

#[tonic::async_trait]
impl Lease for Face {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let lease =
            face.ask((asked.id, asked.ttl), |node, (id, ttl)| node.lease_grant(id, ttl)).await?;
        let header = self.header(lease.revision);
        reply(pb::LeaseGrantResponse { header, id: lease.id, ttl: lease.ttl, error: String::new() })
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let done = face.ask(asked.id, Handle::lease_revoke).await?;
        reply(pb::LeaseRevokeResponse { header: self.header(done.revision) })
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    /// Renewals of one stream are answered in their order, one after the other.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.check_leader(request.metadata())?;
        let (face, token) = (self.clone(), Token::of(request.metadata()));
        let answers = request.into_inner().then(move |asked| {
            let (face, token) = (face.clone(), token.clone());
            async move {
                let id = asked?.id;
                let face = face.of(&token).await?;
                face.metrics.count(&face.metrics.keep_alives, 1);
                let lease = answer(face.node.lease_keep_alive(id)).await?;
                let header = face.header(lease.revision);
                Ok(pb::LeaseKeepAliveResponse { header, id: lease.id, ttl: lease.ttl })
            }
        });
        reply(Box::pin(answers))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let lease = answer(face.node.lease_time_to_live(asked.id, asked.keys)).await?;
        reply(pb::LeaseTimeToLiveResponse {
            header: self.header(lease.revision),
            id: lease.id,
            ttl: lease.ttl,
            granted_ttl: lease.granted,
            keys: lease.keys,
        })
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let (face, _) = self.enter(request).await?;
        let found = answer(face.node.leases()).await?;
        let leases = found.ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        reply(pb::LeaseLeasesResponse { header: self.header(found.revision), leases })
    }
}
