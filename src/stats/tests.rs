//! Real tonic clients and servers on loopback, both watched.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use http_body::Body as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::{Service, ServiceExt, service_fn};

use super::*;

#[derive(Clone, PartialEq, prost::Message)]
struct Note {
    #[prost(string, tag = "1")]
    text: String,
}

fn note(text: &str) -> Note {
    Note { text: text.into() }
}

type Notes = Pin<Box<dyn Stream<Item = Result<Note, Status>> + Send>>;

/// `/notes/Echo` answers, or fails if asked to; `/notes/Count` sends three; `/notes/Wait` sends one and then nothing;
/// anything else is answered as a web server would.
async fn notes(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<Note, Note>::default());
    Ok(match request.uri().path() {
        "/notes/Echo" => {
            let echo = |request: tonic::Request<Note>| async {
                match request.into_inner() {
                    Note { text } if text == "fail" => Err(Status::failed_precondition("no paper: ünd")),
                    note => Ok(tonic::Response::new(note)),
                }
            };
            grpc.unary(service_fn(echo), request).await
        }
        path @ ("/notes/Count" | "/notes/Wait") => {
            let wait = path.ends_with("Wait");
            let stream = move |_: tonic::Request<Note>| async move {
                let notes: Notes = match wait {
                    true => Box::pin(tokio_stream::once(Ok(note("a"))).chain(tokio_stream::pending())),
                    false => Box::pin(tokio_stream::iter(["a", "bb", "ccc"].map(|text| Ok(note(text))))),
                };
                Ok(tonic::Response::new(notes))
            };
            grpc.server_streaming(service_fn(stream), request).await
        }
        _ => Response::builder().status(503).body(Body::empty()).expect("a status is valid"),
    })
}

#[derive(Debug)]
enum Event {
    Conn(ConnStats),
    Rpc(RpcStats),
}

/// A handler that keeps what it is told.
struct Recorder(mpsc::UnboundedSender<Event>);

fn recorder() -> (Recorder, Events) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Recorder(sender), Events(receiver))
}

impl StatsHandler for Recorder {
    fn conn(&self, event: &ConnStats) {
        let _ = self.0.send(Event::Conn(event.clone())); // nobody is interested any more
    }

    fn rpc(&self, event: &RpcStats) {
        let _ = self.0.send(Event::Rpc(event.clone())); // nobody is interested any more
    }
}

struct Events(mpsc::UnboundedReceiver<Event>);

impl Events {
    async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(Duration::from_secs(10), self.0.recv()).await.expect("an event, or the end of them")
    }

    /// What there is until all handlers are gone, in short words.
    async fn rest(mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(event) = self.next().await {
            rest.push(match event {
                Event::Conn(ConnStats::Begin { .. }) => "open".into(),
                Event::Conn(ConnStats::End { reason, .. }) => reason.to_string(),
                Event::Conn(ConnStats::Failed { error, .. }) => format!("failed: {error}"),
                Event::Rpc(RpcStats::Begin { path, .. }) => path.to_string(),
                Event::Rpc(RpcStats::RequestMessage { bytes, .. }) => format!("request {bytes}"),
                Event::Rpc(RpcStats::ResponseHeaders { .. }) => "headers".into(),
                Event::Rpc(RpcStats::ResponseMessage { bytes, .. }) => format!("response {bytes}"),
                Event::Rpc(RpcStats::End { code, message, requests, responses, .. }) => format!(
                    "{code:?} `{message}` {}/{} {}/{}",
                    requests.messages, requests.bytes, responses.messages, responses.bytes
                ),
            });
        }
        rest
    }

    async fn conn_end(&mut self) -> ConnEnd {
        loop {
            if let Event::Conn(ConnStats::End { reason, .. }) = self.next().await.expect("an end") {
                return reason;
            }
        }
    }
}

/// A server with a runtime of its own, so that it can vanish; a client; and what was seen of the calls at each.
struct Rig {
    server: Option<Runtime>,
    client: tonic::client::Grpc<Stats<Channel>>,
    at_client: Events,
    at_server: Events,
}

impl Rig {
    async fn new() -> Self {
        let ((client, at_client), (server, at_server)) = (recorder(), recorder());
        let (runtime, addr) = serve(StatsLayer::new(server));
        let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
        let client = tonic::client::Grpc::new(StatsLayer::new(client).wrap(channel));
        Self { server: Some(runtime), client, at_client, at_server }
    }

    async fn unary(&mut self, path: &'static str, text: &str) -> Result<Note, Status> {
        self.client.ready().await?;
        let (path, codec) = (PathAndQuery::from_static(path), ProstCodec::default());
        let response = self.client.unary(tonic::Request::new(note(text)), path, codec).await;
        response.map(tonic::Response::into_inner)
    }

