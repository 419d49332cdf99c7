//! [`TunnelIo`]: one channel as a byte stream.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, client, server};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::ReusableBoxFuture;
use tonic::transport::server::Connected;

use super::config::PACKET;
use super::ledger::Inbound;
use super::session::Session;
use crate::close::Disconnected;
use crate::tunnel::{TunnelConnectInfo, TunnelId};

/// The most that one message takes, and a write: a packet's worth.
const WRITE_MAX: usize = PACKET as usize;

/// As much as this is sent at once; less may wait for more.
const ENOUGH: usize = 60 * 1024;

/// A write of this size is part of something large, of which more is likely to follow.
const BULK: usize = 8 * 1024;

/// How long a dropped channel may still send what it had taken: as long as a peer may take nothing at all.
const LINGER: Duration = Duration::from_secs(30);

type Sent = Result<(), russh::Error>;

enum WriteHalf {
    Client(ChannelWriteHalf<client::Msg>),
    Server(ChannelWriteHalf<server::Msg>),
}

impl WriteHalf {
    async fn send(&self, data: Bytes) -> Sent {
        match self {
            Self::Client(half) => half.data_bytes(data).await,
            Self::Server(half) => half.data_bytes(data).await,
        }
    }

    async fn eof(&self) -> Sent {
        match self {
            Self::Client(half) => half.eof().await,
            Self::Server(half) => half.eof().await,
        }
    }

    async fn close(&self) -> Sent {
        match self {
            Self::Client(half) => half.close().await,
            Self::Server(half) => half.close().await,
        }
    }
}

enum ReadState {
    Open,
    Eof,
    /// The channel's session is gone, and its owner is about to say why.
    Lost(Why),
}

/// The word of a session's owner on how it ended; it comes soon after the session has.
type Why = Pin<Box<dyn Future<Output = Disconnected> + Send>>;

fn why(session: &Arc<Session>) -> Why {
    let session = session.clone();
    Box::pin(async move { session.closed().await })
}

enum WriteState {
    Open,
    SendingEof,
    Eof,
    /// As when reading.
    Lost(Why),
}

/// Wakes both who waits to write and who waits to read: either may carry a message on that the other began.
#[derive(Default)]
struct Both {
    writer: Mutex<Option<Waker>>,
    reader: Mutex<Option<Waker>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Writer,
    Reader,
}

impl Both {
    fn register(&self, side: Side, waker: &Waker) {
        let slot = if side == Side::Writer { &self.writer } else { &self.reader };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }
}

