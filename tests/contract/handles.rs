//! What the handles of a tunnel promise, whichever way is called.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dialback::{AgentStatus, CloseReason, DialError, Incoming, TunnelChannel, TunnelConnectInfo, tune_endpoint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::StreamExt;
use tonic::transport::{Endpoint, Server};
use tonic::{Code, Request, Status};

use crate::common::echo::pb::echo_client::EchoClient;
use crate::common::echo::pb::echo_server::EchoServer;
use crate::common::echo::{Echo, payload, steered};
use crate::common::faults::{agent_tunnel, raw_channel};
use crate::common::proxy::{Cut, Way};
use crate::common::rig::{AGENT, Rig, soon};

/// What a handler that serves `incoming` learns about a call that `caller` makes.
async fn seen_by_a_handler(incoming: Incoming, caller: TunnelChannel) -> TunnelConnectInfo {
    let seen = Arc::new(Mutex::new(None));
    let found = seen.clone();
    let look = move |request: Request<()>| {
        *found.lock().expect("no panic") = request.extensions().get::<TunnelConnectInfo>().cloned();
        Err::<Request<()>, _>(Status::aborted("seen"))
    };
    let server = Server::builder().add_service(EchoServer::with_interceptor(Echo::default(), look));
    // The newest stream of channels takes over.
    let serving = tokio::spawn(server.serve_with_incoming_shutdown(incoming, std::future::pending()));

    let status = soon("the answer", EchoClient::new(caller).unary(payload(""))).await.expect_err("aborted");

    serving.abort();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    seen.lock().expect("no panic").take().expect("a tunnel's caller")
}

#[tokio::test]
async fn handlers_of_the_hub_see_which_agent_calls() {
    let rig = Rig::start().await;
    let info = seen_by_a_handler(rig.hub.incoming(), rig.agent.channel()).await;
    let tunnel = rig.hub.get(AGENT).expect("the agent is there");
    assert_eq!((info.agent_id.as_str(), info.tunnel_id), (AGENT, tunnel.id()));
    assert_eq!((info.peer_addr, info.local_addr), (tunnel.peer_addr(), Some(rig.hub.local_addr())));
}

#[tokio::test]
async fn handlers_of_the_agent_see_their_tunnel() {
    let rig = Rig::start().await;
    let info = seen_by_a_handler(rig.agent.incoming(), rig.hub.channel(AGENT).expect("an id")).await;
    let tunnel = rig.hub.get(AGENT).expect("the agent is there");
    assert_eq!(info.agent_id.as_str(), AGENT);
    // The two ends count their tunnels apart, and see the same connection from two sides.
    assert_eq!(Some(info.tunnel_id), agent_tunnel(&rig));
    assert_eq!((info.peer_addr, info.local_addr), (Some(rig.hub.local_addr()), tunnel.peer_addr()));
}

#[tokio::test]
async fn incoming_ends_with_its_agent_or_hub_and_stays_empty() {
    let rig = Rig::start().await;
    let (mut of_agent, mut of_hub) = (rig.agent.incoming(), rig.hub.incoming());

    soon("the agent's end", rig.agent.shutdown(Duration::ZERO)).await;
    soon("the hub's end", rig.hub.shutdown(Duration::ZERO)).await;

    assert!(soon("the end of the agent's channels", of_agent.next()).await.is_none());
    assert!(soon("the end of the hub's channels", of_hub.next()).await.is_none());
    assert!(soon("nothing more", rig.agent.incoming().next()).await.is_none());
    assert!(soon("nothing more", rig.hub.incoming().next()).await.is_none());
}

/// The connection for a side's own calls is everybody's, whoever made it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_do_not_depend_on_the_runtime_that_made_the_first() {
    let rig = Rig::start().await;
    let mut first = rig.client();
    let (called, has_called) = tokio::sync::oneshot::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(first.unary(payload("x"))).expect("the first call");
        called.send(()).expect("the test waits");
        // The runtime lives on, and nobody turns it.
        let _ = ended.recv();
    });
    soon("the first call", has_called).await.expect("it succeeds");

    soon("a call from elsewhere", rig.client().unary(payload("y"))).await.expect("it succeeds");

    drop(end);
    thread.join().expect("no panic");
    soon("a call after its end", rig.client().unary(payload("z"))).await.expect("it succeeds");
}

