//! Agents that come by proxies that speak the PROXY protocol of HAProxy: ones of the tests' own, and HAProxy itself.

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use common::echo::{Echo, payload, pb::echo_client::EchoClient};
use common::peers::{Peer, find_program, require_program};
use common::raw;
use common::rig::{AGENT, serve, soon};
use dialback::{
    Agent, AgentBuilder, AllowedKeys, AuthorizedKeys, BindError, HostKeys, Hub, HubBuilder, HubEvent, PrivateKey,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;

/// Where the proxies dial from, and what hubs trust.
const PROXYS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const TRUSTED: &str = "127.0.0.3,10.0.0.0/8";

/// A header that names 203.0.113.9.
const NAMES_9: &[u8] = b"PROXY TCP4 203.0.113.9 127.0.0.1 40000 22\r\n";

/// A hub, and an agent that it knows.
fn pair() -> (HubBuilder, impl Fn() -> AgentBuilder) {
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).expect("an id");
    let known = HostKeys::public_key(host.public_key());
    let hub = Hub::builder(host).authorizer(allowed).rejection_time(Duration::from_millis(10));
    (hub, move || Agent::builder(AGENT, key.clone()).host_keys(known.clone()))
}

fn proxied_pair() -> (HubBuilder, impl Fn() -> AgentBuilder) {
    let (hub, agent) = pair();
    (speaking(hub), agent)
}

/// A hub whose proxies speak the protocol.
fn speaking(hub: HubBuilder) -> HubBuilder {
    hub.trusted_proxies(TRUSTED).proxy_protocol()
}

async fn dial_from(source: Ipv4Addr, hub: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((source, 0).into()).expect("an address of loopback");
    socket.connect(hub).await.expect("dial")
}

/// A proxy that begins each connection to a hub with these bytes and passes on the rest. Dropping the set ends it.
async fn proxy(hub: SocketAddr, source: Ipv4Addr, header: impl Into<Vec<u8>>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let (address, header) = (listener.local_addr().expect("an address"), header.into());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.expect("accept");
            let header = header.clone();
            connections.spawn(async move {
                let mut far = dial_from(source, hub).await;
                let _ = far.write_all(&header).await; // a hub may hang up at any time
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (address, tasks)
}

/// A header of version 2.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a length").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, body].concat()
}

async fn assert_callable(hub: &Hub) {
    let mut echo = EchoClient::new(hub.channel(AGENT).expect("an id"));
    assert_eq!(soon("an answer", echo.unary(payload("ping"))).await.expect("an answer").into_inner().data, b"ping");
}

/// Where the hub says that its one agent comes from, once it can be called.
async fn peer_of_callable(hub: &Hub) -> Option<SocketAddr> {
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.expect("an id");
    assert_callable(hub).await;
    assert_eq!(tunnel.info().peer_addr, tunnel.peer_addr());
    tunnel.peer_addr()
}

fn socket_address(url: &str) -> SocketAddr {
    url.split('/').nth(2).and_then(|address| address.parse().ok()).expect("scheme://address:port")
}

#[tokio::test]
async fn agents_come_from_where_a_header_says() {
    let v6 =
        |tail: [u8; 6]| [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0][..], &tail, &[0; 16], &[0x9c, 0x40, 0, 22]].concat();
    let with_tlv = [203, 0, 113, 9, 127, 0, 0, 1, 0x9c, 0x40, 0, 22, 0x04, 0, 1, 7];
    let cases: [(Vec<u8>, Option<&str>); 8] = [
        (NAMES_9.into(), Some("203.0.113.9:40000")),
        (b"PROXY TCP6 2001:db8::9 ::1 40000 22\r\n".into(), Some("[2001:db8::9]:40000")),
        (v2(0x21, 0x11, &with_tlv), Some("203.0.113.9:40000")),
        (v2(0x21, 0x21, &v6([0, 0, 0, 0, 0, 9])), Some("[2001:db8::9]:40000")),
        // A trusted proxy's address is an address.
        (b"PROXY TCP4 10.1.2.3 127.0.0.1 40000 22\r\n".into(), Some("10.1.2.3:40000")),
        (b"PROXY UNKNOWN\r\n".into(), None),
        (v2(0x20, 0x00, &[]), None),
        (v2(0x21, 0x31, &[7; 216]), None),
    ];
    for (header, named) in cases {
        let what = header.escape_ascii().to_string();
        let (hub, agent) = proxied_pair();
        let hub = hub.bind("127.0.0.1:0").await.expect("bind");
        let second = hub.listen("ssh://127.0.0.1:0").await.expect("listen");
        for at in [hub.local_addr(), socket_address(&second)] {
            let mut events = hub.events();
            let (proxy, _proxy) = proxy(at, PROXYS, header.clone()).await;

            let agent = soon(&what, agent().connect(proxy.to_string())).await.expect(&what);
            let server = serve(&Echo::default(), agent.incoming());

            let peer = peer_of_callable(&hub).await;
            assert_eq!(peer.map(|peer| peer.to_string()).as_deref(), named, "{what}");
            let Ok(HubEvent::Opened { peer: told, .. }) = soon("its event", events.next()).await else {
                panic!("{what}: another event");
            };
            assert_eq!(told, peer, "{what}");
            server.abort();
            drop(agent);
            soon("its end", async { while !matches!(events.next().await, Ok(HubEvent::Closed { .. })) {} }).await;
        }
    }
}

