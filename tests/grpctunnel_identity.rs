//! Who gets in by `grpctunnel.v1` where an id is held already, and how an opener learns that it does not.
#![cfg(feature = "grpctunnel")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::echo::{Echo, payload, pb::echo_client::EchoClient};
use common::faults::until;
use common::proxy::{Proxy, Way};
use common::rig::{AGENT, soon};
use common::tunnels::Tunnels;
use dialback::grpctunnel::{OpenError, ReverseTunnel, TunnelBuilder};
use dialback::{AgentStatus, CloseReason, Grant, Hub, HubEvent, TunnelPolicy, tune_endpoint};
use tokio::net::TcpListener;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

const SECOND: Duration = Duration::from_secs(1);

/// Whoever has a token is [`AGENT`].
fn anybody(carrier: &Request<()>) -> Result<(dialback::AgentId, Grant), Status> {
    let token = carrier.metadata().get("authorization").ok_or_else(|| Status::unauthenticated("no token"))?;
    assert!(token.to_str().is_ok_and(|token| token.starts_with("Bearer ")));
    Ok((AGENT.parse().expect("an id"), Grant::new()))
}

/// The same, who are all of one fleet.
fn fleet(carrier: &Request<()>) -> Result<(dialback::AgentId, Grant), Status> {
    anybody(carrier).map(|(agent, grant)| (agent, grant.holder("fleet 1")))
}

async fn open(at: SocketAddr, token: &str) -> Result<ReverseTunnel, OpenError> {
    open_within(10 * SECOND, at, token).await
}

async fn open_within(limit: Duration, at: SocketAddr, token: &str) -> Result<ReverseTunnel, OpenError> {
    let endpoint = tune_endpoint(Endpoint::try_from(format!("http://{at}")).expect("a URL"));
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {token}").parse().expect("a value"));
    let pause = Duration::from_secs(600); // what is lost stays away
    let tunnel = TunnelBuilder::new(AGENT, endpoint.connect().await.expect("connect")).metadata(metadata);
    let tunnel = tunnel.backoff(pause, pause, pause).establishment_timeout(limit);
    soon("the hub's answer", tunnel.reverse(Routes::new(Echo::default().service()))).await
}

async fn call(hub: &Hub) {
    let answer = soon("an answer", EchoClient::new(hub.channel(AGENT).unwrap()).unary(payload("on"))).await;
    assert_eq!(answer.unwrap().into_inner(), payload("on"));
}

fn refusal(opened: Result<ReverseTunnel, OpenError>) -> String {
    match opened {
        Err(OpenError::Refused(status)) if status.code() == Code::FailedPrecondition => status.message().to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_token_is_refused_while_the_first_lives() {
    let tunnels = Tunnels::start_with(|service| service.identify(anybody)).await;
    let hub = &tunnels.hub;
    let first = open(tunnels.address, "one").await.unwrap();
    let held = soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let mut events = hub.events();

    let refused = refusal(open(tunnels.address, "two").await);

    assert!(refused.contains("another key or token"), "{refused}");
    let rejected = async {
        loop {
            if let HubEvent::Rejected { reason, .. } = events.next().await.expect("no gap") {
                return reason;
            }
        }
    };
    assert_eq!(soon("the event", rejected).await, refused);
    until("it is gone", || hub.tunnels().len() == 1).await;
    assert_eq!(hub.get(AGENT).map(|tunnel| tunnel.id()), Some(held.id()));
    assert!(first.status().borrow().is_connected());
    call(hub).await;

    // The same token stands beside the first; without them the other gets in.
    let beside = open(tunnels.address, "one").await.unwrap();
    until("both of them", || hub.tunnels().len() == 2).await;
    drop((first, beside));
    until("none", || hub.tunnels().is_empty()).await;
    let _second = open(tunnels.address, "two").await.unwrap();
    soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    call(hub).await;
}

/// A tunnel that says nothing any more does not keep others out, and one with the same token is let in at once.
#[tokio::test(flavor = "multi_thread")]
async fn dead_tunnel_holds_nothing() {
    for (token, at_once) in [("one", true), ("two", false)] {
        let tunnels = Tunnels::start_with(|service| service.identify(anybody)).await;
        let hub = &tunnels.hub;
        let proxy = Proxy::to(tunnels.address).await;
        let _lost = open(proxy.address(), "one").await.unwrap();
        let lost = soon("the agent", hub.wait_for(AGENT)).await.unwrap();
        call(hub).await;
        proxy.stall(Way::Both);

        let _new = open(tunnels.address, token).await.unwrap();

        let gone = lost.disconnected().borrow().clone();
        assert_eq!(gone.is_none(), at_once, "with the token {token}: {gone:?}");
        assert!(gone.is_none_or(|gone| gone.reason == CloseReason::KeepaliveTimeout));
        until("the new one", || hub.get(AGENT).is_some_and(|tunnel| tunnel.id() != lost.id())).await;
        call(hub).await;
    }
}

/// A hub that waits for a sign of life from who is in the way does so whether the newcomer waits or not.
#[tokio::test(flavor = "multi_thread")]
async fn dead_tunnel_is_found_out_for_who_has_no_patience() {
    let tunnels = Tunnels::start_with(|service| service.identify(anybody)).await;
    let proxy = Proxy::to(tunnels.address).await;
    let _lost = open(proxy.address(), "one").await.unwrap();
    let lost = soon("the agent", tunnels.hub.wait_for(AGENT)).await.unwrap();
    proxy.stall(Way::Both);

    let error = open_within(SECOND, tunnels.address, "two").await.unwrap_err();

    assert!(matches!(error, OpenError::TimedOut { .. }), "{error}");
    assert_eq!(soon("the end of the dead one", lost.closed()).await.reason, CloseReason::KeepaliveTimeout);
    let _new = open(tunnels.address, "two").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn grant_says_who_holds_an_id() {
    let tunnels = Tunnels::start_with(|service| service.identify(fleet)).await;
    let _first = open(tunnels.address, "one").await.unwrap();
    let _second = open(tunnels.address, "two").await.unwrap();
    until("both of them", || tunnels.hub.tunnels().len() == 2).await;
}

/// Whatever the hub knows before it answers, the opener is told as an error.
#[tokio::test(flavor = "multi_thread")]
async fn tunnel_that_is_not_wanted_is_not_opened() {
    let tunnels = Tunnels::start_with(|service| service.identify(anybody)).await;
    let mut all = Vec::new();
    for _ in 0..16 {
        all.push(open(tunnels.address, "one").await.unwrap());
    }
    let refused = refusal(open(tunnels.address, "one").await);
    assert!(refused.contains("16 tunnels already"), "{refused}");

    let hub = Hub::builder(dialback::PrivateKey::generate()).authorizer(dialback::AllowedKeys::new());
    let hub = hub.tunnel_policy(TunnelPolicy::Reject).bind("127.0.0.1:0").await.unwrap();
    let tunnels = Tunnels::start_with(|service| service.reverse(&hub).identify(anybody)).await;
    let _first = open(tunnels.address, "one").await.unwrap();
    soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let refused = refusal(open(tunnels.address, "one").await);
    assert!(refused.contains("allows one"), "{refused}");
    call(&hub).await;
}

/// What a peer makes up its mind about after it has answered is no error of the opening any more.
#[tokio::test(flavor = "multi_thread")]
async fn refusal_after_the_answer_is_told_by_the_status() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
        while let Some(request) = connection.accept().await {
            let (_, mut respond) = request.unwrap();
            let answer = http::Response::builder().header("content-type", "application/grpc");
            let mut stream = respond.send_response(answer.body(()).unwrap(), false).unwrap();
            let trailers = [("grpc-status", "9"), ("grpc-message", "not today")];
            let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            stream.send_trailers(trailers.into_iter().collect()).unwrap();
        }
    });

    let tunnel = open(at, "one").await.unwrap();

    let mut status = tunnel.status();
    let told = status.wait_for(|status| match status {
        AgentStatus::Connecting { last_error: Some(error), .. } => error.contains("not today"),
        AgentStatus::Disconnected { why } => why.to_string().contains("not today"),
        _ => false,
    });
    soon("the reason", told).await.unwrap();
}

