//! What networks, dying processes and hostile peers do to tunnels of `grpctunnel.v1`. The letters are the cases of the
//! project's list of faults.
#![cfg(all(feature = "grpctunnel", target_os = "linux"))]

mod common;

use std::time::{Duration, Instant};

use common::{
    child,
    echo::Echo,
    faults::{Client, call, client, end_unavailable, in_flight, noticed, sockets_at, successor, until, within},
    netns::{CLOUD, Nat},
    peers::require_root_netns,
    proxy::{Proxy, Way},
    rig::{AGENT, soon},
    tunnels::{Tunnels, brisk_builder},
};
use dialback::grpctunnel::{ForwardTunnel, ReverseTunnel};
use tonic::service::Routes;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn child() {
    child::run().await;
}

/// An agent that serves `echo` and is there.
async fn reverse(tunnels: &Tunnels, proxy: &Proxy, echo: &Echo) -> ReverseTunnel {
    let agent = soon("a tunnel", brisk_builder(proxy.address()).reverse(Routes::new(echo.service()))).await;
    soon("the agent", tunnels.hub.wait_for(AGENT)).await.expect("the hub lives");
    agent.expect("open")
}

async fn forward(proxy: &Proxy) -> (ForwardTunnel, Client) {
    let tunnel = soon("a tunnel", brisk_builder(proxy.address()).forward()).await.expect("open");
    let client = Client::new(tunnel.channel());
    (tunnel, client)
}

