//! [`TunnelService`]: takes the tunnels that others open.

use std::fmt;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use http::Extensions;
use http::header::AUTHORIZATION;
use http::uri::Authority;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

use super::end::{End, Frames, Protocol, carrier_lost};
use super::proto::tunnel_service_server as generated;
use super::protocol::{self, NEGOTIATE, ON};
use super::tunnel_client::Caller;
use super::{Carrier, Settings, negotiated, proto, tunnel_server};
use crate::carrier::CarrierKind;
use crate::close::CloseReason;
use crate::hub::{Hub, HubDoor};
use crate::id::AgentId;
use crate::labels::Labels;
use crate::ssh::{Claim, Credential, Grant, Opener, Proof, Session, SessionParts, Welcome};
use crate::tunnel::{TunnelConnectInfo, TunnelId};

/// The metadata by which an agent says who it is, for the hub's authorizer to judge. (`dialback-agent` is for a gateway, and says
/// who is called.)
pub const AGENT_ID_METADATA: &str = "dialback-agent-id";

/// The metadata by which an agent says which of its tunnels this is, as in SSH's first line. It means nothing beyond the tunnels
/// of who has proved the same.
pub(super) const SEAT_METADATA: &str = "dialback-seat";

/// What is beyond the clock's end is as good as never.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

type Identify = dyn Fn(&Request<()>) -> Result<(AgentId, Grant), Status> + Send + Sync;

/// `grpctunnel.v1.TunnelService` as a tonic service: takes the tunnels that others open. Add it to any tonic `Server`, which
/// [`tune_server`](crate::tune_server) has set up: its HTTP/2 PINGs find out who is gone.
///
/// What comes by a *reverse* tunnel, which its opener serves, becomes a tunnel of the [`Hub`] like those of SSH; for these
/// alone a hub can listen itself, at `grpc://` ([`Hub::listen`]) and at `grpcs://`. By a *forward* tunnel, its opener calls the
/// [`routes`](TunnelServiceBuilder::routes).
///
/// ```no_run
/// # fn run(hub: dialback::Hub) -> Result<(), Box<dyn std::error::Error>> {
/// use dialback::grpctunnel::TunnelService;
/// use dialback::{Grant, tune_server};
///
/// let tunnels = TunnelService::builder()
///     .reverse(&hub)
///     .identify(|carrier| match carrier.metadata().get("authorization") {
///         Some(token) if token == "Bearer of laptop-1" => Ok(("laptop-1".parse().expect("an id"), Grant::new())),
///         _ => Err(tonic::Status::unauthenticated("no such token")),
///     })
///     .build();
/// let server = tune_server(tonic::transport::Server::builder()).add_service(tunnels);
/// # Ok(()) }
/// ```
///
/// # Dropping
/// Does nothing to tunnels that stand: each lives as long as its carrier.
#[derive(Clone)]
pub struct TunnelService {
    server: generated::TunnelServiceServer<Handler>,
    forward: Arc<Forward>,
}

/// The forward tunnels of a service.
struct Forward {
    /// When to end them, once they are to end.
    stop: watch::Sender<Option<Instant>>,
    standing: watch::Sender<usize>,
}

/// Sets up a [`TunnelService`].
#[must_use = "a builder does nothing until `build`"]
pub struct TunnelServiceBuilder {
    hub: Option<HubDoor>,
    routes: Option<Routes>,
    identify: Option<Arc<Identify>>,
    settings: Settings,
}

impl TunnelService {
    /// Ends the forward tunnels politely: takes no more of them, refuses new calls, `UNAVAILABLE`, waits for those in flight,
    /// and closes the tunnels, idle ones at once. The end of `grace`, or of that of a later call, cuts off what is left. Reverse
    /// tunnels are the hub's: [`Hub::shutdown`] ends them. Do both before the server's own graceful end, which waits for all tunnels.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing: the tunnels end all the same.
    pub async fn shutdown(&self, grace: Duration) {
        let now = Instant::now();
        let at = now.checked_add(grace).unwrap_or(now + FAR);
        self.forward.stop.send_modify(|stop| *stop = Some(stop.map_or(at, |before| before.min(at))));
        // The sender lives in `self`.
        let _ = self.forward.standing.subscribe().wait_for(|standing| *standing == 0).await;
    }

