//! The examples do what their first lines promise.
#![cfg(unix)]

mod common;

use std::{
    env, fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use common::{child::signal, peers::Peer, rig::soon};
use dialback::PrivateKey;
use tokio::process::Command;

/// An example as `cargo test` has built it, to be run in a directory of its own.
fn example(name: &str, dir: &Path, arguments: &[&str]) -> Peer {
    let test = env::current_exe().expect("this program has a path");
    let profile = test.ancestors().nth(2).expect("a test lies in PROFILE/deps");
    let program = profile.join("examples").join(name);
    assert!(program.is_file(), "{} is missing: `cargo build --examples` makes it", program.display());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir).env_remove("RUST_LOG");
    Peer::start(&mut command)
}

fn laptop(dir: &Path, hub: &str) -> Peer {
    example("laptop", dir, &["--hub", hub, "--id", "laptop-1"])
}

/// Starts a cloud on any port, and gives that too.
async fn cloud(dir: &Path) -> (Peer, String) {
    let mut cloud = example("cloud", dir, &["--listen", "127.0.0.1:0"]);
    let listening = soon("the cloud's start", cloud.line("cloud: listening on ")).await;
    let address = listening.split(',').next().expect("an address").to_owned();
    (cloud, address)
}

/// Waits until each has called the other.
async fn have_talked(cloud: &mut Peer, laptop: &mut Peer) {
    for kind in ["unary", "server streaming", "bidirectional"] {
        let answer = soon(kind, cloud.line(&format!("  {kind}"))).await;
        assert!(answer.starts_with("<- Hello "), "{answer}");
    }
    soon("the end of the conversation", cloud.line("cloud: laptop-1 has answered every call")).await;
    let answer = soon("the cloud's answer", laptop.line("  the cloud answers <- ")).await;
    assert!(answer.starts_with("Hello laptop-1, this is the cloud"), "{answer}");
}

/// Sends the signal, and expects a clean end.
async fn end(peer: Peer, by: &str) {
    signal(&peer, by);
    let (status, said) = soon(by, peer.finish()).await;
    assert!(status.success(), "{by}: {status}\n{}", said.join("\n"));
    assert!(said.iter().any(|line| line.ends_with(": stopping")), "{said:#?}");
}

/// Every file below that holds a private key: its name and mode.
fn private_keys(dir: &Path) -> Vec<(String, u32)> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).expect("the directory can be read").map(|entry| entry.expect("an entry")) {
        if entry.file_type().expect("a type").is_dir() {
            found.extend(private_keys(&entry.path()));
        } else if fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("PRIVATE KEY")) {
            let mode = entry.metadata().expect("metadata").permissions().mode() & 0o7777;
            found.push((entry.file_name().to_string_lossy().into_owned(), mode));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn quickstart_tells_its_story_and_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let started = Instant::now();
    let (status, said) = example("quickstart", dir.path(), &[]).finish().await;
    assert!(status.success(), "{status}\n{}", said.join("\n"));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());

    let mut lines = said.iter();
    for part in [
        "cloud: listening on ",
        "laptop: connected",
        "  unary             <- Hello cloud, this is laptop-1",
        "  server streaming  <- ",
        "  bidirectional     <- ",
        "  tonic's channel   <- ",
        "laptop: calling the cloud back",
        "  unary             <- Hello laptop, this is the cloud",
        "-- cutting the connection --",
        "cloud: tunnel ",
        "cloud: the detector says: disconnected",
        "cloud: laptop-1 is back after ",
        "  unary             <- Hello again, this is laptop-1",
        "laptop: stopped",
    ] {
        assert!(lines.any(|line| line.starts_with(part)), "no {part:?} in its place:\n{}", said.join("\n"));
    }
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0, "it leaves files behind");
}

#[cfg(feature = "websocket")]
#[tokio::test]
async fn anywhere_tells_its_story_and_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let (status, said) = example("anywhere", dir.path(), &[]).finish().await;
    assert!(status.success(), "{status}\n{}", said.join("\n"));
    for part in [
        "hub: home came by TCP from 127.0.0.1:",
        "  home   <- Hello hub, this is home",
        "hub: hotel came by WebSocket from 127.0.0.1:",
        "  hotel  <- Hello hub, this is hotel",
        "proxy: passes on to 127.0.0.1:",
        "hub: office came by TCP from 127.0.0.1:",
        "  office <- Hello hub, this is office",
        "hub: stopped",
    ] {
        assert!(said.iter().any(|line| line.starts_with(part)), "no {part:?}:\n{}", said.join("\n"));
    }
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0, "it leaves files behind");
}

