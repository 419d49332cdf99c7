//! Tunnels of `grpctunnel.v1` between dialback and the libraries that are not ours, in all four roles: who opens the tunnel, and
//! who calls.
#![cfg(feature = "grpctunnel")]

mod common;

use std::time::{Duration, Instant};

use common::child::signal;
use common::echo::pb::echo_client::EchoClient;
use common::echo::{Echo, pattern, payload, steered};
use common::grpctunnel::Library::{self, Go, Python};
use common::peers::Peer;
use common::rig::{AGENT, soon};
use common::tunnels::{TOKEN, Tunnels, builder};
use dialback::{TunnelChannel, tune_endpoint};
use futures_util::future::join_all;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::service::Routes;
use tonic::transport::Endpoint;
use tonic_types::StatusExt;

/// The sizes at which something changes: none, a byte, around a chunk and a window of the Go library, and many of these.
const SIZES: [usize; 9] =
    [0, 1, (16 << 10) - 1, 16 << 10, (16 << 10) + 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 8 << 20];

async fn start(library: Library, role: &str, options: &[&str]) -> Option<Peer> {
    Some(Peer::start(library.command(role).await?.args(options)))
}

/// All the checks of a caller that is not ours.
async fn passes(caller: Peer, checks: &[&str]) {
    let (status, said) = caller.finish().await;
    let passed: Vec<_> = said.iter().filter_map(|line| line.strip_prefix("ok ")).collect();
    assert_eq!(passed, checks, "{said:#?}");
    assert!(status.success(), "{said:#?}");
}

/// Theirs opens a forward tunnel to ours, and calls.
async fn their_client_calls_our_server(library: Library) {
    let tunnels = Tunnels::start().await;
    let (address, names) = (tunnels.address.to_string(), library.checks().join(","));
    let options = ["--server", &address, "--token", TOKEN, "--checks", &names];
    let Some(client) = start(library, "forward-client", &options).await else { return };
    passes(client, library.checks()).await;
}

/// Ours opens reverse tunnels to theirs, and is called.
async fn their_hub_calls_our_agent(library: Library, tunnels: u16) {
    let names = library.checks().join(",");
    let count = tunnels.to_string();
    let options = ["--token", TOKEN, "--tunnels", &count, "--checks", &names];
    let Some(mut hub) = start(library, "reverse-hub", &options).await else { return };
    let address = hub.line("listening ").await;
    let endpoint = tune_endpoint(Endpoint::try_from(format!("http://{address}")).expect("a URL"));
    let echo = Echo::default();
    // The Python port takes the newest revision that it is offered, whether it knows it or not.
    let newest = if library == Go { 2 } else { 1 };
    let agent = builder(endpoint.connect().await.expect("connect")).tunnels(tunnels).newest_revision(newest);
    let agent = soon("the tunnel", agent.reverse(Routes::new(echo.service()))).await.expect("open");
    passes(hub, library.checks()).await;
    echo.wait_until("the end of all calls", |counts| counts.running() == 0).await;
    soon("the agent's end", agent.shutdown(Duration::from_secs(1))).await;
}

/// Theirs opens reverse tunnels to ours, and is called.
async fn our_hub_calls_their_agent(library: Library, tunnels: usize) {
    let ours = Tunnels::start().await;
    let (address, count) = (ours.address.to_string(), tunnels.to_string());
    let options = ["--server", &address, "--token", TOKEN, "--tunnels", &count];
    let Some(mut agent) = start(library, "reverse-agent", &options).await else { return };
    for _ in 0..tunnels {
        agent.line("ready").await;
    }
    soon("the agent", ours.hub.wait_for(AGENT)).await.expect("an id");
    everything(ours.hub.channel(AGENT).expect("an id"), library, &mut agent).await;
    signal(&agent, "TERM");
    let (status, said) = agent.finish().await;
    assert!(status.success(), "{said:#?}");
    soon("its leaving", async {
        while !ours.hub.tunnels().is_empty() {
            tokio::task::yield_now().await
        }
    })
    .await;
}

/// Ours opens a forward tunnel to theirs, and calls.
async fn our_client_calls_their_server(library: Library) {
    let Some(mut server) = start(library, "forward-server", &["--token", TOKEN]).await else { return };
    let address = server.line("listening ").await;
    let endpoint = tune_endpoint(Endpoint::try_from(format!("http://{address}")).expect("a URL"));
    let tunnel = soon("the tunnel", builder(endpoint.connect().await.expect("connect")).forward()).await.expect("open");
    everything(tunnel.channel(), library, &mut server).await;
    soon("its end", tunnel.shutdown(Duration::from_secs(1))).await;
    signal(&server, "TERM");
    let (status, said) = server.finish().await;
    assert!(status.success(), "{said:#?}");
}