    async fn streaming(&mut self, path: &'static str) -> tonic::Streaming<Note> {
        self.client.ready().await.unwrap();
        let (path, codec) = (PathAndQuery::from_static(path), ProstCodec::default());
        let response = self.client.server_streaming(tonic::Request::new(note("go")), path, codec).await;
        response.unwrap().into_inner()
    }

    /// The server is gone, with a reset: its process was killed.
    fn server_vanishes(&mut self) {
        self.server.take().unwrap().shutdown_background();
    }

    /// All there was to be seen at the client and at the server.
    async fn seen(mut self) -> (Vec<String>, Vec<String>) {
        drop(self.client);
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
        (self.at_client.rest().await, self.at_server.rest().await)
    }
}

fn serve(layer: StatsLayer) -> (Runtime, std::net::SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener).map(|accepted| {
            let io = accepted?;
            socket2::SockRef::from(&io).set_linger(Some(Duration::ZERO))?;
            std::io::Result::Ok(io)
        });
        Server::builder().layer(layer).serve_with_incoming(service_fn(notes), incoming).await
    });
    (runtime, addr)
}

#[tokio::test]
async fn unary_call_is_told_from_begin_to_end() {
    let mut rig = Rig::new().await;
    assert_eq!(rig.unary("/notes/Echo", "hello").await.unwrap(), note("hello"));
    let (at_client, at_server) = rig.seen().await;
    assert_eq!(at_client, ["/notes/Echo", "request 7", "headers", "response 7", "Ok `` 1/7 1/7"]);
    assert_eq!(at_server, at_client);
}

#[tokio::test]
async fn failed_call_without_a_body_ends_with_its_status() {
    let mut rig = Rig::new().await;
    let status = rig.unary("/notes/Echo", "fail").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "no paper: ünd"));
    let (at_client, at_server) = rig.seen().await;
    assert_eq!(at_client, ["/notes/Echo", "request 6", "headers", "FailedPrecondition `no paper: ünd` 1/6 0/0"]);
    assert_eq!(at_server, at_client);
}

#[tokio::test]
async fn server_stream_counts_each_message() {
    let mut rig = Rig::new().await;
    let notes: Vec<_> = rig.streaming("/notes/Count").await.map(|note| note.unwrap().text).collect().await;
    assert_eq!(notes, ["a", "bb", "ccc"]);
    let (at_client, at_server) = rig.seen().await;
    let begin = ["/notes/Count", "request 4", "headers"];
    assert_eq!(at_client[..3], begin);
    assert_eq!(at_client[3..], ["response 3", "response 4", "response 5", "Ok `` 1/4 3/12"]);
    assert_eq!(at_server, at_client);
}

#[tokio::test]
async fn dropped_stream_ends_cancelled_once_on_both_sides() {
    let mut rig = Rig::new().await;
    let mut stream = rig.streaming("/notes/Wait").await;
    assert_eq!(stream.message().await.unwrap(), Some(note("a")));
    drop(stream);
    // The server learns of it before it goes.
    let mut told = Vec::new();
    while !matches!(told.last(), Some(Event::Rpc(RpcStats::End { .. }))) {
        told.push(rig.at_server.next().await.unwrap());
    }
    assert!(matches!(told.last(), Some(Event::Rpc(RpcStats::End { code: Code::Cancelled, .. }))), "{told:?}");
    let (at_client, at_server) = rig.seen().await;
    assert_eq!(at_client[3..], ["response 3", "Cancelled `dropped before it ended` 1/4 1/3"]);
    assert_eq!(at_server, [""; 0]);
}

#[tokio::test]
async fn call_dropped_before_its_response_ends_cancelled() {
    let (handler, events) = recorder();
    let never = service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>());
    let mut watched = StatsLayer::new(handler).wrap(never);
    let mut call = Box::pin(watched.call(Request::new(Body::empty())));
    assert!(Future::poll(call.as_mut(), &mut noop()).is_pending());
    drop((call, watched));
    assert_eq!(events.rest().await, ["/", "Cancelled `dropped before it ended` 0/0 0/0"]);
}

fn noop() -> std::task::Context<'static> {
    std::task::Context::from_waker(std::task::Waker::noop())
}

#[tokio::test]
async fn answer_that_is_not_grpc_is_mapped_by_its_http_status() {
    let mut rig = Rig::new().await;
    assert_eq!(rig.unary("/elsewhere", "x").await.unwrap_err().code(), Code::Unavailable);
    let (at_client, at_server) = rig.seen().await;
    let end = "Unavailable `no grpc-status in the response (http 503 Service Unavailable)`";
    assert!(at_client.last().unwrap().starts_with(end), "{at_client:?}");
    assert!(at_server.last().unwrap().starts_with(end), "{at_server:?}");
}

