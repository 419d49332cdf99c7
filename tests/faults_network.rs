//! What networks do to a tunnel: reset it, swallow it, freeze its peer, chop it. The letters are the cases of the
//! project's list of faults.
#![cfg(target_os = "linux")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{
    child::{self, Keys},
    echo::{Digest, pattern, payload, steered},
    faults::{call, client, end_unavailable, in_flight, noticed, successor, within},
    netns::{CLOUD, Nat},
    peers::{require_program, require_root_netns, skip},
    proxy::{Cut, Way},
    rig::{AGENT, Rig, RigBuilder, soon},
};
use dialback::CloseReason;
use tokio_stream::StreamExt;

const SECOND: Duration = Duration::from_secs(1);

fn rig() -> RigBuilder {
    Rig::builder().brisk().eager().proxy()
}

#[tokio::test]
async fn child() {
    child::run().await;
}

/// A1.
#[tokio::test]
async fn reset_ends_all_calls_and_the_agent_returns() {
    let rig = rig().start().await;
    let mut client = rig.client();
    let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
    let calls = in_flight(&mut client, 100).await;

    rig.proxy().cut(Cut::Reset);

    let ended = end_unavailable(calls, SECOND).await;
    let (gone, _) = within(SECOND, "the tunnel's end", tunnel.closed()).await;
    assert!(matches!(gone.reason, CloseReason::ConnectionLost { .. }), "{gone:?}");
    assert!(rig.hub.get(AGENT).is_none_or(|now| now.id() != tunnel.id()), "the dead tunnel is still listed");
    let (_, back) = successor(&rig.hub, tunnel.id(), 3 * SECOND).await;
    call(&mut client).await;
    let cancelled = rig.echo.wait_until("the handlers' end", |counts| counts.running() == 0).await.cancelled;
    assert_eq!(cancelled, 100);
    eprintln!("A1: 100 calls ended in {ended:?}, the agent was back {back:?} later");
}

/// A1: the system itself destroys the socket of one end.
async fn destroyed(pick: fn(&Rig, SocketAddr) -> (SocketAddr, SocketAddr)) {
    if !require_root_netns() || !require_program("ss") {
        return;
    }
    let rig = Rig::builder().brisk().eager().start().await;
    let mut client = rig.client();
    let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
    let calls = in_flight(&mut client, 100).await;
    let (local, remote) = pick(&rig, tunnel.peer_addr().expect("a TCP connection has two ends"));

    let killed = std::process::Command::new("ss")
        .args(["--kill", "--no-header", "--tcp", "src", &local.to_string(), "dst", &remote.to_string()])
        .output();
    let killed = killed.expect("ss runs");
    if killed.stdout.is_empty() {
        return skip("the kernel does not let `ss --kill` destroy sockets");
    }

    end_unavailable(calls, SECOND).await;
    let (gone, _) = within(SECOND, "the tunnel's end", tunnel.closed()).await;
    assert!(matches!(gone.reason, CloseReason::ConnectionLost { .. }), "{gone:?}");
    successor(&rig.hub, tunnel.id(), 3 * SECOND).await;
    call(&mut client).await;
}

#[tokio::test]
async fn destroyed_socket_of_the_hub_ends_all_calls_and_the_agent_returns() {
    destroyed(|rig, agent| (rig.hub.local_addr(), agent)).await;
}

#[tokio::test]
async fn destroyed_socket_of_the_agent_ends_all_calls_and_the_agent_returns() {
    destroyed(|rig, agent| (agent, rig.hub.local_addr())).await;
}

/// A1, with calls of every kind, and an orderly end of the connection too.
#[tokio::test]
async fn every_kind_of_call_ends_unavailable_when_the_connection_is_cut() {
    for cut in [Cut::Reset, Cut::Finish] {
        let rig = rig().start().await;
        let mut waiting = rig.client();
        let waiting = tokio::spawn(async move { waiting.unary(steered(payload(""), &[("echo-hang", "1")])).await });
        let (mut uploading, mut chatting) = (rig.client(), rig.client());
        let endless = || tokio_stream::iter([payload("x")]).chain(tokio_stream::pending());
        let uploading = tokio::spawn(async move { uploading.upload(endless()).await });
        let mut chat = soon("a chat", chatting.chat(endless())).await.unwrap().into_inner();
        soon("its first answer", chat.message()).await.unwrap().unwrap();
        let download = in_flight(&mut rig.client(), 1).await;
        rig.echo.wait_until("four calls", |counts| counts.running() == 4).await;

        rig.proxy().cut(cut);

        end_unavailable([download, vec![chat]].into_iter().flatten().collect(), SECOND).await;
        for (name, one) in [("unary", waiting), ("upload", uploading)] {
            let (ended, _) = within(SECOND, name, one).await;
            common::faults::assert_unavailable(&ended.unwrap().unwrap_err());
        }
    }
}

