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

use crate::node::Node;
use racos_machine::OpId;
use racos_net::Link;
use racos_protocol::Nanos;
use racos_storage::Place;
use racos_storage::device::Device;

/// Files of a log that are not full of what is of use, however little that is: the one in use, two
/// ahead, two spare, those at both marks, and one being copied.
const SEGMENTS_MIN: u64 = 8;
/// Checkpoints that there are at a time, with records of what went since them: two, one being written.
const CHECKPOINTS: u64 = 4;
/// Segments that only checkpoints and copies may take.
const KEPT_SEGMENTS: u64 = 2;
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

/// Bytes that the files of a log may take: 1.28 times those of live fragments, and a fixed reserve
/// (segments being filled or ahead, checkpoints and the log between them). Where checkpoints are so large
/// for what is live that hardly anything were left for what went, as much as they need.
///
/// Copying begins at `wanted`, as late as it may: what is copied later has less in use. Beyond `bound`
/// clients get no more of the disk, and of what is left there two segments are for what makes room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    pub wanted: u64,
    pub bound: u64,
}

impl Space {
    pub fn of(live: u64, checkpoint: u64, reserve: u64, segment: u64) -> Space {
        let bound = live + live / 32 * 9 + reserve.max(SEGMENTS_MIN * segment);
        let least = live + live / 32 * 5 + CHECKPOINTS * checkpoint + SEGMENTS_MIN * segment;
        let bound = bound.max(least);
        let slope = live / 32 + (reserve / 8).max(2 * segment);
        Space { wanted: bound - KEPT_SEGMENTS * segment - slope, bound }
    }

    /// What clients may have of it.
    pub fn for_clients(self, segment: u64) -> u64 {
        self.bound - KEPT_SEGMENTS * segment
    }

    /// Bytes to go over for each that is written, in percent, while the files take so much.
    fn share(self, taken: u64) -> u64 {
        let over = taken.saturating_sub(self.wanted);
        (SHARE_MAX * over / (self.bound - self.wanted)).min(SHARE_MAX)
    }
}

/// What the bytes of a log's files are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpaceParts {
    /// Fragments that values in use need.
    pub needed: u64,
    /// Fragments that the newest checkpoint alone names, or one that is being written.
    pub named: u64,
    /// All else in the log from the older mark on: checkpoints, and records of what went since.
    pub tail: u64,
    /// All else before it, of use to nobody.
    pub dead: u64,
    /// Not written yet, or given back.
    pub free: u64,
}

impl<L: Link, D: Device> Node<L, D> {
    /// Where the log keeps this node's fragment for a value in use, or because the newest checkpoint names
    /// it: for tests of what a restart comes to.
    pub fn fragment_kept(&self, op: OpId) -> Option<Place> {
        self.fragments.kept(op).map(|(place, _)| place)
    }

    /// What the bytes of the log's files are, the superblock left out.
    pub fn space_parts(&self) -> SpaceParts {
        let behind = self.log.segments_behind();
        let dead = behind.map(|(segment, len)| u64::from(len) - self.fragments.live_in(segment));
        let (dead, live) = (dead.sum(), self.fragments.live_bytes());
        let needed = self.fragments.needed_bytes();
        let free = self.log.bytes_spare() + self.log.bytes_prepared();
        let tail = self.log.file_bytes().saturating_sub(live + dead + free);
        SpaceParts { needed, named: live - needed, tail, dead, free }
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
        assert_eq!(fixed, Space { wanted: 873, bound: 1000 });
        assert_eq!(fixed.for_clients(1), 998);
        let live = 100 << 30;
        let space = Space::of(live, 10 << 20, 1000, 1);
        assert_eq!(space.wanted, fixed.wanted + live / 4 * 5);
        assert!(space.bound - fixed.bound < live / 10 * 13);
        let small = Space::of(0, 0, 0, 1000);
        assert_eq!(small, Space { wanted: 4000, bound: 8000 }, "what the log takes at rest");
        // Small values: their checkpoints take as much as they do.
        let small_values = Space::of(3200, 1000, 0, 1);
        assert_eq!(small_values.bound, 3700 + 4000 + 8);
    }
}
