//! Agents that get out through a proxy: tinyproxy (CONNECT), microsocks (SOCKS5), and proxies that lie.

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::child::{self, Keys};
use common::echo::{Echo, payload, pb::echo_client::EchoClient};
use common::egress::{PROXYS, microsocks, tinyproxy};
use common::peers::require_program;
use common::rig::{AGENT, serve, soon};
use dialback::{Agent, AgentBuilder, AllowedKeys, ConnectError, HostKeys, Hub, PrivateKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn child() {
    common::child::run().await; // nothing, unless this process is one
}

async fn pair() -> (Hub, impl Fn() -> AgentBuilder) {
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).expect("an id");
    let known = HostKeys::public_key(host.public_key());
    let hub = Hub::builder(host).authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");
    let agent = move || Agent::builder(AGENT, key.clone()).host_keys(known.clone());
    (hub, agent)
}

/// Starts a program on a port that was free a moment ago.
async fn assert_callable(hub: &Hub, from: &str) {
    let tunnel = soon("the agent", hub.wait_for(AGENT)).await.expect("an id");
    let mut echo = EchoClient::new(hub.channel(AGENT).expect("an id"));
    let answer = soon("an answer", echo.unary(payload("ping"))).await.expect("an answer");
    assert_eq!(answer.into_inner().data, b"ping");
    assert_eq!(tunnel.peer_addr().expect("an address").ip(), from.parse::<IpAddr>().expect("an address"));
}

#[tokio::test]
async fn agents_get_out_through_real_proxies() {
    if !require_program("tinyproxy") || !require_program("microsocks") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (_open, open) = tinyproxy(dir.path(), "").await;
    let (_closed, closed) = tinyproxy(dir.path(), "BasicAuth me secret").await;
    let (_socks, socks) = microsocks(&[]).await;
    let (_secret, secret) = microsocks(&["-u", "me", "-P", "s:e%cret"]).await;
    let proxies = [
        format!("http://127.0.0.1:{open}"),
        format!("127.0.0.1:{open}"),
        format!("http://me:s%65cret@127.0.0.1:{closed}"),
        format!("socks5://127.0.0.1:{socks}"),
        format!("socks5h://me:s%3Ae%25cret@127.0.0.1:{secret}"),
    ];
    for proxy in &proxies {
        let (hub, agent) = pair().await;
        let agent = agent().proxy(proxy).connect(format!("ssh://localhost:{}", hub.local_addr().port())).await;
        let agent = agent.unwrap_or_else(|error| panic!("{proxy}: {error:?}"));
        serve(&Echo::default(), agent.incoming());
        assert_callable(&hub, PROXYS).await;
    }
}

/// A WebSocket through a proxy, and through one that is itself spoken to over TLS.
#[cfg(feature = "websocket")]
#[tokio::test]
async fn websockets_get_out_through_real_proxies() {
    if !require_program("tinyproxy") || !require_program("microsocks") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let files = common::tls::Certificates::of(dir.path(), &["127.0.0.1"]);
    let (_open, open) = tinyproxy(dir.path(), "").await;
    let (_socks, socks) = microsocks(&[]).await;
    let front = tls_before(open, &files).await;
    for proxy in [format!("http://127.0.0.1:{open}"), format!("socks5://127.0.0.1:{socks}"), format!("https://{front}")]
    {
        let (hub, agent) = pair().await;
        let ws = hub.listen("ws://127.0.0.1:0/tunnel").await.expect("listen");
        let wss = hub.listen_tls("wss://127.0.0.1:0/tunnel", &files.certificate, &files.key).await.expect("listen");
        for url in [ws, wss, hub.local_addr().to_string()] {
            let agent = agent().tls_roots(&files.authority).proxy(&proxy).connect(&*url).await;
            let agent = agent.unwrap_or_else(|error| panic!("{url} through {proxy}: {error:?}"));
            serve(&Echo::default(), agent.incoming());
            assert_callable(&hub, PROXYS).await;
            agent.shutdown(Duration::from_secs(1)).await;
        }
    }
    let (hub, agent) = pair().await;
    let distrusting = agent().proxy(format!("https://{front}")).connect(hub.local_addr().to_string()).await;
    let distrusted = matches!(&distrusting, Err(ConnectError::Proxy { why, .. }) if why.contains("UnknownIssuer"));
    assert!(distrusted, "{distrusting:?}");
}

