//! The gateway: which calls it takes, what it passes on, whom it lets in, and what it survives.
#![cfg(feature = "gateway")]

mod common;

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{
    echo::{Echo, payload, pb::echo_client::EchoClient, steered},
    faults::until,
    gateway::{channel, channel_to},
    http2::{Answer, CHAT, RawClient, UNARY, answered, framed, head, serve_raw, to_agent, trailers, with},
    proxy::Way,
    rig::{AGENT, Rig, serve, soon},
};
use dialback::{
    Agent, AllowedKeys, HostKeys, Hub, PrivateKey,
    gateway::{Gateway, GatewayBuilder, GatewayError, PolicyFile},
};
use h2::Reason;
use http::Request;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

const DOWNLOAD: &str = "/dialback.echo.v1.Echo/Download";
const SECOND: Duration = Duration::from_secs(1);

async fn bind(gateway: GatewayBuilder) -> Gateway {
    gateway.bind("127.0.0.1:0").await.expect("bind the gateway")
}

async fn start() -> (Rig, Gateway, RawClient) {
    let rig = Rig::start().await;
    let gateway = bind(Gateway::builder(&rig.hub)).await;
    let client = RawClient::connect(gateway.local_addr()).await;
    (rig, gateway, client)
}

/// An agent whose server is `handle`, and a gateway to it.
async fn start_raw<F, Fut>(
    set: impl FnOnce(GatewayBuilder) -> GatewayBuilder,
    handle: F,
) -> (Hub, Agent, Gateway, RawClient)
where
    F: Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(1000);
    start_raw_with(set, settings, handle).await
}

/// The agent's server has settings of its own.
async fn start_raw_with<F, Fut>(
    set: impl FnOnce(GatewayBuilder) -> GatewayBuilder,
    settings: h2::server::Builder,
    handle: F,
) -> (Hub, Agent, Gateway, RawClient)
where
    F: Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).unwrap();
    let hub = Hub::builder(host.clone()).authorizer(allowed).bind("127.0.0.1:0").await.unwrap();
    let agent = Agent::builder(AGENT, key).host_keys(HostKeys::public_key(host.public_key()));
    let agent = agent.connect(hub.local_addr().to_string()).await.unwrap();
    serve_raw(settings, agent.incoming(), handle);
    soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let gateway = bind(set(Gateway::builder(&hub))).await;
    let client = RawClient::connect(gateway.local_addr()).await;
    (hub, agent, gateway, client)
}

fn code(answer: &Answer) -> Code {
    Code::from_i32(answer.grpc().0)
}

#[tokio::test]
async fn target_that_cannot_be_made_out_is_answered_with_how_to_name_one() {
    let (rig, gateway, client) = start().await;
    type Case = (&'static [(&'static str, &'static str)], Code, &'static str);
    let cases: [Case; 7] = [
        (&[], Code::NotFound, "there is no agent `gateway.test`: set metadata dialback-agent"),
        (
            &[("dialback-agent", "laptop-9")],
            Code::NotFound,
            "there is no agent `laptop-9`: set metadata dialback-agent",
        ),
        (&[("dialback-agent", "")], Code::InvalidArgument, "is not an agent id"),
        (&[("dialback-agent", "Laptop 1")], Code::InvalidArgument, "is not an agent id"),
        (&[("dialback-agent", AGENT), ("dialback-agent", AGENT)], Code::InvalidArgument, "given 2 times"),
        (&[("dialback-agent", AGENT), ("dialback-agent", "b")], Code::InvalidArgument, "given 2 times"),
        (&[("dialback-agent", AGENT)], Code::Ok, ""),
    ];
    for (headers, expected, text) in cases {
        let answer = client.call(with(UNARY, headers), b"").await.expect("an answer");
        assert_eq!((code(&answer), answer.status.as_u16()), (expected, 200), "{headers:?}: {answer:?}");
        assert!(answer.grpc().1.contains(text), "{answer:?}");
    }
    let mut nobody = Request::post(format!("http://{}{UNARY}", gateway.local_addr())).body(()).unwrap();
    nobody.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = client.call(nobody, b"").await.unwrap();
    assert_eq!(code(&answer), Code::InvalidArgument);
    assert!(answer.grpc().1.contains("no agent is named: set metadata dialback-agent"), "{answer:?}");

    let tunnel = rig.hub.get(AGENT).unwrap();
    drop(rig.agent);
    soon("its end", tunnel.closed()).await;
    until("it is gone", || rig.hub.get(AGENT).is_none()).await;
    let away = client.call(to_agent(UNARY), b"").await.unwrap();
    assert_eq!(code(&away), Code::Unavailable);
    assert!(away.grpc().1.contains("`laptop-1` is away since 20"), "{away:?}");
}

#[tokio::test]
async fn agents_are_named_by_metadata_by_authority_and_by_suffix() {
    let rig = Rig::start().await;
    let gateway = bind(Gateway::builder(&rig.hub).suffix("agents.example.com.")).await;
    for authority in [AGENT, "laptop-1.agents.example.com"] {
        let mut client = EchoClient::new(channel_to(&gateway, authority).await);
        soon("an answer", client.unary(payload(authority))).await.expect("the agent answers");
    }
    let mut client = EchoClient::new(channel_to(&gateway, "agents.example.com").await);
    let named = steered(payload(""), &[("dialback-agent", AGENT)]);
    soon("an answer", client.unary(named)).await.expect("the agent answers");
    let absent = client.unary(payload("")).await.unwrap_err();
    assert!(absent.message().contains("authority <id>.agents.example.com"), "{absent}");
    let torn = steered(payload(""), &[("dialback-agent", AGENT)]);
    let mut other = EchoClient::new(channel_to(&gateway, "laptop-2.agents.example.com").await);
    assert_eq!(other.unary(torn).await.unwrap_err().code(), Code::InvalidArgument);
}

/// I7.
#[tokio::test]
async fn paths_that_may_mean_something_else_are_refused() {
    let (rig, _gateway, client) = start().await;
    let escaped =
        ["/dialback.echo.v1.Echo/%55nary", "/dialback.echo.v1.Echo/Unary?x=1", "//dialback.echo.v1.Echo/Unary"];
    let odd =
        ["/dialback.echo.v1.Echo//Unary", "/dialback.echo.v1.Echo", "/", "/dialback.echo.v1.Echo/Unary/", "/../a/b"];
    for path in escaped.into_iter().chain(odd) {
        let answer = client.call(to_agent(path), b"").await.expect("an answer");
        assert_eq!(code(&answer), Code::InvalidArgument, "{path}: {answer:?}");
    }
    assert_eq!(rig.echo.counts().started, 0);
    let plain = client.call(with(UNARY, &[("content-type", "text/plain")]), b"").await.unwrap();
    assert_eq!(plain.status, 415);
    let get = Request::get("http://x/").body(()).unwrap();
    let get = client.call(get, b"").await.unwrap();
    assert_eq!(get.status, 405);
    assert!(String::from_utf8_lossy(&get.data).contains("gRPC gateway"));
}

