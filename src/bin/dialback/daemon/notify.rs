//! What systemd is told (sd_notify(3)); nothing where it does not ask.

use std::time::Duration;

use sd_notify::NotifyState;

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

/// It has started, or is done with reading its configuration.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub(crate) fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// It reads its configuration, until [`ready`].
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// It has been told to end, which may take as long as the grace period.
pub(crate) fn stopping(grace: Duration) {
    let extension = u32::try_from(grace.as_micros()).unwrap_or(u32::MAX).saturating_add(5_000_000);
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("finishing the calls in flight"),
        NotifyState::ExtendTimeoutUsec(extension),
    ]);
}

/// Says again and again that it is alive, if systemd wants to hear that; for as long as it is polled. It runs beside all
/// else, so it is silent where the runtime stands still.
pub(crate) async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval((limit / 2).max(Duration::from_millis(10)));
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}
