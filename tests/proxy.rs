//! The test proxy does to a connection what it is told, and nothing else.

mod common;

use std::{io::ErrorKind, time::Duration};

use common::{
    echo::pattern,
    proxy::{Cut, Proxy, Way},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

/// Long enough for what must not happen to have happened, had it been going to.
const A_WHILE: Duration = Duration::from_millis(100);
/// Long enough for what must happen, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

struct Rig {
    proxy: Proxy,
    listener: TcpListener,
}

impl Rig {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { proxy: Proxy::to(listener.local_addr().unwrap()).await, listener }
    }

    /// The two ends of a new connection: who dialled, and the target.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let dialler = TcpStream::connect(self.proxy.address()).await.unwrap();
        let (target, _) = timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap();
        (dialler, target)
    }
}

async fn receive(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("bytes arrive").unwrap();
    bytes
}

async fn end_of(stream: &mut TcpStream) -> std::io::Result<usize> {
    timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("the end arrives")
}

async fn nothing_arrives(stream: &mut TcpStream) {
    let read = timeout(A_WHILE, stream.read(&mut [0; 16])).await;
    assert!(read.is_err(), "nothing should arrive, but {read:?} did");
}

#[tokio::test]
async fn bytes_and_half_closes_pass_both_ways() {
    let rig = Rig::new().await;
    let (mut dialler, mut target) = rig.connect().await;
    let sent = pattern(0, 1 << 20);

    let (_, received) = tokio::join!(
        async {
            dialler.write_all(&sent).await.unwrap();
            dialler.shutdown().await.unwrap();
        },
        receive(&mut target, sent.len())
    );
    assert!(received == sent);
    assert_eq!(end_of(&mut target).await.unwrap(), 0);

    target.write_all(b"still open this way").await.unwrap();
    assert_eq!(receive(&mut dialler, 19).await, b"still open this way");
    target.shutdown().await.unwrap();
    assert_eq!(end_of(&mut dialler).await.unwrap(), 0);
    assert_eq!(*rig.proxy.accepted().borrow(), 1);
    timeout(PATIENCE, rig.proxy.open().wait_for(|open| *open == 0)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_of_one_end_reaches_the_other_as_a_reset() {
    let rig = Rig::new().await;
    let (dialler, mut target) = rig.connect().await;
    dialler.set_zero_linger().unwrap();
    drop(dialler);
    assert_eq!(end_of(&mut target).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn cut_by_reset_resets_both_ends_and_new_dials_work() {
    let rig = Rig::new().await;
    let (mut dialler, mut target) = rig.connect().await;

    rig.proxy.cut(Cut::Reset);

    assert_eq!(end_of(&mut dialler).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(end_of(&mut target).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let (mut dialler, mut target) = rig.connect().await;
    dialler.write_all(b"back").await.unwrap();
    assert_eq!(receive(&mut target, 4).await, b"back");
    assert_eq!(*rig.proxy.accepted().borrow(), 2);
}

#[tokio::test]
async fn cut_by_finish_ends_both_ends_without_an_error_even_with_unread_bytes() {
    let rig = Rig::new().await;
    let (mut dialler, mut target) = rig.connect().await;
    rig.proxy.stall(Way::Up);
    dialler.write_all(b"never read by the proxy").await.unwrap();

    rig.proxy.cut(Cut::Finish);

    assert_eq!(end_of(&mut dialler).await.unwrap(), 0);
    assert_eq!(end_of(&mut target).await.unwrap(), 0);
    timeout(PATIENCE, rig.proxy.open().wait_for(|open| *open == 0)).await.unwrap().unwrap();
}

#[tokio::test]
async fn dropping_the_proxy_resets_its_connections_and_refuses_dials() {
    let rig = Rig::new().await;
    let (mut dialler, mut target) = rig.connect().await;
    let address = rig.proxy.address();

    drop(rig.proxy);

    assert_eq!(end_of(&mut dialler).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(end_of(&mut target).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(TcpStream::connect(address).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_stall_holds_bytes_and_fin_one_way_until_resumed() {
    let rig = Rig::new().await;
    let (mut dialler, mut target) = rig.connect().await;

    rig.proxy.stall(Way::Up);
    dialler.write_all(b"held").await.unwrap();
    dialler.shutdown().await.unwrap();
    nothing_arrives(&mut target).await;
    target.write_all(b"passes").await.unwrap();
    assert_eq!(receive(&mut dialler, 6).await, b"passes");

    rig.proxy.resume(Way::Up);
    assert_eq!(receive(&mut target, 4).await, b"held");
    assert_eq!(end_of(&mut target).await.unwrap(), 0);
}

#[tokio::test]
async fn a_stall_fills_the_senders_small_buffers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::with_buffers(listener.local_addr().unwrap(), 8 << 10).await;
    proxy.stall(Way::Both);
    let mut dialler = TcpStream::connect(proxy.address()).await.unwrap();
    socket2::SockRef::from(&dialler).set_send_buffer_size(8 << 10).unwrap();

    let written = timeout(A_WHILE, dialler.write_all(&vec![0; 1 << 20])).await;

    assert!(written.is_err(), "1 MiB fitted into buffers of 8 KiB");
}

#[tokio::test]
async fn a_delay_is_added_one_way_and_costs_no_bandwidth() {
    const DELAY: Duration = Duration::from_millis(200);
    let rig = Rig::new().await;
    rig.proxy.set(Way::Down, |link| link.delay = DELAY);
    let (mut dialler, mut target) = rig.connect().await;
    let sent = pattern(7, 8 << 20);

    let begun = Instant::now();
    dialler.write_all(b"up").await.unwrap();
    receive(&mut target, 2).await;
    assert!(begun.elapsed() < DELAY, "the other way is not delayed");

    let begun = Instant::now();
    let (_, received) = tokio::join!(target.write_all(&sent), receive(&mut dialler, sent.len()));
    let took = begun.elapsed();
    assert!(received == sent, "order is kept");
    // Had each 64 KiB waited for the one before, this would take 128 delays.
    assert!(took >= DELAY && took < 10 * DELAY, "8 MiB took {took:?}");
}

#[tokio::test]
async fn chopped_bytes_arrive_complete() {
    let rig = Rig::new().await;
    rig.proxy.set(Way::Both, |link| link.chop = Some(1));
    let (mut dialler, mut target) = rig.connect().await;
    let sent = pattern(3, 5000);

    dialler.write_all(&sent).await.unwrap();
    assert!(receive(&mut target, sent.len()).await == sent);
    target.write_all(&sent).await.unwrap();
    assert!(receive(&mut dialler, sent.len()).await == sent);
}

#[tokio::test]
async fn a_throttle_holds_the_rate() {
    let rig = Rig::new().await;
    rig.proxy.set(Way::Up, |link| link.rate = Some(200_000));
    let (mut dialler, mut target) = rig.connect().await;

    let begun = Instant::now();
    dialler.write_all(&[0; 60_000]).await.unwrap();
    receive(&mut target, 60_000).await;
    let took = begun.elapsed();

    assert!(took > Duration::from_millis(250) && took < Duration::from_secs(2), "0.3 s of bytes took {took:?}");
}

#[tokio::test]
async fn refused_dials_leave_open_connections_alone_and_work_again_later() {
    let rig = Rig::new().await;
    let (mut dialler, mut target) = rig.connect().await;

    rig.proxy.refuse().await;
    let refused = TcpStream::connect(rig.proxy.address()).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    dialler.write_all(b"alive").await.unwrap();
    assert_eq!(receive(&mut target, 5).await, b"alive");

    rig.proxy.accept().await;
    rig.connect().await;
}

#[tokio::test]
async fn new_connections_go_to_the_new_target() {
    let rig = Rig::new().await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    rig.proxy.set_target(elsewhere.local_addr().unwrap());
    let _dialler = TcpStream::connect(rig.proxy.address()).await.unwrap();
    timeout(PATIENCE, elsewhere.accept()).await.expect("the new target is dialled").unwrap();
}
