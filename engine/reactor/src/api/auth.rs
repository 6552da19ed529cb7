//! On whose behalf requests are, and what is asked of users and roles.
//!
//! Invariant: whoever asks without having proved to be a user is nobody, also where the caller forgot to
//! say who asks: only what this node does by itself is done as the node's. Writes are judged where they
//! are executed, reads at the state that they read, so users and roles are never older than the data.
//! What would break it: a check at this node's state before a pin, of something that is done after it.

use super::pending::Answer;
use super::role::alarm;
use super::types::*;
use crate::node::Node;
use racos_machine::{
    self as machine, Author, Caller, Name, Permission, Permit, ROOT, Refusal, Secret,
};
use racos_net::Link;
use racos_storage::device::Device;
use std::sync::Arc;

/// Who asks.
#[derive(Clone, Default)]
pub(crate) enum Who {
    #[default]
    Nobody,
    User(Arc<Caller>),
    /// This node, for itself.
    Node,
}

impl Who {
    fn caller(&self) -> Option<&Caller> {
        match self {
            Who::User(caller) => Some(caller),
            Who::Nobody | Who::Node => None,
        }
    }
}

/// What tokens are checked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthView {
    pub enabled: bool,
    /// Of users and roles.
    pub revision: u64,
    pub secret: Secret,
}

/// A question about users and roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthAsk {
    State,
    Users,
    Roles,
    User(Name),
    Role(Name),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthTold {
    State(AuthView),
    /// Names of users or roles, in order.
    Names(Vec<Name>),
    Permissions(Vec<Permission>),
}

/// An answer, and the revision of the state that it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthAnswer {
    pub revision: i64,
    pub told: AuthTold,
}

/// What is needed to let a user in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginAnswer {
    pub revision: i64,
    pub auth: AuthView,
    pub user: Option<machine::User>,
}

impl<L: Link, D: Device> Node<L, D> {
    pub(super) fn auth_view(&self) -> AuthView {
        let auth = self.machine.auth();
        let (enabled, revision, secret) = (auth.is_enabled(), auth.revision(), *auth.secret());
        AuthView { enabled, revision, secret }
    }

    /// What who asks may do in this state.
    pub(super) fn permit(&self, who: &Who) -> Result<Permit<'_>, Error> {
        self.machine_permit(who).map_err(Error::Auth)
    }

    pub(super) fn machine_permit(&self, who: &Who) -> Result<Permit<'_>, Refusal> {
        match who {
            Who::Node => Ok(Permit::ALL),
            _ => self.machine.permit(who.caller()),
        }
    }

    pub(super) fn may_administer(&self, who: &Who) -> Result<(), Error> {
        self.permit(who)?.administer().map_err(Error::Auth)
    }

    /// What an operation that is proposed now says of who asks.
    pub(super) fn author(&self, who: &Who) -> Result<Option<Box<Author>>, Error> {
        match who {
            Who::User(caller) => self.machine.author_of(caller).map_err(Error::Auth),
            Who::Node => Ok(self.own_author()),
            Who::Nobody if self.machine.auth().is_enabled() => Err(Error::Auth(Refusal::UserEmpty)),
            Who::Nobody => Ok(None),
        }
    }

    /// What this node does by itself, and clients could do too, it does as root.
    pub(super) fn own_author(&self) -> Option<Box<Author>> {
        let auth = self.machine.auth();
        let auth_revision = auth.revision();
        auth.is_enabled().then(|| Box::new(Author { user: ROOT.into(), auth_revision }))
    }

    /// Answers at a state that holds every change that was completed before.
    pub(super) fn auth_ask(&mut self, who: Who, ask: AuthAsk, answer: Answer<AuthAnswer>) {
        self.at_pin(Box::new(move |node, pinned| {
            let told = pinned.and_then(|()| node.tell_of_auth(&who, ask));
            let revision = node.machine.revision() as i64;
            answer.send(told.map(|told| AuthAnswer { revision, told }));
        }));
    }

    fn tell_of_auth(&self, who: &Who, ask: AuthAsk) -> Result<AuthTold, Error> {
        let auth = self.machine.auth();
        let names = |names: &mut dyn Iterator<Item = &[u8]>| {
            Ok(AuthTold::Names(names.map(Name::from).collect()))
        };
        match ask {
            AuthAsk::State => {
                self.may_administer(who)?;
                Ok(AuthTold::State(self.auth_view()))
            }
            AuthAsk::Users => {
                self.may_administer(who)?;
                names(&mut auth.users())
            }
            AuthAsk::Roles => {
                self.may_administer(who)?;
                names(&mut auth.roles())
            }
            AuthAsk::User(name) => {
                // Everybody may ask about themselves; as in etcd, also nobody.
                let own = who.caller().map_or(&[][..], |caller| &caller.user);
                if *own != *name {
                    self.may_administer(who)?;
                }
                let user = auth.user(&name).ok_or(Error::Auth(Refusal::UserNotFound))?;
                names(&mut user.roles.iter().map(|name| &**name))
            }
            AuthAsk::Role(name) => {
                let user = who.caller().and_then(|caller| auth.user_of(caller));
                if !user.is_some_and(|user| user.roles.contains(&name)) {
                    self.may_administer(who)?;
                }
                let role = auth.role(&name).ok_or(Error::Auth(Refusal::RoleNotFound))?;
                let permissions = role.iter().map(|((key, end), kind)| Permission {
                    kind: *kind,
                    key: key.clone(),
                    end: end.clone(),
                });
                Ok(AuthTold::Permissions(permissions.collect()))
            }
        }
    }

    /// What is needed to let a user in, as every change completed before has left it.
    pub(super) fn login(&mut self, name: Name, answer: Answer<LoginAnswer>) {
        self.at_pin(Box::new(move |node, pinned| {
            answer.send(pinned.map(|()| LoginAnswer {
                revision: node.machine.revision() as i64,
                auth: node.auth_view(),
                user: node.machine.auth().user(&name).cloned(),
            }));
        }));
    }

    /// Does something that only root may, once this node knows whether it is root who asks.
    pub(super) fn as_root(
        &mut self,
        who: Who,
        job: impl FnOnce(&mut Node<L, D>, Result<(), Error>) + 'static,
    ) {
        self.at_pin(Box::new(move |node, pinned| {
            let allowed = pinned.and_then(|()| node.may_administer(&who));
            job(node, allowed);
        }));
    }

    /// The same for what asks [`Node::as_root`] again before it is done: at once, where nothing is known of
    /// users.
    pub(super) fn first_as_root(
        &mut self,
        who: Who,
        job: impl FnOnce(&mut Node<L, D>, Result<(), Error>) + 'static,
    ) {
        match self.machine.auth().is_enabled() {
            true => self.as_root(who, job),
            false => job(self, Ok(())),
        }
    }

    pub(super) fn list_alarms(&mut self, who: Who, answer: Answer<Vec<(u64, AlarmKind)>>) {
        self.at_pin(Box::new(move |node, pinned| {
            let allowed = pinned.and_then(|()| node.permit(&who).map(|_| ()));
            answer.send(allowed.map(|()| node.machine.alarms().map(alarm).collect()));
        }));
    }
}
