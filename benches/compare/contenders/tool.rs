//! A general tunnel in wide use: rathole, which forwards a TCP port as it is; encrypted by its `noise` transport.
//!
//! chisel and frp come first in most lists; the Go module proxy does not offer them everywhere, and crates.io is there
//! wherever this benchmark is built. rathole sets TCP_NODELAY between its two ends, as it is told here, but not where it is
//! dialled and where it dials: that is where its small calls wait.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::openssh::free_port;
use super::{Parts, Start};
use crate::common::Failure;
use crate::network::Side;

pub(super) const NAME: &str = "rathole";
pub(super) const TOLD: &str = "the tunnel rathole 0.5.0 (crates.io) with its noise transport; our client dials its port (tonic's `Channel`), our server is the target; it leaves Nagle's algorithm on at both of these local sockets, where its small calls may wait";

/// How long it may take to build.
const BUILD: Duration = Duration::from_secs(1200);

pub(super) async fn start(start: &mut Start) -> Result<Parts, Failure> {
    let program = build().await?;
    let (private, public) = keys(&program).await?;
    let [port, forwarded] = [free_port()?, free_port()?];
    let (server, target) = start.server().await?;
    let host = start.network.address(Side::Cloud);
    let [far, near] = ["server.toml", "client.toml"].map(|name| start.dir.path().join(name));
    let service = "[server.services.echo]\ntoken = \"of-this-run\"\n";
    let noise = "type = \"noise\"\n[server.transport.noise]\n";
    fs::write(
        &far,
        format!(
            "[server]\nbind_addr = \"{host}:{port}\"\n[server.transport]\n{noise}local_private_key = \"{private}\"\n\
             {service}bind_addr = \"127.0.0.1:{forwarded}\"\nnodelay = true\n"
        ),
    )?;
    let mut cloud = start.external(Side::Cloud, &program, &["--server".as_ref(), far.as_os_str()])?;
    cloud.says("Listening at").await?;
    let way = start.to(&format!("{host}:{port}")).await?;
    let (service, noise) = (service.replace("server", "client"), noise.replace("server", "client"));
    fs::write(
        &near,
        format!(
            "[client]\nremote_addr = \"{way}\"\n[client.transport]\n{noise}remote_public_key = \"{public}\"\n\
             {service}local_addr = \"{target}\"\nnodelay = true\n"
        ),
    )?;
    let caller = start.own(Side::Cloud, &["client", &format!("127.0.0.1:{forwarded}")])?;
    start.dials_now();
    let laptop = start.external(Side::Laptop, program, &["--client".as_ref(), near.as_os_str()])?;
    Ok(Parts { caller, others: vec![server, cloud, laptop] })
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
