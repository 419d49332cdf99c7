//! The admin address: HTTP/1.1 for whoever watches over the daemon.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::failure::Failure;

/// Connections at once. When there are more, the oldest is closed that has asked nothing yet, so that nobody can keep others
/// from asking.
const MAX_CONNECTIONS: usize = 32;

/// How long a request may take to come, and how long a connection may last.
const HEAD: Duration = Duration::from_secs(5);
const LIFE: Duration = Duration::from_secs(60);

/// Bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;

/// How long to rest after the system refused a connection.
const REST: Duration = Duration::from_millis(100);

/// Whether the daemon does its work; `Err` says what is missing.
pub(crate) type Readiness = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<String, String>> + Send>> + Send + Sync>;

/// Makes one of a future.
pub(crate) fn readiness<F>(ask: impl Fn() -> F + Send + Sync + 'static) -> Readiness
where
    F: Future<Output = Result<String, String>> + Send + 'static,
{
    Arc::new(move || Box::pin(ask()))
}

/// Whether a text is no HOST:PORT, for a name that is not found today may be found tomorrow.
pub(crate) fn is_no_address(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput && error.raw_os_error().is_none()
}

/// Said of such a text.
pub(crate) fn no_address(flag: &str, text: &str) -> Failure {
    Failure::usage(format!(
        "--{flag}: `{}` is no address: write HOST:PORT, such as 127.0.0.1:8080",
        text.escape_debug()
    ))
}

/// The listener, before it answers.
pub(crate) struct Admin {
    listener: TcpListener,
    pub(crate) local_addr: SocketAddr,
}

impl Admin {
    /// # Errors
    /// When the address cannot be listened on.
    pub(crate) async fn bind(address: &str) -> Result<Self, Failure> {
        let failed = |error| match error {
            error if is_no_address(&error) => no_address("admin", address),
            error => Failure::because(format!("cannot listen on the admin address {address}"), &error),
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        if !local_addr.ip().is_loopback() {
            tracing::warn!(address = %local_addr, "the admin address is no loopback address: everybody who reaches it may ask");
        }
        Ok(Self { listener, local_addr })
    }

    /// Answers, for as long as it is polled. Until `ready` is there, nothing is.
    pub(crate) async fn serve(self, ready: Arc<OnceLock<Readiness>>) {
        let mut connections = JoinSet::new();
        let mut guests: VecDeque<Guest> = VecDeque::new();
        loop {
            let accepted = tokio::select! {
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "admin address: cannot accept");
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            guests.retain(|guest| !guest.task.is_finished());
            if guests.len() >= MAX_CONNECTIONS {
                let silent = guests.iter().position(|guest| !guest.has_asked.load(Ordering::Relaxed));
                let Some(silent) = silent.and_then(|at| guests.remove(at)) else { continue };
                silent.task.abort();
            }
            let has_asked = Arc::new(AtomicBool::new(false));
            let task = connections.spawn(connection(stream, ready.clone(), has_asked.clone()));
            guests.push_back(Guest { task, has_asked });
        }
    }
}

/// A connection.
struct Guest {
    task: AbortHandle,
    has_asked: Arc<AtomicBool>,
}

async fn connection(stream: TcpStream, ready: Arc<OnceLock<Readiness>>, has_asked: Arc<AtomicBool>) {
    let service = service_fn(|request| {
        has_asked.store(true, Ordering::Relaxed);
        answer(request, ready.clone())
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(LIFE, served).await {
        tracing::debug!(%error, "admin address: a connection ended");
    }
}

async fn answer<B>(request: Request<B>, ready: Arc<OnceLock<Readiness>>) -> Result<Response<String>, Infallible> {
    let ask = async || match ready.get() {
        Some(ready) => ready().await,
        None => Err("it is starting".to_owned()),
    };
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, "alive\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/readyz") => match ask().await {
            Ok(text) => (StatusCode::OK, format!("ready: {text}\n")),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        },
        (_, "/livez" | "/readyz") => (StatusCode::METHOD_NOT_ALLOWED, "GET it\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "here are /livez and /readyz\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    Ok(response)
}