/// TLS in front of a port.
#[cfg(feature = "websocket")]
async fn tls_before(port: u16, files: &common::tls::Certificates) -> SocketAddr {
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let chain = vec![CertificateDer::from_pem_file(&files.certificate).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
    let provider = std::sync::Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    let config = std::sync::Arc::new(config.with_single_cert(chain, key).expect("a key pair"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            let config = config.clone();
            tokio::spawn(async move {
                let Ok(mut near) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await else { return };
                let mut far = TcpStream::connect(("127.0.0.1", port)).await.expect("the proxy");
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await; // either end may break off
            });
        }
    });
    address
}

#[tokio::test]
async fn what_a_proxy_refuses_is_told_with_what_to_do() {
    if !require_program("tinyproxy") || !require_program("microsocks") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (_closed, closed) = tinyproxy(dir.path(), "BasicAuth me secret").await;
    let (_narrow, narrow) = tinyproxy(dir.path(), "ConnectPort 443").await;
    let (_open, open) = tinyproxy(dir.path(), "").await;
    let (_socks, socks) = microsocks(&["-u", "me", "-P", "secret"]).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("an address");
    let (hub, agent) = pair().await;
    let there = hub.local_addr();
    let cases = [
        (format!("http://127.0.0.1:{closed}"), there, "asks for a user and a password (407 ", false),
        (format!("http://me:wrong@127.0.0.1:{closed}"), there, "does not take this user and password (401 ", false),
        (format!("http://127.0.0.1:{narrow}"), there, "port 443", false),
        (format!("http://127.0.0.1:{open}"), nobody, "it answered 5", true),
        (format!("socks5://127.0.0.1:{socks}"), there, "asks for a user and a password", false),
        (format!("socks5://me:wrong@127.0.0.1:{socks}"), there, "assword", false),
        (format!("socks5://me:secret@127.0.0.1:{socks}"), nobody, "refused", true),
        (format!("http://{nobody}"), there, "it cannot be reached", true),
    ];
    for (proxy, hub, expected, transient) in cases {
        let error = agent().proxy(&proxy).connect(hub.to_string()).await.expect_err(&proxy);
        let text = error.to_string();
        assert!(matches!(error, ConnectError::Proxy { .. }) && text.contains(expected), "{proxy}: {error:?}");
        assert_eq!(error.is_transient(), transient, "{proxy}: {error:?}");
        assert!(!format!("{error:?}").contains("me:"), "a password is shown: {error:?}");
    }
    for bad in ["", "ftp://proxy", "http://", "socks4://proxy"] {
        let error = agent().proxy(bad).connect(there.to_string()).await.expect_err(bad);
        assert!(matches!(error, ConnectError::InvalidProxy { .. }), "{bad}: {error:?}");
    }
}

/// What a proxy does that was written for a test.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// Says that it has connected, and nothing more.
    SilenceAfter200,
    SilenceAtOnce,
    Hangup,
    Garbage,
    EndlessHead,
    EndlessContinues,
}

async fn liar(lie: Lie) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("accept");
            if !matches!(lie, Lie::SilenceAtOnce) {
                assert!(stream.read(&mut [0; 4096]).await.expect("a request") > 0);
            }
            let _ = match lie {
                Lie::SilenceAtOnce => Ok(()),
                Lie::SilenceAfter200 => stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await,
                Lie::Hangup => continue,
                Lie::Garbage => stream.write_all(b"\x05\x00 hello, this is no HTTP\r\n\r\n").await,
                Lie::EndlessHead => {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
                    while stream.write_all(b"X-Filler: 0123456789012345678901234567890123456789\r\n").await.is_ok() {}
                    Ok(())
                }
                Lie::EndlessContinues => {
                    while stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok() {
                        tokio::task::yield_now().await;
                    }
                    Ok(())
                }
            };
            kept.push(stream);
        }
    });
    address
}

