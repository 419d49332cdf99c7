//! Ordinary gRPC clients of a hub's gateway.

use std::net::SocketAddr;
use std::time::Duration;

use dialback::{gateway::Gateway, tune_endpoint};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::echo::{client, payload, pb::echo_client::EchoClient};
use super::rig::{AGENT, soon};

/// A connection whose calls name the agent of every rig by their authority.
pub async fn channel(gateway: &Gateway) -> Channel {
    channel_to(gateway, AGENT).await
}

/// The same for any agent.
pub async fn channel_to(gateway: &Gateway, agent: &str) -> Channel {
    channel_at(gateway.local_addr(), agent).await
}

/// The same for a gateway in another process.
pub async fn channel_at(gateway: SocketAddr, agent: &str) -> Channel {
    let origin = format!("http://{agent}").parse().expect("an origin");
    let endpoint = Endpoint::from_shared(format!("http://{gateway}")).expect("an address").origin(origin);
    tune_endpoint(endpoint).connect().await.expect("connect to the gateway")
}

/// A client of the agent at a gateway, once the agent is there.
pub async fn call_through(gateway: SocketAddr) -> EchoClient<Channel> {
    let mut client = client(channel_at(gateway, AGENT).await);
    soon("the agent", async {
        while let Err(status) = client.unary(payload("x")).await {
            assert!(matches!(status.code(), Code::NotFound | Code::Unavailable), "{status}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    client
}

/// Calls until the answer is the one that is looked for.
pub async fn until_answered(client: &mut EchoClient<Channel>, is_it: impl Fn(&Status) -> bool) {
    let mut last = None;
    for _ in 0..500 {
        match client.unary(payload("x")).await {
            Err(status) if is_it(&status) => return,
            other => last = Some(other),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the last answer was {last:?}");
}
