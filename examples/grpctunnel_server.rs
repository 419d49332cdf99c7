//! The server of the grpctunnel demo: takes reverse tunnels, and calls the `test.EchoService` that who opened them hosts. Its
//! other half is `grpctunnel_client.rs`; the programs of the same roles on the Go library and its Python port do as well.
//!
//! What you learn: tunnels as a service of an ordinary gRPC server, and calls to whoever has opened one.
//!
//! ```sh
//! cargo run --example grpctunnel_server --features grpctunnel -- --listen 127.0.0.1:50051
//! cargo run --example grpctunnel_client --features grpctunnel -- --server 127.0.0.1:50051      # another terminal
//! ```
//!
//! You will see each tunnel come, what it answers to three calls and to five at once, and go. Ctrl-C ends either.
//!
//! The demo asks nobody who they are: everybody is the agent `echo`. So it listens on a loopback address only; a real server
//! looks at a token or a client's certificate in `identify`.

#[path = "common/program.rs"]
mod program;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dialback::grpctunnel::TunnelService;
use dialback::{AgentId, AllowedKeys, EventsError, Grant, Hub, HubEvent, PrivateKey, TunnelChannel, tune_server};
use program::{Failure, told_to_stop};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// What `proto/test_echo.proto` says.
#[allow(clippy::use_self, dead_code, unreachable_pub)]
mod pb {
    include!("../proto/gen/test.rs");
}

use pb::EchoRequest;
use pb::echo_service_client::EchoServiceClient;

/// How long calls in flight may take to finish when the program ends.
const GRACE: Duration = Duration::from_secs(5);

/// Takes tunnels, and calls those who open them.
#[derive(Parser)]
struct Options {
    /// Where to listen: a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> ExitCode {
    program::run(server(Options::parse())).await
}

async fn server(options: Options) -> Result<(), Failure> {
    if !options.listen.ip().is_loopback() {
        return Err("the demo knows nobody, so it listens on a loopback address only".into());
    }
    let stop = told_to_stop()?;
    // The hub takes no agents by SSH here: it knows no key.
    let hub = Hub::builder(PrivateKey::generate()).authorizer(AllowedKeys::new()).bind("127.0.0.1:0").await?;
    let echo: AgentId = "echo".parse()?;
    let tunnels = TunnelService::builder().reverse(&hub).identify(move |_| Ok((echo.clone(), Grant::new()))).build();
    let listener = TcpListener::bind(options.listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = tune_server(Server::builder()).add_service(tunnels).serve_with_incoming(incoming);

    tokio::select! {
        served = serving => served?,
        () = follow(&hub) => {}
        () = stop => {}
    }
    hub.shutdown(GRACE).await;
    Ok(())
}

/// Calls each that comes.
async fn follow(hub: &Hub) {
    let mut events = hub.events();
    loop {
        match events.next().await {
            Ok(HubEvent::Ready { tunnel_id, .. }) => {
                println!("tunnel {tunnel_id} is here");
                let tunnel = hub.tunnels().into_iter().find(|tunnel| tunnel.id() == tunnel_id);
                let Some(channel) = tunnel.map(|tunnel| tunnel.channel()) else { continue };
                tokio::spawn(async move {
                    if let Err(status) = converse(channel).await {
                        println!("tunnel {tunnel_id}: {status}");
                    }
                });
            }
            Ok(HubEvent::Closed { tunnel_id, why, .. }) => println!("tunnel {tunnel_id} is gone: {why}"),
            Ok(_) | Err(EventsError::Missed(_)) => {}
            Err(_) => return,
        }
    }
}

/// Three calls, and then five at once.
async fn converse(channel: TunnelChannel) -> Result<(), tonic::Status> {
    for number in 1..=3 {
        call(channel.clone(), format!("call {number}")).await?;
    }
    let mut calls = tokio::task::JoinSet::new();
    for number in 1..=5 {
        calls.spawn(call(channel.clone(), format!("call at once {number}")));
    }
    calls.join_all().await.into_iter().collect()
}

async fn call(channel: TunnelChannel, message: String) -> Result<(), tonic::Status> {
    let answer = EchoServiceClient::new(channel).echo(EchoRequest { message }).await?;
    println!("  <- {}", answer.into_inner().message);
    Ok(())
}
