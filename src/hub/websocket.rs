//! Agents that come by WebSocket: at the hub's own listener, or in a server of the user's.

use std::convert::Infallible;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use http::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use super::Hub;
use super::accept::Opening;
use crate::carrier::websocket::{PROTOCOL, WebSocket};
use crate::carrier::{Carried, CarrierKind, Stream};
use crate::ssh::Sources;
use crate::tls::Tls;

/// What reverse proxies say of where a request comes from.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// What the hub's own WebSocket listener goes by.
pub(super) struct Front {
    pub(super) path: String,
    pub(super) tls: Option<Tls>,
    /// Proxies whose word on where a connection comes from is taken.
    pub(super) trusted: Option<Sources>,
}

impl Front {
    fn trusts(&self, peer: Option<SocketAddr>) -> bool {
        self.trusted.as_ref().is_some_and(|trusted| trusted.allows(peer.map(|peer| peer.ip())))
    }

    /// Where a request comes from that a trusted proxy passed on: each proxy adds where it got it from at the end. None if
    /// that is a trusted proxy itself. `Err` if it makes no sense.
    fn forwarded_for(&self, headers: &HeaderMap) -> Result<Option<SocketAddr>, &'static str> {
        // A client may have put any bytes before.
        let lists: Vec<_> =
            headers.get_all(FORWARDED_FOR).iter().map(|list| String::from_utf8_lossy(list.as_bytes())).collect();
        for text in lists.iter().flat_map(|list| list.split(',')).map(str::trim).rev() {
            let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
            let address = text.parse().ok().or_else(in_brackets).map(|ip: IpAddr| SocketAddr::new(ip, 0));
            match address.or_else(|| text.parse().ok()) {
                Some(address) if self.trusts(Some(address)) => {}
                Some(address) => return Ok(Some(address)),
                None => return Err("the last of X-Forwarded-For is no address"),
            }
        }
        Ok(None)
    }
}

impl Opening for Front {
    // TLS, at most two; the request; and what SSH takes.
    const ROUND_TRIPS: u32 = 4;

    /// A proxy's connections are not its own.
    fn source(&self, carried: &Carried) -> Option<IpAddr> {
        carried.peer.filter(|_| !self.trusts(carried.peer)).map(|peer| peer.ip())
    }

    async fn open(&self, carried: Carried) -> Result<Carried, String> {
        let Carried { stream, local, peer, .. } = carried;
        let stream = match &self.tls {
            None => stream,
            Some(tls) => Box::new(TlsAcceptor::from(tls.current()).accept(stream).await.map_err(text)?),
        };
        let through_proxy = self.trusts(peer);
        let upgrade = Mutex::new(None);
        let service = service_fn(async |mut request: Request<hyper::body::Incoming>| {
            let response = if request.uri().path() == self.path {
                let forwarded = if through_proxy { self.forwarded_for(request.headers()) } else { Ok(None) };
                match forwarded {
                    Err(why) => refusal(StatusCode::BAD_REQUEST, why),
                    Ok(forwarded) => {
                        let (response, upgraded) = answer(&mut request);
                        let upgraded = upgraded.map(|upgrade| (upgrade, forwarded.or(peer)));
                        *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = upgraded;
                        response
                    }
                }
            } else {
                refusal(StatusCode::NOT_FOUND, "there is nothing here: a hub's WebSocket has another path")
            };
            Ok::<_, Infallible>(response)
        });
        let mut http = http1::Builder::new();
        // The deadline is the login's.
        let http = http.max_buf_size(MAX_HEAD).header_read_timeout(None);
        http.serve_connection(TokioIo::new(stream), service).with_upgrades().await.map_err(text)?;
        let upgrade = upgrade.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (upgrade, peer) = upgrade.ok_or("it opened no WebSocket")?;
        let upgraded = upgrade.await.map_err(text)?;
        // The stream as it was, without what hyper wraps around it.
        let parts = upgraded.downcast::<TokioIo<Box<dyn Stream>>>().map_err(|_| "the stream is another")?;
        let socket = WebSocket::of_hub(parts.io.into_inner(), parts.read_buf.to_vec()).await;
        Ok(Carried { stream: Box::new(socket), kind: CarrierKind::WebSocket, local, peer })
    }
}

fn text(error: impl Display) -> String {
    error.to_string().escape_debug().to_string()
}

