//! Many agents on one hub, the hub in a process of its own and the agents in two others: how soon they are there, what an
//! idle one costs, and what happens when the hub dies and comes back.
//!
//! The agents are let in as a hub does it by default, but that as many strangers may come from one address as in all: here
//! they share one, which a fleet does not.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dialback::{Agent, AllowedKeys, HostKeys, Hub, PrivateKey, Tunnel};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tokio::task::JoinSet;

use crate::common::report::Report;
use crate::common::system::open_files;
use crate::common::{Failure, service};
use crate::contenders::Contender;
use crate::plan::Plan;
use crate::process::{Process, cpu, memory};
use crate::roles::{Host, Keepalive, Way, listen};
use crate::rounds::LeftOut;
use crate::tries::Tries;
use crate::{herd, soak};

/// Among which the agents are shared out.
const PROCESSES: usize = 2;

/// Strangers that the hub has in at once: its default for all of them together.
const STRANGERS: usize = 128;

/// Logins that a process of agents has under way when it starts. After a loss each agent is on its own.
const LOGINS: usize = 16;

/// Agents that connect before the hub's memory is first read: code and runtime are in memory from then on.
pub(crate) const WARM_UP: usize = 16;

/// File descriptors that are not an agent's.
pub(crate) const SPARE: usize = 64;

/// How long agents may take to be there, and to be there again.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long a process may take to answer beyond what it waits for.
const ANSWER: Duration = Duration::from_secs(10);

/// From one keepalive of a tunnel to the next, by default: an idle fleet costs nothing in between.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// What an idle agent costs.
pub(crate) const MEMORY: &str = "hub memory";

/// What the goal is about: how often an agent knocks at a hub that is there and has others to let in. While there is none,
/// each try must come to nothing, and how many there are is how long that took.
pub(crate) const TRIES: &str = "most tries of an agent once the hub listens";

const SSH: Contender = Contender::Dialback(Way::Ssh);
const PATH: &str = SSH.name();

/// With so many agents.
pub(crate) async fn measure(plan: &Plan, agents: usize, report: &mut Report, left_out: &mut LeftOut) {
    let [idle, herd] = ["idle", "herd"].map(|case| format!("fleet-{agents}/{case}"));
    if !plan.wants(&idle) && !plan.wants(&herd) || !plan.takes(SSH) {
        return;
    }
    eprintln!("{idle}, {herd}");
    let mut herds = plan.wants(&herd);
    for round in 1..=plan.fleets() {
        let fleet = async {
            let mut fleet = Fleet::start(agents).await?;
            fleet.idle(plan, &idle, report).await?;
            Ok::<_, Failure>(fleet)
        };
        let mut fleet = match fleet.await {
            Ok(fleet) => fleet,
            Err(why) => {
                let why = format!("in round {round}: {why}");
                left_out.failed(report, &idle, SSH, &why);
                if herds {
                    left_out.failed(report, &herd, SSH, &why);
                }
                return;
            }
        };
        if herds && let Err(why) = fleet.herd(&herd, plan.away(), report).await {
            left_out.failed(report, &herd, SSH, &format!("in round {round}: {why}"));
            herds = false;
        }
    }
}

/// The processes. Dropping it kills them.
pub(crate) struct Fleet {
    size: usize,
    dir: TempDir,
    address: String,
    pub(crate) hub: Process,
    agents: Vec<Process>,
}

impl Fleet {
    pub(crate) async fn start(size: usize) -> Result<Self, Failure> {
        let most = open_files()?.saturating_sub(SPARE);
        if size > most {
            return Err(format!("the limit on open files (`ulimit -n`) allows {most} agents").into());
        }
        let dir = tempfile::tempdir()?;
        for name in ["agent", "host"] {
            PrivateKey::load_or_generate(dir.path().join(name))?;
        }
        let (hub, address) = start_hub(dir.path(), size, "127.0.0.1:0").await?;
        let agents = |process: usize| own("fleet-agents", dir.path(), &[&process.to_string(), &address]);
        let agents = (0..PROCESSES).map(agents).collect::<Result<_, _>>()?;
        Ok(Self { size, dir, address, hub, agents })
    }