/// A2: silence in one direction, or in both, and no reset.
async fn black_hole(way: Way) {
    let tunnels = Tunnels::brisk().await;
    let proxy = Proxy::to(tunnels.address).await;
    let echo = Echo::default();
    let agent = reverse(&tunnels, &proxy, &echo).await;
    let mut client = client(&tunnels.hub);
    let tunnel = tunnels.hub.wait_for(AGENT).await.unwrap();
    let calls = in_flight(&mut client, 20).await;
    let begun = Instant::now();

    proxy.stall(way);

    let limit = 5 * SECOND;
    let (ended, (gone, hub), agents, _) = tokio::join!(
        end_unavailable(calls, limit),
        within(limit, "the hub's notice", tunnel.closed()),
        noticed(agent.status(), limit),
        within(limit, "the handlers' end", echo.wait_until("no handler", |counts| counts.running() == 0)),
    );
    assert!(tunnels.hub.get(AGENT).is_none());
    proxy.resume(way);
    successor(&tunnels.hub, tunnel.id(), 8 * SECOND - begun.elapsed()).await;
    call(&mut client).await;
    eprintln!(
        "A2 {way:?}: hub noticed in {hub:?} ({}), agent in {agents:?}, calls ended in {ended:?}, all back {:?}",
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

/// A2, where it is the hub that serves.
async fn black_hole_of_a_forward_tunnel(way: Way) {
    let tunnels = Tunnels::brisk().await;
    let proxy = Proxy::to(tunnels.address).await;
    let (tunnel, mut client) = forward(&proxy).await;
    let calls = in_flight(&mut client, 20).await;
    let begun = Instant::now();

    proxy.stall(way);

    let limit = 5 * SECOND;
    let handlers = tunnels.echo.wait_until("no handler", |counts| counts.running() == 0);
    let (ended, opener, (_, hub)) = tokio::join!(
        end_unavailable(calls, limit),
        noticed(tunnel.status(), limit),
        within(limit, "the handlers' end", handlers),
    );
    proxy.resume(way);
    let mut status = tunnel.status();
    let back = status.wait_for(|status| status.is_connected());
    within(8 * SECOND - begun.elapsed(), "the tunnel's return", back).await.0.unwrap();
    call(&mut client).await;
    eprintln!(
        "A2 forward {way:?}: hub's handlers ended in {hub:?}, opener noticed in {opener:?}, calls ended in {ended:?}, \
         all back {:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn black_hole_towards_the_hub_ends_a_forward_tunnel_at_both_ends() {
    black_hole_of_a_forward_tunnel(Way::Up).await;
}

#[tokio::test]
async fn black_hole_towards_the_agent_ends_a_forward_tunnel_at_both_ends() {
    black_hole_of_a_forward_tunnel(Way::Down).await;
}

#[tokio::test]
async fn black_hole_both_ways_ends_a_forward_tunnel_at_both_ends() {
    black_hole_of_a_forward_tunnel(Way::Both).await;
}

/// A2: the old hub's host is gone without a word, and another hub has its address.
#[tokio::test]
async fn agent_finds_the_hub_that_took_a_vanished_ones_address() {
    let (old, new) = (Tunnels::brisk().await, Tunnels::brisk().await);
    let proxy = Proxy::to(old.address).await;
    let echo = Echo::default();
    let agent = reverse(&old, &proxy, &echo).await;
    let (forward, mut caller) = forward(&proxy).await;
    let calls = in_flight(&mut client(&old.hub), 5).await;
    let forwarded = in_flight(&mut caller, 5).await;
    let begun = Instant::now();

    proxy.stall(Way::Both);
    proxy.set_target(new.address);

    let limit = 5 * SECOND;
    tokio::join!(
        end_unavailable(calls, limit),
        end_unavailable(forwarded, limit),
        noticed(agent.status(), limit),
        noticed(forward.status(), limit)
    );
    proxy.resume(Way::Both);
    within(8 * SECOND - begun.elapsed(), "the agent at the new hub", new.hub.wait_for(AGENT)).await.0.unwrap();
    call(&mut client(&new.hub)).await;
    let mut status = forward.status();
    let back = status.wait_for(|status| status.is_connected());
    within(8 * SECOND - begun.elapsed(), "the forward tunnel at the new hub", back).await.0.unwrap();
    call(&mut caller).await;
    assert!(new.echo.counts().finished > 0);
    eprintln!("A2 half-open: at the new hub after {:?}", begun.elapsed());
}

/// A2, on real interfaces: the router drops packets, acknowledgements too.
async fn black_hole_at_the_router(way: Way) {
    if !require_root_netns() {
        return;
    }
    let nat = Nat::new();
    let address = format!("{CLOUD}:2222");
    let mut hub = child::start_by(|program| nat.cloud.command(program), child::tunnel_hub(&address));
    hub.line("listening ").await;
    let mut agent = child::start_by(|program| nat.laptop.command(program), child::tunnel_agent(&address));
    agent.line("ready").await;
    hub.line("agent ready").await;
    let begun = Instant::now();

    nat.black_hole(way);

    let (why, noticed) = within(5 * SECOND, "the hub's notice", hub.line("agent gone: ")).await;
    // Long enough for the waits of TCP between its own attempts to grow beyond what is promised.
    tokio::time::sleep_until((begun + 40 * SECOND).into()).await;
    nat.heal();
    let (_, back) = within(8 * SECOND, "the agent's return", hub.line("agent ready")).await;
    eprintln!("A2 router {way:?}: hub noticed in {noticed:?} ({why}), agent back {back:?} after the path");
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
    let tunnels = Tunnels::brisk().await;
    let mut agent = child::start(child::tunnel_agent(&tunnels.address.to_string()));
    agent.line("ready").await;
    let tunnel = soon("the agent", tunnels.hub.wait_for(AGENT)).await.unwrap();
    let mut client = client(&tunnels.hub);
    let calls = in_flight(&mut client, 20).await;
    let begun = tokio::time::Instant::now();

    child::signal(&agent, "STOP");

    let (ended, (gone, noticed)) =
        tokio::join!(end_unavailable(calls, 5 * SECOND), within(5 * SECOND, "the hub's notice", tunnel.closed()));
    assert!(tunnels.hub.get(AGENT).is_none());
    tokio::time::sleep_until(begun + time).await;
    child::signal(&agent, "CONT");
    let (_, back) = within(3 * SECOND, "the agent's return", tunnels.hub.wait_for(AGENT)).await;
    call(&mut client).await;
    eprintln!("A3: hub noticed in {noticed:?} ({}), calls ended in {ended:?}, back {back:?} after CONT", gone.reason);
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

/// B1.
#[tokio::test]
async fn killed_agent_leaves_no_call_and_no_socket() {
    let tunnels = Tunnels::brisk().await;
    let port = tunnels.address.port();
    let mut agent = child::start(child::tunnel_agent(&tunnels.address.to_string()));
    agent.line("ready").await;
    let tunnel = soon("the agent", tunnels.hub.wait_for(AGENT)).await.unwrap();
    let calls = in_flight(&mut client(&tunnels.hub), 100).await;
    assert_eq!(sockets_at(port), 1);

    child::signal(&agent, "KILL");

    let ended = end_unavailable(calls, SECOND).await;
    within(SECOND, "the tunnel's end", tunnel.closed()).await;
    assert!(tunnels.hub.get(AGENT).is_none());
    until("no sockets are left", || sockets_at(port) == 0).await;
    eprintln!("B1: 100 calls ended in {ended:?}");
}
