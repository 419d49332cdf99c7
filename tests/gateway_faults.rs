//! The gateway under load while things go wrong: restarts, bulk, and hours of use. The letters are the cases of the
//! project's list of faults.
#![cfg(all(feature = "gateway", target_os = "linux"))]

mod common;

use std::{
    env,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    child::{self, Keys},
    echo::{Echo, payload, pb::echo_client::EchoClient, steered},
    faults::{alone, resident_of, until},
    gateway::{channel, channel_at},
    http2::{RawClient, framed, with},
    rig::{AGENT, serve, soon},
};
use dialback::{
    Agent, AgentBuilder, AllowedKeys, HostKeys, Hub, PrivateKey, gateway::Gateway, tuning::HTTP2_STREAM_WINDOW,
};
use tokio::{
    net::TcpStream,
    task::{JoinHandle, JoinSet},
};
use tonic::{Code, Status, transport::Channel};

const SECOND: Duration = Duration::from_secs(1);

/// Makes the child that is a hub have a gateway.
const GATEWAY: &str = "DIALBACK_TEST_GATEWAY";

#[tokio::test]
async fn child() {
    if env::var_os(GATEWAY).is_none() {
        return child::run().await;
    }
    let (hub, listen) = child::told_hub();
    let hub = hub.bind(listen).await.expect("bind");
    let gateway = Gateway::builder(&hub).bind("127.0.0.1:0").await.expect("bind the gateway");
    eprintln!("hub {}", hub.local_addr());
    eprintln!("gateway {}", gateway.local_addr());
    hub.wait_for(AGENT).await.expect("the hub lives");
    eprintln!("agent ready");
    tokio::time::sleep(600 * SECOND).await;
}

/// So many bytes through a hub that is a process of its own, both ways; its memory does not grow with them.
async fn streams_through(bytes: usize) {
    let keys = Keys::new();
    let mut role = keys.hub_process("127.0.0.1:0");
    role.push((GATEWAY, "1".into()));
    let mut hub = child::start(role);
    let address = hub.line("hub ").await;
    let gateway: SocketAddr = hub.line("gateway ").await.parse().unwrap();
    let agent = keys.agent().connect(&*address).await.unwrap();
    let _server = serve(&Echo::default(), agent.incoming());
    hub.line("agent ready").await;
    let id = hub.id().unwrap();
    let mut client = EchoClient::new(channel_at(gateway, AGENT).await).max_decoding_message_size(64 << 20);
    const SIZE: usize = 256 << 10;
    let transfer = async |client: &mut EchoClient<Channel>, bytes: usize| {
        let count = bytes / SIZE;
        let steering = [("echo-count", &*count.to_string()), ("echo-size", &*SIZE.to_string())];
        let mut down = client.download(steered(payload(""), &steering)).await.unwrap().into_inner();
        let mut got = 0;
        while let Some(message) = soon("a message", down.message()).await.unwrap() {
            got += message.data.len();
        }
        assert_eq!(got, count * SIZE);
        let messages = std::iter::repeat_with(|| payload(vec![7; SIZE])).take(count);
        client.upload(tokio_stream::iter(messages)).await.expect("the upload");
    };
    transfer(&mut client, 64 << 20).await;
    let before = resident_of(id);
    let most = Arc::new(AtomicUsize::new(0));
    let watching = {
        let most = most.clone();
        tokio::spawn(async move {
            loop {
                most.fetch_max(resident_of(id), Ordering::Relaxed);
                tokio::time::sleep(SECOND / 20).await;
            }
        })
    };
    let begun = Instant::now();
    transfer(&mut client, bytes).await;
    watching.abort();
    let grown = most.load(Ordering::Relaxed).saturating_sub(before);
    eprintln!("{} MiB down and up in {:?}: {} KiB more", bytes >> 20, begun.elapsed(), grown >> 10);
    assert!(grown < 32 << 20, "the hub's memory grew by {grown} bytes");
}

