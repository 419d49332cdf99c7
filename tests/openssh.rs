//! A stock OpenSSH client as the laptop, and what it gets for everything that is no tunnel.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use common::bulk::{RekeyedBy, assert_numbered, numbered};
use common::echo::{Echo, client, local_service, pattern, payload, pb::Payload};
use common::faults::alone;
use common::openssh::Ssh;
use common::peers::{Peer, ssh_keygen, ssh_keygen_revoke, ssh_keygen_sign};
use common::rig::{serve, soon};
use dialback::{AuthorizedKeys, CloseReason, Hub, TunnelChannel};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tonic::Request;
use tonic::transport::Endpoint;

type EchoClient<T> = common::echo::pb::echo_client::EchoClient<T>;

/// Starts `ssh -N -R /grpc-tunnel:127.0.0.1:PORT` and waits until the hub can call.
async fn laptop(ssh: &Ssh, hub: &Hub, more: &[&str]) -> Peer {
    let forward = format!("/grpc-tunnel:127.0.0.1:{}", local_service().await);
    let options: Vec<&str> = ["-N", "-R", &forward].iter().chain(more).copied().collect();
    let peer = Peer::start(&mut ssh.command(hub, "laptop-1", &options));
    soon("the laptop", hub.wait_for("laptop-1")).await.expect("an id");
    peer
}

fn caller(hub: &Hub) -> EchoClient<TunnelChannel> {
    EchoClient::new(hub.channel("laptop-1").expect("an id")).max_decoding_message_size(64 << 20)
}

async fn assert_callable(hub: &Hub) {
    let answer = soon("an answer", caller(hub).unary(payload("still there"))).await.expect("the tunnel lives");
    assert_eq!(answer.into_inner().data, b"still there");
}

#[tokio::test]
async fn hub_calls_a_service_behind_stock_ssh() {
    let Some(ssh) = Ssh::new() else { return };
    let hub = ssh.hub().bind("127.0.0.1:0").await.expect("bind");
    let laptop = laptop(&ssh, &hub, &[]).await;
    let mut echo = caller(&hub);

    assert_callable(&hub).await;
    let large = pattern(7, 4 << 20);
    let answer = soon("4 MiB", echo.unary(payload(large.clone()))).await.expect("4 MiB");
    assert!(answer.into_inner().data == large, "4 MiB came back changed");
    let mut request = Request::new(payload(""));
    request.metadata_mut().insert("echo-count", "50".parse().expect("ASCII"));
    request.metadata_mut().insert("echo-size", "65536".parse().expect("ASCII"));
    let mut stream = soon("a stream", echo.download(request)).await.expect("a stream").into_inner();
    for n in 0..50 {
        let message = soon("a message", stream.message()).await.expect("a message").expect("not the end");
        assert!(message.data == pattern(n, 65536), "message {n} came changed");
    }
    let messages = (0..20).map(|n| Payload { data: vec![n; 100] });
    let chat = soon("a chat", echo.chat(tokio_stream::iter(messages))).await.expect("a chat");
    let mut chat = chat.into_inner();
    for n in 0..20 {
        assert_eq!(soon("a word", chat.message()).await.expect("a word").expect("not the end").data, vec![n; 100]);
    }

    let mut disconnected = hub.get("laptop-1").expect("connected").disconnected();
    drop(laptop);
    let gone = soon("the end", disconnected.wait_for(Option::is_some)).await.expect("a reason").clone();
    let reason = gone.expect("some").reason;
    assert!(matches!(reason, CloseReason::ClosedByPeer { .. } | CloseReason::ConnectionLost { .. }), "{reason:?}");
}

