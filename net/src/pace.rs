//! How much may be under way to one peer, how fast, and when silence means loss.
//!
//! Purpose: a window in bytes that grows while chunks are acknowledged and shrinks when they are lost
//! (additive increase, multiplicative decrease), a token bucket that spreads a window over a round
//! trip instead of bursting it, and a retransmission timeout from measured round trips.
//!
//! Invariant: the window stays within its bounds and shrinks at most once a round trip; the timeout
//! stays within its bounds.

/// Bounds of the window and of the timeout.
#[derive(Debug, Clone, Copy)]
pub struct PaceConfig {
    pub window_start: usize,
    pub window_min: usize,
    pub window_max: usize,
    /// Timeout before the first round trip has been measured.
    pub timeout_start_ns: u64,
    pub timeout_min_ns: u64,
    pub timeout_max_ns: u64,
}

impl Default for PaceConfig {
    fn default() -> PaceConfig {
        PaceConfig {
            window_start: 1 << 20,
            window_min: 128 << 10,
            window_max: 8 << 20,
            timeout_start_ns: 20_000_000,
            timeout_min_ns: 2_000_000,
            timeout_max_ns: 200_000_000,
        }
    }
}

/// The window is sent at twice the rate that would fill it once a round trip.
const GAIN: u64 = 2;
/// Smallest burst of the bucket, and the time that a burst is worth at least, so that a loop need
/// not wake more often than that.
const BURST_BYTES_MIN: u64 = 256 << 10;
const BURST_NS: u64 = 250_000;
/// How far the time of sending that an acknowledgement tells may be off.
const STAMP_ERROR_NS: u64 = 2048;
/// Additive increase a round trip, as a share of the largest window.
const INCREASE_SHARE: usize = 256;

/// State of one peer.
#[derive(Debug)]
pub struct Pace {
    config: PaceConfig,
    window: usize,
    /// Below this the window doubles every round trip, above it grows by a step.
    threshold: usize,
    in_flight: usize,
    smoothed_ns: u64,
    deviation_ns: u64,
    /// Doublings of the timeout since the last progress.
    backoff: u32,
    /// When the window last shrank: losses of what was sent before are of the same congestion.
    shrunk_ns: u64,
    /// Window and threshold before a timeout that may turn out to have been impatience.
    undo: Option<(usize, usize)>,
    tokens: u64,
    tokens_ns: u64,
    /// Chunks that may leave beyond window and bucket, to find out whether the peer is there.
    probes: usize,
}

impl Pace {
    pub fn new(config: PaceConfig) -> Pace {
        Pace {
            window: config.window_start.max(config.window_min).min(config.window_max),
            threshold: config.window_max,
            in_flight: 0,
            smoothed_ns: 0,
            deviation_ns: 0,
            backoff: 0,
            shrunk_ns: 0,
            undo: None,
            tokens: u64::MAX,
            tokens_ns: 0,
            probes: 0,
            config,
        }
    }

    /// Bytes that may be under way.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Bytes under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the window has room for `bytes` more. One chunk may always be under way.
    pub fn has_window(&self, bytes: usize) -> bool {
        self.in_flight == 0 || self.in_flight + bytes <= self.window
    }

    /// Whether `bytes` may leave now; refills the bucket first.
    pub fn may_send(&mut self, bytes: usize, now_ns: u64) -> bool {
        self.refill(now_ns);
        self.probes > 0 || (self.has_window(bytes) && self.tokens >= self.token_need(bytes))
    }

