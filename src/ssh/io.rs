//! [`TunnelIo`]: one channel as a byte stream.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
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

/// How long a dropped channel may still send what it had taken.
const LINGER: Duration = Duration::from_secs(5);

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
/// One write takes at most 68 KiB. A write waits while the peer's window is closed or while more than 256 KiB of the
/// tunnel wait for the network. Flushing waits until the session has taken what was written; shutting down sends
/// end-of-file.
///
/// Like a buffered writer, a channel keeps small writes, if this side opened it, and parts of large ones until it is
/// flushed, read from, shut down or dropped, or until there is enough for a packet; a flush lets other tasks have one
/// turn before it sends. HTTP/2 writes the head of a call and its first message apart, and large messages in pieces of
/// 16 KiB: so they travel together.
///
/// # Cancel safety
/// A read or write that is given up has moved nothing. A flush that is given up may have sent nothing: flush again.
///
/// # Dropping
/// Closes the channel, after what was written has been sent. It needs no runtime and never blocks.
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
    /// Small writes wait for one another, too.
    holds_small: bool,
    /// A flush has given the writer a turn to add to what is held.
    held_a_turn: bool,
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
            holds_small: false,
            held_a_turn: false,
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
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_sending {
            if let Poll::Ready(sent) = self.sending.poll(cx) {
                self.is_sending = false;
                if sent.is_err() {
                    // The session takes no more messages: it has ended, and its owner is about to say why.
                    self.write_state = WriteState::Lost(why(&self.session));
                }
            } else {
                // A channel that is closed while its window is exhausted would wait for ever.
                self.inbound.register_writer(cx.waker());
                if !self.inbound.closed() {
                    return Poll::Pending;
                }
                self.stop_sending();
                return Poll::Ready(Err(self.closed()));
            }
        }
        match &mut self.write_state {
            WriteState::Lost(why) => {
                let gone = ready!(why.as_mut().poll(cx));
                Poll::Ready(Err(self.lost(&gone)))
            }
            _ => Poll::Ready(Ok(())),
        }
    }

    fn stop_sending(&mut self) {
        self.is_sending = false;
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
    fn send_held(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.held_a_turn = false;
        let data = std::mem::take(&mut self.held).freeze();
        if self.inbound.closed() {
            return Err(self.closed());
        }
        let write = self.write.clone();
        self.session.carrier.hand(data.len());
        self.start_sending(cx, async move { write.send(data).await })
    }

    fn start_sending(
        &mut self,
        cx: &mut Context<'_>,
        future: impl Future<Output = Sent> + Send + 'static,
    ) -> io::Result<()> {
        self.sending.set(future);
        self.is_sending = true;
        match self.poll_sent(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// Ready when a write may be taken.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
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
            if !this.held.is_empty() && !this.held_a_turn {
                // Nobody flushed what the peer's answer may depend on. What goes wrong here, the next write tells.
                let _ = this.send_held(cx);
            }
            if this.inbound.overflowed() {
                return Poll::Ready(Err(Self::overflow()));
            }
            match &mut this.read_state {
                ReadState::Eof => return Poll::Ready(Ok(())),
                ReadState::Lost(why) => {
                    let gone = ready!(why.as_mut().poll(cx));
                    return Poll::Ready(Err(this.lost(&gone)));
                }
                ReadState::Open => {
                    let message = ready!(pin!(this.read.wait()).poll(cx));
                    match message {
                        Some(message) => this.take_message(message),
                        None => this.read_state = ReadState::Lost(why(&this.session)),
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
        let total = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(room);
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let full = this.held.len() + total;
        let bulk = total >= BULK;
        this.held.reserve(if bulk && this.held.is_empty() { WRITE_MAX } else { total });
        for buf in bufs {
            let room = full - this.held.len();
            this.held.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        if full >= ENOUGH || !(bulk || this.holds_small) {
            this.send_held(cx)?;
        }
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        if !self.held.is_empty() {
            if !self.held_a_turn {
                self.held_a_turn = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.send_held(cx)?;
        }
        self.poll_sent(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_sent(cx))?;
        if !this.held.is_empty() && !this.inbound.closed() {
            this.send_held(cx)?;
            ready!(this.poll_sent(cx))?;
        }
        if matches!(this.write_state, WriteState::Open) {
            this.write_state = WriteState::SendingEof;
            // A closed channel has no use for an end-of-file.
            if !this.inbound.closed() {
                let write = this.write.clone();
                this.start_sending(cx, async move { write.eof().await })?;
            }
        }
        ready!(this.poll_sent(cx))?;
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
        self.session.ledger.forget(self.id, &self.inbound);
        let gone = Gone(self.session.clone());
        if !closed && !self.session.is_closed() {
            let write = self.write.clone();
            let held = std::mem::take(&mut self.held).freeze();
            let close = async move {
                // A drain must not end the tunnel before the channel's last bytes are on their way.
                let _gone = gone;
                let rest = async {
                    if let Some(sending) = sending {
                        sending.await?;
                    }
                    if held.is_empty() { Ok(()) } else { write.send(held).await }
                };
                let _ = tokio::time::timeout(LINGER, rest).await; // the channel is closed in any case
                let _ = write.close().await; // fails only when the session is gone, and the channel with it
            };
            self.session.runtime.spawn(close);
        }
    }
}

/// Counts a channel as closed.
struct Gone(Arc<Session>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.channel_closed();
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
