//! The tunnel server: it answers calls.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::Code;

use super::error::Violation;
use super::lines::Line;
use super::receive::Inbox;
use super::stream::{Role, Stream, Streams};
use super::{
    Config, MAX_SENT, Negotiated, Piece, Revision, SETTINGS_ID, SHUTTING_DOWN, SendError, StreamId, TunnelError, Woken,
    metadata, method,
};
use crate::grpctunnel::proto::{
    ClientToServer, CloseStream, MessageData, Metadata, NewStream, ServerToClient, Settings, Status,
    client_to_server::Frame as ClientFrame, server_to_client::Frame as ServerFrame,
};
use crate::unread::{Share, Unread};

/// Answers to calls that were refused or given up which may wait for the carrier. A client that makes calls faster than it
/// reads what becomes of them is not read meanwhile.
const ANSWERS: usize = 1024;

/// A call that a client has begun.
#[derive(Debug)]
pub(crate) struct NewCall {
    pub(crate) id: StreamId,
    /// `/package.Service/Method`, with the slash, whether the client wrote it or not.
    pub(crate) path: PathAndQuery,
    /// As it came: `grpc-timeout` is still in it.
    pub(crate) metadata: Metadata,
}

/// What the handler gets, in this order: messages, then the end of them. `Cancelled` may come at any time.
#[derive(Debug, PartialEq)]
pub(crate) enum RequestEvent {
    /// A message of `size` bytes begins with `data`, which may be all of it, or nothing.
    Message { size: u32, data: Bytes },
    /// The message goes on.
    More(Bytes),
    /// There are no more messages.
    HalfClosed,
    /// The call is over for its caller, who has given it up or broken a rule: nobody waits for the handler any more. The
    /// call is forgotten, so this is also what is told of an id that was never there.
    Cancelled,
}

/// When a call that its handler has closed is closed for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    /// As soon as what was written before has been sent.
    Now,
    /// When the caller has sent all it wants to, or at [`Server::release`].
    ///
    /// Go's client loses the reply of a client-streaming call that ends with OK while it is still sending. So the end of
    /// what looks like one (OK, after exactly one message, before half-close) waits, and meanwhile what comes is read and
    /// dropped. But it may also be a bidirectional call whose caller waits for the end before it half-closes: the driver
    /// has to release it after a moment.
    Held,
}

/// What a call goes through; what is done to it after its end is passed over.
///
/// ```text
///   begun ──half_close──▶ half-closed ──close──▶ closing ──close_stream is sent──▶ forgotten
///     │ │                                           ▲ ▲                                ▲
///     │ └───────────────── close ───────────────────┘ │                                │
///     ├─ close, OK after one message ─▶ held ──half_close, release                     │
///     └──────── cancel, refuse, or a rule was broken, in any state ────────────────────┘
/// ```
#[derive(Debug)]
struct Call {
    /// Until it is accepted.
    begun: Option<Box<NewCall>>,
    headers: Headers,
    /// Those that the handler has begun.
    messages: u64,
    half_close: HalfClose,
    close: Option<Box<CloseStream>>,
    held: bool,
}

#[derive(Debug)]
enum Headers {
    Awaited,
    Due(Metadata),
    Sent,
}

#[derive(Debug, PartialEq, Eq)]
enum HalfClose {
    Awaited,
    Here,
    Read,
}

impl Role for Call {
    fn is_due(stream: &Stream<Self>) -> bool {
        matches!(stream.role.headers, Headers::Due(_)) || stream.inbox.is_owing() || stream.can_end()
    }

    fn has_event(stream: &Stream<Self>) -> bool {
        stream.inbox.has_piece() || stream.role.half_close == HalfClose::Here
    }
}

/// The tunnel server's side of one tunnel.
#[derive(Debug)]
pub(crate) struct Server {
    streams: Streams<Call>,
    /// The newest revision of calls.
    newest: Revision,
    /// They were not sent yet.
    settings: Option<Settings>,
    /// The last id of a call, accepted or refused.
    last: i64,
    /// Calls that were begun and not accepted.
    begun: Line,
    /// The ends of calls that are forgotten.
    answers: VecDeque<(StreamId, Status)>,
    draining: bool,
    closed: bool,
}

