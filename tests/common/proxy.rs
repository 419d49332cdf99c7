//! A TCP proxy on loopback that does to a connection what bad networks do: it cuts, stalls, delays, chops, throttles and
//! refuses. All of it happens in user space, so it needs no privileges.
//!
//! It ends connections as it sees them end: a FIN is passed on behind the bytes before it, a reset is passed on as a reset.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{broadcast, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// What one direction takes from its sender beyond what its receiver took, when it has no delay.
const BACKLOG: usize = 64 << 10;
/// The same with a delay: what 1 Gbit/s sends in 250 ms, so that a delay does not cost bandwidth.
const DELAY_LINE: usize = 32 << 20;

/// Which direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From who dialled the proxy to its target.
    Up,
    /// From the target to who dialled the proxy.
    Down,
    /// Both of them.
    Both,
}

/// How connections are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Both ends get a reset; bytes on the way are lost.
    Reset,
    /// Both ends get a FIN; bytes on the way are lost.
    Finish,
}

/// The state of one direction; by default it passes everything at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// Nothing passes, not even a FIN, and nobody is told: a black hole, until the sender's socket buffers are full.
    pub stalled: bool,
    /// How long each byte is on its way. Bytes already on their way keep their time of arrival.
    pub delay: Duration,
    /// The most bytes passed in one write, each in a packet of its own.
    pub chop: Option<usize>,
    /// The most bytes passed per second.
    pub rate: Option<u64>,
    /// The most bytes on their way at once, as a link with a queue has it; without, it is some that no test fills.
    pub queue: Option<usize>,
}

/// A running proxy. Dropping it ends it, and resets its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<SocketAddr>,
    buffers: Option<u32>,
    up: watch::Sender<Link>,
    down: watch::Sender<Link>,
    cuts: broadcast::Sender<Cut>,
    refuse: watch::Sender<bool>,
    listening: watch::Sender<bool>,
    accepted: watch::Sender<usize>,
    open: watch::Sender<usize>,
}

impl Proxy {
    /// Starts a proxy to `target` on a free port of 127.0.0.1.
    pub async fn to(target: SocketAddr) -> Self {
        Self::start(target, None).await
    }

    /// The same with small socket buffers: `bytes` each, `SO_RCVBUF` and `SO_SNDBUF`, both sides (Linux doubles them).
    pub async fn with_buffers(target: SocketAddr, bytes: u32) -> Self {
        Self::start(target, Some(bytes)).await
    }

    async fn start(target: SocketAddr, buffers: Option<u32>) -> Self {
        // This socket never listens: it keeps the port ours while connections are refused.
        let placeholder = socket(buffers).expect("a socket");
        placeholder.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = placeholder.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            buffers,
            up: watch::Sender::default(),
            down: watch::Sender::default(),
            cuts: broadcast::Sender::new(16),
            refuse: watch::Sender::new(false),
            listening: watch::Sender::new(false),
            accepted: watch::Sender::new(0),
            open: watch::Sender::new(0),
        });
        let mut tasks = JoinSet::new();
        let accepting = Arc::clone(&shared);
        tasks.spawn(async move {
            let _placeholder = placeholder;
            accepting.serve(address).await;
        });
        let proxy = Self { address, shared, tasks };
        proxy.shared.until_listening(true).await;
        proxy
    }

    /// Where to dial it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends new connections to another target: a server that came back elsewhere.
    pub fn set_target(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Changes a direction, for the connections there are and for those to come.
    pub fn set(&self, way: Way, change: impl Fn(&mut Link)) {
        if way != Way::Down {
            self.shared.up.send_modify(&change);
        }
        if way != Way::Up {
            self.shared.down.send_modify(&change);
        }
    }

    /// Shorthand: nothing passes any more.
    pub fn stall(&self, way: Way) {
        self.set(way, |link| link.stalled = true);
    }

    /// Shorthand: what was stalled passes again, in order and complete.
    pub fn resume(&self, way: Way) {
        self.set(way, |link| link.stalled = false);
    }

    /// Cuts every connection there is; new ones are accepted.
    pub fn cut(&self, how: Cut) {
        // No receiver means no connection: nothing to cut.
        let _ = self.shared.cuts.send(how);
    }

    /// From here on dials get "connection refused"; connections there are live on.
    pub async fn refuse(&self) {
        self.shared.refuse.send_replace(true);
        self.shared.until_listening(false).await;
    }

    /// From here on dials succeed again, on the same port.
    pub async fn accept(&self) {
        self.shared.refuse.send_replace(false);
        self.shared.until_listening(true).await;
    }

    /// How many connections it has accepted, ever.
    pub fn accepted(&self) -> watch::Receiver<usize> {
        self.shared.accepted.subscribe()
    }

    /// How many connections are open. One that was cut by [`Cut::Finish`] is not.
    pub fn open(&self) -> watch::Receiver<usize> {
        self.shared.open.subscribe()
    }
}

impl Shared {
    async fn until_listening(&self, wanted: bool) {
        self.listening.subscribe().wait_for(|is| *is == wanted).await.expect("self holds the sender");
    }

