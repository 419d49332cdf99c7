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

pub(super) async fn ssh(start: &mut Start) -> Result<Parts, Failure> {
    let (hub, laptop) = (build("hub").await?, build("laptop").await?);
    let key = start.dir.path().join("agent");
    let public = PrivateKey::load_or_generate(&key)?.public_key().to_openssh();
    let mut hub = Process::start(external(hub).args([
        "-bench",
        "-mode=streamlocal",
        "-authorized-key",
        &public,
        "-timeout",
        &format!("{LIFE}s"),
    ]))?;
    let host_key = hub.line("host-key ").await?;
    let address = hub.line("listening ").await?;
    let address = start.to(&address).await?.to_string();
    start.dials_now();
    let mut command = external(laptop);
    let laptop = command.args(["-bench", "-hub", &address, "-host-key", &host_key, "-key"]).arg(key);
    Ok(Parts { others: vec![Process::start(laptop)?], caller: hub })
}

pub(super) async fn grpctunnel(start: &mut Start) -> Result<Parts, Failure> {
    let program = build("grpctunnel").await?;
    let mut hub = Process::start(external(&program).args(["bench-hub", "-timeout", LIFE]))?;
    let address = hub.line("listening ").await?;
    let address = start.to(&address).await?.to_string();
    start.dials_now();
    let agent = Process::start(external(program).args(["bench-agent", "-timeout", LIFE, "-server", &address]))?;
    Ok(Parts { caller: hub, others: vec![agent] })
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
