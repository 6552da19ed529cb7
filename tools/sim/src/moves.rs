//! Nodes that move to other addresses while the cluster works (PROTOCOL 10-am).
//!
//! Purpose: an operator tells the cluster where a node is to be and starts it there: as a rule in this order,
//! sometimes in the other. Nobody else's configuration is touched, that of a new disk neither; a place that
//! was left may be taken by another node.
//! Invariant: a node counts as lost from the first step until it is where the cluster was told; the next one
//! moves when all have heard of it. At most f addresses that a client was told are wrong. No disk moves twice: what
//! was asked of a node that did not answer may take effect late, and would take the second move back.

use crate::host::State;
use crate::plan::{Kind, MS};
use crate::world::{Event, World, place};
use std::net::SocketAddr;

/// How often an operator looks how far a move is.
const LOOK_NS: u64 = 30 * MS;

/// A move that is under way.
#[derive(Debug, Clone)]
pub struct Moving {
    to: SocketAddr,
    /// The node is started there though nobody was told; so many looks later the cluster is.
    tells_after: u32,
    /// It runs, or will the next time that it does, where it is to be.
    is_there: bool,
    /// Some others may not know it, who were away or are new; but the cluster does, and it runs there.
    pub is_over: bool,
}

impl World {
    /// An operator wants a node to be elsewhere, if that leaves as many as have to be there.
    pub fn think_of_move(&mut self) {
        if !self.is_faulty {
            return;
        }
        let wait_ns = self.move_rng.exponential(self.plan.faults.move_ns_mean).max(MS);
        self.at(self.now_ns + wait_ns, Event::Move);
        let index = self.move_rng.below(self.plan.machines() as u64) as usize;
        let is_member = self.newest_members().is_some_and(|it| it.is_member(index as u8));
        // Two that do not know where the other one is would have to hear each other.
        let is_busy = self.hosts.iter().any(|host| host.moving.is_some());
        if !is_member || is_busy || self.leaving.contains(&index) || !self.may_lose(index) {
            return;
        }
        let incarnation = Some(self.hosts[index].incarnation());
        if std::mem::replace(&mut self.hosts[index].moved, incarnation) == incarnation {
            return;
        }
        let to = self.free_address();
        let goes_first = self.move_rng.one_in(3);
        let tells_after = if goes_first { self.move_rng.below(12) as u32 } else { 0 };
        self.lost += 1;
        self.hosts[index].moving =
            Some(Moving { to, tells_after, is_there: false, is_over: false });
        self.note_move(index, to);
        if goes_first {
            self.go(index, to);
        }
        self.at(self.now_ns + LOOK_NS, Event::Moving(index));
    }

    fn note_move(&mut self, index: usize, to: SocketAddr) {
        self.faults[place(Kind::Move)] += 1;
        self.trace.note(self.now_ns, &[13, index as u64, to.port().into()]);
        self.trace.say(self.now_ns, || format!("node {index} moves to {to}"));
    }

    /// One that nobody ever had, or that another node has left.
    fn free_address(&mut self) -> SocketAddr {
        let vacant = self.vacant.len() as u64;
        match vacant > 0 && self.move_rng.one_in(2) {
            true => self.vacant.swap_remove(self.move_rng.below(vacant) as usize),
            false => self.net.borrow_mut().fresh_address(),
        }
    }

    /// Where a new disk comes up, if nodes move in this run. It is named then, even if it is where the node was:
    /// that may not be where the others look for it.
    pub fn place_of_replacement(&mut self, index: usize) -> Option<SocketAddr> {
        if self.plan.faults.move_ns_mean == 0 {
            return None;
        }
        if self.move_rng.one_in(2) {
            return Some(self.net.borrow().address_of(index));
        }
        let to = self.free_address();
        self.note_move(index, to);
        Some(to)
    }

    /// From its next start on the node is at another address.
    pub fn relocate(&mut self, index: usize, to: SocketAddr) {
        let mut net = self.net.borrow_mut();
        let from = net.address_of(index);
        if from != to {
            net.relocate(index, to);
            self.hosts[index].left.push(from);
        }
    }