/// C1: a caller who reads nothing costs the hub one window, and others' calls go on. `alone` says that nothing else runs, so
/// that times mean something.
async fn unread_stream(alone: bool) {
    let keys = Keys::new();
    let mut role = keys.hub_process("127.0.0.1:0");
    role.push((GATEWAY, "1".into()));
    let mut hub = child::start(role);
    let address = hub.line("hub ").await;
    let gateway: SocketAddr = hub.line("gateway ").await.parse().unwrap();
    let agent = keys.agent().connect(&*address).await.unwrap();
    let echo = Echo::default();
    let _server = serve(&echo, agent.incoming());
    hub.line("agent ready").await;
    let id = hub.id().unwrap();
    let mut client = EchoClient::new(channel_at(gateway, AGENT).await);
    let p99 = async |client: &mut EchoClient<Channel>| {
        let times = Times::new();
        for _ in 0..if alone { 5000 } else { 300 } {
            let begun = Instant::now();
            soon("an answer", client.unary(payload("hello"))).await.expect("others go on");
            times.add(begun.elapsed());
        }
        times.p99()
    };
    let (base, before) = (p99(&mut client).await, resident_of(id));
    let stream = TcpStream::connect(gateway).await.unwrap();
    let deaf = RawClient::over(stream, |builder| builder.initial_window_size(65_535)).await;
    let flood = [("dialback-agent", AGENT), ("echo-count", "100000"), ("echo-size", "65536")];
    let (answer, mut body) = deaf.begin(with("/dialback.echo.v1.Echo/Download", &flood)).await;
    body.send_data(framed(b""), true).unwrap();
    let _unread = soon("the head", answer).await.unwrap();
    let beside = p99(&mut client).await;
    let mut written = 0;
    soon("the writer's rest", async {
        while written == 0 || echo.answered() > written {
            written = echo.answered();
            tokio::time::sleep(SECOND / 2).await;
        }
    })
    .await;
    let grown = resident_of(id).saturating_sub(before);
    eprintln!("C1: {} KiB more; p99 {base:?} alone, {beside:?} beside the unread stream", grown >> 10);
    assert!(grown <= HTTP2_STREAM_WINDOW as usize + (8 << 20), "the hub's memory grew by {grown} bytes");
    assert!(!alone || beside <= 2 * base, "{beside:?} against {base:?}");
}