fn refusal(status: StatusCode, why: &str) -> Response<String> {
    let mut response = Response::new(format!("{why}\n"));
    *response.status_mut() = status;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The answer to a request to open a WebSocket, and what the connection becomes once it has been sent.
fn answer<B>(request: &mut Request<B>) -> (Response<String>, Option<OnUpgrade>) {
    let refused = |status, why: &str| (refusal(status, why), None);
    let wanted =
        request.headers().get(UPGRADE).is_some_and(|wanted| wanted.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if request.method() != Method::GET || !wanted {
        let (mut response, none) = refused(
            StatusCode::UPGRADE_REQUIRED,
            "this is where agents of a dialback hub connect by WebSocket; nothing else is here",
        );
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        return (response, none);
    }
    if request.headers().get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version != "13") {
        let (mut response, none) = refused(StatusCode::UPGRADE_REQUIRED, "the version of WebSocket here is 13");
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return (response, none);
    }
    let offered: Vec<_> = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).iter().collect();
    let is_ours =
        |list: &&HeaderValue| list.to_str().is_ok_and(|list| list.split(',').any(|one| one.trim() == PROTOCOL));
    let named = offered.iter().any(is_ours);
    if !offered.is_empty() && !named {
        return refused(StatusCode::BAD_REQUEST, "the WebSocket protocol here is dialback-ssh");
    }
    // Looks at the rest.
    match create_response_with_body(request, String::new) {
        Err(error) => refused(StatusCode::BAD_REQUEST, &format!("no WebSocket: {error}")),
        Ok(mut response) => {
            if named {
                response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
            }
            (response, Some(hyper::upgrade::on(request)))
        }
    }
}

impl Hub {
    /// Takes in an agent that opens a WebSocket in an HTTP/1.1 server of yours, on hyper or what is made of it: send back
    /// what this returns, and the agent is the hub's as soon as the connection has changed. It has to authenticate like
    /// every other. Anything but a request to open a WebSocket is answered with an error in plain text.
    ///
    /// `peer` is where the agent comes from, as in [`accept_stream`](Hub::accept_stream): behind a proxy of yours what it
    /// says of that, and never what a client can say of itself.
    ///
    /// ```
    /// # use dialback::Hub;
    /// # use std::net::{IpAddr, SocketAddr};
    /// // A handler of axum's, for one; `B` is its body.
    /// async fn tunnel<B>(hub: Hub, peer: SocketAddr, mut request: http::Request<B>) -> http::Response<String> {
    ///     hub.accept_websocket(&mut request, Some(peer))
    /// }
    /// ```
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn accept_websocket<B>(&self, request: &mut Request<B>, peer: Option<SocketAddr>) -> Response<String> {
        let (response, upgrade) = answer(request);
        if let Some(upgrade) = upgrade {
            let (streams, patience) = (self.inner.streams.clone(), self.inner.reception.patience());
            tokio::spawn(async move {
                let taken = async {
                    let upgraded: Upgraded = upgrade.await.map_err(text)?;
                    let socket = WebSocket::of_hub(TokioIo::new(upgraded), Vec::new()).await;
                    let sent = streams.send(Carried::new(CarrierKind::WebSocket, socket, peer)).await;
                    sent.map_err(|_| "the hub has shut down".to_owned())
                };
                let taken = timeout(patience, taken).await.unwrap_or_else(|_| Err("it took too long".into()));
                if let Err(error) = taken {
                    tracing::debug!(?peer, error, "no WebSocket");
                }
            });
        }
        response
    }

    /// Accepts agents by TLS, at `wss://ADDRESS:PORT/path` or `grpcs://ADDRESS:PORT`, with certificates and a key in PEM files, which
    /// are read again when they change. Otherwise as [`listen`](Hub::listen).
    ///
    /// # Errors
    /// [`BindError`](crate::BindError): the files or the address cannot be used.
    pub async fn listen_tls(
        &self,
        address: &str,
        certificates: impl Into<std::path::PathBuf>,
        key: impl Into<std::path::PathBuf>,
    ) -> Result<String, crate::BindError> {
        let files = crate::tls::TlsFiles {
            certificates: certificates.into(),
            key: key.into(),
            client_ca: None,
            protocols: if address.starts_with("grpcs:") { &["h2"] } else { &["http/1.1"] },
        };
        let tls = Tls::open(files)?;
        self.listen_at(address, Some(tls)).await
    }
}