#[tokio::test]
async fn a_proxy_that_lies_holds_nobody_up() {
    let (hub, agent) = pair().await;
    for lie in
        [Lie::SilenceAfter200, Lie::SilenceAtOnce, Lie::Hangup, Lie::Garbage, Lie::EndlessHead, Lie::EndlessContinues]
    {
        let proxy = format!("http://{}", liar(lie).await);
        let agent = agent().login_timeout(Duration::from_secs(1)).proxy(proxy);
        let error = soon("the end", agent.connect(hub.local_addr().to_string())).await.expect_err("a lie");
        let right = match lie {
            Lie::SilenceAfter200 => matches!(error, ConnectError::TimedOut { .. }),
            _ => matches!(error, ConnectError::Proxy { .. }),
        };
        assert!(right && error.is_transient(), "{lie:?}: {error:?}");
    }
    let socks = format!("socks5://{}", liar(Lie::Garbage).await);
    let error = soon("the end", agent().proxy(socks).connect(hub.local_addr().to_string())).await.expect_err("a lie");
    assert!(matches!(error, ConnectError::Proxy { .. }), "{error:?}");
}

/// The hub's first words may come in one packet with the proxy's answer; and the name is the proxy's to resolve.
#[tokio::test]
async fn the_first_words_behind_a_proxys_answer_are_kept() {
    for answer in [
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 299 Fine\r\nVia: x\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n",
    ] {
        let (hub, agent) = pair().await;
        let (listener, to) = (TcpListener::bind("127.0.0.1:0").await.expect("bind"), hub.local_addr());
        let proxy = format!("http://{}", listener.local_addr().expect("an address"));
        let proxying = tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.expect("accept");
            let mut asked = vec![0; 4096];
            let n = near.read(&mut asked).await.expect("a request");
            let mut far = TcpStream::connect(to).await.expect("the hub");
            let mut first = vec![0; 4096];
            let words = far.read(&mut first).await.expect("the hub's first words");
            near.write_all(&[answer.as_bytes(), &first[..words]].concat()).await.expect("send");
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await; // either end may break off
            String::from_utf8_lossy(&asked[..n]).into_owned()
        });

        let agent = agent().proxy(proxy).connect("hub.invalid:2222").await.expect(answer);
        serve(&Echo::default(), agent.incoming());

        assert_callable(&hub, "127.0.0.1").await;
        drop(agent);
        let asked = soon("the proxy's end", proxying).await.expect("no panic");
        assert!(asked.starts_with("CONNECT hub.invalid:2222 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.to_ascii_lowercase().contains("host: hub.invalid:2222\r\n"), "{asked}");
    }
}

#[tokio::test]
async fn the_environment_says_which_proxy_is_for_whom() {
    if !require_program("tinyproxy") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (_proxy, port) = tinyproxy(dir.path(), "").await;
    let proxy = format!("http://127.0.0.1:{port}");
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[("ALL_PROXY", &proxy)], PROXYS),
        (&[("all_proxy", &proxy)], PROXYS),
        // As for curl, those are for http:// and https:// alone.
        (&[("HTTPS_PROXY", &proxy), ("HTTP_PROXY", &proxy)], "127.0.0.1"),
        (&[("ALL_PROXY", &proxy), ("NO_PROXY", "example.com,127.0.0.0/8")], "127.0.0.1"),
        (&[("ALL_PROXY", &proxy), ("NO_PROXY", "example.com")], PROXYS),
    ];
    for (environment, from) in cases {
        let keys = Keys::new();
        let hub = keys.hub().bind("127.0.0.1:0").await.expect("bind");
        let mut role = keys.agent_process(&hub.local_addr().to_string());
        let names: [&'static str; 8] = [
            "ALL_PROXY",
            "all_proxy",
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "NO_PROXY",
            "no_proxy",
        ];
        role.extend(names.map(|name| {
            let value = environment.iter().find(|(given, _)| *given == name).map_or("", |(_, value)| value);
            (name, value.into())
        }));
        let _agent = child::start(role);
        assert_callable(&hub, from).await;
    }
}
