//! Agents that come by tunnels of `grpctunnel`, at the hub's own listener.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
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
        let service = Noting(TunnelService::builder().reverse(self).build());
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

/// Asks silent peers whether they live as often as the hub asks those of SSH.
fn server(config: &TunnelConfig) -> Server {
    let interval = config.keepalive_interval;
    let patience = interval.saturating_mul(u32::try_from(config.keepalive_max).unwrap_or(u32::MAX));
    tune_server(Server::builder()).http2_keepalive_interval(Some(interval)).http2_keepalive_timeout(Some(patience))
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
        let mut progress = login.subscribe();
        login.send_replace(Progress::Begun);
        let (_stays, sent_away) = oneshot::channel();
        let (has, has_gone) = oneshot::channel::<Infallible>();
        let arrival = Arrival { local, peer, login };
        let visitor = Visitor { stream, arrival, sent_away, _has: has };
        let after = door.config.login_timeout;
        let admitted = async {
            let _ = self.visitors.send(visitor).await; // the server lives as long as this task
            progress.wait_for(|progress| *progress == Progress::Done).await.is_ok()
        };
        match timeout(after, admitted).await {
            Ok(true) => _ = has_gone.await,
            Ok(false) => return Err(Turned::Left { error: "it opened no tunnel".into() }),
            Err(_) => return Err(Turned::TimedOut { after }),
        }
        Ok(())
    }
}

/// What calls on a connection know of it.
#[derive(Clone)]
struct Arrival {
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    login: watch::Sender<Progress>,
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

// Whoever is sent away learns it from `poll_read`, which HTTP/2 never stops to poll.
impl AsyncWrite for Visitor {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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

/// The service, which tells whoever keeps an eye on a connection that a tunnel was opened on it.
#[derive(Clone)]
struct Noting(TunnelService);

impl NamedService for Noting {
    const NAME: &'static str = TunnelService::NAME;
}

impl Service<http::Request<Body>> for Noting {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = <TunnelService as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let arrival = request.extensions_mut().remove::<Arrival>();
        if let Some(Arrival { local, peer, .. }) = arrival {
            request.extensions_mut().insert(TcpConnectInfo { local_addr: local, remote_addr: peer });
        }
        let answered = self.0.call(request);
        Box::pin(async move {
            let response = answered.await?;
            // A refusal has its status in the head.
            let opened = !response.headers().contains_key(Status::GRPC_STATUS);
            if let Some(arrival) = arrival.filter(|_| opened) {
                arrival.login.send_replace(Progress::Done);
            }
            Ok(response)
        })
    }
}