/// Whose word is not taken has no way to give it, and who has to give it has no way around it.
#[tokio::test]
async fn headers_come_from_trusted_proxies_and_from_nobody_else() {
    let (hub, agent) = proxied_pair();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let ssh = &b"SSH-2.0-x\r\n"[..];
    let bad = b"PROXY TCP4 203.0.113.9 127.0.0.1 40000\r\nSSH-2.0-x\r\n";
    let elsewhere = Ipv4Addr::new(127, 0, 0, 4);
    for (what, source, bytes) in [
        ("a header from elsewhere", elsewhere, [NAMES_9, ssh].concat()),
        ("a header of version 2 from elsewhere", elsewhere, [&v2(0x20, 0, &[])[..], ssh].concat()),
        ("none from a proxy", PROXYS, ssh.into()),
        ("a bad one", PROXYS, bad.into()),
        ("two", PROXYS, [NAMES_9, NAMES_9, ssh].concat()),
        ("a long one", PROXYS, v2(0x21, 0x11, &[0; 5000])),
    ] {
        let mut stream = dial_from(source, hub.local_addr()).await;
        let took = soon(what, raw::until_closed(&mut stream, &bytes)).await;
        assert!(took < Duration::from_secs(3), "{what}: {took:?}");
    }
    // An agent is no better.
    let (without, _without) = proxy(hub.local_addr(), PROXYS, "").await;
    let (beyond, _beyond) = proxy(hub.local_addr(), elsewhere, NAMES_9).await;
    for refused in [without, beyond] {
        assert!(soon("a refusal", agent().connect(refused.to_string())).await.is_err());
    }
    let _agent = agent().connect(hub.local_addr().to_string()).await.expect("who comes by no proxy is let in");
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.expect("an id");
    assert_eq!(tunnel.peer_addr().expect("an address").ip(), Ipv4Addr::LOCALHOST);
}

#[tokio::test]
async fn silent_proxies_have_their_time_and_hold_nobody_up() {
    const LOGIN: Duration = Duration::from_secs(3);
    let (hub, agent) = proxied_pair();
    let hub = hub.login_timeout(LOGIN).unauthenticated_limits(16, 1).bind("127.0.0.1:0").await.expect("bind");
    let started = Instant::now();
    let mut silent = Vec::new();
    // More than may come from one source: whose these are is not known yet.
    for begins in [&b""[..], b"", b"PROXY TCP4 203.0.113.9", &v2(0x21, 0x11, &[0; 12])[..20]] {
        let mut stream = dial_from(PROXYS, hub.local_addr()).await;
        stream.write_all(begins).await.expect("send");
        silent.push(stream);
    }

    let (proxy, _proxy) = proxy(hub.local_addr(), PROXYS, NAMES_9).await;
    let through = soon("an agent by a proxy", agent().connect(proxy.to_string())).await.expect("connect");
    soon("an agent", agent().connect(hub.local_addr().to_string())).await.expect("connect");

    assert!(started.elapsed() < LOGIN, "they were held up");
    for mut stream in silent {
        assert_eq!(
            soon("its end", stream.read(&mut [0; 100])).await.expect("an end"),
            0,
            "a hub that waits says nothing"
        );
        assert!(started.elapsed() > LOGIN / 2, "{:?}", started.elapsed());
    }
    drop(through);
}

