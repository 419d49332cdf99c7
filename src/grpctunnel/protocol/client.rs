//! The tunnel client: it makes calls.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tonic::Code;

use super::error::Violation;
use super::stream::{Role, Stream, Streams};
use super::{
    Config, MAX_SENT, Negotiated, OpenError, Piece, Revision, SETTINGS_ID, SendError, StreamId, TunnelError, Woken,
    metadata, method,
};
use crate::grpctunnel::proto::{
    ClientToServer, CloseStream, MessageData, Metadata, NewStream, ServerToClient, Settings, Status,
    client_to_server::Frame as ClientFrame, server_to_client::Frame as ServerFrame,
};
use crate::unread::{Share, Unread};

/// As many revisions as are repeated of a server that speaks none of ours.
const REPEATED: usize = 16;

/// What the caller gets, in this order: headers, messages, the end. After the end the call is forgotten.
#[derive(Debug, PartialEq)]
pub(crate) enum ResponseEvent {
    /// Before any message, if there is one, even if the server sent none.
    Headers(Metadata),
    /// A message of `size` bytes begins with `data`, which may be all of it, or nothing.
    Message { size: u32, data: Bytes },
    /// The message goes on.
    More(Bytes),
    /// The call is over. If it is in the middle of a message, the status is an error.
    End { status: Status, trailers: Metadata },
    /// The tunnel is lost, and with it whatever was to come: the call is over.
    Lost,
}

/// What a call goes through; each is passed at most once.
///
/// ```text
///   open ──new_stream──▶ sent ──half_close──▶ half-closed ──close_stream──▶ ended ──End was read──▶ forgotten
///     │                   │ └────────────────────│─────────close_stream──────▲                         ▲
///     └──────cancel───────┴───────cancel─────────┴────────────────cancel─────┴─────────────────────────┘
/// ```
#[derive(Debug)]
struct Call {
    /// Until it is sent.
    opening: Option<Box<NewStream>>,
    half_close: HalfClose,
    headers: Headers,
    /// [`ResponseEvent::End`] or [`ResponseEvent::Lost`].
    end: Option<Box<ResponseEvent>>,
}

#[derive(Debug, PartialEq, Eq)]
enum HalfClose {
    /// There may be more messages.
    Open,
    /// There are none; those that were written come first.
    Due,
    Sent,
}

#[derive(Debug)]
enum Headers {
    Awaited,
    Here(Metadata),
    Read,
}

impl Role for Call {
    fn is_due(stream: &Stream<Self>) -> bool {
        stream.role.end.is_none()
            && (stream.role.opening.is_some() || stream.inbox.is_owing() || stream.can_half_close())
    }

    fn has_event(stream: &Stream<Self>) -> bool {
        matches!(stream.role.headers, Headers::Here(_)) || stream.inbox.has_piece() || stream.role.end.is_some()
    }
}

/// The tunnel client's side of one tunnel.
#[derive(Debug)]
pub(crate) struct Client {
    streams: Streams<Call>,
    /// The revision of calls, and the window that the server grants to each. None before its settings have come.
    terms: Option<(Revision, u32)>,
    /// The last id that was given to a call.
    opened: i64,
    /// The last whose `new_stream` was sent: a server cannot know a later one.
    sent: Option<i64>,
    /// Calls that have been given up, whose server has to be told.
    cancelled: VecDeque<StreamId>,
    closed: bool,
}

impl Client {
    pub(crate) fn new(config: Config, negotiated: Negotiated) -> Self {
        let terms = (negotiated == Negotiated::No).then_some((Revision::Zero, 0));
        let (streams, cancelled) = (Streams::new(config), VecDeque::new());
        Self { streams, terms, opened: 0, sent: None, cancelled, closed: false }
    }

    /// The revision of its calls, as soon as calls can be made: after the server's settings, where there are any.
    pub(crate) fn revision(&self) -> Option<Revision> {
        self.terms.map(|(revision, _)| revision)
    }

