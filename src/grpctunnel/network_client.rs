//! [`ReverseTunnel`] and [`ForwardTunnel`]: tunnels that this side opens.

mod dial;
mod keep;
mod open;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as HttpBody;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;

use self::dial::{Dial, Over};
use self::keep::Shared;
use super::Settings;
use super::protocol::Revision;
use crate::agent::{AgentStatus, Backoff};
use crate::channel::TunnelChannel;
use crate::close::CloseReason;
use crate::id::InvalidAgentId;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a tunnel was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The text is not an agent id.
    #[error(transparent)]
    InvalidAgentId(#[from] InvalidAgentId),
    /// The peer refused, or could not be reached.
    #[error("the tunnel was not opened: {0}")]
    Refused(#[source] Status),
    /// The peer took too long to negotiate the tunnel.
    #[error("the peer did not set up the tunnel within {after:?}")]
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// The tunnel ended as it began.
    #[error("the tunnel ended as it began: {0}")]
    Ended(CloseReason),
}

/// Sets up a tunnel that this side opens, over any carrier that tonic's stubs take: a `Channel` (set up by
/// [`tune_endpoint`](crate::tune_endpoint)), one with an interceptor, or another tunnel's [`TunnelChannel`].
#[must_use = "a builder does nothing until `forward` or `reverse`"]
pub struct TunnelBuilder {
    id: String,
    hub: String,
    carrier: Box<dyn Dial>,
    metadata: MetadataMap,
    settings: Settings,
    backoff: Backoff,
    tunnels: u16,
}

impl TunnelBuilder {
    /// Starts to set up a tunnel: the id that this side goes by, which is sent as the metadata `dialback-agent-id`, and the
    /// connection that carries it, whose settings say [when a dead peer is noticed](crate::grpctunnel#dead-peers).
    pub fn new<C>(id: impl Into<String>, carrier: C) -> Self
    where
        C: GrpcService<Body> + Clone + Send + Sync + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
        C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <C::ResponseBody as HttpBody>::Error: Into<BoxError> + Send,
    {
        Self {
            id: id.into(),
            hub: "grpctunnel".into(),
            carrier: Box::new(Over(carrier)),
            metadata: MetadataMap::new(),
            settings: Settings::default(),
            backoff: Backoff::default(),
            tunnels: 1,
        }
    }

    /// What [`AgentStatus`] calls the peer. Default: `grpctunnel`.
    pub fn hub(mut self, name: impl Into<String>) -> Self {
        self.hub = name.into();
        self
    }

    /// What the tunnel is opened with: credentials, for example.
    pub fn metadata(mut self, metadata: MetadataMap) -> Self {
        self.metadata = metadata;
        self
    }

    /// How many reverse tunnels to keep open at once, from 1 to 8. Default: 1. A forward tunnel is always one.
    pub fn tunnels(mut self, tunnels: u16) -> Self {
        self.tunnels = tunnels.clamp(1, TUNNELS_MAX);
        self
    }

    /// The waits between attempts to open the tunnel again: a random part of as long as it has been away, of `min` at
    /// least and of `max` at most. After a tunnel that stood for `stable` they start over with `min`. Default: 200 ms,
    /// 30 s, 30 s.
    pub fn backoff(mut self, min: Duration, max: Duration, stable: Duration) -> Self {
        self.backoff = Backoff::new(min, max, stable);
        self
    }

    /// How long the peer may take until a tunnel is negotiated. Default: 15 s.
    pub fn establishment_timeout(mut self, limit: Duration) -> Self {
        self.settings.establishment = limit;
        self
    }

    /// How long a message may be that comes by the tunnel, in bytes; a longer one fails its call, `RESOURCE_EXHAUSTED`.
    /// Default: 64 MiB.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.settings.max_message = bytes;
        self
    }

    /// How many bytes the peer may send of one call before they are read. Default: 1 MiB; at least 1 KiB. A call begins with
    /// 64 KiB of it. The rest it gets when one of its messages needs that, or as its reader reads, while half of
    /// [`max_unread`](Self::max_unread) lasts for all calls together; when it ends, others can have that. The
    /// Python port sends 64 KiB in any case, so that less than this fails its calls.
    pub fn window(mut self, bytes: u32) -> Self {
        self.settings.set_window(bytes);
        self
    }

    /// How many bytes the peer may have sent by one tunnel, in all its calls, that were not read. Then the tunnel is not read
    /// for a second at most, and if its readers have not caught up by then, the call that holds most ends,
    /// `RESOURCE_EXHAUSTED`. A peer that keeps to its windows comes to that only with some 500 calls, one for each 128 KiB of
    /// this, whose readers are all slow. Default: 64 MiB.
    pub fn max_unread(mut self, bytes: usize) -> Self {
        self.settings.max_unread = bytes;
        self
    }

    /// How many calls the peer may have in flight by one reverse tunnel; more fail `RESOURCE_EXHAUSTED`. The protocol does not
    /// tell callers of it, so they cannot wait. Default: 10,000. Those that this side makes have no limit.
    pub fn max_calls(mut self, calls: usize) -> Self {
        self.settings.max_calls = calls;
        self
    }

    /// The newest revision of the protocol to offer: 0, 1 or 2. Default: 2. A hub on the Python port wants 1: offered 2, it says
    /// that it speaks it and counts as in 1, so that after some ten thousand messages a stream stands still.
    pub fn newest_revision(mut self, revision: u8) -> Self {
        self.settings.newest = match revision {
            0 => Revision::Zero,
            1 => Revision::One,
            _ => Revision::Two,
        };
        self
    }

    /// Opens a tunnel by which this side calls the peer, and keeps it open.
    ///
    /// # Errors
    /// [`OpenError`], when the first attempt fails. After the first success it never gives up.
    ///
    /// # Cancel safety
    /// Safe: without the returned tunnel nothing is left.
    pub async fn forward(self) -> Result<ForwardTunnel, OpenError> {
        let (shared, drivers) = Shared::start(self, None).await?;
        Ok(ForwardTunnel { shared, _drivers: drivers })
    }

    /// Opens a tunnel, or [several](Self::tunnels), by which the peer calls `routes`, and keeps them open.
    ///
    /// Handlers find a [`Carrier`](super::Carrier) in a request's extensions, with what the peer answered when the tunnel
    /// was opened.
    ///
    /// `Ok` means that the peer has taken the tunnel. The protocol has no word for more: a [hub](super::TunnelService)
    /// answers when it has let the tunnel in, and still refuses it when another, opened at the same moment, was faster;
    /// other peers may answer before they decide. What is refused then is tried again, and
    /// [`status`](ReverseTunnel::status) tells why.
    ///
    /// # Errors
    /// [`OpenError`], when the first attempt fails. After the first success it never gives up.
    ///
    /// # Cancel safety
    /// Safe: without the returned tunnel nothing is left.
    pub async fn reverse(self, routes: Routes) -> Result<ReverseTunnel, OpenError> {
        let (shared, drivers) = Shared::start(self, Some(routes)).await?;
        Ok(ReverseTunnel { shared, _drivers: drivers })
    }
}