impl Server {
    pub(crate) fn new(config: Config, negotiated: Negotiated) -> Self {
        let streams = Streams::new(config);
        let (settings, newest) = match negotiated {
            Negotiated::Yes => {
                let newest = streams.config.newest;
                let settings = Settings {
                    supported_protocol_revisions: Revision::up_to(newest),
                    initial_window_size: streams.config.start,
                };
                (Some(settings), newest)
            }
            Negotiated::No => (None, Revision::Zero),
        };
        let (begun, answers) = (Line::default(), VecDeque::new());
        Self { streams, newest, settings, last: -1, begun, answers, draining: false, closed: false }
    }

    /// A frame of the carrier. An error is the peer's, and of the whole tunnel: its carrier has to be closed. What is wrong
    /// with one call ends that call alone.
    pub(crate) fn receive(&mut self, frame: ClientToServer) -> Result<(), TunnelError> {
        let ClientToServer { stream_id, frame } = frame;
        let id = StreamId(stream_id);
        if self.closed {
            return Ok(());
        }
        let frame = match frame {
            Some(ClientFrame::NewStream(_)) if stream_id <= self.last => {
                return Err(TunnelError::StreamIdUsed(stream_id));
            }
            Some(ClientFrame::NewStream(stream)) => {
                // Also if it is refused: the client cannot know that yet, and the frames that follow are no error.
                self.last = stream_id;
                self.begin(id, stream);
                return Ok(());
            }
            _ if stream_id > self.last => return Err(TunnelError::NeverCreated(stream_id)),
            frame => frame,
        };
        // A frame of a call that is over has been under way for a while, and is passed over.
        let result = self.streams.with(id, |stream, _| match frame {
            Some(ClientFrame::RequestMessage(MessageData { size, data })) => {
                stream.arrives(|inbox| inbox.begin(size, data))
            }
            Some(ClientFrame::MoreRequestData(data)) => stream.arrives(|inbox| inbox.go_on(data)),
            Some(ClientFrame::HalfClose(())) => stream.half_close(),
            Some(ClientFrame::WindowUpdate(bytes)) => {
                stream.outbox.grant(bytes);
                Ok(())
            }
            Some(ClientFrame::Cancel(())) => Err(None),
            Some(ClientFrame::NewStream(_)) | None => Err(Some(Violation::Frame)),
        });
        match result {
            Some(Err(Some(violation))) => self.end(id, violation.status(Code::InvalidArgument)),
            Some(Err(None)) => self.end(id, Status::new(Code::Cancelled, "the caller has given up")),
            _ => {}
        }
        Ok(())
    }

    /// From now on what is unread counts together with that of others.
    pub(crate) fn share(&mut self, unread: Arc<Unread>) {
        self.streams.share(unread);
    }

    /// What is unread, and how much that may be. While it is more, the carrier is not to be read; but readers may never come
    /// to it, so that after a moment calls have to be [ended](Self::end_most).
    pub(crate) fn unread(&self) -> &Arc<Unread> {
        self.streams.unread()
    }

    /// What the call holds that holds most.
    pub(crate) fn most(&self) -> usize {
        self.streams.most().map_or(0, |(_, held)| held)
    }

    /// Ends that call.
    pub(crate) fn end_most(&mut self) {
        // Since somebody looked, its reader may have taken all that it held.
        if let Some((id, _)) = self.streams.most().filter(|(_, held)| *held > 0) {
            self.end(id, Violation::Held { limit: self.unread().limit() }.status(Code::InvalidArgument));
        }
    }

    fn begin(&mut self, id: StreamId, stream: NewStream) {
        match self.check(id, stream) {
            Ok((call, revision, window)) => {
                let memory = metadata::memory(&call.metadata) + call.path.as_str().len();
                let (half_close, headers) = (HalfClose::Awaited, Headers::Awaited);
                let begun = Some(Box::new(call));
                let call = Call { begun, headers, messages: 0, half_close, close: None, held: false };
                self.streams.insert(id, revision, window, call, memory);
                self.begun.push(id);
            }
            Err(status) => self.answers.push_back((id, status)),
        }
    }