#[cfg(feature = "gateway")]
#[tokio::test]
async fn fleet_tells_its_story_and_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let started = Instant::now();
    let (status, said) = example("fleet", dir.path(), &[]).finish().await;
    assert!(status.success(), "{status}\n{}", said.join("\n"));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());

    let mut lines = said.iter();
    for part in [
        "hub: agents dial ",
        "hub: clients call ",
        "hub: berlin has joined",
        "client: calling each by metadata",
        "  berlin   <- Hello client, this is berlin",
        "  lisbon   <- Hello client, this is lisbon",
        "  oslo     <- Hello client, this is oslo",
        "client: calling berlin.fleet.test",
        "  berlin   <- Hello client, this is berlin",
        "gateway: 4 agents are here",
        "  oslo ",
        "-- killing oslo --",
        "hub: oslo has left: ",
        "  oslo     <- UNAVAILABLE: agent `oslo` is away since ",
        "  berlin   <- Hello client, this is berlin",
        "-- starting tokyo --",
        "hub: tokyo has joined",
        "  tokyo    <- Hello client, this is tokyo",
        "gateway: 4 agents are here",
        "  tokyo ",
        "hub: stopped",
    ] {
        assert!(lines.any(|line| line.starts_with(part)), "no {part:?} in its place:\n{}", said.join("\n"));
    }
    let shares = said.iter().filter_map(|line| line.strip_prefix("  web      <- ")?.split_once(" x "));
    let shares: Vec<usize> = shares.map(|(times, _)| times.trim().parse().expect("a number")).collect();
    assert!(shares.len() == 2 && shares.iter().sum::<usize>() == 20, "{}", said.join("\n"));
    assert_eq!(fs::read_dir(dir.path()).expect("the directory").count(), 0, "it leaves files behind");
}

#[tokio::test]
async fn laptop_started_second_is_called_and_both_end_on_interrupt() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut cloud, address) = cloud(dir.path()).await;
    let mut laptop = laptop(dir.path(), &address);
    have_talked(&mut cloud, &mut laptop).await;

    end(laptop, "INT").await;
    let why = soon("the laptop's going", cloud.line("cloud: laptop-1 is gone, ")).await;
    assert!(why.ends_with(": the peer closed the connection"), "{why}");
    end(cloud, "INT").await;
    assert_eq!(private_keys(dir.path()), [("hub_key".to_owned(), 0o600), ("laptop-1".to_owned(), 0o600)]);
}

#[tokio::test]
async fn laptop_started_first_waits_and_comes_back_to_a_new_cloud() {
    let dir = tempfile::tempdir().expect("a directory");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let address = free.to_string();
    let mut laptop = laptop(dir.path(), &address);
    soon("the laptop's start", laptop.line("laptop: waiting for keys/hub_key.pub")).await;
    assert_eq!(private_keys(dir.path()), [("laptop-1".to_owned(), 0o600)], "a laptop makes no key for the cloud");

    let mut first = example("cloud", dir.path(), &["--listen", &address]);
    have_talked(&mut first, &mut laptop).await;
    end(first, "TERM").await;
    soon("the loss", laptop.line("laptop: attempt 1 to connect in ")).await;

    let mut second = example("cloud", dir.path(), &["--listen", &address]);
    soon("the conversation", second.line("cloud: laptop-1 has answered every call")).await;
    soon("the return", laptop.line("laptop: connected to ")).await;
    end(second, "INT").await;
    end(laptop, "TERM").await;
    assert_eq!(private_keys(dir.path()), [("hub_key".to_owned(), 0o600), ("laptop-1".to_owned(), 0o600)]);
}

#[tokio::test]
async fn laptop_that_still_waits_ends_on_interrupt() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut laptop = laptop(dir.path(), "127.0.0.1:2222");
    soon("the laptop's start", laptop.line("laptop: waiting for ")).await;
    signal(&laptop, "INT");
    let (status, said) = soon("its end", laptop.finish()).await;
    assert!(status.success(), "{status}: {said:#?}");
}

