//! A way out through a proxy: HTTP CONNECT (RFC 9110 §9.3.6) or SOCKS5 (RFC 1928, 1929).
//!
//! The hub's name is the proxy's to resolve: where only a proxy gets out, the names outside are often not known inside.

use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio_socks::tcp::Socks5Stream;

use super::{Address, Carried, DialFailure, HostPort, Stream, tcp};

/// The longest head of a proxy's answer, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// What names an agent to a proxy.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("dialback/", env!("CARGO_PKG_VERSION")));

/// How an agent gets out.
#[derive(Debug, Clone, Default)]
pub(crate) enum Egress {
    /// As the environment says at each dial.
    #[default]
    Environment,
    Direct,
    Through(Proxy),
    /// By way of a program.
    #[cfg(unix)]
    Command(String),
}

/// What a dial is for, which decides between the variables of the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `ALL_PROXY`.
    Ssh,
    /// `HTTP_PROXY`, else `ALL_PROXY`.
    #[cfg(feature = "websocket")]
    Http,
    /// `HTTPS_PROXY`, else `ALL_PROXY`.
    #[cfg(feature = "websocket")]
    Https,
}

/// A proxy, and what it wants to know. Shown without passwords.
#[derive(Clone)]
pub(crate) struct Proxy(Intercept);

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (uri, port) = (self.0.uri(), self.0.uri().port_u16());
        let port = port.map_or(String::new(), |port| format!(":{port}"));
        // Never the authority as a whole: a password with an unescaped `@` leaves a part of itself in there.
        write!(f, "{}://{}{port}", self.scheme(), uri.host().unwrap_or_default())
    }
}

/// Why a proxy did not connect.
#[derive(Debug)]
pub(crate) struct ProxyFailure {
    pub(crate) proxy: String,
    pub(crate) why: String,
    pub(crate) is_transient: bool,
}

impl Proxy {
    /// `Err` tells how to write one.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const HOW: &str =
            "write http://proxy:3128, https://…, socks5://…, with USER:PASSWORD@ before the name if it asks for it";
        let found = intercept(&Matcher::builder().all(text).build(), "http", "hub.invalid");
        let proxy = found.map(Self).ok_or(HOW)?;
        if proxy.at().is_none() { Err(HOW) } else { Ok(proxy) }
    }

    fn scheme(&self) -> &str {
        self.0.uri().scheme_str().unwrap_or_default()
    }

    /// Where it is; none if it is of a kind that is not known here.
    fn at(&self) -> Option<HostPort> {
        let uri = self.0.uri();
        let customary = match self.scheme() {
            "http" => 80,
            #[cfg(feature = "websocket")]
            "https" => 443,
            "socks5" | "socks5h" => 1080,
            _ => return None,
        };
        let (host, authority) = (uri.host()?, uri.authority().filter(|at| !at.as_str().contains('@'))?.as_str());
        // An http::Uri takes any text for a port.
        let port = if authority == host { customary } else { uri.port_u16()? };
        Some(HostPort { host: host.trim_start_matches('[').trim_end_matches(']').to_owned(), port })
    }

    fn failed(&self, why: impl Into<String>, is_transient: bool) -> DialFailure {
        DialFailure::Proxy(ProxyFailure { proxy: self.to_string(), why: why.into(), is_transient })
    }
}

fn intercept(matcher: &Matcher, scheme: &str, host: &str) -> Option<Intercept> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    matcher.intercept(&format!("{scheme}://{host}/").parse().ok()?)
}

impl Egress {
    /// The proxy on the way to a hub, if there is one.
    pub(crate) fn proxy_for(&self, hub: &Address) -> Option<Proxy> {
        match hub {
            Address::Tcp(to) => self.proxy_to(&to.host, Purpose::Ssh),
            #[cfg(unix)]
            Address::Unix(_) => None,
            #[cfg(feature = "websocket")]
            Address::WebSocket(url) => {
                self.proxy_to(&url.at.host, if url.tls { Purpose::Https } else { Purpose::Http })
            }
        }
    }

