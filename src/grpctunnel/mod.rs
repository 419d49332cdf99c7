//! gRPC in gRPC: tunnels that are gRPC calls themselves, wire-compatible with `grpctunnel.v1` of jhump/grpctunnel (Go) and its
//! Python port. They pass wherever gRPC passes, and need nothing but an ordinary gRPC connection, the *carrier*.
//!
//! | who opens the tunnel | the peer serves | the opener serves |
//! |---|---|---|
//! | opens it with | [`ForwardTunnel`] | [`ReverseTunnel`] |
//! | takes it with | [`TunnelService`], its [`routes`](TunnelServiceBuilder::routes) | [`TunnelService`], as a tunnel of its [hub](TunnelServiceBuilder::reverse) |
//!
//! Identity and encryption are the carrier's: use TLS, and credentials in its metadata. Who is gone is found out by the
//! carrier's own HTTP/2 PINGs: after 50 s by a server that [`tune_server`](crate::tune_server) has set up, and after six
//! minutes by an endpoint that [`tune_endpoint`](crate::tune_endpoint) has, because other libraries' servers end connections
//! that ping more often. Where the server is of dialback, set `http2_keep_alive_interval` on the agent's endpoint to some
//! seconds, with `keep_alive_while_idle(true)`.

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
