//! What fault tests look at: calls that a fault hits, how soon they end and with what, and what is left over.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use dialback::{AgentStatus, Hub, Tunnel, TunnelChannel, TunnelId, TunnelIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Mutex, MutexGuard, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::StreamExt;
use tonic::{Code, Status, Streaming};

use super::{
    echo::{
        pattern, payload,
        pb::{Payload, echo_client::EchoClient},
        steered,
    },
    rig::{AGENT, Rig, soon},
};

/// Calls to an agent on the hub's shared connection.
pub type Client = EchoClient<TunnelChannel>;

/// A client for whatever tunnel the agent of every rig has.
pub fn client(hub: &Hub) -> Client {
    EchoClient::new(hub.channel(AGENT).expect("an id")).max_decoding_message_size(64 << 20)
}

/// Runs a future that has to end within `limit`, and says how long it took.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    match timeout(limit, future).await {
        Ok(value) => (value, begun.elapsed()),
        Err(_) => panic!("{what} did not happen within {limit:?}"),
    }
}

/// Waits until `condition` holds, for what has no channel to wait on.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// One call that has to succeed.
pub async fn call(client: &mut Client) {
    let answer = soon("an answer", client.unary(payload("are you there?"))).await;
    assert_eq!(answer.expect("the call succeeds").into_inner(), payload("are you there?"));
}

/// While it lives, nothing but a test may panic: a task of the library's would do so unseen.
pub struct NoPanics(usize);

static PANICS: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());

impl NoPanics {
    pub fn watch() -> Self {
        static WATCHED: std::sync::Once = std::sync::Once::new();
        WATCHED.call_once(|| {
            let tell = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if !info.location().is_some_and(|location| location.file().starts_with("tests/")) {
                    PANICS.lock().expect("nobody panics with it").push(info.to_string());
                }
                tell(info);
            }));
        });
        Self(PANICS.lock().expect("nobody panics with it").len())
    }
}

impl Drop for NoPanics {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let panics = PANICS.lock().map(|panics| panics[self.0..].to_vec()).unwrap_or_default();
            assert!(panics.is_empty(), "{panics:#?}");
        }
    }
}

/// One who calls again and again, and has a call that does not end, while something is done to others.
pub struct Bystander {
    stop: watch::Sender<bool>,
    calling: tokio::task::JoinHandle<(usize, Duration)>,
}

impl Bystander {
    pub async fn of(mut client: Client) -> Self {
        let mut standing = in_flight(&mut client, 1).await;
        let (stop, stopped) = watch::channel(false);
        let calling = tokio::spawn(async move {
            let (mut calls, mut slowest) = (0, Duration::ZERO);
            while !*stopped.borrow() || calls == 0 {
                let begun = Instant::now();
                call(&mut client).await;
                (calls, slowest) = (calls + 1, slowest.max(begun.elapsed()));
            }
            let ended = timeout(Duration::from_millis(50), standing[0].message()).await;
            assert!(ended.is_err(), "the call that does not end has ended: {ended:?}");
            (calls, slowest)
        });
        Self { stop, calling }
    }

    /// Panics unless all has gone well. Says how long the slowest call took.
    pub async fn went_on(self) -> Duration {
        self.stop.send_replace(true);
        let (calls, slowest) = self.calling.await.expect("others are not disturbed");
        eprintln!("{calls} calls beside it, the slowest took {slowest:?}");
        slowest
    }
}

/// Calls that have reached their handlers and will never end by themselves.
pub async fn in_flight(client: &mut Client, calls: usize) -> Vec<Streaming<Payload>> {
    let mut streams = Vec::with_capacity(calls);
    for _ in 0..calls {
        let request = steered(payload(""), &[("echo-count", "1"), ("echo-hang", "1")]);
        let mut stream = soon("a call to start", client.download(request)).await.expect("the call starts").into_inner();
        soon("the first answer", stream.message()).await.expect("the first answer").expect("an answer");
        streams.push(stream);
    }
    streams
}

/// Waits for calls to end, which they have to within `limit`, UNAVAILABLE and with the agent's name. Gives the time of
/// the last.
pub async fn end_unavailable(calls: Vec<Streaming<Payload>>, limit: Duration) -> Duration {
    let all = async {
        for mut call in calls {
            assert_unavailable(&call.message().await.expect_err("the call cannot go on"));
        }
    };
    within(limit, "the end of all calls", all).await.1
}

/// Panics unless a status is what a lost tunnel gives.
pub fn assert_unavailable(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains(AGENT), "the message does not name the agent: {status:?}");
}

/// Waits until the agent can be called through another tunnel than `old`.
pub async fn successor(hub: &Hub, old: TunnelId, limit: Duration) -> (Tunnel, Duration) {
    let newer = async {
        loop {
            let tunnel = hub.wait_for(AGENT).await.expect("the hub lives");
            if tunnel.id() != old {
                return tunnel;
            }
            tunnel.closed().await;
        }
    };
    within(limit, "the agent's return", newer).await
}

/// Waits until an agent says that it is no longer connected through the tunnel it had.
pub async fn noticed(mut status: watch::Receiver<AgentStatus>, limit: Duration) -> Duration {
    let lost = async {
        // The sender lives in the agent.
        let _ = status.wait_for(|status| !status.is_connected()).await;
    };
    within(limit, "the agent's notice", lost).await.1
}

