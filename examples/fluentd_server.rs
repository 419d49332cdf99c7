//! The server of the classic demo: a service manager behind a firewall, whose gRPC clients are on the other side of it. Its
//! other half is `fluentd_hub.rs`, which says how to call it with grpcurl.
//!
//! What you learn: an ordinary tonic server, served through a tunnel that it dials itself, and called through a gateway.
//! There is nothing special about it; that it serves reflection is for grpcurl's sake.
//!
//! ```sh
//! cargo run --example fluentd_hub --features gateway -- --listen 127.0.0.1:2222 --gateway 127.0.0.1:8080
//! cargo run --example fluentd_server --features gateway -- --hub 127.0.0.1:2222 --id fluentd-1    # another terminal
//! grpcurl -plaintext -H 'dialback-agent: fluentd-1' 127.0.0.1:8080 fluentd.Fluentd/Start            # a third one
//! ```
//!
//! You will see it connect, and start, stop and restart a program when it is told to. The program is `sleep 3600`; for a
//! real one, as the last argument: `--command fluentd -c fluent.conf`. It is asked to end by SIGTERM, and killed when it
//! does not. Ctrl-C ends this program, and the other with it.
//!
//! The keys are those of `cloud.rs` and `laptop.rs`: `keys/README.md` says what to copy between two machines.
//! `RUST_LOG=dialback=info` shows more.

#[path = "common/hub_key.rs"]
mod hub_key;
#[path = "common/program.rs"]
mod program;

use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use dialback::{Agent, AgentId, ConnectError, PrivateKey, tune_server};
use pb::fluentd_server::{Fluentd, FluentdServer};
use pb::{RestartRequest, StartRequest, State, StopRequest};
use program::{Failure, told_to_stop};
use prost_types::FileDescriptorSet;
use protox::Compiler;
use protox::file::{File, FileResolver};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_reflection::server::Builder as Reflection;

/// Generated from `proto/fluentd.proto`.
#[allow(unreachable_pub, missing_docs, clippy::use_self)]
mod pb {
    include!("../proto/gen/fluentd.rs");
}

/// How long calls in flight may take to finish when the program ends.
const GRACE: Duration = Duration::from_secs(5);

/// Dials the hub over SSH and lets its clients start, stop and restart a program.
#[derive(Parser)]
struct Options {
    /// Where the hub listens.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:2222")]
    hub: String,
    /// The name that clients call this server by.
    #[arg(long, value_name = "NAME", default_value = "fluentd-1")]
    id: AgentId,
    /// Where this machine's demo key is kept, and where the hub's public key is.
    #[arg(long, value_name = "DIRECTORY", default_value = "keys")]
    keys: PathBuf,
    /// How many seconds the program has to end before it is killed.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    patience: u64,
    /// The program, with its arguments; give it last.
    #[arg(long, value_names = ["PROGRAM", "ARGUMENT"], num_args = 1.., allow_hyphen_values = true, default_values = ["sleep", "3600"])]
    command: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    program::run(server(Options::parse())).await
}

async fn server(options: Options) -> Result<(), Failure> {
    let stop = told_to_stop()?;
    tokio::pin!(stop);

    // It dials out; the hub may not be there yet.
    let agent = tokio::select! {
        connected = connect(&options) => connected?,
        () = &mut stop => return Ok(()),
    };

    // It serves, and describes what it serves.
    let managed = Arc::new(Mutex::new(Managed::new(options.command, Duration::from_secs(options.patience))));
    let described = || Ok::<_, Failure>(Reflection::configure().register_file_descriptor_set(descriptors()?));
    let service = tune_server(Server::builder())
        .add_service(FluentdServer::new(Manager(managed.clone())))
        .add_service(described()?.build_v1()?)
        .add_service(described()?.build_v1alpha()?); // for clients that do not know v1 yet
    let server = tokio::spawn(service.serve_with_incoming_shutdown(agent.incoming(), std::future::pending()));

    // The tunnel comes and goes until this program is told to stop.
    let mut status = agent.status();
    status.mark_changed();
    loop {
        tokio::select! {
            () = &mut stop => break,
            changed = status.changed() => {
                changed?;
                println!("server: {}", *status.borrow_and_update());
            }
        }
    }
    println!("server: stopping");
    agent.shutdown(GRACE).await;
    server.await??;
    managed.lock().await.end().await?;
    Ok(())
}

