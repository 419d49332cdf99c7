//! The same for tunnels of `grpctunnel`, where calls come as they are and not on connections.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use tokio::runtime::Handle;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower_service::Service;

use super::Forwards;
use super::local::Local;
use crate::http2::{Hold, ReceivedBody, ask};

impl Forwards {
    /// The servers for [`TunnelBuilder::reverse`](crate::grpctunnel::TunnelBuilder::reverse), in place of
    /// [`serve`](Self::serve). The tunnel has bounds of its own on what waits for slow readers.
    pub fn routes(&self) -> Routes {
        Routes::default().into_axum_router().fallback_service(PassOn(self.clone())).into()
    }

    async fn answer<B>(self, request: Request<B>) -> Result<Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (mut head, body) = request.into_parts();
        let local = self.find(&mut head)?;
        let (sender, lease) = local.place().await.map_err(|error| {
            tracing::warn!(to = %local.given, error = %error, "call not forwarded");
            Status::unavailable(error)
        })?;
        let asked = ask(lease, sender, head, body, &Handle::current()).await;
        let (response, hold) = asked.map_err(|error| local.failed(error))?;
        Ok(response.map(|stream| Body::new(Answer { body: ReceivedBody::new(stream), _hold: hold, local })))
    }
}

#[derive(Clone)]
struct PassOn(Forwards);

impl<B> Service<Request<B>> for PassOn
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answered = self.0.clone().answer(request);
        Box::pin(async { Ok(answered.await.unwrap_or_else(Status::into_http)) })
    }
}

/// What a local server answers. Dropping it before its end ends the call there.
struct Answer {
    body: ReceivedBody,
    _hold: Hold,
    local: Arc<Local>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        Pin::new(&mut this.body).poll_frame(cx).map_err(|error| this.local.failed(error))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
