//! Watches connections.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

use super::layer::Handlers;
use super::{ConnEnd, ConnId, ConnStats, Stats};

impl<C> Service<Uri> for Stats<C>
where
    C: Service<Uri>,
    C::Response: Read + Write + Unpin,
    C::Error: std::fmt::Display,
{
    type Response = StatsIo<C::Response>;
    type Error = C::Error;
    type Future = StatsDial<C::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let handlers = self.handlers.clone();
        StatsDial { target: target.clone(), handlers, started: Instant::now(), dial: self.inner.call(target) }
    }
}

pin_project! {
    /// A dial in progress; resolves to a [`StatsIo`]. Dropping it gives the dial up, and reports nothing.
    #[derive(Debug)]
    pub struct StatsDial<F> {
        target: Uri,
        handlers: Handlers,
        started: Instant,
        #[pin]
        dial: F,
    }
}

impl<F, IO, E> Future for StatsDial<F>
where
    F: Future<Output = Result<IO, E>>,
    IO: Read + Write + Unpin,
    E: std::fmt::Display,
{
    type Output = Result<StatsIo<IO>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let dialled = ready!(this.dial.poll(cx));
        let (target, handlers) = (this.target.clone(), this.handlers.clone());
        Poll::Ready(match dialled {
            Ok(io) => Ok(StatsIo { io: TokioIo::new(Watched::begin(TokioIo::new(io), target, handlers)) }),
            Err(error) => {
                let lasted = this.started.elapsed();
                handlers.conn(&ConnStats::Failed { target, error: error.to_string(), lasted });
                Err(error)
            }
        })
    }
}

/// A connection whose end is reported, exactly once, and whose bytes are counted.
///
/// Dropping it closes the connection, and reports its end if that was not reported yet.
#[derive(Debug)]
pub struct StatsIo<IO> {
    // Counting behind hyper's read cursor takes unsafe code; behind tokio's it does not, and the way there and back
    // copies nothing.
    io: TokioIo<Watched<TokioIo<IO>>>,
}

impl<IO: Read + Write + Unpin> Read for StatsIo<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: Read + Write + Unpin> Write for StatsIo<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Write::poll_write(Pin::new(&mut self.io), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Write::poll_flush(Pin::new(&mut self.io), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Write::poll_shutdown(Pin::new(&mut self.io), cx)
    }

    fn is_write_vectored(&self) -> bool {
        Write::is_write_vectored(&self.io)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Write::poll_write_vectored(Pin::new(&mut self.io), cx, bufs)
    }
}

/// How far a connection's end has come.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Open,
    /// This side asked for the end, so whatever ends it now is not the cause.
    ShuttingDown,
    /// The end has been reported.
    Ended,
}

#[derive(Debug)]
struct Watched<T> {
    io: T,
    id: ConnId,
    target: Uri,
    handlers: Handlers,
    begun: Instant,
    phase: Phase,
    bytes_read: u64,
    bytes_written: u64,
}

impl<T> Watched<T> {
    fn begin(io: T, target: Uri, handlers: Handlers) -> Self {
        let (id, begun) = (ConnId::next(), Instant::now());
        handlers.conn(&ConnStats::Begin { id, target: target.clone(), at: begun });
        Self { io, id, target, handlers, begun, phase: Phase::Open, bytes_read: 0, bytes_written: 0 }
    }

    fn end(&mut self, cause: ConnEnd) {
        let reason = match self.phase {
            Phase::Open => cause,
            Phase::ShuttingDown => ConnEnd::Closed,
            Phase::Ended => return,
        };
        self.phase = Phase::Ended;
        self.handlers.conn(&ConnStats::End {
            id: self.id,
            target: self.target.clone(),
            reason,
            bytes_read: self.bytes_read,
            bytes_written: self.bytes_written,
            lasted: self.begun.elapsed(),
        });
    }

    fn failed<V>(&mut self, polled: &Poll<io::Result<V>>) {
        if let Poll::Ready(Err(error)) = polled {
            self.end(error.into());
        }
    }

    fn wrote(&mut self, polled: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(n)) = polled {
            self.bytes_written += *n as u64;
        }
        self.failed(polled);
    }
}

impl<T> Drop for Watched<T> {
    fn drop(&mut self) {
        self.end(ConnEnd::Dropped);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = polled {
            let n = buf.filled().len() - before;
            self.bytes_read += n as u64;
            if n == 0 && room > 0 {
                self.end(ConnEnd::ClosedByPeer);
            }
        }
        self.failed(&polled);
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(&polled);
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.failed(&polled);
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.phase == Phase::Open {
            self.phase = Phase::ShuttingDown;
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(&polled);
        polled
    }
}
