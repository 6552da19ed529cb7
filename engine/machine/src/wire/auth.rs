//! The encoding of users, roles and permissions.
//!
//! ```text
//! step       = kind (1 byte), fields of the kind
//! entry      = kind (1 byte), fields of the kind
//! name       = length and bytes
//! password   = 0, or 1, length and bytes
//! permission = kind (1 byte), key, end
//! ```

use super::{Reader, put_key, put_varint};
use crate::auth::{
    AuthEntry, AuthStep, Name, PASSWORD_BYTES_MAX, Password, Permission, PermissionKind, Secret,
};
use crate::op::{USER_BYTES_MAX, check_bounds, check_key};
use crate::wire::{DecodeError, Problem};

mod step {
    pub(super) const ENABLE: u8 = 1;
    pub(super) const DISABLE: u8 = 2;
    pub(super) const USER_ADD: u8 = 3;
    pub(super) const USER_DELETE: u8 = 4;
    pub(super) const CHANGE_PASSWORD: u8 = 5;
    pub(super) const GRANT_ROLE: u8 = 6;
    pub(super) const REVOKE_ROLE: u8 = 7;
    pub(super) const ROLE_ADD: u8 = 8;
    pub(super) const ROLE_DELETE: u8 = 9;
    pub(super) const GRANT_PERMISSION: u8 = 10;
    pub(super) const REVOKE_PERMISSION: u8 = 11;
}

mod entry {
    pub(super) const ROLE: u8 = 1;
    pub(super) const PERMISSION: u8 = 2;
    pub(super) const USER: u8 = 3;
    pub(super) const GRANT: u8 = 4;
    pub(super) const STATE: u8 = 5;
}

pub(super) fn put_step(out: &mut Vec<u8>, asked: &AuthStep) {
    match asked {
        AuthStep::Enable { secret } => {
            out.push(step::ENABLE);
            out.extend_from_slice(&secret.0);
        }
        AuthStep::Disable => out.push(step::DISABLE),
        AuthStep::UserAdd { name, password } => {
            out.push(step::USER_ADD);
            put_key(out, name);
            put_password(out, password.as_ref());
        }
        AuthStep::UserDelete { name } => {
            out.push(step::USER_DELETE);
            put_key(out, name);
        }
        AuthStep::ChangePassword { name, password } => {
            out.push(step::CHANGE_PASSWORD);
            put_key(out, name);
            put_key(out, &password.0);
        }
        AuthStep::GrantRole { user, role } => {
            out.push(step::GRANT_ROLE);
            put_key(out, user);
            put_key(out, role);
        }
        AuthStep::RevokeRole { user, role } => {
            out.push(step::REVOKE_ROLE);
            put_key(out, user);
            put_key(out, role);
        }
        AuthStep::RoleAdd { name } => {
            out.push(step::ROLE_ADD);
            put_key(out, name);
        }
        AuthStep::RoleDelete { name } => {
            out.push(step::ROLE_DELETE);
            put_key(out, name);
        }
        AuthStep::GrantPermission { role, permission } => {
            out.push(step::GRANT_PERMISSION);
            put_key(out, role);
            put_permission(out, permission);
        }
        AuthStep::RevokePermission { role, key, end } => {
            out.push(step::REVOKE_PERMISSION);
            put_key(out, role);
            put_key(out, key);
            put_key(out, end);
        }
    }
}

pub(crate) fn put_entry(out: &mut Vec<u8>, piece: &AuthEntry) {
    match piece {
        AuthEntry::Role { name } => {
            out.push(entry::ROLE);
            put_key(out, name);
        }
        AuthEntry::Permission { role, permission } => {
            out.push(entry::PERMISSION);
            put_key(out, role);
            put_permission(out, permission);
        }
        AuthEntry::User { name, since, password } => {
            out.push(entry::USER);
            put_key(out, name);
            put_varint(out, *since);
            put_password(out, password.as_ref());
        }
        AuthEntry::Grant { user, role } => {
            out.push(entry::GRANT);
            put_key(out, user);
            put_key(out, role);
        }
        AuthEntry::State { enabled, revision, secret } => {
            out.push(entry::STATE);
            out.push(u8::from(*enabled));
            put_varint(out, *revision);
            out.extend_from_slice(&secret.0);
        }
    }
}

fn put_password(out: &mut Vec<u8>, password: Option<&Password>) {
    out.push(u8::from(password.is_some()));
    password.iter().for_each(|password| put_key(out, &password.0));
}

fn put_permission(out: &mut Vec<u8>, permission: &Permission) {
    out.push(permission.kind as u8);
    put_key(out, &permission.key);
    put_key(out, &permission.end);
}

fn check_name(name: &Name) -> Result<(), DecodeError> {
    check_bounds("name", name.len(), 0, USER_BYTES_MAX)
}

fn check_password(password: &Password) -> Result<(), DecodeError> {
    check_bounds("password", password.0.len(), 0, PASSWORD_BYTES_MAX)
}

fn check_permission(permission: &Permission) -> Result<(), DecodeError> {
    check_key("key", &permission.key, 0)?;
    check_key("range end", &permission.end, 0)
}