/// I7, and what is passed on.
#[tokio::test]
async fn agent_sees_what_the_caller_sent_and_nothing_of_the_hops_between() {
    let (seen, mut requests) = mpsc::unbounded_channel();
    let (_hub, _agent, _gateway, client) = start_raw(
        |gateway| gateway,
        move |request, mut respond| {
            let seen = seen.clone();
            async move {
                seen.send((request.uri().clone(), request.headers().clone())).unwrap();
                let mut head = head();
                for (name, value) in [("x-early", "1"), ("connection", "x-mine"), ("x-mine", "1"), ("x-bin", "AAE")] {
                    let _ = name != "connection" && head.headers_mut().append(name, value.parse().unwrap());
                }
                let mut stream = respond.send_response(head, false).unwrap();
                stream.send_data(framed(b"\x01compressed?"), false).unwrap();
                let mut end = trailers("7");
                end.insert("grpc-message", "a%20b".parse().unwrap());
                end.insert("grpc-status-details-bin", "CAcSA2EgYg".parse().unwrap());
                end.append("x-twice", "1".parse().unwrap());
                end.append("x-twice", "2".parse().unwrap());
                stream.send_trailers(end).unwrap();
            }
        },
    )
    .await;
    let mut request = with(
        "/any.Service/Method",
        &[
            ("dialback-agent", AGENT),
            ("dialback-caller", "admin"),
            ("dialback-anything", "spoofed"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("grpc-encoding", "gzip"),
            ("grpc-timeout", "10S"),
            ("x-bin", "AAEC"),
            ("authorization", "Bearer for the agent"),
        ],
    );
    request.headers_mut().append("x-twice", "1".parse().unwrap());
    request.headers_mut().append("x-twice", "2".parse().unwrap());
    let answer = client.call(request, b"x").await.unwrap();

    let (uri, headers) = requests.recv().await.unwrap();
    assert_eq!(uri, "http://laptop-1/any.Service/Method");
    let mut names: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    let expected =
        ["authorization", "content-type", "grpc-encoding", "grpc-timeout", "te", "traceparent", "x-bin", "x-twice"];
    assert_eq!(names, expected);
    assert_eq!(headers["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(headers.get_all("x-twice").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!((&answer.head["x-early"], &answer.head["x-bin"]), (&"1".parse().unwrap(), &"AAE".parse().unwrap()));
    assert_eq!(answer.data, framed(b"\x01compressed?"));
    assert_eq!(answer.trailers["grpc-status-details-bin"], "CAcSA2EgYg");
    assert_eq!(answer.trailers["grpc-message"], "a%20b");
    assert_eq!(answer.trailers.get_all("x-twice").iter().collect::<Vec<_>>(), ["1", "2"]);
}

#[tokio::test]
async fn metadata_of_16_kib_passes_and_a_flood_of_headers_harms_only_itself() {
    let (rig, gateway, client) = start().await;
    let large = "x".repeat(16 << 10);
    let mut request = to_agent(UNARY);
    request.headers_mut().insert("x-large", large.parse().unwrap());
    let answer = client.call(request, b"").await.unwrap();
    assert_eq!((code(&answer), answer.head["x-large"].len()), (Code::Ok, 16 << 10));

    let flood = RawClient::connect(gateway.local_addr()).await;
    let mut request = to_agent(UNARY);
    for n in 0..3000 {
        request.headers_mut().append("x-flood", format!("{n:0100}").parse().unwrap());
    }
    let before = rig.echo.counts().started;
    let refused = flood.call(request, b"").await;
    assert!(refused.as_ref().is_ok_and(|answer| answer.status == 431) || refused.is_err(), "{refused:?}");
    assert_eq!(rig.echo.counts().started, before);
    let answer = client.call(to_agent(UNARY), b"").await.expect("others go on");
    assert_eq!(code(&answer), Code::Ok);
}

#[tokio::test]
async fn client_of_http_1_is_told_what_is_spoken_here() {
    let (_rig, gateway, _client) = start().await;
    for request in
        ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST /a.B/C HTTP/1.1\r\n\r\n", "\0\0\0\0", "PRI * HTTP/1.1\r\n"]
    {
        let mut stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 505 "), "{request:?}: {answer:?}");
        assert!(answer.contains("gRPC gateway"), "{answer:?}");
    }
    let mut hello = TcpStream::connect(gateway.local_addr()).await.unwrap();
    hello.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    assert_eq!(soon("the end", hello.read_to_end(&mut Vec::new())).await.unwrap_or(0), 0, "TLS is not answered");
}

#[tokio::test]
async fn gateway_without_a_policy_listens_on_loopback_only() {
    let rig = Rig::start().await;
    let refused = Gateway::builder(&rig.hub).bind("0.0.0.0:0").await.expect_err("everybody could call");
    assert!(matches!(refused, GatewayError::NeedsPolicy { .. }));
    assert!(refused.to_string().contains("policy(PolicyFile::open(…)?)"), "{refused}");
    let refused = Gateway::builder(&rig.hub).suffix("not a name").bind("127.0.0.1:0").await.expect_err("no suffix");
    assert!(matches!(refused, GatewayError::Suffix { .. }), "{refused}");
    Gateway::builder(&rig.hub).bind("[::1]:0").await.expect("loopback");
}

/// The agent answers before it has heard all, and the caller may stop talking.
#[tokio::test]
async fn early_answer_reaches_a_caller_who_still_talks() {
    let (_hub, _agent, _gateway, client) = start_raw(
        |gateway| gateway,
        |request, mut respond| async move {
            let mut refusal = head();
            refusal.headers_mut().insert("grpc-status", "8".parse().unwrap());
            refusal.headers_mut().insert("grpc-message", "enough".parse().unwrap());
            respond.send_response(refusal, true).unwrap();
            drop(request);
        },
    )
    .await;
    for _ in 0..20 {
        let (answer, mut body) = client.begin(to_agent(CHAT)).await;
        body.send_data(framed(&[0; 1000]), false).unwrap();
        let answer = answered(answer).await.expect("an answer");
        assert_eq!((code(&answer), answer.grpc().1), (Code::ResourceExhausted, "enough".into()));
        let reset = soon("the word to stop", std::future::poll_fn(|cx| body.poll_reset(cx))).await;
        assert_eq!(reset.expect("the connection lives"), Reason::NO_ERROR);
    }
}

/// What an agent's server does with a call in [`resets_are_passed_on_in_every_phase`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    BeforeHead,
    AfterHead,
    AfterData,
}

#[tokio::test]
async fn resets_are_passed_on_in_every_phase() {
    let (said, mut heard) = mpsc::unbounded_channel();
    let (_hub, _agent, _gateway, client) = start_raw(
        |gateway| gateway,
        move |request, mut respond| {
            let said = said.clone();
            async move {
                let phase = request.headers()["x-phase"].clone();
                let by_agent = request.headers().contains_key("x-by-agent");
                let mut stream = None;
                if phase != "BeforeHead" {
                    let mut body = respond.send_response(head(), false).unwrap();
                    if phase == "AfterData" {
                        body.send_data(framed(b"some"), false).unwrap();
                    }
                    stream = Some(body);
                }
                match (by_agent, stream) {
                    (true, None) => respond.send_reset(Reason::from(11)),
                    (true, Some(mut stream)) => stream.send_reset(Reason::from(11)),
                    (false, mut stream) => {
                        said.send(None).unwrap();
                        let reset = std::future::poll_fn(|cx| match &mut stream {
                            Some(stream) => stream.poll_reset(cx),
                            None => respond.poll_reset(cx),
                        });
                        said.send(Some(reset.await)).unwrap();
                    }
                }
                drop(request);
            }
        },
    )
    .await;
    for phase in [Phase::BeforeHead, Phase::AfterHead, Phase::AfterData] {
        let name = format!("{phase:?}");
        let by_agent = with(CHAT, &[("dialback-agent", AGENT), ("x-phase", &name), ("x-by-agent", "1")]);
        let (answer, _body) = client.begin(by_agent).await;
        let error = answered(answer).await.expect_err("a reset");
        assert_eq!(error.reason(), Some(Reason::from(11)), "{phase:?}: {error}");

        let by_caller = with(CHAT, &[("dialback-agent", AGENT), ("x-phase", &name)]);
        let (answer, mut body) = client.begin(by_caller).await;
        assert!(soon("the call", heard.recv()).await.unwrap().is_none());
        if phase != Phase::BeforeHead {
            let mut answer = soon("the head", answer).await.unwrap().into_body();
            if phase == Phase::AfterData {
                soon("some data", answer.data()).await.unwrap().unwrap();
            }
            body.send_reset(Reason::CANCEL);
        } else {
            body.send_reset(Reason::CANCEL);
            drop(answer);
        }
        let reset = soon("the agent hears", heard.recv()).await.unwrap().unwrap();
        assert_eq!(reset.expect("the agent's connection lives"), Reason::CANCEL, "{phase:?}");
    }
}

/// An agent's server may end a connection on which too many calls are reset before it has looked at them: 20, at h2's
/// default. Others' calls are on that connection as well.
#[tokio::test]
async fn callers_who_cancel_in_bursts_cost_others_nothing() {
    let (hub, _agent, gateway, client) = start_raw(
        |gateway| gateway,
        |request, mut respond| async move {
            if request.uri().path() == CHAT {
                let _stream = respond.send_response(head(), false).unwrap();
                std::future::pending::<()>().await;
            }
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        },
    )
    .await;
    let (answer, _body) = client.begin(to_agent(CHAT)).await;
    let mut standing = soon("the head", answer).await.unwrap().into_body();
    for _ in 0..5 {
        // Through the gateway, each on a connection of its own, and in process.
        let mut bursts = Vec::new();
        for _ in 0..15 {
            let other = RawClient::connect(gateway.local_addr()).await;
            let mut calls = Vec::new();
            for _ in 0..15 {
                calls.push(other.begin(to_agent(UNARY)).await);
            }
            bursts.push((other, calls));
        }
        let mut own = JoinSet::new();
        for _ in 0..200 {
            let mut client = EchoClient::new(hub.channel(AGENT).unwrap());
            own.spawn(async move { client.unary(payload("")).await });
        }
        tokio::time::sleep(Duration::from_micros(300)).await;
        own.abort_all();
        drop(bursts);
        while own.join_next().await.is_some() {}
    }
    let ended = timeout(SECOND / 2, standing.data()).await;
    assert!(ended.is_err(), "the call that stood has ended: {ended:?}");
}

/// Calls that are given up while others hold all the places of a connection must not wait for one in h2, and go out with
/// their resets all at once when there is one.
#[tokio::test]
async fn calls_given_up_while_a_connection_is_full_cost_others_nothing() {
    const PLACES: usize = 100;
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = seen.clone();
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(PLACES as u32);
    let (hub, _agent, _gateway, client) = start_raw_with(
        |gateway| gateway,
        settings,
        move |request, mut respond| {
            let counter = counter.clone();
            async move {
                counter.fetch_add(1, Ordering::Relaxed);
                if request.uri().path() == CHAT {
                    let _stream = respond.send_response(head(), false).unwrap();
                    std::future::pending::<()>().await;
                }
                let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            }
        },
    )
    .await;
    let (answer, _body) = client.begin(to_agent(CHAT)).await;
    let mut standing = soon("the head", answer).await.unwrap().into_body();
    let begin = |calls: usize| {
        let mut own = JoinSet::new();
        for _ in 0..calls {
            let mut client = EchoClient::new(hub.channel(AGENT).unwrap());
            own.spawn(async move { client.unary(payload("")).await });
        }
        own
    };
    let first = begin(PLACES - 1);
    until("the connection is full", || seen.load(Ordering::Relaxed) == PLACES).await;
    drop(first);
    for _ in 0..30 {
        let next = begin(20);
        tokio::time::sleep(SECOND / 1000).await;
        drop(next);
    }
    let ended = timeout(SECOND, standing.data()).await;
    assert!(ended.is_err(), "the call that stood has ended: {ended:?}");
}

/// C6, and a limit of the gateway's own.
#[tokio::test]
async fn deadlines_hold_for_caller_and_handler() {
    let rig = Rig::start().await;
    let gateway = bind(Gateway::builder(&rig.hub).max_duration(2 * SECOND)).await;
    let client = RawClient::connect(gateway.local_addr()).await;
    for (timeout, limit) in [(Some("300m"), SECOND * 3 / 10), (None, 2 * SECOND), (Some("1H"), 2 * SECOND)] {
        let mut request = with(UNARY, &[("dialback-agent", AGENT), ("echo-hang", "1")]);
        if let Some(timeout) = timeout {
            request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        let before = rig.echo.counts().cancelled;
        let begun = Instant::now();
        let answer = client.call(request, b"").await.unwrap();
        let took = begun.elapsed();
        assert!(code(&answer) == Code::DeadlineExceeded || code(&answer) == Code::Cancelled, "{answer:?}");
        assert!(took >= limit && took < limit + SECOND, "{timeout:?}: {took:?}");
        rig.echo.wait_until("the end of the handler", |counts| counts.cancelled == before + 1).await;
        assert!(begun.elapsed() < limit + SECOND);
    }
    // The hub's own streams, too.
    let begun = Instant::now();
    let answer = call_here(&client, None, "/dialback.v1.Hub/WatchAgents").await;
    assert!(code(&answer) == Code::DeadlineExceeded && !answer.data.is_empty(), "{answer:?}");
    assert!(begun.elapsed() >= 2 * SECOND);
}

/// To a client, a status within a message is a broken stream, whatever it says.
#[tokio::test]
async fn deadline_within_a_message_cancels_the_call() {
    let rig = Rig::start().await;
    let gateway = bind(Gateway::builder(&rig.hub).max_duration(SECOND / 3)).await;
    let stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    let slow = RawClient::over(stream, |builder| builder.initial_window_size(1000)).await;
    let (answer, mut body) = slow.begin(with(DOWNLOAD, &[("dialback-agent", AGENT), ("echo-size", "5000")])).await;
    body.send_data(framed(b""), true).unwrap();
    let mut unread = soon("the head", answer).await.unwrap().into_body();
    let mut len = 0;
    let end = loop {
        match soon("data, or the end", unread.data()).await {
            Some(Ok(data)) => len += data.len(),
            end => break end,
        }
    };
    let reason = end.as_ref().and_then(|end| end.as_ref().err()).and_then(h2::Error::reason);
    assert_eq!((len, reason), (1000, Some(h2::Reason::CANCEL)), "{end:?}");
}

#[tokio::test]
async fn silent_call_ends_after_its_time_and_a_busy_one_does_not() {
    let rig = Rig::start().await;
    let gateway = bind(Gateway::builder(&rig.hub).idle_timeout(SECOND / 2)).await;
    let mut client = EchoClient::new(channel(&gateway).await);
    let steering = [("echo-count", "10"), ("echo-delay-ms", "200")];
    let mut busy = client.download(steered(payload(""), &steering)).await.unwrap().into_inner();
    let mut messages = 0;
    while soon("a message", busy.message()).await.expect("it is not silent").is_some() {
        messages += 1;
    }
    assert_eq!(messages, 10);
    let hanging = steered(payload(""), &[("echo-count", "1"), ("echo-hang", "1")]);
    let mut silent = client.download(hanging).await.unwrap().into_inner();
    soon("a message", silent.message()).await.unwrap();
    let status = soon("the end", silent.message()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "the call was silent for too long"));
    rig.echo.wait_until("the end of the handler", |counts| counts.cancelled == 1).await;
}

/// C1, towards the caller: one that reads nothing loses its call, and nobody else does.
#[tokio::test]
async fn caller_who_does_not_read_loses_its_call_alone() {
    let rig = Rig::start().await;
    let gateway = bind(Gateway::builder(&rig.hub).stall_timeout(SECOND)).await;
    let stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    let deaf = RawClient::over(stream, |builder| builder.initial_window_size(65_535)).await;
    let flood = [("dialback-agent", AGENT), ("echo-count", "100000"), ("echo-size", "65536")];
    let (answer, mut body) = deaf.begin(with(DOWNLOAD, &flood)).await;
    body.send_data(framed(b""), true).unwrap();
    let mut unread = soon("the head", answer).await.unwrap().into_body();

    let mut client = EchoClient::new(channel(&gateway).await);
    let begun = Instant::now();
    while rig.echo.counts().cancelled == 0 {
        assert!(begun.elapsed() < 10 * SECOND, "the call goes on");
        soon("another's answer", client.unary(payload("hello"))).await.expect("others go on");
    }
    let mut got = 0;
    while let Some(Ok(data)) = soon("what was sent", unread.data()).await {
        got += data.len();
        let _ = unread.flow_control().release_capacity(data.len());
    }
    assert!(got <= 65_535, "{got}");
    let end = soon("the status", unread.trailers()).await.unwrap().unwrap();
    assert_eq!(end["grpc-status"], "8", "{end:?}");
    soon("the same caller's next", deaf.call(to_agent(UNARY), b"")).await.expect("its connection lives");
}

/// Two calls that nobody reads would take all the window of their agent's connection.
#[tokio::test]
async fn slow_readers_do_not_take_the_window_of_others() {
    let rig = Rig::start().await;
    let gateway = bind(Gateway::builder(&rig.hub)).await;
    let mut unread = Vec::new();
    for _ in 0..3 {
        let stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
        let deaf = RawClient::over(stream, |builder| builder.initial_window_size(65_535)).await;
        let flood = [("dialback-agent", AGENT), ("echo-count", "100000"), ("echo-size", "65536")];
        let (answer, mut body) = deaf.begin(with(DOWNLOAD, &flood)).await;
        body.send_data(framed(b""), true).unwrap();
        unread.push((deaf, soon("the head", answer).await.unwrap()));
    }
    let mut client = EchoClient::new(channel(&gateway).await);
    let begun = Instant::now();
    while begun.elapsed() < 3 * SECOND {
        let answer = soon("another's answer", client.unary(payload(vec![7; 100_000]))).await;
        answer.expect("others go on");
    }
    assert_eq!(rig.echo.counts().cancelled, 0, "a reader may pause");
}

/// Readers who take next to nothing, so that they never stand still, do not fill the hub's memory.
#[tokio::test]
async fn readers_that_trickle_lose_their_calls_when_too_much_is_kept() {
    let rig = Rig::start().await;
    let gateway = bind(Gateway::builder(&rig.hub).max_held(8 << 20)).await;
    let stream = TcpStream::connect(gateway.local_addr()).await.unwrap();
    let trickling = RawClient::over(stream, |builder| builder.initial_window_size(65_535)).await;
    let flood = [("dialback-agent", AGENT), ("echo-count", "100000"), ("echo-size", "65536")];
    let mut calls = JoinSet::new();
    for _ in 0..4 {
        let (answer, mut body) = trickling.begin(with(DOWNLOAD, &flood)).await;
        body.send_data(framed(b""), true).unwrap();
        let mut unread = soon("the head", answer).await.unwrap().into_body();
        calls.spawn(async move {
            while let Some(Ok(data)) = unread.data().await {
                for _ in 0..data.len() / 8 {
                    if unread.flow_control().release_capacity(8).is_err() {
                        return;
                    }
                    tokio::time::sleep(SECOND / 5).await;
                }
            }
        });
    }
    rig.echo.wait_until("the end of those that were too many", |counts| counts.cancelled >= 3).await;
    let mut client = EchoClient::new(channel(&gateway).await);
    soon("another's answer", client.unary(payload("hello"))).await.expect("others go on");
}

/// An agent's server that says goodbye to a connection takes new calls on another, while old ones end in their own time.
#[tokio::test]
async fn connection_that_is_being_closed_keeps_no_call_from_its_agent() {
    let rig = Rig::start().await;
    let mut incoming = rig.agent.incoming();
    tokio::spawn(async move {
        while let Some(Ok(io)) = tokio_stream::StreamExt::next(&mut incoming).await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(io).await.unwrap();
                let mut held = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let mut stream = respond.send_response(head(), false).unwrap();
                    if request.uri().path() == CHAT {
                        held.push((request, stream));
                        connection.graceful_shutdown();
                    } else {
                        stream.send_trailers(trailers("0")).unwrap();
                    }
                }
            });
        }
    });
    let gateway = bind(Gateway::builder(&rig.hub)).await;
    let client = RawClient::connect(gateway.local_addr()).await;
    // The connection that the rig has made goes with its server.
    soon("the agent's new server", async {
        while client.call(to_agent(UNARY), b"").await.map(|answer| code(&answer)).ok() != Some(Code::Ok) {}
    })
    .await;
    let (answer, _body) = client.begin(to_agent(CHAT)).await;
    let mut standing = soon("the head", answer).await.unwrap().into_body();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(code(&client.call(to_agent(UNARY), b"").await.unwrap()), Code::Ok);
    }
    assert!(timeout(SECOND / 10, standing.data()).await.is_err(), "the old call goes on");
}

