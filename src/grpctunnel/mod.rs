//! gRPC in gRPC: tunnels that are gRPC calls themselves, wire-compatible with `grpctunnel.v1` of jhump/grpctunnel (Go) and its
//! Python port. They pass wherever gRPC passes, and need nothing but an ordinary gRPC connection, the *carrier*.
//!
//! | who opens the tunnel | the peer serves | the opener serves |
//! |---|---|---|
//! | opens it with | [`ForwardTunnel`] | [`ReverseTunnel`] |
//! | takes it with | [`TunnelService`], its [`routes`](TunnelServiceBuilder::routes) | [`TunnelService`], as a tunnel of its [hub](TunnelServiceBuilder::reverse) |
//!
//! Identity and encryption are the carrier's: use TLS, and credentials in its metadata.
//!
//! # Dead peers
//! A tunnel has no keepalive of its own; the HTTP/2 connection that carries it has PINGs. An end that gets no answer ends its
//! tunnels, and the calls in them fail, `UNAVAILABLE`. Each end notices by its own settings, an interval and a timeout after the
//! last byte that came:
//!
//! | | settings | after [`tune_server`](crate::tune_server) or [`tune_endpoint`](crate::tune_endpoint) |
//! |---|---|---|
//! | takes tunnels | `http2_keepalive_interval`, `http2_keepalive_timeout` | 50 s ([interval](crate::tuning::HTTP2_SERVER_PING_INTERVAL), [timeout](crate::tuning::HTTP2_PING_TIMEOUT)) |
//! | opens them | `http2_keep_alive_interval`, `keep_alive_timeout` | 350 s ([interval](crate::tuning::HTTP2_CLIENT_PING_INTERVAL), the same timeout), since servers of other libraries end connections that ping more often |
//! | opens them again | `connect_timeout` | none: TCP's waits between its attempts grow to a minute, and an agent may come back as much later |
//!
//! Where both ends are of dialback, set all of them to some seconds. A timeout has to be longer than bulk data on their way
//! may keep the answer waiting. A tunnel is a call in flight: `keep_alive_while_idle` is not needed.
//!
//! The server's connection outlives its tunnels while bytes wait in its socket that a dead peer does not take: on most systems
//! for a quarter of an hour, and for ever if the peer's kernel still answers. On Linux, `TCP_USER_TIMEOUT` on the listener, which
//! hands it on to what it accepts, puts an end to that.
//!
//! ```no_run
//! use std::time::Duration;
//! use dialback::{tune_endpoint, tune_server};
//! use tonic::transport::{Endpoint, Server};
//!
//! const SOME: Duration = Duration::from_secs(5);
//! # fn listen(listener: &tokio::net::TcpListener) -> std::io::Result<()> {
//! let hub = tune_server(Server::builder()).http2_keepalive_interval(Some(SOME)).http2_keepalive_timeout(Some(SOME));
//! # #[cfg(target_os = "linux")]
//! socket2::SockRef::from(listener).set_tcp_user_timeout(Some(2 * SOME))?;
//! # Ok(()) }
//!
//! let agent = tune_endpoint(Endpoint::from_static("https://hub.example.com"))
//!     .http2_keep_alive_interval(SOME)
//!     .keep_alive_timeout(SOME)
//!     .connect_timeout(SOME);
//! ```

mod body;
mod end;
mod network_client;
mod network_server;
mod protocol;
mod tunnel_client;
mod tunnel_server;

/// The messages of the wire, and tonic's client and server for the two methods. `proto/grpctunnel.proto` says what they
/// mean.
#[allow(
    clippy::enum_variant_names,
    clippy::missing_errors_doc,
    clippy::use_self,
    dead_code,
    missing_docs,
    unreachable_pub
)]
mod proto {
    include!("../../proto/gen/grpctunnel.v1.rs");
}

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::MetadataMap;

pub use self::network_client::{ForwardTunnel, OpenError, ReverseTunnel, TunnelBuilder};
pub use self::network_server::{AGENT_ID_METADATA, TunnelService, TunnelServiceBuilder};

pub(crate) use self::tunnel_client::{CallBody, Caller};

use self::protocol::{Config, NEGOTIATE, Negotiated, ON, Revision};
use crate::tunnel::TunnelId;

/// Whether the other end of a carrier knows settings; this one does. Without them a tunnel has revision zero.
fn negotiated(metadata: &MetadataMap) -> Negotiated {
    if metadata.get(NEGOTIATE).is_some_and(|value| value == ON) { Negotiated::Yes } else { Negotiated::No }
}

/// The call that a tunnel is, for handlers: in the extensions of every request that came by it.
#[derive(Clone)]
pub struct Carrier {
    tunnel_id: TunnelId,
    metadata: Arc<MetadataMap>,
    peer_addr: Option<SocketAddr>,
}

impl Carrier {
    fn new(tunnel_id: TunnelId, metadata: MetadataMap, peer_addr: Option<SocketAddr>) -> Self {
        Self { tunnel_id, metadata: Arc::new(metadata), peer_addr }
    }

    /// The tunnel.
    pub fn tunnel_id(&self) -> TunnelId {
        self.tunnel_id
    }

    /// What the tunnel was opened with, or, for who opened it, what was answered: credentials, for example.
    pub fn metadata(&self) -> &MetadataMap {
        &self.metadata
    }

    /// Where it comes from, if its transport has addresses.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer_addr
    }
}

impl fmt::Debug for Carrier {
    /// Without the metadata, which has credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tunnel_id, peer_addr, .. } = self;
        f.debug_struct("Carrier").field("tunnel_id", tunnel_id).field("peer_addr", peer_addr).finish_non_exhaustive()
    }
}

/// The least that a peer may send of one call before it is taken.
const WINDOW_MIN: u32 = 1024;

/// What both ends of all tunnels can be set to.
#[derive(Debug, Clone)]
struct Settings {
    establishment: Duration,
    max_message: usize,
    window: u32,
    max_unread: usize,
    max_calls: usize,
    newest: Revision,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            establishment: Duration::from_secs(15),
            max_message: 64 << 20,
            window: 1 << 20,
            max_unread: 64 << 20,
            // No caller knows of a limit, so it is none that programs come to.
            max_calls: 10_000,
            newest: Revision::Two,
        }
    }
}

impl Settings {
    fn set_window(&mut self, bytes: u32) {
        self.window = bytes.max(WINDOW_MIN);
    }

    fn config(&self) -> Config {
        let max_message = u32::try_from(self.max_message).unwrap_or(u32::MAX);
        Config {
            newest: self.newest,
            window: self.window,
            max_message,
            max_streams: self.max_calls,
            max_unread: self.max_unread,
            ..Config::default()
        }
    }
}
