//! Tunnels over WebSockets: in servers of others, behind nginx, through middleboxes that cut; and what is not one.

#![cfg(feature = "websocket")]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::echo::{Echo, payload, pb::echo_client::EchoClient};
use common::peers::{Peer, find_program, require_program};
use common::rig::{AGENT, Over, Rig, serve, soon};
use common::tls::Certificates;
use dialback::{
    Agent, AgentBuilder, AgentStatus, AllowedKeys, BindError, ConnectError, HostKeys, Hub, HubBuilder, PrivateKey,
};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};
use tokio_tungstenite::tungstenite::{Error, Message};

fn keys() -> (HubBuilder, AgentBuilder) {
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).expect("an id");
    let agent = Agent::builder(AGENT, key).host_keys(HostKeys::public_key(host.public_key()));
    let pause = Duration::from_millis(20);
    (Hub::builder(host).authorizer(allowed), agent.backoff(pause, pause, Duration::from_secs(60)))
}

/// Where a WebSocket's URL leads.
fn address(url: &str) -> &str {
    url.split('/').nth(2).expect("host:port")
}

async fn assert_callable(hub: &Hub) {
    soon("the agent", hub.wait_for(AGENT)).await.expect("an id");
    let mut echo = EchoClient::new(hub.channel(AGENT).expect("an id"));
    assert_eq!(soon("an answer", echo.unary(payload("ping"))).await.expect("an answer").into_inner().data, b"ping");
}

async fn open(url: &str) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(address(url)).await.expect("connect");
    tokio_tungstenite::client_async(url, stream).await.expect("a WebSocket").0
}

/// Sends what is no WebSocket, and gives the answer.
async fn ask(url: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address(url)).await.expect("connect");
    let _ = stream.write_all(request.as_bytes()).await; // the answer may come before all is sent
    let mut answer = Vec::new();
    let _ = soon("the end of the answer", stream.read_to_end(&mut answer)).await; // or a reset
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bad_messages_end_their_connection_with_the_right_code() {
    let rig = Rig::builder().over(Over::WebSocket).start().await;
    let url = rig.hub.listen("ws://127.0.0.1:0/tunnel").await.expect("listen");
    let frame = |opcode, fin: bool, bytes: usize| {
        let header = FrameHeader { is_final: fin, opcode, ..FrameHeader::default() };
        Message::Frame(Frame::from_payload(header, vec![0; bytes].into()))
    };
    let fragments = std::iter::once(frame(OpCode::Data(Data::Binary), false, 4096))
        .chain(std::iter::repeat_with(|| frame(OpCode::Data(Data::Continue), false, 4096)).take(100));
    let cases = [
        ("text", vec![Message::text("SSH-2.0-OpenSSH_9.2\r\n")], CloseCode::Unsupported),
        ("a large frame", vec![Message::binary(vec![0; 300 << 10])], CloseCode::Size),
        ("fragments without end", fragments.collect(), CloseCode::Size),
        ("a continuation of nothing", vec![frame(OpCode::Data(Data::Continue), true, 1)], CloseCode::Protocol),
        ("an unknown kind", vec![frame(OpCode::Data(Data::Reserved(5)), true, 1)], CloseCode::Protocol),
    ];
    for (what, messages, expected) in cases {
        let mut socket = open(&url).await;
        for message in messages {
            let _ = socket.send(message).await; // what is refused may not be taken to its end
        }
        let code = soon(what, async {
            loop {
                match socket.next().await {
                    Some(Ok(Message::Close(Some(CloseFrame { code, .. })))) => return Some(code),
                    Some(Ok(_)) => {}                              // the hub's first words
                    Some(Err(Error::Io(_))) | None => return None, // reset: it did not read to the end
                    Some(Err(error)) => panic!("{what}: {error}"),
                }
            }
        });
        let code = code.await;
        // A hub that is still being sent to when it closes resets, and its word may be lost.
        let may_be_lost = matches!(expected, CloseCode::Size);
        assert!(code == Some(expected) || (may_be_lost && code.is_none()), "{what}: {code:?}");
        assert_callable(&rig.hub).await;
    }
    // Not masked, as all from a client must be (RFC 6455 §5.1).
    let mut socket = open(&url).await;
    socket.get_mut().write_all(&[0x82, 4, 1, 2, 3, 4]).await.expect("send");
    let closed = soon("the end", async {
        while let Some(message) = socket.next().await {
            if let Ok(Message::Close(frame)) = message {
                return frame;
            }
        }
        None
    });
    assert_eq!(closed.await.expect("a close").code, CloseCode::Protocol);
}

