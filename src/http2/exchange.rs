//! Passes one call on: from the HTTP/2 connection that it came by to another, and its answer back.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::SendStream;
use h2::client::SendRequest;
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::connection::Lease;
use super::headers::strip_hop_by_hop;
use super::held::Held;
use super::relay::{Gathered, Relay, Relayed};

/// A call that is passed on to somebody.
pub(crate) struct Exchange<'a, F> {
    /// Its place on a connection to them.
    pub(crate) lease: Lease,
    pub(crate) sender: SendRequest<Bytes>,
    /// What statuses call them.
    pub(crate) callee: &'static str,
    pub(crate) deadline: Option<Instant>,
    /// How long it may be silent in both directions.
    pub(crate) idle: Option<Duration>,
    /// How long a reader may take nothing while something waits for it.
    pub(crate) stall: Duration,
    /// Where what is kept for slow readers is counted.
    pub(crate) held: &'a Arc<Held>,
    /// What is done to the trailers of the request.
    pub(crate) trailers: fn(&mut HeaderMap),
    /// What the caller is told of a failure.
    pub(crate) failed: F,
}

impl<F: Fn(h2::Error) -> Status> Exchange<'_, F> {
    /// Passes the call on until its end. The head is the one that goes on. Dropping the future resets the call, towards both
    /// sides.
    pub(crate) async fn run(self, mut head: Parts, body: Gathered, mut respond: SendResponse<Bytes>) {
        let Self { lease, mut sender, callee, deadline, idle, stall, held, trailers, failed } = self;
        // The version is the connection's, not the call's.
        head.version = http::Version::HTTP_2;
        let complete = body.is_empty();
        let sent = sender.send_request(Request::from_parts(head, ()), complete);
        drop(sender);
        let ((mut answer, hasty), stream) = match sent {
            Ok((answer, stream)) => (lease.awaits(answer), stream),
            Err(error) => {
                lease.has_ended();
                return refuse(failed(error), &mut respond);
            }
        };
        let relay = (!complete).then(|| Relay::new(body, stream, stall, held).on(&lease, hasty).without(trailers));
        let mut up = Up { relay, before: 0, is_over: false, answered: false };
        let mut clock = Clock::new(deadline, idle);
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                ended = up.next() => match ended {
                    Relayed::SourceFailed(_) => return, // the caller is gone
                    Relayed::Stalled => return refuse(stalled(callee, stall), &mut respond),
                    // The answer may come before all was heard.
                    Relayed::Complete | Relayed::SinkClosed => {}
                },
                _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
                why = clock.rings() => match why {
                    Rings::Idle if up.moved() != clock.moved => clock.again(up.moved()),
                    why => return refuse(why.status(), &mut respond),
                },
            }
        };
        let (mut head, body) = match answer {
            Ok(answer) => answer.into_parts(),
            Err(error) => {
                return match error.reason().filter(|_| error.is_reset() && error.is_remote()) {
                    Some(reason) => respond.send_reset(reason),
                    None => refuse(failed(error), &mut respond),
                };
            }
        };
        up.answered = true;
        strip_hop_by_hop(&mut head.headers);
        head.version = http::Version::HTTP_2;
        let complete = body.is_end_stream();
        let Ok(stream) = respond.send_response(Response::from_parts(head, ()), complete) else { return };
        if complete {
            return;
        }
        let body = Gathered::new(body, vec![held.clone(), lease.held().clone()]);
        let mut down = Relay::new(body, stream, stall, held);
        clock.again(up.moved());
        let status = loop {
            tokio::select! {
                biased;
                ended = &mut down => match ended {
                    Relayed::Complete | Relayed::SinkClosed => return,
                    Relayed::Stalled => break stalled("the caller", stall),
                    Relayed::SourceFailed(error) => match error.reason().filter(|_| error.is_reset()) {
                        Some(reason) => return down.sink().send_reset(reason),
                        None => break failed(error),
                    },
                },
                ended = up.next() => match ended {
                    Relayed::SourceFailed(_) => return, // the caller is gone
                    Relayed::Stalled => break stalled(callee, stall),
                    Relayed::Complete | Relayed::SinkClosed => {}
                },
                why = clock.rings() => match why {
                    Rings::Idle if up.moved() + down.moved() != clock.moved => clock.again(up.moved() + down.moved()),
                    // Clients take a status within a message for a broken stream (INTERNAL), whatever it says. A cancelled one
                    // is DEADLINE_EXCEEDED to those who know their deadline.
                    Rings::Deadline if down.is_within_message() => return down.sink().send_reset(Reason::CANCEL),
                    why => break why.status(),
                },
            }
        };
        end(down.sink(), &status);
    }
}

