//! Watches calls.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::{Code, Status};
use tower_service::Service;

use super::layer::Handlers;
use super::messages::Messages;
use super::{RpcId, RpcStats, Stats, Traffic};

type BoxError = Box<dyn Error + Send + Sync>;

impl<S, B, RB> Service<Request<B>> for Stats<S>
where
    S: Service<Request<tonic::body::Body>, Response = Response<RB>>,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    RB: Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    type Response = Response<StatsBody<RB>>;
    type Error = Status;
    type Future = StatsCall<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx).map_err(|error| Status::from_error(error.into()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !self.handlers.want_rpc() {
            // A body that is tonic's already is passed on as it is, not boxed again.
            return StatsCall { call: None, response: self.inner.call(request.map(tonic::body::Body::new)) };
        }
        let call = Arc::new(Call::begin(&request, self.handlers.clone()));
        let watch = |body| RequestBody { call: call.clone(), messages: Messages::default(), body };
        let request = request.map(|body| tonic::body::Body::new(watch(body)));
        let call = Some(LiveCall::new(call));
        StatsCall { call, response: self.inner.call(request) }
    }
}

/// One call, shared by the halves that see its request and its response.
#[derive(Debug)]
struct Call {
    id: RpcId,
    path: PathAndQuery,
    begun: Instant,
    handlers: Handlers,
    ended: AtomicBool,
    request_messages: AtomicU64,
    request_bytes: AtomicU64,
}

impl Call {
    fn begin<B>(request: &Request<B>, handlers: Handlers) -> Self {
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let call = Self {
            id: RpcId::next(),
            path,
            begun: Instant::now(),
            handlers,
            ended: AtomicBool::new(false),
            request_messages: AtomicU64::new(0),
            request_bytes: AtomicU64::new(0),
        };
        call.handlers.rpc(&RpcStats::Begin { id: call.id, path: call.path.clone(), at: call.begun });
        call
    }

    fn request_message(&self, bytes: u32) {
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        self.request_messages.fetch_add(1, Ordering::Relaxed);
        self.request_bytes.fetch_add(bytes.into(), Ordering::Relaxed);
        self.handlers.rpc(&RpcStats::RequestMessage { id: self.id, bytes });
    }
}

pin_project! {
    /// The request's body on its way to the inner service.
    struct RequestBody<B> {
        call: Arc<Call>,
        messages: Messages,
        #[pin]
        body: B,
    }
}

impl<B: Body<Data = Bytes>> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let polled = ready!(this.body.poll_frame(cx));
        if let Some(data) = polled.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            this.messages.feed(data, |bytes| this.call.request_message(bytes));
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The response's view of a call. Owns its end: whoever drops this before the status passed has cancelled the call.
#[derive(Debug)]
struct LiveCall {
    call: Arc<Call>,
    http_status: StatusCode,
    messages: Messages,
    responses: Traffic,
}

impl LiveCall {
    fn new(call: Arc<Call>) -> Self {
        Self { call, http_status: StatusCode::OK, messages: Messages::default(), responses: Traffic::default() }
    }

    fn headers<B: Body>(&mut self, response: &Response<B>) {
        self.call.handlers.rpc(&RpcStats::ResponseHeaders { id: self.call.id });
        self.http_status = response.status();
        // "Trailers-only": the status comes with the headers, and there is no body to poll.
        if let Some((code, message)) = grpc_status(response.headers()) {
            self.end(code, message);
        } else if response.body().is_end_stream() {
            self.end_without_status();
        }
    }

    fn data(&mut self, data: &[u8]) {
        let (call, responses) = (&self.call, &mut self.responses);
        self.messages.feed(data, |bytes| {
            *responses = Traffic::new(responses.messages + 1, responses.bytes + u64::from(bytes));
            call.handlers.rpc(&RpcStats::ResponseMessage { id: call.id, bytes });
        });
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        match grpc_status(trailers) {
            Some((code, message)) => self.end(code, message),
            None => self.end_without_status(),
        }
    }

    fn end_without_status(&mut self) {
        self.end(code_of_http(self.http_status), format!("no grpc-status in the response (http {})", self.http_status));
    }