#[tokio::test]
async fn what_opens_no_websocket_is_told_why() {
    let rig = Rig::builder().over(Over::WebSocket).start().await;
    let url = rig.hub.listen("ws://127.0.0.1:0/tunnel").await.expect("listen");
    let upgrade =
        "Host: hub\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let cases = [
        ("GET /tunnel HTTP/1.1\r\nHost: hub\r\n\r\n".into(), "426", "agents of a dialback hub"),
        ("POST /tunnel HTTP/1.1\r\nHost: hub\r\nContent-Length: 1\r\n\r\nx".into(), "426", "agents of a dialback hub"),
        (format!("GET /other HTTP/1.1\r\n{upgrade}Sec-WebSocket-Version: 13\r\n\r\n"), "404", "another path"),
        (format!("GET /tunnel HTTP/1.1\r\n{upgrade}Sec-WebSocket-Version: 8\r\n\r\n"), "426", "is 13"),
        (format!("GET /tunnel HTTP/1.1\r\n{upgrade}\r\n"), "400", "no WebSocket"),
        (
            format!(
                "GET /tunnel HTTP/1.1\r\n{upgrade}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
            ),
            "400",
            "dialback-ssh",
        ),
        (format!("GET /tunnel HTTP/1.1\r\nHost: hub\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)), "431", ""),
        ("SSH-2.0-OpenSSH_9.2\r\n".into(), "400", ""),
    ];
    for (request, status, why) in cases {
        let answer = ask(&url, &request).await;
        // A hub that does not read a megabyte to its end resets, and its answer may be lost.
        let lost = answer.is_empty() && request.len() > 100_000;
        let right = answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(why);
        assert!(lost || right, "{}: {answer}", &request[..request.len().min(300)]);
    }
    let http10 = ask(&url, "GET /tunnel HTTP/1.0\r\n\r\n").await;
    assert!(http10.starts_with("HTTP/1.0 426 "), "{http10}");
    assert_callable(&rig.hub).await;
}

#[tokio::test]
async fn strangers_have_their_time_and_no_more() {
    let (hub, agent) = keys();
    let hub = hub.login_timeout(Duration::from_secs(1)).bind("127.0.0.1:0").await.expect("bind");
    let url = hub.listen("ws://127.0.0.1:0/").await.expect("listen");
    // One says nothing, one half a request, one opens a WebSocket and sends nothing but pings.
    let mut silent = TcpStream::connect(address(&url)).await.expect("connect");
    let mut half = TcpStream::connect(address(&url)).await.expect("connect");
    half.write_all(b"GET / HTTP/1.1\r\nHost: hub\r\n").await.expect("send");
    let mut pinging = open(&url).await;
    let pings = tokio::spawn(async move {
        let mut pings = 0;
        while pinging.feed(Message::Ping(vec![7; 100].into())).await.is_ok() {
            pings += 1;
        }
        pings
    });

    for stream in [&mut silent, &mut half] {
        soon("the end", stream.read_to_end(&mut Vec::new())).await.expect("an end");
    }
    assert!(soon("the end of the pings", pings).await.expect("no panic") > 0);
    let _agent = agent.connect(&*url).await.expect("a hub that still works");
}

/// Who floods a hub with pings and reads no answer gets neither memory nor the time of others.
#[tokio::test(flavor = "multi_thread")]
async fn pings_hold_nobody_up() {
    let rig = Rig::builder().over(Over::WebSocket).start().await;
    let url = rig.hub.listen("ws://127.0.0.1:0/tunnel").await.expect("listen");
    let floods: Vec<_> = (0..4)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move {
                let mut socket = open(&url).await;
                while socket.feed(Message::Ping(vec![7; 125].into())).await.is_ok() {}
            })
        })
        .collect();
    for _ in 0..50 {
        assert_callable(&rig.hub).await;
    }
    floods.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn agents_say_what_keeps_them_from_a_hub() {
    let (hub, _) = keys();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let dir = tempfile::tempdir().expect("a directory");
    let files = Certificates::of(dir.path(), &["hub.example.com"]);
    let wss = hub.listen_tls("wss://127.0.0.1:0/tunnel", &files.certificate, &files.key).await.expect("listen");
    let ws = hub.listen("ws://127.0.0.1:0/tunnel").await.expect("listen");
    let connect = async |url: &str, roots: bool| {
        let agent = keys().1.login_timeout(Duration::from_secs(2));
        let agent = if roots { agent.tls_roots(&files.authority) } else { agent };
        let error = soon(url, agent.connect(url)).await.expect_err(url);
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        (error, text)
    };

    let (error, text) = connect(&wss, true).await;
    assert!(matches!(error, ConnectError::Tls { .. }) && text.contains("not valid for name"), "{text}");
    assert!(!error.is_transient());
    let (error, text) = connect(&wss, false).await;
    assert!(matches!(error, ConnectError::Tls { .. }) && text.contains("UnknownIssuer"), "{text}");
    let (error, text) = connect(&ws.replace("ws:", "wss:"), true).await;
    assert!(matches!(error, ConnectError::Tls { .. }), "a server without TLS: {text}");
    let (error, text) = connect(&ws.replace("tunnel", "other"), false).await;
    assert!(matches!(error, ConnectError::NotWebSocket { status: Some(404), .. }) && text.contains("404"), "{text}");
    assert!(!error.is_transient());
    let (error, text) = connect(&format!("ws://{}", hub.local_addr()), false).await;
    assert!(matches!(error, ConnectError::NotWebSocket { status: None, .. }), "a hub's port for SSH: {text}");

    let answers = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("ws://{}/tunnel", answers.local_addr().expect("an address"));
    tokio::spawn(async move {
        loop {
            let mut stream = answers.accept().await.expect("accept").0;
            assert!(stream.read(&mut [0; 2000]).await.expect("a request") > 0);
            stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await.expect("answer");
        }
    });
    // A hub without room hangs up, as SSH's port does, and that may pass.
    let full = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let at = full.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = full.accept().await {
            assert!(stream.read(&mut [0; 2000]).await.expect("a request") > 0);
        }
    });
    for scheme in ["ws", "wss"] {
        let (error, text) = connect(&format!("{scheme}://{at}/tunnel"), false).await;
        assert!(matches!(error, ConnectError::Unreachable { .. }), "{scheme}: {text}");
    }
    let (error, text) = connect(&url, false).await;
    assert!(matches!(error, ConnectError::NotWebSocket { status: Some(502), .. }), "{text}");
    assert!(error.is_transient(), "the hub behind a proxy may come back");

    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    for scheme in ["ws", "wss"] {
        let (error, text) = connect(&format!("{scheme}://{}", silent.local_addr().expect("an address")), false).await;
        assert!(matches!(error, ConnectError::Unreachable { .. }) && error.is_transient(), "{text}");
    }
    let missing = keys().1.tls_roots(dir.path().join("missing")).connect(&*wss).await.expect_err("no file");
    assert!(matches!(missing, ConnectError::TlsRoots(_)) && missing.to_string().contains("missing"), "{missing}");
}

