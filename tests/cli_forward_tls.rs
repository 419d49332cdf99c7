//! `dialback agent` beside local servers that speak TLS.
#![cfg(all(feature = "cli", unix))]

mod common;

use std::net::SocketAddr;

use common::{
    daemon::{Daemon, Files, dialback},
    echo::{Echo, client},
    gateway::{call_through, channel_at, until_answered},
    peers::Peer,
    rig::AGENT,
    tls::Certificates,
};
use tokio::task::JoinHandle;
use tonic::{Code, transport::Server};

#[tokio::test]
async fn local_server_may_speak_tls() {
    let files = Files::new();
    let certificates = Certificates::of(files.dir.path(), &["localhost"]);
    let (address, _server) = serve_tls(&certificates, false).await;
    let (_hub, ports) = files.hub(&[]).await;
    let hub = ports.hub.to_string();
    let url = format!("https://localhost:{}", address.port());
    let authority = certificates.authority.to_str().expect("UTF-8");
    let agent = files.agent(&hub, &url, &["--forward-ca", authority]).await;
    call_through(ports.gateway).await;
    agent.signal("TERM");
    assert!(agent.ended().await.0.success());

    // Without its authority, and without TLS, the caller is told what is wrong.
    for (forward, said) in [(url, "TLS: "), (format!("localhost:{}", address.port()), "write https://")] {
        let agent = files.agent(&hub, &forward, &[]).await;
        let mut client = client(channel_at(ports.gateway, AGENT).await);
        until_answered(&mut client, |status| status.code() == Code::Unavailable && status.message().contains(said))
            .await;
        agent.signal("TERM");
        assert!(agent.ended().await.0.success());
    }
}

#[tokio::test]
async fn local_server_may_ask_for_a_certificate() {
    let files = Files::new();
    let certificates = Certificates::of(files.dir.path(), &["localhost"]);
    let (address, _server) = serve_tls(&certificates, true).await;
    let (_hub, ports) = files.hub(&[]).await;
    let (hub, url) = (ports.hub.to_string(), format!("https://localhost:{}", address.port()));
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let (authority, certificate) = (text(&certificates.authority), text(&certificates.certificate));
    let key = text(&certificates.key);
    let trusting = ["--forward-ca", &*authority];
    let shown = [&trusting[..], &["--forward-cert", &certificate, "--forward-key", &key]].concat();

    // Without one, the caller is told.
    let agent = files.agent(&hub, &url, &trusting).await;
    let mut echo = client(channel_at(ports.gateway, AGENT).await);
    let asked = |status: &tonic::Status| {
        status.code() == Code::Unavailable
            && status.message().to_lowercase().replace(' ', "").contains("certificaterequired")
    };
    until_answered(&mut echo, asked).await;
    agent.signal("TERM");
    assert!(agent.ended().await.0.success());

    let agent = files.agent(&hub, &url, &shown).await;
    call_through(ports.gateway).await;
    agent.signal("TERM");
    assert!(agent.ended().await.0.success());

    // A file of the agent's, which gets them while it runs.
    let config = |more: &str| {
        let text = format!(
            "[agent]\nhub = \"{hub}\"\nid = \"laptop-1\"\nidentity = \"agent\"\nhost-key-fingerprint = \"{}\"\n\
             forward = \"{url}\"\nforward-ca = \"{authority}\"\n{more}",
            files.fingerprint
        );
        files.write("dialback.toml", &text);
    };
    config("");
    let mut agent = Daemon::start(&["agent", "--config", &files.path("dialback.toml")]);
    agent.logs("agent ready").await;
    until_answered(&mut echo, asked).await;
    config(&format!("forward-cert = \"{certificate}\"\nforward-key = \"{key}\"\n"));
    agent.signal("HUP");
    agent.logs("configuration read").await;
    call_through(ports.gateway).await;

    let arguments = files.agent_arguments(&hub, &url);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    for (more, code, said) in [
        (vec!["--forward-cert", &*certificate], 64, "--forward-cert and --forward-key go together"),
        (vec!["--forward-cert", &*certificate, "--forward-key", &*authority], 64, "has no private key in PEM form"),
        (vec!["--forward-cert", &*authority, "--forward-key", &*key], 64, "is no certificate of the key"),
    ] {
        let (status, lines) = Peer::start(&mut dialback(&[&arguments[..], &more].concat())).finish().await;
        assert!(status.code() == Some(code) && lines.join("\n").contains(said), "{more:?}: {lines:?}");
    }
}

/// An echo over TLS, on loopback, which may ask for certificates of the same authority.
async fn serve_tls(certificates: &Certificates, asks: bool) -> (SocketAddr, JoinHandle<()>) {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    use rustls::server::WebPkiClientVerifier;
    let chain = CertificateDer::pem_file_iter(&certificates.certificate).expect("read");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(&certificates.key).expect("a key");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let config = config.expect("versions");
    let config = if asks {
        let mut roots = rustls::RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(&certificates.authority).expect("a certificate");
        roots.add(authority).expect("an authority");
        let verifier = WebPkiClientVerifier::builder_with_provider(std::sync::Arc::new(roots), provider);
        config.with_client_cert_verifier(verifier.build().expect("a verifier"))
    } else {
        config.with_no_client_auth()
    };
    let mut config = config.with_single_cert(chain, key).expect("a config");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("localhost:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let (send, streams) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            let (acceptor, send) = (acceptor.clone(), send.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = send.send(Ok::<_, std::io::Error>(Secured(stream))).await; // the test is over
                }
            });
        }
    });
    let server = Server::builder().add_service(Echo::default().service());
    let serving = tokio::spawn(async move {
        let incoming = tokio_stream::wrappers::ReceiverStream::new(streams);
        server.serve_with_incoming(incoming).await.expect("it serves");
    });
    (address, serving)
}

/// A stream that tonic takes.
struct Secured(tokio_rustls::server::TlsStream<tokio::net::TcpStream>);

impl tonic::transport::server::Connected for Secured {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl tokio::io::AsyncRead for Secured {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl tokio::io::AsyncWrite for Secured {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        data: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