/// Nor do they panic when the runtime that everything ran on is gone.
#[test]
fn calls_after_the_end_of_the_tunnels_runtime_are_unavailable() {
    let first = tokio::runtime::Runtime::new().expect("a runtime");
    let rig = first.block_on(Rig::start());
    let (connector, mut client) = (rig.agent.connector(), EchoClient::new(rig.agent.channel()));
    first.block_on(client.unary(payload("x"))).expect("an answer");
    first.shutdown_timeout(Duration::from_secs(5));

    let second = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    second.block_on(async {
        for _ in 0..20 {
            let error = soon("the error", connector.dial()).await.expect_err("no tunnel");
            assert!(matches!(error, DialError::Disconnected { .. }), "{error}");
            let status = soon("the status", client.unary(payload("y"))).await.expect_err("no tunnel");
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        }
    });
}

/// The peer watches the deadline as well, and a tonic server calls its end "cancelled".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadline_is_one_whichever_end_saw_it_first() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    soon("a call", client.unary(payload("x"))).await.expect("the connection stands");
    let mut request = steered(payload(""), &[("echo-hang", "1")]);
    request.set_timeout(Duration::from_millis(100));
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut call = std::pin::pin!(client.unary(request));
            assert!(futures_poll(call.as_mut()).await.is_none(), "an answer at once");
            // This caller is held up for so long that it finds both: the peer's answer and its own alarm.
            std::thread::sleep(Duration::from_millis(500));
            call.await
        })
    });
    rig.echo.wait_until("the end of the handler", |counts| counts.cancelled == 1).await;

    let status = thread.join().expect("no panic").expect_err("a status");

    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

