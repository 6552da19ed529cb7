//! Members listed, added, moved and removed through this role (PROTOCOL 10).
//!
//! Invariant: a change names the epoch that it was made for, so one that was overtaken is refused by
//! every node alike. What only a proposer knows is looked at here before: that who joins runs and has
//! caught up, and that a quorum of those who would be members then is heard.
//! What would break it: asking again for a change whose outcome is not known.

use super::auth::Who;
use super::pending::Answer;
use super::role::SILENT_NS;
use super::types::*;
use super::write::{Applied, WriteJob};
use crate::admission::Onlooker;
use crate::batch::Waiter;
use crate::node::Node;
use crate::wire::node::kind;
use racos_machine::{Action, Joining, Outcome, Reconfigure, Refusal};
use racos_net::Link;
use racos_protocol::Nanos;
use racos_storage::device::Device;
use rustc_hash::FxHashMap;
use std::net::SocketAddr;

/// How long a change may take to be ready to be asked for, which is more than a node that looks on takes
/// between showing itself twice; and how long to be in effect, before its client is answered all the same.
/// Both together are less than such clients wait by themselves.
const READY_PATIENCE_NS: Nanos = 3_000_000_000;
const EFFECT_PATIENCE_NS: Nanos = 1_500_000_000;
/// How often it is looked at meanwhile.
const LOOK_NS: Nanos = 20_000_000;
/// Longest `HOST:PORT` that is told.
const FACE_BYTES_MAX: usize = 262;

/// Where clients reach the nodes that joined or moved; each says it itself.
#[derive(Default)]
pub(super) struct Faces {
    pub(super) own: Option<Box<str>>,
    others: FxHashMap<u8, Box<str>>,
}

/// A change on its way.
struct Changing {
    who: Who,
    answer: Answer<MembersAnswer>,
    since: Nanos,
}

/// Whether to try again.
enum Unready {
    Later(Error),
    Never(Error),
}

impl<L: Link, D: Device> Node<L, D> {
    /// The members of the newest configuration.
    pub(super) fn member_list(&self) -> Vec<Member> {
        let members = self.members().iter().filter_map(|node| {
            let clients = match node == self.me {
                true => self.api.faces.own.clone(),
                false => self.api.faces.others.get(&node).cloned(),
            };
            let (id, address) = (self.member_id(node), self.address(node)?);
            Some(Member { id, node, address, clients })
        });
        members.collect()
    }

    fn members_answer(&self, id: u64) -> MembersAnswer {
        let revision = self.machine.revision() as i64;
        MembersAnswer { revision, id, members: self.member_list() }
    }

    pub(super) fn list_members(
        &mut self,
        who: Who,
        serializable: bool,
        answer: Answer<MembersAnswer>,
    ) {
        if serializable {
            let allowed = self.permit(&who).map(|_| ());
            return answer.send(allowed.map(|()| self.members_answer(0)));
        }
        self.at_pin(Box::new(move |node, pinned| {
            let allowed = pinned.and_then(|()| node.permit(&who).map(|_| ()));
            answer.send(allowed.map(|()| node.members_answer(0)));
        }));
    }

    /// Tells the others where clients reach this node, if their configurations do not, or another place.
    pub(crate) fn say_face(&mut self) {
        let Some(own) = self.api.faces.own.clone() else { return };
        for node in self.others().iter() {
            self.send(node, kind::FACE, own.as_bytes(), &[]);
        }
    }

    /// FACE: where clients reach a node that joined, or moved.
    pub(crate) fn on_face(&mut self, from: u8, head: &[u8]) {
        let is_text =
            |text: &&str| text.len() <= FACE_BYTES_MAX && !text.contains(char::is_control);
        if let Some(text) = std::str::from_utf8(head).ok().filter(is_text) {
            self.api.faces.others.insert(from, text.into());
        }
    }

