//! The main job in one process: a laptop that nobody can dial answers gRPC calls from the cloud.
//!
//! ```sh
//! cargo run --example quickstart
//! ```
//!
//! A hub and an agent talk over real TCP and SSH on loopback, with keys made on the fly. You will see the cloud call
//! the laptop in three ways, the laptop call the cloud back through the same tunnel, the connection being cut, why and
//! how fast that was noticed, and a call after the agent has reconnected by itself.

#[path = "common/greeter.rs"]
mod greeter;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dialback::stats::{ConnState, DisconnectDetector, StatsLayer};
use dialback::{Agent, AllowedKeys, HostKeys, Hub, PrivateKey, tune_endpoint, tune_server};
use greeter::pb::HelloRequest;
use greeter::pb::greeter_client::GreeterClient;
use greeter::{Failure, Machine, converse};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::transport::{Endpoint, Server};

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // The cloud: knows which key may be laptop-1.
    let (host_key, laptop_key) = (PrivateKey::generate(), PrivateKey::generate());
    let hub = Hub::builder(host_key.clone())
        .authorizer(AllowedKeys::new().allow("laptop-1", laptop_key.public_key())?)
        .bind("127.0.0.1:0")
        .await?;
    println!("cloud: listening on {}, host key {}", hub.local_addr(), host_key.public_key().fingerprint());
    let cloud_service = tune_server(Server::builder()).add_service(Machine::service("the cloud"));
    tokio::spawn(cloud_service.serve_with_incoming_shutdown(hub.incoming(), std::future::pending()));

    // Between them, a wire that can be cut.
    let wire = Wire::to(hub.local_addr()).await?;

    // The laptop: dials out, listens on nothing, and serves.
    let agent = Agent::builder("laptop-1", laptop_key)
        .host_keys(HostKeys::public_key(host_key.public_key()))
        .connect(wire.address.to_string())
        .await?;
    println!("laptop: {}", *agent.status().borrow());
    let laptop_service = tune_server(Server::builder()).add_service(Machine::service("laptop-1"));
    tokio::spawn(laptop_service.serve_with_incoming_shutdown(agent.incoming(), std::future::pending()));

    // The cloud calls the laptop.
    let tunnel = hub.wait_for("laptop-1").await?;
    println!("cloud: {} is here, tunnel {}", tunnel.agent_id(), tunnel.id());
    converse(hub.channel("laptop-1")?).await?;

    // The same with tonic's own channel, as the article does it, and with a detector that watches its connection.
    let detector = DisconnectDetector::new();
    let mut state = detector.subscribe();
    let stats = StatsLayer::new(detector);
    let endpoint = tune_endpoint(Endpoint::from_static("http://laptop-1"));
    let channel = endpoint.connect_with_connector(stats.wrap(tunnel.connector())).await?;
    let mut greeter = GreeterClient::new(channel);
    let reply = greeter.say_hello(HelloRequest { name: "tonic".into() }).await?;
    println!("  tonic's channel   <- {}", reply.into_inner().message);

    // The laptop calls the cloud, through the same tunnel.
    println!("laptop: calling the cloud back");
    let reply = GreeterClient::new(agent.channel()).say_hello(HelloRequest { name: "laptop".into() }).await?;
    println!("  unary             <- {}", reply.into_inner().message);

    // The wire is cut.
    println!("-- cutting the connection --");
    let mut disconnected = tunnel.disconnected();
    let cut_at = Instant::now();
    wire.cut();
    if let Some(gone) = &*disconnected.wait_for(Option::is_some).await? {
        println!("cloud: tunnel {} ended after {:?}: {gone}", tunnel.id(), cut_at.elapsed());
    }
    state.wait_for(|state| matches!(state, ConnState::Disconnected { .. })).await?;
    println!("cloud: the detector says: {}", *state.borrow());

    // The agent comes back by itself, and the same channel works again.
    let tunnel = hub.wait_for("laptop-1").await?;
    println!("cloud: {} is back after {:?}, tunnel {}", tunnel.agent_id(), cut_at.elapsed(), tunnel.id());
    let reply = GreeterClient::new(hub.channel("laptop-1")?).say_hello(HelloRequest { name: "again".into() }).await?;
    println!("  unary             <- {}", reply.into_inner().message);

    agent.shutdown(Duration::from_secs(5)).await;
    println!("laptop: {}", *agent.status().borrow());
    hub.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

/// Carries connections to the hub, and cuts them.
struct Wire {
    address: SocketAddr,
    cut: watch::Sender<()>,
}

impl Wire {
    async fn to(hub: SocketAddr) -> Result<Self, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let cut = watch::Sender::new(());
        let cuts = cut.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(hub).await?;
                    tokio::select! {
                        carried = tokio::io::copy_bidirectional(&mut near, &mut far) => carried.map(|_| ()),
                        _ = cut.changed() => Ok(()), // dropping both ends closes them
                    }
                });
            }
        });
        Ok(Self { address, cut })
    }

    fn cut(&self) {
        self.cut.send_replace(());
    }
}
