//! One call, from the caller to the agent and back.

#[cfg(feature = "grpctunnel")]
mod own;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, body::Body};

use super::builder::Shared;
use super::callers::authenticate;
use super::policy::{CallerName, Policy};
use super::services;
use super::target::{self, AGENT_METADATA, Target, advice, is_method};
use crate::connector::DialError;
use crate::http2::{
    Clock, Exchange, Gathered, Placed, ReceivedBody, Rings, Upload, Way, address, end, expired, failed, reached,
    refuse, strip_hop_by_hop, timeout_of,
};
use crate::hub::{Admits, Registry, Selector, ToAgents};
use crate::id::AgentId;
use crate::labels::Labels;

/// The metadata by which an agent learns the name of the caller, by the gateway's policy. Nobody else can set it.
pub const CALLER_METADATA: &str = "dialback-caller";

/// What the gateway says and adds in metadata begins so; callers may not.
const OWN_METADATA: &str = "dialback-";

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) peer: SocketAddr,
    /// The names in its certificate, which was verified.
    pub(super) names: Vec<String>,
    /// A call of it was let in.
    known: AtomicBool,
}

impl Client {
    pub(super) fn new(peer: SocketAddr, names: Vec<String>) -> Self {
        Self { peer, names, known: AtomicBool::new(false) }
    }

    pub(super) fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }
}

/// Who calls, as far as the gateway knows, and by what policy.
#[derive(Clone)]
pub(super) struct Caller {
    peer: SocketAddr,
    pub(super) name: Option<CallerName>,
    /// None where everybody may call everything.
    pub(super) policy: Option<Arc<Policy>>,
}

impl Caller {
    pub(super) fn may(&self, agent: &AgentId, labels: &Labels, method: &str) -> bool {
        match (&self.policy, &self.name) {
            (None, _) => true,
            (Some(policy), Some(name)) => policy.allows(name, agent.as_str(), labels, method),
            (Some(_), None) => false,
        }
    }

    /// Whether there is such an agent, or was, for a caller who may know.
    pub(super) fn may_know(&self, agent: &AgentId, registry: &Registry, method: &str) -> bool {
        registry.labels_of(agent).iter().any(|labels| self.may(agent, labels, method))
    }

    /// Whether it is told what has become of an agent: who may not call it does not learn that there is one.
    pub(super) fn may_ask(&self, agent: &AgentId, registry: &Registry, method: &str) -> bool {
        self.may(agent, &Labels::new(), method) || self.may_know(agent, registry, method)
    }

    /// Logs it, too.
    pub(super) fn denied(&self, agent: &AgentId, method: &str) -> Status {
        let name = self.name.as_ref().map_or("nobody", CallerName::as_str);
        tracing::warn!(peer = %self.peer, caller = name, %agent, method, "call denied");
        Status::permission_denied(format!("caller `{name}` may not call {method} of agent `{agent}`"))
    }
}

