//! The laptop side: dials out, and serves.

mod backoff;
mod builder;
mod driver;
mod error;
mod standing;
mod status;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

pub use self::builder::AgentBuilder;
pub use self::error::ConnectError;
pub use self::status::AgentStatus;

#[cfg(feature = "grpctunnel")]
pub(crate) use self::{
    backoff::Backoff,
    standing::{Slot, Standing},
};

use self::driver::Shared;
use crate::channel::TunnelChannel;
use crate::close::CloseReason;
use crate::connector::{Connector, Route};
use crate::id::AgentId;
use crate::incoming::Incoming;
use crate::ssh::Session;

/// How long a hub that was told goodbye may take to close the idle tunnel. It closes last, because russh sends its own
/// goodbye past what channels have still to send.
const PEERS_TURN: Duration = Duration::from_secs(1);

/// The laptop side: dials a hub, keeps the tunnel standing, and serves what the hub opens.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use dialback::{Agent, HostKeys, PrivateKey};
///
/// let agent = Agent::builder("laptop-1", PrivateKey::from_file("keys/laptop-1")?)
///     .host_keys(HostKeys::known_hosts("keys/known_hosts")?)
///     .connect("hub.example.com:2222")
///     .await?;
/// # let routes = tonic::service::Routes::default();
/// dialback::tune_server(tonic::transport::Server::builder())
///     .add_routes(routes)
///     .serve_with_incoming_shutdown(agent.incoming(), async { tokio::signal::ctrl_c().await.unwrap_or(()) })
///     .await?;
/// agent.shutdown(std::time::Duration::from_secs(10)).await;
/// # Ok(()) }
/// ```
///
/// After the first success it never gives up: it reconnects with a backoff that grows with the outage, with full jitter,
/// 200 ms to 30 s, and resolves the hub's name anew each time.
///
/// # Dropping
/// Closes the tunnel at once and stops reconnecting. [`Agent::shutdown`] is the polite way.
pub struct Agent {
    shared: Arc<Shared>,
    /// One for each tunnel.
    drivers: Vec<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.close();
    }
}

impl Agent {
    /// The name that the hub knows it by.
    pub fn id(&self) -> &AgentId {
        &self.shared.id
    }

    /// The channels that the hub opens, for tonic's `serve_with_incoming_shutdown`; it outlives reconnects. Until this
    /// is first called, up to 128 channels wait for it; drop what it returns to refuse them instead.
    pub fn incoming(&self) -> Incoming {
        self.shared.login.acceptor.incoming()
    }

    /// Dials the hub's own services through the tunnel that stands at the moment, for tonic's `Endpoint`.
    pub fn connector(&self) -> Connector {
        Connector::new(self.shared.clone())
    }

    /// Calls to the hub's own services through the tunnel that stands at the moment, for any tonic stub.
    pub fn channel(&self) -> TunnelChannel {
        TunnelChannel::new(self.shared.clone())
    }

    /// How long a question takes to the hub and back, behind whatever else is on its way. `None` if no tunnel stands, or if it
    /// ends before there is an answer; put a limit of your own to it.
    ///
    /// # Cancel safety
    /// Safe; the answer that comes is passed over.
    pub async fn round_trip(&self) -> Option<Duration> {
        self.shared.session().ok()?.round_trip().await
    }

    /// What the agent is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.shared.standing.status()
    }

    /// Ends the agent politely: asks the hub for no more calls, ends [`Agent::incoming`] so that a tonic server on it
    /// finishes the calls in flight, waits until every channel is closed, then closes the tunnel.
    ///
    /// The end of `grace`, or a second call, cuts off what is still open; a hub that does not answer the goodbye holds
    /// this up for 2 s more.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the agent draining; call it again, or drop the agent, to end it.
    pub async fn shutdown(&self, grace: Duration) {
        let second = self.shared.standing.stop();
        let sessions = self.shared.sessions();
        if second {
            self.close_all(&sessions);
        } else {
            let ends = Instant::now() + grace;
            let mut telling = JoinSet::new();
            for session in &sessions {
                let session = session.clone();
                telling.spawn(async move { session.take_no_calls(grace).await });
            }
            telling.join_all().await;
            self.shared.login.acceptor.close();
            let mut draining = JoinSet::new();
            for session in &sessions {
                let session = session.clone();
                let left = ends.saturating_duration_since(Instant::now());
                draining
                    .spawn(async move { session.drain_and_be_closed(left, PEERS_TURN, CloseReason::Shutdown).await });
            }
            draining.join_all().await;
        }
        for session in sessions {
            session.closed().await;
        }
        self.end();
    }

    /// Closes the tunnel now and stops reconnecting.
    pub fn close(&self) {
        self.shared.standing.stop();
        self.close_all(&self.shared.sessions());
        self.end();
    }

    fn close_all(&self, sessions: &[Arc<Session>]) {
        for session in sessions {
            session.close(CloseReason::Shutdown);
        }
    }

    fn end(&self) {
        // They stop by themselves; what they were dialling ends with them.
        self.drivers.iter().for_each(JoinHandle::abort);
        self.shared.end();
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status();
        f.debug_struct("Agent").field("id", self.id()).field("status", &*status.borrow()).finish_non_exhaustive()
    }
}
