//! SSH below the crate's own API: bytes on a socket, and russh with nothing switched off.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use russh::{
    Preferred, client, kex,
    keys::{
        PrivateKeyWithHashAlg,
        ssh_key::{self, LineEnding, private::Ed25519Keypair},
    },
    server,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

/// A key as russh has it, and the same for dialback.
pub fn key() -> (Arc<ssh_key::PrivateKey>, dialback::PrivateKey) {
    let key = ssh_key::PrivateKey::from(Ed25519Keypair::random(&mut russh::keys::key::safe_rng()));
    let ours = to_dialback(&key);
    (Arc::new(key), ours)
}

/// An ECDSA key, likewise.
pub fn ecdsa_key() -> (Arc<ssh_key::PrivateKey>, dialback::PrivateKey) {
    let algorithm = ssh_key::Algorithm::Ecdsa { curve: ssh_key::EcdsaCurve::NistP256 };
    let key = ssh_key::PrivateKey::random(&mut russh::keys::key::safe_rng(), algorithm).expect("a key");
    let ours = to_dialback(&key);
    (Arc::new(key), ours)
}

fn to_dialback(key: &ssh_key::PrivateKey) -> dialback::PrivateKey {
    let text = key.to_openssh(LineEnding::LF).expect("a key can be written");
    dialback::PrivateKey::from_openssh(&text).expect("a key can be read")
}

/// Reads an identification line, without its line break (RFC 4253 §4.2).
pub async fn read_id(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(String::from_utf8_lossy(&line).trim_end().to_owned()),
            byte => line.push(byte),
        }
    }
}

/// Reads the payload of an unencrypted packet (RFC 4253 §6).
pub async fn read_packet(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await? as usize;
    let mut packet = vec![0; length];
    stream.read_exact(&mut packet).await?;
    let padding = packet[0] as usize;
    Ok(packet[1..length - padding].to_vec())
}

/// An unencrypted packet.
pub fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 4 + (8 - (payload.len() + 5 + 4) % 8) % 8;
    let length = u32::try_from(1 + payload.len() + padding).expect("a short packet");
    let mut packet = length.to_be_bytes().to_vec();
    packet.push(padding as u8);
    packet.extend(payload);
    packet.extend(vec![0; padding]);
    packet
}

/// The lists of a KEXINIT (RFC 4253 §7.1), each as it stands on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KexInit {
    pub kex: String,
    pub host_key: String,
    /// Client to server, then server to client.
    pub ciphers: [String; 2],
    pub macs: [String; 2],
    pub compression: [String; 2],
    pub languages: [String; 2],
}

impl KexInit {
    pub fn parse(payload: &[u8]) -> Self {
        assert_eq!(payload[0], 20, "not a KEXINIT");
        let mut rest = &payload[17..];
        let mut list = || {
            let (length, after) = rest.split_first_chunk::<4>().expect("a list has a length");
            let (list, after) = after.split_at(u32::from_be_bytes(*length) as usize);
            rest = after;
            String::from_utf8(list.to_vec()).expect("lists are ASCII")
        };
        let parsed = Self {
            kex: list(),
            host_key: list(),
            ciphers: [list(), list()],
            macs: [list(), list()],
            compression: [list(), list()],
            languages: [list(), list()],
        };
        assert_eq!(rest, [0; 5], "no guess follows, and nothing else");
        parsed
    }

    pub fn payload(&self) -> Vec<u8> {
        let mut payload = vec![20; 17];
        let pairs = [&self.ciphers, &self.macs, &self.compression, &self.languages];
        for list in [&self.kex, &self.host_key].into_iter().chain(pairs.into_iter().flatten()) {
            payload.extend((list.len() as u32).to_be_bytes());
            payload.extend(list.as_bytes());
        }
        payload.extend([0; 5]);
        payload
    }
}

/// A client that trusts any server, and remembers how the server took its leave.
pub struct Client {
    goodbye: watch::Sender<Option<(u32, String)>>,
}

/// What [`dial`] gives.
pub struct Dialled {
    pub handle: client::Handle<Client>,
    /// The code and the text of the server's disconnect message.
    pub goodbye: watch::Receiver<Option<(u32, String)>>,
}

impl client::Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &russh::keys::PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }

    async fn disconnected(&mut self, reason: client::DisconnectReason<russh::Error>) -> Result<(), russh::Error> {
        match reason {
            client::DisconnectReason::ReceivedDisconnect(info) => {
                self.goodbye.send_replace(Some((info.reason_code as u32, info.message)));
                Ok(())
            }
            client::DisconnectReason::Error(error) => Err(error),
        }
    }
}

/// Dials a hub and exchanges keys; does not log in.
pub async fn dial(hub: SocketAddr) -> Dialled {
    dial_with(client::Config::default(), hub).await
}