impl Wake for Both {
    fn wake(self: Arc<Self>) {
        for slot in [&self.writer, &self.reader] {
            let waker = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// One channel of a tunnel: a byte stream, usually with one HTTP/2 connection on it.
///
/// On the side that serves, tonic takes it from an [`Incoming`](crate::Incoming) and its
/// [`ConnectInfo`](TunnelConnectInfo) reaches handlers through the request's extensions. On the side that calls, a
/// [`Connector`](crate::Connector) makes it.
///
/// # Reading
/// Ends with end-of-file when the peer has finished, and with [`io::ErrorKind::ConnectionReset`] when the tunnel was
/// lost; the error's text names the agent and the reason. What arrives before it is read is bounded for the tunnel as
/// a whole (twice its window); past that, the channel with the longest queue is closed with
/// [`io::ErrorKind::OutOfMemory`].
///
/// # Writing
/// One write takes less than 64 KiB. A write waits while the peer's window is closed or while more than 256 KiB of the
/// tunnel wait for the network. Flushing waits until the session has taken what was written; shutting down sends
/// end-of-file.
///
/// Like a buffered writer, a channel keeps small writes, if this side opened it, and parts of large ones until it is
/// flushed, read from, shut down or dropped, or until there is enough for a packet; a flush lets other tasks have one
/// turn before it sends, and another after each large write that came in it. HTTP/2 writes the head of a call and its first
/// message apart, and large messages in pieces of 16 KiB: so they travel together.
///
/// # Cancel safety
/// A read or write that is given up has moved nothing. A flush that is given up may not have sent everything yet; the
/// next flush, or any read, goes on with it.
///
/// # Dropping
/// Closes the channel, after what was written has been sent; a peer that takes nothing for 30 s loses the rest. It needs
/// no runtime and never blocks.
pub struct TunnelIo {
    id: ChannelId,
    read: ChannelReadHalf,
    read_state: ReadState,
    unread: Bytes,
    write: Arc<WriteHalf>,
    write_state: WriteState,
    sending: ReusableBoxFuture<'static, Sent>,
    is_sending: bool,
    /// What was written and not sent yet.
    held: BytesMut,
    /// The last write was cut in two by the end of a packet.
    cut: bool,
    /// Small writes wait for one another, too.
    holds_small: bool,
    /// A flush has given the writer a turn to add to what is held.
    held_a_turn: bool,
    /// A read has left that turn to the flush; the next one sends.
    read_a_turn: bool,
    /// Something that a write took could not be sent: no flush and no shutdown may succeed any more.
    unsent: bool,
    both: Arc<Both>,
    inbound: Arc<Inbound>,
    session: Arc<Session>,
}

impl TunnelIo {
    pub(super) fn from_client(session: Arc<Session>, channel: Channel<client::Msg>) -> Self {
        let (read, write) = channel.split();
        Self::new(session, read, write.id(), WriteHalf::Client(write))
    }

    pub(super) fn from_server(session: Arc<Session>, channel: Channel<server::Msg>) -> Self {
        let (read, write) = channel.split();
        Self::new(session, read, write.id(), WriteHalf::Server(write))
    }

    fn new(session: Arc<Session>, read: ChannelReadHalf, id: ChannelId, write: WriteHalf) -> Self {
        session.channel_opened();
        let inbound = session.ledger.open(id);
        Self {
            id,
            read,
            read_state: ReadState::Open,
            unread: Bytes::new(),
            write: Arc::new(write),
            write_state: WriteState::Open,
            sending: ReusableBoxFuture::new(std::future::ready(Ok(()))),
            is_sending: false,
            held: BytesMut::new(),
            cut: false,
            holds_small: false,
            held_a_turn: false,
            read_a_turn: false,
            unsent: false,
            both: Arc::default(),
            inbound,
            session,
        }
    }

    /// Lets small writes wait for one another. For the side that calls: it writes a call in two parts, and a server
    /// writes an answer in one.
    pub(super) fn holding(mut self) -> Self {
        self.holds_small = true;
        self
    }

    /// The tunnel that this channel belongs to.
    pub fn tunnel_id(&self) -> TunnelId {
        self.session.id
    }

    fn lost(&self, gone: &Disconnected) -> io::Error {
        let text = format!("the tunnel of agent `{}` ended: {}", self.session.agent, gone.reason);
        io::Error::new(io::ErrorKind::ConnectionReset, text)
    }

    fn overflow() -> io::Error {
        io::Error::new(io::ErrorKind::OutOfMemory, "the channel was closed: too much arrived that was not read")
    }

    /// Waits until the last write is in the session's hands.
    fn poll_sent(&mut self, cx: &mut Context<'_>, side: Side) -> Poll<io::Result<()>> {
        if self.is_sending {
            // Whoever waits for the same message on the other side must not miss its end.
            self.both.register(side, cx.waker());
            let waker = Waker::from(self.both.clone());
            let polled = self.sending.poll(&mut Context::from_waker(&waker));
            match polled {
                Poll::Ready(Ok(())) => self.is_sending = false,
                Poll::Ready(Err(russh::Error::SendError)) => {
                    // The session takes no more messages: it has ended, and its owner is about to say why.
                    self.is_sending = false;
                    self.write_state = WriteState::Lost(why(&self.session));
                }
                Poll::Ready(Err(error)) => {
                    (self.is_sending, self.unsent) = (false, true);
                    let text = format!("the peer's channel takes nothing: {error}");
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, text)));
                }
                Poll::Pending => {
                    // A channel that is closed while its window is exhausted would wait for ever.
                    self.inbound.register(&waker);
                    if !self.inbound.closed() {
                        return Poll::Pending;
                    }
                    self.stop_sending();
                    return Poll::Ready(Err(self.closed()));
                }
            }
            if side == Side::Reader {
                waker.wake();
            }
        }
        match &mut self.write_state {
            WriteState::Lost(reason) => {
                let gone = ready!(reason.as_mut().poll(cx));
                // It may be asked for again.
                *reason = why(&self.session);
                Poll::Ready(Err(self.lost(&gone)))
            }
            _ => Poll::Ready(Ok(())),
        }
    }

