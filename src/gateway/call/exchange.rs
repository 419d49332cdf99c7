//! A call to an agent, on a channel of its tunnel.

use std::future::{pending, poll_fn};

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::request::Parts;
use http::{Request, Response};
use tokio::time::Instant;

use super::clock::{Clock, Rings};
#[cfg(feature = "grpctunnel")]
use super::own::Own;
use super::{end, refuse, remove_own_metadata, stalled};
use crate::gateway::builder::Shared;
use crate::http2::{Gathered, Placed, Relay, Relayed, Way, address, failed, strip_hop_by_hop};

/// A call to an agent.
pub(super) struct Exchange<'a> {
    pub(super) placed: Placed,
    pub(super) deadline: Option<Instant>,
    pub(super) shared: &'a Shared,
}

impl Exchange<'_> {
    pub(super) async fn run(self, mut head: Parts, body: Gathered, mut respond: SendResponse<Bytes>) {
        let Self { placed: Placed { call, way }, deadline, shared } = self;
        let (lease, mut sender) = match way {
            Way::Http2 { lease, sender } => (lease, sender),
            #[cfg(feature = "grpctunnel")]
            Way::Own { channel, caller } => {
                let own = Own { call, _channel: channel, deadline, shared };
                return own.run(&caller, head, body, respond).await;
            }
        };
        let (idle, stall, kept) = (shared.settings.idle, shared.settings.stall, &shared.held);
        let session = call.session();
        head.uri = address(head.uri, &session.authority);
        // The version is the connection's, not the call's.
        head.version = http::Version::HTTP_2;
        let complete = body.is_empty();
        let sent = sender.send_request(Request::from_parts(head, ()), complete);
        drop(sender);
        let ((mut answer, hasty), stream) = match sent {
            Ok((answer, stream)) => (lease.awaits(answer), stream),
            Err(error) => {
                lease.has_ended();
                return refuse(failed(session, error), &mut respond);
            }
        };
        let relay =
            (!complete).then(|| Relay::new(body, stream, stall, kept).on(&lease, hasty).without(remove_own_metadata));
        let mut up = Up { relay, before: 0, is_over: false, answered: false };
        let mut clock = Clock::new(deadline, idle);
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                ended = up.next() => match ended {
                    Relayed::SourceFailed(_) => return, // the caller is gone
                    Relayed::Stalled => return refuse(stalled("the agent", stall), &mut respond),
                    // The agent may answer before it has heard all.
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
                    None => refuse(failed(session, error), &mut respond),
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
        let body = Gathered::new(body, vec![kept.clone(), lease.held().clone()]);
        let mut down = Relay::new(body, stream, stall, kept);
        clock.again(up.moved());
        let status = loop {
            tokio::select! {
                biased;
                ended = &mut down => match ended {
                    Relayed::Complete | Relayed::SinkClosed => return,
                    Relayed::Stalled => break stalled("the caller", stall),
                    Relayed::SourceFailed(error) => match error.reason().filter(|_| error.is_reset()) {
                        Some(reason) => return down.sink().send_reset(reason),
                        None => break failed(session, error),
                    },
                },
                ended = up.next() => match ended {
                    Relayed::SourceFailed(_) => return, // the caller is gone
                    Relayed::Stalled => break stalled("the agent", stall),
                    Relayed::Complete | Relayed::SinkClosed => {}
                },
                why = clock.rings() => match why {
                    Rings::Idle if up.moved() + down.moved() != clock.moved => clock.again(up.moved() + down.moved()),
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
