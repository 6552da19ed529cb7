//! Nodes that are away until the others do not tell one by one what they missed (PROTOCOL 9.3).
//!
//! Invariant: nothing is done here that a kill or a cut does not do; only its time is chosen: when the
//! others have dropped what the node lacks, and when a state is on its way to it.

use crate::host::State;
use crate::plan::{Kind, MS};
use crate::world::{Event, World, place};

/// How often a node that is away, or catching up, is looked at.
const LOOK_NS: u64 = 2 * MS;
/// For how long at most a node is away, and is watched when it is back.
const AWAY_NS: u64 = 1_500 * MS;
const WATCH_NS: u64 = 400 * MS;

impl World {
    /// Ends the process of some node, for as long as it takes to fall behind.
    pub fn lag(&mut self) {
        if !self.is_faulty {
            return;
        }
        let wait_ns = self.lag_rng.exponential(self.plan.faults.lag_ns_mean).max(MS);
        self.at(self.now_ns + AWAY_NS + WATCH_NS + wait_ns, Event::Lag);
        let index = self.lag_rng.below(self.plan.n as u64) as usize;
        if self.hosts[index].state != State::Up {
            return;
        }
        self.faults[place(Kind::Lag)] += 1;
        self.trace.note(self.now_ns, &[10, index as u64]);
        self.trace.say(self.now_ns, || format!("fault: Lag, node {index}"));
        let exec = self.hosts[index].node.as_ref().map_or(0, |node| node.exec());
        let power = self.lag_rng.one_in(2);
        self.kill(index, power);
        self.lagging = Some((index, exec, self.now_ns));
        self.at(self.now_ns + LOOK_NS, Event::Lagging(index));
    }

    /// Looks whether the node is to come back, and then whether it takes a state.
    pub fn lagging(&mut self, index: usize) {
        let Some((_, exec, since_ns)) = self.lagging.filter(|(of, ..)| *of == index) else {
            return;
        };
        if !self.is_faulty || self.hosts[index].state == State::Lost {
            return self.lagging = None;
        }
        self.at(self.now_ns + LOOK_NS, Event::Lagging(index));
        let away_ns = self.now_ns - since_ns;
        if self.hosts[index].node.is_none() {
            let nodes = self.hosts.iter().filter_map(|host| host.node.as_ref());
            let behind = nodes.filter(|node| node.history_from() > exec).count();
            if away_ns >= AWAY_NS || behind + 1 >= self.plan.n - self.plan.f {
                self.at(self.now_ns, Event::Start(index));
            }
            return;
        }
        if away_ns >= AWAY_NS + WATCH_NS {
            return self.lagging = None;
        }
        let takes = self.hosts[index].node.as_ref().is_some_and(|node| node.takes_state());
        if !takes || !self.lag_rng.one_in(6) {
            return;
        }
        // The receiver, or whoever may be the sender.
        let other = self.lag_rng.below(self.plan.n as u64) as usize;
        let victim = if self.lag_rng.one_in(2) { index } else { other };
        if self.hosts[victim].state == State::Up {
            let power = self.lag_rng.one_in(2);
            self.trace.say(self.now_ns, || format!("fault: kill in a transfer, node {victim}"));
            self.kill(victim, power);
            let wait_ns = self.lag_rng.exponential(5 * MS);
            self.at(self.now_ns + MS + wait_ns, Event::Start(victim));
        }
    }
}
