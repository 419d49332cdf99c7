//! [`ReverseTunnel`] and [`ForwardTunnel`]: tunnels that this side opens.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_core::Stream;
use http::Extensions;
use http::uri::Authority;
use http_body::Body as HttpBody;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::end::{End, Frames, Protocol};
use super::network_server::SEAT_METADATA;
use super::proto::tunnel_service_client::TunnelServiceClient;
use super::protocol::{self, NEGOTIATE, ON, Revision};
use super::tunnel_client::Caller;
use super::{AGENT_ID_METADATA, Carrier, Settings, negotiated, tunnel_server};
use crate::agent::{AgentStatus, Backoff};
use crate::carrier::CarrierKind;
use crate::channel::TunnelChannel;
use crate::close::{CloseReason, Disconnected};
use crate::connector::{DialError, Found, Route};
use crate::id::{AgentId, InvalidAgentId};
use crate::ssh::{Opener, Session, SessionParts};
use crate::tunnel::TunnelId;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a tunnel was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The text is not an agent id.
    #[error(transparent)]
    InvalidAgentId(#[from] InvalidAgentId),
    /// The peer refused, or could not be reached.
    #[error("the tunnel was not opened: {0}")]
    Refused(#[source] Status),
    /// The peer took too long to negotiate the tunnel.
    #[error("the peer did not set up the tunnel within {after:?}")]
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// The tunnel ended as it began.
    #[error("the tunnel ended as it began: {0}")]
    Ended(CloseReason),
}

/// Sets up a tunnel that this side opens, over any carrier that tonic's stubs take: a `Channel` (set up by
/// [`tune_endpoint`](crate::tune_endpoint)), one with an interceptor, or another tunnel's [`TunnelChannel`].
#[must_use = "a builder does nothing until `forward` or `reverse`"]
pub struct TunnelBuilder {
    id: String,
    hub: String,
    carrier: Box<dyn Dial>,
    metadata: MetadataMap,
    settings: Settings,
    backoff: Backoff,
    tunnels: u16,
}

impl TunnelBuilder {
    /// Starts to set up a tunnel: the id that this side goes by, which is sent as the metadata `dialback-agent-id`, and the
    /// connection that carries it.
    pub fn new<C>(id: impl Into<String>, carrier: C) -> Self
    where
        C: GrpcService<Body> + Clone + Send + Sync + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
        C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <C::ResponseBody as HttpBody>::Error: Into<BoxError> + Send,
    {
        Self {
            id: id.into(),
            hub: "grpctunnel".into(),
            carrier: Box::new(Over(carrier)),
            metadata: MetadataMap::new(),
            settings: Settings::default(),
            backoff: Backoff::default(),
            tunnels: 1,
        }
    }

    /// What [`AgentStatus`] calls the peer. Default: `grpctunnel`.
    pub fn hub(mut self, name: impl Into<String>) -> Self {
        self.hub = name.into();
        self
    }

    /// What the tunnel is opened with: credentials, for example.
    pub fn metadata(mut self, metadata: MetadataMap) -> Self {
        self.metadata = metadata;
        self
    }

    /// How many reverse tunnels to keep open at once, from 1 to 8. Default: 1. A forward tunnel is always one.
    pub fn tunnels(mut self, tunnels: u16) -> Self {
        self.tunnels = tunnels.clamp(1, TUNNELS_MAX);
        self
    }

    /// The waits between attempts to open the tunnel again: a random part of `min`, then of twice that, and so on up to
    /// `max`. A tunnel that stood for `stable` starts over with `min`. Default: 200 ms, 30 s, 30 s.
    pub fn backoff(mut self, min: Duration, max: Duration, stable: Duration) -> Self {
        self.backoff = Backoff::new(min, max, stable);
        self
    }

    /// How long the peer may take until a tunnel is negotiated. Default: 15 s.
    pub fn establishment_timeout(mut self, limit: Duration) -> Self {
        self.settings.establishment = limit;
        self
    }

    /// How long a message may be that comes by the tunnel, in bytes; a longer one fails its call, `RESOURCE_EXHAUSTED`.
    /// Default: 64 MiB.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.settings.max_message = bytes;
        self
    }

    /// How many bytes the peer may send of one call before they are read. Default: 1 MiB; at least 1 KiB. A call begins with
    /// 64 KiB of it. The rest it gets when one of its messages needs that, or as its reader reads, while half of
    /// [`max_unread`](Self::max_unread) lasts for all calls together; when it ends, others can have that. The
    /// Python port sends 64 KiB in any case, so that less than this fails its calls.
    pub fn window(mut self, bytes: u32) -> Self {
        self.settings.set_window(bytes);
        self
    }

    /// How many bytes the peer may have sent by one tunnel, in all its calls, that were not read. Then the tunnel is not read
    /// for a second at most, and if its readers have not caught up by then, the call that holds most ends,
    /// `RESOURCE_EXHAUSTED`. A peer that keeps to its windows comes to that only with some 500 calls, one for each 128 KiB of
    /// this, whose readers are all slow. Default: 64 MiB.
    pub fn max_unread(mut self, bytes: usize) -> Self {
        self.settings.max_unread = bytes;
        self
    }

    /// How many calls the peer may have in flight by one reverse tunnel; more fail `RESOURCE_EXHAUSTED`. The protocol does not
    /// tell callers of it, so they cannot wait. Default: 10,000. Those that this side makes have no limit.
    pub fn max_calls(mut self, calls: usize) -> Self {
        self.settings.max_calls = calls;
        self
    }

    /// The newest revision of the protocol to offer: 0, 1 or 2. Default: 2. A hub on the Python port wants 1: offered 2, it says
    /// that it speaks it and counts as in 1, so that after some ten thousand messages a stream stands still.
    pub fn newest_revision(mut self, revision: u8) -> Self {
        self.settings.newest = match revision {
            0 => Revision::Zero,
            1 => Revision::One,
            _ => Revision::Two,
        };
        self
    }

    /// Opens a tunnel by which this side calls the peer, and keeps it open.
    ///
    /// # Errors
    /// [`OpenError`], when the first attempt fails. After the first success it never gives up.
    ///
    /// # Cancel safety
    /// Safe: without the returned tunnel nothing is left.
    pub async fn forward(self) -> Result<ForwardTunnel, OpenError> {
        let (shared, drivers) = Shared::start(self, None).await?;
        Ok(ForwardTunnel { shared, _drivers: drivers })
    }

    /// Opens a tunnel, or [several](Self::tunnels), by which the peer calls `routes`, and keeps them open.
    ///
    /// Handlers find a [`Carrier`] in a request's extensions, with what the peer answered when the tunnel was opened.
    ///
    /// # Errors
    /// [`OpenError`], when the first attempt fails. After the first success it never gives up.
    ///
    /// # Cancel safety
    /// Safe: without the returned tunnel nothing is left.
    pub async fn reverse(self, routes: Routes) -> Result<ReverseTunnel, OpenError> {
        let (shared, drivers) = Shared::start(self, Some(routes)).await?;
        Ok(ReverseTunnel { shared, _drivers: drivers })
    }
}

