//! gRPC in gRPC, both directions in one process: tunnels that are gRPC calls themselves, as the Go library grpctunnel and its
//! Python port speak them. All that they need is an ordinary gRPC connection.
//!
//! ```sh
//! cargo run --example grpctunnel --features grpctunnel
//! ```
//!
//! A laptop dials the cloud's gRPC server over TCP on loopback. By a *reverse* tunnel the cloud calls the laptop, which is
//! one of its hub's agents like any that comes by SSH; by a *forward* tunnel the laptop calls the cloud; and by a tunnel in
//! the first one the cloud calls a service that the laptop serves to nobody else. You will see who connects, every kind of
//! call, and both ends.

#[path = "common/greeter.rs"]
mod greeter;

use std::time::Duration;

use dialback::grpctunnel::{TunnelBuilder, TunnelService};
use dialback::{AllowedKeys, Grant, Hub, PrivateKey, tune_endpoint, tune_server};
use greeter::{Failure, Machine, converse};
use tokio::net::TcpListener;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Status};

/// A laptop shows it when it opens a tunnel. A real one is a secret, and goes over TLS.
const TOKEN: &str = "Bearer laptop-1's token";

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // The cloud: an ordinary gRPC server, of which tunnels are one service.
    let hub = Hub::builder(PrivateKey::generate()).authorizer(AllowedKeys::new()).bind("127.0.0.1:0").await?;
    let tunnels = TunnelService::builder()
        .reverse(&hub)
        .routes(Routes::new(Machine::service("the cloud")))
        .identify(|carrier: &Request<()>| match carrier.metadata().get("authorization") {
            Some(token) if token == TOKEN => match "laptop-1".parse() {
                Ok(agent) => Ok((agent, Grant::new())),
                Err(_) => Err(Status::internal("no id")),
            },
            _ => Err(Status::unauthenticated("no such token")),
        })
        .build();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(tune_server(Server::builder()).add_service(tunnels).serve_with_incoming(incoming));
    println!("cloud: an ordinary gRPC server on {address}");

    // Without the token nobody gets in.
    let carrier = tune_endpoint(Endpoint::try_from(format!("http://{address}"))?).connect().await?;
    match TunnelBuilder::new("laptop-1", carrier.clone()).forward().await {
        Ok(_) => return Err("a stranger was let in".into()),
        Err(error) => println!("stranger: {error}"),
    }

    // The laptop opens a tunnel and serves it; the cloud calls.
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", TOKEN.parse()?);
    let laptop = |carrier| TunnelBuilder::new("laptop-1", carrier).metadata(metadata.clone());
    let inner = TunnelService::builder().routes(Routes::new(Machine::service("the laptop's inner self"))).build();
    let services = Routes::new(Machine::service("laptop-1")).add_service(inner);
    let reverse = laptop(carrier.clone()).reverse(services).await?;
    println!("laptop: {}", *reverse.status().borrow());
    let tunnel = hub.wait_for("laptop-1").await?;
    println!("cloud: {} is here by {}, tunnel {}; calling it", tunnel.agent_id(), tunnel.carrier(), tunnel.id());
    converse(hub.channel("laptop-1")?).await?;

    // The laptop opens one the other way, and calls.
    let forward = laptop(carrier).forward().await?;
    println!("laptop: calling the cloud");
    converse(forward.channel()).await?;

    // A tunnel in a tunnel.
    let nested = TunnelBuilder::new("cloud", hub.channel("laptop-1")?).forward().await?;
    println!("cloud: calling by a tunnel in the tunnel");
    converse(nested.channel()).await?;

    nested.shutdown(Duration::from_secs(5)).await;
    forward.shutdown(Duration::from_secs(5)).await;
    reverse.shutdown(Duration::from_secs(5)).await;
    println!("cloud: the tunnel of laptop-1 ended: {}", tunnel.closed().await);
    hub.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
