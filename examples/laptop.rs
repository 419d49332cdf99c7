//! The laptop: dials the cloud over SSH and answers its calls, listening on nothing. Its other half is `cloud.rs`.
//!
//! ```sh
//! cargo run --example cloud -- --listen 127.0.0.1:2222                     # one terminal
//! cargo run --example laptop -- --hub 127.0.0.1:2222 --id laptop-1         # another one, before or after
//! ```
//!
//! You will see the laptop connect, call the cloud once through the same tunnel, and then whatever becomes of the
//! tunnel: stop the cloud and start it again, and the laptop comes back by itself. Ctrl-C ends either.
//!
//! The laptop's key is made on the first run, `keys/NAME`. The laptop believes no cloud but the one whose public key is
//! in `keys/hub_key.pub`, and waits for that file; on one machine the cloud writes it there, and `keys/README.md` says
//! what to copy between two. `RUST_LOG=dialback=info` shows more.

#[path = "common/greeter.rs"]
mod greeter;
#[path = "common/hub_key.rs"]
mod hub_key;
#[path = "common/program.rs"]
mod program;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dialback::{Agent, AgentId, ConnectError, HostKeys, PrivateKey, TunnelChannel, tune_server};
use greeter::pb::HelloRequest;
use greeter::pb::greeter_client::GreeterClient;
use greeter::{Failure, Machine};
use program::told_to_stop;
use tonic::transport::Server;

/// How long calls in flight may take to finish when the program ends.
const GRACE: Duration = Duration::from_secs(5);

/// Dials the cloud over SSH and answers its calls, listening on nothing.
#[derive(Parser)]
struct Options {
    /// Where the cloud listens.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:2222")]
    hub: String,
    /// The name that the cloud knows this laptop by.
    #[arg(long, value_name = "NAME", default_value = "laptop-1")]
    id: AgentId,
    /// Where this machine's demo key is kept, and where the cloud's public key is.
    #[arg(long, value_name = "DIRECTORY", default_value = "keys")]
    keys: PathBuf,
    /// An OpenSSH known_hosts file that says how to recognise the cloud, in place of its public key in the directory.
    #[arg(long, value_name = "FILE")]
    known_hosts: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    program::run(laptop(Options::parse())).await
}

async fn laptop(options: Options) -> Result<(), Failure> {
    let stop = told_to_stop()?;
    tokio::pin!(stop);

    // It dials out; the cloud may not be there yet.
    let agent = tokio::select! {
        connected = connect(&options) => connected?,
        () = &mut stop => return Ok(()),
    };

    // It serves.
    let service = tune_server(Server::builder()).add_service(Machine::service(options.id.as_str()));
    let server = tokio::spawn(service.serve_with_incoming_shutdown(agent.incoming(), std::future::pending()));

    // It greets back, through the same tunnel.
    tokio::spawn(greet(GreeterClient::new(agent.channel()), options.id.to_string()));

    // The tunnel comes and goes until this program is told to stop.
    let mut status = agent.status();
    status.mark_changed();
    loop {
        tokio::select! {
            () = &mut stop => break,
            changed = status.changed() => {
                changed?;
                println!("laptop: {}", *status.borrow_and_update());
            }
        }
    }
    println!("laptop: stopping");
    agent.shutdown(GRACE).await;
    server.await??;
    Ok(())
}

/// Who the laptop is, how it recognises the cloud, and the first tunnel; the agent keeps one standing from then on.
async fn connect(options: &Options) -> Result<Agent, Failure> {
    std::fs::create_dir_all(&options.keys)?;
    let key = PrivateKey::load_or_generate(options.keys.join(options.id.as_str()))?;
    let public_key = key.public_key();
    println!("laptop: {}, key {}", options.id, public_key.fingerprint());
    let host_keys = match &options.known_hosts {
        Some(file) => HostKeys::known_hosts(file)?,
        None => hub_key::public_key_in(&options.keys.join("hub_key.pub"), "laptop").await?,
    };

    println!("laptop: dialling {}", options.hub);
    let agent = Agent::builder(options.id.as_str(), key).host_keys(host_keys);
    let connected = agent.connect_when_available(options.hub.as_str()).await;
    if let Err(ConnectError::Auth { .. }) = connected {
        eprintln!("hint: the cloud lets this laptop in when {}.pub among its keys says:\n  {public_key}", options.id);
    }
    Ok(connected?)
}

async fn greet(mut cloud: GreeterClient<TunnelChannel>, name: String) {
    match cloud.say_hello(HelloRequest { name }).await {
        Ok(reply) => println!("  the cloud answers <- {}", reply.into_inner().message),
        Err(status) => println!("laptop: calling the cloud failed: {}", status.message()),
    }
}
