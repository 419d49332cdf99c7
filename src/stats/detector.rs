//! Says that the other side is gone.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::Uri;
use tokio::sync::watch;

use super::{ConnEnd, ConnStats, StatsHandler};

/// A [`StatsHandler`] that publishes, on a `watch` channel, whether there is a connection and why it went.
///
/// Give a clone to a [`StatsLayer`](super::StatsLayer) that wraps a connector, keep another, and
/// [`subscribe`](Self::subscribe). A connector may make several connections, at the same time or one after the other:
/// the state is [`Connected`](ConnState::Connected) from the first `Begin` until the **last** living connection ends,
/// and then says why that last one ended. Failed dials change nothing.
///
/// Clones share everything; dropping the last of them, layers included, closes the channel.
#[derive(Clone, Debug)]
pub struct DisconnectDetector {
    state: Arc<watch::Sender<ConnState>>,
    /// Living connections. Held while publishing, so that the states come in the order of the events.
    living: Arc<Mutex<usize>>,
}

/// Whether there is a connection.
///
/// ```text
/// Idle ──▶ Connected ◀──▶ Disconnected
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConnState {
    /// There has been no connection yet.
    Idle,
    /// At least one connection lives.
    #[non_exhaustive]
    Connected {
        /// Since when there is at least one.
        since: Instant,
        /// What was dialled by the one that came first.
        target: Uri,
    },
    /// There is no connection any more.
    #[non_exhaustive]
    Disconnected {
        /// Why the last living connection ended.
        why: ConnEnd,
        /// When.
        at: Instant,
    },
}

impl ConnState {
    /// Whether at least one connection lives.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }
}

impl fmt::Display for ConnState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("not connected yet"),
            Self::Connected { target, .. } => write!(f, "connected to {target}"),
            Self::Disconnected { why, .. } => write!(f, "disconnected: {why}"),
        }
    }
}

impl DisconnectDetector {
    /// A detector in the state [`ConnState::Idle`].
    pub fn new() -> Self {
        Self { state: Arc::new(watch::Sender::new(ConnState::Idle)), living: Arc::default() }
    }

    /// A receiver that starts with the present state.
    ///
    /// Like every `watch` it shows the newest state: a receiver that does not look may miss a short connection. Do not
    /// keep the guard of `borrow()` while waiting for something else, it holds up the task that has news.
    pub fn subscribe(&self) -> watch::Receiver<ConnState> {
        self.state.subscribe()
    }
}

impl Default for DisconnectDetector {
    fn default() -> Self {
        Self::new()
    }
}

impl StatsHandler for DisconnectDetector {
    fn conn(&self, event: &ConnStats) {
        let mut living = self.living.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            ConnStats::Begin { target, at, .. } => {
                *living += 1;
                if *living == 1 {
                    self.state.send_replace(ConnState::Connected { since: *at, target: target.clone() });
                }
            }
            ConnStats::End { reason, .. } => {
                *living = living.saturating_sub(1);
                if *living == 0 {
                    self.state.send_replace(ConnState::Disconnected { why: reason.clone(), at: Instant::now() });
                }
            }
            ConnStats::Failed { .. } => {}
        }
    }

    fn wants_rpc(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::ConnId;
    use super::*;

    fn begin(target: &'static str) -> ConnStats {
        ConnStats::Begin { id: ConnId::next(), target: Uri::from_static(target), at: Instant::now() }
    }

    fn end(reason: ConnEnd) -> ConnStats {
        let target = Uri::from_static("http://a");
        let (bytes_read, bytes_written, lasted) = (0, 0, Duration::ZERO);
        ConnStats::End { id: ConnId::next(), target, reason, bytes_read, bytes_written, lasted }
    }

    #[test]
    fn connected_until_the_last_connection_ends() {
        let detector = DisconnectDetector::new();
        let mut state = detector.subscribe();
        assert_eq!(state.borrow_and_update().to_string(), "not connected yet");

        detector.conn(&begin("http://a"));
        assert!(state.has_changed().unwrap());
        assert_eq!(state.borrow_and_update().to_string(), "connected to http://a/");

        detector.conn(&begin("http://b"));
        detector.conn(&end(ConnEnd::ClosedByPeer));
        assert!(!state.has_changed().unwrap(), "one still lives");

        detector.conn(&end(ConnEnd::Dropped));
        assert!(state.has_changed().unwrap());
        assert!(matches!(&*state.borrow_and_update(), ConnState::Disconnected { why: ConnEnd::Dropped, .. }));

        detector.conn(&begin("http://b"));
        assert!(state.borrow_and_update().is_connected());
    }

    #[test]
    fn failed_dials_change_nothing() {
        let detector = DisconnectDetector::new();
        let state = detector.subscribe();
        let target = Uri::from_static("http://a");
        detector.conn(&ConnStats::Failed { target, error: "refused".into(), lasted: Duration::ZERO });
        assert!(!state.has_changed().unwrap());
    }

    #[test]
    fn channel_closes_with_the_last_clone() {
        let detector = DisconnectDetector::new();
        let state = detector.subscribe();
        drop(detector.clone());
        assert!(state.has_changed().is_ok());
        drop(detector);
        assert!(state.has_changed().is_err());
    }
}
