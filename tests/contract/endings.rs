//! What becomes of calls when a tunnel ends, politely or not.

use std::time::Duration;

use dialback::{Agent, DialError, Hub};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::common::echo::pb::Payload;
use crate::common::echo::pb::echo_client::EchoClient;
use crate::common::echo::{payload, steered};
use crate::common::proxy::Cut;
use crate::common::rig::{AGENT, Rig, soon};
use crate::ways::{AnyChannel, Line, Way};

/// Longer than any test waits: a shutdown that ends sooner did not need it.
const LONG: Duration = Duration::from_secs(60);

pub async fn vanished_peer_fails_calls_in_flight(way: Way) {
    let mut line = way.start_with(Rig::builder().proxy()).await;
    let tunnel = line.rig().hub.wait_for(AGENT).await.expect("the agent is there");
    let mut disconnected = tunnel.disconnected();
    let mut stream = hanging(&mut line).await;

    line.rig().proxy().cut(Cut::Reset);

    let status = soon("the status", stream.message()).await.expect_err("a status");
    let gone = soon("the word", disconnected.wait_for(Option::is_some)).await.expect("the hub lives").clone();
    assert!(gone.is_some());
    let status = if way == Way::Dialled { tunnel.explain(status) } else { status };
    names_the_agent(&status);
}

pub async fn agent_shutdown_lets_calls_finish(way: Way) {
    let line = way.start().await;
    let (rig, client, _way) = line.into_parts();
    let call = chat(client).await;
    let finish = call.finish_once(|| async { is_shut(rig.agent.connector().dial().await) });

    soon("the shutdown", async { tokio::join!(rig.agent.shutdown(LONG), finish) }).await;

    assert!(matches!(*rig.agent.status().borrow(), dialback::AgentStatus::Stopped));
    soon("the server's end", rig.agent_server).await.expect("no panic").expect("no error");
}

pub async fn hub_shutdown_lets_calls_finish(way: Way) {
    let line = way.start().await;
    let (rig, client, _way) = line.into_parts();
    let connector = rig.hub.connector(AGENT).expect("an id");
    let call = chat(client).await;
    let finish = call.finish_once(|| async { is_shut(connector.dial().await) });

    soon("the shutdown", async { tokio::join!(rig.hub.shutdown(LONG), finish) }).await;

    soon("the server's end", rig.hub_server).await.expect("no panic").expect("no error");
}

pub async fn end_of_grace_cuts_calls_off(way: Way) {
    for end in [End::Agent, End::Hub] {
        let mut line = way.start().await;
        let mut stream = hanging(&mut line).await;

        soon("the shutdown", end.shutdown(&line.rig().agent, &line.rig().hub, Duration::from_millis(100))).await;

        let status = soon("the status", stream.message()).await.expect_err("a status");
        if way != Way::Dialled {
            names_the_agent(&status);
        }
    }
}

pub async fn second_shutdown_cuts_calls_off(way: Way) {
    for end in [End::Agent, End::Hub] {
        let mut line = way.start().await;
        let mut stream = hanging(&mut line).await;
        let Rig { agent, hub, .. } = line.rig();
        let connector = hub.connector(AGENT).expect("an id");
        let second = async {
            while !match end {
                End::Agent => is_shut(agent.connector().dial().await),
                End::Hub => is_shut(connector.dial().await),
            } {
                tokio::task::yield_now().await;
            }
            end.shutdown(agent, hub, LONG).await;
        };

        soon("both shutdowns", async { tokio::join!(end.shutdown(agent, hub, LONG), second) }).await;

        soon("the status", stream.message()).await.expect_err("a status");
    }
}

pub async fn calls_after_shutdown_are_unavailable(way: Way) {
    for end in [End::Agent, End::Hub] {
        let mut line = way.start().await;
        soon("a call", line.client.unary(payload("before"))).await.expect("an answer");

        soon("the shutdown", end.shutdown(&line.rig().agent, &line.rig().hub, Duration::from_millis(100))).await;

        let status = soon("the refusal", line.client.unary(payload("after"))).await.expect_err("no tunnel");
        if way != Way::Dialled {
            names_the_agent(&status);
        }
    }
}

#[derive(Clone, Copy)]
enum End {
    Agent,
    Hub,
}

impl End {
    async fn shutdown(self, agent: &Agent, hub: &Hub, grace: Duration) {
        match self {
            Self::Agent => agent.shutdown(grace).await,
            Self::Hub => hub.shutdown(grace).await,
        }
    }
}

fn names_the_agent(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains(AGENT), "{status:?}");
}

fn is_shut<T>(dialled: Result<T, DialError>) -> bool {
    matches!(dialled, Err(DialError::Shutdown { .. }))
}

/// A stream that has begun and never ends by itself.
async fn hanging(line: &mut Line) -> tonic::Streaming<Payload> {
    let call = line.client.download(steered(payload(""), &[("echo-count", "1"), ("echo-hang", "1")]));
    let mut stream = soon("the stream", call).await.expect("a stream").into_inner();
    soon("a message", stream.message()).await.expect("no status").expect("no end");
    stream
}

/// A call that talks both ways.
struct Chat {
    /// Held, because a dropped client's connection goes with its calls.
    _client: EchoClient<AnyChannel>,
    say: mpsc::Sender<Payload>,
    answers: tonic::Streaming<Payload>,
}

async fn chat(mut client: EchoClient<AnyChannel>) -> Chat {
    let (say, said) = mpsc::channel(1);
    let answers = soon("the stream", client.chat(ReceiverStream::new(said))).await.expect("a stream").into_inner();
    Chat { _client: client, say, answers }
}

impl Chat {
    /// Waits until the other end refuses new calls, then says one thing more, and hangs up.
    async fn finish_once<F: Future<Output = bool>>(mut self, refused: impl Fn() -> F) {
        while !refused().await {
            tokio::task::yield_now().await;
        }
        self.say.send(payload("still here")).await.expect("the call stands");
        assert_eq!(self.answers.message().await.expect("no status"), Some(payload("still here")));
        drop(self.say);
        assert_eq!(self.answers.message().await.expect("no status"), None);
    }
}