/// C1, towards the agent.
#[tokio::test]
async fn agent_that_does_not_read_costs_the_caller_one_call() {
    let (_hub, _agent, gateway, client) = start_raw(
        |gateway| gateway.stall_timeout(SECOND),
        |request, mut respond| async move {
            if request.uri().path() == UNARY {
                let mut stream = respond.send_response(head(), false).unwrap();
                return stream.send_trailers(trailers("0")).unwrap();
            }
            let _request = request; // and reads nothing of it
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        },
    )
    .await;
    let (answer, mut body) = client.begin(to_agent(CHAT)).await;
    body.send_data(vec![0; 1 << 20].into(), false).unwrap();
    let other = RawClient::connect(gateway.local_addr()).await;
    assert_eq!(code(&other.call(to_agent(UNARY), b"").await.unwrap()), Code::Ok);
    let answer = answered(answer).await.unwrap();
    assert_eq!(code(&answer), Code::ResourceExhausted);
    assert!(answer.grpc().1.contains("the agent took nothing for 1s"), "{answer:?}");
    assert_eq!(code(&client.call(to_agent(UNARY), b"").await.unwrap()), Code::Ok);
}

/// C1: an upload that nobody reads may take the window of its connection, and then others get another connection.
#[tokio::test]
async fn upload_that_nobody_reads_keeps_no_others_from_the_agent() {
    let (_hub, _agent, gateway, client) = start_raw(
        |gateway| gateway,
        |request, mut respond| async move {
            let is_chat = request.uri().path() == CHAT;
            let mut body = request.into_body();
            while !is_chat && let Some(data) = body.data().await {
                body.flow_control().release_capacity(data.unwrap().len()).unwrap();
            }
            if is_chat {
                // It reads nothing, and h2's window for a whole connection is 64 KiB.
                let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                return;
            }
            respond.send_response(head(), false).unwrap().send_trailers(trailers("0")).unwrap();
        },
    )
    .await;
    let (_answer, mut body) = client.begin(to_agent(CHAT)).await;
    body.send_data(vec![0; 1 << 20].into(), false).unwrap();
    tokio::time::sleep(3 * SECOND).await;
    let other = RawClient::connect(gateway.local_addr()).await;
    let answer = soon("another's answer", other.call(to_agent(UNARY), &[0; 100])).await.unwrap();
    assert_eq!(code(&answer), Code::Ok);
}

