//! One connection to a server, and what is wrong with those that fail.

use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::args::ServerArgs;
use super::output::say;
use super::sniff::{First, Sniffed};
use super::target::{Place, Target, authority};
use super::tls;
use crate::failure::Failure;

/// How long a server may take to show what else it speaks.
const PROBE: Duration = Duration::from_secs(3);

/// How long a connection that is closed may take to send what it still has, resets above all.
const GOODBYE: Duration = Duration::from_millis(500);

/// A connection to a server that speaks HTTP/2.
#[derive(Debug)]
pub(super) struct Connection {
    channel: Channel,
    dropped: oneshot::Receiver<()>,
}

impl Connection {
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Ends it, politely: what was cancelled is reset before.
    pub(super) async fn close(self) {
        drop(self.channel);
        let _ = timeout(GOODBYE, self.dropped).await; // the server does not read, or somebody has a channel still
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

type BoxIo = Box<dyn Io>;

/// Dials, and waits until the server has shown that it speaks HTTP/2.
pub(super) async fn dial(target: &Target, server: &ServerArgs) -> Result<Connection, Failure> {
    let dialled = timeout(server.connect_timeout, connect(target, server)).await;
    dialled.unwrap_or_else(|_| {
        let text = format!("{} does not answer within {:?}", target.text, server.connect_timeout);
        Err(Failure::new(format!("{text}: is the address right? See also -connect-timeout")))
    })
}

async fn connect(target: &Target, server: &ServerArgs) -> Result<Connection, Failure> {
    let with_tls = with_tls(target, server)?;
    let name = name(target, server, with_tls)?;
    let io: BoxIo = if with_tls {
        Box::new(shake_hands(target, server, &name).await?)
    } else {
        open(target, server.connect_timeout).await?
    };
    let (io, told) = Sniffed::new(io);

    let scheme = if with_tls { "https" } else { "http" };
    let origin: Uri = format!("{scheme}://{name}")
        .parse()
        .map_err(|_| Failure::usage(format!("{name} cannot be a server's name: see -authority")))?;
    // The scheme tells tonic nothing: its TLS is not used.
    let mut endpoint = Endpoint::from_static("http://server").origin(origin);
    let ours = concat!("dialback/", env!("CARGO_PKG_VERSION"));
    let user_agent = server.user_agent.as_ref().map_or(ours.to_owned(), |theirs| format!("{theirs} {ours}"));
    endpoint = endpoint.user_agent(user_agent).map_err(|_| Failure::usage("-user-agent is no header's value"))?;
    endpoint = endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(3 << 20);
    if let Some(time) = server.keepalive_time.filter(|time| !time.is_zero()) {
        endpoint = endpoint.http2_keep_alive_interval(time).keep_alive_timeout(time).keep_alive_while_idle(true);
    }
    let failed = |error: &dyn std::error::Error| Failure::because(format!("cannot connect to {}", target.text), error);
    let channel =
        endpoint.connect_with_connector(Once(Some(TokioIo::new(io)))).await.map_err(|error| failed(&error))?;
    match told.first.await.unwrap_or(First::Closed) {
        First::Http2 => Ok(Connection { channel, dropped: told.dropped }),
        First::Tls => Err(speaks_tls(target)),
        First::Http1 => Err(Failure::new(format!("{} speaks HTTP/1.1, and gRPC needs HTTP/2", target.text))),
        First::Other => Err(Failure::new(format!("{} speaks neither HTTP/2 nor TLS: no gRPC server", target.text))),
        First::Closed | First::Failed(_) if !with_tls && probe_tls(target, &name).await => Err(speaks_tls(target)),
        First::Closed => {
            Err(Failure::new(format!("{} closes the connection at once: no gRPC server, or no place", target.text)))
        }
        First::Failed(error) => Err(tls_failure(target, &error).unwrap_or_else(|| failed(&error))),
    }
}

/// Whether TLS is spoken: unless an argument says otherwise, as with grpcurl.
fn with_tls(target: &Target, server: &ServerArgs) -> Result<bool, Failure> {
    if server.alts {
        return Err(Failure::usage("-alts is not there: use TLS, or -plaintext inside a trusted network"));
    }
    match target.tls {
        Some(true) if server.plaintext => Err(Failure::usage(format!(
            "{} says TLS, and -plaintext says none: leave out one, or write http://",
            target.text
        ))),
        Some(false) if server.insecure || server.cacert.is_some() || server.cert.is_some() => Err(Failure::usage(
            format!("{} is without TLS: write https:// for -insecure, -cacert and -cert", target.text),
        )),
        Some(tls) => Ok(tls),
        None => Ok(!server.plaintext),
    }
}

/// What the server is called.
fn name(target: &Target, server: &ServerArgs, with_tls: bool) -> Result<String, Failure> {
    let servername = server.servername.as_ref().filter(|_| with_tls);
    match (servername, &server.authority) {
        (Some(one), Some(other)) if one != other => {
            Err(Failure::usage("-servername and -authority differ: leave out -servername"))
        }
        (Some(name), _) | (None, Some(name)) => Ok(name.clone()),
        (None, None) => Ok(authority(target)),
    }
}

/// Opens the byte stream under everything. Whoever calls waits for `limit` and no longer.
async fn open(target: &Target, limit: Duration) -> Result<BoxIo, Failure> {
    match &target.place {
        #[cfg(not(unix))]
        Place::Unix(_) => Err(Failure::usage("Unix sockets are for Unix: write HOST:PORT")),
        #[cfg(unix)]
        Place::Unix(path) => {
            let opened = UnixStream::connect(path).await;
            Ok(Box::new(opened.map_err(|error| unreachable_at(target, &error))?))
        }
        Place::Tcp(host, port) => {
            let found = lookup_host((host.as_str(), *port)).await;
            let found = found.map_err(|error| {
                Failure::because(format!("the name {host} cannot be resolved: is it right?"), &error)
            })?;
            let stream = connect_to_one(found, limit).await.map_err(|error| unreachable_at(target, &error))?;
            let _ = stream.set_nodelay(true); // it would be slower, not wrong
            Ok(Box::new(stream))
        }
    }
}

/// Connects to the first of a name's addresses that answers. Each has its share of the time, and the last one all that is
/// left: one where everything is dropped leaves some for the others.
///
/// # Errors
/// Why the last of them cannot be reached.
pub(crate) async fn connect_to_one(
    addresses: impl Iterator<Item = SocketAddr>,
    limit: Duration,
) -> io::Result<TcpStream> {
    let addresses: Vec<_> = addresses.collect();
    let share = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (after, address) in (0..addresses.len()).rev().zip(addresses) {
        let connecting = TcpStream::connect(address);
        let connected = match after {
            0 => connecting.await,
            _ => timeout(share, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn unreachable_at(target: &Target, error: &io::Error) -> Failure {
    let advice = match error.kind() {
        io::ErrorKind::ConnectionRefused => ": is the server running, and the address right?",
        io::ErrorKind::NotFound if matches!(target.place, Place::Unix(_)) => ": there is no such socket",
        io::ErrorKind::PermissionDenied => ": may this user write to the socket?",
        _ => "",
    };
    Failure::new(format!("cannot connect to {}: {error}{advice}", target.text))
}

async fn shake_hands(target: &Target, server: &ServerArgs, name: &str) -> Result<impl Io + use<>, Failure> {
    let server_name = tls::server_name(name)?;
    let config = tls::config(server)?;
    if server.insecure {
        say("dialback: warning: -insecure: the server's certificate is not checked\n").await;
    }
    let stream = open(target, server.connect_timeout).await?;
    match TlsConnector::from(Arc::new(config)).connect(server_name, stream).await {
        Ok(stream) => Ok(stream),
        Err(error) => {
            let is_tls = matches!(rustls_error(&error), Some(error) if proves_tls(error));
            if !is_tls && probe_plaintext(target).await {
                let remedy = if target.tls.is_some() { "write http:// for https://" } else { "pass -plaintext" };
                return Err(Failure::new(format!("{} speaks no TLS: {remedy}", target.text)));
            }
            let text = format!("no TLS with {}", target.text);
            Err(tls_failure(target, &error).unwrap_or_else(|| Failure::because(text, &error)))
        }
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether an error of a handshake shows that the other side speaks TLS.
fn proves_tls(error: &rustls::Error) -> bool {
    !matches!(error, rustls::Error::InvalidMessage(_))
}

fn tls_failure(target: &Target, error: &io::Error) -> Option<Failure> {
    let error = rustls_error(error)?;
    let advice = tls::advice(error)?;
    Some(Failure::new(format!("no TLS with {}: {}: {advice}", target.text, tls::words(error))))
}

fn speaks_tls(target: &Target) -> Failure {
    let remedy = if target.tls == Some(false) { "write https:// for http://" } else { "leave out -plaintext" };
    Failure::new(format!("{} speaks TLS: {remedy}", target.text))
}

/// Whether the server speaks TLS, found out by a handshake on a connection of its own.
async fn probe_tls(target: &Target, name: &str) -> bool {
    let attempt = async {
        let config = tls::probe()?;
        let stream = open(target, PROBE).await.ok()?;
        let shaken = TlsConnector::from(Arc::new(config)).connect(tls::server_name(name).ok()?, stream).await;
        Some(match shaken {
            Ok(_) => true,
            Err(error) => rustls_error(&error).is_some_and(proves_tls),
        })
    };
    matches!(timeout(PROBE, attempt).await, Ok(Some(true)))
}

/// Whether the server speaks HTTP/2 without TLS, found out on a connection of its own.
async fn probe_plaintext(target: &Target) -> bool {
    // The client's part of the preface, with an empty SETTINGS frame (RFC 9113 §3.4).
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let attempt = async {
        let mut stream = open(target, PROBE).await.ok()?;
        stream.write_all(PREFACE).await.ok()?;
        let mut head = [0; 4];
        stream.read_exact(&mut head).await.ok()?;
        Some(head[3] == 4 || head.starts_with(b"HTTP"))
    };
    matches!(timeout(PROBE, attempt).await, Ok(Some(true)))
}

/// A connector that has its connection already. A second one is not dialled: the command is over when the first is lost.
struct Once(Option<TokioIo<Sniffed<BoxIo>>>);

impl tower_service::Service<Uri> for Once {
    type Response = TokioIo<Sniffed<BoxIo>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let lost = || io::Error::new(io::ErrorKind::NotConnected, "the connection is lost");
        ready(self.0.take().ok_or_else(lost))
    }
}
