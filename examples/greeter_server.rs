//! An ordinary gRPC server, which knows nothing of dialback: it listens on a local port. `dialback agent --forward` makes it
//! callable from the cloud, as it does for servers of any language.
//!
//! ```sh
//! cargo run --example greeter_server -- --listen 127.0.0.1:50051                # one terminal
//! cargo run --features cli -- call -plaintext -d '{"name": "Ada"}' 127.0.0.1:50051 dialback.greeter.v1.Greeter/SayHello
//! ```
//!
//! You will see the answer, and the README's five minutes with the command show the way through a hub. Server reflection and
//! health are there, too. Ctrl-C ends it.

#[path = "common/greeter.rs"]
mod greeter;
#[path = "common/program.rs"]
mod program;

use std::process::ExitCode;

use clap::Parser;
use greeter::{Failure, Machine};
use program::told_to_stop;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

/// What `proto/greeter.proto` says, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!("../proto/gen/dialback.greeter.v1.bin");

/// Serves greetings on a local port.
#[derive(Parser)]
struct Options {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    listen: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    program::run(serve(Options::parse())).await
}

async fn serve(options: Options) -> Result<(), Failure> {
    let stop = told_to_stop()?;
    let listener = TcpListener::bind(&options.listen).await?;
    println!("greeter: listening on {}", listener.local_addr()?);

    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let (_, health) = tonic_health::server::health_reporter();
    Server::builder()
        .add_service(Machine::service("the greeter"))
        .add_service(reflection)
        .add_service(health)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop)
        .await?;
    println!("greeter: stopping");
    Ok(())
}