/// Serves one call to its end. Dropping the future resets it, towards both sides.
pub(super) async fn serve(
    shared: Arc<Shared>,
    client: Arc<Client>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (mut head, body) = request.into_parts();
    if let Some(answer) = not_grpc(&head.method, &head.headers) {
        return say(answer, &mut respond);
    }
    let ends = [timeout_of(&head.headers), shared.settings.total].into_iter().flatten().min();
    let deadline = ends.and_then(|limit| Instant::now().checked_add(limit));
    let (caller, _place) = match admit(&shared, &client, &mut head) {
        Ok(admitted) => admitted,
        Err(status) => return refuse(status, &mut respond),
    };
    let method = head.uri.path().to_owned();
    if !is_method(&method) || head.uri.query().is_some() {
        let text = "the path is not /package.Service/Method, without escapes and without a query";
        return refuse(Status::invalid_argument(text), &mut respond);
    }
    let target = match choose(&shared, &caller, &head) {
        Ok(Some(agent)) => agent,
        Ok(None) => return serve_here(&shared, caller, Request::from_parts(head, body), respond, deadline).await,
        Err(status) => return refuse(status, &mut respond),
    };

    strip_hop_by_hop(&mut head.headers);
    remove_own_metadata(&mut head.headers);
    // The authority says it, and for the agent another than for the gateway.
    head.headers.remove(HOST);
    if let Some(name) = &caller.name {
        let value = HeaderValue::from_str(name.as_str()).unwrap_or(HeaderValue::from_static("")); // it is plain ASCII
        head.headers.insert(CALLER_METADATA, value);
    }
    // The tunnels of a pool may have other labels each.
    let suits = caller.policy.is_some().then(|| -> Admits {
        let (caller, target, method) = (caller.clone(), target.clone(), method.clone());
        Box::new(move |session| caller.may(&target, session.labels(), &method))
    });
    let route = ToAgents { registry: shared.registry.clone(), wanted: Selector::Agent(target.clone()), admits: suits };
    let mut body = Gathered::new(body, vec![shared.held.clone()]);
    let placed = tokio::select! {
        biased;
        placed = Placed::find(&route, None) => placed.map_err(|error| explain(error, &shared, &caller, &target, &method)),
        () = reached(deadline) => Err(expired()),
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
        // The way to the agent may take its time.
        _ = body.gather() => return,
    };
    match placed {
        Ok(placed) => pass_on(placed, deadline, &shared, head, body, respond).await,
        Err(status) => refuse(status, &mut respond),
    }
}

/// What to say to a client that does not speak gRPC (gRPC over HTTP/2, "Requests").
fn not_grpc(method: &Method, headers: &HeaderMap) -> Option<Response<()>> {
    let mut answer = Response::new(());
    if method != Method::POST {
        *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Some(answer);
    }
    let is_grpc = headers.get(CONTENT_TYPE).is_some_and(|value| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| rest.first().is_none_or(|next| matches!(next, b'+' | b';')))
    });
    *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    (!is_grpc).then_some(answer)
}

fn say(answer: Response<()>, respond: &mut SendResponse<Bytes>) {
    const TEXT: &str = "This is a gRPC gateway: use a gRPC client.\n";
    if let Ok(mut body) = respond.send_response(answer, false) {
        let _ = body.send_data(Bytes::from_static(TEXT.as_bytes()), true); // fails if the client is gone
    }
}

/// Makes out the caller, and counts the call.
fn admit(shared: &Shared, client: &Client, head: &mut Parts) -> Result<(Caller, super::limits::Place), Status> {
    let policy = shared.policy.as_ref().map(super::callers::PolicyFile::current);
    let name = match &policy {
        None => None,
        Some(policy) => Some(authenticate(policy, &mut head.headers, &client.names).map_err(|error| {
            // A stranger can cause this at will, so it is no warning.
            let (agent, uri) = (head.headers.get(AGENT_METADATA), &head.uri);
            tracing::info!(peer = %client.peer, %error, ?agent, %uri, "caller not known");
            Status::unauthenticated(error.to_string())
        })?),
    };
    client.known.store(true, Ordering::Relaxed);
    let place = shared.in_flight.enter(&name).ok_or_else(|| {
        let limit = shared.in_flight.limit();
        Status::resource_exhausted(format!("{limit} calls are in flight for this caller, which is the limit"))
    })?;
    Ok((Caller { peer: client.peer, name, policy }, place))
}

/// The agent that a call is for, or that it is for the gateway itself.
fn choose(shared: &Shared, caller: &Caller, head: &Parts) -> Result<Option<AgentId>, Status> {
    let suffix = shared.suffix.as_deref();
    let target = target::target(&head.headers, head.uri.authority(), suffix);
    let target = target.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let method = head.uri.path();
    let here = shared.services.find(method).is_some();
    match target {
        Target::Agent(agent) => Ok(Some(agent)),
        // A name without a dot is hardly the gateway's own: a mistyped agent must not look healthy.
        Target::Perhaps(agent)
            if here
                && (agent.as_str().contains('.') || services::is_of_the_hub(method))
                && !caller.may_know(&agent, &shared.registry, method) =>
        {
            Ok(None)
        }
        // If there is none, the search for a tunnel says so.
        Target::Perhaps(agent) => Ok(Some(agent)),
        Target::Absent if here => Ok(None),
        Target::Absent => Err(Status::invalid_argument(format!("no agent is named: {}", advice(suffix)))),
    }
}

