//! A carrier with its type forgotten, and what goes out by it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::Stream;
use http_body::Body as HttpBody;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::{Request, Response, Status, Streaming};

use super::BoxError;
use crate::grpctunnel::end::{End, Frames, Protocol};
use crate::grpctunnel::proto::tunnel_service_client::TunnelServiceClient;
use crate::grpctunnel::proto::{ClientToServer, ServerToClient};
use crate::grpctunnel::protocol;

/// What a peer answers to whoever opens a tunnel.
type Opening<T> = Result<Response<Streaming<T>>, Status>;

/// A carrier, its type forgotten.
#[tonic::async_trait]
pub(super) trait Dial: Send + Sync + 'static {
    async fn forward(&self, said: Request<Late<protocol::Client>>) -> Opening<ServerToClient>;
    async fn reverse(&self, said: Request<Late<protocol::Server>>) -> Opening<ClientToServer>;
}

pub(super) struct Over<C>(pub(super) C);

#[tonic::async_trait]
impl<C> Dial for Over<C>
where
    C: GrpcService<Body> + Clone + Send + Sync + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
    C::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <C::ResponseBody as HttpBody>::Error: Into<BoxError> + Send,
{
    async fn forward(&self, said: Request<Late<protocol::Client>>) -> Opening<ServerToClient> {
        TunnelServiceClient::new(self.0.clone()).open_tunnel(said).await
    }

    async fn reverse(&self, said: Request<Late<protocol::Server>>) -> Opening<ClientToServer> {
        TunnelServiceClient::new(self.0.clone()).open_reverse_tunnel(said).await
    }
}

/// What this side says on a carrier, before its state is known: that takes the peer's answer.
pub(super) struct Late<P: Protocol> {
    end: oneshot::Receiver<Arc<End<P>>>,
    frames: Option<Frames<P>>,
}

impl<P: Protocol> Late<P> {
    pub(super) fn new() -> (oneshot::Sender<Arc<End<P>>>, Self) {
        let (give, end) = oneshot::channel();
        (give, Self { end, frames: None })
    }
}

impl<P: Protocol> Stream for Late<P> {
    type Item = P::Out;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<P::Out>> {
        if self.frames.is_none() {
            match ready!(Pin::new(&mut self.end).poll(cx)) {
                Ok(end) => self.frames = Some(Frames::of(&end)),
                Err(_) => return Poll::Ready(None),
            }
        }
        match &mut self.frames {
            Some(frames) => Pin::new(frames).poll_next(cx),
            None => Poll::Ready(None),
        }
    }
}