    /// Starts to set up the service. Without more it takes no tunnels.
    pub fn builder() -> TunnelServiceBuilder {
        TunnelServiceBuilder { hub: None, routes: None, identify: None, settings: Settings::default() }
    }
}

impl TunnelServiceBuilder {
    /// Reverse tunnels become tunnels of this hub: in its registry, events, pools and gateway. Without this, or where the hub
    /// takes [none](crate::HubBuilder::no_reverse), they are refused `UNIMPLEMENTED`.
    ///
    /// Who opens one says who it is with the metadata `dialback-agent-id: <id>`, and the hub's
    /// [`Authorizer`](crate::Authorizer) judges that by the carrier's metadata ([`Credential::Metadata`]); the built-in ones,
    /// which judge keys, refuse all. Or [`identify`](Self::identify) tells.
    ///
    /// While a tunnel of an id can be called, and is not being drained, one that is opened with other `authorization` metadata
    /// is refused. For tokens that change, or identity by other means, as TLS certificates, the grant says who
    /// [holds the id](Grant::holder).
    pub fn reverse(mut self, hub: &Hub) -> Self {
        self.hub = Some(hub.door());
        self
    }

    /// What is called by forward tunnels. Without this they are refused `UNIMPLEMENTED`.
    ///
    /// Handlers find a [`Carrier`] in a request's extensions, and a [`TunnelConnectInfo`] where the opener is known. Who may
    /// open one is for an interceptor of this service, or for [`identify`](Self::identify).
    pub fn routes(mut self, routes: Routes) -> Self {
        self.routes = Some(routes);
        self
    }

    /// Says who opens a tunnel, or refuses it, by the request that does: its metadata, its TLS peer (`peer_certs`), and
    /// what interceptors have left in its extensions. The answer must come from what the peer has proved, never from what it
    /// says of itself. It holds for both directions. Nobody asks again while the tunnel lives:
    /// [`Tunnel::close`](crate::Tunnel::close) ends one whose token was revoked, while the hub asks its authorizer
    /// [again and again](crate::Authorizer::recheck_every).
    pub fn identify(
        mut self,
        identify: impl Fn(&Request<()>) -> Result<(AgentId, Grant), Status> + Send + Sync + 'static,
    ) -> Self {
        self.identify = Some(Arc::new(identify));
        self
    }

    /// How long a peer may take until a tunnel is negotiated. Default: 15 s.
    pub fn establishment_timeout(mut self, limit: Duration) -> Self {
        self.settings.establishment = limit;
        self
    }

    /// How long a message may be that comes by a tunnel, in bytes; a longer one fails its call, `RESOURCE_EXHAUSTED`.
    /// Default: 64 MiB.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.settings.max_message = bytes;
        self
    }

    /// How many bytes a peer may send of one call before they are read. Default: 1 MiB; at least 1 KiB. A call begins with
    /// 64 KiB of it. The rest it gets when one of its messages needs that, or as its reader reads, while half of
    /// [`max_unread`](Self::max_unread) lasts for all calls together; when it ends, others can have that. The
    /// Python port sends 64 KiB in any case, so that less than this fails its calls.
    pub fn window(mut self, bytes: u32) -> Self {
        self.settings.set_window(bytes);
        self
    }

    /// How many bytes a peer may have sent by one *forward* tunnel, in all its calls, that were not read. Then the tunnel is
    /// not read for a second at most, and if its readers have not caught up by then, the call that holds most ends,
    /// `RESOURCE_EXHAUSTED`. A peer that keeps to its windows comes to that only with some 500 calls, one for each 128 KiB of
    /// this, whose readers are all slow. Default: 64 MiB. With reverse tunnels it is
    /// [`HubBuilder::max_unread`](crate::HubBuilder::max_unread), for all tunnels of an agent.
    pub fn max_unread(mut self, bytes: usize) -> Self {
        self.settings.max_unread = bytes;
        self
    }

    /// How many calls a peer may have in flight by one *forward* tunnel; more fail `RESOURCE_EXHAUSTED`. The protocol does not
    /// tell callers of it, so they cannot wait. Default: 10,000. With reverse tunnels the hub calls, and
    /// [`HubBuilder::max_calls`](crate::HubBuilder::max_calls) is how many.
    pub fn max_calls(mut self, calls: usize) -> Self {
        self.settings.max_calls = calls;
        self
    }

    /// The service.
    pub fn build(self) -> TunnelService {
        let Self { hub, routes, identify, settings } = self;
        let forward = Arc::new(Forward { stop: watch::Sender::new(None), standing: watch::Sender::new(0) });
        let shared = Shared { hub, routes, identify, settings, forward: forward.clone() };
        TunnelService { server: generated::TunnelServiceServer::new(Handler(Arc::new(shared))), forward }
    }
}

