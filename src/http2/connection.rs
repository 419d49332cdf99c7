//! The HTTP/2 connections that all of one side's own calls through a tunnel share.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;

use super::awaited::{Awaited, Resets};
use super::held::Held;
use super::keep_alive::keep_alive;
use crate::connector::DialError;
use crate::ssh::Session;
use crate::tuning;

/// Calls on one connection, where the peer allows more: then another is made, so that no call waits for others to end.
const CALLS_PER_CONNECTION: usize = 256;

/// Calls on a connection whose peer has not said yet how many it allows.
const CALLS_AT_FIRST: usize = 100;

/// The connections of one tunnel, in the order in which they were made.
///
/// The first is made by the first call, by one of several that come at once; each further one when all before it are
/// full, have half their window taken by slow readers, or carry an upload that has stood still for a second. One that has
/// ended is replaced by the next call.
#[derive(Default)]
pub(crate) struct Connections(Mutex<Vec<Arc<Connection>>>);

/// One connection, or the attempt to make it.
#[derive(Default)]
struct Connection {
    /// It keeps the connection standing.
    sender: OnceCell<SendRequest<Bytes>>,
    /// The connection's driver has a part in this, and in nothing that keeps it standing.
    usage: Arc<Usage>,
}

pub(crate) struct Usage {
    pub(super) calls: AtomicUsize,
    ended: AtomicBool,
    /// What is kept for slow readers of its calls: window that the others lack.
    held: Arc<Held>,
    pub(super) resets: Resets,
    pub(super) haste: Haste,
}

impl Default for Usage {
    fn default() -> Self {
        let held = Arc::new(Held::new(tuning::HTTP2_CONNECTION_WINDOW as usize / 2));
        Self {
            calls: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            held,
            resets: Resets::default(),
            haste: Haste::default(),
        }
    }
}

/// Whether the first data of a call may go to h2 before there is room for them.
///
/// A new stream has no room until the connection's task has opened it: most calls would wait for that, and go out a turn
/// later. But where there is no room at all, nobody would notice. So it goes on for a second at most without an answer, and
/// from then on calls wait for room, until one is answered again.
pub(super) struct Haste {
    base: Instant,
    /// When the first call was begun that no answer has come for, nor for any after it: in microseconds. 0 for none.
    since: AtomicU64,
}

/// How long it goes on without an answer, in microseconds.
const WITHOUT_ANSWER: u64 = 1_000_000;

impl Default for Haste {
    fn default() -> Self {
        Self { base: Instant::now(), since: AtomicU64::new(0) }
    }
}

impl Haste {
    /// A call begins: when, and whether it may be hasty.
    fn begin(&self) -> (u64, bool) {
        let now = self.base.elapsed().as_micros() as u64 + 1;
        let since = self.since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        (now, since.map_or_else(|since| now.saturating_sub(since) < WITHOUT_ANSWER, |_| true))
    }

    /// The call that began then is answered, and so its data have arrived.
    pub(super) fn answered(&self, begun: u64) {
        let since = self.since.load(Ordering::Relaxed);
        if begun >= since {
            let _ = self.since.compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed); // or it was another's
        }
    }
}

impl Connection {
    fn has_room(&self) -> bool {
        let allowed = match self.sender.get() {
            Some(sender) => sender.current_max_send_streams().clamp(1, CALLS_PER_CONNECTION),
            None => CALLS_AT_FIRST,
        };
        self.usage.calls.load(Ordering::Relaxed) < allowed && !self.usage.held.is_over()
    }
}

/// A place on a connection; dropping it frees the place.
pub(crate) struct Lease(Arc<Connection>);

impl Lease {
    fn new(connection: &Arc<Connection>) -> Self {
        connection.usage.calls.fetch_add(1, Ordering::Relaxed);
        Self(connection.clone())
    }

    /// The connection takes no more calls, though some may still run on it: the next call gets another.
    pub(crate) fn has_ended(&self) {
        self.0.usage.ended.store(true, Ordering::Release);
    }

    /// Waits for a call's answer. Says, too, whether the call's first data may go to h2 before there is room for them.
    pub(crate) fn awaits(&self, answer: ResponseFuture) -> (Awaited, bool) {
        let (begun, hasty) = self.0.usage.haste.begin();
        (Awaited::new(answer, begun, self.0.usage.clone()), hasty)
    }

