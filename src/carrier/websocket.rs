//! A WebSocket (RFC 6455) as a carrier: for networks where only HTTPS gets out.
//!
//! Binary messages are the bytes of the SSH connection; where one ends means nothing. What is written between two
//! flushes goes out as one message, unless it is longer than [`MESSAGE`]. Text is refused, longer messages are
//! ([`MESSAGE_MAX`]), and each is told by its close code.

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Sink, Stream as _};
use http::HeaderValue;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::address::WebSocketUrl;
use super::egress::{Egress, Purpose};
use super::{Carried, CarrierKind, DialFailure, Stream};
use crate::tls;

/// What this is called where WebSockets say what they carry. An agent names it; a hub takes also clients that name none.
pub(crate) const PROTOCOL: &str = "dialback-ssh";

/// The most that is sent in one message: an SSH packet and its heads.
const MESSAGE: usize = 66 * 1024;

/// The longest message that is taken, in one frame or in many. It bounds what a stranger makes this side keep.
const MESSAGE_MAX: usize = 256 * 1024;

/// What is read at once.
const READ: usize = 16 * 1024;

/// Answers to pings that may wait until the peer reads.
const WAITING: usize = MESSAGE + 16 * 1024;

/// How often a ping goes out, for whatever ends connections that are idle: the strictest in use do after a minute.
const PING: Duration = Duration::from_secs(25);

/// Messages without a byte in them that are taken in one go before others get their turn.
const EMPTY: usize = 64;

/// See the module's text.
pub(crate) struct WebSocket<S> {
    socket: WebSocketStream<S>,
    unread: Bytes,
    unsent: BytesMut,
    ping: Pin<Box<Sleep>>,
}

impl<S: Stream> WebSocket<S> {
    /// For a stream whose handshake is over; `read` is what came after it.
    pub(crate) async fn of_hub(stream: S, read: Vec<u8>) -> Self {
        Self::new(WebSocketStream::from_partially_read(stream, read, Role::Server, Some(config())).await)
    }

    fn new(socket: WebSocketStream<S>) -> Self {
        let ping = Box::pin(tokio::time::sleep(PING));
        Self { socket, unread: Bytes::new(), unsent: BytesMut::new(), ping }
    }

    /// Hands over what was written, as one message.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.unsent.is_empty() {
            ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
            let message = Message::Binary(self.unsent.split().freeze());
            Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends a ping when it is time; a peer that does not even take that is found out by SSH.
    fn ping(&mut self, cx: &mut Context<'_>) {
        while self.ping.as_mut().poll(cx).is_ready() {
            self.ping.as_mut().reset(Instant::now() + PING);
            if Pin::new(&mut self.socket).poll_ready(cx).is_ready() {
                self.say(cx, Message::Ping(Bytes::new()));
            }
        }
    }

    /// Sends what may as well be lost.
    fn say(&mut self, cx: &mut Context<'_>, message: Message) {
        if Pin::new(&mut self.socket).start_send(message).is_ok() {
            let _ = Pin::new(&mut self.socket).poll_flush(cx);
        }
    }

    /// Ends it because of what the peer sent, and says so.
    fn refuse(&mut self, cx: &mut Context<'_>, code: CloseCode, why: impl Display) -> io::Error {
        let text = format!("WebSocket: {why}");
        self.say(cx, Message::Close(Some(CloseFrame { code, reason: text.as_str().into() })));
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

impl<S: Stream> AsyncRead for WebSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.ping(cx);
        for _ in 0..EMPTY {
            if !this.unread.is_empty() {
                let n = this.unread.len().min(buf.remaining());
                buf.put_slice(&this.unread[..n]);
                this.unread.advance(n);
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut this.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => this.unread = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(frame))) => {
                    // The answer to it; what stands between the two ends may keep the connection for long after that.
                    let _ = Pin::new(&mut this.socket).poll_flush(cx);
                    return Poll::Ready(frame.map_or(Ok(()), farewell));
                }
                Some(Ok(Message::Text(_))) => {
                    let why = "the peer sent text, and this is for binary messages";
                    return Poll::Ready(Err(this.refuse(cx, CloseCode::Unsupported, why)));
                }
                None => return Poll::Ready(Ok(())),
                Some(Err(Error::Io(error))) => return Poll::Ready(Err(error)),
                Some(Err(error)) => {
                    let code = match &error {
                        Error::Capacity(_) => CloseCode::Size,
                        Error::Utf8(_) => CloseCode::Invalid,
                        _ => CloseCode::Protocol,
                    };
                    return Poll::Ready(Err(this.refuse(cx, code, error)));
                }
            }
        }
        // A peer that sends nothing but empty messages takes turns with others.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: Stream> AsyncWrite for WebSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.unsent.len() >= MESSAGE {
            ready!(this.poll_send(cx))?;
        }
        let n = buf.len().min(MESSAGE - this.unsent.len());
        this.unsent.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(0)
        .max_write_buffer_size(WAITING)
        .max_frame_size(Some(MESSAGE_MAX))
        .max_message_size(Some(MESSAGE_MAX))
}

