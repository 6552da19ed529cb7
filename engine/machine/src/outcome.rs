//! What applying an operation answers.

use std::fmt;

/// What an applied operation did. Small enough to be recorded for every outstanding number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    /// The store's revision right after the operation.
    pub revision: u64,
    /// Changes to keys: 1 for a put, for deletes the number of keys that were there.
    pub changes: u32,
}

/// The answer to one operation, equal on every node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was applied now.
    Applied(Done),
    /// It was applied before, under the same session and number: what it did then.
    Replayed(Done),
    /// It changed nothing. `revision` is the store's when it was refused.
    Refused { reason: Refusal, revision: u64 },
}

impl Outcome {
    /// The revision to answer with.
    pub fn revision(&self) -> u64 {
        match self {
            Outcome::Applied(done) | Outcome::Replayed(done) => done.revision,
            Outcome::Refused { revision, .. } => *revision,
        }
    }

    /// What was done, now or before; `None` if refused.
    pub fn done(&self) -> Option<Done> {
        match self {
            Outcome::Applied(done) | Outcome::Replayed(done) => Some(*done),
            Outcome::Refused { .. } => None,
        }
    }
}

/// Why an operation was refused. `Compacted` and `FutureRevision` also answer reads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// The session is not in the table: never opened, closed, expired or evicted.
    SessionExpired,
    /// The client itself said that it has received the reply to this number.
    Stale,
    /// More numbers outstanding than the session's window allows.
    Window,
    /// A field is out of its bounds; no node encodes such an operation.
    Malformed,
    /// The put names a stripe, or another operation's value, that is not stored.
    ValueMissing,
    /// Another value is stored under this name.
    ValueConflict,
    /// The revision was compacted away.
    Compacted,
    /// The revision has not been reached.
    FutureRevision,
    /// The index holds as many versions or values as its limit allows, or a member has raised the
    /// alarm.
    NoSpace,
    LeaseNotFound,
    LeaseExists,
    LeaseTtlTooLarge,
    /// A value or lease is to be kept, of a key that is not there.
    KeyNotFound,
    /// A value compare needs evidence about a content that the transaction brings none of.
    Unresolved,
    /// No member has this number.
    NoSuchNode,
    /// A change of the members is not in effect yet.
    ChangeInFlight,
    /// The node's incarnation is another one than the change expects.
    OtherIncarnation,
    /// The disk is a member already, or has no id.
    DiskInUse,
    /// More than f members would be without the fragments that they should have.
    TooManyRebuilding,
    /// The members have changed since the change was asked for.
    OtherEpoch,
    /// No cluster can have these members, f and k.
    ImpossibleMembers,
    /// A node is named twice, has left before, or is not the next new one.
    NodeUsed,
    /// The node is a member, or fragments in use lie on it.
    StillMember,
    /// The value was coded for other members than those of its slot.
    OtherLayout,
    /// The store is being filled from a backup; nobody may use it before that has ended.
    Restoring,
    /// Only an empty store is filled from a backup.
    NotEmpty,
    /// No restore was begun, or it has ended.
    NotRestoring,
    /// The version before this one has not come yet.
    OutOfOrder,
    /// What is restored contradicts itself, what was told of it, or the limits of this store.
    RestoreMismatch,
    /// Users or roles have changed since the operation was let in.
    AuthRevision,
    /// Of no user, or of one without a name.
    UserEmpty,
    /// The user was deleted, or has another password, since the caller proved to be the user.
    AuthToken,
    /// The user may not do this.
    PermissionDenied,
    UserExists,
    UserNotFound,
    RoleEmpty,
    RoleExists,
    RoleNotFound,
    /// The user does not have the role.
    RoleNotGranted,
    /// The role does not permit this.
    PermissionNotGranted,
    /// There is no user root.
    RootUserMissing,
    /// The user root does not have the role root.
    RootRoleMissing,
    /// It would leave nobody who may do everything, or permit what cannot be.
    AuthManagement,
    /// Another node is reached there.
    AddressInUse,
}

impl Refusal {
    /// All, in order of their codes: `refusal as u8` is its place here, in exports too.
    const ALL: [Refusal; 44] = [
        Refusal::SessionExpired,
        Refusal::Stale,
        Refusal::Window,
        Refusal::Malformed,
        Refusal::ValueMissing,
        Refusal::ValueConflict,
        Refusal::Compacted,
        Refusal::FutureRevision,
        Refusal::NoSpace,
        Refusal::LeaseNotFound,
        Refusal::LeaseExists,
        Refusal::LeaseTtlTooLarge,
        Refusal::KeyNotFound,
        Refusal::Unresolved,
        Refusal::NoSuchNode,
        Refusal::ChangeInFlight,
        Refusal::OtherIncarnation,
        Refusal::DiskInUse,
        Refusal::TooManyRebuilding,
        Refusal::OtherEpoch,
        Refusal::ImpossibleMembers,
        Refusal::NodeUsed,
        Refusal::StillMember,
        Refusal::OtherLayout,
        Refusal::Restoring,
        Refusal::NotEmpty,
        Refusal::NotRestoring,
        Refusal::OutOfOrder,
        Refusal::RestoreMismatch,
        Refusal::AuthRevision,
        Refusal::UserEmpty,
        Refusal::AuthToken,
        Refusal::PermissionDenied,
        Refusal::UserExists,
        Refusal::UserNotFound,
        Refusal::RoleEmpty,
        Refusal::RoleExists,
        Refusal::RoleNotFound,
        Refusal::RoleNotGranted,
        Refusal::PermissionNotGranted,
        Refusal::RootUserMissing,
        Refusal::RootRoleMissing,
        Refusal::AuthManagement,
        Refusal::AddressInUse,
    ];

