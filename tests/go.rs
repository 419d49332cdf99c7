//! Go at the other end: a hub on x/crypto/ssh that calls our agent, and a laptop that our hub calls, both with grpc-go.

mod common;

use std::time::{Duration, Instant};

use common::bulk::{RekeyedBy, assert_numbered, numbered};
use common::echo::{self, Digest, Echo, pattern, payload, pb::Payload, steered};
use common::faults::{Client, alone, client};
use common::peers::{Peer, go_peer, require_program, ssh_keygen};
use common::rig::{AGENT, serve, soon};
use dialback::{
    Agent, AgentBuilder, AllowedKeys, ConnectError, ForwardRequest, HostKeys, Hub, HubBuilder, PrivateKey, PublicKey,
};
use tokio::process::Command;
use tokio::task::JoinSet;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request};

/// Every check that the Go hub knows.
const CHECKS: [&str; 10] =
    ["unary", "metadata", "status", "deadline", "cancel", "large", "download", "upload", "chat", "concurrent"];

/// A running Go hub that opens channels in this way, an agent that may log in to it, and its address.
async fn go_hub(mode: &str) -> Option<(Peer, AgentBuilder, String)> {
    go_hub_with(&["-mode", mode, "-checks", &CHECKS.join(",")]).await
}

async fn go_hub_with(arguments: &[&str]) -> Option<(Peer, AgentBuilder, String)> {
    let program = go_peer("hub")?;
    let key = PrivateKey::generate();
    let authorized = key.public_key().to_string();
    let mut hub = Peer::start(Command::new(program).args(["-authorized-key", &authorized]).args(arguments));
    let host_key: PublicKey = hub.line("host-key ").await.parse().expect("an OpenSSH line");
    let address = hub.line("listening ").await;
    Some((hub, Agent::builder(AGENT, key).host_keys(HostKeys::public_key(host_key)), address))
}

/// The agent serves, and the Go hub is content with every answer.
async fn passes_all_checks(mut hub: Peer, agent: AgentBuilder, address: String) {
    let agent = soon("the login", agent.connect(address)).await.expect("connect");
    let server = serve(&Echo::default(), agent.incoming());

    assert_eq!(hub.line("agent ").await, AGENT);
    let (status, said) = hub.finish().await;

    for check in CHECKS {
        assert!(said.contains(&format!("ok {check}")), "{check}: {said:#?}");
    }
    assert!(status.success(), "{said:#?}");
    server.abort();
}

#[tokio::test]
async fn go_hub_calls_our_agent_on_private_channels() {
    let Some((hub, agent, address)) = go_hub("private").await else { return };
    passes_all_checks(hub, agent.forward_request(ForwardRequest::Optional), address).await;
}

#[tokio::test]
async fn go_hub_calls_our_agent_on_forwarded_channels() {
    let Some((hub, agent, address)) = go_hub("streamlocal").await else { return };
    passes_all_checks(hub, agent, address).await;
}

/// A hub that cannot be told apart from one that never calls is refused unless the user says that it will.
#[tokio::test]
async fn hub_that_knows_no_forward_requests_is_refused_by_default() {
    let Some((_hub, agent, address)) = go_hub("private").await else { return };

    let refused = soon("the login", agent.forward_request(ForwardRequest::Required).connect(&address)).await;

    let error = refused.expect_err("the Go hub refuses the forward request");
    assert!(matches!(&error, ConnectError::ForwardRefused { hub } if *hub == address), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&address) && text.contains("ForwardRequest::Optional"), "{text}");
}

/// Our hub, and a Go laptop that it can call. The directory holds the laptop's key.
struct GoLaptop {
    hub: Hub,
    laptop: Peer,
    _dir: tempfile::TempDir,
}

impl GoLaptop {
    async fn start() -> Option<Self> {
        Self::start_with(|hub| hub, &[]).await
    }

