//! How a loop waits for work: look again, give the CPU away, or sleep.
//!
//! Purpose: one policy for the reactor and for the measurement that chooses its settings.
//!
//! Invariant: a loop that looks again without work gives the CPU away at each look, unless the CPU
//! is its own. Where that takes so long that somebody else must be computing on this CPU, it stops
//! looking for a while and sleeps: a sleeper is woken before others have used up their time, one
//! that gave the CPU away is not.
//! What would break it: yielding without measuring how long it took.

/// How the loop waits for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollMode {
    /// Never sleeps: for a core of its own.
    Busy,
    /// Looks again for this many nanoseconds, yielding, then sleeps in the ring.
    Adaptive { spin_ns: u64 },
    /// Sleeps in the ring as soon as there is nothing to do.
    Blocking,
}

/// What to do after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Turn again at once.
    Look,
    /// Let others use the CPU for a moment, say how long that was to [`Waiting::yielded`], turn
    /// again.
    Yield,
    /// Sleep until something comes.
    Sleep,
}

/// A yield that takes longer than this gave the CPU to somebody who computes: nodes and clients use
/// it for less at a time, and the scheduler gives a computing thread about 3 ms.
const DISTURBED_NS: u64 = 1_500_000;
/// So many of them in a row, and somebody computes for longer than a burst of our own.
const DISTURBED_ROW: u32 = 3;
/// How long to sleep only, after such a row; doubled at each that follows, up to the longest.
const PAUSE_NS_MIN: u64 = 100_000_000;
const PAUSE_NS_MAX: u64 = 3_200_000_000;

/// The state of one loop's waiting. Times are nanoseconds of one monotonic clock.
#[derive(Debug)]
pub struct Waiting {
    mode: PollMode,
    last_work_ns: u64,
    /// No yielding before this.
    pause_until_ns: u64,
    pause_ns: u64,
    /// Long yields in a row.
    row: u32,
}

impl Waiting {
    /// Begins as if work had just been done.
    pub fn new(mode: PollMode, now_ns: u64) -> Waiting {
        Waiting { mode, last_work_ns: now_ns, pause_until_ns: 0, pause_ns: PAUSE_NS_MIN, row: 0 }
    }

    /// What to do after a turn that began at `now_ns`. `busy`: it did something; `drained`: nothing
    /// more is known to wait.
    pub fn after_turn(&mut self, now_ns: u64, busy: bool, drained: bool) -> Next {
        if busy {
            self.last_work_ns = now_ns;
        }
        if !drained {
            return Next::Look;
        }
        match self.mode {
            PollMode::Busy => Next::Look,
            PollMode::Blocking => Next::Sleep,
            PollMode::Adaptive { .. } if self.is_disturbed(now_ns) => Next::Sleep,
            PollMode::Adaptive { spin_ns } if now_ns < self.last_work_ns + spin_ns => {
                if busy {
                    Next::Look
                } else {
                    Next::Yield
                }
            }
            PollMode::Adaptive { .. } => Next::Sleep,
        }
    }

    /// A yield that ended at `now_ns` took so long.
    pub fn yielded(&mut self, now_ns: u64, took_ns: u64) {
        self.row = if took_ns >= DISTURBED_NS { self.row + 1 } else { 0 };
        if self.row >= DISTURBED_ROW {
            self.row = 0;
            // Undisturbed for longer than the last pause: another disturbance, not the same.
            if now_ns > self.pause_until_ns + self.pause_ns {
                self.pause_ns = PAUSE_NS_MIN;
            }
            self.pause_until_ns = now_ns + self.pause_ns;
            self.pause_ns = (2 * self.pause_ns).min(PAUSE_NS_MAX);
        }
    }

    /// Whether others are computing on this CPU, as far as is known.
    pub fn is_disturbed(&self, now_ns: u64) -> bool {
        now_ns < self.pause_until_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn an_adaptive_loop_looks_yields_and_then_sleeps() {
        let mut waiting = Waiting::new(PollMode::Adaptive { spin_ns: 100 }, 1000);
        assert_eq!(waiting.after_turn(2000, true, false), Next::Look);
        assert_eq!(waiting.after_turn(2000, true, true), Next::Look);
        assert_eq!(waiting.after_turn(2050, false, true), Next::Yield);
        waiting.yielded(2060, 10);
        assert_eq!(waiting.after_turn(2099, false, true), Next::Yield);
        assert_eq!(waiting.after_turn(2100, false, true), Next::Sleep);
        assert_eq!(waiting.after_turn(2100, false, false), Next::Look, "more is waiting");
    }

    #[test]
    fn busy_never_sleeps_and_blocking_always_does() {
        let mut busy = Waiting::new(PollMode::Busy, 0);
        assert_eq!(busy.after_turn(u64::MAX / 2, false, true), Next::Look);
        let mut blocking = Waiting::new(PollMode::Blocking, 0);
        assert_eq!(blocking.after_turn(1, true, true), Next::Sleep);
    }

    #[test]
    fn a_loop_whose_cpu_others_compute_on_only_sleeps_for_longer_and_longer() {
        let mut waiting = Waiting::new(PollMode::Adaptive { spin_ns: MS }, 0);
        let mut now = 10 * MS;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert_eq!(waiting.after_turn(now, true, true), Next::Look);
            waiting.yielded(now, 3 * MS);
            waiting.yielded(now, 2 * MS);
            assert_eq!(waiting.after_turn(now, true, true), Next::Look, "two may be our own");
            waiting.yielded(now, 2 * MS);
            let began = now;
            while waiting.after_turn(now, true, true) == Next::Sleep {
                now += 10 * MS;
            }
            pauses.push((now - began) / MS);
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 3200, 3200]);
        // Quiet for longer than that: the next disturbance begins anew.
        now += 20_000 * MS;
        for took in [3 * MS, 3 * MS, MS, 3 * MS, 3 * MS] {
            waiting.yielded(now, took);
        }
        assert!(!waiting.is_disturbed(now), "not in a row");
        waiting.yielded(now, 3 * MS);
        assert!(waiting.is_disturbed(now + 99 * MS) && !waiting.is_disturbed(now + 100 * MS));
    }
}