    /// A frame of the carrier. An error is the peer's, and of the whole tunnel: its carrier has to be closed. What is wrong
    /// with one call ends that call alone.
    pub(crate) fn receive(&mut self, frame: ServerToClient) -> Result<(), TunnelError> {
        let ServerToClient { stream_id, frame } = frame;
        if self.closed {
            return Ok(());
        }
        if self.terms.is_none() {
            let Some(ServerFrame::Settings(settings)) = frame else { return Err(TunnelError::NotSettings) };
            return self.settle(stream_id, &settings);
        }
        // A frame of a call that is over has been under way for a while, and is passed over; so are settings after the
        // first call. Before it there is nothing that a server could send.
        if self.sent.is_none_or(|last| stream_id > last) {
            return Err(TunnelError::NeverCreated(stream_id));
        }
        let (id, limit) = (StreamId(stream_id), self.streams.config.max_metadata);
        let result = self.streams.with(id, |stream, _| {
            if stream.role.end.is_some() {
                return Ok(());
            }
            match frame {
                Some(ServerFrame::ResponseHeaders(headers)) => stream.take_headers(headers, limit),
                Some(ServerFrame::ResponseMessage(MessageData { size, data })) => stream.inbox.begin(size, data),
                Some(ServerFrame::MoreResponseData(data)) => stream.inbox.go_on(data),
                Some(ServerFrame::CloseStream(close)) => {
                    stream.take_close(close, limit);
                    Ok(())
                }
                Some(ServerFrame::WindowUpdate(bytes)) => {
                    stream.outbox.grant(bytes);
                    Ok(())
                }
                Some(ServerFrame::Settings(_)) | None => Err(Violation::Frame),
            }
        });
        if let Some(Err(violation)) = result {
            self.fail(id, violation);
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

    /// Ends that call, with all that waits of it.
    pub(crate) fn end_most(&mut self) {
        // Since somebody looked, its reader may have taken all that it held.
        if let Some((id, _)) = self.streams.most().filter(|(_, held)| *held > 0) {
            self.streams.with(id, |stream, _| {
                if matches!(stream.role.headers, Headers::Here(_)) {
                    stream.role.headers = Headers::Awaited;
                }
            });
            self.fail(id, Violation::Held { limit: self.unread().limit() });
        }
    }

    fn settle(&mut self, id: i64, settings: &Settings) -> Result<(), TunnelError> {
        if id != SETTINGS_ID {
            return Err(TunnelError::SettingsId(id));
        }
        let theirs = &settings.supported_protocol_revisions;
        let Some(revision) = Revision::choose(self.streams.config.newest, theirs) else {
            return Err(TunnelError::NoCommonRevision { theirs: theirs.iter().copied().take(REPEATED).collect() });
        };
        let window = settings.initial_window_size;
        if window < revision.minimum_window() {
            return Err(TunnelError::Window { window, revision });
        }
        self.terms = Some((revision, window));
        Ok(())
    }

    /// A call ends with this: the caller hears of it, and the server, unless it has ended the call itself, that nobody waits
    /// for it any more.
    fn fail(&mut self, id: StreamId, violation: Violation) {
        let running = self.streams.with(id, |stream, _| {
            stream.inbox.stop();
            // What the server has ended with is no longer true: some of what it sent before is lost.
            let ended = stream.role.end.take();
            stream.end(violation.status(Code::Internal), Metadata::default());
            stream.metadata =
                if let Headers::Here(headers) = &stream.role.headers { metadata::memory(headers) } else { 0 };
            ended.is_none()
        });
        if running == Some(true) {
            self.cancelled.push_back(id);
        }
    }

    /// The next frame for the carrier. To be asked whenever the carrier takes one: what is not asked for waits here, where
    /// it counts as queued.
    pub(crate) fn poll_frame(&mut self) -> Option<ClientToServer> {
        if self.closed {
            return None;
        }
        if let Some(StreamId(stream_id)) = self.cancelled.pop_front() {
            return Some(ClientToServer { stream_id, frame: Some(ClientFrame::Cancel(())) });
        }
        while let Some(id) = self.streams.next_due() {
            if let Some(frame) = self.streams.with(id, Stream::next_frame).flatten() {
                if matches!(frame, ClientFrame::NewStream(_)) {
                    self.sent = Some(id.0);
                }
                return Some(ClientToServer { stream_id: id.0, frame: Some(frame) });
            }
        }
        while let Some(id) = self.streams.next_ready() {
            let frame = match self.streams.with(id, |stream, _| stream.outbox.next()).flatten() {
                Some(Piece::First { size, data }) => ClientFrame::RequestMessage(MessageData { size, data }),
                Some(Piece::More(data)) => ClientFrame::MoreRequestData(data),
                None => continue,
            };
            return Some(ClientToServer { stream_id: id.0, frame: Some(frame) });
        }
        None
    }

    /// So much waits that the carrier is not to be read before some of it is read by callers. Only revision zero, which
    /// has no windows, comes to that.
    pub(crate) fn is_overfull(&self) -> bool {
        self.streams.is_overfull()
    }

    /// A call that has something new to read or room to write, since it was told that it had not.
    pub(crate) fn next_woken(&mut self) -> Option<Woken> {
        self.streams.next_woken()
    }

    /// Begins a call. `method` is `/package.Service/Method`.
    pub(crate) fn open(&mut self, method: &str, metadata: Metadata) -> Result<StreamId, OpenError> {
        if self.closed {
            return Err(OpenError::Closed);
        }
        let Some((revision, window)) = self.terms else { return Err(OpenError::NotReady) };
        // An empty one kills the process of a Go server.
        if !method::is_well_formed(method) {
            return Err(OpenError::Method(method.to_owned()));
        }
        if metadata.encoded_len() > MAX_SENT {
            return Err(OpenError::MetadataSize { limit: MAX_SENT });
        }
        self.opened = self.opened.checked_add(1).ok_or(OpenError::NoIds)?;
        let id = StreamId(self.opened);
        let own = if revision == Revision::Zero { 0 } else { self.streams.config.start };
        let opening = Some(Box::new(NewStream {
            method_name: method.to_owned(),
            request_headers: Some(metadata),
            initial_window_size: own,
            protocol_revision: revision.number(),
        }));
        let call = Call { opening, half_close: HalfClose::Open, headers: Headers::Awaited, end: None };
        self.streams.insert(id, revision, window, call, 0);
        Ok(id)
    }

    /// Whether the call's caller may write. If not, a [`Woken`] will say when. Of a call that is over there is no need to
    /// wait, so it has room.
    pub(crate) fn has_room(&mut self, id: StreamId) -> bool {
        self.streams.has_room(id)
    }

    /// Writes a whole message.
    pub(crate) fn send(&mut self, id: StreamId, message: Bytes) -> Result<(), SendError> {
        self.write(id, |stream| stream.outbox.send(message))
    }

    /// Begins a message of `size` bytes.
    pub(crate) fn start_message(&mut self, id: StreamId, size: u32) -> Result<(), SendError> {
        self.write(id, |stream| stream.outbox.start(size))
    }

    /// Goes on with the message that was begun.
    pub(crate) fn push(&mut self, id: StreamId, data: Bytes) -> Result<(), SendError> {
        self.write(id, |stream| stream.outbox.push(data))
    }

    /// There are no more messages. What was written before is sent first.
    pub(crate) fn half_close(&mut self, id: StreamId) -> Result<(), SendError> {
        self.write(id, |stream| match stream.outbox.missing() {
            0 => {
                stream.role.half_close = HalfClose::Due;
                Ok(())
            }
            missing => Err(SendError::Unfinished(missing)),
        })
    }

    fn write(
        &mut self,
        id: StreamId,
        act: impl FnOnce(&mut Stream<Call>) -> Result<(), SendError>,
    ) -> Result<(), SendError> {
        let result = self.streams.with(id, |stream, _| match (&stream.role.end, &stream.role.half_close) {
            (Some(_), _) => Err(SendError::Over),
            (None, HalfClose::Open) => act(stream),
            (None, _) => Err(SendError::HalfClosed),
        });
        result.unwrap_or(Err(SendError::Over))
    }

    /// The caller has left, or its deadline has passed: the call is forgotten, with all that waits for it. No-op for one
    /// that is over, so whoever drops a call may say so without asking.
    pub(crate) fn cancel(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(id, true) else { return };
        // What the server does not know it need not forget; and it knows what it has ended.
        if stream.role.opening.is_none() && stream.role.end.is_none() && !self.closed {
            self.cancelled.push_back(id);
        }
    }

    /// The caller cannot go on: the call ends with this for whoever reads it, and the server is told that nobody waits.
    pub(crate) fn abandon(&mut self, id: StreamId, status: Status) {
        let running = self.streams.with(id, |stream, _| {
            let running = stream.role.end.is_none();
            if running {
                stream.inbox.stop();
                stream.end(status, Metadata::default());
            }
            running && stream.role.opening.is_none()
        });
        if running == Some(true) && !self.closed {
            self.cancelled.push_back(id);
        }
    }

    /// The next that the caller gets. None: not yet; a [`Woken`] will say when.
    pub(crate) fn poll_event(&mut self, id: StreamId) -> Option<ResponseEvent> {
        let Some(event) = self.streams.with(id, |stream, _| stream.next_event()) else {
            let status = Status::new(Code::Cancelled, "the call is over");
            return Some(ResponseEvent::End { status, trailers: Metadata::default() });
        };
        if matches!(event, Some(ResponseEvent::End { .. } | ResponseEvent::Lost)) {
            self.streams.remove(id, false);
        }
        event
    }

    /// Whether the server may have seen the call: one that it has not can be made again elsewhere.
    #[cfg(test)]
    pub(crate) fn was_sent(&self, id: StreamId) -> bool {
        self.streams.get(id).is_none_or(|stream| stream.role.opening.is_none())
    }

    #[cfg(test)]
    pub(super) fn streams(&self) -> &Streams<impl Role> {
        &self.streams
    }

    /// The calls whose end was not read.
    #[allow(dead_code)] // for the tests and the fuzzer
    pub(crate) fn calls(&self) -> usize {
        self.streams.len()
    }

    /// The tunnel is lost, and so is every call, after what was received before. Nothing is sent, received or opened any
    /// more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.cancelled = VecDeque::new();
        for id in self.streams.end() {
            self.streams.with(id, |stream, _| stream.end_with(ResponseEvent::Lost));
        }
    }
}

impl Stream<Call> {
    /// The second ones, and those that come too late, are passed over.
    fn take_headers(&mut self, headers: Metadata, limit: usize) -> Result<(), Violation> {
        if metadata::size(&headers) > limit {
            return Err(Violation::MetadataSize { limit });
        }
        if matches!(self.role.headers, Headers::Awaited) {
            self.metadata += metadata::memory(&headers);
            self.role.headers = Headers::Here(headers);
        }
        Ok(())
    }

