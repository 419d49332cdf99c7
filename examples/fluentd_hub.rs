//! The hub of the classic demo: lets anybody on this machine control services that run behind firewalls. Its other half is
//! `fluentd_server.rs`.
//!
//! What you learn: a hub with a gateway in front. Clients are ordinary gRPC clients, such as grpcurl; the hub has no code
//! for the services that they call, and needs none.
//!
//! ```sh
//! cargo run --example fluentd_hub --features gateway -- --listen 127.0.0.1:2222 --gateway 127.0.0.1:8080
//! cargo run --example fluentd_server --features gateway -- --hub 127.0.0.1:2222 --id fluentd-1    # another terminal
//! grpcurl -plaintext -H 'dialback-agent: fluentd-1' 127.0.0.1:8080 fluentd.Fluentd/Start            # a third one
//! grpcurl -plaintext -H 'dialback-agent: fluentd-1' 127.0.0.1:8080 fluentd.Fluentd/Restart
//! grpcurl -plaintext -H 'dialback-agent: fluentd-1' 127.0.0.1:8080 fluentd.Fluentd/Stop
//! grpcurl -plaintext 127.0.0.1:8080 dialback.v1.Hub/ListAgents
//! ```
//!
//! You will see each agent come and go here, and how to call it; what grpcurl prints is the state of the service, and the
//! agents of the hub. grpcurl needs no `.proto` file: what it asks about a service goes to the agent that has it. Stop the
//! server, and a call is told since when it is away. Ctrl-C ends either.
//!
//! The keys are those of `cloud.rs` and `laptop.rs`: `keys/README.md` says what to copy between two machines. The gateway
//! asks nobody who they are, so it listens on a loopback address only; `dialback::gateway::PolicyFile` changes that.
//! `RUST_LOG=dialback=info` shows who was turned away, and why.

#[path = "common/program.rs"]
mod program;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dialback::gateway::Gateway;
use dialback::{AuthorizedKeys, EventsError, Hub, HubEvent, PrivateKey};
use program::{Failure, told_to_stop};

/// How long calls in flight may take to finish when the program ends.
const GRACE: Duration = Duration::from_secs(5);

/// Accepts agents over SSH, and passes calls of gRPC clients on to them.
#[derive(Parser)]
struct Options {
    /// Where to listen for agents.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:2222")]
    listen: String,
    /// Where to listen for gRPC clients; a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    gateway: String,
    /// Where this machine's demo key is kept, and where the agents' public keys are.
    #[arg(long, value_name = "DIRECTORY", default_value = "keys")]
    keys: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    program::run(hub(Options::parse())).await
}

async fn hub(options: Options) -> Result<(), Failure> {
    let stop = told_to_stop()?;
    tokio::pin!(stop);

    // Who the hub is, and who may be which agent.
    std::fs::create_dir_all(&options.keys)?;
    let host_key = PrivateKey::load_or_generate(options.keys.join("hub_key"))?;
    let fingerprint = host_key.public_key().fingerprint();
    let agents = options.keys.join("%u.pub");
    let authorizer = AuthorizedKeys::open(&agents)?;

    let hub = Hub::builder(host_key).authorizer(authorizer).bind(&options.listen).await?;
    let mut events = hub.events();
    println!("hub: listening on {}, host key {fingerprint}", hub.local_addr());
    println!("hub: agents are let in by {}", agents.display());
    drop(hub.incoming()); // agents are called here, and call nothing

    // The front door.
    let gateway = Gateway::builder(&hub).bind(&options.gateway).await?;
    let door = gateway.local_addr();
    println!("hub: gateway on {door}; who is here: grpcurl -plaintext {door} dialback.v1.Hub/ListAgents");

    // Agents come and go until this program is told to stop.
    loop {
        tokio::select! {
            () = &mut stop => break,
            event = events.next() => match event {
                Ok(event) => tell(event, door),
                Err(EventsError::Missed(count)) => eprintln!("warning: {count} events were missed"),
                Err(error) => return Err(error.into()),
            },
        }
    }
    println!("hub: stopping");
    gateway.shutdown(GRACE).await;
    hub.shutdown(GRACE).await;
    Ok(())
}

fn tell(event: HubEvent, door: SocketAddr) {
    match event {
        HubEvent::Opened { agent_id, tunnel_id, peer } => {
            let from = peer.map_or_else(String::new, |peer| format!(" from {peer}"));
            println!("hub: {agent_id} has connected{from}, tunnel {tunnel_id}");
        }
        HubEvent::Ready { agent_id, .. } => {
            println!("hub: {agent_id} can be called:");
            for what in ["list", "fluentd.Fluentd/Start", "fluentd.Fluentd/Restart", "fluentd.Fluentd/Stop"] {
                println!("  grpcurl -plaintext -H 'dialback-agent: {agent_id}' {door} {what}");
            }
        }
        HubEvent::Closed { agent_id, tunnel_id, why } => {
            println!("hub: {agent_id} is gone, tunnel {tunnel_id}: {why}");
        }
        HubEvent::Rejected { agent_id, reason, .. } => println!("hub: {agent_id} was turned away: {reason}"),
        HubEvent::Draining { agent_id, tunnel_id } => {
            println!("hub: {agent_id} takes no new calls through tunnel {tunnel_id}");
        }
        other => println!("hub: {other:?}"),
    }
}
