//! Opens one tunnel, and leads its life.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use http::uri::Authority;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Streaming};

use super::OpenError;
use super::dial::{Dial, Late};
use crate::carrier::CarrierKind;
use crate::close::CloseReason;
use crate::grpctunnel::end::{End, Protocol};
use crate::grpctunnel::network_server::SEAT_METADATA;
use crate::grpctunnel::tunnel_client::Caller;
use crate::grpctunnel::{Carrier, Settings, negotiated, protocol, tunnel_server};
use crate::id::AgentId;
use crate::ssh::{Opener, Session, SessionParts};
use crate::tunnel::TunnelId;

/// How long a peer may take to end a carrier that this side has done with.
pub(super) const PEERS_TURN: Duration = Duration::from_secs(1);

/// What it takes to open a tunnel, at any time.
pub(super) struct Way {
    pub(super) id: AgentId,
    pub(super) carrier: Box<dyn Dial>,
    pub(super) metadata: MetadataMap,
    /// Tells its tunnels from those of another process.
    pub(super) instance: u64,
    pub(super) settings: Settings,
    /// What the peer calls, if it is the peer that does.
    pub(super) routes: Option<Routes>,
}

/// A tunnel that was opened.
pub(super) struct Opened {
    pub(super) id: TunnelId,
    pub(super) role: Role,
    pub(super) life: Life,
}

/// Somebody has to lead it. Dropping it ends the tunnel.
pub(super) type Life = Pin<Box<dyn Future<Output = CloseReason> + Send>>;

/// What this side does by a tunnel.
#[derive(Clone)]
pub(super) enum Role {
    Calls(Arc<Session>),
    Serves(Arc<End<protocol::Server>>),
}

impl Role {
    /// Ends the tunnel.
    pub(super) fn close(&self, reason: CloseReason) {
        match self {
            Self::Calls(session) => session.close(reason),
            Self::Serves(end) => end.end(reason),
        }
    }

    /// Lets no new calls begin, waits for those in flight, then ends the tunnel.
    pub(super) async fn drain_and_close(&self, grace: Duration, reason: CloseReason) {
        match self {
            Self::Calls(session) => session.drain_and_close(grace, reason).await,
            Self::Serves(end) => {
                let _ = end.with(protocol::Server::drain); // it may have ended
                let _ = timeout(grace, end.flushed(|server| server.calls() == 0)).await; // what still runs is cut off
                end.end(reason);
            }
        }
    }
}

impl Way {
    pub(super) async fn open(&self, slot: u16) -> Result<Opened, OpenError> {
        let after = self.settings.establishment;
        let opening = async {
            match &self.routes {
                None => self.forward(slot).await,
                Some(routes) => self.reverse(slot, routes.clone()).await,
            }
        };
        timeout(after, opening).await.unwrap_or(Err(OpenError::TimedOut { after }))
    }

    fn request<P: Protocol>(&self, slot: u16) -> (oneshot::Sender<Arc<End<P>>>, Request<Late<P>>) {
        let (give, late) = Late::new();
        let mut request = Request::new(late);
        *request.metadata_mut() = self.metadata.clone();
        if let Ok(seat) = format!("agent={:016x}.{slot}", self.instance).parse() {
            request.metadata_mut().insert(SEAT_METADATA, seat);
        }
        (give, request)
    }

    async fn forward(&self, slot: u16) -> Result<Opened, OpenError> {
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
        let mut life: Life = Box::pin(async move {
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
        Ok(Opened { id, role: Role::Calls(session), life })
    }

    async fn reverse(&self, slot: u16, routes: Routes) -> Result<Opened, OpenError> {
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
                biased; // what is read is served in the same turn
                reason = end.read(&mut incoming) => end.end(reason),
                () = tunnel_server::serve(end.clone(), routes, about) => {}
            }
            let reason = end.ended().unwrap_or(CloseReason::ClosedLocally);
            farewell(&reason, incoming).await;
            reason
        });
        Ok(Opened { id, role: Role::Serves(end), life })
    }
}

/// Leaves the carrier's end to the peer, if this side has ended the tunnel in good order: what was said last is on its way, and
/// whoever drops a carrier resets it.
async fn farewell<T>(reason: &CloseReason, mut incoming: Streaming<T>) {
    if matches!(reason, CloseReason::Shutdown) {
        let ended = async { while matches!(incoming.message().await, Ok(Some(_))) {} };
        let _ = timeout(PEERS_TURN, ended).await; // it is reset then
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
