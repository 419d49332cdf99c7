//! The service of the examples: what a laptop has to say.

use std::pin::Pin;

use dialback::TunnelConnectInfo;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// Generated from `proto/greeter.proto`.
#[allow(unreachable_pub, missing_docs, clippy::use_self)]
pub(crate) mod pb {
    include!("../../proto/gen/dialback.greeter.v1.rs");
}

use pb::greeter_client::GreeterClient;
use pb::greeter_server::{Greeter, GreeterServer};
use pb::{HelloReply, HelloRequest};

type Replies = Pin<Box<dyn Stream<Item = Result<HelloReply, Status>> + Send>>;

/// Greets in the name of one machine.
#[derive(Debug)]
pub(crate) struct Machine(String);

impl Machine {
    pub(crate) fn service(name: impl Into<String>) -> GreeterServer<Self> {
        GreeterServer::new(Self(name.into()))
    }

    /// The tunnel's [`TunnelConnectInfo`] tells who is calling; on the hub, the id that the agent has proved.
    fn greet<T>(&self, request: &Request<T>, name: &str) -> HelloReply {
        let tunnel = request.extensions().get::<TunnelConnectInfo>();
        let through =
            tunnel.map_or_else(String::new, |t| format!(", through tunnel {} of {}", t.tunnel_id, t.agent_id));
        HelloReply { message: format!("Hello {name}, this is {}{through}", self.0) }
    }
}

#[tonic::async_trait]
impl Greeter for Machine {
    type LotsOfRepliesStream = Replies;
    type ChatStream = Replies;

    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Ok(Response::new(self.greet(&request, &request.get_ref().name)))
    }

    async fn lots_of_replies(&self, request: Request<HelloRequest>) -> Result<Response<Replies>, Status> {
        let name = request.into_inner().name;
        let replies = (1..=3).map(move |n| Ok(HelloReply { message: format!("Hello {name}, number {n}") }));
        Ok(Response::new(Box::pin(tokio_stream::iter(replies))))
    }

    async fn chat(&self, request: Request<Streaming<HelloRequest>>) -> Result<Response<Replies>, Status> {
        let replies =
            request.into_inner().map(|message| Ok(HelloReply { message: format!("Hello {}", message?.name) }));
        Ok(Response::new(Box::pin(replies)))
    }
}

/// The error type of the examples.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One call of each kind, printed as it happens. Works over a [`dialback::TunnelChannel`] as over any tonic channel.
#[allow(dead_code)] // the example `laptop` only answers
pub(crate) async fn converse(channel: dialback::TunnelChannel) -> Result<(), Failure> {
    let mut greeter = GreeterClient::new(channel);
    let request = |name: &str| HelloRequest { name: name.to_owned() };

    let reply = greeter.say_hello(request("cloud")).await?.into_inner();
    println!("  unary             <- {}", reply.message);

    let mut replies = greeter.lots_of_replies(request("cloud")).await?.into_inner();
    while let Some(reply) = replies.message().await? {
        println!("  server streaming  <- {}", reply.message);
    }

    let names = tokio_stream::iter(["Ada", "Grace"].map(request));
    let mut replies = greeter.chat(names).await?.into_inner();
    while let Some(reply) = replies.message().await? {
        println!("  bidirectional     <- {}", reply.message);
    }
    Ok(())
}
