//! A call to an agent whose tunnel has no channels.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use http::request::Parts;
use tokio::time::Instant;

use super::give;
use crate::gateway::builder::Shared;
use crate::http2::{Clock, Gathered, Relayed, Rings, SharedBody, SharedSource, headers_of, refuse, stalled};

/// The call, and its place in the tunnel.
pub(super) struct Own<'a> {
    pub(super) call: crate::ssh::Call,
    pub(super) _channel: crate::ssh::OwnChannel,
    pub(super) deadline: Option<Instant>,
    pub(super) shared: &'a Shared,
}

impl Own<'_> {
    pub(super) async fn run(
        self,
        caller: &crate::grpctunnel::Caller,
        head: Parts,
        body: Gathered,
        mut respond: SendResponse<Bytes>,
    ) {
        let session = self.call.session();
        let mut clock = Clock::new(self.deadline, self.shared.settings.idle);
        let counter = Arc::new(AtomicU64::new(0));
        let moved = || counter.load(Ordering::Relaxed);
        let (stall, source) = (self.shared.settings.stall, SharedSource::new(body));
        // As long as the call takes: what the caller sends must not pile up in h2.
        let mut taking = pin!(source.taking(stall, &self.shared.held));
        let mut calling = pin!(caller.call(head, Counted { body: SharedBody(source.clone()), moved: counter.clone() }));
        let answer = loop {
            tokio::select! {
                biased;
                answer = calling.as_mut() => break answer,
                ended = taking.as_mut() => match ended {
                    Relayed::Stalled => return refuse(stalled("the agent", stall), &mut respond),
                    _ => return, // the caller is gone
                },
                _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
                why = clock.rings() => match why {
                    Rings::Idle if moved() != clock.moved => clock.again(moved()),
                    why => return refuse(why.status(), &mut respond),
                },
            }
        };
        match answer {
            Ok(answer) => {
                let answer = answer.map(|body| Counted {
                    body: body.ending(|lost| headers_of(&lost.status(session))),
                    moved: counter.clone(),
                });
                clock.again(moved());
                tokio::select! {
                    () = give(answer, respond, clock, moved, stall) => {}
                    _ = taking => {} // which resets the call, on both sides
                }
            }
            Err(failure) => refuse(failure.status(session), &mut respond),
        }
    }
}

/// A body that counts what goes through it.
struct Counted<B> {
    body: B,
    moved: Arc<AtomicU64>,
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, B::Error>>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let len = polled.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
        self.moved.fetch_add(len as u64, Ordering::Relaxed);
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
