//! The processes of the contenders that are ours, from inside. Each prints `listening ADDRESS` if it does, and ends with
//! its standard input.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use dialback::{Agent, AgentId, AllowedKeys, HostKeys, Hub, PrivateKey};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};
use tokio::net::TcpListener;
use tonic::transport::Endpoint;
use tonic::transport::server::TcpIncoming;

use crate::common::service::pb::echo_client::EchoClient;
use crate::common::{Failure, service};
use crate::idle::Dial;
use crate::line::{self, Limits};
use crate::{fleet, idle, orders};

/// The agent that serves.
pub(crate) const AGENT: &str = "laptop-1";

/// Where it is called from, and how it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// SSH over TCP.
    Ssh,
    /// SSH over a WebSocket with TLS.
    Wss,
    /// SSH over TCP; the hub has a gateway, and another process calls.
    Gateway,
    /// A reverse tunnel of grpctunnel.
    Grpctunnel,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Wss => "wss",
            Self::Gateway => "gateway",
            Self::Grpctunnel => "grpctunnel",
        }
    }
}

/// What the benchmark starts itself as.
#[derive(Subcommand)]
pub(crate) enum Role {
    /// Serves on a TCP port.
    #[command(hide = true)]
    Server {
        #[command(flatten)]
        host: Host,
        /// With the TLS files in this directory.
        #[arg(long)]
        tls: Option<PathBuf>,
    },
    /// Calls a TCP port; takes orders.
    #[command(hide = true)]
    Client {
        address: SocketAddr,
        /// With the TLS files in this directory.
        #[arg(long)]
        tls: Option<PathBuf>,
        /// The agent behind a gateway.
        #[arg(long)]
        agent: Option<String>,
    },
    /// A hub, with the keys in a directory; takes orders.
    #[command(hide = true)]
    Hub {
        dir: PathBuf,
        way: Way,
        #[command(flatten)]
        host: Host,
        #[command(flatten)]
        keepalive: Keepalive,
    },
    /// An agent, with the keys in a directory, that serves.
    #[command(hide = true)]
    Agent {
        dir: PathBuf,
        way: Way,
        url: String,
        #[command(flatten)]
        keepalive: Keepalive,
    },
    /// A network between a port of its own and this one.
    #[command(hide = true)]
    Line {
        target: SocketAddr,
        #[command(flatten)]
        limits: Limits,
    },
    /// A network that loses packets, and a namespace at each of its ends.
    #[command(hide = true)]
    Link,
    /// A hub for many agents.
    #[command(hide = true)]
    FleetHub {
        dir: PathBuf,
        agents: usize,
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
        #[arg(long, default_value = "ssh")]
        way: Way,
    },
    /// One of the processes that share out many agents.
    #[command(hide = true)]
    FleetAgents { dir: PathBuf, process: usize, address: String },
    /// Many agents of a contender, or as many clients where there is no tunnel, that do nothing.
    #[command(hide = true)]
    IdleAgents {
        dir: PathBuf,
        by: Dial,
        address: SocketAddr,
        /// The hub's public key; not given, it is that of the file `host`.
        #[arg(long)]
        host_key: Option<String>,
    },
}

/// Where a process listens.
#[derive(Args, Clone, Copy)]
pub(crate) struct Host {
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
}

/// On the loopback.
impl Default for Host {
    fn default() -> Self {
        Self { host: IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }
}

impl Host {
    /// With a port that the system chooses.
    fn listen(self) -> SocketAddr {
        SocketAddr::new(self.host, 0)
    }
}

/// How a tunnel's ends find out that the other is dead.
#[derive(Args, Clone, Copy, Default)]
pub(crate) struct Keepalive {
    /// Ask after so many seconds of silence, three times; not given, it is as by default.
    #[arg(long)]
    keepalive: Option<u64>,
}

impl Keepalive {
    fn get(self) -> Option<(Duration, usize)> {
        self.keepalive.map(|seconds| (Duration::from_secs(seconds), 3))
    }

    /// A tunnel of grpctunnel has none of its own, but HTTP/2's, which asks once and then waits as long.
    #[cfg(feature = "grpctunnel")]
    fn of_http2(self) -> Option<(Duration, Duration)> {
        self.keepalive.map(Duration::from_secs).map(|interval| (interval, 3 * interval))
    }
}

impl Role {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Server { host, tls } => serve(host, tls.as_deref()).await,
            Self::Client { address, tls, agent } => call(address, tls.as_deref(), agent.as_deref()).await,
            Self::Hub { dir, way, host, keepalive } => hub(&dir, way, host, keepalive).await,
            Self::Agent { dir, way, url, keepalive } => agent(&dir, way, &url, keepalive).await,
            Self::Line { target, limits } => line::run(target, &limits).await,
            #[cfg(target_os = "linux")]
            Self::Link => crate::emulator::run().await,
            #[cfg(not(target_os = "linux"))]
            Self::Link => Err("network namespaces and TUN devices are Linux's".into()),
            Self::FleetHub { dir, agents, listen, way } => fleet::hub(&dir, agents, &listen, way).await,
            Self::FleetAgents { dir, process, address } => fleet::agents(&dir, process, &address).await,
            Self::IdleAgents { dir, by, address, host_key } => {
                idle::agents(&dir, by, address, host_key.as_deref()).await
            }
        }
    }
}

async fn serve(host: Host, tls: Option<&Path>) -> Result<(), Failure> {
    let listener = TcpListener::bind(host.listen()).await?;
    println!("listening {}", listener.local_addr()?);
    match tls {
        None => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            service::server().serve_with_incoming_shutdown(incoming, end_of_input()).await?;
        }
        #[cfg(any(feature = "gateway", feature = "websocket"))]
        Some(dir) => {
            let incoming = crate::tls::incoming(listener, dir)?;
            service::server().serve_with_incoming_shutdown(incoming, end_of_input()).await?;
        }
        #[cfg(not(any(feature = "gateway", feature = "websocket")))]
        Some(_) => return Err("built without TLS".into()),
    }
    Ok(())
}

