//! Many agents on one hub: logins per second, and what an idle one costs. The hub is a new process each time, so that
//! its memory is not what earlier work has left.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Failure;
use crate::agent::AgentProcess;
use crate::cases::{PROCESSES, Plan};
use crate::report::{Path, Report};

const AGENTS: usize = 1000;

/// Agents that connect before the hub's memory is first read: code and runtime are in memory from then on.
const WARM_UP: usize = 16;

/// File descriptors that are not an agent's.
const SPARE: usize = 64;

pub(crate) fn measure(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let names = ["logins", "idle-agents"].map(|case| format!("{PROCESSES}/{case}"));
    if !names.iter().any(|name| plan.wants(name)) {
        return Ok(());
    }
    let agents = AGENTS.min(open_files()?.saturating_sub(SPARE));
    if agents < AGENTS {
        eprintln!("only {agents} agents: the limit on open files (`ulimit -n`) is too low for {AGENTS}");
    }
    for _ in 0..if plan.quick { 1 } else { 7 } {
        let hub = Command::new(std::env::current_exe()?)
            .args(["scale", &agents.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .output()?;
        let answer = String::from_utf8(hub.stdout)?;
        let (logins, memory) =
            answer.trim().split_once(' ').ok_or("the hub's process has failed; its error is above")?;
        report.add(&names[0], Path::Tunnel, "rate", "logins/s", logins.parse()?);
        report.add(&names[1], Path::Tunnel, "hub memory", "KiB/agent", memory.parse()?);
    }
    Ok(())
}

/// The hub's process.
pub(crate) async fn run(agents: usize) -> Result<(), Failure> {
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
    println!("{} {}", connected as f64 / took.as_secs_f64(), grown as f64 / 1024.0 / connected as f64);
    Ok(())
}

/// What logins have left to do is done.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Bytes of this process in memory.
fn resident() -> Result<u64, Failure> {
    Ok(1024 * number_after(&fs::read_to_string("/proc/self/status")?, "VmRSS:")?)
}

fn open_files() -> Result<usize, Failure> {
    Ok(usize::try_from(number_after(&fs::read_to_string("/proc/self/limits")?, "Max open files")?)?)
}

fn number_after(text: &str, label: &str) -> Result<u64, Failure> {
    let rest = text.lines().find_map(|line| line.strip_prefix(label));
    let number = rest.and_then(|rest| rest.split_whitespace().next());
    Ok(number.ok_or_else(|| format!("no `{label}` in /proc"))?.parse()?)
}
