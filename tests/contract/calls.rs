//! What a call may rely on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::BinaryMetadataValue;
use tonic::{Code, Status};

use crate::common::echo::{Counts, Digest, assert_details, pattern, payload, steered};
use crate::common::rig::soon;
use crate::ways::Way;

pub async fn unary_answers_what_was_sent(way: Way) {
    let mut line = way.start().await;

    let answer = soon("the answer", line.client.unary(payload("hello"))).await.expect("an answer");

    assert_eq!(answer.into_inner(), payload("hello"));
    assert_eq!(line.echo().counts(), Counts { started: 1, finished: 1, cancelled: 0 });
}

pub async fn empty_messages_arrive_as_messages(way: Way) {
    let mut line = way.start().await;

    let answer = soon("the answer", line.client.unary(payload(""))).await.expect("an answer");
    let stream = line.client.download(steered(payload(""), &[("echo-count", "3")])).await.expect("a stream");

    assert_eq!(answer.into_inner(), payload(""));
    assert_eq!(soon("the stream's end", lengths(stream.into_inner())).await.expect("no status"), [0, 0, 0]);
}

pub async fn download_gives_every_message_in_order(way: Way) {
    let mut line = way.start().await;
    let (count, size) = if way == Way::Chopped { (20, 50) } else { (500, 2000) };
    let steering = [("echo-count", &*count.to_string()), ("echo-size", &*size.to_string())];

    let mut stream = line.client.download(steered(payload(""), &steering)).await.expect("a stream").into_inner();

    for index in 0..count {
        let message = soon("a message", stream.message()).await.expect("no status").expect("no end");
        assert_eq!(message, payload(pattern(index, size)), "message {index}");
    }
    assert_eq!(soon("the end", stream.message()).await.expect("no status"), None);
}

pub async fn upload_takes_every_byte(way: Way) {
    let mut line = way.start().await;
    let messages: Vec<_> = (0..20).map(|index| payload(pattern(index, way.bytes(10_000)))).collect();
    let mut digest = Digest::default();
    messages.iter().for_each(|message| digest.update(&message.data));

    let answer = soon("the answer", line.client.upload(tokio_stream::iter(messages))).await.expect("an answer");

    assert_eq!(answer.into_inner(), payload(digest.to_bytes()));
}

pub async fn chat_answers_each_message_before_the_next(way: Way) {
    let mut line = way.start().await;
    let (say, said) = mpsc::channel(1);
    let mut answers = line.client.chat(ReceiverStream::new(said)).await.expect("a stream").into_inner();

    for index in 0..20 {
        say.send(payload(pattern(index, 50))).await.expect("the call stands");
        let answer = soon("an answer", answers.message()).await.expect("no status");
        assert_eq!(answer, Some(payload(pattern(index, 50))), "message {index}");
    }
    drop(say);
    assert_eq!(soon("the end", answers.message()).await.expect("no status"), None);
}

pub async fn headers_come_before_the_first_message(way: Way) {
    let mut line = way.start().await;
    let (_say, said) = mpsc::channel(1);

    let call = line.client.chat(steered(ReceiverStream::new(said), &[("x-word", "early")]));
    let response = soon("the headers", call).await.expect("a stream");

    assert_eq!(response.metadata().get("x-word").expect("in the headers"), "early");
}

pub async fn half_close_lets_the_rest_arrive(way: Way) {
    let mut line = way.start().await;
    let messages: Vec<_> = (1..=5).map(|size| payload(pattern(0, size))).collect();

    // The caller has nothing more to say before the first answer leaves.
    let call = line.client.chat(steered(tokio_stream::iter(messages), &[("echo-delay-ms", "20")]));
    let answers = call.await.expect("a stream").into_inner();

    assert_eq!(soon("the end", lengths(answers)).await.expect("no status"), [1, 2, 3, 4, 5]);
    assert_eq!(line.echo().counts(), Counts { started: 1, finished: 1, cancelled: 0 });
}