#[tokio::test]
async fn laptop_does_not_believe_a_cloud_with_another_key() {
    let (of_cloud, of_laptop) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (_cloud, address) = cloud(of_cloud.path()).await;
    let (keys, other) = (of_laptop.path().join("keys"), PrivateKey::generate().public_key());
    fs::create_dir(&keys).and_then(|()| fs::write(keys.join("hub_key.pub"), other.to_openssh())).expect("written");

    let (status, said) = soon("its end", laptop(of_laptop.path(), &address).finish()).await;

    assert_eq!(status.code(), Some(1), "{said:#?}");
    assert!(said.iter().any(|line| line.contains(&other.fingerprint())), "{said:#?}");
}

#[tokio::test]
async fn cloud_lets_no_laptop_in_whose_key_it_has_not() {
    let (of_cloud, of_laptop) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (_cloud, address) = cloud(of_cloud.path()).await;
    fs::create_dir(of_laptop.path().join("keys")).expect("created");
    let copied = fs::copy(of_cloud.path().join("keys/hub_key.pub"), of_laptop.path().join("keys/hub_key.pub"));
    copied.expect("the cloud's public key can be copied");

    let (status, said) = soon("its end", laptop(of_laptop.path(), &address).finish()).await;

    assert_eq!(status.code(), Some(1), "{said:#?}");
    assert!(said.iter().any(|line| line.starts_with("hint: ") && line.contains("laptop-1.pub")), "{said:#?}");
}

#[tokio::test]
async fn options_are_explained() {
    let mut options = vec![("cloud", "--listen <ADDRESS>"), ("laptop", "--hub <HOST:PORT>")];
    if cfg!(feature = "gateway") {
        options.push(("fluentd_hub", "--gateway <ADDRESS>"));
        options.push(("fluentd_server", "--command <PROGRAM> [ARGUMENT]..."));
    }
    for (name, option) in options {
        let (status, said) = example(name, Path::new("/"), &["--help"]).finish().await;
        assert!(status.success() && said.iter().any(|line| line.contains(option)), "{said:#?}");
    }
}

/// Tunnels that are gRPC calls: the story, and the demo with the other libraries' programs in either role.
#[cfg(feature = "grpctunnel")]
mod grpctunnel {
    use super::*;
    use crate::common::grpctunnel::Library;

    #[tokio::test]
    async fn story_is_told_and_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let (status, said) = soon("the end", example("grpctunnel", dir.path(), &[]).finish()).await;
        assert!(status.success(), "{status}\n{}", said.join("\n"));
        let mut lines = said.iter();
        for part in [
            "cloud: an ordinary gRPC server on 127.0.0.1:",
            "stranger: the tunnel was not opened: ",
            "laptop: connected to grpctunnel (tunnel ",
            "cloud: laptop-1 is here by gRPC, tunnel ",
            "  bidirectional     <- Hello Grace",
            "laptop: calling the cloud",
            "  unary             <- Hello cloud, this is the cloud, through tunnel ",
            "cloud: calling by a tunnel in the tunnel",
            "  unary             <- Hello cloud, this is the laptop's inner self",
            "cloud: the tunnel of laptop-1 ended: ",
        ] {
            assert!(lines.any(|line| line.starts_with(part)), "no {part:?} in its place:\n{}", said.join("\n"));
        }
    }

    /// The example calls what its own other half hosts, or the program of the same role on another library.
    async fn server(library: Option<Library>) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut server = example("grpctunnel_server", dir.path(), &["--listen", "127.0.0.1:0"]);
        let address = soon("the server's start", server.line("listening on ")).await;
        let mut client = match library {
            None => example("grpctunnel_client", dir.path(), &["--server", &address]),
            Some(library) => match library.command("demo-agent").await {
                Some(mut command) => Peer::start(command.args(["--server", &address])),
                None => return,
            },
        };
        for number in 1..=3 {
            assert_eq!(soon("an answer", server.line("  <- Echo: ")).await, format!("call {number}"));
        }
        for _ in 1..=5 {
            soon("an answer", server.line("  <- Echo: call at once ")).await;
        }
        if library.is_none() {
            soon("a call", client.line("-> call 1")).await;
        }
        signal(&client, "TERM");
        let (status, said) = soon("the client's end", client.finish()).await;
        assert!(status.success(), "{said:#?}");
        soon("its leaving", server.line("tunnel ")).await;
        signal(&server, "INT");
        let (status, said) = soon("the server's end", server.finish()).await;
        assert!(status.success(), "{said:#?}");
    }

    async fn client(library: Library) {
        let Some(mut hub) = library.command("demo-hub").await else { return };
        let mut hub = Peer::start(&mut hub);
        let address = hub.line("listening ").await;
        let dir = tempfile::tempdir().expect("a directory");
        let mut client = example("grpctunnel_client", dir.path(), &["--server", &address]);
        for _ in 0..8 {
            soon("a call", client.line("-> call ")).await;
        }
        let (status, said) = soon("the hub's end", hub.finish()).await;
        assert!(status.success(), "{said:#?}");
        signal(&client, "TERM");
        let (status, said) = soon("the client's end", client.finish()).await;
        assert!(status.success(), "{said:#?}");
    }

    #[tokio::test]
    async fn demo_calls_what_its_client_hosts() {
        server(None).await;
    }

    #[tokio::test]
    async fn server_calls_what_the_go_program_hosts() {
        server(Some(Library::Go)).await;
    }

    #[tokio::test]
    async fn server_calls_what_the_python_program_hosts() {
        server(Some(Library::Python)).await;
    }

    #[tokio::test]
    async fn client_is_called_by_the_go_program() {
        client(Library::Go).await;
    }

    #[tokio::test]
    async fn client_is_called_by_the_python_program() {
        client(Library::Python).await;
    }
}

