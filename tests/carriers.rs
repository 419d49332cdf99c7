//! Tunnels over other carriers than TCP, and how each end names and makes them.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::echo::{Echo, payload, pb::echo_client::EchoClient};
use common::proxy::{Proxy, Way};
use common::rig::{AGENT, Over, Rig, dial_own, serve, soon};
use dialback::{
    Agent, AgentBuilder, AgentStatus, AllowedKeys, BindError, ConnectError, HostKeys, Hub, HubBuilder, PrivateKey,
    TunnelChannel,
};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

fn keys() -> (HubBuilder, AgentBuilder) {
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).expect("an id");
    let agent = Agent::builder(AGENT, key).host_keys(HostKeys::public_key(host.public_key()));
    let backoff = (Duration::from_millis(20), Duration::from_millis(20));
    (Hub::builder(host).authorizer(allowed), agent.backoff(backoff.0, backoff.1, Duration::from_secs(60)))
}

async fn assert_answers(channel: TunnelChannel) {
    let answer = soon("an answer", EchoClient::new(channel).unary(payload("ping"))).await.expect("an answer");
    assert_eq!(answer.into_inner().data, b"ping");
}

#[tokio::test]
async fn every_carrier_carries_calls_both_ways() {
    for carrier in [Over::Tcp, Over::Unix, Over::Own] {
        let rig = Rig::builder().over(carrier).start().await;
        assert_answers(rig.hub.channel(AGENT).expect("an id")).await;
        assert_answers(rig.agent.channel()).await;
        let peer = rig.hub.get(AGENT).expect("connected").peer_addr();
        assert_eq!(peer.is_some(), carrier == Over::Tcp, "{carrier:?}: {peer:?}");
    }
}

#[tokio::test]
async fn a_hub_listens_at_several_places() {
    let (hub, agent) = keys();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let second = hub.listen("ssh://127.0.0.1:0").await.expect("listen");
    assert!(second.starts_with("ssh://127.0.0.1:") && !second.ends_with(":0"), "{second}");

    let agent = agent.connect(&*second).await.expect("connect");
    soon("the agent", hub.wait_for(AGENT)).await.expect("an id");

    assert!(format!("{:?}", agent.status().borrow()).contains(&second), "{:?}", agent.status().borrow());
    assert!(matches!(hub.listen(&second).await, Err(BindError::Listen { .. })), "listens twice");
    for bad in ["", "127.0.0.1", "tcp://127.0.0.1:1", "unix:", "ssh://me@127.0.0.1:0", "http://127.0.0.1:0"] {
        let error = hub.listen(bad).await.expect_err(bad);
        assert!(matches!(&error, BindError::InvalidAddress { given, .. } if given == bad), "{bad}: {error}");
    }
}

/// IPv6, and a name with an address that does not answer before the one that does.
#[tokio::test]
async fn agents_reach_a_hub_by_ipv6() {
    let (hub, agent) = keys();
    let hub = hub.bind("[::1]:0").await.expect("bind");
    let _agent = agent.connect(format!("ssh://{}", hub.local_addr())).await.expect("connect");
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.expect("an id");
    assert!(tunnel.peer_addr().expect("an address").is_ipv6());
}

/// A hub that was killed leaves its socket behind; the next one takes its place, and the agent comes back by itself.
#[tokio::test]
async fn agents_come_back_by_a_unix_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("hub.sock");
    let url = format!("unix:{}", path.display());
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).expect("an id");
    let start = async || {
        let hub = Hub::builder(host.clone()).authorizer(allowed.clone()).bind("127.0.0.1:0").await.expect("bind");
        hub.listen(&url).await.expect("listen");
        hub
    };
    let hub = start().await;
    let known_hosts = dir.path().join("known_hosts");
    std::fs::write(&known_hosts, format!("localhost {}\n", host.public_key())).expect("write known_hosts");
    let agent = Agent::builder(AGENT, key).host_keys(HostKeys::known_hosts(&known_hosts).expect("known_hosts"));
    let pause = Duration::from_millis(20);
    let agent = agent.backoff(pause, pause, Duration::from_secs(60)).connect(&*url).await.expect("connect");
    serve(&Echo::default(), agent.incoming());
    soon("the agent", hub.wait_for(AGENT)).await.expect("an id");

    drop(hub);
    soon("the loss", agent.status().wait_for(|status| !status.is_connected())).await.expect("the agent lives");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("what a crash leaves"));
    let hub = start().await;

    soon("the agent again", hub.wait_for(AGENT)).await.expect("an id");
    assert_answers(hub.channel(AGENT).expect("an id")).await;
}

