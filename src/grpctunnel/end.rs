//! One end of a tunnel: the protocol's state, and those who wait for it to change.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use tonic::{Status, Streaming};

use super::protocol::{StreamId, TunnelError, Woken};
use crate::close::CloseReason;
use crate::unread::{Holder, PATIENCE, Unread};

/// What both roles of the protocol have in common.
pub(super) trait Protocol: Send + 'static {
    type In: Send + 'static;
    type Out: Send + 'static;

    /// `Err` ends the tunnel.
    fn receive(&mut self, frame: Self::In) -> Result<(), TunnelError>;
    fn poll_frame(&mut self) -> Option<Self::Out>;
    fn is_overfull(&self) -> bool;
    fn next_woken(&mut self) -> Option<Woken>;
    /// Whether who waits [for the tunnel itself](End::until) may have got something to look at.
    fn has_news(&self) -> bool;
    fn share(&mut self, unread: Arc<Unread>);
    fn unread(&self) -> &Arc<Unread>;
    fn most(&self) -> usize;
    fn end_most(&mut self);
    /// The carrier is gone: nothing is sent or received any more. What came before is there.
    fn close(&mut self);
}

/// What a task waits for, of one stream.
#[derive(Debug, Clone, Copy)]
pub(super) enum For {
    Room,
    Events,
    End,
}

/// The state is behind a lock that is held for moments only: whoever waits is woken, and looks again.
pub(super) struct End<P: Protocol> {
    state: Mutex<State<P>>,
    /// Frames that have come.
    heard: AtomicUsize,
}

struct State<P: Protocol> {
    protocol: P,
    /// Taken from it, to know that there is one, and not taken by the carrier yet.
    next: Option<P::Out>,
    streams: HashMap<StreamId, [Option<Waker>; 3]>,
    /// The carrier's way out, which waits for frames.
    writer: Option<Waker>,
    /// The carrier's way in, which waits until less is kept.
    reader: Option<Waker>,
    /// Those who wait for news of the tunnel itself, those who wait until all is sent, and those who wait for the end.
    watching: Vec<Waker>,
    flushing: Vec<Waker>,
    closing: Vec<Waker>,
    /// The carrier takes nothing any more.
    mute: bool,
    ended: Option<CloseReason>,
}

/// Why a tunnel ends whose carrier is gone, where nobody said more.
pub(super) fn carrier_lost() -> CloseReason {
    CloseReason::ConnectionLost { error: "the carrier ended".into() }
}

impl<P: Protocol> End<P> {
    pub(super) fn new(protocol: P) -> Arc<Self> {
        let unread = protocol.unread().clone();
        let state = State {
            protocol,
            next: None,
            streams: HashMap::new(),
            writer: None,
            reader: None,
            watching: Vec::new(),
            flushing: Vec::new(),
            closing: Vec::new(),
            mute: false,
            ended: None,
        };
        let end = Arc::new(Self { state: Mutex::new(state), heard: AtomicUsize::new(0) });
        end.joins(&unread);
        end
    }

    fn joins(self: &Arc<Self>, unread: &Unread) {
        let holder: Weak<Self> = Arc::downgrade(self);
        unread.join(holder);
    }

    /// From now on what is unread counts together with that of others.
    pub(super) fn share(self: &Arc<Self>, unread: Arc<Unread>) {
        self.joins(&unread);
        self.lock().protocol.share(unread);
    }

