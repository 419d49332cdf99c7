//! What an agent passes on to the servers beside it, and what those may do.
#![cfg(feature = "gateway")]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{
    echo::{payload, pb::echo_client::EchoClient},
    forward::{Beside, serve},
    http2::{Answer, CHAT, RawClient, UNARY, framed, head, serve_raw, to_agent, trailers, with},
    rig::{AGENT, soon},
};
use dialback::{ForwardError, Forwards, Hub, gateway::Gateway};
use h2::Reason;
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::TcpListener};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;

#[cfg(feature = "grpctunnel")]
const SECOND: Duration = Duration::from_secs(1);

fn code(answer: &Answer) -> Code {
    Code::from_i32(answer.grpc().0)
}

/// A server beside an agent, whose every call is handled by `handle`.
async fn beside<F, Fut>(handle: F) -> SocketAddr
where
    F: Fn(http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(1000);
    serve_raw(settings, TcpListenerStream::new(listener), handle);
    address
}

/// A gateway to an agent that forwards there, and a client of it.
async fn through(address: SocketAddr) -> (Hub, Gateway, RawClient, impl Sized) {
    let (hub, rest) = serve(Forwards::new([address.to_string()]).expect("a rule")).await;
    let gateway = Gateway::builder(&hub).bind("127.0.0.1:0").await.expect("bind");
    let client = RawClient::connect(gateway.local_addr()).await;
    (hub, gateway, client, rest)
}

#[tokio::test]
async fn server_sees_the_call_as_if_it_were_called_directly() {
    let seen = Arc::new(Mutex::new(None));
    let kept = seen.clone();
    let address = beside(move |request, mut respond| {
        *kept.lock().unwrap() = Some(request.into_parts().0);
        async move {
            let mut stream = respond.send_response(head(), false).unwrap();
            stream.send_data(framed(b"hello"), false).unwrap();
            let mut last = trailers("0");
            last.insert("x-last", "1".parse().unwrap());
            stream.send_trailers(last).unwrap();
        }
    })
    .await;
    let (_hub, _gateway, client, _rest) = through(address).await;
    let request =
        with(UNARY, &[("dialback-agent", AGENT), ("x-mine", "1"), ("grpc-timeout", "9S"), ("te", "trailers")]);
    let answer = client.call(request, b"x").await.expect("an answer");
    assert_eq!((code(&answer), &*answer.data), (Code::Ok, &*framed(b"hello")));
    assert_eq!(answer.trailers["x-last"], "1");
    let seen = seen.lock().unwrap().take().expect("it was called");
    assert_eq!(seen.uri.authority().map(ToString::to_string), Some(address.to_string()));
    assert_eq!((seen.uri.scheme_str(), seen.uri.path()), (Some("http"), UNARY));
    for (name, value) in [("x-mine", "1"), ("te", "trailers"), ("content-type", "application/grpc")] {
        assert_eq!(seen.headers[name], value);
    }
    assert_eq!(seen.headers["grpc-timeout"], "9S", "deadlines are passed on as they are");
    assert!(!seen.headers.contains_key("dialback-agent") && !seen.headers.contains_key("host"), "{seen:?}");
}

#[tokio::test]
async fn reset_of_the_server_is_the_callers_reset() {
    let address = beside(|_, mut respond| async move { respond.send_reset(Reason::REFUSED_STREAM) }).await;
    let (_hub, _gateway, client, _rest) = through(address).await;
    let error = client.call(to_agent(UNARY), b"").await.expect_err("a reset");
    assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM));
}

/// C3: h2 ends a whole connection for small frames that nobody takes.
#[tokio::test]
async fn small_messages_to_a_slow_caller_harm_nobody() {
    const MESSAGES: usize = 200_000;
    let address = beside(|request, mut respond| async move {
        let mut stream = respond.send_response(head(), false).unwrap();
        if request.uri().path() == CHAT {
            let message = framed(&[7; 10]);
            for _ in 0..MESSAGES {
                stream.reserve_capacity(message.len() * 1000);
                while stream.capacity() < message.len() {
                    match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                        Some(Ok(_)) => {}
                        _ => return,
                    }
                }
                // Each in a frame of its own.
                stream.send_data(message.clone(), false).unwrap();
            }
        }
        stream.send_trailers(trailers("0")).unwrap();
    })
    .await;
    let (_hub, gateway, client, _rest) = through(address).await;
    let (answer, mut body) = client.begin(to_agent(CHAT)).await;
    body.send_data(Bytes::new(), true).unwrap();
    let mut slow = soon("the head", answer).await.unwrap().into_body();
    let other = RawClient::connect(gateway.local_addr()).await;
    let (mut got, begun) = (0, Instant::now());
    while let Some(data) = soon("data", slow.data()).await {
        let data = data.expect("the call goes on");
        got += data.len();
        slow.flow_control().release_capacity(data.len()).unwrap();
        // Slow at first, and fast once the queue is as long as it gets.
        if begun.elapsed() < Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let answer = soon("another's answer", other.call(to_agent(UNARY), b"")).await.expect("others go on");
            assert_eq!(code(&answer), Code::Ok);
        }
    }
    assert_eq!(got, MESSAGES * 15, "every byte arrives");
    assert_eq!(slow.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

/// As servers do that limit the age of connections.
#[tokio::test]
async fn server_may_end_its_connections_between_calls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accept");
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                let (_, mut respond) = connection.accept().await.expect("a call").expect("a call");
                let mut stream = respond.send_response(head(), false).unwrap();
                stream.send_trailers(trailers("0")).unwrap();
                connection.graceful_shutdown();
                while connection.accept().await.is_some() {}
            });
        }
    });
    let (_hub, _gateway, client, _rest) = through(address).await;
    for call in 0..50 {
        let answer = soon("an answer", client.call(to_agent(UNARY), b"")).await.expect("an answer");
        assert_eq!(code(&answer), Code::Ok, "call {call}: {answer:?}");
    }
}

