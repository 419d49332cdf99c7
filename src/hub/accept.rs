//! The accept loops and the life of one connection.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Stage;
use super::proxy_protocol::{self, ProxyProtocol};
use super::strangers::{Admission, Place, StrangerLimits, Strangers};
#[cfg(unix)]
use crate::carrier::CarrierKind;
#[cfg(unix)]
use crate::carrier::unix;
use crate::carrier::{Carried, tcp};
use crate::ssh::{self, Door, Progress, Turned};

/// How long the loop rests after the system refused a connection, usually for want of file descriptors.
const REST: Duration = Duration::from_millis(100);

const SOURCE_FULL: &str = "too many unauthenticated connections from this address";

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
            Self::Unix(listener) => Ok(Some(Carried::new(CarrierKind::UnixSocket, listener.accept().await?, None))),
            Self::Streams(streams) => Ok(streams.recv().await),
        }
    }
}

/// Takes those in who come by any of a hub's listeners.
pub(super) struct Reception {
    door: Arc<Door>,
    proxy_protocol: Option<ProxyProtocol>,
    strangers: Mutex<Waiting>,
}

/// Those who have not authenticated, and how to send each away.
struct Waiting {
    strangers: Strangers,
    to_leave: HashMap<Place, oneshot::Sender<()>>,
}

impl Reception {
    pub(super) fn new(door: Arc<Door>, limits: StrangerLimits, proxy_protocol: Option<ProxyProtocol>) -> Self {
        let waiting = Waiting { strangers: Strangers::new(limits), to_leave: HashMap::new() };
        Self { door, proxy_protocol, strangers: Mutex::new(waiting) }
    }

    /// Who decides on those who want in.
    #[cfg(feature = "grpctunnel")]
    pub(super) fn keepers(&self) -> (Arc<dyn ssh::Gate>, Arc<dyn ssh::Authorizer>) {
        (self.door.gate.clone(), self.door.authorizer.clone())
    }

    /// What tunnels go by.
    #[cfg(feature = "grpctunnel")]
    pub(super) fn config(&self) -> &ssh::TunnelConfig {
        &self.door.config
    }

    /// How often a stranger may try.
    #[cfg(feature = "grpctunnel")]
    pub(super) fn max_auth_attempts(&self) -> usize {
        self.door.max_auth_attempts
    }

    /// How long a stranger waits for a refusal.
    #[cfg(feature = "grpctunnel")]
    pub(super) fn rejection_time(&self) -> Duration {
        self.door.russh.auth_rejection_time
    }

    /// How long a stranger may take for each step.
    #[cfg(feature = "websocket")]
    pub(super) fn patience(&self) -> Duration {
        self.door.config.login_timeout
    }

    /// Whether a proxy has to say first where a connection comes from.
    fn is_announced(&self, carried: &Carried) -> bool {
        self.proxy_protocol.as_ref().is_some_and(|spoken| spoken.is_spoken_by(carried))
    }

    /// Who a connection counts for when it comes.
    fn source(&self, opening: &impl Opening, carried: &Carried) -> Option<IpAddr> {
        if self.is_announced(carried) { None } else { opening.source(carried) }
    }

