//! `dialback hub` and `dialback agent` as daemons: real processes, real sockets, real calls.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::time::Duration;

use common::{
    daemon::{Daemon, Files, dialback, http_get, ports},
    echo::{Echo, payload, pb::echo_client::EchoClient, steered},
    faults::until,
    forward::Beside,
    gateway::{call_through, channel_at, until_answered},
    peers::{Peer, require_program, ssh_keygen, ssh_keygen_sign},
    rig::{AGENT, soon},
};
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Code, Status,
    transport::{Channel, Server},
};

type Client = EchoClient<Channel>;

async fn answer(client: &mut Client) -> Result<(), Status> {
    let answer = soon("an answer", client.unary(payload("hello"))).await?;
    assert_eq!(answer.into_inner(), payload("hello"));
    Ok(())
}

/// An echo on a Unix socket.
fn serve_unix(path: &str) -> (Echo, JoinHandle<()>) {
    let echo = Echo::default();
    let listener = UnixListener::bind(path).expect("bind");
    let server = Server::builder().add_service(echo.service());
    let serving = tokio::spawn(async move {
        server.serve_with_incoming(UnixListenerStream::new(listener)).await.expect("it serves");
    });
    (echo, serving)
}

#[tokio::test]
async fn hub_and_agent_pass_calls_to_a_local_server() {
    let (files, beside) = (Files::new(), Beside::start());
    let (_hub, ports) = files.hub(&[]).await;
    let _agent = files.agent(&ports.hub.to_string(), &beside.address.to_string(), &[]).await;
    let mut client = call_through(ports.gateway).await;

    let told = [("echo-status", "8"), ("echo-message", "no more"), ("x-mine", "1")];
    let status = soon("an answer", client.unary(steered(payload(""), &told))).await.expect_err("a status");
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "no more"));
    assert_eq!(status.metadata().get("x-mine").map(|value| value.as_bytes()), Some(&b"1"[..]));

    let many = [("echo-count", "300"), ("echo-size", "10000")];
    let mut stream = client.download(steered(payload(""), &many)).await.expect("a stream").into_inner();
    let mut count = 0;
    while let Some(message) = soon("a message", stream.message()).await.expect("no status") {
        assert_eq!(message.data.len(), 10_000);
        count += 1;
    }
    assert_eq!(count, 300);

    // A call that is given up is given up at the server.
    let hanging = client.download(steered(payload(""), &[("echo-hang", "1")])).await.expect("a stream");
    beside.echo.wait_until("it runs", |counts| counts.running() == 1).await;
    drop(hanging);
    beside.echo.wait_until("its end", |counts| counts.cancelled == 1).await;
}

#[tokio::test]
async fn calls_go_where_their_service_says() {
    let (files, other) = (Files::new(), Beside::start());
    let (echo, _serving) = serve_unix(&files.path("echo.sock"));
    let (_hub, ports) = files.hub(&[]).await;
    let rule = format!("dialback.echo.v1.*=unix:{}", files.path("echo.sock"));
    let all = other.address.to_string();
    let _agent = files.agent(&ports.hub.to_string(), &rule, &["--forward", &all]).await;
    let mut client = call_through(ports.gateway).await;
    answer(&mut client).await.expect("it is answered");
    assert!(echo.counts().started >= 2);
    assert_eq!(other.echo.counts().started, 0, "the longer match counts");
}

#[tokio::test]
async fn service_that_nothing_takes_is_unimplemented() {
    let files = Files::new();
    let (_hub, ports) = files.hub(&[]).await;
    let _agent = files.agent(&ports.hub.to_string(), "other.v1.Greeter=127.0.0.1:1", &[]).await;
    let mut client = common::echo::client(channel_at(ports.gateway, AGENT).await);
    let is_it = |status: &Status| {
        let text = "this agent forwards no service `dialback.echo.v1.Echo`";
        status.code() == Code::Unimplemented && status.message() == text
    };
    until_answered(&mut client, is_it).await;
}

