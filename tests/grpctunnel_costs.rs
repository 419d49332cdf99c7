//! What one call, one reader or one agent on its way out costs the others.
#![cfg(feature = "grpctunnel")]

mod common;

use std::time::Duration;

use common::echo::{Echo, payload, pb::echo_client::EchoClient, steered};
use common::faults::until;
use common::rig::{AGENT, soon};
use common::tunnels::{Tunnels, builder};
use dialback::CloseReason;
use tonic::service::Routes;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_may_have_all_the_time_there_is() {
    let tunnels = Tunnels::start().await;
    let tunnel = tunnels.forward().await;
    soon("the hub's end", tunnels.hub.shutdown(Duration::MAX)).await;
    soon("the service's end", tunnels.service.shutdown(Duration::MAX)).await;
    drop(tunnel);
}

/// A call whose metadata are too large for the carrier fails alone.
#[tokio::test(flavor = "multi_thread")]
async fn large_metadata_cost_one_call() {
    let tunnels = Tunnels::start().await;
    let echo = Echo::default();
    let _agent = tunnels.reverse(&echo).await;
    let held = tunnels.hub.get(AGENT).unwrap();
    let large = "x".repeat(5 << 20);
    let mut other = EchoClient::new(tunnels.hub.channel(AGENT).unwrap());
    let other = tokio::spawn(async move { other.unary(steered(payload("on"), &[("echo-delay-ms", "1000")])).await });
    echo.wait_until("a call", |counts| counts.running() == 1).await;
    let mut client = EchoClient::new(tunnels.hub.channel(AGENT).unwrap());
    let failed = soon("an answer", client.unary(steered(payload(""), &[("x-large", &large)]))).await;
    assert_eq!(failed.unwrap_err().code(), tonic::Code::ResourceExhausted);
    let other = soon("the other", other).await.unwrap();
    assert!(other.is_ok(), "{other:?} and the tunnel: {:?}", held.disconnected().borrow());
}

/// The same of a handler's status.
#[tokio::test(flavor = "multi_thread")]
async fn large_status_costs_one_call() {
    use common::echo::pb::{Payload, echo_server};
    use tonic::{Request, Response, Status, Streaming};

    struct Talks;
    type Answers = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<Payload, Status>> + Send>>;
    #[tonic::async_trait]
    impl echo_server::Echo for Talks {
        type DownloadStream = Answers;
        type ChatStream = Answers;
        async fn unary(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
            if request.into_inner().data.is_empty() {
                return Err(Status::internal("x".repeat(5 << 20)));
            }
            tokio::time::sleep(SECOND).await;
            Ok(Response::new(payload("on")))
        }
        async fn download(&self, _: Request<Payload>) -> Result<Response<Answers>, Status> {
            Err(Status::unimplemented(""))
        }
        async fn upload(&self, _: Request<Streaming<Payload>>) -> Result<Response<Payload>, Status> {
            Err(Status::unimplemented(""))
        }
        async fn chat(&self, _: Request<Streaming<Payload>>) -> Result<Response<Answers>, Status> {
            Err(Status::unimplemented(""))
        }
    }
    let tunnels = Tunnels::start().await;
    let routes = Routes::new(echo_server::EchoServer::new(Talks));
    let _agent = builder(tunnels.dial().await).reverse(routes).await.unwrap();
    let held = soon("the agent", tunnels.hub.wait_for(AGENT)).await.unwrap();
    let mut other = EchoClient::new(tunnels.hub.channel(AGENT).unwrap());
    let other = tokio::spawn(async move { other.unary(payload("slow")).await });
    tokio::time::sleep(SECOND / 5).await;
    let mut client = EchoClient::new(tunnels.hub.channel(AGENT).unwrap());
    let failed = soon("an answer", client.unary(payload(""))).await;
    assert_eq!(failed.unwrap_err().code(), tonic::Code::ResourceExhausted);
    let other = soon("the other", other).await.unwrap();
    assert!(other.is_ok(), "{other:?} and the tunnel: {:?}", held.disconnected().borrow());
}

