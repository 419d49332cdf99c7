//! Sends the `x-` metadata of a request back, in the headers and in the trailers of its response.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body, server::NamedService};
use tower_service::Service;

/// A gRPC service around another one. It is needed because tonic gives a unary handler no way to set trailers.
#[derive(Clone)]
pub struct Mirror<S>(pub S);

impl<S: NamedService> NamedService for Mirror<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Mirror<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let returned: Vec<(HeaderName, HeaderValue)> = (request.headers().iter())
            .filter(|(name, _)| name.as_str().starts_with("x-"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            append(response.headers_mut(), &returned);
            Ok(response.map(|inner| Body::new(WithTrailers { inner, returned })))
        })
    }
}

fn append(headers: &mut HeaderMap, more: &[(HeaderName, HeaderValue)]) {
    for (name, value) in more {
        headers.append(name, value.clone());
    }
}

/// A body that adds to its trailers. It forwards `is_end_stream`, or a trailers-only answer would become two frames.
struct WithTrailers {
    inner: Body,
    returned: Vec<(HeaderName, HeaderValue)>,
}

impl http_body::Body for WithTrailers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            append(trailers, &self.returned);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
