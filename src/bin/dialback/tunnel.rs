//! An agent by `grpctunnel`: hubs at `grpc://` and `grpcs://`.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use dialback::grpctunnel::{OpenError, ReverseTunnel, TunnelBuilder};
use dialback::{Agent, AgentId, PrivateKey, tune_endpoint};
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};

use crate::config::{AgentKeys, without_secrets};
use crate::failure::Failure;
use crate::grpc::{connect_to_one, hub_tls};
use crate::hub::set;
use crate::tokens;

/// What goes for hubs of SSH, where nothing else is set.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(20);
const KEEPALIVE: (Duration, usize) = (Duration::from_secs(10), 3);
const BACKOFF: (Duration, Duration, Duration) =
    (Duration::from_millis(200), Duration::from_secs(30), Duration::from_secs(30));

/// How often PINGs may be: one that never pauses helps nobody, and no timer waits for ever.
const KEEPALIVE_BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(24 * 3600));

/// When the kernel starts to probe a silent connection.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Whether a hub is reached by `grpctunnel`.
pub(crate) fn is_meant(hub: &str) -> bool {
    hub.starts_with("grpc://") || hub.starts_with("grpcs://")
}

/// The way to such a hub, and what it is shown there.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) url: String,
    pub(crate) id: AgentId,
    token: String,
    metadata: MetadataMap,
    host: String,
    port: u16,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    settings: Settings,
}

#[derive(Clone)]
struct Settings {
    login_timeout: Duration,
    keepalive: (Duration, Duration),
    backoff: (Duration, Duration, Duration),
    tunnels: Option<u16>,
}

/// Where an attempt came to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error("cannot resolve `{host}`: check the hub's name and this machine's DNS")]
    Name { host: String, source: io::Error },
    #[error("cannot reach {hub}: is the hub running, and is the port open on the way?")]
    Connection { hub: String, source: io::Error },
    #[error("TLS with {hub} failed: {}", tls_advice(.source))]
    Tls { hub: String, source: io::Error },
    #[error("{hub} does not speak gRPC: is this the hub's address, and does it speak TLS where this says so?")]
    NotGrpc { hub: String, source: tonic::transport::Error },
    #[error("{hub} did not open a tunnel for `{id}`")]
    Tunnel { hub: String, id: AgentId, source: OpenError },
}

/// What is likely to be wrong with a handshake.
fn tls_advice(error: &io::Error) -> &'static str {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(_)) => "it speaks no TLS there",
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => "it speaks TLS but no HTTP/2",
        _ => "is its certificate valid, and for this name? For an authority of your own, --tls-roots FILE",
    }
}

/// Whether a connection was cut, whoever tells of it.
fn is_cut(error: &(dyn Error + 'static)) -> bool {
    // h2 has no source.
    let is_io = error.is::<io::Error>() || error.downcast_ref::<h2::Error>().is_some_and(h2::Error::is_io);
    is_io || error.source().is_some_and(is_cut)
}

impl Failed {
    /// Whether time may cure it.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Name { .. } | Self::Connection { .. } => true,
            // A connection that was cut is no certificate that is wrong.
            Self::Tls { source, .. } => !source.get_ref().is_some_and(|error| error.is::<rustls::Error>()),
            Self::NotGrpc { source, .. } => is_cut(source),
            Self::Tunnel { source: OpenError::Refused(status), .. } => !matches!(
                status.code(),
                Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::InvalidArgument
            ),
            Self::Tunnel { .. } => true,
        }
    }
}

