//! The cloud side: accepts agents and calls them.

mod accept;
mod builder;
mod events;
mod registry;
mod strangers;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, watch};
use tokio::task::{JoinHandle, JoinSet};

pub use self::builder::{BindError, HubBuilder};
pub use self::events::{EventsError, HubEvent, HubEvents};

use self::registry::{Registry, ToAgent};
use crate::channel::TunnelChannel;
use crate::close::{CloseReason, Disconnected};
use crate::connector::{Connector, DialError, Pinned};
use crate::id::{AgentId, InvalidAgentId};
use crate::incoming::{Acceptor, Incoming};
use crate::ssh::{Proof, Session};
use crate::tunnel::TunnelId;

/// The cloud side: accepts agents over SSH and calls them. Cloning is cheap.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use dialback::{AuthorizedKeys, Hub, PrivateKey};
///
/// let hub = Hub::builder(PrivateKey::from_file("keys/hub_key")?)
///     .authorizer(AuthorizedKeys::open("keys/authorized_keys")?)
///     .bind("0.0.0.0:2222")
///     .await?;
/// let tunnel = hub.wait_for("laptop-1").await?;
/// let channel = hub.channel("laptop-1")?; // any tonic stub takes it
/// # Ok(()) }
/// ```
///
/// # Dropping
/// The last clone's drop closes the listener and every tunnel at once. [`Hub::shutdown`] is the polite way.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

struct Inner {
    local_addr: SocketAddr,
    registry: Arc<Registry>,
    acceptor: Arc<Acceptor>,
    stage: watch::Sender<Stage>,
    listener: Mutex<Option<JoinHandle<()>>>,
    abort: tokio::task::AbortHandle,
}

/// How far a hub is with ending; it never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    /// No new connections; calls in flight go on.
    Draining,
    /// Nothing is waited for any more.
    Forced,
}

/// Waits until the hub has come so far, or is gone.
async fn reached(stage: &mut watch::Receiver<Stage>, wanted: Stage) {
    let _ = stage.wait_for(|stage| *stage >= wanted).await;
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The listener's task owns every connection's.
        self.abort.abort();
        self.acceptor.close();
    }
}

impl Hub {
    /// The address that the hub listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    /// Waits until an agent can be called, and returns its tunnel; at once if it can be now.
    ///
    /// # Errors
    /// [`WaitError`]: the id is not one, or the hub was shut down.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind. Put it under a timeout when waiting for ever is not wanted.
    pub async fn wait_for(&self, agent: &str) -> Result<Tunnel, WaitError> {
        let agent: AgentId = agent.parse()?;
        let mut changes = self.inner.registry.changes();
        loop {
            changes.mark_unchanged();
            match self.inner.registry.find(&agent) {
                Ok(session) if !session.is_closed() => return Ok(self.tunnel(session)),
                Err(DialError::Shutdown { .. }) => return Err(WaitError::Shutdown),
                Ok(_) | Err(_) => {}
            }
            // The sender lives in the registry that `self` holds.
            let _ = changes.changed().await;
        }
    }

    /// The tunnel on which an agent can be called now.
    pub fn get(&self, agent: &str) -> Option<Tunnel> {
        let session = self.inner.registry.find(&agent.parse().ok()?).ok()?;
        (!session.is_closed()).then(|| self.tunnel(session))
    }

    /// Every tunnel that is not closing, in no order: a snapshot.
    pub fn tunnels(&self) -> Vec<Tunnel> {
        let tunnels = self.inner.registry.tunnels();
        tunnels.into_iter().map(|(session, proof)| Tunnel { session, proof: Some(proof) }).collect()
    }

    /// Calls to an agent, for any tonic stub: each goes through the tunnel that the agent has at that moment.
    ///
    /// # Errors
    /// When the text is not an agent id. That an agent is away is the calls' own error.
    pub fn channel(&self, agent: &str) -> Result<TunnelChannel, InvalidAgentId> {
        let agent: AgentId = agent.parse()?;
        Ok(TunnelChannel::new(Arc::new(self.route(agent.clone())), agent.as_str()))
    }