    async fn serve(self: Arc<Self>, address: SocketAddr) {
        let mut refuse = self.refuse.subscribe();
        let mut connections = JoinSet::new();
        loop {
            refuse.wait_for(|refuse| !refuse).await.expect("self holds the sender");
            let listener = self.listen(address).unwrap_or_else(|e| panic!("the proxy cannot listen on {address}: {e}"));
            self.listening.send_replace(true);
            loop {
                tokio::select! {
                    // The guard it gives must not be held across an await.
                    () = async { drop(refuse.wait_for(|refuse| *refuse).await) } => break,
                    Some(_) = connections.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((dialler, _)) = accepted else {
                            sleep(Duration::from_millis(10)).await; // out of file descriptors: do not spin
                            continue;
                        };
                        connections.spawn(Arc::clone(&self).carry(dialler, self.cuts.subscribe()));
                        self.accepted.send_modify(|count| *count += 1);
                    }
                }
            }
            drop(listener);
            self.listening.send_replace(false);
        }
    }

    fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = socket(self.buffers)?;
        socket.bind(address)?;
        socket.listen(1024)
    }

    /// One connection, from accept to end.
    async fn carry(self: Arc<Self>, mut dialler: TcpStream, mut cuts: broadcast::Receiver<Cut>) {
        let mut open = Open::new(&self.open);
        let target = *self.target.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(socket) = socket(self.buffers) else { return };
        let Ok(()) = dialler.set_zero_linger().and(dialler.set_nodelay(true)) else { return };
        let Ok(mut server) = socket.connect(target).await else { return };

        let (mut from_dialler, mut to_dialler) = dialler.split();
        let (mut from_server, mut to_server) = server.split();
        let up = pump(&mut from_dialler, &mut to_server, self.up.subscribe());
        let down = pump(&mut from_server, &mut to_dialler, self.down.subscribe());
        let orderly = tokio::select! {
            ended = async { tokio::try_join!(up, down) } => ended.is_ok(),
            cut = cuts.recv() => cut == Ok(Cut::Finish),
        };
        open.close();
        if orderly {
            let (_, _) = tokio::join!(to_dialler.shutdown(), to_server.shutdown());
            // Closing a socket that holds unread bytes resets it, so they are read first, up to the peer's own FIN.
            let mut discard = (sink(), sink());
            let (_, _) = tokio::join!(copy(&mut from_dialler, &mut discard.0), copy(&mut from_server, &mut discard.1));
            for stream in [&dialler, &server] {
                let _ = SockRef::from(stream).set_linger(None); // an end that is gone needs no linger
            }
        }
    }
}

/// Counts a connection while it is open.
struct Open<'a>(Option<&'a watch::Sender<usize>>);

impl<'a> Open<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|open| *open += 1);
        Self(Some(count))
    }

    fn close(&mut self) {
        if let Some(count) = self.0.take() {
            count.send_modify(|open| *open -= 1);
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

fn socket(buffers: Option<u32>) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    // Until an end is orderly, dropping the socket resets it: a proxy that ends must not look like a peer that does.
    socket.set_zero_linger()?;
    if let Some(bytes) = buffers {
        socket.set_recv_buffer_size(bytes)?;
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(socket)
}

/// What a link with a rate makes up for: timers that tick in milliseconds, and a busy machine. The end of a stall it does not.
const LATE: Duration = Duration::from_millis(5);

/// One direction, until the FIN is passed on or an end is lost.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut link: watch::Receiver<Link>,
) -> io::Result<()> {
    // The bytes on their way and when they arrive; an empty chunk is the FIN.
    let mut line: VecDeque<(Instant, Bytes)> = VecDeque::new();
    let mut on_their_way = 0;
    let mut incoming = BytesMut::new();
    let mut ended = false;
    let mut free_at = Instant::now();
    loop {
        let Link { stalled, delay, chop, rate, queue } = *link.borrow_and_update();
        let most = queue.unwrap_or(if delay.is_zero() { BACKLOG } else { DELAY_LINE });
        let room = on_their_way < most;
        incoming.reserve(BACKLOG);
        tokio::select! {
            _ = link.changed() => {}
            read = from.read_buf(&mut incoming), if !stalled && !ended && room => {
                ended = read? == 0;
                on_their_way += incoming.len();
                line.push_back((Instant::now() + delay, incoming.split().freeze()));
            }
            // The guard comes first: without a front there is nothing to wait for.
            written = pass(to, line.front(), free_at, chop, rate), if !stalled && !line.is_empty() => {
                let written = written?;
                if written == 0 {
                    return Ok(());
                }
                on_their_way -= written;
                if let Some((due, front)) = line.front_mut() {
                    if let Some(rate) = rate {
                        // From when they could go, not from when a late timer let them: the rate is that of all the time.
                        let late = Instant::now().checked_sub(LATE).map_or(*due, |earliest| earliest.max(*due));
                        free_at = free_at.max(late) + Duration::from_secs_f64(written as f64 / rate as f64);
                    }
                    front.advance(written);
                    if front.is_empty() {
                        line.pop_front();
                    }
                }
            }
        }
    }
}

/// Passes on some of the front chunk when its time has come. Cancel safe: nothing is passed unless it returns.
async fn pass(
    to: &mut (impl AsyncWrite + Unpin),
    front: Option<&(Instant, Bytes)>,
    free_at: Instant,
    chop: Option<usize>,
    rate: Option<u64>,
) -> io::Result<usize> {
    let Some((due, chunk)) = front else { return std::future::pending().await };
    let at = (*due).max(free_at);
    if at > Instant::now() {
        sleep_until(at).await;
    }
    if chunk.is_empty() {
        to.shutdown().await?;
        return Ok(0);
    }
    // A fiftieth of a second's worth at once: coarse enough for timers that tick in milliseconds.
    let slice = rate.map_or(usize::MAX, |rate| (rate / 50).max(1) as usize);
    let most = chunk.len().min(chop.unwrap_or(usize::MAX)).min(slice).max(1);
    to.write(&chunk[..most]).await
}
