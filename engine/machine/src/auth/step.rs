//! Changes of users, roles and permissions.
//!
//! Invariant: a step is refused for the same reasons as in etcd, looked for in the same order, and a
//! refused one changes nothing. While authentication is on there is a user root with the role root.
//! What would break that: a way around [`Auth::keeps_root`].

use super::{
    AUTH_ENTRIES_MAX, Auth, AuthEntry, Name, Password, Permission, PermissionKind, ROOT, Role,
    Secret, User,
};
use crate::op::Key;
use crate::outcome::Refusal;
use std::collections::BTreeSet;

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthStep {
    /// From now on nobody does anything without a permission.
    Enable {
        secret: Secret,
    },
    Disable,
    /// Without a password: one who cannot log in.
    UserAdd {
        name: Name,
        password: Option<Password>,
    },
    UserDelete {
        name: Name,
    },
    ChangePassword {
        name: Name,
        password: Password,
    },
    GrantRole {
        user: Name,
        role: Name,
    },
    RevokeRole {
        user: Name,
        role: Name,
    },
    RoleAdd {
        name: Name,
    },
    RoleDelete {
        name: Name,
    },
    GrantPermission {
        role: Name,
        permission: Permission,
    },
    RevokePermission {
        role: Name,
        key: Key,
        end: Key,
    },
}

fn require(holds: bool, otherwise: Refusal) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(otherwise) }
}

impl Auth {
    /// Carries a step out.
    pub(crate) fn apply(&mut self, step: &AuthStep) -> Result<(), Refusal> {
        match step {
            AuthStep::Enable { secret } => self.enable(*secret),
            AuthStep::Disable => {
                self.revision += u64::from(self.enabled);
                self.enabled = false;
                Ok(())
            }
            AuthStep::UserAdd { name, password } => self.user_add(name, password.clone()),
            AuthStep::UserDelete { name } => self.user_delete(name),
            AuthStep::ChangePassword { name, password } => self.change_password(name, password),
            AuthStep::GrantRole { user, role } => self.grant_role(user, role),
            AuthStep::RevokeRole { user, role } => self.revoke_role(user, role),
            AuthStep::RoleAdd { name } => self.role_add(name),
            AuthStep::RoleDelete { name } => self.role_delete(name),
            AuthStep::GrantPermission { role, permission } => {
                self.grant_permission(role, permission)
            }
            AuthStep::RevokePermission { role, key, end } => {
                let held = self.roles.get_mut(role).ok_or(Refusal::RoleNotFound)?;
                let place = (key.clone(), end.clone());
                let kind = held.remove(&place).ok_or(Refusal::PermissionNotGranted)?;
                self.forget(permission_entry(role, &place, kind));
                self.revision += 1;
                Ok(())
            }
        }
    }

    fn enable(&mut self, secret: Secret) -> Result<(), Refusal> {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get(ROOT).ok_or(Refusal::RootUserMissing)?;
        require(root.is_root(), Refusal::RootRoleMissing)?;
        // The revision stays, as in etcd; tokens of an earlier time are not good any more.
        (self.enabled, self.secret) = (true, secret);
        Ok(())
    }

    /// Refuses what would leave nobody who may do everything.
    fn keeps_root(&self, touches_root: bool) -> Result<(), Refusal> {
        require(!(self.enabled && touches_root), Refusal::AuthManagement)
    }

    fn has_room(&self) -> Result<(), Refusal> {
        require(self.entries < AUTH_ENTRIES_MAX, Refusal::NoSpace)
    }

    fn user_add(&mut self, name: &Name, password: Option<Password>) -> Result<(), Refusal> {
        require(!name.is_empty(), Refusal::UserEmpty)?;
        require(!self.users.contains_key(name), Refusal::UserExists)?;
        self.has_room()?;
        self.revision += 1;
        let user = User { password, since: self.revision, roles: BTreeSet::new() };
        self.note(user_entry(name, &user));
        self.users.insert(name.clone(), user);
        Ok(())
    }

    fn user_delete(&mut self, name: &Name) -> Result<(), Refusal> {
        self.keeps_root(**name == *ROOT)?;
        let user = self.users.remove(name).ok_or(Refusal::UserNotFound)?;
        for role in &user.roles {
            self.forget(AuthEntry::Grant { user: name.clone(), role: role.clone() });
        }
        self.forget(user_entry(name, &user));
        self.revision += 1;
        Ok(())
    }

    fn change_password(&mut self, name: &Name, password: &Password) -> Result<(), Refusal> {
        let user = self.users.get_mut(name).ok_or(Refusal::UserNotFound)?;
        self.revision += 1;
        let before = user_entry(name, user);
        // Who has none cannot log in, whatever is said.
        user.password = user.password.as_ref().map(|_| password.clone());
        user.since = self.revision;
        let after = user_entry(name, user);
        self.forget(before);
        self.note(after);
        Ok(())
    }

