//! What a channel promises as a plain byte stream, whatever its user does with it.

mod common;

use std::future::{Future, ready};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::{
    faults::{raw_channel, until},
    proxy::{Cut, Way},
    rig::{AGENT, Rig, soon},
};
use dialback::TunnelIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The two ends of a new channel, the one that dialled it first.
async fn pair(rig: &Rig) -> (TunnelIo, TunnelIo) {
    raw_channel(rig, &mut rig.agent.incoming()).await
}

#[tokio::test]
async fn lost_channel_may_be_asked_again_and_says_the_same() {
    let rig = Rig::builder().proxy().start().await;
    let (mut near, mut far) = pair(&rig).await;
    rig.proxy().cut(Cut::Reset);
    for io in [&mut near, &mut far] {
        for _ in 0..3 {
            let error = soon("a read", io.read(&mut [0; 8])).await.expect_err("the tunnel is lost");
            assert!(error.to_string().contains(AGENT), "{error}");
            let error = soon("a write", io.write(b"x")).await.expect_err("the tunnel is lost");
            assert!(error.to_string().contains(AGENT), "{error}");
        }
    }
}

#[tokio::test]
async fn write_that_is_cut_off_may_be_tried_again_and_fails_again() {
    let rig = Rig::builder().proxy().start().await;
    let (mut near, _far) = pair(&rig).await;
    rig.proxy().stall(Way::Both);
    let writing = tokio::spawn(async move {
        let block = vec![7; 64 << 10];
        while near.write(&block).await.is_ok() {}
        near.write(&block).await.expect_err("the tunnel is lost");
        near.flush().await.expect_err("the tunnel is lost");
        near.shutdown().await.expect_err("the tunnel is lost");
    });
    // Until the write waits.
    tokio::time::sleep(Duration::from_millis(300)).await;
    rig.proxy().cut(Cut::Reset);
    soon("the writer's end", writing).await.expect("no panic");
}

#[tokio::test]
async fn flush_that_is_given_up_keeps_nothing_back() {
    let rig = Rig::start().await;
    let (mut near, mut far) = pair(&rig).await;
    let answering = tokio::spawn(async move {
        let mut said = [0; 8];
        far.read_exact(&mut said).await.expect("it arrives");
        far.write_all(&said).await.expect("written");
        far.flush().await.expect("flushed");
        far
    });
    for word in [b"ping", b"pong"] {
        near.write_all(word).await.expect("written");
        tokio::select! { biased; _ = near.flush() => {}, () = ready(()) => {} }
    }
    let mut answer = [0; 8];
    soon("the answer", near.read_exact(&mut answer)).await.expect("it comes");
    assert_eq!(&answer, b"pingpong");
    answering.await.expect("no panic");
}

/// As HTTP/2 does, which flushes after each frame and goes on with the next one when the flush waits.
#[tokio::test]
async fn large_writes_with_a_flush_after_each_travel_together() {
    const FRAME: usize = 16 << 10;
    let rig = Rig::start().await;
    let (mut near, mut far) = pair(&rig).await;
    for _ in 0..3 {
        near.write_all(&[7; FRAME]).await.expect("written");
        tokio::select! { biased; _ = near.flush() => {}, () = ready(()) => {} }
    }
    soon("the flush", near.flush()).await.expect("flushed");
    let mut got = vec![0; 4 * FRAME];
    // One read returns what came in one packet.
    let packet = soon("a packet", far.read(&mut got)).await.expect("it arrives");
    assert_eq!(packet, 3 * FRAME);
}

#[tokio::test]
async fn reads_carry_on_what_a_writer_left_behind() {
    // Two packets use the window up, and the rest is nobody's but the reader's.
    let rig = Rig::builder().agent(|agent| agent.window(2 * 65_535)).start().await;
    let (mut near, mut far) = pair(&rig).await;
    const REQUEST: usize = 160 << 10;
    const ROUNDS: usize = 20;
    let answering = tokio::spawn(async move {
        let mut request = vec![0; REQUEST];
        for _ in 0..ROUNDS {
            far.read_exact(&mut request).await.expect("it arrives");
            far.write_all(b"k").await.expect("written");
            far.flush().await.expect("flushed");
        }
        far
    });
    let request = vec![7; REQUEST];
    for round in 0..ROUNDS {
        near.write_all(&request).await.expect("written");
        soon(&format!("answer {round}"), near.read_exact(&mut [0])).await.expect("it comes");
    }
    answering.await.expect("no panic");
}

#[tokio::test]
async fn what_could_not_be_sent_is_told() {
    let rig = Rig::start().await;
    for read_first in [false, true] {
        let (mut near, far) = pair(&rig).await;
        near.write_all(b"lost").await.expect("taken");
        drop(far);
        // Until the close has arrived.
        tokio::time::sleep(Duration::from_secs(1)).await;
        if read_first {
            let end = soon("the end", near.read(&mut [0; 4])).await;
            assert_eq!(end.expect("an end"), 0);
            near.flush().await.expect_err("it was not sent");
        }
        near.shutdown().await.expect_err("it was not sent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dial_needs_no_runtime_of_its_own() {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let rig = Rig::start().await;
    // The agent's dials are refused, and it looks whether that is because its tunnel is being renewed.
    drop(rig.hub.incoming());
    for (connector, opens) in [(rig.hub.connector(AGENT).expect("an id"), true), (rig.agent.connector(), false)] {
        let dialling = std::thread::spawn(move || {
            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            let mut dial = Box::pin(connector.dial());
            loop {
                match dial.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(dialled) => return dialled.map(drop),
                    Poll::Pending => std::thread::park(),
                }
            }
        });
        until("the dial is done", || dialling.is_finished()).await;
        assert_eq!(dialling.join().expect("no panic").is_ok(), opens);
    }
}