    async fn start_with(set: impl FnOnce(HubBuilder) -> HubBuilder, arguments: &[&str]) -> Option<Self> {
        let program = go_peer("laptop")?;
        if !require_program("ssh-keygen") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (key, public) = ssh_keygen(dir.path(), AGENT, "ed25519");
        let public: PublicKey = public.parse().expect("an OpenSSH line");
        let allowed = AllowedKeys::new().allow(AGENT, public).expect("an id");
        let host = PrivateKey::generate();
        let hub = set(Hub::builder(host.clone()).authorizer(allowed)).bind("127.0.0.1:0").await.expect("bind");
        let mut command = Command::new(program);
        command.args(["-hub", &hub.local_addr().to_string(), "-id", AGENT]);
        command.args(["-host-key", &host.public_key().to_string(), "-key"]).arg(key).args(arguments);
        let mut laptop = Peer::start(&mut command);
        laptop.line("ready").await;
        soon("the laptop", hub.wait_for(AGENT)).await.expect("an id");
        Some(Self { hub, laptop, _dir: dir })
    }

    fn client(&self) -> Client {
        client(&self.hub)
    }
}

#[tokio::test]
async fn go_laptop_answers() {
    let Some(laptop) = GoLaptop::start().await else { return };
    let answer = soon("an answer", laptop.client().unary(payload("down"))).await.expect("an answer");
    assert_eq!(answer.into_inner().data, b"down");
}

fn assert_metadata(place: &str, found: &MetadataMap, blob: &[u8]) {
    let words: Vec<_> = found.get_all("x-word").iter().collect();
    assert_eq!(words, ["one", "two"], "{place}");
    let blobs: Vec<_> = found.get_all_bin("x-blob-bin").iter().map(|v| v.to_bytes().expect("base64")).collect();
    assert_eq!(blobs, [blob], "{place}");
}

#[tokio::test]
async fn go_laptop_returns_metadata_text_and_binary() {
    let Some(laptop) = GoLaptop::start().await else { return };
    let blob: Vec<u8> = (0..=255).collect();
    let mut request = Request::new(payload(""));
    request.metadata_mut().append("x-word", MetadataValue::from_static("one"));
    request.metadata_mut().append("x-word", MetadataValue::from_static("two"));
    request.metadata_mut().append_bin("x-blob-bin", MetadataValue::from_bytes(&blob));

    let response = soon("a stream", laptop.client().download(request)).await.expect("a stream");

    assert_metadata("headers", response.metadata(), &blob);
    let mut stream = response.into_inner();
    let trailers = soon("the trailers", stream.trailers()).await.expect("an end").expect("trailers");
    assert_metadata("trailers", &trailers, &blob);
}

#[tokio::test]
async fn go_laptops_status_arrives_with_its_details() {
    let Some(laptop) = GoLaptop::start().await else { return };
    let steering = [("echo-status", "9"), ("echo-message", "not now"), ("echo-details", "1")];

    let status =
        soon("the status", laptop.client().unary(steered(payload(""), &steering))).await.expect_err("a status");

    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not now"));
    echo::assert_details(&status);

    let steering = [&steering[..], &[("echo-status-after", "2"), ("echo-count", "5"), ("echo-size", "3")]].concat();
    let stream = soon("a stream", laptop.client().download(steered(payload(""), &steering))).await;
    let mut stream = stream.expect("a stream").into_inner();
    for n in 0..2 {
        assert_eq!(soon("a message", stream.message()).await.expect("a message").expect("more").data, pattern(n, 3));
    }
    let status = soon("the status", stream.message()).await.expect_err("a status");
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not now"));
    echo::assert_details(&status);
}

#[tokio::test]
async fn deadline_ends_the_call_here_and_at_the_go_laptop() {
    let Some(mut laptop) = GoLaptop::start().await else { return };
    let mut request = steered(payload(""), &[("echo-hang", "1")]);
    request.set_timeout(Duration::from_millis(200));

    let status = soon("the deadline", laptop.client().unary(request)).await.expect_err("it hangs");

    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(soon("the laptop's notice", laptop.laptop.line("cancelled ")).await.ends_with("Unary"));
}

