//! The state in pieces, for exports and backups.
//!
//! Invariant: the pieces come in one order, which depends on nothing but the state, and a piece is found
//! without going over those before it. Taken in that order they make the same state; one that comes a
//! second time changes nothing, since whoever restores a backup may not have heard that it was taken.

use super::step::{permission_entry, user_entry};
use super::{AUTH_ENTRIES_MAX, Auth, Name, Password, Permission, ROOT, Role, Secret, User};
use crate::hash::{self, Kind, halves};
use crate::machine::Machine;
use crate::op::Key;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Pieces told at once: with keys of any length less than 32 MiB.
const ENTRIES_PAGE: usize = 1000;

/// A piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthEntry {
    Role {
        name: Name,
    },
    Permission {
        role: Name,
        permission: Permission,
    },
    User {
        name: Name,
        since: u64,
        password: Option<Password>,
    },
    /// The user has the role.
    Grant {
        user: Name,
        role: Name,
    },
    /// The last.
    State {
        enabled: bool,
        revision: u64,
        secret: Secret,
    },
}

/// Behind which piece to go on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum Place {
    #[default]
    Start,
    Role(Name),
    Permission(Name, (Key, Key)),
    User(Name),
    Grant(Name, Name),
    End,
}

/// Behind which piece a backup goes on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AuthPlace(Place);

impl Machine {
    /// Some of the state of users and roles, from the piece behind a place on, and the place behind them:
    /// `None` behind the last. Nothing of a store that never had any.
    pub fn auth_entries_behind(
        &self,
        place: Option<AuthPlace>,
    ) -> (Vec<AuthEntry>, Option<AuthPlace>) {
        if self.auth.is_unused() {
            return (Vec::new(), None);
        }
        let mut place = place.unwrap_or_default().0;
        let entries: Vec<AuthEntry> =
            std::iter::from_fn(|| self.auth.next(&mut place)).take(ENTRIES_PAGE).collect();
        (entries, (place != Place::End).then_some(AuthPlace(place)))
    }
}

impl AuthEntry {
    pub(super) fn hash(&self) -> u128 {
        let (tag, first, second, rest) = match self {
            AuthEntry::Role { name } => (1, hash::bytes(name), 0, 0),
            AuthEntry::Permission { role, permission: Permission { kind, key, end } } => {
                let range = hash::bytes(key) ^ hash::bytes(end).rotate_left(1);
                (2, hash::bytes(role), range, *kind as u64)
            }
            AuthEntry::User { name, since, password } => {
                let password = password.as_ref().map_or(1, |password| hash::bytes(&password.0));
                (3, hash::bytes(name), password, *since)
            }
            AuthEntry::Grant { user, role } => (4, hash::bytes(user), hash::bytes(role), 0),
            // Not one of the sum.
            AuthEntry::State { .. } => return 0,
        };
        let ([first_low, first_high], [low, high]) = (halves(first), halves(second));
        hash::entry(Kind::AuthEntry, [tag, first_low, first_high, low, high, rest])
    }
}

fn behind<'a, V>(map: &'a BTreeMap<Name, V>, name: &Name) -> Option<(&'a Name, &'a V)> {
    map.range((Bound::Excluded(name.clone()), Bound::Unbounded)).next()
}

impl Auth {
    /// The piece behind a place, which moves there. `None` behind the last.
    pub(crate) fn next(&self, place: &mut Place) -> Option<AuthEntry> {
        let (next, entry) = match &*place {
            Place::Start => self.role_piece(self.roles.first_key_value()),
            Place::Role(name) => match self.roles[name].first_key_value() {
                Some(found) => permission_piece(name, found),
                None => self.role_piece(behind(&self.roles, name)),
            },
            Place::Permission(name, range) => {
                let rest = (Bound::Excluded(range.clone()), Bound::Unbounded);
                match self.roles[name].range(rest).next() {
                    Some(found) => permission_piece(name, found),
                    None => self.role_piece(behind(&self.roles, name)),
                }
            }
            Place::User(name) => match self.users[name].roles.first() {
                Some(role) => grant_piece(name, role),
                None => self.user_piece(behind(&self.users, name)),
            },
            Place::Grant(name, role) => {
                let rest = (Bound::Excluded(role.clone()), Bound::Unbounded);
                match self.users[name].roles.range::<Name, _>(rest).next() {
                    Some(role) => grant_piece(name, role),
                    None => self.user_piece(behind(&self.users, name)),
                }
            }
            Place::End => return None,
        };
        *place = next;
        Some(entry)
    }