#[tokio::test]
async fn peer_that_vanishes_ends_the_call_as_the_caller_sees_it() {
    let mut rig = Rig::new().await;
    let mut stream = rig.streaming("/notes/Wait").await;
    stream.message().await.unwrap();
    rig.server_vanishes();
    let status = stream.message().await.unwrap_err();
    drop(stream);
    let (at_client, _) = rig.seen().await;
    let end = format!("{:?} `{}` 1/4 1/3", status.code(), status.message());
    assert_eq!(at_client[3..], ["response 3".to_owned(), end]);
}

#[tokio::test]
async fn detector_says_when_the_peer_comes_and_vanishes() {
    let ((server, _), (handler, mut events)) = (recorder(), recorder());
    let (runtime, addr) = serve(StatsLayer::new(server));
    let detector = DisconnectDetector::new();
    let mut state = detector.subscribe();
    let dial = service_fn(move |_: Uri| async move { TcpStream::connect(addr).await.map(TokioIo::new) });
    let connector = StatsLayer::new(detector).and(handler).wrap(dial);
    let channel = Endpoint::from_static("http://laptop-1").connect_with_connector(connector).await.unwrap();
    let Event::Conn(ConnStats::Begin { target, .. }) = events.next().await.unwrap() else { panic!("no begin") };
    assert_eq!(target, Uri::from_static("http://laptop-1"));
    assert_eq!(state.borrow_and_update().to_string(), "connected to http://laptop-1/");

    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let (path, codec) = (PathAndQuery::from_static("/notes/Wait"), ProstCodec::<Note, Note>::default());
    let mut stream = client.server_streaming(tonic::Request::new(note("go")), path, codec).await.unwrap().into_inner();
    stream.message().await.unwrap();
    runtime.shutdown_background();

    let reset = std::io::ErrorKind::ConnectionReset;
    assert!(matches!(events.conn_end().await, ConnEnd::Error { kind, .. } if kind == reset));
    let gone = state.wait_for(|state| !state.is_connected()).await.unwrap();
    assert!(matches!(&*gone, ConnState::Disconnected { why: ConnEnd::Error { kind, .. }, .. } if *kind == reset));
}

#[tokio::test]
async fn channel_that_is_dropped_is_not_blamed_on_the_peer() {
    let ((server, _), (handler, mut events)) = (recorder(), recorder());
    let (runtime, addr) = serve(StatsLayer::new(server));
    let dial = service_fn(move |_: Uri| async move { TcpStream::connect(addr).await.map(TokioIo::new) });
    let connector = StatsLayer::new(handler).wrap(dial);
    drop(Endpoint::from_static("http://laptop-1").connect_with_connector(connector).await.unwrap());
    assert_eq!(events.conn_end().await, ConnEnd::Closed);
    assert_eq!(events.rest().await, [""; 0], "one end only");
    runtime.shutdown_background();
}

/// A watched connection, its other end, and what is told of it.
async fn connection() -> (TokioIo<StatsIo<TokioIo<DuplexStream>>>, DuplexStream, Events) {
    let (handler, events) = recorder();
    let (near, far) = tokio::io::duplex(64);
    let mut near = Some(TokioIo::new(near));
    let dial = service_fn(move |_: Uri| std::future::ready(near.take().ok_or("no more")));
    let io = StatsLayer::new(handler).wrap(dial).oneshot(Uri::from_static("http://a")).await.unwrap();
    (TokioIo::new(io), far, events)
}

#[tokio::test]
async fn end_counts_bytes_and_comes_with_the_first_end_of_stream() {
    let (mut near, mut far, mut events) = connection().await;
    near.write_all(b"12345").await.unwrap();
    far.write_all(b"123").await.unwrap();
    drop(far);
    near.read_to_end(&mut Vec::new()).await.unwrap();
    events.next().await;
    let end = events.next().await.unwrap();
    let Event::Conn(ConnStats::End { reason, bytes_read: 3, bytes_written: 5, .. }) = end else { panic!("{end:?}") };
    assert_eq!(reason, ConnEnd::ClosedByPeer);
    assert!(near.write_all(b"x").await.is_err());
    near.read_to_end(&mut Vec::new()).await.unwrap();
    drop(near);
    assert_eq!(events.rest().await, [""; 0], "one end only");
}

#[tokio::test]
async fn write_error_is_the_reason_if_it_comes_first() {
    let (mut near, far, events) = connection().await;
    drop(far);
    near.write_all(b"x").await.unwrap_err();
    drop(near);
    assert_eq!(events.rest().await, ["open", "broken pipe"]);
}

#[tokio::test]
async fn end_comes_with_the_drop_at_the_latest() {
    let (near, _far, events) = connection().await;
    drop(near);
    assert_eq!(events.rest().await, ["open", "dropped by this side without a shutdown"]);
}

