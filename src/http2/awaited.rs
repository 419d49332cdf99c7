//! Waits for the head of an answer, and gives calls up no faster than a peer can take it.
//!
//! A peer that reads a call and its reset before it has looked at the call counts that against the *whole connection*, and
//! ends it when there are too many: 20 at h2's default, which is tonic's. A program that cancels a group of calls at once
//! would lose all others their calls. So resets of calls that were not answered go out in small groups with a pause between.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::RecvStream;
use h2::client::ResponseFuture;
use http::Response;
use tokio::sync::Notify;

/// Resets that go out at once: below h2's limit of 20.
const GROUP: usize = 16;

/// How long a peer has to look at the calls of one group.
const PAUSE: Duration = Duration::from_millis(10);

/// The head of an answer, to come. Dropping it before gives the call up; the reset may go out a moment later.
pub(crate) struct Awaited {
    answer: Option<ResponseFuture>,
    resets: Arc<Resets>,
}

impl Awaited {
    pub(crate) fn new(answer: ResponseFuture, resets: Arc<Resets>) -> Self {
        Self { answer: Some(answer), resets }
    }
}

impl Future for Awaited {
    type Output = Result<Response<RecvStream>, h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(answer) = &mut self.answer else { return Poll::Pending };
        let answer = ready!(Pin::new(answer).poll(cx));
        self.answer = None;
        Poll::Ready(answer)
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            self.resets.give_up(answer);
        }
    }
}

/// The calls of one connection that were given up before they were answered. At most as many as it had in flight.
#[derive(Default)]
pub(crate) struct Resets {
    given_up: Mutex<GivenUp>,
    some: Notify,
}

#[derive(Default)]
struct GivenUp {
    /// Resets that went out since the last pause, and those that wait.
    recent: usize,
    waiting: Vec<ResponseFuture>,
}

impl Resets {
    fn lock(&self) -> MutexGuard<'_, GivenUp> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_up(&self, answer: ResponseFuture) {
        let mut given_up = self.lock();
        given_up.recent += 1;
        if given_up.recent > GROUP {
            given_up.waiting.push(answer);
        } else {
            drop(given_up);
            drop(answer); // which resets it
        }
        self.some.notify_one();
    }

    /// Sends the resets that have to wait, for as long as it is polled.
    pub(super) async fn pace(&self) {
        loop {
            self.some.notified().await;
            while self.lock().recent > 0 {
                tokio::time::sleep(PAUSE).await;
                let group = {
                    let mut given_up = self.lock();
                    let from = given_up.waiting.len().saturating_sub(GROUP);
                    let group = given_up.waiting.split_off(from);
                    given_up.recent = group.len();
                    group
                };
                drop(group);
            }
        }
    }
}
