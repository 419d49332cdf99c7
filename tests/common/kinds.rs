//! A server of every kind of call and of every kind of field, which answers with what it is sent, byte for byte.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};
use tower::{Service, service_fn};

/// Which versions of reflection a server has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reflects {
    Both,
    Old,
    Not,
}

/// A running server. Dropping it ends it.
pub struct Kinds {
    pub address: SocketAddr,
    /// One permit for each call that its client gave up.
    pub cancelled: Arc<Semaphore>,
    _tasks: JoinSet<()>,
}

impl Kinds {
    /// On a port of loopback.
    pub async fn start(reflects: Reflects) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let mut tasks = JoinSet::new();
        let calls = Calls::default();
        let cancelled = calls.cancelled.clone();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tasks.spawn(async move { router(calls, reflects).serve_with_incoming(incoming).await.expect("serve") });
        Self { address, cancelled, _tasks: tasks }
    }

    /// The same on a Unix socket, too.
    pub fn also_at(&mut self, path: PathBuf) {
        let listener = UnixListener::bind(path).expect("bind");
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let serving = router(Calls::default(), Reflects::Both).serve_with_incoming(incoming);
        self._tasks.spawn(async move { serving.await.expect("serve") });
    }

    /// The same behind TLS, on another port.
    pub async fn also_with_tls(&mut self, config: rustls::ServerConfig) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let server = self.address;
        self._tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(mut outside) = acceptor.accept(stream).await else { return };
                    let mut inside = tokio::net::TcpStream::connect(server).await.expect("the server is there");
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await; // one of them is gone
                });
            }
        });
        address
    }
}

/// Serves on what an agent's hub opens.
pub async fn serve(incoming: dialback::Incoming) {
    let router = router(Calls::default(), Reflects::Both);
    router.serve_with_incoming_shutdown(incoming, pending()).await.expect("serve");
}

fn router(calls: Calls, reflects: Reflects) -> tonic::transport::server::Router {
    let descriptors = protox::compile(["kinds.proto", "kinds_service.proto"], ["proto"]).expect("compile");
    let descriptors = descriptors.encode_to_vec();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(&descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = (reflects == Reflects::Both).then(|| reflection().build_v1().expect("descriptors"));
    let v1alpha = (reflects != Reflects::Not).then(|| reflection().build_v1alpha().expect("descriptors"));
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(async move {
        let status = tonic_health::ServingStatus::NotServing;
        reporter.set_service_status("dialback.kinds.v1.Probe", status).await;
        // The services watch it for as long as it lives.
        pending::<()>().await;
    });
    Server::builder()
        .add_service(EveryKind(calls.clone()))
        .add_service(Probe(calls))
        .add_service(health)
        .add_optional_service(v1)
        .add_optional_service(v1alpha)
}

/// What the methods have in common.
#[derive(Clone)]
struct Calls {
    cancelled: Arc<Semaphore>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { cancelled: Arc::new(Semaphore::new(0)) }
    }
}