#[tokio::test]
async fn a_hub_says_what_it_cannot_listen_with() {
    let (hub, _) = keys();
    let bad = hub.trusted_proxies("nobody").bind("127.0.0.1:0").await.expect_err("no list");
    assert!(matches!(&bad, BindError::TrustedProxies { why } if why.contains("nobody")), "{bad}");
    let hub = keys().0.bind("127.0.0.1:0").await.expect("bind");
    let dir = tempfile::tempdir().expect("a directory");
    let files = Certificates::of(dir.path(), &["localhost"]);
    let error = hub.listen("wss://127.0.0.1:0/").await.expect_err("no certificates");
    assert!(error.to_string().contains("listen_tls"), "{error}");
    let error = hub.listen_tls("ws://127.0.0.1:0/", &files.certificate, &files.key).await.expect_err("no TLS");
    assert!(matches!(error, BindError::InvalidAddress { .. }), "{error}");
    let error = hub.listen_tls("wss://127.0.0.1:0/", &files.key, &files.key).await.expect_err("a key");
    assert!(matches!(error, BindError::Tls(_)) && error.to_string().contains("key.pem"), "{error}");
}

/// Certificates end, and are replaced where they lie.
#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let (hub, agent) = keys();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let (dir, new) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let files = Certificates::of(dir.path(), &["127.0.0.1"]);
    let url = hub.listen_tls("wss://127.0.0.1:0/tunnel", &files.certificate, &files.key).await.expect("listen");
    let renewed = Certificates::of(new.path(), &["127.0.0.1"]);
    std::fs::copy(&renewed.key, &files.key).expect("copy");
    std::fs::copy(&renewed.certificate, &files.certificate).expect("copy");

    let agent = agent.tls_roots(&renewed.authority);
    let agent = soon("the new certificate", async {
        loop {
            match keys().1.tls_roots(&renewed.authority).connect(&*url).await {
                Err(ConnectError::Tls { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(ConnectError::HostKey { .. }) => return agent.connect(&*url).await, // TLS is through
                other => panic!("{other:?}"),
            }
        }
    });
    agent.await.expect("connect");
}

#[tokio::test]
async fn agents_come_in_by_a_server_of_the_users_own() {
    let (hub, agent) = keys();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let app = {
        let hub = hub.clone();
        let tunnel = move |axum::extract::ConnectInfo(peer): axum::extract::ConnectInfo<SocketAddr>,
                           mut request: axum::extract::Request| {
            let response = hub.accept_websocket(&mut request, Some(peer));
            async move { response }
        };
        axum::Router::new()
            .route("/", axum::routing::get(|| async { "an ordinary page" }))
            .route("/tunnel", axum::routing::get(tunnel))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await.expect("serve") });

    let agent = agent.connect(format!("ws://{address}/tunnel")).await.expect("connect");
    serve(&Echo::default(), agent.incoming());

    assert_callable(&hub).await;
    assert!(hub.get(AGENT).expect("connected").peer_addr().expect("an address").ip().is_loopback());
    let page = ask(&format!("ws://{address}/"), "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
    assert!(page.ends_with("an ordinary page"), "{page}");
    let plain = ask(&format!("ws://{address}/"), "GET /tunnel HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(plain.starts_with("HTTP/1.1 426 "), "{plain}");
}

/// What a middlebox does to a WebSocket next.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// It ends with a code.
    Close(u16),
    /// The connection is reset.
    Cut,
}

/// Stands between agent and hub and passes messages on, until it is told to do something else; then it answers the next
/// upgrade with 502.
async fn middlebox(hub: String) -> (String, mpsc::UnboundedSender<Act>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("ws://{}/tunnel", listener.local_addr().expect("an address"));
    let (send, acts) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let acts = Arc::new(tokio::sync::Mutex::new(acts));
        let refuse = Arc::new(Mutex::new(false));
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            if std::mem::take(&mut *refuse.lock().expect("no panic")) {
                assert!(stream.read(&mut [0; 2000]).await.expect("a request") > 0);
                let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await;
                continue;
            }
            let (hub, acts, refuse) = (hub.clone(), acts.clone(), refuse.clone());
            tokio::spawn(async move {
                #[allow(clippy::result_large_err)] // the library's own
                let protocol = |_: &_, mut response: http::Response<()>| {
                    response
                        .headers_mut()
                        .insert("sec-websocket-protocol", http::HeaderValue::from_static("dialback-ssh"));
                    Ok(response)
                };
                let mut agent = tokio_tungstenite::accept_hdr_async(stream, protocol).await.expect("an agent");
                let mut hub = open(&hub).await;
                loop {
                    let mut acts = acts.lock().await;
                    tokio::select! {
                        Some(Ok(message)) = agent.next() => hub.send(message).await.expect("the hub takes it"),
                        Some(Ok(message)) = hub.next() => agent.send(message).await.expect("the agent takes it"),
                        Some(act) = acts.recv() => {
                            *refuse.lock().expect("no panic") = true;
                            if let Act::Close(code) = act {
                                let frame = CloseFrame { code: code.into(), reason: "maintenance".into() };
                                let _ = agent.close(Some(frame)).await;
                            }
                            return;
                        }
                        else => return,
                    }
                }
            });
        }
    });
    (url, send)
}