impl Service<http::Request<Body>> for TunnelService {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, std::convert::Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.server, cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.server.call(request)
    }
}

impl NamedService for TunnelService {
    const NAME: &'static str = generated::SERVICE_NAME;
}

struct Shared {
    hub: Option<HubDoor>,
    routes: Option<Routes>,
    identify: Option<Arc<Identify>>,
    settings: Settings,
    forward: Arc<Forward>,
}

#[derive(Clone)]
struct Handler(Arc<Shared>);

/// Who has opened a tunnel, and what that got it.
type Known = (AgentId, Box<Proof>);

impl Shared {
    /// Asks the user's own code who it is, if there is some.
    fn identified(&self, carrier: &Request<()>) -> Result<Option<Known>, Status> {
        let Some(identify) = &self.identify else { return Ok(None) };
        let (agent, grant) = identify(carrier)?;
        Ok(Some((agent, Box::new(Proof::new(grant, None, holder(carrier))))))
    }

    /// Asks the hub's authorizer about what the peer says of itself.
    async fn authorized(&self, hub: &HubDoor, carrier: &Request<()>) -> Result<Known, Status> {
        let claimed =
            carrier.metadata().get(AGENT_ID_METADATA).and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok());
        let Some(agent) = claimed else {
            return Err(Status::invalid_argument(format!(
                "say which agent this is: metadata `{AGENT_ID_METADATA}: <id>`"
            )));
        };
        let claim = Claim::new(agent, Credential::Metadata(carrier.metadata().clone()), carrier.remote_addr());
        match timeout(self.settings.establishment, hub.authorizer.authorize(&claim)).await {
            Ok(Ok(grant)) => {
                let agent = claim.agent_id.clone();
                Ok((agent, Box::new(Proof::new(grant, Some(claim), holder(carrier)))))
            }
            // What is said against a claim is for the hub's log; a stranger learns only "no".
            Ok(Err(denied)) => {
                tracing::info!(peer = ?claim.peer, agent = %claim.agent_id, why = %denied, "tunnel refused");
                Err(Status::permission_denied("not authorized"))
            }
            Err(_) => {
                tracing::warn!(peer = ?claim.peer, agent = %claim.agent_id, "tunnel refused: the authorizer did not answer in time");
                Err(Status::unavailable("try again"))
            }
        }
    }
}

/// Who holds an id that was proved on this carrier, as far as that shows: its token, known by a hash alone.
fn holder(carrier: &Request<()>) -> String {
    match carrier.metadata().get(AUTHORIZATION.as_str()) {
        Some(token) => format!("authorization {:02x?}", Sha256::digest(token.as_encoded_bytes()).as_slice()),
        None => "grpctunnel".into(),
    }
}

/// Waits until the time that is told there, which may become an earlier one.
async fn passed(mut stop: watch::Receiver<Option<Instant>>) {
    loop {
        let Some(at) = *stop.borrow_and_update() else { return pending().await };
        tokio::select! {
            () = sleep_until(at) => return,
            Ok(()) = stop.changed() => {}
        }
    }
}

/// One of the forward tunnels that stand.
struct Counted(Arc<Forward>);

