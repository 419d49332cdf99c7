//! The end of a tunnel that makes calls.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body, Frame};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tonic::{Code, Status};

use super::body::{Framed, Piece, Pieces};
use super::end::{End, For, Protocol};
use super::proto;
use super::protocol::{
    self, OpenError, ResponseEvent, StreamId, TunnelError, Woken, from_headers, into_headers, into_trailers,
};
use crate::close::{CloseReason, Disconnected};
use crate::connector::DialError;
use crate::ssh::Session;
use crate::unread::Unread;

/// What asks a peer whether it lives: no peer has such a method, and each has to say so.
const PROBE: &str = "/dialback.v1.Probe/Probe";

impl Protocol for protocol::Client {
    type In = proto::ServerToClient;
    type Out = proto::ClientToServer;

    fn receive(&mut self, frame: proto::ServerToClient) -> Result<(), TunnelError> {
        self.receive(frame)
    }

    fn poll_frame(&mut self) -> Option<proto::ClientToServer> {
        self.poll_frame()
    }

    fn is_overfull(&self) -> bool {
        self.is_overfull()
    }

    fn next_woken(&mut self) -> Option<Woken> {
        self.next_woken()
    }

    fn has_news(&self) -> bool {
        self.revision().is_some()
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
        self.close();
    }
}

/// Makes calls through one tunnel.
pub(crate) struct Caller {
    end: Arc<End<protocol::Client>>,
    /// The peer has said that it takes no more calls. The protocol has no other word for it than the refusal of one.
    refuses: AtomicBool,
    runtime: Handle,
}

impl Caller {
    pub(super) fn new(protocol: protocol::Client) -> Self {
        Self { end: End::new(protocol), refuses: AtomicBool::new(false), runtime: Handle::current() }
    }

    pub(super) fn end(&self) -> &Arc<End<protocol::Client>> {
        &self.end
    }

    /// From now on what is unread counts together with that of others. Before the first call.
    pub(crate) fn share(&self, unread: Arc<Unread>) {
        self.end.share(unread);
    }

    /// Another number than before once the peer has shown that it lives.
    pub(crate) fn signs_of_life(&self) -> usize {
        self.end.signs_of_life()
    }

    /// Whether the peer is not heard before somebody has read.
    pub(crate) fn is_overfull(&self) -> bool {
        self.end.with(|client| client.is_overfull()).unwrap_or(false)
    }

    /// Why the tunnel has ended, if it has; its session hears of it a moment later.
    pub(crate) fn ended(&self) -> Option<CloseReason> {
        self.end.ended()
    }

    /// Ends the tunnel.
    pub(crate) fn close(&self, reason: CloseReason) {
        self.end.end(reason);
    }

    /// Waits until the peer has shown that it lives, or the tunnel has ended.
    pub(crate) async fn probe(&self) {
        let mut head = http::Request::new(()).into_parts().0;
        head.uri = http::Uri::from_static(PROBE);
        let _ = self.call(head, tonic::body::Body::empty()).await; // "no such method" is an answer
    }

    /// Begins a call, and waits for the head of its answer. Dropping the future, or the answer's body, cancels it.
    pub(crate) async fn call<B>(&self, head: Parts, body: B) -> Result<Response<CallBody>, Failed>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let headers = from_headers(head.headers).map_err(|error| Failed::Call(Status::internal(error.to_string())))?;
        let opened = self.end.with(|client| client.open(head.uri.path(), headers)).map_err(Failed::Tunnel)?;
        let stream = opened.map_err(|error| {
            let code = match error {
                OpenError::Method(_) => Code::InvalidArgument,
                OpenError::MetadataSize { .. } => Code::ResourceExhausted,
                _ => Code::Unavailable,
            };
            Failed::Call(Status::new(code, error.to_string()))
        })?;
        let mut call =
            CallBody { end: self.end.clone(), stream, framed: Framed::default(), upload: None, state: Answer::Open };
        let mut upload = Box::pin(upload(self.end.clone(), stream, Pieces::of(body)));
        // Most requests are sent here and now.
        if poll_fn(|cx| Poll::Ready(upload.as_mut().poll(cx))).await.is_pending() {
            call.upload = Some(self.runtime.spawn(upload).abort_handle());
        }
        let answer = call.head().await;
        if let Ok(answer) = &answer
            && answer.body().is_end_stream()
            && Status::from_header_map(answer.headers()).is_some_and(|status| is_shutting_down(&status))
        {
            self.refuses.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// Whether the peer is on its way out, so that calls are better made elsewhere.
    pub(crate) fn is_refused(&self) -> bool {
        self.refuses.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").finish_non_exhaustive()
    }
}

/// What servers that shut down answer: this library's, and Go's.
fn is_shutting_down(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message() == protocol::SHUTTING_DOWN
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The tunnel has ended.
    Tunnel(CloseReason),
    Call(Status),
}

impl Failed {
    /// As the caller should see it: a lost tunnel by its name.
    pub(crate) fn status(self, session: &Session) -> Status {
        match self {
            Self::Call(status) => status,
            Self::Tunnel(reason) => {
                let gone = session.disconnected().borrow().clone().unwrap_or_else(|| Disconnected::now(reason));
                DialError::Disconnected { agent: session.agent.clone(), gone }.into()
            }
        }
    }
}

/// Sends the messages of a request, no faster than they are taken.
async fn upload<B>(end: Arc<End<protocol::Client>>, stream: StreamId, mut pieces: Pieces<B>)
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    loop {
        let room =
            |cx: &mut Context<'_>| end.poll_with(cx, stream, For::Room, |client| client.has_room(stream).then_some(()));
        if poll_fn(room).await.is_err() {
            return;
        }
        let piece = poll_fn(|cx| pieces.poll_piece(cx)).await;
        let goes_on = end.with(|client| match piece {
            Some(Ok(Piece::Whole(message))) => client.send(stream, message).is_ok(),
            Some(Ok(Piece::Start(size))) => client.start_message(stream, size).is_ok(),
            Some(Ok(Piece::More(data))) => client.push(stream, data).is_ok(),
            Some(Err(status)) => {
                client.abandon(stream, status.into());
                false
            }
            None => {
                let _ = client.half_close(stream); // it may be over, which the reader hears
                false
            }
        });
        if !goes_on.unwrap_or(false) {
            return;
        }
    }
}

