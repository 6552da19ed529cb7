//! Directories that are lost, and nodes that are started on empty ones as if nothing had happened
//! (PROTOCOL 10-ag).
//!
//! Invariant: such a node counts as lost from the start; it never takes part, and ends with the command
//! that replaces it as soon as enough of the others hear it.

use crate::host::State;
use crate::plan::{Kind, MS};
use crate::world::{Event, World, place};

impl World {
    /// Starts a lost node, or now and then one that runs and is lost by it, on an empty disk.
    pub fn wipe(&mut self) {
        if !self.is_faulty {
            return;
        }
        let wait_ns = self.wipe_rng.exponential(self.plan.faults.wipe_ns_mean).max(MS);
        self.at(self.now_ns + wait_ns, Event::Wipe);
        let fits = |world: &World, index: usize| {
            let host = &world.hosts[index];
            let stays = !world.leaving.contains(&index);
            stays && host.took_part && !host.is_wiped && host.replacement.is_none()
        };
        let lost = |index: &usize| self.hosts[*index].state == State::Lost && fits(self, *index);
        let index = match (0..self.plan.n).find(lost) {
            Some(index) => index,
            None => self.wipe_rng.below(self.plan.n as u64) as usize,
        };
        let is_lost = self.hosts[index].state == State::Lost;
        if !fits(self, index) || (!is_lost && !self.may_lose(index)) {
            return;
        }
        if !is_lost {
            self.lost += 1;
            self.kill(index, true);
        }
        let rng = self.wipe_rng.fork(u64::from(self.hosts[index].boots));
        let plan = self.plan.clone();
        self.hosts[index].wipe(&plan, rng, self.now_ns);
        self.faults[place(Kind::Wipe)] += 1;
        self.trace.note(self.now_ns, &[11, index as u64, u64::from(is_lost)]);
        self.trace.say(self.now_ns, || format!("fault: Wipe, node {index}, lost: {is_lost}"));
        self.at(self.now_ns, Event::Start(index));
    }

    /// A node on an empty disk has ended: it must say what to do, and is lost.
    pub fn wiped_stopped(&mut self, index: usize, why: &str) {
        if !why.contains(&format!("racos member replace {index}")) {
            return self.fail(format!("node {index}, on an empty disk, stopped itself: {why}"));
        }
        self.kill(index, false);
        let host = &mut self.hosts[index];
        host.state = State::Lost;
        host.is_wiped = false;
    }

    /// Whether every node has taken part: before that nobody may be lost, since a cluster is founded by
    /// all, or by more than are up when f are down.
    pub fn is_founded(&self) -> bool {
        self.hosts.iter().take(self.plan.n).all(|host| host.took_part)
    }
}
