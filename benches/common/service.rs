//! The service that is called: as cheap as a gRPC service can be, so that the path is what is measured.

use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status, Streaming};

use pb::Payload;
use pb::echo_server::{Echo, EchoServer};

/// What `proto/echo.proto` says.
#[allow(clippy::use_self, unreachable_pub)]
pub(crate) mod pb {
    include!("../../proto/gen/dialback.echo.v1.rs");
}

/// More than any case sends.
const MAX_MESSAGE: usize = 4 << 20;

struct Service;

/// The server of every path.
pub(crate) fn server() -> Router {
    dialback::tune_server(Server::builder())
        .add_service(EchoServer::new(Service).max_decoding_message_size(MAX_MESSAGE))
}

/// The same for a tunnel that is served without one.
#[cfg(feature = "grpctunnel")]
pub(crate) fn routes() -> tonic::service::Routes {
    tonic::service::Routes::new(EchoServer::new(Service).max_decoding_message_size(MAX_MESSAGE))
}

/// What to ask Download for: a number of messages of a size.
pub(crate) fn order(count: u64, size: usize) -> Payload {
    Payload { data: [count.to_be_bytes(), (size as u64).to_be_bytes()].concat() }
}

fn read_order(order: &[u8]) -> Option<(u64, usize)> {
    let (count, size) = order.split_first_chunk::<8>()?;
    let size = u64::from_be_bytes(size.try_into().ok()?);
    Some((u64::from_be_bytes(*count), usize::try_from(size).ok().filter(|size| *size <= MAX_MESSAGE)?))
}

/// Messages that are made as they are taken.
pub(crate) fn messages(count: u64, size: usize) -> impl Stream<Item = Payload> + Send {
    let data = vec![0x5a; size];
    tokio_stream::iter(0..count).map(move |_| Payload { data: data.clone() })
}

type Messages = std::pin::Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;

#[tonic::async_trait]
impl Echo for Service {
    type DownloadStream = Messages;
    type ChatStream = Messages;

    async fn unary(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    async fn download(&self, request: Request<Payload>) -> Result<Response<Messages>, Status> {
        let order = read_order(&request.get_ref().data);
        let (count, size) = order.ok_or_else(|| Status::invalid_argument("not a count and a size"))?;
        Ok(Response::new(Box::pin(messages(count, size).map(Ok))))
    }

    async fn upload(&self, request: Request<Streaming<Payload>>) -> Result<Response<Payload>, Status> {
        let mut stream = request.into_inner();
        let mut bytes = 0;
        while let Some(message) = stream.message().await? {
            bytes += message.data.len() as u64;
        }
        Ok(Response::new(Payload { data: bytes.to_be_bytes().to_vec() }))
    }

    async fn chat(&self, request: Request<Streaming<Payload>>) -> Result<Response<Messages>, Status> {
        Ok(Response::new(Box::pin(request.into_inner())))
    }
}