impl Counted {
    fn new(forward: &Arc<Forward>) -> Self {
        forward.standing.send_modify(|standing| *standing += 1);
        Self(forward.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.standing.send_modify(|standing| *standing -= 1);
    }
}

type Outgoing<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl generated::TunnelService for Handler {
    type OpenTunnelStream = Outgoing<proto::ServerToClient>;
    type OpenReverseTunnelStream = Outgoing<proto::ClientToServer>;

    async fn open_tunnel(
        &self,
        request: Request<Streaming<proto::ClientToServer>>,
    ) -> Result<Response<Self::OpenTunnelStream>, Status> {
        let Some(routes) = self.0.routes.clone() else {
            return Err(Status::unimplemented("forward tunnels not supported"));
        };
        let (carrier, mut incoming) = split(request);
        let known = self.0.identified(&carrier)?;
        let id = TunnelId::next();
        let mut about = Extensions::new();
        if let Some((agent, _)) = &known {
            about.insert(TunnelConnectInfo {
                agent_id: agent.clone(),
                tunnel_id: id,
                local_addr: carrier.local_addr(),
                peer_addr: carrier.remote_addr(),
            });
        }
        about.insert(Carrier::new(id, carrier.metadata().clone(), carrier.remote_addr()));
        let settings = &self.0.settings;
        let protocol = protocol::Server::new(settings.config(), negotiated(carrier.metadata()));
        let end = End::new(protocol);
        let said = Said::of(&end);
        // Before the look at `stop`: a shutdown that begins after it waits for this tunnel.
        let counted = Counted::new(&self.0.forward);
        let mut stop = self.0.forward.stop.subscribe();
        if stop.borrow().is_some() {
            return Err(Status::unavailable("the server is shutting down"));
        }
        // Ends with the carrier, whose end `said` tells when it is dropped.
        tokio::spawn(async move {
            let _counted = counted;
            let stopped = async {
                if stop.wait_for(Option::is_some).await.is_err() {
                    return pending().await;
                }
                let _ = end.with(protocol::Server::drain);
                tokio::select! {
                    _ = end.flushed(|server| server.calls() == 0) => {}
                    () = passed(stop) => {}
                }
                end.end(CloseReason::Shutdown);
            };
            tokio::select! {
                biased; // what is read is served in the same turn
                reason = end.read(&mut incoming) => end.end(reason),
                () = tunnel_server::serve(end.clone(), routes, about) => {}
                () = stopped => {}
            }
        });
        Ok(opened(said))
    }

    async fn open_reverse_tunnel(
        &self,
        request: Request<Streaming<proto::ServerToClient>>,
    ) -> Result<Response<Self::OpenReverseTunnelStream>, Status> {
        let unsupported = || Status::unimplemented("reverse tunnels not supported");
        let hub = self.0.hub.clone().ok_or_else(unsupported)?;
        if hub.no_reverse {
            return Err(unsupported());
        }
        let (carrier, incoming) = split(request);
        let (agent, proof) = match self.0.identified(&carrier)? {
            Some(known) => known,
            None => self.0.authorized(&hub, &carrier).await?,
        };
        if hub.is_closing() {
            return Err(Status::unavailable("the hub is shutting down"));
        }
        let settings = &self.0.settings;
        let protocol = protocol::Client::new(settings.config(), negotiated(carrier.metadata()));
        let caller = Arc::new(Caller::new(protocol));
        let (id, peer) = (TunnelId::next(), carrier.remote_addr());
        let session = Session::new(SessionParts {
            id,
            kind: CarrierKind::Grpc,
            local: carrier.local_addr(),
            peer,
            carrier: Arc::default(),
            window: 0,
            open_timeout: settings.establishment,
            max_channels: usize::MAX,
            authority: Authority::from_static("agent"),
            proof: Some(proof),
            span: tracing::info_span!("tunnel", agent = %agent, %id, ?peer),
            agent,
        });
        let end = caller.end().clone();
        session.set_opener(Opener::Calls(caller));
        let guest = Guest { end, session };
        // Dropped before the guest, it tells that the carrier has ended.
        let said = Said::of(&guest.end);
        let seat = carrier.metadata().get(SEAT_METADATA).and_then(|seat| seat.to_str().ok()).unwrap_or_default();
        // Nothing in the protocol tells an opener that it is in, so what is known by now is said before the answer.
        hub.gate.admit(&guest.session, &format!("grpctunnel {seat}")).map_err(|reason| guest.refuse(reason))?;
        hub.gate.contest(&guest.session).await.map_err(|reason| guest.refuse(reason))?;
        // Ends with the carrier.
        tokio::spawn(keep(guest, incoming, hub, settings.establishment));
        Ok(opened(said))
    }
}

/// Keeps a reverse tunnel in its hub until it ends.
async fn keep(guest: Guest, mut incoming: Streaming<proto::ServerToClient>, mut hub: HubDoor, limit: Duration) {
    let Guest { end, session } = &guest;
    let reading = end.read(&mut incoming);
    let introduced = async {
        match timeout(limit, end.until(|client| client.revision())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                let error = format!("the peer sent no settings within {limit:?}");
                return end.end(CloseReason::Protocol { error });
            }
        }
        match hub.gate.ready(session, Labels::new()).await {
            Ok(Welcome::Wanted) => hub.gone().await,
            Ok(Welcome::NotCalled) => _ = guest.refuse("this hub calls no agents".into()),
            Err(reason) => _ = guest.refuse(reason),
        }
    };
    tokio::select! {
        reason = reading => end.end(reason),
        () = introduced => end.end(CloseReason::Shutdown),
    }
}

