//! HTTP/2 settings for connections that run through a tunnel.
//!
//! [`tune_endpoint`] and [`tune_server`] are for both ends of a connection: the end that calls and the end that
//! serves. Neither knows what the other end runs, so every value is safe with peers that are not tonic.
//!
//! # Windows
//!
//! A receiver's window is how much a sender may send ahead of it; a sender can never go faster than window ÷ round-trip
//! time. The path to fill is 100 ms × 1 Gbit/s, whose bandwidth-delay product is 12.5 MB. Receivers do not give window
//! back byte by byte but when half of it is used up, so in the worst case only half is in flight: to fill the path, a
//! window needs to be **twice** that, 25 MB. Three windows lie inside one another:
//!
//! | window | bytes | why |
//! |---|---|---|
//! | [`HTTP2_STREAM_WINDOW`] | 24 MiB | one call fills the path: 24 MiB is 25.17 MB |
//! | [`HTTP2_CONNECTION_WINDOW`] | 28 MiB | larger than a stream's, so a call that is not read leaves 4 MiB for all others |
//! | [`SSH_WINDOW`] | 32 MiB | larger again, so that it is HTTP/2 that says "wait", never SSH, under which *every* call waits |
//!
//! A window is not memory: it is used only while data arrives faster than the program reads it. The worst a peer can
//! do is to fill it, so the bound on unread data is the connection window, 28 MiB for each HTTP/2 connection, however
//! many streams share it. For many agents that are not trusted, smaller windows are right: take the tuned builder and
//! set both windows to what the path needs, `2 × bytes per second × round-trip seconds`.
//!
//! Two calls whose responses are not read take the whole connection window, and then no call on that connection gets
//! data. Read every response, or drop it; and in a handler, every request. Behind a gateway other calls get another
//! connection then.
//!
//! # Small messages that nobody reads
//!
//! A DATA frame costs the receiver memory beyond its payload, so h2 (0.4.16 and newer) keeps a budget: each unread
//! frame of less than 256 bytes takes `256 - length` from it, and when the budget is used up, h2 ends the **whole
//! connection** with `ENHANCE_YOUR_CALM`, `too_many_data_frames`. The budget is half the connection window, here
//! 14.7 MB: 59,000 unread messages of 5 bytes (10 with their framing). With hyper's default window, 1 MiB on a
//! server, it would be 2,100. A large connection window thus also buys slack here, but no cure: who consumes such a
//! stream slowly must move it into a bounded queue of its own.

use std::time::Duration;

use tonic::transport::{Endpoint, Server};

/// Receive window of an SSH channel: 32 MiB.
///
/// Raising it costs nothing until [`HTTP2_CONNECTION_WINDOW`] is raised; lowering it below that lets one full call
/// hold up the HTTP/2 control frames of all others.
pub const SSH_WINDOW: u32 = 32 << 20;

/// Receive window of a whole HTTP/2 connection: 28 MiB. hyper's own: 5 MiB for clients, 1 MiB for servers.
///
/// Raising it raises, byte for byte, how much unread data one peer can make this process keep. It must stay below
/// [`SSH_WINDOW`]; the difference is room for what HTTP/2 does not count: headers, frame heads, control frames.
pub const HTTP2_CONNECTION_WINDOW: u32 = 28 << 20;

/// Receive window of one call: 24 MiB. hyper's own: 2 MiB for clients, 1 MiB for servers.
///
/// Raising it towards [`HTTP2_CONNECTION_WINDOW`] leaves less for the others when one call is not read.
pub const HTTP2_STREAM_WINDOW: u32 = 24 << 20;

/// The largest DATA frame that this crate's own HTTP/2 connections accept: 64,512 bytes. HTTP/2's own: 16 KiB.
///
/// A frame and its head fit into one SSH packet, so that what a peer sends in bulk comes in a quarter of the frames. Above
/// this each frame would leave a packet that carries a few bytes.
pub const HTTP2_MAX_FRAME_SIZE: u32 = 63 << 10;

/// Calls that a peer may have open on one connection: 256. tonic's own: no limit; more calls wait at the caller.
///
/// Each costs the server a task and its decode buffer, up to the service's `max_decoding_message_size` (4 MiB): the
/// two multiplied bound what one caller can take.
pub const HTTP2_MAX_CONCURRENT_STREAMS: u32 = 256;

/// Streams that may be reset because the peer broke the rules, over a connection's life, before it is ended: 1024.
///
/// hyper's default, but tonic's server switches it off, and it is the defence against
/// [RUSTSEC-2024-0003](https://rustsec.org/advisories/RUSTSEC-2024-0003.html). Raising it lets a hostile peer make us
/// send more resets.
pub const HTTP2_MAX_LOCAL_ERROR_RESETS: usize = 1024;

/// Streams that the peer opened and reset before we looked at them: at most 1000 at a time, then the connection is ended.
/// h2's own: 20.
///
/// The defence against [rapid reset](https://www.cve.org/CVERecord?id=CVE-2023-44487). A program that cancels a group of
/// calls at once, when the first of them fails, resets as many as it has just begun; with 20 it would lose its connection,
/// and through a gateway those of others their calls. Raising it lets a peer queue more work for free: each may cost its
/// headers.
pub const HTTP2_MAX_PENDING_ACCEPT_RESETS: usize = 1000;

