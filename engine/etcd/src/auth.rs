//! The service Auth: users, roles, permissions, and tokens for those who know a password.

use crate::errors::{AUTH_FAILED, AUTH_NOT_ENABLED, NO_PASSWORD, PERMISSION_NOT_GIVEN, known};
use crate::face::{Face, answer, reply};
use crate::pb::authpb;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::auth_server::Auth;
use crate::token;
use authpb::permission::Type;
use racos_engine::api::{AuthAsk, AuthTold, Handle};
use racos_engine::runtime::random_u128;
use racos_machine::{AuthStep, Caller, Name, Permission, PermissionKind, Secret};
use tonic::{Request, Response, Status};

/// A new secret, from the operating system.
pub fn draw_secret() -> Secret {
    let mut secret = [0; 32];
    for half in secret.chunks_exact_mut(16) {
        half.copy_from_slice(&random_u128().to_le_bytes());
    }
    Secret(secret)
}

fn name(text: String) -> Name {
    text.into_bytes().into()
}

fn texts(names: Vec<Name>) -> Vec<String> {
    names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

impl Face {
    /// Carries a step out; the header of its answer.
    async fn auth_step(&self, step: AuthStep) -> Result<Option<pb::ResponseHeader>, Status> {
        let done = self.ask(step, Handle::auth_step).await?;
        Ok(self.header(done.revision))
    }

    async fn auth_ask(
        &self,
        ask: AuthAsk,
    ) -> Result<(Option<pb::ResponseHeader>, AuthTold), Status> {
        let told = answer(self.node.auth(ask)).await?;
        Ok((self.header(told.revision), told.told))
    }

    async fn names(
        &self,
        ask: AuthAsk,
    ) -> Result<(Option<pb::ResponseHeader>, Vec<String>), Status> {
        match self.auth_ask(ask).await? {
            (header, AuthTold::Names(names)) => Ok((header, texts(names))),
            (_, told) => unreachable!("a list of names is not {told:?}"),
        }
    }

    /// Refuses whoever is not root.
    pub async fn require_root(&self) -> Result<(), Status> {
        self.auth_ask(AuthAsk::State).await.map(|_| ())
    }
}

#[tonic::async_trait]
impl Auth for Face {
    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let (face, _) = self.enter(request).await?;
        let (header, told) = face.auth_ask(AuthAsk::State).await?;
        let AuthTold::State(auth) = told else { unreachable!("the state is not {told:?}") };
        let (enabled, auth_revision) = (auth.enabled, auth.revision);
        reply(pb::AuthStatusResponse { header, enabled, auth_revision })
    }

    /// Who knows the password gets a token. It is of the user as looked up: if the password is changed
    /// before the token is used, it is good for nothing.
    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let asked = self.open(request)?;
        let user = name(asked.name);
        let login = answer(self.node.login(user.clone())).await?;
        if !login.auth.enabled {
            return Err(known(AUTH_NOT_ENABLED));
        }
        let hash = login.user.as_ref().and_then(|user| user.password.as_ref());
        let is_right = self.passwords.check(asked.password, hash).await?;
        let since = match login.user {
            Some(user) if is_right => user.since,
            Some(user) if user.password.is_none() => return Err(known(NO_PASSWORD)),
            _ => return Err(known(AUTH_FAILED)),
        };
        let token = token::issue(&Caller { user, since }, &login.auth, token::now());
        reply(pb::AuthenticateResponse { header: self.header(login.revision), token })
    }

    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        let (face, _) = self.enter(request).await?;
        let header = face.auth_step(AuthStep::Enable { secret: draw_secret() }).await?;
        reply(pb::AuthEnableResponse { header })
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        let (face, _) = self.enter(request).await?;
        let header = face.auth_step(AuthStep::Disable).await?;
        reply(pb::AuthDisableResponse { header })
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let password = match asked.options.is_some_and(|options| options.no_password) {
            true => None,
            false => {
                // Hashing takes long: not for those who may not add users.
                face.require_root().await?;
                Some(face.passwords.hash(asked.password).await?)
            }
        };
        let header = face.auth_step(AuthStep::UserAdd { name: name(asked.name), password }).await?;
        reply(pb::AuthUserAddResponse { header })
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let (header, roles) = face.names(AuthAsk::User(name(asked.name))).await?;
        reply(pb::AuthUserGetResponse { header, roles })
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        let (face, _) = self.enter(request).await?;
        let (header, users) = face.names(AuthAsk::Users).await?;
        reply(pb::AuthUserListResponse { header, users })
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let header = face.auth_step(AuthStep::UserDelete { name: name(asked.name) }).await?;
        reply(pb::AuthUserDeleteResponse { header })
    }

    /// An empty password is nobody's: the user cannot log in any more.
    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let password = match asked.password.is_empty() {
            true => Default::default(),
            false => {
                face.require_root().await?;
                face.passwords.hash(asked.password).await?
            }
        };
        let step = AuthStep::ChangePassword { name: name(asked.name), password };
        reply(pb::AuthUserChangePasswordResponse { header: face.auth_step(step).await? })
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let step = AuthStep::GrantRole { user: name(asked.user), role: name(asked.role) };
        reply(pb::AuthUserGrantRoleResponse { header: face.auth_step(step).await? })
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let step = AuthStep::RevokeRole { user: name(asked.name), role: name(asked.role) };
        reply(pb::AuthUserRevokeRoleResponse { header: face.auth_step(step).await? })
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let header = face.auth_step(AuthStep::RoleAdd { name: name(asked.name) }).await?;
        reply(pb::AuthRoleAddResponse { header })
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let (header, told) = face.auth_ask(AuthAsk::Role(name(asked.role))).await?;
        let AuthTold::Permissions(held) = told else { unreachable!("a role is not {told:?}") };
        let perm = held.into_iter().map(|permission| authpb::Permission {
            perm_type: match permission.kind {
                PermissionKind::Read => Type::Read,
                PermissionKind::Write => Type::Write,
                PermissionKind::ReadWrite => Type::Readwrite,
            } as i32,
            key: permission.key.into_vec().into(),
            range_end: permission.end.into_vec().into(),
        });
        reply(pb::AuthRoleGetResponse { header, perm: perm.collect() })
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        let (face, _) = self.enter(request).await?;
        let (header, roles) = face.names(AuthAsk::Roles).await?;
        reply(pb::AuthRoleListResponse { header, roles })
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let header = face.auth_step(AuthStep::RoleDelete { name: name(asked.role) }).await?;
        reply(pb::AuthRoleDeleteResponse { header })
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let Some(perm) = asked.perm else {
            face.require_root().await?;
            return Err(known(PERMISSION_NOT_GIVEN));
        };
        let kind = match Type::try_from(perm.perm_type) {
            Ok(Type::Read) => PermissionKind::Read,
            Ok(Type::Write) => PermissionKind::Write,
            Ok(Type::Readwrite) => PermissionKind::ReadWrite,
            Err(_) => return Err(known(PERMISSION_NOT_GIVEN)),
        };
        let permission =
            Permission { kind, key: perm.key[..].into(), end: perm.range_end[..].into() };
        let step = AuthStep::GrantPermission { role: name(asked.name), permission };
        reply(pb::AuthRoleGrantPermissionResponse { header: face.auth_step(step).await? })
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let (face, asked) = self.enter(request).await?;
        let (key, end) = (asked.key[..].into(), asked.range_end[..].into());
        let step = AuthStep::RevokePermission { role: name(asked.role), key, end };
        reply(pb::AuthRoleRevokePermissionResponse { header: face.auth_step(step).await? })
    }
}