#[tokio::test]
async fn one_stream_is_one_tunnel() {
    let (hub, agent) = keys();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let peer: SocketAddr = "192.0.2.7:1234".parse().expect("an address");
    let (agents, hubs) = tokio::io::duplex(4096);
    hub.accept_stream(hubs, Some(peer)).await;
    let agent = soon("the login", agent.tunnels(4).connect_over("hub.example.com", agents)).await.expect("connect");
    let server = serve(&Echo::default(), agent.incoming());
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.expect("an id");
    assert_eq!((tunnel.peer_addr(), hub.tunnels().len()), (Some(peer), 1));
    assert_answers(hub.channel(AGENT).expect("an id")).await;

    tunnel.close();

    soon("the end", agent.status().wait_for(|status| matches!(status, AgentStatus::Stopped))).await.expect("an agent");
    soon("the server's end", server).await.expect("no panic").expect("served");
}

#[tokio::test]
async fn own_streams_are_dialled_again_and_what_fails_is_told() {
    let (hub, agent) = keys();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let dials = Arc::new(AtomicUsize::new(0));
    let dial = {
        let (hub, dials) = (hub.clone(), dials.clone());
        move || {
            let (hub, dial) = (hub.clone(), dials.fetch_add(1, Ordering::Relaxed));
            async move {
                // The second fails, and is followed by a third.
                if dial == 1 { Err(std::io::Error::other("no dial tone")) } else { dial_own(hub).await }
            }
        }
    };
    let agent = agent.connect_with("hub.example.com", dial).await.expect("connect");
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.expect("an id");
    let mut status = agent.status();

    tunnel.close();

    let failed = |status: &AgentStatus| format!("{status:?}").contains("no dial tone");
    soon("the failure", status.wait_for(failed)).await.expect("an agent");
    soon("the return", status.wait_for(AgentStatus::is_connected)).await.expect("an agent");
    assert_eq!(dials.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn streams_are_strangers_until_they_have_authenticated() {
    let (hub, agent) = keys();
    let hub = hub.unauthenticated_limits(2, 1).login_timeout(Duration::from_secs(2)).bind("127.0.0.1:0").await;
    let hub = hub.expect("bind");
    let mut silent = Vec::new();
    for _ in 0..2 {
        let (mine, hubs) = tokio::io::duplex(4096);
        hub.accept_stream(hubs, None).await;
        silent.push(mine);
    }
    // All places are taken, by connections that have not had their time.
    let (mut turned_away, hubs) = tokio::io::duplex(4096);
    hub.accept_stream(hubs, None).await;
    assert_eq!(soon("the end", turned_away.read(&mut [0; 100])).await.expect("an end"), 0);
    // Those in their places are given up when their time is over.
    for mut stream in silent {
        soon("the end", async { while stream.read(&mut [0; 100]).await.expect("an end") > 0 {} }).await;
    }
    agent.connect(hub.local_addr().to_string()).await.expect("a hub that still works");

    hub.shutdown(Duration::ZERO).await;
    assert!(matches!(hub.listen("127.0.0.1:0").await, Err(BindError::Shutdown)));
    let (mut late, hubs) = tokio::io::duplex(4096);
    hub.accept_stream(hubs, None).await;
    assert_eq!(soon("the end", late.read(&mut [0; 100])).await.expect("an end"), 0, "the hub has shut down");
}

#[tokio::test]
async fn a_socket_without_a_hub_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, agent) = keys();
    let url = format!("unix:{}", dir.path().join("nobody").display());
    let error = agent.connect(&*url).await.expect_err("nobody is there");
    assert!(matches!(&error, ConnectError::Unreachable { hub, .. } if *hub == url), "{error:?}");
    assert!(error.is_transient());

    // And one that is no hub: whoever is there says nothing.
    let path = dir.path().join("silent");
    let listener = tokio::net::UnixListener::bind(&path).expect("bind");
    let (_, agent) = keys();
    let agent = agent.login_timeout(Duration::from_millis(300)).connect(format!("unix:{}", path.display()));
    let error = soon("the end of patience", agent).await.expect_err("nobody answers");
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error:?}");
    drop(UnixStream::connect(&path).await.expect("it listened"));
    drop(listener);
}

/// Accepts, and never says a word: what many firewalls make of a connection.
async fn silent() -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let (address, dials) = (listener.local_addr().expect("an address"), Arc::new(AtomicUsize::new(0)));
    let counted = dials.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            kept.push(stream);
        }
    });
    (format!("ssh://{address}"), dials)
}

fn hub_in(status: &AgentStatus) -> Option<&str> {
    match status {
        AgentStatus::Connected { hub, .. } => Some(hub),
        _ => None,
    }
}