    /// A stranger that counted for one source comes from another, as is known now. `Err` if there are as many from there
    /// as may be.
    fn comes_from(&self, place: Place, before: Option<IpAddr>, now: Option<IpAddr>) -> Result<(), String> {
        match now.filter(|_| now != before) {
            Some(source) if !self.lock().strangers.comes_from(place, source) => Err(SOURCE_FULL.into()),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for the newcomer and the word that it has to leave, or why there is none.
    fn enter<O: Opening>(
        self: &Arc<Self>,
        opening: &O,
        carried: &Carried,
    ) -> Result<(Ticket, oneshot::Receiver<()>), &'static str> {
        let source = self.source(opening, carried);
        let mut waiting = self.lock();
        match waiting.strangers.enter(source, O::ROUND_TRIPS, Instant::now()) {
            Admission::Admitted { place, evicted } => {
                if let Some(evicted) = evicted {
                    // Dropping the sender is the word.
                    waiting.to_leave.remove(&evicted);
                }
                let (stay, leave) = oneshot::channel();
                waiting.to_leave.insert(place, stay);
                Ok((Ticket { reception: self.clone(), place }, leave))
            }
            Admission::SourceFull => Err(SOURCE_FULL),
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

/// What has to happen on a connection before SSH, or in place of it.
pub(super) trait Opening: Send + Sync + 'static {
    /// Until the key exchange of SSH, or what stands for it, has begun. A header of the PROXY protocol costs none: it is sent at once.
    const ROUND_TRIPS: u32;
    /// Who the connection counts for until it is open.
    fn source(&self, carried: &Carried) -> Option<IpAddr>;
    /// Makes of it what an SSH session can run over, or says why it is none.
    fn open(&self, carried: Carried) -> impl Future<Output = Result<Carried, String>> + Send;
    /// Serves what was opened to its end. Returns early only for who never authenticated; `login` tells how far it has got.
    fn serve(
        self: Arc<Self>,
        carried: Carried,
        door: Arc<Door>,
        login: watch::Sender<Progress>,
    ) -> impl Future<Output = Result<(), Turned>> + Send {
        ssh::serve(carried, door, login)
    }
}

/// Nothing has to.
pub(super) struct AsItIs;

impl Opening for AsItIs {
    const ROUND_TRIPS: u32 = 1;

    fn source(&self, carried: &Carried) -> Option<IpAddr> {
        carried.peer.map(|peer| peer.ip())
    }

    async fn open(&self, carried: Carried) -> Result<Carried, String> {
        Ok(carried)
    }
}

/// Accepts until told to stop, then waits for its connections. Aborting the task ends them all.
pub(super) async fn run(
    mut listener: Listener,
    opening: impl Opening,
    reception: Arc<Reception>,
    mut stage: watch::Receiver<Stage>,
) {
    let opening = Arc::new(opening);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = super::reached(&mut stage, Stage::Draining) => break,
            Some(_) = connections.join_next() => {} // a connection's own log has said how it ended
            accepted = listener.accept() => match accepted {
                Ok(Some(carried)) => match reception.enter(&*opening, &carried) {
                    Ok((ticket, leave)) => {
                        connections.spawn(connection(ticket, leave, opening.clone(), carried));
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

async fn connection(ticket: Ticket, leave: oneshot::Receiver<()>, opening: Arc<impl Opening>, carried: Carried) {
    let login = watch::Sender::new(Progress::Nothing);
    let mut progress = login.subscribe();
    let peer = carried.peer;
    let (reception, place) = (ticket.reception.clone(), ticket.place);
    // A future that is moved keeps its room twice, for as long as the tunnel lives.
    let mut serving = Box::pin(async move {
        let mut peer = peer;
        // What was needed for the beginning is not kept at all.
        let opened = Box::pin(open(&*opening, carried, &mut peer, &reception, place)).await;
        let served = match opened {
            Ok(carried) => opening.serve(carried, reception.door.clone(), login).await,
            Err(turned) => Err(turned),
        };
        served.map_err(|turned| (peer, turned))
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
        Err((peer, Turned::TimedOut { after })) => {
            tracing::debug!(?peer, ?after, "connection did not authenticate in time")
        }
        Err((peer, Turned::Left { error })) => tracing::debug!(?peer, error, "connection did not authenticate"),
    }
}

/// Makes of a connection what an SSH session can run over. `peer` is where it comes from, as far as that is known.
async fn open(
    opening: &impl Opening,
    mut carried: Carried,
    peer: &mut Option<SocketAddr>,
    reception: &Reception,
    place: Place,
) -> Result<Carried, Turned> {
    let after = reception.door.config.login_timeout;
    let opened = async {
        let entered = reception.source(opening, &carried);
        if reception.is_announced(&carried) {
            carried.peer = proxy_protocol::read(&mut carried.stream).await?;
            *peer = carried.peer;
        }
        let named = opening.source(&carried);
        reception.comes_from(place, entered, named)?;
        let opened = opening.open(carried).await?;
        *peer = opened.peer;
        reception.comes_from(place, named, opened.peer.map(|peer| peer.ip()))?;
        Ok(opened)
    };
    let opened = timeout(after, opened).await.map_err(|_| Turned::TimedOut { after })?;
    opened.map_err(|error: String| Turned::Left { error })
}

/// Waits until a login has got so far, or for ever.
async fn reached(progress: &mut watch::Receiver<Progress>, step: Progress) {
    if progress.wait_for(|so_far| *so_far >= step).await.is_err() {
        std::future::pending().await
    }
}
