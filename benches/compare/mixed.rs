//! Calls of every kind, as an application has them under way together: what a bad path must not break.
//!
//! What comes back is compared with what was sent. Calls that have a deadline of their own may miss it; any other must be
//! answered.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};

use crate::common::Failure;
use crate::common::service::pb::Payload;
use crate::common::service::pb::echo_client::EchoClient;
use crate::common::service::{messages, order};
use crate::common::work::Transport;

/// Callers at the same time, each with one call after the other.
const CALLERS: usize = 8;

/// A call that takes longer has failed.
const CALL: Duration = Duration::from_secs(30);

/// How long a caller waits after a call that failed: there may be nothing to call for a while.
const PAUSE: Duration = Duration::from_millis(100);

/// The deadline of those that have one: about two round trips, so that some meet it and some do not.
const DEADLINE: Duration = Duration::from_millis(200);

/// What times are told of.
const SMALL: usize = 100;

/// Messages of a stream, and their size.
const COUNT: usize = 10;
const SIZE: usize = 1000;

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// With a message of this size, both ways.
    Unary(usize),
    ServerStream,
    ClientStream,
    /// A conversation: each message is sent when the one before has come back.
    BothStream,
    /// A small unary call.
    WithDeadline,
}

/// In the order in which a caller makes them.
const KINDS: [Kind; 8] = [
    Kind::Unary(SMALL),
    Kind::ServerStream,
    Kind::WithDeadline,
    Kind::Unary(4_000),
    Kind::ClientStream,
    Kind::Unary(SMALL),
    Kind::BothStream,
    Kind::Unary(40_000),
];

/// What became of a caller's calls.
#[derive(Default)]
struct Done {
    calls: u64,
    /// Those with a deadline that was not met.
    expired: u64,
    failed: u64,
    /// The first of those that failed.
    why: Option<String>,
    /// How long the small ones took.
    times: Vec<Duration>,
}

/// For so long; what is under way then is waited for.
pub(crate) async fn calls<T: Transport>(client: &EchoClient<T>, duration: Duration) -> Result<Value, Failure> {
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut client = client.clone();
        callers.spawn(async move {
            let mut done = Done::default();
            // Each begins with another kind.
            for kind in KINDS.iter().cycle().skip(caller) {
                if started.elapsed() >= duration {
                    break;
                }
                call(&mut client, *kind, &mut done).await;
            }
            done
        });
    }
    let mut all = Done::default();
    while let Some(done) = callers.join_next().await {
        let done = done?;
        all.calls += done.calls;
        all.expired += done.expired;
        all.failed += done.failed;
        all.why = all.why.or(done.why);
        all.times.extend(done.times);
    }
    let rate = (all.calls - all.failed) as f64 / started.elapsed().as_secs_f64();
    all.times.sort_unstable();
    let millis = |percent: usize| {
        // Ten are to be above it, or chance tells it.
        let is_known = all.times.len() * (100 - percent) >= 1000;
        let time = all.times.get(all.times.len() * percent / 100).filter(|_| is_known);
        time.map(|time| time.as_secs_f64() * 1e3)
    };
    Ok(json!({
        "rate": rate, "expired": all.expired, "failed": all.failed, "why": all.why,
        "p50": millis(50), "p99": millis(99),
    }))
}

async fn call<T: Transport>(client: &mut EchoClient<T>, kind: Kind, done: &mut Done) {
    let begun = Instant::now();
    let answered = timeout(CALL, async {
        match kind {
            Kind::Unary(size) => unary(client, size, None).await,
            Kind::WithDeadline => unary(client, SMALL, Some(DEADLINE)).await,
            Kind::ServerStream => download(client).await,
            Kind::ClientStream => upload(client).await,
            Kind::BothStream => converse(client).await,
        }
    });
    let answered = answered.await.unwrap_or_else(|_| Err(format!("not done in {CALL:?}").into()));
    done.calls += 1;
    match (answered, kind) {
        (Ok(()), Kind::Unary(SMALL)) => done.times.push(begun.elapsed()),
        (Ok(()), _) => {}
        (Err(error), Kind::WithDeadline) if begun.elapsed() >= DEADLINE && is_deadline(&error) => done.expired += 1,
        (Err(error), _) => {
            done.failed += 1;
            done.why.get_or_insert_with(|| format!("{kind:?} after {:?}: {error}", begun.elapsed()));
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// tonic says `CANCELLED` of a deadline that has passed, and why; other peers `DEADLINE_EXCEEDED`. Any other end of the call
/// is none of the deadline's.
fn is_deadline(error: &Failure) -> bool {
    let status = error.downcast_ref::<tonic::Status>();
    status.is_some_and(|status| match status.code() {
        Code::DeadlineExceeded => true,
        Code::Cancelled => status.message().contains("Timeout expired"),
        _ => false,
    })
}

/// No two bytes that follow each other are the same.
fn pattern(size: usize) -> Vec<u8> {
    (0..=250).cycle().take(size).collect()
}

async fn unary<T: Transport>(client: &mut EchoClient<T>, size: usize, limit: Option<Duration>) -> Result<(), Failure> {
    let data = pattern(size);
    let mut request = Request::new(Payload { data: data.clone() });
    if let Some(limit) = limit {
        request.set_timeout(limit);
    }
    same(&client.unary(request).await?.into_inner().data, &data)
}

async fn download<T: Transport>(client: &mut EchoClient<T>) -> Result<(), Failure> {
    let mut answers = client.download(order(COUNT as u64, SIZE)).await?.into_inner();
    let mut got = 0;
    while let Some(answer) = answers.message().await? {
        got += answer.data.len();
    }
    if got == COUNT * SIZE { Ok(()) } else { Err(format!("{got} bytes arrived of {}", COUNT * SIZE).into()) }
}

async fn upload<T: Transport>(client: &mut EchoClient<T>) -> Result<(), Failure> {
    let got = client.upload(messages(COUNT as u64, SIZE)).await?.into_inner().data;
    same(&got, &(COUNT as u64 * SIZE as u64).to_be_bytes())
}

async fn converse<T: Transport>(client: &mut EchoClient<T>) -> Result<(), Failure> {
    let (send, requests) = tokio::sync::mpsc::channel(1);
    send.send(Payload { data: pattern(1) }).await?;
    let mut answers = client.chat(ReceiverStream::new(requests)).await?.into_inner();
    for size in 1..=COUNT {
        let answer = answers.message().await?.ok_or("the stream ended in the middle")?;
        same(&answer.data, &pattern(size))?;
        if size < COUNT {
            send.send(Payload { data: pattern(size + 1) }).await?;
        }
    }
    drop(send);
    match answers.message().await? {
        None => Ok(()),
        Some(_) => Err("more came back than was sent".into()),
    }
}

fn same(got: &[u8], wanted: &[u8]) -> Result<(), Failure> {
    if got == wanted { Ok(()) } else { Err("what came back is not what was sent".into()) }
}