    fn end(&mut self, code: Code, message: String) {
        let call = &*self.call;
        if call.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        call.handlers.rpc(&RpcStats::End {
            id: call.id,
            path: call.path.clone(),
            code,
            message,
            requests: Traffic::new(
                call.request_messages.load(Ordering::Relaxed),
                call.request_bytes.load(Ordering::Relaxed),
            ),
            responses: self.responses,
            lasted: call.begun.elapsed(),
        });
    }
}

impl Drop for LiveCall {
    fn drop(&mut self) {
        if !self.call.ended.load(Ordering::Acquire) {
            self.end(Code::Cancelled, "dropped before it ended".into());
        }
    }
}

/// The status in a block of headers or trailers, if there is one.
///
/// `Status::from_header_map` panics on details that are not base64, which a peer may well send; so it only gets to
/// see the message, which it decodes without fail.
fn grpc_status(headers: &HeaderMap) -> Option<(Code, String)> {
    const STATUS: HeaderName = HeaderName::from_static("grpc-status");
    const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
    let status = headers.get(STATUS)?;
    let code = Code::from_bytes(status.as_bytes());
    let message = match headers.get(MESSAGE) {
        Some(message) if code != Code::Ok => {
            let few = HeaderMap::from_iter([(STATUS, status.clone()), (MESSAGE, message.clone())]);
            Status::from_header_map(&few).map(|status| status.message().to_owned()).unwrap_or_default()
        }
        _ => String::new(),
    };
    Some((code, message))
}

/// What a response without `grpc-status` means, by the
/// [table of the specification](https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md).
pub(crate) fn code_of_http(status: StatusCode) -> Code {
    match status {
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    }
}

pin_project! {
    /// A call that waits for its response. Dropping it cancels the call, and reports so.
    #[derive(Debug)]
    pub struct StatsCall<F> {
        // None if nobody wants to know about calls.
        call: Option<LiveCall>,
        #[pin]
        response: F,
    }
}

impl<F, RB, E> Future for StatsCall<F>
where
    F: Future<Output = Result<Response<RB>, E>>,
    E: Into<BoxError>,
    RB: Body,
{
    type Output = Result<Response<StatsBody<RB>>, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = ready!(this.response.poll(cx)).map_err(|error| Status::from_error(error.into()));
        let mut call = this.call.take();
        match (&outcome, &mut call) {
            (Ok(response), Some(call)) => call.headers(response),
            (Err(status), Some(call)) => call.end(status.code(), status.message().to_owned()),
            (_, None) => {}
        }
        Poll::Ready(outcome.map(|response| response.map(|body| StatsBody { call, body })))
    }
}

pin_project! {
    /// A response's body. Dropping it before the status has passed cancels the call, and reports so.
    #[derive(Debug)]
    pub struct StatsBody<B> {
        // None if nobody wants to know about calls.
        call: Option<LiveCall>,
        #[pin]
        body: B,
    }
}

impl<B> Body for StatsBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut this = self.project();
        let polled = ready!(this.body.as_mut().poll_frame(cx));
        let polled = polled.map(|frame| frame.map_err(|error| Status::from_error(error.into())));
        if let Some(call) = this.call {
            match &polled {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        call.data(data);
                        // Nobody polls a body again that says it is over.
                        if this.body.is_end_stream() {
                            call.end_without_status();
                        }
                    } else if let Some(trailers) = frame.trailers_ref() {
                        call.trailers(trailers);
                    }
                }
                Some(Err(status)) => call.end(status.code(), status.message().to_owned()),
                None => call.end_without_status(),
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DisconnectDetector, StatsLayer};
    use super::*;

    #[test]
    fn details_that_are_no_base64_do_not_panic() {
        let headers = [("grpc-status", "7"), ("grpc-message", "no%20way"), ("grpc-status-details-bin", "!")];
        let headers = headers.map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let status = grpc_status(&HeaderMap::from_iter(headers));
        assert_eq!(status, Some((Code::PermissionDenied, "no way".into())));
    }

    #[test]
    fn call_costs_nothing_if_nobody_wants_calls() {
        let never = tower::service_fn(|_: Request<tonic::body::Body>| {
            std::future::pending::<Result<Response<tonic::body::Body>, Status>>()
        });
        let mut watched = StatsLayer::new(DisconnectDetector::new()).wrap(never);
        assert!(watched.call(Request::new(tonic::body::Body::empty())).call.is_none());
    }
}
