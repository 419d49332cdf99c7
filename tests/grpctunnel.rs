//! Tunnels of `grpctunnel.v1` with both ends ours: who they belong to, what handlers and callers learn, and how they end.
#![cfg(feature = "grpctunnel")]

mod common;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use common::echo::{Counts, Echo, payload, pb::echo_client::EchoClient, steered};
use common::faults::until;
use common::proxy::{Cut, Proxy};
use common::rig::{AGENT, soon};
use common::tunnels::{Tunnels, builder, service};
use dialback::grpctunnel::{Carrier, OpenError, TunnelBuilder, TunnelService};
use dialback::{
    AgentStatus, AllowedKeys, Authorizer, CarrierKind, Claim, CloseReason, Credential, Denied, Grant, Hub, HubEvent,
    PrivateKey, TunnelConnectInfo, TunnelId, TunnelPolicy, tune_endpoint, tune_server,
};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Status};
use tower::Service;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn reverse_tunnel_is_one_of_the_hubs() {
    let tunnels = Tunnels::start().await;
    let mut events = tunnels.hub.events();
    let echo = Echo::default();
    let agent = tunnels.reverse(&echo).await;

    let opened = soon("an event", events.next()).await.expect("no gap");
    let HubEvent::Opened { agent_id, .. } = &opened else { panic!("{opened:?}") };
    assert_eq!(agent_id.as_str(), AGENT);
    assert!(matches!(soon("an event", events.next()).await.expect("no gap"), HubEvent::Ready { .. }));
    let info = tunnels.hub.get(AGENT).expect("it is there").info();
    assert_eq!((info.carrier, info.label("site")), (CarrierKind::Grpc, Some("lab")));
    assert!(info.peer_addr.expect("an address").ip().is_loopback());
    assert_eq!(tunnels.hub.tunnels().len(), 1);

    // A call is told which tunnel took it.
    let response = EchoClient::new(tunnels.hub.channel(AGENT).unwrap()).unary(payload("hello")).await.unwrap();
    assert_eq!(response.extensions().get::<TunnelId>(), Some(&info.tunnel_id));
    // It has no channels to open.
    let error = tunnels.hub.connector(AGENT).unwrap().dial().await.unwrap_err();
    assert!(error.to_string().contains("use a channel"), "{error}");

    let began = Instant::now();
    agent.shutdown(10 * SECOND).await;
    assert!(began.elapsed() < SECOND, "an idle tunnel is closed at once, not after {:?}", began.elapsed());
    let closed = soon("an event", events.next()).await.expect("no gap");
    assert!(
        matches!(&closed, HubEvent::Closed { why, .. } if matches!(why.reason, CloseReason::ClosedByPeer { .. })),
        "{closed:?}"
    );
    assert!(matches!(*agent.status().borrow(), AgentStatus::Stopped));
    let error = EchoClient::new(tunnels.hub.channel(AGENT).unwrap()).unary(payload("")).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_being_known() {
    let tunnels = Tunnels::start().await;
    let echo = Echo::default();
    let stranger = |carrier| TunnelBuilder::new(AGENT, carrier);
    for error in [
        stranger(tunnels.dial().await).forward().await.err(),
        stranger(tunnels.dial().await).reverse(Routes::new(echo.service())).await.err(),
    ] {
        let Some(OpenError::Refused(status)) = error else { panic!("{error:?}") };
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "no such token"));
    }
    let error = TunnelBuilder::new("no id at all!", tunnels.dial().await).forward().await.unwrap_err();
    assert!(matches!(error, OpenError::InvalidAgentId(_)), "{error}");
    assert!(tunnels.hub.tunnels().is_empty());
}

/// A hub's authorizer that knows tokens.
struct Tokens;

