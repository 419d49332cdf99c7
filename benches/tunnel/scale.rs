//! Many agents on one hub: logins per second, and what an idle one costs. The hub is a new process each time, so that
//! its memory is not what earlier work has left.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::agent::{self, AgentProcess};
use crate::cases::{PROCESSES, Plan};
use crate::common::report::Report;
use crate::common::service::pb::echo_client::EchoClient;
use crate::common::system::{open_files, resident};
use crate::common::work;
use crate::paths::Path;

const AGENTS: usize = 1000;

/// As many as a hub of a fleet may have, with calls to random ones.
const FLEET: usize = 5000;

/// Agents that connect before the hub's memory is first read: code and runtime are in memory from then on.
const WARM_UP: usize = 16;

/// File descriptors that are not an agent's.
const SPARE: usize = 64;

pub(crate) fn measure(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let names = ["logins", "idle-agents", "fleet"].map(|case| format!("{PROCESSES}/{case}"));
    if plan.wants(&names[0]) || plan.wants(&names[1]) {
        for _ in 0..if plan.quick { 1 } else { 7 } {
            let [took, memory, _] = hub_with(AGENTS, 0)?;
            report.add(&names[0], Path::Tunnel.name(), "rate", "logins/s", (AGENTS - WARM_UP) as f64 / took);
            report.add(&names[1], Path::Tunnel.name(), "hub memory", "KiB/agent", memory);
        }
    }
    if plan.wants(&names[2]) {
        for _ in 0..if plan.quick { 1 } else { 3 } {
            let [took, memory, p99] = hub_with(FLEET, 5000)?;
            report.add(&names[2], Path::Tunnel.name(), "all connected", "s", took);
            report.add(&names[2], Path::Tunnel.name(), "hub memory", "KiB/agent", memory);
            report.add(&names[2], Path::Tunnel.name(), "p99 to a random one", "µs", p99);
        }
    }
    Ok(())
}

/// Seconds until so many agents are connected, KiB of memory for each, and the 99th percentile of calls to random ones in
/// microseconds.
fn hub_with(agents: usize, calls: usize) -> Result<[f64; 3], Failure> {
    let most = open_files()?.saturating_sub(SPARE);
    if agents > most {
        return Err(
            format!("the limit on open files (`ulimit -n`) is too low for {agents} agents: it allows {most}").into()
        );
    }
    let hub = Command::new(std::env::current_exe()?)
        .args(["scale", &agents.to_string(), &calls.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output()?;
    let answer = String::from_utf8(hub.stdout)?;
    let figures: Vec<f64> = answer.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    figures.try_into().map_err(|_| "the hub's process has failed; its error is above".into())
}

/// The hub's process.
pub(crate) async fn run(agents: usize, calls: usize) -> Result<(), Failure> {
    let (mut process, hub) = AgentProcess::start(agents).await?;
    process.connect(WARM_UP).await?;
    settle().await;
    let before = resident()?;
    let took = process.connect(agents).await?;
    settle().await;
    let grown = resident()?.saturating_sub(before);
    let connected = agents - WARM_UP;
    if hub.tunnels().len() != agents + 1 {
        return Err(format!("{} tunnels instead of {}", hub.tunnels().len(), agents + 1).into());
    }
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let id = agent::idle_id(rand::random_range(0..agents));
        let mut client = EchoClient::new(hub.channel(&id)?);
        let begun = Instant::now();
        work::one_call(&mut client).await?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let p99 = times.get(times.len() * 99 / 100).copied().unwrap_or_default();
    let memory = grown as f64 / 1024.0 / connected as f64;
    println!("{} {memory} {}", took.as_secs_f64(), p99.as_nanos() as f64 / 1000.0);
    Ok(())
}

/// What logins have left to do is done.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}
