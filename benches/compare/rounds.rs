//! The turns: in each round every contender does the same work once, and the one that comes first changes.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::Failure;
use crate::common::report::Report;
use crate::contenders::{Contender, Running};
use crate::line::{Limits, Line};
use crate::network::Network;
use crate::plan::{BLOCK, Plan, RATE, RECONNECT, SET_UP, Setting, Stream, Work, works};

/// How long one turn may take beyond what it should.
const PATIENCE: Duration = Duration::from_secs(40);

/// How long a contender may take to be built and to start.
const BUILD: Duration = Duration::from_secs(1800);

/// Contenders that have no figures in some case, and why.
#[derive(Default)]
pub(crate) struct LeftOut {
    /// Case, contender, and why.
    pub(crate) all: Vec<(String, &'static str, String)>,
    /// How often one of ours has failed.
    pub(crate) ours_failed: usize,
}

impl LeftOut {
    /// It does not have this case, or it cannot be had here. Told once.
    pub(crate) fn add(&mut self, case: &str, contender: &'static str, why: &str) {
        if !self.has(case, contender) {
            self.all.push((case.to_owned(), contender, why.to_owned()));
        }
    }

    /// It has failed; what it had in this case before goes out of the report.
    pub(crate) fn failed(&mut self, report: &mut Report, case: &str, contender: Contender, why: &str) {
        report.remove(case, contender.name(), None);
        self.all.push((case.to_owned(), contender.name(), why.to_owned()));
        self.ours_failed += usize::from(contender.is_ours());
    }

