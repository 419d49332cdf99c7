//! The ways to call an Echo through a tunnel.

use std::error::Error;

use dialback::{Hub, TunnelChannel};
use http::{Request, Response};
use tokio::net::TcpListener;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tower::util::BoxCloneService;
use tower::{Service, ServiceExt};

use crate::common::echo::Echo;
use crate::common::echo::pb::echo_client::EchoClient;
use crate::common::openssh::Ssh;
use crate::common::peers::{Peer, require_program};
use crate::common::proxy::Way::Both;
use crate::common::rig::{AGENT, Over, Rig, RigBuilder};

/// How a call gets to its Echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The hub's own connection, which all its calls share.
    Shared,
    /// A tonic `Channel` on a connector, with a channel of its own: the article's way.
    Dialled,
    /// From the agent to the hub.
    ToHub,
    /// As `Shared`, over a network that delivers every byte in a packet of its own.
    Chopped,
    /// As `Shared`, over another carrier.
    Over(Over),
    /// As `Shared`, to an ordinary server behind a stock `ssh -R`.
    StockSsh,
    /// An ordinary tonic client at the hub's gateway.
    #[cfg(feature = "gateway")]
    Gateway,
}

/// A stock OpenSSH client as the agent, and an ordinary server on loopback beside it.
struct Stock {
    hub: Hub,
    echo: Echo,
    _ssh: (Ssh, Peer),
}

impl Stock {
    async fn start() -> Self {
        let ssh = Ssh::new().expect("ssh, which `Way::can_run` has looked for");
        let hub = ssh.hub().bind("127.0.0.1:0").await.expect("bind");
        let echo = Echo::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("an address").port();
        let server = dialback::tune_server(Server::builder()).add_service(echo.service());
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(server.serve_with_incoming(incoming));
        let forward = format!("/grpc-tunnel:127.0.0.1:{port}");
        let peer = Peer::start(&mut ssh.command(&hub, AGENT, &["-N", "-R", &forward]));
        hub.wait_for(AGENT).await.expect("an id");
        Self { hub, echo, _ssh: (ssh, peer) }
    }
}

/// Any channel, so that a promise is compiled once.
pub type AnyChannel = BoxCloneService<Request<Body>, Response<Body>, Status>;

/// A rig, or what stands for one, and a way to call through it.
pub struct Line {
    rig: Option<Rig>,
    stock: Option<Stock>,
    pub client: EchoClient<AnyChannel>,
    way: Way,
    #[cfg(feature = "gateway")]
    _gateway: Option<dialback::gateway::Gateway>,
}

impl Way {
    /// Whether what it needs is there; if not, the test is to be skipped.
    pub fn can_run(self) -> bool {
        self != Self::StockSsh || (require_program("ssh") && require_program("ssh-keygen"))
    }

    pub async fn start(self) -> Line {
        match self {
            Self::Chopped => self.start_with(Rig::builder().proxy()).await,
            Self::Over(carrier) => self.start_with(Rig::builder().over(carrier)).await,
            _ => self.start_with(Rig::builder()).await,
        }
    }

    pub async fn start_with(self, builder: RigBuilder) -> Line {
        if self == Self::StockSsh {
            let stock = Stock::start().await;
            let client = EchoClient::new(own(stock.hub.channel(AGENT).expect("an id")));
            return Line {
                client: client.max_decoding_message_size(64 << 20),
                rig: None,
                stock: Some(stock),
                way: self,
                #[cfg(feature = "gateway")]
                _gateway: None,
            };
        }
        let rig = builder.start().await;
        if self == Self::Chopped {
            rig.proxy().set(Both, |link| link.chop = Some(1));
        }
        #[cfg(feature = "gateway")]
        if self == Self::Gateway {
            let gateway =
                dialback::gateway::Gateway::builder(&rig.hub).bind("127.0.0.1:0").await.expect("bind gateway");
            let client = EchoClient::new(tonics(crate::common::gateway::channel(&gateway).await));
            let client = client.max_decoding_message_size(64 << 20);
            return Line { rig: Some(rig), stock: None, client, way: self, _gateway: Some(gateway) };
        }
        let channel = match self {
            Self::ToHub => own(rig.agent.channel()),
            Self::Dialled => tonics(rig.dial().await),
            _ => own(rig.hub.channel(AGENT).expect("an id")),
        };
        Line {
            client: EchoClient::new(channel).max_decoding_message_size(64 << 20),
            rig: Some(rig),
            stock: None,
            way: self,
            #[cfg(feature = "gateway")]
            _gateway: None,
        }
    }

    /// Whether tonic's own channel makes the calls.
    pub fn is_tonics(self) -> bool {
        self == Self::Dialled || self.hops() > 1
    }

    /// How many HTTP/2 connections a call goes through.
    pub fn hops(self) -> usize {
        match self {
            #[cfg(feature = "gateway")]
            Self::Gateway => 2,
            _ => 1,
        }
    }

    /// How many bytes a promise may send: each costs a packet where they travel alone.
    pub fn bytes(self, wanted: usize) -> usize {
        if self == Self::Chopped { wanted.min(100) } else { wanted }
    }
}

impl Line {
    /// The service that is called.
    pub fn echo(&self) -> &Echo {
        match (self.way, &self.stock) {
            (_, Some(stock)) => &stock.echo,
            (Way::ToHub, _) => &self.rig().hub_echo,
            _ => &self.rig().echo,
        }
    }

    /// The rig, the client, and what else the way needs as long as it is used.
    pub fn into_parts(self) -> (Rig, EchoClient<AnyChannel>, impl Sized) {
        #[cfg(feature = "gateway")]
        let rest = self._gateway;
        #[cfg(not(feature = "gateway"))]
        let rest = ();
        (self.rig.expect("a way with an agent of ours"), self.client, rest)
    }

    /// The hub and the agent, where the agent is ours.
    pub fn rig(&self) -> &Rig {
        self.rig.as_ref().expect("a way with an agent of ours")
    }
}

fn own(channel: TunnelChannel) -> AnyChannel {
    any(channel)
}

fn tonics(channel: Channel) -> AnyChannel {
    any(channel)
}

fn any<S, B>(channel: S) -> AnyChannel
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: Send,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    BoxCloneService::new(
        channel.map_response(|response| response.map(Body::new)).map_err(|error| Status::from_error(error.into())),
    )
}
