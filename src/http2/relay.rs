//! Passes one direction of a call from one HTTP/2 connection to another, byte for byte.
//!
//! What arrives is taken out of h2 at once and kept here, small frames together: h2 ends a *whole connection* for small
//! frames that nobody takes. The sender gets its window back only for what has gone on, so that it waits when the receiver
//! does, and what is kept here is never more than the window that it was given. All that is kept is counted ([`Held`]):
//! where there is too much of it, whoever takes next to nothing loses its call.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use tokio::time::{Instant, Sleep};

use super::connection::Lease;
use super::given::Given;
use super::held::Held;
use super::upload::HASTY;
use crate::stats::Messages;

/// Frames smaller than this are copied together; a copy of them costs less than keeping them apart.
const SMALL: usize = 1024;

/// The most that is copied together.
const TOGETHER: usize = 16 * 1024;

/// How long a receiver may take less than [`STEP`] where too much is kept for all.
const PRESSED: Duration = Duration::from_secs(1);
const STEP: u64 = 64 << 10;

/// A sender is given its window back in such pieces, or in less where nothing is kept: a sixteenth of the gateway's own
/// window for a call.
const OWED: usize = 256 * 1024;

/// How one direction of a call ended.
#[derive(Debug)]
pub(crate) enum Relayed {
    /// All has gone on.
    Complete,
    /// The sender's side failed, or the sender reset the stream.
    SourceFailed(h2::Error),
    /// The receiver wants no more, or is gone.
    SinkClosed,
    /// The receiver has taken nothing for too long.
    Stalled,
}

/// What has come from the sender, and was not passed on yet. Dropping it gives up the stream.
pub(crate) struct Gathered {
    source: RecvStream,
    queue: Queue,
    /// What comes after the data: the end, with trailers or without.
    end: Option<Option<HeaderMap>>,
    data_done: bool,
    /// What has gone on, and was not said to the sender yet.
    owed: usize,
    /// Where what is kept is counted.
    held: Vec<Arc<Held>>,
}

impl Gathered {
    /// What is kept counts in all of `held`.
    pub(crate) fn new(source: RecvStream, held: Vec<Arc<Held>>) -> Self {
        let mut gathered = Self { source, queue: Queue::default(), end: None, data_done: false, owed: 0, held };
        if gathered.source.is_end_stream() {
            (gathered.data_done, gathered.end) = (true, Some(None));
        }
        gathered
    }

    /// Whether nothing has come, and nothing will.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty() && matches!(self.end, Some(None))
    }

    /// Takes what comes, until the sender fails: while nobody else looks.
    pub(crate) async fn gather(&mut self) -> h2::Error {
        let failed = poll_fn(|cx| match self.poll_source(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(error),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        });
        failed.await
    }

    /// So much is kept no more: the sender may send as much again.
    fn has_gone_on(&mut self, len: usize) {
        self.owed += len;
        // A sender who waits for its window would be told, and woken, for each chunk.
        if self.owed >= OWED || self.queue.is_empty() {
            self.held.iter().for_each(|held| held.remove(self.owed));
            // Fails only for a stream that is gone, which the next poll says.
            let _ = self.source.flow_control().release_capacity(std::mem::take(&mut self.owed));
        }
    }

    /// Takes all that has come.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while !self.data_done {
            match ready!(self.source.poll_data(cx)) {
                Some(data) => {
                    let data = data?;
                    self.held.iter().for_each(|held| held.add(data.len()));
                    self.queue.push(data);
                }
                None => self.data_done = true,
            }
        }
        if self.end.is_none() {
            self.end = Some(ready!(self.source.poll_trailers(cx))?);
        }
        Poll::Ready(Ok(()))
    }
}

/// For those who want a body. What comes is taken out of h2 by [`Shared::taking`] alone, however slowly the body is read, and
/// where that is too slow it is noticed.
#[cfg(feature = "grpctunnel")]
pub(crate) struct Shared(std::sync::Mutex<Shareable>);

#[cfg(feature = "grpctunnel")]
struct Shareable {
    gathered: Gathered,
    moved: u64,
    reader: Option<std::task::Waker>,
}