    /// The process ends, and starts elsewhere with the same disk.
    fn go(&mut self, index: usize, to: SocketAddr) {
        if self.hosts[index].state == State::Up {
            let power = self.move_rng.one_in(3);
            self.kill(index, power);
        }
        self.relocate(index, to);
        let moving = self.hosts[index].moving.as_mut().expect("it moves");
        moving.is_there = true;
        let wait_ns = self.move_rng.exponential(20 * MS);
        self.at(self.now_ns + MS + wait_ns, Event::Start(index));
    }

    /// The operator goes on.
    pub fn moving(&mut self, index: usize) {
        let host = &self.hosts[index];
        let Some(moving) = host.moving.clone() else { return };
        let is_away = host.replacement.is_some() || host.is_wiped;
        if moving.is_over && (is_away || matches!(host.state, State::Lost | State::Gone)) {
            // The next disk of it says itself where it is.
            return self.hosts[index].moving = None;
        }
        self.at(self.now_ns + LOOK_NS, Event::Moving(index));
        if moving.tells_after > 0 {
            self.hosts[index].moving.as_mut().expect("looked at above").tells_after -= 1;
            return;
        }
        let is_told = self.looks_for(index, moving.to).any(|looks| looks);
        if !is_told {
            self.ask_for_move(index, moving.to);
        }
        if !is_told && !moving.is_over {
            return;
        }
        if !moving.is_there {
            // It may run on where nobody looks for it any more.
            if !self.is_faulty || self.move_rng.one_in(3) {
                self.go(index, moving.to);
            }
            return;
        }
        if !moving.is_over && self.hosts[index].state == State::Up {
            self.hosts[index].moving.as_mut().expect("looked at above").is_over = true;
            self.lost -= 1;
            self.trace.say(self.now_ns, || format!("node {index} has moved"));
            self.tell_clients();
        }
        if self.all_look_for(index, moving.to) && self.hosts[index].state == State::Up {
            self.hosts[index].moving = None;
            self.trace.say(self.now_ns, || format!("all know where node {index} is"));
        }
    }

    fn ask_for_move(&mut self, index: usize, to: SocketAddr) {
        let up: Vec<usize> = self.up().collect();
        if up.is_empty() {
            return;
        }
        let through = *self.move_rng.pick(&up);
        let expected = self.hosts[index].incarnation();
        let node = self.hosts[through].node.as_mut().expect("it is up");
        if node.core().is_active() {
            // What one node thinks unwise another may know better.
            let asked = node.propose_move(index as u8, expected, &to.to_string());
            self.trace.say(self.now_ns, || format!("node {through} was asked: {asked:?}"));
            self.wake_node(through, self.now_ns);
        }
    }

    /// Of each other node that is not lost: whether it looks for this one there. One that does not run is
    /// not known to.
    fn looks_for(&self, index: usize, at: SocketAddr) -> impl Iterator<Item = bool> {
        let is_gone = |state| matches!(state, State::Lost | State::Gone);
        let others = self.hosts.iter().filter(move |host| {
            // What is on an empty disk comes to its end, and what is not in yet is lost.
            host.index != index && !is_gone(host.state) && !host.is_wiped
        });
        others.map(move |host| {
            let members = host.node.as_ref().map(|node| node.machine().members());
            let address = members.and_then(|members| members.address(index as u8));
            address.and_then(|text| text.parse().ok()) == Some(at)
        })
    }

    /// Whether all others send to it there. From then on nobody is where it was.
    pub fn all_look_for(&mut self, index: usize, at: SocketAddr) -> bool {
        let all = self.looks_for(index, at).all(|looks| looks);
        if all {
            self.vacant.append(&mut self.hosts[index].left);
        }
        all
    }

    /// Where the first so many machines are.
    pub fn addresses(&self, count: usize) -> Vec<SocketAddr> {
        let net = self.net.borrow();
        (0..count).map(|node| net.address_of(node)).collect()
    }

    /// Clients are told where the nodes are: some soon, all before too much that they know is wrong. They go
    /// on without their sessions.
    pub fn tell_clients(&mut self) {
        let now = self.addresses(self.plan.machines());
        for client in 0..self.clients.len() {
            let known = &self.clients[client].known;
            let wrong = known.iter().zip(&now).filter(|(known, is)| known != is).count();
            if wrong > self.plan.f || (wrong > 0 && self.is_faulty && self.move_rng.one_in(3)) {
                self.renew_client(client);
            }
        }
    }
}
