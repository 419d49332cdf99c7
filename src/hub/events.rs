//! What happens at a hub, as it happens.

use std::net::SocketAddr;

use tokio::sync::broadcast;

use crate::close::Disconnected;
use crate::id::AgentId;
use crate::tunnel::TunnelId;

/// One thing that happened at a hub.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum HubEvent {
    /// An agent has authenticated.
    Opened {
        /// The agent.
        agent_id: AgentId,
        /// Its new tunnel.
        tunnel_id: TunnelId,
        /// Where it comes from.
        peer: Option<SocketAddr>,
    },
    /// The agent can be called through this tunnel.
    Ready {
        /// The agent.
        agent_id: AgentId,
        /// The tunnel.
        tunnel_id: TunnelId,
    },
    /// The agent cannot be called through this tunnel any more: it does not want to be, or a newer tunnel has taken its
    /// place. Calls in flight go on.
    Draining {
        /// The agent.
        agent_id: AgentId,
        /// The tunnel.
        tunnel_id: TunnelId,
    },
    /// A tunnel has ended.
    Closed {
        /// The agent.
        agent_id: AgentId,
        /// The tunnel.
        tunnel_id: TunnelId,
        /// Why and when.
        why: Disconnected,
    },
    /// An authenticated agent was turned away.
    Rejected {
        /// The agent.
        agent_id: AgentId,
        /// Where it came from.
        peer: Option<SocketAddr>,
        /// Why.
        reason: String,
    },
}

impl HubEvent {
    /// The agent that it happened to.
    pub fn agent_id(&self) -> &AgentId {
        match self {
            Self::Opened { agent_id, .. }
            | Self::Ready { agent_id, .. }
            | Self::Draining { agent_id, .. }
            | Self::Closed { agent_id, .. }
            | Self::Rejected { agent_id, .. } => agent_id,
        }
    }
}

/// A hub's events, from the moment of [`Hub::events`](crate::Hub::events).
#[derive(Debug)]
pub struct HubEvents(pub(crate) broadcast::Receiver<HubEvent>);

/// Why there is no next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventsError {
    /// The listener was too slow; the hub never waits for one. The next call continues after the gap.
    #[error("{0} events were missed")]
    Missed(u64),
    /// The hub is gone.
    #[error("the hub is gone")]
    Closed,
}

impl HubEvents {
    /// The next event.
    ///
    /// # Errors
    /// [`EventsError::Missed`] when more than 1,024 events came since the last call, [`EventsError::Closed`] after the
    /// last event of a hub that is gone.
    ///
    /// # Cancel safety
    /// Safe: no event is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<HubEvent, EventsError> {
        self.0.recv().await.map_err(|error| match error {
            broadcast::error::RecvError::Lagged(n) => EventsError::Missed(n),
            broadcast::error::RecvError::Closed => EventsError::Closed,
        })
    }
}
