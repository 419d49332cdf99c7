//! The agent's process, and how the hub's process steers it: lines on its standard input and output.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use dialback::{Agent, AgentBuilder, AllowedKeys, HostKeys, Hub, PrivateKey, PublicKey};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, Stdin, stdin};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;

use crate::Failure;
use crate::common::service;
use crate::connect_proxy;

/// The agent that serves.
pub(crate) const AGENT: &str = "laptop-1";

/// Logins under way at once when many agents connect.
const LOGINS: usize = 32;

/// The same machine, by other carriers: an id for each.
pub(crate) const BY_PROXY: &str = "laptop-connect";
pub(crate) const BY_WEBSOCKET: &str = "laptop-ws";
pub(crate) const BY_WEBSOCKET_TLS: &str = "laptop-wss";
pub(crate) const BY_STOCK_SSH: &str = "laptop-ssh";
#[cfg(feature = "grpctunnel")]
pub(crate) const BY_GRPCTUNNEL: &str = "laptop-grpc";

/// A hub that takes `AGENT`, the idle agents and nobody else, and lets many log in from one address at once.
pub(crate) async fn hub(host_key: PrivateKey, agents_key: &PublicKey, idle: usize) -> Result<Hub, Failure> {
    let mut allowed = AllowedKeys::new();
    for id in [AGENT, BY_PROXY, BY_WEBSOCKET, BY_WEBSOCKET_TLS, BY_STOCK_SSH] {
        allowed = allowed.allow(id, agents_key.clone())?;
    }
    for number in 0..idle {
        allowed = allowed.allow(idle_id(number), agents_key.clone())?;
    }
    let hub = Hub::builder(host_key).authorizer(allowed).unauthenticated_limits(4 * LOGINS, 4 * LOGINS);
    Ok(hub.bind("127.0.0.1:0").await?)
}

/// Connects and serves, on the tunnel and on a port of its own. Returns that port's address.
pub(crate) async fn serve(agent: &Agent) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let direct = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = service::server();
    #[cfg(feature = "grpctunnel")]
    let server = server.add_service(dialback::grpctunnel::TunnelService::builder().routes(service::routes()).build());
    tokio::spawn(server.serve_with_incoming_shutdown(direct, std::future::pending()));
    tokio::spawn(service::server().serve_with_incoming_shutdown(agent.incoming(), std::future::pending()));
    Ok(address)
}

pub(crate) fn builder(id: &str, key: PrivateKey, host_key: PublicKey) -> AgentBuilder {
    Agent::builder(id, key).host_keys(HostKeys::public_key(host_key))
}

pub(crate) fn idle_id(number: usize) -> String {
    format!("idle-{number}")
}

/// The process itself. Ends with its standard input. Its key goes to a file, for programs that need one.
pub(crate) async fn run(key_file: &Path) -> Result<(), Failure> {
    let key = PrivateKey::load_or_generate(key_file)?;
    println!("{}", key.public_key().to_openssh());
    let mut orders = BufReader::new(stdin()).lines();
    let hub_address = next(&mut orders).await?;
    let host_key: PublicKey = next(&mut orders).await?.parse()?;

    let agent = builder(AGENT, key.clone(), host_key.clone()).connect(&hub_address).await?;
    println!("{}", serve(&agent).await?);
    let (mut idle, mut others) = (Vec::new(), Vec::new());
    #[cfg(feature = "grpctunnel")]
    let mut tunnels = Vec::new();
    while let Some(order) = orders.next_line().await? {
        #[cfg(feature = "grpctunnel")]
        if let Some(address) = order.strip_prefix("grpctunnel ") {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?;
            let carrier = dialback::tune_endpoint(endpoint).connect().await?;
            let tunnel = dialback::grpctunnel::TunnelBuilder::new(BY_GRPCTUNNEL, carrier);
            tunnels.push(tunnel.reverse(service::routes()).await?);
            continue;
        }
        if let Some((id, url)) = order.split_once(' ') {
            let other = builder(id, key.clone(), host_key.clone());
            let (url, other) = match url.split_once(" by ") {
                Some((url, proxy)) => (url, other.proxy(proxy)),
                None => (url, other),
            };
            #[cfg(feature = "websocket")]
            let other = other.tls_roots(key_file.with_file_name("authority.pem"));
            let other = other.connect(url).await?;
            serve(&other).await?;
            others.push(other);
            continue;
        }
        let from = idle.len();
        let started = Instant::now();
        let mut logins = JoinSet::new();
        for number in from..order.parse()? {
            if logins.len() == LOGINS
                && let Some(agent) = logins.join_next().await
            {
                idle.push(agent??);
            }
            let login = builder(&idle_id(number), key.clone(), host_key.clone()).connect(hub_address.clone());
            logins.spawn(async move {
                let agent = login.await?;
                tokio::spawn(service::server().serve_with_incoming_shutdown(agent.incoming(), std::future::pending()));
                Ok::<_, Failure>(agent)
            });
        }
        while let Some(agent) = logins.join_next().await {
            idle.push(agent??);
        }
        println!("{}", started.elapsed().as_nanos());
    }
    Ok(())
}

async fn next(orders: &mut Lines<BufReader<Stdin>>) -> Result<String, Failure> {
    Ok(orders.next_line().await?.ok_or("the hub's process has ended")?)
}

