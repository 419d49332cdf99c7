//! The `dialback` command: a hub, an agent and a gRPC client, without writing Rust.
//!
//! This program reads arguments and files, and prints; what a hub and an agent do is in the library.

mod agent;
mod check;
mod config;
mod daemon;
mod failure;
mod file;
mod format;
mod grpc;
mod hub;
mod keygen;
mod shell;
mod tokens;
mod tunnel;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

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
    /// Show which agents are connected to a hub.
    Agents(grpc::AgentsArgs),
    /// Call a method.
    Call(grpc::CallArgs),
    /// List services, or the methods of one.
    List(grpc::ListArgs),
    /// Show services, methods, messages and enums as .proto source.
    Describe(grpc::DescribeArgs),
    /// Ask whether a server is ready to serve: exits with 0 only if it is.
    Health(grpc::HealthArgs),
    /// See step by step whether an agent would reach its hub, or a hub start, and what to do if not.
    Check(check::CheckArgs),
    /// Make a host key, or an agent's key or token, and print the line about it for the other side's file.
    Keygen(keygen::KeygenArgs),
    /// Print what a shell needs to complete this command's arguments.
    Completions(shell::CompletionsArgs),
    /// Print the manual page, or write one for each command.
    Man(shell::ManArgs),
}

fn main() -> ExitCode {
    let arguments = grpc::double_dashes(&Cli::command(), std::env::args_os());
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return Failure::from(error).report(),
    };
    wait_for(async {
        match run(cli).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => told(failure).await,
        }
    })
    .unwrap_or_else(Failure::report)
}

/// Says what has failed, which takes as long as a terminal is stopped, or until Ctrl-C.
async fn told(failure: Failure) -> ExitCode {
    let code = failure.code();
    tokio::select! {
        biased;
        Ok(()) = tokio::signal::ctrl_c() => code,
        _ = tokio::task::spawn_blocking(|| failure.report()) => code,
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Hub(args) => hub::run(args).await,
        Command::Agent(args) => agent::run(args).await,
        Command::Agents(args) => grpc::agents(args).await,
        Command::Call(args) => grpc::call(args).await,
        Command::List(args) => grpc::list(args).await,
        Command::Describe(args) => grpc::describe(args).await,
        Command::Health(args) => grpc::health(args).await,
        Command::Check(args) => check::run(args).await,
        Command::Keygen(args) => keygen::run(args),
        Command::Completions(args) => shell::completions(args, Cli::command()),
        Command::Man(args) => shell::man(args, Cli::command()),
    }
}

/// Runs a command to its end.
fn wait_for(command: impl Future<Output = ExitCode>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::because("no threads can be had", &error))?;
    let code = runtime.block_on(command);
    // Nothing that is left over may hold up the end.
    runtime.shutdown_background();
    Ok(code)
}