    /// The call that is begun, its revision and the window that its client grants; or why it is refused.
    fn check(&self, id: StreamId, stream: NewStream) -> Result<(NewCall, Revision, u32), Status> {
        let NewStream { method_name, request_headers, initial_window_size: window, protocol_revision: number } = stream;
        let Config { max_metadata: limit, max_streams, .. } = self.streams.config;
        if self.draining {
            return Err(Status::new(Code::Unavailable, SHUTTING_DOWN));
        }
        if self.streams.len() >= max_streams {
            let message = format!("the tunnel has {max_streams} calls already");
            return Err(Status::new(Code::ResourceExhausted, message));
        }
        // To try again is no use, so this is not UNAVAILABLE, as v0.3.0 of the Go library has it; its successor agrees.
        let Some(revision) = Revision::of(number).filter(|revision| *revision <= self.newest) else {
            let message = format!("server does not support protocol revision {number}");
            return Err(Status::new(Code::FailedPrecondition, message));
        };
        if window < revision.minimum_window() {
            return Err(Status::new(Code::Internal, TunnelError::Window { window, revision }.to_string()));
        }
        let metadata = request_headers.unwrap_or_default();
        if metadata::size(&metadata).saturating_add(method_name.len()) > limit {
            return Err(Violation::MetadataSize { limit }.status(Code::InvalidArgument));
        }
        let quoted = if method::is_well_formed(&method_name) { String::new() } else { method::quote(&method_name) };
        let Some(path) = method::path_of(method_name) else {
            return Err(Status::new(Code::InvalidArgument, format!("{quoted} is not a well-formed method name")));
        };
        Ok((NewCall { id, path, metadata }, revision, window))
    }

    /// A call ends at once, for its caller and for its handler.
    fn end(&mut self, id: StreamId, status: Status) {
        let Some(stream) = self.streams.get(id) else { return };
        let accepted = stream.role.begun.is_none();
        self.streams.remove(id, accepted);
        if !accepted {
            self.begun.leave(|id| self.streams.contains(id));
        }
        self.answers.push_back((id, status));
    }

    /// The next frame for the carrier. To be asked whenever the carrier takes one: what is not asked for waits here, where
    /// it counts as queued.
    pub(crate) fn poll_frame(&mut self) -> Option<ServerToClient> {
        if self.closed {
            return None;
        }
        if let Some(settings) = self.settings.take() {
            return Some(ServerToClient { stream_id: SETTINGS_ID, frame: Some(ServerFrame::Settings(settings)) });
        }
        if let Some((StreamId(stream_id), status)) = self.answers.pop_front() {
            let close = CloseStream { response_trailers: None, status: Some(status) };
            return Some(ServerToClient { stream_id, frame: Some(ServerFrame::CloseStream(close)) });
        }
        while let Some(id) = self.streams.next_due() {
            if let Some(frame) = self.streams.with(id, Stream::next_frame).flatten() {
                if matches!(frame, ServerFrame::CloseStream(_)) {
                    self.streams.remove(id, true);
                }
                return Some(ServerToClient { stream_id: id.0, frame: Some(frame) });
            }
        }
        while let Some(id) = self.streams.next_ready() {
            let frame = match self.streams.with(id, |stream, _| stream.outbox.next()).flatten() {
                Some(Piece::First { size, data }) => ServerFrame::ResponseMessage(MessageData { size, data }),
                Some(Piece::More(data)) => ServerFrame::MoreResponseData(data),
                None => continue,
            };
            return Some(ServerToClient { stream_id: id.0, frame: Some(frame) });
        }
        None
    }

    /// So much waits that the carrier is not to be read before some of it is sent or read by handlers.
    pub(crate) fn is_overfull(&self) -> bool {
        self.answers.len() >= ANSWERS || self.streams.is_overfull()
    }

    /// A call that has something new to read or room to write, since it was told that it had not; or one that was
    /// cancelled.
    pub(crate) fn next_woken(&mut self) -> Option<Woken> {
        self.streams.next_woken()
    }

    /// Whether there may be one.
    pub(crate) fn has_calls_to_accept(&self) -> bool {
        !self.begun.is_empty()
    }

