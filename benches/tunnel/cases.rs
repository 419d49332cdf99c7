//! Which work is done over which path, and how often.

use std::time::{Duration, Instant};

use dialback::{Hub, PrivateKey, TunnelChannel};
use tonic::transport::{Channel, Endpoint};

use crate::Failure;
use crate::agent::{self, AGENT, AgentProcess};
use crate::common::report::Report;
use crate::common::service::pb::echo_client::EchoClient;
use crate::common::work::{self, Transport};
use crate::paths::Path;

pub(crate) const PROCESSES: &str = "processes";
pub(crate) const ONE_THREAD: &str = "current-thread";

const CALLERS: usize = 64;

/// What the user asked for.
pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) only: String,
    pub(crate) path: Option<String>,
}

impl Plan {
    pub(crate) fn wants(&self, case: &str) -> bool {
        case.contains(&self.only)
    }

    fn takes(&self, path: Path) -> bool {
        self.path.as_deref().is_none_or(|name| name == path.name())
    }

    fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Whether a case that has run so many rounds since then runs another.
    fn again(&self, rounds: usize, since: Instant) -> bool {
        match rounds {
            // The first warms up, and does not count.
            0..=3 => true,
            _ if self.quick => rounds <= 7 && since.elapsed() < Duration::from_millis(2200),
            _ => rounds <= 21,
        }
    }
}

pub(crate) async fn in_two_processes(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let (mut process, hub) = AgentProcess::start(0).await?;
    let direct = Endpoint::from_shared(format!("http://{}", process.direct))?;
    process.connect_by_proxy(&hub).await?;
    let mut others = vec![(Path::ConnectProxy, agent::BY_PROXY)];
    #[cfg(feature = "websocket")]
    {
        process.connect_by_websocket(&hub).await?;
        others.push((Path::WebSocket, agent::BY_WEBSOCKET));
        others.push((Path::WebSocketTls, agent::BY_WEBSOCKET_TLS));
    }
    match process.connect_by_stock_ssh(&hub).await? {
        true => others.push((Path::StockSsh, agent::BY_STOCK_SSH)),
        false => eprintln!("no rows for `ssh -R`: there is no program ssh"),
    }
    #[cfg(feature = "grpctunnel")]
    {
        process.connect_by_grpctunnel(&hub).await?;
        others.push((Path::Grpctunnel, agent::BY_GRPCTUNNEL));
    }
    #[cfg(feature = "grpctunnel")]
    let forward = {
        let carrier = dialback::tune_endpoint(direct.clone()).connect().await?;
        dialback::grpctunnel::TunnelBuilder::new("hub", carrier).forward().await?
    };
    #[cfg(feature = "grpctunnel")]
    let go = match crate::go::GoTunnel::start().await {
        Ok(go) => Some(go),
        Err(why) => {
            eprintln!("no rows for the Go library grpctunnel: {why}");
            None
        }
    };
    let bench = Bench {
        setting: PROCESSES,
        plan,
        report,
        hub,
        direct,
        others,
        #[cfg(feature = "grpctunnel")]
        forward: Some(forward.channel()),
        #[cfg(feature = "grpctunnel")]
        go,
    };
    run(bench).await
}

pub(crate) async fn on_one_thread(plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let (host_key, key) = (PrivateKey::generate(), PrivateKey::generate());
    let known = host_key.public_key();
    let hub = agent::hub(host_key, &key.public_key(), 0).await?;
    let agent = agent::builder(AGENT, key, known).connect(hub.local_addr().to_string()).await?;
    let direct = Endpoint::from_shared(format!("http://{}", agent::serve(&agent).await?))?;
    hub.wait_for(AGENT).await?;
    let bench = Bench {
        setting: ONE_THREAD,
        plan,
        report,
        hub,
        direct,
        others: Vec::new(),
        #[cfg(feature = "grpctunnel")]
        forward: None,
        #[cfg(feature = "grpctunnel")]
        go: None,
    };
    run(bench).await
}

struct Bench<'a> {
    setting: &'static str,
    plan: &'a Plan,
    report: &'a mut Report,
    hub: Hub,
    direct: Endpoint,
    /// Agents that came by other ways.
    others: Vec<(Path, &'static str)>,
    #[cfg(feature = "grpctunnel")]
    forward: Option<TunnelChannel>,
    #[cfg(feature = "grpctunnel")]
    go: Option<crate::go::GoTunnel>,
}