/// C1: small requests go out before there is room for them, as long as answers show that they arrive.
#[tokio::test]
async fn small_calls_find_out_that_an_agent_takes_nothing() {
    let (_hub, _agent, gateway, client) = start_raw(
        |gateway| gateway.stall_timeout(3 * SECOND),
        |request, mut respond| async move {
            let is_chat = request.uri().path() == CHAT;
            let mut body = request.into_body();
            while !is_chat && let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
            }
            if is_chat {
                let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            } else if let Ok(mut stream) = respond.send_response(head(), false) {
                stream.send_trailers(trailers("0")).unwrap();
            }
        },
    )
    .await;
    // All of it is on its way, and nothing of it waits: but it is all of the window of h2's connections.
    let (_answer, mut body) = client.begin(to_agent(CHAT)).await;
    body.send_data(vec![0; 65_535].into(), true).unwrap();
    tokio::time::sleep(SECOND / 2).await;
    let other = Arc::new(RawClient::connect(gateway.local_addr()).await);
    let call = |message: &'static [u8]| {
        let other = other.clone();
        tokio::spawn(async move { code(&other.call(to_agent(UNARY), message).await.unwrap()) })
    };
    let first = call(&[0; 100]);
    tokio::time::sleep(SECOND * 3 / 2).await;
    let second = call(&[0; 100]);
    tokio::time::sleep(SECOND * 3 / 2).await;
    assert_eq!(soon("a third's answer, on another connection", call(&[0; 100])).await.unwrap(), Code::Ok);
    assert_eq!(soon("the second's end", second).await.unwrap(), Code::ResourceExhausted);
    assert!(!first.is_finished(), "nobody knows of the first but its caller");
    first.abort();
}

/// An agent that grants no window and answers all the same would have the hub keep every request.
#[tokio::test]
async fn what_an_agent_has_not_taken_when_it_answers_is_dropped() {
    const CALLS: usize = 500;
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = dropped.clone();
    let mut settings = h2::server::Builder::new();
    settings.initial_window_size(0);
    let (hub, _agent, _gateway, client) = start_raw_with(
        |gateway| gateway,
        settings,
        move |request, mut respond| {
            let counter = counter.clone();
            async move {
                let Ok(mut stream) = respond.send_response(head(), false) else { return };
                stream.send_trailers(trailers("0")).unwrap();
                let end = request.into_body().data().await;
                assert_eq!(end.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
                counter.fetch_add(1, Ordering::Relaxed);
            }
        },
    )
    .await;
    let message = [7; 1000];
    for _ in 0..CALLS {
        assert_eq!(code(&soon("an answer", client.call(to_agent(UNARY), &message)).await.unwrap()), Code::Ok);
    }
    until("the agent has been told of every call", || dropped.load(Ordering::Relaxed) == CALLS).await;
    let mut echo = EchoClient::new(hub.channel(AGENT).unwrap());
    for _ in 0..CALLS {
        let error = soon("an end", echo.unary(payload(message))).await.unwrap_err();
        assert_eq!(error.code(), Code::Internal, "an answer without a message: {error:?}");
    }
    until("the agent has been told of every call", || dropped.load(Ordering::Relaxed) == 2 * CALLS).await;
}

/// h2 remembers only so many calls that were given up, and ends a connection for what comes late for the others: calls that
/// have ended of themselves must not take those places.
#[tokio::test]
async fn calls_that_are_over_do_not_count_as_given_up() {
    let connections = Arc::new(AtomicUsize::new(0));
    let seen = connections.clone();
    let (hub, agent, gateway) = {
        let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
        let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).unwrap();
        let hub = Hub::builder(host.clone()).authorizer(allowed).bind("127.0.0.1:0").await.unwrap();
        let agent = Agent::builder(AGENT, key).host_keys(HostKeys::public_key(host.public_key()));
        let agent = agent.connect(hub.local_addr().to_string()).await.unwrap();
        let gateway = bind(Gateway::builder(&hub)).await;
        (hub, agent, gateway)
    };
    let mut incoming = agent.incoming();
    tokio::spawn(async move {
        while let Some(Ok(io)) = tokio_stream::StreamExt::next(&mut incoming).await {
            seen.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(io).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let is_chat = request.uri().path() == CHAT;
                    tokio::spawn(async move {
                        let mut stream = respond.send_response(head(), false).unwrap();
                        // What is given up is answered all the same.
                        while is_chat && stream.send_data(Bytes::from_static(&[0; 1024]), false).is_ok() {
                            tokio::time::sleep(SECOND / 100).await;
                        }
                        let _ = stream.send_trailers(trailers("0"));
                        drop(request);
                    });
                }
            });
        }
    });
    soon("the agent", hub.wait_for(AGENT)).await.unwrap();
    let client = RawClient::connect(gateway.local_addr()).await;
    for _ in 0..60 {
        let calls = (0..100).map(|_| client.call(to_agent(UNARY), &[7; 10]));
        for answer in futures_util::future::join_all(calls).await {
            assert_eq!(code(&answer.unwrap()), Code::Ok);
        }
    }
    for _ in 0..30 {
        let mut begun = Vec::new();
        for _ in 0..50 {
            begun.push(client.begin(to_agent(CHAT)).await);
        }
        for (answer, body) in begun {
            let answer = soon("a head", answer).await.unwrap();
            drop((answer, body));
        }
    }
    tokio::time::sleep(SECOND).await;
    assert_eq!(code(&client.call(to_agent(UNARY), &[7; 10]).await.unwrap()), Code::Ok);
    assert_eq!(connections.load(Ordering::Relaxed), 1, "the agent's connection was ended for its late answers");
}