#[cfg(feature = "grpctunnel")]
impl Shared {
    pub(crate) fn new(gathered: Gathered) -> Arc<Self> {
        Arc::new(Self(std::sync::Mutex::new(Shareable { gathered, moved: 0, reader: None })))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shareable> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes what comes. Ready when the receiver is too slow: it has taken nothing for `patience`, or next to nothing while
    /// too much is kept for all; and when the sender has failed, of which the body hears nothing: whoever has the call ends it.
    pub(crate) async fn taking(&self, patience: Duration, kept: &Held) -> Relayed {
        let tick = PRESSED.min(patience);
        let (mut last, mut moved) = (Instant::now(), 0);
        loop {
            let source = poll_fn(|cx| {
                let mut this = self.lock();
                let polled = this.gathered.poll_source(cx);
                let reader = this.reader.take();
                drop(this);
                if let Some(reader) = reader {
                    reader.wake();
                }
                match polled {
                    Poll::Ready(Err(error)) => Poll::Ready(error),
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
                }
            });
            tokio::select! {
                biased;
                error = source => return Relayed::SourceFailed(error),
                () = tokio::time::sleep(tick) => {}
            }
            let this = self.lock();
            if this.gathered.queue.is_empty() || this.moved - moved >= STEP || (this.moved > moved && !kept.is_over()) {
                (last, moved) = (Instant::now(), this.moved);
            } else if last.elapsed() >= patience || (kept.is_over() && last.elapsed() >= PRESSED) {
                return Relayed::Stalled;
            }
        }
    }
}

/// The body of a [`Shared`].
#[cfg(feature = "grpctunnel")]
pub(crate) struct SharedBody(pub(crate) Arc<Shared>);

#[cfg(feature = "grpctunnel")]
impl http_body::Body for SharedBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, std::convert::Infallible>>> {
        let mut this = self.0.lock();
        if let Some(len) = this.gathered.queue.front_len() {
            let data = this.gathered.queue.pop(len);
            this.gathered.has_gone_on(len);
            this.moved += len as u64;
            return Poll::Ready(Some(Ok(http_body::Frame::data(data))));
        }
        if let Some(trailers) = &mut this.gathered.end {
            return Poll::Ready(trailers.take().map(|trailers| Ok(http_body::Frame::trailers(trailers))));
        }
        this.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().gathered.is_empty()
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        let rest = self.queue.len() + self.owed;
        self.held.iter().for_each(|held| held.remove(rest));
    }
}

/// See the module's text. Dropping it gives up both streams.
pub(crate) struct Relay {
    gathered: Gathered,
    sink: SendStream<Bytes>,
    /// How long the receiver may take nothing while something waits for it.
    patience: Duration,
    waiting: Option<Waiting>,
    moved: u64,
    messages: Messages,
    given: Given,
    /// Of the connection that the receiver shares with others.
    shares: Option<Arc<Held>>,
    /// The first of the data need not wait for room.
    hasty: bool,
    /// That connection counts as full.
    blocked: bool,
    /// Where too much is kept for all of them.
    shared: Arc<Held>,
    /// What is done to trailers.
    trailers: fn(&mut HeaderMap),
}

/// How a receiver has taken what waits for it.
struct Waiting {
    /// When it last took something.
    last: Instant,
    /// When it last had taken a [`STEP`], and what had moved until then.
    step: (Instant, u64),
    /// When to look again.
    look: Pin<Box<Sleep>>,
}

impl Relay {
    /// A receiver may take nothing for `patience`. `shared` has the limit of what is kept for all.
    pub(crate) fn new(gathered: Gathered, sink: SendStream<Bytes>, patience: Duration, shared: &Arc<Held>) -> Self {
        let trailers = |_: &mut HeaderMap| {};
        Self {
            gathered,
            sink,
            patience,
            waiting: None,
            moved: 0,
            messages: Messages::default(),
            given: Given::default(),
            shares: None,
            hasty: false,
            blocked: false,
            shared: shared.clone(),
            trailers,
        }
    }

    /// The receiver is at the end of a connection that other calls share, and its stream can be reset at any time. So whole
    /// chunks are passed on where there is room for a byte, which saves frames: h2 keeps the rest, of one chunk. In haste, a
    /// small first one goes on without room. And while the receiver takes nothing, perhaps because the window of all is used
    /// up, the connection counts as full.
    pub(crate) fn on(mut self, lease: &Lease, hasty: bool) -> Self {
        self.shares = Some(lease.held().clone());
        self.hasty = hasty;
        self
    }

    /// Changes trailers on their way.
    pub(crate) fn without(mut self, change: fn(&mut HeaderMap)) -> Self {
        self.trailers = change;
        self
    }

    /// How much has gone on, to see whether there was more.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether part of a message has gone on, and its rest has not.
    pub(crate) fn is_within_message(&self) -> bool {
        self.messages.is_within()
    }

    /// Whether h2 still has what has gone on, at the end of a connection that other calls share.
    pub(crate) fn is_kept(&self) -> bool {
        self.given.is_kept()
    }

    /// The stream to the receiver, to end it otherwise.
    pub(crate) fn sink(&mut self) -> &mut SendStream<Bytes> {
        &mut self.sink
    }

