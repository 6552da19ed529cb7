//! Members that join and leave, and other codes, while the cluster works (PROTOCOL 10).
//!
//! Invariant: f stays as it is, so that what the plan loses is within the promise of every layout; a
//! node that was chosen to leave is neither replaced nor chosen again.

use crate::host::State;
use crate::plan::{Kind, MS};
use crate::world::{Event, World, place};
use racos_machine::{Joining, Members, Reconfigure};

/// How often an operator looks whether a change was admitted, and asks again.
const LOOK_NS: u64 = 100 * MS;

/// A change that was asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    change: Reconfigure,
    /// Looks left until another change is thought of.
    looks: u32,
}

impl World {
    /// An operator thinks of a change, and goes on asking for it.
    pub fn reconfigure(&mut self) {
        let again_ns = match &mut self.wanted {
            Some(wanted) => {
                wanted.looks -= 1;
                let (looks, expected) = (wanted.looks, wanted.change.expected);
                let is_over = self.newest_members().is_some_and(|it| it.epoch() != expected);
                if looks == 0 || is_over || !self.is_faulty {
                    self.wanted = None;
                } else {
                    self.ask_for_change();
                }
                LOOK_NS
            }
            None if self.is_faulty => {
                self.think_of_change();
                self.ask_for_change();
                LOOK_NS + self.change_rng.exponential(self.plan.faults.change_ns_mean)
            }
            None => return,
        };
        self.at(self.now_ns + again_ns, Event::Reconfigure);
    }

    /// As the node sees them that has executed most.
    pub fn newest_members(&self) -> Option<&Members> {
        let nodes = self.hosts.iter().filter_map(|host| host.node.as_ref());
        nodes.max_by_key(|node| node.exec()).map(|node| node.machine().members())
    }

    fn think_of_change(&mut self) {
        let Some(members) = self.newest_members().cloned() else { return };
        let Some(newest) = members.newest() else { return };
        let (used, expected) = (members.seats().len(), members.epoch());
        let (mut list, f) = (newest.members.clone(), self.plan.f);
        let mut joining = Vec::new();
        let rng = &mut self.change_rng;
        let grows = rng.one_in(2);
        if grows && used < self.hosts.len() && self.hosts[used].state != State::Lost {
            let host = &self.hosts[used];
            let address = self.net.borrow().address_of(used).to_string().into();
            joining.push(Joining { disk: host.disk_id, address });
            list.push(used as u8);
        }
        if !grows || rng.one_in(3) {
            let at = rng.below(list.len() as u64) as usize;
            let node = usize::from(list[at]);
            let stays = node >= used || {
                let host = &self.hosts[node];
                host.replacement.is_some() || host.is_moving()
            };
            if !stays && list.len() > 2 * f + 1 {
                list.remove(at);
            }
        }
        let most = list.len() - 2 * f;
        let k = rng.between(1, most as u64) as usize;
        // What a value may take must fit the logs' segments, and every owner the window.
        let fragment = (self.plan.node.segment_bytes as usize / 4).saturating_sub(16 << 10);
        let fits = fragment * k >= self.plan.node.value_bytes_max
            && (list.len() * self.plan.node.own_slots_max) as u64 <= self.plan.node.alpha;
        if !fits {
            return;
        }
        let leaving = newest.members.iter().filter(|node| !list.contains(node)).copied();
        let leaving: Vec<u8> = leaving.collect();
        let is_lost = |node: &&u8| self.hosts[usize::from(**node)].state == State::Lost;
        let lost = leaving.iter().filter(is_lost).copied().collect();
        let (lost_max, data, is_forced) = (f as u8, k as u8, false);
        let change =
            Reconfigure { expected, members: list, joining, lost_max, data, lost, is_forced };
        self.leaving.extend(leaving.iter().map(|node| usize::from(*node)));
        self.faults[place(Kind::Reconfigure)] += 1;
        self.trace.note(self.now_ns, &[12, change.members.len() as u64, k as u64]);
        self.trace.say(self.now_ns, || format!("wanted: {change:?}"));
        self.wanted = Some(Wanted { change, looks: 30 });
    }

    fn ask_for_change(&mut self) {
        let Some(wanted) = &self.wanted else { return };
        let up: Vec<usize> = self.up().collect();
        if up.is_empty() {
            return;
        }
        let through = *self.change_rng.pick(&up);
        let node = self.hosts[through].node.as_mut().expect("it is up");
        if node.core().is_active() {
            // What one node thinks unwise another may know better.
            let asked = node.propose_reconfigure(wanted.change.clone());
            self.trace.say(self.now_ns, || format!("node {through} was asked: {asked:?}"));
            self.wake_node(through, self.now_ns);
        }
    }
}