/// C3: a million small messages to a caller who reads slowly cost the agent's connection nothing: h2 would end it.
#[tokio::test]
async fn small_messages_to_a_slow_caller_harm_nobody() {
    const MESSAGES: usize = 1_000_000;
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    let (_hub, _agent, gateway, client) = start_raw(
        |gateway| gateway,
        move |request, mut respond| {
            counter.fetch_add(1, Ordering::Relaxed);
            async move {
                let mut stream = respond.send_response(head(), false).unwrap();
                if request.uri().path() == CHAT {
                    let message = framed(&[7; 10]);
                    let mut sent = 0;
                    while sent < MESSAGES {
                        stream.reserve_capacity(message.len() * 1000);
                        while stream.capacity() < message.len() {
                            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                                Some(Ok(_)) => {}
                                _ => return,
                            }
                        }
                        // Each in a frame of its own.
                        stream.send_data(message.clone(), false).unwrap();
                        sent += 1;
                    }
                }
                stream.send_trailers(trailers("0")).unwrap();
            }
        },
    )
    .await;
    let (answer, mut body) = client.begin(to_agent(CHAT)).await;
    body.send_data(Bytes::new(), true).unwrap();
    let mut slow = soon("the head", answer).await.unwrap().into_body();
    let other = RawClient::connect(gateway.local_addr()).await;
    let mut got = 0;
    let begun = Instant::now();
    while let Some(data) = soon("data", slow.data()).await {
        let data = data.expect("the call goes on");
        got += data.len();
        slow.flow_control().release_capacity(data.len()).unwrap();
        // Slow at first, and fast once the queue is as long as it gets.
        if begun.elapsed() < 2 * SECOND {
            tokio::time::sleep(SECOND / 20).await;
            let answer = soon("another's answer", other.call(to_agent(UNARY), b"")).await.expect("others go on");
            assert_eq!(code(&answer), Code::Ok);
        }
    }
    assert_eq!(got, MESSAGES * 15, "every byte arrives");
    assert_eq!(slow.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

/// While a way to the agent is sought, nobody reads what the caller sends: h2 would end the caller's whole connection.
#[tokio::test]
async fn small_messages_before_there_is_a_way_to_the_agent_harm_nobody() {
    const MESSAGES: usize = 100_000;
    let rig = Rig::builder().proxy().start().await;
    let gateway = bind(Gateway::builder(&rig.hub)).await;
    let client = RawClient::connect(gateway.local_addr()).await;
    rig.proxy().stall(Way::Both);
    let (answer, mut body) = client.begin(to_agent(CHAT)).await;
    let message = framed(&[]);
    for _ in 0..MESSAGES {
        body.send_data(message.clone(), false).unwrap();
    }
    body.send_data(Bytes::new(), true).unwrap();
    // They have arrived before this does.
    assert_eq!(code(&call_here(&client, None, "/dialback.v1.Hub/ListAgents").await), Code::Ok);
    rig.proxy().resume(Way::Both);
    let answer = answered(answer).await.unwrap();
    assert_eq!((code(&answer), answer.data.len()), (Code::Ok, MESSAGES * message.len()));
}

/// C5.
#[tokio::test]
async fn ten_thousand_cancelled_streams_leave_nothing() {
    let rig = Rig::builder().agent(|agent| agent.max_channels(64)).start().await;
    let gateway = bind(Gateway::builder(&rig.hub)).await;
    let tasks = tokio::runtime::Handle::current().metrics();
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(EchoClient::new(channel(&gateway).await));
    }
    clients[0].unary(payload("")).await.unwrap();
    let before = tasks.num_alive_tasks();
    for round in 1..=10 {
        let mut calls = JoinSet::new();
        for n in 0..1000 {
            let mut client = clients[n % 10].clone();
            calls.spawn(async move {
                let request = steered(payload(""), &[("echo-count", "1"), ("echo-hang", "1")]);
                let mut stream = client.download(request).await.expect("the call starts").into_inner();
                stream.message().await.expect("an answer");
                stream
            });
        }
        let streams = soon("a thousand streams", calls.join_all()).await;
        let begun = Instant::now();
        drop(streams);
        rig.echo.wait_until("the end of the handlers", |counts| counts.cancelled == 1000 * round).await;
        assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
    }
    until("tasks are back to where they were", || tasks.num_alive_tasks() <= before + 20).await;
    assert!(rig.hub.get(AGENT).unwrap().info().calls == 0);
}

#[tokio::test]
async fn ten_thousand_idle_streams_are_carried() {
    const STREAMS: usize = 10_000;
    let rig = Rig::builder().hub(|hub| hub.max_calls(STREAMS + 2)).start().await;
    let gateway = bind(Gateway::builder(&rig.hub).max_calls_per_caller(STREAMS + 1)).await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS / 1000 {
        let client = EchoClient::new(channel(&gateway).await);
        let mut calls = JoinSet::new();
        for _ in 0..1000 {
            let mut client = client.clone();
            calls.spawn(async move {
                let request = steered(payload(""), &[("echo-count", "1"), ("echo-hang", "1")]);
                let mut stream = client.download(request).await.expect("the call starts").into_inner();
                stream.message().await.expect("an answer");
                (client, stream)
            });
        }
        streams.extend(soon("a thousand streams", calls.join_all()).await);
    }
    assert_eq!(rig.echo.counts().running(), STREAMS);
    let mut client = EchoClient::new(channel(&gateway).await);
    soon("one more", client.unary(payload(""))).await.expect("there is room for one more");
    let held = client.download(steered(payload(""), &[("echo-hang", "1")])).await.expect("the last");
    let full = client.unary(payload("")).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(full.message().contains("10001 calls are in flight for this caller"), "{full}");
    drop((streams, held));
    rig.echo.wait_until("the end of them all", |counts| counts.running() == 0).await;
}

/// What a caller of [`callers_are_told_apart_and_held_to_the_policy`] shows.
fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn hash(token: &str) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// I6.
#[tokio::test]
async fn callers_are_told_apart_and_held_to_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let callers = format!(
        "[[caller]]\nname = \"billing\"\ntoken-sha256 = [\"{}\"]\n[[caller]]\nname = \"ops\"\ntoken-sha256 = [\"{}\"]\n",
        hash("b-token"),
        hash("o-token")
    );
    let rules = r#"
