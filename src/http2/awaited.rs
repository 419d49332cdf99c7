//! Waits for the head of an answer, and gives calls up no faster than a peer can take it.
//!
//! A peer that reads a call and its reset before it has looked at the call counts that against the *whole connection*, and
//! ends it when there are too many: 20 at h2's default, which is tonic's. A program that cancels a group of calls at once
//! would lose all others their calls. So resets of calls that were not answered go out in small groups with a pause between.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::RecvStream;
use h2::client::ResponseFuture;
use http::Response;
use tokio::sync::Notify;

use super::connection::Usage;

/// Resets that go out at once: below h2's limit of 20.
const GROUP: usize = 16;

/// How long a peer has to look at the calls of one group.
const PAUSE: Duration = Duration::from_millis(10);

/// The head of an answer, to come. Dropping it before gives the call up; the reset may go out a moment later.
pub(crate) struct Awaited {
    answer: Option<ResponseFuture>,
    /// When the call began, as its connection counts the time.
    begun: u64,
    usage: Arc<Usage>,
}

impl Awaited {
    pub(super) fn new(answer: ResponseFuture, begun: u64, usage: Arc<Usage>) -> Self {
        Self { answer: Some(answer), begun, usage }
    }
}

impl Future for Awaited {
    type Output = Result<Response<RecvStream>, h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(answer) = &mut self.answer else { return Poll::Pending };
        let answer = ready!(Pin::new(answer).poll(cx));
        self.answer = None;
        if answer.is_ok() {
            self.usage.haste.answered(self.begun);
        }
        Poll::Ready(answer)
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            self.usage.give_up(answer);
        }
    }
}

/// The calls of one connection that were given up before they were answered.
#[derive(Default)]
pub(super) struct Resets {
    given_up: Mutex<GivenUp>,
    some: Notify,
}

#[derive(Default)]
struct GivenUp {
    /// Resets that went out since the last pause, and those that wait.
    recent: usize,
    waiting: VecDeque<ResponseFuture>,
}

impl Resets {
    fn lock(&self) -> MutexGuard<'_, GivenUp> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Usage {
    /// A call whose reset waits has its place on the connection until then. If another had it, its stream would wait within
    /// h2 for one to end, and the resets of such streams, which no pause keeps apart, would all go out when one does.
    fn give_up(&self, answer: ResponseFuture) {
        let mut given_up = self.resets.lock();
        given_up.recent += 1;
        if given_up.recent > GROUP {
            self.calls.fetch_add(1, Ordering::Relaxed);
            given_up.waiting.push_back(answer);
        } else {
            drop(given_up);
            drop(answer); // which resets it
        }
        self.resets.some.notify_one();
    }

    /// Sends the resets that have to wait, for as long as it is polled.
    pub(super) async fn pace_resets(&self) {
        loop {
            self.resets.some.notified().await;
            while self.resets.lock().recent > 0 {
                tokio::time::sleep(PAUSE).await;
                let group: Vec<_> = {
                    let mut given_up = self.resets.lock();
                    let len = given_up.waiting.len().min(GROUP);
                    given_up.recent = len;
                    given_up.waiting.drain(..len).collect()
                };
                let len = group.len();
                drop(group);
                self.calls.fetch_sub(len, Ordering::Relaxed);
            }
        }
    }
}
