//! Agents that come by tunnels of `grpctunnel`, at the hub's own listener.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body as HttpBody, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tower_service::Service;

use super::Hub;
use super::accept::{self, Listener, Opening};
use crate::carrier::{Carried, HostPort};
use crate::grpctunnel::TunnelService;
use crate::ssh::{Door, Progress, TunnelConfig, Turned};
#[cfg(feature = "websocket")]
use crate::tls::Tls;
use crate::tuning::tune_server;

/// Connections that the server has not taken yet.
const QUEUE: usize = 16;

/// Whether `grpc://ADDRESS:PORT` or `grpcs://ADDRESS:PORT` is meant, and which; `Err` tells how to write it.
pub(super) fn parse(address: &str) -> Option<Result<(bool, HostPort), &'static str>> {
    let (secure, rest) = match address.split_once("://")? {
        ("grpc", rest) => (false, rest),
        ("grpcs", rest) => (true, rest),
        _ => return None,
    };
    let at = HostPort::parse(rest.strip_suffix('/').unwrap_or(rest));
    Some(at.map(|at| (secure, at)).ok_or("write grpc://ADDRESS:PORT or grpcs://ADDRESS:PORT"))
}

impl Hub {
    pub(super) fn listen_for_calls(&self, listener: Listener, #[cfg(feature = "websocket")] tls: Option<Tls>) {
        let inner = &self.inner;
        let service = Noting {
            tunnels: TunnelService::builder().reverse(self).build(),
            max_refusals: inner.reception.max_auth_attempts(),
            rejection_time: inner.reception.rejection_time(),
        };
        let (visitors, arrivals) = mpsc::channel(QUEUE);
        let serving = server(inner.reception.config()).add_service(service).serve_with_incoming(Arrivals(arrivals));
        let front = Front {
            #[cfg(feature = "websocket")]
            tls: tls.clone(),
            visitors,
        };
        let accepting = accept::run(listener, front, inner.reception.clone(), inner.stage.subscribe());
        inner.accept(async move {
            let following = async {
                #[cfg(feature = "websocket")]
                if let Some(tls) = tls {
                    tls.follow().await;
                }
                std::future::pending::<()>().await
            };
            let serving = async {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "no more tunnels of gRPC are taken");
                }
                std::future::pending::<()>().await
            };
            tokio::select! {
                () = accepting => {}
                () = following => {}
                () = serving => {}
            }
        });
    }
}

/// What one connection may have sent that was not read, in bytes: the calls in its tunnels have windows of their own.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Tunnels on one connection, and strangers' attempts at once.
const STREAMS: u32 = 64;

/// How long the last refusal may be on its way.
const GOODBYE: Duration = Duration::from_secs(1);

/// hyper adds them to the time.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Asks silent peers whether they live as often as the hub asks those of SSH.
fn server(config: &TunnelConfig) -> Server {
    let interval = config.keepalive_interval.min(LONGEST);
    let patience = interval.saturating_mul(u32::try_from(config.keepalive_max).unwrap_or(u32::MAX)).min(LONGEST);
    tune_server(Server::builder())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(interval))
        .http2_keepalive_timeout(Some(patience))
}

/// Hands connections over to the server, and keeps an eye on them.
struct Front {
    #[cfg(feature = "websocket")]
    tls: Option<Tls>,
    visitors: mpsc::Sender<Visitor>,
}

impl Opening for Front {
    // TLS, at most two; and HTTP/2, whose client speaks first.
    const ROUND_TRIPS: u32 = 3;

    fn source(&self, carried: &Carried) -> Option<IpAddr> {
        carried.peer.map(|peer| peer.ip())
    }

    async fn open(&self, carried: Carried) -> Result<Carried, String> {
        #[cfg(feature = "websocket")]
        if let Some(tls) = &self.tls {
            let Carried { stream, kind, local, peer } = carried;
            let secured = tokio_rustls::TlsAcceptor::from(tls.current()).accept(stream).await;
            let secured = secured.map_err(|error| error.to_string().escape_debug().to_string())?;
            return Ok(Carried { stream: Box::new(secured), kind, local, peer });
        }
        Ok(carried)
    }

    async fn serve(
        self: Arc<Self>,
        carried: Carried,
        door: Arc<Door>,
        login: watch::Sender<Progress>,
    ) -> Result<(), Turned> {
        let Carried { stream, local, peer, .. } = carried;
        login.send_replace(Progress::Begun);
        let (_stays, sent_away) = oneshot::channel();
        let (has, has_gone) = oneshot::channel::<Infallible>();
        let seen = watch::Sender::new(Seen::default());
        let visitor = Visitor { stream, arrival: Arrival { local, peer, seen: seen.clone() }, sent_away, _has: has };
        let _ = self.visitors.send(visitor).await; // the server lives as long as this task
        tokio::select! {
            turned = stays(seen.subscribe(), &door, &login) => turned,
            // It is its own affair when it leaves.
            _ = has_gone => match *login.borrow() {
                Progress::Done => Ok(()),
                _ => Err(Turned::Left { error: "it opened no tunnel".into() }),
            },
        }
    }
}