#[tokio::test]
async fn cancelled_calls_end_at_the_go_laptop() {
    let Some(mut laptop) = GoLaptop::start().await else { return };
    let request = steered(payload(""), &[("echo-hang", "1"), ("echo-count", "1")]);
    let mut stream = soon("a stream", laptop.client().download(request)).await.expect("a stream").into_inner();
    soon("a message", stream.message()).await.expect("a message").expect("more");

    drop(stream);

    assert!(soon("the laptop's notice", laptop.laptop.line("cancelled ")).await.ends_with("Download"));
    let answer = soon("an answer", laptop.client().unary(payload("on"))).await.expect("the tunnel lives");
    assert_eq!(answer.into_inner().data, b"on");
}

#[tokio::test]
async fn large_messages_go_to_the_go_laptop_and_back() {
    let Some(laptop) = GoLaptop::start().await else { return };
    let large = pattern(7, 4 << 20);
    let answer = soon("4 MiB", laptop.client().unary(payload(large.clone()))).await.expect("4 MiB");
    assert!(answer.into_inner().data == large, "4 MiB came back changed");
}

#[tokio::test]
async fn streams_of_every_kind_run_to_the_go_laptop() {
    let Some(laptop) = GoLaptop::start().await else { return };
    let mut echo = laptop.client();

    let request = steered(payload(""), &[("echo-count", "50"), ("echo-size", "65536")]);
    let mut down = soon("a stream", echo.download(request)).await.expect("a stream").into_inner();
    for n in 0..50 {
        let message = soon("a message", down.message()).await.expect("a message").expect("not the end");
        assert!(message.data == pattern(n, 65536), "message {n} came changed");
    }
    assert!(soon("the end", down.message()).await.expect("an end").is_none());

    let up: Vec<Payload> = (0..50).map(|n| payload(pattern(n, 65536))).collect();
    let mut digest = Digest::default();
    up.iter().for_each(|message| digest.update(&message.data));
    let answer = soon("the digest", echo.upload(tokio_stream::iter(up))).await.expect("a digest");
    assert_eq!(answer.into_inner().data, digest.to_bytes());

    // One word at a time: each is answered before the next is sent.
    let (say, words) = tokio::sync::mpsc::channel(1);
    say.send(payload([0])).await.expect("room");
    let words = tokio_stream::wrappers::ReceiverStream::new(words);
    let mut chat = soon("a chat", echo.chat(words)).await.expect("a chat").into_inner();
    for n in 0..20u8 {
        assert_eq!(soon("a word", chat.message()).await.expect("a word").expect("not the end").data, [n]);
        say.send(payload([n + 1])).await.expect("the chat goes on");
    }
    drop(say);
    assert_eq!(soon("the last", chat.message()).await.expect("a word").expect("not the end").data, [20]);
    assert!(soon("the end", chat.message()).await.expect("an end").is_none());
}

#[tokio::test]
async fn twenty_calls_run_to_the_go_laptop_at_once() {
    let Some(laptop) = GoLaptop::start().await else { return };
    let mut calls = JoinSet::new();
    for n in 0..20 {
        let mut echo = laptop.client();
        calls.spawn(async move {
            let sent = pattern(n, 10_000);
            let request = steered(payload(sent.clone()), &[("echo-delay-ms", "100")]);
            let answer = soon("an answer", echo.unary(request)).await.expect("an answer");
            assert!(answer.into_inner().data == sent, "call {n} came back changed");
        });
    }
    let answered = soon("twenty answers", calls.join_all()).await;
    assert_eq!(answered.len(), 20);
}

