//! The Echo service does what it is told, over plain TCP: what a test sees through a tunnel is then the tunnel's doing.

mod common;

use std::time::Duration;

use common::echo::{Counts, Digest, Echo, assert_details, client, pattern, payload, pb, steered};
use pb::{Payload, echo_client::EchoClient};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Code,
    metadata::BinaryMetadataValue,
    transport::{Channel, Endpoint, Server},
};

async fn rig() -> (Echo, EchoClient<Channel>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let echo = Echo::default();
    let server = Server::builder().add_service(echo.service());
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    (echo, client(channel))
}

#[tokio::test]
async fn unary_answers_the_bytes_and_the_metadata() {
    let (echo, mut client) = rig().await;
    let mut request = steered(payload("hello"), &[("x-word", "ascii"), ("other", "stays here")]);
    request.metadata_mut().insert_bin("x-blob-bin", BinaryMetadataValue::from_bytes(&[0, 255, 10]));

    let response = client.unary(request).await.unwrap();

    assert_eq!(response.metadata().get("x-word").unwrap(), "ascii");
    assert_eq!(response.metadata().get_bin("x-blob-bin").unwrap().to_bytes().unwrap(), &[0u8, 255, 10][..]);
    assert!(!response.metadata().contains_key("other"));
    assert_eq!(response.into_inner(), payload("hello"));
    assert_eq!(echo.counts(), Counts { started: 1, finished: 1, cancelled: 0 });
}

#[tokio::test]
async fn unary_ends_with_the_status_and_details_it_was_told() {
    let (_, mut client) = rig().await;
    let steering = [("echo-status", "9"), ("echo-message", "not now"), ("echo-details", "1"), ("x-word", "ascii")];

    let status = client.unary(steered(payload(""), &steering)).await.unwrap_err();

    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "not now"));
    assert_details(&status);
    assert_eq!(status.metadata().get("x-word").unwrap(), "ascii");
}

#[tokio::test]
async fn unreadable_steering_is_an_invalid_argument() {
    let (_, mut client) = rig().await;
    let status = client.unary(steered(payload(""), &[("echo-status", "teapot")])).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn download_answers_as_many_messages_as_asked_then_trailers() {
    let (_, mut client) = rig().await;
    let request = steered(payload(""), &[("echo-count", "3"), ("echo-size", "1000"), ("x-word", "ascii")]);

    let mut stream = client.download(request).await.unwrap().into_inner();

    for index in 0..3 {
        assert_eq!(stream.message().await.unwrap(), Some(payload(pattern(index, 1000))));
    }
    assert_eq!(stream.message().await.unwrap(), None);
    assert_eq!(stream.trailers().await.unwrap().unwrap().get("x-word").unwrap(), "ascii");
}

#[tokio::test]
async fn download_ends_with_a_status_after_some_answers() {
    let (_, mut client) = rig().await;
    let steering = [("echo-count", "9"), ("echo-status", "8"), ("echo-status-after", "2")];

    let mut stream = client.download(steered(payload(""), &steering)).await.unwrap().into_inner();

    assert_eq!(stream.message().await.unwrap(), Some(payload("")));
    assert_eq!(stream.message().await.unwrap(), Some(payload("")));
    assert_eq!(stream.message().await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_status_before_any_answer_is_trailers_only() {
    let (_, mut client) = rig().await;
    let refused = client.download(steered(payload(""), &[("echo-status", "7")])).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied, "the status came with the response head");
}

#[tokio::test]
async fn upload_answers_the_digest_of_all_bytes() {
    let (_, mut client) = rig().await;
    let messages: Vec<Payload> = (0..20).map(|index| payload(pattern(index, 10_000))).collect();
    let mut digest = Digest::default();
    messages.iter().for_each(|message| digest.update(&message.data));

    let answer = client.upload(tokio_stream::iter(messages)).await.unwrap().into_inner();

    assert_eq!(answer, payload(digest.to_bytes()));
}

#[tokio::test]
async fn chat_sends_headers_before_it_is_sent_a_message() {
    let (_, mut client) = rig().await;
    let (say, said) = mpsc::channel(1);

    let mut answers = client.chat(ReceiverStream::new(said)).await.unwrap().into_inner();

    for word in ["one", "two"] {
        say.send(payload(word)).await.unwrap();
        assert_eq!(answers.message().await.unwrap(), Some(payload(word)));
    }
    drop(say);
    assert_eq!(answers.message().await.unwrap(), None);
}

#[tokio::test]
async fn a_handler_whose_caller_leaves_counts_as_cancelled() {
    let (echo, client) = rig().await;
    let hang = [("echo-hang", "1")];

    let mut unary = client.clone();
    let unary = tokio::spawn(async move { unary.unary(steered(payload(""), &hang)).await });
    echo.wait_until("the unary call", |seen| seen.running() == 1).await;
    unary.abort();
    echo.wait_until("its end", |seen| seen.cancelled == 1).await;

    let mut stream = client.clone().download(steered(payload(""), &hang)).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap(), Some(payload("")));
    drop(stream);
    echo.wait_until("the end of the download", |seen| seen.cancelled == 2).await;

    let (say, said) = mpsc::channel(1);
    let mut chat = client.clone().chat(steered(ReceiverStream::new(said), &hang)).await.unwrap().into_inner();
    say.send(payload("word")).await.unwrap();
    assert_eq!(chat.message().await.unwrap(), Some(payload("word")));
    drop(chat);
    drop(say); // hyper resets a stream only when its request body has ended too
    let seen = echo.wait_until("the end of the chat", |seen| seen.cancelled == 3).await;
    assert_eq!(seen, Counts { started: 3, finished: 0, cancelled: 3 });
}

#[tokio::test]
async fn a_deadline_ends_a_slow_call() {
    let (echo, mut client) = rig().await;
    let mut request = steered(payload(""), &[("echo-delay-ms", "60000")]);
    request.set_timeout(Duration::from_millis(50));

    let status = client.unary(request).await.unwrap_err();

    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    echo.wait_until("the handler to be cancelled", |seen| seen.cancelled == 1).await;
}
