//! What tunnels of `grpctunnel.v1` keep for readers that are slow: how much that is, who pays for it, and who does not.
#![cfg(feature = "grpctunnel")]

mod common;

use std::time::{Duration, Instant};

use common::echo::pb::{Payload, echo_client::EchoClient};
use common::echo::{Echo, pattern, payload, steered};
use common::rig::{AGENT, soon};
use common::tunnels::{Tunnels, builder};
use dialback::grpctunnel::{AGENT_ID_METADATA, ReverseTunnel, TunnelBuilder, TunnelService};
use dialback::{AllowedKeys, Grant, Hub, HubBuilder, PrivateKey, TunnelChannel, tune_endpoint, tune_server};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status, Streaming};

const SECOND: Duration = Duration::from_secs(1);

/// For what has its time, and only must not take for ever.
async fn eventually<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(60 * SECOND, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// A call, or what it has ended with.
type Download = Result<Streaming<Payload>, Status>;

/// Downloads whose first message was read, and no more.
async fn downloads(channel: &TunnelChannel, calls: usize, count: usize, size: usize) -> Vec<Download> {
    let mut opened = JoinSet::new();
    for _ in 0..calls {
        let mut echo = EchoClient::new(channel.clone());
        opened.spawn(async move {
            let steering = [("echo-count", &*count.to_string()), ("echo-size", &*size.to_string())];
            let mut answers = echo.download(steered(payload(""), &steering)).await?.into_inner();
            let first = answers.message().await?.expect("a message");
            assert_eq!(first.data.len(), size);
            Ok(answers)
        });
    }
    eventually("the first answers", opened.join_all()).await
}

/// Reads the rest: how many messages there were, or what the call ended with.
async fn rest(download: Download) -> Result<usize, Status> {
    let mut answers = download?;
    let mut count = 1;
    while let Some(message) = answers.message().await? {
        assert_eq!(message.data.get(..20), pattern(count, 20).get(..));
        count += 1;
    }
    Ok(count)
}

/// Waits until what is counted stays the same for longer than a tunnel is not read.
async fn settled(mut count: impl FnMut() -> usize) -> usize {
    let mut last = (count(), Instant::now());
    while last.1.elapsed() < 2 * SECOND {
        tokio::time::sleep(SECOND / 50).await;
        if count() != last.0 {
            last = (count(), Instant::now());
        }
    }
    last.0
}

/// Peers that keep to their windows lose no call, however slow all readers are; and what is kept for these is bounded.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_slow_readers_lose_no_call() {
    const CALLS: usize = 200;
    const SIZE: usize = 25_000;
    const COUNT: usize = 32;
    let tunnels = Tunnels::start().await;
    let echo = Echo::default();
    let _agent = tunnels.reverse(&echo).await;
    let slow = downloads(&tunnels.hub.channel(AGENT).unwrap(), CALLS, COUNT, SIZE).await;
    let written = settled(|| echo.answered()).await * SIZE;
    // 64 KiB for each, half of 64 MiB for all, and what their writers have before them: 128 KiB each, and the carrier.
    let most = CALLS * (192 << 10) + (32 << 20) + (16 << 20);
    assert!(written < most, "{written} bytes are kept of {}, and at most {most} should be", CALLS * COUNT * SIZE);
    assert!(written > CALLS * SIZE * 3, "{written} bytes are not enough to tell");

    let mut readers = JoinSet::new();
    slow.into_iter().for_each(|answers| _ = readers.spawn(rest(answers)));
    for read in eventually("the rest", readers.join_all()).await {
        assert_eq!(read.expect("no call is lost"), COUNT);
    }
}

