//! Hangs up on a stranger at the first byte that no SSH client sends, and on what is surely no SSH server.
//!
//! russh waits for a whole line, or for 255 bytes without one. A browser, a TLS client or a lone NUL would hold a
//! stranger's place until the login deadline.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::server::Progress;

/// How a client's first line begins (RFC 4253 §4.2, §5.1). Unlike a server, it may send no other line before.
const GREETINGS: [&[u8]; 2] = [b"SSH-2.0-", b"SSH-1.99-"];

/// See the module's text.
#[derive(Debug)]
pub(super) struct Greeted<S> {
    io: S,
    /// What has come so far; full once it can no longer be wrong.
    head: [u8; 9],
    len: usize,
    fits: fn(&[u8]) -> bool,
    /// How much has to come until a client counts as one that has begun a key exchange, and who wants to know.
    begins: Option<(usize, watch::Sender<Progress>)>,
}

/// A client's first line and its offer of algorithms are longer than this; how far it is honest, the exchange will tell.
const OFFER: usize = 300;

/// Whether these may be an SSH client's first bytes.
fn fits_client(head: &[u8]) -> bool {
    GREETINGS.iter().any(|greeting| head.iter().zip(*greeting).all(|(is, wanted)| is == wanted))
}

/// Whether these may be an SSH server's first bytes. It may send lines of text before its own, so only what is surely
/// something else does not fit: a web server's answer, or binary, such as TLS.
fn fits_server(head: &[u8]) -> bool {
    !head.starts_with(b"HTTP/") && !head.iter().any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace())
}

impl<S> Greeted<S> {
    /// A connection that an SSH client has opened.
    pub(super) fn by_client(io: S, progress: watch::Sender<Progress>) -> Self {
        Self { io, head: [0; 9], len: 0, fits: fits_client, begins: Some((OFFER, progress)) }
    }

    /// A connection to an SSH server.
    pub(super) fn by_server(io: S) -> Self {
        Self { io, head: [0; 9], len: 0, fits: fits_server, begins: None }
    }

    /// Takes note of the next bytes. `false` when they cannot be what SSH begins with.
    fn greets(&mut self, bytes: &[u8]) -> bool {
        let taken = bytes.len().min(self.head.len() - self.len);
        self.head[self.len..self.len + taken].copy_from_slice(&bytes[..taken]);
        self.len += taken;
        (self.fits)(&self.head[..self.len])
    }

    /// So many bytes more have come.
    fn count(&mut self, len: usize) {
        match &mut self.begins {
            Some((left, _)) if *left > len => *left -= len,
            Some((_, progress)) => {
                progress.send_replace(Progress::Begun);
                self.begins = None;
            }
            None => {}
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        if this.len < this.head.len() && !this.greets(&buf.filled()[before..]) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak SSH")));
        }
        this.count(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_client<S>(io: S) -> Greeted<S> {
        Greeted::by_client(io, watch::Sender::new(Progress::Nothing))
    }

    /// Whether all of `text` is let through, whole and byte by byte.
    fn passes(text: &[u8]) -> bool {
        let whole = by_client(()).greets(text);
        let mut greeted = by_client(());
        assert_eq!(text.chunks(1).all(|byte| greeted.greets(byte)), whole, "{text:?}");
        whole
    }

    #[test]
    fn only_ssh_2_begins_well() {
        for good in ["S", "SSH-", "SSH-2.0-", "SSH-2.0-x\r\n", "SSH-1.99-x\n"] {
            assert!(passes(good.as_bytes()), "{good:?}");
        }
        for bad in ["\0", "G", "\n", "SSH-1.5-x", "SSH-3", "SSH-2.1", "ssh-2.0-", "SSH 2", "\x16\x03\x01"] {
            assert!(!passes(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn servers_may_send_text_first() {
        for good in ["S", "SSH-2.0-x\r\n", "Welcome\r\n", "\tHTTP/", "HTTP"] {
            assert!(Greeted::by_server(()).greets(good.as_bytes()), "{good:?}");
        }
        for bad in ["HTTP/1.1 400", "\0", "\x15\x03\x01\0\x02"] {
            assert!(!Greeted::by_server(()).greets(bad.as_bytes()), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn login_has_begun_once_an_offer_can_have_come() {
        use tokio::io::AsyncReadExt;
        for (len, begun) in [(OFFER - 1, Progress::Nothing), (OFFER, Progress::Begun)] {
            let mut text = b"SSH-2.0-x\r\n".to_vec();
            text.resize(len, 7);
            let progress = watch::Sender::new(Progress::Nothing);
            Greeted::by_client(&text[..], progress.clone()).read_to_end(&mut Vec::new()).await.expect("it passes");
            assert_eq!(*progress.borrow(), begun);
        }
    }

    #[tokio::test]
    async fn what_follows_is_not_looked_at() {
        use tokio::io::AsyncReadExt;
        let text = b"SSH-2.0-x\r\n\0\xff anything";
        let mut read = Vec::new();
        by_client(&text[..]).read_to_end(&mut read).await.expect("it passes");
        assert_eq!(read, text);
    }
}
