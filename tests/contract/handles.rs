//! What the handles of a tunnel promise, whichever way is called.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dialback::{AgentStatus, CloseReason, TunnelConnectInfo};
use tonic::transport::Server;
use tonic::{Code, Request, Status};

use crate::common::echo::pb::echo_client::EchoClient;
use crate::common::echo::pb::echo_server::EchoServer;
use crate::common::echo::{Echo, payload};
use crate::common::proxy::Cut;
use crate::common::rig::{AGENT, Rig, soon};

#[tokio::test]
async fn handlers_see_who_calls() {
    let rig = Rig::start().await;
    let seen = Arc::new(Mutex::new(None));
    let found = seen.clone();
    let look = move |request: Request<()>| {
        *found.lock().expect("no panic") = request.extensions().get::<TunnelConnectInfo>().cloned();
        Err::<Request<()>, _>(Status::aborted("seen"))
    };
    let server = Server::builder().add_service(EchoServer::with_interceptor(Echo::default(), look));
    // The newest stream of channels takes over.
    let serving = server.serve_with_incoming_shutdown(rig.hub.incoming(), std::future::pending());
    let _serving = tokio::spawn(serving);

    let status =
        soon("the answer", EchoClient::new(rig.agent.channel()).unary(payload(""))).await.expect_err("aborted");

    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    let info = seen.lock().expect("no panic").take().expect("a tunnel's caller");
    let tunnel = rig.hub.get(AGENT).expect("the agent is there");
    assert_eq!((info.agent_id.as_str(), info.tunnel_id), (AGENT, tunnel.id()));
    assert_eq!((info.peer_addr, info.local_addr), (tunnel.peer_addr(), Some(rig.hub.local_addr())));
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
