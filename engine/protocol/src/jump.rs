//! Jumping over slots of which the peers tell only what came of them all (PROTOCOL 9.3).
//!
//! Invariant: a jump only goes forward, to a state that is durable here; what this node said of slots
//! at or above it stands as it was said.
//! What would break it: forgetting a record of a slot beyond the jump, or opening a slot below it.

use crate::core::Core;
use crate::effects::Effects;
use crate::{Membership, Nanos, Node, Slot};

impl Core {
    /// All slots below `exec` are executed: a state after them was taken from a peer, and is durable.
    ///
    /// # Panics
    /// If `exec` is not above the own one.
    pub fn jump(
        &mut self,
        exec: Slot,
        to: Membership,
        told_by: Node,
        now: Nanos,
        fx: &mut Effects,
    ) {
        assert!(exec > self.exec, "a jump to slot {exec} from {} goes back", self.exec);
        assert!(!self.is_waiting_for_change, "a jump comes between inputs");
        // PROTOCOL 9.3-g: those at or above it stay, with everything that was said of them.
        while self.exec < exec
            && let Some(state) = self.slots.pop_front()
        {
            self.own_open -= usize::from(state.opened);
            self.exec += 1;
        }
        self.exec = exec;
        self.seen = self.seen.max(exec);
        if mutant!("own records dropped by a jump") {
            let opened = self.slots.iter().filter(|state| state.opened).count();
            self.own_open -= opened;
            self.slots.clear();
            self.seen = exec;
        }
        self.catchup = None;
        self.configure(to);
        self.fill(now, fx);
        self.in_use_named(now, fx);
        // PROTOCOL 9.3-i
        self.skip_own(fx);
        self.null_unknown(now, fx);
        self.execute(now, fx);
        if let Some(peer) = self.peers.get_mut(usize::from(told_by)) {
            peer.exec = peer.exec.max(exec);
            if self.catchup.is_none() && peer.exec > self.exec {
                self.ask_facts(told_by, now, fx);
            }
        }
        self.wake = now;
    }

    /// PROTOCOL 9.3-i, 10-n: own slots below are settled, or may have been opened; where a change
    /// takes effect that was jumped over, none was.
    fn configure(&mut self, to: Membership) {
        let (epoch, before) = (self.epoch, self.own_next);
        self.set_membership(to);
        let before = if self.epoch == epoch { before } else { before.min(self.fill_to) };
        let least = if mutant!("own_next left behind") { 0 } else { self.exec };
        self.own_next = self.own_from(self.own_next.max(before).max(least));
    }
}

