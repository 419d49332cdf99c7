//! grpctunnel.v1 below its rules: both ends of a carrier, over real HTTP/2, on which a test says whatever it likes.

use std::{future::poll_fn, net::SocketAddr, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use prost::Message;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};

use super::{
    echo::payload,
    faults::within,
    http2::{RawClient, framed, head, with},
    rig::soon,
    tunnels::TOKEN,
};
use pb::{
    ClientToServer, CloseStream, MessageData, Metadata, NewStream, ServerToClient, Settings, Status,
    client_to_server::Frame as Asked, metadata::Values, server_to_client::Frame as Answered,
};

/// What `proto/grpctunnel.proto` says.
#[allow(clippy::enum_variant_names, clippy::use_self)]
pub mod pb {
    include!("../../proto/gen/grpctunnel.v1.rs");
}

/// The window of the calls that [`call`] begins.
pub const WINDOW: u32 = 1 << 20;

/// How long a carrier may be silent: it may come after a flood, on a machine that has more to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// One carrier: what is said on it, and what is heard.
pub struct RawTunnel {
    pub mouth: Mouth,
    pub ear: Ear,
}

pub struct Mouth(SendStream<Bytes>);

pub struct Ear {
    stream: RecvStream,
    data: BytesMut,
}

/// How a carrier ended for this side.
#[derive(Debug, PartialEq, Eq)]
pub enum CarrierEnd {
    /// With a gRPC status and its message.
    Status(i32, String),
    /// A client that has no more to say.
    Finished,
    Reset(Option<Reason>),
}

impl RawTunnel {
    /// Opens a tunnel as `agent`: `OpenTunnel`, or `OpenReverseTunnel`.
    pub async fn open(address: SocketAddr, method: &str, agent: &str) -> Self {
        let client = RawClient::connect(address).await;
        let token = format!("Bearer {TOKEN}");
        let headers = [("authorization", &*token), ("dialback-agent-id", agent), ("grpctunnel-negotiate", "on")];
        let request = with(&format!("/grpctunnel.v1.TunnelService/{method}"), &headers);
        let (answer, stream) = client.begin(request).await;
        let answer = soon("the carrier's head", answer).await.expect("it is taken");
        assert_eq!(answer.headers()["grpctunnel-negotiate"], "on");
        Self::of(stream, answer.into_body())
    }

    fn of(mouth: SendStream<Bytes>, ear: RecvStream) -> Self {
        Self { mouth: Mouth(mouth), ear: Ear { stream: ear, data: BytesMut::new() } }
    }

    /// Says these frames.
    pub async fn say<M: Message>(&mut self, frames: impl IntoIterator<Item = M>) {
        self.mouth.bytes(bytes_of(frames)).await;
    }

    /// The next frame.
    pub async fn hear<M: Message + Default>(&mut self) -> M {
        match within(PATIENCE, "a frame", self.ear.frame()).await.0 {
            Ok(frame) => frame,
            Err(end) => panic!("the carrier has ended: {end:?}"),
        }
    }

    /// How a call ends that was made on it: the code and the message. Frames before that are passed over.
    pub async fn ended(&mut self, id: i64) -> (i32, String) {
        loop {
            let ServerToClient { stream_id, frame } = self.hear().await;
            if let Some(Answered::CloseStream(close)) = frame
                && stream_id == id
            {
                let status = close.status.unwrap_or_default();
                return (status.code, status.message);
            }
        }
    }

    /// Waits until a call with this id is made on it, and all of its request is there.
    pub async fn hears_call(&mut self, id: i64) {
        let mut begun = false;
        loop {
            let ClientToServer { stream_id, frame } = self.hear().await;
            begun |= stream_id == id && matches!(frame, Some(Asked::NewStream(_)));
            if begun && stream_id == id && matches!(frame, Some(Asked::HalfClose(()))) {
                return;
            }
        }
    }

    /// Reads to the end, of what is said and of what is listened to.
    pub async fn end<M: Message + Default>(&mut self) -> CarrierEnd {
        let end = async {
            loop {
                match self.ear.frame::<M>().await {
                    Ok(_) => {}
                    // A client that gives up may have said before that it has no more to say.
                    Err(CarrierEnd::Finished) => return CarrierEnd::Reset(self.mouth.reset().await),
                    Err(end) => return end,
                }
            }
        };
        within(PATIENCE, "the end of the carrier", end).await.0
    }
}

impl Mouth {
    /// Says these bytes, whatever they are, as fast as they are taken. False when the carrier has ended.
    pub async fn bytes(&mut self, mut bytes: Bytes) -> bool {
        while bytes.has_remaining() {
            self.0.reserve_capacity(bytes.len());
            match poll_fn(|cx| self.0.poll_capacity(cx)).await {
                Some(Ok(room)) => {
                    let piece = bytes.split_to(room.min(bytes.len()));
                    if self.0.send_data(piece, false).is_err() {
                        return false;
                    }
                }
                _ => return false,
            }
        }
        true
    }

    /// Waits until the other side wants to hear no more.
    async fn reset(&mut self) -> Option<Reason> {
        poll_fn(|cx| self.0.poll_reset(cx)).await.ok()
    }

