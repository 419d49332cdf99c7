//! Three networks, three ways to one hub: SSH over TCP, a WebSocket, and SSH through an HTTP proxy.
//!
//! ```sh
//! cargo run --example anywhere --features websocket
//! ```
//!
//! All in one process, over real TCP on loopback, with keys made on the fly. One hub listens for SSH and for WebSockets, and a
//! small CONNECT proxy stands for that of an office. Three agents dial out, each as its network lets it. You will see which
//! way each came, and the same call to each of them.

#[path = "common/connect_proxy.rs"]
mod connect_proxy;
#[path = "common/greeter.rs"]
mod greeter;

use std::net::SocketAddr;
use std::time::Duration;

use dialback::{Agent, AgentBuilder, AllowedKeys, HostKeys, Hub, PrivateKey, tune_server};
use greeter::pb::HelloRequest;
use greeter::pb::greeter_client::GreeterClient;
use greeter::{Failure, Machine};
use tokio::net::TcpListener;
use tonic::transport::Server;

/// How long calls in flight may take to finish at the end.
const GRACE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // One key is enough here: it may be each of the three. A fleet has one for each agent.
    let (host_key, key) = (PrivateKey::generate(), PrivateKey::generate());
    let known = HostKeys::public_key(host_key.public_key());
    let mut allowed = AllowedKeys::new();
    for id in ["home", "hotel", "office"] {
        allowed = allowed.allow(id, key.public_key())?;
    }

    let hub = Hub::builder(host_key).authorizer(allowed).bind("127.0.0.1:0").await?;
    let ssh = format!("ssh://{}", hub.local_addr());
    let websocket = hub.listen("ws://127.0.0.1:0/tunnel").await?;
    let office = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = format!("http://{}", office.local_addr()?);
    tokio::spawn(connect_proxy::serve(office, |to| println!("proxy: passes on to {to}")));
    println!("hub: agents dial {ssh} or {websocket}");
    println!("office: the way out is {proxy}");

    let builder = |id: &str| Agent::builder(id, key.clone()).host_keys(known.clone());
    // Nothing in the way.
    let home = start(builder("home").no_proxy(), &ssh).await?;
    // Only web traffic gets out: SSH is tried first, and on this network nobody answers it.
    let hotel = builder("hotel").no_proxy().fallback(&websocket);
    let hotel = start(hotel, &format!("ssh://{}", nobody().await?)).await?;
    // Only the proxy gets out. Without `proxy`, the environment's ALL_PROXY is asked.
    let office = start(builder("office").proxy(&proxy), &ssh).await?;

    for id in ["home", "hotel", "office"] {
        let tunnel = hub.wait_for(id).await?;
        let peer = tunnel.peer_addr().map(|peer| peer.to_string()).unwrap_or_default();
        println!("hub: {id} came by {} from {peer}", tunnel.carrier());
        let reply = GreeterClient::new(tunnel.channel()).say_hello(HelloRequest { name: "hub".into() }).await?;
        println!("  {id:6} <- {}", reply.into_inner().message);
    }

    for agent in [home, hotel, office] {
        agent.shutdown(GRACE).await;
    }
    hub.shutdown(GRACE).await;
    println!("hub: stopped");
    Ok(())
}

/// Connects an agent, and serves on its tunnel until it ends.
async fn start(builder: AgentBuilder, hub: &str) -> Result<Agent, Failure> {
    let agent = builder.connect(hub).await?;
    let service = tune_server(Server::builder()).add_service(Machine::service(agent.id().as_str()));
    tokio::spawn(service.serve_with_incoming_shutdown(agent.incoming(), std::future::pending()));
    Ok(agent)
}

/// Where connections are accepted and nothing is ever said, as by many a firewall.
async fn nobody() -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    Ok(address)
}