#[tokio::test]
async fn local_server_may_come_late_and_come_back() {
    let files = Files::new();
    let (_hub, ports) = files.hub(&[]).await;
    let first = Beside::start();
    let address = first.address;
    first.stop().await;
    let _agent = files.agent(&ports.hub.to_string(), &address.to_string(), &[]).await;
    let mut client = common::echo::client(channel_at(ports.gateway, AGENT).await);
    let names_it = |status: &Status| {
        let text = status.message();
        status.code() == Code::Unavailable && text.contains(&address.to_string()) && text.contains("is it running")
    };
    until_answered(&mut client, names_it).await;
    let second = Beside::start_at(address);
    answer(&mut client).await.expect("it is there now");
    assert_eq!(second.echo.counts().finished, 1);
    // A connection stands now.
    soon("its end", second.stop()).await;
    until_answered(&mut client, names_it).await;
    let _third = Beside::start_at(address);
    answer(&mut client).await.expect("it is there again");
}

#[tokio::test]
async fn agent_waits_for_its_hub_and_not_for_a_wrong_one() {
    let (files, beside) = (Files::new(), Beside::start());
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = free.local_addr().expect("an address").to_string();
    drop(free);
    let arguments = files.agent_arguments(&address, &beside.address.to_string());
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let mut agent = Daemon::start(&arguments);
    agent.logs("the hub is not there yet").await;
    agent.signal("HUP");
    agent.logs("read again once it has started").await;
    let hub_arguments = files.hub_arguments();
    let mut hub_arguments: Vec<_> = hub_arguments.iter().map(String::as_str).collect();
    hub_arguments[2] = &address; // of --listen
    let mut hub = Daemon::start(&hub_arguments);
    let ready = ports(&hub.logs("hub ready").await);
    agent.logs("agent ready").await;
    agent.logs("configuration read").await;
    call_through(ready.gateway).await;

    let other = Files::new();
    let mut wrong = files.agent_arguments(&ready.hub.to_string(), &beside.address.to_string());
    let at = wrong.iter().position(|text| *text == files.fingerprint).expect("it is there");
    wrong[at] = other.fingerprint.clone();
    let wrong = Peer::start(&mut dialback(&wrong.iter().map(String::as_str).collect::<Vec<_>>()));
    let (status, said) = wrong.finish().await;
    let said = said.join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(&files.fingerprint) && said.contains("compare the fingerprint"), "{said}");

    let mut unknown = files.agent_arguments(&ready.hub.to_string(), &beside.address.to_string());
    let at = unknown.iter().position(|text| *text == files.path("agent")).expect("it is there");
    unknown[at] = other.path("agent");
    let (status, said) =
        Peer::start(&mut dialback(&unknown.iter().map(String::as_str).collect::<Vec<_>>())).finish().await;
    let said = said.join("\n");
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("principals=\"laptop-1\""), "{said}");
}

/// The log may be a moment ahead of it.
async fn until_not_ready(admin: std::net::SocketAddr) {
    let told = (503, "not ready: it is about to end\n".to_owned());
    soon("it is not ready", async { while http_get(admin, "GET /readyz").await != told {} }).await;
}

#[tokio::test]
async fn first_signal_drains_and_the_second_cuts_off() {
    for role in ["agent", "hub"] {
        for forced in [false, true] {
            let (files, beside) = (Files::new(), Beside::start());
            let more = ["--grace", "60s", "--admin", "127.0.0.1:0"];
            let (hub, ports) = files.hub(&more).await;
            let arguments = files.agent_arguments(&ports.hub.to_string(), &beside.address.to_string());
            let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(more).collect();
            let mut agent = Daemon::start(&arguments);
            let admin = agent.logs("agent starts").await["admin"].as_str().map(|text| text.parse().expect("one"));
            agent.logs("agent ready").await;
            let mut client = call_through(ports.gateway).await;
            let (send, requests) = tokio::sync::mpsc::channel(4);
            send.send(payload("1")).await.expect("it takes it");
            let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
            let mut chat = soon("a chat", client.chat(requests)).await.expect("a chat").into_inner();
            assert_eq!(soon("an answer", chat.message()).await.expect("no status"), Some(payload("1")));

            let (mut daemon, admin, _other) =
                if role == "hub" { (hub, ports.admin, agent) } else { (agent, admin, hub) };
            daemon.signal("TERM");
            daemon.logs("stopping").await;
            let admin = admin.expect("an admin address");
            until_not_ready(admin).await;
            send.send(payload("2")).await.expect("it takes it");
            assert_eq!(soon("an answer", chat.message()).await.expect("it goes on"), Some(payload("2")));
            if forced {
                daemon.signal("INT");
                let end = soon("its end", chat.message()).await;
                assert!(end.is_err(), "{role}: it was cut off, and not {end:?}");
            } else {
                drop(send);
                assert_eq!(soon("its end", chat.message()).await.expect("a good end"), None);
            }
            let (status, said) = soon("the daemon's end", daemon.ended()).await;
            assert_eq!(status.code(), Some(0), "{role} {forced}: {said:?}");
            assert!(said.iter().any(|line| line.contains("\"message\":\"stopped\"")), "{said:?}");
            assert_eq!(said.iter().any(|line| line.contains("stopping at once")), forced, "{said:?}");
        }
    }
}

