//! Ordinary gRPC clients of a hub's gateway.

use std::net::SocketAddr;

use dialback::{gateway::Gateway, tune_endpoint};
use tonic::transport::{Channel, Endpoint};

use super::rig::AGENT;

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
