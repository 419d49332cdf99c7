//! What networks, dying processes and hostile peers do to tunnels of `grpctunnel.v1`. The letters are the cases of the
//! project's list of faults.
#![cfg(all(feature = "grpctunnel", target_os = "linux"))]

mod common;

use std::future::pending;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{
    child,
    echo::{Counts, Echo, payload},
    faults::{
        Bystander, Client, NoPanics, assert_unavailable, call, client, end_unavailable, in_flight, noticed,
        resident_of, sockets_at, successor, until, within,
    },
    http2::framed,
    netns::{CLOUD, Nat},
    peers::{Peer, require_root_netns},
    proxy::{Proxy, Way},
    raw_tunnel::{
        CarrierEnd, RawHub, RawTunnel, answer, answers, asks, bytes_of, call as new_call, call_with, close,
        good_settings, message, misfit,
        pb::{
            ClientToServer, MessageData, Metadata, ServerToClient, client_to_server::Frame as Asked,
            server_to_client::Frame as Answered,
        },
        settings,
    },
    rig::{AGENT, soon},
    tunnels::{Tunnels, brisk_builder, patient_builder, serve_by},
};
use dialback::grpctunnel::{ForwardTunnel, OpenError, ReverseTunnel};
use dialback::tuning::{HTTP2_PING_TIMEOUT, HTTP2_SERVER_PING_INTERVAL};
use dialback::{AgentStatus, CloseReason};
use h2::Reason;
use tonic::service::Routes;
use tonic::{Code, Status};

const SECOND: Duration = Duration::from_secs(1);

/// An agent that obeys no rule.
const MALLORY: &str = "mallory";

/// Makes a child have the usual settings, and, if it is a hub, make so many calls to [`MALLORY`] and read nothing of the answers.
const UNREAD: &str = "DIALBACK_TEST_UNREAD";

#[tokio::test]
async fn child() {
    let Some(calls) = std::env::var(UNREAD).ok().and_then(|calls| calls.parse().ok()) else {
        return child::run().await;
    };
    let (role, address) = child::told();
    let living = async {
        match role == "tunnel-agent" {
            true => serve_by(patient_builder(address)).await,
            false => be_calling_hub(calls).await,
        }
    };
    let _ = tokio::time::timeout(child::LIFE, living).await; // its time is over
}

async fn be_calling_hub(calls: usize) {
    let tunnels = Tunnels::start().await;
    let hub = tunnels.hub.clone();
    tokio::spawn(async move {
        hub.wait_for(MALLORY).await.expect("the hub lives");
        for _ in 0..calls {
            let mut client = Client::new(hub.channel(MALLORY).expect("an id"));
            tokio::spawn(async move {
                let _unread = client.download(payload("")).await;
                pending::<()>().await
            });
        }
    });
    child::tell(&tunnels.hub, tunnels.address).await;
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

/// A2, with more on its way than the network takes: nothing that waits in a socket keeps it.
#[tokio::test]
async fn black_hole_is_noticed_under_bulk() {
    let tunnels = Tunnels::brisk().await;
    let proxy = Proxy::with_buffers(tunnels.address, 64 << 10).await;
    let echo = Echo::default();
    let agent = reverse(&tunnels, &proxy, &echo).await;
    let mut client = client(&tunnels.hub);
    let tunnel = tunnels.hub.wait_for(AGENT).await.unwrap();
    let calls = in_flight(&mut client, 5).await;
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let mut client = client.clone();
        let endless = tokio_stream::iter(std::iter::repeat_with(|| payload(vec![7; 64 << 10])));
        uploads.spawn(async move { client.upload(endless).await });
    }
    echo.wait_until("the uploads", |counts| counts.running() == 45).await;

    proxy.stall(Way::Both);

    let limit = 5 * SECOND;
    let uploads = async {
        for ended in uploads.join_all().await {
            assert_unavailable(&ended.expect_err("it cannot go on"));
        }
    };
    tokio::join!(
        end_unavailable(calls, limit),
        within(limit, "the uploads' end", uploads),
        within(limit, "the hub's notice", tunnel.closed()),
        noticed(agent.status(), limit),
    );
    drop((agent, tunnel));
    until("no sockets are left", || sockets_at(tunnels.address.port()) == 0).await;
}

