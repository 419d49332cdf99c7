//! The end of a tunnel that serves calls.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, TE};
use http::{Extensions, HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Frame;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower_service::Service;

use super::body::{Framed, Piece, Pieces};
use super::end::{End, For, Protocol};
use super::proto;
use super::protocol::{self, Closing, NewCall, RequestEvent, StreamId, TunnelError, Woken, from_headers, into_headers};
use crate::channel::drop_bad_details;
use crate::http2::timeout_of;
use crate::stats::code_of_http;
use crate::unread::Unread;

/// How long the good end of a call may wait for its caller to have sent all: see [`Closing::Held`].
const HELD: Duration = Duration::from_millis(500);

impl Protocol for protocol::Server {
    type In = proto::ClientToServer;
    type Out = proto::ServerToClient;

    fn receive(&mut self, frame: proto::ClientToServer) -> Result<(), TunnelError> {
        self.receive(frame)
    }

    fn poll_frame(&mut self) -> Option<proto::ServerToClient> {
        self.poll_frame()
    }

    fn is_overfull(&self) -> bool {
        self.is_overfull()
    }

    fn next_woken(&mut self) -> Option<Woken> {
        self.next_woken()
    }

    fn has_news(&self) -> bool {
        self.has_calls_to_accept()
    }

    fn share(&mut self, unread: Arc<Unread>) {
        self.share(unread);
    }

    fn unread(&self) -> &Arc<Unread> {
        self.unread()
    }

    fn most(&self) -> usize {
        self.most()
    }

    fn end_most(&mut self) {
        self.end_most();
    }

    fn close(&mut self) {
        self.close_tunnel();
    }
}

/// Serves the calls of one tunnel until it has ended. Dropping the future cuts them off.
pub(super) async fn serve(end: Arc<End<protocol::Server>>, routes: Routes, about: Extensions) {
    let mut calls = JoinSet::new();
    while let Ok(call) = end.until(protocol::Server::accept).await {
        // Nobody waits for one to end: that would cost each call a turn of this task. One that panics has told its caller, by
        // what is dropped.
        while calls.try_join_next().is_some() {}
        calls.spawn(one(end.clone(), call, routes.clone(), about.clone()));
    }
}

/// How a call ends.
type Ending = (proto::Status, proto::Metadata);

/// Serves one call, unless the caller gives it up, or its deadline passes, be it while the answer waits to be taken.
async fn one(end: Arc<End<protocol::Server>>, call: NewCall, routes: Routes, about: Extensions) {
    let place = Place { end, stream: call.id };
    let Place { end, stream } = &place;
    let request = request(end, call, about);
    let timeout = request.as_ref().ok().and_then(|request| timeout_of(request.headers()));
    let deadline = timeout.and_then(|limit| Instant::now().checked_add(limit));
    let served = async {
        let ending = match request {
            Ok(request) => answer(end, *stream, request, routes).await,
            Err(ending) => Some(ending),
        };
        let Some((status, trailers)) = ending else { return };
        let closed = end.with(|server| server.close(*stream, status, trailers));
        if matches!(closed, Ok(Closing::Held)) {
            tokio::time::sleep(HELD).await;
            let _ = end.with(|server| server.release(*stream)); // the tunnel's end ends it, too
        }
        if deadline.is_some() {
            pending().await
        }
    };
    let expired = async {
        match deadline {
            Some(at) => tokio::time::sleep_until(at).await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        () = over(end, *stream) => {}
        () = served => {}
        () = expired => {
            let status = Status::deadline_exceeded("the call's deadline passed").into();
            let _ = end.with(|server| server.refuse(*stream, status)); // what was not sent is not wanted any more
        }
    }
}

/// A call's place in its tunnel, until it is dropped.
struct Place {
    end: Arc<End<protocol::Server>>,
    stream: StreamId,
}

impl Drop for Place {
    /// A handler that panicked has not answered; of a call that is over this changes nothing.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = Status::internal("the handler panicked").into();
            let _ = self.end.with(|server| server.refuse(self.stream, status));
        }
        self.end.forget(self.stream, &[For::Room, For::End]);
    }
}

/// Waits until the call's end was sent, or nobody waits for it any more.
async fn over(end: &End<protocol::Server>, stream: StreamId) {
    let look =
        |cx: &mut Context<'_>| end.poll_with(cx, stream, For::End, |server| server.is_over(stream).then_some(()));
    let _ = poll_fn(look).await; // the end of the tunnel is one of the call
}