    /// Passes on what there is room for. Ready when it has said its last.
    fn poll_sink(&mut self, cx: &mut Context<'_>) -> Poll<Relayed> {
        while let Some(wanted) = self.gathered.queue.front_len() {
            self.sink.reserve_capacity(wanted);
            let room = self.sink.capacity();
            let at_once = self.hasty && self.moved == 0 && wanted <= HASTY;
            if room == 0 && !at_once {
                match self.sink.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Relayed::SinkClosed),
                    Poll::Pending => return self.poll_waiting(cx),
                }
            }
            let data = self.gathered.queue.pop(if self.shares.is_some() { wanted } else { room });
            let len = data.len();
            let last = self.gathered.queue.is_empty() && matches!(self.gathered.end, Some(None));
            self.messages.feed(&data, |_| {});
            let data = if self.shares.is_some() { self.given.watch(data) } else { data };
            if self.sink.send_data(data, last).is_err() {
                return Poll::Ready(Relayed::SinkClosed);
            }
            self.gathered.has_gone_on(len);
            self.moved += len as u64;
            self.took();
            if last {
                return Poll::Ready(Relayed::Complete);
            }
        }
        let sent = match self.gathered.end.take() {
            None => {
                // Nothing to send: the receiver may want no more, too.
                return self.sink.poll_reset(cx).map(|_| Relayed::SinkClosed);
            }
            Some(Some(mut trailers)) => {
                (self.trailers)(&mut trailers);
                self.sink.send_trailers(trailers)
            }
            Some(None) => self.sink.send_data(Bytes::new(), true),
        };
        Poll::Ready(if sent.is_ok() { Relayed::Complete } else { Relayed::SinkClosed })
    }

    /// Waits for room.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Relayed> {
        if self.sink.poll_reset(cx).is_ready() {
            return Poll::Ready(Relayed::SinkClosed);
        }
        let (now, tick) = (Instant::now(), PRESSED.min(self.patience));
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            last: now,
            step: (now, self.moved),
            look: Box::pin(tokio::time::sleep_until(now + tick)),
        });
        while waiting.look.as_mut().poll(cx).is_ready() {
            let pressed = self.shared.is_over() && waiting.step.0.elapsed() >= PRESSED;
            if pressed || waiting.last.elapsed() >= self.patience {
                return Poll::Ready(Relayed::Stalled);
            }
            if let Some(held) = self.shares.as_ref().filter(|_| !self.blocked && waiting.last.elapsed() >= PRESSED) {
                held.fill();
                self.blocked = true;
            }
            waiting.look.as_mut().reset(Instant::now() + tick);
        }
        Poll::Pending
    }

    /// The receiver has taken something.
    fn took(&mut self) {
        self.unblock();
        if self.gathered.queue.is_empty() {
            self.waiting = None;
        }
        if let Some(waiting) = &mut self.waiting {
            waiting.last = Instant::now();
            if self.moved - waiting.step.1 >= STEP {
                waiting.step = (waiting.last, self.moved);
            }
        }
    }

    fn unblock(&mut self) {
        if std::mem::take(&mut self.blocked) {
            self.shares.iter().for_each(|held| held.unfill());
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.unblock();
    }
}

impl Future for Relay {
    type Output = Relayed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Relayed> {
        let this = &mut *self;
        if let Poll::Ready(Err(error)) = this.gathered.poll_source(cx) {
            return Poll::Ready(Relayed::SourceFailed(error));
        }
        this.poll_sink(cx)
    }
}

/// Data on its way, in order.
#[derive(Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    /// The last of it: small frames, copied together.
    together: BytesMut,
}

impl Queue {
    fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let waits = !self.chunks.is_empty() || !self.together.is_empty();
        // The first goes on as it is: most calls have no more.
        if waits && data.len() < SMALL {
            if self.together.len() + data.len() > TOGETHER {
                self.settle();
            }
            self.together.extend_from_slice(&data);
        } else {
            self.settle();
            self.chunks.push_back(data);
        }
    }

    fn settle(&mut self) {
        if !self.together.is_empty() {
            self.chunks.push_back(self.together.split().freeze());
        }
    }

    fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum::<usize>() + self.together.len()
    }

    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.together.is_empty()
    }

    /// The length of the next chunk.
    fn front_len(&mut self) -> Option<usize> {
        if self.chunks.is_empty() {
            self.settle();
        }
        self.chunks.front().map(Bytes::len)
    }

    /// The next chunk, or as much of it as there is room for.
    fn pop(&mut self, room: usize) -> Bytes {
        match self.chunks.front_mut() {
            Some(front) if front.len() > room => front.split_to(room),
            _ => self.chunks.pop_front().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_keeps_every_byte_in_order_whatever_the_sizes() {
        let mut queue = Queue::default();
        let (mut expected, mut got) = (Vec::new(), Vec::new());
        for (n, len) in [1, 5, 2000, 10, 0, 1023, 1024, 20_000, 3].into_iter().cycle().take(200).enumerate() {
            let chunk = vec![n as u8; len];
            expected.extend_from_slice(&chunk);
            queue.push(chunk.into());
            if n % 7 == 0 && queue.front_len().is_some() {
                got.extend_from_slice(&queue.pop(700));
            }
        }
        while queue.front_len().is_some() {
            got.extend_from_slice(&queue.pop(900));
        }
        assert!(queue.is_empty());
        assert_eq!(got, expected);
    }

    #[test]
    fn small_frames_are_kept_together() {
        let mut queue = Queue::default();
        for _ in 0..100_000 {
            queue.push(Bytes::from_static(&[1; 10]));
        }
        assert!(queue.chunks.len() < 100, "{}", queue.chunks.len());
    }
}
