//! Tunnels of `grpctunnel.v1`, with both ends ours, over TCP on loopback.

use std::fmt::Display;
use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use dialback::grpctunnel::{
    AGENT_ID_METADATA, ForwardTunnel, ReverseTunnel, TunnelBuilder, TunnelService, TunnelServiceBuilder,
};
use dialback::{AllowedKeys, Grant, Hub, PrivateKey, tune_endpoint, tune_server};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

use super::child::{BACKOFF, tell};
use super::echo::Echo;
use super::rig::AGENT;

/// What an agent proves itself with, as a bearer token.
pub const TOKEN: &str = "a-token-that-nobody-would-guess";

/// A server of tunnels, with a hub.
pub struct Tunnels {
    pub hub: Hub,
    /// What forward tunnels call.
    pub echo: Echo,
    pub service: TunnelService,
    pub address: SocketAddr,
    pub server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Tunnels {
    pub async fn start() -> Self {
        Self::start_with(|service| service).await
    }

    pub async fn start_with(set: impl FnOnce(TunnelServiceBuilder) -> TunnelServiceBuilder) -> Self {
        Self::at("127.0.0.1:0", tune_server(Server::builder()), None, set).await
    }

    /// One that notices within 3 s that a peer is dead, with the settings that the documentation asks for.
    pub async fn brisk() -> Self {
        Self::brisk_at("127.0.0.1:0").await
    }

    pub async fn brisk_at(listen: &str) -> Self {
        let server = tune_server(Server::builder());
        let server = server.http2_keepalive_interval(Some(PINGS.0)).http2_keepalive_timeout(Some(PINGS.1));
        Self::at(listen, server, Some(PINGS.0 + PINGS.1), |service| service).await
    }

    async fn at(
        listen: &str,
        mut server: Server,
        patience: Option<Duration>,
        set: impl FnOnce(TunnelServiceBuilder) -> TunnelServiceBuilder,
    ) -> Self {
        let hub = Hub::builder(PrivateKey::generate()).authorizer(AllowedKeys::new()).bind("127.0.0.1:0").await;
        let (hub, echo) = (hub.expect("bind"), Echo::default());
        let service = set(service(&hub, &echo)).build();
        let listener = TcpListener::bind(listen).await.expect("bind");
        // What it accepts has it, too.
        #[cfg(target_os = "linux")]
        socket2::SockRef::from(&listener).set_tcp_user_timeout(patience).expect("a socket takes it");
        #[cfg(not(target_os = "linux"))]
        let _ = patience;
        let address = listener.local_addr().expect("an address");
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let serving = server.add_service(service.clone()).serve_with_incoming(incoming);
        Self { hub, echo, service, address, server: tokio::spawn(serving) }
    }

    /// A connection to the server.
    pub async fn dial(&self) -> Channel {
        let endpoint = tune_endpoint(Endpoint::try_from(format!("http://{}", self.address)).expect("a URL"));
        endpoint.connect().await.expect("connect")
    }

    /// A tunnel by which the server calls an echo.
    pub async fn reverse(&self, echo: &Echo) -> ReverseTunnel {
        let tunnel = builder(self.dial().await).reverse(Routes::new(echo.service())).await.expect("open");
        self.hub.wait_for(AGENT).await.expect("it is ready");
        tunnel
    }

    /// A tunnel by which this side calls the server's echo.
    pub async fn forward(&self) -> ForwardTunnel {
        builder(self.dial().await).forward().await.expect("open")
    }
}

/// HTTP/2's PINGs for tests that wait for them: after so long a silence, and how long an answer may take.
pub const PINGS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

/// A connection of an agent's with the settings that the documentation asks for.
pub fn brisk_endpoint(address: impl Display) -> Endpoint {
    let endpoint = tune_endpoint(Endpoint::try_from(format!("http://{address}")).expect("a URL"));
    endpoint.http2_keep_alive_interval(PINGS.0).keep_alive_timeout(PINGS.1).connect_timeout(PINGS.1)
}

/// A tunnel over such a connection, with short waits before it is opened again.
pub fn brisk_builder(address: impl Display) -> TunnelBuilder {
    builder(brisk_endpoint(address).connect_lazy()).backoff(BACKOFF.0, BACKOFF.1, BACKOFF.2)
}

/// A tunnel over a connection with the usual settings, which does not take a machine that has too much to do for a dead one.
pub fn patient_builder(address: impl Display) -> TunnelBuilder {
    let endpoint = tune_endpoint(Endpoint::try_from(format!("http://{address}")).expect("a URL"));
    builder(endpoint.connect_lazy()).backoff(BACKOFF.0, BACKOFF.1, BACKOFF.2)
}

/// Acts as an agent, until it is stopped.
pub async fn be_agent(hub: &str) {
    serve_by(brisk_builder(hub)).await;
}

/// Serves an echo by this tunnel, until it is stopped.
pub async fn serve_by(tunnel: TunnelBuilder) {
    let tunnel = tunnel.reverse(Routes::new(Echo::default().service())).await.expect("open");
    eprintln!("ready");
    pending::<()>().await;
    drop(tunnel);
}

/// Acts as a hub, whose echo is called by forward tunnels, until it is stopped.
pub async fn be_hub(listen: &str) {
    let tunnels = Tunnels::brisk_at(listen).await;
    tell(&tunnels.hub, tunnels.address).await;
}

/// A service for tunnels: those of who has the token are of who they say, or else of [`AGENT`].
pub fn service(hub: &Hub, echo: &Echo) -> TunnelServiceBuilder {
    TunnelService::builder().reverse(hub).routes(Routes::new(echo.service())).identify(|carrier| {
        match carrier.metadata().get("authorization") {
            Some(token) if *token == format!("Bearer {TOKEN}") => {
                let id = carrier.metadata().get(AGENT_ID_METADATA).and_then(|id| id.to_str().ok()).unwrap_or(AGENT);
                Ok((id.parse().expect("an id"), Grant::new().label("site", "lab")))
            }
            _ => Err(Status::unauthenticated("no such token")),
        }
    })
}

/// A tunnel that shows the token.
pub fn builder<C>(carrier: C) -> TunnelBuilder
where
    C: tonic::client::GrpcService<tonic::body::Body> + Clone + Send + Sync + 'static,
    C::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    C::Future: Send,
    C::ResponseBody: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    <C::ResponseBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {TOKEN}").parse().expect("a value"));
    TunnelBuilder::new(AGENT, carrier).metadata(metadata)
}