/// A hub whose agents are who they say they are.
async fn hub_with(set: impl FnOnce(HubBuilder) -> HubBuilder) -> (Hub, std::net::SocketAddr) {
    let hub = set(Hub::builder(PrivateKey::generate()).authorizer(AllowedKeys::new()));
    let hub = hub.bind("127.0.0.1:0").await.unwrap();
    let service = TunnelService::builder().reverse(&hub).identify(|carrier| {
        let id = carrier.metadata().get(AGENT_ID_METADATA).expect("an id").to_str().expect("text");
        Ok((id.parse().expect("an id"), Grant::new()))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(tune_server(Server::builder()).add_service(service.build()).serve_with_incoming(incoming));
    (hub, address)
}

async fn agent(hub: &Hub, address: std::net::SocketAddr, id: &str, tunnels: u16, echo: &Echo) -> ReverseTunnel {
    let endpoint = tune_endpoint(Endpoint::try_from(format!("http://{address}")).unwrap());
    let carrier: Channel = endpoint.connect().await.unwrap();
    let agent = TunnelBuilder::new(id, carrier).tunnels(tunnels).reverse(Routes::new(echo.service())).await.unwrap();
    let all = async {
        while hub.tunnels().iter().filter(|tunnel| tunnel.agent_id().as_str() == id).count() < tunnels.into() {
            tokio::time::sleep(SECOND / 100).await;
        }
    };
    soon("all tunnels", all).await;
    soon("one that can be called", hub.wait_for(id)).await.unwrap(); // a hub lists a tunnel before it has settings
    agent
}

/// How many of these have ended because too much was unread.
async fn lost(calls: Vec<Download>, limit: usize) -> usize {
    let mut lost = 0;
    for call in calls {
        match eventually("the rest", rest(call)).await {
            Ok(_) => {}
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                let text = format!("more than {limit} bytes wait to be read, and this call has most of them");
                assert_eq!(status.message(), text);
                lost += 1;
            }
        }
    }
    lost
}

/// One agent gets no more by opening several tunnels, and costs nobody else anything.
#[tokio::test(flavor = "multi_thread")]
async fn agent_that_floods_by_several_tunnels_costs_itself_calls_and_nobody_else() {
    const LIMIT: usize = 1 << 20;
    const CALLS: usize = 30;
    let (hub, address) = hub_with(|hub| hub.max_unread(LIMIT)).await;
    let (echo, other) = (Echo::default(), Echo::default());
    let _flooder = agent(&hub, address, "flooder", 3, &echo).await;
    let _other = agent(&hub, address, "other", 1, &other).await;

    let neighbour = EchoClient::new(hub.channel("other").unwrap());
    let calls = tokio::spawn({
        let mut neighbour = neighbour.clone();
        async move {
            let mut times = Vec::new();
            while times.len() < 150 {
                let began = Instant::now();
                let answer = neighbour.unary(payload("on")).await.expect("its calls go on");
                assert_eq!(answer.into_inner(), payload("on"));
                times.push(began.elapsed());
                tokio::time::sleep(SECOND / 50).await;
            }
            times.sort();
            times
        }
    });
    // Each is 64 KiB and more, so that together they are twice as much as may be.
    let slow = downloads(&hub.channel("flooder").unwrap(), CALLS, 10, 20_000).await;
    settled(|| echo.answered() + echo.counts().running()).await;
    let times = eventually("the neighbour's calls", calls).await.expect("no panic");
    assert!(times[times.len() / 2] < SECOND / 2, "{:?} is the neighbour's median", times[times.len() / 2]);

    assert_eq!(hub.tunnels().len(), 4, "a tunnel was lost");
    let lost = lost(slow, LIMIT).await;
    assert!((10..=CALLS - 10).contains(&lost), "{lost} calls were lost");
    let answer = EchoClient::new(hub.channel("flooder").unwrap()).unary(payload("on")).await;
    assert_eq!(answer.expect("it is still called").into_inner(), payload("on"));
}

/// What a forward tunnel and one that this side opens may keep is what it was set to.
#[tokio::test(flavor = "multi_thread")]
async fn bound_of_a_tunnel_is_the_one_that_was_set() {
    const LIMIT: usize = 300_000;
    let tunnels = Tunnels::start_with(|service| service.max_unread(LIMIT)).await;
    let forward = builder(tunnels.dial().await).max_unread(LIMIT).forward().await.unwrap();

    // Down: this side does not read.
    let slow = downloads(&forward.channel(), 10, 10, 20_000).await;
    settled(|| tunnels.echo.answered() + tunnels.echo.counts().running()).await;
    let lost = lost(slow, LIMIT).await;
    assert!((2..=8).contains(&lost), "{lost} of ten calls were lost");

    // Up: the server does not.
    let mut uploads = JoinSet::new();
    for _ in 0..10 {
        let mut echo = EchoClient::new(forward.channel());
        uploads.spawn(async move {
            let messages = tokio_stream::iter((0..10).map(|n| payload(pattern(n, 20_000))));
            let mut answers = echo.chat(steered(messages, &[("echo-delay-ms", "3000")])).await?.into_inner();
            answers.message().await
        });
    }
    let ended = eventually("the ends", uploads.join_all()).await;
    let lost = ended.iter().filter(|end| end.is_err()).count();
    assert!((2..=8).contains(&lost), "{lost} of ten calls were lost: {ended:?}");
    for status in ended.into_iter().filter_map(Result::err) {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    }
}

/// A tunnel takes as many calls as it was set to, whoever opened it; more are refused, and make room for none.
#[tokio::test(flavor = "multi_thread")]
async fn tunnel_takes_as_many_calls_at_once_as_it_was_set_to() {
    let tunnels = Tunnels::start_with(|service| service.max_calls(2)).await;
    let forward = tunnels.forward().await;
    let echo = Echo::default();
    let reverse = builder(tunnels.dial().await).max_calls(2).reverse(Routes::new(echo.service())).await.unwrap();
    soon("the agent", tunnels.hub.wait_for(AGENT)).await.unwrap();
    for (channel, echo) in [(forward.channel(), &tunnels.echo), (tunnels.hub.channel(AGENT).unwrap(), &echo)] {
        let mut client = EchoClient::new(channel);
        let hang = || steered(tokio_stream::pending(), &[]);
        let (first, second) = (client.chat(hang()).await.unwrap(), client.chat(hang()).await.unwrap());
        for _ in 0..3 {
            let status = soon("a refusal", client.unary(payload("third"))).await.unwrap_err();
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert_eq!(status.message(), "the tunnel has 2 calls already");
        }
        assert_eq!(echo.counts().started, 2, "a call that is refused reaches no handler");
        drop(first);
        echo.wait_until("the end of one", |counts| counts.running() == 1).await;
        let answer = soon("an answer", client.unary(payload("third"))).await.unwrap();
        assert_eq!(answer.into_inner(), payload("third"));
        drop(second);
    }
    reverse.shutdown(SECOND).await;
}
