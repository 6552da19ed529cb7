//! The service Auth, of a cluster that has no users, no roles, and authentication off.
//!
//! Invariant: everything is answered as by an etcd in that state, but for the two calls that would leave
//! it, which are refused: a user or role that is stored and not obeyed would be a false promise.

use crate::errors::{
    AUTH_NOT_ENABLED, PERMISSION_NOT_GIVEN, ROLE_EMPTY, ROLE_NOT_FOUND, ROOT_USER_NOT_FOUND,
    USER_EMPTY, USER_NOT_FOUND, known, not_served,
};
use crate::face::{Face, answer, reply};
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::auth_server::Auth;
use racos_machine::AUTH_REVISION_FIRST;
use tonic::{Request, Response, Status};

impl Face {
    async fn auth_header(&self) -> Result<Option<pb::ResponseHeader>, Status> {
        Ok(self.header(answer(self.node.status()).await?.revision))
    }
}

#[tonic::async_trait]
impl Auth for Face {
    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        self.open(request)?;
        let header = self.auth_header().await?;
        reply(pb::AuthStatusResponse { header, enabled: false, auth_revision: AUTH_REVISION_FIRST })
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        self.open(request)?;
        Err(known(AUTH_NOT_ENABLED))
    }

    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        self.open(request)?;
        Err(known(ROOT_USER_NOT_FOUND))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        self.open(request)?;
        reply(pb::AuthDisableResponse { header: self.auth_header().await? })
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        match self.open(request)?.name.is_empty() {
            true => Err(known(USER_EMPTY)),
            false => Err(not_served("there are no users yet: every client may do everything")),
        }
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        self.open(request)?;
        Err(known(USER_NOT_FOUND))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        self.open(request)?;
        reply(pb::AuthUserListResponse { header: self.auth_header().await?, users: Vec::new() })
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        self.open(request)?;
        Err(known(USER_NOT_FOUND))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        self.open(request)?;
        Err(known(USER_NOT_FOUND))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        self.open(request)?;
        Err(known(USER_NOT_FOUND))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        self.open(request)?;
        Err(known(USER_NOT_FOUND))
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        match self.open(request)?.name.is_empty() {
            true => Err(known(ROLE_EMPTY)),
            false => Err(not_served("there are no roles yet: every client may do everything")),
        }
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        self.open(request)?;
        Err(known(ROLE_NOT_FOUND))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        self.open(request)?;
        reply(pb::AuthRoleListResponse { header: self.auth_header().await?, roles: Vec::new() })
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        self.open(request)?;
        Err(known(ROLE_NOT_FOUND))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        match self.open(request)?.perm {
            None => Err(known(PERMISSION_NOT_GIVEN)),
            Some(_) => Err(known(ROLE_NOT_FOUND)),
        }
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        self.open(request)?;
        Err(known(ROLE_NOT_FOUND))
    }
}
