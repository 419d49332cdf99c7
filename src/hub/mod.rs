//! The cloud side: accepts agents and calls them.

mod accept;
mod builder;
mod events;
#[cfg(feature = "grpctunnel")]
mod grpctunnel;
mod proxy_protocol;
mod recheck;
mod registry;
mod roster;
mod strangers;
mod tunnel;
#[cfg(feature = "websocket")]
mod websocket;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

pub use self::builder::{BindError, HubBuilder};
pub use self::events::{EventsError, HubEvent, HubEvents};
pub use self::roster::{Balance, TunnelPolicy};
pub use self::tunnel::{Tunnel, TunnelInfo};

#[cfg(feature = "gateway")]
pub(crate) use self::registry::Admits;
pub(crate) use self::registry::{Registry, ToAgents};
pub(crate) use self::roster::Selector;

use self::accept::{AsItIs, Listener, Reception};
#[cfg(unix)]
use crate::carrier::unix;
use crate::carrier::{Address, Carried, CarrierKind, HostPort};
use crate::channel::TunnelChannel;
use crate::close::CloseReason;
use crate::connector::Connector;
use crate::id::InvalidAgentId;
use crate::incoming::{Acceptor, Incoming};
#[cfg(feature = "websocket")]
use crate::ssh::Sources;
#[cfg(feature = "grpctunnel")]
use crate::ssh::{Authorizer, Gate};

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
    reception: Arc<Reception>,
    /// For streams that the user brings.
    streams: mpsc::Sender<Carried>,
    #[cfg(feature = "websocket")]
    trusted_proxies: Option<Sources>,
    /// A listener's task owns its connections'; dropping them ends all.
    listeners: Mutex<JoinSet<()>>,
    rechecking: AbortHandle,
}

impl Inner {
    fn listen(&self, listener: Listener) {
        self.accept(accept::run(listener, AsItIs, self.reception.clone(), self.stage.subscribe()));
    }

    /// What comes by the listener has to open a WebSocket first.
    #[cfg(feature = "websocket")]
    fn listen_behind(&self, listener: Listener, front: websocket::Front) {
        let followed = front.tls.clone();
        let accepting = accept::run(listener, front, self.reception.clone(), self.stage.subscribe());
        self.accept(async move {
            let following = async {
                match followed {
                    Some(tls) => tls.follow().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = accepting => {}
                () = following => {}
            }
        });
    }

    fn accept(&self, accepting: impl Future<Output = ()> + Send + 'static) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).spawn(accepting);
    }
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
        self.rechecking.abort();
        self.acceptor.close();
    }
}

impl Hub {
    /// The address that the hub listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    /// Accepts agents at one more place, as long as the hub lives: `ssh://0.0.0.0:2222`, `unix:/run/hub.sock`, with the
    /// feature `websocket` `ws://127.0.0.1:8080/tunnel`, or with the feature `grpctunnel` `grpc://127.0.0.1:50051`. Gives the
    /// address back, with the port that was chosen if it was 0.
    ///
    /// By `grpc://` come reverse tunnels of `grpctunnel`. The [`Authorizer`](crate::Authorizer) judges them by their metadata
    /// ([`Credential::Metadata`](crate::Credential::Metadata)), a token for example, which everybody on the way could read: so
    /// without TLS only a loopback address is taken.
    ///
    /// A Unix socket that nobody listens on any more is replaced; who may connect to it is what its directory and the
    /// umask say, and each has to authenticate all the same. Connections by it have no address, and so no limit for each
    /// source before they have authenticated, only [the total](HubBuilder::unauthenticated_limits).
    ///
    /// # Errors
    /// [`BindError`]: the text is not an address, or cannot be listened on.
    pub async fn listen(&self, address: &str) -> Result<String, BindError> {
        self.listen_at(
            address,
            #[cfg(feature = "websocket")]
            None,
        )
        .await
    }

