//! The hub's side of a contender, and agents that come to it and are never called.
//!
//! The agents of all but rathole are ours, many in one process: a process for each would need more memory than most machines
//! have. What they are on the wire is what the contender's own would be.

use std::fs;
use std::net::SocketAddr;
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

/// How long agents may take to be there, or to be gone: this, and more for each. An sshd that starts a process for each
/// takes 20 ms on one processor.
const PATIENCE: Duration = Duration::from_secs(60);
const FOR_EACH: Duration = Duration::from_millis(50);

/// From when the agents are there until the memory is read: what their logins leave to do is done then.
const REST: Duration = Duration::from_secs(1);

/// rathole makes eight connections in reserve for each service, in bursts, and of many services' not all at once: so long
/// after its services are there, most are.
const REST_OF_TOOL: Duration = Duration::from_secs(20);

pub(crate) struct Idle {
    /// What an agent costs is measured of this process and those that it starts.
    measured: u32,
    /// Where agents connect.
    port: u16,
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
        let (hub, address, agents, others) = match self {
            Self::DirectTcp | Self::DirectTls => {
                Certificates::of(start.dir.path(), &["127.0.0.1"]);
                let (by, tls) = if self == Self::DirectTls { ("tls", &["--tls", &dir][..]) } else { ("tcp", &[][..]) };
                let mut server = start.own(Side::Laptop, &[&["server"], tls].concat())?;
                let address = server.line("listening ").await?;
                // Without a tunnel, who calls is who dials.
                let clients = ours(by, &address)?;
                (None, address, clients, vec![server])
            }
            Self::Dialback(way) => {
                Certificates::of(start.dir.path(), &["127.0.0.1"]);
                let mut hub = start.own(Side::Cloud, &["fleet-hub", &dir, &agents.to_string(), "--way", way.name()])?;
                let address = hub.line("listening ").await?;
                let agents = ours(way.name(), &address)?;
                (Some(hub), address, agents, Vec::new())
            }
            Self::OpenSsh => {
                let (hub, address) = openssh::sshd(&start).await?;
                let agents = ours("sshd", &address)?;
                (Some(hub), address, agents, Vec::new())
            }
            Self::GoSsh => {
                let hub = go::ssh_hub(&start).await?;
                let arguments = ["idle-agents", &dir, "ssh", &hub.address, "--host-key", &hub.host_key];
                let agents = start.own(Side::Laptop, &arguments)?;
                (Some(hub.process), hub.address, agents, Vec::new())
            }
            Self::GoGrpctunnel | Self::PythonGrpctunnel => {
                let hub = if self == Self::GoGrpctunnel { go::grpctunnel_hub().await } else { python::hub().await };
                let (hub, address) = hub?;
                let agents = ours(Way::Grpctunnel.name(), &address)?;
                (Some(hub), address, agents, Vec::new())
            }
            Self::Tool => {
                // A port for each, where nobody dials.
                let services = (0..agents).map(|number| (service(number), "127.0.0.1:0".into()));
                let cloud = Cloud::start(&start, services).await?;
                let (measured, port) = (cloud.process.id().ok_or("it has ended")?, port(&cloud.address)?);
                let agents = Agents::Tool { cloud, laptops: Vec::new(), count: 0 };
                return Ok(Idle { measured, port, agents, _others: Vec::new(), start });
            }
        };
        let (measured, port) = (hub.as_ref().unwrap_or(&agents).id().ok_or("it has ended")?, port(&address)?);
        let others = hub.into_iter().chain(others).collect();
        Ok(Idle { measured, port, agents: Agents::Ours(agents), _others: others, start })
    }
}

fn port(address: &str) -> Result<u16, Failure> {
    Ok(address.parse::<SocketAddr>()?.port())
}

fn service(number: usize) -> String {
    format!("idle-{number}")
}

impl Idle {
    /// Bytes of the hub's side in memory once so many agents are there.
    pub(crate) async fn memory(&mut self, agents: usize) -> Result<f64, Failure> {
        let patience = PATIENCE + FOR_EACH * u32::try_from(agents)?;
        match &mut self.agents {
            Agents::Ours(process) => {
                process.tell(&format!("connect {agents}")).await?;
                let there = process.answer(patience).await;
                there.map_err(|why| format!("{agents} agents are not there: {why}"))?;
            }
            Agents::Tool { cloud, laptops, count } => {
                let services = (*count..agents).map(|number| (service(number), "127.0.0.1:1".into()));
                let address = cloud.address.parse()?;
                laptops.push(cloud.laptop(&self.start, address, &format!("client-{count}.toml"), services)?);
                *count = agents;
                self.until(patience, |now| now >= agents).await?;
                sleep(REST_OF_TOOL).await;
            }
        }
        sleep(REST).await;
        let left = connections(self.port)?;
        if left < agents {
            return Err(format!("{left} connections are left of {agents} agents").into());
        }
        memory(self.measured)
    }

    /// Ends the agents, and waits until the hub's side is rid of them: the next contender is to have the machine for itself.
    pub(crate) async fn end(mut self) -> Result<(), Failure> {
        let agents = connections(self.port)?;
        match &mut self.agents {
            Agents::Ours(process) => process.kill().await?,
            Agents::Tool { laptops, .. } => {
                for laptop in laptops {
                    laptop.kill().await?;
                }
            }
        }
        self.until(PATIENCE + FOR_EACH * u32::try_from(agents)?, |now| now == 0).await
    }

    /// Waits for so many connections.
    async fn until(&self, patience: Duration, enough: impl Fn(usize) -> bool) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let now = connections(self.port)?;
            if enough(now) {
                return Ok(());
            }
            if started.elapsed() >= patience {
                return Err(format!("{now} connections are there after {patience:?}").into());
            }
            sleep(REST / 10).await;
        }
    }
}

/// How many are established at a local port.
fn connections(port: u16) -> Result<usize, Failure> {
    let (end, established) = (format!(":{port:04X}"), "01");
    let is_one = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&end)) && words.nth(1) == Some(established)
    };
    // gRPC's servers in C take those by IPv4 as IPv6.
    let both = fs::read_to_string("/proc/net/tcp")? + &fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    Ok(both.lines().filter(is_one).count())
}
