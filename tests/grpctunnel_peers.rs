//! The peers that speak grpctunnel.v1 work with each other: what fails against dialback is then dialback's doing.

mod common;

use common::child::signal;
use common::grpctunnel::Library::{self, Go, Python};
use common::peers::Peer;

/// What a Go caller gets of a Python service, which sends no empty messages and no details.
const GO_OF_PYTHON: &[&str] =
    &["unary", "refused", "deadline", "large-download", "upload", "chat", "early-headers", "half-close"];

/// The same of a Python caller, which is to be quick: each has every check with a Go service.
const PYTHON_OF_PYTHON: &[&str] = &["unary", "metadata", "status", "upload", "chat", "half-close"];

async fn start(library: Library, role: &str, options: &[&str]) -> Option<Peer> {
    Some(Peer::start(library.command(role).await?.args(options)))
}

/// The checks are these, and all of them are passed.
async fn passes(caller: Peer, checks: &[&str]) {
    let (status, said) = caller.finish().await;
    let passed: Vec<_> = said.iter().filter_map(|line| line.strip_prefix("ok ")).collect();
    assert_eq!(passed, checks, "{said:#?}");
    assert!(status.success(), "{said:#?}");
}

/// It does what it is told, and says that all is well.
async fn ends(peer: Peer) {
    signal(&peer, "TERM");
    let (status, said) = peer.finish().await;
    assert!(status.success(), "{said:#?}");
}

async fn forward(client: Library, server: Library, checks: &[&str]) {
    let Some(mut server) = start(server, "forward-server", &["--token", "secret"]).await else { return };
    let address = server.line("listening ").await;
    let names = checks.join(",");
    let options = ["--server", &address, "--token", "secret", "--id", "laptop-7", "--checks", &names];
    let Some(client) = start(client, "forward-client", &options).await else { return };

    server.line("tunnel laptop-7").await;
    passes(client, checks).await;
    server.line("gone laptop-7").await;
    ends(server).await;
}

async fn reverse(hub: Library, agent: Library, checks: &[&str]) {
    let names = checks.join(",");
    let options = ["--token", "secret", "--tunnels", "2", "--checks", &names];
    let Some(mut hub) = start(hub, "reverse-hub", &options).await else { return };
    let address = hub.line("listening ").await;
    let options = ["--server", &address, "--token", "secret", "--id", "laptop-7", "--tunnels", "2"];
    let Some(mut agent) = start(agent, "reverse-agent", &options).await else { return };

    for _ in 0..2 {
        hub.line("tunnel laptop-7").await;
        agent.line("ready").await;
    }
    passes(hub, checks).await;
    for _ in 0..2 {
        agent.line("closed: ").await;
    }
    let (status, said) = agent.finish().await;
    assert!(status.success(), "{said:#?}");
}

#[tokio::test]
async fn go_client_calls_go_server() {
    forward(Go, Go, Go.checks()).await;
}

#[tokio::test]
async fn go_client_calls_python_server() {
    forward(Go, Python, GO_OF_PYTHON).await;
}

#[tokio::test]
async fn python_client_calls_go_server() {
    forward(Python, Go, Python.checks()).await;
}

#[tokio::test]
async fn python_client_calls_python_server() {
    forward(Python, Python, PYTHON_OF_PYTHON).await;
}

#[tokio::test]
async fn go_hub_calls_go_agent() {
    reverse(Go, Go, &[Go.checks(), &["spread"]].concat()).await;
}

#[tokio::test]
async fn go_hub_calls_python_agent() {
    reverse(Go, Python, &[GO_OF_PYTHON, &["spread"]].concat()).await;
}

#[tokio::test]
async fn python_hub_calls_go_agent() {
    reverse(Python, Go, Python.checks()).await;
}

#[tokio::test]
async fn python_hub_calls_python_agent() {
    reverse(Python, Python, PYTHON_OF_PYTHON).await;
}

/// The agent serves what the examples serve, and the hub calls it three times and then five times at once.
async fn demo(hub: Library, agent: Library) {
    let Some(mut hub) = start(hub, "demo-hub", &[]).await else { return };
    let address = hub.line("listening ").await;
    let Some(mut agent) = start(agent, "demo-agent", &["--server", &address]).await else { return };

    for _ in 0..8 {
        agent.line("request call ").await;
    }
    let (status, said) = hub.finish().await;
    assert!(status.success(), "{said:#?}");
    let answers = said.iter().filter(|line| line.starts_with("answer Echo: call "));
    assert_eq!(answers.count(), 8, "{said:#?}");
}

#[tokio::test]
async fn go_demo_hub_calls_python_demo_agent() {
    demo(Go, Python).await;
}

#[tokio::test]
async fn python_demo_hub_calls_go_demo_agent() {
    demo(Python, Go).await;
}

/// An agent that is refused says so, and that is its end.
async fn refuses(hub: Library, agent: Library) {
    let Some(mut hub) = start(hub, "reverse-hub", &["--token", "secret"]).await else { return };
    let address = hub.line("listening ").await;
    let Some(agent) = start(agent, "reverse-agent", &["--server", &address, "--token", "guess"]).await else { return };

    let (status, said) = agent.finish().await;
    assert!(!status.success(), "{said:#?}");
    ends(hub).await;
}

#[tokio::test]
async fn go_hub_refuses_python_agent_with_another_token() {
    refuses(Go, Python).await;
}

#[tokio::test]
async fn python_hub_refuses_go_agent_with_another_token() {
    refuses(Python, Go).await;
}
