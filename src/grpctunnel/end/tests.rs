//! Who is woken by what, and what becomes of too much that is unread.

use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use bytes::Bytes;
use tokio::time::Instant;

use super::*;
use crate::grpctunnel::proto::{ClientToServer, MessageData, NewStream, client_to_server::Frame};
use crate::grpctunnel::protocol::{Config, Negotiated, Server};

fn call(stream_id: i64) -> ClientToServer {
    let stream = NewStream {
        method_name: "/test.Echo/Call".into(),
        request_headers: None,
        initial_window_size: 1000,
        protocol_revision: 2,
    };
    ClientToServer { stream_id, frame: Some(Frame::NewStream(stream)) }
}

fn message(stream_id: i64, len: usize) -> ClientToServer {
    let data = MessageData { size: len as u32, data: Bytes::from(vec![0; len]) };
    ClientToServer { stream_id, frame: Some(Frame::RequestMessage(data)) }
}

fn end(max_unread: usize) -> Arc<End<Server>> {
    End::new(Server::new(Config { max_unread, ..Config::default() }, Negotiated::Yes))
}

fn receive(end: &End<Server>, frame: ClientToServer) {
    end.with(|server| server.receive(frame)).expect("it stands").expect("a frame that does not end the tunnel");
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn who_waits_for_calls_is_woken_by_calls_alone() {
    let end = end(1000);
    let count = Arc::<Count>::default();
    let waker = Waker::from(count.clone());
    let mut cx = Context::from_waker(&waker);
    receive(&end, call(1));
    let mut accepting = Box::pin(async {
        let first = end.until(Server::accept).await.expect("a call").id;
        (first, end.until(Server::accept).await.expect("a call").id)
    });
    assert!(accepting.as_mut().poll(&mut cx).is_pending());
    for _ in 0..10 {
        receive(&end, message(1, 1));
    }
    assert_eq!(count.0.load(Ordering::Relaxed), 0);
    receive(&end, call(2));
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(accepting.as_mut().poll(&mut cx).is_ready());
}

#[tokio::test(start_paused = true)]
async fn reader_that_catches_up_keeps_its_call_and_another_loses_it() {
    let end = end(500);
    let (other, unread) = (self::end(500), end.lock().protocol.unread().clone());
    other.share(unread.clone());
    let mut ids = Vec::new();
    for end in [&end, &other] {
        receive(end, call(1));
        ids.push(end.until(Server::accept).await.expect("a call").id);
    }
    receive(&other, message(1, 400));
    receive(&end, message(1, 200));
    let waiting = tokio::spawn({
        let (end, unread) = (end.clone(), unread.clone());
        async move { end.wait_for_readers(&unread).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    assert!(end.with(|server| server.poll_event(ids[0])).expect("it stands").is_some());
    waiting.await.expect("no panic");
    assert!(unread.is_within_limit());

    receive(&end, message(1, 200));
    let began = Instant::now();
    end.wait_for_readers(&unread).await;
    assert_eq!(began.elapsed().as_secs(), PATIENCE.as_secs());
    let over = [(&end, ids[0]), (&other, ids[1])].map(|(end, id)| end.with(|server| server.is_over(id)).unwrap());
    assert_eq!(over, [false, true], "the call that holds most is of the other tunnel");
}

#[tokio::test(start_paused = true)]
async fn tunnel_that_ends_does_not_wait_for_its_readers() {
    let end = end(100);
    receive(&end, call(1));
    end.until(Server::accept).await.expect("a call");
    receive(&end, message(1, 200));
    let unread = end.lock().protocol.unread().clone();
    let waiting = tokio::spawn({
        let (end, unread) = (end.clone(), unread.clone());
        async move { end.wait_for_readers(&unread).await }
    });
    tokio::task::yield_now().await;
    let began = Instant::now();
    end.end(CloseReason::Shutdown);
    waiting.await.expect("no panic");
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(unread.queued(), 0);
}

/// A carrier on which so many chunks are there, of 100 frames each that mean nothing.
struct Chunks(usize);

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        const CHUNK: &[u8] = [[0, 0, 0, 0, 2, 8, 127]; 100].as_flattened();
        let left = self.0.checked_sub(1);
        self.0 = left.unwrap_or(0);
        Poll::Ready(left.map(|_| Ok(http_body::Frame::data(Bytes::from_static(CHUNK)))))
    }
}

#[tokio::test]
async fn peer_that_always_has_something_to_say_lets_other_tasks_run() {
    let end = End::new(Server::new(Config::default(), Negotiated::No));
    let begun = ClientToServer { stream_id: 127, frame: Some(Frame::NewStream(NewStream::default())) };
    end.with(|server| server.receive(begun)).expect("it stands").expect("a call that is refused");
    let mut incoming = Streaming::new_request(tonic_prost::ProstDecoder::default(), Chunks(1000), None, None);
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = turns.clone();
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    let reason = end.read(&mut incoming).await;
    other.abort();
    assert_eq!(reason, CloseReason::ClosedByPeer { message: None });
    assert_eq!(end.signs_of_life(), 100_000);
    assert!(turns.load(Ordering::Relaxed) > 500, "{turns:?} turns");
}

#[tokio::test]
async fn answer_that_is_dropped_after_the_tunnels_end_holds_nothing() {
    use crate::grpctunnel::proto::{MessageData, Metadata, ServerToClient, server_to_client::Frame};
    use crate::grpctunnel::protocol::Client;
    use crate::grpctunnel::tunnel_client::Caller;
    let caller = Caller::new(Client::new(Config::default(), Negotiated::No));
    let end = caller.end().clone();
    let unread = end.lock().protocol.unread().clone();
    let mut head = http::Request::new(()).into_parts().0;
    head.uri = "/test.Echo/Call".parse().expect("a path");
    let mut calling = Box::pin(caller.call(head, tonic::body::Body::empty()));
    assert!(poll_fn(|cx| Poll::Ready(calling.as_mut().poll(cx))).await.is_pending());
    while end.with(|client| client.poll_frame()).expect("it stands").is_some() {}
    let data = MessageData { size: 10_000, data: Bytes::from(vec![0; 10_000]) };
    for frame in [Frame::ResponseHeaders(Metadata::default()), Frame::ResponseMessage(data)] {
        end.with(|client| client.receive(ServerToClient { stream_id: 1, frame: Some(frame) }))
            .expect("it stands")
            .expect("fine");
    }
    let answer = calling.await.expect("an answer");
    assert!(unread.queued() >= 10_000);
    end.end(CloseReason::Shutdown);
    drop(answer);
    assert_eq!(unread.queued(), 0);
}

#[test]
fn call_that_holds_nothing_is_not_ended_for_what_it_holds() {
    use crate::grpctunnel::proto::{Metadata, client_to_server::Frame};
    use crate::grpctunnel::protocol::Client;
    let mut client = Client::new(Config::default(), Negotiated::No);
    client.open("/test.Echo/Call", Metadata::default()).expect("open");
    // A reader took all that was held, between `most` and this.
    client.end_most();
    let first = client.poll_frame().and_then(|frame| frame.frame);
    assert!(matches!(first, Some(Frame::NewStream(_))), "{first:?}");
}

/// A carrier on which nothing comes.
struct Silent;

impl http_body::Body for Silent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn reader_of_revision_zero_that_takes_nothing_does_not_stop_its_carrier_for_ever() {
    let config = Config { window: 1000, ..Config::default() };
    let end = End::new(Server::new(config, Negotiated::No));
    let mut begun = call(1);
    if let Some(Frame::NewStream(stream)) = &mut begun.frame {
        (stream.initial_window_size, stream.protocol_revision) = (0, 0);
    }
    receive(&end, begun);
    let id = end.until(Server::accept).await.expect("a call").id;
    receive(&end, message(1, 5000));
    assert!(end.lock().protocol.is_overfull());
    let reading = tokio::spawn({
        let end = end.clone();
        async move {
            let mut incoming = Streaming::new_request(tonic_prost::ProstDecoder::default(), Silent, None, None);
            end.read(&mut incoming).await
        }
    });
    tokio::time::sleep(STALLED - Duration::from_secs(1)).await;
    assert!(!end.with(|server| server.is_over(id)).expect("it stands"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(end.with(|server| server.is_over(id)).expect("it stands"), "others get through");
    end.end(CloseReason::Shutdown);
    reading.await.expect("no panic");
}
