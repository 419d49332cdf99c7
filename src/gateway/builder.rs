//! How a gateway is set up.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, ToSocketAddrs};
use tokio::sync::{Mutex, watch};

use super::callers::PolicyFile;
use super::limits::InFlight;
use super::services::Services;
use super::{Gateway, Stage, accept};
use crate::http2::{Held, Serving};
use crate::hub::{Hub, Registry};
use crate::tls::{Tls, TlsError, TlsFiles};
use crate::tuning;

/// Who asks for HTTP/1.1 is told by it that it is not spoken here.
const PROTOCOLS: &[&str] = &["h2", "http/1.1"];

/// The largest frame that a client may send: messages of 64 KiB, a usual size of pieces, come in one. Of a frame that has begun,
/// so much is kept for each connection.
const MAX_FRAME: u32 = 128 << 10;

/// Sets up a [`Gateway`].
#[must_use = "a builder does nothing until `bind`"]
pub struct GatewayBuilder {
    registry: Arc<Registry>,
    suffix: Option<String>,
    policy: Option<PolicyFile>,
    tls: Option<(PathBuf, PathBuf)>,
    client_ca: Option<PathBuf>,
    settings: Settings,
    max_calls_per_caller: usize,
    max_held: usize,
}

/// What is the same for every connection.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) max_connections: usize,
    pub(super) serving: Serving,
    /// How long a reader may take nothing while something waits for it.
    pub(super) stall: Duration,
    /// How long a call may be silent in both directions, and how long it may take.
    pub(super) idle: Option<Duration>,
    pub(super) total: Option<Duration>,
}

