//! Tunnels of `grpctunnel.v1`, with both ends ours, over TCP on loopback.

use std::net::SocketAddr;

use dialback::grpctunnel::{ForwardTunnel, ReverseTunnel, TunnelBuilder, TunnelService, TunnelServiceBuilder};
use dialback::{AllowedKeys, Grant, Hub, PrivateKey, tune_endpoint, tune_server};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

use super::echo::Echo;
use super::rig::AGENT;

/// What an agent proves itself with, as a bearer token.
pub const TOKEN: &str = "a-token-that-nobody-would-guess";

/// A server of tunnels, with a hub.
pub struct Tunnels {
    pub hub: Hub,
    /// What forward tunnels call.
    pub echo: Echo,
    pub address: SocketAddr,
    pub server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Tunnels {
    pub async fn start() -> Self {
        Self::start_with(|service| service).await
    }

    pub async fn start_with(set: impl FnOnce(TunnelServiceBuilder) -> TunnelServiceBuilder) -> Self {
        let hub = Hub::builder(PrivateKey::generate()).authorizer(AllowedKeys::new()).bind("127.0.0.1:0").await;
        let (hub, echo) = (hub.expect("bind"), Echo::default());
        let service = set(service(&hub, &echo)).build();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = tune_server(Server::builder()).add_service(service).serve_with_incoming(incoming);
        Self { hub, echo, address, server: tokio::spawn(server) }
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

/// A service for tunnels: those of who has the token are of [`AGENT`].
pub fn service(hub: &Hub, echo: &Echo) -> TunnelServiceBuilder {
    TunnelService::builder().reverse(hub).routes(Routes::new(echo.service())).identify(|carrier| {
        match carrier.metadata().get("authorization") {
            Some(token) if *token == format!("Bearer {TOKEN}") => {
                Ok((AGENT.parse().expect("an id"), Grant::new().label("site", "lab")))
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