/// A tunnel without windows that waits for a slow reader lives.
#[tokio::test(flavor = "multi_thread")]
async fn slow_reader_of_revision_zero_does_not_make_its_tunnel_dead() {
    let tunnels = Tunnels::start().await;
    let echo = Echo::default();
    let _first = builder(tunnels.dial().await).newest_revision(0).reverse(Routes::new(echo.service())).await.unwrap();
    let held = soon("the agent", tunnels.hub.wait_for(AGENT)).await.unwrap();
    let mut client = EchoClient::new(held.channel());
    let steering = [("echo-count", "100000"), ("echo-size", "10000")];
    let mut answers = client.download(steered(payload(""), &steering)).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    tokio::time::sleep(3 * SECOND).await; // it is full
    let _second = builder(tunnels.dial().await).reverse(Routes::new(Echo::default().service())).await.unwrap();
    until("both", || tunnels.hub.tunnels().len() == 2).await;
    tokio::time::sleep(7 * SECOND).await;
    let gone = held.disconnected().borrow().clone();
    assert!(gone.is_none(), "{:?}", gone.map(|gone| gone.reason == CloseReason::KeepaliveTimeout));
    answers.message().await.unwrap().unwrap();
}

/// What a drain is for: others do the work meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn agent_that_drains_is_not_called_where_there_is_another() {
    let tunnels = Tunnels::start().await;
    let (one, two) = (Echo::default(), Echo::default());
    let first = builder(tunnels.dial().await).reverse(Routes::new(one.service())).await.unwrap();
    let held = soon("the agent", tunnels.hub.wait_for(AGENT)).await.unwrap();
    let mut client = EchoClient::new(held.channel());
    let slow = tokio::spawn(async move { client.unary(steered(payload("slow"), &[("echo-delay-ms", "3000")])).await });
    one.wait_until("a call", |counts| counts.running() == 1).await;
    let _second = builder(tunnels.dial().await).reverse(Routes::new(two.service())).await.unwrap();
    until("both", || tunnels.hub.tunnels().len() == 2).await;
    tokio::time::sleep(SECOND / 5).await;
    let busy = tunnels.hub.tunnels().into_iter().find(|tunnel| tunnel.id() != held.id()).unwrap();
    let mut client = EchoClient::new(busy.channel());
    let _held = [
        client.download(steered(payload(""), &[("echo-hang", "1")])).await,
        client.download(steered(payload(""), &[("echo-hang", "1")])).await,
    ];
    let draining = tokio::spawn(async move { first.shutdown(10 * SECOND).await });
    tokio::time::sleep(SECOND / 2).await;
    let mut failed = 0;
    for _ in 0..40 {
        let answer = EchoClient::new(tunnels.hub.channel(AGENT).unwrap()).unary(payload("on")).await;
        failed += usize::from(answer.is_err());
    }
    slow.await.unwrap().unwrap();
    draining.await.unwrap();
    assert!(failed <= 1, "{failed} of 40");
}

/// A shutdown without grace does not wait for who is asked whether he lives.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_without_grace_is_quick() {
    use common::proxy::{Proxy, Way};
    use dialback::{Grant, tune_endpoint};
    let tunnels = Tunnels::start_with(|service| {
        service.identify(|carrier| {
            assert!(carrier.metadata().get("authorization").is_some());
            Ok((AGENT.parse().unwrap(), Grant::new()))
        })
    })
    .await;
    let open = async |at: std::net::SocketAddr, token: &str| {
        let endpoint = tune_endpoint(tonic::transport::Endpoint::try_from(format!("http://{at}")).unwrap());
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert("authorization", token.parse().unwrap());
        dialback::grpctunnel::TunnelBuilder::new(AGENT, endpoint.connect().await.unwrap())
            .metadata(metadata)
            .reverse(Routes::new(Echo::default().service()))
            .await
    };
    let proxy = Proxy::to(tunnels.address).await;
    let _lost = open(proxy.address(), "one").await.unwrap();
    soon("the agent", tunnels.hub.wait_for(AGENT)).await.unwrap();
    proxy.stall(Way::Both);
    let address = tunnels.address;
    let _second = tokio::spawn(async move { open(address, "two").await.map(drop) });
    until("both", || tunnels.hub.tunnels().len() == 2).await;
    let began = std::time::Instant::now();
    tunnels.hub.shutdown(Duration::ZERO).await;
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
}
