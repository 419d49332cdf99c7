//! What is to be reached, and what was.

use std::fmt::Write as _;

use crate::common::report::{Bound, Goal, Report};
use crate::contenders::Contender;
use crate::lossy;
use crate::roles::Way;

const OURS: &str = Contender::Dialback(Way::Ssh).name();
const TLS: &str = Contender::DirectTls.name();
const TCP: &str = Contender::DirectTcp.name();

/// What a user would pick instead.
const RIVALS: [Contender; 5] =
    [Contender::OpenSsh, Contender::GoSsh, Contender::GoGrpctunnel, Contender::PythonGrpctunnel, Contender::Tool];

/// Which were reached, in Markdown. One that was not measured is not there.
pub(crate) fn table(report: &Report) -> String {
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
        goal(TCP, "path-100ms/streams-1", "rate", Bound::AtLeast(0.90)),
        goal(TCP, "loopback/small-beside-bulk", "p99", Bound::AtMost(1.5)),
        alone("fleet-5000/herd", "all back", Bound::AtMost(60.0)),
        alone("fleet-5000/herd", "busiest 100 ms to the mean", Bound::AtMost(3.0)),
        alone("fleet-5000/herd", "most tries of an agent", Bound::NeverAbove(3.0)),
        alone("fleet-5000/herd", "failed calls meanwhile", Bound::NeverAbove(0.0)),
        alone("fleet-10000/idle", "all up", Bound::AtMost(15.0)),
        alone("fleet-10000/idle", "hub memory", Bound::AtMost(40.0)),
        alone("fleet-10000/idle", "hub CPU", Bound::AtMost(10.0)),
        alone("fleet-10000/herd", "all back", Bound::AtMost(30.0)),
        alone("fleet-10000/herd", "failed calls meanwhile", Bound::NeverAbove(0.0)),
        alone("soak-30min", "failed", Bound::NeverAbove(0.0)),
        alone("soak-30min", "tunnels lost", Bound::NeverAbove(0.0)),
        alone("soak-30min", "hub memory grows", Bound::AtMost(1.0)),
    ];
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
    let mut text = report.goals(&goals);
    for rival in RIVALS {
        text.push_str(&ahead(report, rival.name()));
    }
    text
}

/// In how many of the rows that both have we are ahead, and in which we are not. Not over the lossy link: how fast a
/// contender is there, chance decides, and what counts is that nothing fails.
fn ahead(report: &Report, rival: &str) -> String {
    let (mut all, mut behind) = (0, Vec::new());
    for (case, metric, unit) in report.metrics(OURS).into_iter().filter(|(case, ..)| *case != lossy::CASE) {
        let medians = [OURS, rival].map(|path| report.median(case, path, metric));
        let [Some(ours), Some(theirs)] = medians else { continue };
        all += 1;
        // Of rates more is better, of all else less.
        let ratio = if unit.ends_with("/s") { ours / theirs } else { theirs / ours };
        if ratio < 1.0 {
            behind.push(format!("{case} {metric} ({ratio:.2})"));
        }
    }
    if all == 0 {
        return String::new();
    }
    let reached = if behind.is_empty() { "yes".into() } else { format!("no: {}", behind.join(", ")) };
    let mut text = String::new();
    let _ = writeln!(text, "| {OURS}: ahead of {rival} in every row | {} of {all} | {reached} |", all - behind.len());
    text
}
