//! `dialback hub` and `dialback agent` by grpctunnel: real processes, tokens in files, and an agent on the Go library.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::net::SocketAddr;

use common::{
    command::run,
    daemon::{Daemon, Files, dialback, http_get},
    echo::{payload, steered},
    forward::Beside,
    gateway::call_through,
    grpctunnel::Library,
    peers::Peer,
    rig::{AGENT, soon},
    tls::Certificates,
};
use tokio::io::AsyncReadExt;
use tonic::Code;

/// A directory with a token for the agent, and the hub's file of tokens.
async fn files() -> Files {
    let files = Files::new();
    let (token, tokens) = (files.path("laptop-1.token"), files.path("agent_tokens"));
    let made = run(&["keygen", "token", AGENT, "--file", &token, "--append", &tokens]).await;
    assert!(made.code == 0 && made.err.contains("1 of 1 lines added"), "{made:?}");
    files
}

struct Hub {
    daemon: Daemon,
    /// As an agent has to write it.
    url: String,
    gateway: SocketAddr,
}

/// A hub that takes agents by grpctunnel alone.
async fn hub(files: &Files, listen: &str, more: &[&str]) -> Hub {
    let tokens = files.path("agent_tokens");
    let arguments = ["hub", "--listen", listen, "--agent-tokens", &tokens, "--gateway", "127.0.0.1:0"];
    let mut daemon = Daemon::start(&[&arguments[..], more].concat());
    let ready = daemon.logs("hub ready").await;
    let text = |name: &str| ready[name].as_str().expect("it is told").to_owned();
    Hub { daemon, url: text("listen"), gateway: text("gateway").parse().expect("an address") }
}

fn agent_arguments(files: &Files, hub: &str, forward: &str) -> Vec<String> {
    let token = files.path("laptop-1.token");
    let all = ["agent", "--hub", hub, "--id", AGENT, "--token-file", &token, "--forward", forward];
    all.into_iter().chain(["--backoff-max", "300ms"]).map(str::to_owned).collect()
}

fn start_agent(files: &Files, hub: &str, forward: &str, more: &[&str]) -> Daemon {
    let arguments = agent_arguments(files, hub, forward);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Daemon::start(&arguments)
}

#[tokio::test]
async fn proxies_of_the_environment_are_not_passed_over_in_silence() {
    let files = files().await;
    let arguments = agent_arguments(&files, "grpc://127.0.0.1:1", "127.0.0.1:1");
    let start = |no_proxy: &str, more: &[&str]| {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(["--log-format", "json"]).collect();
        let mut command = dialback(&[&arguments, more].concat());
        command.env("ALL_PROXY", "http://me:secret@127.0.0.1:3128").env("NO_PROXY", no_proxy);
        Daemon(Peer::start(&mut command))
    };
    let told = start("", &[]).logs("the environment names a proxy").await;
    assert_eq!(told["proxy"], "http://127.0.0.1:3128");
    for (no_proxy, more) in [("", &["--no-proxy"][..]), ("127.0.0.0/8", &[])] {
        let mut agent = start(no_proxy, more);
        agent.logs("the hub is not there yet").await;
        agent.signal("TERM");
        let (_, said) = agent.ended().await;
        assert!(!said.iter().any(|line| line.contains("names a proxy")), "{said:?}");
    }
}