    fn role_piece(&self, found: Option<(&Name, &Role)>) -> (Place, AuthEntry) {
        match found {
            Some((name, _)) => (Place::Role(name.clone()), AuthEntry::Role { name: name.clone() }),
            None => self.user_piece(self.users.first_key_value()),
        }
    }

    fn user_piece(&self, found: Option<(&Name, &User)>) -> (Place, AuthEntry) {
        let Some((name, user)) = found else {
            let Auth { enabled, revision, secret, .. } = *self;
            return (Place::End, AuthEntry::State { enabled, revision, secret });
        };
        (Place::User(name.clone()), user_entry(name, user))
    }

    /// Puts a piece where it belongs.
    ///
    /// # Errors
    /// If it contradicts those before it, or there are too many.
    pub(crate) fn take(&mut self, entry: &AuthEntry) -> Result<(), &'static str> {
        let rule = |holds, rule| if holds { Ok(()) } else { Err(rule) };
        let has_room = rule(self.entries < AUTH_ENTRIES_MAX, "there are too many");
        match entry {
            AuthEntry::Role { name } => {
                rule(!name.is_empty(), "a role has a name")?;
                if self.roles.contains_key(name) {
                    return Ok(());
                }
                has_room?;
                self.roles.insert(name.clone(), Role::new());
            }
            AuthEntry::Permission { role, permission } => {
                rule(permission.is_possible(), "a permission is for a key")?;
                let held = self.roles.get_mut(role).ok_or("a permission is a role's")?;
                let place = (permission.key.clone(), permission.end.clone());
                if let Some(kind) = held.get(&place) {
                    return rule(*kind == permission.kind, "one permission is for a range");
                }
                has_room?;
                held.insert(place, permission.kind);
            }
            AuthEntry::User { name, since, password } => {
                rule(!name.is_empty(), "a user has a name")?;
                if let Some(user) = self.users.get(name) {
                    let same = user.since == *since && user.password == *password;
                    return rule(same, "one user has a name");
                }
                has_room?;
                let (since, password) = (*since, password.clone());
                let user = User { password, since, roles: BTreeSet::new() };
                self.users.insert(name.clone(), user);
                // Until the state comes: what is exported in the middle of a restore is whole, too.
                self.revision = self.revision.max(since);
            }
            AuthEntry::Grant { user, role } => {
                let is_role = **role == *ROOT || self.roles.contains_key(role);
                rule(is_role, "a role that users have exists")?;
                let held = self.users.get_mut(user).ok_or("a role is had by a user")?;
                if held.roles.contains(role) {
                    return Ok(());
                }
                has_room?;
                held.roles.insert(role.clone());
            }
            AuthEntry::State { enabled, revision, secret } => {
                let has_root = self.users.get(ROOT).is_some_and(User::is_root);
                rule(has_root || !enabled, "authentication needs root")?;
                let newest = self.users.values().map(|user| user.since).max().unwrap_or(1);
                rule(*revision >= newest, "users came with a revision")?;
                (self.enabled, self.revision, self.secret) = (*enabled, *revision, *secret);
                return Ok(());
            }
        }
        self.note(entry.clone());
        Ok(())
    }
}

fn permission_piece(
    name: &Name,
    (range, kind): (&(Key, Key), &super::PermissionKind),
) -> (Place, AuthEntry) {
    (Place::Permission(name.clone(), range.clone()), permission_entry(name, range, *kind))
}