#[tokio::test]
async fn a_dead_first_choice_costs_little_and_the_way_that_works_is_remembered() {
    let (hub, agent) = keys();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let (dead, dials) = silent().await;
    let second = hub.local_addr().to_string();

    let started = std::time::Instant::now();
    let agent = agent.fallback("ssh://127.0.0.1:1").fallback(&second).connect(&*dead).await.expect("connect");
    // Half a second for the first, and a login; the rest is for a slow machine.
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());

    assert_eq!(hub_in(&agent.status().borrow()), Some(&*second));
    assert_eq!(dials.load(Ordering::Relaxed), 1);
    for _ in 0..3 {
        let tunnel = soon("the agent", hub.wait_for(AGENT)).await.expect("an id");
        let mut status = agent.status();
        tunnel.close();
        soon("the loss", status.wait_for(|status| !status.is_connected())).await.expect("an agent");
        soon("the return", status.wait_for(AgentStatus::is_connected)).await.expect("an agent");
    }
    assert_eq!(dials.load(Ordering::Relaxed), 1, "the dead one was tried again");
    assert_eq!(hub.tunnels().len(), 1, "one that lost the race lives");
}

#[tokio::test]
async fn agents_go_to_another_hub_when_theirs_is_gone() {
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).expect("an id");
    let start =
        async || Hub::builder(host.clone()).authorizer(allowed.clone()).bind("127.0.0.1:0").await.expect("bind");
    let (first, second) = (start().await, start().await);
    let agent = Agent::builder(AGENT, key).host_keys(HostKeys::public_key(host.public_key()));
    let pause = Duration::from_millis(20);
    let agent = agent.backoff(pause, pause, Duration::from_secs(60)).fallback(second.local_addr().to_string());
    let agent = agent.connect(first.local_addr().to_string()).await.expect("connect");
    serve(&Echo::default(), agent.incoming());
    soon("the agent", first.wait_for(AGENT)).await.expect("an id");
    assert!(second.tunnels().is_empty(), "the first had its head start");

    first.shutdown(Duration::ZERO).await;

    soon("the agent", second.wait_for(AGENT)).await.expect("an id");
    assert_answers(second.channel(AGENT).expect("an id")).await;
}

/// Both ways get so far that both would win: on a slow path to one hub, and half a second later on a fast one to another.
#[tokio::test]
async fn a_way_that_lost_leaves_no_tunnel_behind() {
    for delay in [60, 70, 80, 90, 100] {
        let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
        let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).expect("an id");
        let hub = || Hub::builder(host.clone()).authorizer(allowed.clone()).bind("127.0.0.1:0");
        let (far, near) = (hub().await.expect("bind"), hub().await.expect("bind"));
        let slow = Proxy::to(far.local_addr()).await;
        slow.set(Way::Both, |link| link.delay = Duration::from_millis(delay));
        let agent = Agent::builder(AGENT, key).host_keys(HostKeys::public_key(host.public_key()));
        let agent = agent.fallback(near.local_addr().to_string());

        let agent = agent.connect(slow.address().to_string()).await.expect("connect");

        serve(&Echo::default(), agent.incoming());
        let won = if hub_in(&agent.status().borrow()) == Some(&*near.local_addr().to_string()) { &near } else { &far };
        let lost = if std::ptr::eq(won, &near) { &far } else { &near };
        assert_answers(won.channel(AGENT).expect("an id").wait_for_ready(Duration::from_secs(5))).await;
        soon("the loser's end", async {
            while !lost.tunnels().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert!(lost.get(AGENT).is_none(), "the loser was offered, too");
        drop(agent);
    }
}

#[tokio::test]
async fn of_many_failures_the_one_that_lasts_is_told() {
    let (hub, _) = keys();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let (dead, _) = silent().await;
    let agent = || keys().1.login_timeout(Duration::from_secs(1));
    // This hub has another key than the agent knows.
    let stranger = hub.local_addr().to_string();
    let error = agent().fallback(&dead).fallback(&stranger).connect("127.0.0.1:1").await.expect_err("no way");
    assert!(matches!(&error, ConnectError::HostKey { hub, .. } if *hub == stranger), "{error:?}");
    let error = agent().fallback(&dead).connect("127.0.0.1:1").await.expect_err("no way");
    assert!(matches!(&error, ConnectError::Unreachable { .. }), "{error:?}");
    let error = agent().fallback("nonsense").connect(&*stranger).await.expect_err("no way");
    assert!(matches!(&error, ConnectError::InvalidAddress { given, .. } if given == "nonsense"), "{error:?}");
}
