//! Calls to a hundred agents for a long time: whether one fails, whether they get slower, and whether the hub's memory
//! grows.

use std::time::{Duration, Instant};

use dialback::Hub;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::common::report::Report;
use crate::common::service::pb::echo_client::EchoClient;
use crate::common::system::resident;
use crate::common::{Failure, work};
use crate::contenders::Contender;
use crate::fleet::Fleet;
use crate::plan::soak_case;
use crate::roles::Way;
use crate::rounds::LeftOut;

const AGENTS: usize = 100;

/// From one call to the next, of each agent.
const PAUSE: Duration = Duration::from_millis(100);

/// A call that takes longer has failed.
const CALL: Duration = Duration::from_secs(10);

/// How often memory is read.
const READING: Duration = Duration::from_secs(5);

const SSH: Contender = Contender::Dialback(Way::Ssh);
const PATH: &str = SSH.name();

pub(crate) async fn measure(minutes: u64, report: &mut Report, left_out: &mut LeftOut) {
    let case = soak_case(minutes);
    eprintln!("{case}");
    if let Err(why) = soak(minutes, &case, report).await {
        left_out.failed(report, &case, SSH, &why.to_string());
    }
}

async fn soak(minutes: u64, case: &str, report: &mut Report) -> Result<(), Failure> {
    let mut fleet = Fleet::start(AGENTS).await?;
    fleet.connect(AGENTS).await?;
    let span = Duration::from_secs(60 * minutes);
    fleet.hub.tell(&format!("soak {}", span.as_secs())).await?;
    let answer = fleet.hub.answer(span + 2 * CALL).await?;
    if let Some(why) = answer["why"].as_str() {
        eprintln!("{case}: the first call that failed: {why}");
    }
    for (metric, unit) in [
        ("agents there", "agents"),
        ("calls", "calls"),
        ("calls made of those due", "%"),
        ("failed", "calls"),
        ("tunnels lost", "tunnels"),
        ("p99 of the first minute", "µs"),
        ("p99 of the last minute", "µs"),
        ("p99 of the last minute to the first", "×"),
        ("hub memory grows", "MiB/h"),
    ] {
        let value = answer[metric].as_f64().ok_or_else(|| format!("no {metric} in {answer}"))?;
        report.add(case, PATH, metric, unit, value);
    }
    Ok(())
}

/// In the hub's process.
pub(crate) async fn run(hub: &Hub, span: Duration) -> Result<Value, Failure> {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for tunnel in hub.tunnels() {
        let mut client = EchoClient::new(hub.channel(tunnel.agent_id().as_str())?);
        tasks.spawn(async move {
            let (mut first, mut last, mut calls, mut failed, mut why) = (Vec::new(), Vec::new(), 0u32, 0u64, None);
            let minute = Duration::from_secs(60).min(span / 2);
            let mut turns = interval(PAUSE);
            // One that comes a little late does not put off those after it, and one that is missed stays so.
            turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
            while started.elapsed() < span {
                turns.tick().await;
                let (when, begun) = (started.elapsed(), Instant::now());
                calls += 1;
                let answered = timeout(CALL, work::one_call(&mut client)).await;
                if let Err(error) = answered.unwrap_or_else(|_| Err(format!("no answer for {CALL:?}").into())) {
                    failed += 1;
                    why.get_or_insert_with(|| format!("{when:?} after the start: {error}"));
                    continue;
                }
                if when < minute {
                    first.push(begun.elapsed());
                } else if when >= span - minute {
                    last.push(begun.elapsed());
                }
            }
            (first, last, calls, failed, why)
        });
    }
    let before: Vec<_> = hub.tunnels().iter().map(dialback::Tunnel::id).collect();
    let mut memory = Vec::new();
    let mut readings = interval(READING);
    while started.elapsed() < span {
        readings.tick().await;
        memory.push((started.elapsed().as_secs_f64(), resident()? as f64));
    }
    let (mut first, mut last, mut calls, mut failed, mut why) = (Vec::new(), Vec::new(), 0, 0, None);
    while let Some(done) = tasks.join_next().await {
        let done = done?;
        first.extend(done.0);
        last.extend(done.1);
        calls += done.2;
        failed += done.3;
        why = why.or(done.4);
    }
    let after: Vec<_> = hub.tunnels().iter().map(dialback::Tunnel::id).collect();
    let lost = before.iter().filter(|id| !after.contains(id)).count();
    // What the first tenth of the time brings into memory is not growth.
    memory.drain(..memory.len() / 10);
    let due = AGENTS as f64 * span.as_secs_f64() / PAUSE.as_secs_f64();
    let [first, last] = [p99(&mut first), p99(&mut last)];
    Ok(json!({
        "agents there": before.len().min(after.len()), "tunnels lost": lost,
        "calls": calls, "calls made of those due": 100.0 * f64::from(calls) / due, "failed": failed, "why": why,
        "p99 of the first minute": first, "p99 of the last minute": last,
        "p99 of the last minute to the first": last / first,
        "hub memory grows": slope(&memory) * 3600.0 / f64::from(1 << 20),
    }))
}

/// In microseconds; no number if there were none.
fn p99(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times.get(times.len() * 99 / 100).map_or(f64::NAN, |time| time.as_nanos() as f64 / 1000.0)
}

/// Of the straight line that fits these points best.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if below > 0.0 { above / below } else { 0.0 }
}
