//! Reads more from the socket than it is asked for, because russh asks for a packet's four bytes of length first.
//!
//! A small call would cost three reads of the socket at each end: length, rest, and one more to learn that there is
//! nothing more. Here it costs one, and the packets of many calls come together.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

/// Room for the packets of many small calls. A large packet is read without this detour, but for its first bytes.
const AHEAD: usize = 4 * 1024;

/// What was read and not asked for yet.
#[derive(Debug, Default)]
pub(super) struct ReadAhead(BytesMut);

impl ReadAhead {
    /// As [`AsyncRead::poll_read`] of `io`. Holds no memory while it waits: most sessions are idle.
    pub(super) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.0.is_empty() {
            let n = self.0.len().min(buf.remaining());
            buf.put_slice(&self.0[..n]);
            self.0.advance(n);
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() >= AHEAD {
            return Pin::new(io).poll_read(cx, buf);
        }
        let mut space = [MaybeUninit::uninit(); AHEAD];
        let mut read = ReadBuf::uninit(&mut space);
        if Pin::new(io).poll_read(cx, &mut read)?.is_pending() {
            self.0 = BytesMut::new();
            return Poll::Pending;
        }
        let (now, later) = read.filled().split_at(read.filled().len().min(buf.remaining()));
        buf.put_slice(now);
        self.0.extend_from_slice(later);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, duplex};

    async fn read(ahead: &mut ReadAhead, io: &mut (impl AsyncRead + Unpin), len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut buf = ReadBuf::new(&mut bytes);
        std::future::poll_fn(|cx| ahead.poll_read(io, cx, &mut buf)).await.unwrap();
        let filled = buf.filled().len();
        bytes.truncate(filled);
        bytes
    }

    #[tokio::test]
    async fn bytes_come_in_order_whatever_is_asked_for() {
        let (mut near, mut far) = duplex(4 * AHEAD);
        let sent: Vec<u8> = (0..4 * AHEAD).map(|n| (n % 251) as u8).collect();
        far.write_all(&sent).await.unwrap();
        drop(far);
        let (mut ahead, mut got) = (ReadAhead::default(), Vec::new());
        for len in [4, 100, 2 * AHEAD, 1, AHEAD].into_iter().cycle() {
            let read = read(&mut ahead, &mut near, len).await;
            if read.is_empty() {
                break;
            }
            got.extend(read);
        }
        assert!(got == sent);
    }

    #[tokio::test]
    async fn one_that_waits_holds_no_memory() {
        let (mut near, mut far) = duplex(64);
        let mut ahead = ReadAhead::default();
        far.write_all(b"packet").await.unwrap();
        assert_eq!(read(&mut ahead, &mut near, 100).await, b"packet");
        let waiting = tokio::time::timeout(std::time::Duration::ZERO, read(&mut ahead, &mut near, 4)).await;
        assert!(waiting.is_err());
        assert_eq!(ahead.0.capacity(), 0);
    }
}