/// The agent's own number for the tunnel it has.
pub fn agent_tunnel(rig: &Rig) -> Option<TunnelId> {
    match &*rig.agent.status().borrow() {
        AgentStatus::Connected { tunnel_id, .. } => Some(*tunnel_id),
        _ => None,
    }
}

/// How many connections this process holds whose own port is `port`.
#[cfg(target_os = "linux")]
pub fn sockets_at(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("/proc is mounted");
    let local = format!("0100007F:{port:04X}");
    let held = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Field 3 is the state, 0A being LISTEN; field 9 the inode, 0 for a socket that no process holds any more.
        fields.len() > 9 && fields[1] == local && fields[3] != "0A" && fields[9] != "0"
    };
    table.lines().filter(held).count()
}

/// This process's resident memory, in bytes.
#[cfg(target_os = "linux")]
pub fn resident() -> usize {
    resident_of(std::process::id())
}

/// That of another process.
#[cfg(target_os = "linux")]
pub fn resident_of(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a VmRSS line");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib << 10
}

/// For tests that measure, or that need the machine for themselves: one at a time.
pub async fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::const_new(());
    ONE.lock().await
}

/// The two ends of a new channel without HTTP/2, the hub's first. Ends the echo service of the rig's agent.
pub async fn raw_channel(rig: &Rig, incoming: &mut dialback::Incoming) -> (TunnelIo, TunnelIo) {
    let tunnel = rig.hub.wait_for(AGENT).await.expect("the agent is there");
    let connector = tunnel.connector();
    let (near, far) = soon("a channel", async { tokio::join!(connector.dial(), incoming.next()) }).await;
    (near.expect("the dial succeeds"), far.expect("the agent accepts").expect("channels come without errors"))
}

/// How long nothing may move in one direction.
const PROGRESS: Duration = Duration::from_secs(3);
/// The period of what is sent: prime, so that blocks of any size that are lost, doubled or swapped show.
const PERIOD: usize = 65_521;

/// Sends from both ends of each pair at once for `time`, then until all has arrived, and checks every byte. Panics when a
/// direction of the tunnel stands still for 3 s. Gives the bytes that arrived, down (from the first ends) and up.
pub async fn bulk(pairs: Vec<(TunnelIo, TunnelIo)>, time: Duration) -> [u64; 2] {
    let counts = [const { std::sync::atomic::AtomicU64::new(0) }; 2];
    let counts = Arc::new(counts);
    let stop = tokio::time::Instant::now() + time;
    let mut transfers = JoinSet::new();
    for (near, far) in pairs {
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        for (direction, read, write) in [(0, far_read, near_write), (1, near_read, far_write)] {
            let counts = Arc::clone(&counts);
            transfers.spawn(async move {
                let receive = receive(read, &counts[direction]);
                let (sent, received) = tokio::join!(send(write, stop), receive);
                assert_eq!(sent, received, "what was sent has arrived");
            });
        }
    }
    let seen = || counts.each_ref().map(|count| count.load(std::sync::atomic::Ordering::Relaxed));
    let mut before = seen();
    loop {
        match timeout(PROGRESS, join_all(&mut transfers)).await {
            Ok(()) => return seen(),
            Err(_) => {
                let now = seen();
                for (direction, name) in ["down", "up"].iter().enumerate() {
                    // One direction may have finished before the other.
                    let still = now[direction] == before[direction] && tokio::time::Instant::now() < stop;
                    assert!(!still, "nothing moved {name} for {PROGRESS:?}, after {now:?} bytes");
                }
                assert_ne!(now, before, "nothing moved either way for {PROGRESS:?}, after {now:?} bytes");
                before = now;
            }
        }
    }
}

async fn join_all(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        ended.expect("the transfer goes well");
    }
}

async fn send(mut to: impl tokio::io::AsyncWrite + Unpin, stop: tokio::time::Instant) -> u64 {
    let content = pattern_of_two_periods();
    let mut sent = 0;
    while tokio::time::Instant::now() < stop {
        let at = (sent % PERIOD as u64) as usize;
        let written = to.write(&content[at..at + 16_384]).await;
        sent += written.unwrap_or_else(|e| panic!("the write after {sent} bytes failed: {e}")) as u64;
    }
    to.shutdown().await.expect("the end is sent");
    sent
}

async fn receive(mut from: impl tokio::io::AsyncRead + Unpin, count: &std::sync::atomic::AtomicU64) -> u64 {
    let content = pattern_of_two_periods();
    let mut buffer = vec![0; 32 << 10];
    let mut received = 0;
    loop {
        let read = from.read(&mut buffer).await;
        let read = read.unwrap_or_else(|e| panic!("the read after {received} bytes failed: {e}"));
        if read == 0 {
            return received;
        }
        let at = (received % PERIOD as u64) as usize;
        assert!(buffer[..read] == content[at..at + read], "wrong bytes near {received}");
        received += read as u64;
        count.fetch_add(read as u64, std::sync::atomic::Ordering::Relaxed);
    }
}

fn pattern_of_two_periods() -> Vec<u8> {
    let mut content = pattern(0, PERIOD);
    content.extend_from_within(..);
    content
}
