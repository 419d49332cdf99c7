//! What a tunnel costs: the same gRPC work over direct TCP and over the tunnel, in turn, in one run.
//!
//! ```sh
//! cargo bench --bench tunnel                        # all of it, some minutes
//! cargo bench --bench tunnel -- --quick             # within a minute
//! cargo bench --bench tunnel -- --only unary        # cases whose name contains `unary`
//! cargo bench --bench tunnel -- --json rows.json
//! cargo bench --bench tunnel --features gateway,websocket,grpctunnel     # with the rows of these
//! ```
//!
//! Client and server are the same code on every path, tonic with this crate's HTTP/2 settings:
//!
//! | path | the client's connection |
//! |---|---|
//! | `direct-tcp` | tonic's `Channel` over TCP to a port on which the agent's process listens |
//! | `tunnel` | `hub.channel(…)` |
//! | `tunnel-dialled` | tonic's `Channel` over `tunnel.connector()`, as a channel of its own |
//! | `gateway` | tonic's `Channel` over TCP to a gateway in the hub's process |
//! | `CONNECT` | `hub.channel(…)`, to an agent that came by SSH through an HTTP proxy |
//! | `ws`, `wss` | `hub.channel(…)`, to an agent that came by WebSocket, without TLS and with |
//! | `ssh -R` | `hub.channel(…)`, to the server on the agent's port, which a stock OpenSSH client forwards |
//! | `grpctunnel` | `hub.channel(…)`, to an agent that came by grpctunnel |
//! | `grpctunnel-fwd` | a forward tunnel of grpctunnel to the agent's port |
//! | `grpctunnel Go` | grpc-go on the Go library's reverse tunnel, at both ends; its work is `tests/peers/go/bench` |
//!
//! The last seven are in `processes` alone.
//!
//! There are two settings. `processes`: hub and agent are two processes on tokio's default runtime, as users run them.
//! `current-thread`: everything in one process on one thread, so that nothing is hidden by a second core.
//!
//! Every case runs in short rounds, each path once in each round. The values are medians over the rounds, a ratio is
//! one median over the other, and the spread is what the rounds' lowest and highest value are apart.

mod agent;
mod cases;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../examples/common/connect_proxy.rs"]
mod connect_proxy;
#[cfg(feature = "grpctunnel")]
mod go;
mod paths;
mod scale;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use common::Failure;
use common::report::Report;
use paths::Path;

/// Compares gRPC over the tunnel with gRPC over direct TCP.
#[derive(Parser)]
struct Args {
    /// Fewer and shorter rounds: less than a minute.
    #[arg(long)]
    quick: bool,
    /// Only the cases whose name contains this.
    #[arg(long, value_name = "CASE", default_value = "")]
    only: String,
    /// Only this path, by its name in the table: for a profiler.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Writes the results to a file as a JSON array of rows.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Cargo passes this to every benchmark; it means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What the benchmark starts itself as.
#[derive(Subcommand)]
enum Part {
    /// The agent's process.
    #[command(hide = true)]
    Agent {
        /// Where its key goes.
        key: PathBuf,
    },
    /// A hub's process, new, that many agents connect to.
    #[command(hide = true)]
    Scale {
        agents: usize,
        /// Calls to random ones of them, at the end.
        calls: usize,
    },
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let threads = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let one_thread = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match args.part {
        Some(Part::Agent { key }) => return threads()?.block_on(agent::run(&key)),
        Some(Part::Scale { agents, calls }) => return threads()?.block_on(scale::run(agents, calls)),
        None => {}
    }

    let mut report = Report::new(Path::DirectTcp.name());
    let plan = cases::Plan { quick: args.quick, only: args.only, path: args.path };
    let mut goals = paths::goals();
    goals.retain(|goal| plan.wants(&goal.case) && plan.path.is_none());
    threads()?.block_on(cases::in_two_processes(&plan, &mut report))?;
    scale::measure(&plan, &mut report)?;
    one_thread()?.block_on(cases::on_one_thread(&plan, &mut report))?;

    println!("{}", report.table());
    println!("{}", report.goals(&goals));
    if let Some(path) = args.json {
        std::fs::write(&path, report.json()?).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}