/// The demo of the gateway. Its processes are looked for in `/proc`.
#[cfg(all(feature = "gateway", target_os = "linux"))]
mod fluentd {
    use dialback::tune_endpoint;
    use tokio_stream::once;
    use tonic::{
        Code,
        transport::{Channel, Endpoint},
    };
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };

    use super::*;
    use crate::common::faults::until;

    /// Generated from `proto/fluentd.proto`.
    #[allow(unreachable_pub, clippy::use_self)]
    mod pb {
        include!("../proto/gen/fluentd.rs");
    }

    use pb::{RestartRequest, StartRequest, State, StopRequest, fluentd_client::FluentdClient};

    /// The hub, its server, and a client that is told which server it wants by the authority.
    struct Demo {
        hub: Peer,
        server: Peer,
        channel: Channel,
        client: FluentdClient<Channel>,
    }

    impl Demo {
        async fn start(dir: &Path, arguments: &[&str]) -> Self {
            let mut hub = example("fluentd_hub", dir, &["--listen", "127.0.0.1:0", "--gateway", "127.0.0.1:0"]);
            let listening = soon("the hub's start", hub.line("hub: listening on ")).await;
            let address = listening.split(',').next().expect("an address");
            let gateway = soon("the gateway's start", hub.line("hub: gateway on ")).await;
            let gateway = gateway.split(';').next().expect("an address");
            let arguments = [&["--hub", address, "--id", "fluentd-1"], arguments].concat();
            let server = example("fluentd_server", dir, &arguments);
            soon("the server's coming", hub.line("hub: fluentd-1 can be called:")).await;
            let how = soon("how to call it", hub.line("  grpcurl -plaintext ")).await;
            assert_eq!(how, format!("-H 'dialback-agent: fluentd-1' {gateway} list"));

            let endpoint = Endpoint::from_shared(format!("http://{gateway}")).expect("an address");
            let endpoint = tune_endpoint(endpoint).origin("http://fluentd-1".parse().expect("an origin"));
            let channel = endpoint.connect().await.expect("connect to the gateway");
            Self { hub, server, client: FluentdClient::new(channel.clone()), channel }
        }

        async fn started(&mut self) -> State {
            soon("a start", self.client.start(StartRequest {})).await.expect("it starts").into_inner()
        }

        async fn stopped(&mut self) -> State {
            soon("a stop", self.client.stop(StopRequest {})).await.expect("it stops").into_inner()
        }

        async fn end(self) {
            end(self.server, "INT").await;
            end(self.hub, "INT").await;
        }
    }

    /// Whether there is such a process and it has not ended; one that has ended is there until somebody asks how.
    fn runs(process_id: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{process_id}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
    }

    #[tokio::test]
    async fn it_is_started_restarted_and_stopped_through_the_gateway() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut demo = Demo::start(dir.path(), &[]).await;

        let first = demo.started().await;
        assert!(first.running && first.starts == 1 && runs(first.process_id), "{first:?}");

        let twice = demo.client.start(StartRequest {}).await.expect_err("it runs already");
        assert_eq!(twice.code(), Code::FailedPrecondition, "{twice:?}");
        assert_eq!(twice.message(), format!("it is running already, as process {}", first.process_id));

        let second = soon("a restart", demo.client.restart(RestartRequest {})).await.expect("it restarts").into_inner();
        assert!(second.running && second.starts == 2 && runs(second.process_id), "{second:?}");
        assert!(second.process_id != first.process_id && !runs(first.process_id), "{first:?} {second:?}");

        assert_eq!(demo.stopped().await, State { running: false, process_id: 0, starts: 2 });
        assert!(!runs(second.process_id), "{second:?}");

        let twice = demo.client.stop(StopRequest {}).await.expect_err("nothing runs");
        assert_eq!((twice.code(), twice.message()), (Code::FailedPrecondition, "it is not running"));

        let third = soon("a restart", demo.client.restart(RestartRequest {})).await.expect("it starts").into_inner();
        assert!(third.running && third.starts == 3 && runs(third.process_id), "{third:?}");
        demo.end().await;
        assert!(!runs(third.process_id), "it has outlived its server");
        assert_eq!(private_keys(dir.path()), [("fluentd-1".to_owned(), 0o600), ("hub_key".to_owned(), 0o600)]);
    }

    #[tokio::test]
    async fn one_that_dies_can_be_started_again_and_one_that_will_not_end_is_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let deaf = ["--patience", "1", "--command", "sh", "-c", "trap '' TERM; echo deaf; exec sleep 3600"];
        let mut demo = Demo::start(dir.path(), &deaf).await;
        let first = demo.started().await.process_id;
        soon("the program's deafness", demo.server.line("deaf")).await;

        let killed = std::process::Command::new("sh").arg("-c").arg(format!("kill -KILL {first}")).status();
        assert!(killed.is_ok_and(|status| status.success()));
        until("the program's death", || !runs(first)).await;
        let dead = demo.client.stop(StopRequest {}).await.expect_err("nothing runs");
        assert_eq!(dead.code(), Code::FailedPrecondition, "{dead:?}");
        assert!(dead.message().starts_with("it is not running: it ended by itself, with signal: 9"), "{dead:?}");

        let second = demo.started().await;
        assert!(second.starts == 2 && runs(second.process_id), "{second:?}");
        soon("the program's deafness", demo.server.line("deaf")).await;
        assert!(!demo.stopped().await.running && !runs(second.process_id), "{second:?}");
        soon("the reason", demo.server.line(&format!("server: process {} had to be killed", second.process_id))).await;
        demo.end().await;
    }

    #[tokio::test]
    async fn one_that_is_missing_cannot_be_started_and_calls_say_since_when_its_server_is_away() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut demo = Demo::start(dir.path(), &["--command", "no-such-program", "-v"]).await;
        let status = demo.client.start(StartRequest {}).await.expect_err("there is no such program");
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().starts_with("cannot start no-such-program: "), "{status:?}");

        // Its server goes, and the gateway says since when.
        let Demo { mut hub, server, mut client, .. } = demo;
        end(server, "TERM").await;
        soon("the server's going", hub.line("hub: fluentd-1 is gone, ")).await;
        let away = client.start(StartRequest {}).await.expect_err("its server is gone");
        assert_eq!(away.code(), Code::Unavailable, "{away:?}");
        assert!(away.message().starts_with("agent `fluentd-1` is away since "), "{away:?}");
        end(hub, "TERM").await;
    }
    #[tokio::test]
    async fn it_describes_itself_through_the_gateway() {
        let dir = tempfile::tempdir().expect("a directory");
        let demo = Demo::start(dir.path(), &[]).await;
        let question = MessageRequest::FileContainingSymbol("fluentd.Fluentd".into());
        let question = ServerReflectionRequest { host: String::new(), message_request: Some(question) };

        let mut client = ServerReflectionClient::new(demo.channel.clone());
        let mut answers = client.server_reflection_info(once(question)).await.expect("reflection").into_inner();
        let answer = soon("an answer", answers.message()).await.expect("no error").expect("an answer");

        let Some(MessageResponse::FileDescriptorResponse(found)) = answer.message_response else {
            panic!("{answer:?}")
        };
        assert_eq!(found.file_descriptor_proto.len(), 1);
        demo.end().await;
    }
}