async fn dial_with(config: client::Config, hub: SocketAddr) -> Dialled {
    let (goodbye, seen) = watch::channel(None);
    // In a debug build the post-quantum exchange takes most of a login's time.
    let quick = [kex::CURVE25519, kex::EXTENSION_SUPPORT_AS_CLIENT, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT];
    let preferred = Preferred { kex: quick.to_vec().into(), ..Preferred::default() };
    let config = Arc::new(client::Config { preferred, nodelay: true, ..config });
    let handle = client::connect(config, hub, Client { goodbye }).await.expect("keys are exchanged");
    Dialled { handle, goodbye: seen }
}

impl Dialled {
    /// Tries one key. `false` means that it was refused, or that the connection is gone.
    pub async fn try_key(&mut self, user: &str, key: &Arc<ssh_key::PrivateKey>) -> bool {
        let key = PrivateKeyWithHashAlg::new(key.clone(), None);
        self.handle.authenticate_publickey(user, key).await.is_ok_and(|answer| answer.success())
    }
}

/// Dials a hub and logs in.
pub async fn log_in(hub: SocketAddr, user: &str, key: &Arc<ssh_key::PrivateKey>) -> Dialled {
    log_in_with(client::Config::default(), hub, user, key).await
}

/// The same, as another kind of client.
pub async fn log_in_with(
    config: client::Config,
    hub: SocketAddr,
    user: &str,
    key: &Arc<ssh_key::PrivateKey>,
) -> Dialled {
    let mut dialled = dial_with(config, hub).await;
    assert!(dialled.try_key(user, key).await, "{user} is let in");
    dialled
}

/// An SSH server that lets everybody in, and counts who gets how far.
pub struct FakeHub {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    /// The sessions whose agent has asked to be called.
    pub ready: mpsc::UnboundedReceiver<server::Handle>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
pub struct Seen {
    /// TCP connections.
    pub connections: AtomicUsize,
    /// Requests for the service `ssh-userauth`, and every authentication request after them.
    pub userauth: AtomicUsize,
}

impl FakeHub {
    pub async fn start(config: server::Config) -> Self {
        let config = Arc::new(server::Config { auth_rejection_time: Duration::from_millis(10), ..config });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen = Arc::new(Seen::default());
        let (send, ready) = mpsc::unbounded_channel();
        let counts = seen.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counts.connections.fetch_add(1, Ordering::Relaxed);
                stream.set_nodelay(true).expect("a socket takes it");
                let handler = ServerHandler { seen: counts.clone(), ready: send.clone() };
                let config = config.clone();
                tokio::spawn(async move {
                    // A dialler that leaves early is what most tests want.
                    if let Ok(session) = server::run_stream(config, stream, handler).await {
                        let _ = session.await;
                    }
                });
            }
        });
        Self { address, seen, ready, accepting }
    }

    /// One with this host key and nothing else special.
    pub async fn with_key(key: &ssh_key::PrivateKey) -> Self {
        Self::start(server::Config { keys: vec![key.clone()], ..Default::default() }).await
    }

    pub fn userauth(&self) -> usize {
        self.seen.userauth.load(Ordering::Relaxed)
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct ServerHandler {
    seen: Arc<Seen>,
    ready: mpsc::UnboundedSender<server::Handle>,
}

impl ServerHandler {
    fn count(&self) {
        self.seen.userauth.fetch_add(1, Ordering::Relaxed);
    }
}

impl server::Handler for ServerHandler {
    type Error = russh::Error;

    /// Asked for when the client requests the service, before it names a user.
    async fn authentication_banner(&mut self) -> Result<Option<String>, russh::Error> {
        self.count();
        Ok(None)
    }

    async fn auth_none(&mut self, _: &str) -> Result<server::Auth, russh::Error> {
        self.count();
        Ok(server::Auth::reject())
    }

    async fn auth_publickey_offered(
        &mut self,
        _: &str,
        _: server::PublicKeyOffer<'_>,
    ) -> Result<server::Auth, russh::Error> {
        self.count();
        Ok(server::Auth::Accept)
    }

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: server::VerifiedPublicKey<'_>,
    ) -> Result<server::Auth, russh::Error> {
        Ok(server::Auth::Accept)
    }

    async fn streamlocal_forward(&mut self, path: &str, session: &mut server::Session) -> Result<bool, russh::Error> {
        assert_eq!(path, "/grpc-tunnel");
        let _ = self.ready.send(session.handle()); // most tests do not call the agent
        Ok(true)
    }
}

/// Sends bytes and waits for the other side to close. Returns how long that took.
pub async fn until_closed(stream: &mut TcpStream, bytes: &[u8]) -> Duration {
    let started = std::time::Instant::now();
    // A peer that has already closed makes this fail, and then the read as well.
    let _ = stream.write_all(bytes).await;
    let mut rest = [0; 4096];
    while let Ok(1..) = stream.read(&mut rest).await {}
    started.elapsed()
}