/// What has arrived and waits for a slow reader does not hold its deadline off.
#[tokio::test]
async fn deadline_holds_for_a_reader_that_is_always_behind() {
    let rig = Rig::start().await;
    let mut client = rig.client();
    let mut request = steered(payload(""), &[("echo-count", "1000000"), ("echo-size", "100")]);
    request.set_timeout(Duration::from_millis(300));
    let mut stream = soon("a stream", client.download(request)).await.expect("a stream").into_inner();

    let status = soon("the end", async {
        loop {
            match stream.message().await {
                Ok(message) => assert!(message.is_some(), "the stream ended"),
                Err(status) => return status,
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;

    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    rig.echo.wait_until("the end of the handler", |counts| counts.cancelled == 1).await;
}

#[tokio::test]
async fn callers_wait_side_by_side_for_a_peer_that_does_not_answer() {
    let rig = Rig::builder().proxy().hub(|hub| hub.open_timeout(Duration::from_secs(1))).start().await;
    rig.proxy().stall(Way::Up);
    let calls = (0..6).map(|_| {
        let mut client = rig.client();
        tokio::spawn(async move { client.unary(payload("x")).await })
    });
    let calls: Vec<_> = calls.collect();

    let begun = std::time::Instant::now();
    for call in calls {
        let status = soon("the end", call).await.expect("no panic").expect_err("nobody answers");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "they waited one after the other: {:?}", begun.elapsed());
}

/// However small writes wait for one another: what follows them sends them.
#[tokio::test]
async fn what_was_written_arrives_whether_flushed_read_from_shut_down_or_dropped() {
    let rig = Rig::start().await;
    let mut incoming = rig.agent.incoming();
    let (mut near, mut far) = raw_channel(&rig, &mut incoming).await;
    let mut got = [0; 5];

    near.write_all(b"first").await.expect("written");
    soon("a flush", near.flush()).await.expect("flushed");
    soon("the first", far.read_exact(&mut got)).await.expect("read");
    assert_eq!(&got, b"first");

    near.write_all(b"again").await.expect("written");
    let answered = async {
        far.read_exact(&mut got).await.expect("read");
        far.write_all(b"so be").await.expect("written");
        far.flush().await.expect("flushed");
    };
    let mut answer = [0; 5];
    let (_, read) =
        soon("an answer to what nobody flushed", async { tokio::join!(answered, near.read_exact(&mut answer)) }).await;
    read.expect("read");
    assert_eq!((&got, &answer), (b"again", b"so be"));

    // A large message's pieces, and a last one that fills no packet.
    let large = vec![7; 150_000];
    let mut rest = Vec::new();
    let (written, read) = soon("a large message", async {
        tokio::join!(
            async {
                near.write_all(b"large").await?;
                near.write_all(&large).await?;
                near.shutdown().await
            },
            far.read_to_end(&mut rest)
        )
    })
    .await;
    written.expect("written");
    assert_eq!(read.expect("read"), 5 + large.len());
    assert!(rest.starts_with(b"large") && rest[5..] == large[..]);

    let (mut near, mut far) = raw_channel(&rig, &mut incoming).await;
    near.write_all(b"farewell").await.expect("written");
    drop(near);
    let mut rest = Vec::new();
    soon("the last words", far.read_to_end(&mut rest)).await.expect("read");
    assert_eq!(rest, b"farewell");
}

#[tokio::test]
async fn endpoint_says_in_its_source_why_a_dial_failed() {
    let rig = Rig::start().await;
    let tunnel = rig.hub.wait_for(AGENT).await.expect("the agent is there");
    soon("the agent's end", rig.agent.shutdown(Duration::ZERO)).await;
    soon("the tunnel's end", tunnel.closed()).await;

    let endpoint = tune_endpoint(Endpoint::from_static("http://laptop"));
    let failed = soon("the dial", endpoint.connect_with_connector(tunnel.connector())).await;

    let failed: Box<dyn std::error::Error> = failed.expect_err("the tunnel is gone").into();
    let sources = std::iter::successors(Some(&*failed), |&error| error.source());
    let why = sources.filter_map(|error| error.downcast_ref::<DialError>()).next();
    assert!(matches!(why, Some(DialError::Disconnected { agent, .. }) if agent.as_str() == AGENT), "{failed:?}");
}

#[tokio::test]
async fn status_and_disconnected_tell_what_happened() {
    let rig = Rig::builder()
        .proxy()
        .agent(|agent| agent.backoff(Duration::ZERO, Duration::ZERO, Duration::ZERO))
        .start()
        .await;
    let tunnel = rig.hub.wait_for(AGENT).await.expect("the agent is there");
    let mut status = rig.agent.status();
    assert!(status.borrow_and_update().is_connected());
    assert_eq!(*tunnel.disconnected().borrow(), None);

    rig.proxy().refuse().await;
    rig.proxy().cut(Cut::Reset);

    let trying = |status: &AgentStatus| matches!(status, AgentStatus::Connecting { last_error: Some(_), .. });
    soon("an attempt", status.wait_for(trying)).await.expect("the agent lives");
    let gone = soon("the word", tunnel.closed()).await;
    assert!(matches!(gone.reason, CloseReason::ConnectionLost { .. } | CloseReason::ClosedByPeer { .. }), "{gone:?}");

    rig.proxy().accept().await;
    soon("the return", status.wait_for(AgentStatus::is_connected)).await.expect("the agent lives");
    let again = soon("the agent", rig.hub.wait_for(AGENT)).await.expect("the hub lives");
    assert_ne!(again.id(), tunnel.id());
    // The server that was started once still serves.
    soon("a call", rig.client().unary(payload("again"))).await.expect("an answer");
}

#[tokio::test]
async fn dial_that_is_given_up_leaves_no_channel() {
    let rig = Rig::start().await;
    let connector = rig.hub.connector(AGENT).expect("an id");
    for _ in 0..50 {
        let mut dial = Box::pin(connector.dial());
        // One poll: the open is under way.
        assert!(matches!(futures_poll(dial.as_mut()).await, None | Some(Ok(_))));
    }
    // All of them are closed: a shutdown waits for nothing.
    soon("the shutdown", rig.hub.shutdown(Duration::from_secs(60))).await;
}

/// Polls once.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match future.as_mut().poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}
