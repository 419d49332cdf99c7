//! A laptop that is really behind NAT answers a cloud that cannot dial it.
#![cfg(target_os = "linux")]

mod common;

use std::{env, time::Duration};

use common::{
    child::{self, Keys},
    echo::{pattern, payload, pb::echo_client::EchoClient},
    netns::{CLOUD, LAPTOP, Nat, ROUTER},
    peers::require_root_netns,
    rig::{AGENT, soon},
};
use tokio_stream::StreamExt;
use tonic::Request;

/// Makes the child that is a hub call its agent and end.
const CALLS: &str = "DIALBACK_TEST_CALLS";

#[tokio::test]
async fn child() {
    match env::var_os(CALLS) {
        Some(_) => call_the_laptop().await,
        None => child::run().await,
    }
}

/// What runs in the cloud. Says what it was answered.
async fn call_the_laptop() {
    let (hub, listen) = child::told_hub();
    let hub = hub.bind(listen).await.expect("bind");
    eprintln!("listening");
    let tunnel = hub.wait_for(AGENT).await.expect("the hub lives");
    eprintln!("agent from {}", tunnel.peer_addr().expect("an address").ip());

    let mut laptop = EchoClient::new(hub.channel(AGENT).expect("an id"));
    let reply = laptop.unary(payload("across")).await.expect("unary call").into_inner();
    eprintln!("unary {}", String::from_utf8_lossy(&reply.data));

    let mut request = Request::new(payload(""));
    for (key, value) in [("echo-count", "100"), ("echo-size", "10000")] {
        request.metadata_mut().insert(key, value.parse().expect("a value"));
    }
    let replies = laptop.download(request).await.expect("server-streaming call").into_inner();
    let replies: Vec<_> = replies.map(|reply| reply.expect("a reply").data).collect().await;
    let right = replies.iter().enumerate().all(|(n, data)| *data == pattern(n, 10_000));
    eprintln!("download {} {}", replies.len(), if right { "right" } else { "wrong" });

    let words = tokio_stream::iter(["to", "and", "fro"].map(payload));
    let replies = laptop.chat(words).await.expect("bidirectional call").into_inner();
    let replies: Vec<_> = replies.map(|reply| reply.expect("a reply").data).collect().await;
    eprintln!("chat {}", String::from_utf8_lossy(&replies.concat()));
    hub.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn cloud_calls_a_laptop_that_it_cannot_dial() {
    if !require_root_netns() {
        return;
    }
    let (nat, keys) = (Nat::new(), Keys::new());

    // Something listens on the laptop, so that it is the router that a dial fails for.
    let mut listener = child::start_by(|program| nat.laptop.command(program), keys.hub_process("0.0.0.0:2222"));
    listener.line("listening ").await;
    assert!(nat.router.can_dial(LAPTOP, 2222), "nothing listens, so that a failed dial proves nothing");
    assert!(!nat.cloud.can_dial(LAPTOP, 2222), "the router lets strangers in");
    assert!(!nat.cloud.can_dial(ROUTER[1], 2222), "the router forwards a port");

    let address = format!("{CLOUD}:2222");
    let mut role = keys.hub_process(&address);
    role.push((CALLS, "1".into()));
    let mut cloud = child::start_by(|program| nat.cloud.command(program), role);
    soon("the cloud's start", cloud.line("listening")).await;
    let _laptop = child::start_by(|program| nat.laptop.command(program), keys.agent_process(&address));

    let from = soon("the laptop's coming", cloud.line("agent from ")).await;
    assert_eq!(from, ROUTER[1], "the laptop's own address was not masqueraded");
    assert_eq!(soon("a unary call", cloud.line("unary ")).await, "across");
    assert_eq!(soon("a server-streaming call", cloud.line("download ")).await, "100 right");
    assert_eq!(soon("a bidirectional call", cloud.line("chat ")).await, "toandfro");
    let (status, said) = soon("the cloud's end", cloud.finish()).await;
    assert!(status.success(), "{said:#?}");
}