/// What the handler gets, or the end of a call that is not fit for one.
fn request(end: &Arc<End<protocol::Server>>, call: NewCall, about: Extensions) -> Result<Request<Body>, Ending> {
    let NewCall { id: stream, path, metadata } = call;
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = into_headers(metadata)
        .map_err(|error| (Status::invalid_argument(error.to_string()).into(), proto::Metadata::default()))?;
    *request.extensions_mut() = about;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    let body = RequestBody { end: end.clone(), stream, framed: Framed::default(), done: false };
    Ok(request.map(|()| Body::new(body)))
}

/// Has the call answered, and says how it ends. None if it is over before.
async fn answer(
    end: &End<protocol::Server>,
    stream: StreamId,
    request: Request<Body>,
    mut routes: Routes,
) -> Option<Ending> {
    let Ok(()) = poll_fn(|cx| Service::<Request<Body>>::poll_ready(&mut routes, cx)).await;
    let Ok(response) = routes.call(request).await;
    send(end, stream, response).await
}

/// Headers for the tunnel, or the end of a call whose headers it cannot carry.
fn to_wire(headers: HeaderMap) -> Result<proto::Metadata, Ending> {
    from_headers(headers).map_err(|error| (Status::internal(error.to_string()).into(), proto::Metadata::default()))
}

/// The status in headers or trailers, if there is one.
fn status_in(headers: &mut HeaderMap) -> Option<proto::Status> {
    drop_bad_details(headers);
    proto::Status::from_trailers(headers)
}

/// Sends an answer, no faster than it is taken, up to its status. None if the call is over before.
async fn send(end: &End<protocol::Server>, stream: StreamId, response: Response<Body>) -> Option<Ending> {
    let (mut head, body) = response.into_parts();
    let early = status_in(&mut head.headers);
    let headers = match to_wire(head.headers) {
        Ok(headers) => headers,
        Err(failed) => return Some(failed),
    };
    if let Some(status) = early {
        return Some((status, headers));
    }
    if head.status != StatusCode::OK {
        let text = format!("the service answered with the HTTP status {}", head.status);
        return Some((Status::new(code_of_http(head.status), text).into(), headers));
    }
    end.with(|server| server.headers(stream, headers)).ok()?.ok()?;
    let mut pieces = Pieces::of(body);
    loop {
        let room =
            |cx: &mut Context<'_>| end.poll_with(cx, stream, For::Room, |server| server.has_room(stream).then_some(()));
        poll_fn(room).await.ok()?;
        let sent = match poll_fn(|cx| pieces.poll_piece(cx)).await {
            Some(Ok(Piece::Whole(message))) => end.with(|server| server.send(stream, message)),
            Some(Ok(Piece::Start(size))) => end.with(|server| server.start_message(stream, size)),
            Some(Ok(Piece::More(data))) => end.with(|server| server.push(stream, data)),
            Some(Err(status)) => return Some((status.into(), proto::Metadata::default())),
            None => break,
        };
        sent.ok()?.ok()?;
    }
    let mut trailers = pieces.trailers().unwrap_or_default();
    let status = status_in(&mut trailers);
    let status = status.unwrap_or_else(|| Status::unknown("the service ended its answer without a status").into());
    Some(to_wire(trailers).map_or_else(|failed| failed, |trailers| (status, trailers)))
}

/// What a caller sends. Dropping it lets the caller go on, and what comes is dropped.
struct RequestBody {
    end: Arc<End<protocol::Server>>,
    stream: StreamId,
    framed: Framed,
    done: bool,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(data) = self.framed.pop() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if self.done {
                return Poll::Ready(None);
            }
            let stream = self.stream;
            match ready!(self.end.poll_with(cx, stream, For::Events, |server| server.poll_event(stream))) {
                Ok(RequestEvent::Message { size, data }) => self.framed.begin(size, data),
                Ok(RequestEvent::More(data)) => self.framed.more(data),
                Ok(RequestEvent::HalfClosed) => self.done = true,
                Ok(RequestEvent::Cancelled) | Err(_) => {
                    self.done = true;
                    return Poll::Ready(Some(Err(Status::cancelled("the caller has given the call up"))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.done && self.framed.is_empty()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.end.with(|server| server.discard(self.stream)); // nothing comes after the tunnel's end
        }
        self.end.forget(self.stream, &[For::Events]);
    }
}
