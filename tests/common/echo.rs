//! The service the tests call. What it answers is steered by the request's metadata:
//!
//! | key | effect |
//! |---|---|
//! | `x-…` | comes back, `-bin` too, in the response headers and in the trailers |
//! | `echo-status: N` | the call ends with code N; with no message before it the answer is trailers-only |
//! | `echo-message: TEXT` | the message of that status |
//! | `echo-details: 1` | that status carries [`details`] |
//! | `echo-status-after: N` | a stream ends with that status after N answers (default 0) |
//! | `echo-count: N`, `echo-size: N` | Download answers N messages (default 1) of [`pattern`], N bytes each (default 0) |
//! | `echo-delay-ms: N` | waits this long before each answer |
//! | `echo-hang: 1` | does all it was asked but never ends: Unary and Upload never answer |
//!
//! The Go peer in `tests/peers/go/echo` does the same. A value that cannot be read is answered INVALID_ARGUMENT.

use std::{
    collections::HashMap,
    pin::Pin,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_stream::{Stream, StreamExt, wrappers::TcpListenerStream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::{AsciiMetadataKey, MetadataMap},
    transport::{Channel, Server},
};
use tonic_types::{ErrorDetails, StatusExt};

use super::mirror::Mirror;
use pb::{
    Payload,
    echo_client::EchoClient,
    echo_server::{self, EchoServer},
};

/// What `proto/echo.proto` says.
#[allow(clippy::use_self)]
pub mod pb {
    include!("../../proto/gen/dialback.echo.v1.rs");
}

/// The largest message client and server take: more than any test sends.
const MAX_MESSAGE: usize = 64 << 20;

/// How long a test waits for an [`Echo`] to see something before it fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request with metadata that tells an [`Echo`] what to do.
pub fn steered<T>(message: T, steering: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (key, value) in steering {
        let value = value.parse().expect("a metadata value");
        request.metadata_mut().append(AsciiMetadataKey::from_static(key), value);
    }
    request
}

/// An Echo service and what it has seen; clones share both.
#[derive(Clone, Debug, Default)]
pub struct Echo {
    counts: watch::Sender<Counts>,
    answered: Arc<AtomicUsize>,
}

/// How many calls reached the handlers of an [`Echo`], and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that reached a handler.
    pub started: usize,
    /// Calls whose handler got to its end, whatever the status.
    pub finished: usize,
    /// Calls whose handler was dropped before its end: the caller went away, or the connection did.
    pub cancelled: usize,
}

impl Counts {
    /// Calls whose handler still runs.
    pub fn running(&self) -> usize {
        self.started - self.finished - self.cancelled
    }
}

impl Echo {
    /// The service, to be given to a tonic `Server`.
    pub fn service(&self) -> Mirror<EchoServer<Self>> {
        Mirror(EchoServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE))
    }

    /// What it has seen until now.
    pub fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// How many messages its Download and Chat have handed to tonic, all calls together.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until `condition` holds, and gives the counts that made it hold. Panics after 10 s.
    pub async fn wait_until(&self, what: &str, condition: impl Fn(&Counts) -> bool) -> Counts {
        let mut counts = self.counts.subscribe();
        match timeout(PATIENCE, counts.wait_for(|counts| condition(counts))).await {
            Ok(seen) => *seen.expect("self holds the sender"),
            Err(_) => panic!("waited {PATIENCE:?} for {what}; the service has seen {:?}", self.counts()),
        }
    }

    fn begin<T>(&self, request: &Request<T>) -> Result<(Call, Plan), Status> {
        self.counts.send_modify(|counts| counts.started += 1);
        let mut call = Call { counts: self.counts.clone(), answered: self.answered.clone(), finished: false };
        match Plan::read(request.metadata()) {
            Ok(plan) => Ok((call, plan)),
            Err(status) => {
                call.finish();
                Err(status)
            }
        }
    }
}

/// An ordinary gRPC server on a port of loopback, as a laptop has it beside its ssh.
pub async fn local_service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("an address").port();
    let server = Server::builder().add_service(Echo::default().service());
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    port
}

/// A client that takes messages as large as the service sends.
pub fn client(channel: Channel) -> EchoClient<Channel> {
    EchoClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

/// A payload of these bytes.
pub fn payload(data: impl Into<Vec<u8>>) -> Payload {
    Payload { data: data.into() }
}

/// The bytes of Download's message number `index`: they differ from message to message and from place to place, so that
/// lost, doubled and swapped bytes show.
pub fn pattern(index: usize, size: usize) -> Vec<u8> {
    (index..index + size).map(|n| (n % 251) as u8).collect()
}

/// The details a status carries when `echo-details` asks for them.
pub fn details() -> ErrorDetails {
    let metadata = HashMap::from([("key".to_owned(), "value".to_owned())]);
    ErrorDetails::with_error_info("ECHO", "dialback.test", metadata)
}

/// Panics unless `status` carries exactly [`details`].
pub fn assert_details(status: &Status) {
    let found = status.check_error_details().expect("the details are readable");
    assert_eq!(format!("{found:?}"), format!("{:?}", details()));
}

/// What Upload answers: length and FNV-1a checksum of all bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    len: u64,
    fnv: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self { len: 0, fnv: 0xcbf2_9ce4_8422_2325 }
    }
}