    fn take_close(&mut self, close: CloseStream, limit: usize) {
        let (mut status, trailers) = (close.status.unwrap_or_default(), close.response_trailers.unwrap_or_default());
        status.keep();
        if metadata::size(&trailers).saturating_add(status.encoded_len()) > limit {
            return self.end(Violation::MetadataSize { limit }.status(Code::Internal), Metadata::default());
        }
        self.metadata += metadata::memory(&trailers) + status.memory();
        if self.inbox.is_incomplete() && status.is_ok() {
            self.end(Violation::Truncated.status(Code::Internal), trailers);
        } else {
            self.end(status, trailers);
        }
    }

    fn end(&mut self, status: Status, trailers: Metadata) {
        self.end_with(ResponseEvent::End { status, trailers });
    }

    /// Nothing more is sent, and nothing comes after what is there. The first end stands.
    fn end_with(&mut self, end: ResponseEvent) {
        self.outbox.clear();
        self.inbox.finish();
        self.role.end.get_or_insert_with(|| Box::new(end));
    }

    /// The frame that goes before data, if there is one.
    fn next_frame(&mut self, share: &mut Share) -> Option<ClientFrame> {
        if self.role.end.is_some() {
            return None;
        }
        if let Some(opening) = self.role.opening.take() {
            return Some(ClientFrame::NewStream(*opening));
        }
        if let Some(bytes) = self.take_owed(share) {
            return Some(ClientFrame::WindowUpdate(bytes));
        }
        if self.can_half_close() {
            self.role.half_close = HalfClose::Sent;
            return Some(ClientFrame::HalfClose(()));
        }
        None
    }

    /// It goes after all data.
    fn can_half_close(&self) -> bool {
        self.role.half_close == HalfClose::Due && self.outbox.is_empty()
    }

    fn next_event(&mut self) -> Option<ResponseEvent> {
        match std::mem::replace(&mut self.role.headers, Headers::Read) {
            Headers::Here(headers) => {
                self.metadata -= metadata::memory(&headers);
                return Some(ResponseEvent::Headers(headers));
            }
            Headers::Awaited if self.inbox.has_piece() => return Some(ResponseEvent::Headers(Metadata::default())),
            headers => self.role.headers = headers,
        }
        match self.inbox.next() {
            Some(Piece::First { size, data }) => return Some(ResponseEvent::Message { size, data }),
            Some(Piece::More(data)) => return Some(ResponseEvent::More(data)),
            None => {}
        }
        if let Some(end) = &mut self.role.end {
            return Some(std::mem::replace(&mut **end, ResponseEvent::Lost)); // the call is forgotten with it
        }
        self.reader_waits = true;
        None
    }
}
