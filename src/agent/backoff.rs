//! When to try again. Numbers only, no clock.

use std::time::Duration;

/// Exponential backoff with full jitter: the n-th wait is a random part of `min × 2ⁿ`, at most `max`, so that a fleet
/// that lost its hub does not come back all at once.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
    /// A tunnel that stood this long counts as healthy: the next wait is a first one.
    pub(crate) stable: Duration,
    attempt: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(30), Duration::from_secs(30))
    }
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration, stable: Duration) -> Self {
        Self { min, max: max.max(min), stable, attempt: 0 }
    }

    /// The same waits, from the first.
    pub(crate) fn fresh(&self) -> Self {
        Self::new(self.min, self.max, self.stable)
    }

    /// The tunnel stood for `stood` before it was lost.
    pub(crate) fn lost_after(&mut self, stood: Duration) {
        if stood >= self.stable {
            self.attempt = 0;
        }
    }

    /// The next wait, given a random fraction from 0 to 1.
    pub(crate) fn next(&mut self, fraction: f64) -> Duration {
        let ceiling = 2u32.checked_pow(self.attempt).and_then(|factor| self.min.checked_mul(factor));
        let ceiling = ceiling.unwrap_or(self.max).min(self.max);
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(fraction.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..10).map(|_| backoff.next(1.0).as_millis() as u64).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        for _ in 0..100 {
            assert_eq!(backoff.next(1.0), Duration::from_secs(30));
        }
    }

    #[test]
    fn jitter_is_full() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0.0), Duration::ZERO);
        assert_eq!(backoff.next(0.5), Duration::from_millis(200));
    }

    #[test]
    fn only_a_stable_tunnel_resets() {
        let mut backoff = Backoff::default();
        backoff.next(1.0);
        backoff.lost_after(Duration::from_secs(29));
        assert_eq!(backoff.next(1.0), Duration::from_millis(400));
        backoff.lost_after(Duration::from_secs(30));
        assert_eq!(backoff.next(1.0), Duration::from_millis(200));
    }
}
