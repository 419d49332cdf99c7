//! The HTTP/2 connections that all of one side's own calls through a tunnel share.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

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
/// The first is made for the first call, once for several that come at once; each further one when all before it are
/// full, have half their window taken by slow readers of what is passed on, or carry an upload that has stood still for a second. One that has
/// ended is replaced by the next call.
#[derive(Default)]
pub(crate) struct Connections(Mutex<Vec<Arc<Connection>>>);

/// One connection, or the attempt to make it.
struct Connection {
    /// It keeps the connection standing.
    sender: OnceLock<SendRequest<Bytes>>,
    /// Who attempts to make it has the one permit.
    attempt: Arc<Semaphore>,
    /// The connection's driver has a part in this, and in nothing that keeps it standing.
    usage: Arc<Usage>,
}

impl Default for Connection {
    fn default() -> Self {
        Self { sender: OnceLock::new(), attempt: Arc::new(Semaphore::new(1)), usage: Arc::default() }
    }
}

/// Why there is no connection.
pub(crate) enum Unconnected<E> {
    /// The attempt to make it failed.
    Failed(E),
    /// It takes too long.
    TimedOut,
    /// The runtime has ended on which it was to be made.
    Ended,
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
    /// Waits until it stands. The attempt goes on when its caller has left: callers in a hurry would begin one each, and none
    /// would ever have a connection. One that fails leaves it to the next in line.
    async fn made<F, E>(
        self: &Arc<Self>,
        runtime: &Handle,
        limit: Duration,
        connect: impl FnOnce(Arc<Usage>) -> F,
    ) -> Result<SendRequest<Bytes>, Unconnected<E>>
    where
        F: Future<Output = Result<SendRequest<Bytes>, E>> + Send + 'static,
        E: Send + 'static,
    {
        // The semaphore is never closed.
        let Ok(turn) = self.attempt.clone().acquire_owned().await else { return Err(Unconnected::Ended) };
        if let Some(sender) = self.sender.get() {
            return Ok(sender.clone());
        }
        let (answer, made) = oneshot::channel();
        let (connection, attempt) = (self.clone(), connect(self.usage.clone()));
        runtime.spawn(async move {
            let result = match timeout(limit, attempt).await {
                Ok(result) => result.map_err(Unconnected::Failed),
                Err(_) => Err(Unconnected::TimedOut),
            };
            let result = result.map(|sender| connection.sender.get_or_init(|| sender).clone());
            drop(turn);
            let _ = answer.send(result); // nobody may be waiting
        });
        made.await.unwrap_or(Err(Unconnected::Ended))
    }

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
        let limit = session.open_timeout;
        let made = self.get_by(&session.runtime, limit, |usage| handshake(session.clone(), usage)).await;
        match made {
            Ok(made) => Ok(made),
            Err(Unconnected::Failed(error)) => Err(error),
            Err(Unconnected::TimedOut) => Err(DialError::TimedOut { agent: session.agent.clone(), after: limit }),
            Err(Unconnected::Ended) => {
                Err(DialError::Disconnected { agent: session.agent.clone(), gone: session.closed().await })
            }
        }
    }

    /// The same, where connections are made by `connect`, which may take as long as `limit`. It runs on `runtime`.
    pub(crate) async fn get_by<F, E>(
        &self,
        runtime: &Handle,
        limit: Duration,
        connect: impl FnOnce(Arc<Usage>) -> F,
    ) -> Result<(SendRequest<Bytes>, Lease), Unconnected<E>>
    where
        F: Future<Output = Result<SendRequest<Bytes>, E>> + Send + 'static,
        E: Send + 'static,
    {
        let lease = self.reserve();
        if let Some(sender) = lease.0.sender.get() {
            return Ok((sender.clone(), lease));
        }
        // The caller may be outside of any runtime. It waits no longer than for one attempt.
        let late = {
            let _inside = runtime.enter();
            tokio::time::sleep(limit)
        };
        let made = tokio::select! {
            biased;
            made = lease.0.made(runtime, limit, connect) => made,
            () = late => Err(Unconnected::TimedOut),
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
