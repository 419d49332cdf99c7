//! Serves one HTTP/2 connection whose calls are passed on.

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::RecvStream;
use h2::server::{self, Connection, SendResponse};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::keep_alive::keep_alive;
use crate::tuning;

/// How long a connection may take until it speaks HTTP/2.
const GREETING: Duration = Duration::from_secs(10);

/// What h2 may keep of one call's data that the peer does not take.
const SEND_BUFFER: usize = 128 << 10;

/// How many calls are accepted before those that run have their turn, whatever the peer sends meanwhile.
const ACCEPTED_AT_ONCE: usize = 64;

/// What a peer may do on one connection.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) max_streams: u32,
    pub(crate) max_header_list: u32,
    pub(crate) max_frame: u32,
    pub(crate) stream_window: u32,
    pub(crate) connection_window: u32,
}

/// A call, or the end of the connection.
type Accepted = Option<Result<(Request<RecvStream>, SendResponse<Bytes>), h2::Error>>;

pub(crate) type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Serves until the peer leaves, or until the last call has ended after `draining`. What `cut` says ends it at once, and so
/// does dropping the future, which cancels the calls.
pub(crate) async fn serve<S, C>(
    stream: S,
    settings: &Serving,
    call: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> C,
    draining: impl Future<Output = ()>,
    cut: impl Future<Output = &'static str>,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
    C: Future<Output = ()>,
{
    let handshake = server::Builder::new()
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.max_frame)
        .max_concurrent_streams(settings.max_streams)
        .max_header_list_size(settings.max_header_list)
        .max_concurrent_reset_streams(tuning::HTTP2_REMEMBERED_RESETS)
        .reset_stream_duration(tuning::HTTP2_REMEMBER_RESETS_FOR)
        .max_local_error_reset_streams(Some(tuning::HTTP2_MAX_LOCAL_ERROR_RESETS))
        .max_pending_accept_reset_streams(tuning::HTTP2_MAX_PENDING_ACCEPT_RESETS)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(stream);
    let mut connection: Connection<_, Bytes> = timeout(GREETING, handshake).await??;
    let silent = keep_alive(connection.ping_pong(), tuning::HTTP2_SERVER_PING_INTERVAL, || true);
    tokio::pin!(silent, draining, cut);
    let mut is_draining = false;
    // They share this task: what arrives for one goes on without a switch of tasks. Dropping it cuts them off, which
    // cancels them at whom they went on to.
    let mut calls = FuturesUnordered::new();
    let mut accepted_since = 0;
    loop {
        // None when a call is over.
        let turn = poll_fn(|cx| -> Poll<Option<Accepted>> {
            // First, so that a request's data, which often came with its head, go on with it.
            if accepted_since < ACCEPTED_AT_ONCE
                && let Poll::Ready(accepted) = connection.poll_accept(cx)
            {
                accepted_since += 1;
                return Poll::Ready(Some(accepted));
            }
            if let Poll::Ready(Some(())) = calls.poll_next_unpin(cx) {
                return Poll::Ready(None);
            }
            accepted_since = 0;
            // Again, so that what the calls have sent leaves with this turn.
            connection.poll_accept(cx).map(Some)
        });
        tokio::select! {
            biased;
            turn = turn => match turn {
                Some(Some(accepted)) => {
                    let (request, respond) = accepted?;
                    calls.push(call(request, respond));
                }
                Some(None) => return Ok(()),
                None => {}
            },
            () = &mut draining, if !is_draining => {
                is_draining = true;
                connection.graceful_shutdown();
            }
            why = &mut cut => return Err(why.into()),
            () = &mut silent => return Err("it answers no ping".into()),
        }
    }
}
