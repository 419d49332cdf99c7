//! What was measured: medians, ratios, goals.

use std::fmt::Write as _;

use serde_json::json;

use crate::Failure;
use crate::cases::{ONE_THREAD, PROCESSES};

/// What the work went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    DirectTcp,
    Tunnel,
    TunnelDialled,
    Gateway,
    ConnectProxy,
    #[cfg(feature = "websocket")]
    WebSocket,
    #[cfg(feature = "websocket")]
    WebSocketTls,
    StockSsh,
    #[cfg(feature = "grpctunnel")]
    Grpctunnel,
    #[cfg(feature = "grpctunnel")]
    GrpctunnelForward,
    #[cfg(feature = "grpctunnel")]
    GrpctunnelGo,
}

impl Path {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DirectTcp => "direct-tcp",
            Self::Tunnel => "tunnel",
            Self::TunnelDialled => "tunnel-dialled",
            Self::Gateway => "gateway",
            Self::ConnectProxy => "CONNECT",
            #[cfg(feature = "websocket")]
            Self::WebSocket => "ws",
            #[cfg(feature = "websocket")]
            Self::WebSocketTls => "wss",
            Self::StockSsh => "ssh -R",
            #[cfg(feature = "grpctunnel")]
            Self::Grpctunnel => "grpctunnel",
            #[cfg(feature = "grpctunnel")]
            Self::GrpctunnelForward => "grpctunnel-fwd",
            #[cfg(feature = "grpctunnel")]
            Self::GrpctunnelGo => "grpctunnel Go",
        }
    }
}

struct Row {
    case: String,
    metric: &'static str,
    path: Path,
    unit: &'static str,
    /// One for each round.
    values: Vec<f64>,
}

impl Row {
    fn median(&self) -> f64 {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
    }

    fn spread(&self) -> String {
        let low = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self.values.iter().copied().fold(0.0, f64::max);
        format!("{} to {}", short(low), short(high))
    }
}

/// Every value of every round.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn add(&mut self, case: &str, path: Path, metric: &'static str, unit: &'static str, value: f64) {
        let known = self.rows.iter_mut().find(|row| (row.case.as_str(), row.path, row.metric) == (case, path, metric));
        match known {
            Some(row) => row.values.push(value),
            None => self.rows.push(Row { case: case.to_owned(), metric, path, unit, values: vec![value] }),
        }
    }

    fn find(&self, case: &str, path: Path, metric: &str) -> Option<&Row> {
        self.rows.iter().find(|row| (row.case.as_str(), row.path, row.metric) == (case, path, metric))
    }

    /// To `direct-tcp`, for what is not that itself.
    fn ratio(&self, row: &Row) -> Option<f64> {
        self.ratio_to(row, Path::DirectTcp)
    }

    fn ratio_to(&self, row: &Row, path: Path) -> Option<f64> {
        let other = self.find(&row.case, path, row.metric)?;
        (row.path != path).then(|| row.median() / other.median())
    }

    /// The rows, what is compared next to each other: paths within metrics within cases.
    fn ordered(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        let first =
            |row: &Row, same: &dyn Fn(&Row) -> bool| self.rows.iter().position(same).map(|n| (n, row.path as u8));
        rows.sort_by_key(|row| {
            let case = first(row, &|other| other.case == row.case).map(|(n, _)| n);
            (case, first(row, &|other| other.case == row.case && other.metric == row.metric))
        });
        rows
    }

    /// In Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text =
            String::from("| case | metric | path | median | rounds | ratio to direct |\n|---|---|---|--:|--:|--:|\n");
        for row in self.ordered() {
            let ratio = self.ratio(row).map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let (case, metric, path) = (&row.case, row.metric, row.path.name());
            let (median, unit, spread) = (short(row.median()), row.unit, row.spread());
            let _ = writeln!(text, "| {case} | {metric} | {path} | {median} {unit} | {spread} | {ratio} |"); // a String takes it
        }
        text
    }

    pub(crate) fn json(&self) -> Result<String, Failure> {
        let row = |row: &Row| {
            json!({
                "case": row.case, "path": row.path.name(), "metric": row.metric, "unit": row.unit,
                "value": row.median(), "ratio": self.ratio(row),
            })
        };
        let rows: Vec<_> = self.ordered().into_iter().map(row).collect();
        Ok(serde_json::to_string_pretty(&rows)? + "\n")
    }

    /// Which goals were reached.
    pub(crate) fn goals(&self) -> String {
        let mut text = String::from("| goal | measured | reached |\n|---|--:|---|\n");
        for goal in GOALS {
            let case = format!("{}/{}", goal.setting, goal.case);
            let Some(row) = self.find(&case, goal.path, goal.metric) else { continue };
            let measured = self.ratio_to(row, goal.against).unwrap_or_else(|| row.median());
            let (sign, reached) = match goal.bound {
                Bound::AtMost(bound) => (format!("≤ {bound}"), measured <= bound),
                Bound::AtLeast(bound) => (format!("≥ {bound}"), measured >= bound),
            };
            let reached = if reached { "yes" } else { "no" };
            let (path, metric) = (goal.path.name(), goal.metric);
            let against = match goal.against {
                Path::DirectTcp => String::new(),
                other => format!(" × {}", other.name()),
            };
            let _ = writeln!(text, "| {path}: {case} {metric} {sign}{against} | {measured:.2} | {reached} |"); // a String takes it
        }
        text
    }
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// A bound on a ratio; on the value where there is nothing that corresponds to it.
struct Goal {
    path: Path,
    against: Path,
    setting: &'static str,
    case: &'static str,
    metric: &'static str,
    bound: Bound,
}