const TUNNELS_MAX: u16 = 8;

/// How long a peer may take to end a carrier that this side has done with.
const PEERS_TURN: Duration = Duration::from_secs(1);

/// A tunnel by which this side calls who took it.
///
/// # Dropping
/// Closes the tunnel at once. [`ForwardTunnel::shutdown`] is the polite way.
pub struct ForwardTunnel {
    shared: Arc<Shared>,
    _drivers: JoinSet<()>,
}

impl ForwardTunnel {
    /// Calls through the tunnel that stands at the moment, for any tonic stub.
    pub fn channel(&self) -> TunnelChannel {
        TunnelChannel::new(self.shared.clone())
    }

    /// What the tunnel is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.shared.status.subscribe()
    }

    /// Takes no more calls, waits for those in flight, then closes the tunnel. The end of `grace` cuts off what is left.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the tunnel draining; call it again, or drop the tunnel, to end it.
    pub async fn shutdown(&self, grace: Duration) {
        self.shared.shutdown(grace).await;
    }
}

/// A tunnel, or several, by which who took it calls this side.
///
/// # Dropping
/// Closes the tunnels at once. [`ReverseTunnel::shutdown`] is the polite way.
pub struct ReverseTunnel {
    shared: Arc<Shared>,
    _drivers: JoinSet<()>,
}