    pub(super) fn member_add(
        &mut self,
        who: Who,
        address: SocketAddr,
        answer: Answer<MembersAnswer>,
    ) {
        self.first_as_root(who.clone(), move |node, allowed| match allowed {
            Ok(()) => node.try_member_add(address, Changing { who, answer, since: node.now }),
            Err(error) => answer.send(Err(error)),
        });
    }

    fn try_member_add(&mut self, address: SocketAddr, changing: Changing) {
        match self.ready_to_add(address) {
            Ok((node, change)) => {
                let id = self.member_id_of(node, 1);
                self.change_members(Action::Reconfigure(Box::new(change)), id, changing);
            }
            Err(Unready::Later(_)) if self.now < changing.since + READY_PATIENCE_NS => {
                let again = self.now + LOOK_NS;
                let job = move |node: &mut Node<L, D>| node.try_member_add(address, changing);
                self.api.later(again, Box::new(job));
            }
            Err(Unready::Later(error) | Unready::Never(error)) => changing.answer.send(Err(error)),
        }
    }

    /// PROTOCOL 10-m: the change that makes a member of a node that looks on, once it has caught up.
    fn ready_to_add(&self, address: SocketAddr) -> Result<(u8, Reconfigure), Unready> {
        if self.members().iter().any(|node| self.address(node) == Some(address)) {
            return Err(Unready::Never(Error::MemberExists));
        }
        let lately = |onlooker: &Onlooker| self.now < onlooker.heard_at + SILENT_NS;
        let all = self.admission.onlookers().iter();
        let mut found = all.filter(|(_, it)| it.address == address && lately(it));
        let next = self.core.seats().len();
        let Some((&node, onlooker)) = found.next() else {
            return Err(Unready::Later(Error::MemberRefused(format!(
                "no node of this cluster looks on at {address}: start it first, as node {next} on an \
                 empty data directory; see `racos member add --help`"
            ))));
        };
        if usize::from(node) != next {
            return Err(Unready::Never(Error::MemberRefused(format!(
                "the node at {address} is node {node}, the next one that joins is node {next}: numbers \
                 are never used again, and none is left out; change `node` in its configuration and \
                 start it on an empty data directory"
            ))));
        }
        let (theirs, ours) = (onlooker.exec, self.core.exec());
        if theirs + self.config.alpha < ours {
            return Err(Unready::Later(Error::MemberRefused(format!(
                "node {node} catches up: {theirs} of {ours} slots; try again"
            ))));
        }
        let joining = Joining { disk: onlooker.disk, address: address.to_string().into() };
        let mut change = self.machine.members().unchanged();
        change.members.push(node);
        change.joining.push(joining);
        self.check_members(&change, Some(node)).map_err(Unready::Never)?;
        Ok((node, change))
    }

    pub(super) fn member_remove(&mut self, who: Who, id: u64, answer: Answer<MembersAnswer>) {
        self.first_as_root(who.clone(), move |node, allowed| match allowed {
            Ok(()) => node.remove_member(who, id, answer),
            Err(error) => answer.send(Err(error)),
        });
    }

    fn remove_member(&mut self, who: Who, id: u64, answer: Answer<MembersAnswer>) {
        let Some(node) = self.members().iter().find(|node| self.member_id(*node) == id) else {
            return answer.send(Err(Error::MemberNotFound));
        };
        let mut change = self.machine.members().unchanged();
        change.members.retain(|member| *member != node);
        match self.check_members(&change, None) {
            Ok(()) => {
                let action = Action::Reconfigure(Box::new(change));
                self.change_members(action, 0, Changing { who, answer, since: self.now });
            }
            Err(error) => answer.send(Err(error)),
        }
    }

    pub(super) fn member_update(
        &mut self,
        who: Who,
        id: u64,
        address: SocketAddr,
        answer: Answer<MembersAnswer>,
    ) {
        self.first_as_root(who.clone(), move |node, allowed| match allowed {
            Ok(()) => node.move_member(id, address, Changing { who, answer, since: node.now }),
            Err(error) => answer.send(Err(error)),
        });
    }