[[allow]]
callers = ["billing"]
agents = ["laptop-*"]
methods = ["/dialback.echo.v1.Echo/Unary"]
[[allow]]
callers = ["ops"]
labels = { site = "berlin" }
methods = ["*"]
"#;
    fs::write(&file, callers.clone() + rules).unwrap();
    let rig = Rig::builder().agent(|agent| agent.label("site", "berlin")).start().await;
    // The label counts only where the hub accepts it.
    let gateway = bind(Gateway::builder(&rig.hub).policy(PolicyFile::open(&file).unwrap())).await;
    let client = RawClient::connect(gateway.local_addr()).await;
    let call = async |token: Option<&str>, agent: &str, path: &str| {
        let mut request = with(path, &[("dialback-agent", agent), ("x-seen", "1")]);
        if let Some(token) = token {
            request.headers_mut().insert("authorization", bearer(token).parse().unwrap());
        }
        client.call(request, b"").await.unwrap()
    };
    let cases = [
        (None, AGENT, UNARY, Code::Unauthenticated),
        (Some("wrong"), AGENT, UNARY, Code::Unauthenticated),
        (Some("b-token"), AGENT, UNARY, Code::Ok),
        (Some("b-token"), AGENT, CHAT, Code::PermissionDenied),
        (Some("b-token"), "laptop-9", UNARY, Code::NotFound),
        (Some("b-token"), "server-1", UNARY, Code::PermissionDenied),
        (Some("o-token"), AGENT, UNARY, Code::PermissionDenied),
        (Some("o-token"), "laptop-9", UNARY, Code::PermissionDenied),
    ];
    for (token, agent, path, expected) in cases {
        let answer = call(token, agent, path).await;
        assert_eq!(code(&answer), expected, "{token:?} {agent} {path}: {answer:?}");
    }
    // One that exists and one that does not look the same to who may call neither.
    let (there, nowhere) = (call(Some("o-token"), AGENT, UNARY).await, call(Some("o-token"), "laptop-9", UNARY).await);
    assert_eq!(there.grpc().1.replace(AGENT, "X"), nowhere.grpc().1.replace("laptop-9", "X"));

    for authority in [AGENT, "laptop-9"] {
        let mut request = Request::post(format!("http://{authority}{UNARY}")).body(()).unwrap();
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        request.headers_mut().insert("authorization", bearer("o-token").parse().unwrap());
        assert_eq!(code(&client.call(request, b"").await.unwrap()), Code::PermissionDenied, "{authority}");
    }

    // The hub's own services are held to it as well.
    let list = |answer: &Answer| answer.data.len();
    let answer = call_here(&client, Some("b-token"), "/dialback.v1.Hub/ListAgents").await;
    assert_eq!((code(&answer), list(&answer)), (Code::Ok, 5), "it may see none: {answer:?}");
    assert_eq!(code(&call_here(&client, None, "/dialback.v1.Hub/ListAgents").await), Code::Unauthenticated);

    // A new version holds from then on; one with a fault does not.
    fs::write(&file, callers.clone() + &rules.replace("Echo/Unary", "Echo/*").replace("berlin", "*")).unwrap();
    soon("the new policy", async {
        while code(&call(Some("b-token"), AGENT, DOWNLOAD).await) != Code::Ok {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    fs::write(&file, "[[caller]]\nname = \"x\"\n").unwrap();
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(code(&call(Some("b-token"), AGENT, UNARY).await), Code::Ok, "the one before stays in force");
    fs::write(&file, callers).unwrap();
    soon("the empty policy", async {
        while code(&call(Some("b-token"), AGENT, UNARY).await) != Code::PermissionDenied {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// The tunnels of one id may have labels of their own: a caller who may reach one of them always reaches that one.
#[tokio::test]
async fn caller_reaches_those_of_a_pool_that_its_policy_allows() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let text = format!(
        "[[caller]]\nname = \"ops\"\ntoken-sha256 = [\"{}\"]\n[[allow]]\ncallers = [\"ops\"]\nlabels = {{ v = \"1\" }}\nmethods = [\"*\"]\n",
        hash("o-token")
    );
    fs::write(&file, text).unwrap();
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let allowed = AllowedKeys::new().allow(AGENT, key.public_key()).unwrap().accept_labels(["v"]);
    let hub = Hub::builder(host.clone()).authorizer(allowed).bind("127.0.0.1:0").await.unwrap();
    let mut agents = Vec::new();
    for version in ["1", "2"] {
        let agent = Agent::builder(AGENT, key.clone()).host_keys(HostKeys::public_key(host.public_key()));
        let agent = agent.label("v", version).connect(hub.local_addr().to_string()).await.unwrap();
        let echo = Echo::default();
        serve(&echo, agent.incoming());
        agents.push((agent, echo));
    }
    until("both can be called", || hub.tunnels().len() == 2).await;
    let gateway = bind(Gateway::builder(&hub).policy(PolicyFile::open(&file).unwrap())).await;
    let client = RawClient::connect(gateway.local_addr()).await;
    for _ in 0..40 {
        let mut request = to_agent(UNARY);
        request.headers_mut().insert("authorization", bearer("o-token").parse().unwrap());
        assert_eq!(code(&client.call(request, b"").await.unwrap()), Code::Ok);
    }
    assert_eq!([0, 1].map(|n: usize| agents[n].1.counts().started), [40, 0]);
    // Its health is that of those that the caller may call, not of any.
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel_to(&gateway, "hub.example.com").await);
    for _ in 0..20 {
        let mut check = tonic::Request::new(tonic_health::pb::HealthCheckRequest { service: AGENT.into() });
        check.metadata_mut().insert("authorization", bearer("o-token").parse().unwrap());
        assert_eq!(health.check(check).await.unwrap().into_inner().status, 1);
    }
    // While the one that it may call is away, no other takes its place.
    let (first, _) = agents.remove(0);
    soon("the first one's goodbye", first.shutdown(SECOND)).await;
    for _ in 0..20 {
        let mut request = to_agent(UNARY);
        request.headers_mut().insert("authorization", bearer("o-token").parse().unwrap());
        let answer = client.call(request, b"").await.unwrap();
        assert!(matches!(code(&answer), Code::Unavailable | Code::PermissionDenied), "{answer:?}");
    }
    assert_eq!(agents[0].1.counts().started, 0);
    let first = Agent::builder(AGENT, key.clone()).host_keys(HostKeys::public_key(host.public_key()));
    let first = first.label("v", "1").connect(hub.local_addr().to_string()).await.unwrap();
    agents.push((first, Echo::default()));
    until("both can be called", || hub.tunnels().len() == 2).await;
    // The labels of the last one to leave say who may know that it is away.
    agents.reverse();
    while let Some((agent, _)) = agents.pop() {
        drop(agent);
        until("it is away", || hub.tunnels().len() == agents.len()).await;
    }
    let mut request = to_agent(UNARY);
    request.headers_mut().insert("authorization", bearer("o-token").parse().unwrap());
    let answer = client.call(request, b"").await.unwrap();
    assert_eq!(code(&answer), Code::Unavailable, "{answer:?}");
}

/// A connection that nobody known uses is ended, however often it tries.
#[tokio::test]
async fn strangers_do_not_keep_their_connections() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    fs::write(&file, format!("[[caller]]\nname = \"ops\"\ntoken-sha256 = [\"{}\"]\n", hash("o-token"))).unwrap();
    let rig = Rig::start().await;
    let gateway = bind(Gateway::builder(&rig.hub).policy(PolicyFile::open(&file).unwrap())).await;
    let list = "/dialback.v1.Hub/ListAgents";
    let known = RawClient::connect(gateway.local_addr()).await;
    assert_eq!(code(&call_here(&known, Some("o-token"), list).await), Code::Ok);
    let (silent, busy) =
        (RawClient::connect(gateway.local_addr()).await, RawClient::connect(gateway.local_addr()).await);
    let begun = Instant::now();
    while begun.elapsed() < 28 * SECOND {
        assert_eq!(code(&call_here(&busy, Some("guess"), list).await), Code::Unauthenticated);
        tokio::time::sleep(SECOND).await;
    }
    for stranger in [silent, busy] {
        let _ = soon("the end", stranger.connection).await.expect("no panic"); // with an error or without
    }
    assert!(begun.elapsed() < 35 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(code(&call_here(&known, Some("o-token"), list).await), Code::Ok);
}

/// A call to the gateway's own services.
async fn call_here(client: &RawClient, token: Option<&str>, path: &str) -> Answer {
    let mut request = Request::post(format!("http://127.0.0.1{path}")).body(()).unwrap();
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    if let Some(token) = token {
        request.headers_mut().insert("authorization", bearer(token).parse().unwrap());
    }
    client.call(request, b"").await.unwrap()
}

/// The agent learns who calls, and not by what.
#[tokio::test]
async fn agent_is_told_the_callers_name_and_not_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let text = format!(
        "[[caller]]\nname = \"ops\"\ntoken-sha256 = [\"{}\"]\n[[allow]]\ncallers = [\"*\"]\nagents = [\"*\"]\nmethods = [\"*\"]\n",
        hash("o-token")
    );
    fs::write(&file, text).unwrap();
    let policy = PolicyFile::open(&file).unwrap();
    let (seen, mut requests) = mpsc::unbounded_channel();
    let (_hub, _agent, _gateway, client) = start_raw(
        |gateway| gateway.policy(policy),
        move |request, mut respond| {
            seen.send(request.headers().clone()).unwrap();
            async move {
                respond.send_response(head(), false).unwrap().send_trailers(trailers("0")).unwrap();
            }
        },
    )
    .await;
    for (name, theirs) in [("authorization", None), ("dialback-authorization", Some("Bearer theirs"))] {
        let mut request = with(UNARY, &[("dialback-agent", AGENT), ("dialback-caller", "root")]);
        request.headers_mut().insert(name, bearer("o-token").parse().unwrap());
        if let Some(theirs) = theirs {
            request.headers_mut().insert("authorization", theirs.parse().unwrap());
        }
        assert_eq!(code(&client.call(request, b"").await.unwrap()), Code::Ok);
        let headers = requests.recv().await.unwrap();
        assert_eq!(headers.get_all("dialback-caller").iter().collect::<Vec<_>>(), ["ops"]);
        assert_eq!(headers.get("authorization").map(|value| value.to_str().unwrap()), theirs);
        assert!(headers.keys().all(|name| !name.as_str().starts_with("dialback-") || name == "dialback-caller"));
    }
}

#[tokio::test]
async fn drained_gateway_lets_calls_finish_and_takes_no_more() {
    let rig = Rig::start().await;
    let gateway = bind(Gateway::builder(&rig.hub)).await;
    let mut client = EchoClient::new(channel(&gateway).await);
    let (say, words) = mpsc::channel(1);
    let mut chat = client.chat(ReceiverStream::new(words)).await.unwrap().into_inner();
    let address = gateway.local_addr();
    let shutdown = tokio::spawn(async move { gateway.shutdown(60 * SECOND).await });
    soon("the listener's end", async { while TcpStream::connect(address).await.is_ok() {} }).await;
    say.send(payload("last")).await.unwrap();
    assert_eq!(soon("the answer", chat.message()).await.unwrap(), Some(payload("last")));
    assert!(!shutdown.is_finished());
    drop(say);
    assert_eq!(soon("the end", chat.message()).await.unwrap(), None);
    soon("the shutdown", shutdown).await.unwrap();
}

#[tokio::test]
async fn second_shutdown_of_a_gateway_cuts_off_its_calls() {
    let rig = Rig::start().await;
    let gateway = Arc::new(bind(Gateway::builder(&rig.hub)).await);
    let mut client = EchoClient::new(channel(&gateway).await);
    let call = tokio::spawn(async move { client.unary(steered(payload(""), &[("echo-hang", "1")])).await });
    rig.echo.wait_until("the call", |counts| counts.running() == 1).await;
    let patient = gateway.clone();
    let first = tokio::spawn(async move { patient.shutdown(3600 * SECOND).await });
    let address = gateway.local_addr();
    soon("the listener's end", async { while TcpStream::connect(address).await.is_ok() {} }).await;

    soon("the second", gateway.shutdown(3600 * SECOND)).await;

    soon("the first", first).await.unwrap();
    soon("the call's end", call).await.unwrap().unwrap_err();
    rig.echo.wait_until("the end of the handler", |counts| counts.cancelled == 1).await;
}

/// Health and the hub's own API, through a client that the crate offers.
#[tokio::test]
async fn hub_tells_who_is_there_and_follows_them() {
    use dialback::gateway::proto::{
        DisconnectAgentRequest, GetAgentRequest, ListAgentsRequest, WatchAgentsRequest, hub_client::HubClient,
        watch_agents_response::Event,
    };
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    let rig = Rig::builder().eager().start().await;
    let gateway = bind(Gateway::builder(&rig.hub)).await;
    let plain = channel_to(&gateway, "hub.example.com").await;
    let mut hub = HubClient::new(plain.clone());
    let agents = hub.list_agents(ListAgentsRequest::default()).await.unwrap().into_inner().agents;
    assert_eq!((agents.len(), &*agents[0].id, agents[0].tunnels.len()), (1, AGENT, 1));
    assert!(agents[0].tunnels[0].ready && agents[0].tunnels[0].peer_address.starts_with("127.0.0.1:"));
    let mut watch = hub.watch_agents(WatchAgentsRequest {}).await.unwrap().into_inner();
    let mut health = HealthClient::new(plain);
    let check = |service: &str| HealthCheckRequest { service: service.into() };
    assert_eq!(health.check(check("")).await.unwrap().into_inner().status, 1);
    assert_eq!(health.check(check(AGENT)).await.unwrap().into_inner().status, 1);
    assert_eq!(health.check(check("laptop-9")).await.unwrap_err().code(), Code::NotFound);
    let mut status = health.watch(check(AGENT)).await.unwrap().into_inner();
    assert_eq!(soon("the status", status.message()).await.unwrap().unwrap().status, 1);
    // A mistyped agent must not look healthy.
    let mut mistyped = HealthClient::new(channel_to(&gateway, "laptop-9").await);
    assert_eq!(mistyped.check(check("")).await.unwrap_err().code(), Code::NotFound);

    let gone = hub.disconnect_agent(DisconnectAgentRequest { id: AGENT.into() }).await.unwrap().into_inner();
    assert_eq!(gone.tunnels, 1);
    assert_eq!(soon("the status", status.message()).await.unwrap().unwrap().status, 2);
    assert_eq!(soon("the status", status.message()).await.unwrap().unwrap().status, 1);
    let mut told = Vec::new();
    while !matches!(&told[..], [.., Event::Gone(_), Event::Changed(_), Event::Changed(agent)] if agent.tunnels[0].ready)
    {
        let event = soon("a change", watch.message()).await.unwrap().unwrap().event.unwrap();
        assert_eq!(told.is_empty(), matches!(event, Event::Snapshot(_)), "a snapshot, then changes");
        told.push(event);
    }
    let again = hub.get_agent(GetAgentRequest { id: AGENT.into() }).await.unwrap().into_inner();
    assert_ne!(again.tunnels[0].id, agents[0].tunnels[0].id);

    soon("a shutdown that waits for no watcher", gateway.shutdown(60 * SECOND)).await;
    assert_eq!(soon("the end", watch.message()).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(soon("the end", status.message()).await.unwrap_err().code(), Code::Unavailable);
}

/// A watcher that hears of an agent's goodbye only when the agent is gone.
#[tokio::test]
async fn watcher_that_is_behind_hears_why_each_agent_went() {
    use dialback::gateway::proto::{WatchAgentsRequest, hub_client::HubClient, watch_agents_response::Event};

    const AGENTS: usize = 100;
    let (host, key) = (PrivateKey::generate(), PrivateKey::generate());
    let ids: Vec<_> = (0..AGENTS).map(|n| format!("laptop-{n}")).collect();
    let allowed = ids.iter().fold(AllowedKeys::new(), |allowed, id| allowed.allow(id, key.public_key()).unwrap());
    let hub = Hub::builder(host.clone()).authorizer(allowed).bind("127.0.0.1:0").await.unwrap();
    let mut agents = Vec::new();
    for id in &ids {
        let agent = Agent::builder(id, key.clone()).host_keys(HostKeys::public_key(host.public_key()));
        let agent = agent.connect(hub.local_addr().to_string()).await.unwrap();
        drop(agent.incoming());
        agents.push(agent);
    }
    let gateway = bind(Gateway::builder(&hub)).await;
    let mut client = HubClient::new(channel_to(&gateway, "hub.example.com").await);
    let mut watch = client.watch_agents(WatchAgentsRequest {}).await.unwrap().into_inner();
    let Some(Event::Snapshot(all)) = soon("all", watch.message()).await.unwrap().unwrap().event else { panic!("none") };
    assert_eq!(all.agents.len(), AGENTS);

    let mut goodbyes = JoinSet::new();
    for agent in agents {
        goodbyes.spawn(async move { agent.shutdown(SECOND).await });
    }
    soon("the goodbyes", goodbyes.join_all()).await;
    let mut gone = 0;
    while gone < AGENTS {
        if let Some(Event::Gone(agent)) = soon("a change", watch.message()).await.unwrap().unwrap().event {
            assert!(!agent.reason.is_empty() && agent.at.is_some(), "{agent:?}");
            gone += 1;
        }
    }
}

#[tokio::test]
async fn list_tells_what_a_tunnel_runs_over_and_its_round_trip_when_asked() {
    use dialback::gateway::proto::{ListAgentsRequest, hub_client::HubClient};

    const DELAY: Duration = Duration::from_millis(50);
    let rig = Rig::builder().proxy().start().await;
    let gateway = bind(Gateway::builder(&rig.hub)).await;
    let mut hub = HubClient::new(channel_to(&gateway, "hub.example.com").await);
    let mut tunnel = async |round_trips| {
        let answer = hub.list_agents(ListAgentsRequest { round_trips }).await.unwrap().into_inner();
        answer.agents[0].tunnels[0].clone()
    };
    rig.proxy().set(Way::Both, |link| link.delay = DELAY);
    let asked = tunnel(true).await;
    assert_eq!(asked.carrier, "TCP");
    assert!(Duration::try_from(asked.round_trip.unwrap()).unwrap() >= 2 * DELAY);
    assert_eq!(tunnel(false).await.round_trip, None);

    rig.proxy().stall(Way::Both);
    assert_eq!(soon("an answer without a figure", tunnel(true)).await.round_trip, None);
}

#[tokio::test]
async fn end_of_grace_and_drop_cut_calls_off() {
    let rig = Rig::start().await;
    for polite in [true, false] {
        let gateway = bind(Gateway::builder(&rig.hub)).await;
        let mut client = EchoClient::new(channel(&gateway).await);
        let mut stream = client
            .download(steered(payload(""), &[("echo-count", "1"), ("echo-hang", "1")]))
            .await
            .unwrap()
            .into_inner();
        soon("a message", stream.message()).await.unwrap();
        let cancelled = rig.echo.counts().cancelled;
        if polite {
            soon("the end of the grace", gateway.shutdown(SECOND / 10)).await;
        } else {
            drop(gateway);
        }
        assert!(soon("the end", stream.message()).await.is_err());
        rig.echo.wait_until("the end of the handler", |counts| counts.cancelled == cancelled + 1).await;
    }
}

#[tokio::test]
async fn gateway_outlives_its_hub_and_says_so() {
    let (rig, _gateway, client) = start().await;
    rig.hub.shutdown(SECOND).await;
    let answer = client.call(to_agent(UNARY), b"").await.unwrap();
    assert_eq!(code(&answer), Code::Unavailable, "{answer:?}");
}

/// Calls that are in flight when their agent's tunnel is cut end UNAVAILABLE, whatever phase they are in.
#[tokio::test]
async fn lost_tunnel_is_told_in_every_phase() {
    let (rig, gateway, client) = start().await;
    let hang = with(UNARY, &[("dialback-agent", AGENT), ("echo-hang", "1")]);
    let (before_head, mut body) = client.begin(hang).await;
    body.send_data(framed(b""), true).unwrap();
    let mut typed = EchoClient::new(channel(&gateway).await);
    let mut stream =
        typed.download(steered(payload(""), &[("echo-count", "1"), ("echo-hang", "1")])).await.unwrap().into_inner();
    soon("a message", stream.message()).await.unwrap();
    rig.echo.wait_until("both calls", |counts| counts.running() == 2).await;

    rig.hub.get(AGENT).unwrap().close();

    let answer = answered(before_head).await.unwrap();
    assert_eq!(code(&answer), Code::Unavailable, "{answer:?}");
    assert!(answer.grpc().1.contains(AGENT), "{answer:?}");
    let status = soon("the status", stream.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains(AGENT), "{status}");
}

/// Rejects what a connection may not do, and counts only that connection's sins.
async fn flooded(address: SocketAddr, frames: impl Fn(&mut Vec<u8>)) -> Duration {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    frames(&mut bytes);
    let begun = Instant::now();
    let ended = async {
        let (mut read, mut write) = stream.split();
        let writing = async { write.write_all(&bytes).await };
        let reading = async { tokio::io::copy(&mut read, &mut tokio::io::sink()).await };
        tokio::pin!(writing, reading);
        tokio::select! {
            _ = &mut reading => {}
            _ = &mut writing => {
                let _ = timeout(2 * SECOND, reading).await; // what is left of it, if anything
            }
        }
    };
    soon("the end of the flood", ended).await;
    begun.elapsed()
}

/// A frame: its length, type, flags and stream (RFC 9113 §4.1).
fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// `:method: POST`, `:scheme: http`, `:path: /`, from HPACK's static table.
const HEADERS: [u8; 3] = [0x83, 0x86, 0x84];

/// G4, from the caller's side: others' calls go on through each flood.
#[tokio::test]
async fn floods_of_frames_harm_nobody_else() {
    let (_rig, gateway, client) = start().await;
    let address = gateway.local_addr();
    type Flood = fn(&mut Vec<u8>);
    let floods: [(&str, Flood); 8] = [
        ("rapid reset", |bytes| {
            for n in 0..100_000 {
                frame(bytes, 1, 4 | 1, 2 * n + 1, &HEADERS);
                frame(bytes, 3, 0, 2 * n + 1, &8u32.to_be_bytes());
            }
        }),
        ("continuation", |bytes| {
            frame(bytes, 1, 0, 1, &HEADERS);
            (0..100_000).for_each(|_| frame(bytes, 9, 0, 1, &[0x40, 1, b'a', 1, b'b']));
        }),
        ("settings", |bytes| (0..100_000).for_each(|_| frame(bytes, 4, 0, 0, &[]))),
        ("ping", |bytes| (0..100_000).for_each(|n: u64| frame(bytes, 6, 0, 0, &n.to_be_bytes()))),
        ("empty data", |bytes| {
            frame(bytes, 1, 4, 1, &HEADERS);
            (0..100_000).for_each(|_| frame(bytes, 0, 0, 1, &[]));
        }),
        ("tiny data", |bytes| {
            frame(bytes, 1, 4, 1, &HEADERS);
            (0..60_000).for_each(|_| frame(bytes, 0, 0, 1, &[0]));
        }),
        ("hpack bomb", |bytes| {
            // One large entry in the dynamic table, and thousands of mentions of it.
            let mut block = HEADERS.to_vec();
            block.extend_from_slice(&[0x40, 1, b'a', 0x7f, 0x81, 0x1e]);
            block.extend_from_slice(&[b'x'; 4000]);
            block.extend_from_slice(&[0xbe; 10_000]);
            frame(bytes, 1, 4, 1, &block);
            (1..50).for_each(|n| frame(bytes, 1, 5, 2 * n + 1, &[[0xbe; 10_000].as_slice(), &HEADERS].concat()));
        }),
        ("streams beyond the limit", |bytes| (0..20_000).for_each(|n| frame(bytes, 1, 4, 2 * n + 1, &HEADERS))),
    ];
    for (name, flood) in floods {
        let flooding = tokio::spawn(flooded(address, flood));
        let (mut calls, mut slowest) = (0, Duration::ZERO);
        while !flooding.is_finished() {
            let begun = Instant::now();
            let answer = soon("another's answer", client.call(to_agent(UNARY), b"")).await.expect("others go on");
            assert_eq!(code(&answer), Code::Ok);
            slowest = slowest.max(begun.elapsed());
            calls += 1;
        }
        eprintln!(
            "G4 {name}: over after {:?}; meanwhile {calls} calls, the slowest {slowest:?}",
            flooding.await.unwrap()
        );
        assert!(slowest < 5 * SECOND, "{name}: {slowest:?}");
    }
}

/// G4, from the agent's side: what it sends in answers ends its own calls at most.
#[tokio::test]
async fn floods_from_an_agent_end_its_own_connection_at_most() {
    let (_hub, _agent, gateway, client) = start_raw(
        |gateway| gateway,
        |request, mut respond| async move {
            let kind = request.headers().get("x-kind").cloned();
            let mut stream = respond.send_response(head(), false).unwrap();
            match kind.as_ref().and_then(|kind| kind.to_str().ok()) {
                Some("empty") => (0..100_000).for_each(|_| drop(stream.send_data(Bytes::new(), false))),
                Some("trailers") => {
                    let mut many = trailers("0");
                    for n in 0..5000 {
                        many.append("x-many", format!("{n:050}").parse().unwrap());
                    }
                    return drop(stream.send_trailers(many));
                }
                Some("reset") => return stream.send_reset(Reason::ENHANCE_YOUR_CALM),
                _ => {}
            }
            let _ = stream.send_trailers(trailers("0"));
        },
    )
    .await;
    for kind in ["empty", "trailers", "reset"] {
        let request = with(CHAT, &[("dialback-agent", AGENT), ("x-kind", kind)]);
        let answer = client.call(request, b"").await;
        eprintln!("G4 {kind}: {:?}", answer.as_ref().map(Answer::grpc));
        // The caller's connection lives, and the agent can be called again at once.
        let other = RawClient::connect(gateway.local_addr()).await;
        for client in [&client, &other] {
            soon("an answer", async {
                while client.call(to_agent(UNARY), b"").await.map(|answer| code(&answer)).ok() != Some(Code::Ok) {}
            })
            .await;
        }
    }
}