impl ReverseTunnel {
    /// What the tunnel is doing, as it changes.
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.shared.status.subscribe()
    }

    /// Refuses new calls, `UNAVAILABLE`, waits for those in flight, then closes the tunnels, idle ones at once. The end of
    /// `grace` cuts off what is left.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the tunnels draining; call it again, or drop the tunnel, to end it.
    pub async fn shutdown(&self, grace: Duration) {
        self.shared.shutdown(grace).await;
    }
}

impl Drop for ForwardTunnel {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl Drop for ReverseTunnel {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl fmt::Debug for TunnelBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelBuilder").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for ForwardTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardTunnel").field("status", &*self.shared.status.borrow()).finish_non_exhaustive()
    }
}

impl fmt::Debug for ReverseTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReverseTunnel").field("status", &*self.shared.status.borrow()).finish_non_exhaustive()
    }
}

/// What this side says on a carrier, before its state is known: that takes the peer's answer.
struct Late<P: Protocol> {
    end: oneshot::Receiver<Arc<End<P>>>,
    frames: Option<Frames<P>>,
}

impl<P: Protocol> Late<P> {
    fn new() -> (oneshot::Sender<Arc<End<P>>>, Self) {
        let (give, end) = oneshot::channel();
        (give, Self { end, frames: None })
    }
}

impl<P: Protocol> Stream for Late<P> {
    type Item = P::Out;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<P::Out>> {
        if self.frames.is_none() {
            match ready!(Pin::new(&mut self.end).poll(cx)) {
                Ok(end) => self.frames = Some(Frames::of(&end)),
                Err(_) => return Poll::Ready(None),
            }
        }
        match &mut self.frames {
            Some(frames) => Pin::new(frames).poll_next(cx),
            None => Poll::Ready(None),
        }
    }
}

type Opening<T> = Result<Response<Streaming<T>>, Status>;

/// A carrier, its type forgotten.
#[tonic::async_trait]
trait Dial: Send + Sync + 'static {
    async fn forward(&self, said: Request<Late<protocol::Client>>) -> Opening<super::proto::ServerToClient>;
    async fn reverse(&self, said: Request<Late<protocol::Server>>) -> Opening<super::proto::ClientToServer>;
}

struct Over<C>(C);

#[tonic::async_trait]
impl<C> Dial for Over<C>
where
    C: GrpcService<Body> + Clone + Send + Sync + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
    C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <C::ResponseBody as HttpBody>::Error: Into<BoxError> + Send,
{
    async fn forward(&self, said: Request<Late<protocol::Client>>) -> Opening<super::proto::ServerToClient> {
        TunnelServiceClient::new(self.0.clone()).open_tunnel(said).await
    }

    async fn reverse(&self, said: Request<Late<protocol::Server>>) -> Opening<super::proto::ClientToServer> {
        TunnelServiceClient::new(self.0.clone()).open_reverse_tunnel(said).await
    }
}

/// What the user's handle, the drivers and the calls share.
struct Shared {
    id: AgentId,
    hub: String,
    carrier: Box<dyn Dial>,
    metadata: MetadataMap,
    /// Tells its tunnels from those of another process.
    instance: u64,
    settings: Settings,
    /// What the peer calls, if it is the peer that does.
    routes: Option<Routes>,
    status: watch::Sender<AgentStatus>,
    stop: watch::Sender<bool>,
    slots: Mutex<Vec<Option<Standing>>>,
    /// Drivers that have not come to their end.
    running: watch::Sender<usize>,
    runtime: Handle,
}

