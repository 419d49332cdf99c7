//! The turns: in each round every contender does the same work once, and the one that comes first changes.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::Failure;
use crate::common::report::Report;
use crate::contenders::{Contender, Running};
use crate::line::{Limits, Line};
use crate::network::Network;
use crate::plan::{BLOCK, Plan, RATE, Setting, Stream, Work, works};

/// How long one turn may take beyond what it should.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long a contender may take to be built and to start.
const BUILD: Duration = Duration::from_secs(1800);

/// Contenders that have no figures in some case, and why.
pub(crate) type LeftOut = Vec<(String, &'static str, String)>;

/// A contender in the rounds of a setting.
struct Seat {
    contender: Contender,
    /// `None` from a failure to the next case.
    running: Option<Running>,
    /// What a stream is given to take about as long as a turn.
    bytes: u64,
}

/// All the work of a setting.
pub(crate) async fn run(
    plan: &Plan,
    setting: Setting,
    report: &mut Report,
    left_out: &mut LeftOut,
) -> Result<(), Failure> {
    let place = setting.name();
    let works: Vec<Work> =
        works(setting, plan.quick).into_iter().filter(|work| plan.wants(&format!("{place}/{}", work.name()))).collect();
    if works.is_empty() {
        return Ok(());
    }
    let mut seats = Vec::new();
    for contender in plan.contenders(setting) {
        match start(contender, setting).await {
            Ok(running) => seats.push(Seat { contender, running: Some(running), bytes: 0 }),
            Err(why) => left_out.push((place.clone(), contender.name(), why.to_string())),
        }
    }
    for work in works {
        let case = format!("{place}/{}", work.name());
        eprintln!("{case}");
        for seat in &mut seats {
            seat.bytes = 0;
            if seat.running.is_none() {
                // One failure must not cost the other cases.
                seat.running = start(seat.contender, setting).await.ok();
            }
        }
        let seats_taken = seats.len();
        for round in 0..=plan.rounds(setting) {
            for turn in 0..seats_taken {
                // The first round that counts begins with the first contender.
                let seat = &mut seats[(round + turn + seats_taken - 1) % seats_taken];
                if work == Work::Fresh && !seat.contender.dials_an_address() {
                    continue;
                }
                let Some(running) = &mut seat.running else { continue };
                match measure(plan, setting, work, running, &mut seat.bytes).await {
                    Ok(figures) => {
                        // The first round warms up, and does not count.
                        for (metric, unit, value) in figures.into_iter().filter(|_| round > 0) {
                            report.add(&case, seat.contender.name(), metric, unit, value);
                        }
                    }
                    Err(why) => {
                        left_out.push((case.clone(), seat.contender.name(), why.to_string()));
                        seat.running = None;
                    }
                }
            }
        }
    }
    Ok(())
}

async fn start(contender: Contender, setting: Setting) -> Result<Running, Failure> {
    let network = match setting {
        Setting::Path(round_trip) => Network::Line(Line::new(Limits::new(round_trip, RATE))),
        Setting::Loopback | Setting::OneThread => Network::Loopback,
    };
    let starting = contender.start(network, setting == Setting::OneThread);
    // What a contender is built from may have to be downloaded first.
    tokio::time::timeout(BUILD, starting).await.map_err(|_| "it does not start")?
}

/// Metric, unit, value.
type Figures = Vec<(&'static str, &'static str, f64)>;

/// One turn.
async fn measure(
    plan: &Plan,
    setting: Setting,
    work: Work,
    running: &mut Running,
    bytes: &mut u64,
) -> Result<Figures, Failure> {
    let turn = plan.turn(setting);
    let patience = PATIENCE + 4 * turn;
    let millis = turn.as_millis();
    match work {
        Work::Unary(callers) => {
            let cpu = running.cpu();
            let answer = running.order(&format!("callers {callers} {millis}"), patience).await?;
            let cpu = running.cpu() - cpu;
            let each = cpu / value(&answer, "calls")?;
            let mut figures = vec![
                ("p50", "µs", value(&answer, "p50")?),
                ("p99", "µs", value(&answer, "p99")?),
                ("p99.9", "µs", value(&answer, "p99.9")?),
                ("rate", "calls/s", value(&answer, "rate")?),
            ];
            // Over a path the calls are too few for the steps in which it is counted.
            if !matches!(setting, Setting::Path(_)) {
                figures.push(("CPU per 100k calls", "s", 1e5 * each));
            }
            Ok(figures)
        }
        Work::Stream(way, size) => {
            let what = match way {
                Stream::Server => "down",
                Stream::Client => "up",
                Stream::Both => "chat",
            };
            stream(running, what, size, turn, bytes).await
        }
        Work::Streams(count) => stream(running, &format!("downs {count}"), BLOCK, turn, bytes).await,
        Work::Beside => {
            if *bytes == 0 {
                *bytes = enough(running, "down", BLOCK, turn).await?;
            }
            let answer = running.order(&format!("beside {millis} {bytes} {BLOCK}"), patience).await?;
            Ok(vec![
                ("p50", "µs", value(&answer, "p50")?),
                ("p99", "µs", value(&answer, "p99")?),
                ("bulk", "MB/s", value(&answer, "bulk")?),
            ])
        }
        Work::Fresh => {
            let answer = running.order("fresh 20", patience).await?;
            Ok(vec![("to the first answer", "ms", value(&answer, "mean")?)])
        }
    }
}

async fn stream(
    running: &mut Running,
    what: &str,
    size: usize,
    turn: Duration,
    bytes: &mut u64,
) -> Result<Figures, Failure> {
    if *bytes == 0 {
        *bytes = enough(running, what, size, turn).await?;
    }
    let cpu = running.cpu();
    let answer = running.order(&format!("{what} {bytes} {size}"), PATIENCE + 4 * turn).await?;
    let cpu = running.cpu() - cpu;
    let gib = *bytes as f64 / f64::from(1 << 30);
    Ok(vec![("rate", "MB/s", value(&answer, "rate")?), ("CPU per GiB", "s", cpu / gib)])
}

/// How many bytes take about as long as a turn, which differs by a factor of a thousand between contenders.
async fn enough(running: &mut Running, what: &str, size: usize, turn: Duration) -> Result<u64, Failure> {
    let (least, most) = (16 * size as u64, 4 << 30);
    let mut bytes = least.max(64 << 10).next_multiple_of(least);
    loop {
        let started = Instant::now();
        running.order(&format!("{what} {bytes} {size}"), PATIENCE).await?;
        let took = started.elapsed();
        if took >= turn / 4 || bytes >= most {
            let enough = bytes as f64 * turn.as_secs_f64() / took.as_secs_f64();
            return Ok((enough as u64).clamp(least, most).next_multiple_of(least));
        }
        bytes *= 4;
    }
}

fn value(answer: &Value, metric: &str) -> Result<f64, Failure> {
    Ok(answer[metric].as_f64().ok_or_else(|| format!("no {metric} in {answer}"))?)
}

/// What a user waits for: the first answer after a start, and the next one after a cut.
pub(crate) async fn waits(plan: &Plan, report: &mut Report, left_out: &mut LeftOut) {
    let [set_up, reconnect] = ["set-up", "reconnect"].map(|name| format!("{}/{name}", Setting::Loopback.name()));
    if !plan.wants(&set_up) && !plan.wants(&reconnect) {
        return;
    }
    eprintln!("{set_up}, {reconnect}");
    let mut contenders = plan.contenders(Setting::Loopback);
    let mut gone: Vec<Contender> = Vec::new();
    for round in 0..plan.rounds(Setting::Loopback) {
        if round > 0 {
            contenders.rotate_left(1);
        }
        for &contender in &contenders {
            if left_out.iter().any(|(case, name, _)| *case == set_up && *name == contender.name()) {
                continue;
            }
            let mut running = match contender.start(Network::Line(Line::new(Limits::default())), false).await {
                Ok(running) => running,
                Err(why) => {
                    left_out.push((set_up.clone(), contender.name(), why.to_string()));
                    continue;
                }
            };
            if plan.wants(&set_up) {
                let millis = running.set_up.as_secs_f64() * 1e3;
                report.add(&set_up, contender.name(), "to the first answer", "ms", millis);
            }
            if !plan.wants(&reconnect) || gone.contains(&contender) {
                continue;
            }
            let why = match running.gap(plan.return_time()).await {
                Ok(Some(gap)) => {
                    report.add(&reconnect, contender.name(), "to the next answer", "ms", gap);
                    continue;
                }
                Ok(None) => format!("no answer for {:?}: it does not come back by itself", plan.return_time()),
                Err(why) => why.to_string(),
            };
            left_out.push((reconnect.clone(), contender.name(), why));
            gone.push(contender);
        }
    }
}
