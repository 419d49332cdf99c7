//! HTTP/2 below gRPC: a client of a gateway, and an agent's server, whose every frame a test decides.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
    server::SendResponse,
};
use http::{HeaderMap, Request, Response};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_stream::{Stream, StreamExt};

use super::rig::{AGENT, soon};

/// The method of an Echo's unary calls.
pub const UNARY: &str = "/dialback.echo.v1.Echo/Unary";
/// The method of an Echo's calls with streams in both directions.
pub const CHAT: &str = "/dialback.echo.v1.Echo/Chat";

/// One connection of a client.
#[derive(Debug)]
pub struct RawClient {
    sender: SendRequest<Bytes>,
    pub connection: JoinHandle<Result<(), h2::Error>>,
}

/// What a call was answered.
#[derive(Debug)]
pub struct Answer {
    pub head: HeaderMap,
    pub status: http::StatusCode,
    pub data: Vec<u8>,
    pub trailers: HeaderMap,
}

impl Answer {
    /// The gRPC status and its message, wherever they are.
    pub fn grpc(&self) -> (i32, String) {
        let from = if self.trailers.contains_key("grpc-status") { &self.trailers } else { &self.head };
        let text = |name| from.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let code = text("grpc-status").and_then(|code| code.parse().ok()).unwrap_or(-1);
        let message = text("grpc-message").unwrap_or_default();
        (code, percent_encoding::percent_decode_str(&message).decode_utf8_lossy().into_owned())
    }
}

impl RawClient {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.expect("dial"), |builder| builder).await
    }

    pub async fn over(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        set: impl FnOnce(&mut h2::client::Builder) -> &mut h2::client::Builder,
    ) -> Self {
        let mut builder = h2::client::Builder::new();
        let handshake = set(&mut builder).handshake::<_, Bytes>(io);
        let (sender, connection) = soon("the handshake", handshake).await.expect("it speaks HTTP/2");
        Self { sender, connection: tokio::spawn(connection) }
    }

    /// Begins a call.
    pub async fn begin(&self, request: Request<()>) -> (ResponseFuture, SendStream<Bytes>) {
        let mut sender = soon("room for a call", self.sender.clone().ready()).await.expect("the connection stands");
        sender.send_request(request, false).expect("send")
    }

    /// A whole call with one message of these bytes, as they are.
    pub async fn call(&self, request: Request<()>, message: &[u8]) -> Result<Answer, h2::Error> {
        let (answer, mut body) = self.begin(request).await;
        let _ = body.send_data(framed(message), true); // it may be refused before
        answered(answer).await
    }
}

/// Reads an answer to its end.
pub async fn answered(answer: ResponseFuture) -> Result<Answer, h2::Error> {
    let all = async {
        let (head, mut body) = answer.await?.into_parts();
        let mut data = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            data.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        Ok(Answer { head: head.headers, status: head.status, data, trailers })
    };
    soon("an answer", all).await
}

/// A message in gRPC's framing.
pub fn framed(message: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).expect("a short message").to_be_bytes());
    framed.extend_from_slice(message);
    framed.into()
}

/// A request as a gRPC client makes it, for the agent of every rig.
pub fn to_agent(path: &str) -> Request<()> {
    with(path, &[("dialback-agent", AGENT)])
}

/// A request with these headers beside the usual ones.
pub fn with(path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::post(format!("http://gateway.test{path}"));
    let usual = [("content-type", "application/grpc"), ("te", "trailers")];
    for (name, value) in usual.iter().filter(|(name, _)| headers.iter().all(|(own, _)| own != name)).chain(headers) {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}

/// An agent's server that hands each call to `handle`.
pub fn serve_raw<I, S, F, Fut>(settings: h2::server::Builder, mut incoming: I, handle: F) -> JoinHandle<()>
where
    I: Stream<Item = std::io::Result<S>> + Unpin + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let handle = Arc::new(handle);
    tokio::spawn(async move {
        while let Some(Ok(io)) = incoming.next().await {
            let (handle, settings) = (handle.clone(), settings.clone());
            tokio::spawn(async move {
                let Ok(mut connection) = settings.handshake::<_, Bytes>(io).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(handle(request, respond));
                }
            });
        }
    })
}

/// A head of an answer.
pub fn head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).expect("a head")
}

/// Trailers with a status.
pub fn trailers(code: &str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().expect("a name"), code.parse().expect("a value"))])
}