    fn proxy_to(&self, host: &str, purpose: Purpose) -> Option<Proxy> {
        let found = match (self, purpose) {
            (Self::Direct, _) => None,
            #[cfg(unix)]
            (Self::Command(_), _) => None,
            (Self::Through(proxy), _) => return Some(proxy.clone()),
            (Self::Environment, Purpose::Ssh) => {
                let set = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
                let of = |names: [&str; 2]| names.iter().find_map(set).unwrap_or_default();
                let matcher = Matcher::builder().all(of(["ALL_PROXY", "all_proxy"])).no(of(["NO_PROXY", "no_proxy"]));
                intercept(&matcher.build(), "http", host)
            }
            #[cfg(feature = "websocket")]
            (Self::Environment, Purpose::Http) => intercept(&Matcher::from_env(), "http", host),
            #[cfg(feature = "websocket")]
            (Self::Environment, Purpose::Https) => intercept(&Matcher::from_env(), "https", host),
        };
        found.map(Proxy)
    }

    /// Connects to a host, through a proxy if there is one for it.
    pub(super) async fn dial(
        &self,
        to: &HostPort,
        purpose: Purpose,
        #[cfg(feature = "websocket")] tls_roots: Option<&std::path::Path>,
        timeout: Duration,
    ) -> Result<Carried, DialFailure> {
        #[cfg(unix)]
        if let Self::Command(command) = self {
            return super::command::start(command, to);
        }
        let Some(proxy) = self.proxy_to(&to.host, purpose) else { return tcp::dial(to, timeout).await };
        let dialled = async {
            let at = proxy.at().ok_or_else(|| proxy.failed("it is not written as a proxy's URL", false))?;
            let unreachable = |error: &dyn fmt::Display| proxy.failed(format!("it cannot be reached: {error}"), true);
            let Carried { stream, kind, local, .. } =
                tcp::dial(&at, timeout).await.map_err(|failure| match failure {
                    DialFailure::Resolve { source, .. } | DialFailure::Connect(source) => unreachable(&source),
                    other => other,
                })?;
            let stream = match proxy.scheme() {
                #[cfg(feature = "websocket")]
                "https" => {
                    let stream = super::websocket::with_tls(stream, &at.host, tls_roots).await;
                    let stream = stream.map_err(|failure| match failure {
                        DialFailure::Tls(error) => proxy.failed(format!("TLS with it failed: {error}"), false),
                        DialFailure::Connect(error) => proxy.failed(format!("it broke off: {error}"), true),
                        other => other,
                    })?;
                    connect(&proxy, stream, to).await?
                }
                "http" => connect(&proxy, stream, to).await?,
                _ => socks(&proxy, stream, to).await?,
            };
            // What the socket leads to is the proxy, and where that leads is its own affair.
            Ok(Carried { stream, kind, local, peer: None })
        };
        match tokio::time::timeout(timeout, dialled).await {
            Ok(dialled) => dialled,
            Err(_) => Err(proxy.failed("it did not answer in time", true)),
        }
    }
}

