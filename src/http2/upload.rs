//! Sends a body on an HTTP/2 stream.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body::Body;
use pin_project_lite::pin_project;

use super::given::Given;

/// The most that goes to h2 before there is room for it, in bytes: the first chunk of a call in haste.
pub(super) const HASTY: usize = 4 * 1024;

pin_project! {
    /// Sends a body to its end, no faster than the peer reads; resets the stream when the body fails. Ends early when the
    /// peer does not want more. Dropping it stops sending.
    ///
    /// Gives the stream back, of which h2 may still have something to send.
    pub(crate) struct Upload<B> {
        #[pin]
        body: B,
        stream: Option<SendStream<Bytes>>,
        // The first chunk need not wait for room.
        hasty: bool,
        // Read from the body, and not sent yet: the next chunk and, so that the last is known, the one after.
        held: Option<Bytes>,
        after: Option<Bytes>,
        // What the body ended with.
        end: Option<Option<HeaderMap>>,
        // How many chunks were sent.
        sent: u64,
        given: Given,
    }
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    pub(crate) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self {
            body,
            stream: Some(stream),
            hasty: false,
            held: None,
            after: None,
            end: None,
            sent: 0,
            given: Given::default(),
        }
    }

    /// In haste, a small first chunk does not wait for room.
    pub(crate) fn hasty(self, hasty: bool) -> Self {
        Self { hasty, ..self }
    }

    /// If it waits for the peer: how many chunks it has sent, to see later whether there were more.
    pub(crate) fn waits(&self) -> Option<u64> {
        self.held.is_some().then_some(self.sent)
    }

    /// The stream, to end it otherwise. None when it has been given back.
    #[cfg(feature = "gateway")]
    pub(crate) fn stream(self: Pin<&mut Self>) -> Option<&mut SendStream<Bytes>> {
        self.project().stream.as_mut()
    }
}

impl<B> Future for Upload<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Output = (SendStream<Bytes>, Given);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(SendStream<Bytes>, Given)> {
        let mut this = self.project();
        'sending: loop {
            let Some(stream) = this.stream else { return Poll::Pending };
            while this.end.is_none() && this.after.is_none() {
                match this.body.as_mut().poll_frame(cx) {
                    Poll::Pending => break,
                    Poll::Ready(None) => *this.end = Some(None),
                    Poll::Ready(Some(Err(error))) => {
                        stream.send_reset(reason_in(&*error.into()));
                        break 'sending;
                    }
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) if this.held.is_none() => *this.held = Some(data),
                        Ok(data) => *this.after = Some(data),
                        Err(frame) => *this.end = Some(frame.into_trailers().ok()),
                    },
                }
            }
            // Sending fails only on a stream that is gone, and then nobody wants the rest.
            if let Some(len) = this.held.as_ref().map(Bytes::len) {
                let at_once = len == 0 || (*this.hasty && *this.sent == 0 && len <= HASTY);
                // A whole chunk goes as soon as there is room for a byte: h2 keeps the rest, one chunk at most.
                if !at_once && ready!(poll_room(stream, len, cx)).is_err() {
                    break;
                }
                let last = this.after.is_none() && matches!(this.end, Some(None));
                let data = std::mem::replace(this.held, this.after.take()).unwrap_or_default();
                *this.sent += 1;
                if stream.send_data(this.given.watch(data), last).is_err() || last {
                    break;
                }
            } else if let Some(end) = this.end {
                let _ = match end.take() {
                    Some(trailers) => stream.send_trailers(trailers),
                    None => stream.send_data(Bytes::new(), true),
                };
                break;
            } else {
                // Nothing to send: the peer may not want more, too.
                let _ = ready!(stream.poll_reset(cx));
                break;
            }
        }
        let given = std::mem::take(this.given);
        this.stream.take().map_or(Poll::Pending, |stream| Poll::Ready((stream, given)))
    }
}

/// Waits until something may be sent.
fn poll_room(stream: &mut SendStream<Bytes>, len: usize, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
    stream.reserve_capacity(len);
    while stream.capacity() == 0 {
        match stream.poll_capacity(cx) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(())),
            Poll::Pending => return stream.poll_reset(cx).map(|_| Err(())),
        }
    }
    Poll::Ready(Ok(()))
}

/// The code of a reset for a body that failed: the one it was reset with itself, if it was.
fn reason_in(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(reason) = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return reason;
        }
        cause = error.source();
    }
    Reason::CANCEL
}