/// What all calls of a gateway share.
pub(super) struct Shared {
    pub(super) registry: Arc<Registry>,
    pub(super) suffix: Option<String>,
    pub(super) policy: Option<PolicyFile>,
    pub(super) settings: Settings,
    pub(super) in_flight: InFlight,
    /// What is kept for slow readers.
    pub(super) held: Arc<Held>,
    pub(super) services: Services,
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// Everybody who reaches the address could call every agent.
    #[error(
        "{address} is no loopback address, and there is no policy: call `policy(PolicyFile::open(…)?)` to say who may call what, or listen on 127.0.0.1"
    )]
    NeedsPolicy {
        /// The address.
        address: SocketAddr,
    },
    /// The suffix is no domain name.
    #[error("`{}` is no suffix for agents: write a domain name, such as agents.example.com", .suffix.escape_debug())]
    Suffix {
        /// What was given.
        suffix: String,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: is another gateway running, or the port taken or privileged?")]
    Listen {
        /// The address.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
}

impl Gateway {
    /// Starts to set up a gateway to a hub's agents. It does not keep the hub: when that is gone, calls fail UNAVAILABLE.
    pub fn builder(hub: &Hub) -> GatewayBuilder {
        GatewayBuilder {
            registry: hub.registry().clone(),
            suffix: None,
            policy: None,
            tls: None,
            client_ca: None,
            settings: Settings {
                max_connections: 10_000,
                serving: Serving {
                    max_streams: 1_000,
                    max_header_list: tuning::HTTP2_MAX_HEADER_LIST,
                    max_frame: MAX_FRAME,
                    stream_window: 4 << 20,
                    connection_window: 16 << 20,
                },
                stall: Duration::from_secs(30),
                idle: None,
                total: None,
            },
            max_calls_per_caller: 10_000,
            max_held: 256 << 20,
        }
    }
}

impl GatewayBuilder {
    /// Takes `<id>.<suffix>` as a call's authority for that agent. Default: none; then an authority that is the id alone.
    pub fn suffix(mut self, suffix: impl Into<String>) -> Self {
        self.suffix = Some(suffix.into());
        self
    }

    /// Who may call what. Default: on a loopback address everybody everything; nothing else can be listened on.
    pub fn policy(mut self, policy: PolicyFile) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Serves TLS, with the certificates and the key in these PEM files, which are read again when they change. Default:
    /// cleartext.
    pub fn tls(mut self, certificates: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls = Some((certificates.into(), key.into()));
        self
    }

    /// Asks clients for certificates of the authorities in this PEM file. A client without one may still have a token.
    pub fn client_ca(mut self, authorities: impl Into<PathBuf>) -> Self {
        self.client_ca = Some(authorities.into());
        self
    }

    /// How many calls one caller may have in flight; more fail RESOURCE_EXHAUSTED. Without a policy all callers are one.
    /// Default: 10,000.
    pub fn max_calls_per_caller(mut self, calls: usize) -> Self {
        self.max_calls_per_caller = calls;
        self
    }

    /// How many connections there may be, and how many calls on each; more wait at the client. Default: 10,000 and
    /// 1,000.
    pub fn max_connections(mut self, connections: usize, calls_on_each: u32) -> Self {
        self.settings.max_connections = connections.max(1);
        self.settings.serving.max_streams = calls_on_each.max(1);
        self
    }

    /// How many bytes of headers one call may have, counted as HTTP/2 does: 32 more for each. Default: 32 KiB.
    pub fn max_header_list(mut self, bytes: u32) -> Self {
        self.settings.serving.max_header_list = bytes;
        self
    }

    /// How many bytes a client may send ahead of the agent, in one call and on one connection. Default: 4 MiB and 16 MiB.
    pub fn window(mut self, call: u32, connection: u32) -> Self {
        self.settings.serving.stream_window = call.clamp(65_535, i32::MAX as u32);
        self.settings.serving.connection_window = connection.clamp(65_535, i32::MAX as u32);
        self
    }

    /// How many bytes may wait for readers who are slow, in all calls together; beyond that, a reader that takes less than
    /// 64 KiB in a second, with more waiting for it, loses its call. Default: 256 MiB.
    pub fn max_held(mut self, bytes: usize) -> Self {
        self.max_held = bytes;
        self
    }

    /// How long a reader may take nothing while something waits for it; then its call ends RESOURCE_EXHAUSTED. Default:
    /// 30 s.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.settings.stall = timeout;
        self
    }

    /// How long a call may take, whatever deadline it has of its own. Default: for ever.
    pub fn max_duration(mut self, limit: Duration) -> Self {
        self.settings.total = Some(limit);
        self
    }

    /// How long a call may be silent in both directions. Default: for ever.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle = Some(timeout);
        self
    }

    /// Listens, and takes calls from then on.
    ///
    /// # Errors
    /// [`GatewayError`]: the address needs a policy or cannot be listened on, or a setting is wrong.
    ///
    /// # Cancel safety
    /// Safe: without the returned gateway nothing is left running.
    pub async fn bind(self, address: impl ToSocketAddrs + fmt::Debug) -> Result<Gateway, GatewayError> {
        let failed = |source| GatewayError::Listen { address: format!("{address:?}").replace('"', ""), source };
        let suffix = self.suffix.map(|suffix| suffix.trim_matches('.').to_ascii_lowercase());
        if let Some(suffix) = suffix.as_ref().filter(|suffix| suffix.parse::<http::uri::Authority>().is_err()) {
            return Err(GatewayError::Suffix { suffix: suffix.clone() });
        }
        let tls = match (self.tls, self.client_ca) {
            (None, None) => None,
            (None, Some(_)) => return Err(TlsError::NoTls.into()),
            (Some((certificates, key)), client_ca) => {
                Some(Tls::open(TlsFiles { certificates, key, client_ca, protocols: PROTOCOLS })?)
            }
        };
        let listener = TcpListener::bind(&address).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        if self.policy.is_none() && !local_addr.ip().is_loopback() {
            return Err(GatewayError::NeedsPolicy { address: local_addr });
        }
        let stage = watch::Sender::new(Stage::Open);
        let shared = Arc::new(Shared {
            services: Services::new(self.registry.clone(), stage.subscribe()),
            registry: self.registry,
            suffix,
            policy: self.policy,
            settings: self.settings,
            in_flight: InFlight::new(self.max_calls_per_caller),
            held: Arc::new(Held::new(self.max_held)),
        });
        let task = tokio::spawn(accept::run(listener, shared, tls, stage.subscribe()));
        tracing::info!(address = %local_addr, "gateway listens");
        let abort = task.abort_handle();
        Ok(Gateway { local_addr, stage, listener: Mutex::new(Some(task)), abort })
    }
}

impl fmt::Debug for GatewayBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