/// Lets in who has the token `good`.
struct Good;

#[tonic::async_trait]
impl dialback::Authorizer for Good {
    async fn authorize(&self, claim: &dialback::Claim) -> Result<Grant, dialback::Denied> {
        match &claim.credential {
            dialback::Credential::Metadata(metadata)
                if metadata.get("authorization").is_some_and(|token| token == "Bearer good") =>
            {
                Ok(Grant::new())
            }
            _ => Err(dialback::Denied::Other("no such token".into())),
        }
    }
}

/// A hub that listens for gRPC itself, with a proxy before it that tells how many connections stand.
async fn listening() -> (Hub, Proxy) {
    let hub = Hub::builder(dialback::PrivateKey::generate()).authorizer(Good);
    let hub = hub.max_auth_attempts(2).rejection_time(SECOND / 100).login_timeout(SECOND).start().expect("a hub");
    let at = hub.listen("grpc://127.0.0.1:0").await.expect("it listens");
    let at = at.strip_prefix("grpc://").expect("a URL").parse().expect("an address");
    (hub, Proxy::to(at).await)
}

fn by(channel: &tonic::transport::Channel, token: &str) -> TunnelBuilder {
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {token}").parse().expect("a value"));
    TunnelBuilder::new(AGENT, channel.clone()).metadata(metadata)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_tokens_is_sent_away() {
    let (_hub, proxy) = listening().await;
    let endpoint = Endpoint::try_from(format!("http://{}", proxy.address())).expect("a URL");
    let channel = tune_endpoint(endpoint).connect().await.expect("connect");
    let routes = || Routes::new(Echo::default().service());
    for guess in ["bad", "worse"] {
        let refused = soon("an answer", by(&channel, guess).reverse(routes())).await.expect_err("no such token");
        assert!(
            matches!(&refused, OpenError::Refused(status) if status.code() == Code::PermissionDenied),
            "{refused:?}"
        );
    }
    let mut open = proxy.open();
    soon("the end of the connection", open.wait_for(|open| *open == 0)).await.expect("the proxy lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_without_a_tunnel_ends() {
    let (hub, proxy) = listening().await;
    let endpoint = Endpoint::try_from(format!("http://{}", proxy.address())).expect("a URL");
    let channel = tune_endpoint(endpoint).connect().await.expect("connect");
    let agent = soon("the tunnel", by(&channel, "good").reverse(Routes::new(Echo::default().service()))).await.unwrap();
    soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    // For longer than a login may take.
    tokio::time::sleep(3 * SECOND / 2).await;
    call(&hub).await;

    agent.shutdown(SECOND).await;

    let mut open = proxy.open();
    soon("the end of the connection", open.wait_for(|open| *open == 0)).await.expect("the proxy lives");
    drop(channel);
}