/// Who the server is, how it recognises the hub, and the first tunnel; the agent keeps one standing from then on.
async fn connect(options: &Options) -> Result<Agent, Failure> {
    std::fs::create_dir_all(&options.keys)?;
    let key = PrivateKey::load_or_generate(options.keys.join(options.id.as_str()))?;
    let public_key = key.public_key();
    println!("server: {}, key {}", options.id, public_key.fingerprint());
    let host_keys = hub_key::public_key_in(&options.keys.join("hub_key.pub"), "server").await?;

    println!("server: dialling {}", options.hub);
    let agent = Agent::builder(options.id.as_str(), key).host_keys(host_keys);
    let connected = agent.connect_when_available(options.hub.as_str()).await;
    if let Err(ConnectError::Auth { .. }) = connected {
        eprintln!("hint: the hub lets this server in when {}.pub among its keys says:\n  {public_key}", options.id);
    }
    Ok(connected?)
}

/// The gRPC service. Orders are carried out one after another: the lock is held while a program is being stopped.
struct Manager(Arc<Mutex<Managed>>);

#[tonic::async_trait]
impl Fluentd for Manager {
    async fn start(&self, _: Request<StartRequest>) -> Result<Response<State>, Status> {
        let mut managed = self.0.lock().await;
        if let Some(id) = managed.process_id()? {
            return Err(Status::failed_precondition(format!("it is running already, as process {id}")));
        }
        Ok(Response::new(managed.start()?))
    }

    async fn stop(&self, _: Request<StopRequest>) -> Result<Response<State>, Status> {
        let mut managed = self.0.lock().await;
        if managed.process_id()?.is_none() {
            return Err(Status::failed_precondition(match managed.ended {
                Some(how) => format!("it is not running: it ended by itself, with {how}"),
                None => "it is not running".into(),
            }));
        }
        managed.end().await?;
        Ok(Response::new(managed.state()?))
    }

    async fn restart(&self, _: Request<RestartRequest>) -> Result<Response<State>, Status> {
        let mut managed = self.0.lock().await;
        managed.end().await?;
        Ok(Response::new(managed.start()?))
    }
}

/// The program that is started and stopped. It is killed when this is dropped.
struct Managed {
    command: Vec<String>,
    patience: Duration,
    child: Option<Child>,
    /// How it ended the last time, if nobody had told it to.
    ended: Option<ExitStatus>,
    starts: u32,
}

impl Managed {
    fn new(command: Vec<String>, patience: Duration) -> Self {
        Self { command, patience, child: None, ended: None, starts: 0 }
    }

    /// Of the program, if it runs at this moment.
    fn process_id(&mut self) -> std::io::Result<Option<u32>> {
        if let Some(child) = &mut self.child
            && let Some(how) = child.try_wait()?
        {
            println!("server: the program has ended, with {how}");
            (self.child, self.ended) = (None, Some(how));
        }
        Ok(self.child.as_ref().and_then(Child::id))
    }

    fn state(&mut self) -> std::io::Result<State> {
        let id = self.process_id()?;
        Ok(State { running: id.is_some(), process_id: id.unwrap_or_default(), starts: self.starts })
    }

    fn start(&mut self) -> Result<State, Status> {
        let [program, arguments @ ..] = &*self.command else { return Err(Status::internal("there is no command")) };
        let mut command = Command::new(program);
        let started = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).spawn();
        let child = started.map_err(|error| Status::failed_precondition(format!("cannot start {program}: {error}")))?;
        println!("server: started {} as process {}", self.command.join(" "), child.id().unwrap_or_default());
        (self.child, self.ended) = (Some(child), None);
        self.starts += 1;
        Ok(self.state()?)
    }

    /// Ends the program, if it runs: politely at first. When the caller gives up half-way, it is still there to be ended.
    async fn end(&mut self) -> std::io::Result<()> {
        let Some(id) = self.process_id()? else { return Ok(()) };
        let Some(child) = &mut self.child else { return Ok(()) };
        // No other process can have this id before the child has been waited for.
        let asked = Command::new("sh").args(["-c", "kill -TERM $0", &id.to_string()]).status().await;
        let asked = asked.is_ok_and(|status| status.success());
        match tokio::time::timeout(if asked { self.patience } else { Duration::ZERO }, child.wait()).await {
            Ok(how) => println!("server: process {id} has ended, with {}", how?),
            Err(_) => {
                child.kill().await?;
                println!("server: process {id} had to be killed");
            }
        }
        (self.child, self.ended) = (None, None);
        Ok(())
    }
}

/// What reflection says: the text that the code was generated from, compiled.
fn descriptors() -> Result<FileDescriptorSet, Failure> {
    struct Here;
    impl FileResolver for Here {
        fn open_file(&self, name: &str) -> Result<File, protox::Error> {
            File::from_source(name, include_str!("../proto/fluentd.proto"))
        }
    }
    Ok(Compiler::with_file_resolver(Here).open_file("fluentd.proto")?.file_descriptor_set())
}