    /// Connects the agents until there are so many.
    pub(crate) async fn connect(&mut self, agents: usize) -> Result<(), Failure> {
        self.ask_agents(&format!("connect {agents}")).await.map(drop)
    }

    /// Of all their processes at once.
    async fn ask_agents(&mut self, order: &str) -> Result<Vec<Value>, Failure> {
        for process in &mut self.agents {
            process.tell(order).await?;
        }
        let mut answers = Vec::new();
        for process in &mut self.agents {
            answers.push(process.answer(PATIENCE + ANSWER).await?);
        }
        Ok(answers)
    }

    async fn idle(&mut self, plan: &Plan, case: &str, report: &mut Report) -> Result<(), Failure> {
        self.connect(WARM_UP).await?;
        let before = self.settled(WARM_UP).await?;
        let started = Instant::now();
        self.connect(self.size).await?;
        ask(&mut self.hub, &format!("wait {}", self.size)).await?;
        let took = started.elapsed().as_secs_f64();
        let grown = self.settled(self.size).await? - before;
        let connected = (self.size - WARM_UP) as f64;
        report.add(case, PATH, "all up", "s", took);
        report.add(case, PATH, "logins", "logins/s", connected / took);
        report.add(case, PATH, MEMORY, "KiB/agent", grown / 1024.0 / connected);

        // A quick look has no time for keepalives, and without them there is nothing to tell.
        if plan.quick || !plan.wants(case) {
            return Ok(());
        }
        // What follows the logins is over then, and the keepalives have begun.
        tokio::time::sleep(KEEPALIVE).await;
        let hub = self.hub.id().ok_or("the hub has ended")?;
        let (used, span) = (cpu(&[hub]), 2 * KEEPALIVE);
        tokio::time::sleep(span).await;
        report.add(case, PATH, "hub CPU", "%", 100.0 * (cpu(&[hub]) - used) / span.as_secs_f64());
        Ok(())
    }

    /// The hub's memory in bytes once so many agents are there and what logins leave to do is done.
    async fn settled(&mut self, agents: usize) -> Result<f64, Failure> {
        ask(&mut self.hub, &format!("wait {agents}")).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        memory(self.hub.id().ok_or("the hub has ended")?)
    }

    /// The hub is killed, and a new one comes to its place.
    async fn herd(&mut self, case: &str, away: Duration, report: &mut Report) -> Result<(), Failure> {
        self.ask_agents("count tries").await?;
        self.hub.kill().await?;
        tokio::time::sleep(away).await;
        (self.hub, _) = start_hub(self.dir.path(), self.size, &self.address).await?;
        self.hub.tell(&format!("herd {}", self.size)).await?;
        self.ask_agents("hub listens").await?;
        let answer = self.hub.answer(PATIENCE + ANSWER).await?;
        if let Some(why) = answer["why"].as_str() {
            eprintln!("{case}: a call that failed: {why}");
        }
        let tries = self.ask_agents("tries").await?;
        for (metric, which) in [("most tries of an agent, the outage included", "all"), (TRIES, "late")] {
            let most = tries.iter().filter_map(|answer| answer[which].as_f64()).reduce(f64::max);
            report.add(case, PATH, metric, "tries", most.ok_or("no figure for tries")?);
        }
        for (metric, unit) in [
            ("all back", "s"),
            ("half back", "s"),
            ("busiest 100 ms to the mean", "×"),
            ("calls meanwhile", "calls"),
            ("slowest call meanwhile", "ms"),
            ("failed calls meanwhile", "calls"),
        ] {
            let value = answer[metric].as_f64().ok_or_else(|| format!("no {metric} in {answer}"))?;
            report.add(case, PATH, metric, unit, value);
        }
        Ok(())
    }
}

fn own(role: &str, dir: &Path, arguments: &[&str]) -> Result<Process, Failure> {
    let dir = dir.to_str().ok_or("the directory's name is not UTF-8")?;
    Process::own(&[&[role, dir], arguments].concat())
}

async fn start_hub(dir: &Path, agents: usize, listen: &str) -> Result<(Process, String), Failure> {
    let mut hub = own("fleet-hub", dir, &[&agents.to_string(), "--listen", listen])?;
    let address = hub.line("listening ").await?;
    Ok((hub, address))
}

