//! The cloud: accepts laptops over SSH, and calls each one that comes. Its other half is `laptop.rs`.
//!
//! ```sh
//! cargo run --example cloud -- --listen 127.0.0.1:2222                     # one terminal
//! cargo run --example laptop -- --hub 127.0.0.1:2222 --id laptop-1         # another one, before or after
//! ```
//!
//! You will see each laptop come, what it answers in three kinds of calls, and when and why it goes. Stop the laptop
//! and start it again: the cloud calls it again. Ctrl-C ends either.
//!
//! The cloud's key is made on the first run, `keys/hub_key`. A laptop is let in as NAME if its public key is in
//! `keys/NAME.pub`, which is looked at whenever one knocks; on one machine it is there by itself, and
//! `keys/README.md` says what to copy between two. `RUST_LOG=dialback=info` shows who was turned away, and why.

#[path = "common/greeter.rs"]
mod greeter;
#[path = "common/program.rs"]
mod program;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dialback::{AgentId, AuthorizedKeys, EventsError, Hub, HubEvent, PrivateKey, tune_server};
use greeter::{Failure, Machine, converse};
use program::told_to_stop;
use tonic::transport::Server;

/// How long calls in flight may take to finish when the program ends.
const GRACE: Duration = Duration::from_secs(5);

/// Accepts laptops over SSH, and calls each one that comes.
#[derive(Parser)]
struct Options {
    /// Where to listen for laptops.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:2222")]
    listen: String,
    /// Where this machine's demo key is kept, and where the laptops' public keys are.
    #[arg(long, value_name = "DIRECTORY", default_value = "keys")]
    keys: PathBuf,
    /// An OpenSSH authorized_keys file that says which keys may be which laptops, in place of the public keys in the
    /// directory; each line starts with principals="NAME".
    #[arg(long, value_name = "FILE")]
    authorized_keys: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    program::run(cloud(Options::parse())).await
}

async fn cloud(options: Options) -> Result<(), Failure> {
    let stop = told_to_stop()?;
    tokio::pin!(stop);

    // Who the cloud is, and who may be which laptop.
    std::fs::create_dir_all(&options.keys)?;
    let host_key = PrivateKey::load_or_generate(options.keys.join("hub_key"))?;
    let fingerprint = host_key.public_key().fingerprint();
    let laptops = options.authorized_keys.unwrap_or_else(|| options.keys.join("%u.pub"));
    let authorizer = AuthorizedKeys::open(&laptops)?;
    for problem in authorizer.problems() {
        eprintln!("warning: {problem}");
    }

    let hub = Hub::builder(host_key).authorizer(authorizer).bind(&options.listen).await?;
    let mut events = hub.events();
    println!("cloud: listening on {}, host key {fingerprint}", hub.local_addr());
    println!(
        "cloud: laptops are let in by {}; another machine's laptop needs {}",
        laptops.display(),
        options.keys.join("hub_key.pub").display()
    );

    // What laptops can call.
    let service = tune_server(Server::builder()).add_service(Machine::service("the cloud"));
    let server = tokio::spawn(service.serve_with_incoming_shutdown(hub.incoming(), std::future::pending()));

    // Laptops come and go until this program is told to stop.
    loop {
        tokio::select! {
            () = &mut stop => break,
            event = events.next() => match event {
                Ok(event) => react(&hub, event),
                Err(EventsError::Missed(count)) => eprintln!("warning: {count} events were missed"),
                Err(error) => return Err(error.into()),
            },
        }
    }
    println!("cloud: stopping");
    hub.shutdown(GRACE).await;
    server.await??;
    Ok(())
}

fn react(hub: &Hub, event: HubEvent) {
    match event {
        HubEvent::Opened { agent_id, tunnel_id, peer } => {
            let from = peer.map_or_else(String::new, |peer| format!(" from {peer}"));
            println!("cloud: {agent_id} has connected{from}, tunnel {tunnel_id}");
        }
        HubEvent::Ready { agent_id, tunnel_id } => {
            println!("cloud: calling {agent_id} through tunnel {tunnel_id}");
            tokio::spawn(call(hub.clone(), agent_id));
        }
        HubEvent::Closed { agent_id, tunnel_id, why } => {
            println!("cloud: {agent_id} is gone, tunnel {tunnel_id}: {why}");
        }
        HubEvent::Rejected { agent_id, reason, .. } => println!("cloud: {agent_id} was turned away: {reason}"),
        HubEvent::Draining { agent_id, tunnel_id } => {
            println!("cloud: {agent_id} takes no new calls through tunnel {tunnel_id}");
        }
        other => println!("cloud: {other:?}"),
    }
}

/// The conversation with one laptop. It may fail half-way, when the laptop leaves; the cloud goes on.
async fn call(hub: Hub, agent: AgentId) {
    let conversation = async { converse(hub.channel(agent.as_str())?).await };
    match conversation.await {
        Ok(()) => println!("cloud: {agent} has answered every call"),
        Err(error) => println!("cloud: calling {agent} failed: {error}"),
    }
}