/// The agent's process, from outside. Dropping it ends the process.
pub(crate) struct AgentProcess {
    _child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    /// Where it can be called without a tunnel.
    pub(crate) direct: SocketAddr,
    /// What it writes and reads.
    dir: TempDir,
    /// A stock client beside it.
    ssh: Option<Child>,
}

impl AgentProcess {
    /// Starts it, and a hub for it and for so many idle agents.
    pub(crate) async fn start(idle: usize) -> Result<(Self, Hub), Failure> {
        let dir = tempfile::tempdir()?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("agent")
            .arg(dir.path().join("key"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut orders = stdin.ok_or("no standard input")?;
        let mut answers = BufReader::new(stdout.ok_or("no standard output")?).lines();

        let key: PublicKey = answer(&mut answers).await?.parse()?;
        let host_key = PrivateKey::generate();
        let known = host_key.public_key().to_openssh();
        let hub = hub(host_key, &key, idle).await?;
        orders.write_all(format!("{}\n{known}\n", hub.local_addr()).as_bytes()).await?;
        let direct = answer(&mut answers).await?.parse()?;
        hub.wait_for(AGENT).await?;
        Ok((Self { _child: child, orders, answers, direct, dir, ssh: None }, hub))
    }

    /// Connects it through an HTTP proxy, too, which has a thread of its own.
    pub(crate) async fn connect_by_proxy(&mut self, hub: &Hub) -> Result<(), Failure> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let (proxy, hub_address) = (listener.local_addr()?, hub.local_addr());
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        // Ends with the process.
        std::thread::spawn(move || {
            runtime.block_on(async {
                connect_proxy::serve(TcpListener::from_std(listener)?, |_| {}).await;
                io::Result::Ok(())
            })
        });
        self.orders.write_all(format!("{BY_PROXY} {hub_address} by http://{proxy}\n").as_bytes()).await?;
        hub.wait_for(BY_PROXY).await?;
        Ok(())
    }

    /// Connects it by WebSocket, too, without TLS and with.
    #[cfg(feature = "websocket")]
    pub(crate) async fn connect_by_websocket(&mut self, hub: &Hub) -> Result<(), Failure> {
        let mut params = rcgen::CertificateParams::new([])?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate()?)?;
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(["127.0.0.1".to_owned()])?.signed_by(&key, &authority)?;
        let [authority_file, certificate_file, key_file] =
            ["authority.pem", "certificate.pem", "key.pem"].map(|name| self.dir.path().join(name));
        std::fs::write(authority_file, authority.pem())?;
        std::fs::write(&certificate_file, certificate.pem())?;
        std::fs::write(&key_file, key.serialize_pem())?;

        let ws = hub.listen("ws://127.0.0.1:0/tunnel").await?;
        let wss = hub.listen_tls("wss://127.0.0.1:0/tunnel", certificate_file, key_file).await?;
        for (id, url) in [(BY_WEBSOCKET, ws), (BY_WEBSOCKET_TLS, wss)] {
            self.orders.write_all(format!("{id} {url}\n").as_bytes()).await?;
            hub.wait_for(id).await?;
        }
        Ok(())
    }

    /// Has a stock OpenSSH client forward its server's port, too; says whether there is one.
    pub(crate) async fn connect_by_stock_ssh(&mut self, hub: &Hub) -> Result<bool, Failure> {
        let forward = format!("/grpc-tunnel:{}", self.direct);
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-N", "-R", &forward, "-p", &hub.local_addr().port().to_string()]);
        // The hub's key is of this run, and so is the hub.
        for option in ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"] {
            ssh.args(["-o", option]);
        }
        let ssh = ssh.arg("-i").arg(self.dir.path().join("key")).stdin(Stdio::null()).kill_on_drop(true);
        match ssh.arg(format!("{BY_STOCK_SSH}@127.0.0.1")).spawn() {
            Ok(child) => self.ssh = Some(child),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        tokio::time::timeout(Duration::from_secs(10), hub.wait_for(BY_STOCK_SSH)).await??;
        Ok(true)
    }

    /// Has it open a reverse tunnel of grpctunnel, too.
    #[cfg(feature = "grpctunnel")]
    pub(crate) async fn connect_by_grpctunnel(&mut self, hub: &Hub) -> Result<(), Failure> {
        let id: dialback::AgentId = BY_GRPCTUNNEL.parse()?;
        let known = move |_: &tonic::Request<()>| Ok((id.clone(), dialback::Grant::new()));
        let service = dialback::grpctunnel::TunnelService::builder().reverse(hub).identify(known).build();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = dialback::tune_server(tonic::transport::Server::builder()).add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        self.orders.write_all(format!("grpctunnel {address}\n").as_bytes()).await?;
        hub.wait_for(BY_GRPCTUNNEL).await?;
        Ok(())
    }

    /// Connects idle agents until there are so many, and returns how long that took.
    pub(crate) async fn connect(&mut self, idle: usize) -> Result<Duration, Failure> {
        self.orders.write_all(format!("{idle}\n").as_bytes()).await?;
        Ok(Duration::from_nanos(answer(&mut self.answers).await?.parse()?))
    }
}

async fn answer(answers: &mut Lines<BufReader<ChildStdout>>) -> Result<String, Failure> {
    let line = answers.next_line().await?;
    Ok(line.ok_or_else(|| io::Error::other("the agent's process has ended; its error is above"))?)
}