async fn ask(process: &mut Process, order: &str) -> Result<Value, Failure> {
    process.tell(order).await?;
    process.answer(PATIENCE + ANSWER).await
}

pub(crate) fn id(number: usize) -> String {
    format!("idle-{number}")
}

/// The hub's process. Ends with its standard input.
pub(crate) async fn hub(dir: &Path, agents: usize, at: &str, way: Way) -> Result<(), Failure> {
    let key = PrivateKey::load_or_generate(dir.join("agent"))?.public_key();
    let mut allowed = AllowedKeys::new();
    for number in 0..agents {
        allowed = allowed.allow(id(number), key.clone())?;
    }
    let host_key = PrivateKey::load_or_generate(dir.join("host"))?;
    let hub = Hub::builder(host_key).authorizer(allowed).unauthenticated_limits(STRANGERS, STRANGERS);
    let hub = hub.bind(at).await?;
    let count = AtomicUsize::new(0);
    let next_id = move || id(count.fetch_add(1, Ordering::Relaxed)).parse().expect("it is an id");
    println!("listening {}", listen(&hub, way, dir, Host::default(), Keepalive::default(), next_id).await?);
    let mut orders = BufReader::new(stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        let answer = match order.split_once(' ') {
            Some(("wait", count)) => {
                let count = count.parse()?;
                until(&hub, count, |_| {}).await?;
                json!({})
            }
            Some(("herd", count)) => herd::run(&hub, count.parse()?).await?,
            Some(("soak", seconds)) => soak::run(&hub, Duration::from_secs(seconds.parse()?)).await?,
            _ => return Err(format!("no such order: {order}").into()),
        };
        println!("{answer}");
    }
    Ok(())
}

/// Waits for so many tunnels, and tells which there are each 20 ms.
pub(crate) async fn until(hub: &Hub, count: usize, mut there: impl FnMut(Vec<Tunnel>)) -> Result<(), Failure> {
    let started = Instant::now();
    loop {
        let tunnels = hub.tunnels();
        let now = tunnels.len();
        there(tunnels);
        if now >= count {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("{now} of {count} agents are there after {PATIENCE:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One of the agents' processes, by its number. Ends with its standard input.
pub(crate) async fn agents(dir: &Path, process: usize, address: &str) -> Result<(), Failure> {
    let mut fleet = Vec::new();
    let (mut all, mut late) = (Tries::default(), Tries::default());
    let mut orders = BufReader::new(stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        let answer = match order.split_once(' ') {
            Some(("connect", count)) => {
                connect(&mut fleet, dir, process, count.parse()?, address).await?;
                json!({})
            }
            _ if order == "count tries" => {
                all = Tries::from_now_on(&fleet, 0);
                json!({})
            }
            _ if order == "hub listens" => {
                // One that is back already has needed one.
                late = Tries::from_now_on(&fleet, 1);
                json!({})
            }
            _ if order == "tries" => json!({ "all": all.most(), "late": late.most() }),
            _ => return Err(format!("no such order: {order}").into()),
        };
        println!("{answer}");
    }
    Ok(())
}

/// Connects this process's share until there are so many in all processes.
async fn connect(fleet: &mut Vec<Agent>, dir: &Path, process: usize, all: usize, address: &str) -> Result<(), Failure> {
    let key = PrivateKey::load_or_generate(dir.join("agent"))?;
    let host_key = PrivateKey::load_or_generate(dir.join("host"))?.public_key();
    let mut logins = JoinSet::new();
    for number in (process..all).step_by(PROCESSES).skip(fleet.len()) {
        if logins.len() == LOGINS
            && let Some(agent) = logins.join_next().await
        {
            fleet.push(agent??);
        }
        let agent = Agent::builder(id(number), key.clone()).host_keys(HostKeys::public_key(host_key.clone()));
        let login = agent.connect(address.to_owned());
        logins.spawn(async move {
            let agent = login.await?;
            tokio::spawn(service::server().serve_with_incoming_shutdown(agent.incoming(), std::future::pending()));
            Ok::<_, Failure>(agent)
        });
    }
    while let Some(agent) = logins.join_next().await {
        fleet.push(agent??);
    }
    Ok(())
}
