//! The gateway's own services: the hub's API, health and reflection.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tower_service::Service;

use super::Stage;
use super::call::Caller;
use super::proto as pb;
use super::proto::hub_server::{Hub, HubServer};
use super::proto::watch_agents_response::Event;
use crate::close::{CloseReason, Disconnected};
use crate::connector::DialError;
use crate::hub::{EventsError, HubEvent, HubEvents, Registry, Selector, TunnelInfo};
use crate::id::AgentId;
use crate::ssh::Session;

/// What `proto/hub.proto` says, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!("../../proto/gen/dialback.v1.bin");

/// Messages that a client of a stream may be behind; then the stream waits, and catches up by a snapshot.
const BEHIND: usize = 16;

/// How long tunnels may take to answer a question about their round trip.
const ANSWER: Duration = Duration::from_secs(2);

type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Served = Arc<dyn Fn(Request<Body>) -> Answer + Send + Sync>;

/// The services, by their names.
pub(super) struct Services {
    by_name: BTreeMap<&'static str, Served>,
}

impl Services {
    pub(super) fn new(registry: Arc<Registry>, stage: watch::Receiver<Stage>) -> Self {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let mut by_name = BTreeMap::new();
        by_name.insert("dialback.v1.Hub", served(HubServer::new(HubService(registry.clone(), stage.clone()))));
        by_name.insert("grpc.health.v1.Health", served(HealthServer::new(HealthService(registry, stage))));
        // The descriptors are part of this crate, and a test has seen them pass.
        if let (Ok(v1), Ok(alpha)) = (reflection().build_v1(), reflection().build_v1alpha()) {
            by_name.insert("grpc.reflection.v1.ServerReflection", served(v1));
            by_name.insert("grpc.reflection.v1alpha.ServerReflection", served(alpha));
        }
        Self { by_name }
    }

    /// The service of a method, if it is one of these.
    pub(super) fn find(&self, method: &str) -> Option<&Served> {
        let (service, _) = method.strip_prefix('/')?.split_once('/')?;
        self.by_name.get(service)
    }
}

/// Whether a method is of the hub's API, which no agent has a part in.
pub(super) fn is_of_the_hub(method: &str) -> bool {
    method.starts_with("/dialback.v1.Hub/")
}

pub(super) fn is_reflection(method: &str) -> bool {
    method.starts_with("/grpc.reflection.")
}

/// Waits until the gateway shuts down; what to say then to those who would wait for ever.
async fn farewell(stage: &mut watch::Receiver<Stage>) -> Status {
    let _ = stage.wait_for(|stage| *stage > Stage::Open).await; // an error means that it is gone
    Status::unavailable("the gateway is shutting down")
}

fn served<S>(service: S) -> Served
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    Arc::new(move |request| {
        let mut service = service.clone();
        Box::pin(async move {
            let ready =
                std::future::poll_fn(|cx: &mut Context<'_>| -> Poll<Result<(), Infallible>> { service.poll_ready(cx) });
            let Ok(()) = ready.await;
            let Ok(answer) = service.call(request).await;
            answer
        })
    })
}

/// Who calls, as the gateway has found out.
fn caller_of<T>(request: &tonic::Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.cloned().ok_or_else(|| Status::internal("the gateway did not say who calls"))
}

fn agent_id(text: &str) -> Result<AgentId, Status> {
    text.parse().map_err(|error: crate::id::InvalidAgentId| Status::invalid_argument(error.to_string()))
}

struct HubService(Arc<Registry>, watch::Receiver<Stage>);

impl HubService {
    /// The agents that a caller may see, by their ids.
    fn agents(&self, caller: &Caller, method: &str) -> BTreeMap<AgentId, pb::Agent> {
        let mut agents = BTreeMap::new();
        for session in self.0.sessions() {
            if !session.is_closed() && caller.may(&session.agent, session.labels(), method) {
                let new = || pb::Agent { id: session.agent.to_string(), tunnels: Vec::new() };
                agents.entry(session.agent.clone()).or_insert_with(new).tunnels.push(tunnel(&session));
            }
        }
        for agent in agents.values_mut() {
            agent.tunnels.sort_by_key(|tunnel| tunnel.id);
        }
        agents
    }

    /// Asks every tunnel of the answer, all at once, and notes how long each took.
    async fn measure(&self, answer: &mut pb::ListAgentsResponse) {
        let sessions = self.0.sessions().into_iter().map(|session| (session.id.as_u64(), session));
        let mut sessions: HashMap<u64, Arc<Session>> = sessions.collect();
        let mut asking = JoinSet::new();
        for tunnel in answer.agents.iter().flat_map(|agent| &agent.tunnels) {
            if let Some(session) = sessions.remove(&tunnel.id) {
                asking.spawn(async move { (session.id.as_u64(), session.round_trip().await) });
            }
        }
        let mut answered = HashMap::new();
        let all = async {
            while let Some(asked) = asking.join_next().await {
                if let Ok((id, Some(took))) = asked {
                    answered.insert(id, took);
                }
            }
        };
        let _ = timeout(ANSWER, all).await; // those that did not answer have no figure
        for tunnel in answer.agents.iter_mut().flat_map(|agent| &mut agent.tunnels) {
            tunnel.round_trip = answered.get(&tunnel.id).and_then(|took| (*took).try_into().ok());
        }
    }