const TUNNELS_MAX: u16 = 8;

/// A tunnel by which this side calls who took it.
///
/// # Dropping
/// Closes the tunnel at once. [`ForwardTunnel::shutdown`] is the polite way.
pub struct ForwardTunnel {
    shared: Arc<Shared>,
    _drivers: JoinSet<()>,
}

impl ForwardTunnel {
    /// Calls through the tunnel that stands at the moment, for any tonic stub.
    pub fn channel(&self) -> TunnelChannel {
        TunnelChannel::new(self.shared.clone())
    }

    /// What the tunnel is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.shared.standing.status()
    }

    /// Takes no more calls, waits for those in flight, then closes the tunnel. The end of `grace` cuts off what is left.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the tunnel draining; call it again, or drop the tunnel, to end it.
    pub async fn shutdown(&self, grace: Duration) {
        self.shared.shutdown(grace).await;
    }
}

/// A tunnel, or several, by which who took it calls this side.
///
/// # Dropping
/// Closes the tunnels at once. [`ReverseTunnel::shutdown`] is the polite way.
pub struct ReverseTunnel {
    shared: Arc<Shared>,
    _drivers: JoinSet<()>,
}

impl ReverseTunnel {
    /// What the tunnel is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.shared.standing.status()
    }

    /// Refuses new calls, `UNAVAILABLE`, waits for those in flight, then closes the tunnels, idle ones at once. The end of
    /// `grace` cuts off what is left.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the tunnels draining; call it again, or drop the tunnel, to end it.
    pub async fn shutdown(&self, grace: Duration) {
        self.shared.shutdown(grace).await;
    }
}

impl Drop for ForwardTunnel {
    fn drop(&mut self) {
        self.shared.standing.end();
    }
}

impl Drop for ReverseTunnel {
    fn drop(&mut self) {
        self.shared.standing.end();
    }
}

impl fmt::Debug for TunnelBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelBuilder").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for ForwardTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardTunnel").field("status", &*self.status().borrow()).finish_non_exhaustive()
    }
}

impl fmt::Debug for ReverseTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReverseTunnel").field("status", &*self.status().borrow()).finish_non_exhaustive()
    }
}