    async fn listen_at(
        &self,
        address: &str,
        #[cfg(feature = "websocket")] tls: Option<crate::tls::Tls>,
    ) -> Result<String, BindError> {
        let failed = |source| BindError::Listen { address: address.to_owned(), source };
        let invalid = |why| BindError::InvalidAddress { given: address.to_owned(), why };
        let bind = async |at: &HostPort| {
            let listener = TcpListener::bind((at.host.as_str(), at.port)).await.map_err(failed)?;
            let at = listener.local_addr().map_err(failed)?;
            Ok::<_, BindError>((Listener::Tcp(listener), at))
        };
        if *self.inner.stage.borrow() != Stage::Open {
            return Err(BindError::Shutdown);
        }
        #[cfg(feature = "grpctunnel")]
        if let Some(found) = grpctunnel::parse(address) {
            let (secure, at) = found.map_err(invalid)?;
            #[cfg(not(feature = "websocket"))]
            if secure {
                return Err(invalid("grpcs:// needs dialback's feature `websocket`"));
            }
            #[cfg(feature = "websocket")]
            match (secure, &tls) {
                (true, None) => return Err(invalid("grpcs:// needs certificates: call `listen_tls`")),
                (false, Some(_)) => return Err(invalid("TLS is for grpcs://ADDRESS:PORT and wss://ADDRESS:PORT/path")),
                _ => {}
            }
            let (listener, at) = bind(&at).await?;
            if !secure && !at.ip().is_loopback() {
                return Err(invalid(
                    "tokens could be read on the way: use grpcs:// with certificates, or a loopback address",
                ));
            }
            self.listen_for_calls(
                listener,
                #[cfg(feature = "websocket")]
                tls,
            );
            let address = format!("{}://{at}", if secure { "grpcs" } else { "grpc" });
            tracing::info!(address, "hub listens");
            return Ok(address);
        }
        let parsed = Address::parse(address).map_err(invalid)?;
        #[cfg(feature = "websocket")]
        if tls.is_some() && !matches!(&parsed, Address::WebSocket(url) if url.tls) {
            return Err(invalid("TLS is for wss://ADDRESS:PORT/path and grpcs://ADDRESS:PORT"));
        }
        let address = match parsed {
            Address::Tcp(at) => {
                let (listener, at) = bind(&at).await?;
                self.inner.listen(listener);
                format!("ssh://{at}")
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                self.inner.listen(Listener::Unix(unix::Listener::bind(&path).map_err(failed)?));
                address.to_owned()
            }
            #[cfg(feature = "websocket")]
            Address::WebSocket(url) if url.tls && tls.is_none() => {
                return Err(invalid("wss:// needs certificates: call `listen_tls`"));
            }
            #[cfg(feature = "websocket")]
            Address::WebSocket(url) => {
                let (listener, at) = bind(&url.at).await?;
                let scheme = if url.tls { "wss" } else { "ws" };
                let front = websocket::Front {
                    path: url.target.path().to_owned(),
                    tls,
                    trusted: self.inner.trusted_proxies.clone(),
                };
                self.inner.listen_behind(listener, front);
                format!("{scheme}://{at}{}", url.target.path())
            }
        };
        tracing::info!(address, "hub listens");
        Ok(address)
    }

    /// Takes in an agent that comes by a stream of your own, and returns when it is in line. It has to authenticate like
    /// every other. `peer` is where it comes from, if that is known: it counts for the
    /// [limits](HubBuilder::unauthenticated_limits), for `from="…"` in `authorized_keys` and for logs, so it must not be
    /// what the peer itself says.
    ///
    /// A stream should send what is written without delay (`TCP_NODELAY`). After a shutdown it is dropped.
    ///
    /// # Cancel safety
    /// Dropping the future drops the stream, if it is not in line yet.
    pub async fn accept_stream<S>(&self, stream: S, peer: Option<SocketAddr>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _ = self.inner.streams.send(Carried::new(CarrierKind::Stream, stream, peer)).await; // refused once the hub has shut down
    }