/// That there is no such agent.
fn unknown(agent: &AgentId, shared: &Shared, method: &str) -> Status {
    // Of reflection, NOT_FOUND would mean that the agent does not know the symbol.
    let code = if services::is_reflection(method) { Code::InvalidArgument } else { Code::NotFound };
    Status::new(code, format!("there is no agent `{agent}`: {}", advice(shared.suffix.as_deref())))
}

/// Why no tunnel was found, as this caller may know it: who may not call an agent is not told whether there is one.
fn explain(error: DialError, shared: &Shared, caller: &Caller, agent: &AgentId, method: &str) -> Status {
    if !caller.may_ask(agent, &shared.registry, method) {
        return caller.denied(agent, method);
    }
    match error {
        DialError::NotConnected { .. } => unknown(agent, shared, method),
        error => error.into(),
    }
}

fn remove_own_metadata(headers: &mut HeaderMap) {
    let own: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with(OWN_METADATA)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// Serves a call by the gateway's own services.
async fn serve_here(
    shared: &Shared,
    caller: Caller,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    deadline: Option<Instant>,
) {
    let mut request = request.map(|stream| Body::new(ReceivedBody::new(stream)));
    request.extensions_mut().insert(caller);
    let Some(service) = shared.services.find(request.uri().path()) else { return }; // it was found before
    let stall = shared.settings.stall;
    let answer = tokio::select! {
        biased;
        answer = service(request) => answer,
        () = reached(deadline) => return refuse(expired(), &mut respond),
        // Nothing here takes its time but the rest of the request.
        () = sleep(stall) => return refuse(Status::deadline_exceeded("the request is not complete"), &mut respond),
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    give(answer, respond, Clock::new(deadline, None), || 0, stall).await;
}

/// Gives the caller an answer, as fast as it is taken. `moved` is how much of the call has.
async fn give<B>(
    answer: Response<B>,
    mut respond: SendResponse<Bytes>,
    mut clock: Clock,
    moved: impl Fn() -> u64,
    stall: Duration,
) where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = answer.into_parts();
    let Ok(stream) = respond.send_response(Response::from_parts(head, ()), body.is_end_stream()) else { return };
    if body.is_end_stream() {
        return;
    }
    let mut upload = pin!(Upload::new(body, stream));
    let mut before = None;
    let mut look = pin!(sleep(stall));
    loop {
        tokio::select! {
            _ = upload.as_mut() => return,
            why = clock.rings() => match why {
                Rings::Idle if moved() != clock.moved => clock.again(moved()),
                why => return upload.stream().map_or((), |stream| end(stream, &why.status())),
            },
            () = look.as_mut() => {
                look.as_mut().reset(Instant::now() + stall);
                let now = upload.waits();
                if now.is_some() && now == before {
                    // A status would wait behind what is not taken.
                    return upload.stream().map_or((), |stream| stream.send_reset(Reason::ENHANCE_YOUR_CALM));
                }
                before = now;
            }
        }
    }
}

/// A call to an agent.
async fn pass_on(
    placed: Placed,
    deadline: Option<Instant>,
    shared: &Shared,
    mut head: Parts,
    body: Gathered,
    respond: SendResponse<Bytes>,
) {
    let Placed { call, way } = placed;
    let (lease, sender) = match way {
        Way::Http2 { lease, sender } => (lease, sender),
        #[cfg(feature = "grpctunnel")]
        Way::Own { channel, caller } => {
            let own = own::Own { call, _channel: channel, deadline, shared };
            return own.run(&caller, head, body, respond).await;
        }
    };
    let session = call.session();
    head.uri = address(head.uri, Scheme::HTTP, &session.authority);
    let exchange = Exchange {
        lease,
        sender,
        callee: "the agent",
        deadline,
        idle: shared.settings.idle,
        stall: shared.settings.stall,
        held: &shared.held,
        trailers: remove_own_metadata,
        failed: |error| failed(session, error),
    };
    exchange.run(head, body, respond).await;
}