async fn connect(proxy: &Proxy, stream: Box<dyn Stream>, to: &HostPort) -> Result<Box<dyn Stream>, DialFailure> {
    let broken = |error: hyper::Error| proxy.failed(format!("it broke off: {error}"), true);
    let authority =
        if to.host.contains(':') { format!("[{}]:{}", to.host, to.port) } else { format!("{}:{}", to.host, to.port) };
    let mut request = Request::builder().method(Method::CONNECT).uri(&authority);
    if let Some(headers) = request.headers_mut() {
        if let Ok(host) = authority.parse() {
            headers.insert(HOST, host);
        }
        headers.insert(USER_AGENT, AGENT);
        if let Some(secret) = proxy.0.basic_auth() {
            headers.insert(PROXY_AUTHORIZATION, secret.clone());
        }
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| proxy.failed(error.to_string(), false))?;
    let mut http = http1::Builder::new();
    let (mut sender, connection) = http.max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut connection = std::pin::pin!(connection.with_upgrades());
    let mut is_over = false;
    let mut asked = std::pin::pin!(sender.send_request(request));
    // The connection moves nothing unless it is polled, and may end before the answer is looked at.
    let response = std::future::poll_fn(|cx| {
        if !is_over {
            is_over = connection.as_mut().poll(cx).is_ready();
        }
        asked.as_mut().poll(cx)
    });
    let response = response.await.map_err(broken)?;
    let status = response.status();
    if !status.is_success() {
        return Err(refused(proxy, status));
    }
    // Servers of SSH speak first: what came behind the answer is in here.
    let mut upgrade = std::pin::pin!(hyper::upgrade::on(response));
    let upgraded = std::future::poll_fn(|cx| {
        if !is_over {
            is_over = connection.as_mut().poll(cx).is_ready();
        }
        upgrade.as_mut().poll(cx)
    });
    Ok(Box::new(TokioIo::new(upgraded.await.map_err(broken)?)))
}

fn refused(proxy: &Proxy, status: StatusCode) -> DialFailure {
    let (why, is_transient) = match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED => match proxy.0.basic_auth() {
            Some(_) => (format!("it does not take this user and password ({status})"), false),
            None => {
                let how = "write http://USER:PASSWORD@proxy:port";
                (format!("it asks for a user and a password ({status}): {how}"), false)
            }
        },
        StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED => {
            (format!("it does not allow this ({status}): many proxies connect to port 443 alone"), false)
        }
        _ => (format!("it answered {status}"), status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS),
    };
    proxy.failed(why, is_transient)
}

async fn socks(proxy: &Proxy, stream: Box<dyn Stream>, to: &HostPort) -> Result<Box<dyn Stream>, DialFailure> {
    use tokio_socks::Error;
    let target = (to.host.as_str(), to.port);
    let connected = match proxy.0.raw_auth() {
        Some((user, password)) => Socks5Stream::connect_with_password_and_socket(stream, target, user, password).await,
        None => Socks5Stream::connect_with_socket(stream, target).await,
    };
    connected.map(|stream| Box::new(stream.into_inner()) as Box<dyn Stream>).map_err(|error| {
        let is_transient = matches!(
            error,
            Error::Io(_)
                | Error::GeneralSocksServerFailure
                | Error::NetworkUnreachable
                | Error::HostUnreachable
                | Error::ConnectionRefused
                | Error::TtlExpired
        );
        let why = match error {
            Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => "it broke off".into(),
            Error::NoAcceptableAuthMethods if proxy.0.raw_auth().is_none() => {
                "it asks for a user and a password: write socks5://USER:PASSWORD@proxy:port".into()
            }
            error => error.to_string().escape_debug().to_string(),
        };
        proxy.failed(why, is_transient)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_named_by_url() {
        let at = |text: &str| Proxy::parse(text).map(|proxy| (proxy.to_string(), proxy.at().unwrap().port));
        assert_eq!(at("http://proxy"), Ok(("http://proxy".into(), 80)));
        assert_eq!(at("proxy:3128"), Ok(("http://proxy:3128".into(), 3128)));
        assert_eq!(at("socks5://me:secret@[::1]:9"), Ok(("socks5://[::1]:9".into(), 9)));
        assert_eq!(at("socks5h://proxy"), Ok(("socks5h://proxy".into(), 1080)));
        assert_eq!(at("https://proxy").is_ok(), cfg!(feature = "websocket"));
        // The second `@` is not escaped: neither is it taken for something else, nor shown.
        assert!(Proxy::parse("http://me:se@cret@proxy:1").is_err());
        for bad in ["", "ftp://proxy", "socks4://proxy", "http://", "http://proxy:x", "a b"] {
            assert!(Proxy::parse(bad).is_err(), "{bad}");
        }
        let secret = Proxy::parse("http://me:secret@proxy").unwrap();
        assert!(secret.0.basic_auth().is_some() && !format!("{secret:?}").contains("secret"));
    }
}
