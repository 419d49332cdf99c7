//! Finds the connection for a call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};
use tonic::Status;

use super::connection::Lease;
use crate::connector::{DialError, Route};
#[cfg(feature = "grpctunnel")]
use crate::grpctunnel::Caller;
#[cfg(feature = "grpctunnel")]
use crate::ssh::OwnChannel;
use crate::ssh::{Call, Session};

/// A call's tunnel, and its way through it.
pub(crate) struct Placed {
    pub(crate) call: Call,
    pub(crate) way: Way,
}

/// How a call goes through its tunnel.
pub(crate) enum Way {
    /// With others, on a connection in a channel.
    Http2 { lease: Lease, sender: SendRequest<Bytes> },
    /// By itself, in a tunnel that has no channels.
    #[cfg(feature = "grpctunnel")]
    Own { channel: OwnChannel, caller: Arc<Caller> },
}

impl Placed {
    /// Finds a tunnel and a connection. When that fails for one tunnel, another is tried, once. Where there is no tunnel, or
    /// no other, this waits for `patience`, if that is given.
    pub(crate) async fn find(route: &dyn Route, patience: Option<Duration>) -> Result<Self, DialError> {
        let since = Instant::now();
        let mut retried = false;
        let mut session = match (route.session(), patience) {
            (Err(error), Some(limit)) if error.may_pass() => route.wait(limit).await?,
            (Ok(ended), Some(limit)) if ended.is_closed() => route.wait(limit).await?,
            (found, _) => found?,
        };
        loop {
            let error = match connect(&session).await {
                Ok(placed) => return Ok(placed),
                Err(error) if retried || !error.is_of_one_tunnel() => return Err(error),
                Err(error) => error,
            };
            retried = true;
            session = match route.successor(&session).await {
                Some(successor) => successor,
                // The connection had just ended, and its tunnel stands.
                None if !session.is_closed() && matches!(error, DialError::ConnectionEnded { .. }) => session,
                None => match patience.and_then(|limit| limit.checked_sub(since.elapsed())) {
                    Some(left) if session.is_closed() || session.is_draining() => route.wait(left).await?,
                    _ => return Err(error),
                },
            };
        }
    }
}

async fn connect(session: &Arc<Session>) -> Result<Placed, DialError> {
    let call = session.begin_call()?;
    #[cfg(feature = "grpctunnel")]
    if let Some(caller) = session.caller() {
        return Ok(Placed { call, way: Way::Own { channel: session.begin_own()?, caller: caller.clone() } });
    }
    let (sender, lease) = session.calls_to_peer.get(session).await?;
    match sender.ready().await {
        Ok(sender) => Ok(Placed { call, way: Way::Http2 { lease, sender } }),
        // It may have said goodbye long before its last call ends.
        Err(error) => Err({
            lease.has_ended();
            match session.disconnected().borrow().clone() {
                Some(gone) => DialError::Disconnected { agent: session.agent.clone(), gone },
                None => DialError::ConnectionEnded { agent: session.agent.clone(), reason: error.to_string() },
            }
        }),
    }
}

/// Every request goes to the peer at the other end, under the name that it has there.
pub(crate) fn address(uri: Uri, scheme: Scheme, authority: &Authority) -> Uri {
    let mut parts = uri.into_parts();
    parts.scheme = Some(scheme);
    parts.authority = Some(authority.clone());
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    // Scheme, authority and path together are always a valid URI.
    Uri::from_parts(parts).unwrap_or_default()
}

/// An HTTP/2 failure as the caller should see it: a lost tunnel by its name, anything else as tonic maps it.
pub(crate) fn failed(session: &Session, error: h2::Error) -> Status {
    let gone = session.disconnected().borrow().clone();
    if let Some(gone) = gone {
        return DialError::Disconnected { agent: session.agent.clone(), gone }.into();
    }
    // The stream ended with its connection, not with an error of its own.
    if error.is_io() || error.is_go_away() {
        let text = format!("agent `{}`: the connection for this call ended: {error}", session.agent);
        return Status::unavailable(text);
    }
    Status::from_error(Box::new(error))
}