#[tokio::test]
async fn call_ends_unavailable_when_the_go_laptop_is_killed() {
    let Some(laptop) = GoLaptop::start().await else { return };
    let mut echo = laptop.client();
    let request = steered(payload(""), &[("echo-hang", "1"), ("echo-count", "1")]);
    let mut stream = soon("a stream", echo.download(request)).await.expect("a stream").into_inner();
    soon("a message", stream.message()).await.expect("a message").expect("it is in flight");

    drop(laptop.laptop);

    let status = soon("the call's end", stream.message()).await.expect_err("nobody is left to end it well");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains(AGENT), "{status:?}");
    let next = soon("the next call", echo.unary(payload(""))).await.expect_err("nobody is left to call");
    assert_eq!(next.code(), Code::Unavailable, "{next:?}");
    assert!(next.message().contains(AGENT), "{next:?}");
}

/// G6: the Go hub renews its keys after each MiB, and so does our agent if it is told to.
async fn go_hub_rekeys_under_bulk(mib: usize, by: RekeyedBy) {
    let _alone = alone().await;
    let (bulk, rekey) = (mib.to_string(), (1 << 20).to_string());
    let arguments = ["-checks", "bulk", "-bulk", &bulk, "-rekey", &rekey, "-timeout", "1h"];
    let Some((mut hub, agent, address)) = go_hub_with(&arguments).await else { return };
    let (bytes, interval) = by.own();
    let agent = agent.rekey(bytes, interval).forward_request(ForwardRequest::Optional);
    let agent = soon("the login", agent.connect(address)).await.expect("connect");
    let begun = Instant::now();

    serve(&Echo::default(), agent.incoming());

    hub.line("ok bulk").await;
    let took = begun.elapsed();
    let rekeys: usize = hub.line("rekeys ").await.parse().expect("a number");
    eprintln!("G6 Go hub, {by:?}: {mib} MiB each way in {took:?}, {rekeys} rekeys");
    assert!(rekeys >= mib / 4, "only {rekeys} rekeys");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_hub_renews_its_keys_under_bulk() {
    go_hub_rekeys_under_bulk(64, RekeyedBy::Peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_hub_and_our_agent_renew_their_keys_under_bulk() {
    go_hub_rekeys_under_bulk(64, RekeyedBy::Both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: cargo test --release -- --ignored"]
async fn go_hub_renews_its_keys_under_a_gigabyte() {
    for by in [RekeyedBy::Peer, RekeyedBy::Both] {
        go_hub_rekeys_under_bulk(1024, by).await;
    }
}

/// G6: the Go laptop renews its keys after each MiB, and so does our hub if it is told to.
async fn go_laptop_rekeys_under_bulk(mib: usize, by: RekeyedBy) {
    let _alone = alone().await;
    let (bytes, interval) = by.own();
    let laptop = GoLaptop::start_with(|hub| hub.rekey(bytes, interval), &["-rekey", &(1 << 20).to_string()]).await;
    let Some(mut laptop) = laptop else { return };
    let tunnel = laptop.hub.get(AGENT).expect("connected");
    let begun = Instant::now();

    let answers = soon("a chat", laptop.client().chat(numbered(mib))).await.expect("a chat");
    assert_numbered(answers.into_inner(), mib).await;

    let took = begun.elapsed();
    assert_eq!(laptop.hub.get(AGENT).expect("connected").id(), tunnel.id(), "the tunnel was replaced");
    laptop.hub.shutdown(Duration::from_secs(2)).await;
    let rekeys: usize = laptop.laptop.line("rekeys ").await.parse().expect("a number");
    eprintln!("G6 Go laptop, {by:?}: {mib} MiB each way in {took:?}, {rekeys} rekeys");
    assert!(rekeys >= mib / 4, "only {rekeys} rekeys");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_laptop_renews_its_keys_under_bulk() {
    go_laptop_rekeys_under_bulk(64, RekeyedBy::Peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_laptop_and_our_hub_renew_their_keys_under_bulk() {
    go_laptop_rekeys_under_bulk(64, RekeyedBy::Both).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: cargo test --release -- --ignored"]
async fn go_laptop_renews_its_keys_under_a_gigabyte() {
    for by in [RekeyedBy::Peer, RekeyedBy::Both] {
        go_laptop_rekeys_under_bulk(1024, by).await;
    }
}
