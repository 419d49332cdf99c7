//! What a tunnel is known by.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::id::AgentId;

/// The number of a tunnel, unique in this process: an agent that reconnects keeps its [`AgentId`] and gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(u64);

impl TunnelId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who is at the other end of a channel, for handlers: in every request's extensions when tonic serves from an
/// [`Incoming`](crate::Incoming).
///
/// ```
/// # use dialback::TunnelConnectInfo;
/// fn who<T>(request: &tonic::Request<T>) -> Option<String> {
///     let tunnel = request.extensions().get::<TunnelConnectInfo>()?;
///     Some(format!("agent {} from {:?}", tunnel.agent_id, tunnel.peer_addr))
/// }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TunnelConnectInfo {
    /// The agent of the tunnel: on the hub the caller, proved by its key; on the agent this agent itself.
    pub agent_id: AgentId,
    /// The tunnel.
    pub tunnel_id: TunnelId,
    /// This side's address of the carrier, if it has one.
    pub local_addr: Option<SocketAddr>,
    /// The peer's address of the carrier, if it has one.
    pub peer_addr: Option<SocketAddr>,
}