impl Digest {
    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        for byte in bytes {
            self.fnv = (self.fnv ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// The bytes of the answer.
    pub fn to_bytes(self) -> Vec<u8> {
        [self.len.to_be_bytes(), self.fnv.to_be_bytes()].concat()
    }
}

/// A call under way. Dropped before [`Call::finish`], it counts as cancelled.
struct Call {
    counts: watch::Sender<Counts>,
    answered: Arc<AtomicUsize>,
    finished: bool,
}

impl Call {
    fn finish(&mut self) {
        self.finished = true;
        self.counts.send_modify(|counts| counts.finished += 1);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.finished {
            self.counts.send_modify(|counts| counts.cancelled += 1);
        }
    }
}

/// What the metadata asks for.
struct Plan {
    end: End,
    answers_before_end: usize,
    count: usize,
    size: usize,
    delay: Duration,
}

/// How a call ends.
enum End {
    Well,
    With(Status),
    Never,
}

impl Plan {
    fn read(metadata: &MetadataMap) -> Result<Self, Status> {
        let details = number(metadata, "echo-details")?.unwrap_or(0u8) != 0;
        let end = if number(metadata, "echo-hang")?.unwrap_or(0u8) != 0 {
            End::Never
        } else if let Some(code) = number(metadata, "echo-status")? {
            let message = metadata.get("echo-message").and_then(|v| v.to_str().ok()).unwrap_or_default();
            End::With(match details {
                true => Status::with_error_details(Code::from_i32(code), message, self::details()),
                false => Status::new(Code::from_i32(code), message),
            })
        } else {
            End::Well
        };
        let answers_before_end = match end {
            End::With(_) => number(metadata, "echo-status-after")?.unwrap_or(0),
            End::Well | End::Never => usize::MAX,
        };
        Ok(Self {
            end,
            answers_before_end,
            count: number(metadata, "echo-count")?.unwrap_or(1),
            size: number(metadata, "echo-size")?.unwrap_or(0),
            delay: Duration::from_millis(number(metadata, "echo-delay-ms")?.unwrap_or(0)),
        })
    }

    /// The one answer of Unary and Upload.
    async fn answer_once(self, mut call: Call, answer: Payload) -> Result<Response<Payload>, Status> {
        pause(self.delay).await;
        let result = match self.end {
            End::Well => Ok(Response::new(answer)),
            End::With(status) => Err(status),
            End::Never => std::future::pending().await,
        };
        call.finish();
        result
    }

    /// The answers of Download and Chat. A status that no answer precedes is the whole response: trailers-only.
    fn answer_all(self, mut call: Call, answers: impl Stream<Item = Answer> + Send + 'static) -> StreamResult {
        match self.end {
            End::With(status) if self.answers_before_end == 0 => {
                call.finish();
                Err(status)
            }
            end => {
                let delay = self.delay;
                let answers = answers.take(self.answers_before_end).then(move |answer| async move {
                    pause(delay).await;
                    answer
                });
                Ok(Response::new(Answers { messages: Some(Box::pin(answers)), end, call }))
            }
        }
    }
}

/// A timer that is not needed costs a call a millisecond.
async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

fn number<T: FromStr>(metadata: &MetadataMap, key: &str) -> Result<Option<T>, Status> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| Status::invalid_argument(format!("{key} is not a fitting number: {value:?}")))
}

type Answer = Result<Payload, Status>;
type StreamResult = Result<Response<Answers>, Status>;

/// The answers of a streaming call, and then its end.
pub struct Answers {
    messages: Option<Pin<Box<dyn Stream<Item = Answer> + Send>>>,
    end: End,
    call: Call,
}

impl Stream for Answers {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        if let Some(messages) = &mut self.messages {
            match messages.as_mut().poll_next(cx) {
                Poll::Ready(None) => self.messages = None,
                Poll::Ready(answer) => {
                    self.call.answered.fetch_add(1, Ordering::Relaxed);
                    return Poll::Ready(answer);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        match std::mem::replace(&mut self.end, End::Well) {
            End::Never => {
                self.end = End::Never;
                Poll::Pending
            }
            End::With(status) => {
                self.call.finish();
                Poll::Ready(Some(Err(status)))
            }
            End::Well => {
                if !self.call.finished {
                    self.call.finish();
                }
                Poll::Ready(None)
            }
        }
    }
}

#[tonic::async_trait]
impl echo_server::Echo for Echo {
    async fn unary(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let (call, plan) = self.begin(&request)?;
        plan.answer_once(call, request.into_inner()).await
    }

    type DownloadStream = Answers;

    async fn download(&self, request: Request<Payload>) -> StreamResult {
        let (call, plan) = self.begin(&request)?;
        let size = plan.size;
        let answers = tokio_stream::iter((0..plan.count).map(move |index| Ok(payload(pattern(index, size)))));
        plan.answer_all(call, answers)
    }

    async fn upload(&self, request: Request<Streaming<Payload>>) -> Result<Response<Payload>, Status> {
        let (call, plan) = self.begin(&request)?;
        let mut digest = Digest::default();
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            digest.update(&message.data);
        }
        plan.answer_once(call, payload(digest.to_bytes())).await
    }

    type ChatStream = Answers;

    async fn chat(&self, request: Request<Streaming<Payload>>) -> StreamResult {
        let (call, plan) = self.begin(&request)?;
        plan.answer_all(call, request.into_inner())
    }
}
