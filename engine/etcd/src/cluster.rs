//! The service Cluster.

use crate::errors::not_served;
use crate::face::{Face, answer, reply};
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::cluster_server::Cluster;
use tonic::{Request, Response, Status};

/// Where it is said how members are changed.
const CHANGES: &str = "members are not changed over this API; see the README, `racos member`";

#[tonic::async_trait]
impl Cluster for Face {
    async fn member_add(
        &self,
        _: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(not_served(CHANGES))
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(not_served(CHANGES))
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(not_served(CHANGES))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.open(request)?;
        let status = answer(self.node.status()).await?;
        let clients = &self.settings.endpoints;
        let members = status.members.into_iter().map(|member| pb::Member {
            id: member.id,
            name: format!("node{}", member.node),
            peer_ur_ls: vec![format!("udp://{}", member.address)],
            // Empty, as in etcd for a member that has not told: one that was added later.
            client_ur_ls: clients
                .get(usize::from(member.node))
                .map(|client| format!("http://{client}"))
                .into_iter()
                .collect(),
            is_learner: false,
        });
        let members = members.collect();
        reply(pb::MemberListResponse { header: self.header(status.revision), members })
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(not_served(CHANGES))
    }
}
