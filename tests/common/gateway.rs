//! Ordinary gRPC clients of a hub's gateway.

use dialback::{gateway::Gateway, tune_endpoint};
use tonic::transport::{Channel, Endpoint};

use super::rig::AGENT;

/// A connection whose calls name the agent of every rig by their authority.
pub async fn channel(gateway: &Gateway) -> Channel {
    channel_to(gateway, AGENT).await
}

/// The same for any agent.
pub async fn channel_to(gateway: &Gateway, agent: &str) -> Channel {
    let address = format!("http://{}", gateway.local_addr());
    let origin = format!("http://{agent}").parse().expect("an origin");
    let endpoint = tune_endpoint(Endpoint::from_shared(address).expect("an address")).origin(origin);
    endpoint.connect().await.expect("connect to the gateway")
}
