//! The Python port of grpctunnel, in a virtual environment under `target`.

use super::{Parts, Start};
use crate::common::Failure;
use crate::process::Process;
use crate::rigs::grpctunnel::python;

/// They end by themselves after so many seconds.
const LIFE: &str = "7200";

pub(super) async fn start(start: &mut Start) -> Result<Parts, Failure> {
    let missing = "Python's libraries cannot be had";
    let mut hub = python("peer.py").await.ok_or(missing)?;
    let mut hub = Process::start(hub.args(["bench-hub", "--timeout", LIFE]))?;
    let address = hub.line("listening ").await?;
    let address = start.to(&address).await?.to_string();
    let mut agent = python("peer.py").await.ok_or(missing)?;
    start.dials_now();
    let agent = Process::start(agent.args(["bench-agent", "--timeout", LIFE, "--server", &address]))?;
    Ok(Parts { caller: hub, others: vec![agent] })
}
