//! One kind of channel each way; everything else that SSH knows is refused, and the tunnel lives.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::peers::{Peer, go_peer, require_program, ssh_keygen};
use common::raw::{self, Dialled, FakeHub};
use common::rig::{AGENT, soon};
use dialback::{Agent, AllowedKeys, DialError, HostKeys, Hub, PrivateKey};
use russh::keys::{PrivateKeyWithHashAlg, ssh_key};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, Error, Pty, Sig, client, server};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

/// A hub, and a raw client that has logged in and asked to be called.
async fn hub_and_client() -> (Hub, Dialled) {
    let (key, ours) = raw::key();
    let allowed = AllowedKeys::new().allow(AGENT, ours.public_key()).expect("an id");
    let hub = Hub::builder(PrivateKey::generate()).authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");
    let dialled = raw::log_in(hub.local_addr(), AGENT, &key).await;
    dialled.handle.streamlocal_forward("/grpc-tunnel").await.expect("the hub may call");
    (hub, dialled)
}

/// An agent, and the raw server that it has logged in to.
async fn agent_and_server() -> (Agent, FakeHub, server::Handle) {
    let (key, ours) = raw::key();
    let mut fake = FakeHub::with_key(&key).await;
    let agent = Agent::builder(AGENT, PrivateKey::generate()).host_keys(HostKeys::public_key(ours.public_key()));
    let agent = soon("the login", agent.connect(fake.address.to_string())).await.expect("connect");
    let handle = soon("the forward request", fake.ready.recv()).await.expect("a session");
    (agent, fake, handle)
}

#[track_caller]
fn assert_prohibited<T>(what: &str, opened: Result<T, Error>) {
    match opened {
        Err(Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited)) => {}
        Err(other) => panic!("{what}: {other:?}"),
        Ok(_) => panic!("{what} was opened"),
    }
}

#[tokio::test]
async fn hub_refuses_every_channel_but_a_tunnels() {
    let (hub, Dialled { handle, .. }) = hub_and_client().await;
    let tunnel = hub.get(AGENT).expect("connected").id();

    assert_prohibited("session", soon("session", handle.channel_open_session()).await);
    assert_prohibited("x11", soon("x11", handle.channel_open_x11("127.0.0.1", 6000)).await);
    let tcp = handle.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1);
    assert_prohibited("direct-tcpip", soon("direct-tcpip", tcp).await);
    for path in ["", "/", "grpc-tunnel", "/grpc-tunnel/", "/grpc-tunnel\0", "/GRPC-TUNNEL", "/run/docker.sock"] {
        assert_prohibited(path, soon(path, handle.channel_open_direct_streamlocal(path)).await);
    }
    let long = "/grpc-tunnel".repeat(2000);
    assert_prohibited("a long path", soon("a long path", handle.channel_open_direct_streamlocal(long)).await);

    soon("the right path", handle.channel_open_direct_streamlocal("/grpc-tunnel")).await.expect("it is served");
    assert_eq!(hub.get(AGENT).expect("still there").id(), tunnel);
}

#[tokio::test]
async fn hub_without_a_server_says_that_nobody_listens() {
    let (hub, Dialled { handle, .. }) = hub_and_client().await;
    drop(hub.incoming());
    let opened = soon("an answer", handle.channel_open_direct_streamlocal("/grpc-tunnel")).await;
    assert!(matches!(opened, Err(Error::ChannelOpenFailure(ChannelOpenFailure::ConnectFailed))), "{:?}", opened.err());
}

/// A hub that allows so many channels to a tunnel, and the key of its agent.
async fn hub_that_allows(channels: usize) -> (Hub, Arc<ssh_key::PrivateKey>) {
    let (key, ours) = raw::key();
    let allowed = AllowedKeys::new().allow(AGENT, ours.public_key()).expect("an id");
    let hub = Hub::builder(PrivateKey::generate()).authorizer(allowed).max_channels(channels);
    (hub.bind("127.0.0.1:0").await.expect("bind"), key)
}

#[tokio::test]
async fn hub_refuses_more_channels_than_it_allows() {
    let (hub, key) = hub_that_allows(3).await;
    let Dialled { handle, .. } = raw::log_in(hub.local_addr(), AGENT, &key).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(soon("a channel", handle.channel_open_direct_streamlocal("/grpc-tunnel")).await.expect("a channel"));
    }

    let fourth = soon("an answer", handle.channel_open_direct_streamlocal("/grpc-tunnel")).await;

    assert!(matches!(fourth, Err(Error::ChannelOpenFailure(ChannelOpenFailure::ResourceShortage))));
    open[0].close().await.expect("close");
    soon("room", async { while handle.channel_open_direct_streamlocal("/grpc-tunnel").await.is_err() {} }).await;
}