#[tokio::test]
async fn unread_stream_costs_the_hub_one_window() {
    unread_stream(false).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn unread_stream_does_not_slow_others() {
    let _alone = alone().await;
    unread_stream(true).await;
}

#[tokio::test]
async fn memory_does_not_grow_with_what_is_streamed() {
    streams_through(256 << 20).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn gibibyte_streams_through_in_little_memory() {
    let _alone = alone().await;
    streams_through(1 << 30).await;
}

/// One key for every agent, and a hub's.
#[derive(Clone)]
struct Fleet {
    host: PrivateKey,
    key: PrivateKey,
}

impl Fleet {
    fn new() -> Self {
        Self { host: PrivateKey::generate(), key: PrivateKey::generate() }
    }

    async fn hub(&self, listen: &str, ids: &[String]) -> Hub {
        let allowed =
            ids.iter().fold(AllowedKeys::new(), |all, id| all.allow(id, self.key.public_key()).expect("an id"));
        let hub = Hub::builder(self.host.clone()).authorizer(allowed).unauthenticated_limits(500, 500);
        hub.bind(listen).await.expect("bind")
    }

    fn agent(&self, id: &str) -> AgentBuilder {
        let agent = Agent::builder(id, self.key.clone()).host_keys(HostKeys::public_key(self.host.public_key()));
        agent.backoff(SECOND / 20, SECOND / 2, 30 * SECOND)
    }
}

/// What a caller has counted.
#[derive(Default)]
struct Calls {
    done: AtomicUsize,
    retried: AtomicUsize,
    stop: AtomicBool,
}

/// Callers who call without a pause until they are stopped; `call` is one call. Any failure fails the test.
fn callers<F, Fut>(count: usize, calls: &Arc<Calls>, call: F) -> JoinHandle<()>
where
    F: Fn(Arc<Calls>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (calls, call) = (calls.clone(), call.clone());
        tasks.spawn(async move {
            while !calls.stop.load(Ordering::Relaxed) {
                soon("an answer", call(calls.clone())).await.expect("no call is lost");
                calls.done.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
        });
    }
    tokio::spawn(async move {
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no call is lost");
        }
    })
}

/// B3: the members of a pool are restarted one after the other, and no call fails, without anybody trying again.
async fn agents_restart(rounds: usize) {
    let fleet = Fleet::new();
    let hub = fleet.hub("127.0.0.1:0", &[AGENT.into()]).await;
    let gateway = Gateway::builder(&hub).bind("127.0.0.1:0").await.unwrap();
    let address = hub.local_addr().to_string();
    let start = async || {
        let agent = fleet.agent(AGENT).connect(&*address).await.unwrap();
        let server = serve(&Echo::default(), agent.incoming());
        (agent, server)
    };
    let mut members = vec![start().await, start().await];
    until("both can be called", || hub.tunnels().len() == 2).await;
    let calls = Arc::new(Calls::default());
    let (through, inside) = (channel(&gateway).await, hub.channel(AGENT).unwrap());
    let calling = [
        callers(8, &calls, move |_| {
            let mut client = EchoClient::new(through.clone());
            async move { client.unary(payload("through the gateway")).await.map(drop) }
        }),
        callers(8, &calls, move |_| {
            let mut client = EchoClient::new(inside.clone());
            async move { client.unary(payload("in process")).await.map(drop) }
        }),
    ];
    let begun = Instant::now();
    for _ in 0..rounds {
        let before = calls.done.load(Ordering::Relaxed);
        let (agent, server) = members.remove(0);
        soon("the shutdown", agent.shutdown(30 * SECOND)).await;
        soon("the server's end", server).await.unwrap().unwrap();
        members.push(start().await);
        until("both can be called", || hub.tunnels().len() == 2).await;
        until("calls go on", || calls.done.load(Ordering::Relaxed) > before + 200).await;
    }
    calls.stop.store(true, Ordering::Relaxed);
    for calling in calling {
        calling.await.expect("no call is lost");
    }
    let done = calls.done.load(Ordering::Relaxed);
    eprintln!("B3, agents: {rounds} restarts in {:?}, {done} calls, none lost", begun.elapsed());
}

/// B3: two hubs with a gateway each are restarted in turn. A caller whose gateway is going tries the other one, once, if it
/// is answered UNAVAILABLE.
async fn hubs_restart(rounds: usize) {
    let fleet = Fleet::new();
    let ids = [AGENT.to_owned()];
    let mut hubs = Vec::new();
    for _ in 0..2 {
        let hub = fleet.hub("127.0.0.1:0", &ids).await;
        let gateway = Gateway::builder(&hub).bind("127.0.0.1:0").await.unwrap();
        hubs.push((hub, gateway));
    }
    let addresses = [0, 1].map(|n: usize| (hubs[n].0.local_addr().to_string(), hubs[n].1.local_addr()));
    let echo = Echo::default();
    let mut agents = Vec::new();
    for (hub, _) in &addresses {
        let agent = fleet.agent(AGENT).connect(&**hub).await.unwrap();
        serve(&echo, agent.incoming());
        agents.push(agent);
    }
    for (hub, _) in &hubs {
        soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    }
    let calls = Arc::new(Calls::default());
    let clients = [channel_at(addresses[0].1, AGENT).await, channel_at(addresses[1].1, AGENT).await];
    let turn = Arc::new(AtomicUsize::new(0));
    let calling = callers(16, &calls, move |calls| {
        let (clients, turn) = (clients.clone(), turn.clone());
        async move {
            let first = turn.fetch_add(1, Ordering::Relaxed) % 2;
            match EchoClient::new(clients[first].clone()).unary(payload("hello")).await {
                Err(status) if status.code() == Code::Unavailable || is_transport(&status) => {
                    calls.retried.fetch_add(1, Ordering::Relaxed);
                    EchoClient::new(clients[1 - first].clone()).unary(payload("hello")).await.map(drop)
                }
                answer => answer.map(drop),
            }
        }
    });
    let begun = Instant::now();
    for round in 0..rounds {
        let n = round % 2;
        let before = calls.done.load(Ordering::Relaxed);
        let (hub, gateway) = hubs.remove(n);
        // A stream that is open finishes, and the gateway waits for it.
        let mut stream = EchoClient::new(channel(&gateway).await);
        let steering = [("echo-count", "5"), ("echo-delay-ms", "100")];
        let mut stream = stream.download(steered(payload(""), &steering)).await.unwrap().into_inner();
        let draining = async {
            gateway.shutdown(30 * SECOND).await;
            hub.shutdown(30 * SECOND).await;
        };
        let reading = async {
            let mut messages = 0;
            while stream.message().await.expect("the stream finishes").is_some() {
                messages += 1;
            }
            assert_eq!(messages, 5);
        };
        soon("the shutdown", async { tokio::join!(draining, reading) }).await;
        drop((hub, gateway));
        let hub = fleet.hub(&addresses[n].0, &ids).await;
        soon("the agent's return", hub.wait_for(AGENT)).await.unwrap();
        let gateway = Gateway::builder(&hub).bind(addresses[n].1).await.unwrap();
        hubs.insert(n, (hub, gateway));
        until("calls go on", || calls.done.load(Ordering::Relaxed) > before + 200).await;
    }
    calls.stop.store(true, Ordering::Relaxed);
    calling.await.expect("no call is lost");
    let (done, retried) = (calls.done.load(Ordering::Relaxed), calls.retried.load(Ordering::Relaxed));
    eprintln!("B3, hubs: {rounds} restarts in {:?}, {done} calls, {retried} tried again, none lost", begun.elapsed());
}

/// What tonic's channel says of a gateway that it cannot reach.
fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some_and(|source| source.is::<tonic::transport::Error>())
}

