//! The ways to call an Echo through a tunnel.

use std::error::Error;

use dialback::TunnelChannel;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::util::BoxCloneService;
use tower::{Service, ServiceExt};

use crate::common::echo::Echo;
use crate::common::echo::pb::echo_client::EchoClient;
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
    /// As `Shared`, over a Unix socket.
    Unix,
    /// As `Shared`, over streams that both ends bring.
    Own,
    /// As `Shared`, over a WebSocket, without TLS and with.
    #[cfg(feature = "websocket")]
    WebSocket,
    #[cfg(feature = "websocket")]
    WebSocketTls,
    /// An ordinary tonic client at the hub's gateway.
    #[cfg(feature = "gateway")]
    Gateway,
}

/// Any channel, so that a promise is compiled once.
pub type AnyChannel = BoxCloneService<Request<Body>, Response<Body>, Status>;

/// A rig and a way to call through it.
pub struct Line {
    pub rig: Rig,
    pub client: EchoClient<AnyChannel>,
    way: Way,
    #[cfg(feature = "gateway")]
    _gateway: Option<dialback::gateway::Gateway>,
}

impl Way {
    pub async fn start(self) -> Line {
        match self {
            Self::Chopped => self.start_with(Rig::builder().proxy()).await,
            Self::Unix => self.start_with(Rig::builder().over(Over::Unix)).await,
            Self::Own => self.start_with(Rig::builder().over(Over::Own)).await,
            #[cfg(feature = "websocket")]
            Self::WebSocket => self.start_with(Rig::builder().over(Over::WebSocket)).await,
            #[cfg(feature = "websocket")]
            Self::WebSocketTls => self.start_with(Rig::builder().over(Over::WebSocketTls)).await,
            _ => self.start_with(Rig::builder()).await,
        }
    }

    pub async fn start_with(self, builder: RigBuilder) -> Line {
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
            return Line { rig, client, way: self, _gateway: Some(gateway) };
        }
        let channel = match self {
            Self::ToHub => own(rig.agent.channel()),
            Self::Dialled => tonics(rig.dial().await),
            _ => own(rig.hub.channel(AGENT).expect("an id")),
        };
        Line {
            client: EchoClient::new(channel).max_decoding_message_size(64 << 20),
            rig,
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
        match self.way {
            Way::ToHub => &self.rig.hub_echo,
            _ => &self.rig.echo,
        }
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
