//! How long a read waits for fragments before it asks others for theirs.
//!
//! A fragment that is late because the nodes have much to do does not come sooner if more of them are
//! asked: each reads its own from the disk and sends it, and all become later. So the wait follows what
//! fragments took lately, apart for those that are a message among others and those that are large.
//!
//! Invariant: a node that does not answer at all changes no wait: only what came is observed, and only
//! of nodes that were asked first. What would break it: observing a whole read, which lasts as long as
//! the wait itself if a node is down, so that waits would grow by themselves.

use crate::layout::LARGE_BYTES_MIN;
use racos_protocol::{Mean, Nanos, NodeSet};

const MS: Nanos = 1_000_000;
/// The shortest and the longest wait.
pub(crate) const WAIT_MIN: Nanos = 5 * MS;
pub(crate) const WAIT_MAX: Nanos = 200 * MS;
/// So many times what fragments took in the mean.
const TIMES: u64 = 4;

/// The fragments that a read asked for first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking {
    at: Nanos,
    is_begun: bool,
    /// Who was asked then and has not answered.
    open: NodeSet,
    /// They were waited for in vain, and one more node was asked.
    pub is_widened: bool,
}

impl Asking {
    pub fn new(now: Nanos) -> Asking {
        Asking { at: now, is_begun: false, open: NodeSet::EMPTY, is_widened: false }
    }

    /// One of the nodes asked at the start.
    pub fn ask(&mut self, node: u8) {
        self.is_begun = true;
        self.open.insert(node);
    }

    /// Somebody was asked.
    pub fn is_begun(&self) -> bool {
        self.is_begun
    }

    /// When they were.
    pub fn since(&self) -> Nanos {
        self.at
    }
}

/// What fragments took lately.
#[derive(Debug)]
pub(crate) struct Patience {
    /// Of small ones, and of large ones.
    took: [Mean; 2],
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { took: [Mean::new(0); 2] }
    }
}

impl Patience {
    /// A fragment came.
    pub fn came(&mut self, asking: &mut Asking, node: u8, len: usize, now: Nanos) {
        if asking.open.contains(node) {
            asking.open.remove(node);
            self.took[class(len)].observe(now.saturating_sub(asking.at));
        }
    }

    /// How long those of this length are waited for.
    /// PROTOCOL 8.1-u
    pub fn wait(&self, len: usize) -> Nanos {
        (self.took[class(len)].get() * TIMES).clamp(WAIT_MIN, WAIT_MAX)
    }

    /// Until when the read waits.
    pub fn due(&self, asking: &Asking, len: usize) -> Nanos {
        asking.at + self.wait(len)
    }
}

fn class(len: usize) -> usize {
    usize::from(len >= LARGE_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 400 << 10;

    /// Fragments of so many bytes, each of which took so long.
    fn after(patience: &mut Patience, len: usize, took: Nanos) {
        for _ in 0..50 {
            let mut asking = Asking::new(1000);
            asking.ask(3);
            patience.came(&mut asking, 3, len, 1000 + took);
            assert!(asking.open.is_empty());
        }
    }

    /// tests PROTOCOL 8.1-u
    #[test]
    fn the_wait_follows_what_came_and_stays_within_its_bounds() {
        let mut patience = Patience::default();
        assert_eq!(patience.wait(LARGE), WAIT_MIN);
        after(&mut patience, LARGE, 20 * MS);
        assert!((75 * MS..=80 * MS).contains(&patience.wait(LARGE)), "{}", patience.wait(LARGE));
        assert_eq!(patience.wait(100), WAIT_MIN, "small ones come as soon as before");
        after(&mut patience, LARGE, 900 * MS);
        assert_eq!(patience.wait(LARGE), WAIT_MAX);
        after(&mut patience, LARGE, MS / 10);
        assert_eq!(patience.wait(LARGE), WAIT_MIN);
    }

    /// tests PROTOCOL 8.1-u: a wait that were observed would make the next one longer, without end.
    #[test]
    fn who_was_asked_later_or_twice_is_not_observed() {
        let mut patience = Patience::default();
        let mut asking = Asking::new(0);
        asking.ask(1);
        patience.came(&mut asking, 2, LARGE, 100 * MS);
        assert_eq!(patience.wait(LARGE), WAIT_MIN, "an extra node");
        patience.came(&mut asking, 1, LARGE, MS);
        patience.came(&mut asking, 1, LARGE, 100 * MS);
        assert_eq!(patience.wait(LARGE), WAIT_MIN, "one that came twice");
    }
}