/// Cancelled calls a client remembers, so that what was still on its way for them is ignored: 4096. h2's own: 50.
///
/// A frame for a call that is forgotten counts towards [`HTTP2_MAX_LOCAL_ERROR_RESETS`]: with 50, a program that
/// cancels calls in bursts loses its connection, and all calls on it, after a thousand of them. Each costs some
/// hundred bytes, for [`HTTP2_REMEMBER_RESETS_FOR`].
pub const HTTP2_REMEMBERED_RESETS: usize = 4096;

/// How long a client remembers a cancelled call: 10 s. h2's own, 1 s, is less than a slow path under load needs.
pub const HTTP2_REMEMBER_RESETS_FOR: Duration = Duration::from_secs(10);

/// Bytes of headers, or of trailers, accepted for one call: 32 KiB, uncompressed, 32 counted extra for each field.
///
/// Twice hyper's default, so that metadata of 16 KiB passes, heads included. Raise it for metadata or status details
/// larger than that; each open call may cost as much.
pub const HTTP2_MAX_HEADER_LIST: u32 = 32 << 10;

/// Silence after which a **server** sends an HTTP/2 PING: 30 s. tonic's own: never.
///
/// Slower than the SSH keepalive, which finds a dead peer or path first; this one finds a peer whose SSH still answers
/// but whose HTTP/2 does not. Costs one small frame each way.
pub const HTTP2_SERVER_PING_INTERVAL: Duration = Duration::from_secs(30);

/// Silence after which a **client** with calls open sends an HTTP/2 PING: 5 min 30 s. tonic's own: never.
///
/// Do not lower it unless all your servers are tonic: the servers of gRPC-Go and gRPC core take offence at a client
/// that pings more often than every 5 minutes, and end the connection with `too_many_pings`.
pub const HTTP2_CLIENT_PING_INTERVAL: Duration = Duration::from_secs(330);

/// How long to wait for the answer to an HTTP/2 PING before the connection is given up: 20 s.
///
/// It queues behind bulk data: on a path of 1 Mbit/s, 2.5 MB in front of it are enough to miss this.
pub const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);

// What the module's text says, checked.
const _: () = {
    const PATH: u32 = 1_000_000_000 / 8 / 10; // bytes in flight on 100 ms × 1 Gbit/s
    assert!(HTTP2_STREAM_WINDOW >= 2 * PATH);
    assert!(HTTP2_CONNECTION_WINDOW >= HTTP2_STREAM_WINDOW + (4 << 20));
    assert!(SSH_WINDOW >= HTTP2_CONNECTION_WINDOW + (4 << 20));
    assert!(HTTP2_CLIENT_PING_INTERVAL.as_secs() > 300);
};

/// Sets up an endpoint for calls through a tunnel: windows, headers, resets and PING, with the values of this module.
///
/// Everything else stays as it is, and what is set afterwards on the result wins. Frame size is left at HTTP/2's
/// 16 KiB: heads are 0.05 % of that, and four of them share an SSH packet. Adaptive windows are
/// switched off, because they would start from 64 KiB and override the windows.
///
/// ```
/// let endpoint = dialback::tuning::tune_endpoint(tonic::transport::Endpoint::from_static("http://laptop-1"));
/// ```
#[must_use]
pub fn tune_endpoint(endpoint: Endpoint) -> Endpoint {
    endpoint
        .http2_adaptive_window(false)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .http2_max_header_list_size(HTTP2_MAX_HEADER_LIST)
        .http2_max_concurrent_reset_streams(HTTP2_REMEMBERED_RESETS)
        .http2_reset_stream_duration(HTTP2_REMEMBER_RESETS_FOR)
        .http2_max_local_error_reset_streams(HTTP2_MAX_LOCAL_ERROR_RESETS)
        .http2_keep_alive_interval(HTTP2_CLIENT_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT)
        // Without calls nothing is lost by finding out late, and SSH watches the path.
        .keep_alive_while_idle(false)
}

/// Sets up a server for calls through a tunnel: windows, limits, headers, resets and PING, with the values of this
/// module.
///
/// Everything else stays as it is, and what is set afterwards on the result wins. tonic's own defaults have no limit
/// on concurrent calls and none on resets. Leave `max_connection_age_grace` unset: with it tonic (0.14.9) ends
/// connections without the graceful phase. tonic ignores the `tcp_*` settings for connections that come through a
/// tunnel; the tunnel's own TCP connection has them.
///
/// ```
/// let server = dialback::tuning::tune_server(tonic::transport::Server::builder());
/// ```
#[must_use]
pub fn tune_server<L>(server: Server<L>) -> Server<L> {
    server
        .http2_adaptive_window(Some(false))
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .max_concurrent_streams(HTTP2_MAX_CONCURRENT_STREAMS)
        .http2_max_header_list_size(HTTP2_MAX_HEADER_LIST)
        .http2_max_local_error_reset_streams(Some(HTTP2_MAX_LOCAL_ERROR_RESETS))
        .http2_max_pending_accept_reset_streams(Some(HTTP2_MAX_PENDING_ACCEPT_RESETS))
        .http2_keepalive_interval(Some(HTTP2_SERVER_PING_INTERVAL))
        .http2_keepalive_timeout(Some(HTTP2_PING_TIMEOUT))
}

#[cfg(test)]
mod tests;