#[tokio::test]
async fn reading_into_no_room_is_no_end() {
    let (mut near, mut far, events) = connection().await;
    far.write_all(b"1").await.unwrap();
    assert_eq!(near.read(&mut []).await.unwrap(), 0);
    near.shutdown().await.unwrap();
    drop(near);
    assert_eq!(events.rest().await, ["open", "closed by this side"]);
}

#[tokio::test]
async fn vectored_writes_stay_vectored() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let dial = service_fn(move |_: Uri| async move { TcpStream::connect(addr).await.map(TokioIo::new) });
    let (handler, _events) = recorder();
    let io = StatsLayer::new(handler).wrap(dial).oneshot(Uri::from_static("http://a")).await.unwrap();
    assert!(hyper::rt::Write::is_write_vectored(&io));
    let slices = [std::io::IoSlice::new(b"ab"), std::io::IoSlice::new(b"cd")];
    assert_eq!(TokioIo::new(io).write_vectored(&slices).await.unwrap(), 4);
}

#[tokio::test]
async fn failed_dial_is_told_and_an_abandoned_one_is_not() {
    let (handler, events) = recorder();
    let layer = StatsLayer::new(handler);
    type Io = TokioIo<DuplexStream>;
    let refuse = service_fn(|_: Uri| async { Err::<Io, _>("refused") });
    assert_eq!(layer.wrap(refuse).oneshot(Uri::from_static("http://a")).await.err(), Some("refused"));
    let hang = service_fn(|_: Uri| std::future::pending::<Result<Io, &str>>());
    let mut dial = Box::pin(layer.wrap(hang).oneshot(Uri::from_static("http://a")));
    assert!(Future::poll(dial.as_mut(), &mut noop()).is_pending());
    drop((dial, layer));
    assert_eq!(events.rest().await, ["failed: refused"]);
}

#[tokio::test]
async fn bodies_still_say_how_long_they_are_and_when_they_end() {
    let (handler, _events) = recorder();
    let layer = StatsLayer::new(handler);
    for text in ["", "xy"] {
        let echo = service_fn(|request: Request<Body>| async move {
            let body = request.body();
            assert_eq!(body.size_hint().exact(), Some(text.len() as u64));
            assert_eq!(body.is_end_stream(), text.is_empty());
            Ok::<_, Infallible>(Response::new(text.to_owned()))
        });
        let response = layer.wrap(echo).oneshot(Request::new(text.to_owned())).await.unwrap();
        assert_eq!(response.body().size_hint().exact(), Some(text.len() as u64));
        assert_eq!(response.body().is_end_stream(), text.is_empty());
    }
}

#[tokio::test]
async fn body_polled_past_its_end_ends_the_call_once() {
    let (handler, events) = recorder();
    let request = Request::builder().uri("/notes/Echo").body(String::from_utf8(vec![0; 5]).unwrap()).unwrap();
    let mut body = StatsLayer::new(handler).wrap(service_fn(notes)).oneshot(request).await.unwrap().into_body();
    for _ in 0..8 {
        let _ = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await; // only the polling matters
    }
    drop(body);
    let told = events.rest().await;
    assert_eq!(told, ["/notes/Echo", "request 0", "headers", "response 0", "Ok `` 1/0 1/0"]);
}

#[tokio::test]
async fn handler_that_panics_harms_nobody() {
    struct Clumsy;
    impl StatsHandler for Clumsy {
        fn conn(&self, _: &ConnStats) {
            panic!("clumsy");
        }
        fn rpc(&self, _: &RpcStats) {
            panic!("clumsy");
        }
    }
    let (handler, events) = recorder();
    let layer = StatsLayer::new(Clumsy).and(handler);
    let service = layer.wrap(service_fn(notes));
    assert_eq!(service.oneshot(Request::new(Body::empty())).await.unwrap().status(), 503);
    drop(layer);
    assert_eq!(events.rest().await.len(), 3, "begin, headers, end");
}

#[tokio::test]
async fn handler_that_does_not_want_calls_gets_none() {
    struct ConnsOnly(Recorder);
    impl StatsHandler for ConnsOnly {
        fn rpc(&self, event: &RpcStats) {
            self.0.rpc(event);
        }
        fn wants_rpc(&self) -> bool {
            false
        }
    }
    let (handler, events) = recorder();
    let handler: Arc<dyn StatsHandler> = Arc::new(ConnsOnly(handler));
    let service = StatsLayer::new(handler).wrap(service_fn(notes));
    assert_eq!(service.oneshot(Request::new(Body::empty())).await.unwrap().status(), 503);
    assert_eq!(events.rest().await, [""; 0]);
}