    /// Waits until an agent can be called, and returns its tunnel, or one of them; at once if it can be now.
    ///
    /// # Errors
    /// [`WaitError`]: the id is not one, or the hub was shut down.
    ///
    /// # Cancel safety
    /// Safe: nothing is left behind. Put it under a timeout when waiting for ever is not wanted.
    pub async fn wait_for(&self, agent: &str) -> Result<Tunnel, WaitError> {
        let found = self.inner.registry.wait_for(&Selector::Agent(agent.parse()?)).await;
        found.map(|session| Tunnel { session }).map_err(|_| WaitError::Shutdown)
    }

    /// The tunnel on which an agent can be called now; one of them, if there are several.
    pub fn get(&self, agent: &str) -> Option<Tunnel> {
        let session = self.inner.registry.find(&Selector::Agent(agent.parse().ok()?)).ok()?;
        Some(Tunnel { session })
    }

    /// Every tunnel that is not closing, in no order: a snapshot.
    pub fn tunnels(&self) -> Vec<Tunnel> {
        let sessions = self.inner.registry.sessions().into_iter();
        sessions.filter(|session| !session.is_draining()).map(|session| Tunnel { session }).collect()
    }

    /// Calls to an agent, for any tonic stub: each goes through a tunnel that the agent has at that moment.
    ///
    /// # Errors
    /// When the text is not an agent id. That an agent is away is the calls' own error.
    pub fn channel(&self, agent: &str) -> Result<TunnelChannel, InvalidAgentId> {
        Ok(self.channel_to(Selector::Agent(agent.parse()?)))
    }

    /// Calls to whichever agents have this key ([`HubBuilder::affinity_key`]): each goes through one of their tunnels.
    pub fn channel_for(&self, key: impl fmt::Display) -> TunnelChannel {
        self.channel_to(self.inner.registry.by_key(&key.to_string()))
    }

    /// Calls to whichever agents have this label: each goes through one of their tunnels.
    pub fn channel_with_label(&self, name: &str, value: &str) -> TunnelChannel {
        self.channel_to(Selector::Label(name.into(), value.into()))
    }

    /// Calls to whichever agents there are: each goes through one of their tunnels.
    pub fn any_channel(&self) -> TunnelChannel {
        self.channel_to(Selector::Any)
    }

    /// Dials an agent, for tonic's `Endpoint`: each dial opens a channel in a tunnel that the agent has then.
    ///
    /// # Errors
    /// When the text is not an agent id. That an agent is away is the dial's own error.
    pub fn connector(&self, agent: &str) -> Result<Connector, InvalidAgentId> {
        Ok(Connector::new(self.route(Selector::Agent(agent.parse()?))))
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
        let mut listeners = std::mem::take(&mut *inner.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        listeners.shutdown().await;
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

    /// For tunnels that come in another way.
    #[cfg(feature = "grpctunnel")]
    pub(crate) fn door(&self) -> HubDoor {
        let (gate, authorizer) = self.inner.reception.keepers();
        HubDoor {
            gate,
            authorizer,
            no_reverse: self.inner.registry.is_no_reverse(),
            stage: self.inner.stage.subscribe(),
        }
    }

    #[cfg(feature = "gateway")]
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.inner.registry
    }

    fn channel_to(&self, wanted: Selector) -> TunnelChannel {
        TunnelChannel::new(self.route(wanted))
    }

    fn route(&self, wanted: Selector) -> Arc<ToAgents> {
        Arc::new(ToAgents { registry: self.inner.registry.clone(), wanted, admits: None })
    }
}

/// What lets tunnels into a hub. It does not keep the hub.
#[cfg(feature = "grpctunnel")]
#[derive(Clone)]
pub(crate) struct HubDoor {
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) no_reverse: bool,
    stage: watch::Receiver<Stage>,
}

#[cfg(feature = "grpctunnel")]
impl HubDoor {
    pub(crate) fn is_closing(&self) -> bool {
        *self.stage.borrow() > Stage::Open || self.stage.has_changed().is_err()
    }

    /// Waits until the hub is gone, or does not wait for anything any more.
    pub(crate) async fn gone(&mut self) {
        reached(&mut self.stage, Stage::Forced).await;
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