#[tokio::test]
async fn sources_are_counted_as_headers_name_them() {
    let (hub, _) = proxied_pair();
    let hub = hub.unauthenticated_limits(16, 1).bind("127.0.0.1:0").await.expect("bind");
    let knock = async |header: &[u8]| {
        let mut stream = dial_from(PROXYS, hub.local_addr()).await;
        stream.write_all(header).await.expect("send");
        soon("an answer", raw::read_id(&mut stream)).await.ok().map(|_| stream)
    };
    let first = knock(NAMES_9).await;
    assert!(first.is_some());
    assert!(knock(NAMES_9).await.is_none(), "its source has one already");
    let mapped = b"PROXY TCP6 ::ffff:203.0.113.9 ::1 40000 22\r\n";
    assert!(knock(mapped).await.is_none(), "it has the same in IPv6 clothes");
    assert!(knock(b"PROXY TCP4 203.0.113.10 127.0.0.1 40000 22\r\n").await.is_some(), "another one");
    drop(first);
    soon("its place", async { while knock(NAMES_9).await.is_none() {} }).await;
}

#[tokio::test]
async fn keys_are_bound_to_the_address_that_a_header_names() {
    let dir = tempfile::tempdir().expect("a directory");
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let file = dir.path().join("authorized_keys");
    std::fs::write(&file, format!("principals=\"{AGENT}\",from=\"203.0.113.0/24\" {}\n", key.public_key()))
        .expect("write");
    let known = HostKeys::public_key(host.public_key());
    let hub = Hub::builder(host).authorizer(AuthorizedKeys::open(file).expect("a file"));
    let hub = speaking(hub.rejection_time(Duration::from_millis(10))).bind("127.0.0.1:0").await.expect("bind");
    for (header, welcome) in [
        (NAMES_9, true),
        (b"PROXY TCP6 ::ffff:203.0.113.9 ::1 40000 22\r\n", true),
        (b"PROXY TCP4 198.51.100.9 203.0.113.9 40000 22\r\n", false),
        (b"PROXY UNKNOWN\r\n", false),
    ] {
        let (proxy, _proxy) = proxy(hub.local_addr(), PROXYS, header).await;
        let agent = Agent::builder(AGENT, key.clone()).host_keys(known.clone()).connect(proxy.to_string());
        assert_eq!(soon("an answer", agent).await.is_ok(), welcome, "{}", header.escape_ascii());
    }
}

/// Who hands a stream over has said where it comes from.
#[tokio::test]
async fn streams_that_are_handed_over_begin_with_no_header() {
    let (hub, agent) = proxied_pair();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let peer = SocketAddr::from((PROXYS, 40_000));
    let (agents, hubs) = tokio::io::duplex(4096);
    hub.accept_stream(hubs, Some(peer)).await;

    let agent = soon("the login", agent().connect_over("hub", agents)).await.expect("connect");
    serve(&Echo::default(), agent.incoming());

    assert_eq!(peer_of_callable(&hub).await, Some(peer));
}

#[tokio::test]
async fn a_hub_says_whom_it_has_to_trust() {
    let (hub, _) = pair();
    let error = hub.proxy_protocol().bind("127.0.0.1:0").await.expect_err("whom?");
    assert!(matches!(error, BindError::NoTrustedProxies) && error.to_string().contains("trusted_proxies"), "{error}");
    let (hub, _) = pair();
    let error = hub.trusted_proxies("proxy").proxy_protocol().bind("127.0.0.1:0").await.expect_err("no list");
    assert!(matches!(&error, BindError::TrustedProxies { why } if why.contains("proxy")), "{error}");
}

#[cfg(feature = "websocket")]
mod websocket {
    use common::tls::Certificates;
    use futures_util::StreamExt;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;

    use super::*;