/// A2: silence in one direction, or in both, and no reset.
async fn black_hole(way: Way) {
    let rig = rig().start().await;
    let mut client = rig.client();
    let tunnel = rig.hub.wait_for(AGENT).await.unwrap();
    let calls = in_flight(&mut client, 20).await;
    let begun = std::time::Instant::now();

    rig.proxy().stall(way);

    let limit = 5 * SECOND;
    let (ended, (gone, hub), agent) = tokio::join!(
        end_unavailable(calls, limit),
        within(limit, "the hub's notice", tunnel.closed()),
        noticed(rig.agent.status(), limit)
    );
    assert!(
        matches!(
            gone.reason,
            CloseReason::KeepaliveTimeout | CloseReason::ClosedByPeer { .. } | CloseReason::ConnectionLost { .. }
        ),
        "{gone:?}"
    );
    rig.proxy().resume(way);
    successor(&rig.hub, tunnel.id(), 8 * SECOND - begun.elapsed()).await;
    call(&mut client).await;
    eprintln!(
        "A2 {way:?}: hub noticed in {hub:?} ({}), agent in {agent:?}, calls ended in {ended:?}, all back {:?}",
        gone.reason,
        begun.elapsed()
    );
}

#[tokio::test]
async fn black_hole_towards_the_hub_is_noticed_by_both() {
    black_hole(Way::Up).await;
}

#[tokio::test]
async fn black_hole_towards_the_agent_is_noticed_by_both() {
    black_hole(Way::Down).await;
}

#[tokio::test]
async fn black_hole_both_ways_is_noticed_by_both() {
    black_hole(Way::Both).await;
}

/// A2: the old hub's host is gone without a word, and another hub has its address.
#[tokio::test]
async fn agent_finds_the_hub_that_took_a_vanished_ones_address() {
    let keys = Keys::new();
    let old = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let proxy = common::proxy::Proxy::to(old.local_addr()).await;
    let agent = keys.agent().connect(proxy.address().to_string()).await.unwrap();
    let echo = common::echo::Echo::default();
    let _server = common::rig::serve(&echo, agent.incoming());
    soon("the agent at the old hub", old.wait_for(AGENT)).await.unwrap();
    let calls = in_flight(&mut client(&old), 5).await;
    let new = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let begun = std::time::Instant::now();

    proxy.stall(Way::Both);
    proxy.set_target(new.local_addr());

    end_unavailable(calls, 5 * SECOND).await;
    let mut status = agent.status();
    within(5 * SECOND, "the agent's notice", status.wait_for(|status| !status.is_connected())).await.0.unwrap();
    proxy.resume(Way::Both);
    within(8 * SECOND - begun.elapsed(), "the agent at the new hub", new.wait_for(AGENT)).await.0.unwrap();
    call(&mut client(&new)).await;
    eprintln!("A2 half-open: at the new hub after {:?}", begun.elapsed());
}

/// A hub's name may come to mean another address while its agents are running.
#[tokio::test]
async fn agent_resolves_the_hubs_name_again_each_time() {
    if !require_root_netns() || !require_program("unshare") {
        return;
    }
    let keys = Keys::new();
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    let points_at = |address: &str| std::fs::write(&hosts, format!("{address} hub.test\n")).unwrap();
    let old = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let port = old.local_addr().port();
    points_at("127.0.0.1");
    // The agent has an /etc/hosts of its own.
    let own_hosts = |program| {
        let mut command = std::process::Command::new("unshare");
        let script = "mount --bind \"$HOSTS\" /etc/hosts && exec \"$0\" \"$@\"";
        command.args(["--mount", "sh", "-c", script]).arg(program).env("HOSTS", &hosts);
        command
    };
    let mut agent = child::start_by(own_hosts, keys.agent_process(&format!("hub.test:{port}")));
    agent.line("ready").await;
    soon("the agent at the old address", old.wait_for(AGENT)).await.unwrap();

    let new = keys.hub().bind(("127.0.0.2", port)).await.unwrap();
    points_at("127.0.0.2");
    old.shutdown(Duration::ZERO).await;

    soon("the agent at the new address", new.wait_for(AGENT)).await.unwrap();
    call(&mut client(&new)).await;
}