/// A tunnel that stands.
#[derive(Clone)]
struct Standing {
    id: TunnelId,
    since: SystemTime,
    role: Role,
}

#[derive(Clone)]
enum Role {
    Calls(Arc<Session>),
    Serves(Arc<End<protocol::Server>>),
}

/// A tunnel that was opened, and its life, which somebody has to lead.
struct Opened {
    standing: Standing,
    life: Pin<Box<dyn Future<Output = CloseReason> + Send>>,
}

impl Shared {
    async fn start(builder: TunnelBuilder, routes: Option<Routes>) -> Result<(Arc<Self>, JoinSet<()>), OpenError> {
        let TunnelBuilder { id, hub, carrier, mut metadata, settings, backoff, tunnels } = builder;
        let id: AgentId = id.parse()?;
        let slots = if routes.is_some() { tunnels } else { 1 };
        metadata.insert(NEGOTIATE, MetadataValue::from_static(ON));
        if let Ok(value) = id.as_str().parse() {
            metadata.insert(AGENT_ID_METADATA, value);
        }
        let first = AgentStatus::Connecting { attempt: 1, next_try: Duration::ZERO, last_error: None };
        let shared = Arc::new(Self {
            id,
            hub,
            carrier,
            metadata,
            instance: rand::random(),
            settings,
            routes,
            status: watch::Sender::new(first),
            stop: watch::Sender::new(false),
            slots: Mutex::new(vec![None; usize::from(slots)]),
            running: watch::Sender::new(usize::from(slots)),
            runtime: Handle::current(),
        });
        let opened = shared.open(0).await?;
        shared.say(0, Some(opened.standing.clone()), || AgentStatus::Stopped); // it stands, so that is what is told
        let mut first = Some(opened);
        let mut drivers = JoinSet::new();
        for slot in 0..usize::from(slots) {
            drivers.spawn(run(shared.clone(), slot, first.take(), backoff.fresh()));
        }
        Ok((shared, drivers))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Standing>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request<P: Protocol>(&self, slot: usize) -> (oneshot::Sender<Arc<End<P>>>, Request<Late<P>>) {
        let (give, late) = Late::new();
        let mut request = Request::new(late);
        *request.metadata_mut() = self.metadata.clone();
        if let Ok(seat) = format!("agent={:016x}.{slot}", self.instance).parse() {
            request.metadata_mut().insert(SEAT_METADATA, seat);
        }
        (give, request)
    }

    async fn open(&self, slot: usize) -> Result<Opened, OpenError> {
        let after = self.settings.establishment;
        let opening = async {
            match &self.routes {
                None => self.open_forward(slot).await,
                Some(routes) => self.open_reverse(slot, routes.clone()).await,
            }
        };
        timeout(after, opening).await.unwrap_or(Err(OpenError::TimedOut { after }))
    }

    async fn open_forward(&self, slot: usize) -> Result<Opened, OpenError> {
        let (give, request) = self.request(slot);
        let response = self.carrier.forward(request).await.map_err(OpenError::Refused)?;
        let protocol = protocol::Client::new(self.settings.config(), negotiated(response.metadata()));
        let caller = Arc::new(Caller::new(protocol));
        let end = caller.end().clone();
        let _ = give.send(end.clone()); // fails if the carrier has just ended, which reading says
        let (id, agent) = (TunnelId::next(), self.id.clone());
        let session = Session::new(SessionParts {
            id,
            kind: CarrierKind::Grpc,
            local: None,
            peer: None,
            carrier: Arc::default(),
            window: 0,
            open_timeout: self.settings.establishment,
            max_channels: usize::MAX,
            authority: Authority::from_static("hub"),
            proof: None,
            span: tracing::info_span!("tunnel", agent = %agent, %id),
            agent,
        });
        session.set_opener(Opener::Calls(caller));
        let guard = EndOnDrop(end.clone(), session.clone());
        let mut life: Pin<Box<dyn Future<Output = CloseReason> + Send>> = Box::pin(async move {
            let mut incoming = response.into_inner();
            let reason = guard.0.read(&mut incoming).await;
            guard.0.end(reason.clone());
            farewell(&reason, incoming).await;
            reason
        });
        tokio::select! {
            reason = &mut life => return Err(OpenError::Ended(reason)),
            _ = end.until(|client| client.revision()) => {}
        }
        let standing = Standing { id, since: SystemTime::now(), role: Role::Calls(session) };
        Ok(Opened { standing, life })
    }

    async fn open_reverse(&self, slot: usize, routes: Routes) -> Result<Opened, OpenError> {
        let (give, request) = self.request(slot);
        let response = self.carrier.reverse(request).await.map_err(OpenError::Refused)?;
        let protocol = protocol::Server::new(self.settings.config(), negotiated(response.metadata()));
        let end = End::new(protocol);
        let _ = give.send(end.clone()); // fails if the carrier has just ended, which reading says
        let id = TunnelId::next();
        let mut about = Extensions::new();
        about.insert(Carrier::new(id, response.metadata().clone(), None));
        let guard = ServeUntilDrop(end.clone());
        let life = Box::pin(async move {
            let (end, mut incoming) = (&guard.0, response.into_inner());
            tokio::select! {
                reason = end.read(&mut incoming) => end.end(reason),
                () = tunnel_server::serve(end.clone(), routes, about) => {}
            }
            let reason = end.ended().unwrap_or(CloseReason::ClosedLocally);
            farewell(&reason, incoming).await;
            reason
        });
        let standing = Standing { id, since: SystemTime::now(), role: Role::Serves(end) };
        Ok(Opened { standing, life })
    }

    /// Tells how it is with one slot: what stands is told first.
    fn say(&self, slot: usize, standing: Option<Standing>, otherwise: impl FnOnce() -> AgentStatus) {
        let mut slots = self.lock();
        slots[slot] = standing;
        let tunnels = slots.iter().flatten().count();
        let status = match slots.iter().flatten().next() {
            Some(first) => {
                AgentStatus::Connected { since: first.since, hub: self.hub.clone(), tunnel_id: first.id, tunnels }
            }
            None => otherwise(),
        };
        self.status.send_if_modified(|now| {
            let stopped = matches!(now, AgentStatus::Stopped);
            if !stopped {
                *now = status;
            }
            !stopped
        });
    }

    async fn stopped(&self) {
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await; // the sender lives in `self`
    }

    fn end(&self) {
        self.stop.send_replace(true);
        self.status.send_replace(AgentStatus::Stopped);
    }

    async fn shutdown(&self, grace: Duration) {
        let again = self.stop.send_replace(true);
        let grace = if again { Duration::ZERO } else { grace };
        let standing: Vec<_> = self.lock().iter().flatten().cloned().collect();
        let mut draining = JoinSet::new();
        for Standing { role, .. } in standing {
            draining.spawn(async move {
                match role {
                    Role::Calls(session) => session.drain_and_close(grace, CloseReason::Shutdown).await,
                    Role::Serves(end) => {
                        let _ = end.with(protocol::Server::drain);
                        let _ = timeout(grace, end.flushed(|server| server.calls() == 0)).await;
                        end.end(CloseReason::Shutdown);
                    }
                }
            });
        }
        draining.join_all().await;
        // The drivers have the last word with the peer.
        let mut running = self.running.subscribe();
        let _ = timeout(PEERS_TURN, running.wait_for(|running| *running == 0)).await;
        self.status.send_replace(AgentStatus::Stopped);
    }
}

/// Leaves the carrier's end to the peer, if this side has ended the tunnel in good order: what was said last is on its way, and
/// whoever drops a carrier resets it.
async fn farewell<T>(reason: &CloseReason, mut incoming: Streaming<T>) {
    if matches!(reason, CloseReason::Shutdown) {
        let ended = async { while matches!(incoming.message().await, Ok(Some(_))) {} };
        let _ = timeout(PEERS_TURN, ended).await;
    }
}

/// Who leads a tunnel's life is gone, or has led it to the end.
struct EndOnDrop(Arc<End<protocol::Client>>, Arc<Session>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(CloseReason::ClosedLocally);
        self.1.finish(self.0.ended().unwrap_or(CloseReason::ClosedLocally));
    }
}

