//! The `dialback` command: a hub, an agent and a gRPC client, without writing Rust.
//!
//! This program reads arguments and files, and prints; what a hub and an agent do is in the library.

mod agent;
mod config;
mod daemon;
mod failure;
mod hub;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::failure::Failure;

/// Call gRPC services on machines behind NAT, through one SSH connection that they dial out.
#[derive(Debug, Parser)]
#[command(name = "dialback", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a hub: agents dial in, and gRPC clients call them through its gateway
    #[command(after_help = hub::EXAMPLES)]
    Hub(hub::HubArgs),
    /// Put an agent beside a local gRPC server: it dials the hub, and passes calls on
    #[command(after_help = agent::EXAMPLES)]
    Agent(agent::AgentArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return Failure::from(error).report(),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::because("cannot start", &error))?;
    let done = runtime.block_on(async {
        match cli.command {
            Command::Hub(args) => hub::run(args).await,
            Command::Agent(args) => agent::run(args).await,
        }
    });
    // A thread that waits for a file or for stdin holds nothing up.
    runtime.shutdown_background();
    done
}
