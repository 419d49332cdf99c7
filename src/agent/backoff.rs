//! When to try again. Numbers only, no clock.

use std::time::Duration;

/// Waits that grow with the outage, with full jitter: a random part of what has been waited so far, of `min` at least and of
/// `max` at most. A fleet that lost its hub does not come back all at once, and all of it is back soon: beyond `min`, nobody
/// waits for longer than the hub was away. On average each wait makes the sum half as long again, so the number of attempts
/// grows with its logarithm until `max` is reached. The time that attempts take does not count: one into a black hole takes
/// long enough.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
    /// A tunnel that stood this long counts as healthy: what goes wrong after it is a new outage.
    pub(crate) stable: Duration,
    /// All waits of the outage.
    waited: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(30), Duration::from_secs(30))
    }
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration, stable: Duration) -> Self {
        Self { min, max: max.max(min), stable, waited: Duration::ZERO }
    }

    /// The same waits, from the first.
    pub(crate) fn fresh(&self) -> Self {
        Self::new(self.min, self.max, self.stable)
    }

    /// The tunnel stood for `stood` before it was lost.
    pub(crate) fn lost_after(&mut self, stood: Duration) {
        if stood >= self.stable {
            self.waited = Duration::ZERO;
        }
    }

    /// The next wait, given a random fraction from 0 to 1.
    pub(crate) fn next(&mut self, fraction: f64) -> Duration {
        let wait = self.waited.clamp(self.min, self.max).mul_f64(fraction.clamp(0.0, 1.0));
        self.waited = self.waited.saturating_add(wait);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_maximum() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..11).map(|_| backoff.next(1.0).as_millis() as u64).collect();
        assert_eq!(waits, [200, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
    }

    #[test]
    fn attempts_become_rare() {
        let mut backoff = Backoff::default();
        let half_a_minute = (0..).find(|_| {
            backoff.next(0.5);
            backoff.waited >= Duration::from_secs(30)
        });
        assert_eq!(half_a_minute, Some(14));
    }

    #[test]
    fn jitter_is_full() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0.0), Duration::ZERO);
        assert_eq!(backoff.next(0.5), Duration::from_millis(100));
    }

    #[test]
    fn longest_times_are_taken() {
        let mut backoff = Backoff::new(Duration::MAX, Duration::ZERO, Duration::MAX);
        assert_eq!(backoff.next(0.0), Duration::ZERO);
        let mut backoff = Backoff::new(Duration::from_secs(u64::MAX / 4), Duration::MAX, Duration::ZERO);
        for _ in 0..10 {
            backoff.next(0.999);
        }
    }

    #[test]
    fn only_a_stable_tunnel_resets() {
        let mut backoff = Backoff::default();
        backoff.next(1.0);
        backoff.next(1.0);
        backoff.lost_after(Duration::from_secs(29));
        assert_eq!(backoff.next(1.0), Duration::from_millis(400));
        backoff.lost_after(Duration::from_secs(30));
        assert_eq!(backoff.next(1.0), Duration::from_millis(200));
    }
}