struct ServeUntilDrop(Arc<End<protocol::Server>>);

impl Drop for ServeUntilDrop {
    fn drop(&mut self) {
        self.0.end(CloseReason::ClosedLocally);
    }
}

/// Keeps the tunnel of one slot open, until told to stop.
async fn run(shared: Arc<Shared>, slot: usize, first: Option<Opened>, backoff: Backoff) {
    keep(&shared, slot, first, backoff).await;
    shared.running.send_modify(|running| *running -= 1);
}

async fn keep(shared: &Arc<Shared>, slot: usize, mut first: Option<Opened>, mut backoff: Backoff) {
    let mut last_error: Option<String> = None;
    let mut attempt = 1;
    loop {
        let Opened { standing, life } = match first.take() {
            Some(opened) => opened,
            None => {
                let wait = if last_error.is_some() { backoff.next(rand::random()) } else { Duration::ZERO };
                let status = |next_try| AgentStatus::Connecting { attempt, next_try, last_error: last_error.clone() };
                shared.say(slot, None, || status(wait));
                let opened = async {
                    tokio::time::sleep(wait).await;
                    shared.say(slot, None, || status(Duration::ZERO));
                    shared.open(slot).await
                };
                let opened = tokio::select! {
                    () = shared.stopped() => return,
                    opened = opened => opened,
                };
                match opened {
                    Ok(opened) => opened,
                    Err(error) => {
                        tracing::warn!(agent = %shared.id, attempt, error = &error as &dyn std::error::Error, "cannot open the tunnel");
                        last_error = Some(error.to_string());
                        attempt += 1;
                        continue;
                    }
                }
            }
        };
        let (since, id) = (Instant::now(), standing.id);
        if *shared.stop.borrow() {
            return;
        }
        shared.say(slot, Some(standing), || AgentStatus::Stopped); // it stands, so that is what is told
        tracing::info!(agent = %shared.id, hub = shared.hub, %id, "tunnel opened");
        let reason = life.await;
        tracing::info!(agent = %shared.id, %id, %reason, "tunnel ended");
        if *shared.stop.borrow() {
            return;
        }
        backoff.lost_after(since.elapsed());
        (last_error, attempt) = (Some(reason.to_string()), 1);
        shared.say(slot, None, || AgentStatus::Disconnected { why: Disconnected::now(reason) });
    }
}

impl Route for Shared {
    fn session(&self) -> Result<Arc<Session>, DialError> {
        if *self.stop.borrow() {
            return Err(DialError::Shutdown { wanted: format!("the tunnel of `{}`", self.id) });
        }
        let slots = self.lock();
        let session = slots.iter().flatten().find_map(|standing| match &standing.role {
            Role::Calls(session) => Some(session.clone()),
            Role::Serves(_) => None,
        });
        session.ok_or_else(|| DialError::NotConnected { agent: self.id.clone() })
    }

    fn wait(&self, limit: Duration) -> Found<'_, Result<Arc<Session>, DialError>> {
        // The caller may be outside of any runtime.
        let limit = {
            let _inside = self.runtime.enter();
            tokio::time::sleep(limit)
        };
        Box::pin(async move {
            let mut status = self.status.subscribe();
            tokio::select! {
                // The sender lives in `self`.
                _ = status.wait_for(|status| matches!(status, AgentStatus::Connected { .. } | AgentStatus::Stopped)) => {}
                () = limit => {}
            }
            self.session()
        })
    }
}
