//! [`TunnelChannel`]: calls through a tunnel's one long-lived connection, for any tonic stub.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::sync::OnceCell;
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tower_service::Service;

use crate::connector::{DialError, Route};
use crate::ssh::{Call, Session};
use crate::tuning;

/// The HTTP/2 connection that all of one side's own calls through a tunnel share.
///
/// It is made by the first call, by one of several that come at once, and again by the first call after it ended.
#[derive(Default)]
pub(crate) struct SharedConnection(Mutex<Arc<OnceCell<SendRequest<Body>>>>);

impl SharedConnection {
    fn cell(&self) -> MutexGuard<'_, Arc<OnceCell<SendRequest<Body>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get(&self, session: &Arc<Session>) -> Result<SendRequest<Body>, DialError> {
        let cell = {
            let mut cell = self.cell();
            if cell.get().is_some_and(SendRequest::is_closed) {
                *cell = Arc::default();
            }
            cell.clone()
        };
        // One that is refused leaves it to the next in line: none of them waits longer than for one attempt.
        match tokio::time::timeout(session.open_timeout, cell.get_or_try_init(|| connect(session))).await {
            Ok(connected) => connected.cloned(),
            Err(_) => Err(DialError::TimedOut { agent: session.agent.clone(), after: session.open_timeout }),
        }
    }

    /// Lets go of the connection: it closes when its last call has ended.
    pub(crate) fn retire(&self) {
        *self.cell() = Arc::default();
    }
}

/// Connects on the session's own runtime: the caller's may end, or stand still, while others use the connection.
async fn connect(session: &Arc<Session>) -> Result<SendRequest<Body>, DialError> {
    let connecting = session.runtime.spawn(handshake(session.clone()));
    match connecting.await {
        Ok(connected) => connected,
        Err(_) => Err(DialError::Disconnected { agent: session.agent.clone(), gone: session.closed().await }),
    }
}

async fn handshake(session: Arc<Session>) -> Result<SendRequest<Body>, DialError> {
    let io = session.open().await?;
    let handshake = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_connection_window_size(tuning::HTTP2_CONNECTION_WINDOW)
        .initial_stream_window_size(tuning::HTTP2_STREAM_WINDOW)
        .max_header_list_size(tuning::HTTP2_MAX_HEADER_LIST)
        .max_concurrent_reset_streams(tuning::HTTP2_REMEMBERED_RESETS)
        .reset_stream_duration(tuning::HTTP2_REMEMBER_RESETS_FOR)
        .keep_alive_interval(tuning::HTTP2_CLIENT_PING_INTERVAL)
        .keep_alive_timeout(tuning::HTTP2_PING_TIMEOUT)
        .handshake::<_, Body>(TokioIo::new(io))
        .await;
    match handshake {
        Ok((sender, connection)) => {
            // Ends with the tunnel, or when the last sender and the last call are gone.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection for own calls ended");
                }
            });
            Ok(sender)
        }
        Err(error) => Err(DialError::Rejected { agent: session.agent.clone(), reason: error.to_string() }),
    }
}

/// Calls through a tunnel; every tonic stub accepts it.
///
/// Each call goes through the tunnel that its agent has at that moment, so the value outlives reconnects; all calls of
/// one side share one long-lived HTTP/2 connection for each tunnel, made by the first call. Cloning is cheap.
///
/// # Errors
/// Calls fail with [`Status`]. With no tunnel they fail at once, `UNAVAILABLE` and [`DialError`]'s text, or
/// [wait for one](TunnelChannel::wait_for_ready); calls in flight when the tunnel is lost fail `UNAVAILABLE` with the
/// agent's name and the reason. A call that never reached the agent, because its tunnel has just ended, is being renewed
/// or takes no more channels, is sent once more, on another tunnel if there is one.
///
/// # Deadlines
/// A request's timeout holds on this side too, for the whole call, streams included; what has arrived by then and was not
/// read is dropped. It ends the call `DEADLINE_EXCEEDED`, also where the peer was first to see it and says `CANCELLED`.
#[derive(Clone)]
pub struct TunnelChannel {
    route: Arc<dyn Route>,
    /// How long a call waits for a tunnel when there is none.
    patience: Option<Duration>,
}

impl TunnelChannel {
    pub(crate) fn new(route: Arc<dyn Route>) -> Self {
        Self { route, patience: None }
    }