    /// Says no more.
    pub fn finish(&mut self) {
        let _ = self.0.send_data(Bytes::new(), true); // the carrier may have ended
    }
}

impl Ear {
    /// The next frame, or how the carrier has ended.
    pub async fn frame<M: Message + Default>(&mut self) -> Result<M, CarrierEnd> {
        loop {
            if let Some(prefix) = self.data.first_chunk::<5>() {
                let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
                if self.data.len() >= 5 + length {
                    self.data.advance(5);
                    return Ok(M::decode(self.data.split_to(length)).expect("a frame"));
                }
            }
            match self.stream.data().await {
                Some(Ok(data)) => {
                    let _ = self.stream.flow_control().release_capacity(data.len()); // the carrier may have ended
                    self.data.extend_from_slice(&data);
                }
                Some(Err(error)) => return Err(CarrierEnd::Reset(error.reason())),
                None => break,
            }
        }
        Err(match self.stream.trailers().await {
            Ok(Some(trailers)) => status_in(&trailers),
            Ok(None) => CarrierEnd::Finished,
            Err(error) => CarrierEnd::Reset(error.reason()),
        })
    }
}

fn status_in(trailers: &HeaderMap) -> CarrierEnd {
    let status = tonic::Status::from_header_map(trailers).expect("a status");
    CarrierEnd::Status(status.code().into(), status.message().to_owned())
}

/// A server that takes every tunnel, and hands it to the test. Dropping it takes no more of them.
pub struct RawHub {
    pub address: SocketAddr,
    tunnels: mpsc::UnboundedReceiver<RawTunnel>,
    accepting: JoinHandle<()>,
}

impl RawHub {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (give, tunnels) = mpsc::unbounded_channel();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).expect("a socket takes it");
                let give = give.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let mut answer = head();
                        answer.headers_mut().insert("grpctunnel-negotiate", "on".parse().expect("a value"));
                        let Ok(stream) = respond.send_response(answer, false) else { continue };
                        let _ = give.send(RawTunnel::of(stream, request.into_body())); // the test may be over
                    }
                });
            }
        });
        Self { address, tunnels, accepting }
    }

    /// The next tunnel that is opened.
    pub async fn tunnel(&mut self) -> RawTunnel {
        soon("a tunnel", self.tunnels.recv()).await.expect("self accepts")
    }
}

impl Drop for RawHub {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Frames as they are on the carrier.
pub fn bytes_of<M: Message>(frames: impl IntoIterator<Item = M>) -> Bytes {
    let mut bytes = BytesMut::new();
    for frame in frames {
        bytes.extend_from_slice(&framed(&frame.encode_to_vec()));
    }
    bytes.freeze()
}

/// A frame of who makes calls.
pub fn asks(stream_id: i64, frame: Asked) -> ClientToServer {
    ClientToServer { stream_id, frame: Some(frame) }
}

/// A frame of who answers them.
pub fn answers(stream_id: i64, frame: Answered) -> ServerToClient {
    ServerToClient { stream_id, frame: Some(frame) }
}

/// Begins a call, of revision two, to a method of an Echo.
pub fn call(id: i64, method: &str, steering: &[(&str, &str)]) -> ClientToServer {
    call_with(id, method, steering, WINDOW)
}

/// The same with another window.
pub fn call_with(id: i64, method: &str, steering: &[(&str, &str)], window: u32) -> ClientToServer {
    let mut headers = Metadata::default();
    for (key, value) in steering {
        headers.md.entry((*key).into()).or_insert_with(Values::default).val.push((*value).into());
    }
    let stream = NewStream {
        method_name: format!("/dialback.echo.v1.Echo/{method}"),
        request_headers: Some(headers),
        initial_window_size: window,
        protocol_revision: 2,
    };
    asks(id, Asked::NewStream(stream))
}

/// A message for an Echo, in one frame.
pub fn message(id: i64, data: &[u8]) -> ClientToServer {
    let data: Bytes = payload(data).encode_to_vec().into();
    asks(id, Asked::RequestMessage(MessageData { size: data.len() as u32, data }))
}

/// What its size says, and what there is of it, are two things.
pub fn misfit(size: u32, len: usize) -> MessageData {
    MessageData { size, data: vec![0; len].into() }
}

/// What a tunnel server begins with.
pub fn settings(id: i64, revisions: &[i32], window: u32) -> ServerToClient {
    let settings = Settings { supported_protocol_revisions: revisions.to_vec(), initial_window_size: window };
    answers(id, Answered::Settings(settings))
}

/// Settings as they should be.
pub fn good_settings() -> ServerToClient {
    settings(-1, &[0, 1, 2], WINDOW)
}

/// An answer of an Echo, all of it.
pub fn answer(id: i64, data: &[u8]) -> [ServerToClient; 2] {
    let data: Bytes = payload(data).encode_to_vec().into();
    let message = MessageData { size: data.len() as u32, data };
    [answers(id, Answered::ResponseMessage(message)), close(id, None)]
}

/// The end of a call.
pub fn close(id: i64, status: Option<Status>) -> ServerToClient {
    answers(id, Answered::CloseStream(CloseStream { response_trailers: None, status }))
}
