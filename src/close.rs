//! Why and when a tunnel ended.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::time::{Utc, unix_seconds};

/// Why a tunnel ended.
///
/// The text of [`Display`](fmt::Display) completes the sentence "the tunnel ended: …"; what a peer sent is escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed the connection, with the message it sent, if any.
    ClosedByPeer {
        /// The text of the peer's SSH disconnect message (RFC 4253 §11.1), at most 200 characters.
        message: Option<String>,
    },
    /// This side closed the tunnel.
    ClosedLocally,
    /// This side shut down.
    Shutdown,
    /// The peer answered no keepalive in time: it is gone, or the network between is.
    KeepaliveTimeout,
    /// The network connection failed.
    ConnectionLost {
        /// What the operating system said.
        error: String,
    },
    /// The peer stopped taking data.
    Stalled {
        /// How long it took no byte; zero when it let the queue fill up before that.
        after: Duration,
    },
    /// The same agent opened a newer tunnel, which took this one's place.
    Replaced,
    /// The agent may not be what it was granted any more: its key or certificate was revoked, removed or has expired, or
    /// it is granted other labels now, which it gets when it connects again.
    Revoked {
        /// Why.
        reason: String,
    },
    /// The peer broke the protocol.
    Protocol {
        /// What it did.
        error: String,
    },
    /// The hub refused the tunnel after authentication.
    Refused {
        /// Why.
        reason: String,
    },
}

impl CloseReason {
    /// A message from the peer, cut and escaped.
    pub(crate) fn closed_by_peer(message: &str) -> Self {
        let message: String = message.chars().take(200).flat_map(char::escape_debug).collect();
        Self::ClosedByPeer { message: (!message.is_empty()).then_some(message) }
    }

    /// What the peer is told.
    pub(crate) fn farewell(&self) -> String {
        match self {
            // Whoever is refused is not told why.
            Self::Revoked { .. } => "no longer authorized".into(),
            reason => reason.to_string(),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClosedByPeer { message: None } => f.write_str("the peer closed the connection"),
            Self::ClosedByPeer { message: Some(message) } => write!(f, "the peer closed the connection: {message}"),
            Self::ClosedLocally => f.write_str("closed on this side"),
            Self::Shutdown => f.write_str("shut down on this side"),
            Self::KeepaliveTimeout => f.write_str("the peer stopped answering keepalives"),
            Self::ConnectionLost { error } => write!(f, "connection lost: {error}"),
            Self::Stalled { after } if after.is_zero() => f.write_str("the peer does not read what is sent to it"),
            Self::Stalled { after } => write!(f, "the peer took no data for {} s", after.as_secs()),
            Self::Replaced => f.write_str("replaced by a newer tunnel of the same agent"),
            Self::Revoked { reason } => write!(f, "no longer authorized: {reason}"),
            Self::Protocol { error } => write!(f, "protocol error: {error}"),
            Self::Refused { reason } => write!(f, "refused: {reason}"),
        }
    }
}

/// That a tunnel ended, why and when.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Disconnected {
    /// Why.
    pub reason: CloseReason,
    /// When this side noticed.
    pub at: SystemTime,
}

impl Disconnected {
    pub(crate) fn now(reason: CloseReason) -> Self {
        Self { reason, at: SystemTime::now() }
    }

    /// When, in words: the time, and how long ago that is.
    pub(crate) fn since(&self) -> String {
        let ago = self.at.elapsed().unwrap_or_default().as_secs();
        format!("{} ({ago} s)", Utc(unix_seconds(self.at)))
    }
}

impl fmt::Display for Disconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}