    /// PROTOCOL 10-am
    fn move_member(&mut self, id: u64, address: SocketAddr, changing: Changing) {
        let Some(node) = self.members().iter().find(|node| self.member_id(*node) == id) else {
            return changing.answer.send(Err(Error::MemberNotFound));
        };
        if self.members().iter().any(|it| it != node && self.address(it) == Some(address)) {
            return changing.answer.send(Err(Error::MemberExists));
        }
        if self.address(node) == Some(address) {
            return changing.answer.send(Ok(self.members_answer(id)));
        }
        let expected = self.machine.members().seats()[usize::from(node)].incarnation;
        let action = Action::MoveNode { node, expected, address: address.to_string().into() };
        match self.check_change(&action) {
            Ok(()) => self.change_members(action, id, changing),
            Err(why) => changing.answer.send(Err(Error::MemberRefused(why))),
        }
    }

    /// What no other node looks at, and what they would refuse, with advice.
    fn check_members(&self, change: &Reconfigure, joins: Option<u8>) -> Result<(), Error> {
        let n = change.members.len();
        let (f, k) = (usize::from(change.lost_max), usize::from(change.data));
        if n < 2 * f + k {
            return Err(Error::TooFewMembers(format!(
                "{n} members with f = {f} and k = {k} would break the promise, n >= 2f + k: add a member \
                 first, or choose another f or k with `racos member remove N --f F --k K`"
            )));
        }
        let heard = |node: &&u8| {
            **node == self.me || joins == Some(**node) || self.heard_within(**node, SILENT_NS)
        };
        let heard = change.members.iter().filter(heard).count();
        if heard < n - f {
            return Err(Error::MembersUnhealthy(format!(
                "of the {n} members that there would be {heard} are heard; {} make a quorum",
                n - f
            )));
        }
        let action = Action::Reconfigure(Box::new(change.clone()));
        self.check_change(&action).map_err(Error::MemberRefused)
    }

    /// Proposes it, once it is sure that it is root who asks: of nobody, it is taken for an operator's at
    /// the nodes' own ports.
    fn change_members(&mut self, change: Action, id: u64, changing: Changing) {
        self.as_root(changing.who.clone(), move |node, allowed| match allowed {
            Ok(()) => node.propose_change(change, id, changing),
            Err(error) => changing.answer.send(Err(error)),
        });
    }

    /// Answers when it is in effect, or admitted and that takes long.
    fn propose_change(&mut self, change: Action, id: u64, changing: Changing) {
        let number = self.api.next_number();
        let job: WriteJob<L, D> = Box::new(move |node, applied| match changed(applied) {
            Ok(()) => {
                let until = node.now + EFFECT_PATIENCE_NS;
                node.answer_in_effect(id, until, changing.answer);
            }
            Err(error) => changing.answer.send(Err(error)),
        });
        self.api.writes.insert(number, job);
        self.propose_alone(change, Some(Waiter::Api(number)));
    }

    fn answer_in_effect(&mut self, id: u64, until: Nanos, answer: Answer<MembersAnswer>) {
        if self.core.exec() >= self.machine.members().effect() || self.now >= until {
            return answer.send(Ok(self.members_answer(id)));
        }
        let job = move |node: &mut Node<L, D>| node.answer_in_effect(id, until, answer);
        self.api.later(self.now + LOOK_NS, Box::new(job));
    }
}

/// Whether the change was admitted, and if not, why.
fn changed(applied: Applied) -> Result<(), Error> {
    let (Outcome::Refused { reason, .. }, _) = applied? else { return Ok(()) };
    let text = reason.to_string();
    Err(match reason {
        Refusal::ChangeInFlight | Refusal::OtherEpoch => Error::MembersUnhealthy(text),
        Refusal::TooManyRebuilding | Refusal::ImpossibleMembers => Error::TooFewMembers(text),
        Refusal::AddressInUse => Error::MemberExists,
        _ => Error::MemberRefused(text),
    })
}
