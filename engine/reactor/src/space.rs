//! What the files of the log may take, and how fast segments are gone over to keep them there.
//!
//! The files stay as they are if as many bytes are gone over as the log writes, copies and checkpoints
//! included: each byte written takes one, each byte gone over gives one back. So the pace is a share of
//! what was written, and not of time: nothing at `wanted`, as much as is written a third of the way from
//! there to `bound`, three times as much at `bound`. Only a node at rest goes by the clock.
//!
//! Invariant: bytes are gone over for bytes written whatever the speed of the disk or the loop. Where
//! that is not enough (checkpoints late, hardly anything in a segment that is of no use), the log makes
//! no more files for what clients write (`Log::limit_files`), and they wait for the copying.
//! What would break it: a bound below what the log takes at rest.

use racos_protocol::Nanos;

/// Files of a log that are not full of what is of use, however little that is: the one in use, two
/// ahead, two spare, those at both marks, and one being copied.
const SEGMENTS_MIN: u64 = 8;
/// Bytes of a segment read at a time.
pub(crate) const STRETCH_MIN: u32 = 128 << 10;
pub(crate) const STRETCH_MAX: u32 = 1 << 20;
/// Bytes a second that a node at rest goes over, and one whose clients wait for room.
const REST_RATE: u64 = 64 << 20;
const URGENT_RATE: u64 = 2 << 30;
/// A node that has written nothing for so long is at rest.
const REST_NS: Nanos = 5_000_000;
/// Bytes gone over for each that is written, in percent, at most.
const SHARE_MAX: u64 = 300;

/// Bytes that the files of a log may take: those of live fragments and a quarter more, two checkpoints
/// with as much log in between, and a fixed reserve (segments being filled or ahead, and the log between
/// checkpoints with what went since the newest, which it names yet).
///
/// Copying begins at `wanted`; beyond `bound` clients get no more of the disk. So the files of a store
/// in use stay below 1.3 times what is live, and what is fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    pub wanted: u64,
    pub bound: u64,
}

impl Space {
    pub fn of(live: u64, checkpoint: u64, reserve: u64, segment: u64) -> Space {
        let wanted = live + live / 4 + 6 * checkpoint + reserve / 4 * 3;
        let spare = (reserve / 4).max((SEGMENTS_MIN * segment).saturating_sub(reserve / 4 * 3));
        Space { wanted, bound: wanted + live / 32 + spare.max(2 * segment) }
    }

    /// Bytes to go over for each that is written, in percent, while the files take so much.
    fn share(self, taken: u64) -> u64 {
        let over = taken.saturating_sub(self.wanted);
        (SHARE_MAX * over / (self.bound - self.wanted)).min(SHARE_MAX)
    }
}

/// What the pace follows from.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Load {
    /// Bytes of the files, without those that come back as soon as they may.
    pub taken: u64,
    /// Bytes that the log has written since it was opened.
    pub written: u64,
    /// Clients wait for room, or the disk is full.
    pub is_urgent: bool,
}

/// How many bytes may be gone over by now.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Less than none: more was read than that, because a group is looked at whole.
    allowed: i64,
    written: u64,
    /// When something was written last, and when this was asked last.
    written_at: Nanos,
    at: Nanos,
}

impl Pace {
    /// Another turn; the length of the stretch that may be read now, if one of `want` bytes may.
    pub fn turn(&mut self, now: Nanos, space: Space, load: Load, want: u32) -> Option<u32> {
        let wrote = load.written - std::mem::replace(&mut self.written, load.written);
        let elapsed = now - std::mem::replace(&mut self.at, now);
        if wrote > 0 {
            self.written_at = now;
        }
        let by_time = u128::from(self.rate(load.is_urgent)) * u128::from(elapsed) / 1_000_000_000;
        let more = u128::from(wrote) * u128::from(space.share(load.taken)) / 100 + by_time;
        let most = i64::from(STRETCH_MAX);
        self.allowed = self.allowed.saturating_add(more.min(1 << 40) as i64).min(most);
        (self.allowed >= least(want)).then_some(self.allowed as u32)
    }

    /// So much is being read.
    pub fn spend(&mut self, len: u32) {
        self.allowed -= i64::from(len);
    }