/// Either end notices by its own settings, whatever the other has.
#[tokio::test]
async fn each_end_notices_a_dead_peer_by_its_own_pings() {
    let (brisk, usual) = (Tunnels::brisk().await, Tunnels::start().await);
    let echo = Echo::default();
    let (to_brisk, to_usual) = (Proxy::to(brisk.address).await, Proxy::to(usual.address).await);
    let patient = patient_builder(to_brisk.address()).reverse(Routes::new(echo.service())).await.unwrap();
    let tunnel = soon("the agent", brisk.hub.wait_for(AGENT)).await.unwrap();
    let eager = reverse(&usual, &to_usual, &echo).await;

    to_brisk.stall(Way::Both);
    to_usual.stall(Way::Both);

    let limit = 5 * SECOND;
    tokio::join!(within(limit, "the hub's notice", tunnel.closed()), noticed(eager.status(), limit));
    assert!(patient.status().borrow().is_connected() && usual.hub.get(AGENT).is_some(), "the others cannot know yet");
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn hub_with_the_usual_settings_notices_a_dead_agent_within_50_s() {
    let tunnels = Tunnels::start().await;
    let proxy = Proxy::to(tunnels.address).await;
    let _agent = reverse(&tunnels, &proxy, &Echo::default()).await;
    let tunnel = tunnels.hub.wait_for(AGENT).await.unwrap();
    proxy.stall(Way::Both);
    within(HTTP2_SERVER_PING_INTERVAL + HTTP2_PING_TIMEOUT + SECOND, "the hub's notice", tunnel.closed()).await;
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

/// What becomes of what a peer has said.
enum Fate {
    /// It ends the tunnel, with this text.
    Tunnel(&'static str),
    /// It ends the call with the id 1, with this code and text.
    Call(Code, &'static str),
    Nothing,
}

const HANGS: &[(&str, &str)] = &[("echo-hang", "1")];

/// G1: what one who makes calls must not say.
fn of_callers() -> Vec<(&'static str, Bytes, Fate)> {
    use Fate::{Call, Nothing, Tunnel};
    let hanging = || new_call(1, "Unary", HANGS);
    let half_close = |id| asks(id, Asked::HalfClose(()));
    let update = |bytes| asks(1, Asked::WindowUpdate(bytes));
    let sized = |size, len| asks(1, Asked::RequestMessage(misfit(size, len)));
    let (used, never) = ("protocol error: cannot create stream ID ", "protocol error: received frame for stream ID ");
    let unread = || new_call(1, "Chat", &[("echo-delay-ms", "600000")]);
    let framing = "protocol error: received message with ";
    vec![
        ("frame of an unknown call", bytes_of([hanging(), half_close(5)]), Tunnel(never)),
        ("frame before any call", bytes_of([half_close(0)]), Tunnel(never)),
        ("id used twice", bytes_of([hanging(), hanging()]), Tunnel(used)),
        ("id below another", bytes_of([new_call(3, "Unary", HANGS), new_call(2, "Unary", HANGS)]), Tunnel(used)),
        ("negative id", bytes_of([new_call(i64::MIN, "Unary", HANGS)]), Tunnel(used)),
        (
            "message after half-close",
            bytes_of([hanging(), message(1, b"x"), half_close(1), message(1, b"y")]),
            Call(Code::InvalidArgument, "protocol error: data after half-close"),
        ),
        (
            "more than the window",
            bytes_of([unread(), sized(2 << 20, 2 << 20)]),
            Call(Code::ResourceExhausted, "flow control window exceeded"),
        ),
        (
            "2 GiB",
            bytes_of([hanging(), sized(1 << 31, 1)]),
            Call(Code::ResourceExhausted, "a message of 2147483648 bytes is larger than"),
        ),
        (
            "4 GiB",
            bytes_of([hanging(), sized(u32::MAX, 0)]),
            Call(Code::ResourceExhausted, "a message of 4294967295 bytes is larger than"),
        ),
        (
            "no frame",
            bytes_of([hanging(), ClientToServer { stream_id: 1, frame: None }]),
            Call(Code::Internal, "protocol error: unrecognized frame type"),
        ),
        ("window without end", bytes_of([hanging(), update(u32::MAX), update(u32::MAX), update(1 << 31)]), Nothing),
        ("frames of a call that is over", bytes_of([hanging(), asks(1, Asked::Cancel(())), half_close(1)]), Nothing),
        ("what cannot be decoded", framed(b"\xff\xff\xff"), Tunnel("failed to decode Protobuf message")),
        ("compressed frame", Bytes::from_static(&[1, 0, 0, 0, 0]), Tunnel(framing)),
        ("frame of no kind", Bytes::from_static(&[7, 0, 0, 0, 0]), Tunnel(framing)),
        (
            "frame of 4 GiB",
            Bytes::from_static(&[0, 255, 255, 255, 255]),
            Tunnel("Error, decoded message length too large"),
        ),
    ]
}

/// Whether a carrier ends as it should because of a peer that broke the protocol: with a status, or, where this side has opened
/// it, by being cancelled.
type Ends = fn(&CarrierEnd, &str) -> bool;

const BY_STATUS: Ends = |end, text| matches!(end, CarrierEnd::Status(13, message) if message.starts_with(text));
const BY_CANCEL: Ends = |end, _| *end == CarrierEnd::Reset(Some(Reason::CANCEL));

/// Whoever serves on the carriers that `next` gives bears all that.
async fn bears_callers(mut next: impl AsyncFnMut() -> RawTunnel, ends: Ends) {
    for (name, said, fate) in of_callers() {
        let mut raw = next().await;
        let ServerToClient { stream_id, frame } = raw.hear().await;
        assert!(stream_id == -1 && matches!(frame, Some(Answered::Settings(_))), "{frame:?}");
        raw.mouth.bytes(said).await;
        match fate {
            Fate::Tunnel(text) => {
                let end = raw.end::<ServerToClient>().await;
                assert!(ends(&end, text), "{name}: {end:?}");
                continue;
            }
            Fate::Call(code, text) => {
                let (ended, why) = raw.ended(1).await;
                assert!(ended == code as i32 && why.starts_with(text), "{name}: {ended} {why}");
            }
            Fate::Nothing => {}
        }
        is_served(&mut raw, 1000).await;
    }
}

/// A call with this id, and those after it, are answered.
async fn is_served(raw: &mut RawTunnel, id: i64) {
    raw.say([new_call(id, "Unary", &[]), message(id, b"hello"), asks(id, Asked::HalfClose(()))]).await;
    assert_eq!(raw.ended(id).await, (0, String::new()));
}

#[tokio::test]
async fn hub_bears_hostile_callers() {
    let _calm = NoPanics::watch();
    let tunnels = Tunnels::brisk().await;
    let echo = Echo::default();
    let _agent = tunnels.reverse(&echo).await;
    let forward = tunnels.forward().await;
    let others = [client(&tunnels.hub), Client::new(forward.channel())];
    let others = [Bystander::of(others[0].clone()).await, Bystander::of(others[1].clone()).await];

    bears_callers(async || RawTunnel::open(tunnels.address, "OpenTunnel", MALLORY).await, BY_STATUS).await;
    let mut raw = RawTunnel::open(tunnels.address, "OpenTunnel", MALLORY).await;
    raw.mouth.bytes(Bytes::from_static(&[0, 0, 0, 0, 9, 8])).await;
    raw.mouth.finish();
    let end = raw.end::<ServerToClient>().await;
    assert!(BY_STATUS(&end, "Unexpected EOF decoding stream"), "a frame that is cut off: {end:?}");

    for other in others {
        other.went_on().await;
    }
    drop(forward);
    tunnels.echo.wait_until("the end of all handlers", |counts| counts.running() == 0).await;
}

#[tokio::test]
async fn agent_bears_hostile_callers() {
    let _calm = NoPanics::watch();
    let (mut hub, echo) = (RawHub::start().await, Echo::default());
    let agent = brisk_builder(hub.address).backoff(SECOND / 100, SECOND / 50, 30 * SECOND);
    let _agent = agent.reverse(Routes::new(echo.service())).await.expect("open");

    bears_callers(async || hub.tunnel().await, BY_CANCEL).await;

    echo.wait_until("the end of all handlers", |counts| counts.running() == 0).await;
}

/// G1: what one who answers must not say. The first call has the id 1.
fn of_answerers() -> Vec<(&'static str, Bytes, Fate)> {
    use Fate::{Call, Nothing, Tunnel};
    let headers = |id| answers(id, Answered::ResponseHeaders(Metadata::default()));
    let update = |bytes| answers(1, Answered::WindowUpdate(bytes));
    let sized = |size, len| answers(1, Answered::ResponseMessage(misfit(size, len)));
    let late = answer(1, b"late");
    vec![
        ("answer to no call", bytes_of([close(7, None)]), Tunnel("protocol error: received frame for stream ID 7")),
        (
            "more than the window",
            bytes_of([headers(1), sized(2 << 20, 2 << 20)]),
            Call(Code::ResourceExhausted, "flow control window exceeded"),
        ),
        (
            "2 GiB",
            bytes_of([headers(1), sized(1 << 31, 1)]),
            Call(Code::ResourceExhausted, "a message of 2147483648 bytes is larger than"),
        ),
        ("4 GiB", bytes_of([sized(u32::MAX, 0)]), Call(Code::ResourceExhausted, "a message of 4294967295 bytes")),
        (
            "settings for a call",
            bytes_of([settings(1, &[1], 1000)]),
            Call(Code::Internal, "protocol error: unrecognized frame type"),
        ),
        ("settings once more", bytes_of([settings(-1, &[0], 0)]), Nothing),
        ("window without end", bytes_of([update(u32::MAX), update(u32::MAX), update(1 << 31)]), Nothing),
        (
            "answer after the end",
            bytes_of([close(1, Some(pb_status(Code::Aborted))), late[0].clone(), late[1].clone(), headers(1)]),
            Call(Code::Aborted, "enough"),
        ),
        ("what cannot be decoded", framed(b"\xff\xff\xff"), Tunnel("failed to decode Protobuf message")),
        (
            "frame of 4 GiB",
            Bytes::from_static(&[0, 255, 255, 255, 255]),
            Tunnel("Error, decoded message length too large"),
        ),
    ]
}

/// The same, before the first call: all of it ends the tunnel.
fn of_beginners() -> Vec<(&'static str, Bytes, &'static str)> {
    let headers = answers(1, Answered::ResponseHeaders(Metadata::default()));
    vec![
        ("no settings", bytes_of([headers]), "protocol error: the first frame was not settings"),
        (
            "settings of a call",
            bytes_of([settings(1, &[1], 1000)]),
            "protocol error: the settings have the stream id 1",
        ),
        (
            "no revisions",
            bytes_of([settings(-1, &[], 1000)]),
            "protocol error: the server speaks none of our revisions",
        ),
        ("no window", bytes_of([settings(-1, &[1], 0)]), "protocol error: a window of 0 bytes is too small"),
        ("no frame", bytes_of([ServerToClient::default()]), "protocol error: the first frame was not settings"),
    ]
}

fn pb_status(code: Code) -> common::raw_tunnel::pb::Status {
    common::raw_tunnel::pb::Status { code: code.into(), message: "enough".into(), details: Vec::new() }
}

/// Answers a call of `client` with what is no answer, and says what it ended with. `None`: it was answered in the end, and so was
/// another.
async fn answered(raw: &mut RawTunnel, mut client: Client, said: Bytes, fate: &Fate) -> Option<Status> {
    let called = tokio::spawn(async move { client.unary(payload("")).await.map(|_| client) });
    raw.hears_call(1).await;
    raw.mouth.bytes(said).await;
    if matches!(fate, Fate::Nothing) {
        raw.say(answer(1, b"")).await;
        let mut client = soon("an answer", called).await.unwrap().expect("the call is answered");
        let again = tokio::spawn(async move { client.unary(payload("")).await });
        raw.hears_call(2).await;
        raw.say(answer(2, b"")).await;
        soon("an answer", again).await.unwrap().expect("another call is answered");
        return None;
    }
    Some(soon("the call's end", called).await.unwrap().expect_err("it is no answer"))
}

/// The call has ended as it should, and so has the carrier, or the next call is answered.
async fn bears(name: &str, raw: &mut RawTunnel, client: Client, ended: Option<Status>, fate: Fate, ends: Ends) {
    match (fate, ended) {
        (Fate::Nothing, None) => {}
        (Fate::Tunnel(text), Some(status)) => {
            assert_eq!(status.code(), Code::Unavailable, "{name}: {status}");
            let end = raw.end::<ClientToServer>().await;
            assert!(ends(&end, text), "{name}: {end:?}");
        }
        (Fate::Call(code, text), Some(status)) => {
            assert!(status.code() == code && status.message().starts_with(text), "{name}: {status}");
            let mut client = client;
            let again = tokio::spawn(async move { client.unary(payload("")).await });
            raw.hears_call(2).await;
            raw.say(answer(2, b"")).await;
            soon("an answer", again).await.unwrap().expect("another call is answered");
        }
        (_, ended) => panic!("{name}: {ended:?}"),
    }
}

#[tokio::test]
async fn hub_bears_hostile_agents() {
    let _calm = NoPanics::watch();
    let tunnels = Tunnels::brisk().await;
    let echo = Echo::default();
    let _agent = tunnels.reverse(&echo).await;
    let other = Bystander::of(client(&tunnels.hub)).await;
    let open = || RawTunnel::open(tunnels.address, "OpenReverseTunnel", MALLORY);
    for (name, said, text) in of_beginners() {
        let mut raw = open().await;
        raw.mouth.bytes(said).await;
        let end = raw.end::<ClientToServer>().await;
        assert!(BY_STATUS(&end, text), "{name}: {end:?}");
        assert!(tunnels.hub.get(MALLORY).is_none());
    }
    let mut raw = open().await;
    raw.say([good_settings(), good_settings()]).await;
    let end = raw.end::<ClientToServer>().await;
    assert!(BY_STATUS(&end, "protocol error: received frame for stream ID -1"), "{end:?}");
    for (name, said, fate) in of_answerers() {
        let mut raw = open().await;
        raw.say([good_settings()]).await;
        let tunnel = soon("the agent", tunnels.hub.wait_for(MALLORY)).await.unwrap();
        let client = Client::new(tunnel.channel());
        let broken = matches!(fate, Fate::Tunnel(_));
        let ended = answered(&mut raw, client.clone(), said, &fate).await;
        bears(name, &mut raw, client, ended, fate, BY_STATUS).await;
        drop(raw);
        let gone = soon("the tunnel's end", tunnel.closed()).await;
        assert_eq!(matches!(gone.reason, CloseReason::Protocol { .. }), broken, "{name}: {}", gone.reason);
    }
    other.went_on().await;
}

#[tokio::test]
async fn caller_bears_hostile_hubs() {
    let _calm = NoPanics::watch();
    let mut hub = RawHub::start().await;
    let address = hub.address;
    let opener = || brisk_builder(address).backoff(SECOND / 100, SECOND / 50, 30 * SECOND);
    for (name, said, text) in of_beginners() {
        let opened = tokio::spawn(opener().forward());
        let mut raw = hub.tunnel().await;
        raw.mouth.bytes(said).await;
        assert!(BY_CANCEL(&raw.end::<ClientToServer>().await, ""), "{name}");
        match soon("the end of the attempt", opened).await.unwrap().unwrap_err() {
            OpenError::Ended(CloseReason::Protocol { error }) => assert!(error.starts_with(text), "{name}: {error}"),
            error => panic!("{name}: {error}"),
        }
    }
    let opened = tokio::spawn(opener().forward());
    let mut raw = hub.tunnel().await;
    raw.say([good_settings()]).await;
    let tunnel = soon("the tunnel", opened).await.unwrap().expect("open");
    for (name, said, fate) in of_answerers() {
        let client = Client::new(tunnel.channel());
        let mut status = tunnel.status();
        soon("the tunnel", status.wait_for(AgentStatus::is_connected)).await.unwrap();
        let ended = answered(&mut raw, client.clone(), said, &fate).await;
        bears(name, &mut raw, client, ended, fate, BY_CANCEL).await;
        drop(raw);
        raw = hub.tunnel().await;
        raw.say([good_settings()]).await;
    }
}

/// A process that is flooded.
struct Victim {
    process: Peer,
    /// What it had of memory before.
    memory: usize,
}

impl Victim {
    /// A hub that makes so many calls to [`MALLORY`], and one who calls the hub meanwhile.
    async fn hub(calls: usize) -> (Self, SocketAddr, (Bystander, ForwardTunnel)) {
        let mut role = child::tunnel_hub("127.0.0.1:0");
        role.push((UNREAD, calls.to_string().into()));
        let mut process = child::start(role);
        let address = process.line("listening ").await.parse().expect("an address");
        let tunnel = soon("a tunnel", patient_builder(address).forward()).await.expect("open");
        let other = Bystander::of(Client::new(tunnel.channel())).await;
        (Self::of(process), address, (other, tunnel))
    }

    /// An agent, and its tunnel.
    async fn agent(hub: &mut RawHub) -> (Self, RawTunnel) {
        let mut role = child::tunnel_agent(&hub.address.to_string());
        role.push((UNREAD, "0".into()));
        let mut process = child::start(role);
        let mut raw = hub.tunnel().await;
        process.line("ready").await;
        is_served(&mut raw, 0).await;
        (Self::of(process), raw)
    }

    fn of(process: Peer) -> Self {
        let memory = resident_of(process.id().expect("it runs"));
        Self { process, memory }
    }

    /// How many MiB more it has than before.
    fn grown(&self) -> usize {
        resident_of(self.process.id().expect("it runs")).saturating_sub(self.memory) >> 20
    }

    /// It has gone through all that well.
    async fn lives(self) {
        child::signal(&self.process, "KILL");
        let (_, said) = self.process.finish().await;
        assert!(!said.iter().any(|line| line.contains("panicked")), "{said:#?}");
    }
}

/// Begins 15,000 calls, and says how many of them were taken. The first has the id 1.
async fn begin_calls(raw: &mut RawTunnel) -> usize {
    const CALLS: i64 = 15_000;
    let RawTunnel { mouth, ear } = raw;
    let saying = mouth.bytes(bytes_of((1..=CALLS).map(|id| new_call(id, "Chat", HANGS))));
    let hearing = async {
        let (mut taken, mut refused) = (0, 0);
        while taken + refused < CALLS as usize {
            match ear.frame::<ServerToClient>().await.expect("the carrier lives").frame {
                Some(Answered::ResponseHeaders(_)) => taken += 1,
                Some(Answered::CloseStream(close)) => {
                    assert_eq!(close.status.expect("a status").code, Code::ResourceExhausted as i32);
                    refused += 1;
                }
                _ => {}
            }
        }
        taken
    };
    within(60 * SECOND, "an answer to each", async { tokio::join!(saying, hearing).1 }).await.0
}

/// Begins 50,000 calls, and gives each up at once.
async fn cancel_calls(raw: &mut RawTunnel) {
    const CALLS: i64 = 50_000;
    let RawTunnel { mouth, ear } = raw;
    let calls = (1..=CALLS).flat_map(|id| [new_call(id, "Chat", HANGS), asks(id, Asked::Cancel(()))]);
    let saying = mouth.bytes(bytes_of(calls));
    let hearing = async {
        let mut ends = 0;
        while ends < CALLS {
            let frame = ear.frame::<ServerToClient>().await.expect("the carrier lives").frame;
            ends += i64::from(matches!(frame, Some(Answered::CloseStream(_))));
        }
    };
    within(60 * SECOND, "an end to each", async { tokio::join!(saying, hearing) }).await;
    is_served(raw, CALLS + 1).await;
}

/// Says 200,000 frames of a call that is over.
async fn say_late_frames(raw: &mut RawTunnel, first: i64) {
    raw.say([new_call(first, "Unary", HANGS), asks(first, Asked::Cancel(()))]).await;
    let late = ClientToServer { stream_id: first, frame: None };
    raw.say(std::iter::repeat_n(late, 200_000)).await;
    is_served(raw, first + 1).await;
}

#[tokio::test]
async fn flood_of_new_calls_costs_a_hub_no_more_than_the_limit() {
    let (victim, address, (other, _tunnel)) = Victim::hub(0).await;
    let mut grown = Vec::new();
    for _ in 0..5 {
        let mut raw = RawTunnel::open(address, "OpenTunnel", MALLORY).await;
        let taken = begin_calls(&mut raw).await;
        assert!((1..=10_000).contains(&taken), "{taken}");
        grown.push(victim.grown());
    }
    other.went_on().await;
    eprintln!("G1: after 15,000 calls, five times: {grown:?} MiB more");
    // As many calls as are taken, twice: those before are being ended when the next are begun.
    assert!(grown.iter().all(|grown| *grown < 320), "{grown:?} MiB");
    assert!(grown[4] < grown[3] + 16, "{grown:?} MiB");
    victim.lives().await;
}

#[tokio::test]
async fn flood_of_new_calls_costs_an_agent_no_more_than_the_limit() {
    let mut hub = RawHub::start().await;
    let (victim, mut raw) = Victim::agent(&mut hub).await;
    let taken = begin_calls(&mut raw).await;
    assert!((1..=10_000).contains(&taken), "{taken}");
    let grown = victim.grown();
    assert!(grown < 200, "{grown} MiB");
    drop(raw);
    is_served(&mut hub.tunnel().await, 1).await;
    victim.lives().await;
}

#[tokio::test]
async fn floods_of_calls_that_are_over_leave_nothing_in_a_hub() {
    let (victim, address, (other, _tunnel)) = Victim::hub(0).await;
    let mut raw = RawTunnel::open(address, "OpenTunnel", MALLORY).await;
    cancel_calls(&mut raw).await;
    let cancelled = victim.grown();
    say_late_frames(&mut raw, 100_000).await;
    other.went_on().await;
    let late = victim.grown();
    eprintln!("G1: {cancelled} MiB more after 50,000 cancelled calls, {late} after 200,000 late frames");
    assert!(cancelled < 32 && late < 32, "{cancelled} and {late} MiB");
    victim.lives().await;
}

#[tokio::test]
async fn floods_of_calls_that_are_over_leave_nothing_in_an_agent() {
    let mut hub = RawHub::start().await;
    let (victim, mut raw) = Victim::agent(&mut hub).await;
    cancel_calls(&mut raw).await;
    say_late_frames(&mut raw, 100_000).await;
    let grown = victim.grown();
    assert!(grown < 32, "{grown} MiB");
    victim.lives().await;
}

/// A window's worth for each of 200 calls that read nothing, which is thrice what a tunnel may hold.
#[tokio::test]
async fn flood_of_answers_costs_a_hub_no_more_than_the_limit() {
    const CALLS: i64 = 200;
    let (victim, address, (other, _tunnel)) = Victim::hub(CALLS as usize).await;
    let mut raw = RawTunnel::open(address, "OpenReverseTunnel", MALLORY).await;
    raw.say([good_settings()]).await;
    let mut begun = 0;
    while begun < CALLS {
        begun += i64::from(matches!(raw.hear::<ClientToServer>().await.frame, Some(Asked::HalfClose(()))));
    }
    let RawTunnel { mut mouth, mut ear } = raw;
    // The hub gives up those that hold most.
    let hearing = tokio::spawn(async move {
        while !matches!(ear.frame::<ClientToServer>().await.expect("the carrier lives").frame, Some(Asked::Cancel(())))
        {
        }
        ear
    });
    let chunk = || Bytes::from(vec![0; 60_000]);
    for id in 1..=CALLS {
        let begins = MessageData { size: 60_000 * 17, data: chunk() };
        let more = || answers(id, Answered::MoreResponseData(chunk()));
        let mut frames = vec![answers(id, Answered::ResponseMessage(begins))];
        frames.extend(std::iter::repeat_with(more).take(16));
        mouth.bytes(bytes_of(frames)).await;
    }
    let _ear = soon("a call that is given up", hearing).await.expect("it goes well");
    let grown = victim.grown();
    other.went_on().await;
    eprintln!("G1: {grown} MiB more after 200 MiB of answers");
    // What the tunnel may hold, and what HTTP/2 may beneath it.
    assert!(grown < 64 + 28 + 36, "{grown} MiB");
    victim.lives().await;
}

/// C6, where the caller grants no window for an answer that the handler is done with.
#[tokio::test]
async fn deadline_ends_a_call_whose_answer_nobody_takes() {
    let tunnels = Tunnels::start().await;
    let mut raw = RawTunnel::open(tunnels.address, "OpenTunnel", MALLORY).await;
    let steering = [("grpc-timeout", "300m"), ("echo-size", "50000")];
    for (id, method) in [(1, "Unary"), (2, "Download")] {
        let begun = Instant::now();
        let data = [0; 50_000];
        raw.say([call_with(id, method, &steering, 6), message(id, &data), asks(id, Asked::HalfClose(()))]).await;
        let ended = within(2 * SECOND, "the call's end", raw.ended(id)).await.0;
        assert_eq!(ended, (Code::DeadlineExceeded as i32, "the call's deadline passed".into()));
        assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    }
    assert_eq!(tunnels.echo.counts(), Counts { started: 2, finished: 2, cancelled: 0 });
    // Nothing is left of them for which the tunnel's end would have to wait.
    within(5 * SECOND, "the end", tunnels.service.shutdown(60 * SECOND)).await;
}

/// The end of such a call waits for half-close, or 500 ms; when it is sent, nothing else is left to wait for.
#[tokio::test]
async fn early_ends_leave_no_tasks() {
    let tunnels = Tunnels::start().await;
    let mut raw = RawTunnel::open(tunnels.address, "OpenTunnel", MALLORY).await;
    let steering = [("echo-status", "0"), ("echo-status-after", "1")];
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let (mut id, mut most, before) = (0, 0, tasks());
    for _ in 0..40 {
        let calls: Vec<i64> = (id + 1..=id + 50).collect();
        id += 50;
        raw.say(calls.iter().flat_map(|id| [new_call(*id, "Chat", &steering), message(*id, b"x")])).await;
        let mut answered = 0;
        while answered < 50 {
            let frame = raw.hear::<ServerToClient>().await.frame;
            answered += usize::from(matches!(frame, Some(Answered::ResponseMessage(_))));
        }
        raw.say(calls.iter().map(|id| asks(*id, Asked::HalfClose(())))).await;
        let mut ended = 0;
        while ended < 50 {
            let frame = raw.hear::<ServerToClient>().await.frame;
            ended += usize::from(matches!(frame, Some(Answered::CloseStream(_))));
        }
        most = most.max(tasks());
    }
    assert!(most < before + 150, "{most} tasks, and {before} before");
    drop(raw);
    until("the tunnel's tasks end", || tasks() < before).await;
}