#[tokio::test]
async fn hangup_takes_what_it_can_of_the_file() {
    let (files, first, second) = (Files::new(), Beside::start(), Beside::start());
    let (_hub, ports) = files.hub(&[]).await;
    let write = |forward: &str, more: &str| {
        let text = format!(
            "[agent]\nhub = \"{}\"\nid = \"{AGENT}\"\nidentity = \"agent\"\nhost-key-fingerprint = \"{}\"\nforward = \"{forward}\"\n{more}",
            ports.hub, files.fingerprint
        );
        files.write("dialback.toml", &text);
    };
    write(&first.address.to_string(), "");
    let config = files.path("dialback.toml");
    let mut agent = Daemon::start(&["agent", "--config", &config]);
    agent.logs("agent ready").await;
    let mut client = call_through(ports.gateway).await;
    let before = first.echo.counts().finished;

    write(&second.address.to_string(), "tunnels = 3\n[log]\nlevel = \"info,dialback=debug\"\n");
    agent.signal("HUP");
    let left = agent.logs("counts from the next start on").await;
    assert_eq!(left["key"], "tunnels");
    agent.logs("configuration read").await;
    answer(&mut client).await.expect("the other answers");
    assert_eq!((first.echo.counts().finished, second.echo.counts().finished), (before, 1));

    write(&first.address.to_string(), "tunels = 3\n");
    agent.signal("HUP");
    let refused = agent.logs("the one before stays in force").await;
    let why = refused["error"].as_str().expect("why");
    assert!(why.contains("dialback.toml:7:1: ") && why.contains("did you mean `tunnels`?"), "{why}");
    answer(&mut client).await.expect("it goes on as before");
    assert_eq!((first.echo.counts().finished, second.echo.counts().finished), (before, 2));

    write(&first.address.to_string(), "grace = \"7s\"\n");
    agent.signal("HUP");
    agent.logs("configuration read").await;
    agent.signal("TERM");
    assert_eq!(agent.logs("stopping").await["grace"], "7s");
    assert!(agent.ended().await.0.success());
}

