//! The Python port of grpctunnel, in a virtual environment under `target`.

use tokio::process::Command;

use super::{Parts, Start};
use crate::common::Failure;
use crate::process::{Process, external};
use crate::rigs::grpctunnel::python;
use crate::rigs::peers::missing;

/// They end by themselves after so many seconds.
const LIFE: &str = "7200";

/// Its hub, which takes every tunnel, and where it listens.
pub(super) async fn hub() -> Result<(Process, String), Failure> {
    let mut hub = Process::start(peer().await?.args(["bench-hub", "--timeout", LIFE]))?;
    let address = hub.line("listening ").await?;
    Ok((hub, address))
}

pub(super) async fn start(start: &mut Start) -> Result<Parts, Failure> {
    let (caller, address) = hub().await?;
    let address = start.to(&address).await?.to_string();
    let mut agent = peer().await?;
    start.dials_now();
    let agent = Process::start(agent.args(["bench-agent", "--timeout", LIFE, "--server", &address]))?;
    Ok(Parts { caller, others: vec![agent] })
}

/// Its program, which is killed if this one is.
async fn peer() -> Result<Command, Failure> {
    let python = python("peer.py").await.ok_or_else(missing)?;
    let python = python.as_std();
    let mut command = external(python.get_program());
    command.args(python.get_args());
    command.envs(python.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Ok(command)
}