    /// Lets a call that finds no tunnel wait for one, for so long, in place of failing at once. gRPC calls this
    /// wait-for-ready. A call's own deadline holds meanwhile.
    #[must_use]
    pub fn wait_for_ready(mut self, limit: Duration) -> Self {
        self.patience = Some(limit);
        self
    }

    /// The tunnel for a call, which counts from here on.
    async fn take(&self) -> Result<Call, DialError> {
        let session = match (self.route.session(), self.patience) {
            (Err(error), Some(limit)) if error.may_pass() => self.route.wait(limit).await,
            (found, _) => found,
        }?;
        session.begin_call()
    }

    async fn send(self, request: Request<Body>) -> Result<Response<ResponseBody>, Status> {
        let deadline = timeout_of(request.headers()).map(|timeout| Instant::now() + timeout);
        let sent = match deadline {
            None => self.send_once_or_twice(request).await,
            Some(at) => {
                tokio::time::timeout_at(at, self.send_once_or_twice(request)).await.unwrap_or_else(|_| Err(expired()))
            }
        };
        let (call, mut response) = sent.map_err(|status| status_at_deadline(status, deadline))?;
        mend(response.headers_mut(), deadline);
        let deadline = deadline.map(tokio::time::sleep_until);
        Ok(response.map(|incoming| ResponseBody { incoming: Some(incoming), deadline, call }))
    }

    /// A call that never reached an agent is sent once more, on another tunnel if there is one.
    async fn send_once_or_twice(&self, mut request: Request<Body>) -> Result<(Call, Response<Incoming>), Status> {
        let mut call = self.take().await?;
        let mut retried = false;
        loop {
            let session = call.session();
            let mut sender = match session.shared.get(session).await {
                Err(error) if error.is_of_one_tunnel() && !retried => {
                    retried = true;
                    call = self.route.successor(session).await.ok_or(error)?.begin_call()?;
                    continue;
                }
                sender => sender?,
            };
            address(&mut request, &session.authority);
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((call, response)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !retried => {
                        retried = true;
                        request = unsent;
                        match self.route.successor(session).await {
                            Some(successor) => call = successor.begin_call()?,
                            None if session.is_closed() => call = self.take().await?,
                            None => {}
                        }
                    }
                    _ => return Err(failed(session, error.into_error())),
                },
            }
        }
    }
}

/// Every request goes to the peer at the other end of the tunnel, under the name that it has there.
fn address(request: &mut Request<Body>, authority: &Authority) {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.clone());
    parts.path_and_query.get_or_insert(http::uri::PathAndQuery::from_static("/"));
    // Scheme, authority and path together are always a valid URI.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

impl Service<Request<Body>> for TunnelChannel {
    type Response = Response<ResponseBody>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

impl fmt::Debug for TunnelChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelChannel").field("patience", &self.patience).finish_non_exhaustive()
    }
}

const EXPIRED: &str = "the call's deadline passed";

fn expired() -> Status {
    Status::deadline_exceeded(EXPIRED)
}

/// The peer watches the deadline as well, and may call its end `CANCELLED` (tonic's server does): whichever end saw it
/// first, the caller is told the same.
fn status_at_deadline(status: Status, deadline: Option<Instant>) -> Status {
    if status.code() == Code::Cancelled && has_passed(deadline) { expired() } else { status }
}

fn has_passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|at| Instant::now() >= at)
}

/// Makes a peer's headers or trailers what the caller should see.
fn mend(headers: &mut HeaderMap, deadline: Option<Instant>) {
    drop_bad_details(headers);
    let cancelled = headers.get(Status::GRPC_STATUS).is_some_and(|code| code == "1");
    if cancelled && has_passed(deadline) {
        headers.insert(Status::GRPC_STATUS, HeaderValue::from_static("4"));
        headers.insert(Status::GRPC_MESSAGE, HeaderValue::from_static(EXPIRED));
    }
}

/// An HTTP/2 failure as the caller should see it: a lost tunnel by its name, anything else as tonic maps it.
fn failed(session: &Session, error: hyper::Error) -> Status {
    lost(session, &error).unwrap_or_else(|| Status::from_error(Box::new(error)))
}