/// A connected client for each path.
struct Clients {
    direct: EchoClient<Channel>,
    tunnel: EchoClient<TunnelChannel>,
    dialled: EchoClient<Channel>,
    /// With the feature `gateway`.
    gateway: Option<EchoClient<Channel>>,
    others: Vec<(Path, EchoClient<TunnelChannel>)>,
}

/// What is done in one round over one path.
#[derive(Clone, Copy)]
enum Case {
    Unary,
    Callers,
    Down(usize),
    Up(usize),
    Dials,
}

const CASES: [(Case, &str); 7] = [
    (Case::Unary, "unary"),
    (Case::Callers, "64-callers"),
    (Case::Down(64 << 10), "stream-64KiB-down"),
    (Case::Up(64 << 10), "stream-64KiB-up"),
    (Case::Down(1 << 20), "stream-1MiB-down"),
    (Case::Up(1 << 20), "stream-1MiB-up"),
    (Case::Dials, "dials"),
];

const PATHS: [Path; 4] = [Path::DirectTcp, Path::Tunnel, Path::TunnelDialled, Path::Gateway];

async fn run(#[allow(unused_mut)] mut bench: Bench<'_>) -> Result<(), Failure> {
    #[cfg(feature = "gateway")]
    let gateway = dialback::gateway::Gateway::builder(&bench.hub).bind("127.0.0.1:0").await?;
    let mut clients = Clients {
        #[cfg(feature = "gateway")]
        gateway: Some(EchoClient::new(dial_gateway(gateway.local_addr()).await?)),
        #[cfg(not(feature = "gateway"))]
        gateway: None,
        direct: EchoClient::new(bench.dial_direct().await?),
        tunnel: EchoClient::new(bench.hub.channel(AGENT)?),
        dialled: EchoClient::new(bench.dial_tunnel().await?),
        others: Vec::new(),
    };
    for (path, id) in &bench.others {
        clients.others.push((*path, EchoClient::new(bench.hub.channel(id)?)));
    }
    #[cfg(feature = "grpctunnel")]
    if let Some(forward) = bench.forward.take() {
        clients.others.push((Path::GrpctunnelForward, EchoClient::new(forward)));
    }
    let mut paths = PATHS.to_vec();
    paths.extend(clients.others.iter().map(|(path, _)| *path));
    #[cfg(feature = "grpctunnel")]
    if bench.go.is_some() {
        paths.push(Path::GrpctunnelGo);
    }
    for (case, name) in CASES {
        let name = format!("{}/{name}", bench.setting);
        if !bench.plan.wants(&name) {
            continue;
        }
        let started = Instant::now();
        let mut rounds = 0..;
        while let Some(round) = rounds.next().filter(|round| bench.plan.again(*round, started)) {
            // The path that comes first changes, so that none always follows the same one.
            for turn in 0..paths.len() {
                let path = paths[(round + turn) % paths.len()];
                if !bench.plan.takes(path) {
                    continue;
                }
                let figures = match (case, path) {
                    (Case::Dials, Path::DirectTcp) => bench.dials(async || bench.dial_direct().await).await?,
                    (Case::Dials, Path::TunnelDialled) => bench.dials(async || bench.dial_tunnel().await).await?,
                    (Case::Dials, _) => continue, // they do not dial again
                    (case, Path::DirectTcp) => bench.calls(case, &clients.direct).await?,
                    (case, Path::Tunnel) => bench.calls(case, &clients.tunnel).await?,
                    (case, Path::TunnelDialled) => bench.calls(case, &clients.dialled).await?,
                    (case, Path::Gateway) => match &mut clients.gateway {
                        Some(client) => bench.calls(case, client).await?,
                        None => continue,
                    },
                    #[cfg(feature = "grpctunnel")]
                    (case, Path::GrpctunnelGo) => bench.calls_of_go(case).await?,
                    (case, path) => match clients.others.iter_mut().find(|(other, _)| *other == path) {
                        Some((_, client)) => bench.calls(case, client).await?,
                        None => continue,
                    },
                };
                for (metric, unit, value) in figures {
                    if round > 0 {
                        bench.report.add(&name, path.name(), metric, unit, value);
                    }
                }
            }
        }
    }
    Ok(())
}