    /// When the bucket holds enough for `bytes`, given that nothing else is sent.
    pub fn tokens_at_ns(&self, bytes: usize) -> u64 {
        let missing = self.token_need(bytes).saturating_sub(self.tokens);
        if missing == 0 {
            return self.tokens_ns;
        }
        let wait = u128::from(missing) * u128::from(self.smoothed_ns)
            / u128::from((GAIN * self.window as u64).max(1));
        self.tokens_ns.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)).saturating_add(1)
    }

    pub fn sent(&mut self, bytes: usize) {
        self.in_flight += bytes;
        self.probes = self.probes.saturating_sub(1);
        self.tokens = self.tokens.saturating_sub(bytes as u64);
    }

    /// `bytes` are no longer under way: lost, or of a message that is over.
    pub fn gone(&mut self, bytes: usize) {
        self.in_flight = self.in_flight.checked_sub(bytes).expect("only what was sent can be gone");
    }

    /// `bytes` that were under way have arrived.
    pub fn arrived(&mut self, bytes: usize) {
        let was_full = self.in_flight + self.in_flight / 2 >= self.window;
        self.gone(bytes);
        self.backoff = 0;
        self.probes = 0;
        if !was_full {
            return; // The window does not limit: growing it would be a guess.
        }
        let step = if self.window < self.threshold {
            bytes
        } else {
            let increase = (self.config.window_max / INCREASE_SHARE).max(1) as u64;
            (increase * bytes as u64 / self.window as u64) as usize
        };
        self.window = (self.window + step).min(self.config.window_max);
    }

    /// A chunk sent at `sent_ns` was overtaken by later ones and is taken for lost.
    pub fn overtaken(&mut self, sent_ns: u64, now_ns: u64) {
        if sent_ns >= self.shrunk_ns {
            self.undo = None;
            self.shrink(self.window / 10 * 7, now_ns);
        }
    }

    /// Nothing was heard for the timeout: `probes` chunks may leave whatever the window says.
    pub fn timed_out(&mut self, probes: usize, now_ns: u64) {
        self.probes = probes;
        self.backoff = (self.backoff + 1).min(16);
        self.undo = self.undo.or(Some((self.window, self.threshold)));
        let window = if self.backoff > 1 { 0 } else { self.window / 2 };
        self.shrink(window, now_ns);
    }

    /// Something new has arrived, of which the latest was sent at `sent_ns`. If that was before the
    /// window shrank for a timeout, the peer was slow and nothing was lost (it had no processor, on a
    /// host that shares them): the window is as before.
    pub fn heard(&mut self, sent_ns: u64) {
        if let Some((window, threshold)) = self.undo.take()
            && sent_ns.saturating_add(STAMP_ERROR_NS) < self.shrunk_ns
        {
            self.window = self.window.max(window);
            self.threshold = self.threshold.max(threshold);
        }
    }

    fn shrink(&mut self, window: usize, now_ns: u64) {
        self.window = window.max(self.config.window_min);
        self.threshold = self.window;
        self.shrunk_ns = now_ns.saturating_add(1);
    }

    /// A measured round trip.
    pub fn sample(&mut self, round_trip_ns: u64) {
        let sample = round_trip_ns.max(1);
        if self.smoothed_ns == 0 {
            self.smoothed_ns = sample;
            self.deviation_ns = sample / 2;
            return;
        }
        let deviation = sample.abs_diff(self.smoothed_ns);
        self.deviation_ns = (3 * self.deviation_ns + deviation) / 4;
        self.smoothed_ns = (7 * self.smoothed_ns + sample) / 8;
    }

    /// Smoothed round trip, 0 before the first sample.
    pub fn round_trip_ns(&self) -> u64 {
        self.smoothed_ns
    }

    /// How long after sending a chunk silence means loss.
    pub fn timeout_ns(&self) -> u64 {
        let base = if self.smoothed_ns == 0 {
            self.config.timeout_start_ns
        } else {
            4 * self.smoothed_ns.saturating_add(self.deviation_ns).min(u64::MAX / 8)
        };
        let base = base.clamp(self.config.timeout_min_ns, self.config.timeout_max_ns);
        (base << self.backoff.min(16)).min(self.config.timeout_max_ns)
    }

    fn token_need(&self, bytes: usize) -> u64 {
        (bytes as u64).min(BURST_BYTES_MIN)
    }

    fn refill(&mut self, now_ns: u64) {
        let elapsed = now_ns.saturating_sub(self.tokens_ns).min(1_000_000_000);
        self.tokens_ns = self.tokens_ns.max(now_ns);
        let window = self.window as u64;
        if self.smoothed_ns == 0 {
            self.tokens = window;
            return;
        }
        let gained = u128::from(GAIN * window) * u128::from(elapsed) / u128::from(self.smoothed_ns);
        let gained = u64::try_from(gained).unwrap_or(u64::MAX);
        let worth = GAIN * window * BURST_NS / self.smoothed_ns;
        let burst = (window / 2).max(worth.min(window)).max(BURST_BYTES_MIN);
        self.tokens = self.tokens.saturating_add(gained).min(burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 57_000;

    fn pace() -> Pace {
        Pace::new(PaceConfig::default())
    }

    #[test]
    fn the_window_grows_while_full_and_never_above_its_bound() {
        let mut pace = pace();
        for round in 0..100u64 {
            let now_ns = round * 1_000_000;
            while pace.may_send(CHUNK, now_ns) {
                pace.sent(CHUNK);
            }
            assert!(pace.in_flight() <= pace.window());
            while pace.in_flight() > 0 {
                pace.arrived(CHUNK);
            }
        }
        assert!(pace.window() > 4 << 20);
        assert!(pace.window() <= PaceConfig::default().window_max);
    }

    #[test]
    fn an_idle_window_does_not_grow() {
        let mut pace = pace();
        for _ in 0..1000 {
            pace.sent(CHUNK);
            pace.arrived(CHUNK);
        }
        assert_eq!(pace.window(), PaceConfig::default().window_start);
    }

    #[test]
    fn one_congestion_shrinks_the_window_once_and_never_below_its_bound() {
        let mut pace = pace();
        for _ in 0..10 {
            pace.overtaken(5, 10);
        }
        assert_eq!(pace.window(), (1 << 20) / 10 * 7);
        for now_ns in 11..100 {
            pace.overtaken(now_ns, now_ns);
        }
        assert_eq!(pace.window(), PaceConfig::default().window_min);
    }

    #[test]
    fn the_timeout_follows_round_trips_doubles_and_stays_bounded() {
        let mut pace = pace();
        assert_eq!(pace.timeout_ns(), 20_000_000);
        for _ in 0..100 {
            pace.sample(3_000_000);
        }
        let steady = pace.timeout_ns();
        assert!((12_000_000..13_000_000).contains(&steady), "{steady}");
        pace.timed_out(1, 20);
        assert_eq!(pace.timeout_ns(), 2 * steady);
        for round in 3..100 {
            pace.timed_out(1, round * 10);
        }
        assert_eq!(pace.timeout_ns(), 200_000_000);
        pace.sent(1);
        pace.arrived(1);
        assert_eq!(pace.timeout_ns(), steady);
        for _ in 0..100 {
            pace.sample(1);
        }
        assert_eq!(pace.timeout_ns(), 2_000_000);
    }

    #[test]
    fn a_timeout_that_was_impatience_is_undone_and_a_loss_is_not() {
        for (heard_ns, window) in [(1_000, 1 << 20), (5_000_100, 1 << 19)] {
            let mut pace = pace();
            pace.timed_out(1, 5_000_000);
            assert_eq!(pace.window(), 1 << 19);
            pace.heard(heard_ns);
            assert_eq!(pace.window(), window);
            pace.heard(1_000);
            assert_eq!(pace.window(), window, "judged once");
        }
    }

    #[test]
    fn a_timeout_lets_probes_past_the_window_until_something_arrives() {
        let mut pace = pace();
        while pace.may_send(CHUNK, 0) {
            pace.sent(CHUNK);
        }
        pace.timed_out(2, 10);
        let sends = |pace: &mut Pace| {
            let before = pace.in_flight();
            while pace.may_send(CHUNK, 20) {
                pace.sent(CHUNK);
            }
            (pace.in_flight() - before) / CHUNK
        };
        assert_eq!(sends(&mut pace), 2);
        pace.timed_out(2, 30);
        pace.arrived(CHUNK);
        assert_eq!(sends(&mut pace), 0);
    }

    #[test]
    fn the_bucket_spreads_a_window_over_the_round_trip() {
        let mut pace = pace();
        pace.sample(100_000_000);
        let mut now_ns = 1_000_000_000;
        let mut sent = 0;
        while pace.may_send(CHUNK, now_ns) {
            pace.sent(CHUNK);
            sent += CHUNK;
        }
        assert!(sent < pace.window() && pace.has_window(CHUNK));
        let wait_until_ns = pace.tokens_at_ns(CHUNK);
        assert!(wait_until_ns > now_ns && wait_until_ns < now_ns + 50_000_000);
        now_ns = wait_until_ns;
        assert!(pace.may_send(CHUNK, now_ns));
    }
}