    /// Another number than before once the peer has shown that it lives.
    pub(super) fn signs_of_life(&self) -> usize {
        self.heard.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the protocol, and wakes whom it concerns. `Err` when the tunnel has ended.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut P) -> R) -> Result<R, CloseReason> {
        let mut state = self.lock();
        if let Some(reason) = &state.ended {
            return Err(reason.clone());
        }
        let result = act(&mut state.protocol);
        let woken = state.wakers();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        Ok(result)
    }

    /// Whoever had a call lets go of it, and of what came for it: that is kept beyond the tunnel's end.
    pub(super) fn leave(&self, act: impl FnOnce(&mut P)) {
        let mut state = self.lock();
        act(&mut state.protocol);
        let woken = state.wakers();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// The same, where there may be nothing to do yet.
    pub(super) fn poll_with<R>(
        &self,
        cx: &Context<'_>,
        stream: StreamId,
        what: For,
        act: impl FnOnce(&mut P) -> Option<R>,
    ) -> Poll<Result<R, CloseReason>> {
        let mut state = self.lock();
        let result = act(&mut state.protocol);
        if result.is_none() {
            // What had come before the end is there after it.
            if let Some(reason) = &state.ended {
                return Poll::Ready(Err(reason.clone()));
            }
            let waker = &mut state.streams.entry(stream).or_default()[what as usize];
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
        }
        let woken = state.wakers();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        result.map_or(Poll::Pending, |result| Poll::Ready(Ok(result)))
    }

    /// Nobody waits for these of this stream any more. Who does all the same is woken, and hears of the stream's end.
    pub(super) fn forget(&self, stream: StreamId, whats: &[For]) {
        let mut state = self.lock();
        let mut woken = Vec::new();
        if let Some(waiting) = state.streams.get_mut(&stream) {
            woken.extend(whats.iter().filter_map(|what| waiting[*what as usize].take()));
            if waiting.iter().all(Option::is_none) {
                state.streams.remove(&stream);
            }
        }
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Waits for something of the tunnel itself, of which the protocol [says](Protocol::has_news) when to look.
    pub(super) async fn until<R>(&self, mut look: impl FnMut(&mut P) -> Option<R>) -> Result<R, CloseReason> {
        poll_fn(|cx| {
            let mut state = self.lock();
            if let Some(reason) = &state.ended {
                return Poll::Ready(Err(reason.clone()));
            }
            if let Some(result) = look(&mut state.protocol) {
                return Poll::Ready(Ok(result));
            }
            wait_in(&mut state.watching, cx);
            Poll::Pending
        })
        .await
    }

    /// Ends the tunnel; the first reason stands.
    pub(super) fn end(&self, reason: CloseReason) {
        let mut state = self.lock();
        if state.ended.is_none() {
            state.ended = Some(reason);
            state.protocol.close();
            state.next = None;
        }
        let streams = std::mem::take(&mut state.streams);
        let mut woken: Vec<Waker> = streams.into_values().flatten().flatten().collect();
        woken.extend(state.writer.take());
        woken.extend(state.reader.take());
        woken.append(&mut state.watching);
        woken.append(&mut state.flushing);
        woken.append(&mut state.closing);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Waits until all that was to be said has been taken by the carrier, and the protocol has got somewhere.
    pub(super) async fn flushed(&self, mut look: impl FnMut(&mut P) -> bool) -> Result<(), CloseReason> {
        poll_fn(|cx| {
            let mut state = self.lock();
            if let Some(reason) = &state.ended {
                return Poll::Ready(Err(reason.clone()));
            }
            if look(&mut state.protocol) && state.next.is_none() {
                return Poll::Ready(Ok(()));
            }
            wait_in(&mut state.flushing, cx);
            Poll::Pending
        })
        .await
    }

    /// Why the tunnel has ended, if it has.
    pub(super) fn ended(&self) -> Option<CloseReason> {
        self.lock().ended.clone()
    }

    /// Waits for the end.
    pub(super) async fn closed(&self) -> CloseReason {
        poll_fn(|cx| {
            let mut state = self.lock();
            if let Some(reason) = &state.ended {
                return Poll::Ready(reason.clone());
            }
            wait_in(&mut state.closing, cx);
            Poll::Pending
        })
        .await
    }

    /// Takes what the carrier brings, until it ends or brings what it must not.
    pub(super) async fn read(&self, incoming: &mut Streaming<P::In>) -> CloseReason {
        loop {
            let room = poll_fn(|cx| {
                let mut state = self.lock();
                match &state.ended {
                    Some(reason) => return Poll::Ready(Err(reason.clone())),
                    None if !state.protocol.is_overfull() => {
                        let unread = state.protocol.unread();
                        return Poll::Ready(Ok((!unread.is_within_limit()).then(|| unread.clone())));
                    }
                    // There will be no room: what waits is not sent.
                    None if state.mute => return Poll::Ready(Err(carrier_lost())),
                    None => {}
                }
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            });
            // The timer is not set where there is room.
            let Ok(room) = tokio::time::timeout(STALLED, room).await else {
                self.end_most();
                continue;
            };
            match room {
                Ok(None) => {}
                Ok(Some(unread)) => self.wait_for_readers(&unread).await,
                Err(reason) => return reason,
            }
            let frame = tokio::select! {
                biased;
                reason = self.closed() => return reason,
                frame = incoming.message() => frame,
            };
            match frame {
                Ok(Some(frame)) => {
                    self.heard.fetch_add(1, Ordering::Relaxed);
                    match self.with(|protocol| protocol.receive(frame)) {
                        // What has come is there at once, all of it: other tasks would wait for as long as a peer has something to say.
                        Ok(Ok(())) => tokio::task::consume_budget().await,
                        Ok(Err(error)) => return CloseReason::Protocol { error: error.to_string() },
                        Err(reason) => return reason,
                    }
                }
                Ok(None) => return CloseReason::ClosedByPeer { message: None },
                Err(status) if UNREADABLE.iter().any(|word| status.message().starts_with(word)) => {
                    return CloseReason::Protocol { error: status.message().to_owned() };
                }
                Err(status) => return lost(&status),
            }
        }
    }
}

/// How long a carrier of revision zero may stand still for a reader that takes nothing. Nobody else gets anything by it
/// meanwhile, not even a cancellation, nor do other tunnels on the same HTTP/2 connection; then the call that holds most ends.
const STALLED: Duration = Duration::from_secs(30);

/// tonic's own words for a frame that cannot be read, and one that is cut off. It has no other mark for them.
const UNREADABLE: [&str; 4] = [
    "failed to decode",
    "protocol error: received message with",
    "Error, decoded message length too large",
    "Unexpected EOF decoding stream",
];

impl<P: Protocol> End<P> {
    /// Too much is unread: what does not become less by itself, in a moment, is made less.
    async fn wait_for_readers(&self, unread: &Unread) {
        tokio::select! {
            _ = self.closed() => {}
            waited = tokio::time::timeout(PATIENCE, unread.within_limit()) => if waited.is_err() {
                unread.relieve();
            },
        }
    }
}

impl<P: Protocol> Holder for End<P> {
    fn most(&self) -> usize {
        self.lock().protocol.most()
    }

    fn end_most(&self) {
        let mut state = self.lock();
        state.protocol.end_most();
        let woken = state.wakers();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

fn wait_in(waiting: &mut Vec<Waker>, cx: &Context<'_>) {
    if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
        waiting.push(cx.waker().clone());
    }
}

/// What a carrier's own end says.
pub(super) fn lost(status: &Status) -> CloseReason {
    let text = format!("{:?}: {}", status.code(), status.message());
    match std::error::Error::source(status) {
        // It came from the transport, not from the peer.
        Some(_) => CloseReason::ConnectionLost { error: text },
        None => CloseReason::closed_by_peer(&text),
    }
}

impl<P: Protocol> State<P> {
    fn wakers(&mut self) -> Vec<Waker> {
        let mut woken = std::mem::take(&mut self.flushing);
        if self.protocol.has_news() {
            woken.append(&mut self.watching);
        }
        // First, since it makes room.
        if self.writer.is_some() {
            self.next = self.next.take().or_else(|| self.protocol.poll_frame());
            if self.next.is_some() {
                woken.extend(self.writer.take());
            }
        }
        while let Some(Woken { id, reader, writer }) = self.protocol.next_woken() {
            if let Some(waiting) = self.streams.get_mut(&id) {
                let [room, events, end] = waiting;
                woken.extend(end.take());
                woken.extend(room.take_if(|_| writer));
                woken.extend(events.take_if(|_| reader));
                if waiting.iter().all(Option::is_none) {
                    self.streams.remove(&id);
                }
            }
        }
        if self.reader.is_some() && !self.protocol.is_overfull() {
            woken.extend(self.reader.take());
        }
        woken
    }
}

/// What an end has to say, for the carrier, which asks no faster than it is taken. Ends with the tunnel.
pub(super) struct Frames<P: Protocol>(Arc<End<P>>);

impl<P: Protocol> Frames<P> {
    pub(super) fn of(end: &Arc<End<P>>) -> Self {
        Self(end.clone())
    }
}

impl<P: Protocol> Drop for Frames<P> {
    /// Nothing that is said goes anywhere any more. What the peer has said before may still have to be read.
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.mute = true;
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl<P: Protocol> Stream for Frames<P> {
    type Item = P::Out;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<P::Out>> {
        let mut state = self.0.lock();
        if state.ended.is_some() {
            return Poll::Ready(None);
        }
        let next = state.next.take();
        let frame = next.or_else(|| state.protocol.poll_frame());
        if frame.is_none() {
            state.writer = Some(cx.waker().clone());
        }
        let woken = state.wakers();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        frame.map_or(Poll::Pending, |frame| Poll::Ready(Some(frame)))
    }
}

#[cfg(test)]
mod tests;