#[tokio::test]
async fn admin_address_tells_life_from_readiness() {
    let (files, beside) = (Files::new(), Beside::start());
    let (hub, ports) = files.hub(&["--admin", "127.0.0.1:0"]).await;
    let hubs = ports.admin.expect("an admin address");
    assert_eq!(http_get(hubs, "GET /livez").await, (200, "alive\n".into()));
    assert_eq!(http_get(hubs, "GET /readyz").await, (200, "ready: 0 agents connected\n".into()));
    assert_eq!(http_get(hubs, "POST /readyz").await.0, 405);
    assert_eq!(http_get(hubs, "GET /").await.0, 404);

    // Who says nothing keeps nobody from asking.
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(tokio::net::TcpStream::connect(hubs).await.expect("it is accepted"));
    }
    assert_eq!(http_get(hubs, "GET /livez").await.0, 200);
    drop(silent);

    let forward = beside.address.to_string();
    let arguments = files.agent_arguments(&ports.hub.to_string(), &forward);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(["--admin", "127.0.0.1:0"]).collect();
    let mut agent = Daemon::start(&arguments);
    let admin = agent.logs("agent starts").await["admin"].as_str().expect("an address").parse().expect("one");
    agent.logs("agent ready").await;
    soon("readiness", async {
        while http_get(admin, "GET /readyz").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(http_get(hubs, "GET /readyz").await.1, "ready: 1 agent connected\n");

    beside.stop().await;
    soon("the local server is missed", async {
        loop {
            let (status, text) = http_get(admin, "GET /readyz").await;
            if status == 503 {
                assert!(text.contains(&format!("the local server {forward} cannot be reached")), "{text}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let _beside = Beside::start_at(forward.parse().expect("an address"));
    drop(hub);
    soon("the hub is missed", async {
        loop {
            let (status, text) = http_get(admin, "GET /readyz").await;
            if status == 503 && (text.contains("connect")) && !text.contains("local server") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(http_get(admin, "GET /livez").await.0, 200, "it lives all the same");
}

#[tokio::test]
async fn service_manager_is_told_how_it_goes() {
    let files = Files::new();
    let socket = std::os::unix::net::UnixDatagram::bind(files.path("notify")).expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let arguments = files.hub_arguments();
    let mut command = dialback(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    command.args(["--log-format", "json"]).env("NOTIFY_SOCKET", files.path("notify")).env("WATCHDOG_USEC", "100000");
    let daemon = Daemon(Peer::start(&mut command));
    let socket = std::sync::Arc::new(socket);
    let wait = async |wanted: &'static str| {
        let socket = socket.clone();
        let told = tokio::task::spawn_blocking(move || {
            let (mut buffer, begun) = ([0; 4096], std::time::Instant::now());
            loop {
                // The watchdog's word comes again and again.
                assert!(begun.elapsed() < Duration::from_secs(20), "it is not told {wanted:?}");
                let len = socket.recv(&mut buffer).expect("it is told something");
                let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                if text.lines().any(|line| line == wanted) {
                    return text;
                }
            }
        });
        told.await.expect("it is told")
    };
    assert!(wait("READY=1").await.contains("STATUS=0 agents connected"));
    wait("WATCHDOG=1").await;
    wait("WATCHDOG=1").await;
    daemon.signal("HUP");
    assert!(wait("RELOADING=1").await.contains("MONOTONIC_USEC="));
    wait("READY=1").await;
    daemon.signal("TERM");
    wait("STOPPING=1").await;
    assert!(daemon.ended().await.0.success());
}

#[tokio::test]
async fn logs_are_json_or_plain_and_never_coloured_in_a_pipe() {
    let files = Files::new();
    let (hub, _) = files.hub(&["--log-level", "debug"]).await;
    hub.signal("TERM");
    let (status, lines) = hub.ended().await;
    assert!(status.success());
    assert!(lines.len() > 3);
    for line in lines {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["timestamp"].is_string() && line["message"].is_string(), "{line}");
    }

    let arguments = files.hub_arguments();
    let mut command = dialback(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let mut hub = Peer::start(&mut command);
    hub.find("readiness", |line| line.contains("hub ready").then_some(())).await;
    hub.find("the next step", |line| {
        line.contains("an agent connects with: dialback agent --hub ssh://").then_some(())
    })
    .await;
    common::child::signal(&hub, "TERM");
    let (_, lines) = hub.finish().await;
    assert!(lines.iter().any(|line| line.contains(&files.fingerprint)), "{lines:?}");
    assert!(lines.iter().all(|line| !line.contains('\u{1b}')), "{lines:?}");
}

#[tokio::test]
async fn keys_may_be_several_encrypted_and_certified() {
    if !require_program("ssh-keygen") {
        return;
    }
    let (files, beside) = (Files::new(), Beside::start());
    let dir = files.dir.path();
    let (authority, _) = ssh_keygen(dir, "ca", "ed25519");
    // A hub with a certificate, whose key nobody pins.
    ssh_keygen(dir, "hub", "ed25519");
    let certificate = ssh_keygen_sign(&authority, &dir.join("hub"), &["-h", "-n", "127.0.0.1"]);
    let certificate = certificate.to_str().expect("UTF-8").to_owned();
    let arguments = ["hub", "--listen", "127.0.0.1:0", "--gateway", "127.0.0.1:0", "--host-key", &files.path("hub")];
    let more = ["--host-certificate", &certificate, "--authorized-keys", &files.path("authorized_keys")];
    let mut hub = Daemon::start(&[&arguments[..], &more[..]].concat());
    let ports = ports(&hub.logs("hub ready").await);

    // The agent's key is encrypted, and another is tried before it.
    ssh_keygen(dir, "other", "ed25519");
    let encrypt = ["-q", "-p", "-N", "secret", "-P", "", "-f", &files.path("agent")];
    let encrypted = std::process::Command::new("ssh-keygen").args(encrypt).output().expect("ssh-keygen runs");
    assert!(encrypted.status.success(), "{encrypted:?}");
    let (address, forward) = (ports.hub.to_string(), beside.address.to_string());
    let (other, own, ca) = (files.path("other"), files.path("agent"), files.path("ca.pub"));
    let arguments = ["agent", "--hub", &address, "--id", AGENT, "--identity", &other, "--identity", &own];
    let arguments = [&arguments[..], &["--host-ca", &ca, "--forward", &forward]].concat();

    let (status, said) = Peer::start(&mut dialback(&arguments)).finish().await;
    let said = said.join("\n");
    assert_eq!(status.code(), Some(64), "{said}");
    assert!(said.contains("is encrypted") && said.contains("--identity-passphrase-file"), "{said}");

    files.write("passphrase", "secret\n");
    let passphrase = files.path("passphrase");
    let mut agent = Daemon::start(&[&arguments[..], &["--identity-passphrase-file", &passphrase]].concat());
    agent.logs("agent ready").await;
    call_through(ports.gateway).await;
    drop(agent);
    let mut command = dialback(&arguments);
    command.args(["--log-format", "json"]).env("DIALBACK_IDENTITY_PASSPHRASE", "secret");
    Daemon(Peer::start(&mut command)).logs("agent ready").await;
}

/// systemd makes the file's access list look like a group that may read (systemd.exec(5), `LoadCredential=`).
#[tokio::test]
async fn key_may_be_a_credential_of_systemd() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new();
    std::fs::set_permissions(files.path("host"), std::fs::Permissions::from_mode(0o440)).expect("chmod");
    let arguments = files.hub_arguments();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(["--log-format", "json"]).collect();
    let (status, said) = Peer::start(&mut dialback(&arguments)).finish().await;
    assert_eq!(status.code(), Some(64), "{said:?}");
    let mut command = dialback(&arguments);
    command.env("CREDENTIALS_DIRECTORY", files.dir.path());
    Daemon(Peer::start(&mut command)).logs("hub ready").await;
}

#[tokio::test]
async fn agents_come_by_websocket_and_by_unix_socket() {
    let (files, beside) = (Files::new(), Beside::start());
    let certificates = common::tls::Certificates::of(files.dir.path(), &["127.0.0.1"]);
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let (certificate, key) = (text(&certificates.certificate), text(&certificates.key));
    let unix = format!("unix:{}", files.path("hub.sock"));
    let arguments = ["hub", "--listen", &unix, "--websocket", "wss://127.0.0.1:0/tunnel", "--gateway", "127.0.0.1:0"];
    let more = ["--host-key", &files.path("host"), "--authorized-keys", &files.path("authorized_keys")];
    let mut hub =
        Daemon::start(&[&arguments[..], &more[..], &["--tls-cert", &certificate, "--tls-key", &key]].concat());
    let ready = hub.logs("hub ready").await;
    let listen = ready["listen"].as_str().expect("addresses").to_owned();
    let (socket, url) = listen.split_once(',').expect("two, and no port beside");
    let gateway = ports(&ready).gateway;
    for (hub, more) in [(socket, vec![]), (url, vec!["--tls-roots".to_owned(), text(&certificates.authority)])] {
        let more: Vec<_> = more.iter().map(String::as_str).collect();
        let agent = files.agent(hub, &beside.address.to_string(), &more).await;
        let mut client = call_through(gateway).await;
        answer(&mut client).await.expect("it is answered");
        agent.signal("TERM");
        assert!(agent.ended().await.0.success());
        // Its place is free before the next one comes.
        until("it is gone", || beside.echo.counts().running() == 0).await;
    }
}

#[tokio::test]
async fn tokens_in_addresses_are_not_logged() {
    let files = Files::new();
    let arguments = files.agent_arguments("ws://127.0.0.1:1/tunnel?token=s3cret", "127.0.0.1:1");
    let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(["--log-level", "trace"]).collect();
    let mut agent = Daemon::start(&arguments);
    assert_eq!(agent.logs("agent starts").await["hub"], "ws://127.0.0.1:1/tunnel?…");
    agent.logs("the hub is not there yet").await;
    agent.signal("TERM");
    let (_, said) = agent.ended().await;
    assert!(!said.iter().any(|line| line.contains("s3cret")), "{said:?}");
}

#[tokio::test]
async fn what_cannot_be_says_what_to_do() {
    let files = Files::new();
    let (host, keys) = (files.path("host"), files.path("authorized_keys"));
    let hub = ["hub", "--listen", "127.0.0.1:0", "--host-key", &host, "--authorized-keys", &keys];
    let missing = files.path("missing");
    let (key, fingerprint) = (files.path("agent"), files.fingerprint.clone());
    let agent = |hub| ["agent", "--forward", "h:1", "--hub", hub, "--identity", &key];
    let pinned = ["--id", "a", "--host-key-fingerprint", &fingerprint];
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let taken = taken.local_addr().expect("an address").to_string();
    files.write("open_key", &std::fs::read_to_string(&host).expect("the key"));
    let open = files.path("open_key");
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod");
    let cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec!["hub", "--host-key", &missing, "--authorized-keys", &keys], 64, "make one with `dialback keygen`"),
        (vec!["hub", "--authorized-keys", &keys], 64, "--host-key FILE"),
        (vec!["hub", "--host-key", &host], 64, "--authorized-keys FILE"),
        ([&hub[..], &["--gateway", "0.0.0.0:0"]].concat(), 64, "--policy FILE"),
        ([&hub[..], &["--listen", "wss://127.0.0.1:0/"]].concat(), 64, "--tls-cert and --tls-key"),
        ([&hub[..], &["--keepalive", "10"]].concat(), 64, "--keepalive: `10` is no time: write 500ms, 10s"),
        ([&hub[..], &["--log-level", "a=b=c"]].concat(), 64, "is no log level"),
        ([&hub[..], &["--log-level", "inof"]].concat(), 64, "write inof=trace"),
        (vec!["hub", "--host-key", &open, "--authorized-keys", &keys], 64, "chmod 600"),
        (vec!["hub", "--host-key", &host, "--authorized-keys", &missing], 64, "cannot read"),
        ([&hub[..], &["--listen", "foo"]].concat(), 64, "write host:port"),
        ([&hub[..], &["--gateway", "bar"]].concat(), 64, "--gateway: `bar` is no address: write HOST:PORT"),
        ([&hub[..], &["--gateway", &taken]].concat(), 1, "is another gateway running"),
        ([&hub[..], &["--admin", "9099"]].concat(), 64, "--admin: `9099` is no address: write HOST:PORT"),
        ([&hub[..], &["--proxy-protocol", "--trusted-proxies", "zzz"]].concat(), 64, "--trusted-proxies: "),
        ([&hub[..], &["--gateway", "127.0.0.1:0", "--policy", &missing]].concat(), 64, "cannot read the policy"),
        ([&hub[..], &["--login-timeout", "0s"]].concat(), 64, "--login-timeout: with 0 nothing works"),
        ([&hub[..], &["--max-calls", "0"]].concat(), 64, "--max-calls: with 0 nothing works"),
        ([&agent("h:1")[..], &["--id", "BAD", "--host-key-fingerprint", &fingerprint]].concat(), 64, "--id: "),
        ([&agent("h:1")[..], &["--id", "a", "--host-key-fingerprint", "SHA256:AAAA"]].concat(), 64, "fingerprint"),
        ([&agent("bad host")[..], &pinned].concat(), 64, "is not a hub's address"),
        ([&agent("wss://u:pw@h/t")[..], &pinned].concat(), 64, "nor a password is part of it"),
        ([&agent("h:1")[..], &pinned, &["--remote", "zzz"]].concat(), 64, "is not what a server can listen on"),
        ([&agent("h:1")[..], &pinned, &["--proxy", "gopher://p"]].concat(), 64, "the proxy that was set is none"),
        (vec!["agent", "--forward", "https://h:1", "--forward-ca", &missing], 64, "missing"),
        (vec!["agent"], 64, "--forward 127.0.0.1:50051"),
        (vec!["agent", "--forward", "50051"], 64, "write host:port"),
        (vec!["agent", "--forward", "h:1", "--forward", "h:2"], 64, "take the same calls"),
        (vec!["agent", "--forward", "h:1"], 64, "--hub hub.example.com:2222"),
        (vec!["agent", "--forward", "h:1", "--hub", "h:1", "--id", "a", "--identity", &host], 64, "--known-hosts FILE"),
    ];
    for (arguments, code, text) in cases {
        let (status, said) = Peer::start(&mut dialback(&arguments)).finish().await;
        let said = said.join("\n");
        assert_eq!(status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(text) && !said.contains(":pw"), "{arguments:?}: {said}");
    }
}
