//! Errors as etcd words them: clients match on code and text.
//!
//! What racos adds, the reason in its own words, travels in the metadata `racos-detail`.

use racos_engine::api::Error;
use racos_machine::Refusal;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// A code and text of etcd's.
pub type Known = (Code, &'static str);

pub const EMPTY_KEY: Known = (Code::InvalidArgument, "etcdserver: key is not provided");
pub const KEY_NOT_FOUND: Known = (Code::InvalidArgument, "etcdserver: key not found");
pub const VALUE_PROVIDED: Known = (Code::InvalidArgument, "etcdserver: value is provided");
pub const LEASE_PROVIDED: Known = (Code::InvalidArgument, "etcdserver: lease is provided");
pub const TOO_MANY_OPS: Known =
    (Code::InvalidArgument, "etcdserver: too many operations in txn request");
pub const DUPLICATE_KEY: Known =
    (Code::InvalidArgument, "etcdserver: duplicate key given in txn request");
pub const INVALID_SORT: Known = (Code::InvalidArgument, "etcdserver: invalid sort option");
pub const REQUEST_TOO_LARGE: Known = (Code::InvalidArgument, "etcdserver: request is too large");
pub const COMPACTED: Known =
    (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
pub const FUTURE_REVISION: Known =
    (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
pub const LEASE_NOT_FOUND: Known = (Code::NotFound, "etcdserver: requested lease not found");
pub const LEASE_EXISTS: Known = (Code::FailedPrecondition, "etcdserver: lease already exists");
pub const LEASE_TTL_TOO_LARGE: Known = (Code::OutOfRange, "etcdserver: too large lease TTL");
pub const NO_SPACE: Known = (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
pub const TOO_MANY_REQUESTS: Known = (Code::ResourceExhausted, "etcdserver: too many requests");
pub const TIMED_OUT: Known = (Code::Unavailable, "etcdserver: request timed out");
pub const NO_LEADER: Known = (Code::Unavailable, "etcdserver: no leader");
pub const STOPPED: Known = (Code::Unavailable, "etcdserver: server stopped");
pub const NOT_LEADER: Known = (Code::FailedPrecondition, "etcdserver: not leader");
pub const MEMBER_NOT_FOUND: Known = (Code::NotFound, "etcdserver: member not found");
pub const MEMBER_EXISTS: Known = (Code::FailedPrecondition, "etcdserver: Peer URLs already exists");
pub const MEMBER_BAD_URLS: Known =
    (Code::InvalidArgument, "etcdserver: given member URLs are invalid");
pub const MEMBER_NOT_LEARNER: Known =
    (Code::FailedPrecondition, "etcdserver: can only promote a learner member");
/// With this code, by an oversight that its clients know: they look at the text.
pub const TOO_FEW_MEMBERS: Known =
    (Code::Unknown, "etcdserver: re-configuration failed due to not enough started members");
pub const UNHEALTHY: Known = (Code::Unavailable, "etcdserver: unhealthy cluster");
pub const AUTH_NOT_ENABLED: Known =
    (Code::FailedPrecondition, "etcdserver: authentication is not enabled");

pub const ROOT_USER_NOT_FOUND: Known =
    (Code::FailedPrecondition, "etcdserver: root user does not exist");
pub const USER_NOT_FOUND: Known = (Code::FailedPrecondition, "etcdserver: user name not found");
pub const ROLE_NOT_FOUND: Known = (Code::FailedPrecondition, "etcdserver: role name not found");
pub const ROOT_ROLE_MISSING: Known =
    (Code::FailedPrecondition, "etcdserver: root user does not have root role");
pub const USER_EXISTS: Known = (Code::FailedPrecondition, "etcdserver: user name already exists");
pub const ROLE_EXISTS: Known = (Code::FailedPrecondition, "etcdserver: role name already exists");
pub const ROLE_NOT_GRANTED: Known =
    (Code::FailedPrecondition, "etcdserver: role is not granted to the user");
pub const PERMISSION_NOT_GRANTED: Known =
    (Code::FailedPrecondition, "etcdserver: permission is not granted to the role");
pub const PERMISSION_DENIED: Known = (Code::PermissionDenied, "etcdserver: permission denied");
pub const AUTH_FAILED: Known =
    (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password");
/// In etcd's words and with its code, by an oversight there.
pub const NO_PASSWORD: Known =
    (Code::Unknown, "auth: authentication failed, password was given for no password user");
pub const AUTH_MANAGEMENT: Known = (Code::InvalidArgument, "etcdserver: invalid auth management");
pub const INVALID_TOKEN: Known = (Code::Unauthenticated, "etcdserver: invalid auth token");
pub const AUTH_REVISION: Known =
    (Code::InvalidArgument, "etcdserver: revision of auth store is old");
pub const USER_EMPTY: Known = (Code::InvalidArgument, "etcdserver: user name is empty");
pub const ROLE_EMPTY: Known = (Code::InvalidArgument, "etcdserver: role name is empty");
pub const PERMISSION_NOT_GIVEN: Known = (Code::InvalidArgument, "etcdserver: permission not given");

/// As a status.
pub fn known((code, text): Known) -> Status {
    Status::new(code, text)
}

/// What a node's answer is called in etcd.
pub fn status_of(error: Error) -> Status {
    let (code, text) = match &error {
        Error::Compacted { .. } => COMPACTED,
        Error::FutureRevision => FUTURE_REVISION,
        Error::LeaseNotFound => LEASE_NOT_FOUND,
        Error::LeaseExists => LEASE_EXISTS,
        Error::LeaseTtlTooLarge => LEASE_TTL_TOO_LARGE,
        Error::KeyNotFound => KEY_NOT_FOUND,
        Error::NoSpace(_) => NO_SPACE,
        Error::TooLarge(_) => REQUEST_TOO_LARGE,
        Error::Busy(_) => TOO_MANY_REQUESTS,
        Error::Unavailable(_) | Error::Unresolved => TIMED_OUT,
        // Members of etcd that are removed stop, which their clients know.
        Error::Stopped | Error::NoMember(_) => STOPPED,
        Error::MemberNotFound => MEMBER_NOT_FOUND,
        Error::MemberExists => MEMBER_EXISTS,
        Error::TooFewMembers(_) => TOO_FEW_MEMBERS,
        Error::MembersUnhealthy(_) => UNHEALTHY,
        Error::MemberRefused(text) => return refused(text),
        Error::Auth(reason) => auth_known(*reason),
        Error::Invalid(text) => return Status::invalid_argument(format!("racos: {text}")),
        Error::DataLoss(text) => return Status::data_loss(format!("racos: {text}")),
    };
    let mut status = Status::new(code, text);
    if let Ok(detail) = MetadataValue::try_from(error.to_string()) {
        status.metadata_mut().insert("racos-detail", detail);
    }
    status
}

/// What a refusal about users and roles is called in etcd.
pub fn auth_known(reason: Refusal) -> Known {
    match reason {
        Refusal::AuthRevision => AUTH_REVISION,
        Refusal::UserEmpty => USER_EMPTY,
        Refusal::AuthToken => INVALID_TOKEN,
        Refusal::UserExists => USER_EXISTS,
        Refusal::UserNotFound => USER_NOT_FOUND,
        Refusal::RoleEmpty => ROLE_EMPTY,
        Refusal::RoleExists => ROLE_EXISTS,
        Refusal::RoleNotFound => ROLE_NOT_FOUND,
        Refusal::RoleNotGranted => ROLE_NOT_GRANTED,
        Refusal::PermissionNotGranted => PERMISSION_NOT_GRANTED,
        Refusal::RootUserMissing => ROOT_USER_NOT_FOUND,
        Refusal::RootRoleMissing => ROOT_ROLE_MISSING,
        Refusal::AuthManagement => AUTH_MANAGEMENT,
        _ => PERMISSION_DENIED,
    }
}

/// What cannot be as things are, in racos' own words: etcd has none for it.
pub fn refused(what: &str) -> Status {
    Status::failed_precondition(format!("racos: {what}"))
}

/// What racos does not serve: said so, never pretended.
pub fn not_served(what: &str) -> Status {
    Status::unimplemented(format!("racos: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_in_racos_words_travels_beside_etcds_text() {
        let status = status_of(Error::Unavailable("two nodes of five answer".into()));
        assert_eq!((status.code(), status.message()), TIMED_OUT);
        let detail = status.metadata().get("racos-detail").unwrap();
        assert_eq!(detail.to_str().unwrap(), "two nodes of five answer");
    }
}
