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
    /// As `Shared`, to an ordinary server that an agent stands beside.
    #[cfg(feature = "gateway")]
    Beside,
    /// By a tunnel that is a gRPC call: from its server to who opened it, the other way, and by a tunnel in a tunnel.
    #[cfg(feature = "grpctunnel")]
    Reverse,
    #[cfg(feature = "grpctunnel")]
    Forward,
    #[cfg(feature = "grpctunnel")]
    Nested,
    /// As `Reverse`, by the hub's gateway.
    #[cfg(all(feature = "gateway", feature = "grpctunnel"))]
    ReverseGateway,
}

/// What stands for a rig.
struct Other {
    echo: Echo,
    _rest: Box<dyn std::any::Any + Send + Sync>,
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
    other: Option<Other>,
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
            let channel = own(stock.hub.channel(AGENT).expect("an id"));
            return self.line(channel, stock.echo.clone(), stock);
        }
        #[cfg(feature = "gateway")]
        if self == Self::Beside {
            let (hub, echo, rest) = crate::common::forward::start().await;
            let channel = own(hub.channel(AGENT).expect("an id"));
            return self.line(channel, echo, (hub, rest));
        }
        #[cfg(feature = "grpctunnel")]
        if let Some(line) = self.start_grpctunnel().await {
            return line;
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
            return Line { rig: Some(rig), other: None, client, way: self, _gateway: Some(gateway) };
        }
        let channel = match self {
            Self::ToHub => own(rig.agent.channel()),
            Self::Dialled => tonics(rig.dial().await),
            _ => own(rig.hub.channel(AGENT).expect("an id")),
        };
        Line {
            client: EchoClient::new(channel).max_decoding_message_size(64 << 20),
            rig: Some(rig),
            other: None,
            way: self,
            #[cfg(feature = "gateway")]
            _gateway: None,
        }
    }

    /// Another echo than a rig's, with what it needs as long as it is called.
    fn line(self, channel: AnyChannel, echo: Echo, rest: impl Send + Sync + 'static) -> Line {
        Line {
            client: EchoClient::new(channel).max_decoding_message_size(64 << 20),
            rig: None,
            other: Some(Other { echo, _rest: Box::new(rest) }),
            way: self,
            #[cfg(feature = "gateway")]
            _gateway: None,
        }
    }

    #[cfg(feature = "grpctunnel")]
    async fn start_grpctunnel(self) -> Option<Line> {
        use crate::common::tunnels::{Tunnels, builder, service};

        let echo = Echo::default();
        Some(match self {
            Self::Reverse => {
                let tunnels = Tunnels::start().await;
                let tunnel = tunnels.reverse(&echo).await;
                let channel = own(tunnels.hub.channel(AGENT).expect("an id"));
                self.line(channel, echo, (tunnels, tunnel))
            }
            #[cfg(feature = "gateway")]
            Self::ReverseGateway => {
                let tunnels = Tunnels::start().await;
                let tunnel = tunnels.reverse(&echo).await;
                let gateway = dialback::gateway::Gateway::builder(&tunnels.hub).bind("127.0.0.1:0").await;
                let gateway = gateway.expect("bind the gateway");
                let channel = tonics(crate::common::gateway::channel(&gateway).await);
                self.line(channel, echo, (tunnels, tunnel, gateway))
            }
            Self::Forward => {
                let tunnels = Tunnels::start().await;
                let tunnel = tunnels.forward().await;
                self.line(own(tunnel.channel()), tunnels.echo.clone(), (tunnels, tunnel))
            }
            // A service of tunnels that is called by a tunnel, which is opened the other way.
            Self::Nested => {
                let tunnels = Tunnels::start().await;
                let inner = service(&tunnels.hub, &echo).build();
                let outer = builder(tunnels.dial().await).reverse(tonic::service::Routes::new(inner)).await;
                let outer = outer.expect("open the outer one");
                tunnels.hub.wait_for(AGENT).await.expect("it is ready");
                let carrier = tunnels.hub.channel(AGENT).expect("an id");
                let tunnel = builder(carrier).forward().await.expect("open the inner one");
                self.line(own(tunnel.channel()), echo, (tunnels, outer, tunnel))
            }
            _ => return None,
        })
    }

    /// Whether tonic's own channel makes the calls.
    pub fn is_tonics(self) -> bool {
        match self {
            #[cfg(feature = "gateway")]
            Self::Beside => false,
            _ => self == Self::Dialled || self.hops() > 1,
        }
    }

    /// How many HTTP/2 connections a call goes through.
    pub fn hops(self) -> usize {
        match self {
            #[cfg(feature = "gateway")]
            Self::Gateway | Self::Beside => 2,
            #[cfg(all(feature = "gateway", feature = "grpctunnel"))]
            Self::ReverseGateway => 2,
            _ => 1,
        }
    }

    /// How much a call's writer is at least ahead of its reader.
    pub fn window(self) -> usize {
        if self.is_grpctunnel() { 64 << 10 } else { dialback::tuning::HTTP2_STREAM_WINDOW as usize }
    }

    /// How much it may be ahead.
    pub fn window_held(self) -> usize {
        // A gateway's client has its own.
        if self.hops() > 1 { dialback::tuning::HTTP2_STREAM_WINDOW as usize } else { self.window() }
    }

    /// Binary metadata. What is no UTF-8 cannot be said in `grpctunnel.v1`.
    pub fn blob(self) -> &'static [u8] {
        if self.is_grpctunnel() { &[0, 0xc3, 0xbf, 10, 13] } else { &[0, 255, 10, 13] }
    }

    fn is_grpctunnel(self) -> bool {
        match self {
            #[cfg(feature = "grpctunnel")]
            Self::Reverse | Self::Forward | Self::Nested => true,
            #[cfg(all(feature = "gateway", feature = "grpctunnel"))]
            Self::ReverseGateway => true,
            _ => false,
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
        match (self.way, &self.other) {
            (_, Some(other)) => &other.echo,
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