/// Dials, with TLS if the URL says so, and opens a WebSocket. `roots` are authorities beside the system's.
pub(super) async fn dial(
    url: &WebSocketUrl,
    egress: &Egress,
    roots: Option<&Path>,
    timeout: Duration,
) -> Result<Carried, DialFailure> {
    let purpose = if url.tls { Purpose::Https } else { Purpose::Http };
    let dialled = async {
        let Carried { stream, local, peer, .. } = egress.dial(&url.at, purpose, roots, timeout).await?;
        let stream = if url.tls { with_tls(stream, &url.at.host, roots).await? } else { stream };
        let stream = Box::new(open(stream, url).await?);
        Ok(Carried { stream, kind: CarrierKind::WebSocket, local, peer })
    };
    match tokio::time::timeout(timeout, dialled).await {
        Ok(dialled) => dialled,
        Err(_) => Err(DialFailure::Connect(io::ErrorKind::TimedOut.into())),
    }
}

pub(super) async fn with_tls(
    stream: Box<dyn Stream>,
    host: &str,
    roots: Option<&Path>,
) -> Result<Box<dyn Stream>, DialFailure> {
    let roots = roots.map(Path::to_owned);
    // The system's authorities may have changed since the last dial.
    let config = tokio::task::spawn_blocking(move || tls::client(roots.as_deref(), "http/1.1")).await;
    let config = config.map_err(|error| DialFailure::Connect(io::Error::other(error)))?.map_err(DialFailure::Roots)?;
    // What ends without a word about TLS may be a hub that has no room.
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::Other => DialFailure::Tls(error),
        _ => DialFailure::Connect(error),
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(io::Error::other(error)))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(failed)?;
    Ok(Box::new(stream))
}

async fn open<S: Stream>(stream: S, url: &WebSocketUrl) -> Result<WebSocket<S>, DialFailure> {
    let refused = |status, why: String| DialFailure::NotWebSocket { status, why };
    let uri = format!("ws://{}{}", url.authority(), url.target);
    let mut request = uri.into_client_request().map_err(|error| refused(None, error.to_string()))?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    match tokio_tungstenite::client_async_with_config(request, stream, Some(config())).await {
        Ok((socket, _)) => Ok(WebSocket::new(socket)),
        Err(Error::Http(response)) => {
            let status = response.status();
            Err(refused(Some(status.as_u16()), format!("it answered {status}")))
        }
        Err(Error::Io(error)) => Err(DialFailure::Connect(error)),
        Err(Error::Protocol(ProtocolError::HandshakeIncomplete)) => {
            Err(DialFailure::Connect(io::ErrorKind::UnexpectedEof.into()))
        }
        Err(error) => Err(refused(None, error.to_string().escape_debug().to_string())),
    }
}

/// A normal end is the end of the stream; any other is told.
fn farewell(CloseFrame { code, reason }: CloseFrame) -> io::Result<()> {
    if code == CloseCode::Normal {
        return Ok(());
    }
    let reason = reason.escape_debug();
    let text = format!("the peer closed the WebSocket with code {}: {reason}", u16::from(code));
    Err(io::Error::new(io::ErrorKind::ConnectionAborted, text))
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    /// An end of a WebSocket, and its wire, which takes all that a test sends.
    async fn end(role: Role) -> (WebSocket<DuplexStream>, DuplexStream) {
        let (stream, wire) = tokio::io::duplex(1 << 20);
        (WebSocket::new(WebSocketStream::from_raw_socket(stream, role, Some(config())).await), wire)
    }

    /// The payloads of all frames up to the end. Panics unless each is a whole binary message (RFC 6455 §5.2).
    async fn messages(mut wire: DuplexStream) -> Vec<Vec<u8>> {
        let mut bytes = Vec::new();
        wire.read_to_end(&mut bytes).await.unwrap();
        let (mut bytes, mut messages) = (Bytes::from(bytes), Vec::new());
        while bytes.has_remaining() {
            assert_eq!(bytes.get_u8(), 0x82, "the first and last frame of a binary message");
            let head = bytes.get_u8();
            let length = match head & 0x7f {
                126 => bytes.get_u16().into(),
                127 => bytes.get_u64(),
                short => short.into(),
            };
            let mask = if head & 0x80 != 0 { bytes.split_to(4) } else { Bytes::from_static(&[0; 4]) };
            let payload = bytes.split_to(length.try_into().unwrap());
            messages.push(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect());
        }
        messages
    }

    #[tokio::test]
    async fn what_is_written_between_two_flushes_is_one_message() {
        for role in [Role::Client, Role::Server] {
            let (mut socket, wire) = end(role).await;
            for word in ["several ", "", "writes, ", "one flush"] {
                assert_eq!(socket.write(word.as_bytes()).await.unwrap(), word.len());
            }
            socket.flush().await.unwrap();
            socket.flush().await.unwrap();
            socket.write_all(b"and one more").await.unwrap();
            socket.flush().await.unwrap();
            drop(socket);
            assert_eq!(messages(wire).await, [&b"several writes, one flush"[..], b"and one more"], "{role:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_sent_before_a_flush() {
        let (mut socket, wire) = end(Role::Client).await;
        socket.write_all(b"not yet").await.unwrap();
        drop(socket);
        assert_eq!(messages(wire).await, [[0; 0]; 0]);
    }

    #[tokio::test]
    async fn what_is_too_long_for_a_message_goes_in_several() {
        for role in [Role::Client, Role::Server] {
            let (mut socket, wire) = end(role).await;
            let sent: Vec<u8> = (0..2 * MESSAGE + 10).map(|n| (n % 251) as u8).collect();
            socket.write_all(&sent).await.unwrap();
            socket.flush().await.unwrap();
            drop(socket);
            let messages = messages(wire).await;
            assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), [MESSAGE, MESSAGE, 10], "{role:?}");
            assert!(messages.concat() == sent, "{role:?}: it came changed");
        }
    }
}
