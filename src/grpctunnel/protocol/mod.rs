//! The protocol `grpctunnel.v1`: frames in, decisions and frames out. No socket, no clock, no task, no lock.
//!
//! ```text
//!   carrier ──▶ receive(frame) ─┐                  ┌─▶ poll_event(id) ──▶ who reads the call
//!                               │ Client or Server │
//!   carrier ◀── poll_frame() ◀──┘                  └── send(id, message) ◀── who writes it
//! ```
//!
//! A driver owns a [`Client`] or a [`Server`] for each tunnel, and does three things with it:
//! 1. It gives it every frame of the carrier, unless [`is_overfull`](Server::is_overfull), and ends the carrier when that
//!    is an error.
//! 2. Whenever the carrier takes a frame, it asks for the next.
//! 3. After each of these, and after whatever a call does, it takes the [`Woken`] calls and runs them.
//!
//! # Messages come and go in pieces
//! A receiver that waited for a whole message before it granted more window would wait for ever for one that is larger than
//! its window, so nothing here assembles messages. They are handed on as they come: a beginning with the size of the whole
//! ([`RequestEvent::Message`], [`ResponseEvent::Message`]), then more of it. Whoever makes a body of HTTP/2 of them writes
//! gRPC's five bytes and passes the pieces on. What is read is granted again, in batches.
//!
//! # Memory
//! | what | bound |
//! |---|---|
//! | received and not read, of one call | its window, and eight bytes for each message in it; and its metadata |
//! | its window | [`Config::start`]; it grows up to [`Config::window`], as long as the windows of all calls together grow by no more than half of [`Config::max_unread`] |
//! | metadata of a call, each of request, response headers, and trailers with their status | [`Config::max_metadata`], as HTTP/2 counts; what is kept of them counts as what it takes |
//! | received and not read, of all calls of revision zero, which has no windows | one window; then [`is_overfull`](Server::is_overfull), for which the driver sets a limit in time |
//! | received and not read, of all calls | [`Config::max_unread`], if the driver sees to [`unread`](Server::unread) and [`end_most`](Server::end_most), and one frame more |
//! | written and not sent, of one call | [`Config::max_queued`] and one piece more, if the driver asks `has_room` |
//! | calls that a server takes at once | [`Config::max_streams`]; more are refused |
//! | answers to calls that were refused or given up | 1,024; then [`is_overfull`](Server::is_overfull) |
//!
//! So a peer that keeps to its windows makes this side keep no more than `start` for each call and half of `max_unread`.
//! What waits to be read is copied, so that it keeps none of the carrier's buffers, which may be much larger.

mod client;
mod error;
mod lines;
mod metadata;
mod method;
mod receive;
mod revision;
mod send;
mod server;
mod status;
mod stream;

#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;

pub(crate) use self::client::{Client, ResponseEvent};
pub(crate) use self::error::{OpenError, SendError, TunnelError};
pub(crate) use self::metadata::{from_headers, into_headers, into_trailers};
pub(crate) use self::revision::Revision;
pub(crate) use self::server::{Closing, NewCall, RequestEvent, Server};
pub(crate) use self::stream::Woken;

/// The request or response header of the carrier by which each side says that it knows settings; its value is [`ON`].
pub(crate) const NEGOTIATE: &str = "grpctunnel-negotiate";

/// The only value of [`NEGOTIATE`].
pub(crate) const ON: &str = "on";

/// Why a server that drains refuses a call, in Go's words.
pub(crate) const SHUTTING_DOWN: &str = "server is shutting down";

/// The stream id of the settings.
const SETTINGS_ID: i64 = -1;

/// As much of a call's metadata goes into one frame, with its status. Most carriers take messages of 4 MiB, and end with a larger
/// one.
const MAX_SENT: usize = 4 * 1024 * 1024 - 64 * 1024;

/// A call's number in its tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId(i64);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether both sides have sent [`NEGOTIATE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Negotiated {
    /// The server's settings come first.
    Yes,
    /// There are none, and the tunnel is of [`Revision::Zero`].
    No,
}

/// Of a message, what goes into one frame, or what one frame or several have brought.
#[derive(Debug, PartialEq)]
enum Piece {
    /// A message of `size` bytes begins.
    First { size: u32, data: Bytes },
    /// It goes on.
    More(Bytes),
}

/// The limits of one side of a tunnel.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The newest revision to speak; the older ones are spoken, too.
    pub(crate) newest: Revision,
    /// Bytes that the peer may send on each stream before some of them are read, when it has grown. At least
    /// [`Revision::minimum_window`] of the newest revision is granted, whatever this says.
    pub(crate) window: u32,
    /// What of that is granted from the start.
    pub(crate) start: u32,
    /// Bytes of a message in one frame. A peer with a small window gets smaller ones.
    pub(crate) max_chunk: u32,
    /// Bytes of one received message.
    pub(crate) max_message: u32,
    /// Bytes of one call's metadata, as HTTP/2 counts them: 32 for each entry beside its text.
    pub(crate) max_metadata: usize,
    /// Bytes written and not sent, of one call, from which there is no room for more.
    pub(crate) max_queued: usize,
    /// Bytes received and not read, of all calls, if the tunnel does not [share](Server::share) a bound with others. Half of
    /// it is what windows may grow by, all together.
    pub(crate) max_unread: usize,
    /// Calls that a server takes at once. A client has no limit of its own: it knows its callers.
    pub(crate) max_streams: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            newest: Revision::Two,
            window: 1024 * 1024,
            start: 64 * 1024,
            max_chunk: 64 * 1024,
            max_message: 4 * 1024 * 1024,
            max_metadata: 64 * 1024,
            max_queued: 128 * 1024,
            max_unread: 64 * 1024 * 1024,
            max_streams: 256,
        }
    }
}
