//! When to try again. Numbers only, no clock.

use std::time::Duration;

use tokio::time::Instant;

/// Waits that grow with the outage, with full jitter: a random part of as long as it has lasted, of `min` at least and of
/// `max` at most. A fleet that lost its hub does not come back all at once, and all of it is back soon: the hub is waited
/// for no longer than it was away. Each attempt makes the time so far half as long again, so their number grows with its
/// logarithm until `max` is reached.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
    /// A tunnel that stood this long counts as healthy: what goes wrong after it is a new outage.
    pub(crate) stable: Duration,
    /// When the outage began; later by the time that tunnels stood in it.
    since: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(200), Duration::from_secs(30), Duration::from_secs(30))
    }
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration, stable: Duration) -> Self {
        Self { min, max: max.max(min), stable, since: None }
    }

    /// The same waits, from the first.
    pub(crate) fn fresh(&self) -> Self {
        Self::new(self.min, self.max, self.stable)
    }

    /// The tunnel stood for `stood` before it was lost.
    pub(crate) fn lost_after(&mut self, stood: Duration) {
        self.since = self.since.filter(|_| stood < self.stable).and_then(|since| since.checked_add(stood));
    }

    /// The next wait, given a random fraction from 0 to 1.
    pub(crate) fn next(&mut self, now: Instant, fraction: f64) -> Duration {
        let away = now.saturating_duration_since(*self.since.get_or_insert(now));
        away.clamp(self.min, self.max).mul_f64(fraction.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_grow_with_the_outage_up_to_the_maximum() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        let mut wait = |seconds| backoff.next(start + SECOND * seconds, 1.0);
        assert_eq!([wait(0), wait(1), wait(5), wait(29)], [SECOND / 5, SECOND, 5 * SECOND, 29 * SECOND]);
        assert_eq!([wait(31), wait(1_000_000)], [30 * SECOND; 2]);
    }

    #[test]
    fn attempts_become_rare() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        let (mut now, mut attempts) = (start, 0);
        while now - start < 30 * SECOND {
            now += backoff.next(now, 0.5);
            attempts += 1;
        }
        assert_eq!(attempts, 15);
    }

    #[test]
    fn jitter_is_full() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        assert_eq!(backoff.next(now, 0.0), Duration::ZERO);
        assert_eq!(backoff.next(now, 0.5), SECOND / 10);
    }

    #[test]
    fn only_a_stable_tunnel_resets() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        backoff.next(now, 1.0);
        now += 2 * SECOND;
        // One that stood for less is part of the outage, but for its time.
        now += 29 * SECOND;
        backoff.lost_after(29 * SECOND);
        assert_eq!(backoff.next(now, 1.0), 2 * SECOND);
        now += 30 * SECOND;
        backoff.lost_after(30 * SECOND);
        assert_eq!(backoff.next(now, 1.0), SECOND / 5);
    }
}