    fn grant_role(&mut self, user: &Name, role: &Name) -> Result<(), Refusal> {
        let held = self.users.get(user).ok_or(Refusal::UserNotFound)?;
        let is_role = **role == *ROOT || self.roles.contains_key(role);
        require(is_role, Refusal::RoleNotFound)?;
        if held.roles.contains(role) {
            return Ok(());
        }
        self.has_room()?;
        self.note(AuthEntry::Grant { user: user.clone(), role: role.clone() });
        let held = self.users.get_mut(user).expect("looked at above");
        held.roles.insert(role.clone());
        self.revision += 1;
        Ok(())
    }

    fn revoke_role(&mut self, user: &Name, role: &Name) -> Result<(), Refusal> {
        self.keeps_root(**user == *ROOT && **role == *ROOT)?;
        let held = self.users.get_mut(user).ok_or(Refusal::UserNotFound)?;
        require(held.roles.remove(role), Refusal::RoleNotGranted)?;
        self.forget(AuthEntry::Grant { user: user.clone(), role: role.clone() });
        self.revision += 1;
        Ok(())
    }

    fn role_add(&mut self, name: &Name) -> Result<(), Refusal> {
        require(!name.is_empty(), Refusal::RoleEmpty)?;
        require(!self.roles.contains_key(name), Refusal::RoleExists)?;
        self.has_room()?;
        self.note(AuthEntry::Role { name: name.clone() });
        self.roles.insert(name.clone(), Role::new());
        self.revision += 1;
        Ok(())
    }

    fn role_delete(&mut self, name: &Name) -> Result<(), Refusal> {
        self.keeps_root(**name == *ROOT)?;
        let role = self.roles.remove(name).ok_or(Refusal::RoleNotFound)?;
        for (place, kind) in &role {
            self.forget(permission_entry(name, place, *kind));
        }
        self.forget(AuthEntry::Role { name: name.clone() });
        let mut users = std::mem::take(&mut self.users);
        for (user, held) in &mut users {
            if held.roles.remove(name) {
                self.forget(AuthEntry::Grant { user: user.clone(), role: name.clone() });
            }
        }
        self.users = users;
        self.revision += 1;
        Ok(())
    }

    fn grant_permission(&mut self, role: &Name, permission: &Permission) -> Result<(), Refusal> {
        let held = self.roles.get(role).ok_or(Refusal::RoleNotFound)?;
        require(permission.is_possible(), Refusal::AuthManagement)?;
        let place = (permission.key.clone(), permission.end.clone());
        match held.get(&place) {
            Some(before) => self.forget(permission_entry(role, &place, *before)),
            None => self.has_room()?,
        }
        self.note(permission_entry(role, &place, permission.kind));
        let held = self.roles.get_mut(role).expect("looked at above");
        held.insert(place, permission.kind);
        self.revision += 1;
        Ok(())
    }

    pub(super) fn note(&mut self, entry: AuthEntry) {
        self.sum.add(entry.hash());
        self.entries += 1;
    }

    fn forget(&mut self, entry: AuthEntry) {
        self.sum.sub(entry.hash());
        self.entries -= 1;
    }
}

pub(super) fn user_entry(name: &Name, user: &User) -> AuthEntry {
    let (password, since) = (user.password.clone(), user.since);
    AuthEntry::User { name: name.clone(), since, password }
}

