//! A stream that never makes the SSH session wait for the socket.
//!
//! russh's session loop writes without reading. Two ends with more to send than the path holds would then wait for
//! each other for ever. Here a write always succeeds: it is offered to the socket first, and what the socket refuses
//! is kept and sent from every later poll, of reads too (the session always has a read pending). How much is kept is
//! visible to the channels above ([`Carrier::poll_clear`]), which stop writing while it is more than a small mark, so
//! that the queue stays short. What the channels have handed to the session counts until the session turns to its
//! stream again: russh encrypts for as long as there is something to encrypt, and sends nothing meanwhile.
//!
//! A peer that lets the queue grow to [`QUEUE_CAP`] all the same (before it has authenticated: [`STRANGER_QUEUE_CAP`]), or
//! that takes no byte for [`STALL`], loses the tunnel; so does one that is silent for too long. Not silent is one from
//! which a byte arrives, or which takes what has waited for it: behind bulk on a slow path the answer to a keepalive may
//! come late.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::read_ahead::ReadAhead;
use crate::close::CloseReason;

/// Above this many bytes on their way to the socket the channels wait. Small, so that a small call is not stuck behind
/// bulk; large enough to keep the socket busy between two polls.
const QUEUE_MARK: usize = 256 * 1024;

/// An honest peer never gets here: the mark stops the channels, and what is left is bounded by russh's own queues.
const QUEUE_CAP: usize = 32 * 1024 * 1024;

/// A stranger gets no more than this: what a login sends is a few kilobytes.
const STRANGER_QUEUE_CAP: usize = 32 * 1024;

/// How long a peer may take no byte while some are waiting for it.
const STALL: Duration = Duration::from_secs(30);

/// How long a deliberate close waits for the goodbye to leave.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long the peer may go on after this side has said its last.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Memory kept for the next burst once the queue is empty.
const QUEUE_KEEP: usize = 64 * 1024;