fn grant_piece(user: &Name, role: &Name) -> (Place, AuthEntry) {
    let entry = AuthEntry::Grant { user: user.clone(), role: role.clone() };
    (Place::Grant(user.clone(), role.clone()), entry)
}

#[cfg(test)]
mod tests {
    use super::super::{AuthStep, PermissionKind};
    use super::*;

    fn name(text: &str) -> Name {
        text.as_bytes().into()
    }

    fn some() -> Auth {
        let mut auth = Auth::default();
        for user in ["root", "u", "v"] {
            let password = (user != "v").then(|| Password(name("hash")));
            auth.apply(&AuthStep::UserAdd { name: name(user), password }).unwrap();
        }
        for role in ["r", "q", "p"] {
            auth.apply(&AuthStep::RoleAdd { name: name(role) }).unwrap();
            auth.apply(&AuthStep::GrantRole { user: name("u"), role: name(role) }).unwrap();
        }
        for (role, key, end) in [("r", "a", "b"), ("r", "a", ""), ("p", "x", "\0")] {
            let kind = PermissionKind::Write;
            let permission = Permission { kind, key: name(key), end: name(end) };
            auth.apply(&AuthStep::GrantPermission { role: name(role), permission }).unwrap();
        }
        auth.apply(&AuthStep::GrantRole { user: name("root"), role: name("root") }).unwrap();
        auth.apply(&AuthStep::Enable { secret: Secret([3; 32]) }).unwrap();
        auth
    }

    fn pieces(auth: &Auth) -> Vec<AuthEntry> {
        let mut place = Place::default();
        std::iter::from_fn(|| auth.next(&mut place)).collect()
    }

    #[test]
    fn the_pieces_make_the_same_state_also_if_each_comes_twice() {
        let auth = some();
        let pieces = pieces(&auth);
        assert_eq!(pieces.len(), auth.entries + 1);
        let mut again = Auth::default();
        for piece in &pieces {
            again.take(piece).unwrap();
            again.take(piece).unwrap();
        }
        assert_eq!(again, auth);
        assert_eq!(again.hash(), auth.full_hash());
    }

    #[test]
    fn pieces_that_contradict_each_other_are_refused() {
        let mut auth = some();
        let copy = auth.clone();
        let permission = |kind, key: &str| Permission { kind, key: name(key), end: name("b") };
        for wrong in [
            AuthEntry::Role { name: name("") },
            AuthEntry::User { name: name(""), since: 1, password: None },
            AuthEntry::User { name: name("u"), since: 77, password: None },
            AuthEntry::Grant { user: name("nobody"), role: name("r") },
            AuthEntry::Grant { user: name("u"), role: name("none") },
            AuthEntry::Permission {
                role: name("none"),
                permission: permission(PermissionKind::Read, "a"),
            },
            AuthEntry::Permission {
                role: name("r"),
                permission: permission(PermissionKind::Read, "a"),
            },
            AuthEntry::Permission {
                role: name("r"),
                permission: permission(PermissionKind::Read, "c"),
            },
            AuthEntry::State { enabled: true, revision: 1, secret: Secret::default() },
        ] {
            assert!(auth.take(&wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(auth, copy);
        let on = AuthEntry::State { enabled: true, revision: 9, secret: Secret::default() };
        assert!(Auth::default().take(&on).is_err(), "nobody could do anything");
    }

    #[test]
    fn there_are_only_so_many() {
        let mut auth = Auth::default();
        for at in 0..AUTH_ENTRIES_MAX {
            auth.take(&AuthEntry::Role { name: name(&at.to_string()) }).unwrap();
        }
        assert!(auth.take(&AuthEntry::Role { name: name("more") }).is_err());
        let add = AuthStep::RoleAdd { name: name("more") };
        assert_eq!(auth.apply(&add), Err(crate::Refusal::NoSpace));
    }
}
