//! The same for tunnels of `grpctunnel`, where calls come as they are and not on connections.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower_service::Service;

use super::Forwards;
use super::local::Local;
use crate::http2::{Gathered, Hold, Relayed, SharedBody, SharedSource, ask, stalled};

impl Forwards {
    /// The servers for [`TunnelBuilder::reverse`](crate::grpctunnel::TunnelBuilder::reverse), in place of
    /// [`serve`](Self::serve), with the same bounds on what waits for slow readers.
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
        let (head, stream) = response.into_parts();
        let kept = vec![self.0.held.clone(), hold.held().clone()];
        let source = SharedSource::new(Gathered::new(stream, kept));
        let taken = source.clone();
        // As long as it likes: a caller may stop to think.
        let taking = tokio::spawn(async move { taken.taking(Duration::MAX, &self.0.held).await });
        let answer = Answer { body: SharedBody(source), taking: Some(taking), _hold: hold, local };
        Ok(Response::from_parts(head, Body::new(answer)))
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
    body: SharedBody,
    /// Takes what comes, however slowly it is read; ends when that fails.
    taking: Option<JoinHandle<Relayed>>,
    _hold: Hold,
    local: Arc<Local>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        // What had come before a failure is there after it.
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(|never| match never {})));
        }
        let Some(taking) = &mut this.taking else { return Poll::Ready(None) };
        let ended = ready!(Pin::new(taking).poll(cx));
        this.taking = None;
        Poll::Ready(Some(Err(match ended {
            Ok(Relayed::SourceFailed(error)) => this.local.failed(error),
            Ok(Relayed::Stalled) => stalled("the hub", Duration::MAX),
            Ok(Relayed::Complete | Relayed::SinkClosed) | Err(_) => Status::unavailable("the agent is ending"),
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(taking) = &self.taking {
            taking.abort();
        }
    }
}
