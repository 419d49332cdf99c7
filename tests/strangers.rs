//! What connections that never authenticate can do to a hub: take one bounded place each, for a bounded time.

mod common;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use common::proxy::{Proxy, Way};
use common::raw::{self, KexInit};
use common::rig::soon;
use dialback::{Agent, AgentBuilder, AllowedKeys, HostKeys, Hub, HubBuilder, PrivateKey};
use russh::keys::agent::AgentIdentity;
use russh::keys::{HashAlg, PrivateKeyWithHashAlg, ssh_key};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// A short login deadline for tests that wait for it.
const LOGIN: Duration = Duration::from_secs(2);

/// How far from its deadline a connection may end.
const SLACK: Duration = Duration::from_secs(1);

/// A hub, and an agent that it knows.
fn pair() -> (HubBuilder, AgentBuilder) {
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let known = HostKeys::public_key(host.public_key());
    let allowed = AllowedKeys::new().allow("laptop-1", key.public_key()).expect("an id");
    let hub = Hub::builder(host).authorizer(allowed).rejection_time(Duration::from_millis(10));
    let agent = Agent::builder("laptop-1", key).host_keys(known);
    (hub, agent.backoff(Duration::from_millis(100), Duration::from_millis(200), Duration::from_secs(30)))
}

/// Dials from one of the many addresses of loopback.
async fn dial_from(source: Ipv4Addr, hub: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((source, 0).into()).expect("an address of loopback");
    socket.connect(hub).await.expect("dial")
}

/// The n-th source address: 127.1.0.1, 127.1.0.2, …
fn source(n: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x7f01_0000 + 1 + n as u32)
}

/// An offer that the hub can agree to.
fn kexinit() -> Vec<u8> {
    let both = |list: &str| [list.to_owned(), list.to_owned()];
    let offer = KexInit {
        kex: "curve25519-sha256,kex-strict-c-v00@openssh.com".into(),
        host_key: "ssh-ed25519".into(),
        ciphers: both("aes256-gcm@openssh.com"),
        macs: both("hmac-sha2-256-etm@openssh.com"),
        compression: both("none"),
        languages: both(""),
    };
    raw::packet(&offer.payload())
}

/// Whether a peer has closed a connection, now or before.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = [0; 4096];
    loop {
        match tokio::time::timeout(Duration::from_millis(1), stream.read(&mut rest)).await {
            Err(_) => return false,
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(_)) => {}
        }
    }
}

/// Panics outside the tests themselves: in the crate or below it.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.location().is_none_or(|at| !at.file().starts_with("tests/")) {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            before(panic);
        }));
    });
}

/// What was logged by this thread: each line with its level.
#[derive(Clone, Default)]
struct Loud(Arc<Mutex<Vec<(tracing::Level, String)>>>);

thread_local! {
    /// Who listens on this thread, which runs one test and all that it starts.
    static LISTENER: RefCell<Option<Loud>> = const { RefCell::new(None) };
}

/// One subscriber for all threads: where each has its own, what one switches off another may miss.
struct ToListener;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for ToListener {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let Some(Loud(lines)) = LISTENER.with_borrow(Clone::clone) else { return };
        let mut line = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            let _ = write!(line, " {}={value:?}", field.name()); // a string takes all
        });
        lines.lock().unwrap_or_else(PoisonError::into_inner).push((*event.metadata().level(), line));
    }
}

impl Loud {
    fn listen(&self) {
        static SUBSCRIBER: Once = Once::new();
        SUBSCRIBER.call_once(|| {
            let subscriber = tracing_subscriber::registry().with(ToListener);
            tracing::subscriber::set_global_default(subscriber).expect("no other is set");
        });
        LISTENER.set(Some(self.clone()));
    }

    fn listen_no_more(&self) {
        LISTENER.set(None);
    }

    /// The lines of this level and worse.
    fn lines(&self, level: tracing::Level) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|(is, _)| *is <= level).map(|(_, line)| line.clone()).collect()
    }
}

fn rss() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says how much memory is used");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches("kB").trim().parse::<usize>().expect("a number") * 1024
}

