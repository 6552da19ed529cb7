//! One step asked of a server, and its answer as text that two servers can be compared by.
//!
//! Invariant: everything in an answer is compared, but for ids of clusters and members, terms, and
//! the seconds that a lease has left.

use racos_etcd::pb::authpb::permission::Type;
use racos_etcd::pb::authpb::{Permission, UserAddOptions};
use racos_etcd::pb::etcdserverpb as pb;
use racos_etcd::pb::etcdserverpb::auth_client::AuthClient;
use racos_etcd::pb::etcdserverpb::cluster_client::ClusterClient;
use racos_etcd::pb::etcdserverpb::kv_client::KvClient;
use racos_etcd::pb::etcdserverpb::lease_client::LeaseClient;
use racos_etcd::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use racos_etcd::pb::etcdserverpb::watch_client::WatchClient;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Mutex;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

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
    /// The first answer to a watch.
    Watch(pb::WatchCreateRequest),
    /// With the token of a user.
    As(&'static str, Box<Step>),
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

/// What is asked of users and roles.
#[derive(Debug, Clone)]
pub enum AuthStep {
    Enable,
    Disable,
    /// A user and a password; the token is shown from then on by [`Step::As`].
    Login(&'static str, &'static str),
    Users,
    Roles,
    User(&'static str),
    Role(&'static str),
    AddUser(&'static str, &'static str),
    AddUserWithoutPassword(&'static str),
    AddRole(&'static str),
    DeleteUser(&'static str),
    DeleteRole(&'static str),
    Password(&'static str, &'static str),
    /// A user and a role.
    Grant(&'static str, &'static str),
    Revoke(&'static str, &'static str),
    /// A role, what for, and the keys.
    Permit(&'static str, Type, &'static str, &'static str),
    Forbid(&'static str, &'static str, &'static str),
}

/// Shows a token with every request, if there is one.
#[derive(Clone)]
struct Shows(Option<MetadataValue<Ascii>>);

impl Interceptor for Shows {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

type Asking = InterceptedService<Channel, Shows>;

/// Connections to all members of one cluster.
pub struct Client {
    members: Vec<Channel>,
    /// By user.
    tokens: Mutex<BTreeMap<&'static str, String>>,
}

const MESSAGE_BYTES_MAX: usize = 256 << 20;

impl Client {
    pub async fn connect(endpoints: &[String]) -> Client {
        let mut members = Vec::new();
        for endpoint in endpoints {
            let endpoint = tonic::transport::Endpoint::from_shared(endpoint.clone()).unwrap();
            members.push(endpoint.connect().await.unwrap());
        }
        Client { members, tokens: Mutex::default() }
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

    /// The token that a user was given last; of others, a word that is none.
    fn token_of(&self, user: &'static str) -> MetadataValue<Ascii> {
        let tokens = self.tokens.lock().unwrap();
        tokens.get(user).map_or(user, String::as_str).parse().unwrap()
    }

    /// Asks one member and writes down what it says.
    pub async fn ask(&self, member: usize, step: &Step) -> String {
        let (shown, step) = match step {
            Step::As(user, step) => (Some(self.token_of(user)), &**step),
            step => (None, step),
        };
        let channel = InterceptedService::new(self.channel(member), Shows(shown));
        let mut kv = KvClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let mut lease = LeaseClient::new(channel.clone());
        match step.clone() {
            Step::As(..) => unreachable!("a step is asked as one user"),
            Step::Watch(asked) => first_of_watch(channel, asked).await,
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
            Step::Member(step) => self.ask_members(channel, step).await,
            Step::Auth(step) => self.ask_auth(channel, step).await,
            Step::HashKv(asked) => {
                // A hash is that of one member alone: it shall have executed what was done before.
                let range = pb::RangeRequest { key: "a".into(), ..Default::default() };
                kv.range(range).await.expect("a plain read is answered");
                let mut maintenance = MaintenanceClient::new(channel);
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
    async fn ask_members(&self, channel: Asking, step: MemberStep) -> String {
        let mut cluster = ClusterClient::new(channel);
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

    async fn ask_auth(&self, channel: Asking, step: AuthStep) -> String {
        let mut auth = AuthClient::new(channel);
        macro_rules! told {
            ($call:ident, $request:expr) => {
                told(auth.$call($request).await, |it| &mut it.header)
            };
        }
        match step {
            AuthStep::Enable => told!(auth_enable, pb::AuthEnableRequest {}),
            AuthStep::Disable => told!(auth_disable, pb::AuthDisableRequest {}),
            AuthStep::Login(user, password) => {
                let (name, password) = (user.into(), password.into());
                let mut answer =
                    auth.authenticate(pb::AuthenticateRequest { name, password }).await;
                if let Ok(answer) = &mut answer {
                    let token = std::mem::take(&mut answer.get_mut().token);
                    assert!(!token.is_empty());
                    self.tokens.lock().unwrap().insert(user, token);
                }
                told(answer, |it| &mut it.header)
            }
            AuthStep::Users => told!(user_list, pb::AuthUserListRequest {}),
            AuthStep::Roles => told!(role_list, pb::AuthRoleListRequest {}),
            AuthStep::User(name) => told!(user_get, pb::AuthUserGetRequest { name: name.into() }),
            AuthStep::Role(role) => told!(role_get, pb::AuthRoleGetRequest { role: role.into() }),
            AuthStep::AddUser(name, password) => {
                let (name, password) = (name.into(), password.into());
                told!(user_add, pb::AuthUserAddRequest { name, password, ..Default::default() })
            }
            AuthStep::AddUserWithoutPassword(name) => {
                let (name, options) = (name.into(), Some(UserAddOptions { no_password: true }));
                told!(user_add, pb::AuthUserAddRequest { name, options, ..Default::default() })
            }
            AuthStep::AddRole(name) => {
                told!(role_add, pb::AuthRoleAddRequest { name: name.into() })
            }
            AuthStep::DeleteUser(name) => {
                told!(user_delete, pb::AuthUserDeleteRequest { name: name.into() })
            }
            AuthStep::DeleteRole(role) => {
                told!(role_delete, pb::AuthRoleDeleteRequest { role: role.into() })
            }
            AuthStep::Password(name, password) => {
                let (name, password) = (name.into(), password.into());
                let hashed_password = String::new();
                let asked = pb::AuthUserChangePasswordRequest { name, password, hashed_password };
                told!(user_change_password, asked)
            }
            AuthStep::Grant(user, role) => {
                let (user, role) = (user.into(), role.into());
                told!(user_grant_role, pb::AuthUserGrantRoleRequest { user, role })
            }
            AuthStep::Revoke(name, role) => {
                let (name, role) = (name.into(), role.into());
                told!(user_revoke_role, pb::AuthUserRevokeRoleRequest { name, role })
            }
            AuthStep::Permit(role, kind, key, end) => {
                let (key, range_end) = (key.into(), end.into());
                let perm = Some(Permission { perm_type: kind as i32, key, range_end });
                let asked = pb::AuthRoleGrantPermissionRequest { name: role.into(), perm };
                told!(role_grant_permission, asked)
            }
            AuthStep::Forbid(role, key, end) => {
                let (role, key, range_end) = (role.into(), key.into(), end.into());
                let asked = pb::AuthRoleRevokePermissionRequest { role, key, range_end };
                told!(role_revoke_permission, asked)
            }
        }
    }
}

/// What a watch is answered first.
async fn first_of_watch(channel: Asking, asked: pb::WatchCreateRequest) -> String {
    use pb::watch_request::RequestUnion;
    let mut watch = WatchClient::new(channel);
    let asked = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(asked)) };
    let asked = tokio_stream::StreamExt::chain(tokio_stream::once(asked), tokio_stream::pending());
    match watch.watch(asked).await {
        Ok(answers) => {
            let first = answers.into_inner().message().await;
            let first = first.map(|first| Response::new(first.expect("a watch is answered")));
            told(first, |it| &mut it.header)
        }
        Err(status) => told(Err::<Response<pb::WatchResponse>, _>(status), |it| &mut it.header),
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