/// A10: whatever a middlebox does to its WebSocket, the agent says what it was and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn agents_come_back_after_a_middlebox_has_cut_them_off() {
    let (hub, agent) = keys();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let direct = hub.listen("ws://127.0.0.1:0/tunnel").await.expect("listen");
    let (url, acts) = middlebox(direct).await;
    let agent = agent.connect(&*url).await.expect("connect");
    serve(&Echo::default(), agent.incoming());
    assert_callable(&hub).await;
    for act in [Act::Close(1001), Act::Close(1011), Act::Close(1000), Act::Cut] {
        let mut status = agent.status();
        status.mark_unchanged();
        let seen = Arc::new(Mutex::new(String::new()));
        let watch = {
            let seen = seen.clone();
            async move {
                while !(status.borrow().is_connected() && seen.lock().expect("no panic").contains("502")) {
                    status.changed().await.expect("an agent");
                    let text = match &*status.borrow() {
                        AgentStatus::Connecting { last_error, .. } => format!("{last_error:?}\n"),
                        other => format!("{other:?}\n"),
                    };
                    seen.lock().expect("no panic").push_str(&text);
                }
            }
        };
        let before = hub.get(AGENT).expect("connected").id();

        acts.send(act).expect("a middlebox");

        if tokio::time::timeout(common::rig::SOON, watch).await.is_err() {
            panic!("{act:?}: the agent is not back; it said:\n{}", seen.lock().expect("no panic"));
        }
        let said = seen.lock().expect("no panic").clone();
        if let Act::Close(code @ (1001 | 1011)) = act {
            assert!(said.contains(&format!("code {code}: maintenance")), "{act:?}: {said}");
        }
        assert_callable(&hub).await;
        assert_ne!(hub.get(AGENT).expect("connected").id(), before);
    }
}

