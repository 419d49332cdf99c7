//! Where there is no systemd: nobody is told anything.

use std::time::Duration;

pub(crate) fn ready(_: &str) {}

pub(crate) fn status(_: &str) {}

pub(crate) fn reloading() {}

pub(crate) fn stopping(_: Duration) {}

pub(crate) async fn watchdog() {
    std::future::pending().await
}