#[tokio::test]
async fn calls_pass_with_tls_and_without() {
    let (files, beside) = (files().await, Beside::start());
    let certificates = Certificates::of(files.dir.path(), &["127.0.0.1"]);
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let (certificate, key) = (text(&certificates.certificate), text(&certificates.key));
    let authority = text(&certificates.authority);
    let cases = [
        ("grpc://127.0.0.1:0", vec![], vec![]),
        (
            "grpcs://127.0.0.1:0",
            vec!["--tls-cert", &*certificate, "--tls-key", &*key],
            vec!["--tls-roots", &*authority],
        ),
    ];
    for (listen, of_hub, of_agent) in cases {
        let hub = hub(&files, listen, &of_hub).await;
        let agent = start_agent(&files, &hub.url, &beside.address.to_string(), &of_agent);
        let mut client = call_through(hub.gateway).await;

        let told = [("echo-status", "8"), ("echo-message", "no more"), ("x-mine", "1")];
        let status = soon("an answer", client.unary(steered(payload(""), &told))).await.expect_err("a status");
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "no more"));
        assert_eq!(status.metadata().get("x-mine").map(|value| value.as_bytes()), Some(&b"1"[..]));
        let large = payload(vec![7; 3 << 20]);
        assert!(soon("an answer", client.unary(large.clone())).await.expect("an answer").into_inner() == large);
        let many = steered(payload(""), &[("echo-count", "300"), ("echo-size", "10000")]);
        let mut stream = client.download(many).await.expect("a stream").into_inner();
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
        beside.echo.wait_until("its end", |counts| counts.running() == 0).await;

        let gateway = format!("http://{}", hub.gateway);
        let proto = ["-import-path", "proto", "-proto", "echo.proto"];
        let call = ["call", &gateway, "dialback.echo.v1.Echo/Unary", "--agent", AGENT, "-d", r#"{"data":"aGk="}"#];
        assert_eq!(run(&[&call[..], &proto[..]].concat()).await.text().replace(['\n', ' '], ""), r#"{"data":"aGk="}"#);
        let agents = run(&["agents", "--gateway", &gateway, "-o", "json"]).await.text();
        assert!(agents.contains(r#""carrier": "gRPC""#), "{agents}");

        agent.signal("TERM");
        assert!(agent.ended().await.0.success());
        let gone = soon("an answer", client.unary(payload("x"))).await.expect_err("nobody is there");
        assert!(matches!(gone.code(), Code::NotFound | Code::Unavailable), "{gone}");
        hub.daemon.signal("TERM");
        assert!(hub.daemon.ended().await.0.success());
    }
}

#[tokio::test]
async fn token_is_what_counts_and_the_file_is_followed() {
    let (files, beside) = (files().await, Beside::start());
    let mut hub = hub(&files, "grpc://127.0.0.1:0", &[]).await;
    let good = std::fs::read_to_string(files.path("agent_tokens")).expect("read");
    let forward = beside.address.to_string();
    // Of somebody else, and of this agent under another name.
    let other = run(&["keygen", "token", AGENT, "--file", &files.path("other.token")]).await;
    let arguments = agent_arguments(&files, &hub.url, &forward);
    let with = |what: &str, instead: &str| -> Vec<String> {
        arguments.iter().map(|text| if text == what { instead.to_owned() } else { text.clone() }).collect()
    };
    let as_other = other.out.trim().to_owned();
    let as_another_name = good.trim().replace(AGENT, "laptop-2");
    for (arguments, line) in [
        (with(&files.path("laptop-1.token"), &files.path("other.token")), as_other),
        (with(AGENT, "laptop-2"), as_another_name),
    ] {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let (status, said) = Peer::start(&mut dialback(&arguments)).finish().await;
        let said = said.join("\n");
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("--agent-tokens file has the line") && said.contains(&line), "{said}");
    }
    hub.daemon.logs("tunnel refused").await;

    let mut agent = start_agent(&files, &hub.url, &forward, &[]);
    agent.logs("agent ready").await;
    // A line counts at once, although the file was looked at a moment ago.
    files.write("agent_tokens", &format!("{}\n{}\n", good.trim(), good.trim().replace(AGENT, "laptop-2")));
    let arguments = with(AGENT, "laptop-2");
    let mut newcomer = Daemon::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    newcomer.logs("agent ready").await;
    newcomer.signal("TERM");
    assert!(newcomer.ended().await.0.success());
    let mut client = call_through(hub.gateway).await;
    // A version with a fault changes nothing.
    files.write("agent_tokens", "laptop-1 the-token-itself\n");
    let fault = hub.daemon.logs("the agents' tokens before stay in force").await["error"].to_string();
    assert!(fault.contains("agent_tokens:1: ") && !fault.contains("the-token-itself"), "{fault}");
    soon("an answer", client.unary(payload("x"))).await.expect("it goes on");
    // Without its line it is sent away, and with it it is back.
    files.write("agent_tokens", "# nobody\n");
    agent.logs("tunnel ended").await;
    agent.logs("cannot open the tunnel").await;
    files.write("agent_tokens", &good);
    agent.logs("tunnel opened").await;
    call_through(hub.gateway).await;
    agent.signal("TERM");
    assert!(agent.ended().await.0.success());

    // It may be in the environment.
    let token = std::fs::read_to_string(files.path("laptop-1.token")).expect("read");
    let arguments = ["agent", "--hub", &hub.url, "--id", AGENT, "--forward", &forward, "--log-format", "json"];
    let mut start = dialback(&arguments);
    start.env("DIALBACK_AGENT_TOKEN", token.trim());
    Daemon(Peer::start(&mut start)).logs("agent ready").await;
}

#[tokio::test]
async fn agent_waits_for_its_hub_and_comes_back_to_it() {
    let (files, beside) = (files().await, Beside::start());
    let first = hub(&files, "grpc://127.0.0.1:0", &[]).await;
    let (url, forward) = (first.url.clone(), beside.address.to_string());
    first.daemon.signal("KILL");
    first.daemon.ended().await;
    let mut agent = start_agent(&files, &url, &forward, &["--admin", "127.0.0.1:0"]);
    let admin = agent.logs("agent starts").await["admin"].as_str().expect("an address").parse().expect("one");
    agent.logs("the hub is not there yet").await;
    assert_eq!(http_get(admin, "GET /readyz").await.0, 503);
    let second = hub(&files, &url, &[]).await;
    agent.logs("agent ready").await;
    call_through(second.gateway).await;
    assert_eq!(http_get(admin, "GET /readyz").await.0, 200);
    second.daemon.signal("KILL");
    second.daemon.ended().await;
    agent.logs("tunnel ended").await;
    soon("readiness is taken back", async {
        while http_get(admin, "GET /readyz").await.0 != 503 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let third = hub(&files, &url, &[]).await;
    agent.logs("tunnel opened").await;
    call_through(third.gateway).await;
}

#[tokio::test]
async fn first_signal_drains() {
    for role in ["agent", "hub"] {
        let (files, beside) = (files().await, Beside::start());
        let hub = hub(&files, "grpc://127.0.0.1:0", &["--grace", "60s"]).await;
        let agent = start_agent(&files, &hub.url, &beside.address.to_string(), &["--grace", "60s"]);
        let mut client = call_through(hub.gateway).await;
        let (send, requests) = tokio::sync::mpsc::channel(4);
        send.send(payload("1")).await.expect("it takes it");
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut chat = soon("a chat", client.chat(requests)).await.expect("a chat").into_inner();
        assert_eq!(soon("an answer", chat.message()).await.expect("no status"), Some(payload("1")));
        let (mut daemon, _other) = if role == "hub" { (hub.daemon, agent) } else { (agent, hub.daemon) };
        daemon.signal("TERM");
        daemon.logs("stopping").await;
        send.send(payload("2")).await.expect("it takes it");
        assert_eq!(soon("an answer", chat.message()).await.expect("it goes on"), Some(payload("2")));
        drop(send);
        assert_eq!(soon("its end", chat.message()).await.expect("a good end"), None);
        let (status, said) = soon("the daemon's end", daemon.ended()).await;
        assert_eq!(status.code(), Some(0), "{role}: {said:?}");
    }
}

#[tokio::test]
async fn stranger_that_opens_no_tunnel_is_sent_away() {
    let files = files().await;
    let hub = hub(&files, "grpc://127.0.0.1:0", &["--login-timeout", "300ms"]).await;
    let address = hub.url.strip_prefix("grpc://").expect("its address");
    let mut silent = tokio::net::TcpStream::connect(address).await.expect("connect");
    let mut said = Vec::new();
    // The server's part of HTTP/2's preface comes, and then the end, of whatever kind.
    let _ = soon("its end", silent.read_to_end(&mut said)).await;
}

#[tokio::test]
async fn agent_on_the_go_library_is_called() {
    let files = files().await;
    let hub = hub(&files, "grpc://127.0.0.1:0", &[]).await;
    let address = hub.url.strip_prefix("grpc://").expect("its address");
    let token = std::fs::read_to_string(files.path("laptop-1.token")).expect("read");
    let Some(mut agent) = Library::Go.command("reverse-agent").await else { return };
    let mut agent = Peer::start(agent.args(["--server", address, "--token", token.trim()]));
    agent.line("ready").await;
    let mut client = call_through(hub.gateway).await;
    let answer = soon("an answer", client.unary(payload("hello"))).await.expect("an answer");
    assert_eq!(answer.into_inner(), payload("hello"));

    let stranger = Library::Go.command("reverse-agent").await.expect("as before").arg("--server").arg(address).spawn();
    let refused = soon("its end", stranger.expect("start").wait()).await.expect("an end");
    assert!(!refused.success());
}

#[tokio::test]
async fn what_cannot_be_says_what_to_do() {
    let files = files().await;
    let (token, tokens, key) = (files.path("laptop-1.token"), files.path("agent_tokens"), files.path("agent"));
    let open = files.path("open.token");
    std::fs::write(&open, "secret\n").expect("write");
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod");
    let (missing, fifo) = (files.path("missing"), files.path("fifo"));
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let agent = ["agent", "--forward", "127.0.0.1:1", "--id", "laptop-1"];
    let foreign = files.path("foreign");
    std::fs::copy(&tokens, &foreign).expect("copy");
    // Only root can give a file away.
    let is_foreign = std::os::unix::fs::chown(&foreign, Some(65534), None).is_ok();
    let mut cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec!["hub", "--listen", "grpc://127.0.0.1:0"], 64, "--agent-tokens FILE"),
        (vec!["hub", "--listen", "grpcs://127.0.0.1:0", "--agent-tokens", &tokens], 64, "--tls-cert and --tls-key"),
        (vec!["hub", "--listen", "grpc://0.0.0.0:0", "--agent-tokens", &tokens], 64, "use grpcs://"),
        (vec!["hub", "--listen", "grpc://127.0.0.1:0", "--agent-tokens", &token], 64, "laptop-1.token:1: "),
        (vec!["hub", "--listen", "grpc://127.0.0.1:0", "--agent-tokens", &fifo], 64, "it is not a regular file"),
        ([&agent[..], &["--hub", "grpc://127.0.0.1:1"]].concat(), 64, "--token-file FILE"),
        ([&agent[..], &["--hub", "grpc://127.0.0.1:1", "--token-file", &missing]].concat(), 64, "keygen token"),
        ([&agent[..], &["--hub", "grpc://127.0.0.1:1", "--token-file", &open]].concat(), 64, "chmod 600"),
        ([&agent[..], &["--hub", "grpc://hub.example:1", "--token-file", &token]].concat(), 64, "grpcs://"),
        ([&agent[..], &["--hub", "grpcs://hub.example", "--token-file", &token]].concat(), 64, "HOST:PORT"),
        (
            [&agent[..], &["--hub", "grpc://127.0.0.1:1", "--token-file", &token, "--identity", &key]].concat(),
            64,
            "--identity: it is for hubs of SSH",
        ),
        (
            [&agent[..], &["--hub", "grpc://127.0.0.1:1", "--token-file", &token, "--hub", "h:1"]].concat(),
            64,
            "leave out the other --hub",
        ),
        (
            [&agent[..], &["--hub", "grpc://127.0.0.1:1", "--token-file", &token, "--proxy", "http://p:1"]].concat(),
            64,
            "wss://",
        ),
        (
            [&agent[..], &["--hub", "h:1", "--token-file", &token]].concat(),
            64,
            "--token-file: it is for a hub at grpcs://",
        ),
    ];
    if is_foreign {
        let hub = vec!["hub", "--listen", "grpc://127.0.0.1:0", "--agent-tokens", &foreign];
        cases.push((hub, 64, "belongs to another user, 65534: chown"));
    }
    for (arguments, code, text) in cases {
        let mut command = dialback(&arguments);
        command.env("CREDENTIALS_DIRECTORY", ""); // which is none, and takes no check away
        let (status, said) = Peer::start(&mut command).finish().await;
        let said = said.join("\n");
        assert_eq!(status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(text), "{arguments:?}: {said}");
    }
}