/// Runs Debian's nginx before a hub, on a port that was free a moment ago.
async fn nginx(dir: &std::path::Path, hub: &str, tls: Option<&Certificates>) -> (Peer, u16) {
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("an address").port();
        let listen = match tls {
            None => format!("listen 127.0.0.1:{port};"),
            Some(files) => format!(
                "listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {};",
                files.certificate.display(),
                files.key.display()
            ),
        };
        // For those who ask for another name.
        let others = listen.replacen(';', " default_server;", 1);
        let config = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;
             events {{}}
             http {{
               access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
               uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
               server {{ {others} return 421; }}
               server {{
                 {listen} server_name 127.0.0.1;
                 location /tunnel {{
                   proxy_pass http://{hub};
                   proxy_bind 127.0.0.3;
                   proxy_http_version 1.1;
                   proxy_set_header Upgrade $http_upgrade;
                   proxy_set_header Connection upgrade;
                   proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                 }}
               }}
             }}",
            dir = dir.display()
        );
        let file = dir.join("nginx.conf");
        std::fs::write(&file, config).expect("write");
        let mut command = Command::new(find_program("nginx").expect("it is there"));
        let peer = Peer::start(command.arg("-p").arg(dir).arg("-c").arg(&file).arg("-e").arg(dir.join("error.log")));
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return (peer, port);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    panic!("nginx does not start:\n{}", std::fs::read_to_string(dir.join("error.log")).unwrap_or_default());
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_come_through_nginx_and_are_known_by_their_own_address() {
    if !require_program("nginx") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let files = Certificates::of(dir.path(), &["127.0.0.1"]);
    for (tls, trusted) in [(None, true), (Some(&files), true), (None, false)] {
        let (hub, agent) = keys();
        let hub = if trusted { hub.trusted_proxies("127.0.0.3") } else { hub };
        let hub = hub.bind("127.0.0.1:0").await.expect("bind");
        let url = hub.listen("ws://127.0.0.1:0/tunnel").await.expect("listen");
        let (_nginx, port) = nginx(dir.path(), address(&url), tls).await;
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        let url = format!("{scheme}://127.0.0.1:{port}/tunnel");
        if tls.is_none() {
            let (_, stranger) = keys();
            let error = stranger.connect(format!("ws://localhost:{port}/tunnel")).await.expect_err("a wrong Host");
            assert!(matches!(&error, ConnectError::NotWebSocket { status: Some(421), .. }), "{error:?}");
        }

        let agent = agent.tls_roots(&files.authority).connect(&*url).await.expect("connect");
        serve(&Echo::default(), agent.incoming());

        assert_callable(&hub).await;
        let large = vec![7; 3 << 20];
        let mut echo = EchoClient::new(hub.channel(AGENT).expect("an id")).max_decoding_message_size(4 << 20);
        let answer = soon("3 MiB", echo.unary(payload(large.clone()))).await.expect("an answer");
        assert!(answer.into_inner().data == large, "3 MiB came back changed");
        // Without trust, what is known is the proxy's own connection.
        let peer = hub.get(AGENT).expect("connected").peer_addr().expect("an address").ip();
        assert_eq!(peer.to_string(), if trusted { "127.0.0.1" } else { "127.0.0.3" });
    }
}