/// G6: stock ssh renews its keys after each MiB, and so does the hub if it is told to.
async fn rekeys_under_bulk(mib: usize, by: RekeyedBy) {
    let _alone = alone().await;
    let Some(ssh) = Ssh::new() else { return };
    let (bytes, interval) = by.own();
    let hub = ssh.hub().rekey(bytes, interval).bind("127.0.0.1:0").await.expect("bind");
    let laptop = laptop(&ssh, &hub, &["-o", "RekeyLimit=1M"]).await;
    let tunnel = hub.get("laptop-1").expect("connected");
    let begun = Instant::now();

    let answers = soon("a chat", caller(&hub).chat(numbered(mib))).await.expect("a chat");
    assert_numbered(answers.into_inner(), mib).await;

    let took = begun.elapsed();
    assert_eq!(hub.get("laptop-1").expect("connected").id(), tunnel.id(), "the tunnel was replaced");
    hub.shutdown(Duration::from_secs(2)).await;
    let (_, said) = laptop.finish().await;
    let rekeys = said.iter().filter(|line| line.contains("SSH2_MSG_NEWKEYS received")).count() - 1;
    eprintln!("G6 ssh -R, {by:?}: {mib} MiB each way in {took:?}, {rekeys} rekeys");
    assert!(rekeys >= mib, "only {rekeys} rekeys: {said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_ssh_renews_its_keys_under_bulk() {
    rekeys_under_bulk(64, RekeyedBy::Peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_ssh_and_the_hub_renew_their_keys_under_bulk() {
    rekeys_under_bulk(64, RekeyedBy::Both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: cargo test --release -- --ignored"]
async fn stock_ssh_renews_its_keys_under_a_gigabyte() {
    for by in [RekeyedBy::Peer, RekeyedBy::Both] {
        rekeys_under_bulk(1024, by).await;
    }
}

#[tokio::test]
async fn each_dial_through_stock_ssh_is_a_connection_of_its_own() {
    let Some(ssh) = Ssh::new() else { return };
    let hub = ssh.hub().bind("127.0.0.1:0").await.expect("bind");
    let _laptop = laptop(&ssh, &hub, &[]).await;
    for n in 0..20 {
        let tunnel = hub.get("laptop-1").expect("connected");
        let endpoint = dialback::tune_endpoint(Endpoint::from_static("http://laptop-1"));
        let channel = soon("a dial", endpoint.connect_with_connector(tunnel.connector())).await.expect("dial");
        let answer = soon("an answer", client(channel).unary(payload([n]))).await.expect("an answer");
        assert_eq!(answer.into_inner().data, [n]);
    }
    assert_callable(&hub).await;
}

/// As people set it against NATs that forget: `ServerAliveCountMax` unanswered ones would end it.
#[tokio::test]
async fn stock_ssh_that_asks_whether_the_hub_lives_gets_its_answers() {
    let Some(ssh) = Ssh::new() else { return };
    let hub = ssh.hub().bind("127.0.0.1:0").await.expect("bind");
    let mut laptop = laptop(&ssh, &hub, &["-vvv", "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"]).await;
    for _ in 0..3 {
        // A failure, as from OpenSSH's own server: the request has no meaning but that somebody is there.
        soon("an answer", laptop.line("debug3: receive packet: type 82")).await;
    }
    assert_callable(&hub).await;
}

/// The CA is trusted as by sshd's `TrustedUserCAKeys`, and certificates are revoked as by its `RevokedKeys`.
#[tokio::test]
async fn stock_ssh_with_a_certificate_is_called_until_its_serial_is_revoked() {
    let Some(ssh) = Ssh::new() else { return };
    let (ca, ca_public) = ssh_keygen(ssh.path(), "ca", "ed25519");
    let (trusted, revoked) = (ssh.path().join("user_ca"), ssh.path().join("revoked"));
    std::fs::write(&trusted, format!("# the CA of laptops\n{ca_public}\n")).expect("write");
    std::fs::set_permissions(&trusted, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let by_ca = ["-s", &ca.with_extension("pub").display().to_string()];
    ssh_keygen_revoke(&revoked, &by_ca, "");
    let keys = AuthorizedKeys::none().trusted_user_ca_keys(&trusted).expect("a list");
    let keys = keys.revoked_keys(&revoked).expect("a list");
    let hub = ssh.hub().authorizer(keys).bind("127.0.0.1:0").await.expect("bind");
    let certificate = ssh.path().join("certificate");
    let signed = ssh_keygen_sign(&ca, &ssh.key, &["-n", "laptop-1", "-z", "7", "-V", "-5m:+1h"]);
    std::fs::rename(signed, &certificate).expect("rename");
    let with_certificate = ["-o", &format!("CertificateFile={}", certificate.display())];

    let bare = Peer::start(&mut ssh.command(&hub, "laptop-1", &["-N"]));
    assert_refused(bare).await;
    let mut laptop = laptop(&ssh, &hub, &with_certificate).await;
    assert_callable(&hub).await;

    let tunnel = hub.get("laptop-1").expect("connected");
    ssh_keygen_revoke(&revoked, &by_ca, "serial: 7\n");
    let begun = Instant::now();
    let gone = soon("the end", tunnel.closed()).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(
        matches!(&gone.reason, CloseReason::Revoked { reason } if reason.contains("lists serial 7 of the CA SHA256:")),
        "{gone}"
    );
    soon("the goodbye", laptop.line("Received disconnect from")).await;
    let again = Peer::start(ssh.command(&hub, "laptop-1", &with_certificate).arg("-N"));
    assert_refused(again).await;
}

async fn assert_refused(ssh: Peer) {
    let (status, said) = soon("the refusal", ssh.finish()).await;
    assert_eq!(status.code(), Some(255), "{said:#?}");
    assert!(said.iter().any(|line| line.contains("Permission denied (publickey)")), "{said:#?}");
}

/// For clients that cannot forward a path. The port is a name: the hub opens none, so a taken one is as good.
#[tokio::test]
async fn a_forwarded_port_is_called_and_none_is_opened() {
    let Some(ssh) = Ssh::new() else { return };
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = taken.local_addr().expect("an address").port();
    for listen in [format!("{port}"), "0".into(), format!("*:{port}"), "[::1]:1".into(), "hub.example.com:443".into()] {
        let hub = ssh.hub().bind("127.0.0.1:0").await.expect("bind");
        let control = format!("ControlPath={}", ssh.path().join("control").display());
        let forward = format!("{listen}:127.0.0.1:{}", local_service().await);
        let options = ["-N", "-M", "-o", &control, "-o", "ExitOnForwardFailure=yes", "-R", &forward];
        let mut laptop = Peer::start(&mut ssh.command(&hub, "laptop-1", &options));
        soon("the laptop", hub.wait_for("laptop-1")).await.expect("an id");

        assert_callable(&hub).await;
        if listen == "0" {
            assert!(soon("the port", laptop.line("Allocated port ")).await.starts_with("50051 "));
        }
        let nobody = tokio::time::timeout(Duration::from_millis(50), taken.accept()).await;
        assert!(nobody.is_err(), "{listen}: somebody dialled a port of the hub's machine");

        let mut cancel = ssh.command(&hub, "laptop-1", &["-o", &control, "-O", "cancel", "-R", &forward]);
        let tunnel = hub.get("laptop-1").expect("connected");
        let (status, said) = soon("the cancel", Peer::start(&mut cancel).finish()).await;
        assert!(status.success(), "{listen}: {said:#?}");
        soon("the end of a tunnel with no service", tunnel.closed()).await;
        assert!(hub.get("laptop-1").is_none(), "{listen}: still callable");
    }
}

#[tokio::test]
async fn stock_ssh_dials_out_to_the_hubs_own_service() {
    let Some(ssh) = Ssh::new() else { return };
    let hub = ssh.hub().bind("127.0.0.1:0").await.expect("bind");
    let echo = Echo::default();
    serve(&echo, hub.incoming());
    let socket = ssh.path().join("out");
    let forward = format!("{}:/grpc-tunnel", socket.display());
    let mut laptop = Peer::start(&mut ssh.command(&hub, "laptop-1", &["-N", "-L", &forward]));
    soon("the socket", laptop.line("debug1: Local forwarding listening")).await;

    let connector = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // Local forwardings are announced a moment before they listen for whoever is authenticated.
    soon("Authenticated", laptop.line("debug1: Entering interactive session")).await;
    let channel = Endpoint::from_static("http://hub").connect_with_connector(connector).await.expect("dial out");
    let answer = soon("an answer", client(channel).unary(payload("up"))).await.expect("an answer");

    assert_eq!(answer.into_inner().data, b"up");
    assert_eq!(echo.counts().finished, 1);
}

#[tokio::test]
async fn what_is_no_tunnel_is_refused_and_the_tunnel_lives() {
    let Some(ssh) = Ssh::new() else { return };
    let hub = ssh.hub().bind("127.0.0.1:0").await.expect("bind");
    let _laptop = laptop(&ssh, &hub, &[]).await;
    let mark = ssh.path().join("was-here");
    let command = format!("touch {}", mark.display());
    let no_shell = "administratively prohibited: this is a dialback hub: it has no shell, commands or files";
    let nothing_else = "administratively prohibited: this is a dialback hub: it connects to its own gRPC service";
    let no_forward = "remote port forwarding failed";
    let strict = "ExitOnForwardFailure=yes";
    let cases: [(&str, &[&str], &[&str], &str); 10] = [
        ("exec", &[], &[&command], no_shell),
        ("shell with pty", &["-tt"], &[], no_shell),
        ("sftp", &["-s"], &["sftp"], no_shell),
        ("agent forwarding", &["-A"], &["true"], no_shell),
        ("X11", &["-X"], &["true"], no_shell),
        ("trusted X11", &["-Y"], &["true"], no_shell),
        ("direct-tcpip", &["-W", "127.0.0.1:1"], &[], nothing_else),
        ("two services", &["-N", "-o", strict, "-R", "1:127.0.0.1:1", "-R", "2:127.0.0.1:1"], &[], no_forward),
        ("another path", &["-N", "-o", strict, "-R", "/tmp/other:127.0.0.1:1"], &[], no_forward),
        ("no path", &["-N", "-o", strict, "-R", "/grpc-tunnel/../other:127.0.0.1:1"], &[], no_forward),
    ];
    for (what, options, arguments, complaint) in cases {
        let peer = Peer::start(ssh.command(&hub, "laptop-1", options).args(arguments));

        let (status, said) = soon(what, peer.finish()).await;

        assert_eq!(status.code(), Some(255), "{what}: {said:#?}");
        assert!(said.iter().any(|line| line.contains(complaint)), "{what}: {said:#?}");
        assert_callable(&hub).await;
    }
    assert!(!mark.exists(), "the hub ran a command");
}

/// The same inside one connection: the tunnel that carries calls is the one that is asked.
#[tokio::test]
async fn refusals_do_not_end_the_tunnel_that_was_asked() {
    let Some(ssh) = Ssh::new() else { return };
    let hub = ssh.hub().bind("127.0.0.1:0").await.expect("bind");
    let control = ssh.path().join("control");
    let socks = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("an address");
    let master = format!("ControlPath={}", control.display());
    let mut laptop =
        laptop(&ssh, &hub, &["-M", "-o", &master, "-D", &socks.to_string(), "-o", "ExitOnForwardFailure=yes"]).await;
    let before = hub.get("laptop-1").expect("connected").id();

    // Commands to the running client: to forward a port, and a path.
    for forward in ["0:127.0.0.1:1", "/tmp/other:127.0.0.1:1"] {
        let mut add = ssh.command(&hub, "laptop-1", &["-o", &master, "-O", "forward", "-R", forward]);
        let (status, said) = soon(forward, Peer::start(&mut add).finish()).await;
        assert_eq!(status.code(), Some(255), "{forward}: {said:#?}");
        assert_callable(&hub).await;
    }
    // A session in it, and something that is connected through its SOCKS proxy.
    let mut session = ssh.command(&hub, "laptop-1", &["-o", &master]);
    let (status, said) = soon("a session", Peer::start(session.arg("true")).finish()).await;
    assert_eq!(status.code(), Some(255), "{said:#?}");
    assert_callable(&hub).await;
    let mut through = TcpStream::connect(socks).await.expect("the proxy listens");
    through.write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, 0, 1]).await.expect("send");
    let mut answer = Vec::new();
    let _ = soon("the refusal", through.read_to_end(&mut answer)).await; // closed, or reset
    soon("the reason", laptop.line("channel")).await;
    assert_callable(&hub).await;

    assert_eq!(hub.get("laptop-1").expect("connected").id(), before, "the tunnel was replaced");
}

/// A laptop that only listens to itself is no agent yet, and the hub says so.
#[tokio::test]
async fn stock_ssh_without_the_forward_cannot_be_called() {
    let Some(ssh) = Ssh::new() else { return };
    let hub = ssh.hub().bind("127.0.0.1:0").await.expect("bind");
    let mut laptop = Peer::start(&mut ssh.command(&hub, "laptop-1", &["-N"]));
    soon("the login", laptop.line("Authenticated to")).await;
    soon("the tunnel", async {
        while hub.tunnels().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    let status = soon("an answer", caller(&hub).unary(payload(""))).await.expect_err("nobody to call");

    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("no forward request"), "{status:?}");
}
