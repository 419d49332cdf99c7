//! What an SSH session runs over: a byte stream, whatever it comes from.

mod address;
#[cfg(unix)]
pub(crate) mod command;
mod egress;
pub(crate) mod race;
pub(crate) mod tcp;
#[cfg(unix)]
pub(crate) mod unix;
#[cfg(feature = "websocket")]
pub(crate) mod websocket;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

pub(crate) use self::address::{Address, HostPort};
pub(crate) use self::egress::{Egress, Proxy, ProxyFailure};

use self::egress::Purpose;

/// A byte stream, its type forgotten: the session above is the same for all, and is compiled once.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// What a tunnel runs over, as a hub sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CarrierKind {
    /// A connection of its own; the agent's end may lead through a proxy.
    Tcp,
    /// A socket of this machine.
    UnixSocket,
    /// With TLS or without.
    WebSocket,
    /// A stream that the user brought.
    Stream,
    /// A gRPC call: [grpctunnel](crate#features).
    Grpc,
}

impl fmt::Display for CarrierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::UnixSocket => "Unix socket",
            Self::WebSocket => "WebSocket",
            Self::Stream => "stream",
            Self::Grpc => "gRPC",
        })
    }
}

/// A carrier that stands.
pub(crate) struct Carried {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) kind: CarrierKind,
    pub(crate) local: Option<SocketAddr>,
    /// Where it leads, or comes from, as far as that has an address.
    pub(crate) peer: Option<SocketAddr>,
}

impl Carried {
    /// A connected socket, made ready for a tunnel.
    pub(crate) fn tcp(stream: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        tcp::prepare(&stream)?;
        let local = stream.local_addr().ok();
        Ok(Self { stream: Box::new(stream), kind: CarrierKind::Tcp, local, peer: Some(peer) })
    }

    /// A stream of which nothing else is known.
    pub(crate) fn new(kind: CarrierKind, stream: impl Stream, peer: Option<SocketAddr>) -> Self {
        Self { stream: Box::new(stream), kind, local: None, peer }
    }
}

/// Why there is no carrier.
#[derive(Debug)]
pub(crate) enum DialFailure {
    /// The name has no address.
    Resolve {
        host: String,
        source: io::Error,
    },
    Connect(io::Error),
    Proxy(ProxyFailure),
    #[cfg(feature = "websocket")]
    Tls(io::Error),
    /// The file with an agent's own authorities.
    #[cfg(feature = "websocket")]
    Roots(crate::tls::TlsError),
    /// Something else was answered.
    #[cfg(feature = "websocket")]
    NotWebSocket {
        status: Option<u16>,
        why: String,
    },
    /// The only stream there was has been used.
    Spent,
}

/// What a user dials with.
type Dial = dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>> + Send + Sync;

/// How an agent comes by its carriers.
pub(crate) enum Dialer {
    To(Box<To>),
    With(Box<Dial>),
    /// One stream, and so one tunnel.
    Once(Mutex<Option<Box<dyn Stream>>>),
}

/// A hub, and the way out to it.
pub(crate) struct To {
    pub(crate) address: Address,
    pub(crate) egress: Egress,
    /// Authorities for TLS, beside the system's.
    #[cfg(feature = "websocket")]
    pub(crate) tls_roots: Option<std::path::PathBuf>,
}

impl To {
    async fn dial(&self, timeout: Duration) -> Result<Carried, DialFailure> {
        #[cfg(feature = "websocket")]
        let tls_roots = self.tls_roots.as_deref();
        match &self.address {
            Address::Tcp(to) => {
                let dialled = self.egress.dial(
                    to,
                    Purpose::Ssh,
                    #[cfg(feature = "websocket")]
                    tls_roots,
                    timeout,
                );
                dialled.await
            }
            #[cfg(unix)]
            Address::Unix(path) => unix::dial(path, timeout).await,
            #[cfg(feature = "websocket")]
            Address::WebSocket(url) => websocket::dial(url, &self.egress, tls_roots, timeout).await,
        }
    }
}

impl Dialer {
    pub(crate) fn with<F, S>(dial: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: Stream,
    {
        Self::With(Box::new(move || {
            let dialled = dial();
            Box::pin(async move { dialled.await.map(|stream| Box::new(stream) as Box<dyn Stream>) })
        }))
    }

    pub(crate) fn once(stream: impl Stream) -> Self {
        Self::Once(Mutex::new(Some(Box::new(stream))))
    }

    /// Whether there can be a second tunnel.
    pub(crate) fn can_dial_again(&self) -> bool {
        !matches!(self, Self::Once(_))
    }

    pub(crate) async fn dial(&self, timeout: Duration) -> Result<Carried, DialFailure> {
        match self {
            Self::To(to) => to.dial(timeout).await,
            Self::With(dial) => match tokio::time::timeout(timeout, dial()).await {
                Ok(Ok(stream)) => Ok(Carried::new(CarrierKind::Stream, stream, None)),
                Ok(Err(error)) => Err(DialFailure::Connect(error)),
                Err(_) => Err(DialFailure::Connect(io::ErrorKind::TimedOut.into())),
            },
            Self::Once(stream) => {
                let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
                let stream = stream.ok_or(DialFailure::Spent)?;
                Ok(Carried::new(CarrierKind::Stream, stream, None))
            }
        }
    }
}
