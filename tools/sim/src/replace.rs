//! Disks that are replaced while the cluster works (PROTOCOL 10).
//!
//! Invariant: at any time at most f nodes are lost, hold rotten fragments or rebuild: a disk is
//! replaced only if it is one of these, or leaves room for it.

use crate::host::State;
use crate::plan::{Kind, MS};
use crate::world::{Event, World, place};

/// How often an operator looks how far a replacement is.
const LOOK_NS: u64 = 150 * MS;

impl World {
    /// Takes a lost node, or now and then one that runs, and makes a new disk for it.
    pub fn replace(&mut self) {
        if !self.is_faulty {
            return;
        }
        let wait_ns = self.replace_rng.exponential(self.plan.faults.replace_ns_mean).max(MS);
        self.at(self.now_ns + wait_ns, Event::Replace);
        let lost = |world: &World, index: usize| {
            let host = &world.hosts[index];
            host.state == State::Lost && host.replacement.is_none()
        };
        let members = |index: &usize| !self.leaving.contains(index);
        let index = match (0..self.plan.n).filter(members).find(|index| lost(self, *index)) {
            Some(index) => index,
            None => self.replace_rng.below(self.plan.n as u64) as usize,
        };
        let is_lost = lost(self, index);
        if self.leaving.contains(&index) {
            return;
        }
        if self.hosts[index].replacement.is_some() || (!is_lost && !self.may_lose(index)) {
            return;
        }
        self.lost += usize::from(!is_lost);
        let rng = self.replace_rng.fork(7 + u64::from(self.hosts[index].incarnation()));
        let plan = self.plan.clone();
        let address = self.place_of_replacement(index);
        self.hosts[index].make_replacement(&plan, rng, address, self.now_ns);
        self.faults[place(Kind::Replace)] += 1;
        self.trace.note(self.now_ns, &[9, index as u64, u64::from(is_lost)]);
        self.trace.say(self.now_ns, || format!("node {index} is replaced, lost: {is_lost}"));
        self.at(self.now_ns, Event::Replacing(index));
    }

    /// Whether some node has executed that this disk has the place, and that it is whole.
    fn progress(&self, index: usize, disk_id: u128) -> (bool, bool) {
        let nodes = self.hosts.iter().filter_map(|host| host.node.as_ref());
        let seats = nodes.map(|node| node.machine().members().seats()[index]);
        let named: Vec<_> = seats.filter(|seat| seat.disk == disk_id).collect();
        (!named.is_empty(), named.iter().any(|seat| !seat.is_rebuilding))
    }

    /// The operator goes on.
    pub fn replacing(&mut self, index: usize) {
        let Some(new) = &self.hosts[index].replacement else { return };
        let (disk_id, is_in, address) = (new.disk_id, new.is_in, new.address);
        let (is_admitted, is_whole) = self.progress(index, disk_id);
        self.at(self.now_ns + LOOK_NS, Event::Replacing(index));
        if is_in && is_whole && address.is_none_or(|at| self.all_look_for(index, at)) {
            self.hosts[index].replacement = None;
            self.lost -= 1;
            self.spoiled.remove(&index);
            self.tell_clients();
            return self.trace.say(self.now_ns, || format!("node {index} is whole again"));
        }
        if is_in {
            return;
        }
        if !is_admitted {
            let up: Vec<usize> = self.up().collect();
            if !up.is_empty() {
                let through = *self.replace_rng.pick(&up);
                let expected = self.hosts[index].incarnation();
                let node = self.hosts[through].node.as_mut().expect("it is up");
                let address = address.map(|at| at.to_string()).unwrap_or_default();
                // What one node thinks unwise another may know better.
                let asked = node.propose_replace(index as u8, expected, disk_id, &address);
                self.trace.say(self.now_ns, || format!("node {through} was asked: {asked:?}"));
                self.wake_node(through, self.now_ns);
            }
            return;
        }
        // The old one may run on until it learns of it; or it is stopped at any time.
        let runs = self.hosts[index].node.is_some();
        if runs && self.replace_rng.one_in(2) {
            return;
        }
        if runs {
            self.kill(index, false);
        }
        self.hosts[index].swap_disk();
        if let Some(address) = address {
            self.relocate(index, address);
        }
        self.at(self.now_ns, Event::Start(index));
    }
}
