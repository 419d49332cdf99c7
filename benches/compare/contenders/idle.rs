//! The hub's side of a contender, and agents that come to it and are never called.
//!
//! The agents of all but rathole are ours, many in one process: a process for each would need more memory than most machines
//! have. What they are on the wire is what the contender's own would be.

use std::fs;
use std::time::Duration;

use dialback::PrivateKey;
use tokio::time::{Instant, sleep};

use super::tool::Cloud;
use super::{Contender, Start, go, openssh, python};
use crate::common::Failure;
use crate::network::{Network, Side};
use crate::process::{Process, memory};
use crate::rigs::tls::Certificates;
use crate::roles::Way;

/// How long agents may take to be there.
const PATIENCE: Duration = Duration::from_secs(180);

/// From when the agents are there until the memory is read: what their logins leave to do is done then.
const REST: Duration = Duration::from_secs(1);

pub(crate) struct Idle {
    /// What an agent costs is measured of this process and those that it starts.
    measured: u32,
    agents: Agents,
    /// All else that has to run.
    _others: Vec<Process>,
    start: Start,
}

enum Agents {
    /// Of ours.
    Ours(Process),
    /// Of rathole, which has a client for some services each time that there are to be more.
    Tool { cloud: Cloud, laptops: Vec<Process>, count: usize },
}

impl Contender {
    /// Starts the hub for so many agents. `Err` says why it cannot be had.
    pub(crate) async fn start_idle(self, agents: usize) -> Result<Idle, Failure> {
        let start = Start { dir: tempfile::tempdir()?, network: Network::Loopback, one_thread: false, dialled: None };
        for name in ["agent", "host"] {
            PrivateKey::load_or_generate(start.dir.path().join(name))?;
        }
        let dir = start.dir()?.to_owned();
        let ours = |by: &str, address: &str| start.own(Side::Laptop, &["idle-agents", &dir, by, address]);
        let (hub, agents, others) = match self {
            Self::DirectTcp | Self::DirectTls => {
                Certificates::of(start.dir.path(), &["127.0.0.1"]);
                let (by, tls) = if self == Self::DirectTls { ("tls", &["--tls", &dir][..]) } else { ("tcp", &[][..]) };
                let mut server = start.own(Side::Laptop, &[&["server"], tls].concat())?;
                let address = server.line("listening ").await?;
                // Without a tunnel, who calls is who dials.
                (None, ours(by, &address)?, vec![server])
            }
            Self::Dialback(way) => {
                Certificates::of(start.dir.path(), &["127.0.0.1"]);
                let mut hub = start.own(Side::Cloud, &["fleet-hub", &dir, &agents.to_string(), "--way", way.name()])?;
                let address = hub.line("listening ").await?;
                (Some(hub), ours(way.name(), &address)?, Vec::new())
            }
            Self::OpenSsh => {
                let (hub, address) = openssh::sshd(&start).await?;
                (Some(hub), ours("sshd", &address)?, Vec::new())
            }
            Self::GoSsh => {
                let hub = go::ssh_hub(&start).await?;
                let arguments = ["idle-agents", &dir, "ssh", &hub.address, "--host-key", &hub.host_key];
                (Some(hub.process), start.own(Side::Laptop, &arguments)?, Vec::new())
            }
            Self::GoGrpctunnel | Self::PythonGrpctunnel => {
                let hub = if self == Self::GoGrpctunnel { go::grpctunnel_hub().await } else { python::hub().await };
                let (hub, address) = hub?;
                (Some(hub), ours(Way::Grpctunnel.name(), &address)?, Vec::new())
            }
            Self::Tool => {
                // A port for each, where nobody dials.
                let services = (0..agents).map(|number| (service(number), "127.0.0.1:0".into()));
                let cloud = Cloud::start(&start, services).await?;
                let measured = cloud.process.id().ok_or("it has ended")?;
                let agents = Agents::Tool { cloud, laptops: Vec::new(), count: 0 };
                return Ok(Idle { measured, agents, _others: Vec::new(), start });
            }
        };
        let measured = hub.as_ref().unwrap_or(&agents).id().ok_or("it has ended")?;
        Ok(Idle { measured, agents: Agents::Ours(agents), _others: hub.into_iter().chain(others).collect(), start })
    }
}

fn service(number: usize) -> String {
    format!("idle-{number}")
}

impl Idle {
    /// Bytes of the hub's side in memory once so many agents are there.
    pub(crate) async fn memory(&mut self, agents: usize) -> Result<f64, Failure> {
        match &mut self.agents {
            Agents::Ours(process) => {
                process.tell(&format!("connect {agents}")).await?;
                let there = process.answer(PATIENCE).await;
                there.map_err(|why| format!("{agents} agents are not there: {why}"))?;
            }
            Agents::Tool { cloud, laptops, count } => {
                let services = (*count..agents).map(|number| (service(number), "127.0.0.1:1".into()));
                let address = cloud.address.parse()?;
                laptops.push(cloud.laptop(&self.start, address, &format!("client-{count}.toml"), services)?);
                *count = agents;
                settled(address.port(), agents).await?;
            }
        }
        sleep(REST).await;
        Ok(memory(&[self.measured]))
    }
}

/// Waits until a port has so many connections, and no more come: each service has some in reserve.
async fn settled(port: u16, least: usize) -> Result<(), Failure> {
    let (started, mut before) = (Instant::now(), 0);
    loop {
        sleep(REST).await;
        let now = connections(port)?;
        if now >= least && now == before {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("{now} of at least {least} connections are there after {PATIENCE:?}").into());
        }
        before = now;
    }
}

/// How many are established at a local port.
fn connections(port: u16) -> Result<usize, Failure> {
    let (end, established) = (format!(":{port:04X}"), "01");
    let is_one = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&end)) && words.nth(1) == Some(established)
    };
    Ok(fs::read_to_string("/proc/net/tcp")?.lines().filter(is_one).count())
}
