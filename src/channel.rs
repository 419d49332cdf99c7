//! [`TunnelChannel`]: calls through a tunnel's one long-lived connection, for any tonic stub.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tower_service::Service;

use crate::connector::Route;
#[cfg(feature = "grpctunnel")]
use crate::grpctunnel::{CallBody, Caller};
use crate::http2::{Hold, Lease, Placed, ReceivedBody, Way, address, ask, failed, strip_hop_by_hop, timeout_of};
use crate::ssh::Call;
#[cfg(feature = "grpctunnel")]
use crate::ssh::OwnChannel;

/// Calls through a tunnel; every tonic stub accepts it.
///
/// Each call goes through the tunnel that its agent has at that moment, so the value outlives reconnects; all calls of
/// one side share one long-lived HTTP/2 connection for each tunnel, made by the first call. Cloning is cheap.
///
/// # Errors
/// Calls fail with [`Status`]. With no tunnel they fail at once, `UNAVAILABLE` and [`DialError`](crate::DialError)'s text, or
/// [wait for one](TunnelChannel::wait_for_ready); calls in flight when the tunnel is lost fail `UNAVAILABLE` with the
/// agent's name and the reason. A call that never reached the agent, because its tunnel has just ended, is being renewed
/// or takes no more channels, is sent once more, on another tunnel if there is one. By a tunnel of
/// [grpctunnel](crate#features) that is so of calls that find it ended, and not of those that waited in it to be sent.
///
/// Which tunnel took a call is in its response's extensions, as a [`TunnelId`](crate::TunnelId).
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

    async fn send(self, request: Request<Body>) -> Result<Response<ResponseBody>, Status> {
        let deadline = timeout_of(request.headers()).map(|timeout| Instant::now() + timeout);
        let sent = match deadline {
            None => self.send_once(request).await,
            Some(at) => tokio::time::timeout_at(at, self.send_once(request)).await.unwrap_or_else(|_| Err(expired())),
        };
        let mut response = sent.map_err(|status| status_at_deadline(status, deadline))?;
        mend(response.headers_mut(), deadline);
        let deadline = deadline.map(tokio::time::sleep_until);
        Ok(response.map(|received| ResponseBody { received: Some(received), deadline }))
    }

    async fn send_once(&self, request: Request<Body>) -> Result<Response<Received>, Status> {
        let Placed { call, way } = Placed::find(&*self.route, self.patience).await?;
        let tunnel_id = call.session().id;
        let mut response = match way {
            Way::Http2 { lease, sender } => exchange(call, lease, sender, request).await?,
            #[cfg(feature = "grpctunnel")]
            Way::Own { channel, caller } => exchange_own(call, channel, &caller, request).await?,
        };
        response.extensions_mut().insert(tunnel_id);
        Ok(response)
    }
}

/// Sends a request and waits for the head of its answer.
async fn exchange(
    call: Call,
    lease: Lease,
    sender: SendRequest<Bytes>,
    request: Request<Body>,
) -> Result<Response<Received>, Status> {
    let session = call.session();
    let (mut head, body) = request.into_parts();
    strip_hop_by_hop(&mut head.headers);
    head.uri = address(head.uri, Scheme::HTTP, &session.authority);
    let answered = ask(lease, sender, head, body, &session.runtime).await;
    let (response, hold) = answered.map_err(|error| failed(session, error))?;
    Ok(response.map(|stream| Received::Http2 { body: ReceivedBody::new(stream), _hold: hold, call }))
}

/// The same in a tunnel that has no channels.
#[cfg(feature = "grpctunnel")]
async fn exchange_own(
    call: Call,
    channel: OwnChannel,
    caller: &Caller,
    request: Request<Body>,
) -> Result<Response<Received>, Status> {
    let (mut head, body) = request.into_parts();
    strip_hop_by_hop(&mut head.headers);
    match caller.call(head, body).await {
        Ok(response) => Ok(response.map(|body| Received::Own { body, call, _channel: channel })),
        Err(failure) => Err(failure.status(call.session())),
    }
}

/// What comes of an answer, and what the call holds until its end; dropping it ends the call.
#[derive(Debug)]
enum Received {
    Http2 {
        body: ReceivedBody,
        _hold: Hold,
        call: Call,
    },
    #[cfg(feature = "grpctunnel")]
    Own {
        body: CallBody,
        call: Call,
        _channel: OwnChannel,
    },
}

impl Received {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self {
            Self::Http2 { body, call, .. } => {
                Pin::new(body).poll_frame(cx).map_err(|error| failed(call.session(), error))
            }
            #[cfg(feature = "grpctunnel")]
            Self::Own { body, call, .. } => Pin::new(body).poll_frame(cx).map_err(|lost| lost.status(call.session())),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http2 { body, .. } => body.is_end_stream(),
            #[cfg(feature = "grpctunnel")]
            Self::Own { body, .. } => body.is_end_stream(),
        }
    }
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

pin_project! {
    /// The body of a [`TunnelChannel`]'s response.
    ///
    /// Dropping it before its end cancels the call, and the peer's handler is told.
    pub struct ResponseBody {
        received: Option<Received>,
        #[pin]
        deadline: Option<Sleep>,
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        let Some(received) = this.received else { return Poll::Ready(None) };
        let deadline = this.deadline.as_ref().as_pin_ref().map(|deadline| deadline.deadline());
        if let Poll::Ready(frame) = received.poll_frame(cx) {
            return Poll::Ready(match frame {
                // A peer that is always ahead of its reader may not go on for ever; the end of a call is welcome late.
                Some(Ok(frame)) if frame.is_data() && has_passed(deadline) => {
                    *this.received = None;
                    Some(Err(expired()))
                }
                Some(Ok(mut frame)) => {
                    if let Some(trailers) = frame.trailers_mut() {
                        mend(trailers, deadline);
                    }
                    Some(Ok(frame))
                }
                Some(Err(status)) => {
                    *this.received = None;
                    Some(Err(status_at_deadline(status, deadline)))
                }
                None => None,
            });
        }
        if let Some(deadline) = this.deadline.as_pin_mut() {
            ready!(deadline.poll(cx));
            // Cancels the call, even if the caller holds on to this body.
            *this.received = None;
            return Poll::Ready(Some(Err(expired())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.received.as_ref().is_none_or(Received::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

/// tonic 0.14.9 panics when status details are not base64 (`Status::from_header_map`), and a peer may send any bytes.
pub(crate) fn drop_bad_details(headers: &mut HeaderMap) {
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
}
