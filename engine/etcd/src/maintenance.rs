//! The service Maintenance.

use crate::errors::{NO_LEADER, NOT_LEADER, known, not_served};
use crate::face::{Face, answer, reply};
use crate::http::API_VERSION;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::maintenance_server::Maintenance;
use crate::save::Saving;
use racos_engine::api::types::AlarmKind;
use tonic::{Request, Response, Status};

fn alarm_member((member, kind): &(u64, AlarmKind)) -> pb::AlarmMember {
    let alarm = match kind {
        AlarmKind::NoSpace => pb::AlarmType::Nospace,
        AlarmKind::Corrupt => pb::AlarmType::Corrupt,
        // etcd knows no such alarm; it is gone before anybody may use the cluster.
        AlarmKind::Restoring => pb::AlarmType::None,
    };
    pb::AlarmMember { member_id: *member, alarm: alarm as i32 }
}

#[tonic::async_trait]
impl Maintenance for Face {
    async fn alarm(
        &self,
        request: Request<pb::AlarmRequest>,
    ) -> Result<Response<pb::AlarmResponse>, Status> {
        use pb::alarm_request::AlarmAction;
        let (face, asked) = self.enter(request).await?;
        let kind = match asked.alarm() {
            pb::AlarmType::None => None,
            pb::AlarmType::Nospace => Some(AlarmKind::NoSpace),
            pb::AlarmType::Corrupt => Some(AlarmKind::Corrupt),
        };
        let standing = answer(face.node.alarms()).await?;
        let alarms = match (asked.action(), kind) {
            (AlarmAction::Get, kind) => {
                standing.into_iter().filter(|alarm| kind.is_none_or(|it| alarm.1 == it)).collect()
            }
            (_, None) => Vec::new(),
            (AlarmAction::Activate, Some(kind)) => {
                answer(face.node.alarm(asked.member_id, kind, true)).await?;
                vec![(asked.member_id, kind)]
            }
            (AlarmAction::Deactivate, Some(kind)) => {
                answer(face.node.alarm(asked.member_id, kind, false)).await?;
                // Only what stood is told as ended.
                standing.into_iter().filter(|alarm| *alarm == (asked.member_id, kind)).collect()
            }
        };
        let revision = answer(face.node.status()).await?.revision;
        let alarms = alarms.iter().map(alarm_member).collect();
        reply(pb::AlarmResponse { header: self.header(revision), alarms })
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let (face, _) = self.enter(request).await?;
        let status = answer(face.node.status()).await?;
        let identity = self.node.identity();
        let mut errors = Vec::new();
        if status.leader == 0 {
            errors.push(NO_LEADER.1.to_string());
        }
        for alarm in &status.alarms {
            let member = alarm_member(alarm);
            errors.push(format!(
                "memberID:{} alarm:{} ",
                member.member_id,
                member.alarm().as_str_name()
            ));
        }
        reply(pb::StatusResponse {
            header: self.header(status.revision),
            version: API_VERSION.into(),
            db_size: status.db_size as i64,
            leader: status.leader,
            raft_index: status.seen,
            raft_term: identity.term,
            raft_applied_index: status.exec,
            errors,
            db_size_in_use: status.db_size_in_use as i64,
            is_learner: false,
            storage_version: API_VERSION.into(),
            db_size_quota: 0,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        })
    }

    /// The log gives back space by itself, so there is nothing to do and nothing is blocked.
    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        let (face, _) = self.enter(request).await?;
        face.require_root().await?;
        reply(pb::DefragmentResponse { header: None })
    }

    async fn hash(
        &self,
        request: Request<pb::HashRequest>,
    ) -> Result<Response<pb::HashResponse>, Status> {
        let (face, _) = self.enter(request).await?;
        let found = answer(face.node.hash_kv(0)).await?;
        reply(pb::HashResponse { header: self.header(found.revision), hash: found.hash })
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let found = answer(face.node.hash_kv(asked.revision)).await?;
        reply(pb::HashKvResponse {
            header: self.header(found.revision),
            hash: found.hash,
            compact_revision: found.compact_revision,
            hash_revision: found.hash_revision,
        })
    }

    type SnapshotStream = Saving;

    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let (face, _) = self.enter(request).await?;
        reply(Saving::start(face))
    }

    /// There is no leader that could be moved; no node is the one that is asked for.
    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        let (face, _) = self.enter(request).await?;
        face.require_root().await?;
        Err(known(NOT_LEADER))
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        let (face, _) = self.enter(request).await?;
        face.require_root().await?;
        Err(not_served("a racos node has no older etcd version to become"))
    }
}