/// What the session, its channels and its owner share of one carrier.
#[derive(Debug, Default)]
pub(crate) struct Carrier {
    /// The peer has authenticated.
    known: AtomicBool,
    /// Counts the peer's signs of life: that bytes came, or were taken.
    heard: AtomicUsize,
    queued: AtomicUsize,
    /// Bytes that channels handed to the session since it last turned to its stream.
    handed: AtomicUsize,
    /// Whether a channel waits; saves a lock when none does.
    waiting: AtomicBool,
    /// Channels that wait for the queue to shorten: at most one waker for each task that writes.
    writers: Mutex<Vec<Waker>>,
    killed: AtomicBool,
    reader: Mutex<Option<Waker>>,
    /// Why the tunnel was ended from this side; the first reason stands.
    fault: OnceLock<CloseReason>,
    /// What the socket said, for a session that cannot tell.
    seen: OnceLock<CloseReason>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can panic half-way, so a poisoned lock still holds sound data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Carrier {
    /// Another number than before once the peer has shown that it lives.
    pub(crate) fn signs_of_life(&self) -> usize {
        self.heard.load(Ordering::Relaxed)
    }

    /// Ready once little enough is on its way to the socket.
    pub(crate) fn poll_clear(&self, cx: &Context<'_>) -> Poll<()> {
        if self.is_clear() {
            return Poll::Ready(());
        }
        let mut writers = lock(&self.writers);
        self.waiting.store(true, Ordering::SeqCst);
        // Whoever clears the way looks for waiters after that: look again now that this one can be seen.
        if self.is_clear() || self.killed.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        if !writers.iter().any(|w| w.will_wake(cx.waker())) {
            writers.push(cx.waker().clone());
        }
        drop(writers);
        // What was handed over may wait for a closed window: then the session has nothing to do, and would not turn.
        if let Some(reader) = &*lock(&self.reader) {
            reader.wake_by_ref();
        }
        Poll::Pending
    }

    fn is_clear(&self) -> bool {
        self.queued.load(Ordering::SeqCst) + self.handed.load(Ordering::SeqCst) <= QUEUE_MARK
    }

    /// The peer is no stranger any more: more may wait for it.
    pub(crate) fn authenticated(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    fn cap(&self) -> usize {
        if self.known.load(Ordering::Relaxed) { QUEUE_CAP } else { STRANGER_QUEUE_CAP }
    }

    /// A channel handed so many bytes to the session.
    pub(crate) fn hand(&self, bytes: usize) {
        self.handed.fetch_add(bytes, Ordering::SeqCst);
    }

    /// The session turned to its stream, with this much queued now: whatever it was handed is in there, or dropped.
    fn turn(&self, queued: usize) {
        self.queued.store(queued, Ordering::SeqCst);
        if self.handed.load(Ordering::Relaxed) != 0 {
            self.handed.store(0, Ordering::SeqCst);
        }
        if self.waiting.load(Ordering::SeqCst) && self.is_clear() {
            self.wake_writers();
        }
    }

    /// Records why this side ends the tunnel. The first reason stands.
    pub(crate) fn blame(&self, reason: CloseReason) {
        let _ = self.fault.set(reason); // a later reason is only a consequence of the first
    }

    /// Ends the session at its next poll, whatever it is doing.
    pub(crate) fn kill(&self, reason: CloseReason) {
        self.blame(reason);
        self.killed.store(true, Ordering::Release);
        if let Some(waker) = lock(&self.reader).take() {
            waker.wake();
        }
        self.wake_writers();
    }

    /// Why the tunnel ended, as far as the carrier knows: what this side decided, else what the socket said.
    pub(crate) fn reason(&self) -> Option<CloseReason> {
        self.fault.get().or_else(|| self.seen.get()).cloned()
    }

    /// Whether this side decided to end the tunnel.
    pub(crate) fn blamed(&self) -> Option<&CloseReason> {
        self.fault.get()
    }

    fn saw(&self, reason: CloseReason) {
        let _ = self.seen.set(reason); // the first thing that went wrong is the cause
    }

    fn wake_writers(&self) {
        let woken = {
            let mut writers = lock(&self.writers);
            self.waiting.store(false, Ordering::SeqCst);
            std::mem::take(&mut *writers)
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct WriteBehind<S> {
    io: S,
    queue: BytesMut,
    ahead: ReadAhead,
    carrier: Arc<Carrier>,
    /// The stream below may keep what it has taken, as TLS and WebSockets do, and is still to be told to send it.
    unflushed: bool,
    /// The socket takes nothing any more. What the peer said before it left, its goodbye above all, is still to be
    /// read, so a failed write ends nothing: what is written after it is thrown away.
    broken: bool,
    /// Runs while something is queued; restarted by every byte that leaves.
    stall: Pin<Box<Sleep>>,
    goodbye: Option<Pin<Box<Sleep>>>,
    /// How long the peer may be silent, when it last was not, and a timer that runs out no earlier than that is over.
    silence: Duration,
    heard: Instant,
    silent: Pin<Box<Sleep>>,
    /// Runs once this side has said its last.
    last_words: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WriteBehind<S> {
    pub(crate) fn new(io: S, carrier: Arc<Carrier>, silence: Duration) -> Self {
        Self {
            io,
            queue: BytesMut::new(),
            ahead: ReadAhead::default(),
            carrier,
            unflushed: false,
            broken: false,
            stall: Box::pin(tokio::time::sleep(STALL)),
            goodbye: None,
            silence,
            heard: Instant::now(),
            silent: Box::pin(tokio::time::sleep(silence)),
            last_words: None,
        }
    }

    /// Ready when the peer has been silent for too long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.silent.as_mut().poll(cx));
            let due = self.heard + self.silence;
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.silent.as_mut().reset(due);
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.carrier.killed.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "tunnel closed"));
        }
        Ok(())
    }

    /// Sends what is queued until the socket refuses. Ready means that nothing is queued any more.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.queue.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, &self.queue) {
                Poll::Ready(Ok(0)) => self.give_up_writing(&io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => {
                    self.queue.advance(n);
                    self.unflushed = true;
                    self.heard = Instant::now();
                    self.carrier.heard.fetch_add(1, Ordering::Relaxed);
                    self.stall.as_mut().reset(self.heard + STALL);
                    self.publish();
                }
                Poll::Ready(Err(error)) => self.give_up_writing(&error),
                Poll::Pending => {
                    if self.stall.as_mut().poll(cx).is_ready() {
                        self.carrier.blame(CloseReason::Stalled { after: STALL });
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                    return Poll::Pending;
                }
            }
        }
        if self.queue.capacity() > QUEUE_KEEP {
            self.queue = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Has the stream below send what it keeps. Where that takes time, a later poll goes on.
    fn flush_below(&mut self, cx: &mut Context<'_>) {
        if self.unflushed
            && !self.broken
            && let Poll::Ready(flushed) = Pin::new(&mut self.io).poll_flush(cx)
        {
            self.unflushed = false;
            if let Err(error) = flushed {
                self.give_up_writing(&error);
            }
        }
    }

    fn give_up_writing(&mut self, error: &io::Error) {
        self.carrier.saw(CloseReason::ConnectionLost { error: error.to_string() });
        self.broken = true;
        self.queue.clear();
        self.publish();
    }

    fn publish(&self) {
        self.carrier.turn(self.queue.len());
    }

    fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.queue.len() + bytes.len() > self.carrier.cap() {
            self.carrier.blame(CloseReason::Stalled { after: Duration::ZERO });
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the peer does not read"));
        }
        if self.queue.is_empty() {
            self.stall.as_mut().reset(Instant::now() + STALL);
        }
        self.queue.extend_from_slice(bytes);
        self.publish();
        Ok(())
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            self.carrier.saw(CloseReason::ConnectionLost { error: error.to_string() });
        }
        result
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WriteBehind<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check()?;
        if this.last_words.as_mut().is_some_and(|over| over.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Ok(()));
        }
        if (!this.queue.is_empty() || this.unflushed)
            && let Poll::Ready(drained) = this.poll_drain(cx)
        {
            this.note(drained)?;
            this.flush_below(cx);
        }
        this.publish();
        let before = buf.filled().len();
        match this.ahead.poll_read(&mut this.io, cx, buf) {
            Poll::Ready(result) => {
                this.note(result)?;
                this.heard = Instant::now();
                this.carrier.heard.fetch_add(1, Ordering::Relaxed);
                if buf.filled().len() == before {
                    this.carrier.saw(CloseReason::ClosedByPeer { message: None });
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                let mut reader = lock(&this.carrier.reader);
                if !reader.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    *reader = Some(cx.waker().clone());
                }
                drop(reader);
                // A kill between the check above and the waker's registration must not be lost.
                this.check()?;
                ready!(this.poll_silence(cx));
                this.carrier.blame(CloseReason::KeepaliveTimeout);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WriteBehind<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.check()?;
        if this.broken {
            this.publish();
            return Poll::Ready(Ok(buf.len()));
        }
        if let Poll::Ready(drained) = this.poll_drain(cx) {
            this.note(drained)?;
            match Pin::new(&mut this.io).poll_write(cx, buf) {
                Poll::Ready(Ok(n)) => {
                    this.unflushed = true;
                    this.publish();
                    return Poll::Ready(Ok(n));
                }
                Poll::Ready(Err(error)) => {
                    this.give_up_writing(&error);
                    return Poll::Ready(Ok(buf.len()));
                }
                Poll::Pending => {}
            }
        }
        this.keep(buf)?;
        Poll::Ready(Ok(buf.len()))
    }

    /// Never waits: what is queued is sent by later polls, of reads too.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.queue.is_empty() {
            self.flush_below(cx);
        }
        Poll::Ready(Ok(()))
    }