/// What a caller of ours gets of a service that is not. The Python port sends no empty messages, and neither details nor
/// the cancellation of a handler; nor does it look at a deadline.
async fn everything(channel: TunnelChannel, library: Library, peer: &mut Peer) {
    let is_go = library == Go;
    let mut echo = EchoClient::new(channel.clone()).max_decoding_message_size(16 << 20);
    for size in SIZES.into_iter().filter(|size| is_go || *size > 0) {
        let sent = payload(pattern(0, size));
        let answer = soon("an answer", echo.unary(sent.clone())).await.unwrap_or_else(|e| panic!("{size}: {e}"));
        assert!(answer.into_inner() == sent, "{size} bytes came back changed");
        let steering = [("echo-count", "2"), ("echo-size", &*size.to_string())];
        let mut stream = echo.download(steered(payload(""), &steering)).await.expect("a stream").into_inner();
        for index in 0..2 {
            let answer = soon("an answer", stream.message()).await.expect("no status").expect("an answer");
            assert!(answer.data == pattern(index, size), "{size} bytes");
        }
        assert!(soon("the end", stream.message()).await.expect("no status").is_none());
    }

    let words = ["one", "two", "three"];
    let sent = tokio_stream::iter(words.map(payload));
    soon("the upload's answer", echo.upload(steered(sent, &[]))).await.expect("an answer");
    let (give, given) = tokio::sync::mpsc::channel(1);
    let chat = echo.chat(steered(tokio_stream::wrappers::ReceiverStream::new(given), &[]));
    give.send(payload("first")).await.expect("it is read");
    let mut answers = soon("the chat", chat).await.expect("a stream").into_inner();
    assert_eq!(soon("an answer", answers.next()).await.expect("one").expect("no status"), payload("first"));
    for word in words {
        give.send(payload(word)).await.expect("it is read");
        assert_eq!(soon("an answer", answers.next()).await.expect("one").expect("no status"), payload(word));
    }
    drop(give);
    assert!(soon("the end", answers.next()).await.is_none());

    let steering = [("x-word", "one"), ("x-word", "two")];
    let answer = soon("an answer", echo.unary(steered(payload("m"), &steering))).await.expect("an answer");
    assert_eq!(answer.metadata().get_all("x-word").iter().collect::<Vec<_>>(), ["one", "two"]);
    let mut steering = vec![("echo-status", "9"), ("echo-message", "not now: 100 %")];
    if is_go {
        steering.push(("echo-details", "1"));
    }
    let status = soon("the status", echo.unary(steered(payload("s"), &steering))).await.expect_err("a status");
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not now: 100 %"));
    assert_eq!(status.get_error_details().request_info().is_some() || !status.details().is_empty(), is_go);

    let calls = (0..50).map(|n| {
        let mut echo = EchoClient::new(channel.clone()).max_decoding_message_size(1 << 20);
        async move {
            let sent = payload(pattern(n, 1000 * n + 1));
            assert_eq!(echo.unary(sent.clone()).await.expect("an answer").into_inner(), sent);
        }
    });
    soon("fifty calls", join_all(calls)).await;

    let mut request = steered(payload("h"), &[("echo-hang", "1")]);
    request.set_timeout(Duration::from_millis(300));
    let began = Instant::now();
    let status = soon("the deadline", echo.unary(request)).await.expect_err("no answer comes");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(began.elapsed() < Duration::from_secs(2));
    if is_go {
        peer.line("cancelled ").await;
        let mut call = Box::pin(echo.unary(steered(payload("c"), &[("echo-hang", "1")])));
        let _ = tokio::time::timeout(Duration::from_millis(300), &mut call).await;
        drop(call);
        peer.line("cancelled ").await;
    }
    assert_eq!(
        soon("an answer", echo.unary(payload("on"))).await.expect("the tunnel lives").into_inner(),
        payload("on")
    );
}

macro_rules! pairs {
    ($($name:ident: $pair:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                $pair.await;
            }
        )*
    };
}

pairs! {
    go_client_calls_our_server: their_client_calls_our_server(Go);
    python_client_calls_our_server: their_client_calls_our_server(Python);
    go_hub_calls_our_agent: their_hub_calls_our_agent(Go, 1);
    go_hub_calls_our_agent_by_three_tunnels: their_hub_calls_our_agent(Go, 3);
    python_hub_calls_our_agent: their_hub_calls_our_agent(Python, 1);
    our_hub_calls_go_agent: our_hub_calls_their_agent(Go, 1);
    our_hub_calls_go_agent_by_three_tunnels: our_hub_calls_their_agent(Go, 3);
    our_hub_calls_python_agent: our_hub_calls_their_agent(Python, 1);
    our_client_calls_go_server: our_client_calls_their_server(Go);
    our_client_calls_python_server: our_client_calls_their_server(Python);
}
