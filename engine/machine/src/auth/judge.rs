//! Operations and reads let in or refused, by the state before them.
//!
//! Invariant: while authentication is on, whatever a client asks for is done on behalf of a user, by the
//! users and roles of the state that it is done in, at every node alike. What nodes do by themselves
//! names no user: leases that ran out, alarms of their own, idle sessions, values re-coded, members
//! changed by an operator. A transaction is judged whole, branches not taken included, so that what is
//! refused does not tell what was compared.
//! What would break it: a new action of clients that is not among those of [`is_of_clients`].

use super::{Auth, Caller, Permit};
use crate::machine::Machine;
use crate::op::{Action, Author, Op};
use crate::outcome::Refusal;
use crate::txn::{PutStep, Step, Txn};
use std::sync::Arc;

impl Machine {
    /// Users, roles and what they permit.
    pub fn auth(&self) -> &Arc<Auth> {
        &self.auth
    }

    /// On whose behalf an operation is proposed in this state.
    ///
    /// # Errors
    /// `AuthToken` if there is no such user any more.
    pub fn author_of(&self, caller: &Caller) -> Result<Option<Box<Author>>, Refusal> {
        if !self.auth.is_enabled() {
            return Ok(None);
        }
        self.auth.user_of(caller).ok_or(Refusal::AuthToken)?;
        let auth_revision = self.auth.revision();
        Ok(Some(Box::new(Author { user: caller.user.clone(), auth_revision })))
    }

    /// What a caller may do in this state.
    ///
    /// # Errors
    /// `UserEmpty` if there is none and there must be, `AuthToken` if there is no such user any more.
    pub fn permit(&self, caller: Option<&Caller>) -> Result<Permit<'_>, Refusal> {
        if !self.auth.is_enabled() {
            return Ok(Permit::ALL);
        }
        let caller = caller.ok_or(Refusal::UserEmpty)?;
        let user = self.auth.user_of(caller).ok_or(Refusal::AuthToken)?;
        Ok(Permit::of(&self.auth, user))
    }

    /// Whether a transaction may be done.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub fn permits_txn(&self, permit: &Permit<'_>, txn: &Txn) -> Result<(), Refusal> {
        if permit.is_all() {
            return Ok(());
        }
        txn.compares.iter().try_for_each(|compare| permit.read(&compare.span))?;
        txn.success.iter().chain(&txn.failure).try_for_each(|step| match step {
            Step::Select(select) => permit.read(&select.span),
            Step::Put(put) => self.permits_put(permit, put),
            Step::Delete { span, previous } => {
                if *previous {
                    permit.read(span)?;
                }
                permit.write(span)
            }
            Step::Txn(inner) => self.permits_txn(permit, inner),
        })
    }

    /// Who may not end a lease, since a key is attached that is not the user's to delete, may not attach
    /// others to it either.
    fn permits_put(&self, permit: &Permit<'_>, put: &PutStep) -> Result<(), Refusal> {
        permit.write_key(&put.key)?;
        if put.previous {
            permit.read_key(&put.key)?;
        }
        self.permits_lease_end(permit, put.lease.unwrap_or(0))
    }

    /// Whether the keys attached to a lease may be deleted.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub fn permits_lease_end(&self, permit: &Permit<'_>, lease: i64) -> Result<(), Refusal> {
        match permit.is_all() {
            true => Ok(()),
            false => self.leases.keys(lease).try_for_each(|key| permit.write_key(key)),
        }
    }

    /// Whether the keys attached to a lease may be seen.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub fn permits_lease_keys(&self, permit: &Permit<'_>, lease: i64) -> Result<(), Refusal> {
        match permit.is_all() {
            true => Ok(()),
            false => self.leases.keys(lease).try_for_each(|key| permit.read_key(key)),
        }
    }

    /// Whether an operation is let in.
    pub(crate) fn judge_author(&self, op: &Op) -> Result<(), Refusal> {
        let Some(author) = &op.author else {
            let needs = self.auth.is_enabled() && is_of_clients(&op.action);
            return if needs { Err(Refusal::UserEmpty) } else { Ok(()) };
        };
        if author.auth_revision != self.auth.revision() {
            return Err(Refusal::AuthRevision);
        }
        if !self.auth.is_enabled() {
            return Ok(());
        }
        // Of the same revision, so of the same users.
        let user = self.auth.user(&author.user).ok_or(Refusal::PermissionDenied)?;
        let permit = Permit::of(&self.auth, user);
        match &op.action {
            Action::Put { key, .. } | Action::Delete { key } => permit.write_key(key),
            Action::DeleteRange { from, to } => permit.write_range(from, to.as_deref()),
            Action::Txn(txn) => self.permits_txn(&permit, txn),
            Action::LeaseRevoke { id } => self.permits_lease_end(&permit, *id),
            // Whoever is known may have leases, and store values that no key shows yet.
            Action::LeaseGrant { .. } | Action::Part { .. } | Action::Noop => Ok(()),
            _ => permit.administer(),
        }
    }
}

/// Whether it is nothing that nodes do by themselves, or an operator at the nodes' own ports.
fn is_of_clients(action: &Action) -> bool {
    match action {
        Action::Put { .. }
        | Action::Delete { .. }
        | Action::DeleteRange { .. }
        | Action::Part { .. }
        | Action::OpenSession { .. }
        | Action::Compact { .. }
        | Action::Txn(_)
        | Action::LeaseGrant { .. }
        | Action::LeaseRevoke { .. }
        | Action::Auth(_) => true,
        Action::Noop
        | Action::KeepHistory
        | Action::CloseSession { .. }
        | Action::ExpireSession { .. }
        | Action::LeaseExpire { .. }
        | Action::Alarm { .. }
        | Action::Restore(_)
        | Action::ReplaceNode(_)
        | Action::Reconfigure(_)
        | Action::NodeRebuilt { .. }
        | Action::MoveNode { .. }
        | Action::NodeLost { .. }
        | Action::NodeReleased { .. }
        | Action::Recode { .. } => false,
    }
}
