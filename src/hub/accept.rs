//! The accept loops and the life of one connection.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Stage;
use super::strangers::{Admission, Place, StrangerLimits, Strangers};
#[cfg(feature = "websocket")]
use super::websocket::Front;
#[cfg(unix)]
use crate::carrier::unix;
use crate::carrier::{Carried, tcp};
use crate::ssh::{self, Door, Progress, Turned};

/// How long the loop rests after the system refused a connection, usually for want of file descriptors.
const REST: Duration = Duration::from_millis(100);

/// Where connections come from.
pub(super) enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(unix::Listener),
    /// The user hands them over.
    Streams(mpsc::Receiver<Carried>),
}

impl Listener {
    /// The next connection; `None` when there will be no more.
    async fn accept(&mut self) -> io::Result<Option<Carried>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Carried::tcp(stream, peer).map(Some).map_err(|_| io::ErrorKind::ConnectionReset.into())
            }
            #[cfg(unix)]
            Self::Unix(listener) => Ok(Some(Carried::own(listener.accept().await?, None))),
            Self::Streams(streams) => Ok(streams.recv().await),
        }
    }
}

/// Takes those in who come by any of a hub's listeners.
pub(super) struct Reception {
    door: Arc<Door>,
    strangers: Mutex<Waiting>,
}

/// Those who have not authenticated, and how to send each away.
struct Waiting {
    strangers: Strangers,
    to_leave: HashMap<Place, oneshot::Sender<()>>,
}

impl Reception {
    pub(super) fn new(door: Arc<Door>, limits: StrangerLimits) -> Self {
        let waiting = Waiting { strangers: Strangers::new(limits), to_leave: HashMap::new() };
        Self { door, strangers: Mutex::new(waiting) }
    }

    /// How long a stranger may take for each step.
    #[cfg(feature = "websocket")]
    pub(super) fn patience(&self) -> Duration {
        self.door.config.login_timeout
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for the newcomer and the word that it has to leave, or why there is none.
    fn enter(self: &Arc<Self>, peer: Option<SocketAddr>) -> Result<(Ticket, oneshot::Receiver<()>), &'static str> {
        let mut waiting = self.lock();
        match waiting.strangers.enter(peer.map(|peer| peer.ip()), Instant::now()) {
            Admission::Admitted { place, evicted } => {
                if let Some(evicted) = evicted {
                    // Dropping the sender is the word.
                    waiting.to_leave.remove(&evicted);
                }
                let (stay, leave) = oneshot::channel();
                waiting.to_leave.insert(place, stay);
                Ok((Ticket { reception: self.clone(), place }, leave))
            }
            Admission::SourceFull => Err("too many unauthenticated connections from this address"),
            Admission::Full => Err("too many unauthenticated connections"),
        }
    }
}

/// A stranger's place; dropping it leaves.
struct Ticket {
    reception: Arc<Reception>,
    place: Place,
}

impl Ticket {
    fn begins(&self) {
        self.reception.lock().strangers.begins(self.place);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = self.reception.lock();
        waiting.strangers.leave(self.place);
        waiting.to_leave.remove(&self.place);
    }
}

/// Accepts until told to stop, then waits for its connections. Aborting the task ends them all.
pub(super) async fn run(listener: Listener, reception: Arc<Reception>, stage: watch::Receiver<Stage>) {
    accept(listener, reception, stage, |carried| async { Ok(carried) }).await;
}

/// As [`run`], for those who have to open a WebSocket first.
#[cfg(feature = "websocket")]
pub(super) async fn run_behind(
    listener: Listener,
    front: Front,
    reception: Arc<Reception>,
    stage: watch::Receiver<Stage>,
) {
    let front = Arc::new(front);
    accept(listener, reception, stage, move |carried| {
        let front = front.clone();
        async move { front.open(carried).await }
    })
    .await;
}

/// `open` makes of each connection what an SSH session can run over, or says why it is none.
async fn accept<F>(
    mut listener: Listener,
    reception: Arc<Reception>,
    mut stage: watch::Receiver<Stage>,
    open: impl Fn(Carried) -> F,
) where
    F: Future<Output = Result<Carried, String>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = super::reached(&mut stage, Stage::Draining) => break,
            Some(_) = connections.join_next() => {} // a connection's own log has said how it ended
            accepted = listener.accept() => match accepted {
                Ok(Some(carried)) => match reception.enter(carried.peer) {
                    Ok((ticket, leave)) => {
                        let peer = carried.peer;
                        connections.spawn(connection(ticket, leave, reception.door.clone(), peer, open(carried)));
                    }
                    // Dropping the stream closes it.
                    Err(why) => tracing::debug!(peer = ?carried.peer, why, "connection refused"),
                },
                Ok(None) => break,
                Err(error) if tcp::is_of_one_connection(&error) => tracing::debug!(%error, "connection ended while it was accepted"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    tokio::time::sleep(REST).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    ticket: Ticket,
    leave: oneshot::Receiver<()>,
    door: Arc<Door>,
    peer: Option<SocketAddr>,
    opened: impl Future<Output = Result<Carried, String>>,
) {
    let login = watch::Sender::new(Progress::Nothing);
    let mut progress = login.subscribe();
    // A future that is moved keeps its room twice, for as long as the tunnel lives; and what was needed for its beginning
    // is not kept at all.
    let opened = Box::pin(opened);
    let mut serving = Box::pin(async {
        let after = door.config.login_timeout;
        let opened = timeout(after, opened).await.map_err(|_| Turned::TimedOut { after })?;
        let Carried { stream, local, peer } = opened.map_err(|error| Turned::Left { error })?;
        ssh::serve(stream, local, peer, door, login).await
    });
    let admitted = async {
        reached(&mut progress, Progress::Begun).await;
        ticket.begins();
        reached(&mut progress, Progress::Done).await;
    };
    let turned = tokio::select! {
        ended = &mut serving => ended,
        _ = leave => return tracing::debug!(?peer, "unauthenticated connection gave way to others"),
        () = admitted => {
            drop(ticket);
            serving.await
        }
    };
    match turned {
        Ok(()) => {}
        Err(Turned::TimedOut { after }) => tracing::debug!(?peer, ?after, "connection did not authenticate in time"),
        Err(Turned::Left { error }) => tracing::debug!(?peer, error, "connection did not authenticate"),
    }
}

/// Waits until a login has got so far, or for ever.
async fn reached(progress: &mut watch::Receiver<Progress>, step: Progress) {
    if progress.wait_for(|so_far| *so_far >= step).await.is_err() {
        std::future::pending().await
    }
}
