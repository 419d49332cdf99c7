//! A general tunnel in wide use: rathole, which forwards a TCP port as it is; encrypted by its `noise` transport.
//!
//! chisel and frp come first in most lists; the Go module proxy does not offer them everywhere, and crates.io is there
//! wherever this benchmark is built. rathole sets TCP_NODELAY between its two ends, as it is told here, but not where it is
//! dialled and where it dials: that is where its small calls wait.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::openssh::free_port;
use super::{Parts, Start};
use crate::common::Failure;
use crate::network::Side;
use crate::process::Process;

pub(super) const NAME: &str = "rathole";
pub(super) const TOLD: &str = "the tunnel rathole 0.5.0 (crates.io) with its noise transport; our client dials its port (tonic's `Channel`), our server is the target; it leaves Nagle's algorithm on at both of these local sockets, where its small calls may wait";

/// How long it may take to build.
const BUILD: Duration = Duration::from_secs(1200);

pub(super) async fn start(start: &mut Start) -> Result<Parts, Failure> {
    let forwarded = format!("127.0.0.1:{}", free_port()?);
    let (server, target) = start.server().await?;
    let cloud = Cloud::start(start, [("echo".into(), forwarded.clone())]).await?;
    let way = start.to(&cloud.address).await?;
    let caller = start.own(Side::Cloud, &["client", &forwarded])?;
    start.dials_now();
    let laptop = cloud.laptop(start, way, "client.toml", [("echo".into(), target)])?;
    Ok(Parts { caller, others: vec![server, cloud.process, laptop] })
}

/// Its end in the cloud.
pub(super) struct Cloud {
    program: PathBuf,
    pub(super) process: Process,
    public_key: String,
    pub(super) address: String,
}

impl Cloud {
    /// With services of these names that listen at these addresses.
    pub(super) async fn start(
        start: &Start,
        services: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Failure> {
        let program = build().await?;
        let (private, public_key) = keys(&program).await?;
        let address = format!("{}:{}", start.network.address(Side::Cloud), free_port()?);
        let text = format!(
            "[server]\nbind_addr = \"{address}\"\n[server.transport]\ntype = \"noise\"\n[server.transport.noise]\n\
             local_private_key = \"{private}\"\n{}",
            told("server", "bind_addr", services)
        );
        let file = start.dir.path().join("server.toml");
        fs::write(&file, text)?;
        let mut process = start.external(Side::Cloud, &program, &["--server".as_ref(), file.as_os_str()])?;
        process.says("Listening at").await?;
        Ok(Self { program, process, public_key, address })
    }

    /// Its end on a laptop, where services of these names are at these addresses. It dials `way`.
    pub(super) fn laptop(
        &self,
        start: &Start,
        way: SocketAddr,
        file: &str,
        services: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Process, Failure> {
        let text = format!(
            "[client]\nremote_addr = \"{way}\"\n[client.transport]\ntype = \"noise\"\n[client.transport.noise]\n\
             remote_public_key = \"{}\"\n{}",
            self.public_key,
            told("client", "local_addr", services)
        );
        let file = start.dir.path().join(file);
        fs::write(&file, text)?;
        start.external(Side::Laptop, &self.program, &["--client".as_ref(), file.as_os_str()])
    }
}

/// Services, as one of its two ends is told of them.
fn told(end: &str, is_at: &str, services: impl IntoIterator<Item = (String, String)>) -> String {
    let told = services.into_iter().map(|(name, address)| {
        format!("[{end}.services.{name}]\ntoken = \"of-this-run\"\n{is_at} = \"{address}\"\nnodelay = true\n")
    });
    told.collect()
}

/// A private and a public key, in the form of its configuration.
async fn keys(program: &Path) -> Result<(String, String), Failure> {
    let output = Command::new(program).arg("--genkey").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = String::from_utf8(timeout(Duration::from_secs(10), output).await??.stdout)?;
    let after = |label: &str| {
        let mut lines = output.lines().skip_while(|line| !line.starts_with(label)).skip(1);
        lines.next().map(str::to_owned).ok_or_else(|| format!("its --genkey does not tell a {label}"))
    };
    Ok((after("Private Key")?, after("Public Key")?))
}

/// Installs it from crates.io, under `target`, unless it is there. Its own release profile is the one its users have.
async fn build() -> Result<PathBuf, Failure> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers-tools").join(NAME);
    let program = root.join("bin").join("rathole");
    if program.is_file() {
        return Ok(program);
    }
    eprintln!("builds rathole, which takes some minutes once");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["install", "rathole", "--version", "=0.5.0", "--no-default-features"]);
    cargo.args(["--features", "server,client,noise", "--root"]).arg(&root);
    cargo.env("CARGO_TARGET_DIR", root.join("build"));
    let built = timeout(BUILD, cargo.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let built = built.map_err(|_| format!("rathole is not built in {BUILD:?}"))??;
    if !built.status.success() {
        let said = String::from_utf8_lossy(&built.stderr);
        let why = said.lines().find(|line| line.starts_with("error")).unwrap_or("cargo install failed");
        return Err(format!("rathole does not build: {why}").into());
    }
    Ok(program)
}