/// A call that tells when it is dropped.
struct Guard(Arc<Semaphore>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

#[derive(Clone)]
struct EveryKind(Calls);

#[derive(Clone)]
struct Probe(Calls);

impl NamedService for EveryKind {
    const NAME: &'static str = "dialback.kinds.v1.KindsService";
}

impl NamedService for Probe {
    const NAME: &'static str = "dialback.kinds.v1.Probe";
}

/// `x-` metadata comes back as headers, and so do `user-agent` and `grpc-accept-encoding`, with `x-` before them.
fn answer<T>(request: &tonic::metadata::MetadataMap, body: T) -> Response<T> {
    let mut response = Response::new(body);
    for entry in request.iter() {
        if let tonic::metadata::KeyAndValueRef::Ascii(name, value) = entry
            && name.as_str().starts_with("x-")
        {
            response.metadata_mut().append(name.clone(), value.clone());
        }
    }
    for (name, theirs) in [("user-agent", "x-user-agent"), ("grpc-accept-encoding", "x-grpc-accept-encoding")] {
        if let Some(value) = request.get(name) {
            response.metadata_mut().insert(theirs, value.clone());
        }
    }
    response
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
type Answering = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for EveryKind {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answering {
        Box::pin(async move {
            let mut grpc = Grpc::new(Encoded).max_decoding_message_size(64 << 20);
            // Compressed for those who take it.
            if request.uri().path().ends_with("/Unary") {
                grpc = grpc.send_compressed(CompressionEncoding::Gzip);
            }
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match method.as_str() {
                "Unary" => {
                    let unary = |request: Request<Bytes>| async move {
                        let (metadata, _, message) = request.into_parts();
                        Ok(answer(&metadata, message))
                    };
                    grpc.unary(service_fn(unary), request).await
                }
                // Each message three times.
                "ServerStream" => {
                    let stream = |request: Request<Bytes>| async move {
                        let (metadata, _, message) = request.into_parts();
                        let all: Answers = Box::pin(tokio_stream::iter(vec![Ok(message); 3]));
                        Ok(answer(&metadata, all))
                    };
                    grpc.server_streaming(service_fn(stream), request).await
                }
                // How many there were, in the field f_int32.
                "ClientStream" => {
                    let count = |request: Request<Streaming<Bytes>>| async move {
                        let (metadata, _, mut messages) = request.into_parts();
                        let mut count = 0;
                        while messages.message().await?.is_some() {
                            count += 1;
                        }
                        Ok(answer(&metadata, Counted { f_int32: count }.encode_to_vec().into()))
                    };
                    grpc.client_streaming(service_fn(count), request).await
                }
                "Bidi" => {
                    let echo = |request: Request<Streaming<Bytes>>| async move {
                        let (metadata, _, messages) = request.into_parts();
                        let all: Answers = Box::pin(messages);
                        Ok(answer(&metadata, all))
                    };
                    grpc.streaming(service_fn(echo), request).await
                }
                other => Status::unimplemented(format!("no method {other}")).into_http(),
            })
        })
    }
}

impl Service<http::Request<Body>> for Probe {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answering {
        let cancelled = self.0.cancelled.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(Encoded);
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match method.as_str() {
                "Fail" => grpc.unary(service_fn(|request| async move { fail(&request) }), request).await,
                "Hang" => {
                    let hang = |_: Request<Bytes>| {
                        let guard = Guard(cancelled.clone());
                        async move {
                            let _guard = guard;
                            pending::<Result<Response<Bytes>, Status>>().await
                        }
                    };
                    grpc.unary(service_fn(hang), request).await
                }
                "Endless" => {
                    let endless = |request: Request<Bytes>| {
                        let guard = Guard(cancelled.clone());
                        async move {
                            let message = request.into_inner();
                            let all = tokio_stream::iter(0..).map(move |_: u64| {
                                let _guard = &guard;
                                Ok(message.clone())
                            });
                            Ok(Response::new(Box::pin(all) as Answers))
                        }
                    };
                    grpc.server_streaming(service_fn(endless), request).await
                }
                "Mute" => {
                    let mute =
                        |_: Request<Bytes>| async { Ok(Response::new(Box::pin(tokio_stream::empty()) as Answers)) };
                    grpc.server_streaming(service_fn(mute), request).await
                }
                other => Status::unimplemented(format!("no method {other}")).into_http(),
            })
        })
    }
}

fn fail(request: &Request<Bytes>) -> Result<Response<Bytes>, Status> {
    let failure = Failure::decode(request.get_ref().clone()).map_err(|e| Status::internal(e.to_string()))?;
    // What is in a google.rpc.Status is the same, field by field.
    let details = if failure.details.is_empty() { Bytes::new() } else { request.get_ref().clone() };
    Err(Status::with_details(Code::from(failure.code), failure.message, details))
}

/// A `dialback.kinds.v1.Kinds` of which only one field counts.
#[derive(Clone, PartialEq, prost::Message)]
struct Counted {
    #[prost(int32, tag = "3")]
    f_int32: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Failure {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(bytes = "vec", repeated, tag = "3")]
    details: Vec<Vec<u8>>,
}

#[derive(Clone, Copy)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}
