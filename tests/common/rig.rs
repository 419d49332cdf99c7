//! A hub and an agent that serves [`Echo`], over real SSH and TCP on loopback.

use std::time::Duration;

use dialback::{Agent, AgentBuilder, AllowedKeys, HostKeys, Hub, HubBuilder, PrivateKey};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint, Server};

use super::child::BACKOFF;
use super::echo::Echo;
use super::echo::pb::echo_client::EchoClient;
use super::egress::{Egress, Speaks};
use super::proxy::Proxy;

/// The agent of every rig.
pub const AGENT: &str = "laptop-1";

/// No wait in a test is longer than this; one that is has failed.
pub const SOON: Duration = Duration::from_secs(10);

/// Keepalive for tests that wait for it: a dead peer is noticed within 4 s.
pub const BRISK: (Duration, usize) = (Duration::from_secs(1), 3);

/// Builds a [`Rig`].
pub struct RigBuilder {
    hub: HubBuilder,
    agent: AgentBuilder,
    proxy: Option<Between>,
    over: Over,
}

/// What an agent dials out over. [`RigBuilder::proxy`] is for TCP alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Tcp,
    /// TCP, through a proxy on the way out.
    Through(Speaks),
    /// A Unix socket.
    Unix,
    /// Streams that both ends bring themselves.
    Own,
    /// A WebSocket, without TLS and with.
    #[cfg(feature = "websocket")]
    WebSocket,
    #[cfg(feature = "websocket")]
    WebSocketTls,
}

/// What lies between hub and agent.
struct Between {
    buffers: Option<u32>,
    set: fn(&Proxy),
}

/// See the module's text. Dropping it ends everything.
pub struct Rig {
    pub hub: Hub,
    pub agent: Agent,
    /// What the agent serves.
    pub echo: Echo,
    /// What the hub serves.
    pub hub_echo: Echo,
    /// What lies between them, if it was asked for.
    pub proxy: Option<Proxy>,
    pub agent_server: JoinHandle<Result<(), tonic::transport::Error>>,
    pub hub_server: JoinHandle<Result<(), tonic::transport::Error>>,
    _egress: Option<Egress>,
    _dir: tempfile::TempDir,
}

/// A pipe in memory, whose other end the hub gets.
pub async fn dial_own(hub: Hub) -> std::io::Result<tokio::io::DuplexStream> {
    let (agents, hubs) = tokio::io::duplex(64 << 10);
    hub.accept_stream(hubs, None).await;
    Ok(agents)
}

impl RigBuilder {
    pub fn hub(mut self, set: impl FnOnce(HubBuilder) -> HubBuilder) -> Self {
        self.hub = set(self.hub);
        self
    }

    pub fn agent(mut self, set: impl FnOnce(AgentBuilder) -> AgentBuilder) -> Self {
        self.agent = set(self.agent);
        self
    }

    /// Puts a proxy between agent and hub.
    pub fn proxy(self) -> Self {
        self.proxy_with(None, |_| {})
    }

    /// The same, with socket buffers of so many bytes, and set up before the agent dials.
    pub fn proxy_with(mut self, buffers: Option<u32>, set: fn(&Proxy)) -> Self {
        self.proxy = Some(Between { buffers, set });
        self
    }

    /// Another carrier than TCP.
    pub fn over(mut self, carrier: Over) -> Self {
        self.over = carrier;
        self
    }

    /// Short waits before a reconnect.
    pub fn eager(self) -> Self {
        self.agent(|agent| agent.backoff(BACKOFF.0, BACKOFF.1, BACKOFF.2))
    }

    /// Short keepalives on both sides.
    pub fn brisk(self) -> Self {
        self.hub(|hub| hub.keepalive(BRISK.0, BRISK.1)).agent(|agent| agent.keepalive(BRISK.0, BRISK.1))
    }

