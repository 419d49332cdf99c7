//! What is to be reached, and what was.

use std::fmt::Write as _;

use crate::common::report::{Bound, Goal, Report};
use crate::contenders::Contender;
use crate::plan::{Plan, Work, soak_case};
use crate::roles::Way;
use crate::{fleet, lossy};

const OURS: &str = Contender::Dialback(Way::Ssh).name();
const TLS: &str = Contender::DirectTls.name();
const TCP: &str = Contender::DirectTcp.name();

/// What a user would pick instead.
const RIVALS: [Contender; 5] =
    [Contender::OpenSsh, Contender::GoSsh, Contender::GoGrpctunnel, Contender::PythonGrpctunnel, Contender::Tool];

/// Which of those that the plan is about were reached, in Markdown.
pub(crate) fn table(plan: &Plan, report: &Report) -> String {
    let mut goals = all(plan);
    goals.retain(|goal| plan.is_about(goal));
    let mut text = report.goals(&goals);
    for rival in RIVALS.into_iter().filter(|rival| plan.compares(*rival)) {
        text.push_str(&ahead(report, rival.name()));
    }
    text
}

fn all(plan: &Plan) -> Vec<Goal> {
    let goal = |against: &'static str, case: &str, metric: &'static str, bound: Bound| Goal {
        path: OURS,
        against: Some(against),
        case: case.to_owned(),
        metric,
        bound,
    };
    let alone =
        |case: &str, metric: &'static str, bound: Bound| Goal { against: None, ..goal(TCP, case, metric, bound) };
    let mut goals = vec![
        goal(TLS, "loopback/unary-1", "p50", Bound::AtMost(1.10)),
        goal(TLS, "one-thread/unary-1", "p50", Bound::AtMost(1.15)),
        goal(TLS, "loopback/unary-1", "CPU per 100k calls", Bound::AtMost(1.20)),
        goal(TLS, "loopback/unary-256", "CPU per 100k calls", Bound::AtMost(1.20)),
        goal(TLS, "loopback/unary-256", "rate", Bound::AtLeast(0.90)),
        goal(TLS, "loopback/stream-server-64KiB", "rate", Bound::AtLeast(0.90)),
        goal(TLS, "loopback/stream-client-64KiB", "rate", Bound::AtLeast(0.90)),
        goal(TLS, "loopback/stream-bidi-64KiB", "rate", Bound::AtLeast(0.90)),
        goal(TCP, "path-100ms/streams-1", "rate", Bound::AtLeast(0.90)),
        goal(TCP, "path-100ms/streams-16", "rate", Bound::AtLeast(0.90)),
        alone("fleet-5000/herd", "all back", Bound::AtMost(60.0)),
        alone("fleet-5000/herd", "busiest 100 ms to the mean", Bound::AtMost(3.0)),
        alone("fleet-10000/idle", "all up", Bound::AtMost(15.0)),
        alone("fleet-10000/idle", fleet::MEMORY, Bound::AtMost(40.0)),
        alone("fleet-10000/idle", "hub CPU", Bound::AtMost(10.0)),
        alone("fleet-10000/herd", "all back", Bound::AtMost(30.0)),
    ];
    // Over a path there are too few calls for more than the 90th percentile.
    for (setting, percentile) in [("loopback", "p99"), ("path-20ms", "p90"), ("path-100ms", "p90")] {
        let case = format!("{setting}/small-beside-bulk");
        goals.push(goal(TCP, &case, percentile, Bound::AtMost(1.5)));
        // Small calls are soon answered where the bulk stands still.
        goals.push(goal(TCP, &case, "bulk", Bound::AtLeast(0.90)));
    }
    for agents in [5_000, 10_000] {
        let case = format!("fleet-{agents}/herd");
        goals.push(alone(&case, fleet::TRIES, Bound::NeverAbove(3.0)));
        goals.push(alone(&case, "failed calls meanwhile", Bound::NeverAbove(0.0)));
        goals.push(alone(&case, "slowest call meanwhile", Bound::NeverAbove(1000.0)));
    }
    if let Some(minutes) = plan.soak {
        for (metric, bound) in [
            ("agents there", Bound::AtLeast(100.0)),
            ("calls made of those due", Bound::AtLeast(99.0)),
            ("failed", Bound::NeverAbove(0.0)),
            ("tunnels lost", Bound::NeverAbove(0.0)),
            ("p99 of the last minute to the first", Bound::AtMost(2.0)),
            ("hub memory grows", Bound::AtMost(1.0)),
        ] {
            goals.push(alone(&soak_case(minutes), metric, bound));
        }
    }
    for way in [Way::Ssh, Way::Gateway, Way::Wss, Way::Grpctunnel] {
        for metric in ["failed", "connections lost"] {
            let path = Contender::Dialback(way).name();
            goals.push(Goal { path, ..alone(lossy::CASE, metric, Bound::NeverAbove(0.0)) });
        }
    }
    for rival in RIVALS {
        for callers in ["1", "16", "256"] {
            goals.push(goal(rival.name(), &format!("loopback/unary-{callers}"), "rate", Bound::AtLeast(2.0)));
        }
    }
    for way in ["server", "client", "bidi"] {
        let case = format!("loopback/stream-{way}-1MiB");
        goals.push(goal(Contender::GoGrpctunnel.name(), &case, "rate", Bound::AtLeast(4.0)));
    }
    goals
}

/// In how many of the rows that a rival has we are ahead, and in which we are not. Not over the lossy link: how fast a
/// contender is there, chance decides, and what counts is that nothing fails. Not of connections, which a tunnel has one of.
fn ahead(report: &Report, rival: &str) -> String {
    let (mut all, mut behind) = (0, Vec::new());
    for (case, metric, unit) in report.metrics(rival) {
        if case == lossy::CASE || case.ends_with(&Work::Fresh.name()) {
            continue;
        }
        all += 1;
        let medians = [OURS, rival].map(|path| report.median(case, path, metric));
        let [Some(ours), Some(theirs)] = medians else {
            behind.push(format!("{case} {metric} (not measured)"));
            continue;
        };
        // Of rates more is better, of all else less.
        let ratio = if unit.ends_with("/s") { ours / theirs } else { theirs / ours };
        // What is no number is not ahead.
        if ratio >= 1.0 {
            continue;
        }
        behind.push(format!("{case} {metric} ({ratio:.2})"));
    }
    let reached = match (all, behind.is_empty()) {
        (0, _) => "no: not measured".into(),
        (_, true) => "yes".into(),
        (_, false) => format!("no: {}", behind.join(", ")),
    };
    let mut text = String::new();
    let _ = writeln!(text, "| {OURS}: ahead of {rival} in every row | {} of {all} | {reached} |", all - behind.len());
    text
}