    #[tokio::test]
    async fn headers_come_before_tls_and_http() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = Certificates::of(dir.path(), &["127.0.0.1"]);
        let v2 = v2(0x21, 0x11, &[203, 0, 113, 9, 127, 0, 0, 1, 0x9c, 0x40, 1, 187]);
        for (scheme, header) in [("ws", NAMES_9), ("wss", NAMES_9), ("ws", &v2), ("wss", &v2)] {
            let (hub, agent) = proxied_pair();
            let hub = hub.bind("127.0.0.1:0").await.expect("bind");
            let url = match scheme {
                "ws" => hub.listen("ws://127.0.0.1:0/tunnel").await,
                _ => hub.listen_tls("wss://127.0.0.1:0/tunnel", &files.certificate, &files.key).await,
            };
            let (proxy, _proxy) = proxy(socket_address(&url.expect("listen")), PROXYS, header).await;

            let agent = agent().tls_roots(&files.authority).connect(format!("{scheme}://{proxy}/tunnel"));
            let agent = soon(scheme, agent).await.expect(scheme);
            serve(&Echo::default(), agent.incoming());

            let peer = peer_of_callable(&hub).await.expect("an address");
            assert_eq!(peer.to_string(), "203.0.113.9:40000", "{scheme}");
        }
    }

    /// What HTTP says counts if a trusted proxy says it, and not if a proxy passes it on for somebody else.
    #[tokio::test]
    async fn forwarded_for_is_believed_where_the_header_names_a_trusted_proxy() {
        let (hub, _) = proxied_pair();
        let hub = hub.unauthenticated_limits(16, 1).bind("127.0.0.1:0").await.expect("bind");
        let url = hub.listen("ws://127.0.0.1:0/tunnel").await.expect("listen");
        let stays = async |named: &str, forwarded: &str| {
            let mut stream = dial_from(PROXYS, socket_address(&url)).await;
            let header = match named {
                "nobody" => "PROXY UNKNOWN\r\n".into(),
                named => format!("PROXY TCP4 {named} 127.0.0.1 40000 80\r\n"),
            };
            stream.write_all(header.as_bytes()).await.expect("send");
            let mut request = url.as_str().into_client_request().expect("a URL");
            request.headers_mut().insert("x-forwarded-for", forwarded.parse().expect("a header"));
            let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.ok()?;
            // A hub greets those who may stay.
            let greeting = soon(named, socket.next()).await;
            matches!(&greeting, Some(Ok(Message::Binary(text))) if text.starts_with(b"SSH-2.0-")).then_some(socket)
        };
        let first = stays("203.0.113.9", "198.51.100.1").await;
        assert!(first.is_some());
        assert!(stays("203.0.113.9", "198.51.100.2").await.is_none(), "what a client says of itself is nothing");
        let proxied = stays("10.0.0.1", "198.51.100.1").await;
        assert!(proxied.is_some(), "nobody else has come from there");
        assert!(stays("10.0.0.2", "198.51.100.1").await.is_none(), "two proxies, one source");
        assert!(stays("10.0.0.1", "198.51.100.2").await.is_some(), "another one");
        let nameless = stays("nobody", "198.51.100.9").await;
        assert!(nameless.is_some() && stays("nobody", "198.51.100.9").await.is_some(), "a client's word was believed");
    }

    /// Those who say nothing more count for their source, before there is an HTTP request.
    #[tokio::test]
    async fn who_was_named_and_is_silent_takes_no_more_than_its_share() {
        let (hub, _) = proxied_pair();
        let hub = hub.unauthenticated_limits(16, 1).bind("127.0.0.1:0").await.expect("bind");
        let url = hub.listen("ws://127.0.0.1:0/tunnel").await.expect("listen");
        let mut streams = JoinSet::new();
        for _ in 0..2 {
            let mut stream = dial_from(PROXYS, socket_address(&url)).await;
            stream.write_all(NAMES_9).await.expect("send");
            streams.spawn(async move { stream.read(&mut [0; 100]).await });
        }
        let refused = soon("the end of one", streams.join_next()).await.expect("two").expect("no panic");
        assert!(matches!(refused, Ok(0)), "{refused:?}");
        assert_eq!(streams.len(), 1);
    }
}

/// Runs Debian's HAProxy before a hub, on a port that was free a moment ago.
async fn haproxy(dir: &std::path::Path, hub: SocketAddr, sends: &str) -> (Peer, u16) {
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("an address").port();
        let config = format!(
            "defaults
               mode tcp
               timeout connect 5s
               timeout client 60s
               timeout server 60s
             listen tunnels
               bind 127.0.0.1:{port}
               source {PROXYS}
               server hub {hub} {sends} check inter 100ms\n"
        );
        let file = dir.join("haproxy.cfg");
        std::fs::write(&file, config).expect("write");
        let mut command = Command::new(find_program("haproxy").expect("it is there"));
        let peer = Peer::start(command.arg("-db").arg("-f").arg(&file));
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return (peer, port);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    panic!("haproxy does not start");
}

/// Its health checks come in between, and are nobody.
#[tokio::test]
async fn agents_come_through_haproxy_and_are_known_by_their_own_address() {
    if !require_program("haproxy") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    for (sends, expected) in [("send-proxy", Ipv4Addr::LOCALHOST), ("send-proxy-v2", Ipv4Addr::LOCALHOST), ("", PROXYS)]
    {
        let (hub, agent) = pair();
        let hub = if sends.is_empty() { hub } else { speaking(hub) };
        let hub = hub.bind("127.0.0.1:0").await.expect("bind");
        let (_haproxy, port) = haproxy(dir.path(), hub.local_addr(), sends).await;

        let agent = soon("the login", agent().connect(format!("127.0.0.1:{port}"))).await.expect("connect");
        serve(&Echo::default(), agent.incoming());

        let peer = peer_of_callable(&hub).await.expect("an address");
        assert_eq!(peer.ip(), IpAddr::from(expected), "{sends}");
    }
}
