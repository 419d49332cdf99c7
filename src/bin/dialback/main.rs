//! The `dialback` command: a hub, an agent and a gRPC client, without writing Rust.
//!
//! This program reads arguments and files, and prints; what a hub and an agent do is in the library.

mod failure;
mod format;

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
enum Command {}

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
    match cli.command {}
}