    fn snapshot(&self, caller: &Caller, method: &str) -> (BTreeSet<AgentId>, pb::ListAgentsResponse) {
        let agents = self.agents(caller, method);
        (agents.keys().cloned().collect(), pb::ListAgentsResponse { agents: agents.into_values().collect() })
    }

    /// The tunnels of an agent that a caller may see, or why there are none.
    fn sessions_of(&self, caller: &Caller, agent: &AgentId, method: &str) -> Result<Vec<Arc<Session>>, Status> {
        let sessions = self.0.sessions_of(agent);
        let visible: Vec<_> =
            sessions.into_iter().filter(|session| caller.may(agent, session.labels(), method)).collect();
        if !visible.is_empty() {
            return Ok(visible);
        }
        if !caller.may_ask(agent, &self.0, method) {
            return Err(caller.denied(agent, method));
        }
        Err(Status::not_found(match self.0.find(&Selector::Agent(agent.clone())) {
            Err(away @ DialError::Disconnected { .. }) => away.to_string(),
            _ => format!("agent `{agent}` is not connected"),
        }))
    }
}

fn tunnel(session: &Session) -> pb::Tunnel {
    let TunnelInfo { tunnel_id, peer_addr, carrier, since, labels, calls, .. } = TunnelInfo::new(session);
    pb::Tunnel {
        id: tunnel_id.as_u64(),
        peer_address: peer_addr.map(|peer| peer.to_string()).unwrap_or_default(),
        since: Some(timestamp(since)),
        labels: labels.into_iter().collect(),
        calls: calls as u64,
        ready: session.is_ready(),
        carrier: carrier.to_string(),
        round_trip: None,
    }
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

const LIST: &str = "/dialback.v1.Hub/ListAgents";
const GET: &str = "/dialback.v1.Hub/GetAgent";
const WATCH: &str = "/dialback.v1.Hub/WatchAgents";
const DISCONNECT: &str = "/dialback.v1.Hub/DisconnectAgent";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH_HEALTH: &str = "/grpc.health.v1.Health/Watch";

#[tonic::async_trait]
impl Hub for HubService {
    async fn list_agents(
        &self,
        request: tonic::Request<pb::ListAgentsRequest>,
    ) -> Result<tonic::Response<pb::ListAgentsResponse>, Status> {
        let caller = caller_of(&request)?;
        let (_, mut answer) = self.snapshot(&caller, LIST);
        if request.get_ref().round_trips {
            self.measure(&mut answer).await;
        }
        Ok(tonic::Response::new(answer))
    }

    async fn get_agent(
        &self,
        request: tonic::Request<pb::GetAgentRequest>,
    ) -> Result<tonic::Response<pb::Agent>, Status> {
        let (caller, agent) = (caller_of(&request)?, agent_id(&request.get_ref().id)?);
        let sessions = self.sessions_of(&caller, &agent, GET)?;
        let tunnels = sessions.iter().map(|session| tunnel(session)).collect();
        Ok(tonic::Response::new(pb::Agent { id: agent.to_string(), tunnels }))
    }

    type WatchAgentsStream = ReceiverStream<Result<pb::WatchAgentsResponse, Status>>;

    async fn watch_agents(
        &self,
        request: tonic::Request<pb::WatchAgentsRequest>,
    ) -> Result<tonic::Response<Self::WatchAgentsStream>, Status> {
        let caller = caller_of(&request)?;
        let (sender, receiver) = mpsc::channel(BEHIND);
        let watch = Watch { hub: Self(self.0.clone(), self.1.clone()), caller, sender, seen: BTreeSet::new() };
        // Ends when the client leaves, or the hub is gone.
        tokio::spawn(watch.run(HubEvents(self.0.events())));
        Ok(tonic::Response::new(ReceiverStream::new(receiver)))
    }

    async fn disconnect_agent(
        &self,
        request: tonic::Request<pb::DisconnectAgentRequest>,
    ) -> Result<tonic::Response<pb::DisconnectAgentResponse>, Status> {
        let (caller, agent) = (caller_of(&request)?, agent_id(&request.get_ref().id)?);
        let sessions = self.sessions_of(&caller, &agent, DISCONNECT)?;
        for session in &sessions {
            session.close(CloseReason::ClosedLocally);
        }
        tracing::info!(%agent, caller = ?caller.name, tunnels = sessions.len(), "agent disconnected by request");
        let tunnels = u32::try_from(sessions.len()).unwrap_or(u32::MAX);
        Ok(tonic::Response::new(pb::DisconnectAgentResponse { tunnels }))
    }
}

/// One client that watches.
struct Watch {
    hub: HubService,
    caller: Caller,
    sender: mpsc::Sender<Result<pb::WatchAgentsResponse, Status>>,
    /// The agents that it knows of.
    seen: BTreeSet<AgentId>,
}

impl Watch {
    async fn run(mut self, mut events: HubEvents) {
        let mut snapshot = true;
        loop {
            if std::mem::take(&mut snapshot) {
                let (seen, all) = self.hub.snapshot(&self.caller, WATCH);
                self.seen = seen;
                if !self.say(Event::Snapshot(all)).await {
                    return;
                }
            }
            let event = tokio::select! {
                event = events.next() => event,
                () = self.sender.closed() => return,
                status = farewell(&mut self.hub.1) => return drop(self.sender.send(Err(status)).await),
            };
            let said = match event {
                Ok(
                    HubEvent::Opened { agent_id, .. }
                    | HubEvent::Ready { agent_id, .. }
                    | HubEvent::Draining { agent_id, .. },
                ) => self.changed(agent_id, None).await,
                Ok(HubEvent::Closed { agent_id, why, .. }) => self.changed(agent_id, Some(why)).await,
                Ok(HubEvent::Rejected { .. }) => true,
                Err(EventsError::Missed(_)) => {
                    snapshot = true;
                    true
                }
                Err(EventsError::Closed) => return,
            };
            if !said {
                return;
            }
        }
    }

    /// Says how an agent is now.
    async fn changed(&mut self, agent: AgentId, why: Option<Disconnected>) -> bool {
        let sessions = self.hub.0.sessions_of(&agent);
        // It has ended since; the event of that says why.
        if sessions.is_empty() && why.is_none() {
            return true;
        }
        let visible = sessions.into_iter().filter(|session| self.caller.may(&agent, session.labels(), WATCH));
        let tunnels: Vec<_> = visible.map(|session| tunnel(&session)).collect();
        if !tunnels.is_empty() {
            self.seen.insert(agent.clone());
            return self.say(Event::Changed(pb::Agent { id: agent.to_string(), tunnels })).await;
        }
        // Of one that it has not seen it does not hear.
        if !self.seen.remove(&agent) {
            return true;
        }
        let (reason, at) = why.map_or_else(Default::default, |why| (why.reason.to_string(), Some(timestamp(why.at))));
        self.say(Event::Gone(pb::Gone { id: agent.to_string(), reason, at })).await
    }

    /// Whether the client is still there.
    async fn say(&self, event: Event) -> bool {
        let mut stage = self.hub.1.clone();
        tokio::select! {
            biased;
            said = self.sender.send(Ok(pb::WatchAgentsResponse { event: Some(event) })) => said.is_ok(),
            _ = farewell(&mut stage) => false, // it does not even take what there is
        }
    }
}

struct HealthService(Arc<Registry>, watch::Receiver<Stage>);

impl HealthService {
    /// How an agent is; none if the caller may not know, or nobody does.
    fn status_of(registry: &Registry, caller: &Caller, service: &str, method: &str) -> Option<ServingStatus> {
        if service.is_empty() {
            return Some(ServingStatus::Serving);
        }
        let agent: AgentId = service.parse().ok()?;
        let can_be_called = |session: &Arc<Session>| session.is_ready() && caller.may(&agent, session.labels(), method);
        if registry.sessions_of(&agent).iter().any(can_be_called) {
            return Some(ServingStatus::Serving);
        }
        caller.may_know(&agent, registry, method).then_some(ServingStatus::NotServing)
    }
}

fn health(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        let (caller, service) = (caller_of(&request)?, &request.get_ref().service);
        let status = Self::status_of(&self.0, &caller, service, CHECK);
        let status =
            status.ok_or_else(|| Status::new(Code::NotFound, "unknown service: give an agent's id, or nothing"))?;
        Ok(tonic::Response::new(health(status)))
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let (caller, service) = (caller_of(&request)?, request.into_inner().service);
        let (sender, receiver) = mpsc::channel(BEHIND);
        let (registry, mut stage) = (self.0.clone(), self.1.clone());
        let mut events = HubEvents(registry.events());
        // Ends when the client leaves, or the hub is gone.
        tokio::spawn(async move {
            let mut told = None;
            loop {
                let known = Self::status_of(&registry, &caller, &service, WATCH_HEALTH);
                let status = known.unwrap_or(ServingStatus::ServiceUnknown);
                if told.replace(status) != Some(status) && sender.send(Ok(health(status))).await.is_err() {
                    return;
                }
                // What concerns another agent changes nothing.
                loop {
                    let event = tokio::select! {
                        event = events.next() => event,
                        () = sender.closed() => return,
                        status = farewell(&mut stage) => return drop(sender.send(Err(status)).await),
                    };
                    match event {
                        Ok(event) if event.agent_id().as_str() != service => {}
                        Ok(_) | Err(EventsError::Missed(_)) => break,
                        Err(EventsError::Closed) => return,
                    }
                }
            }
        });
        Ok(tonic::Response::new(ReceiverStream::new(receiver)))
    }
}
