//! What a server says first, which tells whether it speaks HTTP/2 at all.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// What a server said first.
#[derive(Debug)]
pub(super) enum First {
    /// The SETTINGS frame with which every HTTP/2 server begins (RFC 9113 §3.4).
    Http2,
    /// A TLS alert: it expected a handshake.
    Tls,
    Http1,
    Other,
    /// Nothing: it closed the connection.
    Closed,
    Failed(io::Error),
}

/// As many bytes as tell the kinds apart.
const ENOUGH: usize = 4;

fn kind(bytes: &[u8]) -> First {
    match bytes {
        // Length, then the type: 4 is SETTINGS.
        [_, _, _, 4, ..] => First::Http2,
        [0x15, 3, ..] => First::Tls,
        [b'H', b'T', b'T', b'P', ..] => First::Http1,
        [] => First::Closed,
        _ => First::Other,
    }
}

/// A stream that tells what came first, and when it is dropped.
#[derive(Debug)]
pub(super) struct Sniffed<T> {
    io: T,
    first: Option<oneshot::Sender<First>>,
    seen: Vec<u8>,
    /// Dropped with the stream, which its receiver notices.
    _open: oneshot::Sender<()>,
}

/// What a [`Sniffed`] tells.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) first: oneshot::Receiver<First>,
    pub(super) dropped: oneshot::Receiver<()>,
}

impl<T> Sniffed<T> {
    pub(super) fn new(io: T) -> (Self, Told) {
        let (first, first_told) = oneshot::channel();
        let (open, dropped) = oneshot::channel();
        let sniffed = Self { io, first: Some(first), seen: Vec::new(), _open: open };
        (sniffed, Told { first: first_told, dropped })
    }

    fn tell(&mut self, what: First) {
        if let Some(first) = self.first.take() {
            let _ = first.send(what); // nobody may wait for it any more
        }
    }

    /// Notes what was read. No bytes are the end.
    fn note(&mut self, read: Result<&[u8], &io::Error>) {
        match read {
            _ if self.first.is_none() => {}
            Err(error) => {
                // An error of TLS stays one, as it tells what to do.
                let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                let copy = match of_tls {
                    Some(inner) => io::Error::new(error.kind(), inner.clone()),
                    None => io::Error::new(error.kind(), error.to_string()),
                };
                self.tell(First::Failed(copy));
            }
            Ok(new) => {
                let missing = ENOUGH - self.seen.len();
                self.seen.extend_from_slice(&new[..new.len().min(missing)]);
                if new.is_empty() || self.seen.len() == ENOUGH {
                    let what = kind(&self.seen);
                    self.tell(what);
                }
            }
        }
    }
}

impl<T: AsyncRead + Unpin> Sniffed<T> {
    /// Reads what there is when a write has failed: a server that refuses says why, and closes, and whoever only writes
    /// never hears it. Pending until it is there, which is soon, as the connection is at its end.
    fn last_words(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.first.is_some() {
            let mut bytes = [0; 64];
            let mut buf = ReadBuf::new(&mut bytes);
            let result = ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf));
            self.note(result.as_ref().map(|()| buf.filled()));
        }
        Poll::Ready(())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Sniffed<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.note(result.as_ref().map(|()| &buf.filled()[before..]));
        Poll::Ready(result)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Sniffed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        if result.is_err() {
            ready!(self.last_words(cx));
        }
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.io).poll_flush(cx));
        if result.is_err() {
            ready!(self.last_words(cx));
        }
        Poll::Ready(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs));
        if result.is_err() {
            ready!(self.last_words(cx));
        }
        Poll::Ready(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
