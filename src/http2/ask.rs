//! Sends a request on an HTTP/2 connection that others use as well, and gets the answer's head.

use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::connection::Lease;
use super::given::Given;
use super::held::Held;
use super::upload::Upload;

/// What a call on a connection holds until its end; dropping it ends the call.
#[derive(Debug)]
pub(crate) struct Hold {
    lease: Lease,
    request: Sending,
    /// The head of the answer has come.
    answered: bool,
}

/// How far a request has been sent.
#[derive(Debug)]
enum Sending {
    /// All of it has been given to h2.
    Given(Option<(SendStream<Bytes>, Given)>),
    /// The rest is sent by a task, which gives the stream back.
    Running(AbortHandle, oneshot::Receiver<(SendStream<Bytes>, Given)>),
}

impl Hold {
    /// Sends no more, and has h2 drop what it still has: an answer may come before the request was taken.
    fn end_request(&mut self) {
        let stream = match &mut self.request {
            Sending::Given(stream) => stream.take(),
            Sending::Running(task, stream) => {
                task.abort();
                stream.close();
                stream.try_recv().ok()
            }
        };
        if let Some((mut stream, given)) = stream
            && self.answered
            && given.is_kept()
        {
            stream.send_reset(Reason::CANCEL);
        }
    }
}

impl Hold {
    /// What is kept for slow readers of the connection's calls.
    #[cfg(all(feature = "gateway", feature = "grpctunnel"))]
    pub(crate) fn held(&self) -> &Arc<Held> {
        self.lease.held()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.end_request();
    }
}

/// Sends a request and waits for the head of its answer. What cannot be sent at once is sent by a task on `runtime`.
pub(crate) async fn ask<B>(
    lease: Lease,
    mut sender: SendRequest<Bytes>,
    head: Parts,
    body: B,
    runtime: &Handle,
) -> Result<(Response<RecvStream>, Hold), h2::Error>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let sent = sender.send_request(Request::from_parts(head, ()), body.is_end_stream());
    let (response, stream) = sent.inspect_err(|_| lease.has_ended())?;
    let (response, hasty) = lease.awaits(response);
    let mut hold = Hold { lease, request: Sending::Given(None), answered: false };
    if !body.is_end_stream() {
        let mut upload = Box::pin(Upload::new(body, stream).hasty(hasty));
        // Most requests are sent here and now.
        hold.request = match poll_fn(|cx| Poll::Ready(upload.as_mut().poll(cx))).await {
            Poll::Ready(stream) => Sending::Given(Some(stream)),
            Poll::Pending => {
                let (give, given) = oneshot::channel();
                let held = hold.lease.held().clone();
                let rest = async { _ = give.send(to_the_end(upload, held).await) };
                Sending::Running(runtime.spawn(rest).abort_handle(), given)
            }
        };
    }
    let response = response.await?;
    hold.answered = true;
    Ok((response, hold))
}

/// How long an upload may stand still until its connection counts as full: perhaps the window of all is used up.
const STILL: Duration = Duration::from_secs(1);

/// Sends the rest.
async fn to_the_end<B>(mut upload: Pin<Box<Upload<B>>>, held: Arc<Held>) -> (SendStream<Bytes>, Given)
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (mut before, mut full) = (None, None);
    loop {
        tokio::select! {
            biased;
            sent = upload.as_mut() => return sent,
            () = tokio::time::sleep(STILL) => {
                let now = upload.waits();
                let is_still = now.is_some() && now == before;
                full = is_still.then(|| full.unwrap_or_else(|| Full::new(held.clone())));
                before = now;
            }
        }
    }
}

/// As long as it lives, a connection counts as full.
struct Full(Arc<Held>);

impl Full {
    fn new(held: Arc<Held>) -> Self {
        held.fill();
        Self(held)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        self.0.unfill();
    }
}
