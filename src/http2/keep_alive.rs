//! Finds out that a peer's HTTP/2 stands still.

use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

use crate::tuning;

/// Asks a peer after each interval whether it lives, if that is `wanted` then; returns when it does not say so.
pub(crate) async fn keep_alive(pings: Option<PingPong>, interval: Duration, wanted: impl Fn() -> bool) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(interval).await;
        if !wanted() {
            continue;
        }
        match timeout(tuning::HTTP2_PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection has ended, and its driver says so.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
