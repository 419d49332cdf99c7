//! Programs of the Go world: grpc-go through x/crypto/ssh, as in the article, and through the library grpctunnel.

use std::path::{Path, PathBuf};

use dialback::PrivateKey;
use tokio::process::Command;
use tokio::time::timeout;

use super::{Parts, Start};
use crate::common::Failure;
use crate::process::{Process, external};

/// How long the programs may take to build.
const BUILD: std::time::Duration = std::time::Duration::from_secs(300);

/// They end by themselves after so many seconds.
const LIFE: &str = "7200";

/// Its hub, which lets every agent in that has the key `agent`, and calls the first.
pub(super) struct SshHub {
    pub(super) process: Process,
    pub(super) host_key: String,
    pub(super) address: String,
}

pub(super) async fn ssh_hub(start: &Start) -> Result<SshHub, Failure> {
    let public = PrivateKey::load_or_generate(start.dir.path().join("agent"))?.public_key().to_openssh();
    let mut process = Process::start(external(build("hub").await?).args([
        "-bench",
        "-mode=streamlocal",
        "-authorized-key",
        &public,
        "-timeout",
        &format!("{LIFE}s"),
    ]))?;
    let host_key = process.line("host-key ").await?;
    let address = process.line("listening ").await?;
    Ok(SshHub { process, host_key, address })
}

pub(super) async fn ssh(start: &mut Start) -> Result<Parts, Failure> {
    let laptop = build("laptop").await?;
    let SshHub { process: caller, host_key, address } = ssh_hub(start).await?;
    let address = start.to(&address).await?.to_string();
    start.dials_now();
    let mut command = external(laptop);
    command.args(["-bench", "-hub", &address, "-host-key", &host_key, "-key"]).arg(start.dir.path().join("agent"));
    Ok(Parts { others: vec![Process::start(&mut command)?], caller })
}

/// Its hub, which takes every tunnel, and where it listens.
pub(super) async fn grpctunnel_hub() -> Result<(Process, String), Failure> {
    let mut hub = Process::start(external(build("grpctunnel").await?).args(["bench-hub", "-timeout", LIFE]))?;
    let address = hub.line("listening ").await?;
    Ok((hub, address))
}

pub(super) async fn grpctunnel(start: &mut Start) -> Result<Parts, Failure> {
    let (caller, address) = grpctunnel_hub().await?;
    let program = build("grpctunnel").await?;
    let address = start.to(&address).await?.to_string();
    start.dials_now();
    let agent = Process::start(external(program).args(["bench-agent", "-timeout", LIFE, "-server", &address]))?;
    Ok(Parts { caller, others: vec![agent] })
}

/// A program of `tests/peers/go`.
async fn build(name: &str) -> Result<PathBuf, Failure> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/go");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers-bench").join(name);
    let mut go = Command::new("go");
    go.args(["build", "-buildvcs=false", "-o"]).arg(&program).arg(format!("./{name}")).current_dir(&source);
    let built = timeout(BUILD, go.kill_on_drop(true).output()).await.map_err(|_| format!("not built in {BUILD:?}"))?;
    let built = built.map_err(|error| format!("the Go toolchain cannot be run: {error}"))?;
    if !built.status.success() {
        return Err(String::from_utf8_lossy(&built.stderr).trim().to_owned().into());
    }
    Ok(program)
}