    /// Bytes a second allowed whatever is written.
    fn rate(&self, is_urgent: bool) -> u64 {
        match is_urgent {
            true => URGENT_RATE,
            false if self.at >= self.written_at + REST_NS => REST_RATE,
            false => 0,
        }
    }

    /// When another stretch may be read though nothing is written.
    pub fn due_at(&self, is_urgent: bool, want: u32) -> Nanos {
        let missing = (least(want) - self.allowed).max(0) as u64;
        let begins_at = if is_urgent { self.at } else { self.at.max(self.written_at + REST_NS) };
        let rate = if is_urgent { URGENT_RATE } else { REST_RATE };
        begins_at + missing * 1_000_000_000 / rate + 1
    }
}

/// Bytes that must be allowed for a stretch of `want`.
fn least(want: u32) -> i64 {
    i64::from(want.clamp(STRETCH_MIN, STRETCH_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: Space = Space { wanted: 100 << 20, bound: 200 << 20 };

    /// Bytes allowed for 64 MiB written at a time of load, 256 KiB a turn of 100 us.
    fn allowed(taken: u64) -> u64 {
        let mut pace = Pace::default();
        let (mut sum, mut written) = (0, 0);
        for turn in 1..=256 {
            written += 256 << 10;
            let load = Load { taken, written, is_urgent: false };
            if let Some(len) = pace.turn(turn * 100_000, SPACE, load, 0) {
                pace.spend(len);
                sum += u64::from(len);
            }
        }
        sum
    }

    #[test]
    fn the_more_the_files_take_the_more_is_gone_over_for_each_byte_written() {
        let near = |got: u64, wanted: u64| assert!(got.abs_diff(wanted) < 1 << 20, "{got}");
        near(allowed(90 << 20), 0);
        near(allowed(100 << 20), 0);
        near(allowed(120 << 20), 38 << 20);
        near(allowed(150 << 20), 96 << 20);
        near(allowed(200 << 20), 192 << 20);
        near(allowed(900 << 20), 192 << 20);
    }

    #[test]
    fn a_node_at_rest_goes_by_the_clock_and_one_whose_clients_wait_faster() {
        let (mut pace, taken) = (Pace::default(), 110 << 20);
        let mut load = Load { taken, written: 0, is_urgent: false };
        assert_eq!(pace.turn(REST_NS, SPACE, load, 0), Some(335_544), "64 MiB a second");
        pace.spend(335_544);
        let due = pace.due_at(false, 0);
        assert_eq!(due, REST_NS + 1_953_125 + 1, "128 KiB at 64 MiB a second");
        assert_eq!(pace.turn(due - 2000, SPACE, load, 0), None);
        assert!(pace.turn(due + 1000, SPACE, load, 0).is_some());
        load.is_urgent = true;
        assert_eq!(pace.turn(due + 2_000_000, SPACE, load, 0), Some(STRETCH_MAX));
    }

    #[test]
    fn what_was_not_used_is_not_saved_up_and_what_was_used_too_much_is_made_good() {
        let mut pace = Pace::default();
        let mut load = Load { taken: 200 << 20, written: 1 << 40, is_urgent: false };
        assert_eq!(pace.turn(1, SPACE, load, u32::MAX), Some(STRETCH_MAX));
        pace.spend(4 * STRETCH_MAX);
        load.written += u64::from(STRETCH_MAX);
        assert_eq!(pace.turn(2, SPACE, load, 0), None);
        load.written += u64::from(STRETCH_MAX);
        assert_eq!(pace.turn(3, SPACE, load, u32::MAX), Some(STRETCH_MAX));
    }

    #[test]
    fn the_files_may_take_less_than_1_3_times_what_is_live_and_what_is_fixed() {
        let fixed = Space::of(0, 10, 1000, 1);
        assert_eq!(fixed, Space { wanted: 810, bound: 1060 });
        let live = 100 << 30;
        let space = Space::of(live, 10, 1000, 1);
        assert_eq!(space.wanted, fixed.wanted + live / 4 * 5);
        assert!(space.bound - fixed.bound < live / 10 * 13);
        let small = Space::of(0, 0, 0, 1000);
        assert_eq!(small, Space { wanted: 0, bound: 8000 }, "what the log takes at rest");
        let large = Space::of(0, 0, 4000, 1000);
        assert_eq!(large, Space { wanted: 3000, bound: 8000 });
    }
}
