//! What handlers are told.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Uri;
use http::uri::PathAndQuery;
use tonic::Code;

/// Names one connection in every event about it; unique within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(u64);

/// Names one call in every event about it; unique within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RpcId(u64);

impl ConnId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl RpcId {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for RpcId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something that happened to a connection.
///
/// ```text
/// dial ──▶ Begin ──▶ End      exactly one End for each Begin
///   └────▶ Failed             a dial that is given up (its future dropped) reports nothing
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConnStats {
    /// A dial succeeded: the connection is open.
    #[non_exhaustive]
    Begin {
        /// The connection.
        id: ConnId,
        /// What was dialled, as the connector was told.
        target: Uri,
        /// When the dial succeeded.
        at: Instant,
    },
    /// The connection is over. Comes with the first end of stream or error, and at the latest when the connection
    /// is dropped.
    #[non_exhaustive]
    End {
        /// The connection.
        id: ConnId,
        /// What was dialled.
        target: Uri,
        /// Who ended it, or what.
        reason: ConnEnd,
        /// Bytes received.
        bytes_read: u64,
        /// Bytes sent, as far as the layer below took them; not all of them need to have arrived.
        bytes_written: u64,
        /// How long it was open.
        lasted: Duration,
    },
    /// A dial failed, so there is no connection.
    #[non_exhaustive]
    Failed {
        /// What was dialled.
        target: Uri,
        /// The connector's error, as it shows itself. It may repeat text a peer sent.
        error: String,
        /// How long the dial took to fail.
        lasted: Duration,
    },
}

/// Why a connection ended: the first cause that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnEnd {
    /// This side shut it down: the last channel was dropped, or HTTP/2 was done with it (the peer's GOAWAY, a protocol
    /// error).
    Closed,
    /// The peer closed it: end of stream, not preceded by a shutdown from this side.
    ClosedByPeer,
    /// Reading or writing failed.
    #[non_exhaustive]
    Error {
        /// The error's kind.
        kind: io::ErrorKind,
        /// The error's text.
        message: String,
    },
    /// This side dropped it without a shutdown: an HTTP/2 keepalive PING was not answered in time, or the runtime
    /// stopped.
    Dropped,
}

impl From<&io::Error> for ConnEnd {
    fn from(error: &io::Error) -> Self {
        Self::Error { kind: error.kind(), message: error.to_string() }
    }
}

impl fmt::Display for ConnEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by this side"),
            Self::ClosedByPeer => f.write_str("closed by the peer"),
            // The text may come from the peer, and this ends up in logs.
            Self::Error { message, .. } => write!(f, "{}", message.escape_debug()),
            Self::Dropped => f.write_str("dropped by this side without a shutdown"),
        }
    }
}

/// Something that happened to a call.
///
/// ```text
/// Begin ──▶ RequestMessage* ─────────────────────────┐
///   └─────▶ ResponseHeaders? ──▶ ResponseMessage* ───┴──▶ End      exactly one End for each Begin
/// ```
///
/// Requests travel in a task of their own, so their events interleave freely with the others; a request that is being
/// reported at the very moment the call ends may come after `End`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum RpcStats {
    /// The call started.
    #[non_exhaustive]
    Begin {
        /// The call.
        id: RpcId,
        /// The method, such as `/helloworld.Greeter/SayHello`. On a server this is what the caller sent.
        path: PathAndQuery,
        /// When.
        at: Instant,
    },
    /// One whole request message passed.
    #[non_exhaustive]
    RequestMessage {
        /// The call.
        id: RpcId,
        /// Its size on the wire, after compression, without the 5 bytes of framing.
        bytes: u32,
    },
    /// The response headers passed.
    #[non_exhaustive]
    ResponseHeaders {
        /// The call.
        id: RpcId,
    },
    /// One whole response message passed.
    #[non_exhaustive]
    ResponseMessage {
        /// The call.
        id: RpcId,
        /// Its size on the wire, after compression, without the 5 bytes of framing.
        bytes: u32,
    },
    /// The call is over: its status passed, it failed, or it was dropped.
    #[non_exhaustive]
    End {
        /// The call.
        id: RpcId,
        /// The method.
        path: PathAndQuery,
        /// The status code. [`Code::Cancelled`] if the call, or the rest of its response, was dropped before the
        /// status passed; also when the one who drops it is a deadline outside this layer.
        code: Code,
        /// The status message: empty if the code is `Ok`. It may be the peer's text: escape it before logging it.
        message: String,
        /// The whole request messages that passed.
        requests: Traffic,
        /// The whole response messages that passed.
        responses: Traffic,
        /// How long the call took.
        lasted: Duration,
    },
}

/// How much passed in one direction of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Whole messages.
    pub messages: u64,
    /// Their bytes on the wire, without framing.
    pub bytes: u64,
}

impl Traffic {
    pub(super) fn new(messages: u64, bytes: u64) -> Self {
        Self { messages, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_escapes_what_the_peer_said() {
        let said = ConnEnd::from(&io::Error::other("bye\x1b[31m\nroot logged in"));
        let shown = said.to_string();
        assert!(shown.starts_with("bye") && !shown.contains(['\x1b', '\n']), "{shown}");
    }
}