pub(super) fn permission_entry(
    role: &Name,
    (key, end): &(Key, Key),
    kind: PermissionKind,
) -> AuthEntry {
    let permission = Permission { kind, key: key.clone(), end: end.clone() };
    AuthEntry::Permission { role: role.clone(), permission }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Sum;

    fn name(text: &str) -> Name {
        text.as_bytes().into()
    }

    fn password(text: &str) -> Password {
        Password(name(text))
    }

    fn add(user: &str) -> AuthStep {
        AuthStep::UserAdd { name: name(user), password: Some(password("hash")) }
    }

    fn grant(user: &str, role: &str) -> AuthStep {
        AuthStep::GrantRole { user: name(user), role: name(role) }
    }

    fn revoke(user: &str, role: &str) -> AuthStep {
        AuthStep::RevokeRole { user: name(user), role: name(role) }
    }

    fn permission(key: &str, end: &str) -> Permission {
        Permission { kind: PermissionKind::Read, key: name(key), end: name(end) }
    }

    fn permit(role: &str, key: &str, end: &str) -> AuthStep {
        AuthStep::GrantPermission { role: name(role), permission: permission(key, end) }
    }

    const ON: AuthStep = AuthStep::Enable { secret: Secret([7; 32]) };

    /// Applies a step; what it came to, and by how much it moved the revision.
    fn step(auth: &mut Auth, step: &AuthStep) -> (Result<(), Refusal>, u64) {
        let (before, copy) = (auth.revision(), auth.clone());
        let done = auth.apply(step);
        assert_eq!(auth.hash(), auth.full_hash(), "after {step:?}");
        if done.is_err() {
            assert_eq!(*auth, copy, "a refused step changes nothing: {step:?}");
        }
        (done, auth.revision() - before)
    }

    #[test]
    fn steps_are_refused_as_etcd_does_and_each_change_counts_once() {
        use Refusal::*;
        let mut auth = Auth::default();
        let role = |text| AuthStep::RoleAdd { name: name(text) };
        let delete = |text| AuthStep::UserDelete { name: name(text) };
        let delete_role = |text| AuthStep::RoleDelete { name: name(text) };
        let change = |text| AuthStep::ChangePassword { name: name(text), password: password("x") };
        let forbid = |role, key, end| AuthStep::RevokePermission {
            role: name(role),
            key: name(key),
            end: name(end),
        };
        let cases = [
            (ON, Err(RootUserMissing), 0),
            (add(""), Err(UserEmpty), 0),
            (add("root"), Ok(()), 1),
            (add("root"), Err(UserExists), 0),
            (ON, Err(RootRoleMissing), 0),
            (grant("root", "root"), Ok(()), 1),
            (grant("root", "root"), Ok(()), 0),
            (grant("nobody", "root"), Err(UserNotFound), 0),
            (grant("root", "r"), Err(RoleNotFound), 0),
            (role(""), Err(RoleEmpty), 0),
            (role("r"), Ok(()), 1),
            (role("r"), Err(RoleExists), 0),
            (permit("q", "a", ""), Err(RoleNotFound), 0),
            (permit("r", "b", "a"), Err(AuthManagement), 0),
            (permit("r", "", ""), Err(AuthManagement), 0),
            (permit("r", "a", "b"), Ok(()), 1),
            (permit("r", "a", "b"), Ok(()), 1),
            (permit("r", "a", "\0"), Ok(()), 1),
            (forbid("q", "a", "b"), Err(RoleNotFound), 0),
            (forbid("r", "a", ""), Err(PermissionNotGranted), 0),
            (forbid("r", "a", "b"), Ok(()), 1),
            (forbid("r", "a", "b"), Err(PermissionNotGranted), 0),
            (add("u"), Ok(()), 1),
            (grant("u", "r"), Ok(()), 1),
            (revoke("u", "root"), Err(RoleNotGranted), 0),
            (revoke("nobody", "r"), Err(UserNotFound), 0),
            (change("nobody"), Err(UserNotFound), 0),
            (change("u"), Ok(()), 1),
            (AuthStep::Disable, Ok(()), 0),
            (ON, Ok(()), 0),
            (ON, Ok(()), 0),
            (delete("root"), Err(AuthManagement), 0),
            (revoke("root", "root"), Err(AuthManagement), 0),
            (delete_role("root"), Err(AuthManagement), 0),
            (delete_role("r"), Ok(()), 1),
            (delete_role("r"), Err(RoleNotFound), 0),
            (revoke("u", "r"), Err(RoleNotGranted), 0),
            (delete("u"), Ok(()), 1),
            (delete("u"), Err(UserNotFound), 0),
            (AuthStep::Disable, Ok(()), 1),
            (revoke("root", "root"), Ok(()), 1),
            (delete("root"), Ok(()), 1),
        ];
        for (case, (asked, result, moved)) in cases.into_iter().enumerate() {
            assert_eq!(step(&mut auth, &asked), (result, moved), "case {case}: {asked:?}");
        }
        assert_eq!((auth.entries, auth.sum), (0, Sum::default()));
        assert!(!auth.is_unused(), "the revision is remembered");
    }

    #[test]
    fn another_password_or_the_same_name_again_is_another_caller() {
        let mut auth = Auth::default();
        auth.apply(&add("u")).unwrap();
        let of = |auth: &Auth| {
            let since = auth.user(b"u").unwrap().since;
            super::super::Caller { user: name("u"), since }
        };
        let first = of(&auth);
        auth.apply(&grant("u", "root")).unwrap();
        assert!(auth.user_of(&first).is_some(), "roles change what is permitted, not who it is");
        auth.apply(&AuthStep::ChangePassword { name: name("u"), password: password("other") })
            .unwrap();
        assert!(auth.user_of(&first).is_none());
        let second = of(&auth);
        auth.apply(&AuthStep::UserDelete { name: name("u") }).unwrap();
        assert!(auth.user_of(&second).is_none());
        auth.apply(&add("u")).unwrap();
        assert!(auth.user_of(&second).is_none() && auth.user_of(&of(&auth)).is_some());
    }

    #[test]
    fn who_has_no_password_gets_none_by_changing_it() {
        let mut auth = Auth::default();
        auth.apply(&AuthStep::UserAdd { name: name("u"), password: None }).unwrap();
        auth.apply(&AuthStep::ChangePassword { name: name("u"), password: password("x") }).unwrap();
        assert_eq!(auth.user(b"u").unwrap().password, None);
    }
}
