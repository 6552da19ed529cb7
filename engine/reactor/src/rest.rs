//! How long a disk is left alone after a read that nobody waits for.
//!
//! Invariant: a disk whose reads mostly take about as long as this one is left alone for [`REST`] times as
//! long, however slow it is; and a read that took far longer than most, since the disk stood still or the
//! clock jumped, is rested for as if it had been a slow one. What would break it: judging a read by itself
//! alone, for then a stall of a minute looks like a minute's work.

use racos_protocol::Nanos;

const MS: Nanos = 1_000_000;
/// A read is followed by this many times the time that it took: at most a twentieth of the disk's time.
const REST: u64 = 19;
/// Reads that say what most take.
const LAST: usize = 5;
/// A read counts for as long as it took up to this much, or up to so many times what most take.
const COUNTED_MIN: Nanos = 250 * MS;
const TIMES: u64 = 4;
/// And never for more: a disk that takes this long hangs.
const COUNTED_MAX: Nanos = 10_000 * MS;

/// What the last reads took.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    took: [Nanos; LAST],
    next: usize,
}

impl Rest {
    /// A read took so long: how long to leave the disk alone.
    pub fn after(&mut self, took: Nanos) -> Nanos {
        self.took[self.next] = took;
        self.next = (self.next + 1) % LAST;
        let most = (self.median() * TIMES).clamp(COUNTED_MIN, COUNTED_MAX);
        took.min(most) * REST
    }

    fn median(&self) -> Nanos {
        let mut sorted = self.took;
        sorted.sort_unstable();
        sorted[LAST / 2].min(COUNTED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(rest: &mut Rest, took: Nanos, times: usize) -> Nanos {
        (0..times).map(|_| rest.after(took)).last().unwrap()
    }

    #[test]
    fn a_read_is_rested_for_nineteen_times_as_long_on_a_disk_fast_or_slow() {
        for took in [1, MS, 200 * MS, 1_000 * MS, 9_000 * MS] {
            let mut rest = Rest::default();
            assert_eq!(after(&mut rest, took, 3), 19 * took);
            assert_eq!(after(&mut rest, took, 10), 19 * took);
            // Twice and three times as long is what reads of other lengths take.
            assert_eq!(rest.after(3 * took), 19 * (3 * took).min(COUNTED_MAX));
        }
        assert_eq!(after(&mut Rest::default(), u64::MAX, 5), 190_000 * MS);
    }

    #[test]
    fn a_disk_that_stood_still_and_a_clock_that_jumped_count_for_little() {
        let mut rest = Rest::default();
        after(&mut rest, MS, 5);
        assert_eq!(rest.after(60_000 * MS), 4_750 * MS);
        assert_eq!(rest.after(3_600_000 * MS), 4_750 * MS, "a second one");
        assert_eq!(rest.after(MS), 19 * MS, "and nothing is left of them");
        after(&mut rest, 400 * MS, 5);
        assert_eq!(rest.after(60_000 * MS), 19 * 1_600 * MS, "four times what most take");
        assert_eq!(Rest::default().after(60_000 * MS), 4_750 * MS, "the first of all");
    }
}