    /// A call that was begun. One that was given up before it was taken is not told of.
    pub(crate) fn accept(&mut self) -> Option<NewCall> {
        while let Some(id) = self.begun.pop() {
            let accepted = self.streams.with(id, |stream, _| {
                stream.metadata = 0;
                stream.role.begun.take()
            });
            if let Some(call) = accepted.flatten() {
                return Some(*call);
            }
            self.begun.skipped();
        }
        None
    }

    /// The next that the handler gets. None: not yet; a [`Woken`] will say when.
    pub(crate) fn poll_event(&mut self, id: StreamId) -> Option<RequestEvent> {
        self.streams.with(id, |stream, _| stream.next_event()).unwrap_or(Some(RequestEvent::Cancelled))
    }

    /// Whether nobody waits for the handler any more; a [`Woken`] says when it comes to that.
    pub(crate) fn is_over(&self, id: StreamId) -> bool {
        !self.streams.contains(id)
    }

    /// The handler does not read the rest: what comes is dropped, so that the caller can go on sending.
    pub(crate) fn discard(&mut self, id: StreamId) {
        self.streams.with(id, |stream, _| stream.inbox.discard());
    }

    /// Sends the response's headers, once; without this call empty ones go before the first message.
    /// The call ends where no carrier would take them.
    pub(crate) fn headers(&mut self, id: StreamId, metadata: Metadata) -> Result<(), SendError> {
        if metadata.encoded_len() > MAX_SENT {
            self.end(id, Violation::MetadataSize { limit: MAX_SENT }.status(Code::Internal));
        }
        self.write(id, |stream| {
            if matches!(stream.role.headers, Headers::Awaited) {
                stream.role.headers = Headers::Due(metadata);
            }
            Ok(())
        })
    }

    /// Whether the handler may write. If not, a [`Woken`] will say when. Of a call that is over there is no need to wait,
    /// so it has room.
    pub(crate) fn has_room(&mut self, id: StreamId) -> bool {
        self.streams.has_room(id)
    }

    /// Writes a whole message.
    pub(crate) fn send(&mut self, id: StreamId, message: Bytes) -> Result<(), SendError> {
        self.write(id, |stream| {
            stream.outbox.send(message)?;
            stream.begins_message();
            Ok(())
        })
    }

    /// Begins a message of `size` bytes.
    pub(crate) fn start_message(&mut self, id: StreamId, size: u32) -> Result<(), SendError> {
        self.write(id, |stream| {
            stream.outbox.start(size)?;
            stream.begins_message();
            Ok(())
        })
    }

    /// Goes on with the message that was begun.
    pub(crate) fn push(&mut self, id: StreamId, data: Bytes) -> Result<(), SendError> {
        self.write(id, |stream| stream.outbox.push(data))
    }

    fn write(
        &mut self,
        id: StreamId,
        act: impl FnOnce(&mut Stream<Call>) -> Result<(), SendError>,
    ) -> Result<(), SendError> {
        let result = self.streams.with(id, |stream, _| match stream.role.close {
            None => act(stream),
            Some(_) => Err(SendError::Over),
        });
        result.unwrap_or(Err(SendError::Over))
    }

    /// The handler is done. What it has written is sent first. An OK in the middle of a message becomes `INTERNAL`, and an end
    /// that no carrier would take `RESOURCE_EXHAUSTED`.
    pub(crate) fn close(&mut self, id: StreamId, mut status: Status, mut trailers: Metadata) -> Closing {
        if status.encoded_len().saturating_add(trailers.encoded_len()) > MAX_SENT {
            status = Violation::MetadataSize { limit: MAX_SENT }.status(Code::Internal);
            trailers = Metadata::default();
        }
        let held = self.streams.with(id, |stream, _| {
            stream.close(status, trailers);
            stream.role.held
        });
        if held == Some(true) { Closing::Held } else { Closing::Now }
    }

    /// What was [held](Closing::Held) is sent.
    pub(crate) fn release(&mut self, id: StreamId) {
        self.streams.with(id, |stream, _| stream.role.held = false);
    }

