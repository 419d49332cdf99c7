//! The client of the grpctunnel demo: opens a reverse tunnel, and hosts the `test.EchoService` that its server calls. Its other
//! half is `grpctunnel_server.rs`; the programs of the same roles on the Go library and its Python port do as well.
//!
//! What you learn: serving tonic's `Routes` to who took the tunnel, with reconnects, and a polite end.
//!
//! ```sh
//! cargo run --example grpctunnel_server --features grpctunnel -- --listen 127.0.0.1:50051
//! cargo run --example grpctunnel_client --features grpctunnel -- --server 127.0.0.1:50051      # another terminal
//! ```
//!
//! You will see the tunnel come, and each call. Stop the server, start it again, and the tunnel comes back. Ctrl-C ends
//! either.

#[path = "common/program.rs"]
mod program;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dialback::grpctunnel::TunnelBuilder;
use dialback::tune_endpoint;
use program::{Failure, told_to_stop};
use tonic::service::Routes;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

/// What `proto/test_echo.proto` says.
#[allow(clippy::use_self, dead_code, unreachable_pub)]
mod pb {
    include!("../proto/gen/test.rs");
}

use pb::echo_service_server::{EchoService, EchoServiceServer};
use pb::{EchoRequest, EchoResponse};

/// How long calls in flight may take to finish when the program ends.
const GRACE: Duration = Duration::from_secs(5);

/// Opens a tunnel, and answers those who call by it.
#[derive(Parser)]
struct Options {
    /// The server of tunnels.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    server: String,
}

struct Echo;

#[tonic::async_trait]
impl EchoService for Echo {
    async fn echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        let EchoRequest { message } = request.into_inner();
        println!("-> {message}");
        Ok(Response::new(EchoResponse { message: format!("Echo: {message}") }))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    program::run(client(Options::parse())).await
}

async fn client(options: Options) -> Result<(), Failure> {
    let stop = told_to_stop()?;
    let endpoint = tune_endpoint(Endpoint::try_from(format!("http://{}", options.server))?);
    let services = Routes::new(EchoServiceServer::new(Echo));
    let tunnel = TunnelBuilder::new("echo", endpoint.connect_lazy()).hub(options.server).reverse(services).await?;

    let mut status = tunnel.status();
    let told = async {
        loop {
            println!("{}", *status.borrow_and_update());
            if status.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = told => {}
        () = stop => {}
    }
    tunnel.shutdown(GRACE).await;
    Ok(())
}