pub async fn server_may_end_while_the_caller_still_talks(way: Way) {
    let mut line = way.start().await;
    let (say, said) = mpsc::channel(1);
    let steering = [("echo-status", "10"), ("echo-message", "enough"), ("echo-status-after", "1")];
    let call = line.client.chat(steered(ReceiverStream::new(said), &steering));
    let mut answers = call.await.expect("a stream").into_inner();
    say.send(payload("one")).await.expect("the call stands");

    assert_eq!(soon("an answer", answers.message()).await.expect("no status"), Some(payload("one")));
    let status = soon("the status", answers.message()).await.expect_err("a status");

    assert_eq!((status.code(), status.message()), (Code::Aborted, "enough"));
    // The caller learns that nobody listens.
    soon("the end of the request", async {
        while say.send(payload("two")).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(line.echo().counts(), Counts { started: 1, finished: 1, cancelled: 0 });
}

pub async fn metadata_travels_both_ways(way: Way) {
    let mut line = way.start().await;
    let blob = way.blob();
    let mut request = steered(payload(""), &[("x-word", "one"), ("x-word", "two"), ("other", "stays")]);
    request.metadata_mut().insert_bin("x-blob-bin", BinaryMetadataValue::from_bytes(blob));

    let response = soon("the answer", line.client.download(request)).await.expect("a stream");

    let in_headers = response.metadata().clone();
    let mut stream = response.into_inner();
    while soon("the end", stream.message()).await.expect("no status").is_some() {}
    let in_trailers = stream.trailers().await.expect("no status").expect("trailers");
    for found in [&in_headers, &in_trailers] {
        assert_eq!(found.get_all("x-word").iter().collect::<Vec<_>>(), ["one", "two"]);
        let found = found.get_bin("x-blob-bin").expect("the blob");
        assert_eq!(found.to_bytes().expect("base64"), blob);
    }
    assert!(!in_headers.contains_key("other"));
}

pub async fn status_keeps_its_details(way: Way) {
    let mut line = way.start().await;
    let steering = [("echo-status", "9"), ("echo-message", "not now: 100 %"), ("echo-details", "1"), ("x-word", "one")];
    let request = steered(payload(""), &steering);

    let status = soon("the status", line.client.unary(request)).await.expect_err("a status");

    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not now: 100 %"));
    assert_details(&status);
    assert_eq!(status.metadata().get("x-word").expect("metadata beside the status"), "one");
}

pub async fn status_after_some_answers_comes_last(way: Way) {
    let mut line = way.start().await;
    let steering = [("echo-count", "9"), ("echo-status", "8"), ("echo-status-after", "2"), ("echo-details", "1")];
    let mut stream = line.client.download(steered(payload(""), &steering)).await.expect("a stream").into_inner();

    for _ in 0..2 {
        assert_eq!(soon("an answer", stream.message()).await.expect("no status yet"), Some(payload("")));
    }
    let status = soon("the status", stream.message()).await.expect_err("a status");

    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_details(&status);
}

pub async fn refusal_is_trailers_only(way: Way) {
    let mut line = way.start().await;

    let refused = line.client.download(steered(payload(""), &[("echo-status", "7")]));

    // The status came with the response's head: there is no stream.
    assert_eq!(soon("the status", refused).await.expect_err("a status").code(), Code::PermissionDenied);
}

pub async fn dropped_calls_cancel_their_handlers(way: Way) {
    let mut line = way.start().await;
    let hang = [("echo-hang", "1")];
    let mut download = line.client.download(steered(payload(""), &hang)).await.expect("a stream").into_inner();
    assert_eq!(soon("an answer", download.message()).await.expect("no status"), Some(payload("")));
    let (say, said) = mpsc::channel(1);
    let chat = line.client.chat(steered(ReceiverStream::new(said), &hang)).await.expect("a stream");
    let mut client = line.client.clone();
    let unary = tokio::spawn(async move { client.unary(steered(payload(""), &hang)).await });
    line.echo().wait_until("three calls", |counts| counts.running() == 3).await;

    drop(download);
    line.echo().wait_until("the end of the download", |counts| counts.cancelled == 1).await;
    // hyper, under tonic's own channel, holds a call for as long as its caller may still talk.
    let say = (!way.is_tonics()).then_some(say);
    drop(chat);
    line.echo().wait_until("the end of the chat", |counts| counts.cancelled == 2).await;
    drop(say);
    unary.abort();
    line.echo().wait_until("the end of the unary call", |counts| counts.cancelled == 3).await;

    soon("another call", line.client.unary(payload(""))).await.expect("the tunnel lives");
}

pub async fn deadline_ends_call_and_handler(way: Way) {
    let mut line = way.start().await;
    let mut request = steered(payload(""), &[("echo-hang", "1")]);
    request.set_timeout(Duration::from_millis(200));
    let started = Instant::now();

    let status = soon("the deadline", line.client.unary(request)).await.expect_err("a status");

    // tonic's own channel says so in another way, unless one that stands between is first to say it.
    let expected = if way.is_tonics() { Code::Cancelled } else { Code::DeadlineExceeded };
    let said_between = way.hops() > 1 && status.code() == Code::DeadlineExceeded;
    assert!(status.code() == expected || said_between, "{status:?}");
    assert!(started.elapsed() >= Duration::from_millis(200));
    line.echo().wait_until("the end of the handler", |counts| counts.cancelled == 1).await;
}

pub async fn deadline_holds_in_the_middle_of_a_stream(way: Way) {
    let mut line = way.start().await;
    let mut request = steered(payload(""), &[("echo-hang", "1"), ("echo-count", "2")]);
    request.set_timeout(Duration::from_millis(500));
    let mut stream = line.client.download(request).await.expect("a stream").into_inner();
    for _ in 0..2 {
        assert_eq!(soon("an answer", stream.message()).await.expect("no status yet"), Some(payload("")));
    }

    let status = soon("the deadline", stream.message()).await.expect_err("a status");

    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    // The status alone cancels the call: the stream is still held.
    line.echo().wait_until("the end of the handler", |counts| counts.cancelled == 1).await;
    drop(stream);
}

pub async fn calls_run_side_by_side(way: Way) {
    let line = way.start().await;
    let callers = (0..50).map(|caller| {
        let mut client = line.client.clone();
        tokio::spawn(async move {
            for call in 0..3 {
                let sent = payload(pattern(caller, way.bytes(1000 * call)));
                assert_eq!(client.unary(sent.clone()).await.expect("an answer").into_inner(), sent, "{caller}, {call}");
            }
        })
    });

    for caller in callers.collect::<Vec<_>>() {
        soon("a caller's end", caller).await.expect("a caller that got its answers");
    }

    assert_eq!(line.echo().counts(), Counts { started: 150, finished: 150, cancelled: 0 });
}

pub async fn large_messages_arrive_whole(way: Way) {
    let mut line = way.start().await;
    for size in [4 << 20, 8 << 20] {
        let sent = payload(pattern(7, size));
        let answer = soon("the answer", line.client.unary(sent.clone())).await.expect("an answer").into_inner();
        assert!(answer == sent, "{size} bytes: {} others came back", answer.data.len());
    }
    let steering = [("echo-count", "3"), ("echo-size", "4194304")];
    let stream = line.client.download(steered(payload(""), &steering)).await.expect("a stream");
    assert_eq!(soon("the end", lengths(stream.into_inner())).await.expect("no status"), [4 << 20; 3]);
}

/// The most that lies between a writer and a reader that does not read: the call's window, and as much again as one
/// hyper send buffer (1 MiB), two socket buffers, the tunnel's backlog mark and a message at each end can hold. A gateway
/// is one more to write to, with a window of its own.
fn held_up(way: Way) -> usize {
    way.hops() * (way.window_held() + (8 << 20))
}

const PIECE: usize = 64 << 10;

pub async fn unread_answers_hold_their_writer_and_nobody_else(way: Way) {
    let mut line = way.start().await;
    // 6.4 GB, if nobody stopped it.
    let steering = [("echo-count", "100000"), ("echo-size", "65536")];
    let unread = line.client.download(steered(payload(""), &steering)).await.expect("a stream");

    let echo = line.echo().clone();
    let written = soon("the writer's rest", rest_of(|| echo.answered() * PIECE)).await;

    assert!(written >= way.window() / 2, "{written} bytes: it stopped long before the window was full");
    assert!(written <= held_up(way), "{written} bytes were taken, of which nobody has read one");
    let sent = payload(pattern(0, 1 << 20));
    let answer = soon("another call's answer", line.client.unary(sent.clone())).await.expect("an answer");
    assert_eq!(answer.into_inner(), sent);
    drop(unread);
    line.echo().wait_until("the end of the download", |counts| counts.cancelled == 1).await;
}

pub async fn unread_requests_hold_their_writer_and_nobody_else(way: Way) {
    let mut line = way.start().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let flood = std::iter::repeat_with(move || {
        counter.fetch_add(PIECE, Ordering::Relaxed);
        payload(vec![0; PIECE])
    });
    // The handler takes one message and then sleeps for ten minutes.
    let call = line.client.chat(steered(tokio_stream::iter(flood.take(100_000)), &[("echo-delay-ms", "600000")]));
    let unread = soon("the headers", call).await.expect("a stream");

    let written = soon("the writer's rest", rest_of(|| sent.load(Ordering::Relaxed))).await;

    assert!(written >= way.window() / 2, "{written} bytes: it stopped long before the window was full");
    assert!(written <= held_up(way), "{written} bytes were taken, of which nobody has read one");
    let sent = payload(pattern(0, 1 << 20));
    let answer = soon("another call's answer", line.client.unary(sent.clone())).await.expect("an answer");
    assert_eq!(answer.into_inner(), sent);
    drop(unread);
}

/// What a number that grows has come to once it has stood still for half a second.
async fn rest_of(number: impl Fn() -> usize) -> usize {
    let mut last = (number(), Instant::now());
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = number();
        if now != last.0 {
            last = (now, Instant::now());
        } else if now > 0 && last.1.elapsed() > Duration::from_millis(500) {
            return now;
        }
    }
}

async fn lengths(mut stream: tonic::Streaming<crate::common::echo::pb::Payload>) -> Result<Vec<usize>, Status> {
    let mut lengths = Vec::new();
    while let Some(message) = stream.message().await? {
        lengths.push(message.data.len());
    }
    Ok(lengths)
}