#[tokio::test]
async fn no_call_is_lost_while_agents_are_restarted() {
    agents_restart(5).await;
}

#[tokio::test]
async fn no_call_is_lost_while_hubs_are_restarted() {
    hubs_restart(4).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn no_call_is_lost_in_twenty_rolling_restarts() {
    let _alone = alone().await;
    agents_restart(40).await;
    hubs_restart(40).await;
}

/// How long calls took, in steps of 10 µs up to a second: it takes the same memory however many there are.
struct Times(Vec<AtomicUsize>);

impl Times {
    fn new() -> Self {
        Self(std::iter::repeat_with(AtomicUsize::default).take(100_000).collect())
    }

    fn add(&self, time: Duration) {
        let step = usize::try_from(time.as_micros() / 10).expect("a short time");
        self.0[step.min(self.0.len() - 1)].fetch_add(1, Ordering::Relaxed);
    }

    fn calls(&self) -> usize {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn p99(&self) -> Duration {
        let (mut above, slowest) = (self.calls(), self.calls() / 100);
        let steps = self.0.iter().take_while(|count| {
            above -= count.load(Ordering::Relaxed);
            above > slowest
        });
        Duration::from_micros(10) * u32::try_from(steps.count() + 1).expect("a short time")
    }
}

/// D4: so many agents, ten calls per second to each, for so long: none fails, and memory does not grow.
async fn soak(agents: usize, time: Duration) {
    let fleet = Fleet::new();
    let ids: Vec<String> = (0..agents).map(|n| format!("agent-{n}")).collect();
    let hub = fleet.hub("127.0.0.1:0", &ids).await;
    let gateway = Gateway::builder(&hub).bind("127.0.0.1:0").await.unwrap();
    let echo = Echo::default();
    let mut members = Vec::new();
    for id in &ids {
        let agent = fleet.agent(id).connect(hub.local_addr().to_string()).await.unwrap();
        serve(&echo, agent.incoming());
        members.push(agent);
    }
    let any = channel(&gateway).await;
    let (early, all) = (Arc::new(Times::new()), Arc::new(Times::new()));
    let begun = Instant::now();
    // What comes first warms up.
    let warm = begun + time / 30;
    let mut tasks = JoinSet::new();
    for id in ids {
        let (mut client, end) = (EchoClient::new(any.clone()), begun + time);
        let (early, all) = (early.clone(), all.clone());
        tasks.spawn(async move {
            let mut ticks = tokio::time::interval(SECOND / 10);
            while Instant::now() < end {
                ticks.tick().await;
                let begun = Instant::now();
                let call = client.unary(steered(payload("soak"), &[("dialback-agent", &id)]));
                soon("an answer", call).await.expect("no call fails");
                all.add(begun.elapsed());
                if begun < warm {
                    early.add(begun.elapsed());
                }
            }
        });
    }
    tokio::time::sleep_until((warm + time / 30).into()).await;
    let (before, since) = (common::faults::resident(), Instant::now());
    tasks.join_all().await;
    let grown = common::faults::resident().saturating_sub(before);
    let per_hour = grown as f64 / 1e6 / since.elapsed().as_secs_f64() * 3600.0;
    let (first, p99) = (early.p99(), all.p99());
    eprintln!(
        "D4: {agents} agents, {} calls in {:?}, none failed; p99 {first:?} in the first thirtieth, {p99:?} in all; \
         {} KiB more, {per_hour:.2} MB/h",
        all.calls(),
        begun.elapsed(),
        grown >> 10
    );
    if time >= 600 * SECOND {
        assert!(per_hour < 1.0, "{per_hour} MB/h");
        assert!(p99 <= 2 * first, "{p99:?} against {first:?}");
    }
    assert_eq!(hub.tunnels().len(), agents);
}

#[tokio::test]
async fn a_hundred_agents_are_called_for_a_while() {
    soak(100, 10 * SECOND).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn a_hundred_agents_are_called_for_half_an_hour() {
    let _alone = alone().await;
    soak(100, 1800 * SECOND).await;
}
