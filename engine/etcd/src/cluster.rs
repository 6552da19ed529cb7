//! The service Cluster: members listed, added, moved and removed.
//!
//! A peer URL is the UDP address of a node, `HOST:PORT`, as its configuration and `racos member list`
//! have it; `http://`, which etcd's clients ask for, may stand before it. A member is added when its
//! node runs already and looks on: what etcd calls a learner needs no call. One that is updated is reached
//! elsewhere from then on; its node is to be started there.

use crate::errors::{MEMBER_BAD_URLS, MEMBER_NOT_FOUND, MEMBER_NOT_LEARNER, known, refused};
use crate::face::{Face, answer, reply};
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::cluster_server::Cluster;
use racos_engine::api::types::{Member, MembersAnswer};
use std::net::SocketAddr;
use tonic::{Request, Response, Status};

/// What may stand before the address of a node.
const SCHEMES: [&str; 3] = ["http://", "https://", "udp://"];

impl Face {
    fn member(&self, member: &Member) -> pb::Member {
        let known = self.settings.endpoints.get(usize::from(member.node)).map(String::as_str);
        pb::Member {
            id: member.id,
            name: format!("node{}", member.node),
            peer_ur_ls: vec![format!("udp://{}", member.address)],
            // Empty, as in etcd, for a member that has not told.
            client_ur_ls: member
                .clients
                .as_deref()
                .or(known)
                .map(|client| format!("http://{client}"))
                .into_iter()
                .collect(),
            is_learner: false,
        }
    }

    fn members(&self, told: &MembersAnswer) -> Vec<pb::Member> {
        told.members.iter().map(|member| self.member(member)).collect()
    }

    /// Whether there is such a member, as far as this node knows.
    async fn find_member(&self, id: u64) -> Result<(), Status> {
        let told = answer(self.node.members(true)).await?;
        match told.members.iter().any(|member| member.id == id) {
            true => Ok(()),
            false => Err(known(MEMBER_NOT_FOUND)),
        }
    }
}

/// The address that peer URLs stand for: there is one.
async fn peer_address(urls: &[String]) -> Result<SocketAddr, Status> {
    let bad = || known(MEMBER_BAD_URLS);
    let [url] = urls else { return Err(bad()) };
    let stripped = SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme));
    let place = stripped.unwrap_or(url).to_string();
    if place.contains('/') {
        return Err(bad());
    }
    let mut found = tokio::net::lookup_host(place).await.map_err(|_| bad())?;
    found.next().ok_or_else(bad)
}

#[tonic::async_trait]
impl Cluster for Face {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        face.require_root().await?;
        let address = peer_address(&asked.peer_ur_ls).await?;
        if asked.is_learner {
            return Err(refused(
                "a node that runs and is no member looks on already, as a learner does; add it without \
                 --learner to make it a member",
            ));
        }
        let done = answer(face.node.member_add(address)).await?;
        reply(pb::MemberAddResponse {
            header: self.header(done.revision),
            member: done.members.iter().find(|it| it.id == done.id).map(|it| self.member(it)),
            members: self.members(&done),
        })
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let done = answer(face.node.member_remove(asked.id)).await?;
        let (header, members) = (self.header(done.revision), self.members(&done));
        reply(pb::MemberRemoveResponse { header, members })
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        face.require_root().await?;
        face.find_member(asked.id).await?;
        let address = peer_address(&asked.peer_ur_ls).await?;
        let done = answer(face.node.member_update(asked.id, address)).await?;
        let (header, members) = (self.header(done.revision), self.members(&done));
        reply(pb::MemberUpdateResponse { header, members })
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let told = answer(face.node.members(!asked.linearizable)).await?;
        let (header, members) = (self.header(told.revision), self.members(&told));
        reply(pb::MemberListResponse { header, members })
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        face.require_root().await?;
        face.find_member(asked.id).await?;
        // All that are listed are members.
        Err(known(MEMBER_NOT_LEARNER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_url_is_one_address_with_or_without_a_scheme() {
        let of = async |urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(|url| url.to_string()).collect();
            peer_address(&urls).await.map_err(|status| (status.code(), status.message().to_owned()))
        };
        for good in
            ["127.0.0.1:7", "http://127.0.0.1:7", "https://127.0.0.1:7", "udp://127.0.0.1:7"]
        {
            assert_eq!(of(&[good]).await, Ok("127.0.0.1:7".parse().unwrap()), "{good}");
        }
        let bad = Err((MEMBER_BAD_URLS.0, MEMBER_BAD_URLS.1.to_owned()));
        for odd in ["", "127.0.0.1", "http://127.0.0.1:7/path", "unix://127.0.0.1:7", "a b:7"] {
            assert_eq!(of(&[odd]).await, bad, "{odd}");
        }
        assert_eq!(of(&[]).await, bad);
        assert_eq!(of(&["127.0.0.1:7", "127.0.0.1:8"]).await, bad);
    }
}