impl Way {
    /// The way that is configured, if it is one of these.
    ///
    /// # Errors
    /// When something is missing, or stands there for SSH.
    pub(crate) fn of(keys: &AgentKeys) -> Result<Option<Self>, Failure> {
        let Some(url) = keys.hub.iter().find(|hub| is_meant(hub)) else { return Ok(None) };
        if keys.hub.len() > 1 {
            return Err(Failure::usage(format!("{} stands alone: leave out the other --hub", url.0)));
        }
        let (secure, rest) = match url.strip_prefix("grpcs://") {
            Some(rest) => (true, rest),
            None => (false, url.strip_prefix("grpc://").unwrap_or_default()),
        };
        let write = "write grpcs://HOST:PORT, such as grpcs://hub.example.com:443";
        let wrong = |why: &str| {
            Failure::usage(format!("`{}` is not a hub's address: {why}", without_secrets(url).escape_debug()))
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let authority: http::uri::Authority = rest.parse().map_err(|_| wrong(write))?;
        let port = authority.port_u16().filter(|port| *port != 0).ok_or_else(|| wrong(write))?;
        if rest.contains('@') {
            return Err(wrong("neither the agent's id nor its token is part of it"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !secure && !is_here {
            return Err(wrong(
                "without TLS everybody on the way could read the token: grpc:// is for a loopback address, and others are reached at grpcs://",
            ));
        }
        let tls = match (secure, &keys.tls_roots) {
            (false, Some(_)) => return Err(Failure::usage("--tls-roots is for a hub with TLS: grpcs:// or wss://")),
            (false, None) => None,
            (true, own) => {
                let name = ServerName::try_from(host.clone()).map_err(|_| wrong("this is no host's name"))?;
                Some((Arc::new(hub_tls(own.as_deref())?), name))
            }
        };
        let Some(id) = &keys.id else {
            return Err(Failure::usage("give the agent the name that the hub knows it by: --id NAME"));
        };
        let id = id.parse().map_err(|error| Failure::usage(format!("--id: {error}")))?;
        let token = tokens::own(keys.token_file.as_deref())?;
        let interval = keys.keepalive.unwrap_or(KEEPALIVE.0).clamp(KEEPALIVE_BOUNDS.0, KEEPALIVE_BOUNDS.1);
        let unanswered = u32::try_from(keys.keepalive_max.unwrap_or(KEEPALIVE.1)).unwrap_or(u32::MAX);
        let settings = Settings {
            login_timeout: keys.login_timeout.unwrap_or(LOGIN_TIMEOUT),
            keepalive: (interval, interval.saturating_mul(unanswered.max(1))),
            backoff: (
                keys.backoff_min.unwrap_or(BACKOFF.0),
                keys.backoff_max.unwrap_or(BACKOFF.1),
                keys.backoff_stable.unwrap_or(BACKOFF.2),
            ),
            tunnels: keys.tunnels,
        };
        let metadata = tokens::shown(&token)?;
        Ok(Some(Self { url: url.0.clone(), id, token, metadata, host, port, tls, settings }))
    }

    /// The proxy that the environment names for such a hub, without user and password. None is taken.
    pub(crate) fn passed_proxy(&self) -> Option<String> {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        // What would be taken where proxies are; nobody dials with this key.
        Agent::builder(self.id.as_str(), PrivateKey::generate()).proxy_to(&format!("{scheme}://{host}:{}/", self.port))
    }

    /// Opens a tunnel by which the hub calls `routes`. One that is not there yet is waited for.
    ///
    /// # Errors
    /// What waiting does not cure.
    pub(crate) async fn open_when_available(&self, routes: &Routes) -> Result<ReverseTunnel, Failure> {
        let (min, max, _) = self.settings.backoff;
        let mut longest = min;
        for attempt in 1u64.. {
            match self.open(routes.clone()).await {
                Ok(tunnel) => return Ok(tunnel),
                Err(failed) if failed.is_transient() => {
                    let wait = longest.mul_f64(rand::random::<f64>());
                    longest = longest.saturating_mul(2).min(max);
                    let error = Failure::because("cannot connect", &failed).to_string();
                    tracing::info!(hub = self.url, attempt, error, ?wait, "the hub is not there yet");
                    tokio::time::sleep(wait).await;
                }
                Err(failed) => return Err(self.explain(&failed)),
            }
        }
        Err(Failure::new("it was tried too often"))
    }

    /// Opens a tunnel, now.
    pub(crate) async fn open(&self, routes: Routes) -> Result<ReverseTunnel, Failed> {
        let channel = self.connect().await?;
        let (min, max, stable) = self.settings.backoff;
        let builder = TunnelBuilder::new(self.id.as_str(), channel).hub(&self.url).metadata(self.metadata.clone());
        let builder = builder.establishment_timeout(self.settings.login_timeout).backoff(min, max, stable);
        let builder = set(builder, self.settings.tunnels, TunnelBuilder::tunnels);
        let refused = |source| Failed::Tunnel { hub: self.url.clone(), id: self.id.clone(), source };
        builder.reverse(routes).await.map_err(refused)
    }

    /// What a hub's answer means for whoever has to mend it.
    pub(crate) fn explain(&self, failed: &Failed) -> Failure {
        let failure = Failure::because("cannot connect", failed);
        match failed {
            Failed::Tunnel { source: OpenError::Refused(status), .. } => match status.code() {
                Code::Unauthenticated | Code::PermissionDenied => Failure::new(format!(
                    "{failure}\n  the hub lets it in when its --agent-tokens file has the line: {}",
                    tokens::line(&self.id, &self.token)
                )),
                Code::Unimplemented => Failure::new(format!(
                    "{failure}\n  no tunnels are taken there: is this what the hub says with `hub ready`?"
                )),
                _ => failure,
            },
            _ => failure,
        }
    }

    /// A connection, which comes back when it was lost.
    async fn connect(&self) -> Result<Channel, Failed> {
        let hub = || self.url.clone();
        let authority = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let not_grpc = |source| Failed::NotGrpc { hub: hub(), source };
        let endpoint = Endpoint::try_from(format!("{scheme}://{authority}:{}", self.port)).map_err(not_grpc)?;
        let (interval, patience) = self.settings.keepalive;
        let endpoint = tune_endpoint(endpoint).http2_keep_alive_interval(interval).keep_alive_timeout(patience);
        let connected = endpoint.connect_with_connector(Connector(Arc::new(self.clone()))).await;
        connected.map_err(|error| match own_error(&error) {
            Some(failed) => failed,
            None => not_grpc(error),
        })
    }

    async fn dial(&self) -> Result<Box<dyn Io>, Failed> {
        let hub = || self.url.clone();
        let dialled = timeout(self.settings.login_timeout, async {
            let found = lookup_host((self.host.as_str(), self.port)).await;
            let found = found.map_err(|source| Failed::Name { host: self.host.clone(), source })?;
            let connected = connect_to_one(found, self.settings.login_timeout).await;
            let stream = connected.map_err(|source| Failed::Connection { hub: hub(), source })?;
            self.secure(stream).await
        });
        let late = || Failed::Connection { hub: hub(), source: io::ErrorKind::TimedOut.into() };
        dialled.await.unwrap_or_else(|_| Err(late()))
    }

    async fn secure(&self, stream: TcpStream) -> Result<Box<dyn Io>, Failed> {
        let _ = stream.set_nodelay(true); // it would be slower, not wrong
        let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE)); // PINGs do it, too
        let Some((config, name)) = &self.tls else { return Ok(Box::new(stream)) };
        let failed = |source| Failed::Tls { hub: self.url.clone(), source };
        let secured = TlsConnector::from(config.clone()).connect(name.clone(), stream).await.map_err(failed)?;
        Ok(Box::new(secured))
    }
}

/// Finds what [`Way::dial`] said under what tonic says.
fn own_error(error: &tonic::transport::Error) -> Option<Failed> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(shared) = error.downcast_ref::<Shared>() {
            return shared.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        }
        cause = error.source();
    }
    None
}

/// What dialling ended with, to be taken out of what tonic makes of it.
#[derive(Debug, thiserror::Error)]
#[error("{1}")]
struct Shared(std::sync::Mutex<Option<Failed>>, String);

trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Dials for tonic, as often as it wants.
#[derive(Clone)]
struct Connector(Arc<Way>);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = Shared;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Shared>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Shared>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let way = self.0.clone();
        Box::pin(async move {
            way.dial().await.map(TokioIo::new).map_err(|failed| {
                let text = Failure::because("cannot connect", &failed).to_string();
                Shared(std::sync::Mutex::new(Some(failed)), text)
            })
        })
    }
}
