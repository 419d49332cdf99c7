//! One local server, and the connections to it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::uri::{Authority, Scheme};
use rustls::pki_types::ServerName;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tonic::Status;

use super::ForwardTls;
use super::rule::Place;
#[cfg(unix)]
use crate::carrier::unix;
use crate::carrier::{DialFailure, Stream, tcp};
use crate::http2::{Connections, Lease, Unconnected, Usage, begin};

/// How long connecting may take, with TLS.
const PATIENCE: Duration = Duration::from_secs(10);

/// One local server.
pub(super) struct Local {
    /// The rule that leads here, as it was given.
    pub(super) given: String,
    pub(super) scheme: Scheme,
    /// What it is called by.
    pub(super) authority: Authority,
    place: Place,
    tls: ForwardTls,
    connections: Connections,
}

impl Local {
    pub(super) fn new(given: String, place: Place, tls: ForwardTls) -> Self {
        let name = match &place {
            Place::Tcp { at, .. } if at.host.contains(':') => format!("[{}]:{}", at.host, at.port),
            Place::Tcp { at, .. } => format!("{}:{}", at.host, at.port),
            #[cfg(unix)]
            Place::Unix(_) => "localhost".into(),
        };
        let authority = name.parse().unwrap_or_else(|_| Authority::from_static("localhost"));
        let scheme = if matches!(place, Place::Tcp { tls: true, .. }) { Scheme::HTTPS } else { Scheme::HTTP };
        Self { given, scheme, authority, place, tls, connections: Connections::default() }
    }

    /// A connection to it, on which nothing was said yet.
    pub(super) async fn dial(&self, limit: Duration) -> io::Result<Box<dyn Stream>> {
        let dialled = match &self.place {
            Place::Tcp { at, .. } => tcp::dial(at, limit).await,
            #[cfg(unix)]
            Place::Unix(path) => unix::dial(path, limit).await,
        };
        match dialled {
            Ok(carried) => Ok(carried.stream),
            Err(DialFailure::Connect(error) | DialFailure::Resolve { source: error, .. }) => Err(error),
            Err(_) => Err(io::ErrorKind::NotConnected.into()), // no other failure is of these two
        }
    }

    /// A place for one call, on a connection that stands. `Err` is for whoever calls.
    pub(super) async fn place(self: &Arc<Self>) -> Result<(SendRequest<Bytes>, Lease), String> {
        let mut tried = false;
        loop {
            let connect = |usage| {
                let this = self.clone();
                async move { this.connect(&usage).await }
            };
            let made = self.connections.get_by(&Handle::current(), PATIENCE, connect).await;
            let (sender, lease) = made.map_err(|error| match error {
                Unconnected::Failed(said) => said,
                Unconnected::TimedOut => self.unreachable(format!("it did not answer within {PATIENCE:?}")),
                Unconnected::Ended => self.unreachable("the agent is ending".into()),
            })?;
            match sender.ready().await {
                Ok(sender) => return Ok((sender, lease)),
                // It may have said goodbye long before its last call ends.
                Err(error) => {
                    lease.has_ended();
                    if std::mem::replace(&mut tried, true) {
                        return Err(self.unreachable(format!("the connection ended: {error}")));
                    }
                }
            }
        }
    }

    async fn connect(&self, usage: &Arc<Usage>) -> Result<SendRequest<Bytes>, String> {
        let io = self.dial(PATIENCE).await.map_err(|error| self.unreachable(error.to_string()))?;
        let peer = self.given.clone();
        let begun = match &self.place {
            Place::Tcp { at, tls: true } => begin(self.secure(io, &at.host).await?, usage, peer).await,
            _ => begin(io, usage, peer).await,
        };
        begun.map_err(|error| self.unreachable(error.to_string()))
    }

    async fn secure(
        &self,
        io: Box<dyn Stream>,
        host: &str,
    ) -> Result<tokio_rustls::client::TlsStream<Box<dyn Stream>>, String> {
        let ForwardTls { roots, identity } = self.tls.clone();
        let read = move || {
            let identity = identity.as_ref().map(|(certificates, key)| (certificates.as_path(), key.as_path()));
            crate::tls::client_as(roots.as_deref(), identity, "h2")
        };
        let config = tokio::task::spawn_blocking(read).await;
        let config = match config {
            Ok(config) => config.map_err(|error| self.unreachable(error.to_string()))?,
            Err(error) => return Err(self.unreachable(error.to_string())),
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| self.unreachable(error.to_string()))?;
        let secured = TlsConnector::from(Arc::new(config)).connect(name, io).await;
        let secured = secured
            .map_err(|error| self.unreachable(format!("TLS: {error}; if it speaks none, leave `https://` away")))?;
        match secured.get_ref().1.alpn_protocol() {
            Some(b"h2") => Ok(secured),
            _ => Err(self.unreachable("it speaks TLS, but not HTTP/2 over it".into())),
        }
    }

    fn unreachable(&self, why: String) -> String {
        format!(
            "the agent cannot reach its local server `{}`: {why}; is it running, and is this its address?",
            self.given
        )
    }

    /// What whoever calls is told of a call that failed on its way.
    pub(super) fn failed(&self, error: h2::Error) -> Status {
        if error.is_io() || error.is_go_away() {
            // What is no HTTP/2 at all looks like a frame that is too long.
            let hint = match error.reason().filter(|_| error.is_library()) {
                Some(_) => "; does it speak gRPC, and without TLS? For TLS write https://host:port",
                None => "",
            };
            let text = format!("the local server `{}`: the connection for this call ended: {error}{hint}", self.given);
            return Status::unavailable(text);
        }
        Status::from_error(Box::new(error))
    }
}
