//! One tunnel of a hub.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::carrier::CarrierKind;
use crate::channel::TunnelChannel;
use crate::close::{CloseReason, Disconnected};
use crate::connector::{Connector, DialError, Pinned};
use crate::id::AgentId;
use crate::ssh::Session;
use crate::tunnel::TunnelId;

/// What is known of a tunnel, at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TunnelInfo {
    /// Its number.
    pub tunnel_id: TunnelId,
    /// Whose it is, as proved by key or certificate.
    pub agent_id: AgentId,
    /// Where the agent dialled from.
    pub peer_addr: Option<SocketAddr>,
    /// What it runs over.
    pub carrier: CarrierKind,
    /// Since when it stands.
    pub since: SystemTime,
    /// What the authorizer said of the agent, and what the agent says of itself, as far as the authorizer lets it.
    pub labels: BTreeMap<String, String>,
    /// The hub's calls in flight.
    pub calls: usize,
}

impl TunnelInfo {
    pub(crate) fn new(session: &Session) -> Self {
        Self {
            tunnel_id: session.id,
            agent_id: session.agent.clone(),
            peer_addr: session.peer,
            carrier: session.kind,
            since: session.since,
            labels: session.labels().clone(),
            calls: session.calls(),
        }
    }

    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }
}

/// One tunnel of a hub: this connection of this agent. Cloning is cheap.
///
/// # Dropping
/// Does nothing: the tunnel is the hub's.
#[derive(Clone)]
pub struct Tunnel {
    pub(super) session: Arc<Session>,
}

impl Tunnel {
    /// Its number.
    pub fn id(&self) -> TunnelId {
        self.session.id
    }

    /// Whose it is, as proved by key or certificate.
    pub fn agent_id(&self) -> &AgentId {
        &self.session.agent
    }

    /// Where the agent dialled from.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.session.peer
    }

    /// What it runs over.
    pub fn carrier(&self) -> CarrierKind {
        self.session.kind
    }

    /// Since when it stands.
    pub fn since(&self) -> SystemTime {
        self.session.since
    }

    /// What the authorizer said of the agent, and what the agent says of itself, as far as the authorizer lets it.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        self.session.labels()
    }

    /// All that is known of it now.
    pub fn info(&self) -> TunnelInfo {
        TunnelInfo::new(&self.session)
    }

    /// Dials through this tunnel and no other; see [`Hub::connector`](crate::Hub::connector) for one that follows the agent.
    pub fn connector(&self) -> Connector {
        Connector::new(Arc::new(Pinned(self.session.clone())))
    }

    /// Calls through this tunnel and no other; see [`Hub::channel`](crate::Hub::channel) for one that follows the agent.
    pub fn channel(&self) -> TunnelChannel {
        TunnelChannel::new(Arc::new(Pinned(self.session.clone())))
    }

    /// Why and when the tunnel ended, as soon as it does; `None` until then.
    ///
    /// A peer that vanishes without a word is noticed within keepalive interval × (max + 1): 40 s by default.
    pub fn disconnected(&self) -> watch::Receiver<Option<Disconnected>> {
        self.session.disconnected()
    }

    /// Waits for the end.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn closed(&self) -> Disconnected {
        self.session.closed().await
    }

    /// How long a question takes to the agent and back, behind whatever else is on its way; an agent that is silent is given
    /// up by the [keepalive](crate::HubBuilder::keepalive), so put a limit of your own to it. `None` if the tunnel ends before.
    ///
    /// # Cancel safety
    /// Safe; the answer that comes is passed over.
    pub async fn round_trip(&self) -> Option<Duration> {
        self.session.round_trip().await
    }

    /// Puts a name to the failure of a call through [`Tunnel::connector`]: once the tunnel has ended, what tonic's own
    /// channel reports as `UNKNOWN` or `INTERNAL` becomes `UNAVAILABLE` with the agent's name and the reason. Any other
    /// status stays as it is. [`TunnelChannel`] does this by itself.
    pub fn explain(&self, status: tonic::Status) -> tonic::Status {
        let from_transport = std::error::Error::source(&status).is_some();
        let vague = matches!(status.code(), tonic::Code::Unknown | tonic::Code::Internal | tonic::Code::Cancelled);
        match &*self.session.disconnected().borrow() {
            Some(gone) if from_transport && vague => {
                DialError::Disconnected { agent: self.session.agent.clone(), gone: gone.clone() }.into()
            }
            _ => status,
        }
    }

    /// Closes it now; the agent will reconnect.
    pub fn close(&self) {
        self.session.close(CloseReason::ClosedLocally);
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Session { id, agent, peer, .. } = &*self.session;
        f.debug_struct("Tunnel")
            .field("id", id)
            .field("agent_id", agent)
            .field("peer_addr", peer)
            .finish_non_exhaustive()
    }
}