/// Only the last address that no trusted proxy has is believed.
#[tokio::test]
async fn nobody_can_say_where_he_comes_from() {
    let (hub, _) = keys();
    let hub = hub.trusted_proxies("127.0.0.1,10.0.0.0/8").unauthenticated_limits(16, 1).bind("127.0.0.1:0").await;
    let hub = hub.expect("bind");
    let url = hub.listen("ws://127.0.0.1:0/tunnel").await.expect("listen");
    let stays = async |forwarded: &str| {
        let mut request = url.as_str().into_client_request().expect("a URL");
        request.headers_mut().insert("x-forwarded-for", forwarded.parse().expect("a header"));
        let stream = TcpStream::connect(address(&url)).await.expect("connect");
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("a WebSocket");
        // A hub greets those who may stay.
        let greeting = soon(forwarded, socket.next()).await;
        let stays = matches!(&greeting, Some(Ok(Message::Binary(text))) if text.starts_with(b"SSH-2.0-"));
        stays.then_some(socket)
    };
    let first = stays("203.0.113.9").await;
    assert!(first.is_some());
    assert!(stays("203.0.113.9").await.is_none(), "its source has one already");
    assert!(stays("198.51.100.1, 203.0.113.9, 10.1.2.3").await.is_none(), "what the client put before is nothing");
    assert!(stays("203.0.113.9, 198.51.100.1").await.is_some(), "another one");
    // Where the true address is last, nothing before it counts; where that is none, nothing is believed.
    for (forwarded, status) in
        [(&b"\xff, 203.0.113.77"[..], "101"), (b"203.0.113.78, \xff", "400"), (b"203.0.113.79, x", "400")]
    {
        let head = "GET /tunnel HTTP/1.1\r\nHost: hub\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Forwarded-For: ";
        let mut stream = TcpStream::connect(address(&url)).await.expect("connect");
        stream.write_all(&[head.as_bytes(), forwarded, b"\r\n\r\n"].concat()).await.expect("send");
        let mut answer = [0; 12];
        soon("an answer", stream.read_exact(&mut answer)).await.expect("an answer");
        assert_eq!(String::from_utf8_lossy(&answer[9..]), status);
    }
    drop(first);
    soon("its place", async { while stays("203.0.113.9:443").await.is_none() {} }).await;
}