    /// PROTOCOL 11-k: whether the same request is to be tried again, and may succeed then: it is not
    /// what came of its number.
    pub fn asks_again(self) -> bool {
        matches!(
            self,
            Refusal::OtherLayout | Refusal::Restoring | Refusal::Unresolved | Refusal::OutOfOrder
        )
    }

    /// Whether it is about users and roles.
    pub fn is_of_auth(self) -> bool {
        self as u8 >= Refusal::AuthRevision as u8
    }

    pub(crate) fn from_code(code: u8) -> Option<Refusal> {
        Refusal::ALL.get(usize::from(code)).copied()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::SessionExpired => "the session has ended; open another one",
            Refusal::Stale => "the reply to this number was acknowledged before",
            Refusal::Window => "too many writes of the session are outstanding",
            Refusal::Malformed => "the operation is malformed",
            Refusal::ValueMissing => "a part of the value is not stored; send the value again",
            Refusal::ValueConflict => "another value is stored under this operation's name",
            Refusal::Compacted => "the revision has been compacted",
            Refusal::FutureRevision => "the revision is in the future",
            Refusal::NoSpace => "the index is full; delete keys and compact",
            Refusal::LeaseNotFound => "the lease does not exist",
            Refusal::LeaseExists => "a lease with this id exists",
            Refusal::LeaseTtlTooLarge => "the lease's time to live is too large",
            Refusal::KeyNotFound => "the key does not exist",
            Refusal::Unresolved => "a compared value is not the one that the transaction knows of",
            Refusal::NoSuchNode => "no member has this number",
            Refusal::ChangeInFlight => {
                "another change of the members is not in effect yet; try again in a moment"
            }
            Refusal::OtherIncarnation => "the node has another incarnation by now; look again",
            Refusal::DiskInUse => "the disk is a member already",
            Refusal::TooManyRebuilding => {
                "as many nodes as may be lost are rebuilding or gone; wait until one of them is done"
            }
            Refusal::OtherEpoch => "the members have changed meanwhile; look again",
            Refusal::ImpossibleMembers => {
                "a cluster needs k >= 1, at least 2f+k members, and alpha of at least n"
            }
            Refusal::NodeUsed => {
                "a node is named twice or was a member before; one that joins has the next number \
                 never used, at most 63"
            }
            Refusal::StillMember => "the node is a member, or values in use have fragments on it",
            Refusal::OtherLayout => "the members changed while the value was sent; send it again",
            Refusal::Restoring => "the cluster is being restored from a backup; wait for its end",
            Refusal::NotEmpty => "the cluster is not a new one; restore into one that is",
            Refusal::NotRestoring => "no restore was begun here, or it has ended",
            Refusal::OutOfOrder => "the version before this one has not come yet",
            Refusal::RestoreMismatch => {
                "what is restored contradicts itself or the limits of this cluster"
            }
            Refusal::AuthRevision => "users or roles have changed meanwhile; send it again",
            Refusal::UserEmpty => {
                "authentication is enabled and the request is of no user; give one (etcdctl --user \
                 NAME:PASSWORD). Native clients have none: use etcd's API"
            }
            Refusal::AuthToken => "the user was deleted, or has another password; log in again",
            Refusal::PermissionDenied => "the user has no permission for this",
            Refusal::UserExists => "there is a user of this name",
            Refusal::UserNotFound => "there is no user of this name",
            Refusal::RoleEmpty => "a role has a name",
            Refusal::RoleExists => "there is a role of this name",
            Refusal::RoleNotFound => "there is no role of this name",
            Refusal::RoleNotGranted => "the user does not have this role",
            Refusal::PermissionNotGranted => "the role has no such permission",
            Refusal::RootUserMissing => "there is no user root; add one first",
            Refusal::RootRoleMissing => {
                "the user root does not have the role root; grant it first"
            }
            Refusal::AddressInUse => "another node is reached at this address",
            Refusal::AuthManagement => {
                "the user and the role root stay while authentication is on, and a permission is for a \
                 key or a range that ends behind its beginning"
            }
        })
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_place_as_its_code() {
        for (code, refusal) in (0..).zip(Refusal::ALL) {
            assert_eq!(refusal as u8, code);
            assert_eq!(Refusal::from_code(code), Some(refusal));
        }
        assert_eq!(Refusal::AddressInUse as usize + 1, Refusal::ALL.len());
        assert_eq!(Refusal::from_code(Refusal::ALL.len() as u8), None);
    }
}