enum Answer {
    Open,
    /// The trailers are to come.
    Ended(HeaderMap),
    Done,
}

/// The body of an answer. Dropping it cancels the call.
pub(crate) struct CallBody {
    end: Arc<End<protocol::Client>>,
    stream: StreamId,
    framed: Framed,
    /// The rest of the request is on its way.
    upload: Option<AbortHandle>,
    state: Answer,
}

impl CallBody {
    fn poll_event(&self, cx: &Context<'_>) -> Poll<ResponseEvent> {
        let event = ready!(self.end.poll_with(cx, self.stream, For::Events, |client| client.poll_event(self.stream)));
        Poll::Ready(event.unwrap_or(ResponseEvent::Lost)) // what is not there when the tunnel has ended does not come
    }

    /// That the tunnel was lost, and why.
    fn lost(&self) -> Failed {
        Failed::Tunnel(self.end.ended().unwrap_or(CloseReason::ClosedLocally))
    }

    /// Waits for what an answer begins with.
    async fn head(mut self) -> Result<Response<Self>, Failed> {
        let mut answer = Response::new(());
        let mut head = HeaderMap::new();
        match poll_fn(|cx| self.poll_event(cx)).await {
            ResponseEvent::Headers(headers) => {
                head = into_headers(headers).map_err(|error| Failed::Call(Status::internal(error.to_string())))?;
            }
            ResponseEvent::Message { size, data } => self.framed.begin(size, data),
            ResponseEvent::More(data) => self.framed.more(data),
            ResponseEvent::End { status, trailers } => {
                // An answer of trailers alone.
                head = ended(status, trailers);
                self.over(Answer::Done);
            }
            ResponseEvent::Lost => return Err(self.lost()),
        }
        *answer.headers_mut() = head;
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(answer.map(|()| self))
    }

    fn over(&mut self, state: Answer) {
        self.state = state;
        self.end.forget(self.stream, &[For::Room, For::Events]);
        if let Some(upload) = self.upload.take() {
            upload.abort();
        }
    }
}

/// The end of a call as trailers.
fn ended(status: proto::Status, trailers: proto::Metadata) -> HeaderMap {
    let mut headers = into_trailers(trailers);
    status.write_to(&mut headers);
    headers
}

impl Body for CallBody {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        loop {
            if let Some(data) = self.framed.pop() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            match std::mem::replace(&mut self.state, Answer::Done) {
                Answer::Done => return Poll::Ready(None),
                Answer::Ended(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Answer::Open => self.state = Answer::Open,
            }
            match ready!(self.poll_event(cx)) {
                ResponseEvent::Headers(_) => {} // never: they come first
                ResponseEvent::Message { size, data } => self.framed.begin(size, data),
                ResponseEvent::More(data) => self.framed.more(data),
                ResponseEvent::End { status, trailers } => self.over(Answer::Ended(ended(status, trailers))),
                ResponseEvent::Lost => {
                    self.over(Answer::Done);
                    return Poll::Ready(Some(Err(self.lost())));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, Answer::Done) && self.framed.is_empty()
    }
}

#[cfg(feature = "gateway")]
impl CallBody {
    /// The same, whose failure is an end with these trailers.
    pub(crate) fn ending<F: Fn(Failed) -> HeaderMap>(self, trailers: F) -> Ending<F> {
        Ending { body: self, trailers }
    }
}

/// See [`CallBody::ending`].
#[cfg(feature = "gateway")]
pub(crate) struct Ending<F> {
    body: CallBody,
    trailers: F,
}

#[cfg(feature = "gateway")]
impl<F: Fn(Failed) -> HeaderMap + Unpin> Body for Ending<F> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(polled.map(|frame| Ok(frame.unwrap_or_else(|failed| Frame::trailers((self.trailers)(failed))))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Drop for CallBody {
    fn drop(&mut self) {
        if matches!(self.state, Answer::Open) {
            self.end.leave(|client| client.cancel(self.stream));
            self.over(Answer::Done);
        }
    }
}

impl fmt::Debug for CallBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallBody").field("stream", &self.stream).finish_non_exhaustive()
    }
}