impl AuthStep {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        match self {
            AuthStep::Enable { .. } | AuthStep::Disable => Ok(()),
            AuthStep::UserAdd { name, password } => {
                check_name(name)?;
                password.as_ref().map_or(Ok(()), check_password)
            }
            AuthStep::ChangePassword { name, password } => {
                check_name(name)?;
                check_password(password)
            }
            AuthStep::UserDelete { name }
            | AuthStep::RoleAdd { name }
            | AuthStep::RoleDelete { name } => check_name(name),
            AuthStep::GrantRole { user, role } | AuthStep::RevokeRole { user, role } => {
                check_name(user)?;
                check_name(role)
            }
            AuthStep::GrantPermission { role, permission } => {
                check_name(role)?;
                check_permission(permission)
            }
            AuthStep::RevokePermission { role, key, end } => {
                check_name(role)?;
                check_key("key", key, 0)?;
                check_key("range end", end, 0)
            }
        }
    }
}

impl AuthEntry {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        match self {
            AuthEntry::Role { name } => check_name(name),
            AuthEntry::Permission { role, permission } => {
                check_name(role)?;
                check_permission(permission)
            }
            AuthEntry::User { name, password, .. } => {
                check_name(name)?;
                password.as_ref().map_or(Ok(()), check_password)
            }
            AuthEntry::Grant { user, role } => {
                check_name(user)?;
                check_name(role)
            }
            AuthEntry::State { .. } => Ok(()),
        }
    }

    /// As in exports.
    pub fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_entry(&mut out, self);
        out
    }

    /// An entry that takes up all of `bytes`.
    ///
    /// # Errors
    /// If they are not exactly one.
    pub fn decode(bytes: &[u8]) -> Result<AuthEntry, DecodeError> {
        let mut reader = Reader { rest: bytes };
        let entry = reader.auth_entry()?;
        match reader.rest.len() {
            0 => Ok(entry),
            bytes => Err(DecodeError::new("auth entry", Problem::Trailing { bytes })),
        }
    }
}

impl Reader<'_> {
    fn name(&mut self, field: &'static str) -> Result<Name, DecodeError> {
        let name = self.key(field)?;
        check_name(&name)?;
        Ok(name)
    }

    fn hash_of_password(&mut self) -> Result<Password, DecodeError> {
        let password = Password(self.key("password")?);
        check_password(&password)?;
        Ok(password)
    }

    fn password(&mut self) -> Result<Option<Password>, DecodeError> {
        match self.flag("password")? {
            true => self.hash_of_password().map(Some),
            false => Ok(None),
        }
    }

    fn secret(&mut self) -> Result<Secret, DecodeError> {
        self.array("secret").map(Secret)
    }

    fn permission(&mut self) -> Result<Permission, DecodeError> {
        let kind = match self.byte("permission")? {
            0 => PermissionKind::Read,
            1 => PermissionKind::Write,
            2 => PermissionKind::ReadWrite,
            other => {
                let problem = Problem::Unknown { value: other.into() };
                return Err(DecodeError::new("permission", problem));
            }
        };
        Ok(Permission { kind, key: self.key("key")?, end: self.key("range end")? })
    }

    pub(super) fn auth_step(&mut self) -> Result<AuthStep, DecodeError> {
        Ok(match self.byte("auth step")? {
            step::ENABLE => AuthStep::Enable { secret: self.secret()? },
            step::DISABLE => AuthStep::Disable,
            step::USER_ADD => {
                AuthStep::UserAdd { name: self.name("user")?, password: self.password()? }
            }
            step::USER_DELETE => AuthStep::UserDelete { name: self.name("user")? },
            step::CHANGE_PASSWORD => {
                let (name, password) = (self.name("user")?, self.hash_of_password()?);
                AuthStep::ChangePassword { name, password }
            }
            step::GRANT_ROLE => {
                AuthStep::GrantRole { user: self.name("user")?, role: self.name("role")? }
            }
            step::REVOKE_ROLE => {
                AuthStep::RevokeRole { user: self.name("user")?, role: self.name("role")? }
            }
            step::ROLE_ADD => AuthStep::RoleAdd { name: self.name("role")? },
            step::ROLE_DELETE => AuthStep::RoleDelete { name: self.name("role")? },
            step::GRANT_PERMISSION => {
                let (role, permission) = (self.name("role")?, self.permission()?);
                AuthStep::GrantPermission { role, permission }
            }
            step::REVOKE_PERMISSION => AuthStep::RevokePermission {
                role: self.name("role")?,
                key: self.key("key")?,
                end: self.key("range end")?,
            },
            other => {
                let problem = Problem::Unknown { value: other.into() };
                return Err(DecodeError::new("auth step", problem));
            }
        })
    }

    pub(crate) fn auth_entry(&mut self) -> Result<AuthEntry, DecodeError> {
        Ok(match self.byte("auth entry")? {
            entry::ROLE => AuthEntry::Role { name: self.name("role")? },
            entry::PERMISSION => {
                let (role, permission) = (self.name("role")?, self.permission()?);
                AuthEntry::Permission { role, permission }
            }
            entry::USER => AuthEntry::User {
                name: self.name("user")?,
                since: self.varint("since")?,
                password: self.password()?,
            },
            entry::GRANT => AuthEntry::Grant { user: self.name("user")?, role: self.name("role")? },
            entry::STATE => AuthEntry::State {
                enabled: self.flag("enabled")?,
                revision: self.varint("auth revision")?,
                secret: self.secret()?,
            },
            other => {
                let problem = Problem::Unknown { value: other.into() };
                return Err(DecodeError::new("auth entry", problem));
            }
        })
    }
}