/// How a stranger begins.
#[derive(Clone, Copy, Debug)]
enum Opening {
    Silent,
    IdOnly,
    /// Says that a packet of 256 KiB follows.
    Announcing,
}

impl Opening {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Silent => vec![],
            Self::IdOnly => b"SSH-2.0-scanner\r\n".to_vec(),
            Self::Announcing => [b"SSH-2.0-scanner\r\n".as_slice(), &(256u32 << 10).to_be_bytes(), &[4; 64]].concat(),
        }
    }
}

/// `total` strangers, each from a source of its own, hold on for as long as the hub lets them. An agent comes when a
/// third of them have, and gets in.
async fn agent_gets_in_among(total: usize) {
    for opening in [Opening::Silent, Opening::IdOnly, Opening::Announcing] {
        let (hub, agent) = pair();
        let hub = hub.bind("127.0.0.1:0").await.expect("bind");
        let before = rss();
        let (started, at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(512)));
        let mut strangers = JoinSet::new();
        for n in 0..total {
            let (started, at_once, address) = (started.clone(), at_once.clone(), hub.local_addr());
            strangers.spawn(async move {
                // As many as there are file descriptors for; who is sent away makes room for the next.
                let _permit = at_once.acquire().await.expect("never closed");
                let mut stream = dial_from(source(n), address).await;
                started.fetch_add(1, Ordering::Relaxed);
                raw::until_closed(&mut stream, &opening.bytes()).await;
            });
        }
        soon("the first strangers", async {
            while started.load(Ordering::Relaxed) < total / 3 {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;

        let knocked = Instant::now();
        let agent = soon("the agent's login", agent.connect_when_available(hub.local_addr().to_string())).await;
        let took = knocked.elapsed();

        let agent = agent.unwrap_or_else(|error| panic!("{opening:?}: {error:?}"));
        eprintln!("E1: {total} strangers, {opening:?}: the agent waited {took:?}");
        assert!(took <= Duration::from_secs(2), "{opening:?}: the agent waited {took:?}");
        let grown = rss().saturating_sub(before);
        assert!(grown <= 128 * 300_000 + (20 << 20), "{opening:?}: {grown} bytes more");
        soon("the hub's word", hub.wait_for("laptop-1")).await.expect("the agent");
        strangers.abort_all();
        drop(agent);
    }
}

#[tokio::test]
async fn agent_gets_in_among_many_strangers() {
    agent_gets_in_among(600).await;
}

#[tokio::test]
#[ignore = "long: cargo test --release -- --ignored"]
async fn agent_gets_in_among_5000_strangers() {
    agent_gets_in_among(5000).await;
}

/// Some sources take all places, and come back as soon as one is sent away. An agent on a far path, whose login takes more
/// than a second, gets in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_on_a_far_path_gets_in_among_strangers_that_come_back() {
    let (hub, agent) = pair();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let target = hub.local_addr();
    let path = Proxy::to(target).await;
    path.set(Way::Both, |link| link.delay = Duration::from_millis(100));
    let mut strangers = JoinSet::new();
    for n in 0..160 {
        strangers.spawn(async move {
            loop {
                let mut stream = dial_from(source(n / 16), target).await;
                raw::until_closed(&mut stream, b"").await;
                sleep(Duration::from_millis(20)).await;
            }
        });
    }
    sleep(Duration::from_secs(1)).await;

    soon("the agent's login", agent.connect(path.address().to_string())).await.expect("it gets in at once");
}

#[tokio::test]
async fn one_source_has_its_share_and_no_more() {
    let (hub, agent) = pair();
    let hub = hub.unauthenticated_limits(128, 4).bind("127.0.0.1:0").await.expect("bind");
    let mut first = Vec::new();
    for _ in 0..4 {
        let mut stream = dial_from(source(0), hub.local_addr()).await;
        soon("the hub's id", raw::read_id(&mut stream)).await.expect("it is served");
        first.push(stream);
    }

    let mut fifth = dial_from(source(0), hub.local_addr()).await;

    let took = soon("the refusal", raw::until_closed(&mut fifth, b"")).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    for stream in &mut first {
        assert!(!is_closed(stream).await, "an earlier one was harmed");
    }
    // Another source is none the worse, and who leaves makes room.
    soon("the agent", agent.connect(hub.local_addr().to_string())).await.expect("another source gets in");
    first.pop();
    soon("room", async {
        loop {
            let mut again = dial_from(source(0), hub.local_addr()).await;
            if raw::read_id(&mut again).await.is_ok() {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn oldest_stranger_gives_way_when_all_places_are_taken() {
    let (hub, agent) = pair();
    let hub = hub.unauthenticated_limits(3, 3).bind("127.0.0.1:0").await.expect("bind");
    let mut strangers = Vec::new();
    for n in 0..3 {
        let mut stream = dial_from(source(n), hub.local_addr()).await;
        soon("the hub's id", raw::read_id(&mut stream)).await.expect("it is served");
        strangers.push(stream);
    }

    let agent = soon("the login", agent.connect_when_available(hub.local_addr().to_string())).await.expect("let in");

    let took = soon("the oldest's end", raw::until_closed(&mut strangers[0], b"")).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!is_closed(&mut strangers[1]).await && !is_closed(&mut strangers[2]).await, "only the oldest goes");
    // An agent is a stranger no more: it keeps no place, and gives none up.
    for n in 3..6 {
        let mut stream = dial_from(source(n), hub.local_addr()).await;
        let _ = soon("an answer", raw::read_id(&mut stream)).await; // refused or served: both press on the places
        strangers.push(stream);
    }
    assert!(matches!(*agent.status().borrow(), dialback::AgentStatus::Connected { .. }));
}

/// Feeds a connection `drip` every 100 ms and tells when the hub ended it.
async fn drip(mut stream: TcpStream, opening: Vec<u8>, drip: Vec<u8>) -> Duration {
    let started = Instant::now();
    stream.write_all(&opening).await.expect("send");
    for byte in drip.iter().cycle() {
        if is_closed(&mut stream).await || stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    started.elapsed()
}

#[track_caller]
fn assert_at_deadline(what: &str, took: Duration) {
    assert!((LOGIN - SLACK..=LOGIN + SLACK).contains(&took), "{what}: closed after {took:?}");
}

#[tokio::test]
async fn slow_handshakes_end_at_the_login_deadline() {
    let (hub, _) = pair();
    let hub = hub.login_timeout(LOGIN).bind("127.0.0.1:0").await.expect("bind");
    let id = b"SSH-2.0-slow\r\n".to_vec();
    let offer = kexinit();
    let (head, tail) = offer.split_at(40);
    let mut cases = JoinSet::new();
    for (what, opening, dripped) in [
        ("silence", vec![], vec![]),
        ("in the id", b"SSH-2.0-".to_vec(), b"a".to_vec()),
        ("after the id", id.clone(), vec![]),
        ("in KEXINIT", [id.as_slice(), head].concat(), tail[..20].to_vec()),
        ("after KEXINIT", [id.as_slice(), &kexinit()].concat(), vec![]),
        ("in the key", [id.as_slice(), &kexinit()].concat(), raw::packet(&[30; 100])[..60].to_vec()),
    ] {
        let stream = dial_from(source(0), hub.local_addr()).await;
        let opening = opening.clone();
        cases.spawn(async move {
            let took = match dripped.is_empty() {
                true => {
                    let mut stream = stream;
                    raw::until_closed(&mut stream, &opening).await
                }
                false => drip(stream, opening, dripped).await,
            };
            (what, took)
        });
    }
    for (what, took) in soon("the ends", cases.join_all()).await {
        assert_at_deadline(what, took);
    }
}

/// Shows a key and never signs with it.
struct NeverSigns;

#[derive(Debug)]
struct Unsigned;

impl From<russh::SendError> for Unsigned {
    fn from(_: russh::SendError) -> Self {
        Self
    }
}

impl russh::Signer for NeverSigns {
    type Error = Unsigned;

    async fn auth_sign(&mut self, _: &AgentIdentity, _: Option<HashAlg>, _: Vec<u8>) -> Result<Vec<u8>, Unsigned> {
        Err(Unsigned)
    }
}

#[tokio::test]
async fn busy_strangers_end_at_the_login_deadline_too() {
    let (hub, _) = pair();
    let (known, ours) = raw::key();
    let allowed = AllowedKeys::new().allow("laptop-1", ours.public_key()).expect("an id");
    let hub = hub.authorizer(allowed).login_timeout(LOGIN).bind("127.0.0.1:0").await.expect("bind");

    let address = hub.local_addr();
    let silent = async move {
        let started = Instant::now();
        let dialled = raw::dial(address).await;
        let _ = dialled.handle.await; // however it ends
        started.elapsed()
    };
    let chatty = async move {
        let started = Instant::now();
        let dialled = raw::dial(address).await;
        while !dialled.handle.is_closed() {
            let _ = dialled.handle.send_keepalive(true).await; // fails once it is closed
            sleep(Duration::from_millis(100)).await;
        }
        started.elapsed()
    };
    // Fewer probes than the limit, with a key that is welcome.
    let probing = async move {
        let started = Instant::now();
        let mut dialled = raw::dial(address).await;
        for _ in 0..4 {
            let key = known.public_key().clone();
            let _ = dialled.handle.authenticate_publickey_with("laptop-1", key, None, &mut NeverSigns).await;
            sleep(Duration::from_millis(300)).await;
        }
        let _ = dialled.handle.await; // however it ends
        started.elapsed()
    };

    let (silent, chatty, probing) = soon("the ends", async { tokio::join!(silent, chatty, probing) }).await;

    assert_at_deadline("after NEWKEYS", silent);
    assert_at_deadline("messages without a login", chatty);
    assert_at_deadline("probes", probing);
}

async fn goodbye_of(dialled: &mut raw::Dialled) -> (u32, String) {
    let goodbye = soon("a disconnect message", dialled.goodbye.wait_for(Option::is_some)).await;
    goodbye.expect("the hub says why").clone().expect("some")
}

/// RFC 4253 §11.1: SSH_DISCONNECT_NO_MORE_AUTH_METHODS_AVAILABLE.
const NO_MORE: u32 = 14;

#[tokio::test]
async fn too_many_keys_are_answered_with_disconnect() {
    let (hub, _) = pair();
    let (right, ours) = raw::key();
    let allowed = AllowedKeys::new().allow("laptop-1", ours.public_key()).expect("an id");
    let hub = hub.authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");

    let mut dialled = raw::dial(hub.local_addr()).await;
    for n in 0..3 {
        assert!(!dialled.try_key("laptop-1", &raw::key().0).await, "wrong key {n}");
        assert!(!dialled.handle.is_closed(), "wrong key {n} ended it");
    }
    // The fourth is too late, be it the right one.
    assert!(!dialled.try_key("laptop-1", &right).await);
    dialled.try_key("laptop-1", &right).await;
    assert_eq!(goodbye_of(&mut dialled).await.0, NO_MORE);

    // Within the limit, the right one is taken.
    let mut dialled = raw::dial(hub.local_addr()).await;
    for _ in 0..2 {
        assert!(!dialled.try_key("laptop-1", &raw::key().0).await);
    }
    assert!(dialled.try_key("laptop-1", &right).await);
}

#[tokio::test]
async fn changing_the_user_name_gives_no_new_attempts() {
    let (hub, _) = pair();
    let (right, ours) = raw::key();
    let allowed = AllowedKeys::new().allow("laptop-1", ours.public_key()).expect("an id");
    let hub = hub.authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");

    let mut dialled = raw::dial(hub.local_addr()).await;
    for user in ["laptop-2", "laptop-3", "laptop-4", "laptop-1", "laptop-1"] {
        assert!(!dialled.try_key(user, &right).await, "{user}");
    }

    assert_eq!(goodbye_of(&mut dialled).await.0, NO_MORE);
}

#[tokio::test]
async fn too_many_probes_are_answered_with_disconnect() {
    let (hub, _) = pair();
    let (known, ours) = raw::key();
    let allowed = AllowedKeys::new().allow("laptop-1", ours.public_key()).expect("an id");
    let hub = hub.authorizer(allowed).bind("127.0.0.1:0").await.expect("bind");
    let mut dialled = raw::dial(hub.local_addr()).await;

    let mut probes = 0;
    while !dialled.handle.is_closed() && probes < 100 {
        let key = known.public_key().clone();
        let _ = dialled.handle.authenticate_publickey_with("laptop-1", key, None, &mut NeverSigns).await;
        probes += 1;
    }

    assert_eq!(goodbye_of(&mut dialled).await.0, NO_MORE);
    assert!(probes <= 8 + 5, "{probes} probes were answered");
}

#[tokio::test]
async fn passwords_are_no_way_in() {
    let (hub, _) = pair();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    let mut dialled = raw::dial(hub.local_addr()).await;

    let none = dialled.handle.authenticate_none("laptop-1").await.expect("an answer");
    let password = dialled.handle.authenticate_password("laptop-1", "").await.expect("an answer");
    let interactive = dialled.handle.authenticate_keyboard_interactive_start("laptop-1", None).await;

    assert!(!none.success() && !password.success());
    use russh::client::KeyboardInteractiveAuthResponse::Failure;
    assert!(matches!(interactive, Ok(Failure { .. })), "{interactive:?}");
}

/// An agent logs in after all this; nothing panicked; nothing was logged that an operator would see.
#[tokio::test]
async fn garbage_is_hung_up_on_at_once_and_quietly() {
    count_panics();
    let loud = Loud::default();
    let (hub, agent) = pair();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    loud.listen();

    let tls_hello: Vec<u8> = [&[0x16, 3, 1, 0, 0x8d, 1, 0, 0, 0x89, 3, 3][..], &[0xab; 134]].concat();
    let megabyte: Vec<u8> = (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("HTTP", b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("TLS", tls_hello),
        ("SSH 1", b"SSH-1.5-old\r\n".to_vec()),
        ("SSH 3", b"SSH-3.0-new\r\n".to_vec()),
        ("1 MB", megabyte),
        ("1 MB of one letter", vec![b'A'; 1 << 20]),
        ("NUL", vec![0]),
        ("many NUL", vec![0; 4096]),
        ("NUL in the id", b"SSH\0-2.0-x\r\n".to_vec()),
        ("LF", b"\n".to_vec()),
        ("CRLF", b"\r\n".to_vec()),
        ("CR", b"\r".to_vec()),
        ("LF before the id", b"\nSSH-2.0-x\r\n".to_vec()),
        ("banner before the id", b"hello\r\nSSH-2.0-x\r\n".to_vec()),
        ("lower case", b"ssh-2.0-x\r\n".to_vec()),
        ("one letter", b"G".to_vec()),
        ("id without end", [b"SSH-2.0-".as_slice(), &[b'x'; 300]].concat()),
        ("id that is too long", [b"SSH-2.0-".as_slice(), &[b'x'; 300], b"\r\n"].concat()),
        ("not UTF-8", b"SSH-2.0-\xff\xfe\r\n".to_vec()),
        ("garbage after the id", [b"SSH-2.0-x\r\n".as_slice(), &[0xff; 64]].concat()),
        ("empty packets", [b"SSH-2.0-x\r\n".as_slice(), &[0; 64]].concat()),
        ("padding longer than its packet", [b"SSH-2.0-x\r\n".as_slice(), &[0, 0, 0, 12, 255], &[1; 11]].concat()),
        ("wrong message first", [b"SSH-2.0-x\r\n".as_slice(), &raw::packet(&[50; 20])].concat()),
        ("KEXINIT cut short", [b"SSH-2.0-x\r\n".as_slice(), &raw::packet(&[20; 30])].concat()),
        ("KEXINIT with a huge list", {
            let mut payload = vec![20; 17];
            payload.extend(u32::MAX.to_be_bytes());
            [b"SSH-2.0-x\r\n".as_slice(), &raw::packet(&payload)].concat()
        }),
        ("key of the wrong size", {
            let key = raw::packet(&[[30].as_slice(), &5u32.to_be_bytes(), &[9; 5]].concat());
            [b"SSH-2.0-x\n".as_slice(), &kexinit(), &key].concat()
        }),
        ("key of zeros", {
            let key = raw::packet(&[[30].as_slice(), &32u32.to_be_bytes(), &[0; 32]].concat());
            [b"SSH-2.0-x\n".as_slice(), &kexinit(), &key, &raw::packet(&[21]), &[7; 64]].concat()
        }),
    ];
    for (what, bytes) in cases {
        let mut stream = dial_from(source(0), hub.local_addr()).await;
        let took = soon(what, raw::until_closed(&mut stream, &bytes)).await;
        assert!(took <= Duration::from_secs(1), "{what}: closed after {took:?}");
    }
    loud.listen_no_more();

    assert_eq!(loud.lines(tracing::Level::INFO), Vec::<String>::new());
    assert!(!loud.lines(tracing::Level::DEBUG).is_empty(), "not even a debug line");
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "something panicked");
    soon("the agent", agent.connect(hub.local_addr().to_string())).await.expect("the hub is unharmed");
}

#[tokio::test]
async fn line_breaks_of_an_id_may_be_lf_or_crlf() {
    let (hub, _) = pair();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    for id in ["SSH-2.0-x\r\n", "SSH-2.0-x\n", "SSH-2.0-x with a comment\r\n", "SSH-1.99-x\r\n"] {
        let mut stream = dial_from(source(0), hub.local_addr()).await;
        stream.write_all(id.as_bytes()).await.expect("send");
        soon("the hub's id", raw::read_id(&mut stream)).await.expect("an id");
        let packet = soon("KEXINIT", raw::read_packet(&mut stream)).await;
        assert_eq!(packet.expect("a packet").first(), Some(&20), "{id:?}");
    }
}

/// What strangers claim to be is escaped before it is logged.
#[tokio::test]
async fn names_of_strangers_are_escaped_in_the_log() {
    let loud = Loud::default();
    let (hub, _) = pair();
    let hub = hub.bind("127.0.0.1:0").await.expect("bind");
    loud.listen();
    let mut dialled = raw::dial(hub.local_addr()).await;
    for user in ["a\nERROR all is lost", "\x1b[31m"] {
        assert!(!dialled.try_key(user, &raw::key().0).await);
    }
    loud.listen_no_more();

    let lines = loud.lines(tracing::Level::DEBUG);
    assert!(lines.iter().any(|line| line.contains("ERROR all is lost")), "the claim was not logged: {lines:#?}");
    assert!(!lines.iter().any(|line| line.chars().any(char::is_control)), "{lines:#?}");
}

/// Answers nobody, ever.
struct Hangs;

#[async_trait::async_trait]
impl dialback::Authorizer for Hangs {
    async fn authorize(&self, _: &dialback::Claim) -> Result<dialback::Grant, dialback::Denied> {
        let _alive = Alive::new();
        std::future::pending().await
    }
}

static ALIVE: AtomicUsize = AtomicUsize::new(0);

struct Alive;

impl Alive {
    fn new() -> Self {
        ALIVE.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A question to an authorizer that hangs must not outlive the login's deadline: it would be kept for ever.
#[tokio::test]
async fn login_deadline_ends_the_question_to_the_authorizer() {
    let (hub, _) = pair();
    let hub = hub.authorizer(Hangs).login_timeout(LOGIN).bind("127.0.0.1:0").await.expect("bind");
    let mut dialled = raw::dial(hub.local_addr()).await;
    let key = PrivateKeyWithHashAlg::new(Arc::new(ssh_key::PrivateKey::clone(&raw::key().0)), None);
    let asking = tokio::spawn(async move { dialled.handle.authenticate_publickey("laptop-1", key).await });
    soon("the question", async {
        while ALIVE.load(Ordering::SeqCst) == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    soon("the end of the question", async {
        while ALIVE.load(Ordering::SeqCst) != 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let _ = soon("the end of the attempt", asking).await; // however it ends
}
