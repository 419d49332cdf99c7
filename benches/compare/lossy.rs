//! Every kind of call over a link that loses, delays and reorders packets: whether one fails, and whether a connection is
//! lost. What the link does, `emulator.rs` says.
//!
//! Here the contenders do not take turns. Each has a link of its own and hardly loads the machine, so all run at the same
//! time.

use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::common::Failure;
use crate::common::report::Report;
use crate::contenders::{ALL, Contender};
use crate::network::{Network, Side};
use crate::plan::Plan;
use crate::process::Process;
use crate::rigs::peers::find_program;
use crate::rounds::LeftOut;

/// The link's addresses, in the cloud and on the laptop.
pub(crate) const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// How long calls may still take that are under way when the time is up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Calls come before those that count.
const WARM_UP: Duration = Duration::from_secs(1);

pub(crate) const CASE: &str = "lossy-link/mixed-calls";

/// All contenders at once.
pub(crate) async fn measure(plan: &Plan, report: &mut Report, left_out: &mut LeftOut) {
    if !plan.wants(CASE) {
        return;
    }
    eprintln!("{CASE}");
    if let Err(why) = Link::new().await {
        return left_out.add(CASE, "all", &why.to_string());
    }
    let span = plan.lossy_time();
    let mut running = JoinSet::new();
    for contender in ALL.into_iter().filter(|contender| plan.takes(*contender)) {
        if contender.makes_mixed_calls() {
            running.spawn(async move { (contender, call(contender, span).await) });
        } else {
            left_out.add(CASE, contender.name(), "its own gRPC programs do not have this work");
        }
    }
    let mut done: Vec<_> = running.join_all().await;
    done.sort_by_key(|(contender, _)| ALL.iter().position(|one| one == contender));
    for (contender, figures) in done {
        match figures {
            Ok(figures) => {
                for (metric, unit, value) in figures {
                    report.add(CASE, contender.name(), metric, unit, value);
                }
            }
            Err(why) => left_out.failed(report, CASE, contender, &why.to_string()),
        }
    }
}

/// Metric, unit, value.
type Figures = Vec<(&'static str, &'static str, f64)>;

async fn call(contender: Contender, span: Duration) -> Result<Figures, Failure> {
    let link = Link::new().await?;
    let mut running = contender.start(Network::Link(link), false).await?;
    // What its start brings, which with rathole is a connection more, does not count.
    running.order(&format!("mixed {}", WARM_UP.as_millis()), WARM_UP + PATIENCE).await?;
    running.link()?.counts().await?;
    let answer = running.order(&format!("mixed {}", span.as_millis()), span + PATIENCE).await?;
    if let Some(why) = answer["why"].as_str() {
        eprintln!("{}: the first of its calls that failed: {why}", contender.name());
    }
    let counts = running.link()?.counts().await?;
    let part = |what: &str| Ok::<_, Failure>(100.0 * number(&counts, what)? / number(&counts, "packets")?.max(1.0));
    let mut figures = vec![
        ("rate", "calls/s", number(&answer, "rate")?),
        ("failed", "calls", number(&answer, "failed")?),
        ("own deadlines passed", "calls", number(&answer, "expired")?),
        ("connections lost", "connections", number(&counts, "connections")?),
        ("packets lost", "%", part("lost")?),
        ("packets overtaken", "%", part("overtaken")?),
    ];
    for (metric, percentile) in [("small call, p50", "p50"), ("small call, p99", "p99")] {
        figures.extend(answer[percentile].as_f64().map(|millis| (metric, "ms", millis)));
    }
    Ok(figures)
}

fn number(answer: &Value, what: &str) -> Result<f64, Failure> {
    Ok(answer[what].as_f64().ok_or_else(|| format!("no {what} in {answer}"))?)
}

/// The link's process, and the namespaces at its ends. Dropping it kills the process; they go with the last process inside.
pub(crate) struct Link {
    process: Process,
    nsenter: std::path::PathBuf,
    /// The files that stand for them: of the cloud, and of the laptop.
    namespaces: [String; 2],
}

impl Link {
    /// `Err` says why there can be none here.
    pub(crate) async fn new() -> Result<Self, Failure> {
        let nsenter = find_program("nsenter").ok_or("the program nsenter is missing")?;
        let mut process = Process::own(&["--one-thread", "link"])?;
        let cloud = process.line("namespace ").await?;
        let laptop = process.line("namespace ").await?;
        Ok(Self { process, nsenter, namespaces: [cloud, laptop] })
    }

    pub(crate) fn address(side: Side) -> &'static str {
        ADDRESSES[side as usize]
    }

    /// A command, but that it runs in the namespace of this side. The process it starts is the program itself.
    pub(crate) fn inside(&self, side: Side, command: &Command) -> Command {
        let command = command.as_std();
        let mut inside = Command::new(&self.nsenter);
        inside.arg(format!("--net={}", self.namespaces[side as usize]));
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }

    /// What has happened since it was asked before.
    async fn counts(&mut self) -> Result<Value, Failure> {
        self.process.tell("counts").await?;
        self.process.answer(PATIENCE).await
    }
}
