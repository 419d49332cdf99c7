//! gRPC's framing in bodies, which a tunnel does not have: pieces of messages there, and back.

use std::collections::VecDeque;
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use tonic::Status;

/// What stands before each message: a flag, and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// What comes with a prefix and is this long at most is copied to go with it.
const SMALL: usize = 4 * 1024;

/// A part of a message.
pub(super) enum Piece {
    Whole(Bytes),
    /// A message of this length begins.
    Start(u32),
    More(Bytes),
}

/// Takes the messages out of a body, as they come.
pub(super) struct Pieces<B> {
    body: Pin<Box<B>>,
    /// What has come and was not given on.
    data: Bytes,
    prefix: BytesMut,
    /// What is to come of the message that has begun.
    left: usize,
    trailers: Option<HeaderMap>,
    done: bool,
}

impl<B> Pieces<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    pub(super) fn of(body: B) -> Self {
        Self { body: Box::pin(body), data: Bytes::new(), prefix: BytesMut::new(), left: 0, trailers: None, done: false }
    }

    /// The next piece; None at the body's end. The first error is the end.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, Status>>> {
        loop {
            if self.left > 0 && !self.data.is_empty() {
                let piece = self.data.split_to(self.left.min(self.data.len()));
                self.left -= piece.len();
                return Poll::Ready(Some(Ok(Piece::More(piece))));
            }
            if self.left == 0 {
                let missing = PREFIX - self.prefix.len();
                self.prefix.put(self.data.split_to(missing.min(self.data.len())));
                if let Some(&[flag, a, b, c, d]) = self.prefix.first_chunk::<PREFIX>() {
                    self.prefix.clear();
                    if flag != 0 {
                        return Poll::Ready(Some(Err(self.failed(Status::unimplemented(
                            "a grpctunnel carries no compressed messages: send them as they are",
                        )))));
                    }
                    let size = u32::from_be_bytes([a, b, c, d]);
                    let len = size as usize;
                    if self.data.len() >= len {
                        return Poll::Ready(Some(Ok(Piece::Whole(self.data.split_to(len)))));
                    }
                    self.left = len;
                    return Poll::Ready(Some(Ok(Piece::Start(size))));
                }
            }
            if self.done {
                let is_whole = self.left == 0 && self.prefix.is_empty();
                return Poll::Ready(
                    (!is_whole)
                        .then(|| Err(self.failed(Status::internal("the body ended in the middle of a message")))),
                );
            }
            match ready!(self.body.as_mut().poll_frame(cx)) {
                None => self.done = true,
                Some(Err(error)) => {
                    let status = self.failed(Status::from_error(error.into()));
                    return Poll::Ready(Some(Err(status)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.data = data,
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.done = true;
                    }
                },
            }
        }
    }

    fn failed(&mut self, status: Status) -> Status {
        self.done = true;
        self.left = 0;
        self.prefix.clear();
        self.data = Bytes::new();
        status
    }

    /// What the body ended with.
    pub(super) fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }
}

/// Messages in gRPC's framing.
#[derive(Default)]
pub(super) struct Framed(VecDeque<Bytes>);

impl Framed {
    /// A message of `size` bytes begins with `data`.
    pub(super) fn begin(&mut self, size: u32, data: Bytes) {
        let small = data.len() <= SMALL;
        let mut framed = BytesMut::with_capacity(PREFIX + if small { data.len() } else { 0 });
        framed.put_u8(0);
        framed.put_u32(size);
        if small {
            framed.put(data);
            self.0.push_back(framed.freeze());
        } else {
            self.0.extend([framed.freeze(), data]);
        }
    }

    /// It goes on.
    pub(super) fn more(&mut self, data: Bytes) {
        if data.has_remaining() {
            self.0.push_back(data);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        self.0.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body::Frame;

    use super::*;

    /// A body of these chunks.
    struct Chunks(VecDeque<Bytes>);

    impl Body for Chunks {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
        }
    }

    async fn messages(chunks: impl IntoIterator<Item = Bytes>) -> Result<Vec<Vec<u8>>, Status> {
        let mut pieces = Pieces::of(Chunks(chunks.into_iter().collect()));
        let mut messages = Vec::new();
        let mut missing = 0;
        while let Some(piece) = poll_fn(|cx| pieces.poll_piece(cx)).await {
            match piece? {
                Piece::Whole(message) => messages.push(message.to_vec()),
                Piece::Start(size) => {
                    messages.push(Vec::new());
                    missing = size as usize;
                }
                Piece::More(data) => {
                    missing -= data.len();
                    messages.last_mut().unwrap().extend_from_slice(&data);
                }
            }
        }
        assert_eq!(missing, 0);
        Ok(messages)
    }

    fn framed(messages: &[&[u8]]) -> Bytes {
        let mut framed = Framed::default();
        for message in messages {
            let (first, rest) = message.split_at(message.len() / 2);
            framed.begin(u32::try_from(message.len()).unwrap(), Bytes::copy_from_slice(first));
            framed.more(Bytes::copy_from_slice(rest));
        }
        let mut all = BytesMut::new();
        while let Some(data) = framed.pop() {
            all.put(data);
        }
        all.freeze()
    }

    #[tokio::test]
    async fn messages_are_the_same_whatever_the_chunks() {
        let large = vec![7; 20_000];
        let expected: [&[u8]; 5] = [b"", b"one", &large, b"", b"two"];
        let all = framed(&expected);
        for size in [1, 2, 5, 7, 4096, 100_000] {
            let chunks = all.chunks(size).map(Bytes::copy_from_slice);
            assert_eq!(messages(chunks).await.unwrap(), expected, "chunks of {size}");
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error_that_says_so() {
        let all = framed(&[b"cut off"]);
        for len in [1, 4, 5, 6, all.len() - 1] {
            let error = messages([all.slice(..len)]).await.unwrap_err();
            assert!(error.message().contains("in the middle"), "{len}: {error}");
        }
        let error = messages([Bytes::from_static(&[1, 0, 0, 0, 0])]).await.unwrap_err();
        assert!(error.message().contains("compressed"), "{error}");
    }
}