/// The request's direction of a call.
struct Up {
    relay: Option<Relay>,
    /// What a relay had moved that is gone.
    before: u64,
    is_over: bool,
    /// The head of the answer has come.
    answered: bool,
}

impl Up {
    /// How it ends; never, if it has ended.
    async fn next(&mut self) -> Relayed {
        match &mut self.relay {
            Some(relay) if !self.is_over => {
                let ended = (&mut *relay).await;
                self.is_over = true;
                if matches!(ended, Relayed::SinkClosed) {
                    // Nobody takes what the caller still sends.
                    (self.before, self.relay) = (relay.moved(), None);
                }
                ended
            }
            _ => pending().await,
        }
    }

    fn moved(&self) -> u64 {
        self.relay.as_ref().map_or(self.before, Relay::moved)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // An answer may come before the request was taken.
        if let Some(relay) = self.relay.as_mut().filter(|relay| self.answered && relay.is_kept()) {
            relay.sink().send_reset(Reason::CANCEL);
        }
    }
}

/// Ends an answer that has begun.
pub(crate) fn end(stream: &mut SendStream<Bytes>, status: &Status) {
    let _ = stream.send_trailers(headers_of(status)); // fails if the caller is gone
}

pub(crate) fn stalled(who: &str, after: Duration) -> Status {
    let never = if after == Duration::MAX { String::new() } else { format!("nothing for {after:?}, or ") };
    Status::resource_exhausted(format!("{who} took {never}next to nothing while too much was kept for all"))
}

fn idled() -> Status {
    Status::unavailable("the call was silent for too long")
}

/// A call's deadline, and how long it may be silent.
pub(crate) struct Clock {
    deadline: Option<Instant>,
    idle: Option<Duration>,
    silent_at: Option<Instant>,
    /// What had moved when it was last looked at.
    pub(crate) moved: u64,
}

pub(crate) enum Rings {
    Deadline,
    Idle,
}

impl Rings {
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Deadline => expired(),
            Self::Idle => idled(),
        }
    }
}

impl Clock {
    pub(crate) fn new(deadline: Option<Instant>, idle: Option<Duration>) -> Self {
        let mut clock = Self { deadline, idle, silent_at: None, moved: 0 };
        clock.again(0);
        clock
    }

    pub(crate) fn again(&mut self, moved: u64) {
        self.moved = moved;
        self.silent_at = self.idle.and_then(|idle| Instant::now().checked_add(idle));
    }

    pub(crate) async fn rings(&self) -> Rings {
        match (self.deadline, self.silent_at) {
            (None, None) => pending().await,
            (Some(at), silent) if silent.is_none_or(|silent| at <= silent) => {
                sleep_until(at).await;
                Rings::Deadline
            }
            (_, silent) => {
                reached(silent).await;
                Rings::Idle
            }
        }
    }
}

pub(crate) fn expired() -> Status {
    Status::deadline_exceeded("the call's deadline passed at the gateway")
}

/// Waits for a deadline, if there is one.
pub(crate) async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// A status as headers or trailers.
pub(crate) fn headers_of(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        headers.insert("grpc-status", HeaderValue::from(status.code() as i32)); // its text cannot be a header
    }
    headers
}

/// Answers with a status and nothing else.
pub(crate) fn refuse(status: Status, respond: &mut SendResponse<Bytes>) {
    let mut answer = Response::new(());
    *answer.headers_mut() = headers_of(&status);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let _ = respond.send_response(answer, true); // fails if the caller is gone
}
