//! [`Connector`]: dials through a tunnel, for any tonic `Endpoint`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tonic::Code;
use tower_service::Service;

use crate::close::Disconnected;
use crate::id::AgentId;
use crate::ssh::{Session, TunnelIo};

/// Why a dial through a tunnel failed.
///
/// Becomes a [`tonic::Status`] with code `UNAVAILABLE`, if nothing else is said.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// No tunnel of this agent has been seen.
    #[error("agent `{agent}` is not connected")]
    NotConnected {
        /// The agent.
        agent: AgentId,
    },
    /// The tunnel ended.
    #[error("agent `{agent}` is away since {}: the tunnel ended: {gone}", gone.since())]
    Disconnected {
        /// The agent.
        agent: AgentId,
        /// Why and when.
        gone: Disconnected,
    },
    /// The agent is connected but has never offered to be called: it sent no forward request for `/grpc-tunnel`, or, over
    /// [grpctunnel](crate#features), its settings have not come yet.
    #[error("agent `{agent}` is connected but has not asked to be called: it sent no forward request for /grpc-tunnel")]
    NotReady {
        /// The agent.
        agent: AgentId,
    },
    /// The tunnel takes no new channels: it is being shut down, renewed or replaced.
    #[error("the tunnel of agent `{agent}` is closing and takes no new calls")]
    Draining {
        /// The agent.
        agent: AgentId,
    },
    /// The peer refused the channel.
    #[error("agent `{agent}`: the peer refused the channel: {reason}")]
    Rejected {
        /// The agent.
        agent: AgentId,
        /// The peer's reason, in words for its RFC 4254 §5.1 code.
        reason: String,
    },
    /// The peer did not answer.
    #[error("agent `{agent}`: the peer did not answer within {after:?}")]
    TimedOut {
        /// The agent.
        agent: AgentId,
        /// The deadline.
        after: Duration,
    },
    /// The connection for calls ended, in a tunnel that stands.
    #[error("agent `{agent}`: the connection for this call ended: {reason}")]
    ConnectionEnded {
        /// The agent.
        agent: AgentId,
        /// Why.
        reason: String,
    },
    /// No agent that can be called has what was asked for.
    #[error("{wanted} is not connected")]
    NoneMatches {
        /// What was asked for: a key, a label, or any agent.
        wanted: String,
    },
    /// The agent has as many channels open as it may. Its code is `RESOURCE_EXHAUSTED`.
    #[error("agent `{agent}` has {limit} channels open, which is the limit")]
    TooManyChannels {
        /// The agent.
        agent: AgentId,
        /// The limit, of one tunnel.
        limit: usize,
    },
    /// The agent has as many calls in flight as it may. Its code is `RESOURCE_EXHAUSTED`.
    #[error("agent `{agent}` has {limit} calls in flight, which is the limit")]
    TooManyCalls {
        /// The agent.
        agent: AgentId,
        /// The limit, of all its tunnels together.
        limit: usize,
    },
    /// This side's hub or agent was shut down.
    #[error("{wanted}: this side was shut down")]
    Shutdown {
        /// What was asked for.
        wanted: String,
    },
}

impl DialError {
    /// Whether it concerns this tunnel alone, so that another is worth a try: a newer one of the agent, or another agent's.
    pub(crate) fn is_of_one_tunnel(&self) -> bool {
        !matches!(
            self,
            Self::Shutdown { .. } | Self::NoneMatches { .. } | Self::NotConnected { .. } | Self::NotReady { .. }
        )
    }

    /// Whether time may cure it.
    pub(crate) fn may_pass(&self) -> bool {
        !matches!(self, Self::Shutdown { .. })
    }

    fn code(&self) -> Code {
        match self {
            Self::TooManyChannels { .. } | Self::TooManyCalls { .. } => Code::ResourceExhausted,
            _ => Code::Unavailable,
        }
    }
}

impl From<DialError> for tonic::Status {
    fn from(error: DialError) -> Self {
        let mut status = Self::new(error.code(), error.to_string());
        status.set_source(Arc::new(error));
        status
    }
}

pub(crate) type Found<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Finds the tunnel to dial, at each dial.
pub(crate) trait Route: Send + Sync {
    fn session(&self) -> Result<Arc<Session>, DialError>;

    /// Another tunnel, when one has failed: one that has taken its place, or is about to, or any that will do as well.
    fn successor<'a>(&'a self, of: &'a Session) -> Found<'a, Option<Arc<Session>>> {
        Box::pin(std::future::ready(next_after(of, self.session())))
    }

    /// Waits for a tunnel, for so long.
    fn wait(&self, limit: Duration) -> Found<'_, Result<Arc<Session>, DialError>>;
}

/// What was found, if it is another tunnel.
pub(crate) fn next_after(old: &Session, found: Result<Arc<Session>, DialError>) -> Option<Arc<Session>> {
    found.ok().filter(|new| new.id != old.id)
}

/// One tunnel and no other.
pub(crate) struct Pinned(pub(crate) Arc<Session>);

impl Route for Pinned {
    fn session(&self) -> Result<Arc<Session>, DialError> {
        Ok(self.0.clone())
    }

    fn wait(&self, _: Duration) -> Found<'_, Result<Arc<Session>, DialError>> {
        Box::pin(std::future::ready(self.session()))
    }
}

/// Dials through a tunnel: each call opens one channel.
///
/// For [`Endpoint::connect_with_connector`](tonic::transport::Endpoint::connect_with_connector) and its `_lazy` form;
/// the URI is not looked at. Pass the endpoint through [`tune_endpoint`](crate::tune_endpoint) first. For many
/// short-lived clients prefer [`TunnelChannel`](crate::TunnelChannel), which shares one connection.
///
/// # Cancel safety
/// Dropping the dial's future is safe: the open finishes on its own, and its channel is closed.
#[derive(Clone)]
pub struct Connector {
    route: Arc<dyn Route>,
}

impl Connector {
    pub(crate) fn new(route: Arc<dyn Route>) -> Self {
        Self { route }
    }

    /// Opens one channel, for protocols other than gRPC.
    ///
    /// # Errors
    /// [`DialError`]: no tunnel, or the peer refused or did not answer (10 s by default). A dial that fails is made once
    /// more if there is another tunnel that will do: one that renewed the first, or one of the same pool.
    ///
    /// # Cancel safety
    /// Safe, see the type.
    pub async fn dial(&self) -> Result<TunnelIo, DialError> {
        let session = self.route.session()?;
        match session.open().await {
            Err(error) if error.is_of_one_tunnel() => match self.route.successor(&session).await {
                Some(successor) => successor.open().await,
                None => Err(error),
            },
            opened => opened,
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TunnelIo>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.dial().await.map(TokioIo::new) })
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}
