//! One step asked of a server, and its answer as text that two servers can be compared by.
//!
//! Invariant: everything in an answer is compared, but for ids of clusters and members, terms, and
//! the seconds that a lease has left.

use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::auth_client::AuthClient;
use racos_etcd::pb::etcdserverpb::cluster_client::ClusterClient;
use racos_etcd::pb::etcdserverpb::kv_client::KvClient;
use racos_etcd::pb::etcdserverpb::lease_client::LeaseClient;
use racos_etcd::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use std::fmt::Debug;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// One request.
#[derive(Debug, Clone)]
pub enum Step {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases,
    HashKv(pb::HashKvRequest),
    Auth(AuthStep),
    Member(MemberStep),
}

/// What is asked of the members, and refused: who they are differs.
#[derive(Debug, Clone)]
pub enum MemberStep {
    /// With these peer URLs.
    Add(&'static [&'static str]),
    /// With the peer URLs of a member.
    AddAgain,
    /// The only member, or one of so many that no other may go.
    Remove,
    RemoveNobody,
    UpdateNobody,
    Promote,
    PromoteNobody,
}

/// What is asked of users and roles where there are none.
#[derive(Debug, Clone)]
pub enum AuthStep {
    Enable,
    Disable,
    Authenticate,
    Users,
    Roles,
    User(&'static str),
    Role(&'static str),
    AddUser(&'static str),
    AddRole(&'static str),
    DeleteUser,
    DeleteRole,
    Password,
    GrantRole,
    RevokeRole,
    GrantPermission,
    RevokePermission,
}

/// Connections to all members of one cluster.
pub struct Client {
    members: Vec<Channel>,
}

const MESSAGE_BYTES_MAX: usize = 256 << 20;

impl Client {
    pub async fn connect(endpoints: &[String]) -> Client {
        let mut members = Vec::new();
        for endpoint in endpoints {
            let endpoint = tonic::transport::Endpoint::from_shared(endpoint.clone()).unwrap();
            members.push(endpoint.connect().await.unwrap());
        }
        Client { members }
    }

    pub fn channel(&self, member: usize) -> Channel {
        self.members[member % self.members.len()].clone()
    }

    pub fn kv(&self, member: usize) -> KvClient<Channel> {
        KvClient::new(self.channel(member))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub fn lease(&self, member: usize) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel(member))
    }

    /// Asks one member and writes down what it says.
    pub async fn ask(&self, member: usize, step: &Step) -> String {
        let mut kv = self.kv(member);
        let mut lease = self.lease(member);
        match step.clone() {
            Step::Range(asked) => told(kv.range(asked).await, |it| &mut it.header),
            Step::Put(asked) => told(kv.put(asked).await, |it| &mut it.header),
            Step::Delete(asked) => told(kv.delete_range(asked).await, |it| &mut it.header),
            Step::Txn(asked) => told(kv.txn(asked).await, |it| &mut it.header),
            Step::Compact(asked) => told(kv.compact(asked).await, |it| &mut it.header),
            Step::Grant(asked) => told(lease.lease_grant(asked).await, |it| &mut it.header),
            Step::Revoke(asked) => told(lease.lease_revoke(asked).await, |it| &mut it.header),
            Step::TimeToLive(asked) => {
                let mut answer = lease.lease_time_to_live(asked).await;
                if let Ok(answer) = &mut answer {
                    let answer = answer.get_mut();
                    answer.ttl = answer.ttl.signum();
                    answer.keys.sort();
                }
                told(answer, |it| &mut it.header)
            }
            Step::Leases => {
                let mut answer = lease.lease_leases(pb::LeaseLeasesRequest {}).await;
                if let Ok(answer) = &mut answer {
                    answer.get_mut().leases.sort_by_key(|lease| lease.id);
                }
                told(answer, |it| &mut it.header)
            }
            Step::Member(step) => self.ask_members(member, step).await,
            Step::Auth(step) => self.ask_auth(member, step).await,
            Step::HashKv(asked) => {
                // A hash is that of one member alone: it shall have executed what was done before.
                let range = pb::RangeRequest { key: "a".into(), ..Default::default() };
                kv.range(range).await.expect("a plain read is answered");
                let mut maintenance = MaintenanceClient::new(self.channel(member));
                let mut answer = maintenance.hash_kv(asked).await;
                if let Ok(answer) = &mut answer {
                    // Newer than the etcd that is compared with.
                    answer.get_mut().hash_revision = 0;
                }
                told(answer, |it| &mut it.header)
            }
        }
    }
}

impl Client {
    async fn ask_members(&self, member: usize, step: MemberStep) -> String {
        let mut cluster = ClusterClient::new(self.channel(member));
        let listed = cluster.member_list(pb::MemberListRequest { linearizable: true }).await;
        let first = listed.expect("members are listed").into_inner().members.swap_remove(0);
        let (nobody, peer_ur_ls) = (9, vec!["http://127.0.0.1:9".to_string()]);
        macro_rules! told {
            ($call:ident, $request:expr) => {
                told(cluster.$call($request).await, |it| &mut it.header)
            };
        }
        match step {
            MemberStep::Add(urls) => {
                let peer_ur_ls = urls.iter().map(|url| url.to_string()).collect();
                told!(member_add, pb::MemberAddRequest { peer_ur_ls, ..Default::default() })
            }
            MemberStep::AddAgain => {
                let peer_ur_ls = first.peer_ur_ls;
                told!(member_add, pb::MemberAddRequest { peer_ur_ls, ..Default::default() })
            }
            MemberStep::Remove => told!(member_remove, pb::MemberRemoveRequest { id: first.id }),
            MemberStep::RemoveNobody => {
                told!(member_remove, pb::MemberRemoveRequest { id: nobody })
            }
            MemberStep::UpdateNobody => {
                told!(member_update, pb::MemberUpdateRequest { id: nobody, peer_ur_ls })
            }
            MemberStep::Promote => told!(member_promote, pb::MemberPromoteRequest { id: first.id }),
            MemberStep::PromoteNobody => {
                told!(member_promote, pb::MemberPromoteRequest { id: nobody })
            }
        }
    }

    async fn ask_auth(&self, member: usize, step: AuthStep) -> String {
        let mut auth = AuthClient::new(self.channel(member));
        let (name, role) = ("nobody".to_string(), "no role".to_string());
        macro_rules! told {
            ($call:ident, $request:expr) => {
                told(auth.$call($request).await, |it| &mut it.header)
            };
        }
        match step {
            AuthStep::Enable => told!(auth_enable, pb::AuthEnableRequest {}),
            AuthStep::Disable => told!(auth_disable, pb::AuthDisableRequest {}),
            AuthStep::Authenticate => {
                told!(authenticate, pb::AuthenticateRequest { name, ..Default::default() })
            }
            AuthStep::Users => told!(user_list, pb::AuthUserListRequest {}),
            AuthStep::Roles => told!(role_list, pb::AuthRoleListRequest {}),
            AuthStep::User(name) => told!(user_get, pb::AuthUserGetRequest { name: name.into() }),
            AuthStep::Role(role) => told!(role_get, pb::AuthRoleGetRequest { role: role.into() }),
            AuthStep::AddUser(name) => {
                let name = name.into();
                told!(user_add, pb::AuthUserAddRequest { name, ..Default::default() })
            }
            AuthStep::AddRole(name) => {
                told!(role_add, pb::AuthRoleAddRequest { name: name.into() })
            }
            AuthStep::DeleteUser => told!(user_delete, pb::AuthUserDeleteRequest { name }),
            AuthStep::DeleteRole => told!(role_delete, pb::AuthRoleDeleteRequest { role }),
            AuthStep::Password => {
                let asked = pb::AuthUserChangePasswordRequest { name, ..Default::default() };
                told!(user_change_password, asked)
            }
            AuthStep::GrantRole => {
                told!(user_grant_role, pb::AuthUserGrantRoleRequest { user: name, role })
            }
            AuthStep::RevokeRole => {
                told!(user_revoke_role, pb::AuthUserRevokeRoleRequest { name, role })
            }
            AuthStep::GrantPermission => {
                let perm = Some(Default::default());
                told!(
                    role_grant_permission,
                    pb::AuthRoleGrantPermissionRequest { name: role, perm }
                )
            }
            AuthStep::RevokePermission => {
                let asked = pb::AuthRoleRevokePermissionRequest { role, ..Default::default() };
                told!(role_revoke_permission, asked)
            }
        }
    }
}

fn told<T: Debug>(
    answer: Result<Response<T>, Status>,
    header: impl Fn(&mut T) -> &mut Option<pb::ResponseHeader>,
) -> String {
    match answer {
        Ok(answer) => {
            let mut answer = answer.into_inner();
            let header = header(&mut answer).as_mut().expect("every answer has a header");
            assert!(header.cluster_id != 0 && header.member_id != 0, "{header:?}");
            *header = pb::ResponseHeader { revision: header.revision, ..Default::default() };
            format!("{answer:?}")
        }
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}