    /// What is kept for slow readers of the connection's calls.
    #[cfg(feature = "gateway")]
    pub(crate) fn held(&self) -> &Arc<Held> {
        &self.0.usage.held
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.usage.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one call, on a connection that stands.
    pub(crate) async fn get(&self, session: &Arc<Session>) -> Result<(SendRequest<Bytes>, Lease), DialError> {
        let limit = async {
            session.sleep(session.open_timeout).await;
            DialError::TimedOut { agent: session.agent.clone(), after: session.open_timeout }
        };
        self.get_by(async |usage| connect(session, usage).await, limit).await
    }

    /// The same, where connections are made by `connect`, for which `limit` is how long it may take.
    pub(crate) async fn get_by<E>(
        &self,
        connect: impl AsyncFnOnce(&Arc<Usage>) -> Result<SendRequest<Bytes>, E>,
        limit: impl Future<Output = E>,
    ) -> Result<(SendRequest<Bytes>, Lease), E> {
        let lease = self.reserve();
        if let Some(sender) = lease.0.sender.get() {
            return Ok((sender.clone(), lease));
        }
        // One that is refused leaves it to the next in line: none of them waits longer than for one attempt.
        let made = tokio::select! {
            biased;
            made = lease.0.sender.get_or_try_init(|| connect(&lease.0.usage)) => made.cloned(),
            error = limit => Err(error),
        };
        made.map(|sender| (sender, lease))
    }

    fn reserve(&self) -> Lease {
        let mut connections = self.lock();
        connections.retain(|connection| !connection.usage.ended.load(Ordering::Acquire));
        if let Some(connection) = connections.iter().find(|connection| connection.has_room()) {
            return Lease::new(connection);
        }
        let connection = Arc::default();
        let lease = Lease::new(&connection);
        connections.push(connection);
        lease
    }

    /// Lets go of the connections: each closes when its last call has ended.
    pub(crate) fn retire(&self) {
        self.lock().clear();
    }
}

/// Connects on the session's own runtime: the caller's may end, or stand still, while others use the connection.
async fn connect(session: &Arc<Session>, usage: &Arc<Usage>) -> Result<SendRequest<Bytes>, DialError> {
    let connecting = session.runtime.spawn(handshake(session.clone(), usage.clone()));
    match connecting.await {
        Ok(connected) => connected,
        Err(_) => Err(DialError::Disconnected { agent: session.agent.clone(), gone: session.closed().await }),
    }
}

async fn handshake(session: Arc<Session>, usage: Arc<Usage>) -> Result<SendRequest<Bytes>, DialError> {
    let io = session.open().await?;
    let rejected = |error: h2::Error| DialError::Rejected { agent: session.agent.clone(), reason: error.to_string() };
    begin(io, &usage, session.agent.to_string()).await.map_err(rejected)
}

/// Begins to speak HTTP/2. `peer` is whom the log names. The connection ends with the stream, or when the last sender and
/// the last call are gone.
pub(crate) async fn begin<S>(io: S, usage: &Arc<Usage>, peer: String) -> Result<SendRequest<Bytes>, h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, mut driver) = client::Builder::new()
        .initial_connection_window_size(tuning::HTTP2_CONNECTION_WINDOW)
        .initial_window_size(tuning::HTTP2_STREAM_WINDOW)
        .max_header_list_size(tuning::HTTP2_MAX_HEADER_LIST)
        .max_concurrent_reset_streams(tuning::HTTP2_REMEMBERED_RESETS)
        .reset_stream_duration(tuning::HTTP2_REMEMBER_RESETS_FOR)
        .max_local_error_reset_streams(Some(tuning::HTTP2_MAX_LOCAL_ERROR_RESETS))
        .max_frame_size(tuning::HTTP2_MAX_FRAME_SIZE)
        .initial_max_send_streams(CALLS_AT_FIRST)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        .handshake::<S, Bytes>(io)
        .await?;
    let (pings, usage) = (driver.ping_pong(), usage.clone());
    tokio::spawn(async move {
        let calls = || usage.calls.load(Ordering::Relaxed) > 0;
        let silent = keep_alive(pings, tuning::HTTP2_CLIENT_PING_INTERVAL, calls);
        tokio::select! {
            ended = driver => if let Err(error) = ended {
                tracing::debug!(peer, %error, "connection for own calls ended");
            },
            () = usage.pace_resets() => {}
            () = silent => tracing::warn!(peer, "connection for own calls ended: no answer to a ping"),
        }
        usage.ended.store(true, Ordering::Release);
    });
    Ok(sender)
}

/// What h2 may keep of one call's data that is not sent yet.
const SEND_BUFFER: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn haste_ends_a_second_after_the_first_call_without_an_answer_and_comes_back_with_one() {
        let mut haste = Haste::default();
        let pass = |haste: &mut Haste, time| haste.base -= time;
        let (first, hasty) = haste.begin();
        assert!(hasty);
        pass(&mut haste, Duration::from_millis(900));
        let (second, hasty) = haste.begin();
        assert!(hasty);
        pass(&mut haste, Duration::from_millis(200));
        let (third, hasty) = haste.begin();
        assert!(!hasty, "1.1 s without an answer");

        haste.answered(second);
        // Not in the same microsecond as the third.
        pass(&mut haste, Duration::from_millis(1));
        let (fourth, hasty) = haste.begin();
        assert!(hasty, "one that began later was answered");
        // It says nothing of those that began after it.
        haste.answered(third);
        haste.answered(first);
        pass(&mut haste, Duration::from_secs(2));
        assert!(!haste.begin().1);
        haste.answered(fourth);
        assert!(haste.begin().1);
    }
}