/// An ordinary client of the gateway, which names the agent by its authority.
#[cfg(feature = "gateway")]
async fn dial_gateway(address: std::net::SocketAddr) -> Result<Channel, Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.origin(format!("http://{AGENT}").parse()?);
    Ok(dialback::tune_endpoint(endpoint).connect().await?)
}

/// Metric, unit, value.
type Figures = Vec<(&'static str, &'static str, f64)>;

impl Bench<'_> {
    async fn dial_direct(&self) -> Result<Channel, Failure> {
        Ok(dialback::tune_endpoint(self.direct.clone()).connect().await?)
    }

    async fn dial_tunnel(&self) -> Result<Channel, Failure> {
        let endpoint = dialback::tune_endpoint(Endpoint::from_static("http://laptop-1"));
        Ok(endpoint.connect_with_connector(self.hub.connector(AGENT)?).await?)
    }

    async fn calls<T: Transport>(&self, case: Case, client: &EchoClient<T>) -> Result<Figures, Failure> {
        let bytes = self.plan.pick(64 << 20, 256 << 20);
        let (mut figures, cpu) = match case {
            Case::Unary => {
                let (times, cpu) = work::task(work::latencies(client.clone(), self.plan.pick(500, 1000))).await?;
                let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
                (vec![("p50", "µs", micros(p50)), ("p99", "µs", micros(p99))], cpu)
            }
            Case::Callers => {
                let duration = Duration::from_millis(self.plan.pick(250, 500));
                let (rate, cpu) = work::throughput(client, CALLERS, duration).await?;
                (vec![("rate", "calls/s", rate)], cpu)
            }
            Case::Down(size) => {
                let (rate, cpu) = work::task(work::download(client.clone(), bytes, size)).await?;
                (vec![("rate", "MB/s", rate)], cpu)
            }
            Case::Up(size) => {
                let (rate, cpu) = work::task(work::upload(client.clone(), bytes, size)).await?;
                (vec![("rate", "MB/s", rate)], cpu)
            }
            Case::Dials => (Vec::new(), None),
        };
        // CPU time is only known where everything runs on this thread.
        if let Some(cpu) = cpu.filter(|_| self.setting == ONE_THREAD) {
            let metric = if matches!(case, Case::Down(_) | Case::Up(_)) { "CPU per MB" } else { "CPU per call" };
            figures.push((metric, "µs", micros(cpu)));
        }
        Ok(figures)
    }

    /// The same in the Go library's processes.
    #[cfg(feature = "grpctunnel")]
    async fn calls_of_go(&mut self, case: Case) -> Result<Figures, Failure> {
        let bytes = self.plan.pick(64 << 20, 256 << 20);
        let (order, figures): (_, &[_]) = match case {
            Case::Unary => (format!("unary {}", self.plan.pick(500, 1000)), &[("p50", "µs"), ("p99", "µs")]),
            Case::Callers => (format!("callers {CALLERS} {}", self.plan.pick(250, 500)), &[("rate", "calls/s")]),
            Case::Down(size) => (format!("down {bytes} {size}"), &[("rate", "MB/s")]),
            Case::Up(size) => (format!("up {bytes} {size}"), &[("rate", "MB/s")]),
            Case::Dials => return Ok(Vec::new()),
        };
        let Some(go) = &mut self.go else { return Ok(Vec::new()) };
        let answer = go.figures(&order).await?;
        let value = |metric: &str| answer[metric].as_f64().ok_or_else(|| format!("no {metric} in {answer}"));
        figures.iter().map(|&(metric, unit)| Ok((metric, unit, value(metric)?))).collect()
    }

    /// A dial counts when its connection has answered a call: that TCP is connected says nothing about HTTP/2.
    async fn dials(&self, dial: impl AsyncFn() -> Result<Channel, Failure>) -> Result<Figures, Failure> {
        let dials = self.plan.pick(50, 100);
        let started = Instant::now();
        for _ in 0..dials {
            work::one_call(&mut EchoClient::new(dial().await?)).await?;
        }
        Ok(vec![("rate", "dials/s", f64::from(dials) / started.elapsed().as_secs_f64())])
    }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}