    /// After a deliberate close, gives the goodbye a moment to leave; after a failure, none but what the stream below needs
    /// for its own.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let goodbye = this.goodbye.get_or_insert_with(|| Box::pin(tokio::time::sleep(GOODBYE)));
        let waits = goodbye.as_mut().poll(cx).is_pending() && this.check().is_ok();
        if waits && !this.queue.is_empty() && this.carrier.blamed().is_some() {
            ready!(this.poll_drain(cx))?;
        }
        this.last_words.get_or_insert_with(|| Box::pin(tokio::time::sleep(LAST_WORDS)));
        // A socket that is gone already needs no shutdown, and what ended the session is known. Streams that are more than a
        // socket have to write for it, and a peer that takes nothing must not hold them up.
        match Pin::new(&mut this.io).poll_shutdown(cx) {
            Poll::Pending if waits => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl<S> Drop for WriteBehind<S> {
    fn drop(&mut self) {
        // Nobody sends any more: channels that wait for the queue must find out that their tunnel is gone.
        self.carrier.killed.store(true, Ordering::Release);
        self.carrier.wake_writers();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const SILENCE: Duration = Duration::from_secs(40);

    /// The carrier of a peer that has authenticated.
    fn known_peer<S: AsyncRead + AsyncWrite + Unpin>(near: S) -> (Arc<Carrier>, WriteBehind<S>) {
        let carrier = Arc::new(Carrier::default());
        carrier.authenticated();
        (carrier.clone(), WriteBehind::new(near, carrier, SILENCE))
    }

    /// What lies below may have to write to shut down, as a WebSocket has; and its peer may take nothing.
    #[tokio::test(start_paused = true)]
    async fn a_shutdown_waits_for_no_peer() {
        let (near, _far) = duplex(16);
        let (_, mut stream) = known_peer(tokio::io::BufWriter::new(near));
        stream.write_all(&[7; 100]).await.unwrap();
        let ended = tokio::time::timeout(2 * GOODBYE, stream.shutdown()).await;
        ended.expect("the peer holds it up").unwrap();
    }

    /// As TLS does, what lies below may keep what it was given until it is flushed.
    #[tokio::test]
    async fn what_the_stream_below_keeps_is_sent() {
        let (near, mut far) = duplex(1024);
        let (_, mut stream) = known_peer(tokio::io::BufWriter::with_capacity(8 * 1024, near));
        let mut sent = vec![7; 100_000];
        rand::fill(&mut sent[..]);
        stream.write_all(&sent).await.unwrap();
        stream.flush().await.unwrap(); // returns at once, with nearly all still to be sent

        let expected = sent.clone();
        let far = tokio::spawn(async move {
            let mut got = vec![0; expected.len()];
            far.read_exact(&mut got).await.unwrap();
            assert!(got == expected, "it came changed");
            far.write_all(b"done").await.unwrap();
        });
        let mut answer = [0; 4];
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut answer)).await;
        read.expect("the rest was not sent").unwrap();
        far.await.unwrap();
    }

    #[tokio::test]
    async fn write_never_waits_and_reads_send_the_rest() {
        let (near, mut far) = duplex(1024);
        let (carrier, mut stream) = known_peer(near);
        let sent = vec![7; 1024 * 1024];
        // Nobody reads at the far end, and the write still returns.
        stream.write_all(&sent).await.unwrap();
        stream.flush().await.unwrap();
        assert!(carrier.queued.load(Ordering::Relaxed) > QUEUE_MARK);

        let far = tokio::spawn(async move {
            let mut got = vec![0; 1024 * 1024];
            far.read_exact(&mut got).await.unwrap();
            far.write_all(b"done").await.unwrap();
            got
        });
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"done");
        assert_eq!(far.await.unwrap(), sent);
        assert_eq!(carrier.queued.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn backlog_is_visible_until_it_is_short() {
        let (near, mut far) = duplex(1024);
        let (carrier, mut stream) = known_peer(near);
        stream.write_all(&vec![7; QUEUE_MARK + 4096]).await.unwrap();
        let clear = tokio::spawn({
            let carrier = carrier.clone();
            async move { std::future::poll_fn(|cx| carrier.poll_clear(cx)).await }
        });
        tokio::task::yield_now().await;
        assert!(!clear.is_finished());
        let reading = tokio::spawn(async move {
            let mut byte = [0];
            stream.read_exact(&mut byte).await
        });
        far.read_exact(&mut vec![0; QUEUE_MARK]).await.unwrap();
        clear.await.unwrap();
        reading.abort();
    }

    #[tokio::test]
    async fn what_the_session_was_handed_counts_until_it_turns_to_its_stream() {
        let (near, _far) = duplex(1024);
        let (carrier, mut stream) = known_peer(near);
        let session = tokio::spawn(async move { stream.read(&mut [0]).await });
        tokio::task::yield_now().await;
        carrier.hand(QUEUE_MARK + 1);
        assert!(!carrier.is_clear());
        // The session has nothing to do; the one that waits makes it turn.
        std::future::poll_fn(|cx| carrier.poll_clear(cx)).await;
        assert!(carrier.is_clear());
        session.abort();
    }

    #[tokio::test]
    async fn goodbye_is_read_though_the_peer_takes_nothing_any_more() {
        let (near, mut far) = duplex(1024);
        let (carrier, mut stream) = known_peer(near);
        far.write_all(b"bye").await.unwrap();
        drop(far);
        stream.write_all(&[7; 4096]).await.unwrap();
        stream.flush().await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"bye");
        assert!(matches!(carrier.reason(), Some(CloseReason::ConnectionLost { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn peer_that_never_reads_loses_the_tunnel() {
        let (near, _far) = duplex(1024);
        let (carrier, mut stream) = known_peer(near);
        stream.write_all(&[7; 4096]).await.unwrap();
        let started = Instant::now();
        let error = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), STALL.as_secs());
        assert!(matches!(carrier.reason(), Some(CloseReason::Stalled { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn silent_peer_loses_the_tunnel_and_one_that_takes_what_waits_does_not() {
        let (near, mut far) = duplex(1024);
        let (carrier, mut stream) = known_peer(near);
        stream.write_all(&[7; 10 * 1024]).await.unwrap();
        let started = Instant::now();
        let taking = tokio::spawn(async move {
            for _ in 0..9 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                far.read_exact(&mut [0; 1024]).await.unwrap();
            }
            far
        });
        let error = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(matches!(carrier.reason(), Some(CloseReason::KeepaliveTimeout)));
        // The last byte that had waited left at the ninth turn.
        assert_eq!(started.elapsed().as_secs(), 9 * 20 + SILENCE.as_secs());
        drop(taking);
    }

    #[tokio::test(start_paused = true)]
    async fn peer_that_never_stops_talking_is_left_after_the_last_word() {
        let (near, mut far) = duplex(1024);
        let mut stream = WriteBehind::new(near, Arc::default(), SILENCE);
        let talking = tokio::spawn(async move {
            while far.write_all(b"and another thing").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        stream.shutdown().await.unwrap();
        let started = Instant::now();
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.unwrap();
        assert_eq!(started.elapsed().as_secs(), LAST_WORDS.as_secs());
        drop(stream);
        talking.await.unwrap();
    }

    #[tokio::test]
    async fn queue_has_a_cap() {
        for (known, cap) in [(false, STRANGER_QUEUE_CAP), (true, QUEUE_CAP)] {
            let (near, _far) = duplex(1024);
            let carrier = Arc::new(Carrier::default());
            if known {
                carrier.authenticated();
            }
            let mut stream = WriteBehind::new(near, carrier.clone(), SILENCE);
            stream.write_all(&vec![7; cap]).await.unwrap();
            let error = stream.write_all(&[7; 4096]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
            assert!(matches!(carrier.reason(), Some(CloseReason::Stalled { .. })));
        }
    }

    #[tokio::test]
    async fn kill_wakes_a_waiting_read() {
        let (near, _far) = duplex(1024);
        let (carrier, mut stream) = known_peer(near);
        let reading = tokio::spawn(async move { stream.read(&mut [0]).await });
        tokio::task::yield_now().await;
        carrier.kill(CloseReason::ClosedLocally);
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
