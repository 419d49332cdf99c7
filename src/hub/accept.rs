//! The accept loop and the life of one connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::Stage;
use super::strangers::{Admission, Place, StrangerLimits, Strangers};
use crate::carrier::tcp;
use crate::ssh::{self, Door, Progress, Turned};

/// How long the loop rests after the system refused a connection, usually for want of file descriptors.
const REST: Duration = Duration::from_millis(100);

/// Those who have not authenticated, and how to send each away.
struct Lobby {
    strangers: Mutex<(Strangers, HashMap<Place, oneshot::Sender<()>>)>,
}

impl Lobby {
    fn lock(&self) -> MutexGuard<'_, (Strangers, HashMap<Place, oneshot::Sender<()>>)> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for the newcomer and the word that it has to leave, or why there is none.
    fn enter(self: &Arc<Self>, peer: SocketAddr) -> Result<(Ticket, oneshot::Receiver<()>), &'static str> {
        let mut lobby = self.lock();
        match lobby.0.enter(peer.ip(), Instant::now()) {
            Admission::Admitted { place, evicted } => {
                if let Some(evicted) = evicted {
                    // Dropping the sender is the word.
                    lobby.1.remove(&evicted);
                }
                let (stay, leave) = oneshot::channel();
                lobby.1.insert(place, stay);
                Ok((Ticket { lobby: self.clone(), place }, leave))
            }
            Admission::SourceFull => Err("too many unauthenticated connections from this address"),
            Admission::Full => Err("too many unauthenticated connections"),
        }
    }
}

/// A stranger's place; dropping it leaves.
struct Ticket {
    lobby: Arc<Lobby>,
    place: Place,
}

impl Ticket {
    fn begins(&self) {
        self.lobby.lock().0.begins(self.place);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut lobby = self.lobby.lock();
        lobby.0.leave(self.place);
        lobby.1.remove(&self.place);
    }
}

/// Accepts until told to stop, then waits for its connections. Aborting the task ends them all.
pub(super) async fn run(
    listener: TcpListener,
    door: Arc<Door>,
    limits: StrangerLimits,
    mut stage: watch::Receiver<Stage>,
) {
    let lobby = Arc::new(Lobby { strangers: Mutex::new((Strangers::new(limits), HashMap::new())) });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = super::reached(&mut stage, Stage::Draining) => break,
            Some(_) = connections.join_next() => {} // a connection's own log has said how it ended
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => admit(&mut connections, &lobby, &door, stream, peer),
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

fn admit(connections: &mut JoinSet<()>, lobby: &Arc<Lobby>, door: &Arc<Door>, stream: TcpStream, peer: SocketAddr) {
    match lobby.enter(peer) {
        Ok((ticket, leave)) => {
            connections.spawn(connection(ticket, leave, door.clone(), stream, peer));
        }
        // Dropping the stream closes it.
        Err(why) => tracing::debug!(%peer, why, "connection refused"),
    }
}

async fn connection(
    ticket: Ticket,
    leave: oneshot::Receiver<()>,
    door: Arc<Door>,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let local = stream.local_addr().ok();
    if let Err(error) = tcp::prepare(&stream) {
        tracing::debug!(%peer, %error, "connection ended early");
        return;
    }
    let login = watch::Sender::new(Progress::Nothing);
    let mut progress = login.subscribe();
    // A future that is moved keeps its room twice, for as long as the tunnel lives.
    let mut serving = Box::pin(ssh::serve(stream, local, Some(peer), door, login));
    let admitted = async {
        reached(&mut progress, Progress::Begun).await;
        ticket.begins();
        reached(&mut progress, Progress::Done).await;
    };
    let turned = tokio::select! {
        ended = &mut serving => ended,
        _ = leave => return tracing::debug!(%peer, "unauthenticated connection gave way to others"),
        () = admitted => {
            drop(ticket);
            serving.await
        }
    };
    match turned {
        Ok(()) => {}
        Err(Turned::TimedOut { after }) => tracing::debug!(%peer, ?after, "connection did not authenticate in time"),
        Err(Turned::Left { error }) => tracing::debug!(%peer, error, "connection did not authenticate"),
    }
}

/// Waits until a login has got so far, or for ever.
async fn reached(progress: &mut watch::Receiver<Progress>, step: Progress) {
    if progress.wait_for(|so_far| *so_far >= step).await.is_err() {
        std::future::pending().await
    }
}