    pub async fn start(self) -> Rig {
        let hub = self.hub.bind("127.0.0.1:0").await.expect("bind hub");
        let proxy = match self.proxy {
            Some(Between { buffers, set }) => {
                let proxy = match buffers {
                    Some(bytes) => Proxy::with_buffers(hub.local_addr(), bytes).await,
                    None => Proxy::to(hub.local_addr()).await,
                };
                set(&proxy);
                Some(proxy)
            }
            None => None,
        };
        let address = proxy.as_ref().map_or(hub.local_addr(), Proxy::address);
        let dir = tempfile::tempdir().expect("a directory");
        let mut egress = None;
        let agent = match self.over {
            Over::Tcp => self.agent.connect(address.to_string()).await,
            Over::Through(speaks) => {
                let way_out = egress.insert(Egress::start(speaks).await);
                let agent = self.agent.proxy(way_out.url()).connect(address.to_string()).await;
                assert!(way_out.carried() > 0, "the agent went another way");
                agent
            }
            Over::Unix => {
                let url = format!("unix:{}", dir.path().join("hub").display());
                self.agent.connect(hub.listen(&url).await.expect("listen")).await
            }
            Over::Own => {
                let hub = hub.clone();
                self.agent.connect_with("hub", move || dial_own(hub.clone())).await
            }
            #[cfg(feature = "websocket")]
            Over::WebSocket => self.agent.connect(hub.listen("ws://127.0.0.1:0/tunnel").await.expect("listen")).await,
            #[cfg(feature = "websocket")]
            Over::WebSocketTls => {
                let files = super::tls::Certificates::of(dir.path(), &["127.0.0.1"]);
                let url = hub.listen_tls("wss://127.0.0.1:0/tunnel", files.certificate, files.key).await;
                self.agent.tls_roots(files.authority).connect(url.expect("listen")).await
            }
        };
        let agent = agent.expect("connect agent");
        let (echo, hub_echo) = (Echo::default(), Echo::default());
        let agent_server = serve(&echo, agent.incoming());
        let hub_server = serve(&hub_echo, hub.incoming());
        hub.wait_for(AGENT).await.expect("agent is ready");
        Rig { hub, agent, echo, hub_echo, proxy, agent_server, hub_server, _egress: egress, _dir: dir }
    }
}

/// Serves an echo on what comes in, until that ends.
pub fn serve(echo: &Echo, incoming: dialback::Incoming) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let server = dialback::tune_server(Server::builder()).add_service(echo.service());
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, std::future::pending()))
}

impl Rig {
    /// A hub and an agent that know each other's keys.
    pub fn builder() -> RigBuilder {
        let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
        let known = HostKeys::public_key(host.public_key());
        let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).expect("an id");
        RigBuilder {
            hub: Hub::builder(host).authorizer(allowed).rejection_time(Duration::from_millis(10)),
            agent: Agent::builder(AGENT, key).host_keys(known),
            proxy: None,
            over: Over::Tcp,
        }
    }

    pub async fn start() -> Self {
        Self::builder().start().await
    }

    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("a rig with a proxy")
    }

    /// A client on the hub's shared connection.
    pub fn client(&self) -> EchoClient<dialback::TunnelChannel> {
        EchoClient::new(self.hub.channel(AGENT).expect("an id")).max_decoding_message_size(64 << 20)
    }

    /// A client on a channel of its own, as the article makes it.
    pub async fn dialled(&self) -> EchoClient<Channel> {
        super::echo::client(self.dial().await)
    }

    /// The channel under [`Rig::dialled`].
    pub async fn dial(&self) -> Channel {
        let tunnel = self.hub.wait_for(AGENT).await.expect("agent is ready");
        let endpoint = dialback::tune_endpoint(Endpoint::from_static("http://laptop-1"));
        endpoint.connect_with_connector(tunnel.connector()).await.expect("dial the agent")
    }
}

/// Runs a future that has to end soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {SOON:?}"),
    }
}