/// A2, on real interfaces: the router drops packets, acknowledgements too.
async fn black_hole_at_the_router(way: Way) {
    if !require_root_netns() {
        return;
    }
    let (nat, keys) = (Nat::new(), Keys::new());
    let address = format!("{CLOUD}:2222");
    let mut hub = child::start_by(|program| nat.cloud.command(program), keys.hub_process(&address));
    hub.line("listening ").await;
    let mut agent = child::start_by(|program| nat.laptop.command(program), keys.agent_process(&address));
    agent.line("ready").await;
    hub.line("agent ready").await;
    let begun = std::time::Instant::now();

    nat.black_hole(way);

    let (why, noticed) = within(5 * SECOND, "the hub's notice", hub.line("agent gone: ")).await;
    // By now the agent is trying to reconnect.
    tokio::time::sleep_until((begun + 5 * SECOND).into()).await;
    nat.heal();
    within(8 * SECOND, "the agent's return", hub.line("agent ready")).await;
    eprintln!("A2 router {way:?}: hub noticed in {noticed:?} ({why}), agent back after {:?}", begun.elapsed());
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn routers_black_hole_towards_the_hub_is_survived() {
    black_hole_at_the_router(Way::Up).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn routers_black_hole_towards_the_agent_is_survived() {
    black_hole_at_the_router(Way::Down).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn routers_black_hole_both_ways_is_survived() {
    black_hole_at_the_router(Way::Both).await;
}

/// A3: the agent's process stands still, but its kernel goes on acknowledging.
async fn frozen(time: Duration) {
    let keys = Keys::new();
    let hub = keys.hub().bind("127.0.0.1:0").await.unwrap();
    let mut agent = child::start(keys.agent_process(&hub.local_addr().to_string()));
    agent.line("ready").await;
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let mut client = client(&hub);
    let calls = in_flight(&mut client, 20).await;
    let begun = tokio::time::Instant::now();

    child::signal(&agent, "STOP");

    let (ended, (gone, noticed)) =
        tokio::join!(end_unavailable(calls, 5 * SECOND), within(5 * SECOND, "the hub's notice", tunnel.closed()));
    assert_eq!(gone.reason, CloseReason::KeepaliveTimeout);
    assert!(hub.get(AGENT).is_none());
    tokio::time::sleep_until(begun + time).await;
    child::signal(&agent, "CONT");
    let (_, back) = within(3 * SECOND, "the agent's return", hub.wait_for(AGENT)).await;
    call(&mut client).await;
    eprintln!("A3: hub noticed in {noticed:?}, calls ended in {ended:?}, back {back:?} after SIGCONT");
}

#[tokio::test]
async fn frozen_agent_is_dropped_and_rejoins() {
    frozen(Duration::ZERO).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn agent_frozen_for_30_s_is_dropped_and_rejoins() {
    frozen(30 * SECOND).await;
}

/// A8: every byte arrives by itself, from the first of the handshake on.
async fn chopped(kilobytes: usize) {
    // Small buffers: on so slow a path, what large ones hold would keep a keepalive's answer waiting for too long.
    let rig = Rig::builder()
        .proxy_with(Some(16 << 10), |proxy| proxy.set(Way::Both, |link| link.chop = Some(1)))
        .start()
        .await;
    let mut client = rig.client();
    call(&mut client).await;

    let size = (kilobytes << 10).to_string();
    let steering = [("echo-count", "2"), ("echo-size", &*size)];
    let mut download = client.download(steered(payload(""), &steering)).await.unwrap().into_inner();
    for index in 0..2 {
        let message = download.message().await.unwrap().expect("a message");
        assert!(message.data == pattern(index, kilobytes << 10), "message {index} arrives as it was sent");
    }
    assert!(download.message().await.unwrap().is_none());

    let message = pattern(7, kilobytes << 10);
    let mut digest = Digest::default();
    digest.update(&message);
    digest.update(&message);
    let upload = client.upload(tokio_stream::iter(vec![payload(message.clone()), payload(message)]));
    assert_eq!(upload.await.unwrap().into_inner(), payload(digest.to_bytes()));

    let chat = client.chat(tokio_stream::iter((0..10).map(|n| payload([n])))).await.unwrap().into_inner();
    let answers: Vec<_> = chat.map(|answer| answer.unwrap().data).collect().await;
    assert_eq!(answers, (0..10).map(|n| vec![n]).collect::<Vec<_>>());
    let refused = client.unary(steered(payload(""), &[("echo-status", "9")])).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
}

#[tokio::test]
async fn single_bytes_arrive_as_well_as_large_packets() {
    chopped(16).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn large_messages_arrive_in_single_bytes() {
    chopped(256).await;
}