/// Waits until somebody has stayed for as long as a login may take without a tunnel, or was refused too often.
async fn stays(mut seen: watch::Receiver<Seen>, door: &Door, login: &watch::Sender<Progress>) -> Result<(), Turned> {
    let after = door.config.login_timeout;
    let tires = |seen: &Seen| seen.refusals >= door.max_auth_attempts;
    loop {
        let opened = timeout(after, seen.wait_for(|seen| seen.tunnels > 0 || tires(seen))).await;
        // The sender is the connection's, and lives as long as this.
        let opened = opened.map(|seen| seen.is_ok_and(|seen| !tires(&seen)));
        let turned = match opened {
            Ok(true) => None,
            Ok(false) => {
                // The refusal is still to be heard.
                tokio::time::sleep(door.russh.auth_rejection_time + GOODBYE).await;
                Some(Turned::Left { error: "it was refused too often".into() })
            }
            Err(_) => Some(Turned::TimedOut { after }),
        };
        if let Some(turned) = turned {
            // Who was let in once has nothing to explain.
            return if *login.borrow() == Progress::Done { Ok(()) } else { Err(turned) };
        }
        login.send_if_modified(|progress| std::mem::replace(progress, Progress::Done) != Progress::Done);
        let _ = seen.wait_for(|seen| seen.tunnels == 0 || tires(seen)).await; // the same
    }
}

/// What has come of a connection.
#[derive(Default)]
struct Seen {
    /// Tunnels that stand.
    tunnels: usize,
    /// Tunnels that were refused.
    refusals: usize,
}

/// What calls on a connection know of it.
#[derive(Clone)]
struct Arrival {
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    seen: watch::Sender<Seen>,
}

/// A connection, until it ends or whoever keeps an eye on it has gone.
struct Visitor {
    stream: Box<dyn crate::carrier::Stream>,
    arrival: Arrival,
    sent_away: oneshot::Receiver<Infallible>,
    _has: oneshot::Sender<Infallible>,
}

impl Visitor {
    fn stays(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match Pin::new(&mut self.sent_away).poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(_) => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

impl Connected for Visitor {
    type ConnectInfo = Arrival;

    fn connect_info(&self) -> Arrival {
        self.arrival.clone()
    }
}

impl AsyncRead for Visitor {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stays(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

// Whoever is sent away learns it from whichever is polled: HTTP/2 reads nothing while it cannot write.
impl AsyncWrite for Visitor {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stays(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stays(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stays(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stays(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

struct Arrivals(mpsc::Receiver<Visitor>);

impl Stream for Arrivals {
    type Item = io::Result<Visitor>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Visitor>>> {
        self.0.poll_recv(cx).map(|visitor| visitor.map(Ok))
    }
}

/// The service, which tells whoever keeps an eye on a connection what becomes of the tunnels on it.
#[derive(Clone)]
struct Noting {
    tunnels: TunnelService,
    /// How many refusals a connection gets.
    max_refusals: usize,
    /// How long a refusal is held back.
    rejection_time: Duration,
}

impl NamedService for Noting {
    const NAME: &'static str = TunnelService::NAME;
}

impl Service<http::Request<Body>> for Noting {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = <TunnelService as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.tunnels.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let arrival = request.extensions_mut().remove::<Arrival>();
        let seen = arrival.map(|Arrival { local, peer, seen }| {
            request.extensions_mut().insert(TcpConnectInfo { local_addr: local, remote_addr: peer });
            seen
        });
        if seen.as_ref().is_some_and(|seen| seen.borrow().refusals >= self.max_refusals) {
            return Box::pin(async { Ok(Status::resource_exhausted("refused too often").into_http()) });
        }
        let (answered, rejection_time) = (self.tunnels.call(request), self.rejection_time);
        Box::pin(async move {
            let response = answered.await?;
            let Some(seen) = seen else { return Ok(response) };
            // A refusal has its status in the head.
            if response.headers().contains_key(Status::GRPC_STATUS) {
                seen.send_modify(|seen| seen.refusals += 1);
                tokio::time::sleep(rejection_time).await;
                return Ok(response);
            }
            let standing = Standing::new(seen);
            Ok(response.map(|body| Body::new(Held { body, _standing: standing })))
        })
    }
}

/// One tunnel that stands on a connection.
struct Standing(watch::Sender<Seen>);

impl Standing {
    fn new(seen: watch::Sender<Seen>) -> Self {
        seen.send_modify(|seen| {
            seen.tunnels += 1;
            seen.refusals = 0;
        });
        Self(seen)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.send_modify(|seen| seen.tunnels -= 1);
    }
}

/// What a tunnel sends, as long as it stands.
struct Held {
    body: Body,
    _standing: Standing,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