    /// Ends a call at once, and drops what was written and not sent: a handler that panicked, a deadline that has passed.
    pub(crate) fn refuse(&mut self, id: StreamId, status: Status) {
        self.end(id, status);
    }

    /// Calls that come from now on are refused with `UNAVAILABLE`. Those that wait to be accepted are not.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    #[cfg(test)]
    pub(super) fn streams(&self) -> &Streams<impl Role> {
        &self.streams
    }

    /// How many calls stand in line to be accepted, gone or not.
    #[cfg(test)]
    pub(super) fn begun(&self) -> usize {
        self.begun.len()
    }

    /// The calls that are not over: those whose end the carrier has not taken count, too.
    pub(crate) fn calls(&self) -> usize {
        self.streams.len() + self.answers.len()
    }

    /// The tunnel is lost: every call is cancelled. Nothing is sent or received any more.
    pub(crate) fn close_tunnel(&mut self) {
        self.closed = true;
        for id in self.streams.end() {
            self.end(id, Status::default());
        }
        self.answers = VecDeque::new();
        self.begun.clear();
    }
}

impl Stream<Call> {
    fn arrives(&mut self, take: impl FnOnce(&mut Inbox) -> Result<(), Violation>) -> Result<(), Option<Violation>> {
        if self.role.half_close != HalfClose::Awaited {
            return if self.role.close.is_some() { Ok(()) } else { Err(Some(Violation::HalfClosed)) };
        }
        match take(&mut self.inbox) {
            // Nobody minds any more what is wrong with a request that was answered.
            Err(_) if self.role.close.is_some() => Ok(()),
            result => result.map_err(Some),
        }
    }

    fn half_close(&mut self) -> Result<(), Option<Violation>> {
        if self.inbox.is_incomplete() && self.role.close.is_none() {
            return Err(Some(Violation::Truncated));
        }
        if self.role.half_close == HalfClose::Awaited {
            self.role.half_close = HalfClose::Here;
        }
        self.inbox.finish();
        self.role.held = false;
        Ok(())
    }

    fn begins_message(&mut self) {
        self.role.messages += 1;
        if matches!(self.role.headers, Headers::Awaited) {
            self.role.headers = Headers::Due(Metadata::default());
        }
    }

    fn close(&mut self, mut status: Status, trailers: Metadata) {
        if self.role.close.is_some() {
            return;
        }
        if self.outbox.missing() > 0 && status.is_ok() {
            status = Violation::Truncated.status(Code::Internal);
        }
        let awaits_half_close = self.role.half_close == HalfClose::Awaited;
        self.role.held = status.is_ok() && awaits_half_close && self.role.messages == 1;
        // The caller may not get to the end of the response before it has got to the end of its request.
        self.inbox.discard();
        let status = (!status.is_ok()).then_some(status);
        self.role.close = Some(Box::new(CloseStream { response_trailers: Some(trailers), status }));
    }

    /// The frame that goes before data, if there is one; the end after all data.
    fn next_frame(&mut self, share: &mut Share) -> Option<ServerFrame> {
        if matches!(self.role.headers, Headers::Due(_)) {
            let Headers::Due(headers) = std::mem::replace(&mut self.role.headers, Headers::Sent) else { return None };
            return Some(ServerFrame::ResponseHeaders(headers));
        }
        if let Some(bytes) = self.take_owed(share) {
            return Some(ServerFrame::WindowUpdate(bytes));
        }
        if self.can_end() {
            return self.role.close.take().map(|close| ServerFrame::CloseStream(*close));
        }
        None
    }

    /// The end goes after all data.
    fn can_end(&self) -> bool {
        self.role.close.is_some() && !self.role.held && self.outbox.is_empty()
    }

    fn next_event(&mut self) -> Option<RequestEvent> {
        match self.inbox.next() {
            Some(Piece::First { size, data }) => return Some(RequestEvent::Message { size, data }),
            Some(Piece::More(data)) => return Some(RequestEvent::More(data)),
            None => {}
        }
        if self.role.half_close == HalfClose::Here {
            self.role.half_close = HalfClose::Read;
            return Some(RequestEvent::HalfClosed);
        }
        self.reader_waits = true;
        None
    }
}