async fn call(address: SocketAddr, tls: Option<&Path>, agent: Option<&str>) -> Result<(), Failure> {
    let mut endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(Duration::from_secs(5));
    if let Some(agent) = agent {
        endpoint = endpoint.origin(format!("http://{agent}").parse()?);
    }
    let endpoint = dialback::tune_endpoint(endpoint);
    let dial = || match tls {
        None => Ok(endpoint.connect_lazy()),
        #[cfg(any(feature = "gateway", feature = "websocket"))]
        Some(dir) => crate::tls::channel(&endpoint, address, dir),
        #[cfg(not(any(feature = "gateway", feature = "websocket")))]
        Some(_) => Err("built without TLS".into()),
    };
    orders::serve(EchoClient::new(dial()?), Some(&dial)).await
}

async fn hub(dir: &Path, way: Way, host: Host, keepalive: Keepalive) -> Result<(), Failure> {
    let agent = PrivateKey::load_or_generate(dir.join("agent"))?.public_key();
    let host_key = PrivateKey::load_or_generate(dir.join("host"))?;
    let allowed = AllowedKeys::new().allow(AGENT, agent)?;
    let mut hub = Hub::builder(host_key).authorizer(allowed);
    if let Some((interval, most)) = keepalive.get() {
        hub = hub.keepalive(interval, most);
    }
    let hub = hub.bind(host.listen().to_string()).await?;
    let id: AgentId = AGENT.parse()?;
    println!("listening {}", listen(&hub, way, dir, host, keepalive, move || id.clone()).await?);
    if way == Way::Gateway {
        #[cfg(not(feature = "gateway"))]
        return Err("built without the feature for gateway".into());
        #[cfg(feature = "gateway")]
        {
            let gateway = dialback::gateway::Gateway::builder(&hub).bind("127.0.0.1:0").await?;
            println!("gateway {}", gateway.local_addr());
            end_of_input().await;
            return Ok(());
        }
    }
    orders::serve(EchoClient::new(hub.channel(AGENT)?), None).await
}

/// Where the hub listens for agents that come this way: by WebSocket with the TLS files in `dir`; by a reverse tunnel with
/// the next id.
#[allow(unused_variables)] // where a feature is missing
pub(crate) async fn listen(
    hub: &Hub,
    way: Way,
    dir: &Path,
    host: Host,
    keepalive: Keepalive,
    next_id: impl Fn() -> AgentId + Send + Sync + 'static,
) -> Result<String, Failure> {
    match way {
        Way::Ssh | Way::Gateway => Ok(hub.local_addr().to_string()),
        #[cfg(feature = "websocket")]
        Way::Wss => {
            let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| dir.join(name));
            let url = hub.listen_tls(&format!("wss://{}/tunnel", host.listen()), certificate, key).await?;
            Ok(url.trim_start_matches("wss://").trim_end_matches("/tunnel").to_owned())
        }
        #[cfg(feature = "grpctunnel")]
        Way::Grpctunnel => {
            let known = move |_: &tonic::Request<()>| Ok((next_id(), dialback::Grant::new()));
            let service = dialback::grpctunnel::TunnelService::builder().reverse(hub).identify(known).build();
            let listener = TcpListener::bind(host.listen()).await?;
            let address = listener.local_addr()?.to_string();
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let mut server = dialback::tune_server(tonic::transport::Server::builder());
            if let Some((interval, patience)) = keepalive.of_http2() {
                server = server.http2_keepalive_interval(Some(interval)).http2_keepalive_timeout(Some(patience));
            }
            tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
            Ok(address)
        }
        #[allow(unreachable_patterns)]
        _ => Err(format!("built without the feature for {}", way.name()).into()),
    }
}

async fn agent(dir: &Path, way: Way, address: &str, keepalive: Keepalive) -> Result<(), Failure> {
    #[cfg(feature = "grpctunnel")]
    if way == Way::Grpctunnel {
        let mut endpoint = dialback::tune_endpoint(Endpoint::from_shared(format!("http://{address}"))?);
        if let Some((interval, patience)) = keepalive.of_http2() {
            endpoint = endpoint.http2_keep_alive_interval(interval).keep_alive_timeout(patience);
        }
        let carrier = endpoint.connect().await?;
        let _tunnel = dialback::grpctunnel::TunnelBuilder::new(AGENT, carrier).reverse(service::routes()).await?;
        end_of_input().await;
        return Ok(());
    }
    let key = PrivateKey::load_or_generate(dir.join("agent"))?;
    let host_key = PrivateKey::load_or_generate(dir.join("host"))?.public_key();
    let mut agent = Agent::builder(AGENT, key).host_keys(HostKeys::public_key(host_key));
    if let Some((interval, most)) = keepalive.get() {
        agent = agent.keepalive(interval, most);
    }
    #[cfg(feature = "websocket")]
    let agent = agent.tls_roots(dir.join("authority.pem"));
    let url = if way == Way::Wss { format!("wss://{address}/tunnel") } else { address.to_owned() };
    let agent = agent.connect(url).await?;
    service::server().serve_with_incoming_shutdown(agent.incoming(), end_of_input()).await?;
    Ok(())
}

/// Whoever started this process is gone, or wants it to be.
pub(crate) async fn end_of_input() {
    let mut lines = BufReader::new(stdin()).lines();
    while let Ok(Some(_)) = lines.next_line().await {}
}