/// For `hub.channel(…)`.
const fn goal(setting: &'static str, case: &'static str, metric: &'static str, bound: Bound) -> Goal {
    Goal { path: Path::Tunnel, against: Path::DirectTcp, setting, case, metric, bound }
}

/// For the gateway, which costs a hop more.
const fn gateway(case: &'static str, metric: &'static str, bound: Bound) -> Goal {
    Goal { path: Path::Gateway, against: Path::DirectTcp, setting: PROCESSES, case, metric, bound }
}

/// For another way than TCP and our own agent.
const fn way(path: Path, case: &'static str, metric: &'static str, bound: Bound) -> Goal {
    Goal { path, against: Path::Tunnel, setting: PROCESSES, case, metric, bound }
}

/// For our tunnels of grpctunnel, against the Go library's.
#[cfg(feature = "grpctunnel")]
const fn than_go(case: &'static str, metric: &'static str, bound: Bound) -> Goal {
    Goal { path: Path::Grpctunnel, against: Path::GrpctunnelGo, setting: PROCESSES, case, metric, bound }
}

const GOALS: &[Goal] = &[
    goal(PROCESSES, "unary", "p50", Bound::AtMost(1.20)),
    goal(PROCESSES, "64-callers", "rate", Bound::AtLeast(0.85)),
    goal(PROCESSES, "stream-64KiB-down", "rate", Bound::AtLeast(0.55)),
    goal(PROCESSES, "stream-64KiB-up", "rate", Bound::AtLeast(0.55)),
    goal(PROCESSES, "idle-agents", "hub memory", Bound::AtMost(48.0)),
    goal(ONE_THREAD, "unary", "p50", Bound::AtMost(1.50)),
    goal(ONE_THREAD, "64-callers", "rate", Bound::AtLeast(0.85)),
    goal(ONE_THREAD, "stream-64KiB-down", "rate", Bound::AtLeast(0.55)),
    goal(ONE_THREAD, "stream-64KiB-up", "rate", Bound::AtLeast(0.55)),
    gateway("unary", "p50", Bound::AtMost(1.60)),
    gateway("64-callers", "rate", Bound::AtLeast(0.50)),
    gateway("stream-64KiB-down", "rate", Bound::AtLeast(0.50)),
    gateway("stream-64KiB-up", "rate", Bound::AtLeast(0.50)),
    #[cfg(feature = "websocket")]
    way(Path::WebSocketTls, "unary", "p50", Bound::AtMost(1.30)),
    #[cfg(feature = "websocket")]
    way(Path::WebSocketTls, "stream-64KiB-down", "rate", Bound::AtLeast(0.60)),
    #[cfg(feature = "websocket")]
    way(Path::WebSocketTls, "stream-64KiB-up", "rate", Bound::AtLeast(0.60)),
    way(Path::StockSsh, "unary", "p50", Bound::AtMost(2.00)),
    #[cfg(feature = "grpctunnel")]
    than_go("unary", "p50", Bound::AtMost(1.0)),
    #[cfg(feature = "grpctunnel")]
    than_go("64-callers", "rate", Bound::AtLeast(1.5)),
    #[cfg(feature = "grpctunnel")]
    than_go("stream-1MiB-down", "rate", Bound::AtLeast(4.0)),
];

/// As many digits as a reader wants.
fn short(value: f64) -> String {
    match value {
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}
