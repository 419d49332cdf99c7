use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_stream::StreamExt;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt, service_fn};

use super::*;

// RFC 9113 §6.5.2
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The settings a peer announces, and the connection window it opens.
async fn announced(io: &mut DuplexStream) -> (BTreeMap<u16, u32>, u32) {
    let (mut settings, mut window) = (None, None);
    while settings.is_none() || window.is_none() {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, _flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        io.read_exact(&mut payload).await.unwrap();
        match (kind, stream) {
            (4, _) if !payload.is_empty() => {
                let entry = |e: &[u8]| (u16::from_be_bytes([e[0], e[1]]), u32::from_be_bytes([e[2], e[3], e[4], e[5]]));
                settings = Some(payload.chunks(6).map(entry).collect());
            }
            (8, [0, 0, 0, 0]) => {
                window = Some(65_535 + u32::from_be_bytes(payload.try_into().unwrap()));
            }
            (4, _) => {} // the acknowledgement of ours
            other => panic!("unexpected frame {other:?}"),
        }
    }
    (settings.unwrap(), window.unwrap())
}

/// Serves one connection with a tuned server, as long as the test's runtime lives.
fn serve(io: DuplexStream) {
    let service = service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Frames(64))) });
    let incoming = tokio_stream::once(Ok::<_, Infallible>(io)).chain(tokio_stream::pending());
    tokio::spawn(tune_server(Server::builder()).serve_with_incoming(service, incoming));
}

#[tokio::test]
async fn server_announces_its_windows_and_limits() {
    let (mut client, server) = tokio::io::duplex(4096);
    serve(server);
    client.write_all(PREFACE).await.unwrap();
    client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let (settings, window) = announced(&mut client).await;
    assert_eq!(window, HTTP2_CONNECTION_WINDOW);
    assert_eq!(settings[&INITIAL_WINDOW_SIZE], HTTP2_STREAM_WINDOW);
    assert_eq!(settings[&MAX_CONCURRENT_STREAMS], HTTP2_MAX_CONCURRENT_STREAMS);
    assert_eq!(settings[&MAX_HEADER_LIST_SIZE], HTTP2_MAX_HEADER_LIST);
    assert_eq!(settings.get(&MAX_FRAME_SIZE).copied().unwrap_or(16_384), 16_384);
}

#[tokio::test]
async fn endpoint_announces_its_windows_and_limits() {
    let (client, mut server) = tokio::io::duplex(4096);
    let channel = tuned_channel(client, &Arc::default());
    let call = tokio::spawn(channel.oneshot(Request::new(Body::empty())));
    let mut preface = [0; PREFACE.len()];
    server.read_exact(&mut preface).await.unwrap();
    let (settings, window) = announced(&mut server).await;
    assert_eq!(window, HTTP2_CONNECTION_WINDOW);
    assert_eq!(settings[&INITIAL_WINDOW_SIZE], HTTP2_STREAM_WINDOW);
    assert_eq!(settings[&MAX_HEADER_LIST_SIZE], HTTP2_MAX_HEADER_LIST);
    assert_eq!(settings.get(&MAX_FRAME_SIZE).copied().unwrap_or(16_384), 16_384);
    call.abort();
}

/// A channel on `io`; a second dial fails, and each dial counts.
fn tuned_channel(io: DuplexStream, dials: &Arc<AtomicUsize>) -> Channel {
    let (io, dials) = (Mutex::new(Some(io)), dials.clone());
    let connector = service_fn(move |_: http::Uri| {
        dials.fetch_add(1, Ordering::Relaxed);
        let io = io.lock().unwrap().take().map(TokioIo::new);
        async move { io.ok_or("the connection ended") }
    });
    tune_endpoint(Endpoint::from_static("http://agent")).connect_with_connector_lazy(connector)
}

/// A body of so many small frames, always ready.
struct Frames(usize);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 = self.0.saturating_sub(1);
        Poll::Ready((self.0 > 0).then(|| Ok(Frame::data(Bytes::from_static(&[0; 1024])))))
    }
}

#[tokio::test]
async fn bursts_of_cancelled_calls_do_not_end_the_connection() {
    let (client, server) = tokio::io::duplex(256 << 10);
    serve(server);
    let dials = Arc::new(AtomicUsize::new(0));
    let mut channel = tuned_channel(client, &dials);
    for burst in 0..10 {
        let mut responses = Vec::new();
        for _ in 0..200 {
            let call = channel.ready().await.unwrap().call(Request::new(Body::empty()));
            responses.push(tokio::spawn(call));
        }
        for response in responses {
            // Dropped with most of its body still on the way.
            response.await.unwrap().unwrap_or_else(|error| panic!("burst {burst}: {error:?}"));
        }
    }
    assert_eq!(dials.load(Ordering::Relaxed), 1);
}
