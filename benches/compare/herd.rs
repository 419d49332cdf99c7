//! All agents of a fleet come back at once, seen from inside the new hub: how soon, how evenly, and whether it makes calls
//! meanwhile.

use std::time::{Duration, Instant};

use dialback::{Hub, Tunnel};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::common::service::pb::echo_client::EchoClient;
use crate::common::{Failure, work};
use crate::fleet::until;

/// How long the hub may take to make a call to an agent that is there, while others come.
const CALL: Duration = Duration::from_secs(1);

/// Callers of the hub's meanwhile, and what is between the calls of each.
const CALLERS: usize = 8;
const PAUSE: Duration = Duration::from_millis(5);

/// From here on until all are back, with calls to those that are there already.
pub(crate) async fn run(hub: &Hub, count: usize) -> Result<Value, Failure> {
    let started = Instant::now();
    let mut seen: Vec<(f64, usize)> = Vec::new();
    // One list for all callers: to make it costs the hub more than a call.
    let (tell, there) = watch::channel(Vec::new());
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(call(there.clone()));
    }
    let told = until(hub, count, |tunnels| {
        seen.push((started.elapsed().as_secs_f64(), tunnels.len()));
        tell.send_replace(tunnels);
    });
    told.await?;
    let all = started.elapsed().as_secs_f64();
    drop(tell);
    // A call that is under way is waited for, and counts.
    let calls = callers.join_all().await;
    let made: u64 = calls.iter().map(|caller| caller.made).sum();
    let failed: u64 = calls.iter().map(|caller| caller.failed).sum();
    let why = calls.iter().find_map(|caller| caller.why.as_ref());
    let slowest = calls.iter().map(|caller| caller.slowest).max().unwrap_or_default();
    let half = seen.iter().find(|(_, now)| 2 * now >= count).map_or(all, |(when, _)| *when);
    // From the first one on: agents that wait for the hub to be there are no part of the mean.
    let first = seen.iter().find(|(_, now)| *now > 0).map_or(0.0, |(when, _)| *when);
    let mut bins = vec![0; ((all - first) * 10.0) as usize + 1];
    let mut before = 0;
    for (when, now) in seen.iter().filter(|(when, _)| *when >= first) {
        let bin = ((when - first) * 10.0) as usize;
        if let Some(bin) = bins.get_mut(bin) {
            *bin += now.saturating_sub(before);
        }
        before = *now;
    }
    let mean = count as f64 / bins.len() as f64;
    let busiest = bins.iter().max().copied().unwrap_or_default() as f64;
    Ok(json!({
        "all back": all, "half back": half, "busiest 100 ms to the mean": busiest / mean,
        "calls meanwhile": made, "slowest call meanwhile": slowest.as_secs_f64() * 1e3, "failed calls meanwhile": failed, "why": why,
    }))
}

/// What became of a caller's calls.
#[derive(Default)]
struct Calls {
    made: u64,
    /// Those without a right answer within [`CALL`].
    failed: u64,
    /// Why the first of those did.
    why: Option<String>,
    /// Of those that were answered.
    slowest: Duration,
}

/// To a random one of the agents that are there, again and again until nobody tells them any more: all are back.
async fn call(there: watch::Receiver<Vec<Tunnel>>) -> Calls {
    let mut calls = Calls::default();
    while there.has_changed().is_ok() {
        tokio::time::sleep(PAUSE).await;
        let Some(tunnel) = one_of(&there.borrow()) else { continue };
        let begun = Instant::now();
        calls.made += 1;
        match timeout(CALL, work::one_call(&mut EchoClient::new(tunnel.channel()))).await {
            // Where all wait for a processor, the limit may be late as well.
            Ok(Ok(())) if begun.elapsed() <= CALL => calls.slowest = calls.slowest.max(begun.elapsed()),
            failed => {
                calls.failed += 1;
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => format!("no answer for {CALL:?}"),
                };
                calls.why.get_or_insert_with(|| format!("after {:?}: {why}", begun.elapsed()));
            }
        }
    }
    calls
}

fn one_of(tunnels: &[Tunnel]) -> Option<Tunnel> {
    (!tunnels.is_empty()).then(|| tunnels[rand::random_range(0..tunnels.len())].clone())
}