    fn has(&self, case: &str, contender: &str) -> bool {
        self.all.iter().any(|(other, name, _)| other == case && *name == contender)
    }
}

/// A contender in the rounds of a setting.
struct Seat {
    contender: Contender,
    /// `None` from a failure to the next case.
    running: Option<Running>,
    /// What a stream is given to take about as long as a turn.
    bytes: u64,
    /// How many calls the rounds that count have had together.
    calls: f64,
}

/// The longest that a stream takes that others are beside of: at the turn's end it is waited for.
const STREAM: Duration = Duration::from_secs(1);

/// A percentile is told if about ten calls of all rounds together took longer, that is from so many calls on.
const PERCENTILES: [(&str, f64); 3] = [("p90", 100.0), ("p99", 1_000.0), ("p99.9", 10_000.0)];

/// All the work of a setting.
pub(crate) async fn run(plan: &Plan, setting: Setting, report: &mut Report, left_out: &mut LeftOut) {
    let place = setting.name();
    let works: Vec<Work> =
        works(setting, plan.quick).into_iter().filter(|work| plan.wants(&format!("{place}/{}", work.name()))).collect();
    if works.is_empty() {
        return;
    }
    let mut seats = Vec::new();
    for contender in plan.contenders() {
        if setting == Setting::OneThread && !contender.is_ours() {
            left_out.add(
                &place,
                contender.name(),
                "only processes of this crate's code can be told to have one thread",
            );
            continue;
        }
        match start(contender, setting).await {
            Ok(running) => seats.push(Seat { contender, running: Some(running), bytes: 0, calls: 0.0 }),
            Err(why) => left_out.failed(report, &place, contender, &why.to_string()),
        }
    }
    for work in works {
        let case = format!("{place}/{}", work.name());
        eprintln!("{case}");
        for seat in &mut seats {
            (seat.bytes, seat.calls) = (0, 0.0);
            if work == Work::Fresh && !seat.contender.dials_an_address() {
                left_out.add(&case, seat.contender.name(), "its caller dials no address: calls go over its one tunnel");
            } else if seat.running.is_none() {
                // One failure must not cost the other cases.
                match start(seat.contender, setting).await {
                    Ok(running) => seat.running = Some(running),
                    Err(why) => {
                        left_out.failed(report, &case, seat.contender, &format!("not started again: {why}"));
                    }
                }
            }
        }
        let seats_taken = seats.len();
        for round in 0..=plan.rounds(setting, work) {
            for turn in 0..seats_taken {
                // The first round that counts begins with the first contender.
                let seat = &mut seats[(round + turn + seats_taken - 1) % seats_taken];
                if work == Work::Fresh && !seat.contender.dials_an_address() {
                    continue;
                }
                let Some(running) = &mut seat.running else { continue };
                match measure(plan, setting, work, running, &mut seat.bytes).await {
                    Ok((figures, calls)) => {
                        if round > 0 {
                            seat.calls += calls;
                        }
                        // The first round warms up, and does not count.
                        for (metric, unit, value) in figures.into_iter().filter(|_| round > 0) {
                            report.add(&case, seat.contender.name(), metric, unit, value);
                        }
                    }
                    Err(why) => {
                        let when = if round == 0 { "warming up".into() } else { format!("in round {round}") };
                        left_out.failed(report, &case, seat.contender, &format!("{when}: {why}"));
                        seat.running = None;
                    }
                }
            }
        }
        for seat in &seats {
            for (metric, least) in PERCENTILES {
                if seat.calls < least {
                    report.remove(&case, seat.contender.name(), Some(metric));
                }
            }
        }
    }
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

/// One turn: its figures, and of how many calls its percentiles are.
async fn measure(
    plan: &Plan,
    setting: Setting,
    work: Work,
    running: &mut Running,
    bytes: &mut u64,
) -> Result<(Figures, f64), Failure> {
    let turn = plan.turn(setting, work);
    let patience = PATIENCE + 4 * turn;
    let millis = turn.as_millis();
    match work {
        Work::Unary(callers) => {
            let cpu = running.cpu();
            let answer = running.order(&format!("callers {callers} {millis}"), patience).await?;
            let cpu = running.cpu() - cpu;
            let calls = value(&answer, "calls")?;
            let mut figures = percentiles(setting, &answer)?;
            figures.extend([("p99.9", "µs", value(&answer, "p99.9")?), ("rate", "calls/s", value(&answer, "rate")?)]);
            // Over a path the calls are too few for the steps in which it is counted.
            if !matches!(setting, Setting::Path(_)) {
                figures.push(("CPU per 100k calls", "s", 1e5 * cpu / calls));
            }
            Ok((figures, calls))
        }
        Work::Stream(way, size) => {
            let what = match way {
                Stream::Server => "down",
                Stream::Client => "up",
                Stream::Both => "chat",
            };
            Ok((stream(running, what, size, turn, bytes).await?, 0.0))
        }
        Work::Streams(count) => Ok((stream(running, &format!("downs {count}"), BLOCK, turn, bytes).await?, 0.0)),
        Work::Beside => {
            if *bytes == 0 {
                *bytes = enough(running, "down", BLOCK, turn.min(STREAM)).await?;
            }
            let answer = running.order(&format!("beside {millis} {bytes} {BLOCK}"), patience).await?;
            let mut figures = percentiles(setting, &answer)?;
            figures.push(("bulk", "MB/s", value(&answer, "bulk")?));
            Ok((figures, value(&answer, "calls")?))
        }
        Work::Fresh => {
            let answer = running.order("fresh 20", patience).await?;
            Ok((vec![("to the first answer", "ms", value(&answer, "mean")?)], 0.0))
        }
    }
}

/// Over a path the calls are too few for the 99th, and the 90th is told by those whose programs do.
fn percentiles(setting: Setting, answer: &Value) -> Result<Figures, Failure> {
    let mut figures = vec![("p50", "µs", value(answer, "p50")?)];
    if let (Setting::Path(_), Some(micros)) = (setting, answer["p90"].as_f64()) {
        figures.push(("p90", "µs", micros));
    }
    figures.push(("p99", "µs", value(answer, "p99")?));
    Ok(figures)
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
    if !plan.wants(SET_UP) && !plan.wants(RECONNECT) {
        return;
    }
    eprintln!("{SET_UP}, {RECONNECT}");
    let mut contenders = plan.contenders();
    for round in 1..=plan.starts() {
        for &contender in &contenders {
            if left_out.has(SET_UP, contender.name()) {
                continue;
            }
            let mut running = match contender.start(Network::Line(Line::new(Limits::default())), false).await {
                Ok(running) => running,
                Err(why) => {
                    let why = format!("in round {round}: {why}");
                    left_out.failed(report, SET_UP, contender, &why);
                    left_out.failed(report, RECONNECT, contender, &why);
                    continue;
                }
            };
            if plan.wants(SET_UP) {
                let millis = running.set_up.as_secs_f64() * 1e3;
                report.add(SET_UP, contender.name(), "process start to first answer", "ms", millis);
            }
            if !plan.wants(RECONNECT) || left_out.has(RECONNECT, contender.name()) {
                continue;
            }
            let why = match running.gap(plan.return_time()).await {
                Ok(Some(gap)) => {
                    report.add(RECONNECT, contender.name(), "to the next answer", "ms", gap);
                    continue;
                }
                Ok(None) => format!("no answer for {:?}: it does not come back by itself", plan.return_time()),
                Err(why) => why.to_string(),
            };
            left_out.failed(report, RECONNECT, contender, &format!("in round {round}: {why}"));
        }
        contenders.rotate_left(1);
    }
}
