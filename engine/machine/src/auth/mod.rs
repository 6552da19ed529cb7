//! Users, roles and what they permit: the replicated state behind authentication.
//!
//! | module | duty |
//! |---|---|
//! | `step` | what changes the state, and what it is refused for, as etcd does |
//! | `permit` | what a user may do: keys read and written |
//! | `judge` | operations let in or refused, before they are executed |
//! | `entry` | the state in pieces: for exports and backups |
//!
//! Invariant: each change adds 1 to the revision (but for switching authentication on, as in etcd), so a
//! user and a revision say what was permitted. The state hash of a store that never had users is what it
//! was before there could be any, and exports of it are, too. Names and passwords are never in messages.
//! What would break it: a change beside [`Auth::apply`] and [`Auth::take`], which keep the sum and the
//! number of entries.

mod entry;
mod judge;
mod permit;
mod step;

pub(crate) use entry::Place;
pub use entry::{AuthEntry, AuthPlace};
pub use permit::{Permission, PermissionKind, Permit};
pub use step::AuthStep;

use crate::hash::{self, Kind, Sum, halves};
use crate::op::{AUTH_REVISION_FIRST, Key};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The user and the role that may do everything.
pub const ROOT: &[u8] = b"root";
/// The longest hash of a password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 128;
/// Most users, roles, permissions, and roles of users, together.
pub const AUTH_ENTRIES_MAX: usize = 65_536;

/// The name of a user or a role.
pub type Name = Box<[u8]>;

/// The hash of a password, as bcrypt writes it; an empty one is nobody's.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Password(pub Box<[u8]>);

impl fmt::Debug for Password {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Password")
    }
}

/// What tokens are made with: drawn anew whenever authentication is switched on.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret")
    }
}

/// Whose request it is, by its token: a user, since a certain revision of users and roles. One who was
/// deleted and added again, or has another password, is another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Caller {
    pub user: Name,
    pub since: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    /// `None`: one who cannot log in.
    pub password: Option<Password>,
    /// The revision with which the user was added, or had the password changed.
    pub since: u64,
    pub roles: BTreeSet<Name>,
}

/// Permissions by first key and end of their range, as etcd writes ends: none for one key, a zero byte for
/// no end.
pub type Role = BTreeMap<(Key, Key), PermissionKind>;

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Auth {
    enabled: bool,
    revision: u64,
    secret: Secret,
    users: BTreeMap<Name, User>,
    roles: BTreeMap<Name, Role>,
    /// Users, roles, permissions and roles of users.
    entries: usize,
    /// Of the same.
    sum: Sum,
}

impl Default for Auth {
    fn default() -> Self {
        Auth {
            enabled: false,
            revision: AUTH_REVISION_FIRST,
            secret: Secret::default(),
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            entries: 0,
            sum: Sum::default(),
        }
    }
}

/// Reading.
impl Auth {
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// How often users, roles or the flag have changed.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Names in order.
    pub fn users(&self) -> impl Iterator<Item = &[u8]> {
        self.users.keys().map(|name| &**name)
    }

    pub fn user(&self, name: &[u8]) -> Option<&User> {
        self.users.get(name)
    }

    /// Names in order.
    pub fn roles(&self) -> impl Iterator<Item = &[u8]> {
        self.roles.keys().map(|name| &**name)
    }

    pub fn role(&self, name: &[u8]) -> Option<&Role> {
        self.roles.get(name)
    }

    /// The user that a caller is.
    pub fn user_of(&self, caller: &Caller) -> Option<&User> {
        self.users.get(&caller.user).filter(|user| user.since == caller.since)
    }

    pub(crate) fn is_unused(&self) -> bool {
        !self.enabled && self.revision == AUTH_REVISION_FIRST && self.entries == 0
    }

    /// 0 if there never was a user.
    pub(crate) fn hash(&self) -> u128 {
        if self.is_unused() { 0 } else { self.hash_with(self.sum) }
    }

    /// [`Auth::hash`] from the entries themselves.
    pub(crate) fn full_hash(&self) -> u128 {
        let mut sum = Sum::default();
        let mut place = Place::default();
        while let Some(entry) = self.next(&mut place) {
            sum.add(entry.hash());
        }
        if self.is_unused() { 0 } else { self.hash_with(sum) }
    }

    fn hash_with(&self, sum: Sum) -> u128 {
        let [low, high] = halves(sum.get());
        let [secret_low, secret_high] = halves(hash::bytes(&self.secret.0));
        let fields = [low, high, self.enabled.into(), self.revision, secret_low, secret_high];
        hash::entry(Kind::Auth, fields)
    }
}

impl User {
    /// Whether the user may do everything.
    pub fn is_root(&self) -> bool {
        self.roles.contains(ROOT)
    }
}