#[tokio::test]
async fn what_speaks_no_http2_is_found_out() {
    for greeting in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\x15\x03\x01\x00\x02\x02\x46", b""] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut begin = [0; 24];
                let _ = stream.read_exact(&mut begin).await; // the client may be faster
                let _ = stream.write_all(greeting).await; // the same
                if !greeting.is_empty() {
                    // What is unread at the end would turn it into a reset, and the greeting would be lost.
                    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                }
            }
        });
        let (_hub, _gateway, client, _rest) = through(address).await;
        let answer = soon("an answer", client.call(to_agent(UNARY), b"")).await.expect("an answer");
        assert_eq!(code(&answer), Code::Unavailable, "{greeting:?}: {answer:?}");
        let text = answer.grpc().1;
        assert!(text.contains(&address.to_string()), "{greeting:?}: {text}");
        assert!(greeting.is_empty() || text.contains("write https://"), "{greeting:?}: {text}");
    }
}

#[tokio::test]
async fn rules_can_be_replaced_under_calls() {
    let (first, second) = (Beside::start(), Beside::start());
    let forwards = Forwards::new([first.address.to_string()]).expect("a rule");
    let (hub, _rest) = serve(forwards.clone()).await;
    let mut client = EchoClient::new(hub.channel(AGENT).expect("an id"));
    let (send, requests) = tokio::sync::mpsc::channel(4);
    let mut chat = {
        send.send(payload("1")).await.expect("it takes it");
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        soon("a chat", client.chat(requests)).await.expect("a chat").into_inner()
    };
    assert_eq!(soon("an answer", chat.message()).await.expect("one"), Some(payload("1")));

    let rules = [format!("dialback.echo.v1.Echo={}", second.address), "other.*=127.0.0.1:1".into()];
    forwards.replace(&Forwards::new(rules).expect("rules"));
    soon("an answer", client.unary(payload("x"))).await.expect("the second answers");
    assert_eq!((first.echo.counts().started, second.echo.counts().started), (1, 1));
    send.send(payload("2")).await.expect("it takes it");
    assert_eq!(soon("an answer", chat.message()).await.expect("the first goes on"), Some(payload("2")));

    forwards.replace(&Forwards::new(["other.*=127.0.0.1:1"]).expect("a rule"));
    let status = soon("an answer", client.unary(payload("x"))).await.expect_err("nobody takes it");
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
}

#[test]
fn rules_that_contradict_each_other_are_none() {
    let refused = |rules: &[&str]| Forwards::new(rules).expect_err("they are none");
    assert!(matches!(refused(&[]), ForwardError::None));
    assert!(matches!(refused(&["a:1", "*=b:1"]), ForwardError::Twice { .. }));
    assert!(matches!(refused(&["a.B=a:1", "a.B=b:1"]), ForwardError::Twice { .. }));
    assert!(matches!(refused(&["a:1", "nowhere"]), ForwardError::Invalid { given, .. } if given == "nowhere"));
}

/// The calls of an agent share connections to its server: one that the server does not read must not use up the window of all.
#[cfg(feature = "grpctunnel")]
#[tokio::test(flavor = "multi_thread")]
async fn upload_that_nobody_reads_stops_no_other_call_by_grpctunnel() {
    use common::tunnels::{Tunnels, builder};

    let address = beside(|request, mut respond| async move {
        let is_read = request.uri().path() == UNARY;
        let mut body = request.into_body();
        if !is_read {
            std::future::pending::<()>().await;
        }
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
        }
        let mut stream = respond.send_response(head(), false).unwrap();
        stream.send_data(framed(b""), false).unwrap();
        stream.send_trailers(trailers("0")).unwrap();
    })
    .await;
    let tunnels = Tunnels::start().await;
    let forwards = Forwards::new([address.to_string()]).unwrap();
    let _agent = builder(tunnels.dial().await).reverse(forwards.routes()).await.unwrap();
    soon("the agent", tunnels.hub.wait_for(AGENT)).await.unwrap();
    let mut client = EchoClient::new(tunnels.hub.channel(AGENT).unwrap());
    let mut unread = client.clone();
    let messages = tokio_stream::iter((0..4).map(|_| payload(vec![7; 100_000])));
    let unread = tokio::spawn(async move { unread.upload(messages).await });

    // Those that meet it before it has stood still for a second share its connection.
    let answered =
        async { while tokio::time::timeout(SECOND, client.unary(payload(vec![7; 10_000]))).await.is_err() {} };
    tokio::time::sleep(SECOND / 2).await;
    soon("another's answer", answered).await;
    for _ in 0..20 {
        soon("the next answer", client.unary(payload(vec![7; 100_000]))).await.expect("it succeeds");
    }
    assert!(!unread.is_finished());
}