#[async_trait::async_trait]
impl Authorizer for Tokens {
    async fn authorize(&self, claim: &Claim) -> Result<Grant, Denied> {
        match &claim.credential {
            Credential::Metadata(metadata) if metadata.get("x-token").is_some_and(|token| token == AGENT) => {
                Ok(Grant::new())
            }
            _ => Err(Denied::Other("no such token".into())),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hubs_authorizer_judges_by_metadata_and_those_for_keys_refuse() {
    let host = PrivateKey::generate();
    let echo = Echo::default();
    let hub = Hub::builder(host.clone()).authorizer(Tokens).bind("127.0.0.1:0").await.unwrap();
    let strict = Hub::builder(host).authorizer(AllowedKeys::new()).bind("127.0.0.1:0").await.unwrap();
    for (hub, token, known) in [(&hub, AGENT, true), (&hub, "other", false), (&strict, AGENT, false)] {
        let service = TunnelService::builder().reverse(hub).build();
        let address = serve(service).await;
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert("x-token", token.parse().unwrap());
        let carrier = dial(address).await;
        let opened = TunnelBuilder::new(AGENT, carrier).metadata(metadata).reverse(Routes::new(echo.service())).await;
        match opened {
            Ok(_tunnel) => {
                assert!(known);
                soon("the agent", hub.wait_for(AGENT)).await.unwrap();
            }
            Err(OpenError::Refused(status)) => {
                assert!(!known);
                assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "not authorized"));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn serve<S>(service: S) -> std::net::SocketAddr
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(tune_server(Server::builder()).add_service(service).serve_with_incoming(incoming));
    address
}

async fn dial(address: std::net::SocketAddr) -> tonic::transport::Channel {
    tune_endpoint(Endpoint::try_from(format!("http://{address}")).unwrap()).connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn directions_that_are_not_offered_are_refused() {
    let echo = Echo::default();
    let host = PrivateKey::generate();
    let hub = Hub::builder(host).authorizer(AllowedKeys::new()).no_reverse().bind("127.0.0.1:0").await.unwrap();
    let tunnels = Tunnels::start().await;
    for (address, text) in [
        (serve(service(&hub, &echo).build()).await, "reverse tunnels not supported"),
        (
            serve(TunnelService::builder().routes(Routes::new(echo.service())).build()).await,
            "reverse tunnels not supported",
        ),
        (serve(TunnelService::builder().reverse(&tunnels.hub).build()).await, "forward tunnels not supported"),
    ] {
        let builder = builder(dial(address).await);
        let refused = match text.starts_with("forward") {
            true => builder.forward().await.err(),
            false => builder.reverse(Routes::new(echo.service())).await.err(),
        };
        let Some(OpenError::Refused(status)) = refused else { panic!("{refused:?}") };
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, text));
    }
}

/// Keeps what it finds in the requests to an echo.
#[derive(Clone)]
struct Spy<S> {
    echo: S,
    seen: Arc<Mutex<Vec<http::Extensions>>>,
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Spy<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.echo.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        self.seen.lock().unwrap().push(request.extensions().clone());
        self.echo.call(request)
    }
}

impl<S: NamedService> NamedService for Spy<S> {
    const NAME: &'static str = S::NAME;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_learn_whose_tunnel_it_is_and_what_it_was_opened_with() {
    let seen = Arc::<Mutex<Vec<http::Extensions>>>::default();
    let spy = Spy { echo: Echo::default().service(), seen: seen.clone() };
    let tunnels = Tunnels::start_with(|service| service.routes(Routes::new(spy))).await;
    let tunnel = tunnels.forward().await;

    EchoClient::new(tunnel.channel()).unary(payload("")).await.unwrap();

    let extensions = seen.lock().unwrap().pop().expect("a request");
    let info = extensions.get::<TunnelConnectInfo>().expect("whose it is");
    assert_eq!(info.agent_id.as_str(), AGENT);
    let carrier = extensions.get::<Carrier>().expect("the carrier");
    assert_eq!(carrier.tunnel_id(), info.tunnel_id);
    assert!(carrier.metadata().contains_key("authorization") && !format!("{carrier:?}").contains("Bearer"));
    assert!(carrier.peer_addr().expect("an address").ip().is_loopback());
}

/// A service that answers HTTP and not gRPC, as a proxy in front of one does.
#[derive(Clone)]
struct Plain(http::StatusCode);

impl Service<http::Request<Body>> for Plain {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        let mut response = http::Response::new(Body::empty());
        *response.status_mut() = self.0;
        std::future::ready(Ok(response))
    }
}

impl NamedService for Plain {
    const NAME: &'static str = "dialback.echo.v1.Echo";
}

#[tokio::test(flavor = "multi_thread")]
async fn http_statuses_become_the_codes_that_grpc_has_for_them() {
    for (status, code) in [(404, Code::Unimplemented), (503, Code::Unavailable), (418, Code::Unknown)] {
        let plain = Plain(http::StatusCode::from_u16(status).unwrap());
        let tunnels = Tunnels::start_with(|service| service.routes(Routes::new(plain))).await;
        let tunnel = tunnels.forward().await;
        let answer = EchoClient::new(tunnel.channel()).unary(payload("")).await.unwrap_err();
        assert_eq!(answer.code(), code, "{answer:?}");
        assert!(answer.message().contains(&status.to_string()), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn message_beyond_the_limit_fails_its_call_alone() {
    let tunnels = Tunnels::start_with(|service| service.max_message(1 << 20)).await;
    let tunnel = builder(tunnels.dial().await).max_message(1 << 20).forward().await.unwrap();
    let mut echo = EchoClient::new(tunnel.channel()).max_decoding_message_size(8 << 20);
    let mut standing = echo.chat(steered(tokio_stream::pending(), &[])).await.unwrap().into_inner();

    let error = soon("an end", echo.unary(payload(vec![0; 2 << 20]))).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let steering = [("echo-size", "2000000")];
    let mut large = echo.download(steered(payload(""), &steering)).await.unwrap().into_inner();
    let error = soon("an end", large.message()).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");

    assert_eq!(soon("an answer", echo.unary(payload("still"))).await.unwrap().into_inner(), payload("still"));
    assert!(tokio::time::timeout(SECOND / 5, standing.message()).await.is_err(), "the other call has ended");
}

/// A peer that says nothing after its headers, or nothing at all.
#[tokio::test(flavor = "multi_thread")]
async fn peer_that_does_not_set_up_the_tunnel_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::try_from(format!("http://{}", silent.local_addr().unwrap())).unwrap();
    let builder = TunnelBuilder::new(AGENT, endpoint.connect_lazy()).establishment_timeout(SECOND / 2);
    let error = soon("the end of patience", builder.forward()).await.unwrap_err();
    assert!(matches!(error, OpenError::TimedOut { after } if after == SECOND / 2), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_carrier_ends_calls_at_once_and_the_agent_comes_back() {
    let tunnels = Tunnels::start().await;
    let proxy = Proxy::to(tunnels.address).await;
    let echo = Echo::default();
    let pause = Duration::from_millis(20);
    let carrier = dial(proxy.address()).await;
    let agent = builder(carrier).backoff(pause, pause, SECOND).reverse(Routes::new(echo.service())).await.unwrap();
    soon("the agent", tunnels.hub.wait_for(AGENT)).await.unwrap();
    let channel = tunnels.hub.channel(AGENT).unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let mut client = EchoClient::new(channel.clone());
        calls.spawn(async move { client.unary(steered(payload(""), &[("echo-hang", "1")])).await });
    }
    echo.wait_until("a hundred calls", |counts| counts.running() == 100).await;

    let cut = Instant::now();
    proxy.cut(Cut::Reset);
    for result in soon("the end of all", calls.join_all()).await {
        let status: Status = result.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains(AGENT), "{status}");
    }
    assert!(cut.elapsed() < SECOND, "{:?}", cut.elapsed());
    echo.wait_until("the end of the handlers", |counts| counts.running() == 0).await;
    soon("the agent's return", tunnels.hub.wait_for(AGENT)).await.unwrap();
    assert!(cut.elapsed() < 3 * SECOND, "{:?}", cut.elapsed());
    let answer = soon("an answer", EchoClient::new(channel).unary(payload("again"))).await.unwrap();
    assert_eq!(answer.into_inner(), payload("again"));
    drop(agent);
    until("the hub has seen it go", || tunnels.hub.tunnels().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_calls_finish_on_either_side() {
    for agents in [true, false] {
        let tunnels = Tunnels::start().await;
        let echo = Echo::default();
        let agent = tunnels.reverse(&echo).await;
        let mut client = EchoClient::new(tunnels.hub.channel(AGENT).unwrap());
        let slow = tokio::spawn(async move {
            client.unary(steered(payload("slow"), &[("echo-delay-ms", "700")])).await.map(|answer| answer.into_inner())
        });
        echo.wait_until("a call", |counts| counts.running() == 1).await;
        if agents {
            let (ended, refused) = tokio::join!(agent.shutdown(10 * SECOND), async {
                tokio::time::sleep(SECOND / 5).await;
                EchoClient::new(tunnels.hub.channel(AGENT).unwrap()).unary(payload("")).await
            });
            let () = ended;
            assert_eq!(refused.unwrap_err().code(), Code::Unavailable, "a call after the shutdown began");
        } else {
            soon("the hub's end", tunnels.hub.shutdown(10 * SECOND)).await;
        }
        assert_eq!(slow.await.unwrap().unwrap(), payload("slow"), "agent's shutdown: {agents}");
        assert_eq!(echo.counts(), Counts { started: 1, finished: 1, cancelled: 0 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_tunnels_make_a_pool_and_policies_hold() {
    let tunnels = Tunnels::start().await;
    let echo = Echo::default();
    let agent = builder(tunnels.dial().await).tunnels(3).reverse(Routes::new(echo.service())).await.unwrap();
    until("all of them", || tunnels.hub.tunnels().len() == 3).await;
    let mut taken = std::collections::HashSet::new();
    for _ in 0..60 {
        let answer = EchoClient::new(tunnels.hub.channel(AGENT).unwrap()).unary(payload("")).await.unwrap();
        taken.insert(*answer.extensions().get::<TunnelId>().unwrap());
    }
    assert!(taken.len() >= 2, "{taken:?}");
    agent.shutdown(SECOND).await;

    let hub = Hub::builder(PrivateKey::generate()).authorizer(AllowedKeys::new()).tunnel_policy(TunnelPolicy::Replace);
    let hub = hub.bind("127.0.0.1:0").await.unwrap();
    let address = serve(service(&hub, &echo).build()).await;
    let first = builder(dial(address).await).backoff(60 * SECOND, 60 * SECOND, SECOND);
    let first = first.reverse(Routes::new(echo.service())).await.unwrap();
    let tunnel = soon("the first", hub.wait_for(AGENT)).await.unwrap();
    let _second = builder(dial(address).await).reverse(Routes::new(echo.service())).await.unwrap();
    let gone = soon("the end of the first", tunnel.closed()).await;
    assert_eq!(gone.reason, CloseReason::Replaced);
    let mut status = first.status();
    soon("its own word", status.wait_for(|status| !status.is_connected())).await.unwrap();

    // The tunnels of one agent are no rivals.
    for policy in [TunnelPolicy::Replace, TunnelPolicy::Reject] {
        let hub = Hub::builder(PrivateKey::generate()).authorizer(AllowedKeys::new()).tunnel_policy(policy);
        let hub = hub.bind("127.0.0.1:0").await.unwrap();
        let address = serve(service(&hub, &echo).build()).await;
        let agent = builder(dial(address).await).tunnels(3).reverse(Routes::new(echo.service())).await.unwrap();
        until("all of them", || hub.tunnels().len() == 3).await;
        tokio::time::sleep(SECOND / 2).await;
        assert_eq!(hub.tunnels().len(), 3, "{policy:?}");
        drop(agent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_ends_forward_tunnels_in_good_order() {
    let tunnels = Tunnels::start().await;
    let echo = Echo::default();
    let service = TunnelService::builder().routes(Routes::new(echo.service())).build();
    let address = serve(service.clone()).await;
    let pause = 60 * SECOND;
    let busy = builder(dial(address).await).backoff(pause, pause, SECOND).forward().await.unwrap();
    let idle = builder(dial(address).await).backoff(pause, pause, SECOND).forward().await.unwrap();
    let mut client = EchoClient::new(busy.channel());
    let slow = tokio::spawn(async move { client.unary(steered(payload("slow"), &[("echo-delay-ms", "500")])).await });
    echo.wait_until("a call", |counts| counts.running() == 1).await;

    soon("the end", service.shutdown(10 * SECOND)).await;

    assert_eq!(slow.await.unwrap().unwrap().into_inner(), payload("slow"));
    let mut status = idle.status();
    soon("the idle one's end", status.wait_for(|status| !status.is_connected())).await.unwrap();
    let error = builder(dial(address).await).forward().await.unwrap_err();
    assert!(matches!(&error, OpenError::Refused(status) if status.code() == Code::Unavailable), "{error}");
    drop(tunnels);
}

/// Who becomes impatient says so with a second, shorter one.
#[tokio::test(flavor = "multi_thread")]
async fn later_shutdown_of_a_server_ends_forward_tunnels_sooner() {
    let echo = Echo::default();
    let service = TunnelService::builder().routes(Routes::new(echo.service())).build();
    let tunnel = builder(dial(serve(service.clone()).await).await).forward().await.unwrap();
    let mut client = EchoClient::new(tunnel.channel());
    let call = tokio::spawn(async move { client.unary(steered(payload(""), &[("echo-hang", "1")])).await });
    echo.wait_until("a call", |counts| counts.running() == 1).await;
    let patient = service.clone();
    let first = tokio::spawn(async move { patient.shutdown(3600 * SECOND).await });

    soon("the second", service.shutdown(SECOND / 10)).await;

    soon("the first", first).await.unwrap();
    assert_eq!(soon("the call's end", call).await.unwrap().unwrap_err().code(), Code::Unavailable);
}

/// A handler whose reader lives on after its answer must hear of the call's end: nothing else would end it.
#[tokio::test(flavor = "multi_thread")]
async fn reader_that_outlives_its_handler_is_told() {
    use common::echo::pb::{Payload, echo_server};
    use tokio_stream::Stream;
    use tonic::{Request, Response, Streaming};

    struct Leaves(tokio::sync::mpsc::Sender<bool>);

    type Answers = std::pin::Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;

    #[tonic::async_trait]
    impl echo_server::Echo for Leaves {
        type DownloadStream = Answers;
        type ChatStream = Answers;

        async fn unary(&self, _: Request<Payload>) -> Result<Response<Payload>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn download(&self, _: Request<Payload>) -> Result<Response<Answers>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn upload(&self, _: Request<Streaming<Payload>>) -> Result<Response<Payload>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn chat(&self, request: Request<Streaming<Payload>>) -> Result<Response<Answers>, Status> {
            let (mut stream, done) = (request.into_inner(), self.0.clone());
            tokio::spawn(async move {
                while let Ok(Some(_)) = stream.message().await {}
                let _ = done.send(true).await;
            });
            tokio::time::sleep(SECOND / 10).await;
            Err(Status::aborted("enough"))
        }
    }

    let (done, mut ended) = tokio::sync::mpsc::channel(1);
    let routes = Routes::new(echo_server::EchoServer::new(Leaves(done)));
    let tunnels = Tunnels::start_with(|service| service.routes(routes)).await;
    let tunnel = tunnels.forward().await;
    let mut echo = EchoClient::new(tunnel.channel());
    let status = soon("the answer", echo.chat(steered(tokio_stream::pending(), &[]))).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(soon("the reader's end", ended.recv()).await, Some(true));
}

#[test]
fn credentials_show_no_secrets() {
    let mut metadata = tonic::metadata::MetadataMap::new();
    metadata.insert("authorization", "Bearer secret".parse().unwrap());
    let claim = Claim::new(AGENT.parse().unwrap(), Credential::Metadata(metadata), None);
    let text = format!("{claim:?}");
    assert!(text.contains("authorization") && !text.contains("secret"), "{text}");
}

/// What a caller sends to a slow agent is taken out of HTTP/2 all the same, which ends a connection for small frames that
/// nobody takes; and the agent has its time, and no more.
#[cfg(feature = "gateway")]
#[tokio::test(flavor = "multi_thread")]
async fn slow_agent_costs_a_gateways_caller_one_call() {
    use dialback::gateway::Gateway;

    let tunnels = Tunnels::start().await;
    let echo = Echo::default();
    let _agent = tunnels.reverse(&echo).await;
    let gateway = Gateway::builder(&tunnels.hub).stall_timeout(2 * SECOND).bind("127.0.0.1:0").await.unwrap();
    let channel = common::gateway::channel(&gateway).await;
    let mut client = EchoClient::new(channel.clone());
    let flood = std::iter::repeat_n(payload("x"), 3_000_000);
    let steering = [("echo-delay-ms", "600000")];
    let mut stuck = client.chat(steered(tokio_stream::iter(flood), &steering)).await.unwrap().into_inner();
    for _ in 0..20 {
        let answer = soon("another call", EchoClient::new(channel.clone()).unary(payload("on"))).await;
        assert_eq!(answer.unwrap().into_inner(), payload("on"));
        tokio::time::sleep(SECOND / 20).await;
    }
    let ended = soon("the end of patience", stuck.message()).await;
    assert!(ended.is_err(), "{ended:?}");
    let answer = soon("another call", EchoClient::new(channel).unary(payload("on"))).await;
    assert_eq!(answer.unwrap().into_inner(), payload("on"));
}