/// A channel that was dropped with bytes left to send, for which the peer has no room, is still a channel.
#[tokio::test]
async fn channels_that_linger_count_among_those_allowed() {
    let (hub, key) = hub_that_allows(8).await;
    let mut incoming = hub.incoming();
    tokio::spawn(async move {
        while let Some(Ok(mut io)) = incoming.next().await {
            io.write_all(&[7; 60_000]).await.expect("it is kept");
        }
    });
    let config = client::Config { window_size: 1, ..client::Config::default() };
    let Dialled { handle, .. } = raw::log_in_with(config, hub.local_addr(), AGENT, &key).await;
    let mut open = Vec::new();
    for _ in 0..100 {
        open.extend(soon("an answer", handle.channel_open_direct_streamlocal("/grpc-tunnel")).await);
    }

    assert_eq!(open.len(), 8);
    // Those that the peer closes are done with.
    for channel in &open {
        channel.close().await.expect("close");
    }
    soon("room", async { while handle.channel_open_direct_streamlocal("/grpc-tunnel").await.is_err() {} }).await;
}

/// The answer to the request that was just sent on a channel.
async fn assert_refused(what: &str, mut channel: Channel<client::Msg>) {
    loop {
        match soon(what, channel.wait()).await {
            Some(ChannelMsg::Failure) => return,
            Some(ChannelMsg::WindowAdjusted { .. }) => {}
            other => panic!("{what}: waited for its refusal, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn hub_refuses_every_request_on_a_channel() {
    let (hub, Dialled { handle, .. }) = hub_and_client().await;
    let _incoming = hub.incoming();
    for what in ["pty", "shell", "exec", "subsystem", "x11", "env", "agent"] {
        let channel = soon("a channel", handle.channel_open_direct_streamlocal("/grpc-tunnel")).await;
        let channel = channel.expect("a channel");
        let sent = match what {
            "pty" => channel.request_pty(true, "xterm", 80, 24, 0, 0, &[(Pty::ECHO, 1)]).await,
            "shell" => channel.request_shell(true).await,
            "exec" => channel.exec(true, "true").await,
            "subsystem" => channel.request_subsystem(true, "sftp").await,
            "x11" => channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await,
            "env" => channel.set_env(true, "LD_PRELOAD", "/tmp/x.so").await,
            _ => channel.agent_forward(true).await,
        };
        sent.expect("the session lives");
        assert_refused(what, channel).await;
    }

    // Those that want no answer get none, and harm nothing.
    let channel = handle.channel_open_direct_streamlocal("/grpc-tunnel").await.expect("a channel");
    channel.window_change(1, 1, 1, 1).await.expect("sent");
    channel.signal(Sig::KILL).await.expect("sent");
    channel.exec(false, "true").await.expect("sent");
    soon("the tunnel", handle.send_ping()).await.expect("the tunnel lives");
}

/// Requests without end on one channel cost that channel, and not the tunnel.
#[tokio::test]
async fn flood_of_requests_closes_its_channel_only() {
    let (hub, Dialled { handle, .. }) = hub_and_client().await;
    let _incoming = hub.incoming();
    let mut flooded = handle.channel_open_direct_streamlocal("/grpc-tunnel").await.expect("a channel");
    let other = handle.channel_open_direct_streamlocal("/grpc-tunnel").await.expect("a channel");
    for _ in 0..1000 {
        if flooded.set_env(false, "A", "B").await.is_err() {
            break;
        }
    }

    let closed = async { while !matches!(flooded.wait().await, None | Some(ChannelMsg::Close)) {} };

    soon("the flooded channel's end", closed).await;
    soon("the tunnel", handle.send_ping()).await.expect("the tunnel lives");
    other.data_bytes("still open".as_bytes()).await.expect("the other channel lives");
    assert!(hub.get(AGENT).is_some());
}

#[tokio::test]
async fn hub_answers_global_requests_with_failure() {
    let (hub, Dialled { handle, .. }) = hub_and_client().await;
    for name in ["no-such-request@example.com", "", "hostkeys-prove-00@openssh.com", "no-more-sessions@openssh.com"] {
        let answer = soon(name, handle.send_global_request(name, b"anything", true)).await;
        assert!(matches!(answer, Err(Error::RequestDenied)), "{name}: {answer:?}");
    }
    for (address, port) in [("127.0.0.1", 0), ("", 2222), ("0.0.0.0", 80)] {
        let answer = soon("tcpip-forward", handle.tcpip_forward(address, port)).await;
        assert!(matches!(answer, Err(Error::RequestDenied)), "{address}:{port}: {answer:?}");
    }
    for path in ["", "/", "grpc-tunnel", "/grpc-tunnel/", "/tmp/socket"] {
        let answer = soon("streamlocal-forward", handle.streamlocal_forward(path)).await;
        assert!(matches!(answer, Err(Error::RequestDenied)), "{path}: {answer:?}");
        let answer = soon("cancel", handle.cancel_streamlocal_forward(path)).await;
        assert!(answer.is_err(), "{path}: {answer:?}");
    }
    // Those that want no answer get none: the next answer is that of the next request.
    handle.send_global_request("no-such-request@example.com", b"", false).await.expect("sent");
    soon("the tunnel", handle.send_ping()).await.expect("the tunnel lives");
    assert!(hub.get(AGENT).is_some(), "the agent can be called no more");
}

/// An agent that repeats itself must not drown the hub's events of the others.
#[tokio::test]
async fn repeated_forward_requests_are_one_event() {
    let (key, ours) = raw::key();
    let allowed = AllowedKeys::new().allow(AGENT, ours.public_key()).expect("an id");
    let hub = Hub::builder(PrivateKey::generate()).authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");
    let mut events = hub.events();
    let Dialled { handle, .. } = raw::log_in(hub.local_addr(), AGENT, &key).await;
    for _ in 0..100 {
        soon("an answer", handle.streamlocal_forward("/grpc-tunnel")).await.expect("granted, each time");
    }
    soon("the goodbye", handle.disconnect(russh::Disconnect::ByApplication, "", "")).await.expect("sent");

    let mut seen = Vec::new();
    loop {
        let event = soon("an event", events.next()).await.expect("none is missed");
        let last = matches!(event, dialback::HubEvent::Closed { .. });
        seen.push(event);
        if last {
            break;
        }
    }
    assert_eq!(seen.len(), 3, "{seen:#?}");
}

#[tokio::test]
async fn agent_refuses_every_channel_but_a_tunnels() {
    let (agent, _fake, handle) = agent_and_server().await;

    assert_prohibited("session", soon("session", handle.channel_open_session()).await);
    assert_prohibited("x11", soon("x11", handle.channel_open_x11("127.0.0.1", 6000)).await);
    assert_prohibited("auth-agent", soon("auth-agent", handle.channel_open_agent()).await);
    let tcp = handle.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1);
    assert_prohibited("direct-tcpip", soon("direct-tcpip", tcp).await);
    let tcp = handle.channel_open_forwarded_tcpip("127.0.0.1", 22, "127.0.0.1", 1);
    assert_prohibited("forwarded-tcpip", soon("forwarded-tcpip", tcp).await);
    let local = handle.channel_open_direct_streamlocal("/grpc-tunnel");
    assert_prohibited("direct-streamlocal", soon("direct-streamlocal", local).await);
    for path in ["", "/", "grpc-tunnel", "/grpc-tunnel/", "/grpc-tunnel\0", "/run/docker.sock"] {
        assert_prohibited(path, soon(path, handle.channel_open_forwarded_streamlocal(path)).await);
    }

    soon("the right path", handle.channel_open_forwarded_streamlocal("/grpc-tunnel")).await.expect("it is served");
    assert!(agent.status().borrow().is_connected());
}

#[tokio::test]
async fn agent_takes_no_orders_on_a_channel() {
    let (agent, _fake, handle) = agent_and_server().await;
    let _incoming = agent.incoming();
    let channel =
        soon("a channel", handle.channel_open_forwarded_streamlocal("/grpc-tunnel")).await.expect("a channel");
    channel.exit_status(0).await.expect("sent");

    soon("another channel", handle.channel_open_forwarded_streamlocal("/grpc-tunnel")).await.expect("it lives");
    assert!(agent.status().borrow().is_connected());
}

/// What russh itself cannot open or ask is asked by a peer in Go. It prints a line for each thing it tried.
#[tokio::test]
async fn go_client_is_refused_by_the_hub_with_the_right_codes() {
    let Some(probe) = go_peer("probe") else { return };
    if !require_program("ssh-keygen") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (key, public) = ssh_keygen(dir.path(), AGENT, "ed25519");
    let allowed = AllowedKeys::new().allow(AGENT, public.parse().expect("a key")).expect("an id");
    let hub = Hub::builder(PrivateKey::generate()).authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");
    let address = hub.local_addr().to_string();
    let run = async |more: &[&str]| {
        let mut command = Command::new(&probe);
        let peer = Peer::start(command.args(["-hub", &address, "-id", AGENT, "-key"]).arg(&key).args(more));
        soon("the probe's end", peer.finish()).await
    };

    let (status, said) = run(&[]).await;
    assert!(status.success(), "{said:#?}");
    let expected = [
        "open session: 1",
        "open x11: 1",
        "open direct-tcpip: 1",
        "open forwarded-tcpip: 1",
        "global no-such-request@example.com: false",
        "global keepalive@openssh.com: false",
        "global tcpip-forward: true",
        "open direct-streamlocal@openssh.com: ok",
        "request no-such-request@example.com: false",
        "request exec: false",
        "request auth-agent-req@openssh.com: false",
        "request keepalive@openssh.com: false",
        "alive",
    ];
    assert_eq!(said, expected);

    // Those that russh refuses by itself it answers twice, at which Go hangs up; so each has a connection of its own.
    for (kind, code) in [
        ("auth-agent@openssh.com", 1),
        ("forwarded-streamlocal@openssh.com", 1),
        ("tun@openssh.com", 3),
        ("grpc-tunnel", 3),
        ("no-such-type@example.com", 3),
        ("", 3),
    ] {
        let (_, said) = run(&["-only", kind]).await;
        assert_eq!(said.first(), Some(&format!("open {kind}: {code}")), "{said:#?}");
    }
}

#[tokio::test]
async fn go_hub_is_refused_by_the_agent_with_the_right_codes() {
    let Some(probe) = go_peer("probe") else { return };
    let mut peer = Peer::start(Command::new(probe).args(["-listen", "127.0.0.1:0"]));
    let host_key = peer.line("host-key ").await;
    let address = peer.line("listening ").await;
    let known = HostKeys::public_key(host_key.parse().expect("a key"));
    let agent = Agent::builder(AGENT, PrivateKey::generate()).host_keys(known);
    let agent = soon("the login", agent.connect(address)).await.expect("connect");
    let _incoming = agent.incoming();

    let (status, said) = soon("the probe's end", peer.finish()).await;

    assert!(status.success(), "{said:#?}");
    let expected = [
        "open session: 1",
        "open x11: 1",
        "open auth-agent@openssh.com: 1",
        "open direct-tcpip: 1",
        "open forwarded-tcpip: 1",
        "open direct-streamlocal@openssh.com: 1",
        "open tun@openssh.com: 3",
        "open no-such-type@example.com: 3",
        "open : 3",
        "global no-such-request@example.com: false",
        "global tcpip-forward: false",
        "open grpc-tunnel: ok",
        "request no-such-request@example.com: false",
        "request exec: false",
        "request auth-agent-req@openssh.com: false",
        "open forwarded-streamlocal@openssh.com: ok",
        "request no-such-request@example.com: false",
        "request exec: false",
        "request auth-agent-req@openssh.com: false",
        "alive",
    ];
    assert_eq!(said[2..], expected);
    drop(agent);
}

/// Lets itself be called, and never answers when it is.
struct Mute(Vec<client::ChannelOpenHandle>);

impl client::Handler for Mute {
    type Error = Error;

    async fn check_server_key(&mut self, _: &russh::keys::PublicKeyOrCertificate) -> Result<bool, Error> {
        Ok(true)
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<client::Msg>,
        _: &str,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Error> {
        self.0.push(reply); // dropping it would be an answer
        Ok(())
    }
}

#[tokio::test]
async fn dials_that_are_never_answered_time_out_and_do_not_pile_up() {
    let (key, ours) = raw::key();
    let allowed = AllowedKeys::new().allow(AGENT, ours.public_key()).expect("an id");
    let hub = Hub::builder(PrivateKey::generate()).authorizer(allowed).open_timeout(Duration::from_millis(200));
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let mut handle = client::connect(Arc::default(), hub.local_addr(), Mute(vec![])).await.expect("dial");
    let key = PrivateKeyWithHashAlg::new(key, None);
    assert!(handle.authenticate_publickey(AGENT, key).await.expect("an answer").success());
    handle.streamlocal_forward("/grpc-tunnel").await.expect("the hub may call");
    let connector = hub.connector(AGENT).expect("an id");
    let tasks = tokio::runtime::Handle::current().metrics();
    let before = tasks.num_alive_tasks();

    let mut dials = JoinSet::new();
    for _ in 0..250 {
        let connector = connector.clone();
        dials.spawn(async move { connector.dial().await });
    }
    for dial in soon("the timeouts", dials.join_all()).await {
        assert!(matches!(dial, Err(DialError::TimedOut { .. })), "{dial:?}");
    }

    // What the peer has been asked cannot be taken back; what still waited in line is gone.
    soon("the line's end", async {
        while tasks.num_alive_tasks() > before + 64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