/// A reverse tunnel. Dropping it tells the hub that it has ended, whatever ends its task: the user's code may panic in it.
struct Guest {
    end: Arc<End<protocol::Client>>,
    session: Arc<Session>,
}

impl Guest {
    /// Ends the tunnel, which the hub does not want; what is returned tells the peer.
    fn refuse(&self, reason: String) -> Status {
        self.session.span.in_scope(|| tracing::warn!(reason, "tunnel refused"));
        self.end.end(CloseReason::Refused { reason: reason.clone() });
        Status::failed_precondition(reason)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end.end(CloseReason::ClosedLocally);
        self.session.finish(self.end.ended().unwrap_or(CloseReason::ClosedLocally));
    }
}

/// What a peer opens a tunnel with, apart.
fn split<T>(request: Request<T>) -> (Request<()>, T) {
    let (metadata, extensions, incoming) = request.into_parts();
    (Request::from_parts(metadata, extensions, ()), incoming)
}

/// The answer, whose head leaves at once: the peer waits for it.
fn opened<T: Send + 'static>(said: impl Stream<Item = Result<T, Status>> + Send + 'static) -> Response<Outgoing<T>> {
    let mut response: Response<Outgoing<T>> = Response::new(Box::pin(said));
    response.metadata_mut().insert(NEGOTIATE, MetadataValue::from_static(ON));
    response
}

/// What a tunnel's end says on a carrier of which this is the server, with the carrier's own end. Dropping it, which the end of the
/// carrier does, ends the tunnel.
struct Said<P: Protocol> {
    end: Arc<End<P>>,
    frames: Frames<P>,
    done: bool,
}

impl<P: Protocol> Said<P> {
    fn of(end: &Arc<End<P>>) -> Self {
        Self { end: end.clone(), frames: Frames::of(end), done: false }
    }
}

impl<P: Protocol> Stream for Said<P> {
    type Item = Result<P::Out, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        match std::task::ready!(Pin::new(&mut self.frames).poll_next(cx)) {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => {
                self.done = true;
                Poll::Ready(match self.end.ended() {
                    Some(CloseReason::Protocol { error }) => Some(Err(Status::internal(error))),
                    Some(CloseReason::Refused { reason }) => Some(Err(Status::failed_precondition(reason))),
                    Some(reason @ CloseReason::Revoked { .. }) => {
                        Some(Err(Status::permission_denied(reason.farewell())))
                    }
                    _ => None,
                })
            }
        }
    }
}

impl<P: Protocol> Drop for Said<P> {
    fn drop(&mut self) {
        self.end.end(carrier_lost());
    }
}

impl fmt::Debug for TunnelService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelService").finish_non_exhaustive()
    }
}

impl fmt::Debug for TunnelServiceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelServiceBuilder").finish_non_exhaustive()
    }
}