    /// Dials an agent, for tonic's `Endpoint`: each dial opens a channel in the tunnel that the agent has then.
    ///
    /// # Errors
    /// When the text is not an agent id. That an agent is away is the dial's own error.
    pub fn connector(&self, agent: &str) -> Result<Connector, InvalidAgentId> {
        Ok(Connector::new(Arc::new(self.route(agent.parse()?))))
    }

    /// The channels that agents open, to serve them: the tunnel the other way. Until this is first called, up to 128
    /// channels wait for it; drop what it returns to refuse them instead.
    pub fn incoming(&self) -> Incoming {
        self.inner.acceptor.incoming()
    }

    /// What happens from now on: agents that come, can be called, go and are turned away.
    pub fn events(&self) -> HubEvents {
        HubEvents(self.inner.registry.events())
    }

    /// Ends the hub politely: takes no new connections and no new calls, ends [`Hub::incoming`] so that a tonic server
    /// on it says goodbye, waits for the channels to close, then closes the tunnels. Agents reconnect by themselves,
    /// to whichever hub answers.
    ///
    /// The end of `grace`, or a second call, cuts off what is still open. Drop the clients that you made with
    /// [`Hub::connector`] first: an idle one keeps its channel open until then.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the hub draining; call it again to end it.
    pub async fn shutdown(&self, grace: Duration) {
        let inner = &self.inner;
        let second = inner.stage.send_replace(Stage::Draining) > Stage::Open;
        if second {
            inner.stage.send_replace(Stage::Forced);
        }
        inner.acceptor.close();
        let mut sessions = JoinSet::new();
        for session in inner.registry.close() {
            let mut stage = inner.stage.subscribe();
            sessions.spawn(async move {
                tokio::select! {
                    () = session.drain_and_close(grace, CloseReason::Shutdown) => {}
                    () = reached(&mut stage, Stage::Forced) => {
                        session.close(CloseReason::Shutdown);
                        session.closed().await;
                    }
                }
            });
        }
        let tunnels = sessions.len();
        sessions.join_all().await;
        inner.abort.abort();
        let listener = inner.listener.lock().await.take();
        if let Some(listener) = listener {
            let _ = listener.await; // it was just aborted
        }
        tracing::info!(tunnels, forced = second, "hub shut down");
    }

    /// Closes the listener and every tunnel now.
    pub fn close(&self) {
        self.inner.stage.send_replace(Stage::Forced);
        self.inner.acceptor.close();
        for session in self.inner.registry.close() {
            session.close(CloseReason::Shutdown);
        }
    }

    fn route(&self, agent: AgentId) -> ToAgent {
        ToAgent { registry: self.inner.registry.clone(), agent }
    }

    fn tunnel(&self, session: Arc<Session>) -> Tunnel {
        let proof = self.inner.registry.proof(session.id);
        Tunnel { session, proof }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("local_addr", &self.inner.local_addr).finish_non_exhaustive()
    }
}

/// Why waiting for an agent ended without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The text is not an agent id.
    #[error(transparent)]
    InvalidAgentId(#[from] InvalidAgentId),
    /// The hub was shut down.
    #[error("the hub was shut down")]
    Shutdown,
}

/// One tunnel of a hub: this connection of this agent. Cloning is cheap.
///
/// # Dropping
/// Does nothing: the tunnel is the hub's.
#[derive(Clone)]
pub struct Tunnel {
    session: Arc<Session>,
    proof: Option<Proof>,
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

    /// Since when it stands.
    pub fn since(&self) -> SystemTime {
        self.session.since
    }

    /// What the authorizer granted when the agent logged in.
    pub fn grant(&self) -> Option<&crate::Grant> {
        self.proof.as_ref().map(|proof| &proof.grant)
    }

    /// Dials through this tunnel and no other; see [`Hub::connector`] for one that follows the agent.
    pub fn connector(&self) -> Connector {
        Connector::new(Arc::new(Pinned(self.session.clone())))
    }

    /// Calls through this tunnel and no other; see [`Hub::channel`] for one that follows the agent.
    pub fn channel(&self) -> TunnelChannel {
        TunnelChannel::new(Arc::new(Pinned(self.session.clone())), self.session.agent.as_str())
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