fn lost(session: &Session, error: &hyper::Error) -> Option<Status> {
    let gone = session.disconnected().borrow().clone();
    if let Some(gone) = gone {
        return Some(DialError::Disconnected { agent: session.agent.clone(), gone }.into());
    }
    // The stream ended with its connection, not with an error of its own.
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(h2) = cause.downcast_ref::<h2::Error>()
            && (h2.is_io() || h2.is_go_away())
        {
            let text = format!("agent `{}`: the connection for this call ended: {h2}", session.agent);
            return Some(Status::unavailable(text));
        }
        source = cause.source();
    }
    let text = format!("agent `{}`: the connection for this call ended: {error}", session.agent);
    (error.is_closed() || error.is_canceled() || error.is_incomplete_message()).then(|| Status::unavailable(text))
}

pin_project! {
    /// The body of a [`TunnelChannel`]'s response.
    ///
    /// Dropping it before its end cancels the call, and the peer's handler is told; hyper does so only once the
    /// request's stream has ended or was dropped, too.
    pub struct ResponseBody {
        #[pin]
        incoming: Option<Incoming>,
        #[pin]
        deadline: Option<Sleep>,
        call: Call,
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut this = self.project();
        let Some(incoming) = this.incoming.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let deadline = this.deadline.as_ref().as_pin_ref().map(|deadline| deadline.deadline());
        if let Poll::Ready(frame) = incoming.poll_frame(cx) {
            return Poll::Ready(match frame {
                // A peer that is always ahead of its reader may not go on for ever; the end of a call is welcome late.
                Some(Ok(frame)) if frame.is_data() && has_passed(deadline) => {
                    this.incoming.set(None);
                    Some(Err(expired()))
                }
                Some(Ok(mut frame)) => {
                    if let Some(trailers) = frame.trailers_mut() {
                        mend(trailers, deadline);
                    }
                    Some(Ok(frame))
                }
                Some(Err(error)) => {
                    this.incoming.set(None);
                    Some(Err(status_at_deadline(failed(this.call.session(), error), deadline)))
                }
                None => None,
            });
        }
        if let Some(deadline) = this.deadline.as_pin_mut() {
            ready!(deadline.poll(cx));
            // Cancels the call, even if the caller holds on to this body.
            this.incoming.set(None);
            return Poll::Ready(Some(Err(expired())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map(http_body::Body::size_hint).unwrap_or_default()
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

/// tonic 0.14.9 panics when status details are not base64 (`Status::from_header_map`), and a peer may send any bytes.
fn drop_bad_details(headers: &mut HeaderMap) {
    const DETAILS: &str = "grpc-status-details-bin";
    if !headers.contains_key(DETAILS) {
        return;
    }
    let metadata = MetadataMap::from_headers(std::mem::take(headers));
    let good = metadata.get_bin(DETAILS).is_some_and(|details| details.to_bytes().is_ok());
    *headers = metadata.into_headers();
    if !good {
        headers.remove(DETAILS);
    }
}

/// The `grpc-timeout` of a request: at most eight digits and a unit. Anything else is no timeout; the peer will say so.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_that_are_no_base64_are_dropped() {
        let headers = |details: &'static str| {
            let headers = [("grpc-status", "7"), ("grpc-status-details-bin", details)];
            HeaderMap::from_iter(headers.map(|(k, v)| (http::HeaderName::from_static(k), v.parse().unwrap())))
        };
        for (details, kept) in [("aGk", true), ("aGk=", true), ("", true), ("!", false), ("aGk=aGk=", false)] {
            let mut headers = headers(details);
            drop_bad_details(&mut headers);
            assert_eq!(headers.contains_key("grpc-status-details-bin"), kept, "{details}");
            assert_eq!(Status::from_header_map(&headers).unwrap().code(), tonic::Code::PermissionDenied);
        }
    }

    #[test]
    fn timeouts_are_read_as_the_grpc_spec_writes_them() {
        let timeout = |text: &'static str| {
            timeout_of(&HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), text.parse().unwrap())]))
        };
        assert_eq!(timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("7u"), Some(Duration::from_micros(7)));
        for bad in ["", "S", "5", "5s", "123456789S", "-1S", "1.5S", "ä"] {
            assert_eq!(
                timeout_of(&HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-timeout"),
                    http::HeaderValue::from_bytes(bad.as_bytes()).unwrap()
                )])),
                None,
                "{bad}"
            );
        }
    }
}
