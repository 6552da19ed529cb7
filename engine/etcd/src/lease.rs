//! The service Lease.

use crate::face::{Face, answer, reply};
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::lease_server::Lease;
use std::pin::Pin;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

#[tonic::async_trait]
impl Lease for Face {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let asked = self.open(request)?;
        let lease = answer(self.node.lease_grant(asked.id, asked.ttl)).await?;
        let header = self.header(lease.revision);
        reply(pb::LeaseGrantResponse { header, id: lease.id, ttl: lease.ttl, error: String::new() })
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let asked = self.open(request)?;
        let done = answer(self.node.lease_revoke(asked.id)).await?;
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
        let face = self.clone();
        let answers = request.into_inner().then(move |asked| {
            let face = face.clone();
            async move {
                let id = asked?.id;
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
        let asked = self.open(request)?;
        let lease = answer(self.node.lease_time_to_live(asked.id, asked.keys)).await?;
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
        self.open(request)?;
        let found = answer(self.node.leases()).await?;
        let leases = found.ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        reply(pb::LeaseLeasesResponse { header: self.header(found.revision), leases })
    }
}
