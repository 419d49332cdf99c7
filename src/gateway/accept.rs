//! The gateway's accept loop, and the life of one client's connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::Stage;
use super::builder::Shared;
use super::call::{self, Client};
use crate::carrier::tcp;
use crate::http2::{self, Ended};
use crate::tls::Tls;

/// How long the loop rests after the system refused a connection, usually for want of file descriptors.
const REST: Duration = Duration::from_millis(100);

/// How long a connection may take until it speaks HTTP/2.
const GREETING: Duration = Duration::from_secs(10);

/// How long a connection may do without a caller that the policy knows.
const STRANGER: Duration = Duration::from_secs(30);

/// What is gathered for one write to the client's socket: h2 makes one for each frame.
const GATHERED: usize = 64 << 10;

/// How HTTP/2 begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Accepts until told to stop, then waits for its connections. Aborting the task ends them all.
pub(super) async fn run(
    listener: TcpListener,
    shared: Arc<Shared>,
    tls: Option<Tls>,
    mut stage: watch::Receiver<Stage>,
) {
    let mut followers = JoinSet::new();
    if let Some(policy) = shared.policy.clone() {
        followers.spawn(policy.follow());
    }
    if let Some(tls) = tls.clone() {
        followers.spawn(tls.follow());
    }
    let mut connections = JoinSet::new();
    let mut stop = stage.clone();
    loop {
        tokio::select! {
            biased;
            () = reached(&mut stop, Stage::Draining) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((_, peer)) if connections.len() >= shared.settings.max_connections => {
                    tracing::debug!(%peer, "connection refused: there are too many");
                }
                Ok((stream, peer)) => {
                    connections.spawn(connection(stream, peer, shared.clone(), tls.clone(), stage.clone()));
                }
                Err(error) if tcp::is_of_one_connection(&error) => {
                    tracing::debug!(%error, "connection ended while it was accepted");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    tokio::time::sleep(REST).await;
                }
            },
        }
    }
    drop(listener);
    tokio::select! {
        () = async { while connections.join_next().await.is_some() {} } => {}
        () = reached(&mut stage, Stage::Closed) => {}
    }
}

async fn reached(stage: &mut watch::Receiver<Stage>, wanted: Stage) {
    let _ = stage.wait_for(|stage| *stage >= wanted).await; // an error means that the gateway is gone
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    tls: Option<Tls>,
    stage: watch::Receiver<Stage>,
) {
    let ended = async {
        tcp::prepare(&stream)?;
        let Some(tls) = tls else {
            return match timeout(GREETING, greeting(&stream)).await? {
                Ok(Greeting::Http2) => serve(stream, Client::new(peer, Vec::new()), shared, stage).await,
                Ok(Greeting::Tls) => Err("it speaks TLS, and this gateway was not set up for it".into()),
                Ok(Greeting::Other) => refuse_http1(stream).await,
                Err(error) => Err(error.into()),
            };
        };
        let stream = timeout(GREETING, TlsAcceptor::from(tls.current()).accept(stream)).await??;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() == Some(b"http/1.1") {
            return refuse_http1(stream).await;
        }
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let names = certificate.map(names_in).unwrap_or_default();
        serve(stream, Client::new(peer, names), shared, stage).await
    };
    if let Err(error) = ended.await {
        tracing::debug!(%peer, error, "connection ended");
    }
}

enum Greeting {
    Http2,
    Tls,
    Other,
}

/// Looks at what a client says first, and leaves it to be read.
async fn greeting(stream: &TcpStream) -> io::Result<Greeting> {
    let mut seen = [0; PREFACE.len()];
    let mut pause = Duration::from_millis(5);
    loop {
        stream.readable().await?;
        let len = stream.peek(&mut seen).await?;
        let head = &seen[..len];
        if head == PREFACE {
            return Ok(Greeting::Http2);
        }
        // TLS begins with the head of a handshake record (RFC 8446 §5.1).
        if head.starts_with(&[0x16, 3]) {
            return Ok(Greeting::Tls);
        }
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !PREFACE.starts_with(head) {
            return Ok(Greeting::Other);
        }
        // Part of it is there, and `readable` would say so at once.
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(Duration::from_secs(1));
    }
}

/// Tells a client of HTTP/1.1 what is spoken here.
async fn refuse_http1(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Ended {
    const TEXT: &str =
        "This is a gRPC gateway. It speaks HTTP/2 only: use a gRPC client, or curl --http2-prior-knowledge.\n";
    let answer = format!(
        "HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{TEXT}",
        TEXT.len()
    );
    let said = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Unread bytes would turn the close into a reset, and the answer would be lost.
        let mut rest = tokio::io::AsyncReadExt::take(&mut stream, 64 << 10);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    timeout(GREETING, said).await??;
    Err("it speaks HTTP/1.1".into())
}

/// Serves HTTP/2 until the client leaves, or the gateway drains and the last call has ended.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    client: Client,
    shared: Arc<Shared>,
    mut stage: watch::Receiver<Stage>,
) -> Ended {
    let client = Arc::new(client);
    let stranger = async {
        tokio::time::sleep(STRANGER).await;
        if shared.policy.is_none() || client.is_known() {
            std::future::pending::<()>().await;
        }
        "it has made no call that was let in"
    };
    let call = |request, respond| call::serve(shared.clone(), client.clone(), request, respond);
    let stream = BufWriter::with_capacity(GATHERED, stream);
    let draining = reached(&mut stage, Stage::Draining);
    http2::serve(stream, &shared.settings.serving, call, draining, stranger).await
}

/// The DNS names and URIs in a client's certificate, which was verified.
fn names_in(certificate: &rustls::pki_types::CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return Vec::new() };
    // A DNS name that looks like a URI must not pass for one.
    let dns = certificate.valid_dns_names().filter(|name| !name.contains(':'));
    let uris = certificate.valid_uri_names().filter(|uri| uri.contains(':'));
    dns.chain(uris).map(str::to_owned).collect()
}
