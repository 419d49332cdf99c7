//! What an agent is doing.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::close::Disconnected;
use crate::tunnel::TunnelId;

/// What an agent is doing, on the channel of [`Agent::status`](crate::Agent::status).
///
/// ```text
///   connect() ──▶ Connected ──lost──▶ Disconnected ──▶ Connecting ─┐
///                     ▲                                   │  ▲     │ failed
///                     └───────────── success ─────────────┘  └─────┘
///   shutdown() or drop, from anywhere ──▶ Stopped
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum AgentStatus {
    /// A tunnel stands.
    Connected {
        /// Since when.
        since: SystemTime,
        /// The hub, as it was given to `connect`.
        hub: String,
        /// The tunnel; the first, if there are several.
        tunnel_id: TunnelId,
        /// How many tunnels stand ([`AgentBuilder::tunnels`](crate::AgentBuilder::tunnels)).
        tunnels: usize,
    },
    /// The tunnel was lost; trying again starts at once.
    Disconnected {
        /// Why and when.
        why: Disconnected,
    },
    /// Waiting to try again, or trying.
    Connecting {
        /// The number of this attempt since the tunnel was lost, from 1.
        attempt: u64,
        /// How long the wait before it is; zero while trying.
        next_try: Duration,
        /// Why the attempt before it failed, or, at the first one, why the tunnel was lost. None before the first
        /// tunnel.
        last_error: Option<String>,
    },
    /// The agent was shut down and will not try again.
    Stopped,
}

impl AgentStatus {
    /// Whether a tunnel stands.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }
}

impl fmt::Display for AgentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { hub, tunnel_id, .. } => write!(f, "connected to {hub} (tunnel {tunnel_id})"),
            Self::Disconnected { why } => write!(f, "disconnected: {why}"),
            Self::Connecting { attempt, next_try, .. } if next_try.is_zero() => {
                write!(f, "connecting, attempt {attempt}")
            }
            Self::Connecting { attempt, next_try, last_error } => {
                write!(f, "attempt {attempt} to connect in {next_try:.1?}")?;
                last_error.as_ref().map_or(Ok(()), |error| write!(f, ": {error}"))
            }
            Self::Stopped => f.write_str("stopped"),
        }
    }
}