    fn stop_sending(&mut self) {
        (self.is_sending, self.unsent) = (false, true);
        self.sending.set(std::future::ready(Ok(())));
    }

    /// Why nothing can be written to a channel that is closed.
    fn closed(&self) -> io::Error {
        if self.inbound.overflowed() {
            return Self::overflow();
        }
        match &*self.session.disconnected().borrow() {
            Some(gone) => self.lost(gone),
            None => io::Error::new(io::ErrorKind::BrokenPipe, "the peer closed the channel"),
        }
    }

    /// Sends what is held. Nothing else may be under way.
    fn send_held(&mut self, cx: &mut Context<'_>, side: Side) -> io::Result<()> {
        (self.held_a_turn, self.read_a_turn) = (false, false);
        let data = std::mem::take(&mut self.held).freeze();
        if self.inbound.closed() {
            self.unsent = true;
            return Err(self.closed());
        }
        let write = self.write.clone();
        self.session.carrier.hand(data.len());
        self.start_sending(cx, side, async move { write.send(data).await })
    }

    fn start_sending(
        &mut self,
        cx: &mut Context<'_>,
        side: Side,
        future: impl Future<Output = Sent> + Send + 'static,
    ) -> io::Result<()> {
        self.sending.set(future);
        self.is_sending = true;
        match self.poll_sent(cx, side) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// What a writer left behind goes on its way before its answer is waited for. What goes wrong here, the next write,
    /// flush or shutdown tells.
    fn push(&mut self, cx: &mut Context<'_>) {
        if self.is_sending {
            let _ = self.poll_sent(cx, Side::Reader);
        } else if self.held_a_turn && !self.read_a_turn {
            // A flush is under way and goes first; but it may have been given up.
            self.read_a_turn = true;
            cx.waker().wake_by_ref();
        } else if !self.held.is_empty() {
            let _ = self.send_held(cx, Side::Reader);
        }
    }

    /// Ready when a write may be taken.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx, Side::Writer))?;
        if self.inbound.closed() {
            return Poll::Ready(Err(self.closed()));
        }
        if !matches!(self.write_state, WriteState::Open) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the channel was shut down for writing",
            )));
        }
        self.session.carrier.poll_clear(cx).map(Ok)
    }

    fn take_message(&mut self, message: ChannelMsg) {
        match message {
            ChannelMsg::Data { data } => {
                self.inbound.refund(data.len());
                self.unread = data;
            }
            // A tunnel's service has no second stream.
            ChannelMsg::ExtendedData { data, .. } => self.inbound.refund(data.len()),
            ChannelMsg::WindowAdjusted { .. } => self.inbound.refund(0),
            ChannelMsg::Eof => {
                self.inbound.refund(0);
                self.read_state = ReadState::Eof;
            }
            ChannelMsg::Close => self.read_state = ReadState::Eof,
            // Requests are charged for good.
            _ => {}
        }
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.unread.is_empty() {
                let n = this.unread.len().min(buf.remaining());
                buf.put_slice(&this.unread[..n]);
                this.unread.advance(n);
                return Poll::Ready(Ok(()));
            }
            this.push(cx);
            if this.inbound.overflowed() {
                return Poll::Ready(Err(Self::overflow()));
            }
            match &mut this.read_state {
                ReadState::Eof => return Poll::Ready(Ok(())),
                ReadState::Lost(reason) => {
                    let gone = ready!(reason.as_mut().poll(cx));
                    *reason = why(&this.session);
                    return Poll::Ready(Err(this.lost(&gone)));
                }
                ReadState::Open => {
                    let message = pin!(this.read.wait()).poll(cx);
                    match message {
                        Poll::Ready(Some(message)) => this.take_message(message),
                        Poll::Ready(None) => this.read_state = ReadState::Lost(why(&this.session)),
                        Poll::Pending => {
                            this.both.register(Side::Reader, cx.waker());
                            this.inbound.register(&Waker::from(this.both.clone()));
                            // Once more, now that an overflow would wake.
                            if !this.inbound.overflowed() {
                                return Poll::Pending;
                            }
                        }
                    }
                }
            }
        }
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.as_mut().poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// Gathers the slices into one message: HTTP/2 hands over a frame's head and its data apart.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_writable(cx))?;
        let room = WRITE_MAX - this.held.len();
        let offered = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        let total = offered.min(room);
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let full = this.held.len() + total;
        // The rest of a write that the end of a packet cut in two is as much part of something large.
        let bulk = total >= BULK || this.cut;
        this.cut = total < offered;
        if bulk {
            // The flush that had a turn was of what came before: HTTP/2 flushes after each frame.
            (this.held_a_turn, this.read_a_turn) = (false, false);
        }
        this.held.reserve(if bulk && this.held.is_empty() { WRITE_MAX } else { total });
        for buf in bufs {
            let room = full - this.held.len();
            this.held.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        if full >= ENOUGH || !(bulk || this.holds_small) {
            this.send_held(cx, Side::Writer)?;
        }
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx, Side::Writer))?;
        if !self.held.is_empty() {
            if !self.held_a_turn {
                self.held_a_turn = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.send_held(cx, Side::Writer)?;
            ready!(self.poll_sent(cx, Side::Writer))?;
        }
        if self.unsent { Poll::Ready(Err(self.closed())) } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_sent(cx, Side::Writer))?;
        if !this.held.is_empty() {
            this.send_held(cx, Side::Writer)?;
            ready!(this.poll_sent(cx, Side::Writer))?;
        }
        if this.unsent {
            return Poll::Ready(Err(this.closed()));
        }
        if matches!(this.write_state, WriteState::Open) {
            this.write_state = WriteState::SendingEof;
            // A closed channel has no use for an end-of-file.
            if !this.inbound.closed() {
                let write = this.write.clone();
                this.start_sending(cx, Side::Writer, async move { write.eof().await })?;
            }
        }
        ready!(this.poll_sent(cx, Side::Writer))?;
        this.write_state = WriteState::Eof;
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelIo {
    fn drop(&mut self) {
        let closed = self.inbound.closed();
        let sending = self
            .is_sending
            .then(|| std::mem::replace(&mut self.sending, ReusableBoxFuture::new(std::future::ready(Ok(())))));
        self.inbound.stop_reading();
        let gone = Gone { session: self.session.clone(), id: self.id, inbound: self.inbound.clone() };
        if !closed && !self.session.is_closed() {
            let write = self.write.clone();
            let held = std::mem::take(&mut self.held).freeze();
            let close = async move {
                let rest = async {
                    if let Some(sending) = sending {
                        sending.await?;
                    }
                    if held.is_empty() { Ok(()) } else { write.send(held).await }
                };
                tokio::select! {
                    _ = tokio::time::timeout(LINGER, rest) => {} // the channel is closed in any case
                    () = gone.inbound.until_closed() => {}
                }
                let _ = write.close().await; // fails only when the session or the channel is gone
            };
            self.session.runtime.spawn(close);
        }
    }
}

/// A channel that its user has dropped. It counts until its last bytes are on their way: a drain must not end the tunnel
/// before that, and a peer must not make more of them than of others.
struct Gone {
    session: Arc<Session>,
    id: ChannelId,
    inbound: Arc<Inbound>,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.session.ledger.forget(self.id, &self.inbound);
        self.session.channel_closed();
    }
}

impl Connected for TunnelIo {
    type ConnectInfo = TunnelConnectInfo;

    fn connect_info(&self) -> TunnelConnectInfo {
        TunnelConnectInfo {
            agent_id: self.session.agent.clone(),
            tunnel_id: self.session.id,
            local_addr: self.session.local,
            peer_addr: self.session.peer,
        }
    }
}

impl fmt::Debug for TunnelIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelIo")
            .field("agent", &self.session.agent)
            .field("tunnel", &self.session.id)
            .field("channel", &self.id.number())
            .finish_non_exhaustive()
    }
}
